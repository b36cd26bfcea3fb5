//! The nouns of named network namespaces (`ip netns`), and of their links.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{Dev, shell_word};

/// Where `ip netns` keeps the names: a file for each, on which the namespace is mounted.
pub const DIRECTORY: &str = "/run/netns";

/// Name of a network namespace: a file name. It need not be UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetnsName(Box<[u8]>);

impl NetnsName {
    /// Accepts any valid file name.
    pub fn new(name: &[u8]) -> Option<NetnsName> {
        let fits = (1..=255).contains(&name.len()) && !matches!(name, b"." | b"..");
        (fits && !name.iter().any(|byte| matches!(byte, b'/' | 0))).then(|| NetnsName(name.into()))
    }

    /// The name as it is.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The command that deletes the name.
    pub fn delete_command(&self) -> String {
        format!("ip netns del {self}")
    }
}

impl fmt::Display for NetnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&shell_word(&self.0))
    }
}

impl fmt::Debug for NetnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The identity of a network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetnsId {
    /// Device of its file.
    pub device: u64,
    /// Inode of its file. The next namespace may reuse that of a deleted one.
    pub inode: u64,
    /// When its inode last changed, in seconds and nanoseconds. It does not change while a namespace has a name.
    pub changed: (i64, i64),
}

/// A name below [`DIRECTORY`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenNetns {
    /// The name.
    pub name: NetnsName,
    /// The namespace; `None` if the file is not a network namespace (yet).
    pub id: Option<NetnsId>,
}

/// The network namespaces that have processes or threads, each with one of its processes.
pub type Occupied = BTreeMap<NetnsId, u32>;

/// The network namespaces of the container runtime's sandboxes, in any state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sandboxes {
    /// Names below [`DIRECTORY`].
    pub names: BTreeSet<NetnsName>,
    /// Their namespaces that exist.
    pub ids: BTreeSet<NetnsId>,
}

impl Sandboxes {
    /// Whether one of them has this namespace, or its name.
    pub fn have(&self, name: &NetnsName, id: NetnsId) -> bool {
        self.names.contains(name) || self.ids.contains(&id)
    }
}

/// A veth with both ends in this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Veth {
    /// Index and name.
    pub dev: Dev,
    /// Index of the other end.
    pub peer: u32,
}

impl Veth {
    /// The command that deletes both ends.
    pub fn delete_command(&self) -> String {
        format!("ip link del dev {} type veth", self.dev.name)
    }
}

/// Unused objects, and since when.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Idle {
    /// Namespaces without a process.
    pub namespaces: Vec<IdleNetns>,
    /// Links without a namespace.
    pub links: Vec<IdleLink>,
}

/// A namespace without a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdleNetns {
    /// Its name. Bytes that are not UTF-8 are replaced. Another namespace may get the same name.
    pub name: String,
    /// The namespace.
    pub id: NetnsId,
    /// When it was first seen without a process, on the clock since boot.
    pub since: Duration,
}

/// A link without a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdleLink {
    /// Its name. Bytes that are not UTF-8 are replaced.
    pub name: String,
    /// Its index, which no other link gets while this one exists.
    pub index: u32,
    /// When it was first seen without a namespace, on the clock since boot.
    pub since: Duration,
}
