//! Captures this node: takes all dumps, runs everything that a captured node can be asked once, and adds what other questions
//! may need.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context;

use super::{BYTE_ORDER, CONFIGURATION, CaptureFile, FILES, FORMAT_VERSION, TABLES};
use crate::config::{self, Config, Loaded};
use crate::doctor::{self, Drops};
use crate::engine;
use crate::host::Host;
use crate::model::{SysctlKey, one_line};
use crate::node::{self, FibReader, Marks, Root};
use crate::observed::{Gap, Observed};
use crate::status;
use crate::store::Store;
use crate::tape::Tape;
use crate::topology::Topology;

/// The settings of interfaces that decide about routing, or are asked about with those that do.
const OF_LINKS: [(&str, &[&str]); 2] = [
    (
        "ipv4",
        &[
            "accept_local",
            "accept_redirects",
            "arp_announce",
            "arp_filter",
            "arp_ignore",
            "disable_policy",
            "forwarding",
            "ignore_routes_with_linkdown",
            "log_martians",
            "promote_secondaries",
            "proxy_arp",
            "route_localnet",
            "rp_filter",
            "secure_redirects",
            "send_redirects",
            "shared_media",
            "src_valid_mark",
        ],
    ),
    (
        "ipv6",
        &[
            "accept_ra",
            "accept_ra_defrtr",
            "accept_ra_min_hop_limit",
            "accept_ra_pinfo",
            "accept_ra_rt_info_max_plen",
            "accept_redirects",
            "addr_gen_mode",
            "autoconf",
            "dad_transmits",
            "disable_ipv6",
            "force_forwarding",
            "forwarding",
            "ignore_routes_with_linkdown",
            "keep_addr_on_down",
            "proxy_ndp",
            "router_solicitations",
            "use_tempaddr",
        ],
    ),
];

/// Those of the whole node.
const OF_NODE: [&str; 9] = [
    "net/ipv4/ip_forward",
    "net/ipv4/fib_multipath_hash_policy",
    "net/ipv4/fib_multipath_use_neigh",
    "net/ipv4/fwmark_reflect",
    "net/ipv4/tcp_fwmark_accept",
    "net/ipv4/tcp_l3mdev_accept",
    "net/ipv6/fib_multipath_hash_policy",
    "net/bridge/bridge-nf-call-iptables",
    "net/netfilter/nf_conntrack_max",
];

/// The directories in which interfaces have settings.
const DIRECTORIES: [&str; 4] = ["net/ipv4/conf", "net/ipv6/conf", "net/ipv4/neigh", "net/ipv6/neigh"];

/// Captures this node. `hurried` is the configuration as `status` takes it, which does not wait for a crictl that hangs.
///
/// # Errors
///
/// The kernel did not answer over netlink.
pub fn take(
    loaded: Loaded,
    hurried: &Config,
    [state, durable]: [&Path; 2],
    root: &Path,
) -> anyhow::Result<CaptureFile> {
    let tape = Tape::recording();
    let root = Root::taped(root, &tape)
        .with_context(|| format!("cannot open the root directory {} (--root)", one_line(&root.to_string_lossy())))?;
    let dumps = Arc::new(node::dumps()?);
    let mut host = Host::captured(Arc::clone(&dumps), Store::taped(state, durable, tape.clone()), tape.clone());
    let desired = &loaded.desired;
    // First of all: each file is recorded once, and it knows where they are.
    doctor::examine(desired, &mut host, &root, Drops::Counted);
    engine::dry_run(desired, &mut host);
    // What failed is on the tape.
    let _ = status::look(hurried, &mut host, (state, durable));
    let _ = host.ask(&mut Observed::default(), more);
    let mut reader = FibReader::captured(Arc::clone(&dumps), tape.clone());
    for nowhere in [std::net::Ipv4Addr::UNSPECIFIED.into(), std::net::Ipv6Addr::UNSPECIFIED.into()] {
        let _ = reader.read(nowhere, nowhere, Marks::Some);
    }
    let shown = reader.shown()?;
    let captured = host.store.recall().map_or(Duration::ZERO, |recall| recall.wall);
    let captured = humantime::format_rfc3339_seconds(UNIX_EPOCH + captured).to_string();
    drop((host, reader));
    let mut looks = tape.take();
    let files = loaded.into_files().into_iter().flat_map(|(file, text)| [file, text]);
    let configuration = looks.seen.entry(CONFIGURATION.into()).or_default();
    configuration.insert(FILES.into(), files.collect());
    configuration.insert(TABLES.into(), config::table_names());
    Ok(CaptureFile {
        format_version: FORMAT_VERSION.into(),
        program: env!("CARGO_PKG_VERSION").into(),
        captured,
        byte_order: BYTE_ORDER.into(),
        anonymous: false,
        failed: looks.failed,
        shown,
        seen: looks.seen,
        netlink: dumps.lists(),
    })
}

/// Asks for what another configuration, or a later version, may ask.
fn more(seen: &Observed) -> Result<(), Gap> {
    // Each may fail without the others.
    let failed = |gap: Gap| if matches!(gap, Gap::Unseen(_)) { Err(gap) } else { Ok(()) };
    seen.nat().map(drop).or_else(failed)?;
    seen.filters().map(drop).or_else(failed)?;
    seen.persisted().map(drop).or_else(failed)?;
    // A run reads it only if the rules have changed, and substitutes for them have.
    seen.cni_memory().map(drop).or_else(failed)?;
    seen.sysctl_names(DIRECTORIES.map(str::to_owned)).map(drop).or_else(failed)?;
    let topology = Topology::of(seen);
    let names = match topology.uplinks().and_then(|uplinks| uplinks.into_iter().map(|it| topology.name(it)).collect()) {
        Ok(names) => names,
        Err(gap) => return failed(gap),
    };
    let names: Vec<Option<_>> = names;
    let names = names.into_iter().flatten().map(|name| name.as_bytes()).chain([&b"all"[..], b"default"]);
    let mut keys = OF_NODE.map(|key| SysctlKey::from_path(key.as_bytes())).to_vec();
    for name in names {
        for (family, settings) in OF_LINKS {
            let path = |setting: &&str| [b"net", family.as_bytes(), b"conf", name, setting.as_bytes()].join(&b'/');
            keys.extend(settings.iter().map(|setting| SysctlKey::from_path(&path(setting))));
        }
    }
    seen.sysctls_one_by_one(&keys).map(drop)
}
