//! `rules`: what is declared is made so, and what carries our mark and is no longer declared goes. The new rule is
//! added before the old one goes, so that no packet falls between them.

use std::collections::{BTreeMap, BTreeSet};

use cidr::IpCidr;

use crate::change::{Change, Plan, Step};
use crate::desired::{self, Desired};
use crate::net::{Family, PROTO_DECLARED, Rule, Selector};
use crate::observed::{Gap, Observed, SeenRule};
use crate::sorted;

/// What differs.
pub fn plan(desired: &Desired, observed: &Observed) -> Result<Plan, Gap> {
    let live = observed.rules()?;
    let declared = Declared::of(desired);
    // A node has a rule for each pod: they are sorted only where something is declared.
    let sought = live.iter().filter(|_| !declared.rules.is_empty());
    let there = essences(sought.filter_map(SeenRule::lookup));
    let missing = declared.rules.iter().filter(|rule| !there.contains(&rule.essence()));
    let add = |rule: &Rule| Step { change: Change::AddRule(rule.clone()), reason: "declared, and not there".into() };
    let delete = |rule: &Rule| Step {
        change: Change::DeleteRule(rule.clone()),
        reason: "node-fixer added it, and it is no longer declared".into(),
    };
    let mut steps: Vec<Step> = missing.map(add).collect();
    let ours = || live.iter().filter_map(SeenRule::lookup).filter(|rule| rule.protocol == PROTO_DECLARED);
    if ours().all(|rule| declared.has(rule)) {
        return Ok(Plan { steps, ..Plan::default() });
    }
    // Those of ours that stay, up to the rule that is looked at.
    let mut staying: BTreeMap<_, Vec<&Rule>> = BTreeMap::new();
    for rule in ours() {
        let place = (rule.family, rule.priority, rule.table);
        if declared.has(rule) {
            for handle in handles(rule) {
                staying.entry((place, handle)).or_default().push(rule);
            }
            continue;
        }
        // The kernel deletes the first rule that has all that is asked for, whatever else it has (rule_find in
        // net/core/fib_rules.c). One of ours that stays and would be taken for this one steps aside.
        let earlier = handles(rule).next_back().and_then(|handle| staying.get(&(place, handle)));
        let aside: Vec<&Rule> =
            earlier.into_iter().flatten().copied().filter(|other| is_taken_for(other, rule)).collect();
        let reason = || "it would be deleted in the place of the next".to_owned();
        steps.extend(aside.iter().map(|other| Step { change: Change::DeleteRule((*other).clone()), reason: reason() }));
        steps.push(delete(rule));
        steps.extend(aside.iter().map(|other| Step { change: Change::AddRule((*other).clone()), reason: reason() }));
    }
    Ok(Plan { steps, ..Plan::default() })
}

/// By what a rule is found among those of its priority: by nothing, by its destination, by its source.
fn handles(rule: &Rule) -> impl DoubleEndedIterator<Item = (Option<IpCidr>, Option<IpCidr>)> {
    let Selector { from, to, .. } = &rule.selector;
    let (from, to) = (*from, *to);
    [Some((None, None)), to.map(|to| (None, Some(to))), from.map(|from| (Some(from), None))].into_iter().flatten()
}

type Essence<'a> = (Family, u32, u32, &'a Selector);

fn essences<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> BTreeSet<Essence<'a>> {
    sorted::set(rules.into_iter().map(Rule::essence))
}

/// Whether a request to delete `asked` deletes `found` as well: what it does not name matches anything.
pub fn is_taken_for(found: &Rule, asked: &Rule) -> bool {
    fn agrees<T: PartialEq>(found: &Option<T>, asked: &Option<T>) -> bool {
        asked.is_none() || asked == found
    }
    let (has, wants) = (&found.selector, &asked.selector);
    (found.family, found.priority, found.table, found.protocol)
        == (asked.family, asked.priority, asked.table, asked.protocol)
        && agrees(&has.from, &wants.from)
        && agrees(&has.to, &wants.to)
        && agrees(&has.fwmark, &wants.fwmark)
        && agrees(&has.iif, &wants.iif)
        && agrees(&has.oif, &wants.oif)
}

/// The rules that are declared.
#[derive(Debug)]
pub struct Declared {
    /// As they are declared.
    pub rules: Vec<Rule>,
    /// To find them in.
    sorted: Vec<Rule>,
}

impl Declared {
    /// Those of a configuration.
    pub fn of(desired: &Desired) -> Declared {
        let rules: Vec<Rule> = desired.rules.iter().map(desired::Rule::to_rule).collect();
        let sorted = sorted::list(rules.iter().cloned(), |a, b| a.essence().cmp(&b.essence()));
        Declared { rules, sorted }
    }

    /// Whether a rule is declared, whoever installed it.
    pub fn has(&self, rule: &Rule) -> bool {
        self.sorted.binary_search_by(|other| other.essence().cmp(&rule.essence())).is_ok()
    }

    /// Whether a live rule stays when the section's plan is done: it is another's, or declared.
    pub fn keeps(&self, rule: &Rule) -> bool {
        rule.protocol != PROTO_DECLARED || self.has(rule)
    }
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
            (
                "one of ours would be taken for the other",
                "rules: [{priority: 9, from: 10.0.0.1, fwmark: 7, table: 7}]",
                vec![
                    Rule { selector: Selector { fwmark: Some((7, u32::MAX)), ..rule("10.0.0.1", 9, 7).selector }, ..mine("10.0.0.1", 9, 7) },
                    mine("10.0.0.1", 9, 7),
                ],
                vec![
                    delete("priority 9 from 10.0.0.1 fwmark 0x7/0xffffffff lookup 7"),
                    delete("priority 9 from 10.0.0.1 lookup 7"),
                    "ip rule add priority 9 from 10.0.0.1 fwmark 0x7/0xffffffff lookup 7 protocol 171".to_owned(),
                ],
            ),
            ("of others", "{}", vec![rule("10.0.0.1", 1000, 7), rule("10.0.0.2", 512, 254)], vec![]),
            (
                "every selector",
                "rules: [{priority: 5, to: fd00::/8, fwmark: 0x80/0xff, iif: eth0.100, oif: eth1, table: main}]",
                vec![],
                vec!["ip -6 rule add priority 5 from all to fd00::/8 fwmark 0x80/0xff iif eth0.100 oif eth1 lookup main protocol 171".to_owned()],
            ),
        ] {
            let seen = observed(|seen| seen.rules = Some(Ok(live.into_iter().map(SeenRule::Lookup).collect())));
            let plan = plan(&desired(yaml), &seen).unwrap();
            let commands: Vec<_> = plan.steps.iter().map(|step| step.change.to_string()).collect();
            assert_eq!(commands, expected, "{case}");
        }
        let odd = observed(|seen| seen.rules = Some(Ok(vec![SeenRule::Other { family: Family::V4, priority: 5 }])));
        assert_eq!(plan(&desired("{}"), &odd), Ok(Plan::default()), "what is not understood is not deleted");
    }
}
