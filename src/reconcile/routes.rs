//! `routes`: what is declared is made so, and what carries our mark and is no longer declared goes. A route of
//! ours in the place of a declared one is replaced; one of others is left alone, and the wish is blocked.

use std::collections::{BTreeMap, BTreeSet};

use cidr::IpCidr;

use super::bridges;
use crate::change::{Blocked, Change, Plan, Step};
use crate::desired::Desired;
use crate::memory::{Kind, Note};
use crate::net::{Dev, Family, PROTO_DECLARED, PROTO_MENDED, Route, family_of};
use crate::observed::{Gap, Observed, RouteSet, SeenRoute, Target};
use crate::sorted;

/// What differs.
pub fn plan(desired: &Desired, observed: &Observed) -> Result<Plan, Gap> {
    let mut plan = Plan::default();
    let names = desired.routes.iter().filter_map(|wish| wish.dev().cloned());
    let mut links = observed.links_named(names)?.into_iter();
    let to_come: BTreeSet<_> = bridges::to_come(desired, observed)?.into_iter().collect();
    let declared = Declared::of(desired);
    let rivals = declared.rivals(observed)?;
    let known = observed.recall()?.memory.made.get(&Kind::Routes).copied();
    let ours = [Family::V4, Family::V6].map(|family| RouteSet::Protocol(family, PROTO_DECLARED));
    let ours = if known == Some(false) { Vec::new() } else { observed.routes(ours)? };
    let ours: Vec<&SeenRoute> = ours.into_iter().flatten().collect();
    let some_of_ours = !ours.is_empty();

    let mut wishes = Vec::new();
    for wish in &desired.routes {
        let dev = match wish.dev().map(|name| (name, links.next().flatten())) {
            None => None,
            Some((_, Some(link))) => Some(link.dev.clone()),
            // It will be there by then, with an index of its own.
            Some((name, None)) if to_come.contains(name) => Some(Dev { index: 0, name: name.clone() }),
            Some((name, None)) => {
                plan.blocked.push(Blocked::new(
                    wish.to_route(Some(Dev { index: 0, name: name.clone() })).command("add"),
                    format!("there is no interface {name}; it goes in when the interface appears"),
                ));
                continue;
            }
        };
        let wanted = wish.to_route(dev);
        let rivals = rivals.get(&key(&wanted)).map_or(&[][..], Vec::as_slice);
        if !rivals.iter().any(|route| does_what(route, &wanted)) {
            wishes.push((wanted, rivals));
        }
    }
    let undeclared: Vec<_> = ours.into_iter().filter(|route| !declared.has(route)).collect();
    let replaced = wishes.iter().filter_map(|(_, rivals)| replaceable(rivals));
    let links = replaced.chain(undeclared.iter().copied()).filter_map(SeenRoute::oif);
    let links = observed.links(sorted::set(links))?;
    let devs = sorted::map(links.into_iter().flatten().map(|link| (link.dev.index, &link.dev)));
    let dev = |index| devs.get(&index).copied().cloned();
    // What is on the link goes in before what lies behind it.
    let mut behind = Plan::default();
    for (wanted, rivals) in wishes {
        let plan = if wanted.via.is_some() { &mut behind } else { &mut plan };
        wish_for(wanted, rivals, dev, plan);
    }
    plan.steps.append(&mut behind.steps);
    plan.blocked.append(&mut behind.blocked);
    for route in undeclared {
        match route.to_route(route.oif().and_then(dev)) {
            Some(route) => {
                let reason = "node-fixer added it, and it is no longer declared".into();
                plan.steps.push(Step { change: Change::DeleteRoute(route), reason });
            }
            None => plan.blocked.push(Blocked::new(
                format!("the route to {} in table {} gone, as it is no longer declared", route.to, route.table),
                "others have added next hops to it; delete by hand what is not theirs".into(),
            )),
        }
    }
    // Before the first one goes in, so that none is ever forgotten.
    let some = some_of_ours || !plan.steps.is_empty();
    plan.remember.extend((known != Some(some)).then_some(Note::Made(Kind::Routes, some)));
    Ok(plan)
}

/// A table's routes as they will be when this section's plan is done: what the plans of other sections build on.
pub fn afterwards(desired: &Desired, observed: &Observed, set: RouteSet) -> Result<Vec<SeenRoute>, Gap> {
    let live = observed.routes([set.clone()])?;
    let mut routes: Vec<SeenRoute> = live.first().copied().unwrap_or_default().to_vec();
    let wishes = desired.routes.iter().map(|wish| (wish, wish.to_route(None)));
    let wishes: Vec<_> = wishes.filter(|(_, it)| set == RouteSet::Table(it.family(), it.table)).collect();
    let declared = Declared(sorted::set(wishes.iter().map(|(_, wanted)| key(wanted))));
    routes.retain(|route| route.protocol != PROTO_DECLARED || declared.has(route));
    let taken = sorted::set(routes.iter().filter(|route| declared.has(route)).map(key_of));
    let coming: Vec<_> = wishes.into_iter().filter(|(_, wanted)| !taken.contains(&key(wanted))).collect();
    let mut links = observed.links_named(coming.iter().filter_map(|(wish, _)| wish.dev().cloned()))?.into_iter();
    for (wish, wanted) in coming {
        let oif = match wish.dev().map(|_| links.next().flatten()) {
            None => None,
            Some(Some(link)) => Some(link.dev.index),
            Some(None) => continue, // it has to wait for its interface
        };
        routes.push(SeenRoute::of(&wanted, oif));
    }
    Ok(routes)
}

/// The route in the place of a wish that can be replaced. In IPv6 next hops that others appended make one route with
/// ours; it is more than ours.
fn replaceable<'a>(rivals: &[&'a SeenRoute]) -> Option<&'a SeenRoute> {
    match rivals {
        // What node-fixer added to repair the table gives way to what is declared for it.
        [ours] if matches!(ours.protocol, PROTO_DECLARED | PROTO_MENDED) && matches!(ours.target, Target::Hop(_)) => {
            Some(ours)
        }
        _ => None,
    }
}

/// What comes of a wish for a route that is not there.
fn wish_for(wanted: Route, rivals: &[&SeenRoute], dev: impl Fn(u32) -> Option<Dev>, plan: &mut Plan) {
    let step = |change| Step { change, reason: "declared, and not there".into() };
    if let Some(ours) = replaceable(rivals) {
        let old = ours.to_route(ours.oif().and_then(dev));
        plan.steps.extend(old.map(|old| step(Change::ReplaceRoute { new: wanted, old })));
        return;
    }
    match rivals {
        [] => plan.steps.push(step(Change::AddRoute(wanted))),
        [rival, ..] => {
            let owner = match rival.protocol {
                PROTO_DECLARED => "a declared route that others have added next hops to".into(),
                PROTO_MENDED => "a route that node-fixer added and others have added next hops to".into(),
                protocol => format!("a route of another owner (protocol {protocol})"),
            };
            let because = format!(
                "{owner} is in the place (same table, destination and metric), and is never replaced; delete it \
                 ({}), or declare another metric",
                wanted.command_for_its_place("del"),
            );
            plan.blocked.push(Blocked::new(wanted.command("add"), because));
        }
    }
}

/// What the kernel tells unlimited routes apart by.
type Key = (u32, IpCidr, u32);

fn key(wanted: &Route) -> Key {
    (wanted.table, wanted.to, wanted.stored_metric())
}

fn key_of(live: &SeenRoute) -> Key {
    (live.table, live.to, live.metric)
}

/// The places of the declared routes.
struct Declared(BTreeSet<Key>);

impl Declared {
    fn of(desired: &Desired) -> Declared {
        Declared(sorted::set(desired.routes.iter().map(|wish| key(&wish.to_route(None)))))
    }

    fn has(&self, live: &SeenRoute) -> bool {
        live.is_unlimited() && self.0.contains(&key_of(live))
    }

    /// The live routes in these places, of whomever. A table may be far larger than what is declared in it.
    fn rivals<'a>(&self, observed: &'a Observed) -> Result<BTreeMap<Key, Vec<&'a SeenRoute>>, Gap> {
        let tables = sorted::set(self.0.iter().map(|(table, to, _)| RouteSet::Table(family_of(to), *table)));
        let mut rivals: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for route in observed.routes(tables)?.into_iter().flatten().filter(|route| self.has(route)) {
            rivals.entry(key_of(route)).or_default().push(route);
        }
        Ok(rivals)
    }
}

/// What is not declared is as the kernel made it.
fn does_what(live: &SeenRoute, wanted: &Route) -> bool {
    let dev = wanted.dev.as_ref().map(|dev: &Dev| dev.index);
    matches!(live.target, Target::Hop(_))
        && live.via() == wanted.via
        && (dev.is_none() || live.oif() == dev)
        && live.onlink == wanted.onlink
        && (family_of(&live.to) == Family::V6 || live.scope == Some(wanted.scope))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Recall;
    use crate::observed::{Hop, Want};
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
        (plan.steps.iter().map(|step| step.change.to_string()).collect(), plan.blocked.len())
    }

    #[test]
    fn what_is_known_not_to_be_there_is_not_looked_for() {
        let mut node = Model::new("route default via 10.0.1.1 dev 3 table 7 proto 171");
        assert_eq!(node.plan(plan, &desired("{}")).remember, [Note::Made(Kind::Routes, true)]);
        node.recall.memory.take(Note::Made(Kind::Routes, false));
        node.asked.clear();
        assert_eq!(node.plan(plan, &desired("{}")), Plan::default());
        assert_eq!(node.asked, [Want::Recall]);
        let adding = node.plan(plan, &desired("routes: [{to: 10.9.0.0/16, via: 10.0.0.1}]"));
        assert_eq!(
            (adding.steps.len(), adding.remember),
            (1, vec![Note::Made(Kind::Routes, true)]),
            "noted before it goes in"
        );
        let mut bare = Model::new("");
        assert_eq!(bare.plan(plan, &desired("{}")).remember, [Note::Made(Kind::Routes, false)]);
    }

    fn link_name(name: &str) -> crate::net::IfName {
        crate::net::IfName::new(name.as_bytes()).unwrap()
    }

    #[test]
    fn declared_routes_are_made_so() {
        let declared = "routes: [{to: default, via: 10.0.1.1, dev: eth1, table: 7}]";
        let tail = |via: &str| format!("default via {via} dev eth1 table 7 proto 171 scope global");
        let mine = |text: &str| SeenRoute { protocol: PROTO_DECLARED, ..route(text) };
        let live = "default via 10.0.1.1 dev 3 table 7";
        let other = "default via 10.0.1.2 dev 3 table 7";
        let shared = |protocol| {
            let target = Target::Hops(vec![Hop { via: None, oif: Some(3) }, Hop { via: None, oif: Some(4) }]);
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
}
