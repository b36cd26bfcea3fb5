//! node-fixer keeps the network of a Linux worker node as declared.
//!
//! One run, from `main` to a system call:
//!
//! 1. [`cli`] reads the arguments, [`log`] sets up the log, [`command`] chooses what to do.
//! 2. [`config`] reads the configuration, which is the desired state.
//! 3. [`engine`] drives one run: every reconciler of [`reconcile`] plans, its changes are made, and a second look
//!    verifies them.
//! 4. A reconciler compares the desired with the [`observed`] state and returns a plan of [`change`]s. It is a pure
//!    function. If something was not looked at yet, it says so, and is called again after the look. [`topology`] answers
//!    what the node is (its uplinks, its pods, the owners of its tables); `doctor` and `explain` use the same.
//! 5. [`host`] is the [`node`], which looks and applies, together with the [`store`] of saved state. Everything uses the
//!    nouns of [`model`].
//! 6. [`report`] shows the result: as a script, as text, as JSON, as a line for node-problem-detector, or as metrics for
//!    Prometheus. [`status`] shows the state between runs.
//! 7. [`history`] is what a run leaves for the next one: its state, and which repairs were undone again and again.
//!    [`conclude`] writes it when the run has ended.
//!
//! Two commands are not runs: [`doctor`] looks for what breaks the node (it reads files with [`sysctl_d`]), and
//! [`explain`] traces a packet and its reply, and shows where they break.

mod capture;
mod change;
pub mod cli;
mod clock;
pub mod command;
mod conclude;
pub mod config;
pub mod doctor;
mod engine;
mod explain;
#[cfg(test)]
mod fuzz;
mod history;
mod host;
pub mod log;
mod model;
pub mod node;
mod observed;
mod outcome;
mod reconcile;
pub mod report;
mod signals;
mod sorted;
mod status;
mod store;
pub mod sysctl_d;
mod tape;
mod topology;
mod watch;
