//! Writes what packages ship beside the binary, from the same sources as --help and `node-fixer schema`:
//!
//!     cargo run --example documents -- DIRECTORY
//!
//! The man pages node-fixer(8) and node-fixer.yaml(5), and completions for bash, zsh and fish.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::builder::StyledStr;
use clap::{Arg, ArgAction, Command};
use clap_complete::Shell;
use node_fixer::cli::Cli;
use node_fixer::config::{DEFAULT_YAML, SCHEMA};
use roff::{Inline, Roff, bold, italic, line_break, roman};
use serde_json::{Map, Value};

fn main() -> anyhow::Result<()> {
    let directory = std::env::args_os().nth(1).map(PathBuf::from).context("name a directory")?;
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("node-fixer.8"), program()?)?;
    fs::write(directory.join("node-fixer.yaml.5"), configuration()?)?;
    completions(&directory)
}

/// Writes the completions.
pub fn completions(directory: &Path) -> anyhow::Result<()> {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let path = clap_complete::generate_to(shell, &mut Cli::definition(), "node-fixer", directory)?;
        if shell == Shell::Bash {
            // clap_complete writes the hyphen of a program's name in two ways, so that no command would complete.
            fs::write(&path, fs::read_to_string(&path)?.replace("node__subcmd__fixer", "node__fixer"))?;
        }
    }
    Ok(())
}

/// node-fixer(8): the help of every command, and what else a manual has.
pub fn program() -> anyhow::Result<Vec<u8>> {
    let mut definition = Cli::definition();
    definition.build();
    let mut text = Roff::new();
    text.control("TH", ["node-fixer", "8", "", version().as_str(), "System administration"]);
    section(&mut text, "NAME", &[roman("node-fixer - repair the routing of a Linux worker node")]);
    text.control("SH", ["SYNOPSIS"]);
    synopsis(&mut text, &definition);
    let commands: Vec<_> = definition.get_subcommands().filter(|command| command.get_name() != "help").collect();
    for command in &commands {
        text.control("br", []);
        synopsis(&mut text, command);
    }
    section(&mut text, "DESCRIPTION", &[roman(sentence(definition.get_about()))]);
    paragraph(
        &mut text,
        &[
            roman("Without a command it makes one run. "),
            bold("node-fixer.timer"),
            roman(" starts one every minute. A run with nothing to do is silent."),
        ],
    );
    text.control("SH", ["OPTIONS"]);
    options(&mut text, &definition);
    text.control("SH", ["COMMANDS"]);
    text.text([roman(
        "Every command accepts --help, and the options that are listed for it, before and after its name.",
    )]);
    for command in &commands {
        text.control("SS", [command.get_name()]);
        text.text([roman(sentence(command.get_about()))]);
        let (about, _, _) = help(command);
        if !about.is_empty() {
            paragraph(&mut text, &[roman(about)]);
        }
        options(&mut text, command);
    }
    text.control("SH", ["EXIT STATUS"]);
    for command in [&definition].into_iter().chain(commands.iter().copied()) {
        let (_, _, codes) = help(command);
        for (title, codes) in codes {
            let title = if command.get_name() == "node-fixer" { title } else { command.get_name().to_owned() };
            text.control("SS", [title.as_str()]);
            for (code, meaning) in codes {
                item(&mut text, &[bold(code)]);
                text.text([roman(meaning)]);
            }
        }
    }
    text.control("SH", ["EXAMPLES"]);
    for command in [&definition].into_iter().chain(commands.iter().copied()) {
        example(&mut text, &help(command).1);
    }
    surroundings(&mut text);
    let mut page = Vec::new();
    text.to_writer(&mut page)?;
    Ok(page)
}

/// ENVIRONMENT, FILES and the sections after them.
fn surroundings(text: &mut Roff) {
    text.control("SH", ["ENVIRONMENT"]);
    for (variable, what) in [
        ("PATH", "Where crictl, nft and systemctl are found."),
        ("NO_COLOR", "If set and not empty, output is never coloured. TERM=dumb does the same."),
        ("CLICOLOR_FORCE", "If set and not 0, output is coloured even if it is not a terminal."),
        ("JOURNAL_STREAM", "Set by systemd. If stderr is this stream, the log goes to the journal with its fields."),
    ] {
        item(text, &[bold(variable)]);
        text.text([roman(what)]);
    }
    text.control("SH", ["FILES"]);
    for (file, what) in [
        ("/etc/node-fixer/config.yaml", "Configuration; see node-fixer.yaml(5). Without it the built-in one applies."),
        ("/etc/node-fixer/config.d/*.yaml", "Merged over it in the order of their names."),
        ("/usr/share/node-fixer/schema.json", "JSON Schema of these files, for editors."),
        ("/run/node-fixer", "The lock, and state until the next boot."),
        ("/var/lib/node-fixer", "State that outlives a reboot; counters, if metrics are on."),
        ("/etc/sysctl.d/90-node-fixer.conf", "Persistent sysctls, if any are declared."),
    ] {
        item(text, &[italic(file)]);
        text.text([roman(what)]);
    }
    text.control("SH", ["NOTES"]);
    text.text([roman(
        "Objects that node-fixer adds have its protocol number: 170 for routes that repair a table, 171 for declared ones.",
    )]);
    example(text, "ip route show table all proto 170\nip route show table all proto 171\nip rule | grep 'proto 171'\n");
    text.control("SH", ["SEE ALSO"]);
    let pages = [("node-fixer.yaml", "(5), "), ("ip-route", "(8), "), ("ip-rule", "(8), "), ("systemd.timer", "(5)")];
    for (page, rest) in pages {
        text.text([bold(page), roman(rest)]);
    }
}

/// One line: the command with its options, each with its value.
fn synopsis(text: &mut Roff, command: &Command) {
    let name = if command.get_name() == "node-fixer" { "node-fixer" } else { "node-fixer " };
    let own = if command.get_name() == "node-fixer" { "" } else { command.get_name() };
    // The forms of a command, by the arguments that each leaves out. In both of these all others without brackets are required.
    let forms: &[&[&str]] =
        if own == "explain" { &[&["pods"], &["source", "destination", "iif", "mark", "uid"]] } else { &[&[]] };
    for (number, without) in forms.iter().enumerate() {
        if number > 0 {
            text.control("br", []);
        }
        let mut words = vec![bold(format!("{name}{own}"))];
        for arg in visible(command).filter(|arg| !without.contains(&arg.get_id().as_str())) {
            words.push(roman(" "));
            words.push(match arg.get_long() {
                None if forms.len() > 1 => italic(value(arg)),
                None if matches!(arg.get_action(), ArgAction::Append) => roman(format!("[{}...]", value(arg))),
                None => roman(format!("[{}]", value(arg))),
                Some("pods") => bold("--pods"),
                Some(long) if value(arg).is_empty() => roman(format!("[--{long}]")),
                Some(long) => roman(format!("[--{long} {}]", value(arg))),
            });
        }
        text.text(words);
    }
}

/// The options and arguments that belong to a command, each with its help.
fn options(text: &mut Roff, command: &Command) {
    for arg in visible(command) {
        let short = arg.get_short().map_or(String::new(), |short| format!("-{short}, "));
        let value = value(arg);
        match arg.get_long() {
            None => item(text, &[italic(value)]),
            Some(long) if value.is_empty() => item(text, &[bold(format!("{short}--{long}"))]),
            Some(long) => item(text, &[bold(format!("{short}--{long} ")), italic(value)]),
        }
        text.text([roman(sentence(arg.get_help()))]);
        for choice in
            arg.get_possible_values().iter().filter_map(|choice| Some((choice.get_name(), choice.get_help()?)))
        {
            text.text([bold(choice.0), roman(format!(": {}", sentence(Some(choice.1))))]);
        }
    }
}

fn visible(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| !arg.is_hide_set() && !matches!(arg.get_id().as_str(), "help" | "version"))
}

/// The possible values of an option, or the name of its value.
fn value(arg: &Arg) -> String {
    if !arg.get_action().takes_values() {
        return String::new();
    }
    let choices: Vec<_> = arg.get_possible_values().iter().map(|choice| choice.get_name().to_owned()).collect();
    let name = || arg.get_value_names().and_then(<[_]>::first).map(ToString::to_string).unwrap_or_default();
    if choices.is_empty() { name() } else { choices.join("|") }
}

fn sentence(help: Option<&StyledStr>) -> String {
    help.map(ToString::to_string).unwrap_or_default().trim_end_matches('.').to_owned() + "."
}

/// A table of exit codes: its title, and each code with its meaning.
type Codes = (String, Vec<(String, String)>);

/// The parts of the text after a command's options: remarks, examples, and the tables of exit codes.
fn help(command: &Command) -> (String, String, Vec<Codes>) {
    let (mut about, mut examples, mut codes) = (String::new(), String::new(), Vec::new());
    let text = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    for part in text.split("\n\n") {
        let (title, rest) = part.split_once('\n').unwrap_or((part, ""));
        if title == "Examples:" {
            examples = rest.lines().fold(examples, |examples, line| examples + line.trim_start() + "\n");
        } else if title.starts_with("Exit codes") {
            let rows = rest.lines().filter_map(|line| line.trim().split_once(' '));
            let rows = rows.map(|(code, meaning)| (code.to_owned(), meaning.trim().to_owned())).collect();
            let title = title.trim_start_matches("Exit codes").trim_end_matches(':').trim();
            codes.push((if title.is_empty() { "a run".into() } else { title.to_owned() }, rows));
        } else {
            about = part.replace('\n', " ");
        }
    }
    (about, examples, codes)
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
