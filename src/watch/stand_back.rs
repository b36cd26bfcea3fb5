//! A watcher in a container that stands back for the node-fixer that is installed on its node.

use std::path::Path;

use tracing::warn;

use crate::store::{Guest, Installed};

/// Whether this watcher stands back when it has to, and whether it does so now.
#[derive(Debug)]
pub struct StandBack {
    may: bool,
    does: bool,
    shown: Option<Guest>,
}

impl StandBack {
    /// With the option, or without it.
    pub fn new(may: bool) -> StandBack {
        StandBack { may, does: false, shown: None }
    }

    /// Whether it does so now. Says it once.
    pub fn now(&mut self, state_dir: &Path) -> bool {
        let installed = self.may.then(|| Installed::is_active(state_dir)).flatten();
        match &installed {
            Some(installed) if !self.does => {
                warn!(target: "locked", "{installed}");
                self.shown = Guest::shows(state_dir).ok();
            }
            None if self.does => {
                warn!("the node-fixer that is installed on this node is no longer active; this one takes over");
                self.shown = None;
            }
            _ => {}
        }
        self.does = installed.is_some();
        self.does
    }

    /// Whether it did so at the last look.
    pub fn does(&self) -> bool {
        self.does
    }
}
