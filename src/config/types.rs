//! Value types that several sections use, and how they are read.

use std::cell::OnceCell;
use std::cmp::Ordering;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::time::Duration;

use cidr::{IpCidr, IpInet};
use regex::bytes::{Regex, RegexBuilder};
use serde::de::{self, Deserializer, Visitor};

use crate::model::IfName;

/// Implements reading, writing and the schema of a type that is written as text and parsed by its function `parse`. The
/// text says what was expected if a file has something else. A schema can be given if it says more than "text".
macro_rules! text {
    ($type:ident, $expected:literal, |$value:ident| $shown:expr) => {
        $crate::config::types::text!($type, $expected, |$value| $shown, { "type": "string" });
    };
    ($type:ident, $expected:literal, |$value:ident| $shown:expr, $schema:tt) => {
        impl<'de> serde::Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                $crate::config::types::read_text(deserializer, $expected, <$type>::parse)
            }
        }
        impl serde::Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let $value = self;
                serializer.collect_str(&$shown)
            }
        }
        $crate::config::types::schema!($type, $schema);
    };
}
pub(super) use text;

/// The JSON Schema of a type that is not written as it is stored.
macro_rules! schema {
    ($type:ident, $schema:tt) => {
        #[cfg(test)]
        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
            fn inline_schema() -> bool {
                true
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!($schema)
            }
        }
    };
}
pub(super) use schema;

/// Reads text and parses it.
pub(super) fn read_text<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    expected: &'static str,
    parse: fn(&str) -> Result<T, String>,
) -> Result<T, D::Error> {
    struct TextVisitor(&'static str);
    impl Visitor<'_> for TextVisitor {
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
    parse(&deserializer.deserialize_any(TextVisitor(expected))?).map_err(de::Error::custom)
}

/// Reads a number of 32 bits, or a name for one.
pub(super) fn read_number<'de, D: Deserializer<'de>>(
    deserializer: D,
    expected: &'static str,
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
    deserializer.deserialize_any(Number(expected, by_name))
}

/// A regular expression for names of interfaces, anchored as written. ASCII only, because names are bytes.
///
/// It is compiled when it is first used: a configuration may contain thousands, and each takes far more memory compiled
/// than written.
#[derive(Clone)]
pub struct Pattern {
    text: String,
    has_group: bool,
    compiled: Rc<OnceCell<Regex>>,
}

impl Pattern {
    /// The text of the pattern.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(super) fn parse(text: &str) -> Result<Pattern, String> {
        if is_shell_pattern(text) {
            return Err(format!(
                "`{text}` is read as a regular expression, in which * repeats the character before it; write ^{}$",
                text.replace('*', ".*")
            ));
        }
        Ok(Pattern { text: text.to_owned(), has_group: compile(text)?.captures_len() > 1, compiled: Rc::default() })
    }

    /// Whether it has a group in parentheses.
    pub(super) fn has_group(&self) -> bool {
        self.has_group
    }

    /// The part of the name that the first group matches.
    pub(super) fn first_group<'a>(&self, name: &'a [u8]) -> Option<&'a [u8]> {
        Some(self.regex()?.captures(name)?.get(1)?.as_bytes())
    }

    /// Whether it matches the name.
    pub fn is_match(&self, name: &[u8]) -> bool {
        self.regex().is_some_and(|regex| regex.is_match(name))
    }

    fn regex(&self) -> Option<&Regex> {
        if self.compiled.get().is_none() {
            // Cannot fail: the pattern was checked when it was read.
            let regex = compile(&self.text).ok()?;
            return Some(self.compiled.get_or_init(|| regex));
        }
        self.compiled.get()
    }
}

/// Whether it looks like a shell pattern: `*` right after a letter of a name repeats only that letter.
fn is_shell_pattern(text: &str) -> bool {
    let pairs = text.bytes().zip(text.bytes().skip(1));
    text.starts_with('*')
        || pairs.into_iter().any(|(one, next)| next == b'*' && (one.is_ascii_alphanumeric() || one == b'_'))
}

/// Size limit of a compiled pattern, in bytes. Interface names have at most 15 bytes, file names 255; a usual pattern
/// takes a kilobyte.
const MOST_COMPILED: usize = 64 << 10;

fn compile(text: &str) -> Result<Regex, String> {
    RegexBuilder::new(text).unicode(false).size_limit(MOST_COMPILED).build().map_err(|error| {
        if let regex::Error::CompiledTooBig(limit) = error {
            return format!(
                "`{text}` is too large: compiled it exceeds {} KiB; use fewer repetitions ({{n}})",
                limit >> 10
            );
        }
        let error = error.to_string();
        let reason = error.lines().last().unwrap_or(&error);
        format!("`{text}` is not a valid regular expression: {}", reason.trim_start_matches("error: "))
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

text!(Pattern, "a regular expression", |pattern| pattern, { "type": "string", "format": "regex" });

/// A prefix such as `10.0.0.0/8`. A single address is a host prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix(pub IpCidr);

impl Prefix {
    pub(super) fn parse(text: &str) -> Result<Prefix, String> {
        if text == "all" {
            return Err("`all` is not a prefix; leave the key out to match everything".into());
        }
        text.parse().map(Prefix).map_err(|error| match text.parse::<IpInet>() {
            Ok(inet) => format!("`{text}` has bits set after its prefix; did you mean {:#}?", inet.network()),
            Err(_) => format!("`{text}` is not a prefix: {error}"),
        })
    }
}

text!(Prefix, "a prefix such as 10.0.0.0/8", |prefix| format_args!("{:#}", prefix.0), {
    "type": "string",
    "pattern": "^([0-9]{1,3}(\\.[0-9]{1,3}){3}(/[0-9]{1,2})?|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*(/[0-9]{1,3})?)$"
});

/// An address of an interface with its prefix length. Default: that of a single host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inet(pub IpInet);

impl Inet {
    fn parse(text: &str) -> Result<Inet, String> {
        let inet = Inet::parse_any(text)?;
        if inet.is_network() {
            return Err(format!("{:#} is the address of a network; write the address of a host in it", inet.0));
        }
        Ok(inet)
    }

    /// Accepts the address of a network as well.
    pub(super) fn parse_any(text: &str) -> Result<Inet, String> {
        let inet: IpInet =
            text.parse().map_err(|_| format!("`{text}` is not an address such as 10.0.0.1/24 or fd00::1/64"))?;
        let address = inet.address();
        if address.is_unspecified() || address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
            return Err(format!("an interface cannot have the address `{text}`"));
        }
        Ok(Inet(inet))
    }

    /// Whether it is the first address of its prefix, which stands for the network. (Prefixes with one or two addresses
    /// have no such address.)
    pub(super) fn is_network(self) -> bool {
        self.0.network_length() < self.0.family().len() - 1 && self.0.address() == self.0.first_address()
    }
}

text!(Inet, "an address such as 10.0.0.1/24", |inet| format_args!("{:#}", inet.0), {
    "type": "string",
    "pattern": "^([0-9]{1,3}(\\.[0-9]{1,3}){3}(/[0-9]{1,2})?|[0-9a-fA-F:.]*:[0-9a-fA-F:.]*(/[0-9]{1,3})?)$"
});

/// The syntax of an interface name.
impl IfName {
    pub(super) fn parse(text: &str) -> Result<IfName, String> {
        // The kernel would accept such a name, but it is meant as a pattern, which no interface would match.
        if is_glob(text) {
            return Err(format!("`{text}` is a pattern; write the name of one interface"));
        }
        let rule = "1 to 15 bytes, without `/`, `:` and white space, and not `.` or `..`";
        IfName::new(text.as_bytes()).ok_or_else(|| format!("`{text}` is not an interface name: {rule}"))
    }
}

// Text read from YAML is UTF-8.
text!(IfName, "an interface name", |name| String::from_utf8_lossy(name.as_bytes()), {
    "type": "string",
    "pattern": "^[^/:*?\\[\\s]{1,15}$"
});

/// Whether sysctl.d(5) reads it as a pattern.
pub(super) fn is_glob(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// A duration such as `5s` or `1m 30s`: at most a week.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait(pub Duration);

impl Wait {
    fn parse(text: &str) -> Result<Wait, String> {
        match parse_duration(text)? {
            sane if sane <= Duration::from_secs(7 * 24 * 3600) => Ok(Wait(sane)),
            _ => Err(format!("`{text}` is longer than a week")),
        }
    }
}

text!(Wait, "a duration such as 5s", |wait| humantime::format_duration(wait.0), {
    "type": "string",
    "pattern": "^(0|([0-9]+ *[a-zµ]+ *)+)$"
});

pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("`{text}` is not a duration such as 5s: {error}"))
}
