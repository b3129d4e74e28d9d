#!/usr/bin/env bash
# Every method on digits in four settings, 3 seeds: 324 runs, some 55 minutes on two cores. Started again, it goes on.
#   bash scripts/studies/family.sh runs/family
# Unlabeled images of the largest class: 75, since the smallest class has 115 training images, 40 of which are labeled. CSST, which
# needs 20 validation images a class, gets 55, and FixMatch beside it.
set -euo pipefail
out=${1:?the folder to write to}
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE
long_tailed="--data.labels_per_class 40 --data.labeled_imbalance 20 --data.unlabeled_per_class 75 --data.unlabeled_imbalance 20"

compare() {
    debias-ssl compare --config configs/digits.yaml --seeds 0,1,2 --jobs 2 --resume --out "$out/$1" --variants "${@:2}"
}

all=scripts/studies/family.yaml
compare balanced $all --data.labels_per_class 4
compare same $all $long_tailed
compare reversed $all $long_tailed --data.unlabeled_order reversed
compare uniform $all $long_tailed --data.unlabeled_order uniform

validated=scripts/studies/family_validation.yaml
shorter="$long_tailed --data.unlabeled_per_class 55 --data.validation_per_class 20"
compare balanced_validation $validated --data.labels_per_class 4 --data.validation_per_class 20
compare same_validation $validated $shorter
compare reversed_validation $validated $shorter --data.unlabeled_order reversed
compare uniform_validation $validated $shorter --data.unlabeled_order uniform
