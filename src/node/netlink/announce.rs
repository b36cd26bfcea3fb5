//! The kernel's announcements of links, addresses, routes, rules, and the settings of IPv4 interfaces such as rp_filter
//! (netconf). Only their arrival counts here: a run looks to find out what there is to do.
//!
//! A run that the watcher started sends a mark into the same queue when it begins to look. The queue keeps its order:
//! what was announced before the mark happened before the look, which sees it; what comes later may have been missed.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::libc::RTM_GETLINK;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname, recvfrom, sendto, socket,
};

/// RTMGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR, IPV6_ROUTE, IPV6_RULE and IPV4_NETCONF. A kernel
/// without one of them never announces it.
const GROUPS: u32 = 0x84_05d1;
/// More messages than the queue can hold, so that a fast sender does not keep the watcher busy.
const MOST: u32 = 10_000;

/// A socket that receives the kernel's announcements in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Announcements {
    socket: OwnedFd,
}

/// The content of the queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Heard {
    /// Announcements. More were lost if the queue was full.
    pub count: u64,
    /// Whether one of them came after the last mark, or may have.
    pub unseen: bool,
    /// Whether there was a mark.
    pub marked: bool,
}

impl Announcements {
    /// Listens from now on.
    ///
    /// # Errors
    ///
    /// No such socket could be opened.
    pub fn listen() -> io::Result<Announcements> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUPS))?;
        Ok(Announcements { socket })
    }

    /// The port to which marks are sent.
    ///
    /// # Errors
    ///
    /// The error of getsockname(2).
    pub fn port(&self) -> io::Result<u32> {
        Ok(getsockname::<NetlinkAddr>(self.socket.as_raw_fd())?.pid())
    }

    /// Empties the queue. Of each message only the sender is read.
    ///
    /// # Errors
    ///
    /// The socket failed for good.
    pub fn drain(&self) -> io::Result<Heard> {
        let mut heard = Heard::default();
        let mut lost = false;
        let mut header = [0; 16];
        for _ in 0..MOST {
            match recvfrom::<NetlinkAddr>(self.socket.as_raw_fd(), &mut header) {
                // The kernel lets only privileged processes send to a port.
                Ok((_, Some(sender))) if sender.pid() != 0 => {
                    (heard.marked, heard.unseen) = (true, false);
                }
                Ok(_) => {
                    heard.count += 1;
                    heard.unseen = true;
                }
                // The queue was full, and messages were lost. The kernel reports that before the content of the queue,
                // so they may have come after a mark that is still in it.
                Err(Errno::ENOBUFS) => lost = true,
                Err(Errno::EAGAIN) => {
                    heard.unseen |= lost;
                    return Ok(heard);
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        heard.unseen = true;
        Ok(heard)
    }
}

impl AsFd for Announcements {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sends a mark. A lost one costs one more run.
pub fn mark(from: &OwnedFd, port: u32) {
    // A request header without a body, for security modules that check the type.
    let mut message = [0; 16];
    let fields = [16u32.to_ne_bytes(), u32::from(RTM_GETLINK).to_ne_bytes()];
    message.iter_mut().zip(fields.iter().flatten()).for_each(|(into, byte)| *into = *byte);
    let _ = sendto(from.as_raw_fd(), &message, &NetlinkAddr::new(port, 0), MsgFlags::MSG_DONTWAIT);
}
