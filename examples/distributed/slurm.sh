#!/bin/bash
#SBATCH --job-name=sftcore
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
# What Slurm sends to every process before it ends the job: the run saves and stops. The launcher, which is sent it
# too, gives it 30 seconds for that
#SBATCH --signal=TERM@300

# One launcher on each node, which starts a process for each of its GPUs.
#   sbatch examples/distributed/slurm.sh recipe.yaml [KEY=VALUE]...
set -euo pipefail
config=${CONFIG:-examples/distributed/two_nodes.yaml}
gpus=${SLURM_GPUS_PER_NODE:-8}
gpus=${gpus##*:}  # of "a100:8" the number
address=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / gpus))

# Prepared rows are kept under $SFTCORE_CACHE: on a disk that all nodes share, one of them prepares for all
export SFTCORE_CACHE=${SFTCORE_CACHE:-$HOME/.cache/sftcore}

# \$SLURM_NODEID is read on each node
srun --kill-on-bad-exit=1 bash -c "exec accelerate launch --config_file '$config' \
  --num_machines $SLURM_NNODES --num_processes $((SLURM_NNODES * gpus)) --machine_rank \$SLURM_NODEID \
  --main_process_ip '$address' --main_process_port ${PORT:-29500} \
  -m sftcore train \"\$@\"" sftcore "$@" resume_from_checkpoint=auto
