//! docs/ARCHITECTURE.md lists the rooms of src from the bottom to the top. None uses one that is above it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use regex::Regex;

/// Only tests are in these.
const OF_TESTS: [&str; 4] = ["fuzz.rs", "properties.rs", "testing.rs", "tests.rs"];

fn rooms() -> Vec<String> {
    let text = fs::read_to_string("docs/ARCHITECTURE.md").unwrap();
    let list = text.split("```rooms\n").nth(1).unwrap().split("```").next().unwrap();
    list.lines().map(|line| line.split(' ').next().unwrap().to_owned()).collect()
}

/// The files below a directory, relative to src.
fn files(directory: &Path) -> Vec<String> {
    let paths = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let of = |path: std::path::PathBuf| {
        if path.is_dir() { files(&path) } else { vec![path.strip_prefix("src").unwrap().to_str().unwrap().to_owned()] }
    };
    paths.flat_map(of).collect()
}

/// The modules of the crate that a file names, outside its tests.
fn uses(text: &str) -> BTreeSet<String> {
    let code = Regex::new(r"(?s)#\[cfg\(test\)\]\s*mod \w+ \{.*|//[^\n]*").unwrap().replace_all(text, "");
    let path = Regex::new(r"\bcrate::(\w+(?:::\w+)?)").unwrap();
    let group = Regex::new(r"use crate::\{([^}]*)\}").unwrap();
    let several = group
        .captures_iter(&code)
        .flat_map(|it| it[1].split(',').map(str::trim).map(str::to_owned).collect::<Vec<_>>());
    path.captures_iter(&code).map(|it| it[1].to_owned()).chain(several).map(|it| it.replace("::", "/")).collect()
}

#[test]
fn no_room_uses_one_above_it() {
    let rooms = rooms();
    let room_of = |path: &str| {
        let fits = |room: &&String| {
            let rest = path.strip_prefix(room.as_str());
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', '.']))
        };
        rooms.iter().filter(fits).max_by_key(|room| room.len())
    };
    let height = |room: &str| rooms.iter().position(|it| it == room);
    let mut upward = BTreeSet::new();
    for file in files(Path::new("src")) {
        if file == "lib.rs" || OF_TESTS.iter().any(|name| file.ends_with(name)) {
            continue;
        }
        let room = room_of(&file).unwrap_or_else(|| panic!("docs/ARCHITECTURE.md has no room for {file}"));
        for used in uses(&fs::read_to_string(Path::new("src").join(&file)).unwrap()) {
            let Some(used) = room_of(&used) else { continue };
            if height(used) > height(room) {
                upward.insert(format!("{file} uses {used}"));
            }
        }
    }
    assert_eq!(upward, BTreeSet::new());
}

#[test]
fn no_type_has_the_name_of_another() {
    let definition = Regex::new(r"(?m)^(?:pub(?:\([a-z ]+\))? )?(?:struct|enum|trait|type|union) (\w+)").unwrap();
    let tests = Regex::new(r"(?s)#\[cfg\(test\)\]\s*mod \w+ \{.*").unwrap();
    let mut places = BTreeMap::<String, Vec<String>>::new();
    for file in files(Path::new("src")) {
        if OF_TESTS.iter().any(|name| file.ends_with(name)) {
            continue;
        }
        let text = fs::read_to_string(Path::new("src").join(&file)).unwrap();
        for found in definition.captures_iter(&tests.replace(&text, "")) {
            places.entry(found[1].to_owned()).or_default().push(file.clone());
        }
    }
    assert!(places.len() > 300, "types are not found: {}", places.len());
    places.retain(|_, files| files.len() > 1);
    assert_eq!(places, BTreeMap::new());
}
