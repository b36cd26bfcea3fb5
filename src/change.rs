//! What a plan consists of: changes to make, and wishes that cannot safely be met.

use std::fmt;
use std::time::Duration;

use cidr::IpInet;

use crate::memory::{Knowledge, Note};
use crate::nat::{self, Masquerade};
use crate::net::{Bridge, Family, IfName, PROMOTE, PROTO_MENDED, Route, Rule, SysctlKey, shell_word};
use crate::netns::{NetnsId, NetnsName, Veth};
use crate::pod::{PodId, PodQuery};
use crate::sysctl_d;

/// What one reconciler wants done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which they must be made.
    pub steps: Vec<Step>,
    /// What goes because it is no longer declared. Made after the steps of all sections, the last section first: what
    /// was built up in order is taken down in reverse.
    pub removals: Vec<Step>,
    /// What is never done, because the configuration says of this very thing that it is only observed.
    pub observed: Vec<Step>,
    /// What is to be done, but not now.
    pub held: Vec<Step>,
    /// What should be done and cannot safely be.
    pub blocked: Vec<Blocked>,
    /// What the next run is to know. Written before any step is made; without it none is.
    pub remember: Vec<Note>,
    /// What is worth knowing and changes nothing here: reported once, as long as it is so.
    pub notices: Vec<Notice>,
}

/// Something that an operator should know, and that is none of what is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// What is so, and what to do about it.
    pub text: String,
    /// The same in a few words, where it is a problem of the node.
    pub problem: Option<String>,
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
    /// Puts a route in the place of one with the same destination, metric and table.
    ReplaceRoute {
        /// The one that is to be there.
        new: Route,
        /// The one that is there.
        old: Route,
    },
    /// Deletes exactly this route.
    DeleteRoute(Route),
    /// Adds a rule.
    AddRule(Rule),
    /// Deletes exactly this rule.
    DeleteRule(Rule),
    /// Adds an address to the interface with this name.
    AddAddress(IfName, IpInet),
    /// Deletes exactly this address.
    DeleteAddress {
        /// The interface.
        dev: IfName,
        /// The address.
        address: IpInet,
        /// Whether others of its subnet are there that would go with it. (A run lets none go, whatever this says.)
        promote: bool,
    },
    /// Makes a bridge, with our mark on it.
    AddBridge(Bridge),
    /// Gives a bridge other settings.
    SetBridge {
        /// As it is to be.
        new: Bridge,
        /// As it is.
        old: Bridge,
    },
    /// Deletes this bridge.
    DeleteBridge(Bridge),
    /// Puts our nftables table in the place of the one that is there, in one go.
    SetMasquerade {
        /// What is in it.
        rules: Vec<Masquerade>,
        /// Whether there is none yet.
        anew: bool,
    },
    /// Deletes our nftables table.
    DeleteMasquerade,
    /// Writes a sysctl.
    SetSysctl {
        /// Which.
        key: SysctlKey,
        /// What to write.
        value: String,
        /// What is there.
        before: String,
        /// What is written right before it: what is there, of interfaces that would follow it and are to stay. They
        /// follow no more.
        first: Vec<(SysctlKey, String)>,
        /// What is written right after it: keys of others that the kernel changes along with this one.
        then: Vec<(SysctlKey, String)>,
        /// What must be so when it is written: otherwise the write would cost something else.
        needs: Vec<(SysctlKey, String)>,
    },
    /// Writes our file in /etc/sysctl.d, or removes it.
    Persist {
        /// What is to be in it; `None` removes it.
        new: Option<String>,
        /// What is in it; `None`: there is none.
        old: Option<String>,
    },
    /// Takes its name from a network namespace, which goes with it: no process is in it.
    DeleteNetns(NetnsName, NetnsId),
    /// Deletes both ends of a veth, unless there is a namespace of this name (again).
    DeleteVeth(Veth, Option<NetnsName>),
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

impl Action {
    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Action::Create => "create",
            Action::Update => "update",
            Action::Delete => "delete",
            Action::Restart => "restart",
        }
    }
}

/// What belongs together: when one change of it fails, the others are not made, and those that were are taken back.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// A declared bridge with its addresses and the routes over it. Changes of other links stand alone.
    Link(IfName),
    /// The repair of a policy table.
    Table(Family, u32),
}

impl Change {
    /// What it does.
    pub fn action(&self) -> Action {
        match self {
            Change::AddRoute(_) | Change::AddRule(_) | Change::AddAddress(..) | Change::AddBridge(_) => Action::Create,
            Change::SetMasquerade { anew: true, .. } => Action::Create,
            Change::SetMasquerade { anew: false, .. } => Action::Update,
            Change::DeleteMasquerade => Action::Delete,
            Change::Persist { old: None, .. } => Action::Create,
            Change::Persist { new: None, .. } => Action::Delete,
            Change::Persist { .. } => Action::Update,
            Change::ReplaceRoute { .. } | Change::SetBridge { .. } | Change::SetSysctl { .. } => Action::Update,
            Change::DeleteRoute(_) | Change::DeleteRule(_) | Change::DeleteBridge(_) => Action::Delete,
            Change::DeleteAddress { .. } => Action::Delete,
            Change::DeleteNetns(..) | Change::DeleteVeth(..) => Action::Delete,
            Change::RestartPod(_) => Action::Restart,
        }
    }

    /// The change that takes this one back; `None` where nothing does.
    pub fn undone(&self) -> Option<Change> {
        Some(match self.clone() {
            Change::AddRoute(route) => Change::DeleteRoute(route),
            Change::ReplaceRoute { new, old } => Change::ReplaceRoute { new: old, old: new },
            Change::DeleteRoute(route) => Change::AddRoute(route),
            Change::AddRule(rule) => Change::DeleteRule(rule),
            Change::DeleteRule(rule) => Change::AddRule(rule),
            Change::AddAddress(dev, address) => Change::DeleteAddress { dev, address, promote: false },
            Change::DeleteAddress { dev, address, .. } => Change::AddAddress(dev, address),
            Change::AddBridge(bridge) => Change::DeleteBridge(bridge),
            Change::SetBridge { new, old } => Change::SetBridge { new: old, old: new },
            Change::DeleteBridge(bridge) => Change::AddBridge(bridge),
            Change::SetMasquerade { anew: true, .. } => Change::DeleteMasquerade,
            // What was in the table is not known in full.
            Change::SetMasquerade { anew: false, .. } | Change::DeleteMasquerade => return None,
            Change::Persist { new, old } => Change::Persist { new: old, old: new },
            // Each stands alone, so that nothing ever takes one back but the end of its declaration.
            Change::SetSysctl { .. } => return None,
            Change::DeleteNetns(..) | Change::DeleteVeth(..) | Change::RestartPod(_) => return None,
        })
    }

    /// The same without what is written before and after it, which is not the same each time: what is told and counted
    /// of it.
    pub fn alone(&self) -> Change {
        match self.clone() {
            Change::SetSysctl { key, value, before, .. } => {
                Change::SetSysctl { key, value, before, first: Vec::new(), then: Vec::new(), needs: Vec::new() }
            }
            other => other,
        }
    }

    /// Whether the other one is this one again, planned after another look: a sysctl that is to have the same value, from
    /// whatever it is by then.
    pub fn is_again(&self, other: &Change) -> bool {
        match (self, other) {
            (Change::SetSysctl { key, value, .. }, Change::SetSysctl { key: again, value: wanted, .. }) => {
                key == again && value == wanted
            }
            // A link that was still to come has its index by then.
            (Change::AddRoute(route), Change::AddRoute(again)) => {
                let name = |route: &Route| route.dev.as_ref().map(|dev| dev.name.clone());
                let rest = |route: &Route| Route { dev: None, ..route.clone() };
                name(route) == name(again) && rest(route) == rest(again)
            }
            _ => self == other,
        }
    }

    /// What it belongs to; `None` for a change that stands alone: no other one is worse for its failure.
    pub fn group(&self) -> Option<Group> {
        let of_link = |name: &IfName| Some(Group::Link(name.clone()));
        match self {
            Change::AddRoute(route) if route.protocol == PROTO_MENDED => {
                Some(Group::Table(route.family(), route.table))
            }
            Change::AddRoute(route) | Change::ReplaceRoute { new: route, .. } | Change::DeleteRoute(route) => {
                route.dev.as_ref().and_then(|dev| of_link(&dev.name))
            }
            Change::AddAddress(dev, _) | Change::DeleteAddress { dev, .. } => of_link(dev),
            Change::AddBridge(bridge) | Change::SetBridge { new: bridge, .. } | Change::DeleteBridge(bridge) => {
                of_link(&bridge.name)
            }
            Change::AddRule(_)
            | Change::DeleteRule(_)
            | Change::SetMasquerade { .. }
            | Change::DeleteMasquerade
            | Change::SetSysctl { .. }
            | Change::Persist { .. }
            | Change::DeleteNetns(..)
            | Change::DeleteVeth(..)
            | Change::RestartPod(_) => None,
        }
    }

    /// The kind of thing that it changes.
    pub fn object(&self) -> &'static str {
        match self {
            Change::AddRoute(_) | Change::ReplaceRoute { .. } | Change::DeleteRoute(_) => "route",
            Change::AddRule(_) | Change::DeleteRule(_) => "rule",
            Change::AddAddress(..) | Change::DeleteAddress { .. } => "address",
            Change::AddBridge(_) | Change::SetBridge { .. } | Change::DeleteBridge(_) => "bridge",
            Change::SetMasquerade { .. } | Change::DeleteMasquerade => "masquerade",
            Change::SetSysctl { .. } => "sysctl",
            Change::Persist { .. } => "file",
            Change::DeleteNetns(..) => "namespace",
            Change::DeleteVeth(..) => "link",
            Change::RestartPod(_) => "pod",
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::AddRoute(route) => f.write_str(&route.command("add")),
            Change::ReplaceRoute { new, .. } => f.write_str(&new.command("replace")),
            Change::DeleteRoute(route) => f.write_str(&route.command("del")),
            Change::AddRule(rule) => f.write_str(&rule.command("add")),
            Change::DeleteRule(rule) => f.write_str(&rule.command("del")),
            Change::AddAddress(dev, address) => write!(f, "ip addr add {address:#} dev {dev}"),
            Change::DeleteAddress { dev, address, promote } => {
                let promote = |value| promote.then(|| SysctlKey::conf_of(dev, PROMOTE).command(value));
                promote("1").iter().try_for_each(|command| write!(f, "{command} && {{ "))?;
                write!(f, "ip addr del {address:#} dev {dev}")?;
                // Also where the address has gone meanwhile.
                promote("0").iter().try_for_each(|command| write!(f, "; {command}; }}"))
            }
            Change::AddBridge(bridge) => f.write_str(&bridge.add_command()),
            Change::SetBridge { new, .. } => f.write_str(&new.set_command()),
            Change::DeleteBridge(bridge) => write!(f, "ip link del dev {} type bridge", bridge.name),
            Change::SetMasquerade { rules, .. } => f.write_str(&nat::command(&nat::replacement(rules))),
            Change::DeleteMasquerade => write!(f, "{} delete table inet {}", nat::PROGRAM, nat::TABLE),
            Change::SetSysctl { key, value, first, then, .. } => {
                // Where an interface has gone meanwhile, the others are not to be without.
                first.iter().try_for_each(|(key, value)| write!(f, "{}; ", key.command(value)))?;
                f.write_str(&key.command(value))?;
                then.iter().try_for_each(|(key, value)| write!(f, " && {}", key.command(value)))
            }
            Change::Persist { new: None, .. } => write!(f, "rm {}", sysctl_d::OURS),
            Change::Persist { new: Some(text), .. } => {
                // Where a link to elsewhere stands in its place, that is not written through.
                write!(f, "mkdir -p -m 755 {} && rm -f {} && printf '%s\\n'", sysctl_d::OURS_IN, sysctl_d::OURS)?;
                text.lines().try_for_each(|line| write!(f, " {}", shell_word(line.as_bytes())))?;
                write!(f, " > {0} && chmod 644 {0}", sysctl_d::OURS)
            }
            Change::DeleteNetns(name, _) => write!(f, "ip netns del {name}"),
            Change::DeleteVeth(Veth { dev, .. }, _) => write!(f, "ip link del dev {} type veth", dev.name),
            Change::RestartPod(restart) => restart.fmt(f),
        }
    }
}
