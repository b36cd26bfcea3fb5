//! Nodes as the AWS VPC CNI's own code sets them up: nothing is done on the healthy ones, and what is taken away from
//! them comes back as it was, or is refused with a reason. Never does anything come that was not there.

use std::collections::{BTreeMap, BTreeSet};

use crate::kit::{Netns, Worker};

/// The recordings, as commands of [`Worker::with`].
pub const RECORDED: [(&str, &str); 4] = [
    ("three uplinks", include_str!("../fixtures/vpc-cni/ipv4-three-uplinks")),
    ("custom networking, two cards", include_str!("../fixtures/vpc-cni/ipv4-custom-networking-two-cards")),
    ("security groups, strict and standard", include_str!("../fixtures/vpc-cni/security-groups-strict-and-standard")),
    ("IPv6, card 1, a /128 of DHCPv6", include_str!("../fixtures/vpc-cni/ipv6-card1-dhcpv6-128")),
];

/// A node as it was recorded.
pub fn replay(recording: &str) -> Worker {
    let node = Worker::bare().with(recording);
    node.config("kube_proxy: {mode: off}");
    node.net.settle();
    node
}

/// All routes but the kernel's own, by table: `DESTINATION via GATEWAY dev LINK`.
fn routes(net: &Netns) -> BTreeMap<String, BTreeSet<String>> {
    let mut tables: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for family in ["-4", "-6"] {
        for route in net.ip_json(&format!("{family} -N route show table all")).as_array().unwrap() {
            let text = |key: &str| route[key].as_str().unwrap_or_default().to_owned();
            let table = if text("table").is_empty() { "254".to_owned() } else { text("table") };
            if table != "255" && text("protocol") != "2" {
                let line = format!("{family} {} via {} dev {}", text("dst"), text("gateway"), text("dev"));
                tables.entry(table).or_default().insert(line);
            }
        }
    }
    tables
}

#[test]
fn healthy_nodes_are_left_alone() {
    for (name, recording) in RECORDED {
        let node = replay(recording);
        let before = node.net.state();
        assert_eq!(node.fix(&["--dry-run", "--output", "npd"]).expect(0).out, "the network is as declared\n", "{name}");
        assert_eq!(node.fix(&[]).expect(0).out, "", "{name}");
        assert_eq!(node.net.state(), before, "{name}");
    }
}

/// What a run made of a node.
struct After {
    code: i32,
    commands: Vec<String>,
    because: Vec<String>,
    lacking: BTreeSet<String>,
}

/// Runs, and compares with the recording: nothing may have come that was not there.
fn run(what: &str, node: &Worker, healthy: &BTreeMap<String, BTreeSet<String>>) -> After {
    let ran = node.fix(&["--output", "json"]);
    let after = routes(&node.net);
    let mut lacking = BTreeSet::new();
    for (table, routes) in &after {
        let known = healthy.get(table).unwrap_or_else(|| panic!("{what}: table {table} is new: {routes:?}"));
        let new: Vec<_> = routes.difference(known).collect();
        assert!(new.is_empty(), "{what}: table {table} has what it never had: {new:?}");
    }
    for (table, routes) in healthy {
        let none = BTreeSet::new();
        let left = after.get(table).unwrap_or(&none);
        lacking.extend(routes.difference(left).map(|route| format!("{route} table {table}")));
    }
    let json = ran.json();
    let because =
        json["blocked"].as_array().unwrap().iter().map(|it| it["because"].as_str().unwrap().to_owned()).collect();
    assert!(matches!(ran.code, 0 | 1), "{what}: {ran:?}");
    // That a rule of the kernel's is missing is only reported.
    let is_done = |it: &&serde_json::Value| it["status"] != "observed";
    let commands = json["changes"].as_array().unwrap().iter().filter(is_done);
    let commands = commands.map(|it| it["command"].as_str().unwrap().to_owned()).collect();
    After { code: ran.code, commands, because, lacking }
}

/// What each line of a recording makes, taken away again; nothing for what makes no object.
fn removal(line: &str) -> Option<String> {
    let line = line.replace(" noprefixroute", "").replace(" nodad", "");
    let made = [" route add ", " rule add ", "addr add "].iter().any(|word| line.contains(word));
    made.then(|| line.replacen(" add ", " del ", 1))
}

#[test]
fn what_is_taken_away_comes_back_or_is_refused() {
    for (name, recording) in RECORDED {
        let healthy = routes(&replay(recording).net);
        for line in recording.lines() {
            let Some(removal) = removal(line) else { continue };
            let node = replay(recording).with(&removal);
            let what = format!("{name}: {removal}");
            let After { code, commands, because, lacking } = run(&what, &node, &healthy);
            let of_policy_table = line.contains(" route add default ") && !line.contains("table 254");
            // The trunk's table has no rule, and no traffic.
            let has_rule = line.split("table ").nth(1).is_some_and(|table| {
                let table = table.split(' ').next().unwrap();
                recording.lines().any(|line| line.ends_with(&format!("lookup {table}")))
            });
            if of_policy_table && has_rule {
                assert_eq!(
                    (code, commands.len(), lacking.len()),
                    (0, 1, 0),
                    "{what}: {commands:?} {because:?} {lacking:?}"
                );
            } else if line.contains("addr add") && !line.contains("dev eth0") && !line.contains("dev ens5") {
                // The kernel takes the routes of an interface away with its last address.
                let address = line.split_whitespace().find_map(|word| word.split_once('/')).unwrap().0;
                let reported = because.iter().any(|because| because.contains(&format!("no interface has {address}")));
                assert!(
                    lacking.is_empty() || reported || !recording.contains(&format!("from {address} ")),
                    "{what}: {because:?}"
                );
                assert_eq!(commands, Vec::<String>::new(), "{what}");
            } else {
                assert_eq!((code, commands), (0, vec![]), "{what}: {because:?}");
            }
        }
    }
}

#[test]
fn a_table_that_was_flushed_with_its_link_comes_back_whole() {
    for (name, recording) in RECORDED {
        let healthy = routes(&replay(recording).net);
        let secondary =
            recording.lines().filter(|line| line.starts_with("addr add") && recording.contains(&from(line)));
        for line in secondary {
            // IPv4's routes go with the last address, IPv6's with the link, which takes its addresses along.
            let link = line.split("dev ").nth(1).unwrap().split(' ').next().unwrap();
            let gone = match line.contains("nodad") {
                false => removal(line).unwrap(),
                true => format!("link set {link} down\nlink set {link} up"),
            };
            let node = replay(recording).with(&gone).with(line);
            node.net.settle();
            let what = format!("{name}: away and back: {line}");
            let After { code, commands, because, lacking } = run(&what, &node, &healthy);
            assert_eq!(
                (code, commands.len(), lacking.len()),
                (0, 2, 0),
                "{what}: {commands:?} {because:?} {lacking:?}"
            );
        }
    }
}

/// The rule for the address of a line.
fn from(line: &str) -> String {
    format!("from {} lookup", line.split_whitespace().find_map(|word| word.split_once('/')).unwrap().0)
}

#[test]
fn doctor_finds_nothing_on_healthy_ones() {
    for (name, recording) in RECORDED {
        let node = replay(recording);
        let empty = tempfile::tempdir().unwrap();
        let ran = node.fix(&["doctor", "--root", empty.path().to_str().unwrap()]);
        assert_eq!((ran.code, ran.out.as_str()), (0, "nothing found\n"), "{name}: {ran:?}");
    }
}
