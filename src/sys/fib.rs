//! What `explain` reads: rules with all their selectors, the routes that hold an address, links, settings; and the
//! kernel's own answer. Apart from the readers of a run, which read less, and faster.

use std::cell::RefCell;
use std::net::IpAddr;

use anyhow::Context;
use nix::errno::Errno;
use rtnetlink::packet_core::DefaultNla;

use super::message::{
    self, AF_INET, AF_INET6, Body, RTM_GETADDR, RTM_GETLINK, RTM_GETNETCONF, RTM_GETROUTE, RTM_GETRULE,
};
use super::netlink::{Attributes, Netlink, NetlinkError, attributes, undecodable};
use crate::explain::fib::{Action, Conf, Fib, FibAddress, FibHop, FibLink, FibRoute, FibRule, Kind, Packet};
use crate::explain::{Answer, host};
use crate::net::{Family, IfName, TABLE_DEFAULT, TABLE_LOCAL};

/// Reads for `explain`. It needs no privilege, and changes nothing.
#[derive(Debug)]
pub struct FibReader(Netlink);

impl FibReader {
    /// Opens the way to the kernel.
    ///
    /// # Errors
    ///
    /// There is no netlink socket to be had.
    pub fn open() -> anyhow::Result<FibReader> {
        Netlink::open().map(FibReader).context("cannot open a netlink socket to look at the network")
    }

    /// All that decides about packets between two addresses of one family.
    ///
    /// # Errors
    ///
    /// What could not be looked at.
    pub fn read(&mut self, a: IpAddr, b: IpAddr) -> anyhow::Result<Fib> {
        let netlink = &mut self.0;
        let family = Family::of(a);
        let number = message::address_family(family);
        let rules = netlink.dump(RTM_GETRULE, &Body::new(vec![number; 1], 12), |rule| fib_rule(rule, family));
        let rules = rules.context("cannot look at the policy rules")?;
        let (tables, devices) = (RefCell::new(Vec::new()), RefCell::new(Vec::new()));
        let gateways = RefCell::new(Vec::new());
        let routes = netlink.dump(RTM_GETROUTE, &Body::new(vec![number; 1], 12), |payload| {
            let Some(route) = fib_route(payload)? else { return Ok(None) };
            note(&tables, route.table);
            for hop in &route.hops {
                if let Some(oif) = hop.oif {
                    // The kernel's own tables use most interfaces, and nobody asks which.
                    if !matches!(route.table, TABLE_DEFAULT..=TABLE_LOCAL) {
                        note(&devices, (route.table, oif));
                    }
                    if hop.via.is_some() {
                        note(&gateways, oif);
                    }
                }
            }
            Ok(Some(route).filter(|route| route.to.contains(&a) || route.to.contains(&b)))
        });
        let routes = routes.with_context(|| format!("cannot look at the {family} routes"))?;
        let addresses = netlink.dump(RTM_GETADDR, &message::all_addresses(), message::seen_address);
        let addresses = addresses.context("cannot look at the addresses of all interfaces")?.into_iter();
        let addresses = addresses.map(|seen| FibAddress { index: seen.index, local: seen.local, subnet: seen.subnet });
        let confs = netlink.dump(RTM_GETNETCONF, &Body::new(vec![number], 1), conf);
        let confs: Vec<(i32, Conf)> = confs.context("cannot look at the settings of interfaces")?;
        let of =
            |wanted: i32| confs.iter().find(|(index, _)| *index == wanted).map(|(_, conf)| *conf).unwrap_or_default();
        let links = netlink.dump(RTM_GETLINK, &message::one_link(0, None), link).context("cannot look at the links")?;
        let links = links.into_iter().map(|link| {
            let conf = link.index.try_into().map(of).unwrap_or_default();
            let accept_local = family == Family::V4 && is_on("ipv4", &link.name, "accept_local");
            let force_forwarding = family == Family::V6 && is_on("ipv6", &link.name, "force_forwarding");
            FibLink { conf: Conf { accept_local, force_forwarding, ..conf }, ..link }
        });
        let all_name = IfName::new(b"all");
        let accept_local = family == Family::V4 && all_name.is_some_and(|name| is_on("ipv4", &name, "accept_local"));
        Ok(Fib {
            rules,
            routes,
            tables: tables.into_inner(),
            devices: devices.into_inner(),
            gateways: gateways.into_inner(),
            links: links.collect(),
            addresses: addresses.collect(),
            all: Conf { accept_local, ..of(-1) },
        })
    }

    /// The route that the kernel itself takes for a packet.
    ///
    /// # Errors
    ///
    /// The kernel could not be asked. Its refusal of the packet is an answer.
    pub fn ask(&mut self, packet: &Packet) -> anyhow::Result<Answer> {
        let mut found = None;
        let got = self.0.get(RTM_GETROUTE, &question(packet), &mut |_, payload| {
            found = fib_route(payload)?;
            Ok(())
        });
        match got {
            Ok(()) => {
                let Packet { from, to, .. } = packet;
                found
                    .map(Ok)
                    .with_context(|| format!("the kernel does not say which route it takes from {from} to {to}"))
            }
            // With words it is the question that it refuses, without them the packet.
            Err(error @ NetlinkError::Refused { errno: Errno::EINVAL, text: None })
            | Err(
                error @ NetlinkError::Refused {
                    errno: Errno::ENETUNREACH | Errno::EHOSTUNREACH | Errno::EACCES | Errno::EXDEV | Errno::ESRCH,
                    ..
                },
            ) => Ok(Err(error.to_string())),
            Err(error) => Err(anyhow::Error::new(error).context("cannot ask the kernel which route it takes")),
        }
    }
}

/// Adds what is not there yet.
fn note<T: PartialEq>(list: &RefCell<Vec<T>>, item: T) {
    let mut list = list.borrow_mut();
    if !list.contains(&item) {
        list.push(item);
    }
}

/// A sysctl of an interface that no netlink message has. Unreadable is off, as it is by default.
fn is_on(family: &str, name: &IfName, key: &str) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let name = std::ffi::OsStr::from_bytes(name.as_bytes());
    let path = std::path::Path::new("/proc/sys/net").join(family).join("conf").join(name).join(key);
    std::fs::read(path).is_ok_and(|value| !value.starts_with(b"0"))
}

/// Body of RTM_GETROUTE for one packet: UDP, of root.
fn question(packet: &Packet) -> Body {
    const RTM_F_LOOKUP_TABLE: u32 = 0x1000;
    const RTM_F_FIB_MATCH: u32 = 0x2000;
    const RTA_DST: u16 = 1;
    const RTA_SRC: u16 = 2;
    const RTA_IIF: u16 = 3;
    const RTA_UID: u16 = 25;
    const RTA_IP_PROTO: u16 = 27;
    const IPPROTO_UDP: u8 = 17;
    let octets = |address| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let length = host(packet.to).network_length();
    let mut header = vec![message::address_family(packet.family()), length, length, 0, 0, 0, 0, 0];
    // IPv6 always names the table, and refuses to be asked to.
    let flags = if packet.to.is_ipv4() { RTM_F_LOOKUP_TABLE | RTM_F_FIB_MATCH } else { RTM_F_FIB_MATCH };
    header.extend(flags.to_ne_bytes());
    let mut body = Body::new(header, 12);
    body.add(DefaultNla::new(RTA_DST, octets(packet.to)));
    body.add(DefaultNla::new(RTA_SRC, octets(packet.from)));
    if let Some(iif) = packet.iif {
        body.add(DefaultNla::new(RTA_IIF, iif.to_ne_bytes().into()));
    }
    body.add(DefaultNla::new(RTA_UID, 0_u32.to_ne_bytes().into()));
    body.add(DefaultNla::new(RTA_IP_PROTO, vec![IPPROTO_UDP]));
    body
}

/// Reads a rule of this family with all its selectors (struct fib_rule_hdr, FRA_*).
fn fib_rule(payload: &[u8], wanted: Family) -> Result<Option<FibRule>, NetlinkError> {
    const FIB_RULE_INVERT: u32 = 2;
    let header = payload.first_chunk::<12>().ok_or_else(|| undecodable("a rule ends within its header"))?;
    let [family, to_length, from_length, tos, table, _, _, action, flags @ ..] = *header;
    if family != message::address_family(wanted) {
        return Ok(None);
    }
    let (mut table, mut target) = (u32::from(table), 0);
    let (mut mark, mut mask) = (0, 0);
    let (mut dscp, mut dscp_mask, mut label, mut label_mask) = (None, u8::MAX, None, 0xf_ffff);
    let mut rule = FibRule { tos, ..FibRule::new(0, Action::Nop) };
    rule.not = u32::from_ne_bytes(flags) & FIB_RULE_INVERT != 0;
    for attribute in attributes(payload, header.len())? {
        let (kind, value) = attribute?;
        let byte = || value.first().copied().ok_or_else(|| undecodable("an attribute of a rule is empty"));
        match kind {
            1 => rule.to = Some(message::prefix(value, to_length)?),
            2 => rule.from = Some(message::prefix(value, from_length)?),
            3 => rule.iif = Some(message::name(value)?),
            4 => target = message::number(value)?,
            6 => rule.priority = message::number(value)?,
            10 => mark = message::number(value)?,
            11 | 18 | 21 => {} // realms, padding, who installed it: none of them selects
            12 => rule.tunnel = Some(u64::from_be_bytes(*exactly(value)?)).filter(|id| *id != 0),
            13 => rule.suppress_group = Some(message::number(value)?).filter(|group| *group != u32::MAX),
            14 => rule.suppress_length = Some(message::number(value)?).filter(|length| *length != u32::MAX),
            15 => table = message::number(value)?,
            16 => mask = message::number(value)?,
            17 => rule.oif = Some(message::name(value)?),
            19 => rule.l3mdev = byte()? != 0,
            20 => {
                let [a, b, c, d, rest @ ..] = *exactly::<8>(value)?;
                rule.users = Some((u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes(rest)));
            }
            22 => rule.protocol = Some(byte()?).filter(|protocol| *protocol != 0),
            23 => rule.source_ports = Some(ports(value)?),
            24 => rule.ports = Some(ports(value)?),
            25 => dscp = Some(byte()?),
            26 => label = Some(u32::from_be_bytes(*exactly(value)?)),
            27 => label_mask = u32::from_be_bytes(*exactly(value)?),
            28 | 29 => {} // masks of ports, which count only beside ports
            30 => dscp_mask = byte()?,
            _ => rule.unknown.push(kind),
        }
    }
    rule.mark = (mask != 0).then_some((mark, mask));
    rule.dscp = dscp.map(|dscp| (dscp, dscp_mask));
    rule.flow_label = label.map(|label| (label, label_mask));
    rule.action = match action {
        1 => Action::Lookup(table),
        2 => Action::Goto(target),
        3 => Action::Nop,
        6 => Action::Blackhole,
        7 => Action::Unreachable,
        8 => Action::Prohibit,
        other => Action::Other(other),
    };
    Ok(Some(rule))
}

fn exactly<const N: usize>(value: &[u8]) -> Result<&[u8; N], NetlinkError> {
    value.first_chunk().ok_or_else(|| undecodable(format_args!("an attribute of less than {N} bytes")))
}

fn ports(value: &[u8]) -> Result<(u16, u16), NetlinkError> {
    let [a, b, c, d] = *exactly(value)?;
    Ok((u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])))
}

/// Reads a route; `None` for one that is only cached, or of a family that is not IP (struct rtmsg, RTA_*).
fn fib_route(payload: &[u8]) -> Result<Option<FibRoute>, NetlinkError> {
    const RTM_F_CLONED: u32 = 0x200;
    let header = payload.first_chunk::<12>().ok_or_else(|| undecodable("a route ends within its header"))?;
    let [family, to_length, from_length, tos, table, protocol, _, kind, flags @ ..] = *header;
    let flags = u32::from_ne_bytes(flags);
    let family = match family {
        AF_INET => Family::V4,
        AF_INET6 => Family::V6,
        _ => return Ok(None),
    };
    if flags & RTM_F_CLONED != 0 {
        return Ok(None);
    }
    let mut route = FibRoute {
        table: table.into(),
        to: family.everything(),
        from: None,
        kind: match kind {
            1 => Kind::Unicast,
            2 | 4 => Kind::Local,
            3 => Kind::Broadcast,
            6 => Kind::Blackhole,
            7 => Kind::Unreachable,
            8 => Kind::Prohibit,
            9 => Kind::Throw,
            other => Kind::Other(other),
        },
        hops: Vec::new(),
        metric: 0,
        tos,
        protocol,
        nexthop: None,
    };
    let mut hop = hop_of(flags);
    for attribute in attributes(payload, header.len())? {
        let (kind, value) = attribute?;
        match kind {
            1 => route.to = message::prefix(value, to_length)?,
            2 => route.from = Some(message::prefix(value, from_length)?).filter(|from| from.network_length() > 0),
            4 => hop.oif = Some(message::number(value)?),
            5 | 18 => hop.via = Some(gateway(kind, value)?),
            6 => route.metric = message::number(value)?,
            9 => route.hops = hops(value)?,
            15 => route.table = message::number(value)?,
            30 => route.nexthop = Some(message::number(value)?),
            _ => {}
        }
    }
    if hop.oif.is_some() || hop.via.is_some() {
        route.hops.push(hop);
    }
    Ok(Some(route))
}

fn hop_of(flags: u32) -> FibHop {
    const RTNH_F_DEAD: u32 = 1;
    const RTNH_F_LINKDOWN: u32 = 16;
    FibHop { via: None, oif: None, dead: flags & RTNH_F_DEAD != 0, linkdown: flags & RTNH_F_LINKDOWN != 0 }
}

/// RTA_GATEWAY is an address, RTA_VIA one behind its family.
fn gateway(kind: u16, value: &[u8]) -> Result<IpAddr, NetlinkError> {
    message::ip_of(if kind == 18 { value.get(2..).unwrap_or_default() } else { value })
}

/// The hops of RTA_MULTIPATH (struct rtnexthop, each with attributes).
fn hops(mut value: &[u8]) -> Result<Vec<FibHop>, NetlinkError> {
    let mut hops = Vec::new();
    while let [length_0, length_1, flags, _, index @ ..] = value {
        let length = usize::from(u16::from_ne_bytes([*length_0, *length_1]));
        let own = value.get(8..length).ok_or_else(|| undecodable("a next hop is longer than its route"))?;
        let mut hop = FibHop { oif: Some(message::number(index)?), ..hop_of((*flags).into()) };
        for attribute in Attributes::nested(own) {
            let (kind, value) = attribute?;
            if matches!(kind, 5 | 18) {
                hop.via = Some(gateway(kind, value)?);
            }
        }
        hops.push(hop);
        value = value.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(hops)
}

/// Reads a link with what rules and VRFs ask of it (struct ifinfomsg, IFLA_*).
fn link(payload: &[u8]) -> Result<Option<FibLink>, NetlinkError> {
    let seen = message::seen_link(payload)?;
    let mut link = FibLink {
        index: seen.dev.index,
        name: seen.dev.name,
        group: 0,
        master: None,
        vrf_table: None,
        conf: Conf::default(),
    };
    for attribute in attributes(payload, 16)? {
        let (kind, value) = attribute?;
        match kind {
            10 if seen.vrf_slave => link.master = Some(message::number(value)?),
            27 => link.group = message::number(value)?,
            18 => {
                let info: Vec<_> = Attributes::nested(value).flatten().collect();
                if info.iter().any(|(kind, value)| *kind == 1 && value.starts_with(b"vrf\0")) {
                    let data = info.iter().filter(|(kind, _)| *kind == 2);
                    let mut data = data.flat_map(|(_, value)| Attributes::nested(value).flatten());
                    link.vrf_table =
                        data.find(|(kind, _)| *kind == 1).map(|(_, table)| message::number(table)).transpose()?;
                }
            }
            _ => {}
        }
    }
    Ok(Some(link))
}

/// Reads an interface's settings (struct netconfmsg, NETCONFA_*). `all` has the index -1.
fn conf(payload: &[u8]) -> Result<Option<(i32, Conf)>, NetlinkError> {
    let (mut index, mut conf) = (None, Conf::default());
    for attribute in attributes(payload, 4)? {
        let (kind, value) = attribute?;
        match kind {
            1 => index = Some(message::number(value)?.cast_signed()),
            2 => conf.forwarding = message::number(value)? != 0,
            3 => conf.rp_filter = message::number(value)?.cast_signed(),
            _ => {}
        }
    }
    Ok(index.map(|index| (index, conf)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz() {
        crate::fuzz::run("fib", |bytes| {
            let rules = [Family::V4, Family::V6].map(|family| fib_rule(bytes, family).is_ok());
            let others = [fib_route(bytes).is_ok(), link(bytes).is_ok(), conf(bytes).is_ok(), hops(bytes).is_ok()];
            rules.iter().chain(&others).any(|taken| *taken)
        });
    }

    proptest::proptest! {

    #[test]
        fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(0_u8.., 0..120), family in 0_usize..3) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = [AF_INET, AF_INET6, 7][family];
            }
            let _ = (fib_rule(&bytes, Family::V4), fib_route(&bytes), link(&bytes), conf(&bytes), hops(&bytes));
        }
    }

    #[test]
    fn the_question_names_one_packet() {
        let packet = Packet { from: "10.0.0.1".parse().unwrap(), to: "192.0.2.1".parse().unwrap(), iif: Some(7) };
        let mut bytes = vec![0; rtnetlink::packet_core::Emitable::buffer_len(&question(&packet))];
        rtnetlink::packet_core::Emitable::emit(&question(&packet), &mut bytes);
        let route = fib_route(&bytes).unwrap().unwrap();
        assert_eq!(route.to, "192.0.2.1/32".parse::<cidr::IpCidr>().unwrap());
        assert_eq!(route.from, Some("10.0.0.1/32".parse().unwrap()));
    }
}
