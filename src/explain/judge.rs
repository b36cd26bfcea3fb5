//! What breaks, and what may be wrong: a packet must leave by a link to which its sender belongs, and its reply must
//! come back. This is one list of verdicts, which is why it is long.

use std::net::IpAddr;

use super::fib::{Fib, Flow, Packet};
use super::leg::{Leg, distinct};
use super::lookup::{Ending, LookupStep, What};
use super::places::{Place, Places};
use super::{Origin, SourceLinks, host};
use crate::model::{TABLE_MAIN, is_link_local, table_name};
use crate::observed::{RuleAction, SeenRoute, SeenRule};
use crate::topology::cni::TO_POD;
use crate::topology::homes::Evidence;

const IN_SUBNET: &str = "it is in a subnet there";

/// The node, as seen by the explanation of a packet from `source`.
pub(super) struct Judge<'a> {
    pub fib: &'a Fib,
    pub places: &'a Places,
    pub source: IpAddr,
    /// What the packet from there is, beside its addresses.
    pub flow: Flow,
}

/// The verdicts so far.
#[derive(Default)]
pub(super) struct Verdicts {
    pub problems: Vec<String>,
    pub notes: Vec<String>,
}

impl Verdicts {
    pub fn problem(&mut self, what: String) {
        if !self.problems.contains(&what) {
            self.problems.push(what);
        }
    }

    pub fn problems(&mut self, all: impl IntoIterator<Item = String>) {
        all.into_iter().for_each(|what| self.problem(what));
    }

    pub fn note(&mut self, what: String) {
        if !self.notes.contains(&what) {
            self.notes.push(what);
        }
    }
}

impl Judge<'_> {
    pub fn place(&self, address: IpAddr) -> &Place {
        if address == self.source { &self.places.source } else { &self.places.destination }
    }

    /// How a source relates to this node.
    pub fn origin(&self, source: IpAddr, destination: IpAddr) -> (Origin, String) {
        let place = self.place(source);
        if let Some(site) = place.site {
            let route = self.route_to(source, site.link, site.table);
            let shown = route.map_or_else(String::new, |route| self.fib.show(route));
            return match site.by_host_route {
                true => (Origin::Pod(site.link), format!("it has the host route {shown}")),
                false => {
                    let subnet = self.subnet(site.link, source);
                    (Origin::Behind(site.link), format!("it is in the subnet {subnet} there"))
                }
            };
        }
        if place.is_own() || self.fib.is_own(source) {
            return (Origin::Local, "an address of this node".into());
        }
        match self.arrival(source, destination) {
            Some((link, why)) => {
                let name = self.fib.name(link);
                (Origin::Other(link), format!("{}; assumed: it comes in by {name}, {why}", self.neither(source)))
            }
            None => {
                let neither = self.neither(source);
                (Origin::Nowhere, format!("{neither}, and no route leads to it; assumed: the node itself sends it"))
            }
        }
    }

    fn neither(&self, source: IpAddr) -> String {
        format!("{source} is neither a pod's address (it has no host route) nor an address of this node")
    }

    /// The assumed incoming interface of a packet from elsewhere, and why.
    ///
    /// The network delivers it to the link of the destination, by whatever route the reply returns. Only a neighbour on a link of
    /// the destination uses that link, and a source behind a tunnel uses the tunnel.
    fn arrival(&self, source: IpAddr, destination: IpAddr) -> Option<(u32, String)> {
        let place = self.place(source);
        let iif = self.place(destination).site.map(|site| site.link);
        let outs =
            distinct(self.fib.lookup(&Packet { from: destination, to: source, iif, flow: self.flow.reply() }).outs());
        let prefer = |links: &[u32]| links.iter().find(|link| outs.contains(link)).or(links.first()).copied();
        let there =
            |links: &[u32], because: &str| Some((prefer(links)?, format!("where {destination} belongs ({because})")));
        if let Some(link) = place.behind {
            let route = self.route_to(source, link, TABLE_MAIN).map(|route| self.fib.show(route));
            return Some((link, format!("where {} leads", route.unwrap_or_default())));
        }
        // If only a subnet suggests it, the way back must agree.
        let belongs = self.place(destination);
        let home = self.home(belongs, destination, if belongs.is_own() { &[] } else { &outs });
        let home = home.filter(|_| self.is_here(destination));
        let by_tunnel = !outs.is_empty() && !self.is_exit(&outs);
        if let Some(home) = &home {
            let near: Vec<u32> = home.links.iter().copied().filter(|link| place.neighbours.contains(link)).collect();
            match near.as_slice() {
                [] if !place.neighbours.is_empty() && !home.proven => {}
                [] if place.neighbours.is_empty() && by_tunnel => {}
                [] => return there(&home.links, &home.because),
                near => return there(near, &home.because),
            }
        }
        let on_link: Vec<u32> = outs.iter().copied().filter(|link| place.neighbours.contains(link)).collect();
        if let (Some(link), []) = (place.neighbours.first(), on_link.as_slice()) {
            return Some((*link, format!("in whose subnet {} it is", self.subnet(*link, source))));
        }
        let link = on_link.first().or(outs.first())?;
        Some((*link, "where the route to it leads".into()))
    }

    /// The uplinks that a source belongs to, if its packets leave by these interfaces.
    pub fn home(&self, place: &Place, source: IpAddr, outs: &[u32]) -> Option<SourceLinks> {
        let home = place.home.as_ref()?;
        let all: Vec<u32> = home.links.iter().copied().collect();
        let because = match home.evidence {
            Evidence::Address => format!("{source} is an address of {}", self.fib.names(&all)),
            Evidence::Table(table) => format!("its table {} uses it", table_name(table)),
            Evidence::SourceOfTable(table) => {
                format!("the source address of another rule for its table {} is there", table_name(table))
            }
            Evidence::Subnet => IN_SUBNET.into(),
        };
        let by_subnet = home.evidence == Evidence::Subnet;
        if self.subnet_contradicts(place, &all, outs) {
            let links = outs.to_vec();
            return Some(SourceLinks { links, others: Vec::new(), because: IN_SUBNET.into(), proven: false });
        }
        if home.proven && !by_subnet {
            return Some(SourceLinks { links: all, others: Vec::new(), because, proven: true });
        }
        let (mut links, mut others): (Vec<u32>, Vec<u32>) = all.into_iter().partition(|link| outs.contains(link));
        if links.is_empty() {
            (links, others) = (others, Vec::new());
            links.retain(|_| home.proven || outs.is_empty());
        }
        others.retain(|_| by_subnet);
        (!links.is_empty()).then_some(SourceLinks { links, others, because, proven: home.proven })
    }

    /// Whether the address is a pod's, or one of this node.
    pub fn is_here(&self, address: IpAddr) -> bool {
        let place = self.place(address);
        place.site.is_some() || place.is_own() || self.fib.is_own(address)
    }

    /// Whether the packet is for the node itself, or for a pod or another host behind a local link and goes there.
    pub fn stays_here(&self, leg: &Leg) -> bool {
        let site = self.place(leg.packet.to).site;
        let mut outs = leg.outs().peekable();
        leg.is_local() || outs.peek().is_some() && outs.all(|out| site.is_some_and(|site| site.link == out))
    }

    /// The local link of the destination and its description, if the destination is a pod of this node or behind
    /// another local link, but the packet leaves the node.
    ///
    /// Not for pods with their own security groups: their packets are sent to the network, and packets to them come in
    /// again by their own uplink.
    pub fn bypassed(&self, request: &Leg, outs: &[u32]) -> Option<(u32, String)> {
        let Packet { from, to, .. } = request.packet;
        let site = self.place(to).site.filter(|site| site.table == TABLE_MAIN)?;
        if outs.is_empty() || outs.contains(&site.link) {
            return None;
        }
        let taken = &request.lookup.steps.last()?.rule;
        if site.by_host_route && self.is_behind_link_of(from, taken) {
            return None;
        }
        let (name, names) = (self.fib.name(site.link), self.fib.names(outs));
        let shown = self.route_to(to, site.link, site.table).map(|route| self.fib.show(route));
        let why = if site.by_host_route {
            let rule = format!("to {to} lookup {}", table_name(TABLE_MAIN));
            let of_cni = format!(" (the CNI's is: priority 512 {rule})");
            format!(
                "{to} is behind {name} ({}), but the packet leaves by {names}: no earlier rule uses that route{}",
                shown.unwrap_or_default(),
                if self.places.vpc_cni { &of_cni } else { "" }
            )
        } else {
            let subnet = shown.unwrap_or_else(|| self.subnet(site.link, to));
            format!("{to} is in a subnet of {name} ({subnet}), but {} sends the packet to {names}", named(taken))
        };
        Some((site.link, why))
    }

    /// Reports that a rule comes before the local route to an address of this node.
    pub fn own_passed_by(&self, request: &Leg, verdicts: &mut Verdicts) {
        let to = request.packet.to;
        if !(self.place(to).is_own() || self.fib.is_own(to)) || request.is_local() {
            return;
        }
        let (Ending::Route(_), Some(step)) = (&request.lookup.end, request.lookup.steps.last()) else { return };
        let names = self.fib.names(&distinct(request.outs()));
        let rule = named(&step.rule);
        let what = format!("{to} is an address of this node, but {rule} comes before its route in the table local");
        match is_link_local(to) {
            true => verdicts.problem(format!(
                "{what} and sends the packet to {names}; routers do not forward packets to a link-local address"
            )),
            false => verdicts
                .note(format!("{what}: the packet leaves by {names}, and arrives only if the network sends it back")),
        }
    }

    /// Reports that a local subnet takes the packet, though the destination may be elsewhere: the default subnet of a
    /// container bridge may be in use in the network as well.
    pub fn shadowed(&self, request: &Leg, origin: Origin, verdicts: &mut Verdicts) {
        let Packet { to, .. } = request.packet;
        let Some(site) = self.place(to).site.filter(|site| !site.by_host_route) else { return };
        let doubtful = match origin {
            Origin::Pod(_) => true,
            Origin::Local => self.places.vpc_cni,
            Origin::Behind(_) | Origin::Other(_) | Origin::Nowhere => false,
        };
        if doubtful && !request.is_local() && self.stays_here(request) {
            let (name, subnet) = (self.fib.name(site.link), self.subnet(site.link, to));
            verdicts.note(format!(
                "{subnet} of {name} takes the packet; if {to} is elsewhere, the packet does not get there"
            ));
        }
    }

    /// Where a reply goes, if not back to the sender.
    pub fn astray(&self, reply: &Leg, origin: Origin) -> Option<String> {
        let Packet { to, .. } = reply.packet;
        let Ending::Route(routes) = &reply.lookup.end else { return None };
        let route = self.fib.show(routes.first()?);
        let outs = distinct(reply.outs());
        let goes = |where_to: String| Some(format!("the reply to {to} does not go to {where_to}, but takes {route}"));
        match origin {
            Origin::Pod(link) | Origin::Behind(link) if !outs.contains(&link) => goes(self.fib.name(link)),
            Origin::Local if !reply.is_local() && reply.packet.iif.is_some() => goes("this node".into()),
            Origin::Other(link) if self.is_here(reply.packet.from) && !outs.contains(&link) => {
                let place = self.place(to);
                let lost = place.behind == Some(link) || self.elsewhere(place, routes, &outs);
                if lost { goes(self.fib.name(link)) } else { None }
            }
            _ => None,
        }
    }

    /// Whether a neighbour is not where the routes lead: they use another link, without a gateway or without a network
    /// behind it.
    pub fn elsewhere(&self, place: &Place, routes: &[SeenRoute], outs: &[u32]) -> bool {
        let on_link = routes.iter().flat_map(SeenRoute::alive).all(|hop| hop.via.is_none());
        let no_network = outs.iter().all(|out| !self.places.exits.contains(out));
        !place.neighbours.is_empty()
            && !outs.is_empty()
            && outs.iter().all(|out| !place.neighbours.contains(out))
            && (on_link || no_network)
    }

    /// Reports that the rule of a pod's link names another table than the one with the pod's route.
    pub fn strays(&self, addresses: &[IpAddr], verdicts: &mut Verdicts) {
        for &address in addresses {
            let place = self.place(address);
            let (Some(site), Some(named_table)) = (place.site, place.stray) else { continue };
            let (route, link) = (self.route_to(address, site.link, site.table), self.fib.link(site.link));
            let behind = |rule: &&SeenRule| {
                link.is_some_and(|link| rule.is_behind(&link.dev.name))
                    && rule.action() == RuleAction::Lookup(named_table)
            };
            let Some((route, rule)) = route.zip(self.fib.rules.iter().find(behind)) else { continue };
            verdicts.problem(format!(
                "table {} has the route to {address} ({}), but {} uses table {}",
                table_name(site.table),
                self.fib.show(route),
                named(rule),
                table_name(named_table)
            ));
        }
    }

    /// Reports that there are rules as for a pod, but no route to it except a default or the subnet of an uplink.
    pub fn rules_without_route(&self, destination: IpAddr, source: IpAddr, verdicts: &mut Verdicts) {
        let sends = self.fib.rules.iter().any(|rule| rule.is_of(source));
        if !sends && !self.has_rule_of_pod(source) {
            return;
        }
        let iif = self.place(destination).site.map(|site| site.link);
        let back = self.fib.lookup(&Packet { from: destination, to: source, iif, flow: self.flow.reply() });
        let neighbours = &self.place(source).neighbours;
        let to_it = back.routes().iter().find(|route| {
            route.to.network_length() > 1
                && !route.all_hops().iter().any(|hop| hop.oif.is_some_and(|it| neighbours.contains(&it)))
        });
        let alone = format!("there are rules for {source} alone, as for a pod, but no host route to it");
        match to_it {
            Some(route) => verdicts.note(format!("{alone}; {} leads to it", self.fib.show(route))),
            // A neighbour may have its own rules, and a deleted one may have left its rule 512.
            None if sends && (self.places.vpc_cni || neighbours.is_empty()) => {
                verdicts.problem(format!("{alone}: the pod's interface or route is gone"));
            }
            None => verdicts.note(format!("{alone}: if it is a pod's, its interface or route is gone")),
        }
    }

    /// Notes that the destination has the VPC CNI's rule for a pod, but no route of its own: either the pod has lost
    /// its route, or it is elsewhere now and left the rule.
    pub fn pod_without_route(&self, request: &Leg, verdicts: &mut Verdicts) {
        let to = request.packet.to;
        let mut lengths = request.lookup.routes().iter().map(|route| route.to).peekable();
        if self.is_here(to)
            || !self.has_rule_of_pod(to)
            || lengths.peek().is_none()
            || lengths.any(|it| it.is_host_address())
        {
            return;
        }
        verdicts.note(format!(
            "there is a rule {TO_POD} for {to}, as for a pod, but no host route to it: if its pod is here, its \
             interface or route is gone"
        ));
    }

    /// Whether the VPC CNI has a rule for this address.
    fn has_rule_of_pod(&self, address: IpAddr) -> bool {
        let to = Some(host(address));
        let leads_to_main = |rule: &SeenRule| rule.action() == RuleAction::Lookup(TABLE_MAIN);
        let is_it = |it: &SeenRule| it.rule.priority == TO_POD && it.rule.selector.to == to && leads_to_main(it);
        self.places.vpc_cni && self.fib.rules.iter().any(is_it)
    }

    /// Whether a rule is for packets from this source: by its address or subnet, or by the link of the pod.
    fn is_rule_of(&self, source: IpAddr, rule: &SeenRule) -> bool {
        let by_address =
            rule.rule.selector.from.is_some_and(|from| from.network_length() > 0 && from.contains(&source));
        rule.policy_table().is_some() && (by_address && !rule.extras().not || self.is_behind_link_of(source, rule))
    }

    fn is_behind_link_of(&self, pod: IpAddr, rule: &SeenRule) -> bool {
        let link = self.place(pod).site.and_then(|site| self.fib.link(site.link));
        rule.policy_table().is_some() && link.is_some_and(|link| rule.is_behind(&link.dev.name))
    }

    fn fallen_steps<'s>(&self, leg: &'s Leg) -> impl Iterator<Item = (&'s LookupStep, &'s str)> {
        let own = leg.lookup.steps.iter().filter(|step| self.is_rule_of(leg.packet.from, &step.rule));
        own.filter_map(|step| match &step.what {
            What::FellThrough(why) => Some((step, why.as_str())),
            _ => None,
        })
    }

    /// The sender's own rules that gave no route, as the beginning of a sentence.
    pub fn fallen(&self, leg: &Leg) -> String {
        self.fallen_steps(leg).map(|(step, why)| format!("{} falls through: {why}; so ", named(&step.rule))).collect()
    }

    /// Whether a rule of the sender's own uses an empty table, so that the packet takes the way of others.
    pub fn fell_for_want_of_a_table(&self, leg: &Leg) -> bool {
        let source = leg.packet.from;
        let decided = leg.lookup.steps.last().is_some_and(|step| self.is_rule_of(source, &step.rule));
        let is_empty = |rule: &SeenRule| rule.policy_table().is_some_and(|table| !self.fib.tables.contains(&table));
        let own = |rule: &SeenRule| rule.is_of(source) || self.is_behind_link_of(source, rule);
        !decided && self.fallen_steps(leg).any(|(step, _)| own(&step.rule) && is_empty(&step.rule))
    }

    /// Notes which of the sender's own rules gave no route, unless a problem says so.
    pub fn note_fallen(&self, leg: &Leg, verdicts: &mut Verdicts) {
        let fallen = self.fallen(leg);
        if fallen.is_empty()
            || !self.is_here(leg.packet.from)
            || verdicts.problems.iter().any(|it| it.contains(&fallen))
        {
            return;
        }
        let what = match &leg.lookup.end {
            Ending::Route(_) if leg.is_local() => "the packet stays on this node".into(),
            Ending::Route(_) => format!("the packet leaves by {}", self.fib.names(&distinct(leg.outs()))),
            Ending::Refused(by) => format!("the packet is dropped by {by}"),
            Ending::NoRoute => "no rule gives a route".into(),
            Ending::Unknown(_) => "its way is not known".into(),
        };
        verdicts.note(format!("{fallen}{what}"));
    }

    /// The most specific route of the table to an address over a link.
    pub fn route_to(&self, address: IpAddr, link: u32, table: u32) -> Option<&SeenRoute> {
        let fits = |route: &&SeenRoute| {
            route.table == table
                && route.special().is_none()
                && route.to.contains(&address)
                && route.hops().iter().any(|hop| hop.oif == Some(link))
        };
        self.fib.routes.iter().filter(fits).max_by_key(|route| route.to.network_length())
    }

    pub fn subnet(&self, link: u32, address: IpAddr) -> String {
        self.places.subnet(link, address).unwrap_or_else(|| host(address)).to_string()
    }
}

/// A rule by its priority and content.
pub(super) fn named(rule: &SeenRule) -> String {
    format!("rule {} ({rule})", rule.rule.priority)
}
