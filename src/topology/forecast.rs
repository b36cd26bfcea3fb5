//! The node as it will be when everything declared exists, which the plans of later sections build on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use cidr::IpCidr;

use crate::config::{self, Config, Sysctl};
use crate::model::{FORWARD, FORWARD_OF_ALL, IfName, PROTO_DECLARED, PROTO_MENDED, Route, Rule, SysctlKey, family_of};
use crate::observed::{Gap, Observed, RouteSet, SeenRoute, SeenRule};
use crate::topology::{Topology, host};
use crate::{sorted, sysctl_d};

/// The declared rules.
#[derive(Debug)]
pub struct DeclaredRules {
    /// In the order of the configuration.
    pub rules: Vec<SeenRule>,
    /// For lookups.
    sorted: Vec<SeenRule>,
}

impl DeclaredRules {
    /// Those of a configuration.
    pub fn of(desired: &Config) -> DeclaredRules {
        let rules: Vec<SeenRule> = desired.rules.iter().map(config::RuleEntry::to_rule).collect();
        let sorted = sorted::list(rules.iter().cloned(), |a, b| a.essence().cmp(&b.essence()));
        DeclaredRules { rules, sorted }
    }

    /// Those that exist, or will: without the ones that the section `rules` blocks. Nothing is to be built on those.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn to_come(desired: &Config, observed: &Observed) -> Result<DeclaredRules, Gap> {
        let mut declared = DeclaredRules::of(desired);
        let of_hosts = |wanted: &&SeenRule| host(wanted.rule.selector.from.as_ref()).is_some();
        if !declared.rules.iter().any(|wanted| of_hosts(&wanted)) {
            return Ok(declared);
        }
        let there = sorted::set(observed.rules()?.iter().map(SeenRule::essence));
        let is_missing = |wanted: &&SeenRule| !there.contains(&wanted.essence());
        let taken = Taken::of(declared.rules.iter().filter(is_missing), &Topology::of(observed))?;
        declared.rules.retain(|wanted| !is_missing(&wanted) || taken.why(&wanted.rule).is_none());
        Ok(declared)
    }

    /// Those that look up a table, and have no other parts.
    pub fn lookups(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter().filter_map(SeenRule::lookup)
    }

    /// Whether a rule is declared, whatever installed it.
    pub fn has(&self, rule: &SeenRule) -> bool {
        self.sorted.binary_search_by(|other| other.essence().cmp(&rule.essence())).is_ok()
    }

    /// Whether a live rule remains after the section's plan: it is another owner's, or declared.
    pub fn keeps(&self, rule: &SeenRule) -> bool {
        rule.rule.protocol != PROTO_DECLARED || self.has(rule)
    }
}

/// The single addresses from which no rule must be declared, each with the reason: the VPC CNI takes all rules from one of
/// its own for rules of its own. For a pod's, it deletes them when it restarts, and adds one to the table of the last of
/// them (rule 1536).
#[derive(Debug)]
pub struct Taken(BTreeMap<IpAddr, String>);

impl Taken {
    /// Those among the sources of these rules.
    ///
    /// # Errors
    ///
    /// What must be looked at first.
    pub fn of<'r>(rules: impl Iterator<Item = &'r SeenRule>, topology: &Topology) -> Result<Taken, Gap> {
        let sources = sorted::set(rules.filter_map(|rule| host(rule.rule.selector.from.as_ref())));
        let mut taken = BTreeMap::new();
        if sources.is_empty() || !topology.is_vpc_cni()? {
            return Ok(Taken(taken));
        }
        let (uplinks, pods) = (topology.uplinks()?, topology.vpc_pods()?);
        for address in sources {
            let owner = match topology.carriers(address)?.intersection(&uplinks).next() {
                Some(uplink) => format!("{}'s", topology.name_of(*uplink)?),
                None if pods.contains_key(&address) => "a pod's".to_owned(),
                None => continue,
            };
            let why = format!(
                "{address} is {owner} address, and when the VPC CNI restarts, it deletes such rules, or takes their table \
                 for its own; declare a rule for a prefix, a mark or an interface instead"
            );
            taken.insert(address, why);
        }
        Ok(Taken(taken))
    }

    /// Why this rule must not be declared.
    pub fn why(&self, rule: &Rule) -> Option<&String> {
        host(rule.selector.from.as_ref()).and_then(|address| self.0.get(&address))
    }
}

/// What distinguishes unlimited routes in the kernel.
pub type RouteKey = (u32, IpCidr, u32);

/// The place of a future route.
pub fn route_key(wanted: &Route) -> RouteKey {
    (wanted.table, wanted.to, wanted.stored_metric())
}

fn key_of_live(live: &SeenRoute) -> RouteKey {
    (live.table, live.to, live.metric)
}

/// The places of the declared routes.
#[derive(Debug)]
pub struct DeclaredRoutes(BTreeSet<RouteKey>);

impl DeclaredRoutes {
    /// Those of a configuration.
    pub fn of(desired: &Config) -> DeclaredRoutes {
        DeclaredRoutes(sorted::set(desired.routes.iter().map(|wish| route_key(&wish.to_route(|_| 0)))))
    }

    /// Whether a live route is in one of these places.
    pub fn has(&self, live: &SeenRoute) -> bool {
        live.is_unlimited() && self.0.contains(&key_of_live(live))
    }

    /// The live routes in these places, of any owner. A table may be much larger than what is declared in it.
    pub fn rivals<'a>(&self, observed: &'a Observed) -> Result<BTreeMap<RouteKey, Vec<&'a SeenRoute>>, Gap> {
        let tables = sorted::set(self.0.iter().map(|(table, to, _)| RouteSet::Table(family_of(to), *table)));
        let mut rivals: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for route in observed.routes(tables)?.into_iter().flatten().filter(|route| self.has(route)) {
            rivals.entry(key_of_live(route)).or_default().push(route);
        }
        Ok(rivals)
    }
}

/// A table's routes after the section `routes`, which the plans of other sections build on.
pub fn routes(desired: &Config, observed: &Observed, set: RouteSet) -> Result<Vec<SeenRoute>, Gap> {
    let live = observed.routes([set.clone()])?;
    let mut routes: Vec<SeenRoute> = live.first().copied().unwrap_or_default().to_vec();
    let wishes = desired.routes.iter().map(|wish| (wish, wish.to_route(|_| 0)));
    let wishes: Vec<_> = wishes.filter(|(_, it)| set == RouteSet::Table(it.family(), it.table)).collect();
    let declared = DeclaredRoutes(sorted::set(wishes.iter().map(|(_, wanted)| route_key(wanted))));
    routes.retain(|route| route.protocol != PROTO_DECLARED || declared.has(route));
    // A repaired route that is declared by now counts as declared, and gives way to nothing.
    let repairs = routes.iter_mut().filter(|route| route.protocol == PROTO_MENDED && declared.has(route));
    repairs.for_each(|route| route.protocol = PROTO_DECLARED);
    let taken = sorted::set(routes.iter().filter(|route| declared.has(route)).map(key_of_live));
    let coming: Vec<_> = wishes.into_iter().filter(|(_, wanted)| !taken.contains(&route_key(wanted))).collect();
    let indexes = indexes(coming.iter().flat_map(|(wish, _)| wish.devs()), observed)?;
    // A route whose interface is missing must wait for it.
    let coming = coming.into_iter().filter(|(wish, _)| wish.devs().all(|name| indexes.contains_key(name)));
    let index = |name: &IfName| indexes.get(name).copied().unwrap_or_default();
    routes.extend(coming.map(|(wish, _)| SeenRoute::of(&wish.to_route(index))));
    Ok(routes)
}

/// The indexes of the interfaces with these names that exist.
pub fn indexes<'a>(
    names: impl IntoIterator<Item = &'a IfName>,
    observed: &Observed,
) -> Result<BTreeMap<&'a IfName, u32>, Gap> {
    let names = sorted::set(names);
    let links = observed.links_named(names.iter().copied().cloned())?;
    let links = names.into_iter().zip(links);
    Ok(sorted::map(links.filter_map(|(name, link)| Some((name, link?.dev.index)))))
}

/// The declared bridges that do not exist yet, and can be created.
pub fn bridges_to_create<'a>(desired: &'a Config, observed: &Observed) -> Result<Vec<&'a IfName>, Gap> {
    let names = || desired.bridges.iter().map(|wish| &wish.name);
    let links = observed.links_named(names().cloned())?;
    Ok(names().zip(links).filter(|(_, link)| link.is_none()).map(|(name, _)| name).collect())
}

/// Each key that is declared, directly or by a pattern, and its entry. As in sysctl.d(5), a direct key wins over
/// patterns, and among patterns the last one.
pub fn sysctls<'a>(desired: &'a Config, observed: &Observed) -> Result<BTreeMap<SysctlKey, &'a Sysctl>, Gap> {
    let mut wanted = BTreeMap::new();
    let globs = || desired.sysctls.iter().filter_map(|wish| Some((wish, wish.key.glob()?)));
    let names = observed.sysctl_names(globs().map(|(_, (directory, ..))| directory.to_owned()))?;
    let to_come = bridges_to_create(desired, observed)?;
    for ((wish, (directory, pattern, rest)), names) in globs().zip(names) {
        let names = names.iter().map(|name| &**name).chain(to_come.iter().map(|name| name.as_bytes()));
        for name in names.filter(|name| sysctl_d::is_match(pattern.as_bytes(), name)) {
            let path = [directory.as_bytes(), name, rest.as_bytes()].join(&b'/');
            let path = if path == FORWARD_OF_ALL.as_bytes() { FORWARD.as_bytes() } else { &path };
            wanted.insert(SysctlKey::from_path(path), wish);
        }
    }
    let plain = desired.sysctls.iter().filter(|wish| wish.key.glob().is_none());
    wanted.extend(plain.map(|wish| (SysctlKey::from_path(wish.key.path().as_bytes()), wish)));
    Ok(wanted)
}
