//! `rules`: what is declared is made so, and what carries our mark and is no longer declared goes. The new rule is
//! added before the old one goes, so that no packet falls between them.

use crate::change::{Change, Plan, Step};
use crate::desired::{self, Desired};
use crate::net::{PROTO_DECLARED, Rule};
use crate::observed::{Gap, Observed, SeenRule};

pub fn plan(desired: &Desired, observed: &Observed) -> Result<Plan, Gap> {
    let live = observed.rules()?;
    let wanted: Vec<Rule> = desired.rules.iter().map(desired::Rule::to_rule).collect();
    let missing = wanted.into_iter().filter(|rule| !live.iter().filter_map(SeenRule::lookup).any(|it| it.equals(rule)));
    let add = |rule| Step { change: Change::AddRule(rule), reason: "declared, and not there".into() };
    let delete = |rule: &Rule| Step {
        change: Change::DeleteRule(rule.clone()),
        reason: "node-fixer added it, and it is no longer declared".into(),
    };
    let steps = missing.map(add).chain(undeclared(desired, live).map(delete)).collect();
    Ok(Plan { steps, blocked: Vec::new() })
}

/// The rules as they will be when this section's plan is done: what the plans of other sections build on.
pub fn afterwards<'a>(desired: &'a Desired, live: &'a [SeenRule]) -> impl Iterator<Item = Rule> + 'a {
    let declared = desired.rules.iter().map(desired::Rule::to_rule);
    let staying = live.iter().filter_map(SeenRule::lookup).filter(|rule| !is_undeclared(desired, rule));
    staying.cloned().chain(declared)
}

fn undeclared<'a>(desired: &'a Desired, live: &'a [SeenRule]) -> impl Iterator<Item = &'a Rule> {
    live.iter().filter_map(SeenRule::lookup).filter(|rule| is_undeclared(desired, rule))
}

fn is_undeclared(desired: &Desired, rule: &Rule) -> bool {
    rule.protocol == PROTO_DECLARED && !desired.rules.iter().any(|wanted| wanted.to_rule().equals(rule))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::testing::{desired, observed, rule};

    #[test]
    fn declared_rules_are_made_so() {
        let mine = |from, priority, table| Rule { protocol: PROTO_DECLARED, ..rule(from, priority, table) };
        let declared = "rules: [{priority: 1000, from: 10.0.0.1, table: 7}]";
        let add = "ip rule add priority 1000 from 10.0.0.1 lookup 7 protocol 171";
        let delete = |what| format!("ip rule del {what} protocol 171");
        for (case, yaml, live, expected) in [
            ("missing", declared, vec![], vec![add.to_owned()]),
            ("there", declared, vec![mine("10.0.0.1", 1000, 7)], vec![]),
            ("there, of another owner", declared, vec![rule("10.0.0.1", 1000, 7)], vec![]),
            (
                "changed: new before old",
                declared,
                vec![mine("10.0.0.1", 900, 7)],
                vec![add.to_owned(), delete("priority 900 from 10.0.0.1 lookup 7")],
            ),
            ("no longer declared", "{}", vec![mine("10.0.0.1", 1000, 7)], vec![delete("priority 1000 from 10.0.0.1 lookup 7")]),
            ("of others", "{}", vec![rule("10.0.0.1", 1000, 7), rule("10.0.0.2", 512, 254)], vec![]),
            (
                "every selector",
                "rules: [{priority: 5, to: fd00::/8, fwmark: 0x80/0xff, iif: eth0.100, oif: eth1, table: main}]",
                vec![],
                vec!["ip -6 rule add priority 5 from all to fd00::/8 fwmark 0x80/0xff iif eth0.100 oif eth1 lookup 254 protocol 171".to_owned()],
            ),
        ] {
            let seen = observed(|seen| seen.rules = Some(Ok(live.into_iter().map(SeenRule::Lookup).collect())));
            let plan = plan(&desired(yaml), &seen).unwrap();
            let commands: Vec<_> = plan.steps.iter().map(|step| step.change.to_string()).collect();
            assert_eq!(commands, expected, "{case}");
        }
        let odd = observed(|seen| seen.rules = Some(Ok(vec![SeenRule::Other])));
        assert_eq!(plan(&desired("{}"), &odd), Ok(Plan::default()), "what is not understood is not deleted");
    }
}
