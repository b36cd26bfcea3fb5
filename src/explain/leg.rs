//! One packet's way through the node: its lookup, the reverse path check, and how both compare with the kernel's answer.

use std::net::IpAddr;

use super::fib::{Action, Ending, Fib, FibHop, FibRoute, FibRule, Kind, LOOPBACK, Lookup, Packet};
use super::host;
use crate::net::{Family, TABLE_LOCAL, TABLE_MAIN};
use crate::topology::is_kernels;

/// What the reverse path check says to a packet that comes in.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    /// Interface.
    pub iif: u32,
    /// Its rp_filter, and that of `all`: the greater counts.
    pub rp_filter: (i32, i32),
    /// Whether the packet passes; `None`: not judged.
    pub passes: Option<bool>,
    /// Why.
    pub why: String,
    /// Lookup of the way back.
    pub back: Lookup,
}

/// The kernel's own answer: a route that it takes, or its refusal in its own words.
pub type Answer = Result<FibRoute, String>;

/// One packet's way through the node.
#[derive(Debug, Clone, PartialEq)]
pub struct Leg {
    /// The packet.
    pub packet: Packet,
    /// Its rule, table and route.
    pub lookup: Lookup,
    /// The reverse path check of a packet that comes in. IPv6 has none.
    pub check: Option<Check>,
    /// Whether it has to be forwarded, and is not: where that is set.
    pub not_forwarded: Option<String>,
    /// The kernel's answer, where it was asked.
    pub kernel: Option<Answer>,
    /// How the kernel's answer differs from this one.
    pub disagreement: Option<String>,
}

impl Leg {
    /// The interfaces that it may leave by.
    pub(super) fn outs(&self) -> impl Iterator<Item = u32> {
        self.lookup.outs()
    }

    pub(super) fn routes(&self) -> &[FibRoute] {
        self.lookup.routes()
    }

    /// Whether it is for the node itself.
    pub fn is_local(&self) -> bool {
        self.routes().first().is_some_and(|route| route.kind == Kind::Local)
    }

    /// Whether it could not be judged what becomes of it.
    pub fn is_unknown(&self) -> bool {
        let unchecked = self.check.as_ref().is_some_and(|check| check.passes.is_none());
        unchecked || matches!(self.lookup.end, Ending::Unknown(_))
    }

    /// How the kernel's answer differs from this one, if it does.
    pub fn compare(&self, fib: &Fib, answer: &Answer) -> Option<String> {
        // What IPv6 does not forward it still has a route for.
        let stopped = self.packet.family() == Family::V4 && !self.is_local() && self.not_forwarded.is_some();
        let refused = stopped || self.check.as_ref().is_some_and(|check| check.passes == Some(false));
        let expected = match &self.lookup.end {
            _ if self.is_unknown() => return None, // said already
            Ending::Route(routes) if !refused => routes.as_slice(),
            _ => &[],
        };
        match answer {
            Ok(route) if is_refusal(route) && expected.is_empty() => None,
            Err(_) if expected.is_empty() => None,
            Err(refusal) => Some(format!("it refuses ({refusal})")),
            Ok(route) if expected.iter().any(|expected| same(expected, route)) => None,
            Ok(route) => Some(format!("it takes {}", fib.show(route))),
        }
    }
}

impl Lookup {
    pub(super) fn routes(&self) -> &[FibRoute] {
        match &self.end {
            Ending::Route(routes) => routes,
            _ => &[],
        }
    }

    /// The hops that a packet may leave by.
    pub(super) fn ways_out(&self) -> impl Iterator<Item = &FibHop> {
        self.routes().iter().filter(|route| route.kind == Kind::Unicast).flat_map(FibRoute::alive)
    }

    /// Their interfaces.
    pub(super) fn outs(&self) -> impl Iterator<Item = u32> {
        self.ways_out().filter_map(|hop| hop.oif)
    }
}

/// Each once.
pub(super) fn distinct(all: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut distinct = Vec::new();
    for one in all {
        if !distinct.contains(&one) {
            distinct.push(one);
        }
    }
    distinct
}

/// Whether packets that take the route are dropped.
pub(super) fn is_refusal(route: &FibRoute) -> bool {
    matches!(route.kind, Kind::Blackhole | Kind::Unreachable | Kind::Prohibit | Kind::Throw)
}

/// Whether the kernel's route is this one. It may show fewer hops than there are: those that it chose.
fn same(ours: &FibRoute, kernels: &FibRoute) -> bool {
    let hop = |hop: &FibHop| (hop.via, hop.oif);
    let known: Vec<_> = ours.hops.iter().map(hop).collect();
    // Before the first rule of anybody's own the kernel keeps the table local within main, and calls it so.
    let table = |ours: u32| ours == kernels.table || (ours, kernels.table) == (TABLE_LOCAL, TABLE_MAIN);
    // Of IPv6 routes that share a nexthop object the kernel shows the one that used it first.
    let shared = ours.to.is_ipv6() && ours.nexthop.is_some() && ours.nexthop == kernels.nexthop;
    ours.kind == kernels.kind
        && (shared || ours.to == kernels.to && table(ours.table))
        && (ours.kind == Kind::Local || kernels.hops.iter().map(hop).all(|hop| known.contains(&hop)))
}

impl Fib {
    /// Whether the address is a subnet's broadcast address.
    pub fn is_broadcast(&self, address: IpAddr) -> bool {
        self.routes.iter().any(|route| route.kind == Kind::Broadcast && route.to == host(address))
    }

    /// Whether the address is one of this node.
    pub fn is_own(&self, address: IpAddr) -> bool {
        let local = |route: &FibRoute| (route.kind, route.table) == (Kind::Local, TABLE_LOCAL);
        self.routes.iter().any(|route| local(route) && route.to.contains(&address))
    }

    /// One packet's way.
    pub(super) fn leg(&self, packet: Packet) -> Leg {
        let lookup = match packet.iif {
            None if packet.family() == Family::V4 && !self.is_own(packet.from) => {
                let why = format!("the node itself, which does not send from {}: not its own address", packet.from);
                Lookup { steps: Vec::new(), end: Ending::Refused(why) }
            }
            _ => self.lookup(&packet),
        };
        let mut leg = Leg { packet, lookup, check: None, not_forwarded: None, kernel: None, disagreement: None };
        let Some(iif) = packet.iif else { return leg };
        if packet.family() == Family::V4 {
            leg.check = match &leg.lookup.end {
                Ending::Route(routes) => routes.first().map(|route| self.check(&packet, iif, route)),
                _ => None,
            };
        }
        if !leg.is_local() {
            // IPv4 is forwarded where the interface that it comes in by says so, IPv6 where `all` does, or that
            // interface's force_forwarding (Linux 6.17).
            let (forwarding, whose) = match packet.family() {
                Family::V4 => (self.link(iif).is_none_or(|link| link.conf.forwarding), self.name(iif)),
                Family::V6 => {
                    let forced = self.link(iif).is_some_and(|link| link.conf.force_forwarding);
                    (self.all.forwarding || forced, "all".into())
                }
            };
            leg.not_forwarded = (!forwarding).then_some(whose);
        }
        leg
    }

    /// What the reverse path check says: __fib_validate_source of the kernel.
    pub(super) fn check(&self, packet: &Packet, iif: u32, route: &FibRoute) -> Check {
        let conf = self.link(iif).map_or(self.all, |link| link.conf);
        let rp_filter = (conf.rp_filter, self.all.rp_filter);
        let filter = rp_filter.0.max(rp_filter.1);
        // The way back starts where the packet would go; for the node itself that is the loopback.
        let oif = if route.kind == Kind::Local { None } else { route.alive().next().and_then(|hop| hop.oif) };
        let back = self.lookup(&Packet { from: packet.to, to: packet.from, iif: oif.filter(|oif| *oif != LOOPBACK) });
        let name = self.name(iif);
        let uses = |route: &FibRoute| {
            route
                .hops
                .iter()
                .filter_map(|hop| hop.oif)
                .any(|oif| oif == iif || self.link(oif).is_some_and(|link| link.master == Some(iif)))
        };
        let has_address = self.addresses.iter().any(|address| address.index == iif && address.local.is_ipv4());
        let (passes, why) = match &back.end {
            Ending::Route(routes) => match routes.first() {
                Some(back) if back.kind == Kind::Local && !(conf.accept_local || self.all.accept_local) => {
                    (false, format!("{} is an address of this node: a martian", packet.from))
                }
                Some(back) if uses(back) || back.kind == Kind::Local && iif == LOOPBACK => {
                    (true, format!("the way back is {}", self.show(back)))
                }
                Some(back) => {
                    let way = format!("the way back is {}, not by {name}", self.show(back));
                    match filter {
                        0 => (true, way),
                        1 => (false, way),
                        _ if !has_address => {
                            (false, format!("{way}, and {name} has no address: there loose drops what strict drops"))
                        }
                        _ => (true, format!("{way}; loose asks only that there is one")),
                    }
                }
                None => (filter == 0, "there is no way back".into()),
            },
            Ending::Refused(by) => (filter == 0, format!("the way back is refused by {by}")),
            Ending::NoRoute => (filter == 0, "there is no way back".into()),
            Ending::Unknown(why) => return Check { iif, rp_filter, passes: None, why: why.clone(), back },
        };
        Check { iif, rp_filter, passes: Some(passes), why, back }
    }

    /// Where a leg breaks, if it does. `fallen` begins the sentence where rules of the sender alone led nowhere.
    pub(super) fn trouble(&self, leg: &Leg, fallen: &str) -> Vec<String> {
        let Packet { from, to, .. } = leg.packet;
        let packet = format!("the packet from {from} to {to}");
        let mut troubles = Vec::new();
        match &leg.lookup.end {
            Ending::Route(_) => {}
            Ending::NoRoute => {
                troubles.push(format!("{fallen}there is no route for {packet}"));
            }
            Ending::Refused(by) => troubles.push(format!("{packet} is dropped by {by}")),
            Ending::Unknown(why) => troubles.push(format!("not judged: {packet}: {why}")),
        }
        if let Some(check) = &leg.check {
            let (name, filter, why) = (self.name(check.iif), check.effective(), &check.why);
            troubles.extend(match check.passes {
                Some(true) => None,
                Some(false) => Some(format!("{name} drops {packet} as a martian (rp_filter {filter}): {why}")),
                None => Some(format!("not judged: whether rp_filter of {name} lets {packet} in: {why}")),
            });
        }
        let forwarding = leg.not_forwarded.as_ref().map(|whose| {
            let family = if from.is_ipv4() { "ipv4" } else { "ipv6" };
            format!("{packet} is not forwarded: net.{family}.conf.{whose}.forwarding is 0")
        });
        troubles.extend(forwarding);
        // The kernel goes on using such a hop, unless it is told not to (ignore_routes_with_linkdown).
        let mut hops = leg.lookup.ways_out().peekable();
        if hops.peek().is_some() && hops.all(|hop| hop.linkdown) {
            let names = self.names(&distinct(leg.outs()));
            troubles.push(format!("{names} has no carrier: {packet} does not get out there"));
        }
        troubles
    }

    /// Interfaces by name.
    pub(super) fn names<'a>(&self, links: impl IntoIterator<Item = &'a u32>) -> String {
        links.into_iter().map(|link| self.name(*link)).collect::<Vec<_>>().join(" or ")
    }
}

impl Check {
    /// What counts, in words.
    pub fn effective(&self) -> String {
        match self.rp_filter.0.max(self.rp_filter.1) {
            0 => "0, off".into(),
            1 => "1, strict".into(),
            number => format!("{number}, loose"),
        }
    }
}

impl FibRule {
    /// The table that it leads to, unless that is one of the kernel's own.
    pub(super) fn policy_table(&self) -> Option<u32> {
        match self.action {
            Action::Lookup(table) => Some(table).filter(|table| !is_kernels(*table)),
            _ => None,
        }
    }
}
