#!/usr/bin/env bash
set -e
nproc_per_node=2

ARGS=(
    --model tiny
    --tuner_type full             # all weights
    --dataset talk.jsonl
    --val_dataset talk-eval.jsonl
    --torch_dtype float32
    --truncation_strategy right
)
NPROC_PER_NODE=$nproc_per_node \
swift sft "${ARGS[@]}" \
    --num_train_epochs 2 \
    --learning_rate 1e-5 \
    --max_length 128 \
    --attn_impl flash_attn \
    --packing true \
    --deepspeed zero2 \
    --use_liger_kernel true \
    --loss_scale default \
    --report_to wandb \
    --lazy_tokenize true \
    --output_dir output/swift-full
