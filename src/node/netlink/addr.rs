//! Addresses (struct ifaddrmsg, IFA_*).

use std::net::IpAddr;
use std::time::Duration;

use cidr::IpInet;
use nix::libc::{
    IFA_ADDRESS, IFA_CACHEINFO, IFA_F_DADFAILED, IFA_F_SECONDARY, IFA_F_TEMPORARY, IFA_F_TENTATIVE, IFA_FLAGS,
    IFA_LOCAL, RT_SCOPE_HOST, RT_SCOPE_UNIVERSE,
};
use rtnetlink::packet_core::DefaultNla;

use super::attr::{Body, address_family, attributes, ip_family, ip_of, number, octets};
use super::socket::{NetlinkError, undecodable};
use crate::model::{Family, PROTO_DECLARED};
use crate::observed::Address;

/// Length of struct ifaddrmsg.
pub const HEADER: usize = 8;
/// linux/if_addr.h
pub const IFA_PROTO: u16 = 11;
/// The metric of the route to its subnet.
pub const IFA_RT_PRIORITY: u16 = 9;

/// Body of the dump of all addresses.
pub fn all() -> Body {
    Body::new(Vec::new(), HEADER)
}

/// The request that adds or deletes this address on the interface with this index.
pub fn request(index: u32, address: &IpInet) -> Body {
    let family = address_family(Family::of(address.address()));
    // As ip(8) does.
    let scope = if address.address().is_loopback() { RT_SCOPE_HOST } else { RT_SCOPE_UNIVERSE };
    let mut header = vec![family, address.network_length(), 0, scope];
    header.extend(index.to_ne_bytes());
    Body::new(header, HEADER).with([
        DefaultNla::new(IFA_LOCAL, octets(address.address())),
        DefaultNla::new(IFA_ADDRESS, octets(address.address())),
        DefaultNla::new(IFA_PROTO, vec![PROTO_DECLARED]),
    ])
}

/// Decodes an address if it is global.
pub fn seen_global(payload: &[u8]) -> Result<Option<Address>, NetlinkError> {
    // Most belong to the links of pods, and are not worth decoding.
    if payload.get(3).is_some_and(|scope| *scope != RT_SCOPE_UNIVERSE) {
        return Ok(None);
    }
    Ok(seen(payload)?.filter(|address| address.global))
}

/// Decodes an address; `None` for families other than IP.
pub fn seen(payload: &[u8]) -> Result<Option<Address>, NetlinkError> {
    let header =
        payload.first_chunk::<HEADER>().ok_or_else(|| undecodable("an address message ends within its header"))?;
    let [family, length, flags, scope, index @ ..] = *header;
    let mut flags = u32::from(flags);
    let Some(family) = ip_family(family) else { return Ok(None) };
    let (mut address, mut local, mut protocol, mut created) = (None, None, None, 0);
    for attribute in attributes(payload, HEADER)? {
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
    // With a peer, IFA_ADDRESS is the peer's, and the connected subnet is the peer's.
    let (Some(on_link), Some(local)) = (address.or(local), local.or(address)) else {
        return Err(undecodable("an address message has no address"));
    };
    let subnet = IpInet::new(on_link, length).map_err(undecodable)?.network();
    let passing = if family == Family::V6 { IFA_F_TEMPORARY | IFA_F_TENTATIVE } else { 0 };
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
        secondary: family == Family::V4 && flags & IFA_F_SECONDARY != 0,
        duplicate: family == Family::V6 && flags & IFA_F_DADFAILED != 0,
        protocol,
        created: Duration::from_millis(u64::from(created) * 10),
    }))
}
