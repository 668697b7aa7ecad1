"""What the importers share: adapters, attention, launchers, trackers, and settings whose names the table knows."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from sftcore.config.fields import config_fields
from sftcore.config.foreign.table import lookup
from sftcore.config.foreign.values import ATTENTION, DTYPES, OPTIMIZERS
from sftcore.config.settings.older_names import GONE, OLDER, RENAMED, TRANSLATED, WITHOUT_EFFECT
from sftcore.core.errors import SFTCoreError
from sftcore.importers.draft import Draft
from sftcore.importers.read.source import ACCELERATE, ENVIRONMENT, FILL, LAUNCHER, Key, leaves
from sftcore.importers.read.yaml11 import scalar

Groups: TypeAlias = "Sequence[str]"
"""Keys under which settings stand that belong to the top: the calls of a script."""
Adjust: TypeAlias = "Callable[[Draft], None]"

BASE_DEFAULTS: Mapping[str, Any] = {"learning_rate": 5e-5, "logging_steps": 500, "gradient_checkpointing": False}
"""Defaults of transformers 5's TrainingArguments that are not those of SFTConfig."""
_GPU_SETTINGS: Mapping[str, str] = {
    "fp16": "float16 autocast", "tf32": "tf32", "deepspeed": "DeepSpeed", "fsdp": "FSDP", "fsdp_config": "FSDP",
    "activation_offloading": "offloading of activations", "use_liger_kernel": "Liger's kernels",
    "torch_compile": "torch.compile", "ddp_find_unused_parameters": "several processes",
}  # fmt: skip
_STRATEGIES = ("eval_strategy", "save_strategy", "logging_strategy", "evaluation_strategy")
_FSDP = {
    "backward_prefetch", "cpu_ram_efficient_loading", "transformer_layer_cls_to_wrap", "use_orig_params",
    "sync_module_states", "min_num_params", "activation_checkpointing", "reshard_after_forward", "state_dict_type",
    "version",
}  # fmt: skip
_IRRELEVANT = ("do_train", "do_eval", "do_predict", "prediction_loss_only")


def dtype(value: Any) -> str | None:
    """A data type's name as a recipe writes it; None where it is none."""
    return DTYPES.get(str(value).lower())


def attention(draft: Draft, value: Any, *of: str | Key) -> None:
    """The attention that a peer names."""
    text = str(value[0] if isinstance(value, list) and value else value)
    ours = ATTENTION.get(text.lower())
    if ours == "auto":
        draft.same("the fastest attention that the run supports is chosen", *of)
    elif ours in ("sdpa", "eager"):
        draft.put("attention", ours, *of)
    elif ours is not None:
        draft.put_gpu("attention", ours, *of, what="flash attention")
    elif "/" in text:
        draft.put_gpu("attention", {"hub": {"kernel": text}}, *of, what="a kernel from the hub")
    else:
        draft.left(f"there is no attention {text!r}; the fastest that the run supports is chosen", *of)


def lora(draft: Draft, options: Mapping[str, str | Key], defaults: Mapping[str, Any], *, bits: int | None = None,
         of: Sequence[str | Key] = (), kind: str = "", note: str = "") -> None:  # fmt: skip
    """An adapter: its options by the peer's keys, and the defaults that differ.

    Args:
        draft: what is filled in.
        options: the keys of the peer by the names of the plugin's options.
        defaults: values of the peer's own, where its file says nothing.
        bits: how many bits the base is held in; None is all of them.
        of: the settings that say that there is an adapter, and in how many bits its base is held.
        kind: the plugin, where it is neither lora nor qlora.
        note: whose the defaults are, if not the peer's.
    """
    name = kind or ("qlora" if bits else "lora")
    if bits:
        draft.put(f"adapter.{name}.bits", bits, *of)
    for option, key in options.items():
        if (value := draft.get(key)) is not None:
            draft.put(f"adapter.{name}.{option}", _as_option(option, value), key)
        elif option in defaults:
            draft.default(f"adapter.{name}.{option}", defaults[option], note)
    if not any(one.startswith(f"adapter.{name}.") for one in draft.entries):
        draft.put("adapter", name, *of)
    for key in of:
        draft.put(next(one for one in draft.entries if one.startswith("adapter")), _first_adapter(draft), key)


def _first_adapter(draft: Draft) -> Any:
    return next(entry.value for one, entry in draft.entries.items() if one.startswith("adapter"))


def _as_option(option: str, value: Any) -> Any:
    if option == "target_modules" and str(value).lower() in ("all", "all-linear", "['all-linear']", "['all']"):
        return "all-linear"
    if option in ("target_modules", "modules_to_save", "target_parameters") and isinstance(value, str):
        listed = [one.strip() for one in value.split(",") if one.strip()]
        return value if option == "target_modules" and any(sign in value for sign in "*()|\\") else listed
    if option == "r" or option == "lora_alpha":
        return int(value) if isinstance(value, float) and value.is_integer() else value
    if option == "lora_dropout" and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    return value


def field(draft: Draft, ours: str, value: Any, *of: str | Key, note: str = "") -> None:
    """A setting of SFTConfig, which may need a GPU."""
    if isinstance(value, str) and ours not in ("output_dir", "run_name", "seed"):
        value = _typed(ours, value)
    if ours in _STRATEGIES and value is False:
        value = "no"
    if ours == "optim":
        _optimizer(draft, value, of, note)
        return
    if ours == "deepspeed" and _deepspeed_by_name(value) != value:
        value, note = _deepspeed_by_name(value), note or "the configuration of that name"
    if ours in _GPU_SETTINGS and value not in (None, False, "", [], {}):
        draft.put_gpu(ours, _joined(ours, value), *of, what=_GPU_SETTINGS[ours], note=note)
        return
    draft.put(ours, _joined(ours, value), *of, note=note)


def _deepspeed_by_name(value: Any) -> Any:
    """A configuration that other tools ship, by its name here; anything else as it is.

    >>> [_deepspeed_by_name(one) for one in ("zero2", "examples/deepspeed/ds_z3_offload_config.json", "my.json")]
    ['zero2', 'zero3-offload', 'my.json']
    """
    if not isinstance(value, str) or Path(value).is_file():
        return value
    ends = r"((?:_bf16)?_(?:cpu)?offload(?:_param\w*|_all)?)?(?:_bf16|_config)*(?:\.json)?$"
    match = re.search(r"(?:^|[/_-])(?:zero|z)([123])" + ends, value)
    if match is None or (match[1] == "1" and match[2]):
        return value
    return f"zero{match[1]}{'-offload' if match[2] else ''}"


def _optimizer(draft: Draft, value: Any, of: Sequence[str | Key], note: str) -> None:
    ours = OPTIMIZERS.get(str(value).lower(), value)
    if "paged" in str(ours) or ("8bit" in str(ours) and "torch" not in str(ours)):
        draft.put_gpu("optim", ours, *of, what=f"the optimizer {ours}", note=note)
    else:
        draft.put("optim", ours, *of, note=note)


def _typed(ours: str, value: str) -> Any:
    """A text that the peer makes a number or a switch of."""
    read = scalar(value)
    wanted = str(config_fields().get(ours))
    return read if isinstance(read, (int, float)) and any(one in wanted for one in ("int", "float", "bool")) else value


def fsdp(draft: Draft, given: Mapping[str, Any], key: Key) -> None:
    """The settings of FSDP by the names of today: without the prefix that accelerate's file gives them."""
    names = {name: str(name).removeprefix("fsdp_") for name in given}
    config = {ours: given[name] for name, ours in names.items() if ours in _FSDP and given[name] is not None}
    before = draft.entries.get("fsdp")
    parts = str(before.value).split() if before is not None else _sharded({names[name]: given[name] for name in given})
    offload = [name for name, ours in names.items() if ours == "offload_params" and given[name] is True]
    parts += ["offload"] if offload and "offload" not in parts else []
    draft.put_gpu("fsdp", " ".join(parts), *((*key, name) for name in offload), what="FSDP")
    if config:
        used = [(*key, name) for name, ours in names.items() if ours in _FSDP]
        draft.put_gpu("fsdp_config", config, *used, what="the settings of FSDP")
    for name in given:
        if not draft.knows((*key, name)):
            draft.same("what fsdp says, or always so", (*key, name))


def _sharded(names: Mapping[str, Any]) -> list[str]:
    full = str(names.get("sharding_strategy", "FULL_SHARD")).upper() in ("FULL_SHARD", "1")
    wrapped = names.get("auto_wrap_policy", "TRANSFORMER_BASED_WRAP") != "NO_WRAP"
    return ["full_shard" if full else "shard_grad_op", *(["auto_wrap"] if wrapped else [])]


def _joined(ours: str, value: Any) -> Any:
    if ours == "packing_strategy":
        return {"ffd": "bfd", "bfd-requeue": "bfd_split"}.get(value, value)
    if ours == "fsdp" and isinstance(value, list):
        return " ".join(map(str, value))
    if ours in ("optim_args", "debug") and isinstance(value, Mapping):
        return ",".join(f"{key}={one}" for key, one in value.items())
    return value


def remaining(draft: Draft, peer: str, *, groups: Groups = ()) -> None:
    """Settings that nothing has dealt with: by the table of foreign names, or fields that are called the same here."""
    seen: set[Key] = set()
    for leaf, value in [*leaves(draft.source.values)]:
        top: Key = leaf[:1] if leaf[0] not in groups else leaf[:2]
        if leaf[0] in (ENVIRONMENT, LAUNCHER, ACCELERATE) or top in seen or draft.knows(leaf):
            continue
        name = ".".join(str(part) for part in leaf[len(top) - 1 :])
        if not _by_name(draft, str(top[-1]), draft.get(top), top, peer):
            _by_name(draft, name, value, leaf, peer)
        else:
            seen.add(top)


def _by_name(draft: Draft, name: str, value: Any, key: Key, peer: str) -> bool:
    """Whether a name was found, in the table or among the fields."""
    plain = name.replace("-", "_")
    if plain == "fsdp_config" and isinstance(value, Mapping) and value:
        fsdp(draft, value, key)
        return True
    if value is None and (plain in config_fields() or plain in OLDER or lookup(plain, peer) is not None):
        draft.same("says nothing", key)
        return True
    if plain in _IRRELEVANT:
        draft.same("a run trains, and evaluates where it has rows for it", key)
        return True
    if plain in config_fields() and not lookup(plain, peer):
        field(draft, plain, value, key)
        return True
    if plain in OLDER:
        return _older(draft, plain, value, key)
    entry = lookup(plain, peer)
    if entry is None:
        return False
    try:
        made = entry.translated(value)
    except SFTCoreError as error:
        what = error.what.rstrip(".").replace(entry.names[0], name, 1)
        draft.left(what + (f": {entry.note}" if entry.note else ""), key)
        return True
    except (TypeError, ValueError, AttributeError):
        draft.left("a value of another kind than the tool takes", key)
        return True
    if not made:
        off = value in (False, 0, "", "no", "false", "none", [], {})
        draft.same("off, as it is here" if off else entry.note.rstrip(".") or "nothing has to be set for it", key)
    for path, one in made.items():
        ours = {"model": "model.name", "data": "data.train"}.get(path, path)
        if ours in ("model.name", "data.train") and not _names(one):
            draft.left("not a name, as a recipe has there", key)
        elif ours == "adapter" and any(each.startswith("adapter.") for each in draft.entries):
            draft.use("adapter", key)
        elif ours in draft.entries and draft.entries[ours].value != one:
            draft.left(f"{ours} is set already; {entry.note}".rstrip("; "), key)
        elif ours.partition(".")[0] in config_fields():
            field(draft, ours, one, key, note=entry.note if _changes(entry.note) else "")
        else:
            draft.put(ours, one, key)
    return True


def _names(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value))


def _changes(note: str) -> bool:
    return "here" in note and "There" in note


def _older(draft: Draft, name: str, value: Any, key: Key) -> bool:
    if name in RENAMED:
        field(draft, RENAMED[name], value, key)
    elif name == "warmup_ratio":
        warmup_ratio(draft, value, key)
    elif name in TRANSLATED:
        _, ours, values = TRANSLATED[name]
        if value in (True, "true", "True"):
            field(draft, ours, values[True], key)
        else:
            draft.same("off, as it is here", key)
    elif name in WITHOUT_EFFECT:
        draft.same(WITHOUT_EFFECT[name][1], key)
    else:
        draft.left(GONE.get(name, "it is gone from transformers").rstrip("."), key)
    return True


def warmup_ratio(draft: Draft, value: Any, key: str | Key) -> None:
    """A share of all steps, which is warmup_steps below 1 here; a number of steps beside it takes precedence."""
    number = scalar(value) if isinstance(value, str) else value
    if not number:
        draft.same("no warm-up, as here", key)
    elif draft.entries.get("warmup_steps") and draft.entries["warmup_steps"].value:
        draft.left("warmup_steps takes precedence", key)
    else:
        draft.put("warmup_steps", number, key, note="below 1 it is a share of all steps")


def defaults(draft: Draft, values: Mapping[str, Any]) -> None:
    """Write out defaults of the peer's that are not ours."""
    for ours, value in values.items():
        if ours == "optim":
            if ours not in draft.entries and ("8bit" not in str(value) or not draft.without_gpu):
                draft.default(ours, value)
        else:
            draft.default(ours, value)


def json_value(value: Any) -> Any:
    """A mapping or list that stands as JSON in a shell's argument."""
    if isinstance(value, str) and value[:1] in ("{", "["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def listed(value: Any) -> list[Any]:
    """A value that may be a list, or a text with commas, as a list.

    >>> listed("a, b"), listed(["a"]), listed(None)
    (['a', 'b'], ['a'], [])
    """
    if value is None:
        return []
    if isinstance(value, str):
        return [one.strip() for one in value.split(",") if one.strip()]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def beside(file: Path, name: str) -> Path | None:
    """A file that another names: from the current folder, the file's own, or one above it."""
    for folder in (Path(), file.parent, *list(file.resolve().parents)[1:4]):
        found = folder / name
        if found.is_file():
            return found
    return None


def put_sources(draft: Draft, found: Sequence[Mapping[str, Any]], *of: str | Key, section: str = "train") -> None:
    """The sources of rows: one as `data.train` with the run's format, several each with its own.

    Args:
        draft: what is filled in.
        found: keys of a source by name; what is None is left out.
        of: the settings that name the sources.
        section: `train` or `eval`.
    """
    plain = [{name: value for name, value in one.items() if value is not None} for one in found]
    formats = [one.get("format") for one in plain]
    if section == "train" and formats[0] is not None and all(each == formats[0] for each in formats):
        draft.put("format", formats[0])
    of_run = draft.entries["format"].value if "format" in draft.entries else None
    plain = [{name: value for name, value in one.items() if name != "format" or value != of_run} for one in plain]
    made = [one["path"] if set(one) == {"path"} else {"path": FILL, **one} for one in plain]
    draft.put(f"data.{section}", made[0] if len(made) == 1 else made, *of)


def answers_alone(source: Mapping[str, Any]) -> dict[str, Any]:
    """A source whose format says that the answers of its conversations are trained, whatever others train."""
    given = source["format"]
    name = next(iter(given), "") if isinstance(given, dict) else ""
    said = name in ("chat", "sharegpt")
    return {**source, "format": {name: {**given[name], "trained_turns": "answers"}} if said else given}
