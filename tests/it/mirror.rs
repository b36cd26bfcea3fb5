//! With NODE_FIXER_MIRROR set, each look of a test at a node (`--dry-run`, `doctor`, `explain`, `status`) is taken twice:
//! live, and from a capture of the node, in another network namespace. Both have to say the same, byte for byte.

use std::ffi::OsString;
use std::process::{Command, Output};

use regex::Regex;

use crate::kit::{Netns, node_fixer};

/// Compares what a command said with what it says of the captured node.
pub fn check(net: &Netns, command: &Command, live: &Output) {
    if std::env::var_os("NODE_FIXER_MIRROR").is_none() || command.get_program() != env!("CARGO_BIN_EXE_node-fixer") {
        return;
    }
    let args: Vec<OsString> = command.get_args().map(Into::into).collect();
    let has = |word: &str| args.iter().any(|arg| arg == word);
    let looks = ["--dry-run", "doctor", "explain", "status"].iter().any(|word| has(word));
    let may_be = !["--write", "--node", "capture", "--help"].iter().any(|word| has(word));
    if looks && may_be && !matches!(live.status.code(), Some(64 | 78)) {
        compare(net, command, args, live);
    }
}

/// Whether a command says of the captured node what it says of the node itself.
pub fn same(net: &Netns, command: &mut Command) {
    let live = net.enter(|| command.output()).unwrap();
    let args = command.get_args().map(Into::into).collect();
    compare(net, command, args, &live);
}

fn compare(net: &Netns, command: &Command, args: Vec<OsString>, live: &Output) {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("node.json");
    let (mut of_node, mut root, mut asked, mut args) = (Vec::new(), Vec::new(), Vec::new(), args.into_iter());
    while let Some(arg) = args.next() {
        match arg.to_str() {
            Some("--config" | "--state-dir") => of_node.extend([arg, args.next().unwrap()]),
            Some("--root") => root.extend([arg, args.next().unwrap()]),
            _ => asked.push(arg),
        }
    }
    let like = |args: Vec<OsString>| {
        let mut like = node_fixer();
        like.args(args);
        for (name, value) in command.get_envs() {
            value.map(|value| like.env(name, value));
        }
        like.current_dir(command.get_current_dir().unwrap_or(std::path::Path::new(".")));
        like
    };
    let captured = net.enter(|| like(of_node).arg("capture").args(root).arg(&file).output()).unwrap();
    assert!(captured.status.success(), "{captured:?}");
    let mut answer = like(asked);
    let mirrored = Netns::new().enter(|| answer.arg("--node").arg(&file).output()).unwrap();
    let (live, mirrored) = ((live.status.code(), said(&live.stdout)), (mirrored.status.code(), said(&mirrored.stdout)));
    if live != mirrored && !live.1.contains("DISAGREES") && !live.1.contains("martians_growing") {
        let kept = std::env::temp_dir().join(format!("mirror-{}.json", std::process::id()));
        std::fs::copy(&file, &kept).unwrap();
        panic!("{command:?} ({})\nlive: {live:?}\nmirror: {mirrored:?}", kept.display());
    }
}

/// Without what only the kernel itself can say, and without how much time has passed since.
fn said(out: &[u8]) -> String {
    let out = String::from_utf8_lossy(out);
    let kernel = Regex::new(r#"(?m)^  kernel: .*\n|"kernel":(null|\{.*?\})|\d+ ?(s|min) ago"#).unwrap();
    kernel.replace_all(&out, "").into_owned()
}
