//! What each privilege is good for: none for looking, CAP_NET_ADMIN for everything.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::kit::{Ran, Worker, finish};

/// As another user than root where the machine lets us, else as a root without its capabilities.
fn unprivileged(node: &Worker, capabilities: &str, args: &[&str]) -> Ran {
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
        std::fs::copy(env!("CARGO_BIN_EXE_node-fixer"), &copy).unwrap();
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
    node.config("rules: [{priority: 9, from: 10.0.1.9, table: 2}]\nroutes: [{to: 10.9.0.0/16, via: 10.0.0.1}]");
    let ran = unprivileged(&node, ",+net_admin", &["--output", "json"]).expect(0);
    assert_eq!(ran.json()["converged"], true, "{ran:?}");
    assert_eq!(ran.commands().len(), 6, "{ran:?}");
    assert_eq!(node.net.sysctl("net/ipv4/conf/eth1/rp_filter"), "2");
    assert_eq!(node.net.sysctl("net/ipv4/conf/default/rp_filter"), "2");
    assert_eq!(node.net.ip_json("route show table 2 default")[0]["gateway"], "10.0.1.1");
}
