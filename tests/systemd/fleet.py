"""What fleets install node-fixer by: package repositories, and Ansible."""

import os
import pathlib
import shutil
import subprocess
import tempfile

from node import CHECKOUT, PACKAGES, output, write

ANSIBLE = "2.19.14"


def cache():
    return pathlib.Path(os.environ.get("NODE_FIXER_TEST_CACHE")
                        or os.path.join(os.environ.get("XDG_CACHE_HOME", "/var/cache"), "node-fixer-tests"))


def repositories(layer):
    """Signed repositories of apt and dnf below /srv, as packaging/repository makes them."""
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "GNUPGHOME": home, "GPG_KEY": "test@example.org"}
        gpg = ["gpg", "--batch", "--quiet", "--passphrase", ""]
        subprocess.run([*gpg, "--quick-generate-key", environment["GPG_KEY"], "ed25519", "sign"], env=environment, check=True,
                       stderr=subprocess.DEVNULL)
        (layer / "srv").mkdir()
        # Two architectures, if both were built: each machine finds its own.
        output(CHECKOUT / "packaging/repository", PACKAGES, layer / "srv/packages", env=environment)
        key = subprocess.run([*gpg, "--export"], env=environment, check=True, stdout=subprocess.PIPE).stdout
        (layer / "srv/packages/node-fixer.gpg").write_bytes(key)
        armored = output(*gpg, "--armor", "--export", env=environment)
        (layer / "srv/packages/node-fixer.asc").write_text(armored)
    write(layer / "srv/apt.list", "deb [signed-by=/srv/packages/node-fixer.gpg] file:/srv/packages/apt stable main\n")
    write(layer / "etc/yum.repos.d/node-fixer.repo", """[node-fixer]
name=node-fixer
baseurl=file:///srv/packages/rpm/$basearch
repo_gpgcheck=1
gpgcheck=0
gpgkey=file:///srv/packages/node-fixer.asc
[system]
name=what a Red Hat system has
baseurl=file:///srv/system
gpgcheck=0
""")
    # rpm's database here knows nothing of Debian's systemd.
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        write(work / "systemd.spec", "Name: systemd\nVersion: 252\nRelease: 1\nSummary: the one that is here\nLicense: LGPL\n"
              "BuildArch: noarch\nProvides: /bin/sh\n%description\nNothing.\n%files\n")
        subprocess.run(["rpmbuild", "--quiet", "-bb", "--define", f"_topdir {work}", work / "systemd.spec"], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        shutil.copytree(work / "RPMS/noarch", layer / "srv/system")
    output("createrepo_c", "--quiet", layer / "srv/system")


def ansible(layer):
    """ansible-core from its registry, to be run on the machine itself, and the role."""
    installed = cache() / f"ansible-core-{ANSIBLE}"
    if not (installed / "ansible").exists():
        shutil.rmtree(installed, ignore_errors=True)
        # For the Python of the machine.
        subprocess.run(["python3", "-m", "pip", "install", "--quiet", "--no-compile", "--only-binary=:all:", "--python-version", "3.11",
                        "--target", installed, f"ansible-core=={ANSIBLE}"], check=True)
    shutil.copytree(installed, layer / "inside/ansible", dirs_exist_ok=True)
    shutil.copytree(CHECKOUT / "config/ansible", layer / "inside/playbook", dirs_exist_ok=True)
