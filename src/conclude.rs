//! The end of a run: saves what was repaired, reports new contention once, and writes the metrics. A run that repaired
//! nothing does nothing here, unless metrics are on.
//!
//! Nothing here changes the exit code, because the network matters more than the bookkeeping. A file that cannot be
//! written is a warning. A metrics file that is no longer written gets old, and the alert rules notice that.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use tracing::warn;

use crate::change::Change;
use crate::clock::wall_clock;
use crate::config::{Config, Directory};
use crate::doctor;
use crate::history::contention::{self, Made, OFTEN, RUNS};
use crate::history::memory::{EndedRun, Note, Patience, Recall, digest};
use crate::host::Host;
use crate::outcome::Outcome;
use crate::reconcile::ALL;
use crate::report::metrics::{Counters, FILE, Now};
use crate::store::atomic_file;
use crate::watch::order::Order;

/// Name of the file in which counters survive a reboot.
pub const COUNTERS: &str = "counters.json";

/// Removes the temporary file that an interrupted run may have left. (The one of the metrics is replaced by each run.)
pub fn tidy(durable: &Path) {
    atomic_file::tidy(durable, COUNTERS);
}

/// What the next run of the watcher has to know about the conclusion of this one.
#[derive(Debug, Default)]
pub struct Concluded {
    /// Whether the run was counted.
    pub counted: bool,
    /// The digest of the error with which the metrics could not be written, which is not reported again; 0 for none.
    pub said: u64,
    /// Whether its repairs could not be saved.
    pub forgotten: bool,
}

/// Concludes a run that began at `begun`, started by the watcher if there is an order. `durable` is the directory for
/// what outlives a reboot.
pub fn conclude(
    desired: &Config,
    host: &mut Host,
    outcome: &Outcome,
    durable: &Path,
    begun: Instant,
    order: Option<&Order>,
) -> Concluded {
    let mut concluded = Concluded::default();
    let contended = note(desired, host, outcome).unwrap_or_else(|error| {
        let error = format!("{error:#}");
        concluded.forgotten = true;
        if order.is_none_or(|order| order.forgotten == 0) {
            warn!(error, "cannot save what was repaired; contention may be missed");
        }
        Vec::new()
    });
    let suspects = Suspects::of(&contended, desired, host);
    for Contended { reconciler, repair, reason } in &contended {
        let suspects = suspects.in_a_line(reconciler);
        warn!(event = "contention", reconciler, command = repair, reason, suspects, "contention");
    }
    if let Some(Directory(directory)) = &desired.metrics.textfile {
        match publish(desired, host, outcome, &contended, (directory, durable), begun, order) {
            Ok(counted) => concluded.counted = counted,
            Err(error) => {
                let error = format!("{error:#}");
                concluded.said = digest(&error);
                if order.is_none_or(|order| order.said != concluded.said) {
                    warn!(directory = %directory.display(), error, "cannot write the metrics; the network is not affected");
                }
            }
        }
    } else {
        retire(durable);
    }
    record(host, outcome, order);
    concluded
}

/// Saves the end of a failed run, and of the first successful one after it. Without systemd nothing else knows about it.
fn record(host: &mut Host, outcome: &Outcome, order: Option<&Order>) {
    let Ok(ended) = host.store.ended() else { return };
    let exit = outcome.exit_code();
    let had_failed = ended.is_some_and(|run| run.exit != 0);
    // The watcher may start a run each second.
    let is_news = if exit == 0 { had_failed } else { order.is_none() || !had_failed };
    if is_news {
        // A state directory that cannot be written was reported already.
        let _ = host.store.remember(Note::UnitEnd(EndedRun { time: wall_clock().as_secs(), exit }));
    }
}

/// Removes the metrics and their counters after the metrics were turned off.
fn retire(durable: &Path) {
    let path = durable.join(COUNTERS);
    if path.exists() {
        // The counters name the file until it is gone, so the next run tries again, also to read them.
        if counters(durable).is_ok_and(|counters| remove_metrics(counters.textfile.as_deref())) {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Removes the metrics from a directory that is no longer configured; whether that is settled: they are gone, or this
/// program may not remove them, and has said so.
fn remove_metrics(directory: Option<&Path>) -> bool {
    let Some(file) = directory.map(|directory| directory.join(FILE)) else { return true };
    match std::fs::remove_file(&file) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            let file = file.display();
            warn!(%file, %error, "cannot remove the metrics, which are no longer configured; delete the file");
            matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem)
        }
        _ => true,
    }
}

/// Which programs on this node may undo the repairs, as doctor finds them.
#[derive(Debug, Default)]
pub struct Suspects(doctor::Examination);

impl Suspects {
    /// Looks for them if there is contention.
    pub fn of(contended: &[Contended], desired: &Config, host: &mut Host) -> Suspects {
        if contended.is_empty() {
            return Suspects::default();
        }
        let root = host.root();
        Suspects(doctor::examine(desired, host, &root, doctor::Drops::NotCounted))
    }

    /// The same as one line for the log, which also says if some may be missing.
    fn in_a_line(&self, section: &str) -> String {
        match (self.of_section(section).join("; "), self.0.unseen.first()) {
            (none, None) if none.is_empty() => "none found; see: node-fixer doctor".into(),
            (none, Some(why)) if none.is_empty() => {
                format!("none found, but not everything could be read ({why}); see: node-fixer doctor")
            }
            (some, _) => some,
        }
    }

    /// The findings that may undo the repairs of this section.
    pub fn of_section(&self, section: &str) -> Vec<String> {
        let suspect = |finding: &&doctor::Finding| {
            let place = finding.file.as_ref().map_or(String::new(), |place| format!(" ({place})"));
            format!("{}{place}: {}", finding.cause, finding.evidence)
        };
        doctor::suspects(&self.0.findings, section).iter().map(suspect).collect()
    }
}

/// A repair that is undone again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contended {
    /// Name of the section.
    pub reconciler: String,
    /// The command that repairs it.
    pub repair: String,
    /// How often, and within which time.
    pub reason: String,
}

/// How long the metrics of a watcher's run stay valid for later runs with nothing to do.
const FRESH: Duration = Duration::from_secs(45);

/// The name for restarts of kube-proxy, each of which has a different command.
const RESTART: &str = "restart of kube-proxy";

/// How many repairs of a section one warning lists.
const FEW: usize = 3;

/// Saves what was repaired. Returns new contention, one entry per section.
fn note(desired: &Config, host: &mut Host, outcome: &Outcome) -> anyhow::Result<Vec<Contended>> {
    let items = outcome.changes.iter().filter(|item| item.made);
    let is_restart = |change: &Change| matches!(change, Change::RestartPod(_));
    let made = items.map(|item| Made {
        reconciler: item.reconciler,
        command: item.repair(),
        repeats: !is_restart(&item.change),
    });
    let mut made: Vec<_> = made.collect();
    // Many changes may be one repair.
    let mut seen = BTreeSet::new();
    made.retain(|made| seen.insert((made.reconciler, made.command.clone())));
    if made.is_empty() {
        return Ok(Vec::new());
    }
    let recall = host.store.recall().context("cannot read the state of the last run")?;
    let mut repairs = recall.memory.repairs.clone();
    let newly = repairs.note(&made, recall.boot, recall.wall);
    if recall.patience == Patience::Watched {
        repairs.note_watched(&made, recall.boot, desired.watch.pace.0);
    }
    let mut contended: Vec<_> = newly.iter().map(|repair| Contended::repair(repair, recall.boot)).collect();
    if made.iter().any(|made| !made.repeats) && recall.memory.kube_proxy.row as usize == OFTEN {
        contended.extend(Contended::restarts(&recall, desired));
    }
    host.store.remember(Note::Repairs(repairs)).context("cannot write the state directory")?;
    Ok(Contended::by_section(&contended))
}

impl Contended {
    /// Everything that is contended now.
    pub fn all(recall: &Recall, desired: &Config) -> Vec<Contended> {
        let repairs = recall.memory.repairs.contended(recall.boot);
        repairs
            .map(|repair| Contended::repair(repair, recall.boot))
            .chain(Contended::restarts(recall, desired))
            .collect()
    }

    /// One entry per section: a program that undoes a hundred repairs is reported once.
    fn by_section(all: &[Contended]) -> Vec<Contended> {
        let of_section = |section: &str| {
            let of: Vec<&Contended> = all.iter().filter(|one| one.reconciler == section).collect();
            let first = (*of.first()?).clone();
            if of.len() == 1 {
                return Some(first);
            }
            let mut repairs: Vec<_> = of.iter().take(FEW).map(|one| one.repair.clone()).collect();
            repairs.extend((of.len() > FEW).then(|| format!("and {} more: node-fixer status", of.len() - FEW)));
            let reason = format!("{} repairs, the first of them {}", of.len(), first.reason);
            Some(Contended { repair: repairs.join("; "), reason, ..first })
        };
        ALL.iter().filter_map(|reconciler| of_section(reconciler.name)).collect()
    }

    fn repair(repair: &contention::Repair, boot: Duration) -> Contended {
        let minutes = repair.since(boot).as_secs().div_ceil(60).max(1);
        let reason = format!("repaired at least {OFTEN} times in the last {RUNS} runs, within {minutes} min");
        Contended { reconciler: repair.reconciler.clone(), repair: repair.command.clone(), reason }
    }

    fn restarts(recall: &Recall, desired: &Config) -> Option<Contended> {
        let (knowledge, min_interval) = (&recall.memory.kube_proxy, desired.kube_proxy.min_interval.0);
        let row = knowledge.row().is_contended(min_interval, recall.boot).then_some(knowledge.row)?;
        let distance = contention::distance(min_interval, row);
        let reason = format!(
            "the uplinks changed {row} times in a row; restarts are at least {} apart",
            humantime::format_duration(distance)
        );
        Some(Contended { reconciler: "kube_proxy".into(), repair: RESTART.into(), reason })
    }
}

/// Counts the run, and writes the metrics for Prometheus. The counters are saved first, so that Prometheus never sees
/// them decrease.
fn publish(
    desired: &Config,
    host: &mut Host,
    outcome: &Outcome,
    newly: &[Contended],
    (directory, durable): (&Path, &Path),
    begun: Instant,
    order: Option<&Order>,
) -> anyhow::Result<bool> {
    let recall = host.store.recall().context("cannot read the state of the last run")?;
    let mut counters = counters(durable)?;
    if let Some(order) = order {
        // A run may find nothing to do every second, which does not justify writing a file.
        let ago = recall.wall.checked_sub(counters.last_run).filter(|_| counters.last_run == counters.last_success);
        if ago.is_some_and(|ago| ago < FRESH)
            && outcome.changes.is_empty()
            && outcome.blocked.is_empty()
            && !order.restart
        {
            return Ok(false);
        }
        counters.count_watched(order, outcome, recall.boot);
    }
    counters.count(outcome, recall.wall, begun.elapsed());
    counters.guest = host.store.has_guest();
    newly.iter().for_each(|one| counters.count_contention(&one.reconciler));
    let contended = Contended::all(&recall, desired);
    let now = |name| {
        let contended = contended.iter().filter(|one| one.reconciler == name).count() as u64;
        (name, Now { contended, ..Now::of(name, outcome) })
    };
    let earlier = counters.textfile.replace(directory.into());
    remove_metrics(earlier.as_deref().filter(|earlier| *earlier != directory));
    let text = counters.text(&ALL.iter().map(|reconciler| now(reconciler.name)).collect::<Vec<_>>());
    let counted = serde_json::to_vec(&counters)?;
    std::fs::create_dir_all(durable)
        .and_then(|()| atomic_file::replace(durable, COUNTERS, &counted))
        .with_context(|| format!("cannot write {COUNTERS} in {}", durable.display()))?;
    atomic_file::replace(directory, FILE, text.as_bytes()).with_context(|| {
        format!(
            "cannot write {FILE}; create the directory, and give the service write access to it: ReadWritePaths={}",
            directory.display()
        )
    })?;
    Ok(true)
}

/// The counters of the last run. They start at zero if the file is missing or invalid. A file that cannot be read is
/// not overwritten, because the next run may be able to read it.
fn counters(durable: &Path) -> anyhow::Result<Counters> {
    let path = durable.join(COUNTERS);
    let parsed = match atomic_file::read(&path) {
        Ok(None) => return Ok(Counters::default()),
        Ok(Some(text)) => serde_json::from_str(&text).map_err(|error| error.to_string()),
        Err(error) if error.kind() == ErrorKind::InvalidData => Err(error.to_string()),
        Err(error) => {
            let cure = "the file is left untouched; delete it if node-fixer did not write it";
            return Err(error).with_context(|| format!("cannot read {}; {cure}", path.display()));
        }
    };
    Ok(parsed.unwrap_or_else(|why| {
        warn!(target: "fresh_start", file = %path.display(), why, "the saved counters are invalid; starting at zero");
        Counters::default()
    }))
}

/// When the last run ended that updated the counters, in wall-clock time since 1970, if this process may read them.
pub fn last_counted(durable: &Path) -> Option<Duration> {
    let text = atomic_file::read(&durable.join(COUNTERS)).ok()??;
    let counters: Counters = serde_json::from_str(&text).ok()?;
    Some(counters.last_run).filter(|last| !last.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::RunMode;

    #[test]
    fn fuzz() {
        let outcome = Outcome::new(RunMode::Real);
        crate::fuzz::run("counters", |bytes| {
            let Ok(mut counters) = serde_json::from_slice::<Counters>(bytes) else { return false };
            counters.count(&outcome, Duration::from_secs(1), Duration::ZERO);
            counters.count_contention("rules");
            !counters.text(&[("rules", Now::default())]).is_empty()
        });
    }

    #[test]
    fn only_counters_that_do_not_parse_begin_at_zero() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(COUNTERS);
        for (text, runs) in [(&b"{\"runs\": 7}"[..], 7), (b"{", 0), (b"\xff", 0)] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(counters(directory.path()).unwrap().runs, runs, "{text:?}");
        }
        std::fs::remove_file(&path).unwrap();
        assert_eq!(counters(directory.path()).unwrap(), Counters::default());
        std::os::unix::fs::symlink("/dev/null", &path).unwrap();
        let error = format!("{:#}", counters(directory.path()).unwrap_err());
        assert!(error.contains("the file is left untouched"), "{error}");
    }

    #[test]
    fn no_suspect_is_not_reported_for_what_could_not_be_read() {
        let mut suspects = Suspects::default();
        assert_eq!(suspects.in_a_line("rules"), "none found; see: node-fixer doctor");
        suspects.0.unseen.push("cannot list /run/x".into());
        assert!(suspects.in_a_line("rules").contains("not everything could be read (cannot list /run/x)"));
    }
}
