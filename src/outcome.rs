//! The result of a run: what became of each change. It decides nothing; the engine fills it in.

use std::time::Duration;

use tracing::{debug, error, info, warn};

use crate::change::{Blocked, Change, Notice, Op, Step, When};
use crate::history::memory::Note;
use crate::model::Selector;

/// The first delay of a repair that was undone at once.
const SOON: Duration = Duration::from_secs(1);
/// The delay after a failed look: the kernel's answer may have been interrupted by changes again and again.
const LATER: Duration = Duration::from_secs(3);

/// The exit code after a failure.
pub const EXIT_FAILED: u8 = 1;
/// `EX_NOPERM` of sysexits.h.
pub const EXIT_NOT_PERMITTED: u8 = 77;

/// The result of a run.
#[derive(Debug)]
pub struct Outcome {
    /// Whether the run was allowed to change anything.
    pub mode: RunMode,
    /// Changes, in the order in which they are made.
    pub changes: Vec<ChangeRecord>,
    /// Changes that are not safe, and reads that failed.
    pub blocked: Vec<BlockedRecord>,
    /// Findings that require no change, each with the name of its section.
    pub notices: Vec<(&'static str, Notice)>,
    /// Whether permission was denied.
    pub not_permitted: bool,
    /// When a restart that was held back is due, on the clock since boot.
    pub(crate) restart_due: Option<Duration>,
    /// How long until a repair that was held back is due.
    pub(crate) repair_due: Option<Duration>,
    /// The digest of what was reported, if that could not be saved; otherwise 0.
    pub(crate) unsaved: u64,
}

/// Whether a run changes anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunMode {
    /// It reports what it would change.
    Dry,
    /// It does.
    Real,
}

/// Rules of the VPC CNI that a run has restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restored {
    /// How many.
    pub rules: usize,
    /// Whether they were of several pods or uplinks at once.
    pub is_flush: bool,
}

/// One change and its result.
#[derive(Debug)]
pub struct ChangeRecord {
    /// Name of the section.
    pub reconciler: &'static str,
    /// The change.
    pub change: Change,
    /// The reason.
    pub reason: String,
    /// The result.
    pub status: ChangeStatus,
    /// The repair that it is a part of, if many changes count as one.
    pub(crate) part_of: Option<&'static str>,
    /// What is saved about it.
    pub(crate) notes: Vec<(When, Note)>,
    /// Why it failed.
    pub error: Option<String>,
    /// Whether it is held back for a later run.
    pub held: bool,
    /// Whether this run made the change and did not take it back, whether or not it lasted.
    pub(crate) made: bool,
    /// Whether it may have been made although it failed: the kernel's answer was lost.
    pub(crate) unanswered: bool,
    /// Whether an earlier run has reported the failure, and it persists.
    pub(crate) reported: bool,
}

/// The result of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangeStatus {
    /// A run would make it.
    Planned,
    /// Made, and confirmed by the second look.
    Applied,
    /// Refused, or made and gone at the second look.
    Failed,
    /// Not made, because one before it failed or because it is held back.
    Skipped,
    /// Never made: the section only observes.
    Observed,
}

/// A change that was blocked, or could not be determined.
#[derive(Debug)]
pub struct BlockedRecord {
    /// Name of the section.
    pub reconciler: &'static str,
    /// The change and the reason.
    pub blocked: Blocked,
    /// Whether the section only observes.
    pub observed: bool,
}

impl Outcome {
    /// The result before anything has happened.
    pub(crate) fn new(mode: RunMode) -> Outcome {
        Outcome {
            mode,
            changes: Vec::new(),
            blocked: Vec::new(),
            notices: Vec::new(),
            not_permitted: false,
            restart_due: None,
            repair_due: None,
            unsaved: 0,
        }
    }

    /// Whether nothing is left to do and nothing is blocked. What is only observed does not count.
    pub fn converged(&self) -> bool {
        self.all_well() && !self.changes.iter().any(|record| record.held)
    }

    /// Whether nothing failed and nothing is blocked. Changes that are held back are allowed.
    pub fn all_well(&self) -> bool {
        let fine = |record: &ChangeRecord| {
            record.held || matches!(record.status, ChangeStatus::Applied | ChangeStatus::Observed)
        };
        self.changes.iter().all(fine) && self.blocked.iter().all(|record| record.observed && !record.blocked.unseen)
    }

    /// How long until the watcher tries again without an announcement: for what was undone during the look, and for
    /// what could not be read.
    pub(crate) fn tried_again_after(&self) -> Option<Duration> {
        let missed = self.changes.iter().any(|record| record.status == ChangeStatus::Failed && record.made);
        let soon = if missed { Some(SOON) } else { None };
        soon.or_else(|| (!self.could_look()).then_some(LATER))
    }

    /// The exit code of the run.
    pub fn exit_code(&self) -> u8 {
        if self.not_permitted {
            EXIT_NOT_PERMITTED
        } else if self.all_well() {
            0
        } else {
            EXIT_FAILED
        }
    }

    /// Whether everything could be read.
    pub fn could_look(&self) -> bool {
        !self.blocked.iter().any(|record| record.blocked.unseen)
    }

    /// Restored rules that exist.
    pub fn restored(&self) -> Option<Restored> {
        let rule = |record: &'_ ChangeRecord| match &record.change {
            Change::Rule(Op::Add(rule)) if record.made && record.change.is_of_many() => {
                Some(rule.rule.selector.clone())
            }
            _ => None,
        };
        let mut all = self.changes.iter().filter_map(rule);
        let whose = |Selector { from, to, iif, .. }: Selector| (from.or(to), iif);
        let first = whose(all.next()?);
        let (mut rules, mut is_flush) = (1, false);
        for other in all {
            rules += 1;
            is_flush |= whose(other) != first;
        }
        Some(Restored { rules, is_flush })
    }

    /// Reports restored rules as one event, and removed ones as another, however many there are.
    pub(crate) fn log_restored(&self) {
        let of_many = || self.changes.iter().filter(|record| record.made && record.change.is_of_many());
        let is_removal = |record: &&ChangeRecord| matches!(record.change, Change::Rule(Op::Delete(_)));
        if let (Some(Restored { rules, .. }), Some(first)) =
            (self.restored(), of_many().find(|record| !is_removal(record)))
        {
            let ChangeRecord { reconciler, reason, .. } = first;
            let command = first.with_others(rules);
            warn!(target: "restored", reconciler, rules, command, reason, "rules of the VPC CNI were restored");
        }
        if let Some(first) = of_many().find(is_removal) {
            let ChangeRecord { reconciler, reason, .. } = first;
            let command = first.with_others(of_many().filter(is_removal).count());
            info!(target: "changed", reconciler, command = %command, reason, action = "delete", "changed");
        }
    }
}

impl BlockedRecord {
    pub(crate) fn log(&self) {
        let BlockedRecord { reconciler, blocked: Blocked { want, because, unseen }, observed } = self;
        if *unseen {
            warn!(target: "unseen", reconciler, want, because, "blocked");
        } else if *observed {
            debug!(reconciler, want, because, "blocked (only observed)");
        } else {
            warn!(target: "blocked", reconciler, want, because, "blocked");
        }
    }
}

impl ChangeRecord {
    /// The command, and how many more there are, if so many changes are reported as one.
    fn with_others(&self, number: usize) -> String {
        match number {
            1 => self.change.to_string(),
            number => format!("{} (and {} more)", self.change, number - 1),
        }
    }

    /// Reports so many changes, of which this is the first.
    pub(crate) fn log_held(&self, number: usize) {
        let ChangeRecord { reconciler, change, reason, .. } = self;
        let command = self.with_others(number);
        info!(target: "held", reconciler, %command, reason, action = change.action().word(), "held back");
    }

    /// The same for changes that failed.
    pub(crate) fn log_failed(&self, number: usize) {
        let ChangeRecord { reconciler, change, reason, .. } = self;
        let (command, error) = (self.with_others(number), self.error.as_deref().unwrap_or_default());
        error!(target: "failed", reconciler, %command, reason, error, action = change.action().word(), "failed");
    }

    /// Whether the failure is reported at the end of the run, together with others of the same repair.
    pub(crate) fn is_reported_later(&self) -> bool {
        self.status == ChangeStatus::Failed && self.part_of.is_some() && !self.reported
    }

    /// A change that was not tried yet.
    pub(crate) fn new(reconciler: &'static str, Step { change, reason, notes, part_of }: Step) -> ChangeRecord {
        ChangeRecord {
            reconciler,
            change,
            reason,
            notes,
            part_of,
            status: ChangeStatus::Skipped,
            error: None,
            held: false,
            made: false,
            unanswered: false,
            reported: false,
        }
    }

    /// The repair that it is, or is a part of. Counters use this form.
    pub(crate) fn repair(&self) -> String {
        self.part_of.map_or_else(|| self.change.without_side_writes().to_string(), str::to_owned)
    }

    /// Whether it is still to be done, but not now.
    pub(crate) fn waits(&self) -> bool {
        self.held && self.status == ChangeStatus::Skipped
    }

    /// Whether there is something to take back. If the change was gone at the second look, whatever exists now belongs
    /// to another program. If its answer was lost, only a route can be recognised, by its protocol number.
    pub(crate) fn is_ours(&self) -> bool {
        let may_be_there = self.unanswered && matches!(self.change, Change::Route(Op::Add(_)));
        may_be_there || self.made && self.status != ChangeStatus::Failed
    }

    /// The change was made and is planned again: it did not last.
    pub(crate) fn is_missed(&mut self) {
        self.failed(
            "the kernel accepted the change, but it was gone when checked again; another program may be reverting it"
                .into(),
        );
    }

    pub(crate) fn failed(&mut self, error: String) {
        let ChangeRecord { reconciler, change, reason, reported, .. } = self;
        if *reported {
            debug!(reconciler, command = %change, reason, error, "failed, as before");
        }
        self.status = ChangeStatus::Failed;
        self.error = Some(error);
        if !self.reported && !self.is_reported_later() {
            self.log_failed(1);
        }
    }
}
