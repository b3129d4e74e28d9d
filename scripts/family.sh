#!/usr/bin/env bash
# Every method on digits in four settings, 3 seeds: 168 runs, some 25 minutes on two cores. Started again, it goes on.
#   bash scripts/family.sh runs/family
# Unlabeled images of the largest class: 75, since the smallest class has 115 training images, 40 of which are labeled.
set -euo pipefail
out=${1:?the folder to write to}
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
long_tailed="--data.labels_per_class 40 --data.labeled_imbalance 20 --data.unlabeled_per_class 75 --data.unlabeled_imbalance 20"

compare() {
    debias-ssl compare --config configs/digits.yaml --variants scripts/family.yaml --seeds 0,1,2 --jobs 2 --resume \
        --out "$out/$1" "${@:2}"
}

compare balanced --data.labels_per_class 4
compare same $long_tailed
compare reversed $long_tailed --data.unlabeled_order reversed
compare uniform $long_tailed --data.unlabeled_order uniform
