//! Between rtnetlink's messages and our own nouns, in both directions.
//!
//! Numbers and layouts are those of linux/rtnetlink.h, linux/fib_rules.h, linux/if_link.h, linux/if_addr.h and
//! linux/netconf.h. Routes go through rtnetlink's typed messages; rules, links and addresses carry names of
//! interfaces, which need not be UTF-8, and are decoded from their attributes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use cidr::{IpCidr, IpInet};
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_core::{DefaultNla, Emitable, Parseable};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType, RouteVia,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};

use super::netlink::{Attributes, NetlinkError, attributes, undecodable};
use crate::net::{ALIAS, Bridge, Dev, Family, IfName, PROTO_DECLARED, Route, Rule, Scope, Selector, TABLE_MAIN};
use crate::observed::{Address, Hop, Link, RouteSet, SeenBridge, SeenRoute, SeenRule, Target};

pub const RTM_NEWLINK: u16 = 16;
pub const RTM_GETLINK: u16 = 18;
pub const RTM_DELLINK: u16 = 17;
pub const RTM_SETLINK: u16 = 19;
pub const RTM_NEWADDR: u16 = 20;
pub const RTM_DELADDR: u16 = 21;
pub const RTM_GETADDR: u16 = 22;
pub const RTM_NEWROUTE: u16 = 24;
pub const RTM_DELROUTE: u16 = 25;
pub const RTM_GETROUTE: u16 = 26;
pub const RTM_NEWRULE: u16 = 32;
pub const RTM_DELRULE: u16 = 33;
pub const RTM_GETRULE: u16 = 34;
pub const RTM_GETNETCONF: u16 = 82;

pub const AF_INET: u8 = 2;
pub const AF_INET6: u8 = 10;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;

/// A body of a fixed header, and attributes.
pub struct Body {
    header: Vec<u8>,
    attributes: Vec<DefaultNla>,
}

impl Body {
    /// A header of this length that begins with these bytes, and no attribute.
    pub fn new(mut header: Vec<u8>, length: usize) -> Body {
        header.resize(length, 0);
        Body { header, attributes: Vec::new() }
    }

    pub fn add(&mut self, attribute: DefaultNla) {
        self.attributes.push(attribute);
    }
}

impl Emitable for Body {
    fn buffer_len(&self) -> usize {
        self.header.len() + self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        if let Some((header, rest)) = buffer.split_at_mut_checked(self.header.len()) {
            header.copy_from_slice(&self.header);
            self.attributes.as_slice().emit(rest);
        }
    }
}

/// Body of the dump of all rules (struct fib_rule_hdr, AF_UNSPEC).
pub fn all_rules() -> Body {
    Body { header: vec![0; 12], attributes: Vec::new() }
}

/// Body of the dump of all addresses (struct ifaddrmsg, AF_UNSPEC).
pub fn all_addresses() -> Body {
    Body { header: vec![0; 8], attributes: Vec::new() }
}

/// Body of the dump of every interface's IPv4 settings (struct netconfmsg).
pub fn all_netconf() -> Body {
    Body { header: vec![AF_INET], attributes: Vec::new() }
}

/// Body of the question for one link (struct ifinfomsg), by index, or by name where there is one.
pub fn one_link(index: u32, name: Option<&IfName>) -> Body {
    const IFLA_EXT_MASK: u16 = 29;
    const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;
    let mut header = vec![0; 16];
    header.splice(4..8, index.to_ne_bytes());
    let mut attributes = vec![DefaultNla::new(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS.to_ne_bytes().into())];
    attributes.extend(name.map(|name| DefaultNla::new(IFLA_IFNAME, [name.as_bytes(), b"\0"].concat())));
    Body { header, attributes }
}

const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_BR_STP_STATE: u16 = 5;
const NLA_F_NESTED: u16 = 1 << 15;
const IFF_UP: u32 = 1;
const IFF_LOWER_UP: u32 = 1 << 16;
const BRIDGE: &[u8] = b"bridge\0";

fn nested(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    let mut value = vec![0; attributes.buffer_len()];
    attributes.emit(&mut value);
    DefaultNla::new(kind | NLA_F_NESTED, value)
}

/// Body of the dump of all bridges.
pub fn all_bridges() -> Body {
    let kind = DefaultNla::new(IFLA_INFO_KIND, BRIDGE.into());
    let mut body = one_link(0, None);
    body.attributes.push(nested(IFLA_LINKINFO, &[kind]));
    body
}

/// The request that makes a bridge, or sets what is to be set on it.
pub fn bridge(bridge: &Bridge) -> Body {
    let mut header = vec![0; 16];
    let up = if bridge.up { IFF_UP } else { 0 };
    header.splice(8..12, up.to_ne_bytes());
    header.splice(12..16, IFF_UP.to_ne_bytes());
    let name = DefaultNla::new(IFLA_IFNAME, [bridge.name.as_bytes(), b"\0"].concat());
    let mut attributes = vec![name];
    attributes.extend(bridge.mtu.map(|mtu| DefaultNla::new(IFLA_MTU, mtu.to_ne_bytes().into())));
    let mut info = vec![DefaultNla::new(IFLA_INFO_KIND, BRIDGE.into())];
    let stp = bridge.stp.map(|stp| DefaultNla::new(IFLA_BR_STP_STATE, u32::from(stp).to_ne_bytes().into()));
    info.extend(stp.map(|stp| nested(IFLA_INFO_DATA, &[stp])));
    attributes.push(nested(IFLA_LINKINFO, &info));
    Body { header, attributes }
}

/// The request that puts an alias on the link with this name; an empty one takes it away.
pub fn alias(name: &IfName, alias: &str) -> Body {
    let name = DefaultNla::new(IFLA_IFNAME, [name.as_bytes(), b"\0"].concat());
    Body { header: vec![0; 16], attributes: vec![name, DefaultNla::new(IFLA_IFALIAS, alias.as_bytes().into())] }
}

/// The request that gives the link with this index this value of promote_secondaries.
pub fn promote(index: u32, value: u32) -> Body {
    const IFLA_AF_SPEC: u16 = 26;
    const IFLA_INET_CONF: u16 = 1;
    const IPV4_DEVCONF_PROMOTE_SECONDARIES: u16 = 20;
    let mut header = vec![0; 16];
    header.splice(4..8, index.to_ne_bytes());
    let value = DefaultNla::new(IPV4_DEVCONF_PROMOTE_SECONDARIES, value.to_ne_bytes().into());
    let inet = nested(AF_INET.into(), &[nested(IFLA_INET_CONF, &[value])]);
    Body { header, attributes: vec![nested(IFLA_AF_SPEC, &[inet])] }
}

/// Reads a bridge; `None` for a link of another kind, which an old kernel does not leave out.
pub fn seen_bridge(payload: &[u8]) -> Result<Option<SeenBridge>, NetlinkError> {
    let (mut kind_of, mut stp, mut mtu, mut ours) = (None, false, 0, false);
    for attribute in attributes(payload, 16)? {
        let (kind, value) = attribute?;
        match kind {
            IFLA_MTU => mtu = number(value)?,
            IFLA_IFALIAS => ours = value.split(|byte| *byte == 0).next() == Some(ALIAS.as_bytes()),
            IFLA_LINKINFO => {
                for (kind, value) in Attributes::nested(value).flatten() {
                    match kind {
                        IFLA_INFO_KIND => kind_of = Some(value),
                        IFLA_INFO_DATA => {
                            let mut data = Attributes::nested(value).flatten();
                            let state = data.find(|(kind, _)| *kind == IFLA_BR_STP_STATE);
                            stp = state.map(|(_, value)| number(value)).transpose()?.is_some_and(|state| state != 0);
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    if kind_of != Some(BRIDGE) {
        return Ok(None);
    }
    let Link { dev, up, .. } = seen_link(payload)?;
    Ok(Some(SeenBridge { dev, up, mtu, stp, ours }))
}

/// Reads a veth: the link itself, and the index of its other end where that is in the same network namespace. `None`
/// for a link of another kind.
pub fn seen_veth(payload: &[u8]) -> Result<Option<(Dev, Option<u32>)>, NetlinkError> {
    const IFLA_LINK: u16 = 5;
    const IFLA_LINK_NETNSID: u16 = 37;
    let (mut is_veth, mut peer, mut elsewhere) = (false, None, false);
    for attribute in attributes(payload, 16)? {
        let (kind, value) = attribute?;
        match kind {
            IFLA_LINK => peer = Some(number(value)?),
            // Whatever its number: the kernel has none (-1) for a namespace that is just going.
            IFLA_LINK_NETNSID => elsewhere = true,
            IFLA_LINKINFO => {
                let mut info = Attributes::nested(value).flatten();
                is_veth = info.any(|(kind, value)| kind == IFLA_INFO_KIND && value == b"veth\0");
            }
            _ => {}
        }
    }
    let peer = peer.filter(|peer| *peer != 0 && !elsewhere);
    is_veth.then(|| Ok((seen_link(payload)?.dev, peer))).transpose()
}

/// The name of a link that is built on another (a VLAN, a macvlan), and the other's index; `None` for any other link.
pub fn on_another(payload: &[u8]) -> Result<Option<(u32, IfName)>, NetlinkError> {
    const IFLA_LINK: u16 = 5;
    const IFLA_LINK_NETNSID: u16 = 37;
    let (mut below, mut elsewhere) = (None, false);
    for attribute in attributes(payload, 16)? {
        match attribute? {
            (IFLA_LINK, value) => below = Some(number(value)?),
            (IFLA_LINK_NETNSID, _) => elsewhere = true,
            _ => {}
        }
    }
    let below = below.filter(|below| *below != 0 && !elsewhere);
    below.map(|below| Ok((below, seen_link(payload)?.dev.name))).transpose()
}

/// The request that adds or deletes this address of the interface with this index.
pub fn address(index: u32, address: &IpInet) -> Body {
    const IFA_PROTO: u16 = 11;
    const RT_SCOPE_HOST: u8 = 254;
    let (family, bytes) = match address.address() {
        IpAddr::V4(address) => (AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (AF_INET6, address.octets().to_vec()),
    };
    // As ip(8) does it.
    let scope = if address.address().is_loopback() { RT_SCOPE_HOST } else { RT_SCOPE_UNIVERSE };
    let mut header = vec![family, address.network_length(), 0, scope];
    header.extend(index.to_ne_bytes());
    let attributes = vec![
        DefaultNla::new(IFA_LOCAL, bytes.clone()),
        DefaultNla::new(IFA_ADDRESS, bytes),
        DefaultNla::new(IFA_PROTO, vec![PROTO_DECLARED]),
    ];
    Body { header, attributes }
}

/// Body of the dump of a set of routes. Not by the message builder: it presets a protocol and a type, which
/// strict checking takes for filters.
pub fn routes(set: &RouteSet) -> RouteMessage {
    let mut message = RouteMessage::default();
    match *set {
        RouteSet::Table(family, table) => {
            message.header.address_family = address_family(family).into();
            message.attributes.push(RouteAttribute::Table(table));
        }
        RouteSet::Protocol(family, protocol) => {
            message.header.address_family = address_family(family).into();
            message.header.protocol = RouteProtocol::from(protocol);
        }
        RouteSet::Defaults(family) => {
            message.header.address_family = address_family(family).into();
            message.attributes.push(RouteAttribute::Table(TABLE_MAIN));
        }
    }
    message
}

/// The request that adds or deletes this route.
pub fn route(route: &Route) -> RouteMessage {
    // A default route carries no destination.
    let to = Some(route.to).filter(|to| to.network_length() > 0);
    let mut message = match route.family() {
        Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
        Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
    };
    if let Some(to) = to {
        message.header.destination_prefix_length = to.network_length();
        message.attributes.push(RouteAttribute::Destination(to.first_address().into()));
    }
    message.attributes.extend(route.via.map(|via| RouteAttribute::Gateway(via.into())));
    message.attributes.extend(route.dev.as_ref().map(|dev| RouteAttribute::Oif(dev.index)));
    message.attributes.extend(route.metric.map(RouteAttribute::Priority));
    // Tables above 255 do not fit the header; the attribute says them all.
    message.header.table = RouteHeader::RT_TABLE_UNSPEC;
    message.attributes.push(RouteAttribute::Table(route.table));
    message.header.protocol = route.protocol.into();
    message.header.scope = match route.scope {
        Scope::Global => RouteScope::Universe,
        Scope::Link => RouteScope::Link,
        Scope::Host => RouteScope::Host,
    };
    if route.onlink {
        message.header.flags.insert(RouteFlags::Onlink);
    }
    message
}

/// Reads a route; `None` for one that is outside the set or only cached.
pub fn seen_route(payload: &[u8], set: &RouteSet) -> Result<Option<SeenRoute>, NetlinkError> {
    // Most of the main table are routes to pods, and none of them is worth reading for its defaults.
    if matches!(set, RouteSet::Defaults(_)) && payload.get(1).is_some_and(|length| *length > 1) {
        return Ok(None);
    }
    let message = RouteMessage::parse(payload).map_err(undecodable)?;
    let header = &message.header;
    let family = match u8::from(header.address_family) {
        AF_INET => Family::V4,
        AF_INET6 => Family::V6,
        _ => return Ok(None),
    };
    let mut table = u32::from(header.table);
    let (mut destination, mut hop, mut metric) = (None, Hop { via: None, oif: None }, 0);
    let (mut plain, mut several) = (true, Vec::new());
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::Gateway(_) | RouteAttribute::Oif(_) => take(&mut hop, attribute),
            RouteAttribute::Priority(number) => metric = *number,
            RouteAttribute::Via(_) => {
                plain = false;
                take(&mut hop, attribute);
            }
            RouteAttribute::MultiPath(hops) => {
                plain = false;
                several.extend(hops.iter().map(|leg| {
                    let mut hop = Hop { via: None, oif: Some(leg.interface_index) };
                    leg.attributes.iter().for_each(|attribute| take(&mut hop, attribute));
                    hop
                }));
            }
            RouteAttribute::NhId(_) | RouteAttribute::Encap(_) => plain = false,
            _ => {}
        }
    }
    let protocol = u8::from(header.protocol);
    let inside = match *set {
        RouteSet::Table(wanted, number) => wanted == family && number == table,
        RouteSet::Protocol(wanted, number) => wanted == family && number == protocol,
        RouteSet::Defaults(wanted) => {
            wanted == family && table == TABLE_MAIN && header.tos == 0 && header.source_prefix_length == 0
        }
    };
    if !inside || header.flags.contains(RouteFlags::Cloned) {
        return Ok(None);
    }
    let to = match destination {
        Some(address) => IpCidr::new(address, header.destination_prefix_length).map_err(undecodable)?,
        None => family.everything(),
    };
    Ok(Some(SeenRoute {
        table,
        to,
        target: match header.kind {
            RouteType::Unicast if plain => Target::Hop(hop),
            RouteType::Unicast if several.is_empty() => Target::Hops(vec![hop]),
            RouteType::Unicast => Target::Hops(several),
            _ => Target::Special,
        },
        scope: match header.scope {
            RouteScope::Universe => Some(Scope::Global),
            RouteScope::Link => Some(Scope::Link),
            RouteScope::Host => Some(Scope::Host),
            _ => None,
        },
        metric,
        tos: header.tos,
        source_specific: header.source_prefix_length > 0,
        onlink: header.flags.contains(RouteFlags::Onlink),
        protocol,
    }))
}

/// Takes what an attribute says of a next hop.
fn take(hop: &mut Hop, attribute: &RouteAttribute) {
    match attribute {
        RouteAttribute::Gateway(address) => hop.via = ip(address),
        RouteAttribute::Via(RouteVia::Inet(address)) => hop.via = Some(IpAddr::V4(*address)),
        RouteAttribute::Via(RouteVia::Inet6(address)) => hop.via = Some(IpAddr::V6(*address)),
        RouteAttribute::Oif(index) => hop.oif = Some(*index),
        _ => {}
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    }
}

/// The request that adds or deletes this rule.
pub fn rule(rule: &Rule) -> Result<RuleMessage, NetlinkError> {
    let mut message = RuleMessage::default();
    message.header.family = address_family(rule.family).into();
    // A rule without an action is accepted and does nothing.
    message.header.action = RuleAction::ToTable;
    let attributes = &mut message.attributes;
    attributes.push(RuleAttribute::Table(rule.table));
    attributes.push(RuleAttribute::Priority(rule.priority));
    attributes.push(RuleAttribute::Protocol(rule.protocol.into()));
    let Selector { from, to, fwmark, iif, oif } = &rule.selector;
    if let Some(from) = from {
        message.header.src_len = from.network_length();
        attributes.push(RuleAttribute::Source(from.first_address()));
    }
    if let Some(to) = to {
        message.header.dst_len = to.network_length();
        attributes.push(RuleAttribute::Destination(to.first_address()));
    }
    if let Some((mark, mask)) = fwmark {
        attributes.extend([RuleAttribute::FwMark(*mark), RuleAttribute::FwMask(*mask)]);
    }
    let name = |name: &IfName| String::from_utf8(name.as_bytes().into()).map_err(undecodable);
    attributes.extend(iif.as_ref().map(name).transpose()?.map(RuleAttribute::Iifname));
    attributes.extend(oif.as_ref().map(name).transpose()?.map(RuleAttribute::Oifname));
    Ok(message)
}

/// Reads a rule; `None` for one of a family that is not IP (struct fib_rule_hdr, FRA_*).
pub fn seen_rule(payload: &[u8]) -> Result<Option<SeenRule>, NetlinkError> {
    const FR_ACT_TO_TBL: u8 = 1;
    // Permanent, unresolved goto, detached iif and oif: they say how a rule stands, not what it selects.
    const STATES: u32 = 1 | 4 | 8 | 16;
    let header = payload.first_chunk::<12>().ok_or_else(|| undecodable("a rule ends within its header"))?;
    let [family, to_length, from_length, tos, table, _, _, action, flags @ ..] = *header;
    let family = match family {
        AF_INET => Family::V4,
        AF_INET6 => Family::V6,
        _ => return Ok(None),
    };
    let mut plain = action == FR_ACT_TO_TBL && tos == 0 && u32::from_ne_bytes(flags) & !STATES == 0;
    let mut selector = Selector { from: None, to: None, fwmark: None, iif: None, oif: None };
    let (mut priority, mut table, mut protocol) = (0, u32::from(table), 0);
    let (mut mark, mut mask) = (0, 0);
    for attribute in attributes(payload, header.len())? {
        let (kind, value) = attribute?;
        match kind {
            1 => selector.to = Some(prefix(value, to_length)?),
            2 => selector.from = Some(prefix(value, from_length)?),
            3 => selector.iif = Some(name(value)?),
            6 => priority = number(value)?,
            10 => mark = number(value)?,
            14 => plain &= number(value)? == u32::MAX, // suppress_prefixlen, all bits set: none
            15 => table = number(value)?,
            16 => mask = number(value)?,
            17 => selector.oif = Some(name(value)?),
            18 => {} // padding
            21 => protocol = value.first().copied().unwrap_or_default(),
            _ => plain = false, // goto, realms, tunnel, l3mdev, uidrange, ports … and what is yet to come
        }
    }
    if mask != 0 {
        selector.fwmark = Some((mark, mask));
    }
    Ok(Some(if plain {
        SeenRule::Lookup(Rule { family, priority, selector, table, protocol })
    } else {
        SeenRule::Other { family, priority }
    }))
}

/// Reads a link (struct ifinfomsg, IFLA_*).
pub fn seen_link(payload: &[u8]) -> Result<Link, NetlinkError> {
    const IFLA_ADDRESS: u16 = 1;
    const IFLA_INFO_SLAVE_KIND: u16 = 4;
    let (mut dev_name, mut vrf_slave, mut hardware, mut made_of) = (None, false, Vec::new(), Box::default());
    for attribute in attributes(payload, 16)? {
        let (kind, value) = attribute?;
        match kind {
            IFLA_ADDRESS => hardware = value.to_vec(),
            IFLA_IFNAME => dev_name = Some(name(value)?),
            IFLA_LINKINFO => {
                for (kind, value) in Attributes::nested(value).flatten() {
                    match kind {
                        IFLA_INFO_KIND => made_of = value.strip_suffix(b"\0").unwrap_or(value).into(),
                        IFLA_INFO_SLAVE_KIND => vrf_slave = value.starts_with(b"vrf"),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let index = number(payload.get(4..8).unwrap_or_default())?;
    let flags = number(payload.get(8..12).unwrap_or_default())?;
    let name = dev_name.ok_or_else(|| undecodable(format_args!("link {index} has no name")))?;
    let (up, carrier) = (flags & IFF_UP != 0, flags & IFF_LOWER_UP != 0);
    Ok(Link { dev: Dev { index, name }, up, carrier, vrf_slave, hardware, kind: made_of })
}

/// `RT_SCOPE_UNIVERSE`.
const RT_SCOPE_UNIVERSE: u8 = 0;

/// Reads an address, where it is global.
pub fn seen_global_address(payload: &[u8]) -> Result<Option<Address>, NetlinkError> {
    // Most are those of the links of pods, and not worth reading.
    if payload.get(3).is_some_and(|scope| *scope != RT_SCOPE_UNIVERSE) {
        return Ok(None);
    }
    Ok(seen_address(payload)?.filter(|address| address.global))
}

/// Reads an address; `None` for one of a family that is not IP (struct ifaddrmsg, IFA_*).
pub fn seen_address(payload: &[u8]) -> Result<Option<Address>, NetlinkError> {
    const IFA_CACHEINFO: u16 = 6;
    const IFA_FLAGS: u16 = 8;
    const IFA_PROTO: u16 = 11;
    const IFA_F_TEMPORARY: u32 = 1; // of IPv6; of IPv4 the same bit says that it is a secondary one
    const IFA_F_DADFAILED: u32 = 8;
    const IFA_F_TENTATIVE: u32 = 0x40;
    const RT_SCOPE_UNIVERSE: u8 = 0;
    let header = payload.first_chunk::<8>().ok_or_else(|| undecodable("an address ends within its header"))?;
    let [family, length, flags, scope, index @ ..] = *header;
    let mut flags = u32::from(flags);
    if !matches!(family, AF_INET | AF_INET6) {
        return Ok(None);
    }
    let (mut address, mut local, mut protocol, mut created) = (None, None, None, 0);
    for attribute in attributes(payload, header.len())? {
        let (kind, value) = attribute?;
        match kind {
            IFA_ADDRESS => address = Some(ip_of(value)?),
            IFA_LOCAL => local = Some(ip_of(value)?),
            // struct ifa_cacheinfo: the third number is the time, in hundredths of a second.
            IFA_CACHEINFO => created = number(value.get(8..).unwrap_or_default())?,
            IFA_FLAGS => flags = number(value)?,
            IFA_PROTO => protocol = value.first().copied(),
            _ => {}
        }
    }
    // With a peer IFA_ADDRESS is the peer's, and it is the peer's subnet that is on the link.
    let (Some(on_link), Some(local)) = (address.or(local), local.or(address)) else {
        return Err(undecodable("an address message has no address"));
    };
    let subnet = IpInet::new(on_link, length).map_err(undecodable)?.network();
    let passing = if family == AF_INET6 { IFA_F_TEMPORARY | IFA_F_TENTATIVE } else { 0 };
    let link_local = matches!(local, IpAddr::V4(address) if address.is_link_local());
    let global = scope == RT_SCOPE_UNIVERSE && !link_local;
    let lasting = global && flags & passing == 0;
    Ok(Some(Address {
        index: u32::from_ne_bytes(index),
        local,
        length,
        has_peer: on_link != local,
        subnet,
        global,
        lasting,
        secondary: family == AF_INET && flags & IFA_F_TEMPORARY != 0,
        duplicate: family == AF_INET6 && flags & IFA_F_DADFAILED != 0,
        protocol,
        created: Duration::from_millis(u64::from(created) * 10),
    }))
}

/// Reads an interface's rp_filter (struct netconfmsg, NETCONFA_*). `all` has the index -1, `default` -2.
pub fn seen_netconf(payload: &[u8]) -> Result<Option<(i32, i32)>, NetlinkError> {
    const NETCONFA_IFINDEX: u16 = 1;
    const NETCONFA_RP_FILTER: u16 = 3;
    let (mut index, mut rp_filter) = (None, None);
    for attribute in attributes(payload, 4)? {
        let (kind, value) = attribute?;
        match kind {
            NETCONFA_IFINDEX => index = Some(number(value)?.cast_signed()),
            NETCONFA_RP_FILTER => {
                rp_filter = Some(number(value)?.cast_signed());
                break; // it comes behind the index, and much comes behind it
            }
            _ => {}
        }
    }
    Ok(index.zip(rp_filter).filter(|_| payload.first() == Some(&AF_INET)))
}

pub fn address_family(family: Family) -> u8 {
    match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    }
}

pub fn number(value: &[u8]) -> Result<u32, NetlinkError> {
    let bytes = value.first_chunk().ok_or_else(|| undecodable("a number of less than 4 bytes"))?;
    Ok(u32::from_ne_bytes(*bytes))
}

pub fn ip_of(value: &[u8]) -> Result<IpAddr, NetlinkError> {
    if let Ok(bytes) = <[u8; 4]>::try_from(value) {
        return Ok(bytes.into());
    }
    let bytes = <[u8; 16]>::try_from(value).map_err(|_| undecodable("an address of neither 4 nor 16 bytes"))?;
    Ok(bytes.into())
}

pub fn prefix(value: &[u8], length: u8) -> Result<IpCidr, NetlinkError> {
    // The kernel stores a rule's prefix as it was given, bits behind it included.
    Ok(IpInet::new(ip_of(value)?, length).map_err(undecodable)?.network())
}

pub fn name(value: &[u8]) -> Result<IfName, NetlinkError> {
    let name = value.split(|byte| *byte == 0).next().unwrap_or_default();
    IfName::new(name).ok_or_else(|| undecodable("the name of an interface is none"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::family_of;

    fn emitted(message: &impl Emitable) -> Vec<u8> {
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    fn a_rule() -> Rule {
        Rule {
            family: Family::V4,
            priority: 1000,
            selector: Selector {
                from: Some("10.0.0.1/32".parse().unwrap()),
                to: Some("10.1.0.0/16".parse().unwrap()),
                fwmark: Some((0x80, 0xff)),
                iif: IfName::new(b"eth0.100"),
                oif: IfName::new(b"eth1"),
            },
            table: 100_000,
            protocol: 171,
        }
    }

    #[test]
    fn fuzz() {
        crate::fuzz::run("messages", |bytes| {
            let sets = [
                RouteSet::Table(Family::V4, 254),
                RouteSet::Table(Family::V6, 1000),
                RouteSet::Protocol(Family::V4, 170),
            ];
            let routes = sets.iter().filter(|set| matches!(seen_route(bytes, set), Ok(Some(_)))).count();
            let links = seen_link(bytes).is_ok() && seen_bridge(bytes).is_ok() && on_another(bytes).is_ok();
            let others = [
                seen_rule(bytes).is_ok(),
                seen_address(bytes).is_ok(),
                seen_netconf(bytes).is_ok(),
                seen_veth(bytes).is_ok(),
            ];
            routes > 0 || links || others.contains(&true)
        });
    }

    #[test]
    fn rules_and_routes_read_as_they_were_written() {
        let sent = a_rule();
        assert_eq!(seen_rule(&emitted(&rule(&sent).unwrap())), Ok(Some(SeenRule::Lookup(sent))));
        for (to, via) in
            [("0.0.0.0/0", "10.0.0.1"), ("10.9.0.0/16", "10.0.0.1"), ("::/0", "fe80::1"), ("fd00::/64", "fe80::1")]
        {
            let sent = Route {
                table: 70_000,
                to: to.parse().unwrap(),
                via: Some(via.parse().unwrap()),
                dev: Some(Dev { index: 7, name: IfName::new(b"eth1").unwrap() }),
                scope: Scope::Global,
                metric: Some(50),
                onlink: true,
                protocol: 171,
            };
            let family = family_of(&sent.to);
            let read = |set| seen_route(&emitted(&route(&sent)), &set).unwrap();
            let seen = read(RouteSet::Table(family, 70_000)).unwrap();
            assert_eq!(seen.to_route(sent.dev.clone()), Some(sent.clone()));
            assert_eq!(read(RouteSet::Table(family, 7)), None, "outside the set");
            assert_eq!(read(RouteSet::Protocol(family, 4)), None, "outside the set");
        }
    }

    #[test]
    fn a_rule_with_anything_unknown_is_others() {
        let add = |kind: u16, value: &[u8]| {
            let mut message = rule(&a_rule()).unwrap();
            message.attributes.push(RuleAttribute::Other(DefaultNla::new(kind, value.into())));
            seen_rule(&emitted(&message)).unwrap().unwrap()
        };
        let other = SeenRule::Other { family: a_rule().family, priority: a_rule().priority };
        assert_eq!(add(14, &[0xff; 4]).lookup(), Some(&a_rule()), "no suppression");
        for (kind, value) in [(14, &[0; 4][..]), (13, &[0; 4]), (19, &[1]), (20, &[0; 8]), (24, &[0; 4]), (99, &[1])] {
            assert_eq!(add(kind, value), other, "attribute {kind}");
        }
        let header = |change: fn(&mut [u8])| {
            let mut bytes = emitted(&rule(&a_rule()).unwrap());
            change(&mut bytes);
            seen_rule(&bytes).unwrap().unwrap()
        };
        assert_eq!(header(|bytes| bytes[3] = 0x10), other, "tos");
        assert_eq!(header(|bytes| bytes[7] = 6), other, "blackhole");
        assert_eq!(header(|bytes| bytes[8] = 2), other, "not");
        assert_eq!(header(|bytes| bytes[8] = 8).lookup(), Some(&a_rule()), "its iif is not there just now");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(0_u8.., 0..120)) {
            let _ = (seen_rule(&bytes), seen_link(&bytes), seen_veth(&bytes), seen_address(&bytes), seen_netconf(&bytes));
            let _ = seen_route(&bytes, &RouteSet::Table(Family::V4, 7));
        }

        #[test]
        fn no_damage_makes_a_reader_panic(at in 0_usize..200, byte in 0_u8..) {
            let mut bytes = emitted(&rule(&a_rule()).unwrap());
            let at = at % bytes.len();
            bytes[at] = byte;
            let _ = seen_rule(&bytes);
            let _ = seen_route(&bytes, &RouteSet::Table(Family::V4, 7));
        }
    }
}
