//! The section `sysctls`.

use std::fmt;

use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize};

use super::types::{is_glob, schema, text};
use super::{Contradiction, repeated};
use crate::model::{FORWARD, FORWARD_OF_ALL};
use crate::sysctl_d;

/// An entry of the section `sysctls`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Sysctl {
    /// The key, with dots or slashes as in sysctl.d(5): net.ipv4.ip_forward, net/ipv4/conf/eth0.100/proxy_arp. A
    /// pattern may replace the name of an interface: net.ipv4.conf.vh_*.proxy_arp.
    pub key: SysctlPattern,
    /// The value.
    pub value: SysctlValue,
    /// Whether to write it to /etc/sysctl.d as well, for the next boot and for new interfaces.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub persist: bool,
}

/// Entries that contradict each other.
pub(super) fn contradiction(sysctls: &[Sysctl]) -> Option<Contradiction> {
    repeated("sysctls", sysctls.iter().map(|wish| wish.key.path()), |first, key| {
        format!("has the same key as sysctls[{first}]: {key}")
    })
}

/// A key below /proc/sys/net, as a path. A pattern may replace the interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SysctlPattern(String);

impl SysctlPattern {
    /// The path below /proc/sys.
    pub fn path(&self) -> &str {
        &self.0
    }

    /// `net/ipv4/conf`, the interface pattern, and the rest; `None` if there is no pattern.
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
        if text.starts_with(['-', '#', ';']) || path.contains(odd) {
            return Err(format!("`{text}` is not a key such as net.ipv4.ip_forward"));
        }
        if segments.contains(&"..") {
            return Err(format!("`{text}` contains a `.` or `..` path segment"));
        }
        if !matches!(segments.as_slice(), ["net", _, ..]) {
            return Err(format!("`{text}` is not a network key; those begin with net"));
        }
        if of_link && segments.len() > 5 {
            let name = segments.get(3..segments.len() - 1).unwrap_or_default().join(".");
            let (class, key) = (segments.get(..3).unwrap_or_default().join("/"), segments.last().unwrap_or(&""));
            return Err(format!(
                "`{text}` has an interface name with a dot, which requires slashes: {class}/{name}/{key}"
            ));
        }
        if segments.iter().enumerate().any(|(at, it)| is_glob(it) && !(of_link && at == 3)) {
            return Err(format!(
                "`{text}` has a pattern that does not replace an interface; write it as in \
                 net.ipv4.conf.vh_*.proxy_arp"
            ));
        }
        if matches!(segments.as_slice(), ["net", "ipv4", "conf", _, "rp_filter"]) {
            return Err(format!("`{text}` is set by the section rp_filter; conf/all is never written"));
        }
        // One switch has two names. Declaring both declares the same key twice.
        Ok(SysctlPattern(if path == FORWARD_OF_ALL { FORWARD.into() } else { path }))
    }
}

text!(SysctlPattern, "a key such as net.ipv4.ip_forward", |key| key.0, { "type": "string", "pattern": "^net[./]" });

/// The value of a sysctl: a number, or text on one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SysctlValue(pub String);

/// YAML 1.1 takes these for booleans, YAML 1.2 for text. The kernel accepts neither.
fn as_switch(text: &str) -> Option<bool> {
    let is = |word: &&str| text.eq_ignore_ascii_case(word);
    if ["yes", "on", "true"].iter().any(is) {
        Some(true)
    } else if ["no", "off", "false"].iter().any(is) {
        Some(false)
    } else {
        None
    }
}

impl<'de> Deserialize<'de> for SysctlValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ValueVisitor;
        impl Visitor<'_> for ValueVisitor {
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
                Err(E::custom(format_args!("a sysctl is not a boolean; write {}", u8::from(on))))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<SysctlValue, E> {
                // sysctl.d(5) and the kernel strip white space.
                let text = text.trim();
                if let Some(on) = as_switch(text) {
                    return self.visit_bool(on);
                }
                let fits =
                    !text.is_empty() && text.len() <= 1024 && !text.contains(|c: char| c.is_control() && c != '\t');
                fits.then(|| SysctlValue(text.to_owned()))
                    .ok_or_else(|| E::custom("is not a value; write text on one line"))
            }
        }
        deserializer.deserialize_any(ValueVisitor)
    }
}

schema!(SysctlValue, { "type": ["integer", "string"] });
