//! The packets from a masqueraded source and their replies: their interfaces, and which conditions of a rule they meet.

use std::collections::{BTreeMap, BTreeSet};

use cidr::{IpCidr, IpInet};

use super::super::facts::Facts;
use crate::model::masquerade::{Condition, FilterRule, Interface, Masquerade, state};
use crate::model::{Family, IfName, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN, covers, family_of};
use crate::observed::{Gap, SeenRule};
use crate::sorted;
use crate::topology::links_of;

const TCP: u8 = 6;
/// `IPS_DST_NAT`: the destination of neither packet was translated.
const DST_NAT: u32 = 1 << 5;

/// The interfaces, and what is or will be connected to them.
pub struct Attached<'a> {
    by_subnet: BTreeMap<IpCidr, BTreeSet<&'a IfName>>,
    names: BTreeMap<u32, &'a IfName>,
    indexes: BTreeMap<&'a IfName, u32>,
}

impl<'a> Attached<'a> {
    pub fn of(facts: &'a Facts) -> Result<Attached<'a>, Gap> {
        let names = facts.names()?;
        let live = facts.observed.addresses()?.iter();
        let live = live.filter_map(|address| Some((*names.get(&address.index)?, address.subnet)));
        let mut by_subnet: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (name, subnet) in live.chain(facts.desired.all_addresses().map(|(name, inet)| (name, inet.network()))) {
            by_subnet.entry(subnet).or_default().insert(name);
        }
        let indexes = sorted::map(names.iter().map(|(index, name)| (*name, *index)));
        Ok(Attached { by_subnet, names, indexes })
    }

    fn end(&self, names: impl IntoIterator<Item = &'a IfName>) -> Behind {
        names.into_iter().map(|name| (name.clone(), self.indexes.get(name).copied())).collect()
    }

    /// Whether all of this is connected to interfaces other than these.
    fn are_elsewhere(&self, prefix: &IpCidr, outside: &Behind) -> bool {
        let wider = (0..=prefix.network_length()).filter_map(|length| IpInet::new(prefix.first_address(), length).ok());
        let links = wider.filter_map(|inet| self.by_subnet.get(&inet.network())).flatten();
        links.into_iter().any(|name| !outside.iter().any(|(out, _)| out == *name))
    }
}

/// The interfaces that may lead to a prefix, with their indexes; none if unknown.
pub type Behind = Vec<(IfName, Option<u32>)>;

/// The path of the packets from a masqueraded source.
pub struct Way<'a> {
    pub source: IpCidr,
    pub family: Family,
    inside: Behind,
    pub outside: Behind,
    links: &'a Attached<'a>,
}

impl<'a> Way<'a> {
    pub fn of(wish: &'a Masquerade, links: &'a Attached<'a>, facts: &Facts) -> Result<Way<'a>, Gap> {
        let (source, family) = (wish.source, family_of(&wish.source));
        let outside = match &wish.out {
            Some(out) => links.end([out]),
            None => links.end(ways_out(wish, links, facts)?),
        };
        let carriers = links.by_subnet.iter().filter(|(subnet, _)| overlap(subnet, &source));
        let mut inside = links.end(sorted::set(carriers.flat_map(|(_, names)| names).copied()));
        if inside.is_empty() {
            inside = links.end(&wish.except_out);
        }
        Ok(Way { source, family, inside, outside, links })
    }
}

/// The interfaces of the default routes that the source may use; none if a rule cannot be evaluated.
fn ways_out<'a>(wish: &Masquerade, links: &Attached<'a>, facts: &Facts) -> Result<Vec<&'a IfName>, Gap> {
    let family = family_of(&wish.source);
    let of_family = |seen: &&SeenRule| seen.rule.family == family;
    let mut tables = sorted::set([(family, TABLE_MAIN)]);
    for rule in facts.observed.rules()?.iter().filter(of_family) {
        match rule.lookup() {
            None => return Ok(Vec::new()),
            Some(rule) if matches!(rule.table, TABLE_LOCAL | TABLE_DEFAULT) => {}
            Some(rule) if rule.selector.from.is_none_or(|from| overlap(&from, &wish.source)) => {
                tables.insert((family, rule.table));
            }
            Some(_) => {}
        }
    }
    let tables = facts.tables(&tables)?;
    let defaults = tables.into_values().flatten().filter(|route| route.to.network_length() == 0);
    Ok(links_of(defaults).into_iter().filter_map(|index| links.names.get(&index).copied()).collect())
}

/// One of the two packets.
pub struct MasqueradedPacket<'a> {
    pub way: &'a Way<'a>,
    pub reply: bool,
    /// Whether it was routed already.
    pub forward: bool,
}

impl MasqueradedPacket<'_> {
    /// Whether it meets all of them; `None`: perhaps.
    pub fn meets(&self, rule: &FilterRule) -> Option<bool> {
        let mut all = Some(true);
        for condition in &rule.conditions {
            match self.is(condition) {
                Some(false) => return Some(false),
                Some(true) => {}
                None => all = None,
            }
        }
        all
    }

    fn is(&self, condition: &Condition) -> Option<bool> {
        let Way { source, family, inside, outside, links } = self.way;
        let (from, to) = if self.reply { (outside, inside) } else { (inside, outside) };
        let within = |prefix: &IpCidr| {
            let whole = covers(prefix, source);
            (whole || !overlap(prefix, source)).then_some(whole)
        };
        let beyond = |prefix: &IpCidr| match prefix.first_address() {
            _ if prefix.network_length() == 0 => Some(true),
            first if first.is_multicast() || first.is_loopback() => Some(false),
            _ if covers(source, prefix) || links.are_elsewhere(prefix, outside) => Some(false),
            _ => None,
        };
        let (met, not) = match condition {
            Condition::Family(it) => (Some(it == family), false),
            Condition::In(link, not) => (by(from, link), *not),
            Condition::From(prefix, not) => (if self.reply { beyond(prefix) } else { within(prefix) }, *not),
            Condition::Protocol(it, not) => (Some(*it == TCP), *not),
            // Before routing, when the translated address is not restored yet, this is unknown.
            _ if !self.forward => (None, false),
            Condition::Out(link, not) => (by(to, link), *not),
            Condition::To(prefix, not) => (if self.reply { within(prefix) } else { beyond(prefix) }, *not),
            Condition::State(states, not) => {
                let its = if self.reply { state::ESTABLISHED } else { state::NEW };
                (Some(states & its != 0), *not)
            }
            Condition::Status(DST_NAT, not) => (Some(false), *not),
            Condition::Status(..) | Condition::Other => (None, false),
        };
        met.map(|met| met != not)
    }
}

/// Whether what is behind these interfaces passes this one; `None`: perhaps.
fn by(end: &Behind, link: &Interface) -> Option<bool> {
    let is = |(name, index): &(IfName, Option<u32>)| link.is(name, *index);
    match end.iter().filter(|it| is(it)).count() {
        _ if end.is_empty() => None,
        0 => Some(false),
        all if all == end.len() => Some(true),
        _ => None,
    }
}

fn overlap(a: &IpCidr, b: &IpCidr) -> bool {
    covers(a, b) || covers(b, a)
}
