//! Causes in policy rules.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Finding;
use super::facts::{Facts, shortened};
use super::managers::networkd;
use crate::model::{EVERYTHING, Family, IfName, Rule, Selector, TABLE_LOCAL, TABLE_MAIN, UPLINK_RULE_PRIORITY};
use crate::observed::{Gap, SeenRoute};
use crate::sorted;
use crate::topology::cni::{BRANCH, FROM_POD, MARK, MARKED, TO_POD, is_branch_link, is_branch_pod_link};
use crate::topology::{exits_of, has_default, host, sends_by_link};

pub fn kernel_rules_missing(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let missing = facts.topology().missing_starting_rules()?;
    let remover = networkd::removes_rules(facts).filter(|_| !missing.is_empty());
    let finding = |(at, rule): (usize, &Rule)| {
        let matters = match rule.table {
            TABLE_LOCAL => "packets to this node's own addresses are not delivered",
            TABLE_MAIN => "traffic that matches no other rule has no route",
            _ => "traffic without a route in the main table is not looked up further",
        };
        let mut evidence = format!(
            "no {} rule sends all packets to table {}, as the kernel's rule {} did: {matters}",
            rule.family,
            crate::model::table_name(rule.table),
            rule.priority
        );
        let Some(remover) = &remover else {
            return Finding::new(evidence, None, rule.command("add"));
        };
        evidence += "; systemd-networkd runs here with ManageForeignRoutingPolicyRules on, and removes such rules when \
             it restarts";
        // One file for all of them.
        let file = if at == 0 { format!("\n{}", remover.cure) } else { String::new() };
        let cure = rule.command("add") + &file;
        Finding::new(evidence, remover.place.clone(), cure).with(vec![remover.file.clone()])
    };
    Ok(missing.iter().enumerate().map(finding).collect())
}

pub fn mark_rule_missing(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let pods = facts.topology().vpc_pod_rules()?;
    // Marked packets matter only if pods have a secondary uplink.
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
    let selector = Selector { fwmark: Some(MARK), ..EVERYTHING };
    let rule = Rule { family: Family::V4, priority: MARKED, selector, table: TABLE_MAIN, protocol: 0 };
    let evidence = format!(
        "the CNI's rules {TO_POD} ({} pods) and {FROM_POD} ({}) exist, but not its rule {MARKED} for the mark 0x80: \
         replies of these pods to node port traffic leave by the wrong uplink. (It is absent by design only if \
         AWS_VPC_K8S_CNI_EXTERNALSNAT is true and AWS_VPC_CNI_NODE_PORT_SUPPORT false)",
        pods.to.len(),
        pods.from.len()
    );
    Ok(vec![Finding::new(evidence, None, rule.command("add"))])
}

/// The commands that delete rules; as comments if the sources may return.
fn deleted(rules: &[&Rule], because: Option<String>) -> String {
    let Some(because) = because else {
        return rules.iter().map(|rule| rule.command("del")).collect::<Vec<_>>().join("\n");
    };
    let commands = rules.iter().map(|rule| format!("\n# {}", rule.command("del")));
    format!("# {because}; if they are gone for good:{}", commands.collect::<String>())
}

pub fn leaked_rules(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    // Another program's rule may be waiting for a tunnel that is down. But the VPC CNI has rules only for pods and
    // addresses of this node.
    if !facts.topology().is_vpc_cni()? {
        return Ok(Vec::new());
    }
    let mut found = detached(facts)?;
    for (broken, alive) in super::tables::empty(facts)? {
        if !alive.is_empty() {
            continue;
        }
        let of_cni = |rule: &&Rule| matches!(rule.priority, FROM_POD | UPLINK_RULE_PRIORITY);
        let to_it = |rule: &&Rule| (rule.family, rule.table) == (broken.family, broken.table());
        let source = |rule: &Rule| host(rule.selector.from.as_ref()).filter(|it| broken.sources().contains(it));
        let rules = facts.rules()?.into_iter().filter(of_cni).filter(to_it);
        let rules: Vec<&Rule> = rules.filter(|rule| source(rule).is_some()).collect();
        if rules.is_empty() {
            continue;
        }
        let evidence = format!(
            "table {} has no {} route, and the rules that use it are for {}, neither a pod with a route nor an \
             address of this node: they are left over",
            broken.table(),
            broken.family,
            shortened(sorted::set(rules.iter().filter_map(|rule| source(rule))))
        );
        let cure = deleted(&rules, may_come_back(facts, broken.family, &rules)?);
        found.push(Finding::new(evidence, None, cure));
    }
    Ok(found)
}

/// Why the sources of these rules may return, if so: an interface has no address of the family, or a pod's interface
/// has no route.
fn may_come_back(facts: &Facts, family: Family, rules: &[&Rule]) -> Result<Option<String>, Gap> {
    let topology = facts.topology();
    if rules.iter().any(|rule| rule.priority == FROM_POD) {
        let idle = super::pods::idle(facts)?;
        if !idle.is_empty() {
            return Ok(Some(format!("no route leads to {}, and one of these pods may be behind it", shortened(idle))));
        }
    }
    if rules.iter().any(|rule| rule.priority == UPLINK_RULE_PRIORITY) {
        let pods = topology.vpc_pod_links()?;
        let links = topology.names()?.into_iter();
        let links = links.filter(|(index, name)| !pods.contains_key(index) && !is_branch_link(name));
        let outward = topology.outward(links.map(|(index, _)| index))?;
        let mut bare = Vec::new();
        for index in outward {
            if !topology.addresses(index, family)?.any(|it| it.global) {
                bare.push(facts.name_of(index)?);
            }
        }
        if !bare.is_empty() {
            let which = shortened(bare);
            return Ok(Some(format!("{which} has no {family} address now, and one of these may be its own")));
        }
    }
    Ok(None)
}

/// Whether a rule is for packets from a branch link of the VPC CNI, or from the link of a pod behind one; that link.
fn of_branch(rule: &Rule) -> Option<&IfName> {
    let (link, _) = sends_by_link(rule).filter(|_| rule.priority == BRANCH)?;
    (is_branch_pod_link(link) || is_branch_link(link)).then_some(link)
}

/// Rules of branch links whose interface is gone.
fn detached(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let here = sorted::set(facts.names()?.into_values());
    let rules = facts.rules()?.into_iter();
    let gone: Vec<&Rule> = rules.filter(|rule| of_branch(rule).is_some_and(|link| !here.contains(link))).collect();
    if gone.is_empty() {
        return Ok(Vec::new());
    }
    let links = sorted::set(gone.iter().filter_map(|rule| of_branch(rule)));
    let evidence = format!(
        "rules of priority {BRANCH} are for packets from {}, an interface that does not exist: the pod is gone and \
         left its rule, which will apply to the next pod whose interface gets the name",
        shortened(links)
    );
    Ok(vec![Finding::new(evidence, None, deleted(&gone, None))])
}

/// A rule sends packets from a pod's interface to a table without a route to that pod, while another table has one.
pub fn branch_rule_stale(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let topology = facts.topology();
    if !topology.is_vpc_cni()? {
        return Ok(Vec::new());
    }
    let tables = facts.tables(&topology.policy_tables()?)?;
    let names = facts.names()?;
    let mut found = Vec::new();
    for rule in facts.rules()? {
        let Some(link) = of_branch(rule).filter(|link| !is_branch_link(link)) else { continue };
        let Some(index) = names.iter().find(|(_, name)| **name == link).map(|(index, _)| *index) else { continue };
        let to_pod = |route: &&SeenRoute| route.is_host_on_link() && route.oif() == Some(index);
        let with_pod: Vec<_> = tables
            .iter()
            .filter(|((family, _), _)| *family == rule.family)
            .filter_map(|((_, table), routes)| Some((*table, *routes, routes.iter().find(to_pod)?.to.first_address())))
            .collect();
        let [(right, routes, pod)] = with_pod.as_slice() else { continue };
        if *right == rule.table {
            continue;
        }
        let evidence = format!(
            "rule {} of {link} uses table {}, but its pod's route ({pod}) is in table {right}: the rule is left over \
             from an earlier pod, whose interface had the same name",
            rule.priority, rule.table
        );
        let new = Rule { table: *right, protocol: 0, ..rule.clone() };
        let cure = if facts.rules()?.into_iter().any(|it| it.equals(&new)) {
            rule.command("del")
        } else if has_default(routes.iter()) {
            format!("{} && {}", new.command("add"), rule.command("del"))
        } else {
            format!("# recreate the pod {pod} (kubectl delete pod): table {right} has no default route either")
        };
        found.push(Finding::new(evidence, None, cure));
    }
    Ok(found)
}

/// The table of a branch has the route to a pod, but no rule is for packets from the pod's interface.
pub fn branch_rule_missing(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    if !facts.topology().is_vpc_cni()? {
        return Ok(Vec::new());
    }
    let rules = facts.rules()?;
    let names = facts.names()?;
    let mut found = Vec::new();
    for of_uplink in rules.iter().filter(|rule| of_branch(rule).is_some_and(is_branch_link)) {
        let family = of_uplink.family;
        for route in facts.table(family, of_uplink.table)?.iter().filter(|route| route.is_host_on_link()) {
            let name = route.oif().and_then(|index| names.get(&index)).copied();
            let Some(name) = name.filter(|name| is_branch_pod_link(name)) else { continue };
            if rules.iter().any(|rule| rule.family == family && of_branch(rule) == Some(name)) {
                continue;
            }
            let evidence = format!(
                "table {} has the route to {} ({name}), but no rule {BRANCH} sends packets from {name} to it: what \
                 the pod sends leaves by the first uplink, if rp_filter of its interface does not drop it as a martian",
                of_uplink.table,
                route.to.first_address()
            );
            let selector = Selector { iif: Some(name.clone()), ..EVERYTHING };
            let rule = Rule { family, priority: BRANCH, selector, table: of_uplink.table, protocol: 0 };
            found.push(Finding::new(evidence, None, rule.command("add")));
        }
    }
    Ok(found)
}

/// Several rules 1536 send one pod, and the same destinations, to different tables.
pub fn pod_with_two_rules(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let topology = facts.topology();
    let rules = topology.vpc_pod_rules()?;
    let mut several = rules.from.iter().filter(|(_, rules)| rules.len() > 1).peekable();
    if several.peek().is_none() {
        return Ok(Vec::new());
    }
    let here = topology.vpc_pods()?;
    let mut found = Vec::new();
    for (pod, rules) in several.filter(|(pod, _)| here.contains_key(pod)) {
        for to in sorted::set(rules.iter().map(|rule| rule.selector.to)) {
            let same: Vec<&Rule> = rules.iter().filter(|rule| rule.selector.to == to).copied().collect();
            let tables = sorted::set(same.iter().map(|rule| rule.table));
            if tables.len() > 1 {
                found.extend(one_of_two(facts, *pod, &same, &tables)?);
            }
        }
    }
    Ok(found)
}

fn one_of_two(facts: &Facts, pod: IpAddr, rules: &[&Rule], tables: &BTreeSet<u32>) -> Result<Option<Finding>, Gap> {
    let topology = facts.topology();
    let family = Family::of(pod);
    let holders = topology.outward(topology.connected(pod)?)?;
    let (mut right, mut ways) = (BTreeSet::new(), BTreeSet::new());
    for table in tables {
        let exits = exits_of(facts.table(family, *table)?);
        if !exits.is_empty() && exits.is_subset(&holders) {
            right.insert(*table);
        }
        ways.insert(exits);
    }
    if ways.len() == 1 {
        return Ok(None); // they use the same way
    }
    let listed = tables.iter().map(u32::to_string).collect::<Vec<_>>().join(" and ");
    let start = format!("{pod} has {} rules {FROM_POD}, to tables {listed}", rules.len());
    let (Some(table), 1, 1) = (right.first(), right.len(), holders.len()) else {
        let evidence =
            format!("{start}, and nothing shows which of them is its own; the first one with a route applies");
        let cure = format!("# recreate the pod {pod} (kubectl delete pod): its rules are deleted with it");
        return Ok(Some(Finding::new(evidence, None, cure)));
    };
    let stale: Vec<&Rule> = rules.iter().filter(|rule| rule.table != *table).copied().collect();
    let evidence = format!(
        "{start}: it is in the subnet of {}, which table {table} uses; the rule to table {} is stale. Packets of the \
         pod use the first rule with a route, and the CNI keeps the last one when it restarts",
        facts.names_of(holders)?,
        shortened(stale.iter().map(|rule| rule.table))
    );
    Ok(Some(Finding::new(evidence, None, deleted(&stale, None))))
}
