//! A repair that is made again and again is reported once, and continues.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::kit::{Ends, Ran, Worker, finish, started_by};

fn healthy() -> Worker {
    Worker::new().with_pod(100).with_loose_rp_filter()
}

fn broken_and_repaired(node: &Worker) -> Ran {
    node.net.ip("route del default table 2");
    let ran = node.fix(&[]).expect(0);
    assert!(ran.out.starts_with("applied: ip route add default via 10.0.1.1"), "{ran:?}");
    ran
}

fn state(node: &Worker) -> Value {
    serde_json::from_slice(&fs::read(node.directory.path().join("state/state.json")).unwrap()).unwrap()
}

fn write_state(node: &Worker, state: &Value) {
    fs::write(node.directory.path().join("state/state.json"), state.to_string()).unwrap();
}

#[test]
fn the_fifth_repair_in_a_row_is_contention_and_reported_once() {
    let node = healthy();
    let reported: Vec<bool> = (0..7).map(|_| broken_and_repaired(&node).err.contains("contention")).collect();
    assert_eq!(reported, [false, false, false, false, true, false, false]);
    let times = state(&node)["memory"]["mends"]["repairs"][0]["times"].as_array().unwrap().len();
    assert_eq!(times, 5, "bounded: {}", state(&node));
    let node = healthy();
    for _ in 0..4 {
        broken_and_repaired(&node);
    }
    let said = broken_and_repaired(&node).err;
    for part in [
        "WARN contention event=\"contention\" reconciler=\"default_routes\" command=\"ip route add default via 10.0.1.1",
        "reason=\"repaired at least 5 times in the last 15 runs, within 1 min\"",
        "suspects=",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn what_one_program_undoes_is_one_warning() {
    let node = healthy().with_pod(101).with_pod(102).with_pod(103);
    let textfile = node.directory.path().display().to_string();
    node.config(&format!("metrics: {{textfile: {textfile}}}"));
    let mut said = String::new();
    for _ in 0..5 {
        for pod in 100..104 {
            node.net.set_sysctl(&format!("net/ipv4/conf/eni{pod:011x}/rp_filter"), "1");
        }
        said = broken_and_repaired(&node).err;
    }
    let reported: Vec<_> = said.lines().filter(|line| line.contains("event=\"contention\"")).collect();
    assert_eq!(reported.len(), 2, "one a section: {said}");
    let of_rp_filter = reported[1];
    for part in [
        "reconciler=\"rp_filter\" command=\"sysctl -w net.ipv4.conf.eni00000000064.rp_filter=2; sysctl -w ",
        "eni00000000066.rp_filter=2; and 1 more: node-fixer status\"",
        "reason=\"4 repairs, the first of them repaired at least 5 times in the last 15 runs, within 1 min\"",
        "suspects=",
    ] {
        assert!(of_rp_filter.contains(part), "{part}: {of_rp_filter}");
    }
    let metrics = fs::read_to_string(node.directory.path().join("node_fixer.prom")).unwrap();
    for sample in ["contended_repairs{reconciler=\"rp_filter\"} 4\n", "contention_total{reconciler=\"rp_filter\"} 1\n"]
    {
        assert!(metrics.contains(sample), "{sample}: {metrics}");
    }
}

#[test]
fn repairs_that_are_far_apart_are_none_and_a_dry_run_is_no_repair() {
    let node = healthy();
    for _ in 0..4 {
        broken_and_repaired(&node);
    }
    node.net.ip("route del default table 2");
    let before = state(&node);
    for _ in 0..9 {
        let ran = node.fix(&["--dry-run"]).expect(0);
        assert!(!ran.err.contains("contention"), "{ran:?}");
    }
    assert_eq!(state(&node), before);
    // As if those had been made in another quarter of an hour: times that cannot be, and times long ago.
    for times in [json!([u64::MAX, u64::MAX, u64::MAX, u64::MAX]), json!([])] {
        let mut edited = before.clone();
        edited["memory"]["mends"]["repairs"][0]["times"] = times;
        write_state(&node, &edited);
        let ran = node.fix(&[]).expect(0);
        assert!(!ran.err.contains("contention"), "{ran:?}");
        node.net.ip("route del default table 2");
    }
}

#[test]
fn the_file_that_undoes_it_is_named() {
    let node = healthy();
    // As an update of the distribution would leave it, seen by these runs only.
    let script = "mount -t tmpfs tmpfs /etc/sysctl.d
        printf '# hardening\\nnet.ipv4.conf.eth1.rp_filter = 1\\n' > /etc/sysctl.d/99-hardening.conf
        exec \"$0\" \"$@\"";
    let run = |args: &[&str]| {
        let fixer = node.command(args);
        let mut mounts = Command::new("unshare");
        mounts.args(["--mount", "sh", "-ec", script]);
        finish(node.net.output(&mut started_by(mounts, &fixer))).expect(0)
    };
    let mut said = String::new();
    for _ in 0..5 {
        node.net.set_sysctl("net/ipv4/conf/eth1/rp_filter", "1");
        said = run(&[]).err;
    }
    assert!(said.contains("event=\"contention\" reconciler=\"rp_filter\""), "{said}");
    assert!(said.contains("rp_filter_sysctl (/etc/sysctl.d/99-hardening.conf:2): "), "{said}");
    let text = run(&["status"]).out;
    assert!(text.contains("\n  suspect: rp_filter_sysctl (/etc/sysctl.d/99-hardening.conf:2): "), "{text}");
}

#[test]
fn what_a_broken_state_says_of_repairs_does_no_harm() {
    let node = healthy();
    broken_and_repaired(&node);
    let good = state(&node);
    let repair = good["memory"]["mends"]["repairs"][0].clone();
    let with = |key: &str, value: Value| {
        let mut state = good.clone();
        state["memory"]["mends"][key] = value;
        state
    };
    for wrong in [
        with("repairs", json!(7)),
        with("repairs", json!([{"reconciler": "x"}])),
        with("repairs", json!([{"reconciler": "x", "command": "y", "times": [-1], "reported": false}])),
        with("sections", json!([])),
        with("more", json!(1)),
    ] {
        write_state(&node, &wrong);
        node.net.ip("route del default table 2");
        let ran = node.fix(&[]).expect(0);
        assert!(ran.err.contains("starting afresh"), "{wrong}: {ran:?}");
        assert_eq!(state(&node)["memory"]["mends"]["repairs"].as_array().unwrap().len(), 1);
    }
    // Well formed, and far more than a run of ours writes.
    write_state(&node, &with("repairs", json!(vec![repair; 3000])));
    broken_and_repaired(&node);
    assert!(state(&node)["memory"]["mends"]["repairs"].as_array().unwrap().len() <= 256);
    // From before there was such a thing.
    let mut old = good.clone();
    old["memory"].as_object_mut().unwrap().remove("mends");
    write_state(&node, &old);
    let ran = broken_and_repaired(&node);
    assert!(!ran.err.contains("fresh start"), "{ran:?}");
}

#[test]
fn what_does_not_outlive_the_second_look_counts_too() {
    // Somebody who is often faster than the second look.
    let node = healthy();
    node.config("rp_filter: {interfaces: '^eth1$'}");
    node.fix(&[]).expect(0);
    assert_eq!(state(&node)["memory"]["mends"]["repairs"], json!([]));
    let undo = node.net.enter(|| {
        Command::new("sh")
            .args(["-c", "while :; do echo 1 > /proc/sys/net/ipv4/conf/eth1/rp_filter; done"])
            .spawn()
            .unwrap()
    });
    let mut undo = Ends(undo);
    let reported = (0..40).map(|_| node.fix(&[]).err).filter(|err| err.contains("event=\"contention\"")).count();
    undo.0.kill().unwrap();
    assert_eq!(reported, 1);
}

#[test]
fn what_never_outlives_the_second_look_is_contention_too() {
    let node = healthy();
    // The kernel writes it in another way, so that each run's second look misses it.
    node.config("sysctls: [{key: net.ipv4.tcp_fastopen_key, value: 1-2-3-4}]");
    let mut reported = Vec::new();
    for _ in 0..7 {
        let ran = node.fix(&[]).expect(1);
        assert!(ran.err.contains("gone when checked again"), "{ran:?}");
        reported.push(ran.err.contains("event=\"contention\" reconciler=\"sysctls\""));
    }
    assert_eq!(reported, [false, false, false, false, true, false, false], "{}", state(&node));
}
