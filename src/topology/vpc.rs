//! What the VPC CNI has set up on a node that carries its marks: its rules by pod, its tables and its uplinks. On
//! other nodes there is none of it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::cni::{FROM_POD, TO_POD, is_branch_link};
use super::owners::{Owner, is_of_ec2_net_utils};
use super::pods::Site;
use super::{LOOPBACK, Topology, host, is_kernels, sends};
use crate::net::{Family, IfName, PROTO_STATIC, Rule, TABLE_MAIN, UPLINK_RULE_PRIORITY};
use crate::observed::{Gap, SeenRoute};

/// The VPC CNI's rules for pods.
#[derive(Debug, Default)]
pub struct PodRules<'a> {
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
    /// The tables that lead over it.
    pub tables: BTreeSet<u32>,
}

impl<'a> Topology<'a> {
    /// The VPC CNI's rules for pods.
    ///
    /// # Errors
    ///
    /// What has to be looked at first.
    pub fn vpc_pod_rules(&self) -> Result<PodRules<'a>, Gap> {
        let mut rules = PodRules::default();
        if !self.is_vpc_cni()? {
            return Ok(rules);
        }
        for rule in self.rules()? {
            let (source, destination) = (host(rule.selector.from.as_ref()), host(rule.selector.to.as_ref()));
            match (rule.priority, source, destination) {
                (TO_POD, _, Some(pod)) if rule.table == TABLE_MAIN => drop(rules.to.insert(pod, rule)),
                (FROM_POD, Some(pod), _) => rules.from.entry(pod).or_default().push(rule),
                _ => {}
            }
        }
        Ok(rules)
    }

    /// The pods that have a host route over a link that the VPC CNI has named.
    ///
    /// # Errors
    ///
    /// What has to be looked at first.
    pub fn vpc_pods(&self) -> Result<BTreeMap<IpAddr, Site>, Gap> {
        if !self.is_vpc_cni()? {
            return Ok(BTreeMap::new());
        }
        let links = self.vpc_pod_links()?;
        let mut pods = self.pods()?;
        pods.retain(|_, site| links.contains_key(&site.link));
        Ok(pods)
    }

    /// The tables that the VPC CNI leads pods and the addresses of its uplinks to.
    ///
    /// # Errors
    ///
    /// What has to be looked at first.
    pub fn vpc_tables(&self) -> Result<BTreeSet<(Family, u32)>, Gap> {
        let mut tables = BTreeSet::new();
        if self.is_vpc_cni()? {
            let of_cni = self.rules()?.filter(|rule| is_of_uplink_table(rule) && sends(rule).is_some());
            tables.extend(of_cni.map(|rule| (rule.family, rule.table)));
        }
        Ok(tables)
    }

    /// The secondary uplinks of the VPC CNI: the links that its tables lead over, and those that carry the address of a
    /// rule 32765, whose table may be empty.
    ///
    /// # Errors
    ///
    /// What has to be looked at first.
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

    /// The links by which the main table's defaults leave and that are no secondary uplink of the VPC CNI.
    ///
    /// # Errors
    ///
    /// What has to be looked at first.
    pub fn first_uplinks(&self) -> Result<BTreeSet<u32>, Gap> {
        let mut first = BTreeSet::new();
        for family in [Family::V4, Family::V6] {
            first.extend(self.main_defaults(family)?.iter().flat_map(SeenRoute::hops).filter_map(|hop| hop.oif));
        }
        for uplink in self.vpc_uplinks()? {
            first.remove(&uplink.index);
        }
        Ok(first)
    }

    /// Whether a rule leads what a pod of this node, or an uplink of the VPC CNI, sends.
    ///
    /// # Errors
    ///
    /// What has to be looked at first.
    pub fn concerns_vpc_cni(&self, rule: &Rule) -> Result<bool, Gap> {
        let Some((source, table)) = sends(rule) else { return Ok(false) };
        if self.owner_of_table(rule.family, table)? == Owner::VpcCni {
            return Ok(false); // its own
        }
        let rules = self.vpc_pod_rules()?;
        if rules.to.contains_key(&source) || rules.from.contains_key(&source) || self.vpc_pods()?.contains_key(&source)
        {
            return Ok(true);
        }
        let carriers = self.carriers(source)?;
        Ok(self.vpc_uplinks()?.iter().any(|uplink| carriers.contains(&uplink.index)))
    }
}

/// Whether a rule is one that the VPC CNI leads to the table of an uplink. What systemd-networkd has made is the policy
/// of another, and so are the numbers of ec2-net-utils, which the VPC CNI never uses.
pub(super) fn is_of_uplink_table(rule: &Rule) -> bool {
    matches!(rule.priority, FROM_POD | UPLINK_RULE_PRIORITY)
        && rule.protocol != PROTO_STATIC
        && !is_kernels(rule.table)
        && !is_of_ec2_net_utils(rule.table)
}
