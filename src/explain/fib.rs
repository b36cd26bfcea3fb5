//! Everything that determines the path of packets of one family: plain data, and how it is shown.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::model::{Family, table_name};
use crate::observed::{Address, Link, SeenHop, SeenRoute, SeenRule, Special};

/// Everything that the lookups for one pair of addresses need.
#[derive(Debug, Clone, Default)]
pub struct Fib {
    /// Policy rules of the family, in the kernel's order.
    pub rules: Vec<SeenRule>,
    /// Routes of all tables that contain one of the two addresses.
    pub routes: Vec<SeenRoute>,
    /// Tables that have any route.
    pub tables: Vec<u32>,
    /// Interfaces that are used by a route with a gateway.
    pub gateways: Vec<u32>,
    /// Interfaces.
    pub links: Vec<Link>,
    /// Addresses of all interfaces.
    pub addresses: Vec<Address>,
    /// Settings of interfaces, by their index.
    pub confs: BTreeMap<u32, Conf>,
    /// Settings of `all`.
    pub all: Conf,
}

/// Settings of an interface, or of `all`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Conf {
    /// `rp_filter`; IPv6 has none.
    pub rp_filter: i32,
    /// `forwarding`.
    pub forwarding: bool,
    /// `accept_local`.
    pub accept_local: bool,
    /// `force_forwarding`, only for IPv6.
    pub force_forwarding: bool,
    /// `src_valid_mark`, of IPv4 alone; read only where a packet has a mark.
    pub src_valid_mark: bool,
}

/// What rules may ask of a packet beside its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// Its IP protocol.
    pub protocol: u8,
    /// Source and destination port; 0 where it has none.
    pub ports: (u16, u16),
    /// Its mark.
    pub mark: u32,
    /// The user of this node that sends it.
    pub user: u32,
}

/// A UDP packet of root, without ports and mark.
impl Default for Flow {
    fn default() -> Flow {
        Flow { protocol: UDP, ports: (0, 0), mark: 0, user: 0 }
    }
}

impl Flow {
    /// That of the answer. It comes without a mark, whatever a firewall would restore.
    pub fn reply(self) -> Flow {
        Flow { protocol: self.protocol, ports: (self.ports.1, self.ports.0), mark: 0, user: 0 }
    }
}

/// `IPPROTO_UDP`
pub const UDP: u8 = 17;
/// `IPPROTO_ICMPV6`
pub const ICMPV6: u8 = 58;

/// The name of an IP protocol.
pub fn protocol_name(protocol: u8) -> String {
    match protocol {
        1 => "ICMP".into(),
        6 => "TCP".into(),
        UDP => "UDP".into(),
        ICMPV6 => "ICMPv6".into(),
        other => format!("of IP protocol {other}"),
    }
}

/// A packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// Source.
    pub from: IpAddr,
    /// Destination.
    pub to: IpAddr,
    /// Incoming interface; `None`: the node itself sends it.
    pub iif: Option<u32>,
    /// What else rules may ask of it.
    pub flow: Flow,
}

impl Packet {
    /// The answer to it, coming in by this interface.
    pub fn reply(&self, iif: Option<u32>) -> Packet {
        Packet { from: self.to, to: self.from, iif, flow: self.flow.reply() }
    }

    /// Its address family.
    pub fn family(&self) -> Family {
        Family::of(self.to)
    }
}

impl Fib {
    /// An interface.
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.dev.index == index)
    }

    /// Its settings.
    pub fn conf(&self, index: u32) -> Option<&Conf> {
        self.confs.get(&index)
    }

    /// The name of an interface.
    pub fn name(&self, index: u32) -> String {
        self.link(index).map_or_else(|| format!("interface number {index}"), |link| link.dev.name.to_string())
    }

    /// A route as `ip route` shows it.
    pub fn show(&self, route: &SeenRoute) -> String {
        let mut text = match route.special() {
            None => String::new(),
            Some(Special::Other(kind)) => format!("type {kind} "),
            Some(special) => format!("{special:?} ").to_lowercase(),
        };
        match route.to {
            to if to.network_length() == 0 => text += "default",
            to => text += &to.to_string(),
        }
        text.extend(route.from.map(|from| format!(" from {from}")));
        text.extend(route.nexthop.map(|id| format!(" nhid {id}")));
        let several = route.all_hops().len() > 1;
        for hop in route.all_hops() {
            text += if several { " nexthop" } else { "" };
            text += &self.show_hop(hop);
            text += if hop.dead { " dead" } else { "" };
            text += if hop.linkdown { " linkdown" } else { "" };
        }
        text += &format!(" table {}", table_name(route.table));
        if route.metric != 0 {
            text += &format!(" metric {}", route.metric);
        }
        text
    }

    fn show_hop(&self, hop: &SeenHop) -> String {
        let via = hop.via.map_or_else(String::new, |via| format!(" via {via}"));
        let dev = hop.oif.map_or_else(String::new, |oif| format!(" dev {}", self.name(oif)));
        via + &dev
    }
}
