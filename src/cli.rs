//! The command line.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

use crate::explain;

/// Where systemd makes the directories that the unit asks for: one until the next boot, one for longer.
const STATE_DIR: &str = "/run/node-fixer";
const DURABLE_DIR: &str = "/var/lib/node-fixer";

const AFTER_HELP: &str = "\
Exit codes:
  0   converged; with --dry-run: it could look
  1   something failed, is blocked, or is still wrong after the second look
  2   only with --dry-run --detailed-exitcode: there is something to do
  64  usage
  75  another run holds the lock
  77  not permitted
  78  the configuration is wrong";

const EXPLAIN_HELP: &str = "\
Changes nothing and needs no privilege. Each answer is compared with the kernel's own. Firewalls, NAT and marks are not
considered.

Exit codes:
  0   the packet gets out, its reply is accepted, and the kernel agrees
  1   it breaks, or the kernel disagrees, or explain could not look
  64  usage";

const LOOK_HELP: &str = "\
Changes nothing and needs no privilege.

Exit codes:
  0   it could look
  1   it could not look at something
  64  usage
  78  the configuration is wrong";

const DOCTOR_HELP: &str = "\
Changes nothing except below --write, and needs no privilege.

Exit codes:
  0   nothing found
  1   causes were found, or proposed files could not be written
  64  usage
  78  the configuration is wrong";

const CHECK_HELP: &str = "\
Exit codes:
  0   the configuration is valid
  64  usage
  78  it is wrong";

/// Keeps the network of a Linux worker node as declared: looks, repairs what differs, looks again.
#[derive(Debug, PartialEq, Parser)]
#[command(name = "node-fixer", version, after_help = AFTER_HELP)]
pub struct Cli {
    /// What to do instead of a run.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Show what a run would do, change nothing
    #[arg(long)]
    pub dry_run: bool,

    /// With --dry-run: exit 2 when there is something to do
    #[arg(long, requires = "dry_run")]
    pub detailed_exitcode: bool,

    /// Directory for the lock and the state between runs [default: /run/node-fixer, and /var/lib/node-fixer for what
    /// outlives a reboot]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
}

impl Cli {
    /// Reads the arguments of this process.
    ///
    /// # Errors
    ///
    /// Wrong usage; also help and version, which are asked for and go to stdout.
    pub fn read() -> Result<Cli, clap::Error> {
        if std::env::args_os().len() <= 1 {
            // The timer's run. To have clap build its tables first costs a fifth of it.
            return Ok(Cli::default());
        }
        let cli = Cli::try_parse()?;
        if cli.command.is_some() && cli.dry_run {
            let message = "--dry-run is for runs; this command changes nothing anyway";
            return Err(Cli::command().error(ErrorKind::ArgumentConflict, message));
        }
        if let Some(Command::Explain { source, destination }) = cli.command {
            let refuse = |why: String| Err(Cli::command().error(ErrorKind::ValueValidation, why));
            if source.is_ipv4() != destination.is_ipv4() {
                return refuse(format!("{source} and {destination} are not of one address family"));
            }
            if let Some(odd) = [source, destination].into_iter().find(|address| !explain::is_routable(*address)) {
                return refuse(format!(
                    "{odd} is not the address of one host that rules and routes decide about (multicast, broadcast, \
                     link-local and unspecified ones are not)"
                ));
            }
        }
        if cli.common.output == Output::Npd && (!cli.dry_run || cli.detailed_exitcode) {
            let message = "--output npd is for --dry-run, without --detailed-exitcode";
            return Err(Cli::command().error(ErrorKind::ArgumentConflict, message));
        }
        Ok(cli)
    }
}

impl Cli {
    /// Where the lock is, and what counts until the next boot.
    pub fn state_dir(&self) -> &Path {
        self.state_dir.as_deref().unwrap_or(Path::new(STATE_DIR))
    }

    /// Where that is which outlives a boot.
    pub fn durable_dir(&self) -> &Path {
        self.state_dir.as_deref().unwrap_or(Path::new(DURABLE_DIR))
    }
}

/// As without any argument.
impl Default for Cli {
    fn default() -> Self {
        Cli { command: None, dry_run: false, detailed_exitcode: false, state_dir: None, common: Common::default() }
    }
}

/// What every command takes.
#[derive(Debug, Default, PartialEq, clap::Args)]
pub struct Common {
    /// Configuration; config.d/*.yaml beside it are merged [default: /etc/node-fixer/config.yaml, otherwise built in]
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,

    /// Form of the result on stdout
    #[arg(long, value_enum, default_value_t, global = true)]
    pub output: Output,

    /// Also log what is looked at
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    pub verbose: bool,

    /// Log errors only
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

/// What to do instead of a run.
#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum Command {
    /// Print the merged configuration, and where each value came from
    #[command(after_help = CHECK_HELP)]
    CheckConfig,
    /// Print the JSON Schema of the configuration
    Schema,
    /// Trace a packet and its reply through rules, routes and rp_filter, and show where it breaks
    #[command(after_help = EXPLAIN_HELP)]
    Explain {
        /// Address of a pod, or of this node
        #[arg(value_name = "SRC")]
        source: IpAddr,
        /// Address of the other end
        #[arg(value_name = "DST")]
        destination: IpAddr,
    },
    /// Show the last run, pending and blocked changes, notices, and contention
    #[command(after_help = LOOK_HELP)]
    Status,
    /// Look for what breaks this node again and again, with evidence and cures
    #[command(after_help = DOCTOR_HELP)]
    Doctor(Doctor),
}

/// How to look for causes.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct Doctor {
    /// Read configuration files below this directory; the network is always that of this machine
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,

    /// Write proposed files below this directory, for review; nothing is installed
    #[arg(long, value_name = "DIR")]
    pub write: Option<PathBuf>,
}

/// Form of the result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people; a dry run prints a shell script
    #[default]
    Text,
    /// For programs
    Json,
    /// For Kubernetes' node-problem-detector, only with --dry-run: one line, and exit code 0 fine, 1 problem, 2 unknown
    Npd,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_arguments_are_what_clap_makes_of_them() {
        assert_eq!(Cli::try_parse_from(["node-fixer"]).unwrap(), Cli::default());
        Cli::command().debug_assert();
    }
}
