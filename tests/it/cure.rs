//! Cures are safe: each that `doctor` prints is carried out as a shell would, and all that worked before works after.
//!
//! Files land below the root of the test, which a mount namespace puts in the place of /etc and /run. The programs of
//! other managers are stubs that only note how they were called: what they make of a file comes with the next boot.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use crate::kit::{self, Netns, Ran, Worker};

/// What a cure may call besides `ip`, `sysctl` and what a shell has.
const STUBS: [&str; 4] = ["systemctl", "networkctl", "nmcli", "udevadm"];

/// Runs a cure in the node's namespace, with its files below the root.
pub fn carry_out(net: &Netns, root: &Path, cure: &str) {
    let bin = root.join("stubs");
    for directory in [&bin, &root.join("etc"), &root.join("run")] {
        fs::create_dir_all(directory).unwrap();
    }
    for name in STUBS {
        let stub = bin.join(name);
        kit::script(&stub, &format!("#!/bin/sh\necho {name} \"$@\" >> {}\n", bin.join("called").display()));
    }
    let inside = r#"mount --bind "$1/etc" /etc; mount --bind "$1/run" /run; PATH="$1/stubs:$PATH"; export PATH; exec sh -eu -c "$2""#;
    net.run("unshare", &["--mount", "sh", "-ec", inside, "sh", root.to_str().unwrap(), cure]);
}

/// Everything that a cure could change: the kernel's state, and the files below the root.
fn all_state(net: &Netns, root: &Path) -> String {
    let addresses = net.ip("-o addr").replace(" tentative", "");
    let files = net.run("find", &[root.join("etc").to_str().unwrap(), "-type", "f", "-exec", "cksum", "{}", "+"]);
    // The kernel's own routes come with carriers, up to a second after a link is up.
    let routes = net.state();
    let lasting = routes.lines().filter(|line| !line.contains(" proto 2")).collect::<Vec<_>>().join("\n");
    format!("{lasting}\n{}\n{files}", without_times(&addresses))
}

/// The lifetimes of addresses run.
fn without_times(text: &str) -> String {
    let lines = text.lines().map(|line| line.split("valid_lft").next().unwrap().trim_end().to_owned());
    lines.collect::<Vec<_>>().join("\n")
}

/// The global addresses that are configured in a namespace.
fn addresses(net: &Netns) -> BTreeSet<String> {
    let links = net.ip_json("addr show up");
    let links = links.as_array().unwrap().iter().filter(|link| link["ifname"] != "lo");
    let all = links.filter_map(|link| link["addr_info"].as_array()).flatten();
    all.filter(|it| it["scope"] == "global").map(|it| it["local"].as_str().unwrap().to_owned()).collect()
}

/// The pings that are answered: of pods and of this node to the world and to each other, and of the world to them.
pub fn working(node: &Worker) -> BTreeSet<String> {
    let world = |address: &str| if address.contains(':') { "2001:db8::1" } else { "192.0.2.1" };
    let mut pings: Vec<(&str, &Netns, String, String)> = Vec::new();
    // A pod's address is the pod's, also where this node takes it for its own.
    let of_pods: BTreeSet<String> = node.pods().iter().flat_map(addresses).collect();
    let own: BTreeSet<String> = addresses(&node.net).difference(&of_pods).cloned().collect();
    for address in &own {
        pings.push(("node", &node.net, address.clone(), world(address).into()));
        pings.push(("world", &node.router, world(address).into(), address.clone()));
    }
    for pod in node.pods() {
        for address in addresses(pod) {
            let of_family = own.iter().filter(|it| it.contains(':') == address.contains(':'));
            pings.extend(of_family.map(|own| ("pod", pod, address.clone(), own.clone())));
            pings.push(("pod", pod, address.clone(), world(&address).into()));
            pings.push(("world", &node.router, world(&address).into(), address.clone()));
        }
    }
    std::thread::scope(|scope| {
        let asked: Vec<_> = pings
            .iter()
            .map(|(who, net, from, to)| (format!("{who}: {from} to {to}"), scope.spawn(move || net.pings(from, to))))
            .collect();
        asked.into_iter().filter_map(|(what, answer)| answer.join().unwrap().then_some(what)).collect()
    })
}

/// What worked works; it may take until neighbours have found each other again.
pub fn assert_kept(before: &BTreeSet<String>, node: &Worker, cure: &str) {
    for _ in 0..5 {
        if before.is_subset(&working(node)) {
            return;
        }
    }
    let lost: Vec<String> = before.difference(&working(node)).cloned().collect();
    assert_eq!(lost, Vec::<String>::new(), "it worked before this cure: {cure}");
}

/// The cause, evidence and cure of each finding.
fn findings(ran: &Ran) -> Vec<(String, String, String)> {
    let text = |value: &serde_json::Value| value.as_str().unwrap_or("").to_owned();
    ran.findings().iter().map(|it| (text(&it["cause"]), text(&it["evidence"]), text(&it["cure"]))).collect()
}

fn is_comment(cure: &str) -> bool {
    cure.lines().all(|line| line.starts_with('#'))
}

/// Words in capitals that stand for something that the reader has to know.
fn assert_typed(cure: &str) {
    for word in ["GATEWAY", "DEV", "NODE", "POD", "TABLE", "ADDRESS", "INTERFACE", "<", "..."] {
        let words = |text: &str| text.split(|c: char| !c.is_ascii_alphanumeric()).any(|it| it == word);
        assert!(!words(cure) || word.len() < 3, "a placeholder: {cure}");
    }
}

/// Carries out every cure that is offered. Each finding that has a command is gone after it, each that has none has changed
/// nothing, no new one has come, and all that worked works.
pub fn heals(node: &Worker, root: &Path, config: &str, examined: &dyn Fn() -> Ran) {
    let found = findings(&examined());
    if found.is_empty() {
        return;
    }
    let before = working(node);
    for (cause, _, cure) in &found {
        assert_typed(cure);
        let state = all_state(&node.net, root);
        carry_out(&node.net, root, cure);
        if is_comment(cure) {
            assert_eq!(all_state(&node.net, root), state, "{cause}: {cure}");
        } else {
            assert_kept(&before, node, cure);
        }
    }
    boot(node, root);
    let left = findings(&examined());
    for (cause, evidence, cure) in &left {
        let known = found.iter().find(|(it, of, _)| it == cause && (of == evidence || is_comment(cure)));
        assert!(known.is_some(), "new after the cures: {cause}: {evidence} {config}");
        assert!(known.is_some_and(|(.., cure)| is_partial(cure)), "{cause} is still there: {evidence}\nafter: {cure}");
    }
}

/// Whether a cure leaves something to the reader: a line of a file of others, a rule that is the only way out.
fn is_partial(cure: &str) -> bool {
    cure.lines().any(|line| line.starts_with('#')) || cure.contains("  # and delete line ")
}

/// What network managers make of the files at the next boot: they let go of the interfaces that are not theirs.
fn boot(node: &Worker, root: &Path) {
    let read = |path: &str| {
        let mut texts = String::new();
        for entry in fs::read_dir(root.join(path)).into_iter().flatten() {
            let entry = entry.unwrap();
            if entry.file_name().to_str().is_some_and(|name| name.contains("node-fixer")) {
                texts += &fs::read_to_string(entry.path()).unwrap();
            }
        }
        texts
    };
    let links = node.net.ip_json("link show");
    for link in links.as_array().unwrap() {
        let (name, index) = (link["ifname"].as_str().unwrap(), link["ifindex"].as_u64().unwrap());
        let networkd = read("etc/systemd/network");
        let kept = networkd.lines().find_map(|line| line.strip_prefix("Name=!"));
        let state = root.join(format!("run/systemd/netif/links/{index}"));
        if state.exists() && kept.is_some_and(|kept| !kept.split(' ').any(|it| it == name)) {
            fs::write(state, "ADMIN_STATE=unmanaged\n").unwrap();
        }
        let manager = read("etc/NetworkManager/conf.d");
        let listed = manager.lines().find_map(|line| line.strip_prefix("unmanaged-devices+=type:ethernet;"));
        let state = root.join(format!("run/NetworkManager/devices/{index}"));
        let is_kept = |listed: &str| listed.split(';').any(|it| it == format!("except:interface-name:{name}"));
        if state.exists() && listed.is_some_and(|listed| !is_kept(listed)) {
            fs::write(state, "[device]\nmanaged=false\n").unwrap();
        }
    }
}
