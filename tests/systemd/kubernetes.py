"""Runs the pods of config/kubernetes on a node of the tests, as kubelet would: by the container runtime's own interface,
with the rights that the manifests give them and no others."""

import json
import pathlib
import shutil
import subprocess
import tempfile

from node import CHECKOUT, check, output

# What kubelet gives every container that is not privileged (k8s.io/kubernetes/pkg/securitycontext).
MASKED = ["/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
          "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"]
READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]

CRICTL = "/inside/crictl-of-containerd --runtime-endpoint unix:///run/containerd/containerd.sock --timeout 60s"


def manifests(*components, files=None):
    """What `kubectl apply -k` would send: the base, with these components, and with these files in the ConfigMap."""
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        shutil.copytree(CHECKOUT / "config/kubernetes", work / "kubernetes")
        for name, text in (files or {}).items():
            (work / name).write_text(text)
        mine = {"resources": ["kubernetes/base"], "components": [f"kubernetes/{name}" for name in components]}
        if files:
            mine["configMapGenerator"] = [{"name": "node-fixer", "namespace": "node-fixer", "behavior": "merge",
                                           "files": list(files)}]
        (work / "kustomization.yaml").write_text(json.dumps(mine))
        text = output(output(CHECKOUT / "tests/newer-kubectl").strip(), "kustomize", work)
    # Debian's Python has yaml, and another one that is first on PATH may not.
    as_json = "import json, sys, yaml; print(json.dumps(list(yaml.safe_load_all(sys.stdin))))"
    return json.loads(output("/usr/bin/python3", "-c", as_json, input=text))


def one(manifests, kind, name):
    found = [it for it in manifests if it["kind"] == kind and it["metadata"]["name"] == name]
    check(len(found) == 1, f"one {kind} {name}:", *found)
    return found[0]


class Pod:
    """A pod of the DaemonSet on this node."""

    def __init__(self, node, manifests, name, change=lambda container: None):
        self.node, self.name = node, name
        self.attempt = 0
        pod = one(manifests, "DaemonSet", "node-fixer")["spec"]["template"]["spec"]
        check(pod["hostNetwork"] is True, "it is not in the node's network")
        self.container, = pod["containers"]
        change(self.container)
        self.volumes = {volume["name"]: volume for volume in pod["volumes"]}
        self.maps = {it["metadata"]["name"]: it["data"] for it in manifests if it["kind"] == "ConfigMap"}
        self.sandbox = {
            "metadata": {"name": name, "uid": name, "namespace": "node-fixer", "attempt": 0},
            "log_directory": f"/var/log/pods/{name}", "dns_config": {"servers": ["192.0.2.1"]}, "labels": {}, "annotations": {},
            "linux": {"security_context": {"namespace_options": {"network": 2}}},
        }
        node.run(f"mkdir -p /var/log/pods/{name} /pods/{name}")
        node.write(f"/pods/{name}/sandbox.json", json.dumps(self.sandbox))
        # The runtime may not have taken note of its image yet.
        self.id = node.wait(lambda: node.run(f"{CRICTL} runp /pods/{name}/sandbox.json", check=False).strip(), "a sandbox", 20, 0.5)

    def source(self, volume):
        """The directory of the node that is behind a volume."""
        known = {"name"}
        if "hostPath" in volume:
            path, kind = volume["hostPath"]["path"], volume["hostPath"]["type"]
            test = {"DirectoryOrCreate": f"mkdir -p {path}", "Directory": f"test -d {path}"}[kind]
            self.node.run(test)
            known.add("hostPath")
        else:
            path = f"/pods/{self.name}/{volume['name']}"
            # As kubelet lays it out, so that all of it changes at once.
            self.node.run(f"mkdir -p {path}/..1; ln -sfn ..1 {path}/..data")
            for name, text in self.maps[volume["configMap"]["name"]].items():
                self.node.write(f"{path}/..1/{name}", text)
                self.node.run(f"ln -sf ..data/{name} {path}/{name}")
            known.add("configMap")
        check(volume.keys() == known, "not translated:", volume)
        return path

    def config(self, args, mounts):
        rights = dict(self.container["securityContext"])
        capabilities = rights.pop("capabilities")
        check(rights.pop("seccompProfile") == {"type": "RuntimeDefault"}, "another seccomp profile")
        context = {
            "namespace_options": {"network": 2}, "masked_paths": MASKED, "readonly_paths": READ_ONLY, "seccomp": {"profile_type": 0},
            "capabilities": {"add_capabilities": capabilities.get("add", []), "drop_capabilities": capabilities.get("drop", [])},
            "privileged": rights.pop("privileged"), "no_new_privs": not rights.pop("allowPrivilegeEscalation"),
            "readonly_rootfs": rights.pop("readOnlyRootFilesystem"),
            "run_as_user": {"value": rights.pop("runAsUser")}, "run_as_group": {"value": rights.pop("runAsGroup")},
        }
        check(not rights, "not translated:", rights)
        own = [{"container_path": mount["mountPath"], "host_path": self.source(self.volumes[mount["name"]]),
                "readonly": mount.get("readOnly", False),
                "propagation": {"None": 0, "HostToContainer": 1}[mount.get("mountPropagation", "None")]} for mount in self.container["volumeMounts"]]
        return {
            "metadata": {"name": "node-fixer", "attempt": self.attempt}, "image": {"image": self.container["image"]},
            "args": args, "mounts": own + mounts, "log_path": f"{self.attempt}.log", "linux": {"security_context": context},
        }

    def start(self, args=None, mounts=()):
        """Starts its container, with other arguments if there are any; its id."""
        self.attempt += 1
        config = self.config(self.container["args"] if args is None else args, list(mounts))
        self.node.write(f"/pods/{self.name}/container.json", json.dumps(config))
        files = f"/pods/{self.name}/container.json /pods/{self.name}/sandbox.json"
        self.running = self.node.run(f"{CRICTL} create {self.id} {files}").strip()
        self.node.run(f"{CRICTL} start {self.running}")
        return self.running

    def status(self):
        return json.loads(self.node.run(f"{CRICTL} inspect {self.running}"))

    def log(self):
        return self.node.run(f"cut -d ' ' -f 4- /var/log/pods/{self.name}/{self.attempt}.log")

    def run(self, *args, mounts=()):
        """Runs the program with these arguments to its end; its exit code and what it said."""
        self.start(list(args), mounts)
        self.node.wait(lambda: self.status()["state"] == 2, f"{args} ends", 90, 0.2)
        code, said = self.status()["exit_code"], self.log()
        self.node.run(f"{CRICTL} rm {self.running}")
        return code, said

    def probe(self, name):
        """Whether kubelet would take the container for ready, or for alive; what the probe said."""
        command = " ".join(self.container[name]["exec"]["command"])
        held = self.node.succeeds(f"{CRICTL} exec -s {self.running} -- {command}")
        return held, self.node.stderr

    def end(self):
        """Ends whatever of it still runs."""
        self.node.run(f"{CRICTL} stopp {self.id}; {CRICTL} rmp {self.id}")


def prepare(layer):
    """A container runtime, with the image of node-fixer beside it."""
    image, = (CHECKOUT / "target/packages").glob("*.oci.tar")
    (layer / "inside").mkdir(parents=True)
    shutil.copy(image, layer / "inside/node-fixer.oci.tar")
    with tempfile.TemporaryDirectory() as work:
        output(CHECKOUT / "tests/containerd/image.sh", work)
        shutil.copy(f"{work}/image.tar", layer / "inside/pause.tar")
    crictl = CHECKOUT / "target/debug/examples/crictl"
    if not crictl.exists():
        subprocess.run(["cargo", "build", "--quiet", "--locked", "--example", "crictl"], cwd=CHECKOUT, check=True)
    shutil.copy(crictl, layer / "inside/crictl-of-containerd")
    (layer / "etc/containerd").mkdir(parents=True)
    # The machine's file system is an overlay in memory already, and only some of its sysctls can be written.
    (layer / "etc/containerd/config.toml").write_text("""version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/pause:1"
disable_apparmor = true
restrict_oom_score_adj = true
disable_cgroup = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
""")


def runtime(node):
    # As systemd has it outside of containers.
    node.run("mount --make-rshared /; systemctl start containerd; for image in pause.tar node-fixer.oci.tar; do "
             "ctr -n k8s.io images import --no-unpack /inside/$image; done")
