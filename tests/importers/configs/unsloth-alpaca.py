import torch
from datasets import load_dataset
from trl import SFTConfig, SFTTrainer
from unsloth import FastLanguageModel

alpaca_prompt = """Below is an instruction that describes a task, paired with an input that provides further context. Write a response that appropriately completes the request.

### Instruction:
{}

### Input:
{}

### Response:
{}"""

model, tokenizer = FastLanguageModel.from_pretrained("tiny", max_seq_length=512, dtype=torch.bfloat16)
EOS_TOKEN = tokenizer.eos_token
model = FastLanguageModel.get_peft_model(model, r=8, lora_alpha=8)


def formatting_prompts_func(examples):
    return {"text": [alpaca_prompt.format(*row) + EOS_TOKEN for row in zip(*examples.values())]}


dataset = load_dataset("json", data_files="alpaca.jsonl", split="train").map(formatting_prompts_func, batched=True)
settings = dict(per_device_train_batch_size=2, max_steps=3)
trainer = SFTTrainer(
    model=model,
    tokenizer=tokenizer,
    train_dataset=dataset,
    args=SFTConfig(dataset_text_field="text", output_dir="outputs-alpaca", **settings),
)
trainer.train()
