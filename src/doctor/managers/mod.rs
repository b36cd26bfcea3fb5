//! Causes in network managers. [`networkd`] has those that own interfaces; here are the programs that set up policy rules
//! for the addresses of a cloud's network interfaces: nm-cloud-setup, ec2-net-utils, cloud-init.

pub mod networkd;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use super::Finding;
use super::cure::{proposed, write_command};
use super::facts::{Facts, shortened};
use super::ini::{Place, entries};
use super::tables::exits;
use crate::net::{Family, Rule, TABLE_MAIN};
use crate::observed::{Gap, SeenRule};
use crate::sorted;
use crate::topology::owners::Owner;
use crate::topology::{has_default, host, sends};

const CLOUD_INIT_FILE: &str = "/etc/cloud/cloud.cfg.d/99-node-fixer.cfg";

/// The rules to tables of one of these owners that concern the VPC CNI's pods or uplinks.
fn beside_the_cni<'a>(facts: &'a Facts, of: &[Owner]) -> Result<Vec<&'a Rule>, Gap> {
    let topology = facts.topology();
    let mut found = Vec::new();
    if !topology.is_vpc_cni()? {
        return Ok(found);
    }
    let mut owners: BTreeMap<(Family, u32), Owner> = BTreeMap::new();
    for rule in facts.rules()?.into_iter().filter(|rule| host(rule.selector.from.as_ref()).is_some()) {
        let table = (rule.family, rule.table);
        let owner = match owners.get(&table) {
            Some(owner) => *owner,
            None => topology.owner_of_table(rule.family, rule.table)?,
        };
        owners.insert(table, owner);
        if of.contains(&owner) && topology.concerns_vpc_cni(rule)? {
            found.push(rule);
        }
    }
    Ok(found)
}

/// What stops a program, and the commands that delete its rules. All of it as comments where the rules are the only way
/// out of some address of this node: there the program's set-up is needed.
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
        "# only once {} has a policy table of its own again, for which the program that does it now is needed:{}",
        shortened(needed),
        lines.collect::<String>()
    ))
}

/// Whether what a source sends gets out by its own uplink without these rules.
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
                return Ok(exits(routes).is_subset(&home));
            }
        }
    }
    let main = exits(facts.table(family, TABLE_MAIN)?);
    Ok(!main.is_empty() && main.is_subset(&home))
}

/// The first line of a unit whose name begins so.
fn unit(facts: &Facts, name: &str) -> Option<Place> {
    let file = facts.files.units.iter().find(|file| file.name().starts_with(name.as_bytes()))?;
    let line = entries(file).into_iter().find(|entry| entry.key.starts_with("On") || entry.key == "ExecStart");
    Some(line.map_or(Place { file: file.path.clone(), line: 1 }, |entry| entry.place))
}

pub fn nm_cloud_setup(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let is_its = |priority: u32| matches!(priority, 30200..=30299 | 30350 | 30400..=30499);
    let (mut priorities, mut rules, mut lines) = (Vec::new(), Vec::new(), Vec::new());
    for rule in facts.observed.rules()? {
        match rule {
            SeenRule::Lookup(rule) if is_its(rule.priority) => {
                priorities.push(rule.priority);
                rules.push(rule);
            }
            // It leads to the main table but for its default, a kind of rule that is not looked at further.
            SeenRule::Other { family, priority: 30350 } => {
                priorities.push(30350);
                lines.push(format!("{} rule del priority 30350", family.ip_command()));
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
        _ if is_vpc_cni => "beside the CNI",
        Some(_) => "beside a network plugin",
        None => return Ok(Vec::new()),
    };
    let evidence = format!(
        "nm-cloud-setup has made rules {}: it configures all addresses of a network interface as this node's own, those of \
         pods among them, and leads them to tables of its own; it does not work {beside}",
        shortened(priorities)
    );
    let stop = "systemctl disable --now nm-cloud-setup.timer nm-cloud-setup.service".to_owned();
    let cure = stopped(facts, vec![stop], &rules, lines)?;
    Ok(vec![Finding::new(evidence, unit(facts, "nm-cloud-setup"), cure)])
}

/// The line of a network manager's file that names a table.
fn names_table(facts: &Facts, table: u32) -> Option<Place> {
    facts.files.networks.iter().find_map(|file| {
        let text = String::from_utf8_lossy(&file.text).into_owned();
        let says = |line: &str| {
            let mut words = line.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
            let found = words.find(|word| word.eq_ignore_ascii_case("table") || *word == "lookup").is_some();
            found && words.next() == Some(table.to_string().as_str())
        };
        let line = (1..).zip(text.lines()).find(|(_, line)| says(line))?.0;
        Some(Place { file: file.path.clone(), line })
    })
}

/// The interfaces that carry the sources of these rules.
fn carriers(facts: &Facts, rules: &[&Rule]) -> Result<BTreeSet<String>, Gap> {
    let mut names = BTreeSet::new();
    for source in sorted::set(rules.iter().filter_map(|rule| host(rule.selector.from.as_ref()))) {
        for index in facts.topology().carriers(source)? {
            names.insert(facts.name_of(index)?);
        }
    }
    Ok(names)
}

/// What the programs that are named below do to pods.
const HOW: &str = "it configures all addresses of a network interface as this node's own, those of pods among them, and \
    its rules come before or after the CNI's by chance";

pub fn ec2_net_utils(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let rules = beside_the_cni(facts, &[Owner::Ec2NetUtils, Owner::Nodeadm])?;
    let Some(rule) = rules.first() else { return Ok(Vec::new()) };
    let place = names_table(facts, rule.table).or_else(|| unit(facts, "refresh-policy-routes"));
    let timer = unit(facts, "refresh-policy-routes")
        .map_or(String::new(), |place| format!("; its timer ({place}) brings them back every minute"));
    let evidence = format!(
        "ec2-net-utils has made {} rules to tables {} for pods or uplinks of the CNI{timer}: {HOW}",
        rules.len(),
        shortened(sorted::set(rules.iter().map(|rule| rule.table)))
    );
    // To stop the service itself could take the interface's addresses, and with them the CNI's routes.
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
        "rules lead {} to tables {}, numbered as cloud-init does for secondary uplinks{}: {HOW}",
        shortened(rules.iter().filter_map(|rule| host(rule.selector.from.as_ref()))),
        shortened(sorted::set(rules.iter().map(|rule| rule.table))),
        place.as_ref().map_or(String::new(), |place| format!(" ({place})"))
    );
    let text =
        "# The secondary uplinks are the CNI's.\ndatasource:\n  Ec2:\n    apply_full_imds_network_config: false\n";
    let file = proposed(&facts.files.of_cures, Path::new(CLOUD_INIT_FILE), text);
    let stop = format!("{}  # counts from the next boot; until then:", write_command(&file));
    let cure = stopped(facts, vec![stop], &rules, Vec::new())?;
    Ok(vec![Finding::new(evidence, place, cure).with(vec![file])])
}
