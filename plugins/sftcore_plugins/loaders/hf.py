"""Models in Hugging Face's own layout, and adapters on top of them in PEFT's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import attrs

from sftcore import LoadedModel, LoadOptions, ModelRequest, hookimpl, plugin


@plugin
class HuggingFace:
    """Models and tokenizers by `from_pretrained`, from a hub id or a folder; a saved adapter brings its base."""

    @hookimpl
    def claims(self) -> Iterable[str]:
        return ["model.load"]

    @hookimpl
    def load_processor(self, request: ModelRequest) -> Any:
        from transformers import AutoProcessor, AutoTokenizer

        known = {"revision": request.revision, "trust_remote_code": request.trust_remote_code}
        if not _is_adapter(request):
            return AutoProcessor.from_pretrained(request.name, **known)
        try:
            return AutoTokenizer.from_pretrained(request.name, **known)
        except (OSError, ValueError):  # an adapter saved by PEFT alone has no tokenizer of its own
            return self.load_processor(_base_of(request))

    @hookimpl
    def load_model(self, request: ModelRequest, options: LoadOptions) -> LoadedModel:
        import transformers

        if _is_adapter(request):
            return self._with_adapter(request, options)
        known = {"revision": request.revision, "trust_remote_code": request.trust_remote_code}
        config = transformers.AutoConfig.from_pretrained(request.name, **known)
        named = (config.architectures or [None])[0]
        # A vision-language checkpoint names its own class, which AutoModelForCausalLM would cut down to the text part
        model_class = getattr(transformers, named or "", None) or transformers.AutoModelForCausalLM
        if config.__class__.__module__.startswith("transformers_modules"):
            model_class = transformers.AutoModelForCausalLM
        model = model_class.from_pretrained(request.name, dtype=request.dtype, **known, **options.kwargs)
        return LoadedModel(model, None, request)

    def _with_adapter(self, request: ModelRequest, options: LoadOptions) -> LoadedModel:
        from peft import PeftModel

        if options.kwargs.get("use_safetensors") and not _has(request, "adapter_model.safetensors"):
            raise OSError("the adapter's weights are a pickle file, which can run code when it is read")
        base = self.load_model(_base_of(request), options)
        rows = _saved_embedding_rows(request)
        notes: tuple[str, ...] = (f"adapter {request.name} trains on, on its base {base.request.name}",)
        if rows and rows != base.model.get_input_embeddings().weight.shape[0]:
            base.model.resize_token_embeddings(rows)
            notes = (*notes, f"embeddings resized to the {rows} rows that the adapter was saved with")
        model = PeftModel.from_pretrained(base.model, request.name, is_trainable=True, revision=request.revision)
        return LoadedModel(model, None, request, (*base.notes, *notes))


_EMBEDDINGS = {"embed_tokens", "wte", "embed_in", "word_embeddings", "lm_head", "embed_out"}


def _is_adapter(request: ModelRequest) -> bool:
    """Whether the model's name is that of a saved adapter, which has no config.json of a model."""
    return not _has(request, "config.json") and _has(request, "adapter_config.json")


def _has(request: ModelRequest, file: str) -> bool:
    from transformers.utils import cached_file

    missing_is_fine = {
        "_raise_exceptions_for_gated_repo": False,
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    return cached_file(request.name, file, revision=request.revision, **missing_is_fine) is not None


def _base_of(request: ModelRequest) -> ModelRequest:
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(request.name, revision=request.revision)
    if not config.base_model_name_or_path:
        raise OSError(f"the adapter {request.name} does not say which base it belongs to")
    return attrs.evolve(request, name=config.base_model_name_or_path, revision=config.revision)


def _saved_embedding_rows(request: ModelRequest) -> int | None:
    """Rows of the embedding that is saved whole beside the adapter, as PEFT does where the vocabulary was resized."""
    from peft.utils import load_peft_weights

    weights = load_peft_weights(request.name, device="cpu", revision=request.revision)
    whole = [
        tensor.shape[0]
        for name, tensor in weights.items()
        if name.endswith(".weight") and _EMBEDDINGS & set(name.split(".")) and ".lora_" not in name
    ]
    return max(whole, default=None)
