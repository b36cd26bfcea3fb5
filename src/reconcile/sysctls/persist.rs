//! The file in /etc/sysctl.d that makes declared values persistent: its content, and which other files win over it.

use std::path::PathBuf;

use super::{rank, text};
use crate::change::{Blocked, Change, Op, Plan, Step};
use crate::config::{Config, Mode};
use crate::model::SysctlKey;
use crate::observed::{Gap, Observed};
use crate::sorted;
use crate::sysctl_d::{self, ConfFile, OURS, Occasion, OurFile, Settings};

/// The first line of the file, by which it is recognised.
pub const HEADER: &str = "# Written by node-fixer";
pub const HEADER_REST: &str =
    "; changes are overwritten. Change the sections sysctls and rp_filter of the configuration instead.";

/// A line of the file: a path or pattern below /proc/sys, and its value.
pub struct Lasting {
    path: String,
    value: String,
}

/// The content of the file.
pub fn lasting(desired: &Config) -> Vec<Lasting> {
    let declared = desired.sysctls.iter().filter(|wish| wish.persist);
    let declared = declared.map(|wish| Lasting { path: wish.key.path().to_owned(), value: wish.value.0.clone() });
    let rp_filter = &desired.rp_filter;
    let value = rp_filter.value.number().to_string();
    let links = rp_filter.persist.iter().filter(|_| rp_filter.mode == Mode::Enforce);
    let of_links =
        links.map(|link| Lasting { path: format!("net/ipv4/conf/{}/rp_filter", link.0), value: value.clone() });
    // Readers of the file write the values in its order.
    sorted::list(declared.chain(of_links), |a, b| rank(&a.path).cmp(&rank(&b.path)))
}

/// The lines of the file that stay as they are: those of rp_filter, while that only observes.
fn kept_lines<'a>(desired: &Config, there: Option<&'a str>) -> Vec<&'a str> {
    let observed = desired.rp_filter.mode == Mode::Observe;
    let there = there.filter(|there| observed && is_ours(there)).unwrap_or_default();
    there.lines().filter(|line| line.contains("rp_filter = ")).collect()
}

impl Lasting {
    /// Whether it belongs to an interface, which may not exist when the line is read.
    fn is_of_link(&self) -> bool {
        SysctlKey::from_path(self.path.as_bytes()).names_link()
    }

    fn line(&self) -> String {
        let ignored = if self.is_of_link() { "-" } else { "" };
        let dotted = self.path.replace('/', ".");
        let key = if self.path.contains('.') { &self.path } else { &dotted };
        format!("{ignored}{key} = {}", self.value)
    }
}

fn is_ours(text: &str) -> bool {
    text.starts_with(HEADER)
}

/// Plans the changes of the file. Returns whether it exists, or may exist because it cannot be read, which does not
/// delay any value.
pub fn plan(lasting: &[Lasting], desired: &Config, observed: &Observed, plan: &mut Plan) -> Result<bool, Gap> {
    let there = match observed.persisted() {
        Err(Gap::Failed(why)) => {
            plan.blocked.push(Blocked::unseen(format!("keep {OURS} as declared"), why.to_string()));
            return Ok(true);
        }
        there => there?,
    };
    write(lasting, desired, there, plan);
    if !lasting.is_empty() {
        name_what_overrides(lasting, observed, plan)?;
    }
    Ok(!lasting.is_empty() || there.is_some_and(is_ours))
}

fn write(lasting: &[Lasting], desired: &Config, there: Option<&str>, plan: &mut Plan) {
    let kept = kept_lines(desired, there);
    let nothing = lasting.is_empty() && kept.is_empty();
    let kept = kept.into_iter().map(|line| format!("{line}\n"));
    let lines = lasting.iter().map(|it| it.line() + "\n").chain(kept);
    let text: String = [format!("{HEADER}{HEADER_REST}\n")].into_iter().chain(lines).collect();
    match there {
        Some(there) if !is_ours(there) && !nothing => plan.blocked.push(Blocked::new(
            format!("write the declared sysctls to {OURS}, so that they persist"),
            "a file of this name that node-fixer did not write exists, and is never replaced; move it away".into(),
        )),
        Some(there) if !is_ours(there) || there == text && !nothing => {}
        Some(there) if nothing => plan.removals.push(Step::new(
            Change::File(Op::Delete(OurFile(there.to_owned()))),
            "written by node-fixer, and no persistent value is declared any more",
        )),
        None if nothing => {}
        // First, so that nothing is set that would have to be undone because the file cannot be written.
        there => plan.steps.push(Step::new(
            Change::File(match there.map(|there| OurFile(there.to_owned())) {
                Some(old) => Op::Replace { new: OurFile(text), old },
                None => Op::Add(OurFile(text)),
            }),
            "declared to persist, for the next boot and for new interfaces",
        )),
    }
}

/// Blocks values that another file overrides.
fn name_what_overrides(lasting: &[Lasting], observed: &Observed, plan: &mut Plan) -> Result<(), Gap> {
    let text: String = lasting.iter().map(|it| it.line() + "\n").collect();
    let path = PathBuf::from(OURS);
    let ours = ConfFile { path, text: text.into_bytes() };
    let settings = match observed.sysctl_files() {
        Err(Gap::Failed(why)) => {
            plan.blocked.push(Blocked::unseen(format!("find which files override {OURS}"), why.to_string()));
            return Ok(());
        }
        settings => settings?.with(ours),
    };
    for wish in lasting {
        let (candidates, occasion) = match wish.is_of_link() {
            true => (examples_of(&wish.path, &settings, observed)?, Occasion::Link),
            false => (vec![wish.path.clone()], Occasion::Boot),
        };
        let overriding = |key: &String| settings.overriding(key.as_bytes(), occasion);
        let Some((key, winner)) = candidates.iter().find_map(|key| Some((key, overriding(key)?))) else { continue };
        plan.blocked.push(Blocked::new(
            format!("persist {}", wish.line()),
            format!(
                "{} sets {} for {}, and overrides {OURS}; remove that line, or declare its value",
                winner.place(),
                text_of(&winner.value),
                text_of(key.as_bytes())
            ),
        ));
    }
    Ok(())
}

/// Keys that the pattern matches: those of existing interfaces, those in files, and an invented one.
fn examples_of(pattern: &str, settings: &Settings, observed: &Observed) -> Result<Vec<String>, Gap> {
    let parts: Vec<&str> = pattern.splitn(5, '/').collect();
    let &[net, family, kind, link, what] = parts.as_slice() else { return Ok(vec![pattern.to_owned()]) };
    let names = observed.sysctl_names([[net, family, kind].join("/")])?;
    let live = names.iter().flat_map(|names| names.iter()).map(|name| text(name));
    let spoken_of = settings.keys().filter_map(|key| Some(example_of(text(key).split('/').nth(3)?)));
    let named = live.chain(spoken_of).filter(|name| sysctl_d::is_match(link.as_bytes(), name.as_bytes()));
    let mut names: Vec<String> = [example_of(link)].into_iter().chain(named).collect();
    names.dedup();
    Ok(names.into_iter().map(|name| [net, family, kind, &name, what].join("/")).collect())
}

/// A name that the pattern matches.
pub fn example_of(pattern: &str) -> String {
    let mut example = String::new();
    let mut rest = pattern.chars();
    while let Some(c) = rest.next() {
        match c {
            '*' | '?' => example.push('0'),
            '[' => {
                // The first character of a set matches, except in a negated set, where any other may.
                let set: String = rest.by_ref().take_while(|c| *c != ']').collect();
                let first = set.chars().next().unwrap_or('0');
                example.push(if matches!(first, '!' | '^') { '0' } else { first });
            }
            c => example.push(c),
        }
    }
    example
}

fn text_of(value: &[u8]) -> String {
    crate::model::one_line(&text(value)).into_owned()
}
