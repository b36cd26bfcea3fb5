//! Declared bridges with ports.

use std::process::Command;

use crate::kit::{Netns, Worker, until};

const DECLARED: &str = "bridges: [{name: br-vms, addresses: [10.100.0.1/16], ports: ['^vh_']}]";

/// A machine: its end is `vh_ID` on the host.
fn machine(host: &Netns, id: u8) -> Netns {
    let machine = Netns::new();
    host.ip(&format!("link add vh_{id} type veth peer name eth0 netns {}", machine.path()));
    host.ip(&format!("link set vh_{id} up"));
    machine.ip(&format!("addr add 10.100.0.{id}/16 dev eth0"));
    machine.ip("link set eth0 up");
    machine
}

fn master(host: &Netns, port: &str) -> Option<String> {
    host.ip_json(&format!("link show {port}"))[0]["master"].as_str().map(str::to_owned)
}

#[test]
fn machines_reach_each_other_and_one_that_fell_out_is_put_back() {
    let node = Worker::bare();
    let machines = [machine(&node.net, 2), machine(&node.net, 3)];
    assert!(!machines[0].pings("10.100.0.2", "10.100.0.3"), "before");
    node.config(DECLARED);
    node.fix(&[]).expect(0);
    // A port forwards once the kernel has noticed its carrier.
    until("they reach each other", || machines[0].pings("10.100.0.2", "10.100.0.3"));
    until("and the host", || machines[0].pings("10.100.0.2", "10.100.0.1"));
    assert_eq!(node.fix(&[]).expect(0).out, "", "a second run finds nothing to do");
    node.net.ip("link set vh_3 nomaster");
    let late = machine(&node.net, 4);
    assert_eq!(node.fix(&["--output", "json"]).expect(0).commands().len(), 2);
    until("it is back", || machines[1].pings("10.100.0.3", "10.100.0.2"));
    until("and a new one is in", || late.pings("10.100.0.4", "10.100.0.2"));
}

/// Not each kernel is built with it (CONFIG_BRIDGE_VLAN_FILTERING): one without says so in its own words.
#[test]
fn a_bridge_filters_by_vlan() {
    let has_vlans =
        Netns::new().output(Command::new("ip").args(["link", "add", "br0", "type", "bridge", "vlan_filtering", "1"]));
    let node = Worker::bare();
    node.config("bridges: [{name: br0, vlan_filtering: false}]");
    node.fix(&[]).expect(0);
    node.config("bridges: [{name: br0, vlan_filtering: true}]");
    let ran = node.fix(&["--output", "json"]);
    if has_vlans.status.success() {
        let bridge = node.net.ip_json("-d link show br0");
        assert_eq!(bridge[0]["linkinfo"]["info_data"]["vlan_filtering"], 1, "{ran:?}");
        assert_eq!(node.fix(&[]).expect(0).out, "");
    } else {
        assert!(ran.expect(1).err.contains("Operation not supported"));
    }
}

#[test]
fn ports_go_with_their_declaration_and_no_others() {
    let node = Worker::bare();
    let _machines = [machine(&node.net, 2), machine(&node.net, 3)];
    node.config(DECLARED);
    node.fix(&[]).expect(0);
    let _other = machine(&node.net, 9);
    node.net.ip("link set vh_9 name other");
    node.net.ip("link set other master br-vms");
    node.config(&DECLARED.replace("^vh_", "^vh_2$"));
    node.fix(&[]).expect(0);
    assert_eq!(master(&node.net, "vh_2").as_deref(), Some("br-vms"));
    assert_eq!(master(&node.net, "vh_3"), None, "taken out");
    assert_eq!(master(&node.net, "other").as_deref(), Some("br-vms"), "whoever else is in it stays");
    node.config("");
    node.fix(&[]).expect(0);
    assert_eq!(master(&node.net, "vh_2"), None);
    assert_eq!(node.net.ip_json("link show type bridge").as_array().unwrap().len(), 0);
}

#[test]
fn what_is_in_another_bridge_or_has_an_address_is_left_alone() {
    let node = Worker::bare();
    let _machines = [machine(&node.net, 2), machine(&node.net, 3)];
    node.net.ip("link add virbr0 up type bridge");
    node.net.ip("link set vh_2 master virbr0");
    node.net.ip("addr add 10.9.0.1/24 dev vh_3");
    node.config(DECLARED);
    let ran = node.fix(&["--output", "json"]).expect(1);
    let blocked = ran.json()["blocked"][0]["because"].as_str().unwrap().to_owned();
    assert!(blocked.starts_with("vh_3 has the address 10.9.0.1"), "{ran:?}");
    assert!(ran.err.contains("vh_2 matches the ports of br-vms, but belongs to virbr0"), "{ran:?}");
    assert_eq!(master(&node.net, "vh_2").as_deref(), Some("virbr0"));
    assert_eq!(master(&node.net, "vh_3"), None);
}

#[test]
fn the_script_makes_the_bridge_its_ports_and_the_routes_over_it() {
    let node = Worker::bare();
    let machines = [machine(&node.net, 2), machine(&node.net, 3)];
    node.config(&format!(
        "{DECLARED}\nroutes: [{{to: 10.101.0.0/16, via: 10.100.0.2}}, {{to: 10.102.0.0/16, dev: br-vms}}]"
    ));
    let script = node.run_script();
    until("they reach each other", || machines[0].pings("10.100.0.2", "10.100.0.3"));
    let routes = node.net.ip("route show proto 171");
    assert!(routes.contains("10.101.0.0/16 via 10.100.0.2") && routes.contains("10.102.0.0/16"), "{script}{routes}");
}
