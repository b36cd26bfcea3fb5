//! `node-fixer capture`.

use std::fs::{OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;
use tracing::warn;

use super::EXIT_OK;
use super::subject::{Subject, in_haste};
use crate::capture;
use crate::cli::{Capture, Cli, Output};
use crate::model::one_line;
use crate::report::print;
use crate::signals;

/// Captures this node into a file, or to stdout.
pub(super) fn capture(cli: &Cli, asked: &Capture) -> anyhow::Result<u8> {
    let loaded = Subject::This.load(&cli.common)?;
    let hurried = in_haste(loaded.desired.clone());
    let root = asked.root.as_deref().unwrap_or(Path::new("/"));
    let node = capture::take(loaded, &hurried, [cli.state_dir(), cli.durable_dir()], root)?;
    let node = if asked.anonymous { capture::anonymous(node)? } else { node };
    for what in node.unseen() {
        warn!("could not be read: {what}");
    }
    let text = serde_json::to_string(&node)? + "\n";
    match &asked.file {
        Some(file) => write(file, &print::harmless_json(&text))
            .with_context(|| format!("cannot write {}", one_line(&file.to_string_lossy())))?,
        None => print::result(Output::Json, &text)?,
    }
    Ok(EXIT_OK)
}

/// Writes a file that only its owner may read, because configuration files can contain passwords.
fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    signals::survive_file_limit()?;
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file)?;
    if file.metadata()?.is_file() {
        // One that was there already may be readable for others.
        file.set_permissions(Permissions::from_mode(0o600))?;
    }
    file.write_all(text.as_bytes())?;
    Ok(())
}
