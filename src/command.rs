//! The commands and their exit codes.

mod capture;
mod explain;
mod fleet;
mod subject;

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use anyhow::Context;
use tracing::{error, info};

use crate::cli::{Cli, Command, Common, Doctor, Output};
use crate::conclude;
use crate::config::{ConfigError, SCHEMA};
use crate::doctor::Drops;
use crate::engine;
use crate::history::contention;
use crate::history::memory::{Patience, digest};
use crate::host::Host;
use crate::log::colour;
use crate::model::{Rule, one_line};
use crate::node::{self, Root};
use crate::observed::Look;
use crate::outcome::{EXIT_FAILED, EXIT_NOT_PERMITTED, Outcome, RunMode};
use crate::report::npd::{self, Health};
use crate::report::print;
use crate::store::{Held, Installed, Lock, Store};
use crate::watch::order::{Order, Report};
use crate::{clock, doctor, report, status, watch};
use subject::Subject;

const EXIT_OK: u8 = 0;
const EXIT_TO_DO: u8 = 2;
/// node-problem-detector's code for unknown.
const EXIT_UNKNOWN: u8 = 2;
/// `EX_USAGE` of sysexits.h.
pub const EXIT_USAGE: u8 = 64;
const EXIT_LOCKED: u8 = 75;
const EXIT_CONFIG: u8 = 78;

/// Time limit for one call of crictl when a person or a monitor waits for the answer. The command ends after at most
/// twice this time.
const IN_HASTE: Duration = Duration::from_millis(300);

/// How long a run of the watcher waits for another run.
const FOR_THE_LOCK: Duration = Duration::from_secs(3);
const NO_NETLINK: &str = "cannot open a netlink socket";

/// This process is not allowed to change the network.
#[derive(Debug, thiserror::Error)]
#[error(
    "not permitted to change the network: CAP_NET_ADMIN is missing; run as root or grant the capability, or use \
     --dry-run, which changes nothing"
)]
struct NotPermitted;

/// Runs the command line; returns the exit code.
///
/// # Errors
///
/// What prevented it; [`exit_code_of`] has the code.
pub fn run(cli: &Cli) -> anyhow::Result<u8> {
    match &cli.command {
        Some(Command::CheckConfig) => check_config(&cli.common),
        Some(Command::Explain(asked)) => explain::explain(cli, asked),
        Some(Command::Schema) => print::result(Output::Json, SCHEMA).map(|()| EXIT_OK),
        Some(Command::Status) => status(cli),
        Some(Command::Watch { every }) => watch::watch(cli, *every).map(|()| EXIT_OK),
        Some(Command::Doctor(asked)) => doctor(cli, asked),
        Some(Command::Capture(asked)) => capture::capture(cli, asked),
        None if cli.common.output == Output::Npd => Ok(npd(cli)),
        None if cli.dry_run => dry_run(cli),
        None => match Order::of_this_process() {
            Some(order) => Ok(watched_run(cli, &order)),
            None => real_run(cli),
        },
    }
}

/// The exit code of an error of [`run`].
pub fn exit_code_of(error: &anyhow::Error) -> u8 {
    if error.is::<ConfigError>() {
        EXIT_CONFIG
    } else if error.is::<Held>() || error.is::<Installed>() {
        EXIT_LOCKED
    } else if error.is::<NotPermitted>() {
        EXIT_NOT_PERMITTED
    } else {
        EXIT_FAILED
    }
}

/// Logs an error of [`run`] with its kind.
pub fn log(error: &anyhow::Error) {
    let text = format!("{error:#}");
    let text = one_line(&text);
    match exit_code_of(error) {
        EXIT_CONFIG => error!(target: "configuration", "{text}"),
        EXIT_LOCKED => error!(target: "locked", "{text}"),
        EXIT_NOT_PERMITTED => error!(target: "not_permitted", "{text}"),
        _ => error!("{text}"),
    }
}

/// The installed node-fixer for which this one stands back now.
fn stands_back(cli: &Cli) -> Option<Installed> {
    let may = cli.common.stand_back && cli.common.node.is_none();
    may.then(|| Installed::is_active(cli.state_dir())).flatten()
}

fn dry_run(cli: &Cli) -> anyhow::Result<u8> {
    let subject = Subject::of(cli)?;
    let desired = subject.load(&cli.common)?.desired;
    let outcome = match stands_back(cli) {
        Some(installed) => {
            info!("{installed}");
            Outcome::new(RunMode::Dry)
        }
        None => engine::dry_run(&desired, &mut subject.open(cli, Patience::AnswerNow)?).0,
    };
    show(cli, || report::json(&outcome), || report::script(&outcome))?;
    Ok(if !outcome.could_look() {
        EXIT_FAILED
    } else if cli.detailed_exitcode && !outcome.converged() {
        EXIT_TO_DO
    } else {
        EXIT_OK
    })
}

/// A dry run for node-problem-detector, which kills slow plugins and takes exit code 1 for a problem.
fn npd(cli: &Cli) -> u8 {
    let look = || -> anyhow::Result<(Outcome, Look<Vec<Rule>>)> {
        let subject = Subject::of(cli)?;
        let desired = subject.load_in_haste(&cli.common)?;
        if stands_back(cli).is_some() {
            return Ok((Outcome::new(RunMode::Dry), Ok(Vec::new())));
        }
        let mut host = subject.open(cli, Patience::AnswerNow)?;
        let (outcome, mut seen) = engine::dry_run(&desired, &mut host);
        Ok((outcome, npd::missing_rules(&mut host, &mut seen)))
    };
    let (verdict, line) = look().map_or_else(
        |error| {
            log(&error);
            npd::unknown(&format!("{error:#}"))
        },
        |(outcome, missing)| npd::judge(&outcome, &missing),
    );
    if let Err(error) = print::result(Output::Npd, &line) {
        log(&error);
        return EXIT_UNKNOWN;
    }
    match verdict {
        Health::Fine => EXIT_OK,
        Health::Problem => EXIT_FAILED,
        Health::Unknown => EXIT_UNKNOWN,
    }
}

fn real_run(cli: &Cli) -> anyhow::Result<u8> {
    let desired = Subject::This.load(&cli.common)?.desired;
    let mut host = open_to_repair(cli, Patience::Wait, Duration::ZERO)?;
    let (begun, outcome) = (Instant::now(), engine::run(&desired, &mut host));
    let _ = conclude::conclude(&desired, &mut host, &outcome, cli.durable_dir(), begun, None);
    let printed = show(cli, || report::json(&outcome), || report::text(&outcome, io::stdout().is_terminal()));
    // The run is over. Its exit code reports what it did, even if the report could not be written.
    printed.unwrap_or_else(|error| log(&error));
    Ok(outcome.exit_code())
}

/// Opens this host for a run that may change something, with the lock.
fn open_to_repair(cli: &Cli, patience: Patience, wait: Duration) -> anyhow::Result<Host> {
    if !node::has_net_admin().context("cannot read the capabilities of this process")? {
        return Err(NotPermitted.into());
    }
    let lock = Lock::take(cli.state_dir(), wait)?;
    // Under the lock: a run of the installed one has ended, or waits.
    if let Some(installed) = stands_back(cli) {
        return Err(installed.into());
    }
    let mut store = Store::new(cli.state_dir(), cli.durable_dir(), patience).locked(lock);
    if patience == Patience::Wait && watch::state::shown(cli.state_dir()).is_some() {
        store = store.leaving_restarts();
    }
    let host = Host::open(store).context(NO_NETLINK)?;
    host.tidy();
    conclude::tidy(cli.durable_dir());
    Ok(host)
}

/// A run that the watcher has started. Its stdout goes to the watcher. An error that the last run has reported is not
/// reported again.
fn watched_run(cli: &Cli, order: &Order) -> u8 {
    let mut report = Report::default();
    let code = repair_for(cli, order, &mut report).unwrap_or_else(|error| {
        report.said = digest(&format!("{error:#}"));
        if report.said != order.said {
            log(&error);
        }
        exit_code_of(&error)
    });
    if let Err(error) = print::result(Output::Json, &report.to_string()) {
        log(&error);
    }
    code
}

fn repair_for(cli: &Cli, order: &Order, report: &mut Report) -> anyhow::Result<u8> {
    let desired = Subject::This.load(&cli.common)?.desired;
    let patience = if order.restart { Patience::Due } else { Patience::Watched };
    let mut host = open_to_repair(cli, patience, FOR_THE_LOCK)?;
    if !order.restart {
        host = host.watched_at(order.port, order.unsaved);
    }
    let (begun, outcome) = (Instant::now(), engine::run(&desired, &mut host));
    let concluded = conclude::conclude(&desired, &mut host, &outcome, cli.durable_dir(), begun, Some(order));
    (report.counted, report.said, report.unsaved) = (concluded.counted, concluded.said, outcome.unsaved);
    report.forgotten = if concluded.forgotten { order.forgotten.saturating_add(1) } else { 0 };
    report.pace = Some(desired.watch.pace.0.max(contention::wait(report.forgotten)));
    report.repair = outcome.repair_due.into_iter().chain(outcome.tried_again_after()).min();
    let now = clock::boot_time().unwrap_or_default();
    report.restart = outcome.restart_due.map(|due| due.saturating_sub(now));
    Ok(outcome.exit_code())
}

fn status(cli: &Cli) -> anyhow::Result<u8> {
    let subject = Subject::of(cli)?;
    let desired = subject.load_in_haste(&cli.common)?;
    let mut host = subject.open(cli, Patience::AnswerNow)?;
    let status = status::look(&desired, &mut host, (cli.state_dir(), cli.durable_dir()))?;
    show(cli, || status.json(), || status.text(colour(&io::stdout())))?;
    Ok(if status.could_look() { EXIT_OK } else { EXIT_FAILED })
}

fn doctor(cli: &Cli, asked: &Doctor) -> anyhow::Result<u8> {
    if !asked.more.is_empty() {
        let files: Vec<_> = cli.common.node.iter().chain(&asked.more).cloned().collect();
        return fleet::doctor(cli, &files);
    }
    let subject = Subject::of(cli)?;
    let desired = subject.load(&cli.common)?.desired;
    let mut host = subject.open(cli, Patience::AnswerNow)?;
    let root = match &asked.root {
        None => host.root(),
        Some(root) => Root::open(root).with_context(|| {
            format!("cannot open the root directory {} (--root)", one_line(&root.to_string_lossy()))
        })?,
    };
    let examination = doctor::examine(&desired, &mut host, &root, Drops::Counted);
    let written = asked.write.as_ref().map(|directory| doctor::review::write(&examination, directory)).transpose();
    // Findings are reported even if the files could not be written.
    let (review, failed) = match written {
        Ok(review) => (review.unwrap_or_default(), Ok(())),
        Err(error) => (doctor::review::Review::default(), Err(error)),
    };
    let text = || doctor::show::text(&examination, &review, colour(&io::stdout()));
    show(cli, || doctor::show::json(&examination, &review), text)?;
    failed?;
    Ok(if examination.findings.is_empty() { EXIT_OK } else { EXIT_FAILED })
}

fn check_config(common: &Common) -> anyhow::Result<u8> {
    let loaded = Subject::This.load(common)?;
    let text = match common.output {
        Output::Json => loaded.to_json()?,
        Output::Text | Output::Npd => loaded.to_yaml()? + "# ok: the configuration is valid\n",
    };
    // The YAML text contains values in JSON form.
    print::result(Output::Json, &text)?;
    Ok(EXIT_OK)
}

/// Writes a result in the requested format.
fn show(
    cli: &Cli,
    json: impl FnOnce() -> serde_json::Result<String>,
    text: impl FnOnce() -> String,
) -> anyhow::Result<()> {
    let form = cli.common.output;
    print::result(
        form,
        &match form {
            Output::Json => json()?,
            Output::Text | Output::Npd => text(),
        },
    )
}
