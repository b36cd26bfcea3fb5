//! What breaks, and what may be wrong: a packet has to leave by a link to which its sender belongs, and its reply has to
//! come back.

use std::net::IpAddr;

use super::fib::{Action, Ending, Fib, FibRoute, FibRule, Kind, Packet, Step, What};
use super::leg::{Leg, distinct};
use super::places::{Place, Places, is_link_local};
use super::{Home, Origin, host};
use crate::net::{TABLE_MAIN, table_name};
use crate::topology::cni::TO_POD;
use crate::topology::homes::Evidence;

const IN_SUBNET: &str = "it lies in a subnet there";

/// The node, as the explanation of a packet from `source` sees it.
pub(super) struct Judge<'a> {
    pub fib: &'a Fib,
    pub places: &'a Places,
    pub source: IpAddr,
}

/// What has been found so far.
#[derive(Default)]
pub(super) struct Told {
    pub problems: Vec<String>,
    pub notes: Vec<String>,
}

impl Told {
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

    /// What a source is to this node.
    pub fn origin(&self, source: IpAddr, destination: IpAddr) -> (Origin, String) {
        let place = self.place(source);
        if let Some(site) = place.site {
            let route = self.route_to(source, site.link, site.table);
            let shown = route.map_or_else(String::new, |route| self.fib.show(route));
            return match site.by_host_route {
                true => (Origin::Pod(site.link), format!("it has the host route {shown}")),
                false => {
                    let subnet = self.subnet(site.link, source);
                    (Origin::Behind(site.link), format!("it lies in the subnet {subnet} there"))
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
                (Origin::Nowhere, format!("{neither}, and no route leads to it; assumed: the node itself sends"))
            }
        }
    }

    fn neither(&self, source: IpAddr) -> String {
        format!("{source} is neither a pod's address (no host route leads to it) nor one of this node")
    }

    /// The interface by which a packet from elsewhere is taken to come in, and why.
    ///
    /// The network beyond brings it to where the destination belongs, and asks nobody for the way back; only a neighbour
    /// on a link of the destination comes in by that link, and what lies behind a tunnel by the tunnel.
    fn arrival(&self, source: IpAddr, destination: IpAddr) -> Option<(u32, String)> {
        let place = self.place(source);
        let iif = self.place(destination).site.map(|site| site.link);
        let outs = distinct(self.fib.lookup(&Packet { from: destination, to: source, iif }).outs());
        let prefer = |links: &[u32]| links.iter().find(|link| outs.contains(link)).or(links.first()).copied();
        let there =
            |links: &[u32], because: &str| Some((prefer(links)?, format!("where {destination} belongs ({because})")));
        if let Some(link) = place.behind {
            let route = self.route_to(source, link, TABLE_MAIN).map(|route| self.fib.show(route));
            return Some((link, format!("where {} leads", route.unwrap_or_default())));
        }
        // What only a subnet suggests has to agree with the way back.
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
            return Some((*link, format!("in whose subnet {} it lies", self.subnet(*link, source))));
        }
        let link = on_link.first().or(outs.first())?;
        Some((*link, "where the route to it leads".into()))
    }

    /// The uplinks that a source belongs to, where its packets leave by these interfaces.
    pub fn home(&self, place: &Place, source: IpAddr, outs: &[u32]) -> Option<Home> {
        let home = place.home.as_ref()?;
        let all: Vec<u32> = home.links.iter().copied().collect();
        let because = match home.evidence {
            Evidence::Address => format!("{source} is an address of {}", self.fib.names(&all)),
            Evidence::Table(table) => format!("its table {} leads there", table_name(table)),
            Evidence::SourceOfTable(table) => {
                format!("the address that another rule leads to its table {} is there", table_name(table))
            }
            Evidence::Subnet => IN_SUBNET.into(),
        };
        let by_subnet = home.evidence == Evidence::Subnet;
        if self.subnet_contradicts(place, &all, outs) {
            let links = outs.to_vec();
            return Some(Home { links, others: Vec::new(), because: IN_SUBNET.into(), proven: false });
        }
        if home.proven && !by_subnet {
            return Some(Home { links: all, others: Vec::new(), because, proven: true });
        }
        let (mut links, mut others): (Vec<u32>, Vec<u32>) = all.into_iter().partition(|link| outs.contains(link));
        if links.is_empty() {
            (links, others) = (others, Vec::new());
            links.retain(|_| home.proven || outs.is_empty());
        }
        others.retain(|_| by_subnet);
        (!links.is_empty()).then_some(Home { links, others, because, proven: home.proven })
    }

    /// Whether the address is a pod's, or one of this node.
    pub fn is_here(&self, address: IpAddr) -> bool {
        let place = self.place(address);
        place.site.is_some() || place.is_own() || self.fib.is_own(address)
    }

    /// Whether it is for the node itself, or for a pod or another host behind a local link and goes there.
    pub fn stays_here(&self, leg: &Leg) -> bool {
        let site = self.place(leg.packet.to).site;
        let mut outs = leg.outs().peekable();
        leg.is_local() || outs.peek().is_some() && outs.all(|out| site.is_some_and(|site| site.link == out))
    }

    /// Where the destination is a pod of this node, or behind another local link, and the packet leaves the node: the
    /// link where it is, and the words for it.
    ///
    /// Not for pods with security groups of their own: what comes from them is sent beyond the node, and what goes to
    /// them comes in again by their own uplink.
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
                "{to} is behind {name} ({}), but the packet leaves by {names}: no earlier rule leads to that route{}",
                shown.unwrap_or_default(),
                if self.places.vpc_cni { &of_cni } else { "" }
            )
        } else {
            let subnet = shown.unwrap_or_else(|| self.subnet(site.link, to));
            format!("{to} lies in a subnet of {name} ({subnet}), but {} takes the packet to {names}", named(taken))
        };
        Some((site.link, why))
    }

    /// Says where the destination is an address of this node that a rule passes by.
    pub fn own_passed_by(&self, request: &Leg, told: &mut Told) {
        let to = request.packet.to;
        if !(self.place(to).is_own() || self.fib.is_own(to)) || request.is_local() {
            return;
        }
        let (Ending::Route(_), Some(step)) = (&request.lookup.end, request.lookup.steps.last()) else { return };
        let names = self.fib.names(&distinct(request.outs()));
        let rule = named(&step.rule);
        let what = format!("{to} is an address of this node, but {rule} comes before its route in the table local");
        match is_link_local(to) {
            true => told.problem(format!(
                "{what} and takes the packet to {names}; no router forwards what goes to a link-local address"
            )),
            false => told
                .note(format!("{what}: the packet leaves by {names}, and arrives only if the network brings it back")),
        }
    }

    /// Says where a local subnet takes the packet, though the destination may be elsewhere: what a container's bridge is
    /// given by default may be in use in the network as well.
    pub fn shadowed(&self, request: &Leg, origin: Origin, told: &mut Told) {
        let Packet { to, .. } = request.packet;
        let Some(site) = self.place(to).site.filter(|site| !site.by_host_route) else { return };
        let doubtful = match origin {
            Origin::Pod(_) => true,
            Origin::Local => self.places.vpc_cni,
            Origin::Behind(_) | Origin::Other(_) | Origin::Nowhere => false,
        };
        if doubtful && !request.is_local() && self.stays_here(request) {
            let (name, subnet) = (self.fib.name(site.link), self.subnet(site.link, to));
            told.note(format!("{subnet} of {name} takes the packet; if {to} is elsewhere, it does not get there"));
        }
    }

    /// Where a reply goes, if not to where the packet came from.
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

    /// Whether a neighbour is not where the routes lead: to another link, without a gateway or where no network is.
    pub fn elsewhere(&self, place: &Place, routes: &[FibRoute], outs: &[u32]) -> bool {
        let on_link = routes.iter().flat_map(FibRoute::alive).all(|hop| hop.via.is_none());
        let no_network = outs.iter().all(|out| !self.places.exits.contains(out));
        !place.neighbours.is_empty()
            && !outs.is_empty()
            && outs.iter().all(|out| !place.neighbours.contains(out))
            && (on_link || no_network)
    }

    /// Says where the rule of a pod's link names another table than the one that has the pod's route.
    pub fn strays(&self, addresses: &[IpAddr], told: &mut Told) {
        for &address in addresses {
            let place = self.place(address);
            let (Some(site), Some(named_table)) = (place.site, place.stray) else { continue };
            let (route, link) = (self.route_to(address, site.link, site.table), self.fib.link(site.link));
            let behind = |rule: &&FibRule| {
                link.is_some_and(|link| rule.is_behind(&link.name)) && rule.action == Action::Lookup(named_table)
            };
            let Some((route, rule)) = route.zip(self.fib.rules.iter().find(behind)) else { continue };
            told.problem(format!(
                "table {} has the route to {address} ({}), but {} leads to table {}",
                table_name(site.table),
                self.fib.show(route),
                named(rule),
                table_name(named_table)
            ));
        }
    }

    /// Says where there are rules as for a pod, and no route to it but a default or the subnet of an uplink.
    pub fn rules_without_route(&self, destination: IpAddr, source: IpAddr, told: &mut Told) {
        let sends = self.fib.rules.iter().any(|rule| rule.is_of(source));
        if !sends && !self.has_rule_of_pod(source) {
            return;
        }
        let iif = self.place(destination).site.map(|site| site.link);
        let back = self.fib.lookup(&Packet { from: destination, to: source, iif });
        let neighbours = &self.place(source).neighbours;
        let to_it = back.routes().iter().find(|route| {
            route.to.network_length() > 1
                && !route.hops.iter().any(|hop| hop.oif.is_some_and(|it| neighbours.contains(&it)))
        });
        let alone = format!("there are rules for {source} alone, as for a pod, but no host route to it");
        match to_it {
            Some(route) => told.note(format!("{alone}; {} leads to it", self.fib.show(route))),
            // A neighbour may have rules of its own, and one that has gone may have left its rule 512.
            None if sends && (self.places.vpc_cni || neighbours.is_empty()) => {
                told.problem(format!("{alone}: the pod's interface or route is gone"));
            }
            None => told.note(format!("{alone}: if it is a pod's, its interface or route is gone")),
        }
    }

    /// Notes that the destination has the VPC CNI's rule of a pod, and no route of its own: the pod may be here without
    /// it, or elsewhere now, and the rule left over.
    pub fn pod_without_route(&self, request: &Leg, told: &mut Told) {
        let to = request.packet.to;
        let mut lengths = request.lookup.routes().iter().map(|route| route.to).peekable();
        if self.is_here(to)
            || !self.has_rule_of_pod(to)
            || lengths.peek().is_none()
            || lengths.any(|it| it.is_host_address())
        {
            return;
        }
        told.note(format!(
            "there is a rule {TO_POD} to {to}, as for a pod, but no host route to it: if its pod is here, its interface or \
             route is gone"
        ));
    }

    /// Whether the VPC CNI has a rule to this address.
    fn has_rule_of_pod(&self, address: IpAddr) -> bool {
        let to = Some(host(address));
        let is_it =
            |rule: &FibRule| rule.priority == TO_POD && rule.to == to && rule.action == Action::Lookup(TABLE_MAIN);
        self.places.vpc_cni && self.fib.rules.iter().any(is_it)
    }

    /// Whether a rule is for what this source sends: by its address or subnet, or by the link of the pod.
    fn is_rule_of(&self, source: IpAddr, rule: &FibRule) -> bool {
        let by_address = rule.from.is_some_and(|from| from.network_length() > 0 && from.contains(&source));
        rule.policy_table().is_some() && (by_address && !rule.not || self.is_behind_link_of(source, rule))
    }

    fn is_behind_link_of(&self, pod: IpAddr, rule: &FibRule) -> bool {
        let link = self.place(pod).site.and_then(|site| self.fib.link(site.link));
        rule.policy_table().is_some() && link.is_some_and(|link| rule.is_behind(&link.name))
    }

    fn fallen_steps<'s>(&self, leg: &'s Leg) -> impl Iterator<Item = (&'s Step, &'s str)> {
        let own = leg.lookup.steps.iter().filter(|step| self.is_rule_of(leg.packet.from, &step.rule));
        own.filter_map(|step| match &step.what {
            What::FellThrough(why) => Some((step, why.as_str())),
            _ => None,
        })
    }

    /// The rules of the sender alone that led nowhere, as the beginning of a sentence.
    pub fn fallen(&self, leg: &Leg) -> String {
        self.fallen_steps(leg).map(|(step, why)| format!("{} falls through: {why}; so ", named(&step.rule))).collect()
    }

    /// Whether a rule of the sender's own led to an empty table, and so the packet goes where others do.
    pub fn fell_for_want_of_a_table(&self, leg: &Leg) -> bool {
        let source = leg.packet.from;
        let decided = leg.lookup.steps.last().is_some_and(|step| self.is_rule_of(source, &step.rule));
        let is_empty = |rule: &FibRule| rule.policy_table().is_some_and(|table| !self.fib.tables.contains(&table));
        let own = |rule: &FibRule| rule.is_of(source) || self.is_behind_link_of(source, rule);
        !decided && self.fallen_steps(leg).any(|(step, _)| own(&step.rule) && is_empty(&step.rule))
    }

    /// Notes which rules of the sender alone led nowhere, where no problem says so.
    pub fn tell_fallen(&self, leg: &Leg, told: &mut Told) {
        let fallen = self.fallen(leg);
        if fallen.is_empty() || !self.is_here(leg.packet.from) || told.problems.iter().any(|it| it.contains(&fallen)) {
            return;
        }
        let what = match &leg.lookup.end {
            Ending::Route(_) if leg.is_local() => "the packet stays on this node".into(),
            Ending::Route(_) => format!("the packet leaves by {}", self.fib.names(&distinct(leg.outs()))),
            Ending::Refused(by) => format!("the packet is dropped by {by}"),
            Ending::NoRoute => "no rule leads to a route".into(),
            Ending::Unknown(_) => "it is not known which way the packet takes".into(),
        };
        told.note(format!("{fallen}{what}"));
    }

    /// The route to an address over a link, the narrowest of the table.
    pub fn route_to(&self, address: IpAddr, link: u32, table: u32) -> Option<&FibRoute> {
        let fits = |route: &&FibRoute| {
            route.table == table
                && route.kind == Kind::Unicast
                && route.to.contains(&address)
                && route.hops.iter().any(|hop| hop.oif == Some(link))
        };
        self.fib.routes.iter().filter(fits).max_by_key(|route| route.to.network_length())
    }

    pub fn subnet(&self, link: u32, address: IpAddr) -> String {
        self.places.subnet(link, address).unwrap_or_else(|| host(address)).to_string()
    }
}

/// A rule by its priority, and what it says.
pub(super) fn named(rule: &FibRule) -> String {
    format!("rule {} ({rule})", rule.priority)
}
