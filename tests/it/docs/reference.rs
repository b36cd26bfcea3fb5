//! The configuration reference, made from the schema and so from the types and their defaults.

use node_fixer::config::{DEFAULT_YAML, SCHEMA};
use serde_json::Value;

use super::{Page, WRITING, replace};

const PAGE: &str = "docs/configuration.md";
const BEGIN: &str = "<!-- From here on made from the schema: UPDATE_DOCS=1 cargo test --test it docs -->\n";

#[test]
fn it_is_that_of_the_schema() {
    let schema = serde_json::from_str(SCHEMA).unwrap();
    let made = Reference { schema: &schema }.sections();
    let _writing = WRITING.lock();
    let page = Page::read(PAGE);
    let begin = page.text.find(BEGIN).unwrap_or_else(|| panic!("{PAGE} lacks {BEGIN}")) + BEGIN.len();
    replace(&page, begin..page.text.len(), &made);
}

struct Reference<'a> {
    schema: &'a Value,
}

impl<'a> Reference<'a> {
    /// A heading and a table for each section, in the order of the default configuration.
    fn sections(&self) -> String {
        let keys = self.schema["properties"].as_object().unwrap();
        let order = DEFAULT_YAML.lines().filter_map(|line| line.split_once(':')).map(|(key, _)| key);
        let order: Vec<_> = order.filter(|key| keys.contains_key(*key) && *key != "version").collect();
        assert_eq!(order.len() + 1, keys.len(), "sections that config/node-fixer.yaml has not, or twice: {order:?}");
        order.iter().map(|key| self.section(key, &keys[*key])).collect()
    }

    fn section(&self, key: &str, value: &'a Value) -> String {
        let mut rows = Vec::new();
        let entry = self.entry(value);
        self.rows(if value["items"].is_null() { "" } else { "[]." }, entry, &mut rows);
        let what = if value["items"].is_null() { "" } else { " A list, empty by default; keys of an entry:" };
        let page = format!("{}.md", key.replace('_', "-"));
        let text = std::fs::read_to_string(std::path::Path::new("docs").join(&page)).unwrap_or_default();
        for heading in ["What it looks at", "What it does", "What it never does"] {
            assert!(
                text.contains(&format!("\n## {heading}\n")),
                "docs/{page}, the page of the section {key}, has no {heading:?}"
            );
        }
        let head = "| key | type | default | meaning |\n|---|---|---|---|\n";
        format!("\n## {key}\n\n{} [More]({page}).{what}\n\n{head}{}", sentence(value), rows.concat())
    }

    /// What a value is made of: the object itself, or that of each of its items.
    fn entry(&self, value: &'a Value) -> &'a Value {
        let value = self.resolved(value);
        if value["items"].is_null() { value } else { self.resolved(&value["items"]) }
    }

    fn rows(&self, prefix: &str, object: &'a Value, rows: &mut Vec<String>) {
        let required = |key: &str| object["required"].as_array().is_some_and(|all| all.iter().any(|it| it == key));
        for (key, value) in object["properties"].as_object().into_iter().flatten() {
            let default = match &value["default"] {
                Value::Null if required(key) => "required".into(),
                Value::Null => String::new(),
                default => format!("`{}`", written(default)),
            };
            let shown = prefix.strip_prefix("[].").unwrap_or(prefix);
            rows.push(format!("| `{shown}{key}` | {} | {default} | {} |\n", self.kind(value), sentence(value)));
            let inner = self.entry(value);
            if inner["properties"].is_object() {
                let list = if self.resolved(value)["items"].is_null() { "" } else { "[]" };
                self.rows(&format!("{prefix}{key}{list}."), inner, rows);
            }
        }
    }

    fn resolved(&self, value: &'a Value) -> &'a Value {
        let name = value["$ref"].as_str().and_then(|path| path.strip_prefix("#/$defs/"));
        name.map_or(value, |name| &self.schema["$defs"][name])
    }

    /// The type, for people.
    fn kind(&self, value: &'a Value) -> String {
        let value = self.resolved(value);
        let several = |all: &'a Vec<Value>| {
            let kinds: Vec<_> = all.iter().map(|one| self.kind(one)).collect();
            one_of(&kinds)
        };
        if let Some(all) = value["oneOf"].as_array().or_else(|| value["anyOf"].as_array()) {
            return several(all);
        }
        if let Some(values) = value["enum"].as_array() {
            return one_of(&values.iter().map(|value| format!("`{}`", written(value))).collect::<Vec<_>>());
        }
        if !value["const"].is_null() {
            return format!("`{}`", written(&value["const"]));
        }
        match &value["type"] {
            Value::Array(types) => {
                one_of(&types.iter().map(|it| named(it.as_str().unwrap(), value)).collect::<Vec<_>>())
            }
            Value::String(list) if list == "array" && value["minItems"] == 2 => "range [from, to]".into(),
            Value::String(list) if list == "array" => match self.kind(&value["items"]).as_str() {
                "entry" => "list of entries".into(),
                kind => format!("list: {kind}"),
            },
            Value::String(kind) => named(kind, value),
            _ => "entry".into(),
        }
    }
}

fn named(kind: &str, value: &Value) -> String {
    match kind {
        "integer" => match (value["minimum"].as_u64(), value["maximum"].as_u64()) {
            (Some(least), Some(most)) if most < u64::from(u32::MAX) => format!("number, {least} to {most}"),
            _ => "number".into(),
        },
        "string" if value["format"] == "regex" => "regular expression".into(),
        "string" => "text".into(),
        "boolean" => "true or false".into(),
        "object" if value["additionalProperties"].is_object() => "mapping of text".into(),
        _ => "entry".into(),
    }
}

fn one_of(kinds: &[String]) -> String {
    match kinds {
        [first @ .., last] if !first.is_empty() => format!("{} or {last}", first.join(", ")),
        kinds => kinds.concat(),
    }
}

/// As it is written in YAML.
fn written(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => format!("[{}]", items.iter().map(written).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let pairs: Vec<_> = map.iter().map(|(key, value)| format!("{key}: {}", written(value))).collect();
            format!("{{{}}}", pairs.join(", "))
        }
        other => other.to_string(),
    }
}

/// The description on one line that may stand in a table.
fn sentence(value: &Value) -> String {
    value["description"].as_str().unwrap_or_default().replace('\n', " ").replace('|', "\\|")
}
