//! The section `watch`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::types::{parse_duration, text};

/// The section `watch`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Watch {
    /// Minimum time between two runs that changes of the network start; the first change starts one at once.
    pub pace: Pace,
}

/// The minimum time from the start of one run to the next: from 10 ms to a minute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace(pub Duration);

impl Default for Pace {
    fn default() -> Self {
        Pace(Duration::from_secs(1))
    }
}

impl Pace {
    fn parse(text: &str) -> Result<Pace, String> {
        match parse_duration(text)? {
            sane if (Duration::from_millis(10)..=Duration::from_secs(60)).contains(&sane) => Ok(Pace(sane)),
            _ => Err(format!("`{text}` is out of range: from 10ms to 1m")),
        }
    }
}

text!(Pace, "a duration such as 1s", |pace| humantime::format_duration(pace.0), {
    "type": "string",
    "pattern": "^(0|([0-9]+ *[a-zµ]+ *)+)$"
});
