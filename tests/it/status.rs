//! `node-fixer status`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::{Value, json};

use crate::kit::{self, Ran, Worker, finish, node_fixer, started_by};
use crate::rights::unprivileged;

fn healthy() -> Worker {
    Worker::new().with_pod(100).with_loose_rp_filter()
}

fn status(node: &Worker) -> Value {
    node.fix(&["status", "--output", "json"]).expect(0).json()
}

fn section<'a>(status: &'a Value, name: &str) -> &'a Value {
    let sections = status["sections"].as_array().unwrap();
    sections.iter().find(|section| section["reconciler"] == name).unwrap()
}

#[test]
fn a_node_without_a_run_has_no_last_run() {
    let node = healthy();
    let status = status(&node);
    assert_eq!(
        (&status["format_version"], &status["last_run"], &status["next_run"]),
        (&json!("1.4"), &Value::Null, &Value::Null)
    );
    let expected = json!({"reconciler": "default_routes", "mode": "enforce", "to_do": 0, "held": 0, "observed": 0,
                          "blocked": 0, "last_change": null});
    assert_eq!(section(&status, "default_routes"), &expected);
    assert_eq!((&status["blocked"], &status["contention"]), (&json!([]), &json!([])));
    assert_eq!(status["remembered"], true);
    let text = node.fix(&["status"]).expect(0);
    assert_eq!(text.err, "");
    for line in ["last run  none recorded; a run with nothing", "default_routes  ok               no change since boot"]
    {
        assert!(text.out.contains(line), "{line}: {}", text.out);
    }
    assert!(!text.out.contains("rules") && !text.out.contains("namespaces"), "nothing declared: {}", text.out);
    assert!(!node.directory.path().join("state").exists(), "it writes nothing");
}

#[test]
fn a_section_is_shown_if_there_is_something_to_report() {
    let node = healthy();
    let shown = |line: &str| {
        let out = node.fix(&["status"]).expect(0).out;
        assert!(out.lines().any(|shown| shown.starts_with(line)), "{line}: {out}");
    };
    node.config("rules: [{priority: 100, from: 10.0.7.7, table: main}]");
    shown("rules           1 to do          no change since boot");
    node.fix(&[]).expect(0);
    shown("rules           ok               ");
    node.config("");
    shown("rules           1 to do          ");
    node.fix(&[]).expect(0);
    shown("rules           ok               ");
    assert!(!node.fix(&["status"]).expect(0).out.contains("routes          "));
}

#[test]
fn it_shows_what_was_done_and_what_is_to_be_done() {
    let node = healthy().without_default(2);
    node.fix(&[]).expect(0);
    node.net.ip("route del default table 2");
    node.net.set_sysctl("net/ipv4/conf/eth1/rp_filter", "1");
    node.config("rp_filter: {mode: observe}\nkube_proxy: {mode: off}");
    node.net.ip("rule add from 10.0.1.11 table 77");
    let before = node.net.state();
    let status = status(&node);
    assert_eq!(status["last_run"]["source"], "state");
    assert_eq!(section(&status, "default_routes")["to_do"], 1);
    assert_eq!(section(&status, "default_routes")["blocked"], 1);
    let last = &section(&status, "default_routes")["last_change"];
    assert!(last["command"].as_str().unwrap().starts_with("ip route add default via 10.0.1.1"), "{last}");
    assert_eq!(last["time"], status["last_run"]["time"]);
    assert_eq!(section(&status, "rp_filter")["observed"], 1);
    assert_eq!(section(&status, "kube_proxy")["mode"], "off");
    assert_eq!(status["blocked"][0]["reconciler"], "default_routes");
    let text = node.fix(&["status"]).expect(0).out;
    for line in [
        "1 to do, 1 blocked",
        "1 observed       no change since boot",
        "kube_proxy      off ",
        "s ago: ip route add default via 10.0.1.1 dev eth1 table 2 proto 170 scope global metric 4294967295\n",
        "\nblocked default_routes: ",
        " (known from state)",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert_eq!(node.net.state(), before, "it changes nothing");
}

/// This machine's systemd is not asked: the kernel shows no /run/systemd/system here.
fn without_systemd(node: &Worker, args: &[&str]) -> Ran {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-euc", "mount -t tmpfs tmpfs /run; exec \"$@\"", "sh"]);
    finish(node.net.output(&mut started_by(command, &node.command(args))))
}

#[test]
fn without_systemd_it_knows_of_failed_runs() {
    let node = healthy();
    node.config("routes: [{to: 10.9.0.0/16, dev: eth9}]");
    let last_run = || without_systemd(&node, &["status", "--output", "json"]).expect(0).json()["last_run"].clone();
    assert_eq!(last_run(), Value::Null);
    without_systemd(&node, &[]).expect(1);
    assert_eq!((&last_run()["source"], &last_run()["exit"]), (&json!("state"), &json!(1)));
    let text = without_systemd(&node, &["status"]).expect(0).out;
    assert!(
        text.starts_with("last run  ")
            && text.contains(", exit code 1 (known from state)")
            && text.contains("systemd is not running"),
        "{text}"
    );
    // The next success is recorded too, so that the failure is not shown for ever.
    node.config("");
    without_systemd(&node, &[]).expect(0);
    assert_eq!(last_run()["exit"], 0);
}

#[test]
fn it_shows_contention_and_what_metrics_know() {
    let node = healthy();
    for _ in 0..5 {
        node.net.ip("route del default table 2");
        node.fix(&[]).expect(0);
    }
    let shown = status(&node);
    let contention = &shown["contention"][0];
    assert_eq!(contention["reconciler"], "default_routes");
    assert!(contention["repair"].as_str().unwrap().starts_with("ip route add default"), "{shown}");
    assert!(contention["suspects"].is_array(), "{shown}");
    let text = node.fix(&["status"]).expect(0).out;
    assert!(text.contains("\ncontended default_routes: ip route add default"), "{text}");
    node.config(&format!("metrics: {{textfile: {}}}", node.directory.path().display()));
    std::thread::sleep(std::time::Duration::from_secs(1));
    node.fix(&[]).expect(0);
    assert_eq!(status(&node)["last_run"]["source"], "metrics", "a run that found nothing to do");
}

#[test]
fn it_is_one_screen_whatever_there_is_to_show_and_harmless_to_a_terminal() {
    let node = healthy();
    node.net.ip("route del default table 2");
    node.fix(&[]).expect(0);
    let state = node.directory.path().join("state/state.json");
    let mut memory: Value = serde_json::from_slice(&fs::read(&state).unwrap()).unwrap();
    let mends = &mut memory["memory"]["mends"];
    let now = mends["repairs"][0]["times"][0].clone();
    mends["sections"]["default_routes"] = json!({"wall": u64::MAX, "command": "\u{1b}[2J\n\n\nrm -rf /"});
    let repair = |n| {
        let command = format!("\u{1b}]0;{n}\u{7}{}", "x".repeat(5000));
        json!({"reconciler": "\n\n", "command": command, "told": true, "times": [now, now, now, now, now]})
    };
    mends["repairs"] = (0..100).map(repair).collect();
    fs::write(&state, memory.to_string()).unwrap();
    for n in 20..60 {
        node.net.ip(&format!("rule add from 10.0.1.{n} table {n}"));
    }
    let ran = node.fix(&["status"]).expect(0);
    assert!(!ran.out.chars().any(|c| c.is_control() && c != '\n'), "{ran:?}");
    assert!(ran.out.lines().count() <= 24, "{}", ran.out);
    assert!(ran.out.lines().all(|line| line.chars().count() <= 560), "{}", ran.out);
    assert!(ran.out.contains("… and 97 more: node-fixer status --output json"), "{}", ran.out);
    assert_eq!(status(&node)["contention"].as_array().unwrap().len(), 100);
}

#[test]
fn colour_is_for_terminals_and_can_be_turned_off() {
    let node = healthy();
    let arguments: Vec<_> = node.command(&["status"]).get_args().map(|arg| arg.to_str().unwrap().to_owned()).collect();
    let command = format!("{} {}", env!("CARGO_BIN_EXE_node-fixer"), arguments.join(" "));
    let on_terminal = |before: &str| node.net.run("script", &["-qec", &format!("{before} {command}"), "/dev/null"]);
    assert!(on_terminal("").contains("\u{1b}[32mok             \u{1b}[0m"));
    assert!(on_terminal("TERM=dumb CI=true").contains('\u{1b}'), "what shows the log of such a service shows colours");
    for without in ["NO_COLOR=1", "TERM=dumb"] {
        assert!(!on_terminal(without).contains('\u{1b}'), "{without}");
    }
    assert!(!node.fix(&["status"]).expect(0).out.contains('\u{1b}'));
}

#[test]
fn a_state_that_may_not_be_read_is_not_taken_for_none() {
    let node = healthy().without_default(2);
    node.fix(&[]).expect(0);
    let state = node.directory.path().join("state");
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    let mapped = fs::read_to_string("/proc/self/uid_map").unwrap();
    if mapped.split_whitespace().nth(2) == Some("1") {
        return; // there is no other user
    }
    let ran = unprivileged(&node, "", &["status"]).expect(0);
    assert!(ran.out.starts_with("last run  not known: the saved state could not be read\n"), "{ran:?}");
    assert!(ran.out.contains("default_routes  ok               last change not known\n"), "{ran:?}");
    assert!(ran.err.contains("Permission denied") && !ran.err.contains("starting afresh"), "{ran:?}");
    let reported = unprivileged(&node, "", &["status", "--output", "json"]).expect(0).json();
    assert_eq!(
        (&reported["remembered"], &section(&reported, "default_routes")["last_change"]),
        (&json!(false), &Value::Null)
    );
    // Nor what makes no sense; but at a boot all is as new.
    let state = state.join("state.json");
    let good = fs::read_to_string(&state).unwrap();
    for (text, remembered) in [("{".to_owned(), false), (good.replace("\"boot_id\":\"", "\"boot_id\":\"x"), true)] {
        fs::write(&state, text).unwrap();
        assert_eq!(status(&node)["remembered"], remembered);
    }
}

#[test]
fn what_it_cannot_see_is_said() {
    let node = healthy();
    node.fix(&[]).expect(0);
    node.config("kube_proxy: {crictl: /nonexistent}");
    node.uplink_with_table(2);
    let ran = node.fix(&["status"]).expect(1);
    let failed = "could not be checked: kube_proxy: restart kube-proxy: uplinks changed: +eth2";
    assert!(ran.out.contains(failed) && ran.out.contains("kube_proxy      unknown"), "{ran:?}");
    assert!(!ran.out.contains("blocked"), "{ran:?}");
    let reported = node.fix(&["status", "--output", "json"]).expect(1).json();
    assert_eq!(
        (&section(&reported, "kube_proxy")["blocked"], &reported["blocked"][0]["reconciler"]),
        (&json!(1), &json!("kube_proxy"))
    );
    // One that hangs is not waited for.
    let crictl = node.directory.path().join("crictl");
    kit::script(&crictl, "#!/bin/sh\ntrap '' TERM\nsleep 1000");
    node.config(&format!("kube_proxy: {{crictl: {}}}", crictl.display()));
    let begun = std::time::Instant::now();
    let ran = node.fix(&["status"]).expect(1);
    assert!(ran.out.contains("could not be checked: kube_proxy: "), "{ran:?}");
    assert!(begun.elapsed() < std::time::Duration::from_secs(5), "took {:?}", begun.elapsed());
    node.config("rules: 7");
    node.fix(&["status"]).expect(78);
    finish(node_fixer().args(["--dry-run", "status"]).output().unwrap()).expect(64);
    // It takes no lock, and waits for none.
    node.config("kube_proxy: {mode: off}");
    let lock = fs::File::create(node.directory.path().join("state/lock")).unwrap();
    let held = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap();
    node.fix(&["status"]).expect(0);
    drop(held);
}
