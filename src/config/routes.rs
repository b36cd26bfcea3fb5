//! The section `routes`.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Not;

use cidr::IpCidr;
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};

use super::bridges::Mtu;
use super::tables::TableId;
use super::types::{Prefix, read_number, schema, text};
use super::{Contradiction, agree, repeated};
use crate::model::{self, Dev, Family, IfName, NextHop, PROTO_DECLARED, RouteOptions, Scope, Special};

/// An entry of the section `routes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename = "Route", try_from = "RouteFields")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RouteEntry(RouteFields);

/// The keys of a route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct RouteFields {
    /// Destination: a prefix, an address or `default`.
    to: Destination,
    /// What happens to a packet that matches. Default: unicast.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<RouteType>,
    /// Address family of a default route if no other key shows it. Default: ipv4.
    #[serde(skip_serializing_if = "Option::is_none")]
    family: Option<Family>,
    /// Gateway. An IPv4 route (to: 0.0.0.0/0, not default) may have an IPv6 gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    via: Option<Via>,
    /// Interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    dev: Option<IfName>,
    /// Several next hops.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    nexthops: Vec<Hop>,
    /// Id of a nexthop object (`ip nexthop`).
    #[serde(skip_serializing_if = "Option::is_none")]
    nhid: Option<Nhid>,
    /// Table: a number or a name. Default: main, or local for the type local.
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<TableId>,
    /// Scope of an IPv4 route. Default: link without a gateway, otherwise global.
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<Scope>,
    /// Metric. Default: the kernel's (0 for IPv4, 1024 for IPv6).
    #[serde(skip_serializing_if = "Option::is_none")]
    metric: Option<u32>,
    /// Source address for packets of the node itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    src: Option<Via>,
    /// Largest packet, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    mtu: Option<Mtu>,
    /// TCP maximum segment size to advertise, in bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    advmss: Option<Mss>,
    /// Whether the gateway is on the link even if no route says so.
    #[serde(default)]
    onlink: bool,
}

/// The type of a route.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
enum RouteType {
    /// Uses a gateway or a link.
    Unicast,
    /// The destination is this node.
    Local,
    /// Drops the packet.
    Blackhole,
    /// Drops the packet, and reports to the sender that the destination is unreachable.
    Unreachable,
    /// Drops the packet, and reports to the sender that it is prohibited.
    Prohibit,
    /// Ends the lookup in this table; the next rule is evaluated.
    Throw,
}

/// One of several next hops.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct Hop {
    /// Gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    via: Option<Via>,
    /// Interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    dev: Option<IfName>,
    /// Its share of the traffic, from 1 to 256.
    #[serde(default)]
    weight: Weight,
    /// Whether the gateway is on the link even if no route says so.
    #[serde(default, skip_serializing_if = "Not::not")]
    onlink: bool,
}

impl TryFrom<RouteFields> for RouteEntry {
    type Error = String;

    fn try_from(fields: RouteFields) -> Result<RouteEntry, String> {
        let route = RouteEntry(fields);
        route.agrees()?;
        route.leads_somewhere()?;
        let RouteFields { via, dev, onlink, .. } = &route.0;
        route.is_hop(via.as_ref(), dev.as_ref(), *onlink)?;
        for hop in &route.0.nexthops {
            if hop.via.is_none() && hop.dev.is_none() {
                return Err("has a next hop without via (a gateway) and dev (an interface)".into());
            }
            route.is_hop(hop.via.as_ref(), hop.dev.as_ref(), hop.onlink)?;
        }
        let scope = route.0.scope;
        if scope.is_some() && route.family() == Family::V6 {
            return Err("has a scope, which IPv6 routes do not support".into());
        }
        if route.to_route(|_| 0).has_gateway() && scope.is_some_and(|scope| scope != Scope::Global) {
            return Err("has a gateway, which requires the scope global".into());
        }
        Ok(route)
    }
}

/// The checks of an entry.
impl RouteEntry {
    /// All addresses are of one family, except for an IPv6 gateway.
    fn agrees(&self) -> Result<(), String> {
        let RouteFields { to, family, src, .. } = &self.0;
        let to = to.0.map(|to| ("to", model::family_of(&to)));
        let via = self.vias().map(|via| ("via", Family::of(via)));
        let src = src.map(|src| ("src", Family::of(src.0)));
        let rest = family.map(|family| ("family", family)).into_iter().chain(src);
        let any_via = to.is_some_and(|(_, family)| family == Family::V4);
        agree(to.into_iter().chain(via.filter(|_| !any_via)).chain(rest))
    }

    /// The entry has exactly one target, or a type without one.
    fn leads_somewhere(&self) -> Result<(), String> {
        let RouteFields { kind, via, dev, nexthops, nhid, onlink, .. } = &self.0;
        let (has_hop, several, object) = (via.is_some() || dev.is_some(), !nexthops.is_empty(), nhid.is_some());
        let ways = [has_hop, several, object].into_iter().filter(|it| *it).count();
        match kind {
            None | Some(RouteType::Unicast) if ways == 0 => {
                Err("requires via (a gateway), dev (an interface), nexthops or nhid".into())
            }
            None | Some(RouteType::Unicast) if ways > 1 => {
                Err("has more than one of via or dev, nexthops, and nhid; keep one".into())
            }
            None | Some(RouteType::Unicast) if nexthops.len() == 1 => {
                Err("has a single next hop in nexthops; write its via and dev instead".into())
            }
            None | Some(RouteType::Unicast) if *onlink && !has_hop => Err("onlink requires both via and dev".into()),
            None | Some(RouteType::Unicast) => Ok(()),
            Some(RouteType::Local) if dev.is_none() => Err("is local, which requires dev (usually lo)".into()),
            Some(RouteType::Local) if via.is_some() || several || object => {
                Err("is local, which does not allow a gateway".into())
            }
            Some(RouteType::Local) => Ok(()),
            Some(_) if ways > 0 || *onlink => {
                Err("has a type without a target, which does not allow via, dev, nexthops or nhid".into())
            }
            Some(_) => Ok(()),
        }
    }

    /// Whether the kernel accepts this next hop.
    fn is_hop(&self, via: Option<&Via>, dev: Option<&IfName>, onlink: bool) -> Result<(), String> {
        let via = via.map(|via| via.0);
        if let Some(via) = via.filter(|via| !is_gateway(*via)) {
            return Err(format!("has the gateway {via}, which cannot be the address of a host"));
        }
        if dev.is_none() && via.is_some_and(|via| matches!(via, IpAddr::V6(via) if via.is_unicast_link_local())) {
            return Err("has a link-local gateway, which requires dev (the interface of the gateway)".into());
        }
        if dev.is_none() && via.is_some_and(|via| Family::of(via) != self.family()) {
            return Err("has an IPv6 gateway, which requires dev (the interface of the gateway)".into());
        }
        if onlink && (via.is_none() || dev.is_none()) {
            return Err("onlink requires both via and dev".into());
        }
        Ok(())
    }
}

impl RouteEntry {
    /// Names of the declared interfaces.
    pub fn devs(&self) -> impl Iterator<Item = &IfName> {
        self.0.dev.iter().chain(self.0.nexthops.iter().filter_map(|hop| hop.dev.as_ref()))
    }

    fn vias(&self) -> impl Iterator<Item = IpAddr> {
        self.0.via.iter().chain(self.0.nexthops.iter().filter_map(|hop| hop.via.as_ref())).map(|via| via.0)
    }

    fn family(&self) -> Family {
        let RouteFields { to, family, src, .. } = &self.0;
        let named = to.0.map(|to| model::family_of(&to)).or_else(|| self.vias().next().map(Family::of)).or(*family);
        named.or(src.map(|src| Family::of(src.0))).unwrap_or(Family::V4)
    }

    /// The route to create, with the protocol of declared ones. `index` returns the index of an interface.
    pub fn to_route(&self, index: impl Fn(&IfName) -> u32) -> model::Route {
        let RouteFields { to, kind, via, dev, nexthops, nhid, table, scope, metric, src, mtu, advmss, onlink, .. } =
            &self.0;
        let family = self.family();
        let named = |name: &Option<IfName>| name.as_ref().map(|name| Dev { index: index(name), name: name.clone() });
        let hops = nexthops.iter().map(|hop| NextHop {
            via: hop.via.map(|via| via.0),
            dev: named(&hop.dev),
            weight: hop.weight.0,
            onlink: hop.onlink,
        });
        let special = kind.and_then(special);
        let hops: Vec<NextHop> = hops.collect();
        let has_gateway = self.vias().next().is_some() || nhid.is_some();
        // As in iproute2.
        let usual = match special {
            _ if family == Family::V6 => Scope::Global,
            Some(Special::Local) => Scope::Host,
            None if !has_gateway && hops.is_empty() => Scope::Link,
            _ => Scope::Global,
        };
        let usual_table = if special == Some(Special::Local) { model::TABLE_LOCAL } else { model::TABLE_MAIN };
        model::Route {
            table: table.map_or(usual_table, |table| table.0),
            to: to.0.unwrap_or_else(|| family.everything()),
            special,
            via: via.map(|via| via.0),
            dev: named(dev),
            hops,
            nexthop: nhid.map(|it| it.0),
            scope: scope.unwrap_or(usual),
            metric: *metric,
            onlink: *onlink,
            options: RouteOptions { src: src.map(|it| it.0), mtu: mtu.map(|it| it.0), advmss: advmss.map(|it| it.0) },
            protocol: PROTO_DECLARED,
        }
    }

    /// What distinguishes routes in the kernel.
    fn key(&self) -> (u32, IpCidr, u32) {
        let route = self.to_route(|_| 0);
        (route.table, route.to, route.stored_metric())
    }
}

fn special(kind: RouteType) -> Option<Special> {
    match kind {
        RouteType::Unicast => None,
        RouteType::Local => Some(Special::Local),
        RouteType::Blackhole => Some(Special::Blackhole),
        RouteType::Unreachable => Some(Special::Unreachable),
        RouteType::Prohibit => Some(Special::Prohibit),
        RouteType::Throw => Some(Special::Throw),
    }
}

/// Weight of a next hop.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Weight(u16);

impl Default for Weight {
    fn default() -> Self {
        Weight(1)
    }
}

/// TCP maximum segment size, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Mss(u32);

/// Id of a nexthop object.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Nhid(u32);

/// Reads a number in this range.
macro_rules! numbers {
    ($($type:ident($number:ty): $from:literal..=$to:literal, $expected:literal;)*) => { $(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                match read_number(deserializer, $expected, |_| None)? {
                    number @ $from..=$to => Ok($type(number as $number)),
                    other => Err(de::Error::custom(format_args!("{other} is not {}", $expected))),
                }
            }
        }
        schema!($type, { "type": "integer", "minimum": $from, "maximum": $to });
    )* };
}
numbers! {
    Weight(u16): 1..=256, "a weight from 1 to 256";
    Mss(u32): 1..=65495, "a segment size from 1 to 65495";
    Nhid(u32): 1..=4294967295_u32, "the id of a nexthop object: a number from 1 to 4294967295";
}

/// Entries that contradict each other.
pub(super) fn contradiction(routes: &[RouteEntry]) -> Option<Contradiction> {
    let why = "has the same table, destination and metric as";
    repeated("routes", routes.iter().map(RouteEntry::key), |first, _| {
        format!("{why} routes[{first}]; a table can hold only one such route")
    })
}

/// A prefix, or `default`, whose family follows from other keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Destination(Option<IpCidr>);

impl Destination {
    fn parse(text: &str) -> Result<Destination, String> {
        if text == "default" { Ok(Destination(None)) } else { Prefix::parse(text).map(|it| Destination(Some(it.0))) }
    }
}

text!(Destination, "a prefix such as 10.0.0.0/8, or default", |to| {
    to.0.map_or(Cow::Borrowed("default"), |prefix| format!("{prefix:#}").into())
}, { "type": "string", "pattern": "^(default|([0-9]{1,3}(\\.[0-9]{1,3}){3}|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*)(/[0-9]{1,3})?)$" });

/// The address of a gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Via(IpAddr);

impl Via {
    fn parse(text: &str) -> Result<Via, String> {
        let address = text.parse().map(Via);
        address.map_err(|_| format!("`{text}` is not an address such as 10.0.0.1 or fe80::1"))
    }
}

text!(Via, "an address such as 10.0.0.1", |gateway| gateway.0, { "type": "string", "pattern": "^([0-9]{1,3}(\\.[0-9]{1,3}){3}|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*)$" });

/// Whether another host could have the address.
fn is_gateway(address: IpAddr) -> bool {
    let broadcast = address == IpAddr::V4(Ipv4Addr::BROADCAST);
    !(address.is_unspecified() || address.is_multicast() || address.is_loopback() || broadcast)
}
