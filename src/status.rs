//! `node-fixer status`: how this node is, on one screen.
//!
//! What is to be done and what is blocked is found by a look, as a dry run looks. The last change of each section and
//! what is contended is remembered. The last run is the latest of what is known of one: systemd knows when the service
//! ended; with metrics each run counts itself; and a run that mended something remembers that. A run that found
//! nothing to do leaves no trace but the first two. The next run is the timer's.

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context;
use serde::Serialize;
use serde_json::Value;

use crate::aftermath::{self, Contended, Suspects};
use crate::change::Blocked;
use crate::contention;
use crate::desired::{Desired, Mode};
use crate::net::one_line;
use crate::reconcile::ALL;
use crate::run::{self, Refused, Status as Became};
use crate::sys::Node;
use crate::sys::systemd::{self, Ended, Units};

/// Version of the JSON form. Additions raise the second number, everything else the first.
const FORMAT_VERSION: &str = "1.3";
/// So many of what may be many fit on the screen, and so much of each.
const FEW: usize = 3;
const SHORT: usize = 240;

/// How this node is.
#[derive(Debug, Serialize)]
pub struct Status {
    format_version: &'static str,
    last_run: Option<LastRun>,
    next_run: Option<Time>,
    sections: Vec<Section>,
    blocked: Vec<Wish>,
    notices: Vec<Noticed>,
    contention: Vec<Contention>,
    /// Whether it is known what runs since boot have changed and what is contended.
    remembered: bool,
    #[serde(skip)]
    now: Duration,
    /// Why the next run is not known.
    #[serde(skip)]
    no_timer: String,
    #[serde(skip)]
    could_look: bool,
}

/// By the wall clock, since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Time(Duration);

impl Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Later than the year 9999 is no time.
        let time = UNIX_EPOCH.checked_add(self.0).filter(|_| self.0.as_secs() < 253_402_300_800);
        time.map(|time| humantime::format_rfc3339_seconds(time).to_string()).serialize(serializer)
    }
}

#[derive(Debug, Serialize)]
struct LastRun {
    time: Time,
    /// Who knows of it: systemd, metrics or state.
    source: &'static str,
    exit: Option<i32>,
    /// By which signal it was ended.
    signal: Option<i32>,
}

#[derive(Debug, Serialize)]
struct Section {
    reconciler: &'static str,
    mode: Mode,
    /// Changes that a run would make.
    to_do: usize,
    /// Changes that wait for their time.
    held: usize,
    /// Differences that are only observed.
    observed: usize,
    /// Wishes that are blocked, and looks that failed.
    blocked: usize,
    last_change: Option<LastChange>,
    #[serde(skip)]
    unseen: usize,
    /// Whether nothing is declared in it.
    #[serde(skip)]
    is_empty: bool,
}

#[derive(Debug, Serialize)]
struct LastChange {
    time: Time,
    command: String,
}

impl LastChange {
    fn of(last: &contention::LastChange) -> LastChange {
        LastChange { time: Time(Duration::from_secs(last.wall)), command: last.command.clone() }
    }
}

/// A wish that is blocked.
#[derive(Debug, Serialize)]
struct Wish {
    reconciler: &'static str,
    want: String,
    because: String,
    /// Whether it is a look that failed.
    #[serde(skip)]
    unseen: bool,
}

/// What is worth knowing and is none of what is to be done.
#[derive(Debug, Serialize)]
struct Noticed {
    reconciler: &'static str,
    what: String,
}

#[derive(Debug, Serialize)]
struct Contention {
    reconciler: String,
    repair: String,
    reason: String,
    suspects: Vec<String>,
}

/// Looks how this node is.
///
/// # Errors
///
/// What was remembered cannot be read for now.
pub fn look(desired: &Desired, node: &mut Node, durable: &Path) -> anyhow::Result<Status> {
    let outcome = run::run(desired, node, true);
    let recall = node.recall().context("cannot recall the last run")?;
    let remembered = node.recalls_all();
    let config = serde_json::to_value(desired)?;
    let mends = &recall.memory.mends;
    let section = |name, mode| {
        let items = || outcome.items.iter().filter(move |item| item.reconciler == name);
        let blocked = || outcome.blocked.iter().filter(move |refused| refused.reconciler == name);
        let became = |status| items().filter(|item| item.status == status && !item.held).count();
        Section {
            reconciler: name,
            mode,
            to_do: became(Became::Planned),
            held: items().filter(|item| item.held).count(),
            observed: became(Became::Observed),
            blocked: blocked().count(),
            last_change: mends.sections.get(name).map(LastChange::of),
            unseen: blocked().filter(|refused| refused.blocked.unseen).count(),
            is_empty: config.get(name).and_then(Value::as_array).is_some_and(Vec::is_empty),
        }
    };
    let sections: Vec<_> = ALL.iter().map(|one| section(one.name, (one.mode)(desired))).collect();
    let contended = Contended::all(&recall, desired);
    let suspects = Suspects::of(&contended, desired, node);
    let contention = contended.into_iter().map(|one| {
        let suspects = suspects.of_section(&one.reconciler);
        Contention { reconciler: one.reconciler, repair: one.repair, reason: one.reason, suspects }
    });
    let (units, no_timer) = match systemd::ask() {
        Ok(Some(units)) if units.active => (units, "systemctl list-timers node-fixer.timer says when".into()),
        Ok(Some(units)) => (units, "the timer is not active: systemctl enable --now node-fixer.timer".into()),
        Ok(None) => (Units::default(), "there is no systemd here to say when".into()),
        Err(why) => (Units::default(), why),
    };
    let could_look = outcome.could_look();
    let wish = |Refused { reconciler, blocked: Blocked { want, because, unseen }, .. }| Wish {
        reconciler,
        want,
        because,
        unseen,
    };
    Ok(Status {
        format_version: FORMAT_VERSION,
        last_run: last_run(&units, aftermath::last_counted(durable), &sections),
        next_run: units.next.map(Time),
        sections,
        blocked: outcome.blocked.into_iter().map(wish).collect(),
        notices: outcome
            .notices
            .into_iter()
            .map(|(reconciler, notice)| Noticed { reconciler, what: notice.text })
            .collect(),
        contention: contention.collect(),
        remembered,
        now: recall.wall,
        no_timer,
        could_look,
    })
}

/// The latest run that anybody knows of; systemd, which knows most, where they are the same.
fn last_run(units: &Units, counted: Option<Duration>, sections: &[Section]) -> Option<LastRun> {
    let of = |source, exit, signal| move |time| LastRun { time, source, exit, signal };
    let changed = sections.iter().filter_map(|section| Some(section.last_change.as_ref()?.time)).max();
    // systemd tells whole seconds. Of equal ones the last counts.
    let whole = |time: Duration| Time(Duration::from_secs(time.as_secs()));
    let counted = counted.map(whole).map(of("metrics", None, None));
    let ended = units.ended.map(|(time, ended)| match ended {
        Ended::Exit(code) => of("systemd", Some(code), None)(whole(time)),
        Ended::Signal(signal) => of("systemd", None, Some(signal))(whole(time)),
    });
    [changed.map(of("state", None, None)), counted, ended].into_iter().flatten().max_by_key(|run| run.time)
}

impl Status {
    /// Whether everything could be looked at.
    pub fn could_look(&self) -> bool {
        self.could_look
    }

    /// One JSON object on one line.
    ///
    /// # Errors
    ///
    /// None that is known of: every value in it has a JSON form.
    pub fn json(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string(self)? + "\n")
    }

    /// For people.
    pub fn text(&self, colour: bool) -> String {
        let paint = |code: &str, text: &str| if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() };
        let mut text = String::new();
        let last = self.last_run.as_ref().map(|run| {
            let exit = run.exit.map_or(String::new(), |exit| {
                format!(", exit code {}", paint(if matches!(exit, 0 | 75) { GREEN } else { RED }, &exit.to_string()))
            });
            let signal = run.signal.map(|signal| format!(", {}", paint(RED, &format!("ended by signal {signal}"))));
            let exit = signal.unwrap_or(exit);
            format!("{}{exit} (known from {})", self.ago(run.time), run.source)
        });
        let never = match self.remembered {
            true => "not known: a run that finds nothing to do leaves no trace here",
            false => "not known: what was remembered could not be read",
        };
        let next = self.next_run.map(|time| format!("in {}", rough(time.0.saturating_sub(self.now))));
        // Writing to a string does not fail.
        let _ = writeln!(text, "last run  {}", last.unwrap_or_else(|| never.into()));
        let _ =
            writeln!(text, "next run  {}\n", next.unwrap_or_else(|| format!("not known: {}", short(&self.no_timer))));
        let none = if self.remembered { "no change since boot" } else { "last change not known" };
        let told: Vec<_> = self.sections.iter().filter(|section| section.has_something_to_tell()).collect();
        let width = told.iter().map(|section| section.reconciler.len()).max().unwrap_or_default();
        for section in told {
            let (code, state) = section.state();
            let change = section
                .last_change
                .as_ref()
                .map_or(none.into(), |last| format!("{}: {}", self.ago(last.time), short(&last.command)));
            // Painted after it was padded: a terminal counts no escape sequences.
            let (name, state) = (section.reconciler, paint(code, &format!("{state:<15}")));
            let _ = writeln!(text, "{name:<width$}  {state}  {change}");
        }
        let blocked = self.blocked.iter().map(|one| {
            let because = format!("{}: {}", one.want, one.because);
            let what = if one.unseen { "could not look:" } else { "blocked" };
            format!("{} {}: {}", paint(RED, what), one.reconciler, short(&because))
        });
        list(&mut text, blocked);
        let notices = self
            .notices
            .iter()
            .map(|one| format!("{} {}: {}", paint(YELLOW, "notice"), one.reconciler, short(&one.what)));
        list(&mut text, notices);
        let contention = self.contention.iter().map(|one| {
            let told = short(&format!("{}: {}", one.repair, one.reason));
            let suspects = one.suspects.iter().map(|suspect| format!("\n  suspect: {}", short(suspect)));
            let suspects: String = suspects.take(FEW).collect();
            format!("{} {}: {told}{suspects}", paint(RED, "contended"), short(&one.reconciler))
        });
        list(&mut text, contention);
        text
    }

    fn ago(&self, time: Time) -> String {
        format!("{} ago", rough(self.now.saturating_sub(time.0)))
    }
}

const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";

impl Section {
    /// Not where nothing is declared, and nothing is to be done or was done about what was.
    fn has_something_to_tell(&self) -> bool {
        let counts = self.to_do + self.held + self.observed + self.blocked;
        !self.is_empty || counts > 0 || self.last_change.is_some()
    }

    /// Its colour, and what is to be said of it.
    fn state(&self) -> (&'static str, String) {
        let blocked = self.blocked.saturating_sub(self.unseen);
        let counts =
            [(self.to_do, "to do"), (self.held, "held back"), (self.observed, "observed"), (blocked, "blocked")];
        let some = counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
        let some: Vec<_> = some.chain((self.unseen > 0).then(|| "could not look".into())).collect();
        let said = some.join(", ");
        match () {
            () if self.mode == Mode::Off => (YELLOW, "off".into()),
            () if some.is_empty() => (GREEN, "as it should be".into()),
            () if self.blocked > 0 => (RED, said),
            () => (YELLOW, said),
        }
    }
}

/// The first few, after an empty line.
fn list(text: &mut String, lines: impl ExactSizeIterator<Item = String>) {
    let more = lines.len().saturating_sub(FEW);
    for (number, line) in lines.take(FEW).enumerate() {
        let _ = writeln!(text, "{}{line}", if number == 0 { "\n" } else { "" });
    }
    if more > 0 {
        let _ = writeln!(text, "… and {more} more: node-fixer status --output json");
    }
}

/// What fits on the screen, and does nothing to it.
fn short(text: &str) -> String {
    let text = one_line(text);
    match text.char_indices().nth(SHORT) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.into_owned(),
    }
}

/// `3h 12m`: the two greatest units.
fn rough(time: Duration) -> String {
    let exact = humantime::format_duration(Duration::from_secs(time.as_secs())).to_string();
    exact.split(' ').take(2).collect::<Vec<_>>().join(" ")
}
