//! Causes in network managers: systemd-networkd, NetworkManager, nm-cloud-setup, ec2-net-utils, cloud-init, udev.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher as _;
use std::path::Path;

use super::Finding;
use super::cure::{beside, write_command};
use super::facts::{FROM_POD, Facts, MARKED, PROTO_STATIC, TO_POD, Uplink, host, shortened};
use super::ini::{Entry, Place, boolean, entries};
use crate::net::{IfName, KERNEL_PRIORITIES, PROTO_DECLARED, PROTO_MENDED, Rule, TABLE_MAIN, table_name};
use crate::observed::{Gap, SeenRoute, SeenRule};
use crate::sorted;
use crate::sysctl_d::{ConfFile, is_match};

const NETWORKD_FILE: &str = "/etc/systemd/networkd.conf.d/90-node-fixer.conf";
const UNMANAGED_FILE: &str = "/etc/systemd/network/01-node-fixer-unmanaged.network";
const NETWORKMANAGER_FILE: &str = "/etc/NetworkManager/conf.d/90-node-fixer.conf";
const CLOUD_INIT_FILE: &str = "/etc/cloud/cloud.cfg.d/99-node-fixer.cfg";
const LINK_FILE: &str = "/etc/systemd/network/01-node-fixer-pods.link";

/// `RTPROT_KERNEL`, `RTPROT_RA`, `RTPROT_DHCP`: routes that systemd-networkd knows as the kernel's or its own.
const OF_NETWORKD: [u8; 4] = [2, 9, 16, PROTO_STATIC];

/// What node-fixer gives to its own routes and rules.
const OURS: [u8; 2] = [PROTO_MENDED, PROTO_DECLARED];

/// Whether a switch of networkd.conf is on, and which line says so; on is its default.
fn is_on(facts: &Facts, key: &str) -> Option<Option<Place>> {
    let all = facts.files.networkd_conf.iter().flat_map(entries);
    let said = all.filter(|entry| entry.section == "Network" && entry.key == key);
    let (mut on, mut by) = (true, None);
    for (value, place) in said.filter_map(|entry| Some((boolean(&entry.value)?, entry.place))) {
        (on, by) = (value, Some(place));
    }
    on.then_some(by)
}

/// A file of a cure, beside those that are there.
fn proposed<'a>(existing: impl IntoIterator<Item = &'a ConfFile>, path: &str, text: &str) -> ConfFile {
    let make = |path| ConfFile { path, text: text.into() };
    beside(&existing.into_iter().collect::<Vec<_>>(), Path::new(path), &make)
}

fn foreign(facts: &Facts, key: &str, what: &str) -> Option<Finding> {
    let place = is_on(facts, key).filter(|_| facts.files.networkd)?;
    let by = place.as_ref().map_or("by default, for no file says no".into(), |place| format!("by {place}"));
    let evidence =
        format!("{key} is on {by}: when systemd-networkd restarts or takes up an interface it removes {what}");
    let text = "# What the CNI and node-fixer have made stays when systemd-networkd restarts.\n[Network]\n\
        ManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n";
    let file = proposed(&facts.files.networkd_conf, NETWORKD_FILE, text);
    let mut cure = format!("{} && systemctl restart systemd-networkd", write_command(&file));
    if let Some(place) = place.as_ref().filter(|place| place.file.file_name() > file.path.file_name()) {
        cure += &format!("  # and delete {place}, which comes after it");
    }
    Some(Finding::new(evidence, place, cure).with(vec![file]))
}

pub fn networkd_foreign_rules(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    if !facts.files.networkd {
        return Ok(Vec::new());
    }
    let theirs = |rule: &&Rule| KERNEL_PRIORITIES.contains(&rule.priority) || OF_NETWORKD.contains(&rule.protocol);
    let rules: Vec<&Rule> = facts.rules()?.into_iter().filter(|rule| !theirs(rule)).collect();
    // What becomes of the rules of others is theirs to know.
    let matters = facts.pods()?.are_of_vpc_cni() || rules.iter().any(|rule| OURS.contains(&rule.protocol));
    let Some(first) = rules.first().filter(|_| matters) else { return Ok(Vec::new()) };
    let what = format!("the {} rules of others, {first} the first of them", rules.len());
    Ok(foreign(facts, "ManageForeignRoutingPolicyRules", &what).into_iter().collect())
}

pub fn networkd_foreign_routes(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    if !facts.files.networkd {
        return Ok(Vec::new());
    }
    let of_cni = facts.pods()?.are_of_vpc_cni();
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

fn names(uplinks: &[Uplink]) -> String {
    shortened(uplinks.iter().map(|uplink| uplink.name))
}

/// All of these that can be elements of a list in a file of systemd or NetworkManager, where white space and `;`
/// separate; `None` where there are none: an empty list may stand for every interface. Those that nobody manages as
/// well: one cure must not undo another.
fn listed(uplinks: &[Uplink], prefix: &str, separator: &str) -> Option<String> {
    let plain =
        |name: &&IfName| name.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-@".contains(byte));
    let names = uplinks.iter().map(|uplink| uplink.name).filter(plain);
    let names = names.map(|name| format!("{prefix}{}", String::from_utf8_lossy(name.as_bytes())));
    let names: Vec<String> = names.collect();
    (!names.is_empty()).then(|| names.join(separator))
}

/// The cure where no uplink's name can be written into a list.
fn by_hand(manager: &str) -> String {
    format!(
        "# no list of {manager} can hold the names of the uplinks: rename them, or have it leave them unmanaged by their \
         hardware addresses"
    )
}

pub fn networkd_manages_uplink(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let mut uplinks = facts.secondary_uplinks()?;
    let all = listed(&uplinks, "", " ");
    uplinks.retain(|it| facts.files.networkd_links.get(&it.index).is_some_and(|file| is_managed(file).is_some()));
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
    let Some(all) = all else {
        let cure = by_hand("systemd-networkd");
        return Ok(vec![Finding::new(evidence, source.or(state), cure)]);
    };
    let text = format!("# These uplinks are the CNI's.\n[Match]\nName={all}\n\n[Link]\nUnmanaged=yes\n");
    let file = proposed(&facts.files.networks, UNMANAGED_FILE, &text);
    let cure = format!("{} && networkctl reload", write_command(&file));
    Ok(vec![Finding::new(evidence, source.or(state), cure).with(vec![file])])
}

pub fn networkmanager_manages_uplink(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let managed = |index: &u32| {
        let file = facts.files.networkmanager_links.get(index)?;
        let on =
            |entry: &Entry| entry.section == "device" && entry.key == "managed" && boolean(&entry.value) == Some(true);
        entries(file).into_iter().find(on).map(|entry| entry.place)
    };
    let mut uplinks = facts.secondary_uplinks()?;
    let all = listed(&uplinks, "interface-name:", ";");
    uplinks.retain(|uplink| managed(&uplink.index).is_some());
    let Some(place) = uplinks.first().and_then(|uplink| managed(&uplink.index)) else { return Ok(Vec::new()) };
    let evidence = format!(
        "NetworkManager manages {} ({place}): the addresses and routes that it has in mind for a secondary uplink are not \
         those of the CNI, and when it takes the interface up anew the CNI's are gone",
        names(&uplinks)
    );
    let Some(all) = all else {
        let cure = by_hand("NetworkManager");
        return Ok(vec![Finding::new(evidence, Some(place), cure)]);
    };
    let text = format!("# These uplinks are the CNI's.\n[keyfile]\nunmanaged-devices+={all}\n");
    let file = proposed(&facts.files.of_cures, NETWORKMANAGER_FILE, &text);
    let cure = format!("{} && nmcli general reload conf", write_command(&file));
    Ok(vec![Finding::new(evidence, Some(place), cure).with(vec![file])])
}

/// The rules that another program has beside those of the CNI.
fn rules_beside_the_cni<'a>(facts: &'a Facts, of: impl Fn(&Rule) -> bool) -> Result<Vec<&'a Rule>, Gap> {
    let of_cni = |rule: &Rule| matches!(rule.priority, TO_POD | MARKED | FROM_POD);
    if !facts.pods()?.are_of_vpc_cni() {
        return Ok(Vec::new());
    }
    Ok(facts.rules()?.into_iter().filter(|rule| !of_cni(rule) && of(rule)).collect())
}

fn deleted(rules: &[&Rule]) -> String {
    rules.iter().map(|rule| rule.command("del")).collect::<Vec<_>>().join("\n")
}

/// The first line of a unit whose name begins so.
fn unit(facts: &Facts, name: &str) -> Option<Place> {
    let file = facts.files.units.iter().find(|file| file.name().starts_with(name.as_bytes()))?;
    let line = entries(file).into_iter().find(|entry| entry.key.starts_with("On") || entry.key == "ExecStart");
    Some(line.map_or(Place { file: file.path.clone(), line: 1 }, |entry| entry.place))
}

pub fn nm_cloud_setup(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    if !facts.pods()?.are_of_vpc_cni() {
        return Ok(Vec::new());
    }
    let (mut priorities, mut commands) = (Vec::new(), Vec::new());
    for rule in facts.observed.rules()? {
        match rule {
            SeenRule::Lookup(rule) if matches!(rule.priority, 30200..=30299 | 30350 | 30400..=30499) => {
                priorities.push(rule.priority);
                commands.push(rule.command("del"));
            }
            // It leads to the main table but for its default, a kind of rule that is not looked at further.
            SeenRule::Other { family, priority: 30350 } => {
                priorities.push(30350);
                commands.push(format!("{} rule del priority 30350", family.ip_command()));
            }
            _ => {}
        }
    }
    if priorities.is_empty() {
        return Ok(Vec::new());
    }
    let evidence = format!(
        "nm-cloud-setup has made rules {}: it configures the pods' addresses as this node's own and leads them to tables of \
         its own; it does not work beside the CNI",
        shortened(priorities)
    );
    let stop = "systemctl disable --now nm-cloud-setup.timer nm-cloud-setup.service";
    let cure = format!("{stop}\n{}", commands.join("\n"));
    Ok(vec![Finding::new(evidence, unit(facts, "nm-cloud-setup"), cure)])
}

/// The line of a network manager's file that names a table.
fn names_table(facts: &Facts, table: u32) -> Option<Place> {
    facts.files.networks.iter().find_map(|file| {
        let text = String::from_utf8_lossy(&file.text).into_owned();
        let says = |line: &str| {
            let mut words = line.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
            let found = words.find(|word| word.eq_ignore_ascii_case("table") || *word == "lookup").is_some();
            found && words.next() == Some(table.to_string().as_str())
        };
        let line = (1..).zip(text.lines()).find(|(_, line)| says(line))?.0;
        Some(Place { file: file.path.clone(), line })
    })
}

/// The interfaces that carry the sources of these rules.
fn carriers(facts: &Facts, rules: &[&Rule]) -> Result<BTreeSet<String>, Gap> {
    let sources = sorted::set(rules.iter().filter_map(|rule| host(rule.selector.from.as_ref())));
    let carrying = facts.observed.addresses()?.iter().filter(|address| sources.contains(&address.local));
    let mut names = BTreeSet::new();
    for address in carrying {
        names.insert(facts.name_of(address.index)?);
    }
    Ok(names)
}

pub fn ec2_net_utils(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let rules = rules_beside_the_cni(facts, |rule| {
        // The CNI's own tables of other network cards begin at 10100, and their rules have other priorities.
        let second = rule.priority == rule.table && (10001..=10999).contains(&rule.table);
        let first = (10001..=10099).contains(&rule.table);
        rule.selector.from.is_some() && (first || second)
    })?;
    let Some(rule) = rules.first() else { return Ok(Vec::new()) };
    let place = names_table(facts, rule.table).or_else(|| unit(facts, "refresh-policy-routes"));
    let timer = unit(facts, "refresh-policy-routes")
        .map_or(String::new(), |place| format!("; its timer ({place}) brings them back every minute"));
    let evidence = format!(
        "ec2-net-utils has made {} rules to tables {}, beside the CNI's{timer}: it configures the pods' addresses as this \
         node's own",
        rules.len(),
        shortened(sorted::set(rules.iter().map(|rule| rule.table)))
    );
    let mut lines = Vec::new();
    for name in carriers(facts, &rules)? {
        let units = format!("refresh-policy-routes@{name}.timer policy-routes@{name}.service");
        lines.push(format!(
            "systemctl disable --now {units}; rm -rf /run/systemd/network/70-{name}.network \
             /run/systemd/network/70-{name}.network.d; networkctl reload"
        ));
    }
    lines.push(deleted(&rules));
    Ok(vec![Finding::new(evidence, place, lines.join("\n"))])
}

pub fn cloud_init_policy_tables(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    if !facts.files.cloud_init {
        return Ok(Vec::new());
    }
    let rules = rules_beside_the_cni(facts, |rule| {
        let selector = &rule.selector;
        let by_source = host(selector.from.as_ref()).is_some() && selector.iif.is_none() && selector.fwmark.is_none();
        by_source && (101..=199).contains(&rule.table)
    })?;
    let Some(rule) = rules.first() else { return Ok(Vec::new()) };
    let place = names_table(facts, rule.table);
    let evidence = format!(
        "rules lead {} to tables {}, numbered as cloud-init does for secondary uplinks{}: it configures the pods' addresses \
         as this node's own and has them leave by tables that the CNI does not know",
        shortened(rules.iter().filter_map(|rule| host(rule.selector.from.as_ref()))),
        shortened(sorted::set(rules.iter().map(|rule| rule.table))),
        place.as_ref().map_or(String::new(), |place| format!(" ({place})"))
    );
    let text =
        "# The secondary uplinks are the CNI's.\ndatasource:\n  Ec2:\n    apply_full_imds_network_config: false\n";
    let file = proposed(&facts.files.of_cures, CLOUD_INIT_FILE, text);
    let cure = format!("{}  # counts from the next boot; until then:\n{}", write_command(&file), deleted(&rules));
    Ok(vec![Finding::new(evidence, place, cure).with(vec![file])])
}

pub fn mac_address_policy(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let Some(machine) = &facts.files.machine_id else { return Ok(Vec::new()) };
    let links = facts.pod_links()?;
    let seen = facts.observed.links(links.keys().copied())?;
    let mut by_line: BTreeMap<String, (Place, Vec<&IfName>)> = BTreeMap::new();
    for (name, link) in links.values().zip(seen) {
        // The file alone tells nothing: an address that the CNI has chosen itself udev leaves as it is.
        if link.is_none_or(|link| link.hardware != persistent(machine, name)) {
            continue;
        }
        let Some(files) = facts.files.links.iter().find(|files| is_for(files, name)) else { continue };
        let of_policy = |it: &Entry| it.section == "Link" && it.key == "MACAddressPolicy";
        let policy = files.iter().rev().find_map(|file| entries(file).into_iter().rfind(of_policy));
        if let Some(policy) = policy.filter(|policy| policy.value == "persistent") {
            by_line.entry(policy.place.to_string()).or_insert((policy.place, Vec::new())).1.push(name);
        }
    }
    let finding = |(place, names): (Place, Vec<&IfName>)| {
        let evidence = format!(
            "MACAddressPolicy=persistent ({place}) holds for the interfaces of pods ({}), and they have the hardware address that \
             udev makes of the machine-id and the name: it replaces the first one just after they were made, which an older \
             CNI has told the pod already",
            shortened(&names)
        );
        let stems = names.iter().filter_map(|name| name.as_bytes().get(..name.as_bytes().len().saturating_sub(11)));
        let stems = sorted::set(stems.map(|stem| String::from_utf8_lossy(stem).into_owned() + "*"));
        let text = format!(
            "# The CNI has told the pods these hardware addresses.\n[Match]\nOriginalName={}\nDriver=veth\n\n[Link]\n\
             MACAddressPolicy=none\n",
            stems.into_iter().collect::<Vec<_>>().join(" ")
        );
        let file = proposed(facts.files.links.iter().flatten(), LINK_FILE, &text);
        let cure = format!(
            "{} && udevadm control --reload  # counts for pods that are made from now on",
            write_command(&file)
        );
        Finding::new(evidence, Some(place), cure).with(vec![file])
    };
    Ok(by_line.into_values().map(finding).collect())
}

/// The hardware address that udev gives to a virtual interface by MACAddressPolicy=persistent.
fn persistent(machine: &[u8; 16], name: &IfName) -> [u8; 6] {
    // systemd's HASH_KEY for this.
    #[expect(deprecated, reason = "SipHash-2-4 it has to be, which nothing else in std promises")]
    let mut hash = std::hash::SipHasher::new_with_keys(0x4c4b_fe90_fa48_1ed3, 0x8a2e_b1a1_d7d5_af9d);
    hash.write(machine);
    hash.write(name.as_bytes());
    let [first, b, c, d, e, f, ..] = hash.finish().to_le_bytes();
    [first & 0xfe | 0x02, b, c, d, e, f]
}

/// Whether a .link file with its drop-ins is for a pod's interface. Whatever else it asks for, the path of a device,
/// a hardware address, no veth has.
fn is_for(files: &[ConfFile], name: &IfName) -> bool {
    let Some(first) = files.first() else { return false };
    let matches: Vec<Entry> = entries(first).into_iter().filter(|entry| entry.section == "Match").collect();
    !matches.is_empty()
        && matches.iter().all(|entry| {
            let has = |value: &[u8]| entry.value.split_whitespace().any(|it| is_match(it.as_bytes(), value));
            match entry.key.as_str() {
                "OriginalName" => has(name.as_bytes()),
                "Driver" | "Kind" => has(b"veth"),
                "Type" => has(b"ether"),
                _ => false,
            }
        })
}
