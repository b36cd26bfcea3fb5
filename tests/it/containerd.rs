//! kube-proxy in sandboxes of a real containerd, which stands in the test's node, with a runtime directory, process
//! ids and mounts of its own. Between it and node-fixer is a stand-in for crictl (tests/containerd), which Debian
//! does not have. A loop plays kubelet.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use regex::Regex;
use serde_json::{Value, json};

use crate::kit::{Worker, finish, needs, until};

/// A node with containerd.
struct Node {
    containerd: Child,
    worker: Worker,
    crictl: PathBuf,
}

impl Drop for Node {
    fn drop(&mut self) {
        // Closes its stdin, which ends it.
        let _ = self.containerd.wait();
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("log")).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(50).collect();
            #[allow(clippy::print_stderr, reason = "shown where the test fails")]
            last.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

impl Node {
    fn new() -> Node {
        needs(&["containerd", "runc", "cc"]);
        let worker = Worker::new().with_loose_rp_filter();
        // Beside the directory of the tests.
        let crictl = std::env::current_exe().unwrap().parent().unwrap().with_file_name("examples").join("crictl");
        assert!(crictl.exists(), "{crictl:?} is missing: cargo test builds it, with --test only by --example crictl");
        let directory = worker.directory.path().join("containerd");
        fs::create_dir(&directory).unwrap();
        let path = directory.to_str().unwrap();
        worker.net.run("sh", &[concat!(env!("CARGO_MANIFEST_DIR"), "/tests/containerd/image.sh"), path]);
        fs::write(directory.join("config.toml"), config(path)).unwrap();

        let log = File::create(directory.join("log")).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.args(["sh", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/containerd/start.sh"), path]);
        command.stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log);
        let containerd = worker.net.enter(|| command.spawn()).unwrap();
        let mut node = Node { containerd, worker, crictl };
        until("containerd answers", || {
            let ended = node.containerd.try_wait().unwrap();
            assert_eq!(ended, None, "containerd does not run");
            node.crictl(&["pods", "-o", "json"]).status.success()
        });
        let import = ["-n", "k8s.io", "images", "import", "--no-unpack", &node.path("image.tar")];
        node.worker.net.run("ctr", &[&["-a", &node.path("sock")], import.as_slice()].concat());
        node
    }

    /// A path of containerd's.
    fn path(&self, name: &str) -> String {
        let path = self.worker.directory.path().join("containerd").join(name);
        path.into_os_string().into_string().unwrap()
    }

    fn endpoint(&self) -> String {
        format!("unix://{}", self.path("sock"))
    }

    fn crictl(&self, args: &[&str]) -> Output {
        let common = ["--runtime-endpoint", &self.endpoint(), "--timeout", "20s"];
        self.worker.net.output(Command::new(&self.crictl).args(common).args(args))
    }

    /// The list of ready sandboxes of pods with this k8s-app.
    fn list(&self, app: &str) -> Value {
        let label = format!("k8s-app={app}");
        let args = ["pods", "--namespace", "kube-system", "--label", &label, "--state", "ready", "-o", "json"];
        finish(self.crictl(&args)).expect(0).json()
    }

    /// Their ids.
    fn ready(&self, app: &str) -> Vec<String> {
        let list = self.list(app);
        list["items"].as_array().unwrap().iter().map(|pod| pod["id"].as_str().unwrap().to_owned()).collect()
    }

    /// Runs a sandbox of a pod, in the network namespace of the node.
    fn run(&self, pod: &Value, attempt: u32) -> Output {
        let mut metadata = pod["metadata"].clone();
        metadata["attempt"] = attempt.into();
        let config = json!({
            "metadata": metadata, "labels": pod["labels"], "annotations": pod["annotations"],
            "dns_config": {"servers": ["192.0.2.1"]},
            "linux": {"security_context": {"namespace_options": {"network": 2}}},
        });
        fs::write(self.path("pod.json"), config.to_string()).unwrap();
        self.crictl(&["runp", &self.path("pod.json")])
    }

    /// Plays kubelet meanwhile: a pod without a ready sandbox gets another one.
    fn with_kubelet(&self, meanwhile: impl FnOnce()) {
        let pods = [kube_proxy(), exporter()];
        std::thread::scope(|scope| {
            let (_alive, ended) = channel::<()>();
            scope.spawn(move || {
                let mut attempts = [0; 2];
                while ended.recv_timeout(Duration::from_millis(50)) == Err(RecvTimeoutError::Timeout) {
                    for (pod, attempt) in pods.iter().zip(&mut attempts) {
                        if self.ready(pod["labels"]["k8s-app"].as_str().unwrap()).is_empty() {
                            // Fails as long as containerd has not taken note of the image.
                            *attempt += u32::from(self.run(pod, *attempt).status.success());
                        }
                    }
                }
            });
            until("both pods have a ready sandbox", || {
                ["kube-proxy", "exporter"].iter().all(|app| self.ready(app).len() == 1)
            });
            meanwhile();
        });
    }
}

fn config(directory: &str) -> String {
    format!(
        r#"
        version = 2
        root = "{directory}/root"
        state = "{directory}/state"
        [grpc]
        address = "{directory}/sock"
        [plugins."io.containerd.internal.v1.opt"]
        path = "{directory}/opt"
        [plugins."io.containerd.grpc.v1.cri"]
        sandbox_image = "localhost/pause:1"
        disable_apparmor = true
        disable_cgroup = true
        restrict_oom_score_adj = true
        [plugins."io.containerd.grpc.v1.cri".cni]
        bin_dir = "{directory}/cni"
        conf_dir = "{directory}/cni"
        [plugins."io.containerd.grpc.v1.cri".containerd]
        snapshotter = "native"
        [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
        runtime_type = "io.containerd.runc.v2"
        [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        BinaryName = "{directory}/runc"
        "#
    )
}

/// A part of what crictl was recorded to print.
fn recorded(name: &str, stream: &str) -> String {
    let text = fs::read_to_string(format!("tests/fixtures/crictl/{name}.txt")).unwrap();
    let (_, after) = text.split_once(&format!("--- {stream}\n")).unwrap();
    after.split("\n---").next().unwrap().to_owned()
}

fn recorded_pods(name: &str) -> Value {
    serde_json::from_str(&recorded(name, "stdout")).unwrap()
}

fn kube_proxy() -> Value {
    recorded_pods("pods-ready")["items"][0].clone()
}

/// A pod whose name resembles kube-proxy's.
fn exporter() -> Value {
    let pods = recorded_pods("pods-by-name-regex");
    pods["items"].as_array().unwrap().iter().find(|pod| pod["labels"]["k8s-app"] == "exporter").unwrap().clone()
}

#[test]
#[ignore = "needs containerd, runc and cc; tests/run runs it"]
fn a_new_uplink_replaces_the_sandbox_of_kube_proxy_and_no_other() {
    let node = Node::new();
    let (crictl, endpoint) = (node.crictl.to_str().unwrap(), node.endpoint());
    node.worker.config(&format!(
        "kube_proxy: {{settle: 0s, min_interval: 0s, timeout: 20s, crictl: {crictl}, endpoint: '{endpoint}'}}"
    ));
    node.with_kubelet(|| {
        let (old, untouched) = (node.ready("kube-proxy"), node.ready("exporter"));
        assert_eq!(node.worker.fix(&[]).expect(0).out, "", "the first run remembers");
        node.worker.uplink_with_table(2);
        let json = node.worker.fix(&["--output", "json"]).expect(0).json();
        assert_eq!(json["converged"], true, "{json}");
        let changes = json["changes"].as_array().unwrap();
        let restarts: Vec<&Value> = changes.iter().filter(|change| change["reconciler"] == "kube_proxy").collect();
        let [restart] = *restarts else { panic!("one restart, not {json}") };
        assert_eq!((&restart["action"], &restart["status"]), (&"restart".into(), &"applied".into()), "{json}");
        let reason = restart["reason"].as_str().unwrap();
        assert!(reason.starts_with("uplinks changed: +eth2; the new sandbox was ready after "), "{reason}");

        let new = node.ready("kube-proxy");
        assert!(new.len() == 1 && new != old, "{new:?} after {old:?}");
        let removed = finish(node.crictl(&["rmp", &old[0]])).expect(1);
        assert!(removed.err.contains("code = NotFound"), "the old one is stopped, but not removed: {removed:?}");
        assert_eq!(node.worker.fix(&["-v"]).expect(0).out, "", "and not again");
        assert_eq!(node.ready("kube-proxy"), new);
        assert_eq!(node.ready("exporter"), untouched);
    });
}

/// What is compared of crictl's words: neither ids and times, nor what the runtime has added.
fn words(text: &str) -> String {
    let own = Regex::new(r#"[0-9a-f]{64}|time="[^"]*"|E\d{4} [\d:.]+ +\d+|desc = .*"#).unwrap();
    own.replace_all(text.trim(), "…").into_owned()
}

#[test]
#[ignore = "needs containerd, runc and cc; tests/run runs it"]
fn the_stand_in_for_crictl_prints_what_crictl_was_recorded_to_print() {
    let node = Node::new();
    let said = |name: &str, args: &[&str]| {
        let output = node.crictl(args);
        let is = (words(&String::from_utf8_lossy(&output.stdout)), words(&String::from_utf8_lossy(&output.stderr)));
        assert_eq!(is, (words(&recorded(name, "stdout")), words(&recorded(name, "stderr"))), "{name}");
        assert_eq!(output.status.success(), is.1.is_empty(), "{name}");
    };
    let listed = |name: &str| {
        let (mut is, mut was) = (node.list("kube-proxy"), recorded_pods(name));
        for pod in is["items"].as_array_mut().unwrap().iter_mut().chain(was["items"].as_array_mut().unwrap()) {
            assert_eq!(pod["id"].as_str().unwrap().len(), 64, "{pod}");
            let nanoseconds: u64 = pod["createdAt"].as_str().unwrap().parse().unwrap();
            assert_eq!(nanoseconds.ilog10(), 18, "{pod}");
            pod["id"].take();
            pod["createdAt"].take();
        }
        assert_eq!(is, was, "{name}");
    };
    listed("pods-empty");
    until("a sandbox runs", || node.run(&kube_proxy(), 0).status.success());
    listed("pods-ready");
    let id = node.ready("kube-proxy").remove(0);
    said("rmp-while-ready", &["rmp", &id]);
    said("stopp", &["stopp", &id]);
    listed("pods-ready-after-stopp");
    said("stopp-again", &["stopp", &id]);
    said("rmp", &["rmp", &id]);
    said("rmp-again", &["rmp", &id]);
    said("stopp-unknown", &["stopp", "0123456789abcdef"]);
    said("rmp-unknown", &["rmp", "0123456789abcdef"]);
    let nowhere = ["--runtime-endpoint", "unix:///nonexistent/c.sock", "pods", "-o", "json"];
    let output = Command::new(&node.crictl).args(nowhere).output().unwrap();
    assert_eq!(words(&String::from_utf8_lossy(&output.stderr)), words(&recorded("no-endpoint", "stderr")));
}
