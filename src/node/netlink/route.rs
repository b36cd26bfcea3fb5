//! Routes (struct rtmsg, RTA_*), encoded and decoded as attributes.

use std::net::IpAddr;

use cidr::IpCidr;
use nix::libc::{
    RT_SCOPE_HOST, RT_SCOPE_LINK, RT_SCOPE_UNIVERSE, RTA_DST, RTA_FLOW, RTA_GATEWAY, RTA_IIF, RTA_METRICS,
    RTA_MULTIPATH, RTA_OIF, RTA_PREFSRC, RTA_PRIORITY, RTA_SRC, RTA_TABLE, RTM_F_CLONED, RTN_ANYCAST, RTN_BLACKHOLE,
    RTN_BROADCAST, RTN_LOCAL, RTN_PROHIBIT, RTN_THROW, RTN_UNICAST, RTN_UNREACHABLE,
};
use rtnetlink::packet_core::DefaultNla;

use super::attr::{
    Attributes, Body, address_family, attributes, emitted, ip_family, ip_of, nested, number, octets, prefix,
};
use super::socket::{NetlinkError, undecodable};
use crate::explain::fib::Packet;
use crate::model::{Family, Route, RouteOptions, Scope, Special, TABLE_MAIN, family_of};
use crate::observed::{RouteSet, SeenHop, SeenRoute, Target};

/// Length of struct rtmsg.
pub const HEADER: usize = 12;
/// Length of struct rtnexthop.
pub const NEXT_HOP: usize = 8;

// linux/rtnetlink.h
pub const RTA_VIA: u16 = 18;
pub const RTA_PREF: u16 = 20;
pub const RTA_ENCAP: u16 = 22;
const RTA_UID: u16 = 25;
const RTA_MARK: u16 = 16;
const RTA_IP_PROTO: u16 = 27;
const RTA_SPORT: u16 = 28;
const RTA_DPORT: u16 = 29;
pub const RTA_NH_ID: u16 = 30;
const RTM_F_LOOKUP_TABLE: u32 = 0x1000;
const RTM_F_FIB_MATCH: u32 = 0x2000;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;
const RTNH_F_DEAD: u32 = 1;
const RTNH_F_ONLINK: u32 = 4;
const RTNH_F_LINKDOWN: u32 = 16;

/// Body of the dump of all routes of a family.
pub fn all(family: Family) -> Body {
    Body::new(vec![address_family(family)], HEADER)
}

/// Body of the dump of a set of routes. Strict checking takes a protocol and a type for filters.
pub fn of(set: &RouteSet) -> Body {
    let (family, table, protocol) = match *set {
        RouteSet::Table(family, table) => (family, Some(table), 0),
        RouteSet::Protocol(family, protocol) => (family, None, protocol),
        RouteSet::Defaults(family) => (family, Some(TABLE_MAIN), 0),
    };
    Body::new(vec![address_family(family), 0, 0, 0, 0, protocol], HEADER).with(table.map(|it| quad(RTA_TABLE, it)))
}

/// The request that adds or deletes this route.
pub fn request(route: &Route) -> Body {
    let length = route.to.network_length();
    let scope = match route.scope {
        Scope::Global => RT_SCOPE_UNIVERSE,
        Scope::Link => RT_SCOPE_LINK,
        Scope::Host => RT_SCOPE_HOST,
    };
    let kind = type_of(route.special);
    // Tables above 255 do not fit in the header; the attribute holds any table.
    let mut header = vec![address_family(route.family()), length, 0, 0, 0, route.protocol, scope, kind];
    header.extend(if route.onlink { RTNH_F_ONLINK } else { 0 }.to_ne_bytes());
    let RouteOptions { src, mtu, advmss } = route.options;
    let metrics = [(RTAX_MTU, mtu), (RTAX_ADVMSS, advmss)];
    let metrics: Vec<_> = metrics.into_iter().filter_map(|(kind, value)| Some(quad(kind, value?))).collect();
    let dev = route.dev.as_ref().map(|dev| dev.index);
    Body::new(header, HEADER)
        // A default route has no destination attribute.
        .with((length > 0).then(|| DefaultNla::new(RTA_DST, octets(route.to.first_address()))))
        .with(route.via.map(|via| gateway(via, route.family())))
        .with(
            [(RTA_OIF, dev), (RTA_PRIORITY, route.metric), (RTA_TABLE, Some(route.table)), (RTA_NH_ID, route.nexthop)]
                .into_iter()
                .filter_map(|(kind, value)| Some(quad(kind, value?))),
        )
        .with(src.map(|src| DefaultNla::new(RTA_PREFSRC, octets(src))))
        .with((!metrics.is_empty()).then(|| nested(RTA_METRICS, &metrics)))
        .with((!route.hops.is_empty()).then(|| DefaultNla::new(RTA_MULTIPATH, several(route))))
}

fn quad(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_ne_bytes().into())
}

/// A gateway, which may be of another family than the route (struct rtvia).
fn gateway(via: IpAddr, of: Family) -> DefaultNla {
    if Family::of(via) == of {
        return DefaultNla::new(RTA_GATEWAY, octets(via));
    }
    let family = u16::from(address_family(Family::of(via))).to_ne_bytes();
    DefaultNla::new(RTA_VIA, [family.to_vec(), octets(via)].concat())
}

/// Next hops (struct rtnexthop, each with attributes).
fn several(route: &Route) -> Vec<u8> {
    let mut all = Vec::new();
    for hop in &route.hops {
        let gateway = hop.via.map(|via| emitted(&[gateway(via, route.family())].as_slice())).unwrap_or_default();
        let length = u16::try_from(NEXT_HOP + gateway.len()).unwrap_or(u16::MAX);
        let flags = if hop.onlink { RTNH_F_ONLINK as u8 } else { 0 };
        all.extend(length.to_ne_bytes());
        all.extend([flags, u8::try_from(hop.weight.saturating_sub(1)).unwrap_or(u8::MAX)]);
        all.extend(hop.dev.as_ref().map_or(0, |dev| dev.index).to_ne_bytes());
        all.extend(gateway);
    }
    all
}

/// Body of the request for the kernel's route for one packet. Without an incoming interface the node itself sends it.
pub fn lookup(packet: &Packet) -> Body {
    let Packet { from, to, iif, flow } = *packet;
    let number = |kind, number: u32| DefaultNla::new(kind, number.to_ne_bytes().into());
    let port = |kind, port: u16| (port != 0).then(|| DefaultNla::new(kind, port.to_be_bytes().into()));
    asked(to, IpCidr::new_host(from).network_length())
        .with([DefaultNla::new(RTA_SRC, octets(from))])
        .with(iif.map(|iif| number(RTA_IIF, iif)))
        .with([number(RTA_UID, flow.user), DefaultNla::new(RTA_IP_PROTO, vec![flow.protocol])])
        .with((flow.mark != 0).then(|| number(RTA_MARK, flow.mark)))
        .with(port(RTA_SPORT, flow.ports.0))
        .with(port(RTA_DPORT, flow.ports.1))
}

/// Body of the request for the kernel's route to one address.
pub fn lookup_of(address: IpAddr) -> Body {
    asked(address, 0)
}

/// The request for the route that the kernel finds, with the prefix of the route and its table.
fn asked(to: IpAddr, length_of_source: u8) -> Body {
    let family = Family::of(to);
    // IPv6 always reports the table, and rejects the flag that asks for it.
    let flags = if family == Family::V4 { RTM_F_LOOKUP_TABLE | RTM_F_FIB_MATCH } else { RTM_F_FIB_MATCH };
    let length = IpCidr::new_host(to).network_length();
    let mut header = vec![address_family(family), length, length_of_source, 0, 0, 0, 0, 0];
    header.extend(flags.to_ne_bytes());
    Body::new(header, HEADER).with([DefaultNla::new(RTA_DST, octets(to))])
}

/// Decodes a route; `None` if it is outside the set or only cached.
pub fn seen_in(payload: &[u8], set: &RouteSet) -> Result<Option<SeenRoute>, NetlinkError> {
    // Most routes of the main table lead to pods, and need no decoding when only defaults are wanted.
    if matches!(set, RouteSet::Defaults(_)) && payload.get(1).is_some_and(|length| *length > 1) {
        return Ok(None);
    }
    Ok(seen(payload)?.filter(|route| {
        let family = family_of(&route.to);
        match *set {
            RouteSet::Table(wanted, number) => wanted == family && number == route.table,
            RouteSet::Protocol(wanted, number) => wanted == family && number == route.protocol,
            RouteSet::Defaults(wanted) => wanted == family && route.table == TABLE_MAIN && route.is_unlimited(),
        }
    }))
}

/// Decodes a route; `None` if it is only cached, or for families other than IP.
pub fn seen(payload: &[u8]) -> Result<Option<SeenRoute>, NetlinkError> {
    let header = payload.first_chunk::<HEADER>().ok_or_else(|| undecodable("a route ends within its header"))?;
    let [family, to_length, from_length, tos, table, protocol, scope, kind, flags @ ..] = *header;
    let flags = u32::from_ne_bytes(flags);
    let Some(family) = ip_family(family) else { return Ok(None) };
    if flags & RTM_F_CLONED != 0 {
        return Ok(None);
    }
    let (mut to, mut from, mut table, mut metric, mut nexthop) = (family.everything(), None, table.into(), 0, None);
    let (mut plain, mut hop, mut several) = (true, hop_of(flags), Vec::new());
    let (mut options, mut odd) = (RouteOptions::default(), false);
    for attribute in attributes(payload, HEADER)? {
        let (kind, value) = attribute?;
        match kind {
            RTA_DST => to = prefix(value, to_length)?,
            RTA_SRC if from_length > 0 => from = Some(prefix(value, from_length)?),
            RTA_OIF => hop.oif = Some(number(value)?),
            RTA_GATEWAY => hop.via = Some(ip_of(value)?),
            RTA_PRIORITY => metric = number(value)?,
            RTA_PREFSRC => options.src = Some(ip_of(value)?),
            RTA_METRICS => odd |= read_metrics(value, &mut options)?,
            RTA_PREF => odd |= value.first() != Some(&0),
            RTA_FLOW => odd = true,
            RTA_TABLE => table = number(value)?,
            RTA_VIA => (plain, hop.via) = (false, Some(other_family(value)?)),
            RTA_MULTIPATH => {
                plain = false;
                several = hops(value, &mut odd)?;
            }
            RTA_NH_ID => (plain, nexthop) = (false, Some(number(value)?)),
            RTA_ENCAP => (plain, odd) = (false, true),
            _ => {}
        }
    }
    let target = match special(kind) {
        None if plain => Target::SeenHop(hop),
        special => {
            // None if the kernel does not show the next hops of a nexthop object.
            several.extend(Some(hop).filter(|hop| hop.oif.is_some() || hop.via.is_some()));
            match special {
                None => Target::Hops(several),
                Some(special) => Target::Special(special, several),
            }
        }
    };
    let scope = match scope {
        RT_SCOPE_UNIVERSE => Some(Scope::Global),
        RT_SCOPE_LINK => Some(Scope::Link),
        RT_SCOPE_HOST => Some(Scope::Host),
        _ => None,
    };
    Ok(Some(SeenRoute { table, to, target, scope, metric, tos, from, nexthop, options, odd, protocol }))
}

/// Decodes the metrics of a route; returns whether there are unsupported ones.
fn read_metrics(value: &[u8], options: &mut RouteOptions) -> Result<bool, NetlinkError> {
    let mut odd = false;
    for attribute in Attributes::nested(value) {
        match attribute? {
            (RTAX_MTU, value) => options.mtu = Some(number(value)?),
            (RTAX_ADVMSS, value) => options.advmss = Some(number(value)?),
            _ => odd = true,
        }
    }
    Ok(odd)
}

/// The type of a route that does this.
fn type_of(special: Option<Special>) -> u8 {
    match special {
        None => RTN_UNICAST,
        Some(Special::Local) => RTN_LOCAL,
        Some(Special::Broadcast) => RTN_BROADCAST,
        Some(Special::Blackhole) => RTN_BLACKHOLE,
        Some(Special::Unreachable) => RTN_UNREACHABLE,
        Some(Special::Prohibit) => RTN_PROHIBIT,
        Some(Special::Throw) => RTN_THROW,
        Some(Special::Other(kind)) => kind,
    }
}

/// What a route of this type does; `None` for a unicast route.
fn special(kind: u8) -> Option<Special> {
    Some(match kind {
        RTN_UNICAST => return None,
        RTN_LOCAL | RTN_ANYCAST => Special::Local,
        RTN_BROADCAST => Special::Broadcast,
        RTN_BLACKHOLE => Special::Blackhole,
        RTN_UNREACHABLE => Special::Unreachable,
        RTN_PROHIBIT => Special::Prohibit,
        RTN_THROW => Special::Throw,
        other => Special::Other(other),
    })
}

fn hop_of(flags: u32) -> SeenHop {
    let has = |flag| flags & flag != 0;
    let (dead, linkdown, onlink) = (has(RTNH_F_DEAD), has(RTNH_F_LINKDOWN), has(RTNH_F_ONLINK));
    SeenHop { dead, linkdown, onlink, ..SeenHop::new(None, None) }
}

/// RTA_VIA: an address after its family (struct rtvia).
fn other_family(value: &[u8]) -> Result<IpAddr, NetlinkError> {
    ip_of(value.get(2..).unwrap_or_default())
}

/// The hops of RTA_MULTIPATH (struct rtnexthop, each with attributes); `odd` is set if one has parts that `Hop` does
/// not hold.
pub fn hops(mut value: &[u8], odd: &mut bool) -> Result<Vec<SeenHop>, NetlinkError> {
    let mut hops = Vec::new();
    while let [length_0, length_1, flags, weight, index @ ..] = value {
        let length = usize::from(u16::from_ne_bytes([*length_0, *length_1]));
        let own = value.get(NEXT_HOP..length).ok_or_else(|| undecodable("a next hop is longer than its route"))?;
        let weight = u16::from(*weight) + 1;
        let mut hop = SeenHop { oif: Some(number(index)?), weight, ..hop_of((*flags).into()) };
        for attribute in Attributes::nested(own) {
            match attribute? {
                (RTA_GATEWAY, value) => hop.via = Some(ip_of(value)?),
                (RTA_VIA, value) => hop.via = Some(other_family(value)?),
                (RTA_ENCAP | RTA_FLOW, _) => *odd = true,
                _ => {}
            }
        }
        hops.push(hop);
        value = value.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(hops)
}
