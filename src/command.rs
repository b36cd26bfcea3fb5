//! The commands, and the exit code of each way in which they can end.

use std::io::{self, IsTerminal};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use tracing::error;

use crate::cli::{Cli, Command, Common, Doctor, Output};
use crate::desired::{self, ConfigError, Desired, Loaded, SCHEMA};
use crate::explain::fib::Fib;
use crate::explain::places::Places;
use crate::log::colour;
use crate::net::{Rule, one_line};
use crate::npd::{self, Verdict};
use crate::observed::{Gap, Look, Observed};
use crate::run::{self, Outcome};
use crate::sys::{self, FibReader, Held, Lock, Node, Root};
use crate::topology::Topology;
use crate::{aftermath, doctor, explain, print, report, status};

const EXIT_OK: u8 = 0;
const EXIT_FAILED: u8 = 1;
const EXIT_TO_DO: u8 = 2;
/// What node-problem-detector takes for unknown.
const EXIT_UNKNOWN: u8 = 2;
/// `EX_USAGE` of sysexits.h.
pub const EXIT_USAGE: u8 = 64;
const EXIT_LOCKED: u8 = 75;
const EXIT_NOT_PERMITTED: u8 = 77;
const EXIT_CONFIG: u8 = 78;

/// Time that one call of crictl gets where somebody waits for the answer: it ends after twice this, at the latest.
const IN_HASTE: Duration = Duration::from_millis(300);

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
    match &cli.command {
        Some(Command::CheckConfig) => check_config(&cli.common),
        Some(Command::Explain { source, destination }) => explain(cli, *source, *destination),
        Some(Command::Schema) => print::result(Output::Json, SCHEMA).map(|()| EXIT_OK),
        Some(Command::Status) => status(cli),
        Some(Command::Doctor(asked)) => doctor(cli, asked),
        None if cli.common.output == Output::Npd => Ok(npd(cli)),
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

/// Logs an error of [`run`], as what it is.
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

fn dry_run(cli: &Cli) -> anyhow::Result<u8> {
    let desired = load(&cli.common)?.desired;
    let outcome = run::run(&desired, &mut open(cli, false)?, true);
    print::result(
        cli.common.output,
        &match cli.common.output {
            Output::Json => report::json(&outcome)?,
            Output::Text | Output::Npd => report::script(&outcome),
        },
    )?;
    Ok(match () {
        () if !outcome.could_look() => EXIT_FAILED,
        () if cli.detailed_exitcode && !outcome.converged() => EXIT_TO_DO,
        () => EXIT_OK,
    })
}

/// A dry run for node-problem-detector, which ends a plugin that takes its time, and takes a 1 for a problem.
fn npd(cli: &Cli) -> u8 {
    let look = || -> anyhow::Result<(Outcome, Look<Vec<Rule>>)> {
        let desired = load_in_haste(&cli.common)?;
        let mut node = open(cli, false)?;
        Ok((run::run(&desired, &mut node, true), npd::missing_rules(&mut node)))
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
        Verdict::Fine => EXIT_OK,
        Verdict::Problem => EXIT_FAILED,
        Verdict::Unknown => EXIT_UNKNOWN,
    }
}

fn real_run(cli: &Cli) -> anyhow::Result<u8> {
    let desired = load(&cli.common)?.desired;
    if !sys::has_net_admin().context("cannot ask for the capabilities of this process")? {
        return Err(NotPermitted.into());
    }
    let _lock = Lock::take(cli.state_dir())?;
    let (begun, mut node) = (Instant::now(), open(cli, true)?);
    node.tidy();
    aftermath::tidy(cli.durable_dir());
    let outcome = run::run(&desired, &mut node, false);
    aftermath::conclude(&desired, &mut node, &outcome, cli.durable_dir(), begun);
    let printed = print::result(
        cli.common.output,
        &match cli.common.output {
            Output::Json => report::json(&outcome)?,
            Output::Text | Output::Npd => report::text(&outcome, io::stdout().is_terminal()),
        },
    );
    // The run is over: what it did is what its exit code says, whoever could read the report.
    printed.unwrap_or_else(|error| log(&error));
    Ok(match () {
        () if outcome.not_permitted => EXIT_NOT_PERMITTED,
        () if outcome.all_well() => EXIT_OK,
        () => EXIT_FAILED,
    })
}

fn status(cli: &Cli) -> anyhow::Result<u8> {
    let desired = load_in_haste(&cli.common)?;
    let status = status::look(&desired, &mut open(cli, false)?, cli.durable_dir())?;
    print::result(
        cli.common.output,
        &match cli.common.output {
            Output::Text | Output::Npd => status.text(colour(&io::stdout())),
            Output::Json => status.json()?,
        },
    )?;
    Ok(if status.could_look() { EXIT_OK } else { EXIT_FAILED })
}

fn doctor(cli: &Cli, asked: &Doctor) -> anyhow::Result<u8> {
    let desired = load(&cli.common)?.desired;
    let root = Root::open(&asked.root).with_context(|| {
        format!("cannot open the root directory {} (--root)", one_line(&asked.root.to_string_lossy()))
    })?;
    let node = Node::open(cli.state_dir(), cli.durable_dir(), false);
    let mut node = node.context("cannot open a netlink socket to look at the network")?;
    let examination = doctor::examine(&desired, &mut node, &root, true);
    let written = asked.write.as_ref().map(|directory| doctor::review::write(&examination, directory)).transpose();
    // The findings are told in any case.
    let (review, failed) = match written {
        Ok(review) => (review.unwrap_or_default(), Ok(())),
        Err(error) => (doctor::review::Review::default(), Err(error)),
    };
    print::result(
        cli.common.output,
        &match cli.common.output {
            Output::Text | Output::Npd => doctor::report::text(&examination, &review, colour(&io::stdout())),
            Output::Json => doctor::report::json(&examination, &review)?,
        },
    )?;
    failed?;
    Ok(if examination.findings.is_empty() { EXIT_OK } else { EXIT_FAILED })
}

fn check_config(common: &Common) -> anyhow::Result<u8> {
    let loaded = load(common)?;
    // Values stand in the text as JSON has them.
    print::result(
        Output::Json,
        &match common.output {
            Output::Json => loaded.to_json()?,
            Output::Text | Output::Npd => loaded.to_yaml()?,
        },
    )?;
    Ok(EXIT_OK)
}

fn explain(cli: &Cli, source: IpAddr, destination: IpAddr) -> anyhow::Result<u8> {
    let mut reader = FibReader::open()?;
    let fib = reader.read(source, destination)?;
    if let Some(odd) = [source, destination].into_iter().find(|address| fib.is_broadcast(*address)) {
        error!("{odd} is the broadcast address of a subnet of this node; explain takes addresses of single hosts");
        return Ok(EXIT_USAGE);
    }
    let pairs = [(source, destination), (destination, source)];
    if let Some((odd, other)) = pairs.into_iter().find(|(one, other)| one.is_loopback() && !fib.is_own(*other)) {
        error!(
            "{odd} is everybody's address of itself, and leaves no host; {other} is not this node's (explain does not \
             look at route_localnet)"
        );
        return Ok(EXIT_USAGE);
    }
    let places = places(&mut open(cli, true)?, &fib, [source, destination])?;
    let mut seen = explain::explain(&fib, &places, source, destination);
    let answers: anyhow::Result<Vec<_>> = seen.legs_mut().map(|leg| reader.ask(&leg.packet)).collect();
    seen.take(&fib, answers?);
    print::result(
        cli.common.output,
        &match cli.common.output {
            Output::Json => explain::show::json(&fib, &seen)?,
            Output::Text | Output::Npd => explain::show::text(&fib, &seen),
        },
    )?;
    Ok(if seen.works() { EXIT_OK } else { EXIT_FAILED })
}

/// What the two addresses are to this node.
fn places(node: &mut Node, fib: &Fib, addresses: [IpAddr; 2]) -> anyhow::Result<Places> {
    let mut observed = Observed::default();
    loop {
        let links = fib.routes.iter().flat_map(|route| &route.hops).filter_map(|hop| hop.oif);
        match Places::of(Topology::of(&observed), addresses, links, &fib.gateways) {
            Ok(places) => return Ok(places),
            Err(Gap::Failed(why)) => return Err(anyhow!("{why}")),
            Err(Gap::Unseen(wants)) => node.look(wants, &mut observed),
        }
    }
}

fn load(common: &Common) -> Result<Loaded, ConfigError> {
    desired::load(common.config.as_deref())
}

/// The same for a look that does not wait for a crictl that hangs.
fn load_in_haste(common: &Common) -> Result<Desired, ConfigError> {
    let mut desired = load(common)?.desired;
    desired.kube_proxy.timeout = desired.kube_proxy.timeout.min(IN_HASTE);
    Ok(desired)
}

fn open(cli: &Cli, patient: bool) -> anyhow::Result<Node> {
    Node::open(cli.state_dir(), cli.durable_dir(), patient)
        .context("cannot open a netlink socket to look at the network")
}
