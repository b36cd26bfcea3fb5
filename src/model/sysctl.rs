//! The nouns of sysctls.

use std::fmt;

use super::{IfName, shell_word};

/// A sysctl as its path below /proc/sys, segment by segment. Never a dotted string: interface names may contain dots
/// (`eth0.100`), and splitting the string at dots would find another file or none.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct SysctlKey {
    segments: Vec<Box<[u8]>>,
    names_link: bool,
}

/// Whether the kernel keeps the next IPv4 address of a subnet when the first one is deleted.
pub const PROMOTE: &str = "promote_secondaries";

/// The switch of IPv4 forwarding, as a path. net/ipv4/conf/all/forwarding is the same switch.
pub const FORWARD: &str = "net/ipv4/ip_forward";
/// Its other name.
pub const FORWARD_OF_ALL: &str = "net/ipv4/conf/all/forwarding";

impl SysctlKey {
    /// `net.ipv4.conf.LINK.rp_filter`.
    pub fn rp_filter(link: &IfName) -> SysctlKey {
        SysctlKey::conf_of(link, "rp_filter")
    }

    /// `net.ipv4.conf.default.rp_filter`, which new interfaces copy.
    pub fn rp_filter_default() -> SysctlKey {
        SysctlKey::conf(b"default", "rp_filter")
    }

    /// `net.ipv4.conf.LINK.WHAT`.
    pub fn conf_of(link: &IfName, what: &'static str) -> SysctlKey {
        SysctlKey { names_link: true, ..SysctlKey::conf(link.as_bytes(), what) }
    }

    /// `net.ipv4.conf.all.WHAT`.
    pub fn conf_of_all(what: &'static str) -> SysctlKey {
        SysctlKey::conf(b"all", what)
    }

    fn conf(whose: &[u8], what: &'static str) -> SysctlKey {
        let segments = [b"net", &b"ipv4"[..], b"conf", whose, what.as_bytes()].map(Into::into).into();
        SysctlKey { segments, names_link: false }
    }

    /// A key by its path below /proc/sys.
    pub fn from_path(path: &[u8]) -> SysctlKey {
        let segments: Vec<Box<[u8]>> = path.split(|byte| *byte == b'/').map(Into::into).collect();
        let names_link = match segments.as_slice() {
            [_, _, kind, name, _, ..] => {
                matches!(&**kind, b"conf" | b"neigh") && !matches!(&**name, b"all" | b"default")
            }
            _ => false,
        };
        SysctlKey { segments, names_link }
    }

    /// Its path below /proc/sys.
    pub fn path(&self) -> Vec<u8> {
        self.segments.join(&b'/')
    }

    /// The segments, from the root.
    pub fn segments(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.segments.iter().map(|segment| &**segment)
    }

    /// Whether one of the segments is an interface name.
    pub fn names_link(&self) -> bool {
        self.names_link
    }

    /// The command that writes the value. sysctl(8) splits at `=` and expands patterns, so keys with either are written
    /// to their file.
    pub fn command(&self, value: &str) -> String {
        let value = shell_word(value.as_bytes());
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_.-@".contains(byte);
        if self.segments.iter().all(|segment| segment.iter().all(plain)) {
            format!("sysctl -w {self}={value}")
        } else {
            let path = [&b"/proc/sys/"[..], &self.segments.join(&b'/')].concat();
            format!("printf %s {value} > {}", shell_word(&path))
        }
    }
}

impl fmt::Debug for SysctlKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// As sysctl(8) accepts it: with dots, or with slashes if a segment contains a dot.
impl fmt::Display for SysctlKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dotted = self.segments.iter().any(|segment| segment.contains(&b'.'));
        let separator: &[u8] = if dotted { b"/" } else { b"." };
        f.write_str(&shell_word(&self.segments.join(separator)))
    }
}

/// A sysctl to write, with related writes. Its `Display` is the commands for all of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SysctlWrite {
    /// The key.
    pub key: SysctlKey,
    /// The value to write.
    pub value: String,
    /// The live value.
    pub before: String,
    /// Written right before it: the live values of interfaces that would follow it and should not. An explicit value
    /// does not follow.
    pub pin_before: Vec<(SysctlKey, String)>,
    /// Written right after it: other keys that the kernel changes along with this one.
    pub restore_after: Vec<(SysctlKey, String)>,
    /// Values that are required before the write, because it would do damage otherwise.
    pub needs: Vec<(SysctlKey, String)>,
}

impl SysctlWrite {
    /// A write without related ones.
    pub fn alone(key: SysctlKey, value: String, before: String) -> SysctlWrite {
        SysctlWrite { key, value, before, pin_before: Vec::new(), restore_after: Vec::new(), needs: Vec::new() }
    }
}

impl fmt::Display for SysctlWrite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // If an interface is gone meanwhile, the others are still written.
        self.pin_before.iter().try_for_each(|(key, value)| write!(f, "{}; ", key.command(value)))?;
        f.write_str(&self.key.command(&self.value))?;
        self.restore_after.iter().try_for_each(|(key, value)| write!(f, " && {}", key.command(value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sysctl_is_written_so_that_sysctl_8_finds_it() {
        let key = |name: &str| SysctlKey::rp_filter(&IfName::new(name.as_bytes()).unwrap()).to_string();
        assert_eq!(key("eth0"), "net.ipv4.conf.eth0.rp_filter");
        assert_eq!(key("eth0.100"), "net/ipv4/conf/eth0.100/rp_filter");
        assert_eq!(key("a$b"), "'net.ipv4.conf.a$b.rp_filter'");
        let command = |name: &str| SysctlKey::rp_filter(&IfName::new(name.as_bytes()).unwrap()).command("2");
        assert_eq!(command("eth0.100"), "sysctl -w net/ipv4/conf/eth0.100/rp_filter=2");
        assert_eq!(command("eth=1"), "printf %s 2 > /proc/sys/net/ipv4/conf/eth=1/rp_filter");
        assert_eq!(command("e*"), "printf %s 2 > '/proc/sys/net/ipv4/conf/e*/rp_filter'");
    }
}
