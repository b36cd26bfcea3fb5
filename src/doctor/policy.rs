//! Causes in policy rules and their tables.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Finding;
use super::facts::{FROM_POD, Facts, MARK, MARKED, Pods, TO_POD, family_of_host, host, shortened};
use crate::change::Change;
use crate::net::{Family, Rule, Selector, SysctlKey, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN, UPLINK_RULE_PRIORITY};
use crate::observed::{Address, Gap, SeenRoute, Target};
use crate::reconcile::default_routes;
use crate::sorted;

pub fn kernel_rules_missing(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let rules = facts.rules()?;
    let everything = everything();
    let mut found = Vec::new();
    for family in [Family::V4, Family::V6] {
        // Without any there is no IPv6 here at all.
        if !rules.iter().any(|rule| rule.family == family) {
            continue;
        }
        // Others move them, Cilium and the CNI's strict mode that of the local table: what counts is that it is there.
        let missing = |table| {
            !rules.iter().any(|rule| (rule.family, rule.table) == (family, table) && rule.selector == everything)
        };
        for (priority, table, matters) in [
            (0, TABLE_LOCAL, "packets to this node's own addresses find no way in"),
            (32766, TABLE_MAIN, "what no other rule takes finds no route"),
            (32767, TABLE_DEFAULT, "what the main table has no route for finds no other"),
        ] {
            // IPv6 has only the first two.
            if (family, table) != (Family::V6, TABLE_DEFAULT) && missing(table) {
                let rule = Rule { family, priority, selector: everything.clone(), table, protocol: 2 };
                let evidence = format!(
                    "no {family} rule leads all packets to table {}, as the kernel's rule {priority} did: {matters}",
                    crate::net::table_name(table)
                );
                found.push(Finding::new(evidence, None, rule.command("add")));
            }
        }
    }
    Ok(found)
}

/// What takes all packets.
fn everything() -> Selector {
    Selector { from: None, to: None, fwmark: None, iif: None, oif: None }
}

/// The pods whose rules somebody removed: all of them at once, though pods that came later may have theirs. (A few
/// without, or one whose subnet's other pods have theirs, are another matter.)
fn flushed(facts: &Facts) -> Result<BTreeSet<IpAddr>, Gap> {
    let pods = facts.pods()?;
    let links = facts.pod_links()?;
    let here = pods.routes.iter().filter(|(_, index)| links.contains_key(index)).map(|(pod, _)| *pod);
    let here: Vec<IpAddr> = here.collect();
    let lacking = sorted::set(here.iter().copied().filter(|pod| !pods.from.contains_key(pod)));
    let bare = sorted::set(lacking.iter().copied().filter(|pod| !pods.to.contains_key(pod)));
    let at_once = bare.len() > 1 && 2 * bare.len() >= here.len();
    let mut flushed = if at_once || !pods.are_of_vpc_cni() { bare } else { BTreeSet::new() };
    for pod in lacking {
        // Its rule 512 somebody has put back.
        if is_of_secondary_subnet(facts, pod)? && of_neighbours(facts, &pods, pod)?.is_empty() {
            flushed.insert(pod);
        }
    }
    Ok(flushed)
}

/// The rules 1536 of the other pods that are here and of the same subnet.
fn of_neighbours<'a>(facts: &Facts, pods: &Pods<'a>, pod: IpAddr) -> Result<Vec<&'a Rule>, Gap> {
    let subnets = facts.observed.addresses()?.iter().map(|it| it.subnet);
    let around: Vec<_> = subnets.filter(|subnet| !subnet.is_host_address() && subnet.contains(&pod)).collect();
    let near = |other: &IpAddr| pods.routes.contains_key(other) && around.iter().any(|subnet| subnet.contains(other));
    let rules = pods.from.iter().filter(|(other, _)| **other != pod && near(other));
    Ok(rules.flat_map(|(_, rules)| rules).copied().collect())
}

/// The rule 1536 that a pod lacks, where those of its subnet's other pods leave no doubt about it.
fn from_pod(facts: &Facts, pods: &Pods, pod: IpAddr) -> Result<Option<Rule>, Gap> {
    if pods.from.contains_key(&pod) || !is_of_secondary_subnet(facts, pod)? {
        return Ok(None);
    }
    let of_pod = |rule: &Rule| {
        let selector = Selector { from: Some(cidr::IpCidr::new_host(pod)), ..rule.selector.clone() };
        Rule { selector, ..rule.clone() }
    };
    let mut rules = of_neighbours(facts, pods, pod)?.into_iter().map(of_pod);
    let first = rules.next();
    Ok(first.filter(|first| rules.all(|rule| rule == *first)))
}

/// Whether an address is of the subnet of an uplink that is not the first one, and the first one has no such subnet.
fn is_of_secondary_subnet(facts: &Facts, address: IpAddr) -> Result<bool, Gap> {
    let main = facts.table(family_of_host(address), TABLE_MAIN)?;
    let defaults = main.iter().filter(|route| route.to.network_length() == 0);
    let first = sorted::set(defaults.flat_map(SeenRoute::hops).filter_map(|hop| hop.oif));
    let addresses = facts.observed.addresses()?.iter();
    let around = addresses.filter(|it| !it.subnet.is_host_address() && it.subnet.contains(&address));
    let around = sorted::set(around.map(|it| it.index));
    Ok(!first.is_empty() && !around.is_empty() && around.is_disjoint(&first))
}

pub fn rules_flushed(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let flushed = flushed(facts)?;
    if flushed.is_empty() {
        return Ok(Vec::new());
    }
    let which = if facts.pods()?.are_of_vpc_cni() {
        format!("whose rules {TO_POD} and {FROM_POD}, or one of them, are gone")
    } else {
        format!("and there is not one rule {TO_POD} or {FROM_POD}")
    };
    let evidence = format!(
        "the main table has routes to {} pods ({}), {which}: something removed them all at once, as systemd-networkd does \
         when it restarts, or nm-cloud-setup. The CNI does not make them again",
        flushed.len(),
        shortened(&flushed)
    );
    let cure = "# recreate the pods of this node, after the cause is cured: kubectl drain NODE --ignore-daemonsets, \
        then kubectl uncordon NODE";
    Ok(vec![Finding::new(evidence, None, cure.into())])
}

/// A policy table whose sources have no way out.
struct Broken<'a> {
    family: Family,
    table: u32,
    sources: BTreeSet<IpAddr>,
    routes: &'a [SeenRoute],
}

impl Broken<'_> {
    fn complaint(&self) -> String {
        format!("table {} has no {} default route for {}", self.table, self.family, shortened(&self.sources))
    }

    fn host_routes(&self) -> Vec<&SeenRoute> {
        self.routes
            .iter()
            .filter(|route| route.to.is_host_address() && route.via().is_none() && route.oif().is_some())
            .collect()
    }
}

fn broken<'a>(facts: &'a Facts) -> Result<Vec<Broken<'a>>, Gap> {
    let mut found = Vec::new();
    for (family, default_routes::Broken { table, sources, .. }) in
        default_routes::broken(facts.desired, &facts.observed)?
    {
        let routes = facts.table(family, table)?;
        let used = routes.iter().flat_map(SeenRoute::hops).filter_map(|hop| hop.oif);
        // The table of a VRF is its master's.
        if !facts.observed.links(used)?.into_iter().flatten().any(|link| link.vrf_slave) {
            found.push(Broken { family, table, sources, routes });
        }
    }
    Ok(found)
}

/// The commands that mend a table; or what to do where its gateway is not certain.
fn mend(facts: &Facts, broken: &Broken) -> Result<String, Gap> {
    // What node-fixer may do itself is not asked here.
    let plan = default_routes::plan_of(&[broken.family], facts.desired, &facts.observed)?;
    let ours = plan.steps.iter().filter(|step| match &step.change {
        Change::AddRoute(route) => (route.family(), route.table) == (broken.family, broken.table),
        _ => false,
    });
    let commands: Vec<String> = ours.map(|step| step.change.to_string()).collect();
    Ok(if commands.is_empty() {
        format!(
            "# nothing tells the gateway for certain; node-fixer --dry-run says what it found, where default_routes is on. Add \
             it by hand: {} route add default via GATEWAY dev DEV table {}",
            broken.family.ip_command(),
            broken.table
        )
    } else {
        commands.join(" && ")
    })
}

pub fn table_host_route_only(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let mut found = Vec::new();
    for broken in broken(facts)? {
        let host_routes = broken.host_routes();
        if host_routes.is_empty() || host_routes.len() != broken.routes.len() {
            continue;
        }
        let to: Vec<_> = host_routes.iter().map(|route| route.to.first_address()).collect();
        let evidence = format!(
            "{}; it has only the host route to {}: the CNI's second add failed, or a network manager removed the default \
             alone. The CNI does not try again. What these sources send leaves by the main table's default",
            broken.complaint(),
            shortened(to)
        );
        found.push(Finding::new(evidence, None, mend(facts, &broken)?));
    }
    Ok(found)
}

pub fn table_without_default(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let mut found = Vec::new();
    for broken in broken(facts)? {
        // One that has this node's own addresses reach some networks, storage for instance, is meant to be so.
        let local = facts.observed.addresses()?;
        let deliberate = broken.sources.iter().all(|source| local.iter().any(|address| address.local == *source));
        if broken.routes.len() > broken.host_routes().len() && !deliberate {
            let routes = broken.routes.iter().map(|route| route.to);
            let evidence = format!("{}; it leads only to {}", broken.complaint(), shortened(routes));
            found.push(Finding::new(evidence, None, mend(facts, &broken)?));
        }
    }
    Ok(found)
}

/// Empty tables that rules lead to, with the sources that are still here: pods with a route, addresses of this node.
fn empty<'a>(facts: &'a Facts) -> Result<Vec<(Broken<'a>, BTreeSet<IpAddr>)>, Gap> {
    let pods = facts.pods()?;
    let mut found = Vec::new();
    for broken in broken(facts)? {
        if !broken.routes.is_empty() {
            continue;
        }
        let local = sorted::set(facts.observed.addresses()?.iter().map(|address| address.local));
        let here = |source: &&IpAddr| local.contains(*source) || pods.routes.contains_key(*source);
        let alive = sorted::set(broken.sources.iter().filter(here).copied());
        found.push((broken, alive));
    }
    Ok(found)
}

pub fn table_flushed(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let mut found = Vec::new();
    for (broken, alive) in empty(facts)? {
        if alive.is_empty() {
            continue;
        }
        let evidence = format!(
            "{}, nor any other route, and {} {} still here: the kernel drops an interface's routes from all tables when it \
             goes down or loses its last address; who took it down or renumbered it, brought back none of them",
            broken.complaint(),
            shortened(&alive),
            if alive.len() == 1 { "is" } else { "are" }
        );
        found.push(Finding::new(evidence, None, mend(facts, &broken)?));
    }
    Ok(found)
}

pub fn leaked_rules(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    // What another's rule waits for, a tunnel that is down for instance, nobody can know here. But what the VPC CNI has a
    // rule for is a pod or an address of this node.
    if !facts.pods()?.are_of_vpc_cni() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for (broken, alive) in empty(facts)? {
        if !alive.is_empty() {
            continue;
        }
        let of_cni = |rule: &&Rule| matches!(rule.priority, FROM_POD | UPLINK_RULE_PRIORITY);
        let to_it = |rule: &&Rule| (rule.family, rule.table) == (broken.family, broken.table);
        let mut gone = BTreeSet::new();
        let mut rules = Vec::new();
        for rule in facts.rules()?.into_iter().filter(of_cni).filter(to_it) {
            if let Some(source) = host(rule.selector.from.as_ref()).filter(|source| broken.sources.contains(source)) {
                gone.insert(source);
                rules.push(rule.command("del"));
            }
        }
        if rules.is_empty() {
            continue;
        }
        let evidence = format!(
            "table {} has no {} route, and rules lead {} to it, which is neither a pod with a route nor an address of this \
             node: whoever made them did not take them away",
            broken.table,
            broken.family,
            shortened(gone)
        );
        found.push(Finding::new(evidence, None, rules.join("\n")));
    }
    Ok(found)
}

pub fn pod_address_local(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let pods = facts.pods()?;
    let links = facts.pod_links()?;
    let is_pod = |address: &IpAddr| {
        // A rule alone may be a policy for an address that is this node's own.
        pods.routes.get(address).is_some_and(|index| links.contains_key(index))
    };
    let mut found = Vec::new();
    let addresses = facts.observed.addresses()?;
    for address in addresses.iter().filter(|address| is_pod(&address.local)) {
        let name = facts.name_of(address.index)?;
        let evidence = format!(
            "{} is a pod's address by its route, and an address of {name} as well: this node takes the \
             pod's packets for its own. A network manager has configured all addresses of the interface, as cloud-init, \
             nm-cloud-setup and ec2-net-utils do",
            address.local
        );
        // The first address of a subnet takes the others along when it goes, and the last one the interface's routes.
        let behind = |it: &&Address| it.secondary && (it.index, it.subnet) == (address.index, address.subnet);
        let mut cure = String::new();
        if !address.secondary
            && addresses.iter().any(|it| behind(&it))
            && let Some(Some(name)) = facts.observed.names([address.index])?.first()
        {
            cure = SysctlKey::conf_of(name, "promote_secondaries").command("1") + " && ";
        }
        cure += &format!("ip addr del {}/{} dev {name}", address.local, address.length);
        found.push(Finding::new(evidence, None, cure));
    }
    Ok(found)
}

pub fn pod_without_rule(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let pods = facts.pods()?;
    let links = facts.pod_links()?;
    if !pods.are_of_vpc_cni() {
        return Ok(Vec::new());
    }
    let flushed = flushed(facts)?;
    let (mut to, mut from) = (Vec::new(), Vec::new());
    for (pod, index) in &pods.routes {
        let Some(name) = links.get(index).filter(|_| !flushed.contains(pod)) else { continue };
        if !pods.to.contains_key(pod) {
            to.push((format!("{pod} ({name})"), to_pod(*pod)));
        }
        if let Some(rule) = from_pod(facts, &pods, *pod)? {
            from.push((format!("{pod} ({name})"), rule));
        }
    }
    let matter_to = format!(
        "no rule {TO_POD} does, as for the node's other pods: what pods of secondary uplinks send there leaves the node \
         instead, and comes back as a martian"
    );
    let matter_from = format!(
        "no rule {FROM_POD} leads from there to the table of the uplink, as for the other pods of the subnet: what is sent \
         from there to the world leaves by the first uplink"
    );
    let mut found = Vec::new();
    for (lacking, matter) in [(to, matter_to), (from, matter_from)] {
        if !lacking.is_empty() {
            let named = shortened(lacking.iter().map(|(pod, _)| pod));
            let rules: Vec<String> = lacking.iter().map(|(_, rule)| rule.command("add")).collect();
            let evidence = format!("the main table leads to {named}, and {matter}");
            found.push(Finding::new(evidence, None, rules.join("\n")));
        }
    }
    Ok(found)
}

fn to_pod(pod: IpAddr) -> Rule {
    let selector = Selector { to: Some(cidr::IpCidr::new_host(pod)), ..everything() };
    Rule { family: family_of_host(pod), priority: TO_POD, selector, table: TABLE_MAIN, protocol: 0 }
}

pub fn rule_without_pod(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let pods = facts.pods()?;
    // Pods with a security group have their routes in a table of their branch interface.
    let mut to_hosts = facts.host_routes()?;
    to_hosts.retain(|route| route.target != Target::Special);
    let routed = sorted::set(to_hosts.iter().map(|route| route.to.first_address()));
    let leaked: Vec<(&IpAddr, &&Rule)> = pods.to.iter().filter(|(pod, _)| !routed.contains(pod)).collect();
    if leaked.is_empty() {
        return Ok(Vec::new());
    }
    let mut evidence = format!(
        "rules {TO_POD} lead to {}, and no table has a route to it: the pod is gone and its rule was left, or the pod is \
         there and lost its route",
        shortened(leaked.iter().map(|(pod, _)| pod))
    );
    let from = leaked.iter().filter_map(|(pod, _)| pods.from.get(pod)).flatten();
    let rules = leaked.iter().map(|(_, rule)| *rule).chain(from);
    let commands = rules.map(|rule| rule.command("del"));
    let mut cure = String::from("# where `crictl pods` and `kubectl get pods -o wide` know no such pod:");
    // Whose pod may be alive: its routes went with the interface, or have not come yet.
    let used = sorted::set(to_hosts.iter().flat_map(|route| route.hops()).filter_map(|hop| hop.oif));
    let idle: Vec<u32> = facts.pod_links()?.into_keys().filter(|index| !used.contains(index)).collect();
    let idle: Vec<_> = facts.observed.links(idle)?.into_iter().flatten().collect();
    let mut mark = "";
    if !idle.is_empty() {
        let named = idle.iter().map(|link| format!("{} ({})", link.dev.name, if link.up { "up" } else { "down" }));
        evidence += &format!("; no route leads to {}: one of these pods may be behind it", shortened(named));
        cure = format!(
            "# a pod behind an interface without a route may be alive: recreate it (kubectl delete pod)\n{cure}"
        );
        mark = "# ";
    }
    commands.for_each(|command| cure += &format!("\n{mark}{command}"));
    Ok(vec![Finding::new(evidence, None, cure)])
}

pub fn mark_rule_missing(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let pods = facts.pods()?;
    // Only where pods have a secondary uplink does it matter which way a marked packet goes.
    if !pods.from.keys().any(IpAddr::is_ipv4) || !pods.to.keys().any(IpAddr::is_ipv4) {
        return Ok(Vec::new());
    }
    let marked = |rule: &&Rule| {
        rule.family == Family::V4
            && rule.selector.fwmark == Some(MARK)
            && rule.table == TABLE_MAIN
            && rule.priority < FROM_POD
    };
    if facts.rules()?.iter().any(marked) {
        return Ok(Vec::new());
    }
    let selector = Selector { fwmark: Some(MARK), ..everything() };
    let rule = Rule { family: Family::V4, priority: MARKED, selector, table: TABLE_MAIN, protocol: 0 };
    let evidence = format!(
        "the CNI has its rules {TO_POD} ({} pods) and {FROM_POD} ({}) here, and none of priority {MARKED} for the mark 0x80: \
         replies of these pods to what came in by a node port leave by the wrong uplink. (It is missing by intention only \
         where AWS_VPC_K8S_CNI_EXTERNALSNAT is true and AWS_VPC_CNI_NODE_PORT_SUPPORT false)",
        pods.to.len(),
        pods.from.len()
    );
    Ok(vec![Finding::new(evidence, None, rule.command("add"))])
}
