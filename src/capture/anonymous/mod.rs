//! Replaces what identifies a node, consistently throughout the file: addresses, names and keys.
//!
//! Only what is known to be harmless is kept: of a message of the kernel the attributes that are listed, of a text the numbers
//! and the words in the vocabulary (node-fixer's own, and common ones of configuration files).

mod addresses;
mod secrets;
mod words;

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::net::IpAddr;

use anyhow::Context;
use serde_json::Value;

use super::{CONFIGURATION, CaptureFile};
use crate::doctor::{machine_id, persistent_hardware};
use crate::history::cni_rules::SavedRules;
use crate::model::IfName;
use crate::node::{Dumps, FibReader, Substitute};
use crate::sorted;
use crate::tape::{ByLook, Lists, Tape, bytes_of, text_of};
use addresses::AddressMap;
use words::{Numbers, Words};

/// What replaces what.
#[derive(Default)]
struct Substitutes {
    addresses: AddressMap,
    words: Words,
}

/// Numbers that look random, and are the same for the same question within one file.
#[derive(Default)]
struct Randomness(RandomState);

impl Randomness {
    fn roll(&self, question: impl std::hash::Hash) -> u64 {
        self.0.hash_one(question)
    }
}

/// Looks whose answers contain only numbers and words of node-fixer.
const HARMLESS: [&str; 9] =
    ["clocks", "counted", "guest", "martians", "occupied", "paths", "programs", "systemd", "watcher"];
/// Looks into files that people write: what looks like a number in them may be a secret.
const FILES: [&str; 3] = [CONFIGURATION, "files", "persisted"];

/// Makes a captured node anonymous.
///
/// # Errors
///
/// The captured answers of the kernel cannot be decoded.
pub fn anonymous(file: CaptureFile) -> anyhow::Result<CaptureFile> {
    let dumps =
        Dumps::of_lists(file.netlink.clone()).context("the captured answers of the kernel cannot be decoded")?;
    let mut substitutes = Substitutes::default();
    dumps.prefixes().into_iter().for_each(|prefix| substitutes.addresses.protect(prefix));
    for (look, answers) in &file.seen {
        for text in answers.values().flatten().filter(|_| !HARMLESS.contains(&look.as_str())) {
            words::prefixes(text).for_each(|prefix| substitutes.addresses.protect(prefix));
        }
    }
    let machine = file.seen.get("files").and_then(|files| files.get("/etc/machine-id"));
    let machine = machine.map(|text| text.concat()).and_then(|text| machine_id(text.as_bytes()));
    for (name, hardware) in dumps.hardware() {
        substitutes.know_name(&text_of(name.as_bytes()));
        substitutes.know_hardware(&name, &hardware, machine.as_ref());
    }
    let netlink = dumps.replaced(&mut substitutes).lists();
    let seen = substitutes.looks(&file.seen);
    let failed = substitutes.looks(&file.failed);
    let dumps = Dumps::of_lists(netlink.clone())
        .context("the answers of the kernel cannot be decoded after they were made anonymous")?;
    let shown = FibReader::captured(dumps.into(), Tape::default()).shown()?;
    Ok(CaptureFile { anonymous: true, failed, shown, seen, netlink, ..file })
}

impl Substitute for Substitutes {
    fn address(&mut self, address: IpAddr) -> IpAddr {
        self.addresses.of(address)
    }

    fn name(&mut self, name: &[u8]) -> Vec<u8> {
        bytes_of(&self.text(&text_of(name), Numbers::Any))
    }

    fn hardware(&mut self, hardware: &[u8]) -> Vec<u8> {
        let digits = self.words.of(&hexadecimal(hardware), Numbers::Short);
        u128::from_str_radix(&digits, 16).map_or_else(
            |_| vec![0; hardware.len()],
            |number| number.to_be_bytes().into_iter().skip(16_usize.saturating_sub(hardware.len())).collect(),
        )
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Substitutes {
    /// A name with an address in it may become longer than names of interfaces are: then it is one word.
    fn know_name(&mut self, name: &str) {
        let other = bytes_of(&self.text(name, Numbers::Any));
        if IfName::new(&other).is_none() {
            self.words.of(name, Numbers::Any);
        }
    }

    /// A hardware address that udev has made of the machine-id and a name is made of their substitutes afterwards; all others
    /// are locally administered ones that are not in use.
    fn know_hardware(&mut self, name: &IfName, hardware: &[u8], machine: Option<&[u8; 16]>) {
        let plain = hardware.iter().all(|byte| *byte == 0) || hardware.iter().all(|byte| *byte == 0xff);
        let of_udev = machine.filter(|machine| hardware == persistent_hardware(machine, name));
        let other = match of_udev {
            _ if plain => hardware.to_vec(),
            Some(machine) => {
                let machine = machine_id(self.words.of(&hexadecimal(machine), Numbers::Short).as_bytes());
                let name = IfName::new(&self.name(name.as_bytes()));
                machine.zip(name).map_or_else(Vec::new, |(machine, name)| persistent_hardware(&machine, &name).to_vec())
            }
            None => {
                let digits = self.words.of(&hexadecimal(hardware), Numbers::Short);
                return self.words.know(&hexadecimal(hardware), "02".to_owned() + digits.get(2..).unwrap_or_default());
            }
        };
        self.words.know(&hexadecimal(hardware), hexadecimal(&other));
    }

    fn looks(&mut self, looks: &ByLook) -> ByLook {
        sorted::map(looks.iter().map(|(look, answers)| (look.clone(), self.answers(look, answers))))
    }

    fn value(&mut self, value: Value) -> Value {
        match value {
            Value::String(text) => self.text(&text, Numbers::Short).into(),
            Value::Array(values) => values.into_iter().map(|value| self.value(value)).collect(),
            Value::Object(fields) => {
                fields.into_iter().map(|(name, value)| (self.text(&name, Numbers::Short), self.value(value))).collect()
            }
            other => other,
        }
    }

    fn answers(&mut self, look: &str, answers: &Lists) -> Lists {
        let numbers = if FILES.contains(&look) { Numbers::Short } else { Numbers::Any };
        let mut replaced = Lists::new();
        for (key, answer) in answers {
            let mut text = |text: &String| match look {
                look if HARMLESS.contains(&look) => text.clone(),
                "memory" | "ledger" => match serde_json::from_str(text) {
                    Ok(value) => self.value(value).to_string(),
                    Err(_) => self.text(text, numbers),
                },
                "cni_memory" => SavedRules::in_order(&self.text(text, numbers)),
                look if FILES.contains(&look) => self.text(&secrets::without(text), numbers),
                _ => self.text(text, numbers),
            };
            let answer = answer.iter().map(&mut text).collect();
            replaced.insert(self.text(key, Numbers::Any), answer);
        }
        replaced
    }
}
