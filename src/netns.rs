//! The nouns of network namespaces that have a name (`ip netns`), and of the links that lead to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::net::{Dev, shell_word};

/// Where `ip netns` keeps its names: a file for each, with the namespace mounted on it.
pub const DIRECTORY: &str = "/run/netns";

/// Name of a network namespace: a file name. It need not be UTF-8.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NetnsName(Box<[u8]>);

impl NetnsName {
    /// Takes a name if a file can have it.
    pub fn new(name: &[u8]) -> Option<NetnsName> {
        let fits = (1..=255).contains(&name.len()) && !matches!(name, b"." | b"..");
        (fits && !name.iter().any(|byte| matches!(byte, b'/' | 0))).then(|| NetnsName(name.into()))
    }

    /// The name as it is.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
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

/// What tells network namespaces apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetnsId {
    /// Device of its file.
    pub device: u64,
    /// Inode of its file. The next namespace gets that of one that is gone.
    pub inode: u64,
    /// When its inode last changed, which a namespace with a name does not do by itself: seconds and nanoseconds.
    pub changed: (i64, i64),
}

/// A name below [`DIRECTORY`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenNetns {
    /// The name.
    pub name: NetnsName,
    /// The namespace; `None` where the file is no network namespace (yet).
    pub id: Option<NetnsId>,
}

/// The network namespaces that processes and threads are in, each with one process of it.
pub type Occupied = BTreeMap<NetnsId, u32>;

/// What the container runtime's sandboxes have of network namespaces, whatever state they are in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sandboxes {
    /// Names below [`DIRECTORY`].
    pub names: BTreeSet<NetnsName>,
    /// The namespaces of these that are there.
    pub ids: BTreeSet<NetnsId>,
}

impl Sandboxes {
    /// Whether one of them has this namespace, or its name.
    pub fn have(&self, name: &NetnsName, id: NetnsId) -> bool {
        self.names.contains(name) || self.ids.contains(&id)
    }
}

/// A veth both ends of which are in this network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Veth {
    /// Index and name.
    pub dev: Dev,
    /// Index of the other end.
    pub peer: u32,
}

/// What was seen without use, and since when.
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
    /// Its name, as far as it is UTF-8. The same name can come to be another namespace's.
    pub name: String,
    /// The namespace.
    pub id: NetnsId,
    /// When it was first seen so, on the clock that counts from boot.
    pub since: Duration,
}

/// A link without a namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdleLink {
    /// Its name, as far as it is UTF-8.
    pub name: String,
    /// Its index, which no other link gets as long as this one lives.
    pub index: u32,
    /// When it was first seen so, on the clock that counts from boot.
    pub since: Duration,
}
