# shellcheck shell=bash
# What head.sh and worker.sh have in common; both read it.

wrong() {
    echo "error: $*" >&2
    exit 2
}

command -v ray > /dev/null || wrong "PATH: no ray on it; put the bin of the environment of 'make setup' first"
[ -n "${RAY_HEAD:-}" ] || wrong "RAY_HEAD: not set; it is the head's name or address, as the workers see it"

# Debian lets a machine know its own name by 127.0.1.1, where no other finds it: neither Ray nor gloo is to take that.
address=$(getent ahosts "$RAY_HEAD" | awk '$1 !~ /^(127\.|::1$)/ { print $1; exit }') || true
if [ -z "${GLOO_SOCKET_IFNAME:-}" ] && [ -n "$address" ] && getent ahosts "$(hostname)" | head -n 1 | grep -q '^127\.'; then
    GLOO_SOCKET_IFNAME=$(ip -o address show | awk -v own="$address" '{ sub("/.*", "", $4) } $4 == own { print $2 }')
    : "${GLOO_SOCKET_IFNAME:=$(ip -o route get "$address" | sed -n 's/.* dev \([^ ]*\).*/\1/p')}"
    export GLOO_SOCKET_IFNAME
fi

# Whoever reaches Ray's ports can run anything as this user, but for the token.
token=${RAY_AUTH_TOKEN_PATH:-$HOME/.ray/auth_token}
[ -s "$token" ] || wrong "RAY_AUTH_TOKEN_PATH: no token in $token; 'ray get-auth-token --generate' makes one, for all machines"
[ -z "$(find -L "$token" -perm /077)" ] || wrong "RAY_AUTH_TOKEN_PATH: others may read $token; chmod 600 it"
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token

ulimit -Sn "$(ulimit -Hn)" # Ray opens many files

# Fixed, so that a firewall can name them, as are those of head.sh; gloo and NCCL, between workers, pick theirs.
# shellcheck disable=SC2034
node=(
    --block --disable-usage-stats
    --node-manager-port 6380 --object-manager-port 6381
    --runtime-env-agent-port 6382 --dashboard-agent-grpc-port 6383
    --dashboard-agent-listen-port 52365 --metrics-export-port 8080
    --min-worker-port 10002 --max-worker-port 10999
)
