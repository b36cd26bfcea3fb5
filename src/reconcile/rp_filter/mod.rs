//! `rp_filter`: every selected interface whose live value is in `replace` gets `value`. conf/all is never written: if
//! it is greater it wins, and the change is blocked. `default` stays off if it is off, which drops nothing.

mod selection;

use std::collections::BTreeSet;

use crate::change::{Blocked, Notice, Plan};
use crate::config::{Config, Interfaces, Mode, RpFilter, RpValue};
use crate::model::{Dev, SysctlKey};
use crate::observed::{Gap, Observed, RpFilters};
use crate::sorted;
use crate::topology::forecast::{DeclaredRules, bridges_to_create};
use crate::topology::{LOOPBACK, Topology};
use selection::{DEFAULT, entries, is_named, main_entry};
pub use selection::{Entry, Selection, entry_to_come, of_default};

/// The plan of the section.
pub fn plan(desired: &Config, observed: &Observed) -> Result<Plan, Gap> {
    let wish = &desired.rp_filter;
    let live = observed.rp_filters()?;
    let declared = DeclaredRules::to_come(desired, observed)?;
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
        // The kernel copies the value to each interface whose value was never set explicitly. Interfaces that should
        // not get it are pinned.
        let to_come = bridges_to_create(desired, observed)?.into_iter().filter(|name| !is_named(wish, name));
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

/// The links that may need a name: those whose value some entry may change, that follow `default`, or that are strict.
/// Links that have vanished meanwhile have none.
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

/// The values that `all` overrides, one entry for each.
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
                "net.ipv4.conf.all.rp_filter is {}, and the kernel uses the greater of it and the interface's own \
                 value; node-fixer never writes it. Set it to 0 in /etc/sysctl.d, or configure another rp_filter.value",
                live.all
            );
            let want = format!("make rp_filter {} ({value}) effective on {name}", value.number());
            blocked.push(Blocked::new(want, because));
        }
    }
    Ok(blocked)
}

/// Whether it is strict in effect, and the section replaces that elsewhere.
fn is_strict_against(wish: &RpFilter, live: &RpFilters, value: i32) -> bool {
    live.all.max(value) == RpValue::Strict.number() && main_entry(wish).offends(RpValue::Strict.number())
}

/// The links of IPv4 default routes that are strict and that the section leaves out, although the configuration does
/// not say that this is intended. By name.
///
/// # Errors
///
/// What must be looked at first.
pub fn unattended(wish: &RpFilter, topology: Topology<'_>) -> Result<Vec<Dev>, Gap> {
    let live = topology.observed().rp_filters()?;
    let strict = live.links.iter().filter(|(_, value)| is_strict_against(wish, live, *value));
    let strict = named(&strict.copied().collect::<Vec<_>>(), topology.observed())?;
    let selection = Selection::of(wish, topology, strict.iter().map(|(dev, _)| dev))?;
    unattended_of(wish, topology, &selection, strict.iter().map(|(dev, _)| dev).collect())
}

/// Those of these that are strict.
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
        Interfaces::Auto => "not an uplink (it has no global address)".to_owned(),
        Interfaces::Named(pattern) => format!("not matched by rp_filter.interfaces ({pattern})"),
    };
    let text = format!(
        "{}: carries a default route, its rp_filter is strict, and it is {why}; run node-fixer doctor for the \
         configuration to write",
        names.join(", ")
    );
    let problem = match names.len() - 1 {
        0 => format!("{first} is strict and not managed"),
        more => format!("{first} and {more} more are strict and not managed"),
    };
    Some(Notice { text, problem: Some(problem) })
}

#[cfg(test)]
mod tests;
