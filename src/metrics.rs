//! What Prometheus is told of a run, in its text format, and the counters that survive runs and reboots. Pure. Labels
//! are bounded: they are names of sections and results, never of what was mended.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::run::{Outcome, Refused, Status};

/// Name of the file in the directory of the textfile collector, which reads `*.prom`.
pub const FILE: &str = "node_fixer.prom";

/// What is counted over all runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Runs.
    pub runs: u64,
    /// When the last run ended, by the wall clock since 1970.
    pub last_run: Duration,
    /// When the last run ended that left nothing wrong.
    pub last_success: Duration,
    /// How long the last run took.
    pub took: Duration,
    /// Restarts of kube-proxy.
    pub restarts: u64,
    /// By section.
    pub sections: BTreeMap<String, Tally>,
}

/// What is counted in one section.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tally {
    /// Changes that were made.
    pub applied: u64,
    /// Changes that failed.
    pub failed: u64,
    /// In how many runs contention was found: of one repair, or of many at once.
    pub contentions: u64,
}

/// The state after a run, of one section.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Now {
    /// Differences that are still there: failed, held back, or only observed.
    pub left: u64,
    /// Wishes that are blocked. Those of a section that only observes are none; a look that failed is one.
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
        for item in &outcome.items {
            let tally = self.section(item.reconciler);
            match item.status {
                Status::Applied => add(&mut tally.applied),
                Status::Failed => add(&mut tally.failed),
                Status::Planned | Status::Skipped | Status::Observed => {}
            }
            if item.status == Status::Applied && item.change.object() == "pod" {
                add(&mut self.restarts);
            }
        }
    }

    /// Counts that repairs of a section have become contended.
    pub fn count_contention(&mut self, reconciler: &str) {
        add(&mut self.section(reconciler).contentions);
    }

    fn section(&mut self, name: &str) -> &mut Tally {
        self.sections.entry(name.to_owned()).or_default()
    }

    /// In Prometheus' text format, with each of these sections, in which nothing may have happened yet.
    pub fn text(&self, sections: &[(&'static str, Now)]) -> String {
        let mut text = String::new();
        let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, String)]| {
            // Writing to a string does not fail.
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
        let help = "Wishes that the last run could not safely meet, and looks that failed.";
        family("blocked", "gauge", help, &each(&|_, now| now.blocked));
        let help = "Repairs that somebody undoes again and again, now.";
        family("contended_repairs", "gauge", help, &each(&|_, now| now.contended));
        let help = "How often repairs were found to be undone again and again, once a run.";
        family("contention_total", "counter", help, &each(&|tally, _| tally.contentions));
        family("kube_proxy_restarts_total", "counter", "Restarts of kube-proxy.", &plain(self.restarts.to_string()));
        text
    }
}

impl Now {
    /// What a run left of this section.
    pub fn of(section: &str, outcome: &Outcome) -> Now {
        let left = outcome.items.iter().filter(|item| item.reconciler == section && item.status != Status::Applied);
        let counts = |refused: &&Refused| !refused.observed || refused.blocked.unseen;
        let blocked = outcome.blocked.iter().filter(|refused| refused.reconciler == section).filter(counts);
        Now { left: left.count() as u64, blocked: blocked.count() as u64, contended: 0 }
    }
}

/// Whatever a file said before.
fn add(count: &mut u64) {
    *count = count.saturating_add(1);
}

fn seconds(time: Duration) -> String {
    format!("{}.{:06}", time.as_secs(), time.subsec_micros())
}
