//! The registry of reconcilers. Each is one file with one pure `plan` that turns the differences between the desired
//! and the observed state into changes, or blocked ones. A new section is a file and a line here.
//!
//! A `plan` does not look; it asks. For something that was not looked at yet it gets an error, [`Gap::Unseen`], that
//! `?` passes to the engine, which looks and calls `plan` again from the beginning, until nothing is missing. So a plan
//! - keeps nothing between two calls, and depends only on its arguments,
//! - asks for many things in one call (`observed.links(indexes)`, not one by one in a loop): each round of questions is
//!   one more call, and repeats what comes before it,
//! - asks before it does expensive work, and asks only for what it needs: a look costs time, and one that fails fails
//!   the plan ([`Gap::Failed`]), unless the plan can do without.

mod addresses;
mod bridges;
pub mod default_routes;
pub mod gateway;
mod kernel_rules;
pub mod kube_proxy;
mod masquerade;
mod namespaces;
mod ownership;
mod pod_rules;
mod ports;
#[cfg(test)]
mod properties;
pub mod routes;
pub mod rp_filter;
pub mod rules;
pub(crate) mod sysctls;
#[cfg(test)]
pub(crate) mod testing;
mod uplinks;

use crate::change::Plan;
use crate::config::{Config, Mode};
use crate::history::memory::{Kind, Note};
use crate::observed::{Gap, Observed};

/// Plans one section of the configuration.
#[derive(Debug)]
pub struct Reconciler {
    /// Name of the section.
    pub name: &'static str,
    /// The mode in the configuration.
    pub mode: fn(&Config) -> Mode,
    /// Whether it takes time: planned once, after all others.
    pub waits: bool,
    /// Whether the configuration declares anything here.
    pub is_declared: fn(&Config) -> bool,
    /// For sections whose objects are deleted when they are no longer declared: their kind. If none exist, that is
    /// saved, to avoid looking for them.
    leaves: Option<Kind>,
    plan: PlanFn,
}

impl Reconciler {
    /// The plan of the section.
    ///
    /// # Errors
    ///
    /// What must be looked at first, or could not be read.
    pub fn plan(&self, desired: &Config, observed: &Observed) -> Result<Plan, Gap> {
        let Some(kind) = self.leaves else { return (self.plan)(desired, observed) };
        let known = observed.recall()?.memory.made.get(&kind).copied();
        if known == Some(false) && !(self.is_declared)(desired) {
            return Ok(Plan::default());
        }
        let mut plan = (self.plan)(desired, observed)?;
        if let Some(some) = plan.leaves.take().filter(|some| known != Some(*some)) {
            // Noted before the first object is created, so that none is ever forgotten; and after the last one is gone.
            let at = if some { 0 } else { plan.remember.len() };
            plan.remember.insert(at, Note::Made(kind, some));
        }
        Ok(plan)
    }
}

/// All reconcilers, in the order in which their changes are made; removals are made in reverse order. An interface
/// comes before its addresses, addresses before the routes that need them. Rules and routes come before
/// `default_routes`, which would otherwise have to guess for a declared table,
/// and repairs the tables that rules name.
pub const ALL: &[Reconciler] = &[
    Reconciler {
        is_declared: uplinks::is_declared,
        ..repairing("uplinks", |desired| desired.uplinks.mode, uplinks::plan)
    },
    leaving(Kind::Bridges, declared("bridges", |desired| !desired.bridges.is_empty(), bridges::plan)),
    leaving(Kind::Sysctls, declared("sysctls", sysctls::are_declared, sysctls::plan)),
    leaving(
        Kind::Addresses,
        declared("addresses", |desired| desired.all_addresses().next().is_some(), addresses::plan),
    ),
    leaving(Kind::Masquerade, declared("masquerade", |desired| !desired.masquerade.is_empty(), masquerade::plan)),
    declared("rules", |desired| !desired.rules.is_empty(), rules::plan),
    leaving(Kind::Routes, declared("routes", |desired| !desired.routes.is_empty(), routes::plan)),
    // Most nodes have nothing for these two, and `status` shows them if there is something to report.
    Reconciler { is_declared: |_| false, ..repairing("pod_rules", |desired| desired.pod_rules.mode, pod_rules::plan) },
    Reconciler {
        is_declared: |_| false,
        ..repairing("kernel_rules", |desired| desired.kernel_rules.mode, kernel_rules::plan)
    },
    Reconciler {
        is_declared: |desired| !desired.namespaces.is_empty(),
        ..repairing("namespaces", namespaces::mode, namespaces::plan)
    },
    repairing("default_routes", |desired| desired.default_routes.mode, default_routes::plan),
    repairing("rp_filter", |desired| desired.rp_filter.mode, rp_filter::plan),
    Reconciler { waits: true, ..repairing("kube_proxy", |desired| desired.kube_proxy.mode, kube_proxy::plan) },
];

type PlanFn = fn(&Config, &Observed) -> Result<Plan, Gap>;

const fn declared(name: &'static str, is_declared: fn(&Config) -> bool, plan: PlanFn) -> Reconciler {
    Reconciler { is_declared, ..repairing(name, |_| Mode::Enforce, plan) }
}

const fn leaving(kind: Kind, section: Reconciler) -> Reconciler {
    Reconciler { leaves: Some(kind), ..section }
}

const fn repairing(name: &'static str, mode: fn(&Config) -> Mode, plan: PlanFn) -> Reconciler {
    Reconciler { name, mode, waits: false, is_declared: |_| true, leaves: None, plan }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::SCHEMA;

    #[test]
    fn every_reconciler_is_named_after_a_section() {
        let schema: serde_json::Value = serde_json::from_str(SCHEMA).unwrap();
        let names: BTreeSet<_> = ALL.iter().map(|reconciler| reconciler.name).collect();
        assert_eq!(names.len(), ALL.len(), "two of one name");
        for name in names {
            assert!(schema["properties"].get(name).is_some(), "{name} is no section");
        }
    }
}
