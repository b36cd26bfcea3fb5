//! What systemd knows about the service and its timer, from systemctl, which gets a short time limit.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::program;
use crate::signals::Stop;
use crate::sorted;
use crate::tape::{Taped, duration, nanos};

/// Time limit of systemctl.
const MOMENT: Duration = Duration::from_secs(2);
/// This exists if systemd is the machine's init (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";
const SERVICE: &str = "node-fixer.service";
const TIMER: &str = "node-fixer.timer";

/// What systemd knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Units {
    /// When the last run ended, in wall-clock time since 1970, and how.
    pub ended: Option<(Duration, UnitEnd)>,
    /// When the next run is due, if the timer is active.
    pub next: Option<Duration>,
    /// Whether the timer is active.
    pub active: bool,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitEnd {
    /// With this exit code.
    Exit(i32),
    /// By this signal.
    Signal(i32),
}

/// When the service ended and how, when the timer is due, and whether it is active; empty if that is not known.
impl Taped for Option<Units> {
    fn to_tape(&self) -> Vec<String> {
        let Some(units) = self else { return Vec::new() };
        let (ended, how) = units.ended.map_or_else(Default::default, |(time, ended)| match ended {
            UnitEnd::Exit(code) => (nanos(time), format!("exit {code}")),
            UnitEnd::Signal(signal) => (nanos(time), format!("signal {signal}")),
        });
        vec![ended, how, units.next.map(nanos).unwrap_or_default(), if units.active { "active" } else { "" }.into()]
    }

    fn of_tape(answer: &[String]) -> Option<Option<Units>> {
        let [ended, how, next, active] = answer else { return answer.is_empty().then_some(None) };
        let how = match how.split_once(' ') {
            Some(("exit", code)) => code.parse().ok().map(UnitEnd::Exit),
            Some(("signal", signal)) => signal.parse().ok().map(UnitEnd::Signal),
            _ => None,
        };
        Some(Some(Units { ended: duration(ended).zip(how), next: duration(next), active: active == "active" }))
    }
}

/// Asks systemd; `None` if it is not running.
///
/// # Errors
///
/// It does not answer.
pub fn ask() -> Result<Option<Units>, String> {
    if !Path::new(BOOTED).exists() {
        return Ok(None);
    }
    let properties =
        "--property=Id,ActiveState,ExecMainExitTimestamp,ExecMainCode,ExecMainStatus,NextElapseUSecRealtime";
    // systemctl prints times in the local zone and language, so both are set.
    let mut command = Command::new("systemctl");
    command.args(["show", properties, SERVICE, TIMER]).env("TZ", "UTC").env("LC_ALL", "C");
    let shown = format!("systemctl show {SERVICE} {TIMER}");
    let output =
        program::run(command, Stdio::null(), &shown, MOMENT, &Stop::default()).map_err(|error| error.to_string())?;
    Ok(Some(parse(&String::from_utf8_lossy(&output))))
}

/// Parses `KEY=VALUE` lines; an empty line separates two units.
fn parse(text: &str) -> Units {
    let mut units = Units::default();
    for unit in text.split("\n\n") {
        let values = sorted::map(unit.lines().filter_map(|line| line.split_once('=')));
        let value = |key| values.get(key).copied().unwrap_or_default();
        let is_active = value("ActiveState") == "active";
        match value("Id") {
            SERVICE => {
                // The code is the one of waitid(2): exited, killed, or killed with a core dump.
                let ended = value("ExecMainStatus").parse().ok().and_then(|status| match value("ExecMainCode") {
                    "1" => Some(UnitEnd::Exit(status)),
                    "2" | "3" => Some(UnitEnd::Signal(status)),
                    _ => None,
                });
                units.ended = time(value("ExecMainExitTimestamp")).zip(ended);
            }
            TIMER => {
                units.active = is_active;
                units.next = time(value("NextElapseUSecRealtime")).filter(|_| is_active);
            }
            _ => {}
        }
    }
    units
}

/// `Sat 2026-11-21 09:42:24 UTC`, as a time since 1970.
fn time(text: &str) -> Option<Duration> {
    let mut words = text.split(' ').skip(1);
    let (date, time, zone) = (words.next()?, words.next()?, words.next()?);
    let time = humantime::parse_rfc3339_weak(&format!("{date} {time}")).ok().filter(|_| zone == "UTC")?;
    time.duration_since(std::time::UNIX_EPOCH).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fuzz() {
        crate::fuzz::run("systemctl", |bytes| parse(&String::from_utf8_lossy(bytes)) != Units::default());
    }

    #[test]
    fn what_systemctl_shows_is_read() {
        let text = "ExecMainExitTimestamp=Fri 2027-01-15 08:00:00 UTC\nExecMainCode=1\nExecMainStatus=1\nId=node-fixer.service\n\
                    ActiveState=failed\n\nNextElapseUSecRealtime=Fri 2027-01-15 08:00:41 UTC\nId=node-fixer.timer\n\
                    ActiveState=active\n";
        let at = Duration::from_secs(1_800_000_000);
        let next = Some(at + Duration::from_secs(41));
        assert_eq!(parse(text), Units { ended: Some((at, UnitEnd::Exit(1))), next, active: true });
        let killed = text.replace("Code=1\nExecMainStatus=1", "Code=2\nExecMainStatus=15");
        assert_eq!(parse(&killed).ended, Some((at, UnitEnd::Signal(15))));
        let never = text.replace("Fri 2027-01-15 08:00:00 UTC", "").replace("active", "inactive");
        assert_eq!(parse(&never), Units::default());
        assert_eq!(time("n/a"), None);
        assert_eq!(time("Fri 2027-01-15 08:00:00 CET"), None);
        assert_eq!(parse("\n\n\nId=\n=\nId"), Units::default());
    }
}
