//! Settings of interfaces (struct netconfmsg, NETCONFA_*).

use super::attr::{Body, address_family, attributes, number};
use super::socket::NetlinkError;
use crate::model::Family;

/// Length of struct netconfmsg, padded.
const HEADER: usize = 4;

// linux/netconf.h
/// Index of the settings for all interfaces.
pub const ALL: i32 = -1;
/// Index of the settings that new interfaces copy.
pub const DEFAULT: i32 = -2;
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;
const NETCONFA_RP_FILTER: u16 = 3;

/// Settings of an interface, or of [`ALL`] or [`DEFAULT`].
pub struct Netconf {
    pub index: i32,
    /// IPv6 has none.
    pub rp_filter: Option<i32>,
    pub forwarding: bool,
}

/// Body of the dump of every interface's settings.
pub fn all(family: Family) -> Body {
    Body::new(vec![address_family(family)], 1)
}

/// Decodes the settings of an interface; `None` for other families.
pub fn seen(payload: &[u8], family: Family) -> Result<Option<Netconf>, NetlinkError> {
    let (mut index, mut rp_filter, mut forwarding) = (None, None, false);
    for attribute in attributes(payload, HEADER)? {
        let (kind, value) = attribute?;
        match kind {
            NETCONFA_IFINDEX => index = Some(number(value)?.cast_signed()),
            NETCONFA_FORWARDING => forwarding = number(value)? != 0,
            NETCONFA_RP_FILTER => {
                rp_filter = Some(number(value)?.cast_signed());
                break; // It comes after the others, and many attributes follow it.
            }
            _ => {}
        }
    }
    let index = index.filter(|_| payload.first() == Some(&address_family(family)));
    Ok(index.map(|index| Netconf { index, rp_filter, forwarding }))
}
