//! Nodes as the VPC CNI's own code has set them up, written down with `ip -j` and made again in namespaces of a test's own.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::kit::{Worker, finish};

/// All recordings.
pub const ALL: [&str; 4] = [
    "ipv4-three-uplinks",
    "ipv4-custom-networking-two-cards",
    "security-groups-strict-and-standard",
    "ipv6-card1-dhcpv6-128",
];

/// A recording.
struct Recording(PathBuf);

impl Recording {
    fn read(&self, name: &str) -> Vec<Value> {
        let path = self.0.join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_str::<Value>(&text).unwrap().as_array().unwrap().clone()
    }
}

/// A value as a word of a command line.
fn word(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Makes the node that was recorded under this name. The other ends of its links are in the router's namespace.
pub fn replay(name: &str) -> Worker {
    let recording = Recording(Path::new("tests/fixtures/vpc-cni").join(name));
    let node = Worker::bare();
    for all in ["all", "default"] {
        node.net.set_sysctl(&format!("net/ipv6/conf/{all}/accept_dad"), "0");
    }
    node.net.set_sysctl("net/ipv4/conf/default/rp_filter", "0");
    let names = links(&node, &recording);
    for link in recording.read("addresses.json") {
        let dev = word(&link["ifname"]);
        for address in link["addr_info"].as_array().into_iter().flatten() {
            let local = word(&address["local"]);
            if dev != "lo" && names.contains(&dev) && !local.starts_with("fe80") {
                let nodad = if local.contains(':') { "nodad" } else { "" };
                node.net.ip(&format!("addr add {local}/{} dev {dev} noprefixroute {nodad}", address["prefixlen"]));
            }
        }
    }
    for family in [4, 6] {
        rules(&node, &recording, family);
        routes(&node, &recording, family, &names);
    }
    let sysctls = std::fs::read_to_string(recording.0.join("sysctls.txt")).unwrap();
    for (path, value) in sysctls.lines().filter_map(|line| line.rsplit_once(':')) {
        let of = path.strip_prefix("ipv4/conf/").and_then(|rest| rest.rsplit_once('/')).map(|(of, _)| of);
        if of.is_none_or(|of| matches!(of, "all" | "default") || names.contains(of)) {
            node.net.set_sysctl(&format!("net/{path}"), value);
        }
    }
    node
}

/// Makes the links with their indexes; their names. Those of the recorder itself are left out.
fn links(node: &Worker, recording: &Recording) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (number, link) in recording.read("links.json").into_iter().enumerate() {
        let name = word(&link["ifname"]);
        if name.starts_with("up") {
            continue;
        }
        if name != "lo" {
            let (index, address, mtu) = (&link["ifindex"], word(&link["address"]), &link["mtu"]);
            let far = format!("peer name far{number} netns {}", node.router.path());
            node.net.ip(&format!("link add name {name} index {index} address {address} mtu {mtu} type veth {far}"));
            node.router.ip(&format!("link set far{number} up mtu {mtu}"));
        }
        if link["flags"].as_array().unwrap().iter().any(|flag| flag == "UP") {
            node.net.ip(&format!("link set {name} up"));
        }
        names.insert(name);
    }
    names
}

fn rules(node: &Worker, recording: &Recording, family: u8) {
    let recorded = recording.read(&format!("rules{family}.json"));
    let is_all = |rule: &Value| rule["src"].as_str().is_none_or(|source| source == "all");
    for priority in [32766, 32767] {
        // IPv6 has no rule for the table default.
        if family == 4 || priority == 32766 {
            node.net.ip(&format!("-{family} rule del priority {priority}"));
        }
    }
    for rule in &recorded {
        let mut words = format!("priority {}", rule["priority"]);
        for (key, word_of) in [("src", "from"), ("dst", "to")] {
            if let Some(prefix) = rule[key].as_str().filter(|prefix| *prefix != "all") {
                let length = rule[format!("{key}len")].as_u64().map_or(String::new(), |length| format!("/{length}"));
                words += &format!(" {word_of} {prefix}{length}");
            }
        }
        if let Some(mark) = rule["fwmark"].as_str() {
            let mask = rule["fwmask"].as_str().map_or(String::new(), |mask| format!("/{mask}"));
            words += &format!(" fwmark {mark}{mask}");
        }
        for key in ["iif", "oif", "ipproto"] {
            if !rule[key].is_null() {
                words += &format!(" {key} {}", word(&rule[key]));
            }
        }
        let is_kernels = rule["priority"] == 0 && is_all(rule);
        if !is_kernels {
            node.net.ip(&format!("-{family} rule add {words} lookup {}", word(&rule["table"])));
        }
    }
    if !recorded.iter().any(|rule| rule["priority"] == 0 && is_all(rule)) {
        node.net.ip(&format!("-{family} rule del priority 0 lookup local"));
    }
}

fn routes(node: &Worker, recording: &Recording, family: u8, names: &BTreeSet<String>) {
    let table = |route: &Value| if route["table"].is_null() { "254".to_owned() } else { word(&route["table"]) };
    let is_ours = |route: &Value| {
        let (to, kind) = (word(&route["dst"]), &route["type"]);
        let of_kernel = to.starts_with("fe80::/") || to.starts_with("ff00") || table(route) == "255";
        !of_kernel
            && route["dev"].as_str().is_some_and(|dev| names.contains(dev))
            && (kind.is_null() || kind == "unicast")
    };
    let mut recorded = recording.read(&format!("routes{family}.json"));
    recorded.retain(is_ours);
    // What leads to a gateway has to be there before what leads over it.
    recorded.sort_by_key(|route| !route["gateway"].is_null());
    for route in recorded {
        let mut words = word(&route["dst"]);
        if !route["gateway"].is_null() {
            words += &format!(" via {}", word(&route["gateway"]));
        }
        words += &format!(" dev {} table {}", word(&route["dev"]), table(&route));
        for (key, word_of) in [("protocol", "proto"), ("scope", "scope"), ("prefsrc", "src"), ("metric", "metric")] {
            if !route[key].is_null() && (family == 4 || key != "scope") {
                words += &format!(" {word_of} {}", word(&route[key]));
            }
        }
        node.net.ip(&format!("-{family} route add {words}"));
    }
}

#[test]
fn doctor_finds_nothing_on_them() {
    for name in ALL {
        let node = replay(name);
        node.config("kube_proxy: {mode: off}");
        let empty = tempfile::tempdir().unwrap();
        let mut command = node.command(&["doctor", "--root", empty.path().to_str().unwrap()]);
        let ran = finish(node.net.output(&mut command));
        assert_eq!((ran.code, ran.out.as_str()), (0, "nothing found\n"), "{name}: {ran:?}");
    }
}
