//! Positions in a document. A YAML tree has none (the parser gives them only with errors), so they are found again by
//! path when a message needs one.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_path_to_error::Segment;
use serde_yaml::Value;

/// Line and column, from 1.
pub type Position = (usize, usize);

/// One step of a path.
#[derive(Debug, Clone, PartialEq)]
pub enum PathStep {
    /// Into a mapping.
    Key(String),
    /// Into a list.
    Index(usize),
}

impl PathStep {
    /// The path to an entry of a section.
    pub fn entry(section: &str, index: usize) -> Vec<PathStep> {
        vec![PathStep::Key(section.into()), PathStep::Index(index)]
    }
}

/// The path to the value that failed.
pub fn steps(path: &serde_path_to_error::Path) -> Vec<PathStep> {
    let step = |segment: &Segment| match segment {
        Segment::Seq { index } => Some(PathStep::Index(*index)),
        Segment::Map { key } => Some(PathStep::Key(key.clone())),
        Segment::Enum { .. } | Segment::Unknown => None,
    };
    path.iter().filter_map(step).collect()
}

/// `rules[0].from`; empty for the whole document.
pub fn readable(path: &[PathStep]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            PathStep::Key(key) if text.is_empty() => text.push_str(key),
            PathStep::Key(key) => text.extend([".", key]),
            PathStep::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

/// Whether the tree has a value at the end of the path.
pub fn get<'a>(tree: &'a Value, path: &[PathStep]) -> Option<&'a Value> {
    path.iter().try_fold(tree, |tree, step| match step {
        PathStep::Key(key) => tree.get(key.as_str()),
        PathStep::Index(index) => tree.get(*index),
    })
}

/// Finds the position of the value at the end of the path, or of its key. If the document ends before the path does,
/// the last existing step counts.
///
/// The parser gives positions only with errors, so it reads the document again and fails on purpose.
pub fn locate(text: &str, path: &[PathStep], end: End) -> Position {
    let found = Find { path, end }.deserialize(serde_yaml::Deserializer::from_str(text));
    let place = found.err().and_then(|error| error.location());
    place.map_or((1, 1), |place| (place.line(), place.column()))
}

/// Which part of the last step [`locate`] looks for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum End {
    /// The key.
    Key,
    /// The value.
    Value,
}

/// The error that carries the position.
fn found<E: de::Error>() -> E {
    E::custom("here")
}

#[derive(Clone, Copy)]
struct Find<'a> {
    path: &'a [PathStep],
    end: End,
}

impl<'de> DeserializeSeed<'de> for Find<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

/// Every visit fails: here is the value, or here the path ends early.
impl<'de> Visitor<'de> for Find<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the end of the path")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        if let Some((PathStep::Index(index), rest)) = self.path.split_first() {
            for _ in 0..*index {
                seq.next_element::<IgnoredAny>()?;
            }
            seq.next_element_seed(Find { path: rest, ..self })?;
        }
        Err(found())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if let Some((PathStep::Key(key), rest)) = self.path.split_first() {
            let stop_at_key = rest.is_empty() && self.end == End::Key;
            while let Some(found) = map.next_key_seed(FindKey { key, stop_at_key })? {
                if found {
                    map.next_value_seed(Find { path: rest, ..self })?;
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Err(found())
    }
}

struct FindKey<'a> {
    key: &'a str,
    stop_at_key: bool,
}

impl<'de> DeserializeSeed<'de> for FindKey<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for FindKey<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<bool, E> {
        if key == self.key && self.stop_at_key { Err(found()) } else { Ok(key == self.key) }
    }
}

/// The positions of all keys of nested mappings, found in one pass. [`locate`] needs one pass per key.
#[derive(Debug, Default)]
pub struct Keys(BTreeMap<String, Key>);

/// The position of a key, and of those below it.
#[derive(Debug)]
pub struct Key {
    /// The number of its document.
    pub document: usize,
    /// Its line, from 1.
    pub line: usize,
    /// The keys in its value.
    pub below: Keys,
}

impl Keys {
    /// The keys of this document, which [`read`](super::yaml::read) has accepted.
    pub fn of(document: usize, text: &str) -> Keys {
        FindKeys(document).deserialize(serde_yaml::Deserializer::from_str(text)).unwrap_or_default()
    }

    /// Merges those of a later document over these.
    pub fn overlay(&mut self, later: Keys) {
        for (name, key) in later.0 {
            match self.0.get_mut(&name) {
                Some(old) => {
                    (old.document, old.line) = (key.document, key.line);
                    old.below.overlay(key.below);
                }
                None => drop(self.0.insert(name, key)),
            }
        }
    }

    /// The key of this name.
    pub fn get(&self, name: &str) -> Option<&Key> {
        self.0.get(name)
    }
}

#[derive(Clone, Copy)]
struct FindKeys(usize);

impl<'de> DeserializeSeed<'de> for FindKeys {
    type Value = Keys;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Keys, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for FindKeys {
    type Value = Keys;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<Keys, E> {
        Ok(Keys::default())
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<Keys, E> {
        Ok(Keys::default())
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<Keys, E> {
        Ok(Keys::default())
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<Keys, E> {
        Ok(Keys::default())
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<Keys, E> {
        Ok(Keys::default())
    }

    fn visit_unit<E: de::Error>(self) -> Result<Keys, E> {
        Ok(Keys::default())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Keys, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Keys::default())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
        let mut keys = Keys::default();
        loop {
            let mut name = None;
            // After a refused key the parser continues, and its error has the position.
            let place = match map.next_key_seed(Refuse(&mut name)) {
                Ok(None) => return Ok(keys),
                Ok(Some(())) => String::new(),
                Err(error) if name.is_none() => return Err(error),
                Err(error) => error.to_string(),
            };
            let line = place.rsplit_once(" at line ").and_then(|(_, place)| place.split(' ').next()?.parse().ok());
            let below = map.next_value_seed(self)?;
            let key = Key { document: self.0, line: line.unwrap_or(1), below };
            keys.0.extend(name.map(|name| (name, key)));
        }
    }
}

/// Records a key, and refuses it.
struct Refuse<'a>(&'a mut Option<String>);

impl<'de> DeserializeSeed<'de> for Refuse<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Refuse<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<(), E> {
        *self.0 = Some(key.to_owned());
        Err(found())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_lead_back_into_the_text() {
        let text = "version: 1\nrules:\n  - priority: 7\n    from: 10.0.0.1\n  - {priority: 8, table: 9}\n";
        for (path, end, position) in [
            ("version", End::Value, (1, 10)),
            ("rules", End::Key, (2, 1)),
            ("rules[0]", End::Value, (3, 5)),
            ("rules[0].from", End::Key, (4, 5)),
            ("rules[0].from", End::Value, (4, 11)),
            ("rules[1].table", End::Value, (5, 26)),
            ("rules[1].form", End::Key, (5, 5)),
            ("rules[5].from", End::Value, (3, 3)),
        ] {
            let path = path.replace('[', ".").replace(']', "");
            let step = |part: &str| part.parse().map_or(PathStep::Key(part.into()), PathStep::Index);
            let steps: Vec<_> = path.split('.').map(step).collect();
            assert_eq!(locate(text, &steps, end), position, "{path}");
        }
    }

    #[test]
    fn every_key_is_found_where_it_is_located() {
        let text = "# c\nversion: 1\nx:\n  a: {b: 1,\n    c: [{d: 1}]}\n  'e at line 9 column 9': 2\n\n  f: &f\n    g: on\n  h: *f\ny: z\n";
        let keys = Keys::of(7, text);
        for path in ["version", "x", "x.a", "x.a.b", "x.a.c", "x.e at line 9 column 9", "x.f", "x.f.g", "x.h", "y"] {
            let steps: Vec<_> = path.split('.').map(|key| PathStep::Key(key.into())).collect();
            let names: Vec<_> = path.split('.').collect();
            let (last, before) = names.split_last().unwrap();
            let within = before.iter().fold(&keys, |keys, name| &keys.get(name).unwrap().below);
            let found = within.get(last).unwrap();
            assert_eq!((found.document, found.line), (7, locate(text, &steps, End::Key).0), "{path}");
        }
        assert!(keys.get("x").unwrap().below.get("a").unwrap().below.get("c").unwrap().below.get("d").is_none());
    }
}
