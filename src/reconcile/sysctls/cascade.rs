//! Sysctls that the kernel changes along with another one (net/ipv4/devinet.c, net/ipv6/addrconf.c). For a few keys of
//! `all`, a write is a write to that key of every interface and of `default`.
//!
//! A write to net.ipv4.conf.default.* also changes each interface whose value was never set explicitly. Such an
//! interface first gets an explicit value, so it keeps it: `default` is meant for new interfaces.

use std::collections::BTreeSet;

use super::{Live, text};
use crate::model::{FORWARD, IfName, SysctlKey};
use crate::observed::{Gap, Observed};

/// Keys that the kernel does not copy from `default`: those of another type, and those that flush its caches.
const NOT_COPIED: [&str; 6] = [
    "disable_policy",
    "disable_xfrm",
    "drop_unicast_in_l2_multicast",
    "forwarding",
    "promote_secondaries",
    "route_localnet",
];

/// Keys with values, or why one could not be read.
pub type Values = Result<Vec<(SysctlKey, String)>, String>;

/// The writes before this key of `default`: interfaces that would follow it, and their values. `to_come` are future
/// interfaces, which begin with the current value of `default`; those in `written` need not be pinned.
pub fn pins(
    key: &str,
    live: &str,
    to_come: &[&IfName],
    written: &BTreeSet<&str>,
    observed: &Observed,
) -> Result<Values, Gap> {
    let what = key.strip_prefix("net/ipv4/conf/default/").filter(|what| !NOT_COPIED.contains(what));
    let Some(what) = what else { return Ok(Ok(Vec::new())) };
    let of = |name: &[u8]| SysctlKey::from_path(&[b"net/ipv4/conf", name, what.as_bytes()].join(&b'/'));
    let keys = match names("net/ipv4/conf", observed)? {
        Ok(names) => names.iter().filter(|name| ***name != *b"default").map(|name| of(name)).collect::<Vec<_>>(),
        Err(why) => return Ok(Err(why)),
    };
    let mut pins = match values(keys, observed)? {
        Ok(values) => values,
        Err(why) => return Ok(Err(why)),
    };
    pins.retain(|(_, value)| value == live);
    pins.extend(to_come.iter().map(|name| (of(name.as_bytes()), live.to_owned())));
    pins.retain(|(key, _)| !written.contains(&*text(&key.path())));
    Ok(Ok(pins))
}

/// The keys that a write to this one changes, with their live values.
pub fn reached(key: &str, observed: &Observed) -> Result<Values, Gap> {
    let Some((directory, what)) = reach(key) else { return Ok(Ok(Vec::new())) };
    let path = |name: &[u8]| SysctlKey::from_path(&[directory.as_bytes(), name, what.as_bytes()].join(&b'/'));
    let mut keys: Vec<SysctlKey> = match names(directory, observed)? {
        Ok(names) => names.iter().map(|name| path(name)).collect(),
        Err(why) => return Ok(Err(why)),
    };
    if key == FORWARD {
        keys.push(SysctlKey::from_path(REDIRECTS.as_bytes()));
    }
    values(keys, observed)
}

/// The names in a directory except `all`, in order; or why it could not be listed.
fn names<'a>(directory: &str, observed: &'a Observed) -> Result<Result<Vec<&'a [u8]>, String>, Gap> {
    match observed.sysctl_names([directory.to_owned()]) {
        Ok(names) => {
            let mut names: Vec<&[u8]> = names.into_iter().flatten().map(|name| &**name).collect();
            names.retain(|name| *name != b"all");
            names.sort_unstable();
            Ok(Ok(names))
        }
        Err(Gap::Failed(why)) => Ok(Err(why.to_string())),
        Err(gap) => Err(gap),
    }
}

/// The values of those keys that exist. One that cannot be read may have any value, which is not the same as none.
fn values(keys: Vec<SysctlKey>, observed: &Observed) -> Result<Values, Gap> {
    let looks = observed.sysctls_one_by_one(&keys)?;
    let seen = keys.iter().zip(looks).map(|(key, look)| match Live::of(look) {
        Live::Is(value) => Ok(Some((key.clone(), value))),
        Live::Missing => Ok(None),
        Live::Unseen(why) => Err(why),
    });
    Ok(seen.filter_map(Result::transpose).collect())
}

/// The directory of the interfaces that a write to this key changes, and their key.
pub fn reach(key: &str) -> Option<(&'static str, &str)> {
    if key == FORWARD {
        return Some(("net/ipv4/conf", "forwarding"));
    }
    let what = key.strip_prefix(ALL_V6)?;
    REACHING_V6.contains(&what).then_some(("net/ipv6/conf", what))
}

/// The key whose write also writes this one.
pub fn root_of(key: &str) -> Option<String> {
    if key == REDIRECTS {
        return Some(FORWARD.into());
    }
    let rest = key.strip_prefix("net/")?;
    let (family, rest) = rest.split_once("/conf/")?;
    let (name, what) = rest.rsplit_once('/')?;
    let root = if (family, what) == ("ipv4", "forwarding") { FORWARD.into() } else { format!("{ALL_V6}{what}") };
    (family == "ipv4" || family == "ipv6").then_some(())?;
    reaches(&root, name).then_some(root)
}

/// Whether a write to this key changes the interface with this name.
fn reaches(root: &str, name: &str) -> bool {
    reach(root).is_some_and(|(_, what)| name != "all" && (name != "default" || what != "force_forwarding"))
}

/// The value of `other` after `value` was written to `key`; `None` if it does not change.
pub fn cascaded(key: &str, value: &str, other: &str) -> Option<String> {
    let (directory, what) = reach(key)?;
    if key == FORWARD && other == REDIRECTS {
        // Routers do not accept redirects.
        return Some(if value.trim().parse() == Ok(0) { "1" } else { "0" }.into());
    }
    let name = other.strip_prefix(directory)?.strip_prefix('/')?.strip_suffix(what)?.strip_suffix('/')?;
    reaches(key, name).then(|| value.to_owned())
}

const ALL_V6: &str = "net/ipv6/conf/all/";
const REACHING_V6: [&str; 5] =
    ["forwarding", "force_forwarding", "disable_ipv6", "addr_gen_mode", "ignore_routes_with_linkdown"];
const REDIRECTS: &str = "net/ipv4/conf/all/accept_redirects";
