//! Signals: SIGTERM from systemd or SIGINT from a terminal stop a run while it waits; and files that must not grow.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use nix::unistd::alarm;
use signal_hook::consts::{SIGALRM, SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGXFSZ};

/// How long a sleep can continue after a signal.
const SLICE: Duration = Duration::from_millis(50);

/// From now on, writing beyond a file size limit (`ulimit -f`, LimitFSIZE=) is an error of the write, like a full disk,
/// and does not end this process. Child processes keep the default.
///
/// # Errors
///
/// The kernel rejects the handler.
pub fn survive_file_limit() -> io::Result<()> {
    static SURVIVES: OnceLock<()> = OnceLock::new();
    if SURVIVES.get().is_none() {
        signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
        let _ = SURVIVES.set(());
    }
    Ok(())
}

/// Ends this process with exit code 1 if it hangs: if it is not [put off](Hangs::put_off) in time.
#[derive(Debug)]
pub struct Hangs;

impl Hangs {
    /// From now on, with a handler: the first process of a container ignores a signal that has none.
    ///
    /// # Errors
    ///
    /// The kernel rejects the handler.
    pub fn end_it() -> io::Result<Hangs> {
        signal_hook::flag::register_conditional_shutdown(SIGALRM, 1, Arc::new(AtomicBool::new(true)))?;
        Ok(Hangs)
    }

    /// It does not hang: the time starts anew.
    pub fn put_off(&self, time: Duration) {
        alarm::set(u32::try_from(time.as_secs()).unwrap_or(u32::MAX).max(1));
    }
}

/// Knows whether a signal asked this process to stop. Until the first use signals end it at once, which is right for a
/// run that only talks to the kernel. Its clones share that.
#[derive(Debug, Default, Clone)]
pub struct Stop {
    requested: Arc<OnceLock<Arc<AtomicBool>>>,
}

impl Stop {
    /// From now on signals are recorded.
    ///
    /// # Errors
    ///
    /// The kernel rejects the handler.
    pub fn listen(&self) -> io::Result<()> {
        if self.requested.get().is_none() {
            let requested = Arc::new(AtomicBool::new(false));
            for signal in [SIGTERM, SIGINT] {
                signal_hook::flag::register(signal, Arc::clone(&requested))?;
            }
            let _ = self.requested.set(requested);
        }
        Ok(())
    }

    /// Whether a signal asked it to stop.
    pub fn requested(&self) -> bool {
        self.requested.get().is_some_and(|requested| requested.load(Ordering::Relaxed))
    }

    /// Sleeps; false if a signal asked it to stop.
    pub fn sleep(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        loop {
            let rest = end.saturating_duration_since(Instant::now());
            if self.requested() || rest.is_zero() {
                return !self.requested();
            }
            std::thread::sleep(rest.min(SLICE));
        }
    }
}

/// Signals that end a wait: SIGTERM and SIGINT, SIGHUP, and SIGCHLD.
#[derive(Debug)]
pub struct Wake {
    /// Readable after a signal.
    pipe: UnixStream,
    stop: Stop,
    hung_up: Arc<AtomicBool>,
}

impl Wake {
    /// From now on signals are recorded.
    ///
    /// # Errors
    ///
    /// The kernel rejects the handlers.
    pub fn listen() -> io::Result<Wake> {
        let (stop, hung_up) = (Stop::default(), Arc::new(AtomicBool::new(false)));
        stop.listen()?;
        signal_hook::flag::register(SIGHUP, Arc::clone(&hung_up))?;
        let (pipe, sender) = UnixStream::pair()?;
        pipe.set_nonblocking(true)?;
        // After the flags, so that they are set when the wait ends.
        for signal in [SIGTERM, SIGINT, SIGHUP, SIGCHLD] {
            signal_hook::low_level::pipe::register(signal, sender.try_clone()?)?;
        }
        Ok(Wake { pipe, stop, hung_up })
    }

    /// Whether a signal asked this process to stop.
    pub fn is_interrupted(&self) -> bool {
        self.stop.requested()
    }

    /// Whether SIGHUP came since the last call. Clears the wake-up.
    pub fn hung_up(&self) -> bool {
        let mut bytes = [0; 64];
        while matches!((&self.pipe).read(&mut bytes), Ok(1..)) {}
        self.hung_up.swap(false, Ordering::Relaxed)
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pipe.as_fd()
    }
}
