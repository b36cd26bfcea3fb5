//! What the VPC CNI has set up on a node with its marks: its rules for pods, its tables and its uplinks. Empty on other
//! nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::cni::{FROM_POD, TO_POD, is_branch_link};
use super::owners::is_of_ec2_net_utils;
use super::pods::Site;
use super::{LOOPBACK, Topology, host, is_kernels, sends};
use crate::model::{Family, IfName, PROTO_STATIC, Rule, TABLE_MAIN, UPLINK_RULE_PRIORITY};
use crate::observed::{Gap, SeenRoute};

/// The VPC CNI's rules for pods.
#[derive(Debug, Default)]
pub struct CniRulesOfPods<'a> {
    /// Rules 512, by pod.
    pub to: BTreeMap<IpAddr, &'a Rule>,
    /// Rules 1536, by pod, in the kernel's order.
    pub from: BTreeMap<IpAddr, Vec<&'a Rule>>,
}

/// A secondary uplink of the VPC CNI.
#[derive(Debug)]
pub struct VpcUplink<'a> {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: &'a IfName,
    /// Its tables.
    pub tables: BTreeSet<u32>,
}

impl<'a> CniRulesOfPods<'a> {
    /// Adds one of the VPC CNI's rules for a pod.
    pub fn add(&mut self, pod: IpAddr, rule: &'a Rule) {
        match rule.priority {
            TO_POD => drop(self.to.insert(pod, rule)),
            _ => self.from.entry(pod).or_default().push(rule),
        }
    }
}

impl<'a> Topology<'a> {
    /// The VPC CNI's rules for pods.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn vpc_pod_rules(&self) -> Result<CniRulesOfPods<'a>, Gap> {
        let mut rules = CniRulesOfPods::default();
        if !self.is_vpc_cni()? {
            return Ok(rules);
        }
        for rule in self.rules()? {
            let (source, destination) = (host(rule.selector.from.as_ref()), host(rule.selector.to.as_ref()));
            match (rule.priority, source, destination) {
                (TO_POD, _, Some(pod)) if rule.table == TABLE_MAIN => rules.add(pod, rule),
                (FROM_POD, Some(pod), _) => rules.add(pod, rule),
                _ => {}
            }
        }
        Ok(rules)
    }

    /// The pods with a host route over a link with the VPC CNI's names.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn vpc_pods(&self) -> Result<BTreeMap<IpAddr, Site>, Gap> {
        if !self.is_vpc_cni()? {
            return Ok(BTreeMap::new());
        }
        let links = self.vpc_pod_links()?;
        let mut pods = self.pods()?;
        pods.retain(|_, site| links.contains_key(&site.link));
        Ok(pods)
    }

    /// The tables that the VPC CNI uses for pods and for the addresses of its uplinks.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn vpc_tables(&self) -> Result<BTreeSet<(Family, u32)>, Gap> {
        let mut tables = BTreeSet::new();
        if self.is_vpc_cni()? {
            let of_cni = self.rules()?.filter(|rule| is_of_uplink_table(rule) && sends(rule).is_some());
            tables.extend(of_cni.map(|rule| (rule.family, rule.table)));
        }
        Ok(tables)
    }

    /// The secondary uplinks of the VPC CNI: the links of its tables, and those with the address of a rule 32765, whose
    /// table may be empty.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn vpc_uplinks(&self) -> Result<Vec<VpcUplink<'a>>, Gap> {
        let tables = self.vpc_tables()?;
        self.ask_for_tables(tables.iter().copied())?;
        let mut found: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        for (family, table) in &tables {
            for hop in self.table(*family, *table)?.iter().flat_map(SeenRoute::hops) {
                found.entry(hop.oif.unwrap_or_default()).or_default().insert(*table);
            }
        }
        for rule in self.rules()?.filter(|rule| tables.contains(&(rule.family, rule.table))) {
            let own = host(rule.selector.from.as_ref()).filter(|_| rule.priority == UPLINK_RULE_PRIORITY);
            for index in own.map(|own| self.carriers(own)).transpose()?.unwrap_or_default() {
                found.entry(index).or_default().insert(rule.table);
            }
        }
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let pods = self.vpc_pod_links()?;
        let names = self.names()?;
        let uplink = |(index, tables)| {
            let name = names.get(&index).copied()?;
            let is_uplink = !pods.contains_key(&index) && index != LOOPBACK && !is_branch_link(name);
            is_uplink.then_some(VpcUplink { index, name, tables })
        };
        Ok(found.into_iter().filter_map(uplink).collect())
    }

    /// The links of the main table's defaults that are not secondary uplinks of the VPC CNI.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn first_uplinks(&self) -> Result<BTreeSet<u32>, Gap> {
        let mut first = self.main_exits()?;
        for uplink in self.vpc_uplinks()? {
            first.remove(&uplink.index);
        }
        Ok(first)
    }
}

/// Whether a rule is the VPC CNI's for the table of an uplink. Rules of systemd-networkd belong to another policy, and
/// so do the table numbers of ec2-net-utils, which the VPC CNI never uses.
pub(super) fn is_of_uplink_table(rule: &Rule) -> bool {
    matches!(rule.priority, FROM_POD | UPLINK_RULE_PRIORITY)
        && rule.protocol != PROTO_STATIC
        && !is_kernels(rule.table)
        && !is_of_ec2_net_utils(rule.table)
}
