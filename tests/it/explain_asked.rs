//! `explain` of packets with marks, protocols, ports, users and interfaces, held against the kernel; and of all pods.

use serde_json::Value;

use crate::kit::{Netns, Worker, finish, node_fixer};

/// Whether explain and the kernel agree on each leg, and what becomes of the packet.
fn explain(net: &Netns, words: &str) -> (Vec<String>, Value) {
    let mut command = node_fixer();
    command.args(["explain", "--output", "json"]).args(words.split_whitespace());
    let ran = finish(net.output(&mut command));
    let json = ran.json();
    for leg in [&json["request"]].into_iter().chain(json["replies"].as_array().unwrap()) {
        assert_eq!(leg["kernel"]["agrees"], true, "{words}: {leg:#}");
    }
    let routes = json["request"]["routes"].as_array().unwrap().iter();
    (routes.map(|route| route["route"].as_str().unwrap().to_owned()).collect(), json)
}

#[test]
fn it_is_asked_about_any_packet_and_the_kernel_agrees() {
    let node = Worker::new().with_pod(100);
    let rules = [
        "priority 100 fwmark 0x10/0xf0 lookup 101",
        "priority 101 ipproto tcp dport 443 lookup 102",
        "priority 102 ipproto udp sport 1000-2000 lookup 103",
        "priority 103 uidrange 1000-2000 lookup 104",
        "priority 104 ipproto icmp lookup 105",
        "priority 105 not fwmark 0x7 lookup 106",
    ];
    for (family, gateway) in [("-4", "10.0.0.1"), ("-6", "fd00:0::1")] {
        for (number, rule) in rules.iter().enumerate() {
            let icmp = if family == "-6" { rule.replace("icmp", "ipv6-icmp") } else { (*rule).to_owned() };
            node.net.ip(&format!("{family} rule add {icmp}"));
            node.net.ip(&format!("{family} route add default via {gateway} dev eth0 table {}", 101 + number));
        }
    }
    for (from, to) in [("10.0.0.10", "192.0.2.1"), ("fd00:0::10", "2001:db8::1"), ("10.0.1.100", "192.0.2.1")] {
        let pod = from == "10.0.1.100";
        for (asked, table) in [
            ("", "106"),
            ("--mark 0x7", if pod { "2" } else { "main" }),
            ("--mark 16", "101"),
            ("--mark 0x15", "101"),
            ("--mark 0x20", "106"),
            ("--proto tcp --dport 443", "102"),
            ("--proto tcp --dport 80", "106"),
            ("--proto tcp --sport 443", "106"),
            ("--proto udp --sport 1500 --dport 53", "103"),
            ("--sport 2001", "106"),
            ("--uid 1500", if pod { "106" } else { "104" }),
            ("--uid 2001", "106"),
            ("--proto icmp", "105"),
        ] {
            let (routes, json) = explain(&node.net, &format!("{from} {to} {asked}"));
            assert!(routes[0].contains(&format!("table {table}")), "{from} {asked}: {routes:?}\n{json:#}");
        }
    }
    let (_, json) = explain(&node.net, "192.0.2.1 10.0.0.10 --iif eth1");
    assert_eq!(json["request"]["iif"], "eth1");
    let (_, json) = explain(&node.net, "10.0.1.100 192.0.2.1 --proto tcp --dport 443 --mark 0x7");
    let packet = "TCP, to port 443, uid 0, mark 0x7, TOS 0. NAT and firewall rules are not considered";
    assert_eq!(json["packet"], packet);
    for (words, why) in [
        ("10.0.1.100 192.0.2.1 --iif eth9", "there is no interface eth9"),
        ("10.0.1.100 192.0.2.1 --proto icmp --dport 7", "ICMP has no ports"),
        ("10.0.1.100 192.0.2.1 --dport 65536", "not a port"),
        ("10.0.1.100 192.0.2.1 --mark x", "not a number"),
        ("10.0.1.100", "<DST>"),
        ("10.0.1.100 192.0.2.1 --pods", "--pods"),
    ] {
        let ran = finish(node.net.output(node_fixer().arg("explain").args(words.split_whitespace()))).expect(64);
        assert!(ran.err.contains(why), "{words}: {ran:?}");
    }
}

/// A marked packet is held against rp_filter with its mark only where src_valid_mark says so.
#[test]
fn a_mark_counts_for_the_way_back_where_that_is_set() {
    let node = Worker::new();
    node.net.ip("rule add priority 50 fwmark 0x1 lookup 77");
    node.net.ip("route add 192.0.2.0/24 via 10.0.1.1 dev eth1 table 77");
    node.net.ip("route add 198.51.100.0/24 via 10.0.0.1 dev eth0");
    for (value, passes) in [("0", false), ("1", true)] {
        node.net.set_sysctl("net/ipv4/conf/all/src_valid_mark", value);
        let (_, json) = explain(&node.net, "192.0.2.1 198.51.100.9 --iif eth1 --mark 1");
        assert_eq!(json["request"]["rp_filter"]["passes"], passes, "{json:#}");
    }
}

/// The table of all pods says of each pair what explain says of it alone.
fn table_is_right(node: &Worker) {
    let ran = finish(node.net.output(node_fixer().args(["explain", "--pods", "--output", "json"])));
    let json = ran.json();
    let pods = json["pods"].as_array().unwrap();
    let address = |pod: &Value| pod["address"].as_str().unwrap().to_owned();
    let works = |from: &str, to: &str| finish(node.net.output(node_fixer().args(["explain", from, to]))).code == 0;
    for pod in pods {
        let from = address(pod);
        let reached = pods.iter().map(address).filter(|to| *to != from && works(&from, to)).count();
        assert_eq!(pod["pods"], reached, "{from}: {json:#}");
        assert_eq!(pod["gateway"], works(&from, "10.0.0.1"), "{from}: {json:#}");
    }
    let all = pods.iter().all(|pod| pod["gateway"] == true && pod["pods"] == pod["of"]);
    assert_eq!((json["works"] == true, ran.code), (all, i32::from(!all)), "{json:#}");
}

#[test]
fn the_table_of_pods_says_what_each_pair_says() {
    let node = (100..106).fold(Worker::new(), Worker::with_pod).with_loose_rp_filter().with_carrier();
    table_is_right(&node);
    node.net.ip("rule del priority 512 to 10.0.1.101 lookup main");
    node.net.ip("rule del priority 1536 from 10.0.1.102 lookup 2");
    node.net.set_sysctl("net/ipv4/conf/eni00000000067/forwarding", "0");
    node.net.ip("rule add priority 30 from 10.0.1.104 to 10.0.1.105 prohibit");
    table_is_right(&node);
    let node = node.without_default(2);
    table_is_right(&node);
}

#[test]
fn pairs_of_too_many_kinds_of_pods_are_not_said_to_work() {
    let node = Worker::new().with_pod(100).with_loose_rp_filter();
    let lines = (1..50).flat_map(|at| {
        let (name, address) = (format!("eni{at:011x}"), format!("10.0.1.{}", 120 + at));
        [
            format!("link add {name} type veth peer name peer{at}"),
            format!("link set {name} up"),
            format!("link set peer{at} up"),
            format!("route add {address} dev {name} scope link"),
            format!("rule add to {address} lookup main pref 512"),
            format!("rule add from {address} lookup {} pref 1536", 100 + at),
            format!("route add default via 10.0.1.1 dev eth1 table {}", 100 + at),
        ]
    });
    node.net.ip_batch("-4", &(lines.collect::<Vec<_>>().join("\n") + "\n"));
    node.net.settle();
    let of = |more: &[&str]| finish(node.net.output(node_fixer().args(["explain", "--pods"]).args(more)));
    let text = of(&[]);
    assert!(text.out.contains("no pair that was traced breaks"), "{text:?}");
    let json = of(&["--output", "json"]).json();
    assert_eq!(json["untraced"], 49 * 48, "{json}");
    let icmp = of(&["--proto", "icmp", "--dport", "7"]).expect(64);
    assert!(icmp.err.contains("ICMP has no ports"), "{icmp:?}");
}
