//! The section `namespaces`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Mode;
use super::types::{Pattern, Wait};

/// An entry of the section `namespaces`. The first entry whose `match` matches a name applies to it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "NamespacesFields")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Namespaces(NamespacesFields);

/// The keys of an entry of `namespaces`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct NamespacesFields {
    /// Network namespaces by name: a regular expression.
    #[serde(rename = "match")]
    matches: Pattern,
    /// Minimum time without a process.
    older_than: Wait,
    /// Links of the host by name: a regular expression. A link belongs to a namespace if the first groups of both
    /// patterns match the same text.
    #[serde(skip_serializing_if = "Option::is_none")]
    links: Option<Pattern>,
    /// What to do about stale namespaces. Default: observe.
    #[serde(default = "observe")]
    mode: Mode,
}

fn observe() -> Mode {
    Mode::Observe
}

impl TryFrom<NamespacesFields> for Namespaces {
    type Error = String;

    fn try_from(fields: NamespacesFields) -> Result<Namespaces, String> {
        let patterns = [("match", Some(&fields.matches)), ("links", fields.links.as_ref())];
        let without = |(_, pattern): &&(_, Option<&Pattern>)| pattern.is_some_and(|pattern| !pattern.has_group());
        match patterns.iter().find(without) {
            Some((key, _)) if fields.links.is_some() => Err(format!(
                "`{key}` has no group; a link belongs to the namespace whose first group is the same text, as in \
                 match: '^fc-(.+)$', links: '^vh_(.+)$'"
            )),
            _ => Ok(Namespaces(fields)),
        }
    }
}

impl Namespaces {
    /// What to do about stale namespaces.
    pub fn mode(&self) -> Mode {
        self.0.mode
    }

    /// How long a namespace must have been without a process.
    pub fn older_than(&self) -> Duration {
        self.0.older_than.0
    }

    /// Whether the entry applies to a namespace of this name.
    pub fn is_match(&self, namespace: &[u8]) -> bool {
        self.0.matches.is_match(namespace)
    }

    /// The pattern for the links of these namespaces.
    pub fn links(&self) -> Option<&Pattern> {
        self.0.links.as_ref()
    }

    /// The part of a namespace's name that its links share.
    pub fn key_of<'a>(&self, namespace: &'a [u8]) -> Option<&'a [u8]> {
        self.0.matches.first_group(namespace)
    }

    /// The part of a link's name that its namespace shares.
    pub fn key_of_link<'a>(&self, link: &'a [u8]) -> Option<&'a [u8]> {
        self.links()?.first_group(link)
    }
}
