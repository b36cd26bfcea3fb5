//! The commands, and the exit code of each way in which they can end.

use std::io::{self, IsTerminal, Write};

use anyhow::Context;

use crate::cli::{Cli, Command, Common, Output};
use crate::desired::{self, ConfigError, Loaded, SCHEMA};
use crate::sys::{self, Held, Lock, Node};
use crate::{report, run};

const EXIT_OK: u8 = 0;
const EXIT_FAILED: u8 = 1;
const EXIT_TO_DO: u8 = 2;
/// `EX_USAGE` of sysexits.h.
pub const EXIT_USAGE: u8 = 64;
const EXIT_LOCKED: u8 = 75;
const EXIT_NOT_PERMITTED: u8 = 77;
const EXIT_CONFIG: u8 = 78;

/// This process may not change the network.
#[derive(Debug, thiserror::Error)]
#[error(
    "not permitted to change the network: this process lacks the capability CAP_NET_ADMIN; run it as root or give \
     it the capability, or look without changing anything: --dry-run"
)]
struct NotPermitted;

/// Carries out the command line; returns the exit code.
///
/// # Errors
///
/// What kept it from doing so; [`exit_code_of`] knows the code.
pub fn run(cli: &Cli) -> anyhow::Result<u8> {
    match cli.command {
        Some(Command::CheckConfig) => check_config(&cli.common),
        Some(Command::Schema) => print(SCHEMA).map(|()| EXIT_OK),
        None if cli.dry_run => dry_run(cli),
        None => real_run(cli),
    }
}

/// The exit code of an error of [`run`].
pub fn exit_code_of(error: &anyhow::Error) -> u8 {
    if error.is::<ConfigError>() {
        EXIT_CONFIG
    } else if error.is::<Held>() {
        EXIT_LOCKED
    } else if error.is::<NotPermitted>() {
        EXIT_NOT_PERMITTED
    } else {
        EXIT_FAILED
    }
}

fn dry_run(cli: &Cli) -> anyhow::Result<u8> {
    let desired = load(&cli.common)?.desired;
    let outcome = run::run(&desired, &mut open(cli)?, true);
    print(&match cli.common.output {
        Output::Text => report::script(&outcome),
        Output::Json => report::json(&outcome)?,
    })?;
    Ok(match () {
        () if !outcome.could_look() => EXIT_FAILED,
        () if cli.detailed_exitcode && !outcome.converged() => EXIT_TO_DO,
        () => EXIT_OK,
    })
}

fn real_run(cli: &Cli) -> anyhow::Result<u8> {
    let desired = load(&cli.common)?.desired;
    if !sys::has_net_admin().context("cannot ask for the capabilities of this process")? {
        return Err(NotPermitted.into());
    }
    let _lock = Lock::take(&cli.state_dir)?;
    let outcome = run::run(&desired, &mut open(cli)?, false);
    print(&match cli.common.output {
        Output::Text => report::text(&outcome, io::stdout().is_terminal()),
        Output::Json => report::json(&outcome)?,
    })?;
    Ok(match () {
        () if outcome.not_permitted => EXIT_NOT_PERMITTED,
        () if outcome.all_well() => EXIT_OK,
        () => EXIT_FAILED,
    })
}

fn check_config(common: &Common) -> anyhow::Result<u8> {
    let loaded = load(common)?;
    print(&match common.output {
        Output::Text => loaded.to_yaml()?,
        Output::Json => loaded.to_json()?,
    })?;
    Ok(EXIT_OK)
}

fn load(common: &Common) -> Result<Loaded, ConfigError> {
    desired::load(common.config.as_deref())
}

fn open(cli: &Cli) -> anyhow::Result<Node> {
    Node::open(&cli.state_dir, !cli.dry_run).context("cannot open a netlink socket to look at the network")
}

/// Writes the result. Whoever closed the pipe has read enough.
fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write the result to stdout"),
    }
}
