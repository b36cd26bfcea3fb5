//! The kernel's initial rules that are missing. `doctor` and node-problem-detector share this judgement.

use super::Topology;
use crate::model::{EVERYTHING, Family, PROTO_KERNEL, Rule, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN};
use crate::observed::Gap;

/// The kernel's initial rules: family, priority and table. IPv6 has no default table.
const STARTING: [(Family, u32, u32); 5] = [
    (Family::V4, 0, TABLE_LOCAL),
    (Family::V4, 32766, TABLE_MAIN),
    (Family::V4, 32767, TABLE_DEFAULT),
    (Family::V6, 0, TABLE_LOCAL),
    (Family::V6, 32766, TABLE_MAIN),
];

impl Topology<'_> {
    /// The kernel's initial rules that are missing. Cilium and the VPC CNI's strict mode move that of the local table:
    /// it is enough that some rule sends all packets to the table.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn missing_starting_rules(&self) -> Result<Vec<Rule>, Gap> {
        // A node has rules for each pod. The kernel's are the first and the last of each family, so they are searched
        // from both ends.
        let rules = self.observed.rules()?;
        let both_ends = (0..rules.len()).flat_map(|at| [at, rules.len() - 1 - at]);
        let (mut families, mut left) = ([false; 2], STARTING.to_vec());
        for rule in both_ends.filter_map(|at| rules.get(at)?.lookup()) {
            if let Some(is_here) = families.get_mut(rule.family as usize) {
                *is_here = true;
            }
            if rule.selector == EVERYTHING {
                left.retain(|(family, _, table)| (*family, *table) != (rule.family, rule.table));
            }
            if left.is_empty() {
                break;
            }
        }
        // Without any rule there is no IPv6 here at all.
        left.retain(|(family, ..)| families.get(*family as usize) == Some(&true));
        let missing = left.into_iter().map(|(family, priority, table)| {
            let protocol = PROTO_KERNEL;
            Rule { family, priority, selector: EVERYTHING, table, protocol }
        });
        Ok(missing.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::testing::Model;

    #[test]
    fn a_rule_is_missing_where_none_leads_all_packets_to_its_table() {
        let moved = "rule 100 table 255\nrule 32766 table 254\nrule 32767 table 253";
        for (case, rules, expected) in [
            ("the local one is moved", moved, &[][..]),
            ("main", "rule 0 table 255\nrule 32767 table 253", &[32766]),
            ("main for some alone", "rule 0 table 255\nrule 5 from 10.0.0.1 table 254\nrule 32767 table 253", &[32766]),
            ("all but one", "rule 32767 table 253", &[0, 32766]),
            ("no rule of the family can be read", "rule 7 other", &[]),
        ] {
            let missing = Model::new(rules).see(|seen| Topology::of(seen).missing_starting_rules());
            assert_eq!(missing.iter().map(|rule| rule.priority).collect::<Vec<_>>(), expected, "{case}");
        }
    }
}
