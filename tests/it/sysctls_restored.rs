//! What was there before comes back, however a run ends: killed between two writes, or where a read or a write fails.

use std::collections::BTreeMap;
use std::fs;

use crate::kit::{Netns, Ran, Worker};

const REST: &str = "kube_proxy: {mode: off}\nrp_filter: {mode: off}\ndefault_routes: {mode: off}\n";

/// A node without neighbours, where others have switched forwarding of eth1 on, and that of all is off.
fn node() -> Worker {
    let node = Worker::bare();
    for link in ["eth0", "eth1", "eth2"] {
        node.net.ip(&format!("link add {link} type bridge"));
    }
    for (key, value) in [
        ("net/ipv4/ip_forward", "0"),
        ("net/ipv4/conf/all/accept_redirects", "0"),
        ("net/ipv4/conf/eth1/forwarding", "1"),
        ("net/ipv6/conf/all/forwarding", "0"),
        ("net/ipv6/conf/eth1/forwarding", "1"),
        ("net/ipv6/conf/all/addr_gen_mode", "0"),
        ("net/ipv6/conf/eth1/addr_gen_mode", "1"),
        ("net/ipv6/conf/all/ignore_routes_with_linkdown", "0"),
        ("net/ipv6/conf/eth1/ignore_routes_with_linkdown", "1"),
    ] {
        node.net.set_sysctl(key, value);
    }
    node
}

fn values(net: &Netns) -> BTreeMap<String, String> {
    // Some can only be written.
    let all = "cd /proc/sys/net; grep -rs '' ipv4/conf ipv6/conf ipv4/ip_forward || true";
    let shown = net.run("sh", &["-c", all]);
    let lines = shown.lines().filter_map(|line| line.split_once(':'));
    lines.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// A run in which strace does this to system calls on this file.
fn disturbed(node: &Worker, file: &str, inject: &str) -> Ran {
    node.traced(&["-P", file, "-e", &format!("inject={inject}")], &[]).0
}

fn ledger(node: &Worker) -> String {
    let text = fs::read_to_string(node.directory.path().join("state/ledger.json")).unwrap();
    text.split_once("\"sysctls\":").unwrap().1.to_owned()
}

/// A key, and one that the kernel changes along with it and that has another value.
const CARRIED: [(&str, &str, &str); 5] = [
    ("net.ipv4.ip_forward", "1", "net/ipv4/conf/eth1/forwarding"),
    ("net.ipv4.conf.all.forwarding", "1", "net/ipv4/conf/all/accept_redirects"),
    ("net.ipv6.conf.all.forwarding", "1", "net/ipv6/conf/eth1/forwarding"),
    ("net.ipv6.conf.all.addr_gen_mode", "2", "net/ipv6/conf/eth1/addr_gen_mode"),
    ("net.ipv6.conf.all.ignore_routes_with_linkdown", "2", "net/ipv6/conf/eth1/ignore_routes_with_linkdown"),
];

/// What happens, and whether the run ends by it at once.
const DISTURBANCES: [(&str, bool); 5] = [
    ("write:signal=KILL:when=1", true),
    ("write:signal=TERM:when=1", true),
    ("write:error=EIO:when=1", false),
    ("openat:error=EMFILE:when=1", false),
    ("read:error=EIO:when=1", false),
];

#[test]
#[ignore = "needs strace; tests/run runs it"]
fn a_removal_that_was_cut_short_is_completed_by_the_next_run() {
    for (key, value, other) in CARRIED {
        for (inject, ends) in DISTURBANCES {
            let case = format!("{key}, {other}, {inject}");
            let node = node();
            let before = values(&node.net);
            node.config(&format!("{REST}sysctls: [{{key: {key}, value: {value}}}]"));
            node.fix(&[]).expect(0);
            assert_ne!(values(&node.net), before, "{case}");
            node.config(REST);
            let ran = disturbed(&node, &format!("/proc/sys/{other}"), inject);
            assert_eq!(ran.code, if ends { -1 } else { 1 }, "{case}: {ran:?}");
            node.fix(&[]).expect(0);
            assert_eq!(values(&node.net), before, "{case}");
            assert_eq!(ledger(&node), "[]}}", "{case}");
            assert_eq!(node.fix(&[]).expect(0).out, "", "{case}");
        }
    }
}

#[test]
#[ignore = "needs strace; tests/run runs it"]
fn what_could_not_be_read_when_it_was_declared_is_not_lost() {
    for (key, value, other) in CARRIED {
        for inject in ["read:error=EIO", "openat:error=EMFILE", "openat:error=EACCES"] {
            let case = format!("{key}, {other}, {inject}");
            let node = node();
            let before = values(&node.net);
            node.config(&format!("{REST}sysctls: [{{key: {key}, value: {value}}}]"));
            for _ in 0..2 {
                let ran = disturbed(&node, &format!("/proc/sys/{other}"), inject).expect(1);
                assert!(ran.err.contains("cannot read the sysctl"), "{case}: {ran:?}");
                assert_eq!(values(&node.net), before, "{case}: unknown is not nothing");
            }
            node.fix(&[]).expect(0);
            node.config(REST);
            for _ in 0..2 {
                let ran = disturbed(&node, &format!("/proc/sys/{other}"), inject).expect(1);
                assert!(ran.err.contains("cannot read the sysctl"), "{case}: {ran:?}");
            }
            node.fix(&[]).expect(0);
            assert_eq!(values(&node.net), before, "{case}");
        }
    }
}

/// `default` changes those interfaces that nobody has given a value: one that cannot be read might be one.
#[test]
#[ignore = "needs strace; tests/run runs it"]
fn default_is_not_written_where_an_interface_cannot_be_read() {
    let node = node();
    let before = values(&node.net);
    node.config(&format!("{REST}sysctls: [{{key: net.ipv4.conf.default.proxy_arp, value: 1}}]"));
    disturbed(&node, "/proc/sys/net/ipv4/conf/eth1/proxy_arp", "read:error=EIO").expect(1);
    assert_eq!(values(&node.net), before);
    node.fix(&[]).expect(0);
    assert_eq!(node.net.sysctl("net/ipv4/conf/eth1/proxy_arp"), "0");
}

/// A value that cannot be restored is named by each run, and stays in the ledger.
#[test]
#[ignore = "needs strace; tests/run runs it"]
fn what_cannot_be_restored_is_named_at_every_run() {
    let node = node();
    let before = values(&node.net);
    node.config(&format!("{REST}sysctls: [{{key: net.ipv4.ip_forward, value: 1}}]"));
    node.fix(&[]).expect(0);
    node.config(REST);
    for _ in 0..3 {
        let ran = disturbed(&node, "/proc/sys/net/ipv4/conf/eth1/forwarding", "write:error=EIO").expect(1);
        assert!(ran.err.contains("net.ipv4.conf.eth1.forwarding"), "{ran:?}");
        assert!(ledger(&node).contains("net/ipv4/conf/eth1/forwarding"));
    }
    node.fix(&[]).expect(0);
    assert_eq!(values(&node.net), before);
}

/// However many there are, the ledger is read once and written twice.
#[test]
#[ignore = "needs strace; tests/run runs it"]
fn the_ledger_is_written_once_for_many() {
    let node = Worker::bare();
    for number in 0..60 {
        node.net.ip(&format!("link add vh_{number} type bridge"));
    }
    let traced = |section: &str| {
        node.config(&format!("{REST}{section}"));
        let (ran, text) = node.traced(&["-e", "trace=openat,rename,renameat,renameat2"], &[]);
        ran.expect(0);
        let of = |call: &str| text.lines().filter(|it| it.starts_with(call) && it.contains("/ledger.json\"")).count();
        (of("openat"), of("rename"))
    };
    for round in 0..2 {
        let (read, written) = traced("sysctls: [{key: 'net.ipv4.conf.vh_*.proxy_arp', value: 1}]");
        assert!(read == 1 && (1..=2).contains(&written), "declared, {round}: read {read}, written {written}");
        assert_eq!(node.net.sysctl("net/ipv4/conf/vh_59/proxy_arp"), "1");
        let (read, written) = traced("");
        assert!(read == 1 && (1..=2).contains(&written), "taken back, {round}: read {read}, written {written}");
        assert_eq!(node.net.sysctl("net/ipv4/conf/vh_59/proxy_arp"), "0");
    }
}

/// An end while a file is written leaves nothing that the next run does not remove, whatever it has to do.
#[test]
#[ignore = "needs strace; tests/run runs it"]
fn temporary_files_go_with_the_next_run() {
    let node = node();
    let state = node.directory.path().join("state");
    let names = || {
        let names = fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.ends_with(".new")).collect::<Vec<_>>()
    };
    node.config(&format!("{REST}sysctls: [{{key: net.ipv4.ip_forward, value: 1}}]"));
    for name in ["ledger.json", "state.json"] {
        let new = state.join(format!("{name}.new"));
        assert_eq!(disturbed(&node, new.to_str().unwrap(), "rename:signal=KILL:when=1").code, -1, "{name}");
        assert_eq!(names(), [format!("{name}.new")]);
        node.config(REST);
        node.fix(&[]).expect(0);
        assert_eq!(names(), [""; 0], "{name}");
        node.config(&format!("{REST}sysctls: [{{key: net.ipv4.ip_forward, value: 1}}]"));
    }
    for call in ["write", "fsync"] {
        let new = state.join("ledger.json.new");
        disturbed(&node, new.to_str().unwrap(), &format!("{call}:error=EIO:when=1")).expect(1);
        assert_eq!(names(), [""; 0], "{call}");
    }
}

/// The kernel unlocks a file that is closed: nothing is asked of it that could fail when all is done.
#[test]
#[ignore = "needs strace; tests/run runs it"]
fn a_lock_that_cannot_be_unlocked_ends_no_run() {
    let node = node();
    node.config(REST);
    let lock = node.directory.path().join("state/lock");
    node.fix(&[]).expect(0);
    disturbed(&node, lock.to_str().unwrap(), "flock:error=EIO:when=2").expect(0);
    let ran = disturbed(&node, lock.to_str().unwrap(), "flock:error=ENOLCK:when=1").expect(1);
    assert!(ran.err.contains("cannot lock"), "{ran:?}");
}
