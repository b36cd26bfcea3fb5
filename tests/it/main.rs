//! node-fixer as a user runs it, against the real kernel, in network namespaces of each test's own.

// Helpers of tests panic like tests; clippy knows only functions marked #[test].
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod accept_ra;
mod addresses;
mod cli;
mod config;
mod containerd;
mod contention;
mod cure;
mod declared;
mod default_routes;
mod doctor;
mod doctor_cases;
mod dry_run;
mod explain;
mod explain_homes;
mod explain_pings;
mod forward;
mod gateways;
mod journal;
mod kit;
mod kube_proxy;
mod log;
mod lost_answers;
mod masquerade;
mod metrics;
mod namespaces;
mod npd;
mod picture;
mod readme;
mod recorded;
mod rights;
mod rp_filter;
mod status;
mod sysctl_d;
mod sysctls;
mod sysctls_restored;
mod vm_host;
