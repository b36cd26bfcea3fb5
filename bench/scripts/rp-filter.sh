#!/bin/sh
# Makes the reverse-path filter loose on uplinks, on pod interfaces and on those to come.
sysctl -a 2>/dev/null |
    sed -nE 's/^(net\.ipv4\.conf\.(default|eth[0-9]+|eni[0-9a-f]+)\.rp_filter) = [01]$/\1/p' |
    while read -r key; do
        sysctl -q -w "$key=2"
    done
