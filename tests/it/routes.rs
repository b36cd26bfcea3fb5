//! Declared routes with every key, compared with what `ip route add` makes of the same words.

use std::process::Command;

use serde_json::Value;

use crate::kit::{Netns, Ran, Worker, finish, started_by};

/// A declaration, and what an operator would type for it.
const ROUTES: [(&str, &str, &str); 26] = [
    ("to: 10.9.0.0/16, via: 10.0.0.1, src: 10.0.0.10", "-4", "10.9.0.0/16 via 10.0.0.1 src 10.0.0.10"),
    ("to: 10.9.1.0/24, via: 10.0.0.1, mtu: 1400, advmss: 1360", "-4", "10.9.1.0/24 via 10.0.0.1 mtu 1400 advmss 1360"),
    ("to: 10.9.2.0/24, dev: eth1, src: 10.0.1.10", "-4", "10.9.2.0/24 dev eth1 src 10.0.1.10"),
    ("to: 10.9.3.0/24, via: 203.0.113.1, dev: eth1, onlink: true", "-4", "10.9.3.0/24 via 203.0.113.1 dev eth1 onlink"),
    (
        "to: default, table: 9, nexthops: [{via: 10.0.0.1, dev: eth0, weight: 3}, {via: 10.0.1.1}]",
        "-4",
        "default table 9 nexthop via 10.0.0.1 dev eth0 weight 3 nexthop via 10.0.1.1 weight 1",
    ),
    (
        "to: 10.9.4.0/24, nexthops: [{via: 203.0.113.1, dev: eth0, onlink: true}, {dev: eth1, weight: 256}], mtu: 1400",
        "-4",
        "10.9.4.0/24 mtu 1400 nexthop via 203.0.113.1 dev eth0 onlink nexthop dev eth1 weight 256",
    ),
    ("to: 10.9.5.0/24, nhid: 5, metric: 7", "-4", "10.9.5.0/24 nhid 5 metric 7"),
    ("to: 10.9.6.0/24, via: 'fe80::1', dev: eth1", "-4", "10.9.6.0/24 via inet6 fe80::1 dev eth1"),
    ("to: 0.0.0.0/0, via: 'fd00:1::1', dev: eth1, table: 11", "-4", "default via inet6 fd00:1::1 dev eth1 table 11"),
    (
        "to: 10.9.7.0/24, nexthops: [{via: 'fe80::1', dev: eth1}, {via: 10.0.0.1}]",
        "-4",
        "10.9.7.0/24 nexthop via inet6 fe80::1 dev eth1 nexthop via 10.0.0.1",
    ),
    ("to: 10.9.8.0/24, type: blackhole", "-4", "blackhole 10.9.8.0/24"),
    ("to: 10.9.9.0/24, type: unreachable, metric: 4278198272", "-4", "unreachable 10.9.9.0/24 metric 4278198272"),
    ("to: 10.9.10.0/24, type: prohibit, table: 12", "-4", "prohibit 10.9.10.0/24 table 12"),
    ("to: default, type: throw, table: 13", "-4", "throw default table 13"),
    ("to: 0.0.0.0/0, type: local, dev: lo, table: 100", "-4", "local default dev lo table 100"),
    ("to: 10.9.11.1, type: local, dev: lo", "-4", "local 10.9.11.1 dev lo"),
    (
        "to: 'fd09::/64', via: 'fd00:0::1', src: 'fd00:0::10', mtu: 1400, advmss: 1340",
        "-6",
        "fd09::/64 via fd00:0::1 src fd00:0::10 mtu 1400 advmss 1340",
    ),
    (
        "to: 'fd09:1::/64', nexthops: [{via: 'fd00:0::1', dev: eth0, weight: 2}, {via: 'fd00:1::1', dev: eth1}]",
        "-6",
        "fd09:1::/64 nexthop via fd00:0::1 dev eth0 weight 2 nexthop via fd00:1::1 dev eth1",
    ),
    ("to: 'fd09:2::/64', nhid: 6", "-6", "fd09:2::/64 nhid 6"),
    ("to: 'fd09:3::/64', type: blackhole", "-6", "blackhole fd09:3::/64"),
    ("to: 'fd09:4::/64', type: unreachable", "-6", "unreachable fd09:4::/64"),
    ("to: 'fd09:5::/64', type: prohibit", "-6", "prohibit fd09:5::/64"),
    ("to: default, type: throw, family: ipv6, table: 13", "-6", "throw default table 13"),
    ("to: '::/0', type: local, dev: lo, table: 100", "-6", "local default dev lo table 100"),
    (
        "to: 'fd09:6::/64', via: 'fe80::1', dev: eth1, onlink: true, metric: 5",
        "-6",
        "fd09:6::/64 via fe80::1 dev eth1 onlink metric 5",
    ),
    ("to: 10.9.12.0/24, dev: eth1, scope: host, table: 100000", "-4", "10.9.12.0/24 dev eth1 scope host table 100000"),
];

fn declared() -> String {
    format!("routes:{}\n", ROUTES.iter().map(|(yaml, ..)| format!("\n  - {{{yaml}}}")).collect::<String>())
}

fn node() -> Worker {
    Worker::new()
        .with_loose_rp_filter()
        .with("nexthop add id 5 via 10.0.0.1 dev eth0\nnexthop add id 6 via fd00:1::1 dev eth1")
}

/// Ours, field by field; but for `linkdown`, which goes up to a second after a link has its carrier.
fn shown(net: &Netns, family: &str) -> Vec<Value> {
    let routes = net.ip_json(&format!("-d -N {family} route show table all")).to_string();
    let routes: Value =
        serde_json::from_str(&routes.replace("\"linkdown\"", "").replace("[,", "[").replace(",]", "]")).unwrap();
    routes.as_array().unwrap().iter().filter(|route| route["protocol"] == "171").cloned().collect()
}

fn all_shown(net: &Netns) -> Vec<Value> {
    ["-4", "-6"].iter().flat_map(|family| shown(net, family)).collect()
}

#[test]
fn every_key_makes_what_ip_makes_of_it() {
    let (node, reference) = (node(), node());
    let before = node.net.state();
    node.config(&declared());
    for (_, family, words) in ROUTES {
        reference.net.ip(&format!("{family} route add proto 171 {words}"));
    }
    let ran = node.fix(&["--output", "json"]).expect(0);
    let (made, typed) = (all_shown(&node.net), all_shown(&reference.net));
    for (made, typed) in made.iter().zip(&typed) {
        assert_eq!(made, typed, "{ran:?}");
    }
    assert_eq!((made.len(), ran.commands().len()), (typed.len(), ROUTES.len()));
    let made = node.net.state();
    assert_eq!(node.fix(&[]).expect(0).out, "", "a second run finds nothing to do");
    for (_, family, words) in ROUTES.iter().step_by(2) {
        node.net.ip(&format!("{family} route del {words}"));
    }
    node.fix(&[]).expect(0);
    let sorted = |state: &str| {
        let mut lines: Vec<String> = state.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(&node.net.state()), sorted(&made), "what was removed comes back");
    node.config("");
    node.fix(&[]).expect(0);
    assert_eq!(node.net.state(), before, "what is no longer declared is gone, and nothing else");
}

#[test]
fn the_script_makes_and_removes_the_same() {
    node().is_equalled_by_scripts(&node(), &declared());
}

#[test]
fn the_same_of_others_is_used_and_never_deleted() {
    let node = node();
    for (_, family, words) in ROUTES {
        node.net.ip(&format!("{family} route add proto static {words}"));
    }
    let before = node.net.state();
    node.config(&declared());
    assert_eq!(node.fix(&[]).expect(0).out, "");
    node.config("");
    assert_eq!(node.fix(&[]).expect(0).out, "");
    assert_eq!(node.net.state(), before);
}

/// Each of them in the place of each other one: one request, and so no moment without a route.
#[test]
fn a_route_changes_in_place_from_any_kind_to_any_other() {
    let node = node();
    for (to, kinds) in [
        (
            "10.8.0.0/16",
            &[
                "via: 10.0.0.1",
                "via: 10.0.0.1, src: 10.0.1.10, mtu: 1400",
                "dev: eth1",
                "nexthops: [{via: 10.0.0.1}, {via: 10.0.1.1, weight: 9}]",
                "nexthops: [{via: 10.0.0.1, weight: 9}, {via: 10.0.1.1}]",
                "nhid: 5",
                "via: 'fe80::1', dev: eth1",
                "type: blackhole",
                "type: throw",
            ][..],
        ),
        (
            "fd08::/32",
            &[
                "via: 'fd00:0::1'",
                "via: 'fd00:0::1', src: 'fd00:1::10', mtu: 1400",
                "dev: eth1",
                "nexthops: [{via: 'fd00:0::1'}, {via: 'fd00:1::1', weight: 9}]",
                "nexthops: [{via: 'fd00:0::1', dev: eth0}, {via: 'fd00:1::1', dev: eth1}, {via: 'fd00:1::2', dev: eth1}]",
                "nhid: 6",
                "type: blackhole",
                "type: prohibit",
            ],
        ),
    ] {
        let family = if to.contains(':') { "-6" } else { "-4" };
        for old in kinds {
            for new in kinds.iter().filter(|new| *new != old) {
                let run = |entry: &str| {
                    node.config(&format!("routes: [{{to: '{to}', {entry}}}]"));
                    node.fix(&["--output", "json"]).expect(0)
                };
                run(old);
                let ran = run(new);
                let actions = |ran: &Ran| ran.json()["changes"].as_array().unwrap().len();
                assert_eq!(
                    (actions(&ran), &ran.json()["changes"][0]["action"]),
                    (1, &"update".into()),
                    "{old} > {new}"
                );
                let fresh = node_like();
                fresh.config(&format!("routes: [{{to: '{to}', {new}}}]"));
                fresh.fix(&[]).expect(0);
                assert_eq!(shown(&node.net, family), shown(&fresh.net, family), "{old} > {new}");
            }
        }
        node.config("");
        node.fix(&[]).expect(0);
        assert_eq!(all_shown(&node.net), Vec::<Value>::new());
    }
}

fn node_like() -> Worker {
    node()
}

#[test]
fn next_hops_of_others_in_an_ipv6_route_of_ours_stay() {
    let node = node();
    let several = "{to: 'fd08::/32', nexthops: [{via: 'fd00:0::1'}, {via: 'fd00:1::1'}]}";
    node.config(&format!("routes: [{several}]"));
    node.fix(&[]).expect(0);
    node.net.ip("-6 route append fd08::/32 via fd00:1::9 dev eth1 proto static");
    let before = node.net.state();
    for routes in [several, "{to: 'fd08::/32', via: 'fd00:1::1'}", ""] {
        node.config(&format!("routes: [{routes}]"));
        let ran = node.fix(&["--output", "json"]).expect(1);
        assert_eq!(ran.json()["blocked"].as_array().unwrap().len(), 1, "{ran:?}");
        assert_eq!(node.net.state(), before);
    }
    node.net.ip("-6 route del fd08::/32 via fd00:1::9 dev eth1 proto static");
    node.config("");
    node.fix(&[]).expect(0);
    assert_eq!(all_shown(&node.net), Vec::<Value>::new());
}

#[test]
fn of_another_owner_what_differs_is_blocked_and_what_is_not_declared_is_not_compared() {
    for (live, declared, blocked) in [
        ("10.8.0.0/16 via 10.0.0.1 src 10.0.1.10 mtu 1400", "via: 10.0.0.1", 0),
        ("10.8.0.0/16 via 10.0.0.1 initcwnd 20", "via: 10.0.0.1", 0),
        ("10.8.0.0/16 via 10.0.0.1", "via: 10.0.0.1, src: 10.0.1.10", 1),
        ("10.8.0.0/16 via 10.0.0.1 mtu 1300", "via: 10.0.0.1, mtu: 1400", 1),
        ("10.8.0.0/16 via 10.0.0.1 advmss 1300", "via: 10.0.0.1, advmss: 1400", 1),
        (
            "10.8.0.0/16 nexthop via 10.0.0.1 weight 2 nexthop via 10.0.1.1",
            "nexthops: [{via: 10.0.0.1}, {via: 10.0.1.1}]",
            1,
        ),
        ("10.8.0.0/16 nexthop via 10.0.1.1 nexthop via 10.0.0.1", "nexthops: [{via: 10.0.0.1}, {via: 10.0.1.1}]", 0),
        ("blackhole 10.8.0.0/16", "type: prohibit", 1),
        ("10.8.0.0/16 nhid 5", "via: 10.0.0.1", 1),
        ("10.8.0.0/16 via inet6 fe80::1 dev eth1", "via: 'fe80::2', dev: eth1", 1),
    ] {
        let node = node();
        node.net.ip(&format!("route add proto static {live}"));
        let before = node.net.state();
        node.config(&format!("routes: [{{to: 10.8.0.0/16, {declared}}}]"));
        let ran = node.fix(&["--output", "json"]).expect(blocked);
        assert_eq!(ran.json()["blocked"].as_array().unwrap().len() as i32, blocked, "{live}: {ran:?}");
        assert_eq!(node.net.state(), before, "{live}");
    }
}

#[test]
fn what_others_change_of_ours_is_set_right() {
    let node = node();
    node.config("routes: [{to: 10.8.0.0/16, via: 10.0.0.1, src: 10.0.1.10}]");
    node.fix(&[]).expect(0);
    let made = all_shown(&node.net);
    for change in ["mtu 1400", "src 10.0.0.10", "initcwnd 5", "src 10.0.1.10 mtu lock 1400"] {
        node.net.ip(&format!("route replace 10.8.0.0/16 via 10.0.0.1 proto 171 {change}"));
        node.fix(&[]).expect(0);
        assert_eq!(all_shown(&node.net), made, "{change}");
    }
}

#[test]
fn a_declared_route_replaces_what_repaired_the_table() {
    let node = Worker::new().with_pod(100).with_loose_rp_filter().without_default(2);
    node.fix(&[]).expect(0);
    let routes = node.net.ip_json("-N route show table 2");
    assert!(routes.as_array().unwrap().iter().any(|it| it["protocol"] == "170" && it["dst"] == "default"), "{routes}");
    node.config("routes: [{to: default, via: 10.0.1.1, dev: eth1, table: 2}]");
    node.fix(&[]).expect(0);
    let routes = node.net.ip_json("-N route show table 2 default");
    assert_eq!((routes.as_array().unwrap().len(), &routes[0]["protocol"]), (1, &"171".into()), "{routes}");
    assert_eq!(node.fix(&[]).expect(0).out, "");
}

#[test]
fn tables_have_the_names_that_iproute2_gives_them() {
    let node = node();
    let etc = node.directory.path().join("etc");
    std::fs::create_dir_all(etc.join("rt_tables.d")).unwrap();
    std::fs::write(etc.join("rt_tables"), "255 local\n254 main\n0x64\tisp1 # the first\n").unwrap();
    std::fs::write(etc.join("rt_tables.d/isp.conf"), "# tables\n100000 isp2\n").unwrap();
    node.config(
        "default_routes: {exclude_tables: [isp1, [isp1, isp2]]}
rules: [{priority: 900, fwmark: 7, table: isp1}]
routes: [{to: default, via: 10.0.0.1, table: isp1}, {to: default, via: 10.0.1.1, table: isp2}]",
    );
    let run = |command: &Command| {
        let mut mounts = Command::new("unshare");
        mounts.args(["--mount", "sh", "-ec", "mount --bind \"$1\" /etc/iproute2; shift; exec \"$@\"", "sh"]).arg(&etc);
        finish(node.net.output(&mut started_by(mounts, command)))
    };
    run(&node.command(&[])).expect(0);
    assert_eq!(node.net.ip("-N rule show priority 900").split_whitespace().last(), Some("171"));
    assert!(node.net.ip("-N rule show priority 900").contains("lookup 100 "));
    assert!(node.net.ip("route show table 100").contains("via 10.0.0.1"));
    assert!(node.net.ip("route show table 100000").contains("via 10.0.1.1"));
    let mut ip = Command::new("ip");
    ip.args(["route", "show", "table", "isp2"]);
    assert!(run(&ip).expect(0).out.contains("via 10.0.1.1"), "and ip means the same");
    assert!(node.fix(&[]).expect(78).err.contains("isp1"), "a name that nobody gives is an error");
}
