"""Models in Hugging Face's own layout, and adapters on top of them in PEFT's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sftcore import LoadedModel, LoadOptions, ModelError, ModelRequest, hookimpl, plugin
from sftcore_plugins.loaders._saved import base_of, has, is_adapter, load_processor


@plugin
class HuggingFace:
    """Models and tokenizers by `from_pretrained`, from a hub id or a folder; a saved adapter brings its base."""

    @hookimpl
    def claims(self) -> Iterable[str]:
        return ["model.load"]

    @hookimpl
    def load_processor(self, request: ModelRequest) -> Any:
        return load_processor(request)

    @hookimpl
    def load_model(self, request: ModelRequest, options: LoadOptions) -> LoadedModel:
        import transformers

        if is_adapter(request):
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

        if options.kwargs.get("use_safetensors") and not has(request, "adapter_model.safetensors"):
            raise ModelError(
                "there is no adapter_model.safetensors; other weights are a pickle file, which can run code when it is "
                "read.",
                where=f"model {request.name}",
                fix="Set allow_pickle: true if you trust it, or save the adapter again.",
            )
        base = self.load_model(base_of(request), options)
        rows = _saved_embedding_rows(request)
        notes: tuple[str, ...] = (f"adapter {request.name} trains on, on its base {base.request.name}",)
        if rows and rows != base.model.get_input_embeddings().weight.shape[0]:
            base.model.resize_token_embeddings(rows)
            notes = (*notes, f"embeddings resized to the {rows} rows that the adapter was saved with")
        model = PeftModel.from_pretrained(base.model, request.name, is_trainable=True, revision=request.revision)
        return LoadedModel(model, None, request, (*base.notes, *notes))


_EMBEDDINGS = {"embed_tokens", "wte", "embed_in", "word_embeddings", "lm_head", "embed_out"}


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
