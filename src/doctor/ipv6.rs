//! Causes in router advertisements.

use std::os::unix::ffi::OsStrExt;

use super::Finding;
use super::cure::{after, proposed, write_command};
use super::facts::{Facts, shortened};
use super::ini::Location;
use crate::model::{Family, IfName, SysctlKey};
use crate::observed::{Address, Gap};
use crate::sysctl_d::Occasion;

/// `IFAPROT_KERNEL_RA`: the kernel derived the address from a router advertisement.
const OF_ADVERTISEMENT: u8 = 2;

const FILE: &str = "/etc/sysctl.d/90-accept-ra.conf";

fn key(name: &IfName, what: &str) -> SysctlKey {
    SysctlKey::from_path(&[b"net/ipv6/conf/", name.as_bytes(), b"/", what.as_bytes()].concat())
}

/// An interface that forwards ignores router advertisements unless its accept_ra is 2. When forwarding was enabled, the
/// kernel dropped its default route from them.
pub fn advertisements_ignored(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let topology = facts.topology();
    if !topology.main_defaults(Family::V6)?.is_empty() {
        return Ok(Vec::new());
    }
    // Global addresses: a router that only announces local prefixes is not a default router.
    let of_world = |it: &&Address| matches!(it.local, std::net::IpAddr::V6(address) if address.segments().first().is_some_and(|first| first >> 13 == 1));
    let advertised = facts.observed.addresses()?.iter().filter(of_world);
    let advertised = advertised.filter(|it| it.protocol == Some(OF_ADVERTISEMENT));
    let links = crate::sorted::set(advertised.map(|it| it.index));
    let mut deaf = Vec::new();
    for link in topology.outward(links)? {
        let Some(name) = topology.name(link)? else { continue };
        let value = |what| facts.sysctl(key(name, what));
        if value("forwarding")? == Some(1) && value("accept_ra")? == Some(1) && value("accept_ra_defrtr")? == Some(1) {
            deaf.push(name);
        }
    }
    if deaf.is_empty() {
        return Ok(Vec::new());
    }
    let evidence = format!(
        "{} has its IPv6 address from router advertisements, with forwarding 1 and accept_ra 1: the kernel ignores \
         the advertisements, and has dropped the default route from them. The main table has no IPv6 default route",
        shortened(&deaf)
    );
    let line = deaf.iter().find_map(|name| {
        let winner = facts.files.sysctl.winner(&key(name, "accept_ra").path(), Occasion::Boot)?;
        (winner.value != b"2").then_some(winner)
    });
    let lines = deaf.iter().map(|name| [key(name, "accept_ra").path().as_slice(), b" = 2\n"].concat());
    let text =
        [&b"# Accept router advertisements although this node forwards.\n"[..], &lines.collect::<Vec<_>>().concat()]
            .concat();
    let last = line.and_then(|line| line.file.file_name()).map(OsStrExt::as_bytes);
    let file = proposed(facts.files.sysctl.files(), &after(FILE, last), &text);
    let now: String = deaf.iter().map(|name| key(name, "accept_ra").command("2") + " && ").collect();
    let plain = deaf.iter().all(|name| !name.as_bytes().iter().any(|byte| b"*?[=".contains(byte)));
    let mut cure = if plain { now + &write_command(&file) } else { now.trim_end_matches(" && ").to_owned() };
    cure += "\n# the default route returns with the next advertisement; if sysctls declares forwarding, declare \
             accept_ra too";
    let place = line.map(Location::of);
    Ok(vec![Finding::new(evidence, place, cure).with(if plain { vec![file] } else { Vec::new() })])
}
