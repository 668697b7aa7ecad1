"""Load the parts of a saved run: its tokenizer, its base model without quantisation, and its adapter."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from sftcore.config.probe import reads_images
from sftcore.config.settings.templates import refuse_large
from sftcore.core.errors import CheckError, ModelError
from sftcore.core.types import ModelRequest, Selection
from sftcore.model.embeddings import embedding_names, is_whole_weight, saved_shapes
from sftcore.tools.saved import QUANTISES, SavedRun, selections_of

if TYPE_CHECKING:
    from sftcore.config.setup import Setup


def load_tokenizer(run: SavedRun) -> Any:
    """The run's own tokenizer with its chat template, or else that of its base.

    Raises:
        ModelError: the tokenizer cannot be loaded.
    """
    from transformers import AutoTokenizer

    for folder in dict.fromkeys(filter(None, (run.folder, run.adapter))):
        if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
            refuse_large(folder)
            try:
                return AutoTokenizer.from_pretrained(folder, trust_remote_code=run.base.trust_remote_code)
            except (OSError, ValueError) as error:
                raise ModelError(f"the tokenizer cannot be loaded: {error}", where=str(folder)) from error
    from sftcore.model.processor import load_processor

    setup = _setup(run.base, run.loader)
    found = load_processor(setup.plan, setup.plugins)
    return getattr(found, "tokenizer", found)


def load_processor_of(run: SavedRun) -> Any | None:
    """The run's own processor, or else that of its base; None for a model that reads text alone.

    Raises:
        ModelError: the processor cannot be loaded.
    """
    from transformers import AutoProcessor

    if not reads_images(saved_config(run)):
        return None
    folders = [folder for folder in (run.folder, run.adapter) if folder and any(folder.glob("*processor_config.json"))]
    place = folders[0] if folders else run.base.name
    refuse_large(Path(place or "").expanduser())
    try:
        return AutoProcessor.from_pretrained(place, trust_remote_code=run.base.trust_remote_code)
    except (OSError, ValueError) as error:
        raise ModelError(f"the processor cannot be loaded: {error}", where=str(place)) from error


def load_base(run: SavedRun, dtype: str = "float32") -> Any:
    """The base, or the whole model, without quantisation; a base that was saved quantised is dequantised.

    Raises:
        ModelError: it cannot be loaded or dequantised.
    """
    from sftcore.model.precision import quantisation_of

    model = load_request(attrs.evolve(run.base, dtype=dtype), run.loader)
    if quantised := quantisation_of(model):
        try:
            model = model.dequantize()
        except (NotImplementedError, AttributeError, ValueError) as error:
            raise ModelError(
                f"the base was saved quantised ({quantised}) and cannot be dequantised: {error}",
                where=f"model {run.base.name}",
                fix="Name the unquantised base: --base MODEL.",
            ) from error
        model.hf_quantizer, model.is_quantized = None, False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        _forget_unpacking(model)
        if dtype != "auto":
            import torch

            model = model.to(getattr(torch, dtype))
    return model.eval()


def load_request(request: ModelRequest, loader: Selection | None) -> Any:
    """Load a model by its loader.

    Raises:
        CheckError, ModelError: the model cannot be loaded.
    """
    from sftcore.config.probe import model_problems

    # only these problems count here: a model that cannot be trained can still be prompted and merged
    if problems := list(model_problems(request, False, False)):
        raise CheckError(problems)
    return _load(_setup(request, loader))


def _load(setup: Setup) -> Any:
    from sftcore.model.build import load_model

    setup.plugins.all("prepare", plan=setup.plan)
    return load_model(setup.plan, setup.plugins, None).model


def _setup(request: ModelRequest, loader: Selection | None, *further: Selection) -> Setup:
    from sftcore.config.setup import set_up

    chosen = [*([loader] if loader else []), *further]
    return set_up(chosen, {}, request, where="", without=("format", "collator", "loss"))


def put_adapter(base: Any, run: SavedRun, rows: int) -> Any:
    """Put the run's adapter on a base, whose embeddings are first resized to the size the adapter was saved with.

    Args:
        base: the base model.
        run: the saved run with the adapter.
        rows: the number of tokens in the run's tokenizer.

    Raises:
        ModelError: neither the base nor the adapter has embeddings for some of the tokenizer's tokens, or PEFT refuses
            the adapter.
    """
    from peft import PeftModel

    from sftcore.chat.sandbox.patterns import refuse_endless

    assert run.adapter is not None
    refuse_endless(run.adapter_config, [name for name, _ in base.named_modules()], str(run.adapter))
    _fit_embeddings(base, run, rows)
    try:
        with warnings.catch_warnings():
            # peft 0.21 reads an attribute that transformers 5.24 renamed
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            # tied weights, which PEFT warns about, are handled when the adapter is merged
            warnings.filterwarnings("ignore", message="Model (has|with) `tie_word_embeddings=True`")
            model = PeftModel.from_pretrained(base, run.adapter, adapter_name=run.adapter_name)
    except (ValueError, RuntimeError, TypeError) as error:
        first = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"PEFT cannot put the adapter on {run.base.name}: {first}",
            where=str(run.adapter),
            fix="Name the base that it was trained on: --base MODEL.",
        ) from error
    return model.eval()


def _fit_embeddings(base: Any, run: SavedRun, rows: int) -> None:
    assert run.adapter is not None
    if (embedding := base.get_input_embeddings()) is None:
        return
    names = embedding_names(base)
    whole = {name: shape[0] for name, shape in saved_shapes(run.adapter).items() if is_whole_weight(name, names)}
    known = embedding.weight.shape[0]
    if whole:
        if (saved := max(whole.values())) != known:
            base.resize_token_embeddings(saved, mean_resizing=False)
        return
    if rows <= known:
        return
    trained = run.adapter_config.get("trainable_token_indices") or []
    indices = {one for part in (trained.values() if isinstance(trained, dict) else [trained]) for one in part}
    if missing := sorted(set(range(known, rows)) - indices):
        raise ModelError(
            f"the tokenizer has {rows} tokens and the base has {known} embedding rows, but the adapter has no rows for "
            f"{len(missing)} of the added tokens.",
            where=str(run.adapter),
            fix="Name the base that was resized before training (--base MODEL). A run that adds tokens must train or "
            "save their rows (modules_to_save, or trainable_token_indices).",
        )
    base.resize_token_embeddings(rows, mean_resizing=False)


def set_stops(model: Any, tokenizer: Any, run: SavedRun) -> None:
    """Make generation stop at the run's stop tokens, and never pad with one of them.

    An adapter's folder has no generation_config.json unless somebody put one there, so the stop tokens are read from
    the run's tokenizer.
    """
    from transformers import GenerationConfig

    from sftcore.chat.stops import align_pad, stop_at, trained_stop

    if run.folder is not None and (run.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(run.folder)
    ends = filter(None, (tokenizer.eos_token, trained_stop(tokenizer)))
    if stops := [tokenizer.convert_tokens_to_ids(end) for end in ends]:
        stop_at(model, list(dict.fromkeys(stops)))
    align_pad(model, tokenizer, None)


def quantised_as_trained(run: SavedRun) -> Any | None:
    """The base quantised as it was during training; None if it was not quantised.

    Raises:
        SFTCoreError: it cannot be loaded that way on this machine.
    """
    from sftcore.model.build import merged_options

    ran = run.manifest.get("model") or {}
    asked = {key: value for key, value in (ran.get("init_kwargs") or {}).items() if key in QUANTISES and value}
    dtype = ran.get("dtype") or "auto"
    request = attrs.evolve(run.base, dtype=dtype, init_kwargs={**run.base.init_kwargs, **asked})
    adapter = [one for one in selections_of(run.manifest, "adapter") if "config" not in one.options]
    setup = _setup(request, run.loader, *adapter)
    options = merged_options(setup.plan, setup.plugins, None).kwargs
    if not QUANTISES & options.keys() and not saved_config(run).get("quantization_config"):
        return None
    return _load(setup)


def saved_config(run: SavedRun) -> dict[str, Any]:
    """The config.json of the base or the whole model; empty if there is none."""
    from transformers import PretrainedConfig

    try:
        config, _ = PretrainedConfig.get_config_dict(run.base.name, revision=run.base.revision)
    except (OSError, ValueError):  # a single file has no configuration
        return {}
    found: dict[str, Any] = config
    return found


def _forget_unpacking(model: Any) -> None:
    """Drop the conversions that unpacked the quantised weights, which transformers 5.17 fails to undo when saving."""

    def can_be_undone(conversion: Any) -> bool:
        try:
            conversion.reverse_transform()
        except NotImplementedError:
            return False
        return True

    if conversions := getattr(model, "_weight_conversions", None):
        model._weight_conversions = [one for one in conversions if can_be_undone(one)]
