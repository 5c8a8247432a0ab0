#!/bin/bash
# A Ray cluster of one Slurm allocation, and a sweep on it:
#
#     sbatch deploy/slurm-sweep.sh sweep.toml --place /shared/sweep
#
# nybble[ray] must be installed on every node; models, text and place lie where all nodes see them.
#SBATCH --job-name=nybble-sweep
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --mem=64G
#SBATCH --time=24:00:00
# A lost node costs its groups a second try, not the job; a requeued job goes on where it was.
#SBATCH --no-kill
#SBATCH --requeue

set -euo pipefail

(($# > 0)) || { echo "usage: sbatch slurm-sweep.sh SWEEP.toml [OPTIONS OF nybble sweep]" >&2; exit 2; }
mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]} # this script runs there
others=$((${#nodes[@]} - 1))
port=$((20000 + SLURM_JOB_ID % 10000)) # other jobs may have a Ray of their own on this node
address="$head:$port"

# Ray would take all that the node has. A tenth of the memory is left to Ray and the system.
node=(--num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus "${SLURM_GPUS_ON_NODE:-0}" --block)
if [[ -n ${SLURM_MEM_PER_NODE:-} ]]; then # MiB; not set with --mem-per-cpu
    node+=(--memory $((SLURM_MEM_PER_NODE * 1024 * 1024 * 9 / 10)))
fi
export RAY_TMPDIR="/tmp/ray-$SLURM_JOB_ID" # sockets need a short path on a local disk
mkdir -p "$RAY_TMPDIR"
# Else whoever reaches the port could run code as you.
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token

finish() {
    jobs -p | xargs -r kill 2>/dev/null || true
    wait
    rm -rf "$RAY_TMPDIR"
}
trap finish EXIT
trap 'exit 143' TERM

srun --overlap --export=ALL --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --port "$port" --include-dashboard false "${node[@]}" &
for _ in {1..120}; do
    (exec 3<>"/dev/tcp/$head/$port") 2>/dev/null && break
    sleep 1
done
if ((others > 0)); then
    srun --overlap --export=ALL --nodes="$others" --ntasks="$others" --exclude="$head" \
        ray start --address "$address" "${node[@]}" &
fi

nybble sweep "$@" --ray "$address"
