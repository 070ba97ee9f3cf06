#!/usr/bin/env bash
# A worker of a Ray cluster, in the foreground until it is ended or loses the head; its address is the one that the route
# to the head has. Options of `ray start` may follow, such as --num-gpus 4.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR
. "$(dirname "$0")/node.sh"

exec ray start "${node[@]}" --address "$RAY_HEAD:6379" "$@"
