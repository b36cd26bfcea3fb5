//! node-fixer keeps the network of a Linux worker node as it was declared.
//!
//! One run, from `main` to a system call:
//!
//! 1. [`cli`] reads the arguments, [`log`] sets up the log, [`command`] chooses what to do.
//! 2. [`desired`] reads the configuration into the desired state.
//! 3. [`run`] drives one run: every reconciler of [`reconcile`] plans, its changes are made, and a second look
//!    says whether all is as it should be.
//! 4. A reconciler compares the desired with the [`observed`] state and returns a plan of [`change`]s. It is a
//!    pure function. Where something has not been looked at yet it says so, and is asked again after the look.
//! 5. [`sys`] looks and applies: the only code that touches the system. Everything speaks in the nouns of [`net`]
//!    and [`pod`]. What the next run has to know is [`memory`].
//! 6. [`report`] shows what came of it, as a script, as text or as JSON.

pub mod change;
pub mod cli;
pub mod command;
pub mod desired;
pub mod log;
pub mod memory;
pub mod net;
pub mod observed;
pub mod pod;
pub mod reconcile;
pub mod report;
pub mod run;
pub mod sys;
