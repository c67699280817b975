#!/usr/bin/env bash
# One node: as many processes as it has GPUs, each with a shard of the weights and its own engine.
#   recipes/launch/node.sh recipes/paper-7b.yaml run.dir=runs/paper
# Started again with --resume it continues from the newest whole checkpoint.
set -euo pipefail
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8} TOKENIZERS_PARALLELISM=false
exec torchrun --standalone --nproc-per-node "$gpus" -m srft train "$@"
