//! What each privilege is good for: none for looking, CAP_NET_ADMIN for everything.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::kit::{Ran, Worker, finish};

/// As another user than root where the machine lets us, else as a root without its capabilities.
pub fn unprivileged(node: &Worker, capabilities: &str, args: &[&str]) -> Ran {
    let fixer = node.command(args);
    let mut command = Command::new("setpriv");
    let mapped = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    if mapped.split_whitespace().nth(2) != Some("1") {
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
    }
    let (inherited, bound) = (format!("--inh-caps=-all{capabilities}"), format!("--bounding-set=-all{capabilities}"));
    command.args([&inherited, &bound]);
    if !capabilities.is_empty() {
        command.arg(format!("--ambient-caps=-all{capabilities}"));
    }
    command.arg(reachable(node)).args(fixer.get_args());
    finish(node.net.output(&mut command))
}

/// A copy of the binary, and a state directory, where another user gets at them.
fn reachable(node: &Worker) -> std::path::PathBuf {
    let directory = node.directory.path();
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o777)).unwrap();
    let copy = directory.join("node-fixer");
    if !copy.exists() {
        // Not by this process: a child that another test starts meanwhile would hold the copy open for writing, and
        // nobody could execute it.
        assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_node-fixer")).arg(&copy).status().unwrap().success());
    }
    copy
}

#[test]
fn a_dry_run_needs_no_right_at_all() {
    let node = Worker::new().with_pod(100).without_default(2);
    let as_root = node.fix(&["--dry-run", "--output", "json"]).expect(0);
    let as_nobody = unprivileged(&node, "", &["--dry-run", "--output", "json"]).expect(0);
    assert_eq!(as_nobody.out, as_root.out);
    assert!(as_nobody.commands().len() > 1);
}

#[test]
fn explaining_needs_no_right_at_all() {
    let node = Worker::new().with_pod(100).without_default(2).with_carrier();
    let pair = ["explain", "10.0.1.100", "192.0.2.1"];
    let as_root = node.fix(&pair).expect(1);
    assert_eq!(unprivileged(&node, "", &pair).expect(1).out, as_root.out);
}

#[test]
fn a_run_without_the_capability_names_it_and_does_nothing() {
    let node = Worker::new().with_pod(100).without_default(2);
    let before = node.net.state();
    let ran = unprivileged(&node, "", &[]).expect(77);
    assert!(ran.err.contains("CAP_NET_ADMIN"), "{ran:?}");
    assert_eq!(node.net.state(), before);
    assert!(!node.directory.path().join("state").exists());
}

#[test]
fn the_one_capability_is_enough_for_everything() {
    let node = Worker::new().with_pod(100).without_default(2);
    node.net.set_sysctl("net/ipv4/conf/default/rp_filter", "1");
    node.config(
        "kube_proxy: {mode: off}
rules: [{priority: 9, from: 10.0.1.9, table: 2}]
routes: [{to: 10.9.0.0/16, via: 10.0.0.1}]
addresses: [{dev: eth0, address: 10.8.0.1}]
sysctls: [{key: net.ipv4.conf.eth0.proxy_arp, value: 1}, {key: net.ipv6.conf.eth0.proxy_ndp, value: 1}]
bridges: [{name: br0, addresses: [10.100.0.1/16], mtu: 1400, stp: true}]
masquerade: [{source: 10.100.0.0/16}]",
    );
    let ran = unprivileged(&node, ",+net_admin", &["--output", "json"]).expect(0);
    assert_eq!(ran.json()["converged"], true, "{ran:?}");
    assert_eq!(ran.commands().len(), 12, "{ran:?}");
    assert_eq!(node.net.sysctl("net/ipv4/conf/eth1/rp_filter"), "2");
    assert_eq!(node.net.sysctl("net/ipv4/conf/default/rp_filter"), "2");
    assert_eq!(node.net.ip_json("route show table 2 default")[0]["gateway"], "10.0.1.1");
}

#[test]
fn the_one_capability_is_enough_for_masquerade_which_without_it_cannot_even_be_seen() {
    let node = Worker::new().with_loose_rp_filter();
    node.config("masquerade: [{source: 10.100.0.0/16, out: eth0}]");
    let ran = unprivileged(&node, "", &["--dry-run", "--output", "json"]).expect(1);
    let because = ran.json()["blocked"][0]["because"].as_str().unwrap().to_owned();
    assert!(because.contains("even reading requires CAP_NET_ADMIN"), "{because}");
    let ran = unprivileged(&node, ",+net_admin", &["--output", "json"]).expect(0);
    assert_eq!((ran.commands().len(), &ran.json()["converged"]), (1, &true.into()), "{ran:?}");
    assert!(node.net.run("nft", &["list table inet node_fixer"]).contains("10.100.0.0/16"));
    node.config("");
    assert_eq!(unprivileged(&node, ",+net_admin", &["--output", "json"]).expect(0).commands().len(), 1);
}
