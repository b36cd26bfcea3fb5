//! The verdict on a packet in a base chain and the chains that it jumps to.

use std::collections::BTreeMap;

use super::flow::MasqueradedPacket;
use crate::model::masquerade::{BaseChain, FilterTable, Verdict};

/// The verdict on a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// It is dropped.
    Lost,
    /// It is accepted.
    Passes,
    /// It may be accepted.
    Perhaps,
    /// It returns from the chain.
    Back,
    /// It returns, or is dropped.
    BackOrLost,
}

/// The verdict in a base chain.
pub fn fate(table: &FilterTable, base: &BaseChain, packet: &MasqueradedPacket<'_>) -> Fate {
    match (ChainWalk { table, packet, known: BTreeMap::new() }).fate_in(&base.name) {
        Fate::Back | Fate::BackOrLost if base.drops => Fate::Lost,
        Fate::Back => Fate::Passes,
        Fate::BackOrLost => Fate::Perhaps,
        fate => fate,
    }
}

/// Follows a packet through the chains of a table. The verdict of a chain does not depend on how the packet got there.
struct ChainWalk<'a> {
    table: &'a FilterTable,
    packet: &'a MasqueradedPacket<'a>,
    known: BTreeMap<&'a [u8], Fate>,
}

impl<'a> ChainWalk<'a> {
    fn fate_in(&mut self, chain: &'a [u8]) -> Fate {
        if let Some(known) = self.known.get(chain) {
            return *known;
        }
        // The kernel allows no loops between chains.
        self.known.insert(chain, Fate::Perhaps);
        let fate = self.follow(chain);
        self.known.insert(chain, fate);
        fate
    }

    fn follow(&mut self, chain: &'a [u8]) -> Fate {
        // Whether the packet certainly gets here, and otherwise whether it may have returned before.
        let (mut sure, mut back) = (true, false);
        for rule in self.table.chains.get(chain).map_or(&[][..], Vec::as_slice) {
            let met = self.packet.meets(rule);
            if met == Some(false) {
                continue;
            }
            let (fate, goes_on) = match &rule.verdict {
                Verdict::Accept => (Fate::Passes, false),
                Verdict::Unknown => (Fate::Perhaps, false),
                Verdict::Drop => (Fate::Lost, false),
                Verdict::Return => (Fate::Back, false),
                Verdict::Chain(next, goto) => (self.fate_in(next), !goto),
                Verdict::Masquerade | Verdict::Continue => continue,
            };
            match fate {
                Fate::Passes if sure && met == Some(true) => return Fate::Passes,
                Fate::Passes | Fate::Perhaps => return Fate::Perhaps,
                Fate::Back if goes_on => {}
                Fate::BackOrLost if goes_on => sure = false,
                _ => {
                    back |= fate != Fate::Lost;
                    if met == Some(true) {
                        return if sure || !back { fate } else { Fate::BackOrLost };
                    }
                    sure = false;
                }
            }
        }
        if sure { Fate::Back } else { Fate::BackOrLost }
    }
}
