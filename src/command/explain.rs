//! `node-fixer explain`.

use std::net::{IpAddr, Ipv6Addr};

use anyhow::{Context, anyhow};
use tracing::error;

use super::subject::Subject;
use super::{EXIT_FAILED, EXIT_OK, EXIT_USAGE, show};
use crate::cli::{Cli, Explain};
use crate::explain::fib::{Fib, Flow};
use crate::explain::places::Places;
use crate::explain::{self, Explanation, pods};
use crate::history::memory::Patience;
use crate::host::Host;
use crate::model::Family;
use crate::node::{FibReader, Marks};
use crate::observed::Observed;
use crate::sorted;
use crate::topology::Topology;

/// Beyond every default gateway: RFC 3849 reserves it for documentation.
const UNASSIGNED: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1));

/// A node, and how to ask it.
struct Witness {
    reader: FibReader,
    host: Host,
    observed: Observed,
    /// The kernel of a captured node cannot be asked any more.
    is_captured: bool,
}

/// Explains one packet, or every pod's.
pub(super) fn explain(cli: &Cli, asked: &Explain) -> anyhow::Result<u8> {
    let subject = Subject::of(cli)?;
    let is_captured = subject.is_captured();
    let (reader, host) = (subject.reader()?, subject.open(cli, Patience::Wait)?);
    let mut witness = Witness { reader, host, observed: Observed::default(), is_captured };
    match (asked.source, asked.destination) {
        (Some(source), Some(destination)) => one(cli, asked, &mut witness, source, destination),
        _ => all_pods(cli, asked, &mut witness),
    }
}

fn one(cli: &Cli, asked: &Explain, witness: &mut Witness, source: IpAddr, destination: IpAddr) -> anyhow::Result<u8> {
    let flow = asked.flow(Family::of(source));
    let marks = if flow.mark == 0 { Marks::None } else { Marks::Some };
    let fib = witness.reader.read(source, destination, marks)?;
    if let Some(odd) = [source, destination].into_iter().find(|address| fib.is_broadcast(*address)) {
        error!("{odd} is the broadcast address of a subnet of this node; explain requires addresses of single hosts");
        return Ok(EXIT_USAGE);
    }
    let pairs = [(source, destination), (destination, source)];
    if let Some((odd, other)) = pairs.into_iter().find(|(one, other)| one.is_loopback() && !fib.is_own(*other)) {
        error!(
            "{odd} is a loopback address and never leaves the host; {other} is not an address of this node (explain \
             does not consider route_localnet)"
        );
        return Ok(EXIT_USAGE);
    }
    let iif = match &asked.iif {
        None => None,
        Some(name) => match fib.links.iter().find(|link| link.dev.name.as_bytes() == name.as_encoded_bytes()) {
            Some(link) => Some(link.dev.index),
            None => {
                error!("there is no interface {} on this node (--iif)", name.to_string_lossy());
                return Ok(EXIT_USAGE);
            }
        },
    };
    let seen = witness.explain(&fib, [source, destination], flow, iif)?;
    show(cli, || explain::show::json(&fib, &seen), || explain::show::text(&fib, &seen))?;
    Ok(if seen.works() { EXIT_OK } else { EXIT_FAILED })
}

impl Witness {
    /// Explains a packet, and holds that against the kernel's own answers.
    fn explain(&mut self, fib: &Fib, pair: [IpAddr; 2], flow: Flow, iif: Option<u32>) -> anyhow::Result<Explanation> {
        let links = || fib.routes.iter().flat_map(|route| route.all_hops()).filter_map(|hop| hop.oif);
        let places = self
            .host
            .ask(&mut self.observed, |observed| Places::of(Topology::of(observed), pair, links(), &fib.gateways));
        let places = places.map_err(|why| anyhow!("{why}"))?;
        let mut seen = explain::explain(fib, &places, pair, flow, iif);
        if !self.is_captured {
            let answers: anyhow::Result<Vec<_>> = seen.legs_mut().map(|leg| self.reader.ask(&leg.packet)).collect();
            seen.take(fib, answers?);
        }
        Ok(seen)
    }
}

fn all_pods(cli: &Cli, asked: &Explain, witness: &mut Witness) -> anyhow::Result<u8> {
    let sites = witness.host.ask(&mut witness.observed, |observed| Topology::of(observed).pods());
    let sites = sites.map_err(|why| anyhow!("{why}")).context("cannot determine the pods of this node")?;
    let families = [Family::V4, Family::V6].map(|family| {
        let of_family = sites.iter().filter(|(pod, _)| Family::of(**pod) == family);
        (family, sorted::map(of_family.map(|(pod, site)| (*pod, *site))))
    });
    let fibs = [witness.reader.read_all(Family::V4)?, witness.reader.read_all(Family::V6)?];
    let mut found: Vec<pods::PodsOfFamily> = Vec::new();
    for ((family, sites), fib) in families.iter().zip(&fibs) {
        let mut pods = pods::TracedPods::new(fib, sites);
        let beyond = beyond(witness, *family)?;
        for (kinds, pair) in pods.pairs(beyond) {
            let around = pods.around(pair);
            let seen = witness.explain(&around, pair, asked.flow(*family), None)?;
            pods.take(kinds, pair, seen.problems);
        }
        found.push((*family, pods, beyond));
    }
    show(cli, || pods::json(&found), || pods::text(&found))?;
    Ok(if pods::work(&found) { EXIT_OK } else { EXIT_FAILED })
}

/// The default gateway of the main table; where that is known on its link alone, an address beyond it.
fn beyond(witness: &mut Witness, family: Family) -> anyhow::Result<Option<IpAddr>> {
    let defaults = witness.host.ask(&mut witness.observed, |observed| Topology::of(observed).main_defaults(family));
    let defaults = defaults.map_err(|why| anyhow!("{why}"))?;
    let gateway = defaults.iter().find_map(|route| route.all_hops().iter().find_map(|hop| hop.via));
    let is_far = |gateway: &IpAddr| explain::is_routable(*gateway) && Family::of(*gateway) == family;
    Ok(match family {
        Family::V6 if !defaults.is_empty() => Some(gateway.filter(is_far).unwrap_or(UNASSIGNED)),
        _ => gateway.filter(is_far),
    })
}
