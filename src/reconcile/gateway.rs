//! The gateway of a policy table that has no default route: the evidence for it, best first, and the conditions on it.
//!
//! A worse kind of evidence is tried only where the better is absent; better evidence that is ambiguous or of no use
//! blocks. What node-fixer itself has added to repair a table is evidence of nothing.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use cidr::IpCidr;

use super::default_routes::Broken;
use crate::net::{Dev, Family, IfName, PROTO_MENDED, Rule, TABLE_MAIN, UPLINK_RULE_PRIORITY, family_of, shortened};
use crate::observed::{Gap, Hop, Link, SeenRoute, Target};
use crate::topology::{Topology, cni, has_default, host, leads_to, sends};

/// What the evidence says about a table without a default route.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// The gateway is certain.
    Known(Gateway),
    /// It is not: why, and what an operator can do.
    Blocked(String),
    /// The table belongs to a VRF, which has an owner of its own.
    OfVrf,
}

/// A gateway and how it is known.
#[derive(Debug, Clone, PartialEq)]
pub struct Gateway {
    /// Its address.
    pub address: IpAddr,
    /// The link that it is behind.
    pub dev: Dev,
    /// Whether the table leads to it on the link already.
    pub has_host_route: bool,
    /// How it is known.
    pub evidence: String,
}

/// Looks for the gateway of a broken table.
pub fn find(topology: Topology, family: Family, broken: &Broken) -> Result<Verdict, Gap> {
    let live = topology.table(family, broken.table)?;
    let used: BTreeSet<u32> = live.iter().flat_map(SeenRoute::hops).filter_map(|hop| hop.oif).collect();
    if topology.observed().links(used.iter().copied())?.iter().flatten().any(|link| link.vrf_slave) {
        return Ok(Verdict::OfVrf);
    }
    // A rule for destinations that the table has a route to is nothing to its default.
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
    /// The addresses of this node that rules lead to the table.
    own: BTreeSet<IpAddr>,
}

/// Evidence for a gateway: its address, the link that it is behind, and how it is known.
struct Evidence {
    gateway: IpAddr,
    index: u32,
    text: String,
}

impl Search<'_> {
    fn find(&self) -> Result<Verdict, Gap> {
        let mut candidates = BTreeSet::new();
        let mut routes = Vec::new();
        for route in self.live.iter().filter(|route| route.protocol != PROTO_MENDED) {
            let to = route.to.first_address();
            // A route to this node's own address, or to a pod behind its link, tells nothing of a gateway.
            if route.is_host_on_link() && (self.topology.is_own(to)? || self.is_pods(route)?) {
                continue;
            }
            routes.push(route);
            candidates.extend(route.oif().filter(|_| route.is_host_on_link()).map(|index| (to, index)));
        }
        match candidates.into_iter().collect::<Vec<_>>().as_slice() {
            [(gateway, index)] => {
                let name = self.topology.name_of(*index)?;
                let text = format!("its one host route names the gateway {gateway} on {name}");
                return self.check(Evidence { gateway: *gateway, index: *index, text });
            }
            [] => {}
            several => {
                let gateways = shortened(several.iter().map(|(gateway, _)| gateway));
                return Ok(Verdict::Blocked(format!(
                    "table {} has {} host routes, to {gateways}, and any of them could be the gateway; {}",
                    self.broken.table,
                    several.len(),
                    self.cure()?
                )));
            }
        }
        let used: BTreeSet<u32> = routes.iter().flat_map(|route| route.hops()).filter_map(|hop| hop.oif).collect();
        match used.into_iter().collect::<Vec<_>>().as_slice() {
            _ if routes.is_empty() => self.by_carrier(),
            [index] => self.by_main(*index, "the one interface that its routes use"),
            [] => self.unknown("its routes use no interface"),
            _ => self.unknown("its routes use several interfaces"),
        }
    }

    /// Whether a host route leads over the link of a pod.
    fn is_pods(&self, route: &SeenRoute) -> Result<bool, Gap> {
        let Some(name) = route.oif().map(|index| self.topology.name(index)).transpose()?.flatten() else {
            return Ok(false);
        };
        Ok(cni::is_pod_link(name, false))
    }

    /// For an empty table: the link that carries the source of a rule to it.
    fn by_carrier(&self) -> Result<Verdict, Gap> {
        let mut carriers = BTreeSet::new();
        for source in &self.own {
            carriers.extend(self.topology.carriers(*source)?);
        }
        match carriers.into_iter().collect::<Vec<_>>().as_slice() {
            [index] => {
                let sources = shortened(&self.own);
                self.by_main(*index, &format!("the interface with the address {sources} of its rule"))
            }
            [] => self.no_carrier(),
            _ => self.unknown("it is empty, and the addresses of its rules belong to several interfaces"),
        }
    }

    /// An empty table, and none of its sources is an address of this node.
    fn no_carrier(&self) -> Result<Verdict, Gap> {
        if self.topology.is_vpc_cni()? && !self.broken.sources.is_empty() {
            let to_it = |rule: &&Rule| {
                (rule.family, rule.table, rule.priority) == (self.family, self.broken.table, UPLINK_RULE_PRIORITY)
            };
            let rules = self.topology.rules()?.filter(to_it);
            let uplink = rules.filter_map(|rule| Some((rule, host(rule.selector.from.as_ref())?))).next();
            if let Some((rule, lost)) = uplink {
                let pods: Vec<_> = self.broken.sources.iter().filter(|source| **source != lost).collect();
                // The address may come back, and needs its rule then.
                let cure = match pods.is_empty() {
                    true => format!("give it back; if it is gone for good: {}", rule.command("del")),
                    false => format!("no route helps: recreate the pods {}", shortened(pods)),
                };
                return Ok(Verdict::Blocked(format!(
                    "table {} is empty, and no interface here has {lost}, the address of its rule \
                     {UPLINK_RULE_PRIORITY}: its network interface is gone, or has lost its address; {cure}",
                    self.broken.table
                )));
            }
        }
        self.unknown("it is empty, and no interface here carries the source of a rule that leads to it")
    }

    /// The gateway that the main table's default names, or the peer of a point-to-point address; where the VPC CNI is at
    /// work, the first address of the subnet.
    fn by_main(&self, index: u32, how: &str) -> Result<Verdict, Gap> {
        let Some(link) = self.topology.link(index)? else {
            return self.unknown(&format!("interface number {index} is gone"));
        };
        if link.vrf_slave {
            return Ok(Verdict::OfVrf);
        }
        let name = &link.dev.name;
        if !link.up {
            // Its routes went when it went down: until it is up, nothing else is known.
            return Ok(Verdict::Blocked(format!("{name} is {how}, but {}", is_down("it", link))));
        }
        let (near, far) = self.main_gateways(index)?;
        let gateways = if near.is_empty() { &far } else { &near };
        match gateways.iter().collect::<Vec<_>>().as_slice() {
            [gateway] => {
                let subnets = self.topology.subnets(index, self.family)?;
                let place = match **gateway {
                    gateway if is_link_local(gateway) => "is a router on the link of",
                    gateway if subnets.iter().any(|subnet| subnet.contains(&gateway)) => "lies in the subnet of",
                    _ => "is behind",
                };
                let text = format!("the main table's gateway {gateway} {place} {name}, {how}");
                return self.check(Evidence { gateway: **gateway, index, text });
            }
            [] => {}
            several => {
                let several = shortened(several.iter());
                return self
                    .unknown(&format!("the main table has several gateways in the subnet of {name}: {several}"));
            }
        }
        if let Some(evidence) = self.by_peer(index, name, how)? {
            return self.check(evidence);
        }
        if let Some(evidence) = self.by_subnet(index, name)? {
            return self.check(evidence);
        }
        self.unknown(&format!("{name} is {how}, and {}", self.no_gateway_of_main(index, name)?))
    }

    /// The gateways of the main table's default routes that count for a link: those that leave by it, and those of
    /// other links that lie in a subnet of it.
    fn main_gateways(&self, index: u32) -> Result<(BTreeSet<IpAddr>, BTreeSet<IpAddr>), Gap> {
        let (mut near, mut far) = (BTreeSet::new(), BTreeSet::new());
        let subnets = self.topology.subnets(index, self.family)?;
        // An uplink with nothing but a /32 has no subnet: what main sends by it names its gateway.
        let alone = subnets.iter().all(|subnet| is_link_local(subnet.first_address()));
        for Hop { via, oif } in self.hops_of_main()? {
            let Some(gateway) = via else { continue };
            let inside = if is_link_local(gateway) {
                // Each link has link-local addresses of its own: one is known for the link that the route leaves by.
                oif == Some(index) || oif.map(|oif| self.share_a_prefix(oif, index)).transpose()?.unwrap_or(false)
            } else {
                alone && oif == Some(index) || subnets.iter().any(|subnet| subnet.contains(&gateway))
            };
            if inside && oif == Some(index) {
                near.insert(gateway);
            } else if inside {
                far.insert(gateway);
            }
        }
        Ok((near, far))
    }

    fn hops_of_main(&self) -> Result<Vec<Hop>, Gap> {
        let main = self.topology.table(self.family, TABLE_MAIN)?;
        let defaults = main.iter().filter(|route| route.to.network_length() == 0 && route.is_unlimited());
        let defaults = defaults.filter(|route| route.protocol != PROTO_MENDED);
        Ok(defaults.flat_map(SeenRoute::hops).copied().collect())
    }

    /// Whether both links have an address in one global prefix.
    fn share_a_prefix(&self, one: u32, other: u32) -> Result<bool, Gap> {
        let mut prefixes = self.topology.subnets(one, self.family)?;
        prefixes.extend(self.topology.subnets(other, self.family)?);
        for prefix in prefixes.iter().filter(|prefix| !is_link_local(prefix.first_address())) {
            let mut both = true;
            for link in [one, other] {
                both &= self.topology.addresses(link, self.family)?.any(|it| it.global && prefix.contains(&it.local));
            }
            if both {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The other end of a point-to-point address of this node that rules lead to the table.
    fn by_peer(&self, index: u32, name: &IfName, how: &str) -> Result<Option<Evidence>, Gap> {
        let peers =
            self.topology.addresses(index, self.family)?.filter(|it| it.has_peer && self.own.contains(&it.local));
        let peers: BTreeSet<IpAddr> = peers.filter_map(|it| host(Some(&it.subnet))).collect();
        Ok(match peers.into_iter().collect::<Vec<_>>().as_slice() {
            [gateway] => {
                let text = format!("{gateway} is the peer of the point-to-point address of {name}, {how}");
                Some(Evidence { gateway: *gateway, index, text })
            }
            _ => None,
        })
    }

    /// The VPC's router, where the VPC CNI is at work and the gateways of all complete tables are such: the first address
    /// of the subnet, and for IPv6 the one address that it has on every link.
    fn by_subnet(&self, index: u32, name: &IfName) -> Result<Option<Evidence>, Gap> {
        let mut carries = false;
        for source in &self.own {
            carries |= self.topology.carriers(*source)?.contains(&index);
        }
        if !carries || !self.topology.is_vpc_cni()? || !self.gateways_are_first()? {
            return Ok(None);
        }
        let others = "as the gateways of this node's other tables are";
        if self.family == Family::V6 {
            let text = format!("{VPC_ROUTER} is the router of a VPC on every link, also on {name}, {others}");
            return Ok(Some(Evidence { gateway: VPC_ROUTER.into(), index, text }));
        }
        let subnets = self.topology.subnets(index, self.family)?;
        let [subnet] = subnets.as_slice() else { return Ok(None) };
        let Some(gateway) = first_of(subnet) else { return Ok(None) };
        let text = format!("{gateway} is the first address of {subnet}, the subnet of {name}, {others}");
        Ok(Some(Evidence { gateway, index, text }))
    }

    /// Whether the gateway of each complete table, the main one included, is the VPC's router.
    fn gateways_are_first(&self) -> Result<bool, Gap> {
        let mut tables = self.topology.policy_tables()?;
        tables.insert((self.family, TABLE_MAIN));
        tables.retain(|(family, _)| *family == self.family);
        self.topology.ask_for_tables(tables.iter().copied())?;
        let mut complete = 0;
        for (family, table) in tables {
            let routes = self.topology.table(family, table)?;
            let defaults = routes.iter().filter(|it| it.is_of_default_class() && it.protocol != PROTO_MENDED);
            for Hop { via, oif } in defaults.flat_map(SeenRoute::hops) {
                let (Some(via), Some(oif)) = (via, oif) else { return Ok(false) };
                let Some(link) = self.topology.link(*oif)? else { return Ok(false) };
                // A branch link has no address, so that its subnet is not known.
                if cni::is_branch_link(&link.dev.name) {
                    continue;
                }
                let is_first = |subnet: &IpCidr| first_of(subnet) == Some(*via);
                if *via != VPC_ROUTER && !self.topology.subnets(*oif, family)?.iter().any(is_first) {
                    return Ok(false);
                }
                complete += 1;
            }
        }
        Ok(complete > 0)
    }

    fn no_gateway_of_main(&self, index: u32, name: &IfName) -> Result<String, Gap> {
        let hops = self.hops_of_main()?;
        let elsewhere = hops.iter().find(|hop| hop.oif != Some(index) && hop.via.is_some_and(is_link_local));
        if let Some(Hop { via: Some(gateway), oif: Some(oif) }) = elsewhere {
            let other = self.topology.name_of(*oif)?;
            return Ok(format!(
                "{gateway} is the router on the link of {other}; nothing tells the one on that of {name}"
            ));
        }
        let gateways: BTreeSet<IpAddr> = hops.iter().filter_map(|hop| hop.via).collect();
        Ok(format!(
            "no gateway of the main table's default routes ({}) lies in its subnets ({})",
            shortened(gateways),
            shortened(self.topology.subnets(index, self.family)?)
        ))
    }

    /// Whether the gateway can be used over the link: the conditions on every kind of evidence.
    fn check(&self, Evidence { gateway, index, text }: Evidence) -> Result<Verdict, Gap> {
        let Some(link) = self.topology.link(index)? else {
            return Ok(Verdict::Blocked(format!("interface number {index} is gone; look again")));
        };
        let to_gateway = || self.live.iter().filter(|route| route.to == IpCidr::new_host(gateway));
        let leads = |route: &SeenRoute| route.target == Target::Hop(Hop { via: None, oif: Some(index) });
        let table = self.broken.table;
        let trouble = if !link.up {
            Some(is_down(&link.dev.name.to_string(), link))
        } else if self.has_no_address(index, &link.dev)? {
            Some(format!("{} has no global {} address; give it its address back", link.dev.name, self.family))
        } else if let Some(trouble) = self.owner_elsewhere(index, &link.dev)? {
            Some(trouble)
        } else if self.topology.is_own(gateway)? {
            Some(format!("{gateway} is an address of this node itself"))
        } else if self.is_pod(gateway)? {
            Some(format!("{gateway} is a pod's address, no gateway"))
        } else if let Some(trouble) = self.out_of_reach(gateway, index, link)? {
            Some(trouble)
        } else if to_gateway().any(|route| !leads(route)) {
            let ip = self.family.ip_command();
            Some(format!("table {table} leads to {gateway} by another way ({ip} route show {gateway} table {table})"))
        } else {
            None
        };
        Ok(match trouble {
            Some(trouble) => Verdict::Blocked(format!("{text}, but {trouble}; {}", self.cure()?)),
            None => {
                let has_host_route = to_gateway().next().is_some();
                Verdict::Known(Gateway { address: gateway, dev: link.dev.clone(), has_host_route, evidence: text })
            }
        })
    }

    /// Why a source of the table does not belong behind the link, if one does not: it is an address of this node on
    /// another link, or a pod's in the subnet of another uplink alone.
    fn owner_elsewhere(&self, index: u32, dev: &Dev) -> Result<Option<String>, Gap> {
        for source in &self.own {
            let carriers = self.topology.carriers(*source)?;
            if !carriers.contains(&index) {
                let names = self.topology.names_of(carriers)?;
                return Ok(Some(format!("its source {source} is an address of {names}, not of {}", dev.name)));
            }
        }
        let uplinks = self.topology.uplinks()?;
        let subnets = self.topology.connected_subnets(self.family)?;
        for source in self.broken.sources.difference(&self.own) {
            let holders = subnets.holders(*source);
            if !holders.is_empty() && !holders.contains(&index) && holders.is_subset(&uplinks) {
                let names = self.topology.names_of(holders)?;
                return Ok(Some(format!("its source {source} lies in the subnet of {names}, not of {}", dev.name)));
            }
        }
        Ok(None)
    }

    /// Whether a link has lost its address. A branch link has none by design.
    fn has_no_address(&self, index: u32, dev: &Dev) -> Result<bool, Gap> {
        let global = self.topology.addresses(index, self.family)?.any(|it| it.global);
        Ok(!global && !cni::is_branch_link(&dev.name))
    }

    /// Why the gateway cannot be on the link, if it cannot.
    fn out_of_reach(&self, gateway: IpAddr, index: u32, link: &Link) -> Result<Option<String>, Gap> {
        let name = &link.dev.name;
        if cni::is_branch_link(name) {
            return Ok(None); // by the host route on it
        }
        let mut addresses = self.topology.addresses(index, self.family)?;
        let subnets = self.topology.subnets(index, self.family)?;
        let is_peer = addresses.any(|it| it.has_peer && it.subnet.contains(&gateway));
        let carries_source = !self.own.is_empty();
        // An uplink with nothing but a /32 has no subnet: there the host route on the link of the source is enough.
        let alone = subnets.iter().all(|subnet| is_link_local(subnet.first_address())) && carries_source;
        let alone = alone && !is_of_cloud(gateway);
        let link_local = gateway.is_ipv6() && is_link_local(gateway);
        if link_local || is_peer || alone || subnets.iter().any(|subnet| subnet.contains(&gateway)) {
            return Ok(None);
        }
        let listed = if subnets.is_empty() { "none".to_owned() } else { shortened(&subnets) };
        Ok(Some(format!("{gateway} lies outside the subnets of {name} ({listed})")))
    }

    /// Whether rules or routes of the main table show an address to be a pod's.
    fn is_pod(&self, address: IpAddr) -> Result<bool, Gap> {
        let is_it = |prefix: Option<&IpCidr>| host(prefix) == Some(address);
        let is_router = self.hops_of_main()?.iter().any(|hop| hop.via == Some(address));
        let named = self.topology.rules()?.any(|rule| {
            rule.family == self.family && (is_it(rule.selector.from.as_ref()) || is_it(rule.selector.to.as_ref()))
        });
        if is_router || named {
            return Ok(!is_router);
        }
        Ok(self.topology.pod(address)?.is_some_and(|site| site.by_host_route))
    }

    fn unknown(&self, what: &str) -> Result<Verdict, Gap> {
        let (table, cure) = (self.broken.table, self.cure()?);
        Ok(Verdict::Blocked(format!("the gateway of table {table} is unknown: {what}; {cure}")))
    }

    /// What an operator can do where nothing names the gateway.
    fn cure(&self) -> Result<String, Gap> {
        let table = self.broken.table;
        let restart = if self.topology.is_vpc_cni()? { "restart the CNI's pod on this node, " } else { "" };
        Ok(format!(
            "add its default route by hand, {restart}or, if the table has none on purpose, set default_routes: \
             {{exclude_tables: [{table}]}}"
        ))
    }
}

/// The router of a VPC, as IPv6 knows it on each of its links.
const VPC_ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0xec2, 0, 0, 0, 0, 0, 1);

/// Whether an address is known on one link alone.
fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// Whether an address is one by which a cloud serves metadata, time or names on every link: no gateway.
fn is_of_cloud(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.segments().starts_with(&[0xfd00, 0xec2]),
    }
}

/// The first address of a subnet that a host can have: a VPC's router.
fn first_of(subnet: &IpCidr) -> Option<IpAddr> {
    if family_of(subnet) == Family::V6 || subnet.network_length() > 30 {
        return None; // the router of a VPC is known to IPv6 by a link-local address
    }
    subnet.iter().addresses().nth(1)
}

/// What is wrong with a link that is down, and the cure.
fn is_down(who: &str, link: &Link) -> String {
    format!("{who} is down; set it up: ip link set {} up", link.dev.name)
}

/// Whether the table has a default route that is not node-fixer's own.
pub fn has_default_of_others(routes: &[SeenRoute]) -> bool {
    has_default(routes.iter().filter(|route| route.protocol != PROTO_MENDED))
}
