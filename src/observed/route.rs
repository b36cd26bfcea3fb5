//! What the kernel shows of a route.

use std::net::IpAddr;

use cidr::IpCidr;

use crate::model::{Dev, Family, NextHop, Route, RouteOptions, Scope, Special};

/// A live route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenRoute {
    /// Table number.
    pub table: u32,
    /// Destination.
    pub to: IpCidr,
    /// What happens to a packet that takes it.
    pub target: Target,
    /// Scope; `None` for site and nowhere.
    pub scope: Option<Scope>,
    /// Metric as stored by the kernel.
    pub metric: u32,
    /// Type of service that it is limited to.
    pub tos: u8,
    /// Sources that it is limited to (IPv6 `from`).
    pub from: Option<IpCidr>,
    /// Nexthop object.
    pub nexthop: Option<u32>,
    /// The other parameters.
    pub options: RouteOptions,
    /// It has parts that node-fixer does not support: an encapsulation, other metrics, realms.
    pub odd: bool,
    /// `rtm_protocol`: what installed it.
    pub protocol: u8,
}

impl SeenRoute {
    /// The interface of a unicast route with one plain next hop.
    pub fn oif(&self) -> Option<u32> {
        match self.target {
            Target::SeenHop(hop) => hop.oif,
            Target::Hops(_) | Target::Special(..) => None,
        }
    }

    /// The gateway of a unicast route with one plain next hop.
    pub fn via(&self) -> Option<IpAddr> {
        match self.target {
            Target::SeenHop(hop) => hop.via,
            Target::Hops(_) | Target::Special(..) => None,
        }
    }

    /// All next hops of a unicast route that the kernel shows.
    pub fn hops(&self) -> &[SeenHop] {
        if self.special().is_none() { self.all_hops() } else { &[] }
    }

    /// The same for any route: the kernel shows the interface of local addresses as well.
    pub fn all_hops(&self) -> &[SeenHop] {
        match &self.target {
            Target::SeenHop(hop) => std::slice::from_ref(hop),
            Target::Hops(hops) | Target::Special(_, hops) => hops,
        }
    }

    /// The hops that the kernel uses.
    pub fn alive(&self) -> impl Iterator<Item = &SeenHop> {
        self.all_hops().iter().filter(|hop| !hop.dead)
    }

    /// What it does, if it is not a unicast route.
    pub fn special(&self) -> Option<Special> {
        match self.target {
            Target::Special(special, _) => Some(special),
            Target::SeenHop(_) | Target::Hops(_) => None,
        }
    }

    /// Whether it is for every packet, not only for some sources or types of service.
    pub fn is_unlimited(&self) -> bool {
        self.tos == 0 && self.from.is_none()
    }

    /// Whether it is a default route for every packet, of any type, or one half of the address space.
    pub fn is_of_default_class(&self) -> bool {
        self.to.network_length() <= 1 && self.is_unlimited()
    }

    /// Whether it leads to a single host on the link itself. IPv6 routes have no scope; there it is a host route
    /// without a gateway.
    pub fn is_host_on_link(&self) -> bool {
        let on_link = self.to.first_address().is_ipv6() || self.scope == Some(Scope::Link);
        on_link
            && self.to.is_host_address()
            && matches!(self.target, Target::SeenHop(SeenHop { via: None, oif: Some(_), .. }))
    }

    /// How the kernel will show this route once it exists.
    pub fn of(route: &Route) -> SeenRoute {
        let hop = |via, dev: &Option<Dev>, onlink, weight| {
            let oif = dev.as_ref().map(|dev| dev.index);
            SeenHop { onlink, weight, ..SeenHop::new(via, oif) }
        };
        let single = hop(route.via, &route.dev, route.onlink, 1);
        let several = || route.hops.iter().map(|it| hop(it.via, &it.dev, it.onlink, it.weight)).collect();
        let of_other_family = route.via.is_some_and(|via| Family::of(via) != route.family());
        SeenRoute {
            table: route.table,
            to: route.to,
            target: match route.special {
                Some(special) => Target::Special(special, route.dev.iter().map(|_| single).collect()),
                None if route.nexthop.is_some() || !route.hops.is_empty() => Target::Hops(several()),
                None if of_other_family => Target::Hops(vec![single]),
                None => Target::SeenHop(single),
            },
            scope: Some(route.scope),
            metric: route.stored_metric(),
            tos: 0,
            from: None,
            nexthop: route.nexthop,
            options: route.options,
            odd: false,
            protocol: route.protocol,
        }
    }

    /// As a route that can be deleted or shown. The kernel shows an interface even for some routes without one.
    pub fn to_route(&self, dev: impl Fn(u32) -> Option<Dev>) -> Route {
        let hops = if self.nexthop.is_some() { &[] } else { self.all_hops() };
        let (single, several) = match (&self.target, hops) {
            (Target::Special(special, _), _) if !special.has_dev() => (None, &[][..]),
            (_, [single]) => (Some(*single), &[][..]),
            (_, several) => (None, several),
        };
        let several = several.iter().map(|hop| {
            let SeenHop { via, oif, weight, onlink, .. } = *hop;
            NextHop { via, dev: oif.and_then(&dev), weight, onlink }
        });
        Route {
            table: self.table,
            to: self.to,
            special: self.special(),
            via: single.and_then(|hop| hop.via),
            hops: several.collect(),
            dev: single.and_then(|hop| hop.oif).and_then(&dev),
            nexthop: self.nexthop,
            scope: self.scope.unwrap_or(Scope::Global),
            metric: (self.metric != 0).then_some(self.metric),
            onlink: single.is_some_and(|hop| hop.onlink),
            options: self.options,
            protocol: self.protocol,
        }
    }
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Unicast, one plain next hop: the kind that node-fixer creates.
    SeenHop(SeenHop),
    /// Other unicast routes: several next hops, a nexthop object, a gateway of the other family, an encapsulation.
    Hops(Vec<SeenHop>),
    /// Not a unicast route.
    Special(Special, Vec<SeenHop>),
}

/// A next hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenHop {
    /// Gateway.
    pub via: Option<IpAddr>,
    /// Index of the interface.
    pub oif: Option<u32>,
    /// The kernel does not use it: its interface is down, or has no carrier while ignore_routes_with_linkdown is set.
    pub dead: bool,
    /// Its interface has no carrier.
    pub linkdown: bool,
    /// Its gateway is treated as on-link.
    pub onlink: bool,
    /// Its weight among several.
    pub weight: u16,
}

impl SeenHop {
    /// A usable one.
    pub fn new(via: Option<IpAddr>, oif: Option<u32>) -> SeenHop {
        SeenHop { via, oif, dead: false, linkdown: false, onlink: false, weight: 1 }
    }
}
