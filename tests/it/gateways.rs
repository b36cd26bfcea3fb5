//! The evidence for a table's gateway, and the conditions on it, on nodes as they are found: what is certain is
//! repaired, and what is not is left alone and reported why. Each state has a twin with the other outcome beside it.

use crate::kit::{Ran, Worker, until};

/// Nothing but policy tables is looked after.
const TABLES_ALONE: &str = "kube_proxy: {mode: off}\nrp_filter: {mode: off}";

/// A bare node in this state.
fn node(lines: &str) -> Worker {
    let node = Worker::bare();
    for all in ["all", "default"] {
        node.net.set_sysctl(&format!("net/ipv6/conf/{all}/accept_dad"), "0");
    }
    node.config(TABLES_ALONE);
    let node = node.with(lines);
    node.net.settle();
    node
}

/// The routes of a table, as `DESTINATION via GATEWAY dev LINK`.
fn routes(node: &Worker, family: &str, table: u32) -> Vec<String> {
    let shown = node.net.output(std::process::Command::new("ip").args([
        family,
        "-j",
        "-N",
        "route",
        "show",
        "table",
        &table.to_string(),
    ]));
    let Ok(serde_json::Value::Array(shown)) = serde_json::from_slice(&shown.stdout) else { return Vec::new() };
    let text = |route: &serde_json::Value, key: &str, word: &str| {
        route[key].as_str().map_or(String::new(), |value| format!(" {word} {value}"))
    };
    let mut routes: Vec<String> = shown
        .iter()
        .map(|route| {
            format!("{}{}{}", route["dst"].as_str().unwrap(), text(route, "gateway", "via"), text(route, "dev", "dev"))
        })
        .collect();
    routes.sort();
    routes
}

/// What was refused, with the reasons.
fn refusals(ran: &Ran) -> String {
    let json = ran.json();
    json["blocked"].as_array().unwrap().iter().map(|it| it["because"].as_str().unwrap().to_owned() + "\n").collect()
}

/// Runs twice: the table then has this default, and the second run finds nothing to do.
fn is_repaired(case: &str, node: &Worker, family: &str, table: u32, default: &str) {
    let ran = node.fix(&["--output", "json"]).expect(0);
    let there = routes(node, family, table);
    assert!(there.iter().any(|route| route == &format!("default {default}")), "{case}: {there:?} {ran:?}");
    assert_eq!(node.fix(&[]).expect(0).out, "", "{case}: a second run");
}

/// Runs twice: nothing of the node changes, and the reason has these words.
fn is_refused(case: &str, node: &Worker, words: &[&str]) {
    let mut before = node.net.state();
    // The kernel adds the local route of an IPv6 address a moment after the address.
    until("a node at rest", || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        let earlier = std::mem::replace(&mut before, node.net.state());
        earlier == before
    });
    for _ in 0..2 {
        let ran = node.fix(&["--output", "json"]).expect(1);
        assert_eq!(ran.commands(), Vec::<String>::new(), "{case}");
        let said = refusals(&ran);
        for word in words {
            assert!(said.contains(word), "{case}: {said}");
        }
        assert!(!said.contains("GATEWAY") && !said.contains("CNI"), "{case}: {said}");
    }
    assert_eq!(node.net.state(), before, "{case}");
}

#[test]
fn a_link_local_router_is_known_for_its_own_link_alone() {
    let two = "
        uplink eth0 2001:db8:1::10/64
        uplink wan1 2001:db8:2::10/64
        -6 route add default via fe80::a dev eth0 proto ra metric 1024
        -6 rule add pref 1000 from 2001:db8:2::10 table 102";
    let kept = "-6 route add 2001:db8:2::/64 dev wan1 table 102";
    let with = |more: &str| node(&format!("{two}\n{more}"));
    let foreign = ["fe80::a is the router on the link of eth0", "that of wan1"];
    is_refused("the /64 is left", &with(kept), &foreign);
    is_refused("empty", &with(""), &foreign);
    is_refused("empty, rule 32765", &with("-6 rule add pref 32765 from 2001:db8:2::10 table 102"), &foreign);
    // What an earlier run added is no evidence for the next.
    let own = "-6 route add fe80::a dev wan1 table 102 proto 170\n-6 route add default via fe80::a dev wan1 table 103 proto 170";
    is_refused("only what node-fixer added is left", &with(own), &foreign);

    let own_router = "-6 route add default via fe80::b dev wan1 proto ra metric 2048";
    is_repaired("main names its router", &with(&format!("{kept}\n{own_router}")), "-6", 102, "via fe80::b dev wan1");
    is_repaired("the same, empty", &with(own_router), "-6", 102, "via fe80::b dev wan1");
    let one_prefix = two.replace("2001:db8:2::10", "2001:db8:1::11");
    is_repaired("one prefix on both links", &node(&one_prefix), "-6", 102, "via fe80::a dev wan1");
    let by_route = "
        uplink eth0 2001:db8:1::10/128
        uplink wan1 2001:db8:1::11/128
        -6 route add 2001:db8:1::/64 dev eth0 proto ra
        -6 route add default via fe80::a dev eth0 proto ra
        -6 rule add pref 77 from 2001:db8:1::11 table 102";
    is_repaired("one prefix, by a route", &node(by_route), "-6", 102, "via fe80::a dev wan1");
}

#[test]
fn the_link_of_an_own_address_decides() {
    let gce = "
        uplink eth0 10.33.0.9/32
        uplink eth1 10.37.0.9/32
        route add 10.33.0.1 dev eth0 scope link metric 100
        route add default via 10.33.0.1 dev eth0 metric 100
        route add 10.37.0.1 dev eth1 scope link metric 101
        rule add pref 99 from 10.37.0.9 table 11";
    let with = |more: &str| node(&format!("{gce}\n{more}"));
    let elsewhere = ["10.33.0.1 on eth0", "its source 10.37.0.9 is an address of eth1, not of eth0"];
    is_refused("the other gateway's host route", &with("route add 10.33.0.1 dev eth0 scope link table 11"), &elsewhere);
    let wide = gce.replace("/32", "/20").replace("scope link metric", "metric");
    let wide = node(&format!("{wide}\nroute add 10.33.0.1 dev eth0 scope link table 11"));
    is_refused("the same with subnets", &wide, &elsewhere);
    is_repaired(
        "its own",
        &with("route add 10.37.0.1 dev eth1 scope link table 11"),
        "-4",
        11,
        "via 10.37.0.1 dev eth1",
    );
    let without_main = gce.replace("route add 10.37.0.1 dev eth1 scope link metric 101\n", "");
    let without_main = node(&format!("{without_main}\nroute add 10.37.0.1 dev eth1 scope link table 11"));
    let of_eth0 = node(&format!(
        "{gce}\nrule add pref 98 from 10.33.0.9 table 10\nroute add 10.37.0.1 dev eth1 scope link table 11"
    ));
    is_repaired("empty, and main's default leaves by this very link", &of_eth0, "-4", 10, "via 10.33.0.1 dev eth0");
    is_repaired("its own, main without it", &without_main, "-4", 11, "via 10.37.0.1 dev eth1");
    // What clouds serve on every link is no gateway.
    is_refused("metadata", &with("route add 169.254.169.254 dev eth1 scope link table 11"), &["outside the subnets"]);

    let six = "
        uplink eth0 fd33::9/128
        uplink eth1 fd37::9/128
        -6 route add fd33::1 dev eth0
        -6 route add default via fd33::1 dev eth0
        -6 rule add pref 99 from fd37::9 table 11";
    let with = |more: &str| node(&format!("{six}\n{more}"));
    let elsewhere = ["fd33::1 on eth0", "its source fd37::9 is an address of eth1"];
    is_refused("IPv6, the other's", &with("-6 route add fd33::1 dev eth0 table 11"), &elsewhere);
    is_repaired("IPv6, its own", &with("-6 route add fd37::1 dev eth1 table 11"), "-6", 11, "via fd37::1 dev eth1");

    let management = "
        uplink eth0 10.20.0.10/24
        uplink mgmt0 10.90.0.10/24
        route add default via 10.20.0.1 dev eth0
        rule add pref 1000 from 10.90.0.10 table 200
        route add 10.43.0.0/16 via 10.20.0.5 dev eth0 table 200";
    is_refused(
        "a service network by the other link",
        &node(management),
        &["its source 10.90.0.10 is an address of mgmt0"],
    );
    let near = format!(
        "{management}\nroute del 10.43.0.0/16 table 200\nroute add 10.90.0.0/24 dev mgmt0 table 200\n\
        route add default via 10.90.0.1 dev mgmt0 metric 9"
    );
    is_repaired("its subnet, and main names the gateway", &node(&near), "-4", 200, "via 10.90.0.1 dev mgmt0");

    let pods = "
        uplink eth0 10.0.0.10/24
        uplink eth1 10.0.1.10/24
        route add default via 10.0.0.1 dev eth0
        route add default via 10.0.1.1 dev eth1 metric 9
        rule add pref 1 from 10.0.1.77 table 7
        route add 10.0.0.1 dev eth0 scope link table 7";
    is_refused("a source in the subnet of another uplink alone", &node(pods), &["10.0.1.77 is in the subnet of eth1"]);
    is_repaired("and in this one's", &node(&pods.replace("1.77", "0.77")), "-4", 7, "via 10.0.0.1 dev eth0");
}

#[test]
fn the_link_of_an_own_address_is_evidence_at_any_priority() {
    let providers = "
        uplink eth0 192.0.2.10/24
        uplink eth1 198.51.100.10/24
        route add default nexthop via 192.0.2.1 dev eth0 nexthop via 198.51.100.1 dev eth1
        rule add pref 100 from 192.0.2.10 table 101
        rule add pref 100 from 198.51.100.10 table 102
        route add default via 192.0.2.1 dev eth0 table 101";
    is_repaired("two providers", &node(providers), "-4", 102, "via 198.51.100.1 dev eth1");
    let lost = providers.replace(" nexthop via 198.51.100.1 dev eth1", "");
    is_refused("no gateway there", &node(&lost), &["no gateway of the main table's default routes (192.0.2.1)"]);
    let both = format!("{providers}\nrule add pref 200 from 192.0.2.10 table 102");
    // The first of its sources has a way out by another table, the second is of another link.
    is_refused("addresses of two links", &node(&both), &["belong to several interfaces"]);
}

#[test]
fn the_host_route_to_an_own_address_is_no_gateway_and_the_peer_is() {
    let modems = "
        uplink eth0 10.1.1.2/24
        uplink ppp0 10.129.142.12>10.64.64.64
        uplink ppp1 10.45.11.54>10.64.64.65
        route add default via 10.1.1.1 dev eth0
        rule add pref 32700 from 10.129.142.12 table 1
        rule add pref 32701 from 10.45.11.54 table 2";
    let own = "route add 10.129.142.12 dev ppp0 scope link table 1\nroute add 10.45.11.54 dev ppp1 scope link table 2";
    let node_with_own = node(&format!("{modems}\n{own}"));
    is_repaired("beside the own address", &node_with_own, "-4", 1, "via 10.64.64.64 dev ppp0");
    assert!(routes(&node_with_own, "-4", 2).contains(&"default via 10.64.64.65 dev ppp1".into()));
    let empty = node(modems);
    is_repaired("empty", &empty, "-4", 2, "via 10.64.64.65 dev ppp1");
    let of_peer = format!("{modems}\nroute add 10.64.64.64 dev ppp0 scope link table 1");
    is_repaired("the peer's host route", &node(&of_peer), "-4", 1, "via 10.64.64.64 dev ppp0");
    let six = "
        uplink eth0 fd01::2/64
        uplink ppp0 fd12::1>fd64::1
        -6 route add default via fd01::1 dev eth0
        -6 rule add pref 5 from fd12::1 table 1";
    is_repaired("IPv6", &node(six), "-6", 1, "via fd64::1 dev ppp0");
    // Not the peer of an address that no rule leads there.
    let other = modems.replace("from 10.129.142.12 table 1", "from 10.129.142.77 table 1");
    let other = other.replace("rule add pref 32701 from 10.45.11.54 table 2", "");
    is_refused("somebody else's rule", &node(&other), &["no interface has the source address of its rules"]);
}

#[test]
fn a_source_is_broken_only_where_no_rule_of_its_own_helps() {
    let pod = "
        uplink eth1 10.0.1.10/24
        uplink eth2 10.0.2.10/24
        route add default via 10.0.1.1 dev eth1 table 2
        rule add pref 1536 from 10.0.1.50 to 10.0.0.0/8 table 3
        rule add pref 1537 from 10.0.1.50";
    for (case, helps) in
        [("the same destination", "to 10.0.0.0/8 table 2"), ("a wider one", "to 8.0.0.0/5 table 2"), ("any", "table 2")]
    {
        let node = node(&format!("{pod} {helps}"));
        assert_eq!(node.fix(&[]).expect(0).out, "", "{case}");
    }
    let narrower = node(&format!("{pod} to 10.0.0.0/9 table 2"));
    is_refused("a narrower one", &narrower, &["the gateway of table 3 is unknown: it is empty"]);
    let six = node(
        "
        uplink eth1 fd01::10/64
        -6 route add default via fd01::1 dev eth1 table 2
        -6 rule add pref 110 from fd01::50 to fd00::/16 table 3
        -6 rule add pref 111 from fd01::50 to fd00::/16 table 2",
    );
    assert_eq!(six.fix(&[]).expect(0).out, "", "IPv6");
}

#[test]
fn a_rule_for_the_subnet_helps_where_its_default_leaves_by_the_right_link() {
    let v4 = "
        uplink eth0 10.0.0.10/24
        uplink eth1 10.0.0.11/24
        route add default via 10.0.0.1 dev eth0
        rule add pref 100 from 10.0.0.11 table 200
        rule add pref 200 from 10.0.0.0/24 table 201
        route add 172.16.0.0/16 via 10.0.0.99 dev eth1 table 200
        route add default via 10.0.0.254 dev eth1 table 201";
    let v6 = "
        uplink eth0 2001:db8::10/64
        uplink eth1 2001:db8::11/64
        -6 route add default via 2001:db8::1 dev eth0
        -6 rule add pref 100 from 2001:db8::11 table 200
        -6 rule add pref 200 from 2001:db8::/64 table 201
        -6 route add fd16::/16 via 2001:db8::99 dev eth1 table 200
        -6 route add default via 2001:db8::254 dev eth1 table 201";
    for (family, state, repaired) in [("-4", v4, "via 10.0.0.1 dev eth1"), ("-6", v6, "via 2001:db8::1 dev eth1")] {
        assert_eq!(node(state).fix(&[]).expect(0).out, "", "{family}");
        // Where it leads its source by another's link, the own table is broken.
        let by_other = state.replace("254 dev eth1 table 201", "254 dev eth0 table 201");
        is_repaired(family, &node(&by_other), family, 200, repaired);
        let of_others = state.replace(" from 10.0.0.0/24", " from 10.9.0.0/24").replace("db8::/64", "db8:9::/64");
        is_repaired(family, &node(&of_others), family, 200, repaired);
    }
}

#[test]
fn a_rule_for_what_its_table_leads_to_needs_no_default() {
    let own_subnet = "
        uplink eth1 10.1.0.10/24
        rule add pref 100 from 10.1.0.10 to 10.1.0.0/24 table 40
        route add 10.1.0.0/24 dev eth1 table 40";
    assert_eq!(node(own_subnet).fix(&[]).expect(0).out, "");
    let six = "
        uplink eth1 2001:db8:1::10/64
        -6 rule add pref 100 from 2001:db8:1::10 to 2001:db8:1::/64 table 40
        -6 route add 2001:db8:1::/64 dev eth1 table 40";
    assert_eq!(node(six).fix(&[]).expect(0).out, "", "IPv6");
    let wider = own_subnet.replace("to 10.1.0.0/24", "to 10.0.0.0/8");
    is_refused("a part of what the rule is for", &node(&wider), &["the gateway of table 40 is unknown"]);
}

#[test]
fn a_table_without_a_default_on_purpose_is_reported_how_to_say_so() {
    let storage = "
        uplink eth0 10.0.0.10/24
        uplink store0 172.16.5.10/24
        route add default via 10.0.0.1 dev eth0
        rule add pref 1000 from 172.16.5.10 table 200
        route add 172.16.0.0/16 via 172.16.5.1 dev store0 table 200";
    let node = node(storage);
    is_refused("storage", &node, &["default_routes: {exclude_tables: [200]}"]);
    node.config(&format!("{TABLES_ALONE}\ndefault_routes: {{exclude_tables: [200]}}"));
    assert_eq!(node.fix(&[]).expect(0).out, "", "as it says");
}

/// Security groups for pods in strict mode: what comes in by a branch link has a table, and the link no address.
const BRANCH: &str = "
    uplink eth0 10.0.1.10/24
    route add default via 10.0.1.1 dev eth0
    rule add pref 20 lookup local
    rule del pref 0
    uplink vlan.eth.1
    uplink vlan0000000b002
    route add 10.0.160.1 dev vlan.eth.1 scope link table 101
    route add 10.0.160.20 dev vlan0000000b002 scope link table 101
    rule add pref 10 iif vlan.eth.1 lookup 101
    rule add pref 10 iif vlan0000000b002 lookup 101
    rule add pref 1024 fwmark 0x80/0x80 lookup main";

#[test]
fn a_branch_links_table_gets_its_default_back() {
    is_repaired("the default alone is lost", &node(BRANCH), "-4", 101, "via 10.0.160.1 dev vlan.eth.1");
    let six = node(
        "
        uplink eth0 fd01::10/64
        uplink vlan.eth.1
        -6 rule add pref 10 iif vlan.eth.1 lookup 101
        -6 route add fe80:ec2::1 dev vlan.eth.1 table 101",
    );
    is_repaired("IPv6", &six, "-6", 101, "via fe80:ec2::1 dev vlan.eth.1");
    // Without its host route nothing tells the gateway.
    let flushed = BRANCH.replace("route add 10.0.160.1 dev vlan.eth.1 scope link table 101", "");
    let ran = node(&flushed).fix(&["--output", "json"]).expect(1);
    assert!(refusals(&ran).contains("the gateway of table 101 is unknown: it is empty"), "{ran:?}");
    // A rule for one pod that the table has a route to, by an address of the node, is nothing to its default.
    let dns = node(&format!(
        "{BRANCH}\nuplink nodelocaldns 169.254.20.10/32\nrule add pref 9 from 169.254.20.10 to 10.0.160.20 lookup 101"
    ));
    is_repaired("beside NodeLocal DNS", &dns, "-4", 101, "via 10.0.160.1 dev vlan.eth.1");
    // The rule of a link that has gone is left over, and others' rules by link are others'.
    let gone = "rule add pref 10 iif vlan.eth.9 lookup 109\nrule add pref 11 iif eth0 lookup 110\n\
        route add default via 10.0.160.1 dev vlan.eth.1 table 101";
    assert_eq!(node(&format!("{BRANCH}\n{gone}")).fix(&[]).expect(0).out, "");
}

#[test]
fn where_the_vpc_cni_is_at_work_the_vpcs_router_is_known() {
    let node_of = |more: &str| {
        node(&format!(
            "
            uplink ens5 10.0.0.10/24
            uplink ens6 100.64.0.20/16
            route add default via 10.0.0.1 dev ens5
            rule add pref 32765 from 100.64.0.20 lookup 2
            rule add pref 1536 from 100.64.0.77 lookup 2
            {more}"
        ))
    };
    let mark = "rule add pref 1024 fwmark 0x80/0x80 lookup main";
    is_repaired("its mark", &node_of(mark), "-4", 2, "via 100.64.0.1 dev ens6");
    is_refused("no mark of it", &node_of(""), &["no gateway of the main table's default routes (10.0.0.1)"]);
    let other = format!("{mark}\nroute replace default via 10.0.0.254 dev ens5");
    let ran = node_of(&other).fix(&["--output", "json"]).expect(1);
    assert!(refusals(&ran).contains("(10.0.0.254)"), "main's is not the first: {ran:?}");
    let two = format!("{mark}\naddr add 100.65.0.20/16 dev ens6");
    node_of(&two).fix(&[]).expect(1);
    let six = |prefix: &str| {
        node(&format!(
            "
            uplink eth0 2001:db8:1::10/64
            uplink eth1 {prefix}::20/64
            -6 route add default via fe80:ec2::1 dev eth0
            -6 rule add pref 32765 from {prefix}::20 lookup 10101
            -6 rule add pref 1024 fwmark 0x80/0x80 lookup main"
        ))
    };
    is_repaired("IPv6", &six("2001:db8:2"), "-6", 10101, "via fe80:ec2::1 dev eth1");
}

#[test]
fn where_the_network_interface_of_a_table_is_gone_the_pods_are_named() {
    for (family, own, lost, pods) in [
        ("", "10.0.0.10/24", "10.0.1.30", ["10.0.1.60", "10.0.1.61"]),
        ("-6", "fd00::10/64", "fd01::30", ["fd01::60", "fd01::61"]),
    ] {
        let [first, second] = pods;
        let node = node(&format!(
            "
            uplink eth0 {own}
            {family} rule add pref 1024 fwmark 0x80/0x80 lookup main
            {family} rule add pref 1536 from {first} lookup 2
            {family} rule add pref 1536 from {second} lookup 2
            {family} rule add pref 32765 from {lost} lookup 2"
        ));
        let ran = node.fix(&["--output", "json"]).expect(1);
        let said = refusals(&ran);
        assert!(said.contains(&format!("no interface has {lost}, the address of its rule 32765")), "{said}");
        assert!(said.contains(&format!("no route helps: recreate the pods {first}, {second}")), "{said}");
        for pod in pods {
            node.net.ip(&format!("{family} rule del pref 1536 from {pod} lookup 2"));
        }
        let said = refusals(&node.fix(&["--output", "json"]).expect(1));
        let (before, delete) =
            said.trim_end().split_once("restore the address; if it is gone for good: ip ").expect(&said);
        assert!(before.contains(lost), "{said}");
        node.net.ip(delete);
        assert_eq!(node.fix(&[]).expect(0).out, "", "the command is what it takes");
    }
}

#[test]
fn what_was_added_gives_way_to_the_tables_owner() {
    for (ip, own, pod, gateway) in
        [("-4", "10.0.1.10/24", "10.0.1.77", "10.0.1.1"), ("-6", "fd01::10/64", "fd01::77", "fd01::1")]
    {
        let on_link = if ip == "-4" { "scope link" } else { "" };
        let broken = || {
            let source = own.split('/').next().unwrap();
            let node = node(&format!(
                "
                uplink eth1 {own}
                {ip} route add default via {gateway} dev eth1
                {ip} rule add pref 1536 from {pod} lookup 2
                {ip} rule add pref 32765 from {source} lookup 2"
            ));
            is_repaired("empty", &node, ip, 2, &format!("via {gateway} dev eth1"));
            node
        };
        // As ifupdown's scripts do it, as networkd does, and as the CNI does at its restart.
        for (how, commands) in [
            (
                "add",
                vec![
                    format!("route add {gateway} dev eth1 {on_link} table 2"),
                    format!("route add default via {gateway} dev eth1 table 2"),
                ],
            ),
            ("only the default", vec![format!("route add default via {gateway} dev eth1 table 2")]),
            (
                "replace",
                vec![
                    format!("route replace {gateway} dev eth1 {on_link} table 2"),
                    format!("route replace default via {gateway} dev eth1 table 2"),
                ],
            ),
            (
                "delete and replace",
                vec![
                    format!("route del default via {gateway} dev eth1 table 2"),
                    format!("route replace {gateway} dev eth1 {on_link} table 2"),
                    format!("route replace default via {gateway} dev eth1 table 2"),
                ],
            ),
            ("a metric of its own", vec![format!("route add default via {gateway} dev eth1 metric 512 table 2")]),
            ("another kind", vec!["route add unreachable default table 2 metric 7".into()]),
        ] {
            let node = broken();
            for command in commands {
                node.net.ip(&format!("{ip} {command}"));
            }
            node.fix(&[]).expect(0);
            let left = node.net.ip(&format!("{ip} -N route show table 2"));
            assert!(left.lines().any(|line| line.contains("default") && !line.contains("proto 170")), "{how}: {left}");
            let ours: Vec<_> = left.lines().filter(|line| line.contains("proto 170")).collect();
            assert!(ours.iter().all(|line| line.starts_with(gateway)), "{how}: {left}");
            assert_eq!(node.fix(&[]).expect(0).out, "", "{how}: a second run");
        }
    }
}

#[test]
fn a_declared_route_takes_the_place_of_one_that_was_added() {
    let node = node(
        "
        uplink eth1 10.0.1.10/24
        route add default via 10.0.1.1 dev eth1
        rule add pref 32765 from 10.0.1.10 lookup 2",
    );
    is_repaired("empty", &node, "-4", 2, "via 10.0.1.1 dev eth1");
    for metric in ["", ", metric: 4294967295"] {
        node.config(&format!(
            "{TABLES_ALONE}\nroutes: [{{to: 10.0.1.9, dev: eth1, table: 2}}, {{to: default, via: 10.0.1.9, dev: eth1, table: 2{metric}}}]"
        ));
        node.fix(&[]).expect(0);
        let default = node.net.ip("-N route show table 2 default");
        assert!(default.contains("via 10.0.1.9") && default.contains("proto 171"), "{metric}: {default}");
        assert_eq!(default.lines().count(), 1, "{metric}: {default}");
        assert_eq!(node.fix(&[]).expect(0).out, "", "{metric}: a second run");
        node.config(TABLES_ALONE);
        node.fix(&[]).expect(0);
        let default = node.net.ip("-N route show table 2 default");
        assert!(default.contains("via 10.0.1.1") && default.contains("proto 170"), "{metric}: {default}");
    }
}

#[test]
fn what_was_added_stays_where_the_declared_route_is_refused() {
    for (ip, own, gateway, wrong) in
        [("-4", "10.0.1.10/24", "10.0.1.1", "10.9.9.9"), ("-6", "fd01::10/64", "fd01::1", "fd09::9")]
    {
        let source = own.split('/').next().unwrap();
        let node = node(&format!(
            "
            uplink eth1 {own}
            {ip} route add default via {gateway} dev eth1
            {ip} rule add pref 32765 from {source} lookup 2"
        ));
        is_repaired("empty", &node, ip, 2, &format!("via {gateway} dev eth1"));
        let repaired = node.net.state();
        let declare = |via: &str| {
            node.config(&format!("{TABLES_ALONE}\nroutes: [{{to: default, via: '{via}', dev: eth1, table: 2}}]"));
        };
        declare(wrong);
        for _ in 0..2 {
            let ran = node.fix(&["--output", "json"]).expect(1);
            let json = ran.json();
            let errors: Vec<_> = json["changes"].as_array().unwrap().iter().map(|it| it["error"].to_string()).collect();
            assert!(errors.iter().any(|it| it.contains("has no other default route; this one is kept")), "{errors:?}");
            assert_eq!(node.net.state(), repaired, "the way out stays");
        }
        declare(gateway);
        node.fix(&[]).expect(0);
        let default = node.net.ip(&format!("{ip} -N route show table 2 default"));
        assert!(default.contains("proto 171") && !default.contains("proto 170"), "{default}");
    }
}

#[test]
fn what_an_earlier_version_added_gives_way_too() {
    for (ip, own, gateway, on_link) in
        [("-4", "10.0.1.10/24", "10.0.1.1", "scope link"), ("-6", "fd01::10/64", "fd01::1", "")]
    {
        let source = own.split('/').next().unwrap();
        let node = node(&format!(
            "
            uplink eth1 {own}
            {ip} route add default via {gateway} dev eth1
            {ip} rule add pref 32765 from {source} lookup 2
            {ip} route add {gateway} dev eth1 {on_link} table 2 proto 170
            {ip} route add default via {gateway} dev eth1 table 2 proto 170"
        ));
        is_repaired("added without a metric", &node, ip, 2, &format!("via {gateway} dev eth1"));
        assert_eq!(routes(&node, ip, 2).len(), 2, "each once");
        node.net.ip(&format!("{ip} route add {gateway} dev eth1 {on_link} table 2"));
        node.net.ip(&format!("{ip} route add default via {gateway} dev eth1 table 2"));
        node.fix(&[]).expect(0);
        let default = node.net.ip(&format!("{ip} -N route show table 2 default"));
        assert_eq!((default.lines().count(), default.contains("proto 170")), (1, false), "{default}");
    }
}
