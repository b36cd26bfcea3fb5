//! The nouns of the container runtime: a pod's sandbox, and crictl's query for it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::shell_word;

/// Id of a pod's sandbox. It is never empty, does not look like an option, and is safe in a shell.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct PodId(String);

impl PodId {
    /// The id as crictl accepts it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PodId {
    type Error = String;

    fn try_from(id: String) -> Result<PodId, String> {
        let fit = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if (1..=128).contains(&id.len()) && id.chars().all(fit) && id.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            Ok(PodId(id))
        } else {
            Err(format!("{id:?} is not a sandbox id"))
        }
    }
}

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A ready sandbox of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its id.
    pub id: PodId,
    /// Its pod's name.
    pub name: String,
    /// When it was created, in wall-clock time since 1970.
    pub created: Duration,
}

/// The ready pods.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pods {
    /// Those that match the query.
    pub pods: Vec<Pod>,
    /// When they were listed, in wall-clock time since 1970.
    pub listed: Duration,
}

/// Which pod to find, and with which crictl.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodQuery {
    /// The program: a path, or a name found on PATH.
    pub crictl: String,
    /// The socket of the runtime.
    pub endpoint: String,
    /// Time limit of one call.
    pub timeout: Duration,
    /// Namespace of the pod.
    pub namespace: String,
    /// Labels that the pod must have; none for all pods of the namespace.
    pub labels: BTreeMap<String, String>,
}

impl PodQuery {
    /// Arguments of a call: common ones (crictl's own timeout of 2 s is too short for a stop), and these.
    pub fn args(&self, more: &[&str]) -> Vec<String> {
        let timeout = format!("{}ms", self.timeout.as_millis());
        let timeout = timeout.strip_suffix("000ms").map_or(timeout.clone(), |seconds| format!("{seconds}s"));
        let common = ["--runtime-endpoint", &self.endpoint, "--timeout", &timeout];
        common.iter().chain(more).map(|arg| (*arg).to_owned()).collect()
    }

    /// Arguments that list the pod's ready sandboxes as JSON.
    pub fn list_args(&self) -> Vec<String> {
        let labels: Vec<String> = self.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let mut args = vec!["pods", "--namespace", &self.namespace];
        args.extend(labels.iter().flat_map(|label| ["--label", label]));
        args.extend(["--state", "ready", "-o", "json"]);
        self.args(&args)
    }

    /// The command line of a call, for people and shells.
    pub fn command(&self, args: &[String]) -> String {
        let words = std::iter::once(&self.crictl).chain(args).map(|word| shell_word(word.as_bytes()));
        words.collect::<Vec<_>>().join(" ")
    }

    /// The commands that stop and remove a pod's sandbox, for people and shells.
    pub fn restart_command(&self, id: Option<&PodId>) -> String {
        let id = id.map_or("ID", PodId::as_str);
        let command = |verb| self.command(&self.args(&[verb, id]));
        format!("{} && {}", command("stopp"), command("rmp"))
    }
}
