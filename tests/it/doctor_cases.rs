//! Nodes from the field: for each what is found and cured, and beside it the twin for which nothing may be found.

use std::net::{Ipv6Addr, SocketAddrV6};

use rustix::net::{self as rustix_net, AddressFamily, SendFlags, SocketType, ipproto, sockopt};
use serde_json::Value;

use crate::doctor::{KEEP_FOREIGN, Patient, causes, doctor, write};
use crate::kit::{Netns, Ran, Worker, finish, started_by, until};

/// The names of the causes that are found.
fn names(ran: &Ran) -> Vec<String> {
    causes(ran).into_iter().map(|(cause, _)| cause).collect()
}

/// The evidence and cure of the finding with this cause.
fn finding(ran: &Ran, cause: &str) -> (String, String) {
    let found = ran.findings().into_iter().find(|it| it["cause"] == cause);
    let found = found.unwrap_or_else(|| panic!("{cause}: {ran:?}"));
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (text(&found["evidence"]), text(&found["cure"]))
}

/// A node without the marks of the VPC CNI is reported nothing of it.
fn assert_speaks_of_no_cni(ran: &Ran) {
    for word in ["CNI", "1536", "512", "pod's restart", "recreate"] {
        assert!(!ran.out.contains(word), "{word}: {}", ran.out);
    }
}

/// A link of a node to the router that has nothing of its own.
fn bare_link(node: &Worker, name: &str) {
    let far = format!("f{}", name.trim_start_matches(|c: char| c.is_ascii_alphabetic() || c == '.'));
    node.net.ip(&format!("link add {name} type veth peer name {far} netns {}", node.router.path()));
    node.net.ip(&format!("link set {name} up"));
    node.router.ip(&format!("link set {far} up"));
    node.net.set_sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "2");
}

#[test]
fn nodeadm_and_networkd_configure_the_cards_that_the_cni_leaves_alone() {
    let patient = Patient::of_vpc_cni();
    let net = &patient.node.net;
    for (number, table) in [(2, 10101), (3, 10201)] {
        patient.node.uplink(number);
        net.set_sysctl(&format!("net/ipv4/conf/eth{number}/rp_filter"), "2");
        patient.networkd(&format!("eth{number}"), "ADMIN_STATE=configured\n");
        net.ip(&format!("route add 10.0.{number}.0/24 dev eth{number} table {table} proto static"));
        net.ip(&format!("route add default via 10.0.{number}.1 dev eth{number} table {table} proto static"));
        net.ip(&format!("rule add priority {table} from 10.0.{number}.10 lookup {table} protocol static"));
        net.ip(&format!("-6 route add default via fd00:{number}::1 dev eth{number} table {table} proto static"));
        net.ip(&format!("-6 rule add priority {table} from fd00:{number}::10 lookup {table} protocol static"));
    }
    assert_eq!(patient.causes(), [], "healthy");

    // Its own tables always have a default: one without is no policy.
    net.ip("route del default table 10101");
    let (_, cure) = patient.only("table_without_default", "");
    patient.is_cured_by(&cure);

    // For an uplink of the CNI, or a pod, such a rule is ec2-net-utils' all the same.
    for source in ["10.0.1.10", "10.0.1.100"] {
        net.ip(&format!("rule add priority 10301 from {source} lookup 10301 protocol static"));
        net.ip("route replace default via 10.0.1.1 dev eth1 table 10301 proto static");
        let (evidence, cure) = patient.only("ec2_net_utils", "");
        assert!(evidence.contains("10301") && !evidence.contains("10101"), "{evidence}");
        assert!(!cure.contains("eth2"), "{cure}");
        patient.is_cured_by(&cure);
    }
}

/// Security groups for pods in strict mode: two branches, and a pod of the second.
fn with_branches() -> Patient {
    let patient = Patient::of_vpc_cni();
    let net = &patient.node.net;
    net.ip("rule add priority 20 lookup local");
    net.ip("rule del priority 0 lookup local");
    for branch in [1, 2] {
        bare_link(&patient.node, &format!("vlan.eth.{branch}"));
        for (ip, router) in [("-4", "10.0.160.1"), ("-6", "fe80:ec2::1")] {
            net.ip(&format!("{ip} route add {router} dev vlan.eth.{branch} table 10{branch}"));
            net.ip(&format!("{ip} route add default via {router} dev vlan.eth.{branch} table 10{branch}"));
            net.ip(&format!("{ip} rule add priority 10 iif vlan.eth.{branch} lookup 10{branch}"));
        }
    }
    bare_link(&patient.node, "vlan0000000b001");
    net.settle();
    patient
}

#[test]
fn a_rule_of_an_earlier_pod_leads_to_another_branch() {
    for (ip, pod) in [("-4", "10.0.160.30"), ("-6", "fd00:160::30")] {
        let patient = with_branches();
        let net = &patient.node.net;
        net.ip(&format!("{ip} route add {pod} dev vlan0000000b001 table 102"));
        if ip == "-6" {
            net.ip("route add 10.0.160.31 dev vlan0000000b001 table 102"); // else all that it sends is a martian
            net.ip("rule add priority 10 iif vlan0000000b001 lookup 102");
        }
        net.ip(&format!("{ip} rule add priority 10 iif vlan0000000b001 lookup 102"));
        assert_eq!(names(&patient.examined(&["--output", "json"])), Vec::<String>::new(), "healthy {ip}");

        net.ip(&format!("{ip} rule del priority 10 iif vlan0000000b001 lookup 102"));
        if ip == "-6" {
            net.ip("rule del priority 10 iif vlan0000000b001 lookup 102");
            net.ip("rule add priority 10 iif vlan0000000b001 lookup 102");
            while net.ip("-6 rule").contains("vlan0000000b001") {
                net.ip("-6 rule del priority 10 iif vlan0000000b001");
            }
        }
        net.ip(&format!("{ip} rule add priority 10 iif vlan0000000b001 lookup 101"));
        let (evidence, cure) = patient.only("branch_rule_stale", "");
        assert!(evidence.contains("uses table 101") && evidence.contains(&format!("{pod}) is in table 102")));
        patient.is_cured_by(&cure);

        // The right rule may be there as well, behind the stale one.
        net.ip(&format!("{ip} rule del priority 10 iif vlan0000000b001 lookup 102"));
        for table in [101, 102] {
            net.ip(&format!("{ip} rule add priority 10 iif vlan0000000b001 lookup {table}"));
        }
        let (_, cure) = patient.only("branch_rule_stale", "");
        assert!(cure.contains("rule del ") && !cure.contains("rule add "), "{cure}");
        patient.is_cured_by(&cure);

        // The pod goes, and its interface, but not its rules.
        net.ip("link del vlan0000000b001");
        let (evidence, cure) = patient.only("leaked_rules", "");
        assert!(evidence.contains("vlan0000000b001"), "{evidence}");
        patient.is_cured_by(&cure);
    }
}

#[test]
fn a_pod_of_a_branch_lost_the_rule_of_its_interface() {
    for (ip, pod) in [("-4", "10.0.160.30"), ("-6", "fd00:160::30")] {
        let patient = with_branches();
        let net = &patient.node.net;
        net.ip(&format!("{ip} route add {pod} dev vlan0000000b001 table 102"));
        if ip == "-6" {
            net.ip("route add 10.0.160.31 dev vlan0000000b001 table 102"); // else all that it sends is a martian
            net.ip("rule add priority 10 iif vlan0000000b001 lookup 102");
        }
        let (evidence, cure) = patient.only("pod_without_rule", "");
        assert!(evidence.starts_with(&format!("table 102 has the route to {pod} (vlan0000000b001), but no rule 10 ")));
        assert!(cure.contains("rule add priority 10 from all iif vlan0000000b001 lookup 102"), "{cure}");
        patient.is_cured_by(&cure);
        // The twin: a pod of standard mode has its route in main and needs no such rule.
        net.ip(&format!("{ip} rule del priority 10 iif vlan0000000b001 lookup 102"));
        net.ip(&format!("{ip} route del {pod} dev vlan0000000b001 table 102"));
        net.ip(&format!("{ip} route add {pod} dev vlan0000000b001"));
        net.ip(&format!("{ip} rule add priority 512 to {pod} lookup main"));
        net.ip(&format!("{ip} rule add priority 1536 from {pod} lookup 102"));
        assert_eq!(names(&patient.examined(&["--output", "json"])), Vec::<String>::new(), "{ip}");
    }
}

#[test]
fn a_branch_lost_its_default_beside_a_rule_for_a_name_server() {
    let patient = with_branches();
    let net = &patient.node.net;
    net.ip("route add 10.0.160.20 dev vlan0000000b001 table 101");
    net.ip("rule add priority 10 iif vlan0000000b001 lookup 101");
    net.ip("link add nodelocaldns type bridge");
    net.ip("addr add 169.254.20.10/32 dev nodelocaldns");
    net.ip("link set nodelocaldns up");
    patient.file("etc/cloud/cloud.cfg", "");
    net.ip("rule add priority 9 from 169.254.20.10 to 10.0.160.20 lookup 101");
    assert_eq!(patient.causes(), [], "a rule of somebody to the CNI's table is no policy of cloud-init");

    net.ip("route del default table 101");
    let (evidence, cure) = patient.only("table_host_route_only", "");
    assert!(evidence.contains("packets from vlan.eth.1"), "{evidence}");
    patient.is_cured_by(&cure);
    net.ip("route flush table 101");
    let ran = patient.examined(&["--output", "json"]);
    assert_eq!(names(&ran), ["table_flushed", "martians_without_address"], "the pod's route is gone as well");
    assert!(finding(&ran, "table_flushed").1.starts_with("# "), "{ran:?}");
}

#[test]
fn an_eni_was_taken_away_while_pods_used_it() {
    let patient = Patient::of_vpc_cni();
    patient.node.net.ip("link del eth1");
    let (evidence, cure) = patient.only("table_flushed", "");
    assert!(evidence.contains("no interface has 10.0.1.10, the address of its rule 32765"), "{evidence}");
    assert!(cure.contains("recreate the pods 10.0.1.100, 10.0.1.101") && cure.starts_with("# "), "{cure}");
}

#[test]
fn networkd_took_an_eni_whose_table_is_empty() {
    let patient = Patient::of_vpc_cni();
    let net = &patient.node.net;
    net.ip("route flush table 2");
    patient.node.uplink(2);
    net.set_sysctl("net/ipv4/conf/eth2/rp_filter", "2");
    for link in ["eth1", "eth2"] {
        patient.networkd(link, "ADMIN_STATE=configured\n");
    }
    let ran = patient.examined(&["--output", "json"]);
    assert_eq!(names(&ran), ["table_flushed", "networkd_manages_uplink"]);
    let (evidence, cure) = finding(&ran, "networkd_manages_uplink");
    assert!(evidence.contains("manages eth1:"), "{evidence}");
    // For the ENIs to come, and not for the interfaces of others.
    assert!(cure.contains("'Name=!eth0 eth2'"), "{cure}");
    assert!(!cure.contains("reload"), "it would take the addresses, and with them the routes: {cure}");
}

/// A pod of the third uplink's subnet.
fn with_third_uplink(patient: &Patient) {
    let net = &patient.node.net;
    patient.node.uplink(2);
    net.set_sysctl("net/ipv4/conf/eth2/rp_filter", "2");
    net.ip("rule add priority 32765 from 10.0.2.10 lookup 3");
    bare_link(&patient.node, "eni00000000077");
    net.ip("route add 10.0.2.70 dev eni00000000077 scope link");
    net.ip("rule add priority 512 to 10.0.2.70 lookup main");
}

#[test]
fn a_table_leads_by_another_uplink_than_that_of_its_pods() {
    let patient = Patient::of_vpc_cni();
    let net = &patient.node.net;
    with_third_uplink(&patient);
    net.ip("rule add priority 1536 from 10.0.2.70 lookup 3");
    net.ip("route add default via 10.0.2.1 dev eth2 table 3");
    assert_eq!(patient.causes(), [], "its own uplink");
    net.ip("route replace default via 10.0.1.1 dev eth1 table 3");
    let (evidence, cure) = patient.only("table_by_other_uplink", "");
    assert!(evidence.contains("table 3 uses eth1, but its pods 10.0.2.70 are in the subnet of eth2"), "{evidence}");
    assert!(cure.starts_with("# recreate the pods 10.0.2.70"), "{cure}");
    // Where both uplinks have the subnet nothing tells.
    net.ip("addr add 10.0.2.11/24 dev eth1");
    assert!(!patient.causes().iter().any(|(cause, _)| cause == "table_by_other_uplink"));
    net.ip("addr del 10.0.2.11/24 dev eth1");
}

#[test]
fn a_pod_has_two_rules_to_tables_of_two_uplinks() {
    let patient = Patient::of_vpc_cni();
    let net = &patient.node.net;
    with_third_uplink(&patient);
    net.ip("route add default via 10.0.2.1 dev eth2 table 3");
    for (case, to) in [("all", ""), ("the old form", " to 10.0.0.0/8")] {
        for order in [[2, 3], [3, 2]] {
            for table in order {
                net.ip(&format!("rule add priority 1536 from 10.0.2.70{to} lookup {table}"));
            }
            let (evidence, cure) = patient.only("pod_with_two_rules", "");
            assert!(evidence.contains("10.0.2.70 has 2 rules 1536, to tables 2 and 3"), "{case}: {evidence}");
            assert!(cure.contains("lookup 2 ") && cure.lines().count() == 1, "{case}: {cure}");
            patient.is_cured_by(&cure);
            net.ip(&format!("rule del priority 1536 from 10.0.2.70{to} lookup 3"));
        }
    }
    // For different destinations two rules are two rules.
    net.ip("rule add priority 1536 from 10.0.2.70 to 10.0.0.0/16 lookup 3");
    net.ip("rule add priority 1536 from 10.0.2.70 to 10.1.0.0/16 lookup 3");
    assert_eq!(patient.causes(), [], "a VPC with two ranges");
    for network in ["10.0.0.0/16", "10.1.0.0/16"] {
        net.ip(&format!("rule del priority 1536 from 10.0.2.70 to {network}"));
    }
    // Where both uplinks have the subnet it is not certain which one is stale.
    net.ip("addr add 10.0.2.11/24 dev eth1 noprefixroute");
    for table in [2, 3] {
        net.ip(&format!("rule add priority 1536 from 10.0.2.70 lookup {table}"));
    }
    let (_, cure) = finding(&patient.examined(&["--output", "json"]), "pod_with_two_rules");
    assert!(cure.starts_with("# recreate the pod 10.0.2.70"), "{cure}");
    net.ip("addr del 10.0.2.11/24 dev eth1");
}

#[test]
fn pods_of_ipv6_are_looked_at_alike() {
    let patient = Patient::of_vpc_cni();
    let net = &patient.node.net;
    patient.node.uplink(2);
    net.set_sysctl("net/ipv4/conf/eth2/rp_filter", "2");
    bare_link(&patient.node, "eni00000000077");
    net.ip("route add 10.0.0.70 dev eni00000000077 scope link"); // else all that it sends is a martian
    net.ip("rule add priority 512 to 10.0.0.70 lookup main");
    net.ip("-6 rule add priority 32765 from fd00:2::10 lookup 3");
    net.ip("-6 route add fd00:2::70 dev eni00000000077");
    net.ip("-6 rule add priority 512 to fd00:2::70 lookup main");
    net.ip("-6 rule add priority 1536 from fd00:2::70 lookup 3");
    net.ip("-6 route add default via fd00:2::1 dev eth2 table 3");
    net.settle();
    assert_eq!(patient.causes(), [], "healthy");

    net.ip("-6 rule add priority 32765 from fd00:1::10 lookup 2");
    net.ip("-6 route add default via fd00:1::1 dev eth1 table 2");
    net.ip("-6 rule add priority 1536 from fd00:2::70 lookup 2");
    let (_, cure) = patient.only("pod_with_two_rules", "");
    assert_eq!(cure, "ip -6 rule del priority 1536 from fd00:2::70 lookup 2 protocol 0");
    patient.is_cured_by(&cure);

    net.ip("-6 route replace default via fd00:1::1 dev eth1 table 3");
    let (evidence, _) = patient.only("table_by_other_uplink", "");
    assert!(evidence.contains("table 3 uses eth1, but its pods fd00:2::70 are in the subnet of eth2"), "{evidence}");
    net.ip("-6 route flush table 3");
    net.ip("-6 addr del fd00:2::10/64 dev eth2");
    let (evidence, cure) = patient.only("table_flushed", "");
    assert!(evidence.contains("no interface has fd00:2::10, the address of its rule 32765"), "{evidence}");
    assert!(cure.contains("recreate the pods fd00:2::70"), "{cure}");
    // Its rule stays, for the address may come back.
    net.ip("-6 rule del priority 1536 from fd00:2::70");
    let (_, cure) = patient.only("leaked_rules", "");
    assert!(cure.starts_with("# eth2 has no IPv6 address now"), "{cure}");
}

#[test]
fn a_second_rule_to_an_empty_table_breaks_nothing() {
    let patient = Patient::of_vpc_cni();
    patient.node.net.ip("rule add priority 1536 from 10.0.1.100 to 10.0.0.0/8 lookup 3");
    patient.node.net.ip("rule add priority 1536 from 10.0.1.100 to 10.0.0.0/8 lookup 2");
    let (_, cure) = patient.only("pod_with_two_rules", "");
    assert_eq!(cure, "ip rule del priority 1536 from 10.0.1.100 to 10.0.0.0/8 lookup 3 protocol 0");
    assert!(patient.node.pod(0).pings("10.0.1.100", "192.0.2.1"), "the pod works");
}

#[test]
fn main_has_no_default_while_tables_have_one() {
    for (ip, family, gateway) in [("-4", "IPv4", "10.0.1.1"), ("-6", "IPv6", "fd00:1::1")] {
        let patient = Patient::of_vpc_cni();
        let net = &patient.node.net;
        net.ip("-6 route add default via fd00:1::1 dev eth1 table 2");
        net.ip("-6 rule add priority 32765 from fd00:1::10 lookup 2");
        assert_eq!(patient.causes(), [], "healthy");
        net.ip(&format!("{ip} route del default"));
        let (evidence, cure) = patient.only("main_without_default", "");
        assert!(evidence.contains(&format!("no {family} default route, but table 2 has one (via {gateway})")));
        assert!(cure.starts_with("# "), "{cure}");
        net.ip(&format!("{ip} route add 0::/0 via {gateway} dev eth1 table 77").replace("0::/0", "default"));
        net.ip(&format!("{ip} rule add priority 30000 lookup 77"));
        assert_eq!(patient.causes(), [], "another table is for everything");
    }
}

#[test]
fn servers_without_a_default_in_main_on_purpose_have_nothing() {
    let net = Netns::new();
    let root = tempfile::tempdir().unwrap();
    let config = "kube_proxy: {mode: off}\nrp_filter: {mode: off}";
    for (number, table) in [(0, 100), (1, 101)] {
        net.ip(&format!("link add eth{number} type veth peer name far{number}"));
        net.ip(&format!("addr add 10.0.{number}.10/24 dev eth{number}"));
        net.ip(&format!("link set eth{number} up"));
        net.ip(&format!("route add default via 10.0.{number}.1 dev eth{number} table {table}"));
        net.ip(&format!("rule add priority {table} from 10.0.{number}.10 lookup {table}"));
    }
    assert_eq!(names(&doctor(&net, root.path(), config, &["--output", "json"])), Vec::<String>::new());
    // One of them has no table, and nothing else either.
    net.ip("rule del priority 100");
    let ran = doctor(&net, root.path(), config, &["--output", "json"]);
    assert_eq!(names(&ran), ["main_without_default"]);
    assert_speaks_of_no_cni(&ran);
}

#[test]
fn a_plugins_file_that_switches_rp_filter_off_is_nothing() {
    let patient = Patient::of_vpc_cni();
    let off =
        "-net.ipv4.conf.lxc*.rp_filter = 0\n-net.ipv4.conf.*.rp_filter = 0\nnet.ipv4.conf.default.rp_filter = 0\n";
    patient.file("etc/sysctl.d/99-zzz-override_cilium.conf", off);
    assert_eq!(patient.causes(), []);
    patient.file(
        "etc/sysctl.d/99-zzz-override_cilium.conf",
        &off.replace("default.rp_filter = 0", "default.rp_filter = 1"),
    );
    patient.only("rp_filter_sysctl", "/etc/sysctl.d/99-zzz-override_cilium.conf:3");
    // The cure of a strict interface raises no other from off, nor those that are to come.
    patient.file("etc/sysctl.d/99-zzz-override_cilium.conf", &format!("{off}net.ipv4.conf.eth1.rp_filter = 1\n"));
    let (_, cure) = patient.only("rp_filter_sysctl", "/etc/sysctl.d/99-zzz-override_cilium.conf:4");
    assert!(cure.contains("'-net.ipv4.conf.eth1.rp_filter = 2' >") && !cure.contains("default"), "{cure}");
    // Who wants strict is reported of it.
    patient.file("etc/sysctl.d/99-zzz-override_cilium.conf", off);
    let strict = "rp_filter: {value: strict, replace: [off]}";
    let ran = doctor(&patient.node.net, patient.root.path(), strict, &["--output", "json"]);
    assert_eq!(names(&ran), ["rp_filter_sysctl"]);
}

#[test]
fn ufw_writes_its_own_sysctls() {
    let mut patient = Patient::of_vpc_cni();
    patient.file("etc/default/ufw", "# comment\nIPT_SYSCTL=/etc/ufw/sysctl.conf\n");
    patient.file(
        "etc/ufw/sysctl.conf",
        "# ufw\nnet/ipv4/conf/default/rp_filter=1\nnet/ipv4/conf/eth0/accept_redirects=1\n",
    );
    patient.config = "sysctls: [{key: net.ipv4.conf.eth*.accept_redirects, value: 0}]".into();
    for off in [None, Some("ENABLED=no\n")] {
        off.inspect(|text| patient.file("etc/ufw/ufw.conf", text));
        assert_eq!(patient.causes(), [], "ufw is off");
    }
    patient.file("etc/ufw/ufw.conf", "ENABLED=yes\nLOGLEVEL=low\n");
    let ran = patient.examined(&["--output", "json"]);
    let file = |line| format!("/etc/ufw/sysctl.conf:{line}");
    let expected = [("rp_filter_sysctl".to_owned(), file(2)), ("sysctl_overruled".to_owned(), file(3))];
    assert_eq!(causes(&ran), expected, "{ran:?}");
    let (_, cure) = finding(&ran, "sysctl_overruled");
    assert_eq!(cure, "# in /etc/ufw/sysctl.conf, change line 3 to 0");
    patient.file("etc/ufw/sysctl.conf", "net/ipv4/conf/all/rp_filter=1\nnet/ipv4/conf/eth0/accept_redirects=0\n");
    assert_eq!(patient.causes(), [], "it agrees");
    let net = &patient.node.net;
    net.set_sysctl("net/ipv4/conf/all/rp_filter", "1");
    net.ip("link add lxc0123456789ab type veth peer name pod0");
    net.set_sysctl("net/ipv4/conf/lxc0123456789ab/rp_filter", "0");
    patient.only("rp_filter_all", &file(1));
}

#[test]
fn a_file_overrules_a_declared_sysctl() {
    let mut patient = Patient::of_vpc_cni();
    let file = "etc/sysctl.d/60-gce-network-security.conf";
    patient.config =
        "sysctls: [{key: net.ipv4.ip_forward, value: 1}, {key: net.ipv4.tcp_rmem, value: 4096 131072 6291456}]".into();
    for same in [
        "net.ipv4.ip_forward=1\nnet.ipv4.tcp_rmem = 4096\t131072\t6291456\n",
        "net.ipv4.ip_forward=0\nnet.ipv4.conf.all.forwarding=1\n",
    ] {
        patient.file(file, same);
        assert_eq!(patient.causes(), [], "{same}");
    }
    for (line, text) in [(1, "net.ipv4.ip_forward=0\n"), (2, "net.ipv4.ip_forward=1\nnet.ipv4.conf.all.forwarding=0\n")]
    {
        patient.file(file, text);
        for persist in ["", ", persist: true"] {
            let key = format!("sysctls: [{{key: net.ipv4.ip_forward, value: 1{persist}}}]");
            let ran = doctor(&patient.node.net, patient.root.path(), &key, &["--output", "json"]);
            assert_eq!(causes(&ran), [("sysctl_overruled".to_owned(), format!("/{file}:{line}"))], "{ran:?}");
        }
    }
    let (evidence, cure) = patient.only("sysctl_overruled", &format!("/{file}:2"));
    assert!(evidence.contains("forwarding = 0, but 1"), "{evidence}");
    assert!(!cure.starts_with('#'), "{cure}");
}

/// The report of contention reads the files of the machine, in whose place those of a test stand here.
#[test]
fn contention_names_the_file_that_undoes_a_declared_sysctl() {
    let node = Worker::new().with_loose_rp_filter();
    let files = tempfile::tempdir().unwrap();
    write(files.path(), "60-gce-network-security.conf", "net.ipv4.conf.all.rp_filter=1\nnet.ipv4.ip_forward=0\n");
    node.config("kube_proxy: {mode: off}\nsysctls: [{key: net.ipv4.ip_forward, value: 1}]");
    let mut said = String::new();
    for _ in 0..5 {
        node.net.set_sysctl("net/ipv4/ip_forward", "0");
        let run = node.command(&[]);
        let mut inside = std::process::Command::new("unshare");
        inside.args(["--mount", "sh", "-ec", "mount --bind \"$1\" /etc/sysctl.d; shift; exec \"$@\"", "sh"]);
        inside.arg(files.path());
        said = finish(node.net.output(&mut started_by(inside, &run))).expect(0).err;
    }
    let suspect = "sysctl_overruled (/etc/sysctl.d/60-gce-network-security.conf:2)";
    assert!(said.contains("contention") && said.contains(suspect), "{said}");
}

#[test]
fn a_networks_rules_that_are_gone_are_no_matter_of_the_cni() {
    let net = Netns::new();
    let root = tempfile::tempdir().unwrap();
    let config = "kube_proxy: {mode: off}\nrp_filter: {mode: off}";
    for link in ["eth0", "eth1", "calia1", "calia2"] {
        net.ip(&format!("link add {link} type veth peer name far-{link}"));
        net.ip(&format!("link set {link} up"));
    }
    net.ip("addr add 10.0.0.10/24 dev eth0");
    net.ip("addr add 10.0.0.11/32 dev eth1");
    net.ip("route add default via 10.0.0.253 dev eth0");
    for pod in [1, 2] {
        net.ip(&format!("route add 10.0.0.10{pod} dev calia{pod} scope link"));
        net.ip(&format!("rule add priority 512 to 10.0.0.10{pod} lookup main"));
        net.ip(&format!("rule add priority 2048 from 10.0.0.10{pod} lookup 1003"));
    }
    net.ip("route add default via 10.0.0.253 dev eth1 onlink table 1003");
    let examined = || doctor(&net, root.path(), config, &["--output", "json"]);
    assert_eq!(names(&examined()), Vec::<String>::new(), "healthy");
    for priority in [512, 512, 2048] {
        net.ip(&format!("rule del priority {priority}"));
    }
    assert_eq!(names(&examined()), Vec::<String>::new(), "some rule leads there still");
    net.ip("rule del priority 2048");
    let ran = examined();
    assert_eq!(names(&ran), ["table_without_rule"]);
    assert_speaks_of_no_cni(&ran);
    // Of an uplink that no pod uses a plugin keeps the table.
    net.ip("rule add priority 512 to 10.0.0.101 lookup main");
    assert_eq!(names(&examined()), Vec::<String>::new(), "a pod of another uplink has its rules");
    net.ip("rule add priority 2048 from 10.0.0.101 lookup 1003");
    net.ip("route flush table 1003");
    let ran = examined();
    assert_eq!(names(&ran), ["table_flushed"]);
    assert_speaks_of_no_cni(&ran);
}

#[test]
fn networkd_removes_rules_of_the_kernel_that_were_moved() {
    let patient = Patient::of_vpc_cni();
    let net = &patient.node.net;
    for ip in ["-4", "-6"] {
        net.ip(&format!("{ip} rule add priority 100 lookup local"));
        net.ip(&format!("{ip} rule del priority 0 lookup local"));
        net.ip(&format!("{ip} rule del priority 100 lookup local"));
    }
    let ran = patient.examined(&["--output", "json"]);
    assert_eq!(names(&ran), ["kernel_rules_missing"; 2]);
    assert!(!finding(&ran, "kernel_rules_missing").0.contains("networkd"), "it keeps what is not its own: {ran:?}");
    let drop_in = "etc/systemd/networkd.conf.d/95-foreign.conf";
    patient.file(drop_in, "[Network]\nManageForeignRoutingPolicyRules=yes\n");
    let ran = patient.examined(&["--output", "json"]);
    assert_eq!(causes(&ran)[0], ("kernel_rules_missing".to_owned(), format!("/{drop_in}:2")));
    let (evidence, cure) = finding(&ran, "kernel_rules_missing");
    let cause =
        "systemd-networkd runs here with ManageForeignRoutingPolicyRules on, and removes such rules when it restarts";
    assert!(evidence.contains(cause), "{evidence}");
    assert!(
        cure.contains("/etc/systemd/networkd.conf.d/95-foreign.node-fixer.conf"),
        "it comes after the other: {cure}"
    );
}

#[test]
fn a_bridge_over_the_uplink_forwards_nothing_and_is_reported_when_it_leads_nowhere() {
    let net = Netns::new();
    let root = tempfile::tempdir().unwrap();
    let all = "kube_proxy: {mode: off}\nrp_filter: {mode: off}\nbridges:";
    net.ip("link add br0 type bridge");
    net.ip("addr add 192.0.2.10/24 dev br0");
    net.ip("link set br0 up");
    net.ip("link add eno1 type veth peer name far");
    for link in ["eno1", "far"] {
        net.ip(&format!("link set {link} up"));
    }
    net.ip("link set eno1 master br0");
    net.ip("route add default via 192.0.2.1 dev br0");
    net.set_sysctl("net/ipv4/ip_forward", "0");
    let over_uplink = format!("{all} [{{name: br0, addresses: [192.0.2.10/24]}}]");
    until("a carrier", || net.ip("link show br0").contains("LOWER_UP"));
    let examined = |config: &str| doctor(&net, root.path(), config, &["--output", "json"]);
    assert_eq!(names(&examined(&over_uplink)), Vec::<String>::new());
    let with_vms =
        format!("{all} [{{name: br0, addresses: [192.0.2.10/24]}}, {{name: br1, addresses: [10.9.0.1/24]}}]");
    assert_eq!(names(&examined(&with_vms)), ["ip_forward_off"]);

    net.ip("link set eno1 nomaster");
    until("no carrier", || !net.ip("link show br0").contains("LOWER_UP"));
    let ran = examined(&over_uplink);
    assert_eq!(names(&ran), ["bridge_without_carrier"]);
    assert_speaks_of_no_cni(&ran);
    assert_eq!(
        names(&examined("kube_proxy: {mode: off}\nrp_filter: {mode: off}")),
        Vec::<String>::new(),
        "not declared"
    );
    net.ip("route del default");
    assert!(!names(&examined(&over_uplink)).contains(&"bridge_without_carrier".to_owned()), "no default leaves by it");
}

/// The router announces this prefix on a link of its own, and itself as the way out.
fn advertise(router: &Netns, link: &str, prefix: Ipv6Addr) {
    let index = router.ip_json(&format!("link show dev {link}"))[0]["ifindex"].as_u64().unwrap();
    // Type 134, hop limit 64, a lifetime of 1800 s; then the prefix: on the link, for addresses, for an hour.
    let mut message = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    message.extend([3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x07, 0x08, 0, 0, 0, 0]);
    message.extend(prefix.octets());
    let all_nodes = SocketAddrV6::new("ff02::1".parse().unwrap(), 0, 0, u32::try_from(index).unwrap());
    router.enter(|| {
        let raw = rustix_net::socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6)).unwrap();
        // Neighbours believe only what has passed no router.
        sockopt::set_ipv6_multicast_hops(&raw, 255).unwrap();
        rustix_net::sendto(&raw, &message, SendFlags::empty(), &all_nodes).unwrap();
    });
}

#[test]
fn a_node_that_forwards_ignores_routers_unless_accept_ra_is_2() {
    let patient = Patient::of_vpc_cni();
    let net = &patient.node.net;
    let accepting = |prefix: &str| {
        net.set_sysctl("net/ipv6/conf/eth0/forwarding", "0");
        net.set_sysctl("net/ipv6/conf/eth0/accept_ra", "1");
        until("a default route from an advertisement", || {
            advertise(&patient.node.router, "r0", prefix.parse().unwrap());
            net.ip("-6 route show default proto ra").contains("eth0")
        });
    };
    net.ip("-6 route del default");
    accepting("fd00:5::");
    net.set_sysctl("net/ipv6/conf/eth0/forwarding", "1");
    assert_eq!(net.ip("-6 route show default"), "", "the kernel has dropped it");
    assert_eq!(patient.causes(), [], "a router of a local prefix is no way out");

    accepting("2001:db8:1::");
    assert_eq!(patient.causes(), [], "the default is there");
    net.set_sysctl("net/ipv6/conf/eth0/forwarding", "1");
    let (evidence, _) = patient.only("accept_ra_ignored", "");
    assert!(evidence.contains("eth0 has its IPv6 address from router advertisements"), "{evidence}");
    for (key, value) in [("forwarding", "0"), ("accept_ra", "0"), ("accept_ra_defrtr", "0")] {
        let path = format!("net/ipv6/conf/eth0/{key}");
        let before = net.sysctl(&path);
        net.set_sysctl(&path, value);
        assert_eq!(patient.causes(), [], "{key} {value}");
        net.set_sysctl(&path, &before);
    }
    let (_, cure) = patient.only("accept_ra_ignored", "");
    assert!(cure.starts_with("sysctl -w net.ipv6.conf.eth0.accept_ra=2 && "), "{cure}");
    patient.is_cured_by(&cure);
    until("the default route again", || {
        advertise(&patient.node.router, "r0", "2001:db8:1::".parse().unwrap());
        net.ip("-6 route show default proto ra").contains("eth0")
    });
}

#[test]
fn a_network_manager_left_addresses_on_an_uplink_of_the_cni() {
    let patient = Patient::of_vpc_cni();
    let net = &patient.node.net;
    for healthy in ["10.0.1.77/32", "10.9.9.1/24"] {
        net.ip(&format!("addr add {healthy} dev eth1"));
    }
    net.ip("addr add 10.0.0.77/24 dev eth0");
    net.ip("addr add 10.0.1.78/24 dev eth1");
    net.ip("rule add priority 32000 from 10.0.1.78 lookup 2");
    assert_eq!(patient.causes(), [], "an operator's own");
    net.ip("addr add 10.0.1.20/24 dev eth1");
    let (evidence, cure) = patient.only("leftover_addresses", "");
    assert!(evidence.contains("has 10.0.1.20 in addition to its own address 10.0.1.10"), "{evidence}");
    assert!(cure.ends_with("# ip addr del 10.0.1.20/24 dev eth1"), "{cure}");
}

#[test]
fn nm_cloud_setup_is_reported_beside_any_network_plugin() {
    let net = Netns::new();
    let root = tempfile::tempdir().unwrap();
    let config = "kube_proxy: {mode: off}\nrp_filter: {mode: off}";
    for number in [0, 1] {
        net.ip(&format!("link add eth{number} type veth peer name far{number}"));
        net.ip(&format!("addr add 10.0.{number}.10/24 dev eth{number}"));
        net.ip(&format!("link set eth{number} up"));
    }
    net.ip("route add default via 10.0.0.1 dev eth0");
    for (source, dev) in [("10.0.0.10", "eth0"), ("10.0.1.10", "eth1")] {
        let number = &dev[3..];
        net.ip(&format!("route add 10.0.{number}.0/24 dev {dev} table 3020{number}"));
        net.ip(&format!("route add default via 10.0.{number}.1 dev {dev} table 3040{number}"));
        net.ip(&format!("rule add priority 3020{number} from {source} lookup 3020{number}"));
        net.ip(&format!("rule add priority 3040{number} from {source} lookup 3040{number}"));
    }
    net.ip("rule add priority 30350 lookup main suppress_prefixlength 0");
    let examined = || doctor(&net, root.path(), config, &["--output", "json"]);
    assert_eq!(names(&examined()), Vec::<String>::new(), "alone it is a documented set-up");
    net.ip("link add cilium_host type bridge");
    let ran = examined();
    assert_eq!(names(&ran), ["nm_cloud_setup"]);
    assert_speaks_of_no_cni(&ran);
    let (_, cure) = finding(&ran, "nm_cloud_setup");
    // What eth1's own address sends has no other way out.
    assert!(cure.starts_with("# only after 10.0.1.10 has a policy table of its own"), "{cure}");
    assert!(cure.lines().all(|line| line.starts_with('#')), "{cure}");
    net.ip("route add default via 10.0.1.1 dev eth1 table 101");
    net.ip("rule add priority 101 from 10.0.1.10 lookup 101");
    let (_, cure) = finding(&examined(), "nm_cloud_setup");
    assert!(cure.starts_with("systemctl disable --now nm-cloud-setup.timer") && !cure.contains('#'), "{cure}");
    assert!(cure.ends_with("\nip rule del priority 30350") && !cure.contains("priority 101 "), "{cure}");
}

#[test]
fn without_marks_of_the_vpc_cni_broken_tables_are_reported_in_general_words() {
    let net = Netns::new();
    let root = tempfile::tempdir().unwrap();
    let config = "kube_proxy: {mode: off}\nrp_filter: {mode: off}";
    for number in [0, 1] {
        net.ip(&format!("link add eth{number} type veth peer name far{number}"));
        net.ip(&format!("addr add 10.0.{number}.10/24 dev eth{number}"));
        net.ip(&format!("link set eth{number} up"));
    }
    net.ip("route add default via 10.0.0.1 dev eth0");
    net.ip("rule add priority 100 from 10.0.1.10 lookup 101");
    write(root.path(), "run/systemd/netif/state", "");
    write(root.path(), "etc/systemd/networkd.conf.d/80-keep.conf", KEEP_FOREIGN);
    let examined = || doctor(&net, root.path(), config, &["--output", "json"]);
    for (routes, cause) in [
        (&[][..], "table_flushed"),
        (&["10.0.1.1 dev eth1 scope link"][..], "table_host_route_only"),
        (&["10.0.0.1 dev eth0 scope link"][..], "table_host_route_only"),
    ] {
        net.run("sh", &["-c", "ip route flush table 101 2>/dev/null || true"]);
        routes.iter().for_each(|route| drop(net.ip(&format!("route add {route} table 101"))));
        let ran = examined();
        assert_eq!(names(&ran), [cause]);
        assert_speaks_of_no_cni(&ran);
    }
    net.ip("route flush table 101");
    net.ip("route add 172.16.0.0/16 via 10.0.1.1 dev eth1 table 101 proto static");
    assert_eq!(names(&examined()), Vec::<String>::new(), "a storage network on purpose");
    // What a run would add is reported.
    net.ip("route add default via 10.0.1.1 dev eth1 metric 500");
    let (_, cure) = finding(&examined(), "table_without_default");
    assert!(cure.contains("ip route add default via 10.0.1.1 dev eth1 table 101 proto 170"), "{cure}");
    net.ip("route del default dev eth1");
    // What is left of a table when its interface has bounced is no purpose.
    net.ip("route replace 172.16.0.0/16 via 10.0.0.1 dev eth0 table 101 proto static");
    let ran = examined();
    assert_eq!(names(&ran), ["table_without_default"]);
    assert_speaks_of_no_cni(&ran);
}
