//! `sysctls`: each key that is declared has its value. What is to last is also written to one file in /etc/sysctl.d,
//! with what `rp_filter.persist` asks for, so that the boot and udev set the same.
//!
//! A sysctl carries no mark. The ledger tells what was there before, and it comes back when the declaration goes,
//! where the value is still ours.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::{bridges, carried};
use crate::change::{Blocked, Change, Plan, Step};
use crate::desired::{Desired, Mode, Sysctl};
use crate::memory::{Kind, Note, SetSysctl};
use crate::net::{FORWARD, FORWARD_OF_ALL, IfName, SysctlKey};
use crate::observed::{Gap, Observed};
use crate::sorted;
use crate::sysctl_d::{self, ConfFile, OURS, Occasion, Settings};

/// How our file begins, and is known by.
const HEADER: &str = "# Written by node-fixer";
const HEADER_REST: &str = "; it writes it again when this is changed. Change the sections sysctls and rp_filter of its \
                           configuration.";

pub fn plan(desired: &Desired, observed: &Observed) -> Result<Plan, Gap> {
    let mut plan = Plan::default();
    let lasting = lasting(desired);
    let known = observed.recall()?.memory.made.get(&Kind::Sysctls).copied();
    if desired.sysctls.is_empty() && lasting.is_empty() && known == Some(false) {
        return Ok(plan);
    }
    let ledger = &observed.ledger()?.sysctls;
    let there = observed.persisted()?;
    persist(&lasting, kept_lines(desired, there), there, &mut plan);
    if !lasting.is_empty() {
        name_what_overrides(&lasting, observed, &mut plan)?;
    }

    let wanted = wanted(desired, observed)?;
    let to_come = bridges::to_come(desired, observed)?;
    let mut keys: Vec<Key> = wanted.iter().map(|(key, wish)| Key::new(key.clone(), Some(wish), ledger)).collect();
    let undeclared = ledger.iter().map(|entry| SysctlKey::from_path(entry.key.as_bytes()));
    let undeclared = undeclared.filter(|key| !wanted.contains_key(key));
    keys.extend(undeclared.map(|key| Key::new(key, None, ledger)));
    let looks: Vec<_> = keys.iter().map(|it| standing_in(&it.key, &to_come)).collect();
    for (it, look) in keys.iter_mut().zip(observed.sysctls_one_by_one(&looks)?) {
        match look {
            Ok(live) => it.live.clone_from(live),
            Err(why) => {
                let want = it.wish.map_or_else(|| it.key.to_string(), |wish| it.key.command(&wish.value.0));
                plan.blocked.push(Blocked::unseen(want, why.to_string()));
                it.unseen = true;
            }
        }
    }
    // What changes others goes first, so that those that are declared otherwise come after it.
    let keys = sorted::first(keys, |it| carried::reach(&it.path).is_some());
    let mut noted: Vec<SetSysctl> = Vec::new();

    // Those of them that are written now, with what else they reach.
    let mut waves: Vec<Wave> = Vec::new();
    for it in &keys {
        let (Some((directory, _)), Some((live, goal))) = (carried::reach(&it.path), it.turn()) else { continue };
        let names = observed.sysctl_names([directory.into()])?;
        let reached = carried::reached(&it.path, names.first().copied().unwrap_or_default());
        let values = observed.sysctls_one_by_one(&reached)?.into_iter();
        // What cannot be seen is not kept.
        let values = values.map(|look| look.as_ref().ok().cloned().flatten());
        let reached = reached.into_iter().zip(values).filter_map(|(key, live)| Some((text(&key.path()), key, live?)));
        let first = it.entry.filter(|_| it.wish.is_some()).map_or(live, |entry| &entry.before);
        waves.push(Wave { path: &it.path, live, goal, first, reached: reached.collect() });
    }
    for (wave, it) in waves.iter().filter_map(|wave| Some((wave, keys.iter().find(|it| it.path == wave.path)?))) {
        // Who had another value than the undoing will give them is remembered: it gets it back then.
        let fresh =
            wave.reached.iter().filter(|(path, ..)| it.wish.is_some() && !keys.iter().any(|it| it.path == *path));
        noted.extend(fresh.filter_map(|(path, _, live)| {
            let value = carried::carried(wave.path, wave.goal, path)?;
            let undone = carried::carried(wave.path, wave.first, path)?;
            let entry = SetSysctl { key: path.clone(), before: live.clone(), value, earlier: None, persist: false };
            (!is_same(live, &undone)).then_some(entry)
        }));
    }

    // Who is written itself need not be kept from following.
    let staying = |it: &Key| {
        let all = carried::staying(&it.path, it.live.as_deref().unwrap_or_default(), &to_come, observed)?;
        let has_turn = |key: &SysctlKey| keys.iter().any(|it| it.key == *key && it.turn().is_some());
        Ok(all.into_iter().filter(|(key, _)| !has_turn(key)).collect())
    };

    for it in &keys {
        let wave = waves.iter().find(|wave| wave.path == it.path);
        let carried_by = waves.iter().find_map(|wave| carried::carried(wave.path, wave.goal, &it.path));
        let Some(wish) = it.wish else {
            let Some(entry) = it.entry else { continue };
            // What it is to be while a declared key decides about it.
            let held_by =
                wanted.iter().find_map(|(key, wish)| carried::carried(&text(&key.path()), &wish.value.0, &it.path));
            if it.unseen || held_by.is_none() && carried_by.is_some() && wave.is_none() {
                noted.push(entry.clone()); // it has its turn with the one that carries it
                continue;
            }
            // Gone with its interface.
            let Some(live) = &it.live else { continue };
            let goal = held_by.as_ref().unwrap_or(&entry.before);
            let coming = carried_by.as_ref().unwrap_or(live);
            if let Some(value) = &held_by {
                noted.push(SetSysctl { value: value.clone(), earlier: None, ..entry.clone() });
            }
            if entry.is_ours(live) && !is_same(coming, goal) {
                if held_by.is_none() {
                    noted.push(entry.clone());
                }
                let reason = format!("node-fixer set it to {live}, and it is no longer declared");
                let (then, back) = wave.map_or_else(Default::default, |wave| (wave.restored(&keys), wave.aside()));
                let first = staying(it)?;
                let (key, value, before) = (it.key.clone(), goal.clone(), live.clone());
                plan.removals
                    .push(Step { change: Change::SetSysctl { key, value, before, first, then, back }, reason });
            }
            continue;
        };
        let (key, value) = (&it.key, &wish.value.0);
        if it.unseen {
            noted.extend(it.entry.cloned());
            continue;
        }
        let Some(live) = &it.live else {
            plan.blocked.push(Blocked::new(
                key.command(value),
                format!("the kernel here has no sysctl {key} (a name with a dot takes slashes: net/ipv4/conf/eth0.100/proxy_arp); it is set when it appears, with its interface or its kernel module"),
            ));
            continue;
        };
        let fits = is_same(carried_by.as_ref().unwrap_or(live), value);
        if fits && carried_by.is_none() {
            noted.extend(it.entry.map(|entry| match entry.is_ours(live) {
                true => SetSysctl { value: value.clone(), earlier: None, persist: wish.persist, ..entry.clone() },
                false => entry.clone(),
            }));
            continue;
        }
        let before = it.entry.map_or(live, |entry| &entry.before).clone();
        let earlier = it.entry.filter(|entry| entry.is_ours(live)).map(|_| live.clone());
        let earlier = earlier.filter(|live| !is_same(live, value));
        noted.push(SetSysctl { key: it.path.clone(), before, value: value.clone(), earlier, persist: wish.persist });
        if !fits {
            let reason = match &carried_by {
                None => format!("{key} is {live}, declared is {value}"),
                Some(other) => format!("{key} becomes {other} by what is set before it, declared is {value}"),
            };
            let (first, then, back) = (staying(it)?, Vec::new(), wave.map_or_else(Vec::new, Wave::aside));
            let (key, value, before) = (key.clone(), value.clone(), live.clone());
            plan.steps.push(Step { change: Change::SetSysctl { key, value, before, first, then, back }, reason });
        }
    }

    // Before the first one is set, so that none is ever forgotten.
    let some = !noted.is_empty() || there.is_some_and(is_ours) || !lasting.is_empty();
    plan.remember.extend((known != Some(some)).then_some(Note::Made(Kind::Sysctls, some)));
    let noted = sorted::list(noted, |a, b| a.key.cmp(&b.key));
    if noted != *ledger {
        plan.remember.push(Note::Sysctls(noted));
    }
    Ok(plan)
}

/// A key that is declared, or was.
struct Key<'a> {
    key: SysctlKey,
    path: String,
    wish: Option<&'a Sysctl>,
    entry: Option<&'a SetSysctl>,
    live: Option<String>,
    unseen: bool,
}

impl<'a> Key<'a> {
    fn new(key: SysctlKey, wish: Option<&'a Sysctl>, ledger: &'a [SetSysctl]) -> Key<'a> {
        let path = text(&key.path());
        let entry = ledger.iter().find(|entry| entry.key == path);
        Key { key, path, wish, entry, live: None, unseen: false }
    }

    /// What it is and what it is to become, where it is to be written: it is declared otherwise, or still has the value
    /// of a declaration that is gone.
    fn turn(&self) -> Option<(&str, &str)> {
        let live = self.live.as_deref()?;
        let goal = match (self.wish, self.entry) {
            (Some(wish), _) => &wish.value.0,
            (None, Some(entry)) if entry.is_ours(live) => &entry.before,
            (None, _) => return None,
        };
        (!is_same(live, goal)).then_some((live, goal))
    }
}

/// A key that is to be written and changes others along with it.
struct Wave<'a> {
    path: &'a str,
    live: &'a str,
    goal: &'a str,
    /// What it will be when its declaration goes.
    first: &'a str,
    /// The others, with their live values.
    reached: Vec<(String, SysctlKey, String)>,
}

impl Wave<'_> {
    /// What has to be written after the key got back its live value, so that all others have theirs.
    fn aside(&self) -> Vec<(SysctlKey, String)> {
        self.after(self.live, |_, live, _| live.to_owned())
    }

    /// What has to be written after its declaration is gone: what is declared, what was there before, and what others
    /// have set since.
    fn restored(&self, keys: &[Key]) -> Vec<(SysctlKey, String)> {
        self.after(self.goal, |path, live, after| {
            let known = keys.iter().find(|it| it.path == path);
            match known.map(|it| (it.wish, it.entry)) {
                Some((Some(wish), _)) => wish.value.0.clone(),
                Some((None, Some(entry))) if entry.is_ours(live) => entry.before.clone(),
                _ if carried::carried(self.path, self.live, path).is_some_and(|ours| is_same(&ours, live)) => after,
                _ => live.to_owned(),
            }
        })
    }

    /// Who is to be otherwise after `value` is written.
    fn after(&self, value: &str, goal: impl Fn(&str, &str, String) -> String) -> Vec<(SysctlKey, String)> {
        let reached = self.reached.iter().filter_map(|(path, key, live)| {
            let after = carried::carried(self.path, value, path)?;
            let goal = goal(path, live, after.clone());
            (!is_same(&goal, &after)).then(|| (key.clone(), goal))
        });
        reached.collect()
    }
}

impl SetSysctl {
    /// Whether a live value is the one that was set.
    fn is_ours(&self, live: &str) -> bool {
        is_same(live, &self.value) || self.earlier.as_ref().is_some_and(|earlier| is_same(live, earlier))
    }
}

/// A line of our file: a path or pattern below /proc/sys, and its value.
struct Lasting {
    path: String,
    value: String,
}

/// What our file is to say.
fn lasting(desired: &Desired) -> Vec<Lasting> {
    let declared = desired.sysctls.iter().filter(|wish| wish.persist);
    let declared = declared.map(|wish| Lasting { path: wish.key.path().to_owned(), value: wish.value.0.clone() });
    let rp_filter = &desired.rp_filter;
    let value = rp_filter.value.number().to_string();
    let links = rp_filter.persist.iter().filter(|_| rp_filter.mode == Mode::Enforce);
    let of_links =
        links.map(|link| Lasting { path: format!("net/ipv4/conf/{}/rp_filter", link.0), value: value.clone() });
    // Who reads the file writes in its order, too.
    sorted::first(declared.chain(of_links).collect(), |it| carried::reach(&it.path).is_some())
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

fn persist(lasting: &[Lasting], kept: Vec<&str>, there: Option<&str>, plan: &mut Plan) {
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
    let settings = observed.sysctl_files()?.with(ours);
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
fn example_of(pattern: &str) -> String {
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

/// Each key that is declared, by itself or by a pattern, and by which entry: as in sysctl.d(5) a key by itself wins
/// over patterns, and of patterns the last one.
pub fn wanted<'a>(desired: &'a Desired, observed: &Observed) -> Result<BTreeMap<SysctlKey, &'a Sysctl>, Gap> {
    let mut wanted = BTreeMap::new();
    let globs = || desired.sysctls.iter().filter_map(|wish| Some((wish, wish.key.glob()?)));
    let names = observed.sysctl_names(globs().map(|(_, (directory, ..))| directory.to_owned()))?;
    let to_come = bridges::to_come(desired, observed)?;
    for ((wish, (directory, pattern, rest)), names) in globs().zip(names) {
        let names = names.iter().map(|name| &**name).chain(to_come.iter().map(|name| name.as_bytes()));
        for name in names.filter(|name| sysctl_d::is_match(pattern.as_bytes(), name)) {
            let path = [directory.as_bytes(), name, rest.as_bytes()].join(&b'/');
            let path = if path == FORWARD_OF_ALL.as_bytes() { FORWARD.as_bytes() } else { &path };
            wanted.insert(SysctlKey::from_path(path), wish);
        }
    }
    let plain = desired.sysctls.iter().filter(|wish| wish.key.glob().is_none());
    wanted.extend(plain.map(|wish| (SysctlKey::from_path(wish.key.path().as_bytes()), wish)));
    Ok(wanted)
}

/// The key that has its value already: a bridge that is to come will have those of `default`.
fn standing_in(key: &SysctlKey, to_come: &[&IfName]) -> SysctlKey {
    let mut segments: Vec<&[u8]> = key.segments().collect();
    match segments.get_mut(3).filter(|name| key.names_link() && to_come.iter().any(|it| it.as_bytes() == **name)) {
        Some(name) => {
            *name = b"default";
            SysctlKey::from_path(&segments.join(&b'/'))
        }
        None => key.clone(),
    }
}

/// Whether the kernel means the same by both: whatever the white space, and numbers as numbers.
fn is_same(live: &str, wanted: &str) -> bool {
    if format!("{live}{wanted}").contains([',', '-'])
        && let (Some(live), Some(wanted)) = (ranges(live), ranges(wanted))
    {
        return live == wanted;
    }
    let (mut live, mut wanted) = (live.split_whitespace(), wanted.split_whitespace());
    loop {
        match (live.next(), wanted.next()) {
            (None, None) => return true,
            (Some(a), Some(b)) if a == b || number(a).is_some_and(|a| number(b) == Some(a)) => {}
            _ => return false,
        }
    }
}

/// A list of ports as the kernel shows it: in order, and joined (`8080,8081` is `8080-8081`). `None` where it is none.
fn ranges(list: &str) -> Option<Vec<(u32, u32)>> {
    let range = |range: &str| {
        let (from, to) = range.split_once('-').unwrap_or((range, range));
        Some((from.trim().parse().ok()?, to.trim().parse().ok()?))
    };
    let all: Vec<(u32, u32)> = list.split(',').map(range).collect::<Option<_>>()?;
    let mut all = sorted::list(all, Ord::cmp);
    all.dedup_by(|next, last| {
        let joined = next.0 <= last.1.saturating_add(1);
        last.1 = if joined { last.1.max(next.1) } else { last.1 };
        joined
    });
    Some(all)
}

/// A number as the kernel reads it (base 0 of `simple_strtoul`): decimal, 0x… or, after a zero, octal.
fn number(text: &str) -> Option<i128> {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    let (base, digits) = match digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        Some(digits) => (16, digits),
        None if digits.len() > 1 && digits.starts_with('0') => (8, digits),
        None => (10, digits),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    i128::from_str_radix(digits, base).ok().map(|number| sign * number)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn text_of(value: &[u8]) -> String {
    crate::net::one_line(&text(value)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::testing::{Model, desired};

    fn shown(steps: &[Step]) -> Vec<String> {
        steps.iter().map(|step| step.change.to_string()).collect()
    }

    #[test]
    fn declared_values_are_set() {
        let forward = "sysctls: [{key: net.ipv4.ip_forward, value: 1}]";
        let proxies = "sysctls: [{key: 'net.ipv4.conf.vh_*.proxy_arp', value: 1}, \
                       {key: 'net.ipv4.conf.vh_2*.proxy_arp', value: 0}, {key: net/ipv4/conf/vh_2.1/proxy_arp, value: 1}]";
        let node = "sysctl net/ipv4/conf/all/proxy_arp = 0\nsysctl net/ipv4/conf/vh_1/proxy_arp = 0\n\
                    sysctl net/ipv4/conf/vh_2/proxy_arp = 0\nsysctl net/ipv4/conf/vh_2.1/proxy_arp = 0";
        for (case, yaml, node, commands, blocked) in [
            ("differs", forward, "sysctl net/ipv4/ip_forward = 0", vec!["sysctl -w net.ipv4.ip_forward=1"], 0),
            ("is so", forward, "sysctl net/ipv4/ip_forward = 1", vec![], 0),
            ("is not there", forward, "", vec![], 1),
            (
                "patterns: the last one counts, and a key by itself more",
                proxies,
                node,
                vec!["sysctl -w net.ipv4.conf.vh_1.proxy_arp=1", "sysctl -w net/ipv4/conf/vh_2.1/proxy_arp=1"],
                0,
            ),
            ("a pattern of nobody", "sysctls: [{key: 'net.ipv4.conf.tap*.proxy_arp', value: 1}]", node, vec![], 0),
            (
                "a bridge that is to come",
                "bridges: [{name: br0}]\nsysctls: [{key: 'net.ipv4.conf.br*.proxy_arp', value: 1}]",
                "sysctl net/ipv4/conf/default/proxy_arp = 0",
                vec!["sysctl -w net.ipv4.conf.br0.proxy_arp=1"],
                0,
            ),
            (
                "white space",
                "sysctls: [{key: net.ipv4.ip_local_port_range, value: '1024   65535'}]",
                "sysctl net/ipv4/ip_local_port_range = 1024\t65535",
                vec![],
                0,
            ),
            ("signs", "sysctls: [{key: net.x.y, value: -1}]", "sysctl net/x/y = -1", vec![], 0),
            ("bases", "sysctls: [{key: net.x.y, value: '0x10'}]", "sysctl net/x/y = 16", vec![], 0),
            ("octal", "sysctls: [{key: net.x.y, value: '010'}]", "sysctl net/x/y = 8", vec![], 0),
            (
                "ports",
                "sysctls: [{key: net.x.y, value: '9,8080,8081,1-3'}]",
                "sysctl net/x/y = 1-3,9,8080-8081",
                vec![],
                0,
            ),
            (
                "other ports",
                "sysctls: [{key: net.x.y, value: '8080,8082'}]",
                "sysctl net/x/y = 8080-8082",
                vec!["sysctl -w net.x.y=8080,8082"],
                0,
            ),
            (
                "fewer words",
                "sysctls: [{key: net.x.y, value: '1'}]",
                "sysctl net/x/y = 1 2",
                vec!["sysctl -w net.x.y=1"],
                0,
            ),
        ] {
            let plan = Model::new(node).plan(plan, &desired(yaml));
            assert_eq!(shown(&plan.steps), commands, "{case}");
            assert_eq!(plan.blocked.len(), blocked, "{case}: {:?}", plan.blocked);
            assert_eq!(plan.removals, [], "{case}");
        }
    }

    #[test]
    fn what_was_there_before_comes_back_where_the_value_is_still_ours() {
        for (case, live, before, expected) in [
            ("ours", Some("2"), "1", vec!["sysctl -w net.x.y=1"]),
            ("changed since", Some("3"), "1", vec![]),
            ("gone", None, "1", vec![]),
            ("never changed", Some("2"), "2", vec![]),
        ] {
            let mut node = Model::new(&live.map_or(String::new(), |live| format!("sysctl net/x/y = {live}")));
            node.ledger.sysctls.push(entry("net/x/y", before, "2"));
            let first = node.plan(plan, &desired("{}"));
            assert_eq!(shown(&first.removals), expected, "{case}");
            assert_eq!(first.remember.contains(&Note::Sysctls(Vec::new())), expected.is_empty(), "{case}");
        }
    }

    #[test]
    fn the_first_value_is_remembered_however_often_it_is_set() {
        let mut node = Model::new("sysctl net/x/y = 1");
        let wish = desired("sysctls: [{key: net.x.y, value: 2}]");
        for live in ["1", "7", "9"] {
            node.sysctls[0].1 = live.into();
            let first = node.plan(plan, &wish);
            first.remember.into_iter().for_each(|note| node.ledger.take(note));
            first.steps.iter().for_each(|step| node.apply(&step.change));
        }
        let seven = SetSysctl { earlier: None, ..entry("net/x/y", "1", "2") };
        assert_eq!(node.ledger.sysctls, [seven]);
    }

    fn entry(key: &str, before: &str, value: &str) -> SetSysctl {
        let (key, before, value) = (key.into(), before.into(), value.into());
        SetSysctl { key, before, value, earlier: None, persist: false }
    }

    /// What the kernel may have refused, or was never told: the earlier value is ours still.
    #[test]
    fn an_update_that_failed_keeps_what_was_there_before() {
        let mut node = Model::new("sysctl net/x/y = 2");
        node.ledger.sysctls.push(entry("net/x/y", "1", "2"));
        let first = node.plan(plan, &desired("sysctls: [{key: net.x.y, value: 3}]"));
        first.remember.into_iter().for_each(|note| node.ledger.take(note));
        assert_eq!(node.ledger.sysctls, [SetSysctl { earlier: Some("2".into()), ..entry("net/x/y", "1", "3") }]);
        assert_eq!(shown(&node.plan(plan, &desired("{}")).removals), ["sysctl -w net.x.y=1"]);
        let again = node.plan(plan, &desired("sysctls: [{key: net.x.y, value: 2}]"));
        assert_eq!(again.remember[1..], [Note::Sysctls(vec![entry("net/x/y", "1", "2")])]);
    }

    #[test]
    fn forwarding_is_switched_without_a_loss_to_others() {
        let node = "sysctl net/ipv4/ip_forward = 0\nsysctl net/ipv4/conf/default/forwarding = 0\n\
                    sysctl net/ipv4/conf/all/forwarding = 0\nsysctl net/ipv4/conf/all/accept_redirects = 0\n\
                    sysctl net/ipv4/conf/eth0/forwarding = 0\nsysctl net/ipv4/conf/eth1/forwarding = 1";
        let on = "sysctls: [{key: net.ipv4.ip_forward, value: 1}]";
        let closed = "sysctls: [{key: net.ipv4.conf.eth0.forwarding, value: 0}, {key: net.ipv4.ip_forward, value: 1}]";
        let every = "sysctls: [{key: 'net.ipv4.conf.*.forwarding', value: 1}]";
        let back = "sysctl -w net.ipv4.ip_forward=0 && sysctl -w net.ipv4.conf.eth1.forwarding=1 && \
                    sysctl -w net.ipv4.conf.all.accept_redirects=0";
        for (case, yaml, commands, removals) in [
            ("all", on, vec!["sysctl -w net.ipv4.ip_forward=1"], vec![back]),
            (
                "all but one",
                closed,
                vec!["sysctl -w net.ipv4.ip_forward=1", "sysctl -w net.ipv4.conf.eth0.forwarding=0"],
                vec![back],
            ),
            ("each", every, vec!["sysctl -w net.ipv4.ip_forward=1"], vec![back]),
        ] {
            let mut node = Model::new(node);
            let mut run = |yaml: &str| {
                let plan = node.plan(plan, &desired(yaml));
                plan.remember.into_iter().for_each(|note| node.ledger.take(note));
                let steps = [plan.steps, plan.removals].concat();
                steps.iter().for_each(|step| node.apply(&step.change));
                steps
            };
            let steps = run(yaml);
            assert_eq!(shown(&steps), commands, "{case}");
            assert_eq!(steps[0].change.undone().unwrap().to_string(), back, "{case}: taken back");
            assert_eq!(shown(&run(yaml)), [""; 0], "{case}: again");
            assert_eq!(shown(&run("{}")), removals, "{case}: undeclared");
            assert_eq!(shown(&run("{}")), [""; 0], "{case}: undeclared, again");
            let values: Vec<_> = node.sysctls.iter().map(|(_, value)| value.as_str()).collect();
            assert_eq!(values, ["0", "0", "0", "0", "0", "1"], "{case}: at last");
            assert_eq!(node.ledger.sysctls, [], "{case}");
        }
    }

    #[test]
    fn default_takes_nobody_along() {
        let mut node = Model::new(
            "sysctl net/ipv4/conf/all/proxy_arp = 0\nsysctl net/ipv4/conf/default/proxy_arp = 0\n\
             sysctl net/ipv4/conf/eth0/proxy_arp = 0\nsysctl net/ipv4/conf/eth1/proxy_arp = 1\n\
             sysctl net/ipv4/conf/eth2/proxy_arp = 0\nsysctl net/ipv4/conf/eth3/proxy_arp = 0",
        );
        let yaml = "bridges: [{name: br0}]\nsysctls: [{key: net.ipv4.conf.default.proxy_arp, value: 2}, \
                    {key: net.ipv4.conf.eth2.proxy_arp, value: 0}, {key: net.ipv4.conf.eth3.proxy_arp, value: 1}]";
        let first = node.plan(plan, &desired(yaml));
        let kept = ["eth0", "eth2", "br0"].map(|link| format!("sysctl -w net.ipv4.conf.{link}.proxy_arp=0; "));
        let default = kept.concat() + "sysctl -w net.ipv4.conf.default.proxy_arp=2";
        assert_eq!(shown(&first.steps), [default.as_str(), "sysctl -w net.ipv4.conf.eth3.proxy_arp=1"]);
        let undone = first.steps[0].change.undone().unwrap();
        assert_eq!(undone.to_string(), "sysctl -w net.ipv4.conf.default.proxy_arp=0");
        assert_eq!(first.steps[0].change.alone().to_string(), "sysctl -w net.ipv4.conf.default.proxy_arp=2");
    }

    #[test]
    fn what_is_declared_no_longer_follows_what_still_is() {
        let mut node = Model::new(
            "sysctl net/ipv4/ip_forward = 1\nsysctl net/ipv4/conf/eth0/forwarding = 0\n\
             sysctl net/ipv4/conf/all/accept_redirects = 0",
        );
        let forward = entry("net/ipv4/ip_forward", "0", "1");
        node.ledger.sysctls = vec![entry("net/ipv4/conf/eth0/forwarding", "0", "0"), forward];
        let plan = node.plan(plan, &desired("sysctls: [{key: net.ipv4.ip_forward, value: 1}]"));
        assert_eq!(shown(&plan.removals), ["sysctl -w net.ipv4.conf.eth0.forwarding=1"]);
    }

    #[test]
    fn a_key_that_cannot_be_read_blocks_itself_alone() {
        let wish = desired("sysctls: [{key: net.x.y, value: 1}, {key: net.x.z, value: 1}]");
        let key = |path: &str| SysctlKey::from_path(path.as_bytes());
        let mut node = Model::new("sysctl net/x/z = 0");
        node.unreadable = Some(key("net/x/y"));
        let plan = node.plan(plan, &wish);
        assert_eq!(shown(&plan.steps), ["sysctl -w net.x.z=1"]);
        assert!(plan.blocked[0].unseen && plan.blocked.len() == 1, "{:?}", plan.blocked);
    }

    #[test]
    fn what_is_to_last_is_one_file() {
        let yaml = "sysctls: [{key: net.ipv4.ip_forward, value: 1, persist: true}, {key: net.x.y, value: 1}, \
                    {key: 'net.ipv4.conf.vh_*.proxy_arp', value: 1, persist: true}, \
                    {key: net/ipv4/conf/eth0.100/proxy_arp, value: 1, persist: true}]\n\
                    rp_filter: {persist: [default, 'eth*', eth0.100]}";
        let node = "sysctl net/ipv4/ip_forward = 1\nsysctl net/x/y = 1\nsysctl net/ipv4/conf/eth0.100/proxy_arp = 1";
        let mut node = Model::new(node);
        let text = format!(
            "{HEADER}{HEADER_REST}
net.ipv4.ip_forward = 1
-net.ipv4.conf.vh_*.proxy_arp = 1
-net/ipv4/conf/eth0.100/proxy_arp = 1
net.ipv4.conf.default.rp_filter = 2
-net.ipv4.conf.eth*.rp_filter = 2
-net/ipv4/conf/eth0.100/rp_filter = 2
"
        );
        let first = node.plan(plan, &desired(yaml));
        let change = Change::Persist { new: Some(text.clone()), old: None };
        assert_eq!(first.steps.iter().map(|step| &step.change).collect::<Vec<_>>(), [&change]);
        node.apply(&change);
        assert_eq!(node.plan(plan, &desired(yaml)).steps, []);
        let undeclared = node.plan(plan, &desired("{}"));
        assert_eq!(undeclared.removals[0].change, Change::Persist { new: None, old: Some(text) });

        node.persisted = Some("# An operator's\n".into());
        assert_eq!(node.plan(plan, &desired("{}")).removals, [], "what others wrote stays");
        assert_eq!(node.plan(plan, &desired(yaml)).blocked.len(), 1);
        let observing = yaml.replace("{persist:", "{mode: observe, persist:");
        node.persisted = None;
        let Change::Persist { new: Some(text), .. } = &node.plan(plan, &desired(&observing)).steps[0].change else {
            panic!();
        };
        assert!(!text.contains("rp_filter ="), "who observes writes nothing: {text}");
        node.persisted = Some(format!("{HEADER}\nnet.ipv4.conf.default.rp_filter = 2\n"));
        let only_observing = node.plan(plan, &desired("rp_filter: {mode: observe, persist: [default]}"));
        assert_eq!(only_observing.removals, [], "and takes nothing away");
    }

    #[test]
    fn a_file_that_wins_over_ours_is_named() {
        let file = |path: &str, text: &str| ConfFile { path: path.into(), text: text.into() };
        for (case, files, expected) in [
            (
                "of one that is there",
                vec![file("/etc/sysctl.d/99-x.conf", "net.ipv4.conf.eth1-*.rp_filter = 1\n")],
                Some("99-x.conf:1 says 1 for net/ipv4/conf/eth1-up/rp_filter"),
            ),
            (
                "of one that may come",
                vec![file("/etc/sysctl.d/99-x.conf", "net.ipv4.conf.eth77.rp_filter = 1\n")],
                Some("99-x.conf:1 says 1 for net/ipv4/conf/eth77/rp_filter"),
            ),
            (
                "of some that may come",
                vec![file("/etc/sysctl.d/99-x.conf", "net.ipv4.conf.eth5p*.rp_filter = 1\n")],
                Some("99-x.conf:1 says 1 for net/ipv4/conf/eth5p0/rp_filter"),
            ),
            ("of others", vec![file("/etc/sysctl.d/99-x.conf", "net.ipv4.conf.en*.rp_filter = 1\n")], None),
            ("earlier", vec![file("/usr/lib/sysctl.d/50-redhat.conf", "net.ipv4.conf.*.rp_filter = 1\n")], None),
            (
                "later",
                vec![file("/etc/sysctl.d/99-hard.conf", "\nnet.ipv4.conf.*.rp_filter = 1\n")],
                Some("/etc/sysctl.d/99-hard.conf:2 says 1"),
            ),
            ("later, the same", vec![file("/etc/sysctl.d/99-hard.conf", "net.ipv4.conf.*.rp_filter = 2\n")], None),
            (
                "in the place of ours",
                vec![file("/run/sysctl.d/90-node-fixer.conf", "net.ipv4.conf.*.rp_filter = 1\n")],
                None,
            ),
        ] {
            let mut node = Model::new("sysctl net/ipv4/conf/eth1-up/rp_filter = 2");
            node.sysctl_files = Settings::new(files);
            let plan = node.plan(plan, &desired("rp_filter: {persist: ['eth[0-9]*']}"));
            let because = plan.blocked.first().map(|blocked| blocked.because.clone());
            match (expected, because) {
                (None, None) => {}
                (Some(expected), Some(because)) => assert!(because.contains(expected), "{case}: {because}"),
                (expected, because) => panic!("{case}: want {expected:?}, got {because:?}"),
            }
        }
    }

    #[test]
    fn an_example_is_matched_by_its_pattern() {
        for pattern in ["eth*", "eni???", "eth[0-9]", "[ab]x[!z]*", "eth0.100", "vh_*"] {
            let example = example_of(pattern);
            assert!(sysctl_d::is_match(pattern.as_bytes(), example.as_bytes()), "{pattern}: {example}");
        }
    }
}
