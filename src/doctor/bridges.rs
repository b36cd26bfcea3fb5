//! Causes in declared bridges.

use super::Finding;
use super::facts::Facts;
use crate::observed::{Gap, Link};

/// A declared bridge that carries the default route but has no port that is up.
pub fn without_carrier(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let declared: Vec<_> = facts.desired.bridges.iter().map(|bridge| bridge.name.clone()).collect();
    if declared.is_empty() {
        return Ok(Vec::new());
    }
    let over = facts.topology().main_exits()?;
    let links = facts.observed.links_named(declared)?.into_iter().flatten();
    let dead = |link: &&Link| over.contains(&link.dev.index) && !link.carrier;
    let finding = |link: &Link| {
        let name = &link.dev.name;
        let evidence = format!(
            "the default route uses {name}, which has no carrier: none of its ports is up; its uplink may have been \
             removed from it"
        );
        let cure =
            format!("# make the uplink a port of {name} again, now and in the configuration of its network manager");
        Finding::new(evidence, None, cure)
    };
    Ok(links.filter(dead).map(finding).collect())
}
