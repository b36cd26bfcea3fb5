//! Links (struct ifinfomsg, IFLA_*).

use nix::libc::{
    self, IFLA_ADDRESS, IFLA_AF_SPEC, IFLA_EXT_MASK, IFLA_GROUP, IFLA_IFALIAS, IFLA_IFNAME, IFLA_INFO_DATA,
    IFLA_INFO_KIND, IFLA_INFO_SLAVE_KIND, IFLA_LINK, IFLA_LINK_NETNSID, IFLA_LINKINFO, IFLA_MAP, IFLA_MASTER, IFLA_MTU,
    IFLA_STATS, IFLA_STATS64,
};
use rtnetlink::packet_core::DefaultNla;

use super::attr::{AF_INET, Attributes, Body, attributes, name, nested, number, push};
use super::socket::{NetlinkError, undecodable};
use crate::model::{ALIAS, Dev, IfName, LinkKind, LinkSettings};
use crate::observed::{Link, SeenBridge, TUNNELS};

/// Length of struct ifinfomsg.
pub const HEADER: usize = 16;
const IFF_UP: u32 = libc::IFF_UP as u32;
const IFF_LOWER_UP: u32 = libc::IFF_LOWER_UP as u32;
// linux/if_link.h
const IFLA_BR_STP_STATE: u16 = 5;
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_VRF_TABLE: u16 = 1;
const IFLA_INET_CONF: u16 = 1;
/// linux/ip.h
const IPV4_DEVCONF_PROMOTE_SECONDARIES: u16 = 20;

const BRIDGE: &[u8] = b"bridge";
const VETH: &[u8] = b"veth";
const VRF: &[u8] = b"vrf";

/// Body of the dump of all links.
pub fn all() -> Body {
    one(0, None)
}

/// Body of the request for one link, by index or, if given, by name; also of the request that deletes it.
pub fn one(index: u32, name: Option<&IfName>) -> Body {
    let filter = libc::RTEXT_FILTER_SKIP_STATS as u32;
    Body::new(header_of(index), HEADER)
        .with([DefaultNla::new(IFLA_EXT_MASK, filter.to_ne_bytes().into())])
        .with(name.map(named))
}

/// Body of the dump of all bridges.
pub fn bridges() -> Body {
    let kind = DefaultNla::new(IFLA_INFO_KIND, BRIDGE.into());
    all().with([nested(IFLA_LINKINFO, &[kind])])
}

/// The request that creates a link, or changes its settings. `master` is the index of its bridge, 0 for none. It names
/// the kind of a bridge, so that no other link of that name is changed.
pub fn settings(link: &LinkSettings, master: Option<u32>) -> Body {
    let mut header = header_of(0);
    if let Some(up) = link.up {
        header.extend(if up { IFF_UP } else { 0 }.to_ne_bytes());
        header.extend(IFF_UP.to_ne_bytes()); // the flags to change
    }
    let info = (link.kind == LinkKind::Bridge).then(|| {
        let mut info = vec![DefaultNla::new(IFLA_INFO_KIND, BRIDGE.into())];
        let stp = link.stp.map(|stp| DefaultNla::new(IFLA_BR_STP_STATE, u32::from(stp).to_ne_bytes().into()));
        let vlans = link.vlan_filtering.map(|on| DefaultNla::new(IFLA_BR_VLAN_FILTERING, vec![on.into()]));
        let data: Vec<_> = stp.into_iter().chain(vlans).collect();
        info.extend((!data.is_empty()).then(|| nested(IFLA_INFO_DATA, &data)));
        nested(IFLA_LINKINFO, &info)
    });
    Body::new(header, HEADER)
        .with([named(&link.name)])
        .with(link.mtu.map(|mtu| DefaultNla::new(IFLA_MTU, mtu.to_ne_bytes().into())))
        .with(master.map(|index| DefaultNla::new(IFLA_MASTER, index.to_ne_bytes().into())))
        .with(info)
}

/// The request that sets an alias on the link with this name; an empty one removes it.
pub fn alias(name: &IfName, alias: &str) -> Body {
    Body::new(Vec::new(), HEADER).with([named(name), DefaultNla::new(IFLA_IFALIAS, alias.as_bytes().into())])
}

/// The request that sets promote_secondaries of the link with this index.
pub fn promote(index: u32, value: u32) -> Body {
    let value = DefaultNla::new(IPV4_DEVCONF_PROMOTE_SECONDARIES, value.to_ne_bytes().into());
    let inet = nested(AF_INET.into(), &[nested(IFLA_INET_CONF, &[value])]);
    Body::new(header_of(index), HEADER).with([nested(IFLA_AF_SPEC, &[inet])])
}

/// The header up to its flags.
fn header_of(index: u32) -> Vec<u8> {
    let mut header = vec![0; 4];
    header.extend(index.to_ne_bytes());
    header
}

fn named(name: &IfName) -> DefaultNla {
    DefaultNla::new(IFLA_IFNAME, [name.as_bytes(), b"\0"].concat())
}

/// The used parts of a link message.
#[derive(Default)]
struct LinkMessage<'a> {
    index: u32,
    flags: u32,
    name: Option<&'a [u8]>,
    hardware: &'a [u8],
    mtu: u32,
    alias: &'a [u8],
    group: u32,
    master: Option<u32>,
    /// Its other end, or the link that it is built on, by its index in a namespace that may be another one.
    other: Option<u32>,
    /// Whether that is in another network namespace.
    elsewhere: bool,
    kind: &'a [u8],
    /// Kind of the master.
    slave_kind: &'a [u8],
    /// Attributes of its kind.
    data: &'a [u8],
}

impl<'a> LinkMessage<'a> {
    fn read(payload: &'a [u8]) -> Result<LinkMessage<'a>, NetlinkError> {
        let mut link = LinkMessage::default();
        for attribute in attributes(payload, HEADER)? {
            let (kind, value) = attribute?;
            match kind {
                IFLA_ADDRESS => link.hardware = value,
                IFLA_IFNAME => link.name = Some(value),
                IFLA_MTU => link.mtu = number(value)?,
                IFLA_LINK => link.other = Some(number(value)?),
                IFLA_MASTER => link.master = Some(number(value)?),
                IFLA_LINKINFO => {
                    for (kind, value) in Attributes::nested(value).flatten() {
                        match kind {
                            IFLA_INFO_KIND => link.kind = value.strip_suffix(b"\0").unwrap_or(value),
                            IFLA_INFO_SLAVE_KIND => link.slave_kind = value.strip_suffix(b"\0").unwrap_or(value),
                            IFLA_INFO_DATA => link.data = value,
                            _ => {}
                        }
                    }
                }
                IFLA_IFALIAS => link.alias = value.strip_suffix(b"\0").unwrap_or(value),
                IFLA_GROUP => link.group = number(value)?,
                // Any number: the kernel reports none (-1) for a namespace that is being removed.
                IFLA_LINK_NETNSID => link.elsewhere = true,
                _ => {}
            }
        }
        link.index = number(payload.get(4..8).unwrap_or_default())?;
        link.flags = number(payload.get(8..12).unwrap_or_default())?;
        Ok(link)
    }

    fn dev(&self) -> Result<Dev, NetlinkError> {
        let index = self.index;
        let bytes = self.name.ok_or_else(|| undecodable(format_args!("link {index} has no name")))?;
        Ok(Dev { index, name: name(bytes)? })
    }

    fn is_up(&self) -> bool {
        self.flags & IFF_UP != 0
    }

    /// The link in the same network namespace that it refers to: its other end, or the link that it is built on.
    fn other(&self) -> Option<u32> {
        self.other.filter(|other| *other != 0 && !self.elsewhere)
    }

    /// An attribute of a link's kind.
    fn data(&self, wanted: u16) -> Option<&'a [u8]> {
        Attributes::nested(self.data).flatten().find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
    }

    /// Whether a switch of its kind is on, of any size.
    fn is_on(&self, wanted: u16) -> bool {
        self.data(wanted).is_some_and(|value| value.iter().any(|byte| *byte != 0))
    }
}

/// The message without its counters and the settings of each family: they are two thirds of it, and read elsewhere.
pub fn without_counters(payload: &[u8]) -> Vec<u8> {
    let mut kept: Vec<u8> = payload.iter().copied().take(HEADER).collect();
    for (kind, value) in attributes(payload, HEADER).into_iter().flatten().flatten() {
        if !matches!(kind, IFLA_STATS | IFLA_STATS64 | IFLA_MAP | IFLA_AF_SPEC) {
            push(&mut kept, kind, value);
        }
    }
    kept
}

/// Decodes a link.
pub fn seen(payload: &[u8]) -> Result<Option<Link>, NetlinkError> {
    let link = LinkMessage::read(payload)?;
    Ok(Some(Link {
        dev: link.dev()?,
        up: link.is_up(),
        carrier: link.flags & IFF_LOWER_UP != 0,
        mtu: link.mtu,
        master: link.master,
        vrf: link.master.filter(|_| link.slave_kind == VRF),
        vrf_table: link.data(IFLA_VRF_TABLE).filter(|_| link.kind == VRF).map(number).transpose()?,
        group: link.group,
        hardware: link.hardware.to_vec(),
        kind: link.kind.into(),
    }))
}

/// Decodes a bridge; `None` for other links, which old kernels do not filter out.
pub fn seen_bridge(payload: &[u8]) -> Result<Option<SeenBridge>, NetlinkError> {
    let link = LinkMessage::read(payload)?;
    if link.kind != BRIDGE {
        return Ok(None);
    }
    Ok(Some(SeenBridge {
        dev: link.dev()?,
        up: link.is_up(),
        mtu: link.mtu,
        stp: link.is_on(IFLA_BR_STP_STATE),
        vlan_filtering: link.is_on(IFLA_BR_VLAN_FILTERING),
        ours: link.alias == ALIAS.as_bytes(),
    }))
}

/// Decodes a veth: the link itself, and the index of its other end if that is in the same network namespace. `None` for
/// other links.
pub fn seen_veth(payload: &[u8]) -> Result<Option<(Dev, Option<u32>)>, NetlinkError> {
    let link = LinkMessage::read(payload)?;
    if link.kind == VETH { Ok(Some((link.dev()?, link.other()))) } else { Ok(None) }
}

/// The name of a link that is built on another one (a VLAN, a macvlan), and the index of that one: 0 for a tunnel that
/// is not bound to any. `None` for other links.
pub fn seen_on_another(payload: &[u8]) -> Result<Option<(u32, IfName)>, NetlinkError> {
    let link = LinkMessage::read(payload)?;
    let below = link.other().or_else(|| TUNNELS.iter().any(|(kind, _)| *kind == link.kind).then_some(0));
    below.map(|below| Ok((below, link.dev()?.name))).transpose()
}
