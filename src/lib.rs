//! node-fixer keeps the network of a Linux worker node as declared.
//!
//! One run, from `main` to a system call:
//!
//! 1. [`cli`] reads the arguments, [`log`] sets up the log, [`command`] chooses what to do.
//! 2. [`desired`] reads the configuration into the desired state.
//! 3. [`run`] drives one run: every reconciler of [`reconcile`] plans, its changes are made, and a second look
//!    says whether all is as it should be.
//! 4. A reconciler compares the desired with the [`observed`] state and returns a plan of [`change`]s. It is a
//!    pure function. Where something has not been looked at yet it says so, and is asked again after the look. What
//!    the node is (its uplinks, its pods, whose the tables are) it asks [`topology`], as `doctor` and `explain` do.
//! 5. [`sys`] looks and applies: the only code that touches the system. Everything speaks in the nouns of [`net`],
//!    [`nat`], [`netns`] and [`pod`]. What the next run has to know is [`memory`].
//! 6. [`report`] shows what came of it, as a script, as text or as JSON; [`npd`] in a line; [`print`] writes it.
//! 7. [`aftermath`] remembers what was mended: somebody may undo it again and again ([`contention`]). [`metrics`] is what
//!    Prometheus is told, [`status`] what a person is.
//!
//! Beside runs there are [`doctor`], which looks for what breaks the node (of files it knows [`sysctl_d`]), and
//! [`explain`], which says what happens to a packet and its reply, and where it breaks.

pub mod aftermath;
pub mod change;
pub mod cli;
pub mod command;
pub mod contention;
pub mod desired;
pub mod doctor;
pub mod explain;
#[cfg(test)]
mod fuzz;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod nat;
pub mod net;
pub mod netns;
pub mod npd;
pub mod observed;
pub mod pod;
pub mod print;
pub mod reconcile;
pub mod report;
pub mod run;
pub mod sorted;
pub mod status;
pub mod sys;
pub mod sysctl_d;
pub mod topology;
