//! Policy tables that lost their default route.

use crate::kit::Worker;

#[test]
fn a_pod_behind_the_second_uplink_is_heard_again() {
    let node = Worker::new().with_pod(100).with_loose_rp_filter();
    assert!(node.pod(0).pings("10.0.1.100", "192.0.2.1"), "the healthy node does not work: the test is wrong");
    let node = node.without_default(2);
    assert!(!node.pod(0).pings("10.0.1.100", "192.0.2.1"), "the router lets through what left by the wrong uplink");

    let ran = node.fix(&["--output", "json"]).expect(0);

    assert!(node.pod(0).pings("10.0.1.100", "192.0.2.1"), "{ran:?}");
    assert_eq!(
        ran.commands(),
        ["ip route add default via 10.0.1.1 dev eth1 table 2 proto 170 scope global metric 4294967295"]
    );
    assert_eq!(ran.json()["converged"], true);
    let routes = node.net.ip_json("route show table 2 default");
    assert_eq!(routes[0]["gateway"], "10.0.1.1", "{routes}");
    assert_eq!(routes[0]["protocol"], "170", "{routes}");
}

#[test]
fn an_interface_that_bounced_gets_its_whole_table_back() {
    // Two uplinks in one subnet, as the VPC CNI has them when the node has one subnet.
    let node = Worker::new().with_pod(100).with_loose_rp_filter();
    node.net.ip("route add default via 10.0.1.1 metric 500 dev eth1");
    node.net.ip("link set eth1 down");
    node.net.ip("link set eth1 up");
    node.net.ip("route add default via 10.0.1.1 metric 500 dev eth1");
    assert!(!node.pod(0).pings("10.0.1.100", "192.0.2.1"), "the table is not empty: the test is wrong");

    let ran = node.fix(&["--output", "json"]).expect(0);

    assert_eq!(ran.commands().len(), 2, "{ran:?}");
    assert!(node.pod(0).pings("10.0.1.100", "192.0.2.1"), "{ran:?}");
}

#[test]
fn ipv6_is_repaired_as_well() {
    let node = Worker::new()
        .with_loose_rp_filter()
        .with_policy_table("fe80:ec2::1", "eth1", 2)
        .with_rule("1536", "fd00:1::100", 2)
        .with_rule("32765", "fd00:1::10", 2);
    assert_eq!(node.fix(&["--output", "json"]).expect(0).commands(), Vec::<String>::new(), "healthy");
    node.net.ip("-6 route del default table 2");

    node.fix(&[]).expect(0);

    let routes = node.net.ip_json("-6 route show table 2 default");
    assert_eq!(routes[0]["gateway"], "fe80:ec2::1", "{routes}");
    node.net.ip("-6 route flush table 2");
    node.net.ip("-6 route del default");
    node.net.ip("-6 route add default via fe80:ec2::1 dev eth0");
    // Of another prefix, main's router on eth0 tells nothing of eth1; the CNI's other tables do.
    node.fix(&[]).expect(1);
    node.net.ip("-6 rule add priority 1024 fwmark 0x80/0x80 lookup main");
    node.fix(&[]).expect(0);
    let routes = node.net.ip_json("-6 route show table 2");
    let mut seen: Vec<_> = routes.as_array().unwrap().iter().map(|route| route["dst"].as_str().unwrap()).collect();
    seen.sort();
    assert_eq!(seen, ["default", "fe80:ec2::1"], "{routes}");
}

#[test]
fn a_default_route_of_any_kind_is_left_alone() {
    for kind in [
        "add default via 10.0.1.1 dev eth1 metric 700",
        "add blackhole default",
        "add unreachable default",
        "add prohibit default",
        "add throw default",
        "add table 2 default nexthop via 10.0.1.1 dev eth1 nexthop via 10.0.0.1 dev eth0",
        "add default nhid 7",
        "add default dev eth1 scope link",
    ] {
        let node = Worker::new().with_pod(100).with_loose_rp_filter().without_default(2);
        node.net.ip("nexthop add id 7 via 10.0.1.1 dev eth1");
        let table = if kind.contains("table") { "" } else { "table 2" };
        node.net.ip(&format!("route {kind} {table}"));
        let before = node.net.state();
        assert_eq!(node.fix(&[]).expect(0).out, "", "{kind}");
        assert_eq!(node.net.state(), before, "{kind}");
    }
}

#[test]
fn tables_above_255_are_tables_like_others() {
    let node = Worker::new().with_loose_rp_filter().with_rule("100", "10.0.1.77", 100_254);
    node.net.ip("route add 10.0.1.1 dev eth1 table 100254 scope link");
    node.fix(&[]).expect(0);
    let routes = node.net.ip_json("route show table 100254 default");
    assert_eq!(routes[0]["gateway"], "10.0.1.1", "{routes}");
    assert_eq!(node.net.ip_json("route show table main default").as_array().unwrap().len(), 1);
}

#[test]
fn rules_that_select_by_more_than_a_source_are_others() {
    let node = Worker::new().with_loose_rp_filter();
    node.net.ip("route add 10.0.1.1 dev eth1 table 7 scope link");
    for selector in [
        "from 10.0.1.0/24 lookup 7",
        "fwmark 0x80 lookup 7",
        "iif eth1 from 10.0.1.50 lookup 7",
        "oif eth1 from 10.0.1.50 lookup 7",
        "not from 10.0.1.50 lookup 7",
        "from 10.0.1.50 uidrange 0-0 lookup 7",
        "from 10.0.1.50 tos 0x10 lookup 7",
        "from 10.0.1.50 lookup 7 suppress_prefixlength 0",
        "from 10.0.1.50 lookup 7 suppress_ifgroup 3",
        "from 10.0.1.50 ipproto tcp dport 443 lookup 7",
        "from 10.0.1.50 tun_id 5 lookup 7",
        "from 10.0.1.50 realms 3 lookup 7",
        "from 10.0.1.50 goto 32766",
        "from 10.0.1.50 blackhole",
    ] {
        node.net.ip(&format!("rule add priority 700 {selector}"));
        let ran = node.fix(&["--dry-run", "--output", "json"]).expect(0);
        assert_eq!(ran.commands(), Vec::<String>::new(), "{selector}");
        node.net.ip("rule del priority 700");
    }
    node.net.ip("rule add priority 700 from 10.0.1.50 lookup 7");
    assert_eq!(node.fix(&["--dry-run", "--output", "json"]).commands().len(), 1, "the plain one is repaired");
}

#[test]
fn an_uncertain_gateway_is_blocked_and_the_rest_still_repaired() {
    let node = Worker::new().with_pod(100).without_default(2);
    node.net.ip("route add 10.0.1.2 dev eth1 table 2 scope link");
    let ran = node.fix(&["--output", "json"]).expect(1);
    let json = ran.json();
    assert_eq!(json["blocked"][0]["reconciler"], "default_routes", "{ran:?}");
    assert_eq!(json["converged"], false);
    assert!(json["blocked"][0]["because"].as_str().unwrap().contains("10.0.1.1, 10.0.1.2"), "{ran:?}");
    assert!(ran.commands().iter().all(|command| command.starts_with("sysctl")), "{ran:?}");
    assert_eq!(node.net.sysctl("net/ipv4/conf/eth1/rp_filter"), "2", "the other section is repaired");
    assert_eq!(node.net.ip_json("route show table 2").as_array().unwrap().len(), 2);
}

#[test]
fn observe_reports_and_off_does_not_look() {
    let node = Worker::new().with_pod(100).without_default(2);
    let before = node.net.state();
    node.config("default_routes: {mode: observe}\nrp_filter: {mode: observe}");
    let ran = node.fix(&["--output", "json"]).expect(0);
    let json = ran.json();
    assert_eq!(json["converged"], true);
    assert!(!ran.commands().is_empty());
    assert!(json["changes"].as_array().unwrap().iter().all(|change| change["status"] == "observed"), "{ran:?}");
    let script = node.fix(&["--dry-run"]).expect(0).out;
    assert!(script.lines().all(|line| line.starts_with('#')), "what is only observed is no command: {script}");
    node.config("default_routes: {mode: off}\nrp_filter: {mode: off}");
    assert_eq!(node.fix(&[]).expect(0).out, "");
    assert_eq!(node.net.state(), before);
}

#[test]
fn what_is_declared_for_the_main_table_is_evidence_at_once() {
    let broken = || {
        let node = Worker::new().with_pod(100).with_loose_rp_filter();
        node.net.ip("route flush table 2");
        node.config("routes: [{to: default, via: 10.0.1.1, dev: eth1, metric: 9}]");
        node
    };
    let (by_script, by_run) = (broken(), broken());
    by_script.net.run("sh", &["-ec", &by_script.fix(&["--dry-run"]).expect(0).out]);
    assert_eq!(by_run.fix(&["--output", "json"]).expect(0).commands().len(), 3);
    assert_eq!(by_script.net.state(), by_run.net.state());
}

#[test]
fn a_host_route_of_global_scope_is_a_way_to_the_gateway() {
    let node = Worker::new().with_pod(100).with_loose_rp_filter();
    node.net.ip("route flush table 2");
    node.net.ip("route add 10.0.1.1 dev eth1 table 2 scope global");
    node.net.ip("route add default via 10.0.1.1 dev eth1 metric 9");
    let ran = node.fix(&["--output", "json"]).expect(0);
    assert_eq!(
        ran.commands(),
        ["ip route add default via 10.0.1.1 dev eth1 table 2 proto 170 scope global metric 4294967295"]
    );
    assert!(node.pod(0).pings("10.0.1.100", "192.0.2.1"));
}

#[test]
fn the_subnet_of_an_address_with_a_peer_is_the_peers() {
    for (gateway, code) in [("172.16.0.1", 0), ("10.0.1.1", 1)] {
        let node = Worker::new().with_pod(100).with_loose_rp_filter();
        node.net.ip("addr flush dev eth1 scope global");
        node.net.ip("addr add 10.0.1.10 peer 172.16.0.1/24 dev eth1");
        node.net.ip(&format!("route add {gateway} dev eth1 table 2 scope link"));
        let ran = node.fix(&["--output", "json"]).expect(code);
        assert_eq!(ran.commands().len(), usize::from(code == 0), "{ran:?}");
    }
}

#[test]
fn a_default_route_for_some_sources_only_is_none() {
    let node = Worker::new().with_loose_rp_filter().with_rule("1536", "fd00:1::100", 3);
    node.net.ip("-6 route add fe80:ec2::1 dev eth1 table 3");
    node.net.ip("-6 route add default from 2001:db8:77::/48 via fe80:ec2::1 dev eth1 table 3");
    assert_eq!(node.fix(&["--output", "json"]).expect(0).commands().len(), 1);
}

#[test]
fn a_family_that_is_named_twice_is_repaired_once() {
    let node = Worker::new().with_pod(100).with_loose_rp_filter().without_default(2);
    node.config("default_routes: {families: [ipv4, ipv4]}");
    assert_eq!(node.fix(&["--output", "json"]).expect(0).commands().len(), 1);
}

/// With the interface the kernel takes all routes of the table: what is to be reported is why.
#[test]
fn an_uplink_that_is_down_is_named() {
    let node = Worker::new().with_loose_rp_filter();
    node.net.ip("link set eth1 down");
    let ran = node.fix(&["--dry-run", "--output", "json"]).expect(0);
    let because = ran.json()["blocked"][0]["because"].as_str().unwrap().to_owned();
    assert!(because.contains("but it is down; set it up: ip link set eth1 up"), "{because}");
}
