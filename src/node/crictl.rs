//! Runs crictl, and parses its output.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::program::{self, ProgramError};
use crate::model::one_line;
use crate::model::pod::{Pod, PodId, PodQuery};
use crate::signals::Stop;

/// crictl ends itself after its timeout, and reports that. It gets this much longer to do so, but at most twice its
/// timeout in total.
const GRACE: Duration = Duration::from_secs(1);

/// Why crictl failed.
#[derive(Debug, thiserror::Error)]
pub enum CrictlError {
    /// The requested object does not exist.
    #[error("{0}")]
    NotFound(String),
    /// A signal interrupted it.
    #[error("interrupted by a signal while `{0}` ran; the next run continues")]
    Stopped(String),
    /// The program is not on PATH.
    #[error("{0}")]
    Missing(String),
    /// Any other error.
    #[error("{0}")]
    Failed(String),
}

/// The ready pods that match the query.
pub fn pods(query: &PodQuery, stop: &Stop) -> Result<Vec<Pod>, CrictlError> {
    let args = query.list_args();
    let output = call(query, &args, stop)?;
    parse(&output, query).map_err(|why| CrictlError::Failed(format!("`{}` printed {why}", query.command(&args))))
}

/// Stops a sandbox. A sandbox that is already stopped is no error.
pub fn stop_pod(query: &PodQuery, id: &PodId, stop: &Stop) -> Result<(), CrictlError> {
    call(query, &query.args(&["stopp", id.as_str()]), stop).map(drop)
}

/// Removes a stopped sandbox.
pub fn remove_pod(query: &PodQuery, id: &PodId, stop: &Stop) -> Result<(), CrictlError> {
    call(query, &query.args(&["rmp", id.as_str()]), stop).map(drop)
}

/// How many sandboxes one call inspects: each takes some ten kilobytes of output.
const INSPECTED_AT_ONCE: usize = 50;

/// The paths of the network namespaces of all sandboxes, in any state. Without crictl there are none.
pub fn namespaces(query: &PodQuery, stop: &Stop) -> Result<Vec<PathBuf>, CrictlError> {
    let args = query.args(&["pods", "-o", "json"]);
    let output = match call(query, &args, stop) {
        Err(CrictlError::Missing(_)) => return Ok(Vec::new()),
        other => other?,
    };
    let printed =
        |args: &[String], why: String| CrictlError::Failed(format!("`{}` printed {why}", query.command(args)));
    let listing: Listing =
        serde_json::from_slice(&output).map_err(|error| printed(&args, format!("not a list of pods: {error}")))?;
    let ids: Result<Vec<PodId>, String> = listing.items.into_iter().map(|item| PodId::try_from(item.id)).collect();
    let ids = ids.map_err(|why| printed(&args, why))?;
    let mut paths = Vec::new();
    for ids in ids.chunks(INSPECTED_AT_ONCE) {
        let ids: Vec<&str> = ids.iter().map(PodId::as_str).collect();
        let args = query.args(&[&["inspectp", "-o", "json"], ids.as_slice()].concat());
        let output = call(query, &args, stop)?;
        let found = inspected(&output, ids.len()).map_err(|why| printed(&args, why))?;
        paths.extend(found);
    }
    Ok(paths)
}

/// Parses the output of `crictl inspectp -o json`: an object, several objects, or a list of them.
fn inspected(output: &[u8], sandboxes: usize) -> Result<Vec<PathBuf>, String> {
    let mut seen = Vec::new();
    for value in serde_json::Deserializer::from_slice(output).into_iter::<Value>() {
        match value.map_err(|error| format!("not the status of a sandbox: {error}"))? {
            Value::Array(several) => seen.extend(several),
            one => seen.push(one),
        }
    }
    if seen.len() != sandboxes {
        return Err(format!("the status of {} sandboxes instead of {sandboxes}", seen.len()));
    }
    let mut paths = Vec::new();
    for sandbox in &seen {
        let known = paths.len();
        let info = sandbox.get("info").unwrap_or(&Value::Null);
        paths_in(info, &mut paths);
        // None exists if the pod uses the node's namespace, or if its own is gone or has no name.
        let mode = sandbox.pointer("/status/linux/namespaces/options/network").and_then(Value::as_str);
        let is_reported =
            ["runtimeSpec", "sandboxMetadata"].iter().any(|key| info.get(key).is_some_and(Value::is_object));
        let closed = info.get("netNamespaceClosed").and_then(Value::as_bool);
        if paths.len() == known && mode != Some("NODE") && closed != Some(true) && !is_reported {
            return Err("a status without the network namespace of its sandbox".into());
        }
    }
    Ok(paths)
}

/// All strings that look like the path of a named network namespace. Runtimes report it in several places
/// (runtimeSpec.linux.namespaces, sandboxMetadata), but not always in all of them: for a sandbox whose shim has died,
/// containerd has only the second.
fn paths_in(value: &Value, paths: &mut Vec<PathBuf>) {
    match value {
        Value::String(text) => {
            let path = Path::new(text);
            if path.is_absolute() && path.parent().is_some_and(|parent| parent.ends_with("netns")) {
                paths.push(path.into());
            }
        }
        Value::Array(values) => values.iter().for_each(|value| paths_in(value, paths)),
        Value::Object(fields) => {
            let is_network = fields.get("type").and_then(Value::as_str) == Some("network");
            let path = fields.get("path").and_then(Value::as_str).filter(|path| is_network && !path.is_empty());
            paths.extend(path.map(PathBuf::from));
            fields.values().for_each(|value| paths_in(value, paths));
        }
        _ => {}
    }
}

#[derive(Deserialize)]
struct Listing {
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    id: String,
    metadata: Metadata,
    state: String,
    #[serde(rename = "createdAt")]
    created_at: String,
    #[serde(default)]
    labels: std::collections::BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    namespace: String,
}

/// Parses the output of `crictl pods -o json`. crictl selects the pods, but its selection is checked.
fn parse(output: &[u8], query: &PodQuery) -> Result<Vec<Pod>, String> {
    let listing: Listing = serde_json::from_slice(output).map_err(|error| format!("not a list of pods: {error}"))?;
    let wanted = |item: &Item| {
        item.state == "SANDBOX_READY"
            && item.metadata.namespace == query.namespace
            && query.labels.iter().all(|(key, value)| item.labels.get(key) == Some(value))
    };
    let pod = |item: Item| {
        let nanoseconds = item.created_at.parse();
        let created = nanoseconds
            .map_err(|_| format!("the creation time {:?} of a pod is not in nanoseconds", item.created_at))?;
        let id = PodId::try_from(item.id)?;
        Ok(Pod { id, name: one_line(&item.metadata.name).into_owned(), created: Duration::from_nanos(created) })
    };
    listing.items.into_iter().filter(wanted).map(pod).collect()
}

/// Runs crictl to its end; returns its stdout.
fn call(query: &PodQuery, args: &[String], stop: &Stop) -> Result<Vec<u8>, CrictlError> {
    let command = query.command(args);
    let mut program = Command::new(&query.crictl);
    program.args(args);
    let time = query.timeout + GRACE.min(query.timeout);
    program::run(program, Stdio::null(), &command, time, stop).map_err(|error| match error {
        ProgramError::NotStarted(why) => {
            let cure = "set kube_proxy.crictl to its path, or turn the section off: kube_proxy: {mode: off}";
            let is_missing = !query.crictl.contains('/') && !program::is_on_path(&query.crictl);
            let error = if is_missing { CrictlError::Missing } else { CrictlError::Failed };
            error(format!("{why}; {cure}"))
        }
        ProgramError::Refused { ref said, .. } if said.contains("code = NotFound") => {
            CrictlError::NotFound(error.to_string())
        }
        ProgramError::Stopped => CrictlError::Stopped(command.clone()),
        error => CrictlError::Failed(error.to_string()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz_pods() {
        let query = crate::config::KubeProxy::default().query();
        crate::fuzz::run("crictl-pods", |bytes| parse(bytes, &query).is_ok());
    }

    #[test]
    fn fuzz_inspected() {
        crate::fuzz::run("crictl-inspect", |bytes| (0..3).any(|sandboxes| inspected(bytes, sandboxes).is_ok()));
    }
}
