"""LLaMA-Factory: the YAML, JSON or options of `llamafactory-cli train`, and its dataset_info.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sftcore.importers.draft import Draft
from sftcore.importers.peers import shared
from sftcore.importers.peers.launch import environment
from sftcore.importers.peers.shared import attention, beside, field, listed, lora, put_sources
from sftcore.importers.peers.templates import template
from sftcore.importers.read.source import FILL, Source, value_at
from sftcore.importers.read.yaml11 import read_yaml

VERSION = "0.9.5"
_LORA = {
    "r": "lora_rank", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "target_modules": "lora_target",
    "modules_to_save": "additional_target", "use_rslora": "use_rslora", "use_dora": "use_dora",
}  # fmt: skip
_DEFAULTS = {"learning_rate": 5e-5, "logging_steps": 500, "max_length": 2048}
_STAGES = {"sft": "supervised fine-tuning is the one stage here"}
_SAME = {
    "do_train": "a run trains",
    "do_eval": "it evaluates where there are rows for it",
    "overwrite_cache": "",
    "report_to": "",
    "plot_loss": "report.html and loss.svg in the output folder draw it",
    "include_num_input_tokens_seen": "tokens are always counted",
    "ignore_pad_token_for_loss": "padding never counts",
    "preprocessing_batch_size": "the size of the batches that are prepared changes nothing",
    "split_special_tokens": "tokens of the vocabulary are not split",
    "infer_backend": "nothing is generated in training",
    "use_fast_tokenizer": "the fast tokenizer is used",
    "low_cpu_mem_usage": "weights are loaded so",
    "upcast_layernorm": "what is not quantised keeps its dtype",
}
_ROLES = {"user_tag": "user", "assistant_tag": "assistant", "observation_tag": "tool", "system_tag": "system"}


def fill(draft: Draft, file: Path) -> None:
    """Fill in what a configuration of LLaMA-Factory says."""
    if draft.get("stage", "sft") != "sft":
        draft.left(
            f"the stage {draft.get('stage')!r} is not supervised fine-tuning: this recipe would be another training",
            "stage",
        )
    else:
        draft.same(_STAGES["sft"], "stage")
    draft.put("model.name", draft.get("model_name_or_path"), "model_name_or_path")
    kind = str(draft.get("finetuning_type", "lora")).lower()
    _dtypes(draft, kind)
    _adapter(draft, kind)
    _data(draft, file)
    _rows(draft)
    _packing(draft)
    if draft.has("flash_attn"):
        attention(draft, draft.get("flash_attn"), "flash_attn")
    off = draft.get("disable_gradient_checkpointing", False)
    field(draft, "gradient_checkpointing", not off, "disable_gradient_checkpointing")
    draft.put("gradient_checkpointing", not off, note="" if off else "LLaMA-Factory's default")
    if "plot_loss" in draft.source.values:
        draft.same(_SAME["plot_loss"], "plot_loss")
    if draft.get("early_stopping_steps"):
        draft.put("early_stopping_patience", draft.get("early_stopping_steps"), "early_stopping_steps")
    if draft.get("use_dft_loss"):
        draft.put("loss", "dft", "use_dft_loss")
    for key, why in _SAME.items():
        if draft.has(key) and why and not draft.knows((key,)):
            draft.same(why, key)
    environment(draft)
    shared.remaining(draft, "llamafactory")
    shared.defaults(draft, _DEFAULTS)


def _dtypes(draft: Draft, kind: str) -> None:
    """Weights: in bfloat16 under bf16, where trained ones are cast to float32 unless pure_bf16 is set."""
    pure, half = draft.get("pure_bf16", False), draft.get("fp16", False)
    if draft.get("bf16") or pure:
        if kind == "full" and not pure:
            draft.put("model.dtype", "float32", note="all weights train, and LLaMA-Factory casts those to float32")
            draft.put("bf16", True, "bf16")
        else:
            draft.put("model.dtype", "bfloat16", "pure_bf16" if pure else "bf16", note="its bf16 loads the weights so")
            if draft.has("bf16"):
                draft.put("bf16", draft.get("bf16"), "bf16")
            if pure and kind == "lora":
                draft.put("adapter_dtype", "bfloat16", "pure_bf16")
                draft.put("master_weights", False, note="with pure_bf16 the adapter has no float32 copies")
    elif half:
        draft.put_gpu("fp16", True, "fp16", what="float16 autocast")
        draft.put(
            "model.dtype", "float32", note="LLaMA-Factory holds frozen weights in float16; fp16 here needs float32"
        )
    else:
        draft.put("model.dtype", "auto", note="without bf16 or fp16 it takes the dtype of the model's configuration")
        draft.put("bf16", False, *(key for key in ("bf16",) if draft.has("bf16")))
    for key in ("pure_bf16", "fp16"):
        if draft.has(key) and not draft.knows((key,)):
            draft.same("off, as it is here", key)


def _adapter(draft: Draft, kind: str) -> None:
    bits = draft.get("quantization_bit")
    if kind == "lora":
        rank = draft.get("lora_rank", 8)
        alpha = FILL if rank == FILL else 2 * int(rank)
        usual = {"r": 8, "lora_alpha": alpha, "lora_dropout": 0.0, "target_modules": "all-linear"}
        of = [key for key in ("finetuning_type", "quantization_bit") if draft.has(key)]
        lora(draft, _LORA, usual, bits=int(bits) if bits in (4, 8) else None, of=of)
        if bits in (4, 8):
            compute = "float16" if draft.get("fp16") else draft.entries["model.dtype"].value
            if bits == 4:
                draft.put("adapter.qlora.quant_type", draft.get("quantization_type", "nf4"), "quantization_type")
                draft.put("adapter.qlora.double_quant", draft.get("double_quantization", True), "double_quantization")
                if compute in ("bfloat16", "float16", "float32"):
                    draft.put("adapter.qlora.compute_dtype", compute)
            draft.same("bitsandbytes quantises the base", "quantization_method")
        return
    if kind == "full":
        draft.same("without the key adapter all weights train", "finetuning_type")
    else:
        draft.left(f"there is no training of kind {kind!r} here: this recipe trains all weights", "finetuning_type")
    why = "all weights train, so that it says nothing"
    draft.same(why, *(key for key in (*_LORA.values(), "lora_target") if draft.has(key)))


def _data(draft: Draft, file: Path) -> None:
    info = _dataset_info(draft, file)
    for key, section in (("dataset", "train"), ("eval_dataset", "eval")):
        names = listed(draft.get(key))
        if not names:
            continue
        found = [_source(draft, name, info) for name in names]
        probabilities = [float(one) for one in listed(draft.get("interleave_probs"))]
        if probabilities and section == "train" and len(probabilities) == len(found):
            found = [{**one, "weight": weight} for one, weight in zip(found, probabilities, strict=True)]
            draft.use("data.train", "interleave_probs")
        if (rows := draft.get("max_samples")) and section == "train":
            found = [{**one, "rows": int(rows)} for one in found]
            draft.use("data.train", "max_samples")
        put_sources(draft, found, key, section=section)
        missing = [name for name in names if not isinstance(value_at(info, (name,)), dict)]
        if missing:
            folder = draft.get("dataset_dir", "data")
            draft.remark(f"data.{section}", f"{', '.join(missing)}: not in {folder}/dataset_info.json; name the file")
    if draft.has("dataset_dir"):
        draft.use("data.train", "dataset_dir")
    size = draft.get("val_size", 0)
    if size:
        share = size < 1
        draft.put("data.eval_fraction" if share else "data.eval_rows", size if share else int(size), "val_size")
    elif draft.has("val_size"):
        draft.same("nothing is held back", "val_size")
    strategy = draft.get("mix_strategy")
    if strategy is not None and strategy != "concat":
        draft.put("data.stop", "all" if "over" in strategy or "once" in strategy else "first", "mix_strategy")
    elif strategy is not None:
        draft.same("the sources are read one after another", "mix_strategy")
    if draft.get("streaming"):
        draft.put("data.streaming", True, "streaming")


def _dataset_info(draft: Draft, file: Path) -> dict[str, Any]:
    """What dataset_info.json says of the data sets, if it lies beside the file or where it is named from."""
    folder = draft.get("dataset_dir", "data")
    if isinstance(folder, dict):
        return folder
    found = beside(file, f"{folder}/dataset_info.json") or beside(file, "dataset_info.json")
    return (read_yaml(found) if found else Source()).values


def _source(draft: Draft, name: str, info: dict[str, Any]) -> dict[str, Any]:
    """One data set: its file, its columns and the tags of its turns."""
    said = value_at(info, (name,))
    if not isinstance(said, dict):
        return {"path": name, "format": None}
    folder = str(draft.get("dataset_dir", "data"))
    path = said.get("hf_hub_url") or said.get("ms_hub_url") or f"{folder}/{said.get('file_name', name)}"
    found = {"path": path, "config": said.get("subset"), "rows": said.get("num_samples")}
    if (split := said.get("split", "train")) != "train":
        found["split"] = split
    columns = said.get("columns") or {}
    if said.get("formatting", "alpaca") == "alpaca":
        usual = {
            "prompt": "instruction",
            "query": "input",
            "response": "output",
            "system": "system",
            "history": "history",
        }
        options = {ours: columns[theirs] for theirs, ours in usual.items() if columns.get(theirs) not in (None, ours)}
        return {**found, "format": {"alpaca": options}}
    tags = said.get("tags") or {}
    options = (
        {"conversations": columns["messages"]} if columns.get("messages", "conversations") != "conversations" else {}
    )
    if columns.get("system"):
        options["system"] = columns["system"]
    if columns.get("tools"):
        options["tools"] = columns["tools"]
    kind = "sharegpt"
    if tags.get("role_tag", "from") == "role":
        kind = "chat"
        options = {"messages" if key == "conversations" else key: value for key, value in options.items()}
        if "messages" not in options:
            options["messages"] = "conversations"
        if options["messages"] == "messages":
            del options["messages"]
    roles = {tags[tag]: role for tag, role in _ROLES.items() if tags.get(tag) not in (None, role)}
    known = {"human": "user", "gpt": "assistant", "observation": "tool", "system": "system"}
    roles = {word: role for word, role in roles.items() if known.get(word) != role}
    return {**found, "format": {kind: {**options, **({"roles": roles} if roles else {})}}}


def _rows(draft: Draft) -> None:
    """What is trained of a row: the answers alone, unless train_on_prompt says otherwise."""
    whole = draft.get("train_on_prompt", False)
    formats = _formats(draft)
    if whole:
        field(draft, "completion_only_loss", False, "train_on_prompt")
    else:
        if "alpaca" not in formats or len(formats) > 1:
            draft.put(
                "assistant_only_loss",
                True,
                *(k for k in ("train_on_prompt",) if draft.has(k)),
                note="it trains the answers alone; we train whole conversations unless told so",
            )
        elif draft.has("train_on_prompt"):
            draft.same("the loss is on the output alone", "train_on_prompt")
    if draft.get("mask_history"):
        kind = next((one for one in ("sharegpt", "chat") if one in formats), "")
        if kind and isinstance(draft.entries.get("format") and draft.entries["format"].value, dict):
            made = {kind: {**draft.entries["format"].value[kind], "trained_turns": "last"}}
            draft.put("format", made, "mask_history")
        else:
            draft.same("the rows have one answer each", "mask_history")
    if draft.has("template"):
        name = str(draft.get("template"))
        if name in ("default", "empty"):
            draft.left("the model's own template is used: compare with sftcore preview", "template")
        else:
            template(draft, name, "template")
    if draft.has("default_system"):
        draft.put("system_prompt", draft.get("default_system"), "default_system")
    keys = [key for key in ("add_tokens", "add_special_tokens", "new_special_tokens") if draft.has(key)]
    if tokens := [token for key in keys for token in listed(draft.get(key))]:
        draft.put("new_tokens", tokens, *keys)


def _formats(draft: Draft) -> set[str]:
    found = draft.entries.get("format")
    names = set(found.value) if found is not None and isinstance(found.value, dict) else set()
    for one in listed(draft.entries["data.train"].value if "data.train" in draft.entries else None):
        if isinstance(one, dict):
            names |= set(one.get("format") or {})
    return names


def _packing(draft: Draft) -> None:
    """Packing: with neat_packing documents are kept apart, as they always are here."""
    length = draft.get("cutoff_len", 2048)
    draft.put("max_length", length, *(key for key in ("cutoff_len",) if draft.has(key)),
              note="" if draft.has("cutoff_len") else "LLaMA-Factory's default")  # fmt: skip
    if draft.get("packing") or draft.get("neat_packing"):
        keys = [key for key in ("packing", "neat_packing") if draft.has(key)]
        note = "" if draft.get("neat_packing") else "packing there lets documents see each other; here they never do"
        draft.put("packing", True, *keys, note=note)
    else:
        draft.same("nothing is packed", *(key for key in ("packing", "neat_packing") if draft.has(key)))
