"""Tiny models of many architectures, with random weights large enough that a leak shows."""

from __future__ import annotations

from typing import Any

from sftcore import AttentionBackend, ModelRequest

WINDOW = 8
SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 96,
    "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {**SMALL, "num_key_value_heads": 2}
HEADS = {**GROUPED, "head_dim": 8}
MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "Llama": GROUPED,
    "Qwen3": HEADS,
    "Gemma3": {**HEADS, **MIXED, "query_pre_attn_scalar": 8},
    "Mistral": {**HEADS, "sliding_window": WINDOW},
    "GPT2": {**SMALL, "resid_pdrop": 0.1, "n_positions": 128},
    "GPTNeoX": SMALL,
    "OPT": {**SMALL, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "GptOss": {**HEADS, **MIXED, **EXPERTS},
    "Gemma2": {**HEADS, **MIXED, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0},
    "StableLm": GROUPED,
    "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 96},
    "XGLM": {
        "d_model": 32, "ffn_dim": 64, "num_layers": 2, "attention_heads": 4, "vocab_size": 96,
        "max_position_embeddings": 128,
    },
    "Llama4": {
        **HEADS, **EXPERTS, "intermediate_size_mlp": 64, "attention_chunk_size": WINDOW, "moe_layers": [1],
        "layer_types": ["chunked_attention", "full_attention"], "num_experts_per_tok": 1,
    },
    "RecurrentGemma": {**HEADS, "lru_width": 32, "attention_window_size": 64, "num_hidden_layers": 3},
    "Lfm2": {**GROUPED, "layer_types": ["conv", "full_attention"], "conv_L_cache": 3},
}  # fmt: skip
CLASSES = {"GPT2": "GPT2LMHeadModel"}
CONFIGS = {"Gemma3": "Gemma3TextConfig", "Llama4": "Llama4TextConfig"}


def build(name: str, attention: str = "sdpa", *, dtype: str = "float32", **overrides: Any) -> Any:
    """The causal model of an architecture with weights from one seed."""
    import torch
    import transformers

    config = getattr(transformers, CONFIGS.get(name, f"{name}Config"))(**{**ARCHITECTURES[name], **overrides})
    torch.manual_seed(0)
    head = getattr(transformers, CLASSES.get(name, f"{name}ForCausalLM"))
    model = head._from_config(config, attn_implementation=attention, dtype=getattr(torch, dtype))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:  # at 0.02 attention is nearly uniform, and a wrong mask hardly shows
                parameter.normal_(0.0, 0.2)
    return model


def backend_of(plugin: type) -> AttentionBackend:
    """What an attention plugin declares, with its implementation made known to transformers as a run does it."""
    backend = plugin().attention_backend(ModelRequest())
    if backend.register is not None:
        backend.register()
    return backend
