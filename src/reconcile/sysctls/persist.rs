//! The file in /etc/sysctl.d that makes declared values last: what it says, and which files of others win over it.

use std::path::PathBuf;

use super::{rank, text};
use crate::change::{Blocked, Change, Plan, Step};
use crate::desired::{Desired, Mode};
use crate::net::SysctlKey;
use crate::observed::{Gap, Observed};
use crate::sysctl_d::{self, ConfFile, OURS, Occasion, Settings};

/// How our file begins, and is known by.
pub const HEADER: &str = "# Written by node-fixer";
pub const HEADER_REST: &str = "; it writes it again when this is changed. Change the sections sysctls and rp_filter of its \
                           configuration.";

/// A line of our file: a path or pattern below /proc/sys, and its value.
pub struct Lasting {
    path: String,
    value: String,
}

/// What our file is to say.
pub fn lasting(desired: &Desired) -> Vec<Lasting> {
    let declared = desired.sysctls.iter().filter(|wish| wish.persist);
    let declared = declared.map(|wish| Lasting { path: wish.key.path().to_owned(), value: wish.value.0.clone() });
    let rp_filter = &desired.rp_filter;
    let value = rp_filter.value.number().to_string();
    let links = rp_filter.persist.iter().filter(|_| rp_filter.mode == Mode::Enforce);
    let of_links =
        links.map(|link| Lasting { path: format!("net/ipv4/conf/{}/rp_filter", link.0), value: value.clone() });
    // Whoever reads the file also writes in its order.
    let mut all: Vec<Lasting> = declared.chain(of_links).collect();
    all.sort_by_key(|it| rank(&it.path));
    all
}

/// The lines of our file that stay as they are: those of rp_filter, while that only observes.
fn kept_lines<'a>(desired: &Desired, there: Option<&'a str>) -> Vec<&'a str> {
    let observed = desired.rp_filter.mode == Mode::Observe;
    let there = there.filter(|there| observed && is_ours(there)).unwrap_or_default();
    there.lines().filter(|line| line.contains("rp_filter = ")).collect()
}

impl Lasting {
    /// Whether it is of an interface, which may not be there when the line is read.
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

/// Plans what is to be done about our file. Whether there is something of ours is returned; there may be where it
/// cannot be read, which holds none of the values up.
pub fn plan(lasting: &[Lasting], desired: &Desired, observed: &Observed, plan: &mut Plan) -> Result<bool, Gap> {
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

fn write(lasting: &[Lasting], desired: &Desired, there: Option<&str>, plan: &mut Plan) {
    let kept = kept_lines(desired, there);
    let nothing = lasting.is_empty() && kept.is_empty();
    let kept = kept.into_iter().map(|line| format!("{line}\n"));
    let lines = lasting.iter().map(|it| it.line() + "\n").chain(kept);
    let text: String = [format!("{HEADER}{HEADER_REST}\n")].into_iter().chain(lines).collect();
    match there {
        Some(there) if !is_ours(there) && !nothing => plan.blocked.push(Blocked::new(
            format!("the declared sysctls in {OURS}, so that they last"),
            "there is a file of this name that node-fixer did not write, and it is never replaced; move it away".into(),
        )),
        Some(there) if !is_ours(there) || there == text && !nothing => {}
        Some(there) if nothing => plan.removals.push(Step {
            change: Change::Persist { new: None, old: Some(there.to_owned()) },
            reason: "node-fixer wrote it, and nothing that is declared is to last any more".into(),
        }),
        None if nothing => {}
        // First, so that nothing is set that would have to be taken back for the want of a file.
        there => plan.steps.push(Step {
            change: Change::Persist { new: Some(text), old: there.map(ToOwned::to_owned) },
            reason: "declared to last, for the next boot and for interfaces to come".into(),
        }),
    }
}

/// Blocks what a file of others says otherwise, and says it last.
fn name_what_overrides(lasting: &[Lasting], observed: &Observed, plan: &mut Plan) -> Result<(), Gap> {
    let text: String = lasting.iter().map(|it| it.line() + "\n").collect();
    let path = PathBuf::from(OURS);
    let ours = ConfFile { path, text: text.into_bytes() };
    let settings = match observed.sysctl_files() {
        Err(Gap::Failed(why)) => {
            plan.blocked.push(Blocked::unseen(format!("find what wins over {OURS}"), why.to_string()));
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
            format!("{} to last", wish.line()),
            format!(
                "{} says {} for {}, and wins over {OURS}; take that line out, or declare what it says",
                winner.place(),
                text_of(&winner.value),
                text_of(key.as_bytes())
            ),
        ));
    }
    Ok(())
}

/// Keys that the pattern matches: those of interfaces that are there, those that files speak of, and an invented one.
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
                // The first character of a set is one of it, but of a set of all others, where any other may do.
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
    crate::net::one_line(&text(value)).into_owned()
}
