//! The messages between the watcher and the runs that it starts: `KEY=VALUE` words. The other side may be of another
//! version, and skips unknown words. The watcher sends them in an environment variable, a run on its stdout.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// The environment variable that shows a run that the watcher has started it.
pub const VARIABLE: &str = "NODE_FIXER_WATCH";

/// The message from the watcher to a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Order {
    /// Whether the run is only for the restart that is due.
    pub restart: bool,
    /// Where marks are sent.
    pub port: u32,
    /// When the first announcement came that caused the run, in microseconds on the clock since boot; 0 if there was
    /// none.
    pub event: u64,
    /// Announcements that were not counted yet.
    pub events: u64,
    /// Runs that were started and not counted yet, including this one.
    pub runs: u64,
    /// The error of the last run, as in its [`Report::said`].
    pub said: u64,
    /// As in the [`Report::unsaved`] of the last run.
    pub unsaved: u64,
    /// As in the [`Report::forgotten`] of the last run.
    pub forgotten: u64,
}

/// The message from a run to the watcher at its end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// The minimum time between the starts of two runs: the configured one, or longer after repairs that could not be
    /// saved.
    pub pace: Option<Duration>,
    /// How long until a restart is due.
    pub restart: Option<Duration>,
    /// How long until a repair that was held back is due.
    pub repair: Option<Duration>,
    /// Whether it has counted the events and runs in the message.
    pub counted: bool,
    /// The digest of the error that it ended with, or with which it could not write the metrics; 0 for none.
    pub said: u64,
    /// The digest of what it has reported, if the state directory could not save that; otherwise 0.
    pub unsaved: u64,
    /// How many runs in a row, up to this one, made repairs that the state directory could not save. Another program may
    /// undo these at once, and no run could know, so each such run delays the next one.
    pub forgotten: u64,
}

impl Order {
    /// The message from the watcher to this process, if the watcher has started it.
    pub fn of_this_process() -> Option<Order> {
        std::env::var(VARIABLE).ok().map(|text| Order::parse(&text))
    }

    fn parse(text: &str) -> Order {
        let words = words(text);
        let number = |key| words.get(key).copied().unwrap_or_default();
        Order {
            restart: number("restart") == 1,
            port: u32::try_from(number("port")).unwrap_or_default(),
            event: number("event"),
            events: number("events"),
            runs: number("runs"),
            said: number("said"),
            unsaved: number("unsaved"),
            forgotten: number("forgotten"),
        }
    }
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Order { restart, port, event, events, runs, said, unsaved, forgotten } = self;
        let restart = u8::from(*restart);
        write!(f, "restart={restart} port={port} event={event} events={events} runs={runs} ")?;
        write!(f, "said={said} unsaved={unsaved} forgotten={forgotten}")
    }
}

impl Report {
    /// The message of a run.
    pub fn parse(text: &str) -> Report {
        let words = words(text);
        let time = |key| words.get(key).copied().map(Duration::from_millis);
        Report {
            pace: time("pace"),
            restart: time("restart"),
            repair: time("repair"),
            counted: words.get("counted") == Some(&1),
            said: words.get("said").copied().unwrap_or_default(),
            unsaved: words.get("unsaved").copied().unwrap_or_default(),
            forgotten: words.get("forgotten").copied().unwrap_or_default(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { pace, restart, repair, counted, said, unsaved, forgotten } = self;
        write!(f, "counted={} said={said} unsaved={unsaved} forgotten={forgotten}", u8::from(*counted))?;
        for (key, time) in [("pace", pace), ("restart", restart), ("repair", repair)] {
            if let Some(time) = time {
                // Rounded up, because a run that comes a moment early would have to wait.
                write!(f, " {key}={}", time.as_micros().div_ceil(1000))?;
            }
        }
        writeln!(f)
    }
}

fn words(text: &str) -> BTreeMap<&str, u64> {
    text.split_whitespace()
        .filter_map(|word| word.split_once('='))
        .flat_map(|(key, it)| Some((key, it.parse().ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let order =
            Order { restart: true, port: 7, event: u64::MAX, events: 1, runs: 2, said: 3, unsaved: 4, forgotten: 5 };
        assert_eq!(Order::parse(&order.to_string()), order);
        let report = Report {
            pace: Some(Duration::from_millis(10)),
            restart: Some(Duration::ZERO),
            repair: None,
            counted: true,
            said: 9,
            unsaved: 10,
            forgotten: 11,
        };
        assert_eq!(Report::parse(&report.to_string()), report);
        let early = Report { repair: Some(Duration::from_micros(1)), ..Report::default() };
        assert_eq!(Report::parse(&early.to_string()).repair, Some(Duration::from_millis(1)));
    }

    #[test]
    fn what_makes_no_sense_is_skipped() {
        for text in
            ["", "=", "pace", "pace=", "pace=-1", "pace=1s", "new=5 x=y", "counted=2", "said=18446744073709551616"]
        {
            assert_eq!(Report::parse(text), Report::default(), "{text}");
            assert_eq!(Order::parse(text), Order::default(), "{text}");
        }
    }
}
