//! `kube_proxy`: restarted when the uplinks have changed since it last learnt of them, once, and only then.
//!
//! What happens is written down before it is done: a restart that was begun is resumed by the id of its sandbox,
//! however the run that began it ended, and no other sandbox is touched for the same change.

use std::time::Duration;

use crate::change::{Blocked, Change, Plan, RestartPod, Step};
use crate::contention;
use crate::desired::{Desired, KubeProxy, Mode};
use crate::memory::{Knowledge, Note, Pending, Recall, Restart, Uplink, difference};
use crate::observed::{Gap, Observed};
use crate::pod::{Pod, PodId};

/// The first wait after a failure; it doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_secs(60);
/// So many restarts in a row end without another sandbox before it is taken that there is no kube-proxy any more.
const GIVE_UP: u32 = 5;
/// So many hardware addresses are remembered of a row of restarts, more than a node has uplinks. Where there are more,
/// nothing is new any more.
const MOST_SEEN: usize = 64;

pub fn plan(desired: &Desired, observed: &Observed) -> Result<Plan, Gap> {
    let wish = &desired.kube_proxy;
    let uplinks = observed.uplinks(&wish.interfaces)?;
    let recall = observed.recall()?;
    let node = Look { wish, observed, recall, uplinks, memory: &recall.memory.kube_proxy };
    let same_question = node.memory.interfaces.as_deref() == Some(wish.interfaces.as_str());
    match &node.memory.uplinks {
        _ if node.memory.restart.is_some() => node.resume(),
        Some(known) if same_question && known != uplinks => node.changed(known),
        // As kube-proxy knows them; or the first run after boot, or other interfaces are uplinks now: whatever runs
        // has started with these. What failed before still holds the next try back, so that links that flap do not
        // undo that.
        _ => {
            let (failures, retry) = (node.memory.failures, node.memory.retry);
            Ok(node.remember(Knowledge { failures, retry, ..node.at_rest(uplinks) }))
        }
    }
}

/// What there is to decide by.
struct Look<'a> {
    wish: &'a KubeProxy,
    observed: &'a Observed,
    recall: &'a Recall,
    uplinks: &'a [Uplink],
    memory: &'a Knowledge,
}

impl Look<'_> {
    fn changed(&self, known: &[Uplink]) -> Result<Plan, Gap> {
        let seen = Knowledge { pending: Some(self.pending()), ..self.memory.clone() };
        let reason = format!("uplinks changed: {}", difference(known, self.uplinks));
        if let Some(retry) = self.retry() {
            let reason = format!("{reason}; the last {} tries failed", seen.failures);
            return Ok(self.held(seen, None, &reason, retry));
        }
        if let Some(earliest) = self.earliest() {
            let row = self.memory.row;
            let often = self.distance() > self.wish.min_interval;
            let reason = if often { format!("{reason}; restarted {row} times in a row") } else { reason };
            return Ok(self.held(seen, None, &reason, earliest));
        }
        // Before anything is asked of crictl: links that still move are left to the next run.
        if self.wish.mode == Mode::Enforce
            && self.observed.settled_uplinks(&self.wish.interfaces, self.wish.settle)? != self.uplinks
        {
            return Ok(self.held(seen, None, &format!("{reason}; they are still changing"), self.recall.boot));
        }
        let pods = match self.observed.pods(&self.wish.query())? {
            Ok(pods) => pods,
            Err(why) => return Ok(self.unknown(seen, &reason, why)),
        };
        let since = self.pending().since;
        // A time that has not come yet is a clock that was set back: it says nothing.
        let has_started_since = |pod: &Pod| pod.created > since && pod.created <= self.recall.wall;
        match pods.as_slice() {
            // None runs here, or one that has started since and knows.
            [] => Ok(self.remember(self.at_rest(self.uplinks))),
            pods if pods.iter().any(has_started_since) => Ok(self.remember(self.at_rest(self.uplinks))),
            [pod] => {
                let row = seen.row().next(self.wish.min_interval, self.recall.boot, self.grown());
                let hardware = self.hardware();
                Ok(self.restart(Knowledge { row, hardware, ..seen }, &pod.id, self.uplinks, reason))
            }
            several => Ok(Plan { blocked: vec![ambiguous(&reason, several)], ..self.remember(seen) }),
        }
    }

    /// A run that had begun a restart did not see its end.
    fn resume(&self) -> Result<Plan, Gap> {
        let Some(Restart { id, uplinks }) = &self.memory.restart else { return Ok(Plan::default()) };
        let reason = format!("the restart of sandbox {id} was begun and not ended");
        // What has changed meanwhile is not forgotten.
        let pending = (uplinks != self.uplinks).then(|| self.pending());
        let seen = Knowledge { pending, ..self.memory.clone() };
        if let Some(retry) = self.retry() {
            return Ok(self.held(seen, Some(id.clone()), &reason, retry));
        }
        let pods = match self.observed.pods(&self.wish.query())? {
            Ok(pods) => pods,
            Err(why) => return Ok(self.unknown(seen, &reason, why)),
        };
        let is_ready = pods.iter().any(|pod| pod.id == *id);
        match &self.memory.uplinks {
            // It was not even stopped, and what it was to learn is no longer so.
            Some(known) if is_ready && known == self.uplinks => Ok(self.remember(self.at_rest(self.uplinks))),
            _ if pods.is_empty() && self.memory.failures >= GIVE_UP => Ok(self.remember(self.at_rest(self.uplinks))),
            _ if is_ready => Ok(self.restart(Knowledge { pending: None, ..seen }, id, self.uplinks, reason)),
            _ => Ok(self.restart(seen, id, uplinks, reason)),
        }
    }

    /// The change as it was first seen, if it is still the same.
    fn pending(&self) -> Pending {
        match &self.memory.pending {
            Some(pending) if pending.uplinks == self.uplinks => pending.clone(),
            _ => Pending { since: self.recall.wall, uplinks: self.uplinks.to_vec() },
        }
    }

    /// kube-proxy knows these.
    fn at_rest(&self, uplinks: &[Uplink]) -> Knowledge {
        Knowledge {
            interfaces: Some(self.wish.interfaces.as_str().to_owned()),
            uplinks: Some(uplinks.to_vec()),
            restarted: self.memory.restarted,
            row: self.memory.row,
            hardware: self.memory.hardware.clone(),
            ..Knowledge::default()
        }
    }

    /// Nothing to do but to remember what is new.
    fn remember(&self, knowledge: Knowledge) -> Plan {
        let remember = (knowledge != *self.memory).then_some(Note::KubeProxy(knowledge));
        Plan { remember: remember.into_iter().collect(), ..Plan::default() }
    }

    /// Until when a failure holds the next try back. No honest one does it for longer than between restarts.
    fn retry(&self) -> Option<Duration> {
        let now = self.recall.boot;
        let longest = now.saturating_add(self.wish.min_interval.max(FIRST_RETRY));
        self.memory.retry.filter(|retry| (now..=longest).contains(retry) && *retry != now)
    }

    /// Until when the last restart holds the next back. One that lies ahead was none.
    fn earliest(&self) -> Option<Duration> {
        let now = self.recall.boot;
        let last = self.memory.restarted.filter(|last| *last <= now)?;
        Some(last.saturating_add(self.distance())).filter(|earliest| now < *earliest)
    }

    /// What to keep after the last restart. What is new does not wait for what flaps.
    fn distance(&self) -> Duration {
        let min_interval = self.wish.min_interval;
        if self.grown() { min_interval } else { contention::distance(min_interval, self.memory.row) }
    }

    /// Whether there is an uplink that neither kube-proxy knows nor a restart of this row was for.
    fn grown(&self) -> bool {
        let known = self.memory.uplinks.iter().flatten().map(|uplink| &uplink.hardware);
        let seen: Vec<_> = known.chain(&self.memory.hardware).collect();
        self.memory.hardware.len() < MOST_SEEN && self.uplinks.iter().any(|uplink| !seen.contains(&&uplink.hardware))
    }

    /// The hardware addresses that the restarts of a row were for, with the one that is begun now.
    fn hardware(&self) -> Vec<String> {
        let goes_on = self.memory.row().goes_on(self.wish.min_interval, self.recall.boot);
        let earlier = self.memory.hardware.iter().filter(|_| goes_on);
        let before = self.memory.uplinks.iter().flatten().chain(self.uplinks).map(|uplink| &uplink.hardware);
        let mut all = Vec::new();
        for one in earlier.chain(before) {
            if all.len() < MOST_SEEN && !all.contains(one) {
                all.push(one.clone());
            }
        }
        all
    }

    fn restart(&self, seen: Knowledge, id: &PodId, uplinks: &[Uplink], reason: String) -> Plan {
        let restart = Some(Restart { id: id.clone(), uplinks: uplinks.to_vec() });
        let begun = Knowledge { restart, restarted: Some(self.recall.boot), ..seen };
        // What changed since it was begun is still to be told.
        let pending = begun.pending.clone().filter(|pending| pending.uplinks != uplinks);
        let ended = Knowledge {
            pending,
            restarted: begun.restarted,
            row: begun.row,
            hardware: begun.hardware.clone(),
            ..self.at_rest(uplinks)
        };
        let (failed, backoff) = self.failed(begun.clone());
        let query = self.wish.query();
        let restart = RestartPod { query, id: Some(id.clone()), begun, ended, failed, backoff };
        Plan { steps: vec![Step { change: Change::RestartPod(Box::new(restart)), reason }], ..Plan::default() }
    }

    /// crictl could not tell.
    fn unknown(&self, seen: Knowledge, reason: &str, why: &str) -> Plan {
        let (failed, backoff) = self.failed(seen);
        let failed = Knowledge { retry: Some(self.recall.boot.saturating_add(backoff)), ..failed };
        let blocked = Blocked::unseen(format!("a restart of kube-proxy: {reason}"), why.to_owned());
        Plan { blocked: vec![blocked], ..self.remember(failed) }
    }

    /// What is to be done, but not now.
    fn held(&self, seen: Knowledge, id: Option<PodId>, why: &str, until: Duration) -> Plan {
        let wait = until.saturating_sub(self.recall.boot);
        let reason = if wait.is_zero() {
            format!("{why}; left to the next run")
        } else {
            let wait = Duration::from_secs(wait.as_secs() + u64::from(wait.subsec_nanos() > 0));
            format!("{why}; held back for {}", humantime::format_duration(wait))
        };
        let never = Knowledge::default;
        let query = self.wish.query();
        let restart =
            RestartPod { query, id, begun: never(), ended: never(), failed: never(), backoff: Duration::ZERO };
        let step = Step { change: Change::RestartPod(Box::new(restart)), reason };
        Plan { held: vec![step], ..self.remember(seen) }
    }

    /// Tried and failed once more; and how long to wait with the next try: ever longer, but never longer than
    /// between restarts.
    fn failed(&self, knowledge: Knowledge) -> (Knowledge, Duration) {
        let doubled = FIRST_RETRY.saturating_mul(1 << knowledge.failures.min(16));
        // A timer that ticks each minute must not miss its tick by the seconds that the failure took.
        let backoff = doubled.min(self.wish.min_interval).saturating_sub(Duration::from_secs(5));
        (Knowledge { failures: knowledge.failures.saturating_add(1), ..knowledge }, backoff)
    }
}

fn ambiguous(reason: &str, pods: &[Pod]) -> Blocked {
    let listed: Vec<_> = pods.iter().map(|pod| format!("{} ({})", pod.name, pod.id)).collect();
    let because =
        format!("{} sandboxes match: {}; narrow kube_proxy.labels down to one", pods.len(), listed.join(", "));
    Blocked::new(format!("a restart of kube-proxy: {reason}"), because)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;
    use crate::reconcile::testing::Model;

    const START: Duration = Duration::from_secs(1_000);
    const TODAY: Duration = Duration::from_secs(1_800_000_000);

    fn uplink(name: &str, address: &str) -> Uplink {
        Uplink { name: name.into(), index: 2, hardware: "02".into(), addresses: vec![address.into()] }
    }

    fn id(id: &str) -> PodId {
        PodId::try_from(id.to_owned()).unwrap()
    }

    fn pod(name: &str, created: Duration) -> Pod {
        Pod { id: id(name), name: format!("kube-proxy-{name}"), created }
    }

    /// eth0 is known, eth1 has come, and an old pod runs.
    fn changed() -> Model {
        let mut node = Model::new("");
        node.uplinks = vec![uplink("eth0", "10.0.0.10/24"), uplink("eth1", "10.0.1.10/24")];
        let interfaces = Some(Desired::default().kube_proxy.interfaces.as_str().to_owned());
        let kube_proxy =
            Knowledge { interfaces, uplinks: Some(vec![uplink("eth0", "10.0.0.10/24")]), ..Knowledge::default() };
        let memory = Memory { kube_proxy, ..Memory::default() };
        node.recall = Recall { memory, wall: TODAY, boot: START, awake: START, begun: START };
        node.pods = Ok(vec![pod("old", TODAY - Duration::from_secs(9_000))]);
        node
    }

    fn planned(node: &mut Model) -> Plan {
        node.plan(plan, &Desired::default())
    }

    fn noted(plan: Plan) -> Knowledge {
        match plan.remember.as_slice() {
            [Note::KubeProxy(knowledge)] => knowledge.clone(),
            other => panic!("{other:?}"),
        }
    }

    fn recalled(kube_proxy: Knowledge) -> Memory {
        Memory { kube_proxy, ..Memory::default() }
    }

    fn reason(steps: &[Step]) -> &str {
        &steps.first().unwrap().reason
    }

    #[test]
    fn the_first_run_remembers_and_does_nothing() {
        let mut node = changed();
        node.recall.memory = Memory::default();
        let plan = planned(&mut node);
        assert!(plan.steps.is_empty() && plan.held.is_empty() && plan.blocked.is_empty(), "{plan:?}");
        assert_eq!(noted(plan).uplinks, Some(node.uplinks.clone()));
        assert!(!node.asked.iter().any(|want| matches!(want, crate::observed::Want::Pods(_))));
    }

    #[test]
    fn nothing_changed_is_nothing_to_remember() {
        let mut node = changed();
        node.recall.memory.kube_proxy.uplinks = Some(node.uplinks.clone());
        assert_eq!(planned(&mut node), Plan::default());
        assert_eq!(node.asked.len(), 2, "{:?}", node.asked);
    }

    #[test]
    fn a_change_restarts_the_one_old_pod() {
        let mut node = changed();
        let plan = planned(&mut node);
        assert_eq!(reason(&plan.steps), "uplinks changed: +eth1");
        let Change::RestartPod(restart) = &plan.steps[0].change else { panic!("{plan:?}") };
        assert_eq!(restart.id, Some(id("old")));
        let expected = Restart { id: id("old"), uplinks: node.uplinks.clone() };
        assert_eq!(restart.begun.restart.as_ref(), Some(&expected), "written down before it is done");
        assert_eq!(restart.begun.uplinks, Some(vec![uplink("eth0", "10.0.0.10/24")]), "not known before it is done");
        assert_eq!(restart.ended.uplinks, Some(node.uplinks.clone()));
        assert_eq!((&restart.ended.pending, &restart.ended.restart), (&None, &None));
        let listing = "crictl --runtime-endpoint unix:///run/containerd/containerd.sock --timeout 10s";
        assert_eq!(plan.steps[0].change.to_string(), format!("{listing} stopp old && {listing} rmp old"));
        node.apply(&plan.steps[0].change);
        assert_eq!(planned(&mut node), Plan::default(), "and then it is done");
    }

    #[test]
    fn every_kind_of_change_is_one() {
        let one = |change: fn(&mut Uplink)| {
            let mut node = changed();
            node.uplinks.truncate(1);
            change(&mut node.uplinks[0]);
            planned(&mut node).steps.first().map(|step| step.reason.clone())
        };
        let said = |what: &str| Some(format!("uplinks changed: {what}"));
        assert_eq!(one(|_| {}), None);
        assert_eq!(one(|link| link.index = 9), said("eth0 (index)"));
        assert_eq!(one(|link| link.hardware = "03".into()), said("eth0 (hardware address)"));
        assert_eq!(one(|link| link.addresses.push("fd00::1/64".into())), said("eth0 (addresses)"));
        assert_eq!(one(|link| link.name = "eth5".into()), said("-eth0, +eth5"));
    }

    #[test]
    fn where_nobody_needs_it_nothing_is_restarted() {
        let newer = pod("new", TODAY - Duration::from_secs(1));
        let old = pod("old", TODAY - Duration::from_secs(100));
        for (case, pods) in
            [("no pod", vec![]), ("it has started since", vec![newer.clone()]), ("both", vec![old, newer])]
        {
            let mut node = changed();
            let since = TODAY - Duration::from_secs(60);
            node.recall.memory.kube_proxy.pending = Some(Pending { since, uplinks: node.uplinks.clone() });
            node.pods = Ok(pods);
            let plan = planned(&mut node);
            assert!(plan.steps.is_empty() && plan.held.is_empty() && plan.blocked.is_empty(), "{case}");
            assert_eq!(noted(plan).uplinks, Some(node.uplinks.clone()), "{case}");
        }
    }

    #[test]
    fn what_is_not_certain_is_not_done() {
        let mut node = changed();
        node.pods = Ok(vec![pod("a", START), pod("b", START)]);
        let plan = planned(&mut node);
        assert_eq!(plan.steps, vec![]);
        assert!(plan.blocked[0].because.contains("kube-proxy-a (a), kube-proxy-b (b)"), "{plan:?}");
        assert_eq!(noted(plan).uplinks, node.recall.memory.kube_proxy.uplinks, "the change is not forgotten");

        let mut node = changed();
        node.settled = Some(vec![]);
        let plan = planned(&mut node);
        assert_eq!(plan.steps, vec![]);
        assert_eq!(reason(&plan.held), "uplinks changed: +eth1; they are still changing; left to the next run");
    }

    #[test]
    fn the_time_of_a_change_is_when_these_uplinks_were_first_seen() {
        let mut node = changed();
        node.pods = Err("crictl is broken".into());
        let first = noted(planned(&mut node));
        assert_eq!(first.pending.as_ref().unwrap().since, TODAY);
        node.recall = Recall {
            memory: recalled(first.clone()),
            wall: TODAY + Duration::from_secs(60),
            boot: START + Duration::from_secs(60),
            ..Recall::default()
        };
        assert_eq!(noted(planned(&mut node)).pending, first.pending);
        node.uplinks.push(uplink("eth2", "10.0.2.10/24"));
        let again = noted(planned(&mut node)).pending.unwrap();
        assert_eq!(again.since, TODAY + Duration::from_secs(60), "a further change");
    }

    #[test]
    fn restarts_keep_their_distance() {
        let mut node = changed();
        node.recall.memory.kube_proxy.restarted = Some(START - Duration::from_secs(100));
        let plan = planned(&mut node);
        assert_eq!(plan.steps, vec![]);
        assert_eq!(reason(&plan.held), "uplinks changed: +eth1; held back for 3m 20s");
        node.recall = Recall {
            memory: recalled(noted(plan)),
            wall: TODAY,
            boot: START + Duration::from_secs(201),
            ..Recall::default()
        };
        assert_eq!(planned(&mut node).steps.len(), 1, "it happens when its time has come");
    }

    #[test]
    fn restarts_in_a_row_back_off() {
        let mut node = changed();
        let mut waits = Vec::new();
        for n in 0..10 {
            node.uplinks[0].index = 100 + n;
            let plan = planned(&mut node);
            assert_eq!(plan.steps.len(), 1, "{plan:?}");
            let Change::RestartPod(restart) = &plan.steps[0].change else { panic!("{plan:?}") };
            assert_eq!(restart.begun.row, n + 1);
            node.apply(&plan.steps[0].change);
            node.uplinks[0].index = 200 + n;
            let held = planned(&mut node).held;
            let (_, wait) = reason(&held).split_once("held back for ").unwrap();
            assert_eq!(reason(&held).contains(&format!("restarted {} times in a row", n + 1)), n >= 4, "{held:?}");
            waits.push(wait.to_owned());
            let begun = node.recall.boot;
            node.recall.boot += humantime::parse_duration(wait).unwrap() - Duration::from_secs(1);
            assert_eq!(planned(&mut node).steps, vec![]);
            node.recall.boot = begun + humantime::parse_duration(wait).unwrap();
        }
        assert_eq!(waits, ["5m", "5m", "5m", "5m", "10m", "20m", "30m", "30m", "30m", "30m"]);
        // A resumed one is the same one.
        let Change::RestartPod(restart) = planned(&mut node).steps.remove(0).change else { panic!() };
        node.recall.memory = recalled(restart.begun.clone());
        assert_eq!(resumed(&mut node).begun.row, restart.begun.row);
        // After a time of calm it is as it was.
        node.apply(&Change::RestartPod(restart));
        node.recall.boot += Duration::from_secs(2 * 80 * 60 + 1);
        node.uplinks[0].index = 999;
        let Change::RestartPod(restart) = planned(&mut node).steps.remove(0).change else { panic!() };
        assert_eq!(restart.ended.row, 1);
    }

    #[test]
    fn uplinks_that_are_new_do_not_wait_for_those_that_flap() {
        let mut node = changed();
        let restarted = |node: &mut Model| {
            let plan = planned(node);
            assert_eq!(plan.steps.len(), 1, "{plan:?}");
            node.apply(&plan.steps[0].change);
            node.recall.boot += Duration::from_secs(300);
            node.recall.memory.kube_proxy.row
        };
        for n in 0..9 {
            node.uplinks[1] = Uplink { hardware: format!("n{n}"), ..node.uplinks[1].clone() };
            assert_eq!(restarted(&mut node), 1, "{n}");
        }
        // One of those again, and again: counted; and then a new one beside it.
        for n in 0..4 {
            node.uplinks[1].hardware = format!("n{n}");
            assert_eq!(restarted(&mut node), 2 + n);
        }
        node.uplinks[1].hardware = "n7".into();
        assert!(reason(&planned(&mut node).held).contains("restarted 5 times in a row"));
        node.uplinks.push(Uplink { hardware: "new".into(), ..uplink("eth2", "10.0.2.10/24") });
        assert_eq!(restarted(&mut node), 5);
        // However many there are, they are bounded.
        for n in 0..200 {
            node.uplinks[1].hardware = format!("m{n}");
            if planned(&mut node).steps.is_empty() {
                break;
            }
            restarted(&mut node);
        }
        assert_eq!(node.recall.memory.kube_proxy.hardware.len(), MOST_SEEN);
        assert_eq!(planned(&mut node).held.len(), 1);
    }

    #[test]
    fn failures_are_tried_again_ever_later() {
        let mut node = changed();
        node.pods = Err("crictl is broken".into());
        let mut waits = Vec::new();
        for _ in 0..5 {
            let plan = planned(&mut node);
            assert!(plan.blocked[0].unseen && plan.blocked[0].because.contains("crictl is broken"), "{plan:?}");
            let memory = noted(plan);
            assert_eq!(memory.uplinks, Some(vec![uplink("eth0", "10.0.0.10/24")]), "not forgotten");
            let retry = memory.retry.unwrap();
            waits.push((retry - node.recall.boot).as_secs());
            node.recall.memory = recalled(memory);
            node.recall.boot = retry - Duration::from_secs(1);
            let asked = node.asked.len();
            assert!(planned(&mut node).held[0].reason.contains("tries failed; held back for 1s"));
            assert_eq!(node.asked.len(), asked + 2, "crictl is not called before its time");
            node.recall.boot = retry;
        }
        assert_eq!(waits, [55, 115, 235, 295, 295]);
        // Links that flap do not undo it.
        let both = std::mem::replace(&mut node.uplinks, vec![uplink("eth0", "10.0.0.10/24")]);
        node.pods = Ok(vec![pod("old", START)]);
        node.recall.boot -= Duration::from_secs(1);
        node.recall.memory.kube_proxy.retry = Some(node.recall.boot + Duration::from_secs(9));
        node.recall.memory = recalled(noted(planned(&mut node)));
        node.uplinks = both;
        assert_eq!(planned(&mut node).steps, vec![]);
    }

    #[test]
    fn a_clock_that_was_set_back_says_nothing() {
        let mut node = changed();
        node.pods = Ok(vec![pod("old", TODAY + Duration::from_secs(60))]);
        assert_eq!(planned(&mut node).steps.len(), 1);
    }

    #[test]
    fn other_interfaces_in_the_configuration_are_no_change_of_the_uplinks() {
        let mut node = changed();
        node.recall.memory.kube_proxy.interfaces = Some("^ens[0-9]+$".into());
        let plan = planned(&mut node);
        assert!(plan.steps.is_empty() && plan.held.is_empty(), "{plan:?}");
        assert_eq!(noted(plan).uplinks, Some(node.uplinks.clone()));
    }

    #[test]
    fn times_that_cannot_be_hold_nothing_back() {
        for (restarted, retry) in [(Duration::MAX, None), (START, Some(Duration::MAX)), (START * 3, Some(START * 90))] {
            let mut node = changed();
            node.recall.boot = START + Duration::from_secs(1000);
            node.recall.memory.kube_proxy.restarted = Some(restarted);
            node.recall.memory.kube_proxy.retry = retry;
            assert_eq!(planned(&mut node).steps.len(), 1, "{restarted:?} {retry:?}");
        }
    }

    /// A node on which a restart of `old` was begun, and what was planned then.
    fn begun() -> (Model, Box<RestartPod>) {
        let mut node = changed();
        let Change::RestartPod(restart) = planned(&mut node).steps.remove(0).change else { panic!() };
        node.recall.memory = recalled(restart.begun.clone());
        (node, restart)
    }

    fn resumed(node: &mut Model) -> Box<RestartPod> {
        let mut plan = planned(node);
        assert_eq!(plan.steps.len(), 1, "{plan:?}");
        let Change::RestartPod(restart) = plan.steps.remove(0).change else { panic!() };
        restart
    }

    #[test]
    fn a_restart_that_did_not_end_is_resumed_by_its_id() {
        let (mut node, first) = begun();
        // Another pod has come up meanwhile: it is not touched.
        node.pods = Ok(vec![pod("new", TODAY)]);
        let again = resumed(&mut node);
        assert_eq!((again.id, &again.ended.uplinks), (Some(id("old")), &first.ended.uplinks));
        let retry = Some(START + first.backoff);
        node.recall.memory = recalled(Knowledge { retry, ..first.failed.clone() });
        assert_eq!(planned(&mut node).held.len(), 1, "after a failure not at once");
        node.recall.boot += Duration::from_secs(60);
        let again = resumed(&mut node);
        assert_eq!(again.ended.restarted, Some(node.recall.boot), "the next one keeps its distance from this one");
    }

    #[test]
    fn what_changes_while_a_restart_is_under_way_is_not_forgotten() {
        let (mut node, first) = begun();
        node.uplinks.push(uplink("eth2", "10.0.2.10/24"));
        node.pods = Ok(vec![pod("new", TODAY)]);
        let ended = resumed(&mut node).ended.clone();
        assert_eq!(ended.uplinks, first.ended.uplinks);
        assert_eq!(ended.pending.unwrap().uplinks, node.uplinks);
        // Where the old one was not stopped yet, its successor learns of it all.
        node.pods = Ok(vec![pod("old", START)]);
        let ended = resumed(&mut node).ended.clone();
        assert_eq!((ended.uplinks, ended.pending), (Some(node.uplinks.clone()), None));
    }

    #[test]
    fn a_restart_that_nobody_needs_any_more_is_dropped() {
        let (mut node, _) = begun();
        node.uplinks.truncate(1);
        let plan = planned(&mut node);
        assert!(plan.steps.is_empty(), "it still runs, and knows what is so: {plan:?}");
        let (mut node, _) = begun();
        node.pods = Ok(vec![]);
        node.recall.memory.kube_proxy.failures = GIVE_UP - 1;
        assert_eq!(planned(&mut node).steps.len(), 1);
        node.recall.memory.kube_proxy.failures = GIVE_UP;
        let plan = planned(&mut node);
        assert!(plan.steps.is_empty(), "there is no kube-proxy here any more: {plan:?}");
        assert_eq!(noted(plan).restart, None);
    }
}
