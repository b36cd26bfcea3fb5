//! Declared addresses and bridges.

use std::fs;

use serde_json::Value;

use crate::kit::{Netns, Ran, Worker, finish};

/// The addresses of an interface with their prefix lengths, as ip shows them.
fn addresses(node: &Worker, dev: &str) -> Vec<String> {
    let shown = node.net.ip_json(&format!("addr show dev {dev}"));
    let all = shown[0]["addr_info"].as_array().unwrap().iter();
    all.map(|it| format!("{}/{}", it["local"].as_str().unwrap(), it["prefixlen"])).collect()
}

fn has(node: &Worker, dev: &str, address: &str) -> bool {
    addresses(node, dev).iter().any(|it| it == address)
}

fn statuses(ran: &Ran) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let changes = ran.json()["changes"].as_array().unwrap().clone();
    changes.iter().map(|change| (text(&change["command"]), text(&change["status"]))).collect()
}

#[test]
fn they_are_made_kept_and_go_with_their_declaration() {
    let node = Worker::new().with_loose_rp_filter();
    let before = node.net.ip("addr");
    node.config(
        "kube_proxy: {mode: off}
addresses:
  - {dev: lo, address: 127.0.1.1-127.0.1.32/32}
  - {dev: lo, address: 10.9.0.0/30, each: true}
  - {dev: eth1, address: 'fd09::1/64'}
  - {dev: eth1, address: 10.8.0.1/24}",
    );
    assert_eq!(node.fix(&["--output", "json"]).expect(0).commands().len(), 32 + 4 + 2);
    for address in ["127.0.1.1/32", "127.0.1.32/32", "10.9.0.0/32", "10.9.0.3/32"] {
        assert!(has(&node, "lo", address), "{address}");
    }
    assert!(has(&node, "eth1", "fd09::1/64") && has(&node, "eth1", "10.8.0.1/24"));
    assert!(node.net.pings("127.0.1.7", "127.0.1.1"), "an alias answers");
    assert_eq!(node.fix(&[]).expect(0).out, "", "a second run finds nothing to do");

    let made = node.net.ip("addr");
    node.net.ip("addr del 127.0.1.7/32 dev lo");
    node.net.ip("-6 addr del fd09::1/64 dev eth1");
    assert_eq!(node.fix(&["--output", "json"]).expect(0).commands().len(), 2);
    assert_eq!(node.net.ip("addr").lines().count(), made.lines().count(), "what was removed comes back");

    node.config("kube_proxy: {mode: off}\naddresses: [{dev: lo, address: 127.0.1.2}]");
    assert_eq!(node.fix(&["--output", "json"]).expect(0).commands().len(), 31 + 4 + 2);
    assert!(has(&node, "lo", "127.0.1.2/32"), "what is still declared stays");
    node.config("kube_proxy: {mode: off}");
    node.fix(&[]).expect(0);
    assert_eq!(node.net.ip("addr"), before, "what is no longer declared is gone, and nothing else");
}

#[test]
fn those_of_others_are_used_and_never_deleted() {
    let node = Worker::new().with_loose_rp_filter();
    node.net.ip("addr add 127.0.1.1/32 dev lo");
    node.config("addresses: [{dev: lo, address: 127.0.1.1-127.0.1.2}]");
    assert_eq!(node.fix(&["--output", "json"]).expect(0).commands(), ["ip addr add 127.0.1.2/32 dev lo"]);
    // Somebody takes ours away, and makes one of their own in its place.
    node.net.ip("addr del 127.0.1.2/32 dev lo");
    node.net.ip("addr add 127.0.1.2/32 dev lo");
    node.config("");
    assert_eq!(node.fix(&[]).expect(0).out, "");
    assert!(has(&node, "lo", "127.0.1.1/32") && has(&node, "lo", "127.0.1.2/32"));
}

#[test]
fn ours_go_also_when_all_that_was_remembered_is_lost() {
    let node = Worker::new().with_loose_rp_filter();
    node.config("addresses: [{dev: lo, address: 127.0.1.1}]\nbridges: [{name: br0}]");
    node.fix(&[]).expect(0);
    fs::remove_dir_all(node.directory.path().join("state")).unwrap();
    node.config("");
    assert_eq!(node.fix(&["--output", "json"]).expect(0).commands().len(), 2, "the marks tell whose they are");
    assert!(!has(&node, "lo", "127.0.1.1/32"));
}

/// What older kernels, which keep no mark of an address, are judged by.
#[test]
#[ignore = "needs python3; tests/run runs it"]
fn the_kernel_reports_when_an_address_was_added() {
    let node = Worker::new().with_loose_rp_filter();
    node.config("addresses: [{dev: lo, address: 127.0.1.1}]");
    node.fix(&[]).expect(0);
    let ledger = fs::read_to_string(node.directory.path().join("state/ledger.json")).unwrap();
    let ledger: Value = serde_json::from_str(&ledger).unwrap();
    let entry = &ledger["memory"]["addresses"][0];
    assert_eq!((&entry["dev"], &entry["address"]), (&"lo".into(), &"127.0.1.1".into()), "{ledger}");
    let noted = entry["added"]["secs"].as_f64().unwrap() + entry["added"]["nanos"].as_f64().unwrap() / 1e9;
    // In the words of ip(8) there is no such time. The kernel's own, in hundredths of a second:
    let created = created_of(&node.net, "127.0.1.1");
    assert!((noted - created).abs() < 5.0, "noted {noted}, added {created}");
}

/// The time at which an IPv4 address was added, in seconds since the boot, read from the kernel by Python.
fn created_of(net: &Netns, address: &str) -> f64 {
    let script = "
import socket, struct, sys
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
s.send(struct.pack('=LHHLLB7x', 24, 22, 0x301, 1, 0, socket.AF_INET))
data = s.recv(1 << 20)
while data:
    length, kind = struct.unpack_from('=LH', data)
    rest, found, stamp = data[24:length], None, None
    while kind == 20 and len(rest) >= 4:
        size, what = struct.unpack_from('=HH', rest)
        if what == 2: found = socket.inet_ntoa(rest[4:8])
        if what == 6: stamp = struct.unpack_from('=LLLL', rest, 4)[2]
        rest = rest[(size + 3) & ~3:]
    if found == sys.argv[1]: print(stamp / 100)
    data = data[(length + 3) & ~3:]
";
    net.run("python3", &["-c", script, address]).trim().parse().unwrap()
}

#[test]
fn an_interface_that_is_not_there_is_waited_for() {
    let node = Worker::new().with_loose_rp_filter();
    node.config("kube_proxy: {mode: off}\naddresses: [{dev: eth7, address: 10.7.0.1-10.7.0.9/24}]");
    let ran = node.fix(&["--output", "json"]).expect(1);
    assert_eq!(ran.json()["blocked"].as_array().unwrap().len(), 1, "{ran:?}");
    node.net.ip("link add eth7 type bridge");
    assert_eq!(node.fix(&["--output", "json"]).expect(0).commands().len(), 9);
}

#[test]
fn the_next_address_of_a_subnet_does_not_go_with_ours() {
    let node = promoting("0");
    node.config("addresses: [{dev: eth1, address: 10.8.0.1/24}]");
    node.fix(&[]).expect(0);
    node.net.ip("addr add 10.8.0.2/24 dev eth1");
    node.net.ip("route add 203.0.113.0/24 via 10.8.0.77");
    node.config("kube_proxy: {mode: off}");
    node.fix(&[]).expect(0);
    assert!(has(&node, "eth1", "10.8.0.2/24") && !has(&node, "eth1", "10.8.0.1/24"));
    assert!(node.net.ip("route").contains("203.0.113.0/24"));
}

/// A node that promotes the next address of a subnet, or does not.
fn promoting(value: &str) -> Worker {
    let node = Worker::new().with_loose_rp_filter();
    for whose in ["all", "default", "eth0", "eth1"] {
        node.net.set_sysctl(&format!("net/ipv4/conf/{whose}/promote_secondaries"), value);
    }
    node
}

/// What an address goes to within its subnet, by the run and by the script, and what others have there.
#[test]
fn an_address_changes_within_its_subnet() {
    let on = |dev: &str, wish: &str| format!("kube_proxy: {{mode: off}}\naddresses: [{{dev: {dev}, address: {wish}}}]");
    let bridge = |wish: &str| format!("kube_proxy: {{mode: off}}\nbridges: [{{name: br0, addresses: [{wish}]}}]");
    for (dev, first, then, gone, there) in [
        ("eth1", on("eth1", "10.8.0.1/24"), on("eth1", "10.8.0.2/24"), "10.8.0.1", &["10.8.0.2"][..]),
        (
            "eth1",
            on("eth1", "10.8.0.1-10.8.0.3/24"),
            on("eth1", "10.8.0.2-10.8.0.4/24"),
            "10.8.0.1",
            &["10.8.0.2", "10.8.0.3", "10.8.0.4"],
        ),
        ("br0", bridge("10.8.0.1/24"), bridge("10.8.0.254/24"), "10.8.0.1", &["10.8.0.254"]),
    ] {
        // Of others: none, one behind ours, one before ours.
        for (promotes, others) in [("0", ""), ("0", "behind"), ("0", "before"), ("1", "behind"), ("1", "")] {
            let ends = [false, true].map(|by_script| {
                let case = format!("{then}, promotes {promotes}, others {others}, by script {by_script}");
                let node = promoting(promotes);
                let add = |when| {
                    if others == when {
                        drop(node.net.ip(&format!("addr add 10.8.0.9/24 dev {dev}")))
                    }
                };
                node.config(if dev == "br0" { "bridges: [{name: br0}]" } else { "" });
                node.fix(&[]).expect(0);
                add("before");
                node.config(&first);
                node.fix(&[]).expect(0);
                add("behind");
                node.net.ip(&format!("route add 203.0.113.0/24 via 10.8.0.77 dev {dev}"));
                node.config(&then);
                if by_script {
                    let script = node.fix(&["--dry-run"]).expect(0).out;
                    node.net.run("sh", &["-e", "-c", &script]);
                } else {
                    node.fix(&[]).expect(0);
                }
                assert!(!has(&node, dev, &format!("{gone}/24")), "{case}");
                let others = if others.is_empty() { &[][..] } else { &["10.8.0.9"] };
                for address in there.iter().chain(others) {
                    assert!(has(&node, dev, &format!("{address}/24")), "{case}: {address}");
                }
                assert!(node.net.ip("route").contains("203.0.113.0/24"), "{case}");
                let promote = format!("net/ipv4/conf/{dev}/promote_secondaries");
                assert_eq!(node.net.sysctl(&promote), promotes, "{case}");
                assert_eq!(node.fix(&[]).expect(0).out, "", "{case}");
                [node.net.ip("-o -4 addr"), node.net.ip("route")]
            });
            assert_eq!(ends[0], ends[1], "{then}, promotes {promotes}, others {others}");
        }
    }
}

#[test]
fn promote_secondaries_is_left_as_it_is_declared() {
    for by_script in [false, true] {
        for (before, declared) in [("0", "1"), ("1", "0")] {
            let node = promoting(before);
            let wish =
                |address: &str| format!("kube_proxy: {{mode: off}}\naddresses: [{{dev: eth1, address: {address}}}]");
            node.config(&wish("10.8.0.1/24"));
            node.fix(&[]).expect(0);
            node.net.set_sysctl("net/ipv4/conf/all/promote_secondaries", "0");
            let sysctl = format!("sysctls: [{{key: net.ipv4.conf.e*.promote_secondaries, value: {declared}}}]");
            node.config(&format!("{}\n{sysctl}", wish("10.8.0.2/24")));
            if by_script {
                let script = node.fix(&["--dry-run"]).expect(0).out;
                node.net.run("sh", &["-e", "-c", &script]);
            }
            let ran = node.fix(&["--output", "json"]).expect(0);
            assert!(!by_script || ran.commands().is_empty(), "{ran:?}");
            assert!(has(&node, "eth1", "10.8.0.2/24") && !has(&node, "eth1", "10.8.0.1/24"), "{declared}, {by_script}");
            assert_eq!(node.net.sysctl("net/ipv4/conf/eth1/promote_secondaries"), declared, "{by_script}");
        }
    }
}

/// Ended by SIGKILL before each message to the kernel, or refused it.
#[test]
#[ignore = "needs strace; tests/run runs it"]
fn an_end_on_the_way_loses_no_address_of_the_subnet() {
    let node = promoting("0");
    let wish =
        |addresses: &str| format!("kube_proxy: {{mode: off}}\nbridges: [{{name: br0, addresses: [{addresses}]}}]");
    // What goes last is refused at some time: the first address of the subnet is another by then, and is taken back.
    for (first, then) in [
        ("10.8.0.1/24, 10.9.0.1/24", "10.8.0.2/24"),
        ("10.8.0.1/24, 10.8.0.2/24, 10.9.0.1/24", "10.8.0.2/24, 10.8.0.3/24"),
    ] {
        for fault in ["signal=SIGKILL", "error=EIO"] {
            for number in 1.. {
                let case = format!("{then}, {fault} at {number}");
                assert!(number < 100, "it never ends");
                node.config("kube_proxy: {mode: off}");
                node.fix(&[]).expect(0);
                node.config(&wish(first));
                node.fix(&[]).expect(0);
                node.config(&wish(then));
                let inject = format!("inject=sendto:{fault}:when={number}");
                let (ran, trace) = node.traced(&["-e", "trace=sendto", "-e", &inject], &[]);
                let whole = ran.code == 0 && !trace.contains("INJECTED");
                assert!(has(&node, "br0", "10.8.0.1/24") || has(&node, "br0", "10.8.0.2/24"), "{case}: none");
                assert!(!first.contains("0.2") || has(&node, "br0", "10.8.0.2/24"), "{case}: not what stays");
                assert_eq!(node.net.sysctl("net/ipv4/conf/br0/promote_secondaries"), "0", "{case}");
                node.fix(&[]).expect(0);
                let mut ends = addresses(&node, "br0");
                ends.retain(|address| !address.contains(':'));
                assert_eq!(ends.join(", "), then, "{case}");
                if whole {
                    break;
                }
            }
        }
    }
}

#[test]
fn what_is_refused_neither_undoes_nor_flaps_the_rest() {
    let node = Worker::new().with_loose_rp_filter().without_default(2);
    node.net.set_sysctl("net/ipv6/conf/eth1/disable_ipv6", "1");
    node.config("kube_proxy: {mode: off}\naddresses: [{dev: eth0, address: 10.8.0.1-10.8.0.2/32}, {dev: eth1, address: 'fd09::1/64'}]");
    let ran = node.fix(&["--output", "json"]).expect(1);
    let failed = "ip addr add fd09::1/64 dev eth1";
    let expected = [
        ("ip addr add 10.8.0.1/32 dev eth0", "applied"),
        ("ip addr add 10.8.0.2/32 dev eth0", "applied"),
        (failed, "failed"),
        ("ip route add default via 10.0.1.1 dev eth1 table 2 proto 170 scope global metric 4294967295", "applied"),
    ];
    assert_eq!(statuses(&ran), expected.map(|(command, status)| (command.to_owned(), status.to_owned())));
    let before = node.net.ip("addr");
    let again = node.fix(&["--output", "json"]).expect(1);
    assert_eq!(statuses(&again), [(failed.to_owned(), "failed".to_owned())]);
    assert_eq!(node.net.ip("addr"), before);
    // What is undeclared beside it goes all the same.
    node.config(
        "kube_proxy: {mode: off}\naddresses: [{dev: eth0, address: 10.8.0.1/32}, {dev: eth1, address: 'fd09::1/64'}]",
    );
    node.fix(&[]).expect(1);
    assert!(has(&node, "eth0", "10.8.0.1/32") && !has(&node, "eth0", "10.8.0.2/32"));
}

#[test]
fn declared_rules_and_routes_stand_alone() {
    let node = Worker::new().with_loose_rp_filter();
    node.config("routes: [{to: 10.9.0.0/16, via: 10.0.0.1}]");
    node.fix(&[]).expect(0);
    node.config(
        "kube_proxy: {mode: off}\nroutes: [{to: 10.9.0.0/16, via: 10.0.1.1}, {to: 10.7.0.0/16, via: 203.0.113.9, dev: eth1}, {to: 10.8.0.0/16, via: 10.0.0.1}]",
    );
    let ran = node.fix(&["--output", "json"]).expect(1);
    let statuses: Vec<_> = statuses(&ran).into_iter().map(|(_, status)| status).collect();
    assert_eq!(statuses, ["applied", "failed", "applied"], "{ran:?}");
    let before = node.net.state();
    let again = node.fix(&["--output", "json"]).expect(1);
    assert_eq!(again.commands().len(), 1, "{again:?}");
    assert_eq!(node.net.state(), before);
}

#[test]
fn a_bridge_its_addresses_and_its_routes_are_made_together_or_not_at_all() {
    let declare = |node: &Worker, v6: &str| {
        node.config(&format!(
            "kube_proxy: {{mode: off}}\nbridges: [{{name: br-vms, addresses: [10.100.0.1/16{v6}]}}]\n\
             routes: [{{to: 10.101.0.0/16, via: 10.100.0.2, dev: br-vms}}, {{to: 10.102.0.0/16, via: 10.0.0.1}}]"
        ));
    };
    let node = || {
        let node = Worker::new().with_loose_rp_filter();
        for all in ["all", "default"] {
            node.net.set_sysctl(&format!("net/ipv6/conf/{all}/disable_ipv6"), "1");
        }
        node
    };
    let (refused, by_run, by_script) = (node(), node(), node());
    declare(&refused, ", 'fd64::1/64'");
    for _ in 0..2 {
        let ran = refused.fix(&["--output", "json"]).expect(1);
        let of = |command: &str| {
            let of_it = |it: &&(String, String)| it.0.contains(command);
            statuses(&ran).iter().find(of_it).map(|it| it.1.clone())
        };
        assert_eq!(of("fd64::1"), Some("failed".into()), "{ran:?}");
        assert_eq!(of("ip link add name br-vms"), Some("skipped".into()), "{ran:?}");
        assert!(!refused.net.ip("link").contains("br-vms"), "{ran:?}");
        assert!(refused.net.ip("route").contains("10.102.0.0/16"), "what stands alone stays: {ran:?}");
    }
    // A dry run plans them together as well: its script leaves the node as a run does.
    for node in [&by_run, &by_script] {
        declare(node, "");
    }
    let script = by_script.fix(&["--dry-run"]).expect(0).out;
    assert!(!script.contains("# blocked"), "{script}");
    by_script.net.run("sh", &["-ec", &script]);
    by_run.fix(&[]).expect(0);
    assert_eq!(by_script.net.state(), by_run.net.state());
    assert_eq!(by_run.fix(&[]).expect(0).out, "");
    by_run.config("kube_proxy: {mode: off}");
    by_run.fix(&[]).expect(0);
    assert!(!by_run.net.ip("link").contains("br-vms"));
}

#[test]
fn a_bridge_is_made_kept_and_goes_with_its_declaration() {
    let node = Worker::new().with_loose_rp_filter();
    let before = node.net.ip("addr");
    node.config("bridges: [{name: br-vms, addresses: [10.100.0.1/16, 'fd64::1/64'], mtu: 1400, stp: true}]");
    assert_eq!(node.fix(&["--output", "json"]).expect(0).commands().len(), 3);
    let bridge = node.net.ip_json("-d link show br-vms")[0].clone();
    assert_eq!((&bridge["mtu"], &bridge["ifalias"]), (&1400.into(), &"node-fixer".into()), "{bridge}");
    assert_eq!(bridge["linkinfo"]["info_data"]["stp_state"], 1);
    assert!(bridge["flags"].as_array().unwrap().contains(&"UP".into()));
    assert!(has(&node, "br-vms", "10.100.0.1/16") && has(&node, "br-vms", "fd64::1/64"));
    assert_eq!(node.fix(&[]).expect(0).out, "");
    node.net.ip("link set br-vms down mtu 1500");
    node.fix(&[]).expect(0);
    assert_eq!(node.net.ip_json("link show br-vms")[0]["mtu"], 1400);
    node.net.ip("link del br-vms");
    node.fix(&[]).expect(0);
    assert!(has(&node, "br-vms", "10.100.0.1/16"));
    node.config("");
    let ran = node.fix(&["--output", "json"]).expect(0);
    assert_eq!(ran.commands().last().unwrap(), "ip link del dev br-vms type bridge", "after its addresses: {ran:?}");
    assert_eq!(node.net.ip("addr"), before);
}

#[test]
fn what_others_have_of_that_name_is_not_touched() {
    let node = Worker::new().with_loose_rp_filter();
    node.net.ip("link add br0 type bridge");
    node.net.ip("link set br0 up");
    node.config("bridges: [{name: br0, addresses: [10.100.0.1/16]}, {name: eth1}]");
    let ran = node.fix(&["--output", "json"]).expect(1);
    assert_eq!(ran.commands(), ["ip addr add 10.100.0.1/16 dev br0"], "used as it is");
    let because = ran.json()["blocked"][0]["because"].as_str().unwrap().to_owned();
    assert!(because.contains("eth1 exists and is not a bridge"), "{because}");
    node.config("");
    node.fix(&[]).expect(0);
    assert!(node.net.ip("link show br0").contains("br0") && addresses(&node, "br0").iter().all(|it| it.contains(':')));
}

#[test]
fn the_addresses_of_a_refused_bridge_go_nowhere() {
    let node = Worker::new().with_loose_rp_filter();
    let before = node.net.ip("addr");
    node.config("kube_proxy: {mode: off}\nbridges: [{name: eth1, addresses: [10.100.0.1/16]}]");
    let ran = node.fix(&["--output", "json"]).expect(1);
    assert_eq!(ran.commands(), [""; 0], "{ran:?}");
    assert_eq!(node.net.ip("addr"), before);
}

#[test]
fn what_others_have_put_on_a_bridge_keeps_it() {
    let node = Worker::new().with_loose_rp_filter();
    node.config("bridges: [{name: br0, addresses: [10.100.0.1/16]}]");
    node.fix(&[]).expect(0);
    for (add, del) in [
        ("addr add 10.77.0.1/24 dev br0", "addr del 10.77.0.1/24 dev br0"),
        ("link add on-br0 link br0 type macvlan", "link del on-br0"),
    ] {
        node.net.ip(add);
        node.config("");
        let ran = node.fix(&["--output", "json"]).expect(1);
        let because = ran.json()["blocked"][0]["because"].as_str().unwrap().to_owned();
        assert!(
            because.contains("10.77.0.1 of another owner") || because.contains("the interface on-br0"),
            "{because}"
        );
        node.net.ip("link show br0");
        node.net.ip(del);
        node.config("bridges: [{name: br0, addresses: [10.100.0.1/16]}]");
        node.fix(&[]).expect(0);
    }
    // Ports only leave it.
    node.net.ip("link set eth1 master br0");
    node.config("");
    node.fix(&[]).expect(0);
    assert!(node.net.ip_json("link show eth1")[0]["master"].is_null());
}

#[test]
fn a_declared_address_does_not_go_with_the_first_of_its_subnet() {
    for by_script in [false, true] {
        let node = Worker::new().with_loose_rp_filter();
        for whose in ["all", "default", "eth1"] {
            node.net.set_sysctl(&format!("net/ipv4/conf/{whose}/promote_secondaries"), "0");
        }
        node.config("kube_proxy: {mode: off}\naddresses: [{dev: eth1, address: 10.8.0.1-10.8.0.3/24}]");
        node.fix(&[]).expect(0);
        node.config("kube_proxy: {mode: off}\naddresses: [{dev: eth1, address: 10.8.0.2/24}]");
        if by_script {
            let script = node.fix(&["--dry-run"]).expect(0).out;
            node.net.run("sh", &["-e", "-c", &script]);
        } else {
            assert_eq!(node.fix(&["--output", "json"]).expect(0).commands().len(), 2);
        }
        assert!(has(&node, "eth1", "10.8.0.2/24") && !has(&node, "eth1", "10.8.0.1/24"), "by script: {by_script}");
        assert!(!has(&node, "eth1", "10.8.0.3/24"));
    }
}

#[test]
fn the_ledger_of_another_network_namespace_is_not_overwritten() {
    let (node, other) = (Worker::new().with_loose_rp_filter(), Worker::new().with_loose_rp_filter());
    node.config("addresses: [{dev: lo, address: 127.0.1.1}]");
    node.fix(&[]).expect(0);
    let ledger = node.directory.path().join("state/ledger.json");
    let before = fs::read_to_string(&ledger).unwrap();
    let ran = finish(other.net.output(&mut node.command(&[]))).expect(1);
    assert!(ran.err.contains("another network namespace; choose another --state-dir"), "{ran:?}");
    assert_eq!(fs::read_to_string(&ledger).unwrap(), before);

    // What cannot be read is set aside.
    fs::write(&ledger, "{").unwrap();
    fs::remove_file(node.directory.path().join("state/state.json")).unwrap();
    node.config("addresses: [{dev: lo, address: 127.0.1.1-127.0.1.2}]");
    node.fix(&[]).expect(0);
    assert_eq!(fs::read_to_string(node.directory.path().join("state/ledger.json.unreadable")).unwrap(), "{");
}

#[test]
fn many_addresses_are_no_burden() {
    let node = Worker::new().with_loose_rp_filter();
    node.config("addresses: [{dev: lo, address: 10.64.0.0/19, each: true}]");
    assert_eq!(node.fix(&["--output", "json"]).expect(0).commands().len(), 8192);
    assert_eq!(node.fix(&[]).expect(0).out, "");
    node.config("");
    assert_eq!(node.fix(&["--output", "json"]).expect(0).commands().len(), 8192);
}

#[test]
fn a_sysctl_that_does_not_last_has_failed_and_leaves_the_others() {
    let node = Worker::new().with_loose_rp_filter();
    // Two names of one value: what is set by the first does not last.
    let keys = ["conf/eth0/proxy_arp", "neigh/eth0/unres_qlen_bytes", "neigh/eth0/unres_qlen"];
    let values = || keys.map(|key| node.net.sysctl(&format!("net/ipv4/{key}")));
    let wishes = keys.iter().zip([1, 70_001, 5]).map(|(key, value)| format!("{{key: net/ipv4/{key}, value: {value}}}"));
    node.config(&format!("sysctls: [{}]", wishes.collect::<Vec<_>>().join(", ")));
    let ran = node.fix(&["--output", "json"]).expect(1);
    assert!(statuses(&ran).iter().any(|(_, status)| status == "failed"), "{ran:?}");
    assert_eq!(ran.commands().len(), keys.len(), "each is tried once: {ran:?}");
    assert_eq!(values()[0], "1", "{ran:?}");
}
