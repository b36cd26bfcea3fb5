//! Two agents on one node: the installed package, and a container with the same state directory. The package has
//! precedence.
//!
//! While its timer or its watcher is active, systemd keeps a directory in the state directory
//! (units/node-fixer-active.service), wherever the units were enabled. The container cannot ask systemd, and checks for
//! the directory.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::libc::O_NOFOLLOW;
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// The directory, in the state directory.
const MARK: &str = "active";
/// A file beside it, which a watcher that stands back keeps locked.
const GUEST: &str = "stands-back";

/// The installed node-fixer is active, so this one stands back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "node-fixer is installed and active on this node ({}), so this one stands back (--stand-back) until that one is \
     stopped: systemctl disable --now node-fixer.timer node-fixer-watch.service",
    mark.display()
)]
pub struct Installed {
    mark: PathBuf,
}

impl Installed {
    /// Whether it is active.
    pub fn is_active(state_dir: &Path) -> Option<Installed> {
        let mark = state_dir.join(MARK);
        mark.is_dir().then_some(Installed { mark })
    }
}

/// A watcher that stands back. Other processes can see it while this is held, however it ends.
#[derive(Debug)]
pub struct Guest {
    _file: File,
}

impl Guest {
    /// Shows that this process stands back.
    ///
    /// # Errors
    ///
    /// The file cannot be created or locked, so no other process sees it.
    pub fn shows(state_dir: &Path) -> io::Result<Guest> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).mode(0o644).custom_flags(O_NOFOLLOW).open(state_dir.join(GUEST))?;
        // Any user's status may read it, regardless of the umask.
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Guest { _file: file })
    }

    /// Whether a watcher stands back.
    pub fn is_there(state_dir: &Path) -> bool {
        let file = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(state_dir.join(GUEST));
        file.is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockShared) == Err(Errno::WOULDBLOCK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_seen_as_long_as_it_lives() {
        let directory = tempfile::tempdir().unwrap();
        assert!(!Guest::is_there(directory.path()));
        let guest = Guest::shows(directory.path()).unwrap();
        assert!(Guest::is_there(directory.path()) && Guest::is_there(directory.path()));
        drop(guest);
        assert!(!Guest::is_there(directory.path()));
    }
}
