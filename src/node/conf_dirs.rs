//! Configuration files below a root directory: `/`, or a copy of one, in which absolute links stay inside.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use crate::model::one_line;
use crate::sorted;
use crate::sysctl_d::{ConfFile, DIRECTORIES, Settings};
use crate::tape::{Tape, Taped, bytes_of, text_of};

/// No operator writes a larger file.
const MAX_BYTES: u64 = 1 << 20;

/// How often opening a file is tried.
const MOST_TRIES: usize = 200;

/// The root directory of a system.
#[derive(Debug)]
pub struct Root {
    directory: Option<File>,
    tape: Tape,
}

/// What was read, and what could not be read.
#[derive(Debug, Default)]
pub struct ConfFiles {
    /// In the order in which they apply: by name, whatever their directory.
    pub files: Vec<ConfFile>,
    /// What could not be read, and why.
    pub unread: Vec<String>,
}

impl Root {
    /// Opens this directory as the root.
    ///
    /// # Errors
    ///
    /// It cannot be opened.
    pub fn open(directory: &Path) -> io::Result<Root> {
        Root::taped(directory, &Tape::default())
    }

    /// The same, recorded.
    ///
    /// # Errors
    ///
    /// It cannot be opened.
    pub fn taped(directory: &Path, tape: &Tape) -> io::Result<Root> {
        if directory == Path::new("/") {
            return Ok(Root::of_node(tape));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Root { directory: Some(openat(CWD, directory, flags, Mode::empty())?.into()), tape: tape.clone() })
    }

    /// The root of this machine, or of the captured node whose tape it is.
    pub fn of_node(tape: &Tape) -> Root {
        Root { directory: None, tape: tape.clone() }
    }

    /// Whether this path exists.
    pub fn has(&self, path: &Path) -> bool {
        let live = || Ok(self.descriptor(path, OFlags::PATH).is_ok());
        self.tape.answer("paths", &key_of(path), live).unwrap_or_default()
    }

    /// The names in a directory.
    ///
    /// # Errors
    ///
    /// It cannot be listed.
    pub fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        if self.tape.is_empty() {
            return self.list_live(directory);
        }
        let live = || told(self.list_live(directory)).map(Names);
        untold(self.tape.answer("directories", &key_of(directory), live).map(|names| names.0))
    }

    fn list_live(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        let entries = Dir::read_from(self.descriptor(directory, OFlags::DIRECTORY)?)?;
        let mut names = Vec::new();
        for entry in entries {
            let name = OsString::from_vec(entry?.file_name().to_bytes().to_vec());
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        Ok(sorted::list(names, Ord::cmp))
    }

    /// The content of a file; empty for /dev/null, which masks files.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is not a configuration file.
    pub fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        if self.tape.is_empty() {
            return self.read_live(path);
        }
        untold(self.tape.answer("files", &key_of(path), || told(self.read_live(path))))
    }

    fn read_live(&self, path: &Path) -> io::Result<Vec<u8>> {
        // Opening must not wait for the writer of a pipe.
        let file = File::from(self.descriptor(path, OFlags::NONBLOCK | OFlags::NOCTTY)?);
        let metadata = file.metadata()?;
        if metadata.file_type().is_char_device() {
            return Ok(Vec::new());
        }
        if !metadata.is_file() || metadata.len() > MAX_BYTES {
            return Err(io::Error::other("not a regular file, or too large"));
        }
        let mut text = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut text)?;
        Ok(text)
    }

    /// The files of a `NAME.d` with this suffix in all of systemd's directories, in the order in which they apply. For
    /// each name the first directory wins, whatever it contains: a file, a dangling link or a link to /dev/null.
    pub fn conf_files(&self, name: &str, suffix: &str) -> ConfFiles {
        let directories = DIRECTORIES.map(|directory| Path::new(directory).join(name));
        self.conf_files_of(&directories, |name| name.ends_with(suffix.as_bytes()))
    }

    /// The same for these directories and names.
    pub fn conf_files_of(&self, directories: &[PathBuf], wanted: impl Fn(&[u8]) -> bool) -> ConfFiles {
        let mut found = ConfFiles::default();
        let mut paths: Vec<PathBuf> = Vec::new();
        for directory in directories {
            let names = match self.list(directory) {
                Ok(names) => names,
                Err(error) if is_absent(&error) => continue,
                Err(error) => {
                    found.unread.push(cannot("list", directory, &error));
                    continue;
                }
            };
            for name in names {
                let hidden = name.as_bytes().starts_with(b".");
                let known = paths.iter().any(|path| path.file_name() == Some(&name));
                if wanted(name.as_bytes()) && !hidden && !known {
                    paths.push(directory.join(name));
                }
            }
        }
        for path in sorted::list(paths, |a, b| a.file_name().cmp(&b.file_name())) {
            match self.read(&path) {
                Ok(text) => found.files.push(ConfFile { path, text }),
                Err(error) if is_absent(&error) => {}
                Err(error) => found.unread.push(cannot("read", &path, &error)),
            }
        }
        found
    }

    /// The settings of systemd-sysctl, and which of its files could not be read.
    pub fn sysctl_settings(&self) -> (Settings, Vec<String>) {
        let found = self.conf_files("sysctl.d", ".conf");
        (Settings::new(found.files), found.unread)
    }

    fn descriptor(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(match &self.directory {
            None => openat(CWD, path, flags, Mode::empty())?,
            Some(root) => {
                let open = || openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
                // The kernel gives up on a `..` while any process renames or mounts (openat2(2)).
                let opened = (0..MOST_TRIES).map(|_| open()).find(|opened| !matches!(opened, Err(Errno::AGAIN)));
                opened.unwrap_or(Err(Errno::AGAIN))?
            }
        })
    }
}

/// The names in a directory; none where there is no such directory.
struct Names(Option<Vec<OsString>>);

impl Taped for Names {
    fn to_tape(&self) -> Vec<String> {
        // An empty directory is not a missing one.
        let names = self.0.iter().flatten().map(|name| text_of(name.as_bytes()));
        self.0.iter().map(|_| "/".to_owned()).chain(names).collect()
    }

    fn of_tape(answer: &[String]) -> Option<Names> {
        let names = answer.split_first().map(|(_, names)| names);
        Some(Names(names.map(|names| names.iter().map(|name| OsString::from_vec(bytes_of(name))).collect())))
    }
}

fn key_of(path: &Path) -> String {
    text_of(path.as_os_str().as_bytes())
}

/// What is kept of an answer; `None` where there is nothing of that name.
fn told<T>(answer: io::Result<T>) -> Result<Option<T>, String> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error.to_string()),
    }
}

fn untold<T>(kept: Result<Option<T>, String>) -> io::Result<T> {
    kept.map_err(io::Error::other)?.ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn cannot(verb: &str, path: &Path, error: &io::Error) -> String {
    format!("cannot {verb} {}: {error}", one_line(&path.to_string_lossy()))
}
