//! What is reported once for as long as it lasts: notices and, in runs of the watcher, which may come every second,
//! also what is blocked, failed or held back.

use tracing::warn;

use super::Run;
use crate::change::Blocked;
use crate::config::Mode;
use crate::history::memory::{Note, Patience, Reported, digest};
use crate::outcome::{BlockedRecord, ChangeRecord, ChangeStatus, Outcome};
use crate::reconcile::ALL;
use crate::sorted;

/// What earlier runs have reported and still applied.
#[derive(Debug, Default)]
pub struct Standing {
    reported: Reported,
    /// Whether this is a run of the watcher.
    watched: bool,
}

/// The saved form of a failure.
fn failed(item: &ChangeRecord) -> String {
    format!("failed: {}", item.repair())
}

/// The saved form of a delay. Without its reason, which contains the remaining time.
fn held(item: &ChangeRecord) -> String {
    format!("held back: {}", item.repair())
}

fn blocked(Blocked { want, because, .. }: &Blocked) -> String {
    format!("blocked: {want}: {because}")
}

impl Standing {
    /// From the store. What cannot be read now is reported once more.
    pub fn new(host: &mut crate::host::Host) -> Standing {
        let watched = matches!(host.store.patience(), Patience::Watched | Patience::Due);
        let reported = if watched { host.store.reported().cloned().unwrap_or_default() } else { Reported::new() };
        Standing { reported, watched }
    }

    fn knows(&self, section: &str, text: impl FnOnce() -> String) -> bool {
        self.reported.get(section).is_some_and(|texts| texts.contains(&text()))
    }

    /// Whether an earlier run has reported that this change failed.
    pub fn knows_failed(&self, item: &ChangeRecord) -> bool {
        self.knows(item.reconciler, || failed(item))
    }

    /// Logs what is held back, what is blocked, and the failures that are reported together.
    pub fn log(&self, outcome: &Outcome) {
        let is_new = |item: &&ChangeRecord| !self.knows(item.reconciler, || held(item));
        let waits: Vec<_> = outcome.changes.iter().filter(|item| item.waits()).filter(is_new).collect();
        for (first, number) in as_one(&waits) {
            first.log_held(number);
        }
        let failed: Vec<_> = outcome.changes.iter().filter(|item| item.is_reported_later()).collect();
        for (first, number) in as_one(&failed) {
            first.log_failed(number);
        }
        let is_new = |refused: &&BlockedRecord| !self.knows(refused.reconciler, || blocked(&refused.blocked));
        outcome.blocked.iter().filter(is_new).for_each(BlockedRecord::log);
    }

    /// What the next run of the watcher need not report of this section.
    fn of_watched(&self, section: &str, outcome: &Outcome) -> Vec<String> {
        if !self.watched {
            return Vec::new();
        }
        // What is repaired may be undone again, and what fails may be held back the next time: it is the same fault.
        let of_item = |item: &ChangeRecord| {
            let texts = [(item.status == ChangeStatus::Failed, failed(item)), (item.waits(), held(item))];
            texts
                .into_iter()
                .filter(|(is_so, text)| *is_so || self.knows(section, || text.clone()))
                .map(|(_, text)| text)
        };
        let items = outcome.changes.iter().filter(|item| item.reconciler == section);
        let refused = outcome.blocked.iter().filter(|refused| refused.reconciler == section);
        // Many changes may be one repair.
        let items = sorted::set(items.flat_map(of_item));
        items.into_iter().chain(refused.map(|refused| blocked(&refused.blocked))).collect()
    }
}

/// The first change of each repair, and how many of it follow each other with the same result.
fn as_one<'a>(items: &[&'a ChangeRecord]) -> impl Iterator<Item = (&'a ChangeRecord, usize)> {
    let is_same = |a: &&ChangeRecord, b: &&ChangeRecord| {
        a.part_of.is_some() && (a.reconciler, a.part_of, &a.error) == (b.reconciler, b.part_of, &b.error)
    };
    items.chunk_by(is_same).filter_map(|same| Some((*same.first()?, same.len())))
}

impl Run<'_> {
    /// Logs what is held back, what is blocked, and each notice: once, as long as it is so. That it cannot be remembered
    /// is no failure of the run.
    pub(super) fn log_standing(&mut self) {
        // What cannot be read for now is reported once more.
        let reported = self.host.store.reported().cloned().unwrap_or_default();
        let nothing = self.outcome.notices.is_empty() && reported.is_empty();
        // Nothing is concluded from what was cut short.
        if self.host.is_interrupted() || nothing && (!self.standing.watched || self.outcome.converged()) {
            self.standing.log(&self.outcome);
            return;
        }
        let now = self.standing_now(&reported);
        let digest = digest(&now);
        // Only the watcher knows it, because the state directory cannot be written.
        let again = digest == self.host.unsaved;
        if !again {
            self.standing.log(&self.outcome);
            let is_new = |section: &str, text| reported.get(section).is_none_or(|texts| !texts.contains(text));
            for (reconciler, notice) in self.outcome.notices.iter().filter(|(name, it)| is_new(name, &it.text)) {
                warn!(target: "notice", reconciler, reason = notice.text, "notice");
            }
        }
        if now != reported
            && let Err(error) = self.host.store.remember(Note::Reported(now))
        {
            self.outcome.unsaved = digest;
            if !again {
                warn!(%error, "cannot save which warnings were reported; the next run reports them again");
            }
        }
    }

    /// What the next run need not report, given what the earlier ones have.
    fn standing_now(&self, reported: &Reported) -> Reported {
        let mut now = Reported::new();
        for reconciler in ALL.iter().filter(|reconciler| (reconciler.mode)(self.desired) != Mode::Off) {
            let name = reconciler.name;
            let before = reported.get(name).map_or(&[][..], Vec::as_slice);
            let notices = self.outcome.notices.iter().filter(|(section, _)| *section == name);
            let mut texts: Vec<String> = notices.map(|(_, notice)| notice.text.clone()).collect();
            texts.extend(self.standing.of_watched(name, &self.outcome));
            // What could not be read may still apply. Two kinds of runs look at what is held back, and see different
            // parts of it. What this run did not look at is unchanged.
            let unseen = || self.outcome.blocked.iter().any(|it| it.reconciler == name && it.blocked.unseen);
            let halves = self.standing.watched && reconciler.waits && !texts.is_empty();
            let others =
                self.host.store.patience() == Patience::Due && !reconciler.waits || self.left_out && reconciler.waits;
            if halves || others || unseen() {
                texts.extend(before.iter().filter(|text| !texts.contains(text)).cloned().collect::<Vec<_>>());
            }
            if !texts.is_empty() {
                now.insert(name.to_owned(), texts);
            }
        }
        now
    }
}
