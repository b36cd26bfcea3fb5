//! What the section `rp_filter` wants of each interface, for questions about files.

use std::collections::BTreeMap;

use super::facts::Facts;
use crate::desired::{RpFilter, RpValue};
use crate::net::{Dev, IfName};
use crate::observed::Gap;
use crate::reconcile::rp_filter::{Entry, Selection, entry_to_come, of_default};
use crate::topology::Topology;

/// The pseudo-interface whose values new interfaces copy.
pub const DEFAULT: &[u8] = b"default";

/// The wish, with the interfaces that are there.
#[derive(Debug)]
pub struct Wished<'a> {
    wish: &'a RpFilter,
    /// The interfaces by index.
    pub links: BTreeMap<u32, &'a IfName>,
    entries: BTreeMap<&'a [u8], Option<Entry<'a>>>,
}

impl<'a> Wished<'a> {
    /// Looks which interfaces are selected.
    ///
    /// # Errors
    ///
    /// What has to be looked at first.
    pub fn of(facts: &'a Facts) -> Result<Wished<'a>, Gap> {
        let wish = &facts.desired.rp_filter;
        let links = facts.names()?;
        let devs: Vec<Dev> = links.iter().map(|(index, name)| Dev { index: *index, name: (*name).clone() }).collect();
        let selection = Selection::of(wish, Topology::of(&facts.observed), devs.iter())?;
        let mut entries = BTreeMap::new();
        for (dev, name) in devs.iter().zip(links.values()) {
            entries.insert(name.as_bytes(), selection.entry(dev));
        }
        Ok(Wished { wish, links, entries })
    }

    /// What is wanted of an interface, or of `default`, or of an interface that nobody has yet.
    pub fn entry(&self, name: &[u8]) -> Option<Entry<'a>> {
        match self.entries.get(name) {
            _ if name == DEFAULT => of_default(self.wish),
            Some(entry) => *entry,
            None => entry_to_come(self.wish, name),
        }
    }

    /// Whether anything is wanted of it.
    pub fn selects(&self, name: &[u8]) -> bool {
        self.entry(name).is_some()
    }

    /// Whether a file is wrong to say this of it. `off` drops nothing: only who wants strict is against it.
    pub fn is_against(&self, name: &[u8], value: i32) -> bool {
        let entry = self.entry(name).filter(|entry| entry.offends(value));
        entry.is_some_and(|entry| value != RpValue::Off.number() || name != DEFAULT && entry.value == RpValue::Strict)
    }

    /// The value wanted of it.
    pub fn value(&self, name: &[u8]) -> RpValue {
        self.entry(name).map_or(self.wish.value, |entry| entry.value)
    }
}
