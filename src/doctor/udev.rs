//! Causes in udev's changes of new interfaces.

use std::collections::BTreeMap;
use std::hash::Hasher as _;
use std::path::Path;

use super::Finding;
use super::cure::{proposed, write_command};
use super::facts::{Facts, shortened};
use super::ini::{Assignment, Location, entries};
use crate::model::IfName;
use crate::observed::Gap;
use crate::sorted;
use crate::sysctl_d::{ConfFile, is_match};

const LINK_FILE: &str = "/etc/systemd/network/01-node-fixer-pods.link";

pub fn mac_address_policy(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let Some(machine) = &facts.files.machine_id else { return Ok(Vec::new()) };
    let links = facts.topology().vpc_pod_links()?;
    let seen = facts.observed.links(links.keys().copied())?;
    let mut by_line: BTreeMap<String, (Location, Vec<&IfName>)> = BTreeMap::new();
    for (name, link) in links.values().zip(seen) {
        // The file alone proves nothing: udev keeps an address that the CNI has chosen itself.
        if link.is_none_or(|link| link.hardware != persistent(machine, name)) {
            continue;
        }
        let Some(files) = facts.files.links.iter().find(|files| is_for(files, name)) else { continue };
        let of_policy = |it: &Assignment| it.section == "Link" && it.key == "MACAddressPolicy";
        let policy = files.iter().rev().find_map(|file| entries(file).into_iter().rfind(of_policy));
        if let Some(policy) = policy.filter(|policy| policy.value == "persistent") {
            by_line.entry(policy.place.to_string()).or_insert((policy.place, Vec::new())).1.push(name);
        }
    }
    let finding = |(place, names): (Location, Vec<&IfName>)| {
        let evidence = format!(
            "MACAddressPolicy=persistent ({place}) applies to the interfaces of pods ({}), which have the hardware \
             address that udev derives from the machine-id and the name: it replaces the first one just after the \
             interface is created, but an older CNI has given the pod the first one",
            shortened(&names)
        );
        let stems = names.iter().filter_map(|name| name.as_bytes().get(..name.as_bytes().len().saturating_sub(11)));
        let stems = sorted::set(stems.map(|stem| String::from_utf8_lossy(stem).into_owned() + "*"));
        let text = format!(
            "# The pods know these hardware addresses from the \
             CNI.\n[Match]\nOriginalName={}\nDriver=veth\n\n[Link]\nMACAddressPolicy=none\n",
            stems.into_iter().collect::<Vec<_>>().join(" ")
        );
        let file = proposed(facts.files.links.iter().flatten(), Path::new(LINK_FILE), text.as_bytes());
        let cure =
            format!("{} && udevadm control --reload  # applies to pods created from now on", write_command(&file));
        Finding::new(evidence, Some(place), cure).with(vec![file])
    };
    Ok(by_line.into_values().map(finding).collect())
}

/// The hardware address that udev gives to a virtual interface with MACAddressPolicy=persistent.
pub fn persistent(machine: &[u8; 16], name: &IfName) -> [u8; 6] {
    // systemd's HASH_KEY for this.
    #[expect(deprecated, reason = "SipHash-2-4 is required, and only this type of std provides it")]
    let mut hash = std::hash::SipHasher::new_with_keys(0x4c4b_fe90_fa48_1ed3, 0x8a2e_b1a1_d7d5_af9d);
    hash.write(machine);
    hash.write(name.as_bytes());
    let [first, b, c, d, e, f, ..] = hash.finish().to_le_bytes();
    [first & 0xfe | 0x02, b, c, d, e, f]
}

/// Whether a .link file with its drop-ins applies to a pod's interface. A veth has no device path or permanent hardware
/// address, so other conditions do not match.
fn is_for(files: &[ConfFile], name: &IfName) -> bool {
    let Some(first) = files.first() else { return false };
    let matches: Vec<Assignment> = entries(first).into_iter().filter(|entry| entry.section == "Match").collect();
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
