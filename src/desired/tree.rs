//! One YAML document as a tree, read strictly: what YAML allows and a configuration should not contain is an
//! error at its place. The tree itself carries no positions (the parser tells them only with its errors);
//! [`locate`] finds them again, by path, when something has to be said about a value.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, EnumAccess, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_path_to_error::{Segment, Track};
use serde_yaml::{Mapping, Value};

/// A configuration that is larger is refused unread.
pub const MAX_BYTES: u64 = 1 << 20;
/// Nesting of brackets that is refused before parsing: the parser takes quadratic time over it.
const MAX_DEPTH: usize = 100;
/// Values, after aliases are expanded. A file of the greatest size has fewer; aliases within aliases have more.
const MAX_VALUES: u32 = 300_000;

/// Line and column, from 1.
pub type Position = (usize, usize);

/// What is wrong with a document, and where.
#[derive(Debug, PartialEq)]
pub struct Flaw {
    /// Where it stands.
    pub position: Position,
    /// Path of keys to it.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

/// Reads one document. An empty one is an empty mapping.
pub fn read(text: &str) -> Result<Value, Flaw> {
    if let Some((position, message)) = unfit(text) {
        return Err(Flaw { position, path: String::new(), message });
    }
    let mut track = Track::new();
    let values = Cell::new(0);
    let deserializer = serde_yaml::Deserializer::from_str(text);
    let document = serde_path_to_error::Deserializer::new(deserializer, &mut track);
    match (Node { root: true, values: &values }).deserialize(document) {
        Ok(value) => Ok(value),
        Err(error) => {
            let steps = steps(&track.path());
            let path = readable(&steps);
            // Errors about the document as a whole have no place: show the section that was being read.
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

/// The parser's message without the path and the place, which we show in a form of our own.
fn without_place(error: &serde_yaml::Error) -> String {
    let mut message = error.to_string();
    if let Some(place) = error.location() {
        let place = format!(" at line {} column {}", place.line(), place.column());
        message = message.replacen(&place, "", 1);
    }
    if message.contains("repetition limit exceeded") {
        return "aliases (*) multiply values without end".into();
    }
    // Our own messages are marked by a tab, which no message of the parser contains.
    match message.split_once('\t') {
        Some((_, ours)) => ours.to_owned(),
        None => message,
    }
}

fn flaw<E: de::Error>(message: impl fmt::Display) -> E {
    E::custom(format_args!("\t{message}"))
}

/// What the parser had better not see, or tells without its place.
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
struct Node<'a> {
    root: bool,
    values: &'a Cell<u32>,
}

impl<'de> DeserializeSeed<'de> for Node<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl Node<'_> {
    fn child<E: de::Error>(self) -> Result<Self, E> {
        self.values.set(self.values.get() + 1);
        if self.values.get() > MAX_VALUES {
            return Err(flaw(format_args!("more than {MAX_VALUES} values; do aliases (*) multiply them?")));
        }
        Ok(Node { root: false, ..self })
    }
}

impl<'de> Visitor<'de> for Node<'_> {
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
        Err(flaw("has no value; give it one, or leave the key out"))
    }

    fn visit_none<E: de::Error>(self) -> Result<Value, E> {
        self.visit_unit()
    }

    fn visit_enum<A: EnumAccess<'de>>(self, _: A) -> Result<Value, A::Error> {
        Err(flaw("has a YAML tag (!), which means nothing here"))
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

/// A key that the mapping does not have yet.
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
            "<<" => Err(flaw("is a YAML merge, which is not supported; drop-ins in config.d merge files")),
            _ if self.0.contains_key(key) => Err(flaw("is there twice in this mapping")),
            _ => Ok(key.to_owned()),
        }
    }
}

/// One step of a path.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Into a mapping.
    Key(String),
    /// Into a list.
    Index(usize),
}

impl Step {
    /// The path to an entry of a section.
    pub fn entry(section: &str, index: usize) -> Vec<Step> {
        vec![Step::Key(section.into()), Step::Index(index)]
    }
}

/// The path that was followed when something failed.
pub fn steps(path: &serde_path_to_error::Path) -> Vec<Step> {
    let step = |segment: &Segment| match segment {
        Segment::Seq { index } => Some(Step::Index(*index)),
        Segment::Map { key } => Some(Step::Key(key.clone())),
        Segment::Enum { .. } | Segment::Unknown => None,
    };
    path.iter().filter_map(step).collect()
}

/// `rules[0].from`; empty for the whole document.
pub fn readable(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) if text.is_empty() => text.push_str(key),
            Step::Key(key) => text.extend([".", key]),
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

/// Whether the tree has something at the end of the path.
pub fn get<'a>(tree: &'a Value, path: &[Step]) -> Option<&'a Value> {
    path.iter().try_fold(tree, |tree, step| match step {
        Step::Key(key) => tree.get(key.as_str()),
        Step::Index(index) => tree.get(*index),
    })
}

/// Finds where in the text the value at the end of the path stands, or its key, or, where the path leads
/// further than the document does, the last that there is of it.
///
/// The parser gives positions only with errors, so it reads the document once more and fails on purpose.
pub fn locate(text: &str, path: &[Step], end: End) -> Position {
    let found = Find { path, end }.deserialize(serde_yaml::Deserializer::from_str(text));
    let place = found.err().and_then(|error| error.location());
    place.map_or((1, 1), |place| (place.line(), place.column()))
}

/// What of the last step [`locate`] is to find.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum End {
    /// The key.
    Key,
    /// The value.
    Value,
}

#[derive(Clone, Copy)]
struct Find<'a> {
    path: &'a [Step],
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
        if let Some((Step::Index(index), rest)) = self.path.split_first() {
            for _ in 0..*index {
                seq.next_element::<IgnoredAny>()?;
            }
            seq.next_element_seed(Find { path: rest, ..self })?;
        }
        Err(flaw("here"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        if let Some((Step::Key(key), rest)) = self.path.split_first() {
            let stop_at_key = rest.is_empty() && self.end == End::Key;
            while let Some(found) = map.next_key_seed(FindKey { key, stop_at_key })? {
                if found {
                    map.next_value_seed(Find { path: rest, ..self })?;
                } else {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Err(flaw("here"))
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
        if key == self.key && self.stop_at_key { Err(flaw("here")) } else { Ok(key == self.key) }
    }
}

/// Where the keys of a document stand, of mappings within mappings. All are found in one pass: to [`locate`] each would
/// be a pass for each.
#[derive(Debug, Default)]
pub struct Keys(BTreeMap<String, Key>);

/// Where a key stands, and those below it.
#[derive(Debug)]
pub struct Key {
    /// The number of its document.
    pub document: usize,
    /// Its line, from 1.
    pub line: usize,
    /// Those in its value.
    pub below: Keys,
}

impl Keys {
    /// Those of this document, which [`read`] has accepted.
    pub fn of(document: usize, text: &str) -> Keys {
        FindKeys(document).deserialize(serde_yaml::Deserializer::from_str(text)).unwrap_or_default()
    }

    /// Puts those of a later document over these.
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
            // The parser goes on after a key that was refused, and its error has the place.
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

/// Notes a key, and refuses it.
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
        Err(flaw("here"))
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
            ("a: 1\na: 2\n", (2, 1), "a", "is there twice"),
            ("x:\n  b: {c: 1, c: 2}\n", (2, 13), "x.b.c", "is there twice"),
            ("x:\n  b:\n", (2, 5), "x.b", "has no value"),
            ("x: !t 1\n", (1, 4), "x", "has a YAML tag"),
            ("x: &x {a: 1}\ny: {<<: *x}\n", (2, 5), "y.<<", "is a YAML merge"),
            ("x: @\n", (1, 4), "x", "cannot start any token"),
            ("x: *y\n", (1, 4), "x", "unknown anchor"),
            ("x: 1\n---\ny: 2\n", (2, 1), "", "a second YAML document"),
            ("# c\n---\nx: 1\n---\ny: 2\n---\n", (4, 1), "", "a second YAML document"),
            ("x: \"a\u{7}\"\n", (1, 6), "", "control character U+0007"),
            (&deep, (1, 101), "", "more than 100 brackets"),
            (&bomb, (6, 1), "f[0][6][4][5][5]", "aliases (*) multiply"),
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
            let step = |part: &str| part.parse().map_or(Step::Key(part.into()), Step::Index);
            let steps: Vec<_> = path.split('.').map(step).collect();
            assert_eq!(locate(text, &steps, end), position, "{path}");
        }
    }

    #[test]
    fn every_key_is_found_where_it_is_located() {
        let text = "# c\nversion: 1\nx:\n  a: {b: 1,\n    c: [{d: 1}]}\n  'e at line 9 column 9': 2\n\n  f: &f\n    g: on\n  h: *f\ny: z\n";
        let keys = Keys::of(7, text);
        for path in ["version", "x", "x.a", "x.a.b", "x.a.c", "x.e at line 9 column 9", "x.f", "x.f.g", "x.h", "y"] {
            let steps: Vec<_> = path.split('.').map(|key| Step::Key(key.into())).collect();
            let names: Vec<_> = path.split('.').collect();
            let (last, before) = names.split_last().unwrap();
            let within = before.iter().fold(&keys, |keys, name| &keys.get(name).unwrap().below);
            let found = within.get(last).unwrap();
            assert_eq!((found.document, found.line), (7, locate(text, &steps, End::Key).0), "{path}");
        }
        assert!(keys.get("x").unwrap().below.get("a").unwrap().below.get("c").unwrap().below.get("d").is_none());
    }
}
