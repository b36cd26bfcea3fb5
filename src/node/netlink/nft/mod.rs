//! Reads nftables over netlink: a run reads node-fixer's table, `doctor` also the tables of other programs that filter
//! forwarded packets. Rules of iptables-nft are visible here, those of iptables-legacy are not. node-fixer's table is
//! written by the program nft.
//!
//! Why nft, in its own language: administrators have it and debug with it, and a dry run can print exactly what a run
//! passes to it. Its JSON requires an nft built with JSON support, and the crate nftables, a model of that JSON, runs
//! nft without a time limit. Writing rules over netlink would avoid the program, but require a compiler from rules to
//! expressions.
//!
//! One look takes several dumps. They are only consistent if the generation number is the same before and after.

mod expressions;
mod filters;
#[cfg(test)]
mod tests;

use nix::errno::Errno;
use nix::libc;
use rtnetlink::packet_core::DefaultNla;

use super::attr::{Attributes, Body, attributes};
use super::socket::{Netlink, NetlinkError, undecodable};
use crate::model::masquerade::{CHAIN, PRIORITY, SeenNat, SeenTable, TABLE, Verdict};
use expressions::{NftRule, rule};
pub use filters::filters;

/// How often a look is repeated because of changes in between.
const TRIES: u32 = 5;

const fn message(kind: i32) -> u16 {
    (libc::NFNL_SUBSYS_NFTABLES << 8 | kind) as u16
}

const GETTABLE: u16 = message(libc::NFT_MSG_GETTABLE);
const GETCHAIN: u16 = message(libc::NFT_MSG_GETCHAIN);
const GETRULE: u16 = message(libc::NFT_MSG_GETRULE);
const GETSETELEM: u16 = message(libc::NFT_MSG_GETSETELEM);
const GETGEN: u16 = message(libc::NFT_MSG_GETGEN);
/// Length of struct nfgenmsg.
const HEADER: usize = 4;
const UNSPEC: u8 = libc::NFPROTO_UNSPEC as u8;
const INET: u8 = libc::NFPROTO_INET as u8;
const IPV4: u8 = libc::NFPROTO_IPV4 as u8;
const IPV6: u8 = libc::NFPROTO_IPV6 as u8;
const PREROUTING: u32 = libc::NF_INET_PRE_ROUTING as u32;
const FORWARD: u32 = libc::NF_INET_FORWARD as u32;
const POSTROUTING: u32 = libc::NF_INET_POST_ROUTING as u32;
const DROP: u32 = libc::NF_DROP as u32;
const ACCEPT: u32 = libc::NF_ACCEPT as u32;

// linux/netfilter/nf_tables.h
const NFT_TABLE_F_DORMANT: u32 = 1;
const NFTA_GEN_ID: u16 = 1;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_TABLE_FLAGS: u16 = 2;
const NFTA_TABLE_USE: u16 = 3;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_POLICY: u16 = 5;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;

/// node-fixer's table.
pub fn nat(netlink: &mut Option<Netlink>) -> Result<SeenNat, NetlinkError> {
    match look(netlink, table) {
        // The kernel has no such socket type, or no nftables, and could not load a module for it.
        Err(NetlinkError::Refused { errno, .. } | NetlinkError::Failed(errno))
            if matches!(errno, Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EINVAL | Errno::EOPNOTSUPP) =>
        {
            Ok(SeenNat::Missing(errno.desc().into()))
        }
        Err(NetlinkError::Refused { errno: Errno::EPERM, .. }) => Ok(SeenNat::Hidden),
        other => other.map(SeenNat::Table),
    }
}

/// Repeats a look until no change happened in between.
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
    let number = |message: &[u8]| find(attributes(message, HEADER)?, NFTA_GEN_ID)?.map(big_endian).transpose();
    let number = netlink.get(GETGEN, &request(UNSPEC), number)?;
    number.ok_or_else(|| undecodable("nftables reported no generation number"))
}

/// An object of nftables, if it exists.
fn object<T>(
    netlink: &mut Netlink,
    kind: u16,
    request: &Body,
    decode: impl Fn(&[u8]) -> Result<T, NetlinkError>,
) -> Result<Option<T>, NetlinkError> {
    match netlink.get(kind, request, |message| decode(message).map(Some)) {
        Err(NetlinkError::Refused { errno: Errno::ENOENT, .. }) => Ok(None),
        other => other,
    }
}

fn table(netlink: &mut Netlink) -> Result<Option<SeenTable>, NetlinkError> {
    // The number of chains, sets and other objects. Listing chains would list those of all tables.
    let ours = || request(INET).with([text(NFTA_TABLE_NAME, TABLE.as_bytes())]);
    let found = object(netlink, GETTABLE, &ours(), |message| {
        let number = |kind| find(attributes(message, HEADER)?, kind)?.map_or(Ok(0), big_endian);
        Ok((number(NFTA_TABLE_FLAGS)? & NFT_TABLE_F_DORMANT == 0, number(NFTA_TABLE_USE)?))
    })?;
    let Some((awake, objects)) = found else { return Ok(None) };
    let found = object(netlink, GETCHAIN, &ours().with([text(NFTA_CHAIN_NAME, CHAIN.as_bytes())]), chain)?;
    let hook = Some(Hook { number: POSTROUTING, priority: PRIORITY, policy: ACCEPT });
    let has_chain = objects == 1 && found.is_some_and(|chain| chain.kind == b"nat" && chain.hook == hook);
    let rules = rules_of(netlink, INET, TABLE.as_bytes(), None)?;
    let masquerade = rules.iter().all(|rule| rule.verdict == Verdict::Masquerade);
    let whole = awake && has_chain && masquerade;
    Ok(Some(SeenTable { whole, rules: rules.into_iter().map(|rule| rule.conditions).collect() }))
}

/// The rules of a table, or of one of its chains.
fn rules_of(
    netlink: &mut Netlink,
    family: u8,
    table: &[u8],
    chain: Option<&[u8]>,
) -> Result<Vec<NftRule>, NetlinkError> {
    let request =
        request(family).with([text(NFTA_RULE_TABLE, table)]).with(chain.map(|chain| text(NFTA_RULE_CHAIN, chain)));
    netlink.dump(GETRULE, &request, |message| {
        // Old kernels do not filter.
        let rule = rule(message, family)?;
        let here = message.first() == Some(&family) && rule.table == table && chain.is_none_or(|it| rule.chain == it);
        Ok(here.then_some(rule))
    })
}

/// A request for objects of a family: struct nfgenmsg.
fn request(family: u8) -> Body {
    Body::new(vec![family], HEADER)
}

/// A string attribute.
fn text(kind: u16, text: &[u8]) -> DefaultNla {
    DefaultNla::new(kind, [text, b"\0"].concat())
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
    /// Whether it hooks forwarded packets, and can drop them.
    fn filters(&self) -> bool {
        self.kind != b"nat" && self.hook.as_ref().is_some_and(|hook| matches!(hook.number, PREROUTING | FORWARD))
    }
}

fn chain(message: &[u8]) -> Result<Chain, NetlinkError> {
    let family = message.first().copied().unwrap_or(UNSPEC);
    let mut chain = Chain { family, table: Vec::new(), name: Vec::new(), kind: Vec::new(), hook: None };
    let (mut hook, mut policy) = (None, ACCEPT);
    for attribute in attributes(message, HEADER)? {
        match attribute? {
            (NFTA_CHAIN_TABLE, table) => chain.table = string(table),
            (NFTA_CHAIN_NAME, name) => chain.name = string(name),
            (NFTA_CHAIN_HOOK, nested) => {
                let number = find(Attributes::nested(nested), NFTA_HOOK_HOOKNUM)?.map(big_endian).transpose()?;
                let priority = find(Attributes::nested(nested), NFTA_HOOK_PRIORITY)?.map(big_endian).transpose()?;
                hook = number.zip(priority);
            }
            (NFTA_CHAIN_POLICY, value) => policy = big_endian(value)?,
            (NFTA_CHAIN_TYPE, kind) => chain.kind = string(kind),
            _ => {}
        }
    }
    chain.hook = hook.map(|(number, priority)| Hook { number, priority: priority.cast_signed(), policy });
    Ok(chain)
}

/// The value in NFTA_DATA_VALUE.
fn data_value(data: &[u8]) -> Result<&[u8], NetlinkError> {
    Ok(find(Attributes::nested(data), NFTA_DATA_VALUE)?.unwrap_or_default())
}

fn find<'a>(mut attributes: Attributes<'a>, wanted: u16) -> Result<Option<&'a [u8]>, NetlinkError> {
    let found = attributes.find(|attribute| !matches!(attribute, Ok((kind, _)) if *kind != wanted));
    Ok(found.transpose()?.map(|(_, value)| value))
}

fn big_endian(value: &[u8]) -> Result<u32, NetlinkError> {
    let bytes = value.first_chunk().ok_or_else(|| undecodable("a number of nftables is too short"))?;
    Ok(u32::from_be_bytes(*bytes))
}

/// Up to the first zero byte.
fn string(value: &[u8]) -> Vec<u8> {
    value.split(|byte| *byte == 0).next().unwrap_or_default().to_vec()
}
