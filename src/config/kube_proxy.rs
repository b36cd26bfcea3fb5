//! The section `kube_proxy`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};

use super::types::{Wait, parse_duration, text};
use super::{Interfaces, Mode};
use crate::model::pod::PodQuery;
use crate::sorted;

/// The section `kube_proxy`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct KubeProxy {
    /// What to do after a change of the uplinks.
    pub mode: Mode,
    /// `auto`: the uplinks. Or a regular expression for names, which must not match pod links: they come and go.
    pub interfaces: Interfaces,
    /// How long the change must have been stable.
    pub settle: Wait,
    /// Minimum time between two restarts.
    pub min_interval: Wait,
    /// The program crictl: a path, or a name found on PATH.
    pub crictl: Program,
    /// Socket of the container runtime.
    pub endpoint: String,
    /// Time limit of one crictl call.
    pub timeout: Timeout,
    /// Namespace of the pod.
    pub namespace: String,
    /// Labels that the pod must have. A later file replaces all of them.
    #[serde(deserialize_with = "some_labels")]
    pub labels: BTreeMap<String, String>,
}

impl Default for KubeProxy {
    fn default() -> Self {
        KubeProxy {
            mode: Mode::Enforce,
            interfaces: Interfaces::Auto,
            settle: Wait(Duration::from_secs(5)),
            min_interval: Wait(Duration::from_secs(300)),
            crictl: Program("crictl".into()),
            endpoint: "unix:///run/containerd/containerd.sock".into(),
            timeout: Timeout(Duration::from_secs(10)),
            namespace: "kube-system".into(),
            labels: sorted::map([("k8s-app".into(), "kube-proxy".into())]),
        }
    }
}

impl KubeProxy {
    /// The query for the pod.
    pub fn query(&self) -> PodQuery {
        let KubeProxy { crictl, endpoint, timeout, namespace, labels, .. } = self.clone();
        PodQuery { crictl: crictl.0, endpoint, timeout: timeout.0, namespace, labels }
    }
}

/// At least one label: without any, every pod would match.
fn some_labels<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let labels = BTreeMap::deserialize(deserializer)?;
    if labels.is_empty() {
        return Err(de::Error::custom("is empty and would match every pod; to turn the section off, set `mode: off`"));
    }
    Ok(labels)
}

/// The name or path of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program(String);

impl Program {
    fn parse(text: &str) -> Result<Program, String> {
        if text.is_empty() {
            return Err("is empty; name a program, or turn the section off with `mode: off`".into());
        }
        Ok(Program(text.to_owned()))
    }
}

text!(Program, "the name or path of a program", |program| program.0);

/// Time limit of a call: from 100 ms to an hour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeout(pub Duration);

impl Timeout {
    fn parse(text: &str) -> Result<Timeout, String> {
        match parse_duration(text)? {
            sane if (Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&sane) => Ok(Timeout(sane)),
            _ => Err(format!("`{text}` is not a valid timeout: from 100ms to 1h")),
        }
    }
}

text!(Timeout, "a duration such as 10s", |timeout| humantime::format_duration(timeout.0), {
    "type": "string",
    "pattern": "^([0-9]+ *[a-zµ]+ *)+$"
});
