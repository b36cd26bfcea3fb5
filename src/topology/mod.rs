//! What the node is: which link an address belongs to, which links are uplinks, which addresses are pods', and who owns
//! the tables. The plans, `doctor` and `explain` share this; none of them guesses on its own.
//!
//! Pure: it reads what was observed, and returns a [`Gap`] for what is missing, so that a run looks no further than
//! necessary. [`uplinks`] finds the links that lead out of the node, [`pods`] the addresses of pods and their uplinks,
//! [`homes`] where any source of this node belongs, [`cni`] the CNI in use, [`owners`] the owners of tables, [`vpc`]
//! what the VPC CNI has set up.

pub mod cni;
pub mod cni_changes;
pub mod cni_forms;
pub mod cni_rules;
pub mod forecast;
pub mod homes;
pub mod owners;
pub mod pods;
pub mod starting_rules;
pub mod uplinks;
pub mod vpc;

pub use uplinks::is_card;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::net::IpAddr;

use cidr::IpCidr;

use crate::config::Config;
use crate::model::{
    Family, IfName, PROTO_MENDED, Rule, Selector, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN, covers, shortened,
};
use crate::observed::{Address, Gap, Link, Observed, RouteSet, SeenRoute, SeenRule};
use crate::sorted;
use forecast::DeclaredRules;

/// `LOOPBACK_IFINDEX`: the loopback of every network namespace.
pub const LOOPBACK: u32 = 1;

/// The node as it is, or as it will be after the sections `rules` and `routes`.
#[derive(Debug, Clone, Copy)]
pub struct Topology<'a> {
    observed: &'a Observed,
    forecast: Option<(&'a Config, &'a DeclaredRules)>,
}

impl<'a> Topology<'a> {
    /// The node as it is.
    pub fn of(observed: &'a Observed) -> Topology<'a> {
        Topology { observed, forecast: None }
    }

    /// The node as it will be when everything declared exists. `declared` are the declared rules.
    pub fn after(desired: &'a Config, declared: &'a DeclaredRules, observed: &'a Observed) -> Topology<'a> {
        Topology { observed, forecast: Some((desired, declared)) }
    }

    /// What was observed.
    pub fn observed(&self) -> &'a Observed {
        self.observed
    }

    /// The rules that look up a table and that node-fixer can evaluate, in the kernel's order.
    pub fn rules(&self) -> Result<impl Iterator<Item = &'a Rule> + use<'a>, Gap> {
        let live = self.observed.rules()?;
        let declared = self.forecast.map(|(_, declared)| declared);
        let stays = move |rule: &&SeenRule| declared.is_none_or(|declared| declared.keeps(rule));
        let added = declared.into_iter().flat_map(DeclaredRules::lookups);
        Ok(live.iter().filter(stays).filter_map(SeenRule::lookup).chain(added))
    }

    /// A table's routes.
    pub fn table(&self, family: Family, table: u32) -> Result<Cow<'a, [SeenRoute]>, Gap> {
        let set = RouteSet::Table(family, table);
        match self.forecast {
            Some((desired, _)) if !desired.routes.is_empty() => {
                Ok(Cow::Owned(forecast::routes(desired, self.observed, set)?))
            }
            _ => Ok(Cow::Borrowed(self.observed.routes([set])?.first().copied().unwrap_or_default())),
        }
    }

    /// Requests all of these tables together.
    pub fn ask_for_tables(&self, tables: impl IntoIterator<Item = (Family, u32)>) -> Result<(), Gap> {
        let sets = tables.into_iter().map(|(family, table)| RouteSet::Table(family, table));
        self.observed.routes(sets).map(drop)
    }

    /// A link; `None` if it is gone.
    pub fn link(&self, index: u32) -> Result<Option<&'a Link>, Gap> {
        Ok(self.observed.links([index])?.first().copied().flatten())
    }

    /// The name of a link; `None` if it is gone.
    pub fn name(&self, index: u32) -> Result<Option<&'a IfName>, Gap> {
        Ok(self.observed.names([index])?.first().copied().flatten())
    }

    /// The name of a link as text; its number if it is gone.
    pub fn name_of(&self, index: u32) -> Result<String, Gap> {
        Ok(self.name(index)?.map_or_else(|| format!("interface number {index}"), ToString::to_string))
    }

    /// The names of links as text, shortened.
    pub fn names_of(&self, indexes: impl IntoIterator<Item = u32>) -> Result<String, Gap> {
        let names: Result<Vec<String>, Gap> = indexes.into_iter().map(|index| self.name_of(index)).collect();
        Ok(shortened(names?))
    }

    /// The links that have an address of this node: it belongs there, whatever a table says.
    pub fn carriers(&self, address: IpAddr) -> Result<BTreeSet<u32>, Gap> {
        let carrying = self.observed.addresses()?.iter().filter(|it| it.local == address);
        Ok(sorted::set(carrying.map(|it| it.index)))
    }

    /// Whether it is an address of this node.
    pub fn is_own(&self, address: IpAddr) -> Result<bool, Gap> {
        Ok(self.observed.addresses()?.iter().any(|it| it.local == address))
    }

    /// The addresses of a link, of one family.
    pub fn addresses(&self, index: u32, family: Family) -> Result<impl Iterator<Item = &'a Address>, Gap> {
        let all = self.observed.addresses()?.iter();
        Ok(all.filter(move |it| it.index == index && Family::of(it.local) == family))
    }

    /// The subnets that are connected to a link: those of its addresses, and those of on-link routes of the main table
    /// (DHCPv6 gives a node a /128, and the router advertisement the /64 as a route). A single host is not a subnet.
    pub fn subnets(&self, index: u32, family: Family) -> Result<Vec<IpCidr>, Gap> {
        Ok(self.connected_subnets(family)?.of(index))
    }

    /// The links in whose connected subnet an address is; the narrowest subnet wins.
    pub fn connected(&self, address: IpAddr) -> Result<BTreeSet<u32>, Gap> {
        Ok(self.connected_subnets(Family::of(address))?.holders(address))
    }

    /// All connected subnets of a family, for lookups of many addresses.
    pub fn connected_subnets(&self, family: Family) -> Result<Connected, Gap> {
        let addresses = self.observed.addresses()?.iter().filter(|it| Family::of(it.local) == family);
        let main = self.table(family, TABLE_MAIN)?;
        let on_link = main.iter().filter(|route| is_connected(route));
        let on_link = on_link.filter_map(|route| Some((route.to, route.oif()?)));
        let all = addresses.map(|it| (it.subnet, it.index)).chain(on_link);
        Ok(Connected(sorted::set(all.filter(|(subnet, _)| !subnet.is_host_address()))))
    }

    /// The main table's default-class routes.
    pub fn main_defaults(&self, family: Family) -> Result<Vec<SeenRoute>, Gap> {
        let declared = self.forecast.is_some_and(|(desired, _)| !desired.routes.is_empty());
        // The whole main table is free if it was read already, and needed if routes are declared for it.
        if declared || self.observed.has_routes(&RouteSet::Table(family, TABLE_MAIN)) {
            let main = self.table(family, TABLE_MAIN)?;
            return Ok(main.iter().filter(|route| route.is_of_default_class()).cloned().collect());
        }
        Ok(self.observed.routes([RouteSet::Defaults(family)])?.first().copied().unwrap_or_default().to_vec())
    }

    /// The links of the main table's defaults, of both families.
    pub fn main_exits(&self) -> Result<BTreeSet<u32>, Gap> {
        let mut exits = links_of(&self.main_defaults(Family::V4)?);
        exits.extend(links_of(&self.main_defaults(Family::V6)?));
        Ok(exits)
    }
}

/// The subnets that are connected to links.
#[derive(Debug)]
pub struct Connected(BTreeSet<(IpCidr, u32)>);

impl Connected {
    /// The subnets of one link, in their order.
    fn of(&self, index: u32) -> Vec<IpCidr> {
        self.0.iter().filter(|(_, of)| *of == index).map(|(subnet, _)| *subnet).collect()
    }

    /// The links in whose subnet an address is; the narrowest subnet wins.
    pub fn holders(&self, address: IpAddr) -> BTreeSet<u32> {
        let around = || self.0.iter().filter(|(subnet, _)| subnet.contains(&address));
        let narrowest = around().map(|(subnet, _)| subnet.network_length()).max();
        let nearest = around().filter(|(subnet, _)| Some(subnet.network_length()) == narrowest);
        sorted::set(nearest.map(|(_, index)| *index))
    }
}

/// Whether a route connects a subnet to a link: no gateway, more than one host, less than everything.
fn is_connected(route: &SeenRoute) -> bool {
    let is_subnet = route.to.network_length() > 1 && !route.to.is_host_address();
    is_subnet && route.via().is_none() && route.oif().is_some() && route.protocol != PROTO_MENDED
}

/// The links that routes use.
pub fn links_of<'r>(routes: impl IntoIterator<Item = &'r SeenRoute>) -> BTreeSet<u32> {
    sorted::set(routes.into_iter().flat_map(SeenRoute::hops).filter_map(|hop| hop.oif))
}

/// The links that the default routes among these use.
pub fn exits_of<'r>(routes: impl IntoIterator<Item = &'r SeenRoute>) -> BTreeSet<u32> {
    links_of(routes.into_iter().filter(|route| route.is_of_default_class()))
}

/// The address of a host prefix.
pub fn host(prefix: Option<&IpCidr>) -> Option<IpAddr> {
    prefix.filter(|prefix| prefix.is_host_address()).map(IpCidr::first_address)
}

/// Whether a table is one of the kernel's own, which are not policy tables: unspecified, default, main, local.
pub fn is_kernels(table: u32) -> bool {
    matches!(table, 0 | TABLE_DEFAULT | TABLE_MAIN | TABLE_LOCAL)
}

/// The sources of a rule that selects only by them and possibly a destination.
fn source_alone(rule: &Rule) -> Option<&IpCidr> {
    let Selector { from, to: _, fwmark, iif, oif } = &rule.selector;
    from.as_ref().filter(|_| fwmark.is_none() && iif.is_none() && oif.is_none())
}

/// The source and the table of a rule that selects only by one source and possibly a destination.
pub fn sends(rule: &Rule) -> Option<(IpAddr, u32)> {
    host(source_alone(rule)).map(|source| (source, rule.table))
}

/// The subnet and the table of a rule for a whole source subnet.
pub fn sends_subnet(rule: &Rule) -> Option<(&IpCidr, u32)> {
    let subnet = source_alone(rule).filter(|from| !from.is_host_address() && from.network_length() > 0);
    subnet.map(|subnet| (subnet, rule.table))
}

/// The link and the table of a rule that selects only by the incoming link.
pub fn sends_by_link(rule: &Rule) -> Option<(&IfName, u32)> {
    let selector = &rule.selector;
    let plain = selector.fwmark.is_none() && selector.oif.is_none() && selector.to.is_none();
    selector.iif.as_ref().filter(|_| plain && selector.from.is_none()).map(|link| (link, rule.table))
}

/// Whether routes other than a default cover all of these destinations.
pub fn leads_to(routes: &[SeenRoute], to: &IpCidr) -> bool {
    routes.iter().any(|route| !route.is_of_default_class() && covers(&route.to, to))
}

/// Whether any default-class route exists: of any type and metric, or the two halves of the address space.
pub fn has_default<'r>(routes: impl IntoIterator<Item = &'r SeenRoute>) -> bool {
    let unlimited = routes.into_iter().filter(|route| route.is_of_default_class());
    let (mut whole, mut halves) = (false, BTreeSet::new());
    for route in unlimited {
        match route.to.network_length() {
            0 => whole = true,
            _ => drop(halves.insert(route.to.first_address())),
        }
    }
    whole || halves.len() == 2
}
