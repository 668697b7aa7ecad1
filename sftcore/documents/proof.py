"""The proof that documents in a packed row do not read each other, on the model and attention that will train.

Two measurements, each on the logits of every document:

1. *Neighbours*: replacing the tokens of all other documents changes nothing, to the last bit.
2. *Alone*: they equal those of the document alone in a row, within what the dtype allows; this catches positions and
   sliding windows that are wrong in a packed row.

Documents of one token, and longer than the sliding window, are among them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from attrs import Factory, frozen

from sftcore.core.errors import DataError, ModelError
from sftcore.core.types import IGNORED, AttentionBackend
from sftcore.documents.ways import Way, document_starts, ways_for
from sftcore.model.unwrap import causal_model

if TYPE_CHECKING:
    import torch

Lengths: TypeAlias = tuple[tuple[int, ...], ...]
"""Of the documents in each row."""

LONGEST_WINDOW = 4096
"""A longer sliding window is not exceeded: the proof would cost more than it tells."""
WINDOWS = ("sliding_window", "attention_chunk_size", "window_size", "index_topk")
"""Where configurations say how many tokens a layer sees at most."""
TOLERANCES = {"float64": 1e-6, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
"""How far logits may lie apart for another order of summation, as a part of the largest logit."""
HALVES = ("float16", "bfloat16")
TF32_TOLERANCE = 1e-2
"""The same for float32 on an accelerator, which may multiply in TF32."""
FAILURES = (ModelError, TypeError, ValueError, RuntimeError, LookupError, AttributeError, AssertionError)
"""What a forward that cannot be called in some way may raise."""
PADDED = "Use padded batches (packing: false, padding_free: false)"


@frozen
class Gaps:
    """The largest difference of a logit: with other neighbours, and to the document alone; and what was allowed."""

    neighbours: float
    alone: float
    neighbours_allowed: float
    alone_allowed: float

    def __str__(self) -> str:
        kept = "bit-identical" if self.neighbours == 0 else f"within {self.neighbours:.1g}"
        return f"logits {kept} whatever the neighbours, within {self.alone:.1g} of the document alone"

    def failure(self) -> str:
        """What leaked, or an empty string. A gap that is not a number fails too."""
        if not self.neighbours <= self.neighbours_allowed:
            return f"other documents move a document's logits by {self.neighbours:.2g}"
        if not self.alone <= self.alone_allowed:
            return f"logits differ by {self.alone:.2g} from the document alone (allowed: {self.alone_allowed:.2g})"
        return ""


@frozen
class Proof:
    """The way that keeps documents apart, what was measured, and why the ways before it did not."""

    way: Way
    gaps: Gaps
    lengths: Lengths
    tried: Mapping[str, str] = Factory(dict)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "; ".join([f"documents are kept apart by {self.way.summary}: {self.gaps}", *self.notes])

    def record(self) -> dict[str, Any]:
        """The proof as plain values, for a manifest."""
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
    """The first way that keeps documents apart on this model, as it is now: adapters, dtype, device and kernels.

    Call it where training would call the model (inside its autocast). It costs about a dozen forward passes of some
    forty tokens, or of the sliding window's length. The random state and every module's training flag stay as they
    were.

    Args:
        model: the causal model, wrapped by PEFT or not.
        backend: what its attention declares.
        flattened: the run's batches are one row (padding-free); otherwise rows with padding at their end.
        max_length: no document of the run is longer.
        ways: those to try instead of `ways_for(model, backend)`.

    Raises:
        ModelError: no way holds, with what leaked.
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
        if not failure:
            return Proof(way, gaps, lengths, tried, notes)
        tried[way.summary] = failure
        failed.setdefault(failure, {})[way.name] = None
    attention = causal_model(model).config.get_text_config()._attn_implementation
    reasons = "; ".join(f"with {' or '.join(names)}, {failure}" for failure, names in failed.items())
    raise ModelError(
        f"documents that share a row are not kept apart in {type(causal_model(model)).__name__}: {reasons}.",
        where=f"attention {attention}",
        fix=f"{PADDED}, or choose another attention.",
    )


def check_labels(batch: Mapping[str, Any]) -> None:
    """Hold that the first label of each document is -100: labels (B, T), position_ids (B, T).

    The loss predicts a label from the token before it, which for the first token is another document's last.

    Raises:
        DataError: with row and position of the first one that counts.
    """
    counted = (document_starts(batch["position_ids"]) & (batch["labels"] != IGNORED)).nonzero()
    if len(counted):
        row, position = counted[0].tolist()
        raise DataError(
            f"the document that begins at position {position} counts its first token, which would be predicted from "
            "the document before it.",
            where=f"packed batch row {row}",
            fix=f"Set the label there to {IGNORED}.",
        )


def measure(model: Any, backend: AttentionBackend | None, way: Way, lengths: Lengths) -> Gaps:
    """Run packed rows of documents of these lengths; in the second row the last document is padding."""
    import torch

    packed = _Rows(model, lengths)
    neighbours = alone = largest = 0.0
    with quiet(model), torch.no_grad():
        calls = backend.calls() if backend is not None and backend.calls else 0
        wanted = logits_of(model, way(packed.batch(packed.ids_BT)))
        if way.name == "boundaries" and backend is not None and backend.calls:
            _check_calls(causal_model(model), backend.calls() - calls)
        for row, span in packed.checked():
            got = logits_of(model, way(packed.batch(packed.replaced_except(row, span))))
            neighbours = worst(neighbours, got[row, span], wanted[row, span])
            reference = logits_of(model, {"input_ids": packed.ids_BT[row : row + 1, span]})[0]
            alone = worst(alone, wanted[row, span], reference)
            largest = max(largest, float(reference.abs().max()))
    coarse = coarsest(model, wanted)
    if (backend is None or backend.deterministic) and not _shares_numbers(causal_model(model)):
        moved = 0.0
    else:
        moved = TOLERANCES[coarse] * largest if coarse in HALVES else 1e-5 * max(1.0, largest)
    alone_allowed = TF32_TOLERANCE if coarse == "float32" and wanted.device.type != "cpu" else TOLERANCES[coarse]
    return Gaps(neighbours, alone, moved, alone_allowed * largest)


def worst(so_far: float, got: torch.Tensor, wanted: torch.Tensor) -> float:
    gap = float((got.float() - wanted.float()).abs().max())
    return gap if not gap <= so_far else so_far  # keeps a gap that is not a number


def logits_of(model: Any, batch: Mapping[str, Any]) -> torch.Tensor:
    logits: torch.Tensor = model(**{"use_cache": False, **batch}).logits
    return logits


# --- Rows -----------------------------------------------------------------------------------------------------------
class _Rows:
    """Random tokens in packed rows: (B, T) each, and which spans of them are documents to check."""

    def __init__(self, model: Any, lengths: Lengths) -> None:
        import torch

        self._lengths = lengths
        device = model.get_input_embeddings().weight.device
        config = causal_model(model).config
        self._words = torch.tensor(plain_words(config), device=device)
        generator = torch.Generator().manual_seed(0)
        shape = (len(lengths), sum(lengths[0]))
        choice_BT = torch.randint(len(self._words), shape, generator=generator)
        shift_BT = torch.randint(1, len(self._words), shape, generator=generator)
        self.ids_BT = self._words[choice_BT.to(device)]
        self._others_BT = self._words[((choice_BT + shift_BT) % len(self._words)).to(device)]
        positions = [[index for length in row for index in range(length)] for row in lengths]
        self._position_ids_BT = torch.tensor(positions, device=device)

    def batch(self, ids_BT: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"input_ids": ids_BT, "position_ids": self._position_ids_BT}

    def replaced_except(self, row: int, span: slice) -> torch.Tensor:
        """Every token another one, save those of one document."""
        ids_BT = self._others_BT.clone()
        ids_BT[row, span] = self.ids_BT[row, span]
        return ids_BT

    def checked(self) -> Iterator[tuple[int, slice]]:
        """Each document of the first row; of the second, the first and the one next to the padding."""
        for row, lengths in enumerate(self._lengths):
            ends = [sum(lengths[: index + 1]) for index in range(len(lengths))]
            for index, (length, end) in enumerate(zip(lengths, ends, strict=True)):
                if row == 0 or index in (0, len(lengths) - 2):
                    yield row, slice(end - length, end)


def _layout(
    config: Any, flattened: bool, max_length: int | None
) -> tuple[tuple[tuple[int, ...], ...], tuple[str, ...]]:
    """The documents' lengths in each row, and what they cannot show."""
    limit = min(length for length in (max_length, getattr(config, "max_position_embeddings", None), 1 << 30) if length)
    windows = [getattr(config, name, None) for name in WINDOWS]
    reached = [window for window in windows if isinstance(window, int) and window < limit]
    notes = tuple(f"the window of {window} tokens was not exceeded" for window in reached if window > LONGEST_WINDOW)
    long = min(limit, max([24, *(window + 5 for window in reached if window <= LONGEST_WINDOW)]))
    short, middle = min(5, limit), min(9, limit)
    first = (short, 1, 1, long, middle)
    return ((first,) if flattened else (first, (middle, 1, 1, short, long))), notes


def plain_words(config: Any) -> list[int]:
    """Token ids that mean nothing to the model's own code, such as the place of an image."""
    special: set[int] = set()
    for one in (config, config.get_text_config()):
        for key, value in one.to_dict().items():
            if key.endswith(("_token_id", "_token_index")):
                special.update(value if isinstance(value, (list, tuple)) else [value])
    # Some thousands are plenty, and cost nothing where the vocabulary is large
    return [word for word in range(config.get_text_config().vocab_size) if word not in special][:8192]


# --- The model as training finds it ---------------------------------------------------------------------------------
@contextmanager
def quiet(model: Any) -> Iterator[None]:
    """Evaluation mode; afterwards each module's own flag and the random state are what they were."""
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


def _shares_numbers(model: Any) -> bool:
    """Whether other tokens may change the last bits of a token's result by no fault of the attention.

    Experts multiply as many tokens at once as are sent to them, and quantised layers may scale by all tokens at once.
    """
    config = model.config.get_text_config()
    experts = any(getattr(config, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))
    return experts or bool(getattr(model, "is_quantized", False))


def coarsest(model: Any, logits: torch.Tensor) -> str:
    """The name of the coarsest dtype on the way to the logits, which may have been turned into float32 at the end."""
    import torch

    kinds = {logits.dtype, *(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())}
    if torch.is_autocast_enabled(logits.device.type):
        kinds.add(torch.get_autocast_dtype(logits.device.type))
    names = {str(kind).removeprefix("torch.") for kind in kinds}
    if getattr(causal_model(model), "is_quantized", False) or not names <= set(TOLERANCES):
        return "bfloat16"
    return max(names, key=lambda name: TOLERANCES[name])


def _check_calls(model: Any, calls: int) -> None:
    """Hold that the attention had boundaries in every layer that attends; others have other ways to mix tokens."""
    config = model.config.get_text_config()
    types = getattr(config, "layer_types", None)
    attends = [kind for kind in types or () if "attention" in kind and "linear" not in kind]
    modules = [module for module in model.modules() if type(module).__name__.endswith("Attention")]
    layers = len(attends) if types else min(config.num_hidden_layers, len(modules))
    if calls == 0 or calls < layers:
        raise ModelError(f"boundaries reached the attention {calls} times in {layers} attention layers")


def _refuse_prompt_learning(model: Any) -> None:
    for config in getattr(model, "peft_config", {}).values():
        if getattr(config, "is_prompt_learning", False):
            raise ModelError(
                f"{config.peft_type.value} puts virtual tokens before a row and drops its position ids, so documents "
                "that share a row cannot be kept apart.",
                fix=f"{PADDED}, or another adapter.",
            )
