//! The kernel's choice of a route, as a pure function of rules and routes: which rule a packet takes, which table,
//! which route. It follows fib_rules_lookup, fib_table_lookup (IPv4) and fib6_table_lookup (IPv6) of the kernel.
//!
//! The packet has TOS 0; unless asked otherwise it is UDP, with no ports, uid 0 and no mark. The kernel is asked about the
//! same. If a rule or route cannot be evaluated, the search ends with that; nothing is guessed.

use std::net::IpAddr;

use cidr::IpCidr;

use super::fib::{Fib, Packet, protocol_name};
use crate::model::{Family, IfName, Selector, table_name};
use crate::observed::{Link, RuleAction, RuleExtras, SeenRoute, SeenRule, Special};

/// `LOOPBACK_IFINDEX`: packets of the node itself count as coming from this interface.
pub const LOOPBACK: u32 = 1;

/// The effect of one rule on a packet.
#[derive(Debug, Clone, PartialEq)]
pub struct LookupStep {
    /// The rule.
    pub rule: SeenRule,
    /// The effect.
    pub what: What,
}

/// The effect of a rule on a packet.
#[derive(Debug, Clone, PartialEq)]
pub enum What {
    /// The rule does not match: why.
    Passed(String),
    /// The rule matches, but gives no route: why. The next rule is evaluated.
    FellThrough(String),
    /// Evaluation continued at another rule.
    Jumped,
    /// The rule decided.
    Taken,
    /// Unknown what the kernel does here: why.
    Unknown(String),
}

/// The end of a lookup.
#[derive(Debug, Clone, PartialEq)]
pub enum Ending {
    /// A route. Several if the kernel chooses among equals by the state of their gateways.
    Route(Vec<SeenRoute>),
    /// The packet is dropped, by what.
    Refused(String),
    /// No rule gave a route.
    NoRoute,
    /// Unknown: why.
    Unknown(String),
}

/// A lookup, rule by rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Lookup {
    /// The effect of each rule, in order.
    pub steps: Vec<LookupStep>,
    /// How it ended.
    pub end: Ending,
}

enum TableAnswer {
    Routes(Vec<SeenRoute>),
    Refused(SeenRoute),
    Nothing(String),
    Unknown(String),
}

impl Fib {
    /// Looks up a packet's route as the kernel does.
    pub fn lookup(&self, packet: &Packet) -> Lookup {
        let mut steps = Vec::new();
        let mut at = 0;
        while let Some(rule) = self.rules.get(at) {
            at += 1;
            let (what, end) = self.ask(rule, packet, &mut at);
            steps.push(LookupStep { rule: rule.clone(), what });
            if let Some(end) = end {
                return Lookup { steps, end };
            }
        }
        Lookup { steps, end: Ending::NoRoute }
    }

    /// The effect of a rule on the packet; and the end of the search, if it ends here.
    fn ask(&self, rule: &SeenRule, packet: &Packet, at: &mut usize) -> (What, Option<Ending>) {
        let unknown = |why: String| (What::Unknown(why.clone()), Some(Ending::Unknown(why)));
        let extras = rule.extras();
        if let Some(kind) = extras.unknown.first() {
            return unknown(format!("the rule has an unknown attribute (number {kind})"));
        }
        match (self.mismatch(&rule.rule.selector, &extras, packet), extras.not) {
            (Some(why), false) => return (What::Passed(why), None),
            (None, true) => return (What::Passed("everything after `not` matches".into()), None),
            _ => {}
        }
        let refuse = |what: &str| (What::Taken, Some(Ending::Refused(format!("rule {}: {what}", rule.rule.priority))));
        let table = match extras.action {
            RuleAction::Lookup(_) if extras.l3mdev => self.vrf_table(packet),
            RuleAction::Lookup(table) => Some(table),
            RuleAction::Goto(target) => {
                // The kernel only allows jumps forward.
                return match self.rules.iter().position(|rule| rule.rule.priority == target) {
                    Some(next) => {
                        *at = next.max(*at);
                        (What::Jumped, None)
                    }
                    None => (What::FellThrough(format!("there is no rule {target}")), None),
                };
            }
            RuleAction::Nop => return (What::FellThrough("it does nothing".into()), None),
            RuleAction::Blackhole => return refuse("blackhole"),
            RuleAction::Unreachable => return refuse("unreachable"),
            RuleAction::Prohibit => return refuse("prohibit"),
            RuleAction::Other(action) => {
                return unknown(format!("the rule has an unknown action ({action})"));
            }
        };
        let Some(table) = table else { return unknown("the VRF's table is not known".into()) };
        match self.search(table, packet) {
            TableAnswer::Nothing(why) => (What::FellThrough(why), None),
            TableAnswer::Unknown(why) => unknown(why),
            TableAnswer::Refused(route) => {
                let end = Ending::Refused(format!("the route {}", self.show(&route)));
                (What::Taken, Some(end))
            }
            TableAnswer::Routes(routes) => match routes.first().and_then(|route| self.suppressed(&extras, route)) {
                Some(why) => (What::FellThrough(why), None),
                None => (What::Taken, Some(Ending::Route(routes))),
            },
        }
    }

    /// Why the selectors of a rule do not match the packet, if they do not.
    fn mismatch(&self, selector: &Selector, extras: &RuleExtras, packet: &Packet) -> Option<String> {
        let differs = |address: IpAddr, prefix: IpCidr| {
            format!("{address} is not {}{prefix}", if prefix.is_host_address() { "" } else { "in " })
        };
        let outside = |prefix: Option<IpCidr>, address| prefix.filter(|prefix| !prefix.contains(&address));
        // Few rules select by interface, and a node has many of both.
        let asks = selector.iif.is_some() || extras.l3mdev;
        let link = if asks { self.link(packet.iif.unwrap_or(LOOPBACK)) } else { None };
        let vrf = link.and_then(|link| link.vrf).and_then(|vrf| self.link(vrf));
        let is = |name: &IfName, link: Option<&Link>| link.is_some_and(|link| link.dev.name == *name);
        let flow = packet.flow;
        let odd_mark = selector.fwmark.filter(|(mark, mask)| (mark ^ flow.mark) & mask != 0);
        let outside_of =
            |range: Option<(u16, u16)>, port: u16| range.filter(|(first, last)| !(*first..=*last).contains(&port));
        let odd_ports = outside_of(extras.source_ports, flow.ports.0).or(outside_of(extras.ports, flow.ports.1));
        if let Some(from) = outside(selector.from, packet.from) {
            Some(differs(packet.from, from))
        } else if let Some(to) = outside(selector.to, packet.to) {
            Some(differs(packet.to, to))
        } else if let Some(name) = selector.iif.as_ref().filter(|name| !is(name, link) && !is(name, vrf)) {
            Some(match packet.iif {
                Some(_) => format!("the packet does not come in by {name}"),
                None => format!("the node sends the packet itself; it does not come in by {name}"),
            })
        } else if let Some(name) = &selector.oif {
            Some(format!("only for sockets bound to {name}"))
        } else if let Some((mark, mask)) = odd_mark {
            let has = if flow.mark == 0 { "none".into() } else { format!("{:#x}", flow.mark) };
            Some(format!("only for the mark {mark:#x}/{mask:#x}; the packet has {has}"))
        } else if extras.tos != 0 || extras.dscp.is_some_and(|(dscp, mask)| dscp & mask != 0) {
            Some("only for a type of service other than 0".into())
        } else if extras.flow_label.is_some_and(|(label, mask)| label & mask != 0) {
            Some("only for a flow label other than 0".into())
        } else if let Some((first, last)) = extras.users.filter(|(first, last)| !(*first..=*last).contains(&flow.user))
        {
            let whose = if flow.user == 0 { "root's".into() } else { format!("of uid {}", flow.user) };
            Some(format!("only for the uids {first}-{last}; the packet is {whose}"))
        } else if let Some(protocol) = extras.ip_protocol.filter(|protocol| *protocol != flow.protocol) {
            Some(format!("only for IP protocol {protocol}; the packet is {}", protocol_name(flow.protocol)))
        } else if odd_ports.is_some() && flow.ports == (0, 0) {
            Some("only for certain ports; the packet has none".into())
        } else if let Some((first, last)) = odd_ports {
            let (from, to) = flow.ports;
            Some(format!("only for the ports {first}-{last}; the packet goes from port {from} to port {to}"))
        } else if extras.tunnel.is_some() {
            Some("only for packets of a tunnel".into())
        } else if extras.l3mdev && link.is_none_or(|link| link.vrf.is_none() && link.vrf_table.is_none()) {
            Some("no VRF is involved".into())
        } else {
            None
        }
    }

    fn vrf_table(&self, packet: &Packet) -> Option<u32> {
        let link = self.link(packet.iif?)?;
        link.vrf_table.or_else(|| self.link(link.vrf?)?.vrf_table)
    }

    /// The best route of a table: the longest prefix, and among equals the smallest metric.
    fn search(&self, table: u32, packet: &Packet) -> TableAnswer {
        let fits = |route: &&SeenRoute| {
            route.table == table
                && route.to.contains(&packet.to)
                && route.from.is_none_or(|from| from.contains(&packet.from))
                && route.tos == 0 // the packet's; 0 also means "any"
        };
        let routes: Vec<&SeenRoute> = self.routes.iter().filter(fits).collect();
        let source_length = |route: &SeenRoute| route.from.map_or(0, |from| from.network_length());
        let order =
            |route: &SeenRoute| (u8::MAX - route.to.network_length(), u8::MAX - source_length(route), route.metric);
        let mut rest = routes.clone();
        let mut dead = false;
        // `min_by_key` returns the first of equals, as the kernel does.
        while let Some(best) = (0..rest.len()).min_by_key(|at| rest.get(*at).map(|route| order(route))) {
            let route = rest.remove(best);
            match route.special() {
                Some(Special::Throw) => return TableAnswer::Nothing(format!("throw: {}", self.show(route))),
                Some(Special::Blackhole | Special::Unreachable | Special::Prohibit) => {
                    return TableAnswer::Refused(route.clone());
                }
                Some(Special::Broadcast | Special::Other(_)) => {
                    return TableAnswer::Unknown(format!(
                        "{} is not for a single host: {}",
                        packet.to,
                        self.show(route)
                    ));
                }
                Some(Special::Local) => return TableAnswer::Routes(vec![route.clone()]),
                None if route.hops().is_empty() => {
                    let why =
                        format!("the kernel does not show the next hops of nexthop objects: {}", self.show(route));
                    return TableAnswer::Unknown(why);
                }
                None if route.alive().next().is_none() => dead = true,
                None => return TableAnswer::Routes(equals(route, &routes, packet)),
            }
        }
        let name = table_name(table);
        TableAnswer::Nothing(if dead {
            format!("table {name} has only routes through interfaces that are down")
        } else if self.tables.contains(&table) {
            format!("no route to {} in table {name}", packet.to)
        } else {
            format!("table {name} is empty")
        })
    }

    /// Why a rule does not accept a route, if it does not.
    fn suppressed(&self, extras: &RuleExtras, route: &SeenRoute) -> Option<String> {
        let length = u32::from(route.to.network_length());
        if let Some(least) = extras.suppress_length.filter(|least| length <= *least) {
            return Some(format!("{} is suppressed: its prefix is not longer than {least}", self.show(route)));
        }
        let link = self.link(route.all_hops().first()?.oif?)?;
        let group = extras.suppress_group.filter(|group| *group == link.group)?;
        Some(format!("{} is suppressed: {} is in group {group}", self.show(route), link.dev.name))
    }
}

/// The route, and others of the same table that are as good, if the kernel may choose among them.
fn equals(route: &SeenRoute, all: &[&SeenRoute], packet: &Packet) -> Vec<SeenRoute> {
    let key = |route: &SeenRoute| (route.to, route.from, route.metric);
    let is_equal =
        |other: &&&SeenRoute| other.special().is_none() && key(other) == key(route) && other.alive().next().is_some();
    // IPv4 takes the first, but among default routes one whose gateway answers.
    let choice = packet.family() == Family::V6 || route.to.network_length() == 0;
    let several = if choice { usize::MAX } else { 1 };
    all.iter().filter(is_equal).take(several).map(|route| (*route).clone()).collect()
}
