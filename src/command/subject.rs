//! What a command is about: this node, or a captured one.

use std::path::Path;

use anyhow::Context;

use super::{IN_HASTE, NO_NETLINK};
use crate::capture::Captured;
use crate::cli::{Cli, Common};
use crate::config::{self, Config, ConfigError, Loaded};
use crate::history::memory::Patience;
use crate::host::Host;
use crate::node::FibReader;
use crate::store::Store;

/// What a command is about.
pub(super) enum Subject {
    /// The node that it runs on.
    This,
    /// One in a file.
    Captured(Captured),
}

impl Subject {
    /// The one that the command line names.
    pub fn of(cli: &Cli) -> anyhow::Result<Subject> {
        cli.common.node.as_deref().map_or(Ok(Subject::This), Subject::captured)
    }

    /// The one in a file.
    pub fn captured(file: &Path) -> anyhow::Result<Subject> {
        Captured::read(file).map(Subject::Captured)
    }

    /// Whether it is one in a file.
    pub fn is_captured(&self) -> bool {
        matches!(self, Subject::Captured(_))
    }

    /// Its configuration, unless another one is named.
    pub fn load(&self, common: &Common) -> Result<Loaded, ConfigError> {
        match self {
            Subject::Captured(node) if common.config.is_none() => node.configuration(),
            _ => config::load(common.config.as_deref()),
        }
    }

    /// The same for a look that does not wait for a crictl that hangs.
    pub fn load_in_haste(&self, common: &Common) -> Result<Config, ConfigError> {
        self.load(common).map(|loaded| in_haste(loaded.desired))
    }

    /// Opens it, to look.
    pub fn open(&self, cli: &Cli, patience: Patience) -> anyhow::Result<Host> {
        match self {
            Subject::This => Host::open(Store::new(cli.state_dir(), cli.durable_dir(), patience)).context(NO_NETLINK),
            Subject::Captured(node) => Ok(node.host()),
        }
    }

    /// Opens it for `explain`.
    pub fn reader(&self) -> anyhow::Result<FibReader> {
        match self {
            Subject::This => FibReader::open(),
            Subject::Captured(node) => Ok(node.reader()),
        }
    }
}

/// The configuration for a look that does not wait for a crictl that hangs.
pub(super) fn in_haste(mut desired: Config) -> Config {
    desired.kube_proxy.timeout.0 = desired.kube_proxy.timeout.0.min(IN_HASTE);
    desired
}
