//! `bridges`: declared bridges are created, and those with node-fixer's alias that are no longer declared are deleted.
//! An interface of that name that is not a bridge is never replaced, and a bridge of another owner is neither changed
//! nor deleted. [`super::addresses`] handles the addresses.

use std::collections::{BTreeMap, BTreeSet};

use super::{ownership, ports};
use crate::change::{Blocked, Change, Op, Plan, Step};
use crate::config::{self, Config};
use crate::model::{IfName, LinkKind, LinkSettings, Noun};
use crate::observed::{Gap, Observed, SeenBridge};
use crate::sorted;
use crate::topology::forecast::bridges_to_create;

pub fn plan(desired: &Config, observed: &Observed) -> Result<Plan, Gap> {
    let mut plan = Plan::default();
    let live = observed.bridges()?;
    let by_name = by_name(live);
    let missing = sorted::set(bridges_to_create(desired, observed)?);
    for wish in &desired.bridges {
        let new = wanted(wish);
        match by_name.get(&wish.name).copied() {
            None if missing.contains(&wish.name) => {
                // It is off for a new bridge, and a kernel without VLAN support rejects the attribute.
                let vlan_filtering = new.vlan_filtering.filter(|on| *on);
                let add = Change::Link(Op::Add(LinkSettings { vlan_filtering, ..new }));
                plan.steps.push(Step::new(add, "missing"));
            }
            None => plan.blocked.push(Blocked::new(
                new.add_command(),
                format!(
                    "{} exists and is not a bridge, and is never replaced; rename or delete it, or declare another \
                     name",
                    wish.name
                ),
            )),
            Some(seen) if is_so(seen, &new) => {}
            Some(seen) if seen.ours => {
                // A setting that is not declared is not changed, and so not restored.
                let live = settings(seen);
                let (mtu, stp) = (new.mtu.and(live.mtu), new.stp.and(live.stp));
                let old =
                    LinkSettings { mtu, stp, vlan_filtering: new.vlan_filtering.and(live.vlan_filtering), ..live };
                let replace = Change::Link(Op::Replace { new, old });
                plan.steps.push(Step::new(replace, "differs from the declaration"));
            }
            Some(_) => plan.blocked.push(Blocked::new(
                new.set_command(),
                "the bridge has another owner (it lacks the alias node-fixer) and is not changed; run this command \
                 yourself, or declare its current values, except whether it is up"
                    .into(),
            )),
        }
    }
    let declared = sorted::set(desired.bridges.iter().map(|wish| &wish.name));
    let gone: Vec<_> = live.iter().filter(|it| it.ours && !declared.contains(&it.dev.name)).collect();
    // Ports only leave a deleted bridge. Links built on it would be deleted with it.
    let foreign = if gone.is_empty() { BTreeMap::new() } else { ownership::foreign(observed)? };
    for gone in gone {
        let change = Change::Link(Op::Delete(settings(gone)));
        let index = gone.dev.index;
        let addresses = foreign.get(&index).into_iter().flatten().map(ToString::to_string);
        let links = observed.links_on()?.get(&index).into_iter().flatten().map(|name| format!("the interface {name}"));
        let others: Vec<String> = addresses.chain(links).collect();
        if others.is_empty() {
            let reason = "created by node-fixer, and no longer declared";
            plan.removals.push(Step::new(change, reason));
        } else {
            let because = format!("{} of another owner would be deleted with it; remove that first", others.join(", "));
            plan.blocked.push(Blocked::new(change.to_string(), because));
        }
    }
    ports::plan(desired, observed, &mut plan)?;
    let some = live.iter().any(|bridge| bridge.ours) || !plan.steps.is_empty();
    plan.leaves = Some(some);
    Ok(plan)
}

/// The declared bridges that exist but cannot be used: they are no bridges, or their settings are another owner's.
pub fn unusable_bridges<'a>(desired: &'a Config, observed: &Observed) -> Result<BTreeSet<&'a IfName>, Gap> {
    let to_create = sorted::set(bridges_to_create(desired, observed)?);
    let live = if desired.bridges.is_empty() { &[] } else { observed.bridges()? };
    let by_name = by_name(live);
    let is_usable = |wish: &config::Bridge| match by_name.get(&wish.name) {
        Some(seen) => seen.ours || is_so(seen, &wanted(wish)),
        None => to_create.contains(&wish.name),
    };
    Ok(sorted::set(desired.bridges.iter().filter(|wish| !is_usable(wish)).map(|wish| &wish.name)))
}

fn by_name(live: &[SeenBridge]) -> BTreeMap<&IfName, &SeenBridge> {
    sorted::map(live.iter().map(|bridge| (&bridge.dev.name, bridge)))
}

fn wanted(wish: &config::Bridge) -> LinkSettings {
    let (name, kind) = (wish.name.clone(), LinkKind::Bridge);
    let (mtu, stp, vlan_filtering) = (wish.mtu.map(|mtu| mtu.0), wish.stp, wish.vlan_filtering);
    LinkSettings { name, kind, up: Some(true), mtu, stp, vlan_filtering, port_of: None }
}

fn settings(seen: &SeenBridge) -> LinkSettings {
    let (name, kind) = (seen.dev.name.clone(), LinkKind::Bridge);
    let (up, mtu, stp, vlan_filtering) = (Some(seen.up), Some(seen.mtu), Some(seen.stp), Some(seen.vlan_filtering));
    LinkSettings { name, kind, up, mtu, stp, vlan_filtering, port_of: None }
}

fn is_so(seen: &SeenBridge, wanted: &LinkSettings) -> bool {
    seen.up
        && wanted.mtu.is_none_or(|mtu| mtu == seen.mtu)
        && wanted.stp.is_none_or(|stp| stp == seen.stp)
        && wanted.vlan_filtering.is_none_or(|on| on == seen.vlan_filtering)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::history::memory::{Kind, Note};
    use crate::reconcile::testing::{Model, desired};

    #[test]
    fn declared_bridges_are_made_so() {
        let declared = "bridges: [{name: br0, addresses: [10.0.0.1/16], mtu: 1400, stp: true}]";
        let add = "ip link add name br0 up mtu 1400 type bridge stp_state 1 && ip link set dev br0 alias node-fixer";
        let set = "ip link set dev br0 up mtu 1400 type bridge stp_state 1";
        for (case, yaml, node, commands, removals, blocked) in [
            ("missing", declared, "", vec![add], vec![], 0),
            ("there", declared, "bridge 2 br0 ours mtu=1400 stp", vec![], vec![], 0),
            ("ours, otherwise", declared, "bridge 2 br0 ours mtu=1500", vec![set], vec![], 0),
            (
                "ours, down",
                "bridges: [{name: br0}]",
                "bridge 2 br0 ours down",
                vec!["ip link set dev br0 up"],
                vec![],
                0,
            ),
            (
                "what is not declared is left",
                "bridges: [{name: br0}]",
                "bridge 2 br0 ours mtu=9000 stp",
                vec![],
                vec![],
                0,
            ),
            ("of others, as declared", declared, "bridge 2 br0 mtu=1400 stp", vec![], vec![], 0),
            ("of others, otherwise", declared, "bridge 2 br0", vec![], vec![], 1),
            ("no bridge", declared, "link 2 br0", vec![], vec![], 1),
            (
                "no longer declared",
                "{}",
                "bridge 2 br0 ours 10.0.0.1/16=171",
                vec![],
                vec!["ip link del dev br0 type bridge"],
                0,
            ),
            ("no longer declared, with an address of others", "{}", "bridge 2 br0 ours 10.0.0.1/16", vec![], vec![], 1),
            ("of others, not declared", "{}", "bridge 2 br0", vec![], vec![], 0),
        ] {
            let plan = Model::new(node).plan_section("bridges", &desired(yaml));
            let shown = |steps: &[Step]| steps.iter().map(|step| step.change.to_string()).collect::<Vec<_>>();
            assert_eq!(shown(&plan.steps), commands, "{case}");
            assert_eq!(shown(&plan.removals), removals, "{case}");
            assert_eq!(plan.blocked.len(), blocked, "{case}: {:?}", plan.blocked);
        }
    }

    #[test]
    fn nothing_declared_and_nothing_made_is_not_looked_for() {
        let mut node = Model::new("bridge 2 br0");
        assert_eq!(node.plan_section("bridges", &desired("{}")).remember, [Note::Made(Kind::Bridges, false)]);
        node.recall.memory.take(Note::Made(Kind::Bridges, false), Duration::ZERO);
        node.asked.clear();
        assert_eq!(node.plan_section("bridges", &desired("{}")), Plan::default());
        assert_eq!(node.asked, [crate::observed::Want::Recall]);
    }
}
