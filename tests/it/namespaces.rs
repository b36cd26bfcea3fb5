//! Stale network namespaces. Each test has mounts of its own with another /run, so that it sees and touches no name of the
//! machine's, and processes of its own, all of which can be looked into.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Value, json};

use crate::kit::{self, Ran, Worker, finish, not_started, started_by, until};

/// A host of VMs.
struct Host {
    node: Worker,
    mounts: File,
    processes: File,
    _first: Process,
}

/// What is declared in most tests.
const VMS: &str = "{match: '^fc-(.+)$', links: '^vh_(.+)$', older_than: 1ms, mode: enforce}";

impl Host {
    fn new(entries: &str) -> Host {
        let node = Worker::new().with_loose_rp_filter();
        let mut command = Command::new("unshare");
        let first = "mount -t tmpfs run /run && mount -t proc proc /proc && echo && exec sleep infinity";
        command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", first]).stdout(Stdio::piped());
        let mut first = node.net.enter(|| command.spawn()).unwrap_or_else(|error| not_started(&command, &error));
        let said = first.stdout.as_mut().unwrap().read(&mut [0]).unwrap();
        assert_eq!(said, 1, "no namespaces for mounts and processes: run the tests by cargo test, or as root");
        let namespace = |kind: &str| File::open(format!("/proc/{}/ns/{kind}", first.id())).unwrap();
        let (mounts, processes) = (namespace("mnt"), namespace("pid_for_children"));
        let host = Host { node, mounts, processes, _first: Process(first) };
        host.configure(entries, "no-crictl-here");
        host
    }

    fn configure(&self, entries: &str, crictl: &str) {
        let kube_proxy = format!("kube_proxy: {{mode: off, timeout: 2s, crictl: '{crictl}'}}");
        self.node.config(&format!("{kube_proxy}\nnamespaces: [{entries}]"));
    }

    /// Runs the closure on the host, in its namespaces; of processes it starts.
    fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        self.node.net.enter(|| {
            unshare(CloneFlags::CLONE_FS).unwrap();
            setns(&self.processes, CloneFlags::CLONE_NEWPID).unwrap();
            setns(&self.mounts, CloneFlags::CLONE_NEWNS).unwrap();
            inside()
        })
    }

    fn output(&self, command: &mut Command) -> Output {
        self.enter(|| command.stdin(Stdio::null()).output()).unwrap_or_else(|error| not_started(command, &error))
    }

    fn run(&self, program: &str, args: &[&str]) -> String {
        finish(self.output(Command::new(program).args(args))).expect(0).out
    }

    fn ip(&self, words: &str) -> String {
        self.run("ip", &words.split_whitespace().collect::<Vec<_>>())
    }

    fn fix(&self, args: &[&str]) -> Ran {
        finish(self.output(&mut self.node.command(args)))
    }

    /// Runs with a result in JSON.
    fn json(&self, code: i32) -> Ran {
        self.fix(&["--output", "json"]).expect(code)
    }

    /// A second run, which may do what the first has only seen; its commands, all of them applied.
    fn applied(&self) -> Vec<String> {
        let ran = self.json(0);
        let changes = ran.json()["changes"].as_array().unwrap().clone();
        assert!(changes.iter().all(|change| change["status"] == "applied"), "{ran:?}");
        ran.commands()
    }

    /// Names of namespaces.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.enter(|| {
            let entries = fs::read_dir("/run/netns").unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        });
        names.sort();
        names
    }

    fn has_link(&self, name: &str) -> bool {
        self.output(Command::new("ip").args(["link", "show", name])).status.success()
    }

    /// A VM: its namespace, and a veth from the host into it.
    fn vm(&self, id: &str) -> &Host {
        self.ip(&format!("netns add fc-{id}"));
        self.ip(&format!("link add vh_{id} type veth peer name eth0 netns fc-{id}"));
        self
    }

    /// A process in the namespace.
    fn process_in(&self, name: &str) -> Process {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", name, "sleep", "600"]).stdin(Stdio::null());
        let process = Process(self.enter(|| command.spawn()).unwrap());
        let its = format!("/proc/{}/ns/net", process.0.id());
        let name = format!("/run/netns/{name}");
        let inode = |path: &str| fs::metadata(path).unwrap().ino();
        let wanted = self.enter(|| inode(&name));
        until("it is inside", || inode(&its) == wanted);
        process
    }

    /// A crictl that prints this as its list of pods, and that of the sandbox that it is asked for.
    fn crictl(&self, pods: &[(&str, Value)]) -> PathBuf {
        let directory = self.node.directory.path().join("crictl-files");
        fs::create_dir_all(&directory).unwrap();
        let item = |id: &str| {
            json!({"id": id, "metadata": {"name": "web", "uid": "u", "namespace": "default", "attempt": 0},
                   "state": "SANDBOX_NOTREADY", "createdAt": "1795225299255044815", "labels": {}})
        };
        let items: Vec<Value> = pods.iter().map(|(id, _)| item(id)).collect();
        fs::write(directory.join("pods"), json!({"items": items}).to_string()).unwrap();
        // As crictl has it: of several sandboxes a list.
        let statuses: Vec<&Value> = pods.iter().map(|(_, status)| status).collect();
        let statuses = if let [one] = *statuses { one.to_string() } else { json!(statuses).to_string() };
        fs::write(directory.join("inspectp"), statuses).unwrap();
        let crictl = directory.join("crictl");
        let script = format!(
            "#!/bin/sh\nshift 4\necho \"$*\" >>{0}/log\n[ ! -e {0}/broken ] || {{ echo broken >&2; exit 1; }}\ncat {0}/$1\n",
            directory.display()
        );
        kit::script(&crictl, &script);
        crictl
    }

    /// What crictl was called for, and forgets it.
    fn calls(&self) -> Vec<String> {
        let log = self.node.directory.path().join("crictl-files/log");
        let calls = fs::read_to_string(&log).unwrap_or_default();
        let _ = fs::remove_file(log);
        calls.lines().map(str::to_owned).collect()
    }

    fn memory(&self) -> Value {
        let text = fs::read(self.node.directory.path().join("state/state.json")).unwrap();
        serde_json::from_slice::<Value>(&text).unwrap()["memory"]["namespaces"].clone()
    }
}

/// Ends with its test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// The status of a sandbox with this network namespace, as containerd tells it.
fn sandbox(path: &str) -> Value {
    json!({
        "status": {"state": "SANDBOX_NOTREADY", "linux": {"namespaces": {"options": {"network": "POD"}}}},
        "info": {"pid": 0, "processStatus": "deleted", "netNamespaceClosed": false, "runtimeSpec": {"linux": {
            "namespaces": [{"type": "pid"}, {"type": "network", "path": path}]}}},
    })
}

#[test]
fn two_runs_remove_what_no_process_uses_and_leave_all_else() {
    let host = Host::new(VMS);
    host.vm("1").vm("2");
    host.ip("netns add other");
    host.ip("link add vh_3 type veth peer name patch");
    host.ip("link add vh_4 type bridge");
    host.ip("link add mine type veth peer name yours");
    let process = host.process_in("fc-2");
    assert_eq!(host.fix(&[]).expect(0).out, "", "the first run remembers");
    assert_eq!(host.applied(), ["ip netns del fc-1", "ip link del dev vh_3 type veth"]);
    assert_eq!(host.names(), ["fc-2", "other"]);
    until("the kernel takes the link of a namespace along", || !host.has_link("vh_1"));
    for name in ["vh_2", "vh_4", "mine", "yours"] {
        assert!(host.has_link(name), "{name}");
    }
    assert!(!host.has_link("vh_3") && !host.has_link("patch"));
    assert_eq!(host.fix(&[]).expect(0).out, "", "a process is in it");
    drop(process);
    host.fix(&[]).expect(0);
    assert_eq!(host.applied(), ["ip netns del fc-2"]);
    assert_eq!(host.fix(&[]).expect(0).out, "");
    assert_eq!(host.memory(), json!({"namespaces": [], "links": []}), "nothing is left to remember");
}

#[test]
#[ignore = "needs python3; tests/run runs it"]
fn a_thread_is_in_it_as_well_as_a_process() {
    let host = Host::new(VMS);
    host.vm("1");
    // The process itself is on the host.
    let script = "
import ctypes, sys, threading
def enter():
    with open('/run/netns/fc-1') as namespace:
        assert ctypes.CDLL(None).setns(namespace.fileno(), 0) == 0
    print(flush=True)
    threading.Event().wait()
threading.Thread(target=enter).start()
";
    let mut command = Command::new("python3");
    command.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut process = Process(host.enter(|| command.spawn()).unwrap_or_else(|error| not_started(&command, &error)));
    assert_eq!(process.0.stdout.as_mut().unwrap().read(&mut [0]).unwrap(), 1, "the thread is not inside");
    for _ in 0..3 {
        assert_eq!(host.fix(&[]).expect(0).out, "");
    }
    drop(process);
    host.fix(&[]).expect(0);
    assert_eq!(host.applied(), ["ip netns del fc-1"]);
}

#[test]
fn what_is_younger_or_lives_under_an_old_name_waits() {
    let host = Host::new(&VMS.replace("1ms", "1h"));
    host.vm("1");
    for _ in 0..3 {
        assert_eq!(host.fix(&[]).expect(0).out, "", "an hour has not passed");
    }
    let before = host.memory();
    assert_eq!(before["namespaces"][0]["name"], "fc-1");
    // The file is not written again for the same.
    let written =
        |host: &Host| fs::metadata(host.node.directory.path().join("state/state.json")).unwrap().modified().unwrap();
    let at = written(&host);
    host.fix(&[]).expect(0);
    assert_eq!(written(&host), at);
    // The same name, another namespace. The kernel gives the inode of one that is gone to the next, unless somebody else's
    // is the next.
    let inode = |host: &Host| host.enter(|| fs::metadata("/run/netns/fc-1").unwrap().ino());
    let old = inode(&host);
    for _ in 0..50 {
        host.ip("netns del fc-1");
        std::thread::sleep(Duration::from_millis(100));
        host.ip("netns add fc-1");
        if inode(&host) == old {
            break;
        }
    }
    host.configure(VMS, "no-crictl-here");
    assert_eq!(host.fix(&[]).expect(0).out, "", "counted from anew");
    assert_ne!(host.memory()["namespaces"][0]["id"], before["namespaces"][0]["id"]);
    // So is it where the memory is lost.
    fs::remove_dir_all(host.node.directory.path().join("state")).unwrap();
    assert_eq!(host.fix(&[]).expect(0).out, "");
    assert_eq!(host.applied(), ["ip netns del fc-1"]);
}

#[test]
fn what_is_observed_is_reported_and_not_touched() {
    let host = Host::new("{match: '^fc-(.+)$', older_than: 1ms}");
    host.vm("1");
    host.fix(&[]).expect(0);
    let ran = host.json(0);
    let change = &ran.json()["changes"][0];
    assert_eq!((&change["command"], &change["status"]), (&"ip netns del fc-1".into(), &"observed".into()), "{ran:?}");
    assert_eq!(ran.json()["converged"], true);
    assert!(change["reason"].as_str().unwrap().starts_with("no process has been in it for "), "{change}");
    // And beside one that is enforced.
    host.ip("netns add test-1");
    host.configure(
        "{match: '^fc-(.+)$', older_than: 1ms}, {match: '^test-', older_than: 1ms, mode: enforce}",
        "no-crictl-here",
    );
    host.fix(&[]).expect(0);
    let ran = host.json(0);
    let statuses: Vec<String> = ran.json()["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| format!("{} {}", it["status"], it["command"]))
        .collect();
    assert_eq!(statuses, [r#""observed" "ip netns del fc-1""#, r#""applied" "ip netns del test-1""#]);
    assert_eq!(host.names(), ["fc-1"]);
}

#[test]
fn sandboxes_of_pods_stay_by_name_and_by_namespace() {
    let host = Host::new(VMS);
    for name in ["fc-1", "fc-2", "fc-3", "fc-4"] {
        host.ip(&format!("netns add {name}"));
    }
    // A runtime may have it under another path.
    host.enter(|| {
        fs::create_dir("/run/elsewhere").unwrap();
        fs::write("/run/elsewhere/x", "").unwrap();
    });
    host.run("mount", &["--bind", "/run/netns/fc-2", "/run/elsewhere/x"]);
    // Of a sandbox whose shim has died containerd has no runtimeSpec.
    let dead = json!({"status": {}, "info": {"sandboxMetadata": {"Version": "v1", "Metadata": {"NetNSPath": "/var/run/netns/fc-3"}}}});
    let pods = [
        ("a1", sandbox("/var/run/netns/fc-1")),
        ("b2", sandbox("/run/elsewhere/x")),
        ("c3", dead),
        ("d4", sandbox("/run/netns/gone")),
    ];
    let crictl = host.crictl(&pods);
    host.configure(VMS, crictl.to_str().unwrap());
    host.fix(&[]).expect(0);
    assert_eq!(host.calls(), [""; 0], "nothing to remove, nothing to ask");
    assert_eq!(host.applied(), ["ip netns del fc-4"]);
    let calls = host.calls();
    assert_eq!(calls[..2], ["pods -o json", "inspectp -o json a1 b2 c3 d4"], "{calls:?}");
    assert_eq!(host.names(), ["fc-1", "fc-2", "fc-3"]);
}

#[test]
fn nothing_is_removed_if_crictl_fails() {
    let host = Host::new(VMS);
    host.vm("1");
    let files = host.node.directory.path().join("crictl-files");
    let untold = json!({"status": {"linux": {"namespaces": {"options": {"network": "POD"}}}}, "info": {}});
    let crictl = host.crictl(&[("a1", untold)]);
    host.configure(VMS, crictl.to_str().unwrap());
    host.fix(&[]).expect(0);
    let refused = |what: &str| {
        let ran = host.json(1);
        let blocked = &ran.json()["blocked"][0];
        assert_eq!(blocked["reconciler"], "namespaces");
        assert!(blocked["because"].as_str().unwrap().contains(what), "{blocked}");
        assert_eq!(host.names(), ["fc-1"]);
    };
    refused("a status without the network namespace of its sandbox");
    fs::write(files.join("inspectp"), "").unwrap();
    refused("the status of 0 sandboxes instead of 1");
    fs::write(files.join("pods"), "{").unwrap();
    refused("not a list of pods");
    fs::write(files.join("broken"), "").unwrap();
    refused("failed with exit code 1: broken");
    host.configure(VMS, "/no/crictl");
    refused("cannot be started");
    // One that no PATH knows is not installed.
    host.configure(VMS, "no-crictl-here");
    assert_eq!(host.applied(), ["ip netns del fc-1"]);
    // A pod in the node's own namespace has none to lose.
    host.ip("netns add fc-2");
    let node = json!({"status": {"linux": {"namespaces": {"options": {"network": "NODE"}}}}, "info": {}});
    let crictl = host.crictl(&[("a1", node)]);
    fs::remove_file(files.join("broken")).unwrap();
    host.configure(VMS, crictl.to_str().unwrap());
    host.fix(&[]).expect(0);
    assert_eq!(host.applied(), ["ip netns del fc-2"]);
}

/// As many of a namespace's remains as there can be.
fn remains() -> Host {
    let host = Host::new(VMS);
    host.vm("1").vm("2").vm("3");
    host.ip("netns add fc-it's");
    // Their ends have come back to the host.
    host.ip("link add vh_9 type veth peer name patch");
    host.ip("link del vh_2");
    host.ip("link add vh_2 type veth peer name patch2");
    host
}

#[test]
fn the_script_does_what_the_run_does() {
    let (by_script, by_run) = (remains(), remains());
    let seen = |host: &Host| {
        let links = host.ip("-o link");
        let names: Vec<String> = links.lines().map(|line| line.split([' ', '@']).nth(1).unwrap().to_owned()).collect();
        (host.names(), names)
    };
    let before = seen(&by_script);
    assert_eq!(before, seen(&by_run), "the two hosts differ: the test is wrong");
    for host in [&by_script, &by_run] {
        host.fix(&[]).expect(0);
    }
    let script = by_script.fix(&["--dry-run"]).expect(0).out;
    assert_eq!(seen(&by_script), before, "a dry run changes nothing");
    by_script.run("sh", &["-ec", &script]);
    assert_eq!(by_run.applied().len(), 6, "{script}");
    let links = ["vh_1", "vh_2", "vh_3", "vh_9"];
    for host in [&by_script, &by_run] {
        until("their links are gone", || !links.iter().any(|link| host.has_link(link)));
    }
    assert_eq!(seen(&by_script), seen(&by_run), "{script}");
    assert_eq!(by_script.names(), [""; 0]);
}

#[test]
fn without_the_capabilities_it_says_which() {
    let host = Host::new(VMS);
    host.vm("1");
    host.fix(&[]).expect(0);
    let with = |capabilities: &str, code| {
        let fixer = host.node.command(&["--output", "json"]);
        let mut command = Command::new("setpriv");
        command.args([&format!("--bounding-set=-all{capabilities}"), "--inh-caps=-all"]);
        finish(host.output(&mut started_by(command, &fixer))).expect(code)
    };
    let blind = with(",+net_admin,+sys_admin", 1);
    assert!(blind.json()["blocked"][0]["because"].as_str().unwrap().contains("CAP_SYS_PTRACE"), "{blind:?}");
    let bound = with(",+net_admin,+sys_ptrace", 77);
    assert!(bound.json()["changes"][0]["error"].as_str().unwrap().contains("CAP_SYS_ADMIN"), "{bound:?}");
    assert_eq!(host.names(), ["fc-1"]);
    with(",+net_admin,+sys_admin,+sys_ptrace", 0);
    assert_eq!(host.names(), [""; 0]);
}

/// A service has mounts of its own: what it unmounts is still mounted on the host.
#[test]
fn in_mounts_of_its_own_it_leaves_nothing_behind_on_the_host() {
    let host = Host::new(VMS);
    host.vm("1");
    host.fix(&[]).expect(0);
    let fixer = host.node.command(&["--output", "json"]);
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "slave"]);
    finish(host.output(&mut started_by(command, &fixer))).expect(0);
    assert_eq!(host.names(), [""; 0]);
    let mounts = host.run("cat", &["/proc/self/mountinfo"]);
    assert!(!mounts.contains("/run/netns/fc-1"), "{mounts}");
    until("the namespace is gone, and its link with it", || !host.has_link("vh_1"));
    // Where /run is another one, names cannot be seen, which is not the same as that there are none.
    host.vm("2");
    let hidden = "mount -t tmpfs -o ro run /run && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", hidden, "sh"]);
    let ran = finish(host.output(&mut started_by(command, &fixer))).expect(1);
    assert!(ran.json()["blocked"][0]["because"].as_str().unwrap().contains("/run/netns is not visible"), "{ran:?}");
}

/// Ended by SIGKILL before each system call that removes something: the next runs finish, nothing that stays is touched,
/// and each name can be given again.
#[test]
#[ignore = "needs strace; tests/run runs it"]
fn an_end_at_any_moment_leaves_nothing_half() {
    let host = Host::new(VMS);
    host.vm("busy");
    let _process = host.process_in("fc-busy");
    host.ip("netns add other");
    host.ip("link add mine type veth peer name yours");
    let fixer = host.node.command(&[]);
    let mut kills = 0;
    for syscall in ["umount2", "?unlink,?unlinkat", "sendto"] {
        for number in 1.. {
            assert!(number < 200, "{syscall} never ends");
            host.vm("1").vm("2").ip("link add vh_9 type veth peer name patch");
            host.fix(&[]).expect(0);
            let mut strace = Command::new("strace");
            strace.args(["-qq", "-o", "/dev/null", "-e", &format!("trace={syscall}"), "-e"]);
            strace.arg(format!("inject={syscall}:signal=SIGKILL:when={number}"));
            let whole = host.output(&mut started_by(strace, &fixer)).status.success();
            for _ in 0..3 {
                host.fix(&[]).expect(0);
            }
            assert_eq!(host.names(), ["fc-busy", "other"], "{syscall} {number}");
            assert!(!host.run("cat", &["/proc/self/mountinfo"]).contains("/run/netns/fc-1"), "{syscall} {number}");
            until("their links are gone", || !["vh_1", "vh_2", "vh_9"].iter().any(|link| host.has_link(link)));
            assert!(["vh_busy", "mine", "yours"].iter().all(|link| host.has_link(link)), "{syscall} {number}");
            if whole {
                break;
            }
            kills += 1;
        }
    }
    assert!(kills > 6, "only {kills} ends");
}
