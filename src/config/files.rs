//! Reads the files of the configuration, without parsing them.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc::O_NONBLOCK;

use super::load::ConfigError;
use super::place::Position;
use crate::sorted;

/// A larger configuration is refused without reading it.
const MAX_BYTES: u64 = 1 << 20;

/// A file's name and its text.
pub type FileText = (String, String);

fn unreadable(path: &Path, error: io::Error) -> ConfigError {
    ConfigError::Unreadable { file: path.display().to_string(), error }
}

pub(super) fn read_if_there(path: &Path) -> Result<Option<FileText>, ConfigError> {
    match read_file(path) {
        Err(ConfigError::Unreadable { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Reads a file that was not named on the command line. Does not wait for a writer of a pipe.
fn read_file(path: &Path) -> Result<FileText, ConfigError> {
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path);
    let file = file.and_then(|file| match file.metadata()?.file_type() {
        kind if kind.is_file() || kind.is_dir() || kind.is_char_device() => Ok(file),
        _ => Err(io::Error::other("not a regular file")),
    });
    read_from(path, file)
}

pub(super) fn read_from(path: &Path, file: io::Result<File>) -> Result<FileText, ConfigError> {
    let fail = |error| unreadable(path, error);
    let file = file.map_err(fail)?;
    if file.metadata().map_err(fail)?.is_dir() {
        return Err(fail(io::ErrorKind::IsADirectory.into()));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(fail)?;
    let wrong = |position: Position, message: &str| ConfigError::Wrong {
        file: path.display().to_string(),
        line: position.0,
        column: position.1,
        path: String::new(),
        message: message.into(),
    };
    if bytes.len() as u64 > MAX_BYTES {
        return Err(wrong((1, 1), "is larger than the maximum of 1 MiB"));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok((path.display().to_string(), text)),
        Err(error) => {
            let good = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
            let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
            let column = good.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
            Err(wrong((line, column), "is not valid UTF-8 from here on"))
        }
    }
}

/// A name that is easily mistaken for one that is read. Ignoring it would go unnoticed.
pub(super) fn not_read(yml: &Path) -> Result<(), ConfigError> {
    match std::fs::metadata(yml) {
        Ok(_) => Err(unreadable(yml, io::Error::other("only files named .yaml are read; rename it"))),
        Err(_) => Ok(()),
    }
}

/// Drop-ins in the order of their names.
pub(super) fn drop_ins(directory: &Path) -> Result<Vec<FileText>, ConfigError> {
    let fail = |error| unreadable(directory, error);
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fail(error)),
    };
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in entries {
        let path = entry.map_err(fail)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        match path.extension().and_then(OsStr::to_str) {
            Some("yaml") if !hidden => files.push(path),
            Some("yml") if !hidden => not_read(&path)?,
            _ => {}
        }
    }
    sorted::list(files, Ord::cmp).iter().map(|path| read_file(path)).collect()
}
