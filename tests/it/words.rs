//! Words and phrases that never come back: each reads as a translation, or names nobody. The texts follow one rule: short,
//! plain sentences, the subject first, in the field's own terms.

use std::fs;
use std::path::{Path, PathBuf};

/// Each is compared in lower case, with single spaces. A letter before or after a phrase is another word.
const NEVER: &[&str] = &[
    // Verbs of another century.
    "mended",
    "mends",
    "mending",
    "is told",
    "are told",
    "was told",
    "told of",
    "tells of",
    "is to be told",
    "to tell of",
    "takes root",
    "goes in when",
    "makes it so",
    "is made so",
    "is none of",
    "none of this",
    "is none that",
    "is no regular",
    "is no directory",
    "is no address",
    "is no prefix",
    "is no duration",
    "is no name",
    "is no time-out",
    "is no kubernetes",
    "is no default route",
    "is no port",
    "is no number",
    "is no captured node",
    "fits to",
    "does not decode",
    "cannot tell",
    "not seen:",
    // Whose, and who.
    "nobody",
    "somebody",
    "anybody",
    "whoever",
    "whom",
    "who has cap_net_admin",
    "looked after",
    "looks after",
    "look after",
    "of ours",
    "of whomever",
    "whoever has set",
    "nobody else waiting",
    "is nobody's",
    "or of nobody",
    "by nobody",
    "everybody's",
    "looked after by",
    "who asks",
    "who observes",
    "who writes",
    "who only looks",
    // Literary turns.
    "each with each",
    "each by the same other",
    "come behind --node",
    "has a route of its own here",
    "it stays there",
    "is in it by now",
    "another namespace by now",
    "this one goes on",
    "the way back is",
    "no way back",
    "says the same",
    "what was reported could not",
    "what was tried",
    "tells something",
    "something to tell",
    "for the want of",
    "whose time has come",
    "its time has not come",
    "the second look misses",
    "as it should be",
    "not as it should be",
    "counts for nothing",
    "what was remembered",
    "what is not wanted",
    "not wanted",
    "wanted is",
    "says no",
    "no file says",
    "find no way",
    "the like is",
    "and not there",
    "by intention",
    "meanwhile, whoever",
    "a moment too much",
    "is the business of",
    "the business of",
    "without a door",
    "a door to",
];

/// The files that are read: all of what users and contributors see.
fn files() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut walk: Vec<PathBuf> = ["src", "units", "config", "packaging", "docs", "examples", "bench", "README.md"]
        .into_iter()
        .chain([
            "CHANGELOG.md",
            "CONTRIBUTING.md",
            "SECURITY.md",
            "Cargo.toml",
            ".ci",
            "tests/bad-config",
            "tests/systemd",
        ])
        .chain(["run", "fresh", "fuzz", "faults", "chaos", "manifests", "fleet", "acceptance"].map(|name| {
            // What contributors start by hand, and read the output of.
            ["tests", name].join("/").leak() as &str
        }))
        .map(|name| root.join(name))
        .collect();
    while let Some(path) = walk.pop() {
        if path.is_dir() {
            walk.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            found.push(path);
        }
    }
    found
}

#[test]
fn no_text_uses_a_phrase_that_was_replaced() {
    let mut found = Vec::new();
    let mut read = 0;
    for path in files() {
        // What is no text (a picture, a file that must not be UTF-8) has no words.
        let Ok(text) = fs::read_to_string(&path) else { continue };
        read += 1;
        // Comment signs and continuations of strings are no part of a sentence.
        let words = text.split_whitespace().filter(|word| !matches!(*word, "//" | "///" | "//!" | "#" | "\\"));
        if path.ends_with("debian/copyright") {
            continue; // the licence's own words
        }
        // A key of state.json that stays.
        let words = words.filter(|word| !word.contains("\"mends\""));
        let text = words.collect::<Vec<_>>().join(" ").to_lowercase();
        for &phrase in NEVER {
            for (at, _) in text.match_indices(phrase) {
                let is_letter = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
                let (before, after) = (text[..at].chars().next_back(), text[at + phrase.len()..].chars().next());
                if !is_letter(before) && !is_letter(after) {
                    let start = text[..at].char_indices().rev().nth(40).map_or(0, |(index, _)| index);
                    let end = text[at..].char_indices().nth(60).map_or(text.len(), |(index, _)| at + index);
                    found.push(format!("{}: {phrase:?}: … {} …", path.display(), &text[start..end]));
                }
            }
        }
    }
    assert!(read > 200, "only {read} files were read");
    assert!(found.is_empty(), "{} places:\n{}", found.len(), found.join("\n"));
}
