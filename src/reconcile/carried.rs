//! Sysctls that the kernel changes along with another one (net/ipv4/devinet.c, net/ipv6/addrconf.c). A few keys of
//! `all` are not only values of their own: a write to one is a write to that key of every interface and of `default`.
//!
//! A write to net.ipv4.conf.default.* is one to those interfaces that nobody has ever given a value. They have that of
//! `default`, and who is given it once more stays at it: `default` is for interfaces to come.

use crate::net::{FORWARD, IfName, SysctlKey};
use crate::observed::{Gap, Observed};
use crate::sorted;

/// What the kernel does not copy from `default`: a key of its own kind, and those that flush its caches.
const NOT_COPIED: [&str; 6] = [
    "disable_policy",
    "disable_xfrm",
    "drop_unicast_in_l2_multicast",
    "forwarding",
    "promote_secondaries",
    "route_localnet",
];

/// What is written before this key is: those interfaces that would follow it, and their value. `to_come` are those
/// that begin with what `default` is now.
pub fn staying(
    key: &str,
    live: &str,
    to_come: &[&IfName],
    observed: &Observed,
) -> Result<Vec<(SysctlKey, String)>, Gap> {
    let what = key.strip_prefix("net/ipv4/conf/default/").filter(|what| !NOT_COPIED.contains(what));
    let Some(what) = what else { return Ok(Vec::new()) };
    let names = observed.sysctl_names(["net/ipv4/conf".into()])?;
    let of = |name: &[u8]| SysctlKey::from_path(&[b"net/ipv4/conf", name, what.as_bytes()].join(&b'/'));
    let names = names.into_iter().flatten().filter(|name| ![&b"all"[..], b"default"].contains(&&***name));
    let keys = sorted::list(names.map(|name| of(name)), Ord::cmp);
    let values = observed.sysctls_one_by_one(&keys)?;
    let here = keys.iter().zip(values).filter(|(_, look)| matches!(look, Ok(Some(value)) if value == live));
    let here = here.map(|(key, _)| key.clone());
    Ok(here.chain(to_come.iter().map(|name| of(name.as_bytes()))).map(|key| (key, live.to_owned())).collect())
}

/// The directory of the interfaces that a write to this key reaches, and their key.
pub fn reach(key: &str) -> Option<(&'static str, &str)> {
    if key == FORWARD {
        return Some(("net/ipv4/conf", "forwarding"));
    }
    let what = key.strip_prefix("net/ipv6/conf/all/")?;
    let reaches = ["forwarding", "force_forwarding", "disable_ipv6", "addr_gen_mode", "ignore_routes_with_linkdown"];
    reaches.contains(&what).then_some(("net/ipv6/conf", what))
}

/// What `other` is once `value` has been written to `key`; `None` where that is nothing to it.
pub fn carried(key: &str, value: &str, other: &str) -> Option<String> {
    let (directory, what) = reach(key)?;
    if key == FORWARD && other == REDIRECTS {
        // Routers listen to no redirects.
        return Some(if value.trim().parse() == Ok(0) { "1" } else { "0" }.into());
    }
    let name = other.strip_prefix(directory)?.strip_prefix('/')?.strip_suffix(what)?.strip_suffix('/')?;
    let reached = name != "all" && (name != "default" || what != "force_forwarding");
    reached.then(|| value.to_owned())
}

/// All keys that a write to this one may reach, where these are the names in its directory.
pub fn reached(key: &str, names: &[Box<[u8]>]) -> Vec<SysctlKey> {
    let Some((directory, what)) = reach(key) else { return Vec::new() };
    let path = |name: &[u8]| SysctlKey::from_path(&[directory.as_bytes(), name, what.as_bytes()].join(&b'/'));
    let mut keys = sorted::list(names.iter().filter(|name| ***name != *b"all").map(|name| path(name)), Ord::cmp);
    if key == FORWARD {
        keys.push(SysctlKey::from_path(REDIRECTS.as_bytes()));
    }
    keys
}

const REDIRECTS: &str = "net/ipv4/conf/all/accept_redirects";
