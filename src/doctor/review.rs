//! Writes the proposed files below a directory, for review.
//!
//! Other users may own that directory, and put links in it at any time. So each step opens the next name relative to an
//! open directory, and never follows a link.

use std::fs::{DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail, ensure};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::Examination;
use crate::model::one_line;
use crate::{signals, sorted};

/// What happened to the proposed files.
#[derive(Debug, Default)]
pub struct Review {
    /// Files that were written.
    pub written: Vec<PathBuf>,
    /// Files that existed already, and were left as they are.
    pub kept: Vec<PathBuf>,
}

/// Writes the proposed files below a directory. Existing files are never overwritten, and nothing is written if one of
/// the files would end up elsewhere.
///
/// # Errors
///
/// A file could not be written.
pub fn write(examination: &Examination, directory: &Path) -> anyhow::Result<Review> {
    signals::survive_file_limit()?;
    let proposals = examination.findings.iter().flat_map(|finding| &finding.proposals);
    let files = sorted::map(proposals.map(|file| (file.path.as_path(), file.text.as_slice())));
    let top = open_top(directory)?;
    // Before the first is written.
    for path in files.keys() {
        parent(&top, directory, path, Missing::Stays)?;
    }
    let mut review = Review::default();
    for (path, text) in files {
        let shown = directory.join(path.strip_prefix("/").unwrap_or(path));
        let cannot = || format!("cannot write {}", one_line(&shown.to_string_lossy()));
        let parent = parent(&top, directory, path, Missing::IsMade)?;
        let (parent, name) = parent.zip(path.file_name()).with_context(cannot)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
            Err(Errno::EXIST) => review.kept.push(shown),
            file => {
                let written = file.map_err(io::Error::from).and_then(|file| File::from(file).write_all(text));
                written.with_context(cannot)?;
                review.written.push(shown);
            }
        }
    }
    Ok(review)
}

/// The named directory, which is created if it is missing.
fn open_top(directory: &Path) -> anyhow::Result<OwnedFd> {
    let name = one_line(&directory.to_string_lossy()).into_owned();
    // Without a trailing slash, with which a link would be followed.
    let directory: PathBuf = directory.components().collect();
    let made = DirBuilder::new().recursive(true).mode(0o755).create(&directory);
    made.with_context(|| format!("cannot create the directory {name}"))?;
    let top = match rustix::fs::openat(CWD, &directory, INTO, Mode::empty()) {
        Err(Errno::NOTDIR | Errno::LOOP) => bail!("{name} is a link; name the directory itself"),
        top => top.with_context(|| format!("cannot open {name}"))?,
    };
    let of = |file: &OwnedFd| rustix::fs::fstat(file).map(|stat| (stat.st_dev, stat.st_ino));
    let root = rustix::fs::openat(CWD, "/", INTO, Mode::empty()).context("cannot open the root directory")?;
    ensure!(
        of(&top)? != of(&root)?,
        "{name} is the root directory: files are written for review and never installed; name another directory, \
         review them, and copy what you want"
    );
    Ok(top)
}

const INTO: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// What becomes of a missing directory.
#[derive(Clone, Copy, PartialEq)]
enum Missing {
    Stays,
    IsMade,
}

/// The directory of a proposed file. `None` if it is missing and stays so.
fn parent(top: &OwnedFd, directory: &Path, path: &Path, missing: Missing) -> anyhow::Result<Option<OwnedFd>> {
    let mut here = top.try_clone()?;
    let mut shown = directory.to_path_buf();
    for component in path.parent().into_iter().flat_map(Path::components) {
        let name = match component {
            Component::RootDir => continue,
            Component::Normal(name) => name,
            _ => bail!("{} is not the path of a file", one_line(&path.to_string_lossy())),
        };
        shown.push(name);
        let cannot = |verb: &str| format!("cannot {verb} the directory {}", one_line(&shown.to_string_lossy()));
        if missing == Missing::IsMade {
            match rustix::fs::mkdirat(&here, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error).with_context(|| cannot("make")),
            }
        }
        here = match rustix::fs::openat(&here, name, INTO, Mode::empty()) {
            Err(Errno::NOENT) if missing == Missing::Stays => return Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                bail!("{} is {}", one_line(&shown.to_string_lossy()), obstacle(&here, name.as_bytes()))
            }
            next => next.with_context(|| cannot("open"))?,
        };
    }
    Ok(Some(here))
}

fn obstacle(directory: impl AsFd, name: &[u8]) -> &'static str {
    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
    match stat.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
        Ok(FileType::Symlink) => "a link, which is not followed; name a directory without links",
        _ => "not a directory; remove it, or name another directory",
    }
}
