"""Generates answers from a model in the middle of its training, and leaves no trace of it in the model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from attrs import frozen
from transformers import StoppingCriteria

from sftcore.chat.served.generation import Sampling, generate_arguments
from sftcore.chat.stops import known_stops
from sftcore.core.errors import ConflictError, ModelError
from sftcore.core.types import IGNORED
from sftcore.model.unwrap import causal_model
from sftcore.train.parts.randomness import Randomness
from sftcore.train.samples.questions import Question

_KEPT = ("training", "gradient_checkpointing", "rope_deltas")
"""What of modules `eval`, `generate` or a forward pass may change: Unsloth's sets the second, Qwen-VL's the last."""
_OF_ROWS = (
    "labels", "weights", "attention_mask", "position_ids", "seq_idx", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q",
    "max_length_k",
)  # fmt: skip
"""What a batch for training has and a question has not, which is one row without padding."""


@frozen
class Answer:
    """What a model answered; `ended` says whether it stopped by itself, and not at the limit of tokens."""

    text: str
    num_tokens: int
    ended: bool


class _Until(StoppingCriteria):  # type: ignore[misc]
    """Ends a generation once it is no longer wanted."""

    def __init__(self, left: Callable[[], Any]) -> None:
        self._left = left

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        return torch.full((len(input_ids),), bool(self._left()), dtype=torch.bool, device=input_ids.device)


def inputs_of(question: Question, collate: Callable[[list[dict[str, Any]]], Mapping[str, Any]]) -> dict[str, Any]:
    """The question as `generate` takes it, on the CPU: input_ids and attention_mask (1, T), and its images.

    Args:
        question: with its tokens and images.
        collate: the collator of the run, which is asked for the images alone.
    """
    ids = [int(one) for one in question.row["input_ids"]]
    found: dict[str, Any] = {}
    if any(one.get("images") or one.get("media") for one in question.row.get("documents") or ()):
        row = {**question.row, "input_ids": ids, "labels": [IGNORED] * len(ids)}
        batch = collate([row])
        width = batch["input_ids"].shape[1]
        for name, value in batch.items():
            if name in _OF_ROWS:
                continue
            of_tokens = torch.is_tensor(value) and value.ndim > 1 and tuple(value.shape[:2]) == (1, width)
            found[name] = value[:, : len(ids)] if of_tokens else value
    input_ids = torch.tensor([ids])
    return {**found, "input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def context_of(model: Any, tokenizer: Any) -> int:
    """The largest number of tokens that a question and its answer may have together."""
    longest = getattr(causal_model(model).config.get_text_config(), "max_position_embeddings", None)
    return min(int(longest or tokenizer.model_max_length), int(tokenizer.model_max_length))


def generate(
    model: Any, tokenizer: Any, inputs: Mapping[str, Any], sampling: Sampling, left: Callable[[], Any]
) -> Answer | None:
    """The answer to one question; None where it was left before its end.

    Args:
        model: in the state in which it is to answer; see `undisturbed`.
        tokenizer: of the run.
        inputs: from `inputs_of`, on the model's device.
        sampling: how tokens are chosen, and how many at most.
        left: asked before each token whether the answer is still wanted.
    """
    asked = inputs["input_ids"].shape[1]
    room = min(sampling.max_new_tokens, context_of(model, tokenizer) - asked)
    ids = model.generate(
        **inputs,
        max_new_tokens=room,
        use_cache=True,
        stopping_criteria=[_Until(left)],
        num_beams=1,
        num_return_sequences=1,
        return_dict_in_generate=False,
        **generate_arguments(sampling),
    )[0].tolist()
    if left():
        return None
    given = ids[asked:] if ids[:asked] == inputs["input_ids"][0].tolist() else ids
    ended = bool(given) and given[-1] in known_stops(causal_model(model))
    text: str = tokenizer.decode(given, skip_special_tokens=True)
    return Answer(text, len(given), ended)


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Inside, the model is in evaluation mode and nothing is differentiated; afterwards it is what it was.

    So are the random generators, so that a run that samples trains as one that does not.
    """
    before = [(one, name, vars(one)[name]) for one in model.modules() for name in _KEPT if name in vars(one)]
    config = causal_model(model).config
    use_cache, random = getattr(config, "use_cache", None), Randomness.now()
    try:
        model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        if hasattr(config, "use_cache"):
            config.use_cache = use_cache
        random.restore()


def refuse_split(trainer: Any, questions: Sequence[Question]) -> None:
    """Refuse a model of which a process has a part alone, and one that generates nothing.

    Raises:
        ConflictError, ModelError: it is such a model.
    """
    if not questions:
        return
    engine = getattr(trainer.accelerator.state, "deepspeed_plugin", None)
    parallel = getattr(trainer.accelerator, "parallelism_config", None)
    parts = [
        *(["FSDP"] if trainer.is_fsdp_enabled else []),
        *(["DeepSpeed ZeRO-3"] if getattr(engine, "zero_stage", 0) == 3 else []),
        *(["tensor parallelism"] if trainer.get_tp_size() > 1 else []),
        *(
            ["context parallelism"]
            if getattr(parallel, "cp_size", 1) > 1 or getattr(parallel, "sp_size", 1) > 1
            else []
        ),
    ]
    if parts:
        raise ConflictError(
            f"the main process answers them alone, and with {parts[0]} it has a part of the model.",
            where="sample_prompts",
            fix="Drop it, and ask the saved model: sftcore chat RUN.",
        )
    model = causal_model(trainer.model)
    if not callable(getattr(model, "generate", None)) or not getattr(model, "can_generate", lambda: True)():
        raise ModelError(f"{type(model).__name__} cannot generate.", where="sample_prompts", fix="Drop sample_prompts.")
    context = context_of(trainer.model, trainer.data.tokenizer)
    for number, question in enumerate(questions):
        if (length := len(question.row["input_ids"])) >= context:
            raise ModelError(
                f"prompt {number} has {length:,} tokens, and the model's context holds {context:,}, including the "
                "answer.",
                where="sample_prompts",
                fix="Shorten it.",
            )
