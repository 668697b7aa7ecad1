# LoRA on conversations
MODEL=tiny
OUT=output/swift-lora
export WANDB_API_KEY=not-a-real-key-0123456789
CUDA_VISIBLE_DEVICES=0 \
swift sft \
    --model $MODEL \
    --train_type lora \
    --dataset 'talk.jsonl#30' \
    --torch_dtype bfloat16 \
    --num_train_epochs 1 \
    --per_device_train_batch_size 2 \
    --per_device_eval_batch_size 1 \
    --learning_rate 1e-4 \
    --lora_rank 4 \
    --target_modules all-linear \
    --gradient_accumulation_steps 4 \
    --eval_steps 50 \
    --save_steps 50 \
    --save_total_limit 2 \
    --logging_steps 5 \
    --max_length 256 \
    --output_dir ${OUT} \
    --system 'You are a helpful assistant.' \
    --warmup_ratio 0.05 \
    --dataloader_num_workers 0 \
    --model_author swift \
    --model_name swift-robot \
    --run_name "$(date +%s)"
