//! Declared rules and routes.

use serde_json::Value;

use crate::kit::Worker;

const SECTIONS: &str = "
rules:
  - {priority: 1000, from: 10.0.1.10, table: 1001}
  - {priority: 1001, to: 10.9.0.0/16, fwmark: 0x80/0xff, iif: eth1, table: main}
  - {priority: 1000, from: 'fd00:1::10', table: 100001}
routes:
  - {to: 10.0.1.0/24, dev: eth1, table: 1001}
  - {to: default, via: 10.0.1.1, dev: eth1, table: 1001}
  - {to: 10.9.0.0/16, via: 10.0.0.1, metric: 50}
  - {to: default, via: 'fd00:1::1', table: 100001}
  - {to: 198.51.100.0/24, via: 203.0.113.1, dev: eth1, onlink: true}
";

fn mine(routes: Value) -> usize {
    routes.as_array().unwrap().iter().filter(|route| route["protocol"] == "171").count()
}

#[test]
fn they_are_made_kept_and_go_with_their_declaration() {
    let node = Worker::new().with_loose_rp_filter();
    let before = node.net.state();
    node.config(SECTIONS);
    assert_eq!(node.fix(&["--output", "json"]).expect(0).commands().len(), 8);
    assert_eq!(mine(node.net.ip_json("-d -4 rule")), 2);
    assert_eq!(mine(node.net.ip_json("-d -6 rule")), 1);
    assert_eq!(mine(node.net.ip_json("-d -N -4 route show table all")), 4);
    assert_eq!(mine(node.net.ip_json("-d -N -6 route show table all")), 1);
    let rule = node.net.ip("rule show priority 1001");
    assert!(rule.contains("from all to 10.9.0.0/16 fwmark 0x80/0xff iif eth1 lookup main"), "{rule}");

    let made = node.net.state();
    assert_eq!(node.fix(&[]).expect(0).out, "", "a second run finds nothing to do");
    node.net.ip("rule del priority 1001");
    node.net.ip("route del 10.9.0.0/16");
    node.fix(&[]).expect(0);
    assert_eq!(node.net.state(), made, "what was removed comes back");

    node.config("");
    assert_eq!(node.fix(&["--output", "json"]).expect(0).commands().len(), 8);
    assert_eq!(node.net.state(), before, "what is no longer declared is gone, and nothing else");
}

#[test]
fn what_others_made_the_same_is_neither_doubled_nor_deleted() {
    let node = Worker::new().with_loose_rp_filter();
    node.config("rules: [{priority: 1000, from: 10.0.1.10, table: 2}]\nroutes: [{to: 10.9.0.0/16, via: 10.0.0.1}]");
    node.net.ip("rule add priority 1000 from 10.0.1.10 lookup 2");
    node.net.ip("route add 10.9.0.0/16 via 10.0.0.1");
    let before = node.net.state();
    assert_eq!(node.fix(&[]).expect(0).out, "");
    node.config("");
    assert_eq!(node.fix(&[]).expect(0).out, "");
    assert_eq!(node.net.state(), before);
}

#[test]
fn a_changed_rule_is_added_before_the_old_one_goes() {
    let node = Worker::new().with_loose_rp_filter();
    node.config("rules: [{priority: 1000, from: 10.0.1.10, table: 2}]");
    node.fix(&[]).expect(0);
    node.config("rules: [{priority: 900, from: 10.0.1.10, table: 2}]");
    let ran = node.fix(&["--output", "json"]).expect(0);
    let actions: Vec<_> =
        ran.json()["changes"].as_array().unwrap().iter().map(|change| change["action"].clone()).collect();
    assert_eq!(actions, ["create", "delete"]);
    assert_eq!(mine(node.net.ip_json("-d rule")), 1);
}

#[test]
fn a_changed_route_is_replaced_in_place() {
    let node = Worker::new().with_loose_rp_filter();
    for (to, first, second) in [("10.9.0.0/16", "10.0.0.1", "10.0.1.1"), ("2001:db8:9::/48", "fd00:0::1", "fd00:1::1")]
    {
        node.config(&format!("routes: [{{to: '{to}', via: '{first}'}}]"));
        node.fix(&[]).expect(0);
        node.config(&format!("routes: [{{to: '{to}', via: '{second}'}}]"));
        let ran = node.fix(&["--output", "json"]).expect(0);
        assert_eq!(ran.json()["changes"][0]["action"], "update", "{ran:?}");
        assert_eq!(ran.commands().len(), 1, "{ran:?}");
        let family = if to.contains(':') { "-6" } else { "-4" };
        let routes = node.net.ip_json(&format!("{family} route show {to}"));
        assert_eq!(routes.as_array().unwrap().len(), 1, "{routes}");
        assert_eq!(routes[0]["gateway"].as_str().unwrap(), second.replace(":0:", ":"), "{routes}");
    }
}

#[test]
fn a_route_of_others_in_the_place_is_blocked_not_replaced() {
    let node = Worker::new().with_loose_rp_filter();
    node.config("routes: [{to: 10.9.0.0/16, via: 10.0.0.1}, {to: 10.8.0.0/16, dev: eth7}]");
    node.net.ip("route add 10.9.0.0/16 via 10.0.1.1");
    let before = node.net.state();
    let ran = node.fix(&["--output", "json"]).expect(1);
    assert_eq!(ran.json()["blocked"].as_array().unwrap().len(), 2, "{ran:?}");
    assert_eq!(node.net.state(), before);
}

#[test]
fn the_kernels_own_words_are_in_the_error() {
    let node = Worker::new().with_pod(100).without_default(2);
    node.net.set_sysctl("net/ipv4/conf/default/rp_filter", "1");
    node.config("routes: [{to: 10.9.0.0/16, via: 203.0.113.9, dev: eth1}, {to: 10.8.0.0/16, via: 10.0.0.1}]");
    let ran = node.fix(&["--output", "json"]).expect(1);
    let json = ran.json();
    assert_eq!(json["changes"][0]["status"], "failed");
    assert!(json["changes"][0]["error"].as_str().unwrap().contains("Nexthop has invalid gateway"), "{ran:?}");
    assert_eq!(json["changes"][1]["status"], "applied", "each entry stands alone");
    let applied = json["changes"].as_array().unwrap().iter().filter(|change| change["status"] == "applied").count();
    assert_eq!(applied, 5, "and so do the other sections: {ran:?}");
    assert!(ran.err.contains("Nexthop has invalid gateway"), "{ran:?}");
}

#[test]
fn what_is_declared_for_a_table_is_not_guessed() {
    let node = Worker::new().with_loose_rp_filter();
    node.config(
        "rules: [{priority: 100, from: 10.0.1.77, table: 77}]
routes: [{to: 10.0.1.0/24, dev: eth1, table: 77}, {to: default, via: 10.0.1.1, dev: eth1, table: 77}]",
    );
    let ran = node.fix(&["--output", "json"]).expect(0);
    assert!(ran.commands().iter().all(|command| command.contains("171")), "{ran:?}");
    node.config("rules: [{priority: 100, from: 10.0.1.77, table: 77}]\nroutes: [{to: 10.0.1.1, dev: eth1, table: 77}]");
    let ran = node.fix(&["--output", "json"]).expect(0);
    assert_eq!(ran.commands().iter().filter(|command| command.contains("proto 170")).count(), 1, "{ran:?}");
}

#[test]
fn next_hops_that_others_appended_are_not_replaced() {
    let node = Worker::new().with_loose_rp_filter();
    node.config("routes: [{to: 'fd09::/32', via: 'fd00:1::1'}]");
    node.fix(&[]).expect(0);
    node.net.ip("-6 route append fd09::/32 via fd00:0::1 proto static");
    let before = node.net.state();
    assert_eq!(node.fix(&["--output", "json"]).expect(1).json()["blocked"].as_array().unwrap().len(), 1);
    node.config("");
    assert_eq!(node.fix(&["--output", "json"]).expect(1).json()["blocked"].as_array().unwrap().len(), 1);
    assert_eq!(node.net.state(), before);
}

#[test]
fn a_rule_is_not_deleted_in_the_place_of_a_more_general_one() {
    let node = Worker::new().with_loose_rp_filter();
    let marked = "{priority: 900, from: 10.0.1.9, fwmark: 7, table: main}";
    node.config(&format!("rules: [{marked}, {{priority: 900, from: 10.0.1.9, table: main}}]"));
    node.fix(&[]).expect(0);
    node.config(&format!("rules: [{marked}]"));
    node.fix(&[]).expect(0);
    let rules = node.net.ip_json("-d rule show priority 900");
    assert_eq!((rules.as_array().unwrap().len(), &rules[0]["fwmark"]), (1, &Value::from("0x7")), "{rules}");
}

#[test]
fn the_order_of_declarations_does_not_matter() {
    let node = Worker::new().with_loose_rp_filter();
    node.config("routes: [{to: default, via: 10.7.0.1, dev: eth1, table: 9}, {to: 10.7.0.1, dev: eth1, table: 9}]");
    node.fix(&[]).expect(0);
    assert_eq!(node.net.ip_json("route show table 9").as_array().unwrap().len(), 2);
}

#[test]
fn what_the_kernel_denies_for_another_reason_is_no_lack_of_rights() {
    let node = Worker::new().with_loose_rp_filter();
    node.net.set_sysctl("net/ipv6/conf/eth0/disable_ipv6", "1");
    node.config("routes: [{to: 'fd09::/32', dev: eth0}]");
    let ran = node.fix(&[]).expect(1);
    assert!(ran.err.contains("IPv6 is disabled on nexthop device"), "{ran:?}");
}
