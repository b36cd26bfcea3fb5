//! `explain` on nodes that are found in the field: a packet has to leave by the link to which its source belongs, and the
//! reply has to come back. Each node is made for IPv4, and again for IPv6 by the same lines.

use crate::kit::{Netns, Ran, finish, node_fixer, until};

/// A node of its own links, each of which ends in the same other namespace.
struct Node {
    net: Netns,
    far: Netns,
    v6: bool,
}

/// The same line for IPv6: a.b.c.d is fd00:a:b:c::d, and prefixes are as much longer.
fn in_ipv6(line: &str) -> String {
    let word = |word: &str| {
        let (address, length) = word.split_once('/').map_or((word, None), |(address, length)| (address, Some(length)));
        let parts: Vec<u8> = address.split('.').filter_map(|part| part.parse().ok()).collect();
        let [a, b, c, d] = parts.as_slice() else { return word.to_owned() };
        let length = length.map_or(String::new(), |length| {
            let length: u32 = length.parse().unwrap();
            format!("/{}", if length > 24 { 96 + length } else { 16 + 2 * length })
        });
        let host = if *d == 0 && !length.is_empty() { String::new() } else { d.to_string() };
        let address: std::net::Ipv6Addr = format!("fd00:{a}:{b}:{c}::{host}").parse().unwrap();
        format!("{address}{length}")
    };
    line.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

impl Node {
    /// Links by name, all up with a carrier; `br:NAME` is a bridge with a port.
    fn new(v6: bool, links: &str, lines: &str) -> Node {
        let node = Node { net: Netns::new(), far: Netns::new(), v6 };
        for all in ["all", "default"] {
            node.net.set_sysctl(&format!("net/ipv4/conf/{all}/rp_filter"), "0");
            node.net.set_sysctl(&format!("net/ipv6/conf/{all}/accept_dad"), "0");
        }
        node.net.set_sysctl("net/ipv4/conf/all/forwarding", "1");
        node.net.set_sysctl("net/ipv6/conf/all/forwarding", "1");
        for (number, link) in links.split_whitespace().enumerate() {
            let (bridge, name) = match link.strip_prefix("br:") {
                Some(bridge) => (Some(bridge), format!("port{number}")),
                None => (None, link.to_owned()),
            };
            node.net.ip(&format!("link add {name} type veth peer name f{number} netns {}", node.far.path()));
            node.far.ip(&format!("link set f{number} up"));
            node.net.ip(&format!("link set {name} up"));
            if let Some(bridge) = bridge {
                node.net.ip(&format!("link add {bridge} type bridge"));
                node.net.ip(&format!("link set {name} master {bridge}"));
                node.net.ip(&format!("link set {bridge} up"));
            }
        }
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            node.ip(line);
        }
        until("a carrier on every link", || !node.net.ip("route show table all").contains("linkdown"));
        // The kernel takes an IPv6 address for its own only a moment after it was added.
        until("no address is tentative", || node.net.ip("-6 addr show tentative").is_empty());
        until("every address in the table local", || {
            let local = node.net.ip("-6 route show table local");
            let links = node.net.ip_json("-6 addr show scope global");
            let of = |link: &'_ serde_json::Value| link["addr_info"].as_array().cloned().unwrap_or_default();
            let mut addresses = links.as_array().unwrap().iter().flat_map(of);
            addresses.all(|it| it["local"].as_str().is_none_or(|it| local.contains(&format!("local {it} "))))
        });
        node
    }

    /// `ip …` of this node's family.
    fn ip(&self, line: &str) {
        if self.v6 {
            self.net.ip(&format!("-6 {}", in_ipv6(line)));
        } else {
            self.net.ip(line);
        }
    }

    fn rp_filter(&self, link: &str, value: &str) {
        self.net.set_sysctl(&format!("net/ipv4/conf/{link}/rp_filter"), value);
    }

    fn explain(&self, [source, destination]: [&str; 2]) -> Ran {
        let [source, destination] = [source, destination].map(|it| if self.v6 { in_ipv6(it) } else { it.to_owned() });
        let ran = finish(self.net.output(node_fixer().args(["explain", &source, &destination])));
        assert!(ran.err.is_empty() && !ran.out.contains("DISAGREES") && !ran.out.contains("unknown"), "{ran:?}");
        ran
    }

    /// What it says of a pair: the exit code, what has to be there, and what may not (from a `!` on).
    fn says(&self, pair: [&str; 2], code: i32, parts: &[&str]) {
        let ran = self.explain(pair).expect(code);
        for part in parts {
            let (wanted, part) = part.strip_prefix('!').map_or((true, *part), |part| (false, part));
            let part = if self.v6 { in_ipv6_text(part) } else { part.to_owned() };
            assert_eq!(ran.out.contains(&part), wanted, "{part:?} of {pair:?}:\n{}", ran.out);
        }
    }
}

/// The same for a text with punctuation around addresses.
fn in_ipv6_text(text: &str) -> String {
    let is_of_address = |c: char| c.is_ascii_digit() || c == '.' || c == '/';
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        let end = rest[start..].find(|c| !is_of_address(c)).map_or(rest.len(), |end| start + end);
        out += &rest[..start];
        out += &in_ipv6(&rest[start..end]);
        rest = &rest[end..];
    }
    // Routes of IPv6 have a metric.
    out + rest
}

const FAMILIES: [bool; 2] = [false, true];
const CHECKED: &str = "a network that checks sources";

#[test]
fn the_same_lines_make_an_ipv6_node() {
    assert_eq!(in_ipv6("addr add 10.0.1.10/24 dev eth1"), "addr add fd00:10:0:1::10/64 dev eth1");
    assert_eq!(in_ipv6("route add 172.17.0.0/16 via 10.0.0.1"), "route add fd00:172:17::/48 via fd00:10::1");
    assert_eq!(in_ipv6("rule add priority 10 from 10.37.0.9/32"), "rule add priority 10 from fd00:10:37::9/128");
    assert_eq!(in_ipv6_text("rule 100 (from 10.0.0.9 lookup 2): x"), "rule 100 (from fd00:10::9 lookup 2): x");
}

/// An address of the first uplink, whose table knows no container's bridge.
const OWN_TABLE_AND_BRIDGE: &str = "
    addr add 10.0.1.10/24 dev ens5
    route add default via 10.0.1.1 dev ens5
    addr add 172.17.0.1/24 dev docker0
    route add default via 10.0.1.1 dev ens5 table 10001
    rule add priority 10001 from 10.0.1.10/32 lookup 10001
";

#[test]
fn a_rule_that_leads_past_a_bridge_breaks_what_is_behind_it() {
    for v6 in FAMILIES {
        let node = Node::new(v6, "ens5 br:docker0", OWN_TABLE_AND_BRIDGE);
        let past = "breaks: 172.17.0.2 is in a subnet of docker0 (172.17.0.0/24 dev docker0 table main";
        let rule = "but rule 10001 (from 10.0.1.10 lookup 10001) sends the packet to ens5";
        node.says(["10.0.1.10", "172.17.0.2"], 1, &[past, rule]);
        node.says(["172.17.0.2", "10.0.1.10"], 1, &["breaks: the reply to 172.17.0.2 does not go to docker0"]);
        // What the table does not lead past works, and so does a table that knows the bridge.
        node.says(["172.17.0.1", "172.17.0.2"], 0, &["works: ", "!note: "]);
        node.ip("route add 172.17.0.0/24 dev docker0 table 10001");
        node.says(["10.0.1.10", "172.17.0.2"], 0, &["works: ", "!note: "]);
        node.says(["172.17.0.2", "10.0.1.10"], 0, &["works: ", "!note: ", "from behind docker0"]);
    }
}

#[test]
fn what_stays_behind_a_bridge_meets_no_check_of_sources() {
    for v6 in FAMILIES {
        let node = Node::new(
            v6,
            "eth0 eth1 br:docker0",
            "addr add 10.0.1.10/24 dev eth0
            route add default via 10.0.1.1 dev eth0
            addr add 10.0.2.20/24 dev eth1
            addr add 172.17.0.1/24 dev docker0
            route add 10.50.0.0/16 via 10.0.2.1 dev eth1 table 10001
            rule add priority 32765 from 10.0.2.20/32 lookup 10001",
        );
        for link in ["eth0", "eth1", "docker0"] {
            node.rp_filter(link, "1");
        }
        let falls =
            "note: rule 32765 (from 10.0.2.20 lookup 10001) falls through: no route to 172.17.0.2 in table 10001";
        node.says(["10.0.2.20", "172.17.0.2"], 0, &["works: ", falls, &format!("!{CHECKED}")]);
        node.says(["172.17.0.2", "10.0.2.20"], 0, &["works: ", &format!("!{CHECKED}")]);
        // The twin: to the network it has to leave by its own link.
        let elsewhere = "so the packet leaves by eth0, but 10.0.2.20 is an address of eth1";
        node.says(["10.0.2.20", "192.0.2.1"], 1, &[elsewhere]);
        node.says(["10.0.2.20", "10.50.0.7"], 0, &["works: ", "!note: "]);
    }
}

#[test]
fn an_address_of_this_node_belongs_to_the_link_that_carries_it() {
    for (v6, length) in [(false, 32), (false, 20), (true, 32), (true, 20)] {
        let node = Node::new(
            v6,
            "eth0 eth1",
            &format!(
                "addr add 10.33.0.9/{length} dev eth0
                addr add 10.37.0.9/{length} dev eth1
                route append 10.33.0.1/32 dev eth0
                route add default via 10.33.0.1 dev eth0
                route append 10.37.0.1/32 dev eth1
                route add 10.33.0.1/32 dev eth0 table 11
                rule add priority 100 from 10.37.0.9/32 lookup 11"
            ),
        );
        let pair = ["10.37.0.9", "192.0.2.1"];
        let falls = "breaks: rule 100 (from 10.37.0.9 lookup 11) falls through: no route to 192.0.2.1 in table 11; so the \
                     packet leaves by eth0, but 10.37.0.9 is an address of eth1";
        node.says(pair, 1, &[falls, "assumed to come in by eth1 (10.37.0.9 is an address of eth1)"]);
        node.ip("route add default via 10.33.0.1 dev eth0 table 11");
        node.says(pair, 1, &["breaks: the packet leaves by eth0, but 10.37.0.9 is an address of eth1", CHECKED]);
        node.says(["192.0.2.1", "10.37.0.9"], 1, &["it comes in by eth1", "but 10.37.0.9 is an address of eth1"]);
        // The twins: its table leads by its link; and the first address, which has no table.
        node.ip("route add 10.37.0.1/32 dev eth1 table 11");
        node.ip("route replace default via 10.37.0.1 dev eth1 table 11");
        node.says(pair, 0, &["works: ", "!note: ", "assumed to come in by eth1 (its table 11 uses it)"]);
        node.says(["10.33.0.9", "192.0.2.1"], 0, &["works: ", "!note: "]);
        // Without a rule of its own a plain server answers by whichever link it likes.
        node.ip("rule del from 10.37.0.9/32 lookup 11");
        node.says(pair, 0, &["note: the packet leaves by eth0, but 10.37.0.9 ", CHECKED]);
    }
}

#[test]
fn a_neighbour_comes_in_by_its_link_whatever_a_tunnel_says() {
    for v6 in FAMILIES {
        let node = Node::new(
            v6,
            "eth0 tun9",
            "addr add 10.107.19.20/16 dev eth0
            addr add 100.64.0.7/32 dev tun9
            route add default via 10.107.0.1 dev eth0
            route add 10.107.0.0/16 dev tun9 table 52
            route add 100.64.0.9/32 dev tun9 table 52
            rule add priority 5210 fwmark 0x80000/0xff0000 lookup main
            rule add priority 5270 lookup 52",
        );
        node.rp_filter("eth0", "1");
        let (own, neighbour) = ("10.107.19.20", "10.107.25.177");
        let note = "note: 10.107.25.177 is in a subnet of eth0 (10.107.0.0/16), but rule 5270 (from all lookup 52) \
                    comes before it and sends the packet to tun9";
        node.says([own, neighbour], 0, &[note]);
        let strays = "the reply to 10.107.25.177 does not go to eth0, but takes 10.107.0.0/16 dev tun9 table 52";
        node.says([neighbour, own], 1, &["it comes in by eth0", strays]);
        if !v6 {
            let martian = "breaks: eth0 drops the packet from 10.107.25.177 to 10.107.19.20 as a martian (rp_filter 1, \
                           strict): the route back is 10.107.0.0/16 dev tun9 table 52";
            node.says([neighbour, own], 1, &[martian]);
        }
        // The twins: a peer of the tunnel, what is beyond eth0, and the neighbour once its own subnet comes first.
        node.says(["100.64.0.9", "100.64.0.7"], 0, &["it comes in by tun9", "!note: "]);
        node.says([own, "192.0.2.1"], 0, &["!note: "]);
        node.ip("rule add priority 2500 to 10.107.0.0/16 lookup main");
        for pair in [[own, neighbour], [neighbour, own]] {
            node.says(pair, 0, &["works: ", "!note: "]);
        }
    }
}

/// Two uplinks and a pod of the second one, whose table has gone with its link.
const GONE: &str = "
    addr add 10.0.1.10/24 dev eth0
    route add default via 10.0.1.1 dev eth0
    route add 10.0.1.50/32 dev pod0
    route add 10.0.1.60/32 dev pod1
    rule add priority 512 to 10.0.1.60/32 lookup main
    rule add priority 1536 from 10.0.1.60/32 lookup 2
    rule add priority 32765 from 10.0.1.30/32 lookup 2
";

#[test]
fn a_rule_of_the_source_that_leads_to_an_empty_table_is_always_reported() {
    for v6 in FAMILIES {
        let node = Node::new(v6, "eth0 pod0 pod1", GONE);
        let falls = "rule 1536 (from 10.0.1.60 lookup 2) falls through: table 2 is empty; so the packet leaves by eth0";
        let breaks = format!("breaks: {falls}, but 10.0.1.60 belongs to another uplink");
        node.says(["10.0.1.60", "10.0.2.5"], 1, &[&breaks, "!priority 1536)"]);
        node.says(["10.0.2.5", "10.0.1.60"], 1, &[&breaks]);
        node.says(["10.0.1.50", "10.0.2.5"], 0, &["!falls through: table 2"]);
        // Behind a link that carries the other source of the table it is known where the pod belongs.
        node.ip("addr add 10.0.1.30/24 dev eth0");
        node.says(["10.0.1.60", "10.0.2.5"], 0, &[&format!("note: {falls}")]);
        // Another rule of the source that leads somewhere.
        node.ip("rule add priority 1537 from 10.0.1.60/32 lookup 3");
        node.ip("route add default via 10.0.1.1 dev eth0 table 3");
        node.says(["10.0.1.60", "10.0.2.5"], 0, &[&format!("note: {falls}")]);
    }
}

#[test]
fn a_stale_rule_of_a_pod_before_the_right_one_is_no_break() {
    for v6 in FAMILIES {
        let node = Node::new(
            v6,
            "eth0 eth1 pod0",
            "addr add 10.0.1.10/24 dev eth0
            route add default via 10.0.1.1 dev eth0
            addr add 10.64.1.30/24 dev eth1
            route add default via 10.64.1.1 dev eth1 table 2
            route add 10.64.1.60/32 dev pod0
            rule add priority 512 to 10.64.1.60/32 lookup main
            rule add priority 1536 from 10.64.1.60/32 to 10.0.0.0/8 lookup 3
            rule add priority 1537 from 10.64.1.60/32 to 10.0.0.0/8 lookup 2",
        );
        let falls = "note: rule 1536 (from 10.64.1.60 to 10.0.0.0/8 lookup 3) falls through: table 3 is empty; so the packet \
                     leaves by eth1";
        node.says(["10.64.1.60", "10.0.2.2"], 0, &["works: ", falls]);
    }
}

#[test]
fn a_table_that_leads_by_another_subnets_uplink_is_noted() {
    for (v6, pod) in [(false, "pod0"), (false, "eni00000000001"), (true, "pod0"), (true, "eni00000000001")] {
        let node = Node::new(
            v6,
            &format!("eth0 eth1 eth2 {pod}"),
            &format!(
                "addr add 10.0.1.10/24 dev eth0
                route add default via 10.0.1.1 dev eth0
                addr add 10.0.64.30/24 dev eth1
                addr add 10.0.65.30/24 dev eth2
                route add 10.0.65.1/32 dev eth2 table 11
                route add default via 10.0.65.1 dev eth2 table 11
                route add 10.0.64.40/32 dev {pod}
                rule add priority 20 to 10.0.64.40/32 lookup main
                rule add priority 111 from 10.0.64.40/32 lookup 11"
            ),
        );
        let note =
            "note: the packet leaves by eth2, but 10.0.64.40 is in a subnet of eth1: a network that checks sources";
        node.says(["10.0.64.40", "10.0.70.7"], 0, &["works: ", note]);
        // Two rules, the stale one first.
        node.ip("route add default via 10.0.64.1 dev eth1 table 12");
        node.ip("rule add priority 112 from 10.0.64.40/32 lookup 12");
        node.says(["10.0.64.40", "10.0.70.7"], 0, &[note]);
        node.ip("rule del from 10.0.64.40/32 lookup 11");
        node.says(["10.0.64.40", "10.0.70.7"], 0, &["works: ", "!note: "]);
        // Which subnet an uplink with a /32 lies in, nothing says.
        node.ip("rule del from 10.0.64.40/32 lookup 12");
        node.ip("rule add priority 111 from 10.0.64.40/32 lookup 11");
        node.ip("addr del 10.0.65.30/24 dev eth2");
        node.ip("addr add 10.0.65.30/32 dev eth2");
        node.ip("route replace 10.0.65.1/32 dev eth2 table 11");
        node.ip("route replace default via 10.0.65.1 dev eth2 table 11");
        node.says(["10.0.64.40", "10.0.70.7"], 0, &["works: ", "!note: "]);
    }
}

#[test]
fn a_bridge_may_shadow_a_part_of_the_network() {
    for v6 in FAMILIES {
        let node = Node::new(
            v6,
            "eth0 br:docker0 eni00000000001",
            "addr add 10.0.1.10/24 dev eth0
            route add default via 10.0.1.1 dev eth0
            addr add 172.17.0.1/24 dev docker0
            route add 10.0.1.50/32 dev eni00000000001
            rule add priority 512 to 10.0.1.50/32 lookup main",
        );
        let note = "note: 172.17.0.0/24 of docker0 takes the packet; if 172.17.0.4 is elsewhere, the packet does not \
                    get there";
        for source in ["10.0.1.50", "10.0.1.10"] {
            node.says([source, "172.17.0.4"], 0, &["works: ", note, &format!("!{CHECKED}")]);
            node.says([source, "172.18.0.4"], 0, &["works: ", "!note: "]);
        }
    }
}

#[test]
fn a_pod_behind_a_prefix_needs_no_host_route() {
    for v6 in FAMILIES {
        let node = Node::new(
            v6,
            "eth0 eth2 mp0",
            "addr add 172.18.0.5/24 dev eth0
            addr add 10.10.10.5/24 dev eth2
            addr add 10.244.2.2/24 dev mp0
            route add default via 172.18.0.1 dev eth0
            rule add priority 6000 from 10.244.2.3/32 lookup 1111
            route add default dev eth2 table 1111",
        );
        node.net.set_sysctl("net/ipv4/conf/all/rp_filter", "1");
        let pair = ["10.244.2.3", "10.10.10.200"];
        node.says(
            pair,
            0,
            &["works: ", "!note: ", "from behind mp0", "assumed to come in by eth2 (its table 1111 uses it"],
        );
        // One that another route than a default leads to, and by a gateway.
        node.ip("rule add priority 6000 from 10.9.9.9/32 lookup 1111");
        node.ip("route add 10.9.9.0/24 via 10.244.2.9 dev mp0");
        let note = "note: there are rules for 10.9.9.9 alone, as for a pod, but no host route to it; ";
        node.says(["10.9.9.9", "10.10.10.200"], 0, &[note, "it comes in by mp0"]);
        // The twins: nothing but a default leads there; and an empty table.
        node.ip("route del 10.9.9.0/24");
        node.says(["10.9.9.9", "10.10.10.200"], 1, &["breaks: there are rules for 10.9.9.9 alone"]);
        node.ip("route del default table 1111");
        let falls =
            "rule 6000 (from 10.244.2.3 lookup 1111) falls through: table 1111 is empty; so the packet leaves by";
        node.says(["10.244.2.3", "192.0.2.1"], 1, &[falls]);
    }
}

/// Pods with security groups of their own, the first with its rule, the second with a leaked one.
const BRANCHES: &str = "
    addr add 10.0.1.10/24 dev eth0
    route add default via 10.0.1.1 dev eth0
    rule add priority 20 lookup local
    rule del priority 0
    route add 10.0.160.1/32 dev vlan.eth.1 table 101
    route add default via 10.0.160.1 dev vlan.eth.1 table 101
    route add 10.0.160.1/32 dev vlan.eth.2 table 102
    route add default via 10.0.160.1 dev vlan.eth.2 table 102
    route add 10.0.160.20/32 dev vlan0000000b001 table 101
    route add 10.0.160.30/32 dev vlan0000000b002 table 102
    rule add priority 10 iif vlan.eth.1 lookup 101
    rule add priority 10 iif vlan.eth.2 lookup 102
    rule add priority 10 iif vlan0000000b001 lookup 101
    rule add priority 10 iif vlan0000000b002 lookup 101
    addr add 10.100.0.10/32 dev nodelocaldns
";

#[test]
fn an_address_of_this_node_that_a_rule_passes_by_is_reported() {
    for v6 in FAMILIES {
        let links = "eth0 vlan.eth.1 vlan.eth.2 vlan0000000b001 vlan0000000b002 br:nodelocaldns";
        let node = Node::new(v6, links, BRANCHES);
        let pod = "10.0.160.20";
        for own in ["10.100.0.10", "10.0.1.10"] {
            let note = format!(
                "note: {own} is an address of this node, but rule 10 (from all iif vlan0000000b001 lookup 101)"
            );
            node.says([pod, own], 0, &[&note, "the packet leaves by vlan.eth.1"]);
        }
        if !v6 {
            let dns = "169.254.20.10";
            node.ip("addr add 169.254.20.10/32 dev nodelocaldns");
            let breaks = "breaks: 169.254.20.10 is an address of this node, but rule 10 (from all iif vlan0000000b001";
            node.says([pod, dns], 1, &[breaks, "routers do not forward"]);
            // Made reachable, it is no uplink of the pod's.
            node.ip("rule add priority 9 from 169.254.20.10/32 to 10.0.160.20/32 lookup 101");
            node.ip("route add local 169.254.20.10/32 dev nodelocaldns table 101");
            node.says([pod, dns], 0, &["works: ", "!note: "]);
            node.says([dns, pod], 0, &["works: ", "!note: "]);
        }
        node.says(
            [pod, "10.0.2.2"],
            0,
            &["works: ", "!note: ", "assumed to come in by vlan.eth.1 (its table 101 uses it"],
        );
        node.ip("route del default table 101");
        let falls = "so the packet leaves by eth0, but 10.0.160.20 belongs to vlan.eth.1 (its table 101 uses it)";
        node.says([pod, "10.0.2.2"], 1, &[falls, "!nodelocaldns"]);
    }
}

#[test]
fn a_leaked_rule_of_a_pods_link_is_named_with_the_table_that_has_the_route() {
    for v6 in FAMILIES {
        let links = "eth0 vlan.eth.1 vlan.eth.2 vlan0000000b001 vlan0000000b002 br:nodelocaldns";
        let node = Node::new(v6, links, BRANCHES);
        let stale = "breaks: table 102 has the route to 10.0.160.30 (10.0.160.30";
        let rule = "but rule 10 (from all iif vlan0000000b002 lookup 101) uses table 101";
        for pair in [["10.0.160.30", "10.0.2.5"], ["10.0.1.10", "10.0.160.30"]] {
            node.says(pair, 1, &[stale, rule]);
        }
        node.ip("rule del priority 10 iif vlan0000000b002 lookup 101");
        node.ip("rule add priority 10 iif vlan0000000b002 lookup 102");
        for pair in [["10.0.160.30", "10.0.2.5"], ["10.0.1.10", "10.0.160.30"]] {
            node.says(pair, 0, &["works: ", "!table 102 has"]);
        }
    }
}

#[test]
fn a_neighbour_with_a_rule_of_its_own_is_no_pod_that_has_gone() {
    for v6 in FAMILIES {
        // A router with one link: one of the neighbours has another way out.
        let node = Node::new(
            v6,
            "eth0",
            "addr add 10.0.0.10/24 dev eth0
            route add default via 10.0.0.1 dev eth0
            rule add priority 100 from 10.0.0.50/32 lookup 100
            route add default via 10.0.0.2 dev eth0 table 100",
        );
        let note = "note: there are rules for 10.0.0.50 alone, as for a pod, but no host route to it: if it is a pod's";
        node.says(["10.0.0.50", "192.0.2.1"], 0, &["works: ", note]);
        // The twin: in no subnet of the node, it can be here by a route of its own alone.
        node.ip("rule add priority 100 from 10.9.9.9/32 lookup 100");
        node.says(["10.9.9.9", "192.0.2.1"], 1, &["breaks: there are rules for 10.9.9.9 alone"]);
    }
}

#[test]
fn a_rule_to_a_pod_without_a_route_is_noted_where_the_vpc_cni_is() {
    for v6 in FAMILIES {
        let node = Node::new(
            v6,
            "eth0 eth1",
            "addr add 10.0.1.10/24 dev eth0
            addr add 10.0.2.10/24 dev eth1
            route add default via 10.0.1.1 dev eth0
            rule add priority 512 to 10.0.1.50/32 lookup main
            rule add priority 1024 fwmark 0x80/0x80 lookup main
            rule add priority 32765 from 10.0.2.10/32 lookup 2
            route add default via 10.0.2.1 dev eth1 table 2",
        );
        node.says(
            ["10.0.1.10", "10.0.1.50"],
            0,
            &["note: there is a rule 512 for 10.0.1.50, as for a pod, but no host"],
        );
        let source =
            "note: there are rules for 10.0.1.50 alone, as for a pod, but no host route to it: if it is a pod's";
        node.says(["10.0.1.50", "10.0.1.10"], 0, &[source]);
        // The twin: another address of the subnet has no such rule.
        node.says(["10.0.1.10", "10.0.1.51"], 0, &["works: ", "!note: "]);
    }
}

#[test]
fn an_address_of_the_loopback_belongs_to_where_its_table_leads_and_is_no_address_there() {
    for v6 in FAMILIES {
        let node = Node::new(
            v6,
            "eth0 eth1",
            "addr add 10.0.0.10/24 dev eth0
            addr add 10.0.1.10/24 dev eth1
            addr add 10.5.5.5/32 dev lo
            route add default via 10.0.1.1 dev eth1
            rule add priority 100 from 10.5.5.5/32 lookup 15
            route append 10.0.0.1/32 dev eth0 table 15",
        );
        let belongs = "the packet leaves by eth1, but 10.5.5.5 belongs to eth0 (its table 15 uses it)";
        node.says(["10.5.5.5", "192.0.2.1"], 1, &[belongs, "!is an address of eth0"]);
    }
}

#[test]
fn a_reply_between_own_addresses_that_a_rule_leads_away_is_reported() {
    for v6 in FAMILIES {
        let node = Node::new(
            v6,
            "eth0 eth1",
            "addr add 10.0.0.10/24 dev eth0
            addr add 10.0.1.10/24 dev eth1
            route add default via 10.0.0.1 dev eth0
            rule add priority 1500 lookup local
            rule add priority 1000 from 10.0.1.10/32 lookup 15
            route add default via 10.0.1.1 dev eth1 table 15",
        );
        let pair = ["10.0.0.10", "10.0.1.10"];
        node.says(pair, 0, &["works: ", "!note: "]);
        node.ip("rule del priority 0");
        node.says(pair, 0, &["note: 10.0.0.10 is an address of this node, but rule 1000 (from 10.0.1.10 lookup 15)"]);
    }
}
