#!/bin/bash
#SBATCH --gres=gpu:2
MODEL="tiny"
DATA=prompts.jsonl
rm -f run.log

accelerate launch --config_file accelerate.yaml \
  trl/scripts/sft.py \
  --model_name_or_path "$MODEL" \
  --dataset_name ${DATA} \
  --learning_rate 2.0e-5 \
  --max_steps 4 \
  --per_device_train_batch_size 2 \
  --max_length 128 \
  --completion_only_loss \
  --no_gradient_checkpointing \
  --dtype float32 \
  --lr_scheduler_type constant_with_warmup \
  --warmup_steps 2 \
  --logging_steps 1 \
  --run_name "run-`date +%F`" \
  --output_dir outputs/trl-accelerate \
  --report_to none 2>&1 | tee run.log
