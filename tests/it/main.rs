//! node-fixer as a user runs it, against the real kernel, in network namespaces of each test's own.

// Helpers of tests panic like tests; clippy knows only functions marked #[test].
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod cli;
mod config;
mod containerd;
mod declared;
mod default_routes;
mod dry_run;
mod kit;
mod kube_proxy;
mod readme;
mod rights;
mod rp_filter;
