//! The readers of all objects: what was written reads the same, and no bytes make them panic.

use cidr::IpCidr;
use rtnetlink::packet_core::{DefaultNla, Emitable};

use super::attr::{AF_INET, AF_INET6};
use super::{addr, link, netconf, route, rule};
use crate::explain::fib::{Flow, Packet};
use crate::model::{Dev, Family, IfName, NextHop, Route, RouteOptions, Rule, Scope, Selector, Special, family_of};
use crate::observed::{RouteSet, RuleAction, RuleExtras, SeenRule};

fn emitted(message: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; message.buffer_len()];
    message.emit(&mut bytes);
    bytes
}

fn a_rule() -> Rule {
    Rule {
        family: Family::V4,
        priority: 1000,
        selector: Selector {
            from: Some("10.0.0.1/32".parse().unwrap()),
            to: Some("10.1.0.0/16".parse().unwrap()),
            fwmark: Some((0x80, 0xff)),
            iif: IfName::new(b"eth0.100"),
            oif: IfName::new(b"eth1"),
        },
        table: 100_000,
        protocol: 171,
    }
}

/// With a value of each kind.
fn a_special_rule(action: RuleAction) -> SeenRule {
    let extras = RuleExtras {
        not: true,
        tos: 0x10,
        users: Some((5, 1000)),
        ip_protocol: Some(6),
        source_ports: Some((1, 2)),
        ports: Some((80, 80)),
        suppress_length: Some(0),
        suppress_group: Some(7),
        ..RuleExtras::new(action)
    };
    SeenRule { rule: Rule { table: 0, ..a_rule() }, extras: Some(Box::new(extras)) }
}

#[test]
fn fuzz() {
    crate::fuzz::run("messages", |bytes| {
        let sets =
            [RouteSet::Table(Family::V4, 254), RouteSet::Table(Family::V6, 1000), RouteSet::Protocol(Family::V4, 170)];
        let mut taken: Vec<bool> = sets.iter().map(|set| matches!(route::seen_in(bytes, set), Ok(Some(_)))).collect();
        taken.extend([Family::V4, Family::V6].map(|family| netconf::seen(bytes, family).is_ok()));
        taken.push(
            link::seen(bytes).is_ok() && link::seen_bridge(bytes).is_ok() && link::seen_on_another(bytes).is_ok(),
        );
        taken.extend([link::seen_veth(bytes).is_ok(), rule::seen(bytes).is_ok(), route::seen(bytes).is_ok()]);
        taken.extend([addr::seen(bytes).is_ok(), route::hops(bytes, &mut false).is_ok()]);
        taken.contains(&true)
    });
}

#[test]
fn rules_and_routes_read_as_they_were_written() {
    for sent in [SeenRule::from(a_rule()), a_special_rule(RuleAction::Goto(2000)), a_special_rule(RuleAction::Prohibit)]
    {
        assert_eq!(rule::seen(&emitted(&rule::request(&sent))), Ok(Some(sent)));
    }
    let dev = Dev { index: 7, name: IfName::new(b"eth1").unwrap() };
    let ip = |text: &str| text.parse().unwrap();
    let hop = |via: &str, weight| NextHop { via: Some(ip(via)), dev: Some(dev.clone()), weight, onlink: weight == 1 };
    for (to, via) in [
        ("0.0.0.0/0", "10.0.0.1"),
        ("10.9.0.0/16", "10.0.0.1"),
        ("::/0", "fe80::1"),
        ("fd00::/64", "fe80::1"),
        ("10.9.0.0/16", "fe80::1"),
    ] {
        let plain = Route {
            table: 70_000,
            to: to.parse().unwrap(),
            special: None,
            via: Some(ip(via)),
            dev: Some(dev.clone()),
            hops: Vec::new(),
            nexthop: None,
            scope: Scope::Global,
            metric: Some(50),
            onlink: true,
            options: RouteOptions { src: Some(ip(via)), mtu: Some(1400), advmss: Some(1360) },
            protocol: 171,
        };
        let bare = Route { via: None, dev: None, onlink: false, options: RouteOptions::default(), ..plain.clone() };
        for sent in [
            Route { hops: vec![hop(via, 1), hop("10.0.0.2", 256), hop("fe80::2", 7)], ..bare.clone() },
            Route { nexthop: Some(5), ..bare.clone() },
            Route { special: Some(Special::Throw), ..bare.clone() },
            Route { special: Some(Special::Local), dev: Some(dev.clone()), ..bare },
            plain,
        ] {
            let family = family_of(&sent.to);
            let read = |set| route::seen_in(&emitted(&route::request(&sent)), &set).unwrap();
            let seen = read(RouteSet::Table(family, 70_000)).unwrap();
            assert_eq!(seen.to_route(|_| Some(dev.clone())), sent);
            assert_eq!(read(RouteSet::Table(family, 7)), None, "outside the set");
            assert_eq!(read(RouteSet::Protocol(family, 4)), None, "outside the set");
        }
    }
}

#[test]
fn a_rule_with_anything_unknown_is_others() {
    let add = |kind: u16, value: &[u8]| {
        let message = rule::request(&a_rule().into()).with([DefaultNla::new(kind, value.into())]);
        rule::seen(&emitted(&message)).unwrap().unwrap()
    };
    let is_others =
        |seen: SeenRule| seen.lookup().is_none() && (seen.rule.family, seen.rule.priority) == (Family::V4, 1000);
    assert_eq!(add(14, &[0xff; 4]).lookup(), Some(&a_rule()), "no suppression");
    for (kind, value) in [(14, &[0; 4][..]), (13, &[0; 4]), (19, &[1]), (20, &[0; 8]), (24, &[0; 4]), (99, &[1])] {
        assert!(is_others(add(kind, value)), "attribute {kind}");
    }
    let header = |change: fn(&mut [u8])| {
        let mut bytes = emitted(&rule::request(&a_rule().into()));
        change(&mut bytes);
        rule::seen(&bytes).unwrap().unwrap()
    };
    assert!(is_others(header(|bytes| bytes[3] = 0x10)), "tos");
    assert!(is_others(header(|bytes| bytes[7] = 6)), "blackhole");
    assert!(is_others(header(|bytes| bytes[8] = 2)), "not");
    assert_eq!(header(|bytes| bytes[8] = 8).lookup(), Some(&a_rule()), "its iif is not there just now");
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(0_u8.., 0..120), family in 0_usize..4) {
        let mut bytes = bytes;
        if let (Some(first), Some(family)) = (bytes.first_mut(), [AF_INET, AF_INET6, 7].get(family)) {
            *first = *family;
        }
        let _ = (rule::seen(&bytes), addr::seen(&bytes), netconf::seen(&bytes, Family::V4), route::hops(&bytes, &mut false));
        let _ = (link::seen(&bytes), link::seen_bridge(&bytes), link::seen_veth(&bytes));
        let _ = (route::seen(&bytes), route::seen_in(&bytes, &RouteSet::Table(Family::V4, 7)));
    }

    #[test]
    fn no_damage_makes_a_reader_panic(at in 0_usize..200, byte in 0_u8..) {
        let mut bytes = emitted(&rule::request(&a_rule().into()));
        let at = at % bytes.len();
        bytes[at] = byte;
        let _ = rule::seen(&bytes);
        let _ = route::seen_in(&bytes, &RouteSet::Table(Family::V4, 7));
    }
}

#[test]
fn the_question_names_one_packet() {
    let question = route::lookup(&Packet {
        from: "10.0.0.1".parse().unwrap(),
        to: "192.0.2.1".parse().unwrap(),
        iif: Some(7),
        flow: Flow::default(),
    });
    let route = route::seen(&emitted(&question)).unwrap().unwrap();
    assert_eq!(route.to, "192.0.2.1/32".parse::<IpCidr>().unwrap());
    assert_eq!(route.from, Some("10.0.0.1/32".parse().unwrap()));
}
