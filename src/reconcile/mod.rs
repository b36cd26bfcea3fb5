//! The registry of reconcilers. Each is one file with one pure `plan`: what differs between the desired and the
//! observed state becomes changes, or a blocked wish. A new one is a file and a line here.

mod addresses;
mod bridges;
pub mod default_routes;
pub mod gateway;
pub mod kube_proxy;
mod masquerade;
mod namespaces;
#[cfg(test)]
mod properties;
pub mod routes;
pub mod rp_filter;
pub mod rules;
mod sysctls;
#[cfg(test)]
pub(crate) mod testing;

use crate::change::Plan;
use crate::desired::{Desired, Mode};
use crate::observed::{Gap, Observed};

/// Looks after one section of the configuration.
#[derive(Debug)]
pub struct Reconciler {
    /// Name of the section.
    pub name: &'static str,
    /// What may be done about its findings.
    pub mode: fn(&Desired) -> Mode,
    /// Whether it takes its time: planned once, when all others are done.
    pub waits: bool,
    /// What differs. Asks for what has not been looked at yet by failing with a [`Gap`].
    pub plan: PlanFn,
}

/// All reconcilers, in the order in which their changes are made; what is no longer declared goes in the reverse
/// order. An interface comes before its addresses, addresses before the routes that need them. Rules and routes come
/// before `default_routes`, which would otherwise have to guess for a declared table.
pub const ALL: &[Reconciler] = &[
    declared("bridges", bridges::plan),
    declared("sysctls", sysctls::plan),
    declared("addresses", addresses::plan),
    declared("masquerade", masquerade::plan),
    declared("rules", rules::plan),
    declared("routes", routes::plan),
    mending("namespaces", namespaces::mode, namespaces::plan),
    mending("default_routes", |desired| desired.default_routes.mode, default_routes::plan),
    mending("rp_filter", |desired| desired.rp_filter.mode, rp_filter::plan),
    Reconciler { waits: true, ..mending("kube_proxy", |desired| desired.kube_proxy.mode, kube_proxy::plan) },
];

type PlanFn = fn(&Desired, &Observed) -> Result<Plan, Gap>;

const fn declared(name: &'static str, plan: PlanFn) -> Reconciler {
    mending(name, |_| Mode::Enforce, plan)
}

const fn mending(name: &'static str, mode: fn(&Desired) -> Mode, plan: PlanFn) -> Reconciler {
    Reconciler { name, mode, waits: false, plan }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::desired::SCHEMA;

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
