//! Messages with other addresses, names and hardware addresses in them. The attributes that are listed here are kept or
//! replaced. All others are removed, because their contents are not known; of a rule they are kept without their contents,
//! because without the attribute it would be another rule.

use std::net::IpAddr;

use cidr::{IpCidr, IpInet};
use nix::libc::{
    IFA_ADDRESS, IFA_BROADCAST, IFA_CACHEINFO, IFA_FLAGS, IFA_LOCAL, IFLA_ADDRESS, IFLA_BROADCAST, IFLA_GROUP,
    IFLA_IFALIAS, IFLA_IFNAME, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_INFO_SLAVE_KIND, IFLA_LINK, IFLA_LINK_NETNSID,
    IFLA_LINKINFO, IFLA_MASTER, IFLA_MTU, IFLA_OPERSTATE, RTA_CACHEINFO, RTA_DST, RTA_GATEWAY, RTA_IIF, RTA_METRICS,
    RTA_MULTIPATH, RTA_OIF, RTA_PREFSRC, RTA_PRIORITY, RTA_SRC, RTA_TABLE,
};

use super::attr::{Attributes, attributes, ip_of, octets, push};
use super::dumps::{Dumps, Message};
use super::socket::NetlinkError;
use super::{addr, link, route, rule};
use crate::model::{ALIAS, IfName};

/// Says what stands for what.
pub trait Substitute {
    /// For an address.
    fn address(&mut self, address: IpAddr) -> IpAddr;
    /// For the name of an interface.
    fn name(&mut self, name: &[u8]) -> Vec<u8>;
    /// For a hardware address.
    fn hardware(&mut self, hardware: &[u8]) -> Vec<u8>;
}

/// What becomes of an attribute.
#[derive(Clone, Copy)]
enum Rewrite {
    Stays,
    Address,
    /// A family, and an address of it.
    Via,
    Name,
    Hardware,
    /// Stays where it is node-fixer's mark.
    Alias,
    /// Next hops, each with attributes of a route.
    Hops,
    LinkInfo,
    /// Stays without what is in it.
    Emptied,
    Goes,
}

fn of_rule(kind: u16) -> Rewrite {
    match kind {
        rule::FRA_DST | rule::FRA_SRC => Rewrite::Address,
        rule::FRA_IIFNAME | rule::FRA_OIFNAME => Rewrite::Name,
        // Numbers, all of them.
        rule::FRA_GOTO..=rule::FRA_DSCP_MASK => Rewrite::Stays,
        _ => Rewrite::Emptied,
    }
}

fn of_route(kind: u16) -> Rewrite {
    match kind {
        RTA_DST | RTA_SRC | RTA_GATEWAY | RTA_PREFSRC => Rewrite::Address,
        route::RTA_VIA => Rewrite::Via,
        RTA_MULTIPATH => Rewrite::Hops,
        RTA_IIF
        | RTA_OIF
        | RTA_PRIORITY
        | RTA_METRICS
        | RTA_CACHEINFO
        | RTA_TABLE
        | route::RTA_PREF
        | route::RTA_NH_ID => Rewrite::Stays,
        // Its being there is what counts.
        route::RTA_ENCAP => Rewrite::Emptied,
        _ => Rewrite::Goes,
    }
}

fn of_address(kind: u16) -> Rewrite {
    match kind {
        IFA_ADDRESS | IFA_LOCAL | IFA_BROADCAST => Rewrite::Address,
        IFA_CACHEINFO | IFA_FLAGS | addr::IFA_RT_PRIORITY | addr::IFA_PROTO => Rewrite::Stays,
        _ => Rewrite::Goes,
    }
}

fn of_link(kind: u16) -> Rewrite {
    match kind {
        IFLA_ADDRESS | IFLA_BROADCAST => Rewrite::Hardware,
        IFLA_IFNAME => Rewrite::Name,
        IFLA_IFALIAS => Rewrite::Alias,
        IFLA_LINKINFO => Rewrite::LinkInfo,
        IFLA_MTU | IFLA_LINK | IFLA_MASTER | IFLA_OPERSTATE | IFLA_GROUP | IFLA_LINK_NETNSID => Rewrite::Stays,
        _ => Rewrite::Goes,
    }
}

impl Dumps {
    /// The same with substitutes. What cannot be decoded is removed.
    pub fn replaced(&self, by: &mut dyn Substitute) -> Dumps {
        let mut all = |messages: &[Message], header: usize, fate: fn(u16) -> Rewrite| -> Vec<Message> {
            messages.iter().filter_map(|message| replaced(&message.0, header, fate, by).ok().map(Message)).collect()
        };
        Dumps {
            rules: all(&self.rules, rule::HEADER, of_rule),
            routes: all(&self.routes, route::HEADER, of_route),
            addresses: all(&self.addresses, addr::HEADER, of_address),
            links: all(&self.links, link::HEADER, of_link),
            // Numbers, all of them.
            netconf: self.netconf.clone(),
        }
    }

    /// All prefixes that rules, routes and addresses name.
    pub fn prefixes(&self) -> Vec<IpCidr> {
        let mut prefixes = Vec::new();
        for message in self.rules.iter().chain(&self.routes).chain(&self.addresses) {
            // Where each is in a message, all have the destination's length second, and the source's third.
            let [_, to, from, ..] = *message.0.as_slice() else { continue };
            for (kind, value) in attributes(&message.0, rule::HEADER).into_iter().flatten().flatten() {
                let length = if kind == RTA_DST { to } else { from };
                let prefix = ip_of(value).ok().and_then(|address| IpInet::new(address, length).ok());
                prefixes.extend(prefix.filter(|_| matches!(kind, RTA_DST | RTA_SRC)).map(|prefix| prefix.network()));
            }
        }
        for message in &self.addresses {
            prefixes.extend(addr::seen(&message.0).ok().flatten().map(|address| address.subnet));
        }
        prefixes
    }

    /// The names and hardware addresses of all links.
    pub fn hardware(&self) -> Vec<(IfName, Vec<u8>)> {
        let seen = self.links.iter().filter_map(|message| link::seen(&message.0).ok().flatten());
        seen.map(|link| (link.dev.name, link.hardware)).collect()
    }
}

fn replaced(
    message: &[u8],
    header: usize,
    fate: fn(u16) -> Rewrite,
    by: &mut dyn Substitute,
) -> Result<Vec<u8>, NetlinkError> {
    let mut kept: Vec<u8> = message.iter().copied().take(header).collect();
    replace(&mut kept, attributes(message, header)?, fate, by)?;
    Ok(kept)
}

fn replace(
    kept: &mut Vec<u8>,
    attributes: Attributes<'_>,
    fate: fn(u16) -> Rewrite,
    by: &mut dyn Substitute,
) -> Result<(), NetlinkError> {
    for attribute in attributes {
        let (kind, value) = attribute?;
        let value = match fate(kind) {
            Rewrite::Stays => value.to_vec(),
            Rewrite::Address => octets(by.address(ip_of(value)?)),
            Rewrite::Via => {
                let (family, address) = value.split_at_checked(2).unwrap_or_default();
                [family, &octets(by.address(ip_of(address)?))].concat()
            }
            Rewrite::Name => [by.name(value.split(|byte| *byte == 0).next().unwrap_or_default()), vec![0]].concat(),
            // That of a tunnel is its own address.
            Rewrite::Hardware => match ip_of(value) {
                Ok(address) => octets(by.address(address)),
                Err(_) => by.hardware(value),
            },
            Rewrite::Alias if value.strip_suffix(b"\0").unwrap_or(value) == ALIAS.as_bytes() => value.to_vec(),
            Rewrite::Hops => hops(value, by)?,
            Rewrite::LinkInfo => link_info(value),
            Rewrite::Emptied => vec![0; value.len()],
            Rewrite::Alias | Rewrite::Goes => continue,
        };
        push(kept, kind, &value);
    }
    Ok(())
}

/// Next hops (struct rtnexthop, each with attributes).
fn hops(mut value: &[u8], by: &mut dyn Substitute) -> Result<Vec<u8>, NetlinkError> {
    let mut kept = Vec::new();
    while let [length_0, length_1, ..] = value {
        let length = usize::from(u16::from_ne_bytes([*length_0, *length_1]));
        let Some(hop) = value.get(..length).filter(|hop| hop.len() >= route::NEXT_HOP) else { break };
        let mut hop = replaced(hop, route::NEXT_HOP, of_route, by)?;
        hop.splice(..2, (hop.len() as u16).to_ne_bytes());
        kept.extend(hop);
        value = value.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(kept)
}

/// What a link is made of. What else is to say of it are addresses mostly; of bridges and VRFs the numbers stay.
fn link_info(value: &[u8]) -> Vec<u8> {
    let (mut kept, mut kind_of) = (Vec::new(), &[][..]);
    for (kind, value) in Attributes::nested(value).flatten() {
        match kind {
            IFLA_INFO_KIND | IFLA_INFO_SLAVE_KIND => push(&mut kept, kind, value),
            IFLA_INFO_DATA if matches!(kind_of, b"bridge\0" | b"vrf\0" | b"bridge" | b"vrf") => {
                let mut numbers = Vec::new();
                for (kind, value) in Attributes::nested(value).flatten().filter(|(_, value)| value.len() <= 4) {
                    push(&mut numbers, kind, value);
                }
                push(&mut kept, kind, &numbers);
            }
            _ => {}
        }
        kind_of = if kind == IFLA_INFO_KIND { value } else { kind_of };
    }
    kept
}
