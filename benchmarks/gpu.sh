#!/usr/bin/env bash
# Everything that is to be known of speed on one GPU, in less than ten minutes: inference and training of ViT-S and
# ViT-B, eager and compiled, beside timm and transformers; attention implementations; fp16; memory; training from
# shards; translation. Needs the checkout, torch, transformers, timm and accelerate; without `datasets` the training
# from shards is left out.
#
#     benchmarks/gpu.sh [--output benchmarks/results/gpu_NAME.json] [--parts inference memory ...]
#     benchmarks/gpu.sh --tiny     # the same on a CPU, with sizes that tell nothing
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" benchmarks/gpu.py "$@"
