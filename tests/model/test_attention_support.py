"""What an attention plugin declares of dtypes and devices is held against the run."""

from __future__ import annotations

import pytest
from datasets import Dataset

from sftcore import ModelError, SFTConfig, SFTTrainer
from tests.conftest import alpaca_rows, make_llama, make_tokenizer

CODE = """
from sftcore import AttentionBackend, hookimpl, plugin

@plugin
class Half:
    '''Attention in half precision.'''
    device: str = "cpu"

    @hookimpl
    def claims(self):
        return ["attention"]

    @hookimpl
    def attention_backend(self, request):
        return AttentionBackend("sdpa", devices=(self.device,), dtypes=("bfloat16", "float16"))
"""


@pytest.mark.parametrize(
    ("fields", "device", "said"),
    [
        ({}, "cpu", r'attention "half" does not support the dtype float32\. It supports: bfloat16, float16'),
        ({"bf16": True}, "cuda", r'attention "half" does not support the device cpu\. It supports: cuda'),
        ({"bf16": True}, "cpu", None),
    ],
)
def test_a_dtype_or_device_that_attention_does_not_declare_is_refused(
    tmp_path, write_distribution, fields, device, said
):
    write_distribution("half_attention", CODE, entry_points=b"[sftcore.attention]\nhalf = half_attention:Half\n")
    tokenizer = make_tokenizer()
    plugins = {"attention": {"half": {"device": device}}}
    args = SFTConfig(str(tmp_path / "out"), use_cpu=True, plugins=plugins, **fields)
    rows = Dataset.from_list(alpaca_rows(2))
    if said is None:
        trainer = SFTTrainer(make_llama(tokenizer), args, train_dataset=rows, processing_class=tokenizer)
        assert trainer.model.config._attn_implementation == "sdpa"
        return
    with pytest.raises(ModelError, match=said):
        SFTTrainer(make_llama(tokenizer), args, train_dataset=rows, processing_class=tokenizer)
