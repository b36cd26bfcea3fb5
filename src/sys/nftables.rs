//! Looks at nftables, over netlink: a run at our own table, `doctor` also at the tables of others that filter what is
//! forwarded. What iptables writes through nftables (iptables-nft) is seen here, what the old iptables (iptables-legacy)
//! holds is not. Our table is written by the program nft.
//!
//! Why nft, and with its own language: it is what administrators have, know and debug with, and what a dry run prints is
//! then word for word what a run has it read. Its JSON would need an nft that was built with it, and the crate
//! nftables, which is a model of that JSON, runs nft without a limit of time. To write rules over netlink ourselves
//! would save the program, and cost a compiler of rules into expressions that is nobody's trade here.
//!
//! A look takes several dumps. They count only together: the number of the generation must be the same before and after.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cidr::IpCidr;
use nix::errno::Errno;
use rtnetlink::packet_core::Emitable;

use super::netlink::{Attributes, Netlink, NetlinkError, attributes, undecodable};
use crate::nat::{BaseChain, CHAIN, Condition, Conditions, FilterRule, FilterTable, Interface, PRIORITY, SeenNat};
use crate::nat::{SeenTable, TABLE, Verdict};
use crate::net::Family;

/// How often a look is taken anew that changes fell into.
const TRIES: u32 = 5;

// linux/netfilter/nfnetlink.h and nf_tables.h
const SUBSYSTEM: u16 = 10 << 8;
const GETTABLE: u16 = SUBSYSTEM | 1;
const GETCHAIN: u16 = SUBSYSTEM | 4;
const GETRULE: u16 = SUBSYSTEM | 7;
const GETSETELEM: u16 = SUBSYSTEM | 13;
const GETGEN: u16 = SUBSYSTEM | 16;
/// struct nfgenmsg
const HEADER: usize = 4;
const UNSPEC: u8 = 0;
const INET: u8 = 1;
const IPV4: u8 = 2;
const IPV6: u8 = 10;
const PREROUTING: u32 = 0;
const FORWARD: u32 = 2;
const POSTROUTING: u32 = 4;
const DROP: u32 = 0;
const ACCEPT: u32 = 1;
const DORMANT: u32 = 1;
// linux/netfilter/xt_conntrack.h and nf_conntrack_common.h
const DNAT: u32 = 1 << 7;
const IPS_DST_NAT: u32 = 1 << 5;

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

/// The tables of others that filter what is forwarded.
pub fn filters(netlink: &mut Option<Netlink>) -> Result<Vec<FilterTable>, NetlinkError> {
    look(netlink, |netlink| {
        let chains = netlink.dump(GETCHAIN, &Request::new(UNSPEC), |message| chain(message).map(Some))?;
        let mut tables: BTreeMap<(u8, Vec<u8>), Vec<Chain>> = BTreeMap::new();
        for chain in chains.into_iter().filter(|it| !it.is_in(INET, TABLE.as_bytes())) {
            tables.entry((chain.family, chain.table.clone())).or_default().push(chain);
        }
        let filtering = tables.into_iter().filter(|(_, chains)| chains.iter().any(Chain::filters));
        filtering.filter_map(|(key, chains)| filter_table(netlink, key, chains).transpose()).collect()
    })
}

fn filter_table(
    netlink: &mut Netlink,
    (family, name): (u8, Vec<u8>),
    chains: Vec<Chain>,
) -> Result<Option<FilterTable>, NetlinkError> {
    let shown = match family {
        INET => "inet",
        IPV4 => "ip",
        IPV6 => "ip6",
        _ => return Ok(None),
    };
    let mut table = FilterTable {
        family: shown,
        name: String::from_utf8_lossy(&name).into(),
        bases: Vec::new(),
        chains: BTreeMap::new(),
    };
    for chain in chains {
        if let Some(hook) = chain.hook.as_ref().filter(|_| chain.filters()) {
            let (forward, drops) = (hook.number == FORWARD, hook.policy == DROP);
            table.bases.push(BaseChain { name: chain.name.clone(), forward, drops });
        }
    }
    // Those of the chains that they lead to, and no others: a table may have thousands for something else.
    let mut ahead: Vec<Vec<u8>> = table.bases.iter().map(|base| base.name.clone()).collect();
    let mut states = BTreeMap::new();
    while let Some(chain) = ahead.pop() {
        if table.chains.contains_key(&chain) {
            continue;
        }
        let mut rules = Vec::new();
        for Rule { mut conditions, verdict, sets, .. } in rules_of(netlink, family, &name, Some(&chain))? {
            for (at, set, not) in sets {
                let known = match states.get(&set) {
                    Some(known) => *known,
                    None => states_in(netlink, family, &name, &set)?,
                };
                states.insert(set, known);
                conditions.get_mut(at).into_iter().for_each(|condition| *condition = Condition::State(known, not));
            }
            ahead.extend(if let Verdict::Chain(next, _) = &verdict { Some(next.clone()) } else { None });
            rules.push(FilterRule { conditions, verdict });
        }
        table.chains.insert(chain, rules);
    }
    Ok(Some(table))
}

/// The states of connections that a set has in it.
fn states_in(netlink: &mut Netlink, family: u8, table: &[u8], set: &[u8]) -> Result<u32, NetlinkError> {
    let mut states = 0;
    let request = Request::new(family).with(1, table).with(2, set);
    let of_lists = netlink.dump(GETSETELEM, &request, |message| {
        let elements = find(attributes(message, HEADER)?, 3)?.unwrap_or_default();
        let mut states = 0;
        for element in Attributes::nested(elements) {
            let key = find(Attributes::nested(element?.1), 1)?.unwrap_or_default();
            states |= data_value(key)?.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        }
        Ok(Some(states))
    })?;
    of_lists.into_iter().for_each(|more| states |= more);
    Ok(states)
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
    // How many chains, sets and other objects it has. To list chains would list those of all other tables as well.
    let (mut awake, mut objects) = (false, 0);
    let got = netlink.get(GETTABLE, &Request::new(INET).with(1, TABLE.as_bytes()), &mut |_, message| {
        let number = |kind| find(attributes(message, HEADER)?, kind)?.map_or(Ok(0), big_endian);
        (awake, objects) = (number(2)? & DORMANT == 0, number(3)?);
        Ok(())
    });
    match got {
        Err(NetlinkError::Refused { errno: Errno::ENOENT, .. }) => return Ok(None),
        other => other?,
    }
    let mut found = None;
    let ours = Request::new(INET).with(1, TABLE.as_bytes()).with(3, CHAIN.as_bytes());
    let got = netlink.get(GETCHAIN, &ours, &mut |_, message| {
        found = Some(chain(message)?);
        Ok(())
    });
    match got {
        Err(NetlinkError::Refused { errno: Errno::ENOENT, .. }) => {}
        other => other?,
    }
    let hook = Some(Hook { number: POSTROUTING, priority: PRIORITY, policy: ACCEPT });
    let has_chain = objects == 1 && found.is_some_and(|chain| chain.kind == b"nat" && chain.hook == hook);
    let rules = rules_of(netlink, INET, TABLE.as_bytes(), None)?;
    let masquerade = rules.iter().all(|rule| rule.verdict == Verdict::Masquerade);
    let whole = awake && has_chain && masquerade;
    Ok(Some(SeenTable { whole, rules: rules.into_iter().map(|rule| rule.conditions).collect() }))
}

/// The rules of a table, or of one chain of it.
fn rules_of(netlink: &mut Netlink, family: u8, table: &[u8], chain: Option<&[u8]>) -> Result<Vec<Rule>, NetlinkError> {
    let request = Request::new(family).with(1, table);
    let request = if let Some(chain) = chain { request.with(2, chain) } else { request };
    netlink.dump(GETRULE, &request, |message| {
        // Old kernels do not filter.
        let rule = rule(message, family)?;
        let here = message.first() == Some(&family) && rule.table == table && chain.is_none_or(|it| rule.chain == it);
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
    /// Whether the kernel calls it for what is forwarded, and it may drop.
    fn filters(&self) -> bool {
        self.kind != b"nat" && self.hook.as_ref().is_some_and(|hook| matches!(hook.number, PREROUTING | FORWARD))
    }

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
    /// Conditions that are about a set of states: which one, of which set, and whether the state is not in it.
    sets: Vec<(usize, Vec<u8>, bool)>,
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
    let Reading { conditions, verdict, sets, .. } = reading;
    Ok(Rule { table, chain, conditions, verdict, sets })
}

/// What the expressions of a rule have come to so far.
struct Reading {
    /// Which family is told by now.
    family: Option<Family>,
    /// What was loaded into which register.
    registers: BTreeMap<u32, Loaded>,
    conditions: Conditions,
    /// Whether it changes something of the packet on the way.
    alters: bool,
    verdict: Verdict,
    sets: Vec<(usize, Vec<u8>, bool)>,
}

#[derive(Clone, Copy)]
enum Loaded {
    In,
    Out,
    InIndex,
    OutIndex,
    NfProto,
    Protocol,
    /// The beginning of an address, how many bits of it, and whether it is the source.
    Address(Family, u8, bool),
    /// These bits of the state.
    State(u32),
    /// These bits of the status.
    Status(u32),
    Other,
}

impl Reading {
    fn of(family: u8) -> Reading {
        let family = match family {
            IPV4 => Some(Family::V4),
            IPV6 => Some(Family::V6),
            _ => None,
        };
        let (conditions, sets) = (Vec::new(), Vec::new());
        Reading { family, registers: BTreeMap::new(), conditions, alters: false, verdict: Verdict::Continue, sets }
    }

    fn take(&mut self, expression: &[u8]) -> Result<(), NetlinkError> {
        let kind = string(find(Attributes::nested(expression), 1)?.unwrap_or_default());
        let data = find(Attributes::nested(expression), 2)?.unwrap_or_default();
        let value = |attribute| find(Attributes::nested(data), attribute);
        let number = |attribute| value(attribute)?.map(big_endian).transpose().map(Option::unwrap_or_default);
        match &*kind {
            // From a register into the packet or what is known of it.
            b"meta" if value(3)?.is_some() => self.alters = true,
            b"payload" if value(5)?.is_some() => self.alters = true,
            b"ct" if value(4)?.is_some() => self.alters = true,
            b"meta" => {
                let loaded = match number(2)? {
                    4 => Loaded::InIndex,
                    5 => Loaded::OutIndex,
                    6 => Loaded::In,
                    7 => Loaded::Out,
                    15 => Loaded::NfProto,
                    16 => Loaded::Protocol,
                    _ => Loaded::Other,
                };
                self.registers.insert(number(1)?, loaded);
            }
            b"ct" => {
                let loaded = match number(2)? {
                    0 => Loaded::State(u32::MAX),
                    2 => Loaded::Status(u32::MAX),
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
                let loaded = match (part(4)?, part(5)?) {
                    (Some(mask), flipped) if flipped.is_none_or(as_is) => self.loaded(number(1)?).masked(mask),
                    _ => Loaded::Other,
                };
                self.registers.insert(number(2)?, loaded);
            }
            b"cmp" => {
                let value = value(3)?.map(data_value).transpose()?.unwrap_or_default();
                let condition = self.compared(self.loaded(number(1)?), number(2)?, value);
                self.conditions.push(condition.unwrap_or(Condition::Other));
            }
            b"lookup" => {
                let map = value(3)?.is_some();
                if let (Loaded::State(u32::MAX), false) = (self.loaded(number(2)?), map) {
                    let set = value(1)?.map(string).unwrap_or_default();
                    self.sets.push((self.conditions.len(), set, number(5)? & 1 != 0));
                }
                self.conditions.push(Condition::Other);
                match map.then(|| number(3)).transpose()? {
                    // The register of the verdict: wherever the map leads to.
                    Some(0) => self.verdict = Verdict::Unknown,
                    Some(register) => drop(self.registers.remove(&register)),
                    None => {}
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
            b"masq" if data.is_empty() && !self.alters => self.verdict = Verdict::Masquerade,
            b"reject" => self.verdict = Verdict::Drop,
            // A program decides; another way through the kernel.
            b"queue" | b"flow_offload" | b"fwd" | b"synproxy" | b"tproxy" => self.verdict = Verdict::Unknown,
            b"target" => self.target(&value(1)?.map(string).unwrap_or_default()),
            b"match" => {
                let info = value(3)?.unwrap_or_default();
                self.matches(&value(1)?.map(string).unwrap_or_default(), info);
            }
            b"counter" | b"log" => {}
            // It may load something into any register.
            _ => {
                self.registers.clear();
                self.conditions.push(Condition::Other);
            }
        }
        Ok(())
    }

    /// A target of iptables.
    fn target(&mut self, name: &[u8]) {
        match name {
            b"REJECT" => self.verdict = Verdict::Drop,
            // These decide nothing.
            b"LOG" | b"NFLOG" | b"TRACE" | b"AUDIT" => {}
            b"MARK" | b"CONNMARK" | b"TCPMSS" | b"CHECKSUM" | b"CLASSIFY" | b"DSCP" | b"TOS" | b"TTL" | b"HL"
            | b"SET" | b"CT" => self.alters = true,
            _ => self.verdict = Verdict::Unknown,
        }
    }

    /// A match of iptables.
    fn matches(&mut self, name: &[u8], info: &[u8]) {
        let half = |at| info.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u16::from_ne_bytes(*bytes));
        self.conditions.push(match name {
            // What iptables writes a comment as.
            b"comment" => return,
            // struct xt_state_info
            b"state" => Condition::State(info.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes)), false),
            // struct xt_conntrack_mtinfo3: what is asked for, what is turned round, the states and the status. Another
            // bit of the states is the status that the destination was changed.
            b"conntrack" if half(146) == 1 => match u32::from(half(150)) {
                DNAT => Condition::Status(IPS_DST_NAT, half(148) & 1 != 0),
                states if states < DNAT >> 1 => Condition::State(states, half(148) & 1 != 0),
                _ => Condition::Other,
            },
            _ => Condition::Other,
        });
    }

    fn loaded(&self, register: u32) -> Loaded {
        self.registers.get(&register).copied().unwrap_or(Loaded::Other)
    }

    /// Part of the network header.
    fn payload(&self, base: u32, offset: u32, length: u32) -> Loaded {
        const NETWORK_HEADER: u32 = 1;
        let bits = u8::try_from(length.saturating_mul(8)).unwrap_or_default();
        match (base, self.family, offset, length) {
            (NETWORK_HEADER, Some(Family::V4), 12, 1..=4) => Loaded::Address(Family::V4, bits, true),
            (NETWORK_HEADER, Some(Family::V4), 16, 1..=4) => Loaded::Address(Family::V4, bits, false),
            (NETWORK_HEADER, Some(Family::V4), 9, 1) => Loaded::Protocol,
            (NETWORK_HEADER, Some(Family::V6), 8, 1..=16) => Loaded::Address(Family::V6, bits, true),
            (NETWORK_HEADER, Some(Family::V6), 24, 1..=16) => Loaded::Address(Family::V6, bits, false),
            _ => Loaded::Other,
        }
    }

    /// What it means that something is equal to this value, or not; `None` where that is not told here.
    fn compared(&mut self, loaded: Loaded, operator: u32, value: &[u8]) -> Option<Condition> {
        let not = match operator {
            0 => false,
            1 => true,
            _ => return None,
        };
        let native = || value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        Some(match loaded {
            Loaded::In => Condition::In(name(value), not),
            Loaded::Out => Condition::Out(name(value), not),
            Loaded::InIndex => Condition::In(Interface::Index(native()?), not),
            Loaded::OutIndex => Condition::Out(Interface::Index(native()?), not),
            Loaded::NfProto => {
                let family = match value.first() {
                    Some(&IPV4) => Family::V4,
                    Some(&IPV6) => Family::V6,
                    _ => return None,
                };
                if not {
                    return None;
                }
                self.family = Some(family);
                Condition::Family(family)
            }
            Loaded::Protocol => Condition::Protocol(*value.first()?, not),
            Loaded::Address(family, length, true) => Condition::From(prefix(family, value, length)?, not),
            Loaded::Address(family, length, false) => Condition::To(prefix(family, value, length)?, not),
            // Some of these bits are set where they are not zero.
            Loaded::State(mask) if native()? == 0 => Condition::State(mask, !not),
            Loaded::Status(mask) if native()? == 0 => Condition::Status(mask, !not),
            // A connection has just one state.
            Loaded::State(u32::MAX) => Condition::State(native()?, not),
            Loaded::State(_) | Loaded::Status(_) | Loaded::Other => return None,
        })
    }
}

impl Loaded {
    /// What is left of it behind a mask.
    fn masked(self, mask: &[u8]) -> Loaded {
        let native = mask.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        match self {
            Loaded::Address(family, _, is_source) => {
                prefix_length(mask).map_or(Loaded::Other, |length| Loaded::Address(family, length, is_source))
            }
            Loaded::State(bits) => Loaded::State(bits & native),
            Loaded::Status(bits) => Loaded::Status(bits & native),
            _ => Loaded::Other,
        }
    }
}

/// A name that ends in a zero is whole, one that does not is the beginning of many.
fn name(value: &[u8]) -> Interface {
    if value.contains(&0) { Interface::Name(string(value)) } else { Interface::Names(value.to_vec()) }
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
    const CONTINUE: i32 = -1;
    const JUMP: i32 = -3;
    const GOTO: i32 = -4;
    const RETURN: i32 = -5;
    let code = find(Attributes::nested(verdict), 1)?.map(big_endian).transpose()?.unwrap_or_default();
    let chain = find(Attributes::nested(verdict), 2)?.map(string);
    Ok(match (code.cast_signed(), chain) {
        (code @ (JUMP | GOTO), Some(chain)) => Verdict::Chain(chain, code == GOTO),
        (RETURN, _) => Verdict::Return,
        (CONTINUE, _) => Verdict::Continue,
        _ if code == ACCEPT => Verdict::Accept,
        _ if code == DROP => Verdict::Drop,
        _ => Verdict::Unknown,
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
    fn fuzz() {
        crate::fuzz::run("nftables", |bytes| {
            let rules = [INET, IPV4, IPV6].map(|family| rule(bytes, family));
            let nested = bytes.get(HEADER..).is_some_and(|value| read_verdict(value).is_ok());
            nested || chain(bytes).is_ok() || rules.iter().any(Result::is_ok)
        });
    }

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
            ("continue", verdict(-1), Verdict::Continue, 0),
            ("whatever a newer kernel has", verdict(-9), Verdict::Unknown, 0),
            ("jump", verdict(-3), Verdict::Chain(b"next".into(), false), 0),
            ("goto", verdict(-4), Verdict::Chain(b"next".into(), true), 0),
            ("return", verdict(-5), Verdict::Return, 0),
            ("reject", expression("reject\0", &number(1, 0)), Verdict::Drop, 0),
            ("a program may accept", expression("queue\0", &[]), Verdict::Unknown, 0),
            ("-j REJECT", target("REJECT\0"), Verdict::Drop, 0),
            ("-j NFQUEUE", target("NFQUEUE\0"), Verdict::Unknown, 0),
            ("-j LOG", target("LOG\0"), Verdict::Continue, 0),
            ("masquerade", expression("masq\0", &[]), Verdict::Masquerade, 0),
            ("masquerade random", expression("masq\0", &number(1, 4)), Verdict::Continue, 1),
        ] {
            let rule = rule(&[&[INET, 0, 0, 0], &*attribute_of(4, &expression)].concat(), INET).unwrap();
            assert_eq!((rule.verdict, rule.conditions.len()), (wanted, conditions), "{case}");
        }
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
