//! The draft of a plan: which keys are written, in which order, and how the ledger changes. It is long because the
//! three depend on each other: each write changes what the next finds and what must be noted.

use std::collections::{BTreeMap, BTreeSet};

use super::value::is_same;
use super::{Live, SysctlState, cascade, ra, rank, text};
use crate::change::{Blocked, Change, Plan, Step};
use crate::history::memory::SetSysctl;
use crate::model::{IfName, SysctlKey, SysctlWrite};
use crate::observed::{Gap, Observed};
use crate::sorted;

pub struct Draft<'a> {
    keys: BTreeMap<&'a str, &'a SysctlState<'a>>,
    to_come: &'a [&'a IfName],
    observed: &'a Observed,
    plan: &'a mut Plan,
    /// The ledger before the first write.
    ledger: BTreeMap<String, SetSysctl>,
    /// Future values, after what is planned so far, if they differ.
    coming: BTreeMap<String, String>,
    /// Keys that cannot be written.
    blocked: BTreeSet<&'a str>,
    /// Those of them that would cost a default route.
    costly: BTreeSet<&'a str>,
    /// Keys that must be restored and are not yet. What changed along with them stays in the ledger as well.
    pending: BTreeSet<&'a str>,
    /// The cost of enabling IPv6 forwarding, once it was determined.
    cost: Option<ra::Cost>,
}

impl<'a> Draft<'a> {
    pub fn new(
        keys: &'a [SysctlState<'a>],
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

    /// The new ledger.
    pub fn into_ledger(self) -> Vec<SetSysctl> {
        self.ledger.into_values().collect()
    }

    /// These keys by rank, which is 0 to 2.
    fn ranked(&self, meant: fn(&SysctlState) -> bool, rank: fn(&str) -> u8) -> Vec<&'a SysctlState<'a>> {
        let of = |at| self.keys.values().copied().filter(move |it| meant(it) && rank(&it.path) == at);
        (0..=2).flat_map(of).collect()
    }

    /// The declared values.
    pub fn declare(&mut self) -> Result<(), Gap> {
        for it in self.ranked(|it| it.wish.is_some(), rank) {
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
                    false => format!("{key} becomes {coming} when an earlier key is set, want {value}"),
                };
                match self.write(it, live, value)? {
                    Err(blocked) => {
                        self.block(it, blocked);
                        continue;
                    }
                    Ok(change) => self.plan.steps.push(Step::new(change, reason)),
                }
            } else if !self.coming.contains_key(&it.path) {
                // It matches, and no write changes it.
                if let Some(entry) = it.entry {
                    let ours =
                        SetSysctl { value: value.clone(), earlier: None, persist: wish.persist, ..entry.clone() };
                    self.note(if self.is_ours(entry, live) { ours } else { entry.clone() });
                }
                continue;
            }
            let before = it.entry.map_or_else(|| self.before(&it.path, live), |entry| entry.before.clone());
            // It was written already and is not live: the kernel may show the value differently (tcp_fastopen_key). It
            // is node-fixer's all the same.
            let shown = it.entry.filter(|entry| is_same(&entry.value, value) && !is_same(&entry.before, live));
            let earlier = self.earlier(it.entry, live, value).or_else(|| shown.map(|_| live.clone()));
            self.note(SetSysctl { key: it.path.clone(), before, value: value.clone(), earlier, persist: wish.persist });
        }
        Ok(())
    }

    /// Keys that are no longer declared and still have node-fixer's value.
    pub fn take_back(&mut self) -> Result<(), Gap> {
        for it in self.ranked(|it| it.wish.is_none(), |path| (rank(path) + 2) % 3) {
            if let Some(entry) = it.entry {
                self.restore(it, entry)?;
            }
        }
        Ok(())
    }

    /// Restores the previous value, unless another program has changed it or a declared key decides about it.
    fn restore(&mut self, it: &'a SysctlState<'a>, entry: &SetSysctl) -> Result<(), Gap> {
        let live = match &it.live {
            Live::Is(live) => live,
            Live::Missing => return Ok(()), // gone with its interface
            Live::Unseen(why) => {
                self.block(it, Blocked::unseen(it.key.command(&entry.before), why.clone()));
                return Ok(());
            }
        };
        if self.ledger.contains_key(&it.path) {
            return Ok(()); // restored together with the key that changed it
        }
        let root = cascade::root_of(&it.path);
        let root = root.and_then(|root| self.keys.get(&*root).copied());
        if root.is_some_and(|root| self.pending.contains(&*root.path) || self.blocked.contains(&*root.path)) {
            self.keep(it);
            return Ok(());
        }
        // Its value while a declared key decides about it.
        let held = root.and_then(|root| cascade::cascaded(&root.path, &root.wish?.value.0, &it.path));
        let goal = held.as_ref().unwrap_or(&entry.before);
        let coming = self.coming(&it.path, live);
        if let Some(value) = &held {
            let earlier = self.earlier(it.entry, live, value);
            self.note(SetSysctl { value: value.clone(), earlier, ..entry.clone() });
        }
        if !self.is_ours(entry, live) {
            return Ok(()); // changed by another program
        }
        if is_same(&coming, goal) {
            if self.has_unseen(it) {
                self.note(SetSysctl { value: entry.before.clone(), earlier: None, ..entry.clone() });
            }
            return Ok(()); // restored
        }
        let reason = match &held {
            Some(value) => format!("{} is {live}, want {value}, which is declared for all", it.key),
            None => format!(
                "{} is {live} and was {} before node-fixer changed it; it is no longer declared",
                it.key, entry.before
            ),
        };
        match self.write(it, live, goal)? {
            Err(blocked) => self.block(it, blocked),
            Ok(change) => {
                self.plan.removals.push(Step::new(change, reason));
                self.pending.insert(&it.path);
                // Keys that follow this one to its old value have it because of node-fixer.
                let back = SetSysctl { value: goal.clone(), earlier: Some(live.clone()), ..entry.clone() };
                match cascade::reach(&it.path) {
                    Some(_) => self.note(back),
                    None if held.is_none() => self.keep(it),
                    None => {}
                }
            }
        }
        Ok(())
    }

    /// The change that writes this key with its related writes, or why it is blocked.
    fn write(&mut self, it: &'a SysctlState<'a>, live: &str, value: &str) -> Result<Result<Change, Blocked>, Gap> {
        let unseen = |why: String| Blocked::unseen(it.key.command(value), why);
        let reached = match cascade::reached(&it.path, self.observed)? {
            Ok(reached) => reached,
            Err(why) => return Ok(Err(unseen(why))),
        };
        let written = self.keys.values().filter(|other| other.path != it.path && other.has_turn());
        let written = match it.path.contains("/default/") {
            true => sorted::set(written.map(|other| &*other.path)),
            false => BTreeSet::new(),
        };
        let pin_before = match cascade::pins(&it.path, live, self.to_come, &written, self.observed)? {
            Ok(pins) => pins,
            Err(why) => return Ok(Err(unseen(why))),
        };
        let wave = Wave { it, live, value, reached };
        let restore_after = match it.wish {
            Some(_) => Vec::new(),
            None => wave.restored(self),
        };
        let restores = |(key, value): &(SysctlKey, String)| ra::deletes(&text(&key.path()), value);
        let forwards = ra::deletes(&it.path, value) || restore_after.iter().any(restores);
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
            None => wave.note_restored(&restore_after, self),
        }
        self.coming.insert(it.path.clone(), value.into());
        let (key, value, before) = (it.key.clone(), value.to_owned(), live.to_owned());
        Ok(Ok(Change::Sysctl(SysctlWrite { key, value, before, pin_before, restore_after, needs })))
    }

    /// The cost of enabling IPv6 forwarding.
    fn cost(&mut self) -> Result<ra::Cost, Gap> {
        let cost = match self.cost.take() {
            Some(cost) => cost,
            None => ra::cost(|path| self.declared(path), self.observed)?,
        };
        Ok(self.cost.insert(cost).clone())
    }

    /// Whether an interface forwards IPv6 once everything declared is set. If that cannot be read, it may.
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

    /// Records that a key cannot be written. Its ledger entry stays.
    fn block(&mut self, it: &'a SysctlState<'a>, blocked: Blocked) {
        self.keep(it);
        self.blocked.insert(&it.path);
        // The same message for each interface would add nothing.
        let root = cascade::root_of(&it.path);
        if !(self.costly.contains(&*it.path) && root.is_some_and(|root| self.costly.contains(&*root))) {
            self.plan.blocked.push(blocked);
        }
    }

    /// Keeps the ledger entry of a key, and that its live value is node-fixer's, if only another key shows that.
    fn keep(&mut self, it: &SysctlState) {
        let Some(entry) = it.entry else { return };
        let earlier = match &it.live {
            Live::Is(live) => self.earlier(it.entry, live, &entry.value),
            Live::Missing | Live::Unseen(_) => None,
        };
        self.note(SetSysctl { earlier: earlier.or_else(|| entry.earlier.clone()), ..entry.clone() });
    }

    /// Whether keys that follow this one cannot be read, so that it is unknown whether they are restored.
    fn has_unseen(&self, it: &SysctlState) -> bool {
        let follows = |other: &&&SysctlState| cascade::root_of(&other.path).is_some_and(|root| root == it.path);
        let is_unseen = |other: &&&SysctlState| other.entry.is_some() && matches!(other.live, Live::Unseen(_));
        cascade::reach(&it.path).is_some() && self.keys.values().filter(is_unseen).any(|other| follows(&other))
    }

    fn note(&mut self, entry: SetSysctl) {
        self.ledger.insert(entry.key.clone(), entry);
    }

    /// The value of a key after what is planned so far.
    fn coming(&self, path: &str, live: &str) -> String {
        self.coming.get(path).map_or(live, |value| value).to_owned()
    }

    /// The previous value of a key that is not in the ledger. If it follows a key that node-fixer has set, it is what
    /// it was with the previous value of that key; otherwise it would be in the ledger.
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

    /// Whether a live value was set by node-fixer, directly or along with another key.
    fn is_ours(&self, entry: &SetSysctl, live: &str) -> bool {
        let root = || cascade::root_of(&entry.key).and_then(|root| self.keys.get(&*root)?.entry);
        entry.is_ours(live) || root().is_some_and(|root| root.brings(&entry.key, live))
    }

    /// The live value, if node-fixer set it: it counts until the new one is live.
    fn earlier(&self, entry: Option<&SetSysctl>, live: &str, value: &str) -> Option<String> {
        (self.is_ours(entry?, live) && !is_same(live, value)).then(|| live.to_owned())
    }

    /// The future value of a key by its own declaration.
    fn declared(&self, path: &str) -> Option<Live> {
        let it = self.keys.get(path)?;
        let wish = it.wish?;
        Some(match &it.live {
            Live::Is(_) => Live::Is(wish.value.0.clone()),
            other => other.clone(),
        })
    }
}

/// A key about to be written, and the others that the kernel changes along with it, with their live values.
struct Wave<'a> {
    it: &'a SysctlState<'a>,
    live: &'a str,
    value: &'a str,
    reached: Vec<(SysctlKey, String)>,
}

impl Wave<'_> {
    /// Values that undoing will not bring back by itself are noted, and restored then.
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

    /// What must be written after the key: declared values, previous values, and values that others have set since.
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

    /// Values restored after the key is written are noted before: if the run is killed in between, the next one
    /// restores them. The notes of others stay until the key itself is restored.
    fn note_restored(&self, restored: &[(SysctlKey, String)], draft: &mut Draft) {
        let mut goals = BTreeMap::new();
        goals.extend(restored.iter().map(|(key, value)| (key, value)));
        for (key, live) in &self.reached {
            let path = text(&key.path());
            let Some(after) = cascade::cascaded(&self.it.path, self.value, &path) else { continue };
            let known = draft.keys.get(&*path).copied();
            let goal = goals.get(key).copied();
            draft.coming.insert(path.clone(), goal.unwrap_or(&after).clone());
            if let Some(wish) = known.and_then(|it| it.wish) {
                // Its declaration restores it, and from now on decides about it alone.
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

impl SysctlState<'_> {
    /// Whether it must be written: the declaration differs, or it still has the value of a removed declaration.
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
        "this kernel has no sysctl {key} (write a name with a dot with slashes: net/ipv4/conf/eth0.100/proxy_arp); it \
         is set when it appears, with its interface or kernel module"
    )
}
