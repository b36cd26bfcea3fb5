//! `routes`: declared routes are added, and those with node-fixer's protocol that are no longer declared are deleted. A
//! conflicting route that node-fixer added is replaced; one of another owner is left alone, and blocks the declared
//! one.

use std::collections::{BTreeMap, BTreeSet};

use crate::change::{Blocked, Change, Op, Plan, Step};
use crate::config::Config;
use crate::history::memory::{Kind, Note, SeveralHops};
use crate::model::{Dev, Family, IfName, PROTO_DECLARED, PROTO_MENDED, Route, RouteOptions, family_of};
use crate::observed::{Gap, Observed, RouteSet, SeenHop, SeenRoute, Target};
use crate::sorted;
use crate::topology::forecast::{DeclaredRoutes, bridges_to_create, indexes, route_key};

/// The plan of the section.
pub fn plan(desired: &Config, observed: &Observed) -> Result<Plan, Gap> {
    let mut plan = Plan::default();
    let indexes = indexes(desired.routes.iter().flat_map(|wish| wish.devs()), observed)?;
    let to_come = sorted::set(bridges_to_create(desired, observed)?);
    let declared = DeclaredRoutes::of(desired);
    let rivals = declared.rivals(observed)?;
    let memory = &observed.recall()?.memory;
    let ours = [Family::V4, Family::V6].map(|family| RouteSet::Protocol(family, PROTO_DECLARED));
    let none = memory.made.get(&Kind::Routes) == Some(&false);
    let ours = if none { Vec::new() } else { observed.routes(ours)? };
    let ours: Vec<&SeenRoute> = ours.into_iter().flatten().collect();

    // The index of a future interface is not known.
    let index = |name: &IfName| indexes.get(name).copied().unwrap_or_default();
    let (mut wishes, mut several) = (Vec::new(), BTreeSet::new());
    for wish in &desired.routes {
        let wanted = wish.to_route(index);
        if let Some(name) = wish.devs().find(|name| !indexes.contains_key(name) && !to_come.contains(name)) {
            let because = format!("interface {name} does not exist; the route is added when it appears");
            plan.blocked.push(Blocked::new(wanted.command("add"), because));
            continue;
        }
        several.extend(several_hops(&wanted));
        let rivals = rivals.get(&route_key(&wanted)).map_or(&[][..], Vec::as_slice);
        if !rivals.iter().any(|route| does_what(route, &wanted)) {
            wishes.push((wanted, rivals));
        }
    }
    let undeclared: Vec<_> = ours.iter().copied().filter(|route| !declared.has(route)).collect();
    let mut live = LiveRoutes { devs: BTreeMap::new(), made: &memory.several };
    let replaced = wishes.iter().filter_map(|(_, rivals)| live.replaceable(rivals));
    let links = replaced.chain(undeclared.iter().copied().filter(|route| live.is_whole(route)));
    let links = observed.links(sorted::set(links.flat_map(SeenRoute::all_hops).filter_map(|hop| hop.oif)))?;
    live.devs = sorted::map(links.into_iter().flatten().map(|link| (link.dev.index, &link.dev)));
    // On-link routes first, then those through them.
    let mut behind = Plan::default();
    for (wanted, rivals) in wishes {
        let plan = if wanted.has_gateway() { &mut behind } else { &mut plan };
        wish_for(wanted, rivals, &live, plan);
    }
    plan.steps.append(&mut behind.steps);
    plan.blocked.append(&mut behind.blocked);
    for route in undeclared {
        remove(route, &live, &mut plan);
    }
    // Those that still exist, and those that will.
    for there in ours.iter().filter_map(|route| several_hops(&route.to_route(by_number))) {
        match memory.several.get(&there) {
            Some(_) => drop(several.insert(there)),
            // Other programs have added next hops, and may remove them again.
            None => several.extend(memory.several.iter().filter(|it| it.place == there.place).cloned()),
        }
    }
    if several != memory.several {
        plan.remember.push(Note::Several(several));
    }
    plan.leaves = Some(!ours.is_empty() || !plan.steps.is_empty());
    Ok(plan)
}

/// What is known of existing routes.
struct LiveRoutes<'a> {
    devs: BTreeMap<u32, &'a Dev>,
    /// The IPv6 routes with several next hops that node-fixer has added.
    made: &'a BTreeSet<SeveralHops>,
}

impl LiveRoutes<'_> {
    fn route(&self, seen: &SeenRoute) -> Route {
        seen.to_route(|index| self.devs.get(&index).copied().cloned())
    }

    /// The conflicting route that node-fixer owns, and so can be replaced.
    fn replaceable<'b>(&self, rivals: &[&'b SeenRoute]) -> Option<&'b SeenRoute> {
        match rivals {
            // A route that repairs the table gives way to a declared one.
            [ours] if matches!(ours.protocol, PROTO_DECLARED | PROTO_MENDED) && self.is_whole(ours) => Some(ours),
            _ => None,
        }
    }

    /// Whether all of it is node-fixer's. IPv6 merges next hops that others append with node-fixer's route.
    fn is_whole(&self, seen: &SeenRoute) -> bool {
        match several_hops(&seen.to_route(by_number)) {
            Some(hops) => seen.protocol == PROTO_DECLARED && self.made.contains(&hops),
            None => seen.protocol == PROTO_DECLARED || matches!(seen.target, Target::SeenHop(_)),
        }
    }
}

/// An IPv6 route with several next hops, as it is saved; `None` for others.
fn several_hops(route: &Route) -> Option<SeveralHops> {
    if route.family() == Family::V4 || route.hops.len() < 2 {
        return None;
    }
    let mut route = Route { options: RouteOptions::default(), metric: Some(route.stored_metric()), ..route.clone() };
    for hop in &mut route.hops {
        // The kernel reports the interface of each. Its name may change.
        hop.dev = hop.dev.take().filter(|_| hop.via.is_none()).and_then(|dev| by_number(dev.index));
    }
    Some(SeveralHops { place: route.command_for_its_place("show"), route: route.to_string() })
}

/// An interface whose name is not needed.
fn by_number(index: u32) -> Option<Dev> {
    Some(Dev { index, name: IfName::new(index.to_string().as_bytes())? })
}

/// Handles a route of node-fixer's that is no longer declared.
fn remove(route: &SeenRoute, live: &LiveRoutes, plan: &mut Plan) {
    if live.is_whole(route) {
        let reason = "added by node-fixer, and no longer declared";
        plan.removals.push(Step::new(Change::Route(Op::Delete(live.route(route))), reason));
    } else {
        plan.blocked.push(Blocked::new(
            format!("remove the route to {} in table {}, which is no longer declared", route.to, route.table),
            "another program has added next hops to it; delete node-fixer's by hand".into(),
        ));
    }
}

/// Handles a declared route that does not exist.
fn wish_for(wanted: Route, rivals: &[&SeenRoute], live: &LiveRoutes, plan: &mut Plan) {
    let step = |change| Step::new(change, "missing");
    if let Some(ours) = live.replaceable(rivals) {
        return plan.steps.push(step(Change::Route(Op::Replace { new: wanted, old: live.route(ours) })));
    }
    match rivals {
        [] => plan.steps.push(step(Change::Route(Op::Add(wanted)))),
        [rival, ..] => {
            let owner = match rival.protocol {
                PROTO_DECLARED => "a declared route to which another program has added next hops".into(),
                PROTO_MENDED => "a route of node-fixer's to which another program has added next hops".into(),
                protocol => format!("a route of another owner (protocol {protocol})"),
            };
            let because = format!(
                "{owner} has the same table, destination and metric, and is never replaced; delete it ({}), or \
                 declare another metric",
                wanted.command_for_its_place("del"),
            );
            plan.blocked.push(Blocked::new(wanted.command("add"), because));
        }
    }
}

/// Whether a live route does what is declared. A parameter that is not declared is the kernel's default, or another
/// owner's choice; for a route of node-fixer's it is that of an earlier declaration.
fn does_what(live: &SeenRoute, wanted: &Route) -> bool {
    let will = SeenRoute::of(wanted);
    let ours = live.protocol == PROTO_DECLARED;
    let (is, wants) = (&live.options, &wanted.options);
    let leads = match (&live.target, &will.target) {
        (Target::SeenHop(is), Target::SeenHop(wants)) => is_hop(is, wants),
        _ if wanted.nexthop.is_some() || live.nexthop.is_some() => wanted.nexthop == live.nexthop,
        (Target::Hops(is), Target::Hops(wants)) => !live.odd && are_hops(is, wants),
        // The kernel reports an interface even if none was given.
        (Target::Special(is, hops), Target::Special(wants, wanted)) => is == wants && are_among(wanted, hops),
        _ => false,
    };
    leads
        && (family_of(&live.to) == Family::V6 || live.scope == Some(wanted.scope))
        && if ours { is == wants && !live.odd } else { has_options(is, wants) }
}

fn has_options(is: &RouteOptions, wants: &RouteOptions) -> bool {
    (wants.src.is_none() || wants.src == is.src)
        && (wants.mtu.is_none() || wants.mtu == is.mtu)
        && (wants.advmss.is_none() || wants.advmss == is.advmss)
}

fn is_hop(is: &SeenHop, wants: &SeenHop) -> bool {
    is.via == wants.via && (wants.oif.is_none() || is.oif == wants.oif) && is.onlink == wants.onlink
}

/// The same, in any order.
fn are_hops(is: &[SeenHop], wants: &[SeenHop]) -> bool {
    is.len() == wants.len() && are_among(wants, is)
}

fn are_among(wants: &[SeenHop], is: &[SeenHop]) -> bool {
    let mut rest: Vec<&SeenHop> = is.iter().collect();
    wants.iter().all(|wants| {
        let found = rest.iter().position(|is| is_hop(is, wants) && is.weight == wants.weight);
        found.map(|at| rest.swap_remove(at)).is_some()
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::history::memory::Note;
    use crate::history::memory::Recall;
    use crate::observed::{SeenHop, Want};
    use crate::reconcile::testing::{Model, desired, link, observed, route};

    /// The commands and the number of blocked wishes for a node with eth1 (index 3) and these routes in table 7.
    fn outcome(yaml: &str, live: Vec<SeenRoute>) -> (Vec<String>, usize) {
        let desired = desired(yaml);
        let seen = observed(|seen| {
            seen.recall = Some(Ok(Recall::default()));
            for (name, index) in [("eth1", Some(3)), ("eth9", None)] {
                let link = index.map(|index| link(index, name));
                seen.links_named.insert(link_name(name), Ok(link.clone()));
                seen.links.extend(index.map(|index| (index, Ok(link))));
            }
            for family in [Family::V4, Family::V6] {
                let of_family = |route: &&SeenRoute| family_of(&route.to) == family;
                let mine = |route: &&SeenRoute| route.protocol == PROTO_DECLARED;
                let all: Vec<_> = live.iter().filter(of_family).cloned().collect();
                let ours = all.iter().filter(mine).cloned().collect();
                seen.routes.insert(RouteSet::Table(family, 7), Ok(all));
                seen.routes.insert(RouteSet::Protocol(family, PROTO_DECLARED), Ok(ours));
            }
        });
        let plan = plan(&desired, &seen).unwrap();
        (plan.steps.iter().chain(&plan.removals).map(|step| step.change.to_string()).collect(), plan.blocked.len())
    }

    #[test]
    fn what_is_known_not_to_be_there_is_not_looked_for() {
        let mut node = Model::new("route default via 10.0.1.1 dev 3 table 7 proto 171");
        assert_eq!(node.plan_section("routes", &desired("{}")).remember, [Note::Made(Kind::Routes, true)]);
        node.recall.memory.take(Note::Made(Kind::Routes, false), Duration::ZERO);
        node.asked.clear();
        assert_eq!(node.plan_section("routes", &desired("{}")), Plan::default());
        assert_eq!(node.asked, [Want::Recall]);
        let adding = node.plan_section("routes", &desired("routes: [{to: 10.9.0.0/16, via: 10.0.0.1}]"));
        assert_eq!(
            (adding.steps.len(), adding.remember),
            (1, vec![Note::Made(Kind::Routes, true)]),
            "noted before it goes in"
        );
        let mut bare = Model::new("");
        assert_eq!(bare.plan_section("routes", &desired("{}")).remember, [Note::Made(Kind::Routes, false)]);
    }

    fn link_name(name: &str) -> IfName {
        IfName::new(name.as_bytes()).unwrap()
    }

    #[test]
    fn declared_routes_are_made_so() {
        let declared = "routes: [{to: default, via: 10.0.1.1, dev: eth1, table: 7}]";
        let tail = |via: &str| format!("default via {via} dev eth1 table 7 proto 171 scope global");
        let mine = |text: &str| SeenRoute { protocol: PROTO_DECLARED, ..route(text) };
        let live = "default via 10.0.1.1 dev 3 table 7";
        let other = "default via 10.0.1.2 dev 3 table 7";
        let shared = |protocol| {
            let target = Target::Hops(vec![SeenHop::new(None, Some(3)), SeenHop::new(None, Some(4))]);
            SeenRoute { target, protocol, ..route("fd00::/8 dev 3 table 7") }
        };
        for (case, yaml, live, commands, blocked) in [
            (
                "next hops of others are in it",
                "routes: [{to: 'fd00::/8', via: 'fe80::1', dev: eth1, table: 7}]",
                vec![shared(PROTO_DECLARED)],
                vec![],
                1,
            ),
            ("and it is no longer declared", "{}", vec![shared(PROTO_DECLARED)], vec![], 1),
            (
                "added to repair the table",
                declared,
                vec![SeenRoute { protocol: PROTO_MENDED, ..route(other) }],
                vec!["ip route replace default via 10.0.1.1 dev eth1 table 7 proto 171 scope global".to_owned()],
                0,
            ),
            (
                "what is on the link comes first",
                "routes: [{to: default, via: 10.7.0.1, dev: eth1, table: 7}, {to: 10.7.0.1, dev: eth1, table: 7}]",
                vec![],
                vec![
                    "ip route add 10.7.0.1 dev eth1 table 7 proto 171 scope link".to_owned(),
                    format!("ip route add {}", tail("10.7.0.1")),
                ],
                0,
            ),
            ("missing", declared, vec![], vec![format!("ip route add {}", tail("10.0.1.1"))], 0),
            ("there", declared, vec![mine(live)], vec![], 0),
            ("there, of another owner", declared, vec![route(live)], vec![], 0),
            (
                "ours, by another gateway",
                declared,
                vec![mine(other)],
                vec![format!("ip route replace {}", tail("10.0.1.1"))],
                0,
            ),
            ("others, by another gateway", declared, vec![route(other)], vec![], 1),
            (
                "of another metric",
                declared,
                vec![SeenRoute { metric: 9, ..route(other) }],
                vec![format!("ip route add {}", tail("10.0.1.1"))],
                0,
            ),
            ("no such interface", "routes: [{to: 10.9.0.0/16, dev: eth9, table: 7}]", vec![], vec![], 1),
            (
                "no longer declared",
                "{}",
                vec![mine(live), route(other)],
                vec![format!("ip route del {}", tail("10.0.1.1"))],
                0,
            ),
            (
                "IPv6 has metric 1024",
                "routes: [{to: 'fd00::/8', dev: eth1, table: 7}]",
                vec![SeenRoute { metric: 1024, ..route("fd00::/8 dev 3 table 7") }],
                vec![],
                0,
            ),
            (
                "IPv6 link",
                "routes: [{to: 'fd00::/8', dev: eth1, table: 7}]",
                vec![],
                vec!["ip -6 route add fd00::/8 dev eth1 table 7 proto 171".to_owned()],
                0,
            ),
        ] {
            assert_eq!(outcome(yaml, live), (commands, blocked), "{case}");
        }
    }

    #[test]
    fn every_key_is_in_the_command_and_the_old_one_goes() {
        for (entry, tail) in [
            (
                "to: 10.9.0.0/16, via: 10.0.0.1, src: 10.0.0.9, mtu: 1400, advmss: 1360",
                "10.9.0.0/16 via 10.0.0.1 table main proto 171 scope global src 10.0.0.9 mtu 1400 advmss 1360",
            ),
            (
                "to: default, nexthops: [{via: 10.0.0.1, dev: eth1, weight: 3}, {via: 10.0.0.2, dev: eth1, onlink: true}]",
                "default table main proto 171 scope global nexthop via 10.0.0.1 dev eth1 weight 3 nexthop via 10.0.0.2 dev eth1 weight 1 onlink",
            ),
            (
                "to: 'fd00::/8', nexthops: [{via: 'fe80::1', dev: eth1}, {dev: eth1}]",
                "fd00::/8 table main proto 171 nexthop via fe80::1 dev eth1 weight 1 nexthop dev eth1 weight 1",
            ),
            ("to: 10.9.0.0/16, nhid: 5", "10.9.0.0/16 nhid 5 table main proto 171 scope global"),
            (
                "to: 0.0.0.0/0, via: 'fe80::1', dev: eth1",
                "0.0.0.0/0 via inet6 fe80::1 dev eth1 table main proto 171 scope global",
            ),
            ("to: 10.9.0.0/16, type: blackhole", "blackhole 10.9.0.0/16 table main proto 171 scope global"),
            ("to: 10.9.0.1, type: local, dev: eth1", "local 10.9.0.1 dev eth1 table local proto 171 scope host"),
            ("to: default, type: throw, family: ipv6, table: 7", "throw default table 7 proto 171"),
        ] {
            let ip = if entry.contains("fd00") || entry.contains("ipv6") { "ip -6" } else { "ip" };
            let declared = desired(&format!("routes: [{{{entry}}}]"));
            let mut node = Model::new("link 3 eth1");
            let first = node.plan(plan, &declared);
            let shown = |made: &Plan| -> Vec<String> {
                made.steps.iter().chain(&made.removals).map(|step| step.change.to_string()).collect()
            };
            assert_eq!(shown(&first), [format!("{ip} route add {tail}")]);
            first.remember.iter().for_each(|note| node.recall.memory.take(note.clone(), Duration::ZERO));
            node.make(&first.steps[0]);
            assert_eq!(node.plan(plan, &declared).steps, [], "{entry}");
            let tail = if ip == "ip -6" { tail.replace("proto 171", "proto 171 metric 1024") } else { tail.into() };
            assert_eq!(shown(&node.plan(plan, &desired("{}"))), [format!("{ip} route del {tail}")]);
        }
    }
}
