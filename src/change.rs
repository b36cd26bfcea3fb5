//! What a plan consists of: changes to make, and changes that are blocked because they are not safe.

use std::fmt;
use std::time::Duration;

use crate::history::memory::Note;
use crate::model::masquerade::{self, Masquerade};
use crate::model::netns::{NetnsId, NetnsName, Veth};
use crate::model::pod::{PodId, PodQuery};
use crate::model::{
    Family, IfAddress, IfName, LinkKind, LinkSettings, Noun, PROTO_MENDED, PROTO_RESTORED, Route, SeenRule, SysctlWrite,
};
use crate::sysctl_d::OurFile;

/// What one reconciler wants to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which they must be made.
    pub steps: Vec<Step>,
    /// Objects that are removed because they are no longer declared. They are removed after the steps of all sections,
    /// in reverse order: the last section first.
    pub removals: Vec<Step>,
    /// Changes that are only reported, because the configuration says `observe` for this entry.
    pub observed: Vec<Step>,
    /// Changes that are held back until later.
    pub held: Vec<Step>,
    /// Changes that are needed but not safe.
    pub blocked: Vec<Blocked>,
    /// What to save for the next run. It is written before the first step; if that fails, no step is made.
    pub remember: Vec<Note>,
    /// Whether the node has, or will have, an object that is removed when it is no longer declared. `None` if unknown.
    pub leaves: Option<bool>,
    /// Findings that require no change here. Each is reported once, for as long as it lasts.
    pub notices: Vec<Notice>,
    /// After how long this has to be planned again, if nothing changes earlier.
    pub again: Option<Duration>,
    /// When a restart is due that a run of the watcher leaves to a separate run, on the clock since boot.
    pub due: Option<Duration>,
}

/// A finding that an operator should know about and that this run does not act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// The finding, and what to do about it.
    pub text: String,
    /// The same in a few words, if it is a problem of the node.
    pub problem: Option<String>,
}

/// A change and the reason for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The change.
    pub change: Change,
    /// What is wrong, and the evidence for the repair.
    pub reason: String,
    /// What to save about this step, in addition to what the plan saves as a whole.
    pub notes: Vec<(When, Note)>,
    /// The repair that it is a part of, if many steps count as one repair. They are undone together.
    pub part_of: Option<&'static str>,
}

impl Step {
    /// A step with no notes of its own.
    pub fn new(change: Change, reason: impl Into<String>) -> Step {
        Step { change, reason: reason.into(), notes: Vec::new(), part_of: None }
    }
}

/// When the engine writes a note of a step. If the run is killed in between, the next one continues from the last note.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Before the change is made. If this fails, the change is not made.
    Before,
    /// After the change was made.
    Applied,
    /// After it turned out that this run did not make the change: another program did, or the interface is gone.
    Existed,
    /// After the change failed. Not written if the answer was lost or a signal interrupted it: then the outcome is
    /// unknown.
    Failed,
    /// Before the change is taken back.
    TakenBack,
    /// After it turned out that another program had already taken it back: what exists now belongs to that program.
    Returned,
}

/// A change that is needed but not safe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// The change.
    pub want: String,
    /// The evidence against it, and what an operator can do.
    pub because: String,
    /// Whether reading the node failed, so that it is unknown what there is to do.
    pub unseen: bool,
}

impl Blocked {
    /// A blocked change and the evidence against it.
    pub fn new(want: String, because: String) -> Blocked {
        Blocked { want, because, unseen: false }
    }

    /// A read that failed, and what it was for.
    pub fn unseen(want: String, because: String) -> Blocked {
        Blocked { want, because, unseen: true }
    }
}

/// What is done to one object of the node. `Old` is what is known of an existing one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op<T, Old = T> {
    /// Adds an object that does not exist.
    Add(T),
    /// Replaces one object with another.
    Replace {
        /// The new object.
        new: T,
        /// The existing object.
        old: Old,
    },
    /// Deletes exactly this object.
    Delete(Old),
}

impl<T, Old> Op<T, Old> {
    fn action(&self) -> Action {
        match self {
            Op::Add(_) => Action::Create,
            Op::Replace { .. } => Action::Update,
            Op::Delete(_) => Action::Delete,
        }
    }
}

impl<T: Clone> Op<T> {
    /// The operation that undoes this one.
    fn inverse(&self) -> Op<T> {
        match self.clone() {
            Op::Add(new) => Op::Delete(new),
            Op::Replace { new, old } => Op::Replace { new: old, old: new },
            Op::Delete(old) => Op::Add(old),
        }
    }

    /// The object to add or to delete.
    pub fn subject(&self) -> &T {
        match self {
            Op::Add(it) | Op::Replace { new: it, .. } | Op::Delete(it) => it,
        }
    }
}

impl<T: Noun> fmt::Display for Op<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&match self {
            Op::Add(new) => new.add_command(),
            Op::Replace { new, old } => new.replace_command(old),
            Op::Delete(old) => old.delete_command(),
        })
    }
}

/// One change of the node. Its `Display` is the command that an operator would type. It is shown by dry runs, in the
/// log, and as the context of errors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A route. It replaces a route with the same destination, metric and table.
    Route(Op<Route>),
    /// A rule. It replaces another one only if the kernel cannot distinguish them; otherwise both can exist.
    Rule(Op<SeenRule>),
    /// An address. Addresses never replace each other: both can exist.
    Address(Op<IfAddress>),
    /// A bridge owned by node-fixer, or the settings of another link.
    Link(Op<LinkSettings>),
    /// node-fixer's nftables table, by its rules. It is replaced in one transaction; the old contents are not known in
    /// full.
    Masquerade(Op<Vec<Masquerade>, ()>),
    /// node-fixer's file in /etc/sysctl.d.
    File(Op<OurFile>),
    /// Writes a sysctl.
    Sysctl(SysctlWrite),
    /// Deletes the name of a network namespace that has no process. The namespace goes with it.
    DeleteNetns(NetnsName, NetnsId),
    /// Deletes both ends of a veth, unless a namespace of this name exists (again).
    DeleteVeth(Veth, Option<NetnsName>),
    /// Stops and removes a pod's sandbox, and waits until a new one is ready.
    RestartPod(Box<RestartPod>),
}

/// The restart of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestartPod {
    /// How to find the pod.
    pub query: PodQuery,
    /// Its sandbox; `None` before the first search.
    pub id: Option<PodId>,
}

/// What a change does to its object, in the words of the JSON report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// A new object.
    Create,
    /// A new value for an existing object.
    Update,
    /// A deletion.
    Delete,
    /// A restart.
    Restart,
}

impl Action {
    /// Its name in JSON.
    pub fn word(self) -> &'static str {
        match self {
            Action::Create => "create",
            Action::Update => "update",
            Action::Delete => "delete",
            Action::Restart => "restart",
        }
    }
}

/// Changes that belong together. If one of them fails, the others are not made, and those that were made are taken
/// back.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// A declared bridge with its addresses and ports, and the routes over it. Changes of other links are independent.
    Link(IfName),
    /// The repair of a policy table.
    Table(Family, u32),
}

impl Change {
    /// The action.
    pub fn action(&self) -> Action {
        match self {
            Change::Route(op) => op.action(),
            Change::Rule(op) => op.action(),
            Change::Address(op) => op.action(),
            Change::Link(op) => op.action(),
            Change::Masquerade(op) => op.action(),
            Change::File(op) => op.action(),
            Change::Sysctl(_) => Action::Update,
            Change::DeleteNetns(..) | Change::DeleteVeth(..) => Action::Delete,
            Change::RestartPod(_) => Action::Restart,
        }
    }

    /// The change that undoes this one; `None` if there is none.
    pub fn inverse(&self) -> Option<Change> {
        Some(match self {
            Change::Route(op) => Change::Route(op.inverse()),
            Change::Rule(op) => Change::Rule(op.inverse()),
            Change::Address(op) => Change::Address(op.inverse()),
            Change::Link(op) => Change::Link(op.inverse()),
            Change::File(op) => Change::File(op.inverse()),
            Change::Masquerade(Op::Add(_)) => Change::Masquerade(Op::Delete(())),
            // The old contents of the table are not known in full.
            Change::Masquerade(Op::Replace { .. } | Op::Delete(())) => return None,
            // These are independent: only the end of their declaration takes them back.
            Change::Sysctl(_) => return None,
            Change::DeleteNetns(..) | Change::DeleteVeth(..) | Change::RestartPod(_) => return None,
        })
    }

    /// The change without what is written before and after it, which differs each time. Logs and counters use this
    /// form.
    pub fn without_side_writes(&self) -> Change {
        match self.clone() {
            Change::Sysctl(SysctlWrite { key, value, before, .. }) => {
                Change::Sysctl(SysctlWrite::alone(key, value, before))
            }
            other => other,
        }
    }

    /// Whether `other` is the same change, planned again after another look: the same sysctl or link setting with the
    /// same target value, whatever the current value.
    pub fn is_again(&self, other: &Change) -> bool {
        match (self, other) {
            (Change::Sysctl(write), Change::Sysctl(again)) => (&write.key, &write.value) == (&again.key, &again.value),
            (Change::Link(Op::Replace { new, .. }), Change::Link(Op::Replace { new: again, .. }))
                if new.kind == LinkKind::Other =>
            {
                new == again
            }
            // A link that did not exist before has an index by now.
            (Change::Route(Op::Add(route)), Change::Route(Op::Add(again))) => {
                let by_name = |route: &Route| {
                    let mut route = route.clone();
                    route.devs_mut().for_each(|dev| dev.index = 0);
                    route
                };
                by_name(route) == by_name(again)
            }
            _ => self == other,
        }
    }

    /// The group it belongs to; `None` for an independent change.
    pub fn group(&self) -> Option<Group> {
        let of_link = |name: &IfName| Some(Group::Link(name.clone()));
        match self {
            Change::Route(Op::Add(route)) if route.protocol == PROTO_MENDED => {
                Some(Group::Table(route.family(), route.table))
            }
            Change::Route(op) => op.subject().devs().next().and_then(|dev| of_link(&dev.name)),
            Change::Address(op) => of_link(&op.subject().dev),
            Change::Link(op) if op.subject().kind == LinkKind::Bridge => of_link(&op.subject().name),
            Change::Link(op) => op.subject().port_of.iter().flatten().next().and_then(of_link),
            Change::Rule(_) | Change::Masquerade(_) | Change::File(_) | Change::Sysctl(_) => None,
            Change::DeleteNetns(..) | Change::DeleteVeth(..) | Change::RestartPod(_) => None,
        }
    }

    /// Whether there may be one for each pod of the node, so that only their number is logged.
    pub fn is_of_many(&self) -> bool {
        matches!(self, Change::Rule(op) if op.subject().rule.protocol == PROTO_RESTORED)
    }

    /// The kind of object that it changes.
    pub fn object(&self) -> &'static str {
        match self {
            Change::Route(_) => "route",
            Change::Rule(_) => "rule",
            Change::Address(_) => "address",
            Change::Link(op) if op.subject().kind == LinkKind::Bridge => "bridge",
            Change::Link(_) => "link",
            Change::Masquerade(_) => "masquerade",
            Change::File(_) => "file",
            Change::Sysctl(_) => "sysctl",
            Change::DeleteNetns(..) => "namespace",
            Change::DeleteVeth(..) => "link",
            Change::RestartPod(_) => "pod",
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Route(op) => op.fmt(f),
            Change::Rule(op) => op.fmt(f),
            Change::Address(op) => op.fmt(f),
            Change::Link(op) => op.fmt(f),
            Change::Masquerade(Op::Add(rules) | Op::Replace { new: rules, .. }) => {
                f.write_str(&masquerade::replace_command(rules))
            }
            Change::Masquerade(Op::Delete(())) => f.write_str(&masquerade::delete_command()),
            Change::File(op) => op.fmt(f),
            Change::Sysctl(write) => write.fmt(f),
            Change::DeleteNetns(name, _) => f.write_str(&name.delete_command()),
            Change::DeleteVeth(veth, _) => f.write_str(&veth.delete_command()),
            Change::RestartPod(restart) => f.write_str(&restart.query.restart_command(restart.id.as_ref())),
        }
    }
}
