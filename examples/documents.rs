//! Writes what packages ship beside the binary, from the same sources as --help and `node-fixer schema`:
//!
//!     cargo run --example documents -- DIRECTORY
//!
//! The man pages node-fixer(8) and node-fixer.yaml(5), and completions for bash, zsh and fish.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{Arg, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use node_fixer::cli::Cli;
use node_fixer::desired::{DEFAULT_YAML, SCHEMA};
use roff::{Inline, Roff, bold, italic, line_break, roman};
use serde_json::{Map, Value};

fn main() -> anyhow::Result<()> {
    let directory = std::env::args_os().nth(1).map(PathBuf::from).context("name a directory")?;
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("node-fixer.8"), program()?)?;
    fs::write(directory.join("node-fixer.yaml.5"), configuration()?)?;
    completions(&directory)
}

fn completions(directory: &Path) -> anyhow::Result<()> {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Cli::command(), "node-fixer", directory)?;
    }
    Ok(())
}

/// node-fixer(8): what --help says, and what a person looks for in a manual beyond that.
fn program() -> anyhow::Result<Vec<u8>> {
    let mut page = Vec::new();
    let command = Cli::command();
    let version = version();
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    let codes = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let mut command = command.after_help("");
    command.build();
    let mut text = Roff::new();
    text.control("TH", ["node-fixer", "8", "", version.as_str(), "System administration"]);
    section(&mut text, "NAME", &[roman("node-fixer - keeps the network of a Linux worker node as declared")]);
    text.to_writer(&mut page)?;
    let man = Man::new(command.clone());
    man.render_synopsis_section(&mut page)?;

    let mut text = Roff::new();
    section(&mut text, "DESCRIPTION", &[roman(about)]);
    paragraph(
        &mut text,
        &[
            roman("Without a command it makes one run. It is meant to be started every minute by "),
            bold("node-fixer.timer"),
            roman("; nothing stays resident, and a run that finds nothing to do is silent."),
        ],
    );
    text.to_writer(&mut page)?;
    man.render_options_section(&mut page)?;

    let mut text = Roff::new();
    text.control("SH", ["COMMANDS"]);
    for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
        let own = || command.get_arguments().filter(|arg| !arg.is_global_set() && arg.get_id() != "help");
        let written = |arg: &Arg| {
            let value = arg.get_value_names().and_then(<[_]>::first).map(ToString::to_string).unwrap_or_default();
            arg.get_long().map_or(value.clone(), |long| format!("[--{long} {value}]"))
        };
        let usage = own().fold(String::new(), |usage, arg| usage + " " + &written(arg));
        item(&mut text, &[bold(command.get_name()), roman(usage)]);
        text.text([roman(command.get_about().map(ToString::to_string).unwrap_or_default() + ".")]);
        for arg in own() {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            text.text([roman(format!("{}: {help}.", written(arg).trim_matches(['[', ']'])))]);
        }
        let codes = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        let codes = codes.lines().filter_map(|line| line.strip_prefix("  ")?.split_once(' '));
        let codes: Vec<_> = codes.map(|(code, meaning)| format!("{code} {}", meaning.trim())).collect();
        if !codes.is_empty() {
            text.text([roman(format!("Exit codes: {}.", codes.join("; ")))]);
        }
    }
    text.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in codes.lines().skip(1).filter_map(|line| line.trim().split_once(' ')) {
        item(&mut text, &[bold(code)]);
        text.text([roman(meaning.trim())]);
    }
    text.control("SH", ["FILES"]);
    for (file, what) in [
        (
            "/etc/node-fixer/config.yaml",
            "Configuration; see node-fixer.yaml(5). Without it the built-in default applies.",
        ),
        ("/etc/node-fixer/config.d/*.yaml", "Merged over it in the order of their names."),
        ("/run/node-fixer", "The lock, and state that is valid until the next boot."),
        ("/var/lib/node-fixer", "State that outlives a reboot; counters, if metrics are on."),
    ] {
        item(&mut text, &[italic(file)]);
        text.text([roman(what)]);
    }
    text.control("SH", ["NOTES"]);
    text.text([roman(
        "What node-fixer adds has a protocol number: 170 for routes that repair a table, 171 for what is declared.",
    )]);
    example(
        &mut text,
        "ip route show table all proto 170\nip route show table all proto 171\nip rule | grep 'proto 171'\n",
    );
    text.control("SH", ["SEE ALSO"]);
    text.text([
        bold("node-fixer.yaml"),
        roman("(5), "),
        bold("ip-route"),
        roman("(8), "),
        bold("ip-rule"),
        roman("(8), "),
    ]);
    text.text([bold("systemd.timer"), roman("(5)")]);
    text.to_writer(&mut page)?;
    Ok(page)
}

/// node-fixer.yaml(5): the keys as the schema describes them, then the commented default.
fn configuration() -> anyhow::Result<Vec<u8>> {
    let schema: Value = serde_json::from_str(SCHEMA)?;
    let version = version();
    let mut text = Roff::new();
    text.control("TH", ["node-fixer.yaml", "5", "", version.as_str(), "File formats"]);
    section(&mut text, "NAME", &[roman("node-fixer.yaml - configuration of node-fixer")]);
    section(&mut text, "SYNOPSIS", &[italic("/etc/node-fixer/config.yaml"), line_break()]);
    text.text([italic("/etc/node-fixer/config.d/*.yaml")]);
    section(
        &mut text,
        "DESCRIPTION",
        &[
            roman(
                "YAML. The drop-ins beside the main file are merged over it in the order of their names: mappings merge; ",
            ),
            roman("lists, single values and kube_proxy.labels replace. A key that does not exist is an error. "),
            bold("node-fixer check-config"),
            roman(" prints the merged result and where each value came from."),
        ],
    );
    let schema = Schema(&schema);
    for (key, value) in schema.properties(schema.0) {
        text.control("SH", [key.to_uppercase().as_str()]);
        text.text([bold(key.as_str()), roman(": "), roman(schema.sentence(value))]);
        let entry = schema.resolve(value);
        let entry = entry.get("items").map_or(entry, |items| schema.resolve(items));
        for (name, value) in schema.properties(entry) {
            item(&mut text, &[bold(name.as_str())]);
            text.text([roman(schema.sentence(value))]);
        }
    }
    text.control("SH", ["DEFAULT"]);
    text.text([roman("This is built in:")]);
    example(&mut text, DEFAULT_YAML);
    text.control("SH", ["SEE ALSO"]);
    text.text([bold("node-fixer"), roman("(8)")]);
    let mut page = Vec::new();
    text.to_writer(&mut page)?;
    Ok(page)
}

/// A JSON Schema with its definitions.
struct Schema<'a>(&'a Value);

impl<'a> Schema<'a> {
    fn resolve(&self, value: &'a Value) -> &'a Value {
        let target = value.get("$ref").and_then(Value::as_str).and_then(|path| path.strip_prefix('#'));
        target.and_then(|path| self.0.pointer(path)).unwrap_or(value)
    }

    fn properties(&self, value: &'a Value) -> impl Iterator<Item = (&'a String, &'a Value)> {
        self.resolve(value).get("properties").and_then(Value::as_object).into_iter().flat_map(Map::iter)
    }

    /// Description, choices and default of a key.
    fn sentence(&self, value: &'a Value) -> String {
        let mut sentence = value.get("description").and_then(Value::as_str).unwrap_or_default().to_owned();
        let one = self.resolve(value);
        let one = one.get("items").map_or(one, |items| self.resolve(items));
        let choices: Vec<_> = one.get("oneOf").and_then(Value::as_array).into_iter().flatten().collect();
        let choice = |choice: &Value| {
            let meaning = choice.get("description").and_then(Value::as_str).unwrap_or_default();
            Some(format!("{} ({})", choice.get("const")?.as_str()?, meaning.trim_end_matches('.')))
        };
        let choices: Vec<_> = choices.into_iter().filter_map(choice).collect();
        if !choices.is_empty() {
            sentence += &format!(" One of: {}.", choices.join("; "));
        }
        match value.get("default") {
            // The defaults of a section are those of its keys.
            None | Some(Value::Object(_)) if self.properties(value).next().is_some() => {}
            None => {}
            Some(default) => sentence += &format!(" Default: {default}."),
        }
        sentence
    }
}

fn section(text: &mut Roff, title: &str, words: &[Inline]) {
    text.control("SH", [title]).text(words.to_vec());
}

fn paragraph(text: &mut Roff, words: &[Inline]) {
    text.control("PP", []).text(words.to_vec());
}

fn item(text: &mut Roff, words: &[Inline]) {
    text.control("TP", []).text(words.to_vec());
}

/// Text that is shown as it is.
fn example(text: &mut Roff, lines: &str) {
    text.control("PP", []).control("nf", []).control("RS", ["4"]);
    for line in lines.lines() {
        text.text([roman(line)]);
    }
    text.control("RE", []).control("fi", []);
}

fn version() -> String {
    format!("node-fixer {}", env!("CARGO_PKG_VERSION"))
}
