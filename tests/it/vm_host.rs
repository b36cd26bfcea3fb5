//! The shipped examples of hosts other than workers, as packets see them, and whatever the moment of an end.

use std::fs;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::kit::{Netns, Ran, Worker, finish, needs, node_fixer, started_by};
use crate::sysctl_d::{DIRECTORIES, rooted};

/// A host with an uplink to a server (192.0.2.1), a machine on its bridge and one that is routed.
struct Host {
    net: Netns,
    server: Netns,
    root: tempfile::TempDir,
}

impl Host {
    fn new() -> Host {
        let host = Host { net: Netns::new(), server: Netns::new(), root: tempfile::tempdir().unwrap() };
        for directory in DIRECTORIES {
            fs::create_dir_all(host.root.path().join(directory)).unwrap();
        }
        fs::create_dir_all(host.root.path().join("run/netns")).unwrap();
        host.net.set_sysctl("net/ipv4/ip_forward", "0");
        host.net.ip(&format!("link add eth0 type veth peer name eth0 netns {}", host.server.path()));
        host.net.ip("addr add 192.0.2.10/24 dev eth0");
        host.net.ip("link set eth0 up");
        host.server.ip("addr add 192.0.2.1/24 dev eth0");
        host.server.ip("link set eth0 up");
        host
    }

    /// A machine: its end of `vh_ID` with this address.
    fn machine(&self, id: u8, address: &str) -> Netns {
        let machine = Netns::new();
        self.net.ip(&format!("link add vh_{id} type veth peer name eth0 netns {}", machine.path()));
        self.net.ip(&format!("link set vh_{id} up"));
        machine.ip(&format!("addr add {address} dev eth0"));
        machine.ip("link set eth0 up");
        machine
    }

    fn command(&self, config: &Path) -> Command {
        let mut command = node_fixer();
        command.arg("--config").arg(config).arg("--state-dir").arg(self.root.path().join("state"));
        command
    }

    /// node-fixer with /etc, /run and /usr/lib/sysctl.d of the test's own.
    fn fix(&self, config: &Path, args: &[&str]) -> Ran {
        let mut command = self.command(config);
        command.args(args);
        finish(self.net.output(&mut started_by(rooted(self.root.path()), &command)))
    }

    fn state(&self) -> String {
        let nft = self.net.run("nft", &["list", "ruleset"]);
        // Of addresses, not when they were added.
        let mut state = [self.net.state(), self.net.ip("-o addr"), nft].join("\n");
        for key in ["ip_forward", "conf/vh_1/proxy_arp", "conf/vh_2/proxy_arp"] {
            // A machine that is not there has none.
            let value = self.net.enter(|| fs::read_to_string(format!("/proc/sys/net/ipv4/{key}")));
            state += &format!("\n{key}={}", value.unwrap_or_default());
        }
        let file = fs::read_to_string(self.root.path().join("etc/sysctl.d/90-node-fixer.conf"));
        let links = self.net.ip_json("link");
        let links = links.as_array().unwrap().iter().map(|link| link["ifname"].as_str().unwrap().to_owned());
        format!("{state}\n{:?}\n{}", links.collect::<Vec<_>>(), file.unwrap_or_default())
    }
}

/// A path from the top of the project, whatever directory the command is run in.
fn shipped(name: &str) -> std::path::PathBuf {
    fs::canonicalize(Path::new("config").join(name)).unwrap()
}

fn empty(directory: &Path) -> std::path::PathBuf {
    let path = directory.join("empty.yaml");
    let off = "default_routes: {mode: off}\nrp_filter: {mode: off}\nkube_proxy: {mode: off}\n";
    fs::write(&path, format!("version: 1\n{off}")).unwrap();
    path
}

/// Whom the server sees when somebody connects to it; `None` where nobody comes through.
fn seen_by_server(host: &Host, machine: &Netns) -> Option<IpAddr> {
    let server: SocketAddr = "192.0.2.1:8080".parse().unwrap();
    let listener = host.server.enter(|| TcpListener::bind(server)).unwrap();
    // Longer than the kernel looks for the gateway's hardware address (3 s): what comes after must not be reported that the
    // earlier search has failed.
    machine.enter(|| TcpStream::connect_timeout(&server, Duration::from_secs(10))).ok()?;
    Some(listener.accept().unwrap().1.ip())
}

#[test]
fn a_machine_on_the_bridge_reaches_the_world_as_its_host() {
    let host = Host::new();
    let machine = host.machine(1, "10.100.0.2/16");
    machine.ip("route add default via 10.100.0.1");
    let attach = || host.net.ip("link set vh_1 master br-vms");
    assert_eq!(seen_by_server(&host, &machine), None, "before: no way out");
    let config = shipped("vm-host.yaml");
    let before = host.state();
    host.fix(&config, &[]).expect(0);
    attach();
    assert_eq!(seen_by_server(&host, &machine), Some("192.0.2.10".parse().unwrap()), "as its host");
    assert_eq!(host.fix(&config, &[]).expect(0).out, "", "a second run finds nothing to do");
    assert!(machine.pings("10.100.0.2", "10.100.0.1"));
    host.fix(&empty(host.root.path()), &[]).expect(0);
    assert_eq!(host.state(), before, "an empty configuration takes all of it back");
    assert_eq!(seen_by_server(&host, &machine), None);
}

#[test]
fn a_routed_machine_is_answered_by_proxy_arp() {
    let host = Host::new();
    let machine = host.machine(2, "172.16.0.2/16");
    host.net.ip("route add 172.16.0.2 dev vh_2");
    host.net.ip("route add 172.16.9.9 via 192.0.2.1");
    host.server.ip("addr add 172.16.9.9/32 dev lo");
    host.server.ip("route add 172.16.0.2 via 192.0.2.10");
    host.net.set_sysctl("net/ipv4/ip_forward", "1");
    assert!(!machine.pings("172.16.0.2", "172.16.9.9"), "before: nobody answers for it");
    host.fix(&shipped("vm-host.yaml"), &[]).expect(0);
    machine.ip("neigh flush dev eth0");
    assert!(machine.pings("172.16.0.2", "172.16.9.9"));
}

#[test]
fn the_script_does_what_the_run_does() {
    the_script_does_what_the_run_does_from(&["vm-host.yaml"]);
}

#[test]
fn the_script_takes_down_what_the_run_takes_down() {
    the_script_does_what_the_run_does_from(&["vm-host.yaml", "empty.yaml"]);
}

/// Two hosts on which all but the last of these configurations have been carried out: the last one by the script on one
/// of them, by a run on the other.
fn the_script_does_what_the_run_does_from(configs: &[&str]) {
    let hosts = [Host::new(), Host::new()];
    let _machines = hosts.each_ref().map(|host| host.machine(1, "10.100.0.2/16"));
    let _others = hosts.each_ref().map(|host| host.machine(2, "172.16.0.2/16"));
    let config = |host: &Host, name: &str| if name == "empty.yaml" { empty(host.root.path()) } else { shipped(name) };
    let (last, earlier) = configs.split_last().unwrap();
    for host in &hosts {
        host.net.settle();
        earlier.iter().for_each(|name| drop(host.fix(&config(host, name), &[]).expect(0)));
    }
    let [by_script, by_run] = hosts;
    let state = |host: &Host| {
        let state = host.state();
        let kept = state.lines().filter(|line| !line.contains("fe80") && !line.contains("valid_lft"));
        kept.collect::<Vec<_>>().join("\n")
    };
    let before = state(&by_script);
    let script = by_script.fix(&config(&by_script, last), &["--dry-run"]).expect(0).out;
    assert_eq!(state(&by_script), before, "a dry run changes nothing");
    let output = by_script.net.output(rooted(by_script.root.path()).args(["sh", "-e", "-c", &script]));
    assert!(output.status.success(), "{script}\n{}", String::from_utf8_lossy(&output.stderr));
    let ran = by_run.fix(&config(&by_run, last), &["--output", "json"]).expect(0);
    assert!(ran.commands().len() >= 5, "{ran:?}");
    assert_eq!(state(&by_script), state(&by_run), "{script}");
}

#[test]
#[ignore = "needs python3; tests/run runs it"]
fn loopback_aliases_are_there_for_workers_without_rights() {
    needs(&["python3"]);
    let node = Worker::new();
    let config = shipped("loopback-aliases.yaml");
    let mut command = node_fixer();
    command.arg("--config").arg(config).arg("--state-dir").arg(node.directory.path().join("state"));
    finish(node.net.output(&mut command)).expect(0);
    let script = "import socket; s = socket.socket(); s.bind(('127.0.1.32', 8080)); s.listen(); print('heard')";
    let mut worker = Command::new("setpriv");
    worker.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all"]);
    worker.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let output = node.net.output(worker.args(["python3", "-c", script]));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "heard\n", "{output:?}");
}

/// Ended by SIGKILL before each system call that changes something, in its making and in its taking down: the next
/// run converges, and nothing of ours is left over when all is undeclared.
#[test]
#[ignore = "needs strace; tests/run runs it"]
fn an_end_at_any_moment_leaves_nothing_half() {
    let host = Host::new();
    let _machine = host.machine(1, "10.100.0.2/16");
    let _routed = host.machine(2, "172.16.0.2/16");
    host.net.ip("addr add 10.77.0.1/24 dev eth0");
    let (config, empty) = (shipped("vm-host.yaml"), empty(host.root.path()));
    let stable = || {
        let state = host.state();
        let kept = state.lines().filter(|line| !line.contains("fe80") && !line.contains("ff00::"));
        kept.collect::<Vec<_>>().join("\n")
    };
    host.fix(&empty, &[]).expect(0);
    let before = stable();
    host.fix(&config, &[]).expect(0);
    let after = renumbered(&stable());
    host.fix(&empty, &[]).expect(0);
    assert_eq!(stable(), before);
    let mut kills = 0;
    for syscall in ["sendto", "write", "rename", "fsync", "unlink", "execve"] {
        for (target, end) in [(&config, &after), (&empty, &renumbered(&before))] {
            for number in 1.. {
                assert!(number < 400, "{syscall} never ends");
                let mut traced = rooted(host.root.path());
                let inject = format!("inject={syscall}:signal=SIGKILL:when={number}");
                let trace = format!("trace={syscall}");
                traced.args(["strace", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject]);
                let whole = host.net.output(&mut started_by(traced, &host.command(target))).status.success();
                let ran = host.fix(target, &[]).expect(0);
                assert_eq!(&renumbered(&stable()), end, "{syscall} {number}: {ran:?}");
                assert_eq!(host.fix(target, &[]).expect(0).out, "", "{syscall} {number}");
                // And back, so that the next one has all to do again.
                let other = if target == &config { &empty } else { &config };
                if whole {
                    break;
                }
                kills += 1;
                host.fix(other, &[]).expect(0);
            }
        }
    }
    host.fix(&empty, &[]).expect(0);
    assert_eq!(stable(), before);
    assert!(kills > 20, "only {kills} ends");
}

/// Without the numbers by which the kernel counts links and rules of nftables, which are others each time.
fn renumbered(state: &str) -> String {
    let words = |line: &str| {
        let number = line.split_once(": ").filter(|(number, _)| number.parse::<u32>().is_ok());
        number.map_or(line, |(_, rest)| rest).to_owned()
    };
    state.lines().map(words).collect::<Vec<_>>().join("\n")
}
