//! Masquerading, as one nftables table of node-fixer's that is written in one transaction; and the parts of other
//! tables that matter. Plain data; nothing here accesses the system.

use std::collections::BTreeMap;
use std::fmt;

use cidr::IpCidr;

use crate::model::{Family, IfName, family_of, shell_word};

/// node-fixer's table, in the family inet. Its name is its mark.
pub const TABLE: &str = "node_fixer";
/// Its only chain.
pub const CHAIN: &str = "postrouting";
/// The priority of the chain: `NF_IP_PRI_NAT_SRC`, which nft calls srcnat since 0.9.1.
pub const PRIORITY: i32 = 100;

/// The program that writes the table.
pub const PROGRAM: &str = "nft";

/// Packets that leave with the address of the outgoing interface instead of their own.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Masquerade {
    /// Their source.
    pub source: IpCidr,
    /// Only what leaves by this interface …
    pub out: Option<IfName>,
    /// … or only what leaves by another one.
    pub except_out: Option<IfName>,
}

/// As a rule in nft's language.
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
        // The configuration accepts no names that these quotes cannot hold.
        for (name, operator) in [(&self.out, ""), (&self.except_out, "!= ")] {
            if let Some(name) = name {
                write!(f, " oifname {operator}\"{}\"", String::from_utf8_lossy(name.as_bytes()))?;
            }
        }
        f.write_str(" masquerade")
    }
}

impl Masquerade {
    /// The rule as the kernel shows it.
    pub fn conditions(&self) -> Conditions {
        let name = |name: &IfName| Interface::Name(name.as_bytes().into());
        let from = (self.source.network_length() > 0).then_some(Condition::From(self.source, false));
        let out = self.out.as_ref().map(|out| Condition::Out(name(out), false));
        let except = self.except_out.as_ref().map(|out| Condition::Out(name(out), true));
        [Some(Condition::Family(family_of(&self.source))), from, out, except].into_iter().flatten().collect()
    }
}

/// Whether nft reads the quoted name as this one interface. An asterisk would match many.
pub fn is_quotable(name: &IfName) -> bool {
    !name.as_bytes().iter().any(|byte| matches!(byte, b'"' | b'\\' | b'*') || byte.is_ascii_control())
}

/// The `nft` commands that replace the table. The commands of one call are one transaction.
pub fn replacement(rules: &[Masquerade]) -> String {
    let table = format!("inet {TABLE}");
    let begin = format!(
        "add table {table}; delete table {table}; add table {table}; add chain {table} {CHAIN} {{ type nat hook \
         postrouting priority {PRIORITY}; policy accept; }}"
    );
    rules.iter().fold(begin, |all, rule| all + &format!("; add rule {table} {CHAIN} {rule}"))
}

/// The `nft` commands that delete the table, even if it does not exist.
pub fn removal() -> String {
    format!("add table inet {TABLE}; delete table inet {TABLE}")
}

/// The command line that replaces the table. The rules are piped because they may exceed the size of an argument.
pub fn replace_command(rules: &[Masquerade]) -> String {
    format!("printf '%s\\n' {} | {PROGRAM} -f -", shell_word(replacement(rules).as_bytes()))
}

/// The command line that deletes the table.
pub fn delete_command() -> String {
    format!("{PROGRAM} delete table inet {TABLE}")
}

/// node-fixer's table in the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeenTable {
    /// Whether it is active, has only the expected chain, unchanged, and rules that do nothing but masquerade.
    pub whole: bool,
    /// The conditions of all its rules, in order. Counters, logs and comments may be added and are ignored.
    pub rules: Vec<Conditions>,
}

/// The answer of nftables.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SeenNat {
    /// node-fixer's table, if it exists.
    Table(Option<SeenTable>),
    /// This process may not read nftables, which requires CAP_NET_ADMIN.
    Hidden,
    /// The kernel has no nftables, in its own words.
    Missing(String),
}

/// A table of another program that filters forwarded packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterTable {
    /// `ip`, `ip6` or `inet`.
    pub family: &'static str,
    /// Its name.
    pub name: String,
    /// Its base chains for forwarded packets.
    pub bases: Vec<BaseChain>,
    /// The rules of those chains and of all chains they jump to, by name.
    pub chains: BTreeMap<Vec<u8>, Vec<FilterRule>>,
}

/// A base chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseChain {
    /// Its name.
    pub name: Vec<u8>,
    /// Whether it hooks forward; otherwise prerouting.
    pub forward: bool,
    /// Whether its policy is to drop.
    pub drops: bool,
}

/// A rule of a chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterRule {
    /// The conditions for a packet.
    pub conditions: Conditions,
    /// The verdict.
    pub verdict: Verdict,
}

/// The verdict of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The base chain accepts the packet.
    Accept,
    /// The packet is dropped.
    Drop,
    /// The chain ends.
    Return,
    /// Continues in another chain. Returns from it unless it is a goto.
    Chain(Vec<u8>, bool),
    /// The packet's source is translated.
    Masquerade,
    /// Continues with the next rule.
    Continue,
    /// Any other. It may accept the packet.
    Unknown,
}

/// Conditions, all of which a packet must meet.
pub type Conditions = Vec<Condition>;

/// A condition. If the second value is true, the packet must not meet it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// The address family.
    Family(Family),
    /// The incoming interface.
    In(Interface, bool),
    /// The outgoing interface.
    Out(Interface, bool),
    /// The source prefix.
    From(IpCidr, bool),
    /// The destination prefix.
    To(IpCidr, bool),
    /// The protocol above IP, such as TCP (6).
    Protocol(u8, bool),
    /// A connection in one of these states (bits of [`state`]).
    State(u32, bool),
    /// A connection with one of these status bits of conntrack (`IPS_…` in nf_conntrack_common.h).
    Status(u32, bool),
    /// Any other.
    Other,
}

/// Connection states, as nftables and iptables number them.
pub mod state {
    /// Packets of both directions were seen.
    pub const ESTABLISHED: u32 = 2;
    /// Its first packet.
    pub const NEW: u32 = 8;
}

/// Interfaces, as named by a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Interface {
    /// The one with this name.
    Name(Vec<u8>),
    /// All whose names begin with this.
    Names(Vec<u8>),
    /// The one with this index.
    Index(u32),
}

impl Interface {
    /// Whether it matches this one.
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
