"""A worker node in the network and mount namespace of this process, for tests/faults and tests/chaos.

The namespaces are this process's own (see `in_namespaces`), and all is gone when it ends. What is judged is read with
iproute2, nft and /proc/sys, never with node-fixer.
"""

import ctypes
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

CHECKOUT = pathlib.Path(__file__).resolve().parents[2]

# Programs, and Debian's packages that provide them.
NEEDED = {"ip": "iproute2", "nft": "nftables", "strace": "strace", "unshare": "util-linux", "mount": "mount"}


class Failed(Exception):
    """The harness itself failed: nothing is said about node-fixer."""


def require(program, needed):
    """Ends with the command that provides what is missing."""
    missing = sorted({package for name, package in needed.items() if not shutil.which(name)})
    if missing:
        sys.exit(f"{program}: programs are missing; install them: apt-get install {' '.join(missing)}")
    if os.geteuid() != 0:
        sys.exit(f"{program}: root is required; run it as root: sudo {program}")


def built_binary():
    """The binary of `cargo build`, which is brought up to date."""
    command = ["cargo", "build", "--quiet", "--locked", "--bin", "node-fixer", "--message-format=json"]
    built = subprocess.run(command, cwd=CHECKOUT, stdout=subprocess.PIPE, check=False)
    if built.returncode != 0:
        sys.exit("cargo build failed; name a binary with --binary FILE")
    messages = [json.loads(line) for line in built.stdout.splitlines()]
    return next(it["executable"] for it in messages if it.get("executable"))


def in_namespaces(*command):
    """The command line that runs a command in a network, a mount and a process namespace of its own: what it has started
    ends with it."""
    return ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private", "--",
            *command]


def end_with_parent():
    """Has the kernel kill this process when its parent ends, however that ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def output(*command, **more):
    """Runs a program that must succeed; its stdout."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL if "input" not in more else None, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, check=False, **more)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}: {done.stderr.strip()} {more.get('input', '')}")
    return done.stdout


def batch(commands, *options):
    """Commands of ip, one a line, in one process."""
    lines = "\n".join(line.strip() for line in commands.splitlines() if line.strip())
    output("ip", *options, "-batch", "-", input=lines + "\n")


def set_sysctls(values):
    for path, value in values.items():
        pathlib.Path("/proc/sys/net", path).write_text(str(value))


# Two uplinks of a VPC CNI node with a pod each behind the second, and links of others. The far ends are in the
# namespace `far`. Addresses are chosen, so that two nodes are alike.
LINKS = ["eth0", "eth1", "eth2", "eni00000000011", "eni00000000012", "data0", "tap0"]

UPLINKS = """
    addr add 10.0.0.10/24 dev eth0
    addr add fd00:0::10/64 dev eth0 nodad
    addr add 10.0.1.10/24 dev eth1
    addr add fd00:1::10/64 dev eth1 nodad
    addr add 10.0.1.99/24 dev eth1
    addr add 10.66.0.2/24 dev data0
    addr add 10.66.0.3/24 dev data0
"""
BEHIND = """
    link add brx type bridge
    link set brx alias others
    link set brx up
    route add default via 10.0.0.1 dev eth0
    route add 10.0.1.11 dev eni00000000011 scope link
    route add 10.0.1.12 dev eni00000000012 scope link
    route add 10.0.1.1 dev eth1 table 2 scope link
    route add default via 10.0.1.1 dev eth1 table 2
    route add 10.0.1.1 dev eth1 table 3 scope link
    route add default via 10.0.1.1 dev eth1 table 3
    route add 10.5.0.0/16 via 10.0.1.1 dev eth1 metric 77 proto static
    route add blackhole 10.4.0.0/16 table 900
    rule add priority 512 to 10.0.1.11 lookup main
    rule add priority 512 to 10.0.1.12 lookup main
    rule add priority 1024 fwmark 0x80/0x80 lookup main
    rule add priority 1536 from 10.0.1.11 lookup 2
    rule add priority 1536 from 10.0.1.12 lookup 2
    rule add priority 32765 from 10.0.1.10 lookup 2
    rule add priority 32765 from 10.0.1.99 lookup 3
    rule add priority 900 from 10.4.0.0/16 lookup 900
"""
BEHIND_6 = """
    route add default via fd00:0::1 dev eth0
    route add fd00:1::1 dev eth1 table 2
    route add default via fd00:1::1 dev eth1 table 2
    route add fd05::/64 via fd00:1::1 dev eth1 metric 77 proto static
    rule add priority 32765 from fd00:1::10 lookup 2
"""
NFT = """
table inet others {
    set nodes {
        type ipv4_addr
        elements = { 10.0.0.10, 10.0.1.10 }
    }
    chain forward {
        type filter hook forward priority 0; policy accept;
        ip saddr @nodes counter accept
    }
}
table ip node_fixer_of_others {
    chain post {
        type nat hook postrouting priority 100; policy accept;
    }
}
"""
# What somebody set before node-fixer came. Forwarding of some interfaces differs from that of all.
SYSCTLS = {
    "ipv4/ip_forward": 0,
    "ipv4/conf/all/rp_filter": 0,
    "ipv4/conf/default/rp_filter": 2,
    **{f"ipv4/conf/{name}/rp_filter": 2 for name in [*LINKS, "brx"]},
    "ipv4/conf/eth1/forwarding": 1,
    "ipv4/conf/eni00000000011/forwarding": 1,
    "ipv4/conf/eni00000000012/proxy_arp": 1,
    "ipv6/conf/all/forwarding": 0,
    "ipv6/conf/eth1/forwarding": 1,
}


class Worker:
    """The node, with its directories below a scratch one."""

    def __init__(self, binary):
        self.binary = str(binary)
        self.scratch = pathlib.Path(tempfile.mkdtemp(prefix="node-fixer-worker-"))
        self.state, self.metrics, self.sysctl_d = (self.scratch / name for name in ("state", "metrics", "sysctl.d"))
        self.fake = self.scratch / "crictl.d"
        self.config = self.scratch / "config.yaml"
        for directory in (self.metrics, self.sysctl_d):
            directory.mkdir()
        (self.sysctl_d / "50-others.conf").write_text("net.ipv4.conf.brx.rp_filter = 0\n")
        pathlib.Path("/run/netns").mkdir(exist_ok=True)
        pathlib.Path("/etc/sysctl.d").mkdir(exist_ok=True)
        output("mount", "--bind", str(self.sysctl_d), "/etc/sysctl.d")
        output("mount", "-t", "tmpfs", "none", "/run/netns")
        output("ip", "netns", "add", "far")
        self.crictl = self.scratch / "crictl"
        fixtures = CHECKOUT / "tests/fixtures/crictl"
        text = (CHECKOUT / "tests/it/fake-crictl.sh").read_text()
        self.crictl.write_text(f"#!/bin/sh\nFAKE={self.fake}\nFIXTURES={fixtures}\n{text}")
        self.crictl.chmod(0o755)
        self.build()

    def remove(self):
        output("umount", "/etc/sysctl.d")
        shutil.rmtree(self.scratch)

    def build(self):
        """Builds the node."""
        set_sysctls({"ipv6/conf/default/accept_dad": 0, "ipv6/conf/default/accept_ra": 0,
                     "ipv6/conf/default/forwarding": 0, "ipv4/conf/default/forwarding": 0})
        links = ["link set lo up"]
        far = []
        for number, name in enumerate(LINKS):
            links.append(f"link add {name} address 02:00:00:00:01:{number:02x} type veth peer name f{number} netns far")
            links.append(f"link set {name} up")
            far.append(f"link set f{number} up")
        batch("\n".join(links))
        batch("\n".join(far), "-n", "far")
        batch(UPLINKS)
        batch(BEHIND)
        self.settle()
        batch(BEHIND_6, "-6")
        output("nft", "-f", "-", input=NFT)
        set_sysctls(SYSCTLS)

    def settle(self):
        """Waits until every link has its carrier and its link-local address, so that two looks show the same."""
        for _ in range(400):
            links = json.loads(output("ip", "-j", "addr", "show", "up"))
            local = lambda link: any(it["family"] == "inet6" and it["scope"] == "link" and not it.get("tentative")
                                     for it in link["addr_info"])
            # Nothing is connected to a bridge without ports.
            if all(it["operstate"] == "UP" and local(it) for it in links if it.get("ifname") in LINKS):
                return
            time.sleep(0.01)
        raise Failed("the links do not come up")

    def fresh(self):
        """Forgets what node-fixer remembers, and makes the pods of the runtime anew."""
        for directory in (self.state, self.fake):
            shutil.rmtree(directory, ignore_errors=True)
        for name in ("ready", "notready"):
            (self.fake / name).mkdir(parents=True)
        (self.fake / "ready" / ("1" * 64)).write_text("1700000000000000000")
        for file in self.metrics.iterdir():
            file.unlink()
        for file in self.sysctl_d.iterdir():
            if file.name != "50-others.conf":
                file.unlink()

    def command(self, config, *args):
        """The command line of node-fixer, with this configuration in its file."""
        self.config.write_text(config)
        return [self.binary, "--config", str(self.config), "--state-dir", str(self.state), "--output", "json", *args]

    def let_time_pass(self):
        """What node-fixer waits for after a failed restart of kube-proxy: its time has come."""
        file = self.state / "state.json"
        if file.exists():
            state = json.loads(file.read_text())
            state["memory"]["kube_proxy"]["retry"] = None
            file.write_text(json.dumps(state))

    def off(self):
        """A configuration in which nothing is declared, and only the node's own sections look."""
        return f"""version: 1
kube_proxy: {{crictl: {self.crictl}, settle: 1ms, min_interval: 1ms, timeout: 2s}}
"""


# Kept by the kernel and of no interest: they change by themselves.
FLUID = {"ifindex", "operstate", "valid_life_time", "preferred_life_time", "linkmode", "group", "qdisc", "txqlen",
         "link_index", "link_netnsid", "expires", "pref", "handle", "metainfo", "packets", "bytes", "num_tx_queues",
         "num_rx_queues", "gso_max_size", "gso_max_segs", "tso_max_size", "tso_max_segs", "gro_max_size", "gc_timer",
         "hello_timer", "tcn_timer", "topology_change_timer", "bridge_id", "root_id", "address", "broadcast", "inet6_addr_gen_mode",
         "cacheinfo", "designated_bridge", "designated_root", "topology_change", "topology_change_detected", "root_port",
         "root_path_cost", "hold_timer", "message_age_timer", "forward_delay_timer", "state", "config_pending",
         "topology_change_ack", "id", "no", "port_id", "designated_port", "designated_cost", "hello_time",
         "stable_privacy_address", "noprefixroute", "dynamic", "ageing_time", "allmulti", "promiscuity"}
# Not what node-fixer says of itself, but what the kernel finds out about a carrier.
FLUID_FLAGS = {"linkdown", "dead", "LOWER_UP", "NO-CARRIER", "PROMISC", "M-DOWN"}


def lasting(value):
    """Without what changes by itself."""
    if isinstance(value, dict):
        return {key: lasting(it) for key, it in value.items() if key not in FLUID}
    if isinstance(value, list):
        return [lasting(it) for it in value if not (isinstance(it, str) and it in FLUID_FLAGS)]
    return value


def lines(documents):
    return sorted(json.dumps(lasting(it), sort_keys=True) for it in documents)


def ip_json(*words):
    return json.loads(output("ip", "-j", "-N", "-d", *words) or "[]")


def is_of_a_bridges_own(route):
    """A bridge has an address of chance, and the kernel routes what belongs to it once there is a carrier."""
    return route.get("dev", "").startswith("br") and (
        any(route["dst"].startswith(it) for it in ("fe80", "ff00", "multicast ff00", "anycast fe80")))


def sysctls():
    """Everything below net/ipv4/conf and net/ipv6/conf, and what stands alone."""
    values = {}
    for top in ("ipv4/conf", "ipv6/conf"):
        for link in os.scandir(f"/proc/sys/net/{top}"):
            for file in os.scandir(link.path):
                # Of which the kernel keeps the account.
                if file.name in ("stable_secret", "mc_forwarding"):
                    continue
                try:
                    with open(file.path, "rb", buffering=0) as opened:
                        values[file.path[14:]] = opened.read(256).decode().strip()
                except OSError:
                    pass
    for name in ("ipv4/ip_forward", "ipv4/conf/all/forwarding"):
        values[name] = pathlib.Path("/proc/sys/net", name).read_text().strip()
    return [f"{key} = {value}" for key, value in sorted(values.items())]


def snapshot(worker):
    """The node as others see it, by kind: lists of lines."""
    links = ip_json("addr")
    for link in links:
        if link["ifname"].startswith("br"):
            link["addr_info"] = [it for it in link["addr_info"] if it.get("scope") != "253" and it["scope"] != "link"]
            link.pop("flags", None)
        # The order of IPv4 addresses counts: the first of a subnet leads.
        link["addr_info"].sort(key=lambda it: (it["family"], it["local"] if it["family"] == "inet6" else ""))
    routes = {family: [it for it in ip_json(family, "route", "show", "table", "all") if not is_of_a_bridges_own(it)]
              for family in ("-4", "-6")}
    files = []
    for directory in (worker.sysctl_d, worker.metrics):
        for file in sorted(directory.iterdir()):
            text = file.read_text() if file.suffix == ".conf" else ""
            files.append(f"{directory.name}/{file.name}: {text!r}")
    files += [f"netns/{name}" for name in names(pathlib.Path("/run/netns"))]
    return {
        "rules": lines(ip_json("-4", "rule")),
        "rules_6": lines(ip_json("-6", "rule")),
        "routes": lines(routes["-4"]),
        "routes_6": lines(routes["-6"]),
        "links": lines(links),
        "nft": lines(json.loads(output("nft", "-j", "list", "ruleset"))["nftables"]),
        "sysctls": sysctls(),
        "files": files,
    }


def differences(expected, found):
    """What differs, in words; none if nothing does."""
    words = []
    for kind in expected:
        if expected[kind] == found[kind]:
            continue
        wanted, seen = set(expected[kind]), set(found[kind])
        missing, surplus = sorted(wanted - seen), sorted(seen - wanted)
        if not missing and not surplus:
            surplus = ["one of them twice"]
        words += [f"{kind}: missing {it}" for it in missing] + [f"{kind}: surplus {it}" for it in surplus]
    return words


def names(directory):
    """The files in a directory, which may be missing."""
    return sorted(it.name for it in directory.iterdir()) if directory.exists() else []


def chosen(seed):
    """The generator for a seed; today's date if there is none."""
    seed = seed if seed is not None else int(time.strftime("%Y%m%d", time.gmtime()))
    return seed, random.Random(seed)
