//! `rules`: declared rules are added, and those with node-fixer's protocol that are no longer declared are deleted. A
//! new rule is added before the old one is deleted, so that no packet is without either.

use std::collections::BTreeMap;

use cidr::IpCidr;

use crate::change::{Blocked, Change, Op, Plan, Step};
use crate::config::Config;
use crate::model::{PROTO_DECLARED, RuleAction, SeenRule, Selector};
use crate::observed::{Gap, Observed};
use crate::sorted;
use crate::topology::Topology;
use crate::topology::forecast::{DeclaredRules, Taken};

/// The plan of the section.
pub fn plan(desired: &Config, observed: &Observed) -> Result<Plan, Gap> {
    let live = observed.rules()?;
    let declared = DeclaredRules::of(desired);
    // A node has a rule for each pod: they are sorted only if something is declared.
    let sought = if declared.rules.is_empty() { &[] } else { live };
    let there = sorted::set(sought.iter().map(SeenRule::essence));
    let ours = || live.iter().filter(|seen| seen.rule.protocol == PROTO_DECLARED && seen.is_expressible());
    let mut old: Vec<&SeenRule> = ours().filter(|rule| !declared.has(rule)).collect();
    let mut plan = Plan::default();
    let missing = || declared.rules.iter().filter(|rule| !there.contains(&rule.essence()));
    let taken = Taken::of(missing(), &Topology::of(observed))?;
    for new in missing() {
        if let Some(because) = taken.why(&new.rule) {
            plan.blocked.push(Blocked::new(Change::Rule(Op::Add(new.clone())).to_string(), because.clone()));
            continue;
        }
        // A rule that the kernel considers the same must be deleted first.
        let place = |rule: &SeenRule| (rule.rule.family, rule.rule.priority);
        let is_twin = |old: &&SeenRule| place(old) == place(new) && old.identity() == new.identity();
        let twin = old.iter().position(is_twin).map(|at| old.remove(at).clone());
        let op = match twin {
            Some(old) => Op::Replace { new: new.clone(), old },
            None => Op::Add(new.clone()),
        };
        plan.steps.push(Step::new(Change::Rule(op), "missing"));
    }
    if !old.is_empty() {
        plan.removals = removals(ours(), &old);
    }
    Ok(plan)
}

/// Deletes the old rules, and no others.
fn removals<'a>(ours: impl Iterator<Item = &'a SeenRule>, old: &[&SeenRule]) -> Vec<Step> {
    let mut removals = Vec::new();
    // Rules of node-fixer's that stay, before the rule in question.
    let mut staying: BTreeMap<_, Vec<&SeenRule>> = BTreeMap::new();
    for rule in ours {
        let place = |handle| (rule.rule.family, rule.rule.priority, handle);
        if !old.iter().any(|old| std::ptr::eq(*old, rule)) {
            for handle in handles(rule) {
                staying.entry(place(handle)).or_default().push(rule);
            }
            continue;
        }
        // The kernel deletes the first rule that has all requested attributes, whatever else it has (rule_find in
        // net/core/fib_rules.c). A rule of node-fixer's that stays and would match is moved aside.
        let earlier = handles(rule).next_back().and_then(|handle| staying.get(&place(handle)));
        let aside: Vec<&SeenRule> =
            earlier.into_iter().flatten().copied().filter(|other| is_taken_for(other, rule)).collect();
        let step = |op, reason: &str| Step::new(Change::Rule(op), reason);
        let reason = "moved aside: the kernel would delete this rule instead of the stale one";
        removals.extend(aside.iter().map(|other| step(Op::Delete((*other).clone()), reason)));
        removals.push(step(Op::Delete(rule.clone()), "added by node-fixer, and no longer declared"));
        removals.extend(aside.iter().map(|other| step(Op::Add((*other).clone()), reason)));
    }
    removals
}

/// The key for finding a rule among those of its priority: none, its destination, or its source.
fn handles(rule: &SeenRule) -> impl DoubleEndedIterator<Item = (Option<IpCidr>, Option<IpCidr>)> {
    let Selector { from, to, .. } = &rule.rule.selector;
    let (from, to) = (*from, *to);
    [Some((None, None)), to.map(|to| (None, Some(to))), from.map(|from| (Some(from), None))].into_iter().flatten()
}

/// Whether a request to delete `asked` would delete `found`: attributes that it does not name, or names as 0, match
/// anything, and neither `not` nor the target of a goto is compared.
pub fn is_taken_for(found: &SeenRule, asked: &SeenRule) -> bool {
    fn agrees<T: PartialEq>(found: T, asked: T, unsaid: T) -> bool {
        asked == unsaid || asked == found
    }
    let kind = |rule: &SeenRule| match rule.action() {
        RuleAction::Goto(_) => RuleAction::Goto(0),
        action => action,
    };
    let (has, wants) = (&found.rule.selector, &asked.rule.selector);
    let (is, of) = (found.extras(), asked.extras());
    let mark = |selector: &Selector| selector.fwmark.unwrap_or_default();
    (found.rule.family, found.rule.priority, found.rule.protocol, kind(found))
        == (asked.rule.family, asked.rule.priority, asked.rule.protocol, kind(asked))
        && agrees(has.from, wants.from, None)
        && agrees(has.to, wants.to, None)
        && agrees(mark(has).0, mark(wants).0, 0)
        && agrees(mark(has).1, mark(wants).1, 0)
        && agrees(&has.iif, &wants.iif, &None)
        && agrees(&has.oif, &wants.oif, &None)
        && agrees(is.tos, of.tos, 0)
        && agrees(is.users, of.users, None)
        && agrees(is.ip_protocol, of.ip_protocol, None)
        && agrees(is.source_ports, of.source_ports, None)
        && agrees(is.ports, of.ports, None)
        && agrees(is.l3mdev, of.l3mdev, false)
        && agrees(is.suppress_length, of.suppress_length, None)
        && agrees(is.suppress_group, of.suppress_group, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Rule, RuleExtras};
    use crate::observed::RpFilters;
    use crate::reconcile::testing::{Model, desired, observed, other_rule, rule};

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
                "a rule of node-fixer's would match the other",
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
            let seen = observed(|seen| {
                seen.rules = Some(Ok(live.into_iter().map(SeenRule::from).collect()));
                seen.rp_filters = Some(Ok(RpFilters::default()));
            });
            let plan = plan(&desired(yaml), &seen).unwrap();
            let commands: Vec<_> = plan.steps.iter().chain(&plan.removals).map(|step| step.change.to_string()).collect();
            assert_eq!(commands, expected, "{case}");
        }
        let odd = observed(|seen| seen.rules = Some(Ok(vec![other_rule(5)])));
        assert_eq!(plan(&desired("{}"), &odd), Ok(Plan::default()), "what is not understood is not deleted");
    }

    #[test]
    fn every_key_is_in_the_command_and_the_old_one_goes() {
        for (entry, tail) in [
            ("not: true, from: 10.0.0.1, table: 7", "not from 10.0.0.1 lookup 7"),
            ("tos: 0x10, table: 7", "from all tos 0x10 lookup 7"),
            (
                "ipproto: tcp, sport: 1000-1999, dport: 80, table: 7",
                "from all ipproto 6 sport 1000-1999 dport 80 lookup 7",
            ),
            ("uidrange: 1000-1999, table: 7", "from all uidrange 1000-1999 lookup 7"),
            ("uidrange: 0, table: 7", "from all uidrange 0-0 lookup 7"),
            ("l3mdev: true", "from all l3mdev"),
            ("suppress_prefixlength: 0, table: main", "from all lookup main suppress_prefixlength 0"),
            ("suppress_ifgroup: 5, table: main", "from all lookup main suppress_ifgroup 5"),
            ("fwmark: 7, goto: 32000", "from all fwmark 0x7/0xffffffff goto 32000"),
            ("iif: eth1, action: blackhole", "from all iif eth1 blackhole"),
            ("to: 10.0.0.0/8, action: unreachable", "from all to 10.0.0.0/8 unreachable"),
            ("family: ipv6, action: prohibit", "from all prohibit"),
        ] {
            let declared = desired(&format!("rules: [{{priority: 9, {entry}}}]"));
            let ip = if entry.contains("ipv6") { "ip -6" } else { "ip" };
            let mut node = Model::new("");
            let plan = node.plan(plan, &declared);
            assert_eq!(shown(&plan), [format!("{ip} rule add priority 9 {tail} protocol 171")]);
            node.make(&plan.steps[0]);
            assert_eq!(node.plan(super::plan, &declared), Plan::default(), "{entry}");
            assert_eq!(
                shown(&node.plan(super::plan, &desired("{}"))),
                [format!("{ip} rule del priority 9 {tail} protocol 171")]
            );
        }
    }

    #[test]
    fn what_the_kernel_considers_equal_changes_places_at_once() {
        for (old, new, commands) in [
            (
                "not: true, from: 10.0.0.1, table: 7",
                "from: 10.0.0.1, table: 7",
                "ip rule del priority 9 not from 10.0.0.1 lookup 7 protocol 171 && ip rule add priority 9 from 10.0.0.1 lookup 7 protocol 171",
            ),
            (
                "goto: 100",
                "goto: 200",
                "ip rule del priority 9 from all goto 100 protocol 171 && ip rule add priority 9 from all goto 200 protocol 171",
            ),
        ] {
            let [old, new] = [old, new].map(|entry| desired(&format!("rules: [{{priority: 9, {entry}}}]")));
            let mut node = Model::new("");
            let first = node.plan(plan, &old);
            node.make(&first.steps[0]);
            let second = node.plan(plan, &new);
            assert_eq!(shown(&second), [commands]);
            node.make(&second.steps[0]);
            assert_eq!(node.plan(plan, &new), Plan::default());
        }
    }

    fn shown(plan: &Plan) -> Vec<String> {
        plan.steps.iter().chain(&plan.removals).map(|step| step.change.to_string()).collect()
    }

    #[test]
    fn what_node_fixer_cannot_write_is_not_deleted() {
        for change in [
            (|it| it.realms = Some(5)) as fn(&mut RuleExtras),
            |it| it.unknown = vec![99],
            |it| it.dscp = Some((1, 2)),
            |it| it.action = RuleAction::Nop,
        ] {
            let mut node = Model::new("");
            let mut odd = SeenRule::from(Rule { protocol: PROTO_DECLARED, ..rule("10.0.0.1", 9, 7) });
            let mut extras = odd.extras().into_owned();
            change(&mut extras);
            odd.extras = Some(Box::new(extras));
            node.rules.push(odd);
            assert_eq!(node.plan(plan, &desired("{}")), Plan::default());
        }
    }
}
