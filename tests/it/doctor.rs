//! `node-fixer doctor`: for each cause a node that has it, and healthy nodes of each kind that have none.
//!
//! Files are those of a scratch root, the kernel's state that of a network namespace.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::cure;
use crate::kit::{Netns, Ran, Worker, exchanging, finish, node_fixer};
use crate::rights::unprivileged;

const UDEV_RULE: &str = "# Apply sysctl variables to network devices (and only to those) as they appear.\n\
    ACTION==\"add\", SUBSYSTEM==\"net\", KERNEL!=\"lo\", \
    RUN+=\"/usr/lib/systemd/systemd-sysctl --prefix=/net/ipv4/conf/$name\"\n";
/// As systemd ships it.
const SYSCTL_50_DEFAULT: &str = "# IP source address verification\nnet.ipv4.conf.default.rp_filter = 2\n\
    net.ipv4.conf.*.rp_filter = 2\n-net.ipv4.conf.all.rp_filter\n";
/// As Red Hat's family ships it.
const SYSCTL_50_REDHAT: &str = "# Source route verification\nnet.ipv4.conf.default.rp_filter = 1\n\
    net.ipv4.conf.*.rp_filter = 1\n-net.ipv4.conf.all.rp_filter\n";
const LINK_99_DEFAULT: &str =
    "[Match]\nOriginalName=*\n\n[Link]\nNamePolicy=keep kernel database\nMACAddressPolicy=persistent\n";
pub const KEEP_FOREIGN: &str = "[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n";

/// A node: a network namespace, a scratch root and a configuration.
pub struct Patient {
    pub node: Worker,
    pub root: tempfile::TempDir,
    pub config: String,
}

pub fn write(root: &Path, path: &str, text: &str) {
    let file = root.join(path);
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, text).unwrap();
}

pub fn doctor(net: &Netns, root: &Path, config: &str, args: &[&str]) -> Ran {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.yaml");
    std::fs::write(&file, format!("version: 1\n{config}\n")).unwrap();
    let mut command = node_fixer();
    command.arg("--config").arg(file).arg("doctor").arg("--root").arg(root).args(args);
    let before = settled(net);
    let ran = finish(net.output(&mut command));
    assert_eq!(settled(net), before, "it changes nothing");
    assert!(has_marks_of_vpc_cni(net) || !ran.out.contains("CNI"), "there is none here: {}", ran.out);
    ran
}

/// Whether anything of the VPC CNI's is here: its mark, a link of its names, or rules of all its priorities.
fn has_marks_of_vpc_cni(net: &Netns) -> bool {
    let rules = net.ip("rule");
    let of_cni = |name: &str| {
        let digits = name.strip_prefix("eni").or_else(|| name.strip_prefix("vlan"));
        digits.is_some_and(|it| it.len() == 11 && it.chars().all(|c| c.is_ascii_hexdigit()))
    };
    let links = net.ip_json("link show");
    let mut names = links.as_array().unwrap().iter().filter_map(|link| link["ifname"].as_str());
    let all = ["512:", "1536:", "32765:"].iter().all(|priority| rules.contains(priority));
    names.any(of_cni) || rules.contains("fwmark 0x80/0x80") || all
}

/// The state, without the kernel's own routes, which it still changes on links that have just come up.
fn settled(net: &Netns) -> String {
    let lasting = |line: &&str| !line.contains(" proto 2");
    net.state().replace(" linkdown", "").lines().filter(lasting).collect::<Vec<_>>().join("\n")
}

/// Causes with the files that they are in, of a run that could see everything.
pub fn causes(ran: &Ran) -> Vec<(String, String)> {
    let json = ran.json();
    assert_eq!(json["unseen"], Value::Array(vec![]), "{ran:?}");
    let findings = ran.findings();
    assert_eq!(ran.code, i32::from(!findings.is_empty()), "{ran:?}");
    let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
    for finding in &findings {
        assert!(text(&finding["evidence"]).len() > 20, "{finding}");
        assert_safe(&text(&finding["cure"]));
    }
    findings.iter().map(|it| (text(&it["cause"]), text(&it["file"]))).collect()
}

/// A shell reads the cure.
fn assert_safe(cure: &str) {
    let checked = Command::new("sh").args(["-n", "-c", cure]).stdin(Stdio::null()).output().unwrap();
    assert!(!cure.is_empty() && checked.status.success(), "{cure}: {checked:?}");
}

impl Patient {
    pub fn of(node: Worker) -> Patient {
        Patient { node, root: tempfile::tempdir().unwrap(), config: String::new() }
    }

    /// A healthy worker with the VPC CNI: two uplinks, a pod of each, and the files of a distribution that knows of
    /// the CNI.
    pub fn of_vpc_cni() -> Patient {
        let node = Worker::new().with_pod(100).with_pod(101).with_loose_rp_filter();
        node.net.ip("rule add priority 1024 fwmark 0x80/0x80 lookup main");
        let patient = Patient::of(node);
        patient.file("usr/lib/sysctl.d/50-default.conf", SYSCTL_50_DEFAULT);
        patient.file("usr/lib/udev/rules.d/99-systemd.rules", UDEV_RULE);
        patient.file("usr/lib/systemd/network/99-default.link", LINK_99_DEFAULT);
        patient.file("etc/machine-id", "4c4b9dafd5d7a1b12e8ad31e48fa90fe\n");
        patient.file("etc/systemd/networkd.conf.d/80-release.conf", KEEP_FOREIGN);
        patient.networkd("eth0", "ADMIN_STATE=configured\n");
        patient.networkd("eth1", "ADMIN_STATE=unmanaged\n");
        patient
    }

    pub fn file(&self, path: &str, text: &str) {
        write(self.root.path(), path, text);
    }

    pub fn index(&self, link: &str) -> u64 {
        self.node.net.ip_json(&format!("link show dev {link}"))[0]["ifindex"].as_u64().unwrap()
    }

    /// systemd-networkd runs and says this of an interface.
    pub fn networkd(&self, link: &str, state: &str) {
        self.file("run/systemd/netif/state", "OPER_STATE=routable\n");
        self.file(&format!("run/systemd/netif/links/{}", self.index(link)), state);
    }

    pub fn examined(&self, args: &[&str]) -> Ran {
        doctor(&self.node.net, self.root.path(), &self.config, args)
    }

    pub fn causes(&self) -> Vec<(String, String)> {
        causes(&self.examined(&["--output", "json"]))
    }

    /// The one cause that is found, its evidence and its cure.
    pub fn only(&self, cause: &str, file: &str) -> (String, String) {
        let ran = self.examined(&["--output", "json"]);
        assert_eq!(causes(&ran), [(cause.to_owned(), file.to_owned())], "{ran:?}");
        let finding = &ran.findings()[0];
        (finding["evidence"].as_str().unwrap().into(), finding["cure"].as_str().unwrap().into())
    }

    /// The cure is carried out, everything works that worked before, and then nothing is found.
    pub fn is_cured_by(&self, cure: &str) {
        let before = cure::working(&self.node);
        cure::carry_out(&self.node.net, self.root.path(), cure);
        assert_eq!(self.causes(), [], "after: {cure}");
        cure::assert_kept(&before, &self.node, cure);
    }
}

/// Whatever state a test leaves, each cure that is offered for it is one that can be followed blindly.
impl Drop for Patient {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            cure::heals(&self.node, self.root.path(), &self.config, &|| self.examined(&["--output", "json"]));
        }
    }
}

#[test]
fn a_healthy_worker_with_the_vpc_cni_has_nothing() {
    let patient = Patient::of_vpc_cni();
    assert_eq!(patient.causes(), []);
    assert_eq!(patient.examined(&[]).expect(0).out, "nothing found\n");
}

#[test]
fn a_healthy_node_with_cilium_has_nothing() {
    let net = Netns::new();
    let root = tempfile::tempdir().unwrap();
    net.ip("link add eth0 type bridge");
    net.ip("addr add 10.0.0.10/24 dev eth0");
    net.ip("link set eth0 up");
    net.ip("route add default via 10.0.0.1 dev eth0");
    net.set_sysctl("net/ipv4/ip_forward", "1");
    net.ip("link add cilium_host type veth peer name cilium_net");
    net.ip("addr add 10.7.0.1/32 dev cilium_host");
    net.ip("link add lxc0123456789ab type veth peer name pod0");
    for link in ["cilium_host", "cilium_net", "lxc0123456789ab"] {
        net.ip(&format!("link set {link} up"));
        net.set_sysctl(&format!("net/ipv4/conf/{link}/rp_filter"), "0");
    }
    net.ip("route add 10.7.0.0/24 dev cilium_host scope link");
    net.ip("rule add priority 9 fwmark 0x200/0xf00 lookup 2004");
    net.ip("rule add priority 10 fwmark 0xa00/0xf00 lookup 2005");
    net.ip("rule add priority 100 lookup local");
    net.ip("rule del priority 0 lookup local");
    net.ip("route add local default dev lo table 2004");
    net.ip("route add 10.7.0.9 dev cilium_host scope link table 2005");
    net.ip("route add default via 10.7.0.9 dev cilium_host table 2005");
    for name in ["default", "eth0"] {
        net.set_sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "2");
    }
    write(
        root.path(),
        "etc/sysctl.d/99-zzz-override_cilium.conf",
        "-net.ipv4.conf.lxc*.rp_filter = 0\n-net.ipv4.conf.cilium_*.rp_filter = 0\nnet.ipv4.conf.all.rp_filter = 0\n",
    );
    write(root.path(), "usr/lib/sysctl.d/50-default.conf", SYSCTL_50_DEFAULT);
    write(root.path(), "usr/lib/udev/rules.d/99-systemd.rules", UDEV_RULE);
    write(root.path(), "usr/lib/systemd/network/99-default.link", LINK_99_DEFAULT);
    write(root.path(), "run/systemd/netif/state", "");
    write(root.path(), "etc/systemd/networkd.conf.d/00-cilium.conf", KEEP_FOREIGN);
    assert_eq!(causes(&doctor(&net, root.path(), "", &["--output", "json"])), []);
}

#[test]
fn a_healthy_vm_host_has_nothing() {
    let net = Netns::new();
    let root = tempfile::tempdir().unwrap();
    net.ip("link add eth0 type bridge");
    net.ip("addr add 10.0.0.10/24 dev eth0");
    net.ip("link set eth0 up");
    net.ip("route add default via 10.0.0.1 dev eth0");
    net.ip("link add br-vms type bridge");
    net.ip("addr add 10.100.0.1/16 dev br-vms");
    net.ip("link set br-vms up");
    for vm in 1..4 {
        net.ip(&format!("link add vh_{vm} type veth peer name vm{vm}"));
        net.ip(&format!("link set vh_{vm} up"));
        net.ip(&format!("route add 10.100.7.{vm}/32 dev vh_{vm} scope link"));
        net.set_sysctl(&format!("net/ipv4/conf/vh_{vm}/proxy_arp"), "1");
    }
    net.set_sysctl("net/ipv4/ip_forward", "1");
    write(root.path(), "etc/sysctl.d/90-vms.conf", "net.ipv4.ip_forward = 1\nnet.ipv4.conf.vh_*.proxy_arp = 1\n");
    write(root.path(), "usr/lib/systemd/network/99-default.link", LINK_99_DEFAULT);
    write(root.path(), "usr/lib/udev/rules.d/99-systemd.rules", UDEV_RULE);
    write(root.path(), "run/systemd/netif/state", "");
    let config = "bridges: [{name: br-vms, addresses: [10.100.0.1/16]}]";
    assert_eq!(causes(&doctor(&net, root.path(), config, &["--output", "json"])), []);

    net.set_sysctl("net/ipv4/ip_forward", "0");
    for config in [config, "masquerade: [{source: 10.100.0.0/16, except_out: br-vms}]"] {
        let ran = doctor(&net, root.path(), config, &["--output", "json"]);
        assert_eq!(causes(&ran), [("ip_forward_off".into(), String::new())], "{ran:?}");
    }
    assert_eq!(causes(&doctor(&net, root.path(), "", &["--output", "json"])), [], "nobody needs it");
}

#[test]
fn a_healthy_plain_server_has_nothing() {
    let net = Netns::new();
    let root = tempfile::tempdir().unwrap();
    net.ip("link add eth0 type bridge");
    net.ip("addr add 10.0.0.10/24 dev eth0");
    net.ip("link set eth0 up");
    net.ip("route add default via 10.0.0.1 dev eth0 proto dhcp");
    net.ip("link add docker0 type bridge");
    write(root.path(), "etc/sysctl.conf", "#net.ipv4.conf.all.rp_filter=1\n");
    write(root.path(), "usr/lib/systemd/network/99-default.link", LINK_99_DEFAULT);
    write(root.path(), "usr/lib/udev/rules.d/99-systemd.rules", UDEV_RULE);
    write(root.path(), "run/systemd/netif/state", "");
    let index = net.ip_json("link show dev eth0")[0]["ifindex"].as_u64().unwrap();
    write(
        root.path(),
        &format!("run/systemd/netif/links/{index}"),
        "ADMIN_STATE=configured\nNETWORK_FILE=/etc/systemd/network/eth0.network\n",
    );
    write(root.path(), "etc/systemd/network/eth0.network", "[Match]\nName=eth0\n[Network]\nDHCP=yes\n");
    assert_eq!(causes(&doctor(&net, root.path(), "", &["--output", "json"])), []);

    // Two uplinks, and policy rules of its network manager.
    net.ip("link add eth1 type bridge");
    net.ip("addr add 10.0.1.10/24 dev eth1");
    net.ip("link set eth1 up");
    net.ip("route add default via 10.0.1.1 dev eth1 table 101 proto static");
    net.ip("rule add priority 101 from 10.0.1.10 lookup 101 protocol static");
    write(root.path(), "etc/cloud/cloud.cfg", "");
    assert_eq!(causes(&doctor(&net, root.path(), "", &["--output", "json"])), []);

    // A table that leads to a storage network alone, and rules that only have the priorities of the CNI's.
    write(root.path(), "etc/systemd/networkd.conf.d/80-keep.conf", KEEP_FOREIGN);
    net.ip("route add 10.0.1.0/24 dev eth1 table 200");
    net.ip("route add 192.168.0.0/16 via 10.0.1.1 dev eth1 table 200");
    net.ip("rule del priority 101");
    net.ip("rule add priority 100 from 10.0.1.10 lookup 200");
    net.ip("rule add priority 512 to 203.0.113.5 lookup main");
    net.ip("rule add priority 1536 from 10.0.1.10 lookup 200");
    net.set_sysctl("net/ipv4/ip_forward", "0");
    assert_eq!(causes(&doctor(&net, root.path(), "", &["--output", "json"])), []);

    // A container behind a bridge, or behind a router, whose tunnel is down; and a client of a VPN that is.
    net.ip("addr add 172.17.0.1/16 dev docker0");
    net.ip("route add 172.18.0.0/16 via 10.0.0.7");
    net.ip("rule add priority 98 from 172.17.0.5 lookup 77");
    net.ip("rule add priority 99 from 172.18.0.5 lookup 77");
    net.ip("rule add priority 100 from 10.8.0.6 lookup 120");
    assert_eq!(causes(&doctor(&net, root.path(), "", &["--output", "json"])), []);

    // The policy of a VPN, where systemd-networkd keeps nothing of others.
    std::fs::remove_file(root.path().join("etc/systemd/networkd.conf.d/80-keep.conf")).unwrap();
    net.ip("rule add priority 5270 lookup 52");
    net.ip("route add 100.64.0.0/10 via 10.0.0.8 dev eth0 table 52");
    assert_eq!(causes(&doctor(&net, root.path(), "", &["--output", "json"])), []);
    // But where node-fixer's own are among them it matters.
    net.ip("route add 172.16.0.0/12 via 10.0.0.5 protocol 171");
    let ran = doctor(&net, root.path(), "", &["--output", "json"]);
    assert_eq!(causes(&ran), [("networkd_foreign_routes".into(), String::new())], "{ran:?}");
    net.ip("rule add priority 7 from 10.0.1.10 lookup 200 protocol 171");
    let ran = doctor(&net, root.path(), "", &["--output", "json"]);
    let found: Vec<String> = causes(&ran).into_iter().map(|(cause, _)| cause).collect();
    assert_eq!(found, ["networkd_foreign_rules", "networkd_foreign_routes"], "{ran:?}");
}

#[test]
fn without_any_files_it_looks_at_the_kernel_alone() {
    let patient = Patient::of_vpc_cni();
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(causes(&doctor(&patient.node.net, empty.path(), "", &["--output", "json"])), []);
}

#[test]
fn a_file_makes_rp_filter_strict_and_udev_applies_it() {
    let patient = Patient::of_vpc_cni();
    patient.file("usr/lib/sysctl.d/50-redhat.conf", SYSCTL_50_REDHAT);
    let (evidence, _) = patient.only("rp_filter_sysctl", "/usr/lib/sysctl.d/50-redhat.conf:3");
    for part in [
        "50-redhat.conf:2 sets net/ipv4/conf/default/rp_filter = 1 for default",
        "50-redhat.conf:3 sets 'net/ipv4/conf/*/rp_filter' = 1 for eth0, eth1, eni",
        "/usr/lib/udev/rules.d/99-systemd.rules:2",
    ] {
        assert!(evidence.contains(part), "{part}: {evidence}");
    }

    // Shadowed, masked, excluded, or overruled by a later file: nobody is strict.
    patient.file("etc/sysctl.d/50-redhat.conf", "");
    assert_eq!(patient.causes(), [], "shadowed");
    std::fs::remove_file(patient.root.path().join("etc/sysctl.d/50-redhat.conf")).unwrap();
    patient.file("etc/sysctl.d/60-ours.conf", "net.ipv4.conf.default.rp_filter=2\nnet.ipv4.conf.e*.rp_filter=2\n");
    assert_eq!(patient.causes(), [], "overruled");
    patient.file("etc/sysctl.d/60-ours.conf", "net.ipv4.conf.default.rp_filter=2\n-net.ipv4.conf.eth0.rp_filter\n-net.ipv4.conf.eth1.rp_filter\n-net.ipv4.conf.eni*.rp_filter=2\n");
    assert_eq!(patient.causes(), [], "excluded");
    patient.file("etc/sysctl.conf", "net.ipv4.conf.eth1.rp_filter = 1\n");
    assert_eq!(patient.causes(), [], "systemd does not read this file");
    std::os::unix::fs::symlink("../sysctl.conf", patient.root.path().join("etc/sysctl.d/99-sysctl.conf")).unwrap();
    patient.only("rp_filter_sysctl", "/etc/sysctl.d/99-sysctl.conf:1");
}

#[test]
fn the_proposed_files_cure_and_are_not_installed() {
    let patient = Patient::of_vpc_cni();
    patient.file("usr/lib/sysctl.d/50-redhat.conf", SYSCTL_50_REDHAT);
    patient.file("etc/sysctl.d/70-a.conf", "net.ipv4.conf.eth1.rp_filter=1\n");
    patient.file("etc/systemd/networkd.conf.d/80-release.conf", "[Network]\nManageForeignRoutes=yes\n");
    patient.networkd("eth1", "ADMIN_STATE=configured\n");
    patient.file(&format!("run/NetworkManager/devices/{}", patient.index("eth1")), "[device]\nmanaged=true\n");
    let review = tempfile::tempdir().unwrap();
    let directory = review.path().join("new");
    let ran = patient.examined(&["--output", "json", "--write", directory.to_str().unwrap()]);
    let written: Vec<String> =
        ran.json()["written"].as_array().unwrap().iter().map(|it| it.as_str().unwrap().into()).collect();
    let expected = [
        "etc/NetworkManager/conf.d/90-node-fixer.conf",
        "etc/sysctl.d/90-rp-filter.conf",
        "etc/systemd/network/01-node-fixer-unmanaged.network",
        "etc/systemd/networkd.conf.d/90-node-fixer.conf",
    ];
    assert_eq!(written, expected.map(|path| directory.join(path).to_str().unwrap().to_owned()), "{ran:?}");
    let text = |path: &str| std::fs::read_to_string(directory.join(path)).unwrap();
    assert!(text(expected[0]).contains("+=type:ethernet;except:interface-name:eth0\n"), "{}", text(expected[0]));
    assert!(text(expected[2]).contains("Type=ether\nKind=!*\nName=!eth0\n"), "{}", text(expected[2]));
    let count = causes(&patient.examined(&["--output", "json"])).len();
    assert_eq!(count, 6, "nothing was installed: {ran:?}");

    // Installed by hand the sysctl.d and networkd files cure; who manages eth1 the managers' own state tells.
    for path in expected {
        patient.file(path, &text(path));
    }
    let left: Vec<String> = patient.causes().into_iter().map(|(cause, _)| cause).collect();
    assert_eq!(left, ["networkd_manages_uplink", "networkmanager_manages_uplink"], "{}", text(expected[1]));

    let again = patient.examined(&["--write", directory.to_str().unwrap()]);
    assert_eq!(again.code, 1, "{again:?}");
    assert!(again.out.contains("networkd_manages_uplink: "), "the findings all the same: {again:?}");
    assert_eq!(again.out.matches("not written: ").count(), 2, "those that are proposed still: {again:?}");
    let json = patient.examined(&["--output", "json", "--write", directory.to_str().unwrap()]).json();
    assert_eq!((json["written"].as_array().unwrap().len(), json["kept"].as_array().unwrap().len()), (0, 2), "{json}");
    let mut refused = node_fixer();
    refused.args(["doctor", "--root"]).arg(patient.root.path()).args(["--write", "/"]);
    let refused = finish(patient.node.net.output(&mut refused)).expect(1);
    assert!(refused.err.contains("never installed"), "{refused:?}");
}

#[test]
fn nothing_is_written_over_or_through_a_link() {
    let patient = Patient::of_vpc_cni();
    patient.file("usr/lib/sysctl.d/50-redhat.conf", SYSCTL_50_REDHAT);
    let review = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), review.path().join("etc")).unwrap();
    let ran = patient.examined(&["--write", review.path().to_str().unwrap()]).expect(1);
    assert!(ran.err.contains("etc is a link"), "{ran:?}");
    assert!(ran.out.contains("rp_filter_sysctl: "), "the findings all the same: {ran:?}");
    std::fs::remove_file(review.path().join("etc")).unwrap();
    // Deeper, to nowhere, to the directory itself, and the directory itself.
    let etc = review.path().join("etc");
    std::fs::create_dir(&etc).unwrap();
    for to in [elsewhere.path().to_path_buf(), "/nowhere".into(), "..".into(), "/proc/self/cwd".into()] {
        std::os::unix::fs::symlink(to, etc.join("sysctl.d")).unwrap();
        let ran = patient.examined(&["--write", review.path().to_str().unwrap()]).expect(1);
        assert!(ran.err.contains("sysctl.d is a link"), "{ran:?}");
        std::fs::remove_file(etc.join("sysctl.d")).unwrap();
    }
    std::fs::write(etc.join("sysctl.d"), "").unwrap();
    let ran = patient.examined(&["--write", review.path().to_str().unwrap()]).expect(1);
    assert!(ran.err.contains("sysctl.d is not a directory"), "{ran:?}");
    std::fs::remove_dir_all(&etc).unwrap();
    let link = patient.node.directory.path().join("link");
    std::os::unix::fs::symlink(elsewhere.path(), &link).unwrap();
    for name in [link.to_str().unwrap().to_owned(), format!("{}/", link.display())] {
        let ran = patient.examined(&["--write", &name]).expect(1);
        assert!(ran.err.contains("name the directory itself"), "{ran:?}");
    }
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    assert_eq!(std::fs::read_dir(review.path()).unwrap().count(), 0);
    write(review.path(), "etc/sysctl.d/90-rp-filter.conf", "mine");
    let ran = patient.examined(&["--write", review.path().to_str().unwrap()]).expect(1);
    assert!(ran.out.contains("90-rp-filter.conf exists already") && ran.out.contains("rp_filter_sysctl: "), "{ran:?}");
    assert_eq!(std::fs::read_to_string(review.path().join("etc/sysctl.d/90-rp-filter.conf")).unwrap(), "mine");
}

/// Somebody who may write in the directory puts a link in the place of a directory in it, and takes it away again, all
/// the time. A file is written where it belongs, or not at all.
#[test]
fn nothing_is_written_beyond_a_link_that_comes_meanwhile() {
    let patient = Patient::of_vpc_cni();
    patient.file("usr/lib/sysctl.d/50-redhat.conf", SYSCTL_50_REDHAT);
    let elsewhere = tempfile::tempdir().unwrap();
    std::fs::create_dir(elsewhere.path().join("sysctl.d")).unwrap();
    let review = tempfile::tempdir().unwrap();
    let (etc, aside) = (review.path().join("etc"), review.path().join("aside"));
    std::fs::create_dir_all(etc.join("sysctl.d")).unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), &aside).unwrap();
    let outcomes = exchanging(&etc, &aside, || {
        let mut outcomes = [0; 2];
        for _ in 0..60 {
            let ran = patient.examined(&["--write", review.path().to_str().unwrap()]).expect(1);
            let refused = ran.err.contains("is a link") || ran.err.contains("cannot ");
            outcomes[usize::from(refused)] += 1;
            let beyond: Vec<_> = std::fs::read_dir(elsewhere.path().join("sysctl.d")).unwrap().collect();
            assert!(beyond.is_empty() && std::fs::read_dir(elsewhere.path()).unwrap().count() == 1, "{beyond:?}");
            for directory in [&etc, &aside] {
                let _ = std::fs::remove_file(directory.join("sysctl.d/90-rp-filter.conf"));
            }
        }
        outcomes
    });
    assert!(outcomes.iter().all(|count| *count > 0), "written, and refused: {outcomes:?}");
}

#[test]
fn a_cure_leaves_files_that_are_there_as_they_are() {
    let patient = Patient::of_vpc_cni();
    patient.node.uplink(2);
    let net = &patient.node.net;
    net.ip("route add default via 10.0.2.1 dev eth2 table 3");
    net.ip("rule add priority 32765 from 10.0.2.10 lookup 3");
    net.set_sysctl("net/ipv4/conf/eth2/rp_filter", "2");
    // The first cure was for eth1 alone.
    let earlier = [
        ("etc/systemd/network/01-node-fixer-unmanaged.network", "[Match]\nName=eth1\n\n[Link]\nUnmanaged=yes\n"),
        ("etc/NetworkManager/conf.d/90-node-fixer.conf", "[keyfile]\nunmanaged-devices+=interface-name:eth1\n"),
        ("etc/sysctl.d/90-rp-filter.conf", "net.ipv4.conf.eth2.rp_filter = 1\nnet.core.somaxconn = 4096\n"),
        ("etc/sysctl.d/90-ip-forward.conf", "net.ipv4.ip_forward = 0\n"),
        ("etc/systemd/networkd.conf.d/90-node-fixer.conf", "[Network]\nManageForeignRoutingPolicyRules=yes\n"),
    ];
    for (path, text) in earlier {
        patient.file(path, text);
    }
    net.set_sysctl("net/ipv4/ip_forward", "0");
    patient.networkd("eth2", "ADMIN_STATE=configured\n");
    for (link, managed) in [("eth1", "false"), ("eth2", "true")] {
        let device = format!("run/NetworkManager/devices/{}", patient.index(link));
        patient.file(&device, &format!("[device]\nmanaged={managed}\n"));
    }
    let ran = patient.examined(&["--output", "json"]);
    assert_eq!(causes(&ran).len(), 5, "{ran:?}");
    for finding in ran.findings() {
        // What writes the file, below the root, and nothing else of the cure.
        let cure = finding["cure"].as_str().unwrap();
        let writes = cure.split_inclusive(" && ").filter(|it| ["mkdir ", "printf", "chmod "].contains(&&it[..6]));
        let root = format!(" {}/etc/", patient.root.path().display());
        let script = writes.collect::<String>().replace(" /etc/", &root);
        let script = script.split("  # ").next().unwrap().trim_end_matches(" && ");
        net.run("sh", &["-ec", &format!("umask 077; {script}")]);
    }
    for (path, text) in earlier {
        let at = patient.root.path().join(path);
        assert_eq!(std::fs::read_to_string(&at).unwrap(), text, "{path}");
        let (name, suffix) = path.rsplit_once('.').unwrap();
        let new = std::fs::metadata(patient.root.path().join(format!("{name}2.{suffix}"))).unwrap();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&new.permissions()) & 0o777, 0o644, "{path}");
    }
    let text = |path: &str| std::fs::read_to_string(patient.root.path().join(path)).unwrap();
    assert!(text("etc/systemd/network/01-node-fixer-unmanaged2.network").contains("Name=!eth0\n"));
    let all_but_it = "unmanaged-devices+=type:ethernet;except:interface-name:eth0\n";
    assert!(text("etc/NetworkManager/conf.d/90-node-fixer2.conf").contains(all_but_it));
    net.set_sysctl("net/ipv4/ip_forward", "1");
    let left: Vec<String> = patient.causes().into_iter().map(|(cause, _)| cause).collect();
    assert_eq!(left, ["networkd_manages_uplink", "networkmanager_manages_uplink"], "the managers themselves tell");
    // What is there with this very text needs no second file.
    let ran = patient.examined(&["--output", "json"]);
    assert!(ran.findings()[0]["cure"].as_str().unwrap().contains("unmanaged2.network"), "{ran:?}");
}

#[test]
fn a_file_that_cures_holds_for_interfaces_to_come() {
    for (file, proposed) in [
        ("99-zz.conf", "etc/sysctl.d/99-zz.rp-filter.conf"),
        ("~.conf", "etc/sysctl.d/~.rp-filter.conf"),
        ("50-redhat.conf", "etc/sysctl.d/90-rp-filter.conf"),
    ] {
        let patient = Patient::of_vpc_cni();
        patient.file(&format!("etc/sysctl.d/{file}"), "net.ipv4.conf.*.rp_filter = 1\n");
        let (_, cure) = patient.only("rp_filter_sysctl", &format!("/etc/sysctl.d/{file}:1"));
        assert_eq!(cure.contains("rp_filter.persist"), file < "90-node-fixer.conf", "its file would lose: {cure}");
        let review = tempfile::tempdir().unwrap();
        patient.examined(&["--write", review.path().to_str().unwrap()]).expect(1);
        patient.file(proposed, &std::fs::read_to_string(review.path().join(proposed)).unwrap());
        assert_eq!(patient.causes(), [], "{file}");
        patient.node.net.ip("link add eni0000000000a type veth peer name new");
        patient.node.uplink(2);
        assert_eq!(patient.causes(), [], "{file}: interfaces that have come since");
    }
    // A pattern that stands in an earlier file with the same value stays there, and loses for interfaces to come.
    let patient = Patient::of_vpc_cni();
    patient.file("etc/sysctl.d/60-ours.conf", "net.ipv4.conf.eth*.rp_filter = 2\n");
    patient.file("etc/sysctl.d/99-zz.conf", "net.ipv4.conf.*.rp_filter = 1\n");
    let (_, cure) = patient.only("rp_filter_sysctl", "/etc/sysctl.d/99-zz.conf:1");
    assert!(cure.starts_with("# delete line 1 of /etc/sysctl.d/99-zz.conf"), "{cure}");
}

#[test]
fn no_cure_writes_conf_all() {
    let patient = Patient::of_vpc_cni();
    let net = &patient.node.net;
    patient.file("etc/sysctl.d/50-x.conf", "net.ipv4.conf.*.rp_filter = 1\n");
    net.ip("link add al0 type veth peer name al1");
    net.ip("link add ?ll type veth peer name a*1");
    for (interfaces, expected) in [
        ("^(default|al[0-9]+)$", "-net.ipv4.conf.al1.rp_filter = 2\n-net.ipv4.conf.al0.rp_filter = 2\n"),
        ("^(default|eth1)$", "-net.ipv4.conf.eth1.rp_filter = 2\n"),
    ] {
        let config = format!("rp_filter: {{interfaces: '{interfaces}'}}");
        let review = tempfile::tempdir().unwrap();
        doctor(net, patient.root.path(), &config, &["--write", review.path().to_str().unwrap()]).expect(1);
        let text = std::fs::read_to_string(review.path().join("etc/sysctl.d/90-rp-filter.conf")).unwrap();
        let expected = "-net.ipv4.conf.default.rp_filter = 2\n".to_owned() + expected;
        assert_eq!(text.split_once('\n').unwrap().1, expected, "{interfaces}");
    }
    let ran = doctor(net, patient.root.path(), "rp_filter: {interfaces: ''}", &["--output", "json"]);
    let cure = ran.findings()[0]["cure"].as_str().unwrap().to_owned();
    assert!(cure.starts_with("# delete line 1"), "a name that is a pattern cannot be written: {cure}");
}

#[test]
fn networkd_removes_what_is_not_its_own() {
    let patient = Patient::of_vpc_cni();
    let drop_in = "etc/systemd/networkd.conf.d/80-release.conf";
    patient.file(drop_in, "# x\n[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=true\n");
    patient.only("networkd_foreign_rules", "/etc/systemd/networkd.conf.d/80-release.conf:4");
    patient.file("usr/lib/systemd/networkd.conf.d/90-no.conf", "[Network]\nManageForeignRoutingPolicyRules=no\n");
    assert_eq!(patient.causes(), [], "the later file counts");
    patient.file("etc/systemd/networkd.conf.d/90-no.conf", "");
    std::fs::remove_file(patient.root.path().join(drop_in)).unwrap();
    patient.file("etc/systemd/networkd.conf", "[Network]\n#ManageForeignRoutingPolicyRules=yes\n");
    let (evidence, _) = patient.only("networkd_foreign_rules", "");
    assert!(evidence.contains("by default"), "{evidence}");
    patient
        .file("etc/systemd/networkd.conf", "[Network]\nManageForeignRoutingPolicyRules=no\nManageForeignRoutes=yes\n");
    assert_eq!(patient.causes(), [], "no interface of the CNI's is managed");
    patient.networkd("eth1", "ADMIN_STATE=configured\n");
    let expected = [("networkd_foreign_routes", "/etc/systemd/networkd.conf:3"), ("networkd_manages_uplink", "")];
    let mut found = patient.causes();
    found[1].1.clear();
    assert_eq!(found, expected.map(|(cause, file)| (cause.to_owned(), file.to_owned())));
}

#[test]
fn a_network_manager_has_a_secondary_uplink() {
    let patient = Patient::of_vpc_cni();
    patient.networkd("eth1", "ADMIN_STATE=configured\nNETWORK_FILE=/usr/lib/systemd/network/80-all.network\n");
    patient.file("usr/lib/systemd/network/80-all.network", "# all\n[Match]\nName=e*\n[Network]\nDHCP=yes\n");
    patient.only("networkd_manages_uplink", "/usr/lib/systemd/network/80-all.network:3");
    patient.networkd("eth1", "ADMIN_STATE=unmanaged\n");
    let device = format!("run/NetworkManager/devices/{}", patient.index("eth1"));
    patient.file(&device, "[device]\nmanaged=true\nconnection-uuid=x\n");
    let (_, cure) = patient.only("networkmanager_manages_uplink", &format!("/{device}:2"));
    assert!(cure.contains("except:interface-name:eth0'"), "it holds for uplinks to come: {cure}");
    patient.file(&device, "[device]\nmanaged=false\n");
    patient.file(&format!("run/NetworkManager/devices/{}", patient.index("eth0")), "[device]\nmanaged=true\n");
    assert_eq!(patient.causes(), [], "the first uplink is theirs");
}

#[test]
fn an_uplink_whose_name_no_list_can_hold_is_left_to_the_operator() {
    let patient = Patient::of_vpc_cni();
    patient.node.net.ip("link set eth1 name up+1");
    patient.networkd("up+1", "ADMIN_STATE=configured\n");
    let device = format!("run/NetworkManager/devices/{}", patient.index("up+1"));
    patient.file(&device, "[device]\nmanaged=true\n");
    let review = tempfile::tempdir().unwrap();
    let ran = patient.examined(&["--output", "json", "--write", review.path().to_str().unwrap()]);
    let found: Vec<String> = causes(&ran).into_iter().map(|(cause, _)| cause).collect();
    assert_eq!(found, ["networkd_manages_uplink", "networkmanager_manages_uplink"], "{ran:?}");
    for finding in ran.findings() {
        assert!(finding["cure"].as_str().unwrap().starts_with("# no list of "), "{finding}");
    }
    assert_eq!(std::fs::read_dir(review.path()).unwrap().count(), 0, "an empty Name= may be every interface's");
}

#[test]
fn others_have_policy_rules_beside_the_cni() {
    let patient = Patient::of_vpc_cni();
    let net = &patient.node.net;
    patient.file("usr/lib/systemd/system/nm-cloud-setup.timer", "[Timer]\nOnBootSec=5m\n");
    net.ip("rule add priority 30350 lookup main suppress_prefixlength 0");
    let (evidence, cure) = patient.only("nm_cloud_setup", "/usr/lib/systemd/system/nm-cloud-setup.timer:2");
    assert!(evidence.contains("rules 30350:") && cure.ends_with("\nip rule del priority 30350"), "{evidence} {cure}");
    for table in [30200, 30400] {
        net.ip(&format!("rule add priority {table} from 10.0.1.10 lookup {table}"));
    }
    net.ip("route add 10.0.1.0/24 dev eth1 table 30200");
    net.ip("route add default via 10.0.1.1 dev eth1 table 30400");
    let (evidence, cure) = patient.only("nm_cloud_setup", "/usr/lib/systemd/system/nm-cloud-setup.timer:2");
    assert!(evidence.contains("30200, 30350, 30400"), "{evidence}");
    patient.is_cured_by(cure.split_once('\n').unwrap().1);

    let drop_in = "run/systemd/network/70-eth1.network.d/ec2net_policy_4.conf";
    patient.file("run/systemd/network/70-eth1.network", "[Match]\nName=eth1\n");
    patient.file(drop_in, "[RoutingPolicyRule]\nFrom=10.0.1.10\nPriority=10001\nTable=10001\n");
    patient.file("usr/lib/systemd/system/refresh-policy-routes@.timer", "[Timer]\nOnActiveSec=30\n");
    net.ip("rule add priority 10001 from 10.0.1.10 lookup 10001 protocol static");
    net.ip("route add default via 10.0.1.1 dev eth1 table 10001 proto dhcp");
    let (evidence, cure) = patient.only("ec2_net_utils", &format!("/{drop_in}:4"));
    assert!(evidence.contains("refresh-policy-routes@.timer:2"), "{evidence}");
    assert!(cure.contains("refresh-policy-routes@eth1.timer"), "{cure}");
    patient.is_cured_by(cure.split_once('\n').unwrap().1);
    // The CNI's own table of a second network card.
    net.ip("rule add priority 32765 from 10.0.1.10 lookup 10101");
    net.ip("route add default via 10.0.1.1 dev eth1 table 10101");
    assert_eq!(patient.causes(), []);

    patient.file("etc/cloud/cloud.cfg", "");
    patient.file(
        "etc/netplan/50-cloud-init.yaml",
        "network:\n  ethernets:\n    eth1:\n      routing-policy:\n      - from: 10.0.1.10\n        table: 101\n",
    );
    net.ip("rule add priority 30000 from 10.0.1.10 lookup 101 protocol static");
    net.ip("route add default via 10.0.1.1 dev eth1 table 101 proto static");
    let (_, cure) = patient.only("cloud_init_policy_tables", "/etc/netplan/50-cloud-init.yaml:6");
    patient.is_cured_by(cure.split_once('\n').unwrap().1);
}

#[test]
fn a_pods_address_is_configured_here() {
    let patient = Patient::of_vpc_cni();
    patient.node.net.ip("addr add 10.0.1.101/24 dev eth1");
    let (evidence, cure) = patient.only("pod_address_local", "");
    assert!(evidence.contains("10.0.1.101") && evidence.contains("eth1"), "{evidence}");
    patient.is_cured_by(&cure);
}

#[test]
fn the_cure_of_a_pods_address_keeps_the_uplinks_other_addresses() {
    let patient = Patient::of_vpc_cni();
    let net = &patient.node.net;
    // The pod's address comes first, and the uplink's own is secondary to it.
    net.ip("addr flush dev eth1");
    net.set_sysctl("net/ipv4/conf/all/promote_secondaries", "0");
    net.set_sysctl("net/ipv4/conf/eth1/promote_secondaries", "0");
    for address in ["10.0.1.101/24", "10.0.1.10/24"] {
        net.ip(&format!("addr add {address} dev eth1"));
    }
    net.ip("route add 10.0.1.1 dev eth1 scope link table 2");
    net.ip("route add default via 10.0.1.1 dev eth1 table 2");
    let (_, cure) = patient.only("pod_address_local", "");
    patient.is_cured_by(&cure);
    assert_eq!(net.ip_json("-4 addr show dev eth1")[0]["addr_info"][0]["local"], "10.0.1.10");
}

#[test]
fn a_pod_has_a_route_and_no_rule() {
    let patient = Patient::of_vpc_cni();
    patient.node.net.ip("rule del priority 512 to 10.0.1.100 lookup main");
    let (evidence, cure) = patient.only("pod_without_rule", "");
    assert!(evidence.contains("10.0.1.100 (eni00000000064)"), "{evidence}");
    patient.is_cured_by(&cure);
}

#[test]
fn a_few_pods_without_their_rules_get_exactly_those() {
    let patient = Patient::of_vpc_cni();
    let net = &patient.node.net;
    for pod in 200..203 {
        net.ip(&format!("link add eni00000000{pod} type veth peer name pod{pod}"));
        net.ip(&format!("link set eni00000000{pod} up"));
        net.ip(&format!("route add 10.0.0.{pod} dev eni00000000{pod} scope link"));
        net.ip(&format!("rule add priority 512 to 10.0.0.{pod} lookup main"));
        net.set_sysctl(&format!("net/ipv4/conf/eni00000000{pod}/rp_filter"), "2");
    }
    assert_eq!(patient.causes(), []);
    net.ip("rule del priority 512 to 10.0.0.200");
    net.ip("rule del priority 512 to 10.0.0.201");
    let (evidence, cure) = patient.only("pod_without_rule", "");
    assert!(evidence.contains("10.0.0.200 (eni00000000200), 10.0.0.201"), "two of five: {evidence}");
    assert_eq!(cure.lines().count(), 2, "{cure}");
    patient.is_cured_by(&cure);

    net.ip("rule del priority 1536 from 10.0.1.100");
    let (evidence, cure) = patient.only("pod_without_rule", "");
    assert!(evidence.contains("10.0.1.100 (eni00000000064), but no rule 1536"), "{evidence}");
    assert_eq!(cure, "ip rule add priority 1536 from 10.0.1.100 lookup 2 protocol 0");
    patient.is_cured_by(&cure);
    // Which of two tables is a pod's the others do not tell.
    net.ip("rule del priority 1536 from 10.0.1.100");
    net.ip("rule add priority 1536 from 10.0.1.101 lookup 3");
    net.ip("route add default via 10.0.1.1 dev eth1 table 3");
    assert_eq!(patient.causes(), []);
}

#[test]
fn a_rule_leads_to_a_pod_that_is_gone() {
    let patient = Patient::of_vpc_cni();
    patient.node.net.ip("rule add priority 512 to 10.0.1.77 lookup main");
    let (evidence, cure) = patient.only("rule_without_pod", "");
    assert!(evidence.contains("10.0.1.77"), "{evidence}");
    patient.is_cured_by(&cure);
}

/// Its route went when its interface went down, and comes back when the pod is made anew.
#[test]
fn no_rule_goes_of_a_pod_that_may_be_alive() {
    let patient = Patient::of_vpc_cni();
    patient.node.net.ip("link set eni00000000064 down");
    let (evidence, cure) = patient.only("rule_without_pod", "");
    assert!(evidence.contains("no route leads to eni00000000064 (down)"), "{evidence}");
    assert!(cure.lines().all(|line| line.starts_with('#')), "{cure}");
}

#[test]
fn it_is_not_blind_where_no_pod_has_a_route() {
    let patient = Patient::of_vpc_cni();
    let net = &patient.node.net;
    for (pod, link) in [(100, "eni00000000064"), (101, "eni00000000065")] {
        net.ip(&format!("route del 10.0.1.{pod}/32 dev {link}"));
    }
    let found = || patient.causes().into_iter().map(|(cause, _)| cause).collect::<Vec<_>>();
    assert_eq!(found(), ["martians_without_address", "rule_without_pod"], "an interface of a pod tells of the CNI");
    for link in ["eni00000000064", "eni00000000065"] {
        net.ip(&format!("link del {link}"));
    }
    assert_eq!(found(), ["rule_without_pod"], "the rule 1024 does");
    net.ip("rule del priority 1024");
    assert_eq!(found(), ["mark_rule_missing", "rule_without_pod"], "512, 1536 and 32765 together do");
    net.ip("rule add priority 1024 fwmark 0x80/0x80 lookup main");
    let (_, cure) = patient.only("rule_without_pod", "");
    patient.is_cured_by(&cure);
    assert!(!net.ip("rule").contains("10.0.1.100"), "all rules of such a pod go: {}", net.ip("rule"));
}

#[test]
fn a_pods_interface_without_a_route_drops_at_loose_as_well() {
    let patient = Patient::of_vpc_cni();
    assert!(patient.node.pod(0).pings("10.0.1.100", "192.0.2.1"), "the pod reaches the world");
    patient.node.net.ip("route del 10.0.1.100/32 dev eni00000000064");
    let found: Vec<String> = patient.causes().into_iter().map(|(cause, _)| cause).collect();
    assert_eq!(found, ["martians_without_address", "rule_without_pod"]);
    let ran = patient.examined(&["--output", "json"]);
    let finding = ran.findings()[0].clone();
    let evidence = finding["evidence"].as_str().unwrap().to_owned();
    assert!(evidence.contains("eni00000000064 (rp_filter 2)") && evidence.contains("10.0.1.100"), "{evidence}");
    assert!(!patient.node.pod(0).pings("10.0.1.100", "192.0.2.1"), "and does not any more");
    // That this address is the pod's of this interface nobody knows for certain: one may be gone, the other just made.
    let cure = finding["cure"].as_str().unwrap();
    assert!(cure.lines().all(|line| line.starts_with('#')), "{cure}");
    patient.is_cured_by("ip route add 10.0.1.100 dev eni00000000064 scope link");
    assert!(patient.node.pod(0).pings("10.0.1.100", "192.0.2.1"), "cured");
}

#[test]
fn the_counter_of_martians_grows() {
    let patient = Patient::of_vpc_cni();
    let net = &patient.node.net;
    // From an address that the node would answer by another interface.
    patient.node.pod(0).ip("addr add 192.0.2.77/32 dev lo");
    // The node does not answer ARP for such an address: it has to be known already.
    assert!(patient.node.pod(0).pings("10.0.1.100", "10.0.0.10"));
    net.set_sysctl("net/ipv4/conf/eni00000000064/rp_filter", "1");
    let ping = || patient.node.pod(0).pings_within("192.0.2.77", "10.0.0.10", Duration::from_millis(20));
    let ran = std::thread::scope(|scope| {
        let flood = scope.spawn(|| (0..100).for_each(|_| assert!(!ping())));
        std::thread::sleep(Duration::from_millis(300));
        let ran = doctor(net, patient.root.path(), "", &["--output", "json"]);
        flood.join().unwrap();
        ran
    });
    assert_eq!(causes(&ran), [("martians_growing".to_owned(), String::new())], "{ran:?}");
    assert!(ran.findings()[0]["evidence"].as_str().unwrap().contains("eni00000000064"), "{ran:?}");
    assert_eq!(patient.causes(), [], "what was dropped earlier is past");
}

#[test]
fn the_rule_for_marked_packets_is_missing() {
    let patient = Patient::of_vpc_cni();
    patient.node.net.ip("rule del priority 1024");
    let (_, cure) = patient.only("mark_rule_missing", "");
    patient.is_cured_by(&cure);
}

#[test]
fn the_kernels_rules_are_missing() {
    for (family, priority, words) in [
        ("-4", 32766, "from all lookup main"),
        ("-4", 32767, "from all lookup default"),
        ("-6", 32766, "from all lookup main"),
        ("-4", 0, "from all lookup local"),
    ] {
        let patient = Patient::of_vpc_cni();
        patient.node.net.ip(&format!("{family} rule del priority {priority} {words}"));
        let (evidence, cure) = patient.only("kernel_rules_missing", "");
        assert!(evidence.contains(&priority.to_string()), "{evidence}");
        patient.is_cured_by(&cure);
    }
    let patient = Patient::of_vpc_cni();
    patient.node.net.ip("rule add priority 20 lookup local");
    patient.node.net.ip("rule del priority 0 lookup local");
    assert_eq!(patient.causes(), [], "moved by the CNI's strict mode");
}

#[test]
fn all_rules_were_flushed() {
    let patient = Patient::of_vpc_cni();
    for rule in patient.node.net.ip_json("rule").as_array().unwrap() {
        let priority = rule["priority"].as_u64().unwrap();
        if !matches!(priority, 0 | 32766 | 32767) {
            patient.node.net.ip(&format!("rule del priority {priority}"));
        }
    }
    let (evidence, _) = patient.only("rules_flushed", "");
    assert!(evidence.contains("2 pods (10.0.1.100, 10.0.1.101)"), "{evidence}");
}

#[test]
fn restored_rules_are_known_and_what_removed_them() {
    let patient = Patient::of_vpc_cni();
    let node = &patient.node;
    node.config("kube_proxy: {mode: off}");
    node.fix(&[]).expect(0);
    for priority in [512, 512, 1536, 1536] {
        node.net.ip(&format!("rule del priority {priority}"));
    }
    node.fix(&[]).expect(0);
    let (evidence, cure) = patient.only("rules_restored", "");
    assert!(evidence.contains("removed 4 rules of the CNI") && cure.starts_with('#'), "{evidence} {cure}");
    let unit = "usr/lib/systemd/system/nm-cloud-setup.timer";
    patient.file(unit, "[Timer]\nOnBootSec=5m\n");
    let (_, cure) = patient.only("rules_restored", &format!("/{unit}:2"));
    assert!(cure.contains("\nsystemctl disable --now nm-cloud-setup.timer"), "{cure}");
    std::fs::remove_file(patient.root.path().join(unit)).unwrap();
    let drop_in = "etc/systemd/networkd.conf.d/95-foreign.conf";
    patient.file(drop_in, "[Network]\nManageForeignRoutingPolicyRules=yes\n");
    let found = patient.causes();
    assert_eq!(found[0], ("rules_restored".to_owned(), format!("/{drop_in}:2")), "{found:?}");
    assert!(found.iter().any(|(cause, _)| cause == "networkd_foreign_rules"), "{found:?}");
}

#[test]
fn a_pod_that_came_after_the_flush_hides_it_not() {
    let patient = Patient::of_vpc_cni();
    let net = &patient.node.net;
    for priority in [512, 512, 1536, 1536] {
        net.ip(&format!("rule del priority {priority}"));
    }
    // One of the first uplink's subnet, which needs no rule 1536.
    net.ip("link add eni0000000000f type veth peer name new");
    net.ip("link set eni0000000000f up");
    net.ip("route add 10.0.0.200 dev eni0000000000f scope link");
    net.ip("rule add priority 512 to 10.0.0.200 lookup main");
    let is_told = || {
        let (evidence, cure) = patient.only("rules_flushed", "");
        assert!(evidence.contains("2 pods (10.0.1.100, 10.0.1.101)"), "{evidence}");
        assert!(cure.lines().all(|line| line.starts_with('#')), "{cure}");
    };
    is_told();
    // Rules 512 are not all that was lost.
    net.ip("rule add priority 512 to 10.0.1.100 lookup main");
    net.ip("rule add priority 512 to 10.0.1.101 lookup main");
    is_told();
    // Where both uplinks have one subnet, it does not tell whose a pod is.
    net.ip("addr add 10.0.1.11/24 dev eth0");
    assert_eq!(patient.causes(), []);
}

#[test]
fn a_lost_default_and_a_flushed_table_are_distinguished() {
    let patient = Patient::of_vpc_cni();
    let net = &patient.node.net;
    net.ip("route del default table 2");
    let (evidence, cure) = patient.only("table_host_route_only", "");
    assert!(evidence.contains("only the host route to 10.0.1.1"), "{evidence}");
    for observing in ["{families: [ipv6], mode: observe}", "{mode: off}"] {
        let config = format!("default_routes: {observing}");
        let ran = doctor(net, patient.root.path(), &config, &["--output", "json"]);
        assert_eq!(ran.findings()[0]["cure"], cure, "{observing}");
    }
    patient.is_cured_by(&cure);

    net.ip("addr flush dev eth1");
    net.ip("addr add 10.0.1.10/24 dev eth1");
    assert_eq!(net.ip("route show table 2"), "", "the kernel has dropped what was there");
    let (evidence, cure) = patient.only("table_flushed", "");
    assert!(evidence.contains("10.0.1.10, 10.0.1.100, 10.0.1.101"), "{evidence}");
    patient.is_cured_by(&cure);

    // Where the gateways of this node are not the first addresses of their subnets nothing tells the one of eth1.
    net.ip("route flush table 2");
    net.ip("route replace default via 10.0.0.2 dev eth0");
    let (_, cure) = patient.only("table_flushed", "");
    assert!(cure.starts_with("# the gateway of table 2 is unknown: ") && cure.lines().count() == 1, "{cure}");
    net.ip("route replace default via 10.0.0.1 dev eth0");

    net.ip("route flush table 2");
    net.ip("route add 198.51.100.0/24 via 10.0.1.1 dev eth1 table 2");
    patient.only("table_without_default", "");
}

#[test]
fn rules_of_sources_that_are_gone_lead_nowhere() {
    let patient = Patient::of_vpc_cni();
    patient.node.net.ip("rule add priority 1536 from 10.0.1.66 lookup 9");
    let (evidence, cure) = patient.only("leaked_rules", "");
    assert!(evidence.contains("10.0.1.66"), "{evidence}");
    patient.is_cured_by(&cure);
}

#[test]
fn conf_all_overrules_the_interfaces() {
    let patient = Patient::of_vpc_cni();
    let net = &patient.node.net;
    patient.file("etc/sysctl.d/60-hard.conf", "# hardened\nnet.ipv4.conf.all.rp_filter = 1\n");
    net.set_sysctl("net/ipv4/conf/all/rp_filter", "1");
    assert_eq!(patient.causes(), [], "loose wins over strict");
    net.ip("link add lxc0123456789ab type veth peer name pod0");
    net.set_sysctl("net/ipv4/conf/lxc0123456789ab/rp_filter", "0");
    let (evidence, cure) = patient.only("rp_filter_all", "/etc/sysctl.d/60-hard.conf:2");
    assert!(evidence.contains("lxc0123456789ab (0)"), "{evidence}");
    patient.is_cured_by(&cure);
    net.set_sysctl("net/ipv4/conf/all/rp_filter", "2");
    let strict = "rp_filter: {value: strict, replace: [off]}";
    let ran = doctor(net, patient.root.path(), strict, &["--output", "json"]);
    assert_eq!(causes(&ran), [("rp_filter_all".to_owned(), String::new())], "{ran:?}");
}

#[test]
fn nothing_is_forwarded() {
    let patient = Patient::of_vpc_cni();
    patient.file("etc/sysctl.d/60-hard.conf", "net.ipv4.ip_forward = 0\n");
    patient.node.net.set_sysctl("net/ipv4/ip_forward", "0");
    let (_, cure) = patient.only("ip_forward_off", "/etc/sysctl.d/60-hard.conf:1");
    let now = cure.split(" && ").next().unwrap();
    patient.is_cured_by(now);
}

#[test]
fn the_later_of_the_names_of_ip_forward_counts() {
    let patient = Patient::of_vpc_cni();
    patient.node.net.set_sysctl("net/ipv4/ip_forward", "0");
    patient.file("etc/sysctl.d/50-a.conf", "net.ipv4.ip_forward = 0\n");
    patient.file("etc/sysctl.d/99-b.conf", "# hardened\nnet.ipv4.conf.all.forwarding = 0\n");
    let (_, cure) = patient.only("ip_forward_off", "/etc/sysctl.d/99-b.conf:2");
    assert!(cure.contains("> /etc/sysctl.d/99-b.ip-forward.conf") && !cure.contains("delete"), "{cure}");
    // A line that says what an earlier one has said is written where that one stands.
    patient.file("etc/sysctl.d/50-a.conf", "net.ipv4.ip_forward = 1\n");
    let (_, cure) = patient.only("ip_forward_off", "/etc/sysctl.d/99-b.conf:2");
    assert!(cure.ends_with("  # and delete line 2 of /etc/sysctl.d/99-b.conf"), "{cure}");
    patient.file("etc/sysctl.d/99-c.conf", "net.ipv4.ip_forward = 0\nnet.ipv4.ip_forward = 1\n");
    patient.only("ip_forward_off", "");
}

#[test]
fn a_node_with_pods_of_ipv6_alone_forwards_that() {
    let node = Worker::new().with_loose_rp_filter();
    node.net.ip("rule del priority 32765");
    node.net.ip("link add eni00000000064 type veth peer name pod0");
    for link in ["eni00000000064", "pod0"] {
        node.net.ip(&format!("link set {link} up"));
    }
    node.net.ip("-6 route add fd00:1::100 dev eni00000000064");
    node.net.ip("-6 rule add priority 512 to fd00:1::100 lookup main");
    node.net.ip("-6 rule add priority 1536 from fd00:1::100 lookup 2");
    node.net.ip("-6 route add default via fd00:1::1 dev eth1 table 2");
    node.net.set_sysctl("net/ipv4/ip_forward", "0");
    node.net.set_sysctl("net/ipv4/conf/eni00000000064/rp_filter", "2");
    node.net.settle();
    let patient = Patient::of(node);
    let net = &patient.node.net;
    assert_eq!(patient.causes(), [], "nobody needs IPv4 forwarded");

    net.ip("-6 route del fd00:1::100 dev eni00000000064");
    patient.only("rule_without_pod", "");
    net.ip("-6 route add fd00:1::100 dev eni00000000064");

    patient.file("etc/sysctl.d/95-hard.conf", "net.ipv6.conf.all.forwarding = 0\n");
    net.set_sysctl("net/ipv6/conf/all/forwarding", "0");
    let (evidence, cure) = patient.only("ip_forward_off", "/etc/sysctl.d/95-hard.conf:1");
    assert!(evidence.contains("net.ipv6.conf.all.forwarding is 0"), "{evidence}");
    assert!(cure.contains("/etc/sysctl.d/95-hard.ipv6-forward.conf") && !cure.contains("accept_ra"), "{cure}");
    // Who forwards takes no route from router advertisements, and loses what it has, unless accept_ra is 2.
    net.ip("-6 route replace default via fd00:0::1 dev eth0 proto ra metric 100");
    net.set_sysctl("net/ipv6/conf/eth0/accept_ra", "1");
    let (_, cure) = patient.only("ip_forward_off", "/etc/sysctl.d/95-hard.conf:1");
    let now = cure.split(" && mkdir").next().unwrap();
    assert_eq!(now, "sysctl -w net.ipv6.conf.eth0.accept_ra=2 && sysctl -w net.ipv6.conf.all.forwarding=1");
    assert!(cure.contains("'net/ipv6/conf/eth0/accept_ra = 2'"), "{cure}");
    patient.is_cured_by(now);
}

#[test]
fn udev_gives_pods_interfaces_other_addresses() {
    let patient = Patient::of_vpc_cni();
    // As the udev of systemd 252 has made it of this name and the machine-id.
    patient.node.net.ip("link set eni00000000064 address c2:d3:d9:04:ed:89");
    patient.file("usr/lib/systemd/network/50-other.link", "[Match]\nDriver=mlx5_core\n[Link]\nMACAddressPolicy=none\n");
    patient.only("mac_address_policy", "/usr/lib/systemd/network/99-default.link:6");
    let review = tempfile::tempdir().unwrap();
    patient.examined(&["--write", review.path().to_str().unwrap()]).expect(1);
    let file = "etc/systemd/network/01-node-fixer-pods.link";
    patient.file(file, &std::fs::read_to_string(review.path().join(file)).unwrap());
    assert_eq!(patient.causes(), [], "cured by the proposed file");
    std::fs::remove_file(patient.root.path().join(file)).unwrap();
    patient.file("etc/systemd/network/99-default.link.d/no.conf", "[Link]\nMACAddressPolicy=none\n");
    assert_eq!(patient.causes(), [], "cured by a drop-in");
}

#[test]
fn it_needs_no_privilege_and_says_what_it_could_not_see() {
    let patient = Patient::of_vpc_cni();
    patient.file("usr/lib/sysctl.d/50-redhat.conf", SYSCTL_50_REDHAT);
    patient.file("etc/sysctl.d/60-secret.conf", "net.ipv4.conf.default.rp_filter = 1\n");
    let mode = std::os::unix::fs::PermissionsExt::from_mode;
    std::fs::set_permissions(patient.root.path(), mode(0o755)).unwrap();
    std::fs::set_permissions(patient.root.path().join("etc/sysctl.d/60-secret.conf"), mode(0)).unwrap();
    let args = ["doctor", "--output", "json", "--root", patient.root.path().to_str().unwrap()];
    let ran = unprivileged(&patient.node, "", &args).expect(1);
    let json = ran.json();
    assert_eq!(json["findings"].as_array().unwrap().len(), 1, "{ran:?}");
    let unseen = json["unseen"].as_array().unwrap();
    assert_eq!(unseen.len(), 1, "{ran:?}");
    assert!(unseen[0].as_str().unwrap().contains("/etc/sysctl.d/60-secret.conf: Permission denied"), "{ran:?}");
}

#[test]
fn names_are_harmless() {
    let patient = Patient::of_vpc_cni();
    let net = &patient.node.net;
    for name in ["eth$(id)", "eth;x", "eth'9"] {
        net.run("ip", &["link", "add", name, "type", "bridge"]);
        net.run("ip", &["addr", "add", "10.0.1.101/32", "dev", name]);
    }
    patient.file(
        "etc/sysctl.d/60-\u{1b}[31m.conf",
        "net.ipv4.conf.eth\u{1b}[2J.rp_filter=1\nnet/ipv4/conf/eth;x/rp_filter=1\n",
    );
    let config = "rp_filter: {interfaces: '^eth'}";
    let ran = doctor(net, patient.root.path(), config, &["--output", "json"]);
    assert_eq!(causes(&ran).len(), 4, "{ran:?}");
    let text = doctor(net, patient.root.path(), config, &[]).expect(1).out;
    assert!(!text.contains('\u{1b}'), "{text:?}");
    let cures = ran.findings().iter().map(|it| it["cure"].as_str().unwrap().to_owned()).collect::<Vec<_>>();
    for cure in cures.iter().filter(|cure| cure.starts_with("ip addr del")) {
        net.run("sh", &["-ec", cure]);
    }
    let left = causes(&doctor(net, patient.root.path(), config, &["--output", "json"]));
    assert_eq!(left.len(), 1, "{left:?}");
}
