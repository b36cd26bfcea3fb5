//! Node states for the tables of tests: written as text, answered as the kernel would answer, changed as the
//! kernel would change them.
//!
//! ```text
//! link 3 eth1 10.0.1.10/24 rp=1          (also: down, vrf, kind=dummy; an address: 10.0.1.10/24=171,secondary; a peer: 10.0.0.1>10.9.9.9)
//! bridge 4 br0 mtu=1400                  (also: ours, stp, down, and all of link)
//! sysctl net/ipv4/ip_forward = 1
//! netns fc-1 4711                        (name and inode; also: busy, file)
//! veth 5 vh_1 6                          (index, name, index of the other end)
//! rule 1536 from 10.0.1.100 table 2      (also: to, fwmark, iif, proto; `rule 10 other` is one of others)
//! route 10.0.1.1 dev 3 scope link table 2 (also: via, metric, proto; `special` for blackhole …, `hops 10.0.0.1@2,10.0.0.2@3`)
//! ```

use std::net::IpAddr;
use std::time::Duration;

use cidr::{IpCidr, IpInet};

use crate::change::{Change, Plan};
use crate::desired::Desired;
use crate::memory::{Ledger, Recall};
use crate::nat::{self, FilterTable, Masquerade, SeenNat, SeenTable};
use crate::net::{
    Dev, Family, IfName, PROMOTE, PROTO_DECLARED, Route, Rule, Scope, Selector, SysctlKey, TABLE_MAIN, family_of,
};
use crate::netns::{NetnsId, NetnsName, Occupied, Sandboxes, SeenNetns, Veth};
use crate::observed::{
    Address, Gap, Hop, Link, Look, Observed, RouteSet, RpFilters, SeenBridge, SeenRoute, SeenRule, Target, Want,
};
use crate::pod::{Pod, Pods};
use crate::reconcile::rules::is_taken_for;
use crate::reconcile::sysctls::cascaded;
use crate::sysctl_d::Settings;

/// A configuration of these sections.
pub fn desired(yaml: &str) -> Desired {
    let mut tree: serde_yaml::Value = serde_yaml::from_str(yaml).unwrap();
    tree.as_mapping_mut().unwrap().insert("version".into(), 1.into());
    serde_yaml::from_value(tree).unwrap()
}

/// An observation filled in by hand.
pub fn observed(fill: impl FnOnce(&mut Observed)) -> Observed {
    let mut seen = Observed::default();
    fill(&mut seen);
    seen
}

pub fn link(index: u32, name: &str) -> Link {
    let name = IfName::new(name.as_bytes()).unwrap();
    Link {
        dev: Dev { index, name },
        up: true,
        carrier: true,
        vrf_slave: false,
        hardware: Vec::new(),
        kind: Box::default(),
    }
}

pub fn rule(from: &str, priority: u32, table: u32) -> Rule {
    let from = Some(from.parse().unwrap());
    let selector = Selector { from, to: None, fwmark: None, iif: None, oif: None };
    Rule { family: Family::V4, priority, selector, table, protocol: 0 }
}

/// `default via 10.0.1.1 dev 3 table 2`, the tail of a line `route`.
pub fn route(text: &str) -> SeenRoute {
    let words: Vec<&str> = text.split_whitespace().collect();
    let value = |key| words.iter().position(|word| *word == key).map(|at| words[at + 1]);
    let number = |key| value(key).map(|number: &str| number.parse::<u32>().unwrap());
    let via: Option<IpAddr> = value("via").map(|via| via.parse().unwrap());
    let to = match words[0] {
        "default" => via.map_or(Family::V4, Family::of).everything(),
        "default6" => Family::V6.everything(),
        prefix => prefix.parse().unwrap(),
    };
    SeenRoute {
        table: number("table").unwrap_or(TABLE_MAIN),
        to,
        target: match value("hops") {
            Some(hops) => Target::Hops(hops.split(',').map(hop).collect()),
            None if words.contains(&"special") => Target::Special,
            None => Target::Hop(Hop { via, oif: number("dev") }),
        },
        scope: Some(if value("scope") == Some("link") { Scope::Link } else { Scope::Global }),
        metric: number("metric").unwrap_or(if family_of(&to) == Family::V6 { 1024 } else { 0 }),
        tos: 0,
        source_specific: false,
        onlink: false,
        protocol: number("proto").unwrap_or(3) as u8,
    }
}

/// `10.0.0.1@3`: gateway and interface.
fn hop(text: &str) -> Hop {
    let (via, oif) = text.split_once('@').unwrap();
    Hop { via: Some(via.parse().unwrap()), oif: Some(oif.parse().unwrap()) }
}

fn is_link_local(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn address(index: u32, inet: IpInet, protocol: Option<u8>, secondary: bool) -> Address {
    Address {
        index,
        local: inet.address(),
        length: inet.network_length(),
        has_peer: false,
        subnet: inet.network(),
        global: !is_link_local(inet.address()),
        lasting: true,
        secondary,
        duplicate: false,
        protocol,
        created: Duration::ZERO,
    }
}

/// A node.
#[derive(Debug, Clone)]
pub struct Model {
    pub rules: Vec<SeenRule>,
    pub routes: Vec<SeenRoute>,
    pub links: Vec<Link>,
    pub addresses: Vec<Address>,
    pub bridges: Vec<SeenBridge>,
    /// On each of the links.
    pub links_on: Vec<IfName>,
    pub nat: SeenNat,
    pub filters: Vec<FilterTable>,
    /// Those on PATH.
    pub programs: Vec<&'static str>,
    pub sysctls: Vec<(SysctlKey, String)>,
    /// One that cannot be read.
    pub unreadable: Option<SysctlKey>,
    pub ledger: Ledger,
    pub persisted: Option<String>,
    pub sysctl_files: Settings,
    pub rp_filters: RpFilters,
    /// As it is after a while, where it is another then.
    pub settled: Option<Box<Model>>,
    pub recall: Recall,
    /// Those that answer to a question with labels, and how long it takes to list them.
    pub pods: Look<Vec<Pod>>,
    pub listing: Duration,
    /// Those of the namespace that do not.
    pub other_pods: Vec<Pod>,
    pub namespaces: Vec<SeenNetns>,
    pub occupied: Occupied,
    pub veths: Vec<Veth>,
    pub sandboxes: Look<Sandboxes>,
    /// Everything that a plan has asked for.
    pub asked: Vec<Want>,
    /// How often a plan was begun.
    pub begun: usize,
}

impl Model {
    pub fn new(text: &str) -> Model {
        let mut model = Model {
            rules: Vec::new(),
            routes: Vec::new(),
            links: Vec::new(),
            addresses: Vec::new(),
            bridges: Vec::new(),
            links_on: Vec::new(),
            nat: SeenNat::Table(None),
            filters: Vec::new(),
            programs: vec![nat::PROGRAM],
            sysctls: Vec::new(),
            unreadable: None,
            ledger: Ledger::default(),
            persisted: None,
            sysctl_files: Settings::default(),
            rp_filters: RpFilters { default: 2, ..RpFilters::default() },
            settled: None,
            recall: Recall::default(),
            pods: Ok(Vec::new()),
            listing: Duration::ZERO,
            other_pods: Vec::new(),
            namespaces: Vec::new(),
            occupied: Occupied::new(),
            veths: Vec::new(),
            sandboxes: Ok(Sandboxes::default()),
            asked: Vec::new(),
            begun: 0,
        };
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (kind, rest) = line.split_once(' ').unwrap();
            match kind {
                "link" => model.add_link(rest),
                "bridge" => model.add_bridge(rest),
                "sysctl" => {
                    let (key, value) = rest.split_once(" = ").unwrap();
                    model.sysctls.push((SysctlKey::from_path(key.as_bytes()), value.into()));
                }
                "netns" => model.add_netns(rest),
                "veth" => model.add_veth(rest),
                "rule" => model.add_rule(rest),
                "route" => model.routes.push(route(rest)),
                _ => panic!("{line}"),
            }
        }
        model
    }

    fn add_link(&mut self, text: &str) {
        let words: Vec<&str> = text.split_whitespace().collect();
        let mut link = link(words[0].parse().unwrap(), words[1]);
        link.up = !words.contains(&"down");
        link.vrf_slave = words.contains(&"vrf");
        let kind = words.iter().find_map(|word| word.strip_prefix("kind="));
        link.kind = kind.map_or(Box::default(), |kind| kind.as_bytes().into());
        let index = link.dev.index;
        let addresses = words.iter().filter(|word| word.contains('/')).map(|word| {
            let (inet, more) = word.split_once('=').unwrap_or((word, ""));
            let mut more = more.split(',');
            let protocol = more.clone().find_map(|word| word.parse().ok());
            address(index, inet.parse().unwrap(), protocol, more.any(|word| word == "secondary"))
        });
        self.addresses.extend(addresses);
        self.addresses.extend(words.iter().filter_map(|word| word.split_once('>')).map(|(local, peer)| {
            let own = address(index, local.parse().unwrap(), None, false);
            Address { has_peer: true, subnet: peer.parse().unwrap(), ..own }
        }));
        let rp = words.iter().find_map(|word| word.strip_prefix("rp=")).map_or(2, |rp| rp.parse().unwrap());
        self.rp_filters.links.push((index, rp));
        self.links.push(link);
    }

    fn add_bridge(&mut self, text: &str) {
        let words: Vec<&str> = text.split_whitespace().collect();
        let mtu = words.iter().find_map(|word| word.strip_prefix("mtu=")).map_or(1500, |mtu| mtu.parse().unwrap());
        self.add_link(text);
        let Link { dev, up, .. } = self.links.last().unwrap().clone();
        self.bridges.push(SeenBridge { dev, up, mtu, stp: words.contains(&"stp"), ours: words.contains(&"ours") });
    }

    fn add_netns(&mut self, text: &str) {
        let words: Vec<&str> = text.split_whitespace().collect();
        let id = NetnsId { device: 4, inode: words[1].parse().unwrap(), changed: (0, 0) };
        let name = NetnsName::new(words[0].as_bytes()).unwrap();
        self.namespaces.push(SeenNetns { name, id: (!words.contains(&"file")).then_some(id) });
        if words.contains(&"busy") {
            self.occupied.insert(id, 100);
        }
    }

    fn add_veth(&mut self, text: &str) {
        let words: Vec<&str> = text.split_whitespace().collect();
        let dev = link(words[0].parse().unwrap(), words[1]).dev;
        self.veths.push(Veth { dev, peer: words[2].parse().unwrap() });
    }

    fn add_rule(&mut self, text: &str) {
        let words: Vec<&str> = text.split_whitespace().collect();
        if words.contains(&"other") {
            return self.rules.push(SeenRule::Other { family: Family::V4, priority: words[0].parse().unwrap() });
        }
        let value = |key| words.iter().position(|word| *word == key).map(|at| words[at + 1]);
        let prefix = |key| value(key).map(|prefix: &str| prefix.parse::<IpCidr>().unwrap());
        let (from, to) = (prefix("from"), prefix("to"));
        self.rules.push(SeenRule::Lookup(Rule {
            family: from.or(to).map_or(Family::V4, |prefix| family_of(&prefix)),
            priority: words[0].parse().unwrap(),
            selector: Selector {
                from,
                to,
                fwmark: value("fwmark").map(|mark| match mark.split_once('/') {
                    Some((mark, mask)) => (mark.parse().unwrap(), mask.parse().unwrap()),
                    None => (mark.parse().unwrap(), u32::MAX),
                }),
                iif: value("iif").and_then(|name| IfName::new(name.as_bytes())),
                oif: None,
            },
            table: value("table").unwrap().parse().unwrap(),
            protocol: value("proto").map_or(0, |proto| proto.parse().unwrap()),
        }));
    }

    /// Plans, answering what is asked on the way.
    pub fn plan(&mut self, plan: fn(&Desired, &Observed) -> Result<Plan, Gap>, desired: &Desired) -> Plan {
        self.see(|seen| plan(desired, seen))
    }

    /// Answers a question, and what is asked on the way.
    pub fn see<T>(&mut self, question: impl Fn(&Observed) -> Result<T, Gap>) -> T {
        let mut seen = Observed::default();
        loop {
            self.begun += 1;
            match question(&seen) {
                Ok(answer) => return answer,
                Err(Gap::Unseen(wants)) => wants.into_iter().for_each(|want| self.answer(want, &mut seen)),
                Err(Gap::Failed(why)) => panic!("{why}"),
            }
        }
    }

    /// Looks.
    pub fn answer(&mut self, want: Want, seen: &mut Observed) {
        self.asked.push(want.clone());
        let find = |by: &dyn Fn(&Link) -> bool| Ok(self.links.iter().find(|link| by(link)).cloned());
        match want {
            Want::Rules => seen.rules = Some(Ok(self.rules.clone())),
            Want::RpFilters => seen.rp_filters = Some(Ok(self.rp_filters.clone())),
            Want::Addresses => seen.addresses = Some(Ok(self.addresses.clone())),
            Want::GlobalAddresses => {
                let global = self.addresses.iter().filter(|address| address.global);
                seen.global_addresses = Some(Ok(global.cloned().collect()));
            }
            Want::LinksOn => {
                let on_each = self.links.iter().map(|link| (link.dev.index, self.links_on.clone()));
                seen.links_on = Some(Ok(on_each.collect()));
            }
            Want::Bridges => seen.bridges = Some(Ok(self.bridges.clone())),
            Want::Ledger => seen.ledger = Some(Ok(self.ledger.clone())),
            Want::Nat => seen.nat = Some(Ok(self.nat.clone())),
            Want::Filters => seen.filters = Some(Ok(self.filters.clone())),
            Want::Program(name) => drop(seen.programs.insert(name, Ok(self.programs.contains(&name)))),
            Want::Sysctl(key) => {
                let value = self.sysctls.iter().find(|(it, _)| *it == key).map(|(_, value)| value.clone());
                let closed = self.unreadable.as_ref() == Some(&key);
                seen.sysctls.insert(key, if closed { Err("Input/output error".into()) } else { Ok(value) });
            }
            Want::SysctlNames(directory) => {
                let below = |(key, _): &(SysctlKey, String)| {
                    let path = String::from_utf8(key.path()).unwrap();
                    let rest = path.strip_prefix(&format!("{directory}/"))?;
                    Some(rest.split('/').next()?.as_bytes().into())
                };
                let names = self.sysctls.iter().filter_map(below).collect();
                seen.sysctl_names.insert(directory, Ok(names));
            }
            Want::Persisted => seen.persisted = Some(Ok(self.persisted.clone())),
            Want::SysctlFiles => seen.sysctl_files = Some(Ok(self.sysctl_files.clone())),
            Want::Link(index) => drop(seen.links.insert(index, find(&|link| link.dev.index == index))),
            Want::Name(index) => {
                let found = find(&|link| link.dev.index == index).map(|link| link.map(|link| link.dev.name));
                seen.names.insert(index, found);
            }
            Want::LinkNamed(name) => {
                let found = find(&|link| link.dev.name == name);
                seen.links_named.insert(name, found);
            }
            Want::Settle(_) => seen.settled = Some(Ok(Box::default())),
            Want::Later(want) => {
                let mut later = self.settled.as_deref().unwrap_or(self).clone();
                if let Some(Ok(settled)) = &mut seen.settled {
                    later.answer(*want, settled);
                }
            }
            Want::Recall => seen.recall = Some(Ok(self.recall.clone())),
            Want::Pods(query) => {
                let all = |mut pods: Vec<Pod>| {
                    pods.extend(self.other_pods.iter().filter(|_| query.labels.is_empty()).cloned());
                    Pods { pods, listed: self.recall.wall + self.listing }
                };
                let pods = self.pods.clone().map(all);
                seen.pods.insert(query, pods);
            }
            Want::Namespaces => seen.namespaces = Some(Ok(self.namespaces.clone())),
            Want::Occupied => seen.occupied = Some(Ok(self.occupied.clone())),
            Want::Veths(names) => {
                let named = self.veths.iter().filter(|veth| names.is_match(veth.dev.name.as_bytes()));
                let veths = named.cloned().collect();
                seen.veths.insert(names, Ok(veths));
            }
            Want::Sandboxes(_) => seen.sandboxes = Some(self.sandboxes.clone()),
            Want::Routes(set) => {
                let inside = |route: &&SeenRoute| match set {
                    RouteSet::Table(family, table) => family_of(&route.to) == family && route.table == table,
                    RouteSet::Protocol(family, proto) => family_of(&route.to) == family && route.protocol == proto,
                    RouteSet::Defaults(family) => {
                        let in_main = family_of(&route.to) == family && route.table == TABLE_MAIN;
                        in_main && route.is_of_default_class()
                    }
                };
                let routes = self.routes.iter().filter(inside).cloned().collect();
                seen.routes.insert(set, Ok(routes));
            }
        }
    }

    /// The sysctls that a change writes, in order.
    pub fn writes(&self, change: &Change) -> Vec<(SysctlKey, String)> {
        let Change::SetSysctl { key, value, first, then, .. } = change else { return Vec::new() };
        let own = [(key.clone(), value.clone())];
        first.iter().chain(&own).chain(then).cloned().collect()
    }

    /// Writes a sysctl, and with it those that follow.
    pub fn write(&mut self, key: &SysctlKey, value: &str) {
        let path = |key: &SysctlKey| String::from_utf8(key.path()).unwrap();
        for (it, live) in &mut self.sysctls {
            if let Some(value) = cascaded(&path(key), value, &path(it)) {
                *live = value;
            }
        }
        self.sysctls.iter_mut().find(|(it, _)| it == key).unwrap().1 = value.into();
    }

    /// Does what the kernel would do.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::AddRoute(route) => {
                let new = as_seen(route);
                let key = |it: &SeenRoute| (it.table, it.to, it.metric, it.tos);
                assert!(!self.routes.iter().any(|it| key(it) == key(&new)), "{change}: File exists");
                self.routes.push(new);
            }
            Change::ReplaceRoute { new, .. } => {
                let new = as_seen(new);
                let old = |it: &&mut SeenRoute| (it.table, it.to, it.metric) == (new.table, new.to, new.metric);
                *self.routes.iter_mut().find(old).unwrap() = new.clone();
            }
            Change::DeleteRoute(route) => {
                let gone = as_seen(route);
                self.routes.retain(|route| *route != gone);
            }
            Change::AddRule(rule) => self.rules.push(SeenRule::Lookup(rule.clone())),
            Change::DeleteRule(rule) => {
                let found = self.rules.iter().position(|it| it.lookup().is_some_and(|it| is_taken_for(it, rule)));
                self.rules.remove(found.unwrap());
            }
            Change::AddAddress(dev, inet) => {
                let index = self.links.iter().find(|link| link.dev.name == *dev).unwrap().dev.index;
                let secondary = self.addresses.iter().any(|it| is_first(it, index, inet));
                self.addresses.push(address(index, *inet, Some(PROTO_DECLARED), secondary));
            }
            Change::DeleteAddress { dev, address: inet, promote } => {
                let index = self.links.iter().find(|link| link.dev.name == *dev).unwrap().dev.index;
                let is_it =
                    |it: &Address| (it.index, it.local, it.length) == (index, inet.address(), inet.network_length());
                let at = self.addresses.iter().position(is_it).unwrap();
                let gone = self.addresses.remove(at);
                let behind = |it: &Address| it.secondary && (it.index, it.subnet) == (index, gone.subnet);
                let keys = [SysctlKey::conf_of_all(PROMOTE), SysctlKey::conf_of(dev, PROMOTE)];
                let set = self.sysctls.iter().any(|(key, value)| keys.contains(key) && value == "1");
                match () {
                    () if !is_first(&gone, index, inet) => {}
                    () if *promote || set => {
                        self.addresses.iter_mut().find(|it| behind(it)).into_iter().for_each(|it| it.secondary = false);
                    }
                    () => self.addresses.retain(|it| !behind(it)),
                }
            }
            Change::AddBridge(bridge) => {
                let name = bridge.name.clone();
                let dev = Dev { index: 100 + self.links.len() as u32, name };
                self.links.push(Link { kind: Box::from(&b"bridge"[..]), ..link(dev.index, "br") });
                self.links.last_mut().unwrap().dev = dev.clone();
                let (mtu, stp) = (bridge.mtu.unwrap_or(1500), bridge.stp.unwrap_or(false));
                self.bridges.push(SeenBridge { dev, up: bridge.up, mtu, stp, ours: true });
            }
            Change::SetBridge { new, .. } => {
                let bridge = self.bridges.iter_mut().find(|it| it.dev.name == new.name).unwrap();
                bridge.up = new.up;
                bridge.mtu = new.mtu.unwrap_or(bridge.mtu);
                bridge.stp = new.stp.unwrap_or(bridge.stp);
            }
            Change::DeleteBridge(bridge) => {
                self.links.retain(|it| it.dev.name != bridge.name);
                self.bridges.retain(|it| it.dev.name != bridge.name);
            }
            Change::SetMasquerade { rules, .. } => {
                self.nat = SeenNat::Table(Some(seen_table(rules)));
            }
            Change::DeleteMasquerade => self.nat = SeenNat::Table(None),
            Change::Persist { new, .. } => self.persisted = new.clone(),
            Change::SetSysctl { key, .. } if self.sysctls.iter().any(|(it, _)| it == key) => {
                self.writes(change).iter().for_each(|(key, value)| self.write(key, value));
            }
            Change::SetSysctl { key, value, .. } => {
                let value = value.parse().unwrap();
                let named = |link: &&Link| SysctlKey::rp_filter(&link.dev.name) == *key;
                match self.links.iter().find(named).map(|link| link.dev.index) {
                    None => self.rp_filters.default = value,
                    Some(index) => self.rp_filters.links.iter_mut().find(|(it, _)| *it == index).unwrap().1 = value,
                }
            }
            Change::DeleteNetns(name, _) => self.namespaces.retain(|it| it.name != *name),
            Change::DeleteVeth(gone, _) => self.veths.retain(|it| it.dev != gone.dev && it.dev.index != gone.peer),
            Change::RestartPod(restart) => self.recall.memory.kube_proxy = restart.ended.clone(),
        }
    }
}

/// Whether it is the first IPv4 address of this subnet on the interface.
fn is_first(it: &Address, index: u32, inet: &IpInet) -> bool {
    inet.is_ipv4() && !it.secondary && (it.index, it.subnet) == (index, inet.network())
}

fn as_seen(route: &Route) -> SeenRoute {
    SeenRoute::of(route, route.dev.as_ref().map(|dev| dev.index))
}

/// The nftables table as it is with these rules.
pub fn seen_table(rules: &[Masquerade]) -> SeenTable {
    SeenTable { whole: true, rules: rules.iter().map(Masquerade::conditions).collect() }
}
