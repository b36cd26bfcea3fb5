//! `node-fixer doctor` of many captured nodes.

use std::io;
use std::path::{Path, PathBuf};

use super::subject::Subject;
use super::{EXIT_FAILED, EXIT_OK};
use crate::cli::{Cli, Output};
use crate::doctor::review::Review;
use crate::doctor::{self, Drops};
use crate::history::memory::Patience;
use crate::log::colour;
use crate::model::one_line;
use crate::report::print;

/// Examines captured nodes, and writes what it finds of each: as a JSON object on a line of its own, with the name of the
/// file as `node`, or as text. One after the other, because threads would add 50 KiB to the program, and a shell can start
/// several processes.
pub(super) fn doctor(cli: &Cli, files: &[PathBuf]) -> anyhow::Result<u8> {
    let mut fine = true;
    for file in files {
        let (text, is_fine) = one(cli, file);
        print::result(cli.common.output, &text)?;
        fine &= is_fine;
    }
    Ok(if fine { EXIT_OK } else { EXIT_FAILED })
}

/// The findings of one node, and whether there are none.
fn one(cli: &Cli, file: &Path) -> (String, bool) {
    let name = file.to_string_lossy();
    examined(cli, file, &name).unwrap_or_else(|error| {
        let why = format!("{error:#}");
        let text = match cli.common.output {
            Output::Json => serde_json::json!({ "node": name, "error": why }).to_string() + "\n",
            Output::Text | Output::Npd => format!("== {}\n{}\n", one_line(&name), one_line(&why)),
        };
        (text, false)
    })
}

fn examined(cli: &Cli, file: &Path, name: &str) -> anyhow::Result<(String, bool)> {
    let subject = Subject::captured(file)?;
    let desired = subject.load(&cli.common)?.desired;
    let mut host = subject.open(cli, Patience::AnswerNow)?;
    let root = host.root();
    let examination = doctor::examine(&desired, &mut host, &root, Drops::Counted);
    let review = Review::default();
    let text = match cli.common.output {
        Output::Json => {
            let found = doctor::show::json(&examination, &review)?;
            format!("{{\"node\":{},{}", serde_json::to_string(name)?, found.get(1..).unwrap_or_default())
        }
        Output::Text | Output::Npd => {
            format!("== {}\n{}", one_line(name), doctor::show::text(&examination, &review, colour(&io::stdout())))
        }
    };
    Ok((text, examination.findings.is_empty()))
}
