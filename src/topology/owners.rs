//! Who owns a table, by the protocol numbers and the patterns of its rules and routes.
//!
//! No program marks a table. Each chooses numbers for its tables, rules and protocols, and some choose names for their
//! links.

use super::cni::{BRANCH, is_branch_link, is_pod_link};
use super::vpc::is_of_uplink_table;
use super::{Topology, sends, sends_by_link};
use crate::model::{Family, IfName, PROTO_DECLARED, PROTO_MENDED, PROTO_STATIC, Rule};
use crate::observed::Gap;

/// The program that set up a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// node-fixer itself.
    NodeFixer,
    /// The VPC CNI: rules 1536 and 32765, or those of branch links.
    VpcCni,
    /// nm-cloud-setup of NetworkManager: 30200 and 30400 and above.
    NmCloudSetup,
    /// ec2-net-utils: 10001 and above.
    Ec2NetUtils,
    /// nodeadm, for the cards that the VPC CNI leaves alone: 10101, 10201 …, through systemd-networkd.
    Nodeadm,
    /// cloud-init: 101 and above, through systemd-networkd.
    CloudInit,
    /// Another policy in systemd-networkd's files.
    Networkd,
    /// Tailscale: 52.
    Tailscale,
    /// wg-quick: 51820.
    WgQuick,
    /// Cilium: 2004 and 2005, and the tables of its rules 110 and 111.
    Cilium,
    /// Calico: the tables of its marks.
    Calico,
    /// OVN-Kubernetes: the tables of its rules 6000.
    Ovn,
    /// Terway: the tables of its rules 2048.
    Terway,
    /// An administrator, or an unknown program.
    Hand,
}

impl Topology<'_> {
    /// The owner of a table.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn owner_of_table(&self, family: Family, table: u32) -> Result<Owner, Gap> {
        let rules: Vec<&Rule> = self.rules()?.filter(|rule| (rule.family, rule.table) == (family, table)).collect();
        if self.is_node_fixers(family, table, &rules)? {
            return Ok(Owner::NodeFixer);
        }
        if let Some(owner) = by_number(table) {
            return Ok(owner);
        }
        if rules.iter().any(|rule| is_of_uplink_table(rule) || is_of_branch(rule)) && self.is_vpc_cni()? {
            return Ok(Owner::VpcCni);
        }
        let is_static = rules.iter().any(|rule| rule.protocol == PROTO_STATIC);
        let sends_by = |priority: u32| rules.iter().any(|rule| rule.priority == priority && sends(rule).is_some());
        Ok(if is_of_ec2_net_utils(table) {
            Owner::Ec2NetUtils
        } else if rules.iter().any(|rule| is_of_nodeadm(rule)) {
            // Both number cards in hundreds; only ec2-net-utils has tables for the first card.
            let of_first_card = |rule: &Rule| is_of_ec2_net_utils(rule.table);
            if self.rules()?.any(of_first_card) { Owner::Ec2NetUtils } else { Owner::Nodeadm }
        } else if is_static && (101..=199).contains(&table) {
            Owner::CloudInit
        } else if sends_by(2048) && table >= 1000 {
            Owner::Terway
        } else if sends_by(6000) {
            Owner::Ovn
        } else if rules.iter().any(|rule| matches!(rule.priority, 110 | 111)) && self.has_link(is_ciliums)? {
            Owner::Cilium
        } else if rules.iter().any(|rule| rule.selector.fwmark.is_some()) && self.has_link(is_calicos)? {
            Owner::Calico
        } else if is_static {
            Owner::Networkd
        } else {
            Owner::Hand
        })
    }

    /// Whether everything in a table was added by node-fixer.
    fn is_node_fixers(&self, family: Family, table: u32, rules: &[&Rule]) -> Result<bool, Gap> {
        let is_own = |protocol: u8| matches!(protocol, PROTO_MENDED | PROTO_DECLARED);
        if !rules.iter().all(|rule| is_own(rule.protocol)) {
            return Ok(false);
        }
        let routes = self.table(family, table)?;
        let something = !rules.is_empty() || !routes.is_empty();
        Ok(something && routes.iter().all(|route| is_own(route.protocol)))
    }

    /// The name of a network plugin other than the VPC CNI that is in use here, by the names of its links.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn other_cni(&self) -> Result<Option<&'static str>, Gap> {
        for (is_its, plugin) in PLUGINS {
            if self.has_link(*is_its)? {
                return Ok(Some(*plugin));
            }
        }
        Ok(None)
    }

    fn has_link(&self, is_it: fn(&IfName) -> bool) -> Result<bool, Gap> {
        Ok(self.names()?.values().any(|name| is_it(name)))
    }
}

/// The plugin that uses this link name, if any.
type Plugin = (fn(&IfName) -> bool, &'static str);

const PLUGINS: &[Plugin] = &[
    (is_ciliums, "Cilium"),
    (is_calicos, "Calico or Terway"),
    (|name| name.as_bytes().starts_with(b"ovn-k8s-"), "OVN-Kubernetes"),
    (|name| name.as_bytes().starts_with(b"flannel."), "flannel"),
    (
        |name| matches!(name.as_bytes(), b"cni0" | b"cbr0" | b"kube-bridge" | b"antrea-gw0" | b"weave"),
        "a network plugin",
    ),
];

fn by_number(table: u32) -> Option<Owner> {
    Some(match table {
        52 => Owner::Tailscale,
        51820 => Owner::WgQuick,
        2004 | 2005 => Owner::Cilium,
        30200..=30299 | 30400..=30499 => Owner::NmCloudSetup,
        _ => return None,
    })
}

/// Whether only ec2-net-utils numbers tables like this.
pub(super) fn is_of_ec2_net_utils(table: u32) -> bool {
    (10001..=10099).contains(&table)
}

/// Whether a rule is systemd-networkd's, with the priority of its table, for a network card after the first.
fn is_of_nodeadm(rule: &Rule) -> bool {
    rule.protocol == PROTO_STATIC && rule.priority == rule.table && (10100..=10999).contains(&rule.table)
}

/// Whether a rule is for packets from a branch link of the VPC CNI, or from the link of a pod behind one.
fn is_of_branch(rule: &Rule) -> bool {
    let of_branch = |name: &IfName| is_branch_link(name) || is_pod_link(name);
    rule.priority == BRANCH && sends_by_link(rule).is_some_and(|(name, _)| of_branch(name))
}

fn is_ciliums(name: &IfName) -> bool {
    [&b"cilium_"[..], b"lxc"].iter().any(|start| name.as_bytes().starts_with(start))
}

fn is_calicos(name: &IfName) -> bool {
    [&b"cali"[..], b"wireguard.cali", b"vxlan.calico"].iter().any(|start| name.as_bytes().starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::super::vpc::VpcUplink;
    use super::*;
    use crate::reconcile::testing::Model;

    const VPC: &str = "
        link 2 eth0 10.0.0.10/24
        link 3 eth1 10.0.1.10/24
        link 4 eni00000000001
        route default via 10.0.0.1 dev 2";

    #[test]
    fn each_programs_tables_are_known() {
        for (case, node, table, owner) in [
            ("pods", "rule 1536 from 10.0.1.50 table 2", 2, Owner::VpcCni),
            ("an uplink", "rule 32765 from 10.0.1.10 table 10101", 10101, Owner::VpcCni),
            ("a branch", "rule 10 iif vlan.eth.1 table 101", 101, Owner::VpcCni),
            ("a pod behind a branch", "rule 10 iif vlan0000000000a table 101", 101, Owner::VpcCni),
            ("nodeadm", "rule 10101 from 10.0.1.10 table 10101 proto 4", 10101, Owner::Nodeadm),
            ("ec2-net-utils", "rule 10002 from 10.0.1.10 table 10002 proto 4", 10002, Owner::Ec2NetUtils),
            ("older ec2-net-utils", "rule 32765 from 10.0.1.10 table 10001", 10001, Owner::Ec2NetUtils),
            (
                "ec2-net-utils' second card",
                "rule 10001 from 10.0.0.10 table 10001 proto 4\nrule 10101 from 10.0.1.10 table 10101 proto 4",
                10101,
                Owner::Ec2NetUtils,
            ),
            ("cloud-init", "rule 30000 from 10.0.1.10 table 101 proto 4", 101, Owner::CloudInit),
            ("nm-cloud-setup", "rule 30400 from 10.0.1.10 table 30400", 30400, Owner::NmCloudSetup),
            ("systemd-networkd", "rule 7 from 10.0.1.10 table 77 proto 4", 77, Owner::Networkd),
            ("Tailscale", "rule 5270 table 52", 52, Owner::Tailscale),
            ("wg-quick", "rule 10 other", 51820, Owner::WgQuick),
            ("Cilium", "rule 9 fwmark 512 table 2004", 2004, Owner::Cilium),
            ("Cilium's uplinks", "link 9 lxc1\nrule 111 from 10.0.1.50 table 11", 11, Owner::Cilium),
            ("Calico", "link 9 cali1\nrule 99 fwmark 1048576 table 1", 1, Owner::Calico),
            ("OVN", "rule 6000 from 10.244.0.3 table 1111", 1111, Owner::Ovn),
            ("Terway", "rule 2048 from 10.0.0.101 table 1003", 1003, Owner::Terway),
            ("declared", "rule 7 from 10.0.1.10 table 7 proto 171", 7, Owner::NodeFixer),
            (
                "a declared rule to another's table",
                "rule 7 table 7 proto 171\nroute 10.1.0.0/16 dev 3 table 7",
                7,
                Owner::Hand,
            ),
            ("by hand", "rule 100 from 10.0.1.10 table 200", 200, Owner::Hand),
            ("no known program", "rule 100 from 10.0.1.10 table 200", 300, Owner::Hand),
        ] {
            let mut node = Model::new(&format!("{VPC}\n{node}"));
            let found = node.see(|seen| Topology::of(seen).owner_of_table(Family::V4, table));
            assert_eq!(found, owner, "{case}");
        }
    }

    #[test]
    fn without_its_marks_nothing_is_the_vpc_cnis() {
        let mut node = Model::new("link 3 eth1 10.0.1.10/24\nrule 1536 from 10.0.1.50 table 2");
        assert_eq!(node.see(|seen| Topology::of(seen).owner_of_table(Family::V4, 2)), Owner::Hand);
        assert_eq!(node.see(|seen| Topology::of(seen).vpc_tables()).len(), 0);
        assert_eq!(node.see(|seen| Ok(Topology::of(seen).vpc_pod_rules()?.from.len())), 0);
    }

    #[test]
    fn an_uplink_of_the_vpc_cni_is_known_by_its_address_where_its_table_is_empty() {
        let mut node = Model::new(&format!("{VPC}\nrule 32765 from 10.0.1.10 table 2"));
        let found = node.see(|seen| {
            let uplinks = Topology::of(seen).vpc_uplinks()?;
            let shown = |uplink: VpcUplink| (uplink.index, uplink.tables.into_iter().collect::<Vec<u32>>());
            Ok(uplinks.into_iter().map(shown).collect::<Vec<_>>())
        });
        assert_eq!(found, [(3_u32, vec![2_u32])]);
        assert_eq!(node.see(|seen| Topology::of(seen).first_uplinks()), [2].into());
    }
}
