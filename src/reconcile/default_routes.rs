//! `default_routes`: every policy table that single sources are sent to has a way out.
//!
//! A table is mended when one of its sources has no default route in any of the tables that its own rules name,
//! and only when its gateway is certain. The kinds of evidence are tried from the best; a worse kind is tried
//! only where the better is absent, and better evidence that is ambiguous or of no use blocks.
//!
//! Looks no further than it must: rules, then the tables that they name; links, addresses and the main table only
//! when something is broken.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cidr::IpCidr;

use super::{routes, rules};
use crate::change::{Blocked, Change, Plan, Step};
use crate::desired::Desired;
use crate::net::{Dev, Family, PROTO_MENDED, Route, Rule, Scope, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN};
use crate::net::{UPLINK_RULE_PRIORITY, family_of};
use crate::observed::{Gap, Hop, Link, Observed, RouteSet, SeenRoute, Target};
use crate::sorted;

/// What differs.
pub fn plan(desired: &Desired, observed: &Observed) -> Result<Plan, Gap> {
    plan_of(&desired.default_routes.families, desired, observed)
}

/// What differs in these families, wanted or not.
pub fn plan_of(families: &[Family], desired: &Desired, observed: &Observed) -> Result<Plan, Gap> {
    let live = observed.rules()?;
    let declared = rules::declared(desired);
    let mut plan = Plan::default();
    for family in sorted::set(families.iter().copied()) {
        let rules = rules::afterwards(live, &declared).filter(|rule| rule.family == family).collect();
        let node = Policy { desired, observed, family, rules };
        let (mut served, mut unserved) = (BTreeSet::new(), Vec::new());
        for (table, sources) in node.broken_tables()? {
            match node.way_out(table, &sources)? {
                Way::Out { gateway, dev, has_host_route, evidence } => {
                    let reason = format!("{}; {evidence}", node.complaint(table, &sources));
                    let (host, default) = node.routes(table, gateway, &dev);
                    let missing = (!has_host_route).then_some(host);
                    let step = |route| Step { change: Change::AddRoute(route), reason: reason.clone() };
                    plan.steps.extend(missing.into_iter().chain([default]).map(step));
                    let sent_here = node.sends_everywhere().filter(|(_, sent)| *sent == table);
                    served.extend(sent_here.map(|(source, _)| source));
                }
                Way::Blocked(_) => unserved.push((table, sources)),
                Way::OfVrf => {}
            }
        }
        // A source that gets a way out by another of its tables is broken no longer.
        for (table, mut sources) in unserved {
            sources.retain(|source| !served.contains(source));
            if !sources.is_empty()
                && let Way::Blocked(because) = node.way_out(table, &sources)?
            {
                let want = format!("a default route ({family}): {}", node.complaint(table, &sources));
                plan.blocked.push(Blocked::new(want, because));
            }
        }
    }
    Ok(plan)
}

/// The tables that are to be mended, each with its sources that have no way out.
pub fn broken(desired: &Desired, observed: &Observed) -> Result<Vec<(Family, u32, BTreeSet<IpAddr>)>, Gap> {
    let live = observed.rules()?;
    let declared = rules::declared(desired);
    let mut broken = Vec::new();
    for family in [Family::V4, Family::V6] {
        let rules = rules::afterwards(live, &declared).filter(|rule| rule.family == family).collect();
        let tables = Policy { desired, observed, family, rules }.broken_tables()?;
        broken.extend(tables.into_iter().map(|(table, sources)| (family, table, sources)));
    }
    Ok(broken)
}

/// The rules of one family, and what else there is to see.
struct Policy<'a> {
    desired: &'a Desired,
    observed: &'a Observed,
    family: Family,
    rules: Vec<&'a Rule>,
}

/// What the evidence says about a broken table.
enum Way {
    /// The gateway is certain.
    Out { gateway: IpAddr, dev: Dev, has_host_route: bool, evidence: String },
    /// It is not; why, and what an operator would do.
    Blocked(String),
    /// The table belongs to a VRF, which is none of our business.
    OfVrf,
}

impl Policy<'_> {
    /// Tables without a default route, with those of their sources that have none elsewhere either.
    fn broken_tables(&self) -> Result<BTreeMap<u32, BTreeSet<IpAddr>>, Gap> {
        let senders = || self.rules.iter().filter_map(|rule| sends(rule));
        let tables = senders().map(|(_, table)| table).filter(|table| self.is_ours_to_mend(*table));
        let lacking = self.without_default(sorted::set(tables))?;
        // Only now, so that a healthy node pays nothing for its pods' addresses.
        let mut users: BTreeMap<u32, BTreeSet<IpAddr>> = BTreeMap::new();
        for (source, table) in senders().filter(|(_, table)| lacking.contains(table)) {
            users.entry(table).or_default().insert(source);
        }
        if users.is_empty() {
            return Ok(users);
        }
        let suspects = sorted::set(users.values().flatten().copied());
        let named: Vec<_> = self.sends_everywhere().filter(|(source, _)| suspects.contains(source)).collect();
        let lacking = self.without_default(sorted::set(named.iter().map(|(_, table)| *table)))?;
        let served = named.iter().filter(|(_, table)| !lacking.contains(table));
        let served = sorted::set(served.map(|(source, _)| *source));
        users.values_mut().for_each(|sources| sources.retain(|source| !served.contains(source)));
        users.retain(|_, sources| !sources.is_empty());
        Ok(users)
    }

    /// Sources and the tables that their packets to anywhere are sent to.
    fn sends_everywhere(&self) -> impl Iterator<Item = (IpAddr, u32)> {
        self.rules.iter().filter(|rule| rule.selector.to.is_none()).filter_map(|rule| sends(rule))
    }

    fn is_ours_to_mend(&self, table: u32) -> bool {
        !matches!(table, 0 | TABLE_DEFAULT | TABLE_MAIN | TABLE_LOCAL)
            && !self.desired.default_routes.exclude_tables.iter().any(|range| range.contains(table))
    }

    /// Those of the tables that have no default route.
    fn without_default(&self, tables: BTreeSet<u32>) -> Result<BTreeSet<u32>, Gap> {
        // Asked for all at once, so that they are looked at in one go.
        self.observed.routes(tables.iter().map(|table| RouteSet::Table(self.family, *table)))?;
        let mut lacking = BTreeSet::new();
        for table in tables {
            if !has_default(&self.table(table)?) {
                lacking.insert(table);
            }
        }
        Ok(lacking)
    }

    /// A table's routes, with what is declared.
    fn table(&self, table: u32) -> Result<Vec<SeenRoute>, Gap> {
        routes::afterwards(self.desired, self.observed, RouteSet::Table(self.family, table))
    }

    fn link(&self, index: u32) -> Result<Option<&Link>, Gap> {
        Ok(self.observed.links([index])?.first().copied().flatten())
    }

    /// The kinds of evidence, best first.
    fn way_out(&self, table: u32, sources: &BTreeSet<IpAddr>) -> Result<Way, Gap> {
        let live = self.table(table)?;
        let used = sorted::set(live.iter().flat_map(SeenRoute::hops).filter_map(|hop| hop.oif));
        if self.observed.links(used.iter().copied())?.iter().flatten().any(|link| link.vrf_slave) {
            return Ok(Way::OfVrf);
        }
        let host_routes = sorted::set(live.iter().filter_map(|route| self.host_route(route)));
        match host_routes.into_iter().collect::<Vec<_>>().as_slice() {
            [(gateway, index)] => {
                let evidence = |dev: &Dev| format!("its one host route names the gateway {gateway} on {}", dev.name);
                return self.judge(table, *gateway, *index, evidence);
            }
            [] => {}
            several => {
                let listed: Vec<_> = several.iter().map(|(gateway, _)| gateway.to_string()).collect();
                let because = format!(
                    "table {table} has {} host routes, to {}, and any of them could be the gateway; add the default \
                     route by hand, or exclude the table",
                    several.len(),
                    shortened(&listed)
                );
                return Ok(Way::Blocked(because));
            }
        }
        if live.is_empty() {
            return self.by_uplink_rule(table, sources);
        }
        match used.iter().copied().collect::<Vec<_>>().as_slice() {
            [index] => self.by_main_gateway(table, *index, "the one interface that its routes use"),
            [] => Ok(self.no_evidence(table, "its routes use no interface")),
            _ => Ok(self.no_evidence(table, "its routes use several interfaces")),
        }
    }

    /// The gateway and the interface of a link-scope host route. IPv6 routes have no scope: there it is a host
    /// route without a gateway.
    fn host_route(&self, route: &SeenRoute) -> Option<(IpAddr, u32)> {
        let on_link = self.family == Family::V6 || route.scope == Some(Scope::Link);
        match route.target {
            Target::Hop(Hop { via: None, oif: Some(index) }) if on_link && route.to.is_host_address() => {
                Some((route.to.first_address(), index))
            }
            _ => None,
        }
    }

    /// For an empty table: the interface that carries the source of a rule with the uplinks' priority.
    fn by_uplink_rule(&self, table: u32, sources: &BTreeSet<IpAddr>) -> Result<Way, Gap> {
        let of_uplink = |rule: &&&Rule| rule.priority == UPLINK_RULE_PRIORITY && rule.table == table;
        let sources_of_uplink = self.rules.iter().filter(of_uplink).filter_map(|rule| sends(rule));
        let named = sorted::set(sources_of_uplink.map(|(source, _)| source));
        let carrying = self.observed.addresses()?.iter().filter(|address| named.contains(&address.local));
        let carriers = sorted::set(carrying.map(|address| address.index));
        match carriers.into_iter().collect::<Vec<_>>().as_slice() {
            [index] => {
                let how = format!("the interface with the source of its rule {UPLINK_RULE_PRIORITY}");
                self.by_main_gateway(table, *index, &how)
            }
            [] => {
                let sources: Vec<_> = named.union(sources).map(IpAddr::to_string).collect();
                let what = format!(
                    "it is empty, and no interface carries the source of a rule {UPLINK_RULE_PRIORITY} to it \
                     (sources: {})",
                    shortened(&sources)
                );
                Ok(self.no_evidence(table, &what))
            }
            _ => {
                let what = format!("it is empty, and its rules {UPLINK_RULE_PRIORITY} belong to several interfaces");
                Ok(self.no_evidence(table, &what))
            }
        }
    }

    /// The gateway of the main table's default route, if it lies in a subnet of the interface.
    fn by_main_gateway(&self, table: u32, index: u32, how: &str) -> Result<Way, Gap> {
        let Some(link) = self.link(index)? else {
            return Ok(self.no_evidence(table, &format!("interface number {index} is gone")));
        };
        if link.vrf_slave {
            return Ok(Way::OfVrf);
        }
        let name = &link.dev.name;
        if !link.up {
            // Its routes went when it went down: without them nothing else is to be told.
            return Ok(Way::Blocked(format!("{name} is {how}, but {}", is_down("it", &link.dev))));
        }
        let main = self.table(TABLE_MAIN)?;
        let defaults = main.iter().filter(|route| route.to.network_length() == 0 && route.is_unlimited());
        let gateways = sorted::set(defaults.flat_map(SeenRoute::hops).filter_map(|hop| hop.via));
        let subnets = self.subnets(index)?;
        let inside: Vec<_> = gateways.iter().filter(|gateway| is_inside(**gateway, &subnets)).collect();
        match inside.as_slice() {
            [gateway] => self.judge(table, **gateway, index, |_| {
                format!("the main table's gateway {gateway} lies in the subnet of {name}, {how}")
            }),
            [] => {
                let gateways: Vec<_> = gateways.iter().map(IpAddr::to_string).collect();
                let what = format!(
                    "{name} is {how}, and no gateway of the main table's default routes ({}) lies in its subnets ({})",
                    shortened(&gateways),
                    listed(&subnets)
                );
                Ok(self.no_evidence(table, &what))
            }
            several => {
                let several: Vec<_> = several.iter().map(ToString::to_string).collect();
                let what =
                    format!("the main table has several gateways in the subnet of {name}: {}", shortened(&several));
                Ok(self.no_evidence(table, &what))
            }
        }
    }

    /// Whether the gateway can be used over the interface.
    fn judge(&self, table: u32, gateway: IpAddr, index: u32, evidence: impl Fn(&Dev) -> String) -> Result<Way, Gap> {
        let Some(link) = self.link(index)? else {
            return Ok(Way::Blocked(format!("interface number {index} is gone; look again")));
        };
        let dev = link.dev.clone();
        let subnets = self.subnets(index)?;
        let host = IpCidr::new_host(gateway);
        let to_gateway: Vec<_> = self.table(table)?.into_iter().filter(|route| route.to == host).collect();
        let leads = |route: &SeenRoute| route.target == Target::Hop(Hop { via: None, oif: Some(index) });
        let trouble = if !link.up {
            Some(is_down(&dev.name.to_string(), &dev))
        } else if subnets.is_empty() {
            let cure = "give it its address back; does a network manager or the CNI own it?";
            Some(format!("{} has no {} address; {cure}", dev.name, self.family))
        } else if self.observed.addresses()?.iter().any(|address| address.local == gateway) {
            Some(format!("{gateway} is an address of this node itself; delete it where it does not belong"))
        } else if self.is_pod(gateway)? {
            Some(format!("{gateway} is a pod's address, no gateway; add the default route by hand"))
        } else if !is_inside(gateway, &subnets) {
            let cure = "correct the address of the interface, or add the default route by hand";
            Some(format!("{gateway} lies outside the subnets of {} ({}); {cure}", dev.name, listed(&subnets)))
        } else if to_gateway.iter().any(|route| !leads(route)) {
            let cure = format!("delete it: ip route del {gateway} table {table}");
            Some(format!("table {table} leads to {gateway} by another way; {cure}"))
        } else {
            None
        };
        let evidence = evidence(&dev);
        let has_host_route = !to_gateway.is_empty();
        Ok(match trouble {
            Some(trouble) => Way::Blocked(format!("{evidence}, but {trouble}")),
            None => Way::Out { gateway, dev, has_host_route, evidence },
        })
    }

    /// An address that rules lead to or from, or that the main table has behind an interface which is in no
    /// subnet with it. (A network manager's host route to the gateway of another uplink is none such.)
    fn is_pod(&self, address: IpAddr) -> Result<bool, Gap> {
        let host = IpCidr::new_host(address);
        if self.rules.iter().any(|rule| [rule.selector.from, rule.selector.to].contains(&Some(host))) {
            return Ok(true);
        }
        for route in self.table(TABLE_MAIN)?.iter().filter(|route| route.to == host && route.via().is_none()) {
            if let Some(index) = route.oif()
                && !is_inside(address, &self.subnets(index)?)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The subnets that an interface's addresses are in.
    fn subnets(&self, index: u32) -> Result<Vec<IpCidr>, Gap> {
        let of_link = self.observed.addresses()?.iter().filter(|address| address.index == index);
        Ok(of_link.map(|address| address.subnet).filter(|subnet| family_of(subnet) == self.family).collect())
    }

    fn routes(&self, table: u32, gateway: IpAddr, dev: &Dev) -> (Route, Route) {
        let on_link = if self.family == Family::V4 { Scope::Link } else { Scope::Global };
        let host = Route {
            table,
            to: IpCidr::new_host(gateway),
            via: None,
            dev: Some(dev.clone()),
            scope: on_link,
            metric: None,
            onlink: false,
            protocol: PROTO_MENDED,
        };
        let to = self.family.everything();
        let default = Route { to, via: Some(gateway), scope: Scope::Global, ..host.clone() };
        (host, default)
    }

    fn complaint(&self, table: u32, sources: &BTreeSet<IpAddr>) -> String {
        let sources: Vec<_> = sources.iter().map(IpAddr::to_string).collect();
        format!("table {table} has no default route for {}", shortened(&sources))
    }

    fn no_evidence(&self, table: u32, what: &str) -> Way {
        Way::Blocked(format!(
            "nothing tells the gateway of table {table}: {what}; add the routes by hand, restart the CNI's pod on \
             this node, or exclude the table"
        ))
    }
}

/// The source and the table of a rule that selects by nothing but one source; or, in the VPC CNI's old form, also
/// by the VPC's prefix as destination, which the source itself lies in.
fn sends(rule: &Rule) -> Option<(IpAddr, u32)> {
    let selector = &rule.selector;
    let source = selector.from.filter(IpCidr::is_host_address)?.first_address();
    let plain = selector.fwmark.is_none() && selector.iif.is_none() && selector.oif.is_none();
    let old_form = selector.to.is_none_or(|to| to.contains(&source) && !to.is_host_address());
    (plain && old_form).then_some((source, rule.table))
}

/// Whether there is any route of the default class for all packets: of any kind and metric, or the two halves of
/// everything.
fn has_default(routes: &[SeenRoute]) -> bool {
    let unlimited = || routes.iter().filter(|route| route.is_unlimited());
    let halves = unlimited().filter(|route| route.to.network_length() == 1);
    let halves = sorted::set(halves.map(|route| route.to.first_address()));
    halves.len() == 2 || unlimited().any(|route| route.to.network_length() == 0)
}

/// Whether a gateway lies in the subnets. A link-local one lies on any link that has an address at all.
fn is_inside(gateway: IpAddr, subnets: &[IpCidr]) -> bool {
    let link_local = matches!(gateway, IpAddr::V6(gateway) if gateway.is_unicast_link_local());
    subnets.iter().any(|subnet| link_local || subnet.contains(&gateway))
}

/// What is wrong with an interface that is down, and the cure.
fn is_down(who: &str, dev: &Dev) -> String {
    format!("{who} is down; set it up: ip link set {} up", dev.name)
}

fn listed(subnets: &[IpCidr]) -> String {
    shortened(&subnets.iter().map(ToString::to_string).collect::<Vec<_>>())
}

/// The first three and how many more.
fn shortened(items: &[String]) -> String {
    match items {
        [] => "none".into(),
        [first, second, third, rest @ ..] if !rest.is_empty() => {
            format!("{first}, {second}, {third} and {} more", rest.len())
        }
        few => few.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::Want;
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
        for (case, node) in [
            ("worker", format!("{WORKER}\n{HOST_ROUTE}\n{DEFAULT}")),
            ("old form of the CNI's rules", old_form.into()),
            ("reported healthy node", reported.into()),
            ("two tables of one source", nm_cloud_setup.into()),
            ("an earlier rule leads to main", way_out_by_main.into()),
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
    fn broken_tables_are_mended_when_the_gateway_is_certain() {
        let host = added("10.0.0.1 dev eth1 table 2 proto 170 scope link");
        let default = added("default via 10.0.0.1 dev eth1 table 2 proto 170 scope global");
        let both = vec![host, default.clone()];
        let six = "
            link 3 eth1 fd00::11/64 fe80::11/64
            rule 1536 from fd00::101 table 2
            rule 32765 from fd00::11 table 2";
        let six_default = "ip -6 route add default via fe80:ec2::1 dev eth1 table 2 proto 170".to_owned();
        let six_host = "ip -6 route add fe80:ec2::1 dev eth1 table 2 proto 170".to_owned();
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
            ("no address", format!("{}\n{HOST_ROUTE}", eth1("")), "eth1 has no IPv4 address"),
            ("only an IPv6 address", format!("{}\n{HOST_ROUTE}", eth1("fd00::1/64")), "eth1 has no IPv4 address"),
            (
                "outside the subnet",
                with("route 10.7.0.1 dev 3 scope link table 2"),
                "10.7.0.1 lies outside the subnets of eth1 (10.0.0.0/24)",
            ),
            ("local address", with("route 10.0.0.10 dev 3 scope link table 2"), "10.0.0.10 is an address of this node"),
            ("pod of a rule", with("route 10.0.0.102 dev 3 scope link table 2"), "10.0.0.102 is a pod's address"),
            (
                "pod of the main table",
                with("route 10.0.0.103 dev 3 scope link table 2\nroute 10.0.0.103 dev 4 scope link"),
                "10.0.0.103 is a pod's address",
            ),
            ("interface gone", with("route 10.0.0.1 dev 99 scope link table 2"), "is gone"),
            ("flushed, address lost", eth1(""), "no interface carries the source of a rule 32765"),
            (
                "flushed, no rule 32765",
                WORKER.replace("rule 32765 from 10.0.0.11", "rule 32000 from 10.0.0.11"),
                "no interface carries",
            ),
            (
                "flushed, gateway elsewhere",
                WORKER.replace("default via 10.0.0.1", "default via 10.9.0.1"),
                "(10.9.0.1) lies in its subnets (10.0.0.0/24)",
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
                "leads to 10.0.0.1 by another way",
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
        assert_eq!(outcome("{}", &single).0.len(), 1, "the same with a single source is mended");
        for excluded in ["[7]", "[[1, 9]]", "[3, [7, 7]]"] {
            let yaml = format!("default_routes: {{exclude_tables: {excluded}}}");
            assert_eq!(outcome(&yaml, &single), (vec![], vec![]), "{excluded}");
        }
        assert_eq!(outcome("default_routes: {families: [ipv6]}", &single), (vec![], vec![]));
        let vrf = single.replace("link 3 eth1", "link 3 eth1 vrf");
        assert_eq!(outcome("{}", &vrf), (vec![], vec![]), "the table of a VRF");
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
        node.plan(plan, &Desired::default());
        assert_eq!(node.asked, [Want::Rules, Want::Routes(RouteSet::Table(Family::V4, 2))]);
    }
}
