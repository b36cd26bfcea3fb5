//! `masquerade`: one nftables table holds what is declared, and is deleted when nothing is. Other tables are neither
//! changed nor read; `doctor` reports if one of them drops the packets.

use crate::change::{Blocked, Change, Op, Plan, Step};
use crate::config::Config;
use crate::history::memory::Kind;
use crate::model::masquerade::{self, Masquerade, SeenNat, SeenTable};
use crate::observed::{Gap, Observed};

pub fn plan(desired: &Config, observed: &Observed) -> Result<Plan, Gap> {
    let mut plan = Plan::default();
    let rules: Vec<Masquerade> = desired.masquerade.iter().map(|wish| wish.to_masquerade()).collect();
    let live = match observed.nat()? {
        SeenNat::Table(live) => live.as_ref(),
        // Nothing suggests that the table exists.
        SeenNat::Hidden if rules.is_empty() && !observed.recall()?.memory.made.contains_key(&Kind::Masquerade) => {
            return Ok(plan);
        }
        SeenNat::Hidden => {
            let why = "cannot read nftables: not permitted; even reading requires CAP_NET_ADMIN, in a dry run as well";
            return Err(Gap::Failed(why.into()));
        }
        SeenNat::Missing(_) if rules.is_empty() => None,
        SeenNat::Missing(why) => {
            let cure = "load its modules (modprobe nf_tables) or use a kernel with CONFIG_NF_TABLES";
            let because = format!("the kernel has no nftables ({why}); {cure}");
            plan.blocked.push(Blocked::new(masquerade::replace_command(&rules), because));
            return Ok(plan);
        }
    };
    let (op, reason) = match live {
        None if rules.is_empty() => (None, ""),
        Some(_) if rules.is_empty() => (Some(Op::Delete(())), "created by node-fixer, and no longer declared"),
        Some(table) if is_so(table, &rules) => (None, ""),
        Some(_) => (Some(Op::Replace { new: rules.clone(), old: () }), "differs from the declaration"),
        None => (Some(Op::Add(rules.clone())), "missing"),
    };
    if let Some(change) = op.map(Change::Masquerade) {
        if observed.program(masquerade::PROGRAM)? {
            let step = Step::new(change, reason);
            if rules.is_empty() { &mut plan.removals } else { &mut plan.steps }.push(step);
        } else {
            let because = "the program nft is not on PATH; install it (Debian, Ubuntu: apt-get install nftables; Red \
                           Hat: dnf install nftables)";
            plan.blocked.push(Blocked::new(change.to_string(), because.into()));
        }
    }
    let some = live.is_some() || !plan.steps.is_empty();
    plan.leaves = Some(some);
    Ok(plan)
}

fn is_so(live: &SeenTable, rules: &[Masquerade]) -> bool {
    live.whole && live.rules.iter().cloned().eq(rules.iter().map(Masquerade::conditions))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::history::memory::Note;
    use crate::model::masquerade::Condition;
    use crate::observed::Want;
    use crate::reconcile::testing::{Model, desired, seen_table};

    const WISH: &str = "masquerade: [{source: 10.100.0.0/16, except_out: br-vms}]";

    fn rules(yaml: &str) -> Vec<Masquerade> {
        desired(yaml).masquerade.iter().map(|wish| wish.to_masquerade()).collect()
    }

    fn table(yaml: &str) -> SeenTable {
        seen_table(&rules(yaml))
    }

    #[test]
    fn the_table_is_made_kept_and_goes_with_its_last_declaration() {
        let two = "masquerade: [{source: 10.100.0.0/16, except_out: br-vms}, {source: fd00::/64}]";
        let add = || vec![Change::Masquerade(Op::Add(rules(WISH)))];
        let replace = || vec![Change::Masquerade(Op::Replace { new: rules(WISH), old: () })];
        let delete = || vec![Change::Masquerade(Op::Delete(()))];
        let ours = table(WISH);
        let with =
            |rules: &[&Vec<Condition>]| SeenTable { whole: true, rules: rules.iter().copied().cloned().collect() };
        let (rule, any) = (&ours.rules[0], &vec![]);
        for (case, yaml, live, steps, removals) in [
            ("missing", WISH, None, add(), vec![]),
            ("there", WISH, Some(ours.clone()), vec![], vec![]),
            ("its chain is another", WISH, Some(SeenTable { whole: false, ..ours.clone() }), replace(), vec![]),
            ("flushed", WISH, Some(with(&[])), replace(), vec![]),
            ("a rule of others", WISH, Some(with(&[rule, any])), replace(), vec![]),
            ("a rule twice", WISH, Some(with(&[rule, rule])), replace(), vec![]),
            ("one too many", WISH, Some(table(two)), replace(), vec![]),
            ("no longer declared", "{}", Some(ours.clone()), vec![], delete()),
            ("no longer declared, and changed", "{}", Some(with(&[any])), vec![], delete()),
            ("never declared", "{}", None, vec![], vec![]),
        ] {
            let mut node = Model::new("");
            node.nat = SeenNat::Table(live);
            let plan = node.plan_section("masquerade", &desired(yaml));
            let changes = |steps: &[Step]| steps.iter().map(|step| step.change.clone()).collect::<Vec<_>>();
            assert_eq!((changes(&plan.steps), changes(&plan.removals)), (steps.clone(), removals.clone()), "{case}");
            assert_eq!(plan.blocked, [], "{case}");
            let asked = node.asked.contains(&Want::Program("nft"));
            assert_eq!(asked, !steps.is_empty() || !removals.is_empty(), "{case}: nft is for writing");
        }
    }

    #[test]
    fn without_nft_it_is_blocked_and_the_package_named() {
        for (yaml, live) in [(WISH, None), ("{}", Some(table(WISH)))] {
            let mut node = Model::new("");
            node.programs.clear();
            node.nat = SeenNat::Table(live);
            let plan = node.plan_section("masquerade", &desired(yaml));
            assert_eq!((plan.steps, plan.removals), (vec![], vec![]));
            assert!(plan.blocked[0].because.contains("apt-get install nftables"), "{:?}", plan.blocked);
        }
    }

    #[test]
    fn what_may_not_be_seen_is_unknown_where_something_of_ours_may_be() {
        let with = |nat: SeenNat, made: Option<bool>| {
            let mut node = Model::new("");
            node.nat = nat;
            made.into_iter()
                .for_each(|made| node.recall.memory.take(Note::Made(Kind::Masquerade, made), Duration::ZERO));
            let mut seen = crate::reconcile::testing::observed(|_| {});
            seen.recall = Some(Ok(node.recall));
            seen.nat = Some(Ok(node.nat));
            seen.programs.insert("nft", Ok(true));
            let section = crate::reconcile::ALL.iter().find(|it| it.name == "masquerade").unwrap();
            move |yaml: &str| section.plan(&desired(yaml), &seen)
        };
        assert_eq!(with(SeenNat::Hidden, None)("{}"), Ok(Plan::default()), "a dry run of any user");
        assert!(matches!(with(SeenNat::Hidden, Some(true))("{}"), Err(Gap::Failed(_))));
        assert!(matches!(with(SeenNat::Hidden, Some(false))(WISH), Err(Gap::Failed(_))));
        let missing = || SeenNat::Missing("Protocol not supported".into());
        assert_eq!(with(missing(), None)("{}").unwrap().remember, [Note::Made(Kind::Masquerade, false)]);
        let blocked = with(missing(), None)(WISH).unwrap().blocked;
        assert!(blocked[0].because.contains("Protocol not supported"), "{blocked:?}");
    }

    #[test]
    fn nothing_is_looked_at_where_nothing_is_declared_nor_made() {
        let mut node = Model::new("");
        node.recall.memory.take(Note::Made(Kind::Masquerade, false), Duration::ZERO);
        assert_eq!(node.plan_section("masquerade", &desired("{}")), Plan::default());
        assert_eq!(node.asked, [Want::Recall]);
    }
}
