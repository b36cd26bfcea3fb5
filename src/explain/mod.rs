//! What happens to a packet and to its reply, and where it breaks: pure, over what was seen of the node.
//!
//! [`explain`] answers from rules, routes and settings ([`fib`], [`leg`]) and from what the addresses are to this node
//! ([`places`], which asks the topology); [`judge`] and [`ways`] say what breaks and what may be wrong. [`Leg::compare`] then holds
//! each lookup against the kernel's own answer. `sys` reads both. What is shown of it is in [`show`].

pub mod fib;
mod judge;
pub mod leg;
pub mod places;
pub mod show;
#[cfg(test)]
mod tests;
mod ways;

use std::net::IpAddr;

use cidr::IpCidr;

use fib::{Fib, Packet};
use judge::{Judge, Told};
use leg::distinct;
pub use leg::{Answer, Check, Leg};
use places::Places;

/// What a source is to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// A host route leads to it: a pod's, behind this interface.
    Pod(u32),
    /// It lies in a subnet of this interface, which is no uplink: a pod's, a container's or a tunnel's.
    Behind(u32),
    /// An address of the node itself.
    Local,
    /// Neither: it is taken to come in by this interface.
    Other(u32),
    /// Neither, and no route leads to it.
    Nowhere,
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
pub fn explain(fib: &Fib, places: &Places, source: IpAddr, destination: IpAddr) -> Explanation {
    let judge = Judge { fib, places, source };
    let (origin, because) = judge.origin(source, destination);
    let iif = match origin {
        Origin::Pod(iif) | Origin::Behind(iif) | Origin::Other(iif) => Some(iif),
        Origin::Local | Origin::Nowhere => None,
    };
    let request = fib.leg(Packet { from: source, to: destination, iif });
    let mut told = Told::default();
    if origin == Origin::Nowhere {
        told.problem(because.clone());
    }
    judge.strays(&[source, destination], &mut told);
    if matches!(origin, Origin::Other(_)) {
        judge.rules_without_route(destination, source, &mut told);
    }
    judge.pod_without_route(&request, &mut told);
    told.problems(fib.trouble(&request, &judge.fallen(&request)));
    let outs = distinct(request.outs());
    let bypassed = judge.bypassed(&request, &outs);
    told.problems(bypassed.iter().map(|(_, why)| why.clone()));
    judge.own_passed_by(&request, &mut told);
    let leaves = !judge.stays_here(&request) && bypassed.is_none();
    let mut home = leaves.then(|| judge.home(&places.source, source, &outs)).flatten();
    if leaves && matches!(origin, Origin::Pod(_) | Origin::Behind(_) | Origin::Local) {
        judge.way_out(&request, home.as_ref(), &mut told);
    }
    // What leaves by a tunnel alone is answered by the tunnel.
    home = home.filter(|_| outs.is_empty() || judge.is_exit(&outs));
    judge.shadowed(&request, origin, &mut told);
    let arrivals: Vec<Option<u32>> = match (&home, bypassed) {
        _ if request.is_local() => vec![None],
        (_, Some((link, _))) => vec![Some(link)],
        (Some(home), None) => home.links.iter().copied().map(Some).collect(),
        (None, None) => outs.iter().copied().map(Some).collect(),
    };
    let replies: Vec<Leg> =
        arrivals.into_iter().map(|iif| fib.leg(Packet { from: destination, to: source, iif })).collect();
    for reply in &replies {
        told.problems(fib.trouble(reply, &judge.fallen(reply)));
        if request.is_local() && origin == Origin::Local {
            judge.own_passed_by(reply, &mut told);
        }
        let astray = judge.astray(reply, origin);
        let comes_back = astray.is_none();
        told.problems(astray);
        if comes_back && matches!(origin, Origin::Other(_)) && judge.is_here(destination) && !judge.stays_here(reply) {
            let home = judge.home(&places.destination, destination, &distinct(reply.outs()));
            judge.way_out(reply, home.as_ref(), &mut told);
        }
    }
    for leg in [&request].into_iter().chain(&replies) {
        judge.tell_fallen(leg, &mut told);
    }
    let Told { problems, notes } = told;
    Explanation { source, destination, origin, because, request, home, replies, problems, notes }
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
