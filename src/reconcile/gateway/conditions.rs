//! The conditions that every gateway must meet.

use std::net::IpAddr;

use cidr::IpCidr;

use super::{Candidate, Gateway, GatewayVerdict, Search, is_down};
use crate::model::{Dev, is_link_local, shortened};
use crate::observed::{Gap, Link, SeenRoute};
use crate::topology::{cni, host};

impl Search<'_> {
    /// Checks that the gateway can be used over the link.
    pub(super) fn check(&self, Candidate { gateway, index, text }: Candidate) -> Result<GatewayVerdict, Gap> {
        let Some(link) = self.topology.link(index)? else {
            return Ok(GatewayVerdict::Blocked(format!("interface number {index} is gone; run node-fixer again")));
        };
        let to_gateway = || self.live.iter().filter(|route| route.to == IpCidr::new_host(gateway));
        let leads = |route: &SeenRoute| route.oif() == Some(index) && route.via().is_none();
        let table = self.broken.table;
        let trouble = if !link.up {
            Some(is_down(&link.dev.name.to_string(), link))
        } else if self.has_no_address(index, &link.dev)? {
            Some(format!("{} has no global {} address; restore its address", link.dev.name, self.family))
        } else if let Some(trouble) = self.owner_elsewhere(index, &link.dev)? {
            Some(trouble)
        } else if self.topology.is_own(gateway)? {
            Some(format!("{gateway} is an address of this node itself"))
        } else if self.is_pod(gateway)? {
            Some(format!("{gateway} is a pod's address, not a gateway"))
        } else if let Some(trouble) = self.out_of_reach(gateway, index, link)? {
            Some(trouble)
        } else if to_gateway().any(|route| !leads(route)) {
            let ip = self.family.ip_command();
            Some(format!("table {table} reaches {gateway} another way ({ip} route show {gateway} table {table})"))
        } else {
            None
        };
        Ok(match trouble {
            Some(trouble) => GatewayVerdict::Blocked(format!("{text}, but {trouble}; {}", self.cure()?)),
            None => {
                let has_host_route = to_gateway().next().is_some();
                GatewayVerdict::Known(Gateway {
                    address: gateway,
                    dev: link.dev.clone(),
                    has_host_route,
                    evidence: text,
                })
            }
        })
    }

    /// Why a source of the table does not belong to the link, if one does not: it is an address of this node on another
    /// link, or a pod's in the subnet of another uplink only.
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
                return Ok(Some(format!("its source {source} is in the subnet of {names}, not of {}", dev.name)));
            }
        }
        Ok(None)
    }

    /// Whether a link has lost its address. A branch link has none by design.
    fn has_no_address(&self, index: u32, dev: &Dev) -> Result<bool, Gap> {
        let global = self.topology.addresses(index, self.family)?.any(|it| it.global);
        Ok(!global && !cni::is_branch_link(&dev.name))
    }

    /// Why the gateway cannot be on the link, if so.
    fn out_of_reach(&self, gateway: IpAddr, index: u32, link: &Link) -> Result<Option<String>, Gap> {
        let name = &link.dev.name;
        if cni::is_branch_link(name) {
            return Ok(None); // by the host route on it
        }
        let mut addresses = self.topology.addresses(index, self.family)?;
        let subnets = self.topology.subnets(index, self.family)?;
        let is_peer = addresses.any(|it| it.has_peer && it.subnet.contains(&gateway));
        let carries_source = !self.own.is_empty();
        // An uplink with only a /32 has no subnet: there the host route on the link of the source is enough.
        let alone = subnets.iter().all(|subnet| is_link_local(subnet.first_address())) && carries_source;
        let alone = alone && !is_of_cloud(gateway);
        let link_local = gateway.is_ipv6() && is_link_local(gateway);
        if link_local || is_peer || alone || subnets.iter().any(|subnet| subnet.contains(&gateway)) {
            return Ok(None);
        }
        let listed = if subnets.is_empty() { "none".to_owned() } else { shortened(&subnets) };
        Ok(Some(format!("{gateway} is outside the subnets of {name} ({listed})")))
    }

    /// Whether rules or routes of the main table show that an address is a pod's.
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
}

/// Whether a cloud uses this address for metadata, time or DNS on every link, so that it is not a gateway.
fn is_of_cloud(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.segments().starts_with(&[0xfd00, 0xec2]),
    }
}
