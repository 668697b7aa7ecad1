"""Fine-tune on conversations."""

import os

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

os.environ["WANDB_PROJECT"] = "tiny"
MODEL = "tiny"
BATCH, LR = 2, 1e-5
lr = 2 * 1e-5
open("written-by-the-script", "w").write("this must not happen")

tokenizer = AutoTokenizer.from_pretrained(MODEL)
tokenizer.pad_token = tokenizer.eos_token
model = AutoModelForCausalLM.from_pretrained(MODEL, torch_dtype=torch.bfloat16, attn_implementation="flash_attention_2")
dataset = load_dataset("json", data_files="talk.jsonl", split="train[:24]")

args = SFTConfig(
    output_dir="trl-full",
    learning_rate=lr,
    per_device_train_batch_size=2,
    gradient_accumulation_steps=2,
    num_train_epochs=1,
    lr_scheduler_type="cosine",
    warmup_ratio=0.1,
    max_length=256,
    packing=True,
    assistant_only_loss=True,
    bf16=True,
    logging_steps=1,
    run_name=os.environ.get("RUN", "x"),
    report_to="none",
    save_strategy="epoch",
    hub_token="hf_abcdefghijklmnopqrstuvwx",
)

trainer = SFTTrainer(model=model, args=args, train_dataset=dataset, processing_class=tokenizer)
trainer.train()
