//! Looks at the node: returns an answer or an error for each question.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;

use anyhow::{Context, Error, anyhow};
use nix::errno::Errno;
use nix::libc::{RTM_GETADDR, RTM_GETLINK, RTM_GETNETCONF, RTM_GETROUTE, RTM_GETRULE};
use rustix::fs::RawDir;

use super::netlink::socket::NetlinkError;
use super::netlink::{addr, link, netconf, nft, route, rule};
use super::{Node, crictl, netns, program, sysctl};
use crate::clock::wall_clock;
use crate::config::Pattern;
use crate::model::masquerade::{FilterTable, SeenNat};
use crate::model::netns::{NetnsName, Occupied, Sandboxes, SeenNetns, Veth};
use crate::model::pod::{PodQuery, Pods};
use crate::model::{Dev, Family, IfName, SysctlKey, TABLE_MAIN};
use crate::observed::{Address, Link, LookAt, RouteSet, RpFilters, SeenBridge, SeenRoute, SeenRule};
use crate::sorted;
use crate::sysctl_d::Settings;
use crate::tape::text_of;
use crate::topology::pods::is_to_host;

impl Node {
    pub(super) fn link(&mut self, index: u32, name: Option<&IfName>) -> Result<Option<Link>, NetlinkError> {
        self.link_as(index, name, link::seen)
    }

    /// A veth, and the index of its other end if that is here; `None` if it is not a veth, or gone.
    pub(super) fn veth(
        &mut self,
        index: u32,
        name: Option<&IfName>,
    ) -> Result<Option<(Dev, Option<u32>)>, NetlinkError> {
        self.link_as(index, name, link::seen_veth)
    }

    fn link_as<T>(
        &mut self,
        index: u32,
        name: Option<&IfName>,
        decode: impl Fn(&[u8]) -> Result<Option<T>, NetlinkError>,
    ) -> Result<Option<T>, NetlinkError> {
        match self.netlink.get(RTM_GETLINK, &link::one(index, name), decode) {
            Err(NetlinkError::Refused { errno: Errno::ENODEV, .. }) => Ok(None),
            other => other,
        }
    }
}

impl LookAt for Node {
    fn rules(&mut self) -> anyhow::Result<Vec<SeenRule>> {
        Ok(self.netlink.dump(RTM_GETRULE, &rule::all(), rule::seen)?)
    }

    fn rp_filters(&mut self) -> anyhow::Result<RpFilters> {
        let mut seen = RpFilters::default();
        let read = |payload: &[u8]| netconf::seen(payload, Family::V4);
        for conf in self.netlink.dump(RTM_GETNETCONF, &netconf::all(Family::V4), read)? {
            let Some(value) = conf.rp_filter else { continue };
            match conf.index {
                netconf::ALL => seen.all = value,
                netconf::DEFAULT => seen.default = value,
                index => seen.links.extend(u32::try_from(index).ok().map(|index| (index, value))),
            }
        }
        Ok(seen)
    }

    fn addresses(&mut self) -> anyhow::Result<Vec<Address>> {
        Ok(self.netlink.dump(RTM_GETADDR, &addr::all(), addr::seen)?)
    }

    fn global_addresses(&mut self) -> anyhow::Result<Vec<Address>> {
        Ok(self.netlink.dump(RTM_GETADDR, &addr::all(), addr::seen_global)?)
    }

    fn bridges(&mut self) -> anyhow::Result<Vec<SeenBridge>> {
        Ok(self.netlink.dump(RTM_GETLINK, &link::bridges(), link::seen_bridge)?)
    }

    fn links_on(&mut self) -> anyhow::Result<BTreeMap<u32, Vec<IfName>>> {
        let mut found: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for (below, name) in self.netlink.dump(RTM_GETLINK, &link::all(), link::seen_on_another)? {
            found.entry(below).or_default().push(name);
        }
        Ok(found)
    }

    fn nat(&mut self) -> anyhow::Result<SeenNat> {
        self.tape.look("nat", String::new, || Ok(nft::nat(&mut self.netfilter)?), Error::msg)
    }

    fn filters(&mut self) -> anyhow::Result<Vec<FilterTable>> {
        self.tape.look("filters", String::new, || Ok(nft::filters(&mut self.netfilter)?), Error::msg)
    }

    fn persisted(&mut self) -> anyhow::Result<Option<String>> {
        self.tape.look("persisted", String::new, || Ok(sysctl::persisted()?), Error::msg)
    }

    /// A value that cannot be read may be anything.
    fn sysctl_files(&mut self) -> anyhow::Result<Settings> {
        let (settings, unread) = self.root().sysctl_settings();
        if unread.is_empty() { Ok(settings) } else { Err(anyhow!(unread.join("; "))) }
    }

    fn namespaces(&mut self) -> anyhow::Result<Vec<SeenNetns>> {
        self.tape.look("namespaces", String::new, || netns::names().map_err(with_causes), Error::msg)
    }

    fn occupied(&mut self) -> anyhow::Result<Occupied> {
        self.tape.look("occupied", String::new, || netns::occupied().map_err(with_causes), Error::msg)
    }

    fn routes(&mut self, set: &RouteSet) -> anyhow::Result<Vec<SeenRoute>> {
        let routes = self.netlink.dump(RTM_GETROUTE, &route::of(set), |payload| route::seen_in(payload, set));
        match routes {
            // A table is created by its first route. A family that is missing in the kernel or disabled at boot has
            // none.
            Err(NetlinkError::Refused { errno: Errno::ENOENT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP, .. }) => {
                Ok(Vec::new())
            }
            other => Ok(other?),
        }
    }

    fn links(&mut self, index: &u32) -> anyhow::Result<Option<Link>> {
        Ok(self.link(*index, None)?)
    }

    fn names(&mut self, index: &u32) -> anyhow::Result<Option<IfName>> {
        match self.netlink.name_of(*index) {
            // SIOCGIFNAME returns only names that are UTF-8.
            Err(NetlinkError::Failed(Errno::EILSEQ)) => Ok(self.link(*index, None)?.map(|link| link.dev.name)),
            other => Ok(other?),
        }
    }

    fn host_links(&mut self, address: &IpAddr) -> anyhow::Result<Option<Dev>> {
        // Where the kernel finds a packet's route in the main table, there is no narrower one. A captured node cannot be
        // asked.
        let asked = self.netlink.get(RTM_GETROUTE, &route::lookup_of(*address), route::seen).unwrap_or_default();
        let leads = |route: &SeenRoute| is_to_host(route) && route.to.first_address() == *address;
        let route = match asked.filter(|route| route.table == TABLE_MAIN) {
            Some(route) if leads(&route) => Some(route),
            Some(route) if !route.to.is_host_address() => None,
            _ => {
                let main = LookAt::routes(self, &RouteSet::Table(Family::of(*address), TABLE_MAIN))?;
                main.into_iter().find(leads)
            }
        };
        let Some(index) = route.and_then(|route| route.oif()) else { return Ok(None) };
        Ok(LookAt::names(self, &index)?.map(|name| Dev { index, name }))
    }

    fn links_named(&mut self, name: &IfName) -> anyhow::Result<Option<Link>> {
        Ok(self.link(0, Some(name))?)
    }

    fn programs(&mut self, name: &&'static str) -> anyhow::Result<bool> {
        self.tape.look("programs", || (*name).to_owned(), || Ok(program::is_on_path(name)), Error::msg)
    }

    fn sysctls(&mut self, key: &SysctlKey) -> anyhow::Result<Option<String>> {
        self.tape.look("sysctls", || text_of(&key.path()), || Ok(sysctl::read(key)?), Error::msg)
    }

    fn sysctl_names(&mut self, directory: &String) -> anyhow::Result<Vec<Box<[u8]>>> {
        self.tape.look("sysctl_names", || directory.clone(), || Ok(sysctl::names(directory)?), Error::msg)
    }

    fn pods(&mut self, query: &PodQuery) -> anyhow::Result<Pods> {
        let live = || {
            self.listen().map_err(Error::msg)?;
            let pods = crictl::pods(query, &self.stop)?;
            Ok(Pods { pods, listed: wall_clock() })
        };
        self.tape.look("pods", || query.command(&query.list_args()), live, Error::msg)
    }

    fn veths(&mut self, names: &Pattern) -> anyhow::Result<Vec<Veth>> {
        let mut veths = Vec::new();
        let matching = match self.netlink.captured_names() {
            Some(all) => all.into_iter().filter(|name| names.is_match(name.as_bytes())).collect(),
            None => link_names(names)?,
        };
        for name in matching {
            if let Some((dev, Some(peer))) = self.veth(0, Some(&name))?
                && let Some((_, Some(back))) = self.veth(peer, None)?
                && back == dev.index
            {
                veths.push(Veth { dev, peer });
            }
        }
        Ok(sorted::list(veths, |a, b| a.dev.name.cmp(&b.dev.name)))
    }

    fn sandboxes(&mut self, query: &PodQuery) -> anyhow::Result<Sandboxes> {
        let live = || {
            self.listen().map_err(Error::msg)?;
            let mut seen = Sandboxes::default();
            for path in crictl::namespaces(query, &self.stop)? {
                let id = netns::id_at(&path);
                let id = id.map_err(|error| anyhow!("cannot read {}: {error}", path.display()))?;
                seen.ids.extend(id);
                seen.names.extend(path.file_name().and_then(|name| NetnsName::new(name.as_encoded_bytes())));
            }
            Ok(seen)
        };
        self.tape.look("sandboxes", || query.command(&query.args(&["pods"])), live, Error::msg)
    }
}

/// With its causes, which the report of a failed look otherwise leaves out.
fn with_causes(error: Error) -> Error {
    anyhow!("{error:#}")
}

/// The interfaces of this network namespace whose names match. (/sys/class/net has those of the namespace in which /sys
/// was mounted, and a dump of links costs twenty times as much.)
fn link_names(names: &Pattern) -> anyhow::Result<Vec<IfName>> {
    let directory = "/proc/sys/net/ipv4/conf";
    matching(directory, names).with_context(|| format!("cannot list {directory}"))
}

/// The names in a directory that match. Allocates nothing for the others.
fn matching(directory: &str, names: &Pattern) -> io::Result<Vec<IfName>> {
    let directory = File::open(directory)?;
    let mut buffer = vec![MaybeUninit::uninit(); 32 * 1024];
    let mut entries = RawDir::new(directory, &mut buffer);
    let mut matching = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if !matches!(name, b"." | b"..") && names.is_match(name) {
            matching.extend(IfName::new(name));
        }
    }
    Ok(matching)
}
