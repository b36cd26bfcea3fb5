//! The links whose changes kube-proxy must learn of, and those that the configuration leaves out.

use std::collections::BTreeSet;

use crate::change::Notice;
use crate::config::{Interfaces, KubeProxy, Mode};
use crate::history::memory::Uplink;
use crate::model::{Dev, IfName};
use crate::observed::Gap;
use crate::sorted;
use crate::topology::{LOOPBACK, Topology};

/// Up to this many links with addresses are looked at one by one, before rules and routes. Some networks give each
/// pod's link an address.
pub const FEW: usize = 8;

/// The uplinks with an address that kube-proxy may use: by their role or by name. A link that kube-proxy knows, that
/// has lost its role but is otherwise unchanged, still counts: for kube-proxy nothing has changed.
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

/// The uplinks among the links with addresses. This requires the rules and the main table, unless all candidates are
/// known.
fn by_role(topology: Topology<'_>, carriers: &BTreeSet<u32>, known: &[Uplink]) -> Result<BTreeSet<u32>, Gap> {
    let known = sorted::set(known.iter().map(|uplink| uplink.index));
    let mut indexes = sorted::set(carriers.intersection(&known).copied());
    let unknown: Vec<u32> = carriers.difference(&known).copied().collect();
    let is_complete = unknown.len() <= FEW && {
        // All at once: known links must be looked at in any case.
        topology.observed().links(carriers.iter().copied())?;
        topology.possible_uplinks(unknown)?.is_empty()
    };
    if !is_complete {
        indexes.extend(topology.uplinks()?.intersection(carriers));
    }
    Ok(indexes)
}

/// The links of default routes that the configured pattern leaves out, so that their changes go unnoticed. By name.
///
/// # Errors
///
/// What must be looked at first.
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

/// The notice about these links.
pub fn notice(wish: &KubeProxy, unattended: &[Dev]) -> Option<Notice> {
    let names: Vec<String> = unattended.iter().map(|dev| dev.name.to_string()).collect();
    let (first, rest) = names.split_first()?;
    let text = format!(
        "{}: carries a default route and a global address, but kube_proxy.interfaces ({}) does not match it, so \
         kube-proxy does not learn of its changes; run node-fixer doctor for the configuration to write",
        names.join(", "),
        wish.interfaces
    );
    let problem = match rest.len() {
        0 => format!("kube_proxy.interfaces leaves out {first}"),
        more => format!("kube_proxy.interfaces leaves out {first} and {more} more"),
    };
    Some(Notice { text, problem: Some(problem) })
}
