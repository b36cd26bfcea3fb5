//! Causes in sysctls and their files.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::Finding;
use super::facts::{Facts, shortened};
use super::ini::Place;
use crate::desired::{Mode, RpFilter};
use crate::net::{IfName, SysctlKey, shell_word};
use crate::observed::Gap;
use crate::sysctl_d::{ConfFile, Occasion, Setting, Settings};

/// Where a cure for rp_filter goes: after the files of distributions.
const RP_FILTER_FILE: &str = "/etc/sysctl.d/90-rp-filter.conf";
const IP_FORWARD_FILE: &str = "/etc/sysctl.d/90-ip-forward.conf";

/// The pseudo-interface whose values new interfaces copy.
const DEFAULT: &[u8] = b"default";

fn key_of(name: &[u8]) -> Vec<u8> {
    [&b"net/ipv4/conf/"[..], name, b"/rp_filter"].concat()
}

fn place(setting: &Setting) -> Place {
    Place { file: setting.file.clone(), line: setting.line }
}

fn number(setting: &Setting) -> Option<i32> {
    str::from_utf8(&setting.value).ok()?.trim().parse().ok()
}

/// Whether a value of rp_filter is to be replaced.
fn offends(wish: &RpFilter, value: i32) -> bool {
    value != wish.value.number() && wish.replace.iter().any(|bad| bad.number() == value)
}

/// The line that sets an interface's rp_filter to what is to be replaced.
fn offender<'a>(settings: &'a Settings, wish: &RpFilter, name: &[u8]) -> Option<&'a Setting> {
    [Occasion::Link, Occasion::Boot].into_iter().find_map(|occasion| {
        let winner = settings.winner(&key_of(name), occasion)?;
        number(winner).is_some_and(|value| offends(wish, value)).then_some(winner)
    })
}

/// A line, and the interfaces that it decides about.
type Said<'a> = (&'a Setting, Vec<Cow<'a, str>>);

pub fn rp_filter_sysctl(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let wish = &facts.desired.rp_filter;
    if wish.mode == Mode::Off {
        return Ok(Vec::new());
    }
    let links = facts.names()?;
    let names = || [DEFAULT].into_iter().chain(links.values().map(|name| name.as_bytes()));
    let wanted = || names().filter(|name| wish.interfaces.is_match(name));
    let mut by_file: BTreeMap<&Path, BTreeMap<usize, Said>> = BTreeMap::new();
    for name in wanted() {
        if let Some(setting) = offender(&facts.files.sysctl, wish, name) {
            let lines = by_file.entry(&setting.file).or_default();
            lines.entry(setting.line).or_insert((setting, Vec::new())).1.push(shell_word(name));
        }
    }
    if by_file.is_empty() {
        return Ok(Vec::new());
    }
    let others: Vec<&[u8]> = names().filter(|name| !wish.interfaces.is_match(name)).collect();
    let proposal = proposal(&facts.files.sysctl, wish, &wanted().collect::<Vec<_>>(), &others);
    let after = facts.files.sysctl.with(proposal.clone());
    let udev = facts.files.udev_rule.as_ref().map_or(String::new(), |place| {
        format!(", and again for each interface that appears, by udev ({place}), whoever has set it meanwhile")
    });
    let mut found = Vec::new();
    for (file, lines) in by_file {
        let said = lines.values().map(|(setting, names)| {
            let value = String::from_utf8_lossy(&setting.value);
            format!("{} has {} = {value} for {}", setting.place(), shell_word(&setting.key), shortened(names))
        });
        let evidence = format!(
            "{}; so it is written at boot{udev}. Wanted is {} ({})",
            said.collect::<Vec<_>>().join("; "),
            wish.value.number(),
            wish.value
        );
        let beaten = wanted().all(|name| offender(&after, wish, name).is_none_or(|line| line.file != file));
        let cure = if beaten {
            format!(
                "{} && sysctl -p {RP_FILTER_FILE}  # or have node-fixer keep such a file: rp_filter.persist",
                write_command(&proposal)
            )
        } else {
            let numbers: Vec<_> = lines.keys().map(usize::to_string).collect();
            format!(
                "# no file can overrule line {} of {}: delete it",
                numbers.join(", "),
                shell_word(file.as_os_str().as_bytes())
            )
        };
        let worst = lines.values().max_by_key(|(_, names)| names.len()).map(|(setting, _)| place(setting));
        let proposals = if beaten { vec![proposal.clone()] } else { Vec::new() };
        found.push(Finding::new(evidence, worst, cure).with(proposals));
    }
    Ok(found)
}

/// A file that has the wanted value written to these interfaces, those of the future included where a pattern finds
/// no other interface of today.
fn proposal(settings: &Settings, wish: &RpFilter, names: &[&[u8]], others: &[&[u8]]) -> ConfFile {
    let line = |name: &[u8]| {
        let dotted = name.contains(&b'.');
        let key = if dotted {
            key_of(name)
        } else {
            key_of(name).iter().map(|b| if *b == b'/' { b'.' } else { *b }).collect()
        };
        // Interfaces come and go: who is not there is no failure.
        [b"-", key.as_slice(), format!(" = {}\n", wish.value.number()).as_bytes()].concat()
    };
    let mut lines: Vec<Vec<u8>> = Vec::new();
    let file = |lines: &[Vec<u8>]| {
        let header = b"# Keeps rp_filter as node-fixer wants it, also for interfaces that appear.\n".to_vec();
        ConfFile { path: RP_FILTER_FILE.into(), text: [header].iter().chain(lines).flatten().copied().collect() }
    };
    for name in names {
        let stem = name.iter().take_while(|byte| byte.is_ascii_lowercase()).count();
        let glob = name.get(..stem).filter(|stem| !stem.is_empty() && stem != name).map(|stem| [stem, b"*"].concat());
        let alone =
            |glob: &Vec<u8>| !others.iter().any(|other| other.starts_with(glob.strip_suffix(b"*").unwrap_or(glob)));
        let general = glob.filter(alone).map(|glob| line(&glob)).unwrap_or_else(|| line(name));
        if !lines.contains(&general) {
            lines.push(general);
        }
    }
    for name in names {
        // A pattern loses against a line that names the interface.
        if offender(&settings.with(file(&lines)), wish, name).is_some() && !lines.contains(&line(name)) {
            lines.push(line(name));
        }
    }
    file(&lines)
}

/// The command that writes a file.
pub fn write_command(file: &ConfFile) -> String {
    let text = String::from_utf8_lossy(&file.text);
    let lines: Vec<_> = text.lines().map(|line| shell_word(line.as_bytes()).into_owned()).collect();
    let path = shell_word(file.path.as_os_str().as_bytes()).into_owned();
    let directory = file.path.parent().map_or("/".into(), |parent| shell_word(parent.as_os_str().as_bytes()));
    format!("mkdir -p {directory} && printf '%s\\n' {} > {path}", lines.join(" "))
}

pub fn rp_filter_all(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let wish = &facts.desired.rp_filter;
    let seen = facts.observed.rp_filters()?;
    if seen.all == 0 {
        return Ok(Vec::new());
    }
    let names = facts.names()?;
    let of_datapath =
        |name: &IfName| [&b"lxc"[..], b"cilium_", b"cali", b"eni"].iter().any(|it| name.as_bytes().starts_with(it));
    let mut overruled = Vec::new();
    for (index, value) in &seen.links {
        let Some(name) = names.get(index) else { continue };
        let wanted = wish.mode != Mode::Off && wish.interfaces.is_match(name.as_bytes());
        let against_the_wish = wanted && seen.all > wish.value.number();
        // Whoever switches it off on the interface of a pod means it; strict is what breaks then, loose seldom.
        let against_the_cni = *value == 0 && seen.all == 1 && of_datapath(name);
        if against_the_wish || against_the_cni {
            overruled.push(format!("{name} ({value})"));
        }
    }
    if overruled.is_empty() {
        return Ok(Vec::new());
    }
    let key = b"net/ipv4/conf/all/rp_filter";
    let line = facts.files.sysctl.winner(key, Occasion::Boot).filter(|line| number(line) == Some(seen.all));
    let by = line.map_or("no file says so".into(), |line| format!("{} says so", line.place()));
    let evidence = format!(
        "net.ipv4.conf.all.rp_filter is {}, and {by}; the kernel takes the greater of it and the interface's own, so it \
         overrules {}",
        seen.all,
        shortened(overruled)
    );
    let mut cure = "sysctl -w net.ipv4.conf.all.rp_filter=0".to_owned();
    if let Some(line) = line {
        cure += &format!("  # and delete line {} of {}", line.line, shell_word(line.file.as_os_str().as_bytes()));
    }
    Ok(vec![Finding::new(evidence, line.map(place), cure)])
}

pub fn ip_forward_off(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let seen = facts.observed.sysctls([SysctlKey::from_path(b"net/ipv4/ip_forward")])?;
    if seen.first().copied().flatten().is_none_or(|value| value.trim() != "0") {
        return Ok(Vec::new());
    }
    let need = match () {
        () if facts.desired.masquerade.iter().any(|it| it.to_masquerade().source.is_ipv4()) => "masquerade is declared",
        () if !facts.desired.bridges.is_empty() => "bridges are declared",
        () if facts.pods()?.are_of_vpc_cni() => "pods have their rules here",
        () => return Ok(Vec::new()),
    };
    let off = |key: &[u8]| facts.files.sysctl.winner(key, Occasion::Boot).filter(|line| number(line) == Some(0));
    let line = off(b"net/ipv4/ip_forward").or_else(|| off(b"net/ipv4/conf/all/forwarding"));
    let by = line.map_or("no file of sysctl.d says so".into(), |line| format!("{} says so", line.place()));
    let evidence = format!("net.ipv4.ip_forward is 0, and {by}; but {need}, and nothing of theirs is forwarded");
    let text = "# What goes through this node is forwarded.\nnet.ipv4.ip_forward = 1\n";
    let proposal = ConfFile { path: IP_FORWARD_FILE.into(), text: text.into() };
    let mut cure = format!("sysctl -w net.ipv4.ip_forward=1 && {}", write_command(&proposal));
    let still = facts.files.sysctl.with(proposal.clone());
    let beaten = |key: &[u8]| still.winner(key, Occasion::Boot).is_none_or(|line| number(line) != Some(0));
    if let Some(line) = line
        && !(beaten(b"net/ipv4/ip_forward") && beaten(b"net/ipv4/conf/all/forwarding"))
    {
        cure += &format!("  # and delete line {} of {}", line.line, shell_word(line.file.as_os_str().as_bytes()));
    }
    Ok(vec![Finding::new(evidence, line.map(place), cure).with(vec![proposal])])
}
