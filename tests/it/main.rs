//! node-fixer as a user runs it, against the real kernel, in network namespaces of each test's own.

mod cli;
mod config;
mod declared;
mod default_routes;
mod dry_run;
mod kit;
mod rights;
mod rp_filter;
