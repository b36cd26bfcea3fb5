//! The result of a dry run in the form that Kubernetes' node-problem-detector requires of a plugin: an exit code, and
//! one line of which it keeps 80 bytes.

use crate::host::Host;
use crate::model::{Rule, one_line, table_name};
use crate::observed::{Look, Observed};
use crate::outcome::{BlockedRecord, ChangeStatus, Outcome};
use crate::topology::Topology;

/// The longest line, including its newline.
const MOST: usize = 80;
/// The end of a line that was cut.
const CUT: &str = "...";

/// The state of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// The node is as declared.
    Fine,
    /// It differs.
    Problem,
    /// The state could not be determined.
    Unknown,
}

/// The kernel's initial rules that are missing. A run only repairs them if it is configured to, but the node hardly
/// works without them.
pub fn missing_rules(host: &mut Host, seen: &mut Observed) -> Look<Vec<Rule>> {
    host.ask(seen, |seen| Topology::of(seen).missing_starting_rules())
}

/// The verdict and its line. A known problem outweighs an unknown state.
pub fn judge(outcome: &Outcome, missing: &Look<Vec<Rule>>) -> (Health, String) {
    if let Some(rule) = missing.as_ref().ok().and_then(|missing| missing.first()) {
        let (family, table) = (rule.family, table_name(rule.table));
        return (
            Health::Problem,
            line(&format!("the kernel's {family} rule {} to table {table} is missing", rule.priority)),
        );
    }
    let counts = |refused: &&BlockedRecord| !refused.observed && !refused.blocked.unseen;
    let blocked: Vec<&BlockedRecord> = outcome.blocked.iter().filter(counts).collect();
    let to_do: Vec<_> = outcome.changes.iter().filter(|item| item.status != ChangeStatus::Observed).collect();
    // Blocked changes need a person, so they come first; pending changes are made by the next run.
    let first = match (blocked.first(), to_do.first()) {
        (Some(BlockedRecord { reconciler, blocked, .. }), _) => Some((*reconciler, &blocked.want)),
        (None, Some(item)) => Some((item.reconciler, &item.reason)),
        (None, None) => None,
    };
    if let Some((reconciler, what)) = first {
        let numbers = match (blocked.len(), to_do.len()) {
            (blocked, 0) => format!("{blocked} blocked"),
            (0, to_do) => format!("{to_do} to do"),
            (blocked, to_do) => format!("{blocked} blocked, {to_do} to do"),
        };
        return (Health::Problem, line(&format!("{numbers}: {reconciler}: {what}")));
    }
    if let Some(problem) = outcome.notices.iter().find_map(|(_, notice)| notice.problem.as_deref()) {
        return (Health::Problem, line(problem));
    }
    match outcome.blocked.iter().find(|refused| refused.blocked.unseen) {
        Some(BlockedRecord { reconciler, blocked, .. }) => unknown(&format!("{reconciler}: {}", blocked.because)),
        None => match missing {
            Err(why) => unknown(why),
            Ok(_) => (Health::Fine, line("the network is as declared")),
        },
    }
}

/// The verdict if the node could not be read at all.
pub fn unknown(why: &str) -> (Health, String) {
    (Health::Unknown, line(&format!("unknown: {why}")))
}

/// The text as one line, cut at a character boundary if it is too long.
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
    use crate::model::{IfName, SysctlKey, SysctlWrite};
    use crate::outcome::{ChangeRecord, RunMode};

    fn item(status: ChangeStatus) -> ChangeRecord {
        let key = SysctlKey::rp_filter(&IfName::new(b"eth0").unwrap());
        let change = Change::Sysctl(SysctlWrite::alone(key, "2".into(), "1".into()));
        ChangeRecord {
            reconciler: "rp_filter",
            change,
            reason: "eth0 is strict".into(),
            status,
            error: None,
            part_of: None,
            notes: Vec::new(),
            held: false,
            made: false,
            unanswered: false,
            reported: false,
        }
    }

    fn refused(blocked: Blocked, observed: bool) -> BlockedRecord {
        BlockedRecord { reconciler: "routes", blocked, observed }
    }

    #[test]
    fn each_outcome_has_its_verdict() {
        let blocked = || Blocked::new("a route".into(), "eth9 is missing".into());
        let unseen = || Blocked::unseen("to know".into(), "cannot read the rules: no".into());
        for (items, blocked, verdict, said) in [
            (vec![], vec![], Health::Fine, "the network is as declared\n"),
            (
                vec![item(ChangeStatus::Observed)],
                vec![refused(blocked(), true)],
                Health::Fine,
                "the network is as declared\n",
            ),
            (vec![item(ChangeStatus::Planned)], vec![], Health::Problem, "1 to do: rp_filter: eth0 is strict\n"),
            (vec![item(ChangeStatus::Skipped)], vec![], Health::Problem, "1 to do: rp_filter: eth0 is strict\n"),
            (vec![], vec![refused(blocked(), false)], Health::Problem, "1 blocked: routes: a route\n"),
            (
                vec![item(ChangeStatus::Planned), item(ChangeStatus::Planned)],
                vec![refused(unseen(), false), refused(blocked(), false)],
                Health::Problem,
                "1 blocked, 2 to do: routes: a route\n",
            ),
            (vec![], vec![refused(unseen(), false)], Health::Unknown, "unknown: routes: cannot read the rules: no\n"),
            (vec![], vec![refused(unseen(), true)], Health::Unknown, "unknown: routes: cannot read the rules: no\n"),
        ] {
            let outcome = Outcome { changes: items, blocked, notices: vec![], ..Outcome::new(RunMode::Dry) };
            assert_eq!(judge(&outcome, &Ok(Vec::new())), (verdict, said.to_owned()), "{outcome:?}");
        }
    }

    #[test]
    fn a_notice_counts_where_it_is_a_problem_and_after_what_is_to_be_done() {
        let notice = |problem: Option<&str>| {
            ("rp_filter", Notice { text: "eth1: long".into(), problem: problem.map(str::to_owned) })
        };
        let unattended = || notice(Some("eth1 is strict and not managed"));
        for (items, notices, verdict, said) in [
            (vec![], vec![notice(None)], Health::Fine, "the network is as declared\n"),
            (vec![], vec![notice(None), unattended()], Health::Problem, "eth1 is strict and not managed\n"),
            (
                vec![item(ChangeStatus::Planned)],
                vec![unattended()],
                Health::Problem,
                "1 to do: rp_filter: eth0 is strict\n",
            ),
        ] {
            let outcome = Outcome { changes: items, blocked: vec![], notices, ..Outcome::new(RunMode::Dry) };
            assert_eq!(judge(&outcome, &Ok(Vec::new())), (verdict, said.to_owned()), "{outcome:?}");
        }
    }

    #[test]
    fn a_missing_rule_of_the_kernels_is_a_problem() {
        let selector = crate::model::EVERYTHING;
        let rule = Rule { family: crate::model::Family::V6, priority: 32766, selector, table: 254, protocol: 2 };
        let outcome = || Outcome { changes: vec![], blocked: vec![], notices: vec![], ..Outcome::new(RunMode::Dry) };
        let said = "the kernel's IPv6 rule 32766 to table main is missing\n".to_owned();
        assert_eq!(judge(&outcome(), &Ok(vec![rule])), (Health::Problem, said));
        let unseen = judge(&outcome(), &Err("cannot read the rules: no".into()));
        assert_eq!(unseen, (Health::Unknown, "unknown: cannot read the rules: no\n".to_owned()));
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
