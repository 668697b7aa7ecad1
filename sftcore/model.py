"""Load, patch, wrap: from a request to a model that is ready to train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import attrs
from attrs import frozen

from sftcore.errors import ConflictError, ModelError
from sftcore.loss import bind_loss
from sftcore.registry import ActivePlugins, Bound
from sftcore.types import AttentionBackend, LoadedModel, LoadOptions, Plan, Removable, Selection


def load_processor(plan: Plan, plugins: ActivePlugins) -> Any:
    """The tokenizer or processor of the model, before any weight is read.

    Raises:
        ModelError: there is none, or it cannot be loaded.
    """
    try:
        return plugins.one("load_processor", request=plan.model)
    except (OSError, ValueError, ImportError) as error:
        raise ModelError(
            f"the tokenizer cannot be loaded: {_first_line(error)}",
            where=f"model {plan.model.name}",
            fix="Give a model with a tokenizer, or pass processing_class.",
        ) from error


def load_model(plan: Plan, plugins: ActivePlugins, processor: Any) -> LoadedModel:
    """The model with its processor, loaded by the loader with the merged options of all plugins.

    Raises:
        ConflictError: two plugins, or a plugin and the user, want different values for one argument.
        ModelError: it cannot be loaded.
    """
    attention = attention_of(plan, plugins)
    options = merged_options(plan, plugins, attention)
    try:
        loaded: LoadedModel = plugins.one("load_model", request=plan.model, options=options)
    except (OSError, ImportError) as error:
        raise ModelError(
            f"the model cannot be loaded: {_first_line(error)}",
            where=f"model {plan.model.name}",
            fix="Check the name or the folder; without a network, give a local folder.",
        ) from error
    except ValueError as error:
        code = (
            " It carries custom code: set trust_remote_code=True if you trust it."
            if "custom code" in str(error)
            else ""
        )
        raise ModelError(
            f"the model cannot be loaded: {_first_line(error)}{code}", where=f"model {plan.model.name}"
        ) from error
    notes = loaded.notes
    taken = getattr(loaded.model.config, "_attn_implementation", None)
    if attention is not None and taken not in (None, attention[1].implementation):
        notes = (*notes, f"attention {taken}: the model has no {attention[1].implementation}")
    return attrs.evolve(loaded, processor=processor, notes=notes)


def attention_of(plan: Plan, plugins: ActivePlugins) -> tuple[Selection, AttentionBackend] | None:
    """The attention of the run and who chose it; None where no plugin has one."""
    chosen = plugins.answers("attention_backend")
    return (chosen[0].selection, plugins.one("attention_backend", request=plan.model)) if chosen else None


def refuse_unsupported(plan: Plan, plugins: ActivePlugins, dtype: str, device: str) -> None:
    """Refuse a dtype ("bfloat16") or device ("cuda") that the run's attention does not declare.

    Raises:
        ModelError: with what it declares.
    """
    attention = attention_of(plan, plugins)
    if attention is None:
        return
    selection, backend = attention
    for what, taken, declared in (("dtype", dtype, backend.dtypes), ("device", device, backend.devices)):
        if declared and taken not in declared:
            raise ModelError(
                f"{selection.label} does not support the {what} {taken}.",
                fix=f"It supports: {', '.join(declared)}. Change the {what}, or choose another attention.",
            )


def adopt_model(model: Any, processor: Any, plan: Plan, plugins: ActivePlugins) -> LoadedModel:
    """A ready model object; an attention that was chosen explicitly is set on it, the default leaves it as it is."""
    notes: tuple[str, ...] = ()
    attention = attention_of(plan, plugins)
    if attention is not None and not attention[0].default:
        model.set_attn_implementation(attention[1].implementation)
        notes = (f"attention of the given model set to {attention[1].implementation}",)
    return LoadedModel(model, processor, plan.model, notes)


def finish_model(loaded: LoadedModel, plan: Plan, plugins: ActivePlugins) -> LoadedModel:
    """Kernels, the loss inside the forward, and the adapter around it: in this order, which the hooks rely on."""
    notes = [*loaded.notes]
    for one, report in plugins.all("patch_kernels", loaded=loaded, plan=plan):
        skipped = "".join(f", {name} skipped: {why}" for name, why in report.skipped.items())
        notes.append(f"{one.selection.label} replaced {', '.join(report.replaced) or 'nothing'}{skipped}")
    causal = loaded.model.get_base_model() if _is_peft_model(loaded.model) else loaded.model
    bound = bind_loss(causal, plugins.one("make_loss", loaded=loaded, plan=plan))
    if not bound.gathers:
        notes.append(f"the loss builds all logits: {bound.reason}")
    loaded = attrs.evolve(loaded, notes=tuple(notes))
    if plugins.answers("wrap_model"):
        loaded = plugins.one("wrap_model", loaded=loaded, plan=plan)
    elif _is_peft_model(loaded.model) and plan.settings.get("gradient_checkpointing"):
        loaded.model.enable_input_require_grads()
    if not any(parameter.requires_grad for parameter in loaded.model.parameters()):
        raise ModelError(
            "no parameter of the model is trainable.",
            fix="Load a PeftModel with is_trainable=True, or unfreeze the layers you want to train.",
        )
    return loaded


def merged_options(
    plan: Plan, plugins: ActivePlugins, attention: tuple[Selection, AttentionBackend] | None
) -> LoadOptions:
    """Every plugin's arguments for `from_pretrained` and the user's own, merged."""
    users = dict(plan.model.init_kwargs)
    answers: list[tuple[str, Mapping[str, Any]]] = [("model_init_kwargs", users)]
    # The default attention is transformers' own choice too, which falls back where a model has none of it
    if attention is not None and not attention[0].default:
        users.pop("attn_implementation", None)
        answers.append((attention[0].label, {"attn_implementation": attention[1].implementation}))
    answers += [(one.entry.label, options.kwargs) for one, options in plugins.all("load_options", request=plan.model)]
    return LoadOptions(_merge(answers))


def _merge(answers: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
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
    return merged


@frozen
class Noise:
    """Noise that is on in training only."""

    plugins: ActivePlugins
    plan: Plan
    loaded: LoadedModel
    _handles: list[tuple[Bound, Removable]] = attrs.field(factory=list)

    def on(self) -> None:
        """Inject what the run's noise plugins have, unless it is there already."""
        if not self._handles:
            self._handles.extend(self.plugins.all("inject_noise", loaded=self.loaded, plan=self.plan))

    def off(self) -> bool:
        """Remove it; True where there was some."""
        was_on = bool(self._handles)
        for _, handle in self._handles:
            handle.remove()
        self._handles.clear()
        return was_on


def _is_peft_model(model: Any) -> bool:
    import sys

    peft = sys.modules.get("peft")  # a model cannot be PEFT's where PEFT was never imported
    return peft is not None and isinstance(model, peft.PeftModel)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
