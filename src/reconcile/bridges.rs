//! `bridges`: what is declared is made so, and what carries our mark and is no longer declared goes. An interface of
//! that name that is no bridge is never replaced, a bridge of others neither set nor deleted. The addresses are the
//! business of [`super::addresses`].

use std::collections::{BTreeMap, BTreeSet};

use super::addresses;
use crate::change::{Blocked, Change, Plan, Step};
use crate::desired::{self, Desired};
use crate::memory::{Kind, Note};
use crate::net::{Bridge, IfName};
use crate::observed::{Gap, Observed, SeenBridge};
use crate::sorted;

pub fn plan(desired: &Desired, observed: &Observed) -> Result<Plan, Gap> {
    let mut plan = Plan::default();
    let known = observed.recall()?.memory.made.get(&Kind::Bridges).copied();
    if desired.bridges.is_empty() && known == Some(false) {
        return Ok(plan);
    }
    let live = observed.bridges()?;
    let by_name = by_name(live);
    let missing = sorted::set(to_come(desired, observed)?);
    for wish in &desired.bridges {
        let step = |change| Step { change, reason: "declared, and not so".into() };
        let new = wanted(wish);
        match by_name.get(&wish.name).copied() {
            None if missing.contains(&wish.name) => plan.steps.push(step(Change::AddBridge(new))),
            None => plan.blocked.push(Blocked::new(
                new.add_command(),
                format!(
                    "{} is there and is no bridge; it is never replaced. Rename or delete it, or declare another name",
                    wish.name
                ),
            )),
            Some(seen) if is_so(seen, &new) => {}
            Some(seen) if seen.ours => {
                // What is not declared is not set, and so not set back.
                let Bridge { name, up, mtu, stp } = settings(seen);
                let old = Bridge { name, up, mtu: new.mtu.and(mtu), stp: new.stp.and(stp) };
                plan.steps.push(step(Change::SetBridge { new, old }));
            }
            Some(_) => plan.blocked.push(Blocked::new(
                new.set_command(),
                "the bridge belongs to another owner (it lacks the alias node-fixer) and is not changed; run this \
                 command yourself, or, for its mtu and stp, declare the values that it has"
                    .into(),
            )),
        }
    }
    let declared = sorted::set(desired.bridges.iter().map(|wish| &wish.name));
    let gone: Vec<_> = live.iter().filter(|it| it.ours && !declared.contains(&it.dev.name)).collect();
    // Its ports only leave it. These would go with it.
    let foreign = if gone.is_empty() { BTreeMap::new() } else { addresses::foreign(observed)? };
    for gone in gone {
        let change = Change::DeleteBridge(settings(gone));
        let index = gone.dev.index;
        let addresses = foreign.get(&index).into_iter().flatten().map(ToString::to_string);
        let links = observed.links_on()?.get(&index).into_iter().flatten().map(|name| format!("the interface {name}"));
        let others: Vec<String> = addresses.chain(links).collect();
        if others.is_empty() {
            let reason = "node-fixer made it, and it is no longer declared".into();
            plan.removals.push(Step { change, reason });
        } else {
            let because = format!("{} of others would go with it; take that away first", others.join(", "));
            plan.blocked.push(Blocked::new(change.to_string(), because));
        }
    }
    let some = live.iter().any(|bridge| bridge.ours) || !plan.steps.is_empty();
    plan.remember.extend((known != Some(some)).then_some(Note::Made(Kind::Bridges, some)));
    Ok(plan)
}

/// The declared bridges that are not there yet, and can be made.
pub fn to_come<'a>(desired: &'a Desired, observed: &Observed) -> Result<Vec<&'a IfName>, Gap> {
    let names = || desired.bridges.iter().map(|wish| &wish.name);
    let links = observed.links_named(names().cloned())?;
    Ok(names().zip(links).filter(|(_, link)| link.is_none()).map(|(name, _)| name).collect())
}

/// The declared bridges that are there but must not be used: they are none, or are set by others.
pub fn refused<'a>(desired: &'a Desired, observed: &Observed) -> Result<BTreeSet<&'a IfName>, Gap> {
    let to_come = sorted::set(to_come(desired, observed)?);
    let live = if desired.bridges.is_empty() { &[] } else { observed.bridges()? };
    let by_name = by_name(live);
    let is_usable = |wish: &desired::Bridge| match by_name.get(&wish.name) {
        Some(seen) => seen.ours || is_so(seen, &wanted(wish)),
        None => to_come.contains(&wish.name),
    };
    Ok(sorted::set(desired.bridges.iter().filter(|wish| !is_usable(wish)).map(|wish| &wish.name)))
}

fn by_name(live: &[SeenBridge]) -> BTreeMap<&IfName, &SeenBridge> {
    sorted::map(live.iter().map(|bridge| (&bridge.dev.name, bridge)))
}

fn wanted(wish: &desired::Bridge) -> Bridge {
    Bridge { name: wish.name.clone(), up: true, mtu: wish.mtu.map(|mtu| mtu.0), stp: wish.stp }
}

fn settings(seen: &SeenBridge) -> Bridge {
    Bridge { name: seen.dev.name.clone(), up: seen.up, mtu: Some(seen.mtu), stp: Some(seen.stp) }
}

fn is_so(seen: &SeenBridge, wanted: &Bridge) -> bool {
    seen.up && wanted.mtu.is_none_or(|mtu| mtu == seen.mtu) && wanted.stp.is_none_or(|stp| stp == seen.stp)
}

#[cfg(test)]
mod tests {
    use super::*;
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
            let plan = Model::new(node).plan(plan, &desired(yaml));
            let shown = |steps: &[Step]| steps.iter().map(|step| step.change.to_string()).collect::<Vec<_>>();
            assert_eq!(shown(&plan.steps), commands, "{case}");
            assert_eq!(shown(&plan.removals), removals, "{case}");
            assert_eq!(plan.blocked.len(), blocked, "{case}: {:?}", plan.blocked);
        }
    }

    #[test]
    fn nothing_declared_and_nothing_made_is_not_looked_for() {
        let mut node = Model::new("bridge 2 br0");
        assert_eq!(node.plan(plan, &desired("{}")).remember, [Note::Made(Kind::Bridges, false)]);
        node.recall.memory.take(Note::Made(Kind::Bridges, false));
        node.asked.clear();
        assert_eq!(node.plan(plan, &desired("{}")), Plan::default());
        assert_eq!(node.asked, [crate::observed::Want::Recall]);
    }
}
