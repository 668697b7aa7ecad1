"""Samples of runs with adapters, packed rows and images."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig

from sftcore import SFTConfig, SFTTrainer
from sftcore.testing.tiny_vlm import make_vlm
from tests.conftest import make_llama, make_tokenizer
from tests.train.samples.test_samples import FEW, ROWS, samples


def config(folder, **fields):
    defaults = {"use_cpu": True, "per_device_train_batch_size": 2, "max_steps": 2, "report_to": "none",
                "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "no", "learning_rate": 1e-2,
                "sample_max_new_tokens": 5, "report_html": False, "dataset_cache": False}  # fmt: skip
    return SFTConfig(str(folder / "out"), **{**defaults, **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"plugins": {"attention": {"varlen": {}}}, "packing": True, "max_length": 64},
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"padding_free": True, "max_length": None}, marks=pytest.mark.slow),
        pytest.param({"bf16": True}, marks=pytest.mark.slow),
    ],
    ids=["packed", "padded", "flattened", "bf16"],
)
def test_answers_of_an_adapter_are_those_that_it_gives_afterwards(tmp_path, fields):
    tokenizer = make_tokenizer()
    trainer = SFTTrainer(
        make_llama(tokenizer), config(tmp_path, sample_prompts=["say 1"], **fields), train_dataset=ROWS,
        eval_dataset=FEW, processing_class=tokenizer, peft_config=LoraConfig(r=4, task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    found = samples(tmp_path)
    assert [one["step"] for one in found] == [1, 2]
    asked = [{"role": "user", "content": "say 1"}]
    ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    model = trainer.model.eval()
    model.base_model.model.set_attn_implementation("eager")
    with torch.no_grad(), trainer.accelerator.autocast():
        answer = model.generate(**ids, max_new_tokens=5, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert found[-1]["answer"] == tokenizer.decode(answer, skip_special_tokens=True)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava", "idefics3", "qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize("rows", [False, True], ids=["prompts", "rows"])
def test_a_model_that_reads_images_is_asked_about_them(tmp_path, family, rows):
    from PIL import Image

    picture = Image.new("RGB", (32, 32), (220, 30, 30))
    turns = [{"role": "user", "content": "<image>What is it?"}, {"role": "assistant", "content": "A wall."}]
    model, processor = make_vlm(family)
    data = Dataset.from_list([{"messages": turns, "images": [{"bytes": _png(picture), "path": None}]}] * 4)
    row = {"messages": turns[:1], "images": [picture]}
    parts = {"type": "image", "image": picture}, {"type": "text", "text": "What is it?"}
    prompts = 1 if rows else [row, [{"role": "user", "content": list(parts)}], "Hello"]
    trainer = SFTTrainer(
        model, config(tmp_path, sample_prompts=prompts, pad_to_multiple_of=64), train_dataset=data,
        eval_dataset=data, processing_class=processor,
    )  # fmt: skip
    trainer.train()
    found = samples(tmp_path)
    assert [one["step"] for one in found] == [1] * (len(found) // 2) + [2] * (len(found) // 2)
    asked = processor(
        text=processor.apply_chat_template(
            [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}],
            add_generation_prompt=True,
        ),
        images=[picture],
        return_tensors="pt",
        add_special_tokens=False,
    )
    with torch.no_grad():
        ids = trainer.model.eval().generate(**asked, max_new_tokens=5, do_sample=False)
    answer = processor.tokenizer.decode(ids[0, asked["input_ids"].shape[1] :], skip_special_tokens=True)
    of_last = [one["answer"] for one in found if one["step"] == 2]
    assert of_last[: 1 if rows else 2] == [answer] * (1 if rows else 2)


def _png(picture):
    import io

    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
