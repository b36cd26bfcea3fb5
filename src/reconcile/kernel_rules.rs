//! `kernel_rules`: the kernel's initial rules are restored when another program has removed them, if that is declared.
//! node-fixer adds no other rules at these priorities.

use super::pod_rules::CONFIRM;
use crate::change::{Change, Op, Plan, Step};
use crate::config::{Config, Mode};
use crate::model::{PROTO_RESTORED, Rule, TABLE_LOCAL, TABLE_MAIN};
use crate::observed::{Gap, Observed};
use crate::topology::Topology;
use crate::topology::cni::MOVED_LOCAL;

/// What differs.
pub fn plan(desired: &Config, observed: &Observed) -> Result<Plan, Gap> {
    let mut missing = Topology::of(observed).missing_starting_rules()?;
    let mut plan = Plan::default();
    if missing.is_empty() {
        return Ok(plan);
    }
    // A program that moves a rule deletes the old one and adds the new one.
    let settled = observed.settled(CONFIRM)?;
    let later = Topology::of(settled).missing_starting_rules().map_err(Gap::later)?;
    missing.retain(|rule| later.contains(rule));
    for mut rule in missing {
        if rule.table == TABLE_LOCAL && is_moved(&rule, observed)? {
            // Then it is the CNI's, which the section `pod_rules` handles.
            if desired.pod_rules.mode != Mode::Off {
                continue;
            }
            (rule.priority, rule.protocol) = (MOVED_LOCAL, PROTO_RESTORED);
        }
        let matters = match rule.table {
            TABLE_LOCAL => "packets to this node's own addresses are not delivered",
            TABLE_MAIN => "traffic that matches no other rule has no route",
            _ => "traffic that the main table has no route for is not looked up further",
        };
        let reason = format!("missing, removed by another program: {matters}; to find that program: node-fixer doctor");
        plan.steps.push(Step::new(Change::Rule(Op::Add(rule.into())), reason));
    }
    Ok(plan)
}

/// Whether the VPC CNI has moved the rule to the local table.
fn is_moved(rule: &Rule, observed: &Observed) -> Result<bool, Gap> {
    let mut known = observed.cni_memory()?.others();
    Ok(known.any(|it| it.family == rule.family && it.priority == MOVED_LOCAL && it.table == TABLE_LOCAL))
}
