//! When a run is over: what it mended is remembered, what is contended is told once, and Prometheus gets its file. A
//! run that mended nothing does nothing here, unless metrics are on.
//!
//! Nothing here changes the exit code. The network matters more than its bookkeeping: what cannot be written is a
//! warning, and a file of metrics that is not written any more gets old, which the alert rules see.

use std::io::ErrorKind;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use tracing::warn;

use crate::change::Change;
use crate::contention::{self, Made, OFTEN, RUNS};
use crate::desired::Desired;
use crate::doctor;
use crate::memory::{Note, Recall};
use crate::metrics::{Counters, FILE, Now};
use crate::reconcile::ALL;
use crate::run::Outcome;
use crate::sys::{Node, Root, file};

/// Name of the file in which counters survive a reboot.
pub const COUNTERS: &str = "counters.json";

/// Removes the temporary file that an interrupted run may have left. (That of the metrics is replaced by each run.)
pub fn tidy(durable: &Path) {
    file::tidy(durable, COUNTERS);
}

/// Concludes a run that began then. `durable` is the directory for what outlives a reboot.
pub fn conclude(desired: &Desired, node: &mut Node, outcome: &Outcome, durable: &Path, begun: Instant) {
    let contended = note(desired, node, outcome).unwrap_or_else(|error| {
        let error = format!("{error:#}");
        warn!(error, "what was mended could not be remembered; contention may be missed");
        Vec::new()
    });
    let suspects = Suspects::of(&contended, desired, node);
    for Contended { reconciler, repair, reason } in &contended {
        let suspects = suspects.told(reconciler);
        warn!(event = "contention", reconciler, command = repair, reason, suspects, "contention");
    }
    if let Some(directory) = &desired.metrics.textfile
        && let Err(error) = publish(desired, node, outcome, &contended, (directory, durable), begun)
    {
        let error = format!("{error:#}");
        warn!(directory = %directory.display(), error, "the metrics could not be written; the network is not affected");
    }
}

/// Who on this node may undo what is mended: what doctor finds here.
#[derive(Debug, Default)]
pub struct Suspects(doctor::Examination);

impl Suspects {
    /// Looks for them, if anything is contended.
    pub fn of(contended: &[Contended], desired: &Desired, node: &mut Node) -> Suspects {
        match Root::open(Path::new("/")) {
            Ok(root) if !contended.is_empty() => Suspects(doctor::examine(desired, node, &root, false)),
            _ => Suspects::default(),
        }
    }

    /// The same for a line of the log; and whether somebody may be hidden.
    fn told(&self, section: &str) -> String {
        match (self.of_section(section).join("; "), self.0.unseen.first()) {
            (none, None) if none.is_empty() => "none found; see: node-fixer doctor".into(),
            (none, Some(why)) if none.is_empty() => {
                format!("none found, but not everything could be seen ({why}); see: node-fixer doctor")
            }
            (some, _) => some,
        }
    }

    /// Those that may undo the repairs of this section.
    pub fn of_section(&self, section: &str) -> Vec<String> {
        let suspect = |finding: &&doctor::Finding| {
            let place = finding.file.as_ref().map_or(String::new(), |place| format!(" ({place})"));
            format!("{}{place}: {}", finding.cause, finding.evidence)
        };
        doctor::suspects(&self.0.findings, section).iter().map(suspect).collect()
    }
}

/// Something that is undone again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contended {
    /// Name of the section.
    pub reconciler: String,
    /// The command that mends it.
    pub repair: String,
    /// How often, and in which time.
    pub reason: String,
}

/// What restarts of kube-proxy are called: each has a command of its own.
const RESTART: &str = "restart of kube-proxy";

/// So many of the repairs of a section are named in one warning.
const FEW: usize = 3;

/// Remembers what was mended. Returns what has become contended by it, as one for each section.
fn note(desired: &Desired, node: &mut Node, outcome: &Outcome) -> anyhow::Result<Vec<Contended>> {
    let items = outcome.items.iter().filter(|item| item.made);
    let is_restart = |change: &Change| matches!(change, Change::RestartPod(_));
    let made = items.map(|item| {
        let (reconciler, command) = (item.reconciler, item.change.alone().to_string());
        Made { reconciler, command, repeats: !is_restart(&item.change) }
    });
    let made: Vec<_> = made.collect();
    if made.is_empty() {
        return Ok(Vec::new());
    }
    let recall = node.recall().context("cannot recall the last run")?;
    let mut mends = recall.memory.mends.clone();
    let newly = mends.note(&made, recall.boot, recall.wall);
    let mut contended: Vec<_> = newly.iter().map(|repair| Contended::repair(repair, recall.boot)).collect();
    if made.iter().any(|made| !made.repeats) && recall.memory.kube_proxy.row as usize == OFTEN {
        contended.extend(Contended::restarts(&recall, desired));
    }
    node.remember(Note::Mends(mends)).context("cannot write the state directory")?;
    Ok(Contended::by_section(&contended))
}

impl Contended {
    /// All that is contended now.
    pub fn all(recall: &Recall, desired: &Desired) -> Vec<Contended> {
        let repairs = recall.memory.mends.contended(recall.boot);
        repairs
            .map(|repair| Contended::repair(repair, recall.boot))
            .chain(Contended::restarts(recall, desired))
            .collect()
    }

    /// One finding for each section: who undoes a hundred of its repairs is one.
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
        let reason = format!("mended at least {OFTEN} times in the last {RUNS} runs, within {minutes} min");
        Contended { reconciler: repair.reconciler.clone(), repair: repair.command.clone(), reason }
    }

    fn restarts(recall: &Recall, desired: &Desired) -> Option<Contended> {
        let (knowledge, min_interval) = (&recall.memory.kube_proxy, desired.kube_proxy.min_interval);
        let row = knowledge.row().is_contended(min_interval, recall.boot).then_some(knowledge.row)?;
        let distance = contention::distance(min_interval, row);
        let reason = format!(
            "the uplinks changed {row} times in a row; restarts keep a distance of {}",
            humantime::format_duration(distance)
        );
        Some(Contended { reconciler: "kube_proxy".into(), repair: RESTART.into(), reason })
    }
}

/// Counts the run, and writes it for Prometheus. The counters come first: what Prometheus has seen must not be less
/// the next time.
fn publish(
    desired: &Desired,
    node: &mut Node,
    outcome: &Outcome,
    newly: &[Contended],
    (directory, durable): (&Path, &Path),
    begun: Instant,
) -> anyhow::Result<()> {
    let recall = node.recall().context("cannot recall the last run")?;
    let mut counters = counters(durable)?;
    counters.count(outcome, recall.wall, begun.elapsed());
    newly.iter().for_each(|one| counters.count_contention(&one.reconciler));
    let contended = Contended::all(&recall, desired);
    let now = |name| {
        let contended = contended.iter().filter(|one| one.reconciler == name).count() as u64;
        (name, Now { contended, ..Now::of(name, outcome) })
    };
    let text = counters.text(&ALL.iter().map(|reconciler| now(reconciler.name)).collect::<Vec<_>>());
    let counted = serde_json::to_vec(&counters)?;
    std::fs::create_dir_all(durable)
        .and_then(|()| file::replace(durable, COUNTERS, &counted))
        .with_context(|| format!("cannot write {COUNTERS} in {}", durable.display()))?;
    file::replace(directory, FILE, text.as_bytes()).with_context(|| {
        format!(
            "cannot write {FILE}; make the directory, and let the service into it: ReadWritePaths={}",
            directory.display()
        )
    })
}

/// The counters as the last run left them; from zero if there are none, or none that make sense. What cannot even be
/// read may be read by the next run, and is not overwritten.
fn counters(durable: &Path) -> anyhow::Result<Counters> {
    let path = durable.join(COUNTERS);
    let parsed = match file::read(&path) {
        Ok(None) => return Ok(Counters::default()),
        Ok(Some(text)) => serde_json::from_str(&text).map_err(|error| error.to_string()),
        Err(error) if error.kind() == ErrorKind::InvalidData => Err(error.to_string()),
        Err(error) => {
            let cure = "it is not overwritten; where it is none of node-fixer's, delete it";
            return Err(error).with_context(|| format!("cannot read {}; {cure}", path.display()));
        }
    };
    Ok(parsed.unwrap_or_else(|why| {
        warn!(target: "fresh_start", file = %path.display(), why, "what was counted does not count; it begins at zero");
        Counters::default()
    }))
}

/// When the last run ended that counted itself, by the wall clock since 1970, if this process may know.
pub fn last_counted(durable: &Path) -> Option<Duration> {
    let text = file::read(&durable.join(COUNTERS)).ok()??;
    let counters: Counters = serde_json::from_str(&text).ok()?;
    Some(counters.last_run).filter(|last| !last.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz() {
        let outcome = Outcome {
            dry_run: false,
            items: Vec::new(),
            blocked: Vec::new(),
            notices: Vec::new(),
            not_permitted: false,
        };
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
        assert!(error.contains("it is not overwritten"), "{error}");
    }

    #[test]
    fn nobody_found_is_not_said_of_what_was_not_seen() {
        let mut suspects = Suspects::default();
        assert_eq!(suspects.told("rules"), "none found; see: node-fixer doctor");
        suspects.0.unseen.push("cannot list /run/x".into());
        assert!(suspects.told("rules").contains("not everything could be seen (cannot list /run/x)"));
    }
}
