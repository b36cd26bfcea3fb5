use super::uplinks::FEW;
use super::*;
use crate::history::memory::Memory;
use crate::observed::Want;
use crate::reconcile::testing::{Model, desired};

const START: Duration = Duration::from_secs(1_000);
const TODAY: Duration = Duration::from_secs(1_800_000_000);

/// The index is that of the name.
fn uplink(name: &str, address: &str) -> Uplink {
    let number: u32 = name.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
    Uplink { name: name.into(), index: 2 + number, hardware: "02".into(), addresses: vec![address.into()] }
}

/// A node whose uplinks are written as they are remembered.
#[derive(Debug, Clone)]
struct Node {
    model: Model,
    uplinks: Vec<Uplink>,
    /// Where they are others after a while.
    settled: Option<Vec<Uplink>>,
    desired: Config,
}

impl std::ops::Deref for Node {
    type Target = Model;

    fn deref(&self) -> &Model {
        &self.model
    }
}

impl std::ops::DerefMut for Node {
    fn deref_mut(&mut self) -> &mut Model {
        &mut self.model
    }
}

/// Gives the node these uplinks, each with a default route.
fn set_up(model: &mut Model, uplinks: &[Uplink]) {
    let lines = uplinks.iter().map(|it| {
        let lines = format!("link {} {} {}", it.index, it.name, it.addresses.join(" "));
        format!("{lines}\nroute default via 10.0.0.1 dev {} metric {}", it.index, it.index)
    });
    let node = Model::new(&lines.collect::<Vec<_>>().join("\n"));
    (model.links, model.addresses, model.routes) = (node.links, node.addresses, node.routes);
    for (link, uplink) in model.links.iter_mut().zip(uplinks) {
        let digits = uplink.hardware.as_bytes().chunks(2).map(|pair| str::from_utf8(pair).unwrap());
        link.hardware = digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect();
    }
}

fn id(id: &str) -> PodId {
    PodId::try_from(id.to_owned()).unwrap()
}

fn pod(name: &str, created: Duration) -> Pod {
    Pod { id: id(name), name: format!("kube-proxy-{name}"), created }
}

/// eth0 is known, eth1 has come, and an old pod runs.
fn changed() -> Node {
    let uplinks = vec![uplink("eth0", "10.0.0.10/24"), uplink("eth1", "10.0.1.10/24")];
    let mut node = Node { model: Model::new(""), uplinks, settled: None, desired: Config::default() };
    let interfaces = Some(Config::default().kube_proxy.interfaces.as_str().to_owned());
    let kube_proxy =
        Knowledge { interfaces, uplinks: Some(vec![uplink("eth0", "10.0.0.10/24")]), ..Knowledge::default() };
    let memory = Memory { kube_proxy, ..Memory::default() };
    node.recall = Recall { memory, wall: TODAY, boot: START, awake: START, begun: START, ..Recall::default() };
    node.pods = Ok(vec![pod("old", TODAY - Duration::from_secs(9_000))]);
    node
}

fn planned(node: &mut Node) -> Plan {
    set_up(&mut node.model, &node.uplinks);
    node.model.settled = node.settled.as_ref().map(|uplinks| {
        let mut later = Model::new("");
        set_up(&mut later, uplinks);
        Box::new(later)
    });
    node.model.plan(plan, &node.desired)
}

fn noted(plan: Plan) -> Knowledge {
    match plan.remember.as_slice() {
        [Note::KubeProxy(knowledge)] => knowledge.clone(),
        other => panic!("{other:?}"),
    }
}

/// A restart, with what is remembered at each turn of it.
struct Turns {
    step: Step,
    id: Option<PodId>,
    begun: Knowledge,
    ended: Knowledge,
    failed: Knowledge,
    backoff: Duration,
}

fn turns(step: &Step) -> Turns {
    let Change::RestartPod(restart) = &step.change else { panic!("{step:?}") };
    let [
        (When::Before, Note::KubeProxy(begun)),
        (When::Applied, Note::KubeProxy(ended)),
        (When::Failed, Note::RestartFailed { knowledge: failed, backoff }),
    ] = step.notes.as_slice()
    else {
        panic!("{step:?}")
    };
    let (begun, ended, failed) = (begun.clone(), ended.clone(), failed.clone());
    Turns { step: step.clone(), id: restart.id.clone(), begun, ended, failed, backoff: *backoff }
}

fn recalled(kube_proxy: Knowledge) -> Memory {
    Memory { kube_proxy, ..Memory::default() }
}

fn reason(steps: &[Step]) -> &str {
    &steps.first().unwrap().reason
}

#[test]
fn the_first_run_remembers_and_does_nothing() {
    let mut node = changed();
    node.recall.memory = Memory::default();
    let plan = planned(&mut node);
    assert!(plan.steps.is_empty() && plan.held.is_empty() && plan.blocked.is_empty(), "{plan:?}");
    assert_eq!(noted(plan).uplinks, Some(node.uplinks.clone()));
    assert!(!node.asked.iter().any(|want| matches!(want, Want::Pods(_))));
}

#[test]
fn before_the_network_is_configured_there_is_nothing_to_remember() {
    let mut node = changed();
    node.recall.memory = Memory::default();
    let uplinks = std::mem::take(&mut node.uplinks);
    assert_eq!(planned(&mut node), Plan::default());
    node.uplinks = uplinks.clone();
    assert_eq!(noted(planned(&mut node)).uplinks, Some(uplinks), "then kube-proxy starts with these");
}

#[test]
fn a_run_of_the_watcher_reports_a_failure_of_crictl_when_it_lasts() {
    let mut node = changed();
    node.pods = Err("no runtime yet".into());
    let since = TODAY - Duration::from_secs(60);
    node.recall.memory.kube_proxy.pending = Some(Pending { since, uplinks: node.uplinks.clone() });
    node.recall.patience = Patience::Due;
    let first = planned(&mut node);
    assert_eq!(reason(&first.held), "uplinks changed: +eth1; crictl failed; held back for 55s");
    assert_eq!((first.blocked.len(), first.due), (0, Some(START + Duration::from_secs(55))));
    let boot = START + Duration::from_secs(56);
    node.recall =
        Recall { patience: Patience::Due, memory: recalled(noted(first)), wall: TODAY, boot, ..Recall::default() };
    let second = planned(&mut node);
    assert!(second.held.is_empty() && second.blocked[0].because.ends_with("no runtime yet"), "{second:?}");
    node.recall = Recall { memory: recalled(noted(second)), boot: boot * 2, ..node.recall.clone() };
    node.pods = Ok(vec![pod("old", Duration::ZERO)]);
    assert_eq!(planned(&mut node).steps.len(), 1);
}

#[test]
fn nothing_changed_is_nothing_to_remember() {
    let mut node = changed();
    node.recall.memory.kube_proxy.uplinks = Some(node.uplinks.clone());
    assert_eq!(planned(&mut node), Plan::default());
    let of_links = [Want::Link(2), Want::Link(3)];
    assert_eq!(node.asked, [&[Want::GlobalAddresses, Want::Recall], &of_links[..]].concat());
}

#[test]
fn a_change_restarts_the_one_old_pod() {
    let mut node = changed();
    let plan = planned(&mut node);
    assert_eq!(reason(&plan.steps), "uplinks changed: +eth1");
    let restart = &turns(&plan.steps[0]);
    assert_eq!(restart.id, Some(id("old")));
    let expected = Restart { id: id("old"), uplinks: node.uplinks.clone() };
    assert_eq!(restart.begun.restart.as_ref(), Some(&expected), "written down before it is done");
    assert_eq!(restart.begun.uplinks, Some(vec![uplink("eth0", "10.0.0.10/24")]), "not known before it is done");
    assert_eq!(restart.ended.uplinks, Some(node.uplinks.clone()));
    assert_eq!((&restart.ended.pending, &restart.ended.restart), (&None, &None));
    let listing = "crictl --runtime-endpoint unix:///run/containerd/containerd.sock --timeout 10s";
    assert_eq!(plan.steps[0].change.to_string(), format!("{listing} stopp old && {listing} rmp old"));
    node.make(&plan.steps[0]);
    assert_eq!(planned(&mut node), Plan::default(), "and then it is done");
}

#[test]
fn every_kind_of_change_is_one() {
    let one = |change: fn(&mut Uplink)| {
        let mut node = changed();
        node.uplinks.truncate(1);
        change(&mut node.uplinks[0]);
        planned(&mut node).steps.first().map(|step| step.reason.clone())
    };
    let said = |what: &str| Some(format!("uplinks changed: {what}"));
    assert_eq!(one(|_| {}), None);
    assert_eq!(one(|link| link.index = 9), said("eth0 (index)"));
    assert_eq!(one(|link| link.hardware = "03".into()), said("eth0 (hardware address)"));
    assert_eq!(one(|link| link.addresses.push("fd00::1/64".into())), said("eth0 (addresses)"));
    assert_eq!(one(|link| link.name = "eth5".into()), said("-eth0, +eth5"));
}

#[test]
fn nothing_is_restarted_without_need() {
    let newer = pod("new", TODAY - Duration::from_secs(1));
    let old = pod("old", TODAY - Duration::from_secs(100));
    for (case, pods) in [("no pod", vec![]), ("it has started since", vec![newer.clone()]), ("both", vec![old, newer])]
    {
        let mut node = changed();
        let since = TODAY - Duration::from_secs(60);
        node.recall.memory.kube_proxy.pending = Some(Pending { since, uplinks: node.uplinks.clone() });
        node.pods = Ok(pods);
        let plan = planned(&mut node);
        assert!(plan.steps.is_empty() && plan.held.is_empty() && plan.blocked.is_empty(), "{case}");
        assert_eq!(noted(plan).uplinks, Some(node.uplinks.clone()), "{case}");
    }
}

#[test]
fn what_is_not_certain_is_not_done() {
    let mut node = changed();
    node.pods = Ok(vec![pod("a", START), pod("b", START)]);
    let plan = planned(&mut node);
    assert_eq!(plan.steps, vec![]);
    assert!(plan.blocked[0].because.contains("kube-proxy-a (a), kube-proxy-b (b)"), "{plan:?}");
    assert_eq!(noted(plan).uplinks, node.recall.memory.kube_proxy.uplinks, "the change is not forgotten");

    let mut node = changed();
    node.settled = Some(vec![]);
    let plan = planned(&mut node);
    assert_eq!(plan.steps, vec![]);
    assert_eq!(reason(&plan.held), "uplinks changed: +eth1; they are still changing; left to the next run");
}

#[test]
fn the_time_of_a_change_is_when_these_uplinks_were_first_seen() {
    let mut node = changed();
    node.pods = Err("crictl is broken".into());
    let first = noted(planned(&mut node));
    assert_eq!(first.pending.as_ref().unwrap().since, TODAY);
    node.recall = Recall {
        memory: recalled(first.clone()),
        wall: TODAY + Duration::from_secs(60),
        boot: START + Duration::from_secs(60),
        ..Recall::default()
    };
    assert_eq!(noted(planned(&mut node)).pending, first.pending);
    node.uplinks.push(uplink("eth2", "10.0.2.10/24"));
    let again = noted(planned(&mut node)).pending.unwrap();
    assert_eq!(again.since, TODAY + Duration::from_secs(60), "a further change");
}

#[test]
fn restarts_keep_their_distance() {
    let mut node = changed();
    node.recall.memory.kube_proxy.restarted = Some(START - Duration::from_secs(100));
    let plan = planned(&mut node);
    assert_eq!(plan.steps, vec![]);
    assert_eq!(reason(&plan.held), "uplinks changed: +eth1; held back for 3m 20s");
    node.recall = Recall {
        memory: recalled(noted(plan)),
        wall: TODAY,
        boot: START + Duration::from_secs(201),
        ..Recall::default()
    };
    assert_eq!(planned(&mut node).steps.len(), 1, "it happens when its time has come");
}

#[test]
fn restarts_in_a_row_back_off() {
    let mut node = changed();
    let mut waits = Vec::new();
    for n in 0..10 {
        node.uplinks[0].index = 100 + n;
        let plan = planned(&mut node);
        assert_eq!(plan.steps.len(), 1, "{plan:?}");
        let restart = &turns(&plan.steps[0]);
        assert_eq!(restart.begun.row, n + 1);
        node.make(&plan.steps[0]);
        node.uplinks[0].index = 200 + n;
        let held = planned(&mut node).held;
        let (_, wait) = reason(&held).split_once("held back for ").unwrap();
        assert_eq!(reason(&held).contains(&format!("restarted {} times in a row", n + 1)), n >= 4, "{held:?}");
        waits.push(wait.to_owned());
        let begun = node.recall.boot;
        node.recall.boot += humantime::parse_duration(wait).unwrap() - Duration::from_secs(1);
        assert_eq!(planned(&mut node).steps, vec![]);
        node.recall.boot = begun + humantime::parse_duration(wait).unwrap();
    }
    assert_eq!(waits, ["5m", "5m", "5m", "5m", "10m", "20m", "30m", "30m", "30m", "30m"]);
    // A resumed one is the same one.
    let restart = turns(&planned(&mut node).steps[0]);
    node.recall.memory = recalled(restart.begun.clone());
    assert_eq!(resumed(&mut node).begun.row, restart.begun.row);
    // After a time of calm it is as it was.
    node.make(&restart.step);
    node.recall.boot += Duration::from_secs(2 * 80 * 60 + 1);
    node.uplinks[0].index = 999;
    let restart = turns(&planned(&mut node).steps[0]);
    assert_eq!(restart.ended.row, 1);
}

#[test]
fn uplinks_that_are_new_do_not_wait_for_those_that_flap() {
    let mut node = changed();
    let restarted = |node: &mut Node| {
        let plan = planned(node);
        assert_eq!(plan.steps.len(), 1, "{plan:?}");
        node.make(&plan.steps[0]);
        node.recall.boot += Duration::from_secs(300);
        node.recall.memory.kube_proxy.row
    };
    for n in 0..9 {
        node.uplinks[1] = Uplink { hardware: format!("a{n}"), ..node.uplinks[1].clone() };
        assert_eq!(restarted(&mut node), 1, "{n}");
    }
    // One of those again, and again: counted; and then a new one beside it.
    for n in 0..4 {
        node.uplinks[1].hardware = format!("a{n}");
        assert_eq!(restarted(&mut node), 2 + n);
    }
    node.uplinks[1].hardware = "a7".into();
    assert!(reason(&planned(&mut node).held).contains("restarted 5 times in a row"));
    node.uplinks.push(Uplink { hardware: "ff".into(), ..uplink("eth2", "10.0.2.10/24") });
    assert_eq!(restarted(&mut node), 5);
    // However many there are, they are bounded.
    for n in 0..200 {
        node.uplinks[1].hardware = format!("{:04x}", 0x1000 + n);
        if planned(&mut node).steps.is_empty() {
            break;
        }
        restarted(&mut node);
    }
    assert_eq!(node.recall.memory.kube_proxy.hardware.len(), MOST_SEEN);
    assert_eq!(planned(&mut node).held.len(), 1);
}

#[test]
fn failures_are_tried_again_ever_later() {
    let mut node = changed();
    node.pods = Err("crictl is broken".into());
    let mut waits = Vec::new();
    for _ in 0..5 {
        let plan = planned(&mut node);
        assert!(plan.blocked[0].unseen && plan.blocked[0].because.contains("crictl is broken"), "{plan:?}");
        let memory = noted(plan);
        assert_eq!(memory.uplinks, Some(vec![uplink("eth0", "10.0.0.10/24")]), "not forgotten");
        let retry = memory.retry.unwrap();
        waits.push((retry - node.recall.boot).as_secs());
        node.recall.memory = recalled(memory);
        node.recall.boot = retry - Duration::from_secs(1);
        let asked = node.asked.len();
        assert!(planned(&mut node).held[0].reason.contains("tries failed; held back for 1s"));
        let asked = &node.asked[asked..];
        assert!(!asked.iter().any(|want| matches!(want, Want::Pods(_))), "crictl is not called before its time");
        node.recall.boot = retry;
    }
    assert_eq!(waits, [55, 115, 235, 295, 295]);
    // Links that flap do not undo it.
    let both = std::mem::replace(&mut node.uplinks, vec![uplink("eth0", "10.0.0.10/24")]);
    node.pods = Ok(vec![pod("old", START)]);
    node.recall.boot -= Duration::from_secs(1);
    node.recall.memory.kube_proxy.retry = Some(node.recall.boot + Duration::from_secs(9));
    node.recall.memory = recalled(noted(planned(&mut node)));
    node.uplinks = both;
    assert_eq!(planned(&mut node).steps, vec![]);
}

#[test]
fn a_clock_that_was_set_back_says_nothing() {
    let mut node = changed();
    node.pods = Ok(vec![pod("old", TODAY + Duration::from_secs(60))]);
    assert_eq!(planned(&mut node).steps.len(), 1);
}

#[test]
fn other_interfaces_in_the_configuration_are_no_change_of_the_uplinks() {
    let mut node = changed();
    node.recall.memory.kube_proxy.interfaces = Some("^ens[0-9]+$".into());
    let plan = planned(&mut node);
    assert!(plan.steps.is_empty() && plan.held.is_empty(), "{plan:?}");
    assert_eq!(noted(plan).uplinks, Some(node.uplinks.clone()));
}

#[test]
fn times_that_cannot_be_hold_nothing_back() {
    for (restarted, retry) in [(Duration::MAX, None), (START, Some(Duration::MAX)), (START * 3, Some(START * 90))] {
        let mut node = changed();
        node.recall.boot = START + Duration::from_secs(1000);
        node.recall.memory.kube_proxy.restarted = Some(restarted);
        node.recall.memory.kube_proxy.retry = retry;
        assert_eq!(planned(&mut node).steps.len(), 1, "{restarted:?} {retry:?}");
    }
}

/// A node on which a restart of `old` was begun, and what was planned then.
fn begun() -> (Node, Turns) {
    let mut node = changed();
    let restart = turns(&planned(&mut node).steps[0]);
    node.recall.memory = recalled(restart.begun.clone());
    (node, restart)
}

fn resumed(node: &mut Node) -> Turns {
    let plan = planned(node);
    assert_eq!(plan.steps.len(), 1, "{plan:?}");
    turns(&plan.steps[0])
}

#[test]
fn a_restart_that_did_not_end_is_resumed_by_its_id() {
    let (mut node, first) = begun();
    // Another pod has come up meanwhile: it is not touched.
    node.pods = Ok(vec![pod("new", TODAY)]);
    let again = resumed(&mut node);
    assert_eq!((again.id, &again.ended.uplinks), (Some(id("old")), &first.ended.uplinks));
    let retry = Some(START + first.backoff);
    node.recall.memory = recalled(Knowledge { retry, ..first.failed.clone() });
    assert_eq!(planned(&mut node).held.len(), 1, "after a failure not at once");
    node.recall.boot += Duration::from_secs(60);
    let again = resumed(&mut node);
    assert_eq!(again.ended.restarted, Some(node.recall.boot), "the next one keeps its distance from this one");
}

#[test]
fn what_changes_while_a_restart_is_under_way_is_not_forgotten() {
    let (mut node, first) = begun();
    node.uplinks.push(uplink("eth2", "10.0.2.10/24"));
    node.pods = Ok(vec![pod("new", TODAY)]);
    let ended = resumed(&mut node).ended.clone();
    assert_eq!(ended.uplinks, first.ended.uplinks);
    assert_eq!(ended.pending.unwrap().uplinks, node.uplinks);
    // Where the old one was not stopped yet, its successor learns of it all.
    node.pods = Ok(vec![pod("old", START)]);
    let ended = resumed(&mut node).ended.clone();
    assert_eq!((ended.uplinks, ended.pending), (Some(node.uplinks.clone()), None));
}

#[test]
fn a_restart_that_is_no_longer_needed_is_dropped() {
    let (mut node, _) = begun();
    node.uplinks.truncate(1);
    let plan = planned(&mut node);
    assert!(plan.steps.is_empty(), "it still runs, and knows what is so: {plan:?}");
    let (mut node, _) = begun();
    node.pods = Ok(vec![]);
    node.recall.memory.kube_proxy.failures = GIVE_UP - 1;
    assert_eq!(planned(&mut node).steps.len(), 1);
    node.recall.memory.kube_proxy.failures = GIVE_UP;
    let plan = planned(&mut node);
    assert!(plan.steps.is_empty(), "there is no kube-proxy here any more: {plan:?}");
    assert_eq!(noted(plan).restart, None);
}

#[test]
fn a_role_that_is_lost_is_no_change_while_the_addresses_stay() {
    let mut node = changed();
    node.recall.memory.kube_proxy.uplinks = Some(node.uplinks.clone());
    set_up(&mut node.model, &node.uplinks.clone());
    node.model.routes.truncate(1);
    let plan_of = |node: &mut Node| node.model.plan(plan, &node.desired);
    assert_eq!(plan_of(&mut node), Plan::default(), "its default flaps");
    node.model.addresses.truncate(1);
    assert_eq!(reason(&plan_of(&mut node).steps), "uplinks changed: -eth1", "twin: its address went as well");
    // One that kube-proxy does not know yet has to have the role.
    let mut node = changed();
    set_up(&mut node.model, &node.uplinks.clone());
    node.model.routes.truncate(1);
    assert_eq!(plan_of(&mut node), Plan::default());
}

/// Some networks give each pod's link an address.
#[test]
fn many_links_with_addresses_are_not_looked_at_one_by_one() {
    for (others, one_by_one) in [(FEW as u32, true), (FEW as u32 + 1, false)] {
        let mut node = changed();
        node.recall.memory.kube_proxy.uplinks = Some(node.uplinks.clone());
        set_up(&mut node.model, &node.uplinks.clone());
        let pods = (100..100 + others).map(|index| format!("link {index} veth{index} 10.9.9.1/32\n"));
        let pods = Model::new(&pods.collect::<String>());
        node.model.links.extend(pods.links);
        node.model.addresses.extend(pods.addresses);
        assert_eq!(node.model.plan(plan, &node.desired), Plan::default());
        assert_eq!(node.asked.contains(&Want::Link(100)), one_by_one);
        assert!(node.asked.contains(&Want::Rules), "each of them might be an uplink");
    }
}

#[test]
fn only_links_with_a_lasting_address_count() {
    for interfaces in ["auto", "^eth[0-9]+$"] {
        let mut node = changed();
        node.desired = desired(&format!("kube_proxy: {{interfaces: '{interfaces}'}}"));
        node.recall.memory.kube_proxy.interfaces = Some(interfaces.into());
        node.uplinks[1].addresses = vec![];
        assert_eq!(planned(&mut node), Plan::default(), "{interfaces}: no address");
        node.uplinks[1].addresses = vec!["fd00:1::10/64".into()];
        assert_eq!(planned(&mut node).steps.len(), 1, "{interfaces}: an IPv6 address alone");
        set_up(&mut node.model, &node.uplinks.clone());
        node.model.addresses[1].lasting = false;
        assert_eq!(node.model.plan(plan, &node.desired), Plan::default(), "{interfaces}: tentative, or temporary");
    }
}

#[test]
fn what_an_earlier_version_remembered_restarts_nothing() {
    let bare = Uplink { addresses: vec![], ..uplink("eth7", "10.0.0.1/24") };
    let pattern = "^(eth|ens)[0-9]+$";
    // Its default was this pattern.
    let mut node = changed();
    node.recall.memory.kube_proxy.interfaces = Some(pattern.into());
    let plan = planned(&mut node);
    assert!(plan.steps.is_empty() && plan.held.is_empty(), "{plan:?}");
    let knowledge = noted(plan);
    assert_eq!((knowledge.interfaces.as_deref(), &knowledge.uplinks), (Some("auto"), &Some(node.uplinks.clone())));
    // Where it is configured, links without an address were remembered as well.
    let mut node = changed();
    node.desired = desired(&format!("kube_proxy: {{interfaces: '{pattern}'}}"));
    let known = [node.uplinks.clone(), vec![bare]].concat();
    node.recall.memory.kube_proxy =
        Knowledge { interfaces: Some(pattern.into()), uplinks: Some(known), ..Knowledge::default() };
    let plan = planned(&mut node);
    assert!(plan.steps.is_empty() && plan.held.is_empty(), "{plan:?}");
    assert_eq!(noted(plan).uplinks, Some(node.uplinks.clone()));
}

#[test]
fn a_pod_that_started_while_it_was_waited_is_not_restarted() {
    let mut node = changed();
    node.model.listing = Duration::from_secs(6);
    node.pods = Ok(vec![pod("new", TODAY + Duration::from_secs(3))]);
    let plan = planned(&mut node);
    assert!(plan.steps.is_empty() && plan.held.is_empty(), "{plan:?}");
    assert_eq!(noted(plan).uplinks, Some(node.uplinks.clone()));
    // Twins: one from before the change, and one from a time that has not come.
    for created in [TODAY - Duration::from_secs(1), TODAY + Duration::from_secs(7)] {
        node.pods = Ok(vec![pod("old", created)]);
        assert_eq!(planned(&mut node).steps.len(), 1, "{created:?}");
    }
}

#[test]
fn an_uplink_that_appears_while_it_is_waited_is_left_to_the_next_run() {
    let mut node = changed();
    node.settled = Some([node.uplinks.clone(), vec![uplink("ens9", "10.0.9.10/24")]].concat());
    let plan = planned(&mut node);
    assert_eq!(plan.steps, vec![]);
    assert!(reason(&plan.held).ends_with("they are still changing; left to the next run"), "{plan:?}");
}

#[test]
fn labels_that_no_pod_has_are_reported_where_others_run() {
    let mut node = changed();
    node.pods = Ok(vec![]);
    assert_eq!(planned(&mut node).notices, vec![], "no pod at all");
    node.model.other_pods = vec![pod("coredns", START)];
    let plan = planned(&mut node);
    let text = plan.notices[0].text.clone();
    assert!(text.contains("namespace kube-system has the labels k8s-app=kube-proxy"), "{text}");
    assert_eq!(plan.notices[0].problem, None);
    node.recall.memory.kube_proxy = noted(plan);
    // It is still so in later runs, which do not ask; and no longer once the question is another.
    let plan = planned(&mut node);
    assert_eq!((plan.notices[0].text.as_str(), plan.remember.len()), (text.as_str(), 0));
    node.desired = desired("kube_proxy: {labels: {component: kube-proxy}}");
    assert_eq!(planned(&mut node).notices, vec![]);
}

#[test]
fn an_uplink_that_the_pattern_leaves_out_is_reported() {
    for (interfaces, mode, expected) in [
        ("^ens", "enforce", Some("kube_proxy.interfaces leaves out eth0 and 1 more")),
        ("^eth1$", "observe", Some("kube_proxy.interfaces leaves out eth0")),
        ("^eth", "enforce", None),
        ("auto", "enforce", None),
    ] {
        let mut node = changed();
        node.desired = desired(&format!("kube_proxy: {{interfaces: '{interfaces}', mode: {mode}}}"));
        let notices = planned(&mut node).notices;
        let said = notices.first().and_then(|notice| notice.problem.as_deref());
        assert_eq!(said, expected, "{interfaces}");
    }
}
