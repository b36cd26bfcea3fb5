//! `masquerade`: the one nftables table of ours holds what is declared, and goes when nothing is. Tables of others are
//! never touched; where one of them drops what would be masqueraded, that is said.

use std::collections::BTreeMap;

use cidr::IpCidr;

use crate::change::{Blocked, Change, Plan, Step};
use crate::desired::Desired;
use crate::memory::{Kind, Note};
use crate::nat::{self, Condition, ForwardDrop, ForwardRule, Masquerade, Name, SeenNat, SeenTable};
use crate::net::{Family, IfName, family_of, one_line, shell_word};
use crate::observed::{Gap, Observed};
use crate::sorted;

pub fn plan(desired: &Desired, observed: &Observed) -> Result<Plan, Gap> {
    let mut plan = Plan::default();
    let known = observed.recall()?.memory.made.get(&Kind::Masquerade).copied();
    let rules: Vec<Masquerade> = desired.masquerade.iter().map(|wish| wish.to_masquerade()).collect();
    if rules.is_empty() && known == Some(false) {
        return Ok(plan);
    }
    let live = match observed.nat()? {
        SeenNat::Table(live) => live.as_ref(),
        // Nothing says that there is anything of ours to be found.
        SeenNat::Hidden if rules.is_empty() && known.is_none() => return Ok(plan),
        SeenNat::Hidden => {
            let why = "cannot look at nftables: not permitted; even to look takes CAP_NET_ADMIN, in a dry run as well";
            return Err(Gap::Failed(why.into()));
        }
        SeenNat::Missing(_) if rules.is_empty() => None,
        SeenNat::Missing(why) => {
            let cure = "load its modules (modprobe nf_tables) or use a kernel that has them (CONFIG_NF_TABLES)";
            let because = format!("the kernel has no nftables ({why}); {cure}");
            plan.blocked.push(Blocked::new(nat::command(&nat::replacement(&rules)), because));
            return Ok(plan);
        }
    };
    let (change, reason) = match live {
        None if rules.is_empty() => (None, ""),
        Some(_) if rules.is_empty() => {
            (Some(Change::DeleteMasquerade), "node-fixer made it, and it is no longer declared")
        }
        Some(table) if is_so(table, &rules) => (None, ""),
        Some(_) => (Some(Change::SetMasquerade { rules: rules.clone(), anew: false }), "declared, and otherwise there"),
        None => (Some(Change::SetMasquerade { rules: rules.clone(), anew: true }), "declared, and not there"),
    };
    if let Some(change) = change {
        if observed.program(nat::PROGRAM)? {
            let step = Step { change, reason: reason.into() };
            if rules.is_empty() { &mut plan.removals } else { &mut plan.steps }.push(step);
        } else {
            let because = "there is no program nft on PATH; install it (Debian, Ubuntu: apt-get install nftables; \
                           Red Hat: dnf install nftables)";
            plan.blocked.push(Blocked::new(change.to_string(), because.into()));
        }
    }
    if !rules.is_empty() {
        dropped(desired, observed, &rules, &mut plan)?;
    }
    let some = live.is_some() || !plan.steps.is_empty();
    plan.remember.extend((known != Some(some)).then_some(Note::Made(Kind::Masquerade, some)));
    Ok(plan)
}

fn is_so(live: &SeenTable, rules: &[Masquerade]) -> bool {
    live.whole && live.rules.iter().cloned().eq(rules.iter().map(Masquerade::conditions))
}

/// Says what another's chain drops before it could be masqueraded.
fn dropped(desired: &Desired, observed: &Observed, rules: &[Masquerade], plan: &mut Plan) -> Result<(), Gap> {
    let drops = observed.forward_drops()?;
    if drops.is_empty() {
        return Ok(());
    }
    let links = links(desired, observed)?;
    for rule in rules {
        let family = family_of(&rule.source);
        let stranger = Stranger { rule, family, links: &links, desired };
        for drop in drops.iter().filter(|drop| drop.of == family) {
            let how = match drop.rules.iter().find(|it| stranger.is_decided_by(it)) {
                Some(first) if first.accepts => continue,
                Some(_) => "drops it by a rule of its own, and no rule before that accepts it",
                None if drop.at_end => "drops what none of its rules accepts, and none accepts this",
                None => continue,
            };
            plan.blocked.push(Blocked::new(
                format!("to forward what comes from {}", rule.source),
                format!(
                    "the chain {} of the table {} {} {how}; let it pass: {}",
                    one_line(&drop.chain),
                    drop.family,
                    one_line(&drop.table),
                    cure(drop, rule)
                ),
            ));
        }
    }
    Ok(())
}

/// The interfaces that have addresses or will have them, each with its subnets.
fn links(desired: &Desired, observed: &Observed) -> Result<BTreeMap<IfName, Vec<IpCidr>>, Gap> {
    let live = observed.addresses()?;
    let indexes = sorted::set(live.iter().map(|address| address.index));
    let names = sorted::map(indexes.iter().copied().zip(observed.names(indexes.clone())?));
    let name_of = |index| names.get(&index).copied().flatten().cloned();
    let live = live.iter().filter_map(|address| Some((name_of(address.index)?, address.subnet)));
    let declared = desired.all_addresses().map(|(name, inet)| (name.clone(), inet.network()));
    let mut links: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for (name, subnet) in live.chain(declared) {
        links.entry(name).or_default().push(subnet);
    }
    Ok(links)
}

/// A new connection that comes from the source of a rule and would be masqueraded.
struct Stranger<'a> {
    rule: &'a Masquerade,
    family: Family,
    links: &'a BTreeMap<IfName, Vec<IpCidr>>,
    desired: &'a Desired,
}

impl Stranger<'_> {
    fn is_decided_by(&self, rule: &ForwardRule) -> bool {
        if rule.accepts {
            self.passes(&rule.conditions)
        } else {
            rule.conditions.iter().all(|it| self.surely_meets(it))
        }
    }

    /// Whether a rule that accepts what meets these conditions is for it, wholly or in part. Conditions that are
    /// not understood are met where something else in the rule names the source, an interface of its way, or where
    /// both may be meant: better no word than a wrong one.
    fn passes(&self, conditions: &[Condition]) -> bool {
        let met: Vec<Met> = conditions.iter().map(|condition| self.meets(condition)).collect();
        !met.contains(&Met::Never) && (met.contains(&Met::Named) || !met.contains(&Met::Unknown))
    }

    /// Whether all that comes from the source meets it.
    fn surely_meets(&self, condition: &Condition) -> bool {
        let source = &self.rule.source;
        let has_all = |prefix: IpCidr| {
            prefix.network_length() <= source.network_length() && prefix.contains(&source.first_address())
        };
        match condition {
            Condition::Family(family) => *family == self.family,
            Condition::From(prefix, false) => has_all(*prefix),
            Condition::In(name, false) => {
                let mut bridges = self.desired.addresses_of_bridges();
                bridges.any(|(bridge, inet)| name.is(bridge) && has_all(inet.network()))
            }
            _ => false,
        }
    }

    fn meets(&self, condition: &Condition) -> Met {
        let turned = |met: Met, not: &bool| match met {
            met if !not => met,
            Met::Named => Met::Never,
            _ => Met::Perhaps,
        };
        match condition {
            Condition::Family(family) if *family == self.family => Met::Perhaps,
            Condition::Family(_) => Met::Never,
            Condition::In(name, not) => turned(self.comes_in_by(name), not),
            Condition::Out(name, not) => turned(self.leaves_by(name), not),
            Condition::From(prefix, not) if overlap(prefix, &self.rule.source) => {
                // An exception from it leaves something.
                let whole = prefix.network_length() <= self.rule.source.network_length();
                if *not && !whole { Met::Perhaps } else { turned(Met::Named, not) }
            }
            Condition::From(_, not) => turned(Met::Never, not),
            Condition::Whence => Met::Named,
            Condition::Other => Met::Unknown,
        }
    }

    /// Whether the source is behind this interface: one that has an address in it, or that it is not to leave by.
    fn comes_in_by(&self, name: &Name) -> Met {
        let behind = |subnets: &Vec<IpCidr>| subnets.iter().any(|subnet| overlap(subnet, &self.rule.source));
        let carriers = self.links.iter().filter(|(_, subnets)| behind(subnets)).map(|(carrier, _)| carrier);
        let mut ways = carriers.chain(&self.rule.except_out).peekable();
        let known = ways.peek().is_some();
        if ways.any(|way| name.is(way)) {
            return Met::Named;
        }
        // Links without addresses, such as taps, may be the way of anything.
        let elsewhere = !name.prefix && self.links.keys().any(|link| name.is(link));
        if known || elsewhere { Met::Never } else { Met::Perhaps }
    }

    fn leaves_by(&self, name: &Name) -> Met {
        let Masquerade { out, except_out, .. } = self.rule;
        match (out, except_out) {
            (Some(out), _) if name.is(out) => Met::Named,
            (Some(_), _) => Met::Never,
            (None, Some(except)) if !name.prefix && name.is(except) => Met::Never,
            _ => Met::Perhaps,
        }
    }
}

/// How far a condition is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Met {
    /// It speaks of this very source or of its way.
    Named,
    /// Nothing speaks against it.
    Perhaps,
    /// It is not understood.
    Unknown,
    Never,
}

fn overlap(a: &IpCidr, b: &IpCidr) -> bool {
    a.contains(&b.first_address()) || b.contains(&a.first_address())
}

/// What an operator would type to let the connections of the source pass, and the answers to them.
fn cure(drop: &ForwardDrop, rule: &Masquerade) -> String {
    let source = rule.source;
    // The names that iptables gives to its own. Its way of writing keeps its rules readable for it.
    if drop.table == "filter" && drop.chain == "FORWARD" && drop.family != "inet" {
        let iptables = if drop.family == "ip6" { "ip6tables" } else { "iptables" };
        let chain = if drop.docker_user { "DOCKER-USER" } else { "FORWARD" };
        return format!(
            "{iptables} -I {chain} -s {source} -j ACCEPT && {iptables} -I {chain} -d {source} -m conntrack --ctstate \
             RELATED,ESTABLISHED -j ACCEPT"
        );
    }
    // What others write into its table is gone when it starts again, or is refused.
    if drop.table == "firewalld" {
        let zone = "firewall-cmd --permanent --zone=trusted";
        return format!("{zone} --add-source={source} && firewall-cmd --reload");
    }
    let ip = if drop.of == Family::V4 { "ip" } else { "ip6" };
    let ForwardDrop { family, table, chain, .. } = drop;
    let insert = |what: &str| {
        let words = format!("insert rule {family} {table} {chain} {ip} {what} accept");
        format!("nft {}", shell_word(words.as_bytes()))
    };
    format!(
        "{} && {}",
        insert(&format!("saddr {source}")),
        insert(&format!("daddr {source} ct state related,established"))
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observed::Want;
    use crate::reconcile::testing::{Model, desired, seen_table};

    const WISH: &str = "masquerade: [{source: 10.100.0.0/16, except_out: br-vms}]";
    const ROUTER: &str = "link 2 eth0 192.0.2.2/24\nlink 5 docker0 172.17.0.1/16";

    fn rules(yaml: &str) -> Vec<Masquerade> {
        desired(yaml).masquerade.iter().map(|wish| wish.to_masquerade()).collect()
    }

    fn table(yaml: &str) -> SeenTable {
        seen_table(&rules(yaml))
    }

    #[test]
    fn the_table_is_made_kept_and_goes_with_its_last_declaration() {
        let two = "masquerade: [{source: 10.100.0.0/16, except_out: br-vms}, {source: fd00::/64}]";
        let set = |anew| vec![Change::SetMasquerade { rules: rules(WISH), anew }];
        let ours = table(WISH);
        let with =
            |rules: &[&Vec<Condition>]| SeenTable { whole: true, rules: rules.iter().copied().cloned().collect() };
        let (rule, any) = (&ours.rules[0], &vec![]);
        for (case, yaml, live, steps, removals) in [
            ("missing", WISH, None, set(true), vec![]),
            ("there", WISH, Some(ours.clone()), vec![], vec![]),
            ("its chain is another", WISH, Some(SeenTable { whole: false, ..ours.clone() }), set(false), vec![]),
            ("flushed", WISH, Some(with(&[])), set(false), vec![]),
            ("a rule of others", WISH, Some(with(&[rule, any])), set(false), vec![]),
            ("a rule twice", WISH, Some(with(&[rule, rule])), set(false), vec![]),
            ("one too many", WISH, Some(table(two)), set(false), vec![]),
            ("no longer declared", "{}", Some(ours.clone()), vec![], vec![Change::DeleteMasquerade]),
            ("no longer declared, and changed", "{}", Some(with(&[any])), vec![], vec![Change::DeleteMasquerade]),
            ("never declared", "{}", None, vec![], vec![]),
        ] {
            let mut node = Model::new("");
            node.nat = SeenNat::Table(live);
            let plan = node.plan(plan, &desired(yaml));
            let changes = |steps: &[Step]| steps.iter().map(|step| step.change.clone()).collect::<Vec<_>>();
            assert_eq!((changes(&plan.steps), changes(&plan.removals)), (steps.clone(), removals.clone()), "{case}");
            assert_eq!(plan.blocked, [], "{case}");
            let asked = node.asked.contains(&Want::Program("nft"));
            assert_eq!(asked, !steps.is_empty() || !removals.is_empty(), "{case}: nft is for writing");
        }
    }

    #[test]
    fn without_nft_it_is_blocked_and_the_package_named() {
        for (yaml, live) in [(WISH, None), ("{}", Some(table(WISH)))] {
            let mut node = Model::new("");
            node.programs.clear();
            node.nat = SeenNat::Table(live);
            let plan = node.plan(plan, &desired(yaml));
            assert_eq!((plan.steps, plan.removals), (vec![], vec![]));
            assert!(plan.blocked[0].because.contains("apt-get install nftables"), "{:?}", plan.blocked);
        }
    }

    #[test]
    fn what_may_not_be_seen_is_unknown_where_something_of_ours_may_be() {
        let with = |nat: SeenNat, made: Option<bool>| {
            let mut node = Model::new("");
            node.nat = nat;
            made.into_iter().for_each(|made| node.recall.memory.take(Note::Made(Kind::Masquerade, made)));
            let mut seen = crate::reconcile::testing::observed(|_| {});
            seen.recall = Some(Ok(node.recall));
            seen.nat = Some(Ok(node.nat));
            seen.programs.insert("nft", Ok(true));
            seen.forward_drops = Some(Ok(Vec::new()));
            move |yaml: &str| plan(&desired(yaml), &seen)
        };
        assert_eq!(with(SeenNat::Hidden, None)("{}"), Ok(Plan::default()), "a dry run of anybody");
        assert!(matches!(with(SeenNat::Hidden, Some(true))("{}"), Err(Gap::Failed(_))));
        assert!(matches!(with(SeenNat::Hidden, Some(false))(WISH), Err(Gap::Failed(_))));
        let missing = || SeenNat::Missing("Protocol not supported".into());
        assert_eq!(with(missing(), None)("{}").unwrap().remember, [Note::Made(Kind::Masquerade, false)]);
        let blocked = with(missing(), None)(WISH).unwrap().blocked;
        assert!(blocked[0].because.contains("Protocol not supported"), "{blocked:?}");
    }

    #[test]
    fn nothing_is_looked_at_where_nothing_is_declared_nor_made() {
        let mut node = Model::new("");
        node.recall.memory.take(Note::Made(Kind::Masquerade, false));
        assert_eq!(node.plan(plan, &desired("{}")), Plan::default());
        assert_eq!(node.asked, [Want::Recall]);
    }

    fn name(text: &str) -> Name {
        Name { text: text.trim_end_matches('+').into(), prefix: text.ends_with('+') }
    }

    /// `in br0`, `not out docker0`, `from 10.0.0.0/8`, `family 6`, `set`, `other`, separated by commas.
    fn accept(text: &str) -> ForwardRule {
        let condition = |text: &str| {
            let (not, text) = text.strip_prefix("not ").map_or((false, text), |rest| (true, rest));
            let (what, value) = text.split_once(' ').unwrap_or((text, ""));
            match what {
                "in" => Condition::In(name(value), not),
                "out" => Condition::Out(name(value), not),
                "from" => Condition::From(value.parse().unwrap(), not),
                "family" => Condition::Family(if value == "6" { Family::V6 } else { Family::V4 }),
                "set" => Condition::Whence,
                "other" => Condition::Other,
                _ => panic!("{text}"),
            }
        };
        let conditions = text.split(", ").filter(|text| !text.is_empty()).map(condition).collect();
        ForwardRule { accepts: true, conditions }
    }

    #[test]
    fn a_chain_that_drops_is_told_of_unless_a_rule_accepts() {
        let out = "masquerade: [{source: 10.100.0.0/16, out: eth0}]";
        let carried = "bridges: [{name: br0, addresses: [10.100.0.1/16]}]\nmasquerade: [{source: 10.100.0.0/16}]";
        let docker = ["out docker0, other", "in docker0, not out docker0", "in docker0, out docker0"];
        for (case, yaml, accepts, told) in [
            ("none", WISH, &[][..], true),
            ("Docker's own", WISH, &docker, true),
            ("Docker's own, and we know the way out", out, &docker, true),
            ("Docker's own, and we know the way in", carried, &docker, true),
            ("Docker's own, of a source that has no interface", "masquerade: [{source: 10.9.0.0/24}]", &docker, true),
            ("everything", WISH, &[""], false),
            ("the source", WISH, &["from 10.100.0.0/16"], false),
            ("more than the source", WISH, &["from 10.0.0.0/8"], false),
            ("a part of the source, and more asked", WISH, &["from 10.100.7.0/24, other"], false),
            ("another source", WISH, &["from 10.200.0.0/16"], true),
            ("any source but this", WISH, &["not from 10.100.0.0/16"], true),
            ("any source but one host of it", WISH, &["not from 10.100.0.9"], false),
            ("any source but another", WISH, &["not from 10.200.0.0/16"], false),
            ("the interface that it is not to leave by", WISH, &["in br-vms, other"], false),
            ("what leaves by that", WISH, &["out br-vms"], true),
            ("what does not leave by that", WISH, &["not out br-vms"], false),
            ("many interfaces", WISH, &["in br-+"], false),
            ("many others", WISH, &["in veth+"], true),
            ("what leaves by an uplink", WISH, &["out eth0"], false),
            ("the way out", out, &["out eth0, other"], false),
            ("another way out", out, &["out eth1"], true),
            ("the bridge that carries it", carried, &["in br0"], false),
            ("another bridge", carried, &["in br1"], true),
            ("a set of interfaces", WISH, &["set"], false),
            ("answers only", WISH, &["other"], true),
            ("the other family", WISH, &["family 6"], true),
            ("its family", WISH, &["family 4"], false),
        ] {
            let mut node = Model::new(ROUTER);
            node.forward_drops = vec![ForwardDrop {
                of: Family::V4,
                family: "ip",
                table: "filter".into(),
                chain: "FORWARD".into(),
                docker_user: true,
                rules: accepts.iter().map(|text| accept(text)).collect(),
                at_end: true,
            }];
            let blocked = node.plan(plan, &desired(yaml)).blocked;
            assert_eq!(blocked.len(), usize::from(told), "{case}: {blocked:?}");
        }
    }

    #[test]
    fn only_chains_of_its_family_are_told_of_and_each_with_its_cure() {
        let drop = |family, table: &str, chain: &str, docker_user| ForwardDrop {
            of: if family == "ip" { Family::V4 } else { Family::V6 },
            family,
            table: table.into(),
            chain: chain.into(),
            docker_user,
            rules: Vec::new(),
            at_end: true,
        };
        let answers = "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
        for (drop, source, cure) in [
            (
                drop("ip", "filter", "FORWARD", true),
                "10.9.0.0/24",
                Some(format!("iptables -I DOCKER-USER -s 10.9.0.0/24 -j ACCEPT && iptables -I DOCKER-USER -d 10.9.0.0/24 {answers}")),
            ),
            (
                drop("ip6", "filter", "FORWARD", false),
                "fd00::/64",
                Some(format!("ip6tables -I FORWARD -s fd00::/64 -j ACCEPT && ip6tables -I FORWARD -d fd00::/64 {answers}")),
            ),
            (
                drop("inet", "fw", "fwd", false),
                "fd00::/64",
                Some("nft 'insert rule inet fw fwd ip6 saddr fd00::/64 accept' && nft 'insert rule inet fw fwd ip6 daddr fd00::/64 ct state related,established accept'".into()),
            ),
            (drop("ip", "filter", "FORWARD", true), "fd00::/64", None),
            (drop("ip6", "filter", "FORWARD", true), "10.9.0.0/24", None),
        ] {
            let mut node = Model::new(ROUTER);
            node.forward_drops = vec![drop];
            let blocked = node.plan(plan, &desired(&format!("masquerade: [{{source: '{source}'}}]"))).blocked;
            match cure {
                Some(cure) => assert!(blocked[0].because.ends_with(&format!("let it pass: {cure}")), "{blocked:?}"),
                None => assert_eq!(blocked, []),
            }
        }
    }
}
