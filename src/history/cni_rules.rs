//! The saved rules of the VPC CNI: which table each pod was sent to, and its other rules. Plain data, in a separate
//! file, because a node may have thousands of pods: it is read only when the rules have changed, and has one line for
//! each pod.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::{FromStr, SplitAsciiWhitespace};

use cidr::IpCidr;
use serde::{Deserialize, Serialize};

use crate::model::Family;
use crate::sorted;

/// The rules of the VPC CNI, as last seen.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CniMemory {
    /// Each pod that had a rule, ordered by address.
    pub pods: Vec<KnownPod>,
    /// The other rules.
    pub others: Vec<KnownRule>,
}

/// A pod. Its rule 512 follows from its route, and is not saved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownPod {
    /// Its address.
    pub address: IpAddr,
    /// The link that led to it.
    pub link: KnownLink,
    /// The rules for packets that it sends. A pod of the first uplink has none.
    pub rules: Vec<FromPod>,
}

/// The identity of a link: another one with the same name, or with the same index, does not match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownLink {
    /// Index.
    pub index: u32,
    /// Name. A name that is not UTF-8 is not saved.
    pub name: String,
}

/// A rule for packets from a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FromPod {
    /// Its priority.
    pub priority: u32,
    /// The table that it leads to.
    pub table: u32,
    /// The destinations that it is limited to (the old form of the VPC CNI).
    pub to: Option<IpCidr>,
}

/// A rule for an uplink's own address, for packets from a link, for a prefix, or for everything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownRule {
    /// Address family.
    pub family: Family,
    /// Its priority, which shows what it selects by.
    pub priority: u32,
    /// The table that it leads to.
    pub table: u32,
    /// The uplink's address.
    pub from: Option<IpAddr>,
    /// The prefix.
    pub to: Option<IpCidr>,
    /// The link that has the address, or from which packets come.
    pub link: Option<KnownLink>,
}

/// Stands for nothing.
const NONE: &str = "-";

/// A line `pod ADDRESS INDEX LINK`, with `PRIORITY TABLE TO` for each rule.
impl fmt::Display for KnownPod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let KnownPod { address, link, rules } = self;
        write!(f, "pod {address} {} {}", link.index, link.name)?;
        for FromPod { priority, table, to } in rules {
            write!(f, " {priority} {table} {}", OrNone(to))?;
        }
        f.write_str("\n")
    }
}

/// One line for each pod; then one for each other rule, `rule FAMILY PRIORITY TABLE FROM TO INDEX LINK`.
impl fmt::Display for CniMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pods.iter().try_for_each(|pod| pod.fmt(f))?;
        for KnownRule { family, priority, table, from, to, link } in &self.others {
            let family = if *family == Family::V4 { 4 } else { 6 };
            write!(f, "rule {family} {priority} {table} {} {}", OrNone(from), OrNone(to))?;
            match link {
                Some(link) => writeln!(f, " {} {}", link.index, link.name)?,
                None => writeln!(f, " {NONE} {NONE}")?,
            }
        }
        Ok(())
    }
}

/// The same as text. Of thousands of pods, most runs need few.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SavedRules(String);

impl From<&CniMemory> for SavedRules {
    fn from(memory: &CniMemory) -> SavedRules {
        SavedRules(memory.to_string())
    }
}

impl SavedRules {
    /// The text with its pods in their order, as their addresses may have been replaced.
    pub fn in_order(text: &str) -> String {
        let (pods, others): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| SavedPod::new(line).is_some());
        let address = |line: &str| SavedPod::new(line).map(|pod| pod.address);
        let pods = sorted::list(pods, |a, b| address(a).cmp(&address(b)));
        pods.into_iter().chain(others).map(|line| format!("{line}\n")).collect()
    }

    /// Checks the text.
    ///
    /// # Errors
    ///
    /// The first invalid line.
    pub fn new(text: String) -> Result<SavedRules, String> {
        let (mut last, mut has_rules) = (None, false);
        for line in text.lines() {
            let is_valid = match SavedPod::new(line) {
                // Replacing pods relies on their order.
                Some(mut pod) => !has_rules && last.replace(pod.address) < last && pod.rules.all(|rule| rule.is_some()),
                None => rule(line).is_some(),
            };
            has_rules = line.starts_with("rule");
            is_valid.then_some(()).ok_or_else(|| format!("{line:?} is not a valid line here"))?;
        }
        Ok(SavedRules(text))
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.0
    }

    /// All rules.
    pub fn rules(&self) -> CniMemory {
        CniMemory { pods: self.pods().map(|pod| pod.known()).collect(), others: self.others().collect() }
    }

    /// The pods.
    pub fn pods(&self) -> impl Iterator<Item = SavedPod<'_>> {
        self.0.lines().filter_map(SavedPod::new)
    }

    /// The rules that are not for pods.
    pub fn others(&self) -> impl Iterator<Item = KnownRule> {
        self.0.lines().filter_map(rule)
    }

    /// With these pods as they are now, or without them.
    pub fn with(&self, changed: &BTreeMap<IpAddr, Option<KnownPod>>) -> SavedRules {
        let mut text = String::with_capacity(self.0.len() + changed.len() * LINE);
        let mut due = changed.iter().peekable();
        let mut put = |text: &mut String, until: Option<IpAddr>| {
            while let Some((_, pod)) = due.next_if(|(address, _)| until.is_none_or(|until| **address <= until)) {
                pod.iter().for_each(|pod| *text += &pod.to_string());
            }
        };
        for line in self.0.split_inclusive('\n') {
            let address = SavedPod::new(line).map(|pod| pod.address);
            put(&mut text, address);
            if address.is_none_or(|address| !changed.contains_key(&address)) {
                text.push_str(line);
            }
        }
        put(&mut text, None);
        SavedRules(text)
    }
}

/// The usual length of a pod's line.
const LINE: usize = 64;

/// A line about a pod.
#[derive(Debug, Clone)]
pub struct SavedPod<'a> {
    /// Its address.
    pub address: IpAddr,
    /// The index of the link that led to it.
    pub index: u32,
    /// The name of the link.
    name: &'a str,
    /// The rules for packets that it sends.
    pub rules: SavedFrom<'a>,
}

impl<'a> SavedPod<'a> {
    fn new(line: &'a str) -> Option<SavedPod<'a>> {
        let mut words = line.strip_prefix("pod ")?.split_ascii_whitespace();
        let (address, index) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some(SavedPod { address, index, name: words.next()?, rules: SavedFrom(words) })
    }

    /// By itself.
    pub fn known(&self) -> KnownPod {
        let link = KnownLink { index: self.index, name: self.name.to_owned() };
        KnownPod { address: self.address, link, rules: self.rules.clone().flatten().collect() }
    }
}

/// The rules in a pod's line; `None` for one that is not valid.
#[derive(Debug, Clone)]
pub struct SavedFrom<'a>(SplitAsciiWhitespace<'a>);

impl Iterator for SavedFrom<'_> {
    type Item = Option<FromPod>;

    fn next(&mut self) -> Option<Option<FromPod>> {
        let priority = self.0.next()?;
        let mut rule = || {
            let (priority, table) = (priority.parse().ok()?, self.0.next()?.parse().ok()?);
            Some(FromPod { priority, table, to: or_none(self.0.next()?)? })
        };
        Some(rule())
    }
}

fn rule(line: &str) -> Option<KnownRule> {
    let mut words = line.strip_prefix("rule ")?.split_ascii_whitespace();
    let family = match words.next()? {
        "4" => Family::V4,
        "6" => Family::V6,
        _ => return None,
    };
    let (priority, table) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    let (from, to) = (or_none(words.next()?)?, or_none(words.next()?)?);
    let known = KnownRule { family, priority, table, from, to, link: link(&mut words)? };
    words.next().is_none().then_some(known)
}

fn link(words: &mut SplitAsciiWhitespace) -> Option<Option<KnownLink>> {
    let index = or_none(words.next()?)?;
    let name = words.next()?.to_owned();
    Some(index.map(|index| KnownLink { index, name }))
}

fn or_none<T: FromStr>(word: &str) -> Option<Option<T>> {
    if word == NONE { Some(None) } else { word.parse().ok().map(Some) }
}

struct OrNone<'a, T>(&'a Option<T>);

impl<T: fmt::Display> fmt::Display for OrNone<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(it) => it.fmt(f),
            None => f.write_str(NONE),
        }
    }
}

/// What a run knows without reading the saved pods.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CniState {
    /// A hash of the rules with which nothing was to do: while it stays the same, nothing is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<u64>,
    /// Single rules that were missing, and since when: in seconds since boot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<(String, u64)>,
    /// A flush is being repaired: rules that are still missing were flushed as well.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub flushed: bool,
}

impl CniState {
    /// When a rule was first seen missing.
    pub fn missing_since(&self, rule: &str) -> Option<u64> {
        self.missing.iter().find(|(it, _)| it == rule).map(|(_, since)| *since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let text = "pod 10.0.0.51 4 eni182c452fe96\npod 10.0.0.101 5 enib3a9b371b64 1536 2 - 1536 2 10.0.0.0/16\n\
                    pod fd00::7 6 eni6a91d87bb13 1536 10101 -\nrule 4 1024 254 - - - -\nrule 4 1535 254 - 172.31.0.0/16 - -\n\
                    rule 4 32765 2 10.0.0.20 - 3 eth1\nrule 6 10 101 - - 9 vlan.eth.1\n";
        let memory = SavedRules::new(text.into()).unwrap().rules();
        assert_eq!((memory.pods.len(), memory.others.len()), (3, 4));
        assert_eq!(SavedRules::from(&memory).text(), text);
        assert_eq!(SavedRules::new(String::new()).unwrap().rules(), CniMemory::default());
    }

    #[test]
    fn pods_are_replaced_in_their_order() {
        let pod = |address: &str| {
            let link = KnownLink { index: 9, name: "eni9".into() };
            KnownPod { address: address.parse().unwrap(), link, rules: Vec::new() }
        };
        let with = |text: &str, changed: &[(&str, bool)]| {
            let changed = changed.iter().map(|(it, is_here)| (it.parse().unwrap(), is_here.then(|| pod(it))));
            let with = SavedRules::new(text.into()).unwrap().with(&changed.collect());
            SavedRules::new(with.text().into()).unwrap();
            with.text().to_owned()
        };
        let (a, b, c, rule) =
            ("pod 10.0.0.1 1 a\n", "pod 10.0.0.20 2 b\n", "pod fd00::1 3 c\n", "rule 4 1024 254 - - - -\n");
        let text = [a, b, c, rule].concat();
        let nine = |address: &str| format!("pod {address} 9 eni9\n");
        for (changed, expected) in [
            (&[][..], text.clone()),
            (&[("10.0.0.20", true)], [a, &nine("10.0.0.20"), c, rule].concat()),
            (&[("10.0.0.20", false), ("10.0.0.7", false)], [a, c, rule].concat()),
            (&[("10.0.0.3", true), ("10.0.0.4", true)], [a, &nine("10.0.0.3"), &nine("10.0.0.4"), b, c, rule].concat()),
            (&[("10.0.0.0", true), ("fe80::1", true)], [&nine("10.0.0.0"), a, b, c, &nine("fe80::1"), rule].concat()),
        ] {
            assert_eq!(with(&text, changed), expected, "{changed:?}");
        }
        assert_eq!(with("", &[("10.0.0.1", true)]), nine("10.0.0.1"));
    }

    #[test]
    fn an_invalid_line_is_refused() {
        for text in [
            "x",
            "pod",
            "pod 10.0.0.51 4",
            "pod 10.0.0.51 - -",
            "pod 10.0.0.51 4 eni1 1536 2",
            "pod 10.0.0.51 4 eni1 1536 2 x",
            "pod 10.0.0 4 eni1",
            "rule 5 1024 254 - - - -",
            "rule 4 1024 254 - - -",
            "rule 4 1024 254 - - - - x",
            "pod 10.0.0.52 4 a\npod 10.0.0.51 5 b",
            "pod 10.0.0.51 4 a\npod 10.0.0.51 5 b",
        ] {
            SavedRules::new(text.into()).unwrap_err();
        }
    }
}
