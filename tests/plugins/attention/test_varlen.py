"""The varlen attention: equal to one masked product over the row, cheaper, and never silent about a leak."""

from __future__ import annotations

import inspect
from types import SimpleNamespace

import attrs
import pytest
import torch
import transformers
from sftcore_plugins.attention import varlen
from sftcore_plugins.attention.varlen import DOCUMENTS, Varlen
from torch.utils.flop_counter import FlopCounterMode
from transformers import masking_utils
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.gemma2.modeling_gemma2 import eager_attention_forward as gemma2_attention
from transformers.models.gpt_oss.modeling_gpt_oss import eager_attention_forward as gpt_oss_attention

from sftcore import ModelError, ModelRequest
from sftcore.documents.ways import additive, block_mask, boundaries
from tests.documents.architectures import backend_of, build

BACKEND = backend_of(Varlen)
ONE_ROW = [[5, 1, 12, 1, 3]]
TWO_ROWS = [[5, 1, 6], [1, 9, 2]]


def positions_of(rows: list[list[int]]) -> torch.Tensor:
    return torch.stack([torch.cat([torch.arange(length) for length in row]) for row in rows])


def layer(heads: int = 4, **fields):
    module = torch.nn.Module()
    for name, value in {
        "num_key_value_groups": heads // 2,
        "is_causal": True,
        "config": SimpleNamespace(),
        **fields,
    }.items():
        setattr(module, name, value)
    return module.eval()


def states(rows: list[list[int]]) -> list[torch.Tensor]:
    """Queries of four heads, keys and values of two: (B, H, T, 8), float32."""
    generator = torch.Generator().manual_seed(0)
    shape = len(rows), sum(rows[0]), 8
    return [torch.randn(shape[0], heads, *shape[1:], generator=generator).requires_grad_() for heads in (4, 2, 2)]


def compare(rows, reference, **features):
    """Outputs and gradients of both on the same states."""
    positions = positions_of(rows)
    results = []
    for function in (DOCUMENTS.attend, reference):
        tensors = states(rows)
        given = {
            key: value.clone().requires_grad_() if torch.is_tensor(value) else value for key, value in features.items()
        }
        if function == DOCUMENTS.attend:
            output, _ = DOCUMENTS.attend(layer(), *tensors, None, **given, **boundaries(positions))
        else:
            output = function(tensors, positions, given)
        # weighted, since the sum of an attention's outputs has hardly a gradient for queries
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        leaves = [*tensors, *(value for value in given.values() if torch.is_tensor(value))]
        results.append([output.detach(), *(leaf.grad for leaf in leaves)])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


# --- Numbers --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rows", [ONE_ROW, TWO_ROWS], ids=["one row", "two rows"])
@pytest.mark.parametrize("window", [None, 4])
def test_outputs_and_gradients_equal_one_product_with_a_block_mask(rows, window):
    def masked(tensors, positions, given):
        return sdpa_attention_forward(
            layer(), *tensors, block_mask(positions, window=window), scaling=given["scaling"]
        )[0]

    compare(rows, masked, scaling=0.3, sliding_window=window)


@pytest.mark.parametrize("window", [None, 4])
def test_soft_caps_are_those_of_gemma2(window):
    def capped(tensors, positions, given):
        mask = additive(block_mask(positions, window=window), torch.float32)
        return gemma2_attention(layer(), *tensors, mask, scaling=0.3, softcap=given["softcap"])[0]

    compare(TWO_ROWS, capped, scaling=0.3, softcap=1.5, sliding_window=window)


@pytest.mark.parametrize("window", [None, 4])
def test_sinks_and_their_gradients_are_those_of_gpt_oss(window):
    def with_sinks(tensors, positions, given):
        mask = additive(block_mask(positions, window=window), torch.float32)
        return gpt_oss_attention(layer(sinks=given["s_aux"]), *tensors, mask, scaling=0.3)[0]

    compare(ONE_ROW, with_sinks, scaling=0.3, s_aux=torch.tensor([1.0, -1.0, 0.5, 2.0]), sliding_window=window)


def test_values_may_be_narrower_than_queries():
    query, key, _ = states(ONE_ROW)
    value = torch.randn(1, 2, 22, 6, generator=torch.Generator().manual_seed(1))
    positions = positions_of(ONE_ROW)
    got, _ = DOCUMENTS.attend(layer(), query, key, value, None, **boundaries(positions))
    wanted, _ = sdpa_attention_forward(layer(), query, key, value, block_mask(positions))
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


def test_a_mask_beside_boundaries_is_kept_to():
    positions = positions_of(TWO_ROWS)
    mask = torch.ones(2, 1, 12, 12, dtype=torch.bool).tril()
    mask[1, :, :, 2] = False  # nothing may attend to this token but itself
    mask[1, :, 2, 2] = True
    got, _ = DOCUMENTS.attend(layer(), *states(TWO_ROWS), mask, **boundaries(positions))
    wanted, _ = sdpa_attention_forward(layer(), *states(TWO_ROWS), mask & block_mask(positions))
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("features", [{}, {"softcap": 2.0}], ids=["fused", "products"])
def test_dropout_of_training_drops_whole_weights(features):
    query, key, _ = states([[1] * 200])
    value = torch.ones(1, 2, 200, 8)
    torch.manual_seed(0)
    output, _ = DOCUMENTS.attend(
        layer(), query, key, value, None, dropout=0.25, **features, **boundaries(positions_of([[1] * 200]))
    )
    # A document of one token has one weight, 1: it is dropped, or scaled by 1 / 0.75
    kept = output > 0
    torch.testing.assert_close(output[kept], torch.full_like(output[kept], 4 / 3))
    assert 0.7 < kept.float().mean() < 0.8


@pytest.mark.parametrize("values", [torch.float32, torch.bfloat16], ids=["all float32", "values in bfloat16"])
@pytest.mark.parametrize("autocast", [True, False])
def test_torchs_kernel_gets_states_of_autocasts_dtype(values, autocast):
    """float32 weights leave queries and keys in float32: RoPE multiplies them by cosines of that dtype."""
    seen = []

    def kernel(query, key, value, *rest):
        seen.append((query.dtype, key.dtype, value.dtype))
        return query.transpose(1, 2)

    query, key, value = states(ONE_ROW)
    documents = attrs.evolve(DOCUMENTS, whole=kernel)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        documents.attend(layer(), query, key, value.to(values), None, **boundaries(positions_of(ONE_ROW)))
    assert seen == [(torch.bfloat16,) * 3 if autocast else (torch.float32, torch.float32, values)]


def test_under_autocast_it_computes_what_sdpa_computes():
    tensors, positions = states(ONE_ROW), positions_of(ONE_ROW)
    mask = block_mask(positions)
    with torch.autocast("cpu", torch.bfloat16):
        got = DOCUMENTS.attend(layer(), *tensors, None, **boundaries(positions))[0]
        wanted = sdpa_attention_forward(layer(), *tensors, mask)[0]
    assert got.dtype == wanted.dtype == torch.bfloat16
    torch.testing.assert_close(got, wanted, atol=2e-2, rtol=2e-2)


def test_cost_grows_with_the_sum_of_squared_lengths():
    def products(rows):
        positions = positions_of(rows)
        query, key, value = states(rows)
        with FlopCounterMode(display=False) as counter:
            DOCUMENTS.attend(layer(), query, key, value, None, softcap=2.0, **boundaries(positions))
        return counter.get_total_flops()

    whole, quarters, uneven = products([[64]]), products([[16] * 4]), products([[32, 16, 16]])
    assert whole / quarters == 64**2 / (4 * 16**2)
    assert whole / uneven == 64**2 / (32**2 + 2 * 16**2)


# --- Refusals -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("positions", [None, torch.zeros(3, 2, 12, dtype=torch.int64)], ids=["none", "of three axes"])
def test_a_packed_row_is_refused_where_the_model_hands_on_neither_boundaries_nor_positions(positions):
    sign = masks(masking_utils.packed_sequence_mask_function(torch.zeros(2, 12)))
    with pytest.raises(ModelError, match="given a packed row without boundaries in Module"):
        DOCUMENTS.attend(layer(), *states(TWO_ROWS), sign, position_ids=positions)


def test_models_with_attention_of_their_own_are_refused():
    with pytest.raises(ModelError, match='XGLMConfig compute their own attention and never ask for "varlen"'):
        build("XGLM", BACKEND.implementation)(input_ids=torch.arange(3, 9)[None])


def test_a_position_bias_is_refused():
    with pytest.raises(ModelError, match='attention "varlen" does not support a position bias'):
        DOCUMENTS.attend(layer(), *states(ONE_ROW), None, position_bias=torch.zeros(1, 4, 22, 22))


@pytest.mark.parametrize(
    ("edges", "said"),
    [
        ([0, 12], "runs from 0 to 12, and the batch has 2 rows of 12 tokens"),
        ([0, 10, 14, 24], "has a document from 10 to 14, in rows of 12 tokens"),
        ([0, 12, 12, 24], "has a document from 12 to 12"),
    ],
)
def test_boundaries_that_do_not_fit_the_batch_are_refused(edges, said):
    with pytest.raises(ModelError, match=said):
        DOCUMENTS.attend(layer(), *states(TWO_ROWS), None, cu_seq_lens_q=torch.tensor(edges), max_length_q=12)


# --- Rows as they are -----------------------------------------------------------------------------------------------
def pair(name: str):
    """The same model with varlen and with what transformers would take by itself."""
    other = "eager" if name in ("GptOss", "Gemma2") else "sdpa"
    return build(name, BACKEND.implementation).eval(), build(name, other).eval()


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma3", "OPT", "GPT2", "GptOss", "Gemma2"])
def test_padded_rows_give_the_logits_of_transformers_own_attention(name):
    ids = torch.randint(3, 96, (2, 20), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    mask[1, 14:] = 0
    with torch.no_grad():
        got, wanted = (model(input_ids=ids, attention_mask=mask).logits for model in pair(name))
    torch.testing.assert_close(got[mask.bool()], wanted[mask.bool()], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma3", "OPT", "GptOss"])
def test_generation_is_that_of_transformers_own_attention(name):
    ids = torch.randint(3, 96, (2, 14), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    ids[1, :4], mask[1, :4] = 0, 0
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    got, wanted = (model.generate(ids, attention_mask=mask, **options) for model in pair(name))
    assert torch.equal(got, wanted)
    got, wanted = (model.generate(ids[:1], **options) for model in pair(name))
    assert torch.equal(got, wanted)


def test_a_saved_model_does_not_ask_for_the_plugin(tmp_path):
    build("Llama", BACKEND.implementation).save_pretrained(tmp_path)
    assert varlen.NAME not in (tmp_path / "config.json").read_text()
    assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma3", "OPT", "GptOss", "StableLm"])
def test_positions_alone_keep_documents_apart(name):
    """As in a training step that a subclass of the trainer writes by itself."""
    own, plain = pair(name)
    for rows in ([[5, 1, 6], [1, 9, 2]], [[12], [3, 9]], [[1] * 12, [11, 1]]):  # of one shape
        ids = torch.randint(3, 96, (2, 12), generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            got = own(input_ids=ids, position_ids=positions_of(rows), use_cache=False).logits
            documents = [one for row, lengths in zip(ids, rows, strict=True) for one in row.split(lengths)]
            alone = [plain(input_ids=one[None], use_cache=False).logits[0] for one in documents]
        torch.testing.assert_close(got.flatten(0, 1), torch.cat(alone), atol=1e-4, rtol=1e-4)


# --- What it rests on in transformers and torch ---------------------------------------------------------------------
def masks(function, **fields):
    shape = {"batch_size": 1, "q_length": 6, "kv_length": 6, "mask_function": function}
    return DOCUMENTS.mask(**{**shape, **fields})


def test_a_mask_is_built_only_where_boundaries_do_not_say_all():
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]])
    causal = masking_utils.causal_mask_function
    window = masking_utils.sliding_window_causal_mask_function(3)
    packed = masking_utils.packed_sequence_mask_function((positions == 0).cumsum(-1))
    remap = getattr(masking_utils, "remap_positions_for_packed_sequence", None)  # transformers 5.17 has none
    remapped = remap(window, positions) if remap else window
    chunked = masking_utils.chunked_causal_mask_function(2, torch.zeros(1, dtype=torch.int64))
    assert masks(causal) is None
    assert masks(window) is None
    assert masks(masking_utils.and_masks(remapped, packed)).shape == (1, 1, 1, 1)
    assert masks(masking_utils.and_masks(chunked, packed), allow_is_causal_skip=False).shape == (1, 1, 6, 6)
    assert masks(causal, allow_is_causal_skip=False).shape == (1, 1, 6, 6)
    assert masks(causal, kv_length=9, q_offset=3).shape == (1, 1, 6, 9)
    assert masks(causal, attention_mask=torch.tensor([[0, 1, 1, 1, 1, 1]]).bool()).shape == (1, 1, 6, 6)


def test_a_layer_is_counted_once_for_each_call_with_boundaries():
    model = build("Llama", BACKEND.implementation)
    before = BACKEND.calls()
    positions = positions_of([[4, 5]])
    model(input_ids=torch.arange(3, 12)[None], position_ids=positions, use_cache=False, **boundaries(positions))
    model(input_ids=torch.arange(3, 12)[None])
    assert BACKEND.calls() - before == 2


def test_torchs_kernel_takes_what_it_is_given():
    kernel = varlen.kernel()
    if kernel is None:
        pytest.skip("this torch has no varlen kernel with windows, scale and grouped heads")
    inspect.signature(kernel).bind(*[None] * 7, scale=0.5, window_size=(-1, 0), enable_gqa=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("rows", [ONE_ROW, TWO_ROWS], ids=["one row", "two rows"])
def test_torchs_kernel_equals_the_masked_product_on_a_gpu(rows, window):
    positions = positions_of(rows).cuda()
    results = []
    for kernel in (True, False):
        tensors = [one.detach().cuda().bfloat16().requires_grad_() for one in states(rows)]
        if kernel:
            output, _ = DOCUMENTS.attend(layer(), *tensors, None, sliding_window=window, **boundaries(positions))
        else:
            output, _ = sdpa_attention_forward(layer(), *tensors, block_mask(positions, window=window))
        output.float().square().sum().backward()
        results.append([output.detach(), *(one.grad for one in tensors)])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, atol=3e-2, rtol=3e-2)


def test_a_gpu_is_given_varlen_unasked_only_where_torch_has_the_kernel(monkeypatch):
    def speed():
        return Varlen().attention_backend(request=ModelRequest(name="x")).speed["cuda"]

    assert (speed() > 0) is (varlen.kernel() is not None)
    for version, wanted in (("2.11.0", 0.0), ("2.13.0+cpu", 4.0), ("3.0.0", 4.0)):
        monkeypatch.setattr(varlen.importlib.metadata, "version", lambda _, version=version: version)
        assert speed() == wanted
