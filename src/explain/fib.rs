//! The kernel's choice of a route, as a pure function over rules and routes: which rule a packet takes, which table,
//! which route. It follows fib_rules_lookup, fib_table_lookup (IPv4) and fib6_table_lookup (IPv6) of the kernel.
//!
//! The packet asked about is a plain one: UDP without ports, of root, unmarked, with type of service 0, the same that
//! the kernel is asked about. What cannot be judged ends the search and says so; nothing is guessed.

use std::fmt;
use std::net::IpAddr;

use cidr::IpCidr;

use crate::net::{Family, IfName, table_name};

/// `LOOPBACK_IFINDEX`: what the node itself sends counts as coming in by this interface.
pub const LOOPBACK: u32 = 1;
const IPPROTO_UDP: u8 = 17;

/// Everything that a lookup of one pair of addresses needs to know of the node.
#[derive(Debug, Clone, Default)]
pub struct Fib {
    /// Policy rules of the family, in the kernel's order.
    pub rules: Vec<FibRule>,
    /// Routes of all tables that hold one of the two addresses.
    pub routes: Vec<FibRoute>,
    /// Tables that have a route, whatever its destination.
    pub tables: Vec<u32>,
    /// Interfaces that the routes of a policy table use, whatever their destination.
    pub devices: Vec<(u32, u32)>,
    /// Interfaces that some route with a gateway uses.
    pub gateways: Vec<u32>,
    /// Interfaces.
    pub links: Vec<FibLink>,
    /// Addresses of all interfaces.
    pub addresses: Vec<FibAddress>,
    /// Settings that count for every interface.
    pub all: Conf,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FibLink {
    /// The kernel's index.
    pub index: u32,
    /// Its name.
    pub name: IfName,
    /// Group (`ip link set … group`).
    pub group: u32,
    /// VRF that it is enslaved to, as index.
    pub master: Option<u32>,
    /// Table, where it is a VRF itself.
    pub vrf_table: Option<u32>,
    /// Its settings.
    pub conf: Conf,
}

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FibAddress {
    /// Index of the interface.
    pub index: u32,
    /// The address itself.
    pub local: IpAddr,
    /// What it puts on the link.
    pub subnet: IpCidr,
}

/// Settings of an interface, or of all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Conf {
    /// `rp_filter`; IPv6 has none.
    pub rp_filter: i32,
    /// `forwarding`.
    pub forwarding: bool,
    /// `accept_local`.
    pub accept_local: bool,
    /// `force_forwarding`, of IPv6 alone.
    pub force_forwarding: bool,
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Look into this table.
    Lookup(u32),
    /// Go on at the rule of this priority.
    Goto(u32),
    /// Nothing.
    Nop,
    /// Drop.
    Blackhole,
    /// Drop, and say so.
    Unreachable,
    /// Drop, and say that it is forbidden.
    Prohibit,
    /// One that node-fixer does not know.
    Other(u8),
}

/// A policy rule with all its selectors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FibRule {
    /// Lower ones are asked first.
    pub priority: u32,
    /// What it does.
    pub action: Action,
    /// It is for the packets that its selectors do not match.
    pub not: bool,
    /// Source prefix.
    pub from: Option<IpCidr>,
    /// Destination prefix.
    pub to: Option<IpCidr>,
    /// Interface that the packet came in by.
    pub iif: Option<IfName>,
    /// Interface that the socket is bound to.
    pub oif: Option<IfName>,
    /// Mark and mask.
    pub mark: Option<(u32, u32)>,
    /// Type of service.
    pub tos: u8,
    /// DSCP and mask.
    pub dscp: Option<(u8, u8)>,
    /// IPv6 flow label and mask.
    pub flow_label: Option<(u32, u32)>,
    /// First and last user.
    pub users: Option<(u32, u32)>,
    /// IP protocol.
    pub protocol: Option<u8>,
    /// First and last source port.
    pub source_ports: Option<(u16, u16)>,
    /// First and last destination port.
    pub ports: Option<(u16, u16)>,
    /// Tunnel.
    pub tunnel: Option<u64>,
    /// It is for traffic of VRFs, and looks into the VRF's table.
    pub l3mdev: bool,
    /// Routes with prefixes of at most this length do not count.
    pub suppress_length: Option<u32>,
    /// Routes through interfaces of this group do not count.
    pub suppress_group: Option<u32>,
    /// Attributes that node-fixer does not know.
    pub unknown: Vec<u16>,
}

impl FibRule {
    /// A rule for every packet.
    pub fn new(priority: u32, action: Action) -> FibRule {
        FibRule {
            priority,
            action,
            not: false,
            from: None,
            to: None,
            iif: None,
            oif: None,
            mark: None,
            tos: 0,
            dscp: None,
            flow_label: None,
            users: None,
            protocol: None,
            source_ports: None,
            ports: None,
            tunnel: None,
            l3mdev: false,
            suppress_length: None,
            suppress_group: None,
            unknown: Vec::new(),
        }
    }

    /// Whether it is for one source alone, whatever else of its selectors says, but for a destination.
    pub fn is_of(&self, source: IpAddr) -> bool {
        let own = FibRule { to: self.to, from: self.from, ..FibRule::new(self.priority, self.action) };
        *self == own && matches!(self.action, Action::Lookup(_)) && self.from == Some(IpCidr::new_host(source))
    }

    /// Whether it is for all that comes in by this interface, and selects by nothing else.
    pub fn is_behind(&self, link: &IfName) -> bool {
        let own = FibRule { iif: Some(link.clone()), ..FibRule::new(self.priority, self.action) };
        *self == own && matches!(self.action, Action::Lookup(_))
    }
}

/// As `ip rule` shows it, without the priority.
impl fmt::Display for FibRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.not {
            f.write_str("not ")?;
        }
        match self.from {
            Some(from) => write!(f, "from {from}")?,
            None => f.write_str("from all")?,
        }
        let mut word = |name: &str, value: Option<String>| match value {
            Some(value) => write!(f, " {name} {value}"),
            None => Ok(()),
        };
        word("to", self.to.map(|to| to.to_string()))?;
        word("tos", (self.tos != 0).then(|| format!("{:#x}", self.tos)))?;
        word("fwmark", self.mark.map(|(mark, mask)| format!("{mark:#x}/{mask:#x}")))?;
        word("iif", self.iif.as_ref().map(ToString::to_string))?;
        word("oif", self.oif.as_ref().map(ToString::to_string))?;
        word("uidrange", self.users.map(|(first, last)| format!("{first}-{last}")))?;
        word("ipproto", self.protocol.map(|protocol| protocol.to_string()))?;
        word("sport", self.source_ports.map(|(first, last)| format!("{first}-{last}")))?;
        word("dport", self.ports.map(|(first, last)| format!("{first}-{last}")))?;
        word("dscp", self.dscp.map(|(dscp, mask)| format!("{dscp:#x}/{mask:#x}")))?;
        word("flowlabel", self.flow_label.map(|(label, mask)| format!("{label:#x}/{mask:#x}")))?;
        word("tun_id", self.tunnel.map(|tunnel| tunnel.to_string()))?;
        match self.action {
            _ if self.l3mdev => f.write_str(" lookup [l3mdev-table]")?,
            Action::Lookup(table) => write!(f, " lookup {}", table_name(table))?,
            Action::Goto(target) => write!(f, " goto {target}")?,
            Action::Nop => f.write_str(" nop")?,
            Action::Blackhole => f.write_str(" blackhole")?,
            Action::Unreachable => f.write_str(" unreachable")?,
            Action::Prohibit => f.write_str(" prohibit")?,
            Action::Other(action) => write!(f, " action {action}")?,
        }
        if let Some(length) = self.suppress_length {
            write!(f, " suppress_prefixlength {length}")?;
        }
        if let Some(group) = self.suppress_group {
            write!(f, " suppress_ifgroup {group}")?;
        }
        Ok(())
    }
}

/// What happens to a packet that takes a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It is sent on.
    Unicast,
    /// It is for this node (local and anycast).
    Local,
    /// It is for all on a link.
    Broadcast,
    /// It is dropped.
    Blackhole,
    /// It is dropped, and its sender told.
    Unreachable,
    /// It is dropped, and its sender told that it is forbidden.
    Prohibit,
    /// It falls through to the next rule.
    Throw,
    /// One that node-fixer does not know.
    Other(u8),
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FibRoute {
    /// Table number.
    pub table: u32,
    /// Destination.
    pub to: IpCidr,
    /// Sources that it is limited to (IPv6).
    pub from: Option<IpCidr>,
    /// What happens to a packet that takes it.
    pub kind: Kind,
    /// Where it may go.
    pub hops: Vec<FibHop>,
    /// Lower ones are preferred.
    pub metric: u32,
    /// Type of service that it is limited to.
    pub tos: u8,
    /// Who installed it.
    pub protocol: u8,
    /// Nexthop object.
    pub nexthop: Option<u32>,
}

/// A next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FibHop {
    /// Gateway.
    pub via: Option<IpAddr>,
    /// Index of the interface.
    pub oif: Option<u32>,
    /// The kernel does not use it: its interface is down, or has no carrier and is set to count as down then.
    pub dead: bool,
    /// Its interface has no carrier.
    pub linkdown: bool,
}

impl FibRoute {
    /// The hops that the kernel uses.
    pub fn alive(&self) -> impl Iterator<Item = &FibHop> {
        self.hops.iter().filter(|hop| !hop.dead)
    }

    /// Whether it is for one address, which is on the link itself.
    pub fn is_host(&self) -> bool {
        self.kind == Kind::Unicast && self.to.is_host_address() && self.hops.iter().all(|hop| hop.via.is_none())
    }
}

/// A packet on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Source.
    pub from: IpAddr,
    /// Destination.
    pub to: IpAddr,
    /// Interface that it comes in by; `None`: the node itself sends it.
    pub iif: Option<u32>,
}

impl Packet {
    /// Its address family.
    pub fn family(&self) -> Family {
        Family::of(self.to)
    }
}

/// What one rule did to a packet.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The rule.
    pub rule: FibRule,
    /// What became of the packet there.
    pub what: What,
}

/// What became of a packet at a rule.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// The rule is not for it: why not.
    Passed(String),
    /// The rule is for it, but gave no route: why not. The next rule is asked.
    FellThrough(String),
    /// It went on at another rule.
    Jumped,
    /// The rule decided.
    Taken,
    /// It is not known what the kernel does here: why not.
    Unknown(String),
}

/// How a lookup ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Ending {
    /// With a route. More than one where the kernel chooses among equals by what it knows of their gateways.
    Route(Vec<FibRoute>),
    /// The packet is dropped, by what.
    Refused(String),
    /// No rule led to a route.
    NoRoute,
    /// It is not known: why not.
    Unknown(String),
}

/// A lookup, rule by rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Lookup {
    /// What each rule did, in the order asked.
    pub steps: Vec<Step>,
    /// How it ended.
    pub end: Ending,
}

enum Found {
    Routes(Vec<FibRoute>),
    Refused(FibRoute),
    Nothing(String),
    Unknown(String),
}

impl Fib {
    /// Looks a packet's route up as the kernel does.
    pub fn lookup(&self, packet: &Packet) -> Lookup {
        let mut steps = Vec::new();
        let mut at = 0;
        while let Some(rule) = self.rules.get(at) {
            at += 1;
            let (what, end) = self.ask(rule, packet, &mut at);
            steps.push(Step { rule: rule.clone(), what });
            if let Some(end) = end {
                return Lookup { steps, end };
            }
        }
        Lookup { steps, end: Ending::NoRoute }
    }

    /// What a rule does to the packet; where it ends the search, how.
    fn ask(&self, rule: &FibRule, packet: &Packet, at: &mut usize) -> (What, Option<Ending>) {
        let unknown = |why: String| (What::Unknown(why.clone()), Some(Ending::Unknown(why)));
        if let Some(kind) = rule.unknown.first() {
            return unknown(format!("the rule has an attribute that is not known here (number {kind})"));
        }
        match (self.mismatch(rule, packet), rule.not) {
            (Some(why), false) => return (What::Passed(why), None),
            (None, true) => return (What::Passed("all that follows `not` is so".into()), None),
            _ => {}
        }
        let refuse = |what: &str| (What::Taken, Some(Ending::Refused(format!("rule {}: {what}", rule.priority))));
        let table = match rule.action {
            Action::Lookup(table) => {
                if rule.l3mdev {
                    self.vrf_table(packet)
                } else {
                    Some(table)
                }
            }
            Action::Goto(target) => {
                // The kernel lets a rule jump only ahead.
                return match self.rules.iter().position(|rule| rule.priority == target) {
                    Some(next) => {
                        *at = next.max(*at);
                        (What::Jumped, None)
                    }
                    None => (What::FellThrough(format!("there is no rule {target}")), None),
                };
            }
            Action::Nop => return (What::FellThrough("it does nothing".into()), None),
            Action::Blackhole => return refuse("blackhole"),
            Action::Unreachable => return refuse("unreachable"),
            Action::Prohibit => return refuse("prohibit"),
            Action::Other(action) => {
                return unknown(format!("the rule has an action that is not known here ({action})"));
            }
        };
        let Some(table) = table else { return unknown("the VRF's table was not found".into()) };
        match self.search(table, packet) {
            Found::Nothing(why) => (What::FellThrough(why), None),
            Found::Unknown(why) => unknown(why),
            Found::Refused(route) => {
                let end = Ending::Refused(format!("the route {}", self.show(&route)));
                (What::Taken, Some(end))
            }
            Found::Routes(routes) => match routes.first().and_then(|route| self.suppressed(rule, route)) {
                Some(why) => (What::FellThrough(why), None),
                None => (What::Taken, Some(Ending::Route(routes))),
            },
        }
    }

    /// Why the selectors of a rule do not match the packet, if they do not.
    fn mismatch(&self, rule: &FibRule, packet: &Packet) -> Option<String> {
        let differs = |address: IpAddr, prefix: IpCidr| {
            format!("{address} is not {}{prefix}", if prefix.is_host_address() { "" } else { "in " })
        };
        let outside = |prefix: Option<IpCidr>, address| prefix.filter(|prefix| !prefix.contains(&address));
        // Few rules ask for the interface, and a node has many of both.
        let asks = rule.iif.is_some() || rule.l3mdev;
        let link = if asks { self.link(packet.iif.unwrap_or(LOOPBACK)) } else { None };
        let master = link.and_then(|link| link.master).and_then(|master| self.link(master));
        let is = |name: &IfName, link: Option<&FibLink>| link.is_some_and(|link| link.name == *name);
        let odd_mark = rule.mark.filter(|(mark, mask)| mark & mask != 0);
        if let Some(from) = outside(rule.from, packet.from) {
            Some(differs(packet.from, from))
        } else if let Some(to) = outside(rule.to, packet.to) {
            Some(differs(packet.to, to))
        } else if let Some(name) = rule.iif.as_ref().filter(|name| !is(name, link) && !is(name, master)) {
            Some(match packet.iif {
                Some(_) => format!("it does not come in by {name}"),
                None => format!("the node sends it itself, it does not come in by {name}"),
            })
        } else if let Some(name) = &rule.oif {
            Some(format!("it is only for sockets bound to {name}"))
        } else if let Some((mark, mask)) = odd_mark {
            Some(format!("it is only for packets with the mark {mark:#x}/{mask:#x}, and the packet has none"))
        } else if rule.tos != 0 || rule.dscp.is_some_and(|(dscp, mask)| dscp & mask != 0) {
            Some("it is only for another type of service than 0".into())
        } else if rule.flow_label.is_some_and(|(label, mask)| label & mask != 0) {
            Some("it is only for another flow label than 0".into())
        } else if let Some((first, last)) = rule.users.filter(|(first, _)| *first > 0) {
            Some(format!("it is only for the users {first}-{last}, and the packet is root's"))
        } else if let Some(protocol) = rule.protocol.filter(|protocol| *protocol != IPPROTO_UDP) {
            Some(format!("it is only for IP protocol {protocol}, and the packet is UDP"))
        } else if rule.source_ports.is_some() || rule.ports.is_some() {
            Some("it is only for certain ports, and the packet has none".into())
        } else if rule.tunnel.is_some() {
            Some("it is only for packets of a tunnel".into())
        } else if rule.l3mdev && link.is_none_or(|link| link.master.is_none() && link.vrf_table.is_none()) {
            Some("no VRF is involved".into())
        } else {
            None
        }
    }

    fn vrf_table(&self, packet: &Packet) -> Option<u32> {
        let link = self.link(packet.iif?)?;
        link.vrf_table.or_else(|| self.link(link.master?)?.vrf_table)
    }

    /// The best route of a table: the longest prefix, and of equals the smallest metric.
    fn search(&self, table: u32, packet: &Packet) -> Found {
        let fits = |route: &&FibRoute| {
            route.table == table
                && route.to.contains(&packet.to)
                && route.from.is_none_or(|from| from.contains(&packet.from))
                && route.tos == 0 // the packet's; 0 is also "any"
        };
        let routes: Vec<&FibRoute> = self.routes.iter().filter(fits).collect();
        let source_length = |route: &FibRoute| route.from.map_or(0, |from| from.network_length());
        let order =
            |route: &FibRoute| (u8::MAX - route.to.network_length(), u8::MAX - source_length(route), route.metric);
        let mut rest = routes.clone();
        let mut dead = false;
        // The first of equals is the first in the kernel's order.
        while let Some(best) = (0..rest.len()).min_by_key(|at| rest.get(*at).map(|route| order(route))) {
            let route = rest.remove(best);
            match route.kind {
                Kind::Throw => return Found::Nothing(format!("throw: {}", self.show(route))),
                Kind::Blackhole | Kind::Unreachable | Kind::Prohibit => return Found::Refused(route.clone()),
                Kind::Broadcast | Kind::Other(_) => {
                    return Found::Unknown(format!("{} is not for a single host: {}", packet.to, self.show(route)));
                }
                Kind::Local => return Found::Routes(vec![route.clone()]),
                Kind::Unicast if route.hops.is_empty() => {
                    let why = format!("the kernel does not show where nexthop objects lead: {}", self.show(route));
                    return Found::Unknown(why);
                }
                Kind::Unicast if route.alive().next().is_none() => dead = true,
                Kind::Unicast => {
                    let equal = |other: &&&FibRoute| {
                        other.kind == Kind::Unicast
                            && (other.to, other.from, other.metric) == (route.to, route.from, route.metric)
                            && other.alive().next().is_some()
                    };
                    // IPv4 takes the first, but of default routes one whose gateway answers.
                    let choice = packet.family() == Family::V6 || route.to.network_length() == 0;
                    let several = if choice { usize::MAX } else { 1 };
                    let equals = routes.iter().filter(equal).take(several).map(|route| (*route).clone());
                    return Found::Routes(equals.collect());
                }
            }
        }
        let name = table_name(table);
        Found::Nothing(match () {
            () if dead => format!("in table {name} only routes through interfaces that are down"),
            () if self.tables.contains(&table) => format!("no route to {} in table {name}", packet.to),
            () => format!("table {name} is empty"),
        })
    }

    /// Why a rule does not accept a route, if it does not.
    fn suppressed(&self, rule: &FibRule, route: &FibRoute) -> Option<String> {
        let length = u32::from(route.to.network_length());
        if let Some(least) = rule.suppress_length.filter(|least| length <= *least) {
            return Some(format!("{} is suppressed: its prefix is not longer than {least}", self.show(route)));
        }
        let link = self.link(route.hops.first()?.oif?)?;
        let group = rule.suppress_group.filter(|group| *group == link.group)?;
        Some(format!("{} is suppressed: {} is of group {group}", self.show(route), link.name))
    }

    /// An interface.
    pub fn link(&self, index: u32) -> Option<&FibLink> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The name of an interface.
    pub fn name(&self, index: u32) -> String {
        self.link(index).map_or_else(|| format!("interface number {index}"), |link| link.name.to_string())
    }

    /// A route as `ip route` shows it.
    pub fn show(&self, route: &FibRoute) -> String {
        let mut text = match route.kind {
            Kind::Unicast => String::new(),
            Kind::Other(kind) => format!("type {kind} "),
            kind => format!("{kind:?} ").to_lowercase(),
        };
        match route.to {
            to if to.network_length() == 0 => text += "default",
            to => text += &to.to_string(),
        }
        text.extend(route.from.map(|from| format!(" from {from}")));
        text.extend(route.nexthop.map(|id| format!(" nhid {id}")));
        let several = route.hops.len() > 1;
        for hop in &route.hops {
            text += if several { " nexthop" } else { "" };
            text += &self.show_hop(hop);
            text += if hop.dead { " dead" } else { "" };
            text += if hop.linkdown { " linkdown" } else { "" };
        }
        text += &format!(" table {}", table_name(route.table));
        if route.metric != 0 {
            text += &format!(" metric {}", route.metric);
        }
        text
    }

    fn show_hop(&self, hop: &FibHop) -> String {
        let via = hop.via.map_or_else(String::new, |via| format!(" via {via}"));
        let dev = hop.oif.map_or_else(String::new, |oif| format!(" dev {}", self.name(oif)));
        via + &dev
    }
}
