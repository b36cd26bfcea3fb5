//! Reads the configuration: the main file, then the drop-ins beside it, in the order of their names. Mappings merge;
//! lists and scalars replace. The merged tree is parsed into the types at once, and each error is traced back to the
//! file that caused it.

use std::fs::File;
use std::io;
use std::path::Path;

use serde::Deserialize;
use serde_path_to_error::Track;
use serde_yaml::Value;

use super::files::{self, FileText};
use super::place::{self, End, PathStep};
use super::yaml::{self, Flaw};
use super::{Config, DEFAULT_YAML, tables};
use crate::model::one_line;

/// The default path of the configuration.
const USUAL_FILE: &str = "/etc/node-fixer/config.yaml";

/// The name of the built-in configuration in messages.
pub(super) const BUILT_IN: &str = "built-in default";

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that cannot be read.
    #[error("{}: cannot read the configuration: {error}", one_line(file))]
    Unreadable {
        /// The file, or the directory.
        file: String,
        /// The system's error.
        error: io::Error,
    },
    /// An invalid value in a file.
    #[error("{}:{line}:{column}: {}{}{}", one_line(file), one_line(path), if path.is_empty() { "" } else { ": " },
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

/// A configuration and the files it was read from.
#[derive(Debug)]
pub struct Loaded {
    /// The desired state of the node.
    pub desired: Config,
    pub(super) layers: Vec<Layer>,
}

/// One file.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) file: String,
    pub(super) text: String,
    tree: Value,
}

/// Reads the configuration from `file`, from the default path, or the built-in one; then the drop-ins in `config.d`
/// beside it.
///
/// # Errors
///
/// The first error, with its place. A missing directory of drop-ins is no error.
pub fn load(file: Option<&Path>) -> Result<Loaded, ConfigError> {
    let usual = Path::new(USUAL_FILE);
    let main = match file {
        // It may be a pipe, as in `--config <(…)`.
        Some(file) => Some(files::read_from(file, File::open(file))?),
        None => files::read_if_there(usual)?,
    };
    if main.is_none() {
        files::not_read(&usual.with_extension("yml"))?;
    }
    let beside = file.unwrap_or(usual).parent().unwrap_or(Path::new("")).join("config.d");
    let drop_ins = files::drop_ins(&beside)?;
    if main.is_none() && drop_ins.is_empty() {
        // A test checks the types' defaults against the file that documents them.
        return Ok(Loaded { desired: Config::default(), layers: Vec::new() });
    }
    let main = main.unwrap_or_else(|| (BUILT_IN.into(), DEFAULT_YAML.into()));
    parse([vec![main], drop_ins].concat())
}

/// Parses the files of a captured node's configuration, with the names of its tables.
///
/// # Errors
///
/// The first error, with its place.
pub fn of_files(files: Vec<FileText>, tables: Vec<String>) -> Result<Loaded, ConfigError> {
    if files.is_empty() {
        return Ok(Loaded { desired: Config::default(), layers: Vec::new() });
    }
    tables::with(tables, || parse(files))
}

/// The texts of the files that name tables.
pub fn table_names() -> Vec<String> {
    tables::texts_here()
}

/// Builds a configuration from the contents of files, the main file first.
///
/// # Errors
///
/// The first error, with its place.
fn parse(files: Vec<FileText>) -> Result<Loaded, ConfigError> {
    let layers: Vec<Layer> = files.into_iter().map(Layer::new).collect::<Result<_, _>>()?;
    if let Some(main) = layers.first().filter(|main| main.tree.get("version").is_none()) {
        let message = "is missing; a configuration begins with `version: 1`".into();
        return Err(main.wrong(Flaw { position: (1, 1), path: "version".into(), message }));
    }
    let mut merged = Value::Mapping(Default::default());
    for layer in &layers {
        merge(&mut merged, &layer.tree, &[]);
    }
    let mut track = Track::new();
    match Config::deserialize(serde_path_to_error::Deserializer::new(merged, &mut track)) {
        Ok(desired) => match desired.contradiction() {
            Some((path, message)) => Err(blame(&layers, &path, End::Value, message)),
            None => Ok(Loaded { desired, layers }),
        },
        Err(error) => {
            let error = error.to_string();
            let end = if error.starts_with("unknown field ") { End::Key } else { End::Value };
            Err(blame(&layers, &place::steps(&track.path()), end, in_our_words(&error)))
        }
    }
}

impl Loaded {
    /// The files that it was made of.
    pub fn into_files(self) -> Vec<FileText> {
        self.layers.into_iter().map(|layer| (layer.file, layer.text)).collect()
    }
}

impl Layer {
    fn new((file, text): FileText) -> Result<Layer, ConfigError> {
        let mut layer = Layer { file, text, tree: Value::Null };
        let tree = yaml::read(&layer.text).map_err(|flaw| layer.wrong(flaw))?;
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

    /// How many steps of the path this file contains.
    fn knows(&self, path: &[PathStep]) -> usize {
        let there = |known: &usize| place::get(&self.tree, path.get(..*known).unwrap_or(path)).is_some();
        (0..=path.len()).rev().find(there).unwrap_or(0)
    }
}

/// Traces an error of the merged tree back to the last file that contains most of its path.
fn blame(layers: &[Layer], steps: &[PathStep], end: End, message: String) -> ConfigError {
    let path = place::readable(steps);
    match layers.iter().max_by_key(|layer| layer.knows(steps)) {
        Some(layer) => layer.wrong(Flaw { position: place::locate(&layer.text, steps, end), path, message }),
        None => ConfigError::Wrong { file: BUILT_IN.into(), line: 1, column: 1, path, message },
    }
}

/// A mapping whose keys are data, such as labels. A later file replaces it as a whole. (A pod must have all labels, so
/// merging them would find no pod.)
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

/// serde's messages contain Rust's type names and all keys. These say what to write, and which key was probably meant.
fn in_our_words(message: &str) -> String {
    let quoted = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    for (start, what) in [("unknown field `", "unknown key"), ("unknown variant `", "unknown value")] {
        if message.starts_with(start)
            && let [wrong, known @ ..] = quoted(message).as_slice()
        {
            let closeness = |word: &&String| (strsim::damerau_levenshtein(wrong, word), word.len());
            // The distance takes time and memory proportional to the product of both lengths.
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
        return format!("the key {field} is required");
    }
    let plain = [
        ("expected u32", "expected a number from 0 to 4294967295"),
        ("expected a boolean", "expected true or false"),
        ("expected a Value::Tagged enum", "expected one of its values as text (quote `off` if a tool has changed it)"),
        ("expected a sequence", "expected a list"),
        ("invalid type: sequence", "invalid type: a list"),
        ("invalid type: map,", "invalid type: a mapping,"),
    ];
    plain.iter().fold(message.to_owned(), |message, (rust, ours)| message.replace(rust, ours))
}

/// A longer name is not a misspelt key.
const LONGEST_WORD: usize = 64;

fn is_close(wrong: &str, word: &str) -> bool {
    strsim::damerau_levenshtein(wrong, word) <= word.len().div_ceil(3) || word.starts_with(wrong)
}

#[cfg(test)]
mod tests {
    use schemars::Schema;
    use schemars::generate::SchemaSettings;
    use schemars::transform::RecursiveTransform;

    use super::*;
    use crate::config::{Interfaces, Mode, SCHEMA};

    fn parse_one(text: &str) -> Result<Loaded, ConfigError> {
        parse(vec![("c.yaml".to_owned(), text.to_owned())])
    }

    #[test]
    fn fuzz() {
        crate::fuzz::run("config", |bytes| {
            let text = String::from_utf8_lossy(bytes);
            // A NUL is where a drop-in begins.
            let files = text.split('\0').take(3).enumerate();
            match parse(files.map(|(number, text)| (format!("{number}.yaml"), text.to_owned())).collect()) {
                Ok(loaded) => loaded.to_yaml().is_ok() && loaded.to_json().is_ok(),
                Err(error) => error.to_string().is_empty(),
            }
        });
    }

    #[test]
    fn the_built_in_default_is_what_its_documentation_says() {
        assert_eq!(parse_one(DEFAULT_YAML).unwrap().desired, Config::default());
    }

    /// A key of an optional type may be left out, but must not be null. Line breaks of doc comments mean nothing.
    fn simplified(schema: &mut Schema) {
        if let Some(serde_json::Value::String(text)) = schema.get_mut("description") {
            *text = text.replace('\n', " ");
        }
        if let Some(serde_json::Value::Array(types)) = schema.get_mut("type")
            && types.last().is_some_and(|last| last == "null")
        {
            types.pop();
            if let [one] = types.as_slice() {
                let one = one.clone();
                schema.insert("type".into(), one);
            }
        }
        if let Some(serde_json::Value::Array(choices)) = schema.get_mut("anyOf")
            && let [one, null] = choices.as_slice()
            && *null == serde_json::json!({ "type": "null" })
        {
            let one = one.as_object().unwrap().clone();
            schema.remove("anyOf");
            schema.ensure_object().extend(one);
        }
    }

    #[test]
    fn the_schema_is_made_from_the_types() {
        let settings = SchemaSettings::default().with_transform(RecursiveTransform(simplified));
        let mut schema = settings.into_generator().into_root_schema_for::<Config>();
        // Drop-ins are held to it, too. Only the main file requires `version`.
        schema.remove("required");
        schema.insert("$id".into(), concat!(env!("CARGO_PKG_HOMEPAGE"), "/schema/config-1.json").into());
        schema.insert("title".into(), "Configuration of node-fixer".into());
        let what = "/etc/node-fixer/config.yaml and the drop-ins in config.d; see node-fixer.yaml(5). Every key is optional, \
                    except `version` in the main file.";
        schema.insert("description".into(), what.into());
        let made = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        if std::env::var_os("UPDATE_SCHEMA").is_some() {
            std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/config/schema.json"), &made).unwrap();
        }
        assert!(made == SCHEMA, "config/schema.json is outdated; run `UPDATE_SCHEMA=1 cargo test --lib schema`");
    }

    /// Where the packages install the schema, for editors with a YAML language server.
    const SCHEMA_LINE: &str = "# yaml-language-server: $schema=/usr/share/node-fixer/schema.json\n";

    #[test]
    fn the_shipped_examples_satisfy_the_schema_and_are_accepted() {
        let schema = jsonschema::validator_for(&serde_json::from_str(SCHEMA).unwrap()).unwrap();
        let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/config")).unwrap();
        // cloud-init.yaml is for cloud-init, and contains a configuration.
        let is_ours = |path: &std::path::PathBuf| {
            path.extension().is_some_and(|end| end == "yaml") && !path.ends_with("cloud-init.yaml")
        };
        let examples = files.map(|entry| entry.unwrap().path()).filter(is_ours);
        let mut seen = 0;
        for example in examples {
            let text = std::fs::read_to_string(&example).unwrap();
            let tree: serde_json::Value = serde_yaml::from_str(&text).unwrap();
            let errors: Vec<_> = schema.iter_errors(&tree).map(|error| error.to_string()).collect();
            assert!(errors.is_empty(), "{example:?}: {errors:?}");
            parse_one(&text).unwrap_or_else(|error| panic!("{example:?}: {error}"));
            assert!(text.starts_with(SCHEMA_LINE), "{example:?} does not name the schema for editors");
            seen += 1;
        }
        assert!(seen >= 2, "the examples are gone from config/");
        let is_valid = |yaml: &str| schema.is_valid(&serde_yaml::from_str::<serde_json::Value>(yaml).unwrap());
        assert!(is_valid("kube_proxy: {mode: observe}"), "a drop-in");
        for wrong in ["version: 2", "ruls: []", "rules: [{table: 5}]"] {
            assert!(!is_valid(wrong), "the schema accepts {wrong}");
        }
    }

    #[test]
    fn the_schema_and_the_parser_agree_about_text() {
        let schema = jsonschema::validator_for(&serde_json::from_str(SCHEMA).unwrap()).unwrap();
        for (yaml, good) in [
            ("kube_proxy: {settle: 5s}", true),
            ("kube_proxy: {settle: 1m 30s}", true),
            ("kube_proxy: {settle: 2hours 5 min}", true),
            ("kube_proxy: {settle: '0'}", true),
            ("kube_proxy: {settle: '5'}", false),
            ("kube_proxy: {timeout: 500ms}", true),
            ("kube_proxy: {timeout: soon}", false),
            ("rules: [{priority: 9, table: 7, from: 10.0.0.0/8}]", true),
            ("rules: [{priority: 9, table: 7, from: 'fd00::/8', to: '::ffff:10.0.0.1'}]", true),
            ("rules: [{priority: 9, table: 7, from: 10.0.0/8}]", false),
            ("rules: [{priority: 9, table: 7, from: all}]", false),
            ("rules: [{priority: 9, table: 7, iif: eth0.100}]", true),
            ("rules: [{priority: 9, table: 7, iif: 'eth*'}]", false),
            ("rules: [{priority: 9, table: 7, iif: a-name-that-is-too-long}]", false),
            ("routes: [{to: default, via: 'fe80::1', dev: eth0}]", true),
            ("routes: [{to: everything, dev: eth0}]", false),
            ("routes: [{to: default, via: 10.0.0.1/24}]", false),
            ("addresses: [{dev: lo, address: 127.0.1.1-127.0.1.32/32}]", true),
            ("addresses: [{dev: lo, address: localhost}]", false),
            ("bridges: [{name: br0, addresses: [10.0.0.1/16, 'fd00::1/64']}]", true),
            ("bridges: [{name: br0, addresses: [10.0.0.1/]}]", false),
            ("masquerade: [{source: 10.0.0.0/8}]", true),
            ("metrics: {textfile: var/lib}", false),
        ] {
            let tree: serde_json::Value = serde_yaml::from_str(yaml).unwrap();
            assert_eq!(schema.is_valid(&tree), good, "the schema: {yaml}");
            assert_eq!(parse_one(&format!("version: 1\n{yaml}\n")).is_ok(), good, "the parser: {yaml}");
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
        let loaded = parse(files.map(|(file, text)| (file.to_owned(), text.to_owned())).into()).unwrap();
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
        let loaded = parse(files.map(|(file, text)| (file.to_owned(), text.to_owned())).into()).unwrap();
        let labels: Vec<_> = loaded.desired.kube_proxy.labels.iter().collect();
        assert_eq!(labels, [(&"component".to_owned(), &"kube-proxy".to_owned())]);
        assert_eq!(loaded.desired.kube_proxy.min_interval.0.as_secs(), 300, "the other keys merge");
        assert!(parse_one("version: 1\nkube_proxy: {labels: {}}").is_err(), "no label is any pod");
    }

    #[test]
    fn interfaces_are_those_of_a_role_or_of_a_pattern() {
        let of = |text: &str| parse_one(&format!("version: 1\n{text}")).map(|loaded| loaded.desired);
        let named = |desired: Config| match desired.rp_filter.interfaces {
            Interfaces::Auto => None,
            Interfaces::Named(pattern) => Some(pattern.is_match(b"auto")),
        };
        assert_eq!(of("rp_filter: {interfaces: auto}").map(named).unwrap(), None);
        assert_eq!(of("rp_filter: {interfaces: ^auto$}").map(named).unwrap(), Some(true));
        assert_eq!(of("kube_proxy: {interfaces: '^ens'}").unwrap().kube_proxy.interfaces.as_str(), "^ens");
        let more = of("rp_filter: {more: [{interfaces: ^lxc, value: off}]}").unwrap().rp_filter.more;
        assert_eq!(more[0].replace.len(), 3, "all others are replaced");
        for (wrong, said) in [
            ("rp_filter: {more: [{interfaces: auto*, value: off}]}", "is read as a regular expression"),
            ("rp_filter: {more: [{interfaces: auto, value: off}]}", "write a pattern"),
            ("rp_filter: {more: [{interfaces: ^lxc}]}", "value"),
            ("rp_filter: {more: [{value: off}]}", "interfaces"),
            ("rp_filter: {more: [{interfaces: ^lxc, value: off, replace: []}]}", "is empty"),
            ("kube_proxy: {interfaces: eth*}", "is read as a regular expression"),
            ("kube_proxy: {interfaces: 5}", "`auto` or a regular expression"),
        ] {
            let error = of(wrong).unwrap_err().to_string();
            assert!(error.contains(said), "{wrong}: {error}");
        }
    }

    #[test]
    fn the_file_that_said_it_is_blamed() {
        let files = [("main", "version: 1\nrp_filter:\n  value: loose\n"), ("10", "# x\nrp_filter: {mode: of}\n")];
        let error = parse(files.map(|(file, text)| (file.to_owned(), text.to_owned())).into()).unwrap_err();
        let said = "10:2:19: rp_filter.mode: unknown value `of`; did you mean `off`? (known: enforce, observe, off)";
        assert_eq!(error.to_string(), said);
    }
}
