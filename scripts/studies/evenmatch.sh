#!/usr/bin/env bash
# EvenMatch beside its rivals: CIFAR-10 JPEG in three settings, 2 seeds, and digits in four, 10 seeds that it was not made on. Some
# 75 minutes on two cores. Started again, it goes on.
#   bash scripts/studies/evenmatch.sh runs/evenmatch
set -euo pipefail
out=${1:?the folder to write to}
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

compare() {
    debias-ssl compare --variants scripts/studies/evenmatch.yaml --jobs 2 --resume --out "$out/$1" --config "${@:2}"
}

long_tailed="--data.labels_per_class 40 --data.labeled_imbalance 20 --data.unlabeled_per_class 75 --data.unlabeled_imbalance 20"
compare digits_balanced configs/digits.yaml --seeds 10,11,12,13,14,15,16,17,18,19
for order in same uniform reversed; do
    compare "digits_$order" configs/digits.yaml --seeds 10,11,12,13,14,15,16,17,18,19 $long_tailed --data.unlabeled_order $order
done
for order in same uniform reversed; do
    compare "cifar_$order" configs/cifar10_jpeg_lt.yaml --seeds 0,1 --data.unlabeled_order $order
done
