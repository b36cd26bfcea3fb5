//! A stand-in for crictl, which Debian does not have: as much of it as node-fixer and its tests use, against a real
//! runtime. What it prints, and where, is what crictl was recorded to print.

mod cri;
mod grpc;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::{Parser, Subcommand};
use cri::*;
use grpc::{Client, Status};

#[derive(Parser)]
struct Args {
    #[arg(long)]
    runtime_endpoint: String,
    #[arg(long, value_parser = humantime::parse_duration, default_value = "2s")]
    timeout: Duration,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists sandboxes.
    Pods {
        /// A regular expression.
        #[arg(long, default_value = "")]
        namespace: regex::Regex,
        #[arg(long, value_parser = key_and_value)]
        label: Vec<(String, String)>,
        #[arg(long, value_parser = ["ready"])]
        state: Option<String>,
        #[arg(short, value_parser = ["json"])]
        output: String,
    },
    /// Runs a sandbox.
    Runp { config: PathBuf },
    /// Stops a sandbox.
    Stopp { id: String },
    /// Removes a sandbox that is stopped.
    Rmp { id: String },
    /// Creates a container in a sandbox.
    Create { pod: String, config: PathBuf, pod_config: PathBuf },
    /// Starts a container.
    Start { id: String },
    /// Shows whether a container runs, or how it ended.
    Inspect { id: String },
    /// Runs a program in a container, and ends as it does.
    Exec {
        #[arg(short, required = true)]
        sync: bool,
        id: String,
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// Tells a container to end, and ends it after this time.
    Stop {
        #[arg(long)]
        timeout: i64,
        id: String,
    },
    /// Removes a container.
    Rm { id: String },
}

fn key_and_value(label: &str) -> Result<(String, String), String> {
    let (key, value) = label.split_once('=').ok_or("not KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(said) => tell(std::io::stdout(), &said, ExitCode::SUCCESS),
        Err(said) => tell(std::io::stderr(), &said, ExitCode::FAILURE),
    }
}

fn tell(mut stream: impl Write, said: &str, code: ExitCode) -> ExitCode {
    writeln!(stream, "{said}").map_or(ExitCode::FAILURE, |()| code)
}

/// What goes to stdout; or else to stderr, with exit code 1.
fn run(args: Args) -> Result<String, String> {
    let endpoint = &args.runtime_endpoint;
    let socket = endpoint.strip_prefix("unix://").ok_or_else(|| fatal(&format!("no socket: {endpoint}")))?;
    let client = Client::connect(socket.as_ref(), args.timeout);
    let client =
        client.and_then(|client| call::<VersionResponse>(&client, "Version", &VersionRequest {}).map(|_| client));
    let client = client.map_err(|status| {
        let validate = "validate service connection: validate CRI v1 runtime API for endpoint";
        fatal(&format!("{validate} {endpoint:?}: {status}"))
    })?;
    let fails = |method: &'static str| move |status: Status| fatal(&format!("{method}: {status}"));
    match args.command {
        Command::Create { pod, config, pod_config } => {
            let (config, sandbox_config) = (Some(read(&config)?), Some(read(&pod_config)?));
            let request = CreateContainerRequest { pod_sandbox_id: pod, config, sandbox_config };
            let created =
                call::<ContainerRequest>(&client, "CreateContainer", &request).map_err(fails("CreateContainer"));
            Ok(created?.container_id)
        }
        Command::Start { id } => {
            let request = ContainerRequest { container_id: id };
            call::<EmptyResponse>(&client, "StartContainer", &request).map_err(fails("StartContainer"))?;
            Ok(request.container_id)
        }
        Command::Inspect { id } => {
            let answer =
                call::<ContainerStatusResponse>(&client, "ContainerStatus", &ContainerRequest { container_id: id });
            let status = answer.map_err(fails("ContainerStatus"))?.status.unwrap_or_default();
            serde_json::to_string(&status).map_err(|error| fatal(&error.to_string()))
        }
        Command::Exec { id, command, .. } => {
            let request = ExecSyncRequest { container_id: id, cmd: command, timeout: 60 };
            let answer = call::<ExecSyncResponse>(&client, "ExecSync", &request).map_err(fails("ExecSync"))?;
            let said = [answer.stdout, answer.stderr].concat();
            let said = String::from_utf8_lossy(&said).trim_end().to_owned();
            if answer.exit_code == 0 { Ok(said) } else { Err(format!("{said}\nexit code {}", answer.exit_code)) }
        }
        Command::Stop { timeout, id } => {
            let request = StopContainerRequest { container_id: id, timeout };
            call::<EmptyResponse>(&client, "StopContainer", &request).map_err(fails("StopContainer"))?;
            Ok(request.container_id)
        }
        Command::Rm { id } => {
            let request = ContainerRequest { container_id: id };
            call::<EmptyResponse>(&client, "RemoveContainer", &request).map_err(fails("RemoveContainer"))?;
            Ok(request.container_id)
        }
        Command::Pods { namespace, label, state, .. } => pods(&client, &namespace, label.into_iter().collect(), state),
        Command::Runp { config } => run_pod(&client, &config),
        Command::Stopp { id } => {
            let stopped = call::<EmptyResponse>(&client, "StopPodSandbox", &of(&id)).map_err(|status| {
                let logged = logged("StopPodSandbox", &status, &id);
                format!("{logged}\n{}", fatal(&format!("stopping the pod sandbox {id:?}: {status}")))
            });
            stopped.map(|_| format!("Stopped sandbox {id}"))
        }
        Command::Rmp { id } => {
            let answer = call::<PodSandboxStatusResponse>(&client, "PodSandboxStatus", &of(&id));
            let answer = answer.map_err(|status| format!("getting sandbox status of pod {id:?}: {status}"))?;
            if answer.status.unwrap_or_default().state() == PodSandboxState::Ready {
                return Err(format!("pod sandbox {id:?} is running, please stop it first"));
            }
            let removed = call::<EmptyResponse>(&client, "RemovePodSandbox", &of(&id));
            removed.map_err(|status| format!("removing the pod sandbox {id:?}: {status}"))?;
            Ok(format!("Removed sandbox {id}"))
        }
    }
}

fn pods(
    client: &Client,
    namespace: &regex::Regex,
    label_selector: BTreeMap<String, String>,
    state: Option<String>,
) -> Result<String, String> {
    let state = state.map(|_| PodSandboxStateValue { state: PodSandboxState::Ready.into() });
    let request = ListPodSandboxRequest { filter: Some(PodSandboxFilter { state, label_selector }) };
    let listed = call::<ListPodSandboxResponse>(client, "ListPodSandbox", &request);
    let mut list = listed.map_err(|status| fatal(&format!("listing pod sandboxes: {status}")))?;
    list.items.retain(|pod| pod.metadata.as_ref().is_some_and(|metadata| namespace.is_match(&metadata.namespace)));
    list.items.sort_by_key(|pod| Reverse(pod.created_at));
    serde_json::to_string_pretty(&list).map_err(|error| fatal(&error.to_string()))
}

fn run_pod(client: &Client, config: &PathBuf) -> Result<String, String> {
    let request = RunPodSandboxRequest { config: Some(read(config)?) };
    let ran = call::<RunPodSandboxResponse>(client, "RunPodSandbox", &request);
    Ok(ran.map_err(|status| fatal(&format!("run pod sandbox: {status}")))?.pod_sandbox_id)
}

fn read<T: serde::de::DeserializeOwned>(config: &PathBuf) -> Result<T, String> {
    let text = std::fs::read(config).map_err(|error| error.to_string());
    let config = text.and_then(|text| serde_json::from_slice(&text).map_err(|error| error.to_string()));
    config.map_err(|error| fatal(&format!("load podSandboxConfig: {error}")))
}

fn call<A: prost::Message + Default>(
    client: &Client,
    method: &str,
    question: &impl prost::Message,
) -> Result<A, Status> {
    client.call(&format!("/runtime.v1.RuntimeService/{method}"), question)
}

fn of(id: &str) -> PodSandboxRequest {
    PodSandboxRequest { pod_sandbox_id: id.to_owned() }
}

/// crictl's last words.
fn fatal(why: &str) -> String {
    format!("time=\"{}\" level=fatal msg={why:?}", humantime::format_rfc3339_seconds(SystemTime::now()))
}

/// What the library that crictl calls the runtime by says on its own about a call that failed.
fn logged(method: &str, status: &Status, id: &str) -> String {
    let now = humantime::format_rfc3339_micros(SystemTime::now()).to_string();
    let (date, time) = now.trim_end_matches('Z').split_once('T').unwrap_or_default();
    let day: String = date.chars().skip(5).filter(|c| *c != '-').collect();
    let (status, process) = (status.to_string(), std::process::id());
    format!(
        "E{day} {time} {process:>7} log.go:32] \"{method} from runtime service failed\" err={status:?} podSandboxID={id:?}"
    )
}
