"""Checks everything about a run that can be known before torch is imported or a weight is read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sftcore.config.checks import memory_problems
from sftcore.config.processes import process_problems, uses_deepspeed, uses_fsdp, world_size
from sftcore.config.settings.combined import combined_problems
from sftcore.config.settings.idle import idle_problems
from sftcore.config.settings.init_kwargs import ADD_BITS, OF_BITS
from sftcore.config.settings.templates import large_files
from sftcore.core.errors import RecipeError, nearest
from sftcore.core.types import ModelRequest, Plan, Probe, Problem
from sftcore.util.disk import output_problems

OF_SIGHT = ("vision_config", "vq_config")
"""Where models say what sees: a tower, or what turns pictures into codes (Emu3, Chameleon, Janus)."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
_WEIGHTS = ("*.safetensors", "*.gguf", "*.safetensors.index.json")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def probe_run(model: ModelRequest, columns: Sequence[str] | None = None) -> Probe:
    """Read the configuration of a local model, or for a saved adapter that of its base.

    Raises:
        RecipeError: config.json is not valid JSON.
    """
    adapter = adapter_folder(model)
    base = _json(adapter / "adapter_config.json").get("base_model_name_or_path") if adapter else model.name
    path = Path(base or "").expanduser() / "config.json"
    config = _json(path) if base and path.is_file() else None
    return Probe(config, None if columns is None else tuple(columns), ready_model=model.name is None)


def reads_images(config: Any) -> bool:
    """Whether a model with this configuration, or mapping of one, reads images: it says what sees them."""
    found = config if isinstance(config, Mapping) else {name: getattr(config, name, None) for name in OF_SIGHT}
    return any(found.get(name) is not None for name in OF_SIGHT)


def _json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"this file is not valid JSON: {error}.", where=str(path)) from None
    if not isinstance(found, dict):
        raise RecipeError("this file does not hold a JSON object.", where=str(path))
    return found


def adapter_folder(model: ModelRequest) -> Path | None:
    """The folder of the saved adapter that a run names as its model, or None if it names something else."""
    if not model.name:
        return None
    folder = Path(model.name).expanduser()
    is_one = (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()
    return folder if is_one else None


def quantisation_asked_for(model: ModelRequest, probe: Probe) -> dict[str, Any] | None:
    """The settings that quantise the run's base, from the run's arguments or the base's own config.json."""
    kwargs = model.init_kwargs
    flags: dict[str, Any] = {name: True for name in _BITS if kwargs.get(name)}
    if flags:
        flags |= {name: value for name, value in kwargs.items() if name.startswith(OF_BITS)}
    given = kwargs.get("quantization_config")
    values = dict(given or {}) if isinstance(given, Mapping | None) else given.to_dict()
    saved = dict((probe.model_config or {}).get("quantization_config") or {})
    return {**saved, **values, **flags} or None


_BITS = ("load_in_4bit", "load_in_8bit")
_SPREADS = ("auto", "balanced", "balanced_low_0", "sequential")


def core_problems(
    plan: Plan, probe: Probe, *, needs_tokenizer: bool = True, needs_weights: bool = True
) -> list[Problem]:
    """Problems that the core itself finds, in the model's files, output_dir, and contradictory settings."""
    file_problems = model_problems(plan.model, needs_tokenizer, bool(plan.settings.get("allow_pickle")))
    return [
        *([] if not needs_weights and _has_tokenizer(plan.model) else file_problems),
        *_loading_problems(plan, probe),
        *_setting_problems(plan.settings),
        *idle_problems(plan),
        *_task_problems(plan),
        *process_problems(plan),
        *output_problems(plan.settings),
    ]


def _loading_problems(plan: Plan, probe: Probe) -> Iterator[Problem]:
    """Ways of loading that cannot be trained or that exclude each other."""
    kwargs, settings = plan.model.init_kwargs, plan.settings
    ways = [name for name in (*_BITS, "quantization_config") if kwargs.get(name)]
    if len(ways) > 1:
        yield Problem(f"{' and '.join(ways)} exclude each other.", "model_init_kwargs", "Keep one of them.")
    if (beside := [name for name in kwargs if name.startswith(OF_BITS)]) and not any(kwargs.get(one) for one in _BITS):
        yield Problem(f"{', '.join(beside)} without load_in_4bit or load_in_8bit.", "model_init_kwargs", ADD_BITS)
    quantised = quantisation_asked_for(plan.model, probe)
    if quantised and not plan.selected("adapter") and adapter_folder(plan.model) is None:
        yield Problem(
            "a quantised base cannot be trained in full, because its weights are integers.",
            "model_init_kwargs" if ways else f"model {plan.model.name}",
            "Give an adapter (peft_config, or adapter: lora), or load the model without quantisation.",
        )
    if ways and (plan.model.name or "").lower().endswith(".gguf"):
        yield Problem(
            "a GGUF file is quantised in its own way, and its weights are turned back into floats.",
            "model_init_kwargs",
            f"Drop {' and '.join(ways)}, or save the model as a folder first (model.save_pretrained).",
        )
    if kwargs.get("use_safetensors") is False and not settings.get("allow_pickle"):
        yield Problem(
            "use_safetensors: false reads pickle files, which can run code.",
            "model_init_kwargs",
            "Set allow_pickle: true if you trust the file, or drop use_safetensors.",
        )
    spread = kwargs.get("device_map")
    if spread in _SPREADS and world_size() > 1:
        yield Problem(
            f'device_map "{spread}" spreads the model over all devices, and every process would do so.',
            "model_init_kwargs",
            "Drop device_map; each process then uses its own device.",
        )
    yield from _precision_problems(plan)


def _task_problems(plan: Plan) -> Iterator[Problem]:
    """Adapters for another task than the next token."""
    for one in plan.selected("adapter"):
        arguments = one.options.get("arguments")
        named = {**one.options, **(arguments if isinstance(arguments, Mapping) else {})}
        task = getattr(named.get("config"), "task_type", None) or named.get("task_type")
        name = str(getattr(task, "value", task))
        if task is not None and name != "CAUSAL_LM":
            yield Problem(
                f'task_type is "{name}", and what is trained is a causal language model.{nearest(name, ["CAUSAL_LM"])}',
                one.path or "adapter",
                'Write "CAUSAL_LM", or leave it out.',
            )


def _precision_problems(plan: Plan) -> Iterator[Problem]:
    settings = plan.settings
    if settings.get("fp16") and settings.get("use_cpu"):
        yield Problem("float16 autocast needs a GPU.", fix="Set bf16: true, which works on a CPU, or neither.")
    if settings.get("fp16") and plan.model.dtype == "float16" and not plan.selected("adapter"):
        yield Problem(
            "fp16 scales the gradients of float32 weights, but the model's weights are float16.",
            fix="Load it in float32 (dtype: float32).",
        )
    sharded = [name for name, uses in (("fsdp", uses_fsdp), ("deepspeed", uses_deepspeed)) if uses(settings)]
    if sharded and (settings.get("adapter_dtype") == "bfloat16" or settings.get("master_weights")):
        yield Problem(
            f"{sharded[0]} shards the weights and keeps its own master copies.",
            fix="Set adapter_dtype: float32 and drop master_weights.",
        )


def _has_tokenizer(model: ModelRequest) -> bool:
    folder = Path(model.name or "").expanduser()
    return bool(model.name) and any((folder / name).is_file() for name in _TOKENIZER_FILES)


def model_problems(model: ModelRequest, needs_tokenizer: bool, allow_pickle: bool) -> Iterator[Problem]:
    """Problems with the model's files, whatever it is loaded for."""
    if model.name is None:
        return
    path, where = Path(model.name).expanduser(), f"model {model.name}"
    if path.is_file():
        return
    if not path.exists():
        if _is_path(model.name) or model.name.endswith(".gguf") or model.name.count("/") > 1:
            yield Problem("no such folder or file.", where, "Give a hub id (owner/name) or an existing folder.")
        return
    yield from large_files(path)
    if any(path.glob("*.gguf")) and not (path / "config.json").is_file():
        found = sorted(inner.name for inner in path.glob("*.gguf"))
        yield Problem("the folder holds GGUF files.", where, f"Give the file itself: model: {path / found[0]}")
        return
    if adapter := adapter_folder(model):
        yield from _adapter_problems(adapter, allow_pickle)
        return
    if not (path / "config.json").is_file():
        yield Problem("the folder has no config.json.", where, "Give the folder that save_pretrained wrote.")
        return
    if not any(next(path.glob(pattern), None) for pattern in _WEIGHTS):
        pickles = sorted(found.name for pattern in _PICKLES for found in path.glob(pattern))
        if not pickles:
            yield Problem("the folder has no weights.", where, "Give the folder that model.save_pretrained wrote.")
        elif not allow_pickle:
            yield _a_pickle(pickles[0], where)
    if needs_tokenizer and not any((path / name).is_file() for name in _TOKENIZER_FILES):
        yield Problem(
            "the folder has no tokenizer.",
            where,
            "Save it there (tokenizer.save_pretrained), or pass processing_class.",
        )


def _is_path(name: str) -> bool:
    """Whether it can only be the name of a folder or file, which no hub id has, also on Windows."""
    return name.startswith((".", "/", "~")) or "\\" in name or name[1:3] == ":/"


def _adapter_problems(adapter: Path, allow_pickle: bool) -> Iterator[Problem]:
    where = f"model {adapter}"
    base = _json(adapter / "adapter_config.json").get("base_model_name_or_path")
    if not base:
        yield Problem(
            "the adapter does not say which base it belongs to.", where, "Load it yourself, and pass the model object."
        )
    elif _is_path(base) and not Path(base).expanduser().exists():
        yield Problem(f"the adapter's base {base} does not exist.", where, "Set base_model_name_or_path in its config.")
    if not (adapter / "adapter_model.safetensors").is_file() and not allow_pickle:
        if (adapter / "adapter_model.bin").is_file():
            yield _a_pickle("adapter_model.bin", where)
        else:
            yield Problem("the adapter has no weights.", where, "Give the folder that save_pretrained wrote.")


def _a_pickle(name: str, where: str) -> Problem:
    return Problem(
        f"{name} is a pickle file, which can run code when it is read, and there is no safetensors file.",
        where,
        "Convert it (load it where you trust it, then save_pretrained), or set allow_pickle: true.",
    )


def _setting_problems(settings: Mapping[str, Any]) -> Iterator[Problem]:
    template = settings.get("chat_template_path")
    if template is not None and template.endswith((".jinja", ".j2")) and not Path(template).expanduser().is_file():
        yield Problem("no such file.", f"chat_template_path {template}")
    if (settings.get("packing") or settings.get("eval_packing")) and settings.get("max_length", 0) is None:
        yield Problem(
            "packing needs the length of a block, but max_length is null.",
            fix="Set max_length to the tokens of a block.",
        )
    yield from combined_problems(settings)
    yield from memory_problems(settings)
