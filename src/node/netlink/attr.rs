//! Encodes and decodes attributes of messages (struct nlattr).

use std::net::IpAddr;

use cidr::{IpCidr, IpInet};
use nix::libc;
use rtnetlink::packet_core::{DefaultNla, Emitable};

use super::socket::{NetlinkError, undecodable};
use crate::model::{Family, IfName};

pub const AF_INET: u8 = libc::AF_INET as u8;
pub const AF_INET6: u8 = libc::AF_INET6 as u8;

/// The body of a message: a fixed header, and attributes.
pub struct Body {
    header: Vec<u8>,
    attributes: Vec<DefaultNla>,
}

impl Body {
    /// A header of this length that begins with these bytes, without attributes.
    pub fn new(mut header: Vec<u8>, length: usize) -> Body {
        header.resize(length, 0);
        Body { header, attributes: Vec::new() }
    }

    /// With these attributes appended.
    pub fn with(mut self, attributes: impl IntoIterator<Item = DefaultNla>) -> Body {
        self.attributes.extend(attributes);
        self
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

/// A nested attribute.
pub fn nested(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    DefaultNla::new(kind | libc::NLA_F_NESTED as u16, emitted(&attributes))
}

/// Attributes, or the body of a message, as they stand in it.
pub fn emitted(what: &dyn Emitable) -> Vec<u8> {
    let mut value = vec![0; what.buffer_len()];
    what.emit(&mut value);
    value
}

/// Adds an attribute to a message.
pub fn push(message: &mut Vec<u8>, kind: u16, value: &[u8]) {
    message.extend((value.len() as u16 + 4).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
    message.resize(message.len().next_multiple_of(4), 0);
}

/// The attributes of a message behind a header of the given length.
pub fn attributes(message: &[u8], header: usize) -> Result<Attributes<'_>, NetlinkError> {
    message.get(header..).map(Attributes).ok_or_else(|| undecodable("the message ends within its header"))
}

/// Attributes (struct nlattr), each as its kind and value. Interface names in them need not be UTF-8, but the crate's
/// typed messages require it: one odd name would make a whole dump undecodable. And a node has thousands of attributes:
/// this walk takes a third of the time of the crate's own.
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// Nested attributes.
    pub fn nested(value: &'a [u8]) -> Attributes<'a> {
        Attributes(value)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<(u16, &'a [u8]), NetlinkError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        const NLA_TYPE_MASK: u16 = libc::NLA_TYPE_MASK as u16;
        let message = std::mem::take(&mut self.0);
        let [length_0, length_1, kind_0, kind_1, ..] = *message else {
            return (!message.is_empty()).then(|| Err(undecodable("the message ends within an attribute")));
        };
        let length = usize::from(u16::from_ne_bytes([length_0, length_1]));
        let Some(value) = message.get(4..length) else {
            return Some(Err(undecodable("an attribute has a length outside its message")));
        };
        self.0 = message.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Ok((u16::from_ne_bytes([kind_0, kind_1]) & NLA_TYPE_MASK, value)))
    }
}

pub fn address_family(family: Family) -> u8 {
    match family {
        Family::V4 => AF_INET,
        Family::V6 => AF_INET6,
    }
}

/// `None` for families other than IP.
pub fn ip_family(family: u8) -> Option<Family> {
    match family {
        AF_INET => Some(Family::V4),
        AF_INET6 => Some(Family::V6),
        _ => None,
    }
}

pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

pub fn number(value: &[u8]) -> Result<u32, NetlinkError> {
    let bytes = value.first_chunk().ok_or_else(|| undecodable("a number has fewer than 4 bytes"))?;
    Ok(u32::from_ne_bytes(*bytes))
}

pub fn exactly<const N: usize>(value: &[u8]) -> Result<&[u8; N], NetlinkError> {
    value.first_chunk().ok_or_else(|| undecodable(format_args!("an attribute has fewer than {N} bytes")))
}

pub fn ip_of(value: &[u8]) -> Result<IpAddr, NetlinkError> {
    if let Ok(bytes) = <[u8; 4]>::try_from(value) {
        return Ok(bytes.into());
    }
    let bytes = <[u8; 16]>::try_from(value).map_err(|_| undecodable("an address has neither 4 nor 16 bytes"))?;
    Ok(bytes.into())
}

pub fn prefix(value: &[u8], length: u8) -> Result<IpCidr, NetlinkError> {
    // The kernel stores a rule's prefix as given, including bits after its length.
    Ok(IpInet::new(ip_of(value)?, length).map_err(undecodable)?.network())
}

pub fn name(value: &[u8]) -> Result<IfName, NetlinkError> {
    let name = value.split(|byte| *byte == 0).next().unwrap_or_default();
    IfName::new(name).ok_or_else(|| undecodable("invalid interface name"))
}
