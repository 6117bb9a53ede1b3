#!/bin/bash
# Pretraining on several machines without a scheduler: start this on each of them, the first argument being its number.
#     NODES=2 HEAD=host0 bash pipelines/cluster/torchrun.sh 0        # on host0
#     NODES=2 HEAD=host0 bash pipelines/cluster/torchrun.sh 1        # on the other
# A window of 1,048,576 bases goes over the GPUs of a machine. Given again, it continues from the last checkpoint.
set -euo pipefail
node=$1
out=${OUT:-runs/hg38}
resume=()
if [ -f "$out/config.yaml" ]; then resume=(--resume); fi
exec torchrun --nnodes "${NODES:-1}" --node-rank "$node" --nproc-per-node "${GPUS:-8}" \
    --rdzv-backend static --master-addr "${HEAD:-127.0.0.1}" --master-port "${PORT:-29500}" \
    -m dnamamba.pretrain --genome "${GENOME:-hg38.fa.gz}" --model.preset 41m --length 1048576 \
    --batch_tokens "${BATCH:-4194304}" --context_parallel "${GPUS:-8}" --out "$out" "${resume[@]}"
