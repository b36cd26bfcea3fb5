//! The names of tables, as in iproute2: main, default and local, and those of rt_tables and rt_tables.d.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::types::{read_number, schema};
use crate::model::{TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN};
use crate::sorted;
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize};

/// The directories of an operator's and of a distribution's files.
const DIRECTORIES: [&str; 2] = ["/etc/iproute2", "/usr/share/iproute2"];

/// A routing table: a number, or a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TableId(pub u32);

impl<'de> Deserialize<'de> for TableId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let expected =
            "a table: a number from 1 to 4294967295, main, default, local, or a name of /etc/iproute2/rt_tables";
        match read_number(deserializer, expected, by_name)? {
            0 => Err(de::Error::custom("0 is not a table; tables are numbered from 1")),
            table => Ok(TableId(table)),
        }
    }
}

schema!(TableId, {
    "anyOf": [
        { "type": "integer", "minimum": 1, "maximum": 4294967295_u32 },
        { "type": "string", "description": "main, default, local, or a name of /etc/iproute2/rt_tables or rt_tables.d" }
    ]
});

/// The number of the table with this name.
pub(super) fn by_name(name: &str) -> Option<u32> {
    match name {
        "main" => Some(TABLE_MAIN),
        "default" => Some(TABLE_DEFAULT),
        "local" => Some(TABLE_LOCAL),
        _ => OF_CAPTURED.with_borrow(|texts| match texts {
            Some(texts) => find(name, texts),
            None => find(name, &texts_here()),
        }),
    }
}

thread_local! {
    /// The files of the captured node whose configuration is being read.
    static OF_CAPTURED: RefCell<Option<Vec<String>>> = const { RefCell::new(None) };
}

/// Reads a configuration with the names of tables that are in these texts.
pub(super) fn with<T>(texts: Vec<String>, read: impl FnOnce() -> T) -> T {
    OF_CAPTURED.set(Some(texts));
    let read = read();
    OF_CAPTURED.set(None);
    read
}

/// The files with the names of tables.
pub(super) fn texts_here() -> Vec<String> {
    texts(&DIRECTORIES.map(Path::new))
}

/// The files in the order in which iproute2 reads them: rt_tables of the first directory that has it, then the .conf
/// files of the distribution's rt_tables.d that no operator's file of the same name replaces, then the operator's.
fn texts([etc, usr]: &[&Path; 2]) -> Vec<String> {
    let main = [etc, usr].into_iter().map(|it| it.join("rt_tables")).find(|it| it.exists());
    let confs = |directory: &Path| -> Vec<PathBuf> {
        let entries = fs::read_dir(directory.join("rt_tables.d")).into_iter().flatten().flatten();
        let is_conf = |path: &PathBuf| path.extension() == Some(OsStr::new("conf"));
        sorted::list(entries.map(|entry| entry.path()).filter(is_conf), Ord::cmp)
    };
    let replaced = |path: &PathBuf| path.file_name().is_some_and(|name| etc.join("rt_tables.d").join(name).exists());
    let all = main.into_iter().chain(confs(usr).into_iter().filter(|path| !replaced(path))).chain(confs(etc));
    // A name in an unreadable file is unknown, which is an error.
    all.filter_map(|path| fs::read_to_string(path).ok()).collect()
}

/// If a name stands for several numbers, the one that iproute2 uses: it keeps them in 256 lists by their last eight
/// bits, and searches one after the other, the last line first.
fn find(name: &str, texts: &[String]) -> Option<u32> {
    let lines = texts.iter().flat_map(|text| text.lines());
    let tables = lines.filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let (number, of) = (words.next()?, words.next()?);
        let number = match number.strip_prefix("0x") {
            Some(hex) => u32::from_str_radix(hex, 16).ok(),
            None => number.parse().ok(),
        };
        number.filter(|_| of == name)
    });
    tables.reduce(|found, next| if next & 0xff <= found & 0xff { next } else { found })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_where_iproute2_finds_it() {
        let files = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        for (texts, number) in [
            (&["255 local\n254\tmain\n100 isp\n"][..], Some(100)),
            (&["# 100 isp\n"], None),
            (&["  0x64   isp # the first\n"], Some(100)),
            (&["100000 isp"], Some(100_000)),
            (&["100 isp2", "isp 100", "100"], None),
            (&["100 isp", "200 isp"], Some(100)),
            (&["200 isp\n100 isp"], Some(100)),
            (&["100 isp\n356 isp"], Some(356)),
        ] {
            assert_eq!(find("isp", &files(texts)), number, "{texts:?}");
        }
    }

    #[test]
    fn an_operators_file_takes_the_place_of_the_distributions() {
        let root = tempfile::tempdir().unwrap();
        let directories = ["etc", "usr"].map(|name| root.path().join(name));
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let texts = || texts(&[&directories[0], &directories[1]]);
        assert_eq!(texts(), Vec::<String>::new());
        write("usr/rt_tables", "usr");
        write("usr/rt_tables.d/a.conf", "usr a");
        write("usr/rt_tables.d/b.conf", "usr b");
        write("usr/rt_tables.d/README", "not read");
        assert_eq!(texts(), ["usr", "usr a", "usr b"]);
        write("etc/rt_tables", "etc");
        write("etc/rt_tables.d/b.conf", "etc b");
        assert_eq!(texts(), ["etc", "usr a", "etc b"]);
    }
}
