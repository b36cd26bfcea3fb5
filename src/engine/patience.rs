//! Delays repairs that another program undoes at once: in runs of the watcher they are made after 1, 2, 4 … 60 seconds.
//! Otherwise both programs would work without a pause.

use std::time::Duration;

use tracing::warn;

use crate::history::contention::{Judgement, RepairHistory};
use crate::history::memory::{Note, Patience};
use crate::host::Host;
use crate::outcome::ChangeRecord;

/// The repairs of earlier runs of the watcher, which decide how long this one waits.
#[derive(Debug, Default)]
pub struct Undone {
    repairs: RepairHistory,
    /// The current time, on the clock since boot.
    now: Duration,
    pace: Duration,
    /// Whether a wait has begun.
    changed: bool,
}

impl Undone {
    /// From the store.
    pub fn new(host: &mut Host, pace: Duration) -> Undone {
        if host.store.patience() != Patience::Watched {
            return Undone::default();
        }
        // Without the saved state nothing is held back.
        let known = host.store.recall().map(|recall| (recall.memory.repairs, recall.boot)).unwrap_or_default();
        Undone { repairs: known.0, now: known.1, pace, changed: false }
    }

    /// How long to delay a change, and why.
    pub fn wait(&mut self, record: &ChangeRecord) -> Option<(Duration, String)> {
        if self.repairs.repairs.iter().all(|repair| repair.made == 0) {
            return None;
        }
        let (section, repair) = (record.reconciler, record.repair());
        let Judgement { until, times, begins } = self.repairs.judge(section, &repair, self.now, self.pace)?;
        self.changed |= begins;
        let rest = until.saturating_sub(self.now);
        let seconds = Duration::from_secs(rest.as_millis().div_ceil(1000) as u64);
        let times = if times == 1 { "once".into() } else { format!("{times} times in a row") };
        Some((rest, format!("undone at once, {times}; held back for {}", humantime::format_duration(seconds))))
    }

    /// Saves the waits that have begun.
    pub fn remember(self, host: &mut Host) {
        if self.changed
            && let Err(error) = host.store.remember(Note::Repairs(self.repairs))
        {
            warn!(%error, "cannot save which repairs are undone; they are made without a pause");
        }
    }
}
