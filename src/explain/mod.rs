//! What happens to a packet and to its reply, and where it breaks: pure, over what was seen of the node.
//!
//! [`explain`] answers from rules, routes and settings alone; [`Leg::compare`] then holds each lookup against the
//! kernel's own answer. `sys` reads both. What is shown of it is in [`show`].

pub mod fib;
pub mod show;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use cidr::IpCidr;

use crate::net::{Family, TABLE_LOCAL, TABLE_MAIN, table_name};
use fib::{Action, Ending, Fib, FibAddress, FibHop, FibRoute, Kind, LOOPBACK, Lookup, Packet, What};

/// `RTPROT_KERNEL`.
const KERNEL: u8 = 2;

/// What a source is to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A host route leads to it: a pod's, behind this interface.
    Pod(u32),
    /// An address of the node itself.
    Local,
    /// Neither: it is taken to come in by the interface that the route to it leads to.
    Other(u32),
    /// Neither, and no route leads to it.
    Nowhere,
}

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

/// What was found out about a pair of addresses.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// Source.
    pub source: IpAddr,
    /// Destination.
    pub destination: IpAddr,
    /// What the source is.
    pub origin: Origin,
    /// How that is known, or what was assumed.
    pub because: String,
    /// The packet.
    pub request: Leg,
    /// The uplinks that the source belongs to, and how that is known.
    pub home: Option<Home>,
    /// Its reply, by each interface that it may come in by.
    pub replies: Vec<Leg>,
    /// Where it breaks, the first first.
    pub problems: Vec<String>,
    /// What may or may not be a fault.
    pub notes: Vec<String>,
}

/// The interfaces that a source belongs to: a network that checks sources takes its packets there alone.
#[derive(Debug, Clone, PartialEq)]
pub struct Home {
    /// Their indexes.
    pub links: Vec<u32>,
    /// Those that it may belong to as well, by their subnets.
    pub others: Vec<u32>,
    /// How that is known.
    pub because: String,
    /// Whether that is certain. A subnet alone proves nothing: a plain server answers by whichever interface it likes.
    pub proven: bool,
}

impl Explanation {
    /// Whether the packet gets out, its reply is accepted, and the kernel says the same.
    pub fn works(&self) -> bool {
        self.problems.is_empty()
    }

    /// All packets that were looked at.
    pub fn legs_mut(&mut self) -> impl Iterator<Item = &mut Leg> {
        [&mut self.request].into_iter().chain(&mut self.replies)
    }

    /// Takes the kernel's answers, in the order of [`Explanation::legs_mut`].
    pub fn take(&mut self, fib: &Fib, answers: Vec<Answer>) {
        let mut problems = Vec::new();
        for (leg, answer) in self.legs_mut().zip(answers) {
            leg.disagreement = leg.compare(fib, &answer);
            leg.kernel = Some(answer);
            problems.extend(leg.disagreement.iter().map(|how| {
                let Packet { from, to, .. } = leg.packet;
                format!("the kernel gives another answer for the packet from {from} to {to}: {how}")
            }));
        }
        self.problems.extend(problems);
    }
}

/// What happens to a packet from `source` to `destination`, and to its reply.
pub fn explain(fib: &Fib, source: IpAddr, destination: IpAddr) -> Explanation {
    let (origin, because) = fib.origin(source, destination);
    let iif = match origin {
        Origin::Pod(iif) | Origin::Other(iif) => Some(iif),
        Origin::Local | Origin::Nowhere => None,
    };
    let request = fib.leg(Packet { from: source, to: destination, iif });
    let mut problems = Vec::new();
    if origin == Origin::Nowhere {
        problems.push(because.clone());
    }
    if matches!(origin, Origin::Other(_)) && fib.rules.iter().any(|rule| rule.is_of(source)) {
        problems.push(format!(
            "there are rules for {source} alone, as for a pod, but no host route to it: the pod's interface or route is gone"
        ));
    }
    problems.extend(fib.trouble(&request));
    let outs = distinct(request.outs());
    let bypassed = fib.bypassed(&request, &outs);
    problems.extend(bypassed.iter().map(|(_, why)| why.clone()));
    let leaves = !request.stays_here() && bypassed.is_none();
    let home = fib.home(source, destination, &outs).filter(|_| leaves);
    let mut notes = Vec::new();
    if leaves {
        fib.judge_ways_out(&request, home.as_ref(), &mut problems, &mut notes);
    }
    let arrivals: Vec<Option<u32>> = match (&home, bypassed) {
        _ if request.is_local() => vec![None],
        (_, Some((link, _))) => vec![Some(link)],
        (Some(home), None) => home.links.iter().copied().map(Some).collect(),
        (None, None) => outs.iter().copied().map(Some).collect(),
    };
    let replies: Vec<Leg> =
        arrivals.into_iter().map(|iif| fib.leg(Packet { from: destination, to: source, iif })).collect();
    for reply in &replies {
        problems.extend(fib.trouble(reply));
        problems.extend(fib.astray(reply, origin));
        if matches!(origin, Origin::Other(_)) && fib.is_here(destination) && !reply.stays_here() {
            let home = fib.home(destination, source, &distinct(reply.outs()));
            fib.judge_ways_out(reply, home.as_ref(), &mut problems, &mut notes);
        }
    }
    Explanation { source, destination, origin, because, request, home, replies, problems, notes }
}

impl Leg {
    /// The interfaces that it may leave by.
    fn outs(&self) -> impl Iterator<Item = u32> {
        self.lookup.outs()
    }

    fn routes(&self) -> &[FibRoute] {
        self.lookup.routes()
    }

    /// Whether it is for the node itself.
    pub fn is_local(&self) -> bool {
        self.routes().first().is_some_and(|route| route.kind == Kind::Local)
    }

    /// Whether it is for the node itself or for a host that a route of its own leads to, as to a pod.
    fn stays_here(&self) -> bool {
        self.is_local() || self.routes().first().is_some_and(FibRoute::is_host)
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
    fn routes(&self) -> &[FibRoute] {
        match &self.end {
            Ending::Route(routes) => routes,
            _ => &[],
        }
    }

    /// The hops that a packet may leave by.
    fn ways_out(&self) -> impl Iterator<Item = &FibHop> {
        self.routes().iter().filter(|route| route.kind == Kind::Unicast).flat_map(FibRoute::alive)
    }

    /// Their interfaces.
    fn outs(&self) -> impl Iterator<Item = u32> {
        self.ways_out().filter_map(|hop| hop.oif)
    }
}

/// Each once.
fn distinct(all: impl Iterator<Item = u32>) -> Vec<u32> {
    let mut distinct = Vec::new();
    for one in all {
        if !distinct.contains(&one) {
            distinct.push(one);
        }
    }
    distinct
}

/// Whether packets that take the route are dropped.
fn is_refusal(route: &FibRoute) -> bool {
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
    /// What a source is to this node.
    fn origin(&self, source: IpAddr, destination: IpAddr) -> (Origin, String) {
        if let Some((oif, route)) = self.host_route(source) {
            return (Origin::Pod(oif), format!("it has the host route {}", self.show(route)));
        }
        if self.is_own(source) {
            return (Origin::Local, "an address of this node".into());
        }
        let neither = format!("{source} is neither a pod's address (no host route leads to it) nor one of this node");
        let pod = self.host_route(destination).map(|(link, _)| link);
        let outs = distinct(self.lookup(&Packet { from: destination, to: source, iif: pod }).outs());
        // The network beyond brings it to where the destination belongs, and asks nobody for the way back.
        let home = self.home(destination, source, &outs).filter(|_| self.is_here(destination));
        let at_home = home.as_ref().and_then(|home| {
            let also_out = home.links.iter().find(|link| outs.contains(link));
            Some((*also_out.or(home.links.first())?, format!("where {destination} belongs ({})", home.because)))
        });
        let where_back = || Some((*outs.first()?, "where the route to it leads".to_owned()));
        match at_home.or_else(where_back) {
            Some((link, why)) => {
                (Origin::Other(link), format!("{neither}; assumed: it comes in by {}, {why}", self.name(link)))
            }
            None => (Origin::Nowhere, format!("{neither}, and no route leads to it; assumed: the node itself sends")),
        }
    }

    /// The interface that a host route leads to, of main first: that of a pod.
    fn host_route(&self, address: IpAddr) -> Option<(u32, &FibRoute)> {
        let host = |route: &&FibRoute| route.is_host() && route.to.contains(&address) && route.protocol != KERNEL;
        let main_first = |route: &&FibRoute| (route.table != TABLE_MAIN, route.table);
        let route = self.routes.iter().filter(host).min_by_key(main_first)?;
        Some((route.hops.first()?.oif?, route))
    }

    /// Where the destination is a pod of this node and the packet leaves it: the pod's interface, and the words for it.
    ///
    /// Not for pods with security groups of their own: what comes from them is sent beyond the node, and what goes to
    /// them comes in again by their own uplink.
    fn bypassed(&self, request: &Leg, outs: &[u32]) -> Option<(u32, String)> {
        let Packet { from, to: destination, .. } = request.packet;
        let (link, route) = self.host_route(destination)?;
        let leads_there = |rule: &&fib::FibRule| rule.action == Action::Lookup(route.table) && rule.iif.is_none();
        self.rules.iter().find(leads_there)?;
        if request.lookup.steps.last().is_some_and(|step| self.is_branch_of(from, &step.rule)) {
            return None;
        }
        (!outs.is_empty() && !outs.contains(&link) && !self.gateways.contains(&link)).then(|| {
            let (name, route, outs) = (self.name(link), self.show(route), self.names(outs));
            let rule = format!("to {destination} lookup {}", table_name(TABLE_MAIN));
            let why = format!(
                "{destination} is behind {name} ({route}), but the packet leaves by {outs}: no earlier rule leads to that \
                 route (the CNI's is: priority 512 {rule})"
            );
            (link, why)
        })
    }

    /// Whether the address is a subnet's broadcast address.
    pub fn is_broadcast(&self, address: IpAddr) -> bool {
        self.routes.iter().any(|route| route.kind == Kind::Broadcast && route.to == host(address))
    }

    /// Whether the address is one of this node.
    pub fn is_own(&self, address: IpAddr) -> bool {
        let local = |route: &FibRoute| (route.kind, route.table) == (Kind::Local, TABLE_LOCAL);
        self.routes.iter().any(|route| local(route) && route.to.contains(&address))
    }

    /// Whether the address is a pod's, or one of this node.
    fn is_here(&self, address: IpAddr) -> bool {
        self.host_route(address).is_some() || self.is_own(address)
    }

    /// One packet's way.
    fn leg(&self, packet: Packet) -> Leg {
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
    fn check(&self, packet: &Packet, iif: u32, route: &FibRoute) -> Check {
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

    /// Where a leg breaks, if it does.
    fn trouble(&self, leg: &Leg) -> Vec<String> {
        let Packet { from, to, .. } = leg.packet;
        let packet = format!("the packet from {from} to {to}");
        let mut troubles = Vec::new();
        match &leg.lookup.end {
            Ending::Route(_) => {}
            Ending::NoRoute => {
                troubles.push(format!("{}there is no route for {packet}", self.fallen(&leg.lookup, from)));
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

    /// Where a reply goes, if not to where the packet came from.
    fn astray(&self, reply: &Leg, origin: Origin) -> Option<String> {
        let Packet { to, .. } = reply.packet;
        let Ending::Route(routes) = &reply.lookup.end else { return None };
        let route = self.show(routes.first()?);
        let outs = distinct(reply.outs());
        let goes = |where_to: String| Some(format!("the reply to {to} does not go to {where_to}, but takes {route}"));
        match origin {
            Origin::Pod(link) if !outs.contains(&link) => goes(self.name(link)),
            Origin::Local if !reply.is_local() && reply.packet.iif.is_some() => goes("this node".into()),
            _ => None,
        }
    }

    /// The rules of the source alone that led nowhere, as the beginning of a sentence.
    fn fallen(&self, lookup: &Lookup, source: IpAddr) -> String {
        let is_own = |rule: &fib::FibRule| rule.is_of(source) || self.is_branch_of(source, rule);
        let fallen = lookup.steps.iter().filter(|step| is_own(&step.rule));
        let fallen = fallen.filter_map(|step| match &step.what {
            What::FellThrough(why) => Some(format!("rule {} ({}) falls through: {why}", step.rule.priority, step.rule)),
            _ => None,
        });
        fallen.map(|fallen| format!("{fallen}; so ")).collect()
    }

    /// Whether the rule gives a pod a table of its own by the pod's interface. So the CNI does where pods have security
    /// groups of their own: that table has the pod's host route, too, and nothing else leads to it.
    fn is_branch_of(&self, pod: IpAddr, rule: &fib::FibRule) -> bool {
        let route = self.host_route(pod).filter(|(_, route)| rule.policy_table() == Some(route.table));
        route.and_then(|(link, _)| self.link(link)).is_some_and(|link| rule.is_behind(&link.name))
    }

    /// The uplinks that a source belongs to, where that can be told.
    fn home(&self, source: IpAddr, destination: IpAddr, outs: &[u32]) -> Option<Home> {
        let pod = self.host_route(source).map(|(link, _)| link);
        let own: Vec<_> =
            self.rules.iter().filter(|rule| rule.is_of(source) || self.is_branch_of(source, rule)).collect();
        let tables = distinct(own.iter().filter_map(|rule| rule.policy_table()));
        if !own.is_empty() && !own.iter().any(|rule| rule.to.is_none_or(|to| to.contains(&destination))) {
            return None; // rules of the source for other destinations: here it leaves otherwise, and translated
        }
        let home = |links, because| Home { links, others: Vec::new(), because, proven: true };
        let by_rule = |table| {
            let because = format!("the address that another rule leads to its table {} is there", table_name(table));
            (self.carriers(table), because)
        };
        let in_subnet = "it lies in a subnet there";
        for &table in &tables {
            let mut links = distinct(self.of_table(table));
            links.retain(|link| Some(*link) != pod);
            if let [_, _, ..] = links.as_slice() {
                // A table that leads to several does not tell which of them is right.
                for (evidence, because) in [by_rule(table), (self.holders(source), in_subnet.into())] {
                    let right: Vec<u32> = links.iter().copied().filter(|link| evidence.contains(link)).collect();
                    if !right.is_empty() {
                        return Some(home(right, because));
                    }
                }
            }
            if !links.is_empty() {
                return Some(home(links, format!("its table {} leads there", table_name(table))));
            }
        }
        for &table in &tables {
            let (carriers, because) = by_rule(table);
            if !carriers.is_empty() {
                return Some(home(carriers, because));
            }
        }
        let mut uplinks = self.holders(source);
        uplinks.retain(|link| own.is_empty() && self.gateways.contains(link));
        let proven = pod.is_some() && uplinks.iter().all(|link| self.has_sources(*link));
        let (mut links, mut others): (Vec<u32>, Vec<u32>) = uplinks.into_iter().partition(|link| outs.contains(link));
        if links.is_empty() {
            (links, others) = (others, Vec::new());
            links.retain(|_| proven || outs.is_empty());
        }
        (!links.is_empty()).then(|| Home { links, others, because: in_subnet.into(), proven })
    }

    /// The interfaces that carry an address whose rule leads to the table.
    fn carriers(&self, table: u32) -> Vec<u32> {
        let rules = self.rules.iter().filter(|rule| rule.policy_table() == Some(table));
        let carriers = rules
            .filter_map(|rule| rule.from.filter(|from| from.is_host_address() && rule.is_of(from.first_address())))
            .flat_map(|from| self.addresses.iter().filter(move |address| from.contains(&address.local)))
            .map(|address| address.index);
        distinct(carriers)
    }

    /// Says where a packet leaves the node by interfaces to which its source does not belong.
    fn judge_ways_out(&self, leg: &Leg, home: Option<&Home>, problems: &mut Vec<String>, notes: &mut Vec<String>) {
        let source = leg.packet.from;
        let outs = distinct(leg.outs());
        let wrong = |right: &[u32]| -> Vec<u32> { outs.iter().copied().filter(|out| !right.contains(out)).collect() };
        match home {
            Some(Home { links, because, proven: true, .. }) if !wrong(links).is_empty() => {
                let wrong = wrong(links);
                let fallen = self.fallen(&leg.lookup, source);
                problems.push(format!(
                    "{fallen}{} by {}, but {source} belongs to {} ({because}); a network that checks sources, as \
                     clouds do, drops it there, unless its source is translated (NAT is not looked at)",
                    if wrong.len() < outs.len() { "the packet may leave" } else { "the packet leaves" },
                    self.names(&wrong),
                    self.names(links),
                ));
            }
            Some(Home { links, others, .. }) if !others.is_empty() => {
                let (links, others) = (self.names(links), self.names(others));
                notes.push(format!(
                    "{source} lies in a subnet of {others}, too, and no rule says where it belongs: taken is {links}, \
                     by which it leaves; if it is a pod of {others}, its rule is gone (the CNI's has priority 1536)"
                ));
            }
            _ => {}
        }
        let holders = self.holders(source);
        let wrong = wrong(&holders);
        if home.is_none_or(|home| !home.proven) && !holders.is_empty() && !wrong.is_empty() {
            notes.push(format!(
                "the packet {} by {}, but {source} lies in a subnet of {}: a network that checks sources drops it, \
                 unless its source is translated (NAT is not looked at)",
                if wrong.len() < outs.len() { "may leave" } else { "leaves" },
                self.names(&wrong),
                self.names(&holders)
            ));
        }
    }

    /// The interfaces that carry an address, or else those in whose subnets it lies.
    fn holders(&self, source: IpAddr) -> Vec<u32> {
        let is_host = |address: &FibAddress| address.subnet.is_host_address();
        let (own, around): (Vec<&FibAddress>, Vec<_>) = self
            .addresses
            .iter()
            .filter(|address| address.subnet.contains(&source))
            .partition(|address| address.local == source);
        // One on lo or on a dummy is a service's, and no uplink's.
        let own = own.into_iter().filter(|address| !is_host(address) || self.gateways.contains(&address.index));
        let own = distinct(own.map(|address| address.index).filter(|link| *link != LOOPBACK));
        match own.is_empty() {
            true => distinct(around.into_iter().filter(|address| !is_host(address)).map(|address| address.index)),
            false => own,
        }
    }

    /// Whether a policy table for single sources leads to the interface.
    fn has_sources(&self, link: u32) -> bool {
        let single = |rule: &&fib::FibRule| rule.from.is_some_and(|from| from.is_host_address());
        let mut tables = self.rules.iter().filter(single).filter_map(|rule| rule.policy_table());
        tables.any(|table| self.of_table(table).any(|device| device == link))
    }

    fn of_table(&self, table: u32) -> impl Iterator<Item = u32> {
        self.devices.iter().filter(move |(number, _)| *number == table).map(|(_, device)| *device)
    }

    fn names(&self, links: &[u32]) -> String {
        links.iter().map(|link| self.name(*link)).collect::<Vec<_>>().join(" or ")
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

impl fib::FibRule {
    /// The table that it leads to, unless that is one of the kernel's own.
    fn policy_table(&self) -> Option<u32> {
        match self.action {
            Action::Lookup(table) => Some(table).filter(|table| !matches!(table, 0 | 253..=255)),
            _ => None,
        }
    }
}

/// Whether the address is one that rules and routes of this node alone decide about: no multicast or broadcast
/// address, not that of nobody, and no link-local one, whose link would have to be known.
pub fn is_routable(address: IpAddr) -> bool {
    let class_e = matches!(address, IpAddr::V4(address) if address.octets()[0] >= 224);
    let link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    !(class_e || link_local || address.is_multicast() || address.is_unspecified())
}

/// The prefix of one address alone.
pub fn host(address: IpAddr) -> IpCidr {
    IpCidr::new_host(address)
}
