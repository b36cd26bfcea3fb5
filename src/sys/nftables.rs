//! Looks at nftables, over netlink: our own table, and the chains of others that drop what is forwarded. What iptables
//! writes through nftables (iptables-nft) is seen here, what the old iptables (iptables-legacy) holds is not. It is
//! written by the program nft.
//!
//! Why nft, and with its own language: it is what administrators have, know and debug with, and what a dry run prints is
//! then word for word what a run has it read. Its JSON would need an nft that was built with it, and the crate
//! nftables, which is a model of that JSON, runs nft without a limit of time. To write rules over netlink ourselves
//! would save the program, and cost a compiler of rules into expressions that is nobody's trade here.
//!
//! A look takes several dumps. They count only together: the number of the generation must be the same before and after.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cidr::IpCidr;
use nix::errno::Errno;
use rtnetlink::packet_core::Emitable;

use super::netlink::{Attributes, Netlink, NetlinkError, attributes, undecodable};
use crate::nat::{CHAIN, Condition, Conditions, ForwardDrop, ForwardRule, Name, PRIORITY, SeenNat, SeenTable, TABLE};
use crate::net::Family;

/// So many ways through the chains of a table are told apart.
const MOST_WAYS: usize = 500;
/// How often a look is taken anew that changes fell into.
const TRIES: u32 = 5;

// linux/netfilter/nfnetlink.h and nf_tables.h
const SUBSYSTEM: u16 = 10 << 8;
const GETTABLE: u16 = SUBSYSTEM | 1;
const GETCHAIN: u16 = SUBSYSTEM | 4;
const GETRULE: u16 = SUBSYSTEM | 7;
const GETGEN: u16 = SUBSYSTEM | 16;
/// struct nfgenmsg
const HEADER: usize = 4;
const UNSPEC: u8 = 0;
const INET: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
const FORWARD: u32 = 2;
const POSTROUTING: u32 = 4;
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
const DORMANT: u32 = 1;

/// Our table.
pub fn nat(netlink: &mut Option<Netlink>) -> Result<SeenNat, NetlinkError> {
    match look(netlink, table) {
        // A socket of this kind, or what is behind it, is not there, and was not to be had as a module.
        Err(NetlinkError::Refused { errno, .. } | NetlinkError::Failed(errno))
            if matches!(errno, Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EINVAL | Errno::EOPNOTSUPP) =>
        {
            Ok(SeenNat::Missing(errno.desc().into()))
        }
        Err(NetlinkError::Refused { errno: Errno::EPERM, .. }) => Ok(SeenNat::Hidden),
        other => other.map(SeenNat::Table),
    }
}

/// The chains of others that drop what is forwarded, by their policy, by a rule at their end, or by one that names it.
pub fn forward_drops(netlink: &mut Option<Netlink>) -> Result<Vec<ForwardDrop>, NetlinkError> {
    look(netlink, |netlink| {
        let chains = netlink.dump(GETCHAIN, &Request::new(UNSPEC), |message| chain(message).map(Some))?;
        let mut drops = Vec::new();
        for base in chains.iter().filter(|chain| chain.hook.as_ref().is_some_and(|hook| hook.number == FORWARD)) {
            let (name, families): (_, &[_]) = match base.family {
                INET if base.table == TABLE.as_bytes() => continue,
                INET => ("inet", &[Family::V4, Family::V6]),
                IPV4 => ("ip", &[Family::V4]),
                IPV6 => ("ip6", &[Family::V6]),
                _ => continue,
            };
            let rules = rules_of(netlink, base.family, &base.table)?;
            let beside: Vec<&Chain> = chains.iter().filter(|chain| chain.is_in(base.family, &base.table)).collect();
            for of in families {
                drops.extend(Ruleset::new(&rules, *of).decides(base, &beside).map(|(rules, at_end)| ForwardDrop {
                    of: *of,
                    family: name,
                    table: String::from_utf8_lossy(&base.table).into_owned(),
                    chain: String::from_utf8_lossy(&base.name).into_owned(),
                    docker_user: beside.iter().any(|chain| chain.name == b"DOCKER-USER"),
                    rules,
                    at_end,
                }));
            }
        }
        Ok(drops)
    })
}

/// Takes a look that no change fell into.
fn look<T>(
    netlink: &mut Option<Netlink>,
    once: impl Fn(&mut Netlink) -> Result<T, NetlinkError>,
) -> Result<T, NetlinkError> {
    let netlink = match netlink {
        Some(netlink) => netlink,
        None => netlink.insert(Netlink::open_netfilter()?),
    };
    for _ in 0..TRIES {
        let before = generation(netlink)?;
        let seen = once(netlink)?;
        if generation(netlink)? == before {
            return Ok(seen);
        }
    }
    Err(NetlinkError::Interrupted)
}

fn generation(netlink: &mut Netlink) -> Result<u32, NetlinkError> {
    let mut number = None;
    netlink.get(GETGEN, &Request::new(UNSPEC), &mut |_, message| {
        number = find(attributes(message, HEADER)?, 1)?.map(big_endian).transpose()?;
        Ok(())
    })?;
    number.ok_or_else(|| undecodable("the generation of nftables has no number"))
}

fn table(netlink: &mut Netlink) -> Result<Option<SeenTable>, NetlinkError> {
    let mut awake = false;
    let got = netlink.get(GETTABLE, &Request::new(INET).with(1, TABLE.as_bytes()), &mut |_, message| {
        let flags = find(attributes(message, HEADER)?, 2)?.map_or(Ok(0), big_endian)?;
        awake = flags & DORMANT == 0;
        Ok(())
    });
    match got {
        Err(NetlinkError::Refused { errno: Errno::ENOENT, .. }) => return Ok(None),
        other => other?,
    }
    let chains = netlink.dump(GETCHAIN, &Request::new(INET), |message| {
        let chain = chain(message)?;
        Ok(chain.is_in(INET, TABLE.as_bytes()).then_some(chain))
    })?;
    let is_ours = |chain: &Chain| {
        let hook = Hook { number: POSTROUTING, priority: PRIORITY, policy: ACCEPT };
        chain.name == CHAIN.as_bytes() && chain.kind == b"nat" && chain.hook == Some(hook)
    };
    let rules = rules_of(netlink, INET, TABLE.as_bytes())?;
    let masquerade = rules.iter().all(|rule| matches!(rule.verdict, Verdict::Masquerade));
    let whole = awake && masquerade && matches!(&*chains, [chain] if is_ours(chain));
    Ok(Some(SeenTable { whole, rules: rules.into_iter().map(|rule| rule.conditions).collect() }))
}

/// The rules of one table that packets of one family may meet, by chain.
struct Ruleset<'a> {
    of: Family,
    chains: BTreeMap<&'a [u8], Vec<&'a Rule>>,
}

impl<'a> Ruleset<'a> {
    fn new(rules: &'a [Rule], of: Family) -> Ruleset<'a> {
        let other = if of == Family::V4 { Family::V6 } else { Family::V4 };
        let mut chains: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for rule in rules.iter().filter(|rule| !rule.conditions.contains(&Condition::Family(other))) {
            chains.entry(&*rule.chain).or_default().push(rule);
        }
        Ruleset { of, chains }
    }

    fn rules(&self, chain: &[u8]) -> &[&'a Rule] {
        self.chains.get(chain).map_or(&[], |rules| rules)
    }

    /// Whether every packet of the family meets the conditions.
    fn is_for_all(&self, conditions: &[Condition]) -> bool {
        conditions.iter().all(|condition| *condition == Condition::Family(self.of))
    }

    /// Whether what none of its rules accepts, sends elsewhere or back is dropped at the end of a chain. A chain that
    /// was asked before has said no.
    fn drops(&self, chain: &'a [u8], asked: &mut BTreeSet<&'a [u8]>) -> bool {
        if !asked.insert(chain) {
            return false;
        }
        for rule in self.rules(chain).iter().filter(|rule| self.is_for_all(&rule.conditions)) {
            match &rule.verdict {
                Verdict::Drop => return true,
                Verdict::Accept | Verdict::Return => return false,
                Verdict::Chain(next, goto) => match self.drops(next, asked) {
                    drops if drops || *goto => return drops,
                    _ => {}
                },
                Verdict::Map | Verdict::Masquerade | Verdict::Other => {}
            }
        }
        false
    }

    /// Whether a rule may be one that drops just what comes from somewhere. It spares the way through all others.
    fn names_some(&self) -> bool {
        let names = |it: &Condition| matches!(it, Condition::From(_, false) | Condition::In(_, false));
        let drops = |rule: &Rule| matches!(rule.verdict, Verdict::Drop | Verdict::Chain(..));
        let mut rules = self.chains.values().flatten();
        rules.any(|rule| drops(rule) && rule.is_clear() && rule.conditions.iter().any(names))
    }

    /// The rules by which a base chain accepts and drops, there or where it leads to, and whether it drops what none
    /// of them accepts; `None` if it drops nothing.
    fn decides(&self, base: &'a Chain, beside: &[&'a Chain]) -> Option<(Vec<ForwardRule>, bool)> {
        let drops = |chain| self.drops(chain, &mut BTreeSet::new());
        let by_policy = base.hook.as_ref().is_some_and(|hook| hook.policy == DROP);
        let at_end = by_policy || drops(&base.name);
        if !at_end && !self.names_some() {
            return None;
        }
        let begin = Way { chain: &base.name, at: 0, back: !by_policy, sure: true, met: Vec::new() };
        let mut begun = BTreeSet::new();
        // The innermost last.
        let mut ways = vec![begin];
        let mut decide = Vec::new();
        while let Some(way) = ways.last_mut() {
            let Some(rule) = self.rules(way.chain).get(way.at) else {
                ways.pop();
                continue;
            };
            way.at += 1;
            let mut next: Vec<(&[u8], bool)> = Vec::new();
            let mut is_end = self.is_for_all(&rule.conditions);
            let all = || [&*way.met, &rule.conditions].concat();
            let passes = match &rule.verdict {
                Verdict::Accept => true,
                Verdict::Return => way.back,
                Verdict::Drop => {
                    let conditions = all();
                    // What is for all is said of the chain.
                    let is_one = way.sure && rule.is_clear() && !self.is_for_all(&conditions);
                    decide.extend(is_one.then_some(ForwardRule { accepts: false, conditions }));
                    false
                }
                Verdict::Chain(name, goto) => {
                    let drops = way.back && drops(name);
                    is_end &= *goto || drops;
                    next.push((name, way.back && (*goto || is_end)));
                    way.back && *goto && !drops
                }
                // Where a map leads is not told here: it may be anywhere.
                Verdict::Map => {
                    next.extend(beside.iter().filter(|it| it.hook.is_none()).map(|it| (&*it.name, false)));
                    true
                }
                Verdict::Masquerade | Verdict::Other => continue,
            };
            if passes {
                decide.push(ForwardRule { accepts: true, conditions: all() });
            }
            let is_plain = rule.is_clear() && begun.len() < MOST_WAYS;
            let sure = way.sure && is_plain && !matches!(rule.verdict, Verdict::Map);
            // What is not understood is not taken along: the rules ahead would count for nothing.
            let known = rule.conditions.iter().filter(|it| begun.len() < MOST_WAYS && is_clear(it));
            let met: Conditions = way.met.iter().chain(known).cloned().collect();
            // What leaves the chain here does not meet the rest of it.
            way.sure &= passes || !matches!(rule.verdict, Verdict::Return | Verdict::Chain(_, true));
            if is_end {
                ways.pop();
            }
            for (chain, back) in next.into_iter().rev() {
                if begun.insert((chain, back, met.clone())) {
                    ways.push(Way { chain, at: 0, back, sure, met: met.clone() });
                }
            }
        }
        Some((decide, at_end))
    }
}

/// A way through the chains, up to some rule.
struct Way<'a> {
    chain: &'a [u8],
    at: usize,
    /// Whether what comes back from the chain has passed the rule that drops.
    back: bool,
    /// Whether all that a packet met on the way is known.
    sure: bool,
    met: Conditions,
}

/// Whether it is a condition that is told in full.
fn is_clear(condition: &Condition) -> bool {
    !matches!(condition, Condition::Whence | Condition::Other)
}

impl Rule {
    fn is_clear(&self) -> bool {
        self.conditions.iter().all(is_clear)
    }
}

fn rules_of(netlink: &mut Netlink, family: u8, table: &[u8]) -> Result<Vec<Rule>, NetlinkError> {
    netlink.dump(GETRULE, &Request::new(family).with(1, table), |message| {
        // Old kernels do not filter.
        let rule = rule(message, family)?;
        let here = message.first() == Some(&family) && rule.table == table;
        Ok(here.then_some(rule))
    })
}

/// struct nfgenmsg and attributes.
struct Request(Vec<u8>);

impl Request {
    fn new(family: u8) -> Request {
        Request(vec![family, 0, 0, 0])
    }

    /// With an attribute that is a string.
    fn with(mut self, kind: u16, text: &[u8]) -> Request {
        let length = 4 + text.len() as u16 + 1;
        self.0.extend(length.to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(text);
        self.0.push(0);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

impl Emitable for Request {
    fn buffer_len(&self) -> usize {
        self.0.len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        if let Some(buffer) = buffer.get_mut(..self.0.len()) {
            buffer.copy_from_slice(&self.0);
        }
    }
}

struct Chain {
    family: u8,
    table: Vec<u8>,
    name: Vec<u8>,
    kind: Vec<u8>,
    /// Of a base chain.
    hook: Option<Hook>,
}

#[derive(PartialEq)]
struct Hook {
    number: u32,
    priority: i32,
    policy: u32,
}

impl Chain {
    fn is_in(&self, family: u8, table: &[u8]) -> bool {
        (self.family, &*self.table) == (family, table)
    }
}

fn chain(message: &[u8]) -> Result<Chain, NetlinkError> {
    let family = message.first().copied().unwrap_or(UNSPEC);
    let mut chain = Chain { family, table: Vec::new(), name: Vec::new(), kind: Vec::new(), hook: None };
    let (mut hook, mut policy) = (None, ACCEPT);
    for attribute in attributes(message, HEADER)? {
        match attribute? {
            (1, table) => chain.table = string(table),
            (3, name) => chain.name = string(name),
            (4, nested) => {
                let number = find(Attributes::nested(nested), 1)?.map(big_endian).transpose()?;
                let priority = find(Attributes::nested(nested), 2)?.map(big_endian).transpose()?;
                hook = number.zip(priority);
            }
            (5, value) => policy = big_endian(value)?,
            (7, kind) => chain.kind = string(kind),
            _ => {}
        }
    }
    chain.hook = hook.map(|(number, priority)| Hook { number, priority: priority.cast_signed(), policy });
    Ok(chain)
}

struct Rule {
    table: Vec<u8>,
    chain: Vec<u8>,
    conditions: Conditions,
    verdict: Verdict,
}

#[cfg_attr(test, derive(Debug, PartialEq))]
enum Verdict {
    Accept,
    Drop,
    Return,
    /// Goes on in another chain, and never comes back if it is a goto.
    Chain(Vec<u8>, bool),
    /// Whatever a map says.
    Map,
    Masquerade,
    Other,
}

fn rule(message: &[u8], family: u8) -> Result<Rule, NetlinkError> {
    let (mut table, mut chain) = (Vec::new(), Vec::new());
    let mut reading = Reading::of(family);
    for attribute in attributes(message, HEADER)? {
        match attribute? {
            (1, name) => table = string(name),
            (2, name) => chain = string(name),
            (4, expressions) => {
                for expression in Attributes::nested(expressions) {
                    reading.take(expression?.1)?;
                }
            }
            _ => {}
        }
    }
    Ok(Rule { table, chain, conditions: reading.conditions, verdict: reading.verdict })
}

/// What the expressions of a rule have come to so far.
struct Reading {
    /// Which family is told by now.
    family: Option<Family>,
    /// What was loaded into which register.
    registers: BTreeMap<u32, Loaded>,
    conditions: Conditions,
    /// Whether it changes something of the packet on the way.
    sets: bool,
    verdict: Verdict,
}

#[derive(Clone, Copy)]
enum Loaded {
    In,
    Out,
    NfProto,
    /// The beginning of the source address, and how many bits of it.
    Source(Family, u8),
    /// The number of an interface.
    Index,
    Other,
}

impl Reading {
    fn of(family: u8) -> Reading {
        let family = match family {
            IPV4 => Some(Family::V4),
            IPV6 => Some(Family::V6),
            _ => None,
        };
        Reading { family, registers: BTreeMap::new(), conditions: Vec::new(), sets: false, verdict: Verdict::Other }
    }

    fn take(&mut self, expression: &[u8]) -> Result<(), NetlinkError> {
        let kind = string(find(Attributes::nested(expression), 1)?.unwrap_or_default());
        let data = find(Attributes::nested(expression), 2)?.unwrap_or_default();
        let value = |attribute| find(Attributes::nested(data), attribute);
        let number = |attribute| value(attribute)?.map(big_endian).transpose().map(Option::unwrap_or_default);
        match &*kind {
            // From a register into the packet or what is known of it.
            b"meta" if value(3)?.is_some() => self.sets = true,
            b"payload" if value(5)?.is_some() => self.sets = true,
            b"meta" => {
                let loaded = match number(2)? {
                    4 | 5 => Loaded::Index,
                    6 => Loaded::In,
                    7 => Loaded::Out,
                    15 => Loaded::NfProto,
                    _ => Loaded::Other,
                };
                self.registers.insert(number(1)?, loaded);
            }
            b"payload" => {
                let loaded = self.payload(number(2)?, number(3)?, number(4)?);
                self.registers.insert(number(1)?, loaded);
            }
            b"bitwise" => {
                let part = |attribute| value(attribute)?.map(data_value).transpose();
                let as_is = |flipped: &[u8]| flipped.iter().all(|byte| *byte == 0);
                let loaded = match (self.loaded(number(1)?), part(4)?) {
                    (Loaded::Source(family, _), Some(mask)) if part(5)?.is_none_or(as_is) => {
                        prefix_length(mask).map_or(Loaded::Other, |length| Loaded::Source(family, length))
                    }
                    _ => Loaded::Other,
                };
                self.registers.insert(number(2)?, loaded);
            }
            b"cmp" => {
                let value = value(3)?.map(data_value).transpose()?.unwrap_or_default();
                let condition = self.compared(self.loaded(number(1)?), number(2)?, value);
                self.conditions.push(condition);
            }
            b"range" => self.conditions.push(self.loaded(number(1)?).vaguely()),
            b"lookup" => {
                self.conditions.push(self.loaded(number(2)?).vaguely());
                // Into the register of the verdict.
                if value(3)?.is_some() && number(3)? == 0 {
                    self.verdict = Verdict::Map;
                }
            }
            b"immediate" => {
                if let Some(verdict) = value(2)?.map(|data| find(Attributes::nested(data), 2)).transpose()?.flatten() {
                    self.verdict = read_verdict(verdict)?;
                } else {
                    self.registers.remove(&number(1)?);
                }
            }
            // Without attributes: those are of ports, or of how they are chosen.
            b"masq" if data.is_empty() && !self.sets => self.verdict = Verdict::Masquerade,
            b"reject" => self.verdict = Verdict::Drop,
            // A program decides, and may accept.
            b"queue" => self.verdict = Verdict::Accept,
            // Of iptables.
            b"target" => match value(1)?.map(string).as_deref() {
                Some(b"REJECT") => self.verdict = Verdict::Drop,
                Some(b"NFQUEUE") => self.verdict = Verdict::Accept,
                _ => self.conditions.push(Condition::Other),
            },
            b"counter" | b"log" => {}
            // What iptables writes a comment as.
            b"match" if value(1)?.is_some_and(|name| string(name) == b"comment") => {}
            _ => self.conditions.push(Condition::Other),
        }
        Ok(())
    }

    fn loaded(&self, register: u32) -> Loaded {
        self.registers.get(&register).copied().unwrap_or(Loaded::Other)
    }

    /// Part of the network header, if it is the source address or its beginning.
    fn payload(&self, base: u32, offset: u32, length: u32) -> Loaded {
        const NETWORK_HEADER: u32 = 1;
        let bits = u8::try_from(length.saturating_mul(8)).unwrap_or_default();
        match (base, offset, length) {
            (NETWORK_HEADER, 12, 1..=4) if self.family == Some(Family::V4) => Loaded::Source(Family::V4, bits),
            (NETWORK_HEADER, 8, 1..=16) if self.family == Some(Family::V6) => Loaded::Source(Family::V6, bits),
            _ => Loaded::Other,
        }
    }

    fn compared(&mut self, loaded: Loaded, operator: u32, value: &[u8]) -> Condition {
        let not = match operator {
            0 => false,
            1 => true,
            _ => return loaded.vaguely(),
        };
        match loaded {
            Loaded::In => Condition::In(name(value), not),
            Loaded::Out => Condition::Out(name(value), not),
            Loaded::NfProto => {
                let family = match value.first() {
                    Some(&IPV4) => Family::V4,
                    Some(&IPV6) => Family::V6,
                    _ => return Condition::Other,
                };
                if not {
                    return Condition::Other;
                }
                self.family = Some(family);
                Condition::Family(family)
            }
            Loaded::Source(family, length) => {
                prefix(family, value, length).map_or(Condition::Whence, |prefix| Condition::From(prefix, not))
            }
            Loaded::Index => Condition::Whence,
            Loaded::Other => Condition::Other,
        }
    }
}

impl Loaded {
    /// A condition about it that is not told in full.
    fn vaguely(self) -> Condition {
        match self {
            Loaded::In | Loaded::Out | Loaded::Source(..) | Loaded::Index => Condition::Whence,
            Loaded::NfProto | Loaded::Other => Condition::Other,
        }
    }
}

/// A name that ends in a zero is whole, one that does not is the beginning of many.
fn name(value: &[u8]) -> Name {
    Name { text: string(value), prefix: !value.contains(&0) }
}

fn prefix(family: Family, value: &[u8], length: u8) -> Option<IpCidr> {
    let mut bytes = [0; 16];
    bytes.get_mut(..value.len())?.copy_from_slice(value);
    let [a, b, c, d, ..] = bytes;
    let address = match family {
        Family::V4 => IpAddr::from([a, b, c, d]),
        Family::V6 => IpAddr::from(bytes),
    };
    IpCidr::new(address, length).ok()
}

/// How many bits of a mask are set, if they are its first ones.
fn prefix_length(mask: &[u8]) -> Option<u8> {
    let set: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
    let first: u32 = mask.iter().take_while(|byte| **byte == 0xff).map(|_| 8).sum();
    let rest = mask.get(first as usize / 8).map_or(0, |byte| byte.leading_ones());
    (set == first + rest).then(|| u8::try_from(set).ok()).flatten()
}

fn read_verdict(verdict: &[u8]) -> Result<Verdict, NetlinkError> {
    const JUMP: i32 = -3;
    const GOTO: i32 = -4;
    const RETURN: i32 = -5;
    let code = find(Attributes::nested(verdict), 1)?.map(big_endian).transpose()?.unwrap_or_default();
    let chain = find(Attributes::nested(verdict), 2)?.map(string);
    Ok(match (code.cast_signed(), chain) {
        (code @ (JUMP | GOTO), Some(chain)) => Verdict::Chain(chain, code == GOTO),
        (RETURN, _) => Verdict::Return,
        _ if code == ACCEPT => Verdict::Accept,
        _ if code == DROP => Verdict::Drop,
        _ => Verdict::Other,
    })
}

/// The value in NFTA_DATA_VALUE.
fn data_value(data: &[u8]) -> Result<&[u8], NetlinkError> {
    Ok(find(Attributes::nested(data), 1)?.unwrap_or_default())
}

fn find<'a>(mut attributes: Attributes<'a>, wanted: u16) -> Result<Option<&'a [u8]>, NetlinkError> {
    let found = attributes.find(|attribute| !matches!(attribute, Ok((kind, _)) if *kind != wanted));
    Ok(found.transpose()?.map(|(_, value)| value))
}

fn big_endian(value: &[u8]) -> Result<u32, NetlinkError> {
    let bytes = value.first_chunk().ok_or_else(|| undecodable("a number of nftables is too short"))?;
    Ok(u32::from_be_bytes(*bytes))
}

/// Up to the first zero.
fn string(value: &[u8]) -> Vec<u8> {
    value.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_is_a_prefix_or_none() {
        for (mask, length) in [
            (&[0xff, 0xf0, 0, 0][..], Some(12)),
            (&[0xff; 16], Some(128)),
            (&[0; 4], Some(0)),
            (&[0xff, 0, 0xff, 0], None),
            (&[0xf1], None),
        ] {
            assert_eq!(prefix_length(mask), length, "{mask:?}");
        }
    }

    #[test]
    fn verdicts_of_every_kind_are_read() {
        let expression = |kind: &str, data: &[u8]| {
            attribute_of(1, &[attribute_of(1, kind.as_bytes()), attribute_of(2, data)].concat())
        };
        let number = |kind, number: i32| attribute_of(kind, &number.to_be_bytes());
        let verdict = |code| {
            let verdict = attribute_of(2, &[number(1, code), attribute_of(2, b"next\0")].concat());
            expression("immediate\0", &[number(1, 0), attribute_of(2, &verdict)].concat())
        };
        let target = |name: &str| expression("target\0", &attribute_of(1, name.as_bytes()));
        for (case, expression, wanted, conditions) in [
            ("drop", verdict(0), Verdict::Drop, 0),
            ("accept", verdict(1), Verdict::Accept, 0),
            ("continue", verdict(-1), Verdict::Other, 0),
            ("jump", verdict(-3), Verdict::Chain(b"next".into(), false), 0),
            ("goto", verdict(-4), Verdict::Chain(b"next".into(), true), 0),
            ("return", verdict(-5), Verdict::Return, 0),
            ("reject", expression("reject\0", &number(1, 0)), Verdict::Drop, 0),
            ("a program may accept", expression("queue\0", &[]), Verdict::Accept, 0),
            ("-j REJECT", target("REJECT\0"), Verdict::Drop, 0),
            ("-j NFQUEUE", target("NFQUEUE\0"), Verdict::Accept, 0),
            ("-j LOG", target("LOG\0"), Verdict::Other, 1),
            ("masquerade", expression("masq\0", &[]), Verdict::Masquerade, 0),
            ("masquerade random", expression("masq\0", &number(1, 4)), Verdict::Other, 1),
        ] {
            let rule = rule(&[&[INET, 0, 0, 0], &*attribute_of(4, &expression)].concat(), INET).unwrap();
            assert_eq!((rule.verdict, rule.conditions.len()), (wanted, conditions), "{case}");
        }
    }

    /// Many ways through many chains are neither walked for ever nor forgotten.
    #[test]
    fn no_number_of_ways_is_too_many() {
        let name = |level: u32| format!("c{level:02}").into_bytes();
        let out = |level: u32, side: bool| {
            Condition::Out(Name { text: format!("eth{level}").into_bytes(), prefix: side }, false)
        };
        let rule = |chain, conditions, verdict| Rule { table: Vec::new(), chain, conditions, verdict };
        let jump = |level, side| rule(name(level), vec![out(level, side)], Verdict::Chain(name(level + 1), false));
        let mut rules: Vec<Rule> = (0..15).flat_map(|level| [jump(level, false), jump(level, true)]).collect();
        rules.push(rule(name(0), vec![], Verdict::Drop));
        rules.push(rule(name(15), vec![], Verdict::Accept));
        let hook = Some(Hook { number: FORWARD, priority: 0, policy: ACCEPT });
        let base = Chain { family: INET, table: Vec::new(), name: name(0), kind: Vec::new(), hook };
        let (rules, at_end) = Ruleset::new(&rules, Family::V4).decides(&base, &[]).unwrap();
        let accepts = rules.iter().filter(|rule| rule.accepts).count();
        assert!(at_end && (1..2 * MOST_WAYS).contains(&accepts), "{accepts}");
    }

    fn attribute() -> impl proptest::strategy::Strategy<Value = Vec<u8>> {
        use proptest::prelude::*;
        let leaf = (0_u8..9, prop_oneof![Just(b"meta\0".to_vec()), prop::collection::vec(any::<u8>(), 0..9)])
            .prop_map(|(kind, value)| attribute_of(kind, &value));
        leaf.prop_recursive(5, 40, 4, |inner| {
            (0_u8..9, prop::collection::vec(inner, 0..4)).prop_map(|(kind, all)| attribute_of(kind, &all.concat()))
        })
    }

    fn attribute_of(kind: u8, value: &[u8]) -> Vec<u8> {
        let mut bytes = (4 + value.len() as u16).to_ne_bytes().to_vec();
        bytes.extend([kind, 0]);
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    proptest::proptest! {
        #[test]
        fn no_message_makes_it_panic(
            bytes in proptest::collection::vec(0_u8.., 0..64),
            attributes in proptest::collection::vec(attribute(), 0..5),
            family in proptest::sample::select(vec![INET, IPV4, IPV6]),
        ) {
            let attributes = [&[family, 0, 0, 0][..], &attributes.concat()].concat();
            for message in [&bytes, &attributes] {
                let _ = (rule(message, family), chain(message));
            }
        }
    }
}
