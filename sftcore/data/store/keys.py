"""Builds the cache key of a prepared data set from everything it depends on."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sftcore.data.store.cache import Key, digest_of, source_digest
from sftcore.util.plain import describe_plugin, plain
from sftcore.util.versions import version_of

if TYPE_CHECKING:
    from datasets import Dataset

    from sftcore.core.registry import Bound

SETTINGS = (
    "completion_only_loss",
    "assistant_only_loss",
    "mask_style",
    "truncation_mode",
    "long_rows",
    "system_prompt",
    "response_marker",
    "instruction_marker",
    "packing_strategy",
    "dataset_text_field",
    "rows",
)
"""Fields of SFTConfig that change what a row becomes."""

_LIBRARIES = ("tokenizers", "transformers", "jinja2", "datasets", "pyarrow")


def key_of(
    dataset: Dataset,
    *,
    format: Bound | Callable[..., Any] | None,
    tokenizer: Any,
    settings: Mapping[str, Any],
    max_length: int | None,
    packing: str,
    processor: Any = None,
    numbering: Sequence[int] | None = None,
    wrappers: Sequence[Bound] = (),
) -> Key | None:
    """The key of a prepared set, or None if a part has no stable hash (a function that cannot be pickled).

    Args:
        format: the format plugin, or a formatting function.
        max_length: the length of a row or block.
        packing: how rows are packed, in words; empty if they are not packed.
        numbering: the numbers of the rows in the ledger, if they differ from their indices.
        processor: the processor of a vision-language model, which decides how many tokens an image has.
        wrappers: plugins that wrap what the format makes of a row.
    """
    assert format is not None
    read = _function_digest(format) if callable(format) else plugin_digest(format)
    if read is None:
        return None
    return {
        "the rows": rows_digest(dataset),
        "the format": digest_of(*(one.encode() for one in (read, *map(plugin_digest, wrappers)))),
        "the chat template": digest_of(json.dumps(plain(tokenizer.chat_template)).encode()),
        "the tokenizer": tokenizer_digest(tokenizer),
        "the image processor": "" if processor is None else _images_digest(processor, settings),
        "max_length": str(max_length),
        "packing": packing,
        "the rows' numbers": "" if numbering is None else digest_of(np.asarray(numbering, np.int64).tobytes()),
        **{name: json.dumps(plain(settings.get(name))) for name in SETTINGS},
        "sftcore": f"{version_of('sftcore')} {source_digest(__file__)}",
        **{name: str(version_of(name)) for name in _LIBRARIES},
    }


def _images_digest(processor: Any, settings: Mapping[str, Any]) -> str:
    """Digest of the settings that decide how many tokens an image has, and which images are refused."""
    limits = [settings.get(name) for name in ("image_folder", "max_image_pixels", "allow_remote_images")]
    return digest_of(processor.to_json_string().encode(), json.dumps(limits).encode())


def rows_digest(dataset: Dataset) -> str:
    """Digest of a set's rows and types, in order, whatever way they are stored."""
    hashed = [json.dumps(plain(dataset.features.to_dict()), sort_keys=True).encode()]
    for table in dataset.with_format("arrow").iter(1000):
        # serializing removes slices and chunks, so that equal rows give equal bytes
        hashed += [digest_of(batch.serialize()).encode() for batch in table.combine_chunks().to_batches()]
    return digest_of(*hashed)


def plugin_digest(bound: Bound) -> str:
    """Digest of a plugin's version, options and source."""
    import attrs

    kind = type(bound.plugin)
    source = inspect.getsourcefile(kind)
    code = source_digest(source) if source and Path(source).is_file() else ""
    options = {field.name: repr(getattr(bound.plugin, field.name)) for field in attrs.fields(kind)}
    return digest_of(json.dumps([describe_plugin(bound), options], sort_keys=True).encode(), code.encode())


def _function_digest(function: Callable[..., Any]) -> str | None:
    from datasets.fingerprint import Hasher

    try:
        return str(Hasher.hash(function))
    except Exception:  # pickling a closure may raise anything that its objects raise
        return None


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest of everything that decides how a tokenizer tokenizes texts."""
    facts = json.dumps([type(tokenizer).__qualname__, plain(dict(tokenizer.special_tokens_map))], sort_keys=True)
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        from datasets.fingerprint import Hasher

        return digest_of(facts.encode(), str(Hasher.hash(tokenizer)).encode())
    split = bool(getattr(tokenizer, "split_special_tokens", False))
    return digest_of(facts.encode(), core.to_str().encode(), str(split).encode())
