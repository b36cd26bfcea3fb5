//! The draft of a plan: which keys are written, in which order, and what the ledger says meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use super::value::is_same;
use super::{Key, Live, cascade, ra, rank, text};
use crate::change::{Blocked, Change, Plan, Step};
use crate::memory::SetSysctl;
use crate::net::{IfName, SysctlKey};
use crate::observed::{Gap, Observed};

pub struct Draft<'a> {
    keys: BTreeMap<&'a str, &'a Key<'a>>,
    to_come: &'a [&'a IfName],
    observed: &'a Observed,
    plan: &'a mut Plan,
    /// What the ledger is to say before the first write.
    ledger: BTreeMap<String, SetSysctl>,
    /// Values as they will be after what is planned so far, where they change.
    coming: BTreeMap<String, String>,
    /// What cannot be written.
    blocked: BTreeSet<&'a str>,
    /// Those of them that would cost a default route.
    costly: BTreeSet<&'a str>,
    /// What is to be taken back, and is not yet: what it has changed along with it stays in the ledger as well.
    pending: BTreeSet<&'a str>,
    /// What it costs to switch IPv6 forwarding on, once that was asked.
    cost: Option<ra::Cost>,
}

impl<'a> Draft<'a> {
    pub fn new(
        keys: &'a [Key<'a>],
        to_come: &'a [&'a IfName],
        observed: &'a Observed,
        plan: &'a mut Plan,
    ) -> Draft<'a> {
        let mut by_path = BTreeMap::new();
        by_path.extend(keys.iter().map(|it| (&*it.path, it)));
        let (ledger, coming) = (BTreeMap::new(), BTreeMap::new());
        let [blocked, costly, pending] = [const { BTreeSet::new() }; 3];
        Draft { keys: by_path, to_come, observed, plan, ledger, coming, blocked, costly, pending, cost: None }
    }

    /// What the ledger is to say.
    pub fn into_ledger(self) -> Vec<SetSysctl> {
        self.ledger.into_values().collect()
    }

    /// What is declared.
    pub fn declare(&mut self) -> Result<(), Gap> {
        let mut declared: Vec<&Key> = self.keys.values().copied().filter(|it| it.wish.is_some()).collect();
        declared.sort_by_key(|it| rank(&it.path));
        for it in declared {
            let Some(wish) = it.wish else { continue };
            let value = &wish.value.0;
            let live = match &it.live {
                Live::Is(live) => live,
                Live::Missing => {
                    let because = missing(&it.key);
                    self.plan.blocked.push(Blocked::new(it.key.command(value), because));
                    continue;
                }
                Live::Unseen(why) => {
                    self.block(it, Blocked::unseen(it.key.command(value), why.clone()));
                    continue;
                }
            };
            let coming = self.coming(&it.path, live);
            if !is_same(&coming, value) {
                let key = &it.key;
                let reason = match is_same(&coming, live) {
                    true => format!("{key} is {live}, want {value}"),
                    false => format!("{key} becomes {coming} by what is set before it, want {value}"),
                };
                match self.write(it, live, value)? {
                    Err(blocked) => {
                        self.block(it, blocked);
                        continue;
                    }
                    Ok(change) => self.plan.steps.push(Step { change, reason }),
                }
            } else if !self.coming.contains_key(&it.path) {
                // It fits, and nothing that is written changes it.
                if let Some(entry) = it.entry {
                    let ours =
                        SetSysctl { value: value.clone(), earlier: None, persist: wish.persist, ..entry.clone() };
                    self.note(if self.is_ours(entry, live) { ours } else { entry.clone() });
                }
                continue;
            }
            let before = it.entry.map_or_else(|| self.before(&it.path, live), |entry| entry.before.clone());
            // What was written already and is not live: the kernel may show the value otherwise (tcp_fastopen_key), and
            // then it is ours as well.
            let shown = it.entry.filter(|entry| is_same(&entry.value, value) && !is_same(&entry.before, live));
            let earlier = self.earlier(it.entry, live, value).or_else(|| shown.map(|_| live.clone()));
            self.note(SetSysctl { key: it.path.clone(), before, value: value.clone(), earlier, persist: wish.persist });
        }
        Ok(())
    }

    /// What is declared no longer, and still has a value of ours.
    pub fn take_back(&mut self) -> Result<(), Gap> {
        let mut undeclared: Vec<&Key> = self.keys.values().copied().filter(|it| it.wish.is_none()).collect();
        undeclared.sort_by_key(|it| (rank(&it.path) + 2) % 3);
        for it in undeclared {
            let Some(entry) = it.entry else { continue };
            let live = match &it.live {
                Live::Is(live) => live,
                Live::Missing => continue, // gone with its interface
                Live::Unseen(why) => {
                    self.block(it, Blocked::unseen(it.key.command(&entry.before), why.clone()));
                    continue;
                }
            };
            if self.ledger.contains_key(&it.path) {
                continue; // it is restored together with what has changed it
            }
            let root = cascade::root_of(&it.path);
            let root = root.and_then(|root| self.keys.get(&*root).copied());
            if root.is_some_and(|root| self.pending.contains(&*root.path) || self.blocked.contains(&*root.path)) {
                self.keep(it);
                continue;
            }
            // What it is to be while a declared key decides about it.
            let held = root.and_then(|root| cascade::cascaded(&root.path, &root.wish?.value.0, &it.path));
            let goal = held.as_ref().unwrap_or(&entry.before);
            let coming = self.coming(&it.path, live);
            if let Some(value) = &held {
                let earlier = self.earlier(it.entry, live, value);
                self.note(SetSysctl { value: value.clone(), earlier, ..entry.clone() });
            }
            if !self.is_ours(entry, live) {
                continue; // another's by now
            }
            if is_same(&coming, goal) {
                if self.has_unseen(it) {
                    self.note(SetSysctl { value: entry.before.clone(), earlier: None, ..entry.clone() });
                }
                continue; // restored
            }
            let reason = match &held {
                Some(value) => format!("{} is {live}, want {value}, as is declared for all", it.key),
                None => format!(
                    "{} is {live} and was {} before node-fixer changed it; it is no longer declared",
                    it.key, entry.before
                ),
            };
            match self.write(it, live, goal)? {
                Err(blocked) => self.block(it, blocked),
                Ok(change) => {
                    self.plan.removals.push(Step { change, reason });
                    self.pending.insert(&it.path);
                    // What follows this key to its old value has it of us.
                    let back = SetSysctl { value: goal.clone(), earlier: Some(live.clone()), ..entry.clone() };
                    match cascade::reach(&it.path) {
                        Some(_) => self.note(back),
                        None if held.is_none() => self.keep(it),
                        None => {}
                    }
                }
            }
        }
        Ok(())
    }

    /// The change that writes this key, and what goes with it; or what stands against it.
    fn write(&mut self, it: &'a Key<'a>, live: &str, value: &str) -> Result<Result<Change, Blocked>, Gap> {
        let unseen = |why: String| Blocked::unseen(it.key.command(value), why);
        let reached = match cascade::reached(&it.path, self.observed)? {
            Ok(reached) => reached,
            Err(why) => return Ok(Err(unseen(why))),
        };
        let written = self.keys.values().filter(|other| other.path != it.path && other.has_turn());
        let written: BTreeSet<&str> = match it.path.contains("/default/") {
            true => written.map(|other| &*other.path).collect(),
            false => BTreeSet::new(),
        };
        let first = match cascade::pins(&it.path, live, self.to_come, &written, self.observed)? {
            Ok(first) => first,
            Err(why) => return Ok(Err(unseen(why))),
        };
        let wave = Wave { it, live, value, reached };
        let then = match it.wish {
            Some(_) => Vec::new(),
            None => wave.restored(self),
        };
        let forwards =
            ra::deletes(&it.path, value) || then.iter().any(|(key, value)| ra::deletes(&text(&key.path()), value));
        let silence = ra::deafened(&it.path, live, value);
        let cost = match silence {
            _ if forwards => self.cost()?,
            Some(link) if self.will_forward(link)? => ra::cost_of_silence(link, value, self.observed)?,
            _ => ra::Cost::Nothing(Vec::new()),
        };
        let needs = match cost {
            ra::Cost::Nothing(needs) => needs,
            ra::Cost::Unknown(why) => return Ok(Err(unseen(why))),
            ra::Cost::Default(why) => {
                self.costly.insert(&it.path);
                return Ok(Err(Blocked::new(it.key.command(value), why)));
            }
        };
        match it.wish {
            Some(_) => wave.note_declared(self),
            None => wave.note_restored(&then, self),
        }
        self.coming.insert(it.path.clone(), value.into());
        let (key, value, before) = (it.key.clone(), value.to_owned(), live.to_owned());
        Ok(Ok(Change::SetSysctl { key, value, before, first, then, needs }))
    }

    /// What it costs to switch IPv6 forwarding on.
    fn cost(&mut self) -> Result<ra::Cost, Gap> {
        let cost = match self.cost.take() {
            Some(cost) => cost,
            None => ra::cost(|path| self.declared(path), self.observed)?,
        };
        Ok(self.cost.insert(cost).clone())
    }

    /// Whether an interface forwards IPv6 when all that is declared is so. Where that cannot be seen it may.
    fn will_forward(&self, link: &str) -> Result<bool, Gap> {
        let path = format!("net/ipv6/conf/{link}/forwarding");
        if let Some(Live::Is(declared)) = self.declared(&path) {
            return Ok(!is_same(&declared, "0"));
        }
        if let Some(root) = cascade::root_of(&path).and_then(|root| self.keys.get(&*root).copied())
            && let (Some(wish), Live::Is(live)) = (root.wish, &root.live)
            && !is_same(live, &wish.value.0)
        {
            return Ok(!is_same(&wish.value.0, "0"));
        }
        let looks = self.observed.sysctls_one_by_one(&[SysctlKey::from_path(path.as_bytes())])?;
        Ok(looks.first().is_none_or(|look| match Live::of(look) {
            Live::Is(live) => !is_same(&self.coming(&path, &live), "0"),
            Live::Missing => false,
            Live::Unseen(_) => true,
        }))
    }

    /// Takes note that a key cannot be written. What the ledger says of it stays.
    fn block(&mut self, it: &'a Key<'a>, blocked: Blocked) {
        self.keep(it);
        self.blocked.insert(&it.path);
        // The same said of each interface would be no news.
        let root = cascade::root_of(&it.path);
        if !(self.costly.contains(&*it.path) && root.is_some_and(|root| self.costly.contains(&*root))) {
            self.plan.blocked.push(blocked);
        }
    }

    /// What the ledger says of a key stays, and that its live value is ours, where that is known from another key alone.
    fn keep(&mut self, it: &Key) {
        let Some(entry) = it.entry else { return };
        let earlier = match &it.live {
            Live::Is(live) => self.earlier(it.entry, live, &entry.value),
            Live::Missing | Live::Unseen(_) => None,
        };
        self.note(SetSysctl { earlier: earlier.or_else(|| entry.earlier.clone()), ..entry.clone() });
    }

    /// Whether there are keys that follow this one and cannot be read: whether they are as they were is not known.
    fn has_unseen(&self, it: &Key) -> bool {
        let follows = |other: &&&Key| cascade::root_of(&other.path).is_some_and(|root| root == it.path);
        let is_unseen = |other: &&&Key| other.entry.is_some() && matches!(other.live, Live::Unseen(_));
        cascade::reach(&it.path).is_some() && self.keys.values().filter(is_unseen).any(|other| follows(&other))
    }

    fn note(&mut self, entry: SetSysctl) {
        self.ledger.insert(entry.key.clone(), entry);
    }

    /// What a key will be after what is planned so far.
    fn coming(&self, path: &str, live: &str) -> String {
        self.coming.get(path).map_or(live, |value| value).to_owned()
    }

    /// What was there before of a key that the ledger does not tell of. Where it follows one that node-fixer has set, that
    /// is what it was with what was there before of that one: otherwise the ledger would tell of it.
    fn before(&self, path: &str, live: &str) -> String {
        let followed = || {
            let root = cascade::root_of(path)?;
            let it = self.keys.get(&*root)?;
            let entry = it.entry?;
            let follows = match &it.live {
                Live::Is(now) => is_same(&cascade::cascaded(&root, now, path)?, live),
                _ => entry.brings(path, live),
            };
            cascade::cascaded(&root, &entry.before, path).filter(|_| follows)
        };
        followed().unwrap_or_else(|| live.to_owned())
    }

    /// Whether a live value is one that was set, or that came of setting another key.
    fn is_ours(&self, entry: &SetSysctl, live: &str) -> bool {
        let root = || cascade::root_of(&entry.key).and_then(|root| self.keys.get(&*root)?.entry);
        entry.is_ours(live) || root().is_some_and(|root| root.brings(&entry.key, live))
    }

    /// The live value, where it is ours: it stays ours until the new one is there.
    fn earlier(&self, entry: Option<&SetSysctl>, live: &str, value: &str) -> Option<String> {
        (self.is_ours(entry?, live) && !is_same(live, value)).then(|| live.to_owned())
    }

    /// What a key will be by its own declaration.
    fn declared(&self, path: &str) -> Option<Live> {
        let it = self.keys.get(path)?;
        let wish = it.wish?;
        Some(match &it.live {
            Live::Is(_) => Live::Is(wish.value.0.clone()),
            other => other.clone(),
        })
    }
}

/// A key that is about to be written, and the others that the kernel changes along with it, with their live values.
struct Wave<'a> {
    it: &'a Key<'a>,
    live: &'a str,
    value: &'a str,
    reached: Vec<(SysctlKey, String)>,
}

impl Wave<'_> {
    /// Those that have another value than the undoing will give them are noted: they get it back then.
    fn note_declared(&self, draft: &mut Draft) {
        let root = &self.it.path;
        let first = self.it.entry.map_or(self.live, |entry| &entry.before);
        for (key, live) in &self.reached {
            let path = text(&key.path());
            let Some(value) = cascade::cascaded(root, self.value, &path) else { continue };
            let (before, undone) = (draft.before(&path, live), cascade::cascaded(root, first, &path));
            if !draft.keys.contains_key(&*path) && undone.is_some_and(|undone| !is_same(&before, &undone)) {
                let (key, value) = (path.clone(), value.clone());
                draft.note(SetSysctl { key, before, value, earlier: None, persist: false });
            }
            draft.coming.insert(path, value);
        }
    }

    /// What has to be written after the key is: what is declared, what was there before, and what others have set since.
    fn restored(&self, draft: &Draft) -> Vec<(SysctlKey, String)> {
        let root = &self.it.path;
        let restored = self.reached.iter().filter_map(|(key, live)| {
            let path = text(&key.path());
            let after = cascade::cascaded(root, self.value, &path)?;
            let known = draft.keys.get(&*path).filter(|_| !draft.blocked.contains(&*path));
            let goal = match known.map(|it| (it.wish, it.entry)) {
                Some((Some(wish), _)) => wish.value.0.clone(),
                Some((None, Some(entry))) if draft.is_ours(entry, live) => entry.before.clone(),
                _ if cascade::cascaded(root, self.live, &path).is_some_and(|ours| is_same(&ours, live)) => return None,
                _ => live.clone(),
            };
            (!is_same(&goal, &after)).then(|| (key.clone(), goal))
        });
        restored.collect()
    }

    /// What is restored after the key is written is noted before: an end in between leaves it to the next run. Of the
    /// others what was noted stays, until the key itself is seen to be back.
    fn note_restored(&self, then: &[(SysctlKey, String)], draft: &mut Draft) {
        let mut goals = BTreeMap::new();
        goals.extend(then.iter().map(|(key, value)| (key, value)));
        for (key, live) in &self.reached {
            let path = text(&key.path());
            let Some(after) = cascade::cascaded(&self.it.path, self.value, &path) else { continue };
            let known = draft.keys.get(&*path).copied();
            let goal = goals.get(key).copied();
            draft.coming.insert(path.clone(), goal.unwrap_or(&after).clone());
            if let Some(wish) = known.and_then(|it| it.wish) {
                // Its declaration restores it. From now on it is what it is by that alone.
                if goal.is_some() && !draft.ledger.contains_key(&path) {
                    let (before, value) = (draft.before(&path, live), wish.value.0.clone());
                    draft.note(SetSysctl { key: path, before, value, earlier: None, persist: wish.persist });
                }
                continue;
            }
            let entry = known.and_then(|it| it.entry);
            match goal {
                Some(before) => draft.note(SetSysctl {
                    key: path,
                    before: before.clone(),
                    earlier: draft.earlier(entry, live, &after),
                    value: after,
                    persist: entry.is_some_and(|entry| entry.persist),
                }),
                None => entry.into_iter().for_each(|entry| draft.note(entry.clone())),
            }
        }
    }
}

impl Key<'_> {
    /// Whether it is to be written: it is declared otherwise, or still has the value of a declaration that is gone.
    fn has_turn(&self) -> bool {
        let Live::Is(live) = &self.live else { return false };
        match (self.wish, self.entry) {
            (Some(wish), _) => !is_same(live, &wish.value.0),
            (None, Some(entry)) => entry.is_ours(live) && !is_same(live, &entry.before),
            (None, None) => false,
        }
    }
}

fn missing(key: &SysctlKey) -> String {
    format!(
        "the kernel here has no sysctl {key} (a name with a dot takes slashes: net/ipv4/conf/eth0.100/proxy_arp); it is \
         set when it appears, with its interface or its kernel module"
    )
}
