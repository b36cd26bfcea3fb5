//! Causes in sysctls and their files.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Finding;
use super::cure::{after, beside, write_command};
use super::declared::is_ufws;
use super::facts::{Facts, shortened};
use super::ini::Place;
use super::wished::{DEFAULT, Wished};
use crate::desired::{Mode, RpValue};
use crate::net::{FORWARD, FORWARD_OF_ALL, Family, IfName, PROTO_RA, SysctlKey, TABLE_MAIN, family_of, shell_word};
use crate::observed::{Gap, SeenRoute};
use crate::sorted;
use crate::sysctl_d::{ConfFile, OURS, Occasion, Setting, Settings};

/// Where a cure for rp_filter goes: after the files of distributions.
const RP_FILTER_FILE: &str = "/etc/sysctl.d/90-rp-filter.conf";
/// The switch of IPv6 forwarding: where it is 0, that of no interface counts.
const FORWARD_V6: &str = "net/ipv6/conf/all/forwarding";

fn key_of(name: &[u8]) -> Vec<u8> {
    [&b"net/ipv4/conf/"[..], name, b"/rp_filter"].concat()
}

fn place(setting: &Setting) -> Place {
    Place { file: setting.file.to_path_buf(), line: setting.line }
}

fn number(setting: &Setting) -> Option<i32> {
    str::from_utf8(&setting.value).ok()?.trim().parse().ok()
}

/// The line that sets an interface's rp_filter to what is to be replaced.
fn offender<'a>(settings: &'a Settings, wished: &Wished<'_>, name: &[u8]) -> Option<&'a Setting> {
    [Occasion::Link, Occasion::Boot].into_iter().find_map(|occasion| {
        let winner = settings.winner(&key_of(name), occasion)?;
        number(winner).is_some_and(|value| wished.is_against(name, value)).then_some(winner)
    })
}

/// Whether an interface is left at off, which drops nothing, and a cure must not raise it: a file says so, or it is
/// `default` and no file says anything.
fn is_left_off(settings: &Settings, wished: &Wished<'_>, name: &[u8], live_default: i32) -> bool {
    if wished.value(name) == RpValue::Strict || offender(settings, wished, name).is_some() {
        return false;
    }
    let said = settings.winner(&key_of(name), Occasion::Boot).and_then(number);
    let live = (name == DEFAULT).then_some(live_default);
    said.or(live) == Some(RpValue::Off.number())
}

/// A line, and the interfaces that it decides about.
type Said<'a> = (&'a Setting, Vec<Cow<'a, str>>);

pub fn rp_filter_sysctl(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let wish = &facts.desired.rp_filter;
    if wish.mode == Mode::Off {
        return Ok(Vec::new());
    }
    let wished = Wished::of(facts)?;
    let names: Vec<&[u8]> = [DEFAULT].into_iter().chain(wished.links.values().map(|name| name.as_bytes())).collect();
    let live = facts.observed.rp_filters()?.default;
    let is_left = |name: &[u8]| is_left_off(&facts.files.sysctl, &wished, name, live);
    let wanted: Vec<&[u8]> = names.iter().copied().filter(|name| wished.selects(name) && !is_left(name)).collect();
    let mut by_file: BTreeMap<&Path, BTreeMap<usize, Said>> = BTreeMap::new();
    let mut values: BTreeMap<&Path, Vec<String>> = BTreeMap::new();
    for name in &wanted {
        if let Some(setting) = offender(&facts.files.sysctl, &wished, name) {
            let (value, values) = (wished.value(name), values.entry(&setting.file).or_default());
            let value = format!("{} ({value})", value.number());
            values.extend((!values.contains(&value)).then_some(value));
            let lines = by_file.entry(&setting.file).or_default();
            lines.entry(setting.line).or_insert((setting, Vec::new())).1.push(shell_word(name));
        }
    }
    let mut found = of_ufw(facts, &wished, &wanted);
    if by_file.is_empty() {
        return Ok(found);
    }
    let settings = &facts.files.sysctl;
    let patterns = Patterns::new(&wished, &names, &wanted);
    let patterns: Vec<_> = wanted.iter().map(|name| patterns.of(name)).collect();
    let to_come = patterns.iter().flatten().map(|pattern| pattern.to_come.as_slice());
    let offenders = wanted.iter().copied().chain(to_come.clone()).filter_map(|name| offender(settings, &wished, name));
    let last = offenders.filter_map(|line| line.file.file_name()).map(OsStrExt::as_bytes).max();
    let existing: Vec<&ConfFile> = settings.files().collect();
    let make = |path| proposal(settings, &wished, path, &wanted, &patterns);
    let proposal = beside(&existing, &after(RP_FILTER_FILE, last), &make);
    let cured = settings.with(proposal.clone());
    let udev = facts.files.udev_rule.as_ref().map_or(String::new(), |place| {
        format!(", and again for each interface that appears, by udev ({place}), whoever has set it meanwhile")
    });
    // Node-fixer's own file leaves the last word to an operator's.
    let ours_wins = last.is_none_or(|last| Path::new(OURS).file_name().is_some_and(|ours| last < ours.as_bytes()));
    let or_ours = if ours_wins { "  # or have node-fixer keep such a file: rp_filter.persist" } else { "" };
    // Files that say otherwise in spite of the cure.
    let all = wanted.iter().copied().chain(to_come);
    let undaunted = sorted::set(all.filter_map(|name| offender(&cured, &wished, name)).map(|line| &*line.file));
    for (file, lines) in by_file {
        let said = lines.values().map(|(setting, names)| {
            let value = String::from_utf8_lossy(&setting.value);
            format!("{} has {} = {value} for {}", setting.place(), shell_word(&setting.key), shortened(names))
        });
        let evidence = format!(
            "{}; so it is written at boot{udev}. Wanted is {}",
            said.collect::<Vec<_>>().join("; "),
            values.get(file).map_or(String::new(), |values| values.join(" or "))
        );
        let beaten = !undaunted.contains(file);
        let cure = if beaten {
            let path = shell_word(proposal.path.as_os_str().as_bytes());
            format!("{} && sysctl -p {path}{or_ours}", write_command(&proposal))
        } else {
            let numbers: Vec<_> = lines.keys().map(usize::to_string).collect();
            format!(
                "# delete line {} of {}: a file that comes after it would not overrule it for every interface",
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

/// What ufw writes to rp_filter whenever it starts.
fn of_ufw(facts: &Facts, wished: &Wished<'_>, names: &[&[u8]]) -> Vec<Finding> {
    let Some(settings) = &facts.files.ufw else { return Vec::new() };
    let mut lines: BTreeMap<usize, Said> = BTreeMap::new();
    let mut values = BTreeSet::new();
    for name in names {
        if let Some(setting) = offender(settings, wished, name) {
            lines.entry(setting.line).or_insert((setting, Vec::new())).1.push(shell_word(name));
            let value = wished.value(name);
            values.insert(format!("{} ({value})", value.number()));
        }
    }
    let Some((first, _)) = lines.values().next() else { return Vec::new() };
    let said = lines.values().map(|(setting, names)| {
        let value = String::from_utf8_lossy(&setting.value);
        format!("{} has {} = {value} for {}", setting.place(), shell_word(&setting.key), shortened(names))
    });
    let values = values.into_iter().collect::<Vec<_>>().join(" or ");
    let evidence = format!(
        "{}; ufw writes it whenever it starts or is reloaded. Wanted is {values}",
        said.collect::<Vec<_>>().join("; ")
    );
    let numbers: Vec<_> = lines.keys().map(usize::to_string).collect();
    let file = shell_word(first.file.as_os_str().as_bytes());
    let cure = format!("# in {file}, change line {} to {values}", numbers.join(", "));
    vec![Finding::new(evidence, Some(place(first)), cure)]
}

/// What a line says of an interface and its like, those of the future included.
struct Pattern {
    /// In the place of the name.
    glob: Vec<u8>,
    /// A name that an interface may get and that nobody has.
    to_come: Vec<u8>,
}

/// Finds the patterns for names, of which there may be thousands.
struct Patterns<'a> {
    wished: &'a Wished<'a>,
    names: BTreeSet<&'a [u8]>,
    /// How names begin of which not the same is wanted.
    mixed: BTreeSet<&'a [u8]>,
}

impl<'a> Patterns<'a> {
    fn new(wished: &'a Wished<'a>, names: &[&'a [u8]], wanted: &[&[u8]]) -> Patterns<'a> {
        let (names, selected) = (sorted::set(names.iter().copied()), sorted::set(wanted.iter().copied()));
        let (mut wanted, mut mixed) = (BTreeMap::new(), BTreeSet::new());
        for name in &names {
            let entry = wished.entry(name).filter(|_| selected.contains(name));
            for stem in (0..=name.len()).filter_map(|length| name.get(..length)) {
                if *wanted.entry(stem).or_insert(entry) != entry {
                    mixed.insert(stem);
                }
            }
        }
        Patterns { wished, names, mixed }
    }

    /// The pattern for a name; none where it would find an interface of which something else is wanted.
    fn of(&self, name: &[u8]) -> Option<Pattern> {
        let stem = name.get(..name.iter().take_while(|byte| byte.is_ascii_lowercase()).count())?;
        // `all` is written in no case.
        if stem.is_empty() || stem == name || b"all".starts_with(stem) || self.mixed.contains(stem) {
            return None;
        }
        let (_, start) = name.split_last()?;
        let mut free =
            [start, name].into_iter().flat_map(|start| (b'0'..=b'9').map(move |digit| [start, &[digit]].concat()));
        let wanted = self.wished.entry(name);
        let to_come = free.find(|new| self.wished.entry(new) == wanted && !self.names.contains(new.as_slice()))?;
        Some(Pattern { glob: [stem, b"*"].concat(), to_come })
    }
}

/// A file that has the wanted value written to these interfaces.
fn proposal(
    settings: &Settings,
    wished: &Wished<'_>,
    path: PathBuf,
    names: &[&[u8]],
    patterns: &[Option<Pattern>],
) -> ConfFile {
    let line = |glob: &[u8], name: &[u8]| {
        let dotted = glob.contains(&b'.');
        let key = if dotted {
            key_of(glob)
        } else {
            key_of(glob).iter().map(|b| if *b == b'/' { b'.' } else { *b }).collect()
        };
        // Interfaces come and go: who is not there is no failure.
        [b"-", key.as_slice(), format!(" = {}\n", wished.value(name).number()).as_bytes()].concat()
    };
    // A name that would be read as a pattern, or as a key and its value, cannot be written.
    let is_plain = |name: &[u8]| !name.iter().any(|byte| b"*?[=".contains(byte));
    let general = names.iter().zip(patterns).filter_map(|(name, pattern)| match pattern {
        Some(pattern) => Some(line(&pattern.glob, name)),
        None => is_plain(name).then(|| line(name, name)),
    });
    let mut said = BTreeSet::new();
    let mut lines: Vec<Vec<u8>> = general.filter(|line| said.insert(line.clone())).collect();
    let file = |lines: &[Vec<u8>]| {
        let header = b"# Keeps rp_filter as node-fixer wants it, also for interfaces that appear.\n".to_vec();
        ConfFile { path: path.clone(), text: [header].iter().chain(lines).flatten().copied().collect() }
    };
    // A pattern loses against a line that names the interface.
    let so_far = settings.with(file(&lines));
    let loses = |name: &&[u8]| is_plain(name) && offender(&so_far, wished, name).is_some();
    let named = names.iter().copied().filter(loses).map(|name| line(name, name));
    lines.extend(named.filter(|line| said.insert(line.clone())));
    file(&lines)
}

pub fn rp_filter_all(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let wish = &facts.desired.rp_filter;
    let seen = facts.observed.rp_filters()?;
    if seen.all == 0 {
        return Ok(Vec::new());
    }
    let wished = Wished::of(facts)?;
    let of_datapath =
        |name: &IfName| [&b"lxc"[..], b"cilium_", b"cali", b"eni"].iter().any(|it| name.as_bytes().starts_with(it));
    let mut overruled = Vec::new();
    for (index, value) in &seen.links {
        let Some(name) = wished.links.get(index) else { continue };
        let wanted = wished.entry(name.as_bytes()).filter(|_| wish.mode != Mode::Off);
        let against_the_wish = wanted.is_some_and(|entry| seen.all > entry.value.number());
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
    let of = |settings: &'_ Settings| {
        settings.winner(key, Occasion::Boot).filter(|line| number(line) == Some(seen.all)).cloned()
    };
    let ufw = facts.files.ufw.as_ref().and_then(of);
    let line = ufw.or_else(|| of(&facts.files.sysctl));
    let line = line.as_ref();
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
    let v4 = forwarding_off(facts, Family::V4)?;
    Ok(v4.into_iter().chain(forwarding_off(facts, Family::V6)?).collect())
}

fn forwarding_off(facts: &Facts, family: Family) -> Result<Option<Finding>, Gap> {
    // The switch, its other name, the file of a cure.
    let (switch, alias, file) = match family {
        Family::V4 => (FORWARD, FORWARD_OF_ALL, "/etc/sysctl.d/90-ip-forward.conf"),
        Family::V6 => (FORWARD_V6, FORWARD_V6, "/etc/sysctl.d/90-ipv6-forward.conf"),
    };
    let key = SysctlKey::from_path(switch.as_bytes());
    let seen = facts.observed.sysctls([key.clone()])?;
    if seen.first().copied().flatten().is_none_or(|value| value.trim() != "0") {
        return Ok(None);
    }
    let pods = facts.topology().vpc_pod_rules()?;
    let mut pods = pods.to.keys().chain(pods.from.keys());
    let need = match () {
        () if facts.desired.masquerade.iter().any(|it| family_of(&it.to_masquerade().source) == family) => {
            "masquerade is declared"
        }
        () if has_bridge_to_others(facts, family)? => "bridges are declared",
        () if pods.any(|pod| Family::of(*pod) == family) => "pods have their rules here",
        () => return Ok(None),
    };
    let mut wanted: Vec<(SysctlKey, &str)> = Vec::new();
    if family == Family::V6 {
        wanted.extend(by_advertisement(facts)?.into_iter().map(|key| (key, "2")));
    }
    wanted.push((key.clone(), "1"));
    // The switch is written by both of its names, and what is written last stays.
    let winner = |settings: &Settings| {
        let winners = [switch, alias].into_iter().filter_map(|key| settings.winner(key.as_bytes(), Occasion::Boot));
        let last = winners.max_by(|a, b| (a.file.file_name(), a.line).cmp(&(b.file.file_name(), b.line)));
        last.filter(|line| number(line) == Some(0)).cloned()
    };
    let ufw = facts.files.ufw.as_ref().and_then(&winner);
    let line = ufw.or_else(|| winner(&facts.files.sysctl));
    let by = line.as_ref().map_or("no file of sysctl.d says so".into(), |line| format!("{} says so", line.place()));
    let evidence = format!("{key} is 0, and {by}; but {need}, and nothing of theirs is forwarded");
    let last = line.as_ref().and_then(|line| line.file.file_name()).map(OsStrExt::as_bytes);
    let line_of = |(key, value): &(SysctlKey, &str)| [key.path().as_slice(), b" = ", value.as_bytes(), b"\n"].concat();
    let said: Vec<u8> = wanted.iter().flat_map(line_of).collect();
    let existing: Vec<&ConfFile> = facts.files.sysctl.files().collect();
    let text = [&b"# What goes through this node is forwarded.\n"[..], &said].concat();
    let proposal = beside(&existing, &after(file, last), &|path| ConfFile { path, text: text.clone() });
    let now: String = wanted.iter().map(|(key, value)| key.command(value) + " && ").collect();
    let mut cure = now + &write_command(&proposal);
    let left = line.clone().filter(|line| is_ufws(facts, line));
    if let Some(line) = left.or_else(|| winner(&facts.files.sysctl.with(proposal.clone()))) {
        cure += &format!("  # and delete line {} of {}", line.line, shell_word(line.file.as_os_str().as_bytes()));
    }
    Ok(Some(Finding::new(evidence, line.as_ref().map(place), cure).with(vec![proposal])))
}

/// Whether a bridge is declared behind which this node is the router: one in whose subnets no gateway of a default lies,
/// as it does where the bridge holds the uplink.
fn has_bridge_to_others(facts: &Facts, family: Family) -> Result<bool, Gap> {
    let defaults = facts.topology().main_defaults(family)?;
    let gateways: Vec<_> = defaults.iter().flat_map(SeenRoute::hops).filter_map(|hop| hop.via).collect();
    Ok(facts.desired.bridges.iter().any(|bridge| {
        let subnets: Vec<_> = bridge.addresses.iter().map(|it| it.0.network()).collect();
        let mut subnets = subnets.into_iter().filter(|it| family_of(it) == family).peekable();
        subnets.peek().is_some() && !subnets.any(|subnet| gateways.iter().any(|gateway| subnet.contains(gateway)))
    }))
}

/// The accept_ra of the interfaces whose default route is from router advertisements: at 1 the kernel drops it when it
/// begins to forward.
fn by_advertisement(facts: &Facts) -> Result<Vec<SysctlKey>, Gap> {
    let names = facts.names()?;
    let defaults = facts.table(Family::V6, TABLE_MAIN)?.iter().filter(|route| route.to.network_length() == 0);
    let advertised = defaults.filter(|route| route.protocol == PROTO_RA).flat_map(SeenRoute::hops);
    let uplinks = sorted::set(advertised.filter_map(|hop| names.get(&hop.oif?)));
    let key = |name: &&&IfName| SysctlKey::from_path(&[b"net/ipv6/conf/", name.as_bytes(), b"/accept_ra"].concat());
    let keys: Vec<SysctlKey> = uplinks.iter().map(key).collect();
    let values = facts.observed.sysctls(keys.iter().cloned())?;
    Ok(keys.into_iter().zip(values).filter(|(_, value)| *value == Some("1")).map(|(key, _)| key).collect())
}
