//! The nouns of routes: tables, protocols, and routes themselves.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use cidr::IpCidr;

use super::{Dev, Family, Noun, family_of};

/// Protocol number of routes that node-fixer added to repair a policy table. The documentation calls them repaired
/// routes.
pub const PROTO_MENDED: u8 = 170;
/// Protocol number of declared routes and rules, which are removed with their declaration.
pub const PROTO_DECLARED: u8 = 171;
/// Rules of the VPC CNI that were missing and were restored carry this protocol number, and go with their pod.
pub const PROTO_RESTORED: u8 = 172;

/// `RTPROT_KERNEL`: routes that the kernel adds and removes with addresses.
pub const PROTO_KERNEL: u8 = 2;
/// `RTPROT_STATIC`, which systemd-networkd uses for the rules and routes of its files.
pub const PROTO_STATIC: u8 = 4;
/// `RTPROT_RA`: routes from router advertisements.
pub const PROTO_RA: u8 = 9;

/// `RT_TABLE_DEFAULT`, the table of rule 32767.
pub const TABLE_DEFAULT: u32 = 253;
/// `RT_TABLE_MAIN`, the table of rule 32766.
pub const TABLE_MAIN: u32 = 254;
/// `RT_TABLE_LOCAL`, the table of rule 0.
pub const TABLE_LOCAL: u32 = 255;

/// A table as iproute2 accepts it, whatever its rt_tables file contains: these three names are built in.
pub fn table_name(table: u32) -> Cow<'static, str> {
    match table {
        TABLE_DEFAULT => "default".into(),
        TABLE_MAIN => "main".into(),
        TABLE_LOCAL => "local".into(),
        number => number.to_string().into(),
    }
}

/// The scope of a route (`rtm_scope`). IPv6 routes have none and use `Global` here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Scope {
    /// Beyond a gateway.
    Global,
    /// On the link itself.
    Link,
    /// On this node.
    Host,
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Scope::Global => "global",
            Scope::Link => "link",
            Scope::Host => "host",
        })
    }
}

/// What happens to a packet that matches a route that is not a unicast route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Special {
    /// It is for this node (local and anycast).
    Local,
    /// It is broadcast on the link.
    Broadcast,
    /// It is dropped.
    Blackhole,
    /// It is dropped, and the sender is notified.
    Unreachable,
    /// It is dropped, and the sender is notified that this is prohibited.
    Prohibit,
    /// It falls through to the next rule.
    Throw,
    /// One that node-fixer does not know.
    Other(u8),
}

impl Special {
    /// Whether an interface is part of it.
    pub fn has_dev(self) -> bool {
        matches!(self, Special::Local | Special::Broadcast | Special::Other(_))
    }
}

impl fmt::Display for Special {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Special::Local => "local",
            Special::Broadcast => "broadcast",
            Special::Blackhole => "blackhole",
            Special::Unreachable => "unreachable",
            Special::Prohibit => "prohibit",
            Special::Throw => "throw",
            Special::Other(kind) => return write!(f, "type {kind}"),
        })
    }
}

/// One of several next hops.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NextHop {
    /// Gateway, of either family.
    pub via: Option<IpAddr>,
    /// Interface.
    pub dev: Option<Dev>,
    /// Its weight, from 1 to 256.
    pub weight: u16,
    /// Treat the gateway as on-link even if no route says so.
    pub onlink: bool,
}

/// The parameters of a route, apart from its target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteOptions {
    /// Source address for packets of the node itself.
    pub src: Option<IpAddr>,
    /// Largest packet, in bytes.
    pub mtu: Option<u32>,
    /// TCP maximum segment size to advertise, in bytes.
    pub advmss: Option<u32>,
}

/// A route that node-fixer can add and delete. Its `Display` is the end of an `ip route` command line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Table number.
    pub table: u32,
    /// Destination.
    pub to: IpCidr,
    /// What it does, if it is not a unicast route.
    pub special: Option<Special>,
    /// Gateway; an IPv4 route may have an IPv6 one.
    pub via: Option<IpAddr>,
    /// Outgoing interface; without one the kernel derives it from the gateway.
    pub dev: Option<Dev>,
    /// Several next hops, instead of the one above.
    pub hops: Vec<NextHop>,
    /// The nexthop object with this id, instead of both.
    pub nexthop: Option<u32>,
    /// Scope.
    pub scope: Scope,
    /// `None` leaves it to the kernel: 0 for IPv4, 1024 for IPv6.
    pub metric: Option<u32>,
    /// Treat the gateway as on-link even if no route says so.
    pub onlink: bool,
    /// The other parameters.
    pub options: RouteOptions,
    /// `rtm_protocol`: what installed it.
    pub protocol: u8,
}

impl Route {
    /// Its address family.
    pub fn family(&self) -> Family {
        family_of(&self.to)
    }

    /// The metric that the kernel stores (`IP6_RT_PRIO_USER` is 1024).
    pub fn stored_metric(&self) -> u32 {
        match (self.metric, self.family()) {
            (None | Some(0), Family::V6) => 1024,
            (metric, _) => metric.unwrap_or(0),
        }
    }

    /// The interfaces that it names.
    pub fn devs(&self) -> impl Iterator<Item = &Dev> {
        self.dev.iter().chain(self.hops.iter().filter_map(|hop| hop.dev.as_ref()))
    }

    /// The same, mutable.
    pub fn devs_mut(&mut self) -> impl Iterator<Item = &mut Dev> {
        self.dev.iter_mut().chain(self.hops.iter_mut().filter_map(|hop| hop.dev.as_mut()))
    }

    /// Whether it has a gateway, whose own route must exist first.
    pub fn has_gateway(&self) -> bool {
        self.via.is_some() || self.nexthop.is_some() || self.hops.iter().any(|hop| hop.via.is_some())
    }

    /// The `ip route` command with `verb` for whatever has its table, destination and metric.
    pub fn command_for_its_place(&self, verb: &str) -> String {
        let (ip, to, table) = (self.family().ip_command(), self.destination(), table_name(self.table));
        format!("{ip} route {verb} {to} table {table} metric {}", self.stored_metric())
    }

    fn destination(&self) -> Cow<'static, str> {
        let vias = self.via.iter().chain(self.hops.iter().filter_map(|hop| hop.via.as_ref()));
        match self.to.network_length() {
            // ip would take the family of the gateway for that of the route.
            0 if vias.into_iter().any(|via| Family::of(*via) != self.family()) => "0.0.0.0/0".into(),
            0 => "default".into(),
            _ => self.to.to_string().into(),
        }
    }

    /// The `ip route` command with `verb` for this route.
    pub fn command(&self, verb: &str) -> String {
        format!("{} route {verb} {self}", self.family().ip_command())
    }

    /// The words of a next hop.
    fn write_hop(&self, f: &mut fmt::Formatter<'_>, via: Option<IpAddr>, dev: Option<&Dev>) -> fmt::Result {
        if let Some(via) = via {
            let other = if Family::of(via) == self.family() { "" } else { "inet6 " };
            write!(f, " via {other}{via}")?;
        }
        dev.map_or(Ok(()), |dev| write!(f, " dev {}", dev.name))
    }
}

impl Noun for Route {
    fn add_command(&self) -> String {
        self.command("add")
    }

    fn delete_command(&self) -> String {
        self.command("del")
    }

    fn replace_command(&self, _old: &Route) -> String {
        self.command("replace")
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(special) = self.special {
            write!(f, "{special} ")?;
        }
        f.write_str(&self.destination())?;
        self.write_hop(f, self.via, self.dev.as_ref())?;
        if let Some(id) = self.nexthop {
            write!(f, " nhid {id}")?;
        }
        write!(f, " table {} proto {}", table_name(self.table), self.protocol)?;
        if self.family() == Family::V4 {
            write!(f, " scope {}", self.scope)?;
        }
        let RouteOptions { src, mtu, advmss } = self.options;
        if let Some(src) = src {
            write!(f, " src {src}")?;
        }
        for (word, value) in [("metric", self.metric), ("mtu", mtu), ("advmss", advmss)] {
            value.map_or(Ok(()), |value| write!(f, " {word} {value}"))?;
        }
        if self.onlink {
            f.write_str(" onlink")?;
        }
        for hop in &self.hops {
            f.write_str(" nexthop")?;
            self.write_hop(f, hop.via, hop.dev.as_ref())?;
            write!(f, " weight {}", hop.weight)?;
            if hop.onlink {
                f.write_str(" onlink")?;
            }
        }
        Ok(())
    }
}
