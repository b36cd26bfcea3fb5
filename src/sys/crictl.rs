//! Calls crictl: arguments, never a shell; no longer than agreed; no more of its output than is sane.

use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;

use super::stop::Stop;
use crate::net::one_line;
use crate::pod::{Pod, PodId, PodQuery};

/// More output than a list of one node's pods can be.
const MOST_OUTPUT: usize = 8 << 20;
/// crictl ends itself when its time is up, and says so. It gets this much longer to do it.
const GRACE: Duration = Duration::from_secs(1);
/// How often a running crictl is looked at.
const TICK: u16 = 20;
/// So much of crictl's last words is repeated.
const LAST_WORDS: usize = 400;

/// Why crictl did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CrictlError {
    /// What was asked does not exist.
    #[error("{0}")]
    NotFound(String),
    /// This process was told to stop.
    #[error("told to stop while `{0}` ran; the next run goes on with it")]
    Stopped(String),
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
    let failed = |why: String| CrictlError::Failed(format!("`{command}` {why}"));
    if stop.told() {
        return Err(CrictlError::Stopped(command));
    }
    let spawned = Command::new(&query.crictl)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A group of its own, so that what it starts ends with it.
        .process_group(0)
        .spawn();
    let child = spawned.map_err(|error| {
        let cure = "name its path in kube_proxy.crictl, or switch the section off: kube_proxy: {mode: off}";
        failed(format!("cannot be started: {error}; {cure}"))
    })?;
    let mut running = Running { child, out: Vec::new(), err: Vec::new() };
    let ended = running.wait(query.timeout + GRACE, stop);
    running.end();
    let words = last_words(&running.err);
    match ended {
        Ok(Some(status)) if status.success() => Ok(running.out),
        Ok(Some(status)) => {
            let how = match (status.code(), status.signal()) {
                (Some(code), _) => format!("failed with exit code {code}"),
                (None, signal) => format!("was ended by signal {}", signal.unwrap_or_default()),
            };
            let error = format!("`{command}` {how}{words}");
            let gone = String::from_utf8_lossy(&running.err).contains("code = NotFound");
            Err(if gone { CrictlError::NotFound(error) } else { CrictlError::Failed(error) })
        }
        Ok(None) if stop.told() => Err(CrictlError::Stopped(command)),
        Ok(None) => Err(failed(format!("did not end within {:?}{words}", query.timeout + GRACE))),
        Err(error) => Err(failed(format!("was ended: {error}{words}"))),
    }
}

/// The end of what it said on stderr.
fn last_words(err: &[u8]) -> String {
    let text = String::from_utf8_lossy(err);
    let text = text.trim();
    let cut = text.char_indices().rev().nth(LAST_WORDS).map_or(0, |(at, _)| at);
    match text.get(cut..).unwrap_or_default() {
        "" => String::new(),
        words => format!(": {}", one_line(words)),
    }
}

/// A child with what it has said so far.
struct Running {
    child: Child,
    out: Vec<u8>,
    err: Vec<u8>,
}

impl Running {
    /// Reads what it says until it ends; `None` if its time is up or ours.
    fn wait(&mut self, time: Duration, stop: &Stop) -> io::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + time;
        let (mut out, mut err) = (self.child.stdout.take(), self.child.stderr.take());
        for fd in [out.as_ref().map(AsFd::as_fd), err.as_ref().map(AsFd::as_fd)].into_iter().flatten() {
            fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        loop {
            let open = [out.as_ref().map(AsFd::as_fd), err.as_ref().map(AsFd::as_fd)].into_iter().flatten();
            wait_for(open.collect())?;
            // Asked before the last reading: what it has said by then is all there is.
            let ended = self.child.try_wait()?;
            drain(&mut out, &mut self.out)?;
            drain(&mut err, &mut self.err)?;
            if ended.is_some() || stop.told() || Instant::now() >= deadline {
                return Ok(ended);
            }
        }
    }

    /// Ends it and all that it has started, if there is anything left of them.
    fn end(&mut self) {
        if let Ok(group) = i32::try_from(self.child.id()) {
            // Fails where nothing is left of the group.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        // Fails where it was waited for already.
        let _ = self.child.wait();
    }
}

/// Until there is something to read, or a moment has passed.
fn wait_for(open: Vec<BorrowedFd<'_>>) -> io::Result<()> {
    let mut fds: Vec<PollFd<'_>> = open.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    match poll(&mut fds, PollTimeout::from(TICK)) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Reads what is there; closes the pipe at its end.
fn drain(pipe: &mut Option<impl Read>, into: &mut Vec<u8>) -> io::Result<()> {
    let mut chunk = [0; 64 << 10];
    while let Some(open) = pipe {
        match open.read(&mut chunk) {
            Ok(0) => *pipe = None,
            Ok(length) => {
                into.extend(chunk.get(..length).unwrap_or_default());
                if into.len() > MOST_OUTPUT {
                    return Err(io::Error::other(format!("it printed more than {} MiB", MOST_OUTPUT >> 20)));
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
