//! What systemd-sysctl writes, and which line of which file decides: sysctl.d(5) as implemented in systemd's source.
//!
//! At boot every setting is written. When an interface appears, udev runs `systemd-sysctl --prefix=/net/ipv4/conf/NAME`
//! (also for neigh and ipv6), so files also decide about future interfaces. [`crate::node::Root`] finds the files and
//! their order; here they are read as text. Rules that surprise:
//!
//! - The files are one list. A key that comes again with another value moves to the end of the list; with the same
//!   value it stays. An exact key wins over every pattern, wherever it is; among patterns the last one wins.
//! - `-key = value` ignores failures. `-key` without a value excludes that exact key from patterns, and cancels an
//!   earlier line with the same key or the same pattern.
//! - The first separator of a key decides: after a dot, dots separate and slashes stand for dots in names; after a
//!   slash, it is the path as written.
//! - `{a,b}` in a pattern works at boot, but not in the interface name when udev runs it.
//! - /etc/sysctl.conf is not read, unless a link in a sysctl.d points to it, as on Debian (99-sysctl.conf).
//!
//! `sysctl --system` of procps reads the same directories and then /etc/sysctl.conf. Unlike systemd it writes every
//! line in order (so the last of equal patterns wins, and `-key` cancels nothing), and it does not support braces.

mod fnmatch;
mod glob;
mod line;
mod ours;

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use fnmatch::is_match;
pub(crate) use line::normalize;
use line::{Line, lines_of};
pub use ours::{OURS, OURS_IN, OurFile};

use crate::model::one_line;
use crate::sorted;

/// Where programs look for the files of a `NAME.d`. For each name the first directory wins. (/lib is usually a link to
/// usr/lib, and then contributes no new names.)
pub const DIRECTORIES: [&str; 5] = ["/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib"];

/// A file of configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfFile {
    /// Path below the root that it was read from, with a leading slash.
    pub path: PathBuf,
    /// Content.
    pub text: Vec<u8>,
}

impl ConfFile {
    /// The name by which files shadow each other and are sorted.
    pub fn name(&self) -> &[u8] {
        self.path.file_name().map_or(&[], OsStrExt::as_bytes)
    }
}

/// When settings are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// By systemd-sysctl.service, for what exists.
    Boot,
    /// By udev, for a new interface.
    Link,
}

/// A line that sets a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// The file, as a path below the root.
    pub file: Arc<Path>,
    /// The line, from 1.
    pub line: usize,
    /// What is written.
    pub value: Vec<u8>,
    /// Whether a pattern matched, and not the key itself.
    pub glob: bool,
    /// The key or pattern of the line, as a path below /proc/sys.
    pub key: Vec<u8>,
}

impl Setting {
    /// The value as a number.
    pub fn number(&self) -> Option<i32> {
        str::from_utf8(&self.value).ok()?.trim().parse().ok()
    }

    /// `FILE:LINE`, safe in a terminal.
    pub fn place(&self) -> String {
        format!("{}:{}", one_line(&self.file.to_string_lossy()), self.line)
    }
}

/// All settings of all files, in the order in which systemd-sysctl writes them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// Shared with hypothetical settings with another file, of which doctor tries several.
    files: Vec<Arc<Source>>,
    lines: Vec<Arc<Line>>,
    index: Index,
    /// The settings of node-fixer's own file alone, if it exists.
    ours: Option<Box<Settings>>,
}

/// A file with its lines.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    file: ConfFile,
    lines: Vec<Arc<Line>>,
}

/// Finds lines by key: there may be thousands of interfaces and thousands of lines. The members are indexes in the list
/// of lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Index {
    /// Lines without a pattern, sorted by key.
    exact: Vec<usize>,
    /// Lines with a pattern, sorted by their literal beginning, then in the order of the list.
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

    /// The line with exactly this key.
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

impl Settings {
    /// Parses the files, given in their order.
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

    /// The same with this file added, or replacing the one of its name.
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

    /// The line that decides about the key, a path below /proc/sys (`net/ipv4/conf/eth0.100/rp_filter`); `None` if
    /// there is none. Whether the kernel accepts the value is not checked.
    pub fn winner(&self, key: &[u8], occasion: Occasion) -> Option<&Setting> {
        if occasion == Occasion::Link && !is_of_link(key) {
            return None;
        }
        match self.index.exact(&self.lines, key) {
            Some(exact) => (!exact.excluded).then_some(&exact.setting),
            None => self.index.last_glob(&self.lines, key, occasion).map(|line| &line.setting),
        }
    }

    /// The line that wins over node-fixer's own line for the key, if node-fixer's file has one. Usually it is in a
    /// later file; an earlier one wins if it names the key and node-fixer's line is a pattern.
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

/// Whether udev's rule writes the key when an interface appears.
fn is_of_link(key: &[u8]) -> bool {
    let segments: Vec<&[u8]> = key.split(|byte| *byte == b'/').collect();
    matches!(segments[..], [b"net", b"ipv4" | b"ipv6", b"conf" | b"neigh", name, _, ..] if name != b"lo")
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
        winner.map_or("no line".into(), |it| format!("{}={}", it.place(), String::from_utf8_lossy(&it.value)))
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
            ("nothing", ETH1, &[("/a.conf", "net.ipv4.ip_forward = 1\n")][..], "no line"),
            ("a line", ETH1, &[("/a.conf", "# x\n\n net.ipv4.conf.eth1.rp_filter\t= 2 \n")], "/a.conf:3=2"),
            ("slashes", VLAN, &[("/a.conf", "net/ipv4/conf/eth0.100/rp_filter=1")], "/a.conf:1=1"),
            (
                "dots, and a slash for the dot",
                VLAN,
                &[("/a.conf", "net.ipv4.conf.eth0/100.rp_filter=1")],
                "/a.conf:1=1",
            ),
            ("dots only are another key", VLAN, &[("/a.conf", "net.ipv4.conf.eth0.100.rp_filter=1")], "no line"),
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
            ("excluded", ETH1, &[("/a.conf", "-net.ipv4.conf.eth1.rp_filter\nnet.ipv4.conf.*.rp_filter=1")], "no line"),
            (
                "taken back",
                ETH1,
                &[("/a.conf", "net.ipv4.conf.eth1.rp_filter=1\n-net.ipv4.conf.eth1.rp_filter")],
                "no line",
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
                "no line",
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
                "no line",
            ),
            ("no assignment", ETH1, &[("/a.conf", "net.ipv4.conf.eth1.rp_filter 1")], "no line"),
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
            ("a pattern for one segment", VLAN, &[("/a.conf", "net.ipv4.*.rp_filter=1")], "no line"),
            ("braces at boot", ETH1, &[("/a.conf", "net.ipv4.conf.{ens,eth}[0-9].rp_filter=1")], "/a.conf:1=1"),
            ("braces alone are no pattern", ETH1, &[("/a.conf", "net.ipv4.conf.{eth0,eth1}.rp_filter=1")], "no line"),
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
            ("net/ipv4/ip_forward", "no line"),
            ("net/ipv4/conf/eth1/rp_filter", "no line"),
            ("net/ipv6/conf/eth1/accept_ra", "/a.conf:3=0"),
            ("net/ipv6/conf/lo/accept_ra", "no line"),
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
}
