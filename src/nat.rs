//! Masquerading, as one nftables table of our own that is written in one go, and what there is to know of the tables of
//! others. Plain data; nothing here looks at the system.

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
        let name = |name: &IfName| Name { text: name.as_bytes().into(), prefix: false };
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

/// A chain of others that drops some of what is forwarded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardDrop {
    /// What it drops is of this family.
    pub of: Family,
    /// Of its table: `ip`, `ip6` or `inet`.
    pub family: &'static str,
    /// Name of its table.
    pub table: String,
    /// Its name.
    pub chain: String,
    /// Whether Docker's chain for the rules of administrators is in the table.
    pub docker_user: bool,
    /// The rules that decide, there or in chains that it leads to, in the order in which a packet meets them.
    pub rules: Vec<ForwardRule>,
    /// Whether it drops what none of them accepts.
    pub at_end: bool,
}

/// A rule that decides of what meets all its conditions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardRule {
    /// Whether it accepts it. Then there may be more to it than is told; what it drops, it drops for certain.
    pub accepts: bool,
    /// Its conditions, and those on the way to it.
    pub conditions: Conditions,
}

/// What a packet has to be, all of it.
pub type Conditions = Vec<Condition>;

/// What a packet has to be for a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    /// Of an address family.
    Family(Family),
    /// Come in by an interface; or not by it.
    In(Name, bool),
    /// Leave by an interface; or not by it.
    Out(Name, bool),
    /// Come from a prefix; or not from it.
    From(IpCidr, bool),
    /// Something about interfaces or the source that is not told here: a set of them, a number.
    Whence,
    /// Anything else.
    Other,
}

/// The name of an interface, or the beginning of many.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// As far as it is told.
    pub text: Vec<u8>,
    /// Whether it stands for all that begin so.
    pub prefix: bool,
}

impl Name {
    /// Whether it stands for this interface.
    pub fn is(&self, name: &IfName) -> bool {
        let name = name.as_bytes();
        if self.prefix { name.starts_with(&self.text) } else { name == self.text }
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
