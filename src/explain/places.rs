//! What the topology says of the two addresses, looked up once, so that the explanation itself is plain and pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cidr::IpCidr;

use crate::net::Family;
use crate::observed::Gap;
use crate::topology::homes::Home;
use crate::topology::pods::Site;
use crate::topology::{Topology, is_card};

/// What an address is to this node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Place {
    /// The links that carry it: it is an address of this node.
    pub carriers: BTreeSet<u32>,
    /// Where it is, if it is a pod's, or on a local link.
    pub site: Option<Site>,
    /// The table that the rule of the pod's link names, where that is not the one that has its route.
    pub stray: Option<u32>,
    /// The links in whose connected subnet it lies.
    pub neighbours: BTreeSet<u32>,
    /// The link other than an uplink that the main table's route to it leads to.
    pub behind: Option<u32>,
    /// The uplinks that it belongs to as a source.
    pub home: Option<Home>,
}

/// What both addresses are to this node, and what its links are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// The source.
    pub source: Place,
    /// The destination.
    pub destination: Place,
    /// Links by which packets leave for a network: uplinks, and branch links of the VPC CNI.
    pub exits: BTreeSet<u32>,
    /// Links that may lead to a network as well: some route knows a gateway there, and they are no bridge, no tunnel
    /// and no pod's.
    pub cards: BTreeSet<u32>,
    /// The subnets of links, for those that have any; not what is valid on a link alone.
    pub subnets: BTreeMap<u32, Vec<IpCidr>>,
    /// Whether the VPC CNI is at work here.
    pub vpc_cni: bool,
}

impl Places {
    /// What the topology says of a packet's two addresses. `links` are those that routes to either of them use,
    /// `gateways` those behind which some route knows a gateway.
    ///
    /// # Errors
    ///
    /// What has to be looked at first.
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
            if topology.leads_out(link)? {
                places.exits.insert(link);
            } else if gateways.contains(&link) && topology.link(link)?.is_some_and(is_card) && !pods.contains(&link) {
                places.cards.insert(link);
            }
        }
        // A card with a gateway behind it leads to a network, and who is in its subnet is no local host.
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

    /// The place of the sender of a packet from this address, and that of its receiver.
    pub fn ends(&self, from_source: bool) -> (&Place, &Place) {
        if from_source { (&self.source, &self.destination) } else { (&self.destination, &self.source) }
    }

    /// The narrowest subnet of a link that holds an address.
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

    /// The links that show where a source belongs: those that carry it, or those in whose subnet it lies.
    pub fn holders(&self) -> BTreeSet<u32> {
        match &self.home {
            Some(home) if self.is_own() => home.links.clone(),
            _ if self.is_own() => BTreeSet::new(),
            _ => self.neighbours.clone(),
        }
    }
}

/// An address that is valid on one link alone.
pub(super) fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
