//! Every pod of the node to the default gateway and to every other pod.
//!
//! A thousand pods are a million pairs, but few kinds of pods: pods with the same rules, routes and settings, except for their
//! own address and link, are traced alike. One pair of each two kinds is traced, and stands for all of them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;

use cidr::IpCidr;
use serde::Serialize;

use super::fib::Fib;
use crate::model::{Family, IfName, one_line};
use crate::observed::{Address, SeenRoute};
use crate::sorted;
use crate::topology::pods::Site;

/// Version of the JSON form. Additions raise the second number, everything else the first.
const FORMAT_VERSION: &str = "1.0";
/// Up to so many kinds of pods are traced to each other. If there are more, each is traced to and from the most common one.
pub const MOST_KINDS: usize = 40;

/// Pods of one kind: the first and the second stand for all of them.
pub type Twins = Vec<IpAddr>;

/// Two kinds by their numbers; the second is `None` for what lies beyond the gateway.
pub type Kinds = (usize, Option<usize>);

/// What has been found of all pods of a family.
pub struct TracedPods<'a> {
    fib: &'a Fib,
    sites: &'a BTreeMap<IpAddr, Site>,
    /// The most common one first.
    pub kinds: Vec<Twins>,
    generic: Vec<usize>,
    own: BTreeMap<IpAddr, Vec<usize>>,
    /// What breaks.
    broken: Vec<(Kinds, Breach)>,
}

/// A pair that breaks.
struct Breach {
    pair: [IpAddr; 2],
    problems: Vec<String>,
}

impl<'a> TracedPods<'a> {
    /// Sorts these pods by their kind. `fib` has all routes.
    pub fn new(fib: &'a Fib, sites: &'a BTreeMap<IpAddr, Site>) -> TracedPods<'a> {
        let behind = |name: &IfName| {
            let link = fib.links.iter().find(|link| link.dev.name == *name)?.dev.index;
            sites.iter().find(|(_, site)| site.link == link).map(|(pod, _)| *pod)
        };
        let (mut generic, mut own): (Vec<usize>, BTreeMap<IpAddr, Vec<usize>>) = Default::default();
        for (at, rule) in fib.rules.iter().enumerate() {
            let selector = &rule.rule.selector;
            let hosts = [selector.from, selector.to].into_iter().flatten().filter(|it| it.is_host_address());
            let of_link = selector.iif.as_ref().and_then(behind);
            let mut whose = hosts.map(|it| it.first_address()).chain(of_link).peekable();
            if whose.peek().is_none() {
                generic.push(at);
            }
            whose.for_each(|pod| own.entry(pod).or_default().push(at));
        }
        let mut pods = TracedPods { fib, sites, kinds: Vec::new(), generic, own, broken: Vec::new() };
        let mut kinds: BTreeMap<String, Twins> = BTreeMap::new();
        let (mut to_hosts, mut wide): (BTreeMap<IpAddr, Vec<usize>>, Vec<&SeenRoute>) = Default::default();
        for (at, route) in fib.routes.iter().enumerate() {
            match route.to.is_host_address() {
                true => to_hosts.entry(route.to.first_address()).or_default().push(at),
                false => wide.push(route),
            }
        }
        for (pod, site) in sites {
            let own = to_hosts.get(pod).map_or(&[][..], Vec::as_slice);
            let own: Vec<&SeenRoute> = own.iter().filter_map(|at| fib.routes.get(*at)).collect();
            kinds.entry(pods.signature(*pod, site, &own, &wide)).or_default().push(*pod);
        }
        pods.kinds = sorted::list(kinds.into_values(), |a, b| b.len().cmp(&a.len()));
        pods
    }

    /// All that decides about a pod's packets, without its address and the name of its link.
    fn signature(&self, pod: IpAddr, site: &Site, own: &[&SeenRoute], wide: &[&SeenRoute]) -> String {
        let mut text = format!("{} {}", site.table, site.by_host_route);
        let (link, conf) = (self.fib.link(site.link), self.fib.conf(site.link).copied().unwrap_or_default());
        let mut bits: Vec<bool> = vec![conf.forwarding, conf.accept_local, conf.force_forwarding];
        bits.extend(link.into_iter().flat_map(|link| [link.up, link.carrier, link.vrf.is_some()]));
        bits.extend(self.fib.addresses.iter().filter(|it| it.local == pod).map(|_| true));
        let is_carrier = |it: &&Address| it.index == site.link && it.local.is_ipv4();
        bits.push(self.fib.addresses.iter().find(is_carrier).is_some());
        let (group, vrf) = link.map_or((0, 0), |link| (link.group, link.vrf.unwrap_or(0)));
        let _ = write!(text, " {} {group} {vrf}", conf.rp_filter);
        // What names the pod or its link alone is the same for all pods of the kind.
        let name = self.fib.name(site.link);
        let mut add = |line: String| {
            let line = line.replace(&format!(" {pod} "), " POD ").replace(&format!(" {name} "), " LINK ");
            text += &line;
        };
        for at in self.own.get(&pod).into_iter().flatten() {
            let Some(rule) = self.fib.rules.get(*at) else { continue };
            let rank = self.generic.partition_point(|generic| generic < at);
            add(format!("|{rank} {} {rule} ", rule.rule.priority));
        }
        own.iter().for_each(|route| add(format!("| {} ", self.fib.show(route))));
        for at in &self.generic {
            let selector = self.fib.rules.get(*at).map(|rule| &rule.rule.selector);
            let holds = |prefix: Option<IpCidr>| prefix.is_some_and(|prefix| prefix.contains(&pod));
            bits.extend(selector.into_iter().flat_map(|it| [holds(it.from), holds(it.to)]));
        }
        bits.extend(wide.iter().map(|route| route.to.contains(&pod)));
        text.extend(bits.into_iter().map(|bit| if bit { '1' } else { '0' }));
        text
    }

    /// The node as far as it matters to these two addresses.
    pub fn around(&self, pair: [IpAddr; 2]) -> Fib {
        let own = pair.iter().flat_map(|address| self.own.get(address).into_iter().flatten());
        let mut rules = sorted::list(self.generic.iter().chain(own).copied(), Ord::cmp);
        rules.dedup();
        let routes = self.fib.routes.iter().filter(|route| pair.iter().any(|address| route.to.contains(address)));
        Fib {
            rules: rules.into_iter().filter_map(|at| self.fib.rules.get(at)).cloned().collect(),
            routes: routes.cloned().collect(),
            ..self.fib.clone()
        }
    }

    /// The pairs that stand for all: kinds, and addresses. `beyond` lies behind the default gateway.
    pub fn pairs(&self, beyond: Option<IpAddr>) -> Vec<(Kinds, [IpAddr; 2])> {
        let mut pairs = Vec::new();
        for (a, from) in self.kinds.iter().enumerate() {
            let Some(first) = from.first() else { continue };
            pairs.extend(beyond.map(|beyond| ((a, None), [*first, beyond])));
            for (b, to) in self.kinds.iter().enumerate().filter(|(b, _)| self.kinds.len() <= MOST_KINDS || a * b == 0) {
                let other = if a == b { to.get(1) } else { to.first() };
                pairs.extend(other.map(|other| ((a, Some(b)), [*first, *other])));
            }
        }
        pairs
    }

    /// Takes what breaks between two kinds.
    pub fn take(&mut self, kinds: Kinds, pair: [IpAddr; 2], problems: Vec<String>) {
        if !problems.is_empty() {
            self.broken.push((kinds, Breach { pair, problems }));
        }
    }

    /// How many pairs were not traced.
    fn untraced(&self) -> usize {
        let rest: usize = self.kinds.iter().skip(1).map(Vec::len).sum();
        if self.kinds.len() > MOST_KINDS { rest * rest.saturating_sub(1) } else { 0 }
    }

    fn breaks(&self, kinds: Kinds) -> bool {
        self.broken.iter().any(|(broken, _)| *broken == kinds)
    }

    /// One row for each pod.
    fn rows(&self, beyond: Option<IpAddr>) -> Vec<PairRow> {
        let mut rows = Vec::new();
        for (a, kind) in self.kinds.iter().enumerate() {
            let reached = |(b, other): (usize, &Twins)| match self.breaks((a, Some(b))) {
                true => 0,
                false => other.len() - usize::from(a == b),
            };
            let works: usize = self.kinds.iter().enumerate().map(reached).sum();
            let gateway = beyond.map(|_| !self.breaks((a, None)));
            rows.extend(kind.iter().map(|pod| PairRow {
                address: pod.to_string(),
                link: self.sites.get(pod).map(|site| self.fib.name(site.link)).unwrap_or_default(),
                gateway,
                pods: works,
                of: self.sites.len().saturating_sub(1),
            }));
        }
        rows
    }

    fn breaches(&self) -> impl Iterator<Item = JsonBreach<'_>> {
        self.broken.iter().map(|((a, b), breach)| {
            let size = |at: usize| self.kinds.get(at).map_or(0, Vec::len);
            let others = b.map_or(1, |b| size(b) - usize::from(b == *a));
            let [from, to] = breach.pair.map(|address| address.to_string());
            JsonBreach { from, to, alike: (size(*a) * others).saturating_sub(1), problems: &breach.problems }
        })
    }
}

#[derive(Serialize)]
struct PairRow {
    address: String,
    link: String,
    /// Whether its packets get out by the default gateway; `None`: there is none.
    gateway: Option<bool>,
    /// How many other pods it reaches.
    pods: usize,
    of: usize,
}

#[derive(Serialize)]
struct JsonBreach<'a> {
    from: String,
    to: String,
    /// How many other pairs break in the same way.
    alike: usize,
    problems: &'a [String],
}

#[derive(Serialize)]
struct PodsJson<'a> {
    format_version: &'static str,
    works: bool,
    /// Pairs that were not traced, because there are too many kinds of pods. They are assumed to work.
    untraced: usize,
    pods: Vec<PairRow>,
    breaks: Vec<JsonBreach<'a>>,
}

/// What was found of one family, and what lies beyond its default gateway.
pub type PodsOfFamily<'a> = (Family, TracedPods<'a>, Option<IpAddr>);

/// Whether every pair works.
pub fn work(all: &[PodsOfFamily]) -> bool {
    all.iter().all(|(_, pods, _)| pods.broken.is_empty())
}

fn untraced(all: &[PodsOfFamily]) -> usize {
    all.iter().map(|(_, pods, _)| pods.untraced()).sum()
}

/// One JSON object on one line.
///
/// # Errors
///
/// None that is known of: every value in it has a JSON form.
pub fn json(all: &[PodsOfFamily]) -> serde_json::Result<String> {
    let pods = all.iter().flat_map(|(_, pods, beyond)| pods.rows(*beyond)).collect();
    let breaks = all.iter().flat_map(|(_, pods, _)| pods.breaches()).collect();
    let (works, untraced) = (work(all), untraced(all));
    Ok(serde_json::to_string(&PodsJson { format_version: FORMAT_VERSION, works, untraced, pods, breaks })? + "\n")
}

/// A table for people: each pod, and below it what breaks.
pub fn text(all: &[PodsOfFamily]) -> String {
    let mut text = String::new();
    for (family, pods, beyond) in all.iter().filter(|(_, pods, _)| !pods.sites.is_empty()) {
        let _ = writeln!(text, "{:<39}  {:<15}  {:<7}  other pods", format!("pod ({family})"), "link", "gateway");
        for row in pods.rows(*beyond) {
            let gateway = row.gateway.map_or("none", |works| if works { "works" } else { "BREAKS" });
            let breaks = if row.pods < row.of { "BREAKS, " } else { "" };
            let _ = writeln!(
                text,
                "{:<39}  {:<15}  {gateway:<7}  {breaks}{} of {}",
                row.address, row.link, row.pods, row.of
            );
        }
        text.push('\n');
        if pods.kinds.len() > MOST_KINDS {
            text += "note: too many kinds of pods to trace every pair; each kind was traced to and from the most common one\n";
        }
        for JsonBreach { from, to, alike, problems } in pods.breaches() {
            for problem in problems {
                let _ = writeln!(text, "breaks: {from} to {to}: {}", one_line(problem));
            }
            if alike > 0 {
                let pairs = if alike == 1 { "pair" } else { "pairs" };
                let _ = writeln!(text, "  and {alike} more {pairs} in the same way");
            }
        }
    }
    text += match all.iter().all(|(_, pods, _)| pods.sites.is_empty()) {
        true => "no pod on this node has a route of its own\n",
        false if work(all) && untraced(all) > 0 => "works: every pod gets out, and no pair that was traced breaks\n",
        false if work(all) => "works: every pod gets out, and reaches every other pod\n",
        false => "",
    };
    text
}
