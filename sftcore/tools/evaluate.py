"""Evaluate a finished run: the loss of its model on rows, with the run's own format, masks and lengths."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import attrs
from attrs import field, frozen

from sftcore.core.errors import DataError, SFTCoreError
from sftcore.tools.saved import SavedRun, selections_of

if TYPE_CHECKING:
    from sftcore.train.checked import Checked

_OF_ROWS = (
    "completion_only_loss", "assistant_only_loss", "mask_style", "max_length", "truncation_mode", "dataset_text_field",
    "image_folder", "max_image_pixels",
)  # fmt: skip
"""Settings of a run that say what of a row is read and counted: an evaluation takes them over."""


@frozen
class Evaluation:
    """What a model scores on rows: means over the supervised tokens; loss and entropy in nats.

    There is no perplexity where a loss was chosen that is not a negative log-likelihood, and no entropy where it
    computes none.

    `rows` are lines on what became of the rows, `notes` decisions to tell the user about, `sets` the figures of each
    evaluation set where the run has several.
    """

    loss: float
    perplexity: float | None
    accuracy: float
    entropy: float | None
    num_supervised: int
    rows: tuple[str, ...]
    notes: tuple[str, ...] = ()
    sets: Mapping[str, Mapping[str, float]] = field(factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return attrs.asdict(self)


def evaluation_rows(run: SavedRun, data: str | None, overrides: Sequence[str] = ()) -> Checked:
    """What to evaluate on, checked before anything heavy is imported.

    Args:
        run: the run, whose settings for rows are taken over.
        data: a file, a pattern, a folder or a hub id; None takes the run's own evaluation rows.
        overrides: `key=value` for these settings, and for others of a recipe.

    Raises:
        SFTCoreError: the data or a setting is wrong, or the run names no evaluation rows.
    """
    from sftcore.config.recipe import overridden, parse_recipe
    from sftcore.config.setup import check, set_up_recipe
    from sftcore.data.source.several import inspect_set
    from sftcore.train.checked import Checked

    settings = run.manifest.get("settings") or {}
    raw: dict[str, Any] = {key: settings[key] for key in _OF_ROWS if key in settings}
    raw["model"] = {"name": run.base.name, **({"revision": run.base.revision} if run.base.revision else {})}
    raw["trust_remote_code"] = run.base.trust_remote_code
    raw["data"] = data if data is not None else _own_data(run)
    if chosen := selections_of(run.manifest, "format"):
        name = f"{chosen[0].name}@{chosen[0].distribution}" if chosen[0].distribution else chosen[0].name
        raw["format"] = {name: dict(chosen[0].options)}
    recipe = parse_recipe(overridden(raw, overrides), place="evaluate")
    setup = set_up_recipe(recipe)
    check(setup, needs_tokenizer=False)  # the run has its own
    sources = recipe.data.eval_sources if data is None and recipe.data.eval_sets else recipe.data.sources
    return Checked(recipe, setup, inspect_set(sources, setup, recipe.data.stop))


def _own_data(run: SavedRun) -> Any:
    data = (run.manifest.get("recipe") or {}).get("data")
    if not isinstance(data, Mapping) or all(data.get(key) is None for key in ("eval", "eval_fraction", "eval_rows")):
        raise DataError(
            "the run names no evaluation rows.", where=run.place, fix="Give DATA: sftcore evaluate RUN DATA"
        )
    return data


def evaluate(
    run: SavedRun, checked: Checked, *, own_rows: bool = False, dtype: str = "auto", adapter: bool = True
) -> Evaluation:
    """The model's scores on the rows, without packing and noise, by the negative log-likelihood.

    Args:
        run: from `open_run`.
        checked: from `evaluation_rows`.
        own_rows: whether the rows are those that the run evaluated on, which it may have held back from others.
        dtype: of the weights; "auto" is the one that the run had.
        adapter: without it the base alone is evaluated.

    Raises:
        SFTCoreError: the model cannot be loaded, or no row can be used.
    """
    from transformers import PrinterCallback

    from sftcore.config.sft_config import SFTConfig
    from sftcore.data.source.several import load_set
    from sftcore.tools.saved_rows import dataset_of_run
    from sftcore.train.row_locations import named_by_file
    from sftcore.train.run import config_of
    from sftcore.train.trainer import SFTTrainer

    recipe = checked.recipe
    model, processor, notes = loaded(run, dtype, adapter)
    with named_by_file(checked), tempfile.TemporaryDirectory() as aside:
        if own_rows:
            _, rows = dataset_of_run(recipe, run, "eval")
        else:
            rows = load_set(checked.train)
        fields = {**config_of(recipe), "output_dir": aside, "report_to": "none", "eval_strategy": "no"}
        fields |= {"model_init_kwargs": None, "gradient_checkpointing": False}
        trainer = SFTTrainer(
            model, SFTConfig(**fields), train_dataset=rows, eval_dataset=rows, processing_class=processor
        )
        trainer.remove_callback(PrinterCallback)  # it would print the figures among ours
        found, ledger = trainer.evaluate(), trainer.data.ledgers[-1]
        sets = _of_each_set(trainer, recipe) if own_rows else {}
    lines = (line.removeprefix(f"{ledger.name}: ") for line in ledger.lines())
    return Evaluation(
        loss=found["eval_loss"],
        perplexity=found.get("eval_perplexity"),
        accuracy=found["eval_mean_token_accuracy"],
        entropy=found.get("eval_entropy"),
        num_supervised=ledger.tokens_supervised,
        rows=tuple(f"{checked.train.label}: {line}" for line in lines),
        notes=(*run.notes, *notes),
        sets=sets,
    )


def _of_each_set(trainer: Any, recipe: Any) -> dict[str, dict[str, float]]:
    """Loss, perplexity, accuracy and entropy of each of several evaluation sets, as far as there are such."""
    from sftcore.data.source.several import given_set, load_set

    names = {"loss": "loss", "perplexity": "perplexity", "mean_token_accuracy": "accuracy", "entropy": "entropy"}
    sets = {}
    for name, sections in recipe.data.eval_sets.items() if len(recipe.data.eval_sets) > 1 else ():
        rows = load_set(given_set(sections, recipe.data.stop))
        found = trainer.evaluate(rows, metric_key_prefix="eval")
        sets[name] = {ours: found[f"eval_{key}"] for key, ours in names.items() if f"eval_{key}" in found}
    return sets


def loaded(run: SavedRun, dtype: str, adapter: bool) -> tuple[Any, Any, tuple[str, ...]]:
    """The model, with its adapter where it has one, its processor, and notes."""
    from sftcore.tools.load_saved import load_processor_of, load_request, load_tokenizer, put_adapter

    processor = load_processor_of(run)
    tokenizer = getattr(processor, "tokenizer", processor) if processor is not None else load_tokenizer(run)
    notes: list[str] = []
    if run.adapter is None:
        model = load_request(attrs.evolve(run.base, dtype=dtype), run.loader)
        return model, processor or tokenizer, ()
    model = _base(run, dtype, notes)
    if adapter:
        model = put_adapter(model, run, len(tokenizer))
    else:
        notes.append("the base without its adapter")
    for parameter in model.parameters():  # a trainer takes no model of which nothing could be trained
        if parameter.is_floating_point():
            parameter.requires_grad_(True)
    return model, processor or tokenizer, tuple(notes)


def _base(run: SavedRun, dtype: str, notes: list[str]) -> Any:
    """The base as it was in training, quantised where it was; else unquantised, which a note says."""
    from sftcore.tools.load_saved import load_request, quantised_as_trained

    try:
        if (quantised := quantised_as_trained(run)) is not None:
            return quantised
    except SFTCoreError as error:
        notes.append(f"on the base without quantisation, since it cannot be quantised here: {error}")
    ran = (run.manifest.get("model") or {}).get("dtype")
    return load_request(attrs.evolve(run.base, dtype=ran if ran and dtype == "auto" else dtype), run.loader)
