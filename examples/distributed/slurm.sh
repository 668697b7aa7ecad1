#!/bin/bash
#SBATCH --job-name=sftcore
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
# Slurm sends SIGTERM to every process this many seconds before it ends the job, so that the run saves and stops. The
# launcher gets the signal too, and gives the run 30 seconds for that.
#SBATCH --signal=TERM@300

# This starts one launcher on each node, which starts a process for each GPU of the node.
#   sbatch examples/distributed/slurm.sh recipe.yaml [KEY=VALUE]...
set -euo pipefail
config=${CONFIG:-examples/distributed/two_nodes.yaml}
gpus=${SLURM_GPUS_PER_NODE:-8}
gpus=${gpus##*:}  # the number in "a100:8"
address=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
export OMP_NUM_THREADS=$((SLURM_CPUS_PER_TASK / gpus))

# Prepared rows are kept in $SFTCORE_CACHE. If it is on a disk shared by all nodes, one node prepares the rows for all.
export SFTCORE_CACHE=${SFTCORE_CACHE:-$HOME/.cache/sftcore}

# \$SLURM_NODEID is evaluated on each node
srun --kill-on-bad-exit=1 bash -c "exec accelerate launch --config_file '$config' \
  --num_machines $SLURM_NNODES --num_processes $((SLURM_NNODES * gpus)) --machine_rank \$SLURM_NODEID \
  --main_process_ip '$address' --main_process_port ${PORT:-29500} \
  -m sftcore train \"\$@\"" sftcore "$@" resume_from_checkpoint=auto
