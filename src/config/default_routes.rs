//! The section `default_routes`.

use std::fmt;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::types::{read_number, schema};
use super::{Mode, tables};
use crate::model::Family;

/// The section `default_routes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DefaultRoutes {
    /// What to do about a table without a default route.
    pub mode: Mode,
    /// Address families to check.
    #[serde(deserialize_with = "some_families")]
    pub families: Vec<Family>,
    /// Tables to leave alone: numbers, or ranges [from, to].
    pub exclude_tables: Vec<TableRange>,
}

impl Default for DefaultRoutes {
    fn default() -> Self {
        let families = vec![Family::V4, Family::V6];
        DefaultRoutes { mode: Mode::Enforce, families, exclude_tables: Vec::new() }
    }
}

/// Address families, at least one.
fn some_families<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Family>, D::Error> {
    let families = Vec::deserialize(deserializer)?;
    if families.is_empty() {
        return Err(de::Error::custom("is empty; to turn the section off, set `mode: off`"));
    }
    Ok(families)
}

/// A range of tables, both ends included. Written as a number or as `[from, to]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableRange(u32, u32);

impl TableRange {
    /// Whether the table is in the range.
    pub fn contains(self, table: u32) -> bool {
        (self.0..=self.1).contains(&table)
    }
}

/// One end of a range.
struct RangeEnd(u32);

impl<'de> Deserialize<'de> for RangeEnd {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        read_number(deserializer, "a table by number or name", tables::by_name).map(RangeEnd)
    }
}

impl<'de> Deserialize<'de> for TableRange {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Range;
        impl<'de> Visitor<'de> for Range {
            type Value = TableRange;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table by number or name, or a range [from, to]")
            }

            fn visit_u64<E: de::Error>(self, table: u64) -> Result<TableRange, E> {
                let table = u32::try_from(table).map_err(|_| E::custom("the largest table number is 4294967295"))?;
                Ok(TableRange(table, table))
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<TableRange, E> {
                let table = tables::by_name(name).ok_or_else(|| E::invalid_value(de::Unexpected::Str(name), &self))?;
                Ok(TableRange(table, table))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<TableRange, A::Error> {
                let ends =
                    (seq.next_element::<RangeEnd>()?, seq.next_element::<RangeEnd>()?, seq.next_element::<RangeEnd>()?);
                match ends {
                    (Some(RangeEnd(from)), Some(RangeEnd(to)), None) if from <= to => Ok(TableRange(from, to)),
                    (Some(RangeEnd(from)), Some(RangeEnd(to)), None) => {
                        Err(de::Error::custom(format_args!("the range [{from}, {to}] ends before it begins")))
                    }
                    _ => Err(de::Error::custom("a range has two numbers: [from, to]")),
                }
            }
        }
        deserializer.deserialize_any(Range)
    }
}

impl Serialize for TableRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0 == self.1 { self.0.serialize(serializer) } else { (self.0, self.1).serialize(serializer) }
    }
}

schema!(TableRange, {
    "anyOf": [
        { "type": "integer", "minimum": 0, "maximum": 4294967295_u32 },
        { "type": "array", "items": { "type": "integer", "minimum": 0, "maximum": 4294967295_u32 }, "minItems": 2, "maxItems": 2 }
    ]
});
