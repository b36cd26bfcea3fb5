//! `uplinks`: they get the declared MTU, and their previous one when it is no longer declared, if it is still
//! node-fixer's. It is never lowered below what links over the uplink need. Bridges, and other links built on links,
//! follow the link they are built on, and are not changed.
//!
//! An MTU carries no mark: the previous one is saved until the next boot. An uplink that loses its role keeps its MTU,
//! because it may regain the role in a moment.

use crate::change::{Blocked, Change, Notice, Op, Plan, Step};
use crate::config::{Config, Interfaces, Mode};
use crate::history::memory::{Note, SetMtu};
use crate::model::{Family, IfName, LEAST_IPV6_MTU, LinkSettings};
use crate::observed::{Gap, Link, Observed, TUNNELS};
use crate::topology::Topology;
use crate::topology::forecast::DeclaredRules;

/// Whether an MTU is declared.
pub fn is_declared(desired: &Config) -> bool {
    desired.uplinks.mtu.is_some()
}

pub fn plan(desired: &Config, observed: &Observed) -> Result<Plan, Gap> {
    let mut plan = Plan::default();
    let remembered = &observed.recall()?.memory.mtus;
    let mut noted = Vec::new();
    if let Some(mtu) = desired.uplinks.mtu {
        for link in uplinks(desired, observed)? {
            let entry = remembered.iter().find(|entry| entry.index == link.dev.index);
            if link.mtu == mtu.0 {
                noted.extend(entry.cloned());
            } else if desired.uplinks.interfaces == Interfaces::Auto && !is_settable(link) {
                plan.notices.push(notice(link));
            } else if let Some(because) = unsafe_to_set(link, mtu.0, desired, observed)? {
                plan.blocked.push(Blocked::new(settings(link, mtu.0).set_command(), because));
                noted.extend(entry.cloned());
            } else {
                let reason = format!("the MTU of {} is {}, want {}", link.dev.name, link.mtu, mtu.0);
                plan.steps.push(Step::new(set(link, mtu.0), reason));
                // A value that another program has set since is the new previous value.
                let ours = entry.filter(|entry| entry.is_ours(link.mtu));
                let (index, before) = (link.dev.index, ours.map_or(link.mtu, |entry| entry.before));
                noted.push(SetMtu { index, before, value: mtu.0, earlier: ours.map(|_| link.mtu) });
            }
        }
    }
    let left: Vec<&SetMtu> = remembered.iter().filter(|it| !noted.iter().any(|new| new.index == it.index)).collect();
    let links = observed.links(left.iter().map(|entry| entry.index))?;
    for (entry, link) in left.into_iter().zip(links) {
        // Not if it is gone, restored, or changed by another program since.
        let Some(link) = link.filter(|link| entry.is_ours(link.mtu) && link.mtu != entry.before) else { continue };
        noted.push(entry.clone());
        if is_selected(desired, &link.dev.name) {
            continue;
        }
        match unsafe_to_set(link, entry.before, desired, observed)? {
            Some(because) => plan.blocked.push(Blocked::new(settings(link, entry.before).set_command(), because)),
            None => {
                let reason = format!(
                    "the MTU of {} was {} before node-fixer changed it; it is no longer declared",
                    link.dev.name, entry.before
                );
                plan.removals.push(Step::new(set(link, entry.before), reason));
            }
        }
    }
    // In observe mode nothing is set.
    if desired.uplinks.mode == Mode::Enforce {
        plan.remember.extend((noted != *remembered).then_some(Note::Mtus(noted)));
    }
    Ok(plan)
}

/// The uplinks, by their role or by name, that exist. A declared bridge gets its MTU from `bridges`.
fn uplinks<'a>(desired: &Config, observed: &'a Observed) -> Result<Vec<&'a Link>, Gap> {
    let declared = DeclaredRules::to_come(desired, observed)?;
    let topology = Topology::after(desired, &declared, observed);
    let indexes = match &desired.uplinks.interfaces {
        Interfaces::Auto => topology.uplinks()?,
        Interfaces::Named(_) => topology.with_global_address()?,
    };
    let is_bridge = |link: &Link| desired.bridges.iter().any(|bridge| bridge.name == link.dev.name);
    let links = observed.links(indexes)?.into_iter().flatten();
    Ok(links.filter(|link| is_selected(desired, &link.dev.name) && !is_bridge(link)).collect())
}

/// Whether an MTU is declared for the interface with this name, if it is an uplink.
fn is_selected(desired: &Config, name: &IfName) -> bool {
    is_declared(desired)
        && match &desired.uplinks.interfaces {
            Interfaces::Auto => true,
            Interfaces::Named(pattern) => pattern.is_match(name.as_bytes()),
        }
}

/// Why a link must not get this MTU; `None` if it may.
fn unsafe_to_set(link: &Link, mtu: u32, desired: &Config, observed: &Observed) -> Result<Option<String>, Gap> {
    let name = &link.dev.name;
    if !is_settable(link) {
        return Ok(Some(format!("{}; set the MTU of that link, or select other interfaces", made_by_software(link))));
    }
    if mtu >= link.mtu {
        return Ok(None);
    }
    let has_ipv6 =
        observed.addresses()?.iter().any(|it| it.index == link.dev.index && Family::of(it.local) == Family::V6);
    if mtu < LEAST_IPV6_MTU && has_ipv6 {
        return Ok(Some(format!(
            "{name} has IPv6 addresses, which the kernel would remove: IPv6 requires {LEAST_IPV6_MTU}; declare at \
             least that",
        )));
    }
    let master = observed.links(link.master)?.into_iter().flatten();
    // Tunnels that are not bound to a link may send through this one.
    let on = observed.links_on()?;
    let names = [link.dev.index, 0].into_iter().filter_map(|index| on.get(&index)).flatten();
    let above = observed.links_named(names.cloned())?.into_iter().flatten().filter(|above| above.up);
    let declared = |above: &Link| desired.bridges.iter().find(|it| it.name == above.dev.name)?.mtu.map(|mtu| mtu.0);
    // A bridge whose MTU was never set follows its ports.
    let needed = |above: &Link| match declared(above) {
        None if *above.kind == *b"bridge" && above.mtu == link.mtu => (0, 0),
        None if *above.kind == *b"bond" || *above.kind == *b"team" => (0, 0),
        mtu => {
            let overhead = TUNNELS.iter().find(|(kind, _)| **kind == *above.kind).map_or(0, |(_, overhead)| *overhead);
            (mtu.unwrap_or(above.mtu), overhead)
        }
    };
    let above = master.chain(above).map(|above| (needed(above), above));
    let largest =
        above.filter(|((inner, outer), _)| inner + outer > mtu).max_by_key(|((inner, outer), _)| inner + outer);
    Ok(largest.map(|((inner, outer), above)| {
        let with = if outer == 0 { String::new() } else { format!(" and adds {outer} bytes to each packet") };
        format!(
            "{} over it has an MTU of {inner}{with}, so its packets would be dropped; lower that first, or declare at \
             least {}",
            above.dev.name,
            inner + outer
        )
    }))
}

/// Whether it has its own MTU: a bridge, a VLAN or a tunnel depends on the link it is built on.
fn is_settable(link: &Link) -> bool {
    matches!(&*link.kind, b"" | b"veth" | b"bond" | b"team")
}

fn made_by_software(link: &Link) -> String {
    let kind = String::from_utf8_lossy(&link.kind).escape_debug().to_string();
    format!("{} is a virtual link ({kind}) whose MTU is limited by the link it is built on", link.dev.name)
}

fn notice(link: &Link) -> Notice {
    let text = format!("{}; uplinks.mtu does not change it: set the MTU of that link", made_by_software(link));
    Notice { text, problem: None }
}

fn set(link: &Link, mtu: u32) -> Change {
    Change::Link(Op::Replace { new: settings(link, mtu), old: settings(link, link.mtu) })
}

fn settings(link: &Link, mtu: u32) -> LinkSettings {
    LinkSettings { mtu: Some(mtu), ..LinkSettings::of(link.dev.name.clone()) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::reconcile::testing::{Model, desired};

    const NODE: &str = "
        link 1 lo 127.0.0.1/8
        link 2 eth0 10.0.0.10/24
        link 3 eth1 10.0.1.10/24 mtu=1400
        link 4 eni1
        link 9 storage0 10.0.9.9/24
        route default via 10.0.0.1 dev 2
        rule 100 from 10.0.1.10 table 3
        route default via 10.0.1.1 dev 3 table 3";

    /// One run: what it does, and what it blocks.
    fn run(node: &mut Model, yaml: &str) -> (Vec<String>, Vec<Blocked>) {
        let plan = node.plan_section("uplinks", &desired(yaml));
        for note in plan.remember {
            node.recall.memory.take(note, Duration::ZERO);
        }
        let steps: Vec<_> = plan.steps.into_iter().chain(plan.removals).collect();
        steps.iter().for_each(|step| node.make(step));
        (steps.iter().map(|step| step.change.to_string()).collect(), plan.blocked)
    }

    fn set_to(mtus: &[(&str, u32)]) -> (Vec<String>, Vec<Blocked>) {
        (mtus.iter().map(|(name, mtu)| format!("ip link set dev {name} mtu {mtu}")).collect(), Vec::new())
    }

    #[test]
    fn uplinks_get_the_declared_mtu_and_their_own_back() {
        let mut node = Model::new(NODE);
        assert_eq!(run(&mut node, "{}"), set_to(&[]));
        assert_eq!(run(&mut node, "uplinks: {mtu: 9001}"), set_to(&[("eth0", 9001), ("eth1", 9001)]), "by their role");
        assert_eq!(run(&mut node, "uplinks: {mtu: 9001}"), set_to(&[]));
        assert_eq!(run(&mut node, "uplinks: {mtu: 8000}"), set_to(&[("eth0", 8000), ("eth1", 8000)]));
        assert_eq!(run(&mut node, "uplinks: {mtu: 8000, interfaces: '^eth1$'}"), set_to(&[("eth0", 1500)]));
        assert_eq!(run(&mut node, "{}"), set_to(&[("eth1", 1400)]), "the MTU before the first change");
        assert_eq!(run(&mut node, "{}"), set_to(&[]));
        assert!(node.recall.memory.mtus.is_empty(), "{:?}", node.recall.memory);
        assert_eq!(run(&mut node, "uplinks: {mtu: 9001, interfaces: '^storage'}"), set_to(&[("storage0", 9001)]));
    }

    #[test]
    fn what_others_set_since_stays() {
        let mut node = Model::new(NODE);
        run(&mut node, "uplinks: {mtu: 9001}");
        node.links[1].mtu = 3000;
        assert_eq!(run(&mut node, "{}"), set_to(&[("eth1", 1400)]));
        // Another link of the same name is not the one that was set.
        let mut node = Model::new(NODE);
        run(&mut node, "uplinks: {mtu: 9001}");
        node.links[1].dev.index = 20;
        assert_eq!(run(&mut node, "{}"), set_to(&[("eth1", 1400)]));
    }

    #[test]
    fn what_was_there_is_not_lost_by_a_change_that_is_refused_or_cut_short() {
        let mut node = Model::new(NODE);
        run(&mut node, "uplinks: {mtu: 9001}");
        // Noted, and not made: twice, as a run does that looks again.
        for mtu in [9500, 9400] {
            let plan = node.plan_section("uplinks", &desired(&format!("uplinks: {{mtu: {mtu}}}")));
            plan.remember.into_iter().for_each(|note| node.recall.memory.take(note, Duration::ZERO));
        }
        assert_eq!(run(&mut node, "{}"), set_to(&[("eth0", 1500), ("eth1", 1400)]));
    }

    #[test]
    fn what_is_built_on_others_is_not_set() {
        let over = |link: &str| Model::new(&format!("link 2 {link} 10.0.0.10/24\nroute default via 10.0.0.1 dev 2"));
        for (link, yaml, blocked) in [
            ("br0 kind=bridge", "uplinks: {mtu: 9001}", 0),
            ("br0 kind=bridge", "uplinks: {mtu: 9001, interfaces: br0}", 1),
            ("eth0.7 kind=vlan", "uplinks: {mtu: 9001, interfaces: eth}", 1),
            ("bond0 kind=bond", "uplinks: {mtu: 9001}", 0),
            ("eth0.7 kind=vlan", "uplinks: {mtu: 1500}", 0),
            ("br0 kind=bridge", "{uplinks: {mtu: 9001}, bridges: [{name: br0, mtu: 4000}]}", 0),
        ] {
            let (steps, said) = run(&mut over(link), yaml);
            assert_eq!(
                (steps.len(), said.len()),
                (usize::from(link.starts_with("bond")), blocked),
                "{link} {yaml} {said:?}"
            );
        }
    }

    #[test]
    fn an_uplink_without_its_role_keeps_its_mtu() {
        let mut node = Model::new(NODE);
        run(&mut node, "uplinks: {mtu: 9001}");
        let addresses = std::mem::take(&mut node.addresses);
        assert_eq!(run(&mut node, "uplinks: {mtu: 9001}"), set_to(&[]));
        node.addresses = addresses;
        assert_eq!(run(&mut node, "{}"), set_to(&[("eth0", 1500), ("eth1", 1400)]), "and is not forgotten");
    }

    #[test]
    fn what_is_only_observed_is_not_remembered() {
        let mut node = Model::new(NODE);
        let plan = node.plan_section("uplinks", &desired("uplinks: {mtu: 9001, mode: observe}"));
        assert_eq!((plan.steps.len(), plan.remember), (2, vec![]));
    }

    #[test]
    fn it_is_never_smaller_than_what_is_over_it_needs() {
        let bridge = "bridge 5 br0 mtu=1500 kind=bridge\nlink 2 eth0 10.0.0.10/24 mtu=9001 master=5";
        let over = |more: &str, on: &str| {
            let links = format!("link 2 eth0 10.0.0.10/24 mtu=9001\n{more}\nroute default via 10.0.0.1 dev 2");
            let mut node = Model::new(&links);
            node.links_on.extend(IfName::new(on.as_bytes()));
            node
        };
        let by_bridge = || Model::new(&format!("{bridge}\nroute default via 10.0.0.1 dev 2"));
        let smaller = "uplinks: {mtu: 1400}";
        for (case, mut node, yaml, least) in [
            ("a port of a bridge", by_bridge(), smaller, Some("declare at least 1500")),
            (
                "a bridge whose MTU is declared",
                by_bridge(),
                "{uplinks: {mtu: 2000}, bridges: [{name: br0, mtu: 4000}]}",
                Some("declare at least 4000"),
            ),
            (
                "a bridge that follows its ports",
                Model::new(&format!("{}\nroute default via 10.0.0.1 dev 2", bridge.replace("mtu=1500", "mtu=9001"))),
                smaller,
                None,
            ),
            ("a tunnel that is down", over("link 6 tunl0 down mtu=1480 kind=ipip", "tunl0"), smaller, None),
            ("a bridge that fits", by_bridge(), "uplinks: {mtu: 1500}", None),
            ("a VLAN", over("link 6 eth0.7 mtu=1500 kind=vlan", "eth0.7"), smaller, Some("at least 1500")),
            ("a tunnel", over("link 6 vx mtu=1450 kind=vxlan", "vx"), smaller, Some("at least 1500")),
            ("a tunnel that fits", over("link 6 vx mtu=1450 kind=vxlan", "vx"), "uplinks: {mtu: 1500}", None),
            ("WireGuard", over("link 6 wg0 mtu=1420 kind=wireguard", "wg0"), smaller, Some("at least 1500")),
            (
                "IPv6",
                over("link 7 eth1 fd00::1/64 mtu=9001", ""),
                "uplinks: {mtu: 1000, interfaces: eth1}",
                Some("least that"),
            ),
            ("IPv4 alone", over("", ""), "uplinks: {mtu: 1000}", None),
            (
                "more than before is never too small",
                over("link 6 vx mtu=9500 kind=vxlan", "vx"),
                "uplinks: {mtu: 9400}",
                None,
            ),
        ] {
            let (steps, blocked) = run(&mut node, yaml);
            match least {
                None => assert_eq!((steps.len(), blocked), (1, vec![]), "{case}"),
                Some(least) => {
                    assert_eq!(steps, [""; 0], "{case}");
                    assert!(blocked[0].because.contains(least), "{case}: {blocked:?}");
                }
            }
        }
    }

    #[test]
    fn what_is_over_it_may_also_keep_it_from_what_it_was() {
        let mut node = Model::new(NODE);
        run(&mut node, "uplinks: {mtu: 9001}");
        node.links.push(Link {
            mtu: 8000,
            kind: Box::from(&b"vlan"[..]),
            ..crate::reconcile::testing::link(8, "eth0.8")
        });
        node.links_on.extend(IfName::new(b"eth0.8"));
        let (steps, blocked) = run(&mut node, "{}");
        assert_eq!((steps.len(), blocked.len()), (0, 2), "{steps:?} {blocked:?}");
        node.links_on.clear();
        assert_eq!(run(&mut node, "{}"), set_to(&[("eth0", 1500), ("eth1", 1400)]), "it was not forgotten");
    }
}
