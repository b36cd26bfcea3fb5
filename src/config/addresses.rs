//! The section `addresses`.

use std::fmt;
use std::net::IpAddr;

use cidr::IpInet;
use serde::{Deserialize, Serialize};

use super::types::{Inet, text};
use crate::model::{Family, IfName};

/// An entry of the section `addresses`: one address, or many.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename = "Address", try_from = "AddressFields")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AddressEntry(AddressFields);

/// The keys of an entry of `addresses`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct AddressFields {
    /// Interface.
    dev: IfName,
    /// An address with its prefix length, such as 10.0.0.1/24 (a single host if left out), or a range, such as
    /// 127.0.1.1-127.0.1.32.
    address: AddressRange,
    /// Add every address of the prefix `address`, each as a single host.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    each: bool,
}

/// The most addresses that one entry may stand for.
pub(super) const MAX_ADDRESSES: u128 = 65_536;

impl TryFrom<AddressFields> for AddressEntry {
    type Error = String;

    fn try_from(fields: AddressFields) -> Result<AddressEntry, String> {
        let AddressFields { address: AddressRange { first, last, length }, each, .. } = fields;
        let first_inet = IpInet::new(first, length).map_err(|error| error.to_string())?;
        if each && first != last {
            return Err("is already a range; remove `each`".into());
        }
        if each && first != first_inet.first_address() {
            return Err(format!("has bits set after its prefix; did you mean {:#}?", first_inet.network()));
        }
        if !each && first == last && Inet(first_inet).is_network() {
            return Err(format!(
                "{first_inet:#} is the address of a network; to add every address in it, set `each: true`"
            ));
        }
        let address = AddressEntry(fields);
        if address.count() > MAX_ADDRESSES {
            return Err(format!("stands for more than {MAX_ADDRESSES} addresses"));
        }
        Ok(address)
    }
}

impl AddressEntry {
    /// The interface.
    pub fn dev(&self) -> &IfName {
        &self.0.dev
    }

    fn ends(&self) -> (u128, u128) {
        let AddressRange { first, last, length } = self.0.address;
        match IpInet::new(first, length) {
            Ok(inet) if self.0.each => (bits(inet.first_address()), bits(inet.last_address())),
            _ => (bits(first), bits(last)),
        }
    }

    fn count(&self) -> u128 {
        let (first, last) = self.ends();
        (last - first).saturating_add(1)
    }

    /// The addresses, each with its prefix length.
    pub fn range(&self) -> impl Iterator<Item = IpInet> + use<> {
        let AddressRange { first, length, .. } = self.0.address;
        let length = (!self.0.each).then_some(length);
        let (begin, end) = self.ends();
        (begin..=end).filter_map(move |bits| {
            let address = from_bits(bits, Family::of(first));
            // The first address of the same family was accepted with this length.
            length.map_or(Some(IpInet::new_host(address)), |length| IpInet::new(address, length).ok())
        })
    }
}

/// One address or a range, with the prefix length of each: `127.0.1.1-127.0.1.32/32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    /// The first.
    pub first: IpAddr,
    /// The last.
    pub last: IpAddr,
    /// Prefix length.
    pub length: u8,
}

impl AddressRange {
    fn parse(text: &str) -> Result<AddressRange, String> {
        let Some((first, rest)) = text.split_once('-') else {
            let Inet(inet) = Inet::parse_any(text)?;
            return Ok(AddressRange { first: inet.address(), last: inet.address(), length: inet.network_length() });
        };
        let Inet(last) = Inet::parse_any(rest)?;
        let Inet(alone) = Inet::parse_any(first)?;
        let (start, last, length) = (alone.address(), last.address(), last.network_length());
        if first.contains('/') {
            return Err(format!("`{text}` must have its prefix length at the end: FIRST-LAST/LENGTH"));
        }
        if start.is_ipv4() != last.is_ipv4() {
            return Err(format!("the two ends of `{text}` are of different address families"));
        }
        if start > last {
            return Err(format!("the range `{text}` ends before it begins"));
        }
        Ok(AddressRange { first: start, last, length })
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let AddressRange { first, last, length } = self;
        if first == last { write!(f, "{first}/{length}") } else { write!(f, "{first}-{last}/{length}") }
    }
}

text!(AddressRange, "an address such as 10.0.0.1/24, or a range such as 127.0.1.1-127.0.1.32", |range| range, {
    "type": "string",
    "pattern": "^([0-9]{1,3}(\\.[0-9]{1,3}){3}|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*)(-([0-9]{1,3}(\\.[0-9]{1,3}){3}|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*))?(/[0-9]{1,3})?$"
});

/// An address as a number.
fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The address of a number.
fn from_bits(bits: u128, family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4((bits as u32).into()),
        Family::V6 => IpAddr::V6(bits.into()),
    }
}
