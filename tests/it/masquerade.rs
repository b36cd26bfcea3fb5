//! Declared masquerade: the one nftables table of ours. (What others have beside it: forward.rs.)

use std::net::{IpAddr, TcpListener, TcpStream};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use crate::kit::{self, Ends, Netns, Ran, Worker, until};

pub const BRIDGE: &str = "kube_proxy: {mode: off}
bridges: [{name: br-vms, addresses: [10.100.0.1/16, 'fd64::1/64']}]";
pub const BOTH: &str = "masquerade: [{source: 10.100.0.0/16, except_out: br-vms}, {source: 'fd64::/64', out: eth0}]";

/// A node whose bridge has a VM behind it, of which the router knows nothing.
pub fn vm_host() -> (Worker, Netns) {
    let node = Worker::new().with_loose_rp_filter();
    node.config(BRIDGE);
    node.fix(&[]).expect(0);
    let vm = Netns::new();
    for path in ["ipv6/conf/all/accept_dad", "ipv6/conf/default/accept_dad"] {
        vm.set_sysctl(&format!("net/{path}"), "0");
    }
    node.net.ip(&format!("link add vh_1 type veth peer name eth0 netns {}", vm.path()));
    node.net.ip("link set vh_1 master br-vms up");
    vm.ip("addr add 10.100.0.2/16 dev eth0");
    vm.ip("addr add fd64::2/64 dev eth0");
    vm.ip("link set eth0 up");
    vm.ip("route add default via 10.100.0.1");
    vm.ip("-6 route add default via fd64::1");
    (node, vm)
}

/// The address that a server beyond the router sees when the VM connects to it; `None` if it does not get through.
pub fn seen_by_server(node: &Worker, vm: &Netns, server: &str) -> Option<IpAddr> {
    let server: IpAddr = server.parse().unwrap();
    let listener = node.router.enter(|| TcpListener::bind((server, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    vm.enter(|| TcpStream::connect_timeout(&address, Duration::from_millis(1500))).ok()?;
    Some(listener.accept().unwrap().1.ip())
}

pub fn nft(node: &Worker, commands: &str) -> String {
    node.net.run("nft", &[commands])
}

/// What nft tells of our table, without the handles, which count on; nothing if there is none.
fn table(node: &Worker) -> Option<Vec<Value>> {
    let all: Value = serde_json::from_str(&node.net.run("nft", &["-j", "list ruleset"])).unwrap();
    all["nftables"]
        .as_array()
        .unwrap()
        .iter()
        .find(|it| (&it["table"]["family"], &it["table"]["name"]) == (&"inet".into(), &"node_fixer".into()))?;
    let listed: Value = serde_json::from_str(&node.net.run("nft", &["-j", "list table inet node_fixer"])).unwrap();
    let mut objects = listed["nftables"].as_array().unwrap()[1..].to_vec();
    for object in objects.iter_mut().flat_map(|object| object.as_object_mut().unwrap().values_mut()) {
        object.as_object_mut().unwrap().remove("handle");
    }
    Some(objects)
}

fn blocked(ran: &Ran) -> Vec<String> {
    let text = |it: &Value| format!("{}: {}", it["want"].as_str().unwrap(), it["because"].as_str().unwrap());
    ran.json()["blocked"].as_array().unwrap().iter().map(text).collect()
}

#[test]
fn a_vm_reaches_a_server_beyond_the_host_which_sees_the_hosts_address() {
    let (node, vm) = vm_host();
    assert_eq!(seen_by_server(&node, &vm, "192.0.2.1"), None, "the router knows no way back: the test is wrong");
    assert_eq!(seen_by_server(&node, &vm, "2001:db8::1"), None);
    node.config(&format!("{BRIDGE}\n{BOTH}"));
    assert_eq!(node.fix(&["--output", "json"]).expect(0).commands().len(), 1);
    assert_eq!(seen_by_server(&node, &vm, "192.0.2.1"), Some("10.0.0.10".parse().unwrap()));
    assert_eq!(seen_by_server(&node, &vm, "2001:db8::1"), Some("fd00:0::10".parse().unwrap()));
    assert_eq!(node.fix(&[]).expect(0).out, "", "a second run finds nothing to do");

    let made = table(&node).unwrap();
    assert_eq!(made.len(), 4, "a table, a chain and two rules: {made:?}");
    assert_eq!(made[1]["chain"]["hook"], "postrouting");
    assert_eq!(made[2]["rule"]["expr"][1]["match"]["right"], "br-vms", "{made:?}");

    node.config(BRIDGE);
    assert_eq!(node.fix(&["--output", "json"]).expect(0).commands(), ["nft delete table inet node_fixer"]);
    assert_eq!(table(&node), None);
    assert_eq!(seen_by_server(&node, &vm, "192.0.2.1"), None);
    assert_eq!(node.fix(&[]).expect(0).out, "");
}

#[test]
#[ignore = "needs iptables; tests/run runs it"]
fn whatever_is_done_to_it_is_repaired_and_what_others_have_stays() {
    let (node, _vm) = vm_host();
    for command in [
        "iptables-nft -t nat -A POSTROUTING -s 10.200.0.0/16 -j MASQUERADE",
        "iptables-nft -A FORWARD -s 10.200.0.0/16 -j DROP",
        "ip6tables-nft -A INPUT -i eth7 -j ACCEPT",
    ] {
        let words: Vec<&str> = command.split(' ').collect();
        node.net.run(words[0], &words[1..]);
    }
    nft(&node, "add table inet node_fixer2; add chain inet node_fixer2 postrouting; add table ip node_fixer");
    nft(&node, "add set inet node_fixer2 s { type ipv4_addr; flags interval; elements = { 10.0.0.0/8 } }");
    let ruleset = || node.net.run("nft", &["-a", "list", "ruleset"]);
    let others = ruleset();
    node.config(&format!("{BRIDGE}\n{BOTH}"));
    node.fix(&[]).expect(0);
    let made = table(&node);
    for damage in [
        "delete table inet node_fixer",
        "flush table inet node_fixer",
        "flush chain inet node_fixer postrouting",
        "add rule inet node_fixer postrouting accept",
        "insert rule inet node_fixer postrouting ip saddr 10.100.0.9 return comment \"node-fixer\"",
        "delete rule inet node_fixer postrouting handle 2",
        "replace rule inet node_fixer postrouting handle 2 ip saddr 10.99.0.0/16 masquerade",
        "add chain inet node_fixer more { type filter hook forward priority 0; policy drop; }",
        "add chain inet node_fixer more",
        "add table inet node_fixer { flags dormant; }",
        "chain inet node_fixer postrouting { policy drop; }",
        "delete table inet node_fixer; add table inet node_fixer; add chain inet node_fixer postrouting { type nat hook postrouting priority 99; }",
        "delete table inet node_fixer; add table inet node_fixer; add chain inet node_fixer postrouting { type filter hook postrouting priority 100; }",
        "delete table inet node_fixer; add table inet node_fixer; add chain inet node_fixer postrouting",
    ] {
        nft(&node, damage);
        assert_ne!(table(&node), made, "{damage}: the test is wrong");
        let ran = node.fix(&["--output", "json"]).expect(0);
        assert_eq!((ran.commands().len(), ran.json()["converged"].clone()), (1, true.into()), "{damage}: {ran:?}");
        assert_eq!(table(&node), made, "{damage}");
    }
    // A changed declaration is another table, in one transaction.
    node.config(&format!("{BRIDGE}\nmasquerade: [{{source: 10.100.0.0/17}}]"));
    let ran = node.fix(&["--output", "json"]).expect(0);
    assert_eq!(ran.json()["changes"][0]["action"], "update", "{ran:?}");
    assert_eq!(table(&node).unwrap().len(), 3);
    node.config(BRIDGE);
    node.fix(&[]).expect(0);
    assert_eq!(ruleset(), others, "nothing of others has changed, down to the handles");
}

/// Other rules that look like ours, down to the comment, if it has one.
#[test]
fn a_rule_that_says_something_else_is_repaired() {
    let (node, _vm) = vm_host();
    node.config(&format!("{BRIDGE}\n{BOTH}"));
    node.fix(&[]).expect(0);
    let made = table(&node);
    for other in [
        "ip saddr 10.99.0.0/16 oifname != br-vms masquerade",
        "ip saddr 10.100.0.0/17 oifname != br-vms masquerade",
        "ip saddr != 10.100.0.0/16 oifname != br-vms masquerade",
        "ip saddr & 255.255.0.0 ^ 0.1.0.0 == 10.100.0.0 oifname != br-vms masquerade",
        "ip daddr 10.100.0.0/16 oifname != br-vms masquerade",
        "oifname != br-vms masquerade",
        "ip saddr 10.100.0.0/16 masquerade",
        "ip saddr 10.100.0.0/16 oifname br-vms masquerade",
        "ip saddr 10.100.0.0/16 oifname != br-vms* masquerade",
        "ip saddr 10.100.0.0/16 iifname != br-vms masquerade",
        "ip saddr 10.100.0.0/16 oifname != { br-vms, eth9 } masquerade",
        "ip saddr 10.100.0.0/16 oifname != br-vms tcp dport 22 masquerade",
        "ip saddr 10.100.0.0/16 oifname != br-vms meta l4proto tcp masquerade to :1024-2048",
        "ip saddr 10.100.0.0/16 oifname != br-vms limit rate 1/second masquerade",
        "ip saddr 10.100.0.0/16 oifname != br-vms masquerade random",
        "ip saddr 10.100.0.0/16 oifname != br-vms meta mark set 1 masquerade",
        "ip saddr 10.100.0.0/16 oifname != br-vms ct mark set 1 masquerade",
        "ip saddr 10.100.0.0/16 oifname != br-vms ip ttl set 9 masquerade",
        "ip saddr 10.100.0.0/16 oifname != br-vms return",
        "ip saddr 10.100.0.0/16 oifname != br-vms",
    ] {
        let listed = node.net.run("nft", &["-a", "list table inet node_fixer"]);
        let rule = listed.lines().find(|line| line.contains("ip saddr")).unwrap();
        let handle = rule.rsplit(' ').next().unwrap();
        let comment = rule.find("comment").map_or("", |at| &rule[at..rule.rfind(" #").unwrap()]);
        nft(&node, &format!("replace rule inet node_fixer postrouting handle {handle} {other} {comment}"));
        assert_ne!(table(&node), made, "{other}: the test is wrong");
        let ran = node.fix(&["--output", "json"]).expect(0);
        assert_eq!(ran.commands().len(), 1, "{other}: {ran:?}");
        assert_eq!(table(&node), made, "{other}");
    }
}

#[test]
fn sources_of_every_length_are_read_back_as_they_were_written() {
    let (node, _vm) = vm_host();
    let v4 = (0..=32).map(|n| (0xaa55_ffab_u32 & u32::MAX.checked_shl(32 - n).unwrap_or(0), n));
    let v6 = (0..=128)
        .map(|n| (0xfd55_aaff_a5ff_ffff_0102_0304_0506_aaab_u128 & u128::MAX.checked_shl(128 - n).unwrap_or(0), n));
    let v4 = v4.map(|(bits, n)| format!("{}/{n}", std::net::Ipv4Addr::from(bits)));
    let v6 = v6.map(|(bits, n)| format!("{}/{n}", std::net::Ipv6Addr::from(bits)));
    let ways = ["", ", out: eth0", ", except_out: a-very-long-if"];
    let entries: Vec<String> =
        v4.chain(v6).zip(ways.iter().cycle()).map(|(source, way)| format!("{{source: '{source}'{way}}}")).collect();
    node.config(&format!("{BRIDGE}\nmasquerade: [{}]", entries.join(", ")));
    node.fix(&[]).expect(0);
    assert_eq!(table(&node).unwrap().len(), 2 + 33 + 129);
    assert_eq!(node.fix(&[]).expect(0).out, "");
}

#[test]
fn it_goes_also_when_all_that_was_remembered_is_lost() {
    let (node, _vm) = vm_host();
    node.config(&format!("{BRIDGE}\n{BOTH}"));
    node.fix(&[]).expect(0);
    std::fs::remove_dir_all(node.directory.path().join("state")).unwrap();
    node.config("");
    let commands = node.fix(&["--output", "json"]).expect(0).commands();
    assert_eq!(commands.first().unwrap(), "nft delete table inet node_fixer", "before the bridge: {commands:?}");
    assert_eq!(table(&node), None);
}

#[test]
fn without_nft_the_package_is_named_and_nothing_to_do_needs_no_nft() {
    let (node, _vm) = vm_host();
    let without = |args: &[&str]| {
        let mut command = node.command(args);
        command.env("PATH", "/no/such/directory");
        kit::finish(node.net.output(&mut command))
    };
    node.config(&format!("{BRIDGE}\n{BOTH}"));
    let ran = without(&["--output", "json"]).expect(1);
    assert!(blocked(&ran)[0].contains("apt-get install nftables"), "{ran:?}");
    node.fix(&[]).expect(0);
    assert_eq!(without(&[]).expect(0).out, "");
    nft(&node, "flush table inet node_fixer");
    assert!(blocked(&without(&["--output", "json"]).expect(1))[0].contains("apt-get install nftables"));
    node.config(BRIDGE);
    let ran = without(&["--output", "json"]).expect(1);
    assert!(
        blocked(&ran)[0].starts_with("nft delete table inet node_fixer: the program nft is not on PATH"),
        "{ran:?}"
    );
    assert!(table(&node).is_some());
}

/// A run that is killed alone leaves its nft behind. What that still does belongs to the killed run: until it has ended
/// the next run waits its turn, or it would find no table, and note that there is none to look for.
#[test]
fn the_nft_of_a_run_that_was_killed_leaves_nothing_behind() {
    let (node, _vm) = vm_host();
    let directory = node.directory.path();
    let slow = format!(
        "#!/bin/sh\necho $$ >{0}/pid\nwhile [ ! -e {0}/go ]; do sleep 0.02; done\nexec $(PATH=/usr/sbin:/sbin:/usr/bin command -v nft) \"$@\"\n",
        directory.display()
    );
    kit::script(&directory.join("nft"), &slow);
    node.config(&format!("{BRIDGE}\n{BOTH}"));
    let mut command = node.command(&[]);
    command.env("PATH", format!("{}:{}", directory.display(), std::env::var("PATH").unwrap()));
    let mut run = Ends(node.net.enter(|| command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()));
    until("nft has begun", || directory.join("pid").exists());
    run.0.kill().unwrap();
    run.0.wait().unwrap();

    node.config(BRIDGE);
    let ran = node.fix(&[]).expect(75);
    assert!(ran.err.contains("its process is gone, or is hidden"), "{ran:?}");
    std::fs::write(directory.join("go"), "").unwrap();
    until("nft has ended", || table(&node).is_some() && node.fix(&["-q"]).code != 75);
    node.fix(&[]).expect(0);
    assert_eq!(table(&node), None);
}

/// From its first program on a run notes signals and stops at the next section. It has not looked at all, and nobody is
/// to believe that all is well.
#[test]
#[ignore = "needs strace; tests/run runs it"]
fn a_run_that_was_interrupted_after_its_programs_does_not_report_success() {
    let (node, _vm) = vm_host();
    node.config(&format!("{BRIDGE}\n{BOTH}"));
    node.net.set_sysctl("net/ipv4/conf/eth1/rp_filter", "1");
    // What is written after the rules of nftables.
    let last = "/proc/sys/net/ipv4/conf/eth1/rp_filter";
    let strace = ["-e", "trace=openat", "-e", "inject=openat:signal=TERM:when=1", "-P", last];
    let json = node.traced(&strace, &["--output", "json"]).0.expect(1).json();
    assert_eq!(json["converged"], false, "{json}");
    assert_eq!(json["blocked"].as_array().unwrap().len(), 1, "{json}");
    assert_eq!(json["blocked"][0]["because"], "this run was interrupted by a signal; the next run continues", "{json}");
    assert!(table(&node).is_some(), "{json}");
    node.fix(&[]).expect(0);
}

/// The system calls of a run, by strace.
fn traced(node: &Worker) -> String {
    let (ran, calls) = node.traced(&["-f", "-e", "trace=execve,socket,openat,clone,clone3,fork,vfork"], &[]);
    ran.expect(0);
    calls
}

#[test]
#[ignore = "needs strace; tests/run runs it"]
fn a_run_that_finds_nothing_to_do_starts_no_process_and_asks_only_where_something_may_be() {
    let (node, _vm) = vm_host();
    let calls = traced(&node);
    assert!(!calls.contains("NETLINK_NETFILTER"), "nothing declared, nothing made: {calls}");
    node.config(&format!("{BRIDGE}\n{BOTH}"));
    node.fix(&[]).expect(0);
    let calls = traced(&node);
    assert_eq!(calls.matches("NETLINK_NETFILTER").count(), 1, "{calls}");
    assert_eq!(calls.matches("exec").count(), 1, "{calls}");
    assert!(!calls.contains("clone") && !calls.contains("fork"), "{calls}");
    assert!(!calls.contains("O_WRONLY|O_CREAT|O_TRUNC"), "{calls}");
}

#[test]
fn the_script_of_a_dry_run_does_what_a_run_does() {
    let odd = "masquerade: [{source: 10.100.0.0/16, except_out: \"a$b;'c\"}, {source: 0.0.0.0/0, out: eth0}, {source: 'fd64::7'}]";
    let ((by_script, _), (by_run, _)) = (vm_host(), vm_host());
    for sections in [BOTH, odd, ""] {
        for node in [&by_script, &by_run] {
            node.config(&format!("{BRIDGE}\n{sections}"));
        }
        let before = nft(&by_script, "list ruleset");
        let script = by_script.fix(&["--dry-run"]).expect(0).out;
        assert_eq!(nft(&by_script, "list ruleset"), before, "a dry run changes nothing");
        by_script.net.run("sh", &["-e", "-c", &script]);
        by_run.fix(&[]).expect(0);
        assert_eq!(table(&by_script), table(&by_run), "{script}");
        assert_eq!(table(&by_run).is_some(), !sections.is_empty());
        // A run sees what the script has made as its own.
        assert_eq!(by_script.fix(&[]).expect(0).out, "");
    }
}

// In a user namespace net.core.wmem_max bounds what nft may send at once.
#[test]
#[ignore = "needs root; tests/run runs it"]
fn many_entries_are_one_transaction() {
    let ((by_script, _), (by_run, _)) = (vm_host(), vm_host());
    let entries: Vec<String> =
        (0..2000).map(|n| format!("{{source: 10.{}.{}.0/24, except_out: br-vms}}", n / 200, n % 200)).collect();
    for node in [&by_script, &by_run] {
        node.config(&format!("{BRIDGE}\nmasquerade: [{}]", entries.join(", ")));
    }
    by_run.fix(&[]).expect(0);
    assert_eq!(table(&by_run).unwrap().len(), 2002);
    assert_eq!(by_run.fix(&[]).expect(0).out, "");
    // More than an argument may be.
    let script = by_script.fix(&["--dry-run"]).expect(0).out;
    assert!(script.len() > 128 << 10);
    let file = by_script.directory.path().join("script");
    std::fs::write(&file, script).unwrap();
    by_script.net.run("sh", &["-e", file.to_str().unwrap()]);
    assert_eq!(table(&by_script), table(&by_run));
}
