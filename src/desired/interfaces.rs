//! Interfaces that a section looks after: by their role on the node, or by a pattern of names.

use std::fmt;

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};

use super::{Pattern, RpValue};

/// The word for interfaces by role. As a pattern it is written `^auto$`.
const AUTO: &str = "auto";

/// Which interfaces a section looks after.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Interfaces {
    /// Those that have the section's role on the node, whatever their names.
    #[default]
    Auto,
    /// Those whose names match.
    Named(Pattern),
}

impl Interfaces {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        match self {
            Interfaces::Auto => AUTO,
            Interfaces::Named(pattern) => pattern.as_str(),
        }
    }
}

impl fmt::Display for Interfaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Interfaces {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        super::value::text(deserializer, "auto or a regular expression", |text| match text {
            AUTO => Ok(Interfaces::Auto),
            _ => Pattern::new(text).map(Interfaces::Named),
        })
    }
}

impl Serialize for Interfaces {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// An entry of `rp_filter.more`: interfaces with a value of their own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RpFilterEntry {
    /// Interfaces by name, and `default`, which new interfaces copy.
    #[serde(deserialize_with = "by_name")]
    pub interfaces: Pattern,
    /// The value that is set.
    pub value: RpValue,
    /// Live values that are changed; all others than `value` if left out.
    #[serde(default = "every_value", deserialize_with = "some_values")]
    pub replace: Vec<RpValue>,
}

fn by_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Pattern, D::Error> {
    match Interfaces::deserialize(deserializer)? {
        Interfaces::Named(pattern) => Ok(pattern),
        Interfaces::Auto => {
            Err(de::Error::custom("`auto` is for the section's own interfaces; name these by a pattern"))
        }
    }
}

fn every_value() -> Vec<RpValue> {
    vec![RpValue::Off, RpValue::Strict, RpValue::Loose]
}

/// Values, at least one: an entry that changes nothing is a mistake.
fn some_values<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<RpValue>, D::Error> {
    let values = Vec::deserialize(deserializer)?;
    if values.is_empty() {
        return Err(de::Error::custom(
            "names no value, and so changes nothing; leave the key out to change all others",
        ));
    }
    Ok(values)
}
