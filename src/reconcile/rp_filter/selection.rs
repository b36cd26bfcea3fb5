//! Which interfaces the section manages, and the value for each.

use std::collections::BTreeSet;

use crate::change::{Change, Step};
use crate::config::{Interfaces, RpFilter, RpValue};
use crate::model::{Dev, IfName, SysctlKey, SysctlWrite};
use crate::observed::Gap;
use crate::topology::{LOOPBACK, Topology};

/// Name of the pseudo-interface whose values new interfaces copy.
pub const DEFAULT: &str = "default";

/// The value for an interface, and the values it replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The value to set.
    pub value: RpValue,
    replace: &'a [RpValue],
}

impl Entry<'_> {
    /// Whether a live value is replaced.
    pub fn offends(&self, live: i32) -> bool {
        live != self.value.number() && self.replace.iter().any(|bad| bad.number() == live)
    }

    /// The step that sets it.
    pub fn set(&self, name: &str, live: i32, key: SysctlKey, pin_before: Vec<(SysctlKey, String)>) -> Step {
        let value = self.value.number().to_string();
        let reason = format!("rp_filter of {name} is {live}, want {value} ({})", self.value);
        let write = SysctlWrite { pin_before, ..SysctlWrite::alone(key, value, live.to_string()) };
        Step::new(Change::Sysctl(write), reason)
    }
}

/// All entries, in the order in which they apply.
pub fn entries(wish: &RpFilter) -> impl Iterator<Item = Entry<'_>> {
    wish.more.iter().map(|it| Entry { value: it.value, replace: &it.replace }).chain([main_entry(wish)])
}

/// The entry of the section's own keys.
pub fn main_entry(wish: &RpFilter) -> Entry<'_> {
    Entry { value: wish.value, replace: &wish.replace }
}

/// The further entry whose pattern matches a name.
fn further_entry<'a>(wish: &'a RpFilter, name: &[u8]) -> Option<Entry<'a>> {
    let entry = wish.more.iter().find(|it| it.interfaces.is_match(name))?;
    Some(Entry { value: entry.value, replace: &entry.replace })
}

/// The entry for `default`, which is not an interface.
pub fn of_default(wish: &RpFilter) -> Option<Entry<'_>> {
    entry_to_come(wish, DEFAULT.as_bytes())
}

/// Whether the pattern of any entry matches the name.
pub fn is_named(wish: &RpFilter, name: &IfName) -> bool {
    wish.interfaces != Interfaces::Auto && entry_to_come(wish, name.as_bytes()).is_some()
        || further_entry(wish, name.as_bytes()).is_some()
}

/// The entry for a future interface of this name, which may have any role.
pub fn entry_to_come<'a>(wish: &'a RpFilter, name: &[u8]) -> Option<Entry<'a>> {
    let is_main = match &wish.interfaces {
        Interfaces::Auto => true,
        Interfaces::Named(pattern) => pattern.is_match(name),
    };
    further_entry(wish, name).or(is_main.then(|| main_entry(wish)))
}

/// The interfaces that the section manages.
#[derive(Debug)]
pub struct Selection<'a> {
    wish: &'a RpFilter,
    /// Those that have the role, if the role matters.
    by_role: BTreeSet<u32>,
}

impl<'a> Selection<'a> {
    /// Looks only at what decides which of these links are selected.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn of<'d>(
        wish: &'a RpFilter,
        topology: Topology<'_>,
        links: impl Iterator<Item = &'d Dev>,
    ) -> Result<Selection<'a>, Gap> {
        let mut by_role = BTreeSet::new();
        if wish.interfaces == Interfaces::Auto {
            let open = links.filter(|dev| dev.index != LOOPBACK && further_entry(wish, dev.name.as_bytes()).is_none());
            let open: Vec<&Dev> = open.collect();
            by_role = topology.pod_links(open.iter().copied())?;
            if open.iter().any(|dev| !by_role.contains(&dev.index)) {
                by_role.extend(topology.uplinks()?);
            }
        }
        Ok(Selection { wish, by_role })
    }

    /// The value for a link; `None` if it is not managed.
    pub fn entry(&self, dev: &Dev) -> Option<Entry<'a>> {
        let is_main = match &self.wish.interfaces {
            Interfaces::Auto => self.by_role.contains(&dev.index),
            Interfaces::Named(pattern) => pattern.is_match(dev.name.as_bytes()),
        };
        further_entry(self.wish, dev.name.as_bytes()).or(is_main.then(|| main_entry(self.wish)))
    }
}
