//! `node-fixer watch`: what the kernel announces is repaired, by how many runs, and what it says of it.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustix::fs::{FlockOperation, flock};
use serde_json::Value;

use crate::kit::{self, Worker, until};
use crate::kube_proxy::Kube;

/// A watcher that ends with the test, and what it and its runs log.
struct Watch<'a> {
    node: &'a Worker,
    child: Child,
    lines: Receiver<String>,
    said: Vec<String>,
}

impl<'a> Watch<'a> {
    fn start(node: &'a Worker, args: &[&str]) -> Watch<'a> {
        Watch::of(node, node.command(&[&["watch", "-v"], args].concat()))
    }

    fn of(node: &'a Worker, command: Command) -> Watch<'a> {
        let mut watch = Watch::unready(node, command);
        watch.is_quiet();
        watch
    }

    fn unready(node: &'a Worker, mut command: Command) -> Watch<'a> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = node.net.enter(|| command.spawn()).unwrap();
        let (send, lines) = channel();
        let reader = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || reader.lines().map_while(Result::ok).try_for_each(|line| send.send(line)));
        Watch { node, child, lines, said: Vec::new() }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    fn hear(&mut self) {
        self.said.extend(self.lines.try_iter());
    }

    /// How many lines of the log say this.
    fn count(&mut self, what: &str) -> usize {
        self.hear();
        self.said.iter().filter(|line| line.contains(what)).count()
    }

    /// Runs that looked to the end.
    fn runs(&mut self) -> usize {
        self.count(" done converged=")
    }

    /// Waits until no run has started for much longer than the pace.
    fn is_quiet(&mut self) {
        let mut runs = 0;
        let mut last = Instant::now();
        until("no more runs", || {
            let now = self.runs();
            if now != runs {
                (runs, last) = (now, Instant::now());
            }
            runs > 0 && last.elapsed() > Duration::from_millis(700)
        });
    }

    /// What happens is repaired by so many runs, and then there is none more.
    fn repairs(&mut self, what: &str, runs: usize, damage: impl FnOnce(&Worker)) {
        let (before, changed) = (self.runs(), self.count("INFO changed"));
        damage(self.node);
        until(what, || self.count("INFO changed") > changed);
        self.is_quiet();
        assert_eq!(self.runs() - before, runs, "{what}: {:#?}", self.said);
        self.node.fix(&["--dry-run", "--detailed-exitcode"]).expect(0);
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let _ = kill(self.pid(), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// Without kube-proxy, and fast.
const KEYS: &str = "kube_proxy: {mode: off}\nwatch: {pace: 200ms}";

fn node(keys: &str) -> Worker {
    let node = Worker::new().with_loose_rp_filter().with_carrier();
    node.config(&format!("{KEYS}\n{keys}"));
    node
}

#[test]
fn each_kind_of_damage_is_repaired_by_one_run() {
    let node =
        node("rules: [{priority: 100, from: 10.0.7.7, table: main}]\naddresses: [{dev: eth1, address: 10.0.7.7/32}]");
    let mut watch = Watch::start(&node, &[]);
    let at_rest = watch.runs();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(watch.runs(), at_rest, "nothing happens, and runs start");
    watch.repairs("default deleted", 1, |node| drop(node.net.ip("route del default table 2")));
    watch.repairs("rp_filter", 1, |node| node.net.set_sysctl("net/ipv4/conf/eth1/rp_filter", "1"));
    watch.repairs("rule deleted", 1, |node| drop(node.net.ip("rule del priority 100")));
    watch.repairs("address deleted", 1, |node| drop(node.net.ip("addr del 10.0.7.7/32 dev eth1")));
}

#[test]
fn several_changes_at_once_are_repaired_though_some_come_after_the_first_run() {
    // The CNI's own gateways are the first addresses of their subnets.
    let node = node("").with_pod(100);
    node.uplink_with_table(2);
    let mut watch = Watch::start(&node, &[]);
    let damages: [(&str, &[&str]); 3] = [
        ("table flushed", &["route flush table 2"]),
        ("address lost and back", &["addr del 10.0.1.10/24 dev eth1", "addr add 10.0.1.10/24 dev eth1"]),
        ("down and up", &["link set eth1 down", "link set eth1 up"]),
    ];
    for (what, commands) in damages {
        commands.iter().for_each(|command| drop(node.net.ip(command)));
        until(what, || {
            node.net.ip("route show table 2").contains("default via 10.0.1.1")
                && node.fix(&["--dry-run", "--detailed-exitcode"]).code == 0
        });
        watch.is_quiet();
        // Each of them is of its own, for somebody who undoes at once comes back sooner.
        std::thread::sleep(Duration::from_millis(1500));
    }
}

#[test]
fn the_cnis_rules_come_back_at_once_after_a_flush_and_one_alone_after_a_second_look() {
    let node = node("").with_pod(100).with_pod(101);
    let mut watch = Watch::start(&node, &[]);
    let restored = || node.net.ip("rule").matches("proto 172").count();
    node.net.ip_batch(
        "-4",
        "rule del priority 512\nrule del priority 512\nrule del priority 1536\nrule del priority 1536\n",
    );
    until("what was flushed", || restored() == 4);
    watch.is_quiet();
    // Nothing is announced after this, and no clock of its own starts a run.
    let runs = watch.runs();
    node.net.ip("rule del priority 1536 from 10.0.1.100");
    until("the rule of one pod", || restored() == 4);
    watch.is_quiet();
    assert_eq!(watch.runs() - runs, 2, "{:#?}", watch.said);
}

#[test]
fn a_new_uplink_that_is_strict_is_made_loose() {
    let node = node("");
    let mut watch = Watch::start(&node, &[]);
    node.uplink_with_table(2);
    until("loose", || node.net.sysctl("net/ipv4/conf/eth2/rp_filter") == "2");
    watch.is_quiet();
    node.fix(&["--dry-run", "--detailed-exitcode"]).expect(0);
}

#[test]
fn pods_that_come_and_go_start_a_run_in_each_pace_and_no_more() {
    let node = node("");
    let mut watch = Watch::start(&node, &[]);
    let (before, begin) = (watch.runs(), Instant::now());
    let mut pods = 0_u32;
    while begin.elapsed() < Duration::from_secs(3) {
        let n = pods % 200 + 2;
        node.net.ip(&format!("route add 10.0.1.{n}/32 dev eth1"));
        node.net.ip(&format!("rule add priority 512 to 10.0.1.{n} lookup main"));
        node.net.ip(&format!("rule del priority 512 to 10.0.1.{n} lookup main"));
        node.net.ip(&format!("route del 10.0.1.{n}/32 dev eth1"));
        pods += 1;
    }
    let paces = begin.elapsed().as_millis() as usize / 200;
    watch.is_quiet();
    let runs = watch.runs() - before;
    assert!(pods > 10 && runs > 1 && runs <= paces + 2, "{runs} runs, {paces} paces, {pods} pods");
}

#[test]
fn what_is_lost_in_a_flood_is_found_all_the_same() {
    let node = node("");
    let mut watch = Watch::start(&node, &[]);
    let lines = |what: &str| -> String {
        (0..20_000_u32)
            .map(|n| {
                format!("route {what} 10.{}.{}.{}/32 dev eth1 table 99\n", 100 + n / 65_536, n / 256 % 256, n % 256)
            })
            .collect()
    };
    node.net.ip_batch("-4", &(lines("add") + "route del default table 2\n"));
    until("the last damage of the flood", || node.net.ip("route show table 2").contains("default via 10.0.1.1"));
    watch.is_quiet();
    node.net.ip_batch("-4", &lines("del"));
    assert!(watch.child.try_wait().unwrap().is_none(), "it has ended");
    assert_eq!(watch.count(" WARN "), 0, "{:#?}", watch.said);
}

#[test]
fn what_is_undone_at_once_is_repaired_ever_more_seldom_and_reported_once() {
    let node = node("");
    let mut watch = Watch::start(&node, &[]);
    let foe = Foe::of_the_default(&node);
    node.net.ip("route del default table 2");
    until("undone five times", || watch.count("WARN contention") > 0);
    let repairs = watch.count("INFO changed");
    let status = node.fix(&["status", "--output", "json"]).expect(0).json();
    drop(foe);
    assert_eq!(repairs, 5, "{:#?}", watch.said);
    assert_eq!(status["contention"].as_array().unwrap().len(), 1, "{status}");
    assert_eq!(watch.count("undone at once, "), 1, "held back is said once: {:#?}", watch.said);
    // It is gone, and what is held back comes at its time.
    until("repaired at last", || node.net.ip("route show table 2").contains("default via 10.0.1.1"));
    watch.is_quiet();
    assert_eq!((watch.count("WARN contention"), watch.count("INFO changed")), (1, 6), "{:#?}", watch.said);
}

/// A run keeps 256 repairs in mind.
#[test]
fn who_flushes_hundreds_of_rules_at_once_finds_them_restored_ever_more_seldom() {
    let pods = 150;
    let node = node("");
    let of_all = |lines: fn(u32) -> String| (1..=pods).map(lines).collect::<String>();
    node.link("eni00000000001", &[]);
    let adds = of_all(|n| {
        format!(
            "route add 10.0.7.{n} dev eni00000000001 scope link\nrule add priority 512 to 10.0.7.{n} lookup main\n\
             rule add priority 1536 from 10.0.7.{n} lookup 2\n"
        )
    });
    node.net.ip_batch("-4", &adds);
    node.net.settle();
    let mut watch = Watch::start(&node, &[]);
    node.net.ip_batch("-4", &of_all(|_| "rule del priority 512\nrule del priority 1536\n".to_owned()));
    let restored = || node.net.ip("rule").matches("proto 172").count();
    let mut last = Instant::now();
    let mut waits = Vec::new();
    for _ in 0..5 {
        until("restored", || restored() > 0);
        waits.push(last.elapsed());
        // So that the run ends before they are removed again.
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(restored(), 2 * pods as usize, "after {waits:?}: not one part now and another later");
        last = Instant::now();
        node.net.ip("rule flush protocol 172");
    }
    for (wait, least) in waits.iter().zip([0, 0, 900, 1900, 3900]).skip(1) {
        assert!(wait.as_millis() >= least, "{waits:?}: {:#?}", watch.said);
    }
    until("contention is reported", || watch.count("WARN contention") > 0);
    let status = node.fix(&["status", "--output", "json"]).expect(0).json();
    let contention = status["contention"].as_array().unwrap();
    assert_eq!((contention.len(), &contention[0]["reconciler"]), (1, &"pod_rules".into()), "{status}");
    assert_eq!(contention[0]["repair"], "restore removed rules of the VPC CNI");
    let state = fs::read_to_string(node.directory.path().join("state/state.json")).unwrap();
    assert_eq!(state.matches("held back: ").count(), 1, "{state}");
    until("restored at last", || restored() == 2 * pods as usize);
    watch.is_quiet();
    // Each is reported once, and not with a line for each rule.
    for (what, times) in [("WARN contention", 1), ("were restored", 6), (" ERROR ", 0), ("INFO held back", 1)] {
        assert_eq!(watch.count(what), times, "{what}: {:#?}", watch.said);
    }
    assert!(watch.said.iter().any(|line| line.contains("held back") && line.contains("(and 299 more)")));
}

/// Deletes the default of table 2 as soon as it is announced, until it is dropped.
struct Foe(Child);

impl Foe {
    fn of_the_default(node: &Worker) -> Foe {
        let script = "ip monitor route | while read -r line; do case $line in Deleted*) ;; *default*table\\ 2*) ip route del default table 2 ;; esac; done";
        let mut command = Command::new("sh");
        // A group of its own, so that all of the pipeline ends.
        std::os::unix::process::CommandExt::process_group(command.args(["-c", script]), 0);
        let foe = Foe(node.net.enter(|| command.spawn()).unwrap());
        std::thread::sleep(Duration::from_millis(300));
        foe
    }
}

impl Drop for Foe {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(-i32::try_from(self.0.id()).unwrap()), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}

#[test]
fn what_is_blocked_is_said_once_while_it_lasts() {
    let node = node("");
    let mut watch = Watch::start(&node, &[]);
    node.net.ip("rule add from 10.0.1.11 table 77");
    until("blocked", || watch.count("WARN blocked") == 1);
    for n in 0..4 {
        let before = watch.runs();
        node.net.ip(&format!("route add 10.9.{n}.0/24 dev eth1"));
        until("another run", || watch.runs() > before);
        watch.is_quiet();
    }
    assert_eq!(watch.count("WARN blocked"), 1, "{:#?}", watch.said);
    node.net.ip("rule del from 10.0.1.11");
    watch.is_quiet();
    node.net.ip("rule add from 10.0.1.11 table 77");
    until("blocked anew", || watch.count("WARN blocked") == 2);
}

#[test]
fn a_wrong_configuration_is_said_once_and_a_corrected_one_counts() {
    let node = node("");
    let mut watch = Watch::start(&node, &[]);
    fs::write(node.directory.path().join("config.yaml"), "version: 1\nrp_filter: {mode: of}\n").unwrap();
    node.net.ip("route del default table 2");
    until("the error", || watch.count("rp_filter.mode: unknown value") == 1);
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(watch.count("unknown value"), 1, "{:#?}", watch.said);
    assert!(!node.net.ip("route show table 2").contains("default"));
    node.config(KEYS);
    until("repaired", || node.net.ip("route show table 2").contains("default via 10.0.1.1"));
}

#[test]
fn a_wrong_configuration_starts_no_run_at_each_short_pace() {
    let node = node("");
    node.config("kube_proxy: {mode: off}\nwatch: {pace: 10ms}");
    let mut watch = Watch::start(&node, &[]);
    let tries = || {
        let shown = fs::read_to_string(node.directory.path().join("state/watch.json")).unwrap();
        serde_json::from_str::<Value>(&shown).unwrap()["runs"].as_u64().unwrap()
    };
    node.config("kube_proxy: {mode: of}");
    node.net.ip("route del default table 2");
    until("the error", || watch.count("kube_proxy.mode: unknown value") == 1);
    let (before, begun) = (tries(), Instant::now());
    until("it is tried again", || tries() > before + 3);
    let seconds = begun.elapsed().as_secs() + 1;
    assert!(tries() - before <= seconds + 1, "{} runs in less than {seconds} s", tries() - before);
}

/// A watcher whose state directory is like a full disk: files can be opened, and nothing can be written under another name.
fn with_full_state(node: &Worker) -> Command {
    let state = node.directory.path().join("state");
    fs::create_dir(&state).unwrap();
    let full = format!(
        "mount -t tmpfs -o size=4k tmpfs {0} && : > {0}/watch.json && head -c 4096 /dev/zero > {0}/fill && exec \"$@\"",
        state.display()
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &full, "sh"]).arg(env!("CARGO_BIN_EXE_node-fixer"));
    command.env_remove("JOURNAL_STREAM").args(node.command(&["watch", "-v"]).get_args());
    command
}

#[test]
fn who_undoes_at_once_is_repaired_ever_more_seldom_though_nothing_can_be_remembered() {
    let node = node("");
    let mut watch = Watch::of(&node, with_full_state(&node));
    let foe = Foe::of_the_default(&node);
    let begin = Instant::now();
    node.net.ip("route del default table 2");
    // At once, and 1, 2 and 4 seconds after the last one.
    until("four repairs", || watch.count("INFO changed") == 4);
    assert!(begin.elapsed() > Duration::from_secs(6), "{:?}: {:#?}", begin.elapsed(), watch.said);
    assert_eq!(watch.count("cannot save what was repaired"), 1, "{:#?}", watch.said);
    drop(foe);
    until("repaired at last", || node.net.ip("route show table 2").contains("default via 10.0.1.1"));
}

#[test]
fn what_a_full_state_directory_cannot_remember_is_reported_once() {
    let node = node("");
    let mut watch = Watch::of(&node, with_full_state(&node));
    node.net.ip("rule add from 10.0.1.11 table 77");
    until("blocked", || watch.count("table 77 has no") > 0);
    watch.is_quiet();
    // Blocked, and what cannot be saved.
    let known = watch.count("WARN");
    for n in 0..4 {
        let before = watch.runs();
        node.net.ip(&format!("route add 10.9.{n}.0/24 dev eth1"));
        until("another run", || watch.runs() > before);
        watch.is_quiet();
    }
    assert_eq!(watch.count("WARN"), known, "{:#?}", watch.said);
    node.net.ip("rule add from 10.0.1.12 table 78");
    until("blocked anew", || watch.count("table 78 has no") > 0);
}

#[test]
fn a_second_watcher_leaves_the_first_in_status() {
    let node = node("");
    let mut watch = Watch::start(&node, &[]);
    let mut other = Watch::start(&node, &[]);
    let shown = || node.fix(&["status", "--output", "json"]).expect(0).json()["watcher"].clone();
    kill(other.pid(), Signal::SIGTERM).unwrap();
    other.child.wait().unwrap();
    let before = watch.runs();
    node.net.ip("route add 10.9.0.0/24 dev eth1");
    until("another run", || watch.runs() > before);
    until("status shows it", || !shown().is_null());
}

/// A copy of the binary, at a path of the test's own.
fn copy(node: &Worker) -> PathBuf {
    let copy = node.directory.path().join("node-fixer");
    let status = Command::new("cp").arg(env!("CARGO_BIN_EXE_node-fixer")).arg(&copy).status().unwrap();
    assert!(status.success());
    copy
}

fn by(program: &Path, node: &Worker) -> Command {
    let mut command = Command::new(program);
    command.env_remove("JOURNAL_STREAM").args(node.command(&["watch", "-v"]).get_args());
    command
}

#[test]
fn that_no_run_can_be_started_is_said_once_and_an_upgrade_counts() {
    let node = node("");
    let program = copy(&node);
    let mut watch = Watch::of(&node, by(&program, &node));
    let aside = program.with_extension("aside");
    fs::rename(&program, &aside).unwrap();
    node.net.ip("route del default table 2");
    until("it says so", || watch.count("cannot make a run") == 1);
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(watch.count("cannot make a run"), 1);
    // What an upgrade puts there is what runs.
    let mark = node.directory.path().join("new");
    kit::script(&program, &format!("#!/bin/sh\n: > {}\nexec {} \"$@\"\n", mark.display(), aside.display()));
    until("repaired", || node.net.ip("route show table 2").contains("default via 10.0.1.1"));
    assert!(mark.exists());
    until("it says so as well", || watch.count("runs work again") == 1);
}

/// Puts a script in the place of the program, which it can run as `$program`.
fn wrap(program: &Path, script: &str) {
    let aside = program.with_extension("aside");
    fs::rename(program, &aside).unwrap();
    kit::script(program, &format!("#!/bin/sh\nprogram={}\n{script}\nexec $program \"$@\"\n", aside.display()));
}

#[test]
fn a_repair_is_measured_from_the_change_though_runs_are_killed() {
    let node = node("");
    let textfile = node.directory.path().join("textfile");
    fs::create_dir(&textfile).unwrap();
    node.config(&format!("{KEYS}\nmetrics: {{textfile: {}}}", textfile.display()));
    let program = copy(&node);
    let mut watch = Watch::of(&node, by(&program, &node));
    let tries = node.directory.path().join("tries");
    wrap(
        &program,
        &format!("echo x >> {0}; [ $(wc -l < {0}) -gt 2 ] || {{ sleep 1; kill -KILL $$; }}", tries.display()),
    );
    node.net.ip("route del default table 2");
    until("repaired", || node.net.ip("route show table 2").contains("default via 10.0.1.1"));
    watch.is_quiet();
    let metrics = fs::read_to_string(textfile.join("node_fixer.prom")).unwrap();
    let sum = metrics.lines().find_map(|line| line.strip_prefix("node_fixer_watch_repair_seconds_sum ")).unwrap();
    // Two runs slept for a second each.
    assert!(sum.parse::<f64>().unwrap() >= 2.0, "{metrics}");
}

#[test]
fn what_nobody_announced_is_not_measured() {
    let node = node("");
    let textfile = node.directory.path().join("textfile");
    fs::create_dir(&textfile).unwrap();
    let keys = format!("{KEYS}\nmetrics: {{textfile: {}}}", textfile.display());
    node.config(&keys);
    let mut watch = Watch::start(&node, &[]);
    node.config("rp_filter: {mode: of}");
    kill(watch.pid(), Signal::SIGHUP).unwrap();
    until("the error", || watch.count("rp_filter.mode: unknown value") == 1);
    node.config(&format!("{keys}\nrules: [{{priority: 100, from: 10.0.7.7, table: main}}]"));
    until("added", || node.net.ip("rule").contains("from 10.0.7.7"));
    watch.is_quiet();
    let metrics = fs::read_to_string(textfile.join("node_fixer.prom")).unwrap();
    let count = metrics.lines().find_map(|line| line.strip_prefix("node_fixer_watch_repair_seconds_count "));
    assert!(count.is_none_or(|count| count == "0"), "{metrics}");
}

#[test]
fn what_was_reported_is_not_reported_again_because_a_run_is_killed() {
    let node = node("");
    let program = copy(&node);
    let mut watch = Watch::of(&node, by(&program, &node));
    node.config("rp_filter: {mode: of}");
    kill(watch.pid(), Signal::SIGHUP).unwrap();
    until("the error", || watch.count("rp_filter.mode: unknown value") == 1);
    let tries = node.directory.path().join("tries");
    wrap(&program, &format!("echo x >> {0}; [ $(wc -l < {0}) -gt 1 ] || kill -KILL $$", tries.display()));
    until("runs go on", || fs::read_to_string(&tries).unwrap_or_default().lines().count() > 3);
    assert_eq!((watch.count("it was killed by SIGKILL"), watch.count("unknown value")), (1, 1), "{:#?}", watch.said);
}

#[test]
fn a_reload_during_a_run_starts_another_whatever_its_pace() {
    let node = node("");
    let program = copy(&node);
    let mut watch = Watch::of(&node, by(&program, &node));
    let tries = node.directory.path().join("tries");
    wrap(&program, &format!("echo x >> {0}; [ $(wc -l < {0}) -gt 1 ] || sleep 2", tries.display()));
    let begun = || fs::read_to_string(&tries).unwrap_or_default().lines().count();
    node.config("kube_proxy: {mode: off}\nwatch: {pace: 60s}");
    let begin = Instant::now();
    kill(watch.pid(), Signal::SIGHUP).unwrap();
    until("a run begins", || begun() == 1);
    // Later than the pace until now, so that it counts.
    std::thread::sleep(Duration::from_millis(500));
    kill(watch.pid(), Signal::SIGHUP).unwrap();
    until("another run", || begun() == 2);
    assert!(begin.elapsed() < Duration::from_secs(60), "it waited for the pace");
    watch.is_quiet();
}

#[test]
fn a_run_for_kube_proxy_that_is_killed_is_reported_once() {
    let kube = Kube::never_run("settle: 100ms, min_interval: 1s");
    let node = &kube.node;
    let program = copy(node);
    let mut watch = Watch::of(node, by(&program, node));
    let tries = node.directory.path().join("tries");
    wrap(
        &program,
        &format!(
            "case $NODE_FIXER_WATCH in *restart=1*)\necho x >> {0}; [ $(wc -l < {0}) -gt 2 ] || kill -KILL $$ ;;\nesac",
            tries.display()
        ),
    );
    node.uplink_with_table(2);
    until("restarted", || watch.count("INFO changed reconciler=\"kube_proxy\"") == 1);
    watch.is_quiet();
    let said = (watch.count("it was killed by SIGKILL"), watch.count("runs work again"));
    assert_eq!(said, (1, 1), "{:#?}", watch.said);
}

#[test]
fn a_run_that_was_killed_is_followed_by_another() {
    let node = node("");
    let program = copy(&node);
    let mut watch = Watch::of(&node, by(&program, &node));
    let tries = node.directory.path().join("tries");
    wrap(&program, &format!("echo x >> {0}; [ $(wc -l < {0}) -gt 2 ] || kill -KILL $$", tries.display()));
    node.net.ip("route del default table 2");
    until("repaired", || node.net.ip("route show table 2").contains("default via 10.0.1.1"));
    watch.is_quiet();
    assert_eq!(fs::read_to_string(&tries).unwrap().lines().count(), 3);
    let said = (
        watch.count("WARN cannot make a run"),
        watch.count("it was killed by SIGKILL"),
        watch.count("runs work again"),
    );
    assert_eq!(said, (1, 1, 1), "{:#?}", watch.said);
}

#[test]
fn a_run_that_was_killed_is_followed_by_another_within_the_pace() {
    let node = node("");
    node.config("kube_proxy: {mode: off}\nwatch: {pace: 60s}");
    let program = copy(&node);
    let mut watch = Watch::of(&node, by(&program, &node));
    let aside = program.with_extension("aside");
    fs::rename(&program, &aside).unwrap();
    let aside = aside.display();
    kit::script(&program, &format!("#!/bin/sh\nmv {aside} {}\nkill -KILL $$\n", program.display()));
    node.net.ip("route del default table 2");
    // Within the pace, only SIGHUP starts a run.
    let begin = Instant::now();
    kill(watch.pid(), Signal::SIGHUP).unwrap();
    until("repaired", || node.net.ip("route show table 2").contains("default via 10.0.1.1"));
    assert!(begin.elapsed() < Duration::from_secs(60), "it waited for the pace");
    watch.is_quiet();
    assert_eq!((watch.count("it was killed by SIGKILL"), watch.count("runs work again")), (1, 1), "{:#?}", watch.said);
}

#[test]
fn it_is_ready_before_its_first_run_has_ended() {
    let node = node("");
    let socket = node.directory.path().join("notify");
    let systemd = UnixDatagram::bind(&socket).unwrap();
    // The run waits for the lock, and gives up.
    let lock = node.directory.path().join("state/lock");
    fs::create_dir_all(lock.parent().unwrap()).unwrap();
    let holder = fs::File::create(&lock).unwrap();
    flock(&holder, FlockOperation::LockExclusive).unwrap();
    let mut command = node.command(&["watch", "-v"]);
    command.env("NOTIFY_SOCKET", &socket);
    let mut watch = Watch::unready(&node, command);
    let mut said = [0; 64];
    let length = systemd.recv(&mut said).unwrap();
    assert_eq!(std::str::from_utf8(&said[..length]), Ok("READY=1"));
    assert_eq!(watch.count("another run holds the lock"), 0, "ready only after its first run: {:#?}", watch.said);
    until("the first run", || watch.count("another run holds the lock") == 1);
}

#[test]
fn a_flood_of_sighups_starts_one_run_in_each_pace() {
    let node = node("");
    let mut watch = Watch::start(&node, &[]);
    let (before, begin) = (watch.runs(), Instant::now());
    while begin.elapsed() < Duration::from_secs(2) {
        kill(watch.pid(), Signal::SIGHUP).unwrap();
        std::thread::sleep(Duration::from_millis(3));
    }
    let paces = begin.elapsed().as_millis() as usize / 200;
    watch.is_quiet();
    let runs = watch.runs() - before;
    assert!(runs > 1 && runs <= paces + 2, "{runs} runs, {paces} paces");
}

#[test]
fn a_suspended_machine_is_no_reason_to_wait() {
    let node = node("");
    let program = copy(&node);
    let mut watch = Watch::of(&node, by(&program, &node));
    // Something is held back when the machine is suspended …
    let foe = Foe::of_the_default(&node);
    node.net.ip("route del default table 2");
    until("undone four times", || watch.count("INFO changed") == 4);
    drop(foe);
    kill(watch.pid(), Signal::SIGSTOP).unwrap();
    // … for an hour, by the clock that counts this.
    let aside = program.with_extension("aside");
    fs::rename(&program, &aside).unwrap();
    let script = format!("#!/bin/sh\nexec unshare --time --boottime 3600 {} \"$@\"\n", aside.display());
    kit::script(&program, &script);
    node.net.ip("route add 10.9.0.0/24 dev eth1");
    kill(watch.pid(), Signal::SIGCONT).unwrap();
    until("repaired", || node.net.ip("route show table 2").contains("default via 10.0.1.1"));
    watch.is_quiet();
    watch.repairs("rp_filter", 1, |node| node.net.set_sysctl("net/ipv4/conf/eth1/rp_filter", "1"));
    assert_eq!(watch.count(" WARN "), 0, "{:#?}", watch.said);
}

#[test]
fn it_waits_for_the_lock_of_another_run() {
    let node = node("");
    let mut watch = Watch::start(&node, &[]);
    let lock = node.directory.path().join("state/lock");
    let mut holder = Command::new("flock").arg(&lock).args(["sleep", "1"]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    node.net.ip("route del default table 2");
    until("repaired", || node.net.ip("route show table 2").contains("default via 10.0.1.1"));
    holder.wait().unwrap();
    assert_eq!(watch.count("another run holds the lock"), 0, "{:#?}", watch.said);
}

#[test]
fn its_own_clock_and_sighup_start_runs_and_sigterm_ends_it() {
    let node = node("");
    let mut watch = Watch::start(&node, &["--every", "1s"]);
    let before = watch.runs();
    until("its clock", || watch.runs() > before);
    drop(watch);
    let mut watch = Watch::start(&node, &[]);
    let before = watch.runs();
    kill(watch.pid(), Signal::SIGHUP).unwrap();
    until("a run at SIGHUP", || watch.runs() > before);
    let shown = node.directory.path().join("state/watch.json");
    assert!(shown.exists());
    kill(watch.pid(), Signal::SIGTERM).unwrap();
    assert_eq!(watch.child.wait().unwrap().code(), Some(0));
    assert!(!shown.exists(), "status would show one that is gone");
}

#[test]
fn kube_proxy_is_restarted_after_it_settled_and_blocks_no_repair() {
    let kube = Kube::never_run("settle: 2s, min_interval: 5m");
    let config = kube.node.directory.path().join("config.yaml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text + "watch: {pace: 200ms}\n").unwrap();
    fs::write(kube.fake.join("slow"), "1").unwrap();
    let node = &kube.node;
    let mut watch = Watch::start(node, &[]);
    node.uplink_with_table(2);
    until("held back", || watch.count("INFO held back") == 1);
    let is_whole = || node.net.ip("route show table 2").contains("default via 10.0.1.1");
    let log = || fs::read_to_string(kube.fake.join("log")).unwrap_or_default();
    node.net.ip("route del default table 2");
    until("repaired while it settles", is_whole);
    assert_eq!(log(), "", "it has settled already");
    // A run by hand would wait, and hold the lock meanwhile.
    let report = node.fix(&["--output", "json"]).expect(0).json();
    assert!(!report.to_string().contains("kube_proxy"), "{report}");
    until("the restart has begun", || log().contains("stopp"));
    watch.is_quiet();
    node.net.ip("route del default table 2");
    until("repaired while kube-proxy is restarted", is_whole);
    assert_eq!(watch.count("changed reconciler=\"kube_proxy\""), 0, "the restart is over already: {:#?}", watch.said);
    until("restarted", || watch.count("INFO changed reconciler=\"kube_proxy\"") == 1);
    watch.is_quiet();
    let deeds: Vec<String> = log().lines().filter(|line| !line.starts_with("pods")).map(str::to_owned).collect();
    assert_eq!(deeds.len(), 2, "{deeds:?}");
    assert_eq!(watch.count("INFO held back"), 1, "{:#?}", watch.said);
}

#[test]
fn status_and_metrics_show_it() {
    let node = node("");
    let textfile = node.directory.path().join("textfile");
    fs::create_dir(&textfile).unwrap();
    node.config(&format!("{KEYS}\nmetrics: {{textfile: {}}}", textfile.display()));
    let mut watch = Watch::start(&node, &[]);
    watch.repairs("default deleted", 1, |node| drop(node.net.ip("route del default table 2")));
    let status: Value = node.fix(&["status", "--output", "json"]).expect(0).json();
    let shown = &status["watcher"];
    assert!(shown["runs"].as_u64() >= Some(2) && shown["events"].as_u64() >= Some(1), "{shown}");
    assert!(shown["last_event"].is_string() && shown["last_run"].is_string(), "{shown}");
    let text = node.fix(&["status"]).expect(0).out;
    assert!(text.contains("\nwatcher   started ") && text.contains("next run  at the next change"), "{text}");
    let metrics = fs::read_to_string(textfile.join("node_fixer.prom")).unwrap();
    let value = |name: &str| -> f64 {
        let line = metrics.lines().find_map(|line| line.strip_prefix(&format!("node_fixer_{name} ")));
        line.unwrap_or_else(|| panic!("{name}: {metrics}")).parse().unwrap()
    };
    assert!(value("watch_events_total") >= 1.0 && value("watch_runs_total") >= 2.0, "{metrics}");
    assert_eq!(value("watch_repair_seconds_count"), 1.0);
    assert_eq!(value("watch_repair_seconds_bucket{le=\"+Inf\"}"), 1.0);
    assert!(value("watch_repair_seconds_sum") > 0.0);
    kill(watch.pid(), Signal::SIGKILL).unwrap();
    watch.child.wait().unwrap();
    let status: Value = node.fix(&["status", "--output", "json"]).expect(0).json();
    assert_eq!(status["watcher"], Value::Null, "one that was killed");
}

#[test]
fn a_guest_stands_back_and_goes_on() {
    let node = Worker::new().with_pod(100).with_loose_rp_filter();
    node.config("kube_proxy: {mode: off}");
    let active = node.directory.path().join("state/active");
    let standing_back = || node.fix(&["status", "--output", "json"]).expect(0).json()["standing_back"] == true;
    let mut watch = Watch::start(&node, &["--every", "1s", "--stand-back"]);
    assert!(!standing_back());
    fs::create_dir(&active).unwrap();
    until("it stands back", || watch.count("this one stands back") == 1);
    until("status shows it", standing_back);
    let runs = watch.runs();
    node.net.ip("route del default table 2");
    // Two ticks, and an announcement.
    let begun = Instant::now();
    until("time for runs", || begun.elapsed() > Duration::from_millis(2500));
    assert_eq!((watch.runs(), watch.count("this one stands back")), (runs, 1), "{:#?}", watch.said);
    assert_eq!(node.net.ip("route show default table 2"), "");
    fs::remove_dir(&active).unwrap();
    until("it goes on", || watch.count("this one takes over") == 1);
    until("it repairs", || node.net.ip("route show default table 2").contains("proto 170"));
    assert!(!standing_back());
}

#[test]
fn one_that_hangs_ends_itself() {
    let node = node("");
    // Opening it never ends.
    let state = node.directory.path().join("state");
    fs::create_dir_all(&state).unwrap();
    nix::unistd::mkfifo(&state.join("watch.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut watch = Watch::start(&node, &["--every", "1m"]);
    kill(watch.pid(), Signal::SIGALRM).unwrap();
    assert_eq!(watch.child.wait().unwrap().code(), Some(1));
}

#[test]
#[ignore = "needs strace; tests/run runs it"]
fn it_sets_its_alarm_anew_as_long_as_it_does_not_hang() {
    let node = node("");
    let log = node.directory.path().join("strace.log");
    let program = node.command(&["watch", "--every", "1m", "-v"]);
    let mut command = Command::new("strace");
    command
        .args(["-D", "--trace=?alarm,setitimer", "--output"])
        .arg(&log)
        .arg(program.get_program())
        .args(program.get_args());
    command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let mut watch = Watch::of(&node, command);
    // glibc has it by either.
    let set = || fs::read_to_string(&log).unwrap().lines().filter(|line| line.contains("240")).count();
    let before = set();
    assert!(before > 0);
    watch.repairs("a change", 1, |node| drop(node.net.ip("route del default table 2")));
    assert!(set() > before);
}
