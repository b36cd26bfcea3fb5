//! `pod_rules`: the VPC CNI's own rules are restored when another program has removed them, on nodes that are proven to
//! be the CNI's.
//!
//! A rule 512 is certain from its pod's host route. All others are certain only if an earlier run has seen them
//! ([`crate::history::cni_rules`]) and they still fit. The CNI adds and removes a pod's rules and route one after the
//! other, removes each rule before it adds it, and fails if another program has added it in between. So a rule must be
//! missing in two looks: after a flush, which hits most pods, in two looks of this run; else in two runs.
//!
//! Restored rules have their own protocol number, by which they are found and removed again. On a node with unchanged
//! rules, none of them restored or missing, a run compares one number, and looks no further.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::change::{Blocked, Change, Op, Plan, Step};
use crate::config::{Config, Mode};
use crate::history::cni_rules::{CniMemory, CniState, SavedRules};
use crate::history::memory::{Note, Recall};
use crate::model::{Family, PROTO_RESTORED, Rule, TABLE_MAIN, shortened};
use crate::observed::{Address, Gap, Observed, RouteSet, SeenRoute, SeenRule};
use crate::reconcile::rules::is_taken_for;
use crate::sorted;
use crate::topology::cni::{BRANCH, EXTERNAL, FROM_POD, GATEWAY_ICMP, MARKED, TO_POD};
use crate::topology::cni_changes::digest;
use crate::topology::cni_forms::{Purpose, with_extras};
use crate::topology::cni_rules::{CniRules, known_pod, to_rule};
use crate::topology::{Topology, has_default, is_kernels};

/// How long flushed rules must be missing: longer than the CNI takes from a pod's route to its rules.
pub const CONFIRM: Duration = Duration::from_millis(15);
/// The minimum distance between two runs in which another rule is missing, in seconds.
const ALONE: u64 = 10;
/// If so many pods lack rules at once, it is a flush. The CNI may set up a few at the same time.
const MANY: usize = 5;
/// The name of the repair of many rules at once. Who removes them again removes them together.
const TOGETHER: &str = "restore removed rules of the VPC CNI";
/// How long the VPC CNI may take from the rules for the whole node to the addresses of its uplinks, in seconds; and a run
/// may come up to a minute after either.
const STARTING: u64 = 120;
/// `RTPROT_BOOT`, the protocol of the VPC CNI's routes.
const PROTO_BOOT: u8 = 3;

/// What differs.
pub fn plan(desired: &Config, observed: &Observed) -> Result<Plan, Gap> {
    let rules = observed.rules()?;
    let recall = observed.recall()?;
    let state = &recall.memory.cni;
    let seen = digest(rules);
    let was_whole = state.digest.is_some() && state.missing.is_empty() && !state.flushed;
    if was_whole && seen == state.digest {
        return Ok(Plan::default());
    }
    let (saved, topology) = (observed.cni_memory()?, Topology::of(observed));
    let kernel_rules = desired.kernel_rules.mode;
    let mut draft =
        RuleDraft { observed, recall, saved, kernel_rules, plan: Plan::default(), next: CniState::default() };
    if was_whole
        && seen.is_some()
        && !saved.text().is_empty()
        && let Some(known) = topology.followed(saved)?
    {
        draft.next.digest = seen;
        return Ok(draft.finish(known));
    }
    let here = topology.cni_rules()?;
    let mut known = Known::of(saved, &here)?;
    let missing = here.missing(&known.now, known.proven)?;
    // While pods come and go, the decision is left to the next run.
    let seen = seen.filter(|_| missing.is_empty());
    draft.remove(&here, &known)?;
    draft.restore(missing, &mut known, &here)?;
    if known.proven {
        draft.report_unknown(&here, &known.now)?;
    }
    let nothing_left = draft.plan.steps.is_empty() && draft.plan.blocked.is_empty() && draft.next.missing.is_empty();
    if nothing_left && !here.has_restored() {
        draft.next.digest = seen;
    }
    Ok(draft.finish(SavedRules::from(&known.now)))
}

/// Missing rules, each with what it is for.
type MissingRules = BTreeMap<Rule, Purpose>;

/// What is known of the node's rules.
struct Known {
    /// Saved by earlier runs.
    before: CniMemory,
    /// To be saved.
    now: CniMemory,
    /// Whether the node is proven to be the VPC CNI's.
    proven: bool,
}

impl Known {
    fn of(saved: &SavedRules, here: &CniRules) -> Result<Known, Gap> {
        let before = saved.rules();
        let proven = here.prove_it() || before != CniMemory::default();
        let now = if proven { here.remembered(&before)? } else { CniMemory::default() };
        Ok(Known { before, now, proven })
    }

    /// Whether another program has removed these rules together: those of an uplink with others, of many pods, or of half
    /// of them. A pod that no run has seen with a rule does not count, as the CNI may be about to add them.
    fn is_flush<'m>(&self, missing: impl Iterator<Item = (&'m Rule, &'m Purpose)>) -> bool {
        let nothing_seen = self.before == CniMemory::default();
        let is_victim = |purpose: &&Purpose| match purpose {
            Purpose::Pod(pod) => nothing_seen || known_pod(&self.now, *pod).is_some(),
            Purpose::Node => false,
            Purpose::Uplink(_) | Purpose::Branch(_) => true,
        };
        let victims = sorted::set(missing.map(|(_, purpose)| purpose).filter(is_victim));
        let has_uplink = victims.iter().any(|purpose| matches!(purpose, Purpose::Uplink(_)));
        let all = self.now.pods.len() + self.now.others.iter().filter(|rule| rule.priority == BRANCH).count();
        victims.len() >= 2 && (has_uplink || victims.len() >= MANY || victims.len() * 2 >= all)
    }
}

/// A plan in progress.
struct RuleDraft<'a> {
    observed: &'a Observed,
    recall: &'a Recall,
    saved: &'a SavedRules,
    /// Priority 0 is among the kernel's: nothing is added there without its leave.
    kernel_rules: Mode,
    plan: Plan,
    next: CniState,
}

impl RuleDraft<'_> {
    /// Removes restored rules that are no longer needed.
    fn remove(&mut self, here: &CniRules, known: &Known) -> Result<(), Gap> {
        let (rules, outdated) = (self.observed.rules()?, here.outdated(&known.before, &known.now)?);
        let stays = |seen: &SeenRule| !outdated.iter().any(|(rule, _)| std::ptr::eq(*rule, &seen.rule));
        for (rule, why) in &outdated {
            let asked = with_extras((*rule).clone());
            // The kernel would delete the first rule that has all that is asked for: better none than one that stays.
            let before = rules.iter().take_while(|seen| !std::ptr::eq(*rule, &seen.rule));
            if before.filter(|seen| is_taken_for(seen, &asked)).any(stays) {
                continue;
            }
            self.plan.steps.push(Step::new(Change::Rule(Op::Delete(asked)), format!("restored by node-fixer; {why}")));
        }
        Ok(())
    }

    /// What is missing a moment later.
    fn missing_later(&self) -> Result<MissingRules, Gap> {
        let settled = self.observed.settled(CONFIRM)?;
        let later = || {
            let here = Topology::of(settled).cni_rules()?;
            let known = Known::of(self.saved, &here)?;
            here.missing(&known.now, known.proven)
        };
        later().map_err(Gap::later)
    }

    /// Restores missing rules, or waits until it is certain that they are missing.
    fn restore(&mut self, mut missing: MissingRules, known: &mut Known, here: &CniRules) -> Result<(), Gap> {
        let (state, now) = (&self.recall.memory.cni, self.recall.boot.as_secs());
        let since = sorted::map(state.missing.iter().map(|(rule, since)| (rule.as_str(), *since)));
        let waited = |rule: &Rule| {
            let since = if since.is_empty() { None } else { since.get(rule.to_string().as_str()).copied() };
            now - since.filter(|since| *since <= now).unwrap_or(now)
        };
        // What an earlier flush has left is no new one.
        let is_new = |(rule, _): &(&Rule, &Purpose)| waited(rule) < now;
        let mut flush = state.flushed || known.is_flush(missing.iter().filter(is_new));
        if missing.keys().any(|rule| flush || waited(rule) >= ALONE) {
            let later = self.missing_later()?;
            missing.retain(|rule, _| later.contains_key(rule));
            flush = state.flushed || known.is_flush(missing.iter().filter(is_new));
        }
        let mut due = Vec::new();
        for (rule, purpose) in missing {
            let waited = waited(&rule);
            let is_configured = matches!(rule.priority, MARKED | EXTERNAL);
            if !flush && is_configured && waited >= ALONE && self.may_be_configured(known, waited)? {
                known.now.others.retain(|it| to_rule(it).is_none_or(|(it, _)| !it.equals(&rule)));
                continue;
            }
            if flush || waited >= ALONE {
                due.push((rule, purpose));
            } else {
                self.next.missing.push((rule.to_string(), now - waited));
                let rest = Duration::from_secs(ALONE - waited);
                self.plan.again = Some(self.plan.again.map_or(rest, |again| again.min(rest)));
            }
        }
        if !known.proven {
            let pods: Vec<IpAddr> = due.iter().filter_map(|(rule, _)| to_whom(rule)).collect();
            self.plan.blocked.extend((!pods.is_empty()).then(|| unproven(&pods)));
        }
        let reason = match (flush, state.flushed) {
            (true, false) => "missing, as are rules of several pods or uplinks at once: another program removed them",
            (true, true) => "missing since a flush that was only partly repaired",
            (false, _) => "missing in two runs",
        };
        // Where restored rules are left, these were not undone.
        let part_of = (!here.has_restored() && (flush || due.len() >= MANY)).then_some(TOGETHER);
        // What is not restored now stays certain.
        let removals = self.plan.steps.len();
        let left = if known.proven {
            self.add(due, reason, part_of)?
        } else {
            due.into_iter().map(|(rule, _)| rule).collect()
        };
        self.next.missing.extend(left.iter().map(|rule| (rule.to_string(), 0)));
        self.next.flushed = flush && self.plan.steps.len() > removals;
        Ok(())
    }

    /// Whether the VPC CNI may have removed a rule for the whole node itself, because its configuration has changed: it
    /// has started at about the time since which the rule is missing, or nothing shows when it has. When it starts, it
    /// adds the addresses of its secondary uplinks anew. On a node without one, rules to the main table make no difference.
    fn may_be_configured(&self, known: &Known, waited: u64) -> Result<bool, Gap> {
        let of_uplinks = |address: &&Address| known.now.others.iter().any(|rule| rule.from == Some(address.local));
        let last = self.observed.global_addresses()?.filter(of_uplinks).map(|address| address.created).max();
        let age = last.map(|last| self.recall.awake.saturating_sub(last).as_secs());
        Ok(age.is_none_or(|age| age <= waited + STARTING))
    }

    /// Adds these rules, except those for tables without a default route, which it returns. To the table of an uplink
    /// leads the uplink's own rule all the same: without one, no other section knows that the table needs a default route.
    fn add(
        &mut self,
        rules: Vec<(Rule, Purpose)>,
        reason: &str,
        part_of: Option<&'static str>,
    ) -> Result<Vec<Rule>, Gap> {
        let tables = rules.iter().map(|(rule, _)| (rule.family, rule.table)).filter(|(_, table)| !is_kernels(*table));
        let tables = sorted::set(tables);
        let routes = self.observed.routes(tables.iter().map(|(family, table)| RouteSet::Table(*family, *table)))?;
        let mut dead: Vec<((Family, u32), Vec<Rule>)> = Vec::new();
        dead.extend(tables.iter().zip(routes).filter(|(_, it)| !has_default(it.iter())).map(|(set, _)| (*set, vec![])));
        let mut left = Vec::new();
        for (rule, purpose) in rules {
            if rule.priority == GATEWAY_ICMP && self.kernel_rules != Mode::Enforce {
                let want = Change::Rule(Op::Add(with_extras(rule.clone()))).to_string();
                let because = "the VPC CNI's rule is gone, and priority 0 is among the kernel's: to have it restored, set \
                               kernel_rules: {mode: enforce}, or restart the VPC CNI";
                self.plan.blocked.push(Blocked::new(want, because.to_owned()));
                left.push(rule);
                continue;
            }
            let is_of_uplink = matches!(purpose, Purpose::Uplink(_));
            match dead.iter_mut().find(|(set, _)| !is_of_uplink && *set == (rule.family, rule.table)) {
                Some((_, rules)) => rules.push(rule),
                None => {
                    let change = Change::Rule(Op::Add(with_extras(rule)));
                    self.plan.steps.push(Step { part_of, ..Step::new(change, reason) });
                }
            }
        }
        dead.retain(|(_, rules)| !rules.is_empty());
        for ((family, table), rules) in &dead {
            let want = format!("restore {} {family} rules to table {table} ({})", rules.len(), shortened(rules));
            let because = format!(
                "table {table} has no default route any more; recreate the pods of these rules, or restart the VPC CNI"
            );
            self.plan.blocked.push(Blocked::new(want, because));
        }
        left.extend(dead.into_iter().flat_map(|(_, rules)| rules));
        Ok(left)
    }

    /// Reports the pods of which only the rule 512 can be restored, if there are tables that they may belong to.
    fn report_unknown(&mut self, here: &CniRules, known: &CniMemory) -> Result<(), Gap> {
        let added = sorted::set(self.plan.steps.iter().filter_map(|step| added_to_pod(&step.change)));
        let mut pods = here.unknown(known);
        pods.retain(|pod| added.contains(pod) || here.is_restored(*pod));
        for family in [Family::V4, Family::V6] {
            if pods.iter().any(|pod| Family::of(*pod) == family) {
                let sets = self.observed.routes([RouteSet::Protocol(family, PROTO_BOOT)])?;
                let mut of_uplinks = sets.into_iter().flatten().filter(|route| !is_kernels(route.table));
                if !of_uplinks.any(SeenRoute::is_of_default_class) {
                    pods.retain(|pod| Family::of(*pod) != family);
                }
            }
        }
        if !pods.is_empty() {
            let want = format!("restore the rules {FROM_POD} of {} pods ({})", pods.len(), shortened(&pods));
            let because = "no run has seen their rules since boot, so it is unknown whether they had any, and to \
                           which table; recreate the pods (kubectl delete pod)";
            self.plan.blocked.push(Blocked::new(want, because.to_owned()));
        }
        Ok(())
    }

    /// With the state for the next run: first the saved pods, then that they are complete.
    fn finish(mut self, known: SavedRules) -> Plan {
        self.plan.remember.extend((known != *self.saved).then_some(Note::CniMemory(known)));
        self.plan.remember.extend((self.next != self.recall.memory.cni).then_some(Note::CniState(self.next)));
        self.plan
    }
}

/// The pod of a rule 512.
fn to_whom(rule: &Rule) -> Option<IpAddr> {
    let to = rule.selector.to.filter(|_| rule.priority == TO_POD && rule.table == TABLE_MAIN);
    to.map(|to| to.first_address())
}

fn added_to_pod(change: &Change) -> Option<IpAddr> {
    match change {
        Change::Rule(Op::Add(new)) if new.rule.protocol == PROTO_RESTORED => to_whom(&new.rule),
        _ => None,
    }
}

fn unproven(pods: &[IpAddr]) -> Blocked {
    let want = format!("restore the rules {TO_POD} and {FROM_POD} of {} pods ({})", pods.len(), shortened(pods));
    let because = "their routes exist, but no remaining rule proves that the VPC CNI is in use, and no run has seen \
                   any since boot; recreate the pods of this node: drain it with kubectl, then uncordon it";
    Blocked::new(want, because.to_owned())
}

#[cfg(test)]
mod tests;
