//! Causes in what udev does to new interfaces.

use std::collections::BTreeMap;
use std::hash::Hasher as _;
use std::path::Path;

use super::Finding;
use super::cure::{proposed, write_command};
use super::facts::{Facts, shortened};
use super::ini::{Entry, Place, entries};
use crate::net::IfName;
use crate::observed::Gap;
use crate::sorted;
use crate::sysctl_d::{ConfFile, is_match};

const LINK_FILE: &str = "/etc/systemd/network/01-node-fixer-pods.link";

pub fn mac_address_policy(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let Some(machine) = &facts.files.machine_id else { return Ok(Vec::new()) };
    let links = facts.topology().vpc_pod_links()?;
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
        let file = proposed(facts.files.links.iter().flatten(), Path::new(LINK_FILE), &text);
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
