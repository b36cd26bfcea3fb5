//! Files of configuration below a root directory: `/`, or a scratch copy of it, whose absolute links lead to itself.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use crate::net::one_line;
use crate::sorted;
use crate::sysctl_d::{ConfFile, DIRECTORIES, Settings};

/// A larger file is none that an operator wrote.
const MAX_BYTES: u64 = 1 << 20;

/// How often a file is tried to be opened.
const MOST_TRIES: usize = 200;

/// The root directory of a system.
#[derive(Debug)]
pub struct Root(Option<File>);

/// What was read, and what could not be.
#[derive(Debug, Default)]
pub struct ConfFiles {
    /// In the order in which they count: by name, whatever their directory.
    pub files: Vec<ConfFile>,
    /// What could not be read, and why.
    pub unread: Vec<String>,
}

impl Root {
    /// Takes this directory as the root.
    ///
    /// # Errors
    ///
    /// It cannot be opened.
    pub fn open(directory: &Path) -> io::Result<Root> {
        Ok(Root(if directory == Path::new("/") {
            None
        } else {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            Some(openat(CWD, directory, flags, Mode::empty())?.into())
        }))
    }

    /// Whether there is something by that name.
    pub fn has(&self, path: &Path) -> bool {
        self.descriptor(path, OFlags::PATH).is_ok()
    }

    /// The names in a directory.
    ///
    /// # Errors
    ///
    /// It cannot be listed.
    pub fn list(&self, directory: &Path) -> io::Result<Vec<OsString>> {
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

    /// The content of a file; nothing of /dev/null, by which files are masked.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is no file of configuration.
    pub fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        // A pipe that nobody writes must not keep us waiting.
        let file = File::from(self.descriptor(path, OFlags::NONBLOCK | OFlags::NOCTTY)?);
        let metadata = file.metadata()?;
        if metadata.file_type().is_char_device() {
            return Ok(Vec::new());
        }
        if !metadata.is_file() || metadata.len() > MAX_BYTES {
            return Err(io::Error::other("it is no regular file of a sane size"));
        }
        let mut text = Vec::new();
        file.take(MAX_BYTES).read_to_end(&mut text)?;
        Ok(text)
    }

    /// The files of a `NAME.d` with this suffix in all of systemd's directories, in the order in which they count.
    /// The first directory that has a name wins, whatever is there by that name: a file, a link to nowhere or to
    /// /dev/null.
    pub fn conf_files(&self, name: &str, suffix: &str) -> ConfFiles {
        let directories = DIRECTORIES.map(|directory| Path::new(directory).join(name));
        self.conf_files_of(&directories, |name| name.ends_with(suffix.as_bytes()))
    }

    /// The same, of these directories and names.
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

    /// What systemd-sysctl writes, and what of its files could not be read.
    pub fn sysctl_settings(&self) -> (Settings, Vec<String>) {
        let found = self.conf_files("sysctl.d", ".conf");
        (Settings::new(found.files), found.unread)
    }

    fn descriptor(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(match &self.0 {
            None => openat(CWD, path, flags, Mode::empty())?,
            Some(root) => {
                let open = || openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT);
                // The kernel gives up on a `..` while anybody anywhere renames or mounts something (openat2(2)).
                let opened = (0..MOST_TRIES).map(|_| open()).find(|opened| !matches!(opened, Err(Errno::AGAIN)));
                opened.unwrap_or(Err(Errno::AGAIN))?
            }
        })
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn cannot(verb: &str, path: &Path, error: &io::Error) -> String {
    format!("cannot {verb} {}: {error}", one_line(&path.to_string_lossy()))
}
