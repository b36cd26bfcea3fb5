//! The forms of the VPC CNI's rules, and what each is for.
//!
//! The CNI does not mark its rules. They are recognised by their priorities and forms together; rules of networkd,
//! ec2-net-utils or a declaration at the same priorities are not the CNI's.

use std::net::IpAddr;

use super::cni::{
    BRANCH, EXTERNAL, FROM_POD, GATEWAY_ICMP, MARKED, MOVED_LOCAL, TO_POD, is_branch_link, is_branch_pod_link,
    is_mark_rule,
};
use super::vpc::is_of_uplink_table;
use super::{host, is_kernels, sends, sends_by_link};
use crate::model::{
    EVERYTHING, IfName, PROTO_DECLARED, PROTO_STATIC, Rule, Selector, TABLE_LOCAL, TABLE_MAIN, UPLINK_RULE_PRIORITY,
};
use crate::observed::{RuleAction, RuleExtras, SeenRule};

/// `IPPROTO_ICMPV6`.
const IPPROTO_ICMPV6: u8 = 58;

/// What a rule of the VPC CNI is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Purpose {
    /// A pod of the main table.
    Pod(IpAddr),
    /// An uplink's own address.
    Uplink(IpAddr),
    /// Packets from a branch link, or from the link of a pod behind one.
    Branch(IfName),
    /// The whole node.
    Node,
}

impl Purpose {
    /// What a rule of the VPC CNI's form is for; `None` for other forms.
    pub fn of(rule: &Rule) -> Option<Purpose> {
        let Selector { from, to, fwmark, iif, oif } = &rule.selector;
        let to_alone = from.is_none() && fwmark.is_none() && iif.is_none() && oif.is_none();
        match rule.priority {
            TO_POD => host(to.as_ref()).filter(|_| to_alone && rule.table == TABLE_MAIN).map(Purpose::Pod),
            FROM_POD => sends(rule).filter(|_| is_of_uplink_table(rule)).map(|(pod, _)| Purpose::Pod(pod)),
            UPLINK_RULE_PRIORITY => {
                sends(rule).filter(|_| to.is_none() && is_of_uplink_table(rule)).map(|(own, _)| Purpose::Uplink(own))
            }
            BRANCH => {
                let (link, _) = sends_by_link(rule).filter(|_| !is_kernels(rule.table))?;
                (is_branch_link(link) || is_branch_pod_link(link)).then(|| Purpose::Branch(link.clone()))
            }
            MARKED => is_mark_rule(rule).then_some(Purpose::Node),
            EXTERNAL => (to_alone && to.is_some() && rule.table == TABLE_MAIN).then_some(Purpose::Node),
            MOVED_LOCAL => (rule.selector == EVERYTHING && rule.table == TABLE_LOCAL).then_some(Purpose::Node),
            _ => None,
        }
    }
}

/// A rule with its purpose, if it has a form of the VPC CNI's and is not marked as another program's.
pub(super) fn of_cni(seen: &SeenRule) -> Option<(&Rule, Purpose)> {
    let rule = &seen.rule;
    let purpose = match &seen.extras {
        None => Purpose::of(rule),
        Some(_) => is_gateway_icmp(seen).then_some(Purpose::Node),
    };
    let is_of_others = matches!(rule.protocol, PROTO_STATIC | PROTO_DECLARED);
    purpose.filter(|_| !is_of_others).map(|purpose| (rule, purpose))
}

/// Whether it is `0: from GATEWAY ipproto ipv6-icmp lookup local`.
pub(super) fn is_gateway_icmp(seen: &SeenRule) -> bool {
    let rule = &seen.rule;
    let (from, icmp) = (rule.selector.from, icmp_of_gateway());
    rule.priority == GATEWAY_ICMP
        && host(from.as_ref()).is_some_and(|gateway| gateway.is_ipv6())
        && rule.selector == Selector { from, ..EVERYTHING }
        && rule.table == TABLE_LOCAL
        && seen.extras.as_deref() == Some(&icmp)
}

fn icmp_of_gateway() -> RuleExtras {
    RuleExtras { ip_protocol: Some(IPPROTO_ICMPV6), ..RuleExtras::new(RuleAction::Lookup(TABLE_LOCAL)) }
}

/// A rule of the VPC CNI's with all that it selects by.
pub fn with_extras(rule: Rule) -> SeenRule {
    let extras = (rule.priority == GATEWAY_ICMP).then(|| Box::new(icmp_of_gateway()));
    SeenRule { rule, extras }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::testing::Model;

    #[test]
    fn each_form_is_for_something_and_no_other_is() {
        for (rule, expected) in [
            ("512 to 10.0.0.101 table 254", true),
            ("512 to 10.0.0.0/24 table 254", false),
            ("512 to 10.0.0.101 table 2", false),
            ("512 from 10.0.0.101 table 254", false),
            ("1536 from 10.0.0.101 table 2", true),
            ("1536 from 10.0.0.101 to 10.0.0.0/16 table 2", true),
            ("1536 from 10.0.0.101 table 254", false),
            ("1536 from 10.0.0.101 fwmark 7 table 2", false),
            ("1536 from 10.0.0.101 table 2 proto 4", false),
            ("32765 from 10.0.0.20 table 2", true),
            ("32765 from 10.0.0.20 table 10001", false),
            ("10 iif vlan.eth.1 table 101", true),
            ("10 iif vlan947a4e9318d table 101", true),
            ("10 iif eth1 table 101", false),
            ("20 table 255", true),
            ("20 table 254", false),
            ("1024 fwmark 128/128 table 254", true),
            ("1024 fwmark 64/64 table 254", false),
            ("1535 to 172.31.0.0/16 table 254", true),
            ("1535 table 254", false),
        ] {
            let rules = Model::new(&format!("rule {rule}")).rules;
            assert_eq!(Purpose::of(&rules[0].rule).is_some(), expected, "{rule}");
        }
    }
}
