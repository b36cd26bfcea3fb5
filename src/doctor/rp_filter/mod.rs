//! Causes in rp_filter and in the files that set it.

mod proposal;
mod wished;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::Finding;
use super::cure::write_command;
use super::facts::{Facts, shortened};
use super::ini::Location;
use crate::config::Mode;
use crate::model::{IfName, shell_word};
use crate::observed::Gap;
use crate::sysctl_d::{Occasion, Setting, Settings};
use proposal::Proposal;
use wished::{DEFAULT, Wished};

/// A line, and the interfaces that it sets.
type Decided<'a> = (&'a Setting, Vec<Cow<'a, str>>);

/// What a file sets to another value.
#[derive(Default)]
struct Against<'a> {
    lines: BTreeMap<usize, Decided<'a>>,
    /// The configured values.
    values: Vec<String>,
}

impl<'a> Against<'a> {
    /// The files that set these interfaces to other values than configured.
    fn by_file(settings: &'a Settings, wished: &Wished, names: &[&'a [u8]]) -> BTreeMap<&'a Path, Against<'a>> {
        let mut by_file: BTreeMap<&Path, Against> = BTreeMap::new();
        for name in names {
            let Some(setting) = wished.offender(settings, name) else { continue };
            let against = by_file.entry(&setting.file).or_default();
            let value = wished.value(name);
            let value = format!("{} ({value})", value.number());
            if !against.values.contains(&value) {
                against.values.push(value);
            }
            against.lines.entry(setting.line).or_insert((setting, Vec::new())).1.push(shell_word(name));
        }
        by_file
    }

    fn said(&self) -> String {
        let said = self.lines.values().map(|(setting, names)| {
            let value = String::from_utf8_lossy(&setting.value);
            format!("{} sets {} = {value} for {}", setting.place(), shell_word(&setting.key), shortened(names))
        });
        said.collect::<Vec<_>>().join("; ")
    }

    fn numbers(&self) -> String {
        self.lines.keys().map(usize::to_string).collect::<Vec<_>>().join(", ")
    }
}

pub fn rp_filter_sysctl(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    if facts.desired.rp_filter.mode == Mode::Off {
        return Ok(Vec::new());
    }
    let (wished, settings) = (Wished::of(facts)?, &facts.files.sysctl);
    let names: Vec<&[u8]> = [DEFAULT].into_iter().chain(wished.links.values().map(|name| name.as_bytes())).collect();
    let live = facts.observed.rp_filters()?.default;
    let is_left = |name: &[u8]| wished.is_left_off(settings, name, live);
    let wanted: Vec<&[u8]> = names.iter().copied().filter(|name| wished.selects(name) && !is_left(name)).collect();
    let of_ufw = facts.files.ufw.iter().flat_map(|settings| Against::by_file(settings, &wished, &wanted));
    let mut found: Vec<Finding> = of_ufw.map(|(file, against)| of_ufws(file, against)).collect();
    let by_file = Against::by_file(settings, &wished, &wanted);
    if by_file.is_empty() {
        return Ok(found);
    }
    let proposal = Proposal::of(settings, &wished, &names, &wanted);
    let udev = facts.files.udev_rule.as_ref().map_or(String::new(), |place| {
        format!(", and by udev ({place}) to each new interface, overwriting any other value")
    });
    found.extend(by_file.into_iter().map(|(file, against)| finding(file, &against, &udev, &proposal)));
    Ok(found)
}

fn finding(file: &Path, against: &Against, udev: &str, proposal: &Proposal) -> Finding {
    let said = against.said();
    let evidence = format!("{said}; it is applied at boot{udev}. Expected: {}", against.values.join(" or "));
    let worst = against.lines.values().max_by_key(|(_, names)| names.len()).map(|(setting, _)| Location::of(setting));
    if proposal.undaunted.contains(file) {
        let cure = format!(
            "# delete line {} of {}: a file that sorts after it would not override it for every interface",
            against.numbers(),
            shell_word(file.as_os_str().as_bytes())
        );
        return Finding::new(evidence, worst, cure);
    }
    let path = shell_word(proposal.file.path.as_os_str().as_bytes());
    let or_ours = if proposal.ours_wins { "  # or let node-fixer maintain such a file: rp_filter.persist" } else { "" };
    let cure = format!("{} && sysctl -p {path}{or_ours}", write_command(&proposal.file));
    Finding::new(evidence, worst, cure).with(vec![proposal.file.clone()])
}

/// Lines of ufw, which it writes whenever it starts.
fn of_ufws(file: &Path, mut against: Against) -> Finding {
    against.values.sort_unstable();
    let (said, values) = (against.said(), against.values.join(" or "));
    let evidence = format!("{said}; ufw writes it whenever it starts or reloads. Expected: {values}");
    let cure =
        format!("# in {}, change line {} to {values}", shell_word(file.as_os_str().as_bytes()), against.numbers());
    let first = against.lines.values().next().map(|(setting, _)| Location::of(setting));
    Finding::new(evidence, first, cure)
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
        // If a file turns it off for a pod's interface, that is intended. Strict breaks pods; loose rarely does.
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
        settings.winner(key, Occasion::Boot).filter(|line| line.number() == Some(seen.all)).cloned()
    };
    let ufw = facts.files.ufw.as_ref().and_then(of);
    let line = ufw.or_else(|| of(&facts.files.sysctl));
    let line = line.as_ref();
    let by = line.map_or("no file sets it".into(), |line| format!("{} sets it", line.place()));
    let evidence = format!(
        "net.ipv4.conf.all.rp_filter is {} ({by}); the kernel uses the greater of it and the interface's own value, \
         so it overrides {}",
        seen.all,
        shortened(overruled)
    );
    let mut cure = "sysctl -w net.ipv4.conf.all.rp_filter=0".to_owned();
    if let Some(line) = line {
        cure += &format!("  # and delete line {} of {}", line.line, shell_word(line.file.as_os_str().as_bytes()));
    }
    Ok(vec![Finding::new(evidence, line.map(Location::of), cure)])
}
