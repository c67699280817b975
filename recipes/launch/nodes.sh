#!/usr/bin/env bash
# Several nodes: run this on each of them, with the first one's address. The run directory has to be on a disk that
# all nodes see. Weights are sharded inside a node and copied over nodes, so that gathering stays on the fast links.
#   MASTER=10.0.0.1 NODES=4 recipes/launch/nodes.sh recipes/paper-7b.yaml run.dir=/shared/runs/paper
# Prompts of a step are divided over all processes: train.prompts_per_step has to reach for them.
set -euo pipefail
: "${MASTER:?address of the first node}" "${NODES:?number of nodes}"
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8} TOKENIZERS_PARALLELISM=false
exec torchrun --nnodes "$NODES" --nproc-per-node "$gpus" \
  --rdzv-backend c10d --rdzv-id "${RUN_ID:-srft}" --rdzv-endpoint "$MASTER:${PORT:-29500}" \
  -m srft train "$@" "parallel.replicate=$NODES"
