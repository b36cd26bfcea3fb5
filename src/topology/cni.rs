//! Whose marks a node carries: the CNI at work on it, and the owner of a table.
//!
//! The VPC CNI marks nothing as its own (its rules have no protocol, its routes that of `ip`): it is known by its
//! priorities, its mark and the names of its links together. Its words, causes and cures are for nodes that carry
//! these marks alone.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Topology, host};
use crate::net::{Dev, IfName, Rule, TABLE_MAIN, UPLINK_RULE_PRIORITY};
use crate::observed::Gap;

/// Priority of the VPC CNI's rule to a pod.
pub const TO_POD: u32 = 512;
/// Priority of the VPC CNI's rule for marked packets.
pub const MARKED: u32 = 1024;
/// Priority of the VPC CNI's rule from a pod to the table of its uplink.
pub const FROM_POD: u32 = 1536;
/// Priority of the VPC CNI's rules for what comes in by a branch link (security groups for pods, strict mode).
pub const BRANCH: u32 = 10;
/// Mark and mask of the VPC CNI's rule 1024.
pub const MARK: (u32, u32) = (0x80, 0x80);

/// How the VPC CNI names a pod's link: `eni` or `vlan`, and 11 hexadecimal digits. Where it is at work for certain
/// (`proven`), any prefix of one to four letters that is configured, but not Calico's.
pub fn is_pod_link(name: &IfName, proven: bool) -> bool {
    let name = name.as_bytes();
    let Some((prefix, digits)) = name.len().checked_sub(11).and_then(|at| name.split_at_checked(at)) else {
        return false;
    };
    let hexadecimal = digits.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let letters = (1..=4).contains(&prefix.len()) && prefix.iter().all(u8::is_ascii_lowercase);
    hexadecimal && (matches!(prefix, b"eni" | b"vlan") || proven && letters && prefix != b"cali")
}

/// Whether a link is one of the VPC CNI's branch links, `vlan.eth.N`: it has no address, by design.
pub fn is_branch_link(name: &IfName) -> bool {
    let number = name.as_bytes().strip_prefix(b"vlan.eth.");
    number.is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit))
}

/// Whether a rule is the VPC CNI's for marked packets.
pub fn is_mark_rule(rule: &Rule) -> bool {
    rule.priority == MARKED && rule.selector.fwmark == Some(MARK) && rule.table == TABLE_MAIN
}

impl Topology<'_> {
    /// Whether the VPC CNI is at work here: its mark, or all of its other priorities together, or a link that it has
    /// named, or a host route over a link of its form to an address that one of its rules names.
    ///
    /// # Errors
    ///
    /// What has to be looked at first.
    pub fn is_vpc_cni(&self) -> Result<bool, Gap> {
        let (mut to, mut from, mut own) = (false, false, false);
        for rule in self.rules()? {
            if is_mark_rule(rule) {
                return Ok(true);
            }
            let (source, destination) = (host(rule.selector.from.as_ref()), host(rule.selector.to.as_ref()));
            to |= rule.priority == TO_POD && destination.is_some() && rule.table == TABLE_MAIN;
            from |= rule.priority == FROM_POD && source.is_some();
            own |= rule.priority == UPLINK_RULE_PRIORITY && source.is_some();
        }
        if to && from && own {
            return Ok(true);
        }
        let names = self.names()?;
        if names.values().any(|name| is_pod_link(name, false)) {
            return Ok(true);
        }
        if !to && !from {
            return Ok(false);
        }
        let of_form = |(_, index): &(IpAddr, u32)| names.get(index).is_some_and(|name| is_pod_link(name, true));
        let pods = self.pods_of_rules()?;
        Ok(self
            .host_routes_of_rules()?
            .iter()
            .filter(|route| of_form(route))
            .any(|(address, _)| pods.contains(address)))
    }

    /// Of these links, those of pods as the VPC CNI names them. Whether it is at work is asked only where a name leaves that
    /// open.
    ///
    /// # Errors
    ///
    /// What has to be looked at first.
    pub fn pod_links<'d>(&self, links: impl IntoIterator<Item = &'d Dev>) -> Result<BTreeSet<u32>, Gap> {
        let mut proven = None;
        let mut of_pods = BTreeSet::new();
        for Dev { index, name } in links {
            if is_pod_link(name, false) {
                of_pods.insert(*index);
            } else if is_pod_link(name, true) {
                let proven = match proven {
                    Some(proven) => proven,
                    None => *proven.insert(self.is_vpc_cni()?),
                };
                of_pods.extend(proven.then_some(*index));
            }
        }
        Ok(of_pods)
    }

    /// The addresses that a rule of the VPC CNI's form leads to or from.
    fn pods_of_rules(&self) -> Result<BTreeSet<IpAddr>, Gap> {
        let pod = |rule: &Rule| match rule.priority {
            TO_POD if rule.table == TABLE_MAIN => host(rule.selector.to.as_ref()),
            FROM_POD => host(rule.selector.from.as_ref()),
            _ => None,
        };
        Ok(self.rules()?.filter_map(pod).collect())
    }
}
