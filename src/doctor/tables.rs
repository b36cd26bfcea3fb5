//! Causes in the tables that policy rules lead to.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Finding;
use super::facts::{Facts, shortened};
use crate::change::Change;
use crate::net::{Family, PROTO_STATIC, Rule, UPLINK_RULE_PRIORITY, table_name};
use crate::observed::{Gap, RouteSet, SeenRoute, SeenRule};
use crate::reconcile::default_routes;
use crate::reconcile::gateway::{self, Verdict};
use crate::sorted;
use crate::topology::owners::Owner;
use crate::topology::starting_rules::EVERYTHING;
use crate::topology::{Topology, has_default, host, is_kernels, sends};

/// `RTPROT_BOOT`, which programs give to their routes that have no number of their own.
const PROTO_BOOT: u8 = 3;

/// A policy table whose sources, or what comes in by whose links, have no way out.
pub struct Broken<'a> {
    pub family: Family,
    what: default_routes::Broken,
    routes: &'a [SeenRoute],
    owner: Owner,
}

impl Broken<'_> {
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

    /// Whether each of its sources is an address of this node that has routes to some networks by its own interface, as to
    /// a storage network, in a table that its program does not always give a default.
    fn is_deliberate(&self, topology: Topology) -> Result<bool, Gap> {
        let has_always =
            matches!(self.owner, Owner::VpcCni | Owner::Nodeadm | Owner::Ec2NetUtils | Owner::NmCloudSetup);
        if has_always || !self.what.links.is_empty() {
            return Ok(false);
        }
        let used = sorted::set(self.routes.iter().flat_map(SeenRoute::hops).filter_map(|hop| hop.oif));
        for source in self.sources() {
            if topology.carriers(*source)?.is_disjoint(&used) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The links by which the defaults of a table leave.
pub fn exits(routes: &[SeenRoute]) -> BTreeSet<u32> {
    let defaults = routes.iter().filter(|route| route.is_of_default_class());
    sorted::set(defaults.flat_map(SeenRoute::hops).filter_map(|hop| hop.oif))
}

fn broken<'a>(facts: &'a Facts) -> Result<Vec<Broken<'a>>, Gap> {
    let mut found = Vec::new();
    for (family, what) in default_routes::broken(facts.desired, &facts.observed)? {
        let routes = facts.table(family, what.table)?;
        let used = routes.iter().flat_map(SeenRoute::hops).filter_map(|hop| hop.oif);
        // The table of a VRF is its master's.
        if !facts.observed.links(used)?.into_iter().flatten().any(|link| link.vrf_slave) {
            let owner = facts.topology().owner_of_table(family, what.table)?;
            found.push(Broken { family, what, routes, owner });
        }
    }
    Ok(found)
}

/// The commands that mend a table; or what to do where its gateway is not certain.
fn mend(facts: &Facts, broken: &Broken) -> Result<String, Gap> {
    // What node-fixer may do itself is not asked here.
    let plan = default_routes::plan_of(&[broken.family], facts.desired, &facts.observed)?;
    let ours = plan.steps.iter().filter(|step| match &step.change {
        Change::AddRoute(route) => (route.family(), route.table) == (broken.family, broken.table()),
        _ => false,
    });
    let commands: Vec<String> = ours.map(|step| step.change.to_string()).collect();
    if !commands.is_empty() {
        return Ok(commands.join(" && "));
    }
    Ok(match gateway::find(facts.topology(), broken.family, &broken.what)? {
        Verdict::Blocked(because) => format!("# {because}"),
        Verdict::Known(_) | Verdict::OfVrf => {
            format!("# a source of table {} gets its way out by another of its tables", broken.table())
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
            "the CNI's second add failed, or a network manager removed the default alone. The CNI does not try again"
        } else {
            "the default was never added, or a network manager removed it alone"
        };
        let evidence = format!(
            "{}; it has {only} {}: {how}. {} leaves by the main table's default",
            broken.complaint(),
            shortened(host_routes.iter().map(|route| route.to.first_address())),
            if broken.sources().is_empty() { "What comes from there" } else { "What these sources send" },
        );
        found.push(Finding::new(evidence, None, mend(facts, &broken)?));
    }
    Ok(found)
}

pub fn table_without_default(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let mut found = Vec::new();
    for broken in broken(facts)? {
        if broken.routes.len() == broken.host_routes().len() {
            continue;
        }
        let cure = mend(facts, &broken)?;
        // What is certain enough for a run to add is told as well.
        if !cure.starts_with('#') || !broken.is_deliberate(facts.topology())? {
            let routes = broken.routes.iter().map(|route| route.to);
            let evidence = format!("{}; it leads only to {}", broken.complaint(), shortened(routes));
            found.push(Finding::new(evidence, None, cure));
        }
    }
    Ok(found)
}

/// Empty tables that rules lead to, with the sources that are still here: pods with a route, addresses of this node.
pub fn empty<'a>(facts: &'a Facts) -> Result<Vec<(Broken<'a>, BTreeSet<IpAddr>)>, Gap> {
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
        let mut evidence = format!("{}, nor any other route", broken.complaint());
        if !alive.is_empty() {
            let are = if alive.len() == 1 { "is" } else { "are" };
            evidence += &format!(", and {} {are} still here", shortened(&alive));
        }
        evidence += &match gone(facts, &broken)? {
            Some(lost) => format!(
                ": no interface here has {lost}, the address of its rule {UPLINK_RULE_PRIORITY}, so that its network \
                 interface was taken away while it was in use, or has lost its address. No route helps"
            ),
            None => {
                ": the kernel drops an interface's routes from all tables when it goes down or loses its last address; \
                     who took it down or renumbered it, brought back none of them"
                    .to_owned()
            }
        };
        found.push(Finding::new(evidence, None, mend(facts, &broken)?));
    }
    Ok(found)
}

/// The address of the uplink that an empty table of the VPC CNI was for, where no interface has it any more.
fn gone(facts: &Facts, broken: &Broken) -> Result<Option<IpAddr>, Gap> {
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

/// Main has no default of a family while tables of single sources have one.
pub fn main_without_default(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let mut found = Vec::new();
    for family in [Family::V4, Family::V6] {
        found.extend(without_default(facts, family)?);
    }
    Ok(found)
}

/// The ways out that tables of single sources have.
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
            return Ok(None); // that table is what leads out, and not main
        }
        let Some((source, table)) = sends(rule) else { continue };
        let hops = routes.iter().filter(|route| route.is_of_default_class()).flat_map(SeenRoute::hops);
        elsewhere.gateways.extend(hops.clone().filter_map(|hop| hop.via));
        elsewhere.links.extend(hops.filter_map(|hop| hop.oif));
        elsewhere.sources.insert(source);
        elsewhere.tables.insert(table);
    }
    let is_vpc_cni = topology.is_vpc_cni()?;
    // What a rule says that cannot be read here may lead everything elsewhere; the CNI has none that does.
    let is_unread = |rule: &SeenRule| matches!(rule, SeenRule::Other { family: of, .. } if *of == family);
    if elsewhere.links.is_empty() || !is_vpc_cni && facts.observed.rules()?.iter().any(is_unread) {
        return Ok(None);
    }
    let left = unserved(facts, family, &elsewhere)?;
    if left.is_empty() {
        return Ok(None); // each address has a table of its own, and main no default on purpose
    }
    let evidence = format!(
        "the main table has no {family} default route, while {} {} one{}: what this node sends from {}{} finds no way out",
        if elsewhere.tables.len() == 1 { "table" } else { "tables" },
        shortened(&elsewhere.tables) + if elsewhere.tables.len() == 1 { " has" } else { " have" },
        if elsewhere.gateways.is_empty() {
            String::new()
        } else {
            format!(" (via {})", shortened(&elsewhere.gateways))
        },
        shortened(left),
        if is_vpc_cni { ", and the pods of the first uplink," } else { "" }
    );
    let cure = "# have the network manager of the first uplink set its default route again, as by a new lease or a router's \
        advertisement; node-fixer keeps it where it is declared under routes";
    Ok(Some(Finding::new(evidence, None, cure.into())))
}

/// This node's own addresses that have no way out by a table of their own, on links that lead out and that no such table
/// leads over.
fn unserved(facts: &Facts, family: Family, elsewhere: &Elsewhere) -> Result<BTreeSet<IpAddr>, Gap> {
    let topology = facts.topology();
    let own = facts.observed.addresses()?.iter().filter(|it| it.global && Family::of(it.local) == family);
    let own: Vec<_> =
        own.filter(|it| !elsewhere.sources.contains(&it.local) && !elsewhere.links.contains(&it.index)).collect();
    let outward = topology.outward(own.iter().map(|it| it.index))?;
    Ok(sorted::set(own.iter().filter(|it| outward.contains(&it.index)).map(|it| it.local)))
}

/// A table of the VPC CNI leads by one uplink, and its pods lie in the subnet of another alone.
pub fn table_by_other_uplink(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let topology = facts.topology();
    let (rules, pods) = (topology.vpc_pod_rules()?, topology.vpc_pods()?);
    let mut found = Vec::new();
    for (family, table) in topology.vpc_tables()? {
        let exits = exits(facts.table(family, table)?);
        // A link without a subnet tells nothing of whose pods are whose.
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
            // Of several rules of a pod another check tells the stale one.
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
            "table {table} leads by {}, but its pods {} lie in the subnet of {}: the network drops what they send there, for \
             their addresses belong to another network interface",
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

/// A table with a way out that no rule leads to, beside pods of another network plugin than the VPC CNI.
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
        let rules = facts.observed.rules()?;
        let unread = |rule: &SeenRule| matches!(rule, SeenRule::Other { family: of, .. } if *of == family);
        if rules.iter().any(unread) {
            continue; // which table such a rule leads to cannot be known
        }
        let led = sorted::set(facts.rules()?.into_iter().filter(|it| it.family == family).map(|rule| rule.table));
        let main = topology.main_defaults(family)?;
        let main = sorted::set(main.iter().flat_map(SeenRoute::hops).filter_map(|hop| hop.oif));
        let sets = [PROTO_BOOT, PROTO_STATIC].map(|protocol| RouteSet::Protocol(family, protocol));
        let routes = facts.observed.routes(sets)?.into_iter().flatten();
        for route in
            routes.filter(|it| it.to.network_length() == 0 && !is_kernels(it.table) && !led.contains(&it.table))
        {
            let owner = topology.owner_of_table(family, route.table)?;
            let by = sorted::set(route.hops().iter().filter_map(|hop| hop.oif));
            if owner != Owner::Hand || by.is_empty() || !by.is_disjoint(&main) {
                continue;
            }
            let evidence = format!(
                "table {} has an {family} default route by {}, and no rule leads to it, so that nothing takes this way; \
                 {plugin} is here, and such tables are made for rules of single pods: something may have removed them, as \
                 systemd-networkd does when it restarts",
                table_name(route.table),
                facts.names_of(by)?
            );
            let cure = "# find what removed the rules; the program that made the table makes them when it starts";
            found.push(Finding::new(evidence, None, cure.into()));
        }
    }
    Ok(found)
}

/// Whether there are pods, and no rule for any of them. A plugin keeps the table of an uplink that no pod uses: a table
/// without a rule alone tells nothing. Behind one gateway interface pods have no routes of their own; there no rule may be
/// for any single address.
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
