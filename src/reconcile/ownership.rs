//! Which addresses node-fixer owns: by the protocol that the kernel stores, or by the ledger.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use cidr::IpInet;

use crate::history::memory::AddedAddress;
use crate::model::{IfName, PROTO_DECLARED};
use crate::observed::{Address, Gap, Observed};
use crate::sorted;
use crate::topology::forecast;

/// The maximum difference between the kernel's time of an address and the time in the ledger, which is written just
/// before. The clocks differ: the kernel counts its ticks, which began some time after the clock did.
const SOON: Duration = Duration::from_secs(10);

/// Knows which addresses node-fixer owns.
pub struct Ownership<'a> {
    marks_are_kept: bool,
    /// The entries of the ledger, by the index of the interface.
    entries: BTreeMap<(u32, IpInet), &'a AddedAddress>,
}

impl<'a> Ownership<'a> {
    pub fn of(observed: &'a Observed) -> Result<Ownership<'a>, Gap> {
        let noted = || observed.ledger().map(|ledger| ledger.addresses.iter());
        let name = |entry: &AddedAddress| IfName::new(entry.dev.as_bytes());
        let names: Vec<IfName> = noted()?.filter_map(name).collect();
        let indexes = forecast::indexes(&names, observed)?;
        let index = |entry: &AddedAddress| indexes.get(&name(entry)?).copied();
        let entries = sorted::map(noted()?.filter_map(|entry| Some(((index(entry)?, entry.address), entry))));
        let marks_are_kept = observed.addresses()?.iter().any(|address| address.protocol.is_some());
        Ok(Ownership { marks_are_kept, entries })
    }

    pub fn entry(&self, address: &Address) -> Option<&'a AddedAddress> {
        let inet = IpInet::new(address.local, address.length).ok().filter(|_| !address.has_peer)?;
        self.entries.get(&(address.index, inet)).copied()
    }

    pub fn owns(&self, address: &Address) -> bool {
        match address.protocol {
            Some(protocol) => protocol == PROTO_DECLARED,
            None => !self.marks_are_kept && self.entry(address).is_some_and(|entry| is_as_old_as(address, entry)),
        }
    }
}

/// The addresses of other owners on interfaces, by index, except the kernel's own link-local ones.
pub fn foreign(observed: &Observed) -> Result<BTreeMap<u32, Vec<IpAddr>>, Gap> {
    let owner = Ownership::of(observed)?;
    let link_local = |address: IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    let mut foreign: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for address in observed.addresses()?.iter().filter(|it| !link_local(it.local) && !owner.owns(it)) {
        foreign.entry(address.index).or_default().push(address.local);
    }
    Ok(foreign)
}

fn is_as_old_as(address: &Address, entry: &AddedAddress) -> bool {
    address.created.abs_diff(entry.added) <= SOON
}
