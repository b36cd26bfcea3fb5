//! Address families and prefixes.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cidr::{IpCidr, Ipv4Cidr, Ipv6Cidr};

/// An address family that is routed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Family {
    /// IPv4.
    #[serde(rename = "ipv4")]
    V4,
    /// IPv6.
    #[serde(rename = "ipv6")]
    V6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// The prefix that contains every address: `0.0.0.0/0` or `::/0`.
    pub fn everything(self) -> IpCidr {
        const V4: Ipv4Cidr = match Ipv4Cidr::new(Ipv4Addr::UNSPECIFIED, 0) {
            Ok(all) => all,
            Err(_) => unreachable!(),
        };
        const V6: Ipv6Cidr = match Ipv6Cidr::new(Ipv6Addr::UNSPECIFIED, 0) {
            Ok(all) => all,
            Err(_) => unreachable!(),
        };
        match self {
            Family::V4 => IpCidr::V4(V4),
            Family::V6 => IpCidr::V6(V6),
        }
    }

    /// `ip`, with the option it needs if nothing else on the command line shows the family.
    pub fn ip_command(self) -> &'static str {
        match self {
            Family::V4 => "ip",
            Family::V6 => "ip -6",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}

/// The family of a prefix.
pub fn family_of(prefix: &IpCidr) -> Family {
    Family::of(prefix.first_address())
}

/// Whether a prefix contains all of another.
pub fn covers(whole: &IpCidr, part: &IpCidr) -> bool {
    whole.network_length() <= part.network_length() && whole.contains(&part.first_address())
}

/// Whether an address is valid only on its link.
pub fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
