//! One run: look, plan, apply. If anything was applied, look and plan again until nothing new is to be done. A dry run
//! stops after the first plan. The watcher starts two kinds of runs: one leaves out sections that wait, the other only
//! plans those.

mod patience;
mod standing;

use std::collections::BTreeSet;

use tracing::{debug, error, info};

use crate::change::{Blocked, Change, Group, Plan, Step, When};
use crate::config::{Config, Mode};
use crate::history::memory::{Note, Patience};
use crate::host::Host;
use crate::model::IfName;
use crate::node::{Applied, ApplyError};
use crate::observed::{Gap, Look, Observed};
use crate::outcome::{BlockedRecord, ChangeRecord, ChangeStatus, Outcome, RunMode};
use crate::reconcile::{ALL, Reconciler};
use crate::sorted;
use patience::Undone;
use standing::Standing;

/// How many rounds of repairs a run makes before its last look. One is enough, unless the node changed meanwhile or the
/// changes of one section require changes of another.
const ROUNDS: u32 = 3;

/// Why a run ended before its last look.
const INTERRUPTED: &str = "this run was interrupted by a signal; the next run continues";

/// Which sections a round covers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Those that finish at once.
    Main,
    /// Those that take time. They run after all others.
    Last,
}

/// The purpose of a round.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// Make the changes that were not tried yet.
    Repair,
    /// Check that the changes made have lasted.
    Verify,
}

/// How the changes of a plan are handled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Treatment {
    /// Reported as observed only.
    Observe,
    /// Reported as planned.
    Show,
    /// Made, unless tried before.
    Make,
    /// Not made any more.
    Verify,
}

/// Makes one run.
pub fn run(desired: &Config, host: &mut Host) -> Outcome {
    let mut run = Run::new(desired, host, RunMode::Real);
    run.all_rounds();
    run.outcome.log_restored();
    run.log_standing();
    run.done()
}

/// Finds what a run would do; also returns what was observed. It changes nothing and takes no lock.
pub fn dry_run(desired: &Config, host: &mut Host) -> (Outcome, Observed) {
    let mut run = Run::new(desired, host, RunMode::Dry);
    let seen = run.all_rounds();
    (run.done(), seen)
}

/// A run in progress.
struct Run<'a> {
    desired: &'a Config,
    host: &'a mut Host,
    /// The declared bridges. If a part of one fails, the rest is taken back.
    bridges: BTreeSet<&'a IfName>,
    outcome: Outcome,
    standing: Standing,
    undone: Undone,
    /// Whether sections that wait were left out because another run handles them.
    left_out: bool,
}

impl<'a> Run<'a> {
    fn new(desired: &'a Config, host: &'a mut Host, mode: RunMode) -> Run<'a> {
        let bridges = sorted::set(desired.bridges.iter().map(|bridge| &bridge.name));
        let (standing, undone) = (Standing::new(host), Undone::new(host, desired.watch.pace.0));
        Run { desired, host, bridges, outcome: Outcome::new(mode), standing, undone, left_out: false }
    }

    /// Makes repairs until nothing new is to be done; returns the last observations.
    fn all_rounds(&mut self) -> Observed {
        let mut seen = Observed::default();
        let rounds = if self.host.store.patience() == Patience::Due { 0 } else { ROUNDS + 1 };
        for round in 0..rounds {
            let pass = if round < ROUNDS { Pass::Repair } else { Pass::Verify };
            // The last look makes no repairs, so what was announced since the one before needs another run.
            if pass == Pass::Repair {
                self.host.mark();
            }
            if !self.round(&mut seen, Phase::Main, pass) {
                break;
            }
            seen = Observed::default();
        }
        // Sections that take time come last, so that they delay no other. If nothing was tried, everything seen still
        // holds; only the time has passed.
        (seen.recall, seen.settled) = (None, None);
        std::mem::take(&mut self.undone).remember(self.host);
        if self.host.store.claim_restarts() {
            self.round(&mut seen, Phase::Last, Pass::Repair);
        } else {
            debug!("restarts of kube-proxy are left to another run");
            self.left_out = true;
        }
        seen
    }

    fn done(self) -> Outcome {
        let Outcome { changes, blocked, .. } = &self.outcome;
        debug!(converged = self.outcome.converged(), changes = changes.len(), blocked = blocked.len(), "done");
        self.outcome
    }

    /// Looks once. Then plans section by section, and makes the changes that were not tried yet. Returns whether
    /// anything was tried, which requires another look.
    fn round(&mut self, seen: &mut Observed, phase: Phase, pass: Pass) -> bool {
        let sections = || ALL.iter().filter(|reconciler| reconciler.waits == (phase == Phase::Last));
        let is_of_others = |name: &str| !sections().any(|reconciler| reconciler.name == name);
        self.outcome.blocked.retain(|record| is_of_others(record.reconciler));
        self.outcome.notices.retain(|(reconciler, _)| is_of_others(reconciler));
        let mut tried = false;
        let mut removals = Vec::new();
        for reconciler in sections() {
            let (name, mode) = (reconciler.name, (reconciler.mode)(self.desired));
            if mode == Mode::Off {
                continue;
            }
            let plan = self.plan(reconciler, seen).unwrap_or_else(|why| {
                let blocked = Blocked::unseen(format!("determine what {name} has to change"), why.to_string());
                Plan { blocked: vec![blocked], ..Plan::default() }
            });
            let observed = mode == Mode::Observe;
            let record = |blocked| BlockedRecord { reconciler: name, blocked, observed };
            self.outcome.blocked.extend(plan.blocked.into_iter().map(record));
            self.outcome.notices.extend(plan.notices.into_iter().map(|notice| (name, notice)));
            if self.host.is_interrupted() {
                removals.clear();
                self.cut_short(name);
                break;
            }
            let treatment = self.treatment(name, plan.remember, mode, pass);
            let status = if observed { ChangeStatus::Observed } else { ChangeStatus::Skipped };
            let held =
                plan.held.into_iter().map(|step| ChangeRecord { held: true, status, ..ChangeRecord::new(name, step) });
            self.outcome.changes.extend(held);
            self.outcome.restart_due = plan.due.or(self.outcome.restart_due);
            self.outcome.repair_due = self.outcome.repair_due.into_iter().chain(plan.again).min();
            self.steps(name, plan.observed, Treatment::Observe);
            tried |= self.steps(name, plan.steps, treatment);
            removals.push((name, plan.removals, treatment));
        }
        for (name, steps, treatment) in removals.into_iter().rev() {
            tried |= self.steps(name, steps, treatment);
        }
        tried
    }

    /// Plans, looking at whatever the plan asks for.
    fn plan(&mut self, reconciler: &Reconciler, seen: &mut Observed) -> Look<Plan> {
        let desired = self.desired;
        self.host.ask(seen, |seen| {
            let plan = reconciler.plan(desired, seen);
            if let Err(Gap::Unseen(wants)) = &plan {
                debug!(reconciler = reconciler.name, ?wants, "looking");
            }
            plan
        })
    }

    /// How the changes of a section are handled. None is made unless the notes for the next run were written first.
    fn treatment(&mut self, name: &'static str, notes: Vec<Note>, mode: Mode, pass: Pass) -> Treatment {
        let dry = self.outcome.mode == RunMode::Dry;
        let noted = dry || notes.into_iter().all(|note| self.remember(name, note));
        match (mode, pass) {
            (Mode::Observe, _) => Treatment::Observe,
            _ if dry => Treatment::Show,
            (_, Pass::Repair) if noted => Treatment::Make,
            _ => Treatment::Verify,
        }
    }

    /// Handles the changes of a plan in order. If one fails, those that belong to it, in any section, are not made or
    /// are taken back; no others are affected. A change that was made and is planned again has failed. Returns whether
    /// anything was tried.
    fn steps(&mut self, name: &'static str, steps: Vec<Step>, treatment: Treatment) -> bool {
        let (mut tried, mut stopped) = (false, false);
        let failed = self.outcome.changes.iter().filter(|record| record.status == ChangeStatus::Failed);
        let mut failed = sorted::set(failed.filter_map(|record| group(&record.change, &self.bridges)));
        // Replanned changes mostly come in the same order, so the search continues where it last succeeded.
        let of_section = |(at, record): (usize, &ChangeRecord)| (record.reconciler == name).then_some(at);
        let earlier: Vec<usize> = self.outcome.changes.iter().enumerate().filter_map(of_section).collect();
        let (mut next, total) = (0, steps.len());
        for (number, step) in steps.into_iter().enumerate() {
            progress(name, number, total, treatment);
            let changes = &mut self.outcome.changes;
            let is_it = |at: &usize| changes.get(*at).is_some_and(|record| record.change.is_again(&step.change));
            let (before, after) = earlier.split_at(next);
            let found = after.iter().position(is_it).map(|at| next + at).or_else(|| before.iter().position(is_it));
            next = found.map_or(next, |found| found + 1);
            let known = found.and_then(|found| earlier.get(found).copied());
            let at = known.unwrap_or(changes.len());
            match changes.get_mut(at) {
                None => {
                    let record = ChangeRecord::new(name, step);
                    changes.push(ChangeRecord { reported: self.standing.knows_failed(&record), ..record });
                }
                Some(record) if record.status == ChangeStatus::Skipped => {
                    (record.change, record.notes, record.part_of) = (step.change, step.notes, step.part_of);
                }
                Some(_) => {}
            }
            let Some(record) = changes.get_mut(at) else { continue };
            let group = group(&record.change, &self.bridges);
            let wait = match (record.status, treatment) {
                (ChangeStatus::Skipped, Treatment::Make) if !record.held => self.undone.wait(record),
                _ => None,
            };
            if let Some((rest, why)) = wait {
                record.held = true;
                record.reason.extend(["; ", &why]);
                self.outcome.repair_due = Some(self.outcome.repair_due.map_or(rest, |due| due.min(rest)));
            }
            match (record.status, treatment) {
                (ChangeStatus::Skipped, Treatment::Observe) => record.status = ChangeStatus::Observed,
                (ChangeStatus::Skipped, Treatment::Show) => record.status = ChangeStatus::Planned,
                (ChangeStatus::Skipped, Treatment::Make)
                    if !stopped && !record.held && !group.as_ref().is_some_and(|group| failed.contains(group)) =>
                {
                    tried = true;
                    // Without permission for one change, there is none for the rest.
                    stopped = record.apply(self.host);
                    self.outcome.not_permitted |= stopped;
                }
                (ChangeStatus::Applied, _) => record.is_missed(),
                _ => {}
            }
            if let Some(group) = group.filter(|_| record.status == ChangeStatus::Failed) {
                let why = format!("{} failed", record.change);
                self.take_back(&group, &why);
                failed.insert(group);
            }
        }
        progress(name, total, total, treatment);
        tried
    }

    /// Records that the run was interrupted, so that it cannot pass for converged.
    fn cut_short(&mut self, reconciler: &'static str) {
        if !self.outcome.blocked.iter().any(|record| record.blocked.because == INTERRUPTED) {
            let blocked = Blocked::unseen(format!("finish the run, from {reconciler} on"), INTERRUPTED.into());
            self.outcome.blocked.push(BlockedRecord { reconciler, blocked, observed: false });
        }
    }

    /// Takes back what this run has done for a group, the last change first.
    fn take_back(&mut self, group: &Group, why: &str) {
        let of_it = |record: &&mut ChangeRecord| record.is_ours() && record.change.group().as_ref() == Some(group);
        for record in self.outcome.changes.iter_mut().rev().filter(of_it) {
            record.take_back(self.host, why);
        }
    }

    /// Writes a note for the next run; returns whether that worked.
    fn remember(&mut self, reconciler: &'static str, note: Note) -> bool {
        let Err(error) = self.host.store.remember(note) else { return true };
        let want = "save state for the next run".into();
        let because = format!("the state directory cannot be written: {error}; name another with --state-dir");
        self.outcome.blocked.push(BlockedRecord { reconciler, blocked: Blocked::new(want, because), observed: false });
        false
    }
}

/// Shows on a terminal how far a section with many changes is; at its end, nothing.
fn progress(name: &str, number: usize, total: usize, treatment: Treatment) {
    const OFTEN: usize = 500;
    if treatment != Treatment::Make || total <= OFTEN {
        return;
    }
    if number == total {
        info!(target: "progress", "");
    } else if number.is_multiple_of(OFTEN) {
        info!(target: "progress", "{name}: change {number} of {total}");
    }
}

/// The group of a change, if its failure affects others.
fn group(change: &Change, bridges: &BTreeSet<&IfName>) -> Option<Group> {
    change.group().filter(|group| !matches!(group, Group::Link(name) if !bridges.contains(name)))
}

impl ChangeRecord {
    /// Makes the change and saves its notes; returns whether it was not permitted.
    fn apply(&mut self, host: &mut Host) -> bool {
        let result = match self.remember(host, When::Before) {
            Ok(()) => self.make(host),
            Err(error) => Err(error),
        };
        match result {
            Ok(Applied { made, details }) => {
                self.made = made;
                self.status = ChangeStatus::Applied;
                self.reason.extend(details.iter().flat_map(|details| ["; ", details]));
                let ChangeRecord { reconciler, change, reason, .. } = self;
                if change.is_of_many() {
                    debug!(reconciler, command = %change, reason, "changed");
                    return false;
                }
                info!(target: "changed", reconciler, command = %change, reason, action = change.action().word(), "changed");
                false
            }
            Err(error) => {
                self.unanswered = matches!(error, ApplyError::Unanswered(_));
                self.failed(error.to_string());
                matches!(error, ApplyError::NotPermitted(_) | ApplyError::Lacks(_))
            }
        }
    }

    /// Makes the change, and writes the note about its outcome.
    fn make(&self, host: &mut Host) -> Result<Applied, ApplyError> {
        let result = host.apply(&self.change);
        match &result {
            Ok(Applied { made: true, .. }) => self.remember(host, When::Applied)?,
            // If this cannot be written, the earlier note stays, which is harmless.
            Ok(Applied { made: false, .. }) => drop(self.remember(host, When::Existed)),
            Err(ApplyError::Unanswered(_) | ApplyError::Stopped(_)) => {}
            Err(_) => self.remember(host, When::Failed)?,
        }
        result
    }

    /// Writes the notes for this moment.
    fn remember(&self, host: &mut Host, when: When) -> Result<(), ApplyError> {
        for (_, note) in self.notes.iter().filter(|(at, _)| *at == when) {
            host.store.remember(note.clone()).map_err(|error| {
                let what = match when {
                    When::TakenBack => "the state directory cannot be written".into(),
                    _ => format!("cannot save the {}", self.change.action().word()),
                };
                ApplyError::Refused(format!("{what}: {error}"))
            })?;
        }
        Ok(())
    }

    /// Takes the change back.
    fn take_back(&mut self, host: &mut Host, why: &str) {
        self.made = false;
        let Some(back) = self.change.inverse() else { return };
        let taken_back = match self.remember(host, When::TakenBack) {
            Ok(()) => host.make(&back),
            Err(error) => Err(error),
        };
        if let Ok(Applied { made: false, .. }) = taken_back {
            let _ = self.remember(host, When::Returned);
        }
        match taken_back {
            // It has failed already; now it is certain that the object does not exist.
            Ok(_) if self.status == ChangeStatus::Failed => self.unanswered = false,
            Ok(_) => {
                let action = back.action().word();
                info!(target: "taken_back", reconciler = self.reconciler, command = %back, reason = why, action, "taken back");
                self.status = ChangeStatus::Skipped;
                self.error = Some(format!("applied and taken back: {why}"));
            }
            Err(error) => {
                let (reconciler, action) = (self.reconciler, back.action().word());
                error!(target: "failed", reconciler, command = %back, reason = why, %error, action, "could not be taken back");
                self.error = Some(format!("applied; taking it back failed ({back}: {error}), although {why}"));
            }
        }
    }
}
