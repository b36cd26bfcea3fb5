//! What is remembered between runs: `state.json`, which counts until the next boot, and `ledger.json`, of which a part
//! counts longer. Both are of the network namespace that they were written in. Whatever else is wrong with what is in one
//! of them is a warning and a fresh start.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::libc;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::file;
use crate::memory::{Ledger, Memory};

/// Version of the file; another one is a fresh start.
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

/// What the last run remembered; nothing, if there is nothing that counts. And whether that is all since boot.
///
/// # Errors
///
/// It could not be read, which says nothing of what is in it: the next run may read it, and it is not to be overwritten.
pub fn recall(directory: &Path, may_change: bool) -> io::Result<(Memory, bool)> {
    let file = directory.join(STATE);
    let (why, is_all) = match read(&file) {
        Ok(None) => return Ok((Memory::default(), true)),
        Ok(Some((memory, Origin::Here))) => return Ok((memory, true)),
        Ok(Some((_, Origin::AnotherBoot))) => (io::Error::other("it is from another boot"), true),
        Ok(Some((_, Origin::AnotherNetns))) => (io::Error::other("it is from another network namespace"), false),
        Err(why) if is_unread(&why) && (may_change || why.kind() != io::ErrorKind::PermissionDenied) => {
            return Err(left_alone(&file, &why));
        }
        Err(why) => (why, false),
    };
    Ok((fresh_start(&file, &why), is_all))
}

/// Whether a file could not be read for now. A link or a socket in its place is no such case: it is replaced.
fn is_unread(why: &io::Error) -> bool {
    why.raw_os_error().is_some_and(|errno| !matches!(errno, libc::ELOOP | libc::ENXIO))
}

fn left_alone(file: &Path, why: &io::Error) -> io::Error {
    io::Error::new(why.kind(), format!("{} cannot be read, and is left alone: {why}", file.display()))
}

/// What the ledger says. The addresses that an earlier boot has added went with it. One that is none is set aside, by who
/// may change something.
///
/// # Errors
///
/// It could not be read, which says nothing of what is in it; or it is that of another network namespace. It is not to be
/// overwritten.
pub fn ledger(directory: &Path, may_change: bool) -> io::Result<Ledger> {
    let file = directory.join(LEDGER);
    match read(&file) {
        Ok(None) => Ok(Ledger::default()),
        Ok(Some((ledger, Origin::Here))) => Ok(ledger),
        Ok(Some((ledger, Origin::AnotherBoot))) => Ok(Ledger::after_a_boot(ledger)),
        Ok(Some((_, Origin::AnotherNetns))) => Err(io::Error::other(format!(
            "{} is of another network namespace; name another --state-dir for this one",
            file.display()
        ))),
        // Who only looks, and may not look here.
        Err(why) if why.kind() == io::ErrorKind::PermissionDenied && !may_change => Ok(fresh_start(&file, &why)),
        Err(why) if why.kind() != io::ErrorKind::InvalidData => Err(left_alone(&file, &why)),
        Err(why) => {
            let aside = directory.join("ledger.json.unreadable");
            let is_aside = may_change && fs::rename(&file, &aside).is_ok();
            let told = || {
                io::Error::other(format!(
                    "{why}; it is {} now, and what only it knew of is not taken back",
                    aside.display()
                ))
            };
            Ok(fresh_start(&file, &if is_aside { told() } else { why }))
        }
    }
}

/// Removes what an interrupted run may have left in the directories of the state and of the ledger.
pub fn tidy(directory: &Path, durable: &Path) {
    file::tidy(directory, STATE);
    file::tidy(durable, LEDGER);
}

/// Writes the ledger. Its directory is made if it is missing.
pub fn write_ledger(directory: &Path, ledger: &Ledger) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    write(directory, LEDGER, ledger)
}

fn fresh_start<T: Default>(file: &Path, why: &io::Error) -> T {
    let file = file.display();
    // Whoever may not even read it runs nothing here, and only looks.
    if why.kind() == io::ErrorKind::PermissionDenied {
        warn!(%file, %why, "what was remembered is not known to this user, and does not count for this look");
    } else {
        warn!(target: "fresh_start", %file, %why, "what was remembered does not count; this is a fresh start");
    }
    T::default()
}

/// Where something was saved.
enum Origin {
    Here,
    AnotherBoot,
    AnotherNetns,
}

/// What is saved, and where; `None` if there is nothing yet.
fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<(T, Origin)>> {
    let Some(text) = file::read(path)? else { return Ok(None) };
    let saved: Saved<T> = serde_json::from_str(&text).map_err(invalid)?;
    let (boot_id, netns) = origin()?;
    if saved.version != VERSION {
        return Err(invalid(format!("it has version {}, not {VERSION}", saved.version)));
    }
    let origin = match () {
        () if saved.boot_id != boot_id => Origin::AnotherBoot,
        () if saved.netns != netns => Origin::AnotherNetns,
        () => Origin::Here,
    };
    Ok(Some((saved.memory, origin)))
}

/// What is wrong with what is in the file, in contrast to what kept it from being read.
fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Remembers for the next run.
pub fn remember(directory: &Path, memory: &Memory) -> io::Result<()> {
    write(directory, STATE, memory)
}

/// Writes a file: whole or not at all, whenever the power goes.
fn write(directory: &Path, name: &str, memory: &impl Serialize) -> io::Result<()> {
    let (boot_id, netns) = origin()?;
    let text = serde_json::to_vec(&Saved { version: VERSION, boot_id, netns, memory })?;
    // A dry run of anybody may know what was remembered.
    file::replace(directory, name, &text)
}

/// The boot and the network namespace that this is.
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
    use crate::contention::Made;
    use crate::memory::Recall;
    use crate::reconcile::ALL;
    use crate::reconcile::testing::{self, Model};

    const NODE: &str = "link 2 eth0 10.0.0.10/24
        link 3 eth1 10.0.1.10/24
        rule 32765 from 10.0.1.10 table 2
        route default via 10.0.0.1 dev 2 table 254
        sysctl net/ipv4/conf/eth0/forwarding = 1
        netns cni-1 7
        veth 5 x 6";

    /// Plans of every section with what was remembered, on a node that has something of each; at odd times, too.
    fn planned(memory: &Memory, ledger: &Ledger) {
        let desired =
            testing::desired(include_str!("../../tests/corpus/config/all.yaml").trim_start_matches("version: 1\n"));
        for seconds in [0, 1_800_000_000, u64::MAX] {
            let mut model = Model::new(NODE);
            let time = Duration::from_secs(seconds);
            model.recall = Recall { memory: memory.clone(), wall: time, boot: time, awake: time, begun: time };
            model.ledger = ledger.clone();
            for reconciler in ALL {
                model.plan(reconciler.plan, &desired);
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
                memory.mends.note(std::slice::from_ref(&made), time, time);
                let _ = memory.mends.contended(time).map(|repair| repair.since(time)).max();
                let row = || memory.kube_proxy.row();
                let _ = (row().next(time, time, true), row().is_contended(time, time), row().goes_on(time, time));
            }
            serde_json::to_vec(&memory).is_ok()
        });
    }

    #[test]
    fn fuzz_ledger() {
        crate::fuzz::run("ledger", |bytes| {
            let Ok(saved) = serde_json::from_slice::<Saved<Ledger>>(bytes) else { return false };
            let ledger = saved.memory;
            planned(&Memory::default(), &ledger);
            let mut all = Ledger::after_a_boot(ledger.clone());
            all.add_addresses(ledger.addresses_without(&all));
            serde_json::to_vec(&all).is_ok()
        });
    }
}
