#!/usr/bin/env bash
# The head of a Ray cluster, in the foreground until it is ended or one of its processes dies. Options of `ray start` may
# follow, such as --num-cpus 0 --num-gpus 0 for a head that does no work.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/node.sh"

[ -n "$address" ] || wrong "RAY_HEAD: this machine knows no address of $RAY_HEAD that others can reach; put one there"
# The dashboard takes jobs: it is for this machine alone, and for who comes through ssh.
exec ray start --head "${node[@]}" --node-ip-address "$address" --port 6379 \
    --dashboard-host 127.0.0.1 --dashboard-port 8265 "$@"
