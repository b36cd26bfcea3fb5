//! Causes in the network managers that manage interfaces: systemd-networkd and NetworkManager.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::super::Finding;
use super::super::cure::{after, proposed, write_command};
use super::super::facts::{Facts, shortened};
use super::super::ini::{Assignment, Location, boolean, entries};
use crate::model::{
    IfName, KERNEL_PRIORITIES, PROTO_DECLARED, PROTO_KERNEL, PROTO_MENDED, PROTO_RA, PROTO_RESTORED, PROTO_STATIC,
    Rule, TABLE_MAIN, table_name,
};
use crate::observed::{Gap, SeenRoute};
use crate::sysctl_d::ConfFile;
use crate::topology::vpc::VpcUplink;

const NETWORKD_FILE: &str = "/etc/systemd/networkd.conf.d/90-node-fixer.conf";
const UNMANAGED_FILE: &str = "/etc/systemd/network/01-node-fixer-unmanaged.network";
const NETWORKMANAGER_FILE: &str = "/etc/NetworkManager/conf.d/90-node-fixer.conf";

/// `RTPROT_DHCP`.
const PROTO_DHCP: u8 = 16;
/// Routes that systemd-networkd recognises as the kernel's or its own.
const OF_NETWORKD: [u8; 4] = [PROTO_KERNEL, PROTO_RA, PROTO_DHCP, PROTO_STATIC];

/// The protocols of node-fixer's routes and rules.
const OURS: [u8; 3] = [PROTO_MENDED, PROTO_DECLARED, PROTO_RESTORED];

/// An option of networkd.conf that makes systemd-networkd remove objects of others.
pub struct Remover {
    /// The line that enabled it; it is on by default.
    pub place: Option<Location>,
    /// The file that disables it.
    pub file: ConfFile,
    /// The command that writes the file and reloads it.
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
    let text = "# Keep rules and routes of other programs when systemd-networkd \
                restarts.\n[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n";
    // networkd.conf itself comes before all drop-ins, whatever their names.
    let last = place.as_ref().and_then(|place: &Location| place.file.file_name()).map(OsStrExt::as_bytes);
    let path = after(NETWORKD_FILE, last.filter(|last| *last != b"networkd.conf"));
    let file = proposed(&facts.files.networkd_conf, &path, text.as_bytes());
    let cure = format!("{} && systemctl restart systemd-networkd", write_command(&file));
    Some(Remover { place, file, cure })
}

fn foreign(facts: &Facts, key: &str, what: &str) -> Option<Finding> {
    let Remover { place, file, cure } = remover(facts, key)?;
    let by = place.as_ref().map_or("by default, as no file disables it".into(), |place| format!("by {place}"));
    let evidence =
        format!("{key} is on {by}: when systemd-networkd restarts or reconfigures an interface, it removes {what}");
    Some(Finding::new(evidence, place, cure).with(vec![file]))
}

pub fn networkd_foreign_rules(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    if !facts.files.networkd {
        return Ok(Vec::new());
    }
    let theirs = |rule: &&Rule| KERNEL_PRIORITIES.contains(&rule.priority) || OF_NETWORKD.contains(&rule.protocol);
    let rules: Vec<&Rule> = facts.rules()?.into_iter().filter(|rule| !theirs(rule)).collect();
    // Rules of other programs are their own concern.
    let matters = facts.topology().is_vpc_cni()? || rules.iter().any(|rule| OURS.contains(&rule.protocol));
    let Some(first) = rules.first().filter(|_| matters) else { return Ok(Vec::new()) };
    let what = format!("the {} rules of other programs, such as {first}", rules.len());
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
    let what =
        format!("the routes of other programs on the interfaces that it manages, in table {}", shortened(tables));
    Ok(foreign(facts, "ManageForeignRoutes", &what).into_iter().collect())
}

/// The line with which systemd-networkd states that it manages an interface.
fn is_managed(file: &ConfFile) -> Option<Assignment> {
    let managed = |entry: &Assignment| {
        entry.key == "ADMIN_STATE" && matches!(entry.value.as_str(), "configuring" | "configured" | "failed")
    };
    entries(file).into_iter().find(managed)
}

/// The line with which NetworkManager states that it manages an interface.
fn is_managed_by_nm(file: &ConfFile) -> Option<Assignment> {
    let on =
        |entry: &Assignment| entry.section == "device" && entry.key == "managed" && boolean(&entry.value) == Some(true);
    entries(file).into_iter().find(on)
}

/// The secondary uplinks of the CNI that a network manager manages.
struct Managed<'a> {
    uplinks: Vec<VpcUplink<'a>>,
    /// The interfaces that the manager keeps: the first uplink, and others that it manages and that are not the CNI's.
    /// `None` if there are none, or if a name cannot be written in a list: white space and `;` separate, and patterns
    /// would match more.
    kept: Option<Vec<String>>,
}

impl<'a> Managed<'a> {
    fn of(facts: &'a Facts, is_managed: impl Fn(u32) -> bool) -> Result<Managed<'a>, Gap> {
        let mut uplinks = facts.topology().vpc_uplinks()?;
        let first = facts.topology().main_exits()?;
        let names = facts.names()?.into_iter();
        let kept = names.filter(|(index, _)| !uplinks.iter().any(|uplink| uplink.index == *index));
        let kept = kept.filter(|(index, _)| first.contains(index) || is_managed(*index));
        let kept = kept.map(|(_, name)| plain(name)).collect::<Option<Vec<String>>>().filter(|kept| !kept.is_empty());
        uplinks.retain(|uplink| is_managed(uplink.index));
        let kept = kept.filter(|_| uplinks.iter().all(|uplink| plain(uplink.name).is_some()));
        Ok(Managed { uplinks, kept })
    }

    fn names(&self) -> String {
        shortened(self.uplinks.iter().map(|uplink| uplink.name))
    }
}

/// A name that can be written in a list of systemd's and of NetworkManager's.
fn plain(name: &IfName) -> Option<String> {
    let is_plain = name.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-@".contains(byte));
    is_plain.then(|| String::from_utf8_lossy(name.as_bytes()).into_owned())
}

/// The cure if the names of the interfaces cannot be written in a list.
fn by_hand(manager: &str) -> String {
    format!(
        "# no list of {manager} can contain the names of the uplinks: rename them, or mark them unmanaged by their \
         hardware addresses"
    )
}

/// When such a file takes effect. Reloading it would release the interfaces and remove the addresses that the manager
/// has configured; with the last of them the kernel drops the routes of the CNI's tables.
const FROM_NEXT_BOOT: &str = "  # takes effect at the next boot";

pub fn networkd_manages_uplink(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let managed =
        Managed::of(facts, |index| facts.files.networkd_links.get(&index).is_some_and(|it| is_managed(it).is_some()))?;
    let Some(file) = managed.uplinks.first().and_then(|uplink| facts.files.networkd_links.get(&uplink.index)) else {
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
        "systemd-networkd manages {}{by}: it knows other addresses and routes for a secondary uplink than the CNI, \
         and removes the CNI's when it reconfigures the interface",
        managed.names()
    );
    let Some(kept) = managed.kept else {
        return Ok(vec![Finding::new(evidence, source.or(state), by_hand("systemd-networkd"))]);
    };
    let text = format!(
        "# The CNI manages every card except these, including those that it attaches \
         later.\n[Match]\nType=ether\nKind=!*\nName=!{}\n\n[Link]\nUnmanaged=yes\n",
        kept.join(" ")
    );
    let file = proposed(&facts.files.networks, Path::new(UNMANAGED_FILE), text.as_bytes());
    let cure = write_command(&file) + FROM_NEXT_BOOT;
    Ok(vec![Finding::new(evidence, source.or(state), cure).with(vec![file])])
}

pub fn networkmanager_manages_uplink(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let place = |index: u32| facts.files.networkmanager_links.get(&index).and_then(is_managed_by_nm);
    let managed = Managed::of(facts, |index| place(index).is_some())?;
    let Some(place) = managed.uplinks.first().and_then(|uplink| place(uplink.index)).map(|entry| entry.place) else {
        return Ok(Vec::new());
    };
    let evidence = format!(
        "NetworkManager manages {} ({place}): it knows other addresses and routes for a secondary uplink than the \
         CNI, and removes the CNI's when it reconfigures the interface",
        managed.names()
    );
    let Some(kept) = managed.kept else {
        return Ok(vec![Finding::new(evidence, Some(place), by_hand("NetworkManager"))]);
    };
    let kept: String = kept.iter().map(|name| format!(";except:interface-name:{name}")).collect();
    let text = format!(
        "# The CNI manages every card except these, including those that it attaches \
         later.\n[keyfile]\nunmanaged-devices+=type:ethernet{kept}\n"
    );
    let file = proposed(&facts.files.of_cures, Path::new(NETWORKMANAGER_FILE), text.as_bytes());
    let cure = write_command(&file) + FROM_NEXT_BOOT;
    Ok(vec![Finding::new(evidence, Some(place), cure).with(vec![file])])
}
