//! What a plan consists of: changes to make, and wishes that cannot safely be met.

use std::fmt;
use std::time::Duration;

use crate::memory::{Knowledge, Note};
use crate::net::{Route, Rule, SysctlKey};
use crate::pod::{PodId, PodQuery};

/// What one reconciler wants done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which they must be made.
    pub steps: Vec<Step>,
    /// What is to be done, but not now.
    pub held: Vec<Step>,
    /// What should be done and cannot safely be.
    pub blocked: Vec<Blocked>,
    /// What the next run is to know. Written before any step is made; without it none is.
    pub remember: Option<Note>,
}

/// A change and the reason for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What to do.
    pub change: Change,
    /// What was found wrong, and the evidence for the cure.
    pub reason: String,
}

/// A wish that cannot safely be met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// What should be.
    pub want: String,
    /// The evidence that was found, and what an operator would do.
    pub because: String,
    /// Whether it is a look that failed, so that nobody knows what there is to do.
    pub unseen: bool,
}

impl Blocked {
    /// A wish with the evidence against it.
    pub fn new(want: String, because: String) -> Blocked {
        Blocked { want, because, unseen: false }
    }

    /// A look that failed, and what should have come of it.
    pub fn unseen(want: String, because: String) -> Blocked {
        Blocked { want, because, unseen: true }
    }
}

/// One change of the node. Its `Display` is the command that an operator would type for it: the line of a dry
/// run, of the log, and the context of an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Adds a route where none with its destination, metric and table is.
    AddRoute(Route),
    /// Puts a route in the place of the one with its destination, metric and table.
    ReplaceRoute(Route),
    /// Deletes exactly this route.
    DeleteRoute(Route),
    /// Adds a rule.
    AddRule(Rule),
    /// Deletes exactly this rule.
    DeleteRule(Rule),
    /// Writes a sysctl.
    SetSysctl {
        /// Which.
        key: SysctlKey,
        /// What to write.
        value: String,
    },
    /// Stops and removes a pod's sandbox, and waits until another one is ready.
    RestartPod(Box<RestartPod>),
}

/// The restart of a pod, and what is remembered at each turn of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestartPod {
    /// How to ask for the pod.
    pub query: PodQuery,
    /// Its sandbox; `None` where it was not looked for yet.
    pub id: Option<PodId>,
    /// Before anything is done.
    pub begun: Knowledge,
    /// When another sandbox is ready.
    pub ended: Knowledge,
    /// When something failed.
    pub failed: Knowledge,
    /// How long to wait with the next try after that.
    pub backoff: Duration,
}

impl fmt::Display for RestartPod {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.id.as_ref().map_or("ID", PodId::as_str);
        let command = |verb| self.query.command(&self.query.args(&[verb, id]));
        write!(f, "{} && {}", command("stopp"), command("rmp"))
    }
}

/// What a change does to its object, in the words of the JSON report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Something new.
    Create,
    /// Something that is there gets another value.
    Update,
    /// Something goes.
    Delete,
    /// Something is made anew.
    Restart,
}

impl Change {
    /// What it does.
    pub fn action(&self) -> Action {
        match self {
            Change::AddRoute(_) | Change::AddRule(_) => Action::Create,
            Change::ReplaceRoute(_) | Change::SetSysctl { .. } => Action::Update,
            Change::DeleteRoute(_) | Change::DeleteRule(_) => Action::Delete,
            Change::RestartPod(_) => Action::Restart,
        }
    }

    /// The kind of thing that it changes.
    pub fn object(&self) -> &'static str {
        match self {
            Change::AddRoute(_) | Change::ReplaceRoute(_) | Change::DeleteRoute(_) => "route",
            Change::AddRule(_) | Change::DeleteRule(_) => "rule",
            Change::SetSysctl { .. } => "sysctl",
            Change::RestartPod(_) => "pod",
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::AddRoute(route) => f.write_str(&route.command("add")),
            Change::ReplaceRoute(route) => f.write_str(&route.command("replace")),
            Change::DeleteRoute(route) => f.write_str(&route.command("del")),
            Change::AddRule(rule) => f.write_str(&rule.command("add")),
            Change::DeleteRule(rule) => f.write_str(&rule.command("del")),
            Change::SetSysctl { key, value } => f.write_str(&key.command(value)),
            Change::RestartPod(restart) => restart.fmt(f),
        }
    }
}
