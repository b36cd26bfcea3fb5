//! Shows the merged configuration, each value with its file and line.

use super::load::{BUILT_IN, Loaded};
use super::place::{Key, Keys};
use crate::model::one_line;

impl Loaded {
    /// The merged configuration as YAML, each value with its file and line.
    ///
    /// # Errors
    ///
    /// None in practice: every value has a JSON form.
    pub fn to_yaml(&self) -> serde_json::Result<String> {
        let mut yaml = String::new();
        self.write_yaml(&serde_json::to_value(&self.desired)?, Some(&self.keys()), "", &mut yaml);
        Ok(yaml)
    }

    /// The merged configuration as JSON: `{"config": {…}, "sources": {"KEY.PATH": "FILE:LINE"}}`.
    ///
    /// # Errors
    ///
    /// None in practice: every value has a JSON form.
    pub fn to_json(&self) -> serde_json::Result<String> {
        let config = serde_json::to_value(&self.desired)?;
        let mut sources = serde_json::Map::new();
        self.collect_sources(&config, Some(&self.keys()), "", &mut sources);
        Ok(serde_json::json!({ "config": config, "sources": sources }).to_string() + "\n")
    }

    /// The source of each value: the last file that contains it.
    fn keys(&self) -> Keys {
        let mut keys = Keys::default();
        for (number, layer) in self.layers.iter().enumerate() {
            keys.overlay(Keys::of(number, &layer.text));
        }
        keys
    }

    /// The file and line; or `default` if no file contains the key.
    fn source(&self, key: Option<&Key>) -> String {
        match key.and_then(|key| Some((&self.layers.get(key.document)?.file, key.line))) {
            Some((file, line)) if file != BUILT_IN => format!("{}:{line}", one_line(file)),
            _ => BUILT_IN.into(),
        }
    }

    /// JSON is YAML in flow style. Values that are not mappings are shown in it.
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
