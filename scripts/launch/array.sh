#!/usr/bin/env bash
# One comparison as a SLURM array. Each task takes runs that no other task has, and the last one writes table and page:
#   sbatch --array=0-7 scripts/launch/array.sh compare --config configs/digits.yaml --methods FixMatch,DebiasPL \
#     --seeds 0,1,2,3,4 --out shared/cmp
# In the same way features or labels of one list of images, shard by shard:
#   sbatch --array=0-7 scripts/launch/array.sh label --images images --classes classes.txt --model ViT-B-32-quickgelu \
#     --pretrained openai --out shared/labels
#SBATCH --job-name=debias-ssl
#SBATCH --ntasks=1
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
# The folder must be on a file system that shares its locks; docs/scale.md says how to try that.
# A task that SLURM stops keeps where its run is. Another task may take the run over; this one is queued again.
set -uo pipefail
usage="usage: sbatch --array=0-7 array.sh compare|features|label FLAG ..."
job=${1:?$usage}
# A GPU does not stand idle for runs that other tasks train.
further=(--wait false)
if [ "$job" = compare ]; then
  further+=(--resume)
fi
srun debias-ssl "$job" "${@:2}" "${further[@]}"
status=$?
case $status in
  # What is left is in the hands of other tasks.
  75) status=0 ;;
  143) scontrol requeue "$SLURM_JOB_ID" ;;
esac
exit "$status"
