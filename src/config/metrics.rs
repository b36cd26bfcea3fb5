//! The section `metrics`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::types::text;

/// The section `metrics`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Metrics {
    /// Directory that node_exporter's textfile collector reads. Each run writes node_fixer.prom in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub textfile: Option<Directory>,
}

/// The absolute path of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory(pub PathBuf);

impl Directory {
    fn parse(text: &str) -> Result<Directory, String> {
        if !Path::new(text).is_absolute() {
            return Err(format!("`{text}` is not an absolute path such as /var/lib/prometheus/node-exporter"));
        }
        if Path::new(text).extension().is_some_and(|extension| extension == "prom") {
            return Err(format!(
                "`{text}` is the name of a file; name its directory, in which node_fixer.prom is written"
            ));
        }
        Ok(Directory(text.into()))
    }
}

text!(Directory, "the path of a directory", |directory| directory.0.display(), { "type": "string", "pattern": "^/" });
