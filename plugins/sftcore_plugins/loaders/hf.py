"""Models in Hugging Face's own layout."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sftcore import LoadedModel, LoadOptions, ModelRequest, hookimpl, plugin


@plugin
class HuggingFace:
    """Models and tokenizers by `from_pretrained`, from a hub id or a folder."""

    @hookimpl
    def claims(self) -> Iterable[str]:
        return ["model.load"]

    @hookimpl
    def load_processor(self, request: ModelRequest) -> Any:
        from transformers import AutoProcessor

        return AutoProcessor.from_pretrained(
            request.name, revision=request.revision, trust_remote_code=request.trust_remote_code
        )

    @hookimpl
    def load_model(self, request: ModelRequest, options: LoadOptions) -> LoadedModel:
        import transformers

        known = {"revision": request.revision, "trust_remote_code": request.trust_remote_code}
        config = transformers.AutoConfig.from_pretrained(request.name, **known)
        named = (config.architectures or [None])[0]
        # A vision-language checkpoint names its own class, which AutoModelForCausalLM would cut down to the text part
        model_class = getattr(transformers, named or "", None) or transformers.AutoModelForCausalLM
        if config.__class__.__module__.startswith("transformers_modules"):
            model_class = transformers.AutoModelForCausalLM
        model = model_class.from_pretrained(request.name, dtype=request.dtype, **known, **options.kwargs)
        return LoadedModel(model, None, request)
