//! Causes in the interfaces that the configuration selects.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Finding;
use super::cure::{proposed, write_command};
use super::facts::{Facts, shortened};
use crate::config::{Config, Interfaces};
use crate::model::Dev;
use crate::observed::Gap;
use crate::reconcile::{kube_proxy, rp_filter};
use crate::sysctl_d::ConfFile;
use crate::topology::Topology;
use crate::topology::forecast::DeclaredRules;

/// The directory of a drop-in of the configuration.
const DROP_IN: &str = "/etc/node-fixer/config.d/90-uplinks.yaml";

pub fn unattended(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let desired = facts.desired;
    let declared = DeclaredRules::to_come(desired, facts.observed)?;
    let topology = Topology::after(desired, &declared, facts.observed);
    let strict = rp_filter::unattended(&desired.rp_filter, topology)?;
    let unnoticed = kube_proxy::unattended(&desired.kube_proxy, topology)?;
    let mut evidence = Vec::new();
    let mut text = String::new();
    if !strict.is_empty() {
        let by_role = topology.uplinks()?;
        let has_role = |dev: &&Dev| by_role.contains(&dev.index);
        let selected = match &desired.rp_filter.interfaces {
            Interfaces::Auto => {
                "rp_filter.interfaces (auto) selects none of them, because they have no global address".into()
            }
            Interfaces::Named(pattern) => format!("rp_filter.interfaces ({pattern}) matches none of them"),
        };
        evidence.push(format!(
            "default routes use {}, where rp_filter is strict in effect: replies to packets from another uplink are \
             dropped there; {selected}",
            shortened(strict.iter().map(|dev| &dev.name))
        ));
        text += "rp_filter:\n";
        text += &if strict.iter().all(|dev| has_role(&dev)) { role() } else { further(desired, &strict) };
    }
    if !unnoticed.is_empty() {
        evidence.push(format!(
            "default routes use {}, which kube_proxy.interfaces ({}) does not match: kube-proxy does not learn of \
             their changes",
            shortened(unnoticed.iter().map(|dev| &dev.name)),
            desired.kube_proxy.interfaces
        ));
        text += &format!("kube_proxy:\n{}", role());
    }
    if evidence.is_empty() {
        return Ok(Vec::new());
    }
    let text = format!("# Uplinks that the configuration left out.\n{text}");
    let proposal = proposed(&facts.files.drop_ins, &last(&facts.files.drop_ins), text.as_bytes());
    let cure =
        format!("{}  # in config.d beside the file of --config, if that is another one", write_command(&proposal));
    Ok(vec![Finding::new(evidence.join("; "), None, cure).with(vec![proposal])])
}

fn role() -> String {
    "  interfaces: auto\n".into()
}

/// The existing further entries, and one more: a list in a later file replaces the earlier one.
fn further(desired: &Config, devs: &[Dev]) -> String {
    let names: Vec<String> = devs.iter().map(|dev| literal(dev.name.as_bytes())).collect();
    let value = desired.rp_filter.value.to_string();
    let added = [("interfaces", format!("^({})$", names.join("|"))), ("value", value)];
    let added = serde_json::Value::from_iter(added.map(|(key, value)| (key, serde_json::Value::from(value))));
    let there = desired.rp_filter.more.iter().filter_map(|entry| serde_json::to_value(entry).ok());
    // JSON is YAML.
    let lines = there.chain([added]).map(|entry| format!("    - {entry}\n"));
    format!("  more:\n{}", lines.collect::<String>())
}

/// A name as a regular expression that matches nothing else.
fn literal(name: &[u8]) -> String {
    let byte = |byte: &u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => char::from(*byte).to_string(),
        byte => format!("\\x{byte:02x}"),
    };
    name.iter().map(byte).collect()
}

/// A name that sorts after those of all existing drop-ins, so that it wins.
fn last(existing: &[ConfFile]) -> PathBuf {
    let path = Path::new(DROP_IN);
    let name = path.file_name().unwrap_or_default().as_bytes();
    let is_ours = |other: &[u8]| other.starts_with(b"90-uplinks");
    match existing.iter().map(ConfFile::name).filter(|other| !is_ours(other)).max() {
        Some(other) if other > name => {
            let stem = other.strip_suffix(b".yaml").unwrap_or(other);
            let name = [stem, b".zz-uplinks.yaml"].concat();
            path.with_file_name(<std::ffi::OsStr as OsStrExt>::from_bytes(&name))
        }
        _ => path.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drop_in_comes_last() {
        let file = |name: &str| ConfFile { path: Path::new("/etc/node-fixer/config.d").join(name), text: Vec::new() };
        for (there, expected) in [
            (vec![], "90-uplinks.yaml"),
            (vec!["10-a.yaml"], "90-uplinks.yaml"),
            (vec!["90-uplinks2.yaml"], "90-uplinks.yaml"),
            (vec!["10-a.yaml", "99-local.yaml"], "99-local.zz-uplinks.yaml"),
        ] {
            let files: Vec<_> = there.iter().map(|name| file(name)).collect();
            let placed = last(&files);
            assert_eq!(placed.file_name().unwrap(), expected, "{there:?}");
            assert!(there.iter().all(|name| *name < expected || name.starts_with("90-uplinks")), "{there:?}");
        }
    }

    #[test]
    fn a_name_matches_itself_alone() {
        for name in ["eth0.100", "a+b", "enP2p4s0", "x\u{1b}'"] {
            let pattern = regex::bytes::Regex::new(&format!("^({})$", literal(name.as_bytes()))).unwrap();
            assert!(pattern.is_match(name.as_bytes()), "{name}");
            assert!(
                !pattern.is_match(name.replace(['.', '+', '\''], "z").as_bytes()) || !name.contains(['.', '+', '\''])
            );
        }
    }
}
