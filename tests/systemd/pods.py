"""Pods of the VPC CNI on a node, and systemd-networkd, which removes their rules."""

import json
import re
import time

from node import check

WHERE = {"the world": "192.0.2.1", "another pod": "10.0.{number}.101"}


class Pods:
    """Two pods behind ethN, and a router there that knows the world; other uplinks lead nowhere. cloudN is the other end of
    ethN. networkd removes the rules of others when it restarts."""

    def __init__(self, node, number):
        self.node, self.number = node, number
        self.where = {name: to.format(number=number) for name, to in WHERE.items()}
        node.write("/etc/systemd/networkd.conf.d/test.conf", "[Network]\nManageForeignRoutingPolicyRules=yes")
        node.write("/etc/systemd/network/test.network", "[Match]\nName=managed0\n[Network]\nAddress=10.99.0.1/24")
        node.run("ip link add managed0 type veth peer name managed1; ip link set managed1 up")
        self.restart_networkd()
        node.wait(lambda: "10.99.0.1" in node.run("ip addr show managed0"), "networkd manages an interface", 30)
        node.run(f"""n={number}; table=$((n + 1))
            ip netns add world; ip link set cloud$n netns world
            ip -n world addr add 10.0.$n.1/24 dev cloud$n; ip -n world link set cloud$n up; ip -n world link set lo up
            ip -n world addr add 192.0.2.1/32 dev lo
            sysctl -qw net.ipv4.ip_forward=1
            ip rule del priority 1501 || :  # where networkd has left it
            ip rule add priority 1024 fwmark 0x80/0x80 lookup main; ip rule add priority 32765 from 10.0.$n.10 lookup $table
            for pod in 100 101; do
                link=eni00000000$pod
                ip netns add pod$pod; ip link add $link type veth peer name eth0 netns pod$pod; ip link set $link up
                sysctl -qw net.ipv4.conf.$link.proxy_arp=1
                ip -n pod$pod addr add 10.0.$n.$pod/32 dev eth0; ip -n pod$pod link set eth0 up
                ip -n pod$pod route add 169.254.1.1 dev eth0 scope link; ip -n pod$pod route add default via 169.254.1.1
                ip route add 10.0.$n.$pod dev $link scope link; ip rule add priority 512 to 10.0.$n.$pod lookup main
                ip rule add priority 1536 from 10.0.$n.$pod lookup $table; ip -n world route add 10.0.$n.$pod via 10.0.$n.10
            done
            ip route show default table $table | grep -q . || ip route add default via 10.0.$n.1 dev eth$n table $table""")
        node.wait(self.reach_all, "the test is right: pods reach the world")
        self.healthy = self.rules()

    def rules(self):
        """What `ip rule` shows, by what the rules do."""
        shown = json.loads(self.node.run("ip -j -N rule"))
        return sorted(json.dumps({key: value for key, value in rule.items() if key != "protocol"}) for rule in shown)

    def are_restored(self):
        return self.rules() == self.healthy and "172" in self.node.run("ip -j -N rule")

    def reach_all(self):
        ping = "ip netns exec pod%d ping -q -c 1 -W 1 %s"
        return all(self.node.succeeds(ping % way) for way in [(100, "192.0.2.1"), (101, "192.0.2.1"), (100, self.where["another pod"])])

    def lost_pings(self, count, interval, meanwhile):
        """How many a pod loses on each way, of so many and so many seconds apart, if this happens after the first second."""
        files = {name: f"/tmp/ping-{number}" for number, name in enumerate(self.where)}
        for name, file in files.items():
            self.node.run(f"rm -f {file}; systemd-run --quiet --collect sh -c "
                          f"'ip netns exec pod100 ping -q -i {interval} -W 1 -c {count} {self.where[name]} > {file}'")
        time.sleep(1)
        meanwhile()
        self.node.wait(self.are_restored, "the same rules again", 62)
        lost = {}
        for name, file in files.items():
            said = self.node.wait(lambda: re.search(r"(\d+) packets transmitted, (\d+) received", self.node.run(f"cat {file}")),
                                  "all pings were sent", count * interval + 20, 0.2)
            sent, received = map(int, said.groups())
            check(sent == count, f"{sent} of {count} pings were sent")
            lost[name] = sent - received
        return lost

    def restart_networkd(self):
        self.node.run("systemctl stop systemd-networkd.socket systemd-networkd; systemctl start systemd-networkd", check=False)

    def go(self):
        self.node.run(f"""n={self.number}; table=$((n + 1))
            ip link del managed0; rm -r /etc/systemd/networkd.conf.d /etc/systemd/network/test.network
            ip -n world link set cloud$n netns 1; ip netns del world; ip link set cloud$n up; ip rule del priority 1024
            ip rule del priority 32765; ip rule add priority 1501 from 10.0.$n.10 lookup $table
            for pod in 100 101; do ip netns del pod$pod; done""")
        self.node.wait(lambda: "eni" not in self.node.run("ip -o link"), "the pods are gone")
