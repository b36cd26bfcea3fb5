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

mod glob;

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use glob::is_match;

use crate::net::one_line;
use crate::sorted;

/// Where programs look for the files of a `NAME.d`, the first directory that has a file of a name wins. (/lib is a
/// link to usr/lib nowadays, and then has no name that was not seen.)
pub const DIRECTORIES: [&str; 5] = ["/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib"];

/// The file that node-fixer writes: late enough to win over what distributions ship, early enough for an operator's
/// `99-`.
pub const OURS: &str = "/etc/sysctl.d/90-node-fixer.conf";

/// Its directory.
pub const OURS_IN: &str = "/etc/sysctl.d";

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
        self.path.file_name().map_or(&[], OsStrExt::as_bytes)
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
    pub file: Arc<Path>,
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
    /// Shared with the settings that there would be with another file: doctor thinks of several.
    files: Vec<Arc<Source>>,
    lines: Vec<Arc<Line>>,
    index: Index,
    /// The same of node-fixer's own file alone, where it is one of several.
    ours: Option<Box<Settings>>,
}

/// A file with all that it says.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    file: ConfFile,
    lines: Vec<Arc<Line>>,
}

/// Finds lines by a key: thousands of interfaces are asked about, and there may be thousands of lines. Its members are
/// places in the list of lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Index {
    /// Those without a pattern, in the order of their keys.
    exact: Vec<usize>,
    /// Those with one, in the order of what stands before it; and then as they are in the list.
    globs: Vec<usize>,
}

impl Index {
    fn new(lines: &[Arc<Line>]) -> Index {
        let of = |is_wanted: fn(&Line) -> bool, key: fn(&Line) -> &[u8]| {
            let wanted = lines.iter().enumerate().filter(|(_, line)| is_wanted(line));
            sorted::set(wanted.map(|(at, line)| (key(line), at))).into_iter().map(|(_, at)| at).collect()
        };
        let exact = of(|line| !line.setting.glob, |line| &line.setting.key);
        let globs = of(|line| line.setting.glob && !line.excluded, Line::start);
        Index { exact, globs }
    }

    /// The line whose key this is.
    fn exact<'a>(&self, lines: &'a [Arc<Line>], key: &[u8]) -> Option<&'a Line> {
        let key_of = |at: &usize| lines.get(*at).map_or(&[][..], |line| &line.setting.key);
        let found = self.exact.binary_search_by(|at| key_of(at).cmp(key)).ok()?;
        lines.get(*self.exact.get(found)?).map(|line| &**line)
    }

    /// The last line whose pattern matches.
    fn last_glob<'a>(&self, lines: &'a [Arc<Line>], key: &[u8], occasion: Occasion) -> Option<&'a Line> {
        let start_of = |at: &usize| lines.get(*at).map_or(&[][..], |line| line.start());
        let mut last = None;
        let mut rest = self.globs.as_slice();
        for length in 0..=key.len() {
            let start = key.get(..length)?;
            let from = rest.partition_point(|at| start_of(at) < start);
            rest = rest.get(from..)?;
            let same = rest.partition_point(|at| start_of(at) == start);
            let later = rest.get(..same)?.iter().rev().take_while(|at| last.is_none_or(|last| **at > last));
            last = later.copied().find(|at| lines.get(*at).is_some_and(|line| line.matches(key, occasion))).or(last);
            if rest.is_empty() {
                break;
            }
        }
        lines.get(last?).map(|line| &**line)
    }
}

/// One key, with what its last different line says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    setting: Setting,
    /// `-key`: nothing is written.
    excluded: bool,
    /// How many bytes of a pattern stand for themselves, before and after what is wild.
    plain: (usize, usize),
}

impl Settings {
    /// Reads the files, which are given in their order.
    pub fn new(files: Vec<ConfFile>) -> Settings {
        Settings::of(files.into_iter().map(|file| Arc::new(Source::read(file))).collect())
    }

    fn of(files: Vec<Arc<Source>>) -> Settings {
        let mut lines: Vec<Option<Arc<Line>>> = Vec::new();
        let mut places: HashMap<&[u8], usize> = HashMap::new();
        for line in files.iter().flat_map(|source| &source.lines) {
            let old = places.get(&*line.setting.key).and_then(|at| lines.get_mut(*at));
            match old {
                Some(Some(old)) if old.says_the_same(line) => continue,
                Some(old) => *old = None,
                None => {}
            }
            places.insert(&line.setting.key, lines.len());
            lines.push(Some(Arc::clone(line)));
        }
        drop(places);
        let lines: Vec<_> = lines.into_iter().flatten().collect();
        let is_ours = |source: &&Arc<Source>| Some(source.file.name()) == name_of(Path::new(OURS));
        let ours = files.iter().find(is_ours).filter(|_| files.len() > 1);
        let ours = ours.map(|source| Box::new(Settings::of(vec![Arc::clone(source)])));
        Settings { index: Index::new(&lines), lines, files, ours }
    }

    /// The same, were this file there too, or instead of the one of its name.
    pub fn with(&self, file: ConfFile) -> Settings {
        let mut files = self.files.clone();
        files.retain(|old| old.file.name() != file.name());
        let at = files.partition_point(|old| old.file.name() < file.name());
        files.insert(at, Arc::new(Source::read(file)));
        Settings::of(files)
    }

    /// The files, in their order.
    pub fn files(&self) -> impl Iterator<Item = &ConfFile> {
        self.files.iter().map(|source| &source.file)
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
        match self.index.exact(&self.lines, key) {
            Some(exact) => (!exact.excluded).then_some(&exact.setting),
            None => self.index.last_glob(&self.lines, key, occasion).map(|line| &line.setting),
        }
    }

    /// What is written to the key in spite of what node-fixer's own file says about it: the line that wins, where that
    /// file has one for the key and another file's wins. Mostly a later file; an earlier one where it names the key and
    /// ours has a pattern.
    pub fn overriding(&self, key: &[u8], occasion: Occasion) -> Option<&Setting> {
        let winner = self.winner(key, occasion)?;
        let ours = self.ours.as_ref()?.winner(key, occasion)?;
        (name_of(&winner.file) != name_of(Path::new(OURS)) && ours.value != winner.value).then_some(winner)
    }
}

fn name_of(file: &Path) -> Option<&[u8]> {
    file.file_name().map(OsStrExt::as_bytes)
}

impl Source {
    fn read(file: ConfFile) -> Source {
        let path = Arc::from(file.path.as_path());
        let lines = (1..).zip(lines_of(&file.text)).filter_map(|(number, text)| Line::read(&path, number, text));
        Source { lines: lines.map(Arc::new).collect(), file }
    }
}

impl Line {
    fn read(file: &Arc<Path>, number: usize, text: &[u8]) -> Option<Line> {
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
        let plain = if glob { glob::plain_ends(&key) } else { (0, 0) };
        let setting = Setting { file: Arc::clone(file), line: number, value: value_bytes, glob, key };
        Some(Line { setting, excluded: value.is_none(), plain })
    }

    /// What stands before the pattern's first wild place.
    fn start(&self) -> &[u8] {
        self.setting.key.get(..self.plain.0).unwrap_or_default()
    }

    fn matches(&self, key: &[u8], occasion: Occasion) -> bool {
        let pattern = &self.setting.key;
        let end = pattern.get(pattern.len().saturating_sub(self.plain.1)..).unwrap_or_default();
        key.ends_with(end) && matches(pattern, key, occasion)
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
    glob::finds(pattern, path)
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

    fn settings(files: &[(&str, &str)]) -> Settings {
        let file = |(path, text): &(&str, &str)| ConfFile { path: path.into(), text: text.as_bytes().into() };
        Settings::new(files.iter().map(file).collect())
    }

    fn won(settings: &Settings, key: &str, occasion: Occasion) -> String {
        let winner = settings.winner(key.as_bytes(), occasion);
        winner.map_or("nobody".into(), |it| format!("{}={}", it.place(), String::from_utf8_lossy(&it.value)))
    }

    #[test]
    fn fuzz() {
        let keys: [&[u8]; 4] = [
            b"net/ipv4/conf/eth0.100/rp_filter",
            b"net/ipv4/conf/all/rp_filter",
            b"net/ipv4/ip_forward",
            b"net/ipv6/conf/a/x",
        ];
        crate::fuzz::run("sysctl.d", |bytes| {
            let files = bytes.split(|byte| *byte == 0).enumerate();
            let files =
                files.map(|(number, text)| ConfFile { path: format!("/{number}.conf").into(), text: text.into() });
            let all = Settings::new(files.collect()).with(ConfFile { path: OURS.into(), text: bytes.into() });
            let asked = keys.into_iter().chain(all.keys()).take(20);
            asked
                .filter(|key| {
                    let found =
                        [Occasion::Boot, Occasion::Link].map(|occasion| all.winner(key, occasion).map(Setting::place));
                    all.overriding(key, Occasion::Boot).is_some() || found.iter().any(Option::is_some)
                })
                .count()
                > 0
        });
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
            let ours = ConfFile { path: OURS.into(), text: ours.into() };
            let before = ConfFile { text: b"net.ipv4.conf.eth1.rp_filter=0".into(), ..ours.clone() };
            let all = settings(&[other]).with(before).with(ours);
            let place = all.overriding(key, Occasion::Boot).map(Setting::place);
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
