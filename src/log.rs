//! The log: on stderr, one line an event, with fields. The journal stamps its lines itself; elsewhere they get a
//! time of ours.

use std::fmt;
use std::io::{IsTerminal, stderr, stdout};
use std::time::SystemTime;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use crate::cli::{Cli, Output};

/// Sets up the log of this process.
pub fn init(cli: &Cli) {
    // On a terminal the result on stdout tells of every change already.
    let told = cli.common.output == Output::Text && stdout().is_terminal() && stderr().is_terminal();
    let level = match (cli.common.quiet, cli.common.verbose) {
        (true, _) => LevelFilter::ERROR,
        (_, true) => LevelFilter::DEBUG,
        _ if told => LevelFilter::ERROR,
        _ => LevelFilter::INFO,
    };
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let log = tracing_subscriber::fmt()
        .with_writer(stderr)
        .with_max_level(level)
        .with_target(false)
        .with_ansi(stderr().is_terminal() && !no_color);
    // systemd sets it for what writes to its journal (systemd.exec(5)).
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().init();
    } else {
        log.with_timer(Rfc3339).init();
    }
}

struct Rfc3339;

impl FormatTime for Rfc3339 {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "{}", humantime::format_rfc3339_seconds(SystemTime::now()))
    }
}
