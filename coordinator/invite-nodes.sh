#!/bin/sh
# Writes invitations for node-1 to node-COUNT as files, for nodes on this machine; run again, it renews those not used.
# usage: invite-nodes.sh STATE INVITATIONS COUNT
set -eu
state=$1 invitations=$2 count=$3
umask 077

number=1
while [ "$number" -le "$count" ]; do
    name=node-$number
    part=$invitations/.$name
    code=0
    edgefleet coordinator invite "$name" --folder "$state" >"$part" || code=$?
    case $code in
    0) mv "$part" "$invitations/$name" ;;
    7) rm "$part" ;; # a node has that name; if it missed the answer, it still needs the invitation that it used
    *) rm "$part" && exit "$code" ;;
    esac
    number=$((number + 1))
done
