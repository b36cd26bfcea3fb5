//! Decodes the tables of other programs that filter forwarded packets, for `doctor`.

use std::collections::BTreeMap;

use super::expressions::NftRule;
use super::{
    Chain, DROP, FORWARD, GETCHAIN, GETSETELEM, HEADER, INET, IPV4, IPV6, UNSPEC, chain, data_value, find, look,
    request, rules_of, text,
};
use crate::model::masquerade::{BaseChain, Condition, FilterRule, FilterTable, TABLE, Verdict};
use crate::node::netlink::attr::{Attributes, attributes};
use crate::node::netlink::socket::{Netlink, NetlinkError};

// linux/netfilter/nf_tables.h
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_SET_ELEM_KEY: u16 = 1;

/// The tables of other programs that filter forwarded packets.
pub fn filters(netlink: &mut Option<Netlink>) -> Result<Vec<FilterTable>, NetlinkError> {
    look(netlink, |netlink| {
        let chains = netlink.dump(GETCHAIN, &request(UNSPEC), |message| chain(message).map(Some))?;
        let mut tables: BTreeMap<(u8, Vec<u8>), Vec<Chain>> = BTreeMap::new();
        for chain in chains.into_iter().filter(|it| (it.family, &*it.table) != (INET, TABLE.as_bytes())) {
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
    // The rules of the chains that they jump to, and no others: a table may have thousands of other rules.
    let mut ahead: Vec<Vec<u8>> = table.bases.iter().map(|base| base.name.clone()).collect();
    let mut states = BTreeMap::new();
    while let Some(chain) = ahead.pop() {
        if table.chains.contains_key(&chain) {
            continue;
        }
        let mut rules = Vec::new();
        for NftRule { mut conditions, verdict, sets, .. } in rules_of(netlink, family, &name, Some(&chain))? {
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

/// The connection states in a set.
fn states_in(netlink: &mut Netlink, family: u8, table: &[u8], set: &[u8]) -> Result<u32, NetlinkError> {
    let mut states = 0;
    let request = request(family).with([text(NFTA_SET_ELEM_LIST_TABLE, table), text(NFTA_SET_ELEM_LIST_SET, set)]);
    let of_lists = netlink.dump(GETSETELEM, &request, |message| {
        let elements = find(attributes(message, HEADER)?, NFTA_SET_ELEM_LIST_ELEMENTS)?.unwrap_or_default();
        let mut states = 0;
        for element in Attributes::nested(elements) {
            let key = find(Attributes::nested(element?.1), NFTA_SET_ELEM_KEY)?.unwrap_or_default();
            states |= data_value(key)?.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        }
        Ok(Some(states))
    })?;
    of_lists.into_iter().for_each(|more| states |= more);
    Ok(states)
}
