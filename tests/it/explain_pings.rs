//! `explain` against reality: on generated nodes with uplinks, policy tables, pods, a container's bridge and a tunnel, what
//! it says of a pair of addresses is what a ping between their network namespaces says. The network beyond the uplinks
//! checks sources, as clouds do, and forwards nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::time::Duration;

use serde_json::Value;

use crate::explain::{Dice, batch};
use crate::kit::{Netns, finish, node_fixer, until};

/// Generated nodes of a run of the tests, and pairs of addresses of each. More: NODE_FIXER_PING_NODES=1000.
const NODES: u64 = 60;
const PAIRS: usize = 12;
const UPLINKS: usize = 3;

/// The namespaces: links are made once, and what they carry is generated anew for each node.
struct Rig {
    node: Netns,
    network: Netns,
    beyond: Netns,
    pods: Vec<Netns>,
    containers: Vec<Netns>,
}

impl Rig {
    fn new() -> Rig {
        let rig = Rig {
            node: Netns::new(),
            network: Netns::new(),
            beyond: Netns::new(),
            pods: (0..3).map(|_| Netns::new()).collect(),
            containers: (0..2).map(|_| Netns::new()).collect(),
        };
        for net in rig.all() {
            for all in ["all", "default"] {
                net.set_sysctl(&format!("net/ipv6/conf/{all}/accept_dad"), "0");
                net.set_sysctl(&format!("net/ipv4/conf/{all}/rp_filter"), "0");
            }
        }
        rig.node.set_sysctl("net/ipv4/conf/all/forwarding", "1");
        rig.node.set_sysctl("net/ipv6/conf/all/forwarding", "1");
        rig.node.ip("link add br0 type bridge");
        rig.node.ip("link set br0 up");
        for n in 0..UPLINKS {
            rig.veth(&format!("eth{n}"), &format!("r{n}"), &rig.network);
            rig.node.ip(&format!("link set eth{n} address 02:00:00:00:01:0{n}"));
        }
        for (n, pod) in rig.pods.iter().enumerate() {
            rig.veth(&format!("pod{n}"), "eth0", pod);
            rig.node.ip(&format!("link set pod{n} address 02:00:00:00:03:0{n}"));
            rig.node.ip(&format!("addr add fe80::1/64 dev pod{n}"));
            rig.node.set_sysctl(&format!("net/ipv4/conf/pod{n}/proxy_arp"), "1");
        }
        for (n, container) in rig.containers.iter().enumerate() {
            rig.veth(&format!("b{n}"), "eth0", container);
            rig.node.ip(&format!("link set b{n} master br0"));
        }
        // A tunnel that stands for one, and a real one, over a link of its own.
        rig.veth("tun0", "tun0", &rig.beyond);
        rig.veth("under0", "under0", &rig.beyond);
        for (net, own, other) in [(&rig.node, 1, 2), (&rig.beyond, 2, 1)] {
            net.ip(&format!("addr add 10.255.255.{own}/30 dev under0"));
            net.ip(&format!(
                "link add tun1 type vxlan id 7 local 10.255.255.{own} remote 10.255.255.{other} dstport 4789 dev under0"
            ));
            net.ip("link set tun1 up");
        }
        until("a carrier on every link", || {
            let links = rig.node.ip_json("link show up");
            links.as_array().unwrap().iter().all(|link| !link["flags"].to_string().contains("NO-CARRIER"))
        });
        rig
    }

    fn all(&self) -> impl Iterator<Item = &Netns> {
        [&self.node, &self.network, &self.beyond].into_iter().chain(&self.pods).chain(&self.containers)
    }

    fn veth(&self, name: &str, peer: &str, other: &Netns) {
        self.node.ip(&format!("link add {name} type veth peer name {peer} netns {}", other.path()));
        self.node.ip(&format!("link set {name} up"));
        other.ip(&format!("link set {peer} up"));
    }

    fn of(&self, at: At) -> &Netns {
        match at {
            At::Node => &self.node,
            At::Network => &self.network,
            At::Beyond => &self.beyond,
            At::Pod(n) => &self.pods[n],
            At::Container(n) => &self.containers[n],
        }
    }
}

/// Where an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum At {
    Node,
    Network,
    Beyond,
    Pod(usize),
    Container(usize),
}

/// A generated node: what makes it, by namespace, and the addresses that there are.
struct Made {
    lines: BTreeMap<At, Vec<String>>,
    sysctls: Vec<(String, &'static str)>,
    addresses: Vec<(At, String)>,
    v6: bool,
    shape: String,
}

impl Made {
    fn add(&mut self, at: At, line: String) {
        self.lines.entry(at).or_default().push(line);
    }

    fn host(&self, address: &str) -> String {
        format!("{address}/{}", if self.v6 { 128 } else { 32 })
    }

    /// Network `net`'s address number `host`.
    fn address(&self, net: usize, host: usize) -> String {
        if self.v6 { format!("fd00:{net}::{host:x}") } else { format!("10.0.{net}.{host}") }
    }

    fn pick<'a>(&self, v4: &'a str, v6: &'a str) -> &'a str {
        if self.v6 { v6 } else { v4 }
    }
}

/// A node of this seed.
fn generate(seed: u64) -> Made {
    let dice = &mut Dice(seed);
    let v6 = dice.chance(3);
    let shape = dice.pick(&["wide", "wide", "narrow", "shared"]).to_owned();
    let mut made = Made { lines: BTreeMap::new(), sysctls: Vec::new(), addresses: Vec::new(), v6, shape };
    let wide = made.shape == "wide";
    let length = made.pick("24", "64").to_owned();
    // Which subnet an uplink lies in: of two in one subnet nothing but their rules says which is which.
    let net = |n: usize| if made.shape == "shared" && n == 1 { 0 } else { n };
    let nets: Vec<usize> = (0..UPLINKS).map(net).collect();
    let own: Vec<String> = (0..UPLINKS).map(|n| made.address(nets[n], 10 + n)).collect();
    let gateway: Vec<String> = (0..UPLINKS).map(|n| made.address(nets[n], 1)).collect();

    let has_rule = [dice.chance(5), !dice.chance(5), !dice.chance(5)];

    let server = made.pick("192.0.2.1", "2001:db8::1").to_owned();
    made.add(At::Network, format!("addr add {} dev lo", made.host(&server)));
    for n in 0..UPLINKS {
        let narrow = made.shape == "narrow";
        let subnet = if narrow { made.host(&own[n]) } else { format!("{}/{length}", own[n]) };
        made.add(At::Node, format!("addr add {subnet} dev eth{n}"));
        made.add(At::Network, format!("addr add {} dev r{n}", made.host(&gateway[n])));
        made.add(At::Network, format!("route add {} dev r{n}", made.host(&own[n])));
        // A cloud's network asks nobody for the hardware addresses of its nodes.
        made.add(At::Network, format!("neigh replace {} lladdr 02:00:00:00:01:0{n} dev r{n} nud permanent", own[n]));
        allow(&mut made, &own[n], n);
        if narrow {
            made.add(At::Node, format!("route add {} dev eth{n} scope link", made.host(&gateway[n])));
        } else {
            let neighbour = made.address(nets[n], 77);
            made.add(At::Network, format!("addr add {} dev r{n}", made.host(&neighbour)));
            // Where no default and no rule leads, nothing says that a network is there that checks sources.
            if n == 0 || has_rule[n] {
                made.addresses.push((At::Network, neighbour));
            }
        }
        made.addresses.push((At::Node, own[n].clone()));
    }
    made.addresses.extend([(At::Network, server.clone()), (At::Network, server)]);
    made.add(At::Node, format!("route add default via {} dev eth0", gateway[0]));
    if wide && dice.chance(4) {
        let server = made.pick("192.0.2.0/24", "2001:db8::/64");
        made.add(At::Node, format!("route add {server} via {} dev eth1", gateway[1]));
    }

    for n in 0..UPLINKS {
        if has_rule[n] {
            let priority = dice.pick(&["100", "1000", "32765"]);
            let from = made.host(&own[n]);
            made.add(At::Node, format!("rule add priority {priority} from {from} lookup {}", 2 + n));
        }
        let knowable = wide || has_rule[n];
        table(dice, &mut made, n, &gateway, knowable);
    }
    pods(dice, &mut made, &nets, wide);
    local_links(dice, &mut made);
    let links = ["eth0", "eth1", "eth2", "pod0", "pod1", "pod2", "br0", "tun0", "tun1", "all"];
    for link in links {
        let value = match link {
            "all" => dice.pick(&["0", "0", "0", "1", "2"]),
            _ => dice.pick(&["0", "1", "2", "2"]),
        };
        let value = ["0", "1", "2"].into_iter().find(|it| *it == value).unwrap();
        made.sysctls.push((format!("net/ipv4/conf/{link}/rp_filter"), value));
    }
    made
}

/// The network accepts a source by this uplink alone.
fn allow(made: &mut Made, source: &str, uplink: usize) {
    let from = made.host(source);
    made.add(At::Network, format!("rule add priority 100 iif r{uplink} from {from} goto 300"));
}

/// The policy table of an uplink, in one of the states that nodes are found in.
fn table(dice: &mut Dice, made: &mut Made, n: usize, gateway: &[String], knowable: bool) {
    let (table, other) = (2 + n, (n + 1) % UPLINKS);
    let by = |n: usize, made: &Made| {
        let host = format!("route add {} dev eth{n} scope link table {table}", made.host(&gateway[n]));
        (host, format!("route add default via {} dev eth{n} table {table}", gateway[n]))
    };
    let (host, default) = by(n, made);
    match dice.roll(12) {
        0 => made.add(At::Node, host),
        1 => {}
        2 if knowable => {
            let (host, default) = by(other, made);
            made.add(At::Node, host);
            made.add(At::Node, default);
        }
        3 => {
            made.add(At::Node, host);
            let elsewhere = made.pick("198.51.100.0/24", "2001:db8:100::/64");
            made.add(At::Node, format!("route add {elsewhere} via {} dev eth{n} table {table}", gateway[n]));
        }
        4 => {
            made.add(At::Node, host);
            let server = made.pick("192.0.2.0/24", "2001:db8::/64");
            made.add(At::Node, format!("route add {server} via {} dev eth{n} table {table}", gateway[n]));
        }
        5 => {
            made.add(At::Node, format!("route add {} default table {table}", dice.pick(&["blackhole", "unreachable"])))
        }
        _ => {
            made.add(At::Node, host);
            made.add(At::Node, default);
            if dice.chance(4) {
                let bridge = made.pick("172.17.0.0/24", "fd17::/64");
                made.add(At::Node, format!("route add {bridge} dev br0 table {table}"));
            }
        }
    }
}

/// Three pods, each of some uplink.
fn pods(dice: &mut Dice, made: &mut Made, nets: &[usize], wide: bool) {
    for pod in 0..3 {
        let uplink = dice.roll(UPLINKS);
        let address = made.address(nets[uplink], 100 + pod);
        let host = made.host(&address);
        let router = made.pick("169.254.1.1", "fe80::1").to_owned();
        made.add(At::Pod(pod), format!("addr add {host} dev eth0"));
        if !made.v6 {
            made.add(At::Pod(pod), format!("route add {router} dev eth0 scope link"));
            // As the CNI does it: no route of the pod's table has to lead to the address of its router.
            let neighbour = format!("{router} lladdr 02:00:00:00:03:0{pod} dev eth0 nud permanent");
            made.add(At::Pod(pod), format!("neigh replace {neighbour}"));
        }
        made.add(At::Pod(pod), format!("route add default via {router} dev eth0"));
        made.add(At::Node, format!("route add {host} dev pod{pod} scope link"));
        made.add(At::Node, format!("rule add priority 512 to {host} lookup main"));
        let own = made.address(nets[uplink], 10 + uplink);
        made.add(At::Network, format!("route add {host} via {own} dev r{uplink} onlink"));
        allow(made, &address, uplink);
        let table = if wide && dice.chance(8) { 2 + dice.roll(UPLINKS) } else { 2 + uplink };
        if uplink != 0 && !(wide && dice.chance(8)) {
            made.add(At::Node, format!("rule add priority 1536 from {host} lookup {table}"));
        }
        made.addresses.extend([(At::Pod(pod), address.clone()), (At::Pod(pod), address)]);
    }
}

/// A bridge with two containers, and a tunnel to another network, which table 52 may lead to as well.
fn local_links(dice: &mut Dice, made: &mut Made) {
    let length = made.pick("24", "64").to_owned();
    let local = |made: &Made, n: usize| format!("{}{n}", made.pick("172.17.0.", "fd17::"));
    made.add(At::Node, format!("addr add {}/{length} dev br0", local(made, 1)));
    made.addresses.push((At::Node, local(made, 1)));
    for container in 0..2 {
        let address = local(made, 2 + container);
        made.add(At::Container(container), format!("addr add {address}/{length} dev eth0"));
        made.add(At::Container(container), format!("route add default via {} dev eth0", local(made, 1)));
        made.addresses.push((At::Container(container), address));
    }
    let tunnel = dice.pick(&["tun0", "tun1"]).to_owned();
    let end = |made: &Made, n: usize| format!("{}{n}", made.pick("10.8.0.", "fd08::"));
    made.add(At::Node, format!("addr add {}/{length} dev {tunnel}", end(made, 1)));
    made.add(At::Beyond, format!("addr add {}/{length} dev {tunnel}", end(made, 2)));
    made.add(At::Beyond, format!("route add default via {} dev {tunnel}", end(made, 1)));
    made.addresses.extend([(At::Node, end(made, 1)), (At::Beyond, end(made, 2))]);
    let behind = made.pick("10.50.0.1", "fd50::1").to_owned();
    // Without a gateway it has to answer on the link itself.
    let on = if tunnel == "tun1" { "lo" } else { "tun0" };
    made.add(At::Beyond, format!("addr add {} dev {on}", made.host(&behind)));
    let prefix = made.pick("10.50.0.0/16", "fd50::/64").to_owned();
    let via = if tunnel == "tun1" { format!(" via {}", end(made, 2)) } else { String::new() };
    made.add(At::Node, format!("route add {prefix}{via} dev {tunnel}"));
    made.addresses.push((At::Beyond, behind));
    if dice.chance(3) {
        made.add(At::Node, "rule add priority 5270 lookup 52".into());
        made.add(At::Node, format!("route add {prefix}{via} dev {tunnel} table 52"));
        if dice.chance(2) && made.shape == "wide" {
            let lan = made.pick("10.0.0.0/24", "fd00:0::/64");
            made.add(At::Node, format!("route add {lan}{via} dev {tunnel} table 52"));
        }
    }
}

/// What takes a generated node away, and makes the ground for the next.
fn cleared(at: At) -> Vec<String> {
    let mut lines: Vec<String> =
        ["addr flush scope global", "route flush table main", "rule flush"].map(String::from).into();
    if at == At::Node {
        lines.extend([2, 3, 4, 52].map(|table| format!("route flush table {table}")));
    }
    lines.push("neigh flush all".into());
    lines
}

fn set_up(rig: &Rig, made: &Made) {
    let both = ["-4", "-6"];
    let spots: Vec<At> = [At::Node, At::Network, At::Beyond]
        .into_iter()
        .chain((0..3).map(At::Pod))
        .chain((0..2).map(At::Container))
        .collect();
    std::thread::scope(|scope| {
        for at in spots {
            scope.spawn(move || {
                let net = rig.of(at);
                for family in both {
                    let mut clear = cleared(at);
                    clear.extend(ground(at, family));
                    batch(net, family, &clear);
                }
                let family = if made.v6 { "-6" } else { "-4" };
                let lines = made.lines.get(&at).cloned().unwrap_or_default();
                let (_, failed) = batch(net, family, &lines);
                assert!(failed.is_empty(), "{at:?}: {failed:?}: {lines:#?}");
            });
        }
    });
    for (key, value) in &made.sysctls {
        rig.node.set_sysctl(key, value);
    }
    // The kernel gives an IPv6 address its route a moment later.
    let own = made.addresses.iter().filter(|(at, _)| made.v6 && *at == At::Node);
    let own: Vec<String> = own.map(|(_, it)| it.parse::<std::net::Ipv6Addr>().unwrap().to_string()).collect();
    until("a route of each address", || {
        let local = if made.v6 { rig.node.ip("-6 route show table local") } else { String::new() };
        own.iter().all(|address| local.contains(&format!("local {address} ")))
    });
}

/// What every generated node has: the kernel's rules, link-local addresses and, in the network, the check of sources.
fn ground(at: At, family: &str) -> Vec<String> {
    let mut lines = vec!["rule add priority 32766 lookup 254".to_owned()];
    if at == At::Network {
        lines.extend((0..UPLINKS).flat_map(|n| {
            let mut rules = vec![format!("rule add priority 200 iif r{n} blackhole")];
            if family == "-6" {
                rules.push(format!("rule add priority 90 iif r{n} from fe80::/10 goto 300"));
                rules.push(format!("rule add priority 90 iif r{n} to ff00::/8 goto 300"));
            }
            rules
        }));
        lines.push("rule add priority 300 lookup local".into());
        lines.push("rule del priority 0".into());
    }
    if matches!(at, At::Node | At::Beyond) && family == "-4" {
        let own = if at == At::Node { 1 } else { 2 };
        lines.push(format!("addr add 10.255.255.{own}/30 dev under0"));
    }
    if family == "-6" {
        lines.extend(link_local(at));
    }
    lines
}

/// `fe80::/64` of the links: flushed with the main table.
fn link_local(at: At) -> Vec<String> {
    let links: &[&str] = match at {
        At::Node => &["eth0", "eth1", "eth2", "pod0", "pod1", "pod2", "br0", "tun0", "tun1", "under0"],
        At::Network => &["r0", "r1", "r2"],
        At::Beyond => &["tun0", "tun1", "under0"],
        At::Pod(_) | At::Container(_) => &["eth0"],
    };
    links.iter().map(|link| format!("route add fe80::/64 dev {link} proto kernel metric 256")).collect()
}

/// What `explain` expects: whether a ping is answered, where it says so without a doubt.
fn expected(reported: &Value) -> Option<bool> {
    if reported["works"] == false {
        return Some(false);
    }
    let notes = reported["notes"].to_string();
    let lost = ["a network that checks sources drops it", "comes before it and sends the packet to"];
    match () {
        () if notes.contains("no rule shows where it belongs") || notes.contains("may leave by") => None,
        () if lost.iter().any(|words| notes.contains(words)) => Some(false),
        () => Some(true),
    }
}

fn explained(rig: &Rig, from: &str, to: &str) -> Value {
    let mut command = node_fixer();
    command.args(["explain", "--output", "json", from, to]);
    let ran = finish(rig.node.output(&mut command));
    let reported = ran.json();
    assert_eq!(ran.code, i32::from(reported["works"] == false), "{reported:#}");
    reported
}

fn pairs(dice: &mut Dice, made: &Made) -> Vec<((At, String), (At, String))> {
    let is_beyond = |(at, address): &(At, String)| {
        *at == At::Network || *at == At::Beyond && (address.starts_with("10.50") || address.starts_with("fd50"))
    };
    let mut pairs = Vec::new();
    while pairs.len() < PAIRS {
        let [from, to] = [0, 0].map(|_| made.addresses[dice.roll(made.addresses.len())].clone());
        let same_bridge = matches!((from.0, to.0), (At::Container(_), At::Container(_)));
        // What neither comes from this node nor goes to it, it knows nothing of.
        let transit = is_beyond(&from) && is_beyond(&to) || from.0 == At::Beyond && to.0 == At::Beyond;
        if from.1 != to.1 && !same_bridge && !transit && (from.0 == At::Node || from.0 != to.0) {
            pairs.push((from, to));
        }
    }
    pairs
}

/// Judges all nodes of these seeds; what was counted.
fn judge(seeds: impl Iterator<Item = u64>, failures: &mut Vec<String>) -> BTreeMap<String, usize> {
    let rig = &Rig::new();
    let mut seen = BTreeMap::new();
    for seed in seeds {
        let made = &generate(seed);
        set_up(rig, made);
        let pairs = pairs(&mut Dice(seed ^ 0xdead_beef), made);
        let results: Vec<(Value, bool)> = std::thread::scope(|scope| {
            let run = |(from, to): &((At, String), (At, String))| {
                let reported = explained(rig, &from.1, &to.1);
                let answered = |patience| rig.of(from.0).pings_within(&from.1, &to.1, Duration::from_millis(patience));
                // Whoever should be answered gets more time, and another try.
                let hopeful = expected(&reported) != Some(false);
                let pong = answered(400) || hopeful && answered(3000);
                (reported, pong)
            };
            let threads: Vec<_> = pairs.iter().map(|pair| scope.spawn(move || run(pair))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for ((from, to), (reported, pong)) in pairs.iter().zip(results) {
            let expected = expected(&reported);
            let verdict = match (reported["works"] == true, expected) {
                (false, _) => "breaks",
                (true, Some(true)) => "works",
                (true, Some(false)) => "works, and a note says what drops it",
                (true, None) => "works, in doubt",
            };
            *seen.entry(verdict.to_owned()).or_default() += 1;
            *seen.entry(format!("{} uplinks", made.shape)).or_default() += 1;
            *seen.entry(if made.v6 { "IPv6" } else { "IPv4" }.to_owned()).or_default() += 1;
            let unjudged = reported["problems"].to_string();
            let agrees = !unjudged.contains("unknown") && !unjudged.contains("the kernel's answer differs");
            if !agrees || expected.is_some_and(|expected| expected != pong) {
                let mut story = format!(
                    "seed {seed} ({}), {from:?} to {to:?}: the ping {}, but ",
                    made.shape,
                    if pong { "is answered" } else { "is lost" }
                );
                let _ = write!(story, "explain: {:#}\n{:#}", reported["problems"], reported["notes"]);
                let _ = write!(story, "\n{:#?}", made.lines.get(&At::Node));
                let _ = write!(story, "\n{:?}", made.sysctls);
                failures.push(story);
            }
        }
    }
    seen
}

#[test]
fn its_verdict_is_what_a_ping_says_on_generated_nodes() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |text: String| text.parse::<u64>().unwrap());
    let (first, nodes) = (number("NODE_FIXER_PING_SEED", 0), number("NODE_FIXER_PING_NODES", NODES));
    let results: Vec<_> = std::thread::scope(|scope| {
        let run = |half: u64| {
            let mut failures = Vec::new();
            let seen = judge((first..first + nodes).filter(|seed| seed % 2 == half), &mut failures);
            (seen, failures)
        };
        let threads = [scope.spawn(move || run(0)), scope.spawn(move || run(1))];
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for (what, times) in results.iter().flat_map(|(seen, _)| seen) {
        *seen.entry(what.clone()).or_default() += times;
    }
    let failures: Vec<&String> = results.iter().flat_map(|(_, failures)| failures).collect();
    let heads = failures.iter().map(|it| it.lines().take(6).map(str::trim).collect::<Vec<_>>().join(" "));
    let heads = heads.collect::<Vec<_>>().join("\n");
    let story = failures.first().map_or("", |it| it.as_str());
    let count = failures.len();
    assert_eq!(count, 0, "seeds {first} to {}, {seen:?}: {count} disagree:\n{heads}\n\n{story}", first + nodes - 1);
    let mut out = std::io::stdout();
    writeln!(out, "explain and pings agree on the seeds {first} to {}: {seen:?}", first + nodes - 1).unwrap();
    for what in ["breaks", "works", "works, and a note says what drops it", "IPv6", "narrow uplinks", "shared uplinks"]
    {
        assert!(seen.get(what).is_some_and(|times| *times >= 20), "hardly any {what:?}: {seen:?}");
    }
}
