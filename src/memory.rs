//! What a run remembers for the next one, and what it compares with it: plain data.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cidr::IpInet;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use crate::contention::{Mends, Row};
use crate::net::IfName;
use crate::netns::Idle;
use crate::pod::PodId;

/// An interface whose coming and going kube-proxy has to notice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uplink {
    /// Name, as far as it is UTF-8.
    pub name: String,
    /// Index.
    pub index: u32,
    /// Hardware address, in hexadecimal.
    pub hardware: String,
    /// Global addresses with their prefix lengths, sorted. Link-local, tentative and temporary ones do not count.
    pub addresses: Vec<String>,
}

/// What is remembered between runs, until the next boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Whether there may be objects of a kind that node-fixer has made. To know that there are none spares a look
    /// for those that are no longer declared (for routes a walk through every table, however large).
    #[serde(default)]
    pub made: BTreeMap<Kind, bool>,
    /// Of the section `kube_proxy`.
    pub kube_proxy: Knowledge,
    /// Of the section `namespaces`.
    #[serde(default)]
    pub namespaces: Idle,
    /// What was mended lately.
    #[serde(default)]
    pub mends: Mends,
    /// What was reported, and is still so.
    #[serde(default, skip_serializing_if = "Reported::is_empty")]
    pub reported: Reported,
}

/// The notices of each section: what is still so is not reported again.
pub type Reported = BTreeMap<String, Vec<String>>;

/// A kind of object that node-fixer makes when it is declared, and takes away when it no longer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Routes with our mark, in any table.
    Routes,
    /// Bridges with our mark.
    Bridges,
    /// Addresses of any interface.
    Addresses,
    /// Our nftables table.
    Masquerade,
    /// Values of sysctls, and the file in /etc/sysctl.d.
    Sysctls,
}

/// What one section has to remember anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// Whether there may be some of a kind.
    Made(Kind, bool),
    /// All addresses that the ledger is to tell of.
    Addresses(Vec<AddedAddress>),
    /// All sysctls that the ledger is to tell of.
    Sysctls(Vec<SetSysctl>),
    /// Of `kube_proxy`.
    KubeProxy(Knowledge),
    /// Of `namespaces`.
    Namespaces(Idle),
    /// Of what was mended.
    Mends(Mends),
    /// Of what was reported.
    Reported(Reported),
}

impl Memory {
    /// Takes a note.
    pub fn take(&mut self, note: Note) {
        match note {
            Note::Made(kind, some) => drop(self.made.insert(kind, some)),
            Note::Addresses(_) | Note::Sysctls(_) => {} // of the ledger
            Note::KubeProxy(knowledge) => self.kube_proxy = knowledge,
            Note::Namespaces(idle) => self.namespaces = idle,
            Note::Mends(mends) => self.mends = mends,
            Note::Reported(reported) => self.reported = reported,
        }
    }
}

/// What node-fixer has made that carries no mark of its own, so that nothing else tells whose it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ledger {
    /// Addresses that were added since the boot. Where the kernel keeps the mark of an address (Linux 5.18), the mark
    /// counts and not this.
    #[serde(default)]
    pub addresses: Vec<AddedAddress>,
    /// Sysctls that were set.
    #[serde(default)]
    pub sysctls: Vec<SetSysctl>,
}

impl Ledger {
    /// What counts of it after a boot, which took everything along that was not made to last.
    pub fn after_a_boot(mut self) -> Ledger {
        self.sysctls.retain(|it| it.persist);
        Ledger { addresses: Vec::new(), ..self }
    }

    /// The addresses that this tells of and the other does not.
    pub fn addresses_without(self, other: &Ledger) -> Vec<AddedAddress> {
        let known: BTreeSet<_> = other.addresses.iter().map(|it| (&*it.dev, it.address)).collect();
        self.addresses.into_iter().filter(|it| !known.contains(&(&*it.dev, it.address))).collect()
    }

    /// Tells of these addresses as well.
    pub fn add_addresses(&mut self, more: Vec<AddedAddress>) {
        let more = Ledger { addresses: more, sysctls: Vec::new() }.addresses_without(self);
        self.addresses.extend(more);
    }

    /// Takes a note.
    pub fn take(&mut self, note: Note) {
        match note {
            Note::Addresses(addresses) => self.addresses = addresses,
            Note::Sysctls(sysctls) => self.sysctls = sysctls,
            // Of the memory.
            Note::Made(..) | Note::KubeProxy(_) | Note::Namespaces(_) | Note::Mends(_) | Note::Reported(_) => {}
        }
    }
}

/// A sysctl that node-fixer has set, or was about to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetSysctl {
    /// Path below /proc/sys.
    #[serde(deserialize_with = "declarable")]
    pub key: String,
    /// What was there before.
    pub before: String,
    /// What it was set to.
    pub value: String,
    /// What it was set to earlier: it still is, where `value` was never written or was refused.
    #[serde(default)]
    pub earlier: Option<String>,
    /// Whether it was also written to /etc/sysctl.d, so that it is ours after a boot as well.
    #[serde(default)]
    pub persist: bool,
}

/// A key that a configuration may declare. No other was ever noted, and none is written for being in the file.
fn declarable<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let key = String::deserialize(deserializer)?;
    let segments: Vec<&str> = key.split('/').collect();
    match segments.as_slice() {
        ["net", "ipv4", "conf", _, "rp_filter"] => {}
        ["net", rest @ ..] if !rest.is_empty() && !rest.iter().any(|it| matches!(*it, "" | "." | "..")) => {
            return Ok(key);
        }
        _ => {}
    }
    Err(D::Error::custom(format_args!("{key:?} is no sysctl that can be declared")))
}

/// An address that node-fixer has added, or was about to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddedAddress {
    /// Name of the interface.
    pub dev: String,
    /// Address and prefix length.
    pub address: IpInet,
    /// When it was about to be added, on the clock that counts from boot without sleep, as addresses have it. One that
    /// is not of that time is another's.
    pub added: Duration,
}

/// What kube-proxy knows, as far as we know, and how far we are with telling it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Knowledge {
    /// The configured interfaces, a pattern or `auto`, by which the uplinks were known: under others they differ.
    pub interfaces: Option<String>,
    /// The uplinks that kube-proxy knows; `None` before the first look.
    pub uplinks: Option<Vec<Uplink>>,
    /// A change that kube-proxy does not know of yet.
    pub pending: Option<Pending>,
    /// A restart that was begun.
    pub restart: Option<Restart>,
    /// When the last restart was begun, on the clock that counts from boot.
    pub restarted: Option<Duration>,
    /// How many restarts in a row came as soon as they were allowed, or nearly.
    #[serde(default)]
    pub row: u32,
    /// Hardware addresses that restarts of this row were for: bounded.
    #[serde(default)]
    pub hardware: Vec<String>,
    /// How often in a row a restart has failed.
    pub failures: u32,
    /// Not before this time is it tried again, on the clock that counts from boot.
    pub retry: Option<Duration>,
    /// The question that no pod answered to, though pods of its namespace were there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unanswered: Option<String>,
}

impl Knowledge {
    /// The restarts in a row.
    pub fn row(&self) -> Row {
        Row { length: self.row, last: self.restarted }
    }
}

/// A change of the uplinks, as first seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pending {
    /// When, by the wall clock, since 1970: what the creation of a pod is compared with.
    pub since: Duration,
    /// What was seen.
    pub uplinks: Vec<Uplink>,
}

/// A restart that was begun and is not known to have ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restart {
    /// The sandbox that has to go.
    pub id: PodId,
    /// What kube-proxy knows once another one runs.
    pub uplinks: Vec<Uplink>,
}

/// What is recalled at the start of a look, with the time of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recall {
    /// What the last run remembered; the default if there is nothing that counts.
    pub memory: Memory,
    /// The wall clock, since 1970.
    pub wall: Duration,
    /// The clock that counts from boot, also through sleep.
    pub boot: Duration,
    /// The clock that counts from boot, without sleep.
    pub awake: Duration,
    /// When this run began, on the clock that counts from boot: what was seen since was not seen by an earlier run.
    pub begun: Duration,
}

#[cfg(test)]
#[test]
fn what_was_not_made_to_last_is_no_more_after_a_boot() {
    let set =
        |persist| SetSysctl { key: "net/x/y".into(), before: "0".into(), value: "1".into(), earlier: None, persist };
    let ledger = Ledger { addresses: Vec::new(), sysctls: vec![set(false), set(true)] };
    assert_eq!(ledger.after_a_boot().sysctls, [set(true)]);
}

/// `+eth1, -eth2, eth0 (address)`: what is different, by name.
pub fn difference(before: &[Uplink], now: &[Uplink]) -> String {
    let named = |links: &[Uplink], name: &str| links.iter().find(|link| link.name == name).cloned();
    let shown = |name: &str| IfName::new(name.as_bytes()).map_or("?".into(), |name| name.to_string());
    let gone = before.iter().filter(|link| named(now, &link.name).is_none());
    let mut parts: Vec<String> = gone.map(|link| format!("-{}", shown(&link.name))).collect();
    for link in now {
        match named(before, &link.name) {
            None => parts.push(format!("+{}", shown(&link.name))),
            Some(old) if old != *link => {
                let what = [
                    (old.index != link.index, "index"),
                    (old.hardware != link.hardware, "hardware address"),
                    (old.addresses != link.addresses, "addresses"),
                ];
                let what: Vec<_> = what.iter().filter(|(differs, _)| *differs).map(|(_, what)| *what).collect();
                parts.push(format!("{} ({})", shown(&link.name), what.join(", ")));
            }
            Some(_) => {}
        }
    }
    parts.join(", ")
}
