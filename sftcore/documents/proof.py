"""Prove that documents in a packed row do not attend to each other, on the model and attention that will train.

Two properties of every document's logits are measured:

1. *Neighbours*: they stay bit-identical when the tokens of all other documents are replaced.
2. *Alone*: they equal the logits of the document alone in a row, within the tolerance of the dtype. This detects
   positions and sliding windows that are wrong in a packed row.

The documents include some of a single token and one that is longer than the sliding window.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import Factory, frozen

from sftcore.core.errors import DataError, ModelError
from sftcore.core.types import IGNORED, AttentionBackend
from sftcore.data.ranks import first_reason
from sftcore.documents.ways import Way, document_starts, ways_for
from sftcore.model.unwrap import causal_model

if TYPE_CHECKING:
    import torch

Lengths: TypeAlias = tuple[tuple[int, ...], ...]
"""The lengths of the documents in each row."""

LONGEST_WINDOW = 4096
"""No document exceeds a sliding window longer than this, as it would make the proof too expensive."""
WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "index_topk")
"""Configuration fields that limit how many tokens a layer attends to."""
TOLERANCES = {"float64": 1e-6, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""How much logits may differ because sums are added in another order, as a fraction of the largest logit."""
HALVES = ("float16", "bfloat16")
TF32_TOLERANCE = 1e-2
"""The same for float32 on an accelerator, which may multiply in TF32."""
FAILURES = (ModelError, TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError)
"""Exceptions that a model's forward pass may raise if it does not support the arguments it is given."""
PADDED = "Use padded batches (packing: false, padding_free: false)"


@frozen
class Gaps:
    """The largest logit differences, with other neighbours and from the document alone, and how large they may be."""

    neighbours: float
    alone: float
    neighbours_allowed: float
    alone_allowed: float

    def __str__(self) -> str:
        kept = "are bit-identical" if self.neighbours == 0 else f"differ by at most {self.neighbours:.1g}"
        return f"logits {kept} with other neighbours, and within {self.alone:.1g} of the document alone"

    def failure(self) -> str:
        """A description of what leaked, or an empty string; a gap of NaN fails too."""
        if not self.neighbours <= self.neighbours_allowed:
            return f"other documents change a document's logits by {self.neighbours:.2g}"
        if not self.alone <= self.alone_allowed:
            return f"logits differ by {self.alone:.2g} from the document alone (allowed: {self.alone_allowed:.2g})"
        return ""


@frozen
class Proof:
    """The way that keeps documents apart, the differences measured, and why the ways tried before it failed."""

    way: Way
    gaps: Gaps
    lengths: Lengths
    tried: Mapping[str, str] = Factory(dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "; ".join([f"documents are kept apart by {self.way.summary}: {self.gaps}", *self.notes])

    def record(self) -> dict[str, Any]:
        """The proof as JSON values, for the manifest."""
        return {
            "way": self.way.name,
            "summary": self.way.summary,
            "neighbours_gap": self.gaps.neighbours,
            "alone_gap": self.gaps.alone,
            "alone_allowed": self.gaps.alone_allowed,
            "documents": [list(row) for row in self.lengths],
            "tried": dict(self.tried),
            "notes": list(self.notes),
        }


def keep_documents_apart(
    model: Any,
    backend: AttentionBackend | None,
    *,
    flattened: bool,
    max_length: int | None = None,
    ways: Sequence[Way] | None = None,
) -> Proof:
    """Find the first way that keeps documents apart on this model with its adapters, dtype, device and kernels.

    Call it where training would call the model, inside its autocast, by all processes together: a way that fails in one
    of them is not taken in any. It costs about a dozen forward passes of some
    forty tokens, or of the sliding window's length. It changes neither the random state nor any module's training flag.

    Args:
        model: the causal model, wrapped by PEFT or not.
        backend: what the model's attention declares.
        flattened: whether the run's batches are a single row (padding-free) rather than padded rows.
        max_length: the length of the run's longest document.
        ways: the ways to try instead of `ways_for(model, backend)`.

    Raises:
        ModelError: no way keeps the documents apart, with what leaked.
    """
    _refuse_prompt_learning(model)
    lengths, notes = _layout(causal_model(model).config.get_text_config(), flattened, max_length)
    tried: dict[str, str] = {}
    failed: dict[str, dict[str, None]] = {}
    for way in ways_for(model, backend) if ways is None else ways:
        try:
            gaps = measure(model, backend, way, lengths)
            failure = gaps.failure()
        except FAILURES as error:
            if type(error).__name__ == "OutOfMemoryError":
                raise
            failure = error.what if isinstance(error, ModelError) else f"{type(error).__name__}: {error}"
            failure = failure.strip().partition("\n")[0].rstrip(".")
        failure = first_reason(failure)
        if not failure:
            return Proof(way, gaps, lengths, tried, notes)
        tried[way.summary] = failure
        failed.setdefault(failure, {})[way.name] = None
    attention = causal_model(model).config.get_text_config()._attn_implementation
    reasons = "; ".join(f"with {' or '.join(names)}, {failure}" for failure, names in failed.items())
    raise ModelError(
        f"{type(causal_model(model)).__name__} does not keep documents that share a row apart: {reasons}.",
        where=f"attention {attention}",
        fix=f"{PADDED}, or choose another attention.",
    )


def check_labels(batch: Mapping[str, Any]) -> None:
    """Check that the first label of each document is -100, given labels (B, T) and position_ids (B, T).

    A label is predicted from the token before it, which for the first token belongs to another document.

    Raises:
        DataError: a document's first token is supervised; the error names the row and the position.
    """
    counted = (document_starts(batch["position_ids"]) & (batch["labels"] != IGNORED)).nonzero()
    if len(counted):
        row, position = counted[0].tolist()
        raise DataError(
            f"the first token of the document at position {position} is supervised, so it would be predicted from the "
            "document before it.",
            where=f"packed batch row {row}",
            fix=f"Set its label to {IGNORED}.",
        )


def measure(model: Any, backend: AttentionBackend | None, way: Way, lengths: Lengths) -> Gaps:
    """Measure packed rows of documents with these lengths; the last document of the second row is padding."""
    import torch

    ids_BT, others_BT, position_ids_BT = _random_rows(model, lengths)

    def shared(ids_BT: torch.Tensor) -> torch.Tensor:
        return logits_of(model, way({"input_ids": ids_BT, "position_ids": position_ids_BT}))

    def documents() -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for row, span in _spans_to_measure(lengths):
            replaced_BT = others_BT.clone()
            replaced_BT[row, span] = ids_BT[row, span]
            got = shared(replaced_BT)[row, span]
            yield wanted[row, span], got, logits_of(model, {"input_ids": ids_BT[row : row + 1, span]})[0]

    with evaluation_mode(model), torch.no_grad():
        calls = backend.calls() if backend is not None and backend.calls else 0
        wanted = shared(ids_BT)
        if way.name == "boundaries" and backend is not None and backend.calls:
            _require_calls(causal_model(model), backend.calls() - calls)
        neighbours, alone, largest = largest_gaps(documents())
    coarse = coarsest(model, wanted)
    if (backend is None or backend.deterministic) and not _mixes_rounding(causal_model(model)):
        neighbours_allowed = 0.0
    else:
        neighbours_allowed = TOLERANCES[coarse] * largest if coarse in HALVES else 1e-5 * max(1.0, largest)
    alone_allowed = TF32_TOLERANCE if coarse == "float32" and wanted.device.type != "cpu" else TOLERANCES[coarse]
    return Gaps(neighbours, alone, neighbours_allowed, alone_allowed * largest)


def largest_gaps(
    documents: Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
) -> tuple[float, float, float]:
    """The largest gap with other neighbours, the largest from the document alone, and the largest logit.

    Args:
        documents: for each document its logits in the shared row, with other neighbours, and alone.
    """
    neighbours = alone = largest = 0.0
    for wanted, got, reference in documents:
        neighbours = _larger_gap(neighbours, got, wanted)
        alone = _larger_gap(alone, wanted, reference)
        largest = max(largest, float(reference.abs().max()))
    return neighbours, alone, largest


def _larger_gap(so_far: float, got: torch.Tensor, wanted: torch.Tensor) -> float:
    """The larger of a gap and the largest difference between two tensors; NaN counts as larger than any number."""
    gap = float((got.float() - wanted.float()).abs().max())
    return gap if not gap <= so_far else so_far


def logits_of(model: Any, batch: Mapping[str, Any]) -> torch.Tensor:
    logits: torch.Tensor = model(**{"use_cache": False, **batch}).logits
    return logits


# --- Rows -----------------------------------------------------------------------------------------------------------
def _random_rows(model: Any, lengths: Lengths) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Random tokens, others that differ from them everywhere, and positions of the documents; (B, T) each."""
    import torch

    device = model.get_input_embeddings().weight.device
    known = torch.tensor(ordinary_token_ids(causal_model(model).config), device=device)
    generator = torch.Generator().manual_seed(0)
    shape = (len(lengths), sum(lengths[0]))
    choice_BT = torch.randint(len(known), shape, generator=generator)
    shift_BT = torch.randint(1, len(known), shape, generator=generator)
    others_BT = known[((choice_BT + shift_BT) % len(known)).to(device)]
    positions = [[index for length in row for index in range(length)] for row in lengths]
    return known[choice_BT.to(device)], others_BT, torch.tensor(positions, device=device)


def _spans_to_measure(rows: Lengths) -> Iterator[tuple[int, slice]]:
    """Every document of the first row; in the second, the first document and the one next to the padding."""
    for row, lengths in enumerate(rows):
        ends = itertools.accumulate(lengths)
        for index, (length, end) in enumerate(zip(lengths, ends, strict=True)):
            if row == 0 or index in (0, len(lengths) - 2):
                yield row, slice(end - length, end)


def _layout(config: Any, flattened: bool, max_length: int | None) -> tuple[Lengths, tuple[str, ...]]:
    """The lengths of the documents in each row, and notes on what they cannot prove."""
    limit = min(length for length in (max_length, getattr(config, "max_position_embeddings", None), 1 << 30) if length)
    windows = [getattr(config, name, None) for name in WINDOWS]
    reached = [window for window in windows if isinstance(window, int) and window < limit]
    notes = tuple(
        f"no document exceeded the attention window of {window} tokens" for window in reached if window > LONGEST_WINDOW
    )
    long = min(limit, max([24, *(window + 5 for window in reached if window <= LONGEST_WINDOW)]))
    short, middle = min(5, limit), min(9, limit)
    first = (short, 1, 1, long, middle)
    return ((first,) if flattened else (first, (middle, 1, 1, short, long))), notes


_CODES = ("IMGIMG", "<|visual token")
"""How models that put images into their vocabulary name their codes (Chameleon, Emu3)."""


def code_token_ids(config: Any) -> set[int]:
    """Token ids that stand for codes of images, which a model may never say."""
    names: dict[Any, int] = getattr(config, "vocabulary_map", None) or {}
    return {number for name, number in names.items() if str(name).startswith(_CODES)}


def ordinary_token_ids(config: Any) -> list[int]:
    """Token ids without a special meaning in the model's own code, such as that of an image placeholder."""
    special = code_token_ids(config)
    for one in (config, config.get_text_config()):
        for key, value in one.to_dict().items():
            if key.endswith(("_token_id", "_token_ids", "_token_index")):
                special.update(value if isinstance(value, (list, tuple)) else [value])
    # a few thousand are enough, and keep this cheap for a large vocabulary
    return [word for word in range(config.get_text_config().vocab_size) if word not in special][:8192]


# --- The model as training will use it ------------------------------------------------------------------------------
@contextmanager
def evaluation_mode(model: Any) -> Iterator[None]:
    """Evaluation mode inside; each module's training flag and the random state are restored afterwards."""
    import torch

    device = model.get_input_embeddings().weight.device
    flags = [(module, module.training) for module in model.modules()]
    accelerators = {} if device.type == "cpu" else {"device_type": device.type}
    with torch.random.fork_rng(devices=[device] if accelerators else [], **accelerators):
        model.eval()
        try:
            yield
        finally:
            for module, training in flags:
                module.training = training


def _mixes_rounding(model: Any) -> bool:
    """Whether other tokens may change the rounding of a token's result even if attention keeps them apart.

    Experts multiply as many tokens at once as are routed to them, and quantised layers may scale all tokens together.
    """
    config = model.config.get_text_config()
    experts = any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
    return experts or bool(getattr(model, "is_quantized", False))


def coarsest(model: Any, logits: torch.Tensor) -> str:
    """The name of the coarsest dtype used to compute the logits, which may themselves be cast to float32 at the end."""
    import torch

    kinds = {logits.dtype, *(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())}
    if torch.is_autocast_enabled(logits.device.type):
        kinds.add(torch.get_autocast_dtype(logits.device.type))
    names = {str(kind).removeprefix("torch.") for kind in kinds}
    if getattr(causal_model(model), "is_quantized", False) or not names <= set(TOLERANCES):
        return "bfloat16"
    return max(names, key=lambda name: TOLERANCES[name])


def _require_calls(model: Any, calls: int) -> None:
    """Require that document boundaries reached the attention in every attention layer.

    Raises:
        ModelError: they reached it less often than there are attention layers.
    """
    config = model.config.get_text_config()
    types = getattr(config, "layer_types", None)
    attends = [kind for kind in types or () if "attention" in kind and "linear" not in kind]
    modules = [module for module in model.modules() if type(module).__name__.endswith("Attention")]
    layers = len(attends) if types else min(config.num_hidden_layers, len(modules))
    if calls == 0 or calls < layers:
        raise ModelError(f"document boundaries reached the attention only {calls} times in {layers} attention layers")


def _refuse_prompt_learning(model: Any) -> None:
    for config in getattr(model, "peft_config", {}).values():
        if getattr(config, "is_prompt_learning", False):
            raise ModelError(
                f"{config.peft_type.value} puts virtual tokens before a row and drops its position ids, so documents "
                "that share a row cannot be kept apart.",
                fix=f"{PADDED}, or choose another adapter.",
            )
