//! What a run saves for the next one, and for the commands that report on the node.

pub mod cni_rules;
pub mod contention;
pub mod memory;
