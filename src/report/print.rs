//! Writes the result to stdout. No byte of it may affect a terminal, wherever the strings came from: each result
//! escapes what it shows, and this module enforces it.

use std::io::{self, Write};

use anyhow::Context;

use crate::cli::Output;
use crate::model::is_visible;
use crate::signals;

/// Writes a result. A closed pipe is no error: the reader has read enough.
///
/// # Errors
///
/// It could not be written.
pub fn result(form: Output, text: &str) -> anyhow::Result<()> {
    if text.is_empty() {
        return Ok(());
    }
    let text = match form {
        Output::Json => escaped(text, for_json),
        Output::Text | Output::Npd => escaped(text, for_people),
    };
    let written = signals::survive_file_limit().and_then(|()| {
        let mut stdout = io::stdout().lock();
        stdout.write_all(text.as_bytes())?;
        stdout.flush()
    });
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write the result to stdout"),
    }
}

/// Writes clap's message about the arguments, which may contain foreign strings.
///
/// # Errors
///
/// It could not be written.
pub fn usage(usage: &clap::Error) -> io::Result<()> {
    if !usage.use_stderr() {
        // Help and version contain no foreign strings.
        return usage.print();
    }
    let text = escaped(&usage.render().to_string(), for_people);
    signals::survive_file_limit()?;
    io::stderr().write_all(text.as_bytes())
}

/// JSON for a file that may be shown on a terminal.
pub fn harmless_json(text: &str) -> String {
    escaped(text, for_json)
}

/// JSON (and quoted YAML) may escape every character; serde_json leaves most of these as they are.
fn for_json(c: char, out: &mut String) {
    c.encode_utf16(&mut [0; 2]).iter().for_each(|unit| out.push_str(&format!("\\u{unit:04x}")));
}

fn for_people(c: char, out: &mut String) {
    out.extend(c.escape_default());
}

/// Escapes every character that is neither visible nor a line end nor part of a colour.
fn escaped(text: &str, escape: fn(char, &mut String)) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let taken = colour(rest).unwrap_or(c.len_utf8());
        let (this, after) = rest.split_at(taken);
        match c {
            '\n' => out.push(c),
            _ if is_visible(c) || taken > 1 && c == '\x1b' => out.push_str(this),
            _ => escape(c, &mut out),
        }
        rest = after;
    }
    out
}

/// The length of the colour sequence at the beginning of the text: `ESC [ digits m`.
fn colour(text: &str) -> Option<usize> {
    let digits = text.strip_prefix("\x1b[")?;
    let end = digits.find(|c: char| !c.is_ascii_digit())?;
    digits.get(end..)?.starts_with('m').then_some("\x1b[".len() + end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_visible_is_escaped() {
        for (text, expected) in [
            ("plain ü\n", "plain ü\n"),
            ("\x1b[1mbold\x1b[0m", "\x1b[1mbold\x1b[0m"),
            ("\x1b[2J\x1b]0;x\x07\x1b[1;31m\x1b[m\x1b[", "\\u{1b}[2J\\u{1b}]0;x\\u{7}\\u{1b}[1;31m\x1b[m\\u{1b}["),
            ("\r\0\u{9b}2J\u{202e}\u{7f}", "\\r\\u{0}\\u{9b}2J\\u{202e}\\u{7f}"),
        ] {
            assert_eq!(escaped(text, for_people), expected, "{text:?}");
        }
    }

    #[test]
    fn json_stays_what_it_is() {
        let value = serde_json::json!({ "\u{9b}": "\x1b[2J\u{202e}\u{7f}\u{e0001}\\\"\n" });
        let text = value.to_string() + "\n";
        let shown = escaped(&text, for_json);
        assert!(shown.is_ascii() && !shown.trim_end().contains(|c: char| c.is_control()), "{shown:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }
}
