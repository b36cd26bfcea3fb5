//! Named network namespaces: which exist, which processes are in them, and how one is removed.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Once;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::libc::{O_NOFOLLOW, O_PATH};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::ApplyError;
use crate::model::netns::{DIRECTORY, NetnsId, NetnsName, Occupied, SeenNetns};
use crate::model::one_line;
use crate::sorted;

/// Gives this process its own mounts.
static OWN_MOUNTS: Once = Once::new();

/// How to give the service what it lacks.
const CURE: &str =
    "for the service, install a drop-in; see: head -n 4 /usr/share/doc/node-fixer/examples/node-fixer-namespaces.conf";

/// All names, sorted.
pub fn names() -> anyhow::Result<Vec<SeenNetns>> {
    let entries = match fs::read_dir(DIRECTORY) {
        // The first name creates the directory. In the sandbox of a service, /run may be another one in which it cannot
        // be created.
        Err(error) if error.kind() == ErrorKind::NotFound => {
            if statvfs("/run").is_ok_and(|run| run.flags().contains(FsFlags::ST_RDONLY)) {
                bail!("{DIRECTORY} is not visible to this process, which has its own /run; {CURE}");
            }
            return Ok(Vec::new());
        }
        other => other?,
    };
    let device = fs::metadata("/proc/thread-self/ns/net")?.dev();
    let mut mounted = mounted()?;
    let mut seen = Vec::new();
    for entry in entries {
        let Some(name) = NetnsName::new(entry?.file_name().as_bytes()) else { continue };
        match fs::symlink_metadata(path(&name)) {
            Ok(file) => {
                let id = id_of(&file);
                if id.device == device && !mounted.contains(&id.inode) {
                    mounted = self::mounted()?; // It did not exist a moment ago.
                }
                let is_one = id.device == device && mounted.contains(&id.inode);
                seen.push(SeenNetns { name, id: is_one.then_some(id) });
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {} // gone meanwhile
            Err(error) => return Err(error).with_context(|| name.to_string()),
        }
    }
    Ok(sorted::list(seen, |a, b| a.name.cmp(&b.name)))
}

fn path(name: &NetnsName) -> PathBuf {
    Path::new(DIRECTORY).join(OsStr::from_bytes(name.as_bytes()))
}

/// Opens what is mounted there, without reading it.
fn open(name: &NetnsName) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(O_PATH | O_NOFOLLOW).open(path(name))
}

fn id_of(metadata: &fs::Metadata) -> NetnsId {
    NetnsId { device: metadata.dev(), inode: metadata.ino(), changed: (metadata.ctime(), metadata.ctime_nsec()) }
}

/// The inodes of all network namespaces that are mounted anywhere. (Without unsafe code a file is only known to be a
/// namespace, not of which kind.)
fn mounted() -> io::Result<BTreeSet<u64>> {
    let mounts = fs::read("/proc/thread-self/mountinfo")?;
    // The fourth field is the mounted part of its file system: `net:[4026531840]`.
    let root = |line: &[u8]| {
        let root = str::from_utf8(line.split(|byte| *byte == b' ').nth(3)?).ok()?;
        root.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()
    };
    Ok(sorted::set(mounts.split(|byte| *byte == b'\n').filter_map(root)))
}

/// The namespace at this path; `None` if there is none.
pub fn id_at(path: &Path) -> io::Result<Option<NetnsId>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(Some(id_of(&metadata))),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The network namespaces of all processes, thread by thread. If one process cannot be read, the whole look fails,
/// because it may be in any namespace.
pub fn occupied() -> anyhow::Result<Occupied> {
    // Processes of other users may be hidden (hidepid=), and in its own pid namespace a program sees only its own.
    if std::process::id() == 1 || !Path::new("/proc/1").exists() {
        bail!("not all processes are visible here, which requires the host's pid namespace and CAP_SYS_PTRACE; {CURE}");
    }
    let mut occupied = Occupied::new();
    for process in fs::read_dir("/proc")? {
        let Some(pid) = number(&process?.file_name()) else { continue };
        let Some(threads) = still_there(fs::read_dir(format!("/proc/{pid}/task")))? else { continue };
        for thread in threads {
            let Some(thread) = still_there(thread)? else { break };
            let Some(tid) = number(&thread.file_name()) else { continue };
            match still_there(fs::metadata(format!("/proc/{pid}/task/{tid}/ns/net"))) {
                Ok(Some(namespace)) => {
                    occupied.insert(id_of(&namespace), pid);
                }
                Ok(None) => {}
                Err(error) => bail!(hidden(pid, &error)),
            }
        }
    }
    Ok(occupied)
}

fn number(name: &OsStr) -> Option<u32> {
    name.to_str()?.parse().ok()
}

/// `None` for a process that has ended meanwhile.
fn still_there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn hidden(pid: u32, error: &io::Error) -> String {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = one_line(name.trim_end()).into_owned();
    format!(
        "cannot read the network namespace of process {pid} ({name}): {error}; this requires CAP_SYS_PTRACE; {CURE}"
    )
}

/// Does what `ip netns del` does, if this is still the same namespace and still without a process. Returns false if the
/// name no longer exists.
pub fn remove(name: &NetnsName, id: NetnsId) -> Result<bool, ApplyError> {
    let refused = |why: String| ApplyError::Refused(why);
    // In mounts of this process's own, so that it is never left half done: what is unmounted here stays mounted on the
    // host until its file is deleted.
    OWN_MOUNTS.call_once(|| {
        let _ = unshare(CloneFlags::CLONE_NEWNS)
            .and_then(|()| mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>));
    });
    let file = match open(name) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(refused(error.to_string())),
    };
    let occupied = occupied().map_err(|error| refused(format!("{error:#}")))?;
    if let Some(pid) = occupied.get(&id) {
        return Err(refused(format!("process {pid} is in it now; left untouched")));
    }
    // Checked last: if its inode had changed meanwhile, a process in it would not have been recognised.
    match file.metadata() {
        Ok(now) if id_of(&now) == id => {}
        Ok(_) => return Err(refused("the name now belongs to another namespace; left untouched".into())),
        Err(error) => return Err(refused(error.to_string())),
    }
    // Through the open file: exactly the mount that was looked at, whatever the name refers to by now.
    umount2(format!("/proc/thread-self/fd/{}", file.as_raw_fd()).as_str(), MntFlags::MNT_DETACH).map_err(|errno| {
        match errno {
            Errno::EPERM => ApplyError::Lacks(format!("unmounting it requires CAP_SYS_ADMIN ({errno}); {CURE}")),
            _ => refused(format!("cannot unmount it: {errno}")),
        }
    })?;
    drop(file);
    fs::remove_file(path(name)).map(|()| true).or_else(|error| match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => Ok(true),
        Some(Errno::EROFS | Errno::EACCES | Errno::EPERM) => {
            Err(ApplyError::Lacks(format!("cannot delete its file: {DIRECTORY} must be writable ({error}); {CURE}")))
        }
        Some(Errno::EBUSY) => Err(refused("another namespace is mounted below it; see: findmnt /run/netns".into())),
        _ => Err(refused(format!("cannot delete its file: {error}"))),
    })
}

/// Whether a namespace of this name exists.
pub fn exists(name: &NetnsName) -> bool {
    !matches!(fs::symlink_metadata(path(name)), Err(error) if error.kind() == ErrorKind::NotFound)
}
