//! An event in words: its message and its fields, as every log of this program writes them.

use std::fmt;

use tracing::Event;
use tracing::field::{Field, Visit};

/// What an event says.
#[derive(Debug, Default)]
pub struct Said {
    /// The text without fields.
    pub message: String,
    /// The fields, in the order of the code.
    pub fields: Vec<Value>,
}

/// A field.
#[derive(Debug)]
pub struct Value {
    /// Its name in the code.
    pub name: &'static str,
    /// The value alone.
    pub plain: String,
    /// Whether a line has it in quotation marks.
    quoted: bool,
}

impl Said {
    /// Reads an event.
    pub fn of(event: &Event<'_>) -> Said {
        let mut said = Said::default();
        event.record(&mut said);
        said
    }

    fn take(&mut self, field: &Field, plain: String, quoted: bool) {
        match field.name() {
            "message" => self.message = plain,
            name => self.fields.push(Value { name, plain, quoted }),
        }
    }
}

impl Value {
    /// The value as a line has it.
    pub fn in_a_line(&self) -> String {
        if self.quoted { format!("{:?}", self.plain) } else { self.plain.clone() }
    }
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value.into(), true);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.take(field, format!("{value:?}"), false);
    }
}
