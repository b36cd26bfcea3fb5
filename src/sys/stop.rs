//! Signals. Being told to stop while something takes its time: SIGTERM from systemd, SIGINT from a terminal.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use signal_hook::consts::{SIGINT, SIGTERM, SIGXFSZ};

/// How long a sleep can go on after a signal.
const SLICE: Duration = Duration::from_millis(50);

/// From now on a file that may not grow (`ulimit -f`, LimitFSIZE=) is an error of the write, like a full disk, and not
/// the end of this process. For what it starts the signal does what it did before.
///
/// # Errors
///
/// The kernel does not take the handler.
pub fn survive_file_limit() -> io::Result<()> {
    static SURVIVES: OnceLock<()> = OnceLock::new();
    if SURVIVES.get().is_none() {
        signal_hook::flag::register(SIGXFSZ, Arc::new(AtomicBool::new(false)))?;
        let _ = SURVIVES.set(());
    }
    Ok(())
}

/// Knows whether this process was told to stop. Until the first use signals end it at once, which is right for a
/// run that only talks to the kernel.
#[derive(Debug, Default)]
pub struct Stop {
    told: Option<Arc<AtomicBool>>,
}

impl Stop {
    /// From now on signals are noted.
    pub fn listen(&mut self) -> io::Result<()> {
        if self.told.is_none() {
            let told = Arc::new(AtomicBool::new(false));
            for signal in [SIGTERM, SIGINT] {
                signal_hook::flag::register(signal, Arc::clone(&told))?;
            }
            self.told = Some(told);
        }
        Ok(())
    }

    /// Whether it was told to stop.
    pub fn told(&self) -> bool {
        self.told.as_ref().is_some_and(|told| told.load(Ordering::Relaxed))
    }

    /// Sleeps; false if it was told to stop.
    pub fn sleep(&self, time: Duration) -> bool {
        let end = Instant::now() + time;
        loop {
            let rest = end.saturating_duration_since(Instant::now());
            if self.told() || rest.is_zero() {
                return !self.told();
            }
            std::thread::sleep(rest.min(SLICE));
        }
    }
}
