//! Exit codes, streams, and what a run with nothing to do leaves behind: nothing.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::process::{Command, Stdio};
use std::time::SystemTime;

use nix::fcntl::{Flock, FlockArg};

use crate::kit::{Netns, Worker, finish, node_fixer};

fn healthy() -> Worker {
    Worker::new().with_pod(100).with_loose_rp_filter()
}

#[test]
fn every_exit_code_has_its_case() {
    let node = healthy();
    node.fix(&[]).expect(0);
    node.fix(&["--dry-run"]).expect(0);
    node.fix(&["--dry-run", "--detailed-exitcode"]).expect(0);
    let node = node.without_default(2);
    node.fix(&["--dry-run"]).expect(0);
    node.fix(&["--dry-run", "--detailed-exitcode"]).expect(2);
    node.fix(&[]).expect(0);
    node.config("routes: [{to: 10.9.0.0/16, dev: eth9}]");
    node.fix(&[]).expect(1);
    node.fix(&["--dry-run"]).expect(0);
    node.fix(&["--dry-run", "--detailed-exitcode"]).expect(2);
    node.fix(&["--no-such-flag"]).expect(64);
    node.fix(&["--detailed-exitcode"]).expect(64);
    node.fix(&["--output", "xml"]).expect(64);
    node.config("rules: 7");
    node.fix(&[]).expect(78);
    node.fix(&["--dry-run"]).expect(78);
    node.fix(&["--help"]).expect(0);
    node.fix(&["--version"]).expect(0);
}

#[test]
fn a_second_run_exits_at_once_and_names_the_holder_of_the_lock() {
    let node = healthy();
    node.fix(&[]).expect(0);
    let lock = File::open(node.directory.path().join("state/lock")).unwrap();
    let held = Flock::lock(lock, FlockArg::LockExclusiveNonblock).unwrap();
    let ran = node.fix(&[]).expect(75);
    assert!(ran.err.contains(&format!("process {}", std::process::id())), "{ran:?}");
    node.fix(&["--dry-run"]).expect(0);
    drop(held);
    node.fix(&[]).expect(0);
}

#[test]
#[ignore = "needs strace; tests/run runs it"]
fn nothing_to_do_leaves_no_trace() {
    let node = healthy();
    node.fix(&[]).expect(0);
    let before = files(&node);
    assert_eq!(
        before.len(),
        3,
        "the lock, and what the first run remembers, of pods in a file of their own: {before:?}"
    );
    let (ran, calls) = node.traced(&["-f", "-e", "trace=file,process,write,sendto"], &[]);
    let ran = ran.expect(0);
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("", ""));
    let started = calls.lines().filter(|call| ["execve(", "clone", "fork"].iter().any(|start| call.contains(start)));
    assert_eq!(started.count(), 1, "only node-fixer itself is started:\n{calls}");
    let written: Vec<_> = calls.lines().filter(|call| call.contains("O_WRONLY") || call.contains("O_RDWR")).collect();
    assert!(written.iter().all(|call| call.contains("/lock\"")), "{written:?}");
    assert!(!calls.contains(" write("), "{calls}");
    assert_eq!(files(&node), before);
}

/// The files of the state directory, with their contents and the times of their last change.
fn files(node: &Worker) -> BTreeMap<OsString, (Vec<u8>, SystemTime)> {
    let entries = fs::read_dir(node.directory.path().join("state")).unwrap().map(|entry| entry.unwrap());
    let file = |entry: fs::DirEntry| {
        let changed = entry.metadata().unwrap().modified().unwrap();
        (entry.file_name(), (fs::read(entry.path()).unwrap(), changed))
    };
    entries.map(file).collect()
}

#[test]
#[ignore = "needs strace; tests/run runs it"]
fn a_healthy_run_dumps_no_links() {
    let node = healthy();
    let ran = node.fix(&["--verbose"]).expect(0);
    assert!(ran.err.contains("looking"), "{ran:?}");
    let (ran, calls) = node.traced(&["-e", "trace=sendto"], &["--dry-run"]);
    ran.expect(0);
    let dumps: Vec<_> = calls.lines().filter(|call| call.contains("NLM_F_DUMP")).collect();
    assert!(!dumps.is_empty(), "{calls}");
    assert!(!dumps.iter().any(|dump| dump.contains("RTM_GETLINK")), "{dumps:?}");
    let routes: Vec<_> = dumps.iter().filter(|dump| dump.contains("RTM_GETROUTE")).collect();
    // Routes of ours are known not to be there, so not even those are looked for in every table.
    let filtered = |dump: &&&&str| dump.contains("RTA_TABLE");
    assert_eq!(routes.iter().filter(filtered).count(), routes.len(), "an unfiltered dump of routes: {routes:?}");
}

#[test]
fn a_changed_node_is_one_line_a_change_in_the_log() {
    let node = Worker::new().with_pod(100).with_loose_rp_filter().without_default(2);
    let journal = node.directory.path().join("journal");
    let stderr = File::create(&journal).unwrap();
    let metadata = stderr.metadata().unwrap();
    let mut command = node.command(&[]);
    command.env("JOURNAL_STREAM", format!("{}:{}", metadata.dev(), metadata.ino())).stderr(stderr);
    finish(node.net.output(&mut command)).expect(0);
    let said = fs::read_to_string(journal).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("<5>changed "), "a notice without a time of its own: {said}");
    for field in ["reconciler=\"default_routes\"", "command=ip route add default", "reason=\"table 2"] {
        assert!(said.contains(field), "{field}: {said}");
    }
    node.net.ip("route del default table 2");
    let mut command = node.command(&[]);
    let ran = finish(node.net.output(command.env("JOURNAL_STREAM", "8:1"))).expect(0);
    assert!(ran.err.trim_start().starts_with("INFO"), "under systemd, but not to the journal itself: {ran:?}");
    node.net.ip("route del default table 2");
    let ran = node.fix(&[]).expect(0);
    assert!(ran.err.starts_with("20"), "elsewhere a line begins with the time: {ran:?}");
    node.net.ip("route del default table 2");
    assert_eq!(node.fix(&["--quiet"]).expect(0).err, "");
}

#[test]
fn on_a_terminal_it_says_that_there_is_nothing_to_do_and_each_change_once() {
    let node = healthy();
    node.fix(&[]).expect(0);
    let on_terminal = || {
        let arguments: Vec<_> = node.command(&[]).get_args().map(|arg| arg.to_str().unwrap().to_owned()).collect();
        let command = format!("{} {}", env!("CARGO_BIN_EXE_node-fixer"), arguments.join(" "));
        finish(node.net.output(Command::new("script").args(["-qc", &command, "/dev/null"]))).out.replace('\r', "")
    };
    assert_eq!(on_terminal(), "nothing to do: the node is as declared\n");
    node.net.ip("route del default table 2");
    let said = on_terminal();
    assert_eq!(said.matches("ip route add default").count(), 1, "{said}");
    node.net.ip("rule add from 10.0.9.9 table 99");
    let said = on_terminal();
    assert_eq!(said.matches("table 99 has no default route").count(), 1, "{said}");
    // What the result does not tell.
    node.net.ip("rule del from 10.0.9.9 table 99");
    fs::write(node.directory.path().join("state/state.json"), "no JSON").unwrap();
    assert!(on_terminal().contains("starting afresh"));
}

#[test]
fn a_reader_that_stops_is_no_error_but_a_full_disk_is() {
    let node = healthy().without_default(2);
    let mut command = node.command(&["--dry-run"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = node.net.enter(|| command.spawn()).unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!((child.wait().unwrap().code(), said.as_str()), (Some(0), ""));
    let mut command = node.command(&["--dry-run"]);
    command.stdout(File::create("/dev/full").unwrap()).stderr(Stdio::piped());
    let child = node.net.enter(|| command.spawn()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("stdout: No space left on device"), "{output:?}");
}

#[test]
fn a_state_directory_that_cannot_be_written_stops_the_run_before_it_begins() {
    let node = healthy().without_default(2);
    let before = node.net.state();
    let file = node.directory.path().join("file");
    fs::write(&file, "").unwrap();
    for directory in [file.join("state"), "/proc/sys/node-fixer".into()] {
        let mut command = node_fixer();
        command.arg("--config").arg(node.config("")).arg("--state-dir").arg(&directory);
        let ran = finish(node.net.output(&mut command)).expect(1);
        assert!(ran.err.contains("choose a writable directory with --state-dir"), "{ran:?}");
        assert_eq!(node.net.state(), before);
    }
}

#[test]
fn it_runs_on_a_node_without_anything() {
    let (net, state) = (Netns::new(), tempfile::tempdir().unwrap());
    let mut run = node_fixer();
    run.args(["--dry-run", "--output", "json", "--config", "config/node-fixer.yaml", "--state-dir"]).arg(state.path());
    let ran = finish(net.output(&mut run));
    assert!(ran.expect(0).commands().iter().all(|command| command.contains("conf.default.rp_filter")));
}
