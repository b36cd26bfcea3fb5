//! `sysctls`: each declared key has its value. Persistent ones are also written to one file in /etc/sysctl.d, with
//! those of `rp_filter.persist`, so that systemd at boot and udev set the same values ([`persist`]).
//!
//! A sysctl carries no mark. The ledger holds the previous value, which is restored when the declaration goes, if the
//! live value is still node-fixer's. Everything that is about to change, directly or along with another key
//! ([`cascade`]), is in the ledger before the first write, and leaves it only after the previous value was seen live
//! again. So a run that was killed at any point is completed by the next one.

mod cascade;
mod draft;
mod persist;
mod ra;
mod value;

use std::collections::BTreeMap;

use crate::change::Plan;
use crate::config::{Config, Sysctl};
use crate::history::memory::{LedgerNote, Note, SetSysctl};
use crate::model::{IfName, SysctlKey};
use crate::observed::{Gap, Look, Observed};
use crate::topology::forecast::{self, bridges_to_create};
pub use cascade::cascaded;
use draft::Draft;
pub use ra::{accept_ra, advertised};
use value::is_same;

/// Whether any sysctl is declared, live or persistent.
pub fn are_declared(desired: &Config) -> bool {
    !desired.sysctls.is_empty() || !persist::lasting(desired).is_empty()
}

pub fn plan(desired: &Config, observed: &Observed) -> Result<Plan, Gap> {
    let mut plan = Plan::default();
    let lasting = persist::lasting(desired);
    let ledger = &observed.ledger()?.sysctls;
    let has_file = persist::plan(&lasting, desired, observed, &mut plan)?;
    let to_come = bridges_to_create(desired, observed)?;
    let keys = keys(&forecast::sysctls(desired, observed)?, ledger, &to_come, observed)?;
    let mut draft = Draft::new(&keys, &to_come, observed, &mut plan);
    draft.declare()?;
    draft.take_back()?;
    let noted = draft.into_ledger();

    plan.leaves = Some(!noted.is_empty() || has_file);
    plan.remember.extend((noted != *ledger).then_some(Note::Ledger(LedgerNote::Sysctls(noted))));
    Ok(plan)
}

/// A key that is or was declared.
struct SysctlState<'a> {
    key: SysctlKey,
    path: String,
    wish: Option<&'a Sysctl>,
    entry: Option<&'a SetSysctl>,
    live: Live,
}

/// The state of a key.
#[derive(Clone)]
enum Live {
    Is(String),
    /// The kernel has no such key.
    Missing,
    /// It could not be read, and may have any value.
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

/// All keys that are declared, directly or by a pattern, and those in the ledger.
fn keys<'a>(
    wanted: &BTreeMap<SysctlKey, &'a Sysctl>,
    ledger: &'a [SetSysctl],
    to_come: &[&IfName],
    observed: &Observed,
) -> Result<Vec<SysctlState<'a>>, Gap> {
    let mut entries: BTreeMap<&str, &SetSysctl> = BTreeMap::new();
    entries.extend(ledger.iter().map(|entry| (&*entry.key, entry)));
    let mut keys = Vec::new();
    for (key, wish) in wanted {
        let path = text(&key.path());
        let entry = entries.remove(&*path);
        keys.push(SysctlState { key: key.clone(), path, wish: Some(wish), entry, live: Live::Missing });
    }
    for (path, entry) in entries {
        let key = SysctlKey::from_path(path.as_bytes());
        keys.push(SysctlState { key, path: path.into(), wish: None, entry: Some(entry), live: Live::Missing });
    }
    let looks: Vec<_> = keys.iter().map(|it| standing_in(&it.key, to_come)).collect();
    for (it, look) in keys.iter_mut().zip(observed.sysctls_one_by_one(&looks)?) {
        it.live = Live::of(look);
    }
    Ok(keys)
}

/// The order in which keys are written, also in the file: accept_ra of IPv6 first, so that forwarding costs no default
/// route; then keys that change others, so that those with their own declaration come after them. Keys are restored in
/// reverse order: forwarding before accept_ra.
fn rank(path: &str) -> u8 {
    if path.starts_with("net/ipv6/conf/") && path.ends_with("/accept_ra") {
        0
    } else if cascade::reach(path).is_some() {
        1
    } else {
        2
    }
}

impl SetSysctl {
    /// Whether a live value is the one that was set.
    fn is_ours(&self, live: &str) -> bool {
        self.values().any(|value| is_same(live, value))
    }

    /// Whether a live value of another key may result from setting this one.
    fn brings(&self, other: &str, live: &str) -> bool {
        let mut brought = self.values().filter_map(|value| cascaded(&self.key, value, other));
        brought.any(|value| is_same(live, &value))
    }

    /// The value it was set to, and other values it may still have.
    fn values(&self) -> impl Iterator<Item = &String> {
        [&self.value].into_iter().chain(&self.earlier)
    }
}

/// The key that already has its value: a future bridge will have those of `default`.
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
