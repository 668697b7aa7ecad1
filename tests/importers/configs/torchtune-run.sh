# one GPU, with settings of the file replaced
tune run lora_finetune_single_device --config torchtune-lora.yaml \
    batch_size=4 gradient_accumulation_steps=1 \
    optimizer.lr=1e-4 dtype=fp32 tokenizer.max_seq_len=128 model.lora_rank=4
