//! Default routes that the kernel has learned from router advertisements.
//!
//! When `forwarding` of `all` or of any interface goes from 0 to another value, the kernel deletes those defaults of
//! every interface whose own accept_ra is not 2 (`rt6_purge_dflt_routers`), and from then on that interface ignores
//! advertisements. `default.forwarding` and `force_forwarding` delete none; accept_ra of `all` and `default` has no
//! say for an interface that is there. Where accept_ra is 0, a program handles the advertisements (systemd-networkd,
//! NetworkManager), and the kernel leaves its routes alone.

use super::value::is_same;
use super::{Live, text};
use crate::net::{Family, IfName, SysctlKey, TABLE_MAIN};
use crate::observed::{Gap, Observed, RouteSet, SeenRoute};

/// `RTPROT_RA`: the route comes from a router advertisement.
const PROTO_RA: u8 = 9;

/// What a write costs.
#[derive(Clone)]
pub enum Cost {
    /// No default route, as long as these keys have these values when it is made.
    Nothing(Vec<(SysctlKey, String)>),
    /// A default route; which, and what to declare.
    Default(String),
    /// That could not be seen.
    Unknown(String),
}

/// Whether a write of this value switches IPv6 forwarding on in the way that deletes defaults.
pub fn deletes(path: &str, value: &str) -> bool {
    let of = path.strip_prefix("net/ipv6/conf/").and_then(|rest| rest.strip_suffix("/forwarding"));
    of.is_some_and(|name| name != "default") && !is_same(value, "0")
}

/// What such a write costs, where accept_ra of an interface will be as `declared` says, or as it is.
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
                    "{link} has its default route from router advertisements and accept_ra {value}: with forwarding \
                     the kernel drops it; declare {key}: 2"
                )));
            }
            Live::Is(_) | Live::Missing => {}
        }
    }
    Ok(Cost::Nothing(needed))
}

/// The interface that no longer hears advertisements once this value has replaced the live one, if it forwards: only with 2
/// it does.
pub fn deafened<'a>(path: &'a str, live: &str, value: &str) -> Option<&'a str> {
    let link = path.strip_prefix("net/ipv6/conf/")?.strip_suffix("/accept_ra")?;
    // Who writes 0 wants no advertisements, whether it forwards or not.
    let silent = is_same(live, "2") && !is_same(value, "2") && !is_same(value, "0");
    (silent && !matches!(link, "all" | "default")).then_some(link)
}

/// What that costs an interface that will forward.
pub fn cost_of_silence(link: &str, value: &str, observed: &Observed) -> Result<Cost, Gap> {
    let links = match advertised(observed) {
        Err(Gap::Failed(why)) => return Ok(Cost::Unknown(why.to_string())),
        links => links?,
    };
    let Some(link) = links.iter().find(|it| it.as_bytes() == link.as_bytes()) else {
        return Ok(Cost::Nothing(Vec::new()));
    };
    Ok(Cost::Default(format!(
        "{link} has its default route from router advertisements and forwards: with accept_ra {value} the kernel ignores \
         them, and the route expires; declare {}: 2",
        accept_ra(link)
    )))
}

/// The interfaces that the main table's defaults from router advertisements leave by.
fn advertised(observed: &Observed) -> Result<Vec<IfName>, Gap> {
    let routes = observed.routes([RouteSet::Table(Family::V6, TABLE_MAIN)])?;
    let is_default = |route: &&SeenRoute| route.protocol == PROTO_RA && route.to.network_length() == 0;
    let hops = routes.into_iter().flatten().filter(is_default).flat_map(SeenRoute::hops);
    let mut links: Vec<u32> = hops.filter_map(|hop| hop.oif).collect();
    links.sort_unstable();
    links.dedup();
    // One that has gone meanwhile took its default along.
    Ok(observed.names(links)?.into_iter().flatten().cloned().collect())
}

fn accept_ra(link: &IfName) -> SysctlKey {
    SysctlKey::from_path(&[b"net/ipv6/conf", link.as_bytes(), b"accept_ra"].join(&b'/'))
}
