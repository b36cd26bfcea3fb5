//! The registry of reconcilers. Each is one file with one pure `plan`: what differs between the desired and the
//! observed state becomes changes, or a blocked wish. A new one is a file and a line here.

mod addresses;
mod bridges;
mod carried;
pub mod default_routes;
pub mod gateway;
mod kube_proxy;
mod masquerade;
mod namespaces;
pub mod routes;
mod rp_filter;
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
    /// Whether its changes belong together: when one fails, what the run has done in this section is taken back. Not
    /// where each change mends something by itself; a way out for one table is no worse for the want of another.
    pub whole: bool,
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
    Reconciler { name, mode: |_| Mode::Enforce, waits: false, whole: true, plan }
}

const fn mending(name: &'static str, mode: fn(&Desired) -> Mode, plan: PlanFn) -> Reconciler {
    Reconciler { name, mode, waits: false, whole: false, plan }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::change::Change;
    use crate::desired::SCHEMA;
    use crate::net::{KERNEL_PRIORITIES, PROTO_DECLARED, PROTO_MENDED};
    use testing::{Model, desired};

    #[test]
    fn every_reconciler_is_named_after_a_section() {
        let schema: serde_json::Value = serde_json::from_str(SCHEMA).unwrap();
        let names: BTreeSet<_> = ALL.iter().map(|reconciler| reconciler.name).collect();
        assert_eq!(names.len(), ALL.len(), "two of one name");
        for name in names {
            assert!(schema["properties"].get(name).is_some(), "{name} is no section");
        }
    }

    /// Lines of a node's description, drawn so that they collide often.
    fn line() -> impl Strategy<Value = String> {
        let source =
            prop_oneof![(1_u8..6).prop_map(|n| format!("10.0.0.{n}")), (1_u8..4).prop_map(|n| format!("fd00::{n}"))];
        let table = prop_oneof![1_u32..5, Just(254), Just(2004)];
        let proto = prop_oneof![Just(3), Just(170), Just(171)];
        let priority = prop_oneof![Just(0), Just(100), Just(512), Just(1536), Just(32765), Just(32766)];
        let selector = prop_oneof![Just(""), Just("fwmark 7"), Just("iif eth1"), Just("to 10.0.0.0/16")];
        let rule = (priority, source, table.clone(), proto.clone(), selector).prop_map(
            |(priority, from, table, proto, more)| {
                let more = if from.contains(':') { more.replace("10.0.0.0/16", "fd00::/16") } else { more.into() };
                format!("rule {priority} from {from} {more} table {table} proto {proto}")
            },
        );
        let to = prop_oneof![
            Just("default via 10.0.0.1"),
            Just("default via fe80::1"),
            Just("10.0.0.1"),
            Just("10.0.0.2"),
            Just("fe80::1"),
            Just("10.0.0.0/24"),
            Just("0.0.0.0/1"),
            Just("128.0.0.0/1"),
        ];
        let metric = prop_oneof![Just(""), Just("metric 7")];
        let route = (to, 2_u32..5, table, proto, metric).prop_map(|(to, dev, table, proto, metric)| {
            let scope = if to.contains("via") { "" } else { "scope link" };
            format!("route {to} dev {dev} {scope} table {table} proto {proto} {metric}")
        });
        prop_oneof![rule, route]
    }

    fn node() -> impl Strategy<Value = String> {
        let address = prop_oneof![Just("10.0.0.9/24 fe80::9/64"), Just("10.0.0.3/32"), Just("fd00::2/64"), Just("")];
        let link = (address, prop_oneof![Just(""), Just("down"), Just("vrf")], 0_i32..4);
        let links = prop::collection::vec(link, 3).prop_map(|links| {
            let line =
                |(index, (address, state, rp))| format!("link {} eth{index} {state} {address} rp={rp}", index + 2);
            links.into_iter().enumerate().map(line).collect::<Vec<_>>()
        });
        let address = prop_oneof![Just("10.0.8.1/32"), Just("10.0.8.2/24=171"), Just("fd08::1/64=171"), Just("")];
        let kind =
            prop_oneof![Just("link"), Just("bridge"), Just("bridge ours"), Just("bridge ours down stp"), Just("")];
        let others = prop::collection::vec((kind, address), 2).prop_map(|links| {
            let line = |(index, (kind, address)): (usize, (&str, &str))| match kind.split_once(' ') {
                _ if kind.is_empty() => String::new(),
                None => format!("{kind} {} br{index} {address}", index + 20),
                Some((kind, more)) => format!("{kind} {} br{index} {address} {more}", index + 20),
            };
            links.into_iter().enumerate().map(line).collect::<Vec<_>>()
        });
        let lines = prop::collection::vec(line(), 0..14);
        (links, others, lines).prop_map(|(links, others, lines)| [links, others, lines].concat().join("\n"))
    }

    const DECLARATIONS: [&str; 6] = [
        "{}",
        "rules: [{priority: 100, from: 10.0.0.1, table: 3}, {priority: 5, fwmark: 7, table: main}]",
        "routes: [{to: default, via: 10.0.0.1, dev: eth1, table: 3}, {to: fd00::/64, dev: eth0, table: 2}]",
        "bridges: [{name: br0, addresses: [10.0.8.1/32, 'fd08::1/128'], stp: true}]",
        "masquerade: [{source: 10.0.8.0/24, except_out: br0}, {source: 'fd08::/64', out: eth0}]",
        "addresses: [{dev: eth0, address: 10.0.8.1-10.0.8.3}, {dev: br1, address: 'fd08::1/64'}, {dev: no, address: 10.0.0.1}]",
    ];

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_second_plan_is_empty_and_what_others_own_stays(text in node(), yaml in prop::sample::select(&DECLARATIONS)) {
            let desired = desired(yaml);
            let mut model = Model::new(&text);
            for reconciler in ALL {
                let plan = model.plan(reconciler.plan, &desired);
                for step in plan.steps.iter().chain(&plan.removals) {
                    let protocol = match &step.change {
                        // What repaired a table goes once its owner's default is there, and gives way to what is declared.
                        Change::DeleteRoute(route) if route.protocol == PROTO_MENDED && reconciler.name == "default_routes" => {
                            let others = |it: &&crate::observed::SeenRoute| it.table == route.table && it.protocol != PROTO_MENDED;
                            prop_assert!(crate::topology::has_default(model.routes.iter().filter(others)));
                            PROTO_DECLARED
                        }
                        Change::DeleteRoute(route) => route.protocol,
                        Change::ReplaceRoute { new: route, .. } => {
                            let old = |it: &&crate::observed::SeenRoute| {
                                (it.table, it.to, it.metric) == (route.table, route.to, route.stored_metric())
                            };
                            let old = model.routes.iter().find(old).unwrap().protocol;
                            if old == PROTO_MENDED { PROTO_DECLARED } else { old }
                        }
                        Change::DeleteRule(rule) => rule.protocol,
                        Change::AddRule(rule) => {
                            prop_assert!(!KERNEL_PRIORITIES.contains(&rule.priority));
                            PROTO_DECLARED
                        }
                        Change::DeleteAddress { dev, address: inet, .. } => {
                            let index = model.links.iter().find(|link| link.dev.name == *dev).unwrap().dev.index;
                            let is_it = |it: &&crate::observed::Address| (it.index, it.local) == (index, inet.address());
                            model.addresses.iter().find(is_it).and_then(|it| it.protocol).unwrap_or_default()
                        }
                        Change::SetBridge { new: bridge, .. } | Change::DeleteBridge(bridge) => {
                            let ours = model.bridges.iter().any(|it| it.ours && it.dev.name == bridge.name);
                            if ours { PROTO_DECLARED } else { 0 }
                        }
                        Change::AddRoute(_)
                        | Change::AddAddress(..)
                        | Change::AddBridge(_)
                        | Change::SetMasquerade { .. }
                        | Change::DeleteMasquerade
                        | Change::SetSysctl { .. }
                        | Change::Persist { .. }
                        | Change::DeleteNetns(..)
                        | Change::DeleteVeth(..)
                        | Change::RestartPod(_) => PROTO_DECLARED,
                    };
                    prop_assert_eq!(protocol, PROTO_DECLARED, "{} touches what is not ours:\n{}", step.change, text);
                    model.apply(&step.change);
                }
                let again = model.plan(reconciler.plan, &desired);
                prop_assert_eq!([again.steps, again.removals].concat(), vec![], "{} is not done after its plan:\n{}", reconciler.name, text);
                prop_assert_eq!(again.blocked, plan.blocked, "{} changes its mind:\n{}", reconciler.name, text);
            }
        }
    }
}
