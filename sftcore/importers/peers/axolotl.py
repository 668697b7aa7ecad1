"""Axolotl: the YAML of `axolotl train`."""

from __future__ import annotations

from sftcore.importers.draft import Draft
from sftcore.importers.peers import axolotl_rows, shared
from sftcore.importers.peers.launch import environment
from sftcore.importers.peers.shared import attention, field, listed, lora
from sftcore.importers.read.source import FILL, Key

VERSION = "0.19"
_LORA = {
    "r": "lora_r",
    "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout",
    "target_modules": "lora_target_modules",
    "target_parameters": "lora_target_parameters",
    "modules_to_save": "lora_modules_to_save",
    "use_rslora": "peft_use_rslora",
    "use_dora": "peft_use_dora",
    "arguments.init_lora_weights": "peft_init_lora_weights",
    "arguments.layers_to_transform": "peft_layers_to_transform",
    "arguments.layers_pattern": "peft_layers_pattern",
    "arguments.fan_in_fan_out": "lora_fan_in_fan_out",
    "arguments.rank_pattern": "lora_rank_pattern",
    "arguments.alpha_pattern": "lora_alpha_pattern",
    "arguments.trainable_token_indices": "peft_trainable_token_indices",
}
_DEFAULTS = {
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "num_train_epochs": 1.0,
    "lr_scheduler_type": "cosine",
    "gradient_checkpointing": False,
    "optim": "adamw_torch_fused",
    "save_strategy": "epoch",
    "save_total_limit": 4,
    "seed": 42,
    "output_dir": "./model-out",
}
_FLAGS = {"flash_attention": "flash-2", "sdp_attention": "sdpa", "eager_attention": "eager", "flex_attention": "flex",
          "xformers_attention": "sdpa"}  # fmt: skip
_SAME = {
    "strict": "unknown keys are always refused",
    "is_falcon_derived_model": "the class is the model's own",
    "is_llama_derived_model": "the class is the model's own",
    "is_mistral_derived_model": "the class is the model's own",
    "is_qwen_derived_model": "the class is the model's own",
    "model_type": "the class is the model's own",
    "tokenizer_type": "the class is the model's own",
    "processor_type": "the class is the model's own",
    "dataset_prepared_path": "prepared rows are kept in $SFTCORE_CACHE",
    "shuffle_merged_datasets": "rows are trained in an order drawn by the seed",
    "local_rank": "the launcher says it",
    "save_safetensors": "models are always saved so",
    "include_tokens_per_second": "tokens are always counted",
    "include_tkps": "tokens are always counted",
    "lora_on_cpu": "adapters are saved as they are",
    "hf_use_auth_token": "the hub's own login is used",
    "merge_lora": "sftcore merge RUN does it after training",
    "tokenizer_use_fast": "the fast tokenizer is used",
    "skip_prepare_dataset": "",
    "debug": "",
    "resize_token_embeddings_to_32x": "embeddings grow with new_tokens alone",
    "sample_packing_group_size": "rows are packed from the whole data set",
    "sample_packing_bin_size": "rows are packed from the whole data set",
    "sample_packing_eff_est": "rows are packed from the whole data set",
    "gc_steps": "",
    "remove_unused_columns": "",
}
_TRACKERS = {
    "wandb": "wandb",
    "mlflow": "mlflow",
    "tensorboard": "tensorboard",
    "comet": "comet_ml",
    "trackio": "trackio",
}
_KERNELS = {
    "liger_rope": "rope",
    "liger_rms_norm": "rms_norm",
    "liger_layer_norm": "rms_norm",
    "liger_glu_activation": "mlp",
    "liger_swiglu": "mlp",
}


def fill(draft: Draft) -> None:
    """Fill in what a configuration of Axolotl says."""
    if (stage := draft.get("rl")) is not None:
        draft.left(f"{stage!r} is not supervised fine-tuning: this recipe would be another training", "rl")
    draft.put("model.name", draft.get("base_model"), "base_model")
    if draft.has("revision_of_model"):
        draft.put("model.revision", draft.get("revision_of_model"), "revision_of_model")
    _dtypes(draft)
    _attention(draft)
    _adapter(draft)
    axolotl_rows.fill(draft)
    _kernels(draft)
    _training(draft)
    for key, why in _SAME.items():
        if draft.has(key) and not draft.knows((key,)):
            draft.same(why or "nothing has to be set for it", key)
    environment(draft)
    shared.remaining(draft, "axolotl")
    shared.defaults(draft, _DEFAULTS)
    if "warmup_steps" not in draft.entries and not draft.knows(("warmup_steps",)):
        draft.default("warmup_steps", 0.03, "Axolotl's default: 3% of the steps, up to 100 of them")


def _dtypes(draft: Draft) -> None:
    half, whole = draft.get("fp16") or draft.get("float16"), draft.get("bf16", draft.get("bfloat16", "auto"))
    said = [key for key in ("bf16", "bfloat16") if draft.has(key)]
    if whole == "auto":
        whole = not half
    if whole:
        note = "Axolotl's bf16 holds the weights in bfloat16 too" + ("" if said else ", and auto is its default")
        draft.put("model.dtype", "bfloat16", *said, note=note)
        draft.put("bf16", True, *said)
    elif half:
        draft.put_gpu("fp16", True, *(k for k in ("fp16", "float16") if draft.has(k)), what="float16 autocast")
        draft.put("model.dtype", "float32", note="Axolotl holds the weights in float16; fp16 here needs float32")
    else:
        draft.put("model.dtype", "float32")
        draft.put("bf16", False, *said)
    for key in ("fp16", "float16", "bf16", "bfloat16", "float32"):
        if draft.has(key) and not draft.knows((key,)):
            draft.same("said by the other keys of precision", key)
    if draft.get("tf32") is True:
        field(draft, "tf32", True, "tf32")
    elif draft.has("tf32"):
        draft.same("off, as it is here", "tf32")


def _attention(draft: Draft) -> None:
    for key in ("attn_implementation", "attention"):
        if draft.has(key):
            attention(draft, draft.get(key), key)
    for key, ours in _FLAGS.items():
        if draft.get(key):
            attention(draft, {"flash-2": "flash_attention_2"}.get(ours, ours), key)
        elif draft.has(key):
            draft.same("off", key)


def _adapter(draft: Draft) -> None:
    kind = draft.get("adapter")
    bits = (
        4
        if draft.get("load_in_4bit") or (kind == "qlora" and not draft.get("load_in_8bit"))
        else 8
        if draft.get("load_in_8bit")
        else None
    )
    bit_keys = [key for key in ("load_in_4bit", "load_in_8bit") if draft.has(key)]
    targets = listed(draft.get("lora_target_modules"))
    if kind in ("lora", "qlora"):
        lora(draft, _LORA, {"lora_dropout": 0.0}, bits=bits, of=["adapter", *bit_keys])
        name = "qlora" if bits else "lora"
        if draft.get("lora_target_linear") or not targets:
            draft.put(f"adapter.{name}.target_modules", "all-linear", "lora_target_linear")
        else:
            draft.same("the modules are named", "lora_target_linear")
        for option, usual in (("r", 8), ("lora_alpha", 8)):
            draft.default(f"adapter.{name}.{option}", usual, "PEFT's default, which Axolotl leaves")
        if bits == 4:
            _quantisation(draft)
        if draft.has("peft_autocast_adapter_dtype"):
            draft.same("the adapter is float32", "peft_autocast_adapter_dtype")
    else:
        if kind is not None:
            draft.left(f"there is no adapter {kind!r} of this importer; this recipe trains all weights", "adapter")
        why = "without an adapter it says nothing"
        draft.same(why, *(key for key in (*_LORA.values(), "lora_target_linear") if draft.has(key)))
        if bits:
            draft.left("a base in 4 or 8 bits needs an adapter", *bit_keys)
        else:
            draft.same("the base is not quantised", *bit_keys)
    if draft.get("lora_model_dir"):
        draft.left("to train a saved adapter further, name its folder as the model", "lora_model_dir")


def _quantisation(draft: Draft) -> None:
    """Axolotl's 4 bits: nf4 with double quantisation, unless bnb_config_kwargs says otherwise."""
    names = {
        "bnb_4bit_quant_type": "quant_type",
        "bnb_4bit_use_double_quant": "double_quant",
        "bnb_4bit_compute_dtype": "compute_dtype",
    }
    usual = {"quant_type": "nf4", "double_quant": True, "compute_dtype": draft.entries["model.dtype"].value}
    for theirs, ours in names.items():
        key: Key = ("bnb_config_kwargs", theirs)
        value = draft.get(key)
        if value is None:
            draft.default(f"adapter.qlora.{ours}", usual[ours])
        else:
            draft.put(f"adapter.qlora.{ours}", (shared.dtype(value) or value) if "dtype" in theirs else value, key)


def _kernels(draft: Draft) -> None:
    """Plugins of Axolotl: Liger's kernels and losses, and cut cross-entropy."""
    parts = {ours: bool(draft.get(key)) for key, ours in _KERNELS.items() if draft.has(key)}
    liger = [key for key in _KERNELS if draft.has(key)]
    if any(parts.values()):
        chosen = {part: parts.get(part, False) for part in ("rope", "rms_norm", "mlp")}
        draft.put_gpu("kernel", {"liger": chosen}, *liger, what="Liger's kernels")
    fused = [key for key in ("liger_fused_linear_cross_entropy", "liger_cross_entropy") if draft.get(key)]
    if fused:
        draft.put_gpu("loss", "liger", *fused, what="Liger's loss")
    elif draft.get("cut_cross_entropy"):
        draft.put_gpu("loss", "cce", "cut_cross_entropy", what="cut cross-entropy")
    for one in listed(draft.get("plugins")):
        if str(one).rpartition(".")[2] not in ("LigerPlugin", "CutCrossEntropyPlugin"):
            draft.left(f"there is no plugin like {one} here", "plugins")
            return
    if draft.has("plugins"):
        draft.same("their parts are chosen by the keys of their own", "plugins")


def _training(draft: Draft) -> None:
    """Batches, steps, and when is evaluated and saved."""
    micro, steps, total = (
        draft.get("micro_batch_size", 1),
        draft.get("gradient_accumulation_steps"),
        draft.get("batch_size"),
    )
    draft.put("per_device_train_batch_size", micro, *(k for k in ("micro_batch_size",) if draft.has(k)),
              note="" if draft.has("micro_batch_size") else "Axolotl's default")  # fmt: skip
    if steps is None and total:
        draft.put(
            "gradient_accumulation_steps",
            FILL if FILL in (total, micro) else max(1, int(total) // int(micro)),
            "batch_size",
            note="batch_size // micro_batch_size",
        )
    elif total:
        draft.same("micro_batch_size and gradient_accumulation_steps say it", "batch_size")
    if draft.has("eval_batch_size"):
        draft.put("per_device_eval_batch_size", draft.get("eval_batch_size"), "eval_batch_size")
    else:
        draft.default("per_device_eval_batch_size", micro, "as micro_batch_size, which is Axolotl's default")
    _strategies(draft)
    if (least := draft.get("cosine_min_lr_ratio")) is not None:
        draft.put("lr_scheduler_type", "cosine_with_min_lr", "lr_scheduler", "cosine_min_lr_ratio")
        draft.put("lr_scheduler_kwargs", {"min_lr_rate": least}, "cosine_min_lr_ratio")
    if (warmup := draft.get("warmup_steps")) is not None:
        draft.put(
            "warmup_steps",
            2 if warmup == 1 else warmup,
            "warmup_steps",
            note="Axolotl makes 2 of 1" if warmup == 1 else "",
        )
        if draft.has("warmup_ratio"):
            draft.left("warmup_steps takes precedence", "warmup_ratio")
    mode = draft.get("gradient_checkpointing")
    if mode in ("unsloth", "offload", "offload_disk"):
        field(draft, "gradient_checkpointing", True, "gradient_checkpointing")
        draft.put_gpu("activation_offloading", True, "gradient_checkpointing", what="offloading of activations")
        draft.use("gradient_checkpointing", "gradient_checkpointing")
    reports = [
        ours
        for name, ours in _TRACKERS.items()
        if draft.get(f"use_{name}") or (name == "wandb" and draft.get("wandb_project"))
    ]
    keys = [key for key in (*(f"use_{name}" for name in _TRACKERS), "wandb_project") if draft.has(key)]
    draft.put("report_to", reports or "none", *(k for k in keys if k.startswith("use_")))
    if not draft.get("wandb_project") and draft.has("wandb_project"):
        draft.same("says nothing", "wandb_project")
    if draft.has("hub_model_id"):
        draft.put("hub_model_id", draft.get("hub_model_id"), "hub_model_id")
        draft.put("push_to_hub", True, note="hub_model_id alone pushes in Axolotl, to a private repository")
        draft.put("hub_private_repo", True)


def _strategies(draft: Draft) -> None:
    evaluates = bool(draft.get("val_set_size")) or bool(draft.get("test_datasets"))
    if (times := draft.get("saves_per_epoch")) and not draft.get("save_steps"):
        draft.put("saves_per_epoch", times, "saves_per_epoch")
        draft.put("save_strategy", "steps")
    elif draft.get("save_steps"):
        draft.put("save_strategy", "steps")
        draft.put("save_steps", draft.get("save_steps"), "save_steps")
        draft.same("save_steps says it", *(k for k in ("save_strategy", "saves_per_epoch") if draft.has(k)))
    elif draft.get("saves_per_epoch") == 0:
        draft.same("it says nothing", "saves_per_epoch")
    if not evaluates:
        keys = [
            key for key in ("evals_per_epoch", "eval_steps", "eval_strategy", "evaluation_strategy") if draft.has(key)
        ]
        draft.same("there are no rows to evaluate on", *keys)
        return
    if (times := draft.get("evals_per_epoch")) and not draft.get("eval_steps"):
        draft.put("evals_per_epoch", times, "evals_per_epoch")
        draft.put("eval_strategy", "steps")
        draft.default("eval_on_start", True)
    elif draft.get("eval_steps"):
        draft.put("eval_strategy", "steps")
        draft.put("eval_steps", draft.get("eval_steps"), "eval_steps")
        draft.default("eval_on_start", True)
        draft.same(
            "eval_steps says it",
            *(k for k in ("eval_strategy", "evaluation_strategy", "evals_per_epoch") if draft.has(k)),
        )
    elif not (draft.get("eval_strategy") or draft.get("evaluation_strategy")):
        draft.put(
            "eval_strategy",
            "no",
            note="Axolotl evaluates only where eval_steps, evals_per_epoch or eval_strategy says so",
        )
