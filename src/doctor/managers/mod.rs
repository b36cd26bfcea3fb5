//! Causes in network managers. [`networkd`] covers those that manage interfaces; this file covers the programs that add
//! policy rules for the addresses of a cloud's network interfaces: nm-cloud-setup, ec2-net-utils, cloud-init.

pub mod networkd;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use super::Finding;
use super::cure::{proposed, write_command};
use super::facts::{Facts, shortened};
use super::ini::{Location, entries};
use crate::model::{Family, Rule, TABLE_MAIN};
use crate::observed::Gap;
use crate::sorted;
use crate::topology::owners::Owner;
use crate::topology::{exits_of, has_default, host, sends};

const CLOUD_INIT_FILE: &str = "/etc/cloud/cloud.cfg.d/99-node-fixer.cfg";

/// Ends nm-cloud-setup for good.
pub const STOP_NM_CLOUD_SETUP: &str = "systemctl disable --now nm-cloud-setup.timer nm-cloud-setup.service";

/// The rules of these owners for packets of the VPC CNI's pods or uplinks.
fn beside_the_cni<'a>(facts: &'a Facts, of: &[Owner]) -> Result<Vec<&'a Rule>, Gap> {
    let topology = facts.topology();
    if !topology.is_vpc_cni()? {
        return Ok(Vec::new());
    }
    let rules: Vec<(IpAddr, &Rule)> =
        facts.rules()?.into_iter().filter_map(|rule| Some((sends(rule)?.0, rule))).collect();
    let mut theirs = BTreeSet::new();
    for (family, table) in sorted::set(rules.iter().map(|(_, rule)| (rule.family, rule.table))) {
        if of.contains(&topology.owner_of_table(family, table)?) {
            theirs.insert((family, table));
        }
    }
    if theirs.is_empty() {
        return Ok(Vec::new());
    }
    let (of_pods, pods) = (topology.vpc_pod_rules()?, topology.vpc_pods()?);
    let uplinks = sorted::set(topology.vpc_uplinks()?.iter().map(|uplink| uplink.index));
    let mut found = Vec::new();
    for (source, rule) in rules.into_iter().filter(|(_, rule)| theirs.contains(&(rule.family, rule.table))) {
        let is_pods =
            of_pods.to.contains_key(&source) || of_pods.from.contains_key(&source) || pods.contains_key(&source);
        if is_pods || !topology.carriers(source)?.is_disjoint(&uplinks) {
            found.push(rule);
        }
    }
    Ok(found)
}

/// The command that stops a program, and those that delete its rules. All of it as comments if an address of this node
/// has its only default route through these rules: then the node needs the program.
fn stopped(facts: &Facts, stop: Vec<String>, rules: &[&Rule], last: Vec<String>) -> Result<String, Gap> {
    let mut needed = BTreeSet::new();
    for (source, _) in rules.iter().filter_map(|rule| sends(rule)) {
        if !has_another_way(facts, source, rules)? {
            needed.insert(source);
        }
    }
    let rules = rules.iter().map(|rule| rule.command("del"));
    let lines: Vec<String> = stop.into_iter().chain(rules).chain(last).collect();
    if needed.is_empty() {
        return Ok(lines.join("\n"));
    }
    let lines = lines.iter().map(|line| format!("\n# {line}"));
    Ok(format!(
        "# only after {} has a policy table of its own again, which this program provides now:{}",
        shortened(needed),
        lines.collect::<String>()
    ))
}

/// Whether packets from a source leave by its own uplink without these rules.
fn has_another_way(facts: &Facts, source: IpAddr, without: &[&Rule]) -> Result<bool, Gap> {
    let topology = facts.topology();
    let family = Family::of(source);
    let mut home = topology.carriers(source)?;
    if home.is_empty() {
        home = topology.outward(topology.connected(source)?)?;
    }
    for rule in facts.rules()? {
        let stays = !without.contains(&rule) && rule.family == family && rule.selector.to.is_none();
        if stays && sends(rule).is_some_and(|(from, _)| from == source) {
            let routes = facts.table(family, rule.table)?;
            if has_default(routes.iter()) {
                return Ok(exits_of(routes).is_subset(&home));
            }
        }
    }
    let main = exits_of(facts.table(family, TABLE_MAIN)?);
    Ok(!main.is_empty() && main.is_subset(&home))
}

/// The first line of a unit whose name begins like this.
pub fn unit(facts: &Facts, name: &str) -> Option<Location> {
    let file = facts.files.units.iter().find(|file| file.name().starts_with(name.as_bytes()))?;
    let line = entries(file).into_iter().find(|entry| entry.key.starts_with("On") || entry.key == "ExecStart");
    Some(line.map_or(Location { file: file.path.clone(), line: 1 }, |entry| entry.place))
}

pub fn nm_cloud_setup(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let is_its = |priority: u32| matches!(priority, 30200..=30299 | 30350 | 30400..=30499);
    let (mut priorities, mut rules, mut lines) = (Vec::new(), Vec::new(), Vec::new());
    for seen in facts.observed.rules()? {
        match seen.lookup() {
            Some(rule) if is_its(rule.priority) => {
                priorities.push(rule.priority);
                rules.push(rule);
            }
            // It looks up the main table without its default, a kind of rule that is not evaluated.
            None if seen.rule.priority == 30350 => {
                priorities.push(30350);
                lines.push(format!("{} rule del priority 30350", seen.rule.family.ip_command()));
            }
            _ => {}
        }
    }
    if priorities.is_empty() {
        return Ok(Vec::new());
    }
    let topology = facts.topology();
    let (is_vpc_cni, other) = (topology.is_vpc_cni()?, topology.other_cni()?);
    let beside = match other {
        _ if is_vpc_cni => "with the CNI",
        Some(_) => "with a network plugin",
        None => return Ok(Vec::new()),
    };
    let evidence = format!(
        "nm-cloud-setup has added rules {}: it configures all addresses of a network interface on this node, \
         including those of pods, and sends them to its own tables; it does not work {beside}",
        shortened(priorities)
    );
    let cure = stopped(facts, vec![STOP_NM_CLOUD_SETUP.to_owned()], &rules, lines)?;
    Ok(vec![Finding::new(evidence, unit(facts, "nm-cloud-setup"), cure)])
}

/// The line of a network manager's file that names a table.
fn names_table(facts: &Facts, table: u32) -> Option<Location> {
    facts.files.networks.iter().find_map(|file| {
        let text = String::from_utf8_lossy(&file.text).into_owned();
        let says = |line: &str| {
            let mut words = line.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
            let found = words.find(|word| word.eq_ignore_ascii_case("table") || *word == "lookup").is_some();
            found && words.next() == Some(table.to_string().as_str())
        };
        let line = (1..).zip(text.lines()).find(|(_, line)| says(line))?.0;
        Some(Location { file: file.path.clone(), line })
    })
}

/// The interfaces with the source addresses of these rules.
fn carriers(facts: &Facts, rules: &[&Rule]) -> Result<BTreeSet<String>, Gap> {
    let mut names = BTreeSet::new();
    for source in sorted::set(rules.iter().filter_map(|rule| host(rule.selector.from.as_ref()))) {
        for index in facts.topology().carriers(source)? {
            names.insert(facts.name_of(index)?);
        }
    }
    Ok(names)
}

/// How these programs affect pods.
const HOW: &str = "it configures all addresses of a network interface on this node, including those of pods, and its \
                   rules may come before the CNI's";

pub fn ec2_net_utils(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let rules = beside_the_cni(facts, &[Owner::Ec2NetUtils, Owner::Nodeadm])?;
    let Some(rule) = rules.first() else { return Ok(Vec::new()) };
    let place = names_table(facts, rule.table).or_else(|| unit(facts, "refresh-policy-routes"));
    let timer = unit(facts, "refresh-policy-routes")
        .map_or(String::new(), |place| format!("; its timer ({place}) restores them every minute"));
    let evidence = format!(
        "ec2-net-utils has added {} rules to tables {} for pods or uplinks of the CNI{timer}: {HOW}",
        rules.len(),
        shortened(sorted::set(rules.iter().map(|rule| rule.table)))
    );
    // Stopping the service itself might remove the interface's addresses, and with them the CNI's routes.
    let stop = carriers(facts, &rules)?.into_iter().flat_map(|name| {
        let units =
            ["disable --now refresh-policy-routes@", "disable policy-routes@"].into_iter().zip(["timer", "service"]);
        units.map(move |(what, kind)| format!("systemctl {what}{name}.{kind}")).collect::<Vec<_>>()
    });
    let cure = stopped(facts, stop.collect(), &rules, Vec::new())?;
    Ok(vec![Finding::new(evidence, place, cure)])
}

pub fn cloud_init_policy_tables(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    if !facts.files.cloud_init {
        return Ok(Vec::new());
    }
    let rules = beside_the_cni(facts, &[Owner::CloudInit])?;
    let Some(rule) = rules.first() else { return Ok(Vec::new()) };
    let place = names_table(facts, rule.table);
    let evidence = format!(
        "rules send {} to tables {}, numbered as cloud-init does for secondary uplinks{}: {HOW}",
        shortened(rules.iter().filter_map(|rule| host(rule.selector.from.as_ref()))),
        shortened(sorted::set(rules.iter().map(|rule| rule.table))),
        place.as_ref().map_or(String::new(), |place| format!(" ({place})"))
    );
    let text =
        "# The CNI manages the secondary uplinks.\ndatasource:\n  Ec2:\n    apply_full_imds_network_config: false\n";
    let file = proposed(&facts.files.of_cures, Path::new(CLOUD_INIT_FILE), text.as_bytes());
    let stop = format!("{}  # takes effect at the next boot; until then:", write_command(&file));
    let cure = stopped(facts, vec![stop], &rules, Vec::new())?;
    Ok(vec![Finding::new(evidence, place, cure).with(vec![file])])
}
