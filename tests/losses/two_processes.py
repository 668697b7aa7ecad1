"""A run of two processes, started by torchrun: `two_processes.py MODEL OUT JSON`, JSON the fields of SFTConfig."""

import json
import sys

from datasets import Dataset

from sftcore import SFTConfig, SFTTrainer

if __name__ == "__main__":
    model, out, fields = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    # rows of very different lengths, so that a mean of means would not be the mean over tokens
    rows = [{"prompt": f"say {i}:", "completion": " hello" * (1 + 7 * (i % 2) + i % 3)} for i in range(16)]
    trainer = SFTTrainer(model, SFTConfig(out, use_cpu=True, **fields), train_dataset=Dataset.from_list(rows))
    trainer.train()
    trainer.save_model()
    if trainer.is_world_process_zero():
        trainer.save_state()
