//! Files of sections and assignments, as used by systemd and NetworkManager; sections are optional.

use std::fmt;
use std::path::PathBuf;

use crate::model::one_line;
use crate::sysctl_d::{ConfFile, Setting};

/// A line of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// The file, as a path below the root.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
}

impl Location {
    /// The place of a setting.
    pub fn of(setting: &Setting) -> Location {
        Location { file: setting.file.to_path_buf(), line: setting.line }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", one_line(&self.file.to_string_lossy()), self.line)
    }
}

/// An assignment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// Its position.
    pub place: Location,
    /// Its section; empty before the first.
    pub section: String,
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
}

/// All assignments of a file. Lines that are not UTF-8 are ignored.
pub fn entries(file: &ConfFile) -> Vec<Assignment> {
    let text = String::from_utf8_lossy(&file.text);
    let (mut section, mut entries) = (String::new(), Vec::new());
    let mut lines = (1..).zip(text.lines());
    while let Some((line, text)) = lines.next() {
        let text = text.trim();
        if text.is_empty() || text.starts_with(['#', ';']) {
            continue;
        }
        if let Some(name) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name.to_owned();
            continue;
        }
        let Some((key, value)) = text.split_once('=') else { continue };
        let mut value = value.trim().to_owned();
        while value.ends_with('\\') {
            value.pop();
            let Some((_, more)) = lines.next() else { break };
            value.push_str(more.trim());
        }
        let place = Location { file: file.path.clone(), line };
        entries.push(Assignment {
            place,
            section: section.clone(),
            key: key.trim().into(),
            value: value.trim().into(),
        });
    }
    entries
}

/// A boolean of systemd, which ignores anything else.
pub fn boolean(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "1" | "yes" | "y" | "true" | "t" | "on" => Some(true),
        "0" | "no" | "n" | "false" | "f" | "off" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz() {
        crate::fuzz::run("ini", |bytes| {
            let entries = entries(&ConfFile { path: "/f".into(), text: bytes.into() });
            entries
                .iter()
                .filter(|entry| boolean(&entry.value).is_none() && !entry.place.to_string().is_empty())
                .count()
                > 0
        });
    }

    #[test]
    fn entries_know_their_section_and_line() {
        let text = "A=1\n# x\n[Network]\n;B=2\nB = yes \\\n no\n[Link\nC\n[Match]\nName=eth0";
        let file = ConfFile { path: "/f".into(), text: text.into() };
        let shown: Vec<_> =
            entries(&file).iter().map(|it| format!("{} [{}] {}={}", it.place, it.section, it.key, it.value)).collect();
        assert_eq!(shown, ["/f:1 [] A=1", "/f:5 [Network] B=yes no", "/f:10 [Match] Name=eth0"]);
    }

    #[test]
    fn booleans_are_those_of_systemd() {
        for (text, expected) in [("Yes", Some(true)), ("off", Some(false)), ("", None), ("maybe", None)] {
            assert_eq!(boolean(text), expected, "{text}");
        }
    }
}
