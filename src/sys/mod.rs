//! The only code that touches the system: it looks, and it applies. It decides nothing.

mod crictl;
mod lock;
mod message;
mod netlink;
mod state;
mod stop;
mod sysctl;

use std::fmt::Display;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use nix::errno::Errno;
use nix::time::{ClockId, clock_gettime};
use rtnetlink::packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};

use crictl::CrictlError;
pub use lock::{Held, Lock};
use message::{RTM_DELROUTE, RTM_DELRULE, RTM_GETADDR, RTM_GETLINK, RTM_GETNETCONF, RTM_GETROUTE, RTM_GETRULE};
use message::{RTM_NEWLINK, RTM_NEWROUTE, RTM_NEWRULE};
use netlink::{Netlink, NetlinkError};
use rustix::fs::RawDir;
use stop::Stop;

use crate::change::{Change, RestartPod};
use crate::desired::Pattern;
use crate::memory::{Knowledge, Memory, Note, Recall, Uplink};
use crate::net::IfName;
use crate::observed::{Address, Link, Look, Observed, RouteSet, RpFilters, SeenRoute, SeenRule, Want};
use crate::pod::{Pod, PodId, PodQuery};

/// How often it is asked whether a new sandbox is ready.
const POLL: Duration = Duration::from_millis(500);

/// This node, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Node {
    netlink: Netlink,
    state_dir: PathBuf,
    patient: bool,
    stop: Stop,
    /// What is in the state directory, once it was read or written.
    memory: Option<Memory>,
    /// How many interfaces there are, where that was seen.
    links: Option<usize>,
}

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// This process may not.
    #[error("{0}; changing the network takes the capability CAP_NET_ADMIN in its user namespace")]
    NotPermitted(String),
    /// Anything else, in the words of the kernel or of the program.
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
    /// Opens the way to the kernel. A node that is not `patient` answers at once what takes time to answer.
    ///
    /// # Errors
    ///
    /// There is no netlink socket to be had.
    pub fn open(state_dir: &Path, patient: bool) -> anyhow::Result<Node> {
        let netlink = Netlink::open()?;
        Ok(Node { netlink, state_dir: state_dir.into(), patient, stop: Stop::default(), memory: None, links: None })
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
                    observed.addresses = Some(failed("the addresses of all interfaces", self.addresses()));
                }
                Want::Uplinks(names) => observed.uplinks = Some(failed("the uplinks", self.uplinks(&names))),
                Want::SettledUplinks(names, settle) => {
                    observed.settled_uplinks = Some(failed("the uplinks", self.settled_uplinks(&names, settle)));
                }
                Want::Recall => {
                    observed.recall = Some(failed("what the last run remembered", self.recall()));
                }
                Want::Pods(query) => observed.pods = Some(failed("the pods", self.pods(&query))),
            }
        }
    }

    /// Makes one change. Returns what there is to tell of it, if anything.
    ///
    /// What is there already (EEXIST) or gone meanwhile (ENOENT, ESRCH, ENODEV) is no error: whether all is as
    /// it should be is for the second look to say.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn apply(&mut self, change: &Change) -> Result<Option<String>, ApplyError> {
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
            Change::SetSysctl { key, value } => return sysctl::write(key, value).or_else(judge).map(|()| None),
            Change::RestartPod(restart) => return self.restart(restart).map(Some).map_err(ApplyError::Refused),
        };
        match result {
            Err(NetlinkError::Refused {
                errno: Errno::EEXIST | Errno::ENOENT | Errno::ESRCH | Errno::ENODEV, ..
            }) => Ok(None),
            // EACCES is something else: "IPv6 is disabled on nexthop device", for one.
            Err(error @ NetlinkError::Refused { errno: Errno::EPERM, .. }) => {
                Err(ApplyError::NotPermitted(error.to_string()))
            }
            other => other.map(|()| None).map_err(|error| ApplyError::Refused(error.to_string())),
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
        self.links = Some(seen.links.len());
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
            Err(NetlinkError::Refused { errno: Errno::EILSEQ, .. }) => {
                Ok(self.link(index, None)?.map(|link| link.dev.name))
            }
            other => other,
        }
    }

    fn addresses(&mut self) -> Result<Vec<Address>, NetlinkError> {
        self.netlink.dump(RTM_GETADDR, &message::all_addresses(), message::seen_address)
    }

    /// The links whose names match, by name. The names come from one listing; only those that match are asked for.
    fn uplinks(&mut self, names: &Pattern) -> anyhow::Result<Vec<Uplink>> {
        let mut uplinks = Vec::new();
        for name in self.link_names(names)? {
            // `all` and `default` are no links, and a link may have gone since.
            let Some(link) = self.link(0, Some(&name))? else { continue };
            match self.uplink(&String::from_utf8_lossy(name.as_bytes()), &link) {
                Err(NetlinkError::Refused { errno: Errno::ENODEV, .. }) => {}
                other => uplinks.push(other?),
            }
        }
        uplinks.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(uplinks)
    }

    /// The interfaces of this network namespace whose names match. (/sys/class/net has those of the namespace that
    /// /sys was mounted in, and a dump of links costs twenty times as much.)
    fn link_names(&self, names: &Pattern) -> anyhow::Result<Vec<IfName>> {
        // A quarter of the price, but only of interfaces that have IPv6: it counts when it has them all.
        if let Some(links) = self.links
            && let Ok((all, matching)) = matching("/proc/thread-self/net/dev_snmp6", names)
            && all == links
        {
            return Ok(matching);
        }
        let directory = "/proc/sys/net/ipv4/conf";
        let (_, matching) = matching(directory, names).with_context(|| format!("cannot list {directory}"))?;
        Ok(matching)
    }

    fn uplink(&mut self, name: &str, link: &Link) -> Result<Uplink, NetlinkError> {
        let index = link.dev.index;
        let all = self.netlink.dump(RTM_GETADDR, &message::addresses_of(index), message::seen_address)?;
        let lasting = all.into_iter().filter(|address| address.index == index && address.lasting);
        let mut addresses: Vec<String> =
            lasting.map(|address| format!("{}/{}", address.local, address.subnet.network_length())).collect();
        addresses.sort();
        let hardware = link.hardware.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Uplink { name: name.into(), index, hardware, addresses })
    }

    fn settled_uplinks(&mut self, names: &Pattern, settle: Duration) -> anyhow::Result<Vec<Uplink>> {
        if self.patient {
            self.stop.listen().context("cannot listen for signals")?;
            anyhow::ensure!(self.stop.sleep(settle), "told to stop while waiting for the uplinks to settle");
        }
        self.uplinks(names)
    }

    fn pods(&mut self, query: &PodQuery) -> Result<Vec<Pod>, CrictlError> {
        self.listen().map_err(CrictlError::Failed)?;
        crictl::pods(query, &self.stop)
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
        let mut memory = self.recall()?.memory;
        memory.take(note);
        state::remember(&self.state_dir, &memory)?;
        self.memory = Some(memory);
        Ok(())
    }

    /// Whether this process was told to stop.
    pub fn told_to_stop(&self) -> bool {
        self.stop.told()
    }

    fn recall(&mut self) -> io::Result<Recall> {
        let state_dir = &self.state_dir;
        let mut memory = self.memory.get_or_insert_with(|| state::recall(state_dir)).clone();
        if !self.patient {
            // Who asks what would be done wants to know now what is wrong with crictl.
            memory.kube_proxy.retry = None;
        }
        let boot = boot_time()?;
        let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Ok(Recall { memory, wall, boot })
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

fn boot_time() -> io::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_BOOTTIME)?.into())
}

/// A failed look as everybody who needs it will report it.
fn failed<T>(what: &str, result: Result<T, impl Display>) -> Look<T> {
    result.map_err(|error| Arc::from(format!("cannot look at {what}: {error}")))
}

/// How many names there are in a directory, and those that match. Takes no memory for the others.
fn matching(directory: &str, names: &Pattern) -> io::Result<(usize, Vec<IfName>)> {
    let directory = File::open(directory)?;
    let mut buffer = vec![MaybeUninit::uninit(); 32 * 1024];
    let mut entries = RawDir::new(directory, &mut buffer);
    let (mut all, mut matching) = (0, Vec::new());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        all += 1;
        if names.is_match(name) {
            matching.extend(IfName::new(name));
        }
    }
    Ok((all, matching))
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
