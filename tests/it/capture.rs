//! A captured node gives the answers of the node itself, and an anonymous one gives away nothing.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::kit::{Netns, Ran, Worker, finish, node_fixer};
use crate::mirror;
use crate::recorded::{RECORDED, replay};

/// Two uplinks and two pods, of which the table has lost its default; and files of others.
fn broken() -> Worker {
    let node = Worker::new().with_pod(100).with_pod(101).with_loose_rp_filter().without_default(2);
    let files = [
        (
            "etc/sysctl.d/50-acme-corp.conf",
            "# the password is hunter2\nnet.ipv4.conf.eth1.rp_filter = 1\nnet.ipv4.acme_secret = s3cr3t-t0ken\n",
        ),
        (
            "usr/lib/udev/rules.d/99-systemd.rules",
            "ACTION==\"add\", SUBSYSTEM==\"net\", RUN+=\"/lib/systemd/systemd-sysctl --prefix=/net/ipv4/conf/$name\"\n",
        ),
        ("etc/machine-id", "0123456789abcdef0123456789abcdef\n"),
        ("etc/netplan/50-cloud.yaml", "network:\n  wifis:\n    wlan0:\n      password: correcthorse\n"),
    ];
    for (path, text) in files {
        let path = node.directory.path().join("root").join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    node
}

fn capture(node: &Worker, more: &[&str]) -> PathBuf {
    let file = node.directory.path().join(format!("node{}.json", more.len()));
    let mut args = vec!["capture", file.to_str().unwrap()];
    args.extend(more);
    node.fix(&args).expect(0);
    file
}

#[test]
fn an_anonymous_node_answers_after_a_run() {
    // Substitutes for so many addresses have another order.
    let node = (100..110).fold(Worker::new(), Worker::with_pod).with_loose_rp_filter();
    let rules = "{priority: 700, fwmark: 0x200/0xf00, table: 7}, {priority: 701, from: 10.0.1.100, table: 7}";
    node.config(&format!("kube_proxy: {{mode: off}}\nrules: [{rules}]"));
    node.fix(&[]).expect(1);
    let file = capture(&node, &["--anonymous"]);
    let shape = |ran: Ran| (ran.code, ran.commands().len(), ran.json()["blocked"].as_array().unwrap().len());
    let dry = ["--dry-run", "--output", "json"];
    assert_eq!(shape(ask(&file, &dry)), shape(node.fix(&dry)), "{:?}", ask(&file, &dry));
    ask(&file, &["status"]).expect(0);
}

/// What is said of a captured node, in a network namespace of its own.
fn ask(file: &Path, args: &[&str]) -> Ran {
    finish(Netns::new().output(node_fixer().arg("--node").arg(file).args(args)))
}

const QUESTIONS: [&[&str]; 8] = [
    &["--dry-run"],
    &["--dry-run", "--output", "json"],
    &["--dry-run", "--output", "npd"],
    &["doctor"],
    &["doctor", "--output", "json"],
    &["status"],
    &["status", "--output", "json"],
    &["explain", "--pods"],
];

#[test]
fn a_captured_node_answers_as_the_node_itself() {
    let node = broken();
    node.config("rp_filter: {more: [{interfaces: 'eth[01]', value: strict}]}\nsysctls: [{key: net.ipv4.conf.eni*.proxy_arp, value: '0'}]\nroutes: [{to: 10.9.0.0/16, dev: eth9}]");
    let root = node.directory.path().join("root");
    let explain: [&[&str]; 3] = [
        &["explain", "10.0.1.100", "192.0.2.1"],
        &["explain", "10.0.1.101", "10.0.1.100", "--output", "json"],
        &["explain", "192.0.2.1", "10.0.1.100", "--proto", "tcp", "--dport", "443"],
    ];
    for args in QUESTIONS.iter().chain(&explain) {
        mirror::same(&node.net, &mut node.command(args));
    }
    mirror::same(&node.net, &mut node.command(&["doctor", "--root", root.to_str().unwrap()]));
}

#[test]
fn recorded_nodes_answer_from_a_file() {
    for (_, recording) in RECORDED {
        let node = replay(recording);
        QUESTIONS.iter().for_each(|args| mirror::same(&node.net, &mut node.command(args)));
    }
}

#[test]
fn nothing_is_changed_by_way_of_a_file() {
    let node = broken();
    let file = capture(&node, &[]);
    for (args, why) in [
        (&[][..], "a captured node cannot be changed; add --dry-run"),
        (&["capture"], "--node is for --dry-run, doctor, explain and status"),
        (&["doctor", "--root", "/x"], "a captured node has its own files"),
        (&["check-config"], "--node is for"),
    ] {
        let ran = ask(&file, args).expect(64);
        assert!(ran.err.contains(why), "{ran:?}");
    }
    let ran = finish(node_fixer().args(["doctor", "x.json"]).output().unwrap()).expect(64);
    assert!(ran.err.contains("several captured nodes require --node before the first FILE"), "{ran:?}");
    let ran = ask(Path::new("/nowhere"), &["status"]).expect(1);
    assert!(ran.err.contains("cannot read the captured node /nowhere"), "{ran:?}");
}

#[test]
fn what_was_not_captured_is_unknown() {
    let node = broken();
    let file = capture(&node, &[]);
    let config = node.config("sysctls: [{key: net.ipv4.tcp_ecn, value: '1'}]");
    let ran = ask(&file, &["--dry-run", "--config", config.to_str().unwrap()]).expect(1);
    assert!(ran.out.contains("cannot read the sysctl net.ipv4.tcp_ecn: not in the captured file"), "{ran:?}");
}

#[test]
fn a_captured_file_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let node = broken();
    let file = capture(&node, &[]);
    let mode = || std::fs::metadata(&file).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(), 0o600);
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    capture(&node, &[]);
    assert_eq!(mode(), 0o600, "one that was there already");
}

/// Everything that identifies the node: what the kernel, files and configuration name.
fn identifying(node: &Worker) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for link in node.net.ip_json("-d addr show").as_array().unwrap() {
        let text = |key: &str| link[key].as_str().unwrap_or_default().to_owned();
        all.extend(
            [text("ifname"), text("address")].into_iter().filter(|it| it.starts_with("eni") || it.starts_with("02:")),
        );
        all.extend(link["addr_info"].as_array().unwrap().iter().map(|it| it["local"].as_str().unwrap().to_owned()));
    }
    for family in ["-4", "-6"] {
        for route in node.net.ip_json(&format!("{family} route show table all")).as_array().unwrap() {
            let text = |key: &str| route[key].as_str().unwrap_or_default().split('/').next().unwrap().to_owned();
            all.extend([text("dst"), text("gateway"), text("prefsrc")]);
        }
    }
    let common = ["", "default", "127.0.0.0", "127.0.0.1", "127.255.255.255", "::1", "fe80::", "ff00::", "::"];
    all.retain(|it| !common.contains(&it.as_str()));
    let words = ["acme", "hunter2", "s3cr3t", "t0ken", "correcthorse", "0123456789abcdef", "corpnet"];
    all.extend(words.map(str::to_owned));
    all
}

/// An address or a name as it stands in a message, in hexadecimal digits: addresses as attributes, for the bytes alone may
/// be a number.
fn in_messages(text: &str) -> Vec<String> {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    match text.parse::<std::net::IpAddr>() {
        Ok(address) => {
            let (length, bytes) = match address {
                std::net::IpAddr::V4(address) => ("0800", hex(&address.octets())),
                std::net::IpAddr::V6(address) => ("1400", hex(&address.octets())),
            };
            (1..8).map(|kind| format!("{length}{kind:02x}00{bytes}")).collect()
        }
        Err(_) if text.split(':').count() == 6 => vec!["0a000100".to_owned() + &text.replace(':', "")],
        Err(_) => vec![hex(text.as_bytes())],
    }
}

#[test]
fn an_anonymous_node_gives_nothing_away_and_breaks_in_the_same_way() {
    let node = broken();
    node.link("corpnet7", &["52.95.110.7/24"]);
    node.net.ip("link set corpnet7 address 02:12:34:56:78:9a alias acme-fabric");
    node.config(
        "rules: [{priority: 100, from: 10.0.1.77, table: 7}]\nkube_proxy: {labels: {acme-team: hunter2}, mode: off}",
    );
    let root = node.directory.path().join("root");
    let root = ["--root", root.to_str().unwrap()];
    let plain = std::fs::read_to_string(capture(&node, &root)).unwrap();
    let file = node.directory.path().join("anonymous.json");
    node.fix(&[&["capture", file.to_str().unwrap(), "--anonymous"], &root[..]].concat()).expect(0);
    let text = std::fs::read_to_string(&file).unwrap();
    let netlink = |text: &str| serde_json::from_str::<Value>(text).unwrap()["netlink"].to_string();
    let rest = |text: &str| {
        let mut value: Value = serde_json::from_str(text).unwrap();
        value.as_object_mut().unwrap().remove("netlink");
        value.to_string()
    };
    let is_in = |text: &str, word: &str| {
        // Not as a part of a longer number.
        let whole = regex::Regex::new(&format!("(^|[^0-9a-f.:]){}($|[^0-9a-f.:])", regex::escape(word))).unwrap();
        if word.parse::<std::net::IpAddr>().is_ok() { whole.is_match(text) } else { text.contains(word) }
    };
    for word in identifying(&node) {
        assert!(!is_in(&rest(&text), &word), "{word} is in the text");
        let all = in_messages(&word);
        let found = |text: &str| all.iter().any(|hex| text.contains(hex.as_str()));
        assert!(!found(&netlink(&text)), "{word} is in a message");
        let known = is_in(&rest(&plain), &word) || found(&netlink(&plain)) || word == "0123456789abcdef";
        assert!(known, "{word} is in no plain capture: the test looks for the wrong thing");
    }
    let causes = |ran: Ran| ran.findings().iter().map(|it| it["cause"].to_string()).collect::<Vec<_>>();
    let live = node.fix(&[&["doctor", "--output", "json"], &root[..]].concat());
    assert_eq!(causes(live), causes(ask(&file, &["doctor", "--output", "json"])));
    let shape = |ran: Ran| {
        let json = ran.json();
        let kinds = |it: &Value| format!("{} {} {}", it["reconciler"], it["action"], it["object"]);
        json["changes"].as_array().unwrap().iter().map(kinds).collect::<Vec<_>>()
    };
    let dry = ["--dry-run", "--output", "json"];
    assert_eq!(shape(node.fix(&dry)), shape(ask(&file, &dry)));
    assert!(!shape(node.fix(&dry)).is_empty());
    // What a run has saved can be read, too.
    node.fix(&[]);
    node.fix(&["capture", file.to_str().unwrap(), "--anonymous"]).expect(0);
    let status = ask(&file, &["status"]);
    assert!(!status.err.contains("damaged"), "{status:?}");
}

#[test]
fn recorded_nodes_are_the_same_without_their_names() {
    for (name, recording) in RECORDED {
        let node = replay(recording);
        for damage in ["", "route", "rule"] {
            let family = if name.contains("IPv6") { "-6" } else { "-4" };
            match damage {
                "route" => {
                    drop(node.net.ip(&format!("{family} route flush table all proto boot type unicast scope global")))
                }
                "rule" => drop(node.net.ip(&format!("{family} rule del priority 512"))),
                _ => {}
            }
            let file = capture(&node, &["--anonymous"]);
            let causes = |ran: Ran| ran.findings().iter().map(|it| it["cause"].to_string()).collect::<Vec<_>>();
            let doctor = ["doctor", "--output", "json"];
            assert_eq!(causes(node.fix(&doctor)), causes(ask(&file, &doctor)), "{name} {damage}");
            let count = |ran: Ran| (ran.commands().len(), ran.json()["blocked"].as_array().unwrap().len());
            let dry = ["--dry-run", "--output", "json"];
            assert_eq!(count(node.fix(&dry)), count(ask(&file, &dry)), "{name} {damage}");
        }
    }
}

#[test]
fn a_fleet_is_one_object_a_line() {
    let node = broken();
    let sick = capture(&node, &[]);
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for number in 0..300 {
        std::fs::copy(&sick, at(&format!("{number:03}.json"))).unwrap();
    }
    std::fs::write(at("150.json"), "no node").unwrap();
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory.path()).unwrap().map(|it| it.unwrap().path()).collect();
    files.sort();
    let mut command: Command = node_fixer();
    let ran =
        finish(command.arg("doctor").arg("--node").args(&files).args(["--output", "json"]).output().unwrap()).expect(1);
    let lines: Vec<Value> = ran.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<_> = lines.iter().map(|line| PathBuf::from(line["node"].as_str().unwrap())).collect();
    assert_eq!(names, files, "in the order of the files");
    let single = ask(&sick, &["doctor", "--output", "json"]).json();
    for (number, line) in lines.iter().enumerate() {
        match number {
            150 => assert!(line["error"].as_str().unwrap().contains("not a file of node-fixer capture"), "{line}"),
            _ => assert_eq!(line["findings"], single["findings"]),
        }
    }
}

/// The nodes in tests/nodes, each with the answers that are right. UPDATE_NODES=1 writes the answers.
#[test]
fn captured_nodes_get_the_right_answers() {
    let mut names: Vec<PathBuf> = std::fs::read_dir("tests/nodes")
        .unwrap()
        .map(|it| it.unwrap().path())
        .filter(|it| it.extension().is_some_and(|it| it == "json"))
        .collect();
    names.sort();
    assert!(!names.is_empty());
    for file in names {
        let mut answers = String::new();
        for args in QUESTIONS {
            let ran = ask(&file, args);
            answers += &format!("$ node-fixer {}  # exit {}\n{}\n", args.join(" "), ran.code, ran.out);
        }
        // Such a file is older than a look: capture its node again.
        assert!(!answers.contains("not in the captured file"), "{}: {answers}", file.display());
        let right = file.with_extension("answers");
        if std::env::var_os("UPDATE_NODES").is_some() {
            std::fs::write(&right, &answers).unwrap();
        }
        assert_eq!(answers, std::fs::read_to_string(&right).unwrap(), "{}", file.display());
    }
}
