//! Declared rules with every key, compared with what `ip rule add` makes of the same words.

use serde_json::Value;

use crate::kit::{Netns, Worker};

/// A declaration, and what an operator would type for it.
const RULES: [(&str, &str, &str); 24] = [
    ("not: true, fwmark: 0xca6c, table: 51820", "-4", "not fwmark 0xca6c table 51820"),
    ("not: true, from: 10.0.0.0/8, table: 7", "-4", "not from 10.0.0.0/8 table 7"),
    ("tos: 0x10, table: 7", "-4", "tos 0x10 table 7"),
    ("family: ipv6, tos: 0xb8, table: 7", "-6", "tos 0xb8 table 7"),
    ("ipproto: tcp, table: 7", "-4", "ipproto tcp table 7"),
    ("ipproto: ipv6-icmp, from: 'fe80::/64', table: local", "-6", "from fe80::/64 ipproto ipv6-icmp table local"),
    ("ipproto: 99, table: 7", "-4", "ipproto 99 table 7"),
    ("ipproto: udp, dport: 53, table: 7", "-4", "ipproto udp dport 53 table 7"),
    ("dport: 1-65534, table: 7", "-4", "dport 1-65534 table 7"),
    ("ipproto: tcp, sport: 1000-1999, dport: 80-89, table: 7", "-4", "ipproto tcp sport 1000-1999 dport 80-89 table 7"),
    ("family: ipv6, sport: 22, table: 7", "-6", "sport 22 table 7"),
    ("uidrange: 1000, table: 7", "-4", "uidrange 1000-1000 table 7"),
    ("uidrange: 0-4294967294, table: 7", "-4", "uidrange 0-4294967294 table 7"),
    ("l3mdev: true", "-4", "l3mdev"),
    ("l3mdev: true, family: ipv6", "-6", "l3mdev"),
    ("suppress_prefixlength: 0, table: main", "-4", "table main suppress_prefixlength 0"),
    ("suppress_prefixlength: 64, family: ipv6, table: main", "-6", "table main suppress_prefixlength 64"),
    ("suppress_ifgroup: 5, table: main", "-4", "table main suppress_ifgroup 5"),
    ("goto: 2000", "-4", "goto 2000"),
    ("to: 'fd00::/8', goto: 2000", "-6", "to fd00::/8 goto 2000"),
    ("from: 10.0.0.1, action: blackhole", "-4", "from 10.0.0.1 blackhole"),
    ("to: 10.0.0.1, action: unreachable", "-4", "to 10.0.0.1 unreachable"),
    ("family: ipv6, iif: eth1, action: prohibit", "-6", "iif eth1 prohibit"),
    (
        "not: true, from: 10.0.0.0/8, to: 10.1.0.0/16, fwmark: 1/3, iif: a.1, oif: b, tos: 4, ipproto: tcp, sport: 5, \
         dport: 6, uidrange: 7-8, suppress_prefixlength: 9, suppress_ifgroup: 10, table: 100000",
        "-4",
        "not from 10.0.0.0/8 to 10.1.0.0/16 fwmark 1/3 iif a.1 oif b tos 4 ipproto tcp sport 5 dport 6 uidrange 7-8 \
         table 100000 suppress_prefixlength 9 suppress_ifgroup 10",
    ),
];

/// All of them, the first at priority 1000.
fn declared() -> String {
    let entries = RULES.iter().enumerate().map(|(i, (yaml, ..))| format!("\n  - {{priority: {}, {yaml}}}", 1000 + i));
    format!("rules:{}\n", entries.collect::<String>())
}

fn shown(net: &Netns, family: &str) -> Vec<Value> {
    let rules = net.ip_json(&format!("-d -N {family} rule"));
    rules.as_array().unwrap().iter().filter(|rule| rule["protocol"] == "171").cloned().collect()
}

#[test]
fn every_key_makes_what_ip_makes_of_it() {
    let (node, reference) = (Worker::bare(), Netns::new());
    let before = node.net.state();
    node.config(&declared());
    for (i, (_, family, words)) in RULES.iter().enumerate() {
        reference.ip(&format!("{family} rule add priority {} {words} protocol 171", 1000 + i));
    }
    let ran = node.fix(&["--output", "json"]).expect(0);
    for family in ["-4", "-6"] {
        let (made, typed) = (shown(&node.net, family), shown(&reference, family));
        assert_eq!(made.len(), typed.len());
        for (made, typed) in made.iter().zip(&typed) {
            assert_eq!(made, typed, "{ran:?}");
        }
    }
    let made = node.net.state();
    assert_eq!(node.fix(&[]).expect(0).out, "", "a second run finds nothing to do");
    for (i, (_, family, _)) in RULES.iter().enumerate().step_by(2) {
        node.net.ip(&format!("{family} rule del priority {}", 1000 + i));
    }
    node.fix(&[]).expect(0);
    assert_eq!(node.net.state(), made, "what was removed comes back");
    node.config("");
    node.fix(&[]).expect(0);
    assert_eq!(node.net.state(), before, "what is no longer declared is gone, and nothing else");
}

#[test]
fn the_script_makes_and_removes_the_same() {
    Worker::bare().is_equalled_by_scripts(&Worker::bare(), &declared());
}

#[test]
fn the_same_of_others_is_used_and_never_deleted() {
    let node = Worker::bare();
    for (i, (_, family, words)) in RULES.iter().enumerate() {
        node.net.ip(&format!("{family} rule add priority {} {words}", 1000 + i));
    }
    let before = node.net.state();
    node.config(&declared());
    assert_eq!(node.fix(&[]).expect(0).out, "");
    node.config("");
    assert_eq!(node.fix(&[]).expect(0).out, "");
    assert_eq!(node.net.state(), before);
}

/// The kernel deletes the first rule that has all that is asked for: those of others are not taken for ours, nor one of
/// ours for another.
#[test]
fn only_what_is_no_longer_declared_goes() {
    let node = Worker::bare();
    let rules = [
        "{priority: 9, dport: 53, table: 7}",
        "{priority: 9, ipproto: udp, dport: 53, table: 7}",
        "{priority: 9, table: 7}",
        "{priority: 9, action: prohibit}",
        "{priority: 9, from: 10.0.0.1, goto: 100}",
        "{priority: 9, goto: 100}",
    ];
    node.net.ip("rule add priority 9 table 7 ipproto udp");
    node.net.ip("rule add priority 9 goto 100 fwmark 7");
    node.net.ip("rule add priority 9 prohibit iif lo");
    let others = node.net.state();
    for gone in 0..rules.len() {
        node.config(&format!("rules: [{}]", rules.join(", ")));
        node.fix(&[]).expect(0);
        let rest: Vec<_> = rules.iter().enumerate().filter(|(i, _)| *i != gone).map(|(_, rule)| *rule).collect();
        node.config(&format!("rules: [{}]", rest.join(", ")));
        node.fix(&[]).expect(0);
        assert_eq!(shown(&node.net, "-4").len(), rules.len() - 1, "without {}", rules[gone]);
        assert_eq!(node.fix(&[]).expect(0).out, "");
    }
    node.config("");
    node.fix(&[]).expect(0);
    assert_eq!(node.net.state(), others);
}

#[test]
fn what_the_kernel_considers_equal_is_changed_in_place() {
    for (old, new, key) in [
        ("not: true, from: 10.0.0.0/8, table: 7", "from: 10.0.0.0/8, table: 7", "not"),
        ("goto: 100", "goto: 200", "goto"),
    ] {
        let node = Worker::bare();
        let run = |entry: &str| {
            node.config(&format!("rules: [{{priority: 9, {entry}}}]"));
            node.fix(&["--output", "json"]).expect(0)
        };
        run(old);
        let before = shown(&node.net, "-4");
        let ran = run(new);
        let after = shown(&node.net, "-4");
        assert_eq!((before.len(), after.len()), (1, 1), "{ran:?}");
        assert_ne!(before[0].get(key), after[0].get(key), "{ran:?}");
        assert_eq!(ran.json()["changes"][0]["action"], "update", "{ran:?}");
    }
}

#[test]
fn rules_from_an_address_of_the_vpc_cni_are_blocked() {
    let cni = || Worker::new().with_pod(100).with_loose_rp_filter();
    let rule = |from: &str| format!("kube_proxy: {{mode: off}}\nrules: [{{priority: 700, from: {from}, table: 2}}]");
    let of_pod = "10.0.1.100 is a pod's address, and when the VPC CNI restarts";
    for (node, from, because) in [
        (cni(), "10.0.1.100", of_pod),
        (cni(), "10.0.1.10", "10.0.1.10 is eth1's address, and when the VPC CNI restarts"),
        (cni(), "10.0.1.0/24", ""),
        // No address of this node.
        (cni(), "10.9.9.9", ""),
        (Worker::new().with_loose_rp_filter(), "10.0.1.10", ""),
    ] {
        node.config(&rule(from));
        let ran = node.fix(&[]).expect(i32::from(!because.is_empty()));
        assert!(ran.out.contains(because) || ran.err.contains(because), "{from}: {ran:?}");
        assert_eq!(shown(&node.net, "-4").len(), usize::from(because.is_empty()), "{from}");
    }
    // One that was there before its address was a pod's stays; the CNI's own counts as declared.
    let node = Worker::new().with_loose_rp_filter();
    node.config(&rule("10.0.1.100"));
    node.fix(&[]).expect(0);
    let node = node.with_pod(100);
    node.fix(&[]).expect(0);
    assert_eq!(shown(&node.net, "-4").len(), 1);
    node.config("kube_proxy: {mode: off}\nrules: [{priority: 1536, from: 10.0.1.100, table: 2}]");
    node.fix(&[]).expect(0);
    assert_eq!(shown(&node.net, "-4").len(), 0);
}

#[test]
fn nothing_is_built_on_a_rule_that_is_blocked() {
    let node = Worker::new().with_pod(100).with_loose_rp_filter();
    node.config("kube_proxy: {mode: off}\nrules: [{priority: 700, from: 10.0.1.10, table: 77}]");
    let ran = node.fix(&["--output", "json"]).expect(1);
    assert_eq!((ran.commands(), ran.json()["blocked"].as_array().unwrap().len()), (Vec::<String>::new(), 1), "{ran:?}");
    let routes = node.net.ip_json("route show table all");
    assert!(!routes.to_string().contains("77"), "{routes}");
}
