//! Each command of the pages runs: here, on a node in namespaces, or in the test that is named.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use super::{Page, pages, shows};
use crate::kit::{self, Netns, Worker, finish};

/// Commands that cannot run here, by how they begin; where they, or their like, run instead; and why.
const ELSEWHERE: &[(&str, &str, &str, &str)] = &[
    ("cargo run --locked -- --dry-run", ".ci/run", "cargo run --locked -- --dry-run", "builds"),
    ("sudo apt install", "tests/fresh", "sudo apt install", "installs; runs in a fresh root"),
    ("tests/run", ".ci/run", "tests/run --locked", "runs this"),
    ("packaging/build", "tests/run", "packaging/build", "builds"),
    ("packaging/image", "tests/run", "packaging/image", "reads what the above built"),
    ("SIGN=", "packaging/release", "SIGN='minisign", "builds for both architectures; by hand, for a release"),
    ("GPG_KEY=", "tests/systemd/fleet.py", "packaging/repository", "reads what the above built"),
    ("tar -xzf", "tests/systemd/run", "def the_archive_is_all_that_it_needs", "installs"),
    ("udevadm control", "tests/systemd/run", "def the_archive_is_all_that_it_needs", "needs udev"),
    ("install -D -m 644 node-fixer-0.1.0", "tests/systemd/run", "def a_system_extension_starts_the_timer", "installs"),
    ("systemd-sysext", "tests/systemd/run", "def a_system_extension_starts_the_timer", "needs systemd"),
    ("systemctl restart multi-user", "tests/systemd/run", "def a_system_extension_starts_the_timer", "needs systemd"),
    ("packaging/reproducible", ".ci/run", "packaging/reproducible", "builds"),
    (".ci/run", ".ci/run", "tests/run", "runs this"),
    (
        "tests/acceptance",
        "tests/acceptance",
        "tests/systemd/run a_day_of_runs",
        "takes half an hour; by hand, before a release",
    ),
    (
        "NODE_FIXER_TEST_SUITE=trixie",
        "tests/systemd/rootfs",
        "NODE_FIXER_TEST_SUITE",
        "the same as tests/systemd/run, on another root",
    ),
    ("bench/run", "bench/scale", "bench/run, which knows how", "measures times, on an idle machine"),
    ("mdbook build", ".ci/run", "mdbook build", "needs mdbook"),
    ("promtool test rules", "tests/it/metrics.rs", "\"test\", \"rules\"", "needs promtool"),
    ("dpkg -i", "tests/systemd/run", "installation(\"dpkg -i\")", "installs"),
    ("rpm -i", "tests/systemd/run", "installation(\"rpm -i\")", "installs"),
    ("dpkg --purge", "tests/systemd/run", "installation(\"dpkg --purge\")", "removes"),
    ("node-fixer --config /usr/share/", "tests/systemd/run", "installation(\"dpkg --purge\")", "needs the package"),
    (
        "cd /usr/share/doc/node-fixer/examples",
        "tests/systemd/run",
        "def stale_namespaces_go_with_the_drop_in",
        "needs the package",
    ),
    (
        "install -D -m 644 node-fixer-namespaces.conf",
        "tests/systemd/run",
        "def stale_namespaces_go_with_the_drop_in",
        "needs the package",
    ),
    ("systemctl daemon-reload", "tests/systemd/run", "def stale_namespaces_go_with_the_drop_in", "needs systemd"),
    ("systemctl try-restart", "tests/systemd/run", "def its_drop_ins_are_those_of_the_pages", "needs systemd"),
    ("systemctl enable", "tests/systemd/run", "installation(\"dpkg -i\")", "needs systemd"),
    ("systemctl list-timers", "tests/systemd/run", "installation(\"dpkg -i\")", "needs systemd"),
    ("systemctl start", "tests/systemd/run", "installation(\"journalctl -u\")", "needs systemd"),
    ("systemctl stop", "tests/systemd/run", "installation(\"dpkg --purge\")", "needs systemd"),
    ("systemctl disable", "tests/systemd/run", "systemctl disable --now {TIMER}", "needs systemd"),
    ("systemctl status", "tests/systemd/run", "def every_command_for_the_journal", "needs systemd"),
    ("systemd-analyze security", "tests/systemd/run", "systemd-analyze security", "needs systemd"),
    ("journalctl", "tests/systemd/run", "def every_command_for_the_journal", "needs systemd"),
    ("mkdir -p /etc/node-fixer", "tests/systemd/run", "commands_of(\"metrics.md\"", "needs systemd"),
    ("install -D -m 644 /etc/", "tests/systemd/run", "commands_of(\"metrics.md\"", "needs systemd"),
    ("cat > /etc/", "tests/systemd/run", "commands_of(\"metrics.md\"", "needs systemd"),
    ("ip addr show proto", "tests/systemd/run", "ip addr show proto 171", "needs a newer iproute2 than Debian 12 has"),
    ("unshare --user", "tests/it/docs/commands.rs", "fn two_uplinks_step_by_step", "the namespace is the test's"),
    ("jq ", "tests/fleet", "by_jq", "needs jq"),
    ("node-fixer watch --every", "tests/it/watch.rs", "--every", "runs until it is stopped"),
    ("cargo test", ".ci/run", "tests/run --locked", "tests/run is all of them"),
    ("cargo run -- --dry-run", ".ci/run", "cargo run --locked -- --dry-run", "builds"),
    ("cargo fmt", ".ci/run", "cargo clippy --all-targets", "builds"),
    ("RUSTDOCFLAGS=", ".ci/run", "cargo doc --no-deps --document-private-items", "builds"),
    ("UPDATE_DOCS=1", "tests/it/docs/mod.rs", "UPDATE_DOCS", "runs this"),
    ("tests/systemd/run what_a_tick_costs", "tests/systemd/run", "def what_a_tick_costs", "measures"),
    ("exit", "tests/it/docs/commands.rs", "fn two_uplinks_step_by_step", "ends the shell"),
];

/// What the page says to type; not the scripts that node-fixer prints.
fn typed(page: &Page) -> impl Iterator<Item = (usize, String)> {
    let blocks = page.blocks().into_iter().filter(|block| block.language == "sh" && !block.text.starts_with("#!"));
    blocks.flat_map(|block| {
        let mut commands: Vec<(usize, String)> = Vec::new();
        let mut here: Option<String> = None;
        for (at, line) in block.text.lines().enumerate() {
            match (&here, commands.last_mut()) {
                (Some(end), Some((_, command))) => {
                    *command += &format!("\n{line}");
                    if line == end {
                        here = None;
                    }
                }
                _ => {
                    here = line.split_once("<<'").map(|(_, end)| end.trim_end_matches('\'').to_owned());
                    commands.push((block.line + at, line.trim().to_owned()));
                }
            }
        }
        commands
    })
}

/// A directory with what a checkout has and `node-fixer` on PATH, for this node.
struct Shell {
    directory: tempfile::TempDir,
}

impl Shell {
    fn new(preset: &str) -> Shell {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        for entry in fs::read_dir(env!("CARGO_MANIFEST_DIR")).unwrap().map(Result::unwrap) {
            if entry.file_name() != "target" && entry.file_name() != ".git" {
                symlink(entry.path(), at.join(entry.file_name())).unwrap();
            }
        }
        let program = env!("CARGO_BIN_EXE_node-fixer");
        let wrapper = format!(
            "#!/bin/sh\ncase \" $* \" in\n*' --config '*) exec {program} \"$@\" ;;\n*) exec {program} {preset} \"$@\" ;;\nesac\n"
        );
        fs::create_dir_all(at.join("target/debug")).unwrap();
        kit::script(&at.join("target/debug/node-fixer"), &wrapper);
        Shell { directory }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn command(&self, script: &str) -> Command {
        let path = format!("{}/target/debug:{}:/usr/sbin:/sbin", self.path().display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("timeout");
        command
            .args(["20", "sh", "-c", script])
            .current_dir(self.path())
            .env("PATH", path)
            .env_remove("JOURNAL_STREAM");
        command
    }
}

#[test]
fn each_command_runs_here_or_in_the_test_that_is_named() {
    let node = Worker::new().with_pod(100).with_loose_rp_filter();
    let config = node.config(
        "rules: [{priority: 900, from: 10.9.0.9, table: 900}]\nroutes: [{to: default, via: 10.0.1.1, table: 900}]\n\
         bridges: [{name: br-docs, addresses: [10.99.0.1/24]}]\nmasquerade: [{source: 10.99.0.0/24, except_out: br-docs}]\n\
         kube_proxy: {mode: off}",
    );
    node.fix(&[]).expect(0);
    let state = node.directory.path().join("state");
    let shell = Shell::new(&format!("--config {} --state-dir {}", config.display(), state.display()));
    let mut used = vec![false; ELSEWHERE.len()];
    let (mut ran, mut failed) = (0, Vec::new());
    for page in pages().iter().filter(|page| !page.path.ends_with("two-uplinks.md")) {
        for (line, command) in typed(page).filter(|(_, command)| !command.is_empty() && !command.starts_with('#')) {
            if let Some(at) = ELSEWHERE.iter().position(|(begin, ..)| command.starts_with(begin)) {
                used[at] = true;
                continue;
            }
            // It ends by Ctrl-C.
            let endless = command.starts_with("ip monitor");
            let script = if endless { format!("timeout 0.2 {command}") } else { command.clone() };
            let said = finish(node.net.output(&mut shell.command(&script)));
            let finds =
                command.starts_with("node-fixer") && ["doctor", "explain"].iter().any(|it| command.contains(it));
            if !(said.code == 0 || finds && said.code == 1 || endless && said.code == 124) {
                failed.push(format!("{}:{line}: {command}\n{said:?}", page.name()));
            }
            ran += 1;
        }
    }
    assert!(failed.is_empty(), "commands that fail, or are not in ELSEWHERE:\n{}", failed.join("\n"));
    assert!(ran > 20, "{ran}");
    // Those of the page that is a test of its own.
    let own = ["unshare --user", "exit"];
    let unused = ELSEWHERE.iter().zip(used).filter(|((begin, ..), used)| !used && !own.contains(begin));
    let unused: Vec<_> = unused.map(|((begin, ..), _)| begin).collect();
    assert!(unused.is_empty(), "no page has: {unused:?}");
    for (begin, file, what, _) in ELSEWHERE {
        assert!(fs::read_to_string(file).unwrap().contains(what), "{begin}: {file} has no {what:?} any more");
    }
}

/// The page from its beginning to its end, in one shell; each output that it shows is that of the block before.
#[test]
fn two_uplinks_step_by_step() {
    let path = "docs/two-uplinks.md";
    let (net, shell) = (Netns::new(), Shell::new("--config config/node-fixer.yaml"));
    let demo = shell.path().join("demo").display().to_string();
    let page = Page::read(path);
    let blocks = page.blocks();
    let (mut script, mut shown) = (String::from("exec 2> stderr\n"), Vec::new());
    for (at, block) in blocks.iter().enumerate().filter(|(_, block)| block.language == "sh") {
        if block.text.starts_with("unshare ") {
            continue;
        }
        let commands = block.text.replace("/tmp/demo", &demo).replace("exit\n", "");
        script += &format!("{{\n{commands}}} > out.{at}; echo $? >> codes\n");
        if block.text.contains("ip address add") {
            // The kernel sees carriers up to a second later.
            script += "while ip route show table all | grep -q linkdown || ip link | grep -q 'NO-CARRIER\\|state DOWN'; do sleep 0.05; done\n";
        }
        if blocks.get(at + 1).is_some_and(|next| next.language == "text") {
            shown.push((at, block));
        }
    }
    let ran = finish(net.output(&mut shell.command(&script)));
    assert_eq!(ran.code, 0, "{ran:?} {:?}", fs::read_to_string(shell.path().join("stderr")));
    assert!(shown.len() >= 6);
    let age = regex::Regex::new(r"\b\d+s ago").unwrap();
    for (at, block) in shown {
        let out = fs::read_to_string(shell.path().join(format!("out.{at}"))).unwrap();
        let out = out.replace(&demo, "/tmp/demo");
        let out = age.replace_all(&out, "5s ago").into_owned();
        let heading = heading_of(&page, block.line);
        shows(path, &[heading, &block.text, "```"], &out);
    }
    let codes = fs::read_to_string(shell.path().join("codes")).unwrap();
    assert!(codes.lines().all(|code| code == "0" || code == "1"), "{codes}");
    assert_eq!(
        codes.lines().filter(|code| *code == "1").count(),
        2,
        "explain and doctor each find what is wrong: {codes}"
    );
    assert!(!Path::new(&demo).exists());
}

/// The heading that a line is below.
fn heading_of(page: &Page, line: usize) -> &str {
    page.text.lines().take(line).filter(|line| line.starts_with("## ")).last().unwrap()
}
