//! The state that a run saves for the next one: plain data.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use cidr::IpInet;
use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

use crate::history::cni_rules::{CniState, SavedRules};
use crate::history::contention::{RepairHistory, Row};
use crate::model::IfName;
use crate::model::netns::Idle;
use crate::model::pod::PodId;

/// An interface whose appearance or removal kube-proxy must notice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uplink {
    /// Name. Bytes that are not UTF-8 are replaced.
    pub name: String,
    /// Index.
    pub index: u32,
    /// Hardware address, in hexadecimal.
    pub hardware: String,
    /// Global addresses with their prefix lengths, sorted. Link-local, tentative and temporary ones do not count.
    pub addresses: Vec<String>,
}

/// State that lasts until the next boot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Whether objects of a kind that node-fixer created may exist. Knowing that there are none saves a look for those
    /// no longer declared, which for routes is a walk through every table.
    #[serde(default)]
    pub made: BTreeMap<Kind, bool>,
    /// Of the section `kube_proxy`.
    pub kube_proxy: Knowledge,
    /// Of the section `namespaces`.
    #[serde(default)]
    pub namespaces: Idle,
    /// Of the section `uplinks`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mtus: Vec<SetMtu>,
    /// Of the section `routes`: its IPv6 routes with several next hops. Other programs can add next hops to them, and
    /// only this shows which are node-fixer's.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub several: BTreeSet<SeveralHops>,
    /// Of the section `bridges`: the ports that were added to bridges.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub ports: BTreeSet<Port>,
    /// Of the section `pod_rules`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cni: CniState,
    /// Recent repairs.
    #[serde(default, rename = "mends")]
    pub repairs: RepairHistory,
    /// Notices that were reported and still apply.
    #[serde(default, skip_serializing_if = "Reported::is_empty")]
    pub reported: Reported,
    /// The last run that failed, or the first successful one after it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended: Option<EndedRun>,
}

fn is_default(state: &CniState) -> bool {
    *state == CniState::default()
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndedRun {
    /// When, in wall-clock time since 1970, in seconds.
    pub time: u64,
    /// Its exit code.
    pub exit: u8,
}

/// The notices of each section. One that still applies is not reported again.
pub type Reported = BTreeMap<String, Vec<String>>;

/// A number for what was reported, by which the next run recognizes the same. Never 0.
pub fn digest(reported: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    reported.hash(&mut hasher);
    hasher.finish().max(1)
}

/// A kind of object that node-fixer creates when it is declared, and removes when it no longer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Routes with node-fixer's protocol, in any table.
    Routes,
    /// Bridges with node-fixer's alias.
    Bridges,
    /// Addresses of any interface.
    Addresses,
    /// node-fixer's nftables table.
    Masquerade,
    /// Values of sysctls, and the file in /etc/sysctl.d.
    Sysctls,
}

/// New state of one section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// Whether objects of a kind may exist.
    Made(Kind, bool),
    /// All MTUs that were set.
    Mtus(Vec<SetMtu>),
    /// All IPv6 routes with several next hops that are declared and exist, or will exist.
    Several(BTreeSet<SeveralHops>),
    /// All ports that were added to bridges, or are about to be added.
    Ports(BTreeSet<Port>),
    /// Of `kube_proxy`.
    KubeProxy(Knowledge),
    /// A restart has failed.
    RestartFailed {
        /// Of `kube_proxy`, without the time of the next try.
        knowledge: Knowledge,
        /// How long to wait before the next try, from now on.
        backoff: Duration,
    },
    /// Of `namespaces`.
    Namespaces(Idle),
    /// Of `pod_rules`: what is known at once.
    CniState(CniState),
    /// Of `pod_rules`, in a file of its own.
    CniMemory(SavedRules),
    /// Recent repairs.
    Repairs(RepairHistory),
    /// Notices that were reported.
    Reported(Reported),
    /// The end of a run.
    UnitEnd(EndedRun),
    /// Part of the ledger, not of the memory.
    Ledger(LedgerNote),
}

/// A change of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LedgerNote {
    /// All addresses.
    Addresses(Vec<AddedAddress>),
    /// All sysctls.
    Sysctls(Vec<SetSysctl>),
    /// This address was noted as about to be added, but belongs to another program.
    NotAdded(IfName, IpInet),
    /// This address is about to be added again, now.
    AddedAgain(AddedAddress),
}

impl Memory {
    /// Takes a note. `now` is on the clock since boot.
    pub fn take(&mut self, note: Note, now: Duration) {
        match note {
            Note::Made(kind, some) => drop(self.made.insert(kind, some)),
            Note::Mtus(mtus) => self.mtus = mtus,
            Note::Several(routes) => self.several = routes,
            Note::Ports(ports) => self.ports = ports,
            Note::KubeProxy(knowledge) => self.kube_proxy = knowledge,
            Note::RestartFailed { knowledge, backoff } => {
                self.kube_proxy = Knowledge { retry: Some(now.saturating_add(backoff)), ..knowledge };
            }
            Note::Namespaces(idle) => self.namespaces = idle,
            Note::CniState(state) => self.cni = state,
            Note::Repairs(repairs) => self.repairs = repairs,
            Note::Reported(reported) => self.reported = reported,
            Note::UnitEnd(run) => self.ended = Some(run),
            Note::CniMemory(_) | Note::Ledger(_) => {}
        }
    }
}

/// Changes that carry no mark of their own, so that only this file identifies them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ledger {
    /// Addresses added since boot. If the kernel stores an address's protocol (Linux 5.18), that counts instead.
    #[serde(default)]
    pub addresses: Vec<AddedAddress>,
    /// Sysctls that were set.
    #[serde(default)]
    pub sysctls: Vec<SetSysctl>,
}

impl Ledger {
    /// What still holds after a boot, which removed everything that was not persistent.
    pub fn after_a_boot(mut self) -> Ledger {
        self.sysctls.retain(|it| it.persist);
        Ledger { addresses: Vec::new(), ..self }
    }

    /// Takes a note. `now` is on the clock since boot that stops during sleep.
    pub fn take(&mut self, note: LedgerNote, now: Duration) {
        match note {
            LedgerNote::Addresses(addresses) => self.addresses = addresses,
            LedgerNote::Sysctls(sysctls) => self.sysctls = sysctls,
            LedgerNote::NotAdded(dev, address) => {
                self.addresses.retain(|it| (it.dev.as_bytes(), it.address) != (dev.as_bytes(), address));
            }
            LedgerNote::AddedAgain(entry) => {
                self.addresses.retain(|it| (&it.dev, it.address) != (&entry.dev, entry.address));
                self.addresses.push(AddedAddress { added: now, ..entry });
            }
        }
    }
}

/// A sysctl that node-fixer has set, or was about to set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetSysctl {
    /// Path below /proc/sys.
    #[serde(deserialize_with = "declarable")]
    pub key: String,
    /// The value before.
    pub before: String,
    /// The value it was set to.
    pub value: String,
    /// An earlier value that it was set to. It is still live if `value` was never written or was refused.
    #[serde(default)]
    pub earlier: Option<String>,
    /// Whether it was also written to /etc/sysctl.d, so that it outlasts a boot.
    #[serde(default)]
    pub persist: bool,
}

/// An IPv6 route with several next hops that node-fixer has added, or was about to add.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeveralHops {
    /// Its table, destination and metric.
    pub place: String,
    /// Where it leads.
    pub route: String,
}

/// A port that node-fixer has added to a bridge, or was about to add.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Port {
    /// Index of the interface. An index is never reused while the node is up.
    pub index: u32,
    /// Name of the bridge.
    pub bridge: String,
}

/// An MTU that node-fixer has set, or was about to set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetMtu {
    /// Index of the interface. An index is never reused while the node is up.
    pub index: u32,
    /// The MTU before.
    pub before: u32,
    /// The MTU it was set to.
    pub value: u32,
    /// An earlier MTU that it was set to. It is still live if `value` was never written or was refused.
    #[serde(default)]
    pub earlier: Option<u32>,
}

impl SetMtu {
    /// Whether a live value was set by node-fixer.
    pub fn is_ours(&self, live: u32) -> bool {
        live == self.value || Some(live) == self.earlier
    }
}

/// Accepts only keys that a configuration may declare. Others were never noted, and must not be written because a file
/// contains them.
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
    Err(D::Error::custom(format_args!("{key:?} is not a sysctl that can be declared")))
}

/// An address that node-fixer has added, or was about to add.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddedAddress {
    /// Name of the interface.
    pub dev: String,
    /// Address and prefix length.
    pub address: IpInet,
    /// When it was about to be added, on the clock since boot that stops during sleep, which the kernel uses for
    /// addresses. An address with a different time belongs to another program.
    pub added: Duration,
}

/// What kube-proxy knows, and the progress of restarting it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Knowledge {
    /// The interfaces as configured, a pattern or `auto`, when the uplinks were found. With another setting the uplinks
    /// differ.
    pub interfaces: Option<String>,
    /// The uplinks that kube-proxy knows; `None` before the first look.
    pub uplinks: Option<Vec<Uplink>>,
    /// A change that kube-proxy does not know about yet.
    pub pending: Option<Pending>,
    /// A restart in progress.
    pub restart: Option<Restart>,
    /// When the last restart began, on the clock since boot.
    pub restarted: Option<Duration>,
    /// How many restarts in a row came as soon as they were allowed, or nearly.
    #[serde(default)]
    pub row: u32,
    /// Hardware addresses that the restarts of this row were for. Bounded.
    #[serde(default)]
    pub hardware: Vec<String>,
    /// How many restarts in a row have failed.
    pub failures: u32,
    /// Not tried again before this time, on the clock since boot.
    pub retry: Option<Duration>,
    /// The query that no pod matched, although pods of its namespace existed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unanswered: Option<String>,
}

impl Knowledge {
    /// The restarts in a row.
    pub fn row(&self) -> Row {
        Row { length: self.row, last: self.restarted }
    }
}

/// A change of the uplinks when it was first seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pending {
    /// In wall-clock time since 1970. The creation times of pods are compared with it.
    pub since: Duration,
    /// The uplinks seen.
    pub uplinks: Vec<Uplink>,
}

/// A restart that was begun and may not have ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Restart {
    /// The sandbox to remove.
    pub id: PodId,
    /// What kube-proxy will know once a new one runs.
    pub uplinks: Vec<Uplink>,
}

/// Whether a run may wait: for uplinks to settle, or for the next try after a failure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Patience {
    /// It may.
    #[default]
    Wait,
    /// A person or a monitor waits for the answer.
    AnswerNow,
    /// A run of the watcher that makes repairs. It never waits, and leaves restarts to separate runs.
    Watched,
    /// Such a separate run. The waiting time is over.
    Due,
}

/// The saved state at the start of a look, and the time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recall {
    /// Of the caller.
    pub patience: Patience,
    /// The state that the last run saved; the default if there is none.
    pub memory: Memory,
    /// The wall clock, since 1970.
    pub wall: Duration,
    /// The clock since boot, including sleep.
    pub boot: Duration,
    /// The clock since boot, without sleep.
    pub awake: Duration,
    /// When this run began, on the clock since boot. What was seen later was not seen by an earlier run.
    pub begun: Duration,
}

#[cfg(test)]
#[test]
fn what_was_not_made_to_last_is_no_more_after_a_boot() {
    let set =
        |persist| SetSysctl { key: "net/x/y".into(), before: "0".into(), value: "1".into(), earlier: None, persist };
    let ledger = Ledger { sysctls: vec![set(false), set(true)], ..Ledger::default() };
    assert_eq!(ledger.after_a_boot().sysctls, [set(true)]);
}

/// `+eth1, -eth2, eth0 (address)`: the differences, by name.
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
