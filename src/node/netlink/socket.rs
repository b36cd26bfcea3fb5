//! One blocking netlink socket, for rtnetlink or nftables: send a request, read the complete answer.
//!
//! Only a complete answer counts. The kernel reports a failed dump in NLMSG_DONE, marks an interrupted one with
//! NLM_F_DUMP_INTR on any of its messages, and drops what does not fit into the socket's buffer (ENOBUFS). Unless it is
//! checked, each of these looks like an empty answer. Interrupted requests are repeated.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket};
use nix::{setsockopt_impl, sockopt_impl};
use rtnetlink::packet_core::{
    Emitable, NLM_F_ACK, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_MULTIPART, NLM_F_REQUEST,
    NLMSG_DONE, NLMSG_ERROR, NLMSG_NOOP, NLMSG_OVERRUN, NetlinkBuffer,
};

use super::attr::Attributes;
use super::dumps::Dumps;
use crate::model::IfName;

sockopt_impl!(
    /// The kernel checks dump requests, and applies them as filters (Linux 4.20).
    StrictCheck, SetOnly, libc::SOL_NETLINK, libc::NETLINK_GET_STRICT_CHK, bool
);
sockopt_impl!(
    /// Errors include the kernel's error text.
    ExtendedAck, SetOnly, libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, bool
);
sockopt_impl!(
    /// Errors do not repeat the request.
    CappedAck, SetOnly, libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, bool
);

/// The kernel builds dump messages of up to 32 KiB once it has seen a reader with such a buffer. An allocation of that
/// size is mapped, and costs only the pages that are used.
const BUFFER: usize = 256 * 1024;
/// How often an interrupted or overrun dump is repeated before it is an error.
const TRIES: u32 = 5;
/// `NLMSGERR_ATTR_MSG`.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// Why there is no complete answer.
#[derive(Debug, Clone, thiserror::Error, PartialEq)]
pub enum NetlinkError {
    /// The kernel refused; nothing has changed.
    #[error("{}", refusal(.errno, .text))]
    Refused {
        /// Its error number.
        errno: Errno,
        /// Its error text, if any (extended ack).
        text: Option<String>,
    },
    /// The socket failed. Whether the request was carried out is only known after another look.
    #[error("{}", refusal(.0, &None))]
    Failed(Errno),
    /// Something changed while the kernel was answering, every time.
    #[error("the kernel's answer was interrupted by changes {TRIES} times in a row")]
    Interrupted,
    /// A message that cannot be decoded.
    #[error("cannot decode a message of the kernel: {0}")]
    Undecodable(String),
}

fn refusal(errno: &Errno, text: &Option<String>) -> String {
    let system = io::Error::from(*errno);
    text.as_ref().map_or_else(|| system.to_string(), |text| format!("{text} ({system})"))
}

/// The error of a system call. The kernel's answers are [`NetlinkError::Refused`].
impl From<Errno> for NetlinkError {
    fn from(errno: Errno) -> Self {
        NetlinkError::Failed(errno)
    }
}

impl NetlinkError {
    /// The interface does not exist.
    pub fn no_device() -> NetlinkError {
        NetlinkError::Refused { errno: Errno::ENODEV, text: None }
    }
}

/// Who answers.
#[derive(Debug)]
enum Answers {
    /// The kernel.
    Kernel(SockProtocol, OwnedFd),
    /// A captured node.
    Captured(Arc<Dumps>),
}

/// A netlink socket, or what was captured of the answers of one.
#[derive(Debug)]
pub struct Netlink {
    source: Answers,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket for rtnetlink in the network namespace of this thread.
    pub fn open() -> Result<Netlink, NetlinkError> {
        Netlink::of(SockProtocol::NetlinkRoute)
    }

    /// Opens a socket for nftables.
    pub fn open_netfilter() -> Result<Netlink, NetlinkError> {
        Netlink::of(SockProtocol::NetlinkNetFilter)
    }

    fn of(protocol: SockProtocol) -> Result<Netlink, NetlinkError> {
        let source = Answers::Kernel(protocol, open_socket(protocol)?);
        Ok(Netlink { source, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Answers as the kernel of a captured node did. It changes nothing.
    pub fn captured(dumps: Arc<Dumps>) -> Netlink {
        Netlink { source: Answers::Captured(dumps), sequence: 0, buffer: Vec::new() }
    }

    /// The names of all links, where they were captured.
    pub fn captured_names(&self) -> Option<Vec<IfName>> {
        match &self.source {
            Answers::Kernel(..) => None,
            Answers::Captured(dumps) => Some(dumps.names()),
        }
    }

    fn socket(&self) -> Result<BorrowedFd<'_>, NetlinkError> {
        match &self.source {
            Answers::Kernel(_, socket) => Ok(socket.as_fd()),
            Answers::Captured(_) => Err(Dumps::not_captured()),
        }
    }

    fn send(&self, request: &[u8]) -> Result<(), NetlinkError> {
        let socket = self.socket()?;
        retry(|| send(socket.as_raw_fd(), request, MsgFlags::empty()))?;
        Ok(())
    }

    /// The name of the interface with this index; `None` if it does not exist. (Any socket supports SIOCGIFNAME.)
    pub fn name_of(&self, index: u32) -> Result<Option<IfName>, NetlinkError> {
        if let Answers::Captured(dumps) = &self.source {
            return Ok(dumps.name_of(index));
        }
        match rustix::net::netdevice::index_to_name_inlined(self.socket()?, index) {
            Ok(name) => IfName::new(name.as_bytes()).map(Some).ok_or_else(|| undecodable("invalid interface name")),
            Err(rustix::io::Errno::NODEV) => Ok(None),
            Err(error) => Err(Errno::from_raw(error.raw_os_error()).into()),
        }
    }

    /// Notifies the watcher that listens at this port: what was announced until now happened before the looks to come.
    pub fn mark(&self, port: u32) {
        if let Answers::Kernel(_, socket) = &self.source {
            super::announce::mark(socket, port);
        }
    }

    /// Sends a change; returns when the kernel has made or refused it.
    pub fn change(&mut self, kind: u16, flags: u16, body: &dyn Emitable) -> Result<(), NetlinkError> {
        let request = self.request(kind, flags | NLM_F_ACK, body);
        self.exchange(&request, &mut |_| Ok(()))
    }

    /// Sends several changes, each of which is made even if one before it is refused. They are one message to the
    /// kernel, which completes it before this process can be killed. Returns the result of each.
    pub fn change_together<const N: usize>(
        &mut self,
        changes: [(u16, u16, &dyn Emitable); N],
    ) -> [Result<(), NetlinkError>; N] {
        let mut request = Vec::new();
        let sequences = changes.map(|(kind, flags, body)| {
            request.extend(self.request(kind, flags | NLM_F_ACK, body));
            self.sequence
        });
        if let Err(error) = self.send(&request) {
            return sequences.map(|_| Err(error.clone()));
        }
        let mut wait = MsgFlags::empty();
        sequences.map(|sequence| {
            let answer = self.answer(sequence, wait, &mut |_| Ok(()));
            // The kernel answers before send(2) returns. If it had no memory for one answer, it may have had none for
            // the next, so later answers are not waited for.
            if let Err(NetlinkError::Failed(_)) = answer {
                wait = MsgFlags::MSG_DONTWAIT;
            }
            answer
        })
    }

    /// Requests one object, and decodes it; `decode` may return `None`.
    pub fn get<T>(
        &mut self,
        kind: u16,
        body: &dyn Emitable,
        decode: impl Fn(&[u8]) -> Result<Option<T>, NetlinkError>,
    ) -> Result<Option<T>, NetlinkError> {
        let mut found = None;
        self.get_each(kind, body, &mut |message| {
            found = decode(message)?;
            Ok(())
        })?;
        Ok(found)
    }

    fn get_each(&mut self, kind: u16, body: &dyn Emitable, each: Each<'_>) -> Result<(), NetlinkError> {
        if let Answers::Captured(dumps) = &self.source {
            return dumps.get(kind, body, each);
        }
        // No acknowledgement is requested: the one message is the whole answer.
        let request = self.request(kind, 0, body);
        self.exchange(&request, each)
    }

    /// Requests all objects of a kind, and decodes each; `decode` may skip it.
    pub fn dump<T>(
        &mut self,
        kind: u16,
        body: &dyn Emitable,
        decode: impl Fn(&[u8]) -> Result<Option<T>, NetlinkError>,
    ) -> Result<Vec<T>, NetlinkError> {
        let mut found = Vec::new();
        self.dump_each(kind, body, &mut |message| {
            match message {
                None => found.clear(),
                Some(message) => found.extend(decode(message)?),
            }
            Ok(())
        })?;
        Ok(found)
    }

    /// Hands out all messages of a dump; `None` before each that begins anew.
    fn dump_each(&mut self, kind: u16, body: &dyn Emitable, each: EachOfAll<'_>) -> Result<(), NetlinkError> {
        if let Answers::Captured(dumps) = &self.source {
            return dumps.dump(kind, body, &mut |message| each(Some(message)));
        }
        for _ in 0..TRIES {
            each(None)?;
            let request = self.request(kind, NLM_F_DUMP, body);
            match self.exchange(&request, &mut |message| each(Some(message))) {
                Err(
                    NetlinkError::Interrupted
                    | NetlinkError::Failed(Errno::ENOBUFS)
                    | NetlinkError::Refused { errno: Errno::ENOBUFS | Errno::EBUSY, .. },
                ) => {
                    // The rest of the old answer may still arrive, so a new socket is used.
                    if let Answers::Kernel(protocol, socket) = &mut self.source {
                        *socket = open_socket(*protocol)?;
                    }
                }
                other => return other,
            }
        }
        Err(NetlinkError::Interrupted)
    }

    fn request(&mut self, kind: u16, flags: u16, body: &dyn Emitable) -> Vec<u8> {
        self.sequence += 1;
        // Strict checking requires padding even for a body of one byte (RTM_GETNETCONF has one).
        let mut message = vec![0; HEADER + body.buffer_len().next_multiple_of(4)];
        let length = message.len() as u32;
        let mut header = NetlinkBuffer::new(&mut message);
        header.set_length(length);
        header.set_message_type(kind);
        header.set_flags(flags | NLM_F_REQUEST);
        header.set_sequence_number(self.sequence);
        body.emit(header.payload_mut());
        message
    }

    /// Sends a request and reads the complete answer.
    fn exchange(&mut self, request: &[u8], each: Each<'_>) -> Result<(), NetlinkError> {
        self.send(request)?;
        self.answer(self.sequence, MsgFlags::empty(), each)
    }

    fn answer(&mut self, sequence: u32, wait: MsgFlags, each: Each<'_>) -> Result<(), NetlinkError> {
        let mut answer = Reply { sequence, interrupted: false };
        loop {
            let socket = self.socket()?.as_raw_fd();
            let length = retry(|| recv(socket, &mut self.buffer, MsgFlags::MSG_TRUNC | wait))?;
            let Some(datagram) = self.buffer.get(..length) else {
                // A truncated message is lost: enlarge the buffer, and repeat the request.
                self.buffer.resize(length.next_multiple_of(BUFFER), 0);
                return Err(NetlinkError::Interrupted);
            };
            if answer.take(datagram, each)? {
                return if answer.interrupted { Err(NetlinkError::Interrupted) } else { Ok(()) };
            }
        }
    }
}

/// Length of a message's header.
const HEADER: usize = 16;

type EachOfAll<'a> = &'a mut dyn FnMut(Option<&[u8]>) -> Result<(), NetlinkError>;

pub(super) type Each<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), NetlinkError>;

fn open_socket(protocol: SockProtocol) -> Result<OwnedFd, NetlinkError> {
    let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
    // Old kernels lack these options. Their dumps are not filtered, so every reader filters as well.
    let old = |result| if result == Err(Errno::ENOPROTOOPT) { Ok(()) } else { result };
    old(setsockopt(&socket, StrictCheck, &true))?;
    old(setsockopt(&socket, ExtendedAck, &true))?;
    old(setsockopt(&socket, CappedAck, &true))?;
    Ok(socket)
}

fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// The answer to one request, which may consist of several datagrams.
struct Reply {
    sequence: u32,
    interrupted: bool,
}

impl Reply {
    /// Processes one datagram; returns true after the last one.
    fn take(&mut self, datagram: &[u8], each: Each<'_>) -> Result<bool, NetlinkError> {
        let mut rest = datagram;
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest).map_err(undecodable)?;
            let next = (message.length() as usize).next_multiple_of(4);
            rest = rest.get(next..).unwrap_or_default();
            if message.sequence_number() != self.sequence {
                continue; // of an abandoned request
            }
            self.interrupted |= message.flags() & NLM_F_DUMP_INTR != 0;
            let payload = message.payload();
            match message.message_type() {
                NLMSG_DONE => return outcome(payload, message.flags(), 4).map(|()| true),
                NLMSG_ERROR => return outcome(payload, message.flags(), 20).map(|()| true),
                NLMSG_OVERRUN => return Err(Errno::ENOBUFS.into()),
                NLMSG_NOOP => {}
                _ => {
                    each(payload)?;
                    if message.flags() & NLM_F_MULTIPART == 0 {
                        return Ok(true);
                    }
                }
            }
        }
        Ok(false)
    }
}

/// The error number at the beginning of NLMSG_DONE and NLMSG_ERROR, and the kernel's error text after it.
fn outcome(payload: &[u8], flags: u16, attributes: usize) -> Result<(), NetlinkError> {
    // The oldest kinds of dumps end in an NLMSG_DONE without a number.
    let number = payload.first_chunk().map_or(0, |bytes| i32::from_ne_bytes(*bytes));
    if number >= 0 {
        return Ok(());
    }
    // An error repeats the header of the request, and the rest unless it is capped.
    let repeated = match payload.get(4..8).and_then(<[u8]>::first_chunk) {
        Some(length) if attributes == 20 && flags & NLM_F_CAPPED == 0 => {
            4 + (u32::from_ne_bytes(*length) as usize).next_multiple_of(4)
        }
        _ => attributes,
    };
    let attributes = payload.get(repeated..).filter(|_| flags & NLM_F_ACK_TLVS != 0).unwrap_or_default();
    let text = Attributes::nested(attributes).flatten().find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG);
    let text = text.map(|(_, text)| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned());
    Err(NetlinkError::Refused { errno: Errno::from_raw(number.saturating_neg()), text })
}

/// Any error that says why a message cannot be decoded.
pub fn undecodable(why: impl std::fmt::Display) -> NetlinkError {
    NetlinkError::Undecodable(why.to_string())
}

#[cfg(test)]
mod tests {
    use rtnetlink::packet_core::NLM_F_CREATE;

    use super::super::attr::{AF_INET, Body, attributes};
    use super::super::{route, rule};
    use super::*;
    use crate::model::{EVERYTHING, Family, Rule};
    use crate::observed::RouteSet;

    fn message(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER + payload.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn done(errno: i32, flags: u16, text: &[u8]) -> Vec<u8> {
        let mut payload = errno.to_ne_bytes().to_vec();
        if !text.is_empty() {
            payload.extend((4 + text.len() as u16).to_ne_bytes());
            payload.extend(NLMSGERR_ATTR_MSG.to_ne_bytes());
            payload.extend(text);
        }
        message(NLMSG_DONE, flags, 7, &payload)
    }

    /// What becomes of these datagrams as the answer to request 7.
    fn answer(datagrams: &[Vec<u8>]) -> Result<(bool, bool, usize), NetlinkError> {
        let (mut answer, mut seen, mut ended) = (Reply { sequence: 7, interrupted: false }, 0, false);
        for datagram in datagrams {
            ended = answer.take(datagram, &mut |_| {
                seen += 1;
                Ok(())
            })?;
        }
        Ok((ended, answer.interrupted, seen))
    }

    #[test]
    fn fuzz() {
        crate::fuzz::run("netlink", |bytes| {
            let mut answer = Reply { sequence: 1, interrupted: false };
            let done = answer.take(bytes, &mut |payload| attributes(payload, 12)?.try_for_each(|one| one.map(drop)));
            done.map_err(|error| error.to_string()).is_ok()
        });
    }

    #[test]
    fn answers_are_whole_or_an_error() {
        let data = |flags| message(24, flags, 7, &[0; 12]);
        assert_eq!(answer(&[data(2), [data(2), done(0, 2, b"")].concat()]), Ok((true, false, 2)));
        assert_eq!(answer(&[data(2)]), Ok((false, false, 1)), "an answer without its end is not over");
        let interrupted = [data(2 | NLM_F_DUMP_INTR), done(0, 2, b"")];
        assert_eq!(answer(&interrupted), Ok((true, true, 1)), "the mark is on a message, not on the end");
        let failed = Err(NetlinkError::Refused { errno: Errno::ENOENT, text: None });
        assert_eq!(answer(&[done(-2, 2, b"")]), failed, "an error in NLMSG_DONE is not an empty table");
        let words = Err(NetlinkError::Refused { errno: Errno::EINVAL, text: Some("Invalid header".into()) });
        assert_eq!(answer(&[done(-22, NLM_F_ACK_TLVS, b"Invalid header\0")]), words);
        let old = message(24, 2, 6, &[0; 12]);
        assert_eq!(answer(&[[old, data(2), done(0, 2, b"")].concat()]), Ok((true, false, 1)), "not ours: skipped");
        let overrun = Err(NetlinkError::Failed(Errno::ENOBUFS));
        assert_eq!(answer(&[message(NLMSG_OVERRUN, 0, 7, &[])]), overrun);
    }

    #[test]
    fn cut_messages_are_undecodable() {
        let whole = message(24, 2, 7, &[0; 12]);
        for length in 1..whole.len() {
            let cut = answer(&[whole[..length].to_vec()]);
            assert!(matches!(cut, Err(NetlinkError::Undecodable(_))), "{length} bytes: {cut:?}");
        }
    }

    #[test]
    fn refusals_carry_the_kernels_words() {
        let mut payload = (-22_i32).to_ne_bytes().to_vec();
        payload.extend(message(24, 0, 7, &[0; 8]));
        payload.extend([8, 0, 1, 0]);
        payload.extend(b"Nix\0");
        let refused = answer(&[message(NLMSG_ERROR, NLM_F_ACK_TLVS, 7, &payload)]);
        assert_eq!(refused.unwrap_err().to_string(), "Nix (Invalid argument (os error 22))");
    }

    /// A socket in a network namespace of this test's own, with that many rules.
    fn in_netns<T: Send + 'static>(rules: u32, test: impl FnOnce(Netlink) -> T + Send + 'static) -> T {
        let inside = move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
                .expect("this test makes a network namespace: run it by cargo test, or as root");
            let mut netlink = Netlink::open().unwrap();
            for priority in 1..=rules {
                netlink.change(libc::RTM_NEWRULE, NLM_F_CREATE, &rule::request(&a_rule(priority).into())).unwrap();
            }
            test(netlink)
        };
        std::thread::spawn(inside).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    fn a_rule(priority: u32) -> Rule {
        Rule { family: Family::V4, priority, selector: EVERYTHING, table: 7, protocol: 0 }
    }

    #[test]
    fn what_was_lost_behind_a_mark_is_unseen() {
        in_netns(0, |mut netlink| {
            use super::super::announce::Announcements;
            let announcements = Announcements::listen().unwrap();
            let port = announcements.port().unwrap();
            let mut change = |priority| {
                netlink.change(libc::RTM_NEWRULE, NLM_F_CREATE, &rule::request(&a_rule(priority).into())).unwrap();
            };
            change(1);
            // Until the queue is full: what is announced next is lost.
            let marks = Netlink::open().unwrap();
            (0..20_000).for_each(|_| marks.mark(port));
            change(2);
            let heard = announcements.drain().unwrap();
            assert!(heard.marked && heard.unseen, "{heard:?}");
        });
    }

    fn priorities(netlink: &mut Netlink) -> Result<Vec<u32>, NetlinkError> {
        let rules = netlink.dump(libc::RTM_GETRULE, &rule::all(), rule::seen)?;
        let ours = rules.iter().filter_map(|rule| rule.lookup()).filter(|rule| rule.table == 7);
        Ok(ours.map(|rule| rule.priority).collect())
    }

    #[test]
    fn a_table_that_does_not_exist_is_distinguished_from_an_empty_one() {
        let answer = in_netns(0, |mut netlink| {
            let set = RouteSet::Table(Family::V4, 4711);
            netlink.dump(libc::RTM_GETROUTE, &route::of(&set), |route| route::seen_in(route, &set))
        });
        assert!(matches!(answer, Err(NetlinkError::Refused { errno: Errno::ENOENT, .. })), "{answer:?}");
    }

    #[test]
    fn a_dump_that_the_kernel_finds_invalid_is_an_error() {
        let answer = in_netns(0, |mut netlink| {
            let request = Body::new(vec![AF_INET, 0, 0, 4], 12);
            netlink.dump(libc::RTM_GETROUTE, &request, |_| Ok(Some(())))
        });
        let Err(NetlinkError::Refused { errno: Errno::EINVAL, text: Some(text) }) = answer else {
            panic!("an invalid filter passed for an empty table: {answer:?}");
        };
        assert!(text.contains("Invalid values in header"), "{text}");
    }

    #[test]
    fn a_datagram_that_does_not_fit_is_asked_for_again() {
        let found = in_netns(300, |mut netlink| {
            netlink.buffer.truncate(100);
            priorities(&mut netlink)
        });
        assert_eq!(found, Ok((1..=300).collect()));
    }

    #[test]
    fn an_interrupted_dump_is_noticed_and_never_half() {
        const STABLE: u32 = 400;
        in_netns(STABLE, |mut netlink| {
            let stop = std::sync::atomic::AtomicBool::new(false);
            std::thread::scope(|scope| {
                // Another program that adds and deletes a rule, as fast as it can.
                scope.spawn(|| {
                    let mut other = Netlink::open().unwrap();
                    let rule = rule::request(&a_rule(STABLE + 1).into());
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        other.change(libc::RTM_NEWRULE, NLM_F_CREATE, &rule).unwrap();
                        other.change(libc::RTM_DELRULE, 0, &rule).unwrap();
                    }
                });
                let mut interrupted = 0;
                let mut whole = 0;
                for _ in 0..100_000 {
                    // Small reads make a dump take many of them, so that changes fall between.
                    netlink.buffer.truncate(4096);
                    let request = netlink.request(libc::RTM_GETRULE, NLM_F_DUMP, &rule::all());
                    match netlink.exchange(&request, &mut |_| Ok(())) {
                        Ok(()) => {}
                        Err(NetlinkError::Interrupted) => interrupted += 1,
                        Err(other) => panic!("{other}"),
                    }
                    match priorities(&mut netlink) {
                        Ok(mut found) => {
                            found.retain(|priority| *priority <= STABLE);
                            assert_eq!(found, (1..=STABLE).collect::<Vec<_>>(), "a dump lacks or doubles rules");
                            whole += 1;
                        }
                        Err(NetlinkError::Interrupted) => {}
                        Err(other) => panic!("{other}"),
                    }
                    if interrupted >= 20 && whole >= 20 {
                        break;
                    }
                }
                stop.store(true, std::sync::atomic::Ordering::Relaxed);
                assert!(interrupted >= 20, "the kernel interrupted only {interrupted} dumps");
                assert!(whole >= 20, "only {whole} dumps became whole");
            });
        });
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(0_u8.., 0..200)) {
            let _ = answer(&[bytes]);
        }
    }
}
