"""The attention flash-1: torch's flash kernel and no other, or a refusal."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from sftcore_plugins.attention._per_document import Features
from sftcore_plugins.attention.flash1 import DOCUMENTS, Flash1
from torch.profiler import ProfilerActivity, profile

from sftcore import ModelError, SFTTrainer
from sftcore.documents.ways import boundaries
from tests.conftest import make_llama
from tests.documents.architectures import backend_of, build
from tests.plugins.attention.test_varlen import layer, positions_of, states
from tests.train.test_trainer import config, losses

BACKEND = backend_of(Flash1)
FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"
ROWS = [{"prompt": f"say {i}:", "completion": " hello" * (1 + i % 5)} for i in range(12)]


def step(model):
    """One forward and backward pass over a packed row; the names of the attention kernels that ran."""
    positions = positions_of([[4, 9, 1, 10]])
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        ids = torch.arange(3, 27)[None]
        batch = {"input_ids": ids, "position_ids": positions, **boundaries(positions)}
        model(**batch, labels=ids, use_cache=False).loss.backward()
    names = {event.key for event in profiler.key_averages()}
    return {name for name in names if "scaled_dot_product" in name or ("softmax" in name and "log_" not in name)}


@pytest.mark.parametrize("name", ["Llama", "Gemma3"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_only_torchs_flash_kernel_runs_forward_and_backward(name, dtype):
    ran = step(build(name, BACKEND.implementation, dtype=dtype))
    assert ran == {FLASH, f"{FLASH}_backward", "aten::scaled_dot_product_attention"}


def test_what_runs_is_a_choice_of_this_attention():
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        assert FLASH in step(build("Llama", BACKEND.implementation))
        assert FLASH not in step(build("Llama", "sdpa"))


def test_values_may_be_narrower_than_queries():
    query, key, _ = states([[5, 7]])
    value = torch.randn(1, 2, 12, 6, generator=torch.Generator().manual_seed(1))
    positions = positions_of([[5, 7]])
    got, _ = DOCUMENTS.attend(layer(), query, key, value, None, **boundaries(positions))
    wanted = [
        torch.nn.functional.scaled_dot_product_attention(
            query[:, :, span], key[:, :, span], value[:, :, span], is_causal=True, enable_gqa=True
        )
        for span in (slice(0, 5), slice(5, 12))
    ]
    torch.testing.assert_close(got, torch.cat(wanted, dim=2).transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_boundaries_are_read_once_for_all_layers(monkeypatch):
    positions = positions_of([[5, 7]])
    given = boundaries(positions)
    first, _ = DOCUMENTS.attend(layer(), *states([[5, 7]]), None, **given)
    monkeypatch.setattr(torch.Tensor, "tolist", lambda self: pytest.fail("read again"))
    second, _ = DOCUMENTS.attend(layer(), *states([[5, 7]]), None, **given)
    assert torch.equal(first, second)


def test_boundaries_that_were_changed_are_read_again():
    given = boundaries(positions_of([[5, 7]]))
    first, _ = DOCUMENTS.attend(layer(), *states([[5, 7]]), None, **given)
    given["cu_seq_lens_q"][1] = 6
    second, _ = DOCUMENTS.attend(layer(), *states([[5, 7]]), None, **given)
    assert not torch.equal(first, second)


# --- Refusals -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Gemma2", 'attention "flash-1" does not support a soft-cap'),
        ("GptOss", 'attention "flash-1" does not support attention sinks'),
    ],
)
def test_features_that_the_kernel_does_not_know_are_refused(name, said):
    with pytest.raises(ModelError, match=said):
        build(name, BACKEND.implementation)(input_ids=torch.arange(3, 27)[None])


def test_padded_rows_are_refused_and_rows_of_one_length_are_not():
    model = build("Llama", BACKEND.implementation)
    ids, mask = torch.arange(3, 27).view(2, 12), torch.ones(2, 12, dtype=torch.int64)
    got = model(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(got, build("Llama")(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
    mask[1, 9:] = 0
    with pytest.raises(ModelError, match=r'attention "flash-1" does not accept padding.*Set padding_free: true'):
        model(input_ids=ids, attention_mask=mask)


def test_one_prompt_is_generated_from_as_with_sdpa():
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ids = torch.arange(3, 17)[None]
    found = [build("Llama", one).eval().generate(ids, **options) for one in (BACKEND.implementation, "sdpa")]
    assert torch.equal(*found)


def test_dropout_on_a_cpu_is_refused():
    with pytest.raises(ModelError, match=r"cannot drop attention weights on a CPU, and the model drops 0\.1"):
        DOCUMENTS.attend(layer(), *states([[12]]), None, dropout=0.1)


def test_a_shape_for_which_torch_has_no_flash_kernel_is_refused_by_name():
    query, key, value = states([[12]])
    with pytest.raises(ModelError, match=r"torch has no flash kernel for cpu, float32 and heads of 8 in Module"):
        DOCUMENTS.attend(layer(), query, key, torch.nn.functional.pad(value, [0, 4]), None)


@pytest.mark.parametrize(
    ("mask", "window", "said"),
    [
        (torch.ones(1, 1, 12, 12, dtype=torch.bool), None, 'on meta, attention "flash-1" does not support a mask'),
        (None, 4, 'on meta, attention "flash-1" does not support a sliding window, and a document has 12 tokens'),
    ],
)
def test_masks_and_windows_off_the_cpu_are_refused(mask, window, said):
    from sftcore_plugins.attention.flash1 import attend_by_flash

    tensors = [one.detach().to("meta") for one in states([[12]])]
    with pytest.raises(ModelError, match=said):
        attend_by_flash(layer(), *tensors, mask, Features(0.0, None, window, None, None, True))


# --- Training -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("fields", [{"packing": True, "max_length": 64}, {"padding_free": True, "max_length": None}])
def test_a_step_with_it_is_the_step_of_padded_rows(tmp_path, tokenizer, fields):
    def trained(**more):
        given = {"max_steps": 1, "logging_steps": 1, "learning_rate": 0.1, "optim": "sgd", "max_grad_norm": 0.0,
                 "per_device_train_batch_size": 12, "lr_scheduler_type": "constant", **more}  # fmt: skip
        trainer = SFTTrainer(
            make_llama(tokenizer), config(tmp_path, **given), train_dataset=Dataset.from_list(ROWS),
            processing_class=tokenizer,
        )  # fmt: skip
        trainer.train()
        return trainer

    padded, own = trained(), trained(plugins={"attention": "flash-1"}, **fields)
    assert own.shared_rows.proof.way.name == "boundaries"
    assert losses(own)[0] == pytest.approx(losses(padded)[0], rel=1e-5)
    for name, parameter in padded.model.named_parameters():
        torch.testing.assert_close(own.model.get_parameter(name), parameter, rtol=1e-4, atol=1e-6)
