//! The path of one packet through the node: its lookup, its reverse path check, and how both compare with the kernel's
//! answer.

use std::net::IpAddr;

use super::fib::{Fib, Flow, Packet};
use super::host;
use super::lookup::{Ending, LOOPBACK, Lookup};
use crate::model::{EVERYTHING, Family, IfName, Selector, TABLE_LOCAL, TABLE_MAIN};
use crate::observed::{RuleAction, SeenHop, SeenRoute, SeenRule, Special};
use crate::topology::is_kernels;

/// The result of the reverse path check of an incoming packet.
#[derive(Debug, Clone, PartialEq)]
pub struct ReversePathCheck {
    /// Interface.
    pub iif: u32,
    /// Its rp_filter, and that of `all`: the greater one applies.
    pub rp_filter: (i32, i32),
    /// Whether the packet passes; `None`: unknown.
    pub passes: Option<bool>,
    /// Why.
    pub why: String,
    /// Lookup of the way back.
    pub back: Lookup,
}

/// The kernel's own answer: a route, or an error text.
pub type Answer = Result<SeenRoute, String>;

/// The path of one packet through the node.
#[derive(Debug, Clone, PartialEq)]
pub struct Leg {
    /// The packet.
    pub packet: Packet,
    /// Its rule, table and route.
    pub lookup: Lookup,
    /// The reverse path check of an incoming packet. IPv6 has none.
    pub check: Option<ReversePathCheck>,
    /// Whether it would have to be forwarded, but forwarding is off; where that is set.
    pub not_forwarded: Option<String>,
    /// The kernel's answer, if it was asked.
    pub kernel: Option<Answer>,
    /// How the kernel's answer differs from this one.
    pub disagreement: Option<String>,
}

impl Leg {
    /// The interfaces by which it may leave.
    pub(super) fn outs(&self) -> impl Iterator<Item = u32> {
        self.lookup.outs()
    }

    pub(super) fn routes(&self) -> &[SeenRoute] {
        self.lookup.routes()
    }

    /// Whether it is for the node itself.
    pub fn is_local(&self) -> bool {
        self.routes().first().is_some_and(|route| route.special() == Some(Special::Local))
    }

    /// Whether the result is unknown.
    pub fn is_unknown(&self) -> bool {
        let unchecked = self.check.as_ref().is_some_and(|check| check.passes.is_none());
        unchecked || matches!(self.lookup.end, Ending::Unknown(_))
    }

    /// How the kernel's answer differs from this one, if it does.
    pub fn compare(&self, fib: &Fib, answer: &Answer) -> Option<String> {
        // IPv6 has a route even for a packet that it does not forward.
        let stopped = self.packet.family() == Family::V4 && !self.is_local() && self.not_forwarded.is_some();
        let refused = stopped || self.check.as_ref().is_some_and(|check| check.passes == Some(false));
        let expected = match &self.lookup.end {
            _ if self.is_unknown() => return None, // already reported
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
    pub(super) fn routes(&self) -> &[SeenRoute] {
        match &self.end {
            Ending::Route(routes) => routes,
            _ => &[],
        }
    }

    /// The hops by which a packet may leave.
    pub(super) fn ways_out(&self) -> impl Iterator<Item = &SeenHop> {
        self.routes().iter().filter(|route| route.special().is_none()).flat_map(SeenRoute::alive)
    }

    /// Their interfaces.
    pub(super) fn outs(&self) -> impl Iterator<Item = u32> {
        self.ways_out().filter_map(|hop| hop.oif)
    }
}

/// Each interface once.
pub(super) fn distinct(all: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut distinct = Vec::new();
    for one in all {
        if !distinct.contains(&one) {
            distinct.push(one);
        }
    }
    distinct
}

/// Whether the route drops packets.
pub(super) fn is_refusal(route: &SeenRoute) -> bool {
    matches!(route.special(), Some(Special::Blackhole | Special::Unreachable | Special::Prohibit | Special::Throw))
}

/// Whether the kernel's route is this one. It may show only the hops that it chose.
fn same(ours: &SeenRoute, kernels: &SeenRoute) -> bool {
    let hop = |hop: &SeenHop| (hop.via, hop.oif);
    let known: Vec<_> = ours.all_hops().iter().map(hop).collect();
    // Until a rule is added, the kernel keeps the table local merged with main, and reports main.
    let table = |ours: u32| ours == kernels.table || (ours, kernels.table) == (TABLE_LOCAL, TABLE_MAIN);
    // For IPv6 routes that share a nexthop object, the kernel shows the one that used it first.
    let shared = ours.to.is_ipv6() && ours.nexthop.is_some() && ours.nexthop == kernels.nexthop;
    ours.special() == kernels.special()
        && (shared || ours.to == kernels.to && table(ours.table))
        && (ours.special() == Some(Special::Local)
            || kernels.all_hops().iter().map(hop).all(|hop| known.contains(&hop)))
}

impl Fib {
    /// Whether the address is a subnet's broadcast address.
    pub fn is_broadcast(&self, address: IpAddr) -> bool {
        self.routes.iter().any(|route| route.special() == Some(Special::Broadcast) && route.to == host(address))
    }

    /// Whether the address belongs to this node.
    pub fn is_own(&self, address: IpAddr) -> bool {
        let local = |route: &SeenRoute| (route.special(), route.table) == (Some(Special::Local), TABLE_LOCAL);
        self.routes.iter().any(|route| local(route) && route.to.contains(&address))
    }

    /// The path of one packet.
    pub(super) fn leg(&self, packet: Packet) -> Leg {
        let lookup = match packet.iif {
            None if packet.family() == Family::V4 && !self.is_own(packet.from) => {
                let why = format!("the node itself, which cannot send from {}: not its address", packet.from);
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
            // IPv4 is forwarded if the incoming interface allows it, IPv6 if `all` does, or that interface's
            // force_forwarding (Linux 6.17).
            let (forwarding, whose) = match packet.family() {
                Family::V4 => (self.conf(iif).is_none_or(|conf| conf.forwarding), self.name(iif)),
                Family::V6 => {
                    let forced = self.conf(iif).is_some_and(|conf| conf.force_forwarding);
                    (self.all.forwarding || forced, "all".into())
                }
            };
            leg.not_forwarded = (!forwarding).then_some(whose);
        }
        leg
    }

    /// The result of the reverse path check: __fib_validate_source of the kernel.
    pub(super) fn check(&self, packet: &Packet, iif: u32, route: &SeenRoute) -> ReversePathCheck {
        let conf = self.conf(iif).copied().unwrap_or(self.all);
        let rp_filter = (conf.rp_filter, self.all.rp_filter);
        let filter = rp_filter.0.max(rp_filter.1);
        // The way back starts where the packet would go; for the node itself that is the loopback.
        let oif =
            if route.special() == Some(Special::Local) { None } else { route.alive().next().and_then(|hop| hop.oif) };
        let valid_mark = conf.src_valid_mark || self.all.src_valid_mark;
        let mark = if valid_mark { packet.flow.mark } else { 0 };
        let back = packet.reply(oif.filter(|oif| *oif != LOOPBACK));
        let back = self.lookup(&Packet { flow: Flow { mark, ..back.flow }, ..back });
        let name = self.name(iif);
        let uses = |route: &SeenRoute| {
            route
                .all_hops()
                .iter()
                .filter_map(|hop| hop.oif)
                .any(|oif| oif == iif || self.link(oif).is_some_and(|link| link.vrf == Some(iif)))
        };
        let has_address = self.addresses.iter().any(|address| address.index == iif && address.local.is_ipv4());
        let (passes, why) = match &back.end {
            Ending::Route(routes) => match routes.first() {
                Some(back)
                    if back.special() == Some(Special::Local) && !(conf.accept_local || self.all.accept_local) =>
                {
                    (false, format!("{} is an address of this node: a martian", packet.from))
                }
                Some(back) if uses(back) || back.special() == Some(Special::Local) && iif == LOOPBACK => {
                    (true, format!("the route back is {}", self.show(back)))
                }
                Some(back) => {
                    let way = format!("the route back is {}, not by {name}", self.show(back));
                    match filter {
                        0 => (true, way),
                        1 => (false, way),
                        _ if !has_address => (
                            false,
                            format!("{way}, and {name} has no address: then loose drops the same packets as strict"),
                        ),
                        _ => (true, format!("{way}; loose only requires that there is one")),
                    }
                }
                None => (filter == 0, "there is no route back".into()),
            },
            Ending::Refused(by) => (filter == 0, format!("the route back is refused by {by}")),
            Ending::NoRoute => (filter == 0, "there is no route back".into()),
            Ending::Unknown(why) => return ReversePathCheck { iif, rp_filter, passes: None, why: why.clone(), back },
        };
        ReversePathCheck { iif, rp_filter, passes: Some(passes), why, back }
    }

    /// Where a packet breaks, if it does. `fallen` begins the sentence if the sender's own rules gave no route.
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
            Ending::Unknown(why) => troubles.push(format!("unknown: {packet}: {why}")),
        }
        if let Some(check) = &leg.check {
            let (name, filter, why) = (self.name(check.iif), check.effective(), &check.why);
            troubles.extend(match check.passes {
                Some(true) => None,
                Some(false) => Some(format!("{name} drops {packet} as a martian (rp_filter {filter}): {why}")),
                None => Some(format!("unknown whether rp_filter of {name} lets {packet} in: {why}")),
            });
        }
        let forwarding = leg.not_forwarded.as_ref().map(|whose| {
            let family = if from.is_ipv4() { "ipv4" } else { "ipv6" };
            format!("{packet} is not forwarded: net.{family}.conf.{whose}.forwarding is 0")
        });
        troubles.extend(forwarding);
        // The kernel still uses such a hop, unless ignore_routes_with_linkdown is set.
        let mut hops = leg.lookup.ways_out().peekable();
        if hops.peek().is_some() && hops.all(|hop| hop.linkdown) {
            let names = self.names(&distinct(leg.outs()));
            troubles.push(format!("{names} has no carrier: {packet} cannot leave by this interface"));
        }
        troubles
    }

    /// Interfaces by name.
    pub(super) fn names<'a>(&self, links: impl IntoIterator<Item = &'a u32>) -> String {
        links.into_iter().map(|link| self.name(*link)).collect::<Vec<_>>().join(" or ")
    }
}

impl ReversePathCheck {
    /// The effective value in words.
    pub fn effective(&self) -> String {
        match self.rp_filter.0.max(self.rp_filter.1) {
            0 => "0, off".into(),
            1 => "1, strict".into(),
            number => format!("{number}, loose"),
        }
    }
}

impl SeenRule {
    /// Whether it is for one source alone, and otherwise selects at most by destination.
    pub(super) fn is_of(&self, source: IpAddr) -> bool {
        let (from, to) = (Some(host(source)), self.rule.selector.to);
        self.selects_only(&Selector { from, to, fwmark: None, iif: None, oif: None })
    }

    /// Whether it is for everything from this interface, and selects by nothing else.
    pub(super) fn is_behind(&self, link: &IfName) -> bool {
        let iif = Some(link.clone());
        self.selects_only(&Selector { iif, ..EVERYTHING })
    }

    /// The table that it uses, except the kernel's own.
    pub(super) fn policy_table(&self) -> Option<u32> {
        match self.action() {
            RuleAction::Lookup(table) => Some(table).filter(|table| !is_kernels(*table)),
            _ => None,
        }
    }
}
