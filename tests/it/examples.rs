//! The examples of policy routing in config/: node-fixer makes of each what its owner would, and packets take the way that it
//! says. Where an owner's device needs a kernel module (wireguard, tun), a veth of its name stands in: what is shown is the
//! routing, not the tunnel.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use crate::kit::{Netns, Ran, Worker, finish, node_fixer, until};

/// A host with a link to each of these networks. In each, all that the host sends to arrives.
struct Host {
    node: Worker,
    networks: Vec<(&'static str, Netns)>,
}

impl Host {
    /// Links by name, each with the host's address and the neighbour's.
    fn new(links: &[(&'static str, &str, &str)]) -> Host {
        let node = Worker::bare();
        for all in ["all", "default"] {
            node.net.set_sysctl(&format!("net/ipv4/conf/{all}/rp_filter"), "0");
            node.net.set_sysctl(&format!("net/ipv6/conf/{all}/accept_dad"), "0");
        }
        let networks = links.iter().map(|(name, own, neighbour)| {
            let far = Netns::new();
            for all in ["all", "default"] {
                far.set_sysctl(&format!("net/ipv4/conf/{all}/rp_filter"), "0");
                far.set_sysctl(&format!("net/ipv6/conf/{all}/accept_dad"), "0");
            }
            node.net.ip(&format!("link add {name} type veth peer name far netns {}", far.path()));
            far.ip(&format!("addr add {neighbour} dev far"));
            far.ip("link set far up");
            // All of it is here, and so is whoever asks.
            far.set_sysctl("net/ipv4/conf/all/accept_local", "1");
            far.ip("route add local 0.0.0.0/0 dev lo");
            far.ip("-6 route add local ::/0 dev lo");
            if own.ends_with("/32") {
                // A tunnel asks nobody for a hardware address.
                node.net.ip(&format!("link set {name} address 02:00:00:00:00:01 arp off"));
                far.ip("link set far address 02:00:00:00:00:01 arp off");
            }
            node.net.ip(&format!("addr add {own} dev {name}"));
            node.net.ip(&format!("link set {name} up"));
            (*name, far)
        });
        let networks = networks.collect();
        let host = Host { node, networks };
        host.node.net.settle();
        host
    }

    /// Gives the first link addresses of IPv6, and a default route by the neighbour.
    fn with_ipv6(self) -> Host {
        self.networks[0].1.ip("addr add 2001:db8::1/64 dev far nodad");
        self.node.net.ip("addr add 2001:db8::10/64 dev eth0 nodad");
        self.node.net.ip("-6 route add default via 2001:db8::1 dev eth0");
        let local = || self.node.net.ip("-6 route show table local 2001:db8::10");
        until("the address is no longer tentative", || !local().is_empty());
        self
    }

    /// node-fixer with an example.
    fn fix(&self, example: &str) -> Ran {
        let mut command = node_fixer();
        command.arg("--config").arg(std::fs::canonicalize(Path::new("config").join(example)).unwrap());
        command.arg("--state-dir").arg(self.node.directory.path().join("state"));
        finish(self.node.net.output(&mut command))
    }

    /// Makes it so, and sees that it stays.
    fn made(&self, example: &str) {
        self.fix(example).expect(0);
        assert_eq!(self.fix(example).expect(0).out, "", "a second run finds nothing to do");
    }

    /// Takes it back, and sees that nothing is left.
    fn unmade(&self, before: &[String]) {
        self.fix("nothing.yaml").expect(0);
        assert_eq!(self.state(), before);
    }

    /// By which link a packet from an address (or from none) with a mark (or with none) leaves; `host` where it is delivered
    /// there.
    fn way(&self, from: Option<&str>, to: &str, mark: u32) -> Result<&'static str, ErrorKind> {
        let to: SocketAddr = SocketAddr::new(to.parse().unwrap(), 9);
        let any: IpAddr = if to.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap();
        let listen = |net: &Netns| {
            let mut socket = None;
            // A program that another test is just starting has the last one open for a moment.
            until("the port is free", || {
                socket = net.enter(|| UdpSocket::bind((any, to.port()))).ok();
                socket.is_some()
            });
            socket.unwrap()
        };
        let mut listeners: Vec<_> = self.networks.iter().map(|(name, far)| (*name, listen(far))).collect();
        listeners.push(("host", listen(&self.node.net)));
        let sender = self.node.net.enter(|| {
            let socket = UdpSocket::bind((from.map_or(any, |from| from.parse().unwrap()), 0))?;
            setsockopt(&socket, sockopt::Mark, &mark)?;
            socket.send_to(b"x", to).map(|_| socket)
        });
        let _sender = sender.map_err(|error| error.kind())?;
        let begun = Instant::now();
        loop {
            for (name, socket) in &listeners {
                socket.set_nonblocking(true).unwrap();
                if socket.recv(&mut [0; 9]).is_ok() {
                    return Ok(name);
                }
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "it arrived nowhere");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// In order: what went with a link comes back elsewhere.
    fn state(&self) -> Vec<String> {
        let mut lines: Vec<_> = self.node.net.state().lines().map(str::to_owned).collect();
        lines.sort();
        lines
    }
}

#[test]
fn all_are_accepted() {
    for entry in std::fs::read_dir("config").unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|it| it == "yaml") && path.file_name().is_none_or(|it| it != "cloud-init.yaml")
        {
            let mut command = node_fixer();
            let ran = finish(command.arg("--config").arg(&path).arg("check-config").output().unwrap());
            assert_eq!(ran.code, 0, "{path:?}: {ran:?}");
        }
    }
}

#[test]
fn wg_quick() {
    let host =
        Host::new(&[("eth0", "192.0.2.10/24", "192.0.2.1/24"), ("wg0", "10.66.0.2/32", "10.66.0.1/32")]).with_ipv6();
    host.node.net.ip("addr add fd66::2/128 dev wg0 nodad");
    until("it is the host's", || !host.node.net.ip("-6 route show table local fd66::2").is_empty());
    host.node.net.ip("route add default via 192.0.2.1 dev eth0");
    let before = host.state();
    assert_eq!(host.way(None, "198.51.100.9", 0), Ok("eth0"), "before");
    host.made("wg-quick.yaml");
    assert_eq!(host.way(None, "198.51.100.9", 0), Ok("wg0"));
    assert_eq!(host.way(None, "198.51.100.9", 51820), Ok("eth0"), "WireGuard's own");
    assert_eq!(host.way(None, "192.0.2.1", 0), Ok("eth0"), "a neighbour");
    assert_eq!(host.way(None, "2001:db8:9::9", 0), Ok("wg0"));
    assert_eq!(host.way(None, "2001:db8:9::9", 51820), Ok("eth0"));
    host.unmade(&before);
    assert_eq!(host.way(None, "198.51.100.9", 0), Ok("eth0"));
}

#[test]
fn tailscale() {
    let host =
        Host::new(&[("eth0", "192.0.2.10/24", "192.0.2.1/24"), ("tailscale0", "100.64.0.7/32", "100.64.0.8/32")]);
    host.node.net.ip("route add default via 192.0.2.1 dev eth0");
    let before = host.state();
    host.made("tailscale.yaml");
    assert_eq!(host.way(None, "100.64.0.9", 0), Ok("tailscale0"));
    assert_eq!(host.way(None, "198.51.100.9", 0), Ok("tailscale0"), "the exit node");
    assert_eq!(host.way(None, "198.51.100.9", 0x80000), Ok("eth0"), "its own packets");
    assert_eq!(host.way(None, "192.0.2.1", 0), Ok("eth0"), "the own network is thrown to main");
    host.node.net.ip("route del default");
    assert_eq!(host.way(None, "198.51.100.9", 0x80000), Err(ErrorKind::NetworkUnreachable), "and never into itself");
    host.node.net.ip("route add default via 192.0.2.1 dev eth0");
    host.unmade(&before);
}

#[test]
fn tproxy() {
    let host = Host::new(&[("eth0", "192.0.2.10/24", "192.0.2.1/24")]).with_ipv6();
    host.node.net.ip("route add default via 192.0.2.1 dev eth0");
    let before = host.state();
    assert_eq!(host.way(None, "198.51.100.9", 1), Ok("eth0"), "before");
    host.made("tproxy.yaml");
    for to in ["198.51.100.9", "2001:db8:9::9"] {
        assert_eq!(host.way(None, to, 0), Ok("eth0"));
        assert_eq!(host.way(None, to, 1), Ok("host"), "the proxy");
    }
    host.unmade(&before);
}

fn two_uplinks() -> Host {
    Host::new(&[("eth0", "192.0.2.10/24", "192.0.2.1/24"), ("eth1", "198.51.100.10/24", "198.51.100.1/24")])
}

#[test]
fn mptcp() {
    let host = two_uplinks();
    let before = host.state();
    host.made("mptcp.yaml");
    assert_eq!(host.way(Some("192.0.2.10"), "203.0.113.9", 0), Ok("eth0"));
    assert_eq!(host.way(Some("198.51.100.10"), "203.0.113.9", 0), Ok("eth1"));
    assert_eq!(host.way(None, "203.0.113.9", 0), Ok("eth0"));
    host.node.net.ip("link set eth0 down");
    assert_eq!(host.way(None, "203.0.113.9", 0), Ok("eth1"), "where eth0 is down");
    host.node.net.ip("link set eth0 up");
    host.node.net.settle();
    host.made("mptcp.yaml");
    host.unmade(&before);
}

#[test]
fn two_providers() {
    let host = two_uplinks();
    let before = host.state();
    host.made("two-providers.yaml");
    assert_eq!(host.way(Some("192.0.2.10"), "203.0.114.9", 0), Ok("eth0"));
    assert_eq!(host.way(Some("198.51.100.10"), "203.0.114.9", 0), Ok("eth1"));
    let ways: Vec<_> = (0..64).map(|i| host.way(None, &format!("203.0.114.{i}"), 0).unwrap()).collect();
    let first = ways.iter().filter(|way| **way == "eth0").count();
    assert!((32..64).contains(&first), "{first} of 64 by the first provider");
    let way = |words: &str| host.node.net.ip(&format!("route get 203.0.114.9 {words}"));
    assert!(way("ipproto tcp dport 25").contains("dev eth1"), "mail");
    assert_eq!(host.way(None, "203.0.113.9", 0), Err(ErrorKind::HostUnreachable));
    host.unmade(&before);
}

#[test]
fn cilium() {
    let host = Host::new(&[("eth0", "10.0.2.15/24", "10.0.2.1/24")]);
    host.node.net.ip("route add default via 10.0.2.1 dev eth0");
    let before = host.state();
    host.made("cilium-rules.yaml");
    assert_eq!(host.way(None, "198.51.100.9", 0x200), Ok("host"), "the proxy");
    assert_eq!(host.way(None, "198.51.100.9", 0), Ok("eth0"));
    assert_eq!(host.way(None, "10.0.2.15", 0), Ok("host"));
    // What a restart of systemd-networkd takes.
    for priority in [9, 10, 100] {
        host.node.net.ip(&format!("rule del priority {priority}"));
    }
    assert_eq!(host.way(None, "198.51.100.9", 0x200), Ok("eth0"), "broken");
    host.fix("cilium-rules.yaml").expect(0);
    assert_eq!(host.way(None, "198.51.100.9", 0x200), Ok("host"), "and repaired");
    host.unmade(&before);
}
