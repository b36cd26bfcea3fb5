//! The order of sysctl.d: what node-fixer says of a scratch root is what the real programs write from it.
//!
//! They run in a mount namespace in which the scratch root's directories stand in the place of the machine's, and
//! in a network namespace whose sysctls are theirs to write.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use node_fixer::node::Root;
use node_fixer::sysctl_d::{ConfFile, Occasion, Settings};

use crate::kit::{Netns, exchanging};

const LINKS: [&str; 5] = ["eth0", "eth0.100", "eth1", "ens5", "enP2p4s0"];
const NAMES: [&str; 8] = ["all", "default", "lo", "eth0", "eth0.100", "eth1", "ens5", "enP2p4s0"];
/// Keys that take any number, and whose writing changes no other.
const KEYS: [&str; 3] = ["rp_filter", "arp_filter", "log_martians"];
/// What nobody writes.
const UNTOUCHED: &str = "-7";

pub const DIRECTORIES: [&str; 4] = ["etc/sysctl.d", "run/sysctl.d", "usr/local/lib/sysctl.d", "usr/lib/sysctl.d"];

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % sides
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.roll(of.len())]
    }
}

/// Which of systemd's peculiarities the lines may have.
#[derive(Clone, Copy, PartialEq)]
enum Lines {
    All,
    /// Those that procps has as well.
    Common,
}

/// A line; of all kinds, often one that was there before.
fn line(dice: &mut Dice, kind: Lines, used: &mut Vec<String>) -> String {
    if kind == Lines::All && !used.is_empty() && dice.roll(4) == 0 {
        return used[dice.roll(used.len())].clone();
    }
    let names = ["eth0", "eth0.100", "eth1", "ens5", "enP2p4s0", "all", "default"];
    let globs = ["*", "*", "eth*", "eth*", "eth?", "e[nt]*[0-9]", "eth0.*", "[!e]*", "*[^15]"];
    let braces = ["{eth,ens}*", "e{n,th}[0-9s]*"];
    let value = 1 + dice.roll(2);
    let key = dice.pick(&KEYS);
    let name = match dice.roll(if kind == Lines::All { 10 } else { 9 }) {
        0..4 => dice.pick(&names),
        4..9 => dice.pick(&globs),
        _ => dice.pick(&braces),
    };
    let key = if dice.roll(8) == 0 && name != "all" { "*_filter" } else { key };
    let spelled = match dice.roll(3) {
        0 => format!("net/ipv4/conf/{name}/{key}"),
        1 if kind == Lines::All => format!("/net//ipv4/./conf/{name}/{key}"),
        _ => format!("net.ipv4.conf.{}.{key}", name.replace('.', "/")),
    };
    let path = format!("{name}/{key}");
    // procps writes what is said again, and takes nothing back.
    if kind == Lines::Common {
        if used.contains(&path) {
            return "# said already".into();
        }
        used.push(path);
    }
    let line = match dice.roll(12) {
        0 if kind == Lines::All || names.contains(&name) && !key.contains('*') => format!("-{spelled}"),
        1 => format!("-{spelled} = {value}"),
        2 => format!("  {spelled}\t={value}  "),
        3 => format!("# {spelled} = {value}"),
        4 => format!("; {spelled} = {value}"),
        5 => "\nnot an assignment\n".into(),
        _ => format!("{spelled} = {value}"),
    };
    if kind == Lines::All {
        used.push(line.clone());
    }
    line
}

/// A scratch root of some files, some of them shadowed, masked or linked.
fn scratch(dice: &mut Dice, kind: Lines) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let files = ["10-a.conf", "50-redhat.conf", "90-node-fixer.conf", "99-z.conf", "B.conf", "readme", "x.conf~"];
    let mut used = Vec::new();
    for directory in DIRECTORIES {
        std::fs::create_dir_all(root.path().join(directory)).unwrap();
        for _ in 0..dice.roll(4) {
            let path = root.path().join(directory).join(dice.pick(&files));
            if path.symlink_metadata().is_ok() {
                continue;
            }
            match dice.roll(8) {
                0 => symlink("/dev/null", path).unwrap(),
                1 => std::fs::write(path, "").unwrap(),
                2 if kind == Lines::All => symlink("nowhere", path).unwrap(),
                _ => {
                    let end = if kind == Lines::All { dice.pick(&["\n", "\r\n", "\n\n"]) } else { "\n" };
                    let lines: Vec<_> = (0..1 + dice.roll(8)).map(|_| line(dice, kind, &mut used)).collect();
                    std::fs::write(path, lines.join(end)).unwrap();
                }
            }
        }
    }
    if kind == Lines::All && dice.roll(2) == 0 {
        let _ = symlink("../sysctl.conf", root.path().join("etc/sysctl.d/99-sysctl.conf"));
    }
    if kind == Lines::All {
        std::fs::write(root.path().join("etc/sysctl.conf"), line(dice, kind, &mut used) + "\n").unwrap();
        std::fs::write(root.path().join("usr/lib/sysctl.d/.hidden.conf"), "net.ipv4.conf.*.rp_filter = 5\n").unwrap();
    }
    root
}

fn node() -> Netns {
    let net = Netns::new();
    for link in LINKS {
        net.ip(&format!("link add {link} type bridge"));
    }
    net
}

fn keys() -> impl Iterator<Item = String> {
    NAMES.into_iter().flat_map(|name| KEYS.map(|key| format!("net/ipv4/conf/{name}/{key}")))
}

/// What runs a program where the scratch root's directories stand in the place of the machine's.
pub fn rooted(root: &Path) -> Command {
    let script = "cd \"$1\" && shift && mount --bind usr/lib/sysctl.d /usr/lib/sysctl.d && \
        mount --bind usr/local/lib /usr/local/lib && mount --bind run /run && mount --bind etc /etc && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(root);
    command
}

/// Runs the program on the scratch root, and returns what it wrote.
pub fn wrote(net: &Netns, root: &Path, program: &str, package: &str, args: &[&str]) -> BTreeMap<String, String> {
    assert!(Path::new(program).exists(), "this test needs {program}: sudo apt-get install {package}");
    for key in keys() {
        net.set_sysctl(&key, UNTOUCHED);
    }
    // Lines that are no assignments make it fail, after it has done the rest.
    let output = net.output(rooted(root).arg(program).args(args));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!said.contains("mount:"), "{said}");
    keys().map(|key| (key.clone(), net.sysctl(&key))).collect()
}

/// What node-fixer says would be written.
fn said(settings: &Settings, occasion: Occasion, of: Option<&str>) -> BTreeMap<String, String> {
    let of_link = |key: &str| of.is_none_or(|link| key.starts_with(&format!("net/ipv4/conf/{link}/")));
    let value = |key: &String| {
        let winner = settings.winner(key.as_bytes(), occasion).filter(|_| of_link(key));
        winner.map_or(UNTOUCHED.into(), |setting| String::from_utf8(setting.value.clone()).unwrap())
    };
    keys().map(|key| (key.clone(), value(&key))).collect()
}

fn read(root: &Path) -> Settings {
    let (settings, unread) = Root::open(root).unwrap().sysctl_settings();
    assert_eq!(unread, Vec::<String>::new());
    settings
}

/// All files of a scratch root, for the message of a test that fails.
fn shown(root: &Path) -> String {
    let shown = Command::new("sh")
        .args([
            "-c",
            "cd \"$1\" && find . -ls && tail -n +1 */sysctl.d/* */*/sysctl.d/* */*/*/sysctl.d/* etc/sysctl.conf 2>&1",
            "sh",
        ])
        .arg(root)
        .output();
    String::from_utf8_lossy(&shown.unwrap().stdout).into_owned()
}

pub const SYSTEMD: &str = "/lib/systemd/systemd-sysctl";

#[test]
#[ignore = "needs systemd-sysctl; tests/run runs it"]
fn the_order_is_that_of_systemd_sysctl() {
    let net = node();
    let dice = &mut Dice(7);
    let mut written = 0;
    for number in 0..50 {
        let root = scratch(dice, Lines::All);
        let settings = read(root.path());
        let real = wrote(&net, root.path(), SYSTEMD, "systemd", &[]);
        assert_eq!(said(&settings, Occasion::Boot, None), real, "{number}:\n{}", shown(root.path()));
        written += real.values().filter(|value| *value != UNTOUCHED).count();
        for link in ["eth1", "eth0.100", "ens5"] {
            let prefix = format!("--prefix=/net/ipv4/conf/{link}");
            let args =
                [&prefix, "--prefix=/net/ipv4/neigh/x", "--prefix=/net/ipv6/conf/x", "--prefix=/net/ipv6/neigh/x"];
            let real = wrote(&net, root.path(), SYSTEMD, "systemd", &args);
            assert_eq!(said(&settings, Occasion::Link, Some(link)), real, "{number}, {link}:\n{}", shown(root.path()));
        }
    }
    assert!(written > 250, "the scratch roots say hardly anything: {written}");
}

#[test]
#[ignore = "needs systemd-sysctl and procps; tests/run runs it"]
fn procps_agrees_but_in_what_is_known() {
    let net = node();
    let dice = &mut Dice(11);
    let mut written = 0;
    for number in 0..40 {
        let root = scratch(dice, Lines::Common);
        let real = wrote(&net, root.path(), "/sbin/sysctl", "procps", &["--system"]);
        assert_eq!(said(&read(root.path()), Occasion::Boot, None), real, "{number}:\n{}", shown(root.path()));
        written += real.values().filter(|value| *value != UNTOUCHED).count();
    }
    assert!(written > 130, "the scratch roots say hardly anything: {written}");

    // (what the files say, systemd's rp_filter of eth1, procps')
    for (text, of_systemd, of_procps) in [
        ("net.ipv4.conf.*.rp_filter=1\nnet.ipv4.conf.eth*.rp_filter=2\nnet.ipv4.conf.*.rp_filter=1\n", "2", "1"),
        ("net.ipv4.conf.eth1.rp_filter=1\n-net.ipv4.conf.eth1.rp_filter\n", UNTOUCHED, "1"),
        ("net.ipv4.conf.*.rp_filter=1\n-net.ipv4.conf.*.rp_filter\n", UNTOUCHED, "1"),
        ("net.ipv4.conf.{eth,ens}[0-9].rp_filter=1\n", "1", UNTOUCHED),
    ] {
        let root = scratch(&mut Dice(0), Lines::Common);
        for directory in DIRECTORIES {
            std::fs::remove_dir_all(root.path().join(directory)).unwrap();
            std::fs::create_dir(root.path().join(directory)).unwrap();
        }
        std::fs::write(root.path().join("etc/sysctl.d/a.conf"), text).unwrap();
        let key = "net/ipv4/conf/eth1/rp_filter";
        assert_eq!(said(&read(root.path()), Occasion::Boot, None)[key], of_systemd, "{text}");
        assert_eq!(wrote(&net, root.path(), SYSTEMD, "systemd", &[])[key], of_systemd, "{text}");
        assert_eq!(wrote(&net, root.path(), "/sbin/sysctl", "procps", &["--system"])[key], of_procps, "{text}");
    }
}

#[test]
#[ignore = "needs systemd-sysctl; tests/run runs it"]
fn a_file_that_would_be_written_counts_as_if_it_were() {
    let net = node();
    let dice = &mut Dice(13);
    let mut overridden = 0;
    for number in 0..40 {
        let root = scratch(dice, Lines::All);
        let ours = "net.ipv4.conf.eth*.rp_filter = 2\n-net.ipv4.conf.ens5.rp_filter = 2\n";
        let path = "/etc/sysctl.d/90-node-fixer.conf";
        let planned = read(root.path()).with(ConfFile { path: path.into(), text: ours.into() });
        let file = root.path().join(path.trim_start_matches('/'));
        let _ = std::fs::remove_file(&file);
        std::fs::write(&file, ours).unwrap();
        assert_eq!(planned, read(root.path()), "{number}:\n{}", shown(root.path()));
        let real = wrote(&net, root.path(), SYSTEMD, "systemd", &[]);
        for link in ["eth0", "eth0.100", "eth1", "ens5"] {
            let key = format!("net/ipv4/conf/{link}/rp_filter");
            let other = planned.overriding(key.as_bytes(), Occasion::Boot);
            assert_eq!(
                other.is_some(),
                real[&key] != "2" && real[&key] != UNTOUCHED,
                "{number}, {link}: {other:?}\n{}",
                shown(root.path())
            );
            overridden += usize::from(other.is_some());
        }
    }
    assert!(overridden > 10, "hardly anything overrides: {overridden}");
}

#[test]
fn absolute_links_of_a_scratch_root_stay_in_it() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("etc/sysctl.d")).unwrap();
    std::fs::create_dir_all(root.path().join("usr/lib/sysctl.d")).unwrap();
    std::fs::write(root.path().join("etc/real"), "net.ipv4.ip_forward = 1\n").unwrap();
    symlink("/etc/real", root.path().join("etc/sysctl.d/50-a.conf")).unwrap();
    symlink("/../../../etc/hostname", root.path().join("etc/sysctl.d/60-b.conf")).unwrap();
    symlink("70-c.conf", root.path().join("etc/sysctl.d/70-c.conf")).unwrap();
    nix::unistd::mkfifo(&root.path().join("etc/sysctl.d/80-d.conf"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    let (settings, unread) = Root::open(root.path()).unwrap().sysctl_settings();
    let winner = settings.winner(b"net/ipv4/ip_forward", Occasion::Boot).unwrap();
    assert_eq!(winner.place(), "/etc/sysctl.d/50-a.conf:1");
    assert_eq!(unread.len(), 2, "a loop and a pipe: {unread:?}");
}

/// A link that goes up, as Debian's 99-sysctl.conf, while somebody renames files, wherever.
#[test]
fn renaming_files_elsewhere_hides_none() {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(root.path().join("etc/sysctl.d")).unwrap();
    std::fs::write(root.path().join("etc/sysctl.conf"), "net.ipv4.ip_forward = 1\n").unwrap();
    symlink("../sysctl.conf", root.path().join("etc/sysctl.d/99-sysctl.conf")).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let (a, b) = (elsewhere.path().join("a"), elsewhere.path().join("b"));
    std::fs::write(&a, "").unwrap();
    std::fs::write(&b, "").unwrap();
    let found: Vec<_> = exchanging(&a, &b, || {
        let root = Root::open(root.path()).unwrap();
        (0..2000).map(|_| root.sysctl_settings()).collect()
    });
    for (settings, unread) in found {
        assert_eq!(unread, Vec::<String>::new());
        assert_eq!(settings.files().count(), 1);
    }
}
