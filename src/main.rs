//! The program: arguments, log, command, exit code. It decides nothing.

use std::process::ExitCode;

use node_fixer::cli::Cli;
use node_fixer::report::print;
use node_fixer::{command, log};

fn main() -> ExitCode {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(usage) => {
            // Help and version go to stdout. If writing fails, there is nowhere to report it.
            let _ = print::usage(&usage);
            return ExitCode::from(if usage.use_stderr() { command::EXIT_USAGE } else { 0 });
        }
    };
    log::init(&cli);
    let code = command::run(&cli).unwrap_or_else(|error| {
        command::log(&error);
        command::exit_code_of(&error)
    });
    log::finish();
    ExitCode::from(code)
}
