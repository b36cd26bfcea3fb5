//! Network namespaces of a test's own, and a worker node in them that reads like prose.
//!
//! A thread stands in each namespace (setns is by thread); programs that it starts stand there too. Nothing has
//! a name outside the test, and all is gone with its last descriptor.

use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde_json::Value;

use crate::{icmp, mirror};

/// A network namespace with its loopback up.
pub struct Netns(File);

impl Netns {
    pub fn new() -> Netns {
        let namespace = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .expect("tests make network namespaces of their own: run them by cargo test, or as root");
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let namespace = Netns(namespace.join().expect("no network namespace"));
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs the closure in the namespace.
    pub fn enter<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.0, CloneFlags::CLONE_NEWNET).unwrap();
                inside()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// What `ip link set … netns` takes.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    pub fn output(&self, command: &mut Command) -> Output {
        let output = self.enter(|| command.stdin(Stdio::null()).output());
        let output = output.unwrap_or_else(|error| not_started(command, &error));
        mirror::check(self, command, &output);
        output
    }

    /// Runs a program that must succeed; its stdout.
    pub fn run(&self, program: &str, args: &[&str]) -> String {
        let output = self.output(Command::new(program).args(args));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{program} {args:?}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// `ip …`, words separated by spaces.
    pub fn ip(&self, words: &str) -> String {
        self.run("ip", &words.split_whitespace().collect::<Vec<_>>())
    }

    /// Commands, one a line, in one call; `family` is `-4`, `-6` or `-0`.
    pub fn ip_batch(&self, family: &str, commands: &str) {
        if commands.is_empty() {
            return;
        }
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(commands.as_bytes()).unwrap();
        file.rewind().unwrap();
        let mut ip = Command::new("ip");
        ip.args(if family == "-0" { &[][..] } else { std::slice::from_ref(&family) }).args(["-batch", "-"]);
        let output = self.enter(|| ip.stdin(Stdio::from(file)).output()).unwrap();
        assert!(output.status.success(), "{commands}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// `ip -j …`
    pub fn ip_json(&self, words: &str) -> Value {
        serde_json::from_str(&self.ip(&format!("-j {words}"))).unwrap()
    }

    /// The value of a sysctl by its path below /proc/sys.
    pub fn sysctl(&self, path: &str) -> String {
        let path = format!("/proc/sys/{path}");
        self.enter(|| std::fs::read_to_string(&path)).unwrap_or_else(|error| panic!("{path}: {error}")).trim().into()
    }

    pub fn set_sysctl(&self, path: &str, value: &str) {
        let path = format!("/proc/sys/{path}");
        self.enter(|| std::fs::write(&path, value)).unwrap_or_else(|error| panic!("{path}: {error}"));
    }

    /// Whether a ping from the address is answered.
    pub fn pings(&self, from: &str, to: &str) -> bool {
        self.pings_within(from, to, Duration::from_secs(2))
    }

    /// The same within some time. From `::` or `0.0.0.0` the kernel chooses the address.
    pub fn pings_within(&self, from: &str, to: &str, patience: Duration) -> bool {
        self.enter(|| icmp::echo(from.parse().unwrap(), to.parse().unwrap(), patience)).is_ok()
    }

    /// Sends a router advertisement by this interface.
    pub fn advertise(&self, interface: &str) {
        self.enter(|| icmp::advertise(interface)).unwrap();
    }

    /// Waits until the kernel is done with what was set up: carriers come, and with them routes and addresses, some
    /// time after a link was set up. Only then do two looks show the same.
    pub fn settle(&self) {
        until("all links that are up have their carrier and their link-local address", || {
            let links = self.ip_json("addr show up");
            links.as_array().unwrap().iter().filter(|link| link["ifname"] != "lo").all(|link| {
                let addresses = link["addr_info"].as_array().unwrap().iter();
                let is_local =
                    |it: &Value| it["family"] == "inet6" && it["scope"] == "link" && it["tentative"].is_null();
                let name = link["ifname"].as_str().unwrap();
                let v6 = self.enter(|| std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6")));
                let no_v6 = v6.is_ok_and(|value| value.trim() == "1");
                link["operstate"] == "UP" && (no_v6 || addresses.clone().any(is_local))
            })
        });
    }

    /// Everything that iproute2 shows of rules, routes and rp_filter, for comparisons.
    pub fn state(&self) -> String {
        let shown = ["-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all"];
        let mut state: Vec<String> = shown.iter().map(|what| self.ip(&format!("-N {what}"))).collect();
        let mut names: Vec<PathBuf> = self.enter(|| {
            std::fs::read_dir("/proc/sys/net/ipv4/conf").unwrap().map(|entry| entry.unwrap().path()).collect()
        });
        names.sort();
        let value = |path: &Path| self.enter(|| std::fs::read_to_string(path.join("rp_filter"))).unwrap();
        state.extend(names.iter().map(|path| format!("{}={}", path.display(), value(path).trim())));
        // The kernel notices up to a second later that a new link has its carrier.
        state.join("\n").replace(" linkdown", "")
    }
}

/// What a run of node-fixer said and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Ran {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// What `doctor --output json` found.
    pub fn findings(&self) -> Vec<Value> {
        self.json()["findings"].as_array().unwrap().clone()
    }

    /// The commands of a JSON report.
    pub fn commands(&self) -> Vec<String> {
        let changes = self.json()["changes"].clone();
        changes.as_array().unwrap().iter().map(|change| change["command"].as_str().unwrap().to_owned()).collect()
    }

    pub fn expect(self, code: i32) -> Ran {
        assert_eq!(self.code, code, "{self:?}");
        self
    }
}

/// A program could not be started; tests/run knows which package has it.
pub fn not_started(command: &Command, error: &std::io::Error) -> ! {
    let program = command.get_program().to_string_lossy();
    let needs = include_str!("../run").lines().filter_map(|line| line.strip_prefix("need "));
    let package = needs.filter_map(|need| need.split_once(' ')).find(|(it, _)| *it == program);
    match package {
        Some((_, package)) => {
            panic!("this test needs {program} ({error}): sudo apt-get install {}", package.trim_matches('"'))
        }
        None => panic!("{program} does not start: {error}"),
    }
}

/// For the programs that a script of the test starts.
pub fn needs(programs: &[&str]) {
    for program in programs {
        let mut command = Command::new(program);
        command.arg("--version").output().unwrap_or_else(|error| not_started(&command, &error));
    }
}

/// The command, started by another program: its words come after those of the other.
pub fn started_by(mut starter: Command, command: &Command) -> Command {
    starter.arg(command.get_program()).args(command.get_args()).env_remove("JOURNAL_STREAM");
    starter
}

pub fn node_fixer() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_node-fixer"));
    command.env_remove("JOURNAL_STREAM");
    command
}

pub fn finish(output: Output) -> Ran {
    Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// A program that ends with the test, however that ends.
pub struct Ends(pub Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Exchanges two files all the time until the closure returns, or panics. Both names are there at any time.
pub fn exchanging<T>(a: &Path, b: &Path, meanwhile: impl FnOnce() -> T) -> T {
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).unwrap();
            }
        });
        let _over = Over(&over);
        meanwhile()
    })
}

/// Writes a script that can be started at once. It is another process that writes it: what this one has open for writing,
/// another thread's child may have as well for a moment, and then the kernel starts it for nobody (ETXTBSY).
pub fn script(path: &Path, text: &str) {
    let mut install = Command::new("install");
    install.args(["-m", "755", "/dev/stdin"]).arg(path).stdin(Stdio::piped());
    let mut install = install.spawn().unwrap();
    install.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    assert!(install.wait().unwrap().success(), "{}", path.display());
}

/// Waits until something is so.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !so() {
        assert!(begin.elapsed() < Duration::from_secs(120), "never: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A worker node with two uplinks to a VPC's router, each in a subnet of its own (10.0.N.0/24 and fd00:N::/64),
/// and a server beyond it (192.0.2.1, 2001:db8::1). The router drops what leaves by the wrong uplink, as a
/// cloud's source check does. The second uplink is set up as the VPC CNI does it.
pub struct Worker {
    pub net: Netns,
    pub router: Netns,
    pods: Vec<Netns>,
    pub directory: tempfile::TempDir,
}

impl Worker {
    pub fn new() -> Worker {
        let worker = Worker::bare();
        for family in ["ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"] {
            worker.net.set_sysctl(&format!("net/{family}"), "1");
            worker.router.set_sysctl(&format!("net/{family}"), "1");
        }
        for all in ["all", "default"] {
            worker.net.set_sysctl(&format!("net/ipv4/conf/{all}/rp_filter"), "0");
            worker.net.set_sysctl(&format!("net/ipv6/conf/{all}/accept_dad"), "0");
            worker.router.set_sysctl(&format!("net/ipv6/conf/{all}/accept_dad"), "0");
        }
        worker.router.ip("addr add 192.0.2.1/32 dev lo");
        worker.router.ip("addr add 2001:db8::1/128 dev lo");
        worker.uplink(0);
        worker.uplink(1);
        worker.net.ip("route add default via 10.0.0.1 dev eth0");
        worker.net.ip("-6 route add default via fd00:0::1 dev eth0");
        worker.net.settle();
        worker.with_policy_table("10.0.1.1", "eth1", 2).with_rule("32765", "10.0.1.10", 2)
    }

    /// A node on which nobody has set anything up, nor ever written a sysctl.
    pub fn bare() -> Worker {
        let directory = tempfile::tempdir().unwrap();
        Worker { net: Netns::new(), router: Netns::new(), pods: Vec::new(), directory }
    }

    /// An uplink ethN with 10.0.N.10, to the router's 10.0.N.1; strict, as some distributions have it.
    pub fn uplink(&self, number: u8) {
        let n = number;
        let net = &self.net;
        // Addresses of their own choice, so that two nodes of a test are alike.
        let mac = |end| format!("02:00:00:00:{end:02x}:{n:02x}");
        net.ip(&format!("link add eth{n} address {} type veth peer name r{n} netns {}", mac(1), self.router.path()));
        net.ip(&format!("addr add 10.0.{n}.10/24 dev eth{n}"));
        net.ip(&format!("addr add fd00:{n}::10/64 dev eth{n}"));
        net.ip(&format!("link set eth{n} up"));
        net.set_sysctl(&format!("net/ipv4/conf/eth{n}/rp_filter"), "1");
        self.router.ip(&format!("addr add 10.0.{n}.1/24 dev r{n}"));
        self.router.ip(&format!("addr add fd00:{n}::1/64 dev r{n}"));
        self.router.ip(&format!("link set r{n} up"));
        // The source check: what comes in by an uplink must be of its subnet.
        self.router.set_sysctl(&format!("net/ipv4/conf/r{n}/rp_filter"), "1");
    }

    /// A link of any name whose other end is the router's, with these addresses (`10.0.0.1/24`, `10.0.0.1 peer 10.0.0.2`).
    pub fn link(&self, name: &str, addresses: &[&str]) {
        let far = format!("f{}", name.bytes().fold(5_381_u32, |hash, byte| hash.wrapping_mul(33) ^ u32::from(byte)));
        self.net.ip(&format!("link add {name} type veth peer name {far} netns {}", self.router.path()));
        self.net.ip(&format!("link set {name} up"));
        self.router.ip(&format!("link set {far} up"));
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            self.net.ip(&format!("addr add {address} dev {name}{nodad}"));
        }
    }

    /// Commands of iproute2, one a line, each without `ip`. `uplink NAME ADDRESS…` makes a link as
    /// [`Worker::link`] does (a point-to-point address is `LOCAL>PEER`), `sysctl PATH VALUE` sets one.
    pub fn with(self, lines: &str) -> Worker {
        // Commands of one family that follow each other are one call of ip.
        let mut batch = (String::new(), String::new());
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let (family, command) = match words.as_slice() {
                [family @ ("-4" | "-6"), command @ ..] => (*family, command),
                command => ("-0", command),
            };
            let is_ip = !matches!(command, ["uplink" | "sysctl", ..]);
            if !is_ip || batch.0 != family {
                self.net.ip_batch(&batch.0, &std::mem::take(&mut batch.1));
                batch.0 = family.into();
            }
            match command {
                ["uplink", name, addresses @ ..] => {
                    let addresses: Vec<String> = addresses.iter().map(|word| word.replace('>', " peer ")).collect();
                    self.link(name, &addresses.iter().map(String::as_str).collect::<Vec<_>>());
                }
                ["sysctl", path, value] => self.net.set_sysctl(path, value),
                command => batch.1 += &(command.join(" ") + "\n"),
            }
        }
        self.net.ip_batch(&batch.0, &batch.1);
        self
    }

    /// An uplink ethN with a policy table of its own, N + 1, as the VPC CNI sets it up.
    pub fn uplink_with_table(&self, number: u8) {
        let (n, table) = (number, number + 1);
        self.uplink(n);
        // Even where the kernel looks for no duplicates, an IPv6 address is tentative for a moment.
        until("no address is tentative", || self.net.ip(&format!("addr show dev eth{n} tentative")).is_empty());
        self.net.ip(&format!("route add 10.0.{n}.1 dev eth{n} table {table} scope link"));
        self.net.ip(&format!("route add default via 10.0.{n}.1 dev eth{n} table {table}"));
        self.net.ip(&format!("rule add priority 32765 from 10.0.{n}.10 lookup {table}"));
    }

    /// A pod with an address of the second uplink's subnet, and the CNI's rules and route for it.
    pub fn with_pod(mut self, last: u8) -> Worker {
        let pod = Netns::new();
        let name = format!("eni{last:011x}");
        let address = format!("10.0.1.{last}");
        let mac = format!("02:00:00:00:02:{last:02x}");
        self.net.ip(&format!("link add {name} address {mac} type veth peer name eth0 netns {}", pod.path()));
        self.net.ip(&format!("link set {name} up"));
        self.net.set_sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "2");
        self.net.ip(&format!("route add {address}/32 dev {name} scope link"));
        self.net.set_sysctl(&format!("net/ipv4/conf/{name}/proxy_arp"), "1");
        pod.ip(&format!("addr add {address}/32 dev eth0"));
        pod.ip("link set eth0 up");
        pod.ip("route add 169.254.1.1 dev eth0 scope link");
        pod.ip("route add default via 169.254.1.1 dev eth0");
        self.router.ip(&format!("route add {address}/32 via 10.0.1.10 dev r1"));
        self.net.ip(&format!("rule add priority 512 to {address} lookup main"));
        self.net.ip(&format!("rule add priority 1536 from {address} lookup 2"));
        self.net.settle();
        self.pods.push(pod);
        self
    }

    /// Waits until the kernel has noticed that the links have their carriers, which it does up to a second later.
    pub fn with_carrier(self) -> Worker {
        until("a carrier on every link", || !self.net.ip("route show table all").contains("linkdown"));
        self
    }

    pub fn pod(&self, number: usize) -> &Netns {
        &self.pods[number]
    }

    /// The namespaces of all pods.
    pub fn pods(&self) -> &[Netns] {
        &self.pods
    }

    pub fn with_policy_table(self, gateway: &str, dev: &str, table: u32) -> Worker {
        let family = if gateway.contains(':') { "-6" } else { "-4" };
        self.net.ip(&format!("{family} route add {gateway} dev {dev} table {table} scope link"));
        self.net.ip(&format!("{family} route add default via {gateway} dev {dev} table {table}"));
        self
    }

    pub fn with_rule(self, priority: &str, from: &str, table: u32) -> Worker {
        let family = if from.contains(':') { "-6" } else { "-4" };
        self.net.ip(&format!("{family} rule add priority {priority} from {from} lookup {table}"));
        self
    }

    pub fn without_default(self, table: u32) -> Worker {
        self.net.ip(&format!("route del default table {table}"));
        self
    }

    pub fn with_loose_rp_filter(self) -> Worker {
        for name in ["default", "eth0", "eth1"] {
            self.net.set_sysctl(&format!("net/ipv4/conf/{name}/rp_filter"), "2");
        }
        self
    }

    /// Writes a configuration of these sections, and returns its path.
    pub fn config(&self, sections: &str) -> PathBuf {
        let path = self.directory.path().join("config.yaml");
        std::fs::write(&path, format!("version: 1\n{sections}\n")).unwrap();
        path
    }

    /// node-fixer on this node, with a state directory of the test's own.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = node_fixer();
        let config = self.directory.path().join("config.yaml");
        if !config.exists() {
            self.config("");
        }
        command.arg("--config").arg(config);
        command.arg("--state-dir").arg(self.directory.path().join("state")).args(args);
        command
    }

    /// Runs the script of a dry run, which it returns.
    pub fn run_script(&self) -> String {
        let script = self.fix(&["--dry-run"]).expect(0).out;
        self.net.run("sh", &["-euc", &script]);
        script
    }

    /// Declares the same on another node like this one: its scripts make what a run makes here, and remove it again.
    pub fn is_equalled_by_scripts(&self, by_hand: &Worker, declared: &str) {
        let before = by_hand.net.state();
        self.config(declared);
        by_hand.config(declared);
        let script = by_hand.run_script();
        self.fix(&[]).expect(0);
        assert_eq!(by_hand.net.state(), self.net.state());
        assert_eq!(by_hand.fix(&[]).expect(0).out, "", "{script}");
        by_hand.config("");
        by_hand.run_script();
        assert_eq!(by_hand.net.state(), before);
    }

    pub fn fix(&self, args: &[&str]) -> Ran {
        finish(self.net.output(&mut self.command(args)))
    }

    /// The same under strace with these options, and what strace has written.
    pub fn traced(&self, strace: &[&str], args: &[&str]) -> (Ran, String) {
        let trace = self.directory.path().join("trace");
        let mut starter = Command::new("strace");
        starter.args(["-qq", "-o"]).arg(&trace).args(strace).arg("--");
        let ran = finish(self.net.output(&mut started_by(starter, &self.command(args))));
        (ran, std::fs::read_to_string(trace).unwrap())
    }
}
