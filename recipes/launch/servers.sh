#!/usr/bin/env bash
# Generation on separate GPUs: a vLLM server on each GPU of this node, and the setting that a run gives for them.
#   HOST=10.0.0.2 recipes/launch/servers.sh recipes/paper-7b.yaml rollout.vllm.gpu_memory_utilization=0.9
# Whoever reaches these ports can replace the weights: keep them on a private network.
set -euo pipefail
host=${HOST:-127.0.0.1}
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}
first=${PORT:-8000}
urls=()
for ((gpu = 0; gpu < gpus; gpu++)); do
  urls+=("http://$host:$((first + gpu))")
done
servers="[$(IFS=,; echo "${urls[*]}")]"
echo "srft train ... rollout.engine=vllm-server 'rollout.servers=$servers'"
trap 'kill $(jobs -p) 2>/dev/null' EXIT
for ((gpu = 0; gpu < gpus; gpu++)); do
  CUDA_VISIBLE_DEVICES=$gpu srft serve "$@" rollout.engine=vllm-server "rollout.servers=$servers" \
    --host "$host" --port "$((first + gpu))" &
done
wait
