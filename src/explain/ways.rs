//! The ways by which a packet leaves the node, and whether its sender belongs there.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::SourceLinks;
use super::fib::Packet;
use super::judge::{Judge, Verdicts, named};
use super::leg::{Leg, distinct};
use super::lookup::Ending;
use super::places::Place;
use crate::model::{TABLE_MAIN, is_link_local};

impl Judge<'_> {
    /// The beginning of a sentence about the interfaces by which a packet leaves and should not.
    fn leaves_by(&self, outs: &[u32], wrong: &[u32]) -> String {
        let verb = if wrong.len() < outs.len() { "may leave" } else { "leaves" };
        format!("the packet {verb} by {}", self.fib.names(wrong))
    }

    /// Reports that a packet leaves the node by interfaces to which its sender does not belong.
    pub(super) fn way_out(&self, leg: &Leg, home: Option<&SourceLinks>, verdicts: &mut Verdicts) {
        let Packet { from, to, .. } = leg.packet;
        let (place, receiver) = (self.place(from), self.place(to));
        let outs = distinct(leg.outs());
        let (exits, cards) = (&self.places.exits, &self.places.cards);
        // A packet to a neighbour that leaves by another link is lost, whatever a network there does with its source.
        let lost = self.neighbour_passed_by(leg, receiver, &outs, verdicts);
        let networks: Vec<u32> =
            outs.iter().copied().filter(|out| exits.contains(out) || !lost && cards.contains(out)).collect();
        self.link_local_source(leg, &outs, verdicts);
        let holders = place.holders();
        let not_of = |right: &BTreeSet<u32>| -> Vec<u32> {
            networks.iter().copied().filter(|out| !right.contains(out)).collect()
        };
        let Some(home) = home else {
            let lost: Vec<u32> = outs.iter().copied().filter(|out| exits.contains(out)).collect();
            if self.fell_for_want_of_a_table(leg) && !lost.is_empty() {
                verdicts.problem(format!(
                    "{}{}, but {from} belongs to another uplink, and nothing on this node shows which one",
                    self.fallen(leg),
                    self.leaves_by(&outs, &lost)
                ));
                return;
            }
            return self.subnet_elsewhere(from, place, &outs, &not_of(&holders), verdicts);
        };
        let wrong = not_of(&home.links.iter().copied().collect());
        let of_exits: Vec<u32> = wrong.iter().copied().filter(|out| exits.contains(out)).collect();
        if home.proven && !of_exits.is_empty() {
            let links = self.fib.names(&home.links);
            let carried = place.is_own() && home.links.iter().all(|link| place.carriers.contains(link));
            let belongs = match carried {
                true => format!("is an address of {links}"),
                false => format!("belongs to {links} ({})", home.because),
            };
            verdicts.problem(format!(
                "{}{}, but {from} {belongs}; a network that checks sources, as clouds do, drops it there, unless its \
                 source is translated (NAT is not considered)",
                self.fallen(leg),
                self.leaves_by(&outs, &of_exits),
            ));
            return;
        }
        if !home.others.is_empty() {
            let (links, others) = (self.fib.names(&home.links), self.fib.names(&home.others));
            let of_cni = format!("; if it is a pod of {others}, its rule is gone (the CNI's has priority 1536)");
            verdicts.note(format!(
                "{from} is also in a subnet of {others}, and no rule shows where it belongs; assumed: {links}, by \
                 which it leaves{}",
                if self.places.vpc_cni { &of_cni } else { "" }
            ));
        }
        // A table may use an uplink to whose subnets its source does not belong.
        let site = place.site.map(|site| site.link);
        let of_others = holders.iter().any(|link| Some(*link) != site);
        if !home.proven || place.is_own() || of_others {
            self.subnet_elsewhere(from, place, &outs, &not_of(&holders), verdicts);
        }
    }

    /// Whether a pod leaves by uplinks in whose subnet it is, while its table uses others whose subnets are known and
    /// do not contain it: then the table is wrong.
    pub(super) fn subnet_contradicts(&self, place: &Place, home: &[u32], outs: &[u32]) -> bool {
        let holders = place.holders();
        let ways: Vec<u32> = outs.iter().copied().filter(|out| self.places.exits.contains(out)).collect();
        !place.is_own()
            && !ways.is_empty()
            && ways.iter().all(|out| holders.contains(out))
            && home.iter().all(|link| self.places.subnets.contains_key(link) && !holders.contains(link))
    }

    /// Notes that a packet leaves by other interfaces than those in whose subnet its source is.
    fn subnet_elsewhere(&self, from: IpAddr, place: &Place, outs: &[u32], wrong: &[u32], verdicts: &mut Verdicts) {
        let holders: Vec<u32> = place.holders().into_iter().collect();
        // The subnet of an uplink with only /32 and /128 addresses is not known.
        let is_local = place.site.is_some_and(|site| holders.contains(&site.link));
        let known = |link: &u32| place.is_own() || is_local || self.places.subnets.contains_key(link);
        let wrong: Vec<u32> = wrong.iter().copied().filter(known).collect();
        if holders.is_empty() || wrong.is_empty() {
            return;
        }
        let is = match place.is_own() && !holders.iter().any(|link| self.places.subnet(*link, from).is_some()) {
            true => "is an address of",
            false => "is in a subnet of",
        };
        verdicts.note(format!(
            "{}, but {from} {is} {}: a network that checks sources drops it, unless its source is translated (NAT is \
             not considered)",
            self.leaves_by(outs, &wrong),
            self.fib.names(&holders)
        ));
    }

    /// Whether one of these leads out of the node.
    pub(super) fn is_exit(&self, links: &[u32]) -> bool {
        links.iter().any(|link| self.places.exits.contains(link))
    }

    /// Notes that the destination is a neighbour on one link, or behind another, but an earlier rule sends the packet
    /// elsewhere.
    fn neighbour_passed_by(&self, leg: &Leg, receiver: &Place, outs: &[u32], verdicts: &mut Verdicts) -> bool {
        let Packet { to, .. } = leg.packet;
        let (Ending::Route(routes), Some(step)) = (&leg.lookup.end, leg.lookup.steps.last()) else { return false };
        let rule = named(&step.rule);
        if let Some(link) = receiver.behind.filter(|link| receiver.site.is_none() && !outs.contains(link)) {
            let route = self.route_to(to, link, TABLE_MAIN).map(|route| self.fib.show(route)).unwrap_or_default();
            verdicts.note(format!(
                "{to} is behind {} ({route}), but {rule} comes before it and sends the packet to {}",
                self.fib.name(link),
                self.fib.names(outs)
            ));
        } else if let Some(link) = receiver.neighbours.first().filter(|_| self.elsewhere(receiver, routes, outs)) {
            verdicts.note(format!(
                "{to} is in a subnet of {} ({}), but {rule} comes before it and sends the packet to {}",
                self.fib.names(&receiver.neighbours),
                self.subnet(*link, to),
                self.fib.names(outs)
            ));
            return true;
        }
        false
    }

    /// Notes that routers do not forward packets from a link-local address.
    fn link_local_source(&self, leg: &Leg, outs: &[u32], verdicts: &mut Verdicts) {
        let via = leg.lookup.ways_out().any(|hop| hop.via.is_some());
        if via && self.is_exit(outs) && is_link_local(leg.packet.from) {
            let from = leg.packet.from;
            verdicts.note(format!("routers do not forward packets from {from}, unless its source is translated"));
        }
    }
}
