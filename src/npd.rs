//! What a dry run found, as Kubernetes' node-problem-detector takes it from a plugin: an exit code, and one line of
//! which it keeps 80 bytes.

use crate::net::{Rule, one_line, table_name};
use crate::observed::{Gap, Look, Observed};
use crate::run::{Outcome, Refused, Status};
use crate::sys::Node;
use crate::topology::Topology;

/// The longest line, with its end.
const MOST: usize = 80;
/// What stands for the rest of a line that was cut.
const CUT: &str = "...";

/// What it says of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// All is as declared.
    Fine,
    /// Something is not.
    Problem,
    /// It could not be seen whether all is.
    Unknown,
}

/// The rules that the kernel starts with and that are missing: a run does nothing about them unless it is told to, but
/// the node hardly works without them.
pub fn missing_rules(node: &mut Node) -> Look<Vec<Rule>> {
    let mut seen = Observed::default();
    loop {
        match Topology::of(&seen).missing_starting_rules() {
            Ok(missing) => return Ok(missing),
            Err(Gap::Failed(why)) => return Err(why),
            Err(Gap::Unseen(wants)) => node.look(wants, &mut seen),
        }
    }
}

/// The verdict with its line. What is known to be wrong outweighs what is not known.
pub fn judge(outcome: &Outcome, missing: &Look<Vec<Rule>>) -> (Verdict, String) {
    if let Some(rule) = missing.as_ref().ok().and_then(|missing| missing.first()) {
        let (family, table) = (rule.family, table_name(rule.table));
        return (
            Verdict::Problem,
            line(&format!("the kernel's {family} rule {} to table {table} is missing", rule.priority)),
        );
    }
    let counts = |refused: &&Refused| !refused.observed && !refused.blocked.unseen;
    let blocked: Vec<&Refused> = outcome.blocked.iter().filter(counts).collect();
    let to_do: Vec<_> = outcome.items.iter().filter(|item| item.status != Status::Observed).collect();
    // What is blocked waits for a person; what is to do waits for the next run.
    let first = match (blocked.first(), to_do.first()) {
        (Some(Refused { reconciler, blocked, .. }), _) => Some((*reconciler, &blocked.want)),
        (None, Some(item)) => Some((item.reconciler, &item.reason)),
        (None, None) => None,
    };
    if let Some((reconciler, what)) = first {
        let numbers = match (blocked.len(), to_do.len()) {
            (blocked, 0) => format!("{blocked} blocked"),
            (0, to_do) => format!("{to_do} to do"),
            (blocked, to_do) => format!("{blocked} blocked, {to_do} to do"),
        };
        return (Verdict::Problem, line(&format!("{numbers}: {reconciler}: {what}")));
    }
    if let Some(problem) = outcome.notices.iter().find_map(|(_, notice)| notice.problem.as_deref()) {
        return (Verdict::Problem, line(problem));
    }
    match outcome.blocked.iter().find(|refused| refused.blocked.unseen) {
        Some(Refused { reconciler, blocked, .. }) => unknown(&format!("{reconciler}: {}", blocked.because)),
        None => match missing {
            Err(why) => unknown(why),
            Ok(_) => (Verdict::Fine, line("the network is as declared")),
        },
    }
}

/// The verdict where there was no look at all.
pub fn unknown(why: &str) -> (Verdict, String) {
    (Verdict::Unknown, line(&format!("unknown: {why}")))
}

/// The text as one line that is short enough, cut where a character ends.
fn line(text: &str) -> String {
    let text = one_line(text);
    let most = MOST - 1;
    if text.len() <= most {
        return format!("{text}\n");
    }
    let fits = |(at, c): (usize, char)| Some(at + c.len_utf8()).filter(|end| *end <= most - CUT.len());
    let end = text.char_indices().map_while(fits).last().unwrap_or(0);
    format!("{}{CUT}\n", text.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::change::{Blocked, Change, Notice};
    use crate::net::SysctlKey;
    use crate::run::Item;

    fn item(status: Status) -> Item {
        let change = Change::SetSysctl {
            key: SysctlKey::rp_filter(&crate::net::IfName::new(b"eth0").unwrap()),
            value: "2".into(),
            before: "1".into(),
            first: Vec::new(),
            then: Vec::new(),
            needs: Vec::new(),
        };
        Item {
            reconciler: "rp_filter",
            change,
            reason: "eth0 is strict".into(),
            status,
            error: None,
            held: false,
            made: false,
            unanswered: false,
        }
    }

    fn refused(blocked: Blocked, observed: bool) -> Refused {
        Refused { reconciler: "routes", blocked, observed }
    }

    #[test]
    fn each_outcome_has_its_verdict() {
        let blocked = || Blocked::new("a route".into(), "eth9 is missing".into());
        let unseen = || Blocked::unseen("to know".into(), "cannot look at the rules: no".into());
        for (items, blocked, verdict, said) in [
            (vec![], vec![], Verdict::Fine, "the network is as declared\n"),
            (
                vec![item(Status::Observed)],
                vec![refused(blocked(), true)],
                Verdict::Fine,
                "the network is as declared\n",
            ),
            (vec![item(Status::Planned)], vec![], Verdict::Problem, "1 to do: rp_filter: eth0 is strict\n"),
            (vec![item(Status::Skipped)], vec![], Verdict::Problem, "1 to do: rp_filter: eth0 is strict\n"),
            (vec![], vec![refused(blocked(), false)], Verdict::Problem, "1 blocked: routes: a route\n"),
            (
                vec![item(Status::Planned), item(Status::Planned)],
                vec![refused(unseen(), false), refused(blocked(), false)],
                Verdict::Problem,
                "1 blocked, 2 to do: routes: a route\n",
            ),
            (
                vec![],
                vec![refused(unseen(), false)],
                Verdict::Unknown,
                "unknown: routes: cannot look at the rules: no\n",
            ),
            (
                vec![],
                vec![refused(unseen(), true)],
                Verdict::Unknown,
                "unknown: routes: cannot look at the rules: no\n",
            ),
        ] {
            let outcome = Outcome { dry_run: true, items, blocked, notices: vec![], not_permitted: false };
            assert_eq!(judge(&outcome, &Ok(Vec::new())), (verdict, said.to_owned()), "{outcome:?}");
        }
    }

    #[test]
    fn a_notice_counts_where_it_is_a_problem_and_after_what_is_to_be_done() {
        let notice = |problem: Option<&str>| {
            ("rp_filter", Notice { text: "eth1: long".into(), problem: problem.map(str::to_owned) })
        };
        let unattended = || notice(Some("eth1 is strict and looked after by nobody"));
        for (items, notices, verdict, said) in [
            (vec![], vec![notice(None)], Verdict::Fine, "the network is as declared\n"),
            (vec![], vec![notice(None), unattended()], Verdict::Problem, "eth1 is strict and looked after by nobody\n"),
            (vec![item(Status::Planned)], vec![unattended()], Verdict::Problem, "1 to do: rp_filter: eth0 is strict\n"),
        ] {
            let outcome = Outcome { dry_run: true, items, blocked: vec![], notices, not_permitted: false };
            assert_eq!(judge(&outcome, &Ok(Vec::new())), (verdict, said.to_owned()), "{outcome:?}");
        }
    }

    #[test]
    fn a_missing_rule_of_the_kernels_is_a_problem() {
        let selector = crate::topology::starting_rules::EVERYTHING;
        let rule = Rule { family: crate::net::Family::V6, priority: 32766, selector, table: 254, protocol: 2 };
        let outcome =
            || Outcome { dry_run: true, items: vec![], blocked: vec![], notices: vec![], not_permitted: false };
        let said = "the kernel's IPv6 rule 32766 to table main is missing\n".to_owned();
        assert_eq!(judge(&outcome(), &Ok(vec![rule])), (Verdict::Problem, said));
        let unseen = judge(&outcome(), &Err("cannot look at the rules: no".into()));
        assert_eq!(unseen, (Verdict::Unknown, "unknown: cannot look at the rules: no\n".to_owned()));
    }

    proptest! {
        #[test]
        fn whatever_the_text_it_is_one_short_line(text in "(?s).{0,200}") {
            let said = line(&text);
            prop_assert!(said.len() <= MOST, "{said:?}");
            prop_assert_eq!(said.chars().filter(|c| c.is_control()).collect::<String>(), "\n");
            let whole = one_line(&text);
            match said.trim_end_matches('\n').strip_suffix(CUT).filter(|_| whole.len() >= MOST) {
                // No more is missing than has to be: not another character would fit.
                Some(start) => prop_assert!(whole.starts_with(start) && start.len() + CUT.len() + 4 >= MOST - 4),
                None => prop_assert_eq!(said, format!("{whole}\n")),
            }
        }
    }
}
