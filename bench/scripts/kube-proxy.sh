#!/bin/sh
# Restarts kube-proxy when the uplinks are not those that the last run saw.
remembered=/run/kube-proxy-uplinks
uplinks=$(ip -o link | sed -n 's/^[0-9]*: \(eth[0-9]*\)[@:].*/\1/p')

if [ ! -e "$remembered" ]; then
    echo "$uplinks" >"$remembered"
elif [ "$uplinks" != "$(cat "$remembered")" ]; then
    pod=$(crictl pods --namespace kube-system --label k8s-app=kube-proxy --state ready --quiet)
    crictl stopp "$pod" && crictl rmp "$pod" && echo "$uplinks" >"$remembered"
fi
