//! An event as text: its message and its fields, the same in every log of this program.

use std::fmt;

use tracing::Event;
use tracing::field::{Field, Visit};

/// The text of an event.
#[derive(Debug, Default)]
pub struct Said {
    /// The message without fields.
    pub message: String,
    /// The fields, in the order of the code.
    pub fields: Vec<LogField>,
}

/// A field.
#[derive(Debug)]
pub struct LogField {
    /// Its name in the code.
    pub name: &'static str,
    /// The value alone.
    pub plain: String,
    quotes: Quotes,
}

/// Where a value stands in quotes.
#[derive(Debug, Clone, Copy)]
enum Quotes {
    InLines,
    Never,
}

impl Said {
    /// Reads an event.
    pub fn of(event: &Event<'_>) -> Said {
        let mut said = Said::default();
        event.record(&mut said);
        said
    }

    fn take(&mut self, field: &Field, plain: String, quotes: Quotes) {
        match field.name() {
            "message" => self.message = plain,
            name => self.fields.push(LogField { name, plain, quotes }),
        }
    }
}

impl LogField {
    /// The value as it is shown in a line.
    pub fn in_a_line(&self) -> String {
        match self.quotes {
            Quotes::InLines => format!("{:?}", self.plain),
            Quotes::Never => self.plain.clone(),
        }
    }
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value.into(), Quotes::InLines);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.take(field, format!("{value:?}"), Quotes::Never);
    }
}
