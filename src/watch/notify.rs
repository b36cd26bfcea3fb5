//! Notifications of a service to systemd (sd_notify(3)): ready, alive, stopping.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// The variables with which systemd passes the socket and the watchdog time. Child processes must not see them.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// The connection to systemd, if it has started this process.
#[derive(Debug)]
pub struct Notify {
    socket: Option<OsString>,
    /// The interval of the watchdog messages.
    period: Option<Duration>,
    next: Instant,
}

impl Notify {
    /// From the environment.
    pub fn new() -> Notify {
        let socket = env::var_os("NOTIFY_SOCKET");
        let period = env::var("WATCHDOG_USEC").ok().and_then(|text| text.parse().ok()).map(Duration::from_micros);
        // Half of the time, as sd_watchdog_enabled(3) recommends.
        let period = period.map(|period| period / 2).filter(|period| !period.is_zero() && socket.is_some());
        Notify { socket, period, next: Instant::now() }
    }

    /// Sends a notification. A failure has no consequences here.
    pub fn say(&self, what: &str) {
        let Some(name) = &self.socket else { return };
        let send = || -> io::Result<usize> {
            let address = match name.as_bytes() {
                [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
                _ => SocketAddr::from_pathname(name)?,
            };
            UnixDatagram::unbound()?.send_to_addr(what.as_bytes(), &address)
        };
        if let Err(error) = send() {
            tracing::debug!(%error, "cannot notify systemd: {what}");
        }
    }

    /// Sends a watchdog message if it is due; returns when the next one is.
    pub fn alive(&mut self, now: Instant) -> Option<Instant> {
        let period = self.period?;
        if self.next <= now {
            self.say("WATCHDOG=1");
            self.next = now + period;
        }
        Some(self.next)
    }
}
