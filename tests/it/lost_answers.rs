//! The kernel has done what was asked, and its answer is lost: netlink has no memory for it (ENOBUFS).

use serde_json::Value;

use crate::kit::{Ran, Worker};

/// A run whose receive of this number, counted from 1, fails; and whether there was one.
fn with_lost_answer(node: &Worker, number: usize) -> (Ran, bool) {
    let inject = format!("inject=recvfrom:error=ENOBUFS:when={number}");
    let (ran, trace) = node.traced(&["-e", "trace=recvfrom", "-e", &inject], &["--output", "json"]);
    (ran, trace.contains("INJECTED"))
}

/// Whatever answer is lost: the next run goes on from there, and what is no longer declared goes, all of it.
#[test]
#[ignore = "needs strace; tests/run runs it"]
fn whatever_answer_is_lost_nothing_is_left_for_ever() {
    let declared = "kube_proxy: {mode: off}
bridges: [{name: br0, addresses: [10.7.0.1/24]}, {name: br1, mtu: 1400}]
addresses: [{dev: eth0, address: 10.7.1.1/24}]
rules: [{priority: 1000, from: 10.7.0.0/24, table: 7}]
routes: [{to: 10.8.0.0/16, dev: eth0, table: 7}]";
    let node = Worker::new().with_loose_rp_filter();
    let state = || (node.net.state(), node.net.ip("addr show"), node.net.ip("-d link show type bridge"));
    let nothing = "kube_proxy: {mode: off}";
    node.config(nothing);
    node.fix(&[]).expect(0);
    let before = state();
    for number in 1.. {
        node.config(declared);
        let (first, lost) = with_lost_answer(&node, number);
        if !lost {
            first.expect(0);
            assert!(number > 10, "only {number} answers: the test is wrong");
            break;
        }
        let ran = node.fix(&["--output", "json"]).expect(0);
        assert_eq!(ran.json()["converged"], Value::Bool(true), "answer {number}: {first:?}, then {ran:?}");
        for bridge in ["br0", "br1"] {
            let link = node.net.ip(&format!("link show {bridge}"));
            assert!(link.contains("alias node-fixer"), "answer {number}: {first:?}, then {link}");
        }
        node.config(nothing);
        node.fix(&[]).expect(0);
        assert_eq!(state(), before, "answer {number}: {first:?}");
    }
}
