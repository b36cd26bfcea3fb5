//! What the kernel shows of links, addresses and bridges.

use std::net::IpAddr;
use std::time::Duration;

use cidr::IpCidr;

use crate::model::Dev;

/// The rp_filter of every interface that has one. IPv6 has none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RpFilters {
    /// `conf/all`. The kernel uses the greater of it and the interface's value.
    pub all: i32,
    /// `conf/default`, which new interfaces copy.
    pub default: i32,
    /// By index of the interface.
    pub links: Vec<(u32, i32)>,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Index and name.
    pub dev: Dev,
    /// Administratively up (`IFF_UP`); says nothing about the carrier.
    pub up: bool,
    /// Has a carrier (`IFF_LOWER_UP`). A bridge has one if one of its ports has.
    pub carrier: bool,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// The bridge, bond or VRF that it belongs to.
    pub master: Option<u32>,
    /// The VRF that it belongs to, whose table it uses.
    pub vrf: Option<u32>,
    /// Its table, if it is a VRF.
    pub vrf_table: Option<u32>,
    /// Group (`ip link set … group`).
    pub group: u32,
    /// Hardware address; empty if it has none.
    pub hardware: Vec<u8>,
    /// Its kind (`IFLA_INFO_KIND`: bridge, veth, wireguard …); empty for a network card.
    pub kind: Box<[u8]>,
}

/// The kinds of tunnels that send through whatever link a route names, unless they are bound to one; and the bytes that
/// they add to a packet, the outer header included (`*_HEADROOM` and `t_hlen` in the kernel's drivers).
pub const TUNNELS: [(&[u8], u32); 9] = [
    (b"ipip", 20),
    (b"sit", 20),
    (b"gre", 24),
    (b"gretap", 38),
    (b"vxlan", 50),
    (b"geneve", 50),
    (b"ip6tnl", 48),
    (b"ip6gre", 48),
    (b"wireguard", 80),
];

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Index of the interface.
    pub index: u32,
    /// The address itself.
    pub local: IpAddr,
    /// Its prefix length.
    pub length: u8,
    /// Whether it is one end of a point-to-point link: `subnet` is the peer's.
    pub has_peer: bool,
    /// Whether the kernel deletes it when the first IPv4 address of its subnet on the interface is deleted, unless
    /// `promote_secondaries` is set.
    pub secondary: bool,
    /// Whether duplicate address detection (IPv6) found another host on the link with it.
    pub duplicate: bool,
    /// Its protocol; `None` if none was given, or the kernel does not store it (before Linux 5.18).
    pub protocol: Option<u8>,
    /// When it was added or last changed, on the clock since boot without sleep, with a resolution of 10 ms.
    pub created: Duration,
    /// The subnet that it connects: its own, or the peer's.
    pub subnet: IpCidr,
    /// Of global scope, and not a link-local number.
    pub global: bool,
    /// Global and permanent: neither link-local nor tentative nor temporary.
    pub lasting: bool,
}

/// A bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenBridge {
    /// Index and name.
    pub dev: Dev,
    /// Administratively up.
    pub up: bool,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Whether it speaks the spanning tree protocol.
    pub stp: bool,
    /// Whether it filters by VLAN.
    pub vlan_filtering: bool,
    /// Whether node-fixer owns it.
    pub ours: bool,
}
