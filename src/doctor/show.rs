//! Shows what an examination found, as text or as JSON.

use std::path::PathBuf;

use serde::Serialize;

use super::Examination;
use super::review::Review;
use crate::log::paint;
use crate::model::one_line;

const BOLD: &str = "1";

#[derive(Serialize)]
struct ExaminationJson<'a> {
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
/// None in practice: every value has a JSON form.
pub fn json(examination: &Examination, review: &Review) -> serde_json::Result<String> {
    let findings = examination.findings.iter().map(|finding| JsonFinding {
        cause: finding.cause,
        evidence: &finding.evidence,
        file: finding.file.as_ref().map(ToString::to_string),
        cure: &finding.cure,
    });
    let shown = |paths: &[PathBuf]| paths.iter().map(|path| path.to_string_lossy().into_owned()).collect();
    let (written, kept) = (shown(&review.written), shown(&review.kept));
    Ok(serde_json::to_string(&ExaminationJson {
        findings: findings.collect(),
        unseen: &examination.unseen,
        written,
        kept,
    })? + "\n")
}

/// For people.
pub fn text(examination: &Examination, review: &Review, colour: bool) -> String {
    let mut lines = Vec::new();
    for finding in &examination.findings {
        let title = finding.check().map_or("", |check| check.title);
        lines.push(format!("{}: {title}", paint(colour, BOLD, finding.cause)));
        lines.push(format!("  {}", one_line(&finding.evidence)));
        lines.extend(finding.file.iter().map(|file| format!("  file: {file}")));
        lines.extend(finding.cure.lines().map(|line| format!("  cure: {}", one_line(line))));
    }
    lines.extend(examination.unseen.iter().map(|what| format!("could not be read: {}", one_line(what))));
    lines.extend(review.written.iter().map(|path| format!("written: {}", one_line(&path.to_string_lossy()))));
    lines.extend(review.kept.iter().map(|path| {
        let path = path.to_string_lossy();
        format!("not written: {} exists already; remove it, or name another directory", one_line(&path))
    }));
    lines.push(match examination.findings.len() {
        0 => "nothing found".into(),
        1 => "1 finding".into(),
        number => format!("{number} findings"),
    });
    lines.join("\n") + "\n"
}
