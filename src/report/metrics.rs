//! The metrics of a run in Prometheus' text format, and the counters that survive runs and reboots. Pure. Labels are
//! bounded: they are names of sections and results, never of objects.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::outcome::{BlockedRecord, ChangeStatus, Outcome, Restored};
use crate::watch::order::Order;

/// Name of the file in the directory of the textfile collector, which reads `*.prom`.
pub const FILE: &str = "node_fixer.prom";

/// Counters over all runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Runs.
    pub runs: u64,
    /// When the last run ended, in wall-clock time since 1970.
    pub last_run: Duration,
    /// When the last run ended that left nothing wrong.
    pub last_success: Duration,
    /// How long the last run took.
    pub took: Duration,
    /// Restarts of kube-proxy.
    pub restarts: u64,
    /// Runs that restored rules of several pods or uplinks at once.
    pub flushes: u64,
    /// Rules of the VPC CNI that were restored.
    pub restored: u64,
    /// The directory that the metrics were last written to, to remove them when they are turned off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub textfile: Option<PathBuf>,
    /// By section.
    pub sections: BTreeMap<String, Tally>,
    /// Announcements of the kernel that the watcher received.
    pub events: u64,
    /// Runs that the watcher has started.
    pub watched: u64,
    /// Time from the announcement to the end of the run that repaired something because of it.
    pub reaction: Histogram,
    /// Whether a container on this node stands back for this node-fixer now.
    #[serde(skip)]
    pub guest: bool,
}

/// The upper bounds of the buckets, in milliseconds.
const BOUNDS: [u64; 12] = [2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 10_000, 60_000];

/// Times, in buckets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Histogram {
    /// How many are in each bucket and in none before.
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum: Duration,
}

impl Histogram {
    fn observe(&mut self, time: Duration) {
        let place = BOUNDS.iter().position(|bound| time <= Duration::from_millis(*bound));
        place.and_then(|place| self.buckets.get_mut(place)).into_iter().for_each(add);
        add(&mut self.count);
        self.sum = self.sum.saturating_add(time);
    }

    /// The samples, each with its suffix and label.
    fn samples(&self) -> Vec<(String, String)> {
        let mut sum = 0_u64;
        let buckets = BOUNDS.iter().zip(self.buckets).map(|(bound, count)| {
            sum = sum.saturating_add(count);
            (format!("_bucket{{le=\"{}\"}}", *bound as f64 / 1000.0), sum.to_string())
        });
        let all = [
            ("_bucket{le=\"+Inf\"}".into(), self.count.to_string()),
            ("_sum".into(), seconds(self.sum)),
            ("_count".into(), self.count.to_string()),
        ];
        buckets.collect::<Vec<_>>().into_iter().chain(all).collect()
    }
}

/// The counters of one section.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    /// Changes that were made.
    pub applied: u64,
    /// Changes that failed.
    pub failed: u64,
    /// How many runs found new contention, of one repair or of many at once.
    pub contentions: u64,
}

/// The state of one section after a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// Differences that remain: failed, held back, or only observed.
    pub left: u64,
    /// Changes that are blocked, and reads that failed. Sections that only observe count only the latter.
    pub blocked: u64,
    /// Repairs that are contended.
    pub contended: u64,
}

impl Counters {
    /// Counts one run.
    pub fn count(&mut self, outcome: &Outcome, ended: Duration, took: Duration) {
        add(&mut self.runs);
        self.last_run = ended;
        self.took = took;
        if outcome.all_well() {
            self.last_success = ended;
        }
        if let Some(Restored { rules, is_flush }) = outcome.restored() {
            self.flushes = self.flushes.saturating_add(is_flush.into());
            self.restored = self.restored.saturating_add(rules as u64);
        }
        for item in &outcome.changes {
            let tally = self.section(item.reconciler);
            match item.status {
                ChangeStatus::Applied => add(&mut tally.applied),
                ChangeStatus::Failed => add(&mut tally.failed),
                ChangeStatus::Planned | ChangeStatus::Skipped | ChangeStatus::Observed => {}
            }
            if item.status == ChangeStatus::Applied && item.change.object() == "pod" {
                add(&mut self.restarts);
            }
        }
    }

    /// Counts the watcher's totals, and the time from an announcement to the end of this run. [`Counters::count`]
    /// counts this run itself; earlier runs that were not counted are counted here.
    pub fn count_watched(&mut self, order: &Order, outcome: &Outcome, boot: Duration) {
        self.events = self.events.saturating_add(order.events);
        self.watched = self.watched.saturating_add(order.runs);
        self.runs = self.runs.saturating_add(order.runs.saturating_sub(1));
        let reaction = boot.checked_sub(Duration::from_micros(order.event)).filter(|_| order.event != 0);
        if let Some(reaction) = reaction.filter(|_| outcome.changes.iter().any(|item| item.made)) {
            self.reaction.observe(reaction);
        }
    }

    /// Counts that repairs of a section have become contended.
    pub fn count_contention(&mut self, reconciler: &str) {
        add(&mut self.section(reconciler).contentions);
    }

    fn section(&mut self, name: &str) -> &mut Tally {
        self.sections.entry(name.to_owned()).or_default()
    }

    /// In Prometheus' text format. Each of these sections is included, even if nothing has happened in it.
    pub fn text(&self, sections: &[(&'static str, Now)]) -> String {
        let mut text = String::new();
        let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, String)]| {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "# HELP node_fixer_{name} {help}\n# TYPE node_fixer_{name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(text, "node_fixer_{name}{labels} {value}");
            }
        };
        let plain = |value: String| [(String::new(), value)];
        let none = Tally::default();
        let each = |value: &dyn Fn(&Tally, Now) -> u64| -> Vec<(String, String)> {
            let sample = |(name, now): &(&str, Now)| {
                let tally = self.sections.get(*name).unwrap_or(&none);
                (format!("{{reconciler=\"{name}\"}}"), value(tally, *now).to_string())
            };
            sections.iter().map(sample).collect()
        };
        let version = format!("{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
        family("build_info", "gauge", "The version of node-fixer; always 1.", &[(version, "1".into())]);
        family("runs_total", "counter", "Runs.", &plain(self.runs.to_string()));
        let help = "When the last run ended, in seconds since 1970.";
        family("last_run_timestamp_seconds", "gauge", help, &plain(seconds(self.last_run)));
        let help = "When the last run ended that left nothing wrong, in seconds since 1970; 0 if there was none.";
        family("last_success_timestamp_seconds", "gauge", help, &plain(seconds(self.last_success)));
        family("last_run_duration_seconds", "gauge", "How long the last run took.", &plain(seconds(self.took)));
        let of = |name: &str, result: &str| format!("{{reconciler=\"{name}\",result=\"{result}\"}}");
        let changes = sections.iter().flat_map(|(name, _)| {
            let tally = self.sections.get(*name).unwrap_or(&none);
            [("applied", tally.applied), ("failed", tally.failed)]
                .map(|(result, count)| (of(name, result), count.to_string()))
        });
        let changes: Vec<_> = changes.collect();
        family("changes_total", "counter", "Changes by section and result.", &changes);
        let help = "Differences that the last run left: failed, held back, or only observed.";
        family("differences", "gauge", help, &each(&|_, now| now.left));
        let help = "Changes that the last run could not safely make, and reads that failed.";
        family("blocked", "gauge", help, &each(&|_, now| now.blocked));
        let help = "Repairs that another program undoes again and again, now.";
        family("contended_repairs", "gauge", help, &each(&|_, now| now.contended));
        let help = "How many runs found repairs that are undone again and again.";
        family("contention_total", "counter", help, &each(&|tally, _| tally.contentions));
        let help = "Whether a container on this node stands back for this node-fixer.";
        family("standing_back", "gauge", help, &plain(u8::from(self.guest).to_string()));
        family("kube_proxy_restarts_total", "counter", "Restarts of kube-proxy.", &plain(self.restarts.to_string()));
        let help = "Runs that restored rules of several pods or uplinks that were missing at once.";
        family("rule_flushes_total", "counter", help, &plain(self.flushes.to_string()));
        let help = "Rules of the VPC CNI that were restored.";
        family("restored_rules_total", "counter", help, &plain(self.restored.to_string()));
        let help = "Changes of the network that the kernel has announced to the watcher.";
        family("watch_events_total", "counter", help, &plain(self.events.to_string()));
        family("watch_runs_total", "counter", "Runs that the watcher has started.", &plain(self.watched.to_string()));
        let help =
            "Time from the announcement of a change to the end of the run that repaired something because of it.";
        family("watch_repair_seconds", "histogram", help, &self.reaction.samples());
        text
    }
}

impl Now {
    /// What a run left of this section.
    pub fn of(section: &str, outcome: &Outcome) -> Now {
        let left =
            outcome.changes.iter().filter(|item| item.reconciler == section && item.status != ChangeStatus::Applied);
        let counts = |refused: &&BlockedRecord| !refused.observed || refused.blocked.unseen;
        let blocked = outcome.blocked.iter().filter(|refused| refused.reconciler == section).filter(counts);
        Now { left: left.count() as u64, blocked: blocked.count() as u64, contended: 0 }
    }
}

/// Counters from a file may be anything, so they saturate.
fn add(count: &mut u64) {
    *count = count.saturating_add(1);
}

fn seconds(time: Duration) -> String {
    format!("{}.{:06}", time.as_secs(), time.subsec_micros())
}
