//! `node-fixer doctor`: why the node breaks. It looks and changes nothing.
//!
//! Each cause is one [`Check`] of [`ALL`]: a pure function of [`facts::Facts`], the files and the kernel's state. Like
//! reconcilers, a check asks for what was not looked at yet by returning a [`Gap`]. `examine` reads and looks, [`show`]
//! shows, [`review`] writes proposed files.

mod bridges;
mod cure;
mod declared;
mod examine;
pub mod facts;
mod forward_drops;
mod forwarding;
mod ini;
mod ipv6;
mod managers;
mod martians;
mod pods;
mod policy;
pub mod review;
mod rp_filter;
pub mod show;
mod tables;
mod udev;
mod uplinks;

use crate::observed::Gap;
use crate::sysctl_d::ConfFile;
pub use examine::{Drops, examine, machine_id};
use facts::{Facts, Martians};
pub use ini::Location;
pub use udev::persistent as persistent_hardware;

/// Looks for one cause.
#[derive(Debug)]
pub struct Check {
    /// The name of the cause, which never changes between versions.
    pub cause: &'static str,
    /// A short description.
    pub title: &'static str,
    /// Sections of the configuration whose repairs it may undo.
    pub breaks: &'static [&'static str],
    /// The function that finds it.
    probe: Probe,
}

/// The input of a check.
#[derive(Debug)]
enum Probe {
    /// The files, and the state of the kernel.
    State(fn(&Facts) -> Result<Vec<Finding>, Gap>),
    /// Also the packets dropped during the examination.
    Drops(fn(&Facts, Martians) -> Result<Vec<Finding>, Gap>),
}

/// All causes, worst first.
pub const ALL: &[Check] = &[
    Check {
        cause: "kernel_rules_missing",
        title: "one of the kernel's initial rules is missing",
        breaks: &["rules", "kernel_rules"],
        probe: Probe::State(policy::kernel_rules_missing),
    },
    Check {
        cause: "rules_flushed",
        title: "the rules of pods are gone, but their routes exist",
        breaks: &["rules", "default_routes", "pod_rules"],
        probe: Probe::State(pods::rules_flushed),
    },
    Check {
        cause: "rules_restored",
        title: "rules of pods were removed, and node-fixer restored them",
        breaks: &["pod_rules"],
        probe: Probe::State(pods::rules_restored),
    },
    Check {
        cause: "main_without_default",
        title: "the main table has no default route, but policy tables have one",
        breaks: &["routes"],
        probe: Probe::State(tables::main_without_default),
    },
    Check {
        cause: "accept_ra_ignored",
        title: "router advertisements are ignored, and the IPv6 default route is gone",
        breaks: &["routes", "sysctls"],
        probe: Probe::State(ipv6::advertisements_ignored),
    },
    Check {
        cause: "ip_forward_off",
        title: "forwarding is disabled",
        breaks: &["sysctls"],
        probe: Probe::State(forwarding::ip_forward_off),
    },
    Check {
        cause: "forward_dropped",
        title: "a firewall drops forwarded packets of `masquerade`",
        breaks: &["masquerade"],
        probe: Probe::State(forward_drops::dropped),
    },
    Check {
        cause: "bridge_without_carrier",
        title: "the default route uses a declared bridge that leads nowhere",
        breaks: &["bridges"],
        probe: Probe::State(bridges::without_carrier),
    },
    Check {
        cause: "table_host_route_only",
        title: "a policy table has lost its default route, or never had one",
        breaks: &[],
        probe: Probe::State(tables::table_host_route_only),
    },
    Check {
        cause: "table_flushed",
        title: "a policy table has lost all its routes",
        breaks: &[],
        probe: Probe::State(tables::table_flushed),
    },
    Check {
        cause: "table_without_default",
        title: "a policy table has routes, but no default route",
        breaks: &[],
        probe: Probe::State(tables::table_without_default),
    },
    Check {
        cause: "table_by_other_uplink",
        title: "a policy table uses another uplink than that of its pods",
        breaks: &[],
        probe: Probe::State(tables::table_by_other_uplink),
    },
    Check {
        cause: "branch_rule_stale",
        title: "a rule sends a pod of a branch interface to the table of another branch",
        breaks: &["rules"],
        probe: Probe::State(policy::branch_rule_stale),
    },
    Check {
        cause: "pod_address_local",
        title: "a pod's address is configured on this node itself",
        breaks: &["routes", "addresses"],
        probe: Probe::State(pods::pod_address_local),
    },
    Check {
        cause: "martians_without_address",
        title: "a pod's interface without a route drops everything that the pod sends, with rp_filter loose or strict",
        breaks: &[],
        probe: Probe::State(martians::without_address),
    },
    Check {
        cause: "pod_with_two_rules",
        title: "a pod has two rules 1536, to different tables",
        breaks: &["rules"],
        probe: Probe::State(policy::pod_with_two_rules),
    },
    Check {
        cause: "table_without_rule",
        title: "a policy table has a default route, but no rule uses it",
        breaks: &["rules"],
        probe: Probe::State(tables::table_without_rule),
    },
    Check {
        cause: "pod_without_rule",
        title: "a pod has its route, but not its rule 512, 1536 or 10",
        breaks: &["rules"],
        probe: Probe::State(pods::pod_without_rule),
    },
    Check {
        cause: "mark_rule_missing",
        title: "the CNI's rule 1024 for marked packets is missing",
        breaks: &["rules"],
        probe: Probe::State(policy::mark_rule_missing),
    },
    Check {
        cause: "leftover_addresses",
        title: "an uplink of the CNI has addresses of future pods",
        breaks: &["addresses"],
        probe: Probe::State(pods::leftover_addresses),
    },
    Check {
        cause: "rp_filter_all",
        title: "conf/all overrides the interfaces' rp_filter",
        breaks: &["rp_filter", "sysctls"],
        probe: Probe::State(rp_filter::rp_filter_all),
    },
    Check {
        cause: "rp_filter_sysctl",
        title: "a file sets rp_filter to another value than configured",
        breaks: &["rp_filter", "sysctls"],
        probe: Probe::State(rp_filter::rp_filter_sysctl),
    },
    Check {
        cause: "uplink_unattended",
        title: "the configuration leaves out an uplink",
        breaks: &[],
        probe: Probe::State(uplinks::unattended),
    },
    Check {
        cause: "sysctl_overruled",
        title: "a file sets a declared sysctl to another value",
        breaks: &["sysctls"],
        probe: Probe::State(declared::sysctl_overruled),
    },
    Check {
        cause: "networkd_foreign_rules",
        title: "systemd-networkd removes rules of other programs",
        breaks: &["rules", "default_routes", "pod_rules", "kernel_rules"],
        probe: Probe::State(managers::networkd::networkd_foreign_rules),
    },
    Check {
        cause: "networkd_foreign_routes",
        title: "systemd-networkd removes routes of other programs",
        breaks: &["default_routes", "routes"],
        probe: Probe::State(managers::networkd::networkd_foreign_routes),
    },
    Check {
        cause: "networkd_manages_uplink",
        title: "systemd-networkd manages a secondary uplink of the CNI",
        breaks: &["default_routes", "routes", "addresses", "kube_proxy", "uplinks"],
        probe: Probe::State(managers::networkd::networkd_manages_uplink),
    },
    Check {
        cause: "networkmanager_manages_uplink",
        title: "NetworkManager manages a secondary uplink of the CNI",
        breaks: &["default_routes", "routes", "addresses", "kube_proxy", "uplinks"],
        probe: Probe::State(managers::networkd::networkmanager_manages_uplink),
    },
    Check {
        cause: "nm_cloud_setup",
        title: "nm-cloud-setup adds policy rules on a node with a network plugin",
        breaks: &["rules", "default_routes", "pod_rules"],
        probe: Probe::State(managers::nm_cloud_setup),
    },
    Check {
        cause: "ec2_net_utils",
        title: "ec2-net-utils adds policy rules to the CNI's, and renews them",
        breaks: &["rules", "default_routes"],
        probe: Probe::State(managers::ec2_net_utils),
    },
    Check {
        cause: "cloud_init_policy_tables",
        title: "cloud-init has added policy tables to the CNI's",
        breaks: &["rules", "default_routes"],
        probe: Probe::State(managers::cloud_init_policy_tables),
    },
    Check {
        cause: "mac_address_policy",
        title: "udev changes the hardware addresses of pods' interfaces",
        breaks: &["kube_proxy"],
        probe: Probe::State(udev::mac_address_policy),
    },
    Check {
        cause: "martians_growing",
        title: "rp_filter is dropping packets now",
        breaks: &[],
        probe: Probe::Drops(martians::growing),
    },
    Check {
        cause: "rule_without_pod",
        title: "a rule names a pod that has no route",
        breaks: &["rules"],
        probe: Probe::State(pods::rule_without_pod),
    },
    Check {
        cause: "leaked_rules",
        title: "rules for sources or interfaces that are gone",
        breaks: &["rules"],
        probe: Probe::State(policy::leaked_rules),
    },
];

/// A cause that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The name of the cause; empty until the engine sets it.
    pub cause: &'static str,
    /// The evidence.
    pub evidence: String,
    /// The line of the file that causes it.
    pub file: Option<Location>,
    /// The cure as lines of a shell script: commands, and comments where no command helps.
    pub cure: String,
    /// Files that belong to the cure, for review.
    pub proposals: Vec<ConfFile>,
}

impl Finding {
    fn new(evidence: String, file: Option<Location>, cure: String) -> Finding {
        Finding { cause: "", evidence, file, cure, proposals: Vec::new() }
    }

    fn with(mut self, proposals: Vec<ConfFile>) -> Finding {
        self.proposals = proposals;
        self
    }

    /// The check that found it.
    pub fn check(&self) -> Option<&'static Check> {
        ALL.iter().find(|check| check.cause == self.cause)
    }
}

/// The findings, worst first, and what could not be read.
#[derive(Debug, Default)]
pub struct Examination {
    /// Causes.
    pub findings: Vec<Finding>,
    /// What could not be read and may hide a cause.
    pub unseen: Vec<String>,
}

/// The findings that may explain why repairs of this section (`rp_filter`, `default_routes`, `rules` …) are needed
/// again and again.
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
