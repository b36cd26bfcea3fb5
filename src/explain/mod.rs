//! What happens to a packet and to its reply, and where it breaks. Pure.
//!
//! [`explain`] answers from rules, routes and settings ([`lookup`], [`leg`]) and from how the addresses relate to this
//! node ([`places`], which asks the topology). `judge` and `ways` find what breaks and what may be wrong.
//! [`Leg::compare`] then compares each lookup with the kernel's own answer. [`crate::node`] reads both. [`show`] prints
//! the result.

pub mod fib;
mod judge;
pub mod leg;
mod lookup;
pub mod places;
pub mod pods;
pub mod show;
#[cfg(test)]
mod tests;
mod ways;

use std::net::IpAddr;

use cidr::IpCidr;

use fib::{Fib, Flow, Packet};
use judge::{Judge, Verdicts};
use leg::distinct;
pub use leg::{Answer, Leg, ReversePathCheck};
use places::Places;

/// How a source relates to this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// It has a host route: a pod, behind this interface.
    Pod(u32),
    /// It is in a subnet of this interface, which is not an uplink: a pod's, a container's or a tunnel's.
    Behind(u32),
    /// An address of the node itself.
    Local,
    /// Neither: it is assumed to come in by this interface.
    Other(u32),
    /// Neither, and no route leads to it.
    Nowhere,
}

/// The result for a pair of addresses.
#[derive(Debug, Clone, PartialEq)]
pub struct Explanation {
    /// Source.
    pub source: IpAddr,
    /// Destination.
    pub destination: IpAddr,
    /// How the source relates to this node.
    pub origin: Origin,
    /// How that is known, or what was assumed.
    pub because: String,
    /// The packet.
    pub request: Leg,
    /// The uplinks that the source belongs to, and how that is known.
    pub home: Option<SourceLinks>,
    /// Its reply, for each interface by which it may come in.
    pub replies: Vec<Leg>,
    /// Where it breaks, the first problem first.
    pub problems: Vec<String>,
    /// What may be a fault.
    pub notes: Vec<String>,
}

/// The interfaces that a source belongs to: a network that checks sources accepts its packets only there.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceLinks {
    /// Their indexes.
    pub links: Vec<u32>,
    /// Those that it may also belong to, according to their subnets.
    pub others: Vec<u32>,
    /// How that is known.
    pub because: String,
    /// Whether that is certain. A subnet alone proves nothing: a plain server may reply through any interface.
    pub proven: bool,
}

impl Explanation {
    /// Whether the packet gets out, its reply is accepted, and the kernel agrees.
    pub fn works(&self) -> bool {
        self.problems.is_empty()
    }

    /// All packets.
    pub fn legs_mut(&mut self) -> impl Iterator<Item = &mut Leg> {
        [&mut self.request].into_iter().chain(&mut self.replies)
    }

    /// Adds the kernel's answers, in the order of [`Explanation::legs_mut`].
    pub fn take(&mut self, fib: &Fib, answers: Vec<Answer>) {
        let mut problems = Vec::new();
        for (leg, answer) in self.legs_mut().zip(answers) {
            leg.disagreement = leg.compare(fib, &answer);
            leg.kernel = Some(answer);
            problems.extend(leg.disagreement.iter().map(|how| {
                let Packet { from, to, .. } = leg.packet;
                format!("the kernel's answer differs for the packet from {from} to {to}: {how}")
            }));
        }
        self.problems.extend(problems);
    }
}

/// What happens to a packet from `source` to `destination`, and to its reply.
///
/// `asked` is the interface that the packet is said to come in by; otherwise it is found out.
pub fn explain(
    fib: &Fib,
    places: &Places,
    [source, destination]: [IpAddr; 2],
    flow: Flow,
    asked: Option<u32>,
) -> Explanation {
    let judge = Judge { fib, places, source, flow };
    let (found, because) = judge.origin(source, destination);
    let (origin, because) = match (found, asked) {
        (Origin::Pod(link) | Origin::Behind(link), Some(iif)) if link == iif => (found, because),
        (_, Some(iif)) => (Origin::Other(iif), format!("it comes in by {}, as asked", fib.name(iif))),
        (_, None) => (found, because),
    };
    let iif = match origin {
        Origin::Pod(iif) | Origin::Behind(iif) | Origin::Other(iif) => Some(iif),
        Origin::Local | Origin::Nowhere => None,
    };
    // What comes in has no user here.
    let user = if iif.is_some() { 0 } else { flow.user };
    let request = fib.leg(Packet { from: source, to: destination, iif, flow: Flow { user, ..flow } });
    let mut verdicts = Verdicts::default();
    if origin == Origin::Nowhere {
        verdicts.problem(because.clone());
    }
    judge.strays(&[source, destination], &mut verdicts);
    if matches!(origin, Origin::Other(_)) {
        judge.rules_without_route(destination, source, &mut verdicts);
    }
    judge.pod_without_route(&request, &mut verdicts);
    verdicts.problems(fib.trouble(&request, &judge.fallen(&request)));
    let outs = distinct(request.outs());
    let bypassed = judge.bypassed(&request, &outs);
    verdicts.problems(bypassed.iter().map(|(_, why)| why.clone()));
    judge.own_passed_by(&request, &mut verdicts);
    let leaves = !judge.stays_here(&request) && bypassed.is_none();
    let mut home = leaves.then(|| judge.home(&places.source, source, &outs)).flatten();
    if leaves && matches!(origin, Origin::Pod(_) | Origin::Behind(_) | Origin::Local) {
        judge.way_out(&request, home.as_ref(), &mut verdicts);
    }
    // A packet that only leaves by a tunnel is answered through the tunnel.
    home = home.filter(|_| outs.is_empty() || judge.is_exit(&outs));
    judge.shadowed(&request, origin, &mut verdicts);
    let arrivals: Vec<Option<u32>> = match (&home, bypassed) {
        _ if request.is_local() => vec![None],
        (_, Some((link, _))) => vec![Some(link)],
        (Some(home), None) => home.links.iter().copied().map(Some).collect(),
        (None, None) => outs.iter().copied().map(Some).collect(),
    };
    let replies: Vec<Leg> = arrivals.into_iter().map(|iif| fib.leg(request.packet.reply(iif))).collect();
    for reply in &replies {
        verdicts.problems(fib.trouble(reply, &judge.fallen(reply)));
        if request.is_local() && origin == Origin::Local {
            judge.own_passed_by(reply, &mut verdicts);
        }
        let astray = judge.astray(reply, origin);
        let comes_back = astray.is_none();
        verdicts.problems(astray);
        if comes_back && matches!(origin, Origin::Other(_)) && judge.is_here(destination) && !judge.stays_here(reply) {
            let home = judge.home(&places.destination, destination, &distinct(reply.outs()));
            judge.way_out(reply, home.as_ref(), &mut verdicts);
        }
    }
    for leg in [&request].into_iter().chain(&replies) {
        judge.note_fallen(leg, &mut verdicts);
    }
    let Verdicts { problems, notes } = verdicts;
    Explanation { source, destination, origin, because, request, home, replies, problems, notes }
}

/// Whether rules and routes of this node alone decide about the address: not multicast, broadcast or unspecified, and
/// not link-local, which would require a link.
pub fn is_routable(address: IpAddr) -> bool {
    let class_e = matches!(address, IpAddr::V4(address) if address.octets()[0] >= 224);
    let link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    !(class_e || link_local || address.is_multicast() || address.is_unspecified())
}

/// The host prefix of an address.
pub fn host(address: IpAddr) -> IpCidr {
    IpCidr::new_host(address)
}
