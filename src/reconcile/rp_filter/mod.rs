//! `rp_filter`: every selected interface whose live value is to be replaced gets the value wanted. conf/all is never
//! written: where it is greater it wins, and the wish is blocked. `off` of `default` is left as it is: it drops nothing.

mod selection;

use std::collections::BTreeSet;

use super::{bridges, rules};
use crate::change::{Blocked, Notice, Plan};
use crate::desired::{Desired, Interfaces, Mode, RpFilter, RpValue};
use crate::net::{Dev, SysctlKey};
use crate::observed::{Gap, Observed, RpFilters};
use crate::sorted;
use crate::topology::{LOOPBACK, Topology};
use selection::{DEFAULT, entries, is_named, main_entry};
pub use selection::{Entry, Selection, entry_to_come, of_default};

/// What differs.
pub fn plan(desired: &Desired, observed: &Observed) -> Result<Plan, Gap> {
    let wish = &desired.rp_filter;
    let live = observed.rp_filters()?;
    let declared = rules::Declared::of(desired);
    let topology = Topology::after(desired, &declared, observed);
    let default = of_default(wish).filter(|entry| live.default != RpValue::Off.number() && entry.offends(live.default));
    let links = interesting(wish, live, default.is_some(), observed)?;
    let selection = Selection::of(wish, topology, links.iter().map(|(dev, _)| dev))?;
    let step_of = |(dev, value): &(Dev, i32)| {
        let entry = selection.entry(dev).filter(|entry| entry.offends(*value))?;
        Some(entry.set(&dev.name.to_string(), *value, SysctlKey::rp_filter(&dev.name), Vec::new()))
    };
    let mut plan = Plan::default();
    if let Some(entry) = default {
        // The value would go to each interface that nobody has given one: those that it is not meant for keep theirs.
        let to_come = bridges::to_come(desired, observed)?.into_iter().filter(|name| !is_named(wish, name));
        let keeps = |it: &&(Dev, i32)| it.1 == live.default && step_of(it).is_none();
        let keeping = links.iter().filter(keeps).map(|(dev, _)| &dev.name).chain(to_come);
        let first = keeping.map(|name| (SysctlKey::rp_filter(name), live.default.to_string())).collect();
        plan.steps.push(entry.set(DEFAULT, live.default, SysctlKey::rp_filter_default(), first));
    }
    plan.steps.extend(links.iter().filter_map(step_of));
    plan.blocked = overruled(wish, topology, live)?;
    let strict = links.iter().filter(|(_, value)| live.all.max(*value) == RpValue::Strict.number());
    let unattended = unattended_of(wish, topology, &selection, strict.map(|(dev, _)| dev).collect())?;
    plan.notices.extend(notice(wish, &unattended));
    Ok(plan)
}

/// The links whose values some entry may have changed, that follow `default`, or that are strict: only these need a name.
/// What has vanished meanwhile has none.
fn interesting(
    wish: &RpFilter,
    live: &RpFilters,
    default_changes: bool,
    observed: &Observed,
) -> Result<Vec<(Dev, i32)>, Gap> {
    let role_alone = wish.interfaces == Interfaces::Auto && wish.more.is_empty();
    // There may be a thousand links, and there are three values.
    let counts = [0, 1, 2].map(|value| {
        entries(wish).any(|entry| entry.offends(value))
            || is_strict_against(wish, live, value)
            || default_changes && value == live.default
    });
    let is_interesting = |(index, value): &&(u32, i32)| {
        let counts = usize::try_from(*value).is_ok_and(|value| counts.get(value) == Some(&true));
        counts && (*index != LOOPBACK || !role_alone || default_changes)
    };
    let links: Vec<_> = live.links.iter().filter(is_interesting).copied().collect();
    named(&links, observed)
}

fn named(links: &[(u32, i32)], observed: &Observed) -> Result<Vec<(Dev, i32)>, Gap> {
    let names = observed.names(links.iter().map(|(index, _)| *index))?;
    let named = links.iter().zip(names);
    let named = named.filter_map(|((index, value), name)| Some((Dev { index: *index, name: name?.clone() }, *value)));
    Ok(named.collect())
}

/// The wishes that `all` overrules, one for each value.
fn overruled(wish: &RpFilter, topology: Topology<'_>, live: &RpFilters) -> Result<Vec<Blocked>, Gap> {
    if entries(wish).all(|entry| live.all <= entry.value.number()) {
        return Ok(Vec::new());
    }
    let links = named(&live.links, topology.observed())?;
    let selection = Selection::of(wish, topology, links.iter().map(|(dev, _)| dev))?;
    let mut blocked = Vec::new();
    for value in [RpValue::Off, RpValue::Strict].into_iter().filter(|value| live.all > value.number()) {
        let wanted = links.iter().filter(|(dev, _)| selection.entry(dev).is_some_and(|entry| entry.value == value));
        if let Some(name) = wanted.map(|(dev, _)| &dev.name).min() {
            let because = format!(
                "net.ipv4.conf.all.rp_filter is {}, and the kernel takes the greater of it and the interface's own; \
                 node-fixer never writes it. Set it to 0 in /etc/sysctl.d, or configure another rp_filter.value",
                live.all
            );
            let want = format!("rp_filter {} ({value}) in effect on {name}", value.number());
            blocked.push(Blocked::new(want, because));
        }
    }
    Ok(blocked)
}

/// Whether it is strict in effect, and that is what the section replaces elsewhere.
fn is_strict_against(wish: &RpFilter, live: &RpFilters, value: i32) -> bool {
    live.all.max(value) == RpValue::Strict.number() && main_entry(wish).offends(RpValue::Strict.number())
}

/// The links that IPv4 default routes leave by and that are strict, though the section does not look after them: nothing
/// in the configuration says that this is meant. By name.
///
/// # Errors
///
/// What has to be looked at first.
pub fn unattended(wish: &RpFilter, topology: Topology<'_>) -> Result<Vec<Dev>, Gap> {
    let live = topology.observed().rp_filters()?;
    let strict = live.links.iter().filter(|(_, value)| is_strict_against(wish, live, *value));
    let strict = named(&strict.copied().collect::<Vec<_>>(), topology.observed())?;
    let selection = Selection::of(wish, topology, strict.iter().map(|(dev, _)| dev))?;
    unattended_of(wish, topology, &selection, strict.iter().map(|(dev, _)| dev).collect())
}

/// Those of these, which are strict.
fn unattended_of(
    wish: &RpFilter,
    topology: Topology<'_>,
    selection: &Selection<'_>,
    strict: Vec<&Dev>,
) -> Result<Vec<Dev>, Gap> {
    let alone = strict.into_iter().filter(|dev| dev.index != LOOPBACK && selection.entry(dev).is_none());
    let alone: BTreeSet<u32> = alone.map(|dev| dev.index).collect();
    if wish.mode == Mode::Off || alone.is_empty() || !main_entry(wish).offends(RpValue::Strict.number()) {
        return Ok(Vec::new());
    }
    let exits = topology.exits()?.ipv4_defaults;
    let links = topology.expected(exits.intersection(&alone).copied())?;
    Ok(sorted::list(links.into_iter().map(|link| link.dev.clone()), |a, b| a.name.cmp(&b.name)))
}

fn notice(wish: &RpFilter, unattended: &[Dev]) -> Option<Notice> {
    let names: Vec<String> = unattended.iter().map(|dev| dev.name.to_string()).collect();
    let first = names.first()?;
    let why = match &wish.interfaces {
        Interfaces::Auto => "no uplink by its role (it has no global address)".to_owned(),
        Interfaces::Named(pattern) => format!("not matched by rp_filter.interfaces ({pattern})"),
    };
    let text = format!(
        "{}: carries a default route, its rp_filter is strict, and it is {why}; node-fixer doctor shows what to write",
        names.join(", ")
    );
    let problem = match names.len() - 1 {
        0 => format!("{first} is strict and looked after by nobody"),
        more => format!("{first} and {more} more are strict and looked after by nobody"),
    };
    Some(Notice { text, problem: Some(problem) })
}

#[cfg(test)]
mod tests;
