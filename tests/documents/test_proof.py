"""Documents that share a row are kept apart, or the run is refused: measured on tiny models of many architectures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from sftcore_plugins.attention.varlen import Varlen
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sftcore import AttentionBackend, DataError, ModelError
from sftcore.documents.proof import check_labels, keep_documents_apart
from sftcore.documents.ways import POSITIONS, Way, block_mask
from tests.documents.architectures import ARCHITECTURES, WINDOW, backend_of, build

BACKENDS = {
    "sdpa": AttentionBackend("sdpa"),
    "eager": AttentionBackend("eager"),
    "varlen": backend_of(Varlen),
}
NAMED = ("Llama", "Qwen3", "Gemma3", "Mistral", "GPT2", "GPTNeoX", "OPT", "GptOss")
MASKED = ("OPT", "GptOss")  # their forward makes its mask without looking at the position ids


def proof_of(name: str, attention: str = "sdpa", *, flattened: bool = True, dtype: str = "float32", ways=None):
    backend = BACKENDS[attention]
    model = build(name, backend.implementation, dtype=dtype)
    return keep_documents_apart(model, backend, flattened=flattened, ways=ways)


def altered(name: str, change) -> Way:
    return Way(name, name, lambda batch: {**batch, **change(batch)})


# --- Which way each architecture takes ------------------------------------------------------------------------------
@pytest.mark.parametrize("flattened", [True, False], ids=["one row", "padded rows"])
@pytest.mark.parametrize("attention", BACKENDS)
@pytest.mark.parametrize("name", NAMED)
def test_documents_are_kept_apart(name, attention, flattened):
    if (name, attention) == ("GptOss", "sdpa"):
        with pytest.raises(ValueError, match="does not support"):  # transformers has no sdpa for sinks
            build(name, attention)
        return
    proof = proof_of(name, attention, flattened=flattened)
    expected = "boundaries" if attention == "varlen" else "mask" if name in MASKED else "positions"
    assert proof.way.name == expected
    assert proof.gaps.neighbours == 0
    assert proof.gaps.alone < 1e-5
    assert max(proof.lengths[0]) > WINDOW


@pytest.mark.parametrize("attention", ["sdpa", "varlen"])
def test_bfloat16_is_bit_identical_whatever_the_neighbours(attention):
    gaps = proof_of("Llama", attention, dtype="bfloat16").gaps
    assert gaps.neighbours == 0
    assert gaps.alone < gaps.alone_allowed


def test_soft_capped_scores_go_through_varlen():
    assert proof_of("Gemma2", "varlen").way.name == "boundaries"


def test_chunks_of_llama4_restart_with_each_document():
    # transformers 5.17 cuts chunks at places of the row instead, which the second measurement finds
    proof = proof_of("Llama4")
    assert proof.way.name == "positions" or "from the document alone" in str(proof.tried)


def test_a_model_that_keeps_boundaries_to_itself_is_understood_by_its_positions():
    proof = proof_of("StableLm", "varlen")
    assert proof.gaps.neighbours == 0
    assert proof.way.name == "boundaries"


@pytest.mark.parametrize(
    ("name", "attention", "said"),
    [
        ("Bloom", "eager", r"with positions or boundaries, other documents change a document's logits by \d"),
        ("Bloom", "varlen", 'models of BloomConfig compute their own attention and never ask for "varlen"'),
        ("XGLM", "varlen", 'models of XGLMConfig compute their own attention and never ask for "varlen"'),
        ("RecurrentGemma", "eager", r"with positions or boundaries or mask, other documents change .* by \d"),
        ("RecurrentGemma", "varlen", r"other documents change a document's logits by \d"),
        ("Lfm2", "sdpa", r"other documents change a document's logits by \d"),
    ],
)
def test_a_model_in_which_documents_meet_is_refused(name, attention, said):
    with pytest.raises(ModelError, match=said) as caught:
        proof_of(name, attention)
    assert "packing: false, padding_free: false" in str(caught.value)


def test_the_page_on_packing_shows_the_refusal_as_it_is():
    with pytest.raises(ModelError) as caught:
        proof_of("Bloom", "eager", flattened=False)
    page = Path(__file__).parents[2] / "docs" / "how-to" / "packing.md"
    assert str(caught.value) in page.read_text(encoding="utf-8")


def test_boundaries_that_reach_no_attention_layer_are_no_way():
    deaf = AttentionBackend("sdpa", boundaries=True, calls=lambda: 0)
    proof = keep_documents_apart(build("Llama"), deaf, flattened=True)
    assert proof.way.name == "positions"
    assert list(proof.tried.values()) == [
        "document boundaries reached the attention only 0 times in 2 attention layers"
    ]


# --- What the proof catches -----------------------------------------------------------------------------------------
def leaky(module, query, key, value, attention_mask, **kwargs):
    return sdpa_attention_forward(module, query, key, value, None, **kwargs)


def noisy(module, query, key, value, attention_mask, **kwargs):
    output, _ = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return output + 1e-7 * torch.randn_like(output), None


@pytest.fixture
def register():
    """Attention functions of a test under a name, gone after it."""
    names = []

    def add(name, function):
        AttentionInterface.register(name, function)
        AttentionMaskInterface.register(name, sdpa_mask)
        names.append(name)
        return AttentionBackend(name)

    yield add
    for name in names:
        del AttentionInterface._global_mapping[name], AttentionMaskInterface._global_mapping[name]


def test_an_attention_that_ignores_the_mask_is_refused(register):
    backend = register("leaky", leaky)
    with pytest.raises(ModelError, match=r"with positions or boundaries or mask, other documents change .* by \d"):
        keep_documents_apart(build("Llama", "leaky"), backend, flattened=True)


@pytest.mark.parametrize("name", ["Llama", "OPT"])
@pytest.mark.parametrize(
    "way",
    [
        altered("an all-ones mask", lambda batch: {"attention_mask": torch.ones_like(batch["input_ids"])}),
        altered("an enabled cache", lambda batch: {"use_cache": True}),
    ],
    ids=lambda way: way.name,
)
def test_a_leak_is_caught(name, way):
    with pytest.raises(ModelError, match=r"other documents change a document's logits by \d"):
        proof_of(name, ways=[way])


def test_positions_that_run_on_are_caught_by_the_document_alone():
    def run_on(batch):
        whole = torch.arange(batch["input_ids"].shape[1]).expand_as(batch["input_ids"])
        return {"position_ids": whole, "attention_mask": block_mask(batch["position_ids"])}

    with pytest.raises(ModelError, match=r"differ by .* from the document alone"):
        proof_of("GPT2", ways=[altered("mask", run_on)])


def test_a_missing_sliding_window_is_caught_by_the_document_alone():
    without = altered("mask", lambda batch: {"attention_mask": block_mask(batch["position_ids"])})
    with pytest.raises(ModelError, match=r"differ by .* from the document alone"):
        proof_of("Mistral", ways=[without])


def test_a_bool_mask_leaks_under_eager():
    bools = altered("mask", lambda batch: {"attention_mask": block_mask(batch["position_ids"])})
    with pytest.raises(ModelError, match="other documents change"):
        proof_of("Llama", "eager", ways=[bools])


def test_last_bits_may_differ_only_where_the_attention_says_so(register):
    backend = register("noisy", noisy)
    model = build("Llama", "noisy")
    with pytest.raises(ModelError, match="other documents change"):
        keep_documents_apart(model, backend, flattened=True)
    unsure = AttentionBackend("noisy", deterministic=False)
    proof = keep_documents_apart(model, unsure, flattened=True)
    assert 0 < proof.gaps.neighbours < 1e-5


# --- Around the proof -----------------------------------------------------------------------------------------------
def test_random_state_and_training_flags_stay_as_they_were():
    model = build("GPT2", resid_pdrop=0.5).train()
    model.transformer.h[0].eval()
    flags = [module.training for module in model.modules()]
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    assert keep_documents_apart(model, None, flattened=False).gaps.neighbours == 0
    assert torch.equal(torch.rand(4), wanted)
    assert [module.training for module in model.modules()] == flags


def test_a_document_is_no_longer_than_the_run_allows():
    proof = keep_documents_apart(build("Mistral"), None, flattened=False, max_length=6)
    assert max(max(row) for row in proof.lengths) == 6


def test_a_window_too_long_to_exceed_is_noted():
    model = build("Mistral", sliding_window=5000, max_position_embeddings=9000)
    proof = keep_documents_apart(model, None, flattened=True)
    assert proof.notes == ("no document exceeded the attention window of 5000 tokens",)
    assert max(proof.lengths[0]) == 24


def test_the_proof_reads_as_one_line():
    said = str(proof_of("Llama"))
    assert re.fullmatch(
        "documents are kept apart by position ids that restart with each document: logits are bit-identical with other "
        r"neighbours, and within \de-0[67] of the document alone",
        said,
    )


def test_the_record_holds_plain_values():
    record = proof_of("OPT").record()
    assert (record["way"], record["neighbours_gap"], record["documents"]) == ("mask", 0.0, [[5, 1, 1, 24, 9]])
    assert [*record["tried"]] == [
        "position ids that restart with each document",
        "document boundaries given to the attention",
    ]


@pytest.mark.parametrize("attention", BACKENDS)
def test_adapters_of_peft_are_proven_with_the_model(attention):
    from peft import LoraConfig, get_peft_model

    model = build("Qwen3", BACKENDS[attention].implementation)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    proof = keep_documents_apart(adapted, BACKENDS[attention], flattened=False)
    assert proof.gaps.neighbours == 0


@pytest.mark.parametrize("method", ["PromptTuningConfig", "PrefixTuningConfig", "PromptEncoderConfig"])
def test_prompt_learning_is_refused(method):
    import peft

    config = getattr(peft, method)(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(ModelError, match="puts virtual tokens before a row and drops its position ids"):
        keep_documents_apart(peft.get_peft_model(build("Llama"), config), None, flattened=True)


def test_restarting_positions_alone_are_tried_first_without_a_backend():
    assert keep_documents_apart(build("Llama"), None, flattened=True).way is POSITIONS


def test_every_architecture_of_the_table_is_used():
    assert set(NAMED) < set(ARCHITECTURES)


# --- Labels ---------------------------------------------------------------------------------------------------------
def test_a_counted_first_label_is_refused_with_its_place():
    positions = torch.tensor([[0, 1, 2, 0, 1], [0, 0, 1, 2, 3]])
    labels = torch.tensor([[-100, 5, 6, -100, 7], [-100, -100, 8, 9, 9]])
    check_labels({"position_ids": positions, "labels": labels})
    labels[1, 1] = 4
    with pytest.raises(
        DataError, match="packed batch row 1: the first token of the document at position 1 is supervised"
    ):
        check_labels({"position_ids": positions, "labels": labels})
