//! The value that the section `rp_filter` configures for each interface, for checks of files.

use std::collections::BTreeMap;

use super::super::facts::Facts;
use crate::config::{RpFilter, RpValue};
use crate::model::{Dev, IfName};
use crate::observed::Gap;
use crate::reconcile::rp_filter::{Entry, Selection, entry_to_come, of_default};
use crate::sysctl_d::{Occasion, Setting, Settings};
use crate::topology::Topology;

/// The pseudo-interface whose values new interfaces copy.
pub const DEFAULT: &[u8] = b"default";

/// The key of an interface, as a path below /proc/sys.
pub fn key_of(name: &[u8]) -> Vec<u8> {
    [&b"net/ipv4/conf/"[..], name, b"/rp_filter"].concat()
}

/// The configured values, with the existing interfaces.
#[derive(Debug)]
pub struct Wished<'a> {
    wish: &'a RpFilter,
    /// The interfaces by index.
    pub links: BTreeMap<u32, &'a IfName>,
    entries: BTreeMap<&'a [u8], Option<Entry<'a>>>,
}

impl<'a> Wished<'a> {
    /// Finds out which interfaces are selected.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn of(facts: &'a Facts) -> Result<Wished<'a>, Gap> {
        let wish = &facts.desired.rp_filter;
        let links = facts.names()?;
        let devs: Vec<Dev> = links.iter().map(|(index, name)| Dev { index: *index, name: (*name).clone() }).collect();
        let selection = Selection::of(wish, Topology::of(facts.observed), devs.iter())?;
        let mut entries = BTreeMap::new();
        for (dev, name) in devs.iter().zip(links.values()) {
            entries.insert(name.as_bytes(), selection.entry(dev));
        }
        Ok(Wished { wish, links, entries })
    }

    /// The entry for an interface, for `default`, or for an interface that does not exist.
    pub fn entry(&self, name: &[u8]) -> Option<Entry<'a>> {
        match self.entries.get(name) {
            _ if name == DEFAULT => of_default(self.wish),
            Some(entry) => *entry,
            None => entry_to_come(self.wish, name),
        }
    }

    /// Whether any entry applies to it.
    pub fn selects(&self, name: &[u8]) -> bool {
        self.entry(name).is_some()
    }

    /// Whether this value in a file contradicts the configuration. `off` drops nothing, so it only contradicts strict.
    fn is_against(&self, name: &[u8], value: i32) -> bool {
        let entry = self.entry(name).filter(|entry| entry.offends(value));
        entry.is_some_and(|entry| value != RpValue::Off.number() || name != DEFAULT && entry.value == RpValue::Strict)
    }

    /// Its configured value.
    pub fn value(&self, name: &[u8]) -> RpValue {
        self.entry(name).map_or(self.wish.value, |entry| entry.value)
    }

    /// The line that sets an interface's rp_filter to a value that is replaced.
    pub fn offender<'s>(&self, settings: &'s Settings, name: &[u8]) -> Option<&'s Setting> {
        [Occasion::Link, Occasion::Boot].into_iter().find_map(|occasion| {
            let winner = settings.winner(&key_of(name), occasion)?;
            winner.number().is_some_and(|value| self.is_against(name, value)).then_some(winner)
        })
    }

    /// Whether an interface stays off, which drops nothing, so that a cure must not raise it: because a file sets it,
    /// or it is `default` and no file sets it.
    pub fn is_left_off(&self, settings: &Settings, name: &[u8], live_default: i32) -> bool {
        if self.value(name) == RpValue::Strict || self.offender(settings, name).is_some() {
            return false;
        }
        let said = settings.winner(&key_of(name), Occasion::Boot).and_then(Setting::number);
        let live = (name == DEFAULT).then_some(live_default);
        said.or(live) == Some(RpValue::Off.number())
    }
}
