//! `sysctls`: each key that is declared has its value. What is to last is also written to one file in /etc/sysctl.d,
//! with what `rp_filter.persist` asks for, so that the boot and udev set the same ([`persist`]).
//!
//! A sysctl carries no mark. The ledger says what was there before, and it comes back when the declaration goes, where
//! the value is still ours. Whatever is about to be changed, directly or along with another key ([`cascade`]), is in
//! the ledger before the first write; it leaves the ledger only when what was there before is seen to be back. So a
//! run that was ended at any point is completed by the next one.

mod cascade;
mod draft;
mod persist;
mod ra;
mod value;

use std::collections::BTreeMap;

use super::bridges;
use crate::change::Plan;
use crate::desired::{Desired, Sysctl};
use crate::memory::{Kind, Note, SetSysctl};
use crate::net::{FORWARD, FORWARD_OF_ALL, IfName, SysctlKey};
use crate::observed::{Gap, Look, Observed};
use crate::sysctl_d;
pub use cascade::cascaded;
use draft::Draft;
use value::is_same;

pub fn plan(desired: &Desired, observed: &Observed) -> Result<Plan, Gap> {
    let mut plan = Plan::default();
    let lasting = persist::lasting(desired);
    let known = observed.recall()?.memory.made.get(&Kind::Sysctls).copied();
    if desired.sysctls.is_empty() && lasting.is_empty() && known == Some(false) {
        return Ok(plan);
    }
    let ledger = &observed.ledger()?.sysctls;
    let has_file = persist::plan(&lasting, desired, observed, &mut plan)?;
    let to_come = bridges::to_come(desired, observed)?;
    let keys = keys(&wanted(desired, observed)?, ledger, &to_come, observed)?;
    let mut draft = Draft::new(&keys, &to_come, observed, &mut plan);
    draft.declare()?;
    draft.take_back()?;
    let noted = draft.into_ledger();

    // That there are some is noted before the ledger tells of one, and that there are none after it tells of none.
    let some = !noted.is_empty() || has_file;
    plan.remember.extend((noted != *ledger).then_some(Note::Sysctls(noted)));
    if known != Some(some) {
        let at = if some { 0 } else { plan.remember.len() };
        plan.remember.insert(at, Note::Made(Kind::Sysctls, some));
    }
    Ok(plan)
}

/// A key that is declared, or was.
struct Key<'a> {
    key: SysctlKey,
    path: String,
    wish: Option<&'a Sysctl>,
    entry: Option<&'a SetSysctl>,
    live: Live,
}

/// What there is of a key.
#[derive(Clone)]
enum Live {
    Is(String),
    /// The kernel has no such key.
    Missing,
    /// It could not be read: it may have any value.
    Unseen(String),
}

impl Live {
    fn of(look: &Look<Option<String>>) -> Live {
        match look {
            Ok(Some(value)) => Live::Is(value.clone()),
            Ok(None) => Live::Missing,
            Err(why) => Live::Unseen(why.to_string()),
        }
    }
}

/// All keys that are declared, by itself or by a pattern, and those that the ledger tells of.
fn keys<'a>(
    wanted: &BTreeMap<SysctlKey, &'a Sysctl>,
    ledger: &'a [SetSysctl],
    to_come: &[&IfName],
    observed: &Observed,
) -> Result<Vec<Key<'a>>, Gap> {
    let mut entries: BTreeMap<&str, &SetSysctl> = BTreeMap::new();
    entries.extend(ledger.iter().map(|entry| (&*entry.key, entry)));
    let mut keys = Vec::new();
    for (key, wish) in wanted {
        let path = text(&key.path());
        let entry = entries.remove(&*path);
        keys.push(Key { key: key.clone(), path, wish: Some(wish), entry, live: Live::Missing });
    }
    for (path, entry) in entries {
        let key = SysctlKey::from_path(path.as_bytes());
        keys.push(Key { key, path: path.into(), wish: None, entry: Some(entry), live: Live::Missing });
    }
    let looks: Vec<_> = keys.iter().map(|it| standing_in(&it.key, to_come)).collect();
    for (it, look) in keys.iter_mut().zip(observed.sysctls_one_by_one(&looks)?) {
        it.live = Live::of(look);
    }
    Ok(keys)
}

/// The order in which keys are written, and lines of our file: accept_ra of IPv6 first, so that forwarding costs no
/// default route; then what changes others along with it, so that those that are declared otherwise come after it.
/// What is taken back has the last of them first: forwarding before accept_ra.
fn rank(path: &str) -> u8 {
    match () {
        () if path.starts_with("net/ipv6/conf/") && path.ends_with("/accept_ra") => 0,
        () if cascade::reach(path).is_some() => 1,
        () => 2,
    }
}

impl SetSysctl {
    /// Whether a live value is the one that was set.
    fn is_ours(&self, live: &str) -> bool {
        self.values().any(|value| is_same(live, value))
    }

    /// Whether a live value of another key may have come of setting this one.
    fn brings(&self, other: &str, live: &str) -> bool {
        let mut brought = self.values().filter_map(|value| cascaded(&self.key, value, other));
        brought.any(|value| is_same(live, &value))
    }

    /// What it was set to, and what it may still be.
    fn values(&self) -> impl Iterator<Item = &String> {
        [&self.value].into_iter().chain(&self.earlier)
    }
}

/// Each key that is declared, by itself or by a pattern, and by which entry: as in sysctl.d(5) a key by itself wins
/// over patterns, and of patterns the last one.
pub fn wanted<'a>(desired: &'a Desired, observed: &Observed) -> Result<BTreeMap<SysctlKey, &'a Sysctl>, Gap> {
    let mut wanted = BTreeMap::new();
    let globs = || desired.sysctls.iter().filter_map(|wish| Some((wish, wish.key.glob()?)));
    let names = observed.sysctl_names(globs().map(|(_, (directory, ..))| directory.to_owned()))?;
    let to_come = bridges::to_come(desired, observed)?;
    for ((wish, (directory, pattern, rest)), names) in globs().zip(names) {
        let names = names.iter().map(|name| &**name).chain(to_come.iter().map(|name| name.as_bytes()));
        for name in names.filter(|name| sysctl_d::is_match(pattern.as_bytes(), name)) {
            let path = [directory.as_bytes(), name, rest.as_bytes()].join(&b'/');
            let path = if path == FORWARD_OF_ALL.as_bytes() { FORWARD.as_bytes() } else { &path };
            wanted.insert(SysctlKey::from_path(path), wish);
        }
    }
    let plain = desired.sysctls.iter().filter(|wish| wish.key.glob().is_none());
    wanted.extend(plain.map(|wish| (SysctlKey::from_path(wish.key.path().as_bytes()), wish)));
    Ok(wanted)
}

/// The key that has its value already: a bridge that is to come will have those of `default`.
fn standing_in(key: &SysctlKey, to_come: &[&IfName]) -> SysctlKey {
    let mut segments: Vec<&[u8]> = key.segments().collect();
    match segments.get_mut(3).filter(|name| key.names_link() && to_come.iter().any(|it| it.as_bytes() == **name)) {
        Some(name) => {
            *name = b"default";
            SysctlKey::from_path(&segments.join(&b'/'))
        }
        None => key.clone(),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests;
