//! Reads one YAML document strictly, as a tree. What YAML allows but a configuration should not contain is an error at
//! its position.

use std::cell::Cell;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, EnumAccess, MapAccess, SeqAccess, Visitor};
use serde_path_to_error::Track;
use serde_yaml::{Mapping, Value};

use super::place::{End, Position, locate, readable, steps};

/// Deeper nesting of brackets is refused before parsing, because the parser takes quadratic time for it.
const MAX_DEPTH: usize = 100;
/// The most values after aliases are expanded. No file of the maximum size has as many without nested aliases.
const MAX_VALUES: u32 = 300_000;

/// An error in a document and its position.
#[derive(Debug, PartialEq)]
pub struct Flaw {
    /// The position.
    pub position: Position,
    /// Path of keys.
    pub path: String,
    /// The error.
    pub message: String,
}

/// Reads one document. An empty document is an empty mapping.
pub fn read(text: &str) -> Result<Value, Flaw> {
    if let Some((position, message)) = unfit(text) {
        return Err(Flaw { position, path: String::new(), message });
    }
    let mut track = Track::new();
    let values = Cell::new(0);
    let deserializer = serde_yaml::Deserializer::from_str(text);
    let document = serde_path_to_error::Deserializer::new(deserializer, &mut track);
    match (YamlNode { root: true, values: &values }).deserialize(document) {
        Ok(value) => Ok(value),
        Err(error) => {
            let steps = steps(&track.path());
            let path = readable(&steps);
            // Errors about the whole document have no position, so the section being read is shown.
            let position = match error.location() {
                Some(place) => (place.line(), place.column()),
                None => locate(text, steps.get(..1).unwrap_or_default(), End::Key),
            };
            let message = without_place(&error);
            if message.contains("more than one document") {
                let empty = |line: &str| line.trim().is_empty() || line.starts_with(['#', '%']);
                let first = text.lines().position(|line| !empty(line)).unwrap_or(0);
                let second = text.lines().skip(first + 1).position(|line| line.starts_with("---"));
                let second = second.map(|line| first + 1 + line);
                let message = "a second YAML document begins here; a file has one".into();
                return Err(Flaw { position: (second.unwrap_or(0) + 1, 1), path: String::new(), message });
            }
            Err(Flaw { position, path, message })
        }
    }
}

/// The parser's message without path and position, which are shown separately.
fn without_place(error: &serde_yaml::Error) -> String {
    let mut message = error.to_string();
    if let Some(place) = error.location() {
        let place = format!(" at line {} column {}", place.line(), place.column());
        message = message.replacen(&place, "", 1);
    }
    if message.contains("repetition limit exceeded") {
        return "aliases (*) expand to too many values".into();
    }
    // Messages of this module are marked with a tab, which no message of the parser contains.
    match message.split_once('\t') {
        Some((_, ours)) => ours.to_owned(),
        None => message,
    }
}

fn flaw<E: de::Error>(message: impl fmt::Display) -> E {
    E::custom(format_args!("\t{message}"))
}

/// Input that the parser handles badly, or reports without a position.
fn unfit(text: &str) -> Option<(Position, String)> {
    let mut depth = 0_usize;
    for (line, content) in text.lines().enumerate() {
        for (column, c) in content.chars().enumerate() {
            match c {
                '[' | '{' => depth += 1,
                ']' | '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
            let position = (line + 1, column + 1);
            if depth > MAX_DEPTH {
                return Some((position, format!("more than {MAX_DEPTH} brackets are open here")));
            }
            if c.is_control() && !matches!(c, '\t' | '\r' | '\u{85}') {
                return Some((position, format!("the control character U+{:04X} is not allowed", u32::from(c))));
            }
        }
    }
    None
}

#[derive(Clone, Copy)]
struct YamlNode<'a> {
    root: bool,
    values: &'a Cell<u32>,
}

impl<'de> DeserializeSeed<'de> for YamlNode<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl YamlNode<'_> {
    fn child<E: de::Error>(self) -> Result<Self, E> {
        self.values.set(self.values.get() + 1);
        if self.values.get() > MAX_VALUES {
            return Err(flaw(format_args!("more than {MAX_VALUES} values; check the aliases (*)")));
        }
        Ok(YamlNode { root: false, ..self })
    }
}

impl<'de> Visitor<'de> for YamlNode<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E: de::Error>(self) -> Result<Value, E> {
        if self.root {
            return Ok(Value::Mapping(Mapping::new()));
        }
        Err(flaw("has no value; set one, or remove the key"))
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<Value, A::Error> {
        Err(flaw("has a YAML tag (!), which is not supported"))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self.child()?)? {
            items.push(item);
        }
        Ok(Value::Sequence(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut mapping = Mapping::new();
        while let Some(key) = map.next_key_seed(NewKey(&mapping))? {
            let value = map.next_value_seed(self.child()?)?;
            mapping.insert(key.into(), value);
        }
        Ok(Value::Mapping(mapping))
    }
}

/// A key that must not exist in the mapping yet.
struct NewKey<'a>(&'a Mapping);

impl<'de> DeserializeSeed<'de> for NewKey<'_> {
    type Value = String;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<String, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NewKey<'_> {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<String, E> {
        match key {
            "<<" => Err(flaw("is a YAML merge, which is not supported; use drop-ins in config.d")),
            _ if self.0.contains_key(key) => Err(flaw("appears twice in this mapping")),
            _ => Ok(key.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flaws_are_found_where_they_stand() {
        let deep = "[".repeat(101);
        let wide = format!("a: &a [{}]\nb: &b [{}]\nc: [*b,*b]\n", "x,".repeat(1000), "*a,".repeat(200));
        let bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n".to_owned()
            + &('b'..='h').fold(String::new(), |yaml, c| {
                let before = char::from(c as u8 - 1);
                yaml + &format!(
                    "{c}: &{c} [*{before},*{before},*{before},*{before},*{before},*{before},*{before},*{before}]\n"
                )
            });
        for (text, position, path, message) in [
            ("a: 1\na: 2\n", (2, 1), "a", "appears twice"),
            ("x:\n  b: {c: 1, c: 2}\n", (2, 13), "x.b.c", "appears twice"),
            ("x:\n  b:\n", (2, 5), "x.b", "has no value"),
            ("x: !t 1\n", (1, 4), "x", "has a YAML tag"),
            ("x: &x {a: 1}\ny: {<<: *x}\n", (2, 5), "y.<<", "is a YAML merge"),
            ("x: @\n", (1, 4), "x", "cannot start any token"),
            ("x: *y\n", (1, 4), "x", "unknown anchor"),
            ("x: 1\n---\ny: 2\n", (2, 1), "", "a second YAML document"),
            ("# c\n---\nx: 1\n---\ny: 2\n---\n", (4, 1), "", "a second YAML document"),
            ("x: \"a\u{7}\"\n", (1, 6), "", "control character U+0007"),
            (&deep, (1, 101), "", "more than 100 brackets"),
            (&bomb, (6, 1), "f[0][6][4][5][5]", "aliases (*) expand"),
            (&wide, (1, 4), "c[0][98]", "more than 300000 values"),
        ] {
            let found = read(text).unwrap_err();
            assert!(found.message.contains(message), "{text:?}: {found:?}");
            assert_eq!((found.position, found.path.as_str()), (position, path), "{text:?}: {found:?}");
        }
    }

    #[test]
    fn what_yaml_1_1_took_for_booleans_is_text() {
        for word in ["on", "off", "yes", "no", "On", "NO", "y"] {
            assert_eq!(read(&format!("x: {word}")).unwrap()["x"], Value::from(word));
        }
    }

    #[test]
    fn nothing_at_all_is_an_empty_mapping() {
        for text in ["", "# only a comment\n", "---\n"] {
            assert_eq!(read(text), Ok(Value::Mapping(Mapping::new())), "{text:?}");
        }
    }
}
