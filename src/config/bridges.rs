//! The section `bridges`.

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};

use super::types::{Inet, Pattern, read_number, schema};
use super::{Contradiction, repeated};
use crate::model::IfName;

/// An entry of the section `bridges`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Bridge {
    /// Its name.
    #[serde(deserialize_with = "new_name")]
    pub name: IfName,
    /// Addresses with their prefix lengths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Inet>,
    /// MTU in bytes. Default: the kernel's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<Mtu>,
    /// Whether to use the spanning tree protocol. Default: the kernel's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stp: Option<bool>,
    /// Whether it filters by VLAN. Default: the kernel's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vlan_filtering: Option<bool>,
    /// Interfaces that are its ports: regular expressions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Pattern>,
}

/// Entries that contradict each other.
pub(super) fn contradiction(bridges: &[Bridge]) -> Option<Contradiction> {
    repeated("bridges", bridges.iter().map(|bridge| &bridge.name), |first, _| {
        format!("has the same name as bridges[{first}]")
    })
}

/// The name of an interface to create.
fn new_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IfName, D::Error> {
    let name = IfName::deserialize(deserializer)?;
    if matches!(name.as_bytes(), b"all" | b"default") || name.as_bytes().contains(&b'%') {
        let why = "the kernel reserves `all` and `default`, and replaces `%d` with a number";
        return Err(de::Error::custom(format_args!("{name} is not valid for a new interface: {why}")));
    }
    Ok(name)
}

/// MTU of an interface in bytes: at least the minimum of IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Mtu(pub u32);

impl<'de> Deserialize<'de> for Mtu {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match read_number(deserializer, "an MTU: a number from 68 to 65535", |_| None)? {
            mtu @ 68..=65_535 => Ok(Mtu(mtu)),
            other => Err(de::Error::custom(format_args!("{other} is not a valid MTU: a number from 68 to 65535"))),
        }
    }
}

schema!(Mtu, { "type": "integer", "minimum": 68, "maximum": 65535 });
