//! One run at a time: flock(2) on a file in the state directory. The kernel releases the lock when its holder and the
//! programs that it started have ended: what they do is still part of the run. (Otherwise an nft that outlives a killed
//! run would create a table after the next run has found none.)

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc::{self, O_NOFOLLOW, O_NONBLOCK};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// How often a lock is tried whose holder is gone.
const TRIES: u32 = 20;
/// The delay in between.
const MOMENT: Duration = Duration::from_millis(10);

/// The lock. The kernel releases it when the file is closed.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

/// Another run holds the lock.
#[derive(Debug, thiserror::Error)]
#[error("another run holds the lock {file}: {holder}")]
pub struct Held {
    file: String,
    holder: String,
}

impl Lock {
    /// Takes the lock in this directory, which is created if it is missing. If another run has it, waits for this time.
    ///
    /// # Errors
    ///
    /// [`Held`] if another run has it; otherwise the file that could not be opened.
    pub fn take(directory: &Path, wait: Duration) -> anyhow::Result<Lock> {
        let path = directory.join("lock");
        // Only root may open it, because a process that can read a file can lock it. An owner of the directory may have put a
        // link or a pipe there.
        let flags = O_NOFOLLOW | O_NONBLOCK;
        let open =
            || OpenOptions::new().read(true).append(true).create(true).mode(0o600).custom_flags(flags).open(&path);
        let file = open()
            .or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => fs::create_dir_all(directory).and_then(|()| open()),
                _ => Err(error),
            })
            .with_context(|| {
                format!("cannot open the lock {}; choose a writable directory with --state-dir", path.display())
            })?;
        let is_file = file.metadata().with_context(|| format!("cannot stat the lock {}", path.display()))?.is_file();
        anyhow::ensure!(is_file, "the lock {} is not a regular file; remove it", path.display());
        let (mut tries, end) = (0..TRIES, Instant::now() + wait);
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    fcntl(&file, FcntlArg::F_SETFD(FdFlag::empty()))
                        .context("cannot pass the lock to child processes")?;
                    return Ok(Lock { file });
                }
                Err(Errno::WOULDBLOCK) if Instant::now() < end => {}
                Err(Errno::WOULDBLOCK) => match holder(&file) {
                    // The holder has just ended, and a program that it was about to start releases the lock in a
                    // moment.
                    None if tries.next().is_some() => {}
                    holder => {
                        let file = path.display().to_string();
                        let orphan = || {
                            format!(
                                "its process is gone, or is hidden from this one; to list the processes that have the file open: fuser -v {file}"
                            )
                        };
                        return Err(Held { holder: holder.unwrap_or_else(orphan), file }.into());
                    }
                },
                Err(Errno::INTR) if tries.next().is_some() => {}
                Err(errno) => return Err(errno).with_context(|| format!("cannot lock {}", path.display())),
            }
            std::thread::sleep(MOMENT);
        }
    }

    /// Takes the second lock of the same file, which protects restarts of kube-proxy; returns whether it was free. It
    /// is held until this is dropped.
    pub fn claim_restarts(&self) -> bool {
        let byte = libc::flock {
            l_type: libc::F_WRLCK as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: 0,
            l_len: 1,
            l_pid: 0,
        };
        // A file system without such locks does not hold the state directory of a watched node.
        !matches!(
            fcntl(&self.file, FcntlArg::F_OFD_SETLK(&byte)),
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES)
        )
    }

    /// Lets other runs continue. The second lock is kept.
    ///
    /// # Errors
    ///
    /// The error of flock(2).
    pub fn release(&self) -> io::Result<()> {
        Ok(flock(&self.file, FlockOperation::Unlock)?)
    }

    /// Waits until it has the lock again.
    ///
    /// # Errors
    ///
    /// The error of flock(2).
    pub fn retake(&self) -> io::Result<()> {
        loop {
            match flock(&self.file, FlockOperation::LockExclusive) {
                Err(Errno::INTR) => {}
                other => return Ok(other?),
            }
        }
    }
}

/// The holder of the lock, as the kernel shows it in /proc/locks: `1: FLOCK  ADVISORY  WRITE 4711 fe:01:1234 0 EOF`.
fn holder(file: &File) -> Option<String> {
    let metadata = file.metadata().ok()?;
    let (major, minor) = (nix::sys::stat::major(metadata.dev()), nix::sys::stat::minor(metadata.dev()));
    let inode = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let of_file = |line: &&str| line.contains(" FLOCK ") && line.split_whitespace().any(|field| field == inode);
    let pid = locks.lines().find(of_file)?.split_whitespace().nth(4)?;
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(format!("process {pid} ({})", crate::model::one_line(name.trim_end())))
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
        let error = format!("{:#}", Lock::take(&state, Duration::ZERO).unwrap_err());
        assert!(error.contains("cannot open the lock") && !elsewhere.exists(), "{error}");
        fs::remove_file(&lock).unwrap();
        mkfifo(&lock, Mode::S_IRWXU).unwrap();
        let error = format!("{:#}", Lock::take(&state, Duration::ZERO).unwrap_err());
        assert!(error.contains("is not a regular file; remove it"), "{error}");
        fs::remove_file(&lock).unwrap();
        let held = Lock::take(&state, Duration::ZERO).unwrap();
        assert!(Lock::take(&state, Duration::ZERO).unwrap_err().is::<Held>());
        drop(held);
        Lock::take(&state, Duration::ZERO).unwrap();
    }
}
