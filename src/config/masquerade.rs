//! The section `masquerade`.

use serde::{Deserialize, Serialize};

use super::types::Prefix;
use super::{Contradiction, repeated};
use crate::model::{IfName, masquerade};

/// An entry of the section `masquerade`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename = "Masquerade", try_from = "MasqueradeFields")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MasqueradeEntry(MasqueradeFields);

/// The keys of an entry of `masquerade`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct MasqueradeFields {
    /// Source prefix.
    source: Prefix,
    /// Only packets that leave by this interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    out: Option<IfName>,
    /// Only packets that leave by another interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    except_out: Option<IfName>,
}

impl TryFrom<MasqueradeFields> for MasqueradeEntry {
    type Error = String;

    fn try_from(fields: MasqueradeFields) -> Result<MasqueradeEntry, String> {
        let MasqueradeFields { source, out, except_out } = &fields;
        if source.0.first_address().is_multicast() {
            return Err(format!("has a multicast source ({}), which no packet can have", source.0));
        }
        if out.is_some() && except_out.is_some() {
            return Err("has both out and except_out; remove one of them".into());
        }
        if let Some(name) = [out, except_out].into_iter().flatten().find(|name| !masquerade::is_quotable(name)) {
            return Err(format!(
                "names the interface {name}, which nftables cannot express: the name contains a quotation mark, a \\ \
                 or a control character"
            ));
        }
        Ok(MasqueradeEntry(fields))
    }
}

impl MasqueradeEntry {
    /// The nftables rule.
    pub fn to_masquerade(&self) -> masquerade::Masquerade {
        let MasqueradeFields { source, out, except_out } = self.0.clone();
        masquerade::Masquerade { source: source.0, out, except_out }
    }
}

/// Entries that contradict each other.
pub(super) fn contradiction(entries: &[MasqueradeEntry]) -> Option<Contradiction> {
    repeated("masquerade", entries.iter().map(MasqueradeEntry::to_masquerade), |first, _| {
        format!("repeats masquerade[{first}]")
    })
}
