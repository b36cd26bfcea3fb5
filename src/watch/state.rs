//! What the watcher shows of itself: a small file in the state directory, for `node-fixer status`.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::libc::O_NOFOLLOW;
use serde::Deserialize;

use crate::store::atomic_file;
use crate::tape::Taped;

const FILE: &str = "watch.json";
/// Longer than any text of it: each is written over the one before in one call.
const LENGTH: usize = 256;

/// What the watcher has done so far. Times are in wall-clock seconds since 1970; 0 is never.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Shown {
    /// Its process.
    pub pid: u32,
    /// When it was started.
    pub since: u64,
    /// Announcements that it has heard.
    pub events: u64,
    /// Runs that it has started.
    pub runs: u64,
    /// When the last announcement came.
    pub last_event: u64,
    /// When the last run was started.
    pub last_run: u64,
}

impl Taped for Option<Shown> {
    fn to_tape(&self) -> Vec<String> {
        let numbers =
            self.iter().flat_map(|it| [it.pid.into(), it.since, it.events, it.runs, it.last_event, it.last_run]);
        numbers.map(|number: u64| number.to_string()).collect()
    }

    fn of_tape(answer: &[String]) -> Option<Option<Shown>> {
        let [pid, rest @ ..] = answer else { return Some(None) };
        let rest: Vec<u64> = rest.iter().filter_map(|number| number.parse().ok()).collect();
        let [since, events, runs, last_event, last_run] = rest.try_into().ok()?;
        Some(Some(Shown { pid: pid.parse().ok()?, since, events, runs, last_event, last_run }))
    }
}

/// The file, once there is a directory for it.
#[derive(Debug, Default)]
pub struct Shows(Option<File>);

impl Shows {
    /// Writes it. If that fails, status does not show the watcher.
    pub fn show(&mut self, directory: &Path, shown: &Shown) {
        if let Err(error) = self.try_to(directory, shown) {
            tracing::debug!(%error, "cannot save the watcher's state; status will not show it");
        }
    }

    fn try_to(&mut self, directory: &Path, shown: &Shown) -> io::Result<()> {
        // Another watcher with this state directory, or a person, may have removed it.
        let is_there = |file: &File| file.metadata().is_ok_and(|file| file.nlink() > 0);
        let file = match self.0.take().filter(is_there) {
            Some(file) => file,
            None => {
                let mut options = OpenOptions::new();
                options.write(true).create(true).truncate(false).mode(0o644).custom_flags(O_NOFOLLOW);
                let file = options.open(directory.join(FILE))?;
                // Any user's status may read it, regardless of the umask.
                file.set_permissions(fs::Permissions::from_mode(0o644))?;
                file
            }
        };
        let Shown { pid, since, events, runs, last_event, last_run } = shown;
        let text = format!(
            "{{\"pid\": {pid}, \"since\": {since}, \"events\": {events}, \"runs\": {runs}, \"last_event\": {last_event}, \
             \"last_run\": {last_run}}}"
        );
        self.0.insert(file).write_all_at(format!("{text:<LENGTH$}\n").as_bytes(), 0)
    }

    /// Removes it if it is of this process.
    pub fn hide(directory: &Path, pid: u32) {
        if saved(directory).is_some_and(|shown| shown.pid == pid) {
            let _ = fs::remove_file(directory.join(FILE));
        }
    }
}

fn saved(directory: &Path) -> Option<Shown> {
    serde_json::from_str(&atomic_file::read(&directory.join(FILE)).ok()??).ok()
}

/// The state of the watcher with this state directory, if it is running.
pub fn shown(directory: &Path) -> Option<Shown> {
    let shown = saved(directory)?;
    let name = fs::read_to_string(format!("/proc/{}/comm", shown.pid)).ok()?;
    (name.trim_end() == "node-fixer").then_some(shown)
}
