"""ms-swift: the options of `swift sft`, from a shell script or a YAML or JSON file."""

from __future__ import annotations

import math
import re
from typing import Any

from sftcore.importers.draft import Draft
from sftcore.importers.peers import shared
from sftcore.importers.peers.launch import environment
from sftcore.importers.peers.shared import attention, dtype, field, json_value, listed, lora, put_sources
from sftcore.importers.peers.templates import template
from sftcore.importers.read.source import ENVIRONMENT, FILL, LAUNCHER

VERSION = "4.6"
_LORA = {
    "r": "lora_rank", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout", "target_modules": "target_modules",
    "target_parameters": "target_parameters", "modules_to_save": "modules_to_save", "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}  # fmt: skip
_DEFAULTS = {
    "gradient_checkpointing": True,
    "logging_steps": 5,
    "logging_first_step": True,
    "weight_decay": 0.1,
    "adam_beta2": 0.95,
    "lr_scheduler_type": "cosine",
    "dataloader_num_workers": 1,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
}
_SAME = {
    "use_hf": "models and data come from the Hugging Face hub, or are local",
    "lazy_tokenize": "rows are prepared once and kept",
    "load_from_cache_file": "prepared rows are kept in $SFTCORE_CACHE",
    "add_version": "output_dir is used as it is",
    "create_checkpoint_symlink": "",
    "check_model": "",
    "task_type": "a language model is trained",
    "model_type": "the class is the model's own",
    "packing_num_proc": "rows are packed from the whole data set",
    "strict": "a row that cannot be read is refused",
    "dataset_shuffle": "rows are trained in an order drawn by the seed",
    "train_dataloader_shuffle": "",
    "safe_serialization": "models are always saved so",
    "ddp_backend": "",
    "tuner_backend": "PEFT makes the adapter",
    "padding_side": "rows are padded on the right in training",
    "acc_strategy": "",
    "lora_bias": "PEFT's default here too",
    "val_dataset_shuffle": "",
    "ignore_args_error": "unknown settings are always refused",
}


def fill(draft: Draft) -> None:
    """Fill in what the options of `swift sft` say."""
    key = draft.first("model", "model_id_or_path")
    note = (
        ""
        if draft.get("use_hf")
        else "ms-swift takes it from ModelScope unless use_hf is set; here it is the Hugging Face hub"
    )
    draft.put("model.name", draft.get(key), key, note="" if _local(draft.get(key)) else note)
    if draft.has("model_revision"):
        draft.put("model.revision", draft.get("model_revision"), "model_revision")
    _dtypes(draft)
    if draft.has("attn_impl"):
        attention(draft, draft.get("attn_impl"), "attn_impl")
    full = _adapter(draft)
    _data(draft)
    _rows(draft)
    _training(draft, full)
    if str(draft.get("train_dataloader_shuffle", True)).lower() == "false":
        if draft.get("group_by_length"):
            draft.same("group_by_length says the order of the rows", "train_dataloader_shuffle")
        else:
            draft.put("train_sampling_strategy", "sequential", "train_dataloader_shuffle")
    for name, why in _SAME.items():
        if draft.has(name) and not draft.knows((name,)):
            draft.same(why or "nothing has to be set for it", name)
    environment(draft)
    shared.remaining(draft, "swift")
    shared.defaults(draft, {**_DEFAULTS, "learning_rate": 1e-5 if full else 1e-4})


def _local(name: Any) -> bool:
    return str(name).startswith((".", "/", "~"))


def _dtypes(draft: Draft) -> None:
    said = dtype(draft.get("torch_dtype")) if draft.has("torch_dtype") else None
    if said is None:
        draft.put("model.dtype", "auto", note="ms-swift takes the dtype of the model's configuration")
    else:
        draft.put("model.dtype", said, "torch_dtype")
    if draft.has("bf16"):
        field(draft, "bf16", draft.get("bf16"), "bf16")
    elif said == "bfloat16":
        draft.put("bf16", True, note="it follows the dtype in ms-swift")
    elif said is not None:
        draft.put_gpu("fp16", True, what="float16 autocast", note="it follows the dtype in ms-swift")


def _adapter(draft: Draft) -> bool:
    """Whether all weights train."""
    key = draft.first("tuner_type", "train_type", "sft_type")
    kind = str(draft.get(key, "lora")).lower()
    bit_key = draft.first("quant_bits", "quantization_bit")
    bits = draft.get(bit_key)
    bits = int(bits) if str(bits) in ("4", "8") else None
    if kind in ("lora", "longlora"):
        usual = {"r": 8, "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": "all-linear"}
        lora(draft, _LORA, usual, bits=bits, of=[one for one in (key, bit_key) if draft.has(one)])
        name = "qlora" if bits else "lora"
        if draft.has("target_regex"):
            draft.put(f"adapter.{name}.target_modules", draft.get("target_regex"), "target_regex")
        if (init := draft.get("init_weights")) is not None and str(init).lower() not in ("true", "none"):
            draft.put(f"adapter.{name}.arguments.init_lora_weights", init, "init_weights")
        elif init is not None:
            draft.same("PEFT's default here too", "init_weights")
        if str(draft.get("lora_bias", "none")) != "none":
            draft.put(f"adapter.{name}.arguments.bias", draft.get("lora_bias"), "lora_bias")
        if (given := dtype(draft.get("lora_dtype"))) == "bfloat16":
            draft.put("adapter_dtype", given, "lora_dtype")
        elif draft.has("lora_dtype"):
            draft.same("the adapter is float32", "lora_dtype")
        if bits == 4:
            _quantisation(draft)
        if draft.has("quant_method"):
            draft.same("bitsandbytes quantises the base", "quant_method")
        return False
    if kind == "full":
        draft.same("without the key adapter all weights train", key)
    else:
        draft.left(f"there is no training of kind {kind!r} here: this recipe trains all weights", key)
    draft.same("all weights train, so that it says nothing", *(one for one in _LORA.values() if draft.has(one)))
    return True


def _quantisation(draft: Draft) -> None:
    names = {"quant_type": ("bnb_4bit_quant_type", "nf4"), "double_quant": ("bnb_4bit_use_double_quant", True)}
    for ours, (key, usual) in names.items():
        draft.put(f"adapter.qlora.{ours}", draft.get(key, usual), *(k for k in (key,) if draft.has(k)))
    compute = dtype(draft.get("bnb_4bit_compute_dtype"))
    if compute:
        draft.put("adapter.qlora.compute_dtype", compute, "bnb_4bit_compute_dtype")


def _data(draft: Draft) -> None:
    for key, section in (("dataset", "train"), ("val_dataset", "eval")):
        names = draft.get(key)
        names = names if isinstance(names, list) else [] if names is None else [names]
        if not names:
            continue
        found = [_source(str(one), section) for one in names]
        weights = draft.get("interleave_prob")
        if isinstance(weights, list) and section == "train" and len(weights) == len(found):
            found = [{**one, "weight": float(weight)} for one, weight in zip(found, weights, strict=True)]
            draft.use("data.train", "interleave_prob")
        put_sources(draft, found, key, section=section)
        if any(one.get("rows") for one in found):
            draft.remark(f"data.{section}", "ms-swift draws its #N rows at random; these are the first N")
        if any(one["path"].startswith(("AI-ModelScope/", "swift/")) for one in found):
            draft.remark(f"data.{section}", "on ModelScope; name the data set of the Hugging Face hub, or a file")
    share = draft.get("split_dataset_ratio", 0)
    if share and not draft.has("val_dataset"):
        draft.put("data.eval_fraction", share, "split_dataset_ratio")
    elif draft.has("split_dataset_ratio"):
        draft.same("nothing is held back", "split_dataset_ratio")
    if draft.get("streaming"):
        draft.put("data.streaming", True, "streaming")
    columns = json_value(draft.get("columns"))
    if isinstance(columns, dict):
        turned = {ours: theirs for theirs, ours in columns.items()}
        if "messages" in turned:
            draft.put("format", {"chat": {"messages": turned["messages"]}}, "columns")
        elif {"query", "response"} <= set(turned):
            draft.put("format", {"alpaca": {"instruction": turned["query"], "output": turned["response"]}}, "columns")
        else:
            draft.left("columns are mapped by the format's options", "columns")


def _source(text: str, section: str) -> dict[str, Any]:
    """A data set of ms-swift: `hf::owner/name:subset#rows`."""
    text = re.sub(r"^(?:hf|ms|HF|MS)::", "", text)
    rows = None
    if match := re.search(r"#(\d+)$", text):
        rows, text = int(match[1]), text[: match.start()]
    subset = None
    if not _local(text) and text.count("/") == 1 and ":" in text:
        text, _, subset = text.partition(":")
    return {
        "path": text,
        "config": None if subset in (None, "default") else subset,
        "rows": rows if section == "train" else None,
    }


def _rows(draft: Draft) -> None:
    scale = str(draft.get("loss_scale", "default"))
    said = [key for key in ("loss_scale",) if draft.has(key)]
    if scale == "all":
        field(draft, "completion_only_loss", False, *said)
    else:
        note = "ms-swift trains the answers alone; we train whole conversations unless told so"
        draft.put("assistant_only_loss", True, *said, note=note)
        if scale in ("last_round", "last_round_with_ignore_empty_think"):
            draft.left("the last answer alone: format: {chat: {trained_turns: last}}", *said)
        elif scale not in ("default", "ignore_empty_think"):
            draft.left("weights by the kind of text: a message's own weight does that here", *said)
    if draft.has("system"):
        draft.put("system_prompt", str(draft.get("system")).replace("\\n", "\n"), "system")
    if draft.has("template"):
        template(draft, draft.get("template"), "template")
    if draft.has("new_special_tokens"):
        draft.put("new_tokens", listed(draft.get("new_special_tokens")), "new_special_tokens")
    length = draft.get("max_length")
    if length is not None:
        draft.put("max_length", length, "max_length")
    else:
        draft.put("max_length", None, note="ms-swift takes the model's own limit")
    strategy = str(draft.get("truncation_strategy", "delete"))
    ours = {"delete": "drop", "right": "cut", "left": "cut", "split": "split"}.get(strategy, "drop")
    keys = [key for key in ("truncation_strategy",) if draft.has(key)]
    draft.put("long_rows", ours, *keys, note="" if keys else "ms-swift leaves out what is too long")
    if strategy == "left":
        draft.put("truncation_mode", "keep_end", *keys)
    if draft.get("packing"):
        draft.put("packing", True, "packing")
        if draft.has("packing_length"):
            draft.left("packed rows are max_length long", "packing_length")
    if draft.has("padding_free"):
        if draft.get("padding_free"):
            draft.same("batches are without padding where the run proves that this changes nothing", "padding_free")
        else:
            draft.same("off", "padding_free")


def _training(draft: Draft, full: bool) -> None:
    batch = draft.get("per_device_train_batch_size", 1)
    if not draft.has("gradient_accumulation_steps"):
        number = draft.get((ENVIRONMENT, "NPROC_PER_NODE"), draft.get((LAUNCHER, "num_processes"), 1))
        processes = int(number) if str(number).isdigit() else 1
        steps = FILL if batch == FILL else max(1, math.ceil(16 / int(batch) / processes))
        draft.put("gradient_accumulation_steps", steps, note="ms-swift's default makes 16 rows a step")
    evaluates = draft.has("val_dataset") or bool(draft.get("split_dataset_ratio"))
    strategy = draft.get("eval_strategy", draft.get("save_strategy", "steps"))
    if evaluates and not draft.has("eval_strategy"):
        draft.put("eval_strategy", strategy, note="as save_strategy, which is ms-swift's default")
        if strategy == "steps" and not draft.has("eval_steps"):
            draft.put("eval_steps", draft.get("save_steps", 500), note="as save_steps, which is ms-swift's default")
    elif not evaluates:
        keys = [key for key in ("eval_strategy", "eval_steps") if draft.has(key)]
        draft.same("there are no rows to evaluate on", *keys)
    if (deep := draft.get("deepspeed")) is not None:
        if str(deep) == "zero0":
            draft.same("stage 0 shards nothing, as several processes without DeepSpeed", "deepspeed")
        else:
            field(draft, "deepspeed", json_value(deep), "deepspeed")
    if not draft.has("report_to"):
        draft.put("report_to", "none", note="ms-swift's default is tensorboard")
    for name in ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs"):
        if draft.has(name):
            field(draft, name, json_value(draft.get(name)), name)
    if draft.get("max_epochs"):
        draft.left("num_train_epochs says how long", "max_epochs")
    if draft.get("enable_dft_loss"):
        draft.put("loss", "dft", "enable_dft_loss")
