//! What holds for every plan, on nodes drawn at random.

use std::collections::BTreeSet;
use std::net::IpAddr;

use proptest::prelude::*;

use super::testing::{Model, desired};
use super::{ALL, Reconciler, default_routes};
use crate::change::{Change, Op, Plan};
use crate::config::Config;
use crate::model::{IfAddress, KERNEL_PRIORITIES, LinkKind, PROTO_DECLARED, PROTO_MENDED, PROTO_RESTORED, Route};
use crate::topology::{has_default, sends};

/// Lines of a node's description, drawn so that they collide often.
fn line() -> impl Strategy<Value = String> {
    let source =
        prop_oneof![(1_u8..6).prop_map(|n| format!("10.0.0.{n}")), (1_u8..4).prop_map(|n| format!("fd00::{n}"))];
    let table = prop_oneof![1_u32..5, Just(254), Just(2004)];
    let proto = prop_oneof![Just(3), Just(170), Just(171), Just(172)];
    let priority = prop_oneof![Just(0), Just(100), Just(512), Just(1536), Just(32765), Just(32766)];
    let selector = prop_oneof![Just(""), Just("fwmark 7"), Just("iif eth1"), Just("to 10.0.0.0/16")];
    let rule =
        (priority, source, table.clone(), proto.clone(), selector).prop_map(|(priority, from, table, proto, more)| {
            let more = if from.contains(':') { more.replace("10.0.0.0/16", "fd00::/16") } else { more.into() };
            format!("rule {priority} from {from} {more} table {table} proto {proto}")
        });
    let to = prop_oneof![
        Just("default via 10.0.0.1"),
        Just("default via fe80::1"),
        Just("10.0.0.1"),
        Just("10.0.0.2"),
        Just("fe80::1"),
        Just("10.0.0.0/24"),
        Just("0.0.0.0/1"),
        Just("128.0.0.0/1"),
    ];
    let pod = (1_u8..6, 9_u32..11).prop_map(|(n, dev)| format!("route 10.0.0.{n} dev {dev} scope link table 254"));
    let to_pod = (1_u8..6, prop_oneof![Just(0), Just(172)])
        .prop_map(|(n, proto)| format!("rule 512 to 10.0.0.{n} table 254 proto {proto}"));
    let metric = prop_oneof![Just(""), Just("metric 7")];
    let route = (to, 2_u32..5, table, proto, metric).prop_map(|(to, dev, table, proto, metric)| {
        let scope = if to.contains("via") { "" } else { "scope link" };
        format!("route {to} dev {dev} {scope} table {table} proto {proto} {metric}")
    });
    prop_oneof![4 => rule, 4 => route, 1 => pod, 1 => to_pod]
}

fn node() -> impl Strategy<Value = String> {
    let address = prop_oneof![Just("10.0.0.9/24 fe80::9/64"), Just("10.0.0.3/32"), Just("fd00::2/64"), Just("")];
    let link = (address, prop_oneof![Just(""), Just("down"), Just("vrf")], 0_i32..4);
    let links = prop::collection::vec(link, 3).prop_map(|links| {
        let line = |(index, (address, state, rp))| format!("link {} eth{index} {state} {address} rp={rp}", index + 2);
        links.into_iter().enumerate().map(line).collect::<Vec<_>>()
    });
    let address = prop_oneof![Just("10.0.8.1/32"), Just("10.0.8.2/24=171"), Just("fd08::1/64=171"), Just("")];
    let kind = prop_oneof![Just("link"), Just("bridge"), Just("bridge ours"), Just("bridge ours down stp"), Just("")];
    let others = prop::collection::vec((kind, address), 2).prop_map(|links| {
        let line = |(index, (kind, address)): (usize, (&str, &str))| match kind.split_once(' ') {
            _ if kind.is_empty() => String::new(),
            None => format!("{kind} {} br{index} {address}", index + 20),
            Some((kind, more)) => format!("{kind} {} br{index} {address} {more}", index + 20),
        };
        links.into_iter().enumerate().map(line).collect::<Vec<_>>()
    });
    let lines = prop::collection::vec(line(), 0..14);
    let pods = ["link 9 eni00000000009".to_owned(), "link 10 eni0000000000a".to_owned()];
    (links, others, lines)
        .prop_map(move |(links, others, lines)| [links, others, pods.to_vec(), lines].concat().join("\n"))
}

const DECLARATIONS: [&str; 7] = [
    "{}",
    "uplinks: {mtu: 9001}",
    "rules: [{priority: 100, from: 10.0.0.1, table: 3}, {priority: 5, fwmark: 7, table: main}, \
     {priority: 6, not: true, dport: 53, goto: 100}, {priority: 7, l3mdev: true, family: ipv6}]",
    "routes: [{to: default, via: 10.0.0.1, dev: eth1, table: 3}, {to: fd00::/64, dev: eth0, table: 2}]",
    "bridges: [{name: br0, addresses: [10.0.8.1/32, 'fd08::1/128'], stp: true}]",
    "masquerade: [{source: 10.0.8.0/24, except_out: br0}, {source: 'fd08::/64', out: eth0}]",
    "addresses: [{dev: eth0, address: 10.0.8.1-10.0.8.3}, {dev: br1, address: 'fd08::1/64'}, {dev: no, address: 10.0.0.1}]",
];

/// Many of everything: live, declared, and no longer declared.
fn many(n: u32) -> (String, String) {
    let count = |line: &dyn Fn(u32) -> String| (1..=n).map(line).collect::<String>();
    let node =
        count(&|i| format!("link {} eth{i} 10.0.{i}.1/24=171 10.0.{i}.2/24 10.0.{i}.3/24=171,secondary\n", 1000 + i))
            + &count(&|i| format!("bridge {} ours{i} ours\nbridge {} br{i}\n", 2000 + i, 3000 + i))
            + &count(&|i| format!("rule 100 from 10.1.{i}.0/24 table 7 proto 171\n"))
            + &count(&|i| format!("route 10.2.{i}.0/24 dev {} table 7 proto 171\n", 1000 + i))
            + &count(&|i| format!("route 10.6.{i}.0/24 dev {} table 7 proto 171\n", 1001 + i))
            + &count(&|i| format!("route default via 10.0.{i}.9 dev {} table {i}\n", 1000 + i))
            + &count(&|i| format!("netns fc-{i} {i}\nveth {} vh_{i} {}\n", 4000 + 2 * i, 4001 + 2 * i))
            + &count(&|i| format!("sysctl net/ipv4/conf/eth{i}/promote_secondaries = 0\n"))
            + "sysctl net/ipv4/conf/all/promote_secondaries = 0\n";
    let yaml = "rules:\n".to_owned()
        + &count(&|i| format!("- {{priority: 101, from: 10.1.{i}.0/24, table: 7}}\n"))
        + "routes:\n"
        + &count(&|i| format!("- {{to: 10.3.{i}.0/24, dev: eth{i}, table: 7}}\n"))
        + &count(&|i| format!("- {{to: 10.6.{i}.0/24, dev: eth{i}, table: 7}}\n"))
        + "addresses:\n"
        + &count(&|i| format!("- {{dev: eth{i}, address: 10.4.{i}.1/24}}\n"))
        + "bridges:\n"
        + &count(&|i| format!("- {{name: br{i}, addresses: [10.5.{i}.1/24]}}\n- {{name: new{i}}}\n"))
        + "masquerade:\n"
        + &count(&|i| format!("- {{source: 10.5.{i}.0/24, except_out: br{i}}}\n"))
        + "namespaces:\n"
        + &count(&|i| format!("- {{match: '^(fc-{i})$', links: '^vh_({i})$', older_than: 10m, mode: enforce}}\n"));
    (node, yaml)
}

/// What a plan asks for it asks for once, and all at once: each question that comes after another has the whole
/// plan made anew.
#[test]
fn more_of_everything_takes_no_more_looks_one_after_another() {
    let planned = |reconciler: &Reconciler, n: u32| {
        let (node, yaml) = many(n);
        let mut model = Model::new(&node);
        model.recall.boot = std::time::Duration::from_secs(3600);
        model.plan_section(reconciler.name, &desired(&yaml));
        let asked: BTreeSet<_> = model.asked.iter().map(|want| format!("{want:?}")).collect();
        assert_eq!(asked.len(), model.asked.len(), "{} asks twice: {:?}", reconciler.name, model.asked);
        model.begun
    };
    for reconciler in ALL {
        assert_eq!(planned(reconciler, 3), planned(reconciler, 30), "plans of {}", reconciler.name);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_second_plan_is_empty_and_what_others_own_stays(text in node(), yaml in prop::sample::select(&DECLARATIONS)) {
        let desired = desired(yaml);
        let mut model = Model::new(&text);
        for reconciler in ALL {
            let plan = model.plan_section(reconciler.name, &desired);
            for step in plan.steps.iter().chain(&plan.removals) {
                let protocol = match &step.change {
                    // What repaired a table goes once its owner's default is there, or once it is there out of the owner's place.
                    Change::Route(Op::Delete(route)) if route.protocol == PROTO_MENDED && reconciler.name == "default_routes" => {
                        let is_it = |it: &crate::observed::SeenRoute| {
                            (it.table, it.to, it.protocol, it.metric) == (route.table, route.to, PROTO_MENDED, route.stored_metric())
                        };
                        let rest: Vec<_> = model.routes.iter().filter(|it| it.table == route.table && !is_it(it)).collect();
                        let moved = || rest.iter().any(|it| it.to == route.to && it.protocol == PROTO_MENDED && it.metric == u32::MAX);
                        let of_family = rest.iter().copied().filter(|it| it.to.first_address().is_ipv4() == route.to.first_address().is_ipv4());
                        prop_assert!(if route.to.network_length() == 0 { has_default(of_family) } else { moved() }, "{}:\n{text}", step.change);
                        PROTO_DECLARED
                    }
                    Change::Route(Op::Delete(route)) => route.protocol,
                    Change::Route(Op::Replace { new: route, .. }) => {
                        let old = |it: &&crate::observed::SeenRoute| {
                            (it.table, it.to, it.metric) == (route.table, route.to, route.stored_metric())
                        };
                        let old = model.routes.iter().find(old).unwrap().protocol;
                        if old == PROTO_MENDED { PROTO_DECLARED } else { old }
                    }
                    Change::Rule(Op::Delete(old)) if old.rule.protocol == PROTO_RESTORED && reconciler.name == "pod_rules" => PROTO_DECLARED,
                    Change::Rule(Op::Delete(old) | Op::Replace { old, .. }) => old.rule.protocol,
                    Change::Rule(Op::Add(new)) => {
                        let is_kernels = new.extras.is_none() && KERNEL_PRIORITIES.contains(&new.rule.priority);
                        prop_assert_eq!(is_kernels, reconciler.name == "kernel_rules", "{}", new);
                        PROTO_DECLARED
                    }
                    Change::Address(Op::Delete(IfAddress { dev, inet, .. })) => {
                        let index = model.links.iter().find(|link| link.dev.name == *dev).unwrap().dev.index;
                        let is_it = |it: &&crate::observed::Address| (it.index, it.local) == (index, inet.address());
                        model.addresses.iter().find(is_it).and_then(|it| it.protocol).unwrap_or_default()
                    }
                    // Set on whatever is there; the ledger knows what it was.
                    Change::Link(Op::Replace { new, .. }) if new.kind == LinkKind::Other => PROTO_DECLARED,
                    Change::Link(Op::Replace { new: bridge, .. } | Op::Delete(bridge)) => {
                        let ours = model.bridges.iter().any(|it| it.ours && it.dev.name == bridge.name);
                        if ours { PROTO_DECLARED } else { 0 }
                    }
                    Change::Address(Op::Replace { .. }) => 0,
                    Change::Route(Op::Add(_))
                    | Change::Address(Op::Add(_))
                    | Change::Link(Op::Add(_))
                    | Change::Masquerade(_)
                    | Change::File(_)
                    | Change::Sysctl(_)
                    | Change::DeleteNetns(..)
                    | Change::DeleteVeth(..)
                    | Change::RestartPod(_) => PROTO_DECLARED,
                };
                prop_assert_eq!(protocol, PROTO_DECLARED, "{} touches what is not ours:\n{}", step.change, text);
                model.make(step);
            }
            let again = model.plan_section(reconciler.name, &desired);
            prop_assert_eq!([again.steps, again.removals].concat(), vec![], "{} is not done after its plan:\n{}", reconciler.name, text);
            prop_assert_eq!(again.blocked, plan.blocked, "{} changes its mind:\n{}", reconciler.name, text);
        }
    }
}

/// A link's addresses and what main and its table know of its gateway.
fn uplink(index: u32) -> impl Strategy<Value = String> {
    let name = prop_oneof![Just("eth"), Just("enp3s"), Just("wan"), Just("br"), Just("ppp"), Just("vlan.eth.")];
    let kind = prop_oneof![4 => Just(""), 1 => Just("kind=bridge"), 1 => Just("kind=dummy"), 1 => Just("down")];
    let subnet = prop_oneof![Just(index), Just(2)];
    let address = (subnet.clone(), prop_oneof![Just("/24"), Just("/32"), Just(">10.9.9.9")])
        .prop_map(move |(n, length)| format!("10.0.{n}.{index}{length}"));
    let six = (subnet, prop_oneof![Just("/64"), Just("/128")])
        .prop_map(move |(n, length)| format!("fd00:{n}::{index}{length} fe80::{index}/64"));
    let address = prop_oneof![
        address.clone(),
        six.clone(),
        (address, six).prop_map(|(v4, v6)| format!("{v4} {v6}")),
        Just(String::new())
    ];
    (name, kind, address).prop_map(move |(name, kind, address)| format!("link {index} {name}{index} {kind} {address}"))
}

/// A policy: rules of own addresses and of others, tables in every state of decay, main's routers.
fn policy() -> impl Strategy<Value = String> {
    let n = 2_u32..5;
    let source = prop_oneof![
        (n.clone(), n.clone()).prop_map(|(n, host)| format!("10.0.{n}.{host}")),
        (n.clone(), n.clone()).prop_map(|(n, host)| format!("fd00:{n}::{host}")),
        (n.clone(), 70_u32..72).prop_map(|(n, host)| format!("10.0.{n}.{host}")),
    ];
    let priority = prop_oneof![Just(100), Just(1536), Just(32765)];
    let to = prop_oneof![4 => Just(""), 1 => Just("to 10.0.0.0/8"), 1 => Just("to 0.0.0.0/2")];
    let rule = (priority, source, to, 2_u32..4).prop_map(|(priority, from, to, table)| {
        let to = if from.contains(':') { "" } else { to };
        format!("rule {priority} from {from} {to} table {table}")
    });
    let gateway = prop_oneof![
        n.clone().prop_map(|n| format!("10.0.{n}.1")),
        n.clone().prop_map(|n| format!("fd00:{n}::1")),
        (10_u32..12).prop_map(|n| format!("fe80::{n}")),
        Just("10.9.9.9".to_owned()),
        (n.clone(), n.clone()).prop_map(|(n, host)| format!("10.0.{n}.{host}")),
    ];
    let table = prop_oneof![Just(254), Just(2), Just(3)];
    let proto = prop_oneof![2 => Just(3), 1 => Just(170)];
    let route = (gateway, n, table, proto, 0_u32..3).prop_map(|(gateway, dev, table, proto, kind)| match kind {
        0 if table == 254 => format!("route default via {gateway} dev {dev}"),
        1 => {
            let subnet = if gateway.contains(':') { "fd00:2::/64" } else { "10.0.2.0/24" };
            format!("route {subnet} dev {dev} scope link table {table} proto {proto}")
        }
        _ => format!("route {gateway} dev {dev} scope link table {table} proto {proto}"),
    });
    prop_oneof![rule, route]
}

fn generated() -> impl Strategy<Value = String> {
    let links = (uplink(2), uplink(3), uplink(4)).prop_map(|(a, b, c)| format!("{a}\n{b}\n{c}"));
    let mark = prop_oneof![Just(""), Just("rule 1024 fwmark 128/128 table 254")];
    (links, prop::collection::vec(policy(), 0..12), mark)
        .prop_map(|(links, policy, mark)| format!("{links}\n{}\n{mark}", policy.join("\n")))
}

fn defaults_of(plan: &Plan) -> BTreeSet<(u32, IpAddr, u32)> {
    let default = |route: &Route| {
        let dev = route.dev.as_ref().map(|dev| dev.index);
        (route.to.network_length() == 0).then_some((route.table, route.via?, dev?))
    };
    plan.steps
        .iter()
        .filter_map(|step| if let Change::Route(Op::Add(route)) = &step.change { default(route) } else { None })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_gateway_lies_behind_the_link_of_the_tables_own_address(text in generated()) {
        let mut model = Model::new(&text);
        let desired = Config::default();
        let plan = model.plan(default_routes::plan, &desired);
        for (table, via, dev) in defaults_of(&plan) {
            let rules = model.rules.iter().filter_map(crate::observed::SeenRule::lookup);
            for (source, _) in rules.filter_map(sends).filter(|(source, to)| *to == table && source.is_ipv4() == via.is_ipv4()) {
                let carriers: Vec<_> = model.addresses.iter().filter(|it| it.local == source).map(|it| it.index).collect();
                prop_assert!(carriers.is_empty() || carriers.contains(&dev), "{source} is not on link {dev}:\n{text}\n{plan:?}");
            }
            prop_assert!(!model.addresses.iter().any(|it| it.local == via), "{via} is our own:\n{text}");
            prop_assert!(model.links.iter().any(|it| it.dev.index == dev && it.up), "link {dev} is down:\n{text}");
        }
        // What an earlier repair left behind leads to nothing that would not be done without it.
        let mut clean = Model::new(&text);
        clean.routes.retain(|route| route.protocol != PROTO_MENDED);
        let without = defaults_of(&clean.plan(default_routes::plan, &desired));
        prop_assert!(defaults_of(&plan).is_subset(&without), "it follows from our own routes:\n{text}");
    }

    /// Uplinks in subnets of their own or in one, as the VPC CNI sets them up; a table lost its default, or all.
    #[test]
    fn tables_of_the_vpc_cni_are_repaired(
        links in prop::collection::vec((prop::bool::ANY, 0_u8..3), 1..4),
        six in prop::bool::ANY,
        mark in prop::bool::ANY,
    ) {
        let gateway = |subnet: usize| if six { "fe80:ec2::1".to_owned() } else { format!("10.0.{subnet}.1") };
        let own = |subnet: usize, n: usize| if six { format!("fd00:{subnet}::{n}") } else { format!("10.0.{subnet}.{n}") };
        let length = if six { 64 } else { 24 };
        let mut text = format!("link 2 eth0 {}/{length}\nroute default via {} dev 2\n", own(0, 10), gateway(0));
        text += if mark && six { "rule 1024 from ::/0 fwmark 128/128 table 254\n" } else if mark { "rule 1024 fwmark 128/128 table 254\n" } else { "" };
        let mut expected = BTreeSet::new();
        for (n, (same, state)) in links.iter().enumerate() {
            let (index, table) = (n + 3, n + 2);
            let subnet = if *same { 0 } else { n + 1 };
            let (address, pod) = (own(subnet, index + 10), own(subnet, index + 100));
            text += &format!("link {index} eth{} {address}/{length}\nrule 1536 from {pod} table {table}\nrule 32765 from {address} table {table}\n", n + 1);
            let (host, default) = (gateway(subnet), format!("route default via {} dev {index} table {table}\n", gateway(subnet)));
            let host = format!("route {host} dev {index} scope link table {table}\n");
            text += match state { 0 => format!("{host}{default}"), 1 => host, _ => String::new() }.as_str();
            // An empty table needs a router that main names for that subnet, or the marks of the CNI.
            if *state == 1 || *state == 2 && (*same || mark) {
                expected.insert((table as u32, gateway(subnet).parse::<IpAddr>().unwrap(), index as u32));
            }
        }
        let plan = Model::new(&text).plan(default_routes::plan, &Config::default());
        prop_assert_eq!(defaults_of(&plan), expected, "{}", text);
    }
}
