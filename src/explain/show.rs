//! An explanation as text for people, or as JSON.

use std::fmt::Write;

use serde::Serialize;

use super::fib::{Ending, Fib, Kind, Packet, Step, What};
use super::leg::{Answer, is_refusal};
use super::{Check, Explanation, Leg, Origin};
use crate::net::one_line;

/// Version of the JSON form. Additions raise the second number, everything else the first.
const FORMAT_VERSION: &str = "1.1";

/// One screen: the verdict, then each packet's way, rule by rule.
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
        let Packet { from, to, iif } = reply.packet;
        lines.push(String::new());
        lines.push(match iif {
            Some(iif) => format!("reply, from {from} to {to}, taken to come in by {}{}", fib.name(iif), at_home(seen)),
            None => format!("reply, from {from} to {to}, which this node itself sends"),
        });
        leg(fib, reply, &mut lines);
    }
    if seen.replies.is_empty() {
        lines.extend([String::new(), "reply: not looked at, as nobody knows where it would come in".into()]);
    }
    lines.extend([String::new(), format!("Judged is {PACKET}.")]);
    let lines: Vec<_> = lines.iter().map(|line| one_line(line)).collect();
    lines.join("\n") + "\n"
}

const PACKET: &str =
    "a UDP packet without ports, of root, unmarked, with type of service 0, before any NAT and firewall";

fn well(fib: &Fib, seen: &Explanation) -> String {
    match &seen.request.lookup.end {
        Ending::Route(routes) => match routes.first() {
            Some(route) if route.kind == Kind::Local => {
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
        // Of a hundred pods there are a hundred rules alike: one line.
        let alike = |other: &&Step| {
            other.rule.priority == step.rule.priority
                && matches!((&other.what, &step.what), (What::Passed(_), What::Passed(_)))
        };
        let run = steps.iter().skip(at).take_while(alike).count().max(1);
        at += run;
        let rule = format!("{:>7}  {:<42}", step.rule.priority, step.rule.to_string());
        lines.push(match &step.what {
            What::Passed(_) if run > 1 => format!("{rule} passed, like {} more of this priority", run - 1),
            What::Passed(why) => format!("{rule} passed: {why}"),
            What::FellThrough(why) => format!("{rule} falls through: {why}"),
            What::Jumped => format!("{rule} goes on there"),
            What::Taken => format!("{rule} TAKEN"),
            What::Unknown(why) => format!("{rule} not judged: {why}"),
        });
    }
    let result = match &leg.lookup.end {
        Ending::Route(routes) => {
            let shown: Vec<_> = routes.iter().map(|route| fib.show(route)).collect();
            shown.join("\n") // made one line, should there be several
        }
        Ending::Refused(by) => format!("dropped by {by}"),
        Ending::NoRoute => "none: no rule led to a route".into(),
        Ending::Unknown(why) => format!("not judged: {why}"),
    };
    for (number, result) in result.lines().enumerate() {
        lines.push(format!("  {} {result}", if number == 0 { "route:    " } else { "or:       " }));
    }
    if let Some(Check { iif, rp_filter: (link, all), passes, why, .. }) = &leg.check {
        let verdict = match passes {
            Some(true) => "passes",
            Some(false) => "DROPPED",
            None => "not judged",
        };
        let filter = leg.check.as_ref().map(Check::effective).unwrap_or_default();
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
        (Some(Ok(_)), None) => kernel += "says the same",
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
struct Json<'a> {
    format_version: &'static str,
    source: String,
    destination: String,
    works: bool,
    problems: &'a [String],
    notes: &'a [String],
    origin: &'static str,
    because: &'a str,
    packet: &'static str,
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
    /// `None`: not judged.
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
/// None that is known of: every value in it has a JSON form.
pub fn json(fib: &Fib, seen: &Explanation) -> serde_json::Result<String> {
    let json = Json {
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
        packet: PACKET,
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
            .hops
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

fn json_rule(step: &Step) -> JsonRule {
    let (result, why) = match &step.what {
        What::Passed(why) => ("passed", Some(why.clone())),
        What::FellThrough(why) => ("fell_through", Some(why.clone())),
        What::Jumped => ("jumped", None),
        What::Taken => ("taken", None),
        What::Unknown(why) => ("unknown", Some(why.clone())),
    };
    JsonRule { priority: step.rule.priority, rule: step.rule.to_string(), result, why }
}
