"""What users pass to SFTTrainer, turned into what a run needs; contradictions are refused here."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sftcore.chat.tokens import (
    add_tokens,
    clone_tokens,
    clones_tokenizer,
    set_chat_template,
    set_named_token,
    use_template,
)
from sftcore.config.selections import parse_plugins
from sftcore.config.setup import Setup, check, set_up
from sftcore.core.errors import ConflictError, DataError, OptionTypeError
from sftcore.core.types import ModelRequest, Plan, Problem
from sftcore.data.collate import no_token_ids
from sftcore.data.images.expand import is_vision
from sftcore.data.images.pictures import has_images, modalities_in
from sftcore.data.mixing.mixture import DataSource, Mixture
from sftcore.documents.image_batches import refuse_image_batches
from sftcore.model.memory.offload import refuse_offloading
from sftcore.model.skeleton import learned_positions, module_names, task_problems, virtual_tokens
from sftcore.util.disk import make_output_dir
from sftcore.util.versions import warn_if_untested

if TYPE_CHECKING:
    from sftcore.config.sft_config import SFTConfig

RAW_COLUMNS = ["messages", "prompt", "completion", "text", "conversations", "image", "images", "video", "videos"]
"""Columns that a user's own collator may read of rows that were not prepared."""


def refuse_data(train_dataset: Any) -> None:
    """Refuse a training set that is missing, or is several.

    Raises:
        DataError: there is none.
        OptionTypeError: it is a mapping.
    """
    if train_dataset is None:
        raise DataError(
            "`train_dataset` is required.", fix="Pass a datasets.Dataset or IterableDataset, or a Mixture of them."
        )
    if isinstance(train_dataset, Mapping):
        raise OptionTypeError(
            f"train_dataset is one data set, got a {type(train_dataset).__name__} of {', '.join(train_dataset)}.",
            where="SFTTrainer",
            fix=f"Pass one of them: train_dataset=data[{next(iter(train_dataset), 'train')!r}].",
        )


def as_given(dataset: Any, name: str, plan: Plan) -> Any:
    """A data set, or a mapping of several, whose rows go to the collator as they are.

    A user's own collator, also that of a plugin that was chosen, may read any rows, of any torch data set.

    Raises:
        DataError: rows have no token ids, or masks and no labels, and go to the run's own collator.
    """
    if isinstance(dataset, (Mixture, DataSource)):
        raise ConflictError(
            "the rows of a mixture are prepared, and skip_prepare_dataset passes rows on as they are.",
            where=name,
            fix="Drop skip_prepare_dataset, or pass one data set (datasets.interleave_datasets).",
        )
    collators = plan.selected("collator")
    if not collators or any(not one.default and not one.path.endswith("padding_free") for one in collators):
        return dataset
    for key, one in dataset.items() if isinstance(dataset, Mapping) else [("", dataset)]:
        columns, where = set(getattr(one, "column_names", None) or ()), f"{name}[{key!r}]" if key else name
        transformed = getattr(one, "format", None) and one.format["type"] == "custom"
        if columns and "input_ids" not in columns and not transformed:
            raise no_token_ids(sorted(columns), where)
        if {"completion_mask", "assistant_masks"} & columns and "labels" not in columns:
            raise DataError(
                'the rows have masks but no "labels", and skip_prepare_dataset leaves labels to you.',
                where=where,
                fix='Add a "labels" column (-100 where a token does not count), or drop skip_prepare_dataset.',
            )
    return dataset


def check_trainer(
    setup: Setup,
    args: SFTConfig,
    compute_loss_func: Any,
    found: Iterable[Problem],
    *,
    needs_tokenizer: bool,
    skeleton: Any = None,
) -> None:
    """Find everything that is wrong before a weight is read; `found` are problems that are known already.

    Raises:
        ConflictError: a loss function of the user's and a loss plugin that was chosen.
        CheckError: what the core and the plugins find.
    """
    chosen = [one.label for one in setup.plan.selected("loss") if not one.default]
    if compute_loss_func is not None and chosen:
        raise ConflictError(f"compute_loss_func would replace {chosen[0]}, which was chosen.", fix="Drop one of them.")
    found = [*found, *task_problems(skeleton)]
    check(setup, needs_tokenizer=needs_tokenizer, also=found, module_names=module_names(skeleton))
    refuse_offloading(args)


def begin_run(args: SFTConfig) -> None:
    """Make the output folder and set the seeds."""
    from transformers import set_seed

    warn_if_untested()
    make_output_dir(args.output_dir)
    set_seed(args.seed)


@contextmanager
def kept(args: Any, *names: str) -> Iterator[None]:
    """Around a call that changes these attributes: those that were there are afterwards what they were."""
    before = {name: getattr(args, name) for name in names if hasattr(args, name)}
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(args, name, value)


def model_argument(model: Any) -> Any:
    """The model that was given: a name, also where it was given as a path, or a model object.

    Raises:
        OptionTypeError: it is neither.
    """
    if isinstance(model, os.PathLike):
        return os.fspath(model)
    is_object = not isinstance(model, type) and hasattr(model, "config") and hasattr(model, "named_parameters")
    if isinstance(model, str) or is_object:
        return model
    several = isinstance(model, (tuple, list))
    found = f"{model.__name__}, a class" if isinstance(model, type) else f"a {type(model).__name__}"
    raise OptionTypeError(
        f"model is a hub id, the name of a folder, a PreTrainedModel or a PeftModel, got {found}.",
        where="SFTTrainer",
        fix="Pass the tokenizer as processing_class." if several else "",
    )


def model_request(model: Any, args: SFTConfig, quantization_config: Any, processor: Any = None) -> ModelRequest:
    kwargs = mapping_of(args.model_init_kwargs, "model_init_kwargs")
    vision = None if processor is None else is_vision(processor)
    if not isinstance(model, str):
        if kwargs or quantization_config is not None:
            given = ", ".join([*kwargs, *(["quantization_config"] if quantization_config is not None else [])])
            raise ConflictError(
                f"the model is a ready object, so these arguments for from_pretrained would do nothing: {given}.",
                fix="Give them where you load the model, or pass its name instead.",
            )
        return ModelRequest(trust_remote_code=args.trust_remote_code, vision=vision)
    if quantization_config is not None:
        if kwargs.get("quantization_config") is not None:
            raise ConflictError("quantization_config is given twice.", fix="Keep one of the two.")
        kwargs["quantization_config"] = quantization_config
    trust = kwargs.pop("trust_remote_code", args.trust_remote_code)
    return ModelRequest(model, kwargs.pop("revision", None), kwargs.pop("dtype", "float32"), trust, kwargs, vision)


def set_up_trainer(
    request: ModelRequest,
    args: SFTConfig,
    peft_config: Any,
    data_collator: Any,
    attention_of_model: str | None = None,
    by_row: str = "",
) -> Setup:
    if data_collator is not None and args.padding_free:
        raise ConflictError(
            "padding_free is a collator, and you pass a data_collator of your own.",
            where="SFTTrainer",
            fix="Drop one of the two.",
        )
    without = [*(["loader"] if request.name is None else []), *(["collator"] if data_collator is not None else [])]
    return set_up(
        parse_plugins(mapping_of(args.plugins, "plugins"), where="SFTConfig.plugins"),
        args.to_settings(),
        request,
        where="SFTConfig",
        block=args.block or (),
        peft_config=_a_peft_config(peft_config),
        without=without,
        device=args.device.type,
        attention_of_model=attention_of_model,
        by_row=by_row,
    )


def _a_peft_config(peft_config: Any) -> Any:
    if peft_config is not None:
        from peft import PeftConfig

        if not isinstance(peft_config, PeftConfig):
            is_class = isinstance(peft_config, type)
            got = f"the class {peft_config.__name__}" if is_class else type(peft_config).__name__
            fix = f"Make one: peft_config={peft_config.__name__ if is_class else 'LoraConfig'}(…)."
            raise OptionTypeError(f"peft_config is a PeftConfig, got {got}.", where="SFTTrainer", fix=fix)
    return peft_config


def prepare_tokenizer(processing_class: Any, args: SFTConfig) -> tuple[Any, list[int]]:
    """The tokenizer with what the configuration sets on it, and the ids of tokens that are new to it."""
    new_ids: list[int] = []
    tokenizer = getattr(processing_class, "tokenizer", processing_class)
    if not hasattr(tokenizer, "convert_tokens_to_ids"):
        raise OptionTypeError(
            f"processing_class is a tokenizer, or a processor with one, got a {type(processing_class).__name__}.",
            where="SFTTrainer",
            fix="Pass AutoTokenizer.from_pretrained(…), or leave it out to use the model's own.",
        )
    if is_vision(processing_class) and getattr(processing_class, "chat_template", None):
        # a processor's template knows images, and may be the only one
        tokenizer.chat_template = processing_class.chat_template
    if args.chat_template_path is not None:
        if clones_tokenizer(args.chat_template_path):
            new_ids = clone_tokens(tokenizer, args.chat_template_path)
        else:
            set_chat_template(tokenizer, args.chat_template_path)
    if args.chat_template is not None:
        new_ids = use_template(tokenizer, args.chat_template)
    new_ids = [*new_ids, *add_tokens(tokenizer, args.new_tokens or (), special=False)]
    for name in ("bos_token", "unk_token", "eos_token", "pad_token"):
        if (token := getattr(args, name)) is not None:
            set_named_token(tokenizer, name, token)
    if is_vision(processing_class):
        processing_class.chat_template = tokenizer.chat_template
    return tokenizer, new_ids


def max_length_of(args: SFTConfig, tokenizer: Any, positions: int | None = None) -> int | None:
    """To how many tokens rows are cut: the smallest of max_length, the tokenizer's limit and the model's positions."""
    multiple = args.pad_to_multiple_of
    if positions is not None and isinstance(multiple, int) and 0 < multiple <= positions:
        positions -= positions % multiple  # padding takes positions too
    if args.max_length is None:
        return positions
    limits = [args.max_length, int(tokenizer.model_max_length), positions]
    return min(one for one in limits if one is not None)


def positions_for(skeleton: Any, model: Any, plan: Plan) -> int | None:
    """How many positions are left for a row where the model has a table of them, beside an adapter's virtual tokens."""
    found = learned_positions(skeleton)
    return None if found is None else found - virtual_tokens(model, plan)


def num_embeddings(skeleton: Any) -> int | None:
    """How many tokens the model has embeddings for, which may be more than its tokenizer knows."""
    found = None if skeleton is None else skeleton.get_input_embeddings()
    return getattr(found, "num_embeddings", None)


def mapping_of(value: Any, name: str) -> dict[str, Any]:
    """A field that takes a mapping (or its JSON text, which transformers has parsed by now)."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise OptionTypeError(f"{name} is a mapping or JSON text of one, got {value!r}.", where="SFTConfig")
    return dict(value)


def skips_preparation(args: SFTConfig, dataset: Any, data_collator: Any) -> bool:
    """Whether rows go to the collator as they are: as asked, or, as in TRL, images to a collator of the user's own."""
    if mapping_of(args.dataset_kwargs, "dataset_kwargs").get("skip_prepare_dataset"):
        return True
    columns = set(getattr(dataset, "column_names", None) or ())
    own = data_collator is not None and not getattr(data_collator, "images", False)
    return own and "input_ids" not in columns and bool({"image", "images", "video", "videos"} & columns)


def refuse_collator(collator: Any, args: SFTConfig, model: Any, *datasets: Any, own: bool, packed: bool) -> None:
    """Refuse rows with images or other media for a collator that would leave them out, or for batches of others.

    Raises:
        ConflictError: it does not say that it takes images (an attribute `images` that is true) or media of this name
            (an attribute `modalities`, a mapping or set that has it); or images of several rows of a batch would change
            one another, see `refuse_image_batches`.
    """
    every = [one for given in datasets for one in (given.values() if isinstance(given, Mapping) else [given])]
    every = [one for one in every if one is not None and hasattr(one, "column_names")]
    taken = getattr(collator, "modalities", ())
    inner = getattr(collator, "collator", collator)
    name = type(getattr(inner, "function", inner)).__name__
    left = next((found for one in every for found in modalities_in(one) if found not in taken), None)
    if left is not None:
        raise ConflictError(
            f"the rows have media of type {left}, and the collator {name} takes none.",
            fix=f"Use a collator that does; it says so in an attribute `modalities` with the name {left}.",
        )
    if getattr(collator, "images", False):
        sizes = {"train": args.per_device_train_batch_size, "eval": args.per_device_eval_batch_size}
        refuse_image_batches(collator, model, sizes, *datasets, packed=packed)
    elif not taken and any(map(has_images, every)):
        raise ConflictError(
            f"the rows have images, and the collator {name} takes none.",
            fix="Give it an attribute `images = True` if it does." if own else "Use collator: vlm.",
        )
