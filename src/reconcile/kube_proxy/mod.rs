//! `kube_proxy`: restarted when the uplinks have changed since it last learnt of them, once, and only then.
//!
//! What happens is written down before it is done: a restart that was begun is resumed by the id of its sandbox,
//! however the run that began it ended, and no other sandbox is touched for the same change.

mod uplinks;

use std::borrow::Cow;
use std::time::Duration;

use super::rules::Declared;
use crate::change::{Blocked, Change, Notice, Plan, RestartPod, Step};
use crate::contention;
use crate::desired::{Desired, KubeProxy, Mode};
use crate::memory::{Knowledge, Note, Pending, Recall, Restart, Uplink, difference};
use crate::observed::{Gap, Observed};
use crate::pod::{Pod, PodId, PodQuery};
use crate::topology::Topology;
pub use uplinks::unattended;
use uplinks::{notice, uplinks};

/// The first wait after a failure; it doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_secs(60);
/// So many restarts in a row end without another sandbox before it is taken that there is no kube-proxy any more.
const GIVE_UP: u32 = 5;
/// So many hardware addresses are remembered of a row of restarts, more than a node has uplinks. Where there are more,
/// nothing is new any more.
const MOST_SEEN: usize = 64;

/// What differs.
pub fn plan(desired: &Desired, observed: &Observed) -> Result<Plan, Gap> {
    let wish = &desired.kube_proxy;
    let declared = Declared::of(desired);
    // First the addresses: what is recalled tells the time, and a change is not to be older than it says.
    observed.global_addresses().map(drop)?;
    let recall = observed.recall()?;
    let memory = known_by_address(&recall.memory.kube_proxy);
    let same_question = memory.interfaces.as_deref() == Some(wish.interfaces.as_str());
    let known = memory.uplinks.as_deref().filter(|_| same_question);
    let uplinks = uplinks(wish, Topology::after(desired, &declared, observed), known.unwrap_or_default())?;
    let look = Look { desired, wish, declared: &declared, observed, recall, uplinks: &uplinks, memory: &memory };
    let mut plan = match known {
        _ if memory.restart.is_some() => look.resume()?,
        Some(known) if known != uplinks => look.changed(known)?,
        // As kube-proxy knows them; or the first run after boot, or other interfaces are uplinks now: whatever runs
        // has started with these. What failed before still holds the next try back, so that links that flap do not
        // undo that.
        _ => {
            let (failures, retry, unanswered) = (memory.failures, memory.retry, memory.unanswered.clone());
            look.remember(Knowledge { failures, retry, unanswered, ..look.at_rest(&uplinks) })
        }
    };
    plan.notices.extend(notice(wish, &unattended(wish, Topology::after(desired, &declared, observed))?));
    let noted = plan.remember.iter().find_map(|note| match note {
        Note::KubeProxy(knowledge) => Some(knowledge),
        _ => None,
    });
    let unanswered = noted.unwrap_or(&memory).unanswered.as_ref();
    plan.notices.extend(unanswered.and_then(|unanswered| nobody(&wish.query(), unanswered)));
    Ok(plan)
}

/// What was remembered, without links that had no global address: kube-proxy knows nothing of these, and earlier versions
/// remembered them.
fn known_by_address(memory: &Knowledge) -> Cow<'_, Knowledge> {
    let pending = memory.pending.iter().flat_map(|it| &it.uplinks);
    let all = memory.uplinks.iter().flatten().chain(pending).chain(memory.restart.iter().flat_map(|it| &it.uplinks));
    if !all.into_iter().any(|uplink| uplink.addresses.is_empty()) {
        return Cow::Borrowed(memory);
    }
    let mut memory = memory.clone();
    let lists = [
        memory.uplinks.as_mut(),
        memory.pending.as_mut().map(|it| &mut it.uplinks),
        memory.restart.as_mut().map(|it| &mut it.uplinks),
    ];
    lists.into_iter().flatten().for_each(|uplinks| uplinks.retain(|it| !it.addresses.is_empty()));
    Cow::Owned(memory)
}

/// The question for the pod, as far as it depends on the configuration.
fn question(query: &PodQuery) -> String {
    let labels: Vec<String> = query.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    format!("{}: {}", query.namespace, labels.join(", "))
}

/// Nobody answers to the question, and others are there who might be meant.
fn nobody(query: &PodQuery, unanswered: &str) -> Option<Notice> {
    let question = question(query);
    let (namespace, labels) = question.split_once(": ").filter(|_| question == unanswered)?;
    let text = format!(
        "no pod of the namespace {namespace} has the labels {labels}, though others run there, so that kube-proxy is never \
         restarted; set kube_proxy.labels to those of its pod or, where none runs here, kube_proxy: {{mode: off}}"
    );
    Some(Notice { text, problem: None })
}

/// What there is to decide by.
struct Look<'a> {
    desired: &'a Desired,
    wish: &'a KubeProxy,
    declared: &'a Declared,
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
        if self.wish.mode == Mode::Enforce && self.settled(known)? != self.uplinks {
            return Ok(self.held(seen, None, &format!("{reason}; they are still changing"), self.recall.boot));
        }
        let pods = match self.observed.pods(&self.wish.query())? {
            Ok(pods) => pods,
            Err(why) => return Ok(self.unknown(seen, &reason, why)),
        };
        let since = self.pending().since;
        // A time that had not come when they were listed is a clock that was set back: it says nothing.
        let has_started_since = |pod: &Pod| pod.created > since && pod.created <= pods.listed;
        match pods.pods.as_slice() {
            // None runs here, or one that has started since and knows.
            [] => Ok(self.remember(Knowledge { unanswered: self.unanswered()?, ..self.at_rest(self.uplinks) })),
            pods if pods.iter().any(has_started_since) => Ok(self.remember(self.at_rest(self.uplinks))),
            [pod] => {
                let row = seen.row().next(self.wish.min_interval, self.recall.boot, self.grown());
                let hardware = self.hardware();
                Ok(self.restart(Knowledge { row, hardware, ..seen }, &pod.id, self.uplinks, reason))
            }
            several => Ok(Plan { blocked: vec![ambiguous(&reason, several)], ..self.remember(seen) }),
        }
    }

    /// The uplinks as they are after a while: all that makes one may have changed.
    fn settled(&self, known: &[Uplink]) -> Result<Vec<Uplink>, Gap> {
        let later = self.observed.settled(self.wish.settle)?;
        uplinks(self.wish, Topology::after(self.desired, self.declared, later), known).map_err(Gap::later)
    }

    /// The question, where no pod answers to it and the namespace has others. It is not worth a failure.
    fn unanswered(&self) -> Result<Option<String>, Gap> {
        let query = self.wish.query();
        let question = question(&query);
        let all = self.observed.pods(&PodQuery { labels: Default::default(), ..query })?;
        Ok(all.as_ref().is_ok_and(|all| !all.pods.is_empty()).then_some(question))
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
        let pods = &pods.pods;
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
        let remember = (knowledge != self.recall.memory.kube_proxy).then_some(Note::KubeProxy(knowledge));
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
mod tests;
