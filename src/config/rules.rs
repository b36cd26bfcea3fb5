//! The section `rules`.

use std::fmt;
use std::ops::{Not, RangeInclusive};

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::tables::TableId;
use super::types::{Prefix, read_number, schema};
use super::{Contradiction, agree, repeated};
use crate::model::{
    self, Family, IfName, KERNEL_PRIORITIES, PROTO_DECLARED, RuleAction, RuleExtras, SeenRule, Selector,
};

/// An entry of the section `rules`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename = "Rule", try_from = "RuleFields")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RuleEntry(RuleFields);

/// The keys of a rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct RuleFields {
    /// Address family. Only without from and to. Default: ipv4.
    #[serde(skip_serializing_if = "Option::is_none")]
    family: Option<Family>,
    /// Priority. Lower ones come first.
    priority: Priority,
    /// Match the packets that the selectors do not match.
    #[serde(default, skip_serializing_if = "Not::not")]
    not: bool,
    /// Source prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<Prefix>,
    /// Destination prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    to: Option<Prefix>,
    /// Mark of the packet: MARK or MARK/MASK.
    #[serde(skip_serializing_if = "Option::is_none")]
    fwmark: Option<Fwmark>,
    /// Interface that the packet came in by.
    #[serde(skip_serializing_if = "Option::is_none")]
    iif: Option<IfName>,
    /// Interface that the sending socket is bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    oif: Option<IfName>,
    /// Type of service of the packet, such as 0x10.
    #[serde(skip_serializing_if = "Option::is_none")]
    tos: Option<Tos>,
    /// IP protocol: tcp, udp, icmp, ipv6-icmp, sctp or a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    ipproto: Option<IpProtocol>,
    /// Source port, or a range such as 1000-1999.
    #[serde(skip_serializing_if = "Option::is_none")]
    sport: Option<Ports>,
    /// Destination port, or a range such as 1000-1999.
    #[serde(skip_serializing_if = "Option::is_none")]
    dport: Option<Ports>,
    /// User id of the sending socket, or a range such as 1000-1999.
    #[serde(skip_serializing_if = "Option::is_none")]
    uidrange: Option<Users>,
    /// Look up the table of the VRF that the packet comes from or goes to.
    #[serde(default, skip_serializing_if = "Not::not")]
    l3mdev: bool,
    /// Ignore routes of the table whose prefix has at most this length.
    #[serde(skip_serializing_if = "Option::is_none")]
    suppress_prefixlength: Option<u8>,
    /// Ignore routes of the table through interfaces of this group.
    #[serde(skip_serializing_if = "Option::is_none")]
    suppress_ifgroup: Option<u32>,
    /// Table to look up: a number or a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<TableId>,
    /// Continue at the rule with this priority.
    #[serde(skip_serializing_if = "Option::is_none")]
    goto: Option<u32>,
    /// Drop the packet in this way.
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<RuleVerdict>,
}

/// How a rule drops a packet.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
enum RuleVerdict {
    /// Drops it.
    Blackhole,
    /// Drops it, and reports to the sender that the destination is unreachable.
    Unreachable,
    /// Drops it, and reports to the sender that it is prohibited.
    Prohibit,
}

impl TryFrom<RuleFields> for RuleEntry {
    type Error = String;

    fn try_from(fields: RuleFields) -> Result<RuleEntry, String> {
        let named = [("from", fields.from), ("to", fields.to)];
        let families = named.iter().filter_map(|(key, prefix)| Some((*key, model::family_of(&prefix.as_ref()?.0))));
        agree(families.chain(fields.family.map(|family| ("family", family))))?;
        let entry = RuleEntry(fields);
        let (fields, family) = (&entry.0, entry.family());
        let does = [fields.table.is_some(), fields.goto.is_some(), fields.action.is_some(), fields.l3mdev];
        if does.iter().filter(|it| **it).count() != 1 {
            return Err("requires exactly one of table, goto, action and l3mdev".into());
        }
        let looks = fields.table.is_some() || fields.l3mdev;
        if !looks && (fields.suppress_prefixlength.is_some() || fields.suppress_ifgroup.is_some()) {
            return Err("has suppress_prefixlength or suppress_ifgroup, which requires table or l3mdev".into());
        }
        let longest = family.everything().family().len();
        if let Some(length) = fields.suppress_prefixlength.filter(|length| *length > longest) {
            return Err(format!(
                "has the suppress_prefixlength {length}, but an {family} prefix has at most {longest}"
            ));
        }
        if let Some(target) = fields.goto.filter(|target| *target <= fields.priority.0) {
            return Err(format!(
                "has the goto target {target}, which must be greater than its own priority ({})",
                fields.priority.0
            ));
        }
        // The bits that the kernel accepts as a type of service (IPTOS_RT_MASK), without the two bits of ECN.
        let bits = if family == Family::V4 { 0x1c } else { 0xfc };
        if let Some(Tos(tos)) = fields.tos.filter(|tos| tos.0 & !bits != 0) {
            return Err(format!("has the tos {tos:#x}, but {family} rules compare only the bits {bits:#x}"));
        }
        if fields.not && entry.to_rule().selects_nothing() {
            return Err("has `not` and no selector, so it matches no packet".into());
        }
        Ok(entry)
    }
}

impl RuleEntry {
    fn family(&self) -> Family {
        let RuleFields { family, from, to, .. } = &self.0;
        let named = from.or(*to).map(|prefix| model::family_of(&prefix.0));
        named.or(*family).unwrap_or(Family::V4)
    }

    /// The rule to create, with the protocol of declared ones.
    pub fn to_rule(&self) -> SeenRule {
        let RuleFields { priority, from, to, fwmark, iif, oif, table, .. } = &self.0;
        // The kernel shows "from 0.0.0.0/0" as no selector.
        let narrow = |prefix: &Option<Prefix>| prefix.map(|it| it.0).filter(|prefix| prefix.network_length() > 0);
        let rule = model::Rule {
            family: self.family(),
            priority: priority.0,
            selector: Selector {
                from: narrow(from),
                to: narrow(to),
                fwmark: fwmark.map(|Fwmark { mark, mask }| (mark, mask)),
                iif: iif.clone(),
                oif: oif.clone(),
            },
            table: table.map_or(0, |table| table.0),
            protocol: PROTO_DECLARED,
        };
        let extras = self.extras(rule.table);
        let plain = extras == RuleExtras::new(RuleAction::Lookup(rule.table));
        SeenRule { rule, extras: (!plain).then(|| Box::new(extras)) }
    }

    fn extras(&self, table: u32) -> RuleExtras {
        let fields = &self.0;
        let action = match (fields.goto, fields.action) {
            (Some(target), _) => RuleAction::Goto(target),
            (_, Some(RuleVerdict::Blackhole)) => RuleAction::Blackhole,
            (_, Some(RuleVerdict::Unreachable)) => RuleAction::Unreachable,
            (_, Some(RuleVerdict::Prohibit)) => RuleAction::Prohibit,
            (None, None) => RuleAction::Lookup(table),
        };
        RuleExtras {
            not: fields.not,
            tos: fields.tos.map_or(0, |tos| tos.0),
            users: fields.uidrange.map(|it| it.0),
            ip_protocol: fields.ipproto.map(|it| it.0),
            source_ports: fields.sport.map(|it| it.0),
            ports: fields.dport.map(|it| it.0),
            l3mdev: fields.l3mdev,
            suppress_length: fields.suppress_prefixlength.map(u32::from),
            suppress_group: fields.suppress_ifgroup,
            ..RuleExtras::new(action)
        }
    }
}

/// Entries that contradict each other.
pub(super) fn contradiction(rules: &[RuleEntry]) -> Option<Contradiction> {
    let rules: Vec<_> = rules.iter().map(RuleEntry::to_rule).collect();
    let identities: Vec<_> = rules.iter().map(SeenRule::identity).collect();
    repeated("rules", rules.iter().map(SeenRule::essence), |first, _| format!("repeats rules[{first}]")).or_else(|| {
        repeated("rules", identities.iter().map(SeenRule::essence), |first, _| {
            format!("differs from rules[{first}] only by not or goto, which the kernel does not distinguish")
        })
    })
}

/// Priority of a rule, except those of the kernel's own rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Priority(pub u32);

impl<'de> Deserialize<'de> for Priority {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let priority = read_number(deserializer, "a priority: a number from 1 to 4294967295", |_| None)?;
        if KERNEL_PRIORITIES.contains(&priority) {
            return Err(de::Error::custom(format_args!(
                "{priority} is the priority of one of the kernel's own rules (0, 32766, 32767), which are never \
                 changed"
            )));
        }
        Ok(Priority(priority))
    }
}

schema!(Priority, { "type": "integer", "minimum": 1, "maximum": 4294967295_u32, "not": { "enum": [32766, 32767] } });

/// Type of service: a number, or its hexadecimal form.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Tos(u8);

impl<'de> Deserialize<'de> for Tos {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let hex = |text: &str| u32::from_str_radix(text.strip_prefix("0x")?, 16).ok();
        let expected = "a type of service: a number such as 0x10, from 1 to 255";
        match u8::try_from(read_number(deserializer, expected, hex)?) {
            Ok(tos @ 1..) => Ok(Tos(tos)),
            _ => Err(de::Error::custom(format_args!("is not {expected}"))),
        }
    }
}

impl Serialize for Tos {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

schema!(Tos, {
    "anyOf": [{ "type": "integer", "minimum": 1, "maximum": 255 }, { "type": "string", "pattern": "^0x[0-9a-fA-F]+$" }]
});

/// The names of IP protocols. iproute2 reads them from /etc/protocols, which not every node has.
const IP_PROTOCOLS: [(&str, u8); 7] =
    [("icmp", 1), ("tcp", 6), ("udp", 17), ("gre", 47), ("esp", 50), ("ipv6-icmp", 58), ("sctp", 132)];

/// Number of an IP protocol.
#[derive(Debug, Clone, Copy, PartialEq)]
struct IpProtocol(u8);

impl<'de> Deserialize<'de> for IpProtocol {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let by_name = |name: &str| IP_PROTOCOLS.iter().find(|(it, _)| *it == name).map(|(_, number)| (*number).into());
        let expected = "an IP protocol: tcp, udp, icmp, ipv6-icmp, sctp, gre, esp, or a number from 1 to 255";
        match u8::try_from(read_number(deserializer, expected, by_name)?) {
            Ok(number @ 1..) => Ok(IpProtocol(number)),
            _ => Err(de::Error::custom(format_args!("is not {expected}"))),
        }
    }
}

impl Serialize for IpProtocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match IP_PROTOCOLS.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => serializer.serialize_str(name),
            None => serializer.serialize_u8(self.0),
        }
    }
}

schema!(IpProtocol, {
    "anyOf": [
        { "type": "integer", "minimum": 1, "maximum": 255 },
        { "enum": ["icmp", "tcp", "udp", "gre", "esp", "ipv6-icmp", "sctp"] }
    ]
});

/// Reads a number, or a range of numbers such as `1000-1999`, in this range.
fn read_range<'de, D: Deserializer<'de>>(
    deserializer: D,
    expected: &'static str,
    all: RangeInclusive<u32>,
) -> Result<(u32, u32), D::Error> {
    struct Range(&'static str);
    impl Visitor<'_> for Range {
        type Value = (u64, u64);

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_u64<E: de::Error>(self, number: u64) -> Result<Self::Value, E> {
            Ok((number, number))
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            let number = |text: &str| text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let both = number(first).zip(number(last));
            both.ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
        }
    }
    let (first, last) = deserializer.deserialize_any(Range(expected))?;
    match (u32::try_from(first), u32::try_from(last)) {
        (Ok(from), Ok(to)) if from <= to && all.contains(&from) && all.contains(&to) => Ok((from, to)),
        _ => Err(de::Error::custom(format_args!("{first}-{last} is not {expected}"))),
    }
}

/// First and last port. The kernel refuses 65535 in a rule.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Ports((u16, u16));

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "a port from 1 to 65534, or a range such as 1000-1999";
        let (first, last) = read_range(deserializer, expected, 1..=65_534)?;
        Ok(Ports((first as u16, last as u16)))
    }
}

/// First and last user id.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Users((u32, u32));

impl<'de> Deserialize<'de> for Users {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected = "a user id from 0 to 4294967294, or a range such as 1000-1999";
        read_range(deserializer, expected, 0..=u32::MAX - 1).map(Users)
    }
}

/// The written form of a range.
macro_rules! range {
    ($($type:ident),*) => { $(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let (first, last) = self.0;
                if first == last { first.serialize(serializer) } else { serializer.collect_str(&format_args!("{first}-{last}")) }
            }
        }
    )* };
}
range!(Ports, Users);

schema!(Ports, {
    "anyOf": [{ "type": "integer", "minimum": 1, "maximum": 65534 }, { "type": "string", "pattern": "^[0-9]+(-[0-9]+)?$" }]
});
schema!(Users, {
    "anyOf": [
        { "type": "integer", "minimum": 0, "maximum": 4294967294_u32 },
        { "type": "string", "pattern": "^[0-9]+(-[0-9]+)?$" }
    ]
});

/// Mark of a packet and its mask: `0x80`, `128` or `0x80/0xff`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fwmark {
    /// Mark.
    pub mark: u32,
    /// Mask. Without one the kernel uses all bits.
    pub mask: u32,
}

impl<'de> Deserialize<'de> for Fwmark {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Mark;
        impl Visitor<'_> for Mark {
            type Value = Fwmark;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a mark: MARK or MARK/MASK, such as 0x80/0xff")
            }

            fn visit_u64<E: de::Error>(self, mark: u64) -> Result<Fwmark, E> {
                let mark = u32::try_from(mark).map_err(|_| E::custom("a mark has 32 bits"))?;
                Ok(Fwmark { mark, mask: u32::MAX })
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Fwmark, E> {
                let bits = |text: &str| match text.strip_prefix("0x") {
                    Some(hex) if !hex.starts_with('+') => u32::from_str_radix(hex, 16).ok(),
                    _ if text.starts_with('+') => None,
                    _ => text.parse().ok(),
                };
                let (mark, mask) = text.split_once('/').unwrap_or((text, "0xffffffff"));
                match (bits(mark), bits(mask)) {
                    (Some(mark), Some(0)) => Err(E::custom(format_args!(
                        "the mask of {mark:#x}/0 matches every packet; write a mask other than 0"
                    ))),
                    (Some(mark), Some(mask)) => Ok(Fwmark { mark, mask }),
                    _ => Err(E::custom(format_args!("`{text}` is not a mark: MARK or MARK/MASK, such as 0x80/0xff"))),
                }
            }
        }
        deserializer.deserialize_any(Mark)
    }
}

impl Serialize for Fwmark {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}/{:#x}", self.mark, self.mask))
    }
}

schema!(Fwmark, {
    "anyOf": [
        { "type": "integer", "minimum": 0, "maximum": 4294967295_u32 },
        { "type": "string", "pattern": "^(0x[0-9a-fA-F]+|[0-9]+)(/(0x[0-9a-fA-F]+|[0-9]+))?$" }
    ]
});
