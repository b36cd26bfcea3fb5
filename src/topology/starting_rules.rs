//! The rules that the kernel starts with, and that some program has removed: `doctor` and node-problem-detector report
//! them by the same judgement.

use super::Topology;
use crate::net::{Family, PROTO_KERNEL, Rule, Selector, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN};
use crate::observed::Gap;

/// What takes all packets.
pub const EVERYTHING: Selector = Selector { from: None, to: None, fwmark: None, iif: None, oif: None };

impl Topology<'_> {
    /// The rules that the kernel starts with and that are gone. Others move them, Cilium and the VPC CNI's strict mode
    /// that of the local table: what counts is that some rule leads all packets to the table.
    ///
    /// # Errors
    ///
    /// What has to be looked at first.
    pub fn missing_starting_rules(&self) -> Result<Vec<Rule>, Gap> {
        let mut missing = Vec::new();
        for family in [Family::V4, Family::V6] {
            // Without any rule there is no IPv6 here at all.
            if !self.rules()?.any(|rule| rule.family == family) {
                continue;
            }
            for (priority, table) in [(0, TABLE_LOCAL), (32766, TABLE_MAIN), (32767, TABLE_DEFAULT)] {
                // IPv6 has only the first two.
                let starts_with_it = (family, table) != (Family::V6, TABLE_DEFAULT);
                let leads = |rule: &Rule| (rule.family, rule.table) == (family, table) && rule.selector == EVERYTHING;
                if starts_with_it && !self.rules()?.any(leads) {
                    let protocol = PROTO_KERNEL;
                    missing.push(Rule { family, priority, selector: EVERYTHING, table, protocol });
                }
            }
        }
        Ok(missing)
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
