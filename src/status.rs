//! `node-fixer status`: the state of this node on one screen.
//!
//! Pending and blocked changes are found as by a dry run. The last change of each section and contention come from the
//! saved state. The last run is the latest one known from any source: systemd knows when the service ended, with
//! metrics each run counts itself, and a run that changed something records that. A run with nothing to do leaves no
//! other trace. The next run is the timer's.

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context;
use serde::Serialize;

use crate::change::Blocked;
use crate::conclude::{self, Contended, Suspects};
use crate::config::{Config, Mode};
use crate::engine;
use crate::history::contention::{self, RepairHistory};
use crate::history::memory::EndedRun;
use crate::host::Host;
use crate::log::paint;
use crate::model::one_line;
use crate::node::systemctl::{self, UnitEnd, Units};
use crate::outcome::{BlockedRecord, ChangeStatus, Outcome};
use crate::reconcile::{ALL, Reconciler};
use crate::tape::{duration, nanos};
use crate::watch;
use crate::watch::state::Shown;

/// Version of the JSON format. Additions raise the second number, everything else the first.
const FORMAT_VERSION: &str = "1.4";
/// How many lines of a list fit on the screen, and how long each may be.
const FEW: usize = 3;
const SHORT: usize = 480;

/// The state of this node.
#[derive(Debug, Serialize)]
pub struct Status {
    format_version: &'static str,
    last_run: Option<LastRun>,
    next_run: Option<Time>,
    /// The watcher, if it is running.
    watcher: Option<ShownWatcher>,
    sections: Vec<Section>,
    blocked: Vec<Wish>,
    notices: Vec<Noticed>,
    contention: Vec<Contention>,
    /// Whether a container on this node stands back for the installed node-fixer.
    standing_back: bool,
    /// Whether the history since boot could be read: past changes and contention.
    remembered: bool,
    #[serde(skip)]
    now: Duration,
    /// Why the next run is not known.
    #[serde(skip)]
    no_timer: String,
    #[serde(skip)]
    could_look: bool,
}

/// The watcher: since when it is running, and what it has done.
#[derive(Debug, Serialize)]
struct ShownWatcher {
    since: Time,
    events: u64,
    runs: u64,
    last_event: Option<Time>,
    last_run: Option<Time>,
}

impl ShownWatcher {
    fn of(shown: &Shown) -> ShownWatcher {
        let time = |seconds: u64| Time(Duration::from_secs(seconds));
        let once = |seconds: u64| (seconds > 0).then(|| time(seconds));
        ShownWatcher {
            since: time(shown.since),
            events: shown.events,
            runs: shown.runs,
            last_event: once(shown.last_event),
            last_run: once(shown.last_run),
        }
    }
}

/// In wall-clock time since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Time(Duration);

impl Serialize for Time {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // humantime cannot format times after the year 9999.
        let time = UNIX_EPOCH.checked_add(self.0).filter(|_| self.0.as_secs() < 253_402_300_800);
        time.map(|time| humantime::format_rfc3339_seconds(time).to_string()).serialize(serializer)
    }
}

#[derive(Debug, Serialize)]
struct LastRun {
    time: Time,
    /// The source: systemd, metrics, state or the watcher.
    source: &'static str,
    exit: Option<i32>,
    /// The signal that ended it.
    signal: Option<i32>,
}

#[derive(Debug, Serialize)]
struct Section {
    reconciler: &'static str,
    mode: Mode,
    /// Changes that a run would make.
    to_do: usize,
    /// Changes that are held back.
    held: usize,
    /// Differences that are only observed.
    observed: usize,
    /// Changes that are blocked, and reads that failed.
    blocked: usize,
    last_change: Option<ShownChange>,
    #[serde(skip)]
    unseen: usize,
    /// Whether nothing is declared in it.
    #[serde(skip)]
    is_empty: bool,
}

#[derive(Debug, Serialize)]
struct ShownChange {
    time: Time,
    command: String,
}

impl ShownChange {
    fn of(last: &contention::LastChange) -> ShownChange {
        ShownChange { time: Time(Duration::from_secs(last.wall)), command: last.command.clone() }
    }
}

/// A blocked change.
#[derive(Debug, Serialize)]
struct Wish {
    reconciler: &'static str,
    want: String,
    because: String,
    /// Whether a read failed.
    #[serde(skip)]
    unseen: bool,
}

/// A finding that requires no change.
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

/// Collects the state of this node.
///
/// # Errors
///
/// The saved state cannot be read now.
pub fn look(desired: &Config, host: &mut Host, (directory, durable): (&Path, &Path)) -> anyhow::Result<Status> {
    let outcome = engine::dry_run(desired, host).0;
    let recall = host.store.recall().context("cannot read the state of the last run")?;
    let remembered = host.store.recalls_all();
    let sections = Section::all(&outcome, &recall.memory.repairs, desired);
    let contended = Contended::all(&recall, desired);
    let suspects = Suspects::of(&contended, desired, host);
    let contention = contended.into_iter().map(|one| {
        let suspects = suspects.of_section(&one.reconciler);
        Contention { reconciler: one.reconciler, repair: one.repair, reason: one.reason, suspects }
    });
    let tape = host.tape();
    let units = tape.answer("systemd", "", systemctl::ask);
    let counted = tape.answer("counted", "", || Ok(conclude::last_counted(durable).map(nanos))).unwrap_or_default();
    let counted = counted.and_then(|time| duration(&time));
    let (units, no_timer) = match units {
        Ok(Some(units)) if units.active => (units, "see: systemctl list-timers node-fixer.timer".into()),
        Ok(Some(units)) => (units, "the timer is not active; run: systemctl enable --now node-fixer.timer".into()),
        Ok(None) => (Units::default(), "systemd is not running here".into()),
        Err(why) => (Units::default(), why),
    };
    let watcher = tape
        .answer("watcher", "", || Ok(watch::state::shown(directory)))
        .unwrap_or_default()
        .as_ref()
        .map(ShownWatcher::of);
    let could_look = outcome.could_look();
    let wish = |BlockedRecord { reconciler, blocked: Blocked { want, because, unseen }, .. }| Wish {
        reconciler,
        want,
        because,
        unseen,
    };
    let notices = outcome.notices.into_iter().map(|(reconciler, notice)| Noticed { reconciler, what: notice.text });
    Ok(Status {
        format_version: FORMAT_VERSION,
        last_run: last_run(&units, counted, watcher.as_ref(), recall.memory.ended, &sections),
        // While the watcher is running, systemd skips the timer's runs.
        next_run: units.next.map(Time).filter(|_| watcher.is_none()),
        watcher,
        sections,
        blocked: outcome.blocked.into_iter().map(wish).collect(),
        notices: notices.collect(),
        contention: contention.collect(),
        standing_back: host.store.has_guest(),
        remembered,
        now: recall.wall,
        no_timer,
        could_look,
    })
}

/// The latest run known from any source; of equal times, systemd's, which has the most details.
fn last_run(
    units: &Units,
    counted: Option<Duration>,
    watcher: Option<&ShownWatcher>,
    recorded: Option<EndedRun>,
    sections: &[Section],
) -> Option<LastRun> {
    let of = |source, exit, signal| move |time| LastRun { time, source, exit, signal };
    let changed = sections.iter().filter_map(|section| Some(section.last_change.as_ref()?.time)).max();
    // systemd reports whole seconds. `max_by_key` returns the last of equal ones.
    let whole = |time: Duration| Time(Duration::from_secs(time.as_secs()));
    let counted = counted.map(whole).map(of("metrics", None, None));
    let recorded =
        recorded.map(|EndedRun { time, exit }| of("state", Some(exit.into()), None)(Time(Duration::from_secs(time))));
    let ended = units.ended.map(|(time, ended)| match ended {
        UnitEnd::Exit(code) => of("systemd", Some(code), None)(whole(time)),
        UnitEnd::Signal(signal) => of("systemd", None, Some(signal))(whole(time)),
    });
    let started = watcher.and_then(|watcher| watcher.last_run).map(of("watcher", None, None));
    [changed.map(of("state", None, None)), counted, started, recorded, ended]
        .into_iter()
        .flatten()
        .max_by_key(|run| run.time)
}

impl Status {
    /// Whether everything could be read.
    pub fn could_look(&self) -> bool {
        self.could_look
    }

    /// One JSON object on one line.
    ///
    /// # Errors
    ///
    /// None in practice: every value has a JSON form.
    pub fn json(&self) -> serde_json::Result<String> {
        Ok(serde_json::to_string(self)? + "\n")
    }

    /// The text form.
    pub fn text(&self, colour: bool) -> String {
        let paint = |code: &str, text: &str| paint(colour, code, text);
        let mut text = String::new();
        self.runs(&mut text, &paint);
        self.sections(&mut text, &paint);
        let blocked = self.blocked.iter().map(|one| {
            let because = format!("{}: {}", one.want, one.because);
            let what = if one.unseen { "could not be checked:" } else { "blocked" };
            format!("{} {}: {}", paint(RED, what), one.reconciler, short(&because))
        });
        list(&mut text, blocked);
        let notices = self
            .notices
            .iter()
            .map(|one| format!("{} {}: {}", paint(YELLOW, "notice"), one.reconciler, short(&one.what)));
        list(&mut text, notices);
        let contention = self.contention.iter().map(|one| {
            let what = short(&format!("{}: {}", one.repair, one.reason));
            let suspects = one.suspects.iter().map(|suspect| format!("\n  suspect: {}", short(suspect)));
            let suspects: String = match one.suspects.is_empty() {
                true => "; no suspect found, see: node-fixer doctor".to_owned(),
                false => suspects.take(FEW).collect(),
            };
            format!("{} {}: {what}{suspects}", paint(RED, "contended"), short(&one.reconciler))
        });
        list(&mut text, contention);
        text
    }

    /// When the last run ended and how, and when the next one is due.
    fn runs(&self, text: &mut String, paint: &impl Fn(&str, &str) -> String) {
        let last = self.last_run.as_ref().map(|run| {
            let exit = run.exit.map_or(String::new(), |exit| {
                format!(", exit code {}", paint(if matches!(exit, 0 | 75) { GREEN } else { RED }, &exit.to_string()))
            });
            let signal = run.signal.map(|signal| format!(", {}", paint(RED, &format!("ended by signal {signal}"))));
            let exit = signal.unwrap_or(exit);
            format!("{}{exit} (known from {})", self.ago(run.time), run.source)
        });
        let never = match self.remembered {
            true => "none recorded; a run with nothing to do leaves no record here",
            false => "not known: the saved state could not be read",
        };
        let next = self.next_run.map(|time| format!("in {}", rough(time.0.saturating_sub(self.now))));
        let next = next.or_else(|| self.watcher.as_ref().map(|_| "at the next change of the network".into()));
        // Writing to a string cannot fail.
        let _ = writeln!(text, "last run  {}", last.unwrap_or_else(|| never.into()));
        let _ = writeln!(text, "next run  {}", next.unwrap_or_else(|| format!("not known: {}", short(&self.no_timer))));
        if let Some(ShownWatcher { since, events, runs, last_event, .. }) = &self.watcher {
            let last = last_event.map_or(String::new(), |time| format!(", the last {}", self.ago(time)));
            let _ = writeln!(text, "watcher   started {}; {runs} runs, {events} events{last}", self.ago(*since));
        }
        if self.standing_back {
            let _ = writeln!(text, "container stands back for the node-fixer installed on this node");
        }
        text.push('\n');
    }

    /// One line for each section that is in use.
    fn sections(&self, text: &mut String, paint: &impl Fn(&str, &str) -> String) {
        let none = if self.remembered { "no change since boot" } else { "last change not known" };
        let shown: Vec<_> = self.sections.iter().filter(|section| section.is_shown()).collect();
        let width = shown.iter().map(|section| section.reconciler.len()).max().unwrap_or_default();
        for section in shown {
            let (code, state) = section.state();
            let change = section
                .last_change
                .as_ref()
                .map_or(none.into(), |last| format!("{}: {}", self.ago(last.time), short(&last.command)));
            // Coloured after padding: escape sequences have no width on a terminal.
            let (name, state) = (section.reconciler, paint(code, &format!("{state:<15}")));
            let _ = writeln!(text, "{name:<width$}  {state}  {change}");
        }
    }

    fn ago(&self, time: Time) -> String {
        format!("{} ago", rough(self.now.saturating_sub(time.0)))
    }
}

const RED: &str = "31";
const GREEN: &str = "32";
const YELLOW: &str = "33";

impl Section {
    /// All sections: what a run would do, and what runs have done.
    fn all(outcome: &Outcome, repairs: &RepairHistory, desired: &Config) -> Vec<Section> {
        let section = |one: &Reconciler| {
            let items = || outcome.changes.iter().filter(|item| item.reconciler == one.name);
            let blocked = || outcome.blocked.iter().filter(|refused| refused.reconciler == one.name);
            let became = |status| items().filter(|item| item.status == status && !item.held).count();
            Section {
                reconciler: one.name,
                mode: (one.mode)(desired),
                to_do: became(ChangeStatus::Planned),
                held: items().filter(|item| item.held).count(),
                observed: became(ChangeStatus::Observed),
                blocked: blocked().count(),
                last_change: repairs.sections.get(one.name).map(ShownChange::of),
                unseen: blocked().filter(|refused| refused.blocked.unseen).count(),
                is_empty: !(one.is_declared)(desired),
            }
        };
        ALL.iter().map(section).collect()
    }

    /// Leaves out sections in which nothing is declared and nothing was or is to be done.
    fn is_shown(&self) -> bool {
        let counts = self.to_do + self.held + self.observed + self.blocked;
        !self.is_empty || counts > 0 || self.last_change.is_some()
    }

    /// Its colour, and its text.
    fn state(&self) -> (&'static str, String) {
        let blocked = self.blocked.saturating_sub(self.unseen);
        let counts =
            [(self.to_do, "to do"), (self.held, "held back"), (self.observed, "observed"), (blocked, "blocked")];
        let some = counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}"));
        let some: Vec<_> = some.chain((self.unseen > 0).then(|| "unknown".into())).collect();
        let said = some.join(", ");
        if self.mode == Mode::Off {
            (YELLOW, "off".into())
        } else if some.is_empty() {
            (GREEN, "ok".into())
        } else if self.blocked > 0 {
            (RED, said)
        } else {
            (YELLOW, said)
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

/// Shortened to fit on the screen, and harmless in a terminal.
fn short(text: &str) -> String {
    let text = one_line(text);
    match text.char_indices().nth(SHORT) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.into_owned(),
    }
}

/// `3h 12m`: the two largest units.
fn rough(time: Duration) -> String {
    let exact = humantime::format_duration(Duration::from_secs(time.as_secs())).to_string();
    exact.split(' ').take(2).collect::<Vec<_>>().join(" ")
}
