//! node-fixer as a user runs it, against the real kernel, in network namespaces of each test's own.

// Helpers of tests panic like tests; clippy knows only functions marked #[test].
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod accept_ra;
mod addresses;
mod cli;
mod config;
mod containerd;
mod contention;
mod declared;
mod default_routes;
mod doctor;
mod dry_run;
mod explain;
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
