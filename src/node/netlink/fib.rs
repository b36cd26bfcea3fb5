//! What `explain` reads: everything that routes packets between two addresses, and the kernel's own answer.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context;
use nix::errno::Errno;
use nix::libc::{RTM_GETADDR, RTM_GETLINK, RTM_GETNETCONF, RTM_GETROUTE, RTM_GETRULE};

use super::dumps::Dumps;
use super::socket::{Netlink, NetlinkError};
use super::{addr, link, netconf, route, rule};
use crate::explain::Answer;
use crate::explain::fib::{Conf, Fib, Packet};
use crate::explain::show;
use crate::model::{Family, IfName, SysctlKey};
use crate::node::sysctl;
use crate::observed::SeenRoute;
use crate::tape::{Lists, Tape, text_of};

/// Reads for `explain`. It requires no privilege, and changes nothing.
#[derive(Debug)]
pub struct FibReader {
    netlink: Netlink,
    tape: Tape,
}

/// Whether packets may have marks: what only matters then is read only then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Marks {
    /// They may.
    Some,
    /// They have none.
    None,
}

impl FibReader {
    /// Opens the connection to the kernel.
    ///
    /// # Errors
    ///
    /// No netlink socket could be opened.
    pub fn open() -> anyhow::Result<FibReader> {
        let netlink = Netlink::open().context("cannot open a netlink socket")?;
        Ok(FibReader { netlink, tape: Tape::default() })
    }

    /// Reads what was captured of a node; or, if the tape records, of this one.
    pub fn captured(dumps: Arc<Dumps>, tape: Tape) -> FibReader {
        FibReader { netlink: Netlink::captured(dumps), tape }
    }

    /// Everything that routes packets between two addresses of one family; their packets may have marks.
    ///
    /// # Errors
    ///
    /// What could not be read.
    pub fn read(&mut self, a: IpAddr, b: IpAddr, marks: Marks) -> anyhow::Result<Fib> {
        self.read_where(Family::of(a), marks, &|route| route.to.contains(&a) || route.to.contains(&b))
    }

    /// Everything that routes packets of a family without a mark.
    ///
    /// # Errors
    ///
    /// What could not be read.
    pub fn read_all(&mut self, family: Family) -> anyhow::Result<Fib> {
        self.read_where(family, Marks::None, &|_| true)
    }

    fn read_where(&mut self, family: Family, marks: Marks, wanted: &dyn Fn(&SeenRoute) -> bool) -> anyhow::Result<Fib> {
        let FibReader { netlink, tape } = self;
        let of_family = |payload: &[u8]| Ok(rule::seen(payload)?.filter(|seen| seen.rule.family == family));
        let rules = netlink.dump(RTM_GETRULE, &rule::all_of(family), of_family);
        let rules = rules.context("cannot read the policy rules")?;
        let (tables, gateways) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
        let routes = netlink.dump(RTM_GETROUTE, &route::all(family), |payload| {
            let Some(route) = route::seen(payload)? else { return Ok(None) };
            note(&tables, route.table);
            let with_gateway = route.all_hops().iter().filter(|hop| hop.via.is_some());
            with_gateway.filter_map(|hop| hop.oif).for_each(|oif| note(&gateways, oif));
            Ok(Some(route).filter(wanted))
        });
        let routes = routes.with_context(|| format!("cannot read the {family} routes"))?;
        let addresses = netlink.dump(RTM_GETADDR, &addr::all(), addr::seen);
        let addresses = addresses.context("cannot read the addresses of all interfaces")?;
        let seen = netlink.dump(RTM_GETNETCONF, &netconf::all(family), |payload| netconf::seen(payload, family));
        let mut seen: BTreeMap<i32, Conf> = seen
            .context("cannot read the settings of interfaces")?
            .into_iter()
            .map(|it| {
                (it.index, Conf { rp_filter: it.rp_filter.unwrap_or(0), forwarding: it.forwarding, ..Conf::default() })
            })
            .collect();
        let links = netlink.dump(RTM_GETLINK, &link::all(), link::seen).context("cannot read the links")?;
        let mut confs = BTreeMap::new();
        for link in &links {
            let seen = i32::try_from(link.dev.index).ok().and_then(|index| seen.remove(&index)).unwrap_or_default();
            let accept_local = family == Family::V4 && is_on(tape, "ipv4", &link.dev.name, "accept_local");
            let force_forwarding = family == Family::V6 && is_on(tape, "ipv6", &link.dev.name, "force_forwarding");
            let src_valid_mark =
                marks == Marks::Some && family == Family::V4 && is_on(tape, "ipv4", &link.dev.name, "src_valid_mark");
            confs.insert(link.dev.index, Conf { accept_local, force_forwarding, src_valid_mark, ..seen });
        }
        let all_name = IfName::new(b"all");
        let of_all = |key| family == Family::V4 && all_name.as_ref().is_some_and(|name| is_on(tape, "ipv4", name, key));
        let (accept_local, src_valid_mark) = (of_all("accept_local"), marks == Marks::Some && of_all("src_valid_mark"));
        let all = Conf { accept_local, src_valid_mark, ..seen.remove(&netconf::ALL).unwrap_or_default() };
        Ok(Fib {
            rules,
            routes,
            tables: tables.into_inner(),
            gateways: gateways.into_inner(),
            links,
            addresses,
            confs,
            all,
        })
    }

    /// All rules, routes, links and addresses, for people.
    ///
    /// # Errors
    ///
    /// What could not be read.
    pub fn shown(&mut self) -> anyhow::Result<Lists> {
        let netlink = &mut self.netlink;
        let mut routes = netlink.dump(RTM_GETROUTE, &route::all(Family::V4), route::seen)?;
        routes.extend(netlink.dump(RTM_GETROUTE, &route::all(Family::V6), route::seen)?);
        Ok(show::all(&Fib {
            rules: netlink.dump(RTM_GETRULE, &rule::all(), rule::seen)?,
            routes,
            links: netlink.dump(RTM_GETLINK, &link::all(), link::seen)?,
            addresses: netlink.dump(RTM_GETADDR, &addr::all(), addr::seen)?,
            ..Fib::default()
        }))
    }

    /// The route that the kernel itself uses for a packet.
    ///
    /// # Errors
    ///
    /// The kernel could not be asked. A refusal of the packet is an answer.
    pub fn ask(&mut self, packet: &Packet) -> anyhow::Result<Answer> {
        let Packet { from, to, .. } = packet;
        match self.netlink.get(RTM_GETROUTE, &route::lookup(packet), route::seen) {
            Ok(found) => {
                found.map(Ok).with_context(|| format!("the kernel did not report its route from {from} to {to}"))
            }
            // With an error text the kernel refuses the question, without one the packet.
            Err(error @ NetlinkError::Refused { errno: Errno::EINVAL, text: None })
            | Err(
                error @ NetlinkError::Refused {
                    errno: Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EXDEV | Errno::ESRCH,
                    ..
                },
            ) => Ok(Err(error.to_string())),
            Err(error) => Err(anyhow::Error::new(error).context("cannot ask the kernel for its route")),
        }
    }
}

/// Adds what is missing.
fn note<T: PartialEq>(list: &RefCell<Vec<T>>, item: T) {
    let mut list = list.borrow_mut();
    if !list.contains(&item) {
        list.push(item);
    }
}

/// A sysctl of an interface that no netlink message contains. An unreadable one counts as off, its default.
fn is_on(tape: &Tape, family: &str, name: &IfName, key: &str) -> bool {
    let path = [b"net", family.as_bytes(), b"conf", name.as_bytes(), key.as_bytes()].join(&b'/');
    let live = || sysctl::read(&SysctlKey::from_path(&path)).map_err(|error| error.to_string());
    tape.answer("sysctls", &text_of(&path), live).is_ok_and(|value| value.is_some_and(|value| !value.starts_with('0')))
}
