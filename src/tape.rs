//! What was read of a node, recorded so that it can be replayed on another machine, at another time.
//!
//! A [`Tape`] is empty and does nothing, or it records each answer of a look, or it plays them. Each look asks by
//! [`Tape::answer`], with the name of the look and its key. What was looked at twice while it recorded was the same both
//! times, so that all answers are of one moment. What was never recorded is unknown, and is not taken for missing.
//!
//! Every answer is a list of strings, which each look makes and reads itself: a typed form for each would be a tenth of a
//! megabyte of the program.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Display;
use std::rc::Rc;
use std::time::Duration;

/// Lists of strings, each with its name.
pub type Lists = BTreeMap<String, Vec<String>>;

/// Such lists by look and key.
pub type ByLook = BTreeMap<String, Lists>;

/// Answers, and why there were none.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Looks {
    /// What was seen.
    pub seen: ByLook,
    /// What looks failed for.
    pub failed: ByLook,
}

/// An answer that can be kept as a list of strings.
pub trait Taped: Sized {
    /// As a list of strings.
    fn to_tape(&self) -> Vec<String>;

    /// The answer in such a list; `None` if the list is invalid.
    fn of_tape(answer: &[String]) -> Option<Self>;
}

/// Records or plays answers. Its clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Tape(Option<Rc<RefCell<Reel>>>);

#[derive(Debug, Default)]
struct Reel {
    plays: bool,
    looks: Looks,
}

impl Tape {
    /// One that records.
    pub fn recording() -> Tape {
        Tape(Some(Rc::default()))
    }

    /// One that plays these.
    pub fn playing(looks: Looks) -> Tape {
        Tape(Some(Rc::new(RefCell::new(Reel { plays: true, looks }))))
    }

    /// Whether it does nothing: a run has no use for it, and is spared what it costs.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// All that was recorded.
    pub fn take(&self) -> Looks {
        self.0.as_ref().map_or_else(Looks::default, |reel| std::mem::take(&mut reel.borrow_mut().looks))
    }

    /// Answers a look: from the tape, or else live, and then it may be recorded.
    ///
    /// # Errors
    ///
    /// Why there is no answer.
    pub fn answer<T: Taped>(
        &self,
        look: &str,
        key: &str,
        live: impl FnOnce() -> Result<T, String>,
    ) -> Result<T, String> {
        let Some(reel) = &self.0 else { return live() };
        let known = reel.borrow().known(look, key);
        if let Some(known) = known {
            return T::of_tape(&known?).ok_or_else(|| format!("the captured file is damaged: {look} {key}"));
        }
        let answer = live();
        reel.borrow_mut().keep(look, key, answer.as_ref().map(T::to_tape));
        answer
    }

    /// The same for a look with errors of a type of its own, which a tape keeps as text. Without a tape nothing is made
    /// of key and error.
    ///
    /// # Errors
    ///
    /// Why there is no answer.
    pub fn look<T: Taped, E: Display>(
        &self,
        look: &str,
        key: impl FnOnce() -> String,
        live: impl FnOnce() -> Result<T, E>,
        error: impl FnOnce(String) -> E,
    ) -> Result<T, E> {
        if self.is_empty() {
            return live();
        }
        self.answer(look, &key(), || live().map_err(|error| error.to_string())).map_err(error)
    }
}

impl Reel {
    fn keep(&mut self, look: &str, key: &str, answer: Result<Vec<String>, &String>) {
        let Looks { seen, failed } = &mut self.looks;
        match answer {
            Ok(answer) => drop(seen.entry(look.into()).or_default().insert(key.into(), answer)),
            Err(why) => drop(failed.entry(look.into()).or_default().insert(key.into(), vec![why.clone()])),
        }
    }

    fn known(&self, look: &str, key: &str) -> Option<Result<Vec<String>, String>> {
        let Looks { seen, failed } = &self.looks;
        if let Some(answer) = seen.get(look).and_then(|answers| answers.get(key)) {
            return Some(Ok(answer.clone()));
        }
        let why = failed.get(look).and_then(|answers| answers.get(key)).map(|why| why.concat());
        why.or_else(|| self.plays.then(|| "not in the captured file".into())).map(Err)
    }
}

/// Bytes as text: as they are where they are UTF-8, else `\xff`; a backslash is doubled.
pub fn text_of(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text += &chunk.valid().replace('\\', "\\\\");
        chunk.invalid().iter().for_each(|byte| text += &format!("\\x{byte:02x}"));
    }
    text
}

/// The bytes of such a text.
pub fn bytes_of(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        bytes.extend(before.bytes());
        let hex = after.strip_prefix('x').and_then(|hex| hex.get(..2));
        rest = match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                after.get(3..).unwrap_or_default()
            }
            None => {
                bytes.push(b'\\');
                after.strip_prefix('\\').unwrap_or(after)
            }
        };
    }
    bytes.extend(rest.bytes());
    bytes
}

/// A time as a number of nanoseconds.
pub fn nanos(time: Duration) -> String {
    time.as_nanos().to_string()
}

/// The time that is such a number.
pub fn duration(text: &str) -> Option<Duration> {
    text.parse().map(Duration::from_nanos).ok()
}

impl Taped for bool {
    fn to_tape(&self) -> Vec<String> {
        vec![if *self { "yes" } else { "no" }.into()]
    }

    fn of_tape(answer: &[String]) -> Option<bool> {
        match answer.first()?.as_str() {
            "yes" => Some(true),
            "no" => Some(false),
            _ => None,
        }
    }
}

/// Nothing, or one text.
impl Taped for Option<String> {
    fn to_tape(&self) -> Vec<String> {
        self.iter().cloned().collect()
    }

    fn of_tape(answer: &[String]) -> Option<Option<String>> {
        Some(answer.first().cloned())
    }
}

/// Nothing, or the bytes of a file.
impl Taped for Option<Vec<u8>> {
    fn to_tape(&self) -> Vec<String> {
        self.iter().map(|bytes| text_of(bytes)).collect()
    }

    fn of_tape(answer: &[String]) -> Option<Option<Vec<u8>>> {
        Some(answer.first().map(|text| bytes_of(text)))
    }
}

/// Names.
impl Taped for Vec<Box<[u8]>> {
    fn to_tape(&self) -> Vec<String> {
        self.iter().map(|name| text_of(name)).collect()
    }

    fn of_tape(answer: &[String]) -> Option<Vec<Box<[u8]>>> {
        Some(answer.iter().map(|name| bytes_of(name).into()).collect())
    }
}

/// Times.
impl<const N: usize> Taped for [Duration; N] {
    fn to_tape(&self) -> Vec<String> {
        self.iter().map(|time| nanos(*time)).collect()
    }

    fn of_tape(answer: &[String]) -> Option<[Duration; N]> {
        let times: Option<Vec<Duration>> = answer.iter().map(|time| duration(time)).collect();
        times?.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_as_they_were() {
        for bytes in [&b""[..], b"eth0", b"a\\b", b"\\x41", b"\xff\xfe", b"\\\xc3", "\u{e9}\\".as_bytes(), b"\\\\x"] {
            assert_eq!(bytes_of(&text_of(bytes)), bytes, "{}", text_of(bytes));
        }
    }

    #[test]
    fn answers_are_played_as_they_were_recorded() {
        let tape = Tape::recording();
        let ask = |tape: &Tape, key: &str, live: Result<&str, &str>| {
            tape.answer("words", key, || live.map(|word| Some(word.to_owned())).map_err(str::to_owned))
        };
        let (one, gone) = (Ok(Some("one".to_owned())), Err("gone".to_owned()));
        assert_eq!(ask(&tape, "a", Ok("one")), one);
        assert_eq!(ask(&tape, "a", Ok("two")), one, "all answers are of one moment");
        assert_eq!(ask(&tape, "b", Err("gone")), gone);
        let played = Tape::playing(tape.take());
        assert_eq!(ask(&played, "a", Ok("two")), one);
        assert_eq!(ask(&played, "b", Ok("two")), gone);
        assert_eq!(ask(&played, "c", Ok("two")), Err("not in the captured file".into()));
        let wrong: Result<bool, String> = played.answer("words", "a", || Ok(true));
        assert_eq!(wrong, Err("the captured file is damaged: words a".into()));
    }
}
