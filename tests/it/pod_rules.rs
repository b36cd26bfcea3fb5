//! The VPC CNI's rules come back when another program has removed them, and never do where a pod comes or goes.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::explain::batch;
use crate::kit::{Netns, Ran, Worker, until};
use crate::recorded::{RECORDED, replay};

/// All rules, by what they do and not by who added them.
fn rules(net: &Netns) -> BTreeSet<String> {
    let mut rules = BTreeSet::new();
    for family in ["-4", "-6"] {
        for mut rule in net.ip_json(&format!("{family} -N rule")).as_array().unwrap().clone() {
            rule.as_object_mut().unwrap().remove("protocol");
            assert!(rules.insert(format!("{family} {rule}")), "twice: {family} {rule}");
        }
    }
    rules
}

/// The rules that were restored.
fn restored(net: &Netns) -> usize {
    // (`ip rule show protocol 172` lists the kernel's own as well.)
    let of = |family: &str| net.ip_json(&format!("{family} -N rule")).as_array().unwrap().clone();
    of("-4").into_iter().chain(of("-6")).filter(|rule| rule["protocol"] == "172").count()
}

/// The commands that take the rules of a recording away.
fn removals(recording: &str) -> Vec<String> {
    let rules = recording.lines().filter(|line| line.contains(" rule add "));
    // The kernel's own are not the CNI's.
    let is_own = |line: &&str| ["priority 0 ", "priority 32766 ", "priority 32767 "].iter().any(|it| line.contains(it));
    rules.filter(|line| !is_own(line)).map(|line| line.replacen(" add ", " del ", 1)).collect()
}

fn state_file(node: &Worker, name: &str) -> std::path::PathBuf {
    node.directory.path().join("state").join(name)
}

fn state(node: &Worker) -> Value {
    serde_json::from_slice(&fs::read(state_file(node, "state.json")).unwrap()).unwrap()
}

/// As if the last look had been 10 seconds ago.
fn ten_seconds_pass(node: &Worker) {
    let mut state = state(node);
    let missing = state["memory"]["cni"]["missing"].as_array_mut();
    for entry in missing.into_iter().flatten() {
        entry[1] = json!(entry[1].as_u64().unwrap() - 10);
    }
    fs::write(state_file(node, "state.json"), state.to_string()).unwrap();
}

fn remembered(recording: &str) -> Worker {
    let node = replay(recording);
    node.fix(&[]).expect(0);
    node
}

#[test]
fn what_is_flushed_at_once_comes_back_in_one_run() {
    for (name, recording) in RECORDED {
        let all = removals(recording);
        let (first, second) = all.split_at(all.len() / 2);
        let every_other = |from: usize| all.iter().skip(from).step_by(2).cloned().collect::<Vec<_>>();
        for (case, gone) in [
            ("all", all.clone()),
            ("the first half", first.to_vec()),
            ("the second half", second.to_vec()),
            ("even ones", every_other(0)),
            ("odd ones", every_other(1)),
        ] {
            let node = remembered(recording);
            let healthy = rules(&node.net);
            let node = node.with(&gone.join("\n"));
            let ran = node.fix(&[]).expect(0);
            assert_eq!(rules(&node.net), healthy, "{name}: {case}: {ran:?}");
            assert_eq!(restored(&node.net), gone.len(), "{name}: {case}: nothing else is added");
            assert!(
                ran.err.matches("WARN").count() == 1 && ran.err.contains(&format!("rules={} ", gone.len())),
                "{}",
                ran.err
            );
            assert_eq!(node.fix(&[]).expect(0).out, "", "{name}: {case}");
        }
    }
}

#[test]
fn what_is_missing_alone_comes_back_when_two_runs_missed_it() {
    for (name, recording) in RECORDED {
        for gone in removals(recording) {
            let what = format!("{name}: {gone}");
            let node = remembered(recording);
            let healthy = rules(&node.net);
            let node = node.with(&gone);
            let broken = rules(&node.net);
            node.fix(&[]).expect(0);
            node.fix(&[]).expect(0);
            assert_eq!(rules(&node.net), broken, "{what}: not yet");
            ten_seconds_pass(&node);
            let ran = node.fix(&[]).expect(0);
            // The uplinks of this node are new, as after a start of the CNI, which may have removed these itself.
            let is_of_node = gone.contains("priority 1024") || gone.contains("priority 1535");
            assert_eq!(rules(&node.net), if is_of_node { broken } else { healthy }, "{what}: {ran:?}");
            assert_eq!(node.fix(&[]).expect(0).out, "", "{what}");
        }
    }
}

/// Without an uplink's own rule nothing shows when the CNI has started.
#[test]
fn a_lone_rule_for_the_whole_node_is_not_restored_where_the_cni_may_have_removed_it() {
    let (_, recording) = RECORDED[0];
    let lines = recording.lines().filter(|line| !line.contains("32765"));
    let node = remembered(&lines.fold(String::new(), |all, line| all + line + "\n"));
    node.net.ip("rule del priority 1024");
    let broken = rules(&node.net);
    for _ in 0..3 {
        node.fix(&[]).expect(0);
        ten_seconds_pass(&node);
    }
    assert_eq!(node.fix(&["--output", "json"]).expect(0).commands(), Vec::<String>::new());
    assert_eq!(rules(&node.net), broken);
    let findings = node.fix(&["doctor", "--output", "json"]).findings();
    assert!(findings.iter().any(|finding| finding["cause"] == "mark_rule_missing"), "{findings:?}");
}

#[test]
fn what_was_restored_goes_for_the_cnis_own_and_with_its_pod() {
    for (name, recording) in RECORDED {
        let all = removals(recording);
        let node = remembered(recording).with(&all.join("\n"));
        let healthy = rules(&remembered(recording).net);
        node.fix(&[]).expect(0);
        // The CNI adds its own again, beside ours.
        let own: Vec<String> = all.iter().map(|line| line.replacen(" del ", " add ", 1)).collect();
        let node = node.with(&own.join("\n"));
        assert_eq!(restored(&node.net), all.len());
        node.fix(&[]).expect(0);
        assert_eq!((rules(&node.net), restored(&node.net)), (healthy, 0), "{name}");
        // A second flush; then the pods go while node-fixer is down.
        let node = node.with(&all.join("\n"));
        node.fix(&[]).expect(0);
        assert_eq!(restored(&node.net), all.len());
        let pods: Vec<&str> = recording.lines().filter(|line| line.contains("uplink eni")).collect();
        let links: String = pods.iter().map(|line| line.replacen("uplink", "link del", 1) + "\n").collect();
        let node = node.with(&links);
        node.fix(&[]).expect(0);
        let left = rules(&node.net);
        assert!(
            !left.iter().any(|rule| rule.contains("\"priority\":512,") || rule.contains("\"priority\":1536,")),
            "{name}: {left:?}"
        );
    }
}

#[test]
fn a_dry_run_and_observe_report_and_change_nothing() {
    let (_, recording) = RECORDED[0];
    let all = removals(recording);
    let node = remembered(recording).with(&all.join("\n"));
    let before = (rules(&node.net), state(&node));
    let ran = node.fix(&["--dry-run", "--output", "json", "--detailed-exitcode"]).expect(2);
    assert_eq!(ran.commands().len(), all.len(), "{ran:?}");
    assert_eq!((rules(&node.net), state(&node)), before);
    node.config("kube_proxy: {mode: off}\npod_rules: {mode: observe}");
    let ran = node.fix(&["--output", "json"]).expect(0);
    assert_eq!(ran.commands().len(), all.len());
    assert_eq!(rules(&node.net), before.0);
    node.config("kube_proxy: {mode: off}\npod_rules: {mode: off}");
    assert_eq!(node.fix(&[]).expect(0).out, "");
    assert_eq!(rules(&node.net), before.0);
}

#[test]
fn the_script_of_a_dry_run_restores_the_same() {
    let (_, recording) = RECORDED[2];
    let node = remembered(recording);
    let healthy = rules(&node.net);
    let node = node.with(&removals(recording).join("\n"));
    let script = node.run_script();
    assert_eq!(rules(&node.net), healthy, "{script}");
}

#[test]
fn what_no_run_has_seen_is_reported() {
    for (name, recording) in RECORDED {
        let all = removals(recording);
        // Nothing is left, and nothing was seen.
        let node = replay(recording).with(&all.join("\n"));
        let before = rules(&node.net);
        let ran = node.fix(&[]).expect(1);
        assert!(ran.out.contains("blocked: pod_rules: restore the rules 512 and 1536"), "{name}: {ran:?}");
        assert_eq!(rules(&node.net), before, "{name}");
        // The mark is left: the rest is certain from the routes, but for the tables.
        let but_mark: Vec<String> = all.iter().filter(|line| !line.contains("priority 1024")).cloned().collect();
        let node = replay(recording).with(&but_mark.join("\n"));
        let ran = node.fix(&["--output", "json"]).expect(1);
        let to_pods = all.iter().filter(|line| line.contains("priority 512")).count();
        let of_pods = ran.commands().iter().filter(|command| command.contains("protocol 172")).count();
        assert_eq!((of_pods, restored(&node.net)), (to_pods, to_pods), "{name}: {ran:?}");
        assert!(ran.out.contains("restore the rules 1536 of"), "{name}: {ran:?}");
    }
}

#[test]
fn another_boot_is_another_node() {
    let (_, recording) = RECORDED[0];
    let node = remembered(recording);
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    for name in ["state.json", "pods"] {
        let text = fs::read_to_string(state_file(&node, name)).unwrap();
        fs::write(state_file(&node, name), text.replace(boot_id.trim(), "another")).unwrap();
    }
    let node = node.with(&removals(recording).join("\n"));
    let before = rules(&node.net);
    node.fix(&[]).expect(1);
    assert_eq!(rules(&node.net), before);
}

#[test]
fn memory_is_written_when_the_rules_have_changed_and_not_else() {
    let (_, recording) = RECORDED[0];
    let node = remembered(recording);
    let files =
        || ["state.json", "pods"].map(|name| fs::metadata(state_file(&node, name)).unwrap().modified().unwrap());
    let before = files();
    node.fix(&[]).expect(0);
    assert_eq!(files(), before);
    // Rules of others are nothing to it.
    node.net.ip("rule add priority 99 to 10.9.9.9 lookup 99");
    node.fix(&[]).expect(0);
    assert_eq!(files(), before);
    node.link("eni00000000077", &[]);
    node.net.ip_batch(
        "-4",
        "route add 10.0.0.77 dev eni00000000077 scope link\nrule add priority 512 to 10.0.0.77 lookup main\n",
    );
    node.fix(&[]).expect(0);
    let pods = fs::read_to_string(state_file(&node, "pods")).unwrap();
    assert!(pods.contains("10.0.0.77") && pods.contains("eni00000000077"), "{pods}");
    // What cannot be read is a fresh start, and what cannot be written is told.
    fs::write(state_file(&node, "pods"), "{").unwrap();
    node.net.ip("rule del priority 99");
    node.net.ip("rule del to 10.0.0.77 priority 512");
    node.net.ip("route del 10.0.0.77 dev eni00000000077");
    node.fix(&[]).expect(0);
    let again = fs::read_to_string(state_file(&node, "pods")).unwrap();
    assert!(again.contains("10.0.0.101") && !again.contains("10.0.0.77"), "{again}");
}

/// Pings between pods, and to the world, as witnesses.
#[test]
fn pods_reach_each_other_and_the_world_again() {
    let node = Worker::new().with_pod(100).with_pod(101).with_loose_rp_filter();
    node.config("kube_proxy: {mode: off}");
    let all = "rule del priority 32765\nrule del priority 512\nrule del priority 512\nrule del priority 1536\nrule del priority 1536\n";
    let reach = |from: usize, to: &str| {
        let own = ["10.0.1.100", "10.0.1.101"][from];
        node.pod(from).pings(own, to)
    };
    assert!(reach(0, "10.0.1.101") && reach(1, "192.0.2.1"));
    node.fix(&[]).expect(0);
    node.net.ip_batch("-4", all);
    assert!(!reach(1, "192.0.2.1"), "the test is wrong: a cloud's source check drops it");
    node.fix(&[]).expect(0);
    assert!(reach(0, "10.0.1.101") && reach(1, "10.0.1.100") && reach(0, "192.0.2.1") && reach(1, "192.0.2.1"));
    // The CNI's tear-down takes ours along with its own: it deletes by priority and address.
    node.net.ip_batch(
        "-4",
        "rule del priority 512 to 10.0.1.101\nrule del priority 1536 from 10.0.1.101\nroute del 10.0.1.101\n",
    );
    assert_eq!(node.fix(&[]).expect(0).out, "");
    assert!(reach(0, "192.0.2.1"));
}

#[test]
fn the_kernels_own_rules_are_reported_and_restored_where_that_is_declared() {
    let node = Worker::new().with_loose_rp_filter();
    let off = "kube_proxy: {mode: off}\n";
    node.config(off);
    node.fix(&[]).expect(0);
    let healthy = node.net.state();
    let gone = ["-4 rule del priority 32766", "-4 rule del priority 32767", "-6 rule del priority 32766"];
    gone.iter().for_each(|gone| drop(node.net.ip(gone)));
    let ran = node.fix(&["--output", "json"]).expect(0);
    let changes = ran.json()["changes"].clone();
    assert!(
        changes.as_array().unwrap().iter().all(|it| it["reconciler"] == "kernel_rules" && it["status"] == "observed")
    );
    assert_eq!(ran.commands().len(), 3, "{ran:?}");
    node.config(&format!("{off}kernel_rules: {{mode: enforce}}"));
    node.fix(&[]).expect(0);
    assert_eq!(node.net.state(), healthy);
    // Moved is not missing.
    node.net.ip("rule add priority 100 lookup local");
    node.net.ip("rule del priority 0");
    assert_eq!(node.fix(&[]).expect(0).out, "");
}

#[test]
fn a_moved_rule_of_the_kernel_goes_back_to_where_the_cni_moved_it() {
    let (_, recording) = RECORDED[2];
    let off = "kube_proxy: {mode: off}\n";
    for (mode, section) in [("off", "kernel_rules"), ("enforce", "pod_rules")] {
        let node = remembered(recording);
        let healthy = rules(&node.net);
        node.config(&format!("{off}kernel_rules: {{mode: enforce}}\npod_rules: {{mode: {mode}}}"));
        node.net.ip("rule del priority 20");
        node.fix(&[]).expect(0);
        if section == "pod_rules" {
            ten_seconds_pass(&node);
        }
        let ran = node.fix(&["--output", "json"]).expect(0);
        assert_eq!(rules(&node.net), healthy, "{section}: {ran:?}");
    }
}

/// networkd removes foreign routes as well from links that it manages.
#[test]
fn rules_and_tables_flushed_together_come_back_in_one_run() {
    for (name, recording) in RECORDED {
        let node = remembered(recording);
        let healthy = rules(&node.net);
        let tables: Vec<&str> = recording.lines().filter(|line| line.contains("priority 32765")).collect();
        let tables = tables.iter().filter_map(|line| Some((line.get(..2)?, line.rsplit(' ').next()?)));
        let flushes = tables.map(|(family, table)| format!("{family} route flush table {table}"));
        let node = node.with(&removals(recording).into_iter().chain(flushes).collect::<Vec<_>>().join("\n"));
        let ran = node.fix(&[]).expect(0);
        assert_eq!(rules(&node.net), healthy, "{name}: {ran:?}");
        assert_eq!(node.fix(&[]).expect(0).out, "", "{name}");
    }
}

#[test]
fn the_gateways_icmp_is_led_to_the_local_table_again() {
    let (_, recording) = RECORDED[2];
    // As on an IPv6 cluster.
    let own = [
        "-6 rule add priority 0 from fe80:ec2::1 ipproto ipv6-icmp lookup local",
        "-6 rule add priority 20 lookup local",
    ];
    let node = replay(recording).with(&own.join("\n")).with("-6 rule del priority 0 lookup local");
    node.fix(&[]).expect(0);
    let healthy = rules(&node.net);
    let all = [removals(recording), own.map(|rule| rule.replace(" add ", " del ")).to_vec()].concat();
    let node = node.with(&all.join("\n"));
    // Priority 0 is among the kernel's.
    let ran = node.fix(&[]).expect(1);
    assert!(ran.out.contains("set kernel_rules: {mode: enforce}") || ran.err.contains("set kernel_rules"), "{ran:?}");
    assert_eq!(restored(&node.net), all.len() - 1);
    node.config("kube_proxy: {mode: off}\nkernel_rules: {mode: enforce}");
    node.fix(&[]).expect(0);
    assert_eq!((rules(&node.net), restored(&node.net)), (healthy.clone(), all.len()));
    // The CNI adds its own, as at its start.
    let node = node.with(own[0]);
    node.fix(&[]).expect(0);
    assert_eq!((rules(&node.net), restored(&node.net)), (healthy, all.len() - 1));
}

/// A new pod's link is asked for by a packet's way, which policies may lead elsewhere.
#[test]
fn a_new_pod_is_remembered_whatever_leads_packets_to_it() {
    for ((_, recording), family, net) in [(RECORDED[0], "-4", "10.0.0."), (RECORDED[3], "-6", "fd00:77::")] {
        let node = remembered(recording);
        for (number, (what, is_pod)) in [
            ("route add POD dev LINK", true),
            ("route add POD dev LINK metric 7", true),
            ("route add POD dev LINK\nrule add priority 5 to POD lookup 99\nroute add POD dev lo table 99", true),
            ("route add POD dev LINK\nrule add priority 6 to POD unreachable", true),
            ("rule add priority 7 to POD lookup 99\nroute add POD dev LINK table 99", false),
            ("route add POD dev lo", false),
        ]
        .into_iter()
        .enumerate()
        {
            let (pod, link) = (format!("{net}{}", 70 + number), format!("eni000000000{number:02}"));
            node.link(&link, &[]);
            let what = what.replace("POD", &pod).replace("LINK", &link);
            node.net.ip_batch(family, &format!("{what}\nrule add priority 512 to {pod} lookup main\n"));
            node.fix(&[]).expect(0);
            let pods = fs::read_to_string(state_file(&node, "pods")).unwrap();
            let is_saved = pods.lines().any(|line| line.starts_with(&format!("pod {pod} ")) && line.contains(&link));
            assert_eq!(is_saved, is_pod, "{what}: {pods}");
        }
    }
}

#[test]
fn a_flush_is_counted_and_reported_once_and_again_and_again_is_contention() {
    let (_, recording) = RECORDED[0];
    let node = remembered(recording);
    let textfile = node.directory.path().display().to_string();
    node.config(&format!("kube_proxy: {{mode: off}}\nmetrics: {{textfile: {textfile}}}"));
    let all = removals(recording);
    let value = |name: &str| {
        let text = fs::read_to_string(node.directory.path().join("node_fixer.prom")).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(&format!("node_fixer_{name} "))).unwrap().to_owned();
        line.parse::<u64>().unwrap()
    };
    let mut contended = Vec::new();
    for flushes in 1..=5 {
        let ours = |line: &String| if flushes == 1 { line.clone() } else { format!("{line} protocol 172") };
        node.net.ip_batch("-4", &all.iter().map(|line| ours(line).replacen("-4 ", "", 1) + "\n").collect::<String>());
        let ran = node.fix(&[]).expect(0);
        assert_eq!(ran.err.matches("were restored").count(), 1, "{ran:?}");
        assert!(!ran.err.contains("INFO"), "{ran:?}");
        assert_eq!((value("rule_flushes_total"), value("restored_rules_total")), (flushes, flushes * all.len() as u64));
        contended.push(ran.err.contains("reconciler=\"pod_rules\" command=") && ran.err.contains("WARN contention"));
    }
    assert_eq!(contended, [false, false, false, false, true]);
}

#[test]
fn what_is_flushed_again_during_the_run_is_reported_as_one_failure() {
    let (_, recording) = RECORDED[0];
    let node = remembered(recording).with(&removals(recording).join("\n"));
    let failed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !failed.load(Ordering::Relaxed) {
                node.net.ip("rule flush protocol 172");
            }
        });
        until("several rules removed before the second look", || {
            let ran = node.fix(&[]);
            let errors: Vec<&str> = ran.err.lines().filter(|line| line.contains("ERROR")).collect();
            let is_so = ran.out.matches("gone when checked again").count() > 1;
            failed.fetch_or(is_so || errors.len() > 1, Ordering::Relaxed);
            assert!(errors.len() <= 1, "{ran:?}");
            assert!(!is_so || errors[0].contains(" more)"), "{ran:?}");
            is_so
        });
    });
}

/// What plays the CNI: pods come and go, each with its route and rules one after the other, at addresses that move between
/// links and uplinks.
struct Churn {
    lines: String,
    pods: usize,
}

impl Churn {
    fn new() -> Churn {
        Churn { lines: String::new(), pods: 0 }
    }

    /// So many pods of one worker of the CNI, five of which are there at the same time.
    fn worker(mut self, number: usize, count: usize) -> String {
        let mut here: Vec<(usize, usize, usize)> = Vec::new();
        while self.pods < count || !here.is_empty() {
            if self.pods < count && here.len() < 5 {
                let n = self.pods;
                let (address, link, table) = (50 + n % 7, n % 5, n / 3 % 3);
                let (link, address) = (number * 5 + link, number * 10 + address);
                let _ = writeln!(self.lines, "route replace 10.0.1.{address} dev eni{link:011x} scope link");
                self.adds(&format!("priority 512 to 10.0.1.{address} lookup main"));
                if table > 0 {
                    self.adds(&format!("priority 1536 from 10.0.1.{address} lookup {}", table + 1));
                }
                here.push((address, link, table));
                self.pods += 1;
            } else {
                let (address, link, table) = here.remove(0);
                let _ = writeln!(self.lines, "rule del priority 512 to 10.0.1.{address} lookup main");
                if table > 0 {
                    let _ = writeln!(self.lines, "rule del priority 1536 from 10.0.1.{address} lookup {}", table + 1);
                }
                let _ = writeln!(self.lines, "route del 10.0.1.{address} dev eni{link:011x}");
            }
        }
        self.lines
    }

    /// One that is there already is replaced.
    fn adds(&mut self, rule: &str) {
        let _ = writeln!(self.lines, "rule del {rule}\nrule add {rule}");
    }
}

/// NODE_FIXER_PODS sets how many pods come and go.
#[test]
fn no_rule_is_left_of_pods_that_come_and_go() {
    let pods = std::env::var("NODE_FIXER_PODS").map_or(600, |number| number.parse().expect("a number"));
    let node = Worker::new().with_pod(200).with_policy_table("10.0.1.1", "eth1", 3).with_loose_rp_filter();
    node.config("kube_proxy: {mode: off}");
    node.net.ip("rule add priority 1024 fwmark 0x80/0x80 lookup main");
    for link in 0..10 {
        node.link(&format!("eni{link:011x}"), &[]);
    }
    node.net.settle();
    node.fix(&[]).expect(0);
    let healthy = rules(&node.net);
    let workers_left = AtomicUsize::new(2);
    let in_the_way = &AtomicUsize::new(0);
    let mut added = 0;
    std::thread::scope(|scope| {
        for number in [0, 1] {
            let (net, lines) = (&node.net, Churn::new().worker(number, pods / 2));
            // As the CNI does it: what one worker did does not wait for another.
            let leaves = Leaves(&workers_left);
            scope.spawn(move || {
                let _leaves = leaves;
                let lines: Vec<&str> = lines.lines().collect();
                for chunk in lines.chunks(60) {
                    let chunk: Vec<String> = chunk.iter().map(|line| (*line).to_owned()).collect();
                    let (_, failed) = batch(net, "-4", &chunk);
                    failed.iter().for_each(|(number, error)| refused(&chunk[*number], error, in_the_way));
                }
            });
        }
        while workers_left.load(Ordering::Relaxed) > 0 {
            let ran = node.fix(&["--output", "json"]);
            assert!(matches!(ran.code, 0 | 1), "{ran:?}");
            added += made(&ran);
        }
    });
    let in_the_way = in_the_way.load(Ordering::Relaxed);
    assert!(
        added <= 1 + pods / 1000 && in_the_way == 0,
        "{pods} pods came and went, and {added} rules were added meanwhile, {in_the_way} in the way"
    );
    node.fix(&[]).expect(0);
    ten_seconds_pass(&node);
    assert_eq!(node.fix(&[]).expect(0).out, "");
    assert_eq!((rules(&node.net), restored(&node.net)), (healthy, 0));
}

/// The rules that a run has added.
fn made(ran: &Ran) -> usize {
    let changes = ran.json()["changes"].clone();
    let is_made = |it: &&Value| it["action"] == "create" && it["status"] != "skipped";
    changes.as_array().unwrap().iter().filter(is_made).count()
}

/// What the kernel may refuse: to remove a rule that is not there, and to add one that node-fixer has added since.
fn refused(line: &str, error: &str, in_the_way: &AtomicUsize) {
    if line.starts_with("rule add") && error.contains("File exists") {
        in_the_way.fetch_add(1, Ordering::Relaxed);
    } else {
        assert!(line.starts_with("rule del") && error.contains("No such file"), "{line}: {error}");
    }
}

/// A worker that ends, be it by a panic, is one fewer.
struct Leaves<'a>(&'a AtomicUsize);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whatever system call a run ends before: the next one ends with all rules that there were.
#[test]
#[ignore = "needs strace; tests/run runs it"]
fn a_run_may_be_killed_at_any_moment() {
    let (_, recording) = RECORDED[0];
    for (calls, least) in [("sendto", 15), ("write", 3), ("rename,renameat,renameat2", 3), ("fsync", 4)] {
        for number in 1.. {
            let node = remembered(recording);
            let healthy = rules(&node.net);
            let node = node.with(&removals(recording).join("\n"));
            let (trace, inject) = (format!("trace={calls}"), format!("inject={calls}:signal=SIGKILL:when={number}"));
            let (ran, seen) = node.traced(&["-e", &trace, "-e", &inject], &[]);
            if !seen.contains("killed") {
                assert!(number > least, "{calls}: only {number}: the test is wrong: {seen}");
                ran.expect(0);
                break;
            }
            node.fix(&[]).expect(0);
            assert_eq!(rules(&node.net), healthy, "{calls} {number}: {ran:?}");
            // Nor is one added a second time, or left for ever.
            let all = removals(recording);
            let own: Vec<String> = all.iter().map(|line| line.replacen(" del ", " add ", 1)).collect();
            let node = node.with(&own.join("\n"));
            node.fix(&[]).expect(0);
            assert_eq!((rules(&node.net), restored(&node.net)), (healthy, 0), "{calls} {number}");
        }
    }
}
