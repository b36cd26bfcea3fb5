//! The log: on stderr, one line an event, with fields. To the journal each line says its priority, and the journal
//! adds time and level; elsewhere both are ours. A journal that listens gets the fields one by one instead.

mod event;
mod journal;
mod text;

use std::fs::File;
use std::io::{self, IsTerminal, stderr, stdout};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use journal::Journal;
pub use journal::KINDS;
use text::{Head, Text};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::cli::{Cli, Output};
use crate::sys;

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
    let write = |event: &Event<'_>| WRITER.get_or_init(writer).write(event);
    // Fails where there is a log already, as in no process of ours.
    let _ = tracing::subscriber::set_global_default(Log { level, told, write });
}

/// Before the process ends: gives the journal a moment to read what was sent.
pub fn finish() {
    if let Some(Writer::Journal(journal)) = WRITER.get() {
        journal.finish();
    }
}

/// Kinds of events that the result tells of too.
const RESULTS: [&str; 6] = ["blocked", "changed", "failed", "held", "taken_back", "unseen"];

/// What writes the log of this process, once there was a line.
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
    /// Whether whoever reads the log reads the result as well.
    told: bool,
    write: F,
}

impl<F: Fn(&Event<'_>) + 'static> Subscriber for Log<F> {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= self.level && !(self.told && RESULTS.contains(&metadata.target()))
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn event(&self, event: &Event<'_>) {
        (self.write)(event);
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

/// What writes the log. Nothing in it may change what a run does: not even where no line can be written.
fn writer() -> Writer {
    let _ = sys::survive_file_limit();
    let under_systemd = std::env::var_os("JOURNAL_STREAM").is_some();
    let text = |head| Writer::Text(Text { head, colour: colour(&stderr()) });
    match () {
        () if under_systemd && is_journal().unwrap_or(false) => {
            Writer::Journal(Journal::new(journal::SOCKET, Text { head: Head::Priority, colour: false }))
        }
        () if under_systemd => text(Head::Level),
        () => text(Head::TimeAndLevel),
    }
}

/// Whether stderr is the stream to the journal that systemd names (systemd.exec(5)). Programs pass the variable on
/// to what they start with another stderr.
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
        // A change: what LogLevelMax=notice lets through.
        Level::INFO => 5,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// What a log makes of the events of `say`.
#[cfg(test)]
fn written(made: impl Fn(&Event<'_>) -> String + Send + Sync + 'static, say: impl FnOnce()) -> Vec<String> {
    let (kept, lines) = std::sync::mpsc::channel();
    let write = move |event: &Event<'_>| kept.send(made(event)).unwrap();
    tracing::subscriber::with_default(Log { level: LevelFilter::TRACE, told: false, write }, say);
    lines.try_iter().collect()
}
