//! The state saved between runs: `state.json`, which is valid until the next boot; `ledger.json`, parts of which are
//! valid longer; and `pods`, valid until the next boot, which is read only when the rules of pods have changed. All
//! belong to the network namespace in which they were written. Any other invalid content is a warning and a fresh
//! start.

pub mod atomic_file;
mod installed;
mod lock;

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::clock::{awake_time, boot_time, wall_clock};
use crate::history::cni_rules::SavedRules;
use crate::history::memory::{EndedRun, Ledger, Memory, Note, Patience, Recall, Reported};
use crate::tape::{Tape, Taped};
pub use installed::{Guest, Installed};
pub use lock::{Held, Lock};

/// Version of the file; another version means a fresh start.
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved<T> {
    version: u32,
    boot_id: String,
    /// Inode of the network namespace.
    netns: u64,
    memory: T,
}

const STATE: &str = "state.json";
const LEDGER: &str = "ledger.json";
const PODS: &str = "pods";

/// The saved state. Each file is read once, when it is needed, and written through. The lock keeps others from writing.
#[derive(Debug)]
pub struct Store {
    directory: PathBuf,
    /// For what outlives a boot.
    durable: PathBuf,
    patience: Patience,
    /// The content of the state directory, once it was read or written, and whether that is everything since boot.
    memory: Option<(Memory, bool)>,
    ledger: Option<Ledger>,
    /// Set for a run that may change something.
    lock: Option<Lock>,
    /// Whether it could not be taken again.
    is_lost: bool,
    leaves_restarts: bool,
    /// When the time was first asked for, on the clock since boot.
    begun: Option<Duration>,
    /// What was read and when, where the node is or will be a captured one.
    tape: Tape,
}

/// As it is in its file; and of the memory, whether it is all that was remembered.
impl<T: Serialize + DeserializeOwned> Taped for (T, bool) {
    fn to_tape(&self) -> Vec<String> {
        let text = serde_json::to_vec(&self.0).unwrap_or_default();
        vec![String::from_utf8(text).unwrap_or_default(), if self.1 { "whole" } else { "lost" }.into()]
    }

    fn of_tape(answer: &[String]) -> Option<(T, bool)> {
        let [text, whole] = answer else { return None };
        Some((serde_json::from_str(text).ok()?, whole == "whole"))
    }
}

impl Store {
    /// The state in these directories, the second for what outlives a boot. Nothing is read yet.
    pub fn new(directory: &Path, durable: &Path, patience: Patience) -> Store {
        let (directory, durable) = (directory.into(), durable.into());
        Store {
            directory,
            durable,
            patience,
            memory: None,
            ledger: None,
            lock: None,
            is_lost: false,
            leaves_restarts: false,
            begun: None,
            tape: Tape::default(),
        }
    }

    /// The same for a command that only looks: what it reads, and the time, are recorded on the tape or taken from it.
    pub fn taped(directory: &Path, durable: &Path, tape: Tape) -> Store {
        Store { tape, ..Store::new(directory, durable, Patience::AnswerNow) }
    }

    /// The same for a run that has the lock.
    pub fn locked(self, lock: Lock) -> Store {
        Store { lock: Some(lock), ..self }
    }

    /// The same for a run that leaves restarts of kube-proxy to the watcher, because they would hold up its repairs.
    pub fn leaving_restarts(self) -> Store {
        Store { leaves_restarts: true, ..self }
    }

    /// Whether no other run is restarting kube-proxy; if so, this run reserves that. A run without the lock only looks.
    pub fn claim_restarts(&self) -> bool {
        !self.leaves_restarts && self.lock.as_ref().is_none_or(Lock::claim_restarts)
    }

    /// Lets other runs continue while crictl is running, if this run is only for a restart.
    pub fn let_others(&mut self) {
        if let Some(lock) = self.lock.as_ref().filter(|_| self.patience == Patience::Due) {
            // If it cannot be released, others wait.
            let _ = lock.release();
        }
    }

    /// Waits for them to end, and reads what they have saved.
    pub fn retake(&mut self) {
        if let Some(lock) = self.lock.as_ref().filter(|_| self.patience == Patience::Due) {
            self.is_lost = lock.retake().is_err();
            (self.memory, self.ledger) = (None, None);
        }
    }

    /// Whether a person or a monitor waits for the answer of this run.
    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// Whether a container on this node stands back for this node-fixer.
    pub fn has_guest(&self) -> bool {
        let live = || Ok(Guest::is_there(&self.directory));
        self.tape.answer("guest", "", live).unwrap_or_default()
    }

    /// Removes what an interrupted run may have left.
    pub fn tidy(&self) {
        atomic_file::tidy(&self.directory, STATE);
        atomic_file::tidy(&self.durable, LEDGER);
    }

    /// The ledger.
    ///
    /// # Errors
    ///
    /// It cannot be read now, or belongs to another network namespace.
    pub fn ledger(&mut self) -> io::Result<&Ledger> {
        let known = match self.ledger.take() {
            Some(known) => known,
            None => {
                let live = || ledger(&self.durable, self.patience).map(|ledger| (ledger, true));
                self.tape.look("ledger", String::new, live, io::Error::other)?.0
            }
        };
        Ok(self.ledger.insert(known))
    }

    /// The saved rules of the VPC CNI. There may be thousands, so they are not kept.
    ///
    /// # Errors
    ///
    /// The file cannot be read now.
    pub fn pods(&mut self) -> io::Result<SavedRules> {
        // A run that was interrupted while writing it has not recorded its completion, so the next run reads it.
        if self.patience != Patience::AnswerNow {
            atomic_file::tidy(&self.directory, PODS);
        }
        let live = || judged(&self.directory.join(PODS), read_pods(&self.directory), self.patience);
        if self.tape.is_empty() {
            return Ok(live()?.0);
        }
        let live = || live().map(|(pods, _)| Some(pods.text().to_owned()));
        let text = self.tape.look("cni_memory", String::new, live, io::Error::other)?;
        SavedRules::new(text.unwrap_or_default()).map_err(invalid)
    }

    /// The state so far, with the time.
    ///
    /// # Errors
    ///
    /// It cannot be read now, or there is no clock.
    pub fn recall(&mut self) -> io::Result<Recall> {
        let memory = self.memory()?.clone();
        let clocks = || Ok([wall_clock(), boot_time()?, awake_time()?]);
        let [wall, boot, awake] = self.tape.look("clocks", String::new, clocks, io::Error::other)?;
        let begun = *self.begun.get_or_insert(boot);
        Ok(Recall { patience: self.patience, memory, wall, boot, awake, begun })
    }

    /// Whether the state covers everything since boot; false if a file could not be read.
    pub fn recalls_all(&self) -> bool {
        self.memory.as_ref().is_some_and(|(_, is_all)| *is_all)
    }

    /// Notices that earlier runs have reported and that still applied.
    ///
    /// # Errors
    ///
    /// The file cannot be read now.
    pub fn reported(&mut self) -> io::Result<&Reported> {
        self.memory().map(|memory| &memory.reported)
    }

    /// The end of the last failed run, or of the first successful one after it.
    ///
    /// # Errors
    ///
    /// The file cannot be read now.
    pub fn ended(&mut self) -> io::Result<Option<EndedRun>> {
        self.memory().map(|memory| memory.ended)
    }

    /// Saves a note for the next run.
    ///
    /// # Errors
    ///
    /// The file cannot be read or written.
    pub fn remember(&mut self, note: Note) -> io::Result<()> {
        if self.is_lost {
            return Err(io::Error::other("cannot take the lock again"));
        }
        if let Note::Ledger(note) = note {
            let mut ledger = self.ledger()?.clone();
            ledger.take(note, awake_time()?);
            fs::create_dir_all(&self.durable)?;
            write(&self.durable, LEDGER, &ledger)?;
            self.ledger = Some(ledger);
        } else if let Note::CniMemory(pods) = note {
            write_pods(&self.directory, &pods)?;
        } else {
            let mut memory = self.memory()?.clone();
            memory.take(note, boot_time()?);
            write(&self.directory, STATE, &memory)?;
            self.memory = Some((memory, true));
        }
        Ok(())
    }

    fn memory(&mut self) -> io::Result<&Memory> {
        let known = match self.memory.take() {
            Some(known) => known,
            None => {
                let file = self.directory.join(STATE);
                let live = || judged(&file, read(&file), self.patience);
                self.tape.look("memory", String::new, live, io::Error::other)?
            }
        };
        Ok(&self.memory.insert(known).0)
    }
}

/// The state that the last run saved, or an empty one; and whether it covers everything since boot.
///
/// # Errors
///
/// It could not be read, which says nothing about its content: the next run may be able to read it, so it must not be
/// overwritten.
fn judged<T: Default>(
    file: &Path,
    read: io::Result<Option<(T, Provenance)>>,
    patience: Patience,
) -> io::Result<(T, bool)> {
    let (why, is_all) = match read {
        Ok(None) => return Ok((T::default(), true)),
        Ok(Some((memory, Provenance::Here))) => return Ok((memory, true)),
        Ok(Some((_, Provenance::AnotherBoot))) => (io::Error::other("it is from an earlier boot"), true),
        Ok(Some((_, Provenance::AnotherNetns))) => (io::Error::other("it is from another network namespace"), false),
        Err(why)
            if is_unread(&why)
                && (patience != Patience::AnswerNow || why.kind() != io::ErrorKind::PermissionDenied) =>
        {
            return Err(left_alone(file, &why));
        }
        Err(why) => (why, false),
    };
    Ok((fresh_start(file, &why), is_all))
}

/// Whether a file cannot be read at the moment. A link or a socket in its place is no such case: it is replaced.
fn is_unread(why: &io::Error) -> bool {
    why.raw_os_error().is_some_and(|errno| !matches!(errno, libc::ELOOP | libc::ENXIO))
}

fn left_alone(file: &Path, why: &io::Error) -> io::Error {
    io::Error::new(why.kind(), format!("{} cannot be read, and is left untouched: {why}", file.display()))
}

/// The ledger. Addresses added before a boot are gone. An invalid file is moved aside by a process that may change the
/// network.
///
/// # Errors
///
/// It could not be read, which says nothing about its content; or it belongs to another network namespace. It must not
/// be overwritten.
fn ledger(directory: &Path, patience: Patience) -> io::Result<Ledger> {
    let file = directory.join(LEDGER);
    match read(&file) {
        Ok(None) => Ok(Ledger::default()),
        Ok(Some((ledger, Provenance::Here))) => Ok(ledger),
        Ok(Some((ledger, Provenance::AnotherBoot))) => Ok(Ledger::after_a_boot(ledger)),
        Ok(Some((_, Provenance::AnotherNetns))) => Err(io::Error::other(format!(
            "{} belongs to another network namespace; choose another --state-dir for this one",
            file.display()
        ))),
        // A process that only looks may not be allowed to read this.
        Err(why) if why.kind() == io::ErrorKind::PermissionDenied && patience == Patience::AnswerNow => {
            Ok(fresh_start(&file, &why))
        }
        Err(why) if why.kind() != io::ErrorKind::InvalidData => Err(left_alone(&file, &why)),
        Err(why) => {
            let aside = directory.join("ledger.json.unreadable");
            let is_aside = patience != Patience::AnswerNow && fs::rename(&file, &aside).is_ok();
            let moved = || {
                io::Error::other(format!(
                    "{why}; moved to {}. What only this file recorded will not be cleaned up",
                    aside.display()
                ))
            };
            Ok(fresh_start(&file, &if is_aside { moved() } else { why }))
        }
    }
}

fn fresh_start<T: Default>(file: &Path, why: &io::Error) -> T {
    let file = file.display();
    // A user without permission to read it only looks.
    if why.kind() == io::ErrorKind::PermissionDenied {
        warn!(%file, %why, "this user cannot read the saved state; continuing without it");
    } else {
        warn!(target: "fresh_start", %file, %why, "ignoring the saved state and starting afresh");
    }
    T::default()
}

/// Where the state was saved.
enum Provenance {
    Here,
    AnotherBoot,
    AnotherNetns,
}

/// The saved state, and where it was saved; `None` if there is none yet.
fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<(T, Provenance)>> {
    let Some(text) = atomic_file::read(path)? else { return Ok(None) };
    let saved: Saved<T> = serde_json::from_str(&text).map_err(invalid)?;
    let provenance = provenance(saved.version, &saved.boot_id, saved.netns)?;
    Ok(Some((saved.memory, provenance)))
}

/// Where a file of this version, boot and network namespace was saved.
fn provenance(version: u32, boot_id: &str, netns: u64) -> io::Result<Provenance> {
    let here = origin()?;
    if version != VERSION {
        return Err(invalid(format!("its version is {version}, not {VERSION}")));
    }
    Ok(if boot_id != here.0 {
        Provenance::AnotherBoot
    } else if netns != here.1 {
        Provenance::AnotherNetns
    } else {
        Provenance::Here
    })
}

/// The saved rules of the VPC CNI: a line with their origin, then the rules.
fn read_pods(directory: &Path) -> io::Result<Option<(SavedRules, Provenance)>> {
    let Some(mut text) = atomic_file::read(&directory.join(PODS))? else { return Ok(None) };
    let rest = text.split_off(text.find('\n').map_or(text.len(), |end| end + 1));
    let head = text.trim_end();
    let mut words = head.split(' ');
    let mut word = || words.next().unwrap_or_default();
    let (version, boot_id, netns) = (word().parse(), word(), word().parse());
    let provenance = provenance(version.map_err(invalid)?, boot_id, netns.map_err(invalid)?)?;
    Ok(Some((SavedRules::new(rest).map_err(invalid)?, provenance)))
}

fn write_pods(directory: &Path, pods: &SavedRules) -> io::Result<()> {
    let (boot_id, netns) = origin()?;
    atomic_file::replace(directory, PODS, format!("{VERSION} {boot_id} {netns}\n{}", pods.text()).as_bytes())
}

/// An error in the content of the file, as opposed to an error of reading it.
fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Writes a file atomically and durably.
fn write(directory: &Path, name: &str, memory: &impl Serialize) -> io::Result<()> {
    let (boot_id, netns) = origin()?;
    let text = serde_json::to_vec(&Saved { version: VERSION, boot_id, netns, memory })?;
    // Any user's dry run may read the state.
    atomic_file::replace(directory, name, &text)
}

/// The current boot and network namespace.
fn origin() -> io::Result<(String, u64)> {
    let mut boot_id = [0; 64];
    let length = File::open("/proc/sys/kernel/random/boot_id")?.read(&mut boot_id)?;
    let boot_id = String::from_utf8_lossy(boot_id.get(..length).unwrap_or_default()).trim().to_owned();
    Ok((boot_id, fs::metadata("/proc/thread-self/ns/net")?.ino()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::history::contention::Made;
    use crate::history::memory::LedgerNote;
    use crate::history::memory::Recall;
    use crate::reconcile::ALL;
    use crate::reconcile::testing::{self, Model};

    const NODE: &str = "link 2 eth0 10.0.0.10/24
        link 3 eth1 10.0.1.10/24
        rule 32765 from 10.0.1.10 table 2
        route default via 10.0.0.1 dev 2 table 254
        sysctl net/ipv4/conf/eth0/forwarding = 1
        netns cni-1 7
        veth 5 x 6";

    /// Plans every section with this state, on a node with objects of every kind; also at odd times.
    fn planned(memory: &Memory, ledger: &Ledger) {
        let desired =
            testing::desired(include_str!("../../tests/corpus/config/all.yaml").trim_start_matches("version: 1\n"));
        for seconds in [0, 1_800_000_000, u64::MAX] {
            let mut model = Model::new(NODE);
            let time = Duration::from_secs(seconds);
            model.recall = Recall {
                memory: memory.clone(),
                wall: time,
                boot: time,
                awake: time,
                begun: time,
                ..Recall::default()
            };
            model.ledger = ledger.clone();
            for reconciler in ALL {
                model.plan_section(reconciler.name, &desired);
            }
        }
    }

    #[test]
    fn fuzz_state() {
        crate::fuzz::run("state", |bytes| {
            let Ok(saved) = serde_json::from_slice::<Saved<Memory>>(bytes) else { return false };
            let mut memory = saved.memory;
            planned(&memory, &Ledger::default());
            let made = Made { reconciler: "rules", command: "ip rule add".into(), repeats: true };
            for time in [Duration::ZERO, Duration::from_secs(1 << 31), Duration::MAX] {
                memory.repairs.note(std::slice::from_ref(&made), time, time);
                let _ = memory.repairs.contended(time).map(|repair| repair.since(time)).max();
                let row = || memory.kube_proxy.row();
                let _ = (row().next(time, time, true), row().is_contended(time, time), row().goes_on(time, time));
            }
            serde_json::to_vec(&memory).is_ok()
        });
    }

    #[test]
    fn fuzz_pods() {
        crate::fuzz::run("pods", |bytes| {
            let Ok(saved) = SavedRules::new(String::from_utf8_lossy(bytes).into_owned()) else { return false };
            let pods = saved.rules();
            let mut model = Model::new(NODE);
            model.cni_memory = pods.clone();
            for name in ["pod_rules", "kernel_rules"] {
                model.plan_section(name, &testing::desired("{}"));
            }
            saved.with(&std::collections::BTreeMap::new()) == saved
                && SavedRules::new(pods.to_string()).map(|saved| saved.rules()) == Ok(pods)
        });
    }

    #[test]
    fn fuzz_ledger() {
        crate::fuzz::run("ledger", |bytes| {
            let Ok(saved) = serde_json::from_slice::<Saved<Ledger>>(bytes) else { return false };
            let ledger = saved.memory;
            planned(&Memory::default(), &ledger);
            let mut all = Ledger::after_a_boot(ledger.clone());
            ledger.addresses.into_iter().for_each(|entry| all.take(LedgerNote::AddedAgain(entry), Duration::ZERO));
            serde_json::to_vec(&all).is_ok()
        });
    }
}
