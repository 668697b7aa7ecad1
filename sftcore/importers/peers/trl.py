"""TRL: the YAML and the options of `trl sft` and of scripts with TrlParser, and Python with SFTTrainer."""

from __future__ import annotations

from typing import Any

from sftcore.importers.draft import Draft
from sftcore.importers.peers import shared
from sftcore.importers.peers.launch import environment
from sftcore.importers.peers.shared import attention, dtype, field, lora
from sftcore.importers.peers.templates import template
from sftcore.importers.read import python
from sftcore.importers.read.python import (
    BITS,
    CONFIG,
    DATA,
    LORA,
    MARKERS,
    MODEL,
    OURS,
    PEFT,
    TEMPLATE,
    TOKENIZER,
    TRAINER,
)
from sftcore.importers.read.source import Key

VERSION = "1.16"
LORA_OPTIONS = {
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target_modules",
    "target_parameters": "lora_target_parameters",
    "modules_to_save": "lora_modules_to_save",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
_PEFT = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0}
"""Defaults of peft.LoraConfig."""
_PEFT_TARGETS = ["q_proj", "v_proj"]
_OF_PEFT = ("r", "lora_alpha", "lora_dropout", "target_modules", "target_parameters", "modules_to_save", "use_rslora",
            "use_dora", "task_type")  # fmt: skip
_SAME_AS_OURS = ("task_type", "inference_mode", "return_dict", "use_cache", "low_cpu_mem_usage")


def fill(draft: Draft) -> None:
    """Fill in what TRL's YAML and options say."""
    draft.put("model.name", draft.get("model_name_or_path"), "model_name_or_path")
    if draft.has("model_revision"):
        draft.put("model.revision", draft.get("model_revision"), "model_revision")
    key = draft.first("dtype", "torch_dtype")
    if draft.has(key):
        draft.put("model.dtype", dtype(draft.get(key)) or draft.get(key), key)
    if draft.has("attn_implementation"):
        attention(draft, draft.get("attn_implementation"), "attn_implementation")
    _adapter(draft)
    _data(draft)
    template = draft.get("chat_template")
    if template is not None:
        template(draft, template, "chat_template")
    environment(draft)
    shared.remaining(draft, "trl")


def _adapter(draft: Draft) -> None:
    bits = 4 if draft.get("load_in_4bit") else 8 if draft.get("load_in_8bit") else None
    if not draft.get("use_peft"):
        why = "without use_peft no adapter is made"
        draft.same(why, *(key for key in (*LORA_OPTIONS.values(), "lora_task_type", "use_peft") if draft.has(key)))
        if bits:
            draft.left("a base in 4 or 8 bits needs an adapter: set use_peft", "load_in_4bit", "load_in_8bit")
        return
    lora(
        draft,
        LORA_OPTIONS,
        {},
        bits=bits,
        of=["use_peft", *(k for k in ("load_in_4bit", "load_in_8bit") if draft.has(k))],
    )
    draft.same("the task of a language model", "lora_task_type")
    if bits:
        draft.default("adapter.qlora.target_modules", _PEFT_TARGETS, "PEFT's default for most models")
    if bits == 4:
        kind = "adapter.qlora."
        draft.put(f"{kind}quant_type", draft.get("bnb_4bit_quant_type", "nf4"), "bnb_4bit_quant_type")
        nested = draft.get("use_bnb_nested_quant", False)
        draft.put(f"{kind}double_quant", nested, "use_bnb_nested_quant", note="TRL's default is false, ours true")
        if draft.has("bnb_4bit_quant_storage"):
            draft.put(f"{kind}storage_dtype", dtype(draft.get("bnb_4bit_quant_storage")), "bnb_4bit_quant_storage")


def _handbook(draft: Draft) -> None:
    """A `dataset_mixture`: of each data set its first rows, as many as its weight says of its own."""
    given = draft.get("dataset_mixture")
    if not isinstance(given, dict) or not isinstance(given.get("datasets"), list):
        return
    found = []
    for i, one in enumerate(given["datasets"]):
        at: Key = ("dataset_mixture", "datasets", i)
        split, weight = str(one.get("split", "train")), float(one.get("weight") or 1)
        part = split if weight >= 1 else f"{split}[:{weight * 100:g}%]"
        found.append({"path": one.get("id"), "config": one.get("config"), "split": part, "columns": one.get("columns")})
        draft.use(
            "data.train", *((*at, name) for name in ("id", "config", "split", "columns", "weight") if name in one)
        )
    shared.put_sources(draft, found)
    _held_back(draft, given.get("test_split_size"), ("dataset_mixture", "test_split_size"))
    if "seed" in given:
        draft.same("rows are trained in an order drawn by the run's seed", ("dataset_mixture", "seed"))


def _held_back(draft: Draft, size: Any, key: Key) -> None:
    """Rows to evaluate on: a share, or from 1 on a number."""
    if size:
        draft.put("data.eval_fraction" if float(size) < 1 else "data.eval_rows", size, key)


def _data(draft: Draft) -> None:
    mixture = draft.get("datasets")
    _handbook(draft)
    if isinstance(mixture, list) and mixture and all(isinstance(one, dict) for one in mixture):
        found = []
        for i, one in enumerate(mixture):
            at: Key = ("datasets", i)
            found.append(_source(draft, one, at))
        draft.put("data.train", found[0] if len(found) == 1 else found)
        if draft.has("dataset_name"):
            draft.left("datasets takes its place, in TRL as here", "dataset_name")
    elif draft.has("dataset_name"):
        draft.put("data.train", draft.get("dataset_name"), "dataset_name")
    if draft.get("dataset_config"):
        draft.put("data.config", draft.get("dataset_config"), "dataset_config")
    for key, ours, usual in (
        ("dataset_train_split", "data.split", "train"),
        ("dataset_test_split", "data.eval_split", "test"),
    ):
        value = draft.get(key)
        if value == usual:
            draft.same("the default here too", key)
        elif value is not None and (ours == "data.split" or _evaluates(draft)):
            draft.put(ours, value, key)
        elif value is not None:
            draft.same("there is no evaluation (eval_strategy)", key)
    if draft.get("dataset_streaming") or draft.get("streaming"):
        draft.put("data.streaming", True, draft.first("dataset_streaming", "streaming"))
    if draft.has("test_split_size"):
        _held_back(draft, draft.get("test_split_size"), ("test_split_size",))
    elif _evaluates(draft) and draft.has("dataset_name") and not mixture:
        draft.put("data.eval", draft.get("dataset_name"), note="TRL evaluates on the test split of the same data set")
    draft.same("buffers are dealt with by torch", "ignore_bias_buffers")


def _evaluates(draft: Draft) -> bool:
    return draft.get("eval_strategy", draft.get("evaluation_strategy", "no")) not in ("no", False)


def _source(draft: Draft, one: dict[str, Any], at: Key) -> dict[str, Any]:
    """A data set of DatasetMixtureConfig, whose fraction keeps the first rows and repeats none."""
    found: dict[str, Any] = {"path": one.get("data_files") or one.get("path")}
    for key, ours in (
        ("path", "path"),
        ("data_files", "path"),
        ("name", "config"),
        ("split", "split"),
        ("columns", "columns"),
    ):
        if one.get(key) is not None:
            draft.use("data.train", (*at, key))
            if ours != "path":
                found[ours] = one[key]
    if one.get("fraction") is not None:
        found["weight"] = float(one["fraction"])
        draft.use("data.train", (*at, "fraction"))
    if one.get("data_dir"):
        found["path"] = one["data_dir"]
        draft.use("data.train", (*at, "data_dir"))
    return found


# --- Python ---


def fill_python(draft: Draft) -> None:
    """Fill in what a script gives to from_pretrained, SFTConfig, LoraConfig, load_dataset and SFTTrainer."""
    groups = (CONFIG, python.PLAIN_ARGUMENTS)
    _python_model(draft)
    _python_tokens(draft)
    _python_adapter(draft)
    python_data(draft)
    markers(draft)
    of_trainer(draft)
    given = draft.get((CONFIG, "model_init_kwargs"))
    if isinstance(given, dict):
        _init_kwargs(draft, given, (CONFIG, "model_init_kwargs"))
    for key in ("max_seq_length",):
        if draft.has((TRAINER, key)):
            draft.put("max_length", draft.get((TRAINER, key)), (TRAINER, key))
    environment(draft)
    shared.remaining(draft, "trl", groups=(*groups, TRAINER))
    if draft.get(python.PLAIN_ARGUMENTS) is not None and draft.get(CONFIG) is None:
        shared.defaults(draft, {**shared.BASE_DEFAULTS, "bf16": False})


def _python_model(draft: Draft) -> None:
    name = next((k for k in ("pretrained_model_name_or_path", "model_name") if draft.has((MODEL, k))), "")
    if name:
        draft.put("model.name", draft.get((MODEL, name)), (MODEL, name))
    elif draft.get((TRAINER, "model")) not in (None, OURS):
        draft.put("model.name", draft.get((TRAINER, "model")), (TRAINER, "model"))
    given = draft.get(MODEL, {})
    _init_kwargs(draft, given, (MODEL,))
    if name and "model.dtype" not in draft.entries:
        draft.default("model.dtype", "auto", "from_pretrained of transformers 5 keeps the dtype that was saved")


def _init_kwargs(draft: Draft, given: dict[str, Any], at: Key) -> None:
    """Arguments of from_pretrained."""
    for name, value in given.items():
        key = (*at, name)
        if draft.knows(key):
            continue
        if value is None:
            draft.same("says nothing", key)
        elif name in ("dtype", "torch_dtype"):
            draft.put("model.dtype", dtype(value) or value, key)
        elif name == "attn_implementation":
            attention(draft, value, key)
        elif name == "revision":
            draft.put("model.revision", value, key)
        elif name == "trust_remote_code":
            field(draft, "trust_remote_code", value, key)
        elif name == "device_map" and (value in ("auto", "cuda", "cuda:0") or isinstance(value, dict)):
            draft.same("the trainer puts the model on its device", key)
        elif name in ("load_in_4bit", "load_in_8bit", "quantization_config"):
            continue
        elif name in _SAME_AS_OURS:
            draft.same("nothing has to be set for it", key)
        elif isinstance(value, (str, int, float, bool)) and value != OURS:
            draft.put(f"model.init_kwargs.{name}", value, key)
        else:
            draft.left("an argument of from_pretrained: model.init_kwargs takes plain values", key)


def _python_tokens(draft: Draft) -> None:
    for name, value in draft.get(TOKENIZER, {}).items():
        key = (TOKENIZER, name)
        if name in ("pad_token", "eos_token", "bos_token") and isinstance(value, str):
            draft.put(name, value, key)
        elif name == "chat_template" and isinstance(value, str):
            template(draft, value, key)
        elif name in ("pretrained_model_name_or_path", "model_name"):
            same = value == draft.get((MODEL, "pretrained_model_name_or_path"), value)
            draft.same("the model's own tokenizer", key) if same else draft.put("chat_template_path", value, key)
        elif name == "trust_remote_code":
            field(draft, name, value, key)
        else:
            draft.same("the tokenizer comes with the model, and rows are padded on the right", key)
    if draft.has((TEMPLATE, "chat_template")):
        template(draft, draft.get((TEMPLATE, "chat_template")), (TEMPLATE, "chat_template"))
    for name in draft.get(TEMPLATE, {}):
        if name != "chat_template":
            why = "roles and keys of messages are known by themselves; format: {chat: {roles: …}} names others"
            draft.same(why, (TEMPLATE, name))


def _python_adapter(draft: Draft) -> None:
    at = next((g for g in (BITS, MODEL) if draft.get((g, "load_in_4bit")) or draft.get((g, "load_in_8bit"))), "")
    bits = None if not at else 4 if draft.get((at, "load_in_4bit")) else 8
    of: list[Key] = [(at, k) for k in ("load_in_4bit", "load_in_8bit") if at and draft.has((at, k))]
    for key in (
        (MODEL, "quantization_config"),
        (TRAINER, "quantization_config"),
        (TRAINER, "peft_config"),
        (PEFT, "peft_config"),
        (PEFT, "model"),
    ):
        if draft.get(key) == OURS:
            of.append(key)
    given = draft.get(LORA)
    if given is None and not any(key[1] == "peft_config" for key in of):
        if bits:
            draft.left("a base in 4 or 8 bits needs an adapter", *of)
        else:
            draft.same("an object of the script, whose settings are above", *of)
        return
    options: dict[str, Key] = {name: (LORA, name) for name in _OF_PEFT}
    rest = {name: value for name, value in (given or {}).items() if name not in _OF_PEFT and value is not None}
    lora(draft, options, _PEFT, bits=bits, of=of, note="PEFT's default")
    kind = "qlora" if bits else "lora"
    draft.same("the task of a language model", (LORA, "task_type"))
    draft.entries.pop(f"adapter.{kind}.task_type", None)
    for name, value in rest.items():
        if value in ("none", True, False) and name in ("bias", "init_lora_weights", "inference_mode"):
            draft.same("PEFT's default here too", (LORA, name))
        elif isinstance(value, (str, int, float, bool, list, dict)):
            draft.put(f"adapter.{kind}.arguments.{name}", value, (LORA, name))
    if bits:
        draft.default("adapter.qlora.target_modules", _PEFT_TARGETS, "PEFT's default for most models")
    if bits == 4:
        bnb(draft, BITS)


def bnb(draft: Draft, group: str) -> None:
    """The settings of BitsAndBytesConfig, whose defaults are fp4 without double quantisation."""
    names = {"bnb_4bit_quant_type": "quant_type", "bnb_4bit_use_double_quant": "double_quant",
             "bnb_4bit_compute_dtype": "compute_dtype", "bnb_4bit_quant_storage": "storage_dtype"}  # fmt: skip
    usual = {"quant_type": "fp4", "double_quant": False, "compute_dtype": "float32"}
    for name, ours in names.items():
        value = draft.get((group, name))
        if value is not None:
            value = (dtype(value) or "bfloat16") if "dtype" in ours else value
            draft.put(f"adapter.qlora.{ours}", value, (group, name))
        elif ours in usual:
            draft.default(f"adapter.qlora.{ours}", usual[ours], "the default of BitsAndBytesConfig")


def python_data(draft: Draft) -> None:
    """The data sets that the script loads: the first is trained on, another evaluated on."""
    groups = [one for one in draft.source.values if one == DATA or one.startswith(f"{DATA} ")]
    for number, group in enumerate(groups):
        one = draft.get(group, {})
        path = one.get("data_files") if one.get("path") in ("json", "csv", "parquet", "text") else one.get("path")
        split = one.get("split")
        if isinstance(path, dict):
            for name, inner in path.items():
                section = "train" if name == "train" else "eval"
                draft.put(f"data.{section}", inner, (group, "data_files", name))
        elif number == 0:
            draft.put("data.train", path, *((group, key) for key in ("path", "data_files") if key in one))
        elif path is not None and (split is not None and not str(split).startswith("train")):
            draft.put("data.eval", path, *((group, key) for key in ("path", "data_files") if key in one))
        elif path is not None and len(groups) == 2 and draft.get((TRAINER, "eval_dataset")) == OURS:
            of = [(group, key) for key in ("path", "data_files") if key in one]
            draft.put("data.eval", path, *of, note="the script's second data set, taken for its eval_dataset")
        else:
            draft.left("another data set of the script: which of them is trained on cannot be told", group)
            continue
        if isinstance(path, dict):
            draft.same("the file's type is seen by its ending", (group, "path"))
        if isinstance(split, str) and split != "train":
            sliced = split[6:-1] if split.startswith("train[") and split.endswith("]") else ""
            if number == 0 and sliced.startswith(":") and sliced[1:].isdigit():
                draft.put("data.rows", int(sliced[1:]), (group, "split"))
            else:
                draft.put("data.split" if number == 0 else "data.eval_split", split, (group, "split"))
        elif split is not None:
            draft.same("the default here too", (group, "split"))
        if isinstance(one.get("name"), str):
            draft.put("data.config", one["name"], (group, "name"))
        if one.get("streaming"):
            draft.put("data.streaming", True, (group, "streaming"))


def markers(draft: Draft) -> None:
    """Answers that are found by their marker: train_on_responses_only, DataCollatorForCompletionOnlyLM."""
    for name, ours in (
        ("response_part", "response_marker"),
        ("response_template", "response_marker"),
        ("instruction_part", "instruction_marker"),
        ("instruction_template", "instruction_marker"),
    ):
        value = draft.get((MARKERS, name))
        if isinstance(value, str):
            draft.put(ours, value, (MARKERS, name))
    for name in draft.get(MARKERS, {}):
        if not draft.knows((MARKERS, name)):
            draft.same("an object of the script", (MARKERS, name))


def of_trainer(draft: Draft) -> None:
    """What SFTTrainer is given: mostly objects whose settings stand elsewhere."""
    for name, value in draft.get(TRAINER, {}).items():
        key = (TRAINER, name)
        if draft.knows(key):
            continue
        if name in ("args", "tokenizer", "processing_class", "model", "train_dataset", "eval_dataset", "trainer"):
            draft.same("an object of the script, whose settings are above", key)
        elif name == "data_collator":
            draft.same("batches are made here by the collator that the run proves right", key)
        elif value == OURS:
            draft.left("an object of the script", key)
