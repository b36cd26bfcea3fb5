#!/bin/sh
# Gives every policy table that a pod or an uplink is sent to its default route back, by way of the
# gateway to which the table still has a host route.
ip rule show |
    sed -n 's/^[0-9]*:[[:space:]]*from [0-9.]* lookup \([0-9]*\).*/\1/p' |
    sort -u |
    while read -r table; do
        ip route show table "$table" | grep -q '^default ' && continue
        ip route show table "$table" scope link |
            while read -r gateway _ device _; do
                ip route add default via "$gateway" dev "$device" table "$table"
            done
    done
