//! What is remembered between runs: `state.json` in the state directory. It counts until the next boot, in the
//! network namespace that it was written in. Whatever is wrong with it is a warning and a fresh start.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::memory::Memory;

/// Version of the file; another one is a fresh start.
const VERSION: u32 = 1;
/// A larger one is none of ours.
const MAX_BYTES: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    version: u32,
    boot_id: String,
    /// Inode of the network namespace.
    netns: u64,
    memory: Memory,
}

/// What the last run remembered; nothing, if there is nothing that counts.
pub fn recall(directory: &Path) -> Memory {
    let file = file(directory);
    match read(&file) {
        Ok(saved) => saved.map(|saved| saved.memory).unwrap_or_default(),
        Err(why) => {
            warn!(file = %file.display(), why, "what was remembered does not count; this is a fresh start");
            Memory::default()
        }
    }
}

fn file(directory: &Path) -> PathBuf {
    directory.join("state.json")
}

/// What is saved; `None` if there is nothing yet.
fn read(path: &Path) -> Result<Option<Saved>, String> {
    // Neither a link to elsewhere nor a pipe that nobody writes.
    let opened = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let text = read_file(file).map_err(|error| error.to_string())?;
    let saved: Saved = serde_json::from_str(&text).map_err(|error| error.to_string())?;
    let here = origin().map_err(|error| error.to_string())?;
    match () {
        () if saved.version != VERSION => Err(format!("it has version {}, not {VERSION}", saved.version)),
        () if saved.boot_id != here.0 => Err("it is from another boot".into()),
        () if saved.netns != here.1 => Err("it is from another network namespace".into()),
        () => Ok(Some(saved)),
    }
}

fn read_file(file: File) -> io::Result<String> {
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > MAX_BYTES {
        return Err(io::Error::other("it is no regular file of a sane size"));
    }
    let mut text = Vec::with_capacity(metadata.len() as usize + 1);
    file.take(MAX_BYTES).read_to_end(&mut text)?;
    String::from_utf8(text).map_err(io::Error::other)
}

/// Remembers for the next run: whole or not at all, whenever the power goes.
pub fn remember(directory: &Path, memory: &Memory) -> io::Result<()> {
    let (boot_id, netns) = origin()?;
    let text = serde_json::to_vec(&Saved { version: VERSION, boot_id, netns, memory: memory.clone() })?;
    // One run at a time writes here, under the lock: a fixed name leaves nothing behind.
    let new = directory.join("state.json.new");
    let opened =
        OpenOptions::new().write(true).create(true).truncate(true).custom_flags(O_NOFOLLOW).mode(0o644).open(&new);
    let mut written = opened?;
    // Whatever the umask: a dry run of anybody may know what was remembered.
    written.set_permissions(fs::Permissions::from_mode(0o644))?;
    written.write_all(&text)?;
    written.sync_all()?;
    fs::rename(&new, file(directory))?;
    File::open(directory)?.sync_all()
}

/// The boot and the network namespace that this is.
fn origin() -> io::Result<(String, u64)> {
    let mut boot_id = [0; 64];
    let length = File::open("/proc/sys/kernel/random/boot_id")?.read(&mut boot_id)?;
    let boot_id = String::from_utf8_lossy(boot_id.get(..length).unwrap_or_default()).trim().to_owned();
    Ok((boot_id, fs::metadata("/proc/thread-self/ns/net")?.ino()))
}
