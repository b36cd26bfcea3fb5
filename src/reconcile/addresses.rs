//! `addresses`, and those of `bridges`: what is declared is made so, and what node-fixer added and is no longer
//! declared goes. What others added never goes.
//!
//! Whose an address is, the kernel tells by its protocol mark (Linux 5.18). On older ones the ledger tells; it is
//! believed only where the address is as old as the ledger says: one that was deleted and added again since is
//! another's.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use cidr::IpInet;

use super::{bridges, sysctls};
use crate::change::{Blocked, Change, Plan, Step};
use crate::desired::Desired;
use crate::memory::{AddedAddress, Kind, Note};
use crate::net::{IfName, PROMOTE, PROTO_DECLARED, SysctlKey};
use crate::observed::{Address, Gap, Observed};
use crate::sorted;

/// How far the kernel's time of an address may be from that of its note in the ledger, which is written just before.
/// The two are told by different clocks: the kernel counts its ticks, which began some time after the clock did.
const SOON: Duration = Duration::from_secs(10);

pub fn plan(desired: &Desired, observed: &Observed) -> Result<Plan, Gap> {
    let mut plan = Plan::default();
    let recall = observed.recall()?;
    let known = recall.memory.made.get(&Kind::Addresses).copied();
    let declared = sorted::set(desired.all_addresses());
    if declared.is_empty() && known == Some(false) {
        return Ok(plan);
    }
    let indexes = indexes(declared.iter().map(|(dev, _)| *dev), observed)?;
    let owner = Owner::of(observed)?;
    let live = observed.addresses()?;
    let mut here: BTreeMap<(u32, IpAddr), Vec<&Address>> = BTreeMap::new();
    live.iter().for_each(|address| here.entry((address.index, address.local)).or_default().push(address));

    let to_come = sorted::set(bridges::to_come(desired, observed)?);
    let refused = bridges::refused(desired, observed)?;
    let of_refused = sorted::set(desired.addresses_of_bridges().filter(|(dev, _)| refused.contains(*dev)));
    let mut without_link = BTreeSet::new();
    let mut added = Vec::new();
    for (dev, inet) in &declared {
        let command = Change::AddAddress((*dev).clone(), *inet);
        let mut add = |plan: &mut Plan| {
            added.push(AddedAddress { dev: text(dev), address: *inet, added: recall.awake });
            plan.steps.push(Step { change: command.clone(), reason: "declared, and not there".into() });
        };
        let Some(index) = indexes.get(dev) else {
            if to_come.contains(dev) {
                add(&mut plan);
            } else if without_link.insert(*dev) {
                let because = format!("there is no interface {dev}; its addresses go in when the interface appears");
                plan.blocked.push(Blocked::new(command.to_string(), because));
            }
            continue;
        };
        let rivals = here.get(&(*index, inet.address())).map_or(&[][..], Vec::as_slice);
        // IPv6 has an address only once on an interface, whatever its prefix length.
        match rivals.iter().find(|address| is_inet(address, *inet)).or(rivals.first().filter(|_| inet.is_ipv6())) {
            // The section `bridges` says why.
            None if of_refused.contains(&(*dev, *inet)) => {}
            None => add(&mut plan),
            Some(there) if !is_inet(there, *inet) && owner.owns(there) => {
                let old = IpInet::new(there.local, there.length).ok();
                plan.steps.extend(old.map(|old| Step {
                    change: Change::DeleteAddress { dev: (*dev).clone(), address: old, promote: false },
                    reason: "it is declared with another prefix length".into(),
                }));
                add(&mut plan);
            }
            Some(there) if !is_inet(there, *inet) => plan.blocked.push(Blocked::new(
                command.to_string(),
                format!(
                    "{dev} has this address with the prefix length {}, which another owner has given it; delete it \
                     there, or declare it so",
                    there.length
                ),
            )),
            Some(there) if there.duplicate => plan.blocked.push(Blocked::new(
                command.to_string(),
                "another host on the link has it (duplicate address detection): it is there, and does not work".into(),
            )),
            Some(_) => {}
        }
    }

    let declared_here = sorted::set(declared.iter().filter_map(|(dev, inet)| Some((*indexes.get(dev)?, *inet))));
    let is_declared = |address: &Address| {
        let inet = IpInet::new(address.local, address.length);
        !address.has_peer && inet.is_ok_and(|inet| declared_here.contains(&(address.index, inet)))
    };
    let ours: Vec<&Address> = live.iter().filter(|address| owner.owns(address)).collect();
    let gone: Vec<&Address> = ours.iter().copied().filter(|address| !is_declared(address)).collect();
    // The subnets of an interface in which some stay or come: with its first address the kernel deletes the others, and
    // with the last of an interface all routes by it, unless it promotes the next one. To promote loses least: only
    // routes whose source is the address that goes. To add the others again would lose every route on the way.
    let mut subnets = BTreeSet::new();
    if !gone.is_empty() {
        let stays = live.iter().filter(|address| !owner.owns(address) || is_declared(address));
        let comes = plan.steps.iter().filter_map(|step| match &step.change {
            Change::AddAddress(dev, inet) => Some((*indexes.get(dev)?, inet.network())),
            _ => None,
        });
        subnets = sorted::set(stays.map(|address| (address.index, address.subnet)).chain(comes));
    }
    // One that is in the way of a declared one goes before it.
    let in_the_way = sorted::set(plan.steps.iter().filter_map(|step| match &step.change {
        Change::DeleteAddress { dev, address, .. } => Some((dev.clone(), *address)),
        _ => None,
    }));
    let names = observed.names(gone.iter().map(|address| address.index))?;
    let named = gone.into_iter().zip(names).filter_map(|(address, dev)| {
        let inet = IpInet::new(address.local, address.length).ok()?;
        // Where there is no name, the interface has vanished since.
        Some((address, dev?, inet)).filter(|(_, dev, inet)| !in_the_way.contains(&((*dev).clone(), *inet)))
    });
    // Those that would go with another go before it.
    let gone = sorted::first(named.collect(), |(address, ..): &(&Address, &IfName, IpInet)| address.secondary);
    let leaves_some = |address: &Address| {
        address.local.is_ipv4() && !address.secondary && subnets.contains(&(address.index, address.subnet))
    };
    let devs = sorted::set(gone.iter().filter(|(address, ..)| leaves_some(address)).map(|(_, dev, _)| *dev));
    let promoting = promoting(devs, desired, observed)?;
    for (address, dev, inet) in gone {
        let promote = leaves_some(address) && !promoting.contains(dev);
        let change = Change::DeleteAddress { dev: dev.clone(), address: inet, promote };
        plan.removals.push(Step { change, reason: "node-fixer added it, and it is no longer declared".into() });
    }

    // Before the first one goes in, so that none is ever forgotten.
    let some = !ours.is_empty() || !added.is_empty();
    plan.remember.extend((known != Some(some)).then_some(Note::Made(Kind::Addresses, some)));
    let again = sorted::set(added.iter().map(|new| (&*new.dev, new.address)));
    let still = ours.iter().filter_map(|address| owner.entry(address));
    let still = sorted::set(still.map(|entry| (&*entry.dev, entry.address)));
    let ledger = &observed.ledger()?.addresses;
    let stays = |entry: &&AddedAddress| {
        let key = (&*entry.dev, entry.address);
        still.contains(&key) && !again.contains(&key)
    };
    let addresses: Vec<_> = ledger.iter().filter(stays).chain(&added).cloned().collect();
    if addresses != *ledger {
        plan.remember.push(Note::Addresses(addresses));
    }
    Ok(plan)
}

/// The addresses that others have put on interfaces, by index, but for the kernel's own link-local ones.
pub fn foreign(observed: &Observed) -> Result<BTreeMap<u32, Vec<IpAddr>>, Gap> {
    let owner = Owner::of(observed)?;
    let link_local = |address: IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    let mut foreign: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for address in observed.addresses()?.iter().filter(|it| !link_local(it.local) && !owner.owns(it)) {
        foreign.entry(address.index).or_default().push(address.local);
    }
    Ok(foreign)
}

/// The indexes of the interfaces with these names, as far as they are there.
fn indexes<'a>(
    names: impl IntoIterator<Item = &'a IfName>,
    observed: &Observed,
) -> Result<BTreeMap<&'a IfName, u32>, Gap> {
    let names = sorted::set(names);
    let links = observed.links_named(names.iter().copied().cloned())?;
    let links = names.into_iter().zip(links);
    Ok(sorted::map(links.filter_map(|(name, link)| Some((name, link?.dev.index)))))
}

/// Tells whose an address is.
struct Owner<'a> {
    marks_are_kept: bool,
    /// What the ledger says, by the index of the interface.
    entries: BTreeMap<(u32, IpInet), &'a AddedAddress>,
}

impl<'a> Owner<'a> {
    fn of(observed: &'a Observed) -> Result<Owner<'a>, Gap> {
        let noted = || observed.ledger().map(|ledger| ledger.addresses.iter());
        let name = |entry: &AddedAddress| IfName::new(entry.dev.as_bytes());
        let names: Vec<IfName> = noted()?.filter_map(name).collect();
        let indexes = indexes(&names, observed)?;
        let index = |entry: &AddedAddress| indexes.get(&name(entry)?).copied();
        let entries = sorted::map(noted()?.filter_map(|entry| Some(((index(entry)?, entry.address), entry))));
        let marks_are_kept = observed.addresses()?.iter().any(|address| address.protocol.is_some());
        Ok(Owner { marks_are_kept, entries })
    }

    fn entry(&self, address: &Address) -> Option<&'a AddedAddress> {
        let inet = IpInet::new(address.local, address.length).ok().filter(|_| !address.has_peer)?;
        self.entries.get(&(address.index, inet)).copied()
    }

    fn owns(&self, address: &Address) -> bool {
        match address.protocol {
            Some(protocol) => protocol == PROTO_DECLARED,
            None => !self.marks_are_kept && self.entry(address).is_some_and(|entry| is_as_old_as(address, entry)),
        }
    }
}

/// Those of the interfaces on which the next IPv4 address of a subnet stays when its first one goes, once the sysctls
/// are as declared.
fn promoting<'a>(
    devs: BTreeSet<&'a IfName>,
    desired: &Desired,
    observed: &Observed,
) -> Result<BTreeSet<&'a IfName>, Gap> {
    if devs.is_empty() {
        return Ok(devs);
    }
    let declared = sysctls::wanted(desired, observed)?;
    let key_of_all = [SysctlKey::conf_of_all(PROMOTE)];
    let keys: Vec<SysctlKey> =
        key_of_all.into_iter().chain(devs.iter().map(|dev| SysctlKey::conf_of(dev, PROMOTE))).collect();
    let live = observed.sysctls(keys.clone())?;
    let on = |(key, live): (&SysctlKey, Option<&str>)| {
        declared.get(key).map_or(live, |wish| Some(&*wish.value.0)).is_some_and(|value| value != "0")
    };
    let mut on = keys.iter().zip(live).map(on);
    let all = on.next() == Some(true);
    Ok(sorted::set(devs.into_iter().zip(on).filter(|(_, on)| all || *on).map(|(dev, _)| dev)))
}

fn is_inet(address: &Address, inet: IpInet) -> bool {
    (address.local, address.length, address.has_peer) == (inet.address(), inet.network_length(), false)
}

fn is_as_old_as(address: &Address, entry: &AddedAddress) -> bool {
    address.created.abs_diff(entry.added) <= SOON
}

/// What was read from YAML is UTF-8.
fn text(dev: &IfName) -> String {
    String::from_utf8_lossy(dev.as_bytes()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::testing::{Model, desired};

    const TEN: Duration = Duration::from_secs(10);

    fn entry(dev: &str, address: &str, added: Duration) -> AddedAddress {
        AddedAddress { dev: dev.into(), address: address.parse().unwrap(), added }
    }

    const ALONE: &str = "sysctl -w net.ipv4.conf.eth1.promote_secondaries=1 && { del 10.0.0.1/24 dev eth1; \
                         sysctl -w net.ipv4.conf.eth1.promote_secondaries=0; }";

    #[test]
    fn declared_addresses_are_made_so() {
        let one = "addresses: [{dev: lo, address: 127.0.1.1}]";
        for (case, yaml, node, commands, removals, blocked) in [
            ("missing", one, "link 1 lo 127.0.0.1/8", vec!["add 127.0.1.1/32 dev lo"], vec![], 0),
            ("there, ours", one, "link 1 lo 127.0.1.1/32=171", vec![], vec![], 0),
            ("there, of others", one, "link 1 lo 127.0.1.1/32", vec![], vec![], 0),
            (
                "a range",
                "addresses: [{dev: lo, address: 127.0.1.254-127.0.2.0/24}]",
                "link 1 lo 127.0.1.255/24",
                vec!["add 127.0.1.254/24 dev lo", "add 127.0.2.0/24 dev lo"],
                vec![],
                0,
            ),
            (
                "each of a prefix",
                "addresses: [{dev: lo, address: 10.9.0.0/31, each: true}]",
                "link 1 lo",
                vec!["add 10.9.0.0/32 dev lo", "add 10.9.0.1/32 dev lo"],
                vec![],
                0,
            ),
            ("another length beside it", one, "link 1 lo 127.0.1.1/8", vec!["add 127.0.1.1/32 dev lo"], vec![], 0),
            (
                "IPv6 has only one, ours",
                "addresses: [{dev: eth1, address: 'fd00::1/64'}]",
                "link 3 eth1 fd00::1/128=171",
                vec!["del fd00::1/128 dev eth1", "add fd00::1/64 dev eth1"],
                vec![],
                0,
            ),
            (
                "IPv6 has only one, of others",
                "addresses: [{dev: eth1, address: 'fd00::1/64'}]",
                "link 3 eth1 fd00::1/128",
                vec![],
                vec![],
                1,
            ),
            ("no interface, told once", "addresses: [{dev: eth9, address: 10.0.0.1-10.0.0.9}]", "", vec![], vec![], 1),
            (
                "a bridge that is to come",
                "bridges: [{name: br0, addresses: [10.0.0.1/16]}]\naddresses: [{dev: br0, address: 10.1.0.1/16}]",
                "",
                vec!["add 10.0.0.1/16 dev br0", "add 10.1.0.1/16 dev br0"],
                vec![],
                0,
            ),
            (
                "no longer declared",
                "{}",
                "link 1 lo 127.0.0.1/8=1 127.0.1.1/32=171 127.0.1.2/32 127.0.1.3/32=3",
                vec![],
                vec!["del 127.0.1.1/32 dev lo"],
                0,
            ),
            (
                "the first of a subnet with one of others",
                "{}",
                "link 3 eth1 10.0.0.1/24=171 10.0.0.2/24=secondary",
                vec![],
                vec![ALONE],
                0,
            ),
            (
                "the first of a subnet with a declared one",
                "addresses: [{dev: eth1, address: 10.0.0.2/24}]",
                "link 3 eth1 10.0.0.1/24=171 10.0.0.2/24=171,secondary",
                vec![],
                vec![ALONE],
                0,
            ),
            (
                "the first of a subnet in which another comes",
                "addresses: [{dev: eth1, address: 10.0.0.2-10.0.0.3/24}]",
                "link 3 eth1 10.0.0.1/24=171 10.0.0.2/24=171,secondary",
                vec!["add 10.0.0.3/24 dev eth1"],
                vec![ALONE],
                0,
            ),
            (
                "another prefix length is another subnet",
                "addresses: [{dev: eth1, address: 10.0.0.1/16}]",
                "link 3 eth1 10.0.0.1/24=171",
                vec!["add 10.0.0.1/16 dev eth1"],
                vec!["del 10.0.0.1/24 dev eth1"],
                0,
            ),
            (
                "one behind another's",
                "addresses: [{dev: eth1, address: 10.0.0.3/24}]",
                "link 3 eth1 10.0.0.1/24 10.0.0.2/24=171,secondary",
                vec!["add 10.0.0.3/24 dev eth1"],
                vec!["del 10.0.0.2/24 dev eth1"],
                0,
            ),
            (
                "the same subnet elsewhere",
                "addresses: [{dev: lo, address: 10.0.0.2/24}]",
                "link 1 lo\nlink 3 eth1 10.0.0.1/24=171",
                vec!["add 10.0.0.2/24 dev lo"],
                vec!["del 10.0.0.1/24 dev eth1"],
                0,
            ),
            (
                "IPv6 knows no first one",
                "addresses: [{dev: eth1, address: 'fd00::2/64'}]",
                "link 3 eth1 fd00::1/64=171",
                vec!["add fd00::2/64 dev eth1"],
                vec!["del fd00::1/64 dev eth1"],
                0,
            ),
            (
                "of a bridge that is none",
                "bridges: [{name: eth1, addresses: [10.0.0.1/24]}]",
                "link 3 eth1",
                vec![],
                vec![],
                0,
            ),
            (
                "of a bridge that others have set otherwise",
                "bridges: [{name: br0, mtu: 9000, addresses: [10.0.0.1/24]}]",
                "bridge 3 br0",
                vec![],
                vec![],
                0,
            ),
            (
                "the first of a subnet with one of ours",
                "{}",
                "link 3 eth1 10.0.0.1/24=171 10.0.0.2/24=171,secondary",
                vec![],
                vec!["del 10.0.0.2/24 dev eth1", "del 10.0.0.1/24 dev eth1"],
                0,
            ),
        ] {
            let plan = Model::new(node).plan(plan, &desired(yaml));
            let shown = |steps: &[Step]| {
                steps.iter().map(|step| step.change.to_string().replace("ip addr ", "")).collect::<Vec<_>>()
            };
            assert_eq!(shown(&plan.steps), commands, "{case}");
            assert_eq!(shown(&plan.removals), removals, "{case}");
            assert_eq!(plan.blocked.len(), blocked, "{case}: {:?}", plan.blocked);
        }
    }

    #[test]
    fn where_the_next_address_is_promoted_anyway_nothing_is_set_for_it() {
        for key in [SysctlKey::conf_of_all(PROMOTE), SysctlKey::conf_of(&IfName::new(b"eth1").unwrap(), PROMOTE)] {
            let mut node = Model::new("link 3 eth1 10.0.0.1/24=171 10.0.0.2/24=secondary");
            node.sysctls.push((key, "1".into()));
            let plan = node.plan(plan, &desired("{}"));
            assert_eq!(plan.removals[0].change.to_string(), "ip addr del 10.0.0.1/24 dev eth1");
        }
    }

    /// Kernels before 5.18 keep no marks: no address of the node has one.
    #[test]
    fn without_marks_the_ledger_is_believed_where_the_address_is_as_old() {
        for (case, created, entry, removals) in [
            ("ours", 10_010, entry("lo", "127.0.1.1/32", TEN), 1),
            ("by a slower clock", 9_000, entry("lo", "127.0.1.1/32", TEN), 1),
            ("older than ours would be", 10_000, entry("lo", "127.0.1.1/32", TEN * 3), 0),
            ("added again by another", 30_000, entry("lo", "127.0.1.1/32", TEN), 0),
            ("another address", 10_010, entry("lo", "127.0.1.2/32", TEN), 0),
            ("another prefix length", 10_010, entry("lo", "127.0.1.1/8", TEN), 0),
            ("another interface", 10_010, entry("eth1", "127.0.1.1/32", TEN), 0),
            ("a name that none is", 10_010, entry("", "127.0.1.1/32", TEN), 0),
        ] {
            let mut node = Model::new("link 1 lo 127.0.1.1/32\nlink 3 eth1");
            node.addresses[0].created = Duration::from_millis(created);
            node.ledger.addresses.push(entry);
            assert_eq!(node.plan(plan, &desired("{}")).removals.len(), removals, "{case}");
        }
    }

    #[test]
    fn where_marks_are_kept_the_ledger_is_not_believed() {
        let mut node = Model::new("link 1 lo 127.0.0.1/8=1 127.0.1.1/32");
        node.addresses[1].created = TEN;
        node.ledger.addresses.push(entry("lo", "127.0.1.1/32", TEN));
        assert_eq!(node.plan(plan, &desired("{}")).removals, []);
    }

    #[test]
    fn the_ledger_is_written_before_an_address_goes_in_and_forgets_what_is_gone() {
        let mut node = Model::new("link 1 lo");
        node.recall.awake = TEN;
        node.ledger.addresses.push(entry("lo", "127.0.1.9/32", Duration::ZERO));
        let wish = desired("addresses: [{dev: lo, address: 127.0.1.1}]");
        let first = node.plan(plan, &wish);
        let noted = vec![entry("lo", "127.0.1.1/32", TEN)];
        assert_eq!(first.remember, [Note::Made(Kind::Addresses, true), Note::Addresses(noted.clone())]);
        first.steps.iter().for_each(|step| node.apply(&step.change));
        node.ledger.addresses = noted;
        node.recall.memory.take(Note::Made(Kind::Addresses, true));
        assert_eq!(node.plan(plan, &wish), Plan::default());
    }
}
