//! What Prometheus is reported: the file, and what the real node_exporter and Prometheus make of it.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use serde_json::Value;

use crate::kit::{Ends, Netns, Ran, Worker, not_started, until};

const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/config/prometheus/alerts.yaml");

/// A healthy node, with a directory for the textfile collector.
struct Node {
    worker: Worker,
    textfile: PathBuf,
}

impl Node {
    fn new() -> Node {
        let worker = Worker::new().with_pod(100).with_loose_rp_filter();
        let textfile = worker.directory.path().join("textfile");
        fs::create_dir(&textfile).unwrap();
        worker.config(&format!("metrics: {{textfile: {}}}", textfile.display()));
        Node { worker, textfile }
    }

    fn fix(&self, code: i32) -> Ran {
        self.worker.fix(&[]).expect(code)
    }

    fn broken_and_repaired(&self) -> Ran {
        self.worker.net.ip("route del default table 2");
        self.fix(0)
    }

    fn text(&self) -> String {
        fs::read_to_string(self.textfile.join("node_fixer.prom")).unwrap()
    }

    /// The value of a sample, with its labels.
    fn value(&self, sample: &str) -> f64 {
        let text = self.text();
        let value = text.lines().find_map(|line| line.strip_prefix(&format!("{sample} ")));
        value.unwrap_or_else(|| panic!("no {sample} in\n{text}")).parse().unwrap()
    }

    /// What there is in its directory, with contents.
    fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut paths: Vec<PathBuf> =
            fs::read_dir(&self.textfile).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
    }

    fn state(&self) -> PathBuf {
        self.worker.directory.path().join("state")
    }
}

fn promtool(args: &[&str]) {
    let mut command = Command::new("promtool");
    let output = command.args(args).output().unwrap_or_else(|error| not_started(&command, &error));
    assert!(output.status.success(), "promtool {args:?}: {output:?}");
}

#[test]
#[ignore = "needs promtool; tests/run runs it"]
fn the_file_is_what_prometheus_expects() {
    let node = Node::new();
    node.fix(0);
    let path = node.textfile.join("node_fixer.prom");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o644);
    let check = |text: String| {
        let mut command = Command::new("promtool");
        command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| not_started(&command, &error));
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(check(node.text()), (true, String::new()));
    assert!(!check(node.text().replace("runs_total", "runs")).1.is_empty(), "promtool objects to nothing");
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((now - node.value("node_fixer_last_run_timestamp_seconds")).abs() < 30.0);
    assert_eq!(
        node.value("node_fixer_last_run_timestamp_seconds"),
        node.value("node_fixer_last_success_timestamp_seconds")
    );
    assert_eq!(node.value(&format!("node_fixer_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"))), 1.0);
    // No sample has a time of its own.
    for sample in node.text().lines().filter(|line| !line.starts_with('#')) {
        assert_eq!(sample.split(' ').count(), 2, "{sample}");
    }
}

#[test]
fn it_counts_what_runs_do_and_goes_on_counting_after_a_reboot() {
    let node = Node::new();
    let applied = "node_fixer_changes_total{reconciler=\"default_routes\",result=\"applied\"}";
    node.fix(0);
    assert_eq!((node.value("node_fixer_runs_total"), node.value(applied)), (1.0, 0.0));
    let series = |node: &Node| -> BTreeSet<String> {
        node.text()
            .lines()
            .map(|line| line.split(' ').take(if line.starts_with('#') { 9 } else { 1 }).collect())
            .collect()
    };
    let before = series(&node);
    for _ in 0..5 {
        node.broken_and_repaired();
    }
    assert_eq!((node.value("node_fixer_runs_total"), node.value(applied)), (6.0, 5.0));
    assert_eq!(node.value("node_fixer_contended_repairs{reconciler=\"default_routes\"}"), 1.0);
    assert_eq!(node.value("node_fixer_contention_total{reconciler=\"default_routes\"}"), 1.0);
    node.worker.net.ip("rule add from 10.0.1.11 table 77");
    let ran = node.fix(1);
    assert!(ran.out.contains("blocked"), "{ran:?}");
    assert_eq!(node.value("node_fixer_blocked{reconciler=\"default_routes\"}"), 1.0);
    let (last, success) = ("node_fixer_last_run_timestamp_seconds", "node_fixer_last_success_timestamp_seconds");
    assert!(node.value(success) < node.value(last));
    // What is repaired and what is blocked is in no label: each node has the same series, always.
    assert_eq!(series(&node), before);
    // At a boot /run is empty.
    fs::remove_file(node.state().join("state.json")).unwrap();
    node.worker.net.ip("rule del from 10.0.1.11");
    node.broken_and_repaired();
    assert_eq!((node.value("node_fixer_runs_total"), node.value(applied)), (8.0, 6.0));
    assert_eq!(node.value("node_fixer_contended_repairs{reconciler=\"default_routes\"}"), 0.0);
    assert_eq!(node.value("node_fixer_contention_total{reconciler=\"default_routes\"}"), 1.0);
    assert_eq!(node.value("node_fixer_blocked{reconciler=\"default_routes\"}"), 0.0);
}

#[test]
fn what_is_only_observed_is_a_difference_and_a_dry_run_writes_nothing() {
    let node = Node::new();
    let textfile = format!("metrics: {{textfile: {}}}", node.textfile.display());
    node.worker.config(&format!("{textfile}\nrp_filter: {{mode: observe}}"));
    node.worker.net.set_sysctl("net/ipv4/conf/eth1/rp_filter", "1");
    for args in [&["--dry-run"][..], &["--dry-run", "--output", "json"]] {
        node.worker.fix(args).expect(0);
        assert!(node.files().is_empty() && !node.state().exists());
    }
    node.fix(0);
    assert_eq!(node.value("node_fixer_differences{reconciler=\"rp_filter\"}"), 1.0);
    assert_eq!(node.value("node_fixer_changes_total{reconciler=\"rp_filter\",result=\"applied\"}"), 0.0);
    let before = (node.files(), fs::read(node.state().join("counters.json")).unwrap());
    node.worker.fix(&["--dry-run"]).expect(0);
    assert_eq!((node.files(), fs::read(node.state().join("counters.json")).unwrap()), before);
}

#[test]
fn what_cannot_be_written_is_a_warning_and_the_network_is_repaired() {
    let node = Node::new();
    node.fix(0);
    // No directory; a file; one that nobody may write.
    for directory in ["/nonexistent/textfile", "/dev/null", "/proc/sys"] {
        node.worker.config(&format!("metrics: {{textfile: {directory}}}"));
        let ran = node.broken_and_repaired();
        assert!(ran.err.contains("WARN cannot write the metrics; the network is not affected"), "{ran:?}");
        assert!(ran.err.contains(&format!("ReadWritePaths={directory}")), "{ran:?}");
    }
    // Counters that cannot be kept: what Prometheus has seen must not come again, so it sees nothing new.
    node.worker.config(&format!("metrics: {{textfile: {}}}", node.textfile.display()));
    let counters = node.state().join("counters.json");
    fs::remove_file(&counters).unwrap();
    fs::create_dir(&counters).unwrap();
    let before = node.files();
    let ran = node.broken_and_repaired();
    assert!(ran.err.contains("counters.json; the file is left untouched"), "{ran:?}");
    assert_eq!(node.files(), before);
}

#[test]
fn metrics_that_are_turned_off_or_moved_leave_no_file() {
    let node = Node::new();
    let (of_node, written) = (|| node.worker.directory.path(), || node.files().len());
    node.fix(0);
    assert_eq!((written(), node.state().join("counters.json").exists()), (1, true));
    // Moved: the file goes along, and Prometheus goes on counting.
    let moved = of_node().join("moved");
    fs::create_dir(&moved).unwrap();
    node.worker.config(&format!("metrics: {{textfile: {}}}", moved.display()));
    node.fix(0);
    assert_eq!(written(), 0);
    assert!(fs::read_to_string(moved.join("node_fixer.prom")).unwrap().contains("node_fixer_runs_total 2\n"));
    // Turned off, by a removed section or an empty one: file and counters are gone, and nothing else of the directory.
    for off in ["", "metrics: {}"] {
        node.worker.config(&format!("metrics: {{textfile: {}}}", node.textfile.display()));
        node.fix(0);
        fs::write(node.textfile.join("other.prom"), "").unwrap();
        assert_eq!(written(), 2);
        node.worker.config(off);
        node.worker.fix(&["--dry-run"]).expect(0);
        assert_eq!(written(), 2, "a dry run removes nothing");
        let ran = node.fix(0);
        assert_eq!((ran.out.as_str(), ran.err.as_str()), ("", ""));
        assert_eq!(node.files(), [(node.textfile.join("other.prom"), Vec::new())], "{off:?}");
        assert!(!node.state().join("counters.json").exists());
    }
}

#[test]
fn counters_that_make_no_sense_begin_at_zero() {
    let node = Node::new();
    let counters = node.state().join("counters.json");
    node.fix(0);
    for wrong in ["", "{", "{\"runs\": -1}", "{\"sections\": 7}", "\u{0}"] {
        fs::write(&counters, wrong).unwrap();
        let ran = node.fix(0);
        assert!(ran.err.contains("starting at zero"), "{wrong:?}: {ran:?}");
        assert_eq!(node.value("node_fixer_runs_total"), 1.0, "{wrong:?}");
        assert_eq!(node.fix(0).err, "");
    }
    // As many as there can be, and a section that there is not.
    fs::write(&counters, format!("{{\"runs\": {}, \"sections\": {{\"x\\\"\\n\": {{}}}}}}", u64::MAX)).unwrap();
    assert_eq!(node.fix(0).err, "");
    assert!(node.text().contains(&format!("node_fixer_runs_total {}\n", u64::MAX)));
    assert!(!node.text().contains("reconciler=\"x"), "{}", node.text());
}

#[test]
fn what_others_put_into_the_directory_is_not_written_to() {
    let node = Node::new();
    let precious = node.worker.directory.path().join("precious");
    fs::write(&precious, "precious").unwrap();
    for name in ["node_fixer.prom", "node_fixer.prom.new"] {
        let path = node.textfile.join(name);
        symlink(&precious, &path).unwrap();
        node.fix(0);
        fs::remove_file(node.textfile.join("node_fixer.prom")).unwrap();
        fs::hard_link(&precious, &path).unwrap();
        node.fix(0);
        assert!(node.text().contains("node_fixer_runs_total"));
        fs::remove_file(node.textfile.join("node_fixer.prom")).unwrap();
    }
    assert_eq!(fs::read_to_string(&precious).unwrap(), "precious");
    assert!(node.files().is_empty(), "{:?}", node.files());
}

#[test]
#[ignore = "needs promtool; tests/run runs it"]
fn the_alert_rules_hold_what_their_examples_say() {
    promtool(&["check", "rules", RULES]);
    promtool(&["test", "rules", concat!(env!("CARGO_MANIFEST_DIR"), "/config/prometheus/alerts.test.yaml")]);
}

/// node_exporters and a Prometheus that scrapes them every second, in a network namespace of their own.
pub struct Monitoring {
    net: Netns,
    _programs: Vec<Ends>,
    _directory: tempfile::TempDir,
}

impl Monitoring {
    /// Of nodes by name, each with its directory.
    pub fn of(nodes: &[(&str, &Path)]) -> Monitoring {
        let (net, directory) = (Netns::new(), tempfile::tempdir().unwrap());
        let log = |name: &str| fs::File::create(directory.path().join(name)).unwrap();
        let mut programs = Vec::new();
        let mut targets = String::new();
        let mut start = |name: &str, command: &mut Command| {
            command.stdin(Stdio::null()).stdout(log(name)).stderr(log(&format!("{name}.err")));
            let child = net.enter(|| command.spawn());
            programs.push(Ends(child.unwrap_or_else(|error| not_started(command, &error))));
        };
        for (number, (name, textfile)) in nodes.iter().enumerate() {
            let address = format!("127.0.0.1:{}", 9100 + number);
            start(
                name,
                Command::new("prometheus-node-exporter")
                    .args(["--collector.disable-defaults", "--collector.textfile"])
                    .arg(format!("--collector.textfile.directory={}", textfile.display()))
                    .arg(format!("--web.listen-address={address}")),
            );
            targets += &format!("      - {{targets: ['{address}'], labels: {{instance: '{name}'}}}}\n");
        }
        let config = directory.path().join("prometheus.yml");
        let text = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{RULES}']\nscrape_configs:\n  - \
             job_name: node\n    static_configs:\n{targets}"
        );
        fs::write(&config, text).unwrap();
        start(
            "prometheus",
            Command::new("prometheus")
                .arg(format!("--config.file={}", config.display()))
                .arg(format!("--storage.tsdb.path={}", directory.path().join("data").display()))
                .arg("--web.listen-address=127.0.0.1:9090"),
        );
        Monitoring { net, _programs: programs, _directory: directory }
    }

    /// What promtool says to a query; nothing while Prometheus is starting.
    pub fn ask(&self, args: &[&str]) -> Option<Value> {
        let ran = self.net.output(Command::new("promtool").args(["query"]).args(args));
        ran.status.success().then(|| serde_json::from_slice(&ran.stdout).unwrap())
    }

    /// The samples that an expression has now; none while Prometheus is starting.
    fn query(&self, expression: &str) -> Vec<Value> {
        let answer = self.ask(&["instant", "-o", "json", "http://127.0.0.1:9090", expression]);
        answer.map(|samples| samples.as_array().unwrap().clone()).unwrap_or_default()
    }

    pub fn is_true(&self, expression: &str) -> bool {
        !self.query(expression).is_empty()
    }

    /// Whether Prometheus itself finds the expression of an alert true, whether or not for long enough.
    fn alerts(&self, alert: &str, node: &str) -> bool {
        self.is_true(&format!("ALERTS{{alertname=\"{alert}\", instance=\"{node}\"}}"))
    }

    /// Waits until Prometheus has seen the last run of the node.
    fn has_seen(&self, node: &Node) {
        let last =
            format!("node_fixer_last_run_timestamp_seconds == {}", node.value("node_fixer_last_run_timestamp_seconds"));
        until("Prometheus sees the run", || self.is_true(&last));
    }
}

/// The expressions of the dashboard's panels, by title.
pub fn panels() -> Vec<(String, String)> {
    let text = fs::read_to_string("config/prometheus/dashboard.json").unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let variables = [("$job", ".*"), ("$instance", ".*"), ("$__rate_interval", "15s")];
    let panel = |panel: &Value| {
        let expression = panel["targets"][0]["expr"].as_str().unwrap().to_owned();
        let expression = variables.iter().fold(expression, |text, (variable, value)| text.replace(variable, value));
        (panel["title"].as_str().unwrap().to_owned(), expression)
    };
    dashboard["panels"].as_array().unwrap().iter().map(panel).collect()
}

#[test]
#[ignore = "needs prometheus and prometheus-node-exporter; tests/run runs it"]
fn alerts_come_and_go_with_what_is_wrong() {
    let node = Node::new();
    node.fix(0);
    let monitoring = Monitoring::of(&[("worker-1", &node.textfile)]);
    monitoring.has_seen(&node);
    let all = ["NodeFixerBlocked", "NodeFixerContention", "NodeFixerFailing", "NodeFixerSilent"];
    assert!(!all.iter().any(|alert| monitoring.alerts(alert, "worker-1")));

    // A table whose gateway nobody knows.
    node.worker.net.ip("rule add from 10.0.1.11 table 77");
    node.fix(1);
    until("it is blocked", || monitoring.alerts("NodeFixerBlocked", "worker-1"));
    assert!(!monitoring.alerts("NodeFixerFailing", "worker-1"), "one alert for one thing");
    node.worker.net.ip("rule del from 10.0.1.11");
    node.fix(0);
    until("it is not blocked any more", || !monitoring.alerts("NodeFixerBlocked", "worker-1"));

    // Somebody undoes it.
    for _ in 0..5 {
        node.broken_and_repaired();
    }
    until("it is contended", || monitoring.alerts("NodeFixerContention", "worker-1"));
    // As at a boot.
    fs::remove_file(node.state().join("state.json")).unwrap();
    node.fix(0);
    until("it is not contended any more", || !monitoring.alerts("NodeFixerContention", "worker-1"));

    monitoring.has_seen(&node);
    let panels = panels();
    assert!(panels.len() >= 6);
    for (title, expression) in panels {
        assert!(monitoring.is_true(&expression), "{title}: {expression}");
    }
}

#[test]
fn what_a_section_that_only_observes_cannot_do_is_not_blocked() {
    let node = Node::new();
    node.worker.net.ip("rule add from 10.0.1.11 table 77");
    let blocked = "node_fixer_blocked{reconciler=\"default_routes\"}";
    node.fix(1);
    assert_eq!(node.value(blocked), 1.0);
    let metrics = format!("metrics: {{textfile: {}}}", node.textfile.display());
    node.worker.config(&format!("default_routes: {{mode: observe}}\n{metrics}"));
    node.fix(0);
    assert_eq!(node.value(blocked), 0.0);
}
