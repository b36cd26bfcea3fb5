//! A line of a file: its key or pattern, and its value; and which keys a pattern matches.

use std::path::Path;
use std::sync::Arc;

use super::fnmatch::is_match;
use super::glob::{finds, plain_ends};
use super::{Occasion, Setting};

/// One key, with the value of its last line that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    pub setting: Setting,
    /// `-key`: nothing is written.
    pub excluded: bool,
    /// How many bytes of a pattern are literal, before and after its wildcards.
    plain: (usize, usize),
}

impl Line {
    pub fn read(file: &Arc<Path>, number: usize, text: &[u8]) -> Option<Line> {
        let text = strip(text);
        if matches!(text.first(), None | Some(b'#' | b';')) {
            return None;
        }
        let (key, value) = match text.iter().position(|byte| *byte == b'=') {
            Some(at) => {
                let (key, value) = text.split_at(at);
                (key.strip_prefix(b"-").unwrap_or(key), Some(strip(value.get(1..).unwrap_or_default())))
            }
            // Neither an assignment nor an exclusion: systemd-sysctl warns and continues.
            None => (text.strip_prefix(b"-")?, None),
        };
        let key = normalize(strip(key));
        let glob = key.iter().any(|byte| b"*?[".contains(byte));
        let value_bytes = value.unwrap_or_default().to_vec();
        let plain = if glob { plain_ends(&key) } else { (0, 0) };
        let setting = Setting { file: Arc::clone(file), line: number, value: value_bytes, glob, key };
        Some(Line { setting, excluded: value.is_none(), plain })
    }

    /// The literal beginning of the pattern.
    pub fn start(&self) -> &[u8] {
        self.setting.key.get(..self.plain.0).unwrap_or_default()
    }

    pub fn matches(&self, key: &[u8], occasion: Occasion) -> bool {
        let pattern = &self.setting.key;
        let end = pattern.get(pattern.len().saturating_sub(self.plain.1)..).unwrap_or_default();
        key.ends_with(end) && matches(pattern, key, occasion)
    }

    pub fn says_the_same(&self, other: &Line) -> bool {
        (self.excluded, &self.setting.value) == (other.excluded, &other.setting.value)
    }
}

/// The lines, as systemd counts them: ended by NL, CR or NUL, or by one of each together.
pub fn lines_of(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = text;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = rest.iter().position(|byte| is_end(*byte)).unwrap_or(rest.len());
        let (line, tail) = rest.split_at(end);
        let mut ends = Vec::new();
        for byte in tail {
            if !is_end(*byte) || ends.contains(byte) || ends.contains(&0) {
                break;
            }
            ends.push(*byte);
        }
        rest = tail.get(ends.len()..).unwrap_or_default();
        Some(line)
    })
}

fn is_end(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r' | 0)
}

fn strip(text: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t' | b'\n' | b'\r');
    let start = text.iter().position(|byte| !blank(byte)).unwrap_or(text.len());
    let end = text.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    text.get(start..end).unwrap_or_default()
}

/// The key as a path below /proc/sys.
pub fn normalize(key: &[u8]) -> Vec<u8> {
    let dotted = key.iter().find(|byte| matches!(byte, b'/' | b'.')) == Some(&b'.');
    let swap = |byte: &u8| match byte {
        b'.' if dotted => b'/',
        b'/' if dotted => b'.',
        byte => *byte,
    };
    let path: Vec<u8> = key.iter().map(swap).collect();
    let segments: Vec<&[u8]> =
        path.split(|byte| *byte == b'/').filter(|segment| !matches!(*segment, b"" | b".")).collect();
    segments.join(&b'/')
}

/// Whether a pattern of paths matches a path.
fn matches(pattern: &[u8], path: &[u8], occasion: Occasion) -> bool {
    // The prefix `net/ipv4/conf/NAME` is matched by fnmatch(3), the rest by glob(3).
    let by_fnmatch = if occasion == Occasion::Link { 4 } else { 0 };
    let mut pattern = pattern;
    let mut path = path;
    for _ in 0..by_fnmatch {
        let ((segment, rest), (name, tail)) = (split(pattern), split(path));
        if segment != name && !(segment.iter().any(|byte| b"*?[".contains(byte)) && is_match(segment, name)) {
            return false;
        }
        (pattern, path) = (rest, tail);
    }
    finds(pattern, path)
}

/// The first segment of a path, and the rest.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().position(|byte| *byte == b'/').unwrap_or(path.len());
    let (first, rest) = path.split_at(end);
    (first, rest.get(1..).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_braces_end() {
        let pattern = format!("net/ipv4/conf/*{}/rp_filter", "{a,b}".repeat(200));
        assert!(!matches(pattern.as_bytes(), b"net/ipv4/conf/eth1/rp_filter", Occasion::Boot));
        let stars = "*a".repeat(100);
        assert!(!is_match(stars.as_bytes(), "a".repeat(99).as_bytes()));
    }
}
