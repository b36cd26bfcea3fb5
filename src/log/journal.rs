//! The journal's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): one datagram per event, with the event's fields
//! and the id of its kind. `journalctl -x` finds the text for that id in units/node-fixer.catalog.
//!
//! Nothing here waits for a journal that does not listen: entries that it does not accept at once go to stderr instead.

use std::fmt::Write as _;
use std::io::{self, IoSlice, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::OnceLock;

use nix::poll::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix};
use tracing::Event;

use super::event::{LogField, Said};
use super::text::Text;
use crate::model::one_line;

/// Where journald listens.
pub const SOCKET: &str = "/run/systemd/journal/socket";
const IDENTIFIER: &str = "node-fixer";
/// How long this process waits for the journal before it ends, in milliseconds.
const PATIENCE: u16 = 500;

/// A kind of event. Its name is the target of the event.
#[derive(Debug)]
pub struct EventKind {
    /// Name, as in `info!(target: "changed", ...)`.
    pub target: &'static str,
    /// MESSAGE_ID: generated once, never changed.
    pub id: &'static str,
    /// RESULT.
    pub result: &'static str,
}

/// All kinds; each has an entry in the catalogue.
pub const KINDS: &[EventKind] = &[
    EventKind { target: "changed", id: "0a6ff1219c8a43fe99ce26b55f02aa96", result: "applied" },
    EventKind { target: "failed", id: "7f0441cfdf6d4697b42a569ea66b871f", result: "failed" },
    EventKind { target: "taken_back", id: "dc1aab07125b47d8a3801b8a86cdfd40", result: "skipped" },
    EventKind { target: "blocked", id: "5c2cf741576245688901cf61f76d34a3", result: "blocked" },
    EventKind { target: "held", id: "ef9f7ce1c5b048e89852a6b58cddc2bd", result: "skipped" },
    EventKind { target: "unseen", id: "3217161c00a948ffb2ba0537921f2e08", result: "unknown" },
    EventKind { target: "notice", id: "af739a763c154a8ba3b5c70fc4435c8a", result: "noticed" },
    EventKind { target: "contention", id: "0b8f50a687994c6c88b5db749cb58854", result: "repeated" },
    EventKind { target: "configuration", id: "3a54b76b0c164e1bb8cdfe7ad9b16384", result: "refused" },
    EventKind { target: "not_permitted", id: "d64c1a8cc1234f60a7081571cff6f447", result: "refused" },
    EventKind { target: "locked", id: "5a84926413ee4e889dd0990502320c83", result: "refused" },
    EventKind { target: "fresh_start", id: "d1f8b07d2c83454b8833acb78dd55909", result: "applied" },
    EventKind { target: "restored", id: "5638bbc8b4e74df09e8c1ca7738a9b23", result: "applied" },
    EventKind { target: "no_run", id: "edc6c0a62176400d8c04efc2fb62df8f", result: "failed" },
];

/// Writes events to the journal; those that it does not accept are written as text.
pub struct Journal {
    path: PathBuf,
    otherwise: Text,
    /// Opened for the first event; `None` if that failed.
    socket: OnceLock<Option<UnixDatagram>>,
    /// The unit of this process.
    unit: OnceLock<Option<String>>,
}

impl Journal {
    /// A log that writes to the journal's socket at `path`.
    pub fn new(path: impl Into<PathBuf>, otherwise: Text) -> Journal {
        Journal { path: path.into(), otherwise, socket: OnceLock::new(), unit: OnceLock::new() }
    }

    /// Writes an event.
    pub fn write(&self, event: &Event<'_>) {
        let mut entry = entry(event);
        // The journal looks up the unit of a process itself, but the process may have ended by then. With this field,
        // which root may set, `journalctl -u` finds the entry anyway.
        if let Some(unit) = self.unit.get_or_init(|| unit(&std::fs::read_to_string("/proc/self/cgroup").ok()?)) {
            push(&mut entry, "OBJECT_SYSTEMD_UNIT", unit);
        }
        if self.send(&entry).is_err() {
            self.otherwise.write(event);
        }
    }

    fn send(&self, entry: &[u8]) -> io::Result<()> {
        let open = || {
            let socket = UnixDatagram::unbound().ok()?;
            socket.set_nonblocking(true).ok()?;
            Some(socket)
        };
        let socket = self.socket.get_or_init(open).as_ref().ok_or(io::ErrorKind::NotConnected)?;
        match socket.send_to(entry, &self.path) {
            Err(error) if Errno::from_io_error(&error) == Some(Errno::MSGSIZE) => self.send_file(socket, entry),
            other => other.map(drop),
        }
    }

    /// Entries that are too large for a datagram are passed as a sealed file in memory.
    fn send_file(&self, socket: &UnixDatagram, entry: &[u8]) -> io::Result<()> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let mut file = std::fs::File::from(rustix::fs::memfd_create(IDENTIFIER, flags)?);
        file.write_all(entry)?;
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        rustix::fs::fcntl_add_seals(&file, seals)?;
        let fds = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&fds));
        let to = SocketAddrUnix::new(&self.path)?;
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        rustix::net::sendmsg_addr(socket, &to, &[IoSlice::new(&[])], &mut control, flags)?;
        Ok(())
    }

    /// Waits briefly until the journal has read what was sent. The journal looks up details of the sender by its
    /// process id, and finds none if the process has ended.
    pub fn finish(&self) {
        let Some(Some(socket)) = self.socket.get() else { return };
        // Line breaks are not entries. Once they have been read, everything sent before has been processed. There are
        // enough of them to fill a socket with the smallest possible buffer.
        if socket.send_to(&[b'\n'; 1024], &self.path).is_err() {
            return;
        }
        // If either fails, there is nothing to wait for.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(socket, 0);
        let _ = poll(&mut [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)], PATIENCE);
    }
}

/// The service of a process, from its cgroups: `0::/system.slice/node-fixer.service`, or `1:name=systemd:...`.
fn unit(cgroups: &str) -> Option<String> {
    let path = |line: &str| {
        let of_systemd = line.split_once(":name=systemd:").map(|(_, path)| path);
        line.strip_prefix("0::").or(of_systemd).map(str::to_owned)
    };
    let service = |path: String| path.rsplit('/').find(|name| name.ends_with(".service")).map(str::to_owned);
    cgroups.lines().filter_map(path).find_map(service)
}

/// An event in the journal's format: lines of `FIELD=value`. MESSAGE is the line that stderr would get, without what
/// the command or the MESSAGE_ID already say.
fn entry(event: &Event<'_>) -> Vec<u8> {
    let Said { mut message, fields } = Said::of(event);
    let metadata = event.metadata();
    let kind = fields.iter().find(|value| value.name == "event").map_or(metadata.target(), |value| &value.plain);
    let kind = KINDS.iter().find(|it| it.target == kind);
    let shown = |value: &&LogField| value.name != "event";
    for value in fields.iter().filter(shown).filter(|value| value.name != "action") {
        // Writing to a string cannot fail.
        let _ = write!(message, " {}={}", value.name, value.in_a_line());
    }
    let mut entry = Vec::new();
    push(&mut entry, "MESSAGE", &message);
    push(&mut entry, "PRIORITY", &super::priority(metadata.level()).to_string());
    push(&mut entry, "SYSLOG_IDENTIFIER", IDENTIFIER);
    if let Some(kind) = kind {
        push(&mut entry, "MESSAGE_ID", kind.id);
        push(&mut entry, "RESULT", kind.result);
    }
    for value in fields.iter().filter(shown) {
        push(&mut entry, &field_name(value.name), &value.plain);
    }
    entry
}

/// One field. Characters that could break a line or move a cursor are escaped, so that the value is safe in
/// journalctl's output and in the text of the catalogue.
fn push(entry: &mut Vec<u8>, name: &str, value: &str) {
    entry.extend(name.as_bytes());
    entry.push(b'=');
    entry.extend(one_line(value).as_bytes());
    entry.push(b'\n');
}

/// The journal's name for a field: upper-case letters, digits and underscores, beginning with a letter.
fn field_name(name: &str) -> String {
    match name {
        "because" | "why" => "REASON".into(),
        name => {
            let upper = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
            let name: String = name.chars().map(upper).collect();
            name.trim_start_matches(|c: char| !c.is_ascii_uppercase()).to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn entries(say: impl FnOnce()) -> Vec<String> {
        crate::log::written(|event| String::from_utf8(entry(event)).unwrap(), say)
    }

    #[test]
    fn an_event_is_its_fields() {
        let said = entries(|| {
            let command = "ip route add default";
            tracing::info!(target: "changed", reconciler = "rules", command = %command, reason = "a \"b\"", action = "create", "changed");
            tracing::warn!(target: "blocked", want = "w", because = "b", "blocked");
            tracing::error!(event = "contention", times = 5, "again");
            tracing::debug!("looking");
        });
        let expected = [
            "MESSAGE=changed reconciler=\"rules\" command=ip route add default reason=\"a \\\"b\\\"\"\nPRIORITY=5\n\
             SYSLOG_IDENTIFIER=node-fixer\nMESSAGE_ID=0a6ff1219c8a43fe99ce26b55f02aa96\nRESULT=applied\n\
             RECONCILER=rules\nCOMMAND=ip route add default\nREASON=a \"b\"\nACTION=create\n",
            "MESSAGE=blocked want=\"w\" because=\"b\"\nPRIORITY=4\nSYSLOG_IDENTIFIER=node-fixer\n\
             MESSAGE_ID=5c2cf741576245688901cf61f76d34a3\nRESULT=blocked\nWANT=w\nREASON=b\n",
            "MESSAGE=again times=5\nPRIORITY=3\nSYSLOG_IDENTIFIER=node-fixer\n\
             MESSAGE_ID=0b8f50a687994c6c88b5db749cb58854\nRESULT=repeated\nTIMES=5\n",
            "MESSAGE=looking\nPRIORITY=7\nSYSLOG_IDENTIFIER=node-fixer\n",
        ];
        assert_eq!(said, expected);
    }

    #[test]
    fn a_value_stays_a_value() {
        let bad = "a\nPRIORITY=0\n\nMESSAGE=b\x1b[31m\r\0\u{202e}\u{9b}c\u{7f}";
        let said = entries(|| tracing::warn!(target: "failed", reason = bad, command = %bad, error = ?bad, "{bad}"));
        let names: Vec<_> = said[0].lines().map(|line| line.split_once('=').expect("a field a line").0).collect();
        let expected =
            ["MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "MESSAGE_ID", "RESULT", "REASON", "COMMAND", "ERROR"];
        assert_eq!(names, expected);
        assert!(
            said[0].contains(r"REASON=a\nPRIORITY=0\n\nMESSAGE=b\u{1b}[31m\r\u{0}\u{202e}\u{9b}c\u{7f}"),
            "{said:?}"
        );
        assert!(!said[0].chars().any(|c| c.is_control() && c != '\n'), "{said:?}");
    }

    #[test]
    fn names_are_names_as_the_journal_takes_them() {
        for (ours, theirs) in [("want", "WANT"), ("why", "REASON"), ("a.b-c2", "A_B_C2"), ("_2trusted", "TRUSTED")] {
            assert_eq!(field_name(ours), theirs);
        }
    }

    #[test]
    fn the_unit_is_that_of_the_cgroup() {
        for (cgroups, expected) in [
            ("0::/system.slice/node-fixer.service\n", Some("node-fixer.service")),
            ("4:cpu:/a.service\n1:name=systemd:/system.slice/b.service/sub\n0::/\n", Some("b.service")),
            ("0::/user.slice/session-1.scope\n", None),
            ("", None),
        ] {
            assert_eq!(unit(cgroups).as_deref(), expected, "{cgroups}");
        }
    }

    /// Ids are hexadecimal and differ; the catalogue has an entry for each and for nothing else, whose text names
    /// only fields that there are.
    #[test]
    fn the_catalogue_knows_every_kind() {
        let catalogue = include_str!("../../units/node-fixer.catalog");
        let entries: Vec<&str> = catalogue.split("\n-- ").skip(1).collect();
        let ids: Vec<&str> = entries.iter().map(|entry| entry.lines().next().unwrap()).collect();
        assert_eq!(ids, KINDS.iter().map(|kind| kind.id).collect::<Vec<_>>());
        assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len());
        let fields = ["RECONCILER", "COMMAND", "REASON", "ERROR", "WANT", "FILE"];
        for entry in entries {
            let (id, text) = entry.split_once('\n').unwrap();
            assert!(id.len() == 32 && id.bytes().all(|byte| b"0123456789abcdef".contains(&byte)), "{id}");
            let (header, body) = text.split_once("\n\n").unwrap();
            let keys: Vec<_> = header.lines().map(|line| line.split_once(": ").unwrap().0).collect();
            assert_eq!(keys, ["Subject", "Defined-By", "Documentation"], "{id}");
            let named = body.split('@').skip(1).step_by(2);
            assert!(body.len() > 100 && named.clone().all(|name| fields.contains(&name)), "{id}: {body}");
        }
    }
}
