//! Completions, as a person gets them: a shell in a terminal, some letters, and TAB.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::kit::finish;

/// What makes the documents of the packages.
#[path = "../../examples/documents.rs"]
#[allow(dead_code)]
mod documents;

/// The completions of the packages.
fn completions() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    documents::completions(directory.path()).unwrap();
    let path = directory.path().to_owned();
    (directory, path)
}

#[test]
fn the_manual_says_what_each_command_requires() {
    let page = documents::program().unwrap();
    // As roff, without its fonts and escapes.
    let plain = String::from_utf8(page).unwrap();
    let plain = ["\\fB", "\\fI", "\\fR", "\\"].iter().fold(plain, |text, font| text.replace(font, ""));
    let (_, synopsis) = plain.split_once(".SH SYNOPSIS\n").unwrap();
    let (synopsis, rest) = synopsis.split_once(".SH DESCRIPTION").unwrap();
    for form in [
        "node-fixer [--dry-run]",
        "node-fixer explain SRC DST [--iif DEV]",
        "node-fixer explain --pods [",
        "node-fixer capture [FILE]",
        "node-fixer doctor [--root DIR] [--write DIR] [FILE...]",
        "node-fixer watch [--every DURATION]",
        "node-fixer status [--output text|json]",
    ] {
        assert!(synopsis.contains(form), "{form}: {synopsis}");
    }
    for section in ["COMMANDS", "\"EXIT STATUS\"", "EXAMPLES", "ENVIRONMENT", "FILES", "\"SEE ALSO\""] {
        assert!(rest.contains(&format!(".SH {section}")), "{section}");
    }
}

/// What a person types, and the words that node-fixer is called with after TAB.
const TYPED: [(&str, &str); 9] = [
    ("chec", "check-config"),
    ("check-config --conf", "check-config --config"),
    ("doctor --wri", "doctor --write"),
    ("doctor --stat", "doctor --state-dir"),
    ("expl", "explain"),
    ("stat", "status"),
    ("status --output j", "status --output json"),
    ("watch --ev", "watch --every"),
    ("--detailed", "--detailed-exitcode"),
];

/// Types each of these into a shell with TAB at its end, where node-fixer is a function that shows its arguments.
fn types_tab(shell: &str, startup: &str, function: &str) {
    for (typed, completed) in TYPED {
        let mut terminal = Command::new("script")
            .args(["-qec", shell, "/dev/null"])
            .env("TERM", "dumb")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = format!("{startup}\n{function}\nnode-fixer {typed}\t\nexit\n");
        terminal.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let shown = String::from_utf8_lossy(&terminal.wait_with_output().unwrap().stdout).into_owned();
        assert!(shown.contains(&format!("CALLED<{completed}>")), "{shell}: {typed}: {shown}");
    }
}

fn function() -> &'static str {
    // In two words, so that the echo of the input is not the answer.
    r#"node-fixer() { printf 'CALL''ED<%s>\n' "$*"; }"#
}

fn source(directory: &Path, file: &str) -> String {
    format!(". {}", directory.join(file).display())
}

#[test]
fn bash_completes_every_command() {
    let (_directory, path) = completions();
    types_tab("bash --norc --noprofile -i", &source(&path, "node-fixer.bash"), function());
}

#[test]
#[ignore = "needs zsh; tests/run runs it"]
fn zsh_completes_every_command() {
    let (_directory, path) = completions();
    let startup = format!("fpath=({} $fpath); autoload -Uz compinit; compinit -u -D", path.display());
    types_tab("zsh -f -i", &startup, function());
}

#[test]
#[ignore = "needs fish; tests/run runs it"]
fn fish_completes_every_command() {
    // Newer versions of fish ask the terminal questions, which no script(1) answers: its own command types TAB.
    let (_directory, path) = completions();
    for (typed, completed) in TYPED {
        let script = format!("source {}; complete -C 'node-fixer {typed}'", path.join("node-fixer.fish").display());
        let shown = finish(Command::new("fish").args(["--no-config", "-c", &script]).output().unwrap()).expect(0).out;
        let last = completed.rsplit(' ').next().unwrap();
        assert!(shown.lines().any(|line| line.split('\t').next() == Some(last)), "{typed}: {shown}");
    }
}
