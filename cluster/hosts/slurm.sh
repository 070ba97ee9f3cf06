#!/usr/bin/env bash
# One of our jobs on a Ray cluster of its own, for as long as Slurm lends the machines. From the root of a clone that they
# share, with its environment (`make setup`):
#
#   sbatch --nodes 4 --gpus-per-node 8 cluster/hosts/slurm.sh jobs/train.py --recipe imagenet-resnet50-sns \
#       --data.root /shared/imagenet --storage.path /shared/runs --workers.num 32 --workers.cpus 6
#
# takes 4 machines of 8 GPUs and 64 cores: 192 cores are the workers', and the recipe wants 32 beside them for decoding.
#SBATCH --job-name=distsens
#SBATCH --nodes=2
#SBATCH --exclusive
#SBATCH --signal=B:TERM@120
# Two minutes before the time is up, the job is asked to end: the run stays resumable.
set -euo pipefail
cd "$SLURM_SUBMIT_DIR"
export PATH=$PWD/.venv/bin:$PATH

mapfile -t machines < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export RAY_HEAD=${machines[0]} # where this script runs, too

# A token for this cluster alone.
RAY_AUTH_TOKEN_PATH=$(mktemp "$HOME/.ray-token-$SLURM_JOB_ID-XXXXXX")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"; kill $(jobs -p) 2> /dev/null || true' EXIT
python -c 'import secrets; print(secrets.token_hex(32))' > "$RAY_AUTH_TOKEN_PATH"

# Wait until the Ray node on a machine is up; the first argument is the step that starts it.
up() {
    until curl --silent --fail --max-time 5 --output /dev/null "http://$2:52365/api/healthz"; do
        kill -0 "$1" 2> /dev/null || exit 1 # it has said why
        sleep 1
    done
}

# A Ray node has its machine's part of the job to itself, as a step of one task would not by default.
step=(srun --overlap --cpu-bind=none --cpus-per-task="$SLURM_CPUS_ON_NODE")
"${step[@]}" --nodes=1 --ntasks=1 --nodelist="$RAY_HEAD" cluster/hosts/head.sh &
up $! "$RAY_HEAD"
if [ ${#machines[@]} -gt 1 ]; then
    others=$((${#machines[@]} - 1))
    "${step[@]}" --nodes=$others --ntasks=$others --exclude="$RAY_HEAD" cluster/hosts/worker.sh &
    workers=$!
    for machine in "${machines[@]:1}"; do up $workers "$machine"; done
fi

RAY_ADDRESS=$RAY_HEAD:6379 python "$@" &
job=$!
trap 'kill -TERM $job' TERM
wait $job && code=0 || code=$?
while kill -0 $job 2> /dev/null; do # a signal has ended the waiting, not the job
    wait $job && code=0 || code=$?
done
exit "$code"
