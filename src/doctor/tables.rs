//! Causes in the tables that policy rules use.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Finding;
use super::facts::{Facts, shortened};
use crate::model::{EVERYTHING, Family, PROTO_STATIC, Rule, UPLINK_RULE_PRIORITY, table_name};
use crate::observed::{Gap, RouteSet, SeenRoute, SeenRule};
use crate::reconcile::default_routes;
use crate::reconcile::gateway::{self, Broken, GatewayVerdict};
use crate::sorted;
use crate::topology::forecast::DeclaredRules;
use crate::topology::owners::Owner;
use crate::topology::{Topology, exits_of, has_default, host, is_kernels, links_of, sends};

/// `RTPROT_BOOT`, the protocol of routes added without one.
const PROTO_BOOT: u8 = 3;

/// A policy table whose sources, or whose links, have no default route.
pub struct BrokenTable<'a> {
    pub family: Family,
    what: Broken,
    routes: &'a [SeenRoute],
    owner: Owner,
}

impl BrokenTable<'_> {
    pub fn table(&self) -> u32 {
        self.what.table
    }

    pub fn sources(&self) -> &BTreeSet<IpAddr> {
        &self.what.sources
    }

    fn complaint(&self) -> String {
        self.what.complaint()
    }

    fn host_routes(&self) -> Vec<&SeenRoute> {
        let to_host = |route: &&SeenRoute| route.to.is_host_address() && route.via().is_none() && route.oif().is_some();
        self.routes.iter().filter(to_host).collect()
    }

    /// Whether each of its sources is an address of this node that has routes to some networks through its own
    /// interface, such as a storage network, in a table of a program that does not always add a default.
    fn is_deliberate(&self, topology: Topology) -> Result<bool, Gap> {
        let has_always =
            matches!(self.owner, Owner::VpcCni | Owner::Nodeadm | Owner::Ec2NetUtils | Owner::NmCloudSetup);
        if has_always || !self.what.links.is_empty() {
            return Ok(false);
        }
        let used = links_of(self.routes);
        for source in self.sources() {
            if topology.carriers(*source)?.is_disjoint(&used) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn broken<'a>(facts: &'a Facts) -> Result<Vec<BrokenTable<'a>>, Gap> {
    let mut found = Vec::new();
    for (family, what) in default_routes::broken(facts.desired, facts.observed)? {
        let routes = facts.table(family, what.table)?;
        // The table of a VRF is its master's concern.
        if !facts.observed.links(links_of(routes))?.into_iter().flatten().any(|link| link.vrf.is_some()) {
            let owner = facts.topology().owner_of_table(family, what.table)?;
            found.push(BrokenTable { family, what, routes, owner });
        }
    }
    Ok(found)
}

/// The commands that repair a table; or what to do if its gateway is not certain.
fn repair(facts: &Facts, broken: &BrokenTable) -> Result<String, Gap> {
    let (declared, family) = (DeclaredRules::to_come(facts.desired, facts.observed)?, broken.family);
    let topology = Topology::after(facts.desired, &declared, facts.observed);
    Ok(match gateway::find(topology, family, &broken.what)? {
        GatewayVerdict::Known(gateway) => {
            let routes = default_routes::repair(family, broken.table(), gateway);
            routes.map(|route| route.command("add")).collect::<Vec<_>>().join(" && ")
        }
        GatewayVerdict::Blocked(because) => format!("# {because}"),
        GatewayVerdict::OfVrf => {
            format!("# a source of table {} gets its default route from another of its tables", broken.table())
        }
    })
}

pub fn table_host_route_only(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let mut found = Vec::new();
    for broken in broken(facts)? {
        let host_routes = broken.host_routes();
        if host_routes.is_empty() || host_routes.len() != broken.routes.len() {
            continue;
        }
        let only = if host_routes.len() == 1 { "only the host route to" } else { "only host routes, to" };
        let how = if broken.owner == Owner::VpcCni {
            "the CNI failed to add the default, or a network manager removed only that. The CNI does not try again"
        } else {
            "the default was never added, or a network manager removed only that"
        };
        let evidence = format!(
            "{}; it has {only} {}: {how}. {} leaves by the main table's default",
            broken.complaint(),
            shortened(host_routes.iter().map(|route| route.to.first_address())),
            if broken.sources().is_empty() { "Traffic from there" } else { "Traffic from these sources" },
        );
        found.push(Finding::new(evidence, None, repair(facts, &broken)?));
    }
    Ok(found)
}

pub fn table_without_default(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let mut found = Vec::new();
    for broken in broken(facts)? {
        if broken.routes.len() == broken.host_routes().len() {
            continue;
        }
        let cure = repair(facts, &broken)?;
        // If a run can repair it, the evidence is reported too.
        if !cure.starts_with('#') || !broken.is_deliberate(facts.topology())? {
            let routes = broken.routes.iter().map(|route| route.to);
            let evidence = format!("{}; its only routes are to {}", broken.complaint(), shortened(routes));
            found.push(Finding::new(evidence, None, cure));
        }
    }
    Ok(found)
}

/// Empty tables of rules, with their sources that still exist: pods with a route, addresses of this node.
pub fn empty<'a>(facts: &'a Facts) -> Result<Vec<(BrokenTable<'a>, BTreeSet<IpAddr>)>, Gap> {
    let mut found = Vec::new();
    let mut broken = broken(facts)?;
    broken.retain(|broken| broken.routes.is_empty());
    if broken.is_empty() {
        return Ok(found);
    }
    let (pods, own) = (facts.topology().pods()?, facts.observed.addresses()?);
    for broken in broken {
        let here = |source: &&IpAddr| own.iter().any(|it| it.local == **source) || pods.contains_key(*source);
        let alive = sorted::set(broken.sources().iter().filter(here).copied());
        found.push((broken, alive));
    }
    Ok(found)
}

pub fn table_flushed(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let mut found = Vec::new();
    for (broken, alive) in empty(facts)? {
        if alive.is_empty() && broken.what.links.is_empty() {
            continue;
        }
        let mut evidence = format!("{}, and no other route", broken.complaint());
        if !alive.is_empty() {
            let are = if alive.len() == 1 { "is" } else { "are" };
            evidence += &format!(", but {} {are} still here", shortened(&alive));
        }
        evidence += &match gone(facts, &broken)? {
            Some(lost) => format!(
                ": no interface has {lost}, the address of its rule {UPLINK_RULE_PRIORITY}, so its network interface \
                 was removed while in use, or has lost its address. No route helps"
            ),
            None => ": the kernel drops an interface's routes from all tables when it goes down or loses its last \
                 address, and no program has restored them"
                .to_owned(),
        };
        found.push(Finding::new(evidence, None, repair(facts, &broken)?));
    }
    Ok(found)
}

/// The address of the uplink of an empty table of the VPC CNI, if no interface has it any more.
fn gone(facts: &Facts, broken: &BrokenTable) -> Result<Option<IpAddr>, Gap> {
    if broken.owner != Owner::VpcCni {
        return Ok(None);
    }
    let to_it = |rule: &&Rule| {
        (rule.family, rule.table, rule.priority) == (broken.family, broken.table(), UPLINK_RULE_PRIORITY)
    };
    let mut lost = None;
    for address in facts.rules()?.into_iter().filter(to_it).filter_map(|rule| host(rule.selector.from.as_ref())) {
        if facts.topology().is_own(address)? {
            return Ok(None);
        }
        lost = Some(address);
    }
    Ok(lost)
}

/// The main table has no default of a family, but tables of single sources have one.
pub fn main_without_default(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let mut found = Vec::new();
    for family in [Family::V4, Family::V6] {
        found.extend(without_default(facts, family)?);
    }
    Ok(found)
}

/// The default routes of tables of single sources.
#[derive(Default)]
struct Elsewhere {
    sources: BTreeSet<IpAddr>,
    tables: BTreeSet<u32>,
    gateways: BTreeSet<IpAddr>,
    links: BTreeSet<u32>,
}

fn without_default(facts: &Facts, family: Family) -> Result<Option<Finding>, Gap> {
    let topology = facts.topology();
    if !topology.main_defaults(family)?.is_empty() {
        return Ok(None);
    }
    let rules: Vec<&Rule> = facts.rules()?.into_iter().filter(|rule| rule.family == family).collect();
    let named = rules.iter().filter(|rule| !is_kernels(rule.table));
    let tables = facts.tables(&sorted::set(named.map(|rule| (family, rule.table))))?;
    let mut elsewhere = Elsewhere::default();
    for rule in &rules {
        let Some(routes) = tables.get(&(family, rule.table)).filter(|routes| has_default(routes.iter())) else {
            continue;
        };
        if rule.selector == EVERYTHING {
            return Ok(None); // that table has the default, instead of main
        }
        let Some((source, table)) = sends(rule) else { continue };
        let hops = routes.iter().filter(|route| route.is_of_default_class()).flat_map(SeenRoute::hops);
        elsewhere.gateways.extend(hops.filter_map(|hop| hop.via));
        elsewhere.links.extend(exits_of(*routes));
        elsewhere.sources.insert(source);
        elsewhere.tables.insert(table);
    }
    let is_vpc_cni = topology.is_vpc_cni()?;
    // A rule that cannot be evaluated here may send everything elsewhere; the CNI has none that does.
    if elsewhere.links.is_empty() || !is_vpc_cni && has_unread_rules(facts, family)? {
        return Ok(None);
    }
    let left = unserved(facts, family, &elsewhere)?;
    if left.is_empty() {
        return Ok(None); // each address has its own table, and main has no default on purpose
    }
    let evidence = format!(
        "the main table has no {family} default route, but {} {} one{}: traffic of this node from {}{} has no route",
        if elsewhere.tables.len() == 1 { "table" } else { "tables" },
        shortened(&elsewhere.tables) + if elsewhere.tables.len() == 1 { " has" } else { " have" },
        if elsewhere.gateways.is_empty() {
            String::new()
        } else {
            format!(" (via {})", shortened(&elsewhere.gateways))
        },
        shortened(left),
        if is_vpc_cni { ", and from the pods of the first uplink," } else { "" }
    );
    let cure = "# let the network manager of the first uplink set its default route again, for example by a new lease \
                or router advertisement; to have node-fixer maintain it, declare it under routes";
    Ok(Some(Finding::new(evidence, None, cure.into())))
}

/// Whether there are rules that node-fixer cannot evaluate.
fn has_unread_rules(facts: &Facts, family: Family) -> Result<bool, Gap> {
    let is_unread = |seen: &SeenRule| seen.lookup().is_none() && seen.rule.family == family;
    Ok(facts.observed.rules()?.iter().any(is_unread))
}

/// This node's own addresses without a default route in a table of their own, on outward links that no such table uses.
fn unserved(facts: &Facts, family: Family, elsewhere: &Elsewhere) -> Result<BTreeSet<IpAddr>, Gap> {
    let topology = facts.topology();
    let own = facts.observed.addresses()?.iter().filter(|it| it.global && Family::of(it.local) == family);
    let own: Vec<_> =
        own.filter(|it| !elsewhere.sources.contains(&it.local) && !elsewhere.links.contains(&it.index)).collect();
    let outward = topology.outward(own.iter().map(|it| it.index))?;
    Ok(sorted::set(own.iter().filter(|it| outward.contains(&it.index)).map(|it| it.local)))
}

/// A table of the VPC CNI uses one uplink, but its pods are only in the subnet of another.
pub fn table_by_other_uplink(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let topology = facts.topology();
    let (rules, pods) = (topology.vpc_pod_rules()?, topology.vpc_pods()?);
    let mut found = Vec::new();
    for (family, table) in topology.vpc_tables()? {
        let exits = exits_of(facts.table(family, table)?);
        // A link without a subnet says nothing about its pods.
        let mut has_subnets = !exits.is_empty();
        for exit in &exits {
            has_subnets &= !topology.subnets(*exit, family)?.is_empty();
        }
        if !has_subnets {
            continue;
        }
        let subnets = topology.connected_subnets(family)?;
        let (mut strangers, mut theirs) = (Vec::new(), BTreeSet::new());
        for (pod, rules) in rules.from.iter().filter(|(pod, _)| Family::of(**pod) == family && pods.contains_key(*pod))
        {
            let holders = subnets.holders(*pod);
            // For a pod with several rules, another check finds the stale one.
            let is_led = matches!(rules.as_slice(), [rule] if rule.table == table);
            let elsewhere = !holders.is_empty() && holders.is_disjoint(&exits);
            if is_led && elsewhere && topology.outward(holders.iter().copied())? == holders {
                strangers.push(*pod);
                theirs.extend(holders);
            }
        }
        if strangers.is_empty() {
            continue;
        }
        let evidence = format!(
            "table {table} uses {}, but its pods {} are in the subnet of {}: the network drops what they send there, \
             because their addresses belong to another network interface",
            facts.names_of(exits)?,
            shortened(&strangers),
            facts.names_of(theirs)?
        );
        let cure = format!("# recreate the pods {} (kubectl delete pod): no route helps", listed(&strangers));
        found.push(Finding::new(evidence, None, cure));
    }
    Ok(found)
}

fn listed(pods: &[IpAddr]) -> String {
    pods.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// A table with a default route that no rule uses, on a node with pods of a network plugin other than the VPC CNI.
pub fn table_without_rule(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let topology = facts.topology();
    if topology.is_vpc_cni()? {
        return Ok(Vec::new());
    }
    let Some(plugin) = topology.other_cni()? else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for family in [Family::V4, Family::V6] {
        if !has_pods_without_rules(facts, family)? {
            continue;
        }
        if has_unread_rules(facts, family)? {
            continue; // the table of such a rule is not known
        }
        let led = sorted::set(facts.rules()?.into_iter().filter(|it| it.family == family).map(|rule| rule.table));
        let main = links_of(&topology.main_defaults(family)?);
        let sets = [PROTO_BOOT, PROTO_STATIC].map(|protocol| RouteSet::Protocol(family, protocol));
        let routes = facts.observed.routes(sets)?.into_iter().flatten();
        for route in
            routes.filter(|it| it.to.network_length() == 0 && !is_kernels(it.table) && !led.contains(&it.table))
        {
            let owner = topology.owner_of_table(family, route.table)?;
            let by = links_of([route]);
            if owner != Owner::Hand || by.is_empty() || !by.is_disjoint(&main) {
                continue;
            }
            let evidence = format!(
                "table {} has an {family} default route by {}, but no rule uses it; {plugin} is here, and such tables \
                 have rules for single pods: they may have been removed, as by systemd-networkd when it restarts",
                table_name(route.table),
                facts.names_of(by)?
            );
            let cure = "# find out what removed the rules; the program that created the table adds them when it starts";
            found.push(Finding::new(evidence, None, cure.into()));
        }
    }
    Ok(found)
}

/// Whether there are pods, but no rule for any of them. A plugin keeps the table of an uplink without pods, so a table
/// without a rule alone proves nothing. Behind one gateway interface pods have no routes of their own; then no rule may
/// be for any single address.
fn has_pods_without_rules(facts: &Facts, family: Family) -> Result<bool, Gap> {
    let topology = facts.topology();
    let mut pods = topology.pods()?;
    pods.retain(|pod, _| Family::of(*pod) == family);
    let rules = facts.rules()?.into_iter().filter(|rule| rule.family == family);
    let named: Vec<IpAddr> =
        rules.flat_map(|rule| [host(rule.selector.from.as_ref()), host(rule.selector.to.as_ref())]).flatten().collect();
    if !pods.is_empty() {
        return Ok(!named.iter().any(|address| pods.contains_key(address)));
    }
    let shared = |name: &[u8]| name == b"cilium_host" || name.starts_with(b"ovn-k8s-mp");
    Ok(named.is_empty() && facts.names()?.values().any(|name| shared(name.as_bytes())))
}
