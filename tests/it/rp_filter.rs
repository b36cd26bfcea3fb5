//! Reverse path filters.

use std::process::Command;

use crate::kit::{Netns, Worker, finish};

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
fn interfaces_that_are_not_selected_do_not_follow_default() {
    for by_script in [false, true] {
        let node = Worker::bare();
        node.net.set_sysctl("net/ipv4/conf/default/rp_filter", "1");
        for link in ["wg0", "docker0", "eth0"] {
            node.net.ip(&format!("link add {link} type bridge"));
        }
        node.config("kube_proxy: {mode: off}\nbridges: [{name: br0}]\nrp_filter: {interfaces: '^(default|eth0)$'}");
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
            assert!(commands.contains("net.ipv4.conf.wg0.rp_filter=1; "), "it says what it writes: {ran:?}");
        }
        assert_eq!(values(), ["2", "2", "1", "1", "1", "0"], "by the script: {by_script}");
        assert_eq!(node.fix(&[]).expect(0).out, "");
    }
}

/// Pods come and go between a dry run and its script.
#[test]
fn the_script_stands_an_interface_that_has_gone() {
    let node = Worker::bare();
    node.net.set_sysctl("net/ipv4/conf/default/rp_filter", "1");
    for link in ["wg0", "wg1", "eth0"] {
        node.net.ip(&format!("link add {link} type bridge"));
    }
    node.config("kube_proxy: {mode: off}\nrp_filter: {interfaces: '^(default|eth0)$'}");
    let script = node.fix(&["--dry-run"]).expect(0).out;
    node.net.ip("link del wg0");
    finish(node.net.output(Command::new("sh").args(["-c", &script])));
    let names = ["default", "eth0", "wg1"];
    assert_eq!(names.map(|name| node.net.sysctl(&format!("net/ipv4/conf/{name}/rp_filter"))), ["2", "2", "1"]);
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

fn rp(net: &Netns, name: &str) -> String {
    net.sysctl(&format!("net/ipv4/conf/{name}/rp_filter"))
}

fn link(net: &Netns, name: &str, more: &str) {
    net.ip(&format!("link add {name} {more}"));
    net.ip(&format!("link set {name} up"));
    net.set_sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "1");
}

/// Whatever the names: what packets leave the node by is an uplink, and what only leads to what is on the node is none.
#[test]
fn uplinks_are_known_by_what_they_do() {
    let node = Worker::bare();
    let net = &node.net;
    net.set_sysctl("net/ipv4/conf/all/rp_filter", "0");
    net.set_sysctl("net/ipv4/conf/default/rp_filter", "2");
    let uplinks = ["enp39s0", "enP2p4s0", "bond0", "eth0.100", "br0", "wan-9.x"];
    for (number, name) in (1..).zip(uplinks) {
        // Whatever it is made of: this kernel need not know bonds.
        match name {
            "br0" => link(net, name, "type bridge"),
            _ => link(net, name, &format!("type veth peer name peer{number}")),
        }
        net.ip(&format!("addr add 10.0.{number}.10/24 dev {name}"));
        // By a policy table's default, by the rule of its own address alone, or by main.
        let via = format!("default via 10.0.{number}.1 dev {name} onlink");
        match name {
            "enP2p4s0" => {
                net.ip("rule add from 10.0.99.99 lookup 7");
                net.ip(&format!("route add {via} table 7"))
            }
            "wan-9.x" => net.ip(&format!("rule add from 10.0.{number}.10 lookup 8")),
            _ => net.ip(&format!("route add {via} metric {number}")),
        };
    }
    let others = ["docker0", "tailscale0", "nodelocaldns", "lxc1", "cali1", "vlan.eth.1"];
    for (number, name) in (20..).zip(others) {
        let kind = match name {
            "tailscale0" => "type vxlan id 5 dstport 4789".to_owned(),
            "docker0" | "nodelocaldns" => "type bridge".to_owned(),
            _ => format!("type veth peer name far{number}"),
        };
        link(net, name, &kind);
        if name != "vlan.eth.1" && name != "lxc1" {
            net.ip(&format!("addr add 10.1.{number}.1/24 dev {name}"));
        }
    }
    // Strict mode has a branch link without any address.
    net.ip("link set far25 up");
    net.ip("route add 10.0.9.1 dev vlan.eth.1 table 101 scope link");
    net.ip("route add default via 10.0.9.1 dev vlan.eth.1 table 101");
    net.ip("rule add priority 10 iif lxc1 lookup 101");
    net.ip("rule add priority 5270 lookup 52");
    net.ip("route add 10.0.0.0/16 dev tailscale0 table 52");
    net.ip("link set far24 up");
    net.ip("route add 10.244.0.9 dev cali1 scope link");
    node.config("kube_proxy: {mode: off}\ndefault_routes: {mode: off}");
    let ran = node.fix(&["--output", "json"]).expect(0);
    for name in uplinks {
        assert_eq!(rp(net, name), "2", "{name}: {ran:?}");
    }
    for name in others {
        assert_eq!(rp(net, name), "1", "{name}: {ran:?}");
    }
    assert!(!ran.err.contains("notice"), "{ran:?}");
    assert_eq!(node.fix(&[]).expect(0).out, "");
    assert_eq!(node.fix(&["--dry-run", "--output", "npd"]).expect(0).out, "the network is as declared\n");
}

#[test]
fn a_node_of_ipv6_alone_has_its_uplinks_too() {
    let node = Worker::bare();
    let net = &node.net;
    net.set_sysctl("net/ipv4/conf/default/rp_filter", "2");
    for (name, address) in [("ens5", "fd00::10/64"), ("docker0", "fd01::1/64")] {
        link(net, name, "type bridge");
        net.ip(&format!("-6 addr add {address} dev {name} nodad"));
    }
    net.ip("-6 route add default via fd00::1 dev ens5");
    node.config("kube_proxy: {mode: off}");
    node.fix(&[]).expect(0);
    assert_eq!((rp(net, "ens5"), rp(net, "docker0")), ("2".into(), "1".into()));
    // Where a pattern leaves it out, strict does no harm: IPv6 knows no rp_filter.
    net.set_sysctl("net/ipv4/conf/ens5/rp_filter", "1");
    node.config("kube_proxy: {mode: off}\nrp_filter: {interfaces: ^eth}");
    assert_eq!(node.fix(&[]).expect(0).err, "");
}

/// Cilium: `off` of `default` is meant for interfaces to come, and drops nothing. Strict is raised.
#[test]
fn off_of_default_is_left_as_it_is() {
    for (section, default, expected) in [
        ("{}", "0", "0"),
        ("{interfaces: '^(default|eth[0-9]+)$'}", "0", "0"),
        ("{}", "1", "2"),
        ("{interfaces: '^(default|eth[0-9]+)$'}", "1", "2"),
    ] {
        let node = Worker::new().with_loose_rp_filter();
        let net = &node.net;
        net.set_sysctl("net/ipv4/conf/default/rp_filter", default);
        net.ip("link add cilium_host type bridge");
        net.ip("addr add 10.0.9.10/32 dev cilium_host");
        net.ip("link add lxcold type bridge");
        node.config(&format!("kube_proxy: {{mode: off}}\nrp_filter: {section}"));
        node.fix(&[]).expect(0);
        net.ip("link add lxcnew type bridge");
        let values = ["default", "lxcold", "cilium_host", "lxcnew", "eth0"].map(|name| rp(net, name));
        assert_eq!(values, [expected, default, default, expected, "2"], "{section} over {default}");
    }
}

#[test]
fn further_interfaces_have_a_value_of_their_own() {
    let node = Worker::new();
    let net = &node.net;
    net.set_sysctl("net/ipv4/conf/default/rp_filter", "2");
    for name in ["lxc1", "lxc2", "docker0"] {
        net.ip(&format!("link add {name} type bridge"));
    }
    let more =
        "{interfaces: ^lxc1$, value: strict}, {interfaces: ^lxc, value: off}, {interfaces: ^eth1$, value: strict}";
    node.config(&format!("kube_proxy: {{mode: off}}\nrp_filter: {{more: [{more}]}}"));
    let ran = node.fix(&[]).expect(0);
    let values = ["default", "lxc1", "lxc2", "docker0", "eth0", "eth1"].map(|name| rp(net, name));
    assert_eq!(values, ["2", "1", "0", "2", "2", "1"], "{ran:?}");
    assert_eq!(node.fix(&[]).expect(0).out, "");
}

/// The uplinks of newer machine types under the patterns of earlier versions.
#[test]
fn a_strict_uplink_that_is_not_selected_is_reported_everywhere_and_once_by_runs() {
    let node = Worker::new().with_pod(100).with_loose_rp_filter();
    let net = &node.net;
    net.ip("rule add priority 1024 fwmark 0x80/0x80 lookup main");
    for (old, new) in [("eth0", "enp39s0"), ("eth1", "enp40s0")] {
        net.ip(&format!("link set {old} down"));
        net.ip(&format!("link set {old} name {new} up"));
        net.set_sysctl(&format!("net/ipv4/conf/{new}/rp_filter"), "1");
    }
    net.ip("addr add fd00:0::10/64 dev enp39s0");
    net.ip("addr add fd00:1::10/64 dev enp40s0");
    net.settle();
    net.ip("route add default via 10.0.0.1 dev enp39s0");
    net.ip("route add 10.0.1.1 dev enp40s0 table 2 scope link");
    net.ip("route add default via 10.0.1.1 dev enp40s0 table 2");
    let pattern = "'^(default|(eth|ens)[0-9]+|eni[0-9a-f]{11}|vlan[0-9a-f]{11})$'";
    let kube_proxy = "kube_proxy: {interfaces: '^(eth|ens)[0-9]+$', mode: observe}";
    node.config(&format!("rp_filter: {{interfaces: {pattern}}}\n{kube_proxy}"));
    let ran = node.fix(&["--output", "json"]).expect(0);
    assert_eq!((&ran.json()["converged"], ran.commands().len()), (&true.into(), 0), "{ran:?}");
    let notices = ran.err.lines().filter(|line| line.contains("notice")).collect::<Vec<_>>();
    assert_eq!(notices.len(), 2, "{ran:?}");
    assert!(notices[0].contains("enp39s0, enp40s0: carries a default route"), "{ran:?}");
    assert_eq!(node.fix(&[]).expect(0).err, "", "it is not repeated");
    let npd = node.fix(&["--dry-run", "--output", "npd"]).expect(1).out;
    assert_eq!(npd, "enp39s0 and 1 more are strict and not managed\n");
    let status = node.fix(&["status"]).expect(0).out;
    assert!(status.contains("notice rp_filter: enp39s0, enp40s0: carries a default route"), "{status}");
    assert!(status.contains("notice kube_proxy: enp39s0, enp40s0: carries a default route"), "{status}");
    let script = node.fix(&["--dry-run"]).expect(0).out;
    assert!(script.contains("\n# notice: rp_filter: enp39s0, enp40s0"), "{script}");
    // When it changes it is reported anew, and by doctor with the file that cures it.
    net.set_sysctl("net/ipv4/conf/enp40s0/rp_filter", "2");
    let ran = node.fix(&[]).expect(0);
    assert!(ran.err.contains("enp39s0: carries a default route") && ran.err.lines().count() == 1, "{ran:?}");
    net.set_sysctl("net/ipv4/conf/enp40s0/rp_filter", "1");
    let root = tempfile::tempdir().unwrap();
    let doctor = |code| {
        let args = ["doctor", "--output", "json", "--root", root.path().to_str().unwrap()];
        node.fix(&args).expect(code).findings()
    };
    let found = doctor(1);
    assert_eq!((found.len(), &found[0]["cause"]), (1, &"uplink_unattended".into()), "{found:?}");
    let cure = found[0]["cure"].as_str().unwrap().replace("/etc/node-fixer", node.directory.path().to_str().unwrap());
    net.run("sh", &["-ec", &cure]);
    assert_eq!(node.fix(&["--output", "json"]).expect(0).commands().len(), 2);
    assert_eq!((rp(net, "enp39s0"), rp(net, "enp40s0")), ("2".into(), "2".into()));
    assert_eq!(doctor(0), Vec::<serde_json::Value>::new());
    assert_eq!(node.fix(&["--dry-run", "--output", "npd"]).expect(0).out, "the network is as declared\n");
}

/// What carries a default and is no uplink by its role has a cure as well, beside further entries that are there.
#[test]
fn a_strict_tunnel_with_a_default_gets_an_entry_of_its_own() {
    let node = Worker::new().with_loose_rp_filter();
    let net = &node.net;
    net.ip("link add tun.1 type vxlan id 5 dstport 4789");
    net.ip("link set tun.1 up");
    net.ip("route add default dev tun.1 metric 9");
    net.set_sysctl("net/ipv4/conf/tun.1/rp_filter", "1");
    let more = "rp_filter: {more: [{interfaces: ^lxc, value: off}]}\nkube_proxy: {mode: off}";
    node.config(more);
    let npd = |code| node.fix(&["--dry-run", "--output", "npd"]).expect(code).out;
    assert_eq!(npd(1), "tun.1 is strict and not managed\n");
    let root = tempfile::tempdir().unwrap();
    let ran = node.fix(&["doctor", "--output", "json", "--root", root.path().to_str().unwrap()]).expect(1);
    let cure = ran.findings()[0]["cure"].as_str().unwrap().to_owned();
    net.run("sh", &["-ec", &cure.replace("/etc/node-fixer", node.directory.path().to_str().unwrap())]);
    net.ip("link add lxc1 type bridge");
    net.set_sysctl("net/ipv4/conf/lxc1/rp_filter", "2");
    node.fix(&[]).expect(0);
    assert_eq!((rp(net, "tun.1"), rp(net, "lxc1")), ("2".into(), "0".into()), "{cure}");
    assert_eq!(npd(0), "the network is as declared\n");
    // Twins: what the operator switched off is nobody's business.
    net.set_sysctl("net/ipv4/conf/tun.1/rp_filter", "1");
    std::fs::remove_dir_all(node.directory.path().join("config.d")).unwrap();
    node.config("rp_filter: {mode: off}\nkube_proxy: {mode: off}");
    assert_eq!(npd(0), "the network is as declared\n");
}
