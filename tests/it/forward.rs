//! `doctor` on a node whose VMs are masqueraded, with firewalls of others: what it says is dropped is dropped, and what
//! passes it calls dropped nowhere. A ping is the witness, and so is a connection where the firewall knows of protocols.

use std::time::Duration;

use crate::kit::{Netns, Worker, needs};
use crate::masquerade::{BOTH, BRIDGE, nft, seen_by_server, vm_host};

/// What doctor says of firewalls: the evidence and the cure of each finding.
fn dropped(node: &Worker) -> Vec<(String, String)> {
    let findings = node.fix(&["doctor", "--output", "json"]).findings();
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    findings
        .iter()
        .filter(|it| it["cause"] == "forward_dropped")
        .map(|it| (text(&it["evidence"]), text(&it["cure"])))
        .collect()
}

/// Types what doctor says; the tests have iptables under its other name.
fn cure(node: &Worker, cure: &str) {
    if cure.contains("tables ") {
        needs(&["iptables-nft"]);
    }
    node.net.run("sh", &["-ec", &cure.replace("tables ", "tables-nft ")]);
}

fn pings(vm: &Netns) -> bool {
    vm.pings_within("0.0.0.0", "192.0.2.1", Duration::from_millis(300))
}

/// A VM host whose VMs reach what is beyond it, by IPv4 and IPv6.
fn host(bridge_too: bool) -> (Worker, Netns) {
    let (node, vm) = vm_host();
    node.config(&format!("{BRIDGE}\n{BOTH}"));
    node.fix(&[]).expect(0);
    if !bridge_too {
        node.config(&format!("kube_proxy: {{mode: off}}\n{BOTH}"));
    }
    assert!(pings(&vm) && dropped(&node).is_empty(), "the test is wrong");
    (node, vm)
}

/// Has the firewall made, judges what doctor says of it, and has it unmade.
fn judge(node: &Worker, vm: &Netns, firewall: &str, says: &str) {
    nft(node, firewall);
    let reported = dropped(node);
    let lost: Vec<&str> = reported
        .iter()
        .filter(|(evidence, _)| evidence.contains("10.100.0.0/16"))
        .map(|(evidence, _)| match () {
            () if evidence.contains("the replies to") => "replies",
            () if evidence.contains(", and the replies") => "both",
            () => "out",
        })
        .collect();
    assert_eq!(lost.join(" "), says.trim_start_matches("unsaid "), "{firewall}: {reported:?}");
    let passes = !matches!(says, "out" | "replies" | "both" | "unsaid ");
    assert_eq!(pings(vm), passes, "{firewall}: {reported:?}");
    for (evidence, cure) in &reported {
        // What lets the replies pass is left out where they pass.
        let established = firewall.contains("established") || firewall.contains("policy accept");
        let only = evidence.contains("the replies to") || established;
        assert!(cure.lines().all(|line| !only || !line.contains(" && ")), "more than is needed: {reported:?}");
    }
    reported.iter().for_each(|(_, it)| cure(node, it));
    if !reported.is_empty() {
        assert!(pings(vm), "{firewall}, and the cure of it: {reported:?}");
        assert_eq!(dropped(node), [], "{firewall}, and the cure of it: {reported:?}");
    }
    let listed = nft(node, "list tables");
    for table in listed.lines().filter(|table| !table.contains("node_fixer")) {
        nft(node, &format!("delete {table}"));
    }
}

/// Firewalls as they are met, and what doctor says of each: `out`, `replies` and `both` are lost, `` passes; `unsaid `
/// is lost, and nothing is said, because something in it is not understood.
#[test]
#[ignore = "needs iptables; tests/run runs it"]
fn what_is_said_to_be_dropped_is_dropped_and_nothing_that_passes() {
    let (node, vm) = host(false);
    for (says, firewall) in [
        (
            "both",
            "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; iifname docker0 accept; }; }",
        ),
        // Let through before Docker's policy.
        (
            "",
            "table ip filter { chain DOCKER-USER { iifname br-vms accept; oifname br-vms ct state related,established accept; }; \
             chain FORWARD { type filter hook forward priority 0; policy drop; jump DOCKER-USER; iifname docker0 accept; }; }",
        ),
        // libvirt's chains.
        (
            "",
            "table ip filter { chain FWI { oifname br-vms ip daddr 10.100.0.0/16 ct state related,established accept; oifname br-vms reject; }; \
             chain FWO { iifname br-vms ip saddr 10.100.0.0/16 accept; iifname br-vms reject; }; \
             chain FORWARD { type filter hook forward priority 0; policy drop; jump FWI; jump FWO; }; }",
        ),
        // ufw, with and without `ufw route allow`.
        (
            "",
            "table ip filter { chain user { ip saddr 10.100.0.0/16 accept; ip daddr 10.100.0.0/16 accept; }; chain last { reject; }; \
             chain FORWARD { type filter hook forward priority 0; policy drop; ct state related,established accept; jump user; jump last; }; }",
        ),
        (
            "out",
            "table ip filter { chain user { }; chain last { reject; }; \
             chain FORWARD { type filter hook forward priority 0; policy accept; ct state related,established accept; jump user; jump last; }; }",
        ),
        (
            "",
            "table ip filter { chain DOCKER-USER { return; }; chain DOCKER-FORWARD { iifname docker0 accept; }; chain FORWARD { \
             type filter hook forward priority 0; policy drop; jump DOCKER-USER; jump DOCKER-FORWARD; iifname br-vms accept; oifname br-vms accept; }; }",
        ),
        // Sets, maps, wildcards and groups of interfaces, one's own nftables.conf.
        (
            "",
            "table inet fw { chain f { type filter hook forward priority filter; ct state established,related accept; iifname { br-vms, lan0 } oifname eth0 accept; drop; }; }",
        ),
        (
            "",
            "table inet fw { chain f { type filter hook forward priority filter; policy drop; ct state vmap { established : accept, \
             related : accept, invalid : drop }; iifname vmap { br-vms : accept }; }; }",
        ),
        (
            "",
            "table inet fw { set good { type ipv4_addr; flags interval; elements = { 10.100.0.0/16 }; }; chain f { \
             type filter hook forward priority filter; policy drop; ct state established,related accept; ip saddr @good accept; }; }",
        ),
        (
            "",
            "table inet fw { chain f { type filter hook forward priority filter; policy drop; ct state { established, related } accept; iifname br-* accept; }; }",
        ),
        (
            "",
            "table inet fw { chain f { type filter hook forward priority filter; policy drop; ct state established,related accept; meta iifgroup 0 accept; }; }",
        ),
        (
            "",
            "table inet fw { chain f { type filter hook forward priority filter; policy drop; ct state established,related accept; \
             iifname br-vms oifname eth0 ip daddr 192.0.2.0/24 accept; }; }",
        ),
        // What is not understood may let it through.
        (
            "unsaid ",
            "table inet fw { chain f { type filter hook forward priority filter; policy drop; meta mark 7 accept; }; }",
        ),
        (
            "unsaid ",
            "table inet fw { chain f { type filter hook forward priority filter; policy drop; tcp dport 22 accept; }; }",
        ),
        (
            "unsaid ",
            "table inet fw { chain f { type filter hook forward priority filter; policy drop; fib daddr type broadcast accept; }; }",
        ),
        // A packet that is not TCP may not.
        (
            "both",
            "table inet fw { chain f { type filter hook forward priority filter; policy drop; meta l4proto udp accept; }; }",
        ),
        (
            "both",
            "table inet fw { chain f { type filter hook forward priority filter; policy drop; iifname eth9 accept; oifname br-vms ip daddr 10.200.0.0/16 accept; }; }",
        ),
        // The replies of some servers pass, and the cure lets all pass.
        (
            "out",
            "table inet fw { chain f { type filter hook forward priority filter; policy drop; ip saddr 10.200.0.0/16 accept; }; }",
        ),
        // A rule drops it.
        ("out", "table inet fw { chain f { type filter hook forward priority filter; iifname br-vms drop; }; }"),
        (
            "out",
            "table inet fw { chain f { type filter hook forward priority filter; iifname br-vms counter reject; }; }",
        ),
        ("out", "table inet fw { chain f { type filter hook forward priority filter; iif br-vms drop; }; }"),
        (
            "out",
            "table inet fw { chain f { type filter hook forward priority filter; ct state invalid drop; iifname br-vms oifname eth0 drop; }; }",
        ),
        ("out", "table inet fw { chain f { type filter hook forward priority filter; ip saddr 10.0.0.0/8 drop; }; }"),
        (
            "out",
            "table inet fw { chain f { type filter hook prerouting priority raw; ip saddr 10.100.0.0/16 drop; }; }",
        ),
        // Only another uplink is let out by.
        (
            "out",
            "table inet fw { chain f { type filter hook forward priority filter; policy drop; ct state established,related accept; \
             iifname br-vms oifname wg0 accept; }; }",
        ),
        // Only the replies are lost.
        ("replies", "table inet fw { chain f { type filter hook forward priority filter; oifname br-vms drop; }; }"),
        ("replies", "table inet fw { chain f { type filter hook forward priority filter; oif br-vms drop; }; }"),
        (
            "replies",
            "table inet fw { chain f { type filter hook forward priority filter; policy drop; iifname br-vms accept; }; }",
        ),
        (
            "replies",
            "table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; iifname br-vms accept; }; }",
        ),
        (
            "replies",
            "table ip filter { chain FORWARD { type filter hook forward priority 0; ct state new accept; ip daddr 10.100.0.0/16 drop; }; }",
        ),
        // Parts, other families, other packets.
        ("", "table inet fw { chain f { type filter hook forward priority filter; ip saddr 10.100.7.0/24 drop; }; }"),
        (
            "",
            "table inet fw { chain f { type filter hook forward priority filter; ip saddr 10.100.0.0/16 tcp dport 25 drop; }; }",
        ),
        (
            "",
            "table inet fw { chain f { type filter hook forward priority filter; ip saddr 10.100.0.0/16 ct state invalid drop; }; }",
        ),
        (
            "",
            "table inet fw { chain f { type filter hook forward priority filter; ip saddr 10.100.0.0/16 oifname eth1 drop; }; }",
        ),
        (
            "",
            "table inet fw { chain f { type filter hook forward priority filter; ip saddr 10.100.0.0/16 limit rate over 9/second drop; }; }",
        ),
        (
            "",
            "table inet fw { chain f { type filter hook forward priority filter; iifname br-vms oifname br-vms drop; }; }",
        ),
        (
            "",
            "table ip6 fw { chain f { type filter hook forward priority filter; policy accept; ip6 saddr fd65::/64 drop; }; }",
        ),
        ("", "table inet fw { chain f { type filter hook input priority filter; policy drop; }; }"),
        // Into other chains and back.
        (
            "both",
            "table inet fw { chain a { tcp dport 1 drop; drop; }; chain f { type filter hook forward priority filter; jump a; }; }",
        ),
        (
            "",
            "table inet fw { chain a { iifname br-vms return; oifname br-vms return; drop; }; chain f { type filter hook forward priority filter; jump a; }; }",
        ),
        (
            "both",
            "table inet fw { chain a { iifname eth9 return; drop; }; chain f { type filter hook forward priority filter; jump a; }; }",
        ),
        (
            "",
            "table inet fw { chain a { accept; }; chain f { type filter hook forward priority filter; goto a; drop; }; }",
        ),
        ("", "table inet fw { chain a { }; chain f { type filter hook forward priority filter; goto a; drop; }; }"),
        (
            "both",
            "table inet fw { chain b { drop; }; chain a { goto b; }; chain f { type filter hook forward priority filter; goto a; }; }",
        ),
        (
            "both",
            "table inet fw { chain a { accept; }; chain f { type filter hook forward priority filter; iifname eth9 jump a; drop; }; }",
        ),
        (
            "out",
            "table inet fw { chain a { log; drop; }; chain f { type filter hook forward priority filter; ip saddr 10.100.0.0/16 jump a; }; }",
        ),
        (
            "",
            "table inet fw { chain a { ip saddr 10.100.0.0/16 drop; }; chain f { type filter hook forward priority filter; tcp dport 25 jump a; }; }",
        ),
        ("", "table inet fw { chain f { type filter hook forward priority filter; return; drop; }; }"),
    ] {
        judge(&node, &vm, firewall, says);
    }
}

/// The chains of Docker 24, by iptables: whose way of writing a state nftables shows as a match of its own.
#[test]
#[ignore = "needs iptables; tests/run runs it"]
fn the_chains_of_docker_are_read_and_cured_by_iptables() {
    let (node, vm) = host(true);
    let iptables = |words: &str| drop(node.net.run("iptables-nft", &words.split(' ').collect::<Vec<_>>()));
    node.net.ip("link add docker0 type bridge");
    node.net.ip("addr add 172.17.0.1/16 dev docker0");
    for rule in [
        "-P FORWARD DROP",
        "-N DOCKER",
        "-N DOCKER-USER",
        "-N DOCKER-ISOLATION-STAGE-1",
        "-N DOCKER-ISOLATION-STAGE-2",
        "-A FORWARD -j DOCKER-USER",
        "-A FORWARD -j DOCKER-ISOLATION-STAGE-1",
        "-A FORWARD -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
        "-A FORWARD -o docker0 -j DOCKER",
        "-A FORWARD -i docker0 ! -o docker0 -j ACCEPT",
        "-A FORWARD -i docker0 -o docker0 -j ACCEPT",
        "-A DOCKER -d 172.17.0.2/32 ! -i docker0 -o docker0 -p tcp -m tcp --dport 80 -j ACCEPT",
        "-A DOCKER-ISOLATION-STAGE-1 -i docker0 ! -o docker0 -j DOCKER-ISOLATION-STAGE-2",
        "-A DOCKER-ISOLATION-STAGE-1 -j RETURN",
        "-A DOCKER-ISOLATION-STAGE-2 -o docker0 -j DROP",
        "-A DOCKER-ISOLATION-STAGE-2 -j RETURN",
        "-A DOCKER-USER -j RETURN",
        "-A INPUT -s 10.100.0.0/16 -j ACCEPT",
    ] {
        iptables(rule);
    }
    let reported = dropped(&node);
    assert_eq!(reported.len(), 1, "IPv6 is not concerned: {reported:?}");
    assert!(
        reported[0].1.starts_with("iptables -I DOCKER-USER -s 10.100.0.0/16 -j ACCEPT && iptables -I DOCKER-USER -d"),
        "{reported:?}"
    );
    assert_eq!(seen_by_server(&node, &vm, "192.0.2.1"), None);
    assert!(seen_by_server(&node, &vm, "2001:db8::1").is_some());
    assert_eq!(node.fix(&[]).expect(0).out, "", "a run looks at its own table alone");
    cure(&node, &reported[0].1);
    assert_eq!(seen_by_server(&node, &vm, "192.0.2.1"), Some("10.0.0.10".parse().unwrap()));
    assert_eq!(dropped(&node), []);

    // Half of it, and what is let through by ufw for everybody.
    for (rules, says) in [
        (&["-A FORWARD -i br-vms -j ACCEPT"][..], Some("the replies to 10.100.0.0/16")),
        (
            &[
                "-A FORWARD -i br-+ -m comment --comment vms -j ACCEPT",
                "-A FORWARD -d 10.100.0.0/16 -m state --state ESTABLISHED -j ACCEPT",
            ],
            None,
        ),
        (
            &[
                "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
                "-A FORWARD -p icmp -m icmp --icmp-type 8 -j ACCEPT",
                "-A FORWARD -m conntrack --ctstate DNAT -j ACCEPT",
            ],
            Some("packets from 10.100.0.0/16 that leave by eth0"),
        ),
        (&["-A FORWARD -m conntrack ! --ctstate INVALID -j ACCEPT"], None),
    ] {
        iptables("-F FORWARD");
        rules.iter().for_each(|rule| iptables(rule));
        let reported = dropped(&node);
        assert_eq!(reported.len(), usize::from(says.is_some()), "{rules:?}: {reported:?}");
        assert!(says.is_none_or(|says| reported[0].0.contains(says)), "{rules:?}: {reported:?}");
        let seen = seen_by_server(&node, &vm, "192.0.2.1");
        assert_eq!(seen.is_some(), says.is_none(), "{rules:?}: {reported:?}");
        reported.iter().for_each(|(_, it)| cure(&node, it));
        assert!(
            says.is_none() || seen_by_server(&node, &vm, "192.0.2.1").is_some(),
            "the cure of {rules:?}: {reported:?}"
        );
    }
}

/// The chains of firewalld 1.3, with Docker's zone beside the one of the uplink.
#[test]
fn a_firewalld_that_forwards_only_for_docker_is_reported() {
    let (node, vm) = host(true);
    let rules = r#"
table inet firewalld {
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        ip6 daddr { ::/96, ::ffff:0.0.0.0/96, 2002::/24 } reject with icmpv6 addr-unreachable
        jump filter_FORWARD_ZONES
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD_ZONES {
        iifname "docker0" goto filter_FWD_docker
        iifname "eth0" goto filter_FWD_public
        goto filter_FWD_public
    }
    chain filter_FWD_docker { jump filter_FWD_docker_pre; accept; }
    chain filter_FWD_docker_pre { }
    chain filter_FWD_public {
        jump filter_FWD_public_allow
        reject with icmpx admin-prohibited
    }
    chain filter_FWD_public_allow { iifname "eth9" accept; }
}"#;
    let file = node.directory.path().join("firewalld.nft");
    std::fs::write(&file, rules).unwrap();
    node.net.run("nft", &["-f", file.to_str().unwrap()]);
    let reported = dropped(&node);
    assert_eq!(reported.len(), 1, "{reported:?}");
    assert!(reported[0].0.contains("chain filter_FORWARD of the nftables table inet firewalld"), "{reported:?}");
    let typed = "firewall-cmd --permanent --zone=trusted --add-source=10.100.0.0/16 && firewall-cmd --reload";
    assert_eq!(reported[0].1.lines().next(), Some(typed), "{reported:?}");
    assert_eq!(seen_by_server(&node, &vm, "192.0.2.1"), None);
    // What that comes to.
    nft(&node, "add chain inet firewalld filter_FWD_trusted; add rule inet firewalld filter_FWD_trusted accept");
    for source in ["ip saddr 10.100.0.0/16", "ip6 saddr fd64::/64"] {
        nft(&node, &format!("insert rule inet firewalld filter_FORWARD_ZONES {source} goto filter_FWD_trusted"));
    }
    assert_eq!(seen_by_server(&node, &vm, "192.0.2.1"), Some("10.0.0.10".parse().unwrap()));
    assert_eq!(dropped(&node), []);
}
