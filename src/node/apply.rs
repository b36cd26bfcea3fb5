//! Makes changes, one at a time.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc::{
    RTM_DELADDR, RTM_DELLINK, RTM_DELROUTE, RTM_DELRULE, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE, RTM_NEWRULE,
    RTM_SETLINK,
};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};

use super::crictl::{self, CrictlError};
use super::netlink::socket::NetlinkError;
use super::netlink::{addr, link, route, rule};
use super::program::ProgramError;
use super::{Node, has_net_admin, netns, program, sysctl};
use crate::change::{Change, Op, RestartPod};
use crate::model::masquerade;
use crate::model::netns::{NetnsName, Veth};
use crate::model::{ALIAS, IfAddress, LinkSettings, PROMOTE, Route, SeenRule, SysctlKey, SysctlWrite, one_line};
use crate::signals::survive_file_limit;

/// Time limit of nft. It waits for other writers of nftables, which take milliseconds.
const NFT_TIME: Duration = Duration::from_secs(10);

/// The result of a change that did not fail.
#[derive(Debug)]
pub struct Applied {
    /// Whether this call changed something; false if it was already done.
    pub made: bool,
    /// Details for the report.
    pub details: Option<String>,
}

impl Applied {
    fn silently(made: bool) -> Applied {
        Applied { made, details: None }
    }
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Permission denied.
    #[error("{0}; changing the network requires CAP_NET_ADMIN in its user namespace")]
    NotPermitted(String),
    /// Permission denied, with what is missing.
    #[error("{0}")]
    Lacks(String),
    /// Any other error, in the words of the kernel or of the program.
    #[error("{0}")]
    Refused(String),
    /// The answer was lost: the change may have been made.
    #[error("{0}")]
    Unanswered(String),
    /// A signal interrupted the change.
    #[error("{0}")]
    Stopped(String),
}

impl From<CrictlError> for ApplyError {
    fn from(error: CrictlError) -> ApplyError {
        match error {
            CrictlError::Stopped(_) => ApplyError::Stopped(error.to_string()),
            _ => ApplyError::Refused(error.to_string()),
        }
    }
}

impl Node {
    /// Makes one change.
    ///
    /// An object that already exists (EEXIST) or is already gone (ENOENT, ESRCH, ENODEV) is no error: the second look
    /// decides whether the node is as desired.
    ///
    /// # Errors
    ///
    /// The kernel's error.
    pub fn make(&mut self, change: &Change) -> Result<Applied, ApplyError> {
        let answer = match change {
            Change::Route(op) => self.change_route(op)?,
            Change::Rule(op) => self.change_rule(op),
            Change::Address(Op::Add(new)) => self.add_address(new),
            Change::Address(Op::Delete(old)) => self.delete_address(old)?,
            Change::Address(Op::Replace { .. }) => return Err(not_replaced("an address")),
            Change::Link(Op::Add(new)) => self.add_bridge(new),
            Change::Link(Op::Replace { new, .. }) => self.set_link(new)?,
            Change::Link(Op::Delete(old)) => self.netlink.change(RTM_DELLINK, 0, &link::settings(old, None)),
            Change::DeleteVeth(veth, of) => self.delete_veth(veth, of.as_ref())?,
            Change::Masquerade(Op::Add(rules) | Op::Replace { new: rules, .. }) => {
                return self.nft(&masquerade::replacement(rules));
            }
            Change::Masquerade(Op::Delete(())) => return self.nft(&masquerade::removal()),
            Change::File(op) => {
                let text = match op {
                    Op::Add(new) | Op::Replace { new, .. } => Some(&*new.0),
                    Op::Delete(_) => None,
                };
                return sysctl::persist(text).map(|()| Applied::silently(true)).map_err(ApplyError::Refused);
            }
            Change::Sysctl(write) => return set_sysctl(write).map(|()| Applied::silently(true)),
            Change::DeleteNetns(name, id) => return netns::remove(name, *id).map(Applied::silently),
            Change::RestartPod(restart) => return self.remove_pod(restart),
        };
        applied(change, answer)
    }

    /// Stops and removes the sandbox of a pod, so that kubelet starts a new one.
    fn remove_pod(&mut self, restart: &RestartPod) -> Result<Applied, ApplyError> {
        let id = restart.id.as_ref().ok_or_else(|| ApplyError::Refused("the sandbox is not known".into()))?;
        self.listen().map_err(ApplyError::Refused)?;
        let gone = |result| match result {
            Err(CrictlError::NotFound(_)) => Ok(()),
            other => other,
        };
        gone(crictl::stop_pod(&restart.query, id, &self.stop))?;
        // If it cannot be removed, it is stopped all the same, and kubelet starts a new one. Only that counts.
        let details = match gone(crictl::remove_pod(&restart.query, id, &self.stop)) {
            Err(error @ CrictlError::Stopped(_)) => return Err(error.into()),
            Err(error) => Some(format!("the old one could not be removed: {error}")),
            Ok(()) => None,
        };
        Ok(Applied { made: true, details })
    }

    fn change_route(&mut self, op: &Op<Route>) -> Result<Result<(), NetlinkError>, ApplyError> {
        let (kind, flags, route) = match op {
            Op::Add(new) => (RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, new),
            Op::Replace { new, .. } => (RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, new),
            Op::Delete(old) => (RTM_DELROUTE, 0, old),
        };
        let route = self.with_indexes(route)?;
        Ok(self.netlink.change(kind, flags, &route::request(&route)))
    }

    fn change_rule(&mut self, op: &Op<SeenRule>) -> Result<(), NetlinkError> {
        // Without NLM_F_EXCL, by which the kernel refuses a rule without `from` where it has one with it (rule_exists in
        // net/core/fib_rules.c).
        let mut add = |new| self.netlink.change(RTM_NEWRULE, NLM_F_CREATE, &rule::request(new));
        match op {
            Op::Add(new) => add(new),
            Op::Delete(old) => self.netlink.change(RTM_DELRULE, 0, &rule::request(old)),
            // The kernel takes the two for the same: it puts the new one behind the old one, and deletes the first. So no
            // packet falls between them.
            Op::Replace { new, old } => {
                add(new)?;
                self.netlink.change(RTM_DELRULE, 0, &rule::request(old))
            }
        }
    }

    /// A route over links that were not there when it was planned, with the indexes that they have now.
    fn with_indexes<'a>(&mut self, route: &'a Route) -> Result<Cow<'a, Route>, ApplyError> {
        let mut route = Cow::Borrowed(route);
        if route.devs().any(|dev| dev.index == 0) {
            for dev in route.to_mut().devs_mut().filter(|dev| dev.index == 0) {
                let link = self.link(0, Some(&dev.name)).map_err(|error| ApplyError::Refused(error.to_string()))?;
                let link = link.ok_or_else(|| ApplyError::Refused(format!("interface {} does not exist", dev.name)))?;
                dev.index = link.dev.index;
            }
        }
        Ok(route)
    }

    /// Runs these nft commands in one transaction.
    fn nft(&mut self, commands: &str) -> Result<Applied, ApplyError> {
        self.listen().map_err(ApplyError::Refused)?;
        // A memory file has no size limit as arguments have, and, unlike a pipe, needs no reader.
        let input = || -> io::Result<File> {
            survive_file_limit()?;
            let mut file = File::from(rustix::fs::memfd_create(masquerade::PROGRAM, rustix::fs::MemfdFlags::CLOEXEC)?);
            file.write_all(commands.as_bytes())?;
            file.rewind()?;
            Ok(file)
        };
        let input = input()
            .map_err(|error| ApplyError::Refused(format!("cannot allocate memory for the input of nft: {error}")))?;
        let mut program = Command::new(masquerade::PROGRAM);
        program.args(["-f", "-"]);
        match program::run(program, input.into(), masquerade::PROGRAM, NFT_TIME, &self.stop) {
            Ok(_) => Ok(Applied::silently(true)),
            Err(ProgramError::Refused { error, said }) => {
                // nft repeats the commands and marks a place in them. The line that begins like this has the error.
                let why: Vec<&str> =
                    said.lines().filter_map(|line| line.split_once("Error: ")).map(|it| it.1).collect();
                let why = if why.is_empty() { error } else { format!("nft: {}", one_line(&why.join("; "))) };
                let denied = said.contains("Operation not permitted");
                Err(if denied { ApplyError::NotPermitted(why) } else { ApplyError::Refused(why) })
            }
            Err(error) => Err(ApplyError::Refused(error.to_string())),
        }
    }

    fn add_address(&mut self, address: &IfAddress) -> Result<(), NetlinkError> {
        let IfAddress { dev, inet, .. } = address;
        let link = self.link(0, Some(dev))?.ok_or_else(NetlinkError::no_device)?;
        let add = NLM_F_CREATE | NLM_F_EXCL;
        self.netlink.change(RTM_NEWADDR, add, &addr::request(link.dev.index, inet))
    }

    /// Deletes one address and no other. If the kernel would delete the rest of its subnet as well, promote_secondaries
    /// is set before and reset after, in the same message, so that the process cannot end in between. It is set
    /// whenever there may be others: some may have been added since the look.
    fn delete_address(&mut self, address: &IfAddress) -> Result<Result<(), NetlinkError>, ApplyError> {
        let IfAddress { dev, inet, promote } = address;
        let key = SysctlKey::conf_of(dev, PROMOTE);
        let has_rest = *promote || inet.is_ipv4() && inet.network_length() < 32;
        let would_go = has_rest && live(&key)?.as_deref() == Some("0");
        Ok(self.link(0, Some(dev)).and_then(|link| {
            let index = link.ok_or_else(NetlinkError::no_device)?.dev.index;
            let gone = addr::request(index, inet);
            if !would_go {
                return self.netlink.change(RTM_DELADDR, 0, &gone);
            }
            let set = (RTM_SETLINK, 0, &link::promote(index, 1) as &_);
            let back = (RTM_SETLINK, 0, &link::promote(index, 0) as &_);
            let [set, deleted, back] = self.netlink.change_together([set, (RTM_DELADDR, 0, &gone), back]);
            set.and(deleted).and(back)
        }))
    }

    /// Changes the settings of a link. The kernel would take a port out of the bridge that it is in; a bridge of another
    /// owner keeps its port.
    fn set_link(&mut self, new: &LinkSettings) -> Result<Result<(), NetlinkError>, ApplyError> {
        let mut find = |name| self.link(0, Some(name)).map_err(|error| ApplyError::Refused(error.to_string()));
        let master = match &new.port_of {
            None => None,
            // By this index the kernel takes it out of its bridge.
            Some(None) => Some(0),
            Some(Some(bridge)) => {
                if find(&new.name)?.is_some_and(|port| port.master.is_some()) {
                    let why = format!("{} is now a port of another link; left untouched", new.name);
                    return Err(ApplyError::Refused(why));
                }
                let bridge = find(bridge)?.ok_or_else(|| ApplyError::Refused("there is no such bridge".into()))?;
                Some(bridge.dev.index)
            }
        };
        Ok(self.netlink.change(RTM_NEWLINK, 0, &link::settings(new, master)))
    }

    /// Creates a bridge and sets its alias, in one call, so that no bridge of node-fixer's is ever without its alias.
    fn add_bridge(&mut self, bridge: &LinkSettings) -> Result<(), NetlinkError> {
        let mark = |alias| link::alias(&bridge.name, alias);
        let add = NLM_F_CREATE | NLM_F_EXCL;
        let [made, marked] = self
            .netlink
            .change_together([(RTM_NEWLINK, add, &link::settings(bridge, None)), (RTM_SETLINK, 0, &mark(ALIAS))]);
        match (made, marked) {
            // Another program created a bridge of this name since the look. Only the kernel's EEXIST proves that. The
            // alias must not be set on it.
            (Err(error @ NetlinkError::Refused { errno: Errno::EEXIST, .. }), Ok(())) => {
                self.netlink.change(RTM_SETLINK, 0, &mark("")).and(Err(error))
            }
            // A bridge without the alias would never be recognised as node-fixer's.
            (Ok(()), Err(error)) => self.netlink.change(RTM_DELLINK, 0, &link::settings(bridge, None)).and(Err(error)),
            (made, marked) => made.and(marked),
        }
    }

    /// Deletes a veth if it is unchanged since it was looked at.
    fn delete_veth(&mut self, veth: &Veth, of: Option<&NetnsName>) -> Result<Result<(), NetlinkError>, ApplyError> {
        if let Some(name) = of.filter(|name| netns::exists(name)) {
            return Err(ApplyError::Refused(format!("the namespace {name} exists; its links are left untouched")));
        }
        match self.veth(veth.dev.index, None) {
            Ok(None) => Ok(Err(NetlinkError::no_device())),
            Ok(Some(now)) if now == (veth.dev.clone(), Some(veth.peer)) => {
                Ok(self.netlink.change(RTM_DELLINK, 0, &link::one(veth.dev.index, None)))
            }
            Ok(Some(_)) => Err(ApplyError::Refused("it changed since it was looked at; left untouched".into())),
            Err(error) => Err(ApplyError::Refused(error.to_string())),
        }
    }
}

/// An operation that no plan contains: if both objects can exist, one is added and the other deleted, in separate
/// changes.
fn not_replaced(what: &str) -> ApplyError {
    ApplyError::Refused(format!("{what} cannot be replaced in place; add the new one and delete the old one"))
}

/// Interprets the kernel's answer to a change.
fn applied(change: &Change, answer: Result<(), NetlinkError>) -> Result<Applied, ApplyError> {
    match answer {
        Ok(()) => Ok(Applied::silently(true)),
        Err(NetlinkError::Refused { errno: Errno::EEXIST | Errno::ENOENT | Errno::ESRCH | Errno::ENODEV, .. }) => {
            Ok(Applied::silently(false))
        }
        // For an address: it does not exist any more.
        Err(NetlinkError::Refused { errno: Errno::EADDRNOTAVAIL, .. })
            if matches!(change, Change::Address(Op::Delete(_))) =>
        {
            Ok(Applied::silently(false))
        }
        // EACCES means something else, such as "IPv6 is disabled on nexthop device".
        Err(error @ (NetlinkError::Refused { errno: Errno::EPERM, .. } | NetlinkError::Failed(Errno::EPERM))) => {
            Err(ApplyError::NotPermitted(error.to_string()))
        }
        Err(error @ NetlinkError::Failed(_)) => Err(ApplyError::Unanswered(error.to_string())),
        Err(error) => Err(ApplyError::Refused(error.to_string())),
    }
}

/// Writes a sysctl, the writes before it and those after it. If one of the latter fails, the rest are still written:
/// each value matters on its own.
fn set_sysctl(write: &SysctlWrite) -> Result<(), ApplyError> {
    let SysctlWrite { key, value, pin_before, restore_after, needs, .. } = write;
    for (needed, want) in needs {
        // If the interface is gone meanwhile, its value does not matter.
        if let Some(live) = live(needed)?.filter(|live| live != want) {
            return Err(ApplyError::Refused(format!("not written: {needed} is {live} and must be {want} first")));
        }
    }
    let write_other = |(of, value): &(SysctlKey, String)| {
        sysctl::write(of, value).map_err(|error| judge(error, Some(of).filter(|of| *of != key)))
    };
    pin_before.iter().try_for_each(write_other)?;
    sysctl::write(key, value).map_err(|error| judge(error, None))?;
    restore_after.iter().map(write_other).fold(Ok(()), Result::and)
}

/// The current value of a sysctl; `None` if the key does not exist.
fn live(key: &SysctlKey) -> Result<Option<String>, ApplyError> {
    sysctl::read(key).map_err(|error| ApplyError::Refused(format!("cannot read the sysctl {key}: {error}")))
}

/// Explains why a sysctl could not be written. `of` names it, unless the change is about this sysctl.
fn judge(error: io::Error, of: Option<&SysctlKey>) -> ApplyError {
    let of = of.map_or(String::new(), |key| format!("{key}: "));
    match error.kind() {
        io::ErrorKind::NotFound => ApplyError::Refused(format!(
            "{of}{error}; the key exists, so its value names an object that this kernel does not have"
        )),
        // No capability is missing: the key can be read (EACCES).
        io::ErrorKind::PermissionDenied
            if error.raw_os_error() == Some(Errno::EACCES as i32) && has_net_admin().unwrap_or(false) =>
        {
            ApplyError::Refused(format!("{of}{error}; the kernel does not allow this key to be written"))
        }
        io::ErrorKind::PermissionDenied => ApplyError::NotPermitted(format!("{of}{error}")),
        io::ErrorKind::ReadOnlyFilesystem => ApplyError::Refused(format!(
            "{of}{error}; /proc/sys is mounted read-only here, as in a container: mount it read-write \
             (mount -o remount,rw /proc/sys) or run node-fixer on the host"
        )),
        _ => ApplyError::Refused(format!("{of}{error}")),
    }
}
