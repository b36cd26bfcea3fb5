//! One run at a time: flock(2) on a file in the state directory. The kernel lets go of it when its holder ends,
//! however that ends.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::Context;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// The lock, held until it is dropped.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

/// Another run holds the lock.
#[derive(Debug, thiserror::Error)]
#[error("another run holds the lock {file}{}", .holder.as_ref().map_or(String::new(), |holder| format!(": {holder}")))]
pub struct Held {
    file: String,
    holder: Option<String>,
}

impl Lock {
    /// Takes the lock in this directory, which is made if it is missing.
    ///
    /// # Errors
    ///
    /// [`Held`] if another run has it; else what could not be opened.
    pub fn take(directory: &Path) -> anyhow::Result<Lock> {
        let path = directory.join("lock");
        let open = || OpenOptions::new().read(true).append(true).create(true).open(&path);
        let file = open()
            .or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => fs::create_dir_all(directory).and_then(|()| open()),
                _ => Err(error),
            })
            .with_context(|| format!("cannot open the lock {}; name a writable --state-dir", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Lock { _file: file }),
            Err((file, Errno::EWOULDBLOCK)) => {
                Err(Held { file: path.display().to_string(), holder: holder(&file) }.into())
            }
            Err((_, errno)) => Err(errno).with_context(|| format!("cannot lock {}", path.display())),
        }
    }
}

/// Who holds the lock, by what the kernel shows of it in /proc/locks:
/// `1: FLOCK  ADVISORY  WRITE 4711 fe:01:1234 0 EOF`.
fn holder(file: &File) -> Option<String> {
    let metadata = file.metadata().ok()?;
    let (major, minor) = (nix::sys::stat::major(metadata.dev()), nix::sys::stat::minor(metadata.dev()));
    let inode = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let of_file = |line: &&str| line.split_whitespace().any(|field| field == inode);
    let pid = locks.lines().find(of_file)?.split_whitespace().nth(4)?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_else(|_| "of another user".into());
    Some(format!("process {pid} ({})", crate::net::one_line(name.trim_end())))
}
