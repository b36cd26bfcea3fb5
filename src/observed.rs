//! What has been seen of the live node: plain data, without a type of the netlink crates in it.
//!
//! Plans are made from this alone. Nothing is looked at before a plan asks for it: asking for what nobody has
//! looked at yet answers with a [`Gap`] that names it, the engine looks, and plans again. So the cost of a run
//! follows what the node's policy needs, a failed look fails exactly those plans that need it, and "not
//! looked at" can never pass for "nothing there".

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use cidr::IpCidr;

use crate::desired::Pattern;
use crate::memory::{Ledger, Recall};
use crate::nat::{FilterTable, SeenNat};
use crate::net::{Dev, Family, IfName, Route, Rule, Scope, SysctlKey};
use crate::netns::{Occupied, Sandboxes, SeenNetns, Veth};
use crate::pod::{PodQuery, Pods};
use crate::sorted;
use crate::sysctl_d::Settings;

/// Something on the node that can be looked at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Want {
    /// The policy rules of all families.
    Rules,
    /// Routes.
    Routes(RouteSet),
    /// The rp_filter of every interface.
    RpFilters,
    /// The interface with this index.
    Link(u32),
    /// The name of the interface with this index: a thirtieth of the price of [`Want::Link`].
    Name(u32),
    /// The interface with this name.
    LinkNamed(IfName),
    /// The addresses of all interfaces.
    Addresses,
    /// Those that are global: on a node with many pods a small part of them, each pod's link having one of its own.
    GlobalAddresses,
    /// All bridges.
    Bridges,
    /// The links that are built on others, and go with them.
    LinksOn,
    /// Our nftables table.
    Nat,
    /// The nftables tables of others that filter what is forwarded.
    Filters,
    /// Whether there is a program of this name on PATH.
    Program(&'static str),
    /// The value of a sysctl.
    Sysctl(SysctlKey),
    /// The interfaces that have sysctls in this directory below /proc/sys, such as `net/ipv4/conf`.
    SysctlNames(String),
    /// Our file in /etc/sysctl.d.
    Persisted,
    /// All files of sysctl.d(5).
    SysctlFiles,
    /// What node-fixer has made that carries no mark.
    Ledger,
    /// What the last run remembered.
    Recall,
    /// Nothing but that this time passes; what is seen after it is seen apart.
    Settle(Duration),
    /// This, as it is after [`Want::Settle`].
    Later(Box<Want>),
    /// The pods that answer to this.
    Pods(PodQuery),
    /// The network namespaces that have a name.
    Namespaces,
    /// The network namespaces that have a process.
    Occupied,
    /// The veths whose names match, if both ends are here.
    Veths(Pattern),
    /// The network namespaces of all pods' sandboxes.
    Sandboxes(PodQuery),
}

/// A set of routes that the kernel can select.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteSet {
    /// All of one table.
    Table(Family, u32),
    /// All that carry this protocol number, in any table.
    Protocol(Family, u8),
    /// The routes of the main table that are for every packet: defaults, and the two halves of everything.
    Defaults(Family),
}

/// Why a plan cannot be made yet, or at all.
#[derive(Debug, Clone, PartialEq)]
pub enum Gap {
    /// These have not been looked at.
    Unseen(Vec<Want>),
    /// The look failed: what was wanted and what the kernel said.
    Failed(Arc<str>),
}

impl Gap {
    /// The same of what is seen after [`Want::Settle`].
    pub fn later(self) -> Gap {
        match self {
            Gap::Unseen(wants) => Gap::Unseen(wants.into_iter().map(|want| Want::Later(Box::new(want))).collect()),
            failed @ Gap::Failed(_) => failed,
        }
    }
}

/// The answer to one look.
pub type Look<T> = Result<T, Arc<str>>;

/// Everything that has been seen so far in one look at the node.
#[derive(Debug, Default, PartialEq)]
pub struct Observed {
    /// Answer to [`Want::Rules`], in the kernel's order.
    pub rules: Option<Look<Vec<SeenRule>>>,
    /// Answers to [`Want::Routes`].
    pub routes: BTreeMap<RouteSet, Look<Vec<SeenRoute>>>,
    /// Answer to [`Want::RpFilters`].
    pub rp_filters: Option<Look<RpFilters>>,
    /// Answers to [`Want::Link`]; `None`: there is no such interface.
    pub links: BTreeMap<u32, Look<Option<Link>>>,
    /// Answers to [`Want::Name`]; `None`: there is no such interface.
    pub names: BTreeMap<u32, Look<Option<IfName>>>,
    /// Answers to [`Want::LinkNamed`].
    pub links_named: BTreeMap<IfName, Look<Option<Link>>>,
    /// Answer to [`Want::Addresses`].
    pub addresses: Option<Look<Vec<Address>>>,
    /// Answer to [`Want::GlobalAddresses`].
    pub global_addresses: Option<Look<Vec<Address>>>,
    /// Answer to [`Want::LinksOn`], by the index of the other.
    pub links_on: Option<Look<BTreeMap<u32, Vec<IfName>>>>,
    /// Answer to [`Want::Bridges`].
    pub bridges: Option<Look<Vec<SeenBridge>>>,
    /// Answer to [`Want::Nat`].
    pub nat: Option<Look<SeenNat>>,
    /// Answer to [`Want::Filters`].
    pub filters: Option<Look<Vec<FilterTable>>>,
    /// Answers to [`Want::Program`].
    pub programs: BTreeMap<&'static str, Look<bool>>,
    /// Answers to [`Want::Sysctl`], without the white space around them; `None`: there is no such key.
    pub sysctls: BTreeMap<SysctlKey, Look<Option<String>>>,
    /// Answers to [`Want::SysctlNames`], with `all` and `default`.
    pub sysctl_names: BTreeMap<String, Look<Vec<Box<[u8]>>>>,
    /// Answer to [`Want::Persisted`]; `None`: there is no such file.
    pub persisted: Option<Look<Option<String>>>,
    /// Answer to [`Want::SysctlFiles`].
    pub sysctl_files: Option<Look<Settings>>,
    /// Answer to [`Want::Ledger`].
    pub ledger: Option<Look<Ledger>>,
    /// Answer to [`Want::Settle`], and to each [`Want::Later`].
    pub settled: Option<Look<Box<Observed>>>,
    /// Answer to [`Want::Recall`].
    pub recall: Option<Look<Recall>>,
    /// Answers to [`Want::Pods`]: those that are ready.
    pub pods: BTreeMap<PodQuery, Look<Pods>>,
    /// Answer to [`Want::Namespaces`], by name.
    pub namespaces: Option<Look<Vec<SeenNetns>>>,
    /// Answer to [`Want::Occupied`].
    pub occupied: Option<Look<Occupied>>,
    /// Answers to [`Want::Veths`], by name.
    pub veths: BTreeMap<Pattern, Look<Vec<Veth>>>,
    /// Answer to [`Want::Sandboxes`].
    pub sandboxes: Option<Look<Sandboxes>>,
}

impl Observed {
    /// All policy rules.
    pub fn rules(&self) -> Result<&[SeenRule], Gap> {
        one(&self.rules, Want::Rules).map(Vec::as_slice)
    }

    /// The sets of routes, in the order asked for.
    pub fn routes(&self, sets: impl IntoIterator<Item = RouteSet>) -> Result<Vec<&[SeenRoute]>, Gap> {
        let seen = all(sets, &self.routes, Want::Routes)?;
        Ok(seen.into_iter().map(Vec::as_slice).collect())
    }

    /// Whether this set of routes has been looked at.
    pub fn has_routes(&self, set: &RouteSet) -> bool {
        self.routes.contains_key(set)
    }

    /// The rp_filter of every interface.
    pub fn rp_filters(&self) -> Result<&RpFilters, Gap> {
        one(&self.rp_filters, Want::RpFilters)
    }

    /// The links with these indexes, in the order asked for; `None` for one that is gone.
    pub fn links(&self, indexes: impl IntoIterator<Item = u32>) -> Result<Vec<Option<&Link>>, Gap> {
        Ok(all(indexes, &self.links, Want::Link)?.into_iter().map(Option::as_ref).collect())
    }

    /// The names of the interfaces with these indexes, in the order asked for; `None` for one that is gone.
    pub fn names(&self, indexes: impl IntoIterator<Item = u32>) -> Result<Vec<Option<&IfName>>, Gap> {
        Ok(all(indexes, &self.names, Want::Name)?.into_iter().map(Option::as_ref).collect())
    }

    /// The links with these names, in the order asked for; `None` for one that does not exist.
    pub fn links_named(&self, names: impl IntoIterator<Item = IfName>) -> Result<Vec<Option<&Link>>, Gap> {
        Ok(all(names, &self.links_named, Want::LinkNamed)?.into_iter().map(Option::as_ref).collect())
    }

    /// The addresses of all interfaces.
    pub fn addresses(&self) -> Result<&[Address], Gap> {
        one(&self.addresses, Want::Addresses).map(Vec::as_slice)
    }

    /// The global addresses of all interfaces.
    pub fn global_addresses(&self) -> Result<impl Iterator<Item = &Address> + Clone, Gap> {
        let all = match &self.addresses {
            Some(Ok(all)) => all,
            _ => one(&self.global_addresses, Want::GlobalAddresses)?,
        };
        Ok(all.iter().filter(|address| address.global))
    }

    /// The links that are built on others, and go with them, by the index of the other.
    pub fn links_on(&self) -> Result<&BTreeMap<u32, Vec<IfName>>, Gap> {
        one(&self.links_on, Want::LinksOn)
    }

    /// All bridges.
    pub fn bridges(&self) -> Result<&[SeenBridge], Gap> {
        one(&self.bridges, Want::Bridges).map(Vec::as_slice)
    }

    /// Our nftables table.
    pub fn nat(&self) -> Result<&SeenNat, Gap> {
        one(&self.nat, Want::Nat)
    }

    /// The nftables tables of others that filter what is forwarded.
    pub fn filters(&self) -> Result<&[FilterTable], Gap> {
        one(&self.filters, Want::Filters).map(Vec::as_slice)
    }

    /// Whether there is a program of this name on PATH.
    pub fn program(&self, name: &'static str) -> Result<bool, Gap> {
        Ok(all([name], &self.programs, Want::Program)?.contains(&&true))
    }

    /// The values of these sysctls, in the order asked for; `None` for one that does not exist.
    pub fn sysctls(&self, keys: impl IntoIterator<Item = SysctlKey>) -> Result<Vec<Option<&str>>, Gap> {
        Ok(all(keys, &self.sysctls, Want::Sysctl)?.into_iter().map(Option::as_deref).collect())
    }

    /// The same, where each may have a failure of its own. Some keys can only be written.
    pub fn sysctls_one_by_one(&self, keys: &[SysctlKey]) -> Result<Vec<&Look<Option<String>>>, Gap> {
        let unseen = sorted::set(keys.iter().filter(|key| !self.sysctls.contains_key(key)));
        if unseen.is_empty() {
            return Ok(keys.iter().filter_map(|key| self.sysctls.get(key)).collect());
        }
        Err(Gap::Unseen(unseen.into_iter().map(|key| Want::Sysctl(key.clone())).collect()))
    }

    /// The names in these directories of sysctls, in the order asked for.
    pub fn sysctl_names(&self, of: impl IntoIterator<Item = String>) -> Result<Vec<&[Box<[u8]>]>, Gap> {
        Ok(all(of, &self.sysctl_names, Want::SysctlNames)?.into_iter().map(Vec::as_slice).collect())
    }

    /// Our file in /etc/sysctl.d, where there is one.
    pub fn persisted(&self) -> Result<Option<&str>, Gap> {
        one(&self.persisted, Want::Persisted).map(Option::as_deref)
    }

    /// All files of sysctl.d(5).
    pub fn sysctl_files(&self) -> Result<&Settings, Gap> {
        one(&self.sysctl_files, Want::SysctlFiles)
    }

    /// What node-fixer has made that carries no mark.
    pub fn ledger(&self) -> Result<&Ledger, Gap> {
        one(&self.ledger, Want::Ledger)
    }

    /// What is seen after this time. It knows nothing yet: what it lacks is asked for by [`Gap::later`].
    pub fn settled(&self, settle: Duration) -> Result<&Observed, Gap> {
        one(&self.settled, Want::Settle(settle)).map(|seen| &**seen)
    }

    /// What the last run remembered.
    pub fn recall(&self) -> Result<&Recall, Gap> {
        one(&self.recall, Want::Recall)
    }

    /// The pods that are ready, or why crictl could not tell: a failure that has to be remembered.
    pub fn pods(&self, query: &PodQuery) -> Result<&Look<Pods>, Gap> {
        self.pods.get(query).ok_or_else(|| Gap::Unseen(vec![Want::Pods(query.clone())]))
    }

    /// The network namespaces that have a name.
    pub fn namespaces(&self) -> Result<&[SeenNetns], Gap> {
        one(&self.namespaces, Want::Namespaces).map(Vec::as_slice)
    }

    /// The network namespaces that have a process.
    pub fn occupied(&self) -> Result<&Occupied, Gap> {
        one(&self.occupied, Want::Occupied)
    }

    /// The veths whose names match, if both ends are here; by pattern, in the order asked for.
    pub fn veths(&self, names: impl IntoIterator<Item = Pattern>) -> Result<Vec<&[Veth]>, Gap> {
        Ok(all(names, &self.veths, Want::Veths)?.into_iter().map(Vec::as_slice).collect())
    }

    /// The network namespaces of all pods' sandboxes, or why crictl could not tell: not all needs to know.
    pub fn sandboxes(&self, query: &PodQuery) -> Result<&Look<Sandboxes>, Gap> {
        self.sandboxes.as_ref().ok_or_else(|| Gap::Unseen(vec![Want::Sandboxes(query.clone())]))
    }
}

fn one<T>(seen: &Option<Look<T>>, want: Want) -> Result<&T, Gap> {
    match seen {
        Some(Ok(answer)) => Ok(answer),
        Some(Err(why)) => Err(Gap::Failed(why.clone())),
        None => Err(Gap::Unseen(vec![want])),
    }
}

/// Asks for many at once, so that they can be looked at in one go, and for each of them once: a table that a thousand
/// routes are declared in is dumped once.
fn all<K: Ord, T>(
    keys: impl IntoIterator<Item = K>,
    seen: &BTreeMap<K, Look<T>>,
    want: fn(K) -> Want,
) -> Result<Vec<&T>, Gap> {
    let (mut answers, mut unseen) = (Vec::new(), BTreeSet::new());
    for key in keys {
        match seen.get(&key) {
            Some(Ok(answer)) => answers.push(answer),
            Some(Err(why)) => return Err(Gap::Failed(why.clone())),
            None => drop(unseen.insert(key)),
        }
    }
    if unseen.is_empty() { Ok(answers) } else { Err(Gap::Unseen(unseen.into_iter().map(want).collect())) }
}

/// A live policy rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeenRule {
    /// Action lookup, and every selector of it is one that node-fixer has a word for.
    Lookup(Rule),
    /// Anything else: another action, or a selector such as `not`, tos, uidrange, ports, suppress_*, l3mdev, or
    /// one that a newer kernel has invented. It is nobody's but its owner's.
    Other {
        /// Address family.
        family: Family,
        /// Its place among the others.
        priority: u32,
    },
}

impl SeenRule {
    /// The rule, where it is one that can be reasoned about.
    pub fn lookup(&self) -> Option<&Rule> {
        match self {
            SeenRule::Lookup(rule) => Some(rule),
            SeenRule::Other { .. } => None,
        }
    }
}

/// A live route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenRoute {
    /// Table number.
    pub table: u32,
    /// Destination.
    pub to: IpCidr,
    /// What happens to a packet that takes it.
    pub target: Target,
    /// Scope; `None` for site and nowhere.
    pub scope: Option<Scope>,
    /// Metric as the kernel stores it.
    pub metric: u32,
    /// Type of service that it is limited to.
    pub tos: u8,
    /// Whether it is limited to some sources (IPv6 `from`).
    pub source_specific: bool,
    /// `onlink` flag of the next hop.
    pub onlink: bool,
    /// `rtm_protocol`: who installed it.
    pub protocol: u8,
}

impl SeenRoute {
    /// The interface of a unicast route with one plain next hop.
    pub fn oif(&self) -> Option<u32> {
        match self.target {
            Target::Hop(hop) => hop.oif,
            Target::Hops(_) | Target::Special => None,
        }
    }

    /// The gateway of a unicast route with one plain next hop.
    pub fn via(&self) -> Option<IpAddr> {
        match self.target {
            Target::Hop(hop) => hop.via,
            Target::Hops(_) | Target::Special => None,
        }
    }

    /// All next hops that the kernel tells of.
    pub fn hops(&self) -> &[Hop] {
        match &self.target {
            Target::Hop(hop) => std::slice::from_ref(hop),
            Target::Hops(hops) => hops,
            Target::Special => &[],
        }
    }

    /// Whether it is for every packet, not only for some sources or some type of service.
    pub fn is_unlimited(&self) -> bool {
        self.tos == 0 && !self.source_specific
    }

    /// Whether it is a default route for every packet, of whatever kind, or one half of everything.
    pub fn is_of_default_class(&self) -> bool {
        self.to.network_length() <= 1 && self.is_unlimited()
    }

    /// Whether it leads to a single host that is on the link itself. IPv6 routes have no scope: there it is a host
    /// route without a gateway.
    pub fn is_host_on_link(&self) -> bool {
        let on_link = self.to.first_address().is_ipv6() || self.scope == Some(Scope::Link);
        on_link && self.to.is_host_address() && matches!(self.target, Target::Hop(Hop { via: None, oif: Some(_) }))
    }

    /// As the kernel will show this route once it is there, leaving by the interface with this index.
    pub fn of(route: &Route, oif: Option<u32>) -> SeenRoute {
        SeenRoute {
            table: route.table,
            to: route.to,
            target: Target::Hop(Hop { via: route.via, oif }),
            scope: Some(route.scope),
            metric: route.stored_metric(),
            tos: 0,
            source_specific: false,
            onlink: route.onlink,
            protocol: route.protocol,
        }
    }

    /// As a route that can be deleted or shown; `None` where it is of another kind.
    pub fn to_route(&self, dev: Option<Dev>) -> Option<Route> {
        matches!(self.target, Target::Hop(_)).then(|| Route {
            table: self.table,
            to: self.to,
            via: self.via(),
            dev,
            scope: self.scope.unwrap_or(Scope::Global),
            metric: (self.metric != 0).then_some(self.metric),
            onlink: self.onlink,
            protocol: self.protocol,
        })
    }
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Unicast, one plain next hop: the kind that node-fixer makes.
    Hop(Hop),
    /// Unicast by other means: several next hops, a next-hop object, a gateway of the other family, an
    /// encapsulation.
    Hops(Vec<Hop>),
    /// No unicast route: local, blackhole, unreachable …
    Special,
}

/// A next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// Gateway.
    pub via: Option<IpAddr>,
    /// Index of the interface.
    pub oif: Option<u32>,
}

/// The rp_filter of every interface that has one. IPv6 has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RpFilters {
    /// `conf/all`, which wins where it is greater.
    pub all: i32,
    /// `conf/default`, which new interfaces copy.
    pub default: i32,
    /// By index of the interface.
    pub links: Vec<(u32, i32)>,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Index and name.
    pub dev: Dev,
    /// Set up by its administrator (`IFF_UP`); says nothing about a carrier.
    pub up: bool,
    /// Has a carrier (`IFF_LOWER_UP`); a bridge has one while a port of it has.
    pub carrier: bool,
    /// Enslaved to a VRF, whose table is the VRF's.
    pub vrf_slave: bool,
    /// Hardware address; empty where it has none.
    pub hardware: Vec<u8>,
    /// What it is made of (`IFLA_INFO_KIND`: bridge, veth, wireguard …); empty for a card.
    pub kind: Box<[u8]>,
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Index of the interface.
    pub index: u32,
    /// The address itself.
    pub local: IpAddr,
    /// Its prefix length.
    pub length: u8,
    /// Whether it is one end of a link between two: `subnet` is the peer's.
    pub has_peer: bool,
    /// Whether it goes when the first IPv4 address of its subnet on the interface goes, unless that promotes it.
    pub secondary: bool,
    /// Whether another host on the link turned out to have it (IPv6 duplicate address detection).
    pub duplicate: bool,
    /// Who added it; `None` where nobody said so, or the kernel does not keep it (before Linux 5.18).
    pub protocol: Option<u8>,
    /// When it was added or last changed, on the clock that counts from boot without sleep; as fine as 10 ms.
    pub created: Duration,
    /// What it puts on the link: its own subnet, or the peer's.
    pub subnet: IpCidr,
    /// Of global scope, and not link-local by its number.
    pub global: bool,
    /// Global, and there to stay: neither link-local nor tentative nor temporary.
    pub lasting: bool,
}

/// A bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenBridge {
    /// Index and name.
    pub dev: Dev,
    /// Set up by its administrator.
    pub up: bool,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Whether it speaks the spanning tree protocol.
    pub stp: bool,
    /// Whether it carries our mark.
    pub ours: bool,
}
