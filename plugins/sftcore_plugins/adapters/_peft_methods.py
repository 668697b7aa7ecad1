"""What the adapters share: facts about PEFT's methods, and putting one around a model."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import attrs

from sftcore import LoadedModel, ModelError, Plan, Probe, Problem
from sftcore.plugin_api import (
    adapter_folder,
    declared_fields,
    prepare_quantised,
    quantisation_asked_for,
    quantisation_of,
    vision_parts,
)
from sftcore_plugins.adapters._fused import fuse
from sftcore_plugins.adapters._module_names import unknown_names
from sftcore_plugins.adapters._ranges import beyond_model

if TYPE_CHECKING:
    from peft import PeftConfig

_OF_PEFT = (TypeError, ValueError, LookupError, AttributeError, NotImplementedError, ImportError, OSError)
"""What PEFT raises for a configuration that it does not take."""

VIRTUAL_TOKENS = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CPT", "CARTRIDGE")
"""Methods that put tokens in front of a row. PEFT drops position ids for most of them, and with those the borders of
packed documents."""

IN_THE_CACHE = ("PREFIX_TUNING", "CARTRIDGE")
"""Methods whose tokens stand in the key-value cache, which gradient checkpointing throws away."""

NOT_ON_4BIT = ("LOHA", "LOKR", "HRA", "ADAPTION_PROMPT")
"""Methods that read a weight's shape, which a 4-bit weight no longer has (tried with peft 0.21, bitsandbytes 0.50)."""

FULL_WEIGHT_INITS = ("pissa", "olora", "corda", "loftq", "eva", "orthogonal", "mica", "lora_ga")
"""Initialisations of LoRA that decompose the weights of a full-precision base."""

SIZED = ("LORA", "LOHA", "LOKR")
"""Methods whose size is LoRA's: a rank, a scale and dropouts."""

NOT_LINEAR = ("embed", "wte", "wpe", "lm_head", "embed_out", "norm", "ln_", "classifier", "score")
"""Parts of the names of modules that bitsandbytes leaves as they are."""


def check_method(
    config: Mapping[str, Any], plan: Plan, probe: Probe, quantised: Mapping[str, Any] | None = None
) -> Iterator[Problem]:
    """Problems of a PEFT configuration, as plain values, with the rest of the run.

    `quantised` are the settings with which the adapter itself has the base quantised.
    """
    method = str(config.get("peft_type") or "LORA").upper()
    settings = plan.settings
    shared = [name for name in ("packing", "padding_free", "eval_packing") if settings.get(name)]
    if method in VIRTUAL_TOKENS and shared:
        yield Problem(
            f"{_spelled(method)} puts virtual tokens before a row and drops the position ids that tell the documents "
            f"of {' and '.join(shared)} apart.",
            fix=f"Use LoRA, or set {' and '.join(f'{name}: false' for name in shared)}.",
        )
    if method in IN_THE_CACHE and settings.get("gradient_checkpointing", True):
        yield Problem(
            f"gradient checkpointing throws away the cache in which the tokens of {_spelled(method)} stand.",
            fix="Set gradient_checkpointing: false.",
        )
    if method == "ADALORA":
        yield Problem(
            "AdaLoRA moves ranks only where something calls update_and_allocate(step) of its model; a run does not.",
            fix="Add a callback that does, or use LoRA.",
            severity="warning",
        )
    if adapter_folder(plan.model) is not None:
        yield Problem(
            "the model is a saved adapter, which trains on, and the run asks for another around it.",
            fix="Drop the adapter (peft_config), or name the adapter's base as the model.",
        )
    if config.get("inference_mode"):
        yield Problem(
            "inference_mode is true, as in the configuration of a saved adapter, so that nothing would train.",
            fix="Set inference_mode to false; to train a saved adapter on, name its folder as the model.",
        )
    if method in SIZED:
        yield from _check_size(config)
    if probe.module_names is not None:
        yield from unknown_names(config, probe.module_names)
    if asked := quantised or quantisation_asked_for(plan.model, probe):
        yield from check_on_quantised(config, asked)
        yield from _check_sharded(plan, asked)


def _check_size(config: Mapping[str, Any]) -> Iterator[Problem]:
    """Ranks, scales and dropouts with which nothing would train, or which PEFT refuses once the weights are read."""
    ranks: dict[str, Any] = {"r": config.get("r"), **_of_pattern(config, "rank_pattern")}
    scales = {name: config.get(name) for name in ("lora_alpha", "alpha")} | _of_pattern(config, "alpha_pattern")
    dropouts = {name: config.get(name) for name in ("lora_dropout", "rank_dropout", "module_dropout")}
    numbers = {name: value for name, value in (ranks | scales | dropouts).items() if isinstance(value, (int, float))}
    for name, value in numbers.items():
        if name in ranks:
            right, limits = value >= 1, "at least 1"
        elif name in scales:
            right, limits = value > 0, "above 0"
        else:
            right, limits = 0 <= value < 1, "at least 0 and below 1"
        if not right:
            yield Problem(f"{name} is {value}.", fix=f"It must be {limits}.")


def _of_pattern(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    given = config.get(name)
    return {f"{name} of {key}": value for key, value in given.items()} if isinstance(given, Mapping) else {}


def _check_sharded(plan: Plan, asked: Mapping[str, Any]) -> Iterator[Problem]:
    if not plan.settings.get("fsdp"):
        return
    storage = str(asked.get("bnb_4bit_quant_storage") or "uint8").removeprefix("torch.")
    if asked.get("load_in_8bit"):
        yield Problem("FSDP cannot shard 8-bit weights.", fix="Use 4 bits, or DDP.")
    elif asked.get("load_in_4bit") and storage != plan.model.dtype:
        yield Problem(
            f"FSDP shards tensors of one dtype, and the 4-bit weights are held in {storage}, the others in "
            f"{plan.model.dtype}.",
            fix=f"Set the storage dtype (storage_dtype, bnb_4bit_quant_storage) to {plan.model.dtype}.",
        )


def check_on_quantised(config: Mapping[str, Any], asked: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems of a PEFT configuration on a base that is quantised as `asked` says."""
    method = str(config.get("peft_type") or "LORA").upper()
    bits = 8 if asked.get("load_in_8bit") else 4 if asked.get("load_in_4bit") else None
    if bits is None:
        return
    if config.get("use_dora") and bits == 8:
        yield Problem(
            "DoRA reads the norm of the base's weights, which 8-bit layers of bitsandbytes cannot give in training.",
            fix="Use 4 bits, or set use_dora: false.",
        )
    if method in NOT_ON_4BIT and bits == 4:
        yield Problem(f"{_spelled(method)} has no layers for 4-bit weights.", fix="Use LoRA, or 8 bits.")
    initial = config.get("init_lora_weights")
    if isinstance(initial, str) and initial.startswith(FULL_WEIGHT_INITS):
        yield Problem(
            f'init_lora_weights "{initial}" decomposes the base\'s weights, which a {bits}-bit base does not have.',
            fix="Load the base without quantisation, or leave init_lora_weights out.",
        )
    if quantised := [name for name in config.get("modules_to_save") or () if not _stays_whole(name)]:
        yield Problem(
            f"modules_to_save names {', '.join(quantised)}: a {bits}-bit base holds whole numbers there, which cannot "
            "be trained.",
            fix="Name them in target_modules instead; embeddings, head and norms can be saved whole.",
        )


def peft_values(config: Any) -> Mapping[str, Any]:
    """A PeftConfig as plain values."""
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    method = values.get("peft_type")
    return {**values, "peft_type": getattr(method, "value", method)}


def fields_of_lora() -> tuple[str, ...]:
    """The names of all that PEFT's LoraConfig takes."""
    own, base = declared_fields("peft.tuners.lora.config", "LoraConfig"), declared_fields("peft.config", "PeftConfig")
    return tuple(dict.fromkeys((*declared_fields("peft.config", "PeftConfigMixin"), *base, *own)))


def make_config(options: Mapping[str, Any], where: str) -> PeftConfig:
    """The PEFT configuration that plain values describe.

    Raises:
        ModelError: PEFT does not know the method, or the method does not take an argument.
    """
    from peft import get_peft_config

    try:
        return get_peft_config(dict(options))
    except _OF_PEFT as error:
        raise ModelError(f"PEFT does not accept this configuration: {error}.", where=where) from error


def wrap(
    loaded: LoadedModel, plan: Plan, config: PeftConfig, where: str, *, fused: bool, ready: bool = False
) -> LoadedModel:
    """The model with an adapter around it, its base prepared where it is quantised.

    With `fused`, LoRA's layers add their product in one operation, where nothing shards their weights. A configuration
    that is not `ready`-made stays off the vision tower of a vision-language model, unless the run says otherwise.

    Raises:
        ModelError: it has an adapter already, or PEFT refuses this one.
    """
    from peft import PeftModel, get_peft_model

    if isinstance(loaded.model, PeftModel):
        raise ModelError(
            "the model is a PeftModel already, and the run asks for another adapter around it.",
            fix="Drop peft_config to train its adapter on, or merge it first: model.merge_and_unload().",
        )
    if getattr(config, "task_type", None) is None:
        config.task_type = "CAUSAL_LM"  # without it PEFT's wrapper does not pass labels on
    names = [name for name, _ in loaded.model.named_modules(remove_duplicate=False) if name]
    for problem in (*unknown_names(peft_values(config), names), *beyond_model(peft_values(config), loaded.model)):
        raise ModelError(problem.what, where=where, fix=problem.fix)
    notes: tuple[str, ...] = _keep_tied(loaded.model, config)
    notes = (*notes, *(() if ready else _with_all_linear(loaded.model, config)))
    wanted = plan.settings.get("freeze_vision_tower")
    if wanted or (wanted is None and not ready):
        notes = (*notes, *_leave_vision_out(loaded.model, config))
    _leave_routers_out(loaded.model, config)
    if quantisation_of(loaded.model):
        _refuse_on_quantised(loaded.model, config, where)
        notes = (*notes, *prepare_quantised(loaded.model, plan.settings))
    try:
        with warnings.catch_warnings():
            # peft 0.21 reads an attribute that transformers 5.24 renamed; users can do nothing about it
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            # what it says of tied weights is handled above, and in merge_adapter
            warnings.filterwarnings("ignore", message="Model (has|with) `tie_word_embeddings=True`")
            model = get_peft_model(loaded.model, config)
    except _OF_PEFT as error:
        raise ModelError(f"PEFT refuses this adapter: {error}", where=where) from error
    if plan.settings.get("gradient_checkpointing"):
        # Frozen embeddings give checkpointed layers inputs without gradients
        model.enable_input_require_grads()
    trainable, total = model.get_nb_trainable_parameters()
    note = f"{config.peft_type.value}: {trainable:,} of {total:,} parameters train ({100 * trainable / total:.2f}%)"
    sharded = plan.settings.get("fsdp") or plan.settings.get("deepspeed")
    if fused and not sharded and (count := fuse(model)):
        note = f"{note}, {count} layers add their product in one operation"
    return attrs.evolve(loaded, model=model, notes=(*loaded.notes, *notes, note))


def _with_all_linear(model: Any, config: PeftConfig) -> tuple[str, ...]:
    """Have LoRA on all linear layers of a model that PEFT knows no default for, as it knows none for those that see."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as KNOWN

    kind = model.config.model_type
    named = getattr(config, "target_modules", ()) is not None or getattr(config, "target_parameters", None)
    if config.peft_type != "LORA" or named or kind in KNOWN:
        return ()
    config.target_modules = "all-linear"
    return (f"the adapter is on all linear layers: PEFT knows no default for {kind}",)


def _leave_vision_out(model: Any, config: PeftConfig) -> tuple[str, ...]:
    """Keep the adapter off the vision tower, by the configuration's own exclusion."""
    if not hasattr(config, "exclude_modules") or not (parts := vision_parts(model)):
        return ()
    _exclude(config, parts)
    return (f"the adapter stays off the vision tower: {', '.join(parts)}",)


def _leave_routers_out(model: Any, config: PeftConfig) -> None:
    """Keep an adapter on all linear layers off routers, which are linear layers that return several tensors."""
    from torch import nn

    if getattr(config, "target_modules", None) != "all-linear" or not hasattr(config, "exclude_modules"):
        return
    found = [
        name
        for name, one in model.named_modules()
        if isinstance(one, nn.Linear) and type(one).forward is not nn.Linear.forward and "Router" in type(one).__name__
    ]
    if found:
        _exclude(config, found)


def _exclude(config: PeftConfig, parts: list[str]) -> None:
    """Exclude these modules, with all that they hold, beside what the configuration excludes."""
    names = "|".join(re.escape(name) for name in parts)
    given = config.exclude_modules
    if isinstance(given, str):
        config.exclude_modules = rf"(?:{given})|(?:{names})(?:\..*)?"
    elif not given:
        config.exclude_modules = rf"(?:{names})(?:\..*)?"
    else:  # what PEFT finds by a list is the modules of these names, and not what they hold
        ends = "|".join(re.escape(name) for name in given)
        config.exclude_modules = rf"(?:.*\.)?(?:{ends})|(?:{names})(?:\..*)?"


def _keep_tied(model: Any, config: PeftConfig) -> tuple[str, ...]:
    """Where embeddings and head share one weight, a trained copy is shared too; an adapter on one needs care later."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding is None or head is None or embedding.weight is not head.weight:
        return ()
    tied = {name.rpartition(".")[2] for name, module in model.named_modules() if module is embedding or module is head}
    saved = tied & set(getattr(config, "modules_to_save", None) or ())
    if saved and hasattr(config, "ensure_weight_tying") and not config.ensure_weight_tying:
        config.ensure_weight_tying = True
        return (f"{' and '.join(sorted(tied))} share one weight, and the trained copy stays shared",)
    targets = getattr(config, "target_modules", None)
    aimed = tied & set(targets) if isinstance(targets, (list, set, tuple)) else set()
    if aimed:
        return (
            f"{' and '.join(sorted(tied))} share one weight and the adapter is on {' and '.join(sorted(aimed))}: "
            "merge with `sftcore merge`, which gives each a weight of its own (PEFT's merge_and_unload changes both)",
        )
    return ()


def _refuse_on_quantised(model: Any, config: PeftConfig, where: str) -> None:
    """What `check` finds where it knows of the quantisation, for a model that came ready-made or quantised."""
    quantised = model.hf_quantizer.quantization_config
    flags = {name: bool(getattr(quantised, name, False)) for name in ("load_in_4bit", "load_in_8bit")}
    for problem in check_on_quantised(peft_values(config), flags):
        raise ModelError(problem.what, where=where, fix=problem.fix)
    whole = [name for name, one in model.named_parameters() if not one.dtype.is_floating_point]
    for saved in getattr(config, "modules_to_save", None) or ():
        if hit := next((name for name in whole if saved in name.split(".")), None):
            raise ModelError(
                f"modules_to_save names {saved}, and {hit} is quantised: it cannot be trained.",
                where=where,
                fix="Name it in target_modules instead; embeddings, head and norms can be saved whole.",
            )


def _stays_whole(name: str) -> bool:
    return any(part in name.lower() for part in NOT_LINEAR) or "proj" not in name.lower()


def _spelled(method: str) -> str:
    return method.replace("_", "-").lower()


def given(**options: Any) -> dict[str, Any]:
    """The options that are not None."""
    return {name: value for name, value in options.items() if value is not None}


def lora_options(r: int | None, alpha: int | None, dropout: float | None) -> dict[str, Any]:
    """LoRA's size with the defaults that are not PEFT's."""
    defaults = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.05}
    return {**defaults, **given(r=r, lora_alpha=alpha, lora_dropout=dropout)}
