//! The section `uplinks`.

use serde::{Deserialize, Serialize};

use super::bridges::Mtu;
use super::{Interfaces, Mode};

/// The section `uplinks`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Uplinks {
    /// What to do about other settings.
    pub mode: Mode,
    /// `auto`: the uplinks by their role. Or a regular expression for names of interfaces that have a global address.
    pub interfaces: Interfaces,
    /// MTU in bytes. Not changed if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<Mtu>,
}
