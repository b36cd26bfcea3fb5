//! Kubernetes' node-problem-detector: what its plugin says and how it ends, and the monitor that is shipped for it.

use std::fs;
use std::time::{Duration, Instant};

use serde::Deserialize;

use crate::kit::{self, Ran, Worker, finish};

const FINE: &str = "the network is as declared\n";

/// The arguments that the shipped monitor gives it.
fn args() -> Vec<String> {
    monitor().rules.remove(0).args
}

/// Runs it as the detector does. Whatever it says is one short line without anything that could move a cursor, and
/// comes within a second.
fn plugin(node: &Worker, code: i32) -> String {
    let begin = Instant::now();
    let Ran { out, .. } = node.fix(&args().iter().map(String::as_str).collect::<Vec<_>>()).expect(code);
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    assert!(out.len() <= 80, "{} bytes: {out:?}", out.len());
    assert_eq!(out.chars().filter(|c| c.is_control()).collect::<String>(), "\n", "{out:?}");
    out
}

fn healthy() -> Worker {
    Worker::new().with_pod(100).with_loose_rp_filter()
}

#[test]
fn each_state_of_a_node_has_its_exit_code_and_line() {
    let node = healthy();
    assert_eq!(plugin(&node, 0), FINE);
    node.net.ip("route del default table 2");
    let said = "1 to do: default_routes: table 2 has no default route for 10.0.1.10, 10.0.1....\n";
    assert_eq!(plugin(&node, 1), said);
    node.net.set_sysctl("net/ipv4/conf/eth1/rp_filter", "1");
    assert!(plugin(&node, 1).starts_with("2 to do: "));
    node.config("default_routes: {mode: observe}\nrp_filter: {mode: off}");
    assert_eq!(plugin(&node, 0), FINE, "what is only observed is no problem");
    node.config("routes: [{to: 10.9.0.0/16, dev: eth9}]");
    assert!(plugin(&node, 1).starts_with("1 blocked, 2 to do: routes: "), "a person is needed for it");
    node.fix(&[]).expect(1);
    assert!(plugin(&node, 1).starts_with("1 blocked: routes: "));
    node.config("");
    assert_eq!(plugin(&node, 0), FINE);
}

#[test]
fn a_rule_of_the_kernels_that_is_missing_is_a_problem() {
    let node = healthy();
    node.net.ip("rule add priority 100 lookup local");
    node.net.ip("rule del priority 0 lookup local");
    assert_eq!(plugin(&node, 0), FINE, "moved, as Cilium does");
    node.net.ip("-6 rule del priority 32766");
    assert_eq!(plugin(&node, 1), "the kernel's IPv6 rule 32766 to table main is missing\n");
    let script = node.fix(&["--dry-run"]).expect(0).out;
    assert!(script.ends_with("# 1 observed\n"), "a run does nothing about it: {script}");
}

#[test]
fn what_cannot_be_known_is_unknown_and_no_problem() {
    let node = healthy();
    node.config("rp_filter: {mode: of}");
    let said = plugin(&node, 2);
    assert!(said.starts_with("unknown: ") && said.ends_with("...\n"), "{said}");
    let ran = node.fix(&["--dry-run", "--output", "npd"]).expect(2);
    assert!(ran.err.contains("did you mean `off`?"), "the whole of it goes to the detector's log: {ran:?}");
    fs::remove_file(node.directory.path().join("config.yaml")).unwrap();
    let mut command = node.command(&["--dry-run", "--output", "npd"]);
    fs::remove_file(node.directory.path().join("config.yaml")).unwrap();
    let ran = finish(node.net.output(&mut command)).expect(2);
    assert!(ran.out.starts_with("unknown: ") && ran.out.len() <= 80, "{ran:?}");
}

/// crictl's own time-out is 10 s by default.
#[test]
fn a_crictl_that_hangs_is_not_waited_for() {
    let node = healthy();
    let crictl = node.directory.path().join("crictl");
    kit::script(&crictl, "#!/bin/sh\ntrap '' TERM\nsleep 1000");
    node.config(&format!("kube_proxy: {{crictl: {}}}", crictl.display()));
    node.fix(&[]).expect(0);
    node.net.ip("addr add 10.0.1.77/24 dev eth1");
    assert!(plugin(&node, 2).starts_with("unknown: kube_proxy: cannot read the pods: "));
    node.net.ip("route del default table 2");
    assert!(plugin(&node, 1).starts_with("1 to do: default_routes: "), "what is known outweighs what is not");
}

#[test]
fn hostile_names_do_no_harm() {
    let node = healthy();
    node.config("rp_filter: {interfaces: '^(e|default).*'}");
    for name in ["e\u{1b}[31m;`x'\"\\", "e\u{202e}\u{feff}z", "eééééééé"] {
        node.net.set_sysctl("net/ipv4/conf/default/rp_filter", "1");
        node.net.run("ip", &["link", "add", "name", name, "type", "bridge"]);
        node.net.set_sysctl("net/ipv4/conf/default/rp_filter", "2");
        let said = plugin(&node, 1);
        assert!(said.starts_with("1 to do: rp_filter: rp_filter of "), "{said:?}");
        assert!(!said.contains(['\u{202e}', '\u{feff}']), "{said:?}");
        node.net.run("ip", &["link", "del", "dev", name]);
    }
}

#[test]
fn it_is_a_form_of_dry_runs_only() {
    let node = healthy();
    for args in [
        &["--output", "npd"][..],
        &["--dry-run", "--output", "npd", "--detailed-exitcode"],
        &["check-config", "--output", "npd"],
    ] {
        let ran = node.fix(args).expect(64);
        let said = ["--output npd requires --dry-run", "[possible values: text, json]"];
        assert!(said.iter().any(|said| ran.err.contains(said)), "{args:?} {ran:?}");
    }
}

/// What node-problem-detector reads of the file of a custom plugin monitor (its pkg/custompluginmonitor/types and
/// pkg/types), with its names and types. It ignores other keys; that they are refused here finds those misspelt.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Monitor {
    plugin: String,
    #[serde(rename = "pluginConfig")]
    global: Global,
    source: String,
    conditions: Vec<Condition>,
    rules: Vec<Rule>,
    #[serde(rename = "metricsReporting")]
    metrics_reporting: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Global {
    invoke_interval: String,
    timeout: String,
    max_output_length: usize,
    concurrency: usize,
    skip_initial_status: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    #[serde(rename = "type")]
    kind: String,
    reason: String,
    message: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    #[serde(rename = "type")]
    kind: String,
    condition: String,
    reason: String,
    path: String,
    args: Vec<String>,
    timeout: String,
}

fn monitor() -> Monitor {
    serde_json::from_str(include_str!("../../config/node-problem-detector.json")).unwrap()
}

/// The rules of its ApplyConfiguration and Validate, which end the detector where they are broken.
#[test]
fn the_detector_accepts_the_shipped_monitor() {
    let monitor = monitor();
    // Go's durations; of what both read, humantime reads the same.
    let duration = |text: &str| humantime::parse_duration(text).unwrap();
    assert_eq!(monitor.plugin, "custom");
    assert!(!monitor.source.is_empty() && monitor.metrics_reporting);
    let [condition] = monitor.conditions.as_slice() else { panic!("one condition") };
    let [rule] = monitor.rules.as_slice() else { panic!("one rule") };
    assert_eq!((rule.kind.as_str(), &rule.condition), ("permanent", &condition.kind), "it has a default condition");
    assert!(duration(&rule.timeout) <= duration(&monitor.global.timeout));
    assert!(duration(&rule.timeout) > Duration::from_secs(1), "what the plugin takes, on a busy node");
    assert!(duration(&rule.timeout) < duration(&monitor.global.invoke_interval));
    assert!(monitor.global.max_output_length >= 80 && monitor.global.concurrency > 0);
    assert!(monitor.global.skip_initial_status, "a restart of the detector would say that all is fine");
    assert_eq!(rule.path, "/usr/bin/node-fixer");
    assert_eq!(format!("{}\n", condition.message), FINE);
    // A condition's type and reason are words in CamelCase, which the API server asks for.
    for word in [&condition.kind, &condition.reason, &rule.reason] {
        assert!(word.starts_with(|c: char| c.is_ascii_uppercase()) && word.chars().all(|c| c.is_ascii_alphanumeric()));
    }
    assert_ne!(condition.reason, rule.reason);
}
