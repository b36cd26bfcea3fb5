//! The links whose changes kube-proxy has to learn of, and those that the configuration leaves out.

use std::collections::BTreeSet;

use crate::change::Notice;
use crate::desired::{Interfaces, KubeProxy, Mode};
use crate::memory::Uplink;
use crate::net::{Dev, IfName};
use crate::observed::Gap;
use crate::sorted;
use crate::topology::{LOOPBACK, Topology};

/// So many links that carry addresses are looked at one by one, before rules and routes are. Some networks give each pod's
/// link an address.
pub const FEW: usize = 8;

/// The uplinks that have an address which kube-proxy may take up: by their role or by name. One that kube-proxy knows and
/// that has lost its role, but neither itself nor its addresses, is still one: for kube-proxy nothing has changed.
pub fn uplinks(wish: &KubeProxy, topology: Topology<'_>, known: &[Uplink]) -> Result<Vec<Uplink>, Gap> {
    let lasting = topology.observed().global_addresses()?.filter(|address| address.lasting);
    let carriers = sorted::set(lasting.clone().map(|address| address.index));
    let indexes = match &wish.interfaces {
        Interfaces::Auto => by_role(topology, &carriers, known)?,
        Interfaces::Named(pattern) => {
            let names = topology.observed().names(carriers.iter().copied())?;
            let named = carriers.iter().zip(names);
            let named = named.filter(|(_, name)| name.is_some_and(|name| pattern.is_match(name.as_bytes())));
            sorted::set(named.map(|(index, _)| *index))
        }
    };
    let links = topology.observed().links(indexes.iter().copied())?;
    let uplinks = links.into_iter().flatten().map(|link| {
        let index = link.dev.index;
        let of_it = lasting.clone().filter(|address| address.index == index);
        let addresses = of_it.map(|address| format!("{}/{}", address.local, address.length));
        Uplink {
            name: String::from_utf8_lossy(link.dev.name.as_bytes()).into_owned(),
            index,
            hardware: link.hardware.iter().map(|byte| format!("{byte:02x}")).collect(),
            addresses: sorted::list(addresses, Ord::cmp),
        }
    });
    Ok(sorted::list(uplinks, |a, b| a.name.cmp(&b.name)))
}

/// Of the links that carry addresses, those that are uplinks. Which they are takes a look at the rules and the main table:
/// not where all that might be one is known.
fn by_role(topology: Topology<'_>, carriers: &BTreeSet<u32>, known: &[Uplink]) -> Result<BTreeSet<u32>, Gap> {
    let known = sorted::set(known.iter().map(|uplink| uplink.index));
    let mut indexes = sorted::set(carriers.intersection(&known).copied());
    let unknown: Vec<u32> = carriers.difference(&known).copied().collect();
    let is_complete = unknown.len() <= FEW && {
        // All at once: those that are known have to be looked at in any case.
        topology.observed().links(carriers.iter().copied())?;
        topology.possible_uplinks(unknown)?.is_empty()
    };
    if !is_complete {
        indexes.extend(topology.uplinks()?.intersection(carriers));
    }
    Ok(indexes)
}

/// The links that default routes leave by and whose changes nobody notices, as the configured pattern leaves them out.
/// By name.
///
/// # Errors
///
/// What has to be looked at first.
pub fn unattended(wish: &KubeProxy, topology: Topology<'_>) -> Result<Vec<Dev>, Gap> {
    let Interfaces::Named(pattern) = &wish.interfaces else { return Ok(Vec::new()) };
    if wish.mode == Mode::Off {
        return Ok(Vec::new());
    }
    let addressed = topology.with_global_address()?;
    let names = topology.observed().names(addressed.iter().copied())?;
    let is_left_out = |(_, name): &(&u32, Option<&IfName>)| name.is_some_and(|it| !pattern.is_match(it.as_bytes()));
    let left_out = sorted::set(addressed.iter().zip(names).filter(is_left_out).map(|(index, _)| *index));
    if left_out.iter().all(|index| *index == LOOPBACK) {
        return Ok(Vec::new());
    }
    let exits = topology.exits()?.defaults;
    let links = topology.expected(exits.intersection(&left_out).copied())?;
    Ok(sorted::list(links.into_iter().map(|link| link.dev.clone()), |a, b| a.name.cmp(&b.name)))
}

/// What an operator is told of these.
pub fn notice(wish: &KubeProxy, unattended: &[Dev]) -> Option<Notice> {
    let names: Vec<String> = unattended.iter().map(|dev| dev.name.to_string()).collect();
    let (first, rest) = names.split_first()?;
    let text = format!(
        "{}: carries a default route and a global address, and is not matched by kube_proxy.interfaces ({}), so that \
         kube-proxy does not learn of its changes; node-fixer doctor shows what to write",
        names.join(", "),
        wish.interfaces
    );
    let problem = match rest.len() {
        0 => format!("{first} is left out by kube_proxy.interfaces"),
        more => format!("{first} and {more} more are left out by kube_proxy.interfaces"),
    };
    Some(Notice { text, problem: Some(problem) })
}
