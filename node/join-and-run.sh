#!/bin/sh
# One of many like containers: runs a node that no other container runs, or makes one from an invitation.
# A node is a folder NODES/NAME, an invitation a file INVITATIONS/NAME; who locks the folder has the name.
# usage: join-and-run.sh NODES INVITATIONS TASK [options of 'edgefleet node run']
set -eu
nodes=$1 invitations=$2 task=$3
shift 3
umask 077

take() { # the lock outlives exec, and ends with the process however it ends
    mkdir -p "$nodes/$1"
    exec 9>"$nodes/$1/container.lock"
    flock --nonblock 9
}

run() {
    exec edgefleet node run --folder "$nodes/$name" "$@"
}

said=
while :; do
    for mark in "$nodes"/*/joined; do
        [ -e "$mark" ] || continue
        name=$(basename "$(dirname "$mark")")
        if take "$name"; then run "$@"; fi
    done
    for file in "$invitations"/*; do
        name=$(basename "$file")
        if ! [ -e "$file" ] || ! take "$name"; then continue; fi
        invitation=$(cat "$file") || continue # used up before we had the lock
        code=0
        echo "$invitation" | edgefleet node enrol - --folder "$nodes/$name" --task "$task" || code=$?
        if [ "$code" -eq 0 ]; then
            touch "$nodes/$name/joined"
            rm -f "$file"
            run "$@"
        fi
        [ "$code" -eq 7 ] || exit "$code" # only a refusal makes another invitation worth trying
        if [ "$(cat "$file")" = "$invitation" ]; then rm -f "$file"; fi
    done
    [ -n "$said" ] || echo "waiting: there is no invitation in $invitations that another container does not use" >&2
    said=yes
    sleep 5
done
