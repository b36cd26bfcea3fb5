//! `rp_filter`: every interface whose name matches and whose live value is to be replaced gets the value wanted.
//! conf/all is never written: where it is greater it wins, and the wish is blocked.

use super::bridges;
use crate::change::{Blocked, Change, Plan, Step};
use crate::desired::{Desired, RpFilter};
use crate::net::{IfName, SysctlKey};
use crate::observed::{Gap, Observed};

/// Name of the pseudo-interface whose values new interfaces copy.
const DEFAULT: &str = "default";

pub fn plan(desired: &Desired, observed: &Observed) -> Result<Plan, Gap> {
    let wish = &desired.rp_filter;
    let live = observed.rp_filters()?;
    let offends = |value: i32| value != wish.value.number() && wish.replace.iter().any(|bad| bad.number() == value);
    let mut plan = Plan::default();
    // Only offenders need a name.
    let offenders: Vec<_> = live.links.iter().copied().filter(|(_, value)| offends(*value)).collect();
    let names = observed.names(offenders.iter().map(|(index, _)| *index))?;
    // What has vanished since has none.
    let named = || names.iter().zip(&offenders).filter_map(|(name, (_, value))| Some(((*name)?, *value)));
    let is_ours = |name: &IfName| wish.interfaces.is_match(name.as_bytes());
    if offends(live.default) && wish.interfaces.is_match(DEFAULT.as_bytes()) {
        // The value would go to each interface that nobody has given one: those that nobody named are not to follow.
        let to_come = bridges::to_come(desired, observed)?;
        let followers = named().filter(|(_, value)| *value == live.default).map(|(name, _)| name).chain(to_come);
        let first = followers.filter(|name| !is_ours(name));
        let first = first.map(|name| (SysctlKey::rp_filter(name), live.default.to_string())).collect();
        plan.steps.push(set(wish, DEFAULT, live.default, SysctlKey::rp_filter_default(), first));
    }
    for (name, value) in named().filter(|(name, _)| is_ours(name)) {
        plan.steps.push(set(wish, &name.to_string(), value, SysctlKey::rp_filter(name), Vec::new()));
    }
    if live.all > wish.value.number() {
        let names = observed.names(live.links.iter().map(|(index, _)| *index))?;
        if let Some(name) = names.into_iter().flatten().filter(|name| wish.interfaces.is_match(name.as_bytes())).min() {
            let because = format!(
                "net.ipv4.conf.all.rp_filter is {}, and the kernel takes the greater of it and the interface's own; \
                 node-fixer never writes it. Set it to 0 in /etc/sysctl.d, or configure another rp_filter.value",
                live.all
            );
            let want = format!("rp_filter {} ({}) in effect on {name}", wish.value.number(), wish.value);
            plan.blocked.push(Blocked::new(want, because));
        }
    }
    Ok(plan)
}

fn set(wish: &RpFilter, name: &str, live: i32, key: SysctlKey, first: Vec<(SysctlKey, String)>) -> Step {
    let value = wish.value.number().to_string();
    let reason = format!("rp_filter of {name} is {live}, wanted is {value} ({})", wish.value);
    let (before, then, needs) = (live.to_string(), Vec::new(), Vec::new());
    Step { change: Change::SetSysctl { key, value, before, first, then, needs }, reason }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::{Pattern, RpValue};
    use crate::observed::{RpFilters, Want};
    use crate::reconcile::testing::observed;

    /// Interfaces by name and live value; the third is `default`, the fourth `all`.
    fn keys(wish: RpFilter, links: &[(&str, i32)], default: i32, all: i32) -> (Vec<String>, usize) {
        let seen = observed(|seen| {
            let named = (2..).zip(links);
            seen.names.extend(named.clone().map(|(index, (name, _))| (index, Ok(IfName::new(name.as_bytes())))));
            let links = named.map(|(index, (_, value))| (index, *value)).collect();
            seen.rp_filters = Some(Ok(RpFilters { all, default, links }));
        });
        let plan = plan(&Desired { rp_filter: wish, ..Desired::default() }, &seen).unwrap();
        (plan.steps.iter().map(|step| step.change.to_string()).collect(), plan.blocked.len())
    }

    #[test]
    fn offenders_that_match_are_set_and_nothing_else() {
        let wish = RpFilter::default;
        let all = |text| RpFilter { interfaces: Pattern::known_good(text), ..wish() };
        let node = [("eth0", 1), ("eth1", 2), ("lo", 0), ("eni0123456789a", 1), ("docker0", 1), ("eth0.100", 1)];
        let strict = |value| RpFilter { value: RpValue::Strict, ..value };
        for (case, wish, links, default, conf_all, expected, blocked) in [
            ("healthy", wish(), &[("lo", 0), ("eth0", 2)][..], 2, 0, &[][..], 0),
            (
                "mixed node",
                wish(),
                &node,
                1,
                1,
                &["default.rp_filter=2", "eth0.rp_filter=2", "eni0123456789a.rp_filter=2"],
                0,
            ),
            ("dotted name", all("^eth0[.]100$"), &node, 1, 0, &["net/ipv4/conf/eth0.100/rp_filter=2"], 0),
            ("not anchored", all("eth0"), &node, 1, 0, &["eth0.rp_filter=2", "eth0.100/rp_filter=2"], 0),
            ("0 is kept", RpFilter { replace: vec![RpValue::Strict], ..wish() }, &[("eth0", 0)], 0, 0, &[], 0),
            ("unknown values are kept", wish(), &[("eth0", 7), ("eth1", -1)], 2, 0, &[], 0),
            ("all is in the pattern", all("."), &[], 2, 1, &[], 0),
            ("all wins", strict(wish()), &[("eth0", 0)], 1, 2, &["eth0.rp_filter=1"], 1),
            ("all wins where it concerns nobody", strict(wish()), &[("lo", 0)], 1, 2, &[], 0),
        ] {
            let (keys, wishes) = keys(wish, links, default, conf_all);
            assert_eq!(keys.len(), expected.len(), "{case}: {keys:?}");
            for (key, end) in keys.iter().zip(expected) {
                assert!(key.ends_with(end), "{case}: {key} is not {end}");
            }
            assert_eq!(wishes, blocked, "{case}");
        }
    }

    #[test]
    fn who_would_follow_default_and_was_not_named_is_given_its_value_before() {
        let links = [("eth0", 1), ("docker0", 1), ("wg0", 0)];
        let (commands, _) = keys(RpFilter::default(), &links, 1, 0);
        let default = "sysctl -w net.ipv4.conf.docker0.rp_filter=1; sysctl -w net.ipv4.conf.default.rp_filter=2";
        assert_eq!(commands, [default, "sysctl -w net.ipv4.conf.eth0.rp_filter=2"]);
    }

    #[test]
    fn only_offenders_are_looked_at_by_name() {
        let links = vec![(1, 0), (2, 2), (3, 1), (4, 2)];
        let seen = observed(|seen| seen.rp_filters = Some(Ok(RpFilters { all: 0, default: 2, links })));
        let asked = plan(&Desired::default(), &seen);
        assert_eq!(asked, Err(Gap::Unseen(vec![Want::Name(1), Want::Name(3)])));
    }

    #[test]
    fn an_interface_that_vanished_is_no_error() {
        let seen = observed(|seen| {
            seen.rp_filters = Some(Ok(RpFilters { all: 0, default: 2, links: vec![(9, 1)] }));
            seen.names.insert(9, Ok(None));
        });
        assert_eq!(plan(&Desired::default(), &seen), Ok(Plan::default()));
    }
}
