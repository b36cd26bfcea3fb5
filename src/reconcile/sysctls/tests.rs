use super::persist::{HEADER, HEADER_REST, example_of};
use std::time::Duration;

use super::*;
use crate::change::{Change, Op, Step};
use crate::model::SysctlWrite;
use crate::reconcile::testing::{Model, desired};
use crate::sysctl_d;
use crate::sysctl_d::{ConfFile, OurFile, Settings};

/// Takes what is of the ledger.
fn note(node: &mut Model, notes: Vec<Note>) {
    for note in notes {
        if let Note::Ledger(note) = note {
            node.ledger.take(note, Duration::ZERO);
        }
    }
}

fn shown(steps: &[Step]) -> Vec<String> {
    steps.iter().map(|step| step.change.to_string()).collect()
}

#[test]
fn declared_values_are_set() {
    let forward = "sysctls: [{key: net.ipv4.ip_forward, value: 1}]";
    let proxies = "sysctls: [{key: 'net.ipv4.conf.vh_*.proxy_arp', value: 1}, \
                   {key: 'net.ipv4.conf.vh_2*.proxy_arp', value: 0}, {key: net/ipv4/conf/vh_2.1/proxy_arp, value: 1}]";
    let node = "sysctl net/ipv4/conf/all/proxy_arp = 0\nsysctl net/ipv4/conf/vh_1/proxy_arp = 0\n\
                sysctl net/ipv4/conf/vh_2/proxy_arp = 0\nsysctl net/ipv4/conf/vh_2.1/proxy_arp = 0";
    for (case, yaml, node, commands, blocked) in [
        ("differs", forward, "sysctl net/ipv4/ip_forward = 0", vec!["sysctl -w net.ipv4.ip_forward=1"], 0),
        ("is so", forward, "sysctl net/ipv4/ip_forward = 1", vec![], 0),
        ("is not there", forward, "", vec![], 1),
        (
            "patterns: the last one counts, and a key by itself more",
            proxies,
            node,
            vec!["sysctl -w net.ipv4.conf.vh_1.proxy_arp=1", "sysctl -w net/ipv4/conf/vh_2.1/proxy_arp=1"],
            0,
        ),
        (
            "a pattern that matches nothing",
            "sysctls: [{key: 'net.ipv4.conf.tap*.proxy_arp', value: 1}]",
            node,
            vec![],
            0,
        ),
        (
            "a bridge that is to come",
            "bridges: [{name: br0}]\nsysctls: [{key: 'net.ipv4.conf.br*.proxy_arp', value: 1}]",
            "sysctl net/ipv4/conf/default/proxy_arp = 0",
            vec!["sysctl -w net.ipv4.conf.br0.proxy_arp=1"],
            0,
        ),
        (
            "white space",
            "sysctls: [{key: net.ipv4.ip_local_port_range, value: '1024   65535'}]",
            "sysctl net/ipv4/ip_local_port_range = 1024\t65535",
            vec![],
            0,
        ),
        ("signs", "sysctls: [{key: net.x.y, value: -1}]", "sysctl net/x/y = -1", vec![], 0),
        ("bases", "sysctls: [{key: net.x.y, value: '0x10'}]", "sysctl net/x/y = 16", vec![], 0),
        ("octal", "sysctls: [{key: net.x.y, value: '010'}]", "sysctl net/x/y = 8", vec![], 0),
        ("ports", "sysctls: [{key: net.x.y, value: '9,8080,8081,1-3'}]", "sysctl net/x/y = 1-3,9,8080-8081", vec![], 0),
        (
            "other ports",
            "sysctls: [{key: net.x.y, value: '8080,8082'}]",
            "sysctl net/x/y = 8080-8082",
            vec!["sysctl -w net.x.y=8080,8082"],
            0,
        ),
        (
            "fewer words",
            "sysctls: [{key: net.x.y, value: '1'}]",
            "sysctl net/x/y = 1 2",
            vec!["sysctl -w net.x.y=1"],
            0,
        ),
    ] {
        let plan = Model::new(node).plan_section("sysctls", &desired(yaml));
        assert_eq!(shown(&plan.steps), commands, "{case}");
        assert_eq!(plan.blocked.len(), blocked, "{case}: {:?}", plan.blocked);
        assert_eq!(plan.removals, [], "{case}");
    }
}

#[test]
fn what_was_there_before_comes_back_where_the_value_is_still_ours() {
    for (case, live, before, expected) in [
        ("ours", Some("2"), "1", vec!["sysctl -w net.x.y=1"]),
        ("changed since", Some("3"), "1", vec![]),
        ("gone", None, "1", vec![]),
        ("never changed", Some("2"), "2", vec![]),
    ] {
        let mut node = Model::new(&live.map_or(String::new(), |live| format!("sysctl net/x/y = {live}")));
        node.ledger.sysctls.push(entry("net/x/y", before, "2"));
        let first = node.plan_section("sysctls", &desired("{}"));
        assert_eq!(shown(&first.removals), expected, "{case}");
        assert_eq!(
            first.remember.contains(&Note::Ledger(LedgerNote::Sysctls(Vec::new()))),
            expected.is_empty(),
            "{case}"
        );
    }
}

#[test]
fn the_first_value_is_remembered_however_often_it_is_set() {
    let mut node = Model::new("sysctl net/x/y = 1");
    let wish = desired("sysctls: [{key: net.x.y, value: 2}]");
    for live in ["1", "7", "9"] {
        node.sysctls[0].1 = live.into();
        let first = node.plan_section("sysctls", &wish);
        note(&mut node, first.remember);
        first.steps.iter().for_each(|step| node.apply(&step.change));
    }
    let entry = entry("net/x/y", "1", "2");
    assert_eq!(node.ledger.sysctls, [SetSysctl { earlier: Some("9".into()), ..entry.clone() }]);
    let again = node.plan_section("sysctls", &wish).remember;
    note(&mut node, again);
    assert_eq!(node.ledger.sysctls, [entry]);
}

fn entry(key: &str, before: &str, value: &str) -> SetSysctl {
    let (key, before, value) = (key.into(), before.into(), value.into());
    SetSysctl { key, before, value, earlier: None, persist: false }
}

/// A value that the kernel may have refused, or never got: the earlier value is still node-fixer's.
#[test]
fn an_update_that_failed_keeps_what_was_there_before() {
    let mut node = Model::new("sysctl net/x/y = 2");
    node.ledger.sysctls.push(entry("net/x/y", "1", "2"));
    let first = node.plan_section("sysctls", &desired("sysctls: [{key: net.x.y, value: 3}]"));
    note(&mut node, first.remember);
    assert_eq!(node.ledger.sysctls, [SetSysctl { earlier: Some("2".into()), ..entry("net/x/y", "1", "3") }]);
    assert_eq!(shown(&node.plan_section("sysctls", &desired("{}")).removals), ["sysctl -w net.x.y=1"]);
    let again = node.plan_section("sysctls", &desired("sysctls: [{key: net.x.y, value: 2}]"));
    assert_eq!(again.remember[1..], [Note::Ledger(LedgerNote::Sysctls(vec![entry("net/x/y", "1", "2")]))]);
}

#[test]
fn forwarding_is_switched_without_a_loss_to_others() {
    let node = "sysctl net/ipv4/ip_forward = 0\nsysctl net/ipv4/conf/default/forwarding = 0\n\
                sysctl net/ipv4/conf/all/forwarding = 0\nsysctl net/ipv4/conf/all/accept_redirects = 0\n\
                sysctl net/ipv4/conf/eth0/forwarding = 0\nsysctl net/ipv4/conf/eth1/forwarding = 1";
    let on = "sysctls: [{key: net.ipv4.ip_forward, value: 1}]";
    let closed = "sysctls: [{key: net.ipv4.conf.eth0.forwarding, value: 0}, {key: net.ipv4.ip_forward, value: 1}]";
    let every = "sysctls: [{key: 'net.ipv4.conf.*.forwarding', value: 1}]";
    let back = "sysctl -w net.ipv4.ip_forward=0 && sysctl -w net.ipv4.conf.eth1.forwarding=1 && \
                sysctl -w net.ipv4.conf.all.accept_redirects=0";
    for (case, yaml, commands, removals) in [
        ("all", on, vec!["sysctl -w net.ipv4.ip_forward=1"], vec![back]),
        (
            "all but one",
            closed,
            vec!["sysctl -w net.ipv4.ip_forward=1", "sysctl -w net.ipv4.conf.eth0.forwarding=0"],
            vec![back],
        ),
        ("each", every, vec!["sysctl -w net.ipv4.ip_forward=1"], vec![back]),
    ] {
        let mut node = Model::new(node);
        let mut run = |yaml: &str| {
            let plan = node.plan_section("sysctls", &desired(yaml));
            note(&mut node, plan.remember);
            let steps = [plan.steps, plan.removals].concat();
            steps.iter().for_each(|step| node.apply(&step.change));
            steps
        };
        let steps = run(yaml);
        assert_eq!(shown(&steps), commands, "{case}");
        assert_eq!(shown(&run(yaml)), [""; 0], "{case}: again");
        assert_eq!(shown(&run("{}")), removals, "{case}: undeclared");
        assert_eq!(shown(&run("{}")), [""; 0], "{case}: undeclared, again");
        let values: Vec<_> = node.sysctls.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["0", "0", "0", "0", "0", "1"], "{case}: at last");
        assert_eq!(node.ledger.sysctls, [], "{case}");
    }
}

#[test]
fn default_changes_no_other_interface() {
    let mut node = Model::new(
        "sysctl net/ipv4/conf/all/proxy_arp = 0\nsysctl net/ipv4/conf/default/proxy_arp = 0\n\
         sysctl net/ipv4/conf/eth0/proxy_arp = 0\nsysctl net/ipv4/conf/eth1/proxy_arp = 1\n\
         sysctl net/ipv4/conf/eth2/proxy_arp = 0\nsysctl net/ipv4/conf/eth3/proxy_arp = 0",
    );
    let yaml = "bridges: [{name: br0}]\nsysctls: [{key: net.ipv4.conf.default.proxy_arp, value: 2}, \
                {key: net.ipv4.conf.eth2.proxy_arp, value: 0}, {key: net.ipv4.conf.eth3.proxy_arp, value: 1}]";
    let first = node.plan_section("sysctls", &desired(yaml));
    let kept = ["eth0", "eth2", "br0"].map(|link| format!("sysctl -w net.ipv4.conf.{link}.proxy_arp=0; "));
    let default = kept.concat() + "sysctl -w net.ipv4.conf.default.proxy_arp=2";
    assert_eq!(shown(&first.steps), [default.as_str(), "sysctl -w net.ipv4.conf.eth3.proxy_arp=1"]);
    assert_eq!(first.steps[0].change.without_side_writes().to_string(), "sysctl -w net.ipv4.conf.default.proxy_arp=2");
}

#[test]
fn what_is_declared_no_longer_follows_what_still_is() {
    let mut node = Model::new(
        "sysctl net/ipv4/ip_forward = 1\nsysctl net/ipv4/conf/eth0/forwarding = 0\n\
         sysctl net/ipv4/conf/all/accept_redirects = 0",
    );
    let forward = entry("net/ipv4/ip_forward", "0", "1");
    node.ledger.sysctls = vec![entry("net/ipv4/conf/eth0/forwarding", "0", "0"), forward];
    let plan = node.plan_section("sysctls", &desired("sysctls: [{key: net.ipv4.ip_forward, value: 1}]"));
    assert_eq!(shown(&plan.removals), ["sysctl -w net.ipv4.conf.eth0.forwarding=1"]);
}

#[test]
fn a_key_that_cannot_be_read_blocks_itself_alone() {
    let wish = desired("sysctls: [{key: net.x.y, value: 1}, {key: net.x.z, value: 1}]");
    let key = |path: &str| SysctlKey::from_path(path.as_bytes());
    let mut node = Model::new("sysctl net/x/z = 0");
    node.unreadable = Some(key("net/x/y"));
    let plan = node.plan_section("sysctls", &wish);
    assert_eq!(shown(&plan.steps), ["sysctl -w net.x.z=1"]);
    assert!(plan.blocked[0].unseen && plan.blocked.len() == 1, "{:?}", plan.blocked);
}

#[test]
fn what_is_to_last_is_one_file() {
    let yaml = "sysctls: [{key: net.ipv4.ip_forward, value: 1, persist: true}, {key: net.x.y, value: 1}, \
                {key: 'net.ipv4.conf.vh_*.proxy_arp', value: 1, persist: true}, \
                {key: net/ipv4/conf/eth0.100/proxy_arp, value: 1, persist: true}]\n\
                rp_filter: {persist: [default, 'eth*', eth0.100]}";
    let node = "sysctl net/ipv4/ip_forward = 1\nsysctl net/x/y = 1\nsysctl net/ipv4/conf/eth0.100/proxy_arp = 1";
    let mut node = Model::new(node);
    let text = format!(
        "{HEADER}{HEADER_REST}
net.ipv4.ip_forward = 1
-net.ipv4.conf.vh_*.proxy_arp = 1
-net/ipv4/conf/eth0.100/proxy_arp = 1
net.ipv4.conf.default.rp_filter = 2
-net.ipv4.conf.eth*.rp_filter = 2
-net/ipv4/conf/eth0.100/rp_filter = 2
"
    );
    let first = node.plan_section("sysctls", &desired(yaml));
    let change = Change::File(Op::Add(OurFile(text.clone())));
    assert_eq!(first.steps.iter().map(|step| &step.change).collect::<Vec<_>>(), [&change]);
    node.apply(&change);
    assert_eq!(node.plan_section("sysctls", &desired(yaml)).steps, []);
    let undeclared = node.plan_section("sysctls", &desired("{}"));
    assert_eq!(undeclared.removals[0].change, Change::File(Op::Delete(OurFile(text))));

    node.persisted = Some("# An operator's\n".into());
    assert_eq!(node.plan_section("sysctls", &desired("{}")).removals, [], "what others wrote stays");
    assert_eq!(node.plan_section("sysctls", &desired(yaml)).blocked.len(), 1);
    let observing = yaml.replace("{persist:", "{mode: observe, persist:");
    node.persisted = None;
    let Change::File(Op::Add(OurFile(text))) = &node.plan_section("sysctls", &desired(&observing)).steps[0].change
    else {
        panic!();
    };
    assert!(!text.contains("rp_filter ="), "observe writes nothing: {text}");
    node.persisted = Some(format!("{HEADER}\nnet.ipv4.conf.default.rp_filter = 2\n"));
    let only_observing = node.plan_section("sysctls", &desired("rp_filter: {mode: observe, persist: [default]}"));
    assert_eq!(only_observing.removals, [], "and takes nothing away");
}

#[test]
fn a_file_that_wins_over_ours_is_named() {
    let file = |path: &str, text: &str| ConfFile { path: path.into(), text: text.into() };
    for (case, files, expected) in [
        (
            "of one that is there",
            vec![file("/etc/sysctl.d/99-x.conf", "net.ipv4.conf.eth1-*.rp_filter = 1\n")],
            Some("99-x.conf:1 sets 1 for net/ipv4/conf/eth1-up/rp_filter"),
        ),
        (
            "of one that may come",
            vec![file("/etc/sysctl.d/99-x.conf", "net.ipv4.conf.eth77.rp_filter = 1\n")],
            Some("99-x.conf:1 sets 1 for net/ipv4/conf/eth77/rp_filter"),
        ),
        (
            "of some that may come",
            vec![file("/etc/sysctl.d/99-x.conf", "net.ipv4.conf.eth5p*.rp_filter = 1\n")],
            Some("99-x.conf:1 sets 1 for net/ipv4/conf/eth5p0/rp_filter"),
        ),
        ("of others", vec![file("/etc/sysctl.d/99-x.conf", "net.ipv4.conf.en*.rp_filter = 1\n")], None),
        ("earlier", vec![file("/usr/lib/sysctl.d/50-redhat.conf", "net.ipv4.conf.*.rp_filter = 1\n")], None),
        (
            "later",
            vec![file("/etc/sysctl.d/99-hard.conf", "\nnet.ipv4.conf.*.rp_filter = 1\n")],
            Some("/etc/sysctl.d/99-hard.conf:2 sets 1"),
        ),
        ("later, the same", vec![file("/etc/sysctl.d/99-hard.conf", "net.ipv4.conf.*.rp_filter = 2\n")], None),
        (
            "in place of node-fixer's file",
            vec![file("/run/sysctl.d/90-node-fixer.conf", "net.ipv4.conf.*.rp_filter = 1\n")],
            None,
        ),
    ] {
        let mut node = Model::new("sysctl net/ipv4/conf/eth1-up/rp_filter = 2");
        node.sysctl_files = Settings::new(files);
        let plan = node.plan_section("sysctls", &desired("rp_filter: {persist: ['eth[0-9]*']}"));
        let because = plan.blocked.first().map(|blocked| blocked.because.clone());
        match (expected, because) {
            (None, None) => {}
            (Some(expected), Some(because)) => assert!(because.contains(expected), "{case}: {because}"),
            (expected, because) => panic!("{case}: want {expected:?}, got {because:?}"),
        }
    }
}

#[test]
fn an_example_is_matched_by_its_pattern() {
    for pattern in ["eth*", "eni???", "eth[0-9]", "[ab]x[!z]*", "eth0.100", "vh_*"] {
        let example = example_of(pattern);
        assert!(sysctl_d::is_match(pattern.as_bytes(), example.as_bytes()), "{pattern}: {example}");
    }
}

/// What the kernel would do to a default route that was learned from router advertisements.
#[test]
fn forwarding_costs_no_default() {
    let node = |accept: u8| {
        format!(
            "link 2 eth0\nlink 3 eth1\nroute default via fe80::1 dev 2 table 254 proto 9\n\
             route default via fe80::2 dev 3 table 254 proto 3\nroute default via fe80::3 dev 3 table 7 proto 9\n\
             sysctl net/ipv6/conf/all/forwarding = 0\nsysctl net/ipv6/conf/default/forwarding = 0\n\
             sysctl net/ipv6/conf/eth0/forwarding = 0\nsysctl net/ipv6/conf/eth1/forwarding = 0\n\
             sysctl net/ipv6/conf/eth0/accept_ra = {accept}\nsysctl net/ipv6/conf/eth1/accept_ra = 1"
        )
    };
    let key = |key: &str, value: u8| format!("{{key: 'net.ipv6.conf.{key}', value: {value}}}");
    let (all, both) = (key("all.forwarding", 1), key("*.forwarding", 1));
    let accept = key("eth0.accept_ra", 2);
    for (case, accept_ra, wishes, commands, blocked) in [
        ("1", 1, vec![&all], 0, 1),
        ("0: a program handles them", 0, vec![&all], 1, 0),
        ("2", 2, vec![&all], 1, 0),
        ("2 is declared", 1, vec![&all, &accept], 2, 0),
        ("a pattern is blocked once; default costs nothing", 1, vec![&both], 1, 1),
    ] {
        let wishes: Vec<_> = wishes.into_iter().cloned().collect();
        let yaml = format!("sysctls: [{}]", wishes.join(", "));
        let plan = Model::new(&node(accept_ra)).plan_section("sysctls", &desired(&yaml));
        assert_eq!((plan.steps.len(), plan.blocked.len()), (commands, blocked), "{case}: {plan:?}");
        assert!(plan.blocked.iter().all(|blocked| !blocked.unseen), "{case}");
        let first = shown(&plan.steps).first().cloned().unwrap_or_default();
        assert_eq!(first.contains("accept_ra"), commands == 2, "{case}: it comes first");
    }
    let mut unreadable = Model::new(&node(1));
    unreadable.unreadable = Some(SysctlKey::from_path(b"net/ipv6/conf/eth0/accept_ra"));
    let plan = unreadable.plan_section("sysctls", &desired(&format!("sysctls: [{all}]")));
    assert!(plan.steps.is_empty() && plan.blocked[0].unseen, "{plan:?}");
}

/// An interface that forwards hears advertisements only with accept_ra 2.
#[test]
fn an_interface_that_forwards_goes_on_hearing_advertisements() {
    let node = |all: u8, eth0: u8, accept: u8| {
        format!(
            "link 2 eth0\nlink 3 eth1\nroute default via fe80::1 dev 2 table 254 proto 9\n\
             sysctl net/ipv6/conf/all/forwarding = {all}\nsysctl net/ipv6/conf/default/forwarding = {all}\n\
             sysctl net/ipv6/conf/eth0/forwarding = {eth0}\nsysctl net/ipv6/conf/eth1/forwarding = {all}\n\
             sysctl net/ipv6/conf/eth0/accept_ra = {accept}\nsysctl net/ipv6/conf/eth1/accept_ra = 2"
        )
    };
    let key = |key: &str, value: u8| format!("{{key: 'net.ipv6.conf.{key}', value: {value}}}");
    for (case, live, wishes, commands, blocked) in [
        ("it forwards", (1, 1, 2), vec![key("eth0.accept_ra", 1)], 0, 1),
        ("by itself", (0, 1, 2), vec![key("eth0.accept_ra", 1)], 0, 1),
        ("it does not", (1, 0, 2), vec![key("eth0.accept_ra", 1)], 1, 0),
        ("it was deaf before", (1, 1, 0), vec![key("eth0.accept_ra", 1)], 1, 0),
        ("no advertisements are wanted", (1, 1, 2), vec![key("eth0.accept_ra", 0)], 1, 0),
        ("another interface has no default", (1, 1, 2), vec![key("eth1.accept_ra", 1)], 1, 0),
        ("forwarding ends", (1, 1, 2), vec![key("eth0.accept_ra", 1), key("all.forwarding", 0)], 2, 0),
        ("its own ends", (1, 1, 2), vec![key("eth0.accept_ra", 1), key("eth0.forwarding", 0)], 2, 0),
    ] {
        let yaml = format!("sysctls: [{}]", wishes.join(", "));
        let plan = Model::new(&node(live.0, live.1, live.2)).plan_section("sysctls", &desired(&yaml));
        assert_eq!((plan.steps.len(), plan.blocked.len()), (commands, blocked), "{case}: {plan:?}");
    }
    let mut back = Model::new(&node(1, 1, 2));
    back.ledger.sysctls = vec![entry("net/ipv6/conf/eth0/accept_ra", "1", "2")];
    let kept = back.plan_section("sysctls", &desired(&format!("sysctls: [{}]", key("all.forwarding", 1))));
    assert_eq!((kept.removals.len(), kept.blocked.len()), (0, 1), "{kept:?}");
    assert!(kept.blocked[0].because.ends_with("declare net.ipv6.conf.eth0.accept_ra: 2"), "{kept:?}");
    assert!(
        kept.remember.iter().all(|note| !matches!(note, Note::Ledger(LedgerNote::Sysctls(_)))),
        "the ledger goes on telling of it"
    );
    back.ledger.sysctls.push(entry("net/ipv6/conf/all/forwarding", "0", "1"));
    let gone = back.plan_section("sysctls", &desired("{}"));
    assert_eq!((gone.removals.len(), gone.blocked.len()), (2, 0), "forwarding goes first: {gone:?}");
}

/// What a node is before anything is declared, in each test of whole lives below.
const KEYS: [&str; 12] = [
    "net/ipv4/ip_forward",
    "net/ipv4/conf/all/accept_redirects",
    "net/ipv4/conf/default/forwarding",
    "net/ipv4/conf/eth0/forwarding",
    "net/ipv4/conf/eth1/forwarding",
    "net/ipv6/conf/all/forwarding",
    "net/ipv6/conf/default/forwarding",
    "net/ipv6/conf/eth0/forwarding",
    "net/ipv6/conf/eth1/forwarding",
    "net/ipv6/conf/all/addr_gen_mode",
    "net/ipv6/conf/eth0/addr_gen_mode",
    "net/ipv4/conf/eth0/proxy_arp",
];

/// What may be declared of them.
const DECLARATIONS: [&str; 8] = [
    "{key: net.ipv4.ip_forward, value: 1}",
    "{key: net.ipv4.ip_forward, value: 0}",
    "{key: 'net.ipv4.conf.eth*.forwarding', value: 1}",
    "{key: net.ipv4.conf.eth0.forwarding, value: 0}",
    "{key: net.ipv6.conf.all.forwarding, value: 1}",
    "{key: net.ipv6.conf.eth1.forwarding, value: 0}",
    "{key: net.ipv6.conf.all.addr_gen_mode, value: 1}",
    "{key: net.ipv4.conf.eth0.proxy_arp, value: 1}",
];

/// How a run may end or fail.
#[derive(Debug, Clone)]
enum Trouble {
    /// It ends after so many writes, those of the ledger included.
    Ends(usize),
    /// One of its writes fails.
    Fails(usize),
    /// This key cannot be read.
    Unreadable(usize),
}

/// One run as [`crate::engine`] makes it; whether it ended by itself and nothing was blocked.
fn live(node: &mut Model, yaml: &str, trouble: Option<&Trouble>) -> bool {
    let (ends, fails) = match trouble {
        Some(Trouble::Ends(at)) => (*at, usize::MAX),
        Some(Trouble::Fails(at)) => (usize::MAX, *at),
        _ => (usize::MAX, usize::MAX),
    };
    node.unreadable = match trouble {
        Some(Trouble::Unreadable(at)) => Some(SysctlKey::from_path(KEYS[*at].as_bytes())),
        _ => None,
    };
    let (mut count, mut well) = (0, true);
    for _ in 0..3 {
        let plan = node.plan_section("sysctls", &desired(yaml));
        well &= plan.blocked.is_empty();
        for note in plan.remember {
            if count == ends {
                return false;
            }
            count += 1;
            node.recall.memory.take(note.clone(), Duration::ZERO);
            self::note(node, vec![note]);
        }
        for step in plan.steps.iter().chain(&plan.removals) {
            let Change::Sysctl(SysctlWrite { key, .. }) = &step.change else { continue };
            for (written, value) in node.writes(&step.change) {
                match count {
                    _ if count == ends => return false,
                    _ if count == fails => well = false,
                    _ => node.write(&written, &value),
                }
                count += 1;
                // Nothing follows on a key that was refused.
                if count == fails.saturating_add(1) && written == *key {
                    break;
                }
            }
        }
    }
    node.unreadable = None;
    well
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]

    /// Whatever was declared, and however runs ended or failed: once nothing is declared, one undisturbed run restores
    /// everything, and a second finds nothing to do.
    #[test]
    fn everything_comes_back_however_runs_end(
        before in proptest::array::uniform12(0_u8..2),
        runs in proptest::collection::vec((proptest::collection::vec(0_usize..8, 0..4), trouble()), 1..6),
    ) {
        let values = before.map(|value| value.to_string());
        let lines: Vec<_> = KEYS.iter().zip(&values).map(|(key, value)| format!("sysctl {key} = {value}")).collect();
        let mut node = Model::new(&lines.join("\n"));
        for (wishes, trouble) in &runs {
            let mut wishes = wishes.clone();
            wishes.sort_unstable();
            wishes.dedup();
            // ip_forward is declared once.
            if wishes.starts_with(&[0, 1]) {
                wishes.remove(1);
            }
            let wishes: Vec<_> = wishes.iter().map(|at| DECLARATIONS[*at]).collect();
            live(&mut node, &format!("sysctls: [{}]", wishes.join(", ")), trouble.as_ref());
        }
        proptest::prop_assert!(live(&mut node, "{}", None), "the last run is disturbed by nothing");
        let after: Vec<_> = node.sysctls.iter().map(|(_, value)| value.clone()).collect();
        proptest::prop_assert_eq!(after, values.to_vec(), "{:?}", KEYS);
        proptest::prop_assert_eq!(&node.ledger.sysctls, &[]);
        let again = node.plan_section("sysctls", &desired("{}"));
        proptest::prop_assert_eq!(again, Plan::default());
    }
}

fn trouble() -> impl proptest::prelude::Strategy<Value = Option<Trouble>> {
    use proptest::prelude::*;
    prop_oneof![
        Just(None),
        (0_usize..14).prop_map(|at| Some(Trouble::Ends(at))),
        (1_usize..14).prop_map(|at| Some(Trouble::Fails(at))),
        (0_usize..KEYS.len()).prop_map(|at| Some(Trouble::Unreadable(at))),
    ]
}
