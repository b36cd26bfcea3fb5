//! What ping(8) and a router's daemon would send: the tests need neither.

use std::io::{Error, ErrorKind, Result};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt::BindToDevice};
use rustix::net::{
    AddressFamily, SocketFlags, SocketType, bind, ipproto, socket_with, sockopt::set_ipv6_multicast_hops,
};

/// Sends one echo request, and waits for the reply to it.
pub fn echo(from: IpAddr, to: IpAddr, patience: Duration) -> Result<()> {
    static LAST: AtomicU16 = AtomicU16::new(0);
    let id = LAST.fetch_add(1, Ordering::Relaxed).to_be_bytes();
    let (family, protocol, request, reply) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8, 0),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128, 129),
    };
    let socket = socket_with(family, SocketType::RAW, SocketFlags::CLOEXEC, Some(protocol))?;
    bind(&socket, &SocketAddr::new(from, 0))?;
    // Of std, for its methods: what it sends and hears is ICMP.
    let socket = UdpSocket::from(socket);
    socket.connect((to, 0))?;
    // Type, code, checksum, identifier, number. Of IPv6 the kernel makes the checksum.
    let mut message = [request, 0, 0, 0, id[0], id[1], 0, 1];
    let sum: u32 = message.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !((sum >> 16) as u16).wrapping_add(sum as u16);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    socket.send(&message)?;
    let (begun, mut heard) = (Instant::now(), [0; 1500]);
    loop {
        let left = patience.checked_sub(begun.elapsed()).filter(|left| !left.is_zero());
        socket.set_read_timeout(Some(left.ok_or(ErrorKind::TimedOut)?))?;
        let length = socket.recv(&mut heard)?;
        // With the header, for IPv4 alone.
        let header = if to.is_ipv4() { usize::from(heard[0] & 15) * 4 } else { 0 };
        if let [kind, 0, _, _, a, b, ..] = heard[header..length]
            && kind == reply
            && [a, b] == id
        {
            return Ok(());
        }
    }
}

/// Sends a router advertisement of half an hour to all nodes of a link.
pub fn advertise(interface: &str) -> Result<()> {
    let socket = socket_with(AddressFamily::INET6, SocketType::RAW, SocketFlags::CLOEXEC, Some(ipproto::ICMPV6))?;
    setsockopt(&socket, BindToDevice, &interface.into())?;
    set_ipv6_multicast_hops(&socket, 255)?;
    let message = [134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    let sent = UdpSocket::from(socket).send_to(&message, ("ff02::1", 0))?;
    if sent == message.len() { Ok(()) } else { Err(Error::from(ErrorKind::WriteZero)) }
}
