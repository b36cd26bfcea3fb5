//! `kube_proxy`: restarted when the uplinks have changed since it last learnt of them, once, and only then.
//!
//! What happens is written down before it is done: a restart that was begun is resumed by the id of its sandbox,
//! however the run that began it ended, and no other sandbox is touched for the same change.

use std::time::Duration;

use crate::change::{Blocked, Change, Plan, RestartPod, Step};
use crate::desired::{Desired, KubeProxy, Mode};
use crate::memory::{Knowledge, Note, Pending, Recall, Restart, Uplink, difference};
use crate::observed::{Gap, Observed};
use crate::pod::Pod;

/// The first wait after a failure; it doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_secs(60);

pub fn plan(desired: &Desired, observed: &Observed) -> Result<Plan, Gap> {
    let wish = &desired.kube_proxy;
    let uplinks = observed.uplinks(&wish.interfaces)?;
    let recall = observed.recall()?;
    let memory = &recall.memory.kube_proxy;
    let node = Look { wish, observed, recall };
    if let Some(restart) = &memory.restart {
        return Ok(node.resume(restart));
    }
    match &memory.uplinks {
        Some(known) if known != uplinks => node.changed(known, uplinks),
        // As kube-proxy knows them, or the first run after boot: whatever runs has started with these. What failed
        // before still holds the next try back, so that links that flap do not undo that.
        _ => {
            let (failures, retry) = (memory.failures, memory.retry);
            Ok(remember(memory, Knowledge { failures, retry, ..at_rest(memory, uplinks) }))
        }
    }
}

/// What there is to decide by.
struct Look<'a> {
    wish: &'a KubeProxy,
    observed: &'a Observed,
    recall: &'a Recall,
}

/// kube-proxy knows the uplinks as they are.
fn at_rest(memory: &Knowledge, uplinks: &[Uplink]) -> Knowledge {
    Knowledge { uplinks: Some(uplinks.to_vec()), restarted: memory.restarted, ..Knowledge::default() }
}

/// Nothing to do but to remember what is new.
fn remember(old: &Knowledge, new: Knowledge) -> Plan {
    Plan { remember: (new != *old).then_some(Note::KubeProxy(new)), ..Plan::default() }
}

impl Look<'_> {
    fn changed(&self, known: &[Uplink], uplinks: &[Uplink]) -> Result<Plan, Gap> {
        let (memory, now) = (&self.recall.memory.kube_proxy, self.recall.boot);
        let pending = match &memory.pending {
            Some(pending) if pending.uplinks == uplinks => pending.clone(),
            _ => Pending { since: self.recall.wall, uplinks: uplinks.to_vec() },
        };
        let since = pending.since;
        let seen = Knowledge { pending: Some(pending), ..memory.clone() };
        let reason = format!("uplinks changed: {}", difference(known, uplinks));

        if let Some(retry) = seen.retry.filter(|retry| now < *retry) {
            let tries = format!("{reason}; the last {} tries failed", seen.failures);
            return Ok(self.held(seen, None, &tries, retry));
        }
        // Before anything is asked of crictl: links that still move are left to the next run.
        if self.wish.mode == Mode::Enforce
            && self.observed.settled_uplinks(&self.wish.interfaces, self.wish.settle)? != uplinks
        {
            return Ok(self.held(seen, None, &format!("{reason}; they are still changing"), now));
        }
        let pods = match self.observed.pods(&self.wish.query())? {
            Ok(pods) => pods,
            Err(why) => {
                let blocked = Blocked::unseen(format!("a restart of kube-proxy: {reason}"), why.to_string());
                return Ok(Plan { blocked: vec![blocked], ..remember(memory, self.failed(seen)) });
            }
        };
        let pod = match pods.as_slice() {
            // None runs here, or one that has started since and knows.
            [] => return Ok(remember(memory, at_rest(memory, uplinks))),
            pods if pods.iter().any(|pod| pod.created > since) => {
                return Ok(remember(memory, at_rest(memory, uplinks)));
            }
            [pod] => pod,
            several => return Ok(Plan { blocked: vec![ambiguous(&reason, several)], ..remember(memory, seen) }),
        };
        let restart = Restart { id: pod.id.clone(), uplinks: uplinks.to_vec() };
        match seen.restarted.map(|last| last + self.wish.min_interval).filter(|earliest| now < *earliest) {
            Some(earliest) => Ok(self.held(seen, Some(restart), &reason, earliest)),
            None => Ok(self.restart(Knowledge { restart: Some(restart), restarted: Some(now), ..seen }, reason)),
        }
    }

    /// A run that had begun a restart did not see its end.
    fn resume(&self, restart: &Restart) -> Plan {
        let memory = &self.recall.memory.kube_proxy;
        let reason = format!("the restart of sandbox {} was begun and not ended", restart.id);
        match memory.retry.filter(|retry| self.recall.boot < *retry) {
            Some(retry) => self.held(memory.clone(), Some(restart.clone()), &reason, retry),
            None => self.restart(memory.clone(), reason),
        }
    }

    /// With the memory of a restart that is begun now.
    fn restart(&self, begun: Knowledge, reason: String) -> Plan {
        let Some(Restart { id, uplinks }) = begun.restart.clone() else { return Plan::default() };
        let restart = RestartPod {
            query: self.wish.query(),
            id: Some(id),
            ended: at_rest(&begun, &uplinks),
            failed: self.failed(begun.clone()),
            begun,
        };
        Plan { steps: vec![Step { change: Change::RestartPod(Box::new(restart)), reason }], ..Plan::default() }
    }

    /// What is to be done, but not now.
    fn held(&self, seen: Knowledge, restart: Option<Restart>, why: &str, until: Duration) -> Plan {
        let wait = until.saturating_sub(self.recall.boot);
        let reason = if wait.is_zero() {
            format!("{why}; left to the next run")
        } else {
            let wait = Duration::from_secs(wait.as_secs() + u64::from(wait.subsec_nanos() > 0));
            format!("{why}; held back for {}", humantime::format_duration(wait))
        };
        let restart = RestartPod {
            query: self.wish.query(),
            id: restart.map(|restart| restart.id),
            begun: Knowledge::default(),
            ended: Knowledge::default(),
            failed: Knowledge::default(),
        };
        let step = Step { change: Change::RestartPod(Box::new(restart)), reason };
        Plan { held: vec![step], ..remember(&self.recall.memory.kube_proxy, seen) }
    }

    /// Tried and failed once more: next time later, but never later than the interval between restarts.
    fn failed(&self, memory: Knowledge) -> Knowledge {
        let doubled = FIRST_RETRY.saturating_mul(1 << memory.failures.min(16));
        // A timer that ticks each minute must not miss its tick by the seconds that the failure took.
        let wait = doubled.min(self.wish.min_interval).saturating_sub(Duration::from_secs(5));
        Knowledge { failures: memory.failures.saturating_add(1), retry: Some(self.recall.boot + wait), ..memory }
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
    use crate::pod::PodId;
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
        let kube_proxy = Knowledge { uplinks: Some(vec![uplink("eth0", "10.0.0.10/24")]), ..Knowledge::default() };
        let memory = Memory { kube_proxy, ..Memory::default() };
        node.recall = Recall { memory, wall: TODAY, boot: START };
        node.pods = Ok(vec![pod("old", TODAY - Duration::from_secs(9_000))]);
        node
    }

    fn planned(node: &mut Model) -> Plan {
        node.plan(plan, &Desired::default())
    }

    fn noted(plan: Plan) -> Knowledge {
        match plan.remember {
            Some(Note::KubeProxy(knowledge)) => knowledge,
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
        let newer = pod("new", TODAY + Duration::from_secs(1));
        let old = pod("old", TODAY - Duration::from_secs(1));
        for (case, pods) in
            [("no pod", vec![]), ("it has started since", vec![newer.clone()]), ("both", vec![old, newer])]
        {
            let mut node = changed();
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
        node.recall = Recall { memory: recalled(noted(plan)), wall: TODAY, boot: START + Duration::from_secs(201) };
        assert_eq!(planned(&mut node).steps.len(), 1, "it happens when its time has come");
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
    fn a_restart_that_did_not_end_is_resumed_by_its_id() {
        let mut node = changed();
        let Change::RestartPod(first) = planned(&mut node).steps.remove(0).change else { panic!() };
        node.recall.memory = recalled(first.begun.clone());
        // Another pod has come up meanwhile: it is not touched.
        node.pods = Ok(vec![pod("new", TODAY + Duration::from_secs(5))]);
        let Change::RestartPod(again) = planned(&mut node).steps.remove(0).change else { panic!() };
        assert_eq!((again.id, &again.ended), (Some(id("old")), &first.ended));
        node.recall.memory = recalled(first.failed.clone());
        assert_eq!(planned(&mut node).steps, vec![], "after a failure not at once");
        node.recall.boot += Duration::from_secs(60);
        assert_eq!(planned(&mut node).steps.len(), 1);
    }
}
