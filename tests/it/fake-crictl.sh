#!/bin/sh
# A crictl with one node's sandboxes in files, and a kubelet: it prints what a real one was recorded to print.
# The caller puts FAKE (its directory) and FIXTURES before this text.
#   $FAKE/ready/ID, $FAKE/notready/ID   sandboxes; the content is the time of creation in nanoseconds
#   $FAKE/log                           every call
#   $FAKE/mode                          how it disappoints; $FAKE/slow: seconds that every call takes
#   $FAKE/no-kubelet                    nothing makes a new sandbox; $FAKE/kubelet-after-stopp: it does not wait for rmp
set -u
while [ $# -gt 0 ]; do
    case $1 in
        --runtime-endpoint | --timeout) shift 2 ;;
        *) break ;;
    esac
done
echo "$*" >>"$FAKE/log"
[ -e "$FAKE/slow" ] && sleep "$(cat "$FAKE/slow")"

stream() { sed -n "/^--- $2\$/,/^--- /{/^--- /d;p;}" "$FIXTURES/$1.txt"; }
recorded() { # name id: prints what was recorded, about this id, and exits as it did
    stream "$1" stdout | sed "s/[0-9a-f]\{64\}/$2/g; s/0123456789abcdef/$2/g" | grep -v '^$'
    stream "$1" stderr | sed "s/[0-9a-f]\{64\}/$2/g; s/0123456789abcdef/$2/g" >&2
    exit "$(sed -n 's/^exit: //p' "$FIXTURES/$1.txt")"
}
item() { # id state created: one pod as recorded
    stream pods-ready stdout | sed -n '/^    {/,/^    }/p' |
        sed "s/\"id\":.*/\"id\": \"$1\",/; s/\"createdAt\":.*/\"createdAt\": \"$3\",/; s/SANDBOX_READY/$2/"
}
kubelet() { # makes another sandbox
    new=$(head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \n')
    date +%s%N >"$FAKE/new.$new"
    mv "$FAKE/new.$new" "$FAKE/ready/$new"
}
list() {
    printf '{ "items": ['
    separator=
    for id in $(ls "$FAKE/ready"); do
        created=$(cat "$FAKE/ready/$id") || continue # another crictl has just stopped it
        printf '%s' "$separator"
        item "$id" SANDBOX_READY "$created"
        separator=,
    done
    [ -e "$FAKE/list-all" ] && for id in $(ls "$FAKE/notready"); do
        printf '%s' "$separator"
        item "$id" SANDBOX_NOTREADY "$(cat "$FAKE/notready/$id")"
        separator=,
    done
    [ -e "$FAKE/resembles" ] && printf '%s' "$separator" && cat "$FAKE/resembles"
    printf '] }\n'
}

case $(cat "$FAKE/mode" 2>/dev/null):$1 in
    fail:*) recorded no-endpoint x ;;
    fail-list:pods) recorded hung-runtime x ;;
    fail-stopp:stopp) recorded hung-runtime x ;;
    fail-rmp:rmp) recorded hung-runtime x ;;
    hang:*)
        sleep 600 &
        echo "$$ $!" >>"$FAKE/pids"
        sleep 600
        ;;
    hang-stopp:stopp) sleep 600 ;;
    garbage:*) printf 'not \033[2J json\n'; exit 0 ;;
    other-json:*) echo '{"items": [{"id": 5}]}'; exit 0 ;;
    evil-id:pods) list | sed 's/"id": "[^"]*"/"id": "--all"/'; exit 0 ;;
    evil-time:pods) list | sed 's/"createdAt": "[^"]*"/"createdAt": "yesterday"/'; exit 0 ;;
    endless:*) while :; do echo aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa; done ;;
    huge:*) head -c 100000000 /dev/zero; exit 0 ;;
    loud:*) head -c 100000000 /dev/zero >&2; exit 1 ;;
    signal:*) kill -SEGV $$ ;;
    leaves-child:pods) sleep 600 & ;;
esac

case $1 in
    pods) list ;;
    stopp)
        [ $# = 2 ] || recorded stopp-without-id x
        if [ -e "$FAKE/ready/$2" ]; then
            mv "$FAKE/ready/$2" "$FAKE/notready/$2"
            [ -e "$FAKE/kubelet-after-stopp" ] && kubelet
            recorded stopp "$2"
        elif [ -e "$FAKE/notready/$2" ]; then
            recorded stopp-again "$2"
        fi
        recorded stopp-unknown "$2"
        ;;
    rmp)
        [ -e "$FAKE/ready/$2" ] && recorded rmp-while-ready "$2"
        [ -e "$FAKE/notready/$2" ] || recorded rmp-unknown "$2"
        [ -e "$FAKE/no-kubelet" ] || kubelet
        rm -f "$FAKE/notready/$2"
        recorded rmp "$2"
        ;;
    *) exit 1 ;;
esac
