//! Node states for the tables of tests: written as text, answered as the kernel would answer, changed as the
//! kernel would change them.
//!
//! ```text
//! link 3 eth1 10.0.1.10/24 rp=1          (also: down, vrf, kind=dummy, mtu=9001, master=4; an address: 10.0.1.10/24=171,secondary; a peer: 10.0.0.1>10.9.9.9)
//! bridge 4 br0 mtu=1400                  (also: ours, stp, vlans, down, and all of link)
//! sysctl net/ipv4/ip_forward = 1
//! netns fc-1 4711                        (name and inode; also: busy, file)
//! veth 5 vh_1 6                          (index, name, index of the other end)
//! rule 1536 from 10.0.1.100 table 2      (also: to, fwmark, iif, proto; `rule 10 other` is one of others)
//! route 10.0.1.1 dev 3 scope link table 2 (also: via, metric, proto; `special` for blackhole …, `hops 10.0.0.1@2,10.0.0.2@3`)
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use cidr::{IpCidr, IpInet};

use crate::change::{Change, Op, Plan, Step, When};
use crate::config::{Config, Pattern};
use crate::history::cni_rules::{CniMemory, SavedRules};
use crate::history::memory::{Ledger, Recall};
use crate::model::masquerade::{self, FilterTable, Masquerade, SeenNat, SeenTable};
use crate::model::netns::{NetnsId, NetnsName, Occupied, Sandboxes, SeenNetns, Veth};
use crate::model::pod::{Pod, PodQuery, Pods};
use crate::model::{
    Dev, EVERYTHING, Family, IfAddress, IfName, LinkKind, LinkSettings, PROMOTE, PROTO_DECLARED, Route, RouteOptions,
    Rule, Scope, Selector, SysctlKey, SysctlWrite, TABLE_MAIN, family_of,
};
use crate::observed::{
    Address, Gap, Link, Look, LookAt, Observed, Past, RouteSet, RpFilters, RuleAction, RuleExtras, SeenBridge, SeenHop,
    SeenRoute, SeenRule, Special, Target, Want,
};
use crate::reconcile::ALL;
use crate::reconcile::rules::is_taken_for;
use crate::reconcile::sysctls::cascaded;
use crate::sysctl_d::Settings;
use crate::topology::pods::is_to_host;

/// A configuration of these sections.
pub fn desired(yaml: &str) -> Config {
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
        mtu: 1500,
        master: None,
        vrf: None,
        vrf_table: None,
        group: 0,
        hardware: Vec::new(),
        kind: Box::default(),
    }
}

pub fn rule(from: &str, priority: u32, table: u32) -> Rule {
    let from = Some(from.parse().unwrap());
    let selector = Selector { from, to: None, fwmark: None, iif: None, oif: None };
    Rule { family: Family::V4, priority, selector, table, protocol: 0 }
}

/// A rule that does something else than to look into a table.
pub fn other_rule(priority: u32) -> SeenRule {
    let extras = Some(Box::new(RuleExtras::new(RuleAction::Prohibit)));
    SeenRule { rule: Rule { family: Family::V4, priority, selector: EVERYTHING, table: 0, protocol: 0 }, extras }
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
            None if words.contains(&"special") => Target::Special(Special::Local, Vec::new()),
            None => Target::SeenHop(SeenHop::new(via, number("dev"))),
        },
        scope: Some(if value("scope") == Some("link") { Scope::Link } else { Scope::Global }),
        metric: number("metric").unwrap_or(if family_of(&to) == Family::V6 { 1024 } else { 0 }),
        tos: 0,
        from: None,
        nexthop: None,
        options: RouteOptions::default(),
        odd: false,
        protocol: number("proto").unwrap_or(3) as u8,
    }
}

/// `10.0.0.1@3`: gateway and interface.
fn hop(text: &str) -> SeenHop {
    let (via, oif) = text.split_once('@').unwrap();
    SeenHop::new(Some(via.parse().unwrap()), Some(oif.parse().unwrap()))
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
    pub cni_memory: CniMemory,
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
            programs: vec![masquerade::PROGRAM],
            sysctls: Vec::new(),
            unreadable: None,
            ledger: Ledger::default(),
            persisted: None,
            sysctl_files: Settings::default(),
            rp_filters: RpFilters { default: 2, ..RpFilters::default() },
            settled: None,
            recall: Recall::default(),
            cni_memory: CniMemory::default(),
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
        link.vrf = words.contains(&"vrf").then_some(99);
        let number = |key| words.iter().find_map(|word| word.strip_prefix(key)).map(|it| it.parse().unwrap());
        link.mtu = number("mtu=").unwrap_or(1500);
        link.master = number("master=");
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
        let [stp, vlan_filtering, ours] = ["stp", "vlans", "ours"].map(|word| words.contains(&word));
        self.bridges.push(SeenBridge { dev, up, mtu, stp, vlan_filtering, ours });
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
            return self.rules.push(other_rule(words[0].parse().unwrap()));
        }
        let value = |key| words.iter().position(|word| *word == key).map(|at| words[at + 1]);
        let prefix = |key| value(key).map(|prefix: &str| prefix.parse::<IpCidr>().unwrap());
        let (from, to) = (prefix("from"), prefix("to"));
        let table = value("table").unwrap().parse().unwrap();
        let ip_protocol = value("ipproto").map(|it| it.parse().unwrap());
        let extras = || RuleExtras { ip_protocol, ..RuleExtras::new(RuleAction::Lookup(table)) };
        let extras = ip_protocol.map(|_| Box::new(extras()));
        let rule = Rule {
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
            table,
            protocol: value("proto").map_or(0, |proto| proto.parse().unwrap()),
        };
        self.rules.push(SeenRule { rule, extras });
    }

    /// Plans, answering what is asked on the way.
    pub fn plan(&mut self, plan: fn(&Config, &Observed) -> Result<Plan, Gap>, desired: &Config) -> Plan {
        self.see(|seen| plan(desired, seen))
    }

    /// Plans a section as the engine does, with the note of what it leaves.
    pub fn plan_section(&mut self, section: &str, desired: &Config) -> Plan {
        let reconciler = ALL.iter().find(|it| it.name == section).expect("a section");
        self.see(|seen| reconciler.plan(desired, seen))
    }

    /// Makes a step, and remembers it.
    pub fn make(&mut self, step: &Step) {
        self.apply(&step.change);
        for (_, note) in step.notes.iter().filter(|(when, _)| *when == When::Applied) {
            self.recall.memory.take(note.clone(), self.recall.boot);
        }
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
        match (want, &mut seen.settled) {
            (Want::Later(want), Some(Ok(settled))) => {
                self.settled.as_deref().unwrap_or(self).clone().answer(*want, settled)
            }
            (want, _) => {
                let mut kept = Kept {
                    ledger: self.ledger.clone(),
                    recall: self.recall.clone(),
                    cni_memory: SavedRules::from(&self.cni_memory),
                };
                seen.look(want, self, &mut kept);
            }
        }
    }

    /// The sysctls that a change writes, in order.
    pub fn writes(&self, change: &Change) -> Vec<(SysctlKey, String)> {
        let Change::Sysctl(write) = change else { return Vec::new() };
        let own = [(write.key.clone(), write.value.clone())];
        write.pin_before.iter().chain(&own).chain(&write.restore_after).cloned().collect()
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

    fn index_of(&self, name: &IfName) -> u32 {
        self.links.iter().find(|link| link.dev.name == *name).unwrap().dev.index
    }

    /// Does what the kernel would do.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::Route(op) => self.apply_route(op),
            Change::Rule(op) => self.apply_rule(op),
            Change::Address(op) => self.apply_address(op),
            Change::Link(op) => self.apply_link(op),
            Change::Masquerade(Op::Add(rules) | Op::Replace { new: rules, .. }) => {
                self.nat = SeenNat::Table(Some(seen_table(rules)));
            }
            Change::Masquerade(Op::Delete(())) => self.nat = SeenNat::Table(None),
            Change::File(Op::Add(new) | Op::Replace { new, .. }) => self.persisted = Some(new.0.clone()),
            Change::File(Op::Delete(_)) => self.persisted = None,
            Change::Sysctl(write) if self.sysctls.iter().any(|(it, _)| *it == write.key) => {
                self.writes(change).iter().for_each(|(key, value)| self.write(key, value));
            }
            Change::Sysctl(SysctlWrite { key, value, .. }) => {
                let value = value.parse().unwrap();
                let named = |link: &&Link| SysctlKey::rp_filter(&link.dev.name) == *key;
                match self.links.iter().find(named).map(|link| link.dev.index) {
                    None => self.rp_filters.default = value,
                    Some(index) => self.rp_filters.links.iter_mut().find(|(it, _)| *it == index).unwrap().1 = value,
                }
            }
            Change::DeleteNetns(name, _) => self.namespaces.retain(|it| it.name != *name),
            Change::DeleteVeth(gone, _) => self.veths.retain(|it| it.dev != gone.dev && it.dev.index != gone.peer),
            Change::RestartPod(_) => {}
        }
    }

    fn apply_rule(&mut self, op: &Op<SeenRule>) {
        let is_same =
            |it: &SeenRule, rule: &SeenRule| it.identity() == rule.identity() && it.rule.protocol == rule.rule.protocol;
        let (new, old) = match op {
            Op::Add(new) => (Some(new), None),
            Op::Delete(old) => (None, Some(old)),
            Op::Replace { new, old } => (Some(new), Some(old)),
        };
        if let Some(new) = new {
            assert!(old.is_some() || !self.rules.iter().any(|it| is_same(it, new)), "{op}: File exists");
            self.rules.push(new.clone());
        }
        if let Some(old) = old {
            let found = self.rules.iter().position(|it| is_taken_for(it, old));
            self.rules.remove(found.unwrap());
        }
    }

    fn apply_route(&mut self, op: &Op<Route>) {
        match op {
            Op::Add(route) => {
                let new = as_seen(route);
                let key = |it: &SeenRoute| (it.table, it.to, it.metric, it.tos);
                assert!(!self.routes.iter().any(|it| key(it) == key(&new)), "{op}: File exists");
                self.routes.push(new);
            }
            Op::Replace { new, .. } => {
                let new = as_seen(new);
                let old = |it: &&mut SeenRoute| (it.table, it.to, it.metric) == (new.table, new.to, new.metric);
                *self.routes.iter_mut().find(old).unwrap() = new.clone();
            }
            Op::Delete(route) => {
                let gone = as_seen(route);
                self.routes.retain(|route| *route != gone);
            }
        }
    }

    fn apply_address(&mut self, op: &Op<IfAddress>) {
        match op {
            Op::Add(IfAddress { dev, inet, .. }) => {
                let index = self.index_of(dev);
                let secondary = self.addresses.iter().any(|it| is_first(it, index, inet));
                self.addresses.push(address(index, *inet, Some(PROTO_DECLARED), secondary));
            }
            Op::Delete(IfAddress { dev, inet, promote }) => {
                let index = self.index_of(dev);
                let is_it =
                    |it: &Address| (it.index, it.local, it.length) == (index, inet.address(), inet.network_length());
                let at = self.addresses.iter().position(is_it).unwrap();
                let gone = self.addresses.remove(at);
                let behind = |it: &Address| it.secondary && (it.index, it.subnet) == (index, gone.subnet);
                let keys = [SysctlKey::conf_of_all(PROMOTE), SysctlKey::conf_of(dev, PROMOTE)];
                let set = self.sysctls.iter().any(|(key, value)| keys.contains(key) && value == "1");
                if !is_first(&gone, index, inet) {
                    // The others do not hang on it.
                } else if *promote || set {
                    self.addresses.iter_mut().find(|it| behind(it)).into_iter().for_each(|it| it.secondary = false);
                } else {
                    self.addresses.retain(|it| !behind(it));
                }
            }
            Op::Replace { .. } => panic!("{op}"),
        }
    }

    fn apply_link(&mut self, op: &Op<LinkSettings>) {
        match op {
            Op::Add(bridge) => {
                let name = bridge.name.clone();
                let dev = Dev { index: 100 + self.links.len() as u32, name };
                self.links.push(Link { kind: Box::from(&b"bridge"[..]), ..link(dev.index, "br") });
                self.links.last_mut().unwrap().dev = dev.clone();
                let (mtu, stp) = (bridge.mtu.unwrap_or(1500), bridge.stp.unwrap_or(false));
                let (up, vlan_filtering) = (bridge.up == Some(true), bridge.vlan_filtering.unwrap_or(false));
                self.bridges.push(SeenBridge { dev, up, mtu, stp, vlan_filtering, ours: true });
            }
            Op::Replace { new, .. } if new.kind == LinkKind::Other => {
                let master = new.port_of.as_ref().map(|bridge| bridge.as_ref().map(|name| self.index_of(name)));
                let link = self.links.iter_mut().find(|it| it.dev.name == new.name).unwrap();
                link.mtu = new.mtu.unwrap_or(link.mtu);
                link.master = master.unwrap_or(link.master);
            }
            Op::Replace { new, .. } => {
                let bridge = self.bridges.iter_mut().find(|it| it.dev.name == new.name).unwrap();
                bridge.up = new.up.unwrap_or(bridge.up);
                bridge.mtu = new.mtu.unwrap_or(bridge.mtu);
                bridge.stp = new.stp.unwrap_or(bridge.stp);
                bridge.vlan_filtering = new.vlan_filtering.unwrap_or(bridge.vlan_filtering);
            }
            Op::Delete(bridge) => {
                self.links.retain(|it| it.dev.name != bridge.name);
                self.bridges.retain(|it| it.dev.name != bridge.name);
            }
        }
    }
}

/// Looks that are answered with what the field of the same name holds.
macro_rules! held {
    ($($field:ident: $answer:ty,)*) => {
        $( fn $field(&mut self) -> anyhow::Result<$answer> { Ok(self.$field.clone()) } )*
    };
}

impl LookAt for Model {
    held! {
        rules: Vec<SeenRule>,
        rp_filters: RpFilters,
        addresses: Vec<Address>,
        bridges: Vec<SeenBridge>,
        nat: SeenNat,
        filters: Vec<FilterTable>,
        persisted: Option<String>,
        sysctl_files: Settings,
        namespaces: Vec<SeenNetns>,
        occupied: Occupied,
    }

    fn global_addresses(&mut self) -> anyhow::Result<Vec<Address>> {
        Ok(self.addresses.iter().filter(|address| address.global).cloned().collect())
    }

    fn links_on(&mut self) -> anyhow::Result<BTreeMap<u32, Vec<IfName>>> {
        // A tunnel that is bound to no link stands under 0.
        Ok([0]
            .into_iter()
            .chain(self.links.iter().map(|link| link.dev.index))
            .map(|it| (it, self.links_on.clone()))
            .collect())
    }

    fn routes(&mut self, set: &RouteSet) -> anyhow::Result<Vec<SeenRoute>> {
        let inside = |route: &&SeenRoute| match set {
            RouteSet::Table(family, table) => family_of(&route.to) == *family && route.table == *table,
            RouteSet::Protocol(family, proto) => family_of(&route.to) == *family && route.protocol == *proto,
            RouteSet::Defaults(family) => {
                let in_main = family_of(&route.to) == *family && route.table == TABLE_MAIN;
                in_main && route.is_of_default_class()
            }
        };
        Ok(self.routes.iter().filter(inside).cloned().collect())
    }

    fn links(&mut self, index: &u32) -> anyhow::Result<Option<Link>> {
        Ok(self.links.iter().find(|link| link.dev.index == *index).cloned())
    }

    fn names(&mut self, index: &u32) -> anyhow::Result<Option<IfName>> {
        Ok(LookAt::links(self, index)?.map(|link| link.dev.name))
    }

    fn host_links(&mut self, address: &IpAddr) -> anyhow::Result<Option<Dev>> {
        let leads =
            |route: &&SeenRoute| route.table == TABLE_MAIN && is_to_host(route) && route.to.first_address() == *address;
        let index = self.routes.iter().find(leads).and_then(SeenRoute::oif).unwrap_or_default();
        Ok(LookAt::names(self, &index)?.map(|name| Dev { index, name }))
    }

    fn links_named(&mut self, name: &IfName) -> anyhow::Result<Option<Link>> {
        Ok(self.links.iter().find(|link| link.dev.name == *name).cloned())
    }

    fn programs(&mut self, name: &&'static str) -> anyhow::Result<bool> {
        Ok(self.programs.contains(name))
    }

    fn sysctls(&mut self, key: &SysctlKey) -> anyhow::Result<Option<String>> {
        anyhow::ensure!(self.unreadable.as_ref() != Some(key), "Input/output error");
        Ok(self.sysctls.iter().find(|(it, _)| it == key).map(|(_, value)| value.clone()))
    }

    fn sysctl_names(&mut self, directory: &String) -> anyhow::Result<Vec<Box<[u8]>>> {
        let below = |(key, _): &(SysctlKey, String)| {
            let path = String::from_utf8(key.path()).unwrap();
            let rest = path.strip_prefix(&format!("{directory}/"))?;
            Some(rest.split('/').next()?.as_bytes().into())
        };
        if self.sysctls.is_empty() && directory == "net/ipv4/conf" {
            return Ok(self.links.iter().map(|link| link.dev.name.as_bytes().into()).collect());
        }
        Ok(self.sysctls.iter().filter_map(below).collect())
    }

    fn pods(&mut self, query: &PodQuery) -> anyhow::Result<Pods> {
        let mut pods = self.pods.clone().map_err(anyhow::Error::msg)?;
        pods.extend(self.other_pods.iter().filter(|_| query.labels.is_empty()).cloned());
        Ok(Pods { pods, listed: self.recall.wall + self.listing })
    }

    fn veths(&mut self, names: &Pattern) -> anyhow::Result<Vec<Veth>> {
        Ok(self.veths.iter().filter(|veth| names.is_match(veth.dev.name.as_bytes())).cloned().collect())
    }

    fn sandboxes(&mut self, _: &PodQuery) -> anyhow::Result<Sandboxes> {
        self.sandboxes.clone().map_err(anyhow::Error::msg)
    }
}

/// What a model remembers, as it is asked for.
struct Kept {
    ledger: Ledger,
    recall: Recall,
    cni_memory: SavedRules,
}

impl Past for Kept {
    held! {
        ledger: Ledger,
        recall: Recall,
        cni_memory: SavedRules,
    }

    fn settle(&mut self, _: Duration) -> anyhow::Result<()> {
        Ok(())
    }
}

/// Whether it is the first IPv4 address of this subnet on the interface.
fn is_first(it: &Address, index: u32, inet: &IpInet) -> bool {
    inet.is_ipv4() && !it.secondary && (it.index, it.subnet) == (index, inet.network())
}

fn as_seen(route: &Route) -> SeenRoute {
    SeenRoute::of(route)
}

/// The nftables table as it is with these rules.
pub fn seen_table(rules: &[Masquerade]) -> SeenTable {
    SeenTable { whole: true, rules: rules.iter().map(Masquerade::conditions).collect() }
}
