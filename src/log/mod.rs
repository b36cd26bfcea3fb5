//! The log: one line per event, with fields, on stderr. If stderr goes to the journal, each line starts with its
//! priority, and the journal adds time and level; otherwise node-fixer adds them, except that a terminal gets no time. If
//! the journal's socket accepts them, events go there with separate fields instead. A terminal also shows the progress of
//! what takes long, in a line that the next one replaces.

mod event;
mod journal;
mod text;

use std::fs::File;
use std::io::{self, IsTerminal, stderr, stdout};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use anstream::stream::RawStream;
use anstream::{AutoStream, ColorChoice};
use journal::Journal;
pub use journal::KINDS;
use text::{Head, Text};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::cli::{Cli, Output};
use crate::signals;

/// Sets up the log of this process. The writer is created for the first line: most runs have none.
pub fn init(cli: &Cli) {
    let level = match (cli.common.quiet, cli.common.verbose) {
        (true, _) => LevelFilter::ERROR,
        (_, true) => LevelFilter::DEBUG,
        _ => LevelFilter::INFO,
    };
    let reported = cli.common.output == Output::Text
        && !cli.common.verbose
        && cli.command.is_none()
        && stdout().is_terminal()
        && stderr().is_terminal();
    let progress = stderr().is_terminal() && std::env::var_os("TERM").is_some_and(|name| name != "dumb");
    let write = |event: &Event<'_>| WRITER.get_or_init(writer).write(event);
    // Fails only if a log was set up before, which this process never does.
    let _ = tracing::subscriber::set_global_default(Log { level, reported, progress, write });
}

/// Gives the journal a moment to read what was sent, before the process ends.
pub fn finish() {
    if let Some(Writer::Journal(journal)) = WRITER.get() {
        journal.finish();
    }
}

/// Kinds of events that the result reports too.
const RESULTS: [&str; 6] = ["blocked", "changed", "failed", "held", "taken_back", "unseen"];

/// How far a run is: shown on a terminal in one line, which the next one replaces.
const PROGRESS: &str = "progress";

/// The writer of the log, once there was a line.
static WRITER: OnceLock<Writer> = OnceLock::new();

enum Writer {
    Journal(Journal),
    Text(Text),
}

impl Writer {
    fn write(&self, event: &Event<'_>) {
        match self {
            Writer::Journal(journal) => journal.write(event),
            Writer::Text(text) => text.write(event),
        }
    }
}

/// Passes on the events that are to be written.
struct Log<F> {
    level: LevelFilter,
    /// Whether the reader of the log also sees the result.
    reported: bool,
    /// Whether the log is read on a terminal that can replace a line.
    progress: bool,
    write: F,
}

impl<F: Fn(&Event<'_>) + 'static> Subscriber for Log<F> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let is_meant = match metadata.target() {
            PROGRESS => self.progress,
            target => !(self.reported && RESULTS.contains(&target)),
        };
        is_meant && *metadata.level() <= self.level
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn event(&self, event: &Event<'_>) {
        (self.write)(event);
    }

    // This program has no spans.
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

/// Whether output to this stream is coloured: it is a terminal that shows colours (TERM is not `dumb`, or CI is set), and
/// the user has not turned them off (NO_COLOR, CLICOLOR).
pub fn colour(stream: &impl RawStream) -> bool {
    AutoStream::choice(stream) != ColorChoice::Never
}

/// The text in a colour (or another style), by its code, if colours are wanted.
pub fn paint(colour: bool, code: &str, text: &str) -> String {
    if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// The writer of the log. It must never affect a run, not even if a line cannot be written.
fn writer() -> Writer {
    let _ = signals::survive_file_limit();
    let under_systemd = std::env::var_os("JOURNAL_STREAM").is_some();
    let text = |head| Writer::Text(Text { head, colour: colour(&stderr()) });
    if under_systemd && is_journal().unwrap_or(false) {
        Writer::Journal(Journal::new(journal::SOCKET, Text { head: Head::Priority, colour: false }))
    } else if under_systemd || stderr().is_terminal() {
        text(Head::Level)
    } else {
        text(Head::TimeAndLevel)
    }
}

/// Whether stderr is the stream to the journal that systemd names in JOURNAL_STREAM (systemd.exec(5)). Programs pass
/// the variable on to children with a different stderr, so the stream is compared.
fn is_journal() -> io::Result<bool> {
    let Some(stream) = std::env::var_os("JOURNAL_STREAM") else { return Ok(false) };
    let stderr = File::from(stderr().as_fd().try_clone_to_owned()?).metadata()?;
    Ok(stream == *format!("{}:{}", stderr.dev(), stderr.ino()))
}

/// The syslog priority of an event.
fn priority(level: &Level) -> u8 {
    match *level {
        Level::ERROR => 3,
        Level::WARN => 4,
        // A change. LogLevelMax=notice lets it through.
        Level::INFO => 5,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// The output of a log for the events of `say`.
#[cfg(test)]
fn written(made: impl Fn(&Event<'_>) -> String + Send + Sync + 'static, say: impl FnOnce()) -> Vec<String> {
    let (kept, lines) = std::sync::mpsc::channel();
    let write = move |event: &Event<'_>| kept.send(made(event)).unwrap();
    tracing::subscriber::with_default(Log { level: LevelFilter::TRACE, reported: false, progress: false, write }, say);
    lines.try_iter().collect()
}
