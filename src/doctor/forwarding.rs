//! Causes in the forwarding switches and their files.

use std::os::unix::ffi::OsStrExt;

use super::Finding;
use super::cure::{after, proposed, write_command};
use super::declared::{is_ufws, last_word};
use super::facts::Facts;
use super::ini::Location;
use crate::model::{FORWARD, Family, SysctlKey, family_of, shell_word};
use crate::observed::{Gap, SeenRoute};
use crate::reconcile::sysctls::{accept_ra, advertised};
use crate::sorted;
use crate::sysctl_d::{Occasion, Settings};

/// The switch of IPv6 forwarding: if it is 0, those of interfaces have no effect.
const FORWARD_V6: &str = "net/ipv6/conf/all/forwarding";

pub fn ip_forward_off(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let v4 = forwarding_off(facts, Family::V4)?;
    Ok(v4.into_iter().chain(forwarding_off(facts, Family::V6)?).collect())
}

fn forwarding_off(facts: &Facts, family: Family) -> Result<Option<Finding>, Gap> {
    // The key, and the file of a cure.
    let (switch, file) = match family {
        Family::V4 => (FORWARD, "/etc/sysctl.d/90-ip-forward.conf"),
        Family::V6 => (FORWARD_V6, "/etc/sysctl.d/90-ipv6-forward.conf"),
    };
    let key = SysctlKey::from_path(switch.as_bytes());
    let seen = facts.observed.sysctls([key.clone()])?;
    if seen.first().copied().flatten().is_none_or(|value| value.trim() != "0") {
        return Ok(None);
    }
    let pods = facts.topology().vpc_pod_rules()?;
    let mut pods = pods.to.keys().chain(pods.from.keys());
    let need = if facts.desired.masquerade.iter().any(|it| family_of(&it.to_masquerade().source) == family) {
        "masquerade is declared"
    } else if has_bridge_to_others(facts, family)? {
        "bridges are declared"
    } else if pods.any(|pod| Family::of(*pod) == family) {
        "rules for pods exist"
    } else {
        return Ok(None);
    };
    let mut wanted: Vec<(SysctlKey, &str)> = Vec::new();
    if family == Family::V6 {
        wanted.extend(by_advertisement(facts)?.into_iter().map(|key| (key, "2")));
    }
    wanted.push((key.clone(), "1"));
    let off = |settings: &Settings| {
        last_word(settings, switch.as_bytes(), Occasion::Boot).filter(|line| line.number() == Some(0)).cloned()
    };
    let ufw = facts.files.ufw.as_ref().and_then(off);
    let line = ufw.or_else(|| off(&facts.files.sysctl));
    let by = line.as_ref().map_or("no file of sysctl.d sets it".into(), |line| format!("{} sets it", line.place()));
    let evidence = format!("{key} is 0 ({by}), so nothing is forwarded, but {need}");
    let last = line.as_ref().and_then(|line| line.file.file_name()).map(OsStrExt::as_bytes);
    let line_of = |(key, value): &(SysctlKey, &str)| [key.path().as_slice(), b" = ", value.as_bytes(), b"\n"].concat();
    let said: Vec<u8> = wanted.iter().flat_map(line_of).collect();
    let text = [&b"# Forward packets.\n"[..], &said].concat();
    let proposal = proposed(facts.files.sysctl.files(), &after(file, last), &text);
    let now: String = wanted.iter().map(|(key, value)| key.command(value) + " && ").collect();
    let mut cure = now + &write_command(&proposal);
    let left = line.clone().filter(|line| is_ufws(facts, line));
    if let Some(line) = left.or_else(|| off(&facts.files.sysctl.with(proposal.clone()))) {
        cure += &format!("  # and delete line {} of {}", line.line, shell_word(line.file.as_os_str().as_bytes()));
    }
    Ok(Some(Finding::new(evidence, line.as_ref().map(Location::of), cure).with(vec![proposal])))
}

/// Whether this node routes for a declared bridge: not if the gateway of a default route is in the bridge's subnets, as
/// it is if the bridge contains the uplink.
fn has_bridge_to_others(facts: &Facts, family: Family) -> Result<bool, Gap> {
    let defaults = facts.topology().main_defaults(family)?;
    let gateways: Vec<_> = defaults.iter().flat_map(SeenRoute::hops).filter_map(|hop| hop.via).collect();
    Ok(facts.desired.bridges.iter().any(|bridge| {
        let subnets: Vec<_> = bridge.addresses.iter().map(|it| it.0.network()).collect();
        let mut subnets = subnets.into_iter().filter(|it| family_of(it) == family).peekable();
        subnets.peek().is_some() && !subnets.any(|subnet| gateways.iter().any(|gateway| subnet.contains(gateway)))
    }))
}

/// The accept_ra of the interfaces with a default route from router advertisements: with 1 the kernel drops it when
/// forwarding is enabled.
fn by_advertisement(facts: &Facts) -> Result<Vec<SysctlKey>, Gap> {
    let keys: Vec<SysctlKey> = sorted::set(advertised(facts.observed)?).iter().map(accept_ra).collect();
    let values = facts.observed.sysctls(keys.iter().cloned())?;
    Ok(keys.into_iter().zip(values).filter(|(_, value)| *value == Some("1")).map(|(key, _)| key).collect())
}
