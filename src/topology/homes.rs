//! The uplinks that a source of this node belongs to, and how that is known: a network that checks sources accepts its
//! packets only there.
//!
//! An address of this node belongs to the link that has it, whatever a table says. A pod belongs to the uplink of its
//! own rule's table; if that table is empty, to the link of another source of the table; otherwise to the uplinks in
//! whose subnet it is, which proves little.

use std::collections::BTreeSet;
use std::net::IpAddr;

use cidr::IpCidr;

use super::cni::{is_pod_link, may_be_pod_link};
use super::pods::Site;
use super::{LOOPBACK, Topology, is_card, is_kernels, links_of, sends, sends_by_link};
use crate::model::{Family, PROTO_MENDED, Rule, TABLE_MAIN};
use crate::observed::{Gap, SeenRoute};

/// How it is known where a source belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// The links have the address itself.
    Address,
    /// The table of its own rule uses them.
    Table(u32),
    /// Another source of that table is an address there.
    SourceOfTable(u32),
    /// It is in a subnet there.
    Subnet,
}

/// The uplinks that a source belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    /// Their indexes; never empty.
    pub links: BTreeSet<u32>,
    /// How that is known.
    pub evidence: Evidence,
    /// Whether that is certain. A subnet alone proves nothing, and without its own rule a plain server replies through
    /// the main table's link.
    pub proven: bool,
}

impl Topology<'_> {
    /// The uplinks that a source of this node belongs to when it sends to a destination; `None` if unknown, or if the
    /// source is not of this node.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn home(&self, source: IpAddr, destination: IpAddr) -> Result<Option<Home>, Gap> {
        let own_rules: Vec<&Rule> = self
            .rules()?
            .filter(|rule| sends(rule).is_some_and(|(of, table)| of == source && !is_kernels(table)))
            .collect();
        let applies = |rule: &&&Rule| rule.selector.to.as_ref().is_none_or(|to| to.contains(&destination));
        let has_rule = own_rules.iter().any(|rule| applies(&rule));
        let mut tables = Vec::new();
        for table in own_rules.iter().map(|rule| rule.table) {
            if !tables.contains(&table) {
                tables.push(table);
            }
        }
        if let Some(links) = self.home_of_own(source)? {
            let evidence =
                self.agreeing(Family::of(source), &tables, &links)?.map_or(Evidence::Address, Evidence::Table);
            let proven = has_rule && !links.is_disjoint(&self.uplinks()?);
            return Ok(Some(Home { links, evidence, proven }));
        }
        let site = self.pod(source)?;
        let branch = site.filter(|site| site.table != TABLE_MAIN).map(|site| site.table);
        if branch.is_none() && !own_rules.is_empty() && !has_rule {
            return Ok(None); // the source has rules for other destinations: here it leaves another way, and is translated
        }
        tables.extend(branch.filter(|table| !tables.contains(table)));
        if let Some(home) = self.home_by_table(source, &tables, site)? {
            return Ok(Some(home));
        }
        if !tables.is_empty() || site.is_none() {
            return Ok(None);
        }
        let uplinks = self.uplinks()?;
        let links: BTreeSet<u32> = self.connected(source)?.intersection(&uplinks).copied().collect();
        let proven = links.is_subset(&self.links_with_sources(Family::of(source))?);
        Ok((!links.is_empty()).then_some(Home { links, evidence: Evidence::Subnet, proven }))
    }

    /// The links that an address of this node belongs to: the uplinks that have it, otherwise other links. On the
    /// loopback or a dummy, or only on a bridge, it is a service address and belongs nowhere.
    fn home_of_own(&self, address: IpAddr) -> Result<Option<BTreeSet<u32>>, Gap> {
        let carriers = self.carriers(address)?;
        if carriers.is_empty() {
            return Ok(None);
        }
        let mut links: BTreeSet<u32> = carriers.intersection(&self.uplinks()?).copied().collect();
        if links.is_empty() {
            for seen in self.observed().addresses()?.iter().filter(|seen| seen.local == address) {
                let link = self.link(seen.index)?;
                let (is_card, is_dummy) = link.map_or((false, true), |link| (is_card(link), &*link.kind == b"dummy"));
                if seen.index != LOOPBACK && !is_dummy && (is_card || !seen.subnet.is_host_address()) {
                    links.insert(seen.index);
                }
            }
        }
        Ok((!links.is_empty()).then_some(links))
    }

    /// The first of the tables, if all non-empty ones use only these links.
    fn agreeing(&self, family: Family, tables: &[u32], links: &BTreeSet<u32>) -> Result<Option<u32>, Gap> {
        let mut first = None;
        for &table in tables {
            let led = self.led_to(family, table)?;
            if !led.is_subset(links) {
                return Ok(None);
            }
            first = first.or((!led.is_empty()).then_some(table));
        }
        Ok(first)
    }

    fn home_by_table(&self, source: IpAddr, tables: &[u32], site: Option<Site>) -> Result<Option<Home>, Gap> {
        let family = Family::of(source);
        let proven = |links: BTreeSet<u32>, evidence| Some(Home { links, evidence, proven: true });
        for &table in tables {
            let mut links = self.led_to(family, table)?;
            links.retain(|link| site.is_none_or(|site| site.link != *link));
            let carriers = self.carriers_of_sources(family, table)?;
            if !links.is_empty() && !carriers.is_empty() && links.is_disjoint(&carriers) {
                // The table sends its own address through another's link: the table is wrong.
                return Ok(proven(carriers, Evidence::SourceOfTable(table)));
            }
            if links.len() > 1 {
                // A table that uses several links does not show which one is right.
                let around = self.connected(source)?;
                for (evidence, known) in [(Evidence::SourceOfTable(table), carriers), (Evidence::Subnet, around)] {
                    let right: BTreeSet<u32> = links.intersection(&known).copied().collect();
                    if !right.is_empty() {
                        return Ok(proven(right, evidence));
                    }
                }
            }
            if !links.is_empty() {
                return Ok(proven(links, Evidence::Table(table)));
            }
        }
        for &table in tables {
            let carriers = self.carriers_of_sources(family, table)?;
            if !carriers.is_empty() {
                return Ok(proven(carriers, Evidence::SourceOfTable(table)));
            }
        }
        Ok(None)
    }

    /// The links that a policy table uses: those of its defaults, otherwise those of its gateways, otherwise the
    /// uplinks of its other routes. Routes that node-fixer added only count if there are no others.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn led_to(&self, family: Family, table: u32) -> Result<BTreeSet<u32>, Gap> {
        let routes = self.table(family, table)?;
        for of_others in [true, false] {
            let counts = |route: &&SeenRoute| (route.protocol != PROTO_MENDED) == of_others;
            let links =
                |kind: fn(&SeenRoute) -> bool| links_of(routes.iter().filter(counts).filter(|route| kind(route)));
            let defaults = links(SeenRoute::is_of_default_class);
            if !defaults.is_empty() {
                return Ok(defaults);
            }
            let mut gateways = BTreeSet::new();
            for link in links(SeenRoute::is_host_on_link) {
                if !self.name(link)?.is_some_and(is_pod_link) {
                    gateways.insert(link);
                }
            }
            if !gateways.is_empty() {
                return Ok(gateways);
            }
            let uplinks = self.uplinks()?;
            let hops = routes.iter().filter(counts).flat_map(SeenRoute::hops);
            let others = hops.filter_map(|hop| Some((hop.oif?, hop.via.is_some())));
            let others = others.filter(|(link, by_gateway)| *by_gateway || uplinks.contains(link));
            let others: BTreeSet<u32> = others.map(|(link, _)| link).collect();
            if !others.is_empty() {
                return Ok(others);
            }
        }
        Ok(BTreeSet::new())
    }

    /// The uplinks that have the source of a rule that sends all of its packets to the table.
    fn carriers_of_sources(&self, family: Family, table: u32) -> Result<BTreeSet<u32>, Gap> {
        let mut carriers = BTreeSet::new();
        for rule in self.rules()?.filter(|rule| rule.family == family && rule.selector.to.is_none()) {
            if let Some((source, _)) = sends(rule).filter(|(_, of)| *of == table) {
                carriers.extend(self.carriers(source)?);
            }
        }
        let uplinks = self.uplinks()?;
        carriers.retain(|link| uplinks.contains(link));
        Ok(carriers)
    }

    /// The links that tables for single sources use.
    fn links_with_sources(&self, family: Family) -> Result<BTreeSet<u32>, Gap> {
        let sent = self.rules()?.filter(|rule| rule.family == family).filter_map(sends);
        let tables: BTreeSet<u32> = sent.map(|(_, table)| table).filter(|table| !is_kernels(*table)).collect();
        let mut links = BTreeSet::new();
        for table in tables {
            links.extend(self.led_to(family, table)?);
        }
        Ok(links)
    }

    /// The pod whose link's rule names another table than the one with its host route, as a leaked rule does: its
    /// location, and the table of the rule.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn stray_pod(&self, address: IpAddr) -> Result<Option<(Site, u32)>, Gap> {
        let family = Family::of(address);
        let is_of_pod = if self.is_vpc_cni()? { may_be_pod_link } else { is_pod_link };
        let mut tables = BTreeSet::new();
        for rule in self.rules()?.filter(|rule| rule.family == family && !is_kernels(rule.table)) {
            if sends_by_link(rule).is_some() || sends(rule).is_some() {
                tables.insert(rule.table);
            }
        }
        let branches = self.branch_rules(family)?;
        for table in tables {
            let to_it = |route: &&SeenRoute| route.to == IpCidr::new_host(address) && route.is_host_on_link();
            let Some(link) = self.table(family, table)?.iter().find(to_it).and_then(SeenRoute::oif) else { continue };
            let Some(name) = self.name(link)?.filter(|name| is_of_pod(name)) else { continue };
            let named = branches.iter().find(|(behind, named)| *behind == name && *named != table);
            if let Some((_, named)) = named {
                return Ok(Some((Site { link, table, by_host_route: true }, *named)));
            }
        }
        Ok(None)
    }

    /// The link, other than an uplink, of the main table's route to an address: a tunnel, a bridge or a point-to-point
    /// link.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn behind(&self, address: IpAddr) -> Result<Option<u32>, Gap> {
        let main = self.table(Family::of(address), TABLE_MAIN)?;
        let rank = |route: &SeenRoute| (route.to.network_length(), u32::MAX - route.metric);
        let around = || main.iter().filter(|route| route.to.contains(&address) && route.is_unlimited());
        let best = around().map(rank).max().filter(|(length, _)| *length > 1);
        // Which of several equal routes is used is not known.
        let links = links_of(around().filter(|route| Some(rank(route)) == best));
        let uplinks = self.uplinks()?;
        Ok(links.first().copied().filter(|link| links.is_disjoint(&uplinks) && *link != LOOPBACK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::testing::Model;

    /// Two uplinks and a pod that has table 2, behind the second.
    const NODE: &str = "
        link 2 eth0 10.0.0.10/24
        link 3 eth1 10.0.1.10/24
        link 4 pod0
        rule 1536 from 10.0.1.100 table 2
        route default via 10.0.0.1 dev 2
        route default via 10.0.1.1 dev 3 table 2
        route 10.0.1.100 dev 4 scope link
        ";

    fn home(node: &str, source: &str) -> Option<(Vec<u32>, Evidence, bool)> {
        let [source, destination] = [source, "192.0.2.1"].map(|text| text.parse().unwrap());
        let home = Model::new(node).see(|seen| Topology::of(seen).home(source, destination));
        home.map(|home| (home.links.into_iter().collect(), home.evidence, home.proven))
    }

    #[test]
    fn a_pod_has_a_home_only_where_something_proves_it() {
        let without = |line: &str| {
            assert!(NODE.contains(line), "{line}");
            NODE.lines().filter(|it| !it.contains(line)).collect::<Vec<_>>().join("\n") + "\n"
        };
        let (rule, default) = ("rule 1536", "dev 3 table 2");
        let with = |node: &str, more: &str| format!("{node}{more}\n");
        for (what, node, expected) in [
            ("its table's", NODE.to_owned(), Some((vec![3], Evidence::Table(2), true))),
            ("an empty table, and nothing else", without(default), None),
            (
                "another source of its table is an address there",
                with(&without(default), "rule 32765 from 10.0.1.10 table 2"),
                Some((vec![3], Evidence::SourceOfTable(2), true)),
            ),
            (
                "a gateway, where there is no default",
                with(&without(default), "route 10.0.1.1 dev 3 scope link table 2"),
                Some((vec![3], Evidence::Table(2), true)),
            ),
            (
                "what node-fixer has added is evidence of nothing",
                with(
                    &with(&without(default), "route 10.0.1.1 dev 3 scope link table 2"),
                    "route default via 10.0.0.1 dev 2 proto 170 table 2",
                ),
                Some((vec![3], Evidence::Table(2), true)),
            ),
            (
                "its subnet, which no source has a table for",
                with(&without(rule), "rule 100 from 10.0.1.0/24 table 2"),
                Some((vec![3], Evidence::Subnet, false)),
            ),
            (
                "its subnet, which other sources have a table for",
                with(&without(rule), "rule 32765 from 10.0.1.10 table 2"),
                Some((vec![3], Evidence::Subnet, true)),
            ),
            ("the subnet of what is no uplink", without(rule).replace(default, "dev 2 table 9"), None),
            ("what leaves the network is translated", NODE.replace("100 table 2", "100 to 10.0.0.0/8 table 2"), None),
            (
                "two rules with one table empty",
                with(NODE, "rule 1535 from 10.0.1.100 table 3"),
                Some((vec![3], Evidence::Table(2), true)),
            ),
        ] {
            assert_eq!(home(&node, "10.0.1.100"), expected, "{what}");
        }
    }

    #[test]
    fn a_branch_link_is_the_home_of_its_pod() {
        let node = "
            link 2 eth0 10.0.0.10/24
            link 3 vlan.eth.1
            link 4 vlan0123456789a
            link 5 nodelocaldns 169.254.20.10/32 kind=dummy
            rule 10 iif vlan0123456789a table 101
            rule 10 iif vlan.eth.1 table 101
            route default via 10.0.0.1 dev 2
            route 10.0.0.1 dev 3 scope link table 101
            route 169.254.20.10 dev 5 special table 101
            route 10.0.0.150 dev 4 scope link table 101
            ";
        let by_table = Some((vec![3], Evidence::Table(101), true));
        assert_eq!(home(node, "10.0.0.150"), by_table, "by its gateway");
        assert_eq!(home(&format!("{node}route default via 10.0.0.1 dev 3 table 101\n"), "10.0.0.150"), by_table);
        assert_eq!(home(node, "169.254.20.10"), None, "a service's address belongs nowhere");
    }

    #[test]
    fn an_address_of_this_node_belongs_to_the_link_that_carries_it() {
        let node = "
            link 2 eth0 10.33.0.9/32 fd33::9/128
            link 3 eth1 10.37.0.9/32 fd37::9/128
            link 4 docker0 172.17.0.1/16 kind=bridge
            rule 100 from 10.33.0.9 table 10
            rule 101 from 10.37.0.9 table 11
            rule 101 from fd37::9 table 11
            route default via 10.33.0.1 dev 2
            route default via 10.33.0.1 dev 2 table 10
            route default via 10.33.0.1 dev 2 table 11
            route default6 via fd33::1 dev 2 table 11
            ";
        assert_eq!(home(node, "10.37.0.9"), Some((vec![3], Evidence::Address, true)), "whatever its table says");
        assert_eq!(home(node, "10.33.0.9"), Some((vec![2], Evidence::Table(10), true)));
        assert_eq!(home(node, "172.17.0.1"), Some((vec![4], Evidence::Address, false)));
        let [source, destination] = ["fd37::9", "2001:db8::1"].map(|text| text.parse().unwrap());
        let home6 = Model::new(node).see(|seen| Topology::of(seen).home(source, destination)).unwrap();
        assert_eq!((home6.links, home6.evidence), (BTreeSet::from([3]), Evidence::Address));
        let no_rule = node.replace("rule 101 from 10.37.0.9 table 11", "");
        assert_eq!(home(&no_rule, "10.37.0.9"), Some((vec![3], Evidence::Address, false)), "a plain server");
        assert_eq!(home(node, "10.37.0.77"), None, "no source of this node");
    }
}
