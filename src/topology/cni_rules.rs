//! The VPC CNI's rules, each with what it is for, and their pods: existing ones, and saved ones that still fit.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cidr::IpCidr;

use super::cni::{
    BRANCH, EXTERNAL, GATEWAY_ICMP, MARK, MARKED, MOVED_LOCAL, TO_POD, is_branch_link, is_branch_pod_link,
    is_mark_rule, is_pod_link, may_be_pod_link,
};
use super::cni_forms::{Purpose, of_cni, with_extras};
use super::vpc::CniRulesOfPods;
use super::{Topology, host};
use crate::history::cni_rules::{CniMemory, FromPod, KnownLink, KnownPod, KnownRule};
use crate::model::{Dev, EVERYTHING, Family, IfName, PROTO_RESTORED, Rule, Selector, TABLE_LOCAL, TABLE_MAIN};
use crate::observed::{Gap, SeenRule};

/// The existing objects of the VPC CNI.
#[derive(Debug)]
pub struct CniRules<'a> {
    topology: Topology<'a>,
    /// All links.
    names: BTreeMap<u32, &'a IfName>,
    /// The CNI's own rules for pods, whether or not the pods exist.
    own: CniRulesOfPods<'a>,
    /// Restored rules for pods.
    restored: CniRulesOfPods<'a>,
    /// The CNI's own rules that are not for pods.
    others: Vec<(&'a Rule, Purpose)>,
    /// All restored rules.
    all_restored: Vec<(&'a Rule, Purpose)>,
    /// The existing pods, each with its link, ordered by address: they have a host route in the main table over a link
    /// of the CNI's form.
    pods: Vec<(IpAddr, Dev)>,
    /// Family and priority of the rules that send everything to the local table.
    local: Vec<(Family, u32)>,
}

impl<'a> Topology<'a> {
    /// The existing objects of the VPC CNI.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn cni_rules(&self) -> Result<CniRules<'a>, Gap> {
        // First everything that must be looked at: work before a look is repeated, and all links are the most work. Without
        // a rule of the CNI's form there are mostly no pods to look at.
        let rules = self.observed().rules()?;
        if rules.iter().any(|rule| of_cni(rule).is_some()) {
            self.look_for_pods()?;
        }
        let names = self.names()?;
        let mut pods = Vec::new();
        if names.values().any(|name| is_main_pod_link(name)) {
            self.look_for_pods()?;
            for (pod, site) in self.pods()?.into_iter().filter(|(_, site)| site.table == TABLE_MAIN) {
                let name = names.get(&site.link).filter(|name| is_main_pod_link(name));
                pods.extend(name.map(|name| (pod, Dev { index: site.link, name: (*name).clone() })));
            }
        }
        let (own, restored, others, all_restored, local) = Default::default();
        let mut here = CniRules { topology: *self, names, own, restored, others, all_restored, pods, local };
        rules.iter().for_each(|rule| here.take(rule));
        Ok(here)
    }

    /// Asks for everything that [`Topology::pods`] needs.
    fn look_for_pods(&self) -> Result<(), Gap> {
        self.observed().global_addresses().map(drop)?;
        let families = [Family::V4, Family::V6];
        let mut tables = families.map(|family| (family, TABLE_MAIN)).to_vec();
        // Before the default routes, which are among them, so that none is read twice.
        self.ask_for_tables(tables.iter().copied())?;
        self.uplinks()?;
        for family in families {
            tables.extend(self.branch_rules(family)?.into_iter().map(|(_, table)| (family, table)));
        }
        self.ask_for_tables(tables)
    }
}

impl<'a> CniRules<'a> {
    fn take(&mut self, rule: &'a SeenRule) {
        if rule.lookup().is_some_and(|rule| rule.selector == EVERYTHING && rule.table == TABLE_LOCAL) {
            self.local.push((rule.rule.family, rule.rule.priority));
        }
        let Some((rule, purpose)) = of_cni(rule) else { return };
        let restored = rule.protocol == PROTO_RESTORED;
        if let Purpose::Pod(pod) = purpose {
            let rules = if restored { &mut self.restored } else { &mut self.own };
            rules.add(pod, rule);
        }
        if restored {
            self.all_restored.push((rule, purpose));
        } else if !matches!(purpose, Purpose::Pod(_)) {
            self.others.push((rule, purpose));
        }
    }

    /// Whether the existing rules prove that the VPC CNI is in use: its mark; all of its other priorities together; or
    /// one for a pod with a route over a link with a name that only it uses. Rules that node-fixer restored prove nothing.
    pub fn prove_it(&self) -> bool {
        let CniRulesOfPods { to, from } = &self.own;
        let has_uplink = || self.others.iter().any(|(_, purpose)| matches!(purpose, Purpose::Uplink(_)));
        self.others.iter().any(|(rule, _)| is_mark_rule(rule))
            || !to.is_empty() && !from.is_empty() && has_uplink()
            || self.pods_behind(is_pod_link).any(|pod| to.contains_key(&pod) || from.contains_key(&pod))
    }

    /// The existing pods behind links with such names.
    fn pods_behind(&self, is_such: impl Fn(&IfName) -> bool) -> impl Iterator<Item = IpAddr> {
        self.pods.iter().filter(move |(_, dev)| is_such(&dev.name)).map(|(pod, _)| *pod)
    }

    fn index_of(&self, name: &IfName) -> Option<u32> {
        self.names.iter().find(|(_, it)| **it == name).map(|(index, _)| *index)
    }

    /// Whether the rule 512 of a pod was restored.
    pub fn is_restored(&self, pod: IpAddr) -> bool {
        self.restored.to.contains_key(&pod)
    }

    /// Whether any existing rule was restored.
    pub fn has_restored(&self) -> bool {
        !self.all_restored.is_empty()
    }

    /// The new saved rules: existing ones, and earlier ones that still fit. Changes by the CNI itself replace earlier
    /// ones.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn remembered(&self, before: &CniMemory) -> Result<CniMemory, Gap> {
        let mut next = CniMemory::default();
        for (pod, dev) in &self.pods {
            next.pods.extend(to_known_pod(*pod, dev, &self.own, known_pod(before, *pod)));
        }
        let known_before = |rule: &Rule| before.others.iter().filter_map(to_rule).any(|(known, _)| known.equals(rule));
        let has_new_prefix = self.others.iter().any(|(rule, _)| rule.priority == EXTERNAL && !known_before(rule));
        for known in &before.others {
            let Some((rule, purpose)) = to_rule(known) else { continue };
            // The CNI has only one rule for a source or a link.
            let is_changed = |(it, other): &(&Rule, Purpose)| *other == purpose && !it.equals(&rule);
            let is_changed = purpose != Purpose::Node && self.others.iter().any(is_changed);
            // It has one for each service prefix. If there is a new one, its configuration has changed.
            let is_changed = is_changed || known.priority == EXTERNAL && !self.has(&rule) && has_new_prefix;
            if !is_changed && self.known_rule(&rule, &purpose)?.as_ref() == Some(known) {
                next.others.push(known.clone());
            }
        }
        for (rule, purpose) in &self.others {
            let known = self.known_rule(rule, purpose)?;
            next.others.extend(known.filter(|known| !next.others.contains(known)));
        }
        Ok(next)
    }

    fn has(&self, rule: &Rule) -> bool {
        self.others.iter().chain(&self.all_restored).any(|(it, _)| it.equals(rule))
    }

    /// A rule in its saved form, bound to its current link; `None` if that does not exist.
    fn known_rule(&self, rule: &Rule, purpose: &Purpose) -> Result<Option<KnownRule>, Gap> {
        let Rule { family, priority, table, .. } = *rule;
        let known = |from, link| Some(KnownRule { family, priority, table, from, to: rule.selector.to, link });
        Ok(match purpose {
            Purpose::Pod(_) => None,
            Purpose::Node => known(host(rule.selector.from.as_ref()), None),
            Purpose::Uplink(own) => {
                let carrier = self.topology.observed().global_addresses()?.find(|it| it.local == *own);
                let link = carrier.and_then(|it| known_link(it.index, self.names.get(&it.index)?));
                link.and_then(|link| known(Some(*own), Some(link)))
            }
            Purpose::Branch(name) => {
                let link = self.index_of(name).and_then(|index| known_link(index, name));
                link.and_then(|link| known(None, Some(link)))
            }
        })
    }

    /// The rules that should exist and do not, each with what it is for: the rules 512 of all existing pods, and the
    /// saved ones.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn missing(&self, known: &CniMemory, proven: bool) -> Result<BTreeMap<Rule, Purpose>, Gap> {
        let mut missing = BTreeMap::new();
        // If nothing else proves the CNI, only those behind links with names that only it uses.
        for pod in self.pods_behind(|name| proven || is_pod_link(name)) {
            if !self.own.to.contains_key(&pod) && !self.restored.to.contains_key(&pod) {
                missing.insert(to_pod(pod), Purpose::Pod(pod));
            }
        }
        for KnownPod { address, rules, .. } in &known.pods {
            let here = [&self.own, &self.restored].map(|rules| rules.from.get(address));
            let is_here = |rule: &&FromPod| here.into_iter().flatten().flatten().any(|it| from_pod(it) == **rule);
            for rule in rules.iter().filter(|rule| !is_here(rule)) {
                missing.insert(rule_from(*address, rule), Purpose::Pod(*address));
            }
        }
        for (rule, purpose) in known.others.iter().filter_map(to_rule) {
            // Where the local table comes first, strict mode is off.
            let is_first = |(family, priority): &(Family, u32)| match rule.priority {
                MOVED_LOCAL => *family == rule.family,
                GATEWAY_ICMP => *family == rule.family && *priority != MOVED_LOCAL,
                _ => false,
            };
            if !self.local.iter().any(is_first) && !self.has(&rule) && self.has_pod_behind(&rule, &purpose)? {
                missing.insert(rule, purpose);
            }
        }
        Ok(missing)
    }

    /// Whether packets from a link may be a pod's: its table still has a route to one there. For other rules: yes.
    fn has_pod_behind(&self, rule: &Rule, purpose: &Purpose) -> Result<bool, Gap> {
        let Purpose::Branch(name) = purpose else { return Ok(true) };
        if is_branch_link(name) {
            return Ok(true);
        }
        let routes = self.topology.table(rule.family, rule.table)?;
        let index = self.index_of(name);
        Ok(index.is_some() && routes.iter().any(|route| route.is_host_on_link() && route.oif() == index))
    }

    /// The restored rules to remove, each with the reason.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn outdated(&self, before: &CniMemory, now: &CniMemory) -> Result<Vec<(&'a Rule, String)>, Gap> {
        let mut outdated = Vec::new();
        for (rule, purpose) in &self.all_restored {
            let is_here_twice = match purpose {
                Purpose::Pod(pod) if rule.priority == TO_POD => self.own.to.contains_key(pod),
                Purpose::Pod(pod) => self.own.from.get(pod).into_iter().flatten().any(|it| it.equals(rule)),
                _ => self.others.iter().any(|(it, _)| it.equals(rule)),
            };
            let why = match purpose {
                _ if is_here_twice => Some("the VPC CNI has added the same rule itself".to_owned()),
                Purpose::Pod(pod) => self.why_pods_goes(rule, *pod, before, now),
                Purpose::Node => None,
                Purpose::Uplink(_) | Purpose::Branch(_) => {
                    let replaced = self.others.iter().any(|(_, other)| other == purpose);
                    let is_gone = self.known_rule(rule, purpose)?.is_none();
                    let why = if is_gone { "its pod or link is gone" } else { "the VPC CNI has changed it" };
                    (replaced || is_gone).then(|| why.to_owned())
                }
            };
            outdated.extend(why.map(|why| (*rule, why)));
        }
        Ok(outdated)
    }

    fn why_pods_goes(&self, rule: &Rule, pod: IpAddr, before: &CniMemory, now: &CniMemory) -> Option<String> {
        let here = self.pods.binary_search_by(|(it, _)| it.cmp(&pod)).ok().and_then(|at| self.pods.get(at));
        let Some((_, dev)) = here else { return Some(format!("the pod {pod} is gone")) };
        if rule.priority == TO_POD {
            return None;
        }
        match (known_pod(now, pod), known_pod(before, pod)) {
            (Some(known), _) if known.rules.contains(&from_pod(rule)) => None,
            (Some(_), _) => Some(format!("the VPC CNI sends the pod {pod} to another table")),
            (None, Some(_)) => Some(format!("the pod {pod} is a different one, behind {}", dev.name)),
            // The saved state is lost, but the pod exists.
            (None, None) => None,
        }
    }

    /// The pods of which only the rule 512 can be restored: it was removed, and no run has seen their other rules.
    pub fn unknown(&self, known: &CniMemory) -> Vec<IpAddr> {
        let own = |pod: &IpAddr| self.own.to.contains_key(pod) || self.own.from.contains_key(pod);
        self.pods_behind(|_| true).filter(|pod| !own(pod) && known_pod(known, *pod).is_none()).collect()
    }
}

/// Whether a link has the form of the CNI's for a pod of the main table, where the CNI is certain.
pub(super) fn is_main_pod_link(name: &IfName) -> bool {
    may_be_pod_link(name) && !is_branch_pod_link(name)
}

/// What to save of an existing pod: its own rules, or the earlier ones if these are among them; `None` if it has none.
pub(super) fn to_known_pod(
    pod: IpAddr,
    dev: &Dev,
    own: &CniRulesOfPods,
    before: Option<&KnownPod>,
) -> Option<KnownPod> {
    let link = known_link(dev.index, &dev.name)?;
    let from = own.from.get(&pod).map_or(&[][..], Vec::as_slice);
    let fits = |known: &&KnownPod| known.link == link && from.iter().all(|rule| known.rules.contains(&from_pod(rule)));
    if let Some(known) = before.filter(fits) {
        return Some(known.clone());
    }
    let rules = || from.iter().map(|rule| from_pod(rule)).collect();
    (!from.is_empty() || own.to.contains_key(&pod)).then(|| KnownPod { address: pod, link, rules: rules() })
}

/// A saved pod.
pub fn known_pod(memory: &CniMemory, pod: IpAddr) -> Option<&KnownPod> {
    let at = memory.pods.binary_search_by(|known| known.address.cmp(&pod)).ok()?;
    memory.pods.get(at)
}

fn known_link(index: u32, name: &IfName) -> Option<KnownLink> {
    Some(KnownLink { index, name: std::str::from_utf8(name.as_bytes()).ok()?.to_owned() })
}

fn from_pod(rule: &Rule) -> FromPod {
    FromPod { priority: rule.priority, table: rule.table, to: rule.selector.to }
}

/// The rule for packets from a pod.
pub(super) fn rule_from(pod: IpAddr, FromPod { priority, table, to }: &FromPod) -> Rule {
    let selector = Selector { from: Some(IpCidr::new_host(pod)), to: *to, ..EVERYTHING };
    Rule { family: Family::of(pod), priority: *priority, selector, table: *table, protocol: PROTO_RESTORED }
}

/// The rule for packets to a pod.
pub fn to_pod(pod: IpAddr) -> Rule {
    let selector = Selector { to: Some(IpCidr::new_host(pod)), ..EVERYTHING };
    Rule { family: Family::of(pod), priority: TO_POD, selector, table: TABLE_MAIN, protocol: PROTO_RESTORED }
}

/// A saved rule; `None` if it is not one of the VPC CNI's.
pub fn to_rule(known: &KnownRule) -> Option<(Rule, Purpose)> {
    let KnownRule { family, priority, table, from, to, link } = known;
    let selector = Selector {
        from: from.map(IpCidr::new_host),
        to: *to,
        fwmark: (*priority == MARKED).then_some(MARK),
        iif: match link {
            Some(link) if *priority == BRANCH => Some(IfName::new(link.name.as_bytes())?),
            _ => None,
        },
        oif: None,
    };
    let rule = Rule { family: *family, priority: *priority, selector, table: *table, protocol: PROTO_RESTORED };
    let purpose = of_cni(&with_extras(rule.clone()))?.1;
    Some((rule, purpose))
}
