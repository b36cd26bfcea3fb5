//! Default routes from router advertisements.
//!
//! When `forwarding` of `all` or of any interface changes from 0 to another value, the kernel deletes those defaults of
//! every interface whose own accept_ra is not 2 (`rt6_purge_dflt_routers`), and from then on that interface ignores
//! advertisements. `default.forwarding` and `force_forwarding` delete none; accept_ra of `all` and `default` does not
//! affect existing interfaces. If accept_ra is 0, a program handles the advertisements (systemd-networkd,
//! NetworkManager), and the kernel leaves its routes alone.

use super::value::is_same;
use super::{Live, text};
use crate::model::{Family, IfName, PROTO_RA, SysctlKey, TABLE_MAIN};
use crate::observed::{Gap, Observed, RouteSet, SeenRoute};
use crate::topology::links_of;

/// The cost of a write.
#[derive(Clone)]
pub enum Cost {
    /// No default route, if these keys have these values when it is made.
    Nothing(Vec<(SysctlKey, String)>),
    /// A default route: which one, and what to declare.
    Default(String),
    /// Unknown, because it could not be read.
    Unknown(String),
}

/// Whether writing this value enables IPv6 forwarding in a way that deletes defaults.
pub fn deletes(path: &str, value: &str) -> bool {
    let of = path.strip_prefix("net/ipv6/conf/").and_then(|rest| rest.strip_suffix("/forwarding"));
    of.is_some_and(|name| name != "default") && !is_same(value, "0")
}

/// The cost of such a write, with the declared or live accept_ra of each interface.
pub fn cost(declared: impl Fn(&str) -> Option<Live>, observed: &Observed) -> Result<Cost, Gap> {
    let links = match advertised(observed) {
        Err(Gap::Failed(why)) => return Ok(Cost::Unknown(why.to_string())),
        links => links?,
    };
    let keys: Vec<SysctlKey> = links.iter().map(accept_ra).collect();
    let looks = observed.sysctls_one_by_one(&keys)?;
    let mut needed = Vec::new();
    for ((link, key), look) in links.iter().zip(keys).zip(looks) {
        match declared(&text(&key.path())).unwrap_or_else(|| Live::of(look)) {
            Live::Unseen(why) => return Ok(Cost::Unknown(why)),
            Live::Is(value) if is_same(&value, "2") => needed.push((key, "2".into())),
            Live::Is(value) if !is_same(&value, "0") => {
                return Ok(Cost::Default(format!(
                    "{link} has its default route from router advertisements and accept_ra {value}, so with \
                     forwarding the kernel drops the route; declare {key}: 2"
                )));
            }
            Live::Is(_) | Live::Missing => {}
        }
    }
    Ok(Cost::Nothing(needed))
}

/// The interface that would ignore advertisements once this value replaces the live one, if it forwards: only 2 accepts
/// them then.
pub fn deafened<'a>(path: &'a str, live: &str, value: &str) -> Option<&'a str> {
    let link = path.strip_prefix("net/ipv6/conf/")?.strip_suffix("/accept_ra")?;
    // 0 means no advertisements, whether it forwards or not.
    let silent = is_same(live, "2") && !is_same(value, "2") && !is_same(value, "0");
    (silent && !matches!(link, "all" | "default")).then_some(link)
}

/// The cost for an interface that will forward.
pub fn cost_of_silence(link: &str, value: &str, observed: &Observed) -> Result<Cost, Gap> {
    let links = match advertised(observed) {
        Err(Gap::Failed(why)) => return Ok(Cost::Unknown(why.to_string())),
        links => links?,
    };
    let Some(link) = links.iter().find(|it| it.as_bytes() == link.as_bytes()) else {
        return Ok(Cost::Nothing(Vec::new()));
    };
    Ok(Cost::Default(format!(
        "{link} has its default route from router advertisements and forwards, so with accept_ra {value} the kernel \
         ignores them and the route expires; declare {}: 2",
        accept_ra(link)
    )))
}

/// The interfaces of the main table's defaults from router advertisements.
pub fn advertised(observed: &Observed) -> Result<Vec<IfName>, Gap> {
    let routes = observed.routes([RouteSet::Table(Family::V6, TABLE_MAIN)])?;
    let is_default = |route: &&SeenRoute| route.protocol == PROTO_RA && route.to.network_length() == 0;
    let links = links_of(routes.into_iter().flatten().filter(is_default));
    // An interface that is gone took its default along.
    Ok(observed.names(links)?.into_iter().flatten().cloned().collect())
}

/// Its accept_ra key.
pub fn accept_ra(link: &IfName) -> SysctlKey {
    SysctlKey::from_path(&[b"net/ipv6/conf", link.as_bytes(), b"accept_ra"].join(&b'/'))
}
