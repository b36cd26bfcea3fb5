//! Contention: the same repair again and again, because somebody undoes it. A pure judgement of what is remembered;
//! nothing here keeps the mending from going on.
//!
//! *What counts.* An object is contended when the same repair (the same command) was made in [`OFTEN`] of the last
//! [`RUNS`] runs. A run that finds nothing to do writes no file, so nobody can count those runs. What can be known
//! are the runs that mended, because they write: each leaves the time of its repairs, on the clock that counts from
//! boot and that nobody sets. The other runs are reckoned by the timer, which starts one a minute: so the last 15
//! runs are those of the last 15 minutes. Runs that udev, another unit or a person starts come on top; they are not
//! counted, which can only make contention be found a little sooner than by the letter, never be missed. A timer that
//! was slowed down to less than every third minute makes too few runs in that time, and finds none.
//!
//! *kube-proxy* keeps its distance anyway, so that it is never restarted in 5 of 15 runs. Its restarts are contended
//! when each of [`OFTEN`] in a row came as soon as it was allowed, or nearly: within twice the distance kept, or three
//! runs. From then on the distance doubles with each further one, up to [`LONGEST`] times `min_interval` and half an hour.
//! An uplink never seen before is no flapping one: its restart is not counted, and waits no longer. When twice that
//! time has passed without a restart, the next one begins a new row.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// So many repairs of one object are contention …
pub const OFTEN: usize = 5;
/// … if they were made in so many runs.
pub const RUNS: u32 = 15;
/// The most that the distance between restarts of kube-proxy is multiplied with …
pub const LONGEST: u32 = 16;
/// … and the longest that this makes it.
const HALF_AN_HOUR: Duration = Duration::from_secs(1800);

/// What the timer makes of a run.
const RUN: Duration = Duration::from_secs(60);
/// So many objects are remembered at most: some 30 KiB.
const MOST: usize = 256;

/// What was mended lately.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Mends {
    /// Each repair that was made in the last [`RUNS`] runs.
    pub repairs: Vec<Repair>,
    /// The last change of each section since boot.
    pub sections: BTreeMap<String, LastChange>,
}

/// A repair, and when it was made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repair {
    /// Name of the section.
    pub reconciler: String,
    /// The command that stands for it.
    pub command: String,
    /// The last [`OFTEN`] times, in seconds since boot, the oldest first.
    pub times: Vec<u64>,
    /// Whether it was reported as contended.
    pub told: bool,
}

/// The last change of a section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastChange {
    /// When, by the wall clock, in seconds since 1970.
    pub wall: u64,
    /// What.
    pub command: String,
}

/// A change that a run has made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Name of the section.
    pub reconciler: &'static str,
    /// What.
    pub command: String,
    /// Whether it is told by its command whether it is the same again. A restart has a row of its own.
    pub repeats: bool,
}

impl Mends {
    /// Notes what one run has made, now. Returns what has become contended by it.
    pub fn note(&mut self, made: &[Made], boot: Duration, wall: Duration) -> Vec<Repair> {
        let now = boot.as_secs();
        self.repairs.retain(|repair| repair.times.iter().any(|time| is_recent(*time, now)));
        self.repairs.truncate(MOST);
        let mut contended = Vec::new();
        // First what is known: nothing new takes its place.
        let (known, new): (Vec<_>, Vec<_>) = made.iter().partition(|made| {
            self.repairs.iter().any(|it| it.reconciler == made.reconciler && it.command == made.command)
        });
        for Made { reconciler, command, repeats } in known.into_iter().chain(new) {
            let last = LastChange { wall: wall.as_secs(), command: command.clone() };
            self.sections.insert((*reconciler).to_owned(), last);
            if *repeats {
                contended.extend(self.count(reconciler, command, now));
            }
        }
        contended
    }

    /// Notes one repair. Returns it if it has become contended.
    fn count(&mut self, reconciler: &str, command: &str, now: u64) -> Option<Repair> {
        let same = |repair: &&mut Repair| repair.reconciler == reconciler && repair.command == command;
        let Some(repair) = self.repairs.iter_mut().find(same) else {
            if self.repairs.len() >= MOST {
                self.forget_one(reconciler, now);
            }
            if self.repairs.len() < MOST {
                let (reconciler, command) = (reconciler.to_owned(), command.to_owned());
                self.repairs.push(Repair { reconciler, command, times: vec![now], told: false });
            }
            return None;
        };
        repair.times.push(now);
        let surplus = repair.times.len().saturating_sub(OFTEN);
        repair.times.drain(..surplus);
        let newly = repair.is_contended(now) && !repair.told;
        repair.told |= newly;
        newly.then(|| repair.clone())
    }

    /// Makes room for a repair of a section. So that no section keeps another's out, the one that holds the most gives
    /// way: what was made least often, and of that the oldest. Its own repairs give way only where they were made once,
    /// before this run: one that comes again is found sooner than one that is new.
    fn forget_one(&mut self, of: &str, now: u64) {
        let held = |section: &String| self.repairs.iter().filter(|repair| repair.reconciler == *section).count();
        let Some(most) = self.sections.keys().max_by_key(|section| held(section)) else { return };
        let may_go = |repair: &Repair| {
            let once = repair.times.len() == 1 && repair.times.first().is_some_and(|at| *at < now);
            repair.reconciler == *most && (most != of || once)
        };
        let all = self.repairs.iter().enumerate().filter(|(_, repair)| may_go(repair));
        if let Some((_, _, goes)) = all.map(|(at, repair)| (repair.times.len(), repair.times.first(), at)).min() {
            self.repairs.swap_remove(goes);
        }
    }

    /// What is contended now.
    pub fn contended(&self, boot: Duration) -> impl Iterator<Item = &Repair> {
        self.repairs.iter().filter(move |repair| repair.is_contended(boot.as_secs()))
    }
}

impl Repair {
    fn is_contended(&self, now: u64) -> bool {
        self.times.iter().filter(|time| is_recent(**time, now)).count() >= OFTEN
    }

    /// How long ago the first of the times was.
    pub fn since(&self, boot: Duration) -> Duration {
        let first = self.times.iter().min().copied().unwrap_or_default();
        boot.saturating_sub(Duration::from_secs(first))
    }
}

/// Whether the time belongs to the last runs: this one, and those before it. One that lies ahead was none.
fn is_recent(time: u64, now: u64) -> bool {
    // Half a run more, so that a run that came a moment late still counts.
    let window = RUN * (RUNS - 1) + RUN / 2;
    now.checked_sub(time).is_some_and(|ago| ago <= window.as_secs())
}

/// The distance to keep after the last restart of kube-proxy.
pub fn distance(min_interval: Duration, row: u32) -> Duration {
    let further = (row as usize + 1).saturating_sub(OFTEN).min(LONGEST.ilog2() as usize);
    min_interval.saturating_mul(1 << further).min(HALF_AN_HOUR.max(min_interval))
}

/// Restarts of kube-proxy in a row, each as soon as it was allowed, or nearly.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// How many.
    pub length: u32,
    /// When the last was begun, on the clock that counts from boot.
    pub last: Option<Duration>,
}

impl Row {
    /// Which one the next restart is, if it is begun now. One for uplinks that are new does not count.
    pub fn next(self, min_interval: Duration, boot: Duration, grown: bool) -> u32 {
        if self.goes_on(min_interval, boot) { self.length.saturating_add(u32::from(!grown)) } else { 1 }
    }

    /// Whether the restarts are contended now.
    pub fn is_contended(self, min_interval: Duration, boot: Duration) -> bool {
        self.length as usize >= OFTEN && self.goes_on(min_interval, boot)
    }

    /// Whether the next restart, if it is begun now, belongs to the row.
    pub fn goes_on(self, min_interval: Duration, boot: Duration) -> bool {
        let reach = distance(min_interval, self.length).saturating_mul(2).max(RUN * RUNS / OFTEN as u32);
        let ago = self.last.and_then(|last| boot.checked_sub(last));
        ago.is_some_and(|ago| ago <= reach)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: Duration = Duration::from_secs(1_800_000_000);

    fn made(command: &str) -> Made {
        Made { reconciler: "rp_filter", command: command.into(), repeats: true }
    }

    /// Mends in these minutes; the ones that were reported.
    fn reported(mends: &mut Mends, minutes: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let at = |minute| Duration::from_secs(minute * 60);
        let mut told = Vec::new();
        for minute in minutes {
            if !mends.note(&[made("sysctl -w a=2")], at(minute), WALL).is_empty() {
                told.push(minute);
            }
        }
        told
    }

    #[test]
    fn five_of_the_last_fifteen_runs_are_contention_and_are_told_once() {
        for (case, minutes, expected) in [
            ("every run", vec![10, 11, 12, 13, 14, 15, 16, 40], vec![14]),
            ("the first and the last of fifteen", vec![10, 13, 17, 20, 24], vec![24]),
            ("the first and the last of sixteen", vec![10, 13, 17, 20, 25], vec![]),
            ("four", vec![10, 11, 12, 13], vec![]),
            ("every fourth run, for ever", (10..200).step_by(4).collect(), vec![]),
            ("every third run, for ever", (10..200).step_by(3).collect(), vec![22]),
            ("again after it had ended", [10..15, 40..45].into_iter().flatten().collect(), vec![14, 44]),
        ] {
            assert_eq!(reported(&mut Mends::default(), minutes), expected, "{case}");
        }
    }

    #[test]
    fn a_tick_that_comes_late_still_counts() {
        let mut mends = Mends::default();
        for second in [600, 700, 800, 900] {
            assert!(mends.note(&[made("x")], Duration::from_secs(second), WALL).is_empty());
        }
        assert_eq!(mends.note(&[made("x")], Duration::from_secs(600 + 14 * 60 + 2), WALL).len(), 1);
    }

    #[test]
    fn each_object_is_counted_for_itself() {
        let mut mends = Mends::default();
        for minute in 0..5 {
            let newly = mends.note(&[made("a"), made(&format!("b{minute}"))], Duration::from_secs(60 * minute), WALL);
            let newly: Vec<_> = newly.iter().map(|repair| repair.command.as_str()).collect();
            assert_eq!(newly, if minute == 4 { vec!["a"] } else { vec![] });
        }
        let now = Duration::from_secs(240);
        let contended: Vec<_> = mends.contended(now).collect();
        assert_eq!((contended.len(), contended[0].command.as_str(), contended[0].since(now)), (1, "a", now));
        assert_eq!(mends.contended(now + RUN * 15).count(), 0, "it ends by itself");
        assert_eq!(mends.sections["rp_filter"].command, "b4");
    }

    #[test]
    fn it_is_bounded_and_what_is_over_makes_room() {
        let many = |name: &str| (0..MOST + 9).map(|n| made(&format!("{name}{n}"))).collect::<Vec<_>>();
        let mut mends = Mends::default();
        for minute in 0..5 {
            let newly = mends.note(&many("a"), Duration::from_secs(60 * minute), WALL);
            assert_eq!(newly.len(), if minute == 4 { MOST } else { 0 });
        }
        assert!(mends.repairs.iter().all(|repair| repair.times.len() <= OFTEN));
        mends.note(&many("b"), Duration::from_secs(9_000), WALL);
        assert_eq!(mends.repairs.len(), MOST);
        assert!(mends.repairs.iter().all(|repair| repair.command.starts_with('b')));
        let size = serde_json::to_vec(&mends).unwrap().len();
        assert!(size < 64 << 10, "{size}");
    }

    #[test]
    fn repairs_that_were_made_once_make_room_for_those_that_come_again() {
        let mut mends = Mends::default();
        let once = (0..MOST).map(|n| made(&format!("once{n}"))).collect::<Vec<_>>();
        mends.note(&once, Duration::from_secs(60), WALL);
        let told = reported(&mut mends, 2..7);
        assert_eq!((told, mends.repairs.len()), (vec![6], MOST));
    }

    #[test]
    fn no_section_keeps_the_repairs_of_another_out() {
        let mut mends = Mends::default();
        let many = (0..MOST + 17).map(|n| made(&format!("many{n}"))).collect::<Vec<_>>();
        let other = Made { reconciler: "default_routes", ..made("other") };
        let mut told = Vec::new();
        for minute in 0..10 {
            let all = many.iter().cloned().chain((minute >= 3).then(|| other.clone())).collect::<Vec<_>>();
            let newly = mends.note(&all, Duration::from_secs(60 * minute), WALL);
            told.extend(newly.iter().filter(|repair| repair.reconciler == "default_routes").map(|_| minute));
        }
        assert_eq!((told, mends.repairs.len()), (vec![7], MOST));
        let of_many = mends.repairs.iter().filter(|repair| repair.times.len() == OFTEN && repair.told);
        assert_eq!(of_many.count(), MOST, "what was evicted for it is one");
    }

    #[test]
    fn times_that_cannot_be_are_no_contention() {
        let times = [u64::MAX, 1 << 40, 7, 8, 9, 10].repeat(1000);
        let repair = Repair { reconciler: "\u{1b}".into(), command: "x".into(), times, told: false };
        let mut mends = Mends { repairs: vec![repair; 5000], ..Mends::default() };
        let now = Duration::from_secs(100_000);
        assert_eq!(mends.contended(now).count(), 0);
        mends.note(&[made("x")], now, Duration::MAX);
        assert_eq!(mends.repairs.len(), 1);
    }

    #[test]
    fn restarts_in_a_row_move_apart_and_come_together_again() {
        let min = Duration::from_secs(300);
        let mut row = Row { length: 0, last: None };
        let mut now = Duration::from_secs(1_000);
        let mut distances = Vec::new();
        for _ in 0..12 {
            row = Row { length: row.next(min, now, false), last: Some(now) };
            distances.push(distance(min, row.length).as_secs() / 60);
            assert_eq!(row.is_contended(min, now), row.length >= 5);
            now += distance(min, row.length) + Duration::from_secs(40);
        }
        assert_eq!(distances, [5, 5, 5, 5, 10, 20, 30, 30, 30, 30, 30, 30]);
        now += distance(min, row.length);
        assert!(!row.is_contended(min, now));
        assert_eq!(row.next(min, now, false), 1);
        let hostile = Row { length: u32::MAX, last: Some(Duration::MAX) };
        assert_eq!((hostile.next(min, now, false), distance(min, hostile.length)), (1, min * 6));
        assert_eq!(distance(Duration::MAX, u32::MAX), Duration::MAX);
        assert_eq!(distance(Duration::ZERO, 9), Duration::ZERO, "who wants no distance gets none");
    }
}
