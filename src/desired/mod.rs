//! What the node should be like: the configuration, typed and validated.
//!
//! The types are the one source of the keys, their defaults and their JSON Schema. [`load`] reads files into
//! them; everything else here is pure.

mod interfaces;
mod load;
mod tree;
mod value;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use cidr::{IpCidr, IpInet};
use serde::{Deserialize, Serialize};

pub use interfaces::{Interfaces, RpFilterEntry};
pub use load::{ConfigError, Loaded, load};
use tree::Step;
pub use value::{
    AddressRange, Fwmark, Inet, LinkGlob, Mtu, Pattern, Priority, SysctlPattern, SysctlValue, TableId, TableRange,
};

use crate::nat;
use crate::net::{self, Family, IfName, PROTO_DECLARED, Scope, Selector};
use crate::pod::PodQuery;
use crate::sorted;

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
    /// Addresses that must be there.
    #[serde(default)]
    pub addresses: Vec<Address>,
    /// Sysctls that must have a value.
    #[serde(default)]
    pub sysctls: Vec<Sysctl>,
    /// Bridges that must be there.
    #[serde(default)]
    pub bridges: Vec<Bridge>,
    /// Sources whose packets leave with the address of the interface that they leave by.
    #[serde(default)]
    pub masquerade: Vec<Masquerade>,
    /// Network namespaces that go when nobody uses them any more, and their links.
    #[serde(default)]
    pub namespaces: Vec<Namespaces>,
    /// What Prometheus is told.
    #[serde(default)]
    pub metrics: Metrics,
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
            addresses: Vec::new(),
            sysctls: Vec::new(),
            bridges: Vec::new(),
            masquerade: Vec::new(),
            namespaces: Vec::new(),
            metrics: Metrics::default(),
        }
    }
}

impl Desired {
    /// What no single value shows to be wrong: the path of the offender and what is wrong with it.
    fn contradiction(&self) -> Option<(Vec<Step>, String)> {
        let rules: Vec<_> = self.rules.iter().map(Rule::to_rule).collect();
        let bridges = self.bridges.iter().map(|bridge| &bridge.name);
        let masquerade = self.masquerade.iter().map(Masquerade::to_masquerade);
        let sysctls = self.sysctls.iter().map(|wish| wish.key.path());
        repeated(rules.iter().map(net::Rule::essence))
            .map(|(first, again, _)| (Step::entry("rules", again), format!("says the same as rules[{first}]")))
            .or_else(|| {
                repeated(self.routes.iter().map(Route::key)).map(|(first, again, _)| {
                    let why = "has the table, destination and metric of";
                    (Step::entry("routes", again), format!("{why} routes[{first}]: a table holds only one such route"))
                })
            })
            .or_else(|| {
                let why = |first| format!("has the name of bridges[{first}]");
                repeated(bridges).map(|(first, again, _)| (Step::entry("bridges", again), why(first)))
            })
            .or_else(|| {
                let why = |first| format!("says the same as masquerade[{first}]");
                repeated(masquerade).map(|(first, again, _)| (Step::entry("masquerade", again), why(first)))
            })
            .or_else(|| {
                let why = |first, key| format!("has the key of sysctls[{first}]: {key}");
                repeated(sysctls).map(|(first, again, key)| (Step::entry("sysctls", again), why(first, key)))
            })
            .or_else(|| self.repeated_address())
            .or_else(|| self.impossible())
    }

    /// What the kernel gives no bridge.
    fn impossible(&self) -> Option<(Vec<Step>, String)> {
        let small = |bridge: &&Bridge| bridge.mtu.is_some_and(|mtu| mtu.0 < LEAST_IPV6_MTU);
        let of_small = sorted::set(self.bridges.iter().filter(small).map(|bridge| &bridge.name));
        let mut v6 = BTreeMap::new();
        if !of_small.is_empty() {
            let inets = self.all_addresses().filter(|(dev, inet)| inet.is_ipv6() && of_small.contains(dev));
            for (dev, inet) in inets {
                v6.entry(dev).or_insert(inet);
            }
        }
        self.bridges.iter().enumerate().find_map(|(i, bridge)| {
            if bridge.addresses.iter().any(|it| it.0.address() == IpAddr::V6(Ipv6Addr::LOCALHOST)) {
                let why = "has the address ::1, which the kernel gives no bridge".into();
                return Some((Step::entry("bridges", i), why));
            }
            let (mtu, inet) = (bridge.mtu?.0, v6.get(&bridge.name)?);
            let why =
                format!("has the mtu {mtu} and the address {inet:#}; IPv6 takes an mtu of {LEAST_IPV6_MTU} or more");
            Some((Step::entry("bridges", i), why))
        })
    }
}

impl Desired {
    /// All addresses that are declared, also those of bridges, each with its interface.
    pub fn all_addresses(&self) -> impl Iterator<Item = (&IfName, IpInet)> {
        let others = self.addresses.iter().flat_map(|it| it.range().map(|address| (it.dev(), address)));
        self.addresses_of_bridges().chain(others)
    }

    /// Those of bridges, each with the bridge.
    pub fn addresses_of_bridges(&self) -> impl Iterator<Item = (&IfName, IpInet)> {
        self.bridges.iter().flat_map(|it| it.addresses.iter().map(|address| (&it.name, address.0)))
    }

    fn repeated_address(&self) -> Option<(Vec<Step>, String)> {
        // IPv6 has an address only once on an interface, whatever its prefix length.
        let key = |address: IpInet| match address {
            IpInet::V4(_) => (address.address(), address.network_length()),
            IpInet::V6(_) => (address.address(), 0),
        };
        let of_bridge = |i, it: &'_ Bridge| {
            (Step::entry("bridges", i), it.name.clone(), it.addresses.iter().map(|it| it.0).collect())
        };
        let of_entry = |i, it: &'_ Address| (Step::entry("addresses", i), it.dev().clone(), it.range().collect());
        let bridges = self.bridges.iter().enumerate().map(|(i, it)| of_bridge(i, it));
        let entries = self.addresses.iter().enumerate().map(|(i, it)| of_entry(i, it));
        let mut known = BTreeSet::new();
        for (path, dev, addresses) in bridges.chain(entries) {
            let addresses: Vec<IpInet> = addresses;
            if let Some(twice) = addresses.into_iter().find(|address| !known.insert((dev.clone(), key(*address)))) {
                return Some((path, format!("declares {twice:#} of {dev} a second time")));
            }
            if known.len() as u128 > MAX_ADDRESSES {
                return Some((path, format!("makes it more than {MAX_ADDRESSES} addresses")));
            }
        }
        None
    }
}

/// The first key that is there a second time: where it was, where it is again, and it.
fn repeated<K: Ord + Clone>(keys: impl Iterator<Item = K>) -> Option<(usize, usize, K)> {
    let mut known = BTreeMap::new();
    keys.enumerate().find_map(|(i, key)| match known.entry(key) {
        Entry::Occupied(first) => Some((*first.get(), i, first.key().clone())),
        Entry::Vacant(new) => {
            new.insert(i);
            None
        }
    })
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
    /// `auto`: the uplinks, the VPC CNI's links of pods, and `default`, which new interfaces copy. Or interfaces by name,
    /// and `default`. `all` is never written.
    pub interfaces: Interfaces,
    /// Further interfaces with a value of their own. The first entry that matches an interface counts, these before the
    /// keys above.
    pub more: Vec<RpFilterEntry>,
    /// Interfaces, as patterns of sysctl.d(5), for which the value is also written to /etc/sysctl.d: for the next boot,
    /// and for interfaces to come.
    pub persist: Vec<LinkGlob>,
}

impl Default for RpFilter {
    fn default() -> Self {
        RpFilter {
            mode: Mode::Enforce,
            value: RpValue::Loose,
            replace: vec![RpValue::Off, RpValue::Strict],
            interfaces: Interfaces::Auto,
            more: Vec::new(),
            persist: Vec::new(),
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
    /// `auto`: the uplinks. Or interfaces by name; never the links of pods: they come and go.
    pub interfaces: Interfaces,
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
            interfaces: Interfaces::Auto,
            settle: Duration::from_secs(5),
            min_interval: Duration::from_secs(300),
            crictl: "crictl".into(),
            endpoint: "unix:///run/containerd/containerd.sock".into(),
            timeout: Duration::from_secs(10),
            namespace: "kube-system".into(),
            labels: sorted::map([("k8s-app".into(), "kube-proxy".into())]),
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

/// The section `metrics`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Metrics {
    /// The directory whose files node_exporter's textfile collector reads; node_fixer.prom is written there by each run.
    #[serde(deserialize_with = "value::directory", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "String", extend("pattern" = "^/")))]
    pub textfile: Option<PathBuf>,
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

/// An entry of the section `addresses`: one address, or many.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "AddressFields")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Address(AddressFields);

/// The keys of an entry of `addresses`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct AddressFields {
    /// Interface.
    #[serde(with = "value::name")]
    #[cfg_attr(test, schemars(with = "String"))]
    dev: IfName,
    /// An address with its prefix length, such as 10.0.0.1/24 (that of a single host if there is none), or a range of
    /// them, such as 127.0.1.1-127.0.1.32.
    address: AddressRange,
    /// Whether `address` is a prefix, each address of which is wanted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    each: bool,
}

/// What IPv6 asks of a link.
const LEAST_IPV6_MTU: u32 = 1280;
/// Most addresses that one entry may stand for.
const MAX_ADDRESSES: u128 = 65_536;

impl TryFrom<AddressFields> for Address {
    type Error = String;

    fn try_from(fields: AddressFields) -> Result<Address, String> {
        let AddressFields { address: AddressRange { first, last, length }, each, .. } = fields;
        let first_inet = IpInet::new(first, length).map_err(|error| error.to_string())?;
        let is_network = value::is_network(&first_inet);
        let address = Address(fields);
        match () {
            () if each && first != last => Err("is a range already, and so takes no `each`".into()),
            () if each && first != first_inet.first_address() => {
                Err(format!("has bits set behind its prefix; did you mean {:#}?", first_inet.network()))
            }
            () if !each && first == last && is_network => {
                Err(format!("{first_inet:#} is the address of a network; for each address in it say `each: true`"))
            }
            () if address.count() > MAX_ADDRESSES => Err(format!("stands for more than {MAX_ADDRESSES} addresses")),
            () => Ok(address),
        }
    }
}

impl Address {
    /// The interface.
    pub fn dev(&self) -> &IfName {
        &self.0.dev
    }

    fn ends(&self) -> (u128, u128) {
        let AddressRange { first, last, length } = self.0.address;
        match IpInet::new(first, length) {
            Ok(inet) if self.0.each => (value::bits(inet.first_address()), value::bits(inet.last_address())),
            _ => (value::bits(first), value::bits(last)),
        }
    }

    fn count(&self) -> u128 {
        let (first, last) = self.ends();
        (last - first).saturating_add(1)
    }

    /// The addresses, each with its prefix length.
    pub fn range(&self) -> impl Iterator<Item = IpInet> + use<> {
        let AddressRange { first, length, .. } = self.0.address;
        let length = (!self.0.each).then_some(length);
        let (begin, end) = self.ends();
        (begin..=end).filter_map(move |bits| {
            let address = value::from_bits(bits, Family::of(first));
            // The length was taken with the first address of the same family.
            length.map_or(Some(IpInet::new_host(address)), |length| IpInet::new(address, length).ok())
        })
    }
}

/// An entry of the section `sysctls`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Sysctl {
    /// The key, with dots or slashes as sysctl.d(5) has it: net.ipv4.ip_forward, net/ipv4/conf/eth0.100/proxy_arp. In
    /// the place of an interface a pattern may stand: net.ipv4.conf.vh_*.proxy_arp.
    pub key: SysctlPattern,
    /// The value.
    pub value: SysctlValue,
    /// Whether it is also written to /etc/sysctl.d, for the next boot and for interfaces to come.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub persist: bool,
}

/// An entry of the section `bridges`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Bridge {
    /// Its name.
    #[serde(deserialize_with = "value::new_name", serialize_with = "value::name::serialize")]
    #[cfg_attr(test, schemars(with = "String"))]
    pub name: IfName,
    /// Addresses with their prefix lengths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Inet>,
    /// Largest packet, in bytes; left to the kernel if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Mtu"))]
    pub mtu: Option<Mtu>,
    /// Whether it speaks the spanning tree protocol; left to the kernel if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "bool"))]
    pub stp: Option<bool>,
}

/// An entry of the section `masquerade`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "MasqueradeFields")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Masquerade(MasqueradeFields);

/// The keys of an entry of `masquerade`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct MasqueradeFields {
    /// Source prefix.
    #[serde(with = "value::source")]
    #[cfg_attr(test, schemars(with = "String"))]
    source: IpCidr,
    /// Only what leaves by this interface.
    #[serde(default, with = "value::if_name", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "String"))]
    out: Option<IfName>,
    /// Only what does not leave by this interface.
    #[serde(default, with = "value::if_name", skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "String"))]
    except_out: Option<IfName>,
}

impl TryFrom<MasqueradeFields> for Masquerade {
    type Error = String;

    fn try_from(fields: MasqueradeFields) -> Result<Masquerade, String> {
        let MasqueradeFields { source, out, except_out } = &fields;
        if source.first_address().is_multicast() {
            return Err(format!("has the source {source}, which no packet comes from: it is multicast"));
        }
        if out.is_some() && except_out.is_some() {
            return Err("takes out or except_out, not both: what leaves by one does not leave by another".into());
        }
        if let Some(name) = [out, except_out].into_iter().flatten().find(|name| !nat::is_quotable(name)) {
            return Err(format!(
                "names the interface {name}, which cannot be written for nftables: it has a quotation mark, a \\ or a control \
                 character in it"
            ));
        }
        Ok(Masquerade(fields))
    }
}

impl Masquerade {
    /// What should be live.
    pub fn to_masquerade(&self) -> nat::Masquerade {
        let MasqueradeFields { source, out, except_out } = self.0.clone();
        nat::Masquerade { source, out, except_out }
    }
}

/// An entry of the section `namespaces`. The first one whose `match` matches a name counts for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "NamespacesFields")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Namespaces(NamespacesFields);

/// The keys of an entry of `namespaces`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
struct NamespacesFields {
    /// Network namespaces by name.
    #[serde(rename = "match")]
    matches: Pattern,
    /// Without a process for at least so long.
    #[serde(with = "value::wait")]
    #[cfg_attr(test, schemars(with = "String"))]
    older_than: Duration,
    /// Links of the host by name. One belongs to a namespace when the first groups of both patterns match the same text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Pattern"))]
    links: Option<Pattern>,
    /// What may be done.
    #[serde(default = "observe")]
    mode: Mode,
}

fn observe() -> Mode {
    Mode::Observe
}

impl TryFrom<NamespacesFields> for Namespaces {
    type Error = String;

    fn try_from(fields: NamespacesFields) -> Result<Namespaces, String> {
        let patterns = [("match", Some(&fields.matches)), ("links", fields.links.as_ref())];
        let without = |(_, pattern): &&(_, Option<&Pattern>)| pattern.is_some_and(|pattern| !pattern.has_group());
        match patterns.iter().find(without) {
            Some((key, _)) if fields.links.is_some() => Err(format!(
                "`{key}` has no group: a link belongs to the namespace whose first group is the same text, as in match: \
                 '^fc-(.+)$', links: '^vh_(.+)$'"
            )),
            _ => Ok(Namespaces(fields)),
        }
    }
}

impl Namespaces {
    /// What may be done.
    pub fn mode(&self) -> Mode {
        self.0.mode
    }

    /// For how long a namespace must have been without a process.
    pub fn older_than(&self) -> Duration {
        self.0.older_than
    }

    /// Whether it is one of these, by its name.
    pub fn is_match(&self, namespace: &[u8]) -> bool {
        self.0.matches.is_match(namespace)
    }

    /// The pattern of the links that belong to these namespaces.
    pub fn links(&self) -> Option<&Pattern> {
        self.0.links.as_ref()
    }

    /// What the namespace has in common with its links, by its name.
    pub fn key_of<'a>(&self, namespace: &'a [u8]) -> Option<&'a [u8]> {
        self.0.matches.first_group(namespace)
    }

    /// What the link has in common with its namespace, by its name.
    pub fn key_of_link<'a>(&self, link: &'a [u8]) -> Option<&'a [u8]> {
        self.links()?.first_group(link)
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
