//! Addresses: two that share a prefix share one of the same length afterwards, and no longer one. What is a prefix on this
//! node stays one: its first address, the one after it and its last keep their places in it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cidr::IpCidr;

use super::Randomness;

/// Prefixes that mean the same everywhere. Addresses in them stay in them, and others stay outside.
const MEANINGS: [(IpAddr, u8); 11] = [
    (IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(100, 64, 0, 0)), 10),
    (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8),
    (IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(172, 16, 0, 0)), 12),
    (IpAddr::V4(Ipv4Addr::new(192, 168, 0, 0)), 16),
    (IpAddr::V4(Ipv4Addr::new(224, 0, 0, 0)), 3),
    (IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0)), 8),
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), 64),
    (IpAddr::V6(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0)), 3),
    // The router of every VPC.
    (IpAddr::V6(Ipv6Addr::new(0xfe80, 0xec2, 0, 0, 0, 0, 0, 1)), 128),
];

/// A prefix: how long an address is, how long the prefix is, and its bits.
type PrefixOf = (u8, u8, u128);

/// What stands for which address.
pub struct AddressMap {
    dice: Randomness,
    /// Prefixes after which the next bit stays what it is.
    kept: BTreeSet<PrefixOf>,
}

impl Default for AddressMap {
    fn default() -> AddressMap {
        let mut kept = BTreeSet::new();
        for (address, length) in MEANINGS {
            let (width, bits) = bits(address);
            kept.extend((0..length).map(|length| (width, length, first(width, bits, length))));
        }
        AddressMap { dice: Randomness::default(), kept }
    }
}

/// How many bits an address has, and its bits.
fn bits(address: IpAddr) -> (u8, u128) {
    match address {
        IpAddr::V4(address) => (32, u128::from(address.to_bits())),
        IpAddr::V6(address) => (128, address.to_bits()),
    }
}

/// The first bits of an address.
fn first(width: u8, bits: u128, length: u8) -> u128 {
    bits.checked_shr(u32::from(width - length)).unwrap_or_default()
}

impl AddressMap {
    /// Keeps the places of the first and the last addresses of a prefix.
    pub fn protect(&mut self, prefix: IpCidr) {
        let (width, lowest) = bits(prefix.first_address());
        let (_, highest) = bits(prefix.last_address());
        for length in prefix.network_length()..width {
            self.kept.insert((width, length, first(width, lowest, length)));
            self.kept.insert((width, length, first(width, highest, length)));
        }
    }

    /// What stands for an address. All is to be protected before.
    pub fn of(&self, address: IpAddr) -> IpAddr {
        if is_plain(address) {
            return address;
        }
        let (width, bits) = bits(address);
        let mut other = 0;
        for length in 0..width {
            let before = (width, length, first(width, bits, length));
            let bit = first(width, bits, length + 1) & 1;
            let flip = if self.kept.contains(&before) { 0 } else { u128::from(self.dice.roll(before) & 1) };
            other = other << 1 | (bit ^ flip);
        }
        match address {
            IpAddr::V4(_) => Ipv4Addr::from_bits(other as u32).into(),
            IpAddr::V6(_) => Ipv6Addr::from_bits(other).into(),
        }
    }
}

/// Whether an address means the same on every node: unspecified, loopback, multicast, or a link-local one of IPv4.
fn is_plain(address: IpAddr) -> bool {
    let plain = |it: Ipv4Addr| it.is_link_local() || it.octets()[0] >= 224 || it.octets()[0] == 0;
    let is_v4 = matches!(address, IpAddr::V4(address) if plain(address));
    is_v4 || address.is_loopback() || address.is_multicast() || address.is_unspecified()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn common(a: IpAddr, b: IpAddr) -> u32 {
        let ((width, a), (_, b)) = (bits(a), bits(b));
        (a ^ b).leading_zeros() - (128 - u32::from(width))
    }

    #[test]
    fn prefixes_keep_their_relations() {
        let mut addresses = AddressMap::default();
        let prefixes = ["10.0.0.0/16", "10.0.1.0/24", "10.0.1.128/25", "fd00:1::/64", "2001:db8:7::/48", "0.0.0.0/0"];
        let prefixes = prefixes.map(|prefix| prefix.parse::<IpCidr>().unwrap());
        prefixes.iter().for_each(|prefix| addresses.protect(*prefix));
        let texts = "10.0.0.1 10.0.1.0 10.0.1.1 10.0.1.7 10.0.1.10 10.0.1.11 10.0.1.129 10.0.1.255 10.0.2.3 172.16.3.4 \
                     172.32.3.4 52.95.1.1 52.95.1.2 8.8.8.8 192.168.7.9 192.169.7.9";
        let six =
            "fd00:1::1 fd00:1::a:b:c fd00:1:0:1::1 2001:db8:7::1 2001:db8:8::1 fe80::1 fe80::fc:ff:fe00:1 fe80:ec2::1";
        let all: Vec<IpAddr> =
            texts.split_whitespace().chain(six.split_whitespace()).map(|it| it.parse().unwrap()).collect();
        let mapped: Vec<IpAddr> = all.iter().map(|address| addresses.of(*address)).collect();
        for (a, x) in all.iter().zip(&mapped) {
            for (b, y) in all.iter().zip(&mapped).filter(|(b, _)| a.is_ipv4() == b.is_ipv4()) {
                assert_eq!(common(*a, *b), common(*x, *y), "{a} {b} became {x} {y}");
            }
        }
        for prefix in prefixes {
            let [low, high] = [prefix.first_address(), prefix.last_address()].map(|address| addresses.of(address));
            assert!(IpCidr::new(low, prefix.network_length()).is_ok(), "{prefix} became {low}");
            assert_eq!(IpCidr::new(low, prefix.network_length()).unwrap().last_address(), high, "{prefix}");
        }
        let is = |text: &str, addresses: &AddressMap| addresses.of(text.parse().unwrap()).to_string();
        for plain in
            ["127.0.0.1", "169.254.169.254", "0.0.0.0", "255.255.255.255", "::1", "ff02::1", "fe80:ec2::1", "224.0.0.1"]
        {
            assert_eq!(is(plain, &addresses), plain);
        }
        assert!(is("10.0.1.1", &addresses).ends_with(".1"), "the first address of a subnet stays it");
        assert!(is("172.32.3.4", &addresses).parse::<Ipv4Addr>().is_ok_and(|it| !it.is_private()));
        assert!(is("52.95.1.1", &addresses).parse::<Ipv4Addr>().is_ok_and(|it| !it.is_private() && !it.is_loopback()));
        assert_ne!(is("fe80::fc:ff:fe00:1", &addresses), "fe80::fc:ff:fe00:1");
    }
}
