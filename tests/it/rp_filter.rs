//! Reverse path filters.

use std::process::Command;

use crate::kit::{Worker, finish};

#[test]
fn strict_uplinks_become_loose_and_nothing_else_changes() {
    let node = Worker::new().with_pod(100);
    node.net.ip("link add docker0 type bridge");
    for name in ["docker0", "default", "eth0", "eth1", "eni00000000064"] {
        node.net.set_sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "1");
    }
    let ran = node.fix(&["--output", "json"]).expect(0);
    assert_eq!(ran.commands().len(), 4, "{ran:?}");
    for (name, value) in [
        ("default", "2"),
        ("eth0", "2"),
        ("eth1", "2"),
        ("eni00000000064", "2"),
        ("docker0", "1"),
        ("lo", "0"),
        ("all", "0"),
    ] {
        assert_eq!(node.net.sysctl(&format!("net/ipv4/conf/{name}/rp_filter")), value, "{name}");
    }
    assert_eq!(node.net.run("sysctl", &["-n", "net.ipv4.conf.eth1.rp_filter"]), "2\n");
}

/// A write to `default` is one to each interface that nobody has ever given a value. Those that nobody named keep
/// theirs, by the run as by the script.
#[test]
fn interfaces_that_nobody_named_do_not_follow_default() {
    for by_script in [false, true] {
        let node = Worker::bare();
        for link in ["wg0", "docker0", "eth0"] {
            node.net.ip(&format!("link add {link} type bridge"));
        }
        node.config("kube_proxy: {mode: off}\nbridges: [{name: br0}]");
        let values = || {
            let names = ["default", "eth0", "wg0", "docker0", "br0", "lo"];
            names.map(|name| node.net.sysctl(&format!("net/ipv4/conf/{name}/rp_filter")))
        };
        if by_script {
            let script = node.fix(&["--dry-run"]).expect(0).out;
            node.net.run("sh", &["-ec", &script]);
        } else {
            let ran = node.fix(&["--output", "json"]).expect(0);
            let commands = ran.commands().join("\n");
            assert!(commands.contains("net.ipv4.conf.wg0.rp_filter=0; "), "it says what it writes: {ran:?}");
        }
        assert_eq!(values(), ["2", "2", "0", "0", "0", "0"], "by the script: {by_script}");
        assert_eq!(node.fix(&[]).expect(0).out, "");
    }
}

/// Pods come and go between a dry run and its script.
#[test]
fn the_script_stands_an_interface_that_has_gone() {
    let node = Worker::bare();
    for link in ["wg0", "wg1", "eth0"] {
        node.net.ip(&format!("link add {link} type bridge"));
    }
    node.config("kube_proxy: {mode: off}");
    let script = node.fix(&["--dry-run"]).expect(0).out;
    node.net.ip("link del wg0");
    finish(node.net.output(Command::new("sh").args(["-c", &script])));
    let names = ["default", "eth0", "wg1"];
    assert_eq!(names.map(|name| node.net.sysctl(&format!("net/ipv4/conf/{name}/rp_filter"))), ["2", "2", "0"]);
}

#[test]
fn names_with_dots_capitals_and_worse_are_reached() {
    let node = Worker::new().with_loose_rp_filter();
    node.config("rp_filter: {interfaces: '.'}");
    let names = ["eth0.100", "enP2p4s0", "a$(id)", "it's", "-n", "x;y", "eth=1", "e*"];
    for name in names {
        node.net.run("ip", &["link", "add", "veth0", "type", "veth", "peer", "name", "veth1"]);
        node.net.run("ip", &["link", "set", "dev", "veth0", "name", name]);
        node.net.run("ip", &["link", "del", "veth1"]);
        node.net.run("ip", &["link", "add", name, "type", "bridge"]);
        node.net.set_sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "1");
    }
    let script = node.fix(&["--dry-run"]).expect(0).out;
    node.net.run("sh", &["-c", &script]);
    for name in names {
        let path = format!("net/ipv4/conf/{name}/rp_filter");
        assert_eq!(node.net.sysctl(&path), "2", "{name} by the script:\n{script}");
        node.net.set_sysctl(&path, "1");
    }
    node.fix(&[]).expect(0);
    for name in names {
        assert_eq!(node.net.sysctl(&format!("net/ipv4/conf/{name}/rp_filter")), "2", "{name}");
    }
}

#[test]
fn a_name_that_is_not_utf_8_hides_nothing() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    use std::process::Command;
    let node = Worker::new().with_pod(100).without_default(2);
    let odd = OsStr::from_bytes(b"eth\xff9");
    let made = node.net.output(Command::new("ip").args(["link", "add"]).arg(odd).args(["type", "bridge"]));
    assert!(made.status.success(), "{made:?}");
    node.net.output(Command::new("ip").args(["rule", "add", "priority", "5", "iif"]).arg(odd).args(["lookup", "main"]));
    node.net.output(Command::new("ip").args(["addr", "add", "10.77.0.1/24", "dev"]).arg(odd));
    node.config("rp_filter: {interfaces: '^eth'}");
    let script = node.fix(&["--dry-run"]).expect(0).out;
    assert!(script.contains(r"\377"), "{script}");
    let ran = node.fix(&["--output", "json"]).expect(0);
    assert_eq!(ran.commands().len(), 4, "default, eth0, eth1 and the odd one: {ran:?}");
}

#[test]
fn what_conf_all_overrules_is_blocked() {
    let node = Worker::new();
    node.net.set_sysctl("net/ipv4/conf/all/rp_filter", "2");
    node.config("rp_filter: {value: strict, replace: [off]}");
    let ran = node.fix(&["--output", "json"]).expect(1);
    assert!(ran.json()["blocked"][0]["because"].as_str().unwrap().contains("net.ipv4.conf.all.rp_filter is 2"));
    assert_eq!(node.net.sysctl("net/ipv4/conf/all/rp_filter"), "2", "conf/all is never written");
}

#[test]
fn a_thousand_interfaces_are_set_in_one_run() {
    let node = Worker::new();
    node.net.set_sysctl("net/ipv4/conf/default/rp_filter", "1");
    let batch: String =
        (0..500).map(|n| format!("link add eni{n:011x} type veth peer name eni{:011x}\n", n + 500)).collect();
    let file = node.directory.path().join("batch");
    std::fs::write(&file, batch).unwrap();
    node.net.run("ip", &["-batch", file.to_str().unwrap()]);
    let ran = node.fix(&["--output", "json"]).expect(0);
    assert_eq!(ran.commands().len(), 1003);
    assert!(!node.net.state().contains("eni000000003e7=1"));
    assert_eq!(node.net.sysctl("net/ipv4/conf/eni000000003e7/rp_filter"), "2");
}
