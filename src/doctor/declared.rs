//! Causes in files that set a declared sysctl to another value.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;

use super::Finding;
use super::cure::{after, proposed, write_command};
use super::facts::{Facts, shortened};
use super::ini::Location;
use crate::config;
use crate::model::{FORWARD, FORWARD_OF_ALL, shell_word};
use crate::observed::Gap;
use crate::sysctl_d::{Occasion, Setting, Settings, is_match};

/// The file of a cure: it sorts after those of distributions.
const FILE: &str = "/etc/sysctl.d/90-declared.conf";

/// A key and its declared value, and the line that sets another value.
struct Overruled {
    key: Vec<u8>,
    value: String,
    line: Setting,
}

pub fn sysctl_overruled(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let mut by_file: BTreeMap<String, Vec<Overruled>> = BTreeMap::new();
    for entry in &facts.desired.sysctls {
        for key in keys(facts, entry)? {
            if let Some(line) = against(facts, &key, &entry.value.0) {
                let file = line.file.to_string_lossy().into_owned();
                by_file.entry(file).or_default().push(Overruled { key, value: entry.value.0.clone(), line });
            }
        }
    }
    Ok(by_file.values().map(|overruled| finding(facts, overruled)).collect())
}

/// The keys that an entry declares, for the existing interfaces.
fn keys(facts: &Facts, entry: &config::Sysctl) -> Result<Vec<Vec<u8>>, Gap> {
    let Some((directory, pattern, rest)) = entry.key.glob() else {
        return Ok(vec![entry.key.path().as_bytes().to_vec()]);
    };
    let names = facts.names()?;
    let matching = names.values().filter(|name| is_match(pattern.as_bytes(), name.as_bytes()));
    Ok(matching.map(|name| [directory.as_bytes(), b"/", name.as_bytes(), b"/", rest.as_bytes()].concat()).collect())
}

/// The names of a key: the forwarding switch has two.
fn names_of(key: &[u8]) -> Vec<&[u8]> {
    let forward = [FORWARD.as_bytes(), FORWARD_OF_ALL.as_bytes()];
    if forward.contains(&key) { forward.to_vec() } else { vec![key] }
}

/// The line that is written last to a key, by any of its names.
pub fn last_word<'a>(settings: &'a Settings, key: &[u8], occasion: Occasion) -> Option<&'a Setting> {
    let winners = names_of(key).into_iter().filter_map(|name| settings.winner(name, occasion));
    winners.max_by(|a, b| (a.file.file_name(), a.line).cmp(&(b.file.file_name(), b.line)))
}

fn is(line: &Setting, value: &str) -> bool {
    line.value
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
        .eq(value.split_whitespace().map(str::as_bytes))
}

/// The line that wins over a declared value with another value.
fn against(facts: &Facts, key: &[u8], value: &str) -> Option<Setting> {
    let of = |settings: &Settings| {
        let lines = [Occasion::Boot, Occasion::Link].into_iter().filter_map(|when| last_word(settings, key, when));
        lines.rev().find(|line| !is(line, value)).cloned()
    };
    facts.files.ufw.as_ref().and_then(of).or_else(|| of(&facts.files.sysctl))
}

/// Whether a line is in the file that ufw applies.
pub fn is_ufws(facts: &Facts, line: &Setting) -> bool {
    let file = |settings: &Settings| settings.files().any(|file| *file.path == *line.file);
    facts.files.ufw.as_ref().is_some_and(file)
}

fn finding(facts: &Facts, overruled: &[Overruled]) -> Finding {
    let said = overruled.iter().map(|it| {
        let value = String::from_utf8_lossy(&it.line.value).into_owned();
        format!("{} sets {} = {value}, but {} is declared", it.line.place(), shell_word(&it.line.key), it.value)
    });
    let said = shortened(said);
    let place = overruled.first().map(|it| Location::of(&it.line));
    let of_ufw = overruled.iter().any(|it| is_ufws(facts, &it.line));
    let when = if of_ufw {
        "ufw writes it whenever it starts or reloads"
    } else {
        "it is applied at boot and by `sysctl --system`"
    };
    let evidence = format!("{said}; {when}, overwriting any other value");
    let by_hand = || {
        let lines = overruled.iter().map(|it| format!("line {} to {}", it.line.line, it.value));
        let file =
            place.as_ref().map_or(Cow::Borrowed(""), |place| Cow::Owned(place.file.to_string_lossy().into_owned()));
        format!("# in {}, change {}", shell_word(file.as_bytes()), shortened(lines))
    };
    if of_ufw {
        return Finding::new(evidence, place.clone(), by_hand());
    }
    let last = overruled.iter().filter_map(|it| it.line.file.file_name()).map(OsStrExt::as_bytes).max();
    // With the name used in the other line: a key that is repeated with the same value keeps its earlier place.
    let name = |it: &Overruled| if it.line.glob { it.key.clone() } else { it.line.key.clone() };
    let lines = overruled.iter().map(|it| [name(it).as_slice(), b" = ", it.value.as_bytes(), b"\n"].concat());
    let text =
        [&b"# Values declared in node-fixer's configuration.\n"[..], &lines.collect::<Vec<_>>().concat()].concat();
    let file = proposed(facts.files.sysctl.files(), &after(FILE, last), &text);
    let cured = facts.files.sysctl.with(file.clone());
    let wins = |it: &Overruled| {
        [Occasion::Boot, Occasion::Link]
            .into_iter()
            .all(|when| last_word(&cured, &it.key, when).is_none_or(|line| is(line, &it.value)))
    };
    // A key that is a pattern, or contains an equals sign, cannot be written to such a file.
    let is_plain = |it: &Overruled| !it.key.iter().any(|byte| b"*?[=".contains(byte));
    if overruled.iter().all(|it| wins(it) && is_plain(it)) {
        Finding::new(evidence, place.clone(), write_command(&file)).with(vec![file])
    } else {
        Finding::new(evidence, place.clone(), by_hand())
    }
}
