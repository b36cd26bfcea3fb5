//! `namespaces`: unused network namespaces are removed, and then their links.
//!
//! A namespace is unused if it matches, has no process, and two runs at least `older_than` apart have seen it like
//! that. Sandboxes of the container runtime are never removed; they may be without a process for a while. The kernel
//! deletes a link whose other end is in the namespace; what remains is a veth with both ends on the host.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::change::{Blocked, Change, Plan, Step};
use crate::config::{Config, Mode, Namespaces};
use crate::history::memory::Note;
use crate::model::netns::{Idle, IdleLink, IdleNetns, NetnsId, NetnsName, SeenNetns, Veth};
use crate::observed::{Gap, Observed};
use crate::sorted;

/// How many namespaces and links are saved. More have to wait until others are gone.
const MOST_REMEMBERED: usize = 512;

/// The mode of the whole section. Without entries it still updates its state.
pub fn mode(desired: &Config) -> Mode {
    let any = |mode| desired.namespaces.iter().any(|entry| entry.mode() == mode);
    if any(Mode::Observe) && !any(Mode::Enforce) { Mode::Observe } else { Mode::Enforce }
}

pub fn plan(desired: &Config, observed: &Observed) -> Result<Plan, Gap> {
    let recall = observed.recall()?;
    let known = &recall.memory.namespaces;
    let entries = &desired.namespaces;
    let mut plan = Plan::default();
    let mut idle = Idle::default();
    if entries.iter().any(|entry| entry.mode() != Mode::Off) {
        let clock = Clock { now: recall.boot, begun: recall.begun };
        let all = observed.namespaces()?;
        let stale = stale(entries, all, known, clock, &mut idle, observed)?;
        let stale = without_sandboxes(desired, observed, stale, &mut plan)?;
        let Links { owned, orphans } = links(entries, all, observed)?;
        let known_links = sorted::map(known.links.iter().map(|it| ((&*it.name, it.index), it.since)));
        let mut taken = BTreeSet::new();
        for (entry, name, id, reason) in stale {
            steps(&mut plan, entry).push(Step::new(Change::DeleteNetns(name.clone(), id), reason));
            let its = owned.get(name).into_iter().flatten().filter(|(other, _)| std::ptr::eq(*other, entry));
            for (_, veth) in its {
                let change = Change::DeleteVeth((*veth).clone(), Some(name.clone()));
                push_once(&mut plan, &mut taken, entry, change, format!("its namespace {name} is removed"));
            }
        }
        for (entry, veth) in orphans {
            let name = String::from_utf8_lossy(veth.dev.name.as_bytes()).into_owned();
            let index = veth.dev.index;
            let before = known_links.get(&(&*name, index)).copied();
            let since = clock.since(before);
            if idle.links.len() < MOST_REMEMBERED {
                idle.links.push(IdleLink { name, index, since });
            }
            if clock.is_due(before, entry.older_than()) {
                let why = format!("both ends are here, and its namespace has not existed for {}", clock.age(since));
                push_once(&mut plan, &mut taken, entry, Change::DeleteVeth(veth.clone(), None), why);
            }
        }
    }
    plan.remember.extend((idle != *known).then_some(Note::Namespaces(idle)));
    Ok(plan)
}

/// Enforced ones first, so that observed ones do not displace them.
const BY_WEIGHT: [Mode; 2] = [Mode::Enforce, Mode::Observe];

fn by_weight(entries: &[Namespaces]) -> impl Iterator<Item = &Namespaces> {
    BY_WEIGHT.into_iter().flat_map(|mode| entries.iter().filter(move |it| it.mode() == mode))
}

type Stale<'a> = (&'a Namespaces, &'a NetnsName, NetnsId, String);

/// The namespaces that are due, judged by their processes.
fn stale<'a>(
    entries: &'a [Namespaces],
    all: &'a [SeenNetns],
    known: &Idle,
    clock: Clock,
    idle: &mut Idle,
    observed: &Observed,
) -> Result<Vec<Stale<'a>>, Gap> {
    let mut stale = Vec::new();
    let known = sorted::map(known.namespaces.iter().map(|it| ((&*it.name, it.id), it.since)));
    let first = |name: &NetnsName| entries.iter().find(|entry| entry.is_match(name.as_bytes()));
    let entered: Vec<_> = all.iter().filter_map(|it| Some((first(&it.name)?, it))).collect();
    for mode in BY_WEIGHT {
        for (entry, SeenNetns { name, id }) in entered.iter().filter(|(entry, _)| entry.mode() == mode) {
            let Some(id) = *id else { continue };
            if observed.occupied()?.contains_key(&id) {
                continue;
            }
            let text = String::from_utf8_lossy(name.as_bytes()).into_owned();
            let before = known.get(&(&*text, id)).copied();
            let since = clock.since(before);
            if idle.namespaces.len() < MOST_REMEMBERED {
                idle.namespaces.push(IdleNetns { name: text, id, since });
            }
            if clock.is_due(before, entry.older_than()) {
                stale.push((*entry, name, id, format!("no process has been in it for {}", clock.age(since))));
            }
        }
    }
    Ok(stale)
}

/// Calls crictl only if there is something to remove.
fn without_sandboxes<'a>(
    desired: &Config,
    observed: &Observed,
    stale: Vec<Stale<'a>>,
    plan: &mut Plan,
) -> Result<Vec<Stale<'a>>, Gap> {
    if stale.is_empty() {
        return Ok(stale);
    }
    match observed.sandboxes(&desired.kube_proxy.query())? {
        Ok(sandboxes) => Ok(stale.into_iter().filter(|(_, name, id, _)| !sandboxes.have(name, *id)).collect()),
        Err(why) => {
            let names: Vec<String> = stale.iter().map(|(_, name, ..)| name.to_string()).collect();
            let want = format!("remove namespaces without a process: {}", names.join(", "));
            let because = format!("cannot determine whether one belongs to a pod's sandbox: {why}");
            plan.blocked.push(Blocked::unseen(want, because));
            Ok(Vec::new())
        }
    }
}

/// The veths that belong to namespaces, each with the entry that matches it.
struct Links<'a> {
    /// By namespace, if there is only one that they can belong to.
    owned: BTreeMap<&'a NetnsName, Vec<(&'a Namespaces, &'a Veth)>>,
    /// Those whose namespace does not exist.
    orphans: Vec<(&'a Namespaces, &'a Veth)>,
}

fn links<'a>(entries: &'a [Namespaces], all: &'a [SeenNetns], observed: &'a Observed) -> Result<Links<'a>, Gap> {
    let mut found = Links { owned: BTreeMap::new(), orphans: Vec::new() };
    let with_links: Vec<_> = by_weight(entries).filter_map(|entry| Some((entry, entry.links()?))).collect();
    let veths = observed.veths(with_links.iter().map(|(_, pattern)| (*pattern).clone()))?;
    let mut firsts: BTreeMap<&[u8], Option<&Namespaces>> = BTreeMap::new();
    for ((entry, _), veths) in with_links.into_iter().zip(veths) {
        let mut owners: BTreeMap<&[u8], Vec<&NetnsName>> = BTreeMap::new();
        for name in all.iter().map(|it| &it.name).filter(|_| !veths.is_empty()) {
            let key = entry.key_of(name.as_bytes());
            key.into_iter().for_each(|key| owners.entry(key).or_default().push(name));
        }
        for veth in veths {
            let link = veth.dev.name.as_bytes();
            let of_link = || entries.iter().find(|it| it.key_of_link(link).is_some());
            let first = *firsts.entry(link).or_insert_with(of_link);
            let Some(key) = entry.key_of_link(link).filter(|_| first.is_some_and(|it| std::ptr::eq(it, entry))) else {
                continue;
            };
            match owners.get(key).map(Vec::as_slice) {
                None => found.orphans.push((entry, veth)),
                Some(&[one]) => found.owned.entry(one).or_default().push((entry, veth)),
                Some(_) => {}
            }
        }
    }
    Ok(found)
}

fn steps<'a>(plan: &'a mut Plan, entry: &Namespaces) -> &'a mut Vec<Step> {
    if entry.mode() == Mode::Enforce { &mut plan.steps } else { &mut plan.observed }
}

/// Plans to delete a veth, unless it or its other end is deleted already. `taken` has the indexes of both ends of
/// those.
fn push_once(plan: &mut Plan, taken: &mut BTreeSet<u32>, entry: &Namespaces, change: Change, reason: String) {
    let Change::DeleteVeth(Veth { dev, peer }, _) = &change else { return };
    if !taken.contains(&dev.index) {
        taken.extend([dev.index, *peer]);
        steps(plan, entry).push(Step::new(change, reason));
    }
}

/// The time of this run.
#[derive(Clone, Copy)]
struct Clock {
    now: Duration,
    begun: Duration,
}

impl Clock {
    fn since(self, before: Option<Duration>) -> Duration {
        before.filter(|before| *before <= self.now).unwrap_or(self.now)
    }

    /// Whether an earlier run has seen it like that, long enough ago.
    fn is_due(self, before: Option<Duration>, older_than: Duration) -> bool {
        before.is_some_and(|before| before < self.begun && self.now.saturating_sub(before) >= older_than)
    }

    fn age(self, since: Duration) -> String {
        let age = self.now.saturating_sub(since);
        let whole = if age < Duration::from_secs(1) {
            Duration::from_millis(age.as_millis() as u64)
        } else {
            Duration::from_secs(age.as_secs())
        };
        humantime::format_duration(whole).to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::netns::Sandboxes;
    use crate::observed::Want;
    use crate::reconcile::testing::{Model, desired};

    const VMS: &str = "namespaces: [{match: '^fc-(.+)$', links: '^vh_(.+)$', older_than: 10m, mode: enforce}]";
    const MINUTE: Duration = Duration::from_secs(60);

    /// What the next run plans, so many minutes after the one before.
    fn run(node: &mut Model, minutes: u32, yaml: &str) -> Plan {
        node.recall.boot += MINUTE * minutes;
        node.recall.begun = node.recall.boot;
        node.asked.clear();
        let plan = node.plan(plan, &desired(yaml));
        plan.remember.iter().for_each(|note| node.recall.memory.take(note.clone(), Duration::ZERO));
        plan
    }

    fn shown(steps: &[Step]) -> Vec<String> {
        steps.iter().map(|step| step.change.to_string()).collect()
    }

    #[test]
    fn what_two_runs_have_seen_idle_goes_and_nothing_else() {
        let netns = |name: &str| format!("ip netns del {name}");
        let veth = |name: &str| format!("ip link del dev {name} type veth");
        for (case, node, commands) in [
            ("idle", "netns fc-1 7", vec![netns("fc-1")]),
            ("busy", "netns fc-1 7 busy", vec![]),
            ("another name", "netns cni-1 7", vec![]),
            ("no namespace", "netns fc-1 7 file", vec![]),
            ("idle, another busy", "netns fc-1 7\nnetns fc-2 8 busy", vec![netns("fc-1")]),
            ("one that has another name as well", "netns fc-1 7\nnetns other 7", vec![netns("fc-1")]),
            ("its link after it", "netns fc-1 7\nveth 5 vh_1 6", vec![netns("fc-1"), veth("vh_1")]),
            ("link of a busy one", "netns fc-1 7 busy\nveth 5 vh_1 6", vec![]),
            ("link of a name that is no namespace yet", "netns fc-1 7 file\nveth 5 vh_1 6", vec![]),
            ("link without a namespace", "veth 5 vh_1 6\nveth 6 vh_p 5", vec![veth("vh_1")]),
            ("other links", "veth 5 eth1 6\nveth 7 xvh_1 8", vec![]),
            (
                "each with its own",
                "netns fc-1 7\nnetns fc-2 8\nveth 5 vh_2 6\nveth 7 vh_1 8\nveth 9 vh_3 10",
                vec![netns("fc-1"), veth("vh_1"), netns("fc-2"), veth("vh_2"), veth("vh_3")],
            ),
        ] {
            let mut node = Model::new(node);
            for minutes in [100, 0, 9] {
                let plan = run(&mut node, minutes, VMS);
                assert!(plan.steps.is_empty() && plan.blocked.is_empty(), "{case}: too early: {plan:?}");
                assert!(!node.asked.iter().any(|want| matches!(want, Want::Sandboxes(_))), "{case}");
            }
            let due = run(&mut node, 1, VMS);
            assert_eq!(shown(&due.steps), commands, "{case}");
            assert_eq!(due.remember, [], "{case}: nothing is new");
            due.steps.iter().for_each(|step| node.apply(&step.change));
            assert_eq!(shown(&run(&mut node, 0, VMS).steps), [""; 0], "{case}: and then it is done");
        }
    }

    #[test]
    fn one_run_is_not_two() {
        let mut node = Model::new("netns fc-1 7\nveth 5 vh_2 6");
        let now = VMS.replace("10m", "0s");
        run(&mut node, 100, &now);
        node.recall.boot += MINUTE;
        assert_eq!(node.plan(plan, &desired(&now)).steps, [], "its own second look is not a second run");
        assert_eq!(run(&mut node, 1, &now).steps.len(), 2);
    }

    #[test]
    fn what_was_used_meanwhile_counts_anew() {
        let mut node = Model::new("netns fc-1 7\nveth 5 vh_2 6");
        run(&mut node, 100, VMS);
        let id = node.namespaces[0].id.unwrap();
        node.occupied.insert(id, 1);
        node.namespaces.push(SeenNetns { name: NetnsName::new(b"fc-2").unwrap(), id: None });
        assert_eq!(run(&mut node, 9, VMS).remember, [Note::Namespaces(Idle::default())], "forgotten");
        node.occupied.clear();
        node.namespaces.pop();
        assert_eq!(run(&mut node, 1, VMS).steps, []);
        assert_eq!(run(&mut node, 9, VMS).steps, []);
        assert_eq!(run(&mut node, 1, VMS).steps.len(), 2);
        // The names come to be others', with an inode of their own or with that of the one before.
        for (number, id) in
            [NetnsId { inode: 8, ..id }, NetnsId { inode: 8, changed: (0, 1), ..id }].into_iter().enumerate()
        {
            node.namespaces[0].id = Some(id);
            node.veths[0].dev.index = 50 + number as u32;
            assert_eq!(run(&mut node, 60, VMS).steps, []);
            assert_eq!(run(&mut node, 10, VMS).steps.len(), 2);
        }
        // A memory that lies ahead is none.
        node.recall.boot = MINUTE;
        assert_eq!(run(&mut node, 0, VMS).steps, []);
        assert_eq!(run(&mut node, 10, VMS).steps.len(), 2);
    }

    #[test]
    fn each_entry_has_its_mode_and_the_first_that_matches_counts() {
        let node = "netns fc-1 7\nnetns fc-keep 8\nnetns test-1 9\nveth 5 vh_1 6\nveth 7 vh_keep 8\nveth 9 th_1 10";
        let yaml = "namespaces:
            - {match: '^fc-(keep)$', links: '^vh_(keep)$', older_than: 0s, mode: off}
            - {match: '^test-(.*)$', links: '^th_(.*)$', older_than: 0s}
            - {match: '^fc-(.*)$', links: '^vh_(.*)$', older_than: 0s, mode: enforce}";
        let mut node = Model::new(node);
        run(&mut node, 1, yaml);
        let plan = run(&mut node, 1, yaml);
        assert_eq!(shown(&plan.steps), ["ip netns del fc-1", "ip link del dev vh_1 type veth"]);
        assert_eq!(shown(&plan.observed), ["ip netns del test-1", "ip link del dev th_1 type veth"]);
        let modes = ["off", "observe", "enforce"].map(|it| mode(&desired(&VMS.replace("enforce", it))));
        assert_eq!(modes, [Mode::Enforce, Mode::Observe, Mode::Enforce]);
        assert_eq!(mode(&desired(yaml)), Mode::Enforce);
    }

    #[test]
    fn sandboxes_stay_and_nothing_is_removed_if_crictl_fails() {
        let mut node = Model::new("netns fc-1 7\nnetns fc-2 8\nnetns fc-3 9\nveth 5 vh_1 6\nveth 7 vh_9 8");
        let names = [NetnsName::new(b"fc-1").unwrap()].into();
        node.sandboxes = Ok(Sandboxes { names, ids: [NetnsId { device: 4, inode: 8, changed: (0, 0) }].into() });
        run(&mut node, 1, VMS);
        let plan = run(&mut node, 10, VMS);
        assert_eq!(shown(&plan.steps), ["ip netns del fc-3", "ip link del dev vh_9 type veth"]);
        assert_eq!(plan.blocked, []);
        node.sandboxes = Err("crictl is broken".into());
        let plan = run(&mut node, 1, VMS);
        assert_eq!(shown(&plan.steps), ["ip link del dev vh_9 type veth"]);
        assert!(plan.blocked[0].unseen && plan.blocked[0].because.contains("crictl is broken"), "{plan:?}");
        assert!(plan.blocked[0].want.ends_with(": fc-1, fc-2, fc-3"), "{plan:?}");
    }

    #[test]
    fn nothing_declared_is_nothing_looked_at_and_all_forgotten() {
        let mut node = Model::new("netns fc-1 7\nveth 5 vh_2 6");
        run(&mut node, 1, VMS);
        assert_eq!(run(&mut node, 1, "{}").remember, [Note::Namespaces(Idle::default())]);
        assert_eq!(node.asked, [Want::Recall]);
        assert_eq!(run(&mut node, 1, "{}"), Plan::default());
        assert_eq!(run(&mut node, 60, VMS).steps, [], "counted from anew");
        let plan = run(&mut Model::new("netns x 7"), 1, VMS);
        assert_eq!(plan, Plan::default(), "none that matches: no process is looked at");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let lines = (0..2000).map(|n| format!("netns fc-{n} {n}\nveth {n} vh_x{n} {}", n + 5000));
        let mut node = Model::new(&lines.collect::<Vec<_>>().join("\n"));
        let yaml = format!("{VMS}\n").replace("[{", "[{match: '^fc-1', older_than: 1s}, {");
        let plan = run(&mut node, 1, &yaml);
        let [Note::Namespaces(idle)] = plan.remember.as_slice() else { panic!("{plan:?}") };
        assert_eq!((idle.namespaces.len(), idle.links.len()), (MOST_REMEMBERED, MOST_REMEMBERED));
        assert!(idle.namespaces.iter().all(|it| !it.name.starts_with("fc-1")), "what is enforced comes first");
        let removed = run(&mut node, 10, &yaml).steps;
        assert_eq!(removed.len(), 2 * MOST_REMEMBERED);
        removed.iter().for_each(|step| node.apply(&step.change));
        run(&mut node, 1, &yaml);
        let rest = 889 - MOST_REMEMBERED; // of the 2,000 names 1,111 begin with a 1
        assert_eq!(run(&mut node, 10, &yaml).steps.len(), rest + MOST_REMEMBERED, "then the next");
    }
}
