//! A run that the watcher has started.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::notify;
use super::order::{Order, Report, VARIABLE};

/// Time between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(5);
/// More than the length of a report.
const REPORT: usize = 512;

/// A run.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    stdout: Option<ChildStdout>,
    time: Duration,
    /// When it is sent SIGTERM or, after that, SIGKILL.
    deadline: Instant,
    asked: bool,
    /// Whether it was stopped because its time was up.
    late: bool,
}

/// How a run has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this exit code.
    Exit(i32),
    /// By this signal.
    Signal(Signal),
}

impl Child {
    /// Starts a run with this time limit.
    ///
    /// # Errors
    ///
    /// It cannot be started.
    pub fn start(program: &Path, args: &[OsString], order: &Order, time: Duration) -> io::Result<Child> {
        let mut command = Command::new(program);
        command.args(args).env(VARIABLE, order.to_string()).stdin(Stdio::null()).stdout(Stdio::piped());
        for name in notify::VARIABLES {
            command.env_remove(name);
        }
        // Its own process group, so that a signal from a terminal reaches only the watcher.
        let mut child = command.process_group(0).spawn()?;
        let stdout = child.stdout.take();
        if let Some(stdout) = &stdout {
            // A process that it left running may keep the other end open.
            fcntl(stdout, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap_or_default());
        Ok(Child { pid, stdout, time, deadline: Instant::now() + time, asked: false, late: false })
    }

    /// Stops it when its time is up, and kills it if it does not stop; returns when to call this again.
    pub fn hurry(&mut self, now: Instant) -> Instant {
        if self.deadline <= now {
            let signal = if self.asked { Signal::SIGKILL } else { Signal::SIGTERM };
            let _ = killpg(self.pid, signal);
            self.late |= !self.asked;
            (self.asked, self.deadline) = (true, now + GRACE);
        }
        self.deadline
    }

    /// Stops it now.
    pub fn stop(&mut self) {
        if !self.asked {
            let _ = killpg(self.pid, Signal::SIGTERM);
            (self.asked, self.deadline) = (true, Instant::now() + GRACE);
        }
    }

    /// Why it was no run, if another program killed it or its time was up.
    pub fn fault(&self, ended: Ended) -> Option<String> {
        match ended {
            _ if self.late => Some(format!("it did not end within {}", humantime::format_duration(self.time))),
            Ended::Signal(signal) if !self.asked => Some(format!("it was killed by {signal}")),
            _ => None,
        }
    }

    /// Whether it matches this one.
    pub fn is(&self, pid: Pid) -> bool {
        self.pid == pid
    }

    /// Its output.
    pub fn report(&mut self) -> Report {
        let mut said = [0; REPORT];
        let length = self.stdout.as_mut().and_then(|stdout| stdout.read(&mut said).ok()).unwrap_or_default();
        Report::parse(&String::from_utf8_lossy(said.get(..length).unwrap_or_default()))
    }
}

/// The next ended process of all children: as the first process of a container, the watcher also gets those that runs
/// have left.
pub fn next_ended() -> Option<(Pid, Ended)> {
    match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        Ok(WaitStatus::Exited(pid, code)) => Some((pid, Ended::Exit(code))),
        Ok(WaitStatus::Signaled(pid, signal, _)) => Some((pid, Ended::Signal(signal))),
        _ => None,
    }
}
