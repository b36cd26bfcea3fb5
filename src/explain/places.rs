//! What the topology knows about the two addresses, looked up once, so that the explanation itself is simple and pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cidr::IpCidr;

use crate::model::{Family, is_link_local};
use crate::observed::Gap;
use crate::topology::cni::is_branch_link;
use crate::topology::homes::Home;
use crate::topology::pods::Site;
use crate::topology::{Topology, is_card};

/// How an address relates to this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The links that have it: it is an address of this node.
    pub carriers: BTreeSet<u32>,
    /// Its location, if it is a pod's or on a local link.
    pub site: Option<Site>,
    /// The table in the rule of the pod's link, if it is not the one with the pod's route.
    pub stray: Option<u32>,
    /// The links in whose connected subnet it is.
    pub neighbours: BTreeSet<u32>,
    /// The link, other than an uplink, of the main table's route to it.
    pub behind: Option<u32>,
    /// The uplinks that it belongs to as a source.
    pub home: Option<Home>,
}

/// How both addresses relate to this node, and its links.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// The source.
    pub source: Place,
    /// The destination.
    pub destination: Place,
    /// Links that lead to a network: uplinks, and branch links of the VPC CNI.
    pub exits: BTreeSet<u32>,
    /// Other links that may lead to a network: some route has a gateway there, and they are not a bridge, a tunnel or a
    /// pod's.
    pub cards: BTreeSet<u32>,
    /// The subnets of links that have any, except link-local ones.
    pub subnets: BTreeMap<u32, Vec<IpCidr>>,
    /// Whether the VPC CNI is in use here.
    pub vpc_cni: bool,
}

impl Places {
    /// What the topology knows about a packet's two addresses. `links` are those of routes to either of them,
    /// `gateways` those of routes with a gateway.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn of(
        topology: Topology,
        [source, destination]: [IpAddr; 2],
        links: impl IntoIterator<Item = u32>,
        gateways: &[u32],
    ) -> Result<Places, Gap> {
        let mut places = Places {
            source: Place::of(topology, source, destination)?,
            destination: Place::of(topology, destination, source)?,
            exits: topology.uplinks()?,
            vpc_cni: topology.is_vpc_cni()?,
            ..Places::default()
        };
        let pods: BTreeSet<u32> = topology.pods()?.values().map(|site| site.link).collect();
        let links: BTreeSet<u32> = links.into_iter().collect();
        for &link in &links {
            if places.exits.contains(&link) || topology.name(link)?.is_some_and(is_branch_link) {
                places.exits.insert(link);
            } else if gateways.contains(&link) && topology.link(link)?.is_some_and(is_card) && !pods.contains(&link) {
                places.cards.insert(link);
            }
        }
        // A card with a gateway behind it leads to a network, so the hosts in its subnet are not local.
        let is_local = |site: &Site| site.by_host_route || !places.cards.contains(&site.link);
        let sites = [places.source.site.filter(is_local), places.destination.site.filter(is_local)];
        [places.source.site, places.destination.site] = sites;
        for place in [&mut places.source, &mut places.destination] {
            place.behind = place.behind.filter(|link| !places.cards.contains(link));
        }
        let all = [&places.source, &places.destination].into_iter();
        let homes = |place: &Place| place.home.iter().flat_map(|home| home.links.clone()).collect::<Vec<u32>>();
        let around: BTreeSet<u32> =
            all.flat_map(|place| place.neighbours.iter().copied().chain(homes(place))).collect();
        for link in links.into_iter().chain(around) {
            let mut subnets = topology.subnets(link, Family::of(source))?;
            subnets.retain(|subnet| !is_link_local(subnet.first_address()));
            if !subnets.is_empty() {
                places.subnets.insert(link, subnets);
            }
        }
        Ok(places)
    }

    /// The narrowest subnet of a link that contains an address.
    pub fn subnet(&self, link: u32, address: IpAddr) -> Option<IpCidr> {
        let subnets = self.subnets.get(&link)?.iter().filter(|subnet| subnet.contains(&address));
        subnets.max_by_key(|subnet| subnet.network_length()).copied()
    }
}

impl Place {
    fn of(topology: Topology, address: IpAddr, other: IpAddr) -> Result<Place, Gap> {
        let pod = topology.pod(address)?;
        let stray = if pod.is_none() { topology.stray_pod(address)? } else { None };
        Ok(Place {
            carriers: topology.carriers(address)?,
            site: pod.or(stray.map(|(site, _)| site)),
            stray: stray.map(|(_, table)| table),
            neighbours: topology.connected(address)?,
            behind: topology.behind(address)?,
            home: topology.home(address, other)?,
        })
    }

    /// Whether it is an address of this node.
    pub fn is_own(&self) -> bool {
        !self.carriers.is_empty()
    }

    /// The links that show where a source belongs: those that have it, or those in whose subnet it is.
    pub fn holders(&self) -> BTreeSet<u32> {
        match &self.home {
            Some(home) if self.is_own() => home.links.clone(),
            _ if self.is_own() => BTreeSet::new(),
            _ => self.neighbours.clone(),
        }
    }
}
