//! Which addresses are pods', and where each is.
//!
//! A pod has a host route over a link that is no uplink; or, behind a branch link, one in the table that its link's
//! rule names; or lies in a prefix that leads to a local link (OVN, Cilium, flannel).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cidr::IpCidr;

use super::cni::{is_branch_link, is_pod_link};
use super::{Topology, host, sends_by_link};
use crate::net::{Family, IfName, PROTO_KERNEL, TABLE_MAIN};
use crate::observed::{Gap, SeenRoute};

/// Where a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Site {
    /// The link that leads to it.
    pub link: u32,
    /// The table that has the route.
    pub table: u32,
    /// Whether the route is for this address alone.
    pub by_host_route: bool,
}

impl<'a> Topology<'a> {
    /// Where a pod's address is; `None` for an address that is no pod's of this node.
    ///
    /// # Errors
    ///
    /// What has to be looked at first.
    pub fn pod(&self, address: IpAddr) -> Result<Option<Site>, Gap> {
        let family = Family::of(address);
        let main = self.table(family, TABLE_MAIN)?;
        // A router is no pod.
        if main
            .iter()
            .any(|route| route.is_of_default_class() && route.hops().iter().any(|hop| hop.via == Some(address)))
        {
            return Ok(None);
        }
        let uplinks = self.uplinks()?;
        let to_it = |route: &&SeenRoute| route.to == IpCidr::new_host(address) && is_to_host(route);
        if let Some(link) = main.iter().find(to_it).and_then(SeenRoute::oif).filter(|link| !uplinks.contains(link)) {
            return Ok(Some(Site { link, table: TABLE_MAIN, by_host_route: true }));
        }
        for (name, table) in self.branch_rules(family)? {
            let routes = self.table(family, table)?;
            if let Some(link) = routes.iter().find(to_it).and_then(SeenRoute::oif)
                && self.name(link)? == Some(name)
                && !uplinks.contains(&link)
            {
                return Ok(Some(Site { link, table, by_host_route: true }));
            }
        }
        if self.is_own(address)? {
            return Ok(None);
        }
        let local = self.connected(address)?.into_iter().find(|link| !uplinks.contains(link));
        Ok(local.map(|link| Site { link, table: TABLE_MAIN, by_host_route: false }))
    }

    /// All pods that have a host route in the main table or in their branch link's, with their links.
    ///
    /// # Errors
    ///
    /// What has to be looked at first.
    pub fn pods(&self) -> Result<BTreeMap<IpAddr, Site>, Gap> {
        let uplinks = self.uplinks()?;
        let mut pods = BTreeMap::new();
        for family in [Family::V4, Family::V6] {
            let main = self.table(family, TABLE_MAIN)?;
            let hops = main.iter().filter(|route| route.is_of_default_class()).flat_map(SeenRoute::hops);
            let routers: BTreeSet<IpAddr> = hops.filter_map(|hop| hop.via).collect();
            for route in main.iter().filter(|route| is_to_host(route)) {
                let address = route.to.first_address();
                if let Some(link) = route.oif().filter(|link| !uplinks.contains(link) && !routers.contains(&address)) {
                    pods.insert(address, Site { link, table: TABLE_MAIN, by_host_route: true });
                }
            }
            for (name, table) in self.branch_rules(family)? {
                for route in self.table(family, table)?.iter().filter(|route| is_to_host(route)) {
                    if let Some(link) = route.oif()
                        && self.name(link)? == Some(name)
                        && !uplinks.contains(&link)
                    {
                        pods.insert(route.to.first_address(), Site { link, table, by_host_route: true });
                    }
                }
            }
        }
        Ok(pods)
    }

    /// The rules that lead what comes from a pod, by its link alone, to a table, as the VPC CNI's strict mode has them:
    /// link and table.
    pub fn branch_rules(&self, family: Family) -> Result<Vec<(&'a IfName, u32)>, Gap> {
        let rules = self.rules()?.filter(|rule| rule.family == family && !super::is_kernels(rule.table));
        Ok(rules.filter_map(sends_by_link).filter(|(link, _)| !is_branch_link(link)).collect())
    }

    /// The names of all links, by index.
    pub fn names(&self) -> Result<BTreeMap<u32, &'a IfName>, Gap> {
        let indexes: Vec<u32> = self.observed.rp_filters()?.links.iter().map(|(index, _)| *index).collect();
        let names = self.observed.names(indexes.iter().copied())?;
        Ok(indexes.into_iter().zip(names).filter_map(|(index, name)| Some((index, name?))).collect())
    }

    /// The links of pods as the VPC CNI names them, by index.
    pub fn vpc_pod_links(&self) -> Result<BTreeMap<u32, &'a IfName>, Gap> {
        let proven = self.is_vpc_cni()?;
        let mut names = self.names()?;
        names.retain(|_, name| is_pod_link(name, proven));
        Ok(names)
    }

    /// The host routes of the main table and of branch links' tables to addresses that single-host rules name.
    pub(super) fn host_routes_of_rules(&self) -> Result<Vec<(IpAddr, u32)>, Gap> {
        let mut named = BTreeSet::new();
        for rule in self.rules()? {
            named.extend(host(rule.selector.from.as_ref()).into_iter().chain(host(rule.selector.to.as_ref())));
        }
        let mut tables = BTreeSet::from([(Family::V4, TABLE_MAIN), (Family::V6, TABLE_MAIN)]);
        tables.extend(self.policy_tables()?);
        self.ask_for_tables(tables.iter().copied())?;
        let mut found = Vec::new();
        for (family, table) in tables {
            let routes = self.table(family, table)?;
            let to_named = routes.iter().filter(|route| is_to_host(route) && named.contains(&route.to.first_address()));
            found.extend(to_named.filter_map(|route| Some((route.to.first_address(), route.oif()?))));
        }
        Ok(found)
    }
}

/// Whether a route leads to a single host on a link, and the kernel did not make it for a point-to-point address.
fn is_to_host(route: &SeenRoute) -> bool {
    route.to.is_host_address() && route.via().is_none() && route.oif().is_some() && route.protocol != PROTO_KERNEL
}
