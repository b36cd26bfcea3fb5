//! Reads the configuration: the file in use, then the drop-ins beside it, in the order of their names.
//! Mappings merge, lists and scalars replace. The merged tree is read into the types in one go, and whatever is
//! wrong is traced back to the file that said it.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc::O_NONBLOCK;
use serde::Deserialize;
use serde_path_to_error::Track;
use serde_yaml::Value;

use super::tree::{self, End, Flaw, Key, Keys, MAX_BYTES, Position, Step};
use super::{DEFAULT_YAML, Desired};
use crate::net::one_line;
use crate::sorted;

/// Where the configuration is looked for when no file is named.
const USUAL_FILE: &str = "/etc/node-fixer/config.yaml";

/// What stands for a file where there is none.
const BUILT_IN: &str = "built-in default";

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that cannot be read.
    #[error("{}: cannot read the configuration: {error}", one_line(file))]
    Unreadable {
        /// The file, or the directory.
        file: String,
        /// What the system said.
        error: io::Error,
    },
    /// Something in a file that cannot be meant so.
    #[error("{}:{line}:{column}: {}: {}", one_line(file), if path.is_empty() { ".".into() } else { one_line(path) },
            one_line(message))]
    Wrong {
        /// The file.
        file: String,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// Path of keys.
        path: String,
        /// What is wrong.
        message: String,
    },
}

/// A configuration with the files that it was read from.
#[derive(Debug)]
pub struct Loaded {
    /// What the node should be like.
    pub desired: Desired,
    layers: Vec<Layer>,
}

/// One file.
#[derive(Debug)]
struct Layer {
    file: String,
    text: String,
    tree: Value,
}

/// Reads the configuration from `file`, or from the usual place, or takes the built-in default; and the
/// drop-ins in `config.d` beside it.
///
/// # Errors
///
/// The first thing that is wrong, with its place. A directory of drop-ins that does not exist is no error.
pub fn load(file: Option<&Path>) -> Result<Loaded, ConfigError> {
    let usual = Path::new(USUAL_FILE);
    let main = match file {
        // It may be a pipe, as of `--config <(…)`.
        Some(file) => Some(read_from(file, File::open(file))?),
        None => read_if_there(usual)?,
    };
    if main.is_none() {
        not_read(&usual.with_extension("yml"))?;
    }
    let beside = file.unwrap_or(usual).parent().unwrap_or(Path::new("")).join("config.d");
    let drop_ins = drop_ins(&beside)?;
    if main.is_none() && drop_ins.is_empty() {
        // A test holds the types' defaults against the file that documents them.
        return Ok(Loaded { desired: Desired::default(), layers: Vec::new() });
    }
    let main = main.unwrap_or_else(|| (BUILT_IN.into(), DEFAULT_YAML.into()));
    parse(std::iter::once(main).chain(drop_ins))
}

/// Makes a configuration of files with their contents, the main file first.
///
/// # Errors
///
/// The first thing that is wrong, with its place.
fn parse(files: impl IntoIterator<Item = (String, String)>) -> Result<Loaded, ConfigError> {
    let layers: Vec<Layer> = files.into_iter().map(Layer::new).collect::<Result<_, _>>()?;
    if let Some(main) = layers.first().filter(|main| main.tree.get("version").is_none()) {
        let message = "is missing; the configuration begins with `version: 1`".into();
        return Err(main.wrong(Flaw { position: (1, 1), path: "version".into(), message }));
    }
    let mut merged = Value::Mapping(Default::default());
    for layer in &layers {
        merge(&mut merged, &layer.tree, &[]);
    }
    let mut track = Track::new();
    match Desired::deserialize(serde_path_to_error::Deserializer::new(merged, &mut track)) {
        Ok(desired) => match desired.contradiction() {
            Some((path, message)) => Err(blame(&layers, &path, End::Value, message)),
            None => Ok(Loaded { desired, layers }),
        },
        Err(error) => {
            let error = error.to_string();
            let end = if error.starts_with("unknown field ") { End::Key } else { End::Value };
            Err(blame(&layers, &tree::steps(&track.path()), end, in_our_words(&error)))
        }
    }
}

impl Loaded {
    /// The merged configuration as YAML, each value with the file and line that it came from.
    ///
    /// # Errors
    ///
    /// None that is known of: every value has a JSON form.
    pub fn to_yaml(&self) -> serde_json::Result<String> {
        let mut yaml = String::new();
        self.write_yaml(&serde_json::to_value(&self.desired)?, Some(&self.keys()), "", &mut yaml);
        Ok(yaml)
    }

    /// The merged configuration as JSON: `{"config": {…}, "sources": {"KEY.PATH": "FILE:LINE"}}`.
    ///
    /// # Errors
    ///
    /// None that is known of: every value has a JSON form.
    pub fn to_json(&self) -> serde_json::Result<String> {
        let config = serde_json::to_value(&self.desired)?;
        let mut sources = serde_json::Map::new();
        self.collect_sources(&config, Some(&self.keys()), "", &mut sources);
        Ok(serde_json::json!({ "config": config, "sources": sources }).to_string() + "\n")
    }

    /// Where each value came from: the last file that has it.
    fn keys(&self) -> Keys {
        let mut keys = Keys::default();
        for (number, layer) in self.layers.iter().enumerate() {
            keys.overlay(Keys::of(number, &layer.text));
        }
        keys
    }

    /// The file and line; or where there is no key, a default of ours.
    fn source(&self, key: Option<&Key>) -> String {
        match key.and_then(|key| Some((&self.layers.get(key.document)?.file, key.line))) {
            Some((file, line)) if file != BUILT_IN => format!("{}:{line}", one_line(file)),
            _ => BUILT_IN.into(),
        }
    }

    /// JSON is YAML in flow style, and that is how values are shown that are no mappings.
    fn write_yaml(&self, value: &serde_json::Value, keys: Option<&Keys>, indent: &str, yaml: &mut String) {
        for (name, value) in value.as_object().into_iter().flatten() {
            let key = keys.and_then(|keys| keys.get(name));
            let mut line = |text: String| yaml.push_str(&format!("{text:<48}  # {}\n", self.source(key)));
            match value {
                serde_json::Value::Object(names) if !names.is_empty() => {
                    yaml.push_str(&format!("{indent}{name}:\n"));
                    self.write_yaml(value, key.map(|key| &key.below), &format!("{indent}  "), yaml);
                }
                serde_json::Value::Array(items) if items.iter().any(serde_json::Value::is_object) => {
                    line(format!("{indent}{name}:"));
                    items.iter().for_each(|item| yaml.push_str(&format!("{indent}  - {item}\n")));
                }
                value => line(format!("{indent}{name}: {value}")),
            }
        }
    }

    fn collect_sources(
        &self,
        value: &serde_json::Value,
        keys: Option<&Keys>,
        path: &str,
        sources: &mut serde_json::Map<String, serde_json::Value>,
    ) {
        for (name, value) in value.as_object().into_iter().flatten() {
            let key = keys.and_then(|keys| keys.get(name));
            if value.as_object().is_some_and(|names| !names.is_empty()) {
                self.collect_sources(value, key.map(|key| &key.below), &format!("{path}{name}."), sources);
            } else {
                sources.insert(format!("{path}{name}"), self.source(key).into());
            }
        }
    }
}

impl Layer {
    fn new((file, text): (String, String)) -> Result<Layer, ConfigError> {
        let mut layer = Layer { file, text, tree: Value::Null };
        let tree = tree::read(&layer.text).map_err(|flaw| layer.wrong(flaw))?;
        if !tree.is_mapping() {
            let message = "is not a mapping of sections, such as `rp_filter: {mode: observe}`".into();
            return Err(layer.wrong(Flaw { position: (1, 1), path: String::new(), message }));
        }
        layer.tree = tree;
        Ok(layer)
    }

    fn wrong(&self, Flaw { position: (line, column), path, message }: Flaw) -> ConfigError {
        ConfigError::Wrong { file: self.file.clone(), line, column, path, message }
    }

    /// How many steps of the path this file has.
    fn knows(&self, path: &[Step]) -> usize {
        let there = |known: &usize| tree::get(&self.tree, path.get(..*known).unwrap_or(path)).is_some();
        (0..=path.len()).rev().find(there).unwrap_or(0)
    }
}

/// Traces an error of the merged tree back to the last file that has most of its path.
fn blame(layers: &[Layer], steps: &[Step], end: End, message: String) -> ConfigError {
    let path = tree::readable(steps);
    match layers.iter().max_by_key(|layer| layer.knows(steps)) {
        Some(layer) => layer.wrong(Flaw { position: tree::locate(&layer.text, steps, end), path, message }),
        None => ConfigError::Wrong { file: BUILT_IN.into(), line: 1, column: 1, path, message },
    }
}

/// A mapping whose keys are data and not ours: those of a later file are meant to stand alone. (A pod has all labels of
/// the question for it, or is not found.)
const WHOLE: [&str; 2] = ["kube_proxy", "labels"];

fn merge(into: &mut Value, from: &Value, path: &[&str]) {
    match (into, from) {
        (Value::Mapping(into), Value::Mapping(from)) if path != WHOLE => {
            for (key, value) in from {
                let path = [path, &[key.as_str().unwrap_or_default()]].concat();
                match into.get_mut(key) {
                    Some(old) => merge(old, value, &path),
                    None => drop(into.insert(key.clone(), value.clone())),
                }
            }
        }
        (into, from) => *into = from.clone(),
    }
}

/// serde's messages name Rust's types and list every key; ours name what to write, and the key that was meant.
fn in_our_words(message: &str) -> String {
    let quoted = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    for (start, what) in [("unknown field `", "unknown key"), ("unknown variant `", "unknown value")] {
        if message.starts_with(start)
            && let [wrong, known @ ..] = quoted(message).as_slice()
        {
            let closeness = |word: &&String| (strsim::damerau_levenshtein(wrong, word), word.len());
            // The distance takes the product of both lengths in memory and time.
            let comparable = known.iter().filter(|_| wrong.len() <= LONGEST_WORD);
            let meant = comparable.min_by_key(closeness).filter(|word| is_close(wrong, word));
            let known = known.join(", ");
            return match meant {
                Some(meant) => format!("{what} `{wrong}`; did you mean `{meant}`? (known: {known})"),
                None => format!("{what} `{wrong}` (known: {known})"),
            };
        }
    }
    if let Some(field) = message.strip_prefix("missing field ") {
        return format!("needs the key {field}");
    }
    let plain = [
        ("expected u32", "expected a number from 0 to 4294967295"),
        ("expected a boolean", "expected true or false"),
        (
            "expected a Value::Tagged enum",
            "expected one of its names as text (`off` in quotes, if a tool has changed it)",
        ),
        ("expected a sequence", "expected a list"),
        ("invalid type: sequence", "invalid type: a list"),
        ("invalid type: map,", "invalid type: a mapping,"),
    ];
    plain.iter().fold(message.to_owned(), |message, (rust, ours)| message.replace(rust, ours))
}

/// What is longer is no misspelt key of ours.
const LONGEST_WORD: usize = 64;

fn is_close(wrong: &str, word: &str) -> bool {
    strsim::damerau_levenshtein(wrong, word) <= word.len().div_ceil(3) || word.starts_with(wrong)
}

fn unreadable(path: &Path, error: io::Error) -> ConfigError {
    ConfigError::Unreadable { file: path.display().to_string(), error }
}

fn read_if_there(path: &Path) -> Result<Option<(String, String)>, ConfigError> {
    match read_file(path) {
        Err(ConfigError::Unreadable { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Reads what nobody named, and waits for no writer of a pipe.
fn read_file(path: &Path) -> Result<(String, String), ConfigError> {
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path);
    let file = file.and_then(|file| match file.metadata()?.file_type() {
        kind if kind.is_file() || kind.is_dir() || kind.is_char_device() => Ok(file),
        _ => Err(io::Error::other("it is no regular file")),
    });
    read_from(path, file)
}

fn read_from(path: &Path, file: io::Result<File>) -> Result<(String, String), ConfigError> {
    let fail = |error| unreadable(path, error);
    let file = file.map_err(fail)?;
    if file.metadata().map_err(fail)?.is_dir() {
        return Err(fail(io::ErrorKind::IsADirectory.into()));
    }
    let mut bytes = Vec::new();
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(fail)?;
    let wrong = |position: Position, message: &str| ConfigError::Wrong {
        file: path.display().to_string(),
        line: position.0,
        column: position.1,
        path: String::new(),
        message: message.into(),
    };
    if bytes.len() as u64 > MAX_BYTES {
        return Err(wrong((1, 1), "is larger than 1 MiB, which no configuration is"));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok((path.display().to_string(), text)),
        Err(error) => {
            let good = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
            let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
            let column = good.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
            Err(wrong((line, column), "is not UTF-8 text from here on"))
        }
    }
}

/// A name that is easily mistaken for one that is read: nobody would notice what is in it.
fn not_read(yml: &Path) -> Result<(), ConfigError> {
    match std::fs::metadata(yml) {
        Ok(_) => Err(unreadable(yml, io::Error::other("only files named .yaml are read; rename it"))),
        Err(_) => Ok(()),
    }
}

/// Drop-ins in the order of their names.
fn drop_ins(directory: &Path) -> Result<Vec<(String, String)>, ConfigError> {
    let fail = |error| unreadable(directory, error);
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(fail(error)),
    };
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in entries {
        let path = entry.map_err(fail)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        match path.extension().and_then(OsStr::to_str) {
            Some("yaml") if !hidden => files.push(path),
            Some("yml") if !hidden => not_read(&path)?,
            _ => {}
        }
    }
    sorted::list(files, Ord::cmp).iter().map(|path| read_file(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{Interfaces, Mode, SCHEMA};

    fn parse_one(text: &str) -> Result<Loaded, ConfigError> {
        parse([("c.yaml".to_owned(), text.to_owned())])
    }

    #[test]
    fn fuzz() {
        crate::fuzz::run("config", |bytes| {
            let text = String::from_utf8_lossy(bytes);
            // A NUL is where a drop-in begins.
            let files = text.split('\0').take(3).enumerate();
            match parse(files.map(|(number, text)| (format!("{number}.yaml"), text.to_owned()))) {
                Ok(loaded) => loaded.to_yaml().is_ok() && loaded.to_json().is_ok(),
                Err(error) => error.to_string().is_empty(),
            }
        });
    }

    #[test]
    fn the_built_in_default_is_what_its_documentation_says() {
        assert_eq!(parse_one(DEFAULT_YAML).unwrap().desired, Desired::default());
    }

    #[test]
    fn the_schema_is_made_from_the_types() {
        let made = serde_json::to_string_pretty(&schemars::schema_for!(Desired)).unwrap() + "\n";
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/config/schema.json"), &made).unwrap();
        }
        assert!(made == SCHEMA, "config/schema.json is old: run `UPDATE_SCHEMA=1 cargo test --lib schema`");
    }

    #[test]
    fn the_shipped_examples_satisfy_the_schema_and_are_accepted() {
        let schema = jsonschema::validator_for(&serde_json::from_str(SCHEMA).unwrap()).unwrap();
        let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/config")).unwrap();
        // cloud-init.yaml is for cloud-init, with a configuration of ours in it.
        let is_ours =
            |path: &PathBuf| path.extension().is_some_and(|end| end == "yaml") && !path.ends_with("cloud-init.yaml");
        let examples = files.map(|entry| entry.unwrap().path()).filter(is_ours);
        let mut seen = 0;
        for example in examples {
            let text = std::fs::read_to_string(&example).unwrap();
            let tree: serde_json::Value = serde_yaml::from_str(&text).unwrap();
            let errors: Vec<_> = schema.iter_errors(&tree).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{example:?}: {errors:?}");
            parse_one(&text).unwrap_or_else(|error| panic!("{example:?}: {error}"));
            seen += 1;
        }
        assert!(seen >= 2, "the examples are gone from config/");
        for wrong in
            [r#"{"version": 2}"#, r#"{"version": 1, "ruls": []}"#, r#"{"version": 1, "rules": [{"table": 5}]}"#]
        {
            assert!(!schema.is_valid(&serde_json::from_str(wrong).unwrap()), "the schema accepts {wrong}");
        }
    }

    #[test]
    fn later_files_win_in_mappings_and_replace_lists() {
        let files = [
            (
                "main",
                "version: 1\nrp_filter: {mode: observe, value: strict}\ndefault_routes: {exclude_tables: [5, 6]}\n",
            ),
            ("10", "rp_filter:\n  value: loose\n"),
            ("20", "default_routes:\n\n  exclude_tables: [[7, 9]]\n"),
        ];
        let loaded = parse(files.map(|(file, text)| (file.to_owned(), text.to_owned()))).unwrap();
        let desired = &loaded.desired;
        assert_eq!((desired.rp_filter.mode, desired.rp_filter.value.number()), (Mode::Observe, 2));
        assert_eq!(desired.default_routes.exclude_tables.len(), 1);
        assert!(desired.default_routes.exclude_tables[0].contains(8));
        let json: serde_json::Value = serde_json::from_str(&loaded.to_json().unwrap()).unwrap();
        for (path, source) in [
            ("rp_filter.mode", "main:2"),
            ("rp_filter.value", "10:2"),
            ("default_routes.exclude_tables", "20:3"),
            ("default_routes.mode", BUILT_IN),
        ] {
            assert_eq!(json["sources"][path], source, "{path}");
        }
    }

    #[test]
    fn labels_of_a_later_file_stand_alone() {
        let files = [
            ("main", DEFAULT_YAML),
            ("10", "kube_proxy:\n  labels: {component: kube-proxy}\n"),
            ("20", "kube_proxy: {namespace: kube-system}\n"),
        ];
        let loaded = parse(files.map(|(file, text)| (file.to_owned(), text.to_owned()))).unwrap();
        let labels: Vec<_> = loaded.desired.kube_proxy.labels.iter().collect();
        assert_eq!(labels, [(&"component".to_owned(), &"kube-proxy".to_owned())]);
        assert_eq!(loaded.desired.kube_proxy.min_interval.as_secs(), 300, "the other keys merge");
        assert!(parse_one("version: 1\nkube_proxy: {labels: {}}").is_err(), "no label is any pod");
    }

    #[test]
    fn interfaces_are_those_of_a_role_or_of_a_pattern() {
        let of = |text: &str| parse_one(&format!("version: 1\n{text}")).map(|loaded| loaded.desired);
        let named = |desired: Desired| match desired.rp_filter.interfaces {
            Interfaces::Auto => None,
            Interfaces::Named(pattern) => Some(pattern.is_match(b"auto")),
        };
        assert_eq!(of("rp_filter: {interfaces: auto}").map(named).unwrap(), None);
        assert_eq!(of("rp_filter: {interfaces: ^auto$}").map(named).unwrap(), Some(true));
        assert_eq!(of("kube_proxy: {interfaces: '^ens'}").unwrap().kube_proxy.interfaces.as_str(), "^ens");
        let more = of("rp_filter: {more: [{interfaces: ^lxc, value: off}]}").unwrap().rp_filter.more;
        assert_eq!(more[0].replace.len(), 3, "all others are replaced");
        for (wrong, said) in [
            ("rp_filter: {more: [{interfaces: auto*, value: off}]}", "taken for a regular expression"),
            ("rp_filter: {more: [{interfaces: auto, value: off}]}", "name these by a pattern"),
            ("rp_filter: {more: [{interfaces: ^lxc}]}", "value"),
            ("rp_filter: {more: [{value: off}]}", "interfaces"),
            ("rp_filter: {more: [{interfaces: ^lxc, value: off, replace: []}]}", "names no value"),
            ("kube_proxy: {interfaces: eth*}", "taken for a regular expression"),
            ("kube_proxy: {interfaces: 5}", "auto or a regular expression"),
        ] {
            let error = of(wrong).unwrap_err().to_string();
            assert!(error.contains(said), "{wrong}: {error}");
        }
    }

    #[test]
    fn the_file_that_said_it_is_blamed() {
        let files = [("main", "version: 1\nrp_filter:\n  value: loose\n"), ("10", "# x\nrp_filter: {mode: of}\n")];
        let error = parse(files.map(|(file, text)| (file.to_owned(), text.to_owned()))).unwrap_err();
        let said = "10:2:19: rp_filter.mode: unknown value `of`; did you mean `off`? (known: enforce, observe, off)";
        assert_eq!(error.to_string(), said);
    }
}
