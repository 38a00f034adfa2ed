#!/usr/bin/env bash
# An experiment as three jobs: filter on CPUs, then train on GPUs, then evaluate. Each waits until the one before it
# has succeeded, and is cancelled if that fails. Submitted again, the jobs go on from what is there.
#
#   scripts/slurm/submit.sh exp_dir=experiments/mine scale=medium pool_dir=/data/pool filters=clip_score seeds=[0,1,2]
#
# Run it where `winnow` works (an activated environment is handed on to the jobs), from the folder that relative paths
# start from. Its arguments are winnow's; each goes to the verbs that know it (device= not to the filter, whose job has no
# GPU), and is checked before anything is submitted. Logs: <exp_dir>/logs/slurm-*.out.
#
# What every cluster has its own of comes from environment variables:
#   SBATCH_ACCOUNT, SBATCH_PARTITION, SBATCH_QOS, ...  sbatch's own, for all three jobs
#   WINNOW_CPU_PARTITION, WINNOW_GPU_PARTITION         the partitions of the filter, and of the other two
#   WINNOW_NODES, WINNOW_GPUS                          nodes (1) and GPUs per node (1) to train on; 0 GPUs: on a CPU
#   WINNOW_FILTER_SBATCH, WINNOW_TRAIN_SBATCH,
#   WINNOW_EVALUATE_SBATCH                             other options of sbatch for that job, over those in *.sbatch:
#                                                      "--time=48:00:00 --mem=200G --cpus-per-task=64"
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
exp_dir=
filter=()
train=()
evaluate=()
for option in "$@"; do
  case $option in
    exp_dir=*)
      exp_dir=${option#exp_dir=}
      filter+=("$option") train+=("$option") evaluate+=("$option")
      ;;
    scale=* | pool_dir=* | pool_seed=* | strict=* | workers=*)
      filter+=("$option") train+=("$option") evaluate+=("$option")
      ;;
    filters=* | filters.* | within=* | subset=* | max_missing=* | signals_dir=* | executor=*) filter+=("$option") ;;
    plugins=*) filter+=("$option") evaluate+=("$option") ;;
    seeds=* | device=* | wandb=*) train+=("$option") evaluate+=("$option") ;;
    eval_dir=* | tasks=* | reference=* | curve=*) evaluate+=("$option") ;;
    dry_run=* | model=* | checkpoint=* | out_dir=*)
      echo "submit.sh: ${option%%=*}= is for winnow itself; this submits the three stages of an experiment" >&2
      exit 2
      ;;
    *) train+=("$option") ;; # accumulation=, and what no verb knows: it is refused below
  esac
done
if [[ -z $exp_dir ]]; then
  echo "submit.sh: give exp_dir=, the folder of the experiment; see the top of $here/submit.sh" >&2
  exit 2
fi

# A misspelt option is to be met now, not after hours in a queue.
winnow filter --cfg=job "${filter[@]}" > /dev/null
winnow train --cfg=job "${train[@]}" > /dev/null
winnow evaluate --cfg=job "${evaluate[@]}" > /dev/null

mkdir -p "$exp_dir/logs"
gpus=${WINNOW_GPUS:-1}
# submit NAME DEPENDENCY PARTITION GPUS OPTIONS FILE ARGUMENT...: leave the job's number in $job.
submit() {
  local name=$1 dependency=$2 partition=$3 gpus=$4 options=$5
  shift 5
  local with=(--parsable --output="$exp_dir/logs/slurm-%j-%x.out")
  [[ -z $dependency ]] || with+=(--dependency="$dependency" --kill-on-invalid-dep=yes)
  [[ -z $partition ]] || with+=(--partition="$partition")
  ((gpus == 0)) || with+=(--gpus-per-node="$gpus")
  for option in $options; do with+=("$option"); done
  job=$(sbatch "${with[@]}" "$@")
  job=${job%%;*} # behind a semicolon stands the cluster's name, where there are several
  echo "$name: job $job"
}
submit filter "" "${WINNOW_CPU_PARTITION:-}" 0 "${WINNOW_FILTER_SBATCH:-}" "$here/filter.sbatch" "${filter[@]}"
submit train "afterok:$job" "${WINNOW_GPU_PARTITION:-}" "$gpus" \
  "--nodes=${WINNOW_NODES:-1} ${WINNOW_TRAIN_SBATCH:-}" "$here/train.sbatch" "${train[@]}"
submit evaluate "afterok:$job" "${WINNOW_GPU_PARTITION:-}" "$((gpus > 0 ? 1 : 0))" \
  "${WINNOW_EVALUATE_SBATCH:-}" "$here/evaluate.sbatch" "${evaluate[@]}"
