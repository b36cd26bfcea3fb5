//! The nouns of links: interface names, addresses, and bridges.

use std::fmt;

use cidr::IpInet;

use super::{Noun, PROMOTE, SysctlKey, shell_word};

/// The name of an interface: 1 to 15 bytes, without `/`, white space and `:`, and neither `.` nor `..`
/// (`dev_valid_name` in the kernel's net/core/dev.c). It may contain bytes that are not UTF-8 and characters that are
/// special to shells and terminals.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(Box<[u8]>);

impl IfName {
    /// Accepts a name that the kernel accepts.
    pub fn new(name: &[u8]) -> Option<IfName> {
        let odd = |b: &u8| matches!(b, b'/' | b':' | 0 | b' ' | b'\t'..=b'\r' | 0xa0);
        let fits = (1..=15).contains(&name.len());
        (fits && !matches!(name, b"." | b"..") && !name.iter().any(odd)).then(|| IfName(name.into()))
    }

    /// The name as the kernel knows it.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shell_word(&self.0))
    }
}

impl fmt::Debug for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// An interface as used in a route or a change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Dev {
    /// The kernel's index, unique in the network namespace and never reused while the node is up.
    pub index: u32,
    /// Its name when it was looked at.
    pub name: IfName,
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IfAddress {
    /// The interface.
    pub dev: IfName,
    /// The address.
    pub inet: IpInet,
    /// For deletions: whether other addresses of its subnet exist that would be deleted with it. (A run keeps those in
    /// any case.)
    pub promote: bool,
}

impl Noun for IfAddress {
    fn add_command(&self) -> String {
        format!("ip addr add {:#} dev {}", self.inet, self.dev)
    }

    fn delete_command(&self) -> String {
        let delete = format!("ip addr del {:#} dev {}", self.inet, self.dev);
        if !self.promote {
            return delete;
        }
        let promote = |value| SysctlKey::conf_of(&self.dev, PROMOTE).command(value);
        // Restored even if the address is already gone.
        format!("{} && {{ {delete}; {}; }}", promote("1"), promote("0"))
    }
}

/// The alias that marks a bridge owned by node-fixer; `ip link show` prints it.
pub const ALIAS: &str = "node-fixer";

/// The minimum MTU of IPv6. Below it the kernel removes the link's IPv6 addresses (RFC 8200, 5).
pub const LEAST_IPV6_MTU: u32 = 1280;

/// The kind of a link, as far as node-fixer creates any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkKind {
    /// A bridge with node-fixer's alias.
    Bridge,
    /// Any existing link, whose settings are changed.
    Other,
}

/// A link and its settings. `None` leaves a setting as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkSettings {
    /// Its name.
    pub name: IfName,
    /// Its kind.
    pub kind: LinkKind,
    /// Administrative state.
    pub up: Option<bool>,
    /// Largest packet, in bytes.
    pub mtu: Option<u32>,
    /// Whether a bridge uses the spanning tree protocol.
    pub stp: Option<bool>,
    /// Whether it, a bridge, filters by VLAN.
    pub vlan_filtering: Option<bool>,
    /// The bridge that it is a port of, or none.
    pub port_of: Option<Option<IfName>>,
}

impl Noun for LinkSettings {
    /// The kernel ignores an alias given with a new link, so setting it is a separate command.
    fn add_command(&self) -> String {
        let (name, flags, bridge) = (&self.name, self.flags(), self.of_bridge());
        format!("ip link add name {name}{flags} type bridge{bridge} && ip link set dev {name} alias {ALIAS}")
    }

    fn delete_command(&self) -> String {
        format!("ip link del dev {} type bridge", self.name)
    }

    fn replace_command(&self, _old: &LinkSettings) -> String {
        self.set_command()
    }
}

impl LinkSettings {
    /// The command that applies the settings.
    pub fn set_command(&self) -> String {
        let bridge = match self.of_bridge() {
            none if none.is_empty() => none,
            some => format!(" type bridge{some}"),
        };
        format!("ip link set dev {}{}{bridge}", self.name, self.flags())
    }

    /// No settings yet, of a link that is not a bridge of node-fixer's.
    pub fn of(name: IfName) -> LinkSettings {
        LinkSettings {
            name,
            kind: LinkKind::Other,
            up: None,
            mtu: None,
            stp: None,
            vlan_filtering: None,
            port_of: None,
        }
    }

    fn of_bridge(&self) -> String {
        let settings = [("stp_state", self.stp), ("vlan_filtering", self.vlan_filtering)];
        let set = settings.into_iter().filter_map(|(key, on)| Some(format!(" {key} {}", u8::from(on?))));
        set.collect()
    }

    fn flags(&self) -> String {
        let up = self.up.map_or("", |up| if up { " up" } else { " down" });
        let mtu = self.mtu.map_or(String::new(), |mtu| format!(" mtu {mtu}"));
        let master = match &self.port_of {
            None => String::new(),
            Some(None) => " nomaster".into(),
            Some(Some(bridge)) => format!(" master {bridge}"),
        };
        format!("{up}{mtu}{master}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interface_names_are_what_the_kernel_allows() {
        for good in [&b"eth0"[..], b"eth0.100", b"enP2p4s0", b"-", b"...", b"eth\xff9", b"a$(id)", b"fifteen-letters"] {
            assert!(IfName::new(good).is_some(), "{good:?}");
        }
        for bad in [&b""[..], b".", b"..", b"a/b", b"a b", b"a\nb", b"a:b", b"a\0", b"sixteen-letters!"] {
            assert!(IfName::new(bad).is_none(), "{bad:?}");
        }
    }
}
