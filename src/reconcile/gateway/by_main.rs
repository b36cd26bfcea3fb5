//! Evidence for a gateway from outside the table: the main table's gateways, the peer of a point-to-point address, and
//! the router address of a VPC.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};

use cidr::IpCidr;

use super::{Candidate, GatewayVerdict, Search, is_down};
use crate::model::{
    Family, IfName, PROTO_MENDED, Rule, TABLE_MAIN, UPLINK_RULE_PRIORITY, family_of, is_link_local, shortened,
};
use crate::observed::{Gap, SeenHop, SeenRoute};
use crate::sorted;
use crate::topology::{cni, host};

/// The IPv6 address of a VPC's router, on every link.
const VPC_ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0xec2, 0, 0, 0, 0, 0, 1);

impl Search<'_> {
    /// For an empty table: the link that has the source address of one of its rules.
    pub(super) fn by_carrier(&self) -> Result<GatewayVerdict, Gap> {
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

    /// An empty table, none of whose sources is an address of this node.
    fn no_carrier(&self) -> Result<GatewayVerdict, Gap> {
        if self.topology.is_vpc_cni()? && !self.broken.sources.is_empty() {
            let to_it = |rule: &&Rule| {
                (rule.family, rule.table, rule.priority) == (self.family, self.broken.table, UPLINK_RULE_PRIORITY)
            };
            let rules = self.topology.rules()?.filter(to_it);
            let uplink = rules.filter_map(|rule| Some((rule, host(rule.selector.from.as_ref())?))).next();
            if let Some((rule, lost)) = uplink {
                let pods: Vec<_> = self.broken.sources.iter().filter(|source| **source != lost).collect();
                // The address may return, and then needs its rule.
                let cure = match pods.is_empty() {
                    true => format!("restore the address; if it is gone for good: {}", rule.command("del")),
                    false => format!("no route helps: recreate the pods {}", shortened(pods)),
                };
                return Ok(GatewayVerdict::Blocked(format!(
                    "table {} is empty, and no interface has {lost}, the address of its rule {UPLINK_RULE_PRIORITY}: \
                     its network interface is gone, or has lost its address; {cure}",
                    self.broken.table
                )));
            }
        }
        self.unknown("it is empty, and no interface has the source address of its rules")
    }

    /// The gateway of the main table's default route, or the peer of a point-to-point address; with the VPC CNI, the
    /// first address of the subnet.
    pub(super) fn by_main(&self, index: u32, how: &str) -> Result<GatewayVerdict, Gap> {
        let Some(link) = self.topology.link(index)? else {
            return self.unknown(&format!("interface number {index} is gone"));
        };
        if link.vrf.is_some() {
            return Ok(GatewayVerdict::OfVrf);
        }
        let name = &link.dev.name;
        if !link.up {
            // Its routes were deleted when it went down, so until it is up nothing else is known.
            return Ok(GatewayVerdict::Blocked(format!("{name} is {how}, but {}", is_down("it", link))));
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
                return self.check(Candidate { gateway: **gateway, index, text });
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

    /// The gateways of the main table's default routes that apply to a link: those of routes through it, and those of
    /// other links that are in one of its subnets.
    fn main_gateways(&self, index: u32) -> Result<(BTreeSet<IpAddr>, BTreeSet<IpAddr>), Gap> {
        let (mut near, mut far) = (BTreeSet::new(), BTreeSet::new());
        let subnets = self.topology.subnets(index, self.family)?;
        // An uplink with only a /32 has no subnet; the main table's routes through it name its gateway.
        let alone = subnets.iter().all(|subnet| is_link_local(subnet.first_address()));
        for SeenHop { via, oif, .. } in self.hops_of_main()? {
            let Some(gateway) = via else { continue };
            let inside = if is_link_local(gateway) {
                // Link-local addresses are per link: one is known for the link of its route.
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

    pub(super) fn hops_of_main(&self) -> Result<Vec<SeenHop>, Gap> {
        let main = self.topology.table(self.family, TABLE_MAIN)?;
        let defaults = main.iter().filter(|route| route.to.network_length() == 0 && route.is_unlimited());
        let defaults = defaults.filter(|route| route.protocol != PROTO_MENDED);
        Ok(defaults.flat_map(SeenRoute::hops).copied().collect())
    }

    /// Whether both links have an address in the same global prefix.
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

    /// The peer of a point-to-point address of this node whose rules use the table.
    fn by_peer(&self, index: u32, name: &IfName, how: &str) -> Result<Option<Candidate>, Gap> {
        let peers =
            self.topology.addresses(index, self.family)?.filter(|it| it.has_peer && self.own.contains(&it.local));
        let peers = sorted::set(peers.filter_map(|it| host(Some(&it.subnet))));
        Ok(match peers.into_iter().collect::<Vec<_>>().as_slice() {
            [gateway] => {
                let text = format!("{gateway} is the peer of the point-to-point address of {name}, {how}");
                Some(Candidate { gateway: *gateway, index, text })
            }
            _ => None,
        })
    }

    /// The VPC's router, if the VPC CNI is in use and all complete tables use it as their gateway: the first address of
    /// the subnet, and for IPv6 the same address on every link.
    fn by_subnet(&self, index: u32, name: &IfName) -> Result<Option<Candidate>, Gap> {
        let mut carries = false;
        for source in &self.own {
            carries |= self.topology.carriers(*source)?.contains(&index);
        }
        if !carries || !self.topology.is_vpc_cni()? || !self.gateways_are_first()? {
            return Ok(None);
        }
        let others = "as are the gateways of this node's other tables";
        if self.family == Family::V6 {
            let text = format!("{VPC_ROUTER} is the router of a VPC on every link, also on {name}, {others}");
            return Ok(Some(Candidate { gateway: VPC_ROUTER.into(), index, text }));
        }
        let subnets = self.topology.subnets(index, self.family)?;
        let [subnet] = subnets.as_slice() else { return Ok(None) };
        let Some(gateway) = first_of(subnet) else { return Ok(None) };
        let text = format!("{gateway} is the first address of {subnet}, the subnet of {name}, {others}");
        Ok(Some(Candidate { gateway, index, text }))
    }

    /// Whether the gateway of each complete table, including main, is the VPC's router.
    fn gateways_are_first(&self) -> Result<bool, Gap> {
        let mut tables = self.topology.policy_tables()?;
        tables.insert((self.family, TABLE_MAIN));
        tables.retain(|(family, _)| *family == self.family);
        self.topology.ask_for_tables(tables.iter().copied())?;
        let mut complete = 0;
        for (family, table) in tables {
            let routes = self.topology.table(family, table)?;
            let defaults = routes.iter().filter(|it| it.is_of_default_class() && it.protocol != PROTO_MENDED);
            for SeenHop { via, oif, .. } in defaults.flat_map(SeenRoute::hops) {
                let (Some(via), Some(oif)) = (via, oif) else { return Ok(false) };
                let Some(link) = self.topology.link(*oif)? else { return Ok(false) };
                // A branch link has no address, so its subnet is not known.
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
        if let Some(SeenHop { via: Some(gateway), oif: Some(oif), .. }) = elsewhere {
            let other = self.topology.name_of(*oif)?;
            return Ok(format!(
                "{gateway} is the router on the link of {other}; the router on that of {name} is not known"
            ));
        }
        let gateways = sorted::set(hops.iter().filter_map(|hop| hop.via));
        Ok(format!(
            "no gateway of the main table's default routes ({}) is in its subnets ({})",
            shortened(gateways),
            shortened(self.topology.subnets(index, self.family)?)
        ))
    }
}

/// The first host address of a subnet: a VPC's router.
fn first_of(subnet: &IpCidr) -> Option<IpAddr> {
    if family_of(subnet) == Family::V6 || subnet.network_length() > 30 {
        return None; // IPv6 uses a link-local address for the VPC's router
    }
    subnet.iter().addresses().nth(1)
}
