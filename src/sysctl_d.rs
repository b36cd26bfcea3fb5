//! What systemd-sysctl writes, and which line of which file says it: sysctl.d(5) as systemd's own source has it.
//!
//! At boot every setting is written; when an interface appears udev runs `systemd-sysctl --prefix=/net/ipv4/conf/NAME`
//! (and neigh, and ipv6), so that a file decides about interfaces of the future as well. Which files there are and
//! in which order is for [`crate::sys::Root`] to find; here they are read as text. The rules that surprise:
//!
//! - The files are one list. A key that comes again with another value moves to the end of the list; with the same
//!   value it stays where it was first. An exact key wins over every pattern, wherever they stand; among patterns
//!   the last in the list wins.
//! - `-key = value` ignores failures. `-key` without a value keeps patterns away from that exact key, and takes back
//!   an earlier line of the same key or of the very same pattern.
//! - The first separator of a key decides: after a dot the dots separate and slashes stand for dots in names, after
//!   a slash it is the path as it is.
//! - `{a,b}` in a pattern counts at boot, but udev's run does not understand it in the name of the interface.
//! - /etc/sysctl.conf is not read, but where a link in a sysctl.d leads to it, as Debian has it (99-sysctl.conf).
//!
//! `sysctl --system` of procps reads the same directories and then /etc/sysctl.conf. It differs from systemd in that
//! it writes every line in its turn (so the last of equal patterns counts, and `-key` takes nothing back), and that
//! it knows no braces.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::path::PathBuf;

use crate::net::one_line;

/// Where programs look for the files of a `NAME.d`, the first directory that has a file of a name wins. (/lib is a
/// link to usr/lib nowadays, and then has no name that was not seen.)
pub const DIRECTORIES: [&str; 5] = ["/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib"];

/// The file that node-fixer writes: late enough to win over what distributions ship, early enough for an operator's
/// `99-`.
pub const OURS: &str = "/etc/sysctl.d/90-node-fixer.conf";

/// Its directory.
pub const OURS_IN: &str = "/etc/sysctl.d";

/// A pattern is no reason to run out of memory.
const MAX_ALTERNATIVES: usize = 1000;

/// A file of configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfFile {
    /// Path below the root that it was read from, with a leading slash.
    pub path: PathBuf,
    /// Content.
    pub text: Vec<u8>,
}

impl ConfFile {
    /// The name by which files shadow each other and are put in order.
    pub fn name(&self) -> &[u8] {
        self.path.file_name().map_or(&[], std::os::unix::ffi::OsStrExt::as_bytes)
    }
}

/// When settings are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// By systemd-sysctl.service, for what is there already.
    Boot,
    /// By udev, for an interface that appears.
    Link,
}

/// A line that says what is written to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The file, as a path below the root.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// What is written.
    pub value: Vec<u8>,
    /// Whether a pattern brought it here, and not the key itself.
    pub glob: bool,
    /// The key or pattern of the line, as a path below /proc/sys.
    pub key: Vec<u8>,
}

impl Setting {
    /// `FILE:LINE`, harmless in a terminal.
    pub fn place(&self) -> String {
        format!("{}:{}", one_line(&self.file.to_string_lossy()), self.line)
    }
}

/// All settings of all files, in the order in which systemd-sysctl writes them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    files: Vec<ConfFile>,
    lines: Vec<Line>,
}

/// One key, with what its last different line says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    setting: Setting,
    /// `-key`: nothing is written.
    excluded: bool,
}

impl Settings {
    /// Reads the files, which are given in their order.
    pub fn new(files: Vec<ConfFile>) -> Settings {
        let mut lines: Vec<Option<Line>> = Vec::new();
        let mut places: HashMap<Vec<u8>, usize> = HashMap::new();
        for file in &files {
            for (number, text) in (1..).zip(lines_of(&file.text)) {
                let Some(line) = Line::read(file, number, text) else { continue };
                let old = places.get(&line.setting.key).and_then(|at| lines.get_mut(*at));
                match old {
                    Some(Some(old)) if old.says_the_same(&line) => continue,
                    Some(old) => *old = None,
                    None => {}
                }
                places.insert(line.setting.key.clone(), lines.len());
                lines.push(Some(line));
            }
        }
        Settings { lines: lines.into_iter().flatten().collect(), files }
    }

    /// The same, were this file there too, or instead of the one of its name.
    pub fn with(&self, file: ConfFile) -> Settings {
        let mut files = self.files.clone();
        files.retain(|old| old.name() != file.name());
        let at = files.partition_point(|old| old.name() < file.name());
        files.insert(at, file);
        Settings::new(files)
    }

    /// The files, in their order.
    pub fn files(&self) -> &[ConfFile] {
        &self.files
    }

    /// The keys and patterns of all lines.
    pub fn keys(&self) -> impl Iterator<Item = &[u8]> {
        self.lines.iter().map(|line| &*line.setting.key)
    }

    /// What is written to the key, which is a path below /proc/sys (`net/ipv4/conf/eth0.100/rp_filter`); `None`
    /// where nothing is. Whether the kernel takes the value is not asked.
    pub fn winner(&self, key: &[u8], occasion: Occasion) -> Option<&Setting> {
        if occasion == Occasion::Link && !is_of_link(key) {
            return None;
        }
        if let Some(exact) = self.lines.iter().find(|line| !line.setting.glob && line.setting.key == key) {
            return (!exact.excluded).then_some(&exact.setting);
        }
        let matching = |line: &&Line| line.setting.glob && !line.excluded && matches(&line.setting.key, key, occasion);
        self.lines.iter().rev().find(matching).map(|line| &line.setting)
    }

    /// What is written to the key in spite of what the file of this name says about it: the line that wins, where
    /// that file has one for the key and another file's wins. Mostly a later file; an earlier one where it names the
    /// key and ours has a pattern.
    pub fn overriding(&self, name: &[u8], key: &[u8], occasion: Occasion) -> Option<&Setting> {
        let winner = self.winner(key, occasion)?;
        let winners_name = winner.file.file_name().map(std::os::unix::ffi::OsStrExt::as_bytes);
        let ours = Settings::new(self.files.iter().filter(|file| file.name() == name).cloned().collect());
        let differs = ours.winner(key, occasion).is_some_and(|ours| ours.value != winner.value);
        (winners_name != Some(name) && differs).then_some(winner)
    }
}

impl Line {
    fn read(file: &ConfFile, number: usize, text: &[u8]) -> Option<Line> {
        let text = strip(text);
        if matches!(text.first(), None | Some(b'#' | b';')) {
            return None;
        }
        let (key, value) = match text.iter().position(|byte| *byte == b'=') {
            Some(at) => {
                let (key, value) = text.split_at(at);
                (key.strip_prefix(b"-").unwrap_or(key), Some(strip(value.get(1..).unwrap_or_default())))
            }
            // Neither an assignment nor an exclusion: systemd-sysctl complains and goes on.
            None => (text.strip_prefix(b"-")?, None),
        };
        let key = normalize(strip(key));
        let glob = key.iter().any(|byte| b"*?[".contains(byte));
        let value_bytes = value.unwrap_or_default().to_vec();
        let setting = Setting { file: file.path.clone(), line: number, value: value_bytes, glob, key };
        Some(Line { setting, excluded: value.is_none() })
    }

    fn says_the_same(&self, other: &Line) -> bool {
        (self.excluded, &self.setting.value) == (other.excluded, &other.setting.value)
    }
}

/// Whether udev's rule has the key written when an interface appears.
fn is_of_link(key: &[u8]) -> bool {
    let segments: Vec<&[u8]> = key.split(|byte| *byte == b'/').collect();
    matches!(segments[..], [b"net", b"ipv4" | b"ipv6", b"conf" | b"neigh", name, _, ..] if name != b"lo")
}

/// The lines, as systemd counts them: ended by NL, CR or NUL, or by one of each together.
fn lines_of(text: &[u8]) -> impl Iterator<Item = &[u8]> {
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
pub(crate) fn normalize(key: &[u8]) -> Vec<u8> {
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
    // The prefix `net/ipv4/conf/NAME` is compared by fnmatch(3), what comes after it by glob(3).
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
    alternatives(pattern).iter().any(|pattern| {
        let mut names = path.split(|byte| *byte == b'/');
        let mut segments = pattern.split(|byte| *byte == b'/');
        let all = segments.by_ref().all(|segment| {
            let wild = segment.first().is_some_and(|byte| b"*?[".contains(byte));
            names.next().is_some_and(|name| !(wild && name.starts_with(b".")) && is_match(segment, name))
        });
        all && names.next().is_none()
    })
}

/// The first segment of a path, and the rest.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().position(|byte| *byte == b'/').unwrap_or(path.len());
    let (first, rest) = path.split_at(end);
    (first, rest.get(1..).unwrap_or_default())
}

/// What glob(3) makes of braces.
fn alternatives(pattern: &[u8]) -> Vec<Vec<u8>> {
    let (mut done, mut open) = (Vec::new(), vec![pattern.to_vec()]);
    while let Some(pattern) = open.pop() {
        match brace(&pattern) {
            Some(parts) if done.len() + open.len() + parts.len() <= MAX_ALTERNATIVES => open.extend(parts),
            _ => done.push(pattern),
        }
    }
    done
}

/// The pattern once for each part of its first pair of braces.
fn brace(pattern: &[u8]) -> Option<Vec<Vec<u8>>> {
    let start = (0..pattern.len()).find(|at| {
        let rest = pattern.get(*at..).unwrap_or_default();
        rest.starts_with(b"{") && !rest.starts_with(b"{}")
    })?;
    let (mut depth, mut cuts) = (0, vec![start]);
    for (at, byte) in pattern.iter().enumerate().skip(start) {
        match byte {
            b'{' => depth += 1,
            b',' if depth == 1 => cuts.push(at),
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            cuts.push(at);
            break;
        }
    }
    if depth != 0 {
        return None;
    }
    let (before, after) = (pattern.get(..start)?, pattern.get(cuts.last()? + 1..)?);
    let parts = cuts.iter().zip(cuts.iter().skip(1));
    Some(parts.filter_map(|(from, to)| Some([before, pattern.get(from + 1..*to)?, after].concat())).collect())
}

/// One character of a pattern.
enum Token {
    /// `*`
    Many,
    /// `?`, or `[…]`: whether it is `[!…]`, and the ranges.
    One { negated: bool, ranges: Vec<RangeInclusive<u8>> },
}

/// Whether fnmatch(3) says that the pattern matches the whole name.
pub(crate) fn is_match(pattern: &[u8], name: &[u8]) -> bool {
    let tokens = tokens(pattern);
    // What follows the last `*`, and the place in the name where it was tried.
    let mut retry: Option<(usize, usize)> = None;
    let (mut token, mut at) = (0, 0);
    loop {
        match (tokens.get(token), name.get(at)) {
            (None, None) => return true,
            (Some(Token::Many), _) => {
                retry = Some((token + 1, at));
                token += 1;
                continue;
            }
            (Some(Token::One { negated, ranges }), Some(byte))
                if ranges.iter().any(|range| range.contains(byte)) != *negated =>
            {
                (token, at) = (token + 1, at + 1);
                continue;
            }
            _ => {}
        }
        match retry {
            Some((next, from)) if from < name.len() => {
                retry = Some((next, from + 1));
                (token, at) = (next, from + 1);
            }
            _ => return false,
        }
    }
}

fn tokens(pattern: &[u8]) -> Vec<Token> {
    let only = |byte: u8| Token::One { negated: false, ranges: vec![byte..=byte] };
    let mut tokens = Vec::new();
    let mut rest = pattern;
    while let [first, tail @ ..] = rest {
        rest = tail;
        tokens.push(match (first, tail) {
            (b'*', _) => Token::Many,
            (b'?', _) => Token::One { negated: false, ranges: vec![0..=u8::MAX] },
            (b'\\', [escaped, tail @ ..]) => {
                rest = tail;
                only(*escaped)
            }
            (b'[', _) => match set(tail) {
                Some((token, after)) => {
                    rest = after;
                    token
                }
                None => only(b'['),
            },
            (byte, _) => only(*byte),
        });
    }
    tokens
}

/// A bracket expression, without its `[`, and what comes after it.
fn set(text: &[u8]) -> Option<(Token, &[u8])> {
    let (negated, mut rest) = match text {
        [b'!' | b'^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut ranges = Vec::new();
    let mut first = true;
    loop {
        match rest {
            [] => return None,
            [b']', after @ ..] if !first => return Some((Token::One { negated, ranges }, after)),
            [b'[', b':', class @ ..] => {
                let end = class.windows(2).position(|end| end == b":]")?;
                ranges.extend(class_ranges(class.get(..end)?)?.iter().cloned());
                rest = class.get(end + 2..)?;
            }
            _ => {
                let (from, after) = literal(rest)?;
                (ranges, rest) = match after {
                    [b'-', to @ ..] if !matches!(to, [b']', ..]) => {
                        let (to, after) = literal(to)?;
                        ranges.push(from..=to);
                        (ranges, after)
                    }
                    _ => {
                        ranges.push(from..=from);
                        (ranges, after)
                    }
                };
            }
        }
        first = false;
    }
}

fn literal(text: &[u8]) -> Option<(u8, &[u8])> {
    match text {
        [b'\\', byte, rest @ ..] | [byte, rest @ ..] => Some((*byte, rest)),
        [] => None,
    }
}

fn class_ranges(name: &[u8]) -> Option<&'static [RangeInclusive<u8>]> {
    Some(match name {
        b"alnum" => &[b'0'..=b'9', b'A'..=b'Z', b'a'..=b'z'],
        b"alpha" => &[b'A'..=b'Z', b'a'..=b'z'],
        b"blank" => &[b' '..=b' ', b'\t'..=b'\t'],
        b"digit" => &[b'0'..=b'9'],
        b"graph" => &[b'!'..=b'~'],
        b"lower" => &[b'a'..=b'z'],
        b"print" => &[b' '..=b'~'],
        b"punct" => &[b'!'..=b'/', b':'..=b'@', b'['..=b'`', b'{'..=b'~'],
        b"upper" => &[b'A'..=b'Z'],
        b"xdigit" => &[b'0'..=b'9', b'A'..=b'F', b'a'..=b'f'],
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(files: &[(&str, &str)]) -> Settings {
        let file = |(path, text): &(&str, &str)| ConfFile { path: path.into(), text: text.as_bytes().into() };
        Settings::new(files.iter().map(file).collect())
    }

    fn won(settings: &Settings, key: &str, occasion: Occasion) -> String {
        let winner = settings.winner(key.as_bytes(), occasion);
        winner.map_or("nobody".into(), |it| format!("{}={}", it.place(), String::from_utf8_lossy(&it.value)))
    }

    #[test]
    fn the_line_that_wins() {
        const ETH1: &str = "net/ipv4/conf/eth1/rp_filter";
        const VLAN: &str = "net/ipv4/conf/eth0.100/rp_filter";
        for (case, key, files, expected) in [
            ("nothing", ETH1, &[("/a.conf", "net.ipv4.ip_forward = 1\n")][..], "nobody"),
            ("a line", ETH1, &[("/a.conf", "# x\n\n net.ipv4.conf.eth1.rp_filter\t= 2 \n")], "/a.conf:3=2"),
            ("slashes", VLAN, &[("/a.conf", "net/ipv4/conf/eth0.100/rp_filter=1")], "/a.conf:1=1"),
            (
                "dots, and a slash for the dot",
                VLAN,
                &[("/a.conf", "net.ipv4.conf.eth0/100.rp_filter=1")],
                "/a.conf:1=1",
            ),
            ("dots only are another key", VLAN, &[("/a.conf", "net.ipv4.conf.eth0.100.rp_filter=1")], "nobody"),
            ("slashes too many", ETH1, &[("/a.conf", "/net//ipv4/./conf/eth1/rp_filter/=1")], "/a.conf:1=1"),
            (
                "the later",
                ETH1,
                &[("/a.conf", "net.ipv4.conf.eth1.rp_filter=1\nnet.ipv4.conf.eth1.rp_filter=2")],
                "/a.conf:2=2",
            ),
            (
                "an exact key before any pattern",
                ETH1,
                &[("/a.conf", "net.ipv4.conf.eth1.rp_filter=2"), ("/b.conf", "net.ipv4.conf.*.rp_filter=1")],
                "/a.conf:1=2",
            ),
            (
                "the later pattern",
                ETH1,
                &[("/a.conf", "net.ipv4.conf.*.rp_filter=1"), ("/b.conf", "net.ipv4.conf.eth?.rp_filter=2")],
                "/b.conf:1=2",
            ),
            (
                "what is said again stays where it was",
                ETH1,
                &[
                    ("/a.conf", "net.ipv4.conf.*.rp_filter=1"),
                    ("/b.conf", "net.ipv4.conf.eth*.rp_filter=2"),
                    ("/c.conf", "net.ipv4.conf.*.rp_filter=1"),
                ],
                "/b.conf:1=2",
            ),
            (
                "what is said anew moves to the end",
                ETH1,
                &[
                    ("/a.conf", "net.ipv4.conf.*.rp_filter=1"),
                    ("/b.conf", "net.ipv4.conf.eth*.rp_filter=2"),
                    ("/c.conf", "net.ipv4.conf.*.rp_filter=0"),
                ],
                "/c.conf:1=0",
            ),
            ("excluded", ETH1, &[("/a.conf", "-net.ipv4.conf.eth1.rp_filter\nnet.ipv4.conf.*.rp_filter=1")], "nobody"),
            (
                "taken back",
                ETH1,
                &[("/a.conf", "net.ipv4.conf.eth1.rp_filter=1\n-net.ipv4.conf.eth1.rp_filter")],
                "nobody",
            ),
            (
                "said after all",
                ETH1,
                &[("/a.conf", "-net.ipv4.conf.eth1.rp_filter\nnet.ipv4.conf.eth1.rp_filter=1")],
                "/a.conf:2=1",
            ),
            (
                "a pattern taken back",
                ETH1,
                &[("/a.conf", "net.ipv4.conf.*.rp_filter=1\n-net.ipv4.conf.*.rp_filter")],
                "nobody",
            ),
            (
                "a pattern excludes no key",
                ETH1,
                &[("/a.conf", "net.ipv4.conf.*.rp_filter=1\n-net.ipv4.conf.eth*.rp_filter")],
                "/a.conf:1=1",
            ),
            ("failures do not matter", ETH1, &[("/a.conf", "-net.ipv4.conf.eth1.rp_filter = 1")], "/a.conf:1=1"),
            (
                "comments",
                ETH1,
                &[("/a.conf", "#net.ipv4.conf.eth1.rp_filter=1\n;net.ipv4.conf.eth1.rp_filter=1")],
                "nobody",
            ),
            ("no assignment", ETH1, &[("/a.conf", "net.ipv4.conf.eth1.rp_filter 1")], "nobody"),
            (
                "a comment is part of the value",
                ETH1,
                &[("/a.conf", "net.ipv4.conf.eth1.rp_filter=1 # x = y")],
                "/a.conf:1=1 # x = y",
            ),
            ("nothing to write", ETH1, &[("/a.conf", "net.ipv4.conf.eth1.rp_filter=")], "/a.conf:1="),
            (
                "line ends of all kinds",
                ETH1,
                &[("/a.conf", "a=1\r\nb=1\rc=1\0d=1\n\nnet.ipv4.conf.eth1.rp_filter=1")],
                "/a.conf:6=1",
            ),
            ("a pattern in a name with a dot", VLAN, &[("/a.conf", "net.ipv4.conf.eth0/*.rp_filter=1")], "/a.conf:1=1"),
            ("a pattern for one segment", VLAN, &[("/a.conf", "net.ipv4.*.rp_filter=1")], "nobody"),
            ("braces at boot", ETH1, &[("/a.conf", "net.ipv4.conf.{ens,eth}[0-9].rp_filter=1")], "/a.conf:1=1"),
            ("braces alone are no pattern", ETH1, &[("/a.conf", "net.ipv4.conf.{eth0,eth1}.rp_filter=1")], "nobody"),
            ("classes", ETH1, &[("/a.conf", "net.ipv4.conf.[!x-z]t[[:alpha:]][[:digit:]].rp_filter=1")], "/a.conf:1=1"),
        ] {
            assert_eq!(won(&settings(files), key, Occasion::Boot), expected, "{case}");
        }
    }

    #[test]
    fn udev_has_written_what_is_of_the_interface() {
        let files =
            [("/a.conf", "net.ipv4.ip_forward=1\nnet.ipv4.conf.{eth,x}*.rp_filter=2\nnet.ipv6.conf.e*.acc*_{ra,x}=0")];
        let all = settings(&files);
        for (key, expected) in [
            ("net/ipv4/ip_forward", "nobody"),
            ("net/ipv4/conf/eth1/rp_filter", "nobody"),
            ("net/ipv6/conf/eth1/accept_ra", "/a.conf:3=0"),
            ("net/ipv6/conf/lo/accept_ra", "nobody"),
        ] {
            assert_eq!(won(&all, key, Occasion::Link), expected, "{key}");
        }
        assert_eq!(won(&all, "net/ipv4/conf/eth1/rp_filter", Occasion::Boot), "/a.conf:2=2");
    }

    #[test]
    fn a_line_in_spite_of_ours() {
        const OURS: &str = "90-node-fixer.conf";
        let key = b"net/ipv4/conf/eth1/rp_filter";
        for (case, other, ours, expected) in [
            ("later", ("/etc/99-x.conf", "net.ipv4.conf.eth1.rp_filter=1"), "net.ipv4.conf.eth1.rp_filter=2", true),
            (
                "later, but a pattern",
                ("/etc/99-x.conf", "net.ipv4.conf.*.rp_filter=1"),
                "net.ipv4.conf.eth1.rp_filter=2",
                false,
            ),
            (
                "later, and the same",
                ("/etc/99-x.conf", "net.ipv4.conf.eth*.rp_filter=2"),
                "net.ipv4.conf.*.rp_filter=2",
                false,
            ),
            ("earlier", ("/etc/50-x.conf", "net.ipv4.conf.*.rp_filter=1"), "net.ipv4.conf.eth*.rp_filter=2", false),
            (
                "earlier, but exact",
                ("/etc/50-x.conf", "net.ipv4.conf.eth1.rp_filter=1"),
                "net.ipv4.conf.eth*.rp_filter=2",
                true,
            ),
            ("ours says nothing", ("/etc/99-x.conf", "net.ipv4.conf.eth1.rp_filter=1"), "", false),
        ] {
            let ours = ConfFile { path: format!("/etc/sysctl.d/{OURS}").into(), text: ours.into() };
            let before = ConfFile { text: b"net.ipv4.conf.eth1.rp_filter=0".into(), ..ours.clone() };
            let all = settings(&[other]).with(before).with(ours);
            let place = all.overriding(OURS.as_bytes(), key, Occasion::Boot).map(Setting::place);
            assert_eq!(place, expected.then(|| format!("{}:1", other.0)), "{case}");
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

        #[test]
        fn whatever_the_files_say_there_is_an_answer(texts in proptest::collection::vec("[-a-c.*?{},!/=#\\\\ \\[\\]\r\n:0-9]{0,60}", 0..4), key in "[a-c./*]{0,12}") {
            let files: Vec<(String, String)> =
                texts.into_iter().enumerate().map(|(n, text)| (format!("/{n}.conf"), text)).collect();
            let files: Vec<(&str, &str)> = files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
            let all = settings(&files);
            for occasion in [Occasion::Boot, Occasion::Link] {
                let exact = all.lines.iter().find(|line| line.setting.key == key.as_bytes() && !line.setting.glob);
                let winner = all.winner(key.as_bytes(), occasion);
                if let (Occasion::Boot, Some(line)) = (occasion, exact) {
                    proptest::prop_assert_eq!(winner, (!line.excluded).then_some(&line.setting));
                }
            }
        }
    }

    #[test]
    fn many_braces_end() {
        let pattern = format!("net/ipv4/conf/*{}/rp_filter", "{a,b}".repeat(200));
        assert!(!matches(pattern.as_bytes(), b"net/ipv4/conf/eth1/rp_filter", Occasion::Boot));
        let stars = "*a".repeat(100);
        assert!(!is_match(stars.as_bytes(), "a".repeat(99).as_bytes()));
    }
}
