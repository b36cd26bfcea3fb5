//! The only code that touches the system: it looks, and it applies. It decides nothing.

mod crictl;
mod fib;
pub mod file;
mod lock;
mod message;
mod netlink;
mod netns;
mod nftables;
mod program;
mod root;
mod state;
mod stop;
mod sysctl;
pub mod systemd;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Seek, Write};
use std::mem::{self, MaybeUninit};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use cidr::IpInet;
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};

use crictl::CrictlError;
pub use fib::FibReader;
pub use lock::{Held, Lock};
use message::{RTM_DELADDR, RTM_DELLINK, RTM_DELROUTE, RTM_DELRULE, RTM_GETADDR, RTM_GETLINK, RTM_GETNETCONF};
use message::{RTM_GETROUTE, RTM_GETRULE, RTM_NEWADDR, RTM_NEWLINK, RTM_NEWROUTE, RTM_NEWRULE, RTM_SETLINK};
use netlink::{Netlink, NetlinkError};
use program::ProgramError;
pub use root::{ConfFiles, Root};
use rustix::fs::RawDir;
use stop::Stop;
pub use stop::survive_file_limit;

use crate::change::{Change, RestartPod};
use crate::desired::Pattern;
use crate::memory::{AddedAddress, Knowledge, Ledger, Memory, Note, Recall, Reported};
use crate::nat;
use crate::net::{ALIAS, Bridge, Dev, IfName, PROMOTE, PROTO_MENDED, Route, SysctlKey, one_line};
use crate::netns::{NetnsName, Sandboxes, Veth};
use crate::observed::{Address, Link, Look, Observed, RouteSet, RpFilters, SeenBridge, SeenRoute, SeenRule, Want};
use crate::pod::{PodId, PodQuery, Pods};
use crate::sorted;
use crate::sysctl_d::{OURS, Settings};
use crate::topology::has_default;

/// How often it is asked whether a new sandbox is ready.
const POLL: Duration = Duration::from_millis(500);
/// How long nft may take. It waits for others that write nftables, who take milliseconds.
const NFT_TIME: Duration = Duration::from_secs(10);

/// This node, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Node {
    netlink: Netlink,
    /// The way to nftables, once it was needed.
    netfilter: Option<Netlink>,
    state_dir: PathBuf,
    durable_dir: PathBuf,
    patient: bool,
    stop: Stop,
    /// What is in the state directory, once it was read or written, and whether that is all there was since boot.
    memory: Option<(Memory, bool)>,
    /// When it was first asked for the time, on the clock that counts from boot.
    begun: Option<Duration>,
    /// What the ledger says, once it was read or written.
    ledger: Option<Ledger>,
    /// The addresses that this run has had the ledger forget.
    forgotten: Vec<AddedAddress>,
}

/// What became of a change that did not fail.
#[derive(Debug)]
pub struct Applied {
    /// Whether it was this call that changed something: it was not so already.
    pub made: bool,
    /// What there is to tell of it.
    pub told: Option<String>,
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// This process may not.
    #[error("{0}; changing the network takes the capability CAP_NET_ADMIN in its user namespace")]
    NotPermitted(String),
    /// This process may not, and lacks what is named here.
    #[error("{0}")]
    Lacks(String),
    /// Anything else, in the words of the kernel or of the program.
    #[error("{0}")]
    Refused(String),
    /// The answer was lost: the change may have been made.
    #[error("{0}")]
    Unanswered(String),
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
    /// Opens the way to the kernel. `durable_dir` is for what outlives a boot. A node that is not `patient` answers at once what takes time to answer.
    ///
    /// # Errors
    ///
    /// There is no netlink socket to be had.
    pub fn open(state_dir: &Path, durable_dir: &Path, patient: bool) -> anyhow::Result<Node> {
        let (state_dir, durable_dir) = (state_dir.into(), durable_dir.into());
        let (netlink, netfilter) = (Netlink::open()?, None);
        let stop = Stop::default();
        let (memory, begun) = (None, None);
        let (ledger, forgotten) = (None, Vec::new());
        Ok(Node { netlink, netfilter, state_dir, durable_dir, patient, stop, memory, begun, ledger, forgotten })
    }

    /// Removes the temporary files that an interrupted run may have left. Only under the lock.
    pub fn tidy(&self) {
        state::tidy(&self.state_dir, &self.durable_dir);
        sysctl::tidy();
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
                Want::Name(index) => {
                    let seen = self.name(index);
                    observed.names.insert(index, failed("the names of interfaces", seen));
                }
                Want::LinkNamed(name) => {
                    let seen = failed(&format!("interface {name}"), self.link(0, Some(&name)));
                    observed.links_named.insert(name, seen);
                }
                Want::Addresses => {
                    let seen = self.addresses(message::seen_address);
                    observed.addresses = Some(failed("the addresses of all interfaces", seen));
                }
                Want::GlobalAddresses => {
                    let seen = self.addresses(message::seen_global_address);
                    observed.global_addresses = Some(failed("the addresses of all interfaces", seen));
                }
                Want::LinksOn => observed.links_on = Some(failed("the links on others", self.links_on())),
                Want::Bridges => observed.bridges = Some(failed("the bridges", self.bridges())),
                Want::Nat => {
                    let seen = nftables::nat(&mut self.netfilter);
                    observed.nat = Some(failed("our table of nftables", seen));
                }
                Want::Filters => {
                    let seen = nftables::filters(&mut self.netfilter);
                    observed.filters = Some(failed("the tables of nftables that filter", seen));
                }
                Want::Program(name) => drop(observed.programs.insert(name, Ok(program::is_on_path(name)))),
                Want::Sysctl(key) => {
                    let value = failed(&format!("the sysctl {key}"), sysctl::read(&key));
                    observed.sysctls.insert(key, value);
                }
                Want::SysctlNames(directory) => {
                    let names = failed(&format!("/proc/sys/{directory}"), sysctl::names(&directory));
                    observed.sysctl_names.insert(directory, names);
                }
                Want::Persisted => observed.persisted = Some(failed(OURS, sysctl::persisted())),
                Want::SysctlFiles => observed.sysctl_files = Some(failed("sysctl.d", sysctl_files())),
                Want::Ledger => {
                    observed.ledger = Some(failed("what node-fixer has made", self.ledger()));
                }
                Want::Settle(settle) => {
                    let settled = self.settle(settle).map(|()| Box::default());
                    observed.settled = Some(failed("the uplinks", settled));
                }
                Want::Later(want) => {
                    // Where it was not waited, that look has failed already.
                    if let Some(Ok(settled)) = &mut observed.settled {
                        self.look(vec![*want], settled);
                    }
                }
                Want::Recall => {
                    observed.recall = Some(failed("what the last run remembered", self.recall()));
                }
                Want::Pods(query) => {
                    let seen = failed("the pods", self.pods(&query));
                    observed.pods.insert(query, seen);
                }
                Want::Namespaces => {
                    let seen = netns::names().map_err(|error| format!("{error:#}"));
                    observed.namespaces = Some(failed("the network namespaces", seen));
                }
                Want::Occupied => {
                    let seen = netns::occupied().map_err(|error| format!("{error:#}"));
                    observed.occupied = Some(failed("the network namespaces of all processes", seen));
                }
                Want::Veths(names) => {
                    let seen = failed("the veths", self.veths(&names));
                    observed.veths.insert(names, seen);
                }
                Want::Sandboxes(query) => {
                    observed.sandboxes = Some(failed("the sandboxes of pods", self.sandboxes(&query)));
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
    pub fn apply(&mut self, change: &Change) -> Result<Applied, ApplyError> {
        if let Change::DeleteRoute(route) = change {
            self.is_replaced(route)?;
        }
        self.make(change)
    }

    /// Refuses to delete what repairs a table as long as the table has nothing in its place: what was to take it may have
    /// been refused, or have gone again since the look.
    fn is_replaced(&mut self, route: &Route) -> Result<(), ApplyError> {
        if route.protocol != PROTO_MENDED {
            return Ok(());
        }
        let seen = self.routes(&RouteSet::Table(route.family(), route.table));
        let seen = seen.map_err(|error| ApplyError::Refused(error.to_string()))?;
        let is_it =
            |it: &SeenRoute| it.protocol == PROTO_MENDED && it.to == route.to && it.metric == route.stored_metric();
        let mut rest = seen.iter().filter(|it| !is_it(it));
        let (is_there, what) = match route.to.network_length() {
            0 => (has_default(rest), "default route"),
            _ => (rest.any(|it| it.to == route.to), "route to it"),
        };
        let refused = || ApplyError::Refused(format!("table {} has no other {what}; this one stays", route.table));
        is_there.then_some(()).ok_or_else(refused)
    }

    fn make(&mut self, change: &Change) -> Result<Applied, ApplyError> {
        let add = NLM_F_CREATE | NLM_F_EXCL;
        let netlink = &mut self.netlink;
        let result = match change {
            Change::AddRoute(route) => {
                let route = self.with_index(route)?;
                self.netlink.change(RTM_NEWROUTE, add, &message::route(&route))
            }
            Change::ReplaceRoute { new, .. } => {
                netlink.change(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, &message::route(new))
            }
            Change::DeleteRoute(route) => {
                let route = self.with_index(route)?;
                self.netlink.change(RTM_DELROUTE, 0, &message::route(&route))
            }
            Change::AddRule(rule) => message::rule(rule).and_then(|rule| netlink.change(RTM_NEWRULE, add, &rule)),
            Change::DeleteRule(rule) => message::rule(rule).and_then(|rule| netlink.change(RTM_DELRULE, 0, &rule)),
            Change::AddAddress(dev, address) => self.add_address(dev, address),
            Change::DeleteAddress { dev, address, promote } => self.delete_address(dev, address, *promote)?,
            Change::AddBridge(bridge) => self.add_bridge(bridge),
            Change::SetBridge { new, .. } => netlink.change(RTM_NEWLINK, 0, &message::bridge(new)),
            Change::DeleteBridge(bridge) => netlink.change(RTM_DELLINK, 0, &message::bridge(bridge)),
            Change::SetMasquerade { rules, .. } => return self.nft(&nat::replacement(rules)),
            Change::DeleteMasquerade => return self.nft(&nat::removal()),
            Change::SetSysctl { .. } => {
                set_sysctl(change)?;
                return Ok(Applied { made: true, told: None });
            }
            Change::Persist { new, .. } => {
                sysctl::persist(new.as_deref()).map_err(ApplyError::Refused)?;
                return Ok(Applied { made: true, told: None });
            }
            Change::DeleteNetns(name, id) => {
                return netns::remove(name, *id).map(|made| Applied { made, told: None });
            }
            Change::DeleteVeth(veth, of) => self.delete_veth(veth, of.as_ref())?,
            Change::RestartPod(restart) => {
                let told = self.restart(restart).map_err(ApplyError::Refused)?;
                return Ok(Applied { made: true, told: Some(told) });
            }
        };
        match result {
            Err(NetlinkError::Refused {
                errno: Errno::EEXIST | Errno::ENOENT | Errno::ESRCH | Errno::ENODEV, ..
            }) => Ok(Applied { made: false, told: None }),
            // Of an address: there is no such one any more.
            Err(NetlinkError::Refused { errno: Errno::EADDRNOTAVAIL, .. })
                if matches!(change, Change::DeleteAddress { .. }) =>
            {
                Ok(Applied { made: false, told: None })
            }
            // EACCES is something else: "IPv6 is disabled on nexthop device", for one.
            Err(error @ (NetlinkError::Refused { errno: Errno::EPERM, .. } | NetlinkError::Failed(Errno::EPERM))) => {
                Err(ApplyError::NotPermitted(error.to_string()))
            }
            Err(error @ NetlinkError::Failed(_)) => Err(ApplyError::Unanswered(error.to_string())),
            Err(error) => Err(ApplyError::Refused(error.to_string())),
            Ok(()) => Ok(Applied { made: true, told: None }),
        }
    }

    /// Makes the change that takes another back. Where that was a removal, the ledger first tells again of what it was
    /// to forget with it.
    ///
    /// # Errors
    ///
    /// What the kernel said, or that the state directory cannot be written.
    pub fn take_back(&mut self, back: &Change) -> Result<Applied, ApplyError> {
        if let Change::AddAddress(dev, inet) = back {
            let is_it = |it: &AddedAddress| it.dev.as_bytes() == dev.as_bytes() && it.address == *inet;
            if self.forgotten.iter().any(is_it) {
                let mut again = mem::take(&mut self.forgotten);
                let told = self.recall().and_then(|recall| {
                    again.iter_mut().for_each(|it| it.added = recall.awake);
                    self.update_ledger(|ledger| ledger.add_addresses(again))
                });
                told.map_err(|error| ApplyError::Refused(format!("the state directory cannot be written: {error}")))?;
            }
        }
        self.make(back)
    }

    /// What the ledger says. It is read once: under the lock nobody else writes it.
    fn ledger(&mut self) -> io::Result<Ledger> {
        if self.ledger.is_none() {
            self.ledger = Some(state::ledger(&self.durable_dir, self.patient)?);
        }
        Ok(self.ledger.clone().unwrap_or_default())
    }

    /// Has the ledger changed, and keeps the addresses that it forgets.
    fn update_ledger(&mut self, update: impl FnOnce(&mut Ledger)) -> io::Result<()> {
        let before = self.ledger()?;
        let mut ledger = before.clone();
        update(&mut ledger);
        state::write_ledger(&self.durable_dir, &ledger)?;
        self.forgotten.extend(before.addresses_without(&ledger));
        self.ledger = Some(ledger);
        Ok(())
    }

    /// A route over a link that was not there when it was planned, with the index that the link has now.
    fn with_index<'a>(&mut self, route: &'a Route) -> Result<Cow<'a, Route>, ApplyError> {
        let Some(dev) = route.dev.as_ref().filter(|dev| dev.index == 0) else { return Ok(Cow::Borrowed(route)) };
        let link = self.link(0, Some(&dev.name)).map_err(|error| ApplyError::Refused(error.to_string()))?;
        let link = link.ok_or_else(|| ApplyError::Refused(format!("there is no interface {}", dev.name)))?;
        Ok(Cow::Owned(Route { dev: Some(link.dev), ..route.clone() }))
    }

    /// Has nft carry out these commands, in one transaction.
    fn nft(&mut self, commands: &str) -> Result<Applied, ApplyError> {
        self.listen().map_err(ApplyError::Refused)?;
        // A file in memory holds more than an argument and, other than a pipe, waits for no reader.
        let input = || -> io::Result<File> {
            survive_file_limit()?;
            let mut file = File::from(rustix::fs::memfd_create(nat::PROGRAM, rustix::fs::MemfdFlags::CLOEXEC)?);
            file.write_all(commands.as_bytes())?;
            file.rewind()?;
            Ok(file)
        };
        let input = input().map_err(|error| ApplyError::Refused(format!("no memory for the input of nft: {error}")))?;
        let mut program = Command::new(nat::PROGRAM);
        program.args(["-f", "-"]);
        match program::run(program, input.into(), nat::PROGRAM, NFT_TIME, &self.stop) {
            Ok(_) => Ok(Applied { made: true, told: None }),
            Err(ProgramError::Refused { error, said }) => {
                // It repeats the commands and points at a place in them. What is wrong it says in a line that begins so.
                let why: Vec<&str> =
                    said.lines().filter_map(|line| line.split_once("Error: ")).map(|it| it.1).collect();
                let why = if why.is_empty() { error } else { format!("nft: {}", one_line(&why.join("; "))) };
                let denied = said.contains("Operation not permitted");
                Err(if denied { ApplyError::NotPermitted(why) } else { ApplyError::Refused(why) })
            }
            Err(error) => Err(ApplyError::Refused(error.to_string())),
        }
    }

    fn add_address(&mut self, dev: &IfName, address: &IpInet) -> Result<(), NetlinkError> {
        let link = self.link(0, Some(dev))?.ok_or_else(NetlinkError::no_device)?;
        let add = NLM_F_CREATE | NLM_F_EXCL;
        let added = self.netlink.change(RTM_NEWADDR, add, &message::address(link.dev.index, address));
        if let Err(NetlinkError::Refused { errno: Errno::EEXIST, .. }) = added {
            // Somebody was faster: it is theirs. Where the ledger cannot be written, it says a moment too much.
            let is_it = |entry: &AddedAddress| entry.dev.as_bytes() == dev.as_bytes() && entry.address == *address;
            let _ = self.update_ledger(|ledger| ledger.addresses.retain(|it| !is_it(it)));
        }
        added
    }

    /// Deletes an address and no other: where the kernel would delete the rest of its subnet as well, it is told to
    /// promote the next one, and in the same message to be as before, so that no end comes between. That is asked of it
    /// wherever there may be a rest: it may have come since the look, or with what is taken back.
    fn delete_address(
        &mut self,
        dev: &IfName,
        address: &IpInet,
        promote: bool,
    ) -> Result<Result<(), NetlinkError>, ApplyError> {
        let key = SysctlKey::conf_of(dev, PROMOTE);
        let has_rest = promote || address.is_ipv4() && address.network_length() < 32;
        let unread = |error| ApplyError::Refused(format!("cannot look at the sysctl {key}: {error}"));
        let would_go = has_rest && sysctl::read(&key).map_err(unread)?.as_deref() == Some("0");
        Ok(self.link(0, Some(dev)).and_then(|link| {
            let index = link.ok_or_else(NetlinkError::no_device)?.dev.index;
            let gone = message::address(index, address);
            if !would_go {
                return self.netlink.change(RTM_DELADDR, 0, &gone);
            }
            let set = (RTM_SETLINK, 0, &message::promote(index, 1) as &_);
            let back = (RTM_SETLINK, 0, &message::promote(index, 0) as &_);
            let [set, deleted, back] = self.netlink.change_together([set, (RTM_DELADDR, 0, &gone), back]);
            set.and(deleted).and(back)
        }))
    }

    /// Makes a bridge and marks it, in one go: none of ours is ever left without its mark.
    fn add_bridge(&mut self, bridge: &Bridge) -> Result<(), NetlinkError> {
        let mark = |alias| message::alias(&bridge.name, alias);
        let add = NLM_F_CREATE | NLM_F_EXCL;
        let [made, marked] = self
            .netlink
            .change_together([(RTM_NEWLINK, add, &message::bridge(bridge)), (RTM_SETLINK, 0, &mark(ALIAS))]);
        match (made, marked) {
            // Somebody else made one of this name since the look: only the kernel's own word says so. The mark is not for it.
            (Err(error @ NetlinkError::Refused { errno: Errno::EEXIST, .. }), Ok(())) => {
                self.netlink.change(RTM_SETLINK, 0, &mark("")).and(Err(error))
            }
            // Better none than one that nobody would ever know for ours.
            (Ok(()), Err(error)) => self.netlink.change(RTM_DELLINK, 0, &message::bridge(bridge)).and(Err(error)),
            (made, marked) => made.and(marked),
        }
    }

    fn links_on(&mut self) -> Result<BTreeMap<u32, Vec<IfName>>, NetlinkError> {
        let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (below, name) in self.netlink.dump(RTM_GETLINK, &message::one_link(0, None), message::on_another)? {
            found.entry(below).or_default().push(name);
        }
        Ok(found)
    }

    fn bridges(&mut self) -> Result<Vec<SeenBridge>, NetlinkError> {
        self.netlink.dump(RTM_GETLINK, &message::all_bridges(), message::seen_bridge)
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
        let got = self.netlink.get(RTM_GETLINK, &message::one_link(index, name), &mut |kind, link| {
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

    fn name(&mut self, index: u32) -> Result<Option<IfName>, NetlinkError> {
        match self.netlink.name_of(index) {
            // The cheap way knows only UTF-8.
            Err(NetlinkError::Failed(Errno::EILSEQ)) => Ok(self.link(index, None)?.map(|link| link.dev.name)),
            other => other,
        }
    }

    fn addresses(
        &mut self,
        read: fn(&[u8]) -> Result<Option<Address>, NetlinkError>,
    ) -> Result<Vec<Address>, NetlinkError> {
        self.netlink.dump(RTM_GETADDR, &message::all_addresses(), read)
    }

    /// Waits, unless somebody waits for the answer.
    fn settle(&mut self, settle: Duration) -> anyhow::Result<()> {
        if self.patient {
            self.stop.listen().context("cannot listen for signals")?;
            anyhow::ensure!(self.stop.sleep(settle), "told to stop while waiting for the uplinks to settle");
        }
        Ok(())
    }

    fn pods(&mut self, query: &PodQuery) -> Result<Pods, CrictlError> {
        self.listen().map_err(CrictlError::Failed)?;
        let pods = crictl::pods(query, &self.stop)?;
        Ok(Pods { pods, listed: wall_clock() })
    }

    /// The veths whose names match, if both ends are here.
    fn veths(&mut self, names: &Pattern) -> anyhow::Result<Vec<Veth>> {
        let mut veths = Vec::new();
        for name in link_names(names)? {
            if let Some((dev, Some(peer))) = self.veth(0, Some(&name))?
                && let Some((_, Some(back))) = self.veth(peer, None)?
                && back == dev.index
            {
                veths.push(Veth { dev, peer });
            }
        }
        Ok(sorted::list(veths, |a, b| a.dev.name.cmp(&b.dev.name)))
    }

    /// A veth, and the index of its other end where that is here; `None` if it is no veth, or is gone.
    fn veth(&mut self, index: u32, name: Option<&IfName>) -> Result<Option<(Dev, Option<u32>)>, NetlinkError> {
        let mut seen = None;
        let got = self.netlink.get(RTM_GETLINK, &message::one_link(index, name), &mut |kind, link| {
            if kind == RTM_NEWLINK {
                seen = message::seen_veth(link)?;
            }
            Ok(())
        });
        match got {
            Err(NetlinkError::Refused { errno: Errno::ENODEV, .. }) => Ok(None),
            other => other.map(|()| seen),
        }
    }

    /// Deletes a veth if it is still as it was seen.
    fn delete_veth(&mut self, veth: &Veth, of: Option<&NetnsName>) -> Result<Result<(), NetlinkError>, ApplyError> {
        if let Some(name) = of.filter(|name| netns::exists(name)) {
            return Err(ApplyError::Refused(format!("the namespace {name} is there; its links are left alone")));
        }
        match self.veth(veth.dev.index, None) {
            Ok(None) => Ok(Err(NetlinkError::no_device())),
            Ok(Some(now)) if now == (veth.dev.clone(), Some(veth.peer)) => {
                Ok(self.netlink.change(RTM_DELLINK, 0, &message::one_link(veth.dev.index, None)))
            }
            Ok(Some(_)) => Err(ApplyError::Refused("it is not as it was by now; it is left alone".into())),
            Err(error) => Err(ApplyError::Refused(error.to_string())),
        }
    }

    fn sandboxes(&mut self, query: &PodQuery) -> Result<Sandboxes, CrictlError> {
        self.listen().map_err(CrictlError::Failed)?;
        let mut seen = Sandboxes::default();
        for path in crictl::namespaces(query, &self.stop)? {
            let id = netns::id_at(&path);
            let id = id.map_err(|error| CrictlError::Failed(format!("cannot look at {}: {error}", path.display())))?;
            seen.ids.extend(id);
            seen.names.extend(path.file_name().and_then(|name| NetnsName::new(name.as_encoded_bytes())));
        }
        Ok(seen)
    }

    fn listen(&mut self) -> Result<(), String> {
        self.stop.listen().map_err(|error| format!("cannot listen for signals: {error}"))
    }

    /// Remembers for the next run.
    ///
    /// # Errors
    ///
    /// The state directory cannot be written.
    pub fn remember(&mut self, note: Note) -> io::Result<()> {
        if let Note::Addresses(_) | Note::Sysctls(_) = note {
            return self.update_ledger(|ledger| ledger.take(note));
        }
        let mut memory = self.recall()?.memory;
        memory.take(note);
        state::remember(&self.state_dir, &memory)?;
        self.memory = Some((memory, true));
        Ok(())
    }

    /// What earlier runs have reported and that was still so.
    ///
    /// # Errors
    ///
    /// It cannot be read for now.
    pub fn reported(&mut self) -> io::Result<&Reported> {
        self.memory().map(|memory| &memory.reported)
    }

    /// What was remembered so far.
    fn memory(&mut self) -> io::Result<&Memory> {
        let known = match self.memory.take() {
            Some(known) => known,
            None => state::recall(&self.state_dir, self.patient)?,
        };
        Ok(&self.memory.insert(known).0)
    }

    /// Whether this process was told to stop.
    pub fn told_to_stop(&self) -> bool {
        self.stop.told()
    }

    /// What is remembered so far, with the time.
    ///
    /// # Errors
    ///
    /// It cannot be read for now, or there is no clock.
    pub fn recall(&mut self) -> io::Result<Recall> {
        let mut memory = self.memory()?.clone();
        if !self.patient {
            // Who asks what would be done wants to know now what is wrong with crictl.
            memory.kube_proxy.retry = None;
        }
        let boot = boot_time()?;
        let begun = *self.begun.get_or_insert(boot);
        let awake = clock_gettime(ClockId::CLOCK_MONOTONIC)?.into();
        Ok(Recall { memory, wall: wall_clock(), boot, awake, begun })
    }

    /// Whether what it recalled is all that was remembered since boot: not so where that could not be read.
    pub fn recalls_all(&self) -> bool {
        self.memory.as_ref().is_some_and(|(_, is_all)| *is_all)
    }

    /// Restarts a pod. What is about to happen is remembered before it happens: whoever comes after an end in the
    /// middle goes on with the same sandbox.
    fn restart(&mut self, restart: &RestartPod) -> Result<String, String> {
        let Some(id) = &restart.id else { return Err("its sandbox is not known".into()) };
        self.listen()?;
        let written = |result: io::Result<()>| result.map_err(|error| format!("cannot remember the restart: {error}"));
        let note = |knowledge: &Knowledge| Note::KubeProxy(knowledge.clone());
        written(self.remember(note(&restart.begun)))?;
        match self.replace(&restart.query, id) {
            Ok(told) => {
                written(self.remember(note(&restart.ended)))?;
                Ok(told)
            }
            // Not a failure: the next run goes on.
            Err(error @ CrictlError::Stopped(_)) => Err(error.to_string()),
            Err(error) => {
                let retry = boot_time().ok().map(|now| now.saturating_add(restart.backoff));
                written(self.remember(note(&Knowledge { retry, ..restart.failed.clone() })))?;
                Err(error.to_string())
            }
        }
    }

    /// Stops and removes a sandbox, and waits until another one is ready; what there is to tell of that.
    fn replace(&mut self, query: &PodQuery, id: &PodId) -> Result<String, CrictlError> {
        let gone = |result| match result {
            Err(CrictlError::NotFound(_)) => Ok(()),
            other => other,
        };
        let begin = Instant::now();
        gone(crictl::stop_pod(query, id, &self.stop))?;
        // What cannot be removed is stopped all the same, and kubelet makes another: what counts is whether it does.
        let removed = match gone(crictl::remove_pod(query, id, &self.stop)) {
            Err(error @ CrictlError::Stopped(_)) => return Err(error),
            Err(error) => format!("; the old one was not removed: {error}"),
            Ok(()) => String::new(),
        };
        let patience = query.timeout * 3;
        let end = Instant::now() + patience;
        loop {
            let trouble = match crictl::pods(query, &self.stop) {
                Ok(pods) if pods.iter().any(|pod| pod.id != *id) => {
                    return Ok(format!(
                        "another sandbox was ready after {:.1} s{removed}",
                        begin.elapsed().as_secs_f64()
                    ));
                }
                Ok(_) => String::new(),
                Err(error @ CrictlError::Stopped(_)) => return Err(error),
                Err(error) => format!(" ({error})"),
            };
            if Instant::now() >= end {
                return Err(CrictlError::Failed(format!(
                    "sandbox {id} is stopped, and no other was ready within {patience:?}{trouble}{removed}; is kubelet \
                     running? see: systemctl status kubelet, journalctl -u kubelet"
                )));
            }
            if !self.stop.sleep(POLL) {
                return Err(CrictlError::Stopped(query.command(&query.list_args())));
            }
        }
    }
}

/// What the files of sysctl.d(5) say. One that cannot be read may say anything.
fn sysctl_files() -> Result<Settings, String> {
    let root = Root::open(Path::new("/")).map_err(|error| error.to_string())?;
    let (settings, unread) = root.sysctl_settings();
    if unread.is_empty() { Ok(settings) } else { Err(unread.join("; ")) }
}

fn wall_clock() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

fn boot_time() -> io::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_BOOTTIME)?.into())
}

/// A failed look as everybody who needs it will report it.
fn failed<T>(what: &str, result: Result<T, impl Display>) -> Look<T> {
    result.map_err(|error| unseen(what, &error))
}

fn unseen(what: &str, error: &dyn Display) -> Arc<str> {
    format!("cannot look at {what}: {error}").into()
}

/// The interfaces of this network namespace whose names match. (/sys/class/net has those of the namespace that /sys was
/// mounted in, and a dump of links costs twenty times as much.)
fn link_names(names: &Pattern) -> anyhow::Result<Vec<IfName>> {
    let directory = "/proc/sys/net/ipv4/conf";
    matching(directory, names).with_context(|| format!("cannot list {directory}"))
}

/// The names in a directory that match. Takes no memory for the others.
fn matching(directory: &str, names: &Pattern) -> io::Result<Vec<IfName>> {
    let directory = File::open(directory)?;
    let mut buffer = vec![MaybeUninit::uninit(); 32 * 1024];
    let mut entries = RawDir::new(directory, &mut buffer);
    let mut matching = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") && names.is_match(name) {
            matching.extend(IfName::new(name));
        }
    }
    Ok(matching)
}

fn describe(set: &RouteSet) -> String {
    match set {
        RouteSet::Table(family, table) => format!("the {family} routes of table {table}"),
        RouteSet::Protocol(family, protocol) => format!("the {family} routes of protocol {protocol}"),
        RouteSet::Defaults(family) => format!("the {family} default routes of the main table"),
    }
}

/// Writes a sysctl, what belongs before it and what comes after it. When one of the latter fails the rest is written
/// nevertheless: each is somebody's value.
fn set_sysctl(change: &Change) -> Result<(), ApplyError> {
    let Change::SetSysctl { key, value, first, then, needs, .. } = change else { return Ok(()) };
    for (needed, want) in needs {
        let unread = |error| ApplyError::Refused(format!("cannot look at the sysctl {needed}: {error}"));
        let live = sysctl::read(needed).map_err(unread)?;
        // Where the interface has gone meanwhile nothing is needed of it.
        if let Some(live) = live.filter(|live| live != want) {
            return Err(ApplyError::Refused(format!("not written: {needed} is {live}, and has to be {want} before")));
        }
    }
    let write = |(of, value): &(SysctlKey, String)| {
        sysctl::write(of, value).map_err(|error| judge(error, if of == key { None } else { Some(of) }))
    };
    first.iter().try_for_each(write)?;
    write(&(key.clone(), value.clone()))?;
    then.iter().map(write).fold(Ok(()), Result::and)
}

/// What it means that a sysctl could not be written; `of` names it where it is not the one that the change is of.
fn judge(error: io::Error, of: Option<&SysctlKey>) -> ApplyError {
    let of = of.map_or(String::new(), |key| format!("{key}: "));
    match error.kind() {
        io::ErrorKind::NotFound => ApplyError::Refused(format!(
            "{of}{error}; the key is there, so it is the value that names something the kernel here does not have"
        )),
        // The capability is not missing: the key is there to be read (EACCES).
        io::ErrorKind::PermissionDenied
            if error.raw_os_error() == Some(Errno::EACCES as i32) && has_net_admin().unwrap_or(false) =>
        {
            ApplyError::Refused(format!("{of}{error}; the kernel lets nobody write it"))
        }
        io::ErrorKind::PermissionDenied => ApplyError::NotPermitted(format!("{of}{error}")),
        _ => ApplyError::Refused(format!("{of}{error}")),
    }
}
