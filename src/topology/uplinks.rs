//! Which links lead out of the node, by what they do and not by what they are called.
//!
//! An uplink has a global address of this node, and the main table's default or a policy table's default or gateway
//! leaves by it, or it carries the source of a rule for one of this node's own addresses. It is never a pod's link, a
//! VRF's member or the loopback; and what lies behind a bridge, tunnel or dummy by which no default leaves is local.

use std::collections::BTreeSet;

use super::cni::is_pod_link;
use super::{LOOPBACK, Topology, is_kernels, sends, sends_by_link};
use crate::net::{Family, Rule};
use crate::observed::{Gap, Link, SeenRoute};

/// The families of a node.
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The links by which packets leave the node.
#[derive(Debug, Default)]
pub struct Exits {
    /// Those of default routes.
    pub defaults: BTreeSet<u32>,
    /// Those of host routes in policy tables, as to a gateway.
    pub gateways: BTreeSet<u32>,
}

impl Topology<'_> {
    /// The indexes of all uplinks.
    ///
    /// # Errors
    ///
    /// What has to be looked at first.
    pub fn uplinks(&self) -> Result<BTreeSet<u32>, Gap> {
        let global: BTreeSet<u32> =
            self.observed.addresses()?.iter().filter(|it| it.global).map(|it| it.index).collect();
        let Exits { defaults, gateways } = self.exits()?;
        let mut candidates = self.rule_carriers()?;
        candidates.extend(defaults.iter().chain(&gateways));
        candidates.retain(|index| global.contains(index) && *index != LOOPBACK);
        let links = self.observed.links(candidates.iter().copied())?;
        let is_uplink = |link: &&Link| match &*link.kind {
            b"vrf" => false,
            b"" | b"veth" | b"vlan" | b"bond" | b"team" | b"macvlan" | b"ipvlan" | b"ppp" => true,
            // Of a bridge, a tunnel, a dummy or what else is made by software: only where a default leaves by it.
            _ => defaults.contains(&link.dev.index),
        };
        let links = links.into_iter().flatten().filter(is_uplink);
        Ok(links
            .filter(|link| !link.vrf_slave && !is_pod_link(&link.dev.name, false))
            .map(|link| link.dev.index)
            .collect())
    }

    /// The links by which the defaults of the main table, and the defaults and gateways of policy tables, leave. Not all
    /// of them are uplinks: a branch link of the VPC CNI has no address, for one.
    ///
    /// # Errors
    ///
    /// What has to be looked at first.
    pub fn exits(&self) -> Result<Exits, Gap> {
        let tables = self.policy_tables()?;
        self.ask_for_tables(tables.iter().copied())?;
        let mut exits = Exits::default();
        for family in self.families()? {
            let hops = self.main_defaults(family)?;
            exits.defaults.extend(hops.iter().flat_map(SeenRoute::hops).filter_map(|hop| hop.oif));
        }
        for (family, table) in tables {
            for route in self.table(family, table)?.iter() {
                let hops = route.hops().iter().filter_map(|hop| hop.oif);
                match () {
                    () if route.is_of_default_class() => exits.defaults.extend(hops),
                    () if route.is_host_on_link() => exits.gateways.extend(hops),
                    () => {}
                }
            }
        }
        Ok(exits)
    }

    /// The tables that rules lead sources, or what comes in by a branch link, to.
    pub fn policy_tables(&self) -> Result<BTreeSet<(Family, u32)>, Gap> {
        let by_source = |rule: &Rule| {
            let selector = &rule.selector;
            selector.from.is_some() && selector.fwmark.is_none() && selector.iif.is_none() && selector.oif.is_none()
        };
        let leads = |rule: &&Rule| !is_kernels(rule.table) && (by_source(rule) || sends_by_link(rule).is_some());
        // One rule a pod, and few tables: no set of all of them first.
        let mut tables = BTreeSet::new();
        let mut last = None;
        for rule in self.rules()?.filter(leads) {
            let table = (rule.family, rule.table);
            if last.replace(table) != Some(table) {
                tables.insert(table);
            }
        }
        Ok(tables)
    }

    /// The links that carry the source of a rule for one of this node's own addresses.
    fn rule_carriers(&self) -> Result<BTreeSet<u32>, Gap> {
        let mut carriers = BTreeSet::new();
        let addresses = self.observed.addresses()?;
        let mut own: Vec<_> = addresses.iter().map(|it| (it.local, it.index)).collect();
        own.sort_unstable();
        for (source, table) in self.rules()?.filter_map(sends) {
            let first = own.partition_point(|(address, _)| *address < source);
            let carrying = own.iter().skip(first).take_while(|(address, _)| *address == source);
            carriers.extend(carrying.filter(|_| !is_kernels(table)).map(|(_, index)| *index));
        }
        Ok(carriers)
    }

    /// The families of which this node has a global address.
    fn families(&self) -> Result<impl Iterator<Item = Family>, Gap> {
        let addresses = self.observed.addresses()?;
        let has = |family: &Family| addresses.iter().any(|it| it.global && Family::of(it.local) == *family);
        Ok(FAMILIES.into_iter().filter(move |family| has(family)))
    }
}
