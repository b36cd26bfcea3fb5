//! The node and its saved state, as a run uses them.

mod restart;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use crate::change::{Change, Op};
use crate::history::cni_rules::SavedRules;
use crate::history::memory::{Ledger, Patience, Recall};
use crate::model::{PROTO_MENDED, Route};
use crate::node::{Applied, ApplyError, Dumps, Node, Root};
use crate::observed::{Gap, Look, LookAt, Observed, Past, RouteSet, SeenRoute, Want};
use crate::signals::Stop;
use crate::store::Store;
use crate::tape::Tape;
use crate::topology::has_default;

/// A run that leaves all other waits to others still waits this long.
const MOMENT: Duration = Duration::from_millis(50);

/// This host, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Host {
    node: Node,
    /// State from earlier runs.
    pub store: Store,
    stop: Stop,
    /// The port at which the watcher listens that started this run.
    watcher: Option<u32>,
    /// What the last run of the watcher has reported and could not save, as in its order; otherwise 0.
    pub unsaved: u64,
}

impl Host {
    /// Opens the connection to the kernel.
    ///
    /// # Errors
    ///
    /// No netlink socket could be opened.
    pub fn open(store: Store) -> anyhow::Result<Host> {
        let stop = Stop::default();
        Ok(Host { node: Node::open(stop.clone())?, store, stop, watcher: None, unsaved: 0 })
    }

    /// The same for a run of the watcher, which listens at this port. The last run could not save what it reported.
    pub fn watched_at(self, port: u32, unsaved: u64) -> Host {
        Host { watcher: Some(port), unsaved, ..self }
    }

    /// Marks for the watcher that everything announced so far happened before the following looks.
    pub fn mark(&self) {
        self.watcher.into_iter().for_each(|port| self.node.mark(port));
    }

    /// A node as it was captured; or, if the tape records, as it is captured now.
    pub fn captured(dumps: Arc<Dumps>, store: Store, tape: Tape) -> Host {
        let stop = Stop::default();
        Host { node: Node::captured(dumps, stop.clone(), tape), store, stop, watcher: None, unsaved: 0 }
    }

    /// The root directory of this node.
    pub fn root(&self) -> Root {
        self.node.root()
    }

    /// Where what is seen of this node is recorded, or comes from.
    pub fn tape(&self) -> &Tape {
        self.node.tape()
    }

    /// Removes the temporary files that an interrupted run may have left. Only under the lock.
    pub fn tidy(&self) {
        self.store.tidy();
        self.node.tidy();
    }

    /// Whether a signal asked this process to stop.
    pub fn is_interrupted(&self) -> bool {
        self.stop.requested()
    }

    /// Asks a plan, looking at whatever it has not seen yet, until it returns an answer. Every look is answered or
    /// fails, so nothing is looked at twice.
    pub fn ask<T>(&mut self, seen: &mut Observed, question: impl Fn(&Observed) -> Result<T, Gap>) -> Look<T> {
        loop {
            let wants = match question(seen) {
                Ok(answer) => return Ok(answer),
                Err(Gap::Failed(why)) => return Err(why),
                Err(Gap::Unseen(wants)) => wants,
            };
            for want in wants {
                let takes_its_time = matches!(want, Want::Pods(_));
                if takes_its_time {
                    self.store.let_others();
                }
                let Host { node, store, stop, .. } = self;
                seen.look(want, node, &mut Remembered { store, stop });
                if takes_its_time {
                    self.store.retake();
                }
            }
        }
    }

    /// Makes one change of a plan, unless that would leave a table without a replacement.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn apply(&mut self, change: &Change) -> Result<Applied, ApplyError> {
        match change {
            Change::Route(Op::Delete(route)) => {
                self.is_replaced(route)?;
                self.make(change)
            }
            Change::RestartPod(restart) => {
                self.store.let_others();
                let restarted = self.restart(change, restart);
                self.store.retake();
                restarted
            }
            _ => self.make(change),
        }
    }

    /// Makes one change.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn make(&mut self, change: &Change) -> Result<Applied, ApplyError> {
        self.node.make(change)
    }

    /// Refuses to delete a route that repairs a table while the table has no replacement for it: the replacement may
    /// have been refused, or deleted since the look.
    fn is_replaced(&mut self, route: &Route) -> Result<(), ApplyError> {
        if route.protocol != PROTO_MENDED {
            return Ok(());
        }
        let seen = self.node.routes(&RouteSet::Table(route.family(), route.table));
        let seen = seen.map_err(|error| ApplyError::Refused(error.to_string()))?;
        let is_it =
            |it: &SeenRoute| it.protocol == PROTO_MENDED && it.to == route.to && it.metric == route.stored_metric();
        let mut rest = seen.iter().filter(|it| !is_it(it));
        let (is_there, what) = match route.to.network_length() {
            0 => (has_default(rest), "default route"),
            _ => (rest.any(|it| it.to == route.to), "route to it"),
        };
        let refused = || ApplyError::Refused(format!("table {} has no other {what}; this one is kept", route.table));
        is_there.then_some(()).ok_or_else(refused)
    }
}

/// The saved state and the time, for plans.
struct Remembered<'a> {
    store: &'a mut Store,
    stop: &'a Stop,
}

impl Past for Remembered<'_> {
    fn ledger(&mut self) -> anyhow::Result<Ledger> {
        Ok(self.store.ledger()?.clone())
    }

    fn recall(&mut self) -> anyhow::Result<Recall> {
        Ok(self.store.recall()?)
    }

    fn cni_memory(&mut self) -> anyhow::Result<SavedRules> {
        Ok(self.store.pods()?)
    }

    fn settle(&mut self, time: Duration) -> anyhow::Result<()> {
        let waits = match self.store.patience() {
            Patience::Wait => true,
            Patience::Watched | Patience::Due => time <= MOMENT,
            Patience::AnswerNow => false,
        };
        if waits {
            self.stop.listen().context("cannot listen for signals")?;
            anyhow::ensure!(self.stop.sleep(time), "interrupted by a signal while waiting for a second look");
        }
        Ok(())
    }
}
