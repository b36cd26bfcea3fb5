//! The only code that accesses the network: it looks, and it makes changes. It does not know why, saves nothing, and waits
//! for nothing except the programs that it starts.

mod apply;
mod conf_dirs;
mod crictl;
mod look;
mod netlink;
mod netns;
mod program;
mod sysctl;
pub mod systemctl;
mod taped;

use std::io;
use std::sync::Arc;

pub use apply::{Applied, ApplyError};
pub use conf_dirs::{ConfFiles, Root};
pub use netlink::announce::{Announcements, Heard};
pub use netlink::dumps::Dumps;
pub use netlink::fib::{FibReader, Marks};
pub use netlink::rewrite::Substitute;
use netlink::socket::Netlink;

use crate::signals::Stop;
use crate::tape::Tape;

/// This node, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Node {
    netlink: Netlink,
    /// The connection to nftables, once it was needed.
    netfilter: Option<Netlink>,
    /// Stops the programs that it has started.
    stop: Stop,
    /// What is not seen by netlink.
    tape: Tape,
}

/// Takes all dumps of this network namespace.
///
/// # Errors
///
/// What the kernel said.
pub fn dumps() -> anyhow::Result<Dumps> {
    Ok(Dumps::take(&mut Netlink::open()?)?)
}

/// Whether this process may change the network, according to its capabilities.
///
/// # Errors
///
/// The error of capget(2).
pub fn has_net_admin() -> io::Result<bool> {
    let sets = rustix::thread::capabilities(None)?;
    Ok(sets.effective.contains(rustix::thread::CapabilitySet::NET_ADMIN))
}

impl Node {
    /// Opens the connection to the kernel.
    ///
    /// # Errors
    ///
    /// No netlink socket could be opened.
    pub fn open(stop: Stop) -> anyhow::Result<Node> {
        Ok(Node { netlink: Netlink::open()?, netfilter: None, stop, tape: Tape::default() })
    }

    /// A node as it was captured; or, if the tape records, as it is captured now.
    pub fn captured(dumps: Arc<Dumps>, stop: Stop, tape: Tape) -> Node {
        Node { netlink: Netlink::captured(dumps), netfilter: None, stop, tape }
    }

    /// Removes the temporary files that an interrupted run may have left. Only under the lock.
    pub fn tidy(&self) {
        sysctl::tidy();
    }

    /// Notifies the watcher that listens at this port: what was announced until now happened before the looks to come.
    pub fn mark(&self, port: u32) {
        self.netlink.mark(port);
    }

    /// The root directory of this node.
    pub fn root(&self) -> Root {
        Root::of_node(&self.tape)
    }

    /// What is not seen by netlink.
    pub fn tape(&self) -> &Tape {
        &self.tape
    }

    fn listen(&self) -> Result<(), String> {
        self.stop.listen().map_err(|error| format!("cannot listen for signals: {error}"))
    }
}
