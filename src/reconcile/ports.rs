//! The ports of declared bridges: an interface that a pattern matches is added to its bridge, and added again after it
//! was removed. An interface that belongs to another link stays there. A port that node-fixer added and that is no
//! longer declared is removed from the bridge.

use std::collections::BTreeSet;

use super::ownership;
use crate::change::{Blocked, Change, Notice, Op, Plan, Step};
use crate::config::{self, Config};
use crate::history::memory::{Note, Port};
use crate::model::{IfName, LinkSettings};
use crate::observed::{Gap, Link, Observed};
use crate::sorted;
use crate::topology::forecast::bridges_to_create;

/// The directory that lists the interfaces: a dump of them would cost far more.
const NAMES: &str = "net/ipv4/conf";

/// Adds the changes of the bridges' ports to the plan.
pub fn plan(desired: &Config, observed: &Observed, plan: &mut Plan) -> Result<(), Gap> {
    let remembered = &observed.recall()?.memory.ports;
    let with_ports = || desired.bridges.iter().filter(|wish| !wish.ports.is_empty());
    let mut noted = BTreeSet::new();
    if with_ports().next().is_some() {
        let names = observed.sysctl_names([NAMES.to_owned()])?;
        let names: Vec<IfName> = names.into_iter().flatten().filter_map(|name| IfName::new(name)).collect();
        let usable = usable_bridges(desired, observed)?;
        let mut selected = BTreeSet::new();
        for wish in with_ports() {
            let mut ports = ports_of(wish, &names, observed)?;
            // If two bridges match it, it belongs to the first.
            ports.retain(|port| selected.insert(port.dev.index));
            let live = observed.links_named([wish.name.clone()])?.first().copied().flatten();
            for port in &ports {
                let note = Port { index: port.dev.index, bridge: wish.name.to_string() };
                let is_in = live.is_some() && port.master == live.map(|bridge| bridge.dev.index);
                if is_in && remembered.contains(&note) || !is_in && wish_for(wish, port, &usable, observed, plan)? {
                    noted.insert(note);
                }
            }
            plan.notices.extend(live.and_then(|bridge| without_carrier(bridge, &ports)));
        }
    }
    take_out(remembered, &mut noted, observed, plan)?;
    if noted != *remembered {
        plan.remember.push(Note::Ports(noted));
    }
    Ok(())
}

/// The declared bridges that node-fixer owns, or will own.
fn usable_bridges<'a>(desired: &'a Config, observed: &'a Observed) -> Result<BTreeSet<&'a IfName>, Gap> {
    let ours = observed.bridges()?.iter().filter(|bridge| bridge.ours).map(|bridge| &bridge.dev.name);
    Ok(sorted::set(ours.chain(bridges_to_create(desired, observed)?)))
}

/// The interfaces that its patterns match.
fn ports_of<'a>(wish: &config::Bridge, names: &[IfName], observed: &'a Observed) -> Result<Vec<&'a Link>, Gap> {
    let is_port = |name: &&IfName| {
        !matches!(name.as_bytes(), b"all" | b"default" | b"lo")
            && **name != wish.name
            && wish.ports.iter().any(|pattern| pattern.is_match(name.as_bytes()))
    };
    Ok(observed.links_named(names.iter().filter(is_port).cloned())?.into_iter().flatten().collect())
}

fn set(port: &IfName, bridge: Option<&IfName>) -> LinkSettings {
    LinkSettings { port_of: Some(bridge.cloned()), ..LinkSettings::of(port.clone()) }
}

/// Handles an interface that is declared as a port of the bridge and is not; returns whether it is added.
fn wish_for(
    wish: &config::Bridge,
    port: &Link,
    usable: &BTreeSet<&IfName>,
    observed: &Observed,
    plan: &mut Plan,
) -> Result<bool, Gap> {
    let (name, bridge) = (&port.dev.name, &wish.name);
    if let Some(master) = port.master {
        let of = observed.links([master])?.first().copied().flatten();
        let of = of.map_or_else(|| format!("interface number {master}"), |of| of.dev.name.to_string());
        let text = format!(
            "{name} matches the ports of {bridge}, but belongs to {of}; remove it there, or select other ports"
        );
        plan.notices.push(Notice { text, problem: None });
        return Ok(false);
    }
    let change = Change::Link(Op::Replace { new: set(name, Some(bridge)), old: set(name, None) });
    let foreign = ownership::foreign(observed)?;
    let because = match foreign.get(&port.dev.index).and_then(|all| all.first()) {
        _ if !usable.contains(bridge) => {
            format!(
                "{bridge} belongs to another owner (it lacks the alias node-fixer), and its ports are not \
                     changed; add them there, or declare another bridge"
            )
        }
        Some(address) => format!(
            "{name} has the address {address}, which would become unreachable; move it to {bridge} first, or select \
             other ports"
        ),
        None => {
            plan.steps.push(Step::new(change, format!("not a port of {bridge}")));
            return Ok(true);
        }
    };
    plan.blocked.push(Blocked::new(change.to_string(), because));
    Ok(false)
}

/// A bridge without a connected port: its packets reach nothing.
fn without_carrier(bridge: &Link, ports: &[&Link]) -> Option<Notice> {
    let mut own = ports.iter().filter(|port| port.master == Some(bridge.dev.index));
    let is_dead = bridge.up && !bridge.carrier && !own.clone().any(|port| port.carrier);
    let why = match own.next() {
        None => "it has no declared port",
        Some(_) => "none of its declared ports is up and connected",
    };
    let text = format!("{} has no carrier: {why}", bridge.dev.name);
    is_dead.then_some(Notice { text, problem: None })
}

/// Removes ports that node-fixer added and that are no longer declared, if they still belong to that bridge.
fn take_out(
    remembered: &BTreeSet<Port>,
    noted: &mut BTreeSet<Port>,
    observed: &Observed,
    plan: &mut Plan,
) -> Result<(), Gap> {
    let gone: Vec<&Port> = remembered.iter().filter(|port| !noted.contains(port)).collect();
    let links = observed.links(gone.iter().map(|port| port.index))?;
    for (entry, port) in gone.into_iter().zip(links).filter_map(|(entry, link)| Some((entry, link?))) {
        let Some(master) = port.master else { continue };
        let Some(bridge) = observed.links([master])?.first().copied().flatten() else { continue };
        let name = &bridge.dev.name;
        // Its ports leave a bridge that is deleted.
        if name.to_string() == entry.bridge && !goes(plan, name) {
            let change = Op::Replace { new: set(&port.dev.name, None), old: set(&port.dev.name, Some(name)) };
            let reason = format!("added to {name} by node-fixer, and no longer declared");
            plan.removals.push(Step::new(Change::Link(change), reason));
            noted.insert(entry.clone());
        }
    }
    Ok(())
}

/// Whether the plan deletes this bridge.
fn goes(plan: &Plan, bridge: &IfName) -> bool {
    let is_it = |step: &Step| matches!(&step.change, Change::Link(Op::Delete(gone)) if gone.name == *bridge);
    plan.removals.iter().any(is_it)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::bridges;
    use crate::change::{Plan, Step};
    use crate::config::Config;
    use crate::reconcile::testing::{Model, desired};

    fn commands(steps: &[Step]) -> Vec<String> {
        steps.iter().map(|step| step.change.to_string()).collect()
    }

    /// Plans, and does as planned.
    fn run(node: &mut Model, desired: &Config) -> Plan {
        let plan = node.plan(bridges::plan, desired);
        plan.remember.iter().for_each(|note| node.recall.memory.take(note.clone(), Duration::ZERO));
        plan.steps.iter().chain(&plan.removals).for_each(|step| node.make(step));
        plan
    }

    #[test]
    fn ports_are_put_into_their_bridge_and_back() {
        let declared = desired("bridges: [{name: br0, ports: ['^tap', '^vh_1$']}, {name: br1, ports: ['^tap']}]");
        let mut node = Model::new(
            "bridge 9 br0 ours\nbridge 10 br1 ours\nbridge 11 virbr0\nlink 2 eth0 10.0.0.1/24\nlink 3 tap1\n\
             link 4 tap2 master=11\nlink 5 vh_1 master=9\nlink 6 tap3 10.7.0.1/24\nlink 7 tap4 fe80::1/64",
        );
        let plan = run(&mut node, &declared);
        let set = ["ip link set dev tap1 master br0", "ip link set dev tap4 master br0"];
        assert_eq!(commands(&plan.steps), set);
        let blocked: Vec<_> = plan.blocked.iter().map(|it| it.because.as_str()).collect();
        assert!(matches!(blocked.as_slice(), [one] if one.starts_with("tap3 has the address 10.7.0.1")), "{blocked:?}");
        assert_eq!(plan.notices.len(), 1, "tap2 is virbr0's: {:?}", plan.notices);
        assert_eq!(run(&mut node, &declared).steps, []);
        // It fell out.
        node.links.iter_mut().find(|link| link.dev.index == 3).unwrap().master = None;
        assert_eq!(commands(&run(&mut node, &declared).steps), set[..1]);
        let less = desired("bridges: [{name: br0, ports: ['^tap1$']}, {name: br1}]");
        assert_eq!(
            commands(&run(&mut node, &less).removals),
            ["ip link set dev tap4 nomaster"],
            "and vh_1 was not ours"
        );
        let plan = run(&mut node, &less);
        assert_eq!((plan.steps, plan.removals), (vec![], vec![]));
        assert_eq!(run(&mut node, &less), Plan { leaves: Some(true), ..Plan::default() });
    }

    #[test]
    fn a_bridge_that_is_to_come_has_its_ports_and_takes_them_along() {
        let declared = desired("bridges: [{name: br0, vlan_filtering: true, ports: ['^tap1$']}]");
        let mut node = Model::new("link 3 tap1");
        let plan = run(&mut node, &declared);
        assert_eq!(
            commands(&plan.steps),
            [
                "ip link add name br0 up type bridge vlan_filtering 1 && ip link set dev br0 alias node-fixer",
                "ip link set dev tap1 master br0"
            ]
        );
        let plan = run(&mut node, &declared);
        assert_eq!((plan.steps, plan.notices), (vec![], vec![]));
        assert_eq!(commands(&run(&mut node, &desired("{}")).removals), ["ip link del dev br0 type bridge"]);
    }

    #[test]
    fn ports_of_a_bridge_of_others_are_not_changed() {
        let mut node = Model::new("bridge 9 br0\nlink 3 tap1");
        let plan = run(&mut node, &desired("bridges: [{name: br0, ports: ['^tap']}]"));
        assert_eq!((plan.steps.len(), plan.blocked.len()), (0, 1));
    }

    #[test]
    fn a_bridge_without_carrier_is_reported() {
        let declared = desired("bridges: [{name: br0, ports: ['^tap']}]");
        for (tap, expected) in
            [("", Some("br0 has no carrier: it has no declared port")), ("link 3 tap1 master=9", None)]
        {
            let mut node = Model::new(&format!("bridge 9 br0 ours\n{tap}"));
            node.links[0].carrier = false;
            let plan = run(&mut node, &declared);
            assert_eq!(plan.notices.first().map(|notice| notice.text.as_str()), expected);
        }
    }
}
