//! What has been seen of the live node: plain data, without types of the netlink crates.
//!
//! Plans are made from this alone. Nothing is looked at before a plan asks for it. Asking for something that was not
//! looked at yet returns a [`Gap`] that names it; the engine looks, and plans again. So a run costs no more than the
//! node's policy requires, a failed look fails exactly the plans that need it, and "not looked at" can never pass for
//! "does not exist".
//!
//! A new look is a row in the table of `looks.rs` and the code that looks, in `node/look.rs`. The model of the tests
//! (`reconcile/testing.rs`) must answer it as well.

mod looks;
mod route;
mod types;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::model::netns::Sandboxes;
use crate::model::pod::{PodQuery, Pods};
use crate::model::{Family, SysctlKey};
use crate::sorted;

pub(crate) use looks::{LookAt, Past};
pub use looks::{Observed, Want};
pub use route::*;
pub use types::*;

pub use crate::model::{RuleAction, RuleExtras, SeenRule, Special};

/// A set of routes that the kernel can filter by.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteSet {
    /// All of one table.
    Table(Family, u32),
    /// All with this protocol number, in any table.
    Protocol(Family, u8),
    /// The routes of the main table for every packet: defaults, and the two halves of the address space.
    Defaults(Family),
}

impl fmt::Display for RouteSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RouteSet::Table(family, table) => write!(f, "the {family} routes of table {table}"),
            RouteSet::Protocol(family, protocol) => write!(f, "the {family} routes of protocol {protocol}"),
            RouteSet::Defaults(family) => write!(f, "the {family} default routes of the main table"),
        }
    }
}

/// Why a plan cannot be made yet, or at all.
#[derive(Debug, Clone, PartialEq)]
pub enum Gap {
    /// These have not been looked at.
    Unseen(Vec<Want>),
    /// A look failed: what it was for, and the kernel's error.
    Failed(Arc<str>),
}

impl Gap {
    /// The same for what is seen after [`Want::Settle`].
    pub fn later(self) -> Gap {
        match self {
            Gap::Unseen(wants) => Gap::Unseen(wants.into_iter().map(|want| Want::Later(Box::new(want))).collect()),
            failed @ Gap::Failed(_) => failed,
        }
    }
}

/// The answer to one look.
pub type Look<T> = Result<T, Arc<str>>;

/// Answers that need their own methods. The rows of the table lend all others.
impl Observed {
    /// Whether this set of routes has been looked at.
    pub fn has_routes(&self, set: &RouteSet) -> bool {
        self.routes.contains_key(set)
    }

    /// The global addresses of all interfaces.
    pub fn global_addresses(&self) -> Result<impl Iterator<Item = &Address> + Clone, Gap> {
        let all = match &self.addresses {
            Some(Ok(all)) => all,
            _ => one(&self.global_addresses, Want::GlobalAddresses)?,
        };
        Ok(all.iter().filter(|address| address.global))
    }

    /// Whether there is a program of this name on PATH.
    pub fn program(&self, name: &'static str) -> Result<bool, Gap> {
        Ok(all([name], &self.programs, Want::Program)?.contains(&&true))
    }

    /// The values of these sysctls, in the order asked for; `None` for one that does not exist.
    pub fn sysctls(&self, keys: impl IntoIterator<Item = SysctlKey>) -> Result<Vec<Option<&str>>, Gap> {
        Ok(all(keys, &self.sysctls, Want::Sysctl)?.into_iter().map(Option::as_deref).collect())
    }

    /// The same, where each may have a failure of its own. Some keys can only be written.
    pub fn sysctls_one_by_one(&self, keys: &[SysctlKey]) -> Result<Vec<&Look<Option<String>>>, Gap> {
        let unseen = sorted::set(keys.iter().filter(|key| !self.sysctls.contains_key(key)));
        if unseen.is_empty() {
            return Ok(keys.iter().filter_map(|key| self.sysctls.get(key)).collect());
        }
        Err(Gap::Unseen(unseen.into_iter().map(|key| Want::Sysctl(key.clone())).collect()))
    }

    /// node-fixer's file in /etc/sysctl.d, if it exists.
    pub fn persisted(&self) -> Result<Option<&str>, Gap> {
        one(&self.persisted, Want::Persisted).map(Option::as_deref)
    }

    /// What is seen after this time. If it is empty, [`Gap::later`] asks for what is missing.
    pub fn settled(&self, settle: Duration) -> Result<&Observed, Gap> {
        one(&self.settled, Want::Settle(settle)).map(|seen| &**seen)
    }

    /// The ready pods, or why crictl could not list them, which has to be saved.
    pub fn pods(&self, query: &PodQuery) -> Result<&Look<Pods>, Gap> {
        self.pods.get(query).ok_or_else(|| Gap::Unseen(vec![Want::Pods(query.clone())]))
    }

    /// The network namespaces of all sandboxes, or why crictl could not list them, which matters only to some plans.
    pub fn sandboxes(&self, query: &PodQuery) -> Result<&Look<Sandboxes>, Gap> {
        self.sandboxes.get(query).ok_or_else(|| Gap::Unseen(vec![Want::Sandboxes(query.clone())]))
    }
}

fn one<T>(seen: &Option<Look<T>>, want: Want) -> Result<&T, Gap> {
    match seen {
        Some(Ok(answer)) => Ok(answer),
        Some(Err(why)) => Err(Gap::Failed(why.clone())),
        None => Err(Gap::Unseen(vec![want])),
    }
}

/// Asks for many at once, so that they can be looked at together, and for each of them once: a table with a thousand
/// declared routes is dumped once.
fn all<K: Ord, T>(
    keys: impl IntoIterator<Item = K>,
    seen: &BTreeMap<K, Look<T>>,
    want: fn(K) -> Want,
) -> Result<Vec<&T>, Gap> {
    let (mut answers, mut unseen) = (Vec::new(), BTreeSet::new());
    for key in keys {
        match seen.get(&key) {
            Some(Ok(answer)) => answers.push(answer),
            Some(Err(why)) => return Err(Gap::Failed(why.clone())),
            None => drop(unseen.insert(key)),
        }
    }
    if unseen.is_empty() { Ok(answers) } else { Err(Gap::Unseen(unseen.into_iter().map(want).collect())) }
}
