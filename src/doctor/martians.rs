//! Causes of packets dropped by the reverse path filter.

use std::net::IpAddr;

use super::Finding;
use super::facts::{Facts, Martians, shortened};
use super::pods::host_routes;
use crate::observed::Gap;
use crate::sorted;
use crate::topology::links_of;

pub fn without_address(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let filters = facts.observed.rp_filters()?;
    let topology = facts.topology();
    if !topology.is_vpc_cni()? {
        return Ok(Vec::new());
    }
    let (pods, links) = (topology.vpc_pod_rules()?, topology.vpc_pod_links()?);
    // IPv6 has no rp_filter, so pods that are all IPv6 are not affected.
    let mut known = pods.to.keys().chain(pods.from.keys()).peekable();
    if known.peek().is_some() && known.all(IpAddr::is_ipv6) {
        return Ok(Vec::new());
    }
    let to_hosts = host_routes(facts)?;
    let routed = links_of(to_hosts.iter().copied());
    let addresses = facts.observed.addresses()?;
    let addressed = |index: u32| addresses.iter().any(|it| it.index == index && it.local.is_ipv4());
    let suspects: Vec<(u32, i32)> = filters
        .links
        .iter()
        .map(|(index, value)| (*index, (*value).max(filters.all)))
        .filter(|(index, value)| matches!(value, 1 | 2) && links.contains_key(index))
        .filter(|(index, _)| !addressed(*index) && !routed.contains(index))
        .collect();
    let seen = facts.observed.links(suspects.iter().map(|(index, _)| *index))?;
    let up = suspects.into_iter().zip(seen).filter_map(|(suspect, link)| Some((suspect, link.filter(|link| link.up)?)));
    let dead: Vec<_> = up.collect();
    if dead.is_empty() {
        return Ok(Vec::new());
    }
    let routed_to = sorted::set(to_hosts.iter().map(|route| route.to.first_address()));
    let lost: Vec<_> = pods.to.keys().filter(|pod| pod.is_ipv4() && !routed_to.contains(pod)).collect();
    let named = dead.iter().map(|((_, value), link)| format!("{} (rp_filter {value})", link.dev.name));
    let mut evidence = format!(
        "no route leads to {}, which has no IPv4 address of its own: on such an interface rp_filter 2 (loose) drops \
         the same packets as 1 (strict), so everything its pod sends is dropped as a martian",
        shortened(named)
    );
    if !lost.is_empty() {
        evidence += &format!("; rules 512 name {}, which has no route", shortened(&lost));
    }
    // The pod without a route need not be the one behind such an interface: its rule may be a leaked one, and the
    // interface new.
    let cure = "# recreate the pods behind these interfaces (kubectl delete pod); the CNI adds the routes of new pods";
    Ok(vec![Finding::new(evidence, None, cure.into())])
}

pub fn growing(facts: &Facts, martians: Martians) -> Result<Vec<Finding>, Gap> {
    let grown = martians.after.saturating_sub(martians.before);
    if grown == 0 {
        return Ok(Vec::new());
    }
    let filters = facts.observed.rp_filters()?;
    let filtering: Vec<u32> = filters
        .links
        .iter()
        .filter(|(_, value)| matches!((*value).max(filters.all), 1 | 2))
        .map(|(index, _)| *index)
        .collect();
    let names = facts.names()?;
    let filtering: Vec<_> = filtering.iter().filter_map(|index| names.get(index)).collect();
    let evidence = format!(
        "rp_filter dropped {grown} packets within {} ms (counter IPReversePathFilter, now {}); it is active on {}",
        martians.millis,
        martians.after,
        shortened(filtering)
    );
    let cure = "# to see their source and interface in the kernel log (dmesg), set log_martians of net.ipv4.conf.all; \
                node-fixer explain then shows the reason";
    Ok(vec![Finding::new(evidence, None, cure.into())])
}
