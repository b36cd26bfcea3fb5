//! The only code that touches the system: it looks, and it applies. It decides nothing.

mod lock;
mod message;
mod netlink;
mod sysctl;

use std::io;
use std::sync::Arc;

use nix::errno::Errno;
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};

pub use lock::{Held, Lock};
use message::{RTM_DELROUTE, RTM_DELRULE, RTM_GETADDR, RTM_GETLINK, RTM_GETNETCONF, RTM_GETROUTE, RTM_GETRULE};
use message::{RTM_NEWLINK, RTM_NEWROUTE, RTM_NEWRULE};
use netlink::{Netlink, NetlinkError};

use crate::change::Change;
use crate::net::IfName;
use crate::observed::{Address, Link, Look, Observed, RouteSet, RpFilters, SeenRoute, SeenRule, Want};

/// This node, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Node {
    netlink: Netlink,
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// This process may not.
    #[error("{0}; changing the network takes the capability CAP_NET_ADMIN in its user namespace")]
    NotPermitted(String),
    /// Anything else, in the words of the kernel.
    #[error("{0}")]
    Refused(String),
}

/// Whether this process may change the network, as far as its capabilities tell.
///
/// # Errors
///
/// What capget(2) said.
pub fn has_net_admin() -> io::Result<bool> {
    let sets = rustix::thread::capabilities(None)?;
    Ok(sets.effective.contains(rustix::thread::CapabilitySet::NET_ADMIN))
}

impl Node {
    /// Opens the way to the kernel.
    ///
    /// # Errors
    ///
    /// There is no netlink socket to be had.
    pub fn open() -> anyhow::Result<Node> {
        let netlink = Netlink::open()?;
        Ok(Node { netlink })
    }

    /// Looks at each of these, and puts what was seen, or why it could not be seen, into `observed`.
    pub fn look(&mut self, wants: Vec<Want>, observed: &mut Observed) {
        for want in wants {
            match want {
                Want::Rules => observed.rules = Some(failed("the policy rules", self.rules())),
                Want::Routes(set) => {
                    let seen = failed(&describe(&set), self.routes(&set));
                    observed.routes.insert(set, seen);
                }
                Want::RpFilters => {
                    observed.rp_filters = Some(failed("rp_filter of all interfaces", self.rp_filters()));
                }
                Want::Link(index) => {
                    let seen = failed(&format!("interface number {index}"), self.link(index, None));
                    observed.links.insert(index, seen);
                }
                Want::LinkNamed(name) => {
                    let seen = failed(&format!("interface {name}"), self.link(0, Some(&name)));
                    observed.links_named.insert(name, seen);
                }
                Want::Addresses => {
                    observed.addresses = Some(failed("the addresses of all interfaces", self.addresses()));
                }
            }
        }
    }

    /// Makes one change.
    ///
    /// What is there already (EEXIST) or gone meanwhile (ENOENT, ESRCH, ENODEV) is no error: whether all is as
    /// it should be is for the second look to say.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn apply(&mut self, change: &Change) -> Result<(), ApplyError> {
        let add = NLM_F_CREATE | NLM_F_EXCL;
        let netlink = &mut self.netlink;
        let result = match change {
            Change::AddRoute(route) => netlink.change(RTM_NEWROUTE, add, &message::route(route)),
            Change::ReplaceRoute(route) => {
                netlink.change(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &message::route(route))
            }
            Change::DeleteRoute(route) => netlink.change(RTM_DELROUTE, 0, &message::route(route)),
            Change::AddRule(rule) => message::rule(rule).and_then(|rule| netlink.change(RTM_NEWRULE, add, &rule)),
            Change::DeleteRule(rule) => message::rule(rule).and_then(|rule| netlink.change(RTM_DELRULE, 0, &rule)),
            Change::SetSysctl { key, value } => return sysctl::write(key, value).or_else(judge),
        };
        match result {
            Err(NetlinkError::Refused {
                errno: Errno::EEXIST | Errno::ENOENT | Errno::ESRCH | Errno::ENODEV, ..
            }) => Ok(()),
            Err(error @ NetlinkError::Refused { errno: Errno::EPERM | Errno::EACCES, .. }) => {
                Err(ApplyError::NotPermitted(error.to_string()))
            }
            other => other.map_err(|error| ApplyError::Refused(error.to_string())),
        }
    }

    fn rules(&mut self) -> Result<Vec<SeenRule>, NetlinkError> {
        self.netlink.dump(RTM_GETRULE, &message::all_rules(), message::seen_rule)
    }

    fn routes(&mut self, set: &RouteSet) -> Result<Vec<SeenRoute>, NetlinkError> {
        let routes = self.netlink.dump(RTM_GETROUTE, &message::routes(set), |route| message::seen_route(route, set));
        match routes {
            // A table is made by its first route. A family that the kernel was built or booted without has none.
            Err(NetlinkError::Refused { errno: Errno::ENOENT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP, .. }) => {
                Ok(Vec::new())
            }
            other => other,
        }
    }

    fn rp_filters(&mut self) -> Result<RpFilters, NetlinkError> {
        let mut seen = RpFilters::default();
        for (index, value) in self.netlink.dump(RTM_GETNETCONF, &message::all_netconf(), message::seen_netconf)? {
            match index {
                -1 => seen.all = value,
                -2 => seen.default = value,
                _ => seen.links.extend(u32::try_from(index).ok().map(|index| (index, value))),
            }
        }
        Ok(seen)
    }

    fn link(&mut self, index: u32, name: Option<&IfName>) -> Result<Option<Link>, NetlinkError> {
        let mut seen = None;
        let got = self.netlink.get(RTM_GETLINK, &message::one_link(index, name), |kind, link| {
            if kind == RTM_NEWLINK {
                seen = Some(message::seen_link(link)?);
            }
            Ok(())
        });
        match got {
            Err(NetlinkError::Refused { errno: Errno::ENODEV, .. }) => Ok(None),
            other => other.map(|()| seen),
        }
    }

    fn addresses(&mut self) -> Result<Vec<Address>, NetlinkError> {
        self.netlink.dump(RTM_GETADDR, &message::all_addresses(), message::seen_address)
    }
}

/// A failed look as everybody who needs it will report it.
fn failed<T>(what: &str, result: Result<T, NetlinkError>) -> Look<T> {
    result.map_err(|error| Arc::from(format!("cannot look at {what}: {error}")))
}

fn describe(set: &RouteSet) -> String {
    match set {
        RouteSet::Table(family, table) => format!("the {family} routes of table {table}"),
        RouteSet::Protocol(family, protocol) => format!("the {family} routes of protocol {protocol}"),
    }
}

fn judge(error: io::Error) -> Result<(), ApplyError> {
    match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        io::ErrorKind::PermissionDenied => Err(ApplyError::NotPermitted(error.to_string())),
        _ => Err(ApplyError::Refused(error.to_string())),
    }
}
