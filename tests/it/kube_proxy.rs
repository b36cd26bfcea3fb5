//! kube-proxy, with a crictl that prints what a real one was recorded to print.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::kit::{self, Ran, Worker, until};

/// A healthy node on which kube-proxy runs and its uplinks are remembered.
pub struct Kube {
    pub node: Worker,
    /// Where its crictl is, which is not a real one.
    pub fake: PathBuf,
}

const OLD: &str = "957f15b564ec16b01e4faf7ab7d50dc0f5cb2a1f0538233540a98d5edb71f4aa";

impl Kube {
    fn new(keys: &str) -> Kube {
        let kube = Kube::never_run(keys);
        kube.node.fix(&[]).expect(0);
        assert_eq!(kube.log(), "", "the first run calls crictl");
        kube
    }

    pub fn never_run(keys: &str) -> Kube {
        let node = Worker::new().with_loose_rp_filter();
        let fake = node.directory.path().join("fake");
        for directory in ["ready", "notready"] {
            fs::create_dir_all(fake.join(directory)).unwrap();
        }
        fs::write(fake.join("ready").join(OLD), "1795225299255044815").unwrap();
        let crictl = fake.join("crictl");
        let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/crictl");
        let script = include_str!("fake-crictl.sh");
        kit::script(&crictl, &format!("#!/bin/sh\nFAKE={} FIXTURES={fixtures}\n{script}", fake.display()));
        let kube = Kube { node, fake };
        kube.configure(keys);
        kube
    }

    /// Short times, and these keys.
    fn configure(&self, keys: &str) {
        let crictl = self.fake.join("crictl");
        let usual = [("settle", "0s"), ("min_interval", "0s"), ("timeout", "2s"), ("crictl", crictl.to_str().unwrap())];
        let usual = usual.iter().filter(|(key, _)| !keys.contains(&format!("{key}:")));
        let usual: String = usual.map(|(key, value)| format!("{key}: {value}, ")).collect();
        self.node.config(&format!("kube_proxy: {{{usual}{keys}}}"));
    }

    fn set(&self, file: &str, content: &str) {
        fs::write(self.fake.join(file), content).unwrap();
    }

    fn unset(&self, file: &str) {
        fs::remove_file(self.fake.join(file)).unwrap();
    }

    /// A sandbox that is ready, and was made just now.
    fn start(&self, id: &str) {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        self.set(&format!("ready/{id}"), &now.as_nanos().to_string());
    }

    /// What crictl was called for, and forgets it.
    fn log(&self) -> String {
        let log = fs::read_to_string(self.fake.join("log")).unwrap_or_default();
        let _ = fs::remove_file(self.fake.join("log"));
        log
    }

    /// The verbs and ids of the calls that change something.
    fn deeds(&self) -> Vec<String> {
        self.log().lines().filter(|line| !line.starts_with("pods")).map(str::to_owned).collect()
    }

    fn ready(&self) -> Vec<String> {
        let names = fs::read_dir(self.fake.join("ready")).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn memory(&self) -> Value {
        let text = fs::read(self.node.directory.path().join("state/state.json")).unwrap();
        serde_json::from_slice::<Value>(&text).unwrap()["memory"]["kube_proxy"].clone()
    }

    fn json(&self, code: i32) -> Value {
        self.node.fix(&["--output", "json"]).expect(code).json()
    }

    /// A run that has seen the change and waits for it to settle; and what it will have said by its end.
    fn spawn_waiting(&self) -> (Child, JoinHandle<String>) {
        let mut command = self.node.command(&["-v"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = self.node.net.enter(|| command.spawn()).unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
        assert!(lines.by_ref().any(|line| line.contains("Settle(")), "it does not wait");
        (child, std::thread::spawn(move || lines.collect::<Vec<_>>().join("\n")))
    }

    fn spawn(&self) -> Child {
        let mut command = self.node.command(&[]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        self.node.net.enter(|| command.spawn()).unwrap()
    }
}

fn both(id: &str) -> Vec<String> {
    vec![format!("stopp {id}"), format!("rmp {id}")]
}

#[test]
fn a_new_uplink_restarts_it_once() {
    let kube = Kube::new("");
    kube.node.uplink_with_table(2);
    let json = kube.json(0);
    assert_eq!(json["converged"], true);
    let change = json["changes"].as_array().unwrap().iter().find(|change| change["object"] == "pod").unwrap().clone();
    assert_eq!((&change["action"], &change["status"]), (&"restart".into(), &"applied".into()));
    let reason = change["reason"].as_str().unwrap();
    assert!(reason.starts_with("uplinks changed: +eth2; the new sandbox was ready after "), "{reason}");
    assert_eq!(json["changes"].as_array().unwrap().last(), Some(&change), "after the changes of the others");
    assert_eq!(kube.deeds(), both(OLD));
    assert_eq!(kube.ready().len(), 1);
    assert_eq!(kube.node.fix(&[]).expect(0).out, "", "and not again");
    assert_eq!(kube.log(), "");
}

#[test]
fn every_change_of_an_uplink_counts_and_nothing_else() {
    let kube = Kube::new("");
    let counts = |what: &str, expected: bool, change: &dyn Fn()| {
        let before = kube.ready();
        change();
        kube.node.fix(&[]).expect(0);
        let expected = if expected { both(&before[0]) } else { vec![] };
        assert_eq!(kube.deeds(), expected, "{what}");
    };
    let net = &kube.node.net;
    // Even where the kernel looks for no duplicates, an IPv6 address is tentative for a moment.
    let known = || until("no address is tentative", || net.ip("addr show dev eth1 tentative").is_empty());
    counts("address", true, &|| drop(net.ip("addr add 10.0.1.77/24 dev eth1")));
    counts("IPv6 address", true, &|| {
        net.ip("addr add fd00:1::77/64 dev eth1");
        known();
    });
    counts("address gone", true, &|| drop(net.ip("addr del 10.0.1.77/24 dev eth1")));
    counts("hardware address", true, &|| drop(net.ip("link set eth1 address 02:00:00:00:77:77")));
    net.set_sysctl("net/ipv6/conf/eth1/use_tempaddr", "2");
    counts("address that others are made from", true, &|| {
        net.ip("addr add fd00:9::78/64 dev eth1 mngtmpaddr valid_lft 3600 preferred_lft 3600");
        known();
    });
    counts("temporary address", false, &|| {
        let shown = net.ip_json("addr show dev eth1 temporary");
        let addresses = shown.as_array().unwrap().iter().filter_map(|link| link["addr_info"].as_array()).flatten();
        let temporary = addresses.filter_map(|address| address["local"].as_str()).next().unwrap();
        net.ip(&format!("addr del {temporary}/64 dev eth1"));
    });
    counts("link-local address", false, &|| drop(net.ip("addr add fe80::78/64 dev eth1")));
    counts("IPv4 link-local address", false, &|| drop(net.ip("addr add 169.254.7.7/16 dev eth1")));
    counts("address of this host only", false, &|| drop(net.ip("addr add 10.0.1.99/32 dev eth1 scope host")));
    net.set_sysctl("net/ipv6/conf/eth1/accept_dad", "1");
    net.set_sysctl("net/ipv6/conf/all/accept_dad", "1");
    net.set_sysctl("net/ipv6/conf/eth1/dad_transmits", "200");
    counts("tentative address", false, &|| drop(net.ip("addr add fd00:1::79/64 dev eth1")));
    counts("a pod's link", false, &|| {
        net.ip("link add eni0123456789a type veth peer name other");
        net.ip("addr add 10.99.0.1/32 dev eni0123456789a");
        net.set_sysctl("net/ipv4/conf/eni0123456789a/rp_filter", "2");
    });
    counts("a bridge", false, &|| drop(net.ip("link add docker0 type bridge")));
    net.ip("rule del priority 32765"); // nothing is left of this uplink that a gateway would be missed for
    counts("gone", true, &|| drop(net.ip("link del eth1")));
    // The same name and address, another index.
    let eth4 = |index: u32| {
        net.ip(&format!("link add eth4 index {index} address 02:00:00:00:44:44 type bridge"));
        net.set_sysctl("net/ipv4/conf/eth4/rp_filter", "2");
        net.set_sysctl("net/ipv6/conf/eth4/disable_ipv6", "1");
        net.ip("addr add 10.0.4.10/24 dev eth4");
        net.ip("link set eth4 up");
        net.ip("route replace default via 10.0.4.1 dev eth4 metric 44");
    };
    eth4(7777);
    kube.node.fix(&[]).expect(0);
    kube.log();
    counts("index", true, &|| {
        net.ip("link del eth4");
        eth4(7778);
    });
}

/// A link counts for what kube-proxy learns of it, its addresses, and only where packets leave by it.
#[test]
fn only_uplinks_with_an_address_count_whatever_their_names() {
    let kube = Kube::new("");
    let net = &kube.node.net;
    let counts = |what: &str, expected: bool, change: &dyn Fn()| {
        let before = kube.ready();
        change();
        net.set_sysctl("net/ipv4/conf/all/rp_filter", "2"); // of new links, none of which this is about
        kube.node.fix(&[]).expect(0);
        let expected = if expected { both(&before[0]) } else { vec![] };
        assert_eq!(kube.deeds(), expected, "{what}");
    };
    counts("an uplink without an address", false, &|| {
        net.ip("link add eth7 type veth peer name far7");
        net.ip("link set eth7 up");
        net.ip("link set far7 up");
    });
    for (number, (name, kind)) in (20..).zip([
        ("docker0", "type bridge"),
        ("tailscale0", "type vxlan id 5 dstport 4789"),
        ("cali0123456789a", "type veth peer name far8"),
        ("eni0123456789a", "type veth peer name far9"),
        ("eth77", "type bridge"),
    ]) {
        counts(name, false, &|| {
            net.ip(&format!("link add {name} {kind}"));
            net.ip(&format!("addr add 10.2.{number}.1/24 dev {name}"));
            net.ip(&format!("link set {name} up"));
        });
    }
    counts("its twin is one by main's default", true, &|| {
        drop(net.ip("route add default via 10.2.24.9 dev eth77 metric 77 onlink"));
    });
    counts("enp39s0", true, &|| {
        net.ip("link add enp39s0 type veth peer name far10");
        net.ip("addr add 10.2.10.1/24 dev enp39s0");
        net.ip("link set enp39s0 up");
        net.ip("rule add from 10.2.9.9 lookup 39");
        net.ip("route add default via 10.2.10.9 dev enp39s0 table 39 onlink");
    });
    counts("its default goes, and kube-proxy knows all that is there", false, &|| {
        drop(net.ip("route replace default via 10.0.1.1 dev eth1 table 39"));
    });
    counts("and comes back", false, &|| {
        drop(net.ip("route replace default via 10.2.10.9 dev enp39s0 table 39 onlink"));
    });
    counts("an address of it", true, &|| drop(net.ip("addr add 10.2.10.2/24 dev enp39s0")));
}

#[test]
fn what_an_earlier_version_remembered_restarts_nothing() {
    let pattern = "^(eth|ens)[0-9]+$";
    let state = |kube: &Kube| kube.node.directory.path().join("state/state.json");
    // What it remembered by its default.
    let kube = Kube::new("");
    let text = fs::read_to_string(state(&kube)).unwrap();
    fs::write(state(&kube), text.replace("\"interfaces\":\"auto\"", &format!("\"interfaces\":\"{pattern}\""))).unwrap();
    let ran = kube.node.fix(&[]).expect(0);
    assert_eq!((ran.err.as_str(), kube.log().as_str()), ("", ""));
    assert_eq!(kube.memory()["interfaces"], "auto");
    kube.node.net.ip("addr add 10.0.1.77/24 dev eth1");
    kube.node.fix(&[]).expect(0);
    assert_eq!(kube.deeds(), both(OLD), "changes count from then on");
    // Where the pattern is configured, it remembered links without an address as well.
    let kube = Kube::new(&format!("interfaces: '{pattern}'"));
    let text = fs::read_to_string(state(&kube)).unwrap();
    let bare = r#""uplinks":[{"name":"eth8","index":88,"hardware":"02","addresses":[]},"#;
    assert!(text.contains("\"uplinks\":["), "{text}");
    fs::write(state(&kube), text.replacen("\"uplinks\":[", bare, 1)).unwrap();
    kube.node.fix(&[]).expect(0);
    assert_eq!(kube.log(), "");
    assert!(!kube.memory().to_string().contains("eth8"), "it is remembered without");
}

#[test]
fn one_that_started_while_it_was_waited_is_not_restarted() {
    let kube = Kube::new("settle: 3s");
    kube.node.net.ip("addr add 10.0.1.77/24 dev eth1");
    let (mut child, said) = kube.spawn_waiting();
    kube.unset(&format!("ready/{OLD}"));
    kube.start(&"cd".repeat(32));
    assert!(child.wait().unwrap().success(), "{:?}", said.join());
    assert_eq!(kube.deeds(), Vec::<String>::new());
    assert_eq!(kube.node.fix(&[]).expect(0).out, "", "it is remembered");
    assert_eq!(kube.log(), "");
}

#[test]
fn an_uplink_that_appears_while_it_was_waited_is_left_to_the_next_run() {
    let kube = Kube::new("settle: 3s");
    kube.node.net.ip("addr add 10.0.1.77/24 dev eth1");
    let (mut child, said) = kube.spawn_waiting();
    kube.node.uplink_with_table(2);
    assert!(child.wait().unwrap().success());
    let said = said.join().unwrap();
    assert!(said.contains("they are still changing"), "{said}");
    assert_eq!(kube.log(), "", "crictl is not even asked");
    kube.configure("");
    kube.node.fix(&[]).expect(0);
    assert_eq!(kube.deeds(), both(OLD), "once for both changes");
    kube.node.fix(&[]).expect(0);
    assert_eq!(kube.log(), "");
}

#[test]
fn labels_that_no_pod_has_are_reported_once() {
    let resembles = fs::read_to_string("tests/fixtures/crictl/pods-by-name-regex.txt").unwrap();
    let start = resembles.find("    {\n      \"id\":  \"de3dac98").unwrap();
    let resembles = &resembles[start..start + resembles[start..].find("\n    },").unwrap() + 6];
    for others in [true, false] {
        let kube = Kube::new("");
        kube.unset(&format!("ready/{OLD}"));
        if others {
            kube.set("resembles", &resembles.replace("\"kube-proxy\",", "\"another\","));
        }
        kube.node.net.ip("addr add 10.0.1.77/24 dev eth1");
        let ran = kube.node.fix(&[]).expect(0);
        let said = "no pod of the namespace kube-system has the labels k8s-app=kube-proxy";
        assert_eq!(ran.err.contains(said), others, "{ran:?}");
        assert_eq!(kube.deeds(), Vec::<String>::new());
        assert_eq!(kube.node.fix(&[]).expect(0).err, "", "once");
        kube.node.net.ip("addr add 10.0.1.78/24 dev eth1");
        assert_eq!(kube.node.fix(&[]).expect(0).err, "", "nor by the next change");
        assert_eq!(kube.node.fix(&["status"]).expect(0).out.contains(said), others);
        assert_eq!(kube.node.fix(&["--dry-run", "--output", "npd"]).expect(0).out, "the network is as declared\n");
    }
}

#[test]
fn a_dry_run_shows_it_and_forgets_and_remembers_nothing() {
    let kube = Kube::new("settle: 1h");
    kube.node.uplink_with_table(2);
    let before = kube.memory();
    let script = kube.node.fix(&["--dry-run"]).expect(0).out;
    let crictl = kube.fake.join("crictl");
    let call = format!("{} --runtime-endpoint unix:///run/containerd/containerd.sock --timeout 2s", crictl.display());
    assert!(
        script.contains(&format!("\n# kube_proxy: uplinks changed: +eth2\n{call} stopp {OLD} && {call} rmp {OLD}\n")),
        "{script}"
    );
    assert_eq!(kube.log().lines().count(), 1, "asked once");
    assert_eq!(kube.memory(), before);
    kube.node.net.run("sh", &["-c", &script]);
    assert_eq!(kube.deeds(), both(OLD));
}

#[test]
fn uplinks_that_still_move_are_left_to_the_next_run() {
    let kube = Kube::new("settle: 2s");
    kube.node.net.ip("addr add 10.0.1.77/24 dev eth1");
    let (mut child, said) = kube.spawn_waiting();
    kube.node.net.ip("addr add 10.0.1.78/24 dev eth1");
    assert!(child.wait().unwrap().success(), "{:?}", said.join());
    assert_eq!(kube.log(), "", "crictl is not even asked");
    kube.configure("");
    kube.node.fix(&[]).expect(0);
    assert_eq!(kube.deeds(), both(OLD));
}

#[test]
fn restarts_keep_their_distance_and_are_made_up_for() {
    let kube = Kube::new("min_interval: 4s");
    kube.node.net.ip("addr add 10.0.1.77/24 dev eth1");
    kube.node.fix(&[]).expect(0);
    assert_eq!(kube.deeds(), both(OLD));
    for flap in 0..5 {
        kube.node.net.ip(&format!("addr add 10.0.1.{}/24 dev eth1", 100 + flap));
        // The new pod has started before this change.
        let json = kube.json(0);
        let change = &json["changes"][0];
        if change["status"] == "applied" {
            break; // a slow machine
        }
        assert_eq!((&change["status"], &json["converged"]), (&"skipped".into(), &false.into()), "{json}");
        assert!(change["reason"].as_str().unwrap().contains("held back for"), "{json}");
        assert_eq!(kube.deeds(), Vec::<String>::new());
    }
    std::thread::sleep(Duration::from_secs(4));
    let ready = kube.ready();
    kube.node.fix(&[]).expect(0);
    assert_eq!(kube.deeds(), both(&ready[0]));
}

#[test]
fn restarts_in_a_row_are_reported_once_and_back_off() {
    let kube = Kube::new("");
    let mut reported = Vec::new();
    // Not by uplinks that nobody has seen before: they are reported at once. Somebody changes the same one.
    let change = |number: u8| kube.node.net.ip(&format!("addr add 10.0.1.{number}/24 dev eth1"));
    for number in 2..7 {
        change(number);
        let ran = kube.node.fix(&[]).expect(0);
        assert_eq!(kube.deeds().len(), 2, "{ran:?}");
        reported.push(ran.err.contains("event=\"contention\" reconciler=\"kube_proxy\""));
    }
    assert_eq!(reported, [false, false, false, false, true]);
    kube.configure("min_interval: 10m");
    change(7);
    let ran = kube.node.fix(&[]).expect(0);
    assert_eq!(kube.deeds(), Vec::<String>::new());
    let (_, wait) =
        ran.out.split_once("uplinks changed: eth1 (addresses); restarted 5 times in a row; held back for ").unwrap();
    assert!(wait.starts_with("20m\n") || wait.starts_with("19m "), "twice the usual: {ran:?}");
}

#[test]
fn where_there_is_nothing_to_restart_nothing_is_done() {
    let resembles = fs::read_to_string("tests/fixtures/crictl/pods-by-name-regex.txt").unwrap();
    let start = resembles.find("    {\n      \"id\":  \"de3dac98").unwrap();
    let resembles = &resembles[start..start + resembles[start..].find("\n    },").unwrap() + 6];
    for case in ["no pod", "only an old one", "only a name that resembles it", "one that has started since"] {
        let kube = Kube::new("");
        fs::remove_file(kube.fake.join("ready").join(OLD)).unwrap();
        match case {
            "only an old one" => {
                kube.set(&format!("notready/{OLD}"), "1795225299255044815");
                kube.set("list-all", "");
            }
            "only a name that resembles it" => kube.set("resembles", resembles),
            _ => {}
        }
        kube.node.net.ip("addr add 10.0.1.77/24 dev eth1");
        if case == "one that has started since" {
            // The change is seen, and then somebody else restarts it.
            kube.set("mode", "fail");
            kube.node.fix(&[]).expect(1);
            kube.unset("mode");
            kube.log();
            kube.start(OLD);
        }
        assert_eq!(kube.node.fix(&[]).expect(0).out, "", "{case}");
        assert_eq!(kube.deeds(), Vec::<String>::new(), "{case}");
        assert_eq!(kube.node.fix(&[]).expect(0).out, "", "{case}");
        assert_eq!(kube.log(), "", "{case}: it is remembered");
    }
}

#[test]
fn an_old_sandbox_beside_the_ready_one_is_left_alone() {
    let kube = Kube::new("");
    let old = "0".repeat(64);
    kube.set(&format!("notready/{old}"), "1795225299255044815");
    kube.set("list-all", "");
    kube.node.net.ip("addr add 10.0.1.77/24 dev eth1");
    kube.node.fix(&[]).expect(0);
    assert_eq!(kube.deeds(), both(OLD));
}

#[test]
fn several_that_are_ready_are_blocked() {
    let kube = Kube::new("");
    kube.set(&format!("ready/{}", "ab".repeat(32)), "1795225299255044815");
    kube.node.net.ip("addr add 10.0.1.77/24 dev eth1");
    let json = kube.json(1);
    assert!(json["blocked"][0]["because"].as_str().unwrap().contains("2 sandboxes match"), "{json}");
    assert_eq!(kube.deeds(), Vec::<String>::new());
}

#[test]
fn every_way_in_which_crictl_can_disappoint_is_reported_and_not_forgotten() {
    for (mode, said) in [
        ("fail", "dial unix /nonexistent/c.sock: connect: no such file or directory"),
        ("fail-list", "context deadline exceeded"),
        ("hang", "did not end within 3s"),
        ("garbage", "printed not a list of pods: expected"),
        ("other-json", "printed not a list of pods: invalid type"),
        ("evil-id", "is not a sandbox id"),
        ("evil-time", "not in nanoseconds"),
        ("endless", "it printed more than 8 MiB"),
        ("huge", "it printed more than 8 MiB"),
        ("loud", "it printed more than 8 MiB"),
        ("signal", "was killed by signal 11"),
    ] {
        let kube = Kube::new("");
        kube.set("mode", mode);
        kube.node.net.ip("addr add 10.0.1.77/24 dev eth1");
        let ran = kube.node.fix(&["--output", "json"]).expect(1);
        let because = ran.json()["blocked"][0]["because"].as_str().unwrap().to_owned();
        assert!(because.contains(said), "{mode}: {because}");
        assert!(!because.contains('\u{1b}') && because.contains("crictl"), "{mode}: {because}");
        kube.node.fix(&["--dry-run"]).expect(1);
        if mode == "hang" {
            let pids = fs::read_to_string(kube.fake.join("pids")).unwrap();
            assert!(pids.lines().count() >= 2, "{pids}");
            // One that nobody has waited for yet is dead all the same.
            let lives =
                |pid: &str| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
            until("what crictl started has ended", || !pids.split_whitespace().any(lives));
        }
        assert!(kube.deeds().iter().all(|deed| !deed.starts_with("stopp")), "{mode}");
        assert!(kube.memory()["pending"].is_object(), "{mode}: the change is forgotten");
        kube.unset("mode");
        kube.node.fix(&[]).expect(0);
        assert_eq!(kube.deeds(), both(OLD), "{mode}: it is tried again");
    }
}

#[test]
fn a_crictl_that_cannot_be_started_is_reported_with_the_cure() {
    let not_executable = tempfile::NamedTempFile::new().unwrap();
    let not_executable = not_executable.path().to_str().unwrap();
    for (crictl, said) in
        [("no-such-crictl", "No such file"), ("/no/such/crictl", "No such file"), (not_executable, "Permission denied")]
    {
        let kube = Kube::new(&format!("crictl: {crictl}"));
        kube.node.net.ip("addr add 10.0.1.77/24 dev eth1");
        let json = kube.json(1);
        let because = json["blocked"][0]["because"].as_str().unwrap();
        assert!(because.contains(said) && because.contains("kube_proxy.crictl"), "{because}");
    }
}

#[test]
fn what_crictl_leaves_behind_ends_with_it() {
    let kube = Kube::new("");
    kube.set("mode", "leaves-child");
    kube.node.net.ip("addr add 10.0.1.77/24 dev eth1");
    let begin = Instant::now();
    kube.node.fix(&[]).expect(0);
    assert!(begin.elapsed() < Duration::from_secs(60), "it waited for the child of crictl");
    assert_eq!(kube.deeds(), both(OLD));
}

#[test]
fn failures_hold_the_next_try_back() {
    let kube = Kube::new("min_interval: 20s");
    kube.set("mode", "fail");
    kube.node.net.ip("addr add 10.0.1.77/24 dev eth1");
    kube.node.fix(&[]).expect(1);
    assert_eq!(kube.log().lines().count(), 1);
    let json = kube.json(0);
    assert!(
        json["changes"][0]["reason"].as_str().unwrap().contains("the last 1 tries failed; held back for"),
        "{json}"
    );
    assert_eq!((kube.log().as_str(), &json["converged"]), ("", &false.into()));
}

#[test]
fn a_stop_that_worked_and_a_removal_that_did_not_is_resumed() {
    for mode in ["fail-rmp", "fail-stopp", "hang-stopp"] {
        let kube = Kube::new("timeout: 1s");
        kube.set("mode", mode);
        kube.node.net.ip("addr add 10.0.1.77/24 dev eth1");
        let json = kube.json(1);
        assert_eq!(json["changes"][0]["status"], "failed", "{json}");
        assert_eq!(kube.memory()["restart"]["id"], OLD);
        kube.unset("mode");
        kube.log();
        kube.node.fix(&[]).expect(0);
        assert_eq!(kube.deeds(), both(OLD), "{mode}");
        assert_eq!(kube.memory()["restart"], Value::Null);
        assert_eq!(kube.ready().len(), 1);
    }
}

#[test]
fn without_kubelet_it_fails_with_a_hint_and_goes_on_waiting() {
    let kube = Kube::new("timeout: 500ms");
    kube.set("no-kubelet", "");
    kube.node.net.ip("addr add 10.0.1.77/24 dev eth1");
    let json = kube.json(1);
    assert!(json["changes"][0]["error"].as_str().unwrap().contains("systemctl status kubelet"), "{json}");
    kube.start(&"cd".repeat(32));
    kube.log();
    kube.node.fix(&[]).expect(0);
    assert!(!kube.deeds().contains(&format!("stopp {}", "cd".repeat(32))), "the new one is not touched");
    assert_eq!(kube.memory()["restart"], Value::Null);
}

#[test]
fn a_crictl_that_fails_is_reported_even_if_others_were_repaired() {
    let kube = Kube::new("");
    kube.set("mode", "fail");
    kube.node.uplink_with_table(2);
    let json = kube.json(1);
    assert_eq!(json["changes"][0]["status"], "applied", "rp_filter of the new uplink: {json}");
    assert!(json["blocked"][0]["because"].as_str().unwrap().contains("connect: no such file"), "{json}");
}

#[test]
fn what_cannot_be_removed_is_done_with_when_another_runs() {
    let kube = Kube::new("");
    kube.set("mode", "fail-rmp");
    kube.set("kubelet-after-stopp", "");
    kube.node.net.ip("addr add 10.0.1.77/24 dev eth1");
    let json = kube.json(0);
    assert!(json["changes"][0]["reason"].as_str().unwrap().contains("the old one could not be removed"), "{json}");
    kube.log();
    kube.node.net.ip("addr add 10.0.1.78/24 dev eth1");
    kube.json(0);
    assert!(!kube.deeds().iter().any(|deed| deed.contains(OLD)), "the next change is for the next sandbox");
}

#[test]
fn a_resumed_restart_counts_for_the_distance_to_the_next() {
    let kube = Kube::new("min_interval: 6s");
    kube.set("mode", "fail-stopp");
    kube.node.net.ip("addr add 10.0.1.77/24 dev eth1");
    kube.node.fix(&[]).expect(1);
    kube.unset("mode");
    std::thread::sleep(Duration::from_secs(6));
    kube.node.fix(&[]).expect(0);
    kube.log();
    kube.node.net.ip("addr add 10.0.1.78/24 dev eth1");
    let json = kube.json(0);
    assert_eq!(json["changes"][0]["status"], "skipped", "{json}");
    assert_eq!(kube.deeds(), Vec::<String>::new());
}

#[test]
fn observe_shows_it_and_off_does_not_look() {
    let kube = Kube::new("");
    kube.configure("mode: observe");
    kube.node.net.ip("addr add 10.0.1.77/24 dev eth1");
    let json = kube.json(0);
    assert_eq!((&json["changes"][0]["status"], &json["converged"]), (&"observed".into(), &true.into()));
    kube.configure("mode: observe, crictl: /no/such/crictl");
    let ran = kube.node.fix(&[]).expect(1);
    assert!(
        ran.err.contains("blocked") && ran.err.contains("/no/such/crictl"),
        "it fails and does not say why: {ran:?}"
    );
    kube.configure("mode: off");
    kube.log();
    kube.node.fix(&[]).expect(0);
    assert_eq!(kube.log(), "");
    kube.configure("");
    kube.node.fix(&[]).expect(0);
    assert_eq!(kube.deeds(), both(OLD), "what was only observed is not forgotten");
}

/// What cannot be read for once may still be known to the next run: it is not taken for nothing, and not overwritten.
#[test]
#[ignore = "needs strace; tests/run runs it"]
fn memory_that_cannot_be_read_for_once_is_no_fresh_start() {
    for call in ["openat", "statx", "read"] {
        for errno in ["EIO", "EMFILE", "EACCES"] {
            let kube = Kube::new("");
            let state = kube.node.directory.path().join("state/state.json");
            let good = fs::read_to_string(&state).unwrap();
            kube.node.net.ip("addr add 10.0.1.77/24 dev eth1");
            let (trace, inject) = (format!("trace={call}"), format!("inject={call}:error={errno}:when=1+"));
            let strace = ["-e", &trace, "-e", &inject, "-P", state.to_str().unwrap()];
            let ran = kube.node.traced(&strace, &["--output", "json"]).0.expect(1);
            assert_eq!(ran.json()["converged"], false, "{call} {errno}: {ran:?}");
            assert!(ran.err.contains("state.json cannot be read, and is left untouched"), "{call} {errno}: {ran:?}");
            assert_eq!(fs::read_to_string(&state).unwrap(), good, "{call} {errno}");
            kube.node.fix(&[]).expect(0);
            assert_eq!(kube.deeds(), both(OLD), "{call} {errno}: the change is not forgotten");
        }
    }
}

#[test]
fn whatever_is_wrong_with_what_is_remembered_is_a_fresh_start() {
    let kube = Kube::new("");
    let state = kube.node.directory.path().join("state/state.json");
    let good = fs::read_to_string(&state).unwrap();
    let changed = |from: &str, to: &str| {
        let text = good.replace(from, to);
        assert_ne!(text, good, "{from}");
        text.into_bytes()
    };
    for (case, bytes) in [
        ("emptied", vec![]),
        ("torn", good.as_bytes()[..good.len() / 2].to_vec()),
        ("garbage", vec![0xff; 300]),
        ("another version", changed("\"version\":1", "\"version\":2")),
        ("another boot", changed("\"boot_id\":\"", "\"boot_id\":\"x")),
        ("another network namespace", changed("\"netns\":", "\"netns\":1")),
        ("an evil id", changed("\"restart\":null", "\"restart\":{\"id\":\"--all\",\"uplinks\":[]}")),
        ("an unknown key", changed("\"version\":1", "\"version\":1,\"x\":1")),
        ("too large", vec![b' '; 2 << 20]),
        ("deep", b"[".repeat(100_000)),
    ] {
        fs::write(&state, bytes).unwrap();
        kube.node.net.ip(&format!("addr add 10.0.1.77/24 dev eth1 label eth1:{}", case.len()));
        let ran = kube.node.fix(&[]).expect(0);
        assert!(ran.err.contains("starting afresh"), "{case}: {ran:?}");
        assert_eq!(kube.log(), "", "{case}");
        assert_eq!(kube.node.fix(&[]).expect(0).err, "", "{case}: it is written anew");
        kube.node.net.ip("addr del 10.0.1.77/24 dev eth1");
        kube.node.fix(&[]).expect(0);
        assert_eq!(kube.deeds().len(), 2, "{case}: and counts again");
    }
    for link in ["/etc/passwd", "/dev/zero"] {
        fs::remove_file(&state).unwrap();
        std::os::unix::fs::symlink(link, &state).unwrap();
        assert!(kube.node.fix(&[]).expect(0).err.contains("starting afresh"), "{link}");
        assert!(state.symlink_metadata().unwrap().is_file(), "the link is replaced, not followed");
    }
    fs::remove_file(&state).unwrap();
    nix::unistd::mkfifo(&state, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(kube.node.fix(&[]).expect(0).err.contains("starting afresh"), "a pipe");
}

#[test]
fn a_state_that_cannot_be_written_restarts_nothing() {
    let kube = Kube::new("");
    fs::create_dir(kube.node.directory.path().join("state/state.json.new")).unwrap();
    kube.node.net.ip("addr add 10.0.1.77/24 dev eth1");
    let json = kube.json(1);
    assert!(json["changes"][0]["error"].as_str().unwrap().contains("cannot save the restart"), "{json}");
    assert_eq!(kube.deeds(), Vec::<String>::new());
}

#[test]
fn an_interrupted_run_stops_soon_and_the_next_one_continues() {
    for (keys, in_the_middle) in [("settle: 1h", "settle"), ("", "stopp"), ("", "wait")] {
        let kube = Kube::new(keys);
        kube.node.net.ip("addr add 10.0.1.77/24 dev eth1");
        match in_the_middle {
            "stopp" => kube.set("mode", "hang-stopp"),
            "wait" => kube.set("no-kubelet", ""),
            _ => {}
        }
        let child = kube.spawn();
        match in_the_middle {
            "settle" => std::thread::sleep(Duration::from_millis(500)),
            "stopp" => until("stopp is called", || {
                fs::read_to_string(kube.fake.join("log")).is_ok_and(|log| log.contains("stopp"))
            }),
            _ => until("rmp is called", || {
                fs::read_to_string(kube.fake.join("log")).is_ok_and(|log| log.matches("pods").count() > 1)
            }),
        }
        let begin = Instant::now();
        kill(Pid::from_raw(child.id() as i32), Signal::SIGTERM).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(begin.elapsed() < Duration::from_secs(10), "{in_the_middle}: {:?}", begin.elapsed());
        assert!(
            String::from_utf8_lossy(&output.stderr).contains("interrupted by a signal"),
            "{in_the_middle}: {output:?}"
        );
        assert_eq!(output.status.code(), Some(1), "{in_the_middle}: {output:?}");
        assert_eq!(kube.memory()["failures"], 0, "{in_the_middle}: being stopped is no failure");
        for file in ["mode", "no-kubelet"] {
            let _ = fs::remove_file(kube.fake.join(file));
        }
        if in_the_middle == "wait" {
            kube.start(&"cd".repeat(32));
        }
        kube.configure("");
        kube.node.fix(&[]).expect(0);
        let deeds = kube.deeds();
        assert!(deeds.iter().all(|deed| deed.ends_with(OLD)), "{in_the_middle}: {deeds:?}");
        assert_eq!(kube.ready().len(), 1);
        assert_ne!(kube.ready(), [OLD], "{in_the_middle}: it was restarted in the end");
    }
}

#[test]
fn a_second_run_during_a_restart_leaves_at_once() {
    let kube = Kube::new("");
    kube.set("slow", "1");
    kube.node.net.ip("addr add 10.0.1.77/24 dev eth1");
    let child = kube.spawn();
    until("crictl is called", || kube.fake.join("log").exists());
    let ran: Ran = kube.node.fix(&[]).expect(75);
    assert!(ran.err.contains(&format!("process {} (node-fixer)", child.id())), "{ran:?}");
    child.wait_with_output().unwrap();
}

/// Whatever is killed whenever: one restart for one change, and no change forgotten.
#[test]
fn killed_at_any_moment_it_restarts_once_and_forgets_nothing() {
    let kube = Kube::new("");
    // How long a restart takes here, so that the moments are spread over all of it.
    let begin = Instant::now();
    kube.node.net.ip("addr add 10.0.1.76/24 dev eth1");
    kube.node.fix(&[]).expect(0);
    let whole = begin.elapsed().as_micros() as u64;
    assert_eq!(kube.deeds().len(), 2);
    let mut random = 0x2545_F491_4F6C_DD1D_u64;
    let (mut untouched, mut stopped, mut removed) = (0, 0, 0);
    for round in 0..200 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let before = kube.ready();
        assert_eq!(before.len(), 1, "round {round}");
        let verb = if round % 2 == 0 { "add" } else { "del" };
        kube.node.net.ip(&format!("addr {verb} 10.0.1.77/24 dev eth1"));
        let mut child = kube.spawn();
        std::thread::sleep(Duration::from_micros(random % whole));
        let _ = child.kill();
        if child.wait().unwrap().code().is_none() {
            let log = fs::read_to_string(kube.fake.join("log")).unwrap_or_default();
            match (log.contains("stopp"), log.contains("rmp")) {
                (_, true) => removed += 1,
                (true, _) => stopped += 1,
                _ => untouched += 1,
            }
        }
        // What crictl was doing goes on without it; the next run comes when it comes.
        kube.node.fix(&[]).expect(0);
        let deeds = kube.deeds();
        assert!(!deeds.is_empty(), "round {round}: the change is forgotten");
        assert!(deeds.iter().all(|deed| deed.ends_with(&before[0])), "round {round}: {deeds:?} while {before:?} ran");
        until("one sandbox is ready", || kube.ready().len() == 1);
        assert_ne!(kube.ready(), before, "round {round}: not restarted");
        assert_eq!(kube.memory()["restart"], Value::Null, "round {round}");
    }
    // Each part of a restart was hit.
    assert!(untouched >= 5 && stopped >= 5 && removed >= 5, "killed {untouched}, {stopped} and {removed} times");
}
