//! The command line.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::explain::{self, fib::Flow};
use crate::model::Family;

/// Where systemd creates the unit's directories: one until the next boot, one for longer.
const STATE_DIR: &str = "/run/node-fixer";
const DURABLE_DIR: &str = "/var/lib/node-fixer";

const AFTER_HELP: &str = "\
Examples:
  node-fixer --dry-run
  node-fixer --dry-run --output json | jq .changes
  node-fixer --config ./config.yaml --state-dir /tmp/state

Exit codes:
  0   converged; with --dry-run: everything could be read
  1   a change failed, is blocked, or did not last
  2   only with --dry-run --detailed-exitcode: there is something to do
  64  usage
  75  another run holds the lock, or --stand-back
  77  not permitted
  78  the configuration is wrong

Exit codes with --output npd:
  0   the node is as declared
  1   it differs, or a change is blocked
  2   unknown: the node or the configuration could not be read";

const EXPLAIN_HELP: &str = "\
Changes nothing and needs no privilege. The packet is assumed to be UDP, with no ports, uid 0, no mark and TOS 0,
unless options say otherwise. Each answer is compared with the kernel's own. NAT and firewall rules are not considered;
the mark that they set is given with --mark.

Examples:
  node-fixer explain 10.0.1.100 192.0.2.1
  node-fixer explain 10.0.1.100 192.0.2.1 --proto tcp --dport 443
  node-fixer explain fd00:1::64 2001:db8::1 --output json
  node-fixer explain --pods

Exit codes:
  0   the packet gets out, its reply is accepted, and the kernel agrees
  1   it breaks, the kernel disagrees, or the node could not be read
  64  usage";

const STATUS_HELP: &str = "\
Changes nothing and needs no privilege.

Examples:
  node-fixer status
  node-fixer status --output json | jq .contention

Exit codes:
  0   everything could be read
  1   a part of the node could not be read
  64  usage
  78  the configuration is wrong";

const DOCTOR_HELP: &str = "\
Changes nothing except below --write, and needs no privilege.

Examples:
  node-fixer doctor
  node-fixer doctor --write /tmp/proposed
  node-fixer doctor --root /mnt/image
  node-fixer --node node.json doctor

Exit codes:
  0   nothing found
  1   causes were found, or a file could not be read or written
  64  usage
  78  the configuration is wrong";

const CAPTURE_HELP: &str = "\
Changes nothing and needs no privilege. What it cannot read is reported, and listed in the file.

Examples:
  node-fixer capture node.json
  node-fixer capture --anonymous node.json
  node-fixer --node node.json doctor

Exit codes:
  0   captured
  1   the file could not be written, or the kernel did not answer
  64  usage
  78  the configuration is wrong";

const CHECK_HELP: &str = "\
Examples:
  node-fixer check-config
  node-fixer check-config --config ./config.yaml --output json

Exit codes:
  0   the configuration is valid
  64  usage
  78  it is wrong";

const WATCH_HELP: &str = "\
Starts each run as a separate process, which reads the configuration. watch.pace is the minimum time between two runs
that changes of the network start. SIGHUP starts a run at once; SIGTERM ends the watcher.

Examples:
  node-fixer watch
  node-fixer watch --every 1m

Exit codes:
  0   the watcher was stopped
  1   it cannot listen to the kernel's announcements
  64  usage";

const SCHEMA_HELP: &str = "\
Examples:
  node-fixer schema > node-fixer.schema.json

Exit codes:
  0   the schema was printed
  1   it could not be written
  64  usage";

/// Repair the routing of a Linux worker node: compare it with the configuration, fix what differs, check again
#[derive(Debug, PartialEq, Parser)]
#[command(name = "node-fixer", version, after_help = AFTER_HELP)]
pub struct Cli {
    /// The command, if it is not a run.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Show what a run would do; change nothing
    #[arg(long)]
    pub dry_run: bool,

    /// With --dry-run: exit 2 if there is something to do
    #[arg(long, requires = "dry_run")]
    pub detailed_exitcode: bool,

    /// The options that commands share.
    #[command(flatten)]
    pub common: Common,
}

impl Cli {
    /// Reads the arguments of this process.
    ///
    /// # Errors
    ///
    /// Wrong usage. Help and version are errors, too, which go to stdout.
    pub fn read() -> Result<Cli, clap::Error> {
        let mut arguments = std::env::args_os();
        if arguments.len() <= 1 {
            // The timer's run. Letting clap build its tables would take a fifth of the time of a run.
            return Ok(Cli::default());
        }
        Cli::from_arguments(&mut arguments)
    }

    fn from_arguments(arguments: &mut dyn Iterator<Item = OsString>) -> Result<Cli, clap::Error> {
        let mut command = Cli::definition();
        let arguments: Vec<OsString> = arguments.collect();
        let matches = command.try_get_matches_from_mut(&arguments);
        let matches = matches.map_err(|error| with_usage(error, &mut command, &arguments))?;
        let cli = Cli::from_arg_matches(&matches)?;
        let Some((kind, why)) = cli.contradiction() else { return Ok(cli) };
        // The usage that follows is that of the command.
        let named = matches.subcommand_name().and_then(|name| command.find_subcommand_mut(name));
        Err(match named {
            Some(named) => named.error(kind, why),
            None => command.error(kind, why),
        })
    }

    /// The command line with each command's options: every command accepts the shared options, before and after its
    /// name, but its help only shows those that it uses.
    pub fn definition() -> clap::Command {
        let text_or_json = PossibleValuesParser::new(["text", "json"]).map(|form| match &*form {
            "json" => Output::Json,
            _ => Output::Text,
        });
        let output = Arg::new("output")
            .long("output")
            .value_name("FORMAT")
            .help("Format of the result on stdout")
            .default_value("text")
            .value_parser(text_or_json);
        Cli::command().mut_subcommands(|command| {
            let (unused, output): (&[&str], _) = match command.get_name() {
                "check-config" => (&["state_dir", "stand_back", "node"], output.clone()),
                "explain" => (&["config", "state_dir", "stand_back"], output.clone()),
                "schema" => {
                    (&["config", "state_dir", "stand_back", "verbose", "quiet", "node"], output.clone().hide(true))
                }
                "status" | "doctor" => (&["stand_back"], output.clone()),
                "watch" => (&["node"], output.clone().hide(true)),
                "capture" => (&["stand_back", "node"], output.clone().hide(true)),
                _ => (&[], output.clone()),
            };
            let common = Common::augment_args(clap::Command::new(""));
            let hidden = common.get_arguments().filter(|arg| unused.contains(&arg.get_id().as_str()));
            let hidden: Vec<Arg> = hidden.map(|arg| arg.clone().hide(true)).collect();
            command.args(hidden).arg(output)
        })
    }

    /// What single options do not show to be wrong.
    fn contradiction(&self) -> Option<(ErrorKind, String)> {
        if let Err(why) = self.check_node() {
            return Some((ErrorKind::ArgumentConflict, why.into()));
        }
        if let Some(Command::Explain(asked)) = &self.command
            && asked.proto == ICMP
            && (asked.sport, asked.dport) != (0, 0)
        {
            return Some((ErrorKind::ValueValidation, "ICMP has no ports".into()));
        }
        if let Some(Command::Explain(asked)) = &self.command
            && let (Some(source), Some(destination)) = (asked.source, asked.destination)
        {
            if source.is_ipv4() != destination.is_ipv4() {
                let why = format!("{source} and {destination} are of different address families");
                return Some((ErrorKind::ValueValidation, why));
            }
            if let Some(odd) = [source, destination].into_iter().find(|address| !explain::is_routable(*address)) {
                let why = format!(
                    "{odd} is not an address of a single host (multicast, broadcast, link-local and unspecified \
                     addresses are not accepted)"
                );
                return Some((ErrorKind::ValueValidation, why));
            }
        }
        let why = if self.command.is_some() && self.dry_run {
            match self.command {
                Some(Command::Watch { .. }) => "--dry-run is only for runs; the watcher's runs make repairs",
                _ => "--dry-run is only for runs; this command changes nothing anyway",
            }
        } else if self.common.output == Output::Npd && (!self.dry_run || self.detailed_exitcode) {
            "--output npd requires --dry-run, without --detailed-exitcode"
        } else {
            return None;
        };
        Some((ErrorKind::ArgumentConflict, why.into()))
    }

    /// The arguments of a run with the same options.
    pub fn for_a_run(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = Vec::new();
        for (option, value) in [("--config", &self.common.config), ("--state-dir", &self.common.state_dir)] {
            args.extend(value.iter().flat_map(|value| [option.into(), value.clone().into()]));
        }
        let Common { verbose, quiet, stand_back, .. } = self.common;
        let switches = [("--verbose", verbose), ("--quiet", quiet), ("--stand-back", stand_back)];
        args.extend(switches.iter().filter(|it| it.1).map(|it| it.0.into()));
        args
    }

    /// What does not go together with a captured node, or without one.
    fn check_node(&self) -> Result<(), &'static str> {
        let more = matches!(&self.command, Some(Command::Doctor(doctor)) if !doctor.more.is_empty());
        if self.common.node.is_none() {
            return if more { Err("several captured nodes require --node before the first FILE") } else { Ok(()) };
        }
        match &self.command {
            None if !self.dry_run => Err("a captured node cannot be changed; add --dry-run"),
            Some(Command::Doctor(doctor)) if doctor.root.is_some() => {
                Err("--root is for this machine; a captured node has its own files")
            }
            Some(Command::Doctor(doctor)) if more && doctor.write.is_some() => Err("--write requires a single node"),
            None | Some(Command::Doctor(_) | Command::Explain(_) | Command::Status) => Ok(()),
            Some(_) => Err("--node is for --dry-run, doctor, explain and status"),
        }
    }

    /// The directory of the lock, and of state until the next boot.
    pub fn state_dir(&self) -> &Path {
        self.common.state_dir.as_deref().unwrap_or(Path::new(STATE_DIR))
    }

    /// The directory of state that outlives a reboot.
    pub fn durable_dir(&self) -> &Path {
        self.common.state_dir.as_deref().unwrap_or(Path::new(DURABLE_DIR))
    }
}

/// The error with the usage of the command that was called; clap leaves it out where the value of an option is wrong.
fn with_usage(mut error: clap::Error, command: &mut clap::Command, arguments: &[OsString]) -> clap::Error {
    if matches!(error.kind(), ErrorKind::InvalidValue | ErrorKind::ValueValidation) {
        let called = arguments.iter().find(|word| command.find_subcommand(word).is_some());
        let usage = match called.and_then(|name| command.find_subcommand_mut(name)) {
            Some(called) => called.render_usage(),
            None => command.render_usage(),
        };
        error.insert(ContextKind::Usage, ContextValue::StyledStr(usage));
    }
    error
}

/// An address without a prefix length.
fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| "not an address such as 10.0.1.100 or fd00::1".into())
}

/// The command line without arguments.
impl Default for Cli {
    fn default() -> Self {
        Cli { command: None, dry_run: false, detailed_exitcode: false, common: Common::default() }
    }
}

/// The options that commands share.
#[derive(Debug, Default, PartialEq, clap::Args)]
pub struct Common {
    /// Configuration file; config.d/*.yaml beside it are merged [default: /etc/node-fixer/config.yaml, else built in]
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,

    /// Format of the result on stdout
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t, global = true)]
    pub output: Output,

    /// Directory for the lock and saved state [default: /run/node-fixer; /var/lib/node-fixer for what outlives a reboot]
    #[arg(long, value_name = "DIR", global = true)]
    pub state_dir: Option<PathBuf>,

    /// Do nothing while node-fixer is installed and active on this node: for a container with the same state directory
    #[arg(long, global = true)]
    pub stand_back: bool,

    /// Answer for the captured node in this file instead of this node
    #[arg(long, value_name = "FILE", global = true)]
    pub node: Option<PathBuf>,

    /// Also log what is read
    #[arg(short, long, global = true, conflicts_with = "quiet")]
    pub verbose: bool,

    /// Log only errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
}

/// The commands other than a run.
#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum Command {
    /// Print the merged configuration, and where each value came from
    #[command(after_help = CHECK_HELP)]
    CheckConfig,
    /// Print the JSON Schema of the configuration
    #[command(after_help = SCHEMA_HELP)]
    Schema,
    /// Trace a packet and its reply through rules, routes and rp_filter, and show where it breaks
    #[command(
        after_help = EXPLAIN_HELP,
        override_usage = "node-fixer explain [OPTIONS] <SRC> <DST>\n       node-fixer explain [OPTIONS] --pods"
    )]
    Explain(Explain),
    /// Show the last run, pending and blocked changes, notices, and contention
    #[command(after_help = STATUS_HELP)]
    Status,
    /// Write everything that can be seen of this node into one JSON file, for --node
    #[command(after_help = CAPTURE_HELP)]
    Capture(Capture),
    /// Find what breaks this node again and again, with evidence and cures
    #[command(after_help = DOCTOR_HELP)]
    Doctor(Doctor),
    /// Keep running, and start a run whenever the kernel announces a change of the network
    #[command(after_help = WATCH_HELP)]
    Watch {
        /// Also start a run this often, such as 1m, if no timer does
        #[arg(long, value_name = "DURATION", value_parser = period)]
        every: Option<Duration>,
    },
}

/// Parses the time between two runs.
fn period(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if (Duration::from_secs(1)..=Duration::from_secs(86_400)).contains(&time) => Ok(time),
        Ok(_) => Err("out of range: from 1s to 1day".into()),
        Err(error) => Err(format!("not a duration such as 1m: {error}")),
    }
}

/// Which packets to explain.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct Explain {
    /// Address of a pod, or of this node
    #[arg(value_name = "SRC", value_parser = address, required_unless_present = "pods")]
    pub source: Option<IpAddr>,

    /// Address of the other end
    #[arg(value_name = "DST", value_parser = address, required_unless_present = "pods")]
    pub destination: Option<IpAddr>,

    /// Trace every pod of this node to the default gateway and to every other pod
    #[arg(long, conflicts_with_all = ["source", "iif", "mark", "uid"])]
    pub pods: bool,

    /// Interface that the packet comes in by [default: where SRC is]
    #[arg(long, value_name = "DEV")]
    pub iif: Option<OsString>,

    /// Mark of the packet, such as 0x80; its reply has none
    #[arg(long, value_name = "N", value_parser = number, default_value = "0", hide_default_value = true)]
    pub mark: u32,

    /// Protocol: udp, tcp or icmp [default: udp]
    #[arg(long, value_name = "PROTO", value_parser = protocol, default_value = "udp", hide_default_value = true)]
    pub proto: u32,

    /// Source port of the packet
    #[arg(long, value_name = "N", value_parser = port, default_value = "0", hide_default_value = true)]
    pub sport: u32,

    /// Destination port of the packet
    #[arg(long, value_name = "N", value_parser = port, default_value = "0", hide_default_value = true)]
    pub dport: u32,

    /// User id on this node that sends the packet [default: 0]
    #[arg(long, value_name = "N", value_parser = number, default_value = "0", hide_default_value = true)]
    pub uid: u32,
}

impl Explain {
    /// What rules may ask of the packet beside its addresses.
    pub fn flow(&self, family: Family) -> Flow {
        let protocol = match (self.proto, family) {
            (ICMP, Family::V6) => explain::fib::ICMPV6,
            (other, _) => other as u8,
        };
        Flow { protocol, ports: (self.sport as u16, self.dport as u16), mark: self.mark, user: self.uid }
    }
}

/// `IPPROTO_ICMP`
const ICMP: u32 = 1;

/// The number of a protocol that the kernel can be asked about.
fn protocol(text: &str) -> Result<u32, String> {
    match text {
        "icmp" => Ok(ICMP),
        "tcp" => Ok(6),
        "udp" => Ok(explain::fib::UDP.into()),
        _ => Err("not a protocol; known: udp, tcp, icmp".into()),
    }
}

fn port(text: &str) -> Result<u32, String> {
    number(text).ok().filter(|port| *port <= 65_535).ok_or_else(|| "not a port: a number from 0 to 65535".into())
}

/// A number as `ip` takes it: decimal, or hexadecimal with `0x` before it.
fn number(text: &str) -> Result<u32, String> {
    let parsed = text.strip_prefix("0x").map_or_else(|| text.parse(), |digits| u32::from_str_radix(digits, 16));
    parsed.map_err(|_| "not a number such as 128 or 0x80".into())
}

/// The options of `doctor`.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct Doctor {
    /// Read configuration files below this directory [default: /]; the network is always that of this machine
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,

    /// Write proposed files below this directory, for review; nothing is installed
    #[arg(long, value_name = "DIR")]
    pub write: Option<PathBuf>,

    /// Further captured nodes after --node FILE; with --output json, one object per line for each
    #[arg(value_name = "FILE")]
    pub more: Vec<PathBuf>,
}

/// What to write, and where.
#[derive(Debug, Clone, PartialEq, clap::Args)]
pub struct Capture {
    /// Where to write it, readable by its owner only [default: stdout]
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// Read other programs' configuration files below this directory [default: /]
    #[arg(long, value_name = "DIR")]
    pub root: Option<PathBuf>,

    /// Replace addresses, names and keys consistently, so that the file can be shared
    #[arg(long)]
    pub anonymous: bool,
}

/// Format of the result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people; a dry run prints a shell script
    #[default]
    Text,
    /// For programs
    Json,
    /// For Kubernetes' node-problem-detector; only with --dry-run: one line, and exit code 0 fine, 1 problem, 2 unknown
    Npd,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &str) -> Result<Cli, String> {
        let mut words = ["node-fixer"].into_iter().chain(arguments.split_whitespace()).map(OsString::from);
        Cli::from_arguments(&mut words).map_err(|error| error.to_string())
    }

    #[test]
    fn no_arguments_are_what_clap_makes_of_them() {
        assert_eq!(parse("").unwrap(), Cli::default());
        Cli::definition().debug_assert();
    }

    #[test]
    fn shared_options_are_accepted_before_and_after_a_command() {
        for command in ["check-config", "schema", "status", "doctor", "explain 10.0.0.1 10.0.0.2"] {
            for options in ["--config x", "--output json", "--state-dir x", "--verbose", "--quiet"] {
                let before = parse(&format!("{options} {command}"));
                assert_eq!(before, parse(&format!("{command} {options}")), "{command} {options}");
                assert_ne!(before.unwrap().common, Common::default(), "{command} {options}");
            }
        }
    }

    #[test]
    fn help_shows_only_what_a_command_uses() {
        let all = ["--config", "--output", "--state-dir", "--verbose", "--quiet", "--dry-run", "npd"];
        for (command, shown) in [
            ("", &all[..]),
            ("check-config", &["--config", "--output", "--verbose", "--quiet"]),
            ("schema", &[]),
            ("explain", &["--output", "--verbose", "--quiet"]),
            ("status", &["--config", "--output", "--state-dir", "--verbose", "--quiet"]),
            ("doctor", &["--config", "--output", "--state-dir", "--verbose", "--quiet"]),
            ("watch", &["--config", "--state-dir", "--verbose", "--quiet"]),
            ("capture", &["--config", "--state-dir", "--verbose", "--quiet"]),
        ] {
            let help = parse(&format!("{command} --help")).unwrap_err();
            let options = help.split("Examples:").next().unwrap();
            let found: Vec<_> = all.into_iter().filter(|option| options.contains(option)).collect();
            let mut shown = shown.to_vec();
            shown.sort_by_key(|option| all.iter().position(|it| it == option));
            assert_eq!(found, shown, "{help}");
            assert!(help.contains(&format!("\nExamples:\n  node-fixer {command}")), "{help}");
        }
    }

    #[test]
    fn usage_errors_show_the_usage_of_the_command() {
        for (arguments, usage) in [
            ("--dry-run status", "Usage: node-fixer status [OPTIONS]\n"),
            ("--output npd status", "Usage: node-fixer status [OPTIONS]\n"),
            ("status --output npd", "Usage: node-fixer status [OPTIONS]\n"),
            ("--output xml", "Usage: node-fixer [OPTIONS] [COMMAND]\n"),
            ("explain 10.0.0.1 x", "Usage: node-fixer explain [OPTIONS] <SRC> <DST>\n"),
            ("explain 10.0.0.1 10.0.0.2 --dport x", "Usage: node-fixer explain [OPTIONS] <SRC> <DST>\n"),
            ("watch --every x", "Usage: node-fixer watch [OPTIONS]\n"),
            ("explain 10.0.0.1 ::1", "Usage: node-fixer explain [OPTIONS] <SRC> <DST>\n"),
            ("explain 10.0.0.1 224.0.0.1", "Usage: node-fixer explain [OPTIONS] <SRC> <DST>\n"),
            ("explain 10.0.0.1", "Usage: node-fixer explain [OPTIONS] <SRC> <DST>\n"),
            ("explain --pods --proto icmp --dport 7", "ICMP has no ports"),
            ("doctor --no-such", "Usage: node-fixer doctor [OPTIONS] [FILE]...\n"),
            ("--output npd", "Usage: node-fixer [OPTIONS] [COMMAND]\n"),
        ] {
            let error = parse(arguments).unwrap_err();
            assert!(error.contains(usage), "{arguments}: {error}");
        }
    }
}
