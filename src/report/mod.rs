//! The result of a run: as a shell script (dry run), as text, or as JSON.

pub mod metrics;
pub mod npd;
pub mod print;

use serde::Serialize;

use crate::change::Action;
use crate::model::one_line;
use crate::outcome::{ChangeRecord, ChangeStatus, Outcome, RunMode};

/// Version of the JSON format. Additions raise the second number, everything else the first.
const FORMAT_VERSION: &str = "1.0";

#[derive(Serialize)]
struct Json<'a> {
    format_version: &'static str,
    dry_run: bool,
    converged: bool,
    changes: Vec<JsonChange<'a>>,
    blocked: Vec<JsonBlocked<'a>>,
}

#[derive(Serialize)]
struct JsonChange<'a> {
    reconciler: &'static str,
    action: Action,
    object: &'static str,
    command: String,
    reason: &'a str,
    status: ChangeStatus,
    error: Option<&'a str>,
}

#[derive(Serialize)]
struct JsonBlocked<'a> {
    reconciler: &'static str,
    want: &'a str,
    because: &'a str,
}

/// One JSON object on one line.
///
/// # Errors
///
/// None in practice: every value has a JSON form.
pub fn json(outcome: &Outcome) -> serde_json::Result<String> {
    let changes = outcome.changes.iter().map(|item| JsonChange {
        reconciler: item.reconciler,
        action: item.change.action(),
        object: item.change.object(),
        command: item.change.to_string(),
        reason: &item.reason,
        status: item.status,
        error: item.error.as_deref(),
    });
    let blocked = outcome.blocked.iter().map(|refused| JsonBlocked {
        reconciler: refused.reconciler,
        want: &refused.blocked.want,
        because: &refused.blocked.because,
    });
    let json = Json {
        format_version: FORMAT_VERSION,
        dry_run: outcome.mode == RunMode::Dry,
        converged: outcome.converged(),
        changes: changes.collect(),
        blocked: blocked.collect(),
    };
    Ok(serde_json::to_string(&json)? + "\n")
}

/// A POSIX shell script that does what the run would do.
pub fn script(outcome: &Outcome) -> String {
    let mut lines = vec!["#!/bin/sh".to_owned()];
    for item in &outcome.changes {
        lines.push(format!("# {}: {}", item.reconciler, one_line(&item.reason)));
        let comment = match item.status {
            ChangeStatus::Observed => "# observed: ",
            ChangeStatus::Skipped => "# held back: ",
            _ => "",
        };
        lines.push(format!("{comment}{}", item.change));
    }
    lines.extend(blocked(outcome).map(|line| format!("# {line}")));
    let notices = outcome.notices.iter();
    lines.extend(notices.map(|(section, notice)| format!("# notice: {section}: {}", one_line(&notice.text))));
    lines.push(format!("# {}", counts(outcome)));
    lines.join("\n") + "\n"
}

/// What a run did. If there was nothing to do, it prints that only on a terminal.
pub fn text(outcome: &Outcome, on_terminal: bool) -> String {
    if outcome.changes.is_empty() && outcome.blocked.is_empty() {
        let all_well = "nothing to do: the node is as declared\n";
        return if on_terminal { all_well.into() } else { String::new() };
    }
    let item = |item: &ChangeRecord| {
        let error = item.error.as_ref().map_or(String::new(), |error| format!(": {}", one_line(error)));
        format!("{}: {}{error}  # {}", word(item.status), item.change, one_line(&item.reason))
    };
    let mut lines: Vec<String> = outcome.changes.iter().map(item).collect();
    lines.extend(blocked(outcome));
    let verdict = if outcome.converged() { "converged" } else { "not converged" };
    lines.push(format!("{verdict}: {}", counts(outcome)));
    lines.join("\n") + "\n"
}

fn blocked(outcome: &Outcome) -> impl Iterator<Item = String> {
    outcome.blocked.iter().map(|refused| {
        let (want, because) = (one_line(&refused.blocked.want), one_line(&refused.blocked.because));
        let observed = if refused.observed { " (observed)" } else { "" };
        format!("blocked: {}{observed}: {want}: {because}", refused.reconciler)
    })
}

/// `2 applied, 1 blocked`
fn counts(outcome: &Outcome) -> String {
    let statuses = [
        ChangeStatus::Planned,
        ChangeStatus::Applied,
        ChangeStatus::Failed,
        ChangeStatus::Skipped,
        ChangeStatus::Observed,
    ];
    let count = |status| outcome.changes.iter().filter(|item| item.status == status).count();
    let of_items = statuses.into_iter().map(|status| (count(status), word(status)));
    let all = of_items.chain([(outcome.blocked.len(), "blocked")]);
    let some: Vec<_> = all.filter(|(number, _)| *number > 0).map(|(number, word)| format!("{number} {word}")).collect();
    if some.is_empty() { "nothing to do".into() } else { some.join(", ") }
}

fn word(status: ChangeStatus) -> &'static str {
    match status {
        ChangeStatus::Planned => "planned",
        ChangeStatus::Applied => "applied",
        ChangeStatus::Failed => "failed",
        ChangeStatus::Skipped => "skipped",
        ChangeStatus::Observed => "observed",
    }
}
