"""Noise that follows the documented contract, and asks for no mode itself, neither fools a proof nor spoils one."""

from __future__ import annotations

import pytest
from datasets import Dataset

from sftcore import SFTConfig, SFTTrainer, hookimpl, plugin
from sftcore.testing.isolated import isolated


@plugin
class Hiss:
    """Noise of write-a-plugin.md: whatever runs while it is on gets it."""

    @hookimpl
    def inject_noise(self, loaded, plan):
        import torch

        def add(module, args, output):
            return output + 0.5 * torch.randn_like(output)

        return loaded.model.get_input_embeddings().register_forward_hook(add)


@pytest.mark.parametrize("layout", [{"packing": True, "max_length": 40}, {}], ids=["packed", "padded"])
@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
def test_documents_and_head_are_proven_without_noise(tmp_path, tokenizer, llama, layout, attention):
    rows = Dataset.from_list([{"text": "say hello, world " * (1 + i % 3)} for i in range(6)])
    chosen = {"noise": "hiss", "attention": attention}
    args = SFTConfig(str(tmp_path), use_cpu=True, max_steps=1, report_to="none", plugins=chosen, **layout)
    with isolated() as install:
        install(noise={"hiss": Hiss})
        trainer = SFTTrainer(llama, args, train_dataset=rows, processing_class=tokenizer)
        trainer.train()
    assert not any("builds all logits" in note for note in trainer.loaded.notes)
