//! The log as text: one line per event, without any byte that could affect a terminal. A line that cannot be written is
//! lost; nothing else changes.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use rustix::io::Errno;
use rustix::net::SendFlags;
use tracing::{Event, Level};

use super::event::Said;
use super::paint;
use crate::model::one_line;

/// What a line begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// The priority in angle brackets, as the journal reads it from a stream (sd-daemon(3)). The journal adds the time.
    Priority,
    /// The level. The reader of the stream adds the time, or is a person at a terminal.
    Level,
    /// Time and level.
    TimeAndLevel,
}

/// Writes events to stderr.
#[derive(Debug)]
pub struct Text {
    /// What a line begins with.
    pub head: Head,
    /// Whether the stream is a terminal that shows colours.
    pub colour: bool,
}

impl Text {
    /// Writes an event.
    pub fn write(&self, event: &Event<'_>) {
        let said = Said::of(event);
        let is_progress = event.metadata().target() == super::PROGRESS;
        let shown = is_progress && !said.message.is_empty();
        let begin = if PROGRESS_SHOWN.swap(shown, Ordering::Relaxed) { CLEARED } else { "" };
        let line = match is_progress {
            true => one_line(&said.message).into_owned(),
            false => self.line(event.metadata().level(), &said, SystemTime::now()),
        };
        let line = begin.to_owned() + &line;
        let _ = match self.head {
            Head::Priority => send(line.as_bytes()),
            // In one write, so that lines of two processes do not mix.
            Head::Level | Head::TimeAndLevel => io::stderr().write_all(line.as_bytes()),
        };
    }

    fn line(&self, level: &Level, said: &Said, now: SystemTime) -> String {
        let paint = |code: &str, text: &str| paint(self.colour, code, text);
        let mut line = match self.head {
            Head::Priority => format!("<{}>", super::priority(level)),
            Head::Level => String::new(),
            Head::TimeAndLevel => paint(DIM, &humantime::format_rfc3339_seconds(now).to_string()) + " ",
        };
        if self.head != Head::Priority {
            line += &paint(colour_of(level), &format!("{level:>5}"));
            line.push(' ');
        }
        line += &one_line(&said.message);
        for value in &said.fields {
            let text = value.in_a_line();
            // Writing to a string cannot fail.
            let _ = write!(line, " {}{}{}", paint(ITALIC, value.name), paint(DIM, "="), one_line(&text));
        }
        line.push('\n');
        line
    }
}

/// Whether the line at which the terminal's cursor stands shows progress.
static PROGRESS_SHOWN: AtomicBool = AtomicBool::new(false);
/// Back to the beginning of the line, and all of it removed (ECMA-48, EL).
const CLEARED: &str = "\r\x1b[K";

const DIM: &str = "2";
const ITALIC: &str = "3";

fn colour_of(level: &Level) -> &'static str {
    match *level {
        Level::ERROR => "31",
        Level::WARN => "33",
        Level::INFO => "32",
        Level::DEBUG | Level::TRACE => "34",
    }
}

/// To the stream to the journal, without waiting. What it does not accept at once is lost.
fn send(line: &[u8]) -> io::Result<()> {
    match rustix::net::send(io::stderr(), line, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
        Err(Errno::NOTSOCK) => io::stderr().write_all(line),
        other => Ok(other.map(drop)?),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn lines(head: Head, colour: bool, say: impl FnOnce()) -> String {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let text = Text { head, colour };
        crate::log::written(move |event| text.line(event.metadata().level(), &Said::of(event), now), say).concat()
    }

    fn some_events() {
        tracing::error!(error = "no", "failed");
        tracing::warn!("blocked");
        tracing::info!(command = %"ip route add default", times = 5, "changed");
        tracing::debug!("looking");
    }

    #[test]
    fn what_a_line_begins_with() {
        for (head, expected) in [
            (
                Head::Priority,
                "<3>failed error=\"no\"\n<4>blocked\n<5>changed command=ip route add default times=5\n<7>looking\n",
            ),
            (
                Head::Level,
                "ERROR failed error=\"no\"\n WARN blocked\n INFO changed command=ip route add default times=5\n\
                 DEBUG looking\n",
            ),
            (
                Head::TimeAndLevel,
                "2023-11-14T22:13:20Z ERROR failed error=\"no\"\n2023-11-14T22:13:20Z  WARN blocked\n\
                 2023-11-14T22:13:20Z  INFO changed command=ip route add default times=5\n\
                 2023-11-14T22:13:20Z DEBUG looking\n",
            ),
        ] {
            assert_eq!(lines(head, false, some_events), expected, "{head:?}");
        }
    }

    #[test]
    fn colours_are_the_only_escape_sequences() {
        let bad = "a\nb\x1b[31m\r\0\u{202e}\u{9b}c\u{7f}\u{7}";
        let say = || {
            some_events();
            tracing::warn!(reason = bad, command = %bad, error = ?bad, "{bad}");
        };
        let plain = lines(Head::TimeAndLevel, false, say);
        assert_eq!(plain.lines().count(), 5, "{plain:?}");
        assert!(!plain.contains(|c: char| c != '\n' && (c.is_control() || c == '\u{202e}')), "{plain:?}");
        let coloured = lines(Head::TimeAndLevel, true, say);
        let shown = ["2", "3", "31", "33", "32", "34", "0"];
        let without = shown.iter().fold(coloured, |text, code| text.replace(&format!("\x1b[{code}m"), ""));
        assert_eq!(without, plain);
    }
}
