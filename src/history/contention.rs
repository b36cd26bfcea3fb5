//! Contention: the same repair is made again and again, because another program undoes it. This is a pure judgement of
//! the saved state; repairs continue in any case.
//!
//! *What counts.* A repair is contended when the same command was run in [`OFTEN`] of the last [`RUNS`] runs. A run
//! with nothing to do writes no file, so runs cannot be counted. Runs that repaired something do write: each saves the
//! time of its repairs, on the clock since boot, which cannot be set. The timer starts one run per minute, so the last
//! 15 runs are those of the last 15 minutes. Runs started by udev, another unit or a person are additional; they can
//! only make contention be found a little sooner. A timer slower than every third minute makes too few runs in that
//! time, so contention is not found.
//!
//! *kube-proxy* is never restarted in 5 of 15 runs, because restarts keep a distance. They are contended when [`OFTEN`]
//! in a row came as soon as they were allowed, or nearly: within twice the distance, or three runs. From then on the
//! distance doubles with each further restart, up to [`LONGEST`] times `min_interval` and half an hour. A restart for
//! an uplink not seen before is not counted and waits no longer. After twice the distance without a restart, the next
//! one starts a new row.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// This many repairs of one object are contention …
pub const OFTEN: usize = 5;
/// … if they were made within this many runs.
pub const RUNS: u32 = 15;
/// The largest factor for the distance between restarts of kube-proxy …
pub const LONGEST: u32 = 16;
/// … and the longest distance that it may result in.
const HALF_AN_HOUR: Duration = Duration::from_secs(1800);

/// The timer's interval.
const RUN: Duration = Duration::from_secs(60);
/// The most objects that are saved: some 30 KiB.
const MOST: usize = 256;

/// Recent repairs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RepairHistory {
    /// Each repair made in the last [`RUNS`] runs.
    pub repairs: Vec<Repair>,
    /// The last change of each section since boot.
    pub sections: BTreeMap<String, LastChange>,
}

/// A repair and when it was made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Repair {
    /// Name of the section.
    pub reconciler: String,
    /// The command that identifies it.
    pub command: String,
    /// The last [`OFTEN`] times, in seconds since boot, the oldest first.
    pub times: Vec<u64>,
    /// Whether it was reported as contended.
    #[serde(rename = "told")]
    pub reported: bool,
    /// When a run of the watcher last made it, in milliseconds since boot; 0 if none has.
    #[serde(default, skip_serializing_if = "is_none")]
    pub made: u64,
    /// How often in a row it was undone at once and repaired again by a run of the watcher.
    #[serde(default, skip_serializing_if = "is_none")]
    pub undone: u64,
    /// If it was undone at once: not repaired before this time, in milliseconds since boot; 0 if it is not delayed.
    #[serde(default, skip_serializing_if = "is_none")]
    pub until: u64,
}

fn is_none(number: &u64) -> bool {
    *number == 0
}

/// The longest delay of a repair that is undone at once.
const LONGEST_WAIT: u64 = 60_000;

/// The delay before the next repair of what was undone at once so often in a row: 1, 2, 4 … 60 seconds.
pub fn wait(times: u64) -> Duration {
    let doubled = 1000 << times.saturating_sub(1).min(6);
    Duration::from_millis(if times == 0 { 0 } else { LONGEST_WAIT.min(doubled) })
}

/// The delay of a repair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judgement {
    /// When it ends, on the clock since boot.
    pub until: Duration,
    /// How often in a row the repair was undone at once.
    pub times: u64,
    /// Whether the delay begins now.
    pub begins: bool,
}

/// The last change of a section.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LastChange {
    /// When, by the wall clock, in seconds since 1970.
    pub wall: u64,
    /// The change.
    pub command: String,
}

/// A change made by a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Name of the section.
    pub reconciler: &'static str,
    /// The change.
    pub command: String,
    /// Whether the same command means the same repair. Restarts are tracked separately.
    pub repeats: bool,
}

impl RepairHistory {
    /// Records what one run has changed. Returns what has become contended.
    pub fn note(&mut self, made: &[Made], boot: Duration, wall: Duration) -> Vec<Repair> {
        let now = boot.as_secs();
        self.repairs.retain(|repair| repair.times.iter().any(|time| is_recent(*time, now)));
        self.repairs.truncate(MOST);
        let mut contended = Vec::new();
        // Known repairs first, so that new ones do not displace them.
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

    /// Records one repair. Returns it if it has become contended.
    fn count(&mut self, reconciler: &str, command: &str, now: u64) -> Option<Repair> {
        let same = |repair: &&mut Repair| repair.reconciler == reconciler && repair.command == command;
        let Some(repair) = self.repairs.iter_mut().find(same) else {
            if self.repairs.len() >= MOST
                && let Some(at) = self.that_gives_way(reconciler, now)
            {
                self.repairs.swap_remove(at);
            }
            if self.repairs.len() < MOST {
                let (reconciler, command) = (reconciler.to_owned(), command.to_owned());
                let times = vec![now];
                self.repairs.push(Repair { reconciler, command, times, ..Repair::default() });
            }
            return None;
        };
        repair.times.push(now);
        let surplus = repair.times.len().saturating_sub(OFTEN);
        repair.times.drain(..surplus);
        let newly = repair.is_contended(now) && !repair.reported;
        repair.reported |= newly;
        newly.then(|| repair.clone())
    }

    /// What gives way to a repair of a section where there is no more room. To keep the sections fair, the one with the most entries gives way: first
    /// the repairs made least often, then the oldest. A section's own repairs give way only if they were made once,
    /// before this run, and are not delayed: a repair that recurs is worth more than a new one.
    fn that_gives_way(&self, of: &str, now: u64) -> Option<usize> {
        let held = |section: &String| self.repairs.iter().filter(|repair| repair.reconciler == *section).count();
        let most = self.sections.keys().max_by_key(|section| held(section))?;
        let may_go = |repair: &Repair| {
            let is_held = repair.until != 0;
            let once = repair.times.len() == 1 && !is_held && repair.times.first().is_some_and(|at| *at < now);
            repair.reconciler == *most && (most != of || once)
        };
        let all = self.repairs.iter().enumerate().filter(|(_, repair)| may_go(repair));
        all.map(|(at, repair)| (repair.times.len(), repair.times.first(), at)).min().map(|(_, _, at)| at)
    }

    /// Whether a repair by a run of the watcher is delayed. If the run after a repair finds it undone, it was undone at
    /// once. The first delay is one second, and each further one twice the last. Repairs for which there is no room wait
    /// for those of their section that are known: who undoes so many undoes these as well.
    pub fn judge(&mut self, reconciler: &str, command: &str, boot: Duration, pace: Duration) -> Option<Judgement> {
        let now = millis(boot);
        let is_it = |it: &&mut Repair| it.reconciler == reconciler && it.command == command;
        // A time further ahead than any delay is from another clock.
        let is_ahead = |until: u64| now < until && until <= now.saturating_add(LONGEST_WAIT);
        let has_room = self.repairs.len() < MOST || self.that_gives_way(reconciler, boot.as_secs()).is_some();
        let Some(repair) = self.repairs.iter_mut().find(is_it) else {
            let of_section = self.repairs.iter().filter(|it| !has_room && it.reconciler == reconciler);
            let last = of_section.filter(|it| is_ahead(it.until)).max_by_key(|it| it.until)?;
            let (until, times) = (Duration::from_millis(last.until), last.undone.saturating_add(1));
            return Some(Judgement { until, times, begins: false });
        };
        let begins = repair.until == 0;
        if begins {
            if !repair.is_undone_at_once(now, pace) {
                return None;
            }
            repair.until = repair.made.saturating_add(millis(wait(repair.undone.saturating_add(1))));
        }
        let waits = is_ahead(repair.until);
        let (until, times) = (Duration::from_millis(repair.until), repair.undone.saturating_add(1));
        waits.then_some(Judgement { until, times, begins })
    }

    /// Records that a run of the watcher makes these repairs now.
    pub fn note_watched(&mut self, made: &[Made], boot: Duration, pace: Duration) {
        let now = millis(boot);
        for repair in &mut self.repairs {
            if made.iter().any(|made| made.reconciler == repair.reconciler && made.command == repair.command) {
                let again = repair.until != 0 || repair.is_undone_at_once(now, pace);
                repair.undone = if again { repair.undone.saturating_add(1) } else { 0 };
                (repair.made, repair.until) = (now, 0);
            }
        }
    }

    /// What is contended now.
    pub fn contended(&self, boot: Duration) -> impl Iterator<Item = &Repair> {
        self.repairs.iter().filter(move |repair| repair.is_contended(boot.as_secs()))
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Repair {
    /// Whether one of the last runs made it, and it is undone now.
    fn is_undone_at_once(&self, now: u64, pace: Duration) -> bool {
        let ago = now.checked_sub(self.made).filter(|_| self.made != 0);
        ago.is_some_and(|ago| ago <= millis(pace).saturating_mul(2).saturating_add(1000))
    }

    fn is_contended(&self, now: u64) -> bool {
        self.times.iter().filter(|time| is_recent(**time, now)).count() >= OFTEN
    }

    /// Time since the first of these repairs.
    pub fn since(&self, boot: Duration) -> Duration {
        let first = self.times.iter().min().copied().unwrap_or_default();
        boot.saturating_sub(Duration::from_secs(first))
    }
}

/// Whether the time belongs to the last runs. A time in the future does not.
fn is_recent(time: u64, now: u64) -> bool {
    // Half a run more, so that a run that came a moment late still counts.
    let window = RUN * (RUNS - 1) + RUN / 2;
    now.checked_sub(time).is_some_and(|ago| ago <= window.as_secs())
}

/// The distance to keep from the last restart of kube-proxy.
pub fn distance(min_interval: Duration, row: u32) -> Duration {
    let further = (row as usize + 1).saturating_sub(OFTEN).min(LONGEST.ilog2() as usize);
    min_interval.saturating_mul(1 << further).min(HALF_AN_HOUR.max(min_interval))
}

/// Restarts of kube-proxy in a row, each as soon as it was allowed, or nearly.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// How many.
    pub length: u32,
    /// When the last one began, on the clock since boot.
    pub last: Option<Duration>,
}

impl Row {
    /// The number in the row of a restart that begins now. One for new uplinks does not count.
    pub fn next(self, min_interval: Duration, boot: Duration, grown: bool) -> u32 {
        if self.goes_on(min_interval, boot) { self.length.saturating_add(u32::from(!grown)) } else { 1 }
    }

    /// Whether the restarts are contended now.
    pub fn is_contended(self, min_interval: Duration, boot: Duration) -> bool {
        self.length as usize >= OFTEN && self.goes_on(min_interval, boot)
    }

    /// Whether a restart that begins now belongs to the row.
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

    /// Repairs in these minutes; returns the minutes in which contention was reported.
    fn minutes_reported(history: &mut RepairHistory, minutes: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let at = |minute| Duration::from_secs(minute * 60);
        let mut reported = Vec::new();
        for minute in minutes {
            if !history.note(&[made("sysctl -w a=2")], at(minute), WALL).is_empty() {
                reported.push(minute);
            }
        }
        reported
    }

    #[test]
    fn five_of_the_last_fifteen_runs_are_contention_and_are_reported_once() {
        for (case, minutes, expected) in [
            ("every run", vec![10, 11, 12, 13, 14, 15, 16, 40], vec![14]),
            ("the first and the last of fifteen", vec![10, 13, 17, 20, 24], vec![24]),
            ("the first and the last of sixteen", vec![10, 13, 17, 20, 25], vec![]),
            ("four", vec![10, 11, 12, 13], vec![]),
            ("every fourth run, for ever", (10..200).step_by(4).collect(), vec![]),
            ("every third run, for ever", (10..200).step_by(3).collect(), vec![22]),
            ("again after it had ended", [10..15, 40..45].into_iter().flatten().collect(), vec![14, 44]),
        ] {
            assert_eq!(minutes_reported(&mut RepairHistory::default(), minutes), expected, "{case}");
        }
    }

    #[test]
    fn a_tick_that_comes_late_still_counts() {
        let mut history = RepairHistory::default();
        for second in [600, 700, 800, 900] {
            assert!(history.note(&[made("x")], Duration::from_secs(second), WALL).is_empty());
        }
        assert_eq!(history.note(&[made("x")], Duration::from_secs(600 + 14 * 60 + 2), WALL).len(), 1);
    }

    #[test]
    fn each_object_is_counted_for_itself() {
        let mut history = RepairHistory::default();
        for minute in 0..5 {
            let newly = history.note(&[made("a"), made(&format!("b{minute}"))], Duration::from_secs(60 * minute), WALL);
            let newly: Vec<_> = newly.iter().map(|repair| repair.command.as_str()).collect();
            assert_eq!(newly, if minute == 4 { vec!["a"] } else { vec![] });
        }
        let now = Duration::from_secs(240);
        let contended: Vec<_> = history.contended(now).collect();
        assert_eq!((contended.len(), contended[0].command.as_str(), contended[0].since(now)), (1, "a", now));
        assert_eq!(history.contended(now + RUN * 15).count(), 0, "it ends by itself");
        assert_eq!(history.sections["rp_filter"].command, "b4");
    }

    #[test]
    fn it_is_bounded_and_what_is_over_makes_room() {
        let many = |name: &str| (0..MOST + 9).map(|n| made(&format!("{name}{n}"))).collect::<Vec<_>>();
        let mut history = RepairHistory::default();
        for minute in 0..5 {
            let newly = history.note(&many("a"), Duration::from_secs(60 * minute), WALL);
            assert_eq!(newly.len(), if minute == 4 { MOST } else { 0 });
        }
        assert!(history.repairs.iter().all(|repair| repair.times.len() <= OFTEN));
        history.note(&many("b"), Duration::from_secs(9_000), WALL);
        assert_eq!(history.repairs.len(), MOST);
        assert!(history.repairs.iter().all(|repair| repair.command.starts_with('b')));
        let size = serde_json::to_vec(&history).unwrap().len();
        assert!(size < 64 << 10, "{size}");
    }

    #[test]
    fn repairs_that_were_made_once_make_room_for_those_that_come_again() {
        let mut history = RepairHistory::default();
        let once = (0..MOST).map(|n| made(&format!("once{n}"))).collect::<Vec<_>>();
        history.note(&once, Duration::from_secs(60), WALL);
        let reported = minutes_reported(&mut history, 2..7);
        assert_eq!((reported, history.repairs.len()), (vec![6], MOST));
    }

    #[test]
    fn no_section_keeps_the_repairs_of_another_out() {
        let mut history = RepairHistory::default();
        let many = (0..MOST + 17).map(|n| made(&format!("many{n}"))).collect::<Vec<_>>();
        let other = Made { reconciler: "default_routes", ..made("other") };
        let mut reported = Vec::new();
        for minute in 0..10 {
            let all = many.iter().cloned().chain((minute >= 3).then(|| other.clone())).collect::<Vec<_>>();
            let newly = history.note(&all, Duration::from_secs(60 * minute), WALL);
            reported.extend(newly.iter().filter(|repair| repair.reconciler == "default_routes").map(|_| minute));
        }
        assert_eq!((reported, history.repairs.len()), (vec![7], MOST));
        let of_many = history.repairs.iter().filter(|repair| repair.times.len() == OFTEN && repair.reported);
        assert_eq!(of_many.count(), MOST, "what was evicted for it is one");
    }

    #[test]
    fn what_is_undone_at_once_waits_ever_longer_and_what_lasts_does_not() {
        let (pace, second) = (Duration::from_secs(1), Duration::from_secs(1));
        let (mut history, mut now, mut times) = (RepairHistory::default(), Duration::from_secs(1000), Vec::new());
        let repair = |history: &mut RepairHistory, now: Duration| {
            history.note(&[made("x")], now, WALL);
            history.note_watched(&[made("x")], now, pace);
        };
        for _ in 0..9 {
            repair(&mut history, now);
            times.push(now.as_secs() - 1000);
            // The next run finds it undone, as do those that are started by something else meanwhile.
            now += second;
            let mut begins = 0;
            while let Some(wait) = history.judge("rp_filter", "x", now, pace) {
                begins += u32::from(wait.begins);
                now = wait.until.min(now + second);
            }
            assert!(begins <= 1, "a wait that has begun is not noted again");
        }
        assert_eq!(times, [0, 1, 3, 7, 15, 31, 63, 123, 183]);
        assert_eq!(history.judge("rp_filter", "another", now, pace), None);
        repair(&mut history, now);
        now += second * 10;
        assert_eq!(history.judge("rp_filter", "x", now, pace), None, "this time it has lasted");
        repair(&mut history, now);
        now += second;
        assert_eq!(history.judge("rp_filter", "x", now, pace), None, "it begins anew, with a second");
    }

    #[test]
    fn repairs_without_room_wait_for_those_of_their_section() {
        let pace = Duration::from_secs(1);
        let many = (0..MOST + 50).map(|n| made(&format!("many{n}"))).collect::<Vec<_>>();
        let mut history = RepairHistory::default();
        let mut now = Duration::from_secs(1000);
        for times in 1..=5 {
            history.note(&many, now, WALL);
            history.note_watched(&many, now, pace);
            // All are undone at once. The next run looks a pace later, and once more when it is time.
            let due = now + wait(times);
            for look in [now + pace.mul_f64(0.9), due - Duration::from_millis(1)] {
                let judged = many.iter().map(|it| history.judge(it.reconciler, &it.command, look, pace));
                let judged: Vec<_> = judged.map(|it| it.map(|it| (it.until, it.times))).collect();
                assert_eq!(judged, vec![Some((due, times)); many.len()], "{times} at {look:?}");
            }
            assert_eq!(history.judge("another", "repair", now + pace.mul_f64(0.9), pace), None);
            let mut with_room = history.clone();
            with_room.repairs[7] = Repair { times: vec![1], until: 0, ..with_room.repairs[7].clone() };
            assert_eq!(
                with_room.judge("rp_filter", "new", now + pace.mul_f64(0.9), pace),
                None,
                "an old one gives way"
            );
            now = due;
            let judged = many.iter().filter_map(|it| history.judge(it.reconciler, &it.command, now, pace));
            assert_eq!(judged.count(), 0, "{times}");
        }
    }

    #[test]
    fn times_that_cannot_be_are_no_contention() {
        let times = [u64::MAX, 1 << 40, 7, 8, 9, 10].repeat(1000);
        let repair = Repair { reconciler: "\u{1b}".into(), command: "x".into(), times, ..Repair::default() };
        let mut history = RepairHistory { repairs: vec![repair; 5000], ..RepairHistory::default() };
        let now = Duration::from_secs(100_000);
        assert_eq!(history.contended(now).count(), 0);
        history.note(&[made("x")], now, Duration::MAX);
        assert_eq!(history.repairs.len(), 1);
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
