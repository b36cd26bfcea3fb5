//! What the checks look at: files that were read, and what was seen of the kernel. Plain data, and the views of it
//! that several checks share.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::ini::Place;
use crate::desired::Desired;
use crate::net::{Family, IfName, Rule, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN, UPLINK_RULE_PRIORITY, family_of};
use crate::observed::{Gap, Look, Observed, RouteSet, SeenRoute, SeenRule};
use crate::sorted;
use crate::sysctl_d::{ConfFile, Settings};

/// Priority of the VPC CNI's rule to a pod.
pub const TO_POD: u32 = 512;
/// Priority of the VPC CNI's rule for marked packets.
pub const MARKED: u32 = 1024;
/// Priority of the VPC CNI's rule from a pod to the table of its uplink.
pub const FROM_POD: u32 = 1536;

/// Mark and mask of the VPC CNI's rule 1024.
pub const MARK: (u32, u32) = (0x80, 0x80);

/// `RTPROT_STATIC`, which systemd-networkd gives to the rules and routes of its own files.
pub const PROTO_STATIC: u8 = 4;

/// Everything that the checks may know.
#[derive(Debug)]
pub struct Facts<'a> {
    /// What is wanted.
    pub desired: &'a Desired,
    /// What was seen by netlink so far.
    pub observed: Observed,
    /// Files.
    pub files: Files,
    /// The counter IPReversePathFilter, twice; nothing where nobody watched.
    pub martians: Look<Martians>,
}

/// Packets that rp_filter dropped since boot, at two times.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Martians {
    /// At first.
    pub before: u64,
    /// A while later.
    pub after: u64,
    /// How much later, in milliseconds.
    pub millis: u128,
}

/// Files below the root.
#[derive(Debug, Default)]
pub struct Files {
    /// All of sysctl.d.
    pub sysctl: Settings,
    /// The line by which udev has systemd-sysctl run for each new interface.
    pub udev_rule: Option<Place>,
    /// systemd-networkd has run since boot.
    pub networkd: bool,
    /// networkd.conf, then its drop-ins, in their order.
    pub networkd_conf: Vec<ConfFile>,
    /// What systemd-networkd says of each interface, by index.
    pub networkd_links: BTreeMap<u32, ConfFile>,
    /// What NetworkManager says of each interface, by index.
    pub networkmanager_links: BTreeMap<u32, ConfFile>,
    /// Where network managers have addresses and rules from: .network files with their drop-ins, netplan,
    /// network-scripts.
    pub networks: Vec<ConfFile>,
    /// .link files in their order, each with its drop-ins after it.
    pub links: Vec<Vec<ConfFile>>,
    /// Units that set up policy routes of their own.
    pub units: Vec<ConfFile>,
    /// /etc/machine-id, of which udev makes hardware addresses.
    pub machine_id: Option<[u8; 16]>,
    /// Files of NetworkManager and cloud-init under names that cures take.
    pub of_cures: Vec<ConfFile>,
    /// There is a cloud-init.
    pub cloud_init: bool,
    /// Drop-ins of node-fixer's own configuration, in the usual place.
    pub drop_ins: Vec<ConfFile>,
}

/// What the VPC CNI has set up for pods.
#[derive(Debug, Default)]
pub struct Pods<'a> {
    /// Rules 512, by pod; none where nothing but their priority speaks for the VPC CNI.
    pub to: BTreeMap<IpAddr, &'a Rule>,
    /// Rules 1536, by pod; the same.
    pub from: BTreeMap<IpAddr, Vec<&'a Rule>>,
    /// Host routes of the main table, by address: the interface.
    pub routes: BTreeMap<IpAddr, u32>,
}

impl Pods<'_> {
    /// Whether the VPC CNI is at work here.
    pub fn are_of_vpc_cni(&self) -> bool {
        !self.to.is_empty() || !self.from.is_empty()
    }
}

/// A secondary uplink of the VPC CNI: the interface of a table that pods or the uplink's own address are sent to.
#[derive(Debug)]
pub struct Uplink<'a> {
    /// Index.
    pub index: u32,
    /// Name.
    pub name: &'a IfName,
    /// Its tables.
    pub tables: BTreeSet<u32>,
}

impl<'a> Facts<'a> {
    /// The rules that can be reasoned about.
    pub fn rules(&self) -> Result<Vec<&Rule>, Gap> {
        Ok(self.observed.rules()?.iter().filter_map(SeenRule::lookup).collect())
    }

    /// A table's routes.
    pub fn table(&self, family: Family, table: u32) -> Result<&[SeenRoute], Gap> {
        let seen = self.observed.routes([RouteSet::Table(family, table)])?;
        Ok(seen.first().copied().unwrap_or_default())
    }

    /// All tables of these, asked for at once.
    pub fn tables(&self, tables: &BTreeSet<(Family, u32)>) -> Result<BTreeMap<(Family, u32), &[SeenRoute]>, Gap> {
        let sets = tables.iter().map(|(family, table)| RouteSet::Table(*family, *table));
        Ok(sorted::map(tables.iter().copied().zip(self.observed.routes(sets)?)))
    }

    /// The main table and all that rules lead to.
    pub fn named_tables(&self) -> Result<BTreeMap<(Family, u32), &[SeenRoute]>, Gap> {
        let named = self.rules()?.into_iter().map(|rule| (rule.family, rule.table));
        let named = named.filter(|(_, table)| !matches!(*table, TABLE_LOCAL | TABLE_DEFAULT));
        self.tables(&sorted::set(named.chain([(Family::V4, TABLE_MAIN), (Family::V6, TABLE_MAIN)])))
    }

    /// The names of all interfaces, by index.
    pub fn names(&self) -> Result<BTreeMap<u32, &IfName>, Gap> {
        let indexes: Vec<u32> = self.observed.rp_filters()?.links.iter().map(|(index, _)| *index).collect();
        let names = self.observed.names(indexes.iter().copied())?;
        Ok(sorted::map(indexes.into_iter().zip(names).filter_map(|(index, name)| Some((index, name?)))))
    }

    /// The name of one interface as text; its number where it has gone.
    pub fn name_of(&self, index: u32) -> Result<String, Gap> {
        let name = self.observed.names([index])?.first().copied().flatten();
        Ok(name.map_or_else(|| format!("interface number {index}"), ToString::to_string))
    }

    /// What the VPC CNI has set up.
    pub fn pods(&self) -> Result<Pods<'_>, Gap> {
        let mut pods = Pods::default();
        for rule in self.rules()? {
            if let (TO_POD, Some(pod), TABLE_MAIN) = (rule.priority, host(rule.selector.to.as_ref()), rule.table) {
                pods.to.insert(pod, rule);
            }
            if let (FROM_POD, Some(pod)) = (rule.priority, host(rule.selector.from.as_ref())) {
                pods.from.entry(pod).or_default().push(rule);
            }
        }
        // Anybody may use these priorities. What speaks for the CNI: an interface that it has named, its mark, all of
        // its other priorities together; or a host route to an interface of its form. Pods with a security group have
        // theirs in the table of a branch interface.
        let names = self.names()?;
        let rules = self.rules()?;
        let is_mark = |rule: &&Rule| (rule.priority, rule.selector.fwmark) == (MARKED, Some(MARK));
        let is_uplinks =
            |rule: &&Rule| rule.priority == UPLINK_RULE_PRIORITY && host(rule.selector.from.as_ref()).is_some();
        let mut at_work = names.values().any(|name| is_of_pod(name, false))
            || rules.iter().any(is_mark)
            || !pods.to.is_empty() && !pods.from.is_empty() && rules.iter().any(is_uplinks);
        for ((_, table), routes) in self.named_tables()? {
            for route in routes {
                let (Some(pod), None, Some(oif)) = (host(Some(&route.to)), route.via(), route.oif()) else { continue };
                let has_rule = pods.to.contains_key(&pod) || pods.from.contains_key(&pod);
                at_work |= names.get(&oif).is_some_and(|name| is_of_pod(name, has_rule));
                if table == TABLE_MAIN {
                    pods.routes.insert(pod, oif);
                }
            }
        }
        if !at_work {
            (pods.to, pods.from) = Default::default();
        }
        Ok(pods)
    }

    /// The routes to single hosts, in all tables that rules name: those to pods among them. IPv6 has routes to every
    /// interface; to a pod leads a host route.
    pub fn host_routes(&self) -> Result<Vec<&SeenRoute>, Gap> {
        let tables = self.named_tables()?;
        Ok(tables.into_values().flatten().filter(|route| route.to.is_host_address()).collect())
    }

    /// The interfaces of pods, by index: those that the VPC CNI names like that.
    pub fn pod_links(&self) -> Result<BTreeMap<u32, &IfName>, Gap> {
        let of_cni = self.pods()?.are_of_vpc_cni();
        let mut links = self.names()?;
        links.retain(|_, name| is_of_pod(name, of_cni));
        Ok(links)
    }

    /// The secondary uplinks of the VPC CNI. Rules that systemd-networkd made are another's policy.
    pub fn secondary_uplinks(&self) -> Result<Vec<Uplink<'_>>, Gap> {
        let of_cni = |rule: &&Rule| {
            matches!(rule.priority, FROM_POD | UPLINK_RULE_PRIORITY)
                && rule.protocol != PROTO_STATIC
                && host(rule.selector.from.as_ref()).is_some()
                && rule.table != TABLE_MAIN
        };
        if !self.pods()?.are_of_vpc_cni() {
            return Ok(Vec::new());
        }
        let tables = sorted::set(self.rules()?.into_iter().filter(of_cni).map(|rule| (rule.family, rule.table)));
        let mut found: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
        for ((_, table), routes) in self.tables(&tables)? {
            for hop in routes.iter().flat_map(SeenRoute::hops) {
                found.entry(hop.oif.unwrap_or_default()).or_default().insert(table);
            }
        }
        let names = self.names()?;
        let uplink = |(index, tables)| Some(Uplink { index, name: names.get(&index)?, tables });
        Ok(found.into_iter().filter_map(uplink).collect())
    }
}

/// The address of a prefix that holds only one.
pub fn host(prefix: Option<&cidr::IpCidr>) -> Option<IpAddr> {
    prefix.filter(|prefix| prefix.is_host_address()).map(cidr::IpCidr::first_address)
}

/// The family of a rule or of its one address.
pub fn family_of_host(address: IpAddr) -> Family {
    family_of(&cidr::IpCidr::new_host(address))
}

/// Whether the VPC CNI gives such a name to a pod's interface: `eni` or `vlan`, or where it is at work for certain any
/// prefix of one to four letters (not Calico's), and 11 hexadecimal digits.
pub fn is_of_pod(name: &IfName, of_cni: bool) -> bool {
    let name = name.as_bytes();
    let Some((prefix, digits)) = name.len().checked_sub(11).and_then(|at| name.split_at_checked(at)) else {
        return false;
    };
    let hexadecimal = digits.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    let letters = (1..=4).contains(&prefix.len()) && prefix.iter().all(u8::is_ascii_lowercase);
    hexadecimal && (matches!(prefix, b"eni" | b"vlan") || of_cni && letters && prefix != b"cali")
}

/// The first three and how many more.
pub fn shortened<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    match items.as_slice() {
        [first, second, third, rest @ ..] if !rest.is_empty() => {
            format!("{first}, {second}, {third} and {} more", rest.len())
        }
        few => few.join(", "),
    }
}
