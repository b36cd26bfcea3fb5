//! Decodes the rules of nftables, node-fixer's and others': the conditions for a packet, and the verdict.

use std::collections::BTreeMap;
use std::net::IpAddr;

use cidr::IpCidr;
use nix::libc;

use super::{ACCEPT, DROP, HEADER, IPV4, IPV6, NFTA_RULE_CHAIN, NFTA_RULE_TABLE, big_endian, data_value, find, string};
use crate::model::Family;
use crate::model::masquerade::{Condition, Conditions, Interface, Verdict};
use crate::node::netlink::attr::{Attributes, attributes};
use crate::node::netlink::socket::NetlinkError;

// linux/netfilter/nf_tables.h
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_DATA_VERDICT: u16 = 2;
const NFTA_VERDICT_CODE: u16 = 1;
const NFTA_VERDICT_CHAIN: u16 = 2;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFTA_META_SREG: u16 = 3;
const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFTA_CT_SREG: u16 = 4;
const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFTA_PAYLOAD_SREG: u16 = 5;
const NFTA_BITWISE_SREG: u16 = 1;
const NFTA_BITWISE_DREG: u16 = 2;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFTA_LOOKUP_SET: u16 = 1;
const NFTA_LOOKUP_SREG: u16 = 2;
const NFTA_LOOKUP_DREG: u16 = 3;
const NFTA_LOOKUP_FLAGS: u16 = 5;
const NFT_LOOKUP_F_INV: u32 = libc::NFT_LOOKUP_F_INV as u32;
const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
// linux/netfilter/nf_tables_compat.h
const NFTA_TARGET_NAME: u16 = 1;
const NFTA_MATCH_NAME: u16 = 1;
const NFTA_MATCH_INFO: u16 = 3;
// linux/netfilter/xt_conntrack.h and nf_conntrack_common.h
const XT_CONNTRACK_STATE: u16 = 1;
const XT_CONNTRACK_STATE_DNAT: u32 = 1 << 7;
const IPS_DST_NAT: u32 = 1 << 5;

pub(super) struct NftRule {
    pub(super) table: Vec<u8>,
    pub(super) chain: Vec<u8>,
    pub(super) conditions: Conditions,
    pub(super) verdict: Verdict,
    /// Conditions on a state: which state, which values, and whether the state must not be one of them.
    pub(super) sets: Vec<(usize, Vec<u8>, bool)>,
}

pub(super) fn rule(message: &[u8], family: u8) -> Result<NftRule, NetlinkError> {
    let (mut table, mut chain) = (Vec::new(), Vec::new());
    let mut reading = Reading::of(family);
    for attribute in attributes(message, HEADER)? {
        match attribute? {
            (NFTA_RULE_TABLE, name) => table = string(name),
            (NFTA_RULE_CHAIN, name) => chain = string(name),
            (NFTA_RULE_EXPRESSIONS, expressions) => {
                for expression in Attributes::nested(expressions) {
                    reading.take(expression?.1)?;
                }
            }
            _ => {}
        }
    }
    let Reading { conditions, verdict, sets, .. } = reading;
    Ok(NftRule { table, chain, conditions, verdict, sets })
}

/// What the expressions of a rule amount to so far.
struct Reading {
    /// The family that is known by now.
    family: Option<Family>,
    /// The content of the registers.
    registers: BTreeMap<u32, Register>,
    conditions: Conditions,
    /// Whether the packet is changed on the way.
    alters: bool,
    verdict: Verdict,
    sets: Vec<(usize, Vec<u8>, bool)>,
}

#[derive(Clone, Copy)]
enum Register {
    In,
    Out,
    InIndex,
    OutIndex,
    NfProto,
    Protocol,
    /// The first bits of an address, how many, and whether it is the source.
    Address(Family, u8, bool),
    /// Some bits of the state.
    State(u32),
    /// Some bits of the status.
    Status(u32),
    Other,
}

/// The attributes of one expression.
#[derive(Clone, Copy)]
struct Data<'a>(&'a [u8]);

impl<'a> Data<'a> {
    fn value(self, attribute: u16) -> Result<Option<&'a [u8]>, NetlinkError> {
        find(Attributes::nested(self.0), attribute)
    }

    fn number(self, attribute: u16) -> Result<u32, NetlinkError> {
        self.value(attribute)?.map(big_endian).transpose().map(Option::unwrap_or_default)
    }
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
        let kind = string(find(Attributes::nested(expression), NFTA_EXPR_NAME)?.unwrap_or_default());
        let data = Data(find(Attributes::nested(expression), NFTA_EXPR_DATA)?.unwrap_or_default());
        match &*kind {
            // Writes a register to the packet or its metadata.
            b"meta" if data.value(NFTA_META_SREG)?.is_some() => self.alters = true,
            b"payload" if data.value(NFTA_PAYLOAD_SREG)?.is_some() => self.alters = true,
            b"ct" if data.value(NFTA_CT_SREG)?.is_some() => self.alters = true,
            b"meta" | b"ct" | b"payload" | b"bitwise" => self.load(&kind, data)?,
            b"cmp" => {
                let value = data.value(NFTA_CMP_DATA)?.map(data_value).transpose()?.unwrap_or_default();
                let condition =
                    self.compared(self.loaded(data.number(NFTA_CMP_SREG)?), data.number(NFTA_CMP_OP)?, value);
                self.conditions.push(condition.unwrap_or(Condition::Other));
            }
            b"lookup" => self.lookup(data)?,
            b"immediate" => {
                if let Some(verdict) = data
                    .value(NFTA_IMMEDIATE_DATA)?
                    .map(|value| find(Attributes::nested(value), NFTA_DATA_VERDICT))
                    .transpose()?
                    .flatten()
                {
                    self.verdict = read_verdict(verdict)?;
                } else {
                    self.registers.remove(&data.number(NFTA_IMMEDIATE_DREG)?);
                }
            }
            // Without attributes: those select ports, or how they are chosen.
            b"masq" if data.0.is_empty() && !self.alters => self.verdict = Verdict::Masquerade,
            b"reject" => self.verdict = Verdict::Drop,
            // The verdict comes from elsewhere, or the packet takes another path through the kernel.
            b"queue" | b"flow_offload" | b"fwd" | b"synproxy" | b"tproxy" => self.verdict = Verdict::Unknown,
            b"target" => self.target(&data.value(NFTA_TARGET_NAME)?.map(string).unwrap_or_default()),
            b"match" => {
                let info = data.value(NFTA_MATCH_INFO)?.unwrap_or_default();
                self.matches(&data.value(NFTA_MATCH_NAME)?.map(string).unwrap_or_default(), info);
            }
            b"counter" | b"log" => {}
            // It may write to any register.
            _ => {
                self.registers.clear();
                self.conditions.push(Condition::Other);
            }
        }
        Ok(())
    }

    /// The new content of a register.
    fn load(&mut self, kind: &[u8], data: Data) -> Result<(), NetlinkError> {
        let (register, loaded) = match kind {
            b"meta" => {
                let loaded = match data.number(NFTA_META_KEY)?.cast_signed() {
                    libc::NFT_META_IIF => Register::InIndex,
                    libc::NFT_META_OIF => Register::OutIndex,
                    libc::NFT_META_IIFNAME => Register::In,
                    libc::NFT_META_OIFNAME => Register::Out,
                    libc::NFT_META_NFPROTO => Register::NfProto,
                    libc::NFT_META_L4PROTO => Register::Protocol,
                    _ => Register::Other,
                };
                (data.number(NFTA_META_DREG)?, loaded)
            }
            b"ct" => {
                let loaded = match data.number(NFTA_CT_KEY)?.cast_signed() {
                    libc::NFT_CT_STATE => Register::State(u32::MAX),
                    libc::NFT_CT_STATUS => Register::Status(u32::MAX),
                    _ => Register::Other,
                };
                (data.number(NFTA_CT_DREG)?, loaded)
            }
            b"payload" => {
                let loaded = self.payload(
                    data.number(NFTA_PAYLOAD_BASE)?,
                    data.number(NFTA_PAYLOAD_OFFSET)?,
                    data.number(NFTA_PAYLOAD_LEN)?,
                );
                (data.number(NFTA_PAYLOAD_DREG)?, loaded)
            }
            _ => {
                let part = |attribute| data.value(attribute)?.map(data_value).transpose();
                let as_is = |flipped: &[u8]| flipped.iter().all(|byte| *byte == 0);
                let loaded = match (part(NFTA_BITWISE_MASK)?, part(NFTA_BITWISE_XOR)?) {
                    (Some(mask), flipped) if flipped.is_none_or(as_is) => {
                        self.loaded(data.number(NFTA_BITWISE_SREG)?).masked(mask)
                    }
                    _ => Register::Other,
                };
                (data.number(NFTA_BITWISE_DREG)?, loaded)
            }
        };
        self.registers.insert(register, loaded);
        Ok(())
    }

    /// A lookup in a set or a map.
    fn lookup(&mut self, data: Data) -> Result<(), NetlinkError> {
        let map = data.value(NFTA_LOOKUP_DREG)?.is_some();
        if let (Register::State(u32::MAX), false) = (self.loaded(data.number(NFTA_LOOKUP_SREG)?), map) {
            let set = data.value(NFTA_LOOKUP_SET)?.map(string).unwrap_or_default();
            self.sets.push((self.conditions.len(), set, data.number(NFTA_LOOKUP_FLAGS)? & NFT_LOOKUP_F_INV != 0));
        }
        self.conditions.push(Condition::Other);
        match map.then(|| data.number(NFTA_LOOKUP_DREG)).transpose()? {
            // The verdict register: the map may lead anywhere.
            Some(0) => self.verdict = Verdict::Unknown,
            Some(register) => drop(self.registers.remove(&register)),
            None => {}
        }
        Ok(())
    }

    /// An iptables target.
    fn target(&mut self, name: &[u8]) {
        match name {
            b"REJECT" => self.verdict = Verdict::Drop,
            // These have no verdict.
            b"LOG" | b"NFLOG" | b"TRACE" | b"AUDIT" => {}
            b"MARK" | b"CONNMARK" | b"TCPMSS" | b"CHECKSUM" | b"CLASSIFY" | b"DSCP" | b"TOS" | b"TTL" | b"HL"
            | b"SET" | b"CT" => self.alters = true,
            _ => self.verdict = Verdict::Unknown,
        }
    }

    /// An iptables match.
    fn matches(&mut self, name: &[u8], info: &[u8]) {
        let half = |at| info.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u16::from_ne_bytes(*bytes));
        self.conditions.push(match name {
            // This is how iptables stores a comment.
            b"comment" => return,
            // struct xt_state_info
            b"state" => Condition::State(info.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes)), false),
            // struct xt_conntrack_mtinfo3: what is compared, what is inverted, the states and the status. One more bit
            // of the states is the status that the destination was translated.
            b"conntrack" if half(146) == XT_CONNTRACK_STATE => match u32::from(half(150)) {
                XT_CONNTRACK_STATE_DNAT => Condition::Status(IPS_DST_NAT, half(148) & 1 != 0),
                states if states < XT_CONNTRACK_STATE_DNAT >> 1 => Condition::State(states, half(148) & 1 != 0),
                _ => Condition::Other,
            },
            _ => Condition::Other,
        });
    }

    fn loaded(&self, register: u32) -> Register {
        self.registers.get(&register).copied().unwrap_or(Register::Other)
    }

    /// Part of the network header.
    fn payload(&self, base: u32, offset: u32, length: u32) -> Register {
        const NETWORK_HEADER: u32 = libc::NFT_PAYLOAD_NETWORK_HEADER as u32;
        let bits = u8::try_from(length.saturating_mul(8)).unwrap_or_default();
        match (base, self.family, offset, length) {
            (NETWORK_HEADER, Some(Family::V4), 12, 1..=4) => Register::Address(Family::V4, bits, true),
            (NETWORK_HEADER, Some(Family::V4), 16, 1..=4) => Register::Address(Family::V4, bits, false),
            (NETWORK_HEADER, Some(Family::V4), 9, 1) => Register::Protocol,
            (NETWORK_HEADER, Some(Family::V6), 8, 1..=16) => Register::Address(Family::V6, bits, true),
            (NETWORK_HEADER, Some(Family::V6), 24, 1..=16) => Register::Address(Family::V6, bits, false),
            _ => Register::Other,
        }
    }

    /// The condition that something equals this value, or does not; `None` if it is not decoded.
    fn compared(&mut self, loaded: Register, operator: u32, value: &[u8]) -> Option<Condition> {
        let not = match operator.cast_signed() {
            libc::NFT_CMP_EQ => false,
            libc::NFT_CMP_NEQ => true,
            _ => return None,
        };
        let native = || value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        Some(match loaded {
            Register::In => Condition::In(name(value), not),
            Register::Out => Condition::Out(name(value), not),
            Register::InIndex => Condition::In(Interface::Index(native()?), not),
            Register::OutIndex => Condition::Out(Interface::Index(native()?), not),
            Register::NfProto => {
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
            Register::Protocol => Condition::Protocol(*value.first()?, not),
            Register::Address(family, length, true) => Condition::From(prefix(family, value, length)?, not),
            Register::Address(family, length, false) => Condition::To(prefix(family, value, length)?, not),
            // Not equal to zero means that one of these bits is set.
            Register::State(mask) if native()? == 0 => Condition::State(mask, !not),
            Register::Status(mask) if native()? == 0 => Condition::Status(mask, !not),
            // A connection has exactly one state.
            Register::State(u32::MAX) => Condition::State(native()?, not),
            Register::State(_) | Register::Status(_) | Register::Other => return None,
        })
    }
}

impl Register {
    /// The content after a mask.
    fn masked(self, mask: &[u8]) -> Register {
        let native = mask.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        match self {
            Register::Address(family, _, is_source) => {
                prefix_length(mask).map_or(Register::Other, |length| Register::Address(family, length, is_source))
            }
            Register::State(bits) => Register::State(bits & native),
            Register::Status(bits) => Register::Status(bits & native),
            _ => Register::Other,
        }
    }
}

/// A name that ends in a zero byte is complete; otherwise it is a prefix.
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

/// The length of a prefix mask.
pub(super) fn prefix_length(mask: &[u8]) -> Option<u8> {
    let set: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
    let first: u32 = mask.iter().take_while(|byte| **byte == 0xff).map(|_| 8).sum();
    let rest = mask.get(first as usize / 8).map_or(0, |byte| byte.leading_ones());
    (set == first + rest).then(|| u8::try_from(set).ok()).flatten()
}

pub(super) fn read_verdict(verdict: &[u8]) -> Result<Verdict, NetlinkError> {
    let code = find(Attributes::nested(verdict), NFTA_VERDICT_CODE)?.map(big_endian).transpose()?.unwrap_or_default();
    let chain = find(Attributes::nested(verdict), NFTA_VERDICT_CHAIN)?.map(string);
    Ok(match (code.cast_signed(), chain) {
        (code @ (libc::NFT_JUMP | libc::NFT_GOTO), Some(chain)) => Verdict::Chain(chain, code == libc::NFT_GOTO),
        (libc::NFT_RETURN, _) => Verdict::Return,
        (libc::NFT_CONTINUE, _) => Verdict::Continue,
        _ if code == ACCEPT => Verdict::Accept,
        _ if code == DROP => Verdict::Drop,
        _ => Verdict::Unknown,
    })
}
