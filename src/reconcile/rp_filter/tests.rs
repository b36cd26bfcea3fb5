use super::*;
use crate::change::Step;
use crate::observed::{RpFilters, Want};
use crate::reconcile::testing::{Model, desired, observed};

/// Two uplinks of the VPC CNI with names of newer machine types, a pod, and what is no uplink.
const NODE: &str = "link 2 enp39s0 10.0.1.10/24 rp=1
    link 3 enP2p4s0 10.0.2.10/24 rp=1
    link 4 eni0123456789a rp=1
    link 5 docker0 172.17.0.1/16 rp=1 kind=bridge
    link 6 wg0 10.9.0.1/24 rp=1 kind=wireguard
    link 7 dummy0 10.8.0.1/32 rp=1 kind=dummy
    link 8 lxc0 rp=1
    link 9 pod0123456789a 10.0.2.1/32 rp=1
    link 1 lo 127.0.0.1/8 rp=1
    rule 32765 from 10.0.2.10 table 2
    route default via 10.0.1.1 dev 2
    route 10.0.2.1 dev 3 scope link table 2
    route default via 10.0.2.1 dev 3 table 2";
/// The CNI's rules for the pod that is not behind an `eni` link.
const RULES_OF_POD: &str = "\nrule 512 to 10.0.2.50 table 254\nrule 1536 from 10.0.2.50 table 2\n\
    route 10.0.2.50 dev 9 scope link";

/// The keys that are written, without what is the same in all of them, and the plan.
fn written(node: &str, section: &str, default: i32, all: i32) -> (Vec<String>, Plan) {
    let mut node = Model::new(node);
    (node.rp_filters.default, node.rp_filters.all) = (default, all);
    let plan = node.plan(plan, &desired(&format!("rp_filter: {section}")));
    let short = |step: &Step| {
        let command = step.change.to_string().replace("sysctl -w net.ipv4.conf.", "").replace(".rp_filter", "");
        command.replace("sysctl -w net/ipv4/conf/", "").replace("/rp_filter", "")
    };
    (plan.steps.iter().map(short).collect(), plan)
}

#[test]
fn by_role_uplinks_and_the_cnis_pod_links_are_set_and_nothing_else() {
    let unproven = NODE.replace("eni0123456789a", "cni0");
    let proven = format!("{unproven}{RULES_OF_POD}");
    for (case, node, section, default, expected) in [
        ("by role", NODE, "{}", 2, &["enp39s0=2", "enP2p4s0=2", "eni0123456789a=2", "pod0123456789a=2"][..]),
        ("without the CNI's marks", &unproven, "{}", 2, &["enp39s0=2", "enP2p4s0=2"]),
        ("another prefix of pod links", &proven, "{}", 2, &["enp39s0=2", "enP2p4s0=2", "pod0123456789a=2"]),
        ("off of default drops nothing", "", "{}", 0, &[]),
        ("strict of default is raised", "", "{}", 1, &["default=2"]),
        ("off of uplinks", "link 2 bond0 10.0.0.1/24 rp=0\nroute default via 10.0.0.9 dev 2", "{}", 2, &["bond0=2"]),
        (
            "a bridge and a VLAN that main leaves by",
            "link 2 br0 10.0.0.1/24 rp=1 kind=bridge\nlink 3 eth0.100 10.0.3.1/24 rp=1 kind=vlan
             route default via 10.0.0.9 dev 2\nroute default via 10.0.3.9 dev 3 metric 9",
            "{}",
            2,
            &["br0=2", "eth0.100=2"],
        ),
        (
            "a member of a VRF",
            "link 2 eth9 10.0.0.1/24 rp=1 vrf\nrule 100 from 10.0.0.1 table 9
             route default via 10.0.0.9 dev 2 table 9",
            "{}",
            2,
            &[],
        ),
        ("IPv6 alone", "link 2 ens5 fd00::10/64 rp=1\nroute default6 via fe80::1 dev 2", "{}", 2, &["ens5=2"]),
        ("by name", NODE, "{interfaces: '^(docker0|enp)'}", 1, &["enp39s0=2", "docker0=2"]),
        ("strict on purpose", NODE, "{replace: [off]}", 1, &[]),
        (
            "further entries come first",
            NODE,
            "{more: [{interfaces: ^lxc, value: off}, {interfaces: '^(lxc|enp)', value: strict}]}",
            2,
            &["enP2p4s0=2", "eni0123456789a=2", "lxc0=0", "pod0123456789a=2"],
        ),
        (
            "a further entry that replaces no strict",
            NODE,
            "{more: [{interfaces: '^(lxc|en)', value: loose, replace: [off]}]}",
            2,
            &["pod0123456789a=2"],
        ),
        ("a further entry for default", "", "{more: [{interfaces: '^default$', value: strict}]}", 2, &["default=1"]),
    ] {
        assert_eq!(written(node, section, default, 0).0, expected, "{case}");
    }
}

#[test]
fn all_is_never_written_and_where_it_wins_the_wish_is_blocked() {
    let uplink = "link 2 eth0 10.0.0.1/24 rp=0\nroute default via 10.0.0.9 dev 2\nlink 3 lxc0 rp=0";
    for (case, section, all, keys, wants) in [
        ("loose is the greatest", "{}", 1, 1, &[][..]),
        ("strict loses", "{value: strict}", 2, 1, &["make rp_filter 1 (strict) effective on eth0"]),
        ("no interface is concerned", "{value: strict, interfaces: ^ens}", 2, 0, &[]),
        (
            "each value",
            "{value: strict, more: [{interfaces: ^lxc, value: off}]}",
            2,
            1,
            &["make rp_filter 0 (off) effective on lxc0", "make rp_filter 1 (strict) effective on eth0"],
        ),
    ] {
        let (written, plan) = written(uplink, section, 2, all);
        assert_eq!(written.len(), keys, "{case}: {written:?}");
        assert_eq!(plan.blocked.iter().map(|it| it.want.as_str()).collect::<Vec<_>>(), wants, "{case}");
    }
}

#[test]
fn interfaces_that_follow_default_and_are_not_selected_keep_their_value() {
    let node = "link 2 eth0 10.0.0.1/24 rp=1\nroute default via 10.0.0.9 dev 2
        link 3 docker0 rp=1 kind=bridge\nlink 4 wg0 rp=0\nlink 5 lxc0 rp=1";
    let (commands, _) = written(node, "{}", 1, 0);
    assert_eq!(commands, ["docker0=1; lxc0=1; default=2", "eth0=2"]);
    let (commands, _) = written(node, "{more: [{interfaces: ^lxc, value: strict}]}", 1, 0);
    assert_eq!(commands, ["docker0=1; lxc0=1; default=2", "eth0=2"], "one that is as its own entry wants it");
    let (commands, _) = written(node, "{more: [{interfaces: ^lxc, value: off}]}", 1, 0);
    assert_eq!(commands, ["docker0=1; default=2", "eth0=2", "lxc0=0"]);
}

#[test]
fn a_strict_uplink_that_is_left_out_is_reported() {
    let unnumbered = "link 2 eth0 10.0.0.1/24 rp=2\nlink 3 tun0 rp=1 kind=tun\nroute default via 10.0.0.9 dev 2
        route default via 10.0.0.8 dev 3 metric 9";
    let v6 = "link 2 ens5 fd00::10/64 rp=1\nroute default6 via fe80::1 dev 2";
    let branch = "link 2 vlan.eth.1 rp=1 kind=vlan\nrule 10 iif vlan0123456789a table 101
        route default via 10.0.0.9 dev 2 table 101\nlink 3 eth0 10.0.0.1/24";
    let vrf = "link 2 eth9 10.0.0.1/24 rp=1 vrf\nrule 100 from 10.0.0.1 table 9
        route default via 10.0.0.9 dev 2 table 9";
    let by_all = "link 2 enp39s0 10.0.0.1/24 rp=0\nroute default via 10.0.0.9 dev 2";
    for (case, node, section, all, expected) in [
        ("two", NODE, "{interfaces: ^eth}", 0, Some("enP2p4s0 and 1 more are strict and not managed")),
        ("one", NODE, "{interfaces: ^enP}", 0, Some("enp39s0 is strict and not managed")),
        ("by a further entry", NODE, "{interfaces: ^enP, more: [{interfaces: enp, value: strict}]}", 0, None),
        ("observed", NODE, "{interfaces: ^en, mode: observe}", 0, None),
        ("by role", NODE, "{}", 0, None),
        ("strict on purpose", NODE, "{interfaces: ^eth, replace: [off]}", 0, None),
        ("strict is wanted", NODE, "{interfaces: ^eth, value: strict}", 0, None),
        ("no address, so no role", unnumbered, "{}", 0, Some("tun0 is strict and not managed")),
        ("IPv6 has no rp_filter", v6, "{interfaces: ^eth}", 0, None),
        ("a branch link", branch, "{interfaces: ^eth}", 0, None),
        ("a member of a VRF", vrf, "{interfaces: ^ens}", 0, None),
        ("strict by all", by_all, "{interfaces: ^eth}", 1, Some("enp39s0 is strict and not managed")),
        ("loose by all", by_all, "{interfaces: ^eth}", 2, None),
    ] {
        let (_, plan) = written(node, section, 2, all);
        assert_eq!(plan.notices.first().and_then(|it| it.problem.as_deref()), expected, "{case}");
    }
}

#[test]
fn a_healthy_node_is_asked_for_no_more_than_its_filters() {
    let mut node = Model::new("link 1 lo 127.0.0.1/8 rp=0\nlink 2 eth0 10.0.0.1/24 rp=2");
    assert_eq!(node.plan(plan, &Config::default()), Plan::default());
    assert_eq!(node.asked, [Want::RpFilters]);
    // A pod's link is known by its name.
    node.rp_filters.links.push((3, 1));
    node.links.push(crate::reconcile::testing::link(3, "eni0123456789a"));
    assert_eq!(node.plan(plan, &Config::default()).steps.len(), 1);
    assert_eq!(node.asked[1..], [Want::RpFilters, Want::Name(3)]);
}

#[test]
fn only_offenders_are_looked_at_by_name() {
    let links = vec![(1, 0), (2, 2), (3, 1), (4, 2)];
    let seen = observed(|seen| seen.rp_filters = Some(Ok(RpFilters { all: 0, default: 2, links })));
    let asked = plan(&desired("rp_filter: {interfaces: '.'}"), &seen);
    assert_eq!(asked, Err(Gap::Unseen(vec![Want::Name(1), Want::Name(3)])));
}

#[test]
fn an_interface_that_vanished_is_no_error() {
    let seen = observed(|seen| {
        seen.rp_filters = Some(Ok(RpFilters { all: 0, default: 2, links: vec![(9, 1)] }));
        seen.names.insert(9, Ok(None));
    });
    assert_eq!(plan(&Config::default(), &seen), Ok(Plan::default()));
}
