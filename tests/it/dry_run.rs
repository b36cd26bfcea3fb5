//! The dry run: a script that does what the run would do, and a report that changes nothing.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::kit::{Netns, Worker};

const SECTIONS: &str = "
rules: [{priority: 1000, from: 10.0.9.0/24, table: 1001}, {priority: 1001, to: 'fd00::/8', fwmark: 7, table: main}]
routes: [{to: 10.9.0.0/16, via: 10.0.0.1}, {to: 'fd00:9::/32', via: 'fd00:0::1', metric: 7}, {to: 10.8.0.0/16, dev: eth1}]
";

/// Strict, both families without their defaults, one table flushed, declared objects missing, changed and left over.
fn broken() -> Worker {
    let node = Worker::new().with_pod(100).with_pod(101).without_default(2).with_rule("1536", "fd00:1::100", 3);
    node.net.ip("-6 route add fe80:ec2::1 dev eth1 table 3");
    node.net.ip("rule add priority 7 from 10.0.1.10 lookup 5 protocol 171");
    node.net.ip("route add 10.77.0.0/16 via 10.0.0.1 proto 171");
    node.net.ip("route add 10.9.0.0/16 via 10.0.1.1 proto 171");
    node.net.ip("link add eth0.100 type bridge");
    node.net.set_sysctl("net/ipv4/conf/eth0.100/rp_filter", "1");
    node.config(&format!("{SECTIONS}\nrp_filter: {{interfaces: '^(default|eth.*)$'}}"));
    node
}

fn sh(net: &Netns, script: &str) {
    let output = net.enter(|| {
        let mut shell = Command::new("sh").arg("-e").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        shell.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        shell.wait().unwrap()
    });
    assert!(output.success(), "{script}");
}

#[test]
fn the_script_does_what_the_run_does() {
    let (by_script, by_run) = (broken(), broken());
    assert_eq!(by_script.net.state(), by_run.net.state(), "the two nodes differ: the test is wrong");
    let before = by_script.net.state();
    let script = by_script.fix(&["--dry-run"]).expect(0).out;
    assert_eq!(by_script.net.state(), before, "a dry run changes nothing");
    sh(&by_script.net, &script);
    let ran = by_run.fix(&["--output", "json"]).expect(0);
    assert!(ran.commands().len() > 10, "{ran:?}");
    assert_eq!(by_script.net.state(), by_run.net.state(), "{script}");
    assert_ne!(by_run.net.state(), before);
    by_script.fix(&["--dry-run", "--detailed-exitcode"]).expect(0);
}

#[test]
fn it_is_a_script_with_reasons_and_counts() {
    let node = Worker::new().with_pod(100).without_default(2);
    node.net.set_sysctl("net/ipv4/conf/default/rp_filter", "1");
    node.net.set_sysctl("net/ipv4/conf/lo/rp_filter", "1");
    node.net.ip("route add 10.0.1.2 dev eth1 table 2 scope link");
    let script = node.fix(&["--dry-run"]).expect(0).out;
    let lines: Vec<&str> = script.lines().collect();
    assert_eq!(lines[0], "#!/bin/sh");
    assert!(lines[1].starts_with("# rp_filter: rp_filter of default is 1"), "{script}");
    assert_eq!(lines[2], "sysctl -w net.ipv4.conf.lo.rp_filter=1; sysctl -w net.ipv4.conf.default.rp_filter=2");
    assert!(script.contains("\n# blocked: default_routes: "), "{script}");
    assert_eq!(*lines.last().unwrap(), "# 3 planned, 1 blocked");
}

#[test]
fn its_json_has_the_promised_form() {
    let node = Worker::new().with_pod(100).with_loose_rp_filter().without_default(2);
    let ran = node.fix(&["--dry-run", "--output", "json"]).expect(0);
    let mut json = ran.json();
    let reason = json["changes"][0]["reason"].take();
    assert!(reason.as_str().unwrap().contains("table 2 has no default route for 10.0.1.10, 10.0.1.100"), "{reason}");
    let expected = serde_json::json!({
        "format_version": "1.0", "dry_run": true, "converged": false,
        "changes": [{
            "reconciler": "default_routes", "action": "create", "object": "route",
            "command": "ip route add default via 10.0.1.1 dev eth1 table 2 proto 170 scope global metric 4294967295",
            "reason": null, "status": "planned", "error": null
        }],
        "blocked": []
    });
    assert_eq!(json, expected);
    assert_eq!(ran.out.lines().count(), 1);
}

#[test]
fn it_waits_for_no_lock_and_writes_no_file() {
    let node = Worker::new();
    node.fix(&["--dry-run"]).expect(0);
    assert!(!node.directory.path().join("state").exists());
}
