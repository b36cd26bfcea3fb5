//! README and docs/ say what is so: their links lead somewhere, their commands run, their outputs are real.
//!
//! `UPDATE_DOCS=1 cargo test --test it docs` writes the outputs and the configuration reference into the pages.

mod commands;
mod outputs;
mod reference;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use regex::Regex;

/// A Markdown file of the checkout.
pub struct Page {
    /// From the top of the checkout.
    pub path: PathBuf,
    pub text: String,
}

/// A fenced code block.
#[derive(Debug)]
pub struct Block {
    pub language: String,
    pub text: String,
    /// Of its first line in the page.
    pub line: usize,
}

impl Page {
    pub fn read(path: impl AsRef<Path>) -> Page {
        let path = path.as_ref();
        Page {
            path: path.into(),
            text: fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
        }
    }

    pub fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Its code blocks; those in a list without the list's indentation.
    pub fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut open: Option<usize> = None;
        for (number, line) in self.text.lines().enumerate() {
            let fence = line.trim_start().strip_prefix("```");
            match (open, fence) {
                (None, Some(language)) => {
                    open = Some(line.len() - line.trim_start().len());
                    blocks.push(Block { language: language.into(), text: String::new(), line: number + 2 });
                }
                (Some(_), Some(_)) => open = None,
                (Some(indent), None) => {
                    let block = blocks.last_mut().unwrap();
                    block.text += line.get(indent..).unwrap_or_default();
                    block.text.push('\n');
                }
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{}: a code block does not end", self.name());
        blocks
    }

    /// The page without its code blocks.
    fn prose(&self) -> String {
        let mut inside = false;
        let is_prose = |line: &&str| {
            let fence = line.trim_start().starts_with("```");
            inside ^= fence;
            !inside && !fence
        };
        self.text.lines().filter(is_prose).collect::<Vec<_>>().join("\n")
    }

    /// What can stand after `#` in a link to it.
    fn anchors(&self) -> BTreeSet<String> {
        let headings = self.prose();
        let headings = headings.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#'));
        headings.map(|heading| anchor(heading.trim())).collect()
    }

    /// The targets of its links and pictures: `[text](target)`, and `[text]` with `[text]: target` below.
    fn links(&self) -> Vec<String> {
        let (prose, targets) = (self.prose(), Regex::new(r"(?m)\]\(([^)\s]+)\)|^\[[^\]]+\]: (\S+)$").unwrap());
        let either = |found: regex::Captures| found.get(1).or(found.get(2)).unwrap().as_str().to_owned();
        targets.captures_iter(&prose).map(either).collect()
    }
}

/// How forges and mdbook call a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.to_lowercase();
    let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// All pages that users and developers read.
pub fn pages() -> Vec<Page> {
    let mut paths: Vec<PathBuf> =
        ["README.md", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(PathBuf::from).into();
    let docs = fs::read_dir("docs").unwrap().map(|entry| entry.unwrap().path());
    paths.extend(docs.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    paths.sort();
    paths.into_iter().map(Page::read).collect()
}

/// One at a time writes a page.
static WRITING: Mutex<()> = Mutex::new(());

fn updates() -> bool {
    std::env::var_os("UPDATE_DOCS").is_some()
}

/// The code block after these texts of a page, one after the other, is so; with UPDATE_DOCS it becomes so.
pub fn shows(path: &str, after: &[&str], expected: &str) {
    let _writing = WRITING.lock();
    let page = Page::read(path);
    let mut at = 0;
    for text in after.iter().chain(&["\n```", "\n"]) {
        let found = page.text[at..].find(text).unwrap_or_else(|| panic!("{path} lacks {text:?} of {after:?}"));
        at += found + text.len();
    }
    let end = at + page.text[at..].find("```").unwrap();
    replace(&page, at..end, expected);
}

/// The rows of the table with this head are so; with UPDATE_DOCS they become so.
pub fn table(path: &str, head: &str, rows: &str) {
    let _writing = WRITING.lock();
    let page = Page::read(path);
    let begin = page.text.find(head).map(|at| at + head.len()).unwrap_or_else(|| panic!("{path} lacks {head:?}"));
    let end = begin
        + page.text[begin..]
            .split_inclusive('\n')
            .take_while(|line| line.starts_with('|'))
            .map(str::len)
            .sum::<usize>();
    replace(&page, begin..end, rows);
}

/// This part of a page is so; with UPDATE_DOCS it becomes so. The caller holds `WRITING`.
fn replace(page: &Page, range: std::ops::Range<usize>, expected: &str) {
    if page.text[range.clone()] == *expected {
        return;
    }
    let path = page.name();
    assert!(
        updates(),
        "{path} is old (UPDATE_DOCS=1 cargo test --test it docs). It shows:\n{}\nand real is:\n{expected}",
        &page.text[range]
    );
    let mut text = page.text.clone();
    text.replace_range(range, expected);
    fs::write(&page.path, text).unwrap();
}

fn repository() -> String {
    let manifest = fs::read_to_string("Cargo.toml").unwrap();
    let line =
        manifest.lines().find_map(|line| line.strip_prefix("repository = \"")).expect("no repository in Cargo.toml");
    line.trim_end_matches('"').to_owned()
}

/// The file and the heading that a link leads to, if that is in this checkout.
fn target(from: &Path, link: &str) -> Option<(PathBuf, Option<String>)> {
    let of_repository =
        ["blob", "raw"].into_iter().find_map(|kind| link.strip_prefix(&format!("{}/{kind}/main/", repository())));
    if of_repository.is_none() && (link.starts_with("https://") || link.starts_with("http://")) {
        return None;
    }
    let (path, heading) = of_repository
        .unwrap_or(link)
        .split_once('#')
        .map_or((of_repository.unwrap_or(link), None), |(path, heading)| (path, Some(heading.to_owned())));
    let path = match (of_repository, path) {
        (Some(_), path) => PathBuf::from(path),
        (None, "") => from.into(),
        (None, path) => from.parent().unwrap().join(path),
    };
    Some((path, heading))
}

#[test]
fn every_link_leads_somewhere() {
    let mut dead = Vec::new();
    let alerts = fs::read_to_string("config/prometheus/alerts.yaml").unwrap();
    let runbooks: Vec<_> =
        alerts.lines().filter_map(|line| line.trim().strip_prefix("runbook_url: ")).map(str::to_owned).collect();
    assert_eq!(runbooks.len(), alerts.matches("- alert: ").count(), "each alert has its runbook");
    let links =
        pages().into_iter().flat_map(|page| page.links().into_iter().map(move |link| (page.path.clone(), link)));
    let links: Vec<_> =
        links.chain(runbooks.into_iter().map(|link| ("config/prometheus/alerts.yaml".into(), link))).collect();
    assert!(links.len() > 100, "{links:?}");
    for (from, link) in links {
        let Some((path, heading)) = target(&from, &link) else { continue };
        let is_dead = !path.exists() || heading.is_some_and(|heading| !Page::read(&path).anchors().contains(&heading));
        if is_dead {
            dead.push(format!("{}: {link}", from.display()));
        }
    }
    assert!(dead.is_empty(), "links that lead nowhere:\n{}", dead.join("\n"));
}

/// Only what stands between fences is tried.
#[test]
fn every_code_block_has_fences() {
    for page in pages() {
        let prose = page.prose();
        let mut in_a_list = false;
        for lines in prose.lines().collect::<Vec<_>>().windows(2) {
            let is_item = |line: &str| line.trim_start().starts_with(|c: char| c == '-' || c.is_ascii_digit());
            in_a_list = is_item(lines[0]) || in_a_list && (lines[0].is_empty() || lines[0].starts_with(' '));
            let is_code = lines[0].is_empty() && lines[1].starts_with("    ") && !in_a_list;
            assert!(!is_code, "{}: a block without fences: {}", page.name(), lines[1]);
        }
    }
}

/// `file` (`name`, `name`) in a page: the file is there, and has these names.
#[test]
fn what_a_page_says_of_a_source_is_there() {
    let named = Regex::new(r"`((?:src|tests|bench|packaging)/[\w./-]+)`(?:\s+\(((?:`[^`]+`(?:, )?)+)\))?").unwrap();
    let mut seen = 0;
    for page in pages() {
        for found in named.captures_iter(&page.prose()) {
            let place = format!("{}: {}", page.name(), &found[0]);
            let path = Path::new(&found[1]);
            // Those that a list of how to do it names by an example, and what a build makes.
            if found[1].contains("NAME") {
                continue;
            }
            assert!(path.exists(), "{place}: there is no such file");
            let Some(names) = found.get(2) else { continue };
            let source = fs::read_to_string(path).unwrap();
            for name in names.as_str().split(", ").map(|name| name.trim_matches('`').rsplit("::").next().unwrap()) {
                assert!(source.contains(name), "{place}: it has no {name}");
                seen += 1;
            }
        }
    }
    assert!(seen > 15, "{seen}");
}

#[test]
fn the_readme_fits_a_terminal() {
    let readme = Page::read("README.md");
    let long: Vec<_> = readme.prose().lines().map(str::to_owned).filter(|line| line.chars().count() > 80).collect();
    let is_picture = |line: &String| line.starts_with("![");
    assert!(long.iter().all(is_picture), "longer than 80: {long:?}");
    // What the tables name in brackets has its target.
    let named = Regex::new(r"\[([^\]]+)\](?:[^(:]|$)").unwrap();
    for found in named.captures_iter(&readme.prose()) {
        assert!(readme.text.contains(&format!("\n[{}]: ", &found[1])), "[{}] leads nowhere", &found[1]);
    }
}

#[test]
fn every_page_is_in_the_summary() {
    let listed = Page::read("docs/SUMMARY.md").links();
    let once: BTreeSet<_> = listed.iter().cloned().collect();
    assert_eq!(once.len(), listed.len(), "a page is listed twice: {listed:?}");
    let there = pages().into_iter().filter(|page| page.path.starts_with("docs") && !page.path.ends_with("SUMMARY.md"));
    let there: BTreeSet<_> = there.map(|page| page.path.file_name().unwrap().to_str().unwrap().to_owned()).collect();
    assert_eq!(once, there);
}

#[test]
fn the_readme_is_short_and_works_in_a_registry() {
    let readme = Page::read("README.md");
    assert!(readme.text.len() <= 8192, "README.md has {} bytes, and may have 8192", readme.text.len());
    let pictures = Regex::new(r"!\[[^\]]*\]\(([^)]+)\)").unwrap();
    let pictures: Vec<_> = pictures.captures_iter(&readme.text).map(|found| found[1].to_owned()).collect();
    assert!(!pictures.is_empty());
    for picture in pictures {
        assert!(picture.starts_with(&(repository() + "/raw/main/")), "{picture} is only seen on a forge");
    }
}

/// All files of the checkout that are no output of a build.
fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() && !["./target", "./.git"].iter().any(|not| path == Path::new(not)) {
            sources(&path, found);
        } else if kind.is_file() {
            found.push(path.strip_prefix("./").unwrap().into());
        }
    }
}

/// The address of the project is a placeholder until it is published: all of it can be found, and agrees.
#[test]
fn the_address_of_the_project_is_where_the_page_says() {
    let manifest = fs::read_to_string("Cargo.toml").unwrap();
    let repository = repository();
    let host = repository.strip_prefix("https://").unwrap().split('/').next().unwrap();
    let mut files = Vec::new();
    sources(Path::new("."), &mut files);
    let has_host = |path: &PathBuf| fs::read_to_string(path).is_ok_and(|text| text.contains(host));
    let found: BTreeSet<PathBuf> = files.into_iter().filter(has_host).collect();
    let page = Page::read("docs/releasing.md");
    let (_, table) = page.text.split_once("| file | what |\n|---|---|\n| `Cargo.toml`").unwrap();
    let rows = table.lines().take_while(|line| line.starts_with('|') || line.starts_with(" |"));
    let name = Regex::new("`([^`]+)`").unwrap();
    let cells: Vec<_> = rows.skip(1).map(|row| row.split('|').nth(1).unwrap().to_owned()).collect();
    let listed = cells.iter().flat_map(|cell| name.captures_iter(cell).map(|found| PathBuf::from(&found[1])));
    let listed: BTreeSet<PathBuf> = listed.chain(["Cargo.toml".into()]).collect();
    assert_eq!(found, listed, "files with {host}, and those that docs/releasing.md lists");
    // Each of them has it in one of these forms.
    let mail = Regex::new("<(.*)>").unwrap().captures(&manifest).unwrap()[1].to_owned();
    let image = repository.strip_prefix("https://").unwrap();
    for path in found.iter().filter(|path| !path.ends_with("Cargo.toml")) {
        let text = fs::read_to_string(path).unwrap();
        let known = [
            format!("{repository}/"),
            format!("{image},"),
            format!("{image}\n"),
            mail.clone(),
            format!("{}/schema/", env!("CARGO_PKG_HOMEPAGE")),
        ];
        let rest = known.iter().fold(text, |text, form| text.replace(form.as_str(), ""));
        assert!(!rest.contains(host), "{}: {host} in another form than in Cargo.toml", path.display());
    }
}

#[test]
fn an_anchor_is_what_forges_make_of_a_heading() {
    for (heading, expected) in
        [("What it does", "what-it-does"), ("rp_filter_all", "rp_filter_all"), ("Rights, and why", "rights-and-why")]
    {
        assert_eq!(anchor(heading), expected);
    }
}
