//! Which addresses are pods', and where each is.
//!
//! A pod has a host route over a link that is not an uplink; or, behind a branch link, one in the table that its link's
//! rule names; or it is in a prefix routed to a local link (OVN, Cilium, flannel).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::cni::{is_branch_link, is_pod_link, may_be_pod_link};
use super::{Topology, host, sends_by_link};
use crate::model::{Family, IfName, PROTO_KERNEL, PROTO_MENDED, TABLE_MAIN};
use crate::observed::{Gap, SeenRoute};
use crate::sorted;

/// The location of a pod.
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
    /// The location of a pod's address; `None` if the address is not a pod's of this node.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn pod(&self, address: IpAddr) -> Result<Option<Site>, Gap> {
        let family = Family::of(address);
        if self.routers(family)?.contains(&address) {
            return Ok(None);
        }
        let to_it = |route: &SeenRoute| route.to.first_address() == address;
        if let Some(site) = self.host_sites(family, to_it)?.remove(&address) {
            return Ok(Some(site));
        }
        if self.is_own(address)? {
            return Ok(None);
        }
        let uplinks = self.uplinks()?;
        let local = self.connected(address)?.into_iter().find(|link| !uplinks.contains(link));
        Ok(local.map(|link| Site { link, table: TABLE_MAIN, by_host_route: false }))
    }

    /// All pods that have a host route in the main table or in their branch link's, with their links.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn pods(&self) -> Result<BTreeMap<IpAddr, Site>, Gap> {
        let mut pods = BTreeMap::new();
        for family in [Family::V4, Family::V6] {
            let routers = self.routers(family)?;
            pods.extend(self.host_sites(family, |route| !routers.contains(&route.to.first_address()))?);
        }
        Ok(pods)
    }

    /// The gateways of the main table's defaults: a router is not a pod.
    fn routers(&self, family: Family) -> Result<BTreeSet<IpAddr>, Gap> {
        let main = self.table(family, TABLE_MAIN)?;
        let hops = main.iter().filter(|route| route.is_of_default_class()).flat_map(SeenRoute::hops);
        Ok(sorted::set(hops.filter_map(|hop| hop.via)))
    }

    /// Where the relevant host routes lead, except over uplinks: those of the main table, otherwise of the table in the
    /// rule of their branch link.
    fn host_sites(&self, family: Family, counts: impl Fn(&SeenRoute) -> bool) -> Result<BTreeMap<IpAddr, Site>, Gap> {
        let uplinks = self.uplinks()?;
        let branches = self.branch_rules(family)?.into_iter().map(|(name, table)| (Some(name), table));
        let mut sites = BTreeMap::new();
        for (behind, table) in [(None, TABLE_MAIN)].into_iter().chain(branches) {
            let routes = self.table(family, table)?;
            let mut last = None;
            for route in routes.iter().filter(|route| is_to_host(route) && counts(route)) {
                // The kernel uses the first of several, and lists them together.
                let is_first = last.replace(route.to) != Some(route.to);
                if let Some(link) = route.oif().filter(|link| is_first && !uplinks.contains(link))
                    && (behind.is_none() || self.name(link)? == behind)
                {
                    sites.entry(route.to.first_address()).or_insert(Site { link, table, by_host_route: true });
                }
            }
        }
        Ok(sites)
    }

    /// The rules for packets from a pod, by its link alone, as in the VPC CNI's strict mode: link and table.
    pub fn branch_rules(&self, family: Family) -> Result<Vec<(&'a IfName, u32)>, Gap> {
        let rules = self.rules()?.filter(|rule| rule.family == family && !super::is_kernels(rule.table));
        Ok(rules.filter_map(sends_by_link).filter(|(link, _)| !is_branch_link(link)).collect())
    }

    /// The names of all links, by index.
    pub fn names(&self) -> Result<BTreeMap<u32, &'a IfName>, Gap> {
        let indexes: Vec<u32> = self.observed.rp_filters()?.links.iter().map(|(index, _)| *index).collect();
        let names = self.observed.names(indexes.iter().copied())?;
        Ok(sorted::map(indexes.into_iter().zip(names).filter_map(|(index, name)| Some((index, name?)))))
    }

    /// The links with the VPC CNI's names for pods, by index.
    pub fn vpc_pod_links(&self) -> Result<BTreeMap<u32, &'a IfName>, Gap> {
        let is_of_pod = if self.is_vpc_cni()? { may_be_pod_link } else { is_pod_link };
        let mut names = self.names()?;
        names.retain(|_, name| is_of_pod(name));
        Ok(names)
    }

    /// The host routes of the main table and of branch links' tables to addresses in single-host rules.
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

/// Whether a route leads to a single host on a link. Not one that the kernel added for a point-to-point address, nor
/// one that node-fixer added to repair a table, which proves nothing.
pub fn is_to_host(route: &SeenRoute) -> bool {
    let on_link = route.via().is_none() && route.oif().is_some();
    on_link && route.to.is_host_address() && !matches!(route.protocol, PROTO_KERNEL | PROTO_MENDED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::testing::Model;

    const NODE: &str = "
        link 2 eth0 10.0.0.10/24
        link 3 eni3
        link 4 vlan.eth.1
        link 5 vlan5
        rule 10 iif vlan5 table 101
        route default via 10.0.0.1 dev 2";

    /// What both questions say of an address, and that they agree.
    fn site(routes: &str, address: &str) -> Option<(u32, u32)> {
        let address = address.parse().unwrap();
        let mut model = Model::new(&format!("{NODE}\n{routes}"));
        let one = model.see(|seen| Topology::of(seen).pod(address));
        let all = model.see(|seen| Topology::of(seen).pods());
        assert_eq!(one, all.get(&address).copied(), "{routes}");
        one.map(|site| (site.link, site.table))
    }

    #[test]
    fn one_pod_is_where_all_pods_say_that_it_is() {
        let pod = "route 10.0.0.50 dev 3 scope link table 254";
        let by_branch = "route 10.0.0.50 dev 5 scope link table 101";
        let by_uplink = "route 10.0.0.50 dev 2 scope link table 254";
        for (case, routes, expected) in [
            ("none", String::new(), None),
            ("main", pod.into(), Some((3, 254))),
            ("the branch link's table", by_branch.into(), Some((5, 101))),
            ("main before the branch link's table", format!("{pod}\n{by_branch}"), Some((3, 254))),
            ("another link than the rule's", "route 10.0.0.50 dev 3 scope link table 101".into(), None),
            ("an uplink's neighbour", by_uplink.into(), None),
            ("of two routes the first", format!("{by_uplink}\n{pod} metric 9"), None),
            ("of two routes the first", format!("{pod}\n{by_uplink} metric 9"), Some((3, 254))),
            ("a router", format!("{pod}\nroute default via 10.0.0.50 dev 2 metric 9"), None),
            ("the kernel's for a point-to-point address", format!("{pod} proto 2"), None),
            ("node-fixer's own", format!("{pod} proto 170"), None),
            ("node-fixer's own before another", format!("{by_uplink} proto 170\n{pod} metric 9"), Some((3, 254))),
        ] {
            assert_eq!(site(&routes, "10.0.0.50"), expected, "{case}");
        }
    }
}
