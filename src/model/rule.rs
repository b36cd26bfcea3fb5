//! The nouns of policy rules.

use std::borrow::Cow;
use std::fmt;

use cidr::IpCidr;

use super::{Family, IfName, Noun, table_name};

/// Priorities of the kernel's own rules.
pub const KERNEL_PRIORITIES: [u32; 3] = [0, 32766, 32767];

/// Priority of the rule from an uplink's own address to the table of that uplink (AWS VPC CNI 1.20 and later).
pub const UPLINK_RULE_PRIORITY: u32 = 32765;

/// The selectors that node-fixer supports.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector {
    /// Source prefix; `None` is every source.
    pub from: Option<IpCidr>,
    /// Destination prefix; `None` is every destination.
    pub to: Option<IpCidr>,
    /// Mark and mask.
    pub fwmark: Option<(u32, u32)>,
    /// Interface that the packet came in by.
    pub iif: Option<IfName>,
    /// Interface that the socket is bound to.
    pub oif: Option<IfName>,
}

/// The selector that matches all packets.
pub const EVERYTHING: Selector = Selector { from: None, to: None, fwmark: None, iif: None, oif: None };

/// A policy rule with the action lookup: the kind that node-fixer evaluates, adds and deletes. Its `Display` is the end
/// of an `ip rule` command line.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Address family.
    pub family: Family,
    /// Rules with lower priorities come first.
    pub priority: u32,
    /// Which packets it matches.
    pub selector: Selector,
    /// The table to look up.
    pub table: u32,
    /// `FRA_PROTOCOL`: what installed it.
    pub protocol: u8,
}

impl Rule {
    /// Whether both rules do the same at the same priority, whatever installed them.
    pub fn equals(&self, other: &Rule) -> bool {
        self.essence() == other.essence()
    }

    /// The rule without its protocol.
    pub fn essence(&self) -> (Family, u32, u32, &Selector) {
        (self.family, self.priority, self.table, &self.selector)
    }

    /// The `ip rule` command with `verb` for this rule.
    pub fn command(&self, verb: &str) -> String {
        format!("{} rule {verb} {self}", self.family.ip_command())
    }
}

/// A policy rule with everything that the kernel shows of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenRule {
    /// The supported part of the rule. The table means nothing unless the action is lookup.
    pub rule: Rule,
    /// The rest. Few rules have any.
    pub extras: Option<Box<RuleExtras>>,
}

/// Parts that few rules have. A rule with any of these is not evaluated; it is only written if it is declared.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RuleExtras {
    /// The action.
    pub action: RuleAction,
    /// It matches the packets that its selectors do not match.
    pub not: bool,
    /// Type of service.
    pub tos: u8,
    /// DSCP and mask.
    pub dscp: Option<(u8, u8)>,
    /// IPv6 flow label and mask.
    pub flow_label: Option<(u32, u32)>,
    /// First and last uid.
    pub users: Option<(u32, u32)>,
    /// IP protocol.
    pub ip_protocol: Option<u8>,
    /// First and last source port.
    pub source_ports: Option<(u16, u16)>,
    /// First and last destination port.
    pub ports: Option<(u16, u16)>,
    /// Tunnel id.
    pub tunnel: Option<u64>,
    /// Realms that it assigns to a packet.
    pub realms: Option<u32>,
    /// It is for traffic of VRFs, and looks up the VRF's table.
    pub l3mdev: bool,
    /// Routes with prefixes of at most this length are ignored.
    pub suppress_length: Option<u32>,
    /// Routes through interfaces of this group are ignored.
    pub suppress_group: Option<u32>,
    /// Attributes that node-fixer does not know.
    pub unknown: Vec<u16>,
}

/// The action of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleAction {
    /// Look up this table.
    Lookup(u32),
    /// Continue at the rule with this priority.
    Goto(u32),
    /// Do nothing.
    Nop,
    /// Drop.
    Blackhole,
    /// Drop, and notify the sender.
    Unreachable,
    /// Drop, and notify the sender that this is prohibited.
    Prohibit,
    /// One that node-fixer does not know.
    Other(u8),
}

impl RuleExtras {
    /// Those of a rule with this action and no unsupported selectors.
    pub fn new(action: RuleAction) -> RuleExtras {
        RuleExtras {
            action,
            not: false,
            tos: 0,
            dscp: None,
            flow_label: None,
            users: None,
            ip_protocol: None,
            source_ports: None,
            ports: None,
            tunnel: None,
            realms: None,
            l3mdev: false,
            suppress_length: None,
            suppress_group: None,
            unknown: Vec::new(),
        }
    }
}

impl From<Rule> for SeenRule {
    fn from(rule: Rule) -> SeenRule {
        SeenRule { rule, extras: None }
    }
}

impl SeenRule {
    /// The rule, if it can be evaluated: it looks up a table, and has no unsupported parts.
    pub fn lookup(&self) -> Option<&Rule> {
        self.extras.is_none().then_some(&self.rule)
    }

    /// The rest, even if empty.
    pub fn extras(&self) -> Cow<'_, RuleExtras> {
        match &self.extras {
            Some(extras) => Cow::Borrowed(extras),
            None => Cow::Owned(RuleExtras::new(RuleAction::Lookup(self.rule.table))),
        }
    }

    /// The action.
    pub fn action(&self) -> RuleAction {
        self.extras.as_ref().map_or(RuleAction::Lookup(self.rule.table), |extras| extras.action)
    }

    /// The rule without its protocol.
    pub fn essence(&self) -> (Family, u32, RuleAction, &Selector, Option<&RuleExtras>) {
        (self.rule.family, self.rule.priority, self.action(), &self.rule.selector, self.extras.as_deref())
    }

    /// What distinguishes rules in the kernel: neither `not` nor the target of a goto (rule_exists in
    /// net/core/fib_rules.c).
    pub fn identity(&self) -> SeenRule {
        let mut rule = self.clone();
        if let Some(extras) = &mut rule.extras {
            extras.not = false;
            if let RuleAction::Goto(target) = &mut extras.action {
                *target = 0;
            }
            rule.extras = rule.extras.filter(|it| **it != RuleExtras::new(RuleAction::Lookup(self.rule.table)));
        }
        rule
    }

    /// Whether node-fixer could have written it, and so can name exactly this rule to the kernel.
    pub fn is_expressible(&self) -> bool {
        self.extras.as_ref().is_none_or(|it| {
            let others = (it.dscp.is_some(), it.flow_label.is_some(), it.tunnel.is_some(), it.realms.is_some());
            let action = !matches!(it.action, RuleAction::Nop | RuleAction::Other(_));
            others == (false, false, false, false) && action && it.unknown.is_empty()
        })
    }

    /// Whether it has no selector: it matches every packet or, with `not`, none.
    pub fn selects_nothing(&self) -> bool {
        let mut extras = self.extras().into_owned();
        (extras.not, extras.suppress_length, extras.suppress_group) = (false, None, None);
        self.rule.selector == EVERYTHING && extras == RuleExtras::new(extras.action)
    }

    /// Whether it looks up a table, and has exactly this selector.
    pub fn selects_only(&self, selector: &Selector) -> bool {
        self.rule.selector == *selector && *self.extras() == RuleExtras::new(RuleAction::Lookup(self.rule.table))
    }
}

impl Noun for SeenRule {
    fn add_command(&self) -> String {
        self.command("add")
    }

    fn delete_command(&self) -> String {
        self.command("del")
    }
}

impl SeenRule {
    /// The `ip rule` command with `verb` for this rule.
    pub fn command(&self, verb: &str) -> String {
        let Rule { family, priority, protocol, .. } = self.rule;
        format!("{} rule {verb} priority {priority} {self:#} protocol {protocol}", family.ip_command())
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "priority {} ", self.priority)?;
        write_words(f, self, &RuleExtras::new(RuleAction::Lookup(self.table)))?;
        write!(f, " protocol {}", self.protocol)
    }
}

/// As `ip rule` shows it, without the priority; the alternate form is what `ip rule add` accepts.
impl fmt::Display for SeenRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_words(f, &self.rule, &self.extras())
    }
}

fn write_words(f: &mut fmt::Formatter<'_>, rule: &Rule, extras: &RuleExtras) -> fmt::Result {
    let Selector { from, to, fwmark, iif, oif } = &rule.selector;
    let input = f.alternate();
    if extras.not {
        f.write_str("not ")?;
    }
    match from {
        Some(from) => write!(f, "from {from}")?,
        None => f.write_str("from all")?,
    }
    let mut word = |name: &str, value: Option<String>| match value {
        Some(value) => write!(f, " {name} {value}"),
        None => Ok(()),
    };
    let prefix = |prefix: &IpCidr| prefix.to_string();
    let link = |name: &IfName| name.to_string();
    let mask = |(value, mask): (u32, u32)| format!("{value:#x}/{mask:#x}");
    let range = |(first, last): (u32, u32)| format!("{first}-{last}");
    let ports = |(first, last): (u16, u16)| if first == last { first.to_string() } else { format!("{first}-{last}") };
    word("to", to.as_ref().map(prefix))?;
    word("tos", (extras.tos != 0).then(|| format!("{:#x}", extras.tos)))?;
    word("fwmark", fwmark.map(mask))?;
    word("iif", iif.as_ref().map(link))?;
    word("oif", oif.as_ref().map(link))?;
    word("uidrange", extras.users.map(range))?;
    word("ipproto", extras.ip_protocol.map(|protocol| protocol.to_string()))?;
    word("sport", extras.source_ports.map(ports))?;
    word("dport", extras.ports.map(ports))?;
    word("dscp", extras.dscp.map(|(dscp, all)| mask((dscp.into(), all.into()))))?;
    word("flowlabel", extras.flow_label.map(mask))?;
    word("tun_id", extras.tunnel.map(|tunnel| tunnel.to_string()))?;
    match extras.action {
        _ if extras.l3mdev && input => f.write_str(" l3mdev")?,
        _ if extras.l3mdev => f.write_str(" lookup [l3mdev-table]")?,
        action => write!(f, " {action}")?,
    }
    if let Some(length) = extras.suppress_length {
        write!(f, " suppress_prefixlength {length}")?;
    }
    if let Some(group) = extras.suppress_group {
        write!(f, " suppress_ifgroup {group}")?;
    }
    Ok(())
}

impl fmt::Display for RuleAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RuleAction::Lookup(table) => write!(f, "lookup {}", table_name(*table)),
            RuleAction::Goto(target) => write!(f, "goto {target}"),
            RuleAction::Nop => f.write_str("nop"),
            RuleAction::Blackhole => f.write_str("blackhole"),
            RuleAction::Unreachable => f.write_str("unreachable"),
            RuleAction::Prohibit => f.write_str("prohibit"),
            RuleAction::Other(action) => write!(f, "action {action}"),
        }
    }
}
