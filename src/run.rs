//! One run: look, plan, apply; and if anything was applied, look and plan again until nothing new is to be done.
//! A dry run stops after the first plan.

use std::sync::Arc;

use tracing::{debug, error, info, warn};

use crate::change::{Blocked, Change, Plan, Step};
use crate::desired::{Desired, Mode};
use crate::memory::Memory;
use crate::observed::{Gap, Observed};
use crate::reconcile::{ALL, Reconciler};
use crate::sys::{ApplyError, Node};

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// Whether anything was allowed to be changed.
    pub dry_run: bool,
    /// Changes, in the order in which they are made.
    pub items: Vec<Item>,
    /// Wishes that cannot safely be met, and looks that failed.
    pub blocked: Vec<Refused>,
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

/// Runs once. A dry run changes nothing and takes no lock.
pub fn run(desired: &Desired, node: &mut Node, dry_run: bool) -> Outcome {
    let mut outcome = Outcome { dry_run, items: Vec::new(), blocked: Vec::new(), not_permitted: false };
    for round in 0..=ROUNDS {
        let may_mend = round < ROUNDS;
        if !outcome.round(plans(desired, node), desired, node, may_mend) {
            break;
        }
    }
    if !dry_run {
        outcome.log_blocked();
    }
    debug!(converged = outcome.converged(), changes = outcome.items.len(), blocked = outcome.blocked.len(), "done");
    outcome
}

/// The plan of a section, or why it has none.
type Planned = (&'static Reconciler, Result<Plan, Arc<str>>);

/// The plan of every section that is not off. One look serves them all.
fn plans(desired: &Desired, node: &mut Node) -> Vec<Planned> {
    let mut seen = Observed::default();
    let on = ALL.iter().filter(|reconciler| (reconciler.mode)(desired) != Mode::Off);
    on.map(|reconciler| (reconciler, plan(reconciler, desired, node, &mut seen))).collect()
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
    /// Makes the changes that the plans have and that were not tried yet. What was made and is planned again has
    /// failed. Returns whether anything was tried, so that somebody has to look again.
    fn round(&mut self, plans: Vec<Planned>, desired: &Desired, node: &mut Node, may_mend: bool) -> bool {
        self.blocked.clear();
        self.items.retain(|item| !item.held);
        let mut tried = false;
        for (reconciler, plan) in plans {
            let observed = (reconciler.mode)(desired) == Mode::Observe;
            let name = reconciler.name;
            let mut stopped = !may_mend;
            let plan = self.without_blocked(name, observed, plan);
            if let Some(memory) = plan.remember.filter(|_| !self.dry_run) {
                self.remember(node, name, &memory);
            }
            for Step { change, reason } in plan.held {
                self.items.push(Item {
                    reconciler: name,
                    change,
                    reason,
                    status: Status::Skipped,
                    error: None,
                    held: true,
                });
            }
            for Step { change, reason } in plan.steps {
                if let Some(at) = self.items.iter().position(|item| item.change == change) {
                    let Some(item) = self.items.get_mut(at) else { continue };
                    if item.status == Status::Skipped && !stopped {
                        // What it waited for is done.
                        self.items.remove(at);
                    } else {
                        stopped |= item.is_missed_again();
                        continue;
                    }
                }
                let (status, error) = match () {
                    () if observed => (Status::Observed, None),
                    () if self.dry_run => (Status::Planned, None),
                    () if stopped => (Status::Skipped, None),
                    () => {
                        tried = true;
                        self.apply(node, name, &change, &reason)
                    }
                };
                // What follows in the plan builds on it.
                stopped |= status == Status::Failed;
                self.items.push(Item { reconciler: name, change, reason, status, error, held: false });
            }
        }
        tried
    }

    fn apply(&mut self, node: &mut Node, reconciler: &str, change: &Change, reason: &str) -> (Status, Option<String>) {
        match node.apply(change) {
            Ok(()) => {
                info!(reconciler, command = %change, reason, "changed");
                (Status::Applied, None)
            }
            Err(error) => {
                self.not_permitted |= matches!(error, ApplyError::NotPermitted(_));
                error!(reconciler, command = %change, reason, %error, "failed");
                (Status::Failed, Some(error.to_string()))
            }
        }
    }

    fn remember(&mut self, node: &mut Node, reconciler: &'static str, memory: &Memory) {
        if let Err(error) = node.remember(memory) {
            let want = "to remember for the next run".into();
            let because = format!("the state directory cannot be written: {error}; name another by --state-dir");
            self.blocked.push(Refused { reconciler, blocked: Blocked::new(want, because), observed: false });
        }
    }

    /// Puts aside what is blocked in a plan, and returns the rest.
    fn without_blocked(&mut self, name: &'static str, observed: bool, plan: Result<Plan, Arc<str>>) -> Plan {
        let plan = plan.unwrap_or_else(|why| {
            let blocked = Blocked::unseen(format!("to know what {name} has to do"), why.to_string());
            Plan { blocked: vec![blocked], ..Plan::default() }
        });
        let refused = |blocked| Refused { reconciler: name, blocked, observed };
        self.blocked.extend(plan.blocked.into_iter().map(refused));
        Plan { blocked: Vec::new(), steps: plan.steps, held: plan.held, remember: plan.remember }
    }

    fn log_blocked(&self) {
        for Refused { reconciler, blocked: Blocked { want, because, .. }, observed } in &self.blocked {
            if *observed {
                info!(reconciler, want, because, "blocked, and only observed");
            } else {
                warn!(reconciler, want, because, "blocked");
            }
        }
    }
}

impl Item {
    /// A change is planned that was planned before. If it was made, then it did not last.
    fn is_missed_again(&mut self) -> bool {
        if self.status == Status::Applied {
            let why = "the kernel accepted it, but the second look misses it; does another program undo it?";
            error!(reconciler = self.reconciler, command = %self.change, reason = self.reason, error = why, "failed");
            self.status = Status::Failed;
            self.error = Some(why.into());
        }
        matches!(self.status, Status::Failed | Status::Skipped)
    }
}
