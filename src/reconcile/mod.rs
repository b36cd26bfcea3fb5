//! The registry of reconcilers. Each is one file with one pure `plan`: what differs between the desired and the
//! observed state becomes changes, or a blocked wish. A new one is a file and a line here.

mod default_routes;
mod kube_proxy;
mod routes;
mod rp_filter;
mod rules;
#[cfg(test)]
mod testing;

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
    pub plan: fn(&Desired, &Observed) -> Result<Plan, Gap>,
}

/// All reconcilers, in the order in which their changes are made. Rules come before routes: a declared table may
/// be one that `default_routes` would otherwise have to guess for.
pub const ALL: &[Reconciler] = &[
    Reconciler { name: "rules", mode: |_| Mode::Enforce, waits: false, plan: rules::plan },
    Reconciler { name: "routes", mode: |_| Mode::Enforce, waits: false, plan: routes::plan },
    Reconciler {
        name: "default_routes",
        mode: |desired| desired.default_routes.mode,
        waits: false,
        plan: default_routes::plan,
    },
    Reconciler { name: "rp_filter", mode: |desired| desired.rp_filter.mode, waits: false, plan: rp_filter::plan },
    Reconciler { name: "kube_proxy", mode: |desired| desired.kube_proxy.mode, waits: true, plan: kube_proxy::plan },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::change::Change;
    use crate::desired::SCHEMA;
    use crate::net::{KERNEL_PRIORITIES, PROTO_DECLARED};
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
        (links, prop::collection::vec(line(), 0..14)).prop_map(|(links, lines)| [links, lines].concat().join("\n"))
    }

    const DECLARATIONS: [&str; 3] = [
        "{}",
        "rules: [{priority: 100, from: 10.0.0.1, table: 3}, {priority: 5, fwmark: 7, table: main}]",
        "routes: [{to: default, via: 10.0.0.1, dev: eth1, table: 3}, {to: fd00::/64, dev: eth0, table: 2}]",
    ];

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_second_plan_is_empty_and_what_others_own_stays(text in node(), yaml in prop::sample::select(&DECLARATIONS)) {
            let desired = desired(yaml);
            let mut model = Model::new(&text);
            for reconciler in ALL {
                let plan = model.plan(reconciler.plan, &desired);
                for step in &plan.steps {
                    let protocol = match &step.change {
                        Change::DeleteRoute(route) => route.protocol,
                        Change::ReplaceRoute(route) => {
                            let old = |it: &&crate::observed::SeenRoute| {
                                (it.table, it.to, it.metric) == (route.table, route.to, route.stored_metric())
                            };
                            model.routes.iter().find(old).unwrap().protocol
                        }
                        Change::DeleteRule(rule) => rule.protocol,
                        Change::AddRule(rule) => {
                            prop_assert!(!KERNEL_PRIORITIES.contains(&rule.priority));
                            PROTO_DECLARED
                        }
                        Change::AddRoute(_) | Change::SetSysctl { .. } | Change::RestartPod(_) => PROTO_DECLARED,
                    };
                    prop_assert_eq!(protocol, PROTO_DECLARED, "{} touches what is not ours:\n{}", step.change, text);
                    model.apply(&step.change);
                }
                let again = model.plan(reconciler.plan, &desired);
                prop_assert_eq!(again.steps, vec![], "{} is not done after its plan:\n{}", reconciler.name, text);
                prop_assert_eq!(again.blocked, plan.blocked, "{} changes its mind:\n{}", reconciler.name, text);
            }
        }
    }
}
