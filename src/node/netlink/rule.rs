//! Policy rules (struct fib_rule_hdr, FRA_*). They contain interface names, which need not be UTF-8, so they are
//! decoded from their attributes.

use cidr::IpCidr;
use nix::libc;
use rtnetlink::packet_core::DefaultNla;

use super::attr::{Body, address_family, attributes, exactly, ip_family, name, number, octets, prefix};
use super::socket::{NetlinkError, undecodable};
use crate::model::{EVERYTHING, Family, IfName, Rule, Selector};
use crate::observed::{RuleAction, RuleExtras, SeenRule};

/// Length of struct fib_rule_hdr.
pub const HEADER: usize = 12;

// linux/fib_rules.h
const FIB_RULE_PERMANENT: u32 = 1;
const FIB_RULE_INVERT: u32 = 2;
const FIB_RULE_UNRESOLVED: u32 = 4;
const FIB_RULE_IIF_DETACHED: u32 = 8;
const FIB_RULE_OIF_DETACHED: u32 = 16;
const FR_ACT_TO_TBL: u8 = 1;
const FR_ACT_GOTO: u8 = 2;
const FR_ACT_NOP: u8 = 3;
const FR_ACT_BLACKHOLE: u8 = 6;
const FR_ACT_UNREACHABLE: u8 = 7;
const FR_ACT_PROHIBIT: u8 = 8;
pub const FRA_DST: u16 = 1;
pub const FRA_SRC: u16 = 2;
pub const FRA_IIFNAME: u16 = 3;
pub const FRA_GOTO: u16 = 4;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_FLOW: u16 = 11;
const FRA_TUN_ID: u16 = 12;
const FRA_SUPPRESS_IFGROUP: u16 = 13;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
pub const FRA_OIFNAME: u16 = 17;
const FRA_PAD: u16 = 18;
const FRA_L3MDEV: u16 = 19;
const FRA_UID_RANGE: u16 = 20;
const FRA_PROTOCOL: u16 = 21;
const FRA_IP_PROTO: u16 = 22;
const FRA_SPORT_RANGE: u16 = 23;
const FRA_DPORT_RANGE: u16 = 24;
const FRA_DSCP: u16 = 25;
const FRA_FLOWLABEL: u16 = 26;
const FRA_FLOWLABEL_MASK: u16 = 27;
const FRA_SPORT_MASK: u16 = 28;
const FRA_DPORT_MASK: u16 = 29;
pub const FRA_DSCP_MASK: u16 = 30;

/// All bits of a flow label.
const FLOW_LABEL: u32 = 0xf_ffff;

/// Body of the dump of all rules.
pub fn all() -> Body {
    Body::new(vec![libc::AF_UNSPEC as u8], HEADER)
}

/// Body of the dump of all rules of a family.
pub fn all_of(family: Family) -> Body {
    Body::new(vec![address_family(family)], HEADER)
}

/// The request that adds or deletes this rule. The kernel treats any attribute as a selector, so only needed ones are
/// sent.
pub fn request(seen: &SeenRule) -> Body {
    let SeenRule { rule, .. } = seen;
    let (Selector { from, to, fwmark, iif, oif }, extras) = (&rule.selector, seen.extras());
    let length = |prefix: &Option<IpCidr>| prefix.map_or(0, |prefix| prefix.network_length());
    let mut header = vec![address_family(rule.family), length(to), length(from), extras.tos, 0, 0, 0];
    // The kernel accepts a rule without an action, which then does nothing.
    header.push(number_of(extras.action));
    header.extend(if extras.not { FIB_RULE_INVERT } else { 0 }.to_ne_bytes());
    let attribute = |kind: u16, value: &[u8]| DefaultNla::new(kind, value.into());
    let number = |kind: u16, value: u32| attribute(kind, &value.to_ne_bytes());
    let address =
        |kind, prefix: &Option<IpCidr>| prefix.map(|prefix| DefaultNla::new(kind, octets(prefix.first_address())));
    let name = |kind, name: &Option<IfName>| {
        name.as_ref().map(|name| DefaultNla::new(kind, [name.as_bytes(), b"\0"].concat()))
    };
    let (table, target) = match extras.action {
        RuleAction::Lookup(table) if !extras.l3mdev => (Some(table), None),
        RuleAction::Goto(target) => (None, Some(target)),
        _ => (None, None),
    };
    let (mark, mask) = fwmark.unzip();
    let range = |(first, last): (u16, u16)| [first.to_ne_bytes(), last.to_ne_bytes()].concat();
    let users = |(first, last): (u32, u32)| [first.to_ne_bytes(), last.to_ne_bytes()].concat();
    Body::new(header, HEADER)
        .with([number(FRA_PRIORITY, rule.priority), attribute(FRA_PROTOCOL, &[rule.protocol])])
        .with([address(FRA_SRC, from), address(FRA_DST, to)].into_iter().flatten())
        .with([name(FRA_IIFNAME, iif), name(FRA_OIFNAME, oif)].into_iter().flatten())
        .with(extras.users.map(|it| attribute(FRA_UID_RANGE, &users(it))))
        .with(extras.ip_protocol.map(|it| attribute(FRA_IP_PROTO, &[it])))
        .with(extras.source_ports.map(|it| attribute(FRA_SPORT_RANGE, &range(it))))
        .with(extras.ports.map(|it| attribute(FRA_DPORT_RANGE, &range(it))))
        .with(extras.l3mdev.then(|| attribute(FRA_L3MDEV, &[1])))
        .with(
            [
                (FRA_TABLE, table),
                (FRA_GOTO, target),
                (FRA_FWMARK, mark),
                (FRA_FWMASK, mask),
                (FRA_SUPPRESS_PREFIXLEN, extras.suppress_length),
                (FRA_SUPPRESS_IFGROUP, extras.suppress_group),
            ]
            .into_iter()
            .filter_map(|(kind, value)| Some(number(kind, value?))),
        )
}

fn number_of(action: RuleAction) -> u8 {
    match action {
        RuleAction::Lookup(_) => FR_ACT_TO_TBL,
        RuleAction::Goto(_) => FR_ACT_GOTO,
        RuleAction::Nop => FR_ACT_NOP,
        RuleAction::Blackhole => FR_ACT_BLACKHOLE,
        RuleAction::Unreachable => FR_ACT_UNREACHABLE,
        RuleAction::Prohibit => FR_ACT_PROHIBIT,
        RuleAction::Other(other) => other,
    }
}

/// Decodes a rule; `None` for families other than IP.
pub fn seen(payload: &[u8]) -> Result<Option<SeenRule>, NetlinkError> {
    // These report the rule's state, not its selectors.
    const STATES: u32 = FIB_RULE_PERMANENT | FIB_RULE_UNRESOLVED | FIB_RULE_IIF_DETACHED | FIB_RULE_OIF_DETACHED;
    let header = payload.first_chunk::<HEADER>().ok_or_else(|| undecodable("a rule ends within its header"))?;
    let [family, to_length, from_length, tos, table, _, _, action, flags @ ..] = *header;
    let Some(family) = ip_family(family) else { return Ok(None) };
    let mut plain = action == FR_ACT_TO_TBL && tos == 0 && u32::from_ne_bytes(flags) & !STATES == 0;
    let mut rule = Rule { family, priority: 0, selector: EVERYTHING, table: table.into(), protocol: 0 };
    let (mut mark, mut mask) = (0, 0);
    for attribute in attributes(payload, HEADER)? {
        let (kind, value) = attribute?;
        match kind {
            FRA_DST => rule.selector.to = Some(prefix(value, to_length)?),
            FRA_SRC => rule.selector.from = Some(prefix(value, from_length)?),
            FRA_IIFNAME => rule.selector.iif = Some(name(value)?),
            FRA_PRIORITY => rule.priority = number(value)?,
            FRA_FWMARK => mark = number(value)?,
            // The kernel always reports it; all bits set means none.
            FRA_SUPPRESS_PREFIXLEN => plain &= number(value)? == u32::MAX,
            FRA_TABLE => rule.table = number(value)?,
            FRA_FWMASK => mask = number(value)?,
            FRA_OIFNAME => rule.selector.oif = Some(name(value)?),
            FRA_PAD => {}
            FRA_PROTOCOL => rule.protocol = value.first().copied().unwrap_or_default(),
            _ => plain = false, // goto, realms, tunnel, l3mdev, uidrange, ports … and future attributes
        }
    }
    if mask != 0 {
        rule.selector.fwmark = Some((mark, mask));
    }
    let extras = if plain { None } else { Some(Box::new(extras(payload, header, rule.table)?)) };
    Ok(Some(SeenRule { rule, extras }))
}

/// Decodes the unsupported parts of a rule. Few rules have any, so this is only called for those.
fn extras(payload: &[u8], header: &[u8; HEADER], table: u32) -> Result<RuleExtras, NetlinkError> {
    let [_, _, _, tos, _, _, _, action, flags @ ..] = *header;
    let (mut target, mut dscp, mut dscp_mask, mut label, mut label_mask) = (0, None, u8::MAX, None, FLOW_LABEL);
    let mut extras = RuleExtras { tos, ..RuleExtras::new(RuleAction::Nop) };
    extras.not = u32::from_ne_bytes(flags) & FIB_RULE_INVERT != 0;
    for attribute in attributes(payload, HEADER)? {
        let (kind, value) = attribute?;
        let byte = || value.first().copied().ok_or_else(|| undecodable("an attribute of a rule is empty"));
        match kind {
            FRA_DST | FRA_SRC | FRA_IIFNAME | FRA_OIFNAME | FRA_PRIORITY | FRA_TABLE | FRA_FWMARK | FRA_FWMASK => {}
            FRA_PAD | FRA_PROTOCOL => {} // padding, protocol: not selectors
            FRA_FLOW => extras.realms = Some(number(value)?),
            // Linux 6.15 also shows the mask of a single port: all bits.
            FRA_SPORT_MASK | FRA_DPORT_MASK if *exactly(value)? == [u8::MAX; 2] => {}
            FRA_GOTO => target = number(value)?,
            FRA_TUN_ID => extras.tunnel = Some(u64::from_be_bytes(*exactly(value)?)).filter(|id| *id != 0),
            FRA_SUPPRESS_IFGROUP => extras.suppress_group = unless_all_bits(number(value)?),
            FRA_SUPPRESS_PREFIXLEN => extras.suppress_length = unless_all_bits(number(value)?),
            FRA_L3MDEV => extras.l3mdev = byte()? != 0,
            FRA_UID_RANGE => {
                let [a, b, c, d, last @ ..] = *exactly::<8>(value)?;
                extras.users = Some((u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes(last)));
            }
            FRA_IP_PROTO => extras.ip_protocol = Some(byte()?).filter(|protocol| *protocol != 0),
            FRA_SPORT_RANGE => extras.source_ports = Some(ports(value)?),
            FRA_DPORT_RANGE => extras.ports = Some(ports(value)?),
            FRA_DSCP => dscp = Some(byte()?),
            FRA_DSCP_MASK => dscp_mask = byte()?,
            FRA_FLOWLABEL => label = Some(u32::from_be_bytes(*exactly(value)?)),
            FRA_FLOWLABEL_MASK => label_mask = u32::from_be_bytes(*exactly(value)?),
            _ => extras.unknown.push(kind),
        }
    }
    extras.dscp = dscp.map(|dscp| (dscp, dscp_mask));
    extras.flow_label = label.map(|label| (label, label_mask));
    extras.action = match action {
        FR_ACT_TO_TBL => RuleAction::Lookup(table),
        FR_ACT_GOTO => RuleAction::Goto(target),
        FR_ACT_NOP => RuleAction::Nop,
        FR_ACT_BLACKHOLE => RuleAction::Blackhole,
        FR_ACT_UNREACHABLE => RuleAction::Unreachable,
        FR_ACT_PROHIBIT => RuleAction::Prohibit,
        other => RuleAction::Other(other),
    };
    Ok(extras)
}

/// All bits set means none.
fn unless_all_bits(number: u32) -> Option<u32> {
    (number != u32::MAX).then_some(number)
}

fn ports(value: &[u8]) -> Result<(u16, u16), NetlinkError> {
    let [a, b, c, d] = *exactly(value)?;
    Ok((u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d])))
}
