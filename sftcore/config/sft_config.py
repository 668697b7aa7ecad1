"""SFTConfig and ModelConfig, with the names and defaults of TRL's SFT surface."""

from __future__ import annotations

import copy
import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from transformers import TrainingArguments
from transformers.trainer_pt_utils import AcceleratorConfig
from transformers.utils import is_torch_bf16_gpu_available, is_torch_tf32_available

from sftcore.config.fields import config_fields, default_output_dir, wrong_fields
from sftcore.config.near_names import unknown_key
from sftcore.config.processes import refuse_missing_deepspeed, start_deepspeed
from sftcore.config.settings.combined import combined_problems, installed_trackers
from sftcore.config.settings.init_kwargs import current_init_kwargs
from sftcore.config.settings.kept_rows import kept_rows
from sftcore.config.settings.later import Made, snapshot
from sftcore.config.settings.older_names import GONE, OLDER, use_current_names
from sftcore.config.settings.rhythm import OF_RHYTHM, per_epoch
from sftcore.config.settings.tracker import fields_for
from sftcore.config.settings.values import as_ours, plain_value
from sftcore.config.settings.zero import by_name
from sftcore.core.errors import OptionTypeError, RecipeError, raise_all
from sftcore.util.foreign import in_our_words
from sftcore.util.launched import end_with_launcher
from sftcore.util.secrets import masked
from sftcore.util.warned import warn

_OF_DEVICES = ("use_cpu", "bf16", "bf16_full_eval", "ddp_backend", "ddp_timeout", "deepspeed", "accelerator_config")
"""Fields on which it depends what devices a run has."""


@dataclass
class SFTConfig(TrainingArguments):
    """Settings of a run: the fields of `transformers.TrainingArguments`, and those below."""

    _VALID_DICT_FIELDS: ClassVar[list[str]] = [
        *TrainingArguments._VALID_DICT_FIELDS,
        "model_init_kwargs",
        "dataset_kwargs",
        "rows",
        "plugins",
        "prepare_in_int8_kwargs",
        "callbacks",
        "tracker",
    ]

    # --- Other defaults than in TrainingArguments ---
    learning_rate: float = 2e-5
    """Peak learning rate of the schedule."""
    logging_steps: float = 10
    """Steps between two logs; a share of all steps if below 1."""
    gradient_checkpointing: bool | None = True
    """Recompute activations in the backward pass: less memory, about a fifth slower."""
    logging_nan_inf_filter: bool = False
    """Hide NaN and Inf from the logged loss, for which every micro-batch waits; `on_nonfinite` says what they do."""
    bf16: bool | None = None
    """bfloat16 mixed precision. None or "auto": on where a GPU has it and fp16 is off; off on a CPU."""

    # --- The model ---
    model_init_kwargs: dict[str, Any] | str | None = None
    """Arguments for `from_pretrained`, handed over whole, where `model` is a name. JSON text is understood."""
    trust_remote_code: bool = False
    """Allow models and tokenizers that carry Python code."""
    allow_pickle: bool = False
    """Allow weights in pickle files (*.bin, *.pt), which can run code when they are read; else only safetensors."""
    adapter_dtype: str = "float32"
    """float32, or bfloat16 with float32 master copies in the optimizer: what an adapter's weights are held in."""
    master_weights: bool | None = None
    """Step on float32 copies of weights that train below float32. None: of an adapter's; True: of a whole model's."""
    prepare_in_int8_kwargs: dict[str, Any] | str | None = None
    """Arguments for PEFT's `prepare_model_for_kbit_training`, and `layer_norm_names`; {} raises all to float32."""
    router_aux_loss_coef: float | None = None
    """Weight of the load-balancing loss of mixtures of experts; None: the model's own, 0.0: off."""
    chat_template_path: str | None = None
    """A .jinja or .j2 file with the chat template, or a tokenizer whose template, tokens and EOS are taken over."""

    chat_template: str | None = None
    """A chat template by name (chatml, llama3, qwen2.5, qwen3, gemma, mistral, …), as a file or as its text. The tokens
    that a named one writes are added where the tokenizer has not got them, and the run says where its turns end."""

    # --- The data ---
    dataset_text_field: str | None = "text"
    """The column of plain texts; None: text."""
    rows: dict[str, Any] | str | None = None
    """{"where": {"label": True}} keeps the rows with this value in this column, or with one of a list of values."""
    dataset_kwargs: dict[str, Any] | str | None = None
    """{"skip_prepare_dataset": True} hands the data to the collator as they are."""
    dataset_num_proc: int | None = None
    """Processes that prepare map-style data."""
    dataset_cache: bool = True
    """Keep prepared map-style data, found by the hash of everything they are made from (folder: $SFTCORE_CACHE)."""
    image_folder: str | None = None
    """The folder in which the relative image paths of rows begin. None: that of the data file, or the current one."""
    max_image_pixels: int = 89478485
    """A row with an image of more pixels is refused: decoding it could take all memory."""
    allow_remote_images: bool = False
    """Fetch images that rows name by a web address into the cache when the rows are prepared; else they are refused."""
    freeze_vision_tower: bool | None = None
    """Keep the vision tower of a vision-language model, and what joins it to the language layers, frozen. None: only
    where an adapter is made from a recipe's options, which then goes on the language layers alone. False: never."""
    system_prompt: str | None = None
    """Put before every conversation that has no system turn of its own."""
    eos_token: str | None = None
    """The token that ends a turn or text, set on tokenizer, model and generation configuration."""
    bos_token: str | None = None
    """The token that begins a text, set on tokenizer, model and generation configuration."""
    unk_token: str | None = None
    """The token that stands for what the tokenizer does not know."""
    new_tokens: list[str] | None = None
    """Tokens that are added to the tokenizer, each with a row of embeddings, which an adapter has to train: name them
    in its modules_to_save or trainable_token_indices."""
    max_length: int | None = 1024
    """Rows are cut to this many tokens, or to what tokenizer and learned positions allow where that is less. None: to
    the positions that the model has learned, if it has."""
    truncation_mode: str = "keep_start"
    """Which end of a long row is kept: keep_start or keep_end."""
    long_rows: str = "cut"
    """What becomes of rows longer than `max_length`: cut; drop (they are counted); split, which makes several rows of a
    text that is trained whole, and refuses conversations and answers; or refuse."""
    shuffle_dataset: bool = False
    """Shuffle the data with the run's seed when they are prepared."""
    packing: bool = False
    """Put several documents into a row of `max_length` tokens; the run proves that none of them reads another."""
    packing_strategy: str = "bfd"
    """bfd (best fit, rows cut to max_length before), bfd_split (long rows in pieces) or wrapped (in order)."""
    padding_free: bool | None = None
    """Join the rows of each batch end to end into one row, without padding. None: where the attention keeps documents
    apart by their boundaries, and the run proves at its start that this changes nothing; padded otherwise."""
    pad_to_multiple_of: int | str | None = "auto"
    """Pad batches to a multiple of this; "auto" and None: to the longest row."""
    eval_packing: bool | None = None
    """Pack the evaluation set; None: as the training set."""

    row_losses: bool = True
    """Keep the loss of each training row in each epoch, in rows.parquet of output_dir, which `sftcore rows` reads."""

    # --- Samples ---
    sample_prompts: int | str | list[Any] | None = None
    """What the model is asked as it trains, at each evaluation (without any, at each save) and at the end: a list of
    texts, conversations and rows; or a number, of the first rows of the evaluation set, without their answers."""
    sample_max_new_tokens: int = 128
    """How long an answer of these may become."""
    sample_temperature: float = 0.0
    """0 takes the most likely token, so that answers of several runs can be compared; above it they are drawn."""

    # --- How often ---
    evals_per_epoch: int | None = None
    """How often an epoch is evaluated, at even distances and at its end; instead of eval_strategy and eval_steps."""
    saves_per_epoch: int | None = None
    """How often an epoch is saved, at even distances and at its end; instead of save_strategy and save_steps."""

    tracker: dict[str, Any] | str | None = None
    """Where the trackers of report_to file the run: {project, entity, tags, run_name}, as far as each of them knows
    them."""

    # --- When something goes wrong ---
    resume_changed: bool = False
    """Resume from a checkpoint although data, chat template, plugins or settings have changed since it was saved."""
    on_nonfinite: str = "stop"
    """NaN or Inf in loss or gradients: stop (before the weights change), skip (leave the step out) or continue."""
    divergence_factor: float | None = None
    """Stop where the mean loss of ten steps is this many times the lowest such mean and 1 nat above it. None: never."""

    loss_watchdog_threshold: float | None = None
    """Stop, with a checkpoint, where the loss of `loss_watchdog_patience` steps in a row is above this. None: never."""
    loss_watchdog_patience: int | None = None
    """How many steps in a row; None: 3."""

    # --- Stopping early, callbacks and the output folder ---
    report_html: bool = True
    """Keep report.html, loss.svg and what they are made of in output_dir: curves, plan, rows with their masks."""
    early_stopping_patience: int | None = None
    """Stop after so many evaluations in a row whose `metric_for_best_model` (the loss, if none is named) is no better
    than the best. None: never. `load_best_model_at_end` then keeps the best model."""
    early_stopping_threshold: float = 0.0
    """By how much the metric has to be better than the best to count."""
    callbacks: dict[str, Any] | str | None = None
    """Callbacks by name, or a list or mapping of them with options: transformers' own, or a distribution's."""
    overwrite_output_dir: bool = False
    """Let the command line replace another run in `output_dir`: after the first step its checkpoints and model go."""

    # --- The loss ---
    completion_only_loss: bool | None = None
    """Loss on the completion alone. None: where the rows have a prompt and a completion."""
    assistant_only_loss: bool = False
    """Loss on the assistant's turns alone."""
    response_marker: str | None = None
    """In rows that are texts: what stands right before each answer. The answers alone are trained, each up to the next
    marker; rows without it are dropped and counted."""
    instruction_marker: str | None = None
    """What stands right before each question, where an answer ends. None: only the last answer of a row is trained."""
    mask_style: str = "turn"
    """Where a completion of messages ends: "turn" (behind its end token), "trl" (with what the template adds there)."""
    loss_type: str = "nll"
    """The loss plugin."""
    auto_batch_size: bool | str = False
    """Take as many rows at a time as fit into the memory that is free, or into a size such as "20GiB", at most those of
    a step: per_device_train_batch_size times gradient_accumulation_steps, whose product stays."""
    optimizer_in_backward: bool = False
    """Step each weight as soon as its gradient is there, and drop the gradient: less memory. It excludes what needs all
    gradients at once: accumulation, max_grad_norm, master copies, several processes, and on_nonfinite but continue."""
    activation_offloading: bool = False
    """Keep saved activations in host memory."""
    pad_token: str | None = None
    """Set `tokenizer.pad_token` instead."""

    # --- Plugins ---
    plugins: dict[str, Any] | str | None = None
    """Plugins by kind: {"adapter": {"lora": {"r": 8}}, "noise": ["name"]}."""
    block: list[str] | None = None
    """Plugins that must not be used, as kind:name."""

    def __post_init__(self) -> None:
        end_with_launcher()
        given = snapshot(self, config_fields())
        self._check_values()
        for name, instead in (("pad_token", "tokenizer.pad_token"), ("label_smoothing_factor", "a loss plugin")):
            if getattr(self, name):
                warn(f"{name} is deprecated, use {instead}.", FutureWarning)
        self._derive()
        self._made = Made.of(given, self)

    def settle(self) -> None:
        """Check and translate what was set since the configuration was made, as the constructor does.

        Raises:
            RecipeError, SettingsError: what is wrong with it.
        """
        older = {name: self.__dict__.pop(name) for name in [*self.__dict__] if name in OLDER - GONE.keys()}
        use_current_names(older, where="SFTConfig")
        self.__dict__.update(older)
        changed = self._made.changed(self)
        for name, near in self._made.unread(self).items():
            offer = f' Did you mean "{near}"?' if near else ""
            warn(f"SFTConfig: nothing reads the attribute {name}.{offer}")
        if not changed:
            return
        self.__dict__.update(self._made.as_given(self))
        if set(changed) & set(_OF_DEVICES):
            self.__dict__.pop("_setup_devices", None)
        SFTConfig.__post_init__(self)

    def _check_values(self) -> None:
        """Refuse what is wrong with the fields, each and together, before transformers reads them.

        Raises:
            RecipeError: one thing is.
            SettingsError: several are.
        """
        known = config_fields()
        for name, wanted in known.items():
            setattr(self, name, plain_value(as_ours(name, getattr(self, name)), wanted))
        values = {name: getattr(self, name) for name in known if not isinstance(getattr(self, name), AcceleratorConfig)}
        if self.packing_strategy == "bfd-requeue":
            warn('packing_strategy "bfd-requeue" is now "bfd_split".', FutureWarning)
            self.packing_strategy = values["packing_strategy"] = "bfd_split"
        raise_all(wrong_fields(values, where="SFTConfig"))
        if self.eval_steps == 0 and self.eval_strategy == "steps":
            every = f"{self.logging_steps:g}"
            warn(f"eval_steps is 0: an evaluation is made as often as is logged (logging_steps: {every}).")
        # what is a warning is said with the other warnings of the run
        found = [one for one in combined_problems(values) if one.severity == "error"]
        raise_all(RecipeError(one.what, where=one.where or "SFTConfig", fix=one.fix) for one in found)

    def _derive(self) -> None:
        """What the fields make of each other, transformers' own part included."""
        self.__dict__.update(per_epoch({name: getattr(self, name) for name in OF_RHYTHM}))
        self.__dict__.update(fields_for({"tracker": self.tracker, "report_to": self.report_to}))  # type: ignore[has-type]
        if self.bf16 is None:
            self.bf16 = not self.fp16 and not self.use_cpu and bool(is_torch_bf16_gpu_available())  # type: ignore[has-type]
        if (self.bf16 or self.bf16_full_eval) and not torch.accelerator.is_available():
            # transformers refuses bf16 without a GPU until it is told so, though a CPU has it
            self.use_cpu = True
        if hasattr(self, "activation_checkpointing") and self.activation_checkpointing is None:  # type: ignore[has-type]
            # newer transformers warn about the name that everybody uses; both mean the same
            self.activation_checkpointing = self.gradient_checkpointing
            self.activation_checkpointing_kwargs = self.gradient_checkpointing_kwargs
        if isinstance(self.pad_to_multiple_of, str) and self.pad_to_multiple_of != "auto":
            self.pad_to_multiple_of = int(self.pad_to_multiple_of) if self.pad_to_multiple_of.isdigit() else None
        if self.report_to is None:  # type: ignore[has-type]
            self.report_to = "none"  # transformers takes the value None for the name of a tracker
        if self.early_stopping_patience is not None and self.metric_for_best_model is None:  # type: ignore[has-type]
            self.metric_for_best_model = "loss"
        if self.greater_is_better is None and str(self.metric_for_best_model).endswith("perplexity"):  # type: ignore[has-type]
            self.greater_is_better = False  # transformers knows this of losses alone
        if self.tf32 and not is_torch_tf32_available():
            raise RecipeError(
                "tf32 is a number format of NVIDIA GPUs from Ampere on, and there is none here.",
                where="SFTConfig",
                fix="Drop tf32.",
            )
        self.deepspeed = by_name(self.deepspeed)  # type: ignore[has-type]
        refuse_missing_deepspeed(self.deepspeed)
        # Unsloth on a CPU patches TrainingArguments to turn TRL's packing off; here packed documents are proven apart
        own = {name: getattr(self, name) for name in ("packing", "eval_packing", "padding_free")}
        everything = self.report_to in ("all", ["all"])
        with in_our_words("transformers does not take these settings", RecipeError, where="SFTConfig"):
            super().__post_init__()
        if everything:
            self.__dict__["report_to"] = installed_trackers(self.report_to)
        self.__dict__.update(own)
        start_deepspeed(self)
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # there is no device to copy to, and torch warns
        self.model_init_kwargs = current_init_kwargs(self.model_init_kwargs, where="SFTConfig.model_init_kwargs")
        kept_rows({"rows": self.rows}, where="SFTConfig")
        given = self.dataset_kwargs if isinstance(self.dataset_kwargs, dict) else {}
        if unknown := set(given) - {"skip_prepare_dataset"}:
            raise RecipeError(
                f"dataset_kwargs knows only skip_prepare_dataset, got {', '.join(sorted(map(str, unknown)))}.",
                where="SFTConfig",
            )

    @functools.cached_property
    def _setup_devices(self) -> torch.device:
        device: torch.device = TrainingArguments._setup_devices.func(self)
        if device.type == "cpu":
            device = torch.device("cpu")  # torch.load knows no "cpu:0", which transformers 5.17 would hand it
        visible = self.__dict__.get("_n_gpu", 1)
        if visible > 1:
            # nn.DataParallel copies the model at every step and breaks a bound forward
            warn(
                f"{visible} GPUs are visible and one is used. To use all: sftcore train --nproc {visible}, or "
                f"accelerate launch --num_processes {visible} your_script.py"
            )
            self._n_gpu = 1
        return device

    def without_secrets(self) -> SFTConfig:
        """A copy that may be published: without tokens, and with `<not written>` for other secrets."""
        copied = copy.copy(self)
        for key, value in vars(self).items():
            setattr(copied, key, None if key.endswith("hub_token") else masked(value))
        copied._made = Made({}, {})
        return copied

    def to_dict(self) -> dict[str, Any]:
        """The fields as transformers' loggers see them, without secrets."""
        found: dict[str, Any] = masked(super().to_dict())
        return found

    def to_settings(self) -> dict[str, Any]:
        """The fields as plain values, for plugins and the manifest; tokens are left out."""
        return {
            one.name: getattr(self, one.name)
            for one in dataclasses.fields(self)
            if one.init and not one.name.endswith("hub_token")
        }


def _accept_older_names(init: Any) -> Any:
    @functools.wraps(init)
    def accept(self: SFTConfig, *args: Any, **kwargs: Any) -> None:
        use_current_names(kwargs, where="SFTConfig")
        named = {one.name for one in dataclasses.fields(self) if one.init}
        unknown = [name for name in kwargs if name not in named]
        if unknown:
            types = config_fields()
            both = named & types.keys()
            rest = {name: plain_value(as_ours(name, kwargs[name]), types[name]) for name in kwargs if name in both}
            errors = [unknown_key(one, named, where="SFTConfig") for one in unknown]
            raise_all([*errors, *wrong_fields(rest, where="SFTConfig")])
        init(self, *args, **kwargs)

    return accept


SFTConfig.__init__ = _accept_older_names(SFTConfig.__init__)  # type: ignore[method-assign]


def as_sft_config(args: TrainingArguments | None, model_name: str) -> SFTConfig:
    """The given configuration with what was set in it since, a plain TrainingArguments converted, or the default."""
    if args is None:
        return SFTConfig(default_output_dir(model_name))
    if isinstance(args, SFTConfig):
        args.settle()
        return args
    if not isinstance(args, TrainingArguments):
        given = "**settings" if isinstance(args, dict) else "output_dir"
        fix = f"Make one: args=SFTConfig({given})."
        raise OptionTypeError(f"args is an SFTConfig, got {type(args).__name__}.", where="SFTTrainer", fix=fix)
    values = {one.name: getattr(args, one.name) for one in dataclasses.fields(args) if one.init}
    values["hub_token"] = args.hub_token
    return SFTConfig(**values)
