//! What the checks look at: files that were read, and what was seen of the kernel. Plain data, and the views of it
//! that several checks share. What the node is, its uplinks, pods and owners of tables, is for [`Topology`] to say.

use std::collections::{BTreeMap, BTreeSet};

use super::ini::Place;
use crate::desired::Desired;
pub use crate::net::shortened;
use crate::net::{Family, IfName, Rule, SysctlKey, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN};
use crate::observed::{Gap, Look, Observed, RouteSet, SeenRoute, SeenRule};
use crate::sorted;
use crate::sysctl_d::{ConfFile, Settings};
use crate::topology::Topology;

/// Everything that the checks may know.
#[derive(Debug)]
pub struct Facts<'a> {
    /// What is wanted.
    pub desired: &'a Desired,
    /// What was seen by netlink so far.
    pub observed: Observed,
    /// Files.
    pub files: Files,
    /// The counter IPReversePathFilter, twice; nothing where nobody watched.
    pub martians: Look<Martians>,
}

/// Packets that rp_filter dropped since boot, at two times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Martians {
    /// At first.
    pub before: u64,
    /// A while later.
    pub after: u64,
    /// How much later, in milliseconds.
    pub millis: u128,
}

/// Files below the root.
#[derive(Debug, Default)]
pub struct Files {
    /// All of sysctl.d.
    pub sysctl: Settings,
    /// The file of sysctls that ufw applies whenever it starts, where ufw is enabled.
    pub ufw: Option<Settings>,
    /// The line by which udev has systemd-sysctl run for each new interface.
    pub udev_rule: Option<Place>,
    /// systemd-networkd has run since boot.
    pub networkd: bool,
    /// networkd.conf, then its drop-ins, in their order.
    pub networkd_conf: Vec<ConfFile>,
    /// What systemd-networkd says of each interface, by index.
    pub networkd_links: BTreeMap<u32, ConfFile>,
    /// What NetworkManager says of each interface, by index.
    pub networkmanager_links: BTreeMap<u32, ConfFile>,
    /// Where network managers have addresses and rules from: .network files with their drop-ins, netplan,
    /// network-scripts.
    pub networks: Vec<ConfFile>,
    /// .link files in their order, each with its drop-ins after it.
    pub links: Vec<Vec<ConfFile>>,
    /// Units that set up policy routes of their own.
    pub units: Vec<ConfFile>,
    /// /etc/machine-id, of which udev makes hardware addresses.
    pub machine_id: Option<[u8; 16]>,
    /// Files of NetworkManager and cloud-init under names that cures take.
    pub of_cures: Vec<ConfFile>,
    /// There is a cloud-init.
    pub cloud_init: bool,
    /// Drop-ins of node-fixer's own configuration, in the usual place.
    pub drop_ins: Vec<ConfFile>,
}

impl Facts<'_> {
    /// What the node is.
    pub fn topology(&self) -> Topology<'_> {
        Topology::of(&self.observed)
    }

    /// The rules that can be reasoned about.
    pub fn rules(&self) -> Result<Vec<&Rule>, Gap> {
        Ok(self.observed.rules()?.iter().filter_map(SeenRule::lookup).collect())
    }

    /// A table's routes.
    pub fn table(&self, family: Family, table: u32) -> Result<&[SeenRoute], Gap> {
        let seen = self.observed.routes([RouteSet::Table(family, table)])?;
        Ok(seen.first().copied().unwrap_or_default())
    }

    /// All tables of these, asked for at once.
    pub fn tables(&self, tables: &BTreeSet<(Family, u32)>) -> Result<BTreeMap<(Family, u32), &[SeenRoute]>, Gap> {
        let sets = tables.iter().map(|(family, table)| RouteSet::Table(*family, *table));
        Ok(sorted::map(tables.iter().copied().zip(self.observed.routes(sets)?)))
    }

    /// The main table and all that rules lead to.
    pub fn named_tables(&self) -> Result<BTreeMap<(Family, u32), &[SeenRoute]>, Gap> {
        let named = self.rules()?.into_iter().map(|rule| (rule.family, rule.table));
        let named = named.filter(|(_, table)| !matches!(*table, TABLE_LOCAL | TABLE_DEFAULT));
        self.tables(&sorted::set(named.chain([(Family::V4, TABLE_MAIN), (Family::V6, TABLE_MAIN)])))
    }

    /// The names of all interfaces, by index.
    pub fn names(&self) -> Result<BTreeMap<u32, &IfName>, Gap> {
        self.topology().names()
    }

    /// The name of one interface as text; its number where it has gone.
    pub fn name_of(&self, index: u32) -> Result<String, Gap> {
        self.topology().name_of(index)
    }

    /// The names of these interfaces as text.
    pub fn names_of(&self, indexes: impl IntoIterator<Item = u32>) -> Result<String, Gap> {
        self.topology().names_of(indexes)
    }

    /// The value of a sysctl as a number; `None` where there is none.
    pub fn sysctl(&self, key: SysctlKey) -> Result<Option<i64>, Gap> {
        let seen = self.observed.sysctls([key])?;
        Ok(seen.first().copied().flatten().and_then(|value| value.trim().parse().ok()))
    }
}
