//! Calls crictl, and reads what it prints.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::program::{self, ProgramError};
use super::stop::Stop;
use crate::net::one_line;
use crate::pod::{Pod, PodId, PodQuery};

/// crictl ends itself when its time is up, and says so. It gets this much longer to do it, but never
/// as long again.
const GRACE: Duration = Duration::from_secs(1);

/// Why crictl did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CrictlError {
    /// What was asked does not exist.
    #[error("{0}")]
    NotFound(String),
    /// This process was told to stop.
    #[error("told to stop while `{0}` ran; the next run goes on with it")]
    Stopped(String),
    /// There is no such program on PATH.
    #[error("{0}")]
    Missing(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// The pods that are ready and answer to the query.
pub fn pods(query: &PodQuery, stop: &Stop) -> Result<Vec<Pod>, CrictlError> {
    let args = query.list_args();
    let output = call(query, &args, stop)?;
    parse(&output, query).map_err(|why| CrictlError::Failed(format!("`{}` printed {why}", query.command(&args))))
}

/// Stops a sandbox. One that is stopped already is no error.
pub fn stop_pod(query: &PodQuery, id: &PodId, stop: &Stop) -> Result<(), CrictlError> {
    call(query, &query.args(&["stopp", id.as_str()]), stop).map(drop)
}

/// Removes a sandbox that is stopped.
pub fn remove_pod(query: &PodQuery, id: &PodId, stop: &Stop) -> Result<(), CrictlError> {
    call(query, &query.args(&["rmp", id.as_str()]), stop).map(drop)
}

/// So many sandboxes are inspected by one call: each takes some ten kilobytes of output.
const INSPECTED_AT_ONCE: usize = 50;

/// The paths of the network namespaces of all sandboxes, whatever state they are in. Where there is no crictl there are
/// none.
pub fn namespaces(query: &PodQuery, stop: &Stop) -> Result<Vec<PathBuf>, CrictlError> {
    let args = query.args(&["pods", "-o", "json"]);
    let output = match call(query, &args, stop) {
        Err(CrictlError::Missing(_)) => return Ok(Vec::new()),
        other => other?,
    };
    let printed =
        |args: &[String], why: String| CrictlError::Failed(format!("`{}` printed {why}", query.command(args)));
    let listing: Listing =
        serde_json::from_slice(&output).map_err(|error| printed(&args, format!("no list of pods: {error}")))?;
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

/// Reads what `crictl inspectp -o json` prints: an object, or one after another, or a list of them.
fn inspected(output: &[u8], sandboxes: usize) -> Result<Vec<PathBuf>, String> {
    let mut seen = Vec::new();
    for value in serde_json::Deserializer::from_slice(output).into_iter::<Value>() {
        match value.map_err(|error| format!("no status of a sandbox: {error}"))? {
            Value::Array(several) => seen.extend(several),
            one => seen.push(one),
        }
    }
    if seen.len() != sandboxes {
        return Err(format!("the status of {} sandboxes, not of {sandboxes}", seen.len()));
    }
    let mut paths = Vec::new();
    for sandbox in &seen {
        let known = paths.len();
        let info = sandbox.get("info").unwrap_or(&Value::Null);
        paths_in(info, &mut paths);
        // Nothing is there to be found where the pod is in the node's namespace, or its own is gone, or has no name.
        let mode = sandbox.pointer("/status/linux/namespaces/options/network").and_then(Value::as_str);
        let is_told = ["runtimeSpec", "sandboxMetadata"].iter().any(|key| info.get(key).is_some_and(Value::is_object));
        let closed = info.get("netNamespaceClosed").and_then(Value::as_bool);
        if paths.len() == known && mode != Some("NODE") && closed != Some(true) && !is_told {
            return Err("a status that does not tell the network namespace of its sandbox".into());
        }
    }
    Ok(paths)
}

/// All strings that look like the path of a named network namespace. Runtimes have it in several places
/// (runtimeSpec.linux.namespaces, sandboxMetadata), and not all of them always: of a sandbox whose shim has died
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

/// Reads what `crictl pods -o json` prints. crictl was asked to select; it is not trusted to have done so.
fn parse(output: &[u8], query: &PodQuery) -> Result<Vec<Pod>, String> {
    let listing: Listing = serde_json::from_slice(output).map_err(|error| format!("no list of pods: {error}"))?;
    let wanted = |item: &Item| {
        item.state == "SANDBOX_READY"
            && item.metadata.namespace == query.namespace
            && query.labels.iter().all(|(key, value)| item.labels.get(key) == Some(value))
    };
    let pod = |item: Item| {
        let nanoseconds = item.created_at.parse();
        let created = nanoseconds.map_err(|_| format!("the time {:?} for a pod, not nanoseconds", item.created_at))?;
        let id = PodId::try_from(item.id)?;
        Ok(Pod { id, name: one_line(&item.metadata.name).into_owned(), created: Duration::from_nanos(created) })
    };
    listing.items.into_iter().filter(wanted).map(pod).collect()
}

/// Runs crictl to its end; its stdout.
fn call(query: &PodQuery, args: &[String], stop: &Stop) -> Result<Vec<u8>, CrictlError> {
    let command = query.command(args);
    let mut program = Command::new(&query.crictl);
    program.args(args);
    let time = query.timeout + GRACE.min(query.timeout);
    program::run(program, Stdio::null(), &command, time, stop).map_err(|error| match error {
        ProgramError::NotStarted(why) => {
            let cure = "name its path in kube_proxy.crictl, or switch the section off: kube_proxy: {mode: off}";
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
        let query = crate::desired::KubeProxy::default().query();
        crate::fuzz::run("crictl-pods", |bytes| parse(bytes, &query).is_ok());
    }

    #[test]
    fn fuzz_inspected() {
        crate::fuzz::run("crictl-inspect", |bytes| (0..3).any(|sandboxes| inspected(bytes, sandboxes).is_ok()));
    }
}
