//! node-fixer as a user runs it, against the real kernel, in network namespaces of each test's own.

// Helpers of tests panic like tests; clippy knows only functions marked #[test].
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod accept_ra;
mod addresses;
mod architecture;
mod artefacts;
mod bridges;
mod capture;
mod cli;
mod completion;
mod config;
mod containerd;
mod contention;
mod cure;
mod declared;
mod default_routes;
mod docs;
mod doctor;
mod doctor_cases;
mod dry_run;
mod examples;
mod explain;
mod explain_asked;
mod explain_homes;
mod explain_pings;
mod forward;
mod gateways;
mod icmp;
mod journal;
mod kit;
mod kube_proxy;
mod log;
mod lost_answers;
mod masquerade;
mod metrics;
mod mirror;
mod namespaces;
mod npd;
mod picture;
mod pod_rules;
mod recorded;
mod rights;
mod routes;
mod rp_filter;
mod rules;
mod stand_back;
mod status;
mod sysctl_d;
mod sysctls;
mod sysctls_restored;
mod uplinks;
mod vm_host;
mod watch;
mod words;
