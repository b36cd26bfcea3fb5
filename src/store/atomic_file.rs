//! Small files that are read defensively and written atomically.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::libc::{ENXIO, O_NOCTTY, O_NOFOLLOW, O_NONBLOCK};

/// Larger files are not node-fixer's: a ledger with the maximum number of addresses has a third of it.
const MAX_BYTES: u64 = 16 << 20;

/// Reads a text file of node-fixer's; `None` if it does not exist.
///
/// # Errors
///
/// It cannot be read, or is not a regular file of plausible size; with the kind `InvalidData`: it is not UTF-8.
pub fn read(path: &Path) -> io::Result<Option<String>> {
    // Neither follows a link nor waits for the writer of a pipe.
    let Some(text) = content(path, O_NOFOLLOW)? else {
        return Err(io::Error::other("not a regular file, or too large"));
    };
    let Some(text) = text else { return Ok(None) };
    String::from_utf8(text).map(Some).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Reads a file in a directory of another owner, which may contain a link; `None` if it does not exist. Anything
/// that is not a regular file of plausible size, such as a pipe or /dev/null, has no content.
///
/// # Errors
///
/// It cannot be read.
pub fn read_of_others(path: &Path) -> io::Result<Option<String>> {
    let text = content(path, 0)?.unwrap_or_else(|| Some(Vec::new()));
    Ok(text.map(|text| String::from_utf8_lossy(&text).into_owned()))
}

/// The content of a file, if it exists; `None` if it is not a regular file of plausible size. Does not wait for the
/// writer of a pipe.
fn content(path: &Path, flags: i32) -> io::Result<Option<Option<Vec<u8>>>> {
    let opened = OpenOptions::new().read(true).custom_flags(flags | O_NONBLOCK | O_NOCTTY).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Some(None)),
        // A socket cannot be opened at all.
        Err(error) if error.raw_os_error() == Some(ENXIO) => return Ok(None),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return Ok(None);
    }
    let mut text = Vec::with_capacity(metadata.len() as usize + 1);
    file.take(MAX_BYTES).read_to_end(&mut text)?;
    Ok(Some(Some(text)))
}

/// Name of the temporary file for the file with this name.
fn temporary(name: &str) -> String {
    format!("{name}.new")
}

/// Removes what an interrupted run may have left beside the file with this name. Only under the lock.
pub fn tidy(directory: &Path, name: &str) {
    // Without permission to write here, this process has left nothing here.
    let _ = fs::remove_file(directory.join(temporary(name)));
}

/// Replaces a file that anyone may read, atomically and durably.
///
/// # Errors
///
/// The directory cannot be written.
pub fn replace(directory: &Path, name: &str, content: &[u8]) -> io::Result<()> {
    crate::signals::survive_file_limit()?;
    // Only one run at a time writes here, under the lock. With a fixed name the next run knows what to remove.
    let new = directory.join(temporary(name));
    // A leftover of an interrupted run is removed, and a file that the owner of the directory put there is not written
    // to.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let written = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&new)?;
    if let Err(error) = fill(written, content).and_then(|()| fs::rename(&new, directory.join(name))) {
        let _ = fs::remove_file(&new);
        return Err(error);
    }
    File::open(directory)?.sync_all()
}

fn fill(mut file: File, content: &[u8]) -> io::Result<()> {
    // Regardless of the umask.
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn what_is_not_a_file_delays_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        fs::create_dir(at("directory")).unwrap();
        fs::write(at("file"), "text").unwrap();
        File::create(at("large")).unwrap().set_len(MAX_BYTES + 1).unwrap();
        symlink("/dev/null", at("masked")).unwrap();
        symlink("file", at("link")).unwrap();
        for (name, ours, of_others) in [
            ("none", Some(None), None),
            ("file", Some(Some("text")), Some("text")),
            ("pipe", None, Some("")),
            ("socket", None, Some("")),
            ("directory", None, Some("")),
            ("large", None, Some("")),
            ("masked", None, Some("")),
            ("link", None, Some("text")),
        ] {
            assert_eq!(read(&at(name)).ok().as_ref().map(|text| text.as_deref()), ours, "{name}");
            assert_eq!(read_of_others(&at(name)).unwrap().as_deref(), of_others, "{name}");
        }
    }

    #[test]
    fn a_file_that_cannot_take_its_place_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let names =
            || fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
        fs::create_dir_all(directory.path().join("taken/by")).unwrap();
        replace(directory.path(), "taken", b"text").unwrap_err();
        assert_eq!(names(), ["taken"]);
        fs::write(directory.path().join("taken.new"), "half").unwrap();
        tidy(directory.path(), "taken");
        assert_eq!(names(), ["taken"]);
    }
}
