//! The command line.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

/// Where systemd makes the directory that the unit asks for.
const STATE_DIR: &str = "/run/node-fixer";

const AFTER_HELP: &str = "\
Exit codes:
  0   converged; with --dry-run: it could look
  1   something failed, is blocked, or is still wrong after the second look
  2   only with --dry-run --detailed-exitcode: there is something to do
  64  usage
  75  another run holds the lock
  77  not permitted
  78  the configuration is wrong";

/// Keeps the network of a Linux worker node as it was declared: looks, mends what differs, looks again.
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

    /// Where the lock and what is remembered between runs are kept
    #[arg(long, value_name = "DIR", default_value = STATE_DIR)]
    pub state_dir: PathBuf,

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
        Ok(cli)
    }
}

/// As without any argument.
impl Default for Cli {
    fn default() -> Self {
        Cli {
            command: None,
            dry_run: false,
            detailed_exitcode: false,
            state_dir: STATE_DIR.into(),
            common: Common::default(),
        }
    }
}

/// What every command takes.
#[derive(Debug, Default, PartialEq, clap::Args)]
pub struct Common {
    /// Configuration; config.d/*.yaml beside it are merged [default: /etc/node-fixer/config.yaml, or else built in]
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,

    /// Form of the result on stdout
    #[arg(long, value_enum, default_value_t, global = true)]
    pub output: Output,

    /// Log more: what is looked at
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    pub verbose: bool,

    /// Log errors only
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

/// What to do instead of a run.
#[derive(Debug, Clone, Copy, PartialEq, Subcommand)]
pub enum Command {
    /// Print the merged configuration, and where each value came from
    CheckConfig,
    /// Print the JSON Schema of the configuration
    Schema,
}

/// Form of the result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people; of a dry run, a shell script
    #[default]
    Text,
    /// For programs
    Json,
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
