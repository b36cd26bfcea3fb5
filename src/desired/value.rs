//! Single values of the configuration: how each is written, and what is wrong with one that is not.

use std::cell::OnceCell;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use cidr::{IpCidr, IpInet};
use regex::bytes::{Regex, RegexBuilder};
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::Version;
use crate::net::{FORWARD, FORWARD_OF_ALL, Family, IfName, KERNEL_PRIORITIES, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN};
use crate::sysctl_d;

/// A regular expression over names of interfaces, anchored as written. ASCII only: names are bytes.
///
/// It is compiled when it is first matched: a configuration may have thousands, each of which takes far more memory
/// compiled than written.
#[derive(Clone)]
pub struct Pattern {
    text: String,
    has_group: bool,
    compiled: Rc<OnceCell<Regex>>,
}

impl Pattern {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(super) fn new(text: &str) -> Result<Pattern, String> {
        if is_shell_pattern(text) {
            return Err(format!(
                "`{text}` is taken for a regular expression, in which * repeats what stands before it; write ^{}$",
                text.replace('*', ".*")
            ));
        }
        Ok(Pattern { text: text.to_owned(), has_group: compile(text)?.captures_len() > 1, compiled: Rc::default() })
    }

    /// Whether it has a group in parentheses.
    pub(super) fn has_group(&self) -> bool {
        self.has_group
    }

    /// The part of the name that its first group matches.
    pub(super) fn first_group<'a>(&self, name: &'a [u8]) -> Option<&'a [u8]> {
        Some(self.regex()?.captures(name)?.get(1)?.as_bytes())
    }

    /// Whether it matches the name.
    pub fn is_match(&self, name: &[u8]) -> bool {
        self.regex().is_some_and(|regex| regex.is_match(name))
    }

    fn regex(&self) -> Option<&Regex> {
        if self.compiled.get().is_none() {
            // Cannot fail: it was compiled when it was read.
            let regex = compile(&self.text).ok()?;
            return Some(self.compiled.get_or_init(|| regex));
        }
        self.compiled.get()
    }
}

/// Whether it looks like a pattern of a shell: a `*` right after a part of a name repeats just that letter.
fn is_shell_pattern(text: &str) -> bool {
    let pairs = text.bytes().zip(text.bytes().skip(1));
    text.starts_with('*')
        || pairs.into_iter().any(|(one, next)| next == b'*' && (one.is_ascii_alphanumeric() || one == b'_'))
}

/// What a pattern may come to, in bytes. Names of interfaces have 15 bytes and files 255; a usual pattern has a kilobyte.
const MOST_COMPILED: usize = 64 << 10;

fn compile(text: &str) -> Result<Regex, String> {
    RegexBuilder::new(text).unicode(false).size_limit(MOST_COMPILED).build().map_err(|error| {
        if let regex::Error::CompiledTooBig(limit) = error {
            return format!(
                "`{text}` is too large: compiled it has more than {} KiB; repeat less ({{n}})",
                limit >> 10
            );
        }
        let error = error.to_string();
        let reason = error.lines().last().unwrap_or(&error);
        format!("`{text}` is no regular expression: {}", reason.trim_start_matches("error: "))
    })
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

impl PartialOrd for Pattern {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Pattern {
    fn cmp(&self, other: &Self) -> Ordering {
        self.text.cmp(&other.text)
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.text)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, "a regular expression", Pattern::new)
    }
}

impl Serialize for Pattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match number(deserializer, "the number 1", |_| None)? {
            1 => Ok(Version),
            other => Err(de::Error::custom(format_args!("this node-fixer understands version 1, not {other}"))),
        }
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(1)
    }
}

/// Priority of a rule; not one of the kernel's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Priority(pub u32);

impl<'de> Deserialize<'de> for Priority {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let priority = number(deserializer, "a priority: a number from 1 to 4294967295", |_| None)?;
        if KERNEL_PRIORITIES.contains(&priority) {
            return Err(de::Error::custom(format_args!(
                "{priority} is the priority of one of the kernel's own rules (0, 32766, 32767), which are never touched"
            )));
        }
        Ok(Priority(priority))
    }
}

/// A routing table: a number, or `main`, `default` or `local`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TableId(pub u32);

impl<'de> Deserialize<'de> for TableId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let by_name = |name: &str| match name {
            "main" => Some(TABLE_MAIN),
            "default" => Some(TABLE_DEFAULT),
            "local" => Some(TABLE_LOCAL),
            _ => None,
        };
        match number(deserializer, "a table: a number from 1 to 4294967295, or main, default or local", by_name)? {
            0 => Err(de::Error::custom("0 is no table: they are numbered from 1")),
            table => Ok(TableId(table)),
        }
    }
}

/// Tables from one number to another, both included. Written as one number, or as `[from, to]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableRange(u32, u32);

impl TableRange {
    /// Whether the table is one of them.
    pub fn contains(self, table: u32) -> bool {
        (self.0..=self.1).contains(&table)
    }
}

impl<'de> Deserialize<'de> for TableRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Range;
        impl<'de> Visitor<'de> for Range {
            type Value = TableRange;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table number, or a range [from, to]")
            }

            fn visit_u64<E: de::Error>(self, table: u64) -> Result<TableRange, E> {
                let table = u32::try_from(table).map_err(|_| E::custom("table numbers end at 4294967295"))?;
                Ok(TableRange(table, table))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<TableRange, A::Error> {
                let ends = (seq.next_element::<u32>()?, seq.next_element::<u32>()?, seq.next_element::<u32>()?);
                match ends {
                    (Some(from), Some(to), None) if from <= to => Ok(TableRange(from, to)),
                    (Some(from), Some(to), None) => {
                        Err(de::Error::custom(format_args!("the range [{from}, {to}] ends before it begins")))
                    }
                    _ => Err(de::Error::custom("a range has two ends: [from, to]")),
                }
            }
        }
        deserializer.deserialize_any(Range)
    }
}

impl Serialize for TableRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 == self.1 { self.0.serialize(serializer) } else { (self.0, self.1).serialize(serializer) }
    }
}

/// Mark of a packet and the bits of it that count: `0x80`, `128` or `0x80/0xff`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fwmark {
    /// Mark.
    pub mark: u32,
    /// Bits that count; all of them where none are given, as the kernel has it.
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
                    (Some(mark), Some(0)) => {
                        Err(E::custom(format_args!("the mask of {mark:#x}/0 leaves nothing of the mark to compare")))
                    }
                    (Some(mark), Some(mask)) => Ok(Fwmark { mark, mask }),
                    _ => Err(E::custom(format_args!("`{text}` is no mark: MARK or MARK/MASK, such as 0x80/0xff"))),
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

/// An optional prefix such as `10.0.0.0/8`; a single address is the prefix of one host.
pub(super) mod prefix {
    use std::borrow::Cow;

    use super::{Deserializer, IpCidr, IpInet, Serializer, text};

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpCidr>, D::Error> {
        text(deserializer, "a prefix such as 10.0.0.0/8", parse).map(Some)
    }

    pub fn serialize<S: Serializer>(prefix: &Option<IpCidr>, serializer: S) -> Result<S::Ok, S::Error> {
        let shown = prefix.map_or(Cow::Borrowed("default"), |prefix| Cow::Owned(format!("{prefix:#}")));
        serializer.serialize_str(&shown)
    }

    pub fn parse(text: &str) -> Result<IpCidr, String> {
        if text == "all" {
            return Err("`all` is no prefix; leave the key out to select nothing by it".into());
        }
        text.parse().map_err(|error| match text.parse::<IpInet>() {
            Ok(inet) => format!("`{text}` has bits set behind its prefix; did you mean {:#}?", inet.network()),
            Err(_) => format!("`{text}` is no prefix: {error}"),
        })
    }
}

/// A prefix.
pub(super) mod source {
    use super::{Deserializer, IpCidr, Serializer, prefix, text};

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpCidr, D::Error> {
        text(deserializer, "a prefix such as 10.0.0.0/8", prefix::parse)
    }

    pub fn serialize<S: Serializer>(prefix: &IpCidr, serializer: S) -> Result<S::Ok, S::Error> {
        prefix::serialize(&Some(*prefix), serializer)
    }
}

/// A prefix, or `default`, whose family something else tells.
pub(super) mod destination {
    pub use super::prefix::serialize;
    use super::{Deserializer, IpCidr, prefix, text};

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpCidr>, D::Error> {
        text(deserializer, "a prefix such as 10.0.0.0/8, or default", |text| match text {
            "default" => Ok(None),
            _ => prefix::parse(text).map(Some),
        })
    }
}

/// An optional address.
pub(super) mod address {
    use super::{Deserializer, IpAddr, Serialize, Serializer, text};

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
        text(deserializer, "an address such as 10.0.0.1", |text| {
            text.parse().map(Some).map_err(|_| format!("`{text}` is no address: one such as 10.0.0.1 or fe80::1"))
        })
    }

    pub fn serialize<S: Serializer>(address: &Option<IpAddr>, serializer: S) -> Result<S::Ok, S::Error> {
        address.serialize(serializer)
    }
}

/// An optional name of an interface.
pub(super) mod if_name {
    use super::{Deserializer, IfName, Serializer, is_glob, text};

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IfName>, D::Error> {
        text(deserializer, "the name of an interface", |text| {
            // The kernel would take such a name. Who writes one means a pattern, which no interface would ever match.
            if is_glob(text) {
                return Err(format!("`{text}` is a pattern; here the name of one interface is wanted"));
            }
            let rule = "1 to 15 bytes, without `/`, `:` and white space, and not `.` or `..`";
            IfName::new(text.as_bytes()).map(Some).ok_or_else(|| format!("`{text}` is no name of an interface: {rule}"))
        })
    }

    pub fn serialize<S: Serializer>(name: &Option<IfName>, serializer: S) -> Result<S::Ok, S::Error> {
        // What was read from YAML is UTF-8.
        let name = name.as_ref().map_or(Default::default(), |name| String::from_utf8_lossy(name.as_bytes()));
        serializer.serialize_str(&name)
    }
}

/// The name of an interface.
pub(super) mod name {
    use super::{Deserializer, IfName, Serializer, if_name};
    use serde::de::Error;

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IfName, D::Error> {
        if_name::deserialize(deserializer)?.ok_or_else(|| D::Error::custom("there is no name"))
    }

    pub fn serialize<S: Serializer>(name: &IfName, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&String::from_utf8_lossy(name.as_bytes()))
    }
}

/// The name of an interface that is to be made.
pub(super) fn new_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IfName, D::Error> {
    let name = name::deserialize(deserializer)?;
    if matches!(name.as_bytes(), b"all" | b"default") || name.as_bytes().contains(&b'%') {
        let why = "`all` and `default` are the kernel's own, and for `%d` it puts a number";
        return Err(de::Error::custom(format_args!("{name} is no name for a new interface: {why}")));
    }
    Ok(name)
}

/// An address of an interface with its prefix length, that of a single host if there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inet(pub IpInet);

impl Inet {
    fn parse(text: &str) -> Result<Inet, String> {
        let inet: IpInet =
            text.parse().map_err(|_| format!("`{text}` is no address: one such as 10.0.0.1/24 or fd00::1/64"))?;
        let address = inet.address();
        let broadcast = address == IpAddr::V4(std::net::Ipv4Addr::BROADCAST);
        if address.is_unspecified() || address.is_multicast() || broadcast {
            return Err(format!("`{text}` is no address that an interface can have"));
        }
        Ok(Inet(inet))
    }
}

/// Whether it is the first address of its prefix, which stands for the network itself. (Prefixes of one or two addresses
/// have none such.)
pub(super) fn is_network(inet: &IpInet) -> bool {
    inet.network_length() < inet.family().len() - 1 && inet.address() == inet.first_address()
}

impl<'de> Deserialize<'de> for Inet {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, "an address such as 10.0.0.1/24", |text| match Inet::parse(text)? {
            Inet(inet) if is_network(&inet) => {
                Err(format!("{inet:#} is the address of a network; an interface has one of those in it"))
            }
            inet => Ok(inet),
        })
    }
}

impl Serialize for Inet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#}", self.0))
    }
}

/// One address, or all from one to another, with the prefix length that each has: `127.0.1.1-127.0.1.32/32`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddressRange {
    /// The first.
    pub first: IpAddr,
    /// The last.
    pub last: IpAddr,
    /// Prefix length.
    pub length: u8,
}

impl AddressRange {
    fn parse(text: &str) -> Result<AddressRange, String> {
        let Some((first, rest)) = text.split_once('-') else {
            let Inet(inet) = Inet::parse(text)?;
            return Ok(AddressRange { first: inet.address(), last: inet.address(), length: inet.network_length() });
        };
        let Inet(last) = Inet::parse(rest)?;
        let Inet(alone) = Inet::parse(first)?;
        let (start, last, length) = (alone.address(), last.address(), last.network_length());
        match () {
            () if first.contains('/') => Err(format!("`{text}` has its prefix length at the end: FIRST-LAST/LENGTH")),
            () if start.is_ipv4() != last.is_ipv4() => Err(format!("`{text}` goes from one address family to another")),
            () if start > last => Err(format!("the range `{text}` ends before it begins")),
            () => Ok(AddressRange { first: start, last, length }),
        }
    }
}

impl<'de> Deserialize<'de> for AddressRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(
            deserializer,
            "an address such as 10.0.0.1/24, or a range such as 127.0.1.1-127.0.1.32",
            AddressRange::parse,
        )
    }
}

impl Serialize for AddressRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let AddressRange { first, last, length } = self;
        if first == last {
            serializer.collect_str(&format_args!("{first}/{length}"))
        } else {
            serializer.collect_str(&format_args!("{first}-{last}/{length}"))
        }
    }
}

/// An address as a number that can be counted.
pub(super) fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The address of such a number.
pub(super) fn from_bits(bits: u128, family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4((bits as u32).into()),
        Family::V6 => IpAddr::V6(bits.into()),
    }
}

/// A key below /proc/sys/net, as a path; in the place of an interface a pattern may stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SysctlPattern(String);

/// Whether sysctl.d(5) takes it for a pattern.
fn is_glob(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

impl SysctlPattern {
    /// The path below /proc/sys.
    pub fn path(&self) -> &str {
        &self.0
    }

    /// `net/ipv4/conf`, the pattern of the interface, and what comes after; `None` where it is no pattern.
    pub fn glob(&self) -> Option<(&str, &str, &str)> {
        let mut slashes = self.0.match_indices('/').map(|(at, _)| at);
        let (third, fourth) = (slashes.nth(2)?, slashes.next()?);
        let name = self.0.get(third + 1..fourth)?;
        is_glob(name).then_some((self.0.get(..third)?, name, self.0.get(fourth + 1..)?))
    }

    fn parse(text: &str) -> Result<SysctlPattern, String> {
        let normal = sysctl_d::normalize(text.as_bytes());
        let path = String::from_utf8(normal).map_err(|error| error.to_string())?;
        let segments: Vec<&str> = path.split('/').collect();
        let of_link = matches!(segments.as_slice(), ["net", "ipv4" | "ipv6", "conf" | "neigh", _, _, ..]);
        let odd = |c: char| c.is_whitespace() || c.is_control() || "={}\\".contains(c);
        match segments.as_slice() {
            _ if text.starts_with(['-', '#', ';']) || path.contains(odd) => {
                Err(format!("`{text}` is no key: one such as net.ipv4.ip_forward"))
            }
            _ if segments.contains(&"..") => Err(format!("`{text}` leads out of its directory")),
            ["net", _, ..] if !segments.iter().enumerate().any(|(at, it)| is_glob(it) && !(of_link && at == 3)) => {
                match segments.as_slice() {
                    ["net", "ipv4", "conf", _, "rp_filter"] => {
                        Err(format!("`{text}` is the business of the section rp_filter, or of nobody"))
                    }
                    // One switch with two names is one key, also for who declares it twice.
                    _ if path == FORWARD_OF_ALL => Ok(SysctlPattern(FORWARD.into())),
                    _ => Ok(SysctlPattern(path)),
                }
            }
            ["net", _, ..] => Err(format!(
                "`{text}` has a pattern elsewhere than in the place of an interface, as in net.ipv4.conf.vh_*.proxy_arp"
            )),
            _ => Err(format!("`{text}` is no key of the network: those begin with net")),
        }
    }
}

impl<'de> Deserialize<'de> for SysctlPattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, "a key such as net.ipv4.ip_forward", SysctlPattern::parse)
    }
}

impl Serialize for SysctlPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// The value of a sysctl: a number, or text on one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SysctlValue(pub String);

/// What YAML 1.1 takes for a boolean, and version 1.2 for text. The kernel takes neither.
fn as_switch(text: &str) -> Option<bool> {
    let is = |word: &&str| text.eq_ignore_ascii_case(word);
    match () {
        () if ["yes", "on", "true"].iter().any(is) => Some(true),
        () if ["no", "off", "false"].iter().any(is) => Some(false),
        () => None,
    }
}

impl<'de> Deserialize<'de> for SysctlValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = SysctlValue;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a value: a number or text")
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<SysctlValue, E> {
                Ok(SysctlValue(number.to_string()))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<SysctlValue, E> {
                Ok(SysctlValue(number.to_string()))
            }

            fn visit_bool<E: de::Error>(self, on: bool) -> Result<SysctlValue, E> {
                Err(E::custom(format_args!("a sysctl is no yes or no; write {}", u8::from(on))))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<SysctlValue, E> {
                // What sysctl.d(5) and the kernel strip is no part of a value.
                let text = text.trim();
                if let Some(on) = as_switch(text) {
                    return self.visit_bool(on);
                }
                let fits =
                    !text.is_empty() && text.len() <= 1024 && !text.contains(|c: char| c.is_control() && c != '\t');
                fits.then(|| SysctlValue(text.to_owned())).ok_or_else(|| E::custom("is no value: text on one line"))
            }
        }
        deserializer.deserialize_any(Text)
    }
}

/// The name of an interface, or a pattern of sysctl.d(5) for names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LinkGlob(pub String);

impl LinkGlob {
    fn parse(text: &str) -> Result<LinkGlob, String> {
        let odd = |c: char| c.is_whitespace() || c.is_control() || "=/{}\\".contains(c);
        match () {
            () if text.is_empty() || text.contains(odd) || matches!(text, "." | "..") => {
                Err(format!("`{text}` is neither the name of an interface nor a pattern such as eth*"))
            }
            () if sysctl_d::is_match(text.as_bytes(), b"all") => Err(format!(
                "`{text}` stands for `all` too, which node-fixer never writes; name what is meant, as in eth*"
            )),
            () => Ok(LinkGlob(text.to_owned())),
        }
    }
}

impl<'de> Deserialize<'de> for LinkGlob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, "the name of an interface, or a pattern such as eth*", LinkGlob::parse)
    }
}

/// Largest packet of an interface, in bytes: at least what IPv4 asks of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Mtu(pub u32);

impl<'de> Deserialize<'de> for Mtu {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match number(deserializer, "an MTU: a number from 68 to 65535", |_| None)? {
            mtu @ 68..=65_535 => Ok(Mtu(mtu)),
            other => Err(de::Error::custom(format_args!("{other} is no MTU: a number from 68 to 65535"))),
        }
    }
}

/// Address families, at least one.
pub(super) fn some_families<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Family>, D::Error> {
    let families = Vec::deserialize(deserializer)?;
    if families.is_empty() {
        return Err(de::Error::custom("names no family; to switch the section off say `mode: off`"));
    }
    Ok(families)
}

/// Labels, at least one: a pod without any condition is any pod.
pub(super) fn some_labels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let labels = BTreeMap::deserialize(deserializer)?;
    if labels.is_empty() {
        return Err(de::Error::custom("names no label, and so any pod; to switch the section off say `mode: off`"));
    }
    Ok(labels)
}

/// A span of time such as `5s` or `1m 30s`.
pub(super) mod duration {
    use super::{Duration, Serializer};

    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    pub fn parse(text: &str) -> Result<Duration, String> {
        humantime::parse_duration(text).map_err(|error| format!("`{text}` is no duration such as 5s: {error}"))
    }
}

/// A duration that something is waited for: at most a week.
pub(super) mod wait {
    pub use super::duration::serialize;
    use super::{Deserializer, Duration, duration, text};

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        text(deserializer, "a duration such as 5s", |text| match duration::parse(text)? {
            sane if sane <= Duration::from_secs(7 * 24 * 3600) => Ok(sane),
            _ => Err(format!("`{text}` is longer than a week")),
        })
    }
}

/// A duration that a call may take: from 100 ms to an hour.
pub(super) mod timeout {
    pub use super::duration::serialize;
    use super::{Deserializer, Duration, duration, text};

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        text(deserializer, "a duration such as 10s", |text| match duration::parse(text)? {
            sane if (Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&sane) => Ok(sane),
            _ => Err(format!("`{text}` is no time-out: from 100ms to 1h")),
        })
    }
}

/// The name or path of a program.
pub(super) mod program {
    use super::{Deserializer, Serializer, text};

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
        text(deserializer, "the name or path of a program", |text| match text {
            "" => Err("is empty; name a program, or switch the section off: `mode: off`".into()),
            _ => Ok(text.to_owned()),
        })
    }

    pub fn serialize<S: Serializer>(program: &str, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(program)
    }
}

/// The absolute path of a directory.
pub(super) fn directory<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    text(deserializer, "the path of a directory", |text| match Path::new(text) {
        path if path.is_absolute() => Ok(Some(path.to_owned())),
        _ => Err(format!("`{text}` is no absolute path; such as /var/lib/prometheus/node-exporter")),
    })
}

/// Reads text and makes a value of it.
pub(super) fn text<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    what: &'static str,
    parse: fn(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    struct Text(&'static str);
    impl Visitor<'_> for Text {
        type Value = String;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<String, E> {
            Ok(text.to_owned())
        }

        fn visit_string<E: de::Error>(self, text: String) -> Result<String, E> {
            Ok(text)
        }
    }
    parse(&deserializer.deserialize_any(Text(what))?).map_err(de::Error::custom)
}

/// Reads a number of 32 bits, or a name that stands for one.
fn number<'de, D: Deserializer<'de>>(
    deserializer: D,
    what: &'static str,
    by_name: fn(&str) -> Option<u32>,
) -> Result<u32, D::Error> {
    struct Number(&'static str, fn(&str) -> Option<u32>);
    impl Visitor<'_> for Number {
        type Value = u32;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }

        fn visit_u64<E: de::Error>(self, number: u64) -> Result<u32, E> {
            u32::try_from(number).map_err(|_| E::invalid_value(de::Unexpected::Unsigned(number), &self))
        }

        fn visit_str<E: de::Error>(self, name: &str) -> Result<u32, E> {
            (self.1)(name).ok_or_else(|| E::invalid_value(de::Unexpected::Str(name), &self))
        }
    }
    deserializer.deserialize_any(Number(what, by_name))
}

/// JSON Schema of the values that are written otherwise than they are stored.
#[cfg(test)]
mod schema {
    use super::{
        AddressRange, Fwmark, Inet, LinkGlob, Mtu, Pattern, Priority, SysctlPattern, SysctlValue, TableId, TableRange,
        Version,
    };
    use crate::desired::Interfaces;
    use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

    macro_rules! schema {
        ($($type:ident: $schema:tt)*) => { $(
            impl JsonSchema for $type {
                fn schema_name() -> std::borrow::Cow<'static, str> { stringify!($type).into() }
                fn inline_schema() -> bool { true }
                fn json_schema(_: &mut SchemaGenerator) -> Schema { json_schema!($schema) }
            }
        )* };
    }
    schema! {
        Version: { "const": 1 }
        Pattern: { "type": "string", "format": "regex" }
        Interfaces: { "anyOf": [{ "const": "auto" }, { "type": "string", "format": "regex" }] }
        Priority: { "type": "integer", "minimum": 1, "maximum": 4294967295_u32, "not": { "enum": [32766, 32767] } }
        TableId: { "anyOf": [{ "type": "integer", "minimum": 1, "maximum": 4294967295_u32 }, { "enum": ["main", "default", "local"] }] }
        Inet: { "type": "string" }
        AddressRange: { "type": "string" }
        SysctlPattern: { "type": "string", "pattern": "^net[./]" }
        SysctlValue: { "type": ["integer", "string"] }
        LinkGlob: { "type": "string" }
        Mtu: { "type": "integer", "minimum": 68, "maximum": 65535 }
        TableRange: { "anyOf": [
            { "type": "integer", "minimum": 0, "maximum": 4294967295_u32 },
            { "type": "array", "items": { "type": "integer", "minimum": 0, "maximum": 4294967295_u32 }, "minItems": 2, "maxItems": 2 }
        ] }
        Fwmark: { "anyOf": [
            { "type": "integer", "minimum": 0, "maximum": 4294967295_u32 },
            { "type": "string", "pattern": "^(0x[0-9a-fA-F]+|[0-9]+)(/(0x[0-9a-fA-F]+|[0-9]+))?$" }
        ] }
    }
}
