//! The file that sets rp_filter as configured, also for future interfaces.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::super::cure::{after, beside};
use super::wished::{Wished, key_of};
use crate::sorted;
use crate::sysctl_d::{ConfFile, OURS, Settings};

/// Its path: it sorts after the files of distributions.
const FILE: &str = "/etc/sysctl.d/90-rp-filter.conf";

/// The file, and its limits.
pub struct Proposal {
    pub file: ConfFile,
    /// Whether node-fixer's own file would do as well: an operator's file can still override that one.
    pub ours_wins: bool,
    /// Files that override it.
    pub undaunted: BTreeSet<Arc<Path>>,
}

impl Proposal {
    /// The names of interfaces that get the configured value.
    pub fn of(settings: &Settings, wished: &Wished, names: &[&[u8]], wanted: &[&[u8]]) -> Proposal {
        let patterns = Patterns::new(wished, names, wanted);
        let patterns: Vec<_> = wanted.iter().map(|name| patterns.of(name)).collect();
        let to_come = patterns.iter().flatten().map(|pattern| pattern.to_come.as_slice());
        let all = || wanted.iter().copied().chain(to_come.clone());
        let offenders = all().filter_map(|name| wished.offender(settings, name));
        let last = offenders.filter_map(|line| line.file.file_name()).map(OsStrExt::as_bytes).max();
        let existing: Vec<&ConfFile> = settings.files().collect();
        let make = |path| file(settings, wished, path, wanted, &patterns);
        let file = beside(&existing, &after(FILE, last), &make);
        let ours_wins = last.is_none_or(|last| Path::new(OURS).file_name().is_some_and(|ours| last < ours.as_bytes()));
        let cured = settings.with(file.clone());
        let left = all().filter_map(|name| wished.offender(&cured, name));
        Proposal { file, ours_wins, undaunted: sorted::set(left.map(|line| Arc::clone(&line.file))) }
    }
}

/// The line for an interface, or for a group that includes future ones.
struct NamePattern {
    /// The name, or a pattern for it.
    glob: Vec<u8>,
    /// A possible interface name that is not in use.
    to_come: Vec<u8>,
}

/// Finds patterns for names, of which there may be thousands.
struct Patterns<'a> {
    wished: &'a Wished<'a>,
    names: BTreeSet<&'a [u8]>,
    /// Prefixes of names with different configured values.
    mixed: BTreeSet<&'a [u8]>,
}

impl<'a> Patterns<'a> {
    fn new(wished: &'a Wished<'a>, names: &[&'a [u8]], wanted: &[&[u8]]) -> Patterns<'a> {
        let (names, selected) = (sorted::set(names.iter().copied()), sorted::set(wanted.iter().copied()));
        let (mut wanted, mut mixed) = (BTreeMap::new(), BTreeSet::new());
        for name in &names {
            let entry = wished.entry(name).filter(|_| selected.contains(name));
            for stem in (0..=name.len()).filter_map(|length| name.get(..length)) {
                if *wanted.entry(stem).or_insert(entry) != entry {
                    mixed.insert(stem);
                }
            }
        }
        Patterns { wished, names, mixed }
    }

    /// The pattern for a name; none if it would match an interface with another configured value.
    fn of(&self, name: &[u8]) -> Option<NamePattern> {
        let stem = name.get(..name.iter().take_while(|byte| byte.is_ascii_lowercase()).count())?;
        // `all` is never written.
        if stem.is_empty() || stem == name || b"all".starts_with(stem) || self.mixed.contains(stem) {
            return None;
        }
        let (_, start) = name.split_last()?;
        let mut free =
            [start, name].into_iter().flat_map(|start| (b'0'..=b'9').map(move |digit| [start, &[digit]].concat()));
        let wanted = self.wished.entry(name);
        let to_come = free.find(|new| self.wished.entry(new) == wanted && !self.names.contains(new.as_slice()))?;
        Some(NamePattern { glob: [stem, b"*"].concat(), to_come })
    }
}

/// A file that sets the configured value for these interfaces.
fn file(
    settings: &Settings,
    wished: &Wished<'_>,
    path: PathBuf,
    names: &[&[u8]],
    patterns: &[Option<NamePattern>],
) -> ConfFile {
    let line = |glob: &[u8], name: &[u8]| {
        let dotted = glob.contains(&b'.');
        let key = if dotted {
            key_of(glob)
        } else {
            key_of(glob).iter().map(|b| if *b == b'/' { b'.' } else { *b }).collect()
        };
        // Interfaces come and go: a missing one is no failure.
        [b"-", key.as_slice(), format!(" = {}\n", wished.value(name).number()).as_bytes()].concat()
    };
    // A name that would be read as a pattern, or as a key and its value, cannot be written.
    let is_plain = |name: &[u8]| !name.iter().any(|byte| b"*?[=".contains(byte));
    let general = names.iter().zip(patterns).filter_map(|(name, pattern)| match pattern {
        Some(pattern) => Some(line(&pattern.glob, name)),
        None => is_plain(name).then(|| line(name, name)),
    });
    let mut said = BTreeSet::new();
    let mut lines: Vec<Vec<u8>> = general.filter(|line| said.insert(line.clone())).collect();
    let file = |lines: &[Vec<u8>]| {
        let header = b"# Sets rp_filter as in node-fixer's configuration, also for new interfaces.\n".to_vec();
        ConfFile { path: path.clone(), text: [header].iter().chain(lines).flatten().copied().collect() }
    };
    // A line that names the interface wins over a pattern.
    let so_far = settings.with(file(&lines));
    let loses = |name: &&[u8]| is_plain(name) && wished.offender(&so_far, name).is_some();
    let named = names.iter().copied().filter(loses).map(|name| line(name, name));
    lines.extend(named.filter(|line| said.insert(line.clone())));
    file(&lines)
}
