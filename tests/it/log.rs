//! The log serves the run: where it cannot be written, and whatever is in what it shows, the run does what it does.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::fstat;

use crate::kit::{Ran, Worker, finish, started_by};

/// Ways in which nobody gets what a program prints; with `"$@"` it is run. Its exit code goes to the file `rc`.
const UNHEARD: [(&str, &str); 11] = [
    ("both on a full device", r#""$@" >/dev/full 2>&1; echo $? >rc"#),
    ("the log on a full device", r#""$@" 2>/dev/full; echo $? >rc"#),
    ("to a reader that is gone", r#"{ "$@"; echo $? >rc; } 2>&1 | true"#),
    ("to a reader of one line", r#"{ "$@"; echo $? >rc; } 2>&1 | head -n 1"#),
    ("both closed", r#""$@" >&- 2>&-; echo $? >rc"#),
    ("the log closed", r#""$@" 2>&-; echo $? >rc"#),
    ("not open for writing", r#""$@" 2</dev/null; echo $? >rc"#),
    (
        "to a file on a full disk",
        r#"mount -t tmpfs -o size=4k tmpfs full; head -c 4096 /dev/zero >full/x; "$@" >>full/log 2>&1; echo $? >rc"#,
    ),
    ("to a file that may not grow", r#"head -c 4096 /dev/zero >small; ulimit -f 8; "$@" >>small 2>&1; echo $? >rc"#),
    ("under systemd, on a full device", r#"JOURNAL_STREAM=8:1 "$@" >/dev/full 2>&1; echo $? >rc"#),
    ("under systemd, to a reader that is gone", r#"{ JOURNAL_STREAM=8:1 "$@"; echo $? >rc; } 2>&1 | true"#),
];

/// Runs node-fixer in one of these ways, its exit code.
fn unheard(node: &Worker, how: &str, args: &[&str]) -> i32 {
    let directory = node.directory.path();
    let usual = node.command(args);
    fs::create_dir_all(directory.join("full")).unwrap();
    fs::write(directory.join("rc"), "").unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", how, "sh"]);
    let output = node.net.output(started_by(command, &usual).current_dir(directory));
    let code = fs::read_to_string(directory.join("rc")).unwrap();
    code.trim().parse().unwrap_or_else(|error| panic!("{how}: {error}: {output:?}"))
}

/// A node on which a run makes several changes, so that it logs in the middle.
fn damaged() -> Worker {
    Worker::new().with_pod(100).without_default(2)
}

fn damage(node: &Worker) {
    for name in ["eth0", "eth1", "eni00000000064"] {
        node.net.set_sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "1");
    }
    node.net.output(Command::new("ip").args(["route", "del", "default", "table", "2"]));
}

#[test]
fn a_log_that_cannot_be_written_stops_no_repair() {
    let node = damaged();
    damage(&node);
    node.fix(&["--dry-run", "--detailed-exitcode"]).expect(2);
    assert!(node.fix(&[]).expect(0).err.lines().count() > 2);
    for (way, how) in UNHEARD {
        for verbose in [&[][..], &["--verbose"]] {
            damage(&node);
            assert_eq!(unheard(&node, how, verbose), 0, "{way}");
            let left = node.fix(&["--dry-run", "--output", "json"]);
            assert_eq!(left.commands(), Vec::<String>::new(), "{way}");
        }
    }
}

#[test]
fn an_exit_code_is_the_same_whether_or_not_the_log_is_read() {
    let node = damaged();
    node.fix(&[]).expect(0);
    let check = |code: i32, args: &[&str]| {
        for (way, how) in UNHEARD {
            assert_eq!(unheard(&node, how, args), code, "{way}: {args:?}");
        }
    };
    check(64, &["--no-such-flag"]);
    let lock = File::create(node.directory.path().join("state/lock")).unwrap();
    let lock = Flock::lock(lock, FlockArg::LockExclusive).unwrap();
    check(75, &[]);
    drop(lock);
    node.config("routes: [{to: 10.9.0.0/16, dev: eth9}]");
    check(1, &[]);
    node.config("rules: 7");
    check(78, &[]);
    check(78, &["check-config"]);
}

/// A stream to the journal whose other end is gone.
#[test]
fn a_stream_to_the_journal_may_break() {
    let node = damaged();
    for gone in [true, false] {
        damage(&node);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let ours = OwnedFd::from(ours);
        let stat = fstat(ours.as_fd()).unwrap();
        let theirs = (!gone).then_some(theirs);
        let usual = node.command(&[]);
        let mut command = Command::new("unshare");
        // No journal of this machine gets to hear of it.
        command.args(["--mount", "sh", "-euc", "mount -t tmpfs tmpfs /run; exec \"$@\"", "sh"]);
        let mut command = started_by(command, &usual);
        command.env("JOURNAL_STREAM", format!("{}:{}", stat.st_dev, stat.st_ino));
        let mut child =
            node.net.enter(|| command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(ours).spawn()).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "gone: {gone}");
        assert_eq!(node.fix(&["--dry-run", "--output", "json"]).commands(), Vec::<String>::new());
        drop(theirs);
    }
}

/// Sequences that clear a screen, set its title, ring, hide and turn text around.
const BAD: &str = "\x1b[2J\x1b]0;owned\x07\u{202e}\u{9b}31m\r\u{7f}\u{200b}";

fn is_harmless(what: &str, ran: &Ran) {
    for (stream, text) in [("stdout", &ran.out), ("stderr", &ran.err)] {
        let bad = text.chars().find(|c| *c != '\n' && (c.is_control() || "\u{202e}\u{200b}".contains(*c)));
        assert_eq!(bad, None, "{what}: {stream}: {text:?}");
    }
}

/// What a terminal gets, without colours and without the ends of lines.
fn on_a_terminal(node: &Worker, command: &Command) -> Ran {
    let quoted = |word: &std::ffi::OsStr| format!("'{}'", word.to_str().unwrap().replace('\'', r"'\''"));
    let words: Vec<_> = [command.get_program()].into_iter().chain(command.get_args()).map(quoted).collect();
    let mut ran = finish(node.net.output(Command::new("script").args(["-qec", &words.join(" "), "/dev/null"])));
    ran.out = ran.out.replace("\r\n", "\n");
    for code in ["0", "1", "2", "3", "4", "31", "32", "33", "34"] {
        ran.out = ran.out.replace(&format!("\x1b[{code}m"), "");
    }
    ran
}

/// A terminal shows what was just asked for; elsewhere a line may be read later.
#[test]
fn a_warning_or_an_error_on_a_terminal_has_no_time_and_elsewhere_one() {
    let node = damaged();
    for (config, args, code, said) in [
        ("rules: 7", &["--dry-run"][..], 78, "rules: invalid type"),
        ("routes: [{to: 10.9.0.0/16, dev: eth9}]", &["--output", "json"], 1, "eth9"),
    ] {
        node.config(config);
        let lines = |ran: Ran| -> Vec<String> {
            let ran = ran.expect(code);
            let text = ran.out + &ran.err;
            let is_error = |line: &&str| [" WARN ", "ERROR "].iter().any(|level| line.contains(level));
            text.lines().filter(is_error).map(str::to_owned).collect()
        };
        let mut command = node.command(&[]);
        command.args(args);
        let shown = lines(on_a_terminal(&node, &command));
        let begins = |line: &String| [" WARN ", "ERROR "].iter().any(|level| line.starts_with(level));
        assert!(!shown.is_empty() && shown.iter().all(begins), "{args:?}: {shown:?}");
        assert!(shown.iter().any(|line| line.contains(said)), "{args:?}: {shown:?}");
        let kept = lines(finish(node.net.output(&mut command)));
        assert!(!kept.is_empty() && kept.iter().all(|line| line.starts_with("20")), "{args:?}: {kept:?}");
    }
}

fn shows_no_harm(node: &Worker, what: &str, args: &[&str]) {
    let ran = node.fix(args);
    assert!(!ran.err.contains("panicked"), "{what}: {ran:?}");
    is_harmless(what, &ran);
    let seen = on_a_terminal(node, &node.command(args));
    is_harmless(&format!("{what}, on a terminal"), &seen);
}

const LOOKS: [&[&str]; 8] = [
    &["--dry-run", "--verbose"],
    &["--dry-run", "--output", "json"],
    &["--dry-run", "--output", "npd"],
    &["status"],
    &["status", "--output", "json"],
    &["--verbose"],
    &["--output", "json"],
    &["--quiet"],
];

#[test]
fn files_of_a_state_directory_do_nothing_to_a_terminal() {
    let node = damaged();
    node.fix(&[]).expect(0);
    let state = node.directory.path().join("state");
    let bad = serde_json::Value::from(BAD).to_string();
    let raw = format!("\"{BAD}\"");
    for file in ["state.json", "ledger.json"] {
        let good = fs::read_to_string(state.join(file)).ok();
        for text in [
            format!("{{\"version\":1,\"boot_id\":\"x\",\"netns\":1,\"memory\":{{{bad}:1}}}}"),
            format!("{{\"version\":{bad}}}"),
            format!("{{{bad}:1}}"),
            raw.clone(),
            format!("{{{raw}:1}}"),
        ] {
            for args in LOOKS {
                fs::write(state.join(file), &text).unwrap();
                shows_no_harm(&node, &format!("{file}: {text}"), args);
            }
        }
        match good {
            Some(good) => fs::write(state.join(file), good).unwrap(),
            None => fs::remove_file(state.join(file)).unwrap(),
        }
    }
}

#[test]
fn names_of_directories_do_nothing_to_a_terminal() {
    let node = damaged();
    let odd = node.directory.path().join(BAD);
    fs::create_dir(&odd).unwrap();
    let odd = odd.to_str().unwrap();
    // None of these is a directory that can be written.
    let file = format!("{odd}/file");
    fs::write(&file, "no JSON, no YAML: [").unwrap();
    node.config(&format!("metrics: {{textfile: {}}}", serde_json::Value::from(file.as_str())));
    for args in LOOKS {
        damage(&node);
        shows_no_harm(&node, "metrics.textfile", args);
    }
    node.config("");
    for args in [
        &["--state-dir", &file][..],
        &["--config", &file, "--dry-run"],
        &["--config", &file, "--dry-run", "--output", "npd"],
        &["--config", &format!("{file}.missing"), "check-config"],
        &["--config", odd, "check-config"],
        &["doctor", "--root", &file],
        &["doctor", "--write", &file],
        &["doctor", "--root", odd, "--output", "json"],
        &[BAD],
        &[&format!("--{BAD}")],
        &["--output", BAD],
        &["explain", BAD, BAD],
    ] {
        let usual = node.command(&[]);
        let mut command = Command::new(usual.get_program());
        // Without the usual options, some of which are among these.
        command.env_remove("JOURNAL_STREAM").args(args);
        is_harmless(&format!("{args:?}"), &finish(node.net.output(&mut command)));
        is_harmless(&format!("{args:?}, on a terminal"), &on_a_terminal(&node, &command));
    }
}

#[test]
fn a_configuration_does_nothing_to_a_terminal() {
    let node = damaged();
    let bad = serde_json::Value::from(BAD).to_string();
    for sections in [
        format!("{bad}: 1"),
        format!("rp_filter: {{{bad}: 1}}"),
        format!("rp_filter: {{mode: {bad}}}"),
        format!("rp_filter: {{interfaces: {bad}}}"),
        format!("rp_filter: {{interfaces: {}}}", serde_json::Value::from(format!("({BAD}"))),
        format!("rules: [{{priority: {bad}}}]"),
        format!("routes: [{{to: {bad}, dev: {bad}}}]"),
        format!("routes: [{{to: 10.9.0.0/16, dev: {}}}]", serde_json::Value::from("\u{202e}\u{9b}2J")),
        format!("sysctls: [{{key: {bad}, value: {bad}}}]"),
        format!("sysctls: [{{key: {}, value: {bad}}}]", serde_json::Value::from(format!("net.ipv4.{BAD}"))),
        format!("kube_proxy: {{crictl: {bad}}}"),
        format!("kube_proxy: {{labels: {{{bad}: {bad}}}, namespace: {bad}, endpoint: {bad}}}"),
        format!("bridges: [{{name: {bad}, addresses: [{bad}]}}]"),
        format!("masquerade: [{{source: {bad}}}, {{source: 10.0.0.0/8, out: {bad}}}]"),
        format!("namespaces: [{{match: {bad}, older_than: {bad}}}]"),
        format!("metrics: {{textfile: {bad}}}"),
        format!("{BAD}: 1"),
        format!("rules: [{BAD}]"),
        format!("rules: !{BAD} x"),
        "rules: *\u{9b}x".into(),
    ] {
        node.config(&sections);
        for args in [&["check-config"][..], &["check-config", "--output", "json"]].iter().chain(&LOOKS) {
            shows_no_harm(&node, &sections, args);
        }
    }
}

#[test]
fn names_of_others_do_nothing_to_a_terminal() {
    let node = damaged();
    // An interface's name holds no slash and no space, and all else.
    let name = "e\x1b[2J\x07\u{202e}";
    node.net.ip(&format!("link add {name} type veth peer name p9"));
    node.net.ip(&format!("link set {name} up"));
    node.net.ip("link set p9 up");
    node.net.ip(&format!("addr add 10.7.0.1/24 dev {name}"));
    node.net.ip(&format!("route add 10.7.0.99 dev {name} table 7"));
    node.net.ip("rule add from 10.7.0.1 table 7");
    node.config(
        "rp_filter: {interfaces: '^e'}\nroutes: [{to: 10.99.0.0/16, via: 10.7.0.254}, {to: 10.98.0.0/16, via: 10.55.0.1}]",
    );
    let below = node.directory.path().join("root");
    let sysctl = below.join("etc/sysctl.d");
    let networkd = below.join("etc/systemd/network");
    for directory in [&sysctl, &networkd] {
        fs::create_dir_all(directory).unwrap();
    }
    let file = |extension: &str| format!("50-{}.{extension}", BAD.replace('\r', ""));
    fs::write(
        sysctl.join(file("conf")),
        format!(
            "net/ipv4/conf/{name}/rp_filter = 1\nnet.ipv4.conf.*.rp_filter=1{BAD}\nnet.ipv4.conf.eth*.rp_filter = 1\n"
        ),
    )
    .unwrap();
    fs::write(networkd.join(file("network")), format!("[Match]\nName={BAD}\n[{BAD}]\n{BAD}={BAD}\n")).unwrap();
    fs::write(below.join("etc/systemd/networkd.conf"), format!("[Network]\nManageForeignRoutes={BAD}\n")).unwrap();
    fs::create_dir_all(sysctl.join(file("x.conf"))).unwrap();
    let root = below.to_str().unwrap();
    let odd = node.directory.path().join(BAD);
    let write = odd.to_str().unwrap();
    let doctors: [&[&str]; 3] = [
        &["doctor", "--root", root],
        &["doctor", "--root", root, "--output", "json"],
        &["doctor", "--root", root, "--write", write],
    ];
    let explains: [&[&str]; 3] = [
        &["explain", "10.7.0.1", "192.0.2.1"],
        &["explain", "10.7.0.1", "10.7.0.3", "--output", "json"],
        &["explain", "10.0.1.100", "10.7.0.3"],
    ];
    for args in LOOKS.iter().chain(&doctors).chain(&explains) {
        shows_no_harm(&node, &format!("{args:?}"), args);
    }
}

/// Programs that are started may say anything, and so may what they are asked about.
#[test]
fn programs_do_nothing_to_a_terminal() {
    let node = damaged();
    node.fix(&[]).expect(0);
    let bin = node.directory.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let mut heard = 0;
    for (what, script) in [
        ("stderr", "cat \"$0.says\" >&2; exit 1"),
        ("stdout", "cat \"$0.says\"; exit 1"),
        ("no JSON", "cat \"$0.says\"; cat \"$0.says\" >&2"),
        ("killed", "cat \"$0.says\" >&2; kill -9 $$"),
    ] {
        for program in ["crictl", "nft", "systemctl"] {
            let path = bin.join(program);
            fs::write(bin.join(format!("{program}.says")), BAD).unwrap();
            fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
            Command::new("chmod").args(["+x"]).arg(&path).status().unwrap();
        }
        node.config(&format!(
            "kube_proxy: {{crictl: {}, settle: 0s, min_interval: 0s}}\nmasquerade: [{{source: 10.0.0.0/8}}]",
            bin.join("crictl").display()
        ));
        for args in LOOKS.iter().chain(&[&["doctor"][..]]) {
            damage(&node);
            // Now kube-proxy is to be restarted.
            node.net.output(Command::new("ip").args(["link", "del", "eth5"]));
            node.uplink(5);
            let mut command = node.command(args);
            command.env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()));
            let ran = finish(node.net.output(&mut command));
            is_harmless(&format!("{what}: {args:?}"), &ran);
            heard += usize::from(format!("{}{}", ran.out, ran.err).contains("owned"));
        }
    }
    assert!(heard > 4, "what programs say is shown in {heard} cases only");
}

#[test]
fn many_changes_show_their_progress_on_a_terminal_that_can() {
    let shown = |term: &str, args: &[&str]| {
        let node = Worker::new().with_loose_rp_filter();
        node.config("kube_proxy: {mode: off}\naddresses: [{dev: lo, address: 10.7.0.0/21, each: true}]");
        let mut command = node.command(args);
        let line = [command.get_program()].into_iter().chain(command.get_args()).map(|it| it.to_str().unwrap());
        let line = line.collect::<Vec<_>>().join(" ");
        command = Command::new("script");
        let ran = finish(node.net.output(command.args(["-qec", &line, "/dev/null"]).env("TERM", term)));
        ran.expect(0).out
    };
    let out = shown("xterm", &["--quiet"]);
    assert!(!out.contains("change 1000 of"), "{out:?}");
    let out = shown("xterm", &[]);
    let steps: Vec<&str> = out.split("\r\x1b[K").collect();
    assert!(steps.contains(&"addresses: change 1000 of 2048"), "{steps:?}");
    // Nothing of it is left: what follows begins on a line that was removed.
    assert!(!steps.last().unwrap().contains("of 2048"), "{steps:?}");
    assert!(!shown("dumb", &[]).contains("change 1000 of"));
}
