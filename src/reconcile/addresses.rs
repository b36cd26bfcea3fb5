//! `addresses`, and those of `bridges`: declared addresses are added, and those that node-fixer added and that are no
//! longer declared are deleted. Addresses that others added never are.
//!
//! The kernel stores which addresses node-fixer added, by their protocol (Linux 5.18). On older kernels the ledger says
//! so. It is only believed if the address is as old as the ledger says: an address that was deleted and added again
//! belongs to another program.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cidr::IpInet;

use super::bridges::unusable_bridges;
use super::ownership::Ownership;
use crate::change::{Blocked, Change, Op, Plan, Step, When};
use crate::config::Config;
use crate::history::memory::{AddedAddress, LedgerNote, Note};
use crate::model::{IfAddress, IfName, PROMOTE, SysctlKey};
use crate::observed::{Address, Gap, Observed};
use crate::sorted;
use crate::topology::forecast::{self, bridges_to_create};

pub fn plan(desired: &Config, observed: &Observed) -> Result<Plan, Gap> {
    let mut plan = Plan::default();
    let recall = observed.recall()?;
    let declared = sorted::set(desired.all_addresses());
    let indexes = forecast::indexes(declared.iter().map(|(dev, _)| *dev), observed)?;
    let owner = Ownership::of(observed)?;
    let all = Addresses { declared, indexes, owner, live: observed.addresses()? };

    let to_create = sorted::set(bridges_to_create(desired, observed)?);
    let unusable = unusable_bridges(desired, observed)?;
    let of_unusable = sorted::set(desired.addresses_of_bridges().filter(|(dev, _)| unusable.contains(*dev)));
    all.declare(&to_create, &of_unusable, &mut plan);
    let is_added = |step: &Step| match &step.change {
        Change::Address(Op::Add(new)) => {
            Some(AddedAddress { dev: text(&new.dev), address: new.inet, added: recall.awake })
        }
        _ => None,
    };
    let added: Vec<AddedAddress> = plan.steps.iter().filter_map(is_added).collect();
    all.remove(desired, observed, &mut plan)?;
    plan.leaves = Some(all.ours().next().is_some() || !added.is_empty());
    let ledger = &observed.ledger()?.addresses;
    let noted = all.noted(ledger, &added);
    if noted != *ledger {
        plan.remember.push(Note::Ledger(LedgerNote::Addresses(noted)));
    }
    Ok(plan)
}

/// The declared and the live addresses, and which of the latter node-fixer added.
struct Addresses<'a> {
    declared: BTreeSet<(&'a IfName, IpInet)>,
    /// The indexes of the existing interfaces.
    indexes: BTreeMap<&'a IfName, u32>,
    owner: Ownership<'a>,
    live: &'a [Address],
}

impl<'a> Addresses<'a> {
    /// Those that node-fixer has added.
    fn ours(&self) -> impl Iterator<Item = &'a Address> {
        self.live.iter().filter(|address| self.owner.owns(address))
    }

    /// Adds what is declared.
    fn declare(&self, to_create: &BTreeSet<&IfName>, of_unusable: &BTreeSet<(&IfName, IpInet)>, plan: &mut Plan) {
        let mut here: BTreeMap<(u32, IpAddr), Vec<&Address>> = BTreeMap::new();
        self.live.iter().for_each(|address| here.entry((address.index, address.local)).or_default().push(address));
        let mut without_link = BTreeSet::new();
        for (dev, inet) in &self.declared {
            let Some(index) = self.indexes.get(dev) else {
                if to_create.contains(dev) {
                    plan.steps.push(add(dev, *inet));
                } else if without_link.insert(*dev) {
                    let because = format!("interface {dev} does not exist; its addresses are added when it appears");
                    plan.blocked.push(Blocked::new(addition(dev, *inet).to_string(), because));
                }
                continue;
            };
            let rivals = here.get(&(*index, inet.address())).map_or(&[][..], Vec::as_slice);
            // An interface has an IPv6 address only once, whatever its prefix length.
            match rivals.iter().find(|address| is_inet(address, *inet)).or(rivals.first().filter(|_| inet.is_ipv6())) {
                // The section `bridges` reports why.
                None if of_unusable.contains(&(*dev, *inet)) => {}
                None => plan.steps.push(add(dev, *inet)),
                Some(there) => self.instead_of(there, dev, *inet, plan),
            }
        }
    }

    /// Handles a declared address that exists, possibly with another prefix length.
    fn instead_of(&self, there: &Address, dev: &IfName, inet: IpInet, plan: &mut Plan) {
        let mut block = |because| plan.blocked.push(Blocked::new(addition(dev, inet).to_string(), because));
        if is_inet(there, inet) {
            if there.duplicate {
                block(
                    "another host on the link has this address (duplicate address detection), so it does not work; \
                     remove the duplicate"
                        .into(),
                );
            }
        } else if self.owner.owns(there) {
            let old = IpInet::new(there.local, there.length).ok();
            let old = old.map(|inet| IfAddress { dev: dev.clone(), inet, promote: false });
            plan.steps.extend(old.map(|old| Step {
                notes: self.owner.entry(there).map(taken_back).unwrap_or_default(),
                ..Step::new(Change::Address(Op::Delete(old)), "the declared prefix length differs")
            }));
            plan.steps.push(add(dev, inet));
        } else {
            block(format!(
                "{dev} has this address with the prefix length {}, set by another program; delete it there, or \
                 declare that length",
                there.length
            ));
        }
    }

    /// Deletes what is no longer declared.
    fn remove(&self, desired: &Config, observed: &Observed, plan: &mut Plan) -> Result<(), Gap> {
        let declared_here =
            sorted::set(self.declared.iter().filter_map(|(dev, inet)| Some((*self.indexes.get(dev)?, *inet))));
        let is_declared = |address: &Address| {
            let inet = IpInet::new(address.local, address.length);
            !address.has_peer && inet.is_ok_and(|inet| declared_here.contains(&(address.index, inet)))
        };
        let gone: Vec<&Address> = self.ours().filter(|address| !is_declared(address)).collect();
        // The subnets of interfaces in which addresses remain or are added. When the kernel deletes the first address
        // of a subnet, it deletes the others as well, and with the last one of an interface all routes through it,
        // unless it promotes the next address. Promoting loses least: only routes whose source is the deleted address.
        // Adding the others again would lose every route in between.
        let mut subnets = BTreeSet::new();
        if !gone.is_empty() {
            let stays = self.live.iter().filter(|address| !self.owner.owns(address) || is_declared(address));
            let comes = plan.steps.iter().filter_map(|step| match &step.change {
                Change::Address(Op::Add(new)) => Some((*self.indexes.get(&new.dev)?, new.inet.network())),
                _ => None,
            });
            subnets = sorted::set(stays.map(|address| (address.index, address.subnet)).chain(comes));
        }
        // An address that conflicts with a declared one is deleted before that is added.
        let in_the_way = sorted::set(plan.steps.iter().filter_map(|step| match &step.change {
            Change::Address(Op::Delete(old)) => Some((old.dev.clone(), old.inet)),
            _ => None,
        }));
        let names = observed.names(gone.iter().map(|address| address.index))?;
        let named = gone.into_iter().zip(names).filter_map(|(address, dev)| {
            let inet = IpInet::new(address.local, address.length).ok()?;
            // Without a name, the interface has vanished since.
            Some((address, dev?, inet)).filter(|(_, dev, inet)| !in_the_way.contains(&((*dev).clone(), *inet)))
        });
        // Addresses that would be deleted with another one are deleted before it.
        let gone = sorted::first(named.collect(), |(address, ..): &(&Address, &IfName, IpInet)| address.secondary);
        let leaves_some = |address: &Address| {
            address.local.is_ipv4() && !address.secondary && subnets.contains(&(address.index, address.subnet))
        };
        let devs = sorted::set(gone.iter().filter(|(address, ..)| leaves_some(address)).map(|(_, dev, _)| *dev));
        let promoting = promoting(devs, desired, observed)?;
        for (address, dev, inet) in gone {
            let promote = leaves_some(address) && !promoting.contains(dev);
            let change = Change::Address(Op::Delete(IfAddress { dev: dev.clone(), inet, promote }));
            let reason = "added by node-fixer, and no longer declared";
            let notes = self.owner.entry(address).map(taken_back).unwrap_or_default();
            plan.removals.push(Step { notes, ..Step::new(change, reason) });
        }
        Ok(())
    }

    /// The new ledger: what still exists, and what is added.
    fn noted(&self, ledger: &[AddedAddress], added: &[AddedAddress]) -> Vec<AddedAddress> {
        let again = sorted::set(added.iter().map(|new| (&*new.dev, new.address)));
        let still = self.ours().filter_map(|address| self.owner.entry(address));
        let still = sorted::set(still.map(|entry| (&*entry.dev, entry.address)));
        let stays = |entry: &&AddedAddress| {
            let key = (&*entry.dev, entry.address);
            still.contains(&key) && !again.contains(&key)
        };
        ledger.iter().filter(stays).chain(added).cloned().collect()
    }
}

fn addition(dev: &IfName, inet: IpInet) -> Change {
    Change::Address(Op::Add(IfAddress { dev: dev.clone(), inet, promote: false }))
}

fn add(dev: &IfName, inet: IpInet) -> Step {
    let notes = vec![(When::Existed, Note::Ledger(LedgerNote::NotAdded(dev.clone(), inet)))];
    Step { notes, ..Step::new(addition(dev, inet), "missing") }
}

/// The interfaces on which the next IPv4 address of a subnet remains when the first one is deleted, once the sysctls
/// are as declared.
fn promoting<'a>(
    devs: BTreeSet<&'a IfName>,
    desired: &Config,
    observed: &Observed,
) -> Result<BTreeSet<&'a IfName>, Gap> {
    if devs.is_empty() {
        return Ok(devs);
    }
    let declared = forecast::sysctls(desired, observed)?;
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

/// The ledger forgets deleted addresses. If the deletion is taken back, they are noted again, unless another program
/// has added them meanwhile.
fn taken_back(entry: &AddedAddress) -> Vec<(When, Note)> {
    let again = (When::TakenBack, Note::Ledger(LedgerNote::AddedAgain(entry.clone())));
    let of_others = IfName::new(entry.dev.as_bytes())
        .map(|dev| (When::Returned, Note::Ledger(LedgerNote::NotAdded(dev, entry.address))));
    [again].into_iter().chain(of_others).collect()
}

fn is_inet(address: &Address, inet: IpInet) -> bool {
    (address.local, address.length, address.has_peer) == (inet.address(), inet.network_length(), false)
}

/// Text read from YAML is UTF-8.
fn text(dev: &IfName) -> String {
    String::from_utf8_lossy(dev.as_bytes()).into_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::history::memory::Kind;
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
            (
                "no interface, reported once",
                "addresses: [{dev: eth9, address: 10.0.0.1-10.0.0.9}]",
                "",
                vec![],
                vec![],
                1,
            ),
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
                "the first of a subnet with one of node-fixer's",
                "{}",
                "link 3 eth1 10.0.0.1/24=171 10.0.0.2/24=171,secondary",
                vec![],
                vec!["del 10.0.0.2/24 dev eth1", "del 10.0.0.1/24 dev eth1"],
                0,
            ),
        ] {
            let plan = Model::new(node).plan_section("addresses", &desired(yaml));
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
            let plan = node.plan_section("addresses", &desired("{}"));
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
            assert_eq!(node.plan_section("addresses", &desired("{}")).removals.len(), removals, "{case}");
        }
    }

    #[test]
    fn where_marks_are_kept_the_ledger_is_not_believed() {
        let mut node = Model::new("link 1 lo 127.0.0.1/8=1 127.0.1.1/32");
        node.addresses[1].created = TEN;
        node.ledger.addresses.push(entry("lo", "127.0.1.1/32", TEN));
        assert_eq!(node.plan_section("addresses", &desired("{}")).removals, []);
    }

    #[test]
    fn the_ledger_is_written_before_an_address_goes_in_and_forgets_what_is_gone() {
        let mut node = Model::new("link 1 lo");
        node.recall.awake = TEN;
        node.ledger.addresses.push(entry("lo", "127.0.1.9/32", Duration::ZERO));
        let wish = desired("addresses: [{dev: lo, address: 127.0.1.1}]");
        let first = node.plan_section("addresses", &wish);
        let noted = vec![entry("lo", "127.0.1.1/32", TEN)];
        assert_eq!(
            first.remember,
            [Note::Made(Kind::Addresses, true), Note::Ledger(LedgerNote::Addresses(noted.clone()))]
        );
        first.steps.iter().for_each(|step| node.apply(&step.change));
        node.ledger.addresses = noted;
        node.recall.memory.take(Note::Made(Kind::Addresses, true), Duration::ZERO);
        assert_eq!(node.plan_section("addresses", &wish), Plan::default());
    }
}
