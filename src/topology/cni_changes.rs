//! What has changed of the VPC CNI's rules since the last run: nothing; or pods have come and gone, together with their
//! rules, which is followed with a look at these pods alone; or more.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cidr::IpCidr;

use super::Topology;
use super::cni::{BRANCH, EXTERNAL, FROM_POD, MARKED, MOVED_LOCAL, TO_POD};
use super::cni_forms::{Purpose, is_gateway_icmp, of_cni};
use super::cni_rules::{is_main_pod_link, rule_from, to_known_pod, to_pod, to_rule};
use super::vpc::CniRulesOfPods;
use crate::history::cni_rules::{KnownPod, SavedRules};
use crate::model::{PROTO_RESTORED, Rule, UPLINK_RULE_PRIORITY};
use crate::observed::{Gap, RpFilters, SeenRule};

/// If rules of more pods have changed, everything is looked at.
const FEW: usize = 64;

/// A hash of all rules at the VPC CNI's priorities, in their order: another pod with the address of an earlier one has the
/// same rules, but they were added later. In practice, different rules have different hashes. `None` if one was restored,
/// because that must be handled.
pub fn digest(rules: &[SeenRule]) -> Option<u64> {
    let mut all = 0;
    for seen @ SeenRule { rule, extras } in rules {
        if rule.protocol == PROTO_RESTORED {
            return None;
        }
        let of_cni = matches!(
            rule.priority,
            TO_POD | FROM_POD | MARKED | UPLINK_RULE_PRIORITY | EXTERNAL | MOVED_LOCAL | BRANCH
        );
        if of_cni && extras.is_none() || extras.is_some() && is_gateway_icmp(seen) {
            all = mix(mix(all, hash_of(rule)), rule.protocol.into());
        }
    }
    Some(all)
}

/// Like FxHash, which is fast and distributes well enough.
fn mix(hash: u64, word: u64) -> u64 {
    (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95)
}

/// A hash of a rule without its protocol.
fn hash_of(rule: &Rule) -> u64 {
    let bits = |prefix: &Option<IpCidr>| match prefix {
        None => 0,
        Some(IpCidr::V4(it)) => {
            1 << 40 | u64::from(u32::from(it.first_address())) << 8 | u64::from(it.network_length())
        }
        Some(IpCidr::V6(it)) => {
            let bits = u128::from(it.first_address());
            mix(mix(u64::from(it.network_length()), (bits >> 64) as u64), bits as u64)
        }
    };
    let (family, priority, table, selector) = rule.essence();
    let head = u64::from(priority) << 32 ^ u64::from(table) ^ (family as u64) << 55;
    let mut hash = mix(mix(mix(0, head), bits(&selector.from)), bits(&selector.to));
    if let Some((mark, mask)) = selector.fwmark {
        hash = mix(hash, u64::from(mark) << 32 | u64::from(mask));
    }
    for name in selector.iif.iter().chain(&selector.oif) {
        hash = name.as_bytes().iter().fold(mix(hash, 4), |hash, byte| mix(hash, u64::from(*byte)));
    }
    hash ^ hash >> 32
}

/// The pods whose rules are not the saved ones, or whose links are gone; `None` if there are many, or if other rules have
/// changed.
fn changed_pods(rules: &[SeenRule], links: &RpFilters, saved: &SavedRules) -> Option<BTreeSet<IpAddr>> {
    let mut indexes: Vec<u64> = links.links.iter().map(|(index, _)| (*index).into()).collect();
    indexes.sort_unstable();
    let live = || rules.iter().filter_map(of_cni);
    let mut live_hashes: Vec<u64> = live().map(|(rule, _)| hash_of(rule)).collect();
    live_hashes.sort_unstable();
    let (mut saved_hashes, mut changed) = (Vec::with_capacity(live_hashes.len()), BTreeSet::new());
    let mut is_live = |rule: &Rule| {
        let hash = hash_of(rule);
        saved_hashes.push(hash);
        live_hashes.binary_search(&hash).is_ok()
    };
    for pod in saved.pods() {
        let mut is_same = is_live(&to_pod(pod.address)) & indexes.binary_search(&pod.index.into()).is_ok();
        for from in pod.rules.flatten() {
            is_same &= is_live(&rule_from(pod.address, &from));
        }
        if !is_same && changed.insert(pod.address) && changed.len() > FEW {
            return None;
        }
    }
    if !saved.others().filter_map(|known| to_rule(&known)).all(|(rule, _)| is_live(&rule)) {
        return None;
    }
    saved_hashes.sort_unstable();
    for (rule, purpose) in live() {
        if saved_hashes.binary_search(&hash_of(rule)).is_err() {
            let Purpose::Pod(pod) = purpose else { return None };
            changed.insert(pod);
        }
    }
    Some(changed).filter(|changed| changed.len() <= FEW)
}

impl Topology<'_> {
    /// What to save if, since the last run, nothing else has happened than that pods have come and gone, together with
    /// their rules. `None` if it may be more.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn followed(&self, saved: &SavedRules) -> Result<Option<SavedRules>, Gap> {
        let observed = self.observed();
        let rules = observed.rules()?;
        let links = observed.rp_filters()?;
        let changed = observed.changed_pods.get_or_init(|| changed_pods(rules, links, saved));
        let Some(changed) = changed else { return Ok(None) };
        let links = observed.host_links(changed.iter().copied())?;
        let mut own = CniRulesOfPods::default();
        for (rule, purpose) in rules.iter().filter_map(of_cni) {
            match purpose {
                Purpose::Pod(pod) if changed.contains(&pod) => own.add(pod, rule),
                _ => {}
            }
        }
        let known: Vec<KnownPod> =
            saved.pods().filter(|pod| changed.contains(&pod.address)).map(|pod| pod.known()).collect();
        let mut next = BTreeMap::new();
        for (pod, link) in changed.iter().zip(links) {
            let dev = link.filter(|dev| is_main_pod_link(&dev.name));
            let known = known.iter().find(|known| known.address == *pod);
            let now = dev.and_then(|dev| to_known_pod(*pod, dev, &own, known));
            let from = own.from.get(pod).map_or(0, Vec::len);
            let is_whole = own.to.contains_key(pod) && now.as_ref().is_none_or(|now| now.rules.len() == from);
            if dev.is_some() && !is_whole {
                return Ok(None);
            }
            next.insert(*pod, now);
        }
        Ok(Some(saved.with(&next)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::testing::Model;

    #[test]
    fn the_digest_tells_rules_and_their_order_apart() {
        let node = [
            "rule 512 to 10.0.0.101 table 254",
            "rule 1536 from 10.0.0.101 table 2",
            "rule 1536 from 10.0.0.102 table 2",
            "rule 1536 from fd00::102 table 2",
            "rule 1536 from 10.0.0.102 to 10.0.0.0/16 table 2",
            "rule 1024 fwmark 128/128 table 254",
            "rule 10 iif vlan00000000001 table 101",
        ];
        let of = |lines: &[&str]| digest(&Model::new(&lines.join("\n")).rules);
        let whole = of(&node);
        let mut turned = node;
        turned.reverse();
        let mut seen = BTreeSet::from([whole, of(&turned)]);
        assert_eq!(seen.len(), 2, "another order");
        for at in 0..node.len() {
            let mut less = node.to_vec();
            let line = less.remove(at);
            assert!(seen.insert(of(&less)), "{line}");
            for (old, new) in
                [("table 2", "table 3"), ("10.0.0.10", "10.0.1.10"), ("0001", "0002"), ("128/128", "128/256")]
            {
                let mut other = node.to_vec();
                let changed = line.replace(old, new);
                other[at] = &changed;
                assert!(changed == line || seen.insert(of(&other)), "{changed}");
            }
        }
        let icmp = "rule 0 from fe80:ec2::1 ipproto 58 table 255";
        assert!(seen.insert(of(&[icmp])) && seen.insert(of(&[&icmp.replace("ec2::1", "ec2::2")])));
        assert_eq!(of(&["rule 0 from fe80:ec2::1 ipproto 6 table 255", "rule 0 table 255"]), Some(0), "others' rules");
        assert_eq!(of(&["rule 99 from 10.0.0.1 table 2"]), Some(0), "others' priorities");
        assert_eq!(of(&["rule 512 to 10.0.0.1 table 254 proto 172"]), None);
    }
}
