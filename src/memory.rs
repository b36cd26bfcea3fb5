//! What a run remembers for the next one, and what it compares with it: plain data.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::net::IfName;
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
    /// Of the section `routes`: whether there may be routes with the mark of what is declared. To find them takes a
    /// walk through every table, however large; to know that there are none spares it. `None`: not known.
    pub routes: Option<bool>,
    /// Of the section `kube_proxy`.
    pub kube_proxy: Knowledge,
}

/// What one section has to remember anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// Of `routes`.
    Routes(bool),
    /// Of `kube_proxy`.
    KubeProxy(Knowledge),
}

impl Memory {
    /// Takes a note.
    pub fn take(&mut self, note: Note) {
        match note {
            Note::Routes(some) => self.routes = Some(some),
            Note::KubeProxy(knowledge) => self.kube_proxy = knowledge,
        }
    }
}

/// What kube-proxy knows, as far as we know, and how far we are with telling it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Knowledge {
    /// The pattern by which the uplinks were told: under another one they are others.
    pub interfaces: Option<String>,
    /// The uplinks that kube-proxy knows; `None` before the first look.
    pub uplinks: Option<Vec<Uplink>>,
    /// A change that kube-proxy does not know of yet.
    pub pending: Option<Pending>,
    /// A restart that was begun.
    pub restart: Option<Restart>,
    /// When the last restart was begun, on the clock that counts from boot.
    pub restarted: Option<Duration>,
    /// How often in a row a restart has failed.
    pub failures: u32,
    /// Not before this time is it tried again, on the clock that counts from boot.
    pub retry: Option<Duration>,
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
