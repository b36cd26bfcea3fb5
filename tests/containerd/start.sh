#!/bin/sh
# First process of the namespaces (mounts, process ids) that a test's containerd stands in: start.sh DIRECTORY
# It ends, and with it all that runs here, when its stdin is closed: at the latest with the test, however that ends.
set -eu
PATH="$PATH:/usr/sbin:/sbin"
type containerd runc

# Shims have their sockets at a fixed place below; what they leave there goes with this.
mount -t tmpfs run /run

# No traces in the machine's cgroups: they are read-only here, and runc is told not to mind. In the namespace of a user
# other than root there is no group 5 to own the terminals.
grep -E '^[^ ]+ [^ ]+ cgroup2? ' /proc/self/mounts | while read -r _ mounted _; do
    mount -o remount,bind,ro "$mounted"
done
cat >"$1/runc" <<END
#!/bin/sh
# Called in the directory of the sandbox.
[ ! -e config.json ] || sed -i 's/,"gid=5"//' config.json
exec $(command -v runc) --rootless=true "\$@"
END
chmod +x "$1/runc"

# What a shell starts in the background has no stdin: it is passed on as 3.
exec 3<&0
containerd --config "$1/config.toml" 3<&- &
containerd=$!
{ read -r _ <&3 || kill -KILL "$containerd"; } &
wait "$containerd"
