//! Causes in declared bridges.

use std::collections::BTreeSet;

use super::Finding;
use super::facts::Facts;
use crate::net::Family;
use crate::observed::{Gap, Link, SeenRoute};

/// A declared bridge that the default route leaves by, and that no port leads out of.
pub fn without_carrier(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let declared: Vec<_> = facts.desired.bridges.iter().map(|bridge| bridge.name.clone()).collect();
    if declared.is_empty() {
        return Ok(Vec::new());
    }
    let topology = facts.topology();
    let mut over = BTreeSet::new();
    for family in [Family::V4, Family::V6] {
        let defaults = topology.main_defaults(family)?;
        over.extend(defaults.iter().flat_map(SeenRoute::hops).filter_map(|hop| hop.oif));
    }
    let links = facts.observed.links_named(declared)?.into_iter().flatten();
    let dead = |link: &&Link| over.contains(&link.dev.index) && !link.carrier;
    let finding = |link: &Link| {
        let name = &link.dev.name;
        let evidence = format!(
            "the default route leaves by {name}, and {name} has no carrier: no port of it is up, as where its uplink was \
             taken out of it"
        );
        let cure = format!("# make the uplink a port of {name} again, here and in the file of its network manager");
        Finding::new(evidence, None, cure)
    };
    Ok(links.filter(dead).map(finding).collect())
}
