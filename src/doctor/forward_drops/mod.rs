//! A firewall drops the packets that `masquerade` is declared for.
//!
//! Two packets are followed through each base chain: the first packet of a TCP connection from the source through the
//! default route, and its reply. A condition is met, not met, or unknown: a port, a mark, a set. Packets that some rule
//! may accept are not reported: no report is better than a wrong one.

mod chains;
mod flow;

use std::collections::BTreeMap;

use super::Finding;
use super::facts::{Facts, shortened};
use crate::model::masquerade::{BaseChain, FilterTable, Masquerade, Verdict};
use crate::model::{Family, one_line, shell_word};
use crate::observed::Gap;
use crate::sorted;
use chains::{Fate, fate};
use flow::{Attached, MasqueradedPacket, Way};

pub fn dropped(facts: &Facts) -> Result<Vec<Finding>, Gap> {
    let wishes: Vec<Masquerade> = facts.desired.masquerade.iter().map(|wish| wish.to_masquerade()).collect();
    if wishes.is_empty() {
        return Ok(Vec::new());
    }
    let tables = facts.observed.filters()?;
    if tables.is_empty() {
        return Ok(Vec::new());
    }
    let links = Attached::of(facts)?;
    let ways = wishes.iter().map(|wish| Way::of(wish, &links, facts)).collect::<Result<Vec<_>, _>>()?;
    let mut findings = Vec::new();
    for (table, base) in tables.iter().flat_map(|table| table.bases.iter().map(move |base| (table, base))) {
        let mut fates: BTreeMap<[Fate; 2], Vec<&Way>> = BTreeMap::new();
        for way in ways.iter().filter(|way| table.has(way.family)) {
            let fate_of = |reply| fate(table, base, &MasqueradedPacket { way, reply, forward: base.forward });
            fates.entry([false, true].map(fate_of)).or_default().push(way);
        }
        let some = fates.into_iter().filter(|(fates, _)| fates.contains(&Fate::Lost));
        findings.extend(some.map(|(fates, ways)| finding(table, base, fates, &ways)));
    }
    Ok(findings)
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
        (_, by) if by.is_empty() => format!("packets from {sources}"),
        (_, by) => format!("packets from {sources} that leave by {by}"),
    };
    let also = if fates == [Fate::Lost; 2] { ", and the replies" } else { "" };
    let (chain, name) = (String::from_utf8_lossy(&base.name), one_line(&table.name));
    let evidence = format!(
        "the chain {} of the nftables table {} {name} drops {what}{also}, because none of its rules accepts them first",
        one_line(&chain),
        table.family
    );
    let cure: Vec<String> = ways.iter().map(|way| cure(table, &chain, fates, way)).collect();
    Finding::new(evidence, None, cure.join("\n"))
}

/// The commands that let the connections of the source and their replies pass, as far as needed.
fn cure(table: &FilterTable, chain: &str, [request, reply]: [Fate; 2], way: &Way) -> String {
    let source = way.source;
    let join = |out: String, back: String| {
        let needed = [(request == Fate::Lost).then_some(out), (reply != Fate::Passes).then_some(back)];
        needed.into_iter().flatten().collect::<Vec<_>>().join(" && ")
    };
    let ip = if way.family == Family::V4 { "ip" } else { "ip6" };
    match (table.family, &*table.name, chain) {
        // The names that iptables uses. iptables should keep writing its own rules, so that it can read them.
        ("ip" | "ip6", "filter" | "mangle" | "raw", "FORWARD" | "PREROUTING") => {
            // Docker's chain for administrators' rules, if it comes first.
            let user = Verdict::Chain(b"DOCKER-USER".into(), false);
            let docker =
                table.chains.get(chain.as_bytes()).is_some_and(|rules| rules.iter().any(|it| it.verdict == user));
            let chain = if docker { "DOCKER-USER" } else { chain };
            let other = if table.name == "filter" { String::new() } else { format!(" -t {}", table.name) };
            let insert = format!("{ip}tables{other} -I {chain}");
            let answers = "-m conntrack --ctstate RELATED,ESTABLISHED";
            join(format!("{insert} -s {source} -j ACCEPT"), format!("{insert} -d {source} {answers} -j ACCEPT"))
        }
        // Rules that others add to firewalld's table are lost when it restarts, or refused.
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
    use super::super::facts::Files;
    use super::*;
    use crate::model::masquerade::{Condition, FilterRule, Interface};
    use crate::observed::{Observed, Want};
    use crate::reconcile::testing::{Model, desired};

    fn rule(conditions: Vec<Condition>, verdict: Verdict) -> FilterRule {
        FilterRule { conditions, verdict }
    }

    fn judged(node: &mut Model, yaml: &str) -> Vec<Finding> {
        let desired = desired(yaml);
        let (mut observed, files) = (Observed::default(), Files::default());
        loop {
            match dropped(&Facts { desired: &desired, observed: &observed, files: &files }) {
                Ok(findings) => return findings,
                Err(Gap::Unseen(wants)) => wants.into_iter().for_each(|want| node.answer(want, &mut observed)),
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

    /// Each of many levels leads to the next one by two rules: more ways than could be followed one by one.
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
            let says = found.iter().any(|it| it.evidence.contains("drops packets from"));
            assert_eq!(says, lost, "{case}: {found:?}");
        }
        assert!(judged(&mut Model::new(NODE), "{}").is_empty());
        let mut node = Model::new(NODE);
        judged(&mut node, "{}");
        assert_eq!(node.asked, Vec::<Want>::new(), "where nothing is declared nothing is looked at");
    }
}
