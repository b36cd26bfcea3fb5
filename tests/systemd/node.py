"""What the tests do with a node that runs a systemd, wherever it runs."""

import contextlib
import json
import os
import pathlib
import re
import subprocess
import time

HERE = pathlib.Path(__file__).resolve().parent
CHECKOUT = HERE.parent.parent
PACKAGES = CHECKOUT / "target/packages"
# What the architecture of this machine is called in their names.
ARCHITECTURES = {"x86_64": ("x86_64", "amd64"), "aarch64": ("aarch64", "arm64")}[os.uname().machine]
UNIT = "node-fixer.service"
TIMER = "node-fixer.timer"
WATCH = "node-fixer-watch.service"
# How long the first tick after the timer's start may take, in seconds: until the minute is over, and then until the
# second that the machine ID of the tests decides, the 17th. Each further one comes after a minute.
FIRST_TICK = 80


class Failed(Exception):
    """A test failed; the text says what was expected and what was there."""


def check(held, *told):
    if not held:
        raise Failed("\n".join(str(one) for one in told))


def output(*command, **options):
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, **options).stdout


class Node:
    """A subclass runs commands there: execute(script) gives exit code, stdout and stderr."""

    def wait(self, condition, what, seconds=10, pause=0.05):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if result := condition():
                return result
            time.sleep(pause)
        raise Failed(f"not within {seconds} s: {what}")

    def run(self, script, check=True):
        """Runs a shell script inside; its stdout."""
        code, out, self.stderr = self.execute(script)
        if check and code != 0:
            raise Failed(f"{script}\nexit {code}\n{out}{self.stderr}")
        return out

    def succeeds(self, script):
        try:
            self.run(script)
        except Failed:
            return False
        return True

    def show(self, unit, name):
        return self.run(f"systemctl show -P {name} {unit}").strip()

    def invocation(self):
        """Another one after each start of the service."""
        return self.show(UNIT, "InvocationID")

    def ran_since(self, before):
        return self.invocation() != before and self.show(UNIT, "ActiveState") in ("inactive", "failed")

    def write(self, path, text):
        self.run(f"mkdir -p $(dirname {path}); cat > {path} <<'END'\n{text}\nEND")

    def drop_in(self, text, unit=UNIT):
        """Text none: takes it away again."""
        path = f"/run/systemd/system/{unit}.d/test.conf"
        if text is None:
            self.run(f"rm -f {path}; systemctl daemon-reload")
        else:
            self.write(path, text)
            self.run("systemctl daemon-reload")

    @contextlib.contextmanager
    def journal(self):
        """The list of what is logged meanwhile about node-fixer, by itself or by the manager."""
        self.run("journalctl --sync")
        cursor = self.run("journalctl -n 1 -q --show-cursor | sed -n 's/^-- cursor: //p'").strip()
        lines = []
        yield lines
        self.run("journalctl --sync")
        for line in self.run(f"journalctl -q -o json --after-cursor='{cursor}'").splitlines():
            line = json.loads(line)
            if line.get("_SYSTEMD_UNIT") == UNIT or line.get("UNIT") in (UNIT, TIMER):
                lines.append((int(line["PRIORITY"]), line["MESSAGE"], line.get("SYSLOG_IDENTIFIER")))

    def traces(self):
        """Files (all but those of /proc and /sys), mounts and cgroups: {name: size}. Not what the service cannot write:
        udev's database changes whenever udev has something to do."""
        lines = self.run(r"""find / /run /dev/shm /tmp -xdev -path /run/udev -prune -o -type f ! -path /run/systemd/journal/synced \
                -printf 'file %p\t%s\n' | sort -u
            sed 's/^[^-]* - /mount /' /proc/1/mountinfo | sort | uniq -c | sed 's/^ *\([0-9]*\) \(.*\)/\2\t\1/'
            find /sys/fs/cgroup -type d -printf 'cgroup %p\t\n'""").splitlines()
        return dict(line.rsplit("\t", 1) for line in lines)

    def others_traces(self, seconds):
        """The names of what changes also when node-fixer does nothing."""
        self.run(f"systemctl stop {TIMER} {UNIT}")
        before = self.traces()
        time.sleep(seconds)
        return differences(before, self.traces())

    # A worker node: eth1 has table 2.

    def damage(self):
        self.run("ip route del default table 2; echo 1 > /proc/sys/net/ipv4/conf/eth1/rp_filter")

    def is_repaired(self):
        return (self.run("ip route show default table 2").startswith("default via 10.0.1.1 dev eth1 proto 170")
                and self.run("cat /proc/sys/net/ipv4/conf/eth1/rp_filter").strip() == "2")


DAMAGE_LINES = [
    'changed reconciler="default_routes" command=ip route add default via 10.0.1.1 dev eth1 table 2 proto 170 scope '
    'global metric 4294967295 reason="table 2 has no default route for 10.0.1.10; its only host route is to the gateway 10.0.1.1 on eth1"',
    'changed reconciler="rp_filter" command=sysctl -w net.ipv4.conf.eth1.rp_filter=2 '
    'reason="rp_filter of eth1 is 1, want 2 (loose)"',
]


def repaired_lines():
    return [(5, line, "node-fixer") for line in DAMAGE_LINES]


def built(end):
    """The file for this machine that packaging/build made, whose name ends so."""
    found = [path for path in PACKAGES.glob(f"*{end}") if any(name in path.name for name in ARCHITECTURES)]
    check(len(found) == 1, f"one *{end} is needed, packaging/build makes it:", *found)
    return found[0]


def differences(before, after):
    """The names of traces that are new, gone or of another size."""
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def user_data(url, package, checksum):
    """The example in config/, for this package at this address."""
    example = (CHECKOUT / "config/cloud-init.yaml").read_text()
    text = re.sub(r"url=\S+", f"url='{url}'", example)
    text = re.sub(f"0{{64}}  {re.escape(package)}", f"{checksum}  {package}", text)
    check(text.count(url) == 1 and text.count(checksum) == 1, "the example has no url=, or no checksum of", package)
    return text
