//! `node-fixer watch`: receives the kernel's announcements, and starts runs. It decides nothing and looks at nothing
//! itself: a separate process of the same binary does all the work.
//!
//! A run starts at the first announcement, and then at most once in `pace`. When it begins to look, it sends a mark
//! into the queue of announcements (see `node/netlink/announce.rs`): what was announced before, its own changes
//! included, needs no further run. If a run ended before its look, or its mark is missing, another one follows.
//!
//! A restart of kube-proxy takes several seconds, so it has separate runs, in parallel to those that make repairs.

mod child;
mod notify;
pub mod order;
mod stand_back;
pub mod state;

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{info, warn};

use crate::cli::Cli;
use crate::clock::{boot_time, wall_clock};
use crate::node::Announcements;
use crate::signals::{Hangs, Wake};
use child::{Child, Ended};
use notify::Notify;
use order::{Order, Report};
use stand_back::StandBack;
use state::{Shown, Shows};

/// Until a run has reported the configured one; and the minimum after a run that ended without a report, because the
/// cause may last, such as a wrong configuration.
const PACE: Duration = Duration::from_secs(1);
/// The time limit of a run that makes repairs; the lock, nft and crictl have their own.
const REPAIR: Duration = Duration::from_secs(90);
/// The time limit of one that restarts kube-proxy: that of the timer's unit.
const RESTART: Duration = Duration::from_secs(180);
/// The minimum time between two of these, whatever runs report.
const RESTART_PACE: Duration = Duration::from_secs(10);
/// Changes closer together than this many milliseconds are a burst …
const QUIET: u8 = 2;
/// … and a run waits for this many parts of it.
const BURST: u8 = 4;
/// How much longer than `every` it may sleep before it counts as hung. It always wakes for the end of a run.
const HUNG: Duration = RESTART;
/// How often a watcher that stands back checks whether it still must.
const LOOK: Duration = Duration::from_secs(60);

/// Watches until a signal stops it.
///
/// # Errors
///
/// It cannot listen.
pub fn watch(cli: &Cli, every: Option<Duration>) -> anyhow::Result<()> {
    let wake = Wake::listen().context("cannot listen for signals")?;
    let mut watcher = Watcher::new(cli, every)?;
    let hangs = Hangs::end_it().context("cannot listen for signals")?;
    // It misses nothing from now on. The first run may take long, and must not hold up the boot.
    watcher.notify.say("READY=1");
    while !wake.is_interrupted() {
        if let Some(every) = every {
            hangs.put_off(every.saturating_add(HUNG));
        }
        let next = watcher.step();
        watcher.wait(&wake, next)?;
    }
    watcher.stop(&wake)
}

struct Watcher {
    program: PathBuf,
    args: Vec<OsString>,
    directory: PathBuf,
    stand_back: StandBack,
    every: Option<Duration>,
    announcements: Announcements,
    port: u32,
    notify: Notify,
    shown: Shown,
    shows: Shows,
    /// Whether the last run could not be started, was killed, or did not end; of the two kinds of runs.
    repairs_fail: bool,
    restarts_fail: bool,
    pace: Duration,
    /// When the last run that makes repairs was started.
    started: Instant,
    /// When the first announcement came that no run has seen, on the clock since boot; 0 if a run is needed for another
    /// reason.
    unseen: Option<Duration>,
    /// No run starts before this time.
    earliest: Instant,
    /// When SIGHUP came last.
    hung_up: Option<Instant>,
    /// When the next run is due without an announcement: because of `--every`, or because of a change that was held
    /// back.
    tick: Option<Instant>,
    repair_at: Option<Instant>,
    repairs: Option<Child>,
    /// When a restart is due.
    restart_at: Option<Instant>,
    earliest_restart: Instant,
    restarts: Option<Child>,
    /// What runs have to count: as sent to the current one, and in total.
    sent: Order,
    uncounted: Order,
}

impl Watcher {
    fn new(cli: &Cli, every: Option<Duration>) -> anyhow::Result<Watcher> {
        let announcements = Announcements::listen().context("cannot listen to the kernel's announcements")?;
        let port = announcements.port().context("cannot listen to the kernel's announcements")?;
        let now = Instant::now();
        Ok(Watcher {
            // By its path, so that an upgrade takes effect.
            program: std::env::current_exe().context("cannot find the path of this program (/proc/self/exe)")?,
            args: cli.for_a_run(),
            directory: cli.state_dir().into(),
            stand_back: StandBack::new(cli.common.stand_back),
            every,
            announcements,
            port,
            notify: Notify::new(),
            shown: Shown { pid: std::process::id(), since: wall_clock().as_secs(), ..Shown::default() },
            shows: Shows::default(),
            repairs_fail: false,
            restarts_fail: false,
            pace: PACE,
            started: now,
            unseen: None,
            earliest: now,
            hung_up: None,
            tick: Some(now),
            repair_at: None,
            repairs: None,
            restart_at: None,
            earliest_restart: now,
            restarts: None,
            sent: Order::default(),
            uncounted: Order::default(),
        })
    }

    /// Does what is due; returns when there is more to do.
    fn step(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let wanted = self.unseen.is_some() || due(self.tick) || due(self.repair_at);
        if self.repairs.is_none() && self.earliest <= now && wanted {
            self.start_repairs(now);
        }
        if self.restarts.is_none() && self.earliest_restart <= now && due(self.restart_at) {
            self.start_restarts(now);
        }
        let mut next: Vec<Instant> = self.notify.alive(now).into_iter().collect();
        next.extend([&mut self.repairs, &mut self.restarts].into_iter().flatten().map(|child| child.hurry(now)));
        if self.repairs.is_none() {
            let wanted =
                if self.unseen.is_some() { Some(now) } else { self.tick.into_iter().chain(self.repair_at).min() };
            next.extend(wanted.map(|at| at.max(self.earliest)));
        }
        if self.restarts.is_none() {
            next.extend(self.restart_at.map(|at| at.max(self.earliest_restart)));
        }
        next.into_iter().min()
    }

    /// Starts a run that looks and makes repairs.
    fn start_repairs(&mut self, now: Instant) {
        (self.started, self.earliest) = (now, now + self.pace);
        self.tick = self.every.map(|every| now + every);
        self.repair_at = None;
        self.hear();
        if self.stand_back.now(&self.directory) {
            (self.unseen, self.restart_at) = (None, None);
            // Others would leave restarts of kube-proxy to it.
            Shows::hide(&self.directory, self.shown.pid);
            // The kernel does not announce that the installed one was stopped.
            self.tick = Some(now + self.every.unwrap_or(LOOK));
            return;
        }
        self.uncounted.runs += 1;
        let event = self.unseen.map_or(0, |at| u64::try_from(at.as_micros()).unwrap_or_default());
        self.sent = Order { restart: false, port: self.port, event, ..self.uncounted };
        self.repairs = self.start(self.sent, REPAIR);
        if self.repairs.is_some() {
            // Later announcements start the measurement anew.
            self.unseen = None;
        } else {
            self.uncounted.runs -= 1;
        }
    }

    /// Starts the run for the restart that is due.
    fn start_restarts(&mut self, now: Instant) {
        self.earliest_restart = now + RESTART_PACE;
        self.restart_at = None;
        self.restarts = self.start(Order { restart: true, ..Order::default() }, RESTART);
    }

    fn start(&mut self, order: Order, time: Duration) -> Option<Child> {
        match Child::start(&self.program, &self.args, &order, time) {
            Ok(child) => {
                self.shown.runs += 1;
                self.shown.last_run = wall_clock().as_secs();
                Some(child)
            }
            Err(error) => {
                let fails = if order.restart { &mut self.restarts_fail } else { &mut self.repairs_fail };
                report_fault(fails, Some(format!("cannot start {}: {error}", self.program.display())));
                self.earliest += PACE.saturating_sub(self.pace);
                self.unseen.get_or_insert_default();
                None
            }
        }
    }

    /// Sleeps until this time or an event, and records the event.
    fn wait(&mut self, wake: &Wake, until: Option<Instant>) -> anyhow::Result<()> {
        let rest = until.map(|until| until.saturating_duration_since(Instant::now()));
        // Rounded up, because a moment early is too early.
        let timeout = rest.map_or(PollTimeout::NONE, |rest| {
            PollTimeout::try_from(rest.as_micros().div_ceil(1000)).unwrap_or(PollTimeout::MAX)
        });
        // Before and during the look of a run, announcements can wait in the queue.
        let listens = self.repairs.is_none() && self.unseen.is_none();
        let announced = PollFd::new(self.announcements.as_fd(), PollFlags::POLLIN);
        let mut fds = [PollFd::new(wake.as_fd(), PollFlags::POLLIN), announced];
        let fds = if listens { &mut fds[..] } else { fds.split_at_mut(1).0 };
        match poll(fds, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno).context("cannot wait"),
        }
        if listens {
            self.hear();
            self.let_burst_end();
        }
        if wake.hung_up() {
            self.hung_up(Instant::now());
        }
        // All of them: those that remain would wake it no more.
        for (pid, ended) in std::iter::from_fn(child::next_ended) {
            self.ended(pid, ended);
        }
        Ok(())
    }

    /// Starts a run because of SIGHUP: at once, even within the pace of the last run. If more of them follow within the
    /// pace, they wait for it.
    fn hung_up(&mut self, now: Instant) {
        self.tick = Some(now);
        if self.hung_up.replace(now).is_none_or(|last| last + self.pace <= now) {
            self.earliest = self.earliest.min(now);
        }
    }

    /// A program that sets up a link or a table makes several changes at once. A run in between would see a part, and
    /// the rest would wait for the pace.
    fn let_burst_end(&mut self) {
        for _ in 0..BURST {
            if self.unseen.is_none() || self.earliest > Instant::now() {
                return;
            }
            let mut fds = [PollFd::new(self.announcements.as_fd(), PollFlags::POLLIN)];
            if !matches!(poll(&mut fds, QUIET), Ok(1)) {
                return;
            }
            self.hear();
        }
    }

    /// Empties the queue of announcements.
    fn hear(&mut self) -> bool {
        let heard = self.announcements.drain().unwrap_or_else(|error| {
            warn!(%error, "announcements were lost");
            crate::node::Heard { unseen: true, ..Default::default() }
        });
        if heard.count > 0 || heard.unseen {
            self.uncounted.events += heard.count;
            self.shown.events += heard.count;
            self.shown.last_event = wall_clock().as_secs();
        }
        if heard.marked {
            self.unseen = None;
        }
        if heard.unseen && self.unseen.is_none_or(|at| at.is_zero()) {
            self.unseen = Some(boot_time().unwrap_or_default());
        }
        heard.marked
    }

    /// Handles the end of a run.
    fn ended(&mut self, pid: nix::unistd::Pid, ended: Ended) {
        if let Some(mut child) = self.repairs.take_if(|child| child.is(pid)) {
            let report = child.report();
            // One that was killed has done nothing or a part. The next one follows at once, unless that is killed as well.
            let is_first_killed = matches!(ended, Ended::Signal(_)) && !self.repairs_fail;
            report_fault(&mut self.repairs_fail, child.fault(ended));
            self.repaired(ended, report);
            if is_first_killed {
                self.earliest = self.earliest.min(Instant::now());
            }
        } else if let Some(mut child) = self.restarts.take_if(|child| child.is(pid)) {
            report_fault(&mut self.restarts_fail, child.fault(ended));
            self.restart_at = child.report().restart.map(|rest| Instant::now() + rest);
            // Changes in the meantime are left to the other runs.
            self.tick = Some(Instant::now());
        }
    }

    fn repaired(&mut self, ended: Ended, report: Report) {
        let now = Instant::now();
        let has_marked = self.hear();
        // A run that was killed, or ended before its look, has seen nothing: what it was started for is still to be done.
        if !has_marked || !matches!(ended, Ended::Exit(0 | 1)) {
            // One that has looked and ended by itself is not to blame for how long it takes from then on.
            let is_over = has_marked && matches!(ended, Ended::Exit(_));
            let event = Duration::from_micros(if is_over { 0 } else { self.sent.event });
            self.unseen = Some(if event.is_zero() { self.unseen.unwrap_or_default() } else { event });
        }
        if let Some(pace) = report.pace {
            self.pace = pace;
            self.restart_at = report.restart.map(|rest| now + rest);
            self.restarts_fail &= self.restart_at.is_some();
            self.repair_at = report.repair.map(|rest| now + rest);
        }
        let by_pace = self.started + report.pace.unwrap_or(PACE.max(self.pace));
        // SIGHUP during the run starts another at once, whatever the new pace is.
        let has_hung_up = self.hung_up.is_some_and(|at| at >= self.started);
        self.earliest = if has_hung_up { self.earliest.min(by_pace) } else { by_pace };
        // One that was killed has reported nothing.
        if report != Report::default() {
            let Report { said, unsaved, forgotten, .. } = report;
            self.uncounted = Order { said, unsaved, forgotten, ..self.uncounted };
        }
        if report.counted {
            self.uncounted.events -= self.sent.events;
            self.uncounted.runs -= self.sent.runs;
        }
        self.shows.show(&self.directory, &self.shown);
    }

    /// Stops the runs, and returns.
    fn stop(mut self, wake: &Wake) -> anyhow::Result<()> {
        self.notify.say("STOPPING=1");
        [&mut self.repairs, &mut self.restarts].into_iter().flatten().for_each(Child::stop);
        (self.unseen, self.tick, self.repair_at, self.restart_at) = (None, None, None, None);
        while self.repairs.is_some() || self.restarts.is_some() {
            let now = Instant::now();
            let children = [&mut self.repairs, &mut self.restarts].into_iter().flatten();
            let next = children.map(|child| child.hurry(now)).min();
            self.wait(wake, next)?;
        }
        // While it stands back, the file belongs to the installed one.
        if !self.stand_back.does() {
            Shows::hide(&self.directory, self.shown.pid);
        }
        Ok(())
    }
}

/// Reports the first run of a kind that fails, and the first one that does not.
fn report_fault(fails: &mut bool, fault: Option<String>) {
    match &fault {
        Some(reason) if !*fails => {
            warn!(target: "no_run", reason, "cannot make a run; trying again, and reporting when it works");
        }
        None if *fails => info!("runs work again"),
        _ => {}
    }
    *fails = fault.is_some();
}
