//! Files that belong to a cure: their names beside existing files, and the command that writes them.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use crate::model::shell_word;
use crate::sysctl_d::ConfFile;

/// The file from `make` with the first name that is free, or that already has this text: files of an administrator or
/// of an earlier cure stay. Names count in all of systemd's directories, where they shadow each other.
pub fn beside(existing: &[&ConfFile], path: &Path, make: &dyn Fn(PathBuf) -> ConfFile) -> ConfFile {
    let (stem, extension) = (path.file_stem().unwrap_or_default(), path.extension().unwrap_or_default());
    let mut file = make(path.into());
    let mut number = 2;
    while existing.iter().any(|old| old.name() == file.name() && old.text != file.text) {
        // This sorts after the first file, because `.` comes before all digits.
        let digits = number.to_string();
        let name = [stem.as_bytes(), digits.as_bytes(), b".", extension.as_bytes()].concat();
        file = make(path.with_file_name(OsString::from_vec(name)));
        number += 1;
    }
    file
}

/// A file of a cure, with a name that does not clash with existing ones.
pub fn proposed<'a>(existing: impl IntoIterator<Item = &'a ConfFile>, path: &Path, text: &[u8]) -> ConfFile {
    let make = |path| ConfFile { path, text: text.into() };
    beside(&existing.into_iter().collect::<Vec<_>>(), path, &make)
}

/// This path; or one that sorts after the other name, if this does not.
pub fn after(path: &str, other: Option<&[u8]>) -> PathBuf {
    let path = Path::new(path);
    let name = path.file_name().unwrap_or_default().as_bytes();
    let Some(other) = other.filter(|other| *other > name) else { return path.into() };
    // `99-x.rp-filter.conf` sorts after `99-x.conf`.
    let what = name.splitn(2, |byte| *byte == b'-').last().unwrap_or_default();
    let stem = other.strip_suffix(b".conf").unwrap_or(other);
    path.with_file_name(OsString::from_vec([stem, b".", what].concat()))
}

/// The command that writes a world-readable file: systemd-networkd reads it as its own user.
pub fn write_command(file: &ConfFile) -> String {
    let text = String::from_utf8_lossy(&file.text);
    let lines: Vec<_> = text.lines().map(|line| shell_word(line.as_bytes()).into_owned()).collect();
    let path = shell_word(file.path.as_os_str().as_bytes()).into_owned();
    let directory = file.path.parent().map_or("/".into(), |parent| shell_word(parent.as_os_str().as_bytes()));
    format!("mkdir -p -m 755 {directory} && printf '%s\\n' {} > {path} && chmod 644 {path}", lines.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_comes_after_the_one_that_it_overrules() {
        for (other, expected) in [
            (None, "90-rp-filter.conf"),
            (Some("50-redhat.conf"), "90-rp-filter.conf"),
            (Some("90-rp-filter.conf"), "90-rp-filter.conf"),
            (Some("90-rp-filter2.conf"), "90-rp-filter2.rp-filter.conf"),
            (Some("99-sysctl.conf"), "99-sysctl.rp-filter.conf"),
            (Some("\u{ff}.conf"), "\u{ff}.rp-filter.conf"),
        ] {
            let path = after("/etc/sysctl.d/90-rp-filter.conf", other.map(str::as_bytes));
            assert_eq!(path, Path::new("/etc/sysctl.d").join(expected), "{other:?}");
            let name = expected.as_bytes();
            assert!(other.is_none_or(|other| other == "90-rp-filter.conf" || other.as_bytes() < name), "{other:?}");
        }
    }

    #[test]
    fn a_file_takes_the_first_name_that_is_free_or_has_its_text() {
        let file = |path: &str, text: &str| ConfFile { path: path.into(), text: text.into() };
        for (existing, expected) in [
            (vec![], "/etc/x.d/90-a.conf"),
            (vec![file("/etc/x.d/90-a.conf", "mine")], "/etc/x.d/90-a.conf"),
            (vec![file("/usr/lib/x.d/90-a.conf", "theirs")], "/etc/x.d/90-a2.conf"),
            (vec![file("/etc/x.d/90-a.conf", "theirs"), file("/run/x.d/90-a2.conf", "")], "/etc/x.d/90-a3.conf"),
        ] {
            let mine = |path| ConfFile { path, text: "mine".into() };
            let placed = beside(&existing.iter().collect::<Vec<_>>(), Path::new("/etc/x.d/90-a.conf"), &mine);
            assert_eq!(placed, file(expected, "mine"), "{existing:?}");
        }
    }
}
