//! One run: look, plan, apply; and if anything was applied, look and plan again until nothing new is to be done.
//! A dry run stops after the first plan.

use std::collections::BTreeSet;
use std::sync::Arc;

use tracing::{debug, error, info, warn};

use crate::change::{Blocked, Change, Group, Notice, Plan, Step};
use crate::desired::{Desired, Mode};
use crate::memory::{Note, Reported};
use crate::net::IfName;
use crate::observed::{Gap, Observed};
use crate::reconcile::{ALL, Reconciler};
use crate::sys::{Applied, ApplyError, Node};

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// Whether anything was allowed to be changed.
    pub dry_run: bool,
    /// Changes, in the order in which they are made.
    pub items: Vec<Item>,
    /// Wishes that cannot safely be met, and looks that failed.
    pub blocked: Vec<Refused>,
    /// What is worth knowing and is none of what is to be done, each with the name of its section.
    pub notices: Vec<(&'static str, Notice)>,
    /// Something was not permitted.
    pub not_permitted: bool,
}

/// One change and what became of it.
#[derive(Debug)]
pub struct Item {
    /// Name of the section.
    pub reconciler: &'static str,
    /// The change.
    pub change: Change,
    /// Why.
    pub reason: String,
    /// What became of it.
    pub status: Status,
    /// Why it failed.
    pub error: Option<String>,
    /// Whether it was put off: its time has not come.
    pub held: bool,
    /// Whether this run has changed something by it, and has not taken it back: whether or not it lasted.
    pub(crate) made: bool,
    /// Whether it may have been made all the same, though it failed: the kernel's answer was lost.
    pub(crate) unanswered: bool,
}

/// What became of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// A run would make it.
    Planned,
    /// Made, and not missed by the second look.
    Applied,
    /// Refused, or made and missed by the second look.
    Failed,
    /// Not made, because one before it failed, or because its time has not come.
    Skipped,
    /// Never made: the section only observes.
    Observed,
}

/// A wish that was not met, or could not even be judged.
#[derive(Debug)]
pub struct Refused {
    /// Name of the section.
    pub reconciler: &'static str,
    /// What and why.
    pub blocked: Blocked,
    /// Whether the section only observes.
    pub observed: bool,
}

impl Outcome {
    /// Whether nothing is left to do and nothing is blocked. What is only observed does not count.
    pub fn converged(&self) -> bool {
        self.all_well() && !self.items.iter().any(|item| item.held)
    }

    /// Whether nothing failed and nothing is blocked: what is left to do, if anything, waits for its time.
    pub fn all_well(&self) -> bool {
        let fine = |item: &Item| item.held || matches!(item.status, Status::Applied | Status::Observed);
        self.items.iter().all(fine) && self.blocked.iter().all(|refused| refused.observed && !refused.blocked.unseen)
    }

    /// Whether everything could be looked at.
    pub fn could_look(&self) -> bool {
        !self.blocked.iter().any(|refused| refused.blocked.unseen)
    }
}

/// How often a run mends before its last look. One round does it, but where something changed meanwhile or one
/// section's changes gave another something to do.
const ROUNDS: u32 = 3;

/// Why a run ended before its last look.
const TOLD_TO_STOP: &str = "this run was told to stop; the next run continues";

/// Runs once. A dry run changes nothing and takes no lock.
pub fn run(desired: &Desired, node: &mut Node, dry_run: bool) -> Outcome {
    let (items, blocked, notices) = (Vec::new(), Vec::new(), Vec::new());
    let mut outcome = Outcome { dry_run, items, blocked, notices, not_permitted: false };
    let mut seen = Observed::default();
    for round in 0..=ROUNDS {
        if !outcome.round(desired, node, &mut seen, round < ROUNDS, false) {
            break;
        }
        seen = Observed::default();
    }
    // What waits keeps nobody else waiting. Where nothing was tried, all that was seen is still so; only the time goes on.
    seen.recall = None;
    outcome.round(desired, node, &mut seen, true, true);
    if !dry_run {
        outcome.log_held();
        outcome.log_blocked();
        outcome.log_notices(desired, node);
    }
    debug!(converged = outcome.converged(), changes = outcome.items.len(), blocked = outcome.blocked.len(), "done");
    outcome
}

/// Plans, looking at what the plan asks for until it asks for nothing more. Every look is answered or fails, so
/// no look is asked for twice.
fn plan(reconciler: &Reconciler, desired: &Desired, node: &mut Node, seen: &mut Observed) -> Result<Plan, Arc<str>> {
    loop {
        match (reconciler.plan)(desired, seen) {
            Ok(plan) => return Ok(plan),
            Err(Gap::Failed(why)) => return Err(why),
            Err(Gap::Unseen(wants)) => {
                debug!(reconciler = reconciler.name, ?wants, "looking");
                node.look(wants, seen);
            }
        }
    }
}

impl Outcome {
    /// Looks once, and section by section, of those that wait or of those that do not, plans and makes the changes
    /// that were not tried yet. Returns whether anything was tried, so that somebody has to look again.
    fn round(&mut self, desired: &Desired, node: &mut Node, seen: &mut Observed, may_mend: bool, waits: bool) -> bool {
        let sections = || ALL.iter().filter(|reconciler| reconciler.waits == waits);
        let is_of_others = |name: &str| !sections().any(|reconciler| reconciler.name == name);
        self.blocked.retain(|refused| is_of_others(refused.reconciler));
        self.notices.retain(|(reconciler, _)| is_of_others(reconciler));
        let bridges: BTreeSet<&IfName> = desired.bridges.iter().map(|bridge| &bridge.name).collect();
        let mut tried = false;
        let mut removals = Vec::new();
        for reconciler in sections() {
            let mode = (reconciler.mode)(desired);
            if mode == Mode::Off {
                continue;
            }
            let (name, observed) = (reconciler.name, mode == Mode::Observe);
            let plan = plan(reconciler, desired, node, seen).unwrap_or_else(|why| {
                let blocked = Blocked::unseen(format!("to know what {name} has to do"), why.to_string());
                Plan { blocked: vec![blocked], ..Plan::default() }
            });
            let refused = |blocked| Refused { reconciler: name, blocked, observed };
            self.blocked.extend(plan.blocked.into_iter().map(refused));
            self.notices.extend(plan.notices.into_iter().map(|notice| (name, notice)));
            if node.told_to_stop() {
                removals.clear();
                self.cut_short(name);
                break;
            }
            let notes = if self.dry_run { Vec::new() } else { plan.remember };
            let noted = notes.into_iter().all(|note| self.remember(node, name, note));
            let status = if observed { Status::Observed } else { Status::Skipped };
            let held = plan.held.into_iter().map(|step| Item { held: true, status, ..Item::new(name, step) });
            self.items.extend(held);
            self.steps(node, &bridges, name, plan.observed, true, false);
            tried |= self.steps(node, &bridges, name, plan.steps, observed, may_mend && noted);
            removals.push((name, plan.removals, observed, may_mend && noted));
        }
        for (name, steps, observed, may_mend) in removals.into_iter().rev() {
            tried |= self.steps(node, &bridges, name, steps, observed, may_mend);
        }
        tried
    }

    /// Makes a plan's changes, in their order. One that fails takes along what belongs together with it, in whichever
    /// section, and nothing else. What was made and is planned again has failed. Returns whether anything was tried.
    fn steps(
        &mut self,
        node: &mut Node,
        bridges: &BTreeSet<&IfName>,
        name: &'static str,
        steps: Vec<Step>,
        observed: bool,
        may_mend: bool,
    ) -> bool {
        let mut tried = false;
        let group = |change: &Change| {
            let counts = |group: &Group| !matches!(group, Group::Link(name) if !bridges.contains(name));
            change.group().filter(counts)
        };
        let failed = self.items.iter().filter(|item| item.status == Status::Failed);
        let mut failed: BTreeSet<Group> = failed.filter_map(|item| group(&item.change)).collect();
        let mut stopped = !may_mend;
        // What is planned again is mostly planned in the same order: the search goes on where it has found the last one.
        let of_section = |(at, item): (usize, &Item)| (item.reconciler == name).then_some(at);
        let earlier: Vec<usize> = self.items.iter().enumerate().filter_map(of_section).collect();
        let mut next = 0;
        for step in steps {
            let is_it = |at: &usize| self.items.get(*at).is_some_and(|item| item.change.is_again(&step.change));
            let (before, after) = earlier.split_at(next);
            let found = after.iter().position(is_it).map(|at| next + at).or_else(|| before.iter().position(is_it));
            next = found.map_or(next, |found| found + 1);
            let known = found.and_then(|found| earlier.get(found).copied());
            let at = known.unwrap_or(self.items.len());
            match self.items.get_mut(at) {
                None => self.items.push(Item::new(name, step)),
                Some(item) if item.status == Status::Skipped => item.change = step.change,
                Some(_) => {}
            }
            let Some(item) = self.items.get_mut(at) else { continue };
            let group = group(&item.change);
            match item.status {
                Status::Skipped if observed => item.status = Status::Observed,
                Status::Skipped if self.dry_run => item.status = Status::Planned,
                Status::Skipped if !stopped && !group.as_ref().is_some_and(|group| failed.contains(group)) => {
                    tried = true;
                    // What is not permitted once is not permitted for the rest either.
                    stopped = item.apply(node);
                    self.not_permitted |= stopped;
                }
                Status::Applied => item.is_missed(),
                _ => {}
            }
            if let Some(group) = group.filter(|_| item.status == Status::Failed) {
                let why = format!("{} failed", item.change);
                self.take_back(node, &group, &why);
                failed.insert(group);
            }
        }
        tried
    }

    /// Nothing is concluded from what was cut short, and least of all that all is well.
    fn cut_short(&mut self, reconciler: &'static str) {
        if !self.blocked.iter().any(|refused| refused.blocked.because == TOLD_TO_STOP) {
            let blocked = Blocked::unseen(format!("finish the run, from {reconciler} on"), TOLD_TO_STOP.into());
            self.blocked.push(Refused { reconciler, blocked, observed: false });
        }
    }

    /// Takes back what this run has done of what belongs together, the last first.
    fn take_back(&mut self, node: &mut Node, group: &Group, why: &str) {
        let of_it = |item: &&mut Item| item.is_ours() && item.change.group().as_ref() == Some(group);
        for item in self.items.iter_mut().rev().filter(of_it) {
            item.take_back(node, why);
        }
    }

    /// Takes a note for the next run; whether that worked.
    fn remember(&mut self, node: &mut Node, reconciler: &'static str, note: Note) -> bool {
        let Err(error) = node.remember(note) else { return true };
        let want = "to remember for the next run".into();
        let because = format!("the state directory cannot be written: {error}; name another by --state-dir");
        self.blocked.push(Refused { reconciler, blocked: Blocked::new(want, because), observed: false });
        false
    }

    fn log_held(&self) {
        for Item { reconciler, change, reason, .. } in self.items.iter().filter(|item| item.waits()) {
            info!(target: "held", reconciler, command = %change, reason, action = change.action().word(), "held back");
        }
    }

    fn log_blocked(&self) {
        for Refused { reconciler, blocked: Blocked { want, because, unseen }, observed } in &self.blocked {
            match () {
                () if *unseen => warn!(target: "unseen", reconciler, want, because, "blocked"),
                () if *observed => debug!(reconciler, want, because, "blocked, and only observed"),
                () => warn!(target: "blocked", reconciler, want, because, "blocked"),
            }
        }
    }
}

impl Outcome {
    /// Reports each notice once, as long as it is so. That it cannot be remembered is no failure of the run.
    fn log_notices(&self, desired: &Desired, node: &mut Node) {
        // What cannot be read for now is reported once more.
        let reported = node.reported().cloned().unwrap_or_default();
        // Nothing is concluded from what was cut short.
        if node.told_to_stop() || self.notices.is_empty() && reported.is_empty() {
            return;
        }
        let mut now = Reported::new();
        for reconciler in ALL.iter().filter(|reconciler| (reconciler.mode)(desired) != Mode::Off) {
            let name = reconciler.name;
            let before = reported.get(name).map_or(&[][..], Vec::as_slice);
            let mut texts = Vec::new();
            for (_, notice) in self.notices.iter().filter(|(section, _)| *section == name) {
                if !before.contains(&notice.text) {
                    warn!(target: "notice", reconciler = name, reason = notice.text, "notice");
                }
                texts.push(notice.text.clone());
            }
            // What could not be seen may still be so.
            if self.blocked.iter().any(|refused| refused.reconciler == name && refused.blocked.unseen) {
                texts.extend(before.iter().filter(|text| !texts.contains(text)).cloned().collect::<Vec<_>>());
            }
            if !texts.is_empty() {
                now.insert(name.to_owned(), texts);
            }
        }
        if now != reported
            && let Err(error) = node.remember(Note::Reported(now))
        {
            warn!(%error, "what was reported could not be remembered, and is reported again by the next run");
        }
    }
}

impl Item {
    /// A change that was not tried yet.
    fn new(reconciler: &'static str, Step { change, reason }: Step) -> Item {
        Item {
            reconciler,
            change,
            reason,
            status: Status::Skipped,
            error: None,
            held: false,
            made: false,
            unanswered: false,
        }
    }

    /// Whether it is to be done, but not now.
    fn waits(&self) -> bool {
        self.held && self.status == Status::Skipped
    }

    /// Whether there is something to take back. Where the change was missed, whatever is there now is another's; where
    /// its answer was lost, only a route can be told from another's, by its protocol number.
    fn is_ours(&self) -> bool {
        let may_be_there = self.unanswered && matches!(self.change, Change::AddRoute(_));
        may_be_there || self.made && self.status != Status::Failed
    }

    /// Makes the change; whether that was not permitted.
    fn apply(&mut self, node: &mut Node) -> bool {
        match node.apply(&self.change) {
            Ok(Applied { made, told }) => {
                self.made = made;
                self.status = Status::Applied;
                self.reason.extend(told.iter().flat_map(|told| ["; ", told]));
                let Item { reconciler, change, reason, .. } = self;
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

    /// Takes the change back.
    fn take_back(&mut self, node: &mut Node, why: &str) {
        self.made = false;
        let Some(back) = self.change.undone() else { return };
        match node.take_back(&back) {
            // It has failed already; now it is certain that it is not there.
            Ok(_) if self.status == Status::Failed => self.unanswered = false,
            Ok(_) => {
                let action = back.action().word();
                info!(target: "taken_back", reconciler = self.reconciler, command = %back, reason = why, action, "taken back");
                self.status = Status::Skipped;
                self.error = Some(format!("made, and taken back: {why}"));
            }
            Err(error) => {
                let (reconciler, action) = (self.reconciler, back.action().word());
                error!(target: "failed", reconciler, command = %back, reason = why, %error, action, "failed to take back");
                self.error = Some(format!("made, and could not be taken back ({back}: {error}), though {why}"));
            }
        }
    }

    /// The change was made, and is planned again: it did not last.
    fn is_missed(&mut self) {
        self.failed("the kernel accepted it, but the second look misses it; does another program undo it?".into());
    }

    fn failed(&mut self, error: String) {
        let Item { reconciler, change, reason, .. } = self;
        error!(target: "failed", reconciler, command = %change, reason, error, action = change.action().word(), "failed");
        self.status = Status::Failed;
        self.error = Some(error);
    }
}
