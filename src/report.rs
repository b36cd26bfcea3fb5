//! What came of a run: as a shell script (dry run), as text, or as JSON.

use serde::Serialize;

use crate::change::Action;
use crate::net::one_line;
use crate::run::{Item, Outcome, Status};

/// Version of the JSON form. Additions raise the second number, everything else the first.
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
    status: Status,
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
/// None that is known of: every value in it has a JSON form.
pub fn json(outcome: &Outcome) -> serde_json::Result<String> {
    let changes = outcome.items.iter().map(|item| JsonChange {
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
        dry_run: outcome.dry_run,
        converged: outcome.converged(),
        changes: changes.collect(),
        blocked: blocked.collect(),
    };
    Ok(serde_json::to_string(&json)? + "\n")
}

/// A POSIX shell script that does what the run would do.
pub fn script(outcome: &Outcome) -> String {
    let mut lines = vec!["#!/bin/sh".to_owned()];
    for item in &outcome.items {
        lines.push(format!("# {}: {}", item.reconciler, one_line(&item.reason)));
        let comment = match item.status {
            Status::Observed => "# observed: ",
            Status::Skipped => "# held back: ",
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

/// What a run did. Nothing to do is nothing to say, but to somebody who sits and waits for it.
pub fn text(outcome: &Outcome, on_terminal: bool) -> String {
    if outcome.items.is_empty() && outcome.blocked.is_empty() {
        let all_well = "nothing to do: everything is as it should be\n";
        return if on_terminal { all_well.into() } else { String::new() };
    }
    let item = |item: &Item| {
        let error = item.error.as_ref().map_or(String::new(), |error| format!(": {}", one_line(error)));
        format!("{}: {}{error}  # {}", word(item.status), item.change, one_line(&item.reason))
    };
    let mut lines: Vec<String> = outcome.items.iter().map(item).collect();
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
    let statuses = [Status::Planned, Status::Applied, Status::Failed, Status::Skipped, Status::Observed];
    let count = |status| outcome.items.iter().filter(|item| item.status == status).count();
    let of_items = statuses.into_iter().map(|status| (count(status), word(status)));
    let all = of_items.chain([(outcome.blocked.len(), "blocked")]);
    let some: Vec<_> = all.filter(|(number, _)| *number > 0).map(|(number, word)| format!("{number} {word}")).collect();
    if some.is_empty() { "nothing to do".into() } else { some.join(", ") }
}

fn word(status: Status) -> &'static str {
    match status {
        Status::Planned => "planned",
        Status::Applied => "applied",
        Status::Failed => "failed",
        Status::Skipped => "skipped",
        Status::Observed => "observed",
    }
}
