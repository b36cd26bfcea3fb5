//! What the node is: which link an address belongs to, which links are uplinks, which addresses are pods', and whose
//! the tables are. The plans, `doctor` and `explain` share this one reading; none of them guesses on its own.
//!
//! Pure: it reads what was observed, and asks for what is missing by a [`Gap`], so that a run looks no further than
//! its questions need. [`uplinks`] says which links lead out of the node, [`pods`] which addresses are pods' and where
//! they belong, [`homes`] where any source of this node belongs, [`cni`] whose marks the rules, routes and links carry,
//! [`owners`] whose the tables are, [`vpc`] what the VPC CNI has set up.

pub mod cni;
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

use crate::desired::Desired;
use crate::net::{
    Family, IfName, PROTO_MENDED, Rule, Selector, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN, covers, shortened,
};
use crate::observed::{Address, Gap, Link, Observed, RouteSet, SeenRoute, SeenRule};
use crate::reconcile::routes;
use crate::reconcile::rules::Declared;

/// `LOOPBACK_IFINDEX`: the loopback of every network namespace.
pub const LOOPBACK: u32 = 1;

/// The node as it is, or as it will be when the sections `rules` and `routes` are done.
#[derive(Debug, Clone, Copy)]
pub struct Topology<'a> {
    observed: &'a Observed,
    forecast: Option<(&'a Desired, &'a Declared)>,
}

impl<'a> Topology<'a> {
    /// The node as it is.
    pub fn of(observed: &'a Observed) -> Topology<'a> {
        Topology { observed, forecast: None }
    }

    /// The node as it will be when what is declared is there. `declared` are the declared rules.
    pub fn after(desired: &'a Desired, declared: &'a Declared, observed: &'a Observed) -> Topology<'a> {
        Topology { observed, forecast: Some((desired, declared)) }
    }

    /// What was observed.
    pub fn observed(&self) -> &'a Observed {
        self.observed
    }

    /// The rules that look into a table and that node-fixer can read whole, in the kernel's order.
    pub fn rules(&self) -> Result<impl Iterator<Item = &'a Rule> + use<'a>, Gap> {
        let live = self.observed.rules()?;
        let declared = self.forecast.map(|(_, declared)| declared);
        let stays = move |rule: &&Rule| declared.is_none_or(|declared| declared.keeps(rule));
        let added = declared.into_iter().flat_map(|declared| &declared.rules);
        Ok(live.iter().filter_map(SeenRule::lookup).filter(stays).chain(added))
    }

    /// A table's routes.
    pub fn table(&self, family: Family, table: u32) -> Result<Cow<'a, [SeenRoute]>, Gap> {
        let set = RouteSet::Table(family, table);
        match self.forecast {
            Some((desired, _)) if !desired.routes.is_empty() => {
                Ok(Cow::Owned(routes::afterwards(desired, self.observed, set)?))
            }
            _ => Ok(Cow::Borrowed(self.observed.routes([set])?.first().copied().unwrap_or_default())),
        }
    }

    /// Has all of these tables looked at in one go.
    pub fn ask_for_tables(&self, tables: impl IntoIterator<Item = (Family, u32)>) -> Result<(), Gap> {
        let sets = tables.into_iter().map(|(family, table)| RouteSet::Table(family, table));
        self.observed.routes(sets).map(drop)
    }

    /// A link; `None` where it has gone.
    pub fn link(&self, index: u32) -> Result<Option<&'a Link>, Gap> {
        Ok(self.observed.links([index])?.first().copied().flatten())
    }

    /// The name of a link; `None` where it has gone.
    pub fn name(&self, index: u32) -> Result<Option<&'a IfName>, Gap> {
        Ok(self.observed.names([index])?.first().copied().flatten())
    }

    /// The name of a link as text; its number where it has gone.
    pub fn name_of(&self, index: u32) -> Result<String, Gap> {
        Ok(self.name(index)?.map_or_else(|| format!("interface number {index}"), ToString::to_string))
    }

    /// The names of links as text, the first few of them.
    pub fn names_of(&self, indexes: impl IntoIterator<Item = u32>) -> Result<String, Gap> {
        let names: Result<Vec<String>, Gap> = indexes.into_iter().map(|index| self.name_of(index)).collect();
        Ok(shortened(names?))
    }

    /// The links that carry an address of this node: it belongs there, whatever a table says.
    pub fn carriers(&self, address: IpAddr) -> Result<BTreeSet<u32>, Gap> {
        let carrying = self.observed.addresses()?.iter().filter(|it| it.local == address);
        Ok(carrying.map(|it| it.index).collect())
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

    /// The subnets that are connected to a link: those of its addresses, and those that a route of the main table
    /// reaches over it without a gateway (DHCPv6 gives a node a /128, and the router's advertisement the /64 as a route).
    /// A single host is no subnet.
    pub fn subnets(&self, index: u32, family: Family) -> Result<Vec<IpCidr>, Gap> {
        let of_addresses = self.addresses(index, family)?.map(|it| it.subnet);
        let mut subnets: Vec<IpCidr> = of_addresses.filter(|subnet| !subnet.is_host_address()).collect();
        let main = self.table(family, TABLE_MAIN)?;
        let on_link = main.iter().filter(|route| is_connected(route) && route.oif() == Some(index)).map(|it| it.to);
        subnets.extend(on_link);
        subnets.sort_unstable();
        subnets.dedup();
        Ok(subnets)
    }

    /// The links in whose connected subnet an address lies; of several subnets the narrowest counts.
    pub fn connected(&self, address: IpAddr) -> Result<BTreeSet<u32>, Gap> {
        Ok(self.connected_subnets(Family::of(address))?.holders(address))
    }

    /// All connected subnets of a family, for questions about many addresses.
    pub fn connected_subnets(&self, family: Family) -> Result<Connected, Gap> {
        let addresses = self.observed.addresses()?.iter().filter(|it| Family::of(it.local) == family);
        let main = self.table(family, TABLE_MAIN)?;
        let on_link = main.iter().filter(|route| is_connected(route));
        let on_link = on_link.filter_map(|route| Some((route.to, route.oif()?)));
        let all = addresses.map(|it| (it.subnet, it.index)).chain(on_link);
        Ok(Connected(all.filter(|(subnet, _)| !subnet.is_host_address()).collect()))
    }

    /// The main table's default-class routes.
    pub fn main_defaults(&self, family: Family) -> Result<Vec<SeenRoute>, Gap> {
        let declared = self.forecast.is_some_and(|(desired, _)| !desired.routes.is_empty());
        // The whole of main is cheap where it was read already, and needed where routes are declared for it.
        if declared || self.observed.has_routes(&RouteSet::Table(family, TABLE_MAIN)) {
            let main = self.table(family, TABLE_MAIN)?;
            return Ok(main.iter().filter(|route| route.is_of_default_class()).cloned().collect());
        }
        Ok(self.observed.routes([RouteSet::Defaults(family)])?.first().copied().unwrap_or_default().to_vec())
    }
}

/// The subnets that are connected to links.
#[derive(Debug)]
pub struct Connected(BTreeSet<(IpCidr, u32)>);

impl Connected {
    /// The links in whose subnet an address lies; of several subnets the narrowest counts.
    pub fn holders(&self, address: IpAddr) -> BTreeSet<u32> {
        let around = || self.0.iter().filter(|(subnet, _)| subnet.contains(&address));
        let narrowest = around().map(|(subnet, _)| subnet.network_length()).max();
        around().filter(|(subnet, _)| Some(subnet.network_length()) == narrowest).map(|(_, index)| *index).collect()
    }
}

/// Whether a route puts a subnet on a link: no gateway, more than one host, less than everything.
fn is_connected(route: &SeenRoute) -> bool {
    let is_subnet = route.to.network_length() > 1 && !route.to.is_host_address();
    is_subnet && route.via().is_none() && route.oif().is_some() && route.protocol != PROTO_MENDED
}

/// The single address that a prefix holds.
pub fn host(prefix: Option<&IpCidr>) -> Option<IpAddr> {
    prefix.filter(|prefix| prefix.is_host_address()).map(IpCidr::first_address)
}

/// Whether a table is one of the kernel's own, to which no rule of a policy leads: unspecified, default, main, local.
pub fn is_kernels(table: u32) -> bool {
    matches!(table, 0 | TABLE_DEFAULT | TABLE_MAIN | TABLE_LOCAL)
}

/// The sources of a rule that selects by nothing but these and perhaps a destination.
fn source_alone(rule: &Rule) -> Option<&IpCidr> {
    let Selector { from, to: _, fwmark, iif, oif } = &rule.selector;
    from.as_ref().filter(|_| fwmark.is_none() && iif.is_none() && oif.is_none())
}

/// The source and the table of a rule that selects by nothing but one source and perhaps a destination.
pub fn sends(rule: &Rule) -> Option<(IpAddr, u32)> {
    host(source_alone(rule)).map(|source| (source, rule.table))
}

/// The subnet and the table of a rule that leads what a whole subnet sends.
pub fn sends_subnet(rule: &Rule) -> Option<(&IpCidr, u32)> {
    let subnet = source_alone(rule).filter(|from| !from.is_host_address() && from.network_length() > 0);
    subnet.map(|subnet| (subnet, rule.table))
}

/// The link and the table of a rule that selects by nothing but the link that a packet came in by.
pub fn sends_by_link(rule: &Rule) -> Option<(&IfName, u32)> {
    let selector = &rule.selector;
    let plain = selector.fwmark.is_none() && selector.oif.is_none() && selector.to.is_none();
    selector.iif.as_ref().filter(|_| plain && selector.from.is_none()).map(|link| (link, rule.table))
}

/// Whether routes lead to all of these destinations without a default.
pub fn leads_to(routes: &[SeenRoute], to: &IpCidr) -> bool {
    routes.iter().any(|route| !route.is_of_default_class() && covers(&route.to, to))
}

/// Whether any route of the default class is there: of whatever kind and metric, or the two halves of everything.
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
