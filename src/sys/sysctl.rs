//! Reads and writes sysctls.
//!
//! The sysctl crate serves plain keys. It splits a key at every dot and so finds no interface with a dot in its
//! name under any spelling; keys that hold the name of an interface are written segment by segment here.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use sysctl::{Sysctl, SysctlError};

use super::file;
use crate::net::SysctlKey;
use crate::sysctl_d::{OURS, OURS_IN};

/// Writes the value. Where the key is gone, with its interface for example, there is nothing to write.
///
/// # Errors
///
/// What the kernel said.
pub fn write(key: &SysctlKey, value: &str) -> io::Result<()> {
    // To write nothing is no write: an empty line is what empties a list.
    let value = if value.is_empty() { "\n" } else { value };
    let written = if key.names_link() { write_path(key, value) } else { write_plain(&key.to_string(), value) };
    match written {
        // The same is said of a value that names what is not there, a congestion control for one.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !path(key).exists() => Ok(()),
        written => written,
    }
}

/// Reads the value, without the white space around it; `None` where there is no such key.
///
/// # Errors
///
/// What the kernel said. Some keys can only be written.
pub fn read(key: &SysctlKey) -> io::Result<Option<String>> {
    match fs::read(path(key)) {
        Ok(value) => Ok(Some(String::from_utf8_lossy(&value).trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::IsADirectory => {
            Err(io::Error::other("it is a directory; name a key in it"))
        }
        Err(error) => Err(error),
    }
}

/// The names in a directory of sysctls: interfaces, and what stands beside them.
///
/// # Errors
///
/// It cannot be listed. One that is not there has no names.
pub fn names(directory: &str) -> io::Result<Vec<Box<[u8]>>> {
    let entries = match fs::read_dir(Path::new("/proc/sys").join(directory)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    entries.map(|entry| Ok(entry?.file_name().as_bytes().into())).collect()
}

/// Our file in /etc/sysctl.d; `None` where there is none.
///
/// # Errors
///
/// It cannot be read.
pub fn persisted() -> io::Result<Option<String>> {
    file::read_of_others(Path::new(OURS))
}

/// Name of our file in its directory.
fn ours_name() -> &'static str {
    OURS.rsplit('/').next().unwrap_or_default()
}

/// Removes what an interrupted run may have left in /etc/sysctl.d.
pub fn tidy() {
    file::tidy(Path::new(OURS_IN), ours_name());
}

/// Writes our file in /etc/sysctl.d, whole or not at all, or removes it.
///
/// # Errors
///
/// What kept it from doing so, and what to do about it.
pub fn persist(text: Option<&str>) -> Result<(), String> {
    let write = |text: &str| {
        // An image without systemd and procps has none. Not more than that: who has no /etc is told so.
        match DirBuilder::new().mode(0o755).create(OURS_IN) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // Nothing reads a name that ends as that of its temporary file does.
        file::replace(Path::new(OURS_IN), ours_name(), text.as_bytes())
    };
    let done = match text {
        Some(text) => write(text),
        None => fs::remove_file(OURS),
    };
    done.map_err(|error| {
        let cure = "; it takes root, and in node-fixer's unit a door to the directory: systemctl edit node-fixer, \
                    [Service], ReadWritePaths=-/etc/sysctl.d";
        let may_not = matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem);
        let verb = if text.is_some() { "write" } else { "remove" };
        format!("cannot {verb} {OURS}: {error}{}", if may_not { cure } else { "" })
    })
}

fn write_plain(name: &str, value: &str) -> io::Result<()> {
    let written = sysctl::Ctl::new(name).and_then(|control| control.set_value_string(value));
    match written {
        Ok(_) => Ok(()),
        Err(SysctlError::IoError(error)) => Err(error),
        Err(SysctlError::NotFound(_)) => Err(io::ErrorKind::NotFound.into()),
        Err(other) => Err(io::Error::other(other.to_string())),
    }
}

fn write_path(key: &SysctlKey, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path(key))?.write_all(value.as_bytes())
}

fn path(key: &SysctlKey) -> PathBuf {
    let mut path = PathBuf::from("/proc/sys");
    // No segment is empty, `.`, `..` or has a slash: SysctlKey takes care of that.
    path.extend(key.segments().map(OsStr::from_bytes));
    path
}
