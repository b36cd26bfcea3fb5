//! Reads and writes sysctls.
//!
//! The sysctl crate handles plain keys. It splits a key at every dot, and so finds no interface with a dot in its name,
//! however it is written; keys with an interface are written segment by segment here.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use sysctl::{Sysctl, SysctlError};

use crate::model::SysctlKey;
use crate::store::atomic_file;
use crate::sysctl_d::{OURS, OURS_IN};

/// Where a container has a writable /proc/sys: its own is read-only, and container runtimes mount nothing below /proc. Both
/// show the sysctls of the network namespace of the process that opens them.
const WRITABLE: &str = "/host/proc/sys";

/// Writes the value. If the key is gone, with its interface for example, nothing is written.
///
/// # Errors
///
/// The kernel's error.
pub fn write(key: &SysctlKey, value: &str) -> io::Result<()> {
    // An empty write is not a write; an empty line clears a list.
    let value = if value.is_empty() { "\n" } else { value };
    let mut written =
        if key.names_link() { write_path(&path(key), value) } else { write_plain(&key.to_string(), value) };
    let is_read_only = |error: &io::Error| error.kind() == io::ErrorKind::ReadOnlyFilesystem;
    if written.as_ref().is_err_and(is_read_only) && Path::new(WRITABLE).is_dir() {
        written = write_path(&below(WRITABLE, key), value);
    }
    match written {
        // ENOENT is also the error for a value that names an unknown object, such as a congestion control.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !path(key).exists() => Ok(()),
        written => written,
    }
}

/// Reads the value, without surrounding white space; `None` if the key does not exist.
///
/// # Errors
///
/// The kernel's error. Some keys can only be written.
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

/// The names in a directory of sysctls: interfaces, `all` and `default`.
///
/// # Errors
///
/// It cannot be listed. A missing directory has no names.
pub fn names(directory: &str) -> io::Result<Vec<Box<[u8]>>> {
    let entries = match fs::read_dir(Path::new("/proc/sys").join(directory)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    entries.map(|entry| Ok(entry?.file_name().as_bytes().into())).collect()
}

/// node-fixer's file in /etc/sysctl.d; `None` if it does not exist.
///
/// # Errors
///
/// It cannot be read.
pub fn persisted() -> io::Result<Option<String>> {
    atomic_file::read_of_others(Path::new(OURS))
}

/// Name of node-fixer's file in its directory.
fn ours_name() -> &'static str {
    OURS.rsplit('/').next().unwrap_or_default()
}

/// Removes what an interrupted run may have left in /etc/sysctl.d.
pub fn tidy() {
    atomic_file::tidy(Path::new(OURS_IN), ours_name());
}

/// Writes node-fixer's file in /etc/sysctl.d atomically, or removes it.
///
/// # Errors
///
/// The error, and how to fix it.
pub fn persist(text: Option<&str>) -> Result<(), String> {
    let write = |text: &str| {
        // An image without systemd and procps has no such directory. Only this level is created: a missing /etc is an
        // error.
        match DirBuilder::new().mode(0o755).create(OURS_IN) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // Programs do not read a name with the suffix of its temporary file.
        atomic_file::replace(Path::new(OURS_IN), ours_name(), text.as_bytes())
    };
    let done = match text {
        Some(text) => write(text),
        None => fs::remove_file(OURS),
    };
    done.map_err(|error| {
        let cure = "; this requires root, and for node-fixer's unit write access to the directory: systemctl edit node-fixer, \
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

fn write_path(path: &Path, value: &str) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}

fn path(key: &SysctlKey) -> PathBuf {
    below("/proc/sys", key)
}

fn below(directory: &str, key: &SysctlKey) -> PathBuf {
    let mut path = PathBuf::from(directory);
    // No segment is empty, `.`, `..` or contains a slash: SysctlKey ensures that.
    path.extend(key.segments().map(OsStr::from_bytes));
    path
}
