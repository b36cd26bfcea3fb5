//! Small files that are read with suspicion and written whole or not at all.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};

/// A larger one is none of ours: the ledger of as many addresses as can be declared has a third of it.
const MAX_BYTES: u64 = 16 << 20;

/// Reads a text file of ours; `None` if there is none.
///
/// # Errors
///
/// It cannot be read, or is no regular file of a sane size; with the kind `InvalidData`: it is no UTF-8.
pub fn read(path: &Path) -> io::Result<Option<String>> {
    // Neither a link to elsewhere nor a pipe that nobody writes.
    let opened = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return Err(io::Error::other("it is no regular file of a sane size"));
    }
    let mut text = Vec::with_capacity(metadata.len() as usize + 1);
    file.take(MAX_BYTES).read_to_end(&mut text)?;
    String::from_utf8(text).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Puts a file that anybody may read in the place of the one with this name: whole or not at all, whenever the power
/// goes.
///
/// # Errors
///
/// The directory cannot be written.
pub fn replace(directory: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    super::survive_file_limit()?;
    // One run at a time writes here, under the lock: a fixed name leaves nothing behind.
    let new = directory.join(format!("{name}.new"));
    // What an interrupted run has left goes; and what another owner of the directory has put there is not written to.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut written = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&new)?;
    // Whatever the umask.
    written.set_permissions(fs::Permissions::from_mode(0o644))?;
    written.write_all(content)?;
    written.sync_all()?;
    fs::rename(&new, directory.join(name))?;
    File::open(directory)?.sync_all()
}
