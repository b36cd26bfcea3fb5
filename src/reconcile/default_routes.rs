//! `default_routes`: every policy table for single sources, or for a branch link of the VPC CNI, has a default route.
//!
//! A table is repaired if one of its sources has no default route in any of the tables that its own rules name, and
//! only if the gateway is certain ([`gateway`]). Added routes give way: they have the greatest metric, so that the
//! table's owner can add its own at any time, and the default is deleted once another one exists.
//!
//! It looks no further than necessary: first rules, then the tables that they name; links, addresses and the main table
//! only if something is broken.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cidr::IpCidr;

use super::gateway::{self, Broken, Gateway, GatewayVerdict, has_default_of_others};
use crate::change::{Blocked, Change, Op, Plan, Step};
use crate::config::Config;
use crate::model::{Family, IfName, PROTO_MENDED, Route, RouteOptions, Rule, Scope, covers};
use crate::observed::{Gap, Observed, SeenRoute, Target};
use crate::sorted;
use crate::topology::cni::{is_branch_link, is_branch_pod_link};
use crate::topology::forecast::DeclaredRules;
use crate::topology::{Topology, exits_of, has_default, is_kernels, leads_to, sends, sends_by_link, sends_subnet};

/// The metric of added routes: every other route with the same destination is preferred.
const LAST: u32 = u32::MAX;

/// The plan of the section.
pub fn plan(desired: &Config, observed: &Observed) -> Result<Plan, Gap> {
    let declared = DeclaredRules::to_come(desired, observed)?;
    let topology = Topology::after(desired, &declared, observed);
    let mut plan = Plan::default();
    for family in sorted::set(desired.default_routes.families.iter().copied()) {
        Policy::new(desired, topology, family)?.plan(&mut plan)?;
    }
    Ok(plan)
}

/// The tables to repair, with those of their sources that have no default route.
pub fn broken(desired: &Config, observed: &Observed) -> Result<Vec<(Family, Broken)>, Gap> {
    let declared = DeclaredRules::to_come(desired, observed)?;
    let topology = Topology::after(desired, &declared, observed);
    let mut broken = Vec::new();
    for family in [Family::V4, Family::V6] {
        let tables = Policy::new(desired, topology, family)?.broken()?;
        broken.extend(tables.into_values().map(|table| (family, table)));
    }
    Ok(broken)
}

/// The policy tables of one family.
struct Policy<'a> {
    desired: &'a Config,
    topology: Topology<'a>,
    family: Family,
    rules: Vec<&'a Rule>,
    /// The tables that the section manages, with their routes.
    tables: BTreeMap<u32, Cow<'a, [SeenRoute]>>,
}

impl<'a> Policy<'a> {
    fn new(desired: &'a Config, topology: Topology<'a>, family: Family) -> Result<Policy<'a>, Gap> {
        let rules: Vec<&Rule> = topology.rules()?.filter(|rule| rule.family == family).collect();
        let mut policy = Policy { desired, topology, family, rules, tables: BTreeMap::new() };
        let named = policy.rules.iter().filter(|rule| is_for_pods_or_uplinks(rule)).map(|rule| rule.table);
        let ours = sorted::set(named.filter(|table| policy.is_looked_after(*table)));
        policy.tables = policy.read(ours)?;
        Ok(policy)
    }

    fn is_looked_after(&self, table: u32) -> bool {
        let excluded = &self.desired.default_routes.exclude_tables;
        !is_kernels(table) && !excluded.iter().any(|range| range.contains(table))
    }

    /// The routes of these tables, requested together.
    fn read(&self, tables: BTreeSet<u32>) -> Result<BTreeMap<u32, Cow<'a, [SeenRoute]>>, Gap> {
        self.topology.ask_for_tables(tables.iter().map(|table| (self.family, *table)))?;
        let mut read = BTreeMap::new();
        for table in tables {
            read.insert(table, self.topology.table(self.family, table)?);
        }
        Ok(read)
    }

    fn plan(&self, plan: &mut Plan) -> Result<(), Gap> {
        let broken = self.broken()?;
        let (mut repaired, mut blocked) = (BTreeSet::new(), Vec::new());
        for table in broken.into_values() {
            match gateway::find(self.topology, self.family, &table)? {
                GatewayVerdict::Known(gateway) => {
                    let reason = format!("{}; {}", table.complaint(), gateway.evidence);
                    let step = |route| Step::new(Change::Route(Op::Add(route)), reason.clone());
                    plan.steps.extend(repair(self.family, table.table, gateway).map(step));
                    repaired.insert(table.table);
                }
                GatewayVerdict::Blocked(because) => blocked.push((table, because)),
                GatewayVerdict::OfVrf => {}
            }
        }
        // A source that gets a default route from another of its tables is no longer broken.
        let helped = Served::of(self.rules.iter().copied().filter(|rule| repaired.contains(&rule.table)));
        for (mut table, because) in blocked {
            let to_it = self.rules.iter().filter(|rule| rule.table == table.table && is_for_pods_or_uplinks(rule));
            let left = to_it.filter(|rule| !helped.has(rule)).filter_map(|rule| sends(rule)).map(|(source, _)| source);
            let left = sorted::set(left);
            table.sources.retain(|source| left.contains(source));
            table.links.retain(|link| !helped.links.contains(link));
            if !table.sources.is_empty() || !table.links.is_empty() {
                let want = format!("add an {} default route: {}", self.family, table.complaint());
                plan.blocked.push(Blocked::new(want, because));
            }
        }
        self.give_way(&repaired, plan)
    }

    /// Handles the routes that were added to repair a table. The default is deleted once another one exists. Until then
    /// neither it nor the route to its gateway may block the owner's routes, as routes of an earlier version without a
    /// metric would.
    fn give_way(&self, repaired: &BTreeSet<u32>, plan: &mut Plan) -> Result<(), Gap> {
        for (table, routes) in &self.tables {
            let ours = routes.iter().filter(|route| route.protocol == PROTO_MENDED && route.is_unlimited());
            // The on-link route first, then the one through it.
            let (defaults, hosts): (Vec<_>, Vec<_>) = ours.partition(|route| route.to.network_length() == 0);
            if defaults.is_empty() && !repaired.contains(table) {
                continue;
            }
            let has_owners = has_default_of_others(routes);
            let mut last = sorted::set(routes.iter().filter(|it| it.metric == LAST).map(|it| it.to));
            for seen in hosts.into_iter().chain(defaults) {
                let goes = has_owners && seen.to.network_length() == 0;
                if !goes && seen.metric == LAST {
                    continue;
                }
                let link = seen.oif().map(|index| self.topology.link(index)).transpose()?.flatten();
                // One that others have added next hops to is more than ours.
                let Target::SeenHop(_) = seen.target else { continue };
                let route = seen.to_route(|_| link.map(|link| link.dev.clone()));
                let reason = match goes {
                    true => format!("table {table} has another default route now"),
                    false => format!("it blocks the route that the owner of table {table} may add"),
                };
                let step = |change| Step::new(change, reason.clone());
                if !goes && last.insert(seen.to) {
                    plan.steps.push(step(Change::Route(Op::Add(Route { metric: Some(LAST), ..route.clone() }))));
                }
                plan.steps.push(step(Change::Route(Op::Delete(route))));
            }
        }
        Ok(())
    }

    /// Tables without a default route, with those of their sources that have none elsewhere either.
    fn broken(&self) -> Result<BTreeMap<u32, Broken>, Gap> {
        let lacking = self.tables.iter().filter(|(_, routes)| !has_default(routes.iter())).map(|(table, _)| *table);
        let lacking = sorted::set(lacking);
        let mut broken: BTreeMap<u32, Broken> = BTreeMap::new();
        if lacking.is_empty() {
            return Ok(broken); // so that a healthy node does not look at its pods' addresses
        }
        let served = self.served(&lacking)?;
        for rule in self.rules.iter().filter(|rule| lacking.contains(&rule.table) && is_for_pods_or_uplinks(rule)) {
            let of_table = || Broken { table: rule.table, ..Broken::default() };
            if let Some((source, table)) = sends(rule)
                && !served.has(rule)
                && !self.is_complete_for(rule)
            {
                broken.entry(table).or_insert_with(of_table).sources.insert(source);
            }
            if let Some((link, table)) = sends_by_link(rule)
                && self.is_there(link)?
                && !served.links.contains(link)
            {
                broken.entry(table).or_insert_with(of_table).links.insert(link.clone());
            }
        }
        Ok(broken)
    }

    /// Of the sources of tables that lack a default: the rules that look up a table with one.
    fn served(&self, lacking: &BTreeSet<u32>) -> Result<Served<'a>, Gap> {
        let suspects = self.rules.iter().filter(|rule| lacking.contains(&rule.table));
        let sources = sorted::set(suspects.clone().filter_map(|rule| Some(sends(rule)?.0)));
        let links = sorted::set(suspects.filter_map(|rule| Some(sends_by_link(rule)?.0)));
        let concerns = |rule: &&&Rule| {
            sends(rule).is_some_and(|(source, _)| sources.contains(&source))
                || sends_by_link(rule).is_some_and(|(link, _)| links.contains(link))
        };
        let others: Vec<&'a Rule> = self.rules.iter().filter(concerns).copied().collect();
        let tables = self.read(sorted::set(others.iter().map(|rule| rule.table)))?;
        let has_way = |rule: &&&Rule| tables.get(&rule.table).is_some_and(|routes| has_default(routes.iter()));
        let mut served = Served::of(others.iter().copied().filter(|rule| has_way(&rule)));
        self.serve_by_subnet(&sources, &mut served)?;
        Ok(served)
    }

    /// An address of this node also has a default route through a rule for a subnet that contains it, if the default of
    /// that table uses the address's own link. Its own table then needs none.
    fn serve_by_subnet(&self, sources: &BTreeSet<IpAddr>, served: &mut Served<'a>) -> Result<(), Gap> {
        let holds = |rule: &&&Rule| sends_subnet(rule).is_some_and(|(of, _)| sources.iter().any(|it| of.contains(it)));
        let rules: Vec<&'a Rule> = self.rules.iter().filter(holds).copied().collect();
        if rules.is_empty() {
            return Ok(());
        }
        let tables = self.read(sorted::set(rules.iter().map(|rule| rule.table).filter(|table| !is_kernels(*table))))?;
        for (rule, routes) in rules.iter().filter_map(|rule| Some((rule, tables.get(&rule.table)?))) {
            let Some((subnet, _)) = sends_subnet(rule).filter(|_| has_default(routes.iter())) else { continue };
            let exits = exits_of(routes.iter());
            for source in sources.iter().filter(|source| subnet.contains(source)) {
                if !self.topology.carriers(*source)?.is_disjoint(&exits) {
                    served.sources.entry(*source).or_default().push(rule.selector.to);
                }
            }
        }
        Ok(())
    }

    /// Whether a rule is only for destinations that its table has routes to, without a default.
    fn is_complete_for(&self, rule: &Rule) -> bool {
        let routes = self.tables.get(&rule.table);
        routes.zip(rule.selector.to.as_ref()).is_some_and(|(routes, to)| leads_to(routes, to))
    }

    /// Whether a link of this name exists. Rules of a deleted link are leftovers.
    fn is_there(&self, name: &IfName) -> Result<bool, Gap> {
        Ok(self.topology.observed().links_named([name.clone()])?.first().is_some_and(Option::is_some))
    }
}

/// The routes that repair a table. The kernel accepts a route only if its gateway is reachable.
pub fn repair(family: Family, table: u32, gateway: Gateway) -> impl Iterator<Item = Route> {
    let Gateway { address, dev, has_host_route, .. } = gateway;
    let host = Route {
        table,
        to: IpCidr::new_host(address),
        special: None,
        via: None,
        dev: Some(dev),
        hops: Vec::new(),
        nexthop: None,
        scope: if family == Family::V4 { Scope::Link } else { Scope::Global },
        metric: Some(LAST),
        onlink: false,
        options: RouteOptions::default(),
        protocol: PROTO_MENDED,
    };
    let default = Route { to: family.everything(), via: Some(address), scope: Scope::Global, ..host.clone() };
    (!has_host_route).then_some(host).into_iter().chain([default])
}

/// Sources and links that some rule sends to a table with a default route.
#[derive(Default)]
struct Served<'a> {
    /// With the destinations that the rules are limited to.
    sources: BTreeMap<IpAddr, Vec<Option<IpCidr>>>,
    links: BTreeSet<&'a IfName>,
}

impl<'a> Served<'a> {
    /// What these rules send to their tables.
    fn of(rules: impl Iterator<Item = &'a Rule>) -> Served<'a> {
        let mut served = Served::default();
        for rule in rules {
            if let Some((source, _)) = sends(rule) {
                served.sources.entry(source).or_default().push(rule.selector.to);
            }
            served.links.extend(sends_by_link(rule).map(|(link, _)| link));
        }
        served
    }

    /// Whether this covers the source and destinations of a rule.
    fn has(&self, rule: &Rule) -> bool {
        let to = rule.selector.to.as_ref();
        let holds = |wide: &IpCidr| to.is_some_and(|to| covers(wide, to));
        let wides = sends(rule).and_then(|(source, _)| self.sources.get(&source));
        wides.is_some_and(|wides| wides.iter().any(|wide| wide.as_ref().is_none_or(holds)))
    }
}

/// Whether a rule sends a single source to its table, possibly limited to destinations that include the source itself
/// (the old form of the VPC CNI), or packets from a branch link of the VPC CNI or from the pods behind it.
fn is_for_pods_or_uplinks(rule: &Rule) -> bool {
    let old_form = |source: IpAddr| rule.selector.to.is_none_or(|to| to.contains(&source) && !to.is_host_address());
    let by_source = sends(rule).is_some_and(|(source, _)| old_form(source));
    by_source || sends_by_link(rule).is_some_and(|(link, _)| is_branch_link(link) || is_branch_pod_link(link))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::{RouteSet, Want};
    use crate::reconcile::testing::{Model, desired};

    /// Two uplinks in one subnet, as the VPC CNI has them; pods .100 on eth0, .101 and .102 on eth1.
    const WORKER: &str = "
        link 1 lo 127.0.0.1/8 ::1/128
        link 2 eth0 10.0.0.10/24 fe80::10/64
        link 3 eth1 10.0.0.11/24 fe80::11/64
        link 4 eni00000000001
        rule 512 to 10.0.0.100 table 254
        rule 512 to 10.0.0.101 table 254
        rule 1024 fwmark 128 table 254
        rule 1536 from 10.0.0.101 table 2
        rule 1536 from 10.0.0.102 table 2
        rule 32765 from 10.0.0.11 table 2
        route default via 10.0.0.1 dev 2
        route 10.0.0.0/24 dev 2 scope link proto 2
        route 10.0.0.1 dev 2 scope link proto 16
        route 10.0.0.100 dev 4 scope link";

    const HOST_ROUTE: &str = "route 10.0.0.1 dev 3 scope link table 2";
    const DEFAULT: &str = "route default via 10.0.0.1 dev 3 table 2";

    fn outcome(yaml: &str, node: &str) -> (Vec<String>, Vec<Blocked>) {
        let plan = Model::new(node).plan(plan, &desired(yaml));
        (plan.steps.iter().map(|step| step.change.to_string()).collect(), plan.blocked)
    }

    fn added(what: &str) -> String {
        format!("ip route add {what}")
    }

    #[test]
    fn a_host_route_of_an_earlier_repair_makes_no_uplink() {
        // By main's host route the table's gateway is a pod behind eth2, whatever a repair has left there.
        let node = "
            link 2 eth2 10.0.2.2/24
            link 3 vlan.eth.3 10.0.3.3/24
            rule 100 from 10.0.3.2 table 2
            route 10.0.3.1 dev 3 scope link table 2
            route 10.0.3.1 dev 2 scope link";
        let left = format!("{node}\nroute 10.9.9.9 dev 2 scope link table 2 proto 170");
        for node in [node, &left] {
            let (added, blocked) = outcome("{}", node);
            assert!(added.is_empty() && blocked.len() == 1, "{added:?} {blocked:?}");
        }
    }

    #[test]
    fn one_plan_repairs_a_table_and_moves_what_an_earlier_version_left_in_it() {
        let left = "route 10.0.0.1 dev 3 scope link table 2 proto 170";
        let (added, _) = outcome("{}", &format!("{WORKER}\n{left}"));
        let host = "10.0.0.1 dev eth1 table 2";
        let last = "proto 170 scope link metric 4294967295";
        let default = "default via 10.0.0.1 dev eth1 table 2 proto 170 scope global metric 4294967295";
        let moved = format!("ip route del {host} proto 170 scope link");
        assert_eq!(added, [self::added(default), self::added(&format!("{host} {last}")), moved]);
    }

    #[test]
    fn what_repairs_a_table_and_is_declared_too_has_its_place() {
        let left =
            "route 10.0.0.1 dev 3 scope link table 2 proto 170\nroute default via 10.0.0.1 dev 3 table 2 proto 170";
        let node = format!("{WORKER}\n{left}");
        let declared = "routes: [{to: default, via: 10.0.0.1, dev: eth1, table: 2}]";
        let moves_default = |yaml| outcome(yaml, &node).0.iter().any(|it| it.contains("del default"));
        assert!(moves_default("{}") && !moves_default(declared));
    }

    #[test]
    fn healthy_nodes_are_left_alone() {
        let old_form = "
            link 2 eth0 10.0.0.10/24
            rule 1536 from 10.0.0.101 to 10.0.0.0/16 table 2
            route 10.0.0.1 dev 3 scope link table 2
            route default via 10.0.0.1 dev 3 table 2";
        // From a user's report: three uplinks in one subnet.
        let reported = "
            link 2 eth0 172.20.33.232/19
            rule 512 to 172.20.34.72 table 254
            rule 1536 from 172.20.34.73 table 2
            rule 1536 from 172.20.34.74 table 3
            route default via 172.20.32.1 dev 3 table 2
            route 172.20.32.1 dev 3 table 2 scope link
            route default via 172.20.32.1 dev 4 table 3
            route 172.20.32.1 dev 4 table 3 scope link
            route default via 172.20.32.1 dev 2
            route 172.20.32.0/19 dev 2 proto 2 scope link
            route 172.20.34.72 dev 5 scope link";
        // One source, two tables; the default is in the later one.
        let nm_cloud_setup = "
            rule 30200 from 10.0.0.11 table 30200
            rule 30400 from 10.0.0.11 table 30400
            route 10.0.0.0/24 dev 3 scope link table 30200
            route default via 10.0.0.1 dev 3 table 30400";
        let way_out_by_main = "
            rule 100 from 10.0.0.11 table 254
            rule 200 from 10.0.0.11 table 7
            route default via 10.0.0.1 dev 2
            route 10.0.0.1 dev 3 scope link table 7";
        // The own table has one network; all else of the subnet has another gateway than main's.
        let by_subnet = "
            link 2 eth0 10.0.0.10/24
            link 3 eth1 10.0.0.11/24
            rule 100 from 10.0.0.11 table 200
            rule 200 from 10.0.0.0/24 table 201
            route default via 10.0.0.1 dev 2
            route 172.16.0.0/16 via 10.0.0.99 dev 3 table 200
            route default via 10.0.0.254 dev 3 table 201";
        let own_subnet = "
            link 3 eth1 10.0.1.11/24
            rule 100 from 10.0.1.11 to 10.0.1.0/24 table 40
            route 10.0.1.0/24 dev 3 scope link table 40";
        for (case, node) in [
            ("worker", format!("{WORKER}\n{HOST_ROUTE}\n{DEFAULT}")),
            ("old form of the CNI's rules", old_form.into()),
            ("reported healthy node", reported.into()),
            ("two tables of one source", nm_cloud_setup.into()),
            ("an earlier rule leads to main", way_out_by_main.into()),
            ("a rule for the subnet has the default, by the link of the address", by_subnet.into()),
            ("a rule for destinations that its table leads to", own_subnet.into()),
        ] {
            assert_eq!(outcome("{}", &node), (vec![], vec![]), "{case}");
        }
        for kind in ["metric 500", "special", "proto 4"] {
            let node = format!("{WORKER}\nroute default via 10.0.0.1 dev 3 table 2 {kind}");
            assert_eq!(outcome("{}", &node), (vec![], vec![]), "a default route with {kind} counts");
        }
        let halves = "route 0.0.0.0/1 via 10.0.0.1 dev 3 table 2\nroute 128.0.0.0/1 via 10.0.0.1 dev 3 table 2";
        assert_eq!(outcome("{}", &format!("{WORKER}\n{halves}")), (vec![], vec![]), "two halves are a default");
        let half = "route 0.0.0.0/1 via 10.0.0.1 dev 3 table 2";
        assert_eq!(outcome("{}", &format!("{WORKER}\n{HOST_ROUTE}\n{half}")).0.len(), 1, "one half is none");
    }

    #[test]
    fn broken_tables_are_repaired_when_the_gateway_is_certain() {
        let host = added("10.0.0.1 dev eth1 table 2 proto 170 scope link metric 4294967295");
        let default = added("default via 10.0.0.1 dev eth1 table 2 proto 170 scope global metric 4294967295");
        let both = vec![host, default.clone()];
        let six = "
            link 3 eth1 fd00::11/64 fe80::11/64
            rule 1536 from fd00::101 table 2
            rule 32765 from fd00::11 table 2";
        let six_default =
            "ip -6 route add default via fe80:ec2::1 dev eth1 table 2 proto 170 metric 4294967295".to_owned();
        let six_host = "ip -6 route add fe80:ec2::1 dev eth1 table 2 proto 170 metric 4294967295".to_owned();
        for (case, node, expected) in [
            ("host route only", format!("{WORKER}\n{HOST_ROUTE}"), vec![default.clone()]),
            ("flushed", WORKER.into(), both.clone()),
            ("subnet route only", format!("{WORKER}\nroute 10.0.0.0/24 dev 3 scope link table 2"), both.clone()),
            ("IPv6, host route only", format!("{six}\nroute fe80:ec2::1 dev 3 table 2"), vec![six_default.clone()]),
            (
                "IPv6, flushed",
                format!("{six}\nlink 2 eth0 fd00::10/64\nroute default via fe80:ec2::1 dev 2"),
                vec![six_host, six_default],
            ),
            (
                "several gateways in main, one of them inside",
                format!("{WORKER}\nroute default via 10.9.0.1 dev 2 metric 50"),
                both.clone(),
            ),
            (
                "a rule for one destination serves not all",
                format!("{WORKER}\n{HOST_ROUTE}\nrule 100 from 10.0.0.101 to 10.5.0.0/16 table 254"),
                vec![default.clone()],
            ),
            (
                "a host route of global scope is a route to the gateway",
                format!("{WORKER}\nroute 10.0.0.1 dev 3 table 2"),
                vec![default.clone()],
            ),
            (
                "a host route to an own address tells nothing",
                format!("{WORKER}\nroute 10.0.0.10 dev 3 scope link table 2"),
                both.clone(),
            ),
            (
                "the rule of the own address has another priority",
                WORKER.replace("rule 32765 from 10.0.0.11", "rule 32000 from 10.0.0.11"),
                both.clone(),
            ),
            (
                "a source with another table that has no default either",
                format!("{WORKER}\n{HOST_ROUTE}\nrule 100 from 10.0.0.101 table 50"),
                vec![default],
            ),
        ] {
            assert_eq!(outcome("{}", &node).0, expected, "{case}");
        }
    }

    #[test]
    fn uncertain_gateways_are_blocked_with_the_evidence() {
        let eth1 = |is: &str| WORKER.replace("link 3 eth1 10.0.0.11/24 fe80::11/64", &format!("link 3 eth1 {is}"));
        let with = |lines: &str| format!("{WORKER}\n{lines}");
        for (case, node, because) in [
            (
                "two host routes",
                with("route 10.0.0.1 dev 3 scope link table 2\nroute 10.0.0.2 dev 3 scope link table 2"),
                "2 host routes, to 10.0.0.1, 10.0.0.2",
            ),
            ("down", format!("{}\n{HOST_ROUTE}", eth1("down 10.0.0.11/24")), "ip link set eth1 up"),
            ("no address", format!("{}\n{HOST_ROUTE}", eth1("")), "eth1 has no global IPv4 address"),
            (
                "only an IPv6 address",
                format!("{}\n{HOST_ROUTE}", eth1("fd00::1/64")),
                "eth1 has no global IPv4 address",
            ),
            (
                "outside the subnet",
                with("route 10.7.0.1 dev 3 scope link table 2"),
                "10.7.0.1 is outside the subnets of eth1 (10.0.0.0/24)",
            ),
            ("pod of a rule", with("route 10.0.0.102 dev 3 scope link table 2"), "10.0.0.102 is a pod's address"),
            (
                "pod of the main table",
                with("route 10.0.0.103 dev 3 scope link table 2\nroute 10.0.0.103 dev 4 scope link"),
                "10.0.0.103 is a pod's address",
            ),
            ("interface gone", with("route 10.0.0.1 dev 99 scope link table 2"), "is gone"),
            ("flushed, address lost", eth1(""), "no interface has 10.0.0.11, the address of its rule 32765"),
            (
                "flushed, gateway elsewhere",
                WORKER.replace("default via 10.0.0.1", "default via 10.9.0.1"),
                "(10.9.0.1) is in its subnets (10.0.0.0/24)",
            ),
            (
                "flushed, two gateways",
                with("route default via 10.0.0.2 dev 2 metric 7"),
                "several gateways in the subnet of eth1: 10.0.0.1, 10.0.0.2",
            ),
            (
                "flushed, two uplinks of one table",
                with("rule 32765 from 10.0.0.10 table 2"),
                "belong to several interfaces",
            ),
            (
                "two interfaces in the table",
                with("route 10.1.0.0/24 dev 3 scope link table 2\nroute 10.2.0.0/24 dev 2 scope link table 2"),
                "several interfaces",
            ),
            (
                "the gateway is led to otherwise",
                with("route 10.0.0.0/24 dev 3 scope link table 2\nroute 10.0.0.1 via 10.0.0.9 dev 3 table 2"),
                "reaches 10.0.0.1 another way",
            ),
            (
                "several hops in main",
                format!(
                    "{}\nroute default hops 10.0.0.1@2,10.0.0.2@2\nroute default via 10.0.0.3 dev 2 metric 5",
                    WORKER.replace("route default via", "route 10.9.0.0/16 via")
                ),
                "several gateways in the subnet of eth1: 10.0.0.1, 10.0.0.2, 10.0.0.3",
            ),
            (
                "several hops in the table",
                with(
                    "route 10.8.0.0/16 hops 10.0.0.8@2,10.0.0.8@3 table 2\nroute 10.0.0.0/24 dev 3 scope link table 2",
                ),
                "several interfaces",
            ),
            ("no interface in the table", with("route 10.1.0.0/24 special table 2"), "use no interface"),
        ] {
            let (changes, blocked) = outcome("{}", &node);
            assert_eq!(changes, Vec::<String>::new(), "{case}");
            assert_eq!(blocked.len(), 1, "{case}: {blocked:?}");
            assert!(blocked[0].because.contains(because), "{case}: {}", blocked[0].because);
            assert!(blocked[0].want.contains("table 2"), "{case}: {}", blocked[0].want);
        }
    }

    #[test]
    fn tables_of_others_are_never_touched() {
        let tables = "
            link 3 eth1 10.0.0.11/24
            route 10.0.0.1 dev 3 scope link table 7
            route 10.0.0.1 dev 3 scope link table 2004";
        for rule in [
            "rule 10 fwmark 128 from 10.0.0.101 table 7",
            "rule 10 iif eth1 from 10.0.0.101 table 7",
            "rule 10 other",
            "rule 10 from 10.0.0.0/24 table 7",
            "rule 10 to 10.0.0.101 table 7",
            "rule 10 from 10.0.0.101 to 10.5.0.0/16 table 7",
            "rule 10 from 10.0.0.101 to 10.0.0.101 table 7",
            "rule 10 from 10.0.0.101 table 0",
            "rule 10 from 10.0.0.101 table 253",
            "rule 10 from 10.0.0.101 table 254",
            "rule 10 from 10.0.0.101 table 255",
        ] {
            assert_eq!(outcome("{}", &format!("{tables}\n{rule}")), (vec![], vec![]), "{rule}");
        }
        let single = format!("{tables}\nrule 10 from 10.0.0.101 table 7");
        assert_eq!(outcome("{}", &single).0.len(), 1, "the same with a single source is repaired");
        for excluded in ["[7]", "[[1, 9]]", "[3, [7, 7]]"] {
            let yaml = format!("default_routes: {{exclude_tables: {excluded}}}");
            assert_eq!(outcome(&yaml, &single), (vec![], vec![]), "{excluded}");
        }
        assert_eq!(outcome("default_routes: {families: [ipv6]}", &single), (vec![], vec![]));
        let vrf = single.replace("link 3 eth1", "link 3 eth1 vrf");
        assert_eq!(outcome("{}", &vrf), (vec![], vec![]), "the table of a VRF");
    }

    #[test]
    fn what_an_earlier_version_added_is_moved_out_of_the_owners_place() {
        let host = "10.0.0.1 dev eth1 table 2 proto 170 scope link";
        let default = "default via 10.0.0.1 dev eth1 table 2 proto 170 scope global";
        let live = "
            route 10.0.0.1 dev 3 scope link table 2 proto 170
            route default via 10.0.0.1 dev 3 table 2 proto 170";
        let moved = |what: &str| [format!("ip route add {what} metric 4294967295"), format!("ip route del {what}")];
        let both = [moved(host), moved(default)].concat();
        assert_eq!(outcome("{}", &format!("{WORKER}{live}")), (both, vec![]), "without a metric");
        let owners = format!("{WORKER}{live}\nroute default via 10.0.0.1 dev 3 table 2 metric 5");
        let left = [moved(host).to_vec(), vec![format!("ip route del {default}")]].concat();
        assert_eq!(outcome("{}", &owners), (left, vec![]), "the owner has a default by now");
        let excluded = "default_routes: {exclude_tables: [2]}";
        assert_eq!(outcome(excluded, &format!("{WORKER}{live}")), (vec![], vec![]), "excluded");
        let last = live.replace("170", "170 metric 4294967295");
        assert_eq!(outcome("{}", &format!("{WORKER}{last}")), (vec![], vec![]), "as this version adds them");
    }

    #[test]
    fn what_is_declared_counts_as_done() {
        let broken = format!("{WORKER}\n{HOST_ROUTE}");
        let yaml = "routes: [{to: default, via: 10.0.0.1, dev: eth1, table: 2, metric: 5}]";
        assert_eq!(outcome(yaml, &broken), (vec![], vec![]), "its default is declared");
        let node = "link 3 eth1 10.0.0.11/24\nroute 10.0.0.1 dev 3 scope link table 7";
        let no_main = WORKER.replace("route default via 10.0.0.1 dev 2", "");
        let yaml = "routes: [{to: default, via: 10.0.0.1, dev: eth0}]";
        assert_eq!(outcome(yaml, &no_main).0.len(), 2, "main's default is declared, and tells the gateway");
        let yaml = "rules: [{priority: 5, from: 10.0.0.101, table: 7}]";
        assert_eq!(outcome(yaml, node).0.len(), 1, "a declared rule sends a source there");
        let old = format!("{node}\nrule 5 from 10.0.0.101 table 7 proto 171");
        assert_eq!(outcome("{}", &old), (vec![], vec![]), "the rule is about to go");
    }

    #[test]
    fn a_healthy_node_is_asked_for_rules_and_policy_tables_only() {
        let mut node = Model::new(&format!("{WORKER}\n{DEFAULT}"));
        node.plan(plan, &Config::default());
        assert_eq!(node.asked, [Want::Rules, Want::Routes(RouteSet::Table(Family::V4, 2))]);
    }
}
