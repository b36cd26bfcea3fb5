//! A firewall of others drops what `masquerade` is declared for.
//!
//! Two packets are followed through each base chain: the first of a TCP connection that comes from the source and leaves
//! by the default route, and the answer to it. A condition is met for certain, or not at all, or nobody knows: by a port,
//! a mark, a set. What may be let through by a rule is left unsaid: no word is better than a wrong one.

use std::collections::{BTreeMap, BTreeSet};

use cidr::{IpCidr, IpInet};

use super::Finding;
use super::facts::{Facts, shortened};
use crate::nat::{BaseChain, Condition, FilterRule, FilterTable, Interface, Masquerade, Verdict, state};
use crate::net::{Family, IfName, TABLE_DEFAULT, TABLE_LOCAL, TABLE_MAIN, covers, family_of, one_line, shell_word};
use crate::observed::{Gap, SeenRule};
use crate::sorted;

const TCP: u8 = 6;
/// `IPS_DST_NAT`: neither packet is of a connection whose destination was changed.
const DST_NAT: u32 = 1 << 5;

pub fn dropped(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let wishes: Vec<Masquerade> = facts.desired.masquerade.iter().map(|wish| wish.to_masquerade()).collect();
    if wishes.is_empty() {
        return Ok(Vec::new());
    }
    let tables = facts.observed.filters()?;
    if tables.is_empty() {
        return Ok(Vec::new());
    }
    let links = Links::of(facts)?;
    let ways = wishes.iter().map(|wish| Way::of(wish, &links, facts)).collect::<Result<Vec<_>, _>>()?;
    let mut findings = Vec::new();
    for (table, base) in tables.iter().flat_map(|table| table.bases.iter().map(move |base| (table, base))) {
        let mut fates: BTreeMap<[Fate; 2], Vec<&Way>> = BTreeMap::new();
        for way in ways.iter().filter(|way| table.has(way.family)) {
            let fate_of = |reply| fate(table, base, &Packet { way, reply, forward: base.forward });
            fates.entry([false, true].map(fate_of)).or_default().push(way);
        }
        let some = fates.into_iter().filter(|(fates, _)| fates.contains(&Fate::Lost));
        findings.extend(some.map(|(fates, ways)| finding(table, base, fates, &ways)));
    }
    Ok(findings)
}

/// The interfaces, and what is connected to them or will be.
struct Links<'a> {
    by_subnet: BTreeMap<IpCidr, BTreeSet<&'a IfName>>,
    names: BTreeMap<u32, &'a IfName>,
    indexes: BTreeMap<&'a IfName, u32>,
}

impl<'a> Links<'a> {
    fn of(facts: &'a Facts) -> Result<Links<'a>, Gap> {
        let names = facts.names()?;
        let live = facts.observed.addresses()?.iter();
        let live = live.filter_map(|address| Some((*names.get(&address.index)?, address.subnet)));
        let mut by_subnet: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
        for (name, subnet) in live.chain(facts.desired.all_addresses().map(|(name, inet)| (name, inet.network()))) {
            by_subnet.entry(subnet).or_default().insert(name);
        }
        let indexes = sorted::map(names.iter().map(|(index, name)| (*name, *index)));
        Ok(Links { by_subnet, names, indexes })
    }

    fn end(&self, names: impl IntoIterator<Item = &'a IfName>) -> End {
        names.into_iter().map(|name| (name.clone(), self.indexes.get(name).copied())).collect()
    }

    /// Whether all of this is connected to an interface other than these.
    fn are_elsewhere(&self, prefix: &IpCidr, outside: &End) -> bool {
        let wider = (0..=prefix.network_length()).filter_map(|length| IpInet::new(prefix.first_address(), length).ok());
        let links = wider.filter_map(|inet| self.by_subnet.get(&inet.network())).flatten();
        links.into_iter().any(|name| !outside.iter().any(|(out, _)| out == *name))
    }
}

/// The interfaces that something may be behind, with their indexes; none where that is not known.
type End = Vec<(IfName, Option<u32>)>;

/// The way of the packets that come from the source of a wish.
struct Way<'a> {
    source: IpCidr,
    family: Family,
    inside: End,
    outside: End,
    links: &'a Links<'a>,
}

impl<'a> Way<'a> {
    fn of(wish: &'a Masquerade, links: &'a Links<'a>, facts: &Facts) -> Result<Way<'a>, Gap> {
        let (source, family) = (wish.source, family_of(&wish.source));
        let outside = match &wish.out {
            Some(out) => links.end([out]),
            None => links.end(ways_out(wish, links, facts)?),
        };
        let carriers = links.by_subnet.iter().filter(|(subnet, _)| overlap(subnet, &source));
        let mut inside = links.end(sorted::set(carriers.flat_map(|(_, names)| names).copied()));
        if inside.is_empty() {
            inside = links.end(&wish.except_out);
        }
        Ok(Way { source, family, inside, outside, links })
    }
}

/// By which interfaces the default routes lead that the source may be sent to; none where a rule cannot be reasoned about.
fn ways_out<'a>(wish: &Masquerade, links: &Links<'a>, facts: &Facts) -> Result<Vec<&'a IfName>, Gap> {
    let family = family_of(&wish.source);
    let of_family = |rule: &&SeenRule| match rule {
        SeenRule::Lookup(rule) => rule.family == family,
        SeenRule::Other { family: it, .. } => *it == family,
    };
    let mut tables = sorted::set([(family, TABLE_MAIN)]);
    for rule in facts.observed.rules()?.iter().filter(of_family) {
        match rule.lookup() {
            None => return Ok(Vec::new()),
            Some(rule) if matches!(rule.table, TABLE_LOCAL | TABLE_DEFAULT) => {}
            Some(rule) if rule.selector.from.is_none_or(|from| overlap(&from, &wish.source)) => {
                tables.insert((family, rule.table));
            }
            Some(_) => {}
        }
    }
    let tables = facts.tables(&tables)?;
    let defaults = tables.into_values().flatten().filter(|route| route.to.network_length() == 0);
    let indexes = sorted::set(defaults.flat_map(|route| route.hops()).filter_map(|hop| hop.oif));
    Ok(indexes.into_iter().filter_map(|index| links.names.get(&index).copied()).collect())
}

/// One of the two packets.
struct Packet<'a> {
    way: &'a Way<'a>,
    reply: bool,
    /// Whether it was routed already.
    forward: bool,
}

impl Packet<'_> {
    /// Whether it meets all of them; `None`: perhaps.
    fn meets(&self, rule: &FilterRule) -> Option<bool> {
        let mut all = Some(true);
        for condition in &rule.conditions {
            match self.is(condition) {
                Some(false) => return Some(false),
                Some(true) => {}
                None => all = None,
            }
        }
        all
    }

    fn is(&self, condition: &Condition) -> Option<bool> {
        let Way { source, family, inside, outside, links } = self.way;
        let (from, to) = if self.reply { (outside, inside) } else { (inside, outside) };
        let within = |prefix: &IpCidr| match () {
            () if covers(prefix, source) => Some(true),
            () if !overlap(prefix, source) => Some(false),
            () => None,
        };
        let beyond = |prefix: &IpCidr| match prefix.first_address() {
            _ if prefix.network_length() == 0 => Some(true),
            first if first.is_multicast() || first.is_loopback() => Some(false),
            _ if covers(source, prefix) || links.are_elsewhere(prefix, outside) => Some(false),
            _ => None,
        };
        let (met, not) = match condition {
            Condition::Family(it) => (Some(it == family), false),
            Condition::In(link, not) => (by(from, link), *not),
            Condition::From(prefix, not) => (if self.reply { beyond(prefix) } else { within(prefix) }, *not),
            Condition::Protocol(it, not) => (Some(*it == TCP), *not),
            // Before it is routed, and the address of a masqueraded source put back, that is not known.
            _ if !self.forward => (None, false),
            Condition::Out(link, not) => (by(to, link), *not),
            Condition::To(prefix, not) => (if self.reply { within(prefix) } else { beyond(prefix) }, *not),
            Condition::State(states, not) => {
                let its = if self.reply { state::ESTABLISHED } else { state::NEW };
                (Some(states & its != 0), *not)
            }
            Condition::Status(DST_NAT, not) => (Some(false), *not),
            Condition::Status(..) | Condition::Other => (None, false),
        };
        met.map(|met| met != not)
    }
}

/// Whether what is behind these interfaces passes this one; `None`: perhaps.
fn by(end: &End, link: &Interface) -> Option<bool> {
    let is = |(name, index): &(IfName, Option<u32>)| link.is(name, *index);
    match end.iter().filter(|it| is(it)).count() {
        _ if end.is_empty() => None,
        0 => Some(false),
        all if all == end.len() => Some(true),
        _ => None,
    }
}

fn overlap(a: &IpCidr, b: &IpCidr) -> bool {
    covers(a, b) || covers(b, a)
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fate {
    /// It is dropped.
    Lost,
    /// It is let through.
    Passes,
    /// It may be let through.
    Perhaps,
    /// It comes back from a chain.
    Back,
    /// It comes back, or is dropped.
    BackOrLost,
}

/// What becomes of it in a base chain.
fn fate(table: &FilterTable, base: &BaseChain, packet: &Packet<'_>) -> Fate {
    match (Walk { table, packet, known: BTreeMap::new() }).fate_in(&base.name) {
        Fate::Back | Fate::BackOrLost if base.drops => Fate::Lost,
        Fate::Back => Fate::Passes,
        Fate::BackOrLost => Fate::Perhaps,
        fate => fate,
    }
}

/// A packet's way through the chains of a table. What becomes of it in a chain does not depend on how it came there.
struct Walk<'a> {
    table: &'a FilterTable,
    packet: &'a Packet<'a>,
    known: BTreeMap<&'a [u8], Fate>,
}

impl<'a> Walk<'a> {
    fn fate_in(&mut self, chain: &'a [u8]) -> Fate {
        if let Some(known) = self.known.get(chain) {
            return *known;
        }
        // The kernel lets no chain lead back to itself.
        self.known.insert(chain, Fate::Perhaps);
        let fate = self.follow(chain);
        self.known.insert(chain, fate);
        fate
    }

    fn follow(&mut self, chain: &'a [u8]) -> Fate {
        // Whether it is here for certain, and else whether it may have gone back.
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

impl FilterTable {
    fn has(&self, family: Family) -> bool {
        matches!((self.family, family), ("inet", _) | ("ip", Family::V4) | ("ip6", Family::V6))
    }
}

fn finding(table: &FilterTable, base: &BaseChain, fates: [Fate; 2], ways: &[&Way]) -> Finding {
    let sources = shortened(ways.iter().map(|way| way.source));
    let outside = ways.iter().flat_map(|way| &way.outside).map(|(name, _)| name);
    let what = match (fates, shortened(sorted::set(outside))) {
        ([Fate::Passes | Fate::Perhaps, _], _) => format!("the replies to {sources}"),
        (_, by) if by.is_empty() => format!("what comes from {sources}"),
        (_, by) => format!("what comes from {sources} and leaves by {by}"),
    };
    let also = if fates == [Fate::Lost; 2] { ", and the replies" } else { "" };
    let (chain, name) = (String::from_utf8_lossy(&base.name), one_line(&table.name));
    let evidence = format!(
        "the chain {} of the nftables table {} {name} drops {what}{also}: no rule of it accepts them before",
        one_line(&chain),
        table.family
    );
    let cure: Vec<String> = ways.iter().map(|way| cure(table, &chain, fates, way)).collect();
    Finding::new(evidence, None, cure.join("\n"))
}

/// What an operator would type to let the connections of the source pass, and the answers to them: what of it is needed.
fn cure(table: &FilterTable, chain: &str, [request, reply]: [Fate; 2], way: &Way) -> String {
    let source = way.source;
    let join = |out: String, back: String| {
        let needed = [(request == Fate::Lost).then_some(out), (reply != Fate::Passes).then_some(back)];
        needed.into_iter().flatten().collect::<Vec<_>>().join(" && ")
    };
    let ip = if way.family == Family::V4 { "ip" } else { "ip6" };
    match (table.family, &*table.name, chain) {
        // The names that iptables gives to its own. Its way of writing keeps its rules readable for it.
        ("ip" | "ip6", "filter" | "mangle" | "raw", "FORWARD" | "PREROUTING") => {
            // Docker's chain for the rules of administrators, where it is asked first.
            let user = Verdict::Chain(b"DOCKER-USER".into(), false);
            let docker =
                table.chains.get(chain.as_bytes()).is_some_and(|rules| rules.iter().any(|it| it.verdict == user));
            let chain = if docker { "DOCKER-USER" } else { chain };
            let other = if table.name == "filter" { String::new() } else { format!(" -t {}", table.name) };
            let insert = format!("{ip}tables{other} -I {chain}");
            let answers = "-m conntrack --ctstate RELATED,ESTABLISHED";
            join(format!("{insert} -s {source} -j ACCEPT"), format!("{insert} -d {source} {answers} -j ACCEPT"))
        }
        // What others write into its table is gone when it starts again, or is refused.
        ("inet", "firewalld", _) => {
            format!("firewall-cmd --permanent --zone=trusted --add-source={source} && firewall-cmd --reload")
        }
        (family, name, _) => {
            let insert = |what: String| {
                let words = format!("insert rule {family} {name} {chain} {ip} {what} accept");
                format!("nft {}", shell_word(words.as_bytes()))
            };
            join(insert(format!("saddr {source}")), insert(format!("daddr {source} ct state related,established")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::{Files, Martians};
    use super::*;
    use crate::observed::{Observed, Want};
    use crate::reconcile::testing::{Model, desired};

    fn rule(conditions: Vec<Condition>, verdict: Verdict) -> FilterRule {
        FilterRule { conditions, verdict }
    }

    fn judged(node: &mut Model, yaml: &str) -> Vec<Finding> {
        let desired = desired(yaml);
        let files = Files::default();
        let mut facts =
            Facts { desired: &desired, observed: Observed::default(), files, martians: Ok(Martians::default()) };
        loop {
            match dropped(&facts) {
                Ok(findings) => return findings,
                Err(Gap::Unseen(wants)) => wants.into_iter().for_each(|want| node.answer(want, &mut facts.observed)),
                Err(Gap::Failed(why)) => panic!("{why}"),
            }
        }
    }

    fn table(drops: bool, chains: Vec<(&str, Vec<FilterRule>)>) -> FilterTable {
        FilterTable {
            family: "ip",
            name: "fw".into(),
            bases: vec![BaseChain { name: b"f".into(), forward: true, drops }],
            chains: chains.into_iter().map(|(name, rules)| (name.as_bytes().to_vec(), rules)).collect(),
        }
    }

    /// Each of many levels leads to the next one by two rules: more ways than anybody could follow one by one.
    #[test]
    fn no_number_of_ways_through_the_chains_is_too_many() {
        let name = |level: usize| if level == 0 { "f".to_owned() } else { format!("c{level}") };
        let mut chains = BTreeMap::new();
        for level in 0..100 {
            let jump = || rule(vec![Condition::Other], Verdict::Chain(name(level + 1).into_bytes(), false));
            chains.insert(name(level).into_bytes(), vec![jump(), jump()]);
        }
        let mut node = Model::new("link 2 eth0 192.0.2.2/24\nroute default via 192.0.2.1 dev 2");
        node.filters = vec![FilterTable { chains, ..table(true, vec![]) }];
        assert_eq!(judged(&mut node, "masquerade: [{source: 10.9.0.0/24}]").len(), 1);
    }

    #[test]
    fn where_it_comes_in_and_leaves_is_what_addresses_and_routes_say() {
        const NODE: &str = "link 2 eth0 192.0.2.2/24
            link 3 eth1 198.51.100.2/24
            link 4 br0 10.9.0.1/24
            link 5 docker0 172.17.0.1/16
            route default via 192.0.2.1 dev 2";
        let link = |text: &str| match text.parse() {
            Ok(index) => Interface::Index(index),
            Err(_) => Interface::Name(text.into()),
        };
        let comes = |text: &str| vec![Condition::In(link(text), false)];
        let leaves = |text: &str| vec![Condition::Out(link(text), false)];
        let to = |text: &str| vec![Condition::To(text.parse().unwrap(), false)];
        const PLAIN: &str = "masquerade: [{source: 10.9.0.0/24}]";
        // Whether the accept of a rule for these conditions, before a policy that drops, leaves the request lost.
        for (case, more, yaml, accepts, lost) in [
            ("nothing of it", "", PLAIN, vec![Condition::Family(Family::V6)], true),
            ("all", "", PLAIN, vec![], false),
            ("the bridge that carries it", "", PLAIN, comes("br0"), false),
            ("the same, by index", "", PLAIN, comes("4"), false),
            ("another bridge", "", PLAIN, comes("docker0"), true),
            ("any but that", "", PLAIN, vec![Condition::In(link("docker0"), true)], false),
            ("a source that no interface carries", "", "masquerade: [{source: 10.8.0.0/24}]", comes("docker0"), false),
            ("the same, excepted", "", "masquerade: [{source: 10.8.0.0/24, except_out: br8}]", comes("docker0"), true),
            (
                "a bridge to come",
                "",
                "bridges: [{name: br8, addresses: [10.8.0.1/24]}]\nmasquerade: [{source: 10.8.0.0/24}]",
                comes("br8"),
                false,
            ),
            ("the default route's", "", PLAIN, leaves("eth0"), false),
            ("another uplink", "", PLAIN, leaves("eth1"), true),
            ("what is declared", "", "masquerade: [{source: 10.9.0.0/24, out: eth1}]", leaves("eth1"), false),
            ("not what is declared", "", "masquerade: [{source: 10.9.0.0/24, out: eth1}]", leaves("eth0"), true),
            (
                "either of two",
                "rule 100 from 10.9.0.0/24 table 7\nroute default via 198.51.100.1 dev 3 table 7",
                PLAIN,
                leaves("eth1"),
                false,
            ),
            (
                "a table of other sources",
                "rule 100 from 10.7.0.0/24 table 7\nroute default via 198.51.100.1 dev 3 table 7",
                PLAIN,
                leaves("eth1"),
                true,
            ),
            ("a rule that is not understood", "rule 100 other", PLAIN, leaves("eth1"), false),
            ("some destinations", "", PLAIN, to("203.0.113.0/24"), false),
            ("destinations that are connected elsewhere", "", PLAIN, to("172.17.0.2"), true),
            ("destinations on the uplink", "", PLAIN, to("192.0.2.7"), false),
            ("its own network", "", PLAIN, to("10.9.0.0/24"), true),
            ("other protocols", "", PLAIN, vec![Condition::Protocol(1, false)], true),
            ("what is not understood", "", PLAIN, vec![Condition::Other], false),
            ("what is not understood of others", "", PLAIN, [comes("docker0"), vec![Condition::Other]].concat(), true),
        ] {
            let mut node = Model::new(&format!("{NODE}\n{more}"));
            node.filters = vec![table(true, vec![("f", vec![rule(accepts, Verdict::Accept)])])];
            let found = judged(&mut node, yaml);
            let says = found.iter().any(|it| it.evidence.contains("drops what comes from"));
            assert_eq!(says, lost, "{case}: {found:?}");
        }
        assert!(judged(&mut Model::new(NODE), "{}").is_empty());
        let mut node = Model::new(NODE);
        judged(&mut node, "{}");
        assert_eq!(node.asked, Vec::<Want>::new(), "where nothing is declared nothing is looked at");
    }
}
