#!/usr/bin/env bash
# Fetches what gpu_evidence.sh may find missing, as wheels, for a machine without a network: Linux on x86-64, Python 3.12.
# Run it where there is a network:
#   bash scripts/gpu/gpu_wheels.sh wheels
#   PYTHON_VERSION=3.11 bash scripts/gpu/gpu_wheels.sh wheels
# Then copy the folder to the machine; gpu_evidence.sh says there which of them to install, and how.
# Versions are those that the package is tested with. torch and torchvision belong to one another and to the driver over there,
# and are not fetched.
set -euo pipefail
out=${1:?the folder to write to}
cd "$(dirname "$0")/../.."
mkdir -p "$out"
# Of the versions in pyproject.toml: what is for developers alone weighs a lot, so that the heaviest of it stay here.
wheels=$(python3 -c "
import re, tomllib
pins = tomllib.load(open('pyproject.toml', 'rb'))['tool']['uv']['constraint-dependencies']
print(*(pin for pin in pins if not re.match('torch|nodejs|pyright|pytest|ruff|transformers|tensorboard|hypothesis|grpcio', pin)))
")
platforms=(manylinux2014 manylinux_2_17 manylinux_2_24 manylinux_2_27 manylinux_2_28 manylinux_2_34)
python3 -m pip download --quiet --no-deps --only-binary=:all: --implementation cp --python-version "${PYTHON_VERSION:-3.12}" \
    $(printf -- "--platform=%s_x86_64 " "${platforms[@]}") --dest "$out" $wheels
echo "$(ls "$out" | wc -l) wheels in $out, $(du -sh "$out" | cut -f1)"
