//! Masquerading, as one nftables table of our own that is written in one go, and what there is to know of the tables of
//! others. Plain data; nothing here looks at the system.

use std::collections::BTreeMap;
use std::fmt;

use cidr::IpCidr;

use crate::net::{Family, IfName, family_of, shell_word};

/// The one table that is ours, in the family inet. Its name is its mark.
pub const TABLE: &str = "node_fixer";
/// The one chain in it.
pub const CHAIN: &str = "postrouting";
/// When the chain is asked: `NF_IP_PRI_NAT_SRC`, which nft calls srcnat (from its 0.9.1 on).
pub const PRIORITY: i32 = 100;

/// The program that writes it.
pub const PROGRAM: &str = "nft";

/// What leaves the node with the address of the interface that it leaves by, instead of its own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Masquerade {
    /// Where it comes from.
    pub source: IpCidr,
    /// Only what leaves by this interface …
    pub out: Option<IfName>,
    /// … or only what does not leave by this one.
    pub except_out: Option<IfName>,
}

/// As a rule in the language of nft.
impl fmt::Display for Masquerade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (short, long) = match family_of(&self.source) {
            Family::V4 => ("ip", "ipv4"),
            Family::V6 => ("ip6", "ipv6"),
        };
        match self.source.network_length() {
            0 => write!(f, "meta nfproto {long}")?,
            _ => write!(f, "{short} saddr {}", self.source)?,
        }
        // The configuration has no names in it that do not survive these quotes.
        for (name, operator) in [(&self.out, ""), (&self.except_out, "!= ")] {
            if let Some(name) = name {
                write!(f, " oifname {operator}\"{}\"", String::from_utf8_lossy(name.as_bytes()))?;
            }
        }
        f.write_str(" masquerade")
    }
}

impl Masquerade {
    /// As the kernel shows it.
    pub fn conditions(&self) -> Conditions {
        let name = |name: &IfName| Interface::Name(name.as_bytes().into());
        let from = (self.source.network_length() > 0).then_some(Condition::From(self.source, false));
        let out = self.out.as_ref().map(|out| Condition::Out(name(out), false));
        let except = self.except_out.as_ref().map(|out| Condition::Out(name(out), true));
        [Some(Condition::Family(family_of(&self.source))), from, out, except].into_iter().flatten().collect()
    }
}

/// Whether nft takes the name in quotes for this one interface: an asterisk stands for many.
pub fn is_quotable(name: &IfName) -> bool {
    !name.as_bytes().iter().any(|byte| matches!(byte, b'"' | b'\\' | b'*') || byte.is_ascii_control())
}

/// The `nft` commands that put the table in the place of whatever has its name. Those of one call are one transaction.
pub fn replacement(rules: &[Masquerade]) -> String {
    let table = format!("inet {TABLE}");
    let begin = format!(
        "add table {table}; delete table {table}; add table {table}; add chain {table} {CHAIN} {{ type nat hook \
         postrouting priority {PRIORITY}; policy accept; }}"
    );
    rules.iter().fold(begin, |all, rule| all + &format!("; add rule {table} {CHAIN} {rule}"))
}

/// The `nft` commands that take the table away, also where it is gone already.
pub fn removal() -> String {
    format!("add table inet {TABLE}; delete table inet {TABLE}")
}

/// The command line for these commands, which may be more than an argument of a program can be.
pub fn command(commands: &str) -> String {
    format!("printf '%s\\n' {} | {PROGRAM} -f -", shell_word(commands.as_bytes()))
}

/// Our table, as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeenTable {
    /// Whether it is awake and has the one chain, where and as it was made, and its rules do nothing but masquerade.
    pub whole: bool,
    /// The conditions of all its rules, in their order. Counters, logs and comments are none: they may be added.
    pub rules: Vec<Conditions>,
}

/// What nftables answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeenNat {
    /// Our table, if there is one.
    Table(Option<SeenTable>),
    /// This process may not look. The kernel shows nftables to nobody without CAP_NET_ADMIN.
    Hidden,
    /// The kernel has no nftables; in its words.
    Missing(String),
}

/// A table of others that filters what is forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterTable {
    /// `ip`, `ip6` or `inet`.
    pub family: &'static str,
    /// Its name.
    pub name: String,
    /// Its base chains that packets meet which are forwarded.
    pub bases: Vec<BaseChain>,
    /// The rules of those, and of all chains that they lead to by a jump or a goto; by name.
    pub chains: BTreeMap<Vec<u8>, Vec<FilterRule>>,
}

/// A chain that the kernel itself calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseChain {
    /// Its name.
    pub name: Vec<u8>,
    /// Whether it is called for what is forwarded alone; else for all that comes in, before it is routed.
    pub forward: bool,
    /// Whether its policy is to drop.
    pub drops: bool,
}

/// A rule of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterRule {
    /// What a packet has to be for it.
    pub conditions: Conditions,
    /// What becomes of the packet.
    pub verdict: Verdict,
}

/// What a rule does with a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The chain that the kernel called lets it pass.
    Accept,
    /// It is lost.
    Drop,
    /// The chain is over.
    Return,
    /// Goes on in another chain, and never comes back if it is a goto.
    Chain(Vec<u8>, bool),
    /// It leaves with another source.
    Masquerade,
    /// The next rule decides.
    Continue,
    /// Anything else. It may let the packet pass.
    Unknown,
}

/// What a packet has to be, all of it.
pub type Conditions = Vec<Condition>;

/// What a packet has to be for a rule; or, where the second value is true, must not be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// Of an address family.
    Family(Family),
    /// Come in by an interface.
    In(Interface, bool),
    /// Leave by an interface.
    Out(Interface, bool),
    /// Come from a prefix.
    From(IpCidr, bool),
    /// Go to a prefix.
    To(IpCidr, bool),
    /// Of a protocol above IP, such as TCP (6).
    Protocol(u8, bool),
    /// Of a connection in one of these states (bits of [`state`]).
    State(u32, bool),
    /// Of a connection with one of these marks of conntrack (`IPS_…` in nf_conntrack_common.h).
    Status(u32, bool),
    /// Anything else.
    Other,
}

/// States of a connection, as nftables and iptables count them.
pub mod state {
    /// It fits no connection.
    pub const INVALID: u32 = 1;
    /// Packets of both directions were seen.
    pub const ESTABLISHED: u32 = 2;
    /// It belongs to another.
    pub const RELATED: u32 = 4;
    /// Its first packet.
    pub const NEW: u32 = 8;
}

/// Interfaces, as a rule names them.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Interface {
    /// The one of this name.
    Name(Vec<u8>),
    /// All whose names begin so.
    Names(Vec<u8>),
    /// The one with this index.
    Index(u32),
}

impl Interface {
    /// Whether it is this one.
    pub fn is(&self, name: &IfName, index: Option<u32>) -> bool {
        match self {
            Interface::Name(whole) => name.as_bytes() == whole,
            Interface::Names(begin) => name.as_bytes().starts_with(begin),
            Interface::Index(number) => index == Some(*number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masquerade(source: &str, out: &str, except_out: &str) -> Masquerade {
        let name = |text: &str| IfName::new(text.as_bytes());
        Masquerade { source: source.parse().unwrap(), out: name(out), except_out: name(except_out) }
    }

    #[test]
    fn a_rule_is_written_in_the_language_of_nft() {
        for (source, out, except_out, text) in [
            ("10.100.0.0/16", "", "br-vms", "ip saddr 10.100.0.0/16 oifname != \"br-vms\" masquerade"),
            ("10.100.0.9", "eth0", "", "ip saddr 10.100.0.9 oifname \"eth0\" masquerade"),
            ("fd00::/64", "", "", "ip6 saddr fd00::/64 masquerade"),
            ("0.0.0.0/0", "a$b;c", "", "meta nfproto ipv4 oifname \"a$b;c\" masquerade"),
            ("::/0", "", "", "meta nfproto ipv6 masquerade"),
        ] {
            assert_eq!(masquerade(source, out, except_out).to_string(), text);
        }
    }
}
