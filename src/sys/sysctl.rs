//! Writes sysctls.
//!
//! The sysctl crate serves plain keys. It splits a key at every dot and so finds no interface with a dot in its
//! name under any spelling; keys that hold the name of an interface are written segment by segment here.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use sysctl::{Sysctl, SysctlError};

use crate::net::SysctlKey;

/// Writes the value.
///
/// # Errors
///
/// What the kernel said; `NotFound` where the key is gone, with its interface for example.
pub fn write(key: &SysctlKey, value: &str) -> io::Result<()> {
    if key.names_link() { write_path(key, value) } else { write_plain(&key.to_string(), value) }
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
    let mut path = PathBuf::from("/proc/sys");
    // No segment is empty, `.`, `..` or has a slash: SysctlKey is made of fixed words and names of interfaces.
    path.extend(key.segments().map(OsStr::from_bytes));
    OpenOptions::new().write(true).open(path)?.write_all(value.as_bytes())
}
