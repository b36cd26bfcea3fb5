//! The input of the checks: files, and what was seen of the kernel. Plain data, with the views of it that several
//! checks share. [`Topology`] decides what the node is: its uplinks, pods and owners of tables.

use std::collections::{BTreeMap, BTreeSet};

use super::ini::Location;
use crate::config::Config;
pub use crate::model::shortened;
use crate::model::{Family, IfName, Rule, SysctlKey, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN};
use crate::observed::{Gap, Observed, RouteSet, SeenRoute, SeenRule};
use crate::sorted;
use crate::sysctl_d::{ConfFile, Settings};
use crate::tape::Taped;
use crate::topology::Topology;

/// Everything that the checks can use.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The configuration.
    pub desired: &'a Config,
    /// What was seen through netlink so far.
    pub observed: &'a Observed,
    /// Files.
    pub files: &'a Files,
}

/// The counter of packets dropped by rp_filter since boot (IPReversePathFilter), at two times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Martians {
    /// The first value.
    pub before: u64,
    /// The second value.
    pub after: u64,
    /// The time in between, in milliseconds.
    pub millis: u128,
}

impl Taped for Martians {
    fn to_tape(&self) -> Vec<String> {
        vec![self.before.to_string(), self.after.to_string(), self.millis.to_string()]
    }

    fn of_tape(answer: &[String]) -> Option<Martians> {
        let [before, after, millis] = answer else { return None };
        Some(Martians { before: before.parse().ok()?, after: after.parse().ok()?, millis: millis.parse().ok()? })
    }
}

/// Files below the root.
#[derive(Debug, Default)]
pub struct Files {
    /// All of sysctl.d.
    pub sysctl: Settings,
    /// The sysctl file that ufw applies whenever it starts, if ufw is enabled.
    pub ufw: Option<Settings>,
    /// The line with which udev runs systemd-sysctl for each new interface.
    pub udev_rule: Option<Location>,
    /// systemd-networkd has run since boot.
    pub networkd: bool,
    /// networkd.conf, then its drop-ins, in order.
    pub networkd_conf: Vec<ConfFile>,
    /// systemd-networkd's state of each interface, by index.
    pub networkd_links: BTreeMap<u32, ConfFile>,
    /// NetworkManager's state of each interface, by index.
    pub networkmanager_links: BTreeMap<u32, ConfFile>,
    /// The files in which network managers configure addresses and rules: .network files with their drop-ins, netplan,
    /// network-scripts.
    pub networks: Vec<ConfFile>,
    /// .link files in order, each followed by its drop-ins.
    pub links: Vec<Vec<ConfFile>>,
    /// Units of programs that set up policy routes.
    pub units: Vec<ConfFile>,
    /// /etc/machine-id, from which udev derives hardware addresses.
    pub machine_id: Option<[u8; 16]>,
    /// Existing files of NetworkManager and cloud-init with names that cures use.
    pub of_cures: Vec<ConfFile>,
    /// cloud-init is installed.
    pub cloud_init: bool,
    /// Drop-ins of node-fixer's own configuration, in the default directory.
    pub drop_ins: Vec<ConfFile>,
}

impl Facts<'_> {
    /// What the node is.
    pub fn topology(&self) -> Topology<'_> {
        Topology::of(self.observed)
    }

    /// The rules that node-fixer can evaluate.
    pub fn rules(&self) -> Result<Vec<&Rule>, Gap> {
        Ok(self.observed.rules()?.iter().filter_map(SeenRule::lookup).collect())
    }

    /// A table's routes.
    pub fn table(&self, family: Family, table: u32) -> Result<&[SeenRoute], Gap> {
        let seen = self.observed.routes([RouteSet::Table(family, table)])?;
        Ok(seen.first().copied().unwrap_or_default())
    }

    /// Several tables, requested together.
    pub fn tables(&self, tables: &BTreeSet<(Family, u32)>) -> Result<BTreeMap<(Family, u32), &[SeenRoute]>, Gap> {
        let sets = tables.iter().map(|(family, table)| RouteSet::Table(*family, *table));
        Ok(sorted::map(tables.iter().copied().zip(self.observed.routes(sets)?)))
    }

    /// The main table and all tables of rules.
    pub fn named_tables(&self) -> Result<BTreeMap<(Family, u32), &[SeenRoute]>, Gap> {
        let named = self.rules()?.into_iter().map(|rule| (rule.family, rule.table));
        let named = named.filter(|(_, table)| !matches!(*table, TABLE_LOCAL | TABLE_DEFAULT));
        self.tables(&sorted::set(named.chain([(Family::V4, TABLE_MAIN), (Family::V6, TABLE_MAIN)])))
    }

    /// The names of all interfaces, by index.
    pub fn names(&self) -> Result<BTreeMap<u32, &IfName>, Gap> {
        self.topology().names()
    }

    /// The name of an interface as text; its number if it is gone.
    pub fn name_of(&self, index: u32) -> Result<String, Gap> {
        self.topology().name_of(index)
    }

    /// The names of these interfaces as text.
    pub fn names_of(&self, indexes: impl IntoIterator<Item = u32>) -> Result<String, Gap> {
        self.topology().names_of(indexes)
    }

    /// The value of a sysctl as a number; `None` if there is none.
    pub fn sysctl(&self, key: SysctlKey) -> Result<Option<i64>, Gap> {
        let seen = self.observed.sysctls([key])?;
        Ok(seen.first().copied().flatten().and_then(|value| value.trim().parse().ok()))
    }
}
