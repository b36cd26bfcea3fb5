//! What is restored, when, and what never is.

use std::collections::BTreeSet;

use super::*;
use crate::change::Step;
use crate::model::IfName;
use crate::observed::Want;
use crate::reconcile::testing::{Model, desired};

/// Two uplinks in one subnet; .51 is on the first, .101 and .102 are on the second.
const NODE: &str = "
    link 1 lo 127.0.0.1/8
    link 2 eth0 10.0.0.10/24
    link 3 eth1 10.0.0.20/24
    link 4 eni00000000051
    link 5 eni00000000101
    link 6 eni00000000102
    rule 0 table 255
    rule 512 to 10.0.0.51 table 254
    rule 512 to 10.0.0.101 table 254
    rule 512 to 10.0.0.102 table 254
    rule 1024 fwmark 128/128 table 254
    rule 1535 to 172.31.0.0/16 table 254
    rule 1536 from 10.0.0.101 table 2
    rule 1536 from 10.0.0.102 table 2
    rule 32765 from 10.0.0.20 table 2
    rule 32766 table 254
    rule 32767 table 253
    route 10.0.0.0/24 dev 2 scope link proto 2
    route default via 10.0.0.1 dev 2
    route 10.0.0.51 dev 4 scope link
    route 10.0.0.101 dev 5 scope link
    route 10.0.0.102 dev 6 scope link
    route 10.0.0.1 dev 3 scope link table 2
    route default via 10.0.0.1 dev 3 table 2";

/// Strict mode: .33 is behind a branch link.
const STRICT: &str = "
    link 2 eth0 10.0.0.10/24
    link 4 eni00000000051
    link 5 eni00000000052
    link 8 vlan.eth.1
    link 9 vlan00000000033
    rule 10 iif vlan.eth.1 table 101
    rule 10 iif vlan00000000033 table 101
    rule 20 table 255
    rule 0 from fe80:ec2::1 ipproto 58 table 255
    rule 512 to 10.0.0.51 table 254
    rule 512 to 10.0.0.52 table 254
    rule 32766 table 254
    rule 32767 table 253
    route 10.0.0.0/24 dev 2 scope link proto 2
    route default via 10.0.0.1 dev 2
    route 10.0.0.51 dev 4 scope link
    route 10.0.0.52 dev 5 scope link
    route 10.0.2.1 dev 8 scope link table 101
    route 10.0.2.33 dev 9 scope link table 101
    route default via 10.0.2.1 dev 8 table 101";

/// Three pods, of which only the routes are known.
const UNPROVEN: &str = "
    link 2 eth0 10.0.0.10/24
    link 4 eni00000000051
    link 5 eni00000000101
    route default via 10.0.0.1 dev 2
    route 10.0.0.51 dev 4 scope link
    route 10.0.0.101 dev 5 scope link";

struct Ran {
    commands: Vec<String>,
    blocked: Vec<Blocked>,
}

/// A run, so many seconds after the last.
fn run(node: &mut Model, seconds: u64) -> Ran {
    node.recall.boot += Duration::from_secs(seconds);
    node.recall.awake += Duration::from_secs(seconds);
    let plan = node.plan_section("pod_rules", &desired("kernel_rules: {mode: enforce}"));
    take(node, &plan.remember);
    plan.steps.iter().for_each(|step| node.apply(&step.change));
    // The look that verifies.
    let again = node.plan_section("pod_rules", &desired("kernel_rules: {mode: enforce}"));
    assert_eq!(again.steps, Vec::<Step>::new());
    take(node, &again.remember);
    let commands = plan.steps.iter().map(|step| step.change.to_string()).collect();
    Ran { commands, blocked: plan.blocked }
}

fn take(node: &mut Model, notes: &[Note]) {
    for note in notes {
        match note {
            Note::CniMemory(memory) => node.cni_memory = memory.rules(),
            note => node.recall.memory.take(note.clone(), node.recall.boot),
        }
    }
}

/// The commands of a run that blocks nothing.
fn commands(node: &mut Model, seconds: u64) -> Vec<String> {
    let ran = run(node, seconds);
    assert_eq!(ran.blocked, vec![]);
    ran.commands
}

/// A node that a run has seen.
fn known(text: &str) -> Model {
    let mut node = Model::new(text);
    assert_eq!(commands(&mut node, 1000), Vec::<String>::new());
    node
}

/// Removes the rules that say so. Whether there are any is for the caller to know.
fn flush(node: &mut Model, goes: impl Fn(&Rule) -> bool) {
    node.rules.retain(|it| !goes(&it.rule));
}

/// All rules that carry no protocol of the kernel: the priorities 0, 32766 and 32767.
fn is_of_cni(rule: &Rule) -> bool {
    !matches!(rule.priority, 0 | 32766 | 32767) || rule.selector.from.is_some()
}

/// The rules as they select, in order.
fn essences(node: &Model) -> BTreeSet<String> {
    node.rules.iter().map(|it| it.command("").split(" protocol").next().unwrap().to_owned()).collect()
}

#[test]
fn a_flush_is_repaired_at_once() {
    for (case, text) in [("secondary uplink", NODE), ("strict mode", STRICT)] {
        let mut node = known(text);
        let healthy = essences(&node);
        flush(&mut node, is_of_cni);
        let commands = commands(&mut node, 1);
        assert_eq!(essences(&node), healthy, "{case}: {commands:?}");
        assert!(commands.iter().all(|it| it.contains(" rule add ") && it.ends_with("protocol 172")), "{commands:?}");
        let ours = node.rules.iter().filter(|it| it.rule.protocol == 172).count();
        assert_eq!(ours, commands.len(), "{case}: nothing else is added");
        // And again, though none of the CNI's own is here any more.
        flush(&mut node, is_of_cni);
        run(&mut node, 60);
        assert_eq!(essences(&node), healthy, "{case}: the second time");
    }
}

#[test]
fn a_run_with_the_rules_as_they_were_looks_no_further() {
    let mut node = known(NODE);
    node.asked.clear();
    commands(&mut node, 60);
    let asked: BTreeSet<_> = node.asked.iter().map(|want| format!("{want:?}")).collect();
    assert_eq!(asked, ["Recall", "Rules"].map(String::from).into());
    // Another order may be another pod with the same address.
    node.rules.reverse();
    node.asked.clear();
    commands(&mut node, 60);
    assert!(node.asked.contains(&Want::RpFilters), "{:?}", node.asked);
    node.asked.clear();
    commands(&mut node, 60);
    assert_eq!(node.asked.len(), 4, "{:?}", node.asked);
}

#[test]
fn many_rules_at_once_are_one_repair_and_others_each_their_own() {
    let parts = |node: &mut Model| {
        let plan = node.plan_section("pod_rules", &desired("kernel_rules: {mode: enforce}"));
        let parts: BTreeSet<_> = plan.steps.iter().map(|step| step.part_of).collect();
        (plan.steps.len(), parts.into_iter().collect::<Vec<_>>())
    };
    let mut node = known(&with_pods(20));
    let healthy = node.rules.clone();
    flush(&mut node, is_of_cni);
    let all = healthy.len() - node.rules.len();
    node.recall.boot += Duration::from_secs(1);
    assert_eq!(parts(&mut node), (all, vec![Some(TOGETHER)]));
    for (case, pods, since, part_of) in [
        ("one", 1, 1, None),
        ("four", 4, 1, None),
        ("what was left of a flush, when it can be restored", 9, 0, Some(TOGETHER)),
    ] {
        node.rules = healthy.clone();
        let mut gone = Vec::new();
        for n in 200..200 + pods {
            let at = node.rules.iter().position(|it| to_whom(&it.rule) == Some(format!("10.0.0.{n}").parse().unwrap()));
            let rule = Rule { protocol: PROTO_RESTORED, ..node.rules.remove(at.unwrap()).rule };
            gone.push((rule.to_string(), since));
        }
        node.recall.memory.cni.missing = gone;
        assert_eq!(parts(&mut node), (pods, vec![part_of]), "{case}");
    }
}

#[test]
fn one_missing_rule_is_restored_when_two_looks_missed_it() {
    for (rule, line) in [
        ("ip rule add priority 512 from all to 10.0.0.101 lookup main protocol 172", "512"),
        ("ip rule add priority 1536 from 10.0.0.101 lookup 2 protocol 172", "1536"),
        ("ip rule add priority 32765 from 10.0.0.20 lookup 2 protocol 172", "32765"),
    ] {
        let mut node = known(NODE);
        let one =
            node.rules.iter().position(|it| rule.contains(&it.rule.to_string().replace(" protocol 0", ""))).unwrap();
        node.rules.remove(one);
        let none = Vec::<String>::new();
        assert_eq!(commands(&mut node, 60), none, "{line}: the first look");
        assert_eq!(commands(&mut node, 9), none, "{line}: too soon");
        assert_eq!(commands(&mut node, 1), [rule], "{line}: the second look");
        assert_eq!(commands(&mut node, 60), none, "{line}");
        // It was there in between: that begins anew.
        let mut node = known(NODE);
        let gone = node.rules.remove(one);
        commands(&mut node, 60);
        node.rules.insert(one, gone.clone());
        commands(&mut node, 60);
        node.rules.remove(one);
        assert_eq!(commands(&mut node, 60), none, "{line}: it was back");
    }
}

#[test]
fn a_flush_that_was_repaired_in_part_goes_on() {
    let mut node = known(NODE);
    let healthy = essences(&node);
    flush(&mut node, is_of_cni);
    node.recall.boot += Duration::from_secs(60);
    let plan = node.plan_section("pod_rules", &desired("kernel_rules: {mode: enforce}"));
    take(&mut node, &plan.remember);
    // Killed before the last one.
    plan.steps.split_last().unwrap().1.iter().for_each(|step| node.apply(&step.change));
    assert_eq!(commands(&mut node, 1).len(), 1);
    assert_eq!(essences(&node), healthy);
    assert!(!node.recall.memory.cni.flushed);
}

#[test]
fn what_comes_or_goes_is_left_alone() {
    let none = Vec::<String>::new();
    // Two pods come, three go: in the second look all is well.
    let mut node = known(NODE);
    let later = node.clone();
    flush(&mut node, |rule| matches!(rule.priority, 512 | 1536));
    node.settled = Some(Box::new(later));
    assert_eq!(commands(&mut node, 60), none, "they have come");
    let mut node = known(NODE);
    let mut later = node.clone();
    later.routes.retain(|route| !route.to.to_string().starts_with("10.0.0.10"));
    flush(&mut node, |rule| rule.to_string().contains("10.0.0.10"));
    flush(&mut later, |rule| rule.to_string().contains("10.0.0.10"));
    node.settled = Some(Box::new(later.clone()));
    assert_eq!(commands(&mut node, 60), none, "they have gone");
    later.settled = None;
    later.recall = node.recall.clone();
    later.cni_memory = node.cni_memory.clone();
    assert_eq!(commands(&mut later, 60), none);
    assert_eq!(later.cni_memory.pods.len(), 1);
}

/// After a flush of a node that a run has seen, and this change: nothing of the pod .101 or its uplink is restored but
/// what is expected.
#[test]
fn only_what_still_fits_is_restored() {
    let to = "ip rule add priority 512 from all to 10.0.0.101 lookup main protocol 172";
    type Change = fn(&mut Model);
    let cases: [(&str, Change, &[&str]); 8] = [
        ("the pod is gone", |node| node.routes.retain(|it| it.to.to_string() != "10.0.0.101"), &[]),
        (
            "another link of the same name",
            |node| {
                node.links[4].dev.index = 15;
                node.rp_filters.links[4].0 = 15;
                node.routes.iter_mut().filter(|it| it.oif() == Some(5)).for_each(|it| *it = at(15, it));
            },
            &[to],
        ),
        (
            "the same index and another name",
            |node| node.links[4].dev.name = IfName::new(b"eni0000000ffff").unwrap(),
            &[to],
        ),
        (
            "behind another pod's link",
            |node| {
                node.routes.iter_mut().filter(|it| it.oif() == Some(5)).for_each(|it| *it = at(6, it));
            },
            &[to],
        ),
        (
            "by an uplink",
            |node| {
                node.routes.iter_mut().filter(|it| it.oif() == Some(5)).for_each(|it| *it = at(3, it));
            },
            &[],
        ),
        (
            "the table has no default",
            |node| node.routes.retain(|it| it.table != 2 || it.to.network_length() != 0),
            &[to],
        ),
        ("the link is no pod's any more", |node| node.links[4].dev.name = IfName::new(b"tap0").unwrap(), &[]),
        (
            "the CNI has just led it elsewhere",
            |node| node.rules.extend(Model::new("rule 1536 from 10.0.0.101 table 3").rules),
            &[to],
        ),
    ];
    for (case, change, expected) in cases {
        let mut node = known(NODE);
        flush(&mut node, is_of_cni);
        change(&mut node);
        let ran = run(&mut node, 1);
        let of_it: Vec<_> = ran.commands.iter().filter(|it| it.contains("10.0.0.101 ")).collect();
        assert_eq!(of_it, expected, "{case}: {:?}", ran.blocked);
        assert_eq!(
            !ran.blocked.is_empty(),
            case == "the table has no default" || is_unknown(case),
            "{case}: {:?}",
            ran.blocked
        );
    }
}

/// The pod is another one than was remembered, so its table is not known.
fn is_unknown(case: &str) -> bool {
    matches!(case, "another link of the same name" | "the same index and another name" | "behind another pod's link")
}

/// The same route over another link.
fn at(index: u32, route: &SeenRoute) -> SeenRoute {
    use crate::observed::{SeenHop, Target};
    SeenRoute { target: Target::SeenHop(SeenHop::new(None, Some(index))), ..route.clone() }
}

#[test]
fn a_node_that_is_not_proven_is_left_alone() {
    let calico = UNPROVEN.replace("eni000000", "cali00000");
    let hand = UNPROVEN.replace("eni000000", "tap0");
    for (case, text, blocked) in [
        ("routes over links of the CNI's form alone", UNPROVEN.to_owned(), true),
        ("what was restored proves nothing", format!("{UNPROVEN}\nrule 512 to 10.0.0.99 table 254 proto 172"), true),
        ("a declared rule proves nothing", format!("{UNPROVEN}\nrule 1536 from 10.0.0.51 table 2 proto 171"), true),
        ("networkd's rule proves nothing", format!("{UNPROVEN}\nrule 512 to 10.0.0.51 table 254 proto 4"), true),
        ("Calico", calico, false),
        ("no CNI", hand, false),
    ] {
        let mut node = Model::new(&text);
        let added: Vec<_> = run(&mut node, 1).commands.into_iter().filter(|it| it.contains("add")).collect();
        assert_eq!(added, Vec::<String>::new(), "{case}");
        let ran = run(&mut node, 60);
        assert_eq!((ran.commands, !ran.blocked.is_empty()), (vec![], blocked), "{case}");
    }
    // Azure's links have the form of the CNI's with another prefix, and an operator may add and remove a rule.
    let mut node = known(&UNPROVEN.replace("eni000000", "azv000000"));
    node.rules.extend(Model::new("rule 512 to 10.0.0.51 table 254").rules);
    commands(&mut node, 60);
    node.rules.clear();
    for _ in 0..2 {
        assert_eq!(commands(&mut node, 60), Vec::<String>::new());
    }
    assert_eq!(node.cni_memory, CniMemory::default());
    // The CNI's rules are left over, and the pods are of Cilium (`lxc` and 12 digits) or Calico by now.
    for prefix in ["lxca000000", "lxc0000000", "cali000000"] {
        let mut node =
            Model::new(&format!("{UNPROVEN}\nrule 1024 fwmark 128/128 table 254").replace("eni000000", prefix));
        assert_eq!(run(&mut node, 1).commands, Vec::<String>::new(), "{prefix}");
    }
    // One rule that is left is enough.
    let mut node = Model::new(&format!("{UNPROVEN}\nrule 1024 fwmark 128/128 table 254"));
    assert_eq!(commands(&mut node, 1).len(), 2, "the mark");
}

#[test]
fn what_was_never_seen_is_reported() {
    let mut node = Model::new(NODE);
    flush(&mut node, |rule| matches!(rule.priority, 512 | 1536));
    let ran = run(&mut node, 1);
    assert_eq!(ran.commands.len(), 3, "{:?}", ran.commands);
    assert!(ran.commands.iter().all(|it| it.contains("priority 512")));
    let [Blocked { want, .. }] = ran.blocked.as_slice() else { panic!("{:?}", ran.blocked) };
    assert!(want.contains("rules 1536 of 3 pods"), "{want}");
    // As long as it is so.
    assert_eq!(run(&mut node, 60).blocked.len(), 1);
    // Nothing is missing where no table of an uplink is.
    let mut node = Model::new(NODE);
    flush(&mut node, |rule| matches!(rule.priority, 512 | 1536 | 32765));
    node.routes.retain(|route| route.table != 2);
    assert_eq!(commands(&mut node, 1).len(), 3);
}

#[test]
fn what_was_restored_goes_with_its_pod_or_for_the_cnis_own() {
    let restored = || {
        let mut node = known(NODE);
        flush(&mut node, is_of_cni);
        commands(&mut node, 1);
        node
    };
    let deleted = |commands: &[String]| commands.iter().filter(|it| it.contains(" del ")).count();
    let none = Vec::<String>::new();
    assert_eq!(commands(&mut restored(), 60), none, "nothing differs");
    // The pod goes.
    let mut node = restored();
    node.routes.retain(|it| it.to.to_string() != "10.0.0.101");
    let gone = commands(&mut node, 60);
    assert_eq!((gone.len(), deleted(&gone)), (2, 2), "{gone:?}");
    // The CNI's own are added beside ours.
    let mut node = restored();
    let own = "rule 512 to 10.0.0.101 table 254\nrule 1536 from 10.0.0.101 table 2\nrule 32765 from 10.0.0.20 table 2\n\
               rule 1024 fwmark 128/128 table 254";
    node.rules.extend(Model::new(own).rules);
    let gone = commands(&mut node, 60);
    assert_eq!((gone.len(), deleted(&gone)), (4, 4), "{gone:?}");
    // The CNI leads the pod to another table, or the uplink's address.
    let mut node = restored();
    node.routes.extend(Model::new("route default via 10.0.0.1 dev 3 table 3").routes);
    node.rules.extend(Model::new("rule 1536 from 10.0.0.101 table 3\nrule 32765 from 10.0.0.20 table 3").rules);
    let gone = commands(&mut node, 60);
    assert_eq!((gone.len(), deleted(&gone)), (2, 2), "{gone:?}");
    // Another pod has the address by now.
    let mut node = restored();
    node.links[4].dev.name = IfName::new(b"eni00000000777").unwrap();
    let gone = run(&mut node, 60).commands;
    assert_eq!(gone, ["ip rule del priority 1536 from 10.0.0.101 lookup 2 protocol 172"]);
    // The uplink loses its address.
    let mut node = restored();
    node.addresses.retain(|it| it.index != 3);
    let gone = commands(&mut node, 60);
    assert_eq!(gone, ["ip rule del priority 32765 from 10.0.0.20 lookup 2 protocol 172"]);
    // The memory is lost: the rules that are here stay.
    let mut node = restored();
    node.cni_memory = CniMemory::default();
    assert_eq!(run(&mut node, 60).commands, none);
}

#[test]
fn a_rule_for_the_whole_node_is_restored_as_others_are() {
    for (priority, rule) in [
        (1024, "ip rule add priority 1024 from all fwmark 0x80/0x80 lookup main protocol 172"),
        (1535, "ip rule add priority 1535 from all to 172.31.0.0/16 lookup main protocol 172"),
    ] {
        let mut node = known(NODE);
        let healthy = essences(&node);
        flush(&mut node, |rule| rule.priority == priority);
        assert_eq!(commands(&mut node, 60), Vec::<String>::new(), "the first look");
        assert_eq!(commands(&mut node, 60), [rule]);
        assert_eq!(essences(&node), healthy);
        // The CNI adds its own, and removes it again: it deletes by what a rule selects.
        flush(&mut node, |rule| rule.priority == priority);
        node.rules.extend(Model::new("rule 1024 fwmark 128/128 table 254\nrule 1535 to 172.31.0.0/16 table 254").rules);
        node.rules.retain(|it| it.rule.protocol == 0);
        assert_eq!(commands(&mut node, 60), Vec::<String>::new());
    }
    // The CNI has other prefixes by now.
    let mut node = known(NODE);
    flush(&mut node, |rule| rule.priority == 1535);
    node.rules.extend(Model::new("rule 1535 to 172.30.0.0/16 table 254").rules);
    assert_eq!(commands(&mut node, 60), Vec::<String>::new());
    assert_eq!(commands(&mut node, 60), Vec::<String>::new());
    assert_eq!(node.cni_memory.others.len(), 3, "{}", node.cni_memory);
    // The CNI has just started, so it may be configured otherwise.
    for (seconds_ago, is_restored) in [(0, false), (100, false), (1000, true)] {
        let mut node = known(NODE);
        flush(&mut node, |rule| rule.priority == 1024);
        commands(&mut node, 60);
        let own = node.addresses.iter_mut().find(|it| it.local.to_string() == "10.0.0.20").unwrap();
        own.created = node.recall.awake - Duration::from_secs(seconds_ago);
        assert_eq!(commands(&mut node, 60).len(), usize::from(is_restored), "{seconds_ago} s ago");
        assert_eq!(commands(&mut node, 60), Vec::<String>::new());
        assert_eq!(node.cni_memory.others.len(), if is_restored { 3 } else { 2 });
    }
    // Nothing shows whether it has started.
    let mut node = known(&NODE.replace("rule 32765 from 10.0.0.20 table 2", ""));
    let (healthy, whole) = (essences(&node), node.rules.clone());
    flush(&mut node, is_of_cni);
    commands(&mut node, 60);
    assert_eq!(essences(&node), healthy, "a flush is another program's");
    node.rules = whole;
    commands(&mut node, 60);
    flush(&mut node, |rule| matches!(rule.priority, MARKED | EXTERNAL));
    for _ in 0..3 {
        assert_eq!(commands(&mut node, 60), Vec::<String>::new());
    }
    assert_eq!(node.cni_memory.others, []);
    // Strict mode is off by now.
    let mut node = known(STRICT);
    node.rules.retain(|it| !it.rule.selector.from.is_some_and(|from| from.first_address().is_ipv6()));
    node.rules.extend(Model::new("rule 0 from ::/0 table 255").rules);
    node.rules.last_mut().unwrap().rule.selector.from = None;
    commands(&mut node, 60);
    assert_eq!(commands(&mut node, 60), Vec::<String>::new(), "strict mode is off");
    // Another rule at its priority is not the CNI's.
    for (rule, is_restored) in [
        ("from fe80:ec2::1 ipproto 58", true),
        ("from fe80:ec2::1 ipproto 6", false),
        ("from fe80:ec2::1", false),
        ("from 10.0.0.1 ipproto 58", false),
        ("ipproto 58", false),
    ] {
        let mut node = known(&format!("{NODE}\nrule 0 {rule} table 255"));
        node.rules.pop();
        commands(&mut node, 60);
        assert_eq!(commands(&mut node, 60).len(), usize::from(is_restored), "{rule}");
    }
    // Without any rule to the local table the node is cut off, which is never intended.
    let mut node = known(STRICT);
    flush(&mut node, |rule| rule.priority == 20);
    commands(&mut node, 60);
    assert_eq!(commands(&mut node, 60), ["ip rule add priority 20 from all lookup local protocol 172"]);
    let mut node = known(STRICT);
    flush(&mut node, |rule| rule.priority == 20);
    node.rules.extend(Model::new("rule 0 table 255").rules);
    commands(&mut node, 60);
    assert_eq!(commands(&mut node, 60), Vec::<String>::new(), "it is back in its place");
}

/// A node with so many pods on the first uplink, behind links 100, 101 ….
fn with_pods(count: u8) -> String {
    let pod = |n: u8| {
        let link = u32::from(n) + 100;
        format!(
            "\nlink {link} eni00000000{n:03x}\nroute 10.0.0.{n} dev {link} scope link\nrule 512 to 10.0.0.{n} table 254"
        )
    };
    (200..200 + count).fold(NODE.to_owned(), |node, n| node + &pod(n))
}

#[test]
fn a_few_missing_rules_are_no_flush() {
    // Of three pods that NODE has, and twenty more.
    for (case, gone, at_once) in [
        ("one pod", &[200][..], false),
        ("four pods", &[200, 201, 202, 203], false),
        ("five pods", &[200, 201, 202, 203, 204], true),
    ] {
        let mut node = known(&with_pods(20));
        let healthy = essences(&node);
        let is_gone = |rule: &Rule| gone.iter().any(|n| to_whom(rule) == Some(format!("10.0.0.{n}").parse().unwrap()));
        flush(&mut node, is_gone);
        let plan = node.plan_section("pod_rules", &desired("kernel_rules: {mode: enforce}"));
        assert_eq!(plan.steps.is_empty(), !at_once, "{case}");
        assert_eq!(plan.again, (!at_once).then_some(Duration::from_secs(10)), "{case}");
        let first = commands(&mut node, 1);
        assert_eq!(first.len(), if at_once { gone.len() } else { 0 }, "{case}");
        node.recall.boot += Duration::from_secs(3);
        let again = node.plan_section("pod_rules", &desired("kernel_rules: {mode: enforce}")).again;
        assert_eq!(again, (!at_once).then_some(Duration::from_secs(7)), "{case}");
        commands(&mut node, 7);
        assert_eq!(essences(&node), healthy, "{case}");
    }
    // An uplink's rule does not come and go with pods.
    let mut node = known(&with_pods(20));
    flush(&mut node, |rule| rule.priority == 32765 || rule.to_string().contains("from 10.0.0.101"));
    assert_eq!(commands(&mut node, 1).len(), 2);
}

#[test]
fn pods_that_come_together_are_left_alone() {
    let mut node = known(NODE);
    for n in 1..=30 {
        let link = 100 + n;
        let pod = format!("link {link} eni0000000a{n:03x}\nroute 10.0.1.{n} dev {link} scope link");
        let come = Model::new(&pod);
        node.links.extend(come.links);
        node.rp_filters.links.extend(come.rp_filters.links);
        node.routes.extend(come.routes);
    }
    // (A run looks at them as soon as the first one has a rule.)
    node.rules.extend(Model::new("rule 512 to 10.0.1.1 table 254").rules);
    assert_eq!(commands(&mut node, 1), Vec::<String>::new());
    // But what is flushed meanwhile comes back, and with it what they lack.
    flush(&mut node, is_of_cni);
    let commands = run(&mut node, 1).commands;
    assert_eq!(commands.iter().filter(|it| it.contains("to 10.0.0.")).count(), 3, "{commands:?}");
}

#[test]
fn the_first_pods_of_a_node_are_left_alone() {
    let (before_pods, _) = UNPROVEN.split_once("    route 10.0.0.51").unwrap();
    let mut node = known(&format!("{before_pods}\nrule 1024 fwmark 128/128 table 254"));
    node.routes.extend(Model::new("route 10.0.0.51 dev 4 scope link\nroute 10.0.0.101 dev 5 scope link").routes);
    node.rules.extend(Model::new("rule 1535 to 172.31.0.0/16 table 254").rules);
    assert_eq!(commands(&mut node, 1), Vec::<String>::new());
    assert_eq!(commands(&mut node, 10).len(), 2, "the CNI did not add them");
}

#[test]
fn what_cannot_be_restored_makes_no_flush_of_what_comes() {
    let mut node = known(NODE);
    flush(&mut node, is_of_cni);
    node.routes.retain(|it| it.table != 2);
    let ran = run(&mut node, 1);
    assert_eq!((ran.commands.len(), ran.blocked.len()), (6, 1), "{:?}", ran.commands);
    // The rule of the uplink's own address is restored, so that `default_routes` sees its table.
    assert!(ran.commands.iter().any(|it| it.contains("from 10.0.0.20 lookup 2")), "{:?}", ran.commands);
    let come = Model::new("link 77 eni00000000077\nroute 10.0.0.77 dev 77 scope link");
    node.links.extend(come.links);
    node.rp_filters.links.extend(come.rp_filters.links);
    node.routes.extend(come.routes);
    for _ in 0..2 {
        let ran = run(&mut node, 4);
        assert_eq!((ran.commands, ran.blocked.len()), (vec![], 1), "still blocked, and nothing is added");
    }
    node.routes.extend(Model::new("route default via 10.0.0.1 dev 3 table 2").routes);
    assert_eq!(run(&mut node, 1).commands.len(), 2, "1536 of two pods");
}

#[test]
fn what_was_missing_long_enough_must_be_missing_still() {
    let mut node = known(NODE);
    let healthy = node.clone();
    flush(&mut node, |rule| rule.priority == 1536 && rule.to_string().contains("10.0.0.101"));
    commands(&mut node, 1);
    let later = Model { settled: None, ..healthy };
    node.settled = Some(Box::new(later));
    assert_eq!(commands(&mut node, 60), Vec::<String>::new(), "the CNI was about to add it");
}

/// Adds a pod as the CNI does it, with a link that no other has had. It does so many steps of: route, 512, 1536.
fn add_pod(node: &mut Model, n: u8, link: u32, table: u32, steps: usize) {
    let own = Model::new(&format!(
        "link {link} eni000000{link:05x}\nroute 10.0.2.{n} dev {link} scope link\nrule 512 to 10.0.2.{n} table 254\n\
         rule 1536 from 10.0.2.{n} table {table}"
    ));
    node.links.extend(own.links);
    node.rp_filters.links.extend(own.rp_filters.links);
    node.routes.extend(own.routes);
    node.rules.extend(own.rules.into_iter().filter(|it| table > 0 || it.rule.priority == 512).take(steps));
}

/// The same backwards: 512, 1536, route and link.
fn remove_pod(node: &mut Model, n: u8, steps: usize) {
    let route = node.routes.iter().position(|it| it.to.to_string() == format!("10.0.2.{n}"));
    let rule = |it: &Rule| {
        [it.selector.to, it.selector.from].iter().flatten().any(|at| at.to_string() == format!("10.0.2.{n}"))
    };
    flush(node, |it| rule(it) && it.priority == 512);
    if steps > 0 {
        flush(node, rule);
    }
    if let Some(route) = route.filter(|_| steps > 1) {
        let link = node.routes.remove(route).oif().unwrap();
        node.links.retain(|it| it.dev.index != link);
        node.rp_filters.links.retain(|it| it.0 != link);
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

    /// A run that follows what came and went ends as one that looks at everything, but for a pod that never had a rule.
    #[test]
    fn to_follow_is_as_good_as_to_look_at_all(events in proptest::collection::vec((0_u8..6, 0_u8..5, 2_u32..4, 0_usize..3), 1..8)) {
        let mut node = known(NODE);
        let mut whole = node.clone();
        for (number, (kind, n, table, steps)) in events.into_iter().enumerate() {
            let link = 100 + number as u32;
            for node in [&mut node, &mut whole] {
                match kind {
                    0 => remove_pod(node, n, steps),
                    1 | 2 => (remove_pod(node, n, 2), add_pod(node, n, link, table, 1 + steps)).1,
                    3 => (remove_pod(node, n, 2), add_pod(node, n, link, 0, 2)).1,
                    4 => flush(node, |rule| rule.priority == 1536 && rule.table == table),
                    _ => flush(node, |rule| is_of_cni(rule) && rule.priority != 1024),
                }
                // Another pod's rule is added after them each time: else a pod that takes another's place as the last one
                // leaves no trace in the rules.
                let pod = if number % 2 == 0 { "to 10.0.0.51 " } else { "to 10.0.0.101 " };
                let at = node.rules.iter().position(|it| it.rule.to_string().contains(pod));
                let last = at.map(|at| node.rules.remove(at));
                node.rules.extend(last);
            }
            whole.recall.memory.cni.digest = None;
            let (followed, looked) = (run(&mut node, 5), run(&mut whole, 5));
            proptest::prop_assert_eq!(followed.commands, looked.commands);
            proptest::prop_assert_eq!(followed.blocked, looked.blocked);
            proptest::prop_assert_eq!(&node.cni_memory, &whole.cni_memory);
        }
    }
}

/// What a pod does, and whether this is followed without a look at all pods.
#[test]
fn pods_that_come_and_go_are_followed() {
    let come = |node: &mut Model, text: &str| {
        let new = Model::new(text);
        node.links.extend(new.links);
        node.rp_filters.links.extend(new.rp_filters.links);
        node.routes.extend(new.routes);
        node.rules.extend(new.rules);
    };
    let go = |node: &mut Model, address: &str| {
        flush(node, |rule| rule.to_string().contains(&format!("{address} ")));
        node.routes.retain(|route| route.to.to_string() != address);
    };
    const NEW: &str = "link 77 eni00000000077\nroute 10.0.0.77 dev 77 scope link\nrule 512 to 10.0.0.77 table 254";
    const FROM: &str = "rule 1536 from 10.0.0.77 table 2";
    type Event<'a> = &'a dyn Fn(&mut Model);
    let cases: [(&str, Event, bool); 12] = [
        ("comes", &|node| come(node, &format!("{NEW}\n{FROM}")), true),
        ("comes to the first uplink", &|node| come(node, NEW), true),
        ("goes", &|node| go(node, "10.0.0.101"), true),
        ("one goes, one comes", &|node| (go(node, "10.0.0.51"), come(node, NEW)).1, true),
        (
            "its rules go, and another has its address",
            &|node| {
                go(node, "10.0.0.101");
                come(
                    node,
                    "link 78 eni00000000078\nroute 10.0.0.101 dev 78 scope link\nrule 512 to 10.0.0.101 table 254",
                );
            },
            true,
        ),
        (
            "is sent to another table",
            &|node| {
                flush(node, |rule| rule.to_string().contains("from 10.0.0.101 "));
                come(node, "rule 1536 from 10.0.0.101 table 3");
            },
            true,
        ),
        ("has left a rule", &|node| come(node, FROM), true),
        ("comes over a link of others", &|node| come(node, &NEW.replace("eni00000000077", "tap7")), true),
        (
            "comes, and has no rule 512 yet",
            &|node| come(node, &format!("{}\n{FROM}", NEW.replace("512 to", "99 to"))),
            false,
        ),
        ("lacks a rule", &|node| flush(node, |rule| rule.to_string().contains("from 10.0.0.101 ")), false),
        ("an uplink comes", &|node| come(node, "link 7 eth2 10.0.2.20/24\nrule 32765 from 10.0.2.20 table 3"), false),
        ("the mark goes", &|node| flush(node, |rule| rule.priority == 1024), false),
    ];
    for (case, change, is_followed) in cases {
        let mut node = known(NODE);
        change(&mut node);
        let mut whole = node.clone();
        whole.recall.memory.cni.digest = None;
        node.asked.clear();
        let (fast, slow) = (run(&mut node, 1), run(&mut whole, 1));
        assert_eq!((fast.commands, fast.blocked), (slow.commands, slow.blocked), "{case}");
        assert_eq!(node.cni_memory, whole.cni_memory, "{case}");
        assert_eq!(node.recall.memory.cni, whole.recall.memory.cni, "{case}");
        let looked_at_all = node.asked.contains(&Want::Routes(RouteSet::Table(Family::V4, TABLE_MAIN)));
        assert_eq!(looked_at_all, !is_followed, "{case}: {:?}", node.asked);
    }
}

#[test]
fn a_branch_pod_keeps_its_own_form() {
    type Change = fn(&mut Model);
    let cases: [(&str, Change); 3] = [
        ("it has no route in its table", |node| node.routes.retain(|it| it.oif() != Some(9))),
        ("its link is another", |node| {
            node.links.iter_mut().filter(|it| it.dev.index == 9).for_each(|it| it.dev.index = 19)
        }),
        ("it is in the other mode by now", |node| {
            node.links.retain(|it| it.dev.index != 9);
            node.rp_filters.links.retain(|it| it.0 != 9);
            node.routes.retain(|it| it.oif() != Some(9));
            let standard = Model::new("link 10 eni00000000033\nroute 10.0.2.33 dev 10 scope link");
            node.links.extend(standard.links);
            node.rp_filters.links.extend(standard.rp_filters.links);
            node.routes.extend(standard.routes);
        }),
    ];
    for (case, change) in cases {
        let mut node = known(STRICT);
        flush(&mut node, is_of_cni);
        change(&mut node);
        let commands = run(&mut node, 60).commands;
        assert!(!commands.iter().any(|it| it.contains("iif vlan0")), "{case}: {commands:?}");
        assert!(commands.iter().any(|it| it.contains("iif vlan.eth.1")), "{case}: {commands:?}");
    }
}

#[test]
fn a_rule_that_the_kernel_would_delete_in_the_place_of_a_restored_one_stays() {
    let links = "link 2 eth0 10.0.0.9/24";
    let (marked, restored) =
        ("rule 32765 from fd00::1 fwmark 7 table 2004 proto 172", "rule 32765 from fd00::1 table 2004 proto 172");
    for (rules, deleted) in [([marked, restored], 0), ([restored, marked], 1)] {
        let mut node = Model::new(&format!("{links}\n{}", rules.join("\n")));
        let plan = node.plan_section("pod_rules", &desired("{}"));
        assert_eq!(plan.steps.len(), deleted, "{rules:?}: {plan:?}");
    }
}
