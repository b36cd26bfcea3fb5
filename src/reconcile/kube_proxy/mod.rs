//! `kube_proxy`: restarted once when the uplinks have changed since it last learnt of them, and only then.
//!
//! Each step is recorded before it is made: a restart that was begun is resumed by the id of its sandbox, however its
//! run ended, and no other sandbox is touched for the same change.

mod uplinks;

use std::borrow::Cow;
use std::time::Duration;

use crate::change::{Blocked, Change, Notice, Plan, RestartPod, Step, When};
use crate::config::{Config, KubeProxy, Mode};
use crate::history::contention;
use crate::history::memory::{Knowledge, Note, Patience, Pending, Recall, Restart, Uplink, difference};
use crate::model::pod::{Pod, PodId, PodQuery};
use crate::observed::{Gap, Observed};
use crate::topology::Topology;
use crate::topology::forecast::DeclaredRules;
pub use uplinks::unattended;
use uplinks::{notice, uplinks};

/// The first delay after a failure; it doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_secs(60);
/// After this many restarts without a new sandbox, kube-proxy is assumed not to run any more.
const GIVE_UP: u32 = 5;
/// How many hardware addresses are saved for a row of restarts: more than a node has uplinks. Beyond that, no uplink
/// counts as new.
const MOST_SEEN: usize = 64;

/// The plan of the section.
pub fn plan(desired: &Config, observed: &Observed) -> Result<Plan, Gap> {
    let wish = &desired.kube_proxy;
    let declared = DeclaredRules::to_come(desired, observed)?;
    // Addresses first: the saved state carries the time, and a change must not be older than it.
    observed.global_addresses().map(drop)?;
    let recall = observed.recall()?;
    let memory = known_by_address(&recall.memory.kube_proxy);
    let same_question = memory.interfaces.as_deref() == Some(wish.interfaces.as_str());
    let known = memory.uplinks.as_deref().filter(|_| same_question);
    let uplinks = uplinks(wish, Topology::after(desired, &declared, observed), known.unwrap_or_default())?;
    let inputs = Inputs { desired, wish, declared: &declared, observed, recall, uplinks: &uplinks, memory: &memory };
    let mut plan = match known {
        _ if memory.restart.is_some() => inputs.resume()?,
        Some(known) if known != uplinks => inputs.changed(known)?,
        // The watcher starts before the network is configured. What comes then is no change: kube-proxy needs a network to
        // start.
        None if uplinks.is_empty() => Plan::default(),
        // Unchanged; or the first run after boot, or the configuration selects other uplinks: the running kube-proxy
        // has started with these. An earlier failure still delays the next try, so that flapping links do not cancel
        // that.
        _ => {
            let (failures, retry, unanswered) = (memory.failures, memory.retry, memory.unanswered.clone());
            inputs.remember(Knowledge { failures, retry, unanswered, ..inputs.at_rest(&uplinks) })
        }
    };
    plan.notices.extend(notice(wish, &unattended(wish, Topology::after(desired, &declared, observed))?));
    let noted = plan.remember.iter().find_map(|note| match note {
        Note::KubeProxy(knowledge) => Some(knowledge),
        _ => None,
    });
    let unanswered = noted.unwrap_or(&memory).unanswered.as_ref();
    plan.notices.extend(unanswered.and_then(|unanswered| no_such_pod(&wish.query(), unanswered)));
    Ok(plan)
}

/// The saved uplinks, without links that had no global address: kube-proxy does not know about these, and earlier
/// versions saved them.
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

/// The query for the pod, as far as it depends on the configuration.
fn question(query: &PodQuery) -> String {
    let labels: Vec<String> = query.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    format!("{}: {}", query.namespace, labels.join(", "))
}

/// No pod matches the query, and others exist that may be meant.
fn no_such_pod(query: &PodQuery, unanswered: &str) -> Option<Notice> {
    let question = question(query);
    let (namespace, labels) = question.split_once(": ").filter(|_| question == unanswered)?;
    let text = format!(
        "no pod of the namespace {namespace} has the labels {labels}, but others run there, so kube-proxy is never \
         restarted; set kube_proxy.labels to those of its pod or, if none runs here, kube_proxy: {{mode: off}}"
    );
    Some(Notice { text, problem: None })
}

/// The facts for the decision.
struct Inputs<'a> {
    desired: &'a Config,
    wish: &'a KubeProxy,
    declared: &'a DeclaredRules,
    observed: &'a Observed,
    recall: &'a Recall,
    uplinks: &'a [Uplink],
    memory: &'a Knowledge,
}

impl Inputs<'_> {
    fn changed(&self, known: &[Uplink]) -> Result<Plan, Gap> {
        let seen = Knowledge { pending: Some(self.pending()), ..self.memory.clone() };
        let reason = format!("uplinks changed: {}", difference(known, self.uplinks));
        if let Some(retry) = self.retry() {
            let reason = format!("{reason}; the last {} tries failed", seen.failures);
            return Ok(self.held(seen, None, &reason, retry));
        }
        if let Some(earliest) = self.earliest() {
            let row = self.memory.row;
            let often = self.distance() > self.wish.min_interval.0;
            let reason = if often { format!("{reason}; restarted {row} times in a row") } else { reason };
            return Ok(self.held(seen, None, &reason, earliest));
        }
        // Before crictl is called: links that still change are left to the next run.
        if let Some(until) = self.later() {
            return Ok(self.held(seen, None, &reason, until));
        }
        if self.waits() && self.settled(known)? != self.uplinks {
            return Ok(self.held(seen, None, &format!("{reason}; they are still changing"), self.recall.boot));
        }
        let pods = match self.observed.pods(&self.wish.query())? {
            Ok(pods) => pods,
            Err(why) => return Ok(self.unknown(seen, &reason, why)),
        };
        let since = self.pending().since;
        // A creation time in the future means that the clock was set back; it is ignored.
        let has_started_since = |pod: &Pod| pod.created > since && pod.created <= pods.listed;
        match pods.pods.as_slice() {
            // None runs here, or one that has started since and knows the change.
            [] => Ok(self.remember(Knowledge { unanswered: self.unanswered()?, ..self.at_rest(self.uplinks) })),
            pods if pods.iter().any(has_started_since) => Ok(self.remember(self.at_rest(self.uplinks))),
            [pod] => {
                let row = seen.row().next(self.wish.min_interval.0, self.recall.boot, self.grown());
                let hardware = self.hardware();
                Ok(self.restart(Knowledge { row, hardware, ..seen }, &pod.id, self.uplinks, reason))
            }
            several if self.recall.patience == Patience::Due => {
                // A separate run is started again, as after a failure.
                Ok(self.not_now(seen, ambiguous(&reason, several)))
            }
            several => Ok(Plan { blocked: vec![ambiguous(&reason, several)], ..self.remember(seen) }),
        }
    }

    /// Whether the run itself waits for the uplinks to settle.
    fn waits(&self) -> bool {
        self.wish.mode == Mode::Enforce && self.recall.patience != Patience::Due
    }

    /// Until when the watcher's runs leave the restart alone: until the change is stable, and after that until the
    /// separate run.
    fn later(&self) -> Option<Duration> {
        let (now, wall) = (self.recall.boot, self.recall.wall);
        if !matches!(self.recall.patience, Patience::Watched | Patience::Due) {
            return None;
        }
        // A time in the future means that the clock was set back.
        let stood_still = wall.checked_sub(self.pending().since).unwrap_or(self.wish.settle.0);
        let rest = self.wish.settle.0.saturating_sub(stood_still);
        (!rest.is_zero() || self.recall.patience == Patience::Watched).then(|| now.saturating_add(rest))
    }

    /// The uplinks after a while: everything that defines them may have changed.
    fn settled(&self, known: &[Uplink]) -> Result<Vec<Uplink>, Gap> {
        let later = self.observed.settled(self.wish.settle.0)?;
        uplinks(self.wish, Topology::after(self.desired, self.declared, later), known).map_err(Gap::later)
    }

    /// The query, if no pod matches it and the namespace has others. This is not a failure.
    fn unanswered(&self) -> Result<Option<String>, Gap> {
        let query = self.wish.query();
        let question = question(&query);
        let all = self.observed.pods(&PodQuery { labels: Default::default(), ..query })?;
        Ok(all.as_ref().is_ok_and(|all| !all.pods.is_empty()).then_some(question))
    }

    /// An earlier run began a restart that did not end.
    fn resume(&self) -> Result<Plan, Gap> {
        let Some(Restart { id, uplinks }) = &self.memory.restart else { return Ok(Plan::default()) };
        let reason = format!("the restart of sandbox {id} was begun and did not end");
        // Changes since then are kept.
        let pending = (uplinks != self.uplinks).then(|| self.pending());
        let seen = Knowledge { pending, ..self.memory.clone() };
        if let Some(retry) = self.retry() {
            return Ok(self.held(seen, Some(id.clone()), &reason, retry));
        }
        if self.recall.patience == Patience::Watched {
            return Ok(self.held(seen, Some(id.clone()), &reason, self.recall.boot));
        }
        let pods = match self.observed.pods(&self.wish.query())? {
            Ok(pods) => pods,
            Err(why) => return Ok(self.unknown(seen, &reason, why)),
        };
        let pods = &pods.pods;
        let is_ready = pods.iter().any(|pod| pod.id == *id);
        match &self.memory.uplinks {
            // It was not even stopped, and the change that it was for is no longer current.
            Some(known) if is_ready && known == self.uplinks => Ok(self.remember(self.at_rest(self.uplinks))),
            _ if pods.is_empty() && self.memory.failures >= GIVE_UP => Ok(self.remember(self.at_rest(self.uplinks))),
            _ if is_ready => Ok(self.restart(Knowledge { pending: None, ..seen }, id, self.uplinks, reason)),
            _ => Ok(self.restart(seen, id, uplinks, reason)),
        }
    }

    /// The change as first seen, if it is still the same.
    fn pending(&self) -> Pending {
        match &self.memory.pending {
            Some(pending) if pending.uplinks == self.uplinks => pending.clone(),
            _ => Pending { since: self.recall.wall, uplinks: self.uplinks.to_vec() },
        }
    }

    /// kube-proxy knows these uplinks.
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

    /// Nothing to do but to save what is new.
    fn remember(&self, knowledge: Knowledge) -> Plan {
        let remember = (knowledge != self.recall.memory.kube_proxy).then_some(Note::KubeProxy(knowledge));
        Plan { remember: remember.into_iter().collect(), ..Plan::default() }
    }

    /// Until when a failure delays the next try: never longer than the distance between restarts.
    fn retry(&self) -> Option<Duration> {
        if self.recall.patience == Patience::AnswerNow {
            return None; // a dry run wants to know now what is wrong with crictl
        }
        let now = self.recall.boot;
        let longest = now.saturating_add(self.wish.min_interval.0.max(FIRST_RETRY));
        self.memory.retry.filter(|retry| (now..=longest).contains(retry) && *retry != now)
    }

    /// Until when the last restart delays the next one. A restart in the future is ignored.
    fn earliest(&self) -> Option<Duration> {
        let now = self.recall.boot;
        let last = self.memory.restarted.filter(|last| *last <= now)?;
        Some(last.saturating_add(self.distance())).filter(|earliest| now < *earliest)
    }

    /// The distance from the last restart. New uplinks do not wait for flapping ones.
    fn distance(&self) -> Duration {
        let min_interval = self.wish.min_interval.0;
        if self.grown() { min_interval } else { contention::distance(min_interval, self.memory.row) }
    }

    /// Whether there is an uplink that kube-proxy does not know and that no restart of this row was for.
    fn grown(&self) -> bool {
        let known = self.memory.uplinks.iter().flatten().map(|uplink| &uplink.hardware);
        let seen: Vec<_> = known.chain(&self.memory.hardware).collect();
        self.memory.hardware.len() < MOST_SEEN && self.uplinks.iter().any(|uplink| !seen.contains(&&uplink.hardware))
    }

    /// The hardware addresses that the restarts of a row were for, including the one that begins now.
    fn hardware(&self) -> Vec<String> {
        let goes_on = self.memory.row().goes_on(self.wish.min_interval.0, self.recall.boot);
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
        // Changes since it began are still pending.
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
        let change = Change::RestartPod(Box::new(RestartPod { query, id: Some(id.clone()) }));
        let notes = vec![
            (When::Before, Note::KubeProxy(begun)),
            (When::Applied, Note::KubeProxy(ended)),
            (When::Failed, Note::RestartFailed { knowledge: failed, backoff }),
        ];
        Plan { steps: vec![Step { notes, ..Step::new(change, reason) }], ..Plan::default() }
    }

    /// crictl failed.
    fn unknown(&self, seen: Knowledge, reason: &str, why: &str) -> Plan {
        if self.recall.patience == Patience::Due && seen.failures == 0 {
            // Ordinary at boot, before the container runtime is there, and when that is restarted.
            let (failed, backoff) = self.failed(seen);
            let retry = self.recall.boot.saturating_add(backoff);
            return self.held(
                Knowledge { retry: Some(retry), ..failed },
                None,
                &format!("{reason}; crictl failed"),
                retry,
            );
        }
        self.not_now(seen, Blocked::unseen(format!("restart kube-proxy: {reason}"), why.to_owned()))
    }

    /// What is blocked now is tried again after a while.
    fn not_now(&self, seen: Knowledge, blocked: Blocked) -> Plan {
        let (failed, backoff) = self.failed(seen);
        let retry = self.recall.boot.saturating_add(backoff);
        let failed = Knowledge { retry: Some(retry), ..failed };
        Plan { blocked: vec![blocked], due: Some(retry), ..self.remember(failed) }
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
        let restart = RestartPod { query: self.wish.query(), id };
        let step = Step::new(Change::RestartPod(Box::new(restart)), reason);
        let due = (self.wish.mode == Mode::Enforce).then_some(until);
        Plan { held: vec![step], due, ..self.remember(seen) }
    }

    /// Records one more failure, and how long to wait before the next try: longer each time, but never longer than the
    /// distance between restarts.
    fn failed(&self, knowledge: Knowledge) -> (Knowledge, Duration) {
        let doubled = FIRST_RETRY.saturating_mul(1 << knowledge.failures.min(16));
        // A timer that ticks every minute must not miss its tick by the seconds that the failure took.
        let backoff = doubled.min(self.wish.min_interval.0).saturating_sub(Duration::from_secs(5));
        (Knowledge { failures: knowledge.failures.saturating_add(1), ..knowledge }, backoff)
    }
}

fn ambiguous(reason: &str, pods: &[Pod]) -> Blocked {
    let listed: Vec<_> = pods.iter().map(|pod| format!("{} ({})", pod.name, pod.id)).collect();
    let because =
        format!("{} sandboxes match: {}; narrow kube_proxy.labels down to one", pods.len(), listed.join(", "));
    Blocked::new(format!("restart kube-proxy: {reason}"), because)
}

#[cfg(test)]
mod tests;
