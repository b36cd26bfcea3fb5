//! The impure part of doctor: reads the files and the kernel's state. It changes nothing.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::facts::{Facts, Files, Martians};
use super::ini::{Location, entries};
use super::{ALL, Examination, Finding, Probe};
use crate::config::Config;
use crate::host::Host;
use crate::model::one_line;
use crate::node::{ConfFiles, Root};
use crate::observed::{Gap, Look, Observed};
use crate::sorted;
use crate::sysctl_d::{ConfFile, DIRECTORIES, Settings};

/// How long dropped packets are counted.
const WATCH: Duration = Duration::from_millis(300);

/// Whether an examination takes the time to count dropped packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drops {
    /// It counts them.
    Counted,
    /// It returns at once.
    NotCounted,
}

/// Looks for every cause, in the files below the root and in the kernel's state of this network namespace.
pub fn examine(desired: &Config, host: &mut Host, root: &Root, drops: Drops) -> Examination {
    let (begin, before) = (Instant::now(), martians());
    let mut examination = Examination::default();
    let files = read(root, &mut examination.unseen);
    let mut observed = Observed::default();
    let tape = host.tape().clone();
    let mut checked = |probe: &dyn Fn(&Facts) -> Result<Vec<Finding>, Gap>| {
        host.ask(&mut observed, |observed| probe(&Facts { desired, observed, files: &files }))
    };
    for check in ALL {
        let found = match (&check.probe, drops) {
            (Probe::State(probe), _) => checked(probe),
            // Some of the time has passed already.
            (Probe::Drops(probe), Drops::Counted) => {
                let seen = tape.answer("martians", "", || watched(begin, &before).map_err(|why| why.to_string()));
                seen.map_err(Into::into).and_then(|martians| checked(&|facts| probe(facts, martians)))
            }
            (Probe::Drops(_), Drops::NotCounted) => continue,
        };
        match found {
            Ok(found) => {
                examination.findings.extend(found.into_iter().map(|it| Finding { cause: check.cause, ..it }));
            }
            Err(why) if examination.unseen.iter().any(|known| **known == *why) => {}
            Err(why) => examination.unseen.push(why.to_string()),
        }
    }
    examination
}

/// The counter of packets that rp_filter dropped in this network namespace.
fn martians() -> Look<u64> {
    const FILE: &str = "/proc/thread-self/net/netstat";
    const NAME: &str = "IPReversePathFilter";
    let text = std::fs::read_to_string(FILE).map_err(|error| format!("cannot read {FILE}: {error}"))?;
    // Two lines each: the names, and below them the values.
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let names = lines.next().unwrap_or_default().split_whitespace();
    let values = lines.next().unwrap_or_default().split_whitespace();
    let value = names.zip(values).find(|(name, _)| *name == NAME).and_then(|(_, value)| value.parse().ok());
    value.ok_or_else(|| format!("{FILE} has no counter {NAME}").into())
}

fn watched(begin: Instant, before: &Look<u64>) -> Look<Martians> {
    let before = before.clone()?;
    std::thread::sleep(WATCH.saturating_sub(begin.elapsed()));
    Ok(Martians { before, after: martians()?, millis: begin.elapsed().as_millis() })
}

/// Reads all files, and reports which could not be read.
fn read(root: &Root, unseen: &mut Vec<String>) -> Files {
    let mut take = |found: ConfFiles| {
        unseen.extend(found.unread);
        found.files
    };
    let systemd = |name: &str| DIRECTORIES.map(|directory| Path::new(directory).join("systemd").join(name));
    let drop_ins = |file: &ConfFile| {
        root.conf_files(&format!("systemd/network/{}.d", String::from_utf8_lossy(file.name())), ".conf")
    };
    let mut networkd_conf = take(root.conf_files_of(&systemd(""), |name| name == b"networkd.conf"));
    networkd_conf.extend(take(root.conf_files("systemd/networkd.conf.d", ".conf")));
    let mut links = Vec::new();
    for file in take(root.conf_files("systemd/network", ".link")) {
        let more = take(drop_ins(&file));
        links.push([vec![file], more].concat());
    }
    let mut networks = Vec::new();
    for file in take(root.conf_files("systemd/network", ".network")) {
        let more = take(drop_ins(&file));
        networks.push(file);
        networks.extend(more);
    }
    let netplan = ["/etc/netplan", "/run/netplan", "/lib/netplan"].map(PathBuf::from);
    networks.extend(take(root.conf_files_of(&netplan, |name| name.ends_with(b".yaml"))));
    let of_cures = [
        "/etc/NetworkManager/conf.d",
        "/run/NetworkManager/conf.d",
        "/usr/lib/NetworkManager/conf.d",
        "/etc/cloud/cloud.cfg.d",
    ];
    let of_cures =
        take(root.conf_files_of(&of_cures.map(PathBuf::from), |name| name.windows(10).any(|it| it == b"node-fixer")));
    let drop_ins = take(root.conf_files_of(&["/etc/node-fixer/config.d".into()], |name| name.ends_with(b".yaml")));
    let mut all_of = |directory: &str| take(root.conf_files_of(&[directory.into()], |_| true));
    networks.extend(all_of("/etc/sysconfig/network-scripts"));
    let networkd_links = by_index(all_of("/run/systemd/netif/links"));
    let networkmanager_links = by_index(all_of("/run/NetworkManager/devices"));
    let (sysctl, unread) = root.sysctl_settings();
    let units = take(root.conf_files_of(&systemd("system"), is_of_policy_routes));
    let udev_rule = take(root.conf_files("udev/rules.d", ".rules")).iter().find_map(udev_rule);
    unseen.extend(unread);
    Files {
        sysctl,
        ufw: ufw(root, unseen),
        udev_rule,
        networkd: root.has(Path::new("/run/systemd/netif/state")),
        networkd_conf,
        networkd_links,
        networkmanager_links,
        networks,
        links,
        units,
        machine_id: root.read(Path::new("/etc/machine-id")).ok().and_then(|text| machine_id(&text)),
        of_cures,
        cloud_init: root.has(Path::new("/etc/cloud")) || root.has(Path::new("/run/cloud-init")),
        drop_ins,
    }
}

/// Whether a unit of this name belongs to a program that sets up policy routes.
fn is_of_policy_routes(name: &[u8]) -> bool {
    let names = [&b"nm-cloud-setup."[..], b"refresh-policy-routes@"];
    names.iter().any(|start| name.starts_with(start)) && (name.ends_with(b".timer") || name.ends_with(b".service"))
}

/// ufw's sysctls: /etc/default/ufw names their file, and /etc/ufw/ufw.conf says whether ufw is enabled.
fn ufw(root: &Root, unseen: &mut Vec<String>) -> Option<Settings> {
    const FILE: &str = "/etc/ufw/sysctl.conf";
    let mut read = |path: &str| match root.read(Path::new(path)) {
        Ok(text) => Some(ConfFile { path: path.into(), text }),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => None,
        Err(error) => {
            unseen.push(format!("cannot read {}: {error}", one_line(path)));
            None
        }
    };
    let said = |file: &ConfFile, key: &str| {
        let value = entries(file).into_iter().rfind(|entry| entry.key == key)?.value;
        Some(value.trim_matches(['"', '\'']).to_owned())
    };
    let enabled = said(&read("/etc/ufw/ufw.conf")?, "ENABLED")?;
    if !enabled.eq_ignore_ascii_case("yes") {
        return None;
    }
    let path = read("/etc/default/ufw").map_or_else(|| Some(FILE.to_owned()), |file| said(&file, "IPT_SYSCTL"))?;
    Some(Settings::new(vec![read(&path).filter(|_| path.starts_with('/'))?]))
}

fn by_index(files: Vec<ConfFile>) -> BTreeMap<u32, ConfFile> {
    let index = |file: &ConfFile| str::from_utf8(file.name()).ok()?.parse().ok();
    sorted::map(files.into_iter().filter_map(|file| Some((index(&file)?, file))))
}

/// Sixteen bytes as hexadecimal digits.
pub fn machine_id(text: &[u8]) -> Option<[u8; 16]> {
    let text = str::from_utf8(text.trim_ascii()).ok().filter(|text| text.len() == 32)?;
    u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)
}

/// The line that runs systemd-sysctl.
fn udev_rule(file: &ConfFile) -> Option<Location> {
    let runs = |line: &&[u8]| !line.starts_with(b"#") && line.windows(14).any(|words| words == b"systemd-sysctl");
    let line = file.text.split(|byte| *byte == b'\n').position(|line| runs(&line))? + 1;
    Some(Location { file: file.path.clone(), line })
}
