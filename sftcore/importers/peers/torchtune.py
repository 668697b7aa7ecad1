"""torchtune: the YAML of `tune run`, with its components and references."""

from __future__ import annotations

import re
from typing import Any

from sftcore.config.foreign.values import OPTIMIZERS
from sftcore.importers.draft import Draft
from sftcore.importers.peers import shared
from sftcore.importers.peers.launch import environment
from sftcore.importers.peers.shared import answers_alone, dtype, field, lora, put_sources
from sftcore.importers.read.source import FILL, Key, leaves

VERSION = "0.6"
_ATTENTION = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "output_proj": "o_proj"}
_MLP = ["gate_proj", "up_proj", "down_proj"]
_SAME = {
    "low_cpu_ram": "weights are loaded so", "collate_fn": "the collator is chosen by what the run proves",
    "device": "the device that is there is used", "log_peak_memory_stats": "memory is always recorded",
    "profiler": "no profile is made; torch's own profiler can be run around it", "shuffle": "", "recipe": "",
    "save_adapter_weights_only": "an adapter is saved alone", "log_level": "nothing has to be set for it",
    "enable_async_checkpointing": "checkpoints are written in whole", "cudnn_deterministic_mode": "",
    "fsdp_cpu_offload": "", "custom_sharded_layers": "",
}  # fmt: skip
_SOURCES = {"alpaca_dataset": "tatsu-lab/alpaca", "alpaca_cleaned_dataset": "yahma/alpaca-cleaned",
            "slimorca_dataset": "Open-Orca/SlimOrca-Dedup"}  # fmt: skip
_NAMES = {"llama3_2_1b": "meta-llama/Llama-3.2-1B", "llama3_2_3b": "meta-llama/Llama-3.2-3B"}


def fill(draft: Draft) -> None:
    """Fill in what a configuration of torchtune says."""
    folder = draft.get(("checkpointer", "checkpoint_dir"))
    draft.put(
        "model.name",
        folder or FILL,
        ("checkpointer", "checkpoint_dir"),
        note="the folder with the model as the hub has it",
    )
    _dtypes(draft)
    _model(draft)
    _data(draft)
    _training(draft)
    _optimizer(draft)
    for key in ("teacher_model", "teacher_checkpointer", "kd_loss", "kd_ratio", "quantizer"):
        if draft.has(key):
            draft.left(
                "distillation and training for quantisation are not done here: this recipe is another training", key
            )
    for leaf, _ in [*leaves(draft.source.values)]:
        if draft.knows(leaf):
            continue
        if leaf[0] == "checkpointer":
            draft.same("checkpoints are the model as the hub has it, in output_dir", leaf)
        elif leaf[0] == "tokenizer" and leaf[1:] != ("max_seq_len",):
            draft.same("the tokenizer comes with the model", leaf)
        elif leaf[0] in _SAME:
            draft.same(_SAME[str(leaf[0])] or "nothing has to be set for it", leaf)
    environment(draft)
    shared.remaining(draft, "torchtune")


def _dtypes(draft: Draft) -> None:
    said = dtype(draft.get("dtype", "bf16")) or "bfloat16"
    draft.put(
        "model.dtype",
        said,
        *(k for k in ("dtype",) if draft.has(k)),
        note="all weights and what is computed are of this dtype in torchtune",
    )
    draft.put("bf16", False, note="there is no autocast in torchtune")


def _model(draft: Draft) -> None:
    component = str(draft.get(("model", "_component_"), ""))
    name = component.rpartition(".")[2]
    if name.startswith(("lora_", "qlora_", "dora_")) or draft.has(("model", "lora_rank")):
        modules = [_ATTENTION.get(str(one), str(one)) for one in draft.get(("model", "lora_attn_modules"), [])]
        modules += _MLP if draft.get(("model", "apply_lora_to_mlp")) else []
        modules += ["lm_head"] if draft.get(("model", "apply_lora_to_output")) else []
        bits = 4 if name.startswith("qlora_") or draft.get(("model", "quantize_base")) else None
        options: dict[str, str | Key] = {
            "r": ("model", "lora_rank"),
            "lora_alpha": ("model", "lora_alpha"),
            "lora_dropout": ("model", "lora_dropout"),
            "use_dora": ("model", "use_dora"),
        }
        usual = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0}
        lora(draft, options, usual, bits=bits, of=[("model", "_component_")])
        kind = "qlora" if bits else "lora"
        keys: list[Key] = [("model", one) for one in ("lora_attn_modules", "apply_lora_to_mlp", "apply_lora_to_output")]
        draft.put(
            f"adapter.{kind}.target_modules",
            modules,
            *(key for key in keys if draft.has(key)),
            note="torchtune's modules by the names of transformers",
        )
        if bits:
            draft.use("adapter.qlora.bits", ("model", "quantize_base"))
            draft.put("adapter.qlora.compute_dtype", draft.entries["model.dtype"].value)
            draft.put("adapter.qlora.double_quant", True, note="torchtune's NF4 quantises the scales too")
        elif name.startswith("dora_"):
            draft.put("adapter.lora.use_dora", True)
        if draft.entries["model.dtype"].value == "bfloat16":
            draft.put("adapter_dtype", "bfloat16", note="torchtune's adapter has the dtype of the weights")
            draft.put("master_weights", False, note="and no float32 copies")
    elif component:
        draft.same("all weights of the model in checkpoint_dir are trained", ("model", "_component_"))
    for name in draft.get("model", {}) if isinstance(draft.get("model"), dict) else {}:
        if not draft.knows(("model", name)):
            draft.left("the architecture is that of the model in checkpoint_dir", ("model", name))


def _data(draft: Draft) -> None:
    given = draft.get("dataset")
    many = given if isinstance(given, list) else [given] if isinstance(given, dict) else []
    trained: set[str] = set()
    found = [
        _source(draft, one, ("dataset", i) if isinstance(given, list) else ("dataset",), trained)
        for i, one in enumerate(many)
    ]
    evaluated = draft.get("dataset_val")
    held = [_source(draft, evaluated, ("dataset_val",), trained)] if isinstance(evaluated, dict) else []
    by_source = "turns" in trained and bool(trained & {"whole", "whole turns"})
    for section, sources, said in (("train", found, many), ("eval", held, [evaluated])):
        if by_source:
            sources = [
                made if one.get("train_on_input") else answers_alone(made)
                for made, one in zip(sources, said, strict=False)
            ]
        if sources:
            put_sources(draft, sources, section=section)
    if "whole" in trained:
        draft.put("completion_only_loss", False, note="train_on_input is true: prompts are trained too")
        if "answers" in trained:
            draft.remark("completion_only_loss", "of every source, though train_on_input is false for some")
    if "turns" in trained and not by_source:
        draft.put(
            "assistant_only_loss",
            True,
            note="torchtune trains the assistant's turns alone; we train whole conversations unless told so",
        )
    packed = any(one.get("packed") for one in many)
    for i, one in enumerate(many):
        at: Key = ("dataset", i) if isinstance(given, list) else ("dataset",)
        if "packed" in one:
            draft.use("packing", (*at, "packed")) if packed else draft.same("nothing is packed", (*at, "packed"))
    if packed:
        draft.put("packing", True)
    length = draft.get(("tokenizer", "max_seq_len"))
    if length is not None:
        draft.put("max_length", length, ("tokenizer", "max_seq_len"))
    else:
        draft.put(
            "max_length", None, ("tokenizer", "max_seq_len"), note="torchtune cuts nothing unless max_seq_len says so"
        )
    if draft.get("shuffle") is False:
        draft.put("train_sampling_strategy", "sequential", "shuffle")


def _source(draft: Draft, one: dict[str, Any], at: Key, trained: set[str]) -> dict[str, Any]:
    name = str(one.get("_component_", "")).rpartition(".")[2]
    source = one.get("source") or _SOURCES.get(name) or FILL
    path = one.get("data_files") or source
    columns = one.get("column_map") or {}
    whole = one.get("train_on_input", name in ("alpaca_dataset", "alpaca_cleaned_dataset"))
    made: Any = None
    if name.startswith("alpaca"):
        options = {ours: theirs for ours, theirs in columns.items() if ours != theirs}
        made = {"alpaca": options}
        draft.remark(
            "model.name",
            "torchtune puts Alpaca's prompt text into the user's message; here it is instruction and input alone",
        )
    elif name == "instruct_dataset":
        prompt, answer = columns.get("input", "input"), columns.get("output", "output")
        made = {"alpaca": {"instruction": prompt, "input": "", "output": answer}}
    elif name in ("chat_dataset", "multimodal_chat_dataset", "slimorca_dataset"):
        style, column = one.get("conversation_style", "sharegpt"), one.get("conversation_column", "conversations")
        kind, option, usual = (
            ("sharegpt", "conversations", "conversations") if style == "sharegpt" else ("chat", "messages", "messages")
        )
        made = {kind: {} if column == usual else {option: column}}
        trained.add("whole turns" if whole else "turns")
    elif name == "text_completion_dataset":
        made = {"text": {"field": one.get("column", "text")}}
        if one.get("add_eos") is False:
            draft.left("the EOS is appended once where a text does not end with it", (*at, "add_eos"))
    elif name:
        draft.left(f"there is no format like {name} here: write one that reads these rows", (*at, "_component_"))
    if not made or next(iter(made)) == "alpaca":
        trained.add("whole" if whole else "answers")
    if one.get("new_system_prompt"):
        draft.put("system_prompt", one["new_system_prompt"], (*at, "new_system_prompt"))
    rows, split = None, one.get("split")
    if match := re.fullmatch(r"train\[:(\d+)\]", str(split)):
        rows, split = int(match[1]), None
    for key in (
        "_component_",
        "source",
        "data_files",
        "split",
        "column_map",
        "conversation_style",
        "conversation_column",
        "column",
        "train_on_input",
        "name",
    ):
        if one.get(key) is not None and not draft.knows((*at, key)):
            draft.use("data.train", (*at, key))
    if one.get("subset") is not None:
        draft.use("data.train", (*at, "subset"))
    for key in one:
        if key in ("split_across_pack", "add_eos") and not draft.knows((*at, key)):
            draft.same("nothing has to be set for it", (*at, key))
    found = {"path": path, "format": made, "rows": rows, "config": one.get("subset") or one.get("name")}
    return found if split in (None, "train") else {**found, "split": split}


def _training(draft: Draft) -> None:
    names = {
        "output_dir": "output_dir",
        "batch_size": "per_device_train_batch_size",
        "epochs": "num_train_epochs",
        "gradient_accumulation_steps": "gradient_accumulation_steps",
        "log_every_n_steps": "logging_steps",
        "batch_size_val": "per_device_eval_batch_size",
    }
    usual = {"gradient_accumulation_steps": 1, "logging_steps": 1}
    for theirs, ours in names.items():
        if draft.has(theirs):
            draft.put(ours, draft.get(theirs), theirs)
        elif ours in usual:
            draft.default(ours, usual[ours])
    if draft.get("run_val_every_n_steps"):
        draft.put("eval_strategy", "steps")
        draft.put("eval_steps", draft.get("run_val_every_n_steps"), "run_val_every_n_steps")
    steps = draft.get("max_steps_per_epoch")
    if steps:
        draft.put(
            "max_steps",
            FILL if draft.get("epochs") == FILL else int(steps) * int(draft.get("epochs", 1)),
            "max_steps_per_epoch",
            note="max_steps_per_epoch × epochs, if an epoch has as many",
        )
    if draft.has("seed"):
        draft.put("seed", draft.get("seed"), "seed")
    else:
        draft.same("a seed is drawn there at each start; here it is 42", "seed")
    clip = draft.get("clip_grad_norm")
    draft.put(
        "max_grad_norm",
        0.0 if clip is None else float(clip),
        "clip_grad_norm",
        note="torchtune clips nothing" if clip is None else "",
    )
    field(
        draft,
        "gradient_checkpointing",
        bool(draft.get("enable_activation_checkpointing", False)),
        "enable_activation_checkpointing",
    )
    if draft.get("enable_activation_offloading"):
        field(draft, "activation_offloading", True, "enable_activation_offloading")
    else:
        draft.same("off, as it is here", "enable_activation_offloading")
    if draft.get("compile"):
        draft.put_gpu("kernel", "compile", "compile", what="torch.compile")
    else:
        draft.same("off, as it is here", "compile")
    if draft.get("optimizer_in_bwd"):
        draft.put("optimizer_in_backward", True, "optimizer_in_bwd")
        draft.put("on_nonfinite", "continue", note="torchtune looks at no gradient before a weight changes")
    else:
        draft.same("off, as it is here", "optimizer_in_bwd")
    resume = draft.get("resume_from_checkpoint")
    if resume:
        draft.put("resume_from_checkpoint", "auto", "resume_from_checkpoint")
    else:
        draft.same("the run starts anew", "resume_from_checkpoint")
    logger = str(draft.get(("metric_logger", "_component_"), "")).rpartition(".")[2].lower()
    tracker = next((one for one in ("wandb", "tensorboard", "comet") if logger.startswith(one)), "")
    draft.put("report_to", {"comet": "comet_ml"}.get(tracker, tracker) or "none", ("metric_logger", "_component_"))
    if draft.has(("metric_logger", "project")):
        draft.put("tracker.project", draft.get(("metric_logger", "project")), ("metric_logger", "project"))
    if draft.has(("metric_logger", "log_dir")):
        draft.same("metrics.jsonl is in output_dir", ("metric_logger", "log_dir"))
    draft.put("save_strategy", "epoch", note="torchtune saves after each epoch")
    draft.put("dataloader_drop_last", True, note="torchtune drops the last batch if it is not full")


def _optimizer(draft: Draft) -> None:
    given = draft.get("optimizer", {})
    component = str(given.get("_component_", "torch.optim.AdamW"))
    fused = given.get("fused", False)
    ours = OPTIMIZERS.get(component.lower(), component.rpartition(".")[2].lower())
    if ours == "adamw_torch" and fused:
        ours = "adamw_torch_fused"
    field(draft, "optim", ours, ("optimizer", "_component_"), ("optimizer", "fused"))
    names = {"lr": "learning_rate", "weight_decay": "weight_decay", "eps": "adam_epsilon"}
    for theirs, mine in names.items():
        if given.get(theirs) is not None:
            value = given[theirs]
            draft.put(mine, value if value == FILL else float(value), ("optimizer", theirs))
    if "adamw" in component.lower():
        draft.default("weight_decay", 0.01, "the default of torch's and bitsandbytes' AdamW")
    if isinstance(betas := given.get("betas"), list) and len(betas) == 2:
        draft.put("adam_beta1", float(betas[0]), ("optimizer", "betas"))
        draft.put("adam_beta2", float(betas[1]), ("optimizer", "betas"))
    draft.default("learning_rate", 1e-3, "the default of torch.optim.AdamW")
    schedule = draft.get("lr_scheduler")
    if isinstance(schedule, dict):
        draft.put("lr_scheduler_type", "cosine", ("lr_scheduler", "_component_"))
        draft.put("warmup_steps", schedule.get("num_warmup_steps", 0), ("lr_scheduler", "num_warmup_steps"))
        if (cycles := schedule.get("num_cycles")) is not None:
            draft.put("lr_scheduler_kwargs", {"num_cycles": cycles}, ("lr_scheduler", "num_cycles"))
    else:
        draft.put(
            "lr_scheduler_type",
            "constant",
            "lr_scheduler",
            note="torchtune keeps the rate where no lr_scheduler is given",
        )
    loss = str(draft.get(("loss", "_component_"), "")).rpartition(".")[2]
    if "CrossEntropy" in loss or "CE" in loss or not loss:
        draft.same("the mean over all trained tokens, with the head applied in chunks", ("loss", "_component_"))
