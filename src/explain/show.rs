//! An explanation as text for people, or as JSON.

use std::fmt::Write;

use serde::Serialize;

use super::fib::{Fib, Flow, Packet, protocol_name};
use super::leg::{Answer, is_refusal};
use super::lookup::{Ending, LookupStep, What};
use super::{Explanation, Leg, Origin, ReversePathCheck};
use crate::model::{TABLE_LOCAL, one_line};
use crate::observed::{Address, Link, Special};
use crate::sorted;
use crate::tape::Lists;

/// Version of the JSON format. Additions raise the second number, everything else the first.
const FORMAT_VERSION: &str = "1.1";

/// A node's routing for people, as `ip` shows it: rules, routes (but for those of the table local), links and addresses.
pub fn all(fib: &Fib) -> Lists {
    let link = |link: &Link| {
        let state = if link.up { "up" } else { "down" };
        format!("{}: {} {state} mtu {}", link.dev.index, link.dev.name, link.mtu)
    };
    let address = |it: &Address| format!("{}/{} dev {}", it.local, it.length, fib.name(it.index));
    let routes = fib.routes.iter().filter(|route| route.table != TABLE_LOCAL);
    let lists = [
        ("rules", fib.rules.iter().map(|rule| format!("{}: {rule}", rule.rule.priority)).collect()),
        ("routes", routes.map(|route| fib.show(route)).collect()),
        ("links", fib.links.iter().map(link).collect()),
        ("addresses", fib.addresses.iter().map(address).collect()),
    ];
    sorted::map(lists.map(|(name, lines): (&str, Vec<String>)| (name.to_owned(), lines)))
}

/// One screen: the verdict, then the path of each packet, rule by rule.
pub fn text(fib: &Fib, seen: &Explanation) -> String {
    let mut lines = Vec::new();
    match seen.problems.as_slice() {
        [] => lines.push(format!("works: {}", well(fib, seen))),
        problems => lines.extend(problems.iter().map(|problem| format!("breaks: {problem}"))),
    }
    lines.extend(seen.notes.iter().map(|note| format!("note: {note}")));
    lines.push(String::new());
    lines.push(format!("request, from {} to {}: {}", seen.source, seen.destination, origin(fib, seen)));
    leg(fib, &seen.request, &mut lines);
    for reply in &seen.replies {
        let Packet { from, to, iif, .. } = reply.packet;
        lines.push(String::new());
        lines.push(match iif {
            Some(iif) => {
                format!("reply, from {from} to {to}, assumed to come in by {}{}", fib.name(iif), at_home(seen))
            }
            None => format!("reply, from {from} to {to}, sent by this node itself"),
        });
        leg(fib, reply, &mut lines);
    }
    if seen.replies.is_empty() {
        lines.extend([String::new(), "reply: not traced, because its incoming interface is not known".into()]);
    }
    lines.extend([String::new(), format!("Assumed packet: {}.", packet(&seen.request.packet.flow))]);
    let lines: Vec<_> = lines.iter().map(|line| one_line(line)).collect();
    lines.join("\n") + "\n"
}

fn packet(flow: &Flow) -> String {
    let ports = match flow.ports {
        (0, 0) => "no ports".into(),
        (0, to) => format!("to port {to}"),
        (from, 0) => format!("from port {from}"),
        (from, to) => format!("from port {from} to port {to}"),
    };
    let mark = if flow.mark == 0 { "no mark".into() } else { format!("mark {:#x}", flow.mark) };
    let (protocol, user) = (protocol_name(flow.protocol), flow.user);
    format!("{protocol}, {ports}, uid {user}, {mark}, TOS 0. NAT and firewall rules are not considered")
}

fn well(fib: &Fib, seen: &Explanation) -> String {
    match &seen.request.lookup.end {
        Ending::Route(routes) => match routes.first() {
            Some(route) if route.special() == Some(Special::Local) => {
                format!("{} is this node itself, and its answer gets back", seen.destination)
            }
            Some(route) => format!("the packet takes {}, and its reply is accepted", fib.show(route)),
            None => String::new(),
        },
        _ => String::new(),
    }
}

fn origin(fib: &Fib, seen: &Explanation) -> String {
    match seen.origin {
        Origin::Pod(iif) => format!("of the pod behind {} ({})", fib.name(iif), seen.because),
        Origin::Behind(iif) => format!("from behind {} ({})", fib.name(iif), seen.because),
        _ => seen.because.clone(),
    }
}

fn at_home(seen: &Explanation) -> String {
    seen.home.as_ref().map_or_else(String::new, |home| format!(" ({})", home.because))
}

fn leg(fib: &Fib, leg: &Leg, lines: &mut Vec<String>) {
    let steps = &leg.lookup.steps;
    let mut at = 0;
    while let Some(step) = steps.get(at) {
        // A hundred pods have a hundred similar rules: they are shown as one line.
        let alike = |other: &&LookupStep| {
            other.rule.rule.priority == step.rule.rule.priority
                && matches!((&other.what, &step.what), (What::Passed(_), What::Passed(_)))
        };
        let run = steps.iter().skip(at).take_while(alike).count().max(1);
        at += run;
        let rule = format!("{:>7}  {:<42}", step.rule.rule.priority, step.rule.to_string());
        lines.push(match &step.what {
            What::Passed(_) if run > 1 => format!("{rule} passed, like {} more of this priority", run - 1),
            What::Passed(why) => format!("{rule} passed: {why}"),
            What::FellThrough(why) => format!("{rule} falls through: {why}"),
            What::Jumped => format!("{rule} continues there"),
            What::Taken => format!("{rule} TAKEN"),
            What::Unknown(why) => format!("{rule} unknown: {why}"),
        });
    }
    let result = match &leg.lookup.end {
        Ending::Route(routes) => {
            let shown: Vec<_> = routes.iter().map(|route| fib.show(route)).collect();
            shown.join("\n") // shown on one line, even if there are several
        }
        Ending::Refused(by) => format!("dropped by {by}"),
        Ending::NoRoute => "none: no rule gave a route".into(),
        Ending::Unknown(why) => format!("unknown: {why}"),
    };
    for (number, result) in result.lines().enumerate() {
        lines.push(format!("  {} {result}", if number == 0 { "route:    " } else { "or:       " }));
    }
    if let Some(ReversePathCheck { iif, rp_filter: (link, all), passes, why, .. }) = &leg.check {
        let verdict = match passes {
            Some(true) => "passes",
            Some(false) => "DROPPED",
            None => "unknown",
        };
        let filter = leg.check.as_ref().map(ReversePathCheck::effective).unwrap_or_default();
        let name = fib.name(*iif);
        lines.push(format!("  rp_filter: {verdict} at {name}: max(all {all}, {name} {link}) = {filter}; {why}"));
    }
    if let Some(whose) = &leg.not_forwarded {
        lines.push(format!("  forwarding: OFF for {whose}"));
    }
    let mut kernel = String::new();
    match (&leg.kernel, &leg.disagreement) {
        (None, _) => return,
        (Some(_), Some(how)) => drop(write!(kernel, "DISAGREES: {how}")),
        (Some(answer), None) if leg.is_unknown() => kernel += &answered(fib, answer),
        (Some(Ok(route)), None) if is_refusal(route) => kernel += "drops it, too",
        (Some(Ok(_)), None) => kernel += "agrees",
        (Some(Err(_)), None) => kernel += "drops it, too",
    }
    lines.push(format!("  kernel:    {kernel}"));
}

fn answered(fib: &Fib, answer: &Answer) -> String {
    match answer {
        Ok(route) => format!("takes {}", fib.show(route)),
        Err(refusal) => format!("refuses ({refusal})"),
    }
}

#[derive(Serialize)]
struct ExplanationJson<'a> {
    format_version: &'static str,
    source: String,
    destination: String,
    works: bool,
    problems: &'a [String],
    notes: &'a [String],
    origin: &'static str,
    because: &'a str,
    packet: String,
    request: JsonLeg,
    replies: Vec<JsonLeg>,
}

#[derive(Serialize)]
struct JsonLeg {
    from: String,
    to: String,
    iif: Option<String>,
    rules: Vec<JsonRule>,
    result: &'static str,
    why: Option<String>,
    routes: Vec<JsonRoute>,
    rp_filter: Option<JsonCheck>,
    forwarded: bool,
    kernel: Option<JsonKernel>,
}

#[derive(Serialize)]
struct JsonRule {
    priority: u32,
    rule: String,
    result: &'static str,
    why: Option<String>,
}

#[derive(Serialize)]
struct JsonRoute {
    table: u32,
    to: String,
    metric: u32,
    nexthop: Option<u32>,
    route: String,
    hops: Vec<JsonHop>,
}

#[derive(Serialize)]
struct JsonHop {
    via: Option<String>,
    dev: Option<String>,
    dead: bool,
}

#[derive(Serialize)]
struct JsonCheck {
    dev: String,
    all: i32,
    interface: i32,
    effective: i32,
    /// `None`: unknown.
    passes: Option<bool>,
    why: String,
}

#[derive(Serialize)]
struct JsonKernel {
    agrees: bool,
    answer: String,
}

/// One JSON object on one line.
///
/// # Errors
///
/// None in practice: every value has a JSON form.
pub fn json(fib: &Fib, seen: &Explanation) -> serde_json::Result<String> {
    let json = ExplanationJson {
        format_version: FORMAT_VERSION,
        source: seen.source.to_string(),
        destination: seen.destination.to_string(),
        works: seen.works(),
        problems: &seen.problems,
        notes: &seen.notes,
        origin: match seen.origin {
            Origin::Pod(_) | Origin::Behind(_) => "pod",
            Origin::Local => "local",
            Origin::Other(_) | Origin::Nowhere => "other",
        },
        because: &seen.because,
        packet: packet(&seen.request.packet.flow),
        request: json_leg(fib, &seen.request),
        replies: seen.replies.iter().map(|reply| json_leg(fib, reply)).collect(),
    };
    Ok(serde_json::to_string(&json)? + "\n")
}

fn json_leg(fib: &Fib, leg: &Leg) -> JsonLeg {
    let (result, why) = match &leg.lookup.end {
        Ending::Route(_) if leg.is_local() => ("local", None),
        Ending::Route(_) => ("unicast", None),
        Ending::Refused(by) => ("refused", Some(by.clone())),
        Ending::NoRoute => ("no_route", None),
        Ending::Unknown(why) => ("unknown", Some(why.clone())),
    };
    let routes = leg.routes().iter().map(|route| JsonRoute {
        table: route.table,
        to: route.to.to_string(),
        metric: route.metric,
        nexthop: route.nexthop,
        route: fib.show(route),
        hops: route
            .all_hops()
            .iter()
            .map(|hop| JsonHop {
                via: hop.via.map(|via| via.to_string()),
                dev: hop.oif.map(|oif| fib.name(oif)),
                dead: hop.dead,
            })
            .collect(),
    });
    JsonLeg {
        from: leg.packet.from.to_string(),
        to: leg.packet.to.to_string(),
        iif: leg.packet.iif.map(|iif| fib.name(iif)),
        rules: leg.lookup.steps.iter().map(json_rule).collect(),
        result,
        why,
        routes: routes.collect(),
        rp_filter: leg.check.as_ref().map(|check| JsonCheck {
            dev: fib.name(check.iif),
            all: check.rp_filter.1,
            interface: check.rp_filter.0,
            effective: check.rp_filter.0.max(check.rp_filter.1),
            passes: check.passes,
            why: check.why.clone(),
        }),
        forwarded: leg.not_forwarded.is_none(),
        kernel: leg.kernel.as_ref().map(|answer| JsonKernel {
            agrees: leg.disagreement.is_none() && !leg.is_unknown(),
            answer: answered(fib, answer),
        }),
    }
}

fn json_rule(step: &LookupStep) -> JsonRule {
    let (result, why) = match &step.what {
        What::Passed(why) => ("passed", Some(why.clone())),
        What::FellThrough(why) => ("fell_through", Some(why.clone())),
        What::Jumped => ("jumped", None),
        What::Taken => ("taken", None),
        What::Unknown(why) => ("unknown", Some(why.clone())),
    };
    JsonRule { priority: step.rule.rule.priority, rule: step.rule.to_string(), result, why }
}
