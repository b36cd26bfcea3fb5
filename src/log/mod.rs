//! The log: on stderr, one line an event, with fields. To the journal each line says its priority, and the journal
//! adds time and level; elsewhere both are ours. A journal that listens gets the fields one by one instead.

mod journal;

use std::fmt;
use std::fs::File;
use std::io::{self, IsTerminal, Write, stderr, stdout};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;
use std::time::SystemTime;

use journal::Journal;
pub use journal::KINDS;
use rustix::io::Errno;
use rustix::net::SendFlags;
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Dispatch, Event, Level, Metadata, Subscriber};
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::cli::{Cli, Output};

/// Sets up the log of this process. What writes it is made for the first line: most runs have none.
pub fn init(cli: &Cli) {
    let level = match (cli.common.quiet, cli.common.verbose) {
        (true, _) => LevelFilter::ERROR,
        (_, true) => LevelFilter::DEBUG,
        _ => LevelFilter::INFO,
    };
    let told = cli.common.output == Output::Text
        && !cli.common.verbose
        && cli.command.is_none()
        && stdout().is_terminal()
        && stderr().is_terminal();
    // Fails where there is a log already, as in no process of ours.
    let _ = tracing::subscriber::set_global_default(Unwritten { level, told, written: OnceLock::new() });
}

/// Before the process ends: gives the journal a moment to read what was sent.
pub fn finish() {
    tracing::dispatcher::get_default(|log| {
        let written = log.downcast_ref::<Unwritten>().and_then(|log| log.written.get());
        if let Some(journal) = written.and_then(Dispatch::downcast_ref::<Journal>) {
            journal.finish();
        }
    });
}

/// Kinds of events that the result tells of too.
const RESULTS: [&str; 6] = ["blocked", "changed", "failed", "held", "taken_back", "unseen"];

/// A log that nobody has written to yet.
struct Unwritten {
    level: LevelFilter,
    /// Whether whoever reads the log reads the result as well.
    told: bool,
    written: OnceLock<Dispatch>,
}

impl Subscriber for Unwritten {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level && !(self.told && RESULTS.contains(&metadata.target()))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn event(&self, event: &Event<'_>) {
        self.written.get_or_init(|| writer(self.level)).event(event);
    }

    // There are no spans in this program.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Whether what is written there may be coloured: it is a terminal, and nobody objects (https://no-color.org).
pub fn colour(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn writer(level: LevelFilter) -> Dispatch {
    let log = tracing_subscriber::fmt()
        .with_writer(stderr)
        .with_max_level(level)
        .with_target(false)
        .with_ansi(colour(&stderr()));
    let under_systemd = std::env::var_os("JOURNAL_STREAM").is_some();
    match () {
        () if under_systemd && is_journal().unwrap_or(false) => {
            let lines = log.with_writer(|| Hasty).log_internal_errors(false).event_format(Lines::new()).finish();
            Journal::new(journal::SOCKET, lines.into()).into()
        }
        () if under_systemd => log.without_time().finish().into(),
        () => log.with_timer(Rfc3339).finish().into(),
    }
}

/// Whether stderr is the stream to the journal that systemd names (systemd.exec(5)). Programs pass the variable on
/// to what they start with another stderr.
fn is_journal() -> io::Result<bool> {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return Ok(false) };
    let stderr = File::from(stderr().as_fd().try_clone_to_owned()?).metadata()?;
    Ok(stream == *format!("{}:{}", stderr.dev(), stderr.ino()))
}

/// stderr where it is the stream to the journal: what that does not take at once is lost, instead of waited for.
struct Hasty;

impl Write for Hasty {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match rustix::net::send(stderr(), line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Err(Errno::NOTSOCK) => stderr().write(line),
            Err(Errno::WOULDBLOCK) => Ok(line.len()),
            other => Ok(other?),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The syslog priority of an event.
fn priority(level: &Level) -> u8 {
    match *level {
        Level::ERROR => 3,
        Level::WARN => 4,
        // A change: what LogLevelMax=notice lets through.
        Level::INFO => 5,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// A line as the journal reads it from a stream: its priority in angle brackets, no time and no level (sd-daemon(3)).
struct Lines(Format<Full, ()>);

impl Lines {
    fn new() -> Lines {
        Lines(Format::default().without_time().with_level(false).with_target(false).with_ansi(false))
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, ctx: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        write!(writer, "<{}>", priority(event.metadata().level()))?;
        self.0.format_event(ctx, writer, event)
    }
}

struct Rfc3339;

impl FormatTime for Rfc3339 {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "{}", humantime::format_rfc3339_seconds(SystemTime::now()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};
    use std::sync::Arc;

    use super::*;

    #[test]
    fn the_stream_to_the_journal_gets_priorities_and_no_times() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let log = tracing_subscriber::fmt()
            .with_writer(Arc::clone(&file))
            .with_max_level(LevelFilter::DEBUG)
            .event_format(Lines::new())
            .finish();
        tracing::subscriber::with_default(log, || {
            tracing::error!(error = "no", "failed");
            tracing::warn!("blocked");
            tracing::info!(command = %"ip route add default", "changed");
            tracing::debug!("looking");
        });
        let mut text = String::new();
        file.as_ref().rewind().unwrap();
        file.as_ref().read_to_string(&mut text).unwrap();
        assert_eq!(text, "<3>failed error=\"no\"\n<4>blocked\n<5>changed command=ip route add default\n<7>looking\n");
    }
}
