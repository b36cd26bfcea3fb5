//! The section `rp_filter`.

use std::fmt;

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};

use super::types::{Pattern, text};
use super::{Interfaces, Mode};
use crate::sysctl_d;

/// The section `rp_filter`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RpFilter {
    /// What to do about other values.
    pub mode: Mode,
    /// The value to set.
    pub value: RpValue,
    /// Values to replace. Others are left alone.
    pub replace: Vec<RpValue>,
    /// `auto`: the uplinks, the VPC CNI's pod links, and `default`, which new interfaces copy. Or a regular expression
    /// for names, `default` included. `all` is never written.
    pub interfaces: Interfaces,
    /// Further interfaces with their own value. The first matching entry applies; these come before the keys above.
    pub more: Vec<RpFilterEntry>,
    /// Interfaces, as patterns of sysctl.d(5), whose value is also written to /etc/sysctl.d, for the next boot and for
    /// new interfaces.
    pub persist: Vec<LinkGlob>,
}

impl Default for RpFilter {
    fn default() -> Self {
        RpFilter {
            mode: Mode::Enforce,
            value: RpValue::Loose,
            replace: vec![RpValue::Off, RpValue::Strict],
            interfaces: Interfaces::Auto,
            more: Vec::new(),
            persist: Vec::new(),
        }
    }
}

/// A value of rp_filter (Documentation/networking/ip-sysctl.rst in the kernel).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum RpValue {
    /// 0: no check.
    Off = 0,
    /// 1: the reply to the source must leave by the interface that the packet came in by.
    Strict = 1,
    /// 2: the source must be reachable through any interface.
    Loose = 2,
}

impl RpValue {
    /// The kernel's number.
    pub fn number(self) -> i32 {
        self as i32
    }
}

impl fmt::Display for RpValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RpValue::Off => "off",
            RpValue::Strict => "strict",
            RpValue::Loose => "loose",
        })
    }
}

/// An entry of `rp_filter.more`: interfaces with their own value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RpFilterEntry {
    /// Interfaces by name: a regular expression. `default` is what new interfaces copy.
    #[serde(deserialize_with = "by_name")]
    pub interfaces: Pattern,
    /// The value to set.
    pub value: RpValue,
    /// Values to replace. Default: all except `value`.
    #[serde(default = "every_value", deserialize_with = "some_values")]
    pub replace: Vec<RpValue>,
}

fn by_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Pattern, D::Error> {
    match Interfaces::deserialize(deserializer)? {
        Interfaces::Named(pattern) => Ok(pattern),
        Interfaces::Auto => Err(de::Error::custom("`auto` is only valid for rp_filter.interfaces; write a pattern")),
    }
}

fn every_value() -> Vec<RpValue> {
    vec![RpValue::Off, RpValue::Strict, RpValue::Loose]
}

/// At least one value: an entry that changes nothing is a mistake.
fn some_values<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<RpValue>, D::Error> {
    let values = Vec::deserialize(deserializer)?;
    if values.is_empty() {
        return Err(de::Error::custom(
            "is empty, so nothing would change; leave the key out to replace all other values",
        ));
    }
    Ok(values)
}

/// The name of an interface, or a sysctl.d(5) pattern for names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkGlob(pub String);

impl LinkGlob {
    fn parse(text: &str) -> Result<LinkGlob, String> {
        let odd = |c: char| c.is_whitespace() || c.is_control() || "=/{}\\".contains(c);
        if text.is_empty() || text.contains(odd) || matches!(text, "." | "..") {
            return Err(format!("`{text}` is neither an interface name nor a pattern such as eth*"));
        }
        if sysctl_d::is_match(text.as_bytes(), b"all") {
            return Err(format!(
                "`{text}` also matches `all`, which node-fixer never writes; write a narrower pattern, such as eth*"
            ));
        }
        Ok(LinkGlob(text.to_owned()))
    }
}

text!(LinkGlob, "an interface name, or a pattern such as eth*", |glob| glob.0);
