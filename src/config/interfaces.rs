//! The interfaces that a section manages: by their role on the node, or by name.

use std::fmt;

use super::types::{Pattern, text};

/// The word for interfaces by role. The pattern for an interface with that name is `^auto$`.
const AUTO: &str = "auto";

/// The interfaces that a section manages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Interfaces {
    /// Those with the section's role on the node, whatever their names.
    #[default]
    Auto,
    /// Those whose names match.
    Named(Pattern),
}

impl Interfaces {
    fn parse(text: &str) -> Result<Interfaces, String> {
        if text == AUTO { Ok(Interfaces::Auto) } else { Pattern::parse(text).map(Interfaces::Named) }
    }

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

text!(Interfaces, "`auto` or a regular expression", |interfaces| interfaces, {
    "anyOf": [{ "const": "auto" }, { "type": "string", "format": "regex" }]
});
