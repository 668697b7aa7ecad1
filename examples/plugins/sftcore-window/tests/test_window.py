"""The package as its users meet it: it must be installed (`pip install ".[test]"`)."""

import pytest
import torch
from sftcore_window import Window

from sftcore import ModelRequest
from sftcore.testing import AttentionTests

pytest_plugins = "sftcore.testing"


class TestWindow(AttentionTests):
    plugin = Window
    options = {"tokens": 8}
    same_training = False


def windowed(model, tokens):
    backend = Window(tokens=tokens).attention_backend(ModelRequest())
    backend.register()
    model.set_attn_implementation(backend.implementation)
    return model


def mistral(model, tokens):
    """The same weights in a model that has such a window by itself, with the plainest attention there is."""
    from transformers import MistralConfig, MistralForCausalLM

    known = {key: value for key, value in model.config.to_dict().items() if key not in ("model_type", "architectures")}
    config = MistralConfig(**{**known, "sliding_window": tokens})
    config._attn_implementation = "eager"
    other = MistralForCausalLM(config)
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("tokens", [1, 3, 7, 100])
def test_logits_and_gradients_are_those_of_a_model_with_the_same_window(tiny_model, tokens):
    ids = torch.randint(4, 300, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 12, [1] * 9 + [0] * 3])
    other = mistral(tiny_model, tokens)
    logits, expected = (
        model(input_ids=ids, attention_mask=mask).logits[mask.bool()] for model in (windowed(tiny_model, tokens), other)
    )
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    for one in (logits, expected):
        one.float().logsumexp(-1).sum().backward()
    for one, same in zip(tiny_model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, same.grad, rtol=1e-3, atol=1e-5)


def test_tokens_outside_the_window_change_nothing(tiny_model):
    model = windowed(tiny_model, 3)
    ids = torch.randint(4, 300, (1, 12), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, :4] = 5
    with torch.no_grad():
        first, second = model(ids).logits, model(other).logits
    # two layers of 3 tokens reach 4 tokens back
    assert torch.equal(first[0, 8:], second[0, 8:])
    assert not torch.equal(first[0, 7], second[0, 7])


def test_generation_with_a_cache_sees_the_same_window(tiny_model):
    model = windowed(tiny_model, 3).eval()
    ids = torch.randint(4, 300, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        past = model(ids[:, :6], use_cache=True).past_key_values
        last = model(ids[:, 6:], past_key_values=past).logits
        whole = model(ids, use_cache=False).logits[:, 6:]
    torch.testing.assert_close(last, whole, rtol=1e-4, atol=1e-5)
