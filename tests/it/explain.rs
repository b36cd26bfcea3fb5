//! `explain` against the kernel: generated policies, and nodes that broke in the ways that nodes break.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::kit::{Netns, Worker, finish, node_fixer};

/// Pseudo-random numbers of a seed (splitmix64).
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % sides as u64) as usize
    }

    pub fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.roll(of.len())]
    }

    pub fn chance(&mut self, one_in: usize) -> bool {
        self.roll(one_in) == 0
    }
}

/// What the generated policies are made of, by family.
struct Words {
    ip: &'static str,
    nexthops: usize,
    addresses: &'static [&'static str],
    sources: &'static [&'static str],
    prefixes: &'static [&'static str],
    gateways: &'static [(&'static str, &'static str)],
}

const V4: Words = Words {
    ip: "-4",
    nexthops: 0,
    addresses: &["192.0.2.1", "192.0.2.77", "198.51.100.3", "10.0.1.1", "10.0.0.10", "10.0.1.101", "10.0.2.9"],
    sources: &["10.0.0.10", "10.0.1.10", "10.0.2.10", "10.0.1.100", "10.0.1.101", "10.0.0.102", "10.9.0.7"],
    prefixes: &[
        "default",
        "default",
        "192.0.2.0/24",
        "192.0.2.0/26",
        "192.0.2.1/32",
        "10.0.0.0/8",
        "10.0.1.0/24",
        "10.0.1.100/32",
        "10.0.1.101/32",
        "10.9.0.0/16",
        "198.51.100.0/24",
        "128.0.0.0/1",
    ],
    gateways: &[("10.0.0.1", "eth0"), ("10.0.1.1", "eth1"), ("10.0.1.2", "eth1"), ("10.0.2.1", "eth2")],
};

const V6: Words = Words {
    ip: "-6",
    nexthops: 10,
    addresses: &["2001:db8::1", "2001:db8::77", "2001:db8:7::3", "fd00:1::1", "fd00::10", "fd00:1::101", "fd00:2::9"],
    sources: &["fd00::10", "fd00:1::10", "fd00:2::10", "fd00:1::100", "fd00:1::101", "fd00::102", "fd00:9::7"],
    prefixes: &[
        "default",
        "default",
        "2001:db8::/48",
        "2001:db8::/64",
        "2001:db8::1/128",
        "fd00::/16",
        "fd00:1::/64",
        "fd00:1::100/128",
        "fd00:1::101/128",
        "fd00:9::/32",
        "2001:db8:7::/48",
        "2000::/3",
    ],
    gateways: &[("fd00::1", "eth0"), ("fd00:1::1", "eth1"), ("fe80::1", "eth1"), ("fd00:2::1", "eth2")],
};

const LINKS: [&str; 6] = ["eth0", "eth1", "eth2", "pod0", "pod1", "pod2"];

/// Those of each family: two plain ones, one that drops, and a group.
const NEXTHOPS: [&str; 8] = [
    "nexthop add id 1 via 10.0.0.1 dev eth0",
    "nexthop add id 2 via 10.0.1.1 dev eth1",
    "nexthop add id 3 blackhole",
    "nexthop add id 11 via fd00::1 dev eth0",
    "nexthop add id 12 via fd00:1::1 dev eth1",
    "nexthop add id 13 blackhole",
    "nexthop add id 4 group 1/2",
    "nexthop add id 14 group 11/12",
];

/// Three uplinks, the last without a carrier, and three pods' links without addresses.
fn node() -> Netns {
    let net = Netns::new();
    net.set_sysctl("net/ipv6/conf/default/accept_dad", "0");
    net.set_sysctl("net/ipv4/conf/all/forwarding", "1");
    net.set_sysctl("net/ipv6/conf/all/forwarding", "1");
    for link in LINKS {
        net.ip(&format!("link add {link} type veth peer name of-{link}"));
        if link != "eth2" {
            net.ip(&format!("link set of-{link} up"));
        }
        net.set_sysctl(&format!("net/ipv6/conf/{link}/accept_dad"), "0");
        net.ip(&format!("link set {link} up"));
    }
    for n in 0..3 {
        net.ip(&format!("addr add 10.0.{n}.10/24 dev eth{n}"));
        net.ip(&format!("addr add fd00:{n}::10/64 dev eth{n}"));
    }
    net.ip("link set eth1 group 7");
    net
}

/// A policy of this family, as lines of `ip -batch`.
fn policy(dice: &mut Dice, words: &Words) -> Vec<String> {
    let mut lines = Vec::new();
    let mut add = |object: &str, what: String| lines.push(format!("{object} add {what}"));
    for (pod, source) in words.sources[3..6].iter().enumerate() {
        if !dice.chance(6) {
            let link = if dice.chance(8) { "pod0".into() } else { format!("pod{pod}") };
            add("route", format!("{source} dev {link} table {}", if dice.chance(8) { "3" } else { "main" }));
        }
    }
    for _ in 0..3 + dice.roll(8) {
        let table = dice.pick(&["1", "2", "2", "3", "70000", "main", "main", "local"]);
        let prefix = dice.pick(words.prefixes);
        let (via, dev) = words.gateways[dice.roll(words.gateways.len())];
        let (other, other_dev) = words.gateways[dice.roll(words.gateways.len())];
        let metric = if dice.chance(3) { format!(" metric {}", 1 + dice.roll(4)) } else { String::new() };
        let route = match dice.roll(14) {
            0 => format!("{} {prefix}", dice.pick(&["blackhole", "unreachable", "prohibit", "throw", "throw"])),
            1 => format!("{prefix} nexthop via {via} dev {dev} onlink nexthop via {other} dev {other_dev} onlink"),
            2 => format!("{prefix} nhid {}", words.nexthops + 1 + dice.roll(4)),
            3 | 4 => format!("{prefix} dev {}", dice.pick(&LINKS)),
            5 if words.ip == "-4" => format!("{prefix} via {via} dev {dev} onlink tos 0x10"),
            _ => format!("{prefix} via {via} dev {dev} onlink"),
        };
        add("route", format!("{route} table {table}{metric}"));
    }
    for _ in 0..2 + dice.roll(7) {
        let priority = [100, 100, 512, 1024, 1536, 1536, 30000, 32765, 40000][dice.roll(9)] + dice.roll(3);
        let mut rule = format!("priority {priority}");
        let host = |address: &str| format!("{address}/{}", if words.ip == "-4" { 32 } else { 128 });
        let prefixes: Vec<_> = words.prefixes.iter().copied().filter(|prefix| *prefix != "default").collect();
        if dice.chance(12) {
            rule += " not";
        }
        match dice.roll(8) {
            0 => rule += " from all",
            1 => rule += &format!(" from {}", dice.pick(&prefixes)),
            2 | 3 => rule += &format!(" to {}", host(dice.pick(words.addresses))),
            4 => rule += &format!(" to {}", dice.pick(&prefixes)),
            _ => rule += &format!(" from {}", host(dice.pick(words.sources))),
        }
        match dice.roll(24) {
            0 => rule += " fwmark 0x80/0x80",
            1 => rule += " fwmark 0/0x80",
            2 | 3 => rule += &format!(" iif {}", dice.pick(&["pod0", "pod1", "eth0", "lo", "gone0"])),
            4 => rule += " oif eth1",
            5 => rule += " tos 0x10",
            6 => rule += &format!(" uidrange {}", dice.pick(&["0-0", "0-1000", "5-9"])),
            7 => rule += &format!(" ipproto {}", dice.pick(&["tcp", "udp"])),
            8 => rule += dice.pick(&[" dport 53", " sport 1000-2000", " ipproto udp dport 53"]),
            _ => {}
        }
        rule += match dice.roll(16) {
            0 => " goto 32766",
            1 => " goto 1537",
            2 => " nop",
            3 => dice.pick(&[" blackhole", " unreachable", " prohibit"]),
            4 => " lookup 2 suppress_prefixlength 0",
            5 => " lookup 2 suppress_prefixlength 24",
            6 => " lookup 2 suppress_ifgroup 7",
            7 | 8 => " lookup main",
            9 => " lookup 3",
            10 => " lookup 70000",
            11 => " lookup 1",
            _ => " lookup 2",
        };
        add("rule", rule);
    }
    lines
}

/// What takes a policy away.
fn flushed(words: &Words) -> Vec<String> {
    let routes = ["1", "2", "3", "70000", "main proto boot", "local proto boot"];
    let mut lines: Vec<_> = [1, 2, 3, 11, 12, 13].map(|id| format!("nexthop del id {id}")).into();
    lines.extend(routes.map(|table| format!("route flush table {table}")));
    lines.extend(["rule flush", "rule add priority 32766 lookup 254"].map(str::to_owned));
    if words.ip == "-4" {
        lines.push("rule add priority 32767 lookup 253".into());
    }
    lines
}

/// `ip -batch`, which goes on after a failure: the output, and which lines failed with what.
pub fn batch(net: &Netns, family: &str, lines: &[String]) -> (Vec<Value>, BTreeMap<usize, String>) {
    let run = || {
        let mut ip = Command::new("ip");
        ip.args([family, "-N", "-j", "-force", "-batch", "-"]).stdin(Stdio::piped());
        let mut ip = ip.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        ip.stdin.take().unwrap().write_all((lines.join("\n") + "\n").as_bytes()).unwrap();
        ip.wait_with_output().unwrap()
    };
    let output = net.enter(run);
    let stderr = String::from_utf8(output.stderr).unwrap();
    let mut failed = BTreeMap::new();
    let mut said = String::new();
    for line in stderr.lines() {
        match line.strip_prefix("Command failed -:") {
            Some(number) => drop(failed.insert(number.parse::<usize>().unwrap() - 1, std::mem::take(&mut said))),
            None => said += line,
        }
    }
    // A failed query leaves a lone bracket or nothing.
    let stdout = String::from_utf8(output.stdout).unwrap();
    let answers = stdout.lines().filter_map(|line| serde_json::from_str::<Value>(line.trim()).ok());
    (answers.filter(|answer| answer.as_array().is_some_and(|array| !array.is_empty())).collect(), failed)
}

/// What `ip route get` answers to each packet: the table, the interface and the gateway, or a refusal.
fn asked(net: &Netns, family: &str, legs: &[&Value]) -> Vec<Result<[String; 3], String>> {
    let query = |leg: &&Value| {
        let iif = leg["iif"].as_str().map_or_else(String::new, |iif| format!(" iif {iif}"));
        let [from, to] = ["from", "to"].map(|key| leg[key].as_str().unwrap());
        format!("route get {to} from {from}{iif} ipproto udp uid 0")
    };
    let (answers, failed) = batch(net, family, &legs.iter().map(query).collect::<Vec<_>>());
    assert_eq!(answers.len() + failed.len(), legs.len(), "{answers:?} {failed:?}");
    let mut answers = answers.into_iter();
    let answer = |number: usize| {
        if let Some(said) = failed.get(&number) {
            return Err(said.clone());
        }
        let route = answers.next().unwrap()[0].clone();
        let word = |key: &str| match &route[key] {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        if matches!(word("type").as_str(), "blackhole" | "unreachable" | "prohibit" | "6" | "7" | "8") {
            return Err(route.to_string());
        }
        let table = match word("table").as_str() {
            "" => "254".into(),
            table => table.to_owned(),
        };
        Ok([table, if route["type"].is_null() { word("dev") } else { "local".into() }, word("gateway")])
    };
    (0..legs.len()).map(answer).collect()
}

/// Whether a leg of `explain` is what `ip route get` answered.
fn agrees(leg: &Value, answer: &Result<[String; 3], String>, family: &str) -> bool {
    let dropped = leg["rp_filter"]["passes"] == false || family == "-4" && leg["forwarded"] == false;
    match (leg["result"].as_str().unwrap(), answer) {
        ("refused" | "no_route", Err(_)) => true,
        ("unicast" | "local", Err(_)) => dropped,
        ("unicast", Ok([table_of, dev, gateway])) => {
            let hop = |hop: &Value| {
                hop["dev"] == dev.as_str() && hop["via"].as_str().unwrap_or_default() == gateway && hop["dead"] == false
            };
            let route = |route: &Value| {
                // Of IPv6 routes that share a nexthop object the kernel shows the one that used it first.
                let shared = family == "-6" && !route["nexthop"].is_null();
                let table = route["table"].as_u64().unwrap().to_string();
                (shared || table == *table_of) && route["hops"].as_array().unwrap().iter().any(hop)
            };
            !dropped && leg["routes"].as_array().unwrap().iter().any(route)
        }
        ("local", Ok([_, dev, _])) => !dropped && dev == "local",
        _ => false,
    }
}

#[test]
fn it_agrees_with_ip_route_get_on_1000_generated_policies() {
    let net = node();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut count = |what: &str| *seen.entry(what.to_owned()).or_default() += 1;
    for seed in 0..1000 {
        let dice = &mut Dice(seed);
        let words = if seed % 3 == 2 { &V6 } else { &V4 };
        if dice.chance(4) {
            for link in LINKS.iter().chain(&["all"]) {
                net.set_sysctl(&format!("net/ipv4/conf/{link}/rp_filter"), dice.pick(&["0", "0", "1", "2"]));
            }
            let ignored = dice.pick(&["0", "1"]);
            net.set_sysctl("net/ipv4/conf/eth2/ignore_routes_with_linkdown", ignored);
            net.set_sysctl("net/ipv6/conf/eth2/ignore_routes_with_linkdown", ignored);
            net.set_sysctl("net/ipv4/conf/pod2/forwarding", dice.pick(&["0", "1", "1"]));
            net.set_sysctl("net/ipv4/conf/eth1/accept_local", dice.pick(&["0", "0", "1"]));
        }
        for (family, nexthops) in ["-4", "-6", "-N"].into_iter().zip(NEXTHOPS.chunks(3)) {
            let (_, failed) = batch(&net, family, &nexthops.iter().map(|line| line.to_string()).collect::<Vec<_>>());
            assert!(failed.is_empty(), "seed {seed}: {failed:?}");
        }
        let add = policy(dice, words);
        let (_, failed) = batch(&net, words.ip, &add);
        assert!(failed.len() < add.len() / 2, "seed {seed}: {failed:?}");
        for _ in 0..2 {
            let source = dice.pick(words.sources);
            let destination = dice.pick(words.addresses);
            let mut command = node_fixer();
            command.args(["explain", "--output", "json", source, destination]);
            let ran = finish(net.output(&mut command));
            let reported = ran.json();
            let story = || {
                let state = [format!("{} rule", words.ip), format!("{} route show table all", words.ip)];
                let state = state.map(|what| net.ip(&what)).join("\n");
                format!("seed {seed}, {source} to {destination}: {:#}\n{state}", reported)
            };
            let mut legs = vec![&reported["request"]];
            legs.extend(reported["replies"].as_array().unwrap());
            for (leg, answer) in legs.iter().zip(asked(&net, words.ip, &legs)) {
                assert!(agrees(leg, &answer, words.ip), "ip says {answer:?} to {leg:#}\n{}", story());
                assert_eq!(leg["kernel"]["agrees"], true, "{}", story());
                count(leg["result"].as_str().unwrap());
                count(if leg["iif"].is_null() { "local output" } else { "forwarded" });
                if leg["rp_filter"]["passes"] == false {
                    count("dropped");
                }
                for rule in leg["rules"].as_array().unwrap() {
                    count(rule["result"].as_str().unwrap());
                }
            }
            assert_eq!(ran.code, i32::from(reported["works"] == false), "{}", story());
            count(if ran.code == 0 { "works" } else { "breaks" });
        }
        batch(&net, words.ip, &flushed(words));
    }
    for what in [
        "unicast",
        "local",
        "refused",
        "no_route",
        "local output",
        "forwarded",
        "dropped",
        "passed",
        "fell_through",
        "jumped",
        "taken",
        "works",
        "breaks",
    ] {
        assert!(seen.get(what).is_some_and(|times| *times >= 20), "hardly any {what:?}: {seen:?}");
    }
}

/// What it says of a pair of addresses; each part has to be there.
fn says(node: &Worker, [source, destination]: [&str; 2], code: i32, parts: &[&str]) {
    let ran = node.fix(&["explain", source, destination]).expect(code);
    assert_eq!(ran.err, "", "{ran:?}");
    for part in parts {
        assert!(ran.out.contains(part), "{part:?} is not in:\n{}", ran.out);
    }
    assert!(!ran.out.contains("DISAGREES") && !ran.out.contains("unknown"), "{}", ran.out);
    assert!(ran.out.lines().count() <= 24, "more than a screen:\n{}", ran.out);
}

#[test]
fn a_healthy_node_works_in_every_direction() {
    let node = Worker::new().with_pod(100).with_pod(101).with_carrier();
    let before = node.net.state();
    for (pair, parts) in [
        (
            ["10.0.1.100", "192.0.2.1"],
            &[
                "works: the packet takes default via 10.0.1.1 dev eth1 table 2",
                "  1536  from 10.0.1.100 lookup 2                   TAKEN",
                "assumed to come in by eth1 (its table 2",
            ][..],
        ),
        (["10.0.1.10", "192.0.2.1"], &[" 32765  from 10.0.1.10 lookup 2                    TAKEN"]),
        (["10.0.0.10", "192.0.2.1"], &["works: the packet takes default via 10.0.0.1 dev eth0 table main"]),
        (["10.0.1.100", "10.0.1.101"], &["takes 10.0.1.101 dev eni00000000065 table main"]),
        (["10.0.1.100", "10.0.0.10"], &["10.0.0.10 is this node itself", "sent by this node itself"]),
        (["192.0.2.1", "10.0.1.100"], &["neither a pod's address", "assumed: it comes in by eth1"]),
        (["fd00::10", "2001:db8::1"], &["default via fd00::1 dev eth0 table main metric 1024"]),
        (["fd00:1::10", "2001:db8::1"], &["note: the packet leaves by eth0, but fd00:1::10 is in a subnet of eth1"]),
    ] {
        says(&node, pair, 0, parts);
    }
    assert_eq!(node.net.state(), before);
    assert!(!node.directory.path().join("state").exists(), "it leaves files behind");
}

#[test]
fn each_way_to_break_has_its_explanation() {
    const OUT: [&str; 2] = ["10.0.1.100", "192.0.2.1"];
    let node = Worker::new().with_pod(100).with_pod(101).without_default(2).with_carrier();
    let falls = "breaks: rule 1536 (from 10.0.1.100 lookup 2) falls through: no route to 192.0.2.1 in table 2; so the \
                 packet leaves by eth0, but 10.0.1.100 belongs to eth1 (its table 2 uses it)";
    let strict = "breaks: eth1 drops the packet from 192.0.2.1 to 10.0.1.100 as a martian (rp_filter 1, strict)";
    says(&node, OUT, 1, &[falls, strict, "rp_filter: DROPPED at eth1", "kernel:    drops it, too"]);

    node.net.set_sysctl("net/ipv4/conf/eth1/rp_filter", "2");
    says(&node, OUT, 1, &[falls, "rp_filter: passes at eth1: max(all 0, eth1 2) = 2, loose"]);
    // Loose asks for less than strict, but `all` may ask for more than the interface does.
    node.net.set_sysctl("net/ipv4/conf/eth1/rp_filter", "0");
    node.net.set_sysctl("net/ipv4/conf/all/rp_filter", "1");
    says(&node, OUT, 1, &[falls, strict, "max(all 1, eth1 0) = 1, strict"]);
    node.net.set_sysctl("net/ipv4/conf/all/rp_filter", "0");

    node.net.ip("route flush table 2");
    let flushed = "falls through: table 2 is empty; so the packet leaves by eth0, but 10.0.1.100 belongs to eth1 (the \
                   source address of another rule for its table 2 is there)";
    says(&node, OUT, 1, &[flushed]);
    let node = node.with_policy_table("10.0.1.1", "eth1", 2);
    says(&node, OUT, 0, &[]);

    node.net.ip("rule del from 10.0.1.100 lookup 2");
    says(&node, OUT, 1, &["leaves by eth0, but 10.0.1.100 belongs to eth1 (it is in a subnet there)"]);
    let node = node.with_rule("1536", "10.0.1.100", 2);

    let pods = ["10.0.1.100", "10.0.1.101"];
    node.net.ip("rule del to 10.0.1.101 lookup main");
    let no_address = "and eni00000000065 has no address: then loose drops the same packets as strict";
    says(&node, pods, 1, &["but the packet leaves by eth1: no earlier rule uses that route", no_address]);
    node.net.ip("rule add priority 512 to 10.0.1.101 lookup main");
    says(&node, pods, 0, &[]);

    node.net.set_sysctl("net/ipv4/conf/eni00000000064/forwarding", "0");
    says(&node, OUT, 1, &["not forwarded: net.ipv4.conf.eni00000000064.forwarding is 0"]);
    node.net.set_sysctl("net/ipv4/conf/eni00000000064/forwarding", "1");

    node.net.ip("route add blackhole 192.0.2.0/24 table 2");
    says(&node, OUT, 1, &["is dropped by the route blackhole 192.0.2.0/24 table 2"]);
    node.net.ip("route del blackhole 192.0.2.0/24 table 2");

    node.net.ip("route del 10.0.1.100 dev eni00000000064");
    says(&node, OUT, 1, &["there are rules for 10.0.1.100 alone, as for a pod, but no host route to it"]);
}

/// A pod with security groups of its own, as the CNI's strict mode has it: a branch interface is its only uplink.
fn with_branch_pod(node: Worker, address: &str, gateway: &str) -> Worker {
    for step in [
        "link add vlan.eth.1 type veth peer name trunk",
        "link set vlan.eth.1 up",
        "link set trunk up",
        "link add vlan0123456789a type veth peer name pod",
        "link set vlan0123456789a up",
        "link set pod up",
        "rule add priority 20 lookup local",
        "rule del priority 0",
        "rule add priority 10 iif vlan0123456789a lookup 101",
        "rule add priority 10 iif vlan.eth.1 lookup 101",
        &format!("route add {gateway} dev vlan.eth.1 scope link table 101"),
        &format!("route add default via {gateway} dev vlan.eth.1 table 101"),
        &format!("route add {address} dev vlan0123456789a scope link table 101"),
    ] {
        node.net.ip(step);
    }
    for link in ["vlan.eth.1", "vlan0123456789a"] {
        node.net.set_sysctl(&format!("net/ipv4/conf/{link}/rp_filter"), "2");
    }
    node.with_carrier()
}

#[test]
fn a_pod_with_security_groups_of_its_own_has_an_uplink_of_its_own() {
    for (address, gateway) in [("10.0.1.150", "10.0.1.1"), ("10.0.0.150", "10.0.0.1")] {
        let node = with_branch_pod(Worker::new().with_pod(100), address, gateway);
        let by_branch = "assumed to come in by vlan.eth.1 (its table 101 uses it)";
        for (pair, part) in [
            ([address, "192.0.2.1"], by_branch),
            // By that mode's design what it sends to others, and others to it, goes through the network beyond.
            ([address, "10.0.1.100"], by_branch),
            (["10.0.1.100", address], "assumed to come in by eth1 (its table 2 uses it)"),
            (["192.0.2.1", address], "it comes in by vlan.eth.1, where"),
        ] {
            says(&node, pair, 0, &[part]);
            let reported = node.fix(&["explain", pair[0], pair[1]]).out;
            assert!(!reported.contains("note: "), "{reported}");
        }
        node.net.ip("route del default table 101");
        let falls = "breaks: rule 10 (from all iif vlan0123456789a lookup 101) falls through: no route to 192.0.2.1 in \
                     table 101; so the packet leaves by eth0, but";
        says(&node, [address, "192.0.2.1"], 1, &[falls, "belongs to vlan.eth.1 (its table 101 uses it)"]);
    }
}

#[test]
fn what_comes_from_outside_comes_in_where_its_destination_belongs() {
    let node = Worker::new().with_pod(100).without_default(2).with_carrier();
    for to in ["10.0.1.100", "10.0.1.10"] {
        let belongs = format!("it comes in by eth1, where {to} belongs (its table 2 uses it)");
        let is = if to == "10.0.1.10" { "is an address of" } else { "belongs to" };
        let leaves = format!("so the packet leaves by eth0, but {to} {is} eth1");
        let strict = format!("breaks: eth1 drops the packet from 192.0.2.9 to {to} as a martian (rp_filter 1, strict)");
        says(&node, ["192.0.2.9", to], 1, &[&belongs, &leaves, &strict]);
    }
    // A plain server answers by whichever interface it likes.
    let note = "note: the packet leaves by eth1, but 10.0.0.10 is in a subnet of eth0";
    says(&node, ["10.0.1.77", "10.0.0.10"], 0, &["assumed: it comes in by eth1, where the route to it leads", note]);
    // Which is nobody's business where both ends are beyond the node.
    let transit = node.fix(&["explain", "10.0.1.77", "192.0.2.9"]).out;
    assert!(transit.contains("assumed: it comes in by eth1, where the route to it leads"), "{transit}");
}

#[test]
fn each_of_several_ways_out_has_to_be_right() {
    let node = Worker::new().with_pod(100).with_carrier();
    let hops = "nexthop via 10.0.1.1 dev eth1 nexthop via 10.0.0.1 dev eth0";
    node.net.ip(&format!("route replace default table 2 {hops}"));
    let part = "breaks: the packet may leave by eth0, but 10.0.1.100 belongs to eth1";
    let why = "(the source address of another rule for its table 2 is there)";
    says(&node, ["10.0.1.100", "192.0.2.1"], 1, &[part, why]);
    says(&node, ["192.0.2.1", "10.0.1.100"], 1, &[part, "it comes in by eth1, where 10.0.1.100 belongs"]);
    node.net.ip("rule del from 10.0.1.10 lookup 2");
    says(&node, ["10.0.1.100", "192.0.2.1"], 1, &[part, "(it is in a subnet there)"]);
    // Of a plain server it is for a person to say.
    node.net.ip(&format!("route replace default {hops}"));
    let note = "note: the packet may leave by eth1, but 10.0.0.10 is in a subnet of eth0";
    says(&node, ["10.0.0.10", "192.0.2.1"], 0, &[note]);
}

#[test]
fn where_there_is_no_carrier_nothing_gets_out() {
    let node = Worker::new().with_pod(100).with_pod(101).with_carrier();
    let linkdown = |dev: &str| {
        crate::kit::until("a route without carrier", || {
            node.net
                .ip("route show table all")
                .lines()
                .any(|line| line.contains(&format!("dev {dev} ")) && line.contains("linkdown"))
        });
    };
    node.router.ip("link set r1 down");
    linkdown("eth1");
    let out = "breaks: eth1 has no carrier: the packet from 10.0.1.100 to 192.0.2.1 cannot leave by this interface";
    says(&node, ["10.0.1.100", "192.0.2.1"], 1, &[out]);
    says(&node, ["192.0.2.1", "10.0.1.100"], 1, &["breaks: eth1 has no carrier: the packet from 10.0.1.100"]);
    node.pod(1).ip("link set eth0 down");
    linkdown("eni00000000065");
    let to_pod = "breaks: eni00000000065 has no carrier: the packet from 10.0.1.100 to 10.0.1.101";
    says(&node, ["10.0.1.100", "10.0.1.101"], 1, &[to_pod]);
    says(
        &node,
        ["10.0.1.101", "10.0.1.100"],
        1,
        &["breaks: eni00000000065 has no carrier: the packet from 10.0.1.100"],
    );
}

#[test]
fn ipv6_has_rules_and_no_rp_filter() {
    let node =
        Worker::new().with_policy_table("fd00:1::1", "eth1", 2).with_rule("1536", "fd00:1::10", 2).with_carrier();
    says(&node, ["fd00:1::10", "2001:db8::1"], 0, &["default via fd00:1::1 dev eth1 table 2 metric 1024"]);
    node.net.ip("-6 route del default table 2");
    let falls = "breaks: rule 1536 (from fd00:1::10 lookup 2) falls through: no route to 2001:db8::1 in table 2";
    says(&node, ["fd00:1::10", "2001:db8::1"], 1, &[falls]);
    assert!(!node.fix(&["explain", "fd00:1::10", "2001:db8::1"]).out.contains("rp_filter:"));
}

#[test]
fn a_subnet_alone_proves_nothing() {
    // All uplinks of one subnet, as the CNI has them: pod 100 is of the second, pod 72 of the first.
    let node = Worker::new().with_pod(72).with_pod(100).with_carrier();
    for step in [
        "addr flush dev eth0 scope global",
        "addr add 10.0.1.9/24 dev eth0",
        "route replace default via 10.0.1.1 dev eth0",
        "rule del from 10.0.1.72 lookup 2",
    ] {
        node.net.ip(step);
    }
    let server = "192.0.2.1";
    let note = "note: 10.0.1.72 is also in a subnet of eth1, and no rule shows where it belongs; assumed: eth0";
    says(&node, ["10.0.1.72", server], 0, &[note, "assumed to come in by eth0 (it is in a subnet there)"]);
    says(&node, ["10.0.1.9", server], 0, &["assumed to come in by eth0"]);
    says(&node, ["10.0.1.10", server], 0, &["assumed to come in by eth1 (its table 2 uses it)"]);
    says(&node, ["10.0.1.100", server], 0, &["assumed to come in by eth1 (its table 2 uses it)"]);
    node.net.ip("rule del from 10.0.1.100 lookup 2");
    says(&node, ["10.0.1.100", server], 0, &["note: 10.0.1.100 is also in a subnet of eth1", "its rule is gone"]);
    node.net.ip("rule del from 10.0.1.10 lookup 2");
    let elsewhere = "note: the packet leaves by eth0, but 10.0.1.10 is in a subnet of eth1";
    says(&node, ["10.0.1.10", server], 0, &[elsewhere]);

    // A server with a leg in each of two networks.
    let server = Worker::new().with_carrier();
    server.net.ip("rule del from 10.0.1.10 lookup 2");
    let note = "note: the packet leaves by eth1, but 10.0.0.10 is in a subnet of eth0";
    says(&server, ["10.0.0.10", "10.0.1.77"], 0, &[note]);
}

#[test]
fn force_forwarding_forwards_ipv6() {
    let node = Worker::new().with_carrier();
    node.net.set_sysctl("net/ipv6/conf/all/forwarding", "0");
    node.net.ip("-6 route add fd05::7 dev eth1");
    let pair = ["fd05::7", "fd00::9"];
    let off = "is not forwarded: net.ipv6.conf.all.forwarding is 0";
    says(&node, pair, 1, &[&format!("from fd05::7 to fd00::9 {off}"), &format!("from fd00::9 to fd05::7 {off}")]);
    // Before Linux 6.17 there is no such key, and what was just said is all that there is to say.
    if !std::path::Path::new("/proc/sys/net/ipv6/conf/all/force_forwarding").exists() {
        return;
    }
    node.net.set_sysctl("net/ipv6/conf/eth1/force_forwarding", "1");
    says(&node, pair, 1, &[&format!("from fd00::9 to fd05::7 {off}")]);
    node.net.set_sysctl("net/ipv6/conf/eth0/force_forwarding", "1");
    says(&node, pair, 0, &[]);
}

#[test]
fn a_hundred_pods_fit_one_screen() {
    let node = Worker::new().with_pod(100).with_carrier();
    let rules = |n: usize| {
        let (high, low) = (n / 200, n % 200);
        [
            format!("rule add priority 512 to 10.7.{high}.{low} lookup main"),
            format!("rule add priority 1536 from 10.7.{high}.{low} lookup 2"),
        ]
    };
    let (_, failed) = batch(&node.net, "-4", &(0..400).flat_map(rules).collect::<Vec<_>>());
    assert!(failed.is_empty(), "{failed:?}");
    says(&node, ["10.0.1.10", "192.0.2.1"], 0, &["passed, like 400 more of this priority"]);
    let all = node.fix(&["explain", "--output", "json", "10.0.1.10", "192.0.2.1"]).json();
    assert_eq!(all["request"]["rules"].as_array().unwrap().len(), 804, "rule 0, 802 passed, 1 taken");
}

#[test]
fn what_it_cannot_answer_is_usage() {
    let node = Worker::new().with_carrier();
    for pair in [
        ["10.0.1.10", "2001:db8::1"],
        ["10.0.1.10", "224.0.0.1"],
        ["fe80::1", "2001:db8::1"],
        ["x", "y"],
        ["0.0.0.0", "192.0.2.1"],
        ["10.0.1.10", "255.255.255.255"],
        ["10.0.1.10", "10.0.1.255"],
        ["10.0.0.255", "192.0.2.1"],
    ] {
        node.fix(&["explain", pair[0], pair[1]]).expect(64);
    }
    node.fix(&["explain", "10.0.1.10"]).expect(64);
    // Nobody but the node itself can mean its loopback addresses.
    for pair in [["10.0.9.9", "127.0.0.1"], ["127.0.0.1", "192.0.2.1"], ["::1", "2001:db8::1"], ["2001:db8::1", "::1"]]
    {
        let ran = node.fix(&["explain", pair[0], pair[1]]).expect(64);
        assert!(ran.err.contains("never leaves the host") && ran.out.is_empty(), "{ran:?}");
    }
    for pair in
        [["127.0.0.1", "127.0.0.1"], ["127.0.0.1", "10.0.1.10"], ["10.0.1.10", "127.0.0.1"], ["::1", "fd00:1::10"]]
    {
        says(&node, pair, 0, &["is this node itself", "kernel:    agrees"]);
    }
    let nowhere = node.fix(&["explain", "10.0.1.10", "192.0.2.1"]).expect(0);
    node.net.ip("route del default");
    node.net.ip("route del default table 2");
    let ran = node.fix(&["explain", "192.0.2.9", "192.0.2.1"]).expect(1);
    assert!(ran.out.contains("no route leads to it"), "{nowhere:?} {ran:?}");
}
