//! One run at a time: flock(2) on a file in the state directory. The kernel lets go of it when its holder ends,
//! however that ends, and the programs that it has started: what they do is still part of its run. (An nft that goes on
//! after its run was killed would else make a table that the next run has just found to be none.)

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// How often a lock is tried whose holder is gone.
const TRIES: u32 = 20;
/// How long it is waited between.
const MOMENT: Duration = Duration::from_millis(10);

/// The lock, held until it is dropped: the kernel unlocks the file when it is closed.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Another run holds the lock.
#[derive(Debug, thiserror::Error)]
#[error("another run holds the lock {file}: {holder}")]
pub struct Held {
    file: String,
    holder: String,
}

impl Lock {
    /// Takes the lock in this directory, which is made if it is missing.
    ///
    /// # Errors
    ///
    /// [`Held`] if another run has it; else what could not be opened.
    pub fn take(directory: &Path) -> anyhow::Result<Lock> {
        let path = directory.join("lock");
        // Nobody else may open it: whoever can read a file can lock it.
        // Who else may write the directory can have put a link to elsewhere there, or a pipe.
        let flags = O_NOFOLLOW | O_NONBLOCK;
        let open =
            || OpenOptions::new().read(true).append(true).create(true).mode(0o600).custom_flags(flags).open(&path);
        let file = open()
            .or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => fs::create_dir_all(directory).and_then(|()| open()),
                _ => Err(error),
            })
            .with_context(|| format!("cannot open the lock {}; name a writable --state-dir", path.display()))?;
        let is_file = file.metadata().with_context(|| format!("cannot look at the lock {}", path.display()))?.is_file();
        anyhow::ensure!(is_file, "the lock {} is no regular file; remove it", path.display());
        let mut tries = 0..TRIES;
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty())).context("cannot hand the lock on")?;
                    return Ok(Lock { _file: file });
                }
                Err(Errno::WOULDBLOCK) => match holder(&file) {
                    // It has just ended, and something that it was about to start lets go in a moment.
                    None if tries.next().is_some() => {}
                    holder => {
                        let file = path.display().to_string();
                        let orphan =
                            || format!("it was killed, and a program that it started still runs; see: fuser -v {file}");
                        return Err(Held { holder: holder.unwrap_or_else(orphan), file }.into());
                    }
                },
                Err(Errno::INTR) if tries.next().is_some() => {}
                Err(errno) => return Err(errno).with_context(|| format!("cannot lock {}", path.display())),
            }
            std::thread::sleep(MOMENT);
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
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(format!("process {pid} ({})", crate::net::one_line(name.trim_end())))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn a_lock_is_a_file_of_its_own() {
        let directory = tempfile::tempdir().unwrap();
        let (state, elsewhere) = (directory.path().join("state"), directory.path().join("elsewhere"));
        fs::create_dir(&state).unwrap();
        let lock = state.join("lock");
        symlink(&elsewhere, &lock).unwrap();
        let error = format!("{:#}", Lock::take(&state).unwrap_err());
        assert!(error.contains("cannot open the lock") && !elsewhere.exists(), "{error}");
        fs::remove_file(&lock).unwrap();
        mkfifo(&lock, Mode::S_IRWXU).unwrap();
        let error = format!("{:#}", Lock::take(&state).unwrap_err());
        assert!(error.contains("is no regular file; remove it"), "{error}");
        fs::remove_file(&lock).unwrap();
        let held = Lock::take(&state).unwrap();
        assert!(Lock::take(&state).unwrap_err().is::<Held>());
        drop(held);
        Lock::take(&state).unwrap();
    }
}
