//! What the node should be like: the configuration, typed and validated.
//!
//! The types are the one source of the keys, their defaults and their JSON Schema. [`load`] reads files into
//! them; everything else here is pure.

mod load;
mod tree;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use cidr::IpCidr;
use serde::{Deserialize, Serialize};

pub use load::{ConfigError, Loaded, load};
use tree::Step;
pub use value::{Fwmark, Pattern, Priority, TableId, TableRange};

use crate::net::{self, Family, IfName, PROTO_DECLARED, Scope, Selector};
use crate::pod::PodQuery;

/// The built-in default, which is also the reference documentation of every key.
pub const DEFAULT_YAML: &str = include_str!("../../config/node-fixer.yaml");

/// The JSON Schema of the configuration, made from these types (a test keeps it so).
pub const SCHEMA: &str = include_str!("../../config/schema.json");

/// The desired state of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Desired {
    /// Version of the configuration format.
    pub version: Version,
    /// Every policy table that pods are sent to has a way out.
    #[serde(default)]
    pub default_routes: DefaultRoutes,
    /// Reverse path filter of the interfaces that carry pod traffic.
    #[serde(default)]
    pub rp_filter: RpFilter,
    /// kube-proxy is restarted when the uplinks have changed.
    #[serde(default)]
    pub kube_proxy: KubeProxy,
    /// Policy rules that must be there.
    #[serde(default)]
    pub rules: Vec<Rule>,
    /// Routes that must be there.
    #[serde(default)]
    pub routes: Vec<Route>,
}

impl Default for Desired {
    fn default() -> Self {
        Desired {
            version: Version,
            default_routes: DefaultRoutes::default(),
            rp_filter: RpFilter::default(),
            kube_proxy: KubeProxy::default(),
            rules: Vec::new(),
            routes: Vec::new(),
        }
    }
}

impl Desired {
    /// What no single value shows to be wrong: the path of the offender and what is wrong with it.
    fn contradiction(&self) -> Option<(Vec<Step>, String)> {
        let rules: Vec<_> = self.rules.iter().map(Rule::to_rule).collect();
        let routes: Vec<_> = self.routes.iter().map(Route::key).collect();
        repeated(&rules, net::Rule::equals)
            .map(|(first, again)| (Step::entry("rules", again), format!("says the same as rules[{first}]")))
            .or_else(|| {
                repeated(&routes, PartialEq::eq).map(|(first, again)| {
                    let why = "has the table, destination and metric of";
                    (Step::entry("routes", again), format!("{why} routes[{first}]: a table holds only one such route"))
                })
            })
    }
}

fn repeated<T>(items: &[T], same: fn(&T, &T) -> bool) -> Option<(usize, usize)> {
    let earlier = |(i, item)| items.iter().take(i).position(|other| same(other, item)).map(|first| (first, i));
    items.iter().enumerate().find_map(earlier)
}

/// The one version of the format that there is: `1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version;

/// What may be done about a section's findings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Mode {
    /// Mend what is wrong.
    #[default]
    Enforce,
    /// Report what is wrong and never touch it.
    Observe,
    /// Do not even look.
    Off,
}

/// The section `default_routes`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DefaultRoutes {
    /// What may be done.
    pub mode: Mode,
    /// Address families that are looked after.
    #[serde(deserialize_with = "value::some_families")]
    pub families: Vec<Family>,
    /// Tables that are left alone: numbers, or ranges [from, to].
    pub exclude_tables: Vec<TableRange>,
}

impl Default for DefaultRoutes {
    fn default() -> Self {
        let families = vec![Family::V4, Family::V6];
        DefaultRoutes { mode: Mode::Enforce, families, exclude_tables: Vec::new() }
    }
}

/// The section `rp_filter`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RpFilter {
    /// What may be done.
    pub mode: Mode,
    /// The value that is set.
    pub value: RpValue,
    /// Live values that are changed; others are left as they are.
    pub replace: Vec<RpValue>,
    /// Interfaces by name, and `default`, which new interfaces copy. `all` is never written.
    pub interfaces: Pattern,
}

impl Default for RpFilter {
    fn default() -> Self {
        RpFilter {
            mode: Mode::Enforce,
            value: RpValue::Loose,
            replace: vec![RpValue::Off, RpValue::Strict],
            interfaces: Pattern::known_good(value::UPLINKS_AND_PODS),
        }
    }
}

/// A value of rp_filter (Documentation/networking/ip-sysctl.rst in the kernel).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum RpValue {
    /// 0: no check.
    Off,
    /// 1: the reply to the source must leave by the interface that the packet came in by.
    Strict,
    /// 2: the source must be reachable by some interface.
    Loose,
}

impl RpValue {
    /// As the kernel counts.
    pub fn number(self) -> i32 {
        self as i32
    }
}

impl fmt::Display for RpValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RpValue::Off => "off",
            RpValue::Strict => "strict",
            RpValue::Loose => "loose",
        })
    }
}

/// The section `kube_proxy`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct KubeProxy {
    /// What may be done.
    pub mode: Mode,
    /// The uplinks by name. Never the links of pods: they come and go.
    pub interfaces: Pattern,
    /// The change must have stood still this long.
    #[serde(with = "value::wait")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub settle: Duration,
    /// Never restart more often.
    #[serde(with = "value::wait")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub min_interval: Duration,
    /// The program: a path, or a name that is looked for on PATH.
    #[serde(with = "value::program")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub crictl: String,
    /// The socket of the container runtime.
    pub endpoint: String,
    /// Time that one call of crictl may take.
    #[serde(with = "value::timeout")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub timeout: Duration,
    /// Namespace of the pod.
    pub namespace: String,
    /// Labels of the pod, all of which it has.
    #[serde(deserialize_with = "value::some_labels")]
    pub labels: BTreeMap<String, String>,
}

impl Default for KubeProxy {
    fn default() -> Self {
        KubeProxy {
            mode: Mode::Enforce,
            interfaces: Pattern::known_good(value::UPLINKS),
            settle: Duration::from_secs(5),
            min_interval: Duration::from_secs(300),
            crictl: "crictl".into(),
            endpoint: "unix:///run/containerd/containerd.sock".into(),
            timeout: Duration::from_secs(10),
            namespace: "kube-system".into(),
            labels: [("k8s-app".into(), "kube-proxy".into())].into(),
        }
    }
}

impl KubeProxy {
    /// How to ask for the pod.
    pub fn query(&self) -> PodQuery {
        let KubeProxy { crictl, endpoint, timeout, namespace, labels, .. } = self.clone();
        PodQuery { crictl, endpoint, timeout, namespace, labels }
    }
}

/// An entry of the section `rules`: a policy rule with the action lookup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RuleFields")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Rule(RuleFields);

/// The keys of a rule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct RuleFields {
    /// Only where neither from nor to tells; IPv4 if nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Family"))]
    family: Option<Family>,
    /// Lower ones are asked first.
    priority: Priority,
    /// Source prefix.
    #[serde(default, with = "value::prefix", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "String"))]
    from: Option<IpCidr>,
    /// Destination prefix.
    #[serde(default, with = "value::prefix", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "String"))]
    to: Option<IpCidr>,
    /// Mark of the packet, MARK or MARK/MASK.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Fwmark"))]
    fwmark: Option<Fwmark>,
    /// Interface that the packet came in by.
    #[serde(default, with = "value::if_name", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "String"))]
    iif: Option<IfName>,
    /// Interface that the sending socket is bound to.
    #[serde(default, with = "value::if_name", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "String"))]
    oif: Option<IfName>,
    /// Table that it leads to: a number, or main, default or local.
    table: TableId,
}

impl TryFrom<RuleFields> for Rule {
    type Error = String;

    fn try_from(fields: RuleFields) -> Result<Rule, String> {
        let named = [("from", fields.from), ("to", fields.to)];
        let families = named.iter().filter_map(|(key, prefix)| Some((*key, net::family_of(prefix.as_ref()?))));
        agree(families.chain(fields.family.map(|family| ("family", family))))?;
        Ok(Rule(fields))
    }
}

impl Rule {
    /// The rule that should be live, with the mark of what is declared.
    pub fn to_rule(&self) -> net::Rule {
        let RuleFields { family, priority, from, to, fwmark, iif, oif, table } = &self.0;
        // "from 0.0.0.0/0" is how the kernel shows no selector at all.
        let narrow = |prefix: &Option<IpCidr>| prefix.filter(|prefix| prefix.network_length() > 0);
        let told = from.or(*to).map(|prefix| net::family_of(&prefix));
        net::Rule {
            family: told.or(*family).unwrap_or(Family::V4),
            priority: priority.0,
            selector: Selector {
                from: narrow(from),
                to: narrow(to),
                fwmark: fwmark.map(|Fwmark { mark, mask }| (mark, mask)),
                iif: iif.clone(),
                oif: oif.clone(),
            },
            table: table.0,
            protocol: PROTO_DECLARED,
        }
    }
}

/// An entry of the section `routes`: a unicast route with one next hop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RouteFields")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Route(RouteFields);

/// The keys of a route.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct RouteFields {
    /// Destination prefix, or default.
    #[serde(with = "value::destination")]
    #[cfg_attr(test, schemars(with = "String"))]
    to: Option<IpCidr>,
    /// Gateway.
    #[serde(default, with = "value::address", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "String"))]
    via: Option<IpAddr>,
    /// Interface.
    #[serde(default, with = "value::if_name", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "String"))]
    dev: Option<IfName>,
    /// Table: a number, or main, default or local; main if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "TableId"))]
    table: Option<TableId>,
    /// Scope of an IPv4 route: link without a gateway, else global, if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Scope"))]
    scope: Option<Scope>,
    /// Metric; the kernel's own (0 for IPv4, 1024 for IPv6) if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "u32"))]
    metric: Option<u32>,
    /// Believe that the gateway is on the link even if no route says so.
    #[serde(default)]
    onlink: bool,
}

impl TryFrom<RouteFields> for Route {
    type Error = String;

    fn try_from(fields: RouteFields) -> Result<Route, String> {
        let to = fields.to.map(|to| ("to", net::family_of(&to)));
        agree(to.into_iter().chain(fields.via.map(|via| ("via", Family::of(via)))))?;
        let route = Route(fields);
        let RouteFields { via, dev, scope, onlink, .. } = &route.0;
        if via.is_none() && dev.is_none() {
            return Err("needs via (a gateway) or dev (an interface)".into());
        }
        if let Some(via) = via.filter(|via| !is_gateway(*via)) {
            return Err(format!("has the gateway {via}, which is no address of a host"));
        }
        if dev.is_none() && via.is_some_and(|via| matches!(via, IpAddr::V6(via) if via.is_unicast_link_local())) {
            return Err("has a link-local gateway, and so needs dev (the interface that it is on)".into());
        }
        if via.is_some() && scope.is_some_and(|scope| scope != Scope::Global) {
            return Err("has a gateway, and so the scope is global".into());
        }
        if *onlink && (via.is_none() || dev.is_none()) {
            return Err("onlink needs both via and dev".into());
        }
        if scope.is_some() && net::family_of(&route.destination()) == Family::V6 {
            return Err("has a scope, which IPv6 routes do not have".into());
        }
        Ok(route)
    }
}

impl Route {
    /// Name of the interface, where one is declared.
    pub fn dev(&self) -> Option<&IfName> {
        self.0.dev.as_ref()
    }

    fn destination(&self) -> IpCidr {
        let family = self.0.via.map_or(Family::V4, Family::of);
        self.0.to.unwrap_or_else(|| family.everything())
    }

    /// The route that should be live, with the mark of what is declared.
    pub fn to_route(&self, dev: Option<net::Dev>) -> net::Route {
        let RouteFields { via, table, scope, metric, onlink, .. } = &self.0;
        let to = self.destination();
        let usual = if via.is_none() && net::family_of(&to) == Family::V4 { Scope::Link } else { Scope::Global };
        net::Route {
            table: table.map_or(net::TABLE_MAIN, |table| table.0),
            to,
            via: *via,
            dev,
            scope: scope.unwrap_or(usual),
            metric: *metric,
            onlink: *onlink,
            protocol: PROTO_DECLARED,
        }
    }

    /// What the kernel tells routes apart by.
    fn key(&self) -> (u32, IpCidr, u32) {
        let route = self.to_route(None);
        (route.table, route.to, route.stored_metric())
    }
}

/// Whether a host other than this one could have the address.
fn is_gateway(address: IpAddr) -> bool {
    let broadcast = address == IpAddr::V4(std::net::Ipv4Addr::BROADCAST);
    !(address.is_unspecified() || address.is_multicast() || address.is_loopback() || broadcast)
}

/// One address family for all of an entry.
fn agree<'a>(mut families: impl Iterator<Item = (&'a str, Family)>) -> Result<(), String> {
    let Some((first, family)) = families.next() else { return Ok(()) };
    match families.find(|(_, other)| *other != family) {
        Some((key, other)) => Err(format!("mixes address families: {first} is {family}, {key} is {other}")),
        None => Ok(()),
    }
}
