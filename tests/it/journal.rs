//! The journal: what its socket gets, and what becomes of a run when nobody listens there. The binary finds a socket
//! of the test's own at the journal's place, in a mount namespace of its own.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{IoSliceMut, Read, Seek};
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::SealFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};

use crate::kit::{Ran, Worker, finish, started_by};

type Entry = BTreeMap<String, String>;

fn damaged() -> Worker {
    Worker::new().with_pod(100).with_loose_rp_filter().without_default(2)
}

/// What the binary finds below /run/systemd/journal.
fn place(node: &Worker) -> PathBuf {
    let place = node.directory.path().join("journal");
    fs::create_dir_all(&place).unwrap();
    place
}

/// node-fixer as systemd starts it, or as a program does that systemd starts: standard error is the journal's stream,
/// here a file. With that file.
fn under_systemd(node: &Worker, by: &[&str]) -> (Command, PathBuf) {
    let usual = node.command(&[]);
    let mut command = Command::new("unshare");
    let script = "mount -t tmpfs tmpfs /run; mkdir -p /run/systemd/journal; mount --bind \"$0\" /run/systemd/journal; \
                  exec \"$@\"";
    command.args(["--mount", "sh", "-euc", script]).arg(place(node)).args(by);
    let mut command = started_by(command, &usual);
    let stream = node.directory.path().join("stream");
    let stderr = File::create(&stream).unwrap();
    let metadata = stderr.metadata().unwrap();
    command.env("JOURNAL_STREAM", format!("{}:{}", metadata.dev(), metadata.ino()));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
    (command, stream)
}

/// Runs it while somebody reads; the entries, and what came by standard error.
fn read_by_the_journal(node: &Worker, by: &[&str], code: i32) -> (Vec<Entry>, String) {
    let socket = place(node).join("socket");
    let _ = fs::remove_file(&socket);
    let journal = UnixDatagram::bind(&socket).unwrap();
    journal.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let (mut command, stream) = under_systemd(node, by);
    let mut child = node.net.enter(|| command.spawn()).unwrap();
    let entries = read_until_flushed(&journal);
    assert_eq!(child.wait().unwrap().code(), Some(code), "{entries:?}");
    (entries, fs::read_to_string(stream).unwrap())
}

/// The entries up to the line breaks that are none.
fn read_until_flushed(journal: &UnixDatagram) -> Vec<Entry> {
    let mut entries = Vec::new();
    loop {
        let text = read_one(journal);
        if text.chars().all(|c| c == '\n') {
            return entries;
        }
        let lines: Vec<_> = text.lines().map(|line| line.split_once('=').expect("a field a line")).collect();
        // What depends on where the tests run.
        let lines: Vec<_> = lines.into_iter().filter(|(name, _)| *name != "OBJECT_SYSTEMD_UNIT").collect();
        let fields: Entry = lines.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        assert_eq!(fields.len(), lines.len(), "a field twice: {text}");
        entries.push(fields);
    }
}

/// A datagram, or what is in the file that comes with it.
fn read_one(journal: &UnixDatagram) -> String {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = vec![0; 1 << 20];
    let mut into = [IoSliceMut::new(&mut buffer)];
    // Threads of other tests get signals too.
    let receive = || rustix::net::recvmsg(journal, &mut into, &mut control, RecvFlags::empty());
    let length = rustix::io::retry_on_intr(receive).unwrap().bytes;
    for message in control.drain() {
        let RecvAncillaryMessage::ScmRights(fds) = message else { continue };
        let mut file = File::from(fds.into_iter().next().unwrap());
        assert_eq!(length, 0, "either a file or a datagram");
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        assert_eq!(rustix::fs::fcntl_get_seals(&file).unwrap(), seals);
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        return text;
    }
    buffer.truncate(length);
    String::from_utf8(buffer).unwrap()
}

fn fields(pairs: &[(&str, &str)]) -> Entry {
    pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
}

#[test]
fn a_change_is_an_entry_with_its_fields() {
    let node = damaged();
    let (entries, stream) = read_by_the_journal(&node, &[], 0);
    let command = "ip route add default via 10.0.1.1 dev eth1 table 2 proto 170 scope global metric 4294967295";
    let reason = "table 2 has no default route for 10.0.1.10, 10.0.1.100; its only host route is to the gateway \
                  10.0.1.1 on eth1";
    let expected = fields(&[
        ("MESSAGE", &format!("changed reconciler=\"default_routes\" command={command} reason=\"{reason}\"")),
        ("PRIORITY", "5"),
        ("SYSLOG_IDENTIFIER", "node-fixer"),
        ("MESSAGE_ID", "0a6ff1219c8a43fe99ce26b55f02aa96"),
        ("RECONCILER", "default_routes"),
        ("ACTION", "create"),
        ("COMMAND", command),
        ("REASON", reason),
        ("RESULT", "applied"),
    ]);
    assert_eq!(entries, [expected]);
    assert_eq!(stream, "", "and not a second time");
}

/// What makes a kind of event: the configuration, the file of what is remembered, and the exit code that it ends with.
#[test]
fn every_kind_of_event_has_its_id() {
    let kinds = |entries: &[Entry]| -> Vec<String> {
        let kind = |entry: &Entry| {
            let kind = node_fixer::log::KINDS.iter().find(|kind| kind.id == entry["MESSAGE_ID"]).unwrap();
            assert_eq!(entry["RESULT"], kind.result);
            format!("{} {}", kind.target, entry["PRIORITY"])
        };
        entries.iter().map(kind).collect()
    };
    let node = damaged();
    node.fix(&[]).expect(0);
    for (sections, code, expected) in [
        ("routes: [{to: 10.9.0.0/16, via: 10.99.0.1, dev: eth1}]", 1, "failed 3"),
        ("routes: [{to: 10.9.0.0/16, dev: eth9}]", 1, "blocked 4"),
        ("routes: 7", 78, "configuration 3"),
        ("kube_proxy: {crictl: /nowhere/crictl, settle: 0s}", 1, "unseen 4"),
        ("kube_proxy: {crictl: /nowhere/crictl, settle: 0s}", 0, "held 5"),
    ] {
        if expected.starts_with("unseen") {
            node.net.ip("addr add 10.0.1.77/24 dev eth1");
        }
        node.config(sections);
        let (entries, stream) = read_by_the_journal(&node, &[], code);
        assert_eq!((kinds(&entries), stream.as_str()), (vec![expected.to_owned()], ""), "{sections}: {entries:?}");
    }
    node.config("");
    fs::write(node.directory.path().join("state/state.json"), "\x1b[31m\nPRIORITY=0\n").unwrap();
    let (entries, _) = read_by_the_journal(&node, &[], 0);
    assert_eq!(kinds(&entries), ["fresh_start 4"]);
    let lock = File::open(node.directory.path().join("state/lock")).unwrap();
    let held = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusiveNonblock).unwrap();
    let (entries, _) = read_by_the_journal(&node, &[], 75);
    assert_eq!(kinds(&entries), ["locked 3"]);
    drop(held);
    let (entries, _) = read_by_the_journal(&node, &["setpriv", "--inh-caps=-all", "--bounding-set=-all"], 77);
    assert_eq!(kinds(&entries), ["not_permitted 3"]);
}

#[test]
fn hostile_values_stay_values() {
    let node = damaged();
    node.config("rp_filter: {mode: \"a\\nPRIORITY=0\\n\\e[31m\\u202e\"}");
    let (entries, _) = read_by_the_journal(&node, &[], 78);
    assert_eq!(entries.len(), 1, "{entries:?}");
    assert_eq!(entries[0]["PRIORITY"], "3");
    let message = &entries[0]["MESSAGE"];
    assert!(message.contains("unknown value"), "{message}");
    assert!(!message.chars().any(|c| c.is_control() || c == '\u{202e}'), "{message}");

    node.config("rp_filter: {interfaces: '.*'}");
    node.net.set_sysctl("net/ipv4/conf/default/rp_filter", "1");
    let name = "e\u{1b}[31m;`x'\"\\";
    node.net.run("ip", &["link", "add", "name", name, "type", "bridge"]);
    let (entries, _) = read_by_the_journal(&node, &[], 0);
    let of_it = entries.iter().find(|entry| entry["COMMAND"].contains("[31m") || entry["COMMAND"].contains(r"\033"));
    let of_it = of_it.unwrap_or_else(|| panic!("{entries:?}"));
    assert_eq!(of_it.len(), 9, "{of_it:?}");
    assert!(!of_it.values().any(|value| value.chars().any(char::is_control)), "{of_it:?}");
}

#[test]
fn what_no_datagram_holds_comes_as_a_sealed_file() {
    let node = damaged();
    let long = "x".repeat(400_000);
    node.config(&format!("rp_filter: {{mode: {long}}}"));
    let (entries, stream) = read_by_the_journal(&node, &[], 78);
    assert_eq!((entries.len(), stream.as_str()), (1, ""));
    assert!(entries[0]["MESSAGE"].contains(&long), "cut off");
    assert_eq!(entries[0]["MESSAGE_ID"], "3a54b76b0c164e1bb8cdfe7ad9b16384");
}

fn run(node: &Worker) -> (Ran, String, Duration) {
    let (mut command, stream) = under_systemd(node, &[]);
    let begin = Instant::now();
    let ran = finish(node.net.enter(|| command.output()).unwrap());
    (ran, fs::read_to_string(stream).unwrap(), begin.elapsed())
}

#[test]
fn without_a_journal_the_lines_come_by_standard_error() {
    let node = damaged();
    let socket = place(&node).join("socket");
    for left_behind in [false, true] {
        if left_behind {
            drop(UnixDatagram::bind(&socket).unwrap());
        }
        let (ran, stream, _) = run(&node);
        ran.expect(0);
        assert_eq!(stream.lines().count(), 1, "{stream}");
        assert!(stream.starts_with("<5>changed reconciler=\"default_routes\" command=ip route add"), "{stream}");
        node.net.ip("route del default table 2");
    }
}

#[test]
fn a_journal_that_hangs_delays_no_run() {
    let node = damaged();
    let socket = place(&node).join("socket");
    let journal = UnixDatagram::bind(&socket).unwrap();
    // It has room: the entry waits there until the journal reads again.
    let (ran, stream, time) = run(&node);
    ran.expect(0);
    assert_eq!(stream, "");
    assert!(time < Duration::from_secs(3), "{time:?}");
    assert_eq!(read_until_flushed(&journal).len(), 1);
    // It has none.
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    while filler.send_to(b"X=1\n", &socket).is_ok() {}
    node.net.ip("route del default table 2");
    let (ran, stream, time) = run(&node);
    ran.expect(0);
    assert!(stream.starts_with("<5>changed "), "{stream}");
    assert!(time < Duration::from_secs(3), "{time:?}");
}

#[test]
#[ignore = "needs strace; tests/run runs it"]
fn nothing_to_say_opens_no_socket_but_netlink() {
    let node = damaged();
    let _journal = UnixDatagram::bind(place(&node).join("socket")).unwrap();
    let (ran, _, _) = run(&node);
    ran.expect(0);
    let trace = node.directory.path().join("trace");
    let (plain, stream) = under_systemd(&node, &[]);
    let mut strace = Command::new("strace");
    strace.args(["-f", "-e", "trace=socket,socketpair,connect,sendmsg,memfd_create", "-o"]).arg(&trace);
    let mut command = started_by(strace, &plain);
    let stderr = File::options().append(true).open(&stream).unwrap();
    let metadata = stderr.metadata().unwrap();
    command.env("JOURNAL_STREAM", format!("{}:{}", metadata.dev(), metadata.ino())).stderr(stderr);
    finish(node.net.output(&mut command)).expect(0);
    let calls = fs::read_to_string(trace).unwrap();
    let opened: Vec<_> = calls.lines().filter(|call| call.contains('(')).collect();
    assert!(opened.len() == 1 && opened[0].contains("AF_NETLINK"), "{calls}");
}
