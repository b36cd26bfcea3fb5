//! The configuration: the desired state of the node, typed and validated.
//!
//! The types are the only source of the keys, their defaults and their JSON Schema. [`mod@load`] reads files into them;
//! everything else here is pure. Each section is a file with its keys, defaults, checks and messages.
//!
//! A new section is a file like `bridges.rs`, its `mod` and `pub use` below, its key in [`Config`] and, if entries can
//! contradict each other, a line in `Config::contradiction`. Document its keys in config/node-fixer.yaml, update
//! config/schema.json with `UPDATE_SCHEMA=1 cargo test --lib schema`, and add refused values to tests/bad-config.

mod addresses;
mod bridges;
mod default_routes;
mod files;
mod interfaces;
mod kernel_rules;
mod kube_proxy;
mod load;
mod masquerade;
mod metrics;
mod namespaces;
mod place;
mod pod_rules;
mod routes;
mod rp_filter;
mod rules;
mod show;
mod sysctls;
mod tables;
mod types;
mod uplinks;
mod watch;
mod yaml;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};

use cidr::IpInet;
use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};

pub use addresses::AddressEntry;
pub use bridges::Bridge;
pub use default_routes::DefaultRoutes;
pub use files::FileText;
pub use interfaces::Interfaces;
pub use kernel_rules::KernelRules;
pub use kube_proxy::KubeProxy;
pub use load::{ConfigError, Loaded, load, of_files, table_names};
pub use masquerade::MasqueradeEntry;
pub use metrics::{Directory, Metrics};
pub use namespaces::Namespaces;
pub use pod_rules::PodRules;
pub use routes::RouteEntry;
pub use rp_filter::{RpFilter, RpValue};
pub use rules::RuleEntry;
pub use sysctls::Sysctl;
pub use types::Pattern;
pub use uplinks::Uplinks;
pub use watch::Watch;

use addresses::MAX_ADDRESSES;
use place::PathStep;
use types::{read_number, schema};

use crate::model::{Family, IfName, LEAST_IPV6_MTU};
use crate::sorted;

/// The built-in default, which is also the reference of every key.
pub const DEFAULT_YAML: &str = include_str!("../../config/node-fixer.yaml");

/// The JSON Schema of the configuration. A test checks it against these types.
pub const SCHEMA: &str = include_str!("../../config/schema.json");

/// The desired state of a node.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, expecting = "a mapping")]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "Desired"))]
pub struct Config {
    /// Version of the configuration format: 1.
    pub version: Version,
    /// Every policy table that pods or uplinks use has a default route.
    #[serde(default)]
    pub default_routes: DefaultRoutes,
    /// Reverse path filter of the interfaces that carry pod traffic.
    #[serde(default)]
    pub rp_filter: RpFilter,
    /// Restart of kube-proxy when the uplinks have changed.
    #[serde(default)]
    pub kube_proxy: KubeProxy,
    /// Settings of the uplinks.
    #[serde(default)]
    pub uplinks: Uplinks,
    /// The VPC CNI's own rules are restored when another program has removed them.
    #[serde(default)]
    pub pod_rules: PodRules,
    /// The kernel's own rules are restored when another program has removed them.
    #[serde(default)]
    pub kernel_rules: KernelRules,
    /// Policy rules that must exist.
    #[serde(default)]
    pub rules: Vec<RuleEntry>,
    /// Routes that must exist.
    #[serde(default)]
    pub routes: Vec<RouteEntry>,
    /// Addresses that must exist.
    #[serde(default)]
    pub addresses: Vec<AddressEntry>,
    /// Sysctls that must have a value.
    #[serde(default)]
    pub sysctls: Vec<Sysctl>,
    /// Bridges that must exist.
    #[serde(default)]
    pub bridges: Vec<Bridge>,
    /// Sources whose packets leave with the address of the outgoing interface.
    #[serde(default)]
    pub masquerade: Vec<MasqueradeEntry>,
    /// Stale network namespaces to remove, and their links.
    #[serde(default)]
    pub namespaces: Vec<Namespaces>,
    /// Metrics for Prometheus.
    #[serde(default)]
    pub metrics: Metrics,
    /// How `node-fixer watch` starts runs.
    #[serde(default)]
    pub watch: Watch,
}

/// Contradictions between values: the path of the offender, and the error.
type Contradiction = (Vec<PathStep>, String);

impl Config {
    fn contradiction(&self) -> Option<Contradiction> {
        rules::contradiction(&self.rules)
            .or_else(|| routes::contradiction(&self.routes))
            .or_else(|| bridges::contradiction(&self.bridges))
            .or_else(|| masquerade::contradiction(&self.masquerade))
            .or_else(|| sysctls::contradiction(&self.sysctls))
            .or_else(|| self.repeated_address())
            .or_else(|| self.impossible_bridge())
    }

    /// Addresses that the kernel does not allow on a bridge.
    fn impossible_bridge(&self) -> Option<Contradiction> {
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
                let why = "has the address ::1, which the kernel does not allow on a bridge".into();
                return Some((PathStep::entry("bridges", i), why));
            }
            let (mtu, inet) = (bridge.mtu?.0, v6.get(&bridge.name)?);
            let why = format!(
                "has the mtu {mtu} and the address {inet:#}; IPv6 requires an mtu of at least {LEAST_IPV6_MTU}"
            );
            Some((PathStep::entry("bridges", i), why))
        })
    }

    /// All declared addresses, including those of bridges, each with its interface.
    pub fn all_addresses(&self) -> impl Iterator<Item = (&IfName, IpInet)> {
        let others = self.addresses.iter().flat_map(|it| it.range().map(|address| (it.dev(), address)));
        self.addresses_of_bridges().chain(others)
    }

    /// The addresses of bridges, each with its bridge.
    pub fn addresses_of_bridges(&self) -> impl Iterator<Item = (&IfName, IpInet)> {
        self.bridges.iter().flat_map(|it| it.addresses.iter().map(|address| (&it.name, address.0)))
    }

    fn repeated_address(&self) -> Option<Contradiction> {
        // An interface has an IPv6 address only once, whatever its prefix length.
        let key = |address: IpInet| match address {
            IpInet::V4(_) => (address.address(), address.network_length()),
            IpInet::V6(_) => (address.address(), 0),
        };
        let of_bridge = |i, it: &'_ Bridge| {
            (PathStep::entry("bridges", i), it.name.clone(), it.addresses.iter().map(|it| it.0).collect())
        };
        let of_entry =
            |i, it: &'_ AddressEntry| (PathStep::entry("addresses", i), it.dev().clone(), it.range().collect());
        let bridges = self.bridges.iter().enumerate().map(|(i, it)| of_bridge(i, it));
        let entries = self.addresses.iter().enumerate().map(|(i, it)| of_entry(i, it));
        let mut known = BTreeSet::new();
        for (path, dev, addresses) in bridges.chain(entries) {
            let addresses: Vec<IpInet> = addresses;
            if let Some(twice) = addresses.into_iter().find(|address| !known.insert((dev.clone(), key(*address)))) {
                return Some((path, format!("declares {twice:#} of {dev} a second time")));
            }
            if known.len() as u128 > MAX_ADDRESSES {
                return Some((path, format!("exceeds the maximum of {MAX_ADDRESSES} addresses")));
            }
        }
        None
    }
}

/// The first entry of the section with the key of an earlier one. `wrong` gets the index of that one and the key.
fn repeated<K: Ord>(
    section: &str,
    keys: impl Iterator<Item = K>,
    why: impl Fn(usize, &K) -> String,
) -> Option<Contradiction> {
    let mut known = BTreeMap::new();
    keys.enumerate().find_map(|(i, key)| match known.entry(key) {
        Entry::Occupied(first) => Some((PathStep::entry(section, i), why(*first.get(), first.key()))),
        Entry::Vacant(new) => {
            new.insert(i);
            None
        }
    })
}

/// Checks that all parts of an entry are of one address family.
fn agree<'a>(mut families: impl Iterator<Item = (&'a str, Family)>) -> Result<(), String> {
    let Some((first, family)) = families.next() else { return Ok(()) };
    match families.find(|(_, other)| *other != family) {
        Some((key, other)) => Err(format!("mixes address families: {first} is {family}, {key} is {other}")),
        None => Ok(()),
    }
}

/// The only version of the format: `1`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Version;

impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match read_number(deserializer, "the number 1", |_| None)? {
            1 => Ok(Version),
            other => Err(de::Error::custom(format_args!("this node-fixer supports version 1, not {other}"))),
        }
    }
}

impl Serialize for Version {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(1)
    }
}

schema!(Version, { "const": 1 });

/// What a section does about its findings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Mode {
    /// Repair them.
    #[default]
    Enforce,
    /// Report them; change nothing.
    Observe,
    /// Turn the section off.
    Off,
}
