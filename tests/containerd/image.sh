#!/bin/sh
# Makes image.tar, the image localhost/pause:1 that every sandbox of the tests runs: image.sh DIRECTORY
# All that is in it waits until it is ended.
set -eu
cd "$1"
mkdir rootfs
cc -static -Os -s -o rootfs/pause -x c - <<END
#include <unistd.h>
int main(void) { for (;;) pause(); }
END
tar --owner=0 --group=0 -C rootfs -cf layer.tar pause
sum=$(sha256sum layer.tar | cut -d ' ' -f 1)
case $(uname -m) in
    aarch64) architecture=arm64 ;;
    *) architecture=amd64 ;;
esac
cat >image.json <<END
{"architecture": "$architecture", "os": "linux", "config": {"Entrypoint": ["/pause"]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$sum"]}}
END
cat >manifest.json <<END
[{"Config": "image.json", "RepoTags": ["localhost/pause:1"], "Layers": ["layer.tar"]}]
END
tar -cf image.tar manifest.json image.json layer.tar
