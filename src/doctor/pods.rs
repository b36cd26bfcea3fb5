//! Causes in the rules, routes and addresses of the VPC CNI's pods.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cidr::IpCidr;

use super::Finding;
use super::facts::{Facts, shortened};
use super::managers::{self, networkd};
use crate::config::Mode;
use crate::model::{
    EVERYTHING, Family, PROTO_DECLARED, PROTO_KERNEL, PROTO_RESTORED, Rule, Selector, SysctlKey, TABLE_MAIN,
    UPLINK_RULE_PRIORITY,
};
use crate::observed::{Address, Gap, SeenRoute};
use crate::sorted;
use crate::topology::cni::{FROM_POD, TO_POD};
use crate::topology::pods::Site;
use crate::topology::vpc::CniRulesOfPods;
use crate::topology::{exits_of, host, links_of};

/// The pods of the main table, and their rules. Pods behind branch links have other rules.
struct Here<'a> {
    pods: BTreeMap<IpAddr, Site>,
    rules: CniRulesOfPods<'a>,
    /// The uplinks in whose subnet each pod is, unless it is in a subnet of the first uplink.
    secondary: BTreeMap<IpAddr, BTreeSet<u32>>,
    /// The rules 1536 of the pods of such uplinks, by family and uplinks.
    of_subnet: BTreeMap<(Family, BTreeSet<u32>), OfSubnet>,
}

/// The rules 1536 of a subnet's pods, apart from the pod's address.
enum OfSubnet {
    /// All are the same; this is the first of them.
    Same(Rule),
    /// They differ.
    Mixed,
}

impl<'a> Here<'a> {
    fn of(facts: &'a Facts) -> Result<Here<'a>, Gap> {
        let topology = facts.topology();
        let (rules, mut pods) = (topology.vpc_pod_rules()?, topology.vpc_pods()?);
        pods.retain(|_, site| site.table == TABLE_MAIN);
        let first = topology.first_uplinks()?;
        let mut secondary = BTreeMap::new();
        for family in [Family::V4, Family::V6] {
            let subnets = topology.connected_subnets(family)?;
            for pod in pods.keys().filter(|pod| Family::of(**pod) == family) {
                let holders = subnets.holders(*pod);
                if !first.is_empty() && !holders.is_empty() && holders.is_disjoint(&first) {
                    secondary.insert(*pod, holders);
                }
            }
        }
        let mut of_subnet = BTreeMap::new();
        for (pod, rule) in rules.from.iter().flat_map(|(pod, rules)| rules.iter().map(move |rule| (pod, *rule))) {
            if let Some(around) = secondary.get(pod) {
                let known = of_subnet.entry((Family::of(*pod), around.clone()));
                let known = known.or_insert_with(|| OfSubnet::Same(rule.clone()));
                if !matches!(known, OfSubnet::Same(first) if of_pod(first, *pod) == of_pod(rule, *pod)) {
                    *known = OfSubnet::Mixed;
                }
            }
        }
        Ok(Here { pods, rules, secondary, of_subnet })
    }

    /// The rules 1536 of the other pods in the subnet of a pod that has none.
    fn of_neighbours(&self, pod: IpAddr) -> Option<&OfSubnet> {
        self.of_subnet.get(&(Family::of(pod), self.secondary.get(&pod)?.clone()))
    }

    /// The pods whose rules were removed all at once, though later pods may have theirs. (A few pods without rules, or
    /// one whose subnet's other pods have theirs, are another cause.)
    fn flushed(&self) -> BTreeSet<IpAddr> {
        let lacking = sorted::set(self.pods.keys().copied().filter(|pod| !self.rules.from.contains_key(pod)));
        let bare = sorted::set(lacking.iter().copied().filter(|pod| !self.rules.to.contains_key(pod)));
        let at_once = bare.len() > 1 && 2 * bare.len() >= self.pods.len();
        let without_any = self.rules.to.is_empty() && self.rules.from.is_empty();
        let mut flushed = if at_once || without_any { bare } else { BTreeSet::new() };
        for pod in lacking {
            // Its rule 512 was restored.
            if self.secondary.contains_key(&pod) && self.of_neighbours(pod).is_none() {
                flushed.insert(pod);
            }
        }
        flushed
    }

    /// The missing rule 1536 of a pod, derived from those of its subnet's other pods, if they agree.
    fn rule_of_neighbours(&self, pod: IpAddr) -> Option<Rule> {
        match self.of_neighbours(pod).filter(|_| !self.rules.from.contains_key(&pod))? {
            OfSubnet::Same(rule) => Some(of_pod(rule, pod)),
            OfSubnet::Mixed => None,
        }
    }
}

/// The same rule for another pod.
fn of_pod(rule: &Rule, pod: IpAddr) -> Rule {
    let selector = Selector { from: Some(IpCidr::new_host(pod)), ..rule.selector.clone() };
    Rule { selector, ..rule.clone() }
}

pub fn rules_flushed(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let here = Here::of(facts)?;
    let flushed = here.flushed();
    if flushed.is_empty() {
        return Ok(Vec::new());
    }
    let which = if here.rules.to.is_empty() && here.rules.from.is_empty() {
        format!("and no rule {TO_POD} or {FROM_POD} exists")
    } else {
        format!("whose rules {TO_POD} and {FROM_POD}, or one of them, are gone")
    };
    let evidence = format!(
        "the main table has routes to {} pods ({}), {which}: they were all removed at once, as systemd-networkd (when \
         it restarts) or nm-cloud-setup does. The CNI does not add them again",
        flushed.len(),
        shortened(&flushed)
    );
    let recreate = "# recreate the pods of this node after curing the cause: drain it with kubectl, then uncordon it";
    let cure = match facts.desired.pod_rules.mode {
        Mode::Enforce => format!(
            "# node-fixer restores the rules that are certain (section pod_rules), and reports those that it cannot \
             restore. For these:\n{recreate}"
        ),
        Mode::Observe | Mode::Off => recreate.to_owned(),
    };
    Ok(vec![Finding::new(evidence, None, cure)])
}

/// Rules that node-fixer has restored: they work, but the program that removed them may do so again.
pub fn rules_restored(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let rules = facts.rules()?;
    let restored: Vec<&Rule> = rules.into_iter().filter(|rule| rule.protocol == PROTO_RESTORED).collect();
    let Some(first) = restored.first() else { return Ok(Vec::new()) };
    let evidence = format!(
        "another program has removed {} rules of the CNI, such as {first}; node-fixer restored them, and removes each \
         with its pod",
        restored.len()
    );
    let pods = "# nothing to do for the rules; a recreated pod gets the CNI's own again";
    if let Some(remover) = networkd::removes_rules(facts) {
        let evidence = format!(
            "{evidence}. systemd-networkd runs here with ManageForeignRoutingPolicyRules on, and removes such rules \
             when it restarts"
        );
        let cure = format!("{pods}\n{}", remover.cure);
        return Ok(vec![Finding::new(evidence, remover.place, cure).with(vec![remover.file])]);
    }
    if let Some(place) = managers::unit(facts, "nm-cloud-setup") {
        let evidence = format!("{evidence}. nm-cloud-setup is installed here, and removes such rules");
        let cure = format!("{pods}\n{}", managers::STOP_NM_CLOUD_SETUP);
        return Ok(vec![Finding::new(evidence, Some(place), cure)]);
    }
    let cure = "# no program here is known to remove rules; to see what ran at that time: journalctl -u \
                node-fixer.service RECONCILER=pod_rules";
    Ok(vec![Finding::new(evidence, None, cure.to_owned())])
}

pub fn pod_without_rule(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let here = Here::of(facts)?;
    let flushed = here.flushed();
    let mut found = Vec::new();
    let with_link = |pod: &IpAddr, site: &Site| Ok(format!("{pod} ({})", facts.name_of(site.link)?));
    let (mut to, mut to_cures, mut from, mut from_cures) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (pod, site) in here.pods.iter().filter(|(pod, _)| !flushed.contains(*pod)) {
        if !here.rules.to.contains_key(pod) {
            to.push(with_link(pod, site)?);
            to_cures.push(to_pod(*pod).command("add"));
        }
        if let Some(rule) = here.rule_of_neighbours(*pod) {
            from.push(with_link(pod, site)?);
            // With two uplinks in one subnet, its other pods do not show which is the pod's.
            let holders = here.secondary.get(pod).cloned().unwrap_or_default();
            let leads_by_it = exits_of(facts.table(rule.family, rule.table)?) == holders;
            from_cures.push(if holders.len() == 1 && leads_by_it {
                rule.command("add")
            } else {
                format!("# recreate the pod {pod} (kubectl delete pod): its uplink is not known for certain")
            });
        }
    }
    let matter_to = format!(
        "no rule {TO_POD} names it, unlike the node's other pods: packets to it from pods of secondary uplinks leave \
         the node, and come back as martians"
    );
    let matter_from = format!(
        "no rule {FROM_POD} sends its packets to the table of the uplink, unlike the other pods of the subnet: they \
         leave by the first uplink"
    );
    for (pods, cures, matter) in [(to, to_cures, matter_to), (from, from_cures, matter_from)] {
        if !pods.is_empty() {
            let evidence = format!("the main table has a route to {}, but {matter}", shortened(pods));
            found.push(Finding::new(evidence, None, cures.join("\n")));
        }
    }
    found.extend(super::policy::branch_rule_missing(facts)?);
    Ok(found)
}

fn to_pod(pod: IpAddr) -> Rule {
    let selector = Selector { to: Some(IpCidr::new_host(pod)), ..EVERYTHING };
    Rule { family: Family::of(pod), priority: TO_POD, selector, table: TABLE_MAIN, protocol: 0 }
}

/// The host routes to possible pods, in all tables of rules. IPv6 has routes to every interface; a host route leads to
/// a pod.
pub fn host_routes<'a>(facts: &'a Facts) -> Result<Vec<&'a SeenRoute>, Gap> {
    let tables = facts.named_tables()?;
    let to_hosts = tables.into_values().flatten().filter(|route| route.to.is_host_address());
    Ok(to_hosts.filter(|route| route.special().is_none()).collect())
}

/// The pod interfaces without any route, as text. The pod behind one may be alive: its routes were deleted with the
/// interface, or are not added yet.
pub fn idle(facts: &Facts) -> Result<Vec<String>, Gap> {
    let to_hosts = host_routes(facts)?;
    let used = links_of(to_hosts);
    let links = facts.topology().vpc_pod_links()?;
    let idle = links.into_keys().filter(|index| !used.contains(index));
    let idle = facts.observed.links(idle)?.into_iter().flatten();
    Ok(idle.map(|link| format!("{} ({})", link.dev.name, if link.up { "up" } else { "down" })).collect())
}

pub fn rule_without_pod(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let rules = facts.topology().vpc_pod_rules()?;
    if rules.to.is_empty() {
        return Ok(Vec::new());
    }
    // Pods with a security group have their routes in the table of their branch interface.
    let routed = sorted::set(host_routes(facts)?.iter().map(|route| route.to.first_address()));
    let leaked: Vec<(&IpAddr, &&Rule)> = rules.to.iter().filter(|(pod, _)| !routed.contains(pod)).collect();
    if leaked.is_empty() {
        return Ok(Vec::new());
    }
    let mut evidence = format!(
        "rules {TO_POD} name {}, but no table has a route to it: either the pod is gone and left its rule, or the pod \
         has lost its route",
        shortened(leaked.iter().map(|(pod, _)| pod))
    );
    let from = leaked.iter().filter_map(|(pod, _)| rules.from.get(pod)).flatten();
    let commands = leaked.iter().map(|(_, rule)| *rule).chain(from).map(|rule| rule.command("del"));
    let mut cure = String::from("# if `crictl pods` and `kubectl get pods -o wide` show no such pod:");
    let idle = idle(facts)?;
    let mut mark = "";
    if !idle.is_empty() {
        evidence += &format!("; no route leads to {}: one of these pods may be behind it", shortened(idle));
        cure = format!(
            "# a pod behind an interface without a route may be alive; then recreate it (kubectl delete pod)\n{cure}"
        );
        mark = "# ";
    }
    commands.for_each(|command| cure += &format!("\n{mark}{command}"));
    Ok(vec![Finding::new(evidence, None, cure)])
}

pub fn pod_address_local(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let topology = facts.topology();
    // A rule alone may be a policy for an address of this node.
    let pods = topology.vpc_pods()?;
    let mut found = Vec::new();
    let addresses = facts.observed.addresses()?;
    for address in addresses.iter().filter(|address| pods.contains_key(&address.local)) {
        let name = facts.name_of(address.index)?;
        let evidence = format!(
            "{} is a pod's address according to its route, but also an address of {name}: this node receives the \
             pod's packets itself. A network manager has configured all addresses of the interface, as cloud-init, \
             nm-cloud-setup and ec2-net-utils do",
            address.local
        );
        found.push(Finding::new(evidence, None, unconfigure(facts, address, &name)?));
    }
    Ok(found)
}

/// The command that deletes an address, and nothing else.
fn unconfigure(facts: &Facts, address: &Address, name: &str) -> Result<String, Gap> {
    let topology = facts.topology();
    let addresses = topology.addresses(address.index, Family::of(address.local))?;
    let others: Vec<&Address> = addresses.filter(|it| it.local != address.local).collect();
    // With the last address, the interface loses its routes in all tables.
    let tables = facts.named_tables()?;
    let is_used = |route: &SeenRoute| {
        route.protocol != PROTO_KERNEL && route.hops().iter().any(|hop| hop.oif == Some(address.index))
    };
    if !others.iter().any(|it| it.global) && tables.into_values().flatten().any(is_used) {
        return Ok(format!(
            "# first give {name} its own address: with its last address the kernel drops all of its routes, and the \
             pods' with them; then delete {}/{}",
            address.local, address.length
        ));
    }
    // When the first address of a subnet is deleted, the others are deleted with it.
    let behind = others.iter().any(|it| it.secondary && it.subnet == address.subnet);
    let mut cure = String::new();
    if !address.secondary
        && behind
        && let Some(name) = topology.name(address.index)?
    {
        cure = SysctlKey::conf_of(name, "promote_secondaries").command("1") + " && ";
    }
    Ok(cure + &format!("ip addr del {}/{} dev {name}", address.local, address.length))
}

/// Addresses that a network manager configures for future pods: each pod that gets one is cut off.
pub fn leftover_addresses(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let topology = facts.topology();
    let (uplinks, pods) = (topology.vpc_uplinks()?, topology.pods()?);
    let named = sorted::set(facts.rules()?.into_iter().filter_map(|rule| host(rule.selector.from.as_ref())));
    let of_cni = |rule: &&Rule| rule.priority == UPLINK_RULE_PRIORITY;
    let own =
        sorted::set(facts.rules()?.into_iter().filter(of_cni).filter_map(|rule| host(rule.selector.from.as_ref())));
    let mut found = Vec::new();
    for uplink in uplinks {
        let all: Vec<&Address> = topology.addresses(uplink.index, Family::V4)?.filter(|it| it.global).collect();
        let main: Vec<&&Address> = all.iter().filter(|it| own.contains(&it.local)).collect();
        // An address with another prefix length is not from the cloud's list, but set on purpose.
        let is_left = |it: &&Address| {
            let beside = main.iter().any(|own| (own.subnet, own.length) == (it.subnet, it.length));
            let known = named.contains(&it.local) || pods.contains_key(&it.local);
            beside && !known && it.length < 32 && it.protocol != Some(PROTO_DECLARED)
        };
        let left: Vec<&Address> = all.iter().copied().filter(is_left).collect();
        if left.is_empty() {
            continue;
        }
        let evidence = format!(
            "{} is the CNI's, and has {} in addition to its own address {}: a network manager has configured all \
             addresses of the interface, as cloud-init, nm-cloud-setup and ec2-net-utils do, or did before they were \
             disabled. A pod that gets one of these addresses is unreachable, because this node receives its packets \
             itself",
            uplink.name,
            shortened(left.iter().map(|it| it.local)),
            shortened(main.iter().map(|it| it.local))
        );
        let mut cure = "# if no program of this node uses them:".to_owned();
        for address in left {
            let command = unconfigure(facts, address, &uplink.name.to_string())?;
            cure += &format!("\n# {}", command.trim_start_matches("# "));
        }
        found.push(Finding::new(evidence, None, cure));
    }
    Ok(found)
}
