//! A node in a file: everything that plans, `doctor`, `explain` and `status` may read, so that they give the same answers
//! elsewhere.
//!
//! Answers of netlink are kept as the kernel's own messages, which the same decoders read again. Everything else is kept look
//! by look on a [`Tape`], including the time. What was not captured is unknown, and is not taken for missing.

mod anonymous;
mod take;

use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::config::{self, ConfigError, Loaded};
use crate::host::Host;
use crate::model::one_line;
use crate::node::{Dumps, FibReader};
use crate::store::Store;
use crate::tape::{ByLook, Lists, Looks, Tape};
pub use anonymous::anonymous;
pub use take::take;

/// Version of the file. Additions raise the second number, everything else the first.
const FORMAT_VERSION: &str = "1.0";
/// The look by which the configuration is kept.
const CONFIGURATION: &str = "configuration";
/// Its files: name and text of each, the main file first; none if it is the built-in default.
const FILES: &str = "";
/// The texts of the files that name tables.
const TABLES: &str = "tables";
/// A larger file is not accepted.
const MAX_BYTES: u64 = 256 << 20;
/// The kernel's messages are kept in this machine's byte order.
const BYTE_ORDER: &str = if cfg!(target_endian = "little") { "little" } else { "big" };

/// A captured node as it is in its file.
#[derive(Debug, Serialize, Deserialize)]
pub struct CaptureFile {
    format_version: String,
    /// Version of node-fixer.
    program: String,
    /// When, by the wall clock.
    captured: String,
    byte_order: String,
    /// Whether names and addresses stand for others.
    anonymous: bool,
    /// What could not be seen, by look and key, and why.
    failed: ByLook,
    /// Rules, routes, links and addresses for people. Nothing reads it.
    #[serde(skip_deserializing)]
    shown: Lists,
    /// What was seen by other ways than netlink, by look and key.
    seen: ByLook,
    /// What netlink answered: messages without their headers, in hexadecimal digits.
    netlink: Lists,
}

impl CaptureFile {
    /// What could not be seen, and why.
    pub fn unseen(&self) -> Vec<String> {
        let failed = self.failed.iter().flat_map(|(look, answers)| answers.iter().map(move |answer| (look, answer)));
        let mut unseen: Vec<String> = failed
            .map(|(look, (key, why))| match key.as_str() {
                "" => format!("{look}: {}", why.concat()),
                key => format!("{look} {key}: {}", why.concat()),
            })
            .collect();
        let nat = self.seen.get("nat").and_then(|answers| answers.get(""));
        if nat.is_some_and(|nat| *nat == ["hidden"]) {
            unseen.push("nftables: reading it requires CAP_NET_ADMIN".into());
        }
        unseen
    }
}

/// A captured node.
#[derive(Debug)]
pub struct Captured {
    /// The lists of its configuration.
    configuration: Lists,
    tape: Tape,
    dumps: Arc<Dumps>,
}

impl Captured {
    /// Reads a captured node.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is not a captured node.
    pub fn read(file: &Path) -> anyhow::Result<Captured> {
        let name = || format!("cannot read the captured node {}", one_line(&file.to_string_lossy()));
        let mut text = String::new();
        let opened = File::open(file).with_context(name)?;
        opened.take(MAX_BYTES + 1).read_to_string(&mut text).with_context(name)?;
        Captured::parse(&text).with_context(name)
    }

    pub(crate) fn parse(text: &str) -> anyhow::Result<Captured> {
        ensure!(text.len() as u64 <= MAX_BYTES, "the file is larger than {} MiB", MAX_BYTES >> 20);
        let file: CaptureFile = serde_json::from_str(text).context("not a file of node-fixer capture")?;
        let CaptureFile { format_version, byte_order, mut seen, failed, netlink, .. } = file;
        if format_version.split('.').next() != FORMAT_VERSION.split('.').next() {
            bail!("format_version is {format_version:?}; this version of node-fixer reads {FORMAT_VERSION}");
        }
        ensure!(byte_order == BYTE_ORDER, "byte_order is {byte_order:?}, but this machine is {BYTE_ORDER}");
        let dumps =
            Dumps::of_lists(netlink).context("the netlink messages are incomplete, or not in hexadecimal digits")?;
        let configuration = seen.remove(CONFIGURATION).unwrap_or_default();
        Ok(Captured { configuration, tape: Tape::playing(Looks { seen, failed }), dumps: Arc::new(dumps) })
    }

    /// The configuration of the node.
    ///
    /// # Errors
    ///
    /// What is wrong with it.
    pub fn configuration(&self) -> Result<Loaded, ConfigError> {
        let list = |name| self.configuration.get(name).cloned();
        let file = |pair: &[String]| Some((pair.first()?.clone(), pair.get(1)?.clone()));
        let files = list(FILES).unwrap_or_default();
        config::of_files(files.chunks(2).filter_map(file).collect(), list(TABLES).unwrap_or_default())
    }

    /// The node, as the looks need it.
    pub fn host(&self) -> Host {
        let store = Store::taped(Path::new(""), Path::new(""), self.tape.clone());
        Host::captured(Arc::clone(&self.dumps), store, self.tape.clone())
    }

    /// The node, for `explain`.
    pub fn reader(&self) -> FibReader {
        FibReader::captured(Arc::clone(&self.dumps), self.tape.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{self, Drops};
    use crate::engine;
    use crate::node::Marks;
    use crate::status;

    /// Asks a captured node all that can be asked of one.
    fn ask_all(text: &str) -> bool {
        let Ok(node) = Captured::parse(text) else { return false };
        let desired = node.configuration().map(|loaded| loaded.desired).unwrap_or_default();
        let mut host = node.host();
        engine::dry_run(&desired, &mut host);
        let _ = status::look(&desired, &mut host, (Path::new(""), Path::new("")));
        let root = host.root();
        doctor::examine(&desired, &mut host, &root, Drops::Counted);
        let address = |text: &str| text.parse::<std::net::IpAddr>();
        let (Ok(pod), Ok(far)) = (address("10.0.1.100"), address("192.0.2.1")) else { return false };
        node.reader().read(pod, far, Marks::Some).is_ok() && node.reader().shown().is_ok()
    }

    #[test]
    fn fuzz() {
        crate::fuzz::run("captured", |bytes| str::from_utf8(bytes).is_ok_and(ask_all));
    }

    #[test]
    fn fuzz_anonymous() {
        crate::fuzz::run("captured", |bytes| {
            let Ok(file) = serde_json::from_slice::<CaptureFile>(bytes) else { return false };
            let Ok(file) = anonymous(file) else { return false };
            ask_all(&serde_json::to_string(&file).unwrap())
        });
    }

    #[test]
    fn what_is_not_a_captured_node_is_refused() {
        let valid = std::fs::read_to_string("tests/corpus/captured/node.json").unwrap();
        assert!(ask_all(&valid));
        for (broken, why) in [
            (String::new(), "not a file of node-fixer capture"),
            ("[".repeat(1 << 20), "not a file of node-fixer capture"),
            (valid.replacen("\"1.0\"", "\"2.0\"", 1), "format_version is \"2.0\""),
            (valid.replacen("little", "big", 1), "byte_order is \"big\""),
            (valid.replacen("\"rules\":[\"02", "\"rules\":[\"0g", 1), "hexadecimal"),
            (valid.replacen("\"rules\":[\"02", "\"rulez\":[\"02", 1), "incomplete"),
        ] {
            let error = format!("{:#}", Captured::parse(&broken).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
    }
}
