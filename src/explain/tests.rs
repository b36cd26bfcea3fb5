//! What needs no kernel: the reverse path check, what cannot be judged, and disagreement.

use cidr::IpCidr;

use std::collections::BTreeSet;
use std::time::Duration;

use super::fib::*;
use super::lookup::*;
use super::places::Place;
use super::*;
use crate::model::{Dev, Family, IfName, RouteOptions, Rule, Selector, TABLE_MAIN};
use crate::observed::{Address, Link, RuleAction, RuleExtras, SeenHop, SeenRoute, SeenRule, Special, Target};
use crate::topology::homes::{self, Evidence};
use crate::topology::pods::Site;

const ETH0: u32 = 2;
const ETH1: u32 = 3;
const POD: u32 = 4;
const VRF: u32 = 5;

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn prefix(text: &str) -> IpCidr {
    text.parse().unwrap()
}

fn route(table: u32, to: &str, via: Option<&str>, oif: u32) -> SeenRoute {
    SeenRoute {
        table,
        to: if to == "default" { prefix("0.0.0.0/0") } else { prefix(to) },
        target: Target::SeenHop(SeenHop::new(via.map(ip), Some(oif))),
        scope: None,
        metric: 0,
        tos: 0,
        from: None,
        nexthop: None,
        options: RouteOptions::default(),
        odd: false,
        protocol: 3,
    }
}

fn special(special: Special, route: SeenRoute) -> SeenRoute {
    SeenRoute { target: Target::Special(special, route.all_hops().to_vec()), ..route }
}

fn rule(priority: u32, from: Option<&str>, action: RuleAction) -> SeenRule {
    let selector = Selector { from: from.map(prefix), to: None, fwmark: None, iif: None, oif: None };
    let rule = |table| Rule { family: Family::V4, priority, selector, table, protocol: 0 };
    match action {
        RuleAction::Lookup(table) => rule(table).into(),
        action => SeenRule { rule: rule(0), extras: Some(Box::new(RuleExtras::new(action))) },
    }
}

/// The rule with what node-fixer has no words for.
fn with_extras(rule: SeenRule, change: impl FnOnce(&mut RuleExtras)) -> SeenRule {
    let mut extras = rule.extras().into_owned();
    change(&mut extras);
    SeenRule { rule: rule.rule, extras: Some(Box::new(extras)) }
}

fn address(index: u32, local: &str, length: u8) -> Address {
    let local = ip(local);
    Address {
        index,
        local,
        length,
        has_peer: false,
        secondary: false,
        duplicate: false,
        protocol: None,
        created: Duration::ZERO,
        subnet: cidr::IpInet::new(local, length).unwrap().network(),
        global: true,
        lasting: true,
    }
}

/// Two uplinks and a pod that has table 2, behind the second.
fn node() -> Fib {
    let local = |to: &str, oif| special(Special::Local, route(255, to, None, oif));
    let link = |index, name: &str, vrf_table| Link {
        dev: Dev { index, name: IfName::new(name.as_bytes()).unwrap() },
        up: true,
        carrier: true,
        mtu: 1500,
        master: None,
        vrf: None,
        vrf_table,
        group: 0,
        hardware: Vec::new(),
        kind: Box::default(),
    };
    let conf = Conf { rp_filter: 2, forwarding: true, accept_local: false, force_forwarding: false, ..Conf::default() };
    let links = [(1, "lo"), (ETH0, "eth0"), (ETH1, "eth1"), (POD, "pod0")];
    let mut links: Vec<Link> = links.into_iter().map(|(index, name)| link(index, name, None)).collect();
    links.push(link(VRF, "red", Some(7)));
    let mut fib = Fib {
        rules: vec![
            rule(0, None, RuleAction::Lookup(255)),
            rule(1536, Some("10.0.1.100/32"), RuleAction::Lookup(2)),
            rule(32766, None, RuleAction::Lookup(254)),
        ],
        routes: vec![
            route(254, "default", Some("10.0.0.1"), ETH0),
            route(2, "default", Some("10.0.1.1"), ETH1),
            route(254, "10.0.1.100/32", None, POD),
            route(254, "10.0.1.0/24", None, ETH1),
            local("10.0.1.10/32", ETH1),
        ],
        confs: links.iter().map(|link| (link.dev.index, conf)).collect(),
        links,
        addresses: vec![address(ETH0, "10.0.0.10", 24), address(ETH1, "10.0.1.10", 24)],
        ..Fib::default()
    };
    for route in &fib.routes {
        fib.tables.push(route.table);
        if route.via().is_some() {
            fib.gateways.extend(route.oif());
        }
    }
    fib
}

fn link_mut(fib: &mut Fib, index: u32) -> &mut Link {
    fib.links.iter_mut().find(|link| link.dev.index == index).unwrap()
}

/// What the topology says of that node.
fn places() -> Places {
    let home = homes::Home { links: BTreeSet::from([ETH1]), evidence: Evidence::Table(2), proven: true };
    let site = Some(Site { link: POD, table: TABLE_MAIN, by_host_route: true });
    let source = Place { site, neighbours: BTreeSet::from([ETH1]), home: Some(home), ..Place::default() };
    Places { source, exits: BTreeSet::from([ETH0, ETH1]), ..Places::default() }
}

fn pod_to_server(fib: &Fib) -> Explanation {
    explain(fib, &places(), [ip("10.0.1.100"), ip("192.0.2.1")], Flow::default(), None)
}

#[test]
fn the_reverse_path_check_is_the_kernels() {
    // The way back to the server is eth0's, the packet comes in by eth1.
    let lost = |fib: &mut Fib| fib.routes.retain(|route| route.table != 2);
    let no_way = |fib: &mut Fib| fib.routes.retain(|route| route.to.network_length() != 0);
    let own = |fib: &mut Fib| {
        fib.routes.push(special(Special::Local, route(255, "192.0.2.1/32", None, ETH0)));
    };
    let nothing = |_: &mut Fib| {};
    type Break = fn(&mut Fib);
    for (what, of_link, of_all, has_address, break_it, passes) in [
        ("symmetric", 1, 0, true, nothing as Break, true),
        ("other way, off", 0, 0, true, lost, true),
        ("other way, strict", 1, 0, true, lost, false),
        ("other way, loose", 2, 0, true, lost, true),
        ("other way, all strict", 0, 1, true, lost, false),
        ("other way, all loose beats strict", 1, 2, true, lost, true),
        ("other way, loose, no address", 2, 0, false, lost, false),
        ("other way, off, no address", 0, 0, false, lost, true),
        ("symmetric, strict, no address", 1, 0, false, nothing, true),
        ("no way, off", 0, 0, true, no_way, true),
        ("no way, loose", 2, 0, true, no_way, false),
        ("its source is this node's, off", 0, 0, true, own, false),
    ] {
        let mut fib = node();
        break_it(&mut fib);
        fib.all.rp_filter = of_all;
        fib.confs.get_mut(&ETH1).unwrap().rp_filter = of_link;
        fib.addresses.retain(|address| has_address || address.index != ETH1);
        let packet = Packet { from: ip("192.0.2.1"), to: ip("10.0.1.100"), iif: Some(ETH1), flow: Flow::default() };
        let way = route(254, "10.0.1.100/32", None, POD);
        let check = fib.check(&packet, ETH1, &way);
        assert_eq!(check.passes, Some(passes), "{what}: {}", check.why);
    }
}

#[test]
fn rules_select_jump_and_suppress() {
    let main = |change: fn(&mut RuleExtras)| with_extras(rule(100, None, RuleAction::Lookup(254)), change);
    let not = |from| with_extras(rule(100, Some(from), RuleAction::Blackhole), |extras| extras.not = true);
    let with = |change: fn(&mut RuleExtras)| with_extras(rule(100, None, RuleAction::Prohibit), change);
    let of = |change: fn(&mut Selector)| {
        let mut rule = rule(100, None, RuleAction::Prohibit);
        change(&mut rule.rule.selector);
        rule
    };
    let refused = "dropped";
    for (what, rule, taken) in [
        ("another source", rule(100, Some("10.0.9.0/24"), RuleAction::Blackhole), "1536"),
        ("not another source", not("10.0.9.0/24"), refused),
        ("not this source", not("10.0.1.0/24"), "1536"),
        ("goto main", rule(100, None, RuleAction::Goto(32766)), "32766"),
        ("goto nowhere", rule(100, None, RuleAction::Goto(4711)), "1536"),
        ("nop", rule(100, None, RuleAction::Nop), "1536"),
        ("the default is suppressed", main(|extras| extras.suppress_length = Some(0)), "1536"),
        ("nothing so short", main(|_| {}), "100"),
        ("group", main(|extras| extras.suppress_group = Some(0)), "1536"),
        ("other group", main(|extras| extras.suppress_group = Some(3)), "100"),
        ("mark", of(|selector| selector.fwmark = Some((0x80, 0x80))), "1536"),
        ("no mark", of(|selector| selector.fwmark = Some((0, 0x80))), refused),
        ("iif", of(|selector| selector.iif = IfName::new(b"pod0")), refused),
        ("another iif", of(|selector| selector.iif = IfName::new(b"eth0")), "1536"),
        ("oif", of(|selector| selector.oif = IfName::new(b"eth0")), "1536"),
        ("root", with(|extras| extras.users = Some((0, 0))), refused),
        ("others", with(|extras| extras.users = Some((1, 9))), "1536"),
        ("UDP", with(|extras| extras.ip_protocol = Some(17)), refused),
        ("TCP", with(|extras| extras.ip_protocol = Some(6)), "1536"),
        ("port", with(|extras| extras.ports = Some((53, 53))), "1536"),
        ("dscp", with(|extras| extras.dscp = Some((8, 0x3f))), "1536"),
        ("dscp 0", with(|extras| extras.dscp = Some((0, 0x3f))), refused),
        ("tunnel", with(|extras| extras.tunnel = Some(1)), "1536"),
        ("no VRF", with(|extras| extras.l3mdev = true), "1536"),
    ] {
        let mut fib = node();
        fib.rules.insert(1, rule);
        let lookup = pod_to_server(&fib).request.lookup;
        let last = lookup.steps.last().unwrap();
        assert_eq!(last.what, What::Taken, "{what}: {lookup:?}");
        let by =
            if matches!(lookup.end, Ending::Refused(_)) { refused.into() } else { last.rule.rule.priority.to_string() };
        assert_eq!(by, taken, "{what}");
    }
}

#[test]
fn a_vrf_looks_into_its_own_table() {
    let mut fib = node();
    fib.rules.insert(1, with_extras(rule(1000, None, RuleAction::Lookup(0)), |extras| extras.l3mdev = true));
    link_mut(&mut fib, POD).vrf = Some(VRF);
    fib.routes.push(route(7, "default", Some("10.0.0.9"), ETH0));
    let Ending::Route(routes) = pod_to_server(&fib).request.lookup.end else { panic!("no route") };
    assert_eq!(routes[0].table, 7);
}

#[test]
fn the_longest_prefix_wins_then_the_smallest_metric_and_what_is_dead_is_passed_over() {
    let mut fib = node();
    let metric = |metric, route| SeenRoute { metric, ..route };
    fib.routes.push(metric(5, route(2, "192.0.2.0/24", Some("10.0.1.5"), ETH1)));
    fib.routes.push(metric(4, route(2, "192.0.2.0/24", Some("10.0.1.4"), ETH1)));
    fib.routes.push(SeenRoute { tos: 16, ..route(2, "192.0.2.1/32", Some("10.0.1.6"), ETH1) });
    let via = |fib: &Fib| match pod_to_server(fib).request.lookup.end {
        Ending::Route(routes) => routes[0].via().unwrap().to_string(),
        other => format!("{other:?}"),
    };
    let kill = |route: &mut SeenRoute| {
        route.target = Target::SeenHop(SeenHop { dead: true, ..SeenHop::new(route.via(), route.oif()) });
    };
    assert_eq!(via(&fib), "10.0.1.4");
    kill(&mut fib.routes[6]);
    assert_eq!(via(&fib), "10.0.1.5");
    kill(&mut fib.routes[5]);
    assert_eq!(via(&fib), "10.0.1.1", "back to the shorter prefix");
    fib.routes.push(SeenRoute {
        target: Target::Special(Special::Throw, Vec::new()),
        ..route(2, "192.0.2.0/25", None, ETH1)
    });
    assert_eq!(via(&fib), "10.0.0.1", "on to the next rule");
}

#[test]
fn what_cannot_be_judged_is_not_guessed() {
    let mut fib = node();
    fib.rules.insert(1, with_extras(rule(9, None, RuleAction::Lookup(2)), |extras| extras.unknown = vec![99]));
    let seen = pod_to_server(&fib);
    assert!(seen.problems[0].starts_with("unknown: the packet from 10.0.1.100 to 192.0.2.1"), "{:?}", seen.problems);
    assert!(!seen.works());
    let text = show::text(&fib, &seen);
    assert!(text.contains("unknown: the rule has an unknown attribute (number 99)"), "{text}");

    // The way back, too: what goes to the pod does not get as far as that rule.
    let mut fib = node();
    let mut to_pod = rule(8, None, RuleAction::Lookup(254));
    to_pod.rule.selector.to = Some(prefix("10.0.1.100/32"));
    fib.rules.insert(1, to_pod);
    fib.rules.insert(2, with_extras(rule(9, None, RuleAction::Lookup(2)), |extras| extras.unknown = vec![99]));
    let reply = fib.leg(Packet { from: ip("192.0.2.1"), to: ip("10.0.1.100"), iif: Some(ETH1), flow: Flow::default() });
    assert_eq!(reply.check.as_ref().unwrap().passes, None);
    let trouble = fib.trouble(&reply, "");
    assert!(trouble[0].starts_with("unknown whether rp_filter of eth1 lets the packet from 192.0.2.1"), "{trouble:?}");
    let mut seen = pod_to_server(&fib);
    seen.request = reply;
    let text = show::text(&fib, &seen);
    assert!(text.contains("rp_filter: unknown at eth1: max(all 0, eth1 2) = 2, loose; the rule has"), "{text}");
    assert_eq!(seen.request.compare(&fib, &Err("Invalid argument".into())), None);

    let mut fib = node();
    fib.routes[1] = SeenRoute { target: Target::Hops(Vec::new()), nexthop: Some(5), ..fib.routes[1].clone() };
    assert!(
        pod_to_server(&fib).problems[0].contains("does not show the next hops of nexthop objects"),
        "hidden nexthop"
    );
}

#[test]
fn a_disagreement_with_the_kernel_is_said() {
    let fib = node();
    let right = [route(2, "default", Some("10.0.1.1"), ETH1), route(254, "10.0.1.100/32", None, POD)];
    let shown = |answers: [Answer; 2]| {
        let mut seen = pod_to_server(&fib);
        seen.take(&fib, answers.into());
        (seen.works(), show::text(&fib, &seen))
    };
    let (works, text) = shown(right.clone().map(Ok));
    assert!(works && text.matches("kernel:    agrees").count() == 2, "{text}");
    for (wrong, said) in [
        (Ok(route(254, "default", Some("10.0.0.1"), ETH0)), "it takes default via 10.0.0.1 dev eth0 table main"),
        (Ok(route(2, "default", Some("10.0.1.2"), ETH1)), "it takes default via 10.0.1.2"),
        (Ok(special(Special::Blackhole, right[0].clone())), "it takes blackhole default"),
        (Err("Network is unreachable".into()), "it refuses (Network is unreachable)"),
    ] {
        let (works, text) = shown([wrong, Ok(right[1].clone())]);
        assert!(!works && text.contains(&format!("kernel:    DISAGREES: {said}")), "{text}");
        assert!(text.starts_with("breaks: the kernel's answer differs for the packet from 10.0.1.100"), "{text}");
    }
}

#[test]
fn names_from_the_kernel_do_no_harm() {
    let mut fib = node();
    link_mut(&mut fib, ETH1).dev.name = IfName::new(b"\x1b[31m").unwrap();
    let text = show::text(&fib, &pod_to_server(&fib));
    assert!(!text.contains('\x1b'), "{text:?}");
    assert!(show::json(&fib, &pod_to_server(&fib)).is_ok());
}
