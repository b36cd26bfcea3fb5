//! Shows what an examination found, as text or as JSON, and writes the proposed files for review.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::Serialize;

use super::Examination;
use crate::net::one_line;
use crate::sorted;

/// What became of the proposed files.
#[derive(Debug, Default)]
pub struct Review {
    /// Those that were written.
    pub written: Vec<PathBuf>,
    /// Those in whose place something was already, which stays as it is.
    pub kept: Vec<PathBuf>,
}

#[derive(Serialize)]
struct Json<'a> {
    findings: Vec<JsonFinding<'a>>,
    unseen: &'a [String],
    written: Vec<String>,
    kept: Vec<String>,
}

#[derive(Serialize)]
struct JsonFinding<'a> {
    cause: &'static str,
    evidence: &'a str,
    file: Option<String>,
    cure: &'a str,
}

/// One JSON object on one line.
///
/// # Errors
///
/// None that is known of: every value in it has a JSON form.
pub fn json(examination: &Examination, review: &Review) -> serde_json::Result<String> {
    let findings = examination.findings.iter().map(|finding| JsonFinding {
        cause: finding.cause,
        evidence: &finding.evidence,
        file: finding.file.as_ref().map(ToString::to_string),
        cure: &finding.cure,
    });
    let shown = |paths: &[PathBuf]| paths.iter().map(|path| path.to_string_lossy().into_owned()).collect();
    let (written, kept) = (shown(&review.written), shown(&review.kept));
    Ok(serde_json::to_string(&Json { findings: findings.collect(), unseen: &examination.unseen, written, kept })?
        + "\n")
}

/// For people.
pub fn text(examination: &Examination, review: &Review, colour: bool) -> String {
    let bold = |text: &str| if colour { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() };
    let mut lines = Vec::new();
    for finding in &examination.findings {
        let title = finding.check().map_or("", |check| check.title);
        lines.push(format!("{}: {title}", bold(finding.cause)));
        lines.push(format!("  {}", one_line(&finding.evidence)));
        lines.extend(finding.file.iter().map(|file| format!("  file: {file}")));
        lines.extend(finding.cure.lines().map(|line| format!("  cure: {}", one_line(line))));
    }
    lines.extend(examination.unseen.iter().map(|what| format!("not seen: {}", one_line(what))));
    lines.extend(review.written.iter().map(|path| format!("written: {}", one_line(&path.to_string_lossy()))));
    lines.extend(review.kept.iter().map(|path| {
        let path = path.to_string_lossy();
        format!("not written: {} is there already; remove it, or name another directory", one_line(&path))
    }));
    lines.push(match examination.findings.len() {
        0 => "nothing found".into(),
        1 => "1 finding".into(),
        number => format!("{number} findings"),
    });
    lines.join("\n") + "\n"
}

/// Writes the proposed files below a directory, for review. Never over a file that is there, and none at
/// all where one would lie elsewhere.
///
/// # Errors
///
/// One of them could not be written.
pub fn write(examination: &Examination, directory: &Path) -> anyhow::Result<Review> {
    let proposals = examination.findings.iter().flat_map(|finding| &finding.proposals);
    let files = sorted::map(proposals.map(|file| (file.path.as_path(), file.text.as_slice())));
    let name = one_line(&directory.to_string_lossy()).into_owned();
    let make = |path: &Path| {
        let made = DirBuilder::new().recursive(true).mode(0o755).create(path);
        made.with_context(|| format!("cannot make the directory {}", one_line(&path.to_string_lossy())))
    };
    make(directory)?;
    let real = directory.canonicalize().with_context(|| format!("cannot find {name}"))?;
    ensure!(
        real != Path::new("/"),
        "{name} is the root directory: files are written for review and never installed; name another directory, look at \
         them, and copy what you want"
    );
    let files: Vec<_> =
        files.into_iter().map(|(path, text)| (directory.join(path.strip_prefix("/").unwrap_or(path)), text)).collect();
    for (path, _) in &files {
        // A link in it could lead anywhere.
        let inside = path.ancestors().skip(1).find_map(|path| path.canonicalize().ok());
        let shown = path.to_string_lossy();
        ensure!(
            inside.is_some_and(|it| it.starts_with(&real)),
            "{} lies outside {name}: a link leads there; name a directory without links",
            one_line(&shown)
        );
    }
    let mut review = Review::default();
    for (path, text) in files {
        make(path.parent().unwrap_or(directory))?;
        let cannot = || format!("cannot write {}", one_line(&path.to_string_lossy()));
        match OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => review.kept.push(path),
            file => {
                file.and_then(|mut file| file.write_all(text)).with_context(cannot)?;
                review.written.push(path);
            }
        }
    }
    Ok(review)
}
