//! The section `pod_rules`.

use serde::{Deserialize, Serialize};

use super::Mode;

/// The section `pod_rules`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PodRules {
    /// What to do about findings.
    pub mode: Mode,
}
