#!/usr/bin/env bash
# What a GPU has to show, in one command, for a machine with one NVIDIA GPU and no network; docs/performance.md says how to read it.
#   bash scripts/gpu/gpu_evidence.sh --minutes 120                        # started again, it goes on
#   bash scripts/gpu/gpu_evidence.sh --device cpu --steps 2 --minutes 3   # a trial of all parts
# It needs Python 3.11 or later, torch, this folder, and the images in data/cifar10-jpeg/train and data/cifar10-jpeg/test, in a folder
# for each class (or in --data FOLDER). What is missing it says first. Results go to runs/gpu (or --out FOLDER).
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python3}" scripts/gpu/gpu_evidence.py "$@"
