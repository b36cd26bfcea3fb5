//! Runs a program: with arguments, never through a shell, with a time limit and a limit for its output.

use std::io::{self, ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{AccessFlags, Pid, access};

use crate::model::one_line;
use crate::signals::Stop;

/// More output than a list of one node's pods can have.
const MOST_OUTPUT: usize = 8 << 20;
/// How often a running program is checked.
const TICK: u16 = 20;
/// How much of the end of its stderr is repeated in an error.
const LAST_WORDS: usize = 400;

/// Why a program failed.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It does not exist, or cannot be started.
    #[error("{0}")]
    NotStarted(String),
    /// It reported failure.
    #[error("{error}")]
    Refused {
        /// How it ended, and the end of its stderr.
        error: String,
        /// All of its stderr.
        said: String,
    },
    /// A signal interrupted this process.
    #[error("interrupted by a signal")]
    Stopped,
    /// Any other error.
    #[error("{0}")]
    Failed(String),
}

/// Whether there is a program of this name on PATH.
pub fn is_on_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join(name))
        .any(|file| file.is_file() && access(&file, AccessFlags::X_OK).is_ok())
}

/// Runs it to its end; returns its stdout. `input` is its stdin, `shown` its command line for people.
pub fn run(
    mut program: Command,
    input: Stdio,
    shown: &str,
    time: Duration,
    stop: &Stop,
) -> Result<Vec<u8>, ProgramError> {
    if stop.requested() {
        return Err(ProgramError::Stopped);
    }
    program.stdin(input).stdout(Stdio::piped()).stderr(Stdio::piped());
    // Its own process group, so that its children end with it.
    let spawned = program.process_group(0).spawn();
    let child = spawned.map_err(|error| ProgramError::NotStarted(format!("`{shown}` cannot be started: {error}")))?;
    let mut running = Running { child, out: Vec::new(), err: Vec::new() };
    let ended = running.wait(time, stop);
    running.end();
    let words = last_words(&running.err);
    match ended {
        Ok(Some(status)) if status.success() => Ok(running.out),
        Ok(Some(status)) => {
            let how = match (status.code(), status.signal()) {
                (Some(code), _) => format!("failed with exit code {code}"),
                (None, signal) => format!("was killed by signal {}", signal.unwrap_or_default()),
            };
            let said = String::from_utf8_lossy(&running.err).into_owned();
            Err(ProgramError::Refused { error: format!("`{shown}` {how}{words}"), said })
        }
        Ok(None) if stop.requested() => Err(ProgramError::Stopped),
        Ok(None) => Err(ProgramError::Failed(format!("`{shown}` did not end within {time:?}{words}"))),
        Err(error) => Err(ProgramError::Failed(format!("`{shown}` was killed: {error}{words}"))),
    }
}

/// The end of its stderr.
fn last_words(err: &[u8]) -> String {
    let text = String::from_utf8_lossy(err);
    let text = text.trim();
    let cut = text.char_indices().rev().nth(LAST_WORDS).map_or(0, |(at, _)| at);
    match text.get(cut..).unwrap_or_default() {
        "" => String::new(),
        words => format!(": {}", one_line(words)),
    }
}

/// A child and its output so far.
struct Running {
    child: Child,
    out: Vec<u8>,
    err: Vec<u8>,
}

impl Running {
    /// Reads its output until it ends; `None` after the time limit or a signal.
    fn wait(&mut self, time: Duration, stop: &Stop) -> io::Result<Option<ExitStatus>> {
        let deadline = Instant::now() + time;
        let (mut out, mut err) = (self.child.stdout.take(), self.child.stderr.take());
        for fd in [out.as_ref().map(AsFd::as_fd), err.as_ref().map(AsFd::as_fd)].into_iter().flatten() {
            fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        loop {
            let open = [out.as_ref().map(AsFd::as_fd), err.as_ref().map(AsFd::as_fd)].into_iter().flatten();
            wait_for(open.collect())?;
            // Checked before the last read, so that all output is read.
            let ended = self.child.try_wait()?;
            drain(&mut out, &mut self.out)?;
            drain(&mut err, &mut self.err)?;
            if ended.is_some() || stop.requested() || Instant::now() >= deadline {
                return Ok(ended);
            }
        }
    }

    /// Kills it and its children, if any are left.
    fn end(&mut self) {
        if let Ok(group) = i32::try_from(self.child.id()) {
            // Fails if no process of the group is left.
            let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
        }
        // Fails if it was reaped already.
        let _ = self.child.wait();
    }
}

/// Waits until there is something to read, or a moment has passed.
fn wait_for(open: Vec<BorrowedFd<'_>>) -> io::Result<()> {
    let mut fds: Vec<PollFd<'_>> = open.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    match poll(&mut fds, PollTimeout::from(TICK)) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// Reads what is available; closes the pipe at its end.
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
