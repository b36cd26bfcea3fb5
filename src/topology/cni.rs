//! Which CNI is in use on a node, by its marks.
//!
//! The VPC CNI does not mark its objects (its rules have no protocol, its routes that of `ip`): it is recognised by its
//! priorities, its firewall mark and the names of its links together. Messages, causes and cures about it are only for
//! nodes with these marks.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Topology, host};
use crate::model::{Dev, IfName, Rule, TABLE_MAIN, UPLINK_RULE_PRIORITY};
use crate::observed::Gap;
use crate::sorted;

/// Priority of the VPC CNI's rule to a pod.
pub const TO_POD: u32 = 512;
/// Priority of the VPC CNI's rule for marked packets.
pub const MARKED: u32 = 1024;
/// Priority of the VPC CNI's rule from a pod to the table of its uplink.
pub const FROM_POD: u32 = 1536;
/// Priority of the VPC CNI's rules for packets from a branch link (security groups for pods, strict mode).
pub const BRANCH: u32 = 10;
/// Priority of the VPC CNI's rules to services outside of the cluster.
pub const EXTERNAL: u32 = 1535;
/// Priority to which the VPC CNI moves the kernel's rule for the local table (security groups for pods, strict mode).
pub const MOVED_LOCAL: u32 = 20;
/// Priority of the VPC CNI's rule for the gateways' ICMPv6 (security groups for pods, strict mode): neighbour discovery on
/// branch links, whose own rules come before that for the local table.
pub const GATEWAY_ICMP: u32 = 0;
/// Mark and mask of the VPC CNI's rule 1024.
pub const MARK: (u32, u32) = (0x80, 0x80);

/// The VPC CNI's own names for pods' links: `eni` or `vlan`, and 11 hexadecimal digits.
pub fn is_pod_link(name: &IfName) -> bool {
    matches!(prefix_of(name), Some(b"eni" | b"vlan"))
}

/// Where the VPC CNI is certainly in use, any configured prefix of one to four letters counts as well, except Calico's
/// and Cilium's (`lxc` and 12 digits).
pub fn may_be_pod_link(name: &IfName) -> bool {
    prefix_of(name).is_some_and(|prefix| {
        let letters = (1..=4).contains(&prefix.len()) && prefix.iter().all(u8::is_ascii_lowercase);
        letters && prefix != b"cali" && !prefix.starts_with(b"lxc")
    })
}

/// What stands before the 11 hexadecimal digits of such a name.
fn prefix_of(name: &IfName) -> Option<&[u8]> {
    let name = name.as_bytes();
    let (prefix, digits) = name.split_at_checked(name.len().checked_sub(11)?)?;
    digits.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')).then_some(prefix)
}

/// Whether a link is one of the VPC CNI's branch links, `vlan.eth.N`, which have no address by design.
pub fn is_branch_link(name: &IfName) -> bool {
    let number = name.as_bytes().strip_prefix(b"vlan.eth.");
    number.is_some_and(|number| !number.is_empty() && number.iter().all(u8::is_ascii_digit))
}

/// Whether a link belongs to a pod behind one of the VPC CNI's branch links.
pub fn is_branch_pod_link(name: &IfName) -> bool {
    name.as_bytes().starts_with(b"vlan") && is_pod_link(name)
}

/// Whether a rule is the VPC CNI's for marked packets.
pub fn is_mark_rule(rule: &Rule) -> bool {
    rule.priority == MARKED && rule.selector.fwmark == Some(MARK) && rule.table == TABLE_MAIN
}

impl Topology<'_> {
    /// Whether the VPC CNI is in use here: its mark, or all of its other priorities together, or a link with its names,
    /// or a host route over a link of its form to an address in one of its rules.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
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
        if names.values().any(|name| is_pod_link(name)) {
            return Ok(true);
        }
        if !to && !from {
            return Ok(false);
        }
        let of_form = |(_, index): &(IpAddr, u32)| names.get(index).is_some_and(|name| may_be_pod_link(name));
        let pods = self.pods_of_rules()?;
        Ok(self
            .host_routes_of_rules()?
            .iter()
            .filter(|route| of_form(route))
            .any(|(address, _)| pods.contains(address)))
    }

    /// Of these links, those with the VPC CNI's names for pods. Whether it is in use is only asked if the names leave
    /// that open.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn pod_links<'d>(&self, links: impl IntoIterator<Item = &'d Dev>) -> Result<BTreeSet<u32>, Gap> {
        let mut proven = None;
        let mut of_pods = BTreeSet::new();
        for Dev { index, name } in links {
            if is_pod_link(name) {
                of_pods.insert(*index);
            } else if may_be_pod_link(name) {
                let proven = match proven {
                    Some(proven) => proven,
                    None => *proven.insert(self.is_vpc_cni()?),
                };
                of_pods.extend(proven.then_some(*index));
            }
        }
        Ok(of_pods)
    }

    /// The addresses in rules of the VPC CNI's form.
    fn pods_of_rules(&self) -> Result<BTreeSet<IpAddr>, Gap> {
        let pod = |rule: &Rule| match rule.priority {
            TO_POD if rule.table == TABLE_MAIN => host(rule.selector.to.as_ref()),
            FROM_POD => host(rule.selector.from.as_ref()),
            _ => None,
        };
        Ok(sorted::set(self.rules()?.filter_map(pod)))
    }
}
