"""Models in Hugging Face's own layout, and adapters on top of them in PEFT's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sftcore import LoadedModel, LoadOptions, ModelError, ModelRequest, Plan, Probe, Problem, hookimpl, plugin
from sftcore.plugin_api import refuse_endless
from sftcore_plugins.loaders._saved import adapter_config, base_of, has, is_adapter, load_processor


@plugin
class HuggingFace:
    """Models and tokenizers by `from_pretrained`, from a hub id or a folder; a saved adapter brings its base."""

    @hookimpl
    def claims(self) -> Iterable[str]:
        return ["model.load"]

    @hookimpl
    def check(self, plan: Plan, probe: Probe) -> Iterable[Problem]:
        if Path(plan.model.name or "").expanduser().is_file():
            what = "this is a file, and a model is a folder, a .gguf file or an id on the hub."
            fix = "If the model's files lie beside it, name their folder."
            yield Problem(what, f"model {plan.model.name}", fix)

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
        how = {"dtype": request.dtype, **known, **options.kwargs}
        if not (changed := _changed(config, options.kwargs)):
            return LoadedModel(model_class.from_pretrained(request.name, **how), None, request)
        model, found = model_class.from_pretrained(request.name, output_loading_info=True, **how)
        return LoadedModel(model, None, request, _not_as_saved(changed, found))

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
        names = [name for name, _ in base.model.named_modules()]
        refuse_endless(adapter_config(request), names, f"model {request.name}")
        rows = _saved_embedding_rows(request)
        notes: tuple[str, ...] = (f"adapter {request.name} trains on, on its base {base.request.name}",)
        if rows and rows != base.model.get_input_embeddings().weight.shape[0]:
            base.model.resize_token_embeddings(rows)
            notes = (*notes, f"embeddings resized to the {rows} rows that the adapter was saved with")
        model = PeftModel.from_pretrained(base.model, request.name, is_trainable=True, revision=request.revision)
        return LoadedModel(model, None, request, (*base.notes, *notes))


def _changed(config: Any, kwargs: Mapping[str, Any]) -> list[str]:
    """The arguments of `from_pretrained` that give a field of the model's configuration another value."""
    fields = config.to_dict().keys() | config.attribute_map.keys()
    return [name for name, value in kwargs.items() if name in fields - _OF_LOADING and getattr(config, name) != value]


def _not_as_saved(changed: Sequence[str], found: Mapping[str, Any]) -> tuple[str, ...]:
    """A note where values of the user's for these fields of the configuration leave weights out or make new ones.

    Args:
        changed: the fields.
        found: transformers' account of what it loaded.
    """
    left_out, new = sorted(found["unexpected_keys"]), sorted(found["missing_keys"])
    told = [f"{len(left_out)} weights are left out, such as {left_out[0]}"] if left_out else []
    told += [f"{len(new)} weights are new and random, such as {new[0]}"] if new else []
    return (f"{' and '.join(changed)} made another model of the saved one: {'; '.join(told)}",) if told else ()


_OF_LOADING = {"dtype", "torch_dtype", "attn_implementation", "quantization_config"}
"""Fields of a configuration that say how a model is loaded, and not which."""
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
