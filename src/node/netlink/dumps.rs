//! What the kernel of a node answered when it was captured: the messages of each dump as they were. They are read by the
//! same decoders as the kernel's own.

use nix::errno::Errno;
use nix::libc::{IFLA_IFNAME, RTM_GETADDR, RTM_GETLINK, RTM_GETNETCONF, RTM_GETROUTE, RTM_GETRULE};
use rtnetlink::packet_core::Emitable;

use super::attr::{attributes, emitted};
use super::socket::{Each, Netlink, NetlinkError};
use super::{addr, link, netconf, route, rule};
use crate::model::{Family, IfName};
use crate::sorted;
use crate::tape::Lists;

/// A message without its header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message(pub Vec<u8>);

/// All messages of all dumps.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Dumps {
    /// Of policy rules.
    pub rules: Vec<Message>,
    /// Of routes.
    pub routes: Vec<Message>,
    /// Of addresses.
    pub addresses: Vec<Message>,
    /// Of links.
    pub links: Vec<Message>,
    /// Of the settings of interfaces.
    pub netconf: Vec<Message>,
}

/// More links than a node has. Each is looked for in the list.
const MOST_LINKS: usize = 1 << 15;

impl Dumps {
    /// Takes all dumps of this network namespace.
    ///
    /// # Errors
    ///
    /// What the kernel said.
    pub fn take(netlink: &mut Netlink) -> Result<Dumps, NetlinkError> {
        let mut dump = |kind, body: &dyn Emitable| {
            match netlink.dump(kind, body, |payload| Ok(Some(Message(payload.to_vec())))) {
                // A family that the kernel was built or booted without.
                Err(NetlinkError::Refused { errno: Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP, .. }) => Ok(Vec::new()),
                other => other,
            }
        };
        let [v4, v6] = [Family::V4, Family::V6];
        let mut dumps = Dumps {
            rules: dump(RTM_GETRULE, &rule::all())?,
            routes: dump(RTM_GETROUTE, &route::all(v4))?,
            addresses: dump(RTM_GETADDR, &addr::all())?,
            links: dump(RTM_GETLINK, &link::all())?,
            netconf: dump(RTM_GETNETCONF, &netconf::all(v4))?,
        };
        dumps.routes.extend(dump(RTM_GETROUTE, &route::all(v6))?);
        dumps.netconf.extend(dump(RTM_GETNETCONF, &netconf::all(v6))?);
        dumps.links.iter_mut().for_each(|message| message.0 = link::without_counters(&message.0));
        Ok(dumps)
    }

    /// What stands in a file; `None` where that is damaged. A list that is missing is not an empty one.
    pub fn of_lists(mut lists: Lists) -> Option<Dumps> {
        let mut take = |name: &str| -> Option<Vec<Message>> {
            lists.remove(name)?.iter().map(|text| Message::of_text(text)).collect()
        };
        let dumps = Dumps {
            rules: take("rules")?,
            routes: take("routes")?,
            addresses: take("addresses")?,
            links: take("links")?,
            netconf: take("netconf")?,
        };
        Some(dumps).filter(|dumps| dumps.links.len() <= MOST_LINKS)
    }

    /// As it stands in a file.
    pub fn lists(&self) -> Lists {
        let Dumps { rules, routes, addresses, links, netconf } = self;
        let all =
            [("rules", rules), ("routes", routes), ("addresses", addresses), ("links", links), ("netconf", netconf)];
        sorted::map(all.map(|(name, messages)| (name.to_owned(), messages.iter().map(Message::text).collect())))
    }

    /// What is said of a question to which no answer was captured.
    pub fn not_captured() -> NetlinkError {
        NetlinkError::Refused { errno: Errno::EOPNOTSUPP, text: Some("not in the captured file".into()) }
    }

    pub(super) fn names(&self) -> Vec<IfName> {
        self.links.iter().filter_map(Message::name).collect()
    }

    pub(super) fn name_of(&self, index: u32) -> Option<IfName> {
        self.links.iter().find(|link| link.number() == Some(index))?.name()
    }

    /// As [`Netlink::dump`]. The kernel filters by family, and may filter by more: every reader filters for itself.
    pub(super) fn dump(&self, kind: u16, body: &dyn Emitable, each: Each<'_>) -> Result<(), NetlinkError> {
        let messages = match kind {
            RTM_GETRULE => &self.rules,
            RTM_GETROUTE => &self.routes,
            RTM_GETADDR => &self.addresses,
            RTM_GETLINK => &self.links,
            RTM_GETNETCONF => &self.netconf,
            _ => return Err(Dumps::not_captured()),
        };
        let family = emitted(body).first().copied().unwrap_or_default();
        let mut of_family = messages.iter().filter(|message| family == 0 || message.0.first() == Some(&family));
        of_family.try_for_each(|message| each(&message.0))
    }

    /// As [`Netlink::get`]: for one link, by index or name.
    pub(super) fn get(&self, kind: u16, body: &dyn Emitable, each: Each<'_>) -> Result<(), NetlinkError> {
        if kind != RTM_GETLINK {
            return Err(Dumps::not_captured());
        }
        let asked = Message(emitted(body));
        let is_it = |link: &&Message| match asked.number() {
            Some(number) if number != 0 => link.number() == Some(number),
            _ => link.name().is_some_and(|name| Some(name) == asked.name()),
        };
        let found = self.links.iter().find(is_it).ok_or_else(NetlinkError::no_device)?;
        each(&found.0)
    }
}

impl Message {
    /// The index of a link.
    fn number(&self) -> Option<u32> {
        Some(u32::from_ne_bytes(*self.0.get(4..8)?.first_chunk()?))
    }

    /// The name of a link.
    fn name(&self) -> Option<IfName> {
        let found = attributes(&self.0, link::HEADER).ok()?.flatten().find(|(kind, _)| *kind == IFLA_IFNAME);
        super::attr::name(found?.1).ok()
    }

    /// In hexadecimal digits.
    fn text(&self) -> String {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let digit = |nibble: u8| DIGITS.get(usize::from(nibble)).map(|digit| char::from(*digit));
        self.0.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).flatten().collect()
    }

    fn of_text(text: &str) -> Option<Message> {
        let digit = |digit: &u8| char::from(*digit).to_digit(16).map(|digit| digit as u8);
        let byte = |pair: &[u8]| match pair {
            [high, low] => Some(digit(high)? << 4 | digit(low)?),
            _ => None,
        };
        text.as_bytes().chunks(2).map(byte).collect::<Option<Vec<u8>>>().map(Message)
    }
}
