"""Load, patch, wrap: from a request to a model that is ready to train."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import attrs

from sftcore.config.attention import pads, shortcomings
from sftcore.core.door import Origin
from sftcore.core.errors import ConflictError, ModelError, SFTCoreError
from sftcore.core.registry import ActivePlugins
from sftcore.core.types import AttentionBackend, LoadedModel, LoadOptions, LossFunction, Plan, Selection
from sftcore.model.attention import replaced_attention
from sftcore.model.kernels import Kernels
from sftcore.model.loss import loss_of
from sftcore.model.precision import (
    cast_adapter,
    dtype_notes,
    forget_unpacked,
    keep_gradients,
    quantisation_of,
)
from sftcore.model.unwrap import is_peft_model
from sftcore.model.verify.asked_for import hold_asked_for, watched
from sftcore.model.verify.base_kept import Base
from sftcore.model.verify.given_options import hold_options, said_of_options, unknown_argument
from sftcore.model.verify.registration import register
from sftcore.util.claims import refused, spelled
from sftcore.util.foreign import in_our_words
from sftcore.util.warned import warn

_HANDLED = (OSError, ImportError, KeyError, ValueError, TypeError)
"""Errors of a loader that `load_model` puts into words of its own."""


def load_model(plan: Plan, plugins: ActivePlugins, processor: Any) -> LoadedModel:
    """The model with its processor, loaded by the loader with the merged options of all plugins.

    Raises:
        ConflictError: two plugins, or a plugin and the user, want different values for one argument.
        ModelError: it cannot be loaded, or the loader did not keep the dtype that was asked for.
        BrokenPluginError: the loader did not keep the revision or the arguments that were asked for.
        UnknownKeyError: `from_pretrained` and the model do not know an argument of the user's.
    """
    attention = attention_of(plan, plugins)
    options = merged_options(plan, plugins, attention)
    (request, read), (given, read_options) = watched(plan.model), watched(options)
    loaders = plugins.answers("load_model")
    # what transformers says of a name is put into words below; another loader speaks for itself
    leaves = Exception if all(one.entry.is_own for one in loaders) else ()
    try:
        with in_our_words("the model cannot be loaded", ModelError, where=f"model {plan.model.name}", leaves=_HANDLED):
            loaded: LoadedModel = plugins.one("load_model", leaves=leaves, request=request, options=given)
    except (SFTCoreError, TypeError) as error:
        if (unknown := unknown_argument(error, plan, plugins)) is not None:
            raise unknown from error
        raise
    except (OSError, ImportError) as error:
        if "use_safetensors" in str(error) and not plan.settings.get("allow_pickle"):
            raise ModelError(
                "there is no safetensors file; other weights are pickle files (*.bin), which can run code when they "
                "are read.",
                where=f"model {plan.model.name}",
                fix="Set allow_pickle: true if you trust them, or name a model with safetensors.",
            ) from error
        raise ModelError(
            f"the model cannot be loaded: {_first_line(error)}",
            where=f"model {plan.model.name}",
            fix="Check the name or the folder; without a network, give a local folder.",
        ) from error
    except KeyError as error:
        # transformers' older models look their attention up in a table of their own
        if attention is not None and error.args == (attention[1].implementation,):
            raise _no_such_attention(attention[0], plan.model.name or "the model") from error
        raise
    except ValueError as error:
        fix = "It carries custom code: set trust_remote_code=True if you trust it."
        code = f" {fix}" if "custom code" in str(error) else ""
        what = f"the model cannot be loaded: {_first_line(error)}{code}"
        raise ModelError(what, where=f"model {plan.model.name}") from error
    _with_model(loaded, loaders[0].origin("load_model"))
    notes = hold_asked_for(loaders[0], loaded.model, plan, options, read | read_options)
    notes += said_of_options(plan, plugins, loaded.model)
    notes += () if plan.candidates else _taken_attention(loaded.model, attention)
    return attrs.evolve(loaded, processor=processor, request=plan.model, notes=(*loaded.notes, *notes))


def attention_of(plan: Plan, plugins: ActivePlugins) -> tuple[Selection, AttentionBackend] | None:
    """The attention of the run, known to transformers, and who chose it; None where no plugin has one."""
    if not (chosen := plugins.answers("attention_backend")):
        return None
    backend: AttentionBackend = plugins.one("attention_backend", request=plan.model)
    before = None if plan.candidates else plan.attention
    if before is not None and before.implementation != backend.implementation:
        fault = f'answered "{before.implementation}" before, and answers "{backend.implementation}" now'
        raise chosen[0].origin("attention_backend").fault(fault)
    register(backend, chosen[0].origin("attention_backend"))
    return chosen[0].selection, backend


def refuse_unsupported(plan: Plan, plugins: ActivePlugins, model: Any, dtype: str, device: str) -> None:
    """Refuse a dtype ("bfloat16"), device ("cuda"), padding or dropout that the run's attention does not declare.

    Raises:
        ModelError: with what it declares.
    """
    attention = attention_of(plan, plugins)
    if attention is None:
        return
    if plan.candidates:
        return  # the run takes another then
    selection, backend = attention
    config = model.config.get_text_config().to_dict()
    for what, fix in shortcomings(backend, device, dtype, config, padded=pads(plan)):
        raise ModelError(f"{selection.label} {what}.", fix=fix)


def adopt_model(model: Any, processor: Any, plan: Plan, plugins: ActivePlugins) -> LoadedModel:
    """A ready model object; an attention that was chosen explicitly is set on it, the default leaves it as it is."""
    notes: tuple[str, ...] = ()
    if forget_unpacked(model):
        notes = (f"the model's weights were turned back into {model.dtype}, floats that train, when it was loaded",)
    attention = attention_of(plan, plugins)
    if attention is not None and not attention[0].default:
        if replaced := replaced_attention(model):
            raise ModelError(
                f"{type(model).__name__} computes attention by {replaced}, whatever {attention[0].label} says.",
                where=attention[0].path,
                fix="Leave the attention out, or load the model with transformers.",
            )
        try:
            model.set_attn_implementation(attention[1].implementation)
        except (ValueError, KeyError, ImportError) as error:
            raise _no_such_attention(attention[0], type(model).__name__, _first_line(error)) from error
        notes += _taken_attention(model, attention) or (
            f"attention of the given model set to {attention[1].implementation}",
        )
    return LoadedModel(model, processor, plan.model, notes)


def _taken_attention(model: Any, attention: tuple[Selection, AttentionBackend] | None) -> tuple[str, ...]:
    """A note where the model took another attention than the run's.

    Raises:
        ModelError: the run's was chosen explicitly, and the model stayed with one of transformers' own two.
    """
    taken = getattr(model.config, "_attn_implementation", None)
    if attention is None or taken in (None, attention[1].implementation):
        return ()
    if not attention[0].default and taken in ("eager", "sdpa"):
        raise _no_such_attention(attention[0], type(model).__name__, f"it stays with {taken}")
    return (f"attention {taken}: the model has no {attention[1].implementation}",)


def _no_such_attention(selection: Selection, model: str, reason: str = "") -> ModelError:
    return ModelError(
        f"{model} has no {selection.label}{reason and f' ({reason})'}: its class computes attention in its own way.",
        where=selection.path,
        fix="Choose attention eager or sdpa, or another model.",
    )


def finish_model(
    loaded: LoadedModel, plan: Plan, plugins: ActivePlugins, kernels: Kernels
) -> tuple[LoadedModel, LossFunction]:
    """Kernels, the loss, and the adapter around the model: in this order, which the hooks rely on.

    Raises:
        ModelError: the model is quantised and has no adapter, or nothing in it trains.
        BrokenPluginError: a kernel cannot be taken off again, or with its adapter nothing trains.
    """
    notes = [*loaded.notes]
    has_adapter = bool(plugins.answers("wrap_model")) or is_peft_model(loaded.model)
    if (quantised := quantisation_of(loaded.model)) and not has_adapter:
        raise ModelError(
            f"the model is quantised ({quantised}), and its weights cannot be trained.",
            fix="Give an adapter (peft_config, or adapter: lora), or load the model without quantisation.",
        )
    if quantised:
        keep_gradients(loaded.model)
    elif plan.settings.get("prepare_in_int8_kwargs") is not None:
        warn("prepare_in_int8_kwargs does nothing: the model is not quantised.")
    notes += kernels.on(loaded)
    loaded = attrs.evolve(loaded, notes=tuple(notes))
    loss = loss_of(plugins, loaded, plan)
    if wrappers := plugins.answers("wrap_model"):
        origin = wrappers[0].origin("wrap_model")
        base = Base.of(loaded)
        is_sketch = _devices(loaded.model) == {"meta"}  # as an estimate draws it
        wrapped = _with_model(plugins.one("wrap_model", loaded=loaded, plan=plan), origin, is_sketch=is_sketch)
        if wrapped.processor is None and loaded.processor is not None:
            raise origin.fault("returned a LoadedModel without the processor that it was given")
        loaded = attrs.evolve(wrapped, notes=(*wrapped.notes, *base.hold(wrappers[0], wrapped)))
    elif is_peft_model(loaded.model):
        loaded = attrs.evolve(loaded, notes=(*loaded.notes, *_train_on(loaded.model, plan.settings)))
    if is_peft_model(loaded.model):
        cast_adapter(loaded.model, plan.settings.get("adapter_dtype") or "float32")
    if not any(parameter.requires_grad for parameter in loaded.model.parameters()):
        for one in plugins.answers("wrap_model"):
            raise refused(one, "no parameter of the model trains once it is around it (wanted: at least 1)")
        others = (*plugins.answers("load_model"), *plugins.answers("patch_kernels"))
        theirs = ", ".join(spelled(one) for one in others if not one.entry.is_own)
        raise ModelError(
            f"no parameter of the model is trainable{theirs and f', after {theirs}'}.",
            fix="Load a PeftModel with is_trainable=True, or unfreeze the layers you want to train.",
        )
    return attrs.evolve(loaded, notes=(*loaded.notes, *dtype_notes(loaded.model, plan.settings))), loss


def _devices(model: Any) -> set[str]:
    return {one.device.type for one in model.parameters()}


def _with_model(loaded: LoadedModel, origin: Origin, *, is_sketch: bool = False) -> LoadedModel:
    """What a plugin loaded or wrapped, if there is a model in it as transformers has them.

    Weights of the meta device are none, unless the model is a sketch whose shapes alone are asked for.
    """
    import torch

    kind = type(loaded.model).__name__
    if not isinstance(loaded.model, torch.nn.Module):
        raise origin.fault(f"returned a LoadedModel whose model is {kind}; expected a module")
    for name in ("config", "get_input_embeddings"):
        if not hasattr(loaded.model, name):
            wanted = "expected a model of transformers, or one that hands its attributes on"
            raise origin.fault(f'returned a LoadedModel whose model, {kind}, has no "{name}"; {wanted}')
    config = type(loaded.model.config).__name__
    if not hasattr(loaded.model.config, "get_text_config"):
        raise origin.fault(
            f"returned a LoadedModel whose model, {kind}, has a {config} as its config; expected a PretrainedConfig"
        )
    try:
        embeddings = loaded.model.get_input_embeddings()
    except Exception as error:  # a class of its own may raise anything
        raise origin.named(error) from error
    is_whole = os.environ.get("WORLD_SIZE", "1") == "1" and not is_sketch
    if is_whole and _devices(loaded.model) == {"meta"}:
        raise origin.fault(f"returned a LoadedModel whose model, {kind}, has no weights: all are on the device meta")
    if not isinstance(getattr(embeddings, "weight", None), torch.Tensor):
        raise origin.fault(f"returned a LoadedModel whose model, {kind}, has no embeddings of tokens")
    return loaded


def _train_on(model: Any, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """A ready PeftModel: its active adapter trains on."""
    if settings.get("gradient_checkpointing"):
        model.enable_input_require_grads()
    keep_gradients(model)
    active, known = model.active_adapters, list(model.peft_config)
    others = [name for name in known if name not in active]
    kept = f"; {', '.join(others)} stays as it is" if others else ""
    return (f"adapter {', '.join(active)} of the given PeftModel trains on{kept}",)


def merge_adapter(model: Any) -> Any:
    """The base with the adapter merged into it, whose logits are those of the unmerged model.

    Where embeddings and head share one weight and the adapter changes either as a layer, merging into the shared
    weight would change both; each gets a weight of its own first.

    Raises:
        ModelError: the base is quantised, so that merging would round the adapter away; the method cannot be merged.
    """
    if quantised := quantisation_of(model):
        raise ModelError(
            f"the base is quantised ({quantised}), and merging would round the adapter to its few bits.",
            fix="Load the base without quantisation, put the adapter on it with PeftModel.from_pretrained, and merge.",
        )
    if not hasattr(model.base_model, "merge_and_unload"):
        method = model.peft_config[model.active_adapter].peft_type.value
        raise ModelError(f"{method} adds virtual tokens and has no weights to merge.", fix="Keep it apart.")
    _untie(model)
    return model.merge_and_unload()


def _untie(model: Any) -> None:
    import torch

    causal = model.get_base_model()
    embedding, head = causal.get_input_embeddings(), causal.get_output_embeddings()
    layers = [getattr(one, "base_layer", None) for one in (embedding, head)]
    inner = [one if layer is None else layer for one, layer in zip((embedding, head), layers, strict=True)]
    if all(layer is None for layer in layers) or inner[0].weight is not inner[1].weight:
        return
    inner[1].weight = torch.nn.Parameter(inner[1].weight.detach().clone(), requires_grad=False)
    for config in (causal.config, causal.config.get_text_config()):
        config.tie_word_embeddings = False


def merged_options(
    plan: Plan, plugins: ActivePlugins, attention: tuple[Selection, AttentionBackend] | None
) -> LoadOptions:
    """Every plugin's arguments for `from_pretrained` and the user's own, merged.

    Raises:
        ConflictError: two of them want different values for one argument.
    """
    users = dict(plan.model.init_kwargs)
    answers: list[tuple[str, Mapping[str, Any]]] = [("model_init_kwargs", users)]
    # The default attention is transformers' own choice too, which falls back where a model has none of it
    if attention is not None and not attention[0].default:
        users.pop("attn_implementation", None)
        answers.append((attention[0].label, {"attn_implementation": attention[1].implementation}))
    if not plan.settings.get("allow_pickle"):
        answers.append(("allow_pickle: false", {"use_safetensors": True}))
    for one, options in plugins.all("load_options", request=plan.model):
        hold_options(one, options, plan.model)
        answers.append((one.entry.label, options.kwargs))
    merged: dict[str, Any] = {}
    giver: dict[str, str] = {}
    for name, kwargs in answers:
        for key, value in kwargs.items():
            if key in merged and merged[key] is not value and merged[key] != value:
                raise ConflictError(
                    f'{giver[key]} and {name} want different values for "{key}" of from_pretrained: '
                    f"{merged[key]!r} and {value!r}.",
                    fix="Drop one of them.",
                )
            merged[key], giver[key] = value, giver.get(key, name)
    return LoadOptions(merged)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
