//! `node-fixer doctor`: why the node breaks. It looks and changes nothing.
//!
//! Each cause is one [`Check`] of [`ALL`]: a pure function of [`facts::Facts`], the files and the kernel's state. A
//! check asks for what has not been looked at yet by failing with a [`Gap`], as reconcilers do. [`look`] reads and
//! looks, [`report`] shows, [`review`] writes what is proposed.

mod bridges;
mod cure;
mod declared;
pub mod facts;
mod forward;
mod ini;
mod ipv6;
mod look;
mod managers;
mod martians;
mod pods;
mod policy;
pub mod report;
pub mod review;
mod sysctls;
mod tables;
mod udev;
mod uplinks;
mod wished;

use crate::observed::Gap;
use crate::sysctl_d::ConfFile;
use facts::Facts;
pub use ini::Place;
pub use look::examine;

/// Looks for one cause.
#[derive(Debug)]
pub struct Check {
    /// The name of the cause, which stays the same from version to version.
    pub cause: &'static str,
    /// What it is, in a few words.
    pub title: &'static str,
    /// Sections of the configuration whose objects it may break again and again.
    pub breaks: &'static [&'static str],
    /// What was found.
    pub check: fn(&Facts) -> Result<Vec<Finding>, Gap>,
}

/// All causes, worst first.
pub const ALL: &[Check] = &[
    Check {
        cause: "kernel_rules_missing",
        title: "a rule that the kernel starts with is missing",
        breaks: &["rules"],
        check: policy::kernel_rules_missing,
    },
    Check {
        cause: "rules_flushed",
        title: "the rules of pods are gone, their routes are there",
        breaks: &["rules", "default_routes"],
        check: pods::rules_flushed,
    },
    Check {
        cause: "main_without_default",
        title: "the main table has no default route, while policy tables have one",
        breaks: &["routes"],
        check: tables::main_without_default,
    },
    Check {
        cause: "accept_ra_ignored",
        title: "router advertisements are ignored, and the IPv6 default route is gone",
        breaks: &["routes", "sysctls"],
        check: ipv6::advertisements_ignored,
    },
    Check {
        cause: "ip_forward_off",
        title: "nothing is forwarded",
        breaks: &["sysctls"],
        check: sysctls::ip_forward_off,
    },
    Check {
        cause: "forward_dropped",
        title: "a firewall drops what is forwarded for `masquerade`",
        breaks: &["masquerade"],
        check: forward::dropped,
    },
    Check {
        cause: "bridge_without_carrier",
        title: "the default route leaves by a declared bridge that leads nowhere",
        breaks: &["bridges"],
        check: bridges::without_carrier,
    },
    Check {
        cause: "table_host_route_only",
        title: "a policy table lost its default route, or never got it",
        breaks: &[],
        check: tables::table_host_route_only,
    },
    Check {
        cause: "table_flushed",
        title: "a policy table lost all its routes",
        breaks: &[],
        check: tables::table_flushed,
    },
    Check {
        cause: "table_without_default",
        title: "a policy table has routes, but no default",
        breaks: &[],
        check: tables::table_without_default,
    },
    Check {
        cause: "table_by_other_uplink",
        title: "a policy table leads by another uplink than that of its pods",
        breaks: &[],
        check: tables::table_by_other_uplink,
    },
    Check {
        cause: "branch_rule_stale",
        title: "a rule leads a pod of a branch interface to the table of another branch",
        breaks: &["rules"],
        check: policy::branch_rule_stale,
    },
    Check {
        cause: "pod_address_local",
        title: "a pod's address is configured on this node itself",
        breaks: &["routes", "addresses"],
        check: pods::pod_address_local,
    },
    Check {
        cause: "martians_without_address",
        title: "a pod's interface to which no route leads drops all that the pod sends, loose or strict",
        breaks: &[],
        check: martians::without_address,
    },
    Check {
        cause: "pod_with_two_rules",
        title: "a pod has two rules 1536, to different tables",
        breaks: &["rules"],
        check: policy::pod_with_two_rules,
    },
    Check {
        cause: "table_without_rule",
        title: "a policy table has a default route, and no rule leads to it",
        breaks: &["rules"],
        check: tables::table_without_rule,
    },
    Check {
        cause: "pod_without_rule",
        title: "a pod has its route, but not its rule 512, 1536 or 10",
        breaks: &["rules"],
        check: pods::pod_without_rule,
    },
    Check {
        cause: "mark_rule_missing",
        title: "the CNI's rule 1024 for marked packets is missing",
        breaks: &["rules"],
        check: policy::mark_rule_missing,
    },
    Check {
        cause: "leftover_addresses",
        title: "an uplink of the CNI has addresses of pods to come",
        breaks: &["addresses"],
        check: pods::leftover_addresses,
    },
    Check {
        cause: "rp_filter_all",
        title: "conf/all overrules the interfaces' rp_filter",
        breaks: &["rp_filter", "sysctls"],
        check: sysctls::rp_filter_all,
    },
    Check {
        cause: "rp_filter_sysctl",
        title: "a file sets rp_filter to what is not wanted",
        breaks: &["rp_filter", "sysctls"],
        check: sysctls::rp_filter_sysctl,
    },
    Check {
        cause: "uplink_unattended",
        title: "an uplink that the configuration leaves out",
        breaks: &[],
        check: uplinks::unattended,
    },
    Check {
        cause: "sysctl_overruled",
        title: "a file sets a declared sysctl to another value",
        breaks: &["sysctls"],
        check: declared::sysctl_overruled,
    },
    Check {
        cause: "networkd_foreign_rules",
        title: "systemd-networkd removes rules that are not its own",
        breaks: &["rules", "default_routes"],
        check: managers::networkd::networkd_foreign_rules,
    },
    Check {
        cause: "networkd_foreign_routes",
        title: "systemd-networkd removes routes that are not its own",
        breaks: &["default_routes", "routes"],
        check: managers::networkd::networkd_foreign_routes,
    },
    Check {
        cause: "networkd_manages_uplink",
        title: "systemd-networkd manages a secondary uplink of the CNI",
        breaks: &["default_routes", "routes", "addresses", "kube_proxy"],
        check: managers::networkd::networkd_manages_uplink,
    },
    Check {
        cause: "networkmanager_manages_uplink",
        title: "NetworkManager manages a secondary uplink of the CNI",
        breaks: &["default_routes", "routes", "addresses", "kube_proxy"],
        check: managers::networkd::networkmanager_manages_uplink,
    },
    Check {
        cause: "nm_cloud_setup",
        title: "nm-cloud-setup has policy rules beside a network plugin",
        breaks: &["rules", "default_routes"],
        check: managers::nm_cloud_setup,
    },
    Check {
        cause: "ec2_net_utils",
        title: "ec2-net-utils has policy rules beside the CNI's, and renews them",
        breaks: &["rules", "default_routes"],
        check: managers::ec2_net_utils,
    },
    Check {
        cause: "cloud_init_policy_tables",
        title: "cloud-init has policy tables beside the CNI's",
        breaks: &["rules", "default_routes"],
        check: managers::cloud_init_policy_tables,
    },
    Check {
        cause: "mac_address_policy",
        title: "udev gives the interfaces of pods another hardware address",
        breaks: &["kube_proxy"],
        check: udev::mac_address_policy,
    },
    Check {
        cause: "martians_growing",
        title: "rp_filter drops packets right now",
        breaks: &[],
        check: martians::growing,
    },
    Check {
        cause: "rule_without_pod",
        title: "a rule leads to a pod that has no route",
        breaks: &["rules"],
        check: pods::rule_without_pod,
    },
    Check {
        cause: "leaked_rules",
        title: "rules of sources or interfaces that are gone",
        breaks: &["rules"],
        check: policy::leaked_rules,
    },
];

/// A cause that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The name of the cause; empty until the engine puts it in.
    pub cause: &'static str,
    /// What was found.
    pub evidence: String,
    /// The line of the file that does it.
    pub file: Option<Place>,
    /// What to do, as lines of a shell script: commands, and comments where no command does it.
    pub cure: String,
    /// Files that belong to the cure, for review.
    pub proposals: Vec<ConfFile>,
}

impl Finding {
    fn new(evidence: String, file: Option<Place>, cure: String) -> Finding {
        Finding { cause: "", evidence, file, cure, proposals: Vec::new() }
    }

    fn with(mut self, proposals: Vec<ConfFile>) -> Finding {
        self.proposals = proposals;
        self
    }

    /// The check that it is of.
    pub fn check(&self) -> Option<&'static Check> {
        ALL.iter().find(|check| check.cause == self.cause)
    }
}

/// What an examination found, worst first, and what it could not see.
#[derive(Debug, Default)]
pub struct Examination {
    /// Causes.
    pub findings: Vec<Finding>,
    /// Looks and files that failed, so that some cause may be hidden.
    pub unseen: Vec<String>,
}

/// The findings that may explain why objects of this section (`rp_filter`, `default_routes`, `rules` …) have to be
/// mended again and again.
pub fn suspects<'a>(findings: &'a [Finding], section: &str) -> Vec<&'a Finding> {
    let breaks = |finding: &&Finding| finding.check().is_some_and(|check| check.breaks.contains(&section));
    findings.iter().filter(breaks).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_cause_has_a_name_of_its_own() {
        let names: BTreeSet<_> = ALL.iter().map(|check| check.cause).collect();
        assert_eq!(names.len(), ALL.len());
    }

    #[test]
    fn suspects_are_those_that_break_the_section() {
        let finding = |cause| Finding { cause, ..Finding::new(String::new(), None, String::new()) };
        let findings = ["rp_filter_sysctl", "networkd_foreign_rules", "martians_growing"].map(finding);
        let causes = |section| suspects(&findings, section).iter().map(|finding| finding.cause).collect::<Vec<_>>();
        assert_eq!(causes("rp_filter"), ["rp_filter_sysctl"]);
        assert_eq!(causes("default_routes"), ["networkd_foreign_rules"]);
        assert!(causes("bridges").is_empty());
    }
}
