//! The section `uplinks`: MTUs, as `ip` shows them.

use crate::kit::{Netns, Worker};

fn mtu(net: &Netns, link: &str) -> u64 {
    net.ip_json(&format!("link show dev {link}"))[0]["mtu"].as_u64().unwrap()
}

#[test]
fn uplinks_get_the_declared_mtu_and_their_own_back() {
    let node = Worker::new().with_pod(100).with_loose_rp_filter();
    node.net.ip("link set eth1 mtu 1400");
    let mtus = || ["eth0", "eth1", "eni00000000064", "lo"].map(|link| mtu(&node.net, link));
    let before = mtus();
    node.config("uplinks: {mtu: 9001, mode: observe}");
    let observed = node.fix(&["--output", "json"]).expect(0).json();
    assert_eq!(observed["changes"][0]["status"], "observed", "{observed}");
    assert_eq!(mtus(), before);
    node.config("uplinks: {mtu: 9001}");
    let script = node.fix(&["--dry-run"]).expect(0).out;
    assert!(
        script.contains("# uplinks: the MTU of eth1 is 1400, want 9001\nip link set dev eth1 mtu 9001\n"),
        "{script}"
    );
    assert_eq!(node.fix(&["--output", "json"]).expect(0).commands().len(), 2);
    assert_eq!(mtus(), [9001, 9001, before[2], before[3]]);
    assert!(node.fix(&["--output", "json"]).expect(0).commands().is_empty(), "once");
    node.config("");
    assert_eq!(node.fix(&["--output", "json"]).expect(0).commands().len(), 2);
    assert_eq!(mtus(), before);
    assert!(node.fix(&["--output", "json"]).expect(0).commands().is_empty());
}

#[test]
fn the_script_sets_what_the_run_sets() {
    let node = Worker::new().with_loose_rp_filter();
    node.config("uplinks: {mtu: 4000, interfaces: '^eth1$'}");
    let script = node.fix(&["--dry-run"]).expect(0).out;
    node.net.run("sh", &["-ec", &script]);
    assert_eq!((mtu(&node.net, "eth0"), mtu(&node.net, "eth1")), (1500, 4000));
    assert!(node.fix(&["--output", "json"]).expect(0).commands().is_empty());
}

#[test]
fn a_bridge_over_an_uplink_keeps_its_room() {
    let node = Worker::new().with_loose_rp_filter();
    node.net.ip("link add br0 type bridge");
    node.net.ip("link set eth1 mtu 4000 master br0");
    node.net.ip("link set br0 mtu 3000 up");
    node.config("uplinks: {mtu: 2000, interfaces: '^eth1$'}");
    let blocked = node.fix(&["--output", "json"]).expect(1).json();
    let because = blocked["blocked"][0]["because"].as_str().unwrap().to_owned();
    assert!(because.contains("br0 over it has an MTU of 3000") && because.contains("at least 3000"), "{blocked}");
    assert_eq!(mtu(&node.net, "eth1"), 4000);
    node.config("uplinks: {mtu: 3000, interfaces: '^eth1$'}");
    node.fix(&[]).expect(0);
    assert_eq!((mtu(&node.net, "eth1"), mtu(&node.net, "br0")), (3000, 3000));
}

#[test]
fn an_end_between_the_note_and_the_change_loses_nothing() {
    let node = Worker::new().with_loose_rp_filter();
    node.net.ip("link set eth1 mtu 1400");
    node.config("uplinks: {mtu: 9001, interfaces: '^eth1$'}");
    node.fix(&[]).expect(0);
    // The ledger is written and the link is not, as after a kill in between.
    node.net.ip("link set eth1 mtu 1400");
    node.fix(&[]).expect(0);
    assert_eq!(mtu(&node.net, "eth1"), 9001);
    node.config("");
    node.fix(&[]).expect(0);
    assert_eq!(mtu(&node.net, "eth1"), 1400);
}

#[test]
fn a_bridge_that_leads_out_of_the_node_is_not_set() {
    let node = Worker::new().with_loose_rp_filter();
    node.net.ip("link add br0 type bridge");
    node.net.ip("link set eth1 master br0");
    node.net.ip("addr flush dev eth1");
    node.net.ip("addr add 10.0.1.10/24 dev br0");
    node.net.ip("link set br0 up");
    node.config("uplinks: {mtu: 9001, interfaces: '^br0$'}");
    let blocked = node.fix(&["--output", "json"]).expect(1).json();
    assert!(blocked["blocked"][0]["because"].as_str().unwrap().contains("is a virtual link (bridge)"), "{blocked}");
    assert_eq!(mtu(&node.net, "br0"), 1500);
}
