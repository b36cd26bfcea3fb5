//! Causes in the network managers that own interfaces: systemd-networkd and NetworkManager.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::super::Finding;
use super::super::cure::{after, proposed, write_command};
use super::super::facts::{Facts, shortened};
use super::super::ini::{Entry, Place, boolean, entries};
use crate::net::{
    IfName, KERNEL_PRIORITIES, PROTO_DECLARED, PROTO_KERNEL, PROTO_MENDED, PROTO_RA, PROTO_STATIC, Rule, TABLE_MAIN,
    table_name,
};
use crate::observed::{Gap, SeenRoute};
use crate::sysctl_d::ConfFile;
use crate::topology::vpc::VpcUplink;

const NETWORKD_FILE: &str = "/etc/systemd/networkd.conf.d/90-node-fixer.conf";
const UNMANAGED_FILE: &str = "/etc/systemd/network/01-node-fixer-unmanaged.network";
const NETWORKMANAGER_FILE: &str = "/etc/NetworkManager/conf.d/90-node-fixer.conf";

/// `RTPROT_DHCP`.
const PROTO_DHCP: u8 = 16;
/// Routes that systemd-networkd knows as the kernel's or its own.
const OF_NETWORKD: [u8; 4] = [PROTO_KERNEL, PROTO_RA, PROTO_DHCP, PROTO_STATIC];

/// What node-fixer gives to its own routes and rules.
const OURS: [u8; 2] = [PROTO_MENDED, PROTO_DECLARED];

/// A switch of networkd.conf that has systemd-networkd remove what is not its own.
pub struct Remover {
    /// The line that turned it on; it is on by default.
    pub place: Option<Place>,
    /// The file that turns it off.
    pub file: ConfFile,
    /// The command that writes the file and has it read.
    pub cure: String,
}

/// Whether systemd-networkd runs here and removes rules of others.
pub fn removes_rules(facts: &Facts) -> Option<Remover> {
    remover(facts, "ManageForeignRoutingPolicyRules")
}

fn remover(facts: &Facts, key: &str) -> Option<Remover> {
    let all = facts.files.networkd_conf.iter().flat_map(entries);
    let said = all.filter(|entry| entry.section == "Network" && entry.key == key);
    let (mut on, mut place) = (true, None);
    for (value, at) in said.filter_map(|entry| Some((boolean(&entry.value)?, entry.place))) {
        (on, place) = (value, Some(at));
    }
    if !on || !facts.files.networkd {
        return None;
    }
    let text = "# Rules and routes that other programs have made stay when systemd-networkd restarts.\n[Network]\n\
        ManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n";
    // networkd.conf itself comes before all drop-ins, whatever its name.
    let last = place.as_ref().and_then(|place: &Place| place.file.file_name()).map(OsStrExt::as_bytes);
    let path = after(NETWORKD_FILE, last.filter(|last| *last != b"networkd.conf"));
    let file = proposed(&facts.files.networkd_conf, &path, text);
    let cure = format!("{} && systemctl restart systemd-networkd", write_command(&file));
    Some(Remover { place, file, cure })
}

fn foreign(facts: &Facts, key: &str, what: &str) -> Option<Finding> {
    let Remover { place, file, cure } = remover(facts, key)?;
    let by = place.as_ref().map_or("by default, for no file says no".into(), |place| format!("by {place}"));
    let evidence =
        format!("{key} is on {by}: when systemd-networkd restarts or takes up an interface it removes {what}");
    Some(Finding::new(evidence, place, cure).with(vec![file]))
}

pub fn networkd_foreign_rules(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    if !facts.files.networkd {
        return Ok(Vec::new());
    }
    let theirs = |rule: &&Rule| KERNEL_PRIORITIES.contains(&rule.priority) || OF_NETWORKD.contains(&rule.protocol);
    let rules: Vec<&Rule> = facts.rules()?.into_iter().filter(|rule| !theirs(rule)).collect();
    // What becomes of the rules of others is theirs to know.
    let matters = facts.topology().is_vpc_cni()? || rules.iter().any(|rule| OURS.contains(&rule.protocol));
    let Some(first) = rules.first().filter(|_| matters) else { return Ok(Vec::new()) };
    let what = format!("the {} rules of others, {first} the first of them", rules.len());
    Ok(foreign(facts, "ManageForeignRoutingPolicyRules", &what).into_iter().collect())
}

pub fn networkd_foreign_routes(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    if !facts.files.networkd {
        return Ok(Vec::new());
    }
    let of_cni = facts.topology().is_vpc_cni()?;
    let managed = |index| facts.files.networkd_links.get(&index).is_some_and(|file| is_managed(file).is_some());
    let mut tables = BTreeSet::new();
    for ((_, table), routes) in facts.named_tables()? {
        let foreign = |route: &&SeenRoute| {
            let there = route.hops().iter().any(|hop| hop.oif.is_some_and(managed));
            let foreign = of_cni && table != TABLE_MAIN && !OF_NETWORKD.contains(&route.protocol);
            there && (foreign || OURS.contains(&route.protocol))
        };
        if routes.iter().any(|route| foreign(&route)) {
            tables.insert(table_name(table));
        }
    }
    if tables.is_empty() {
        return Ok(Vec::new());
    }
    let what = format!("the routes of others on the interfaces that it manages, those of table {}", shortened(tables));
    Ok(foreign(facts, "ManageForeignRoutes", &what).into_iter().collect())
}

/// The line by which systemd-networkd says that it manages an interface.
fn is_managed(file: &ConfFile) -> Option<Entry> {
    let managed = |entry: &Entry| {
        entry.key == "ADMIN_STATE" && matches!(entry.value.as_str(), "configuring" | "configured" | "failed")
    };
    entries(file).into_iter().find(managed)
}

/// The line by which NetworkManager says that it manages an interface.
fn is_managed_by_nm(file: &ConfFile) -> Option<Entry> {
    let on = |entry: &Entry| entry.section == "device" && entry.key == "managed" && boolean(&entry.value) == Some(true);
    entries(file).into_iter().find(on)
}

fn names(uplinks: &[VpcUplink]) -> String {
    shortened(uplinks.iter().map(|uplink| uplink.name))
}

/// The interfaces that a manager keeps: the first uplink, and what else it manages that is none of the CNI's. `None` where
/// there are none, or one of the names cannot stand in a list: white space and `;` separate, and patterns would match more.
fn kept(facts: &Facts, uplinks: &[VpcUplink], managed: impl Fn(u32) -> bool) -> Result<Option<Vec<String>>, Gap> {
    let first = facts.topology().first_uplinks()?;
    let mut kept = Vec::new();
    for (index, name) in facts.names()? {
        let of_cni = uplinks.iter().any(|uplink| uplink.index == index);
        if !of_cni && (first.contains(&index) || managed(index)) {
            let Some(name) = plain(name) else { return Ok(None) };
            kept.push(name);
        }
    }
    Ok((!kept.is_empty()).then_some(kept))
}

/// A name that can stand in a list of systemd's and of NetworkManager's.
fn plain(name: &IfName) -> Option<String> {
    let is_plain = name.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-@".contains(byte));
    is_plain.then(|| String::from_utf8_lossy(name.as_bytes()).into_owned())
}

/// The cure where the names of the interfaces cannot be written into a list.
fn by_hand(manager: &str) -> String {
    format!(
        "# no list of {manager} can hold the names of the uplinks: rename them, or have it leave them unmanaged by their \
         hardware addresses"
    )
}

/// When such a file counts. To have it read at once would take the interfaces from the manager, and with them the addresses
/// that it has configured: with the last of them the kernel drops the routes of the CNI's tables.
const FROM_NEXT_BOOT: &str = "  # counts from the next boot";

pub fn networkd_manages_uplink(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let all = facts.topology().vpc_uplinks()?;
    let managed = |index: u32| facts.files.networkd_links.get(&index).is_some_and(|file| is_managed(file).is_some());
    let first = facts.topology().first_uplinks()?;
    let theirs = |uplink: &VpcUplink| managed(uplink.index) && !first.contains(&uplink.index);
    let kept = kept(facts, &all, managed)?;
    let uplinks: Vec<VpcUplink> = all.into_iter().filter(theirs).collect();
    let Some(file) = uplinks.first().and_then(|uplink| facts.files.networkd_links.get(&uplink.index)) else {
        return Ok(Vec::new());
    };
    let state = is_managed(file).map(|entry| entry.place);
    let network = entries(file).into_iter().find(|entry| entry.key == "NETWORK_FILE").map(|entry| entry.value);
    let source = network.and_then(|path| {
        let of_path = facts.files.networks.iter().find(|file| file.path.as_os_str() == path.as_str())?;
        entries(of_path).into_iter().find(|entry| entry.section == "Match").map(|entry| entry.place)
    });
    let by = source.as_ref().map_or(String::new(), |place| format!(", by {place}"));
    let evidence = format!(
        "systemd-networkd manages {}{by}: the addresses and routes that it has in mind for a secondary uplink are not those \
         of the CNI, and when it takes the interface up anew the CNI's are gone",
        names(&uplinks)
    );
    let Some(kept) = kept.filter(|_| uplinks.iter().all(|uplink| plain(uplink.name).is_some())) else {
        return Ok(vec![Finding::new(evidence, source.or(state), by_hand("systemd-networkd"))]);
    };
    let text = format!(
        "# Every card but these is the CNI's, also those that it attaches later.\n[Match]\nType=ether\nKind=!*\nName=!{}\n\n\
         [Link]\nUnmanaged=yes\n",
        kept.join(" ")
    );
    let file = proposed(&facts.files.networks, Path::new(UNMANAGED_FILE), &text);
    let cure = write_command(&file) + FROM_NEXT_BOOT;
    Ok(vec![Finding::new(evidence, source.or(state), cure).with(vec![file])])
}

pub fn networkmanager_manages_uplink(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let place = |index: u32| facts.files.networkmanager_links.get(&index).and_then(is_managed_by_nm);
    let all = facts.topology().vpc_uplinks()?;
    let first = facts.topology().first_uplinks()?;
    let kept = kept(facts, &all, |index| place(index).is_some())?;
    let theirs = |uplink: &VpcUplink| place(uplink.index).is_some() && !first.contains(&uplink.index);
    let uplinks: Vec<VpcUplink> = all.into_iter().filter(theirs).collect();
    let Some(place) = uplinks.first().and_then(|uplink| place(uplink.index)).map(|entry| entry.place) else {
        return Ok(Vec::new());
    };
    let evidence = format!(
        "NetworkManager manages {} ({place}): the addresses and routes that it has in mind for a secondary uplink are not \
         those of the CNI, and when it takes the interface up anew the CNI's are gone",
        names(&uplinks)
    );
    let Some(kept) = kept.filter(|_| uplinks.iter().all(|uplink| plain(uplink.name).is_some())) else {
        return Ok(vec![Finding::new(evidence, Some(place), by_hand("NetworkManager"))]);
    };
    let kept: String = kept.iter().map(|name| format!(";except:interface-name:{name}")).collect();
    let text = format!(
        "# Every card but these is the CNI's, also those that it attaches later.\n[keyfile]\n\
         unmanaged-devices+=type:ethernet{kept}\n"
    );
    let file = proposed(&facts.files.of_cures, Path::new(NETWORKMANAGER_FILE), &text);
    let cure = write_command(&file) + FROM_NEXT_BOOT;
    Ok(vec![Finding::new(evidence, Some(place), cure).with(vec![file])])
}
