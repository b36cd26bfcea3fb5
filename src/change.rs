//! What a plan consists of: changes to make, and wishes that cannot safely be met.

use std::fmt;

use crate::net::{Route, Rule, SysctlKey, shell_word};

/// What one reconciler wants done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// In the order in which they must be made.
    pub steps: Vec<Step>,
    /// What should be done and cannot safely be.
    pub blocked: Vec<Blocked>,
}

/// A change and the reason for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What to do.
    pub change: Change,
    /// What was found wrong, and the evidence for the cure.
    pub reason: String,
}

/// A wish that cannot safely be met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// What should be.
    pub want: String,
    /// The evidence that was found, and what an operator would do.
    pub because: String,
}

/// One change of the node. Its `Display` is the command that an operator would type for it: the line of a dry
/// run, of the log, and the context of an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Adds a route where none with its destination, metric and table is.
    AddRoute(Route),
    /// Puts a route in the place of the one with its destination, metric and table.
    ReplaceRoute(Route),
    /// Deletes exactly this route.
    DeleteRoute(Route),
    /// Adds a rule.
    AddRule(Rule),
    /// Deletes exactly this rule.
    DeleteRule(Rule),
    /// Writes a sysctl.
    SetSysctl {
        /// Which.
        key: SysctlKey,
        /// What to write.
        value: String,
    },
}

/// What a change does to its object, in the words of the JSON report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Something new.
    Create,
    /// Something that is there gets another value.
    Update,
    /// Something goes.
    Delete,
}

impl Change {
    /// What it does.
    pub fn action(&self) -> Action {
        match self {
            Change::AddRoute(_) | Change::AddRule(_) => Action::Create,
            Change::ReplaceRoute(_) | Change::SetSysctl { .. } => Action::Update,
            Change::DeleteRoute(_) | Change::DeleteRule(_) => Action::Delete,
        }
    }

    /// The kind of thing that it changes.
    pub fn object(&self) -> &'static str {
        match self {
            Change::AddRoute(_) | Change::ReplaceRoute(_) | Change::DeleteRoute(_) => "route",
            Change::AddRule(_) | Change::DeleteRule(_) => "rule",
            Change::SetSysctl { .. } => "sysctl",
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::AddRoute(route) => f.write_str(&route.command("add")),
            Change::ReplaceRoute(route) => f.write_str(&route.command("replace")),
            Change::DeleteRoute(route) => f.write_str(&route.command("del")),
            Change::AddRule(rule) => f.write_str(&rule.command("add")),
            Change::DeleteRule(rule) => f.write_str(&rule.command("del")),
            Change::SetSysctl { key, value } => {
                write!(f, "sysctl -w {key}={}", shell_word(value.as_bytes()))
            }
        }
    }
}
