//! The gateway of a policy table without a default route: the evidence for it, best first, and the conditions on it.
//!
//! Weaker evidence is only used if there is no better; better evidence that is ambiguous or unusable blocks the repair.
//! Routes that node-fixer added to repair a table are not evidence.

mod by_main;
mod conditions;

use std::collections::BTreeSet;
use std::net::IpAddr;

use cidr::IpCidr;

use crate::model::{Dev, Family, IfName, PROTO_MENDED, shortened};
use crate::observed::{Gap, Link, SeenRoute};
use crate::topology::{Topology, cni, has_default, leads_to, links_of, sends};

/// A policy table whose sources have no default route.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Broken {
    /// Its number.
    pub table: u32,
    /// The single sources whose rules use it, and that have no default route in another table either.
    pub sources: BTreeSet<IpAddr>,
    /// The branch links whose rules use it.
    pub links: BTreeSet<IfName>,
}

impl Broken {
    /// `table 2 has no default route for 10.0.1.100, 10.0.1.101`.
    pub fn complaint(&self) -> String {
        let sources = self.sources.iter().map(ToString::to_string);
        let links = (!self.links.is_empty()).then(|| format!("packets from {}", shortened(&self.links)));
        format!("table {} has no default route for {}", self.table, shortened(sources.chain(links)))
    }
}

/// The result for a table without a default route.
#[derive(Debug, Clone, PartialEq)]
pub enum GatewayVerdict {
    /// The gateway is certain.
    Known(Gateway),
    /// It is not certain: why, and what an operator can do.
    Blocked(String),
    /// The table belongs to a VRF, which has its own owner.
    OfVrf,
}

/// A gateway and the evidence for it.
#[derive(Debug, Clone, PartialEq)]
pub struct Gateway {
    /// Its address.
    pub address: IpAddr,
    /// Its link.
    pub dev: Dev,
    /// Whether the table already has a route to it on the link.
    pub has_host_route: bool,
    /// The evidence.
    pub evidence: String,
}

/// Looks for the gateway of a broken table.
pub fn find(topology: Topology, family: Family, broken: &Broken) -> Result<GatewayVerdict, Gap> {
    let live = topology.table(family, broken.table)?;
    if topology.observed().links(links_of(&*live))?.iter().flatten().any(|link| link.vrf.is_some()) {
        return Ok(GatewayVerdict::OfVrf);
    }
    // A rule for destinations that the table has routes to needs no default.
    let reaches = |to: &IpCidr| leads_to(&live, to);
    let to_it =
        topology.rules()?.filter(|rule| rule.table == broken.table && !rule.selector.to.as_ref().is_some_and(reaches));
    let sources: BTreeSet<IpAddr> = to_it.filter_map(sends).map(|(source, _)| source).collect();
    let local = topology.observed().addresses()?.iter().map(|it| it.local);
    let own = local.filter(|local| Family::of(*local) == family && sources.contains(local)).collect();
    Search { topology, family, broken, live: &live, own }.find()
}

/// A table whose gateway is looked for.
struct Search<'a> {
    topology: Topology<'a>,
    family: Family,
    broken: &'a Broken,
    live: &'a [SeenRoute],
    /// The addresses of this node whose rules use the table.
    own: BTreeSet<IpAddr>,
}

/// A candidate for the gateway: its address, its link, and the evidence.
struct Candidate {
    gateway: IpAddr,
    index: u32,
    text: String,
}

impl Search<'_> {
    fn find(&self) -> Result<GatewayVerdict, Gap> {
        let mut candidates = BTreeSet::new();
        let mut routes = Vec::new();
        for route in self.live.iter().filter(|route| route.protocol != PROTO_MENDED) {
            let to = route.to.first_address();
            // A route to this node's own address, or to a pod behind its link, says nothing about a gateway.
            if route.is_host_on_link() && (self.topology.is_own(to)? || self.is_pods(route)?) {
                continue;
            }
            routes.push(route);
            candidates.extend(route.oif().filter(|_| route.is_host_on_link()).map(|index| (to, index)));
        }
        match candidates.into_iter().collect::<Vec<_>>().as_slice() {
            [(gateway, index)] => {
                let name = self.topology.name_of(*index)?;
                let text = format!("its only host route is to the gateway {gateway} on {name}");
                return self.check(Candidate { gateway: *gateway, index: *index, text });
            }
            [] => {}
            several => {
                let gateways = shortened(several.iter().map(|(gateway, _)| gateway));
                return Ok(GatewayVerdict::Blocked(format!(
                    "table {} has {} host routes, to {gateways}, and any of them could be the gateway; {}",
                    self.broken.table,
                    several.len(),
                    self.cure()?
                )));
            }
        }
        match links_of(routes.iter().copied()).into_iter().collect::<Vec<_>>().as_slice() {
            _ if routes.is_empty() => self.by_carrier(),
            [index] => self.by_main(*index, "the only interface that its routes use"),
            [] => self.unknown("its routes use no interface"),
            _ => self.unknown("its routes use several interfaces"),
        }
    }

    /// Whether a host route uses the link of a pod.
    fn is_pods(&self, route: &SeenRoute) -> Result<bool, Gap> {
        let Some(name) = route.oif().map(|index| self.topology.name(index)).transpose()?.flatten() else {
            return Ok(false);
        };
        Ok(cni::is_pod_link(name))
    }

    fn unknown(&self, what: &str) -> Result<GatewayVerdict, Gap> {
        let (table, cure) = (self.broken.table, self.cure()?);
        Ok(GatewayVerdict::Blocked(format!("the gateway of table {table} is unknown: {what}; {cure}")))
    }

    /// What an operator can do if nothing shows the gateway.
    fn cure(&self) -> Result<String, Gap> {
        let table = self.broken.table;
        let restart = if self.topology.is_vpc_cni()? { "restart the CNI's pod on this node, " } else { "" };
        Ok(format!(
            "add its default route manually, {restart}or, if it has none on purpose, set default_routes: \
             {{exclude_tables: [{table}]}}"
        ))
    }
}

/// Why a link that is down cannot be used, and the cure.
fn is_down(who: &str, link: &Link) -> String {
    format!("{who} is down; set it up: ip link set {} up", link.dev.name)
}

/// Whether the table has a default route that node-fixer did not add.
pub fn has_default_of_others(routes: &[SeenRoute]) -> bool {
    has_default(routes.iter().filter(|route| route.protocol != PROTO_MENDED))
}
