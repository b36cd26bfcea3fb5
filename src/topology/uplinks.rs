//! Which links lead out of the node, by their role and not by their names.
//!
//! An uplink has a global address of this node, and is used by the main table's default or a policy table's default or
//! gateway, or has the source of a rule for one of this node's own addresses. It is never a pod's link, a VRF's member
//! or the loopback. A bridge, tunnel or dummy is only an uplink if a default uses it.

use std::collections::BTreeSet;

use super::cni::is_branch_link;
use super::{LOOPBACK, Topology, is_kernels, sends, sends_by_link, source_alone};
use crate::model::{Family, PROTO_MENDED, Rule, TABLE_MAIN};
use crate::observed::{Gap, Link, SeenRoute};

/// The families of a node.
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// The links by which packets leave the node.
#[derive(Debug, Default)]
pub struct Exits {
    /// Those of default routes.
    pub defaults: BTreeSet<u32>,
    /// Those of IPv4 default routes.
    pub ipv4_defaults: BTreeSet<u32>,
    /// Those of host routes in policy tables, such as to a gateway, except routes that node-fixer added, which prove
    /// nothing.
    pub gateways: BTreeSet<u32>,
}

impl Exits {
    fn add(&mut self, family: Family, route: &SeenRoute) {
        // A route that node-fixer added to repair a table proves nothing.
        if route.protocol == PROTO_MENDED {
            return;
        }
        let hops = route.hops().iter().filter_map(|hop| hop.oif);
        if route.is_of_default_class() {
            if family == Family::V4 {
                self.ipv4_defaults.extend(hops.clone());
            }
            self.defaults.extend(hops);
        } else if route.table != TABLE_MAIN && route.is_host_on_link() {
            self.gateways.extend(hops);
        }
    }
}

impl Topology<'_> {
    /// The indexes of all uplinks.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn uplinks(&self) -> Result<BTreeSet<u32>, Gap> {
        let global = self.with_global_address()?;
        let Exits { defaults, gateways, .. } = self.exits()?;
        let mut candidates = self.rule_carriers()?;
        candidates.extend(defaults.iter().chain(&gateways));
        candidates.retain(|index| global.contains(index));
        // A bridge, a tunnel, a dummy or another virtual link only counts if a default uses it.
        let is_uplink = |link: &&Link| is_card(link) || defaults.contains(&link.dev.index);
        let links = self.possible_uplinks(candidates)?;
        Ok(links.into_iter().filter(is_uplink).map(|link| link.dev.index).collect())
    }

    /// Of these links, those whose kind allows them to be uplinks: not the loopback, VRFs and their members, nor links
    /// of pods.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn possible_uplinks(&self, links: impl IntoIterator<Item = u32>) -> Result<Vec<&Link>, Gap> {
        let links = self.observed.links(links.into_iter().filter(|index| *index != LOOPBACK))?;
        let is_possible = |link: &&Link| link.vrf.is_none() && *link.kind != *b"vrf";
        let links: Vec<&Link> = links.into_iter().flatten().filter(is_possible).collect();
        let of_pods = self.pod_links(links.iter().map(|link| &link.dev))?;
        Ok(links.into_iter().filter(|link| !of_pods.contains(&link.dev.index)).collect())
    }

    /// Of the links that default routes use, those that an operator expects to be managed: all possible uplinks except
    /// the VPC CNI's branch links, which have no address by design.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn expected(&self, exits: impl IntoIterator<Item = u32>) -> Result<Vec<&Link>, Gap> {
        let links = self.possible_uplinks(exits)?;
        Ok(links.into_iter().filter(|link| !is_branch_link(&link.dev.name)).collect())
    }

    /// The links that have a global address of this node.
    pub fn with_global_address(&self) -> Result<BTreeSet<u32>, Gap> {
        Ok(self.observed.global_addresses()?.map(|it| it.index).collect())
    }

    /// Of these links, those that are cards and not pods': their subnets are outside the node, even if no table uses
    /// them yet.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn outward(&self, links: impl IntoIterator<Item = u32>) -> Result<BTreeSet<u32>, Gap> {
        let links = self.possible_uplinks(links)?;
        Ok(links.into_iter().filter(|link| is_card(link)).map(|link| link.dev.index).collect())
    }

    /// The links that the defaults of the main table, and the defaults and gateways of policy tables, use. Not all of
    /// them are uplinks: a branch link of the VPC CNI, for example, has no address.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn exits(&self) -> Result<Exits, Gap> {
        let mut exits = Exits::default();
        // First what can be requested without reading all rules.
        for (family, routes) in self.all_main_defaults()? {
            routes.iter().for_each(|route| exits.add(family, route));
        }
        let tables = self.policy_tables()?;
        self.ask_for_tables(tables.iter().copied())?;
        for (family, table) in tables {
            self.table(family, table)?.iter().for_each(|route| exits.add(family, route));
        }
        Ok(exits)
    }

    /// The main table's defaults of each family of which this node has a global address, requested together.
    fn all_main_defaults(&self) -> Result<Vec<(Family, Vec<SeenRoute>)>, Gap> {
        let (mut seen, mut unseen) = (Vec::new(), Vec::new());
        for family in self.families()? {
            match self.main_defaults(family) {
                Ok(routes) => seen.push((family, routes)),
                Err(Gap::Unseen(wants)) => unseen.extend(wants),
                Err(failed) => return Err(failed),
            }
        }
        if unseen.is_empty() { Ok(seen) } else { Err(Gap::Unseen(unseen)) }
    }

    /// The tables that rules for sources, or for branch links, use.
    pub fn policy_tables(&self) -> Result<BTreeSet<(Family, u32)>, Gap> {
        let leads =
            |rule: &&Rule| !is_kernels(rule.table) && (source_alone(rule).is_some() || sends_by_link(rule).is_some());
        // There is one rule per pod but few tables, so not all are collected first.
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

    /// The links that have the source of a rule for one of this node's own addresses.
    fn rule_carriers(&self) -> Result<BTreeSet<u32>, Gap> {
        let mut carriers = BTreeSet::new();
        let mut own: Vec<_> = self.observed.global_addresses()?.map(|it| (it.local, it.index)).collect();
        own.sort_unstable();
        for (source, _) in self.rules()?.filter(|rule| !is_kernels(rule.table)).filter_map(sends) {
            let first = own.partition_point(|(address, _)| *address < source);
            let carrying = own.iter().skip(first).take_while(|(address, _)| *address == source);
            carriers.extend(carrying.map(|(_, index)| *index));
        }
        Ok(carriers)
    }

    /// The families of which this node has a global address.
    fn families(&self) -> Result<impl Iterator<Item = Family>, Gap> {
        let addresses = self.observed.global_addresses()?;
        let has = move |family: &Family| addresses.clone().any(|it| Family::of(it.local) == *family);
        Ok(FAMILIES.into_iter().filter(move |family| has(family)))
    }
}

/// Whether a link is a card, or a kind that stands for one and may connect to a network. Any other kind is a bridge, a
/// tunnel or another virtual link.
pub fn is_card(link: &Link) -> bool {
    matches!(&*link.kind, b"" | b"veth" | b"vlan" | b"bond" | b"team" | b"macvlan" | b"ipvlan" | b"ppp")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::testing::Model;

    #[test]
    fn what_node_fixer_added_makes_no_uplink() {
        let node = |proto: u8| {
            format!(
                "link 2 eth0 10.0.0.10/24
                link 3 eth1 10.0.1.10/24
                rule 1536 from 10.0.1.50 table 2
                route default via 10.0.0.1 dev 2
                route 10.0.1.1 dev 3 scope link table 2 proto {proto}
                route default via 10.0.1.1 dev 3 table 2 proto {proto}"
            )
        };
        for (proto, expected) in [(3, [2, 3].into()), (PROTO_MENDED, BTreeSet::from([2]))] {
            let uplinks = Model::new(&node(proto)).see(|seen| Topology::of(seen).uplinks());
            assert_eq!(uplinks, expected, "protocol {proto}");
        }
    }
}
