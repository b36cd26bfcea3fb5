//! The section `kernel_rules`.

use serde::{Deserialize, Serialize};

use super::Mode;

/// The section `kernel_rules`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct KernelRules {
    /// What to do about missing rules. Unlike in other sections, the default is observe.
    pub mode: Mode,
}

impl Default for KernelRules {
    fn default() -> Self {
        KernelRules { mode: Mode::Observe }
    }
}
