"""What a family's losses are by hand: its processor and its model called as their documentation does, row by row.

Nothing here comes from the library under test. Labels are found in the words that the tokens spell: an image is what
the family's own expression matches, an answer is the words of the row and the token that ends the turn.
"""

from __future__ import annotations

import copy
import io
import re
from typing import Any

import numpy as np
import torch
from attrs import evolve, frozen
from PIL import Image

SIZES = ((48, 32), (20, 60))
RATE = 0.05
"""Of plain gradient descent, large enough that the second loss tells whether the first gradient was right."""


@frozen
class Case:
    """One question and its answer, with pictures between the question's words."""

    words: tuple[str, ...]
    answer: str
    sizes: tuple[tuple[int, int], ...]
    seed: int

    def of_one_size(self) -> Case:
        return evolve(self, sizes=SIZES[:1] * len(self.sizes))

    def of_two_pictures(self) -> Case:
        return evolve(self, words=self.words[:2], sizes=(SIZES[self.seed % 2], SIZES[1 - self.seed % 2]))

    def pictures(self) -> list[Image.Image]:
        random = np.random.RandomState(self.seed)
        return [Image.fromarray(random.randint(0, 255, (high, wide, 3), dtype=np.uint8)) for wide, high in self.sizes]

    def turns(self) -> list[dict[str, Any]]:
        """The conversation as processors take it; each picture stands behind one of the words."""
        asked: list[dict[str, str]] = []
        for number, word in enumerate(self.words):
            asked.append({"type": "text", "text": word})
            if number < len(self.sizes):
                asked.append({"type": "image"})
        return [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": [{"type": "text", "text": self.answer}]},
        ]

    def row(self) -> dict[str, Any]:
        """The same as a row of a data set: words with `<image>`, and encoded pictures beside them."""
        asked = "".join(word + "<image>" * (number < len(self.sizes)) for number, word in enumerate(self.words))
        encoded = []
        for picture in self.pictures():
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            encoded.append(buffer.getvalue())
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": self.answer}]
        return {"messages": turns, "images": encoded}


CASES = (
    Case(("say hello",), "hello, world", (), 0),
    Case(("say ", " a word"), "The answer is a word", SIZES[:1], 1),
    Case(("question ", " and ", " instruction"), "prompt", (SIZES[1], SIZES[0]), 2),
    Case(("say ", " or ", " or ", "?"), "completion 0123", (SIZES[0], SIZES[1], SIZES[0]), 3),
)


def batch_of(family: Any, model: Any, processor: Any, case: Case) -> dict[str, Any]:
    """The row as its processor makes it, floating-point numbers in the model's precision."""
    text = processor.apply_chat_template(case.turns(), tokenize=False)
    pictures = case.pictures()
    if pictures or family.changes_texts:
        given = {"images": [pictures] if family.nested else pictures} if pictures else {}
        made = processor(text=[text], add_special_tokens=False, return_tensors="pt", **given)
    else:
        made = processor.tokenizer([text], add_special_tokens=False, return_tensors="pt")
    made = {name: value for name, value in made.items() if name != "labels"}
    taken = {name: value for name, value in made.items() if isinstance(value, torch.Tensor)}
    return {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in taken.items()}


def labels_of(family: Any, processor: Any, batch: dict[str, Any], answer: str | None) -> torch.Tensor:
    """(1, tokens) int64: what counts, all but images, or the last `answer` with the end of its turn alone."""
    ids = batch["input_ids"]
    pieces = [processor.tokenizer.decode([token], clean_up_tokenization_spaces=False) for token in ids[0].tolist()]
    text = "".join(pieces)
    if answer is None:
        counted = [(0, len(text))]
    else:
        start = text.rindex(family.lead + answer)
        counted = [(start, text.index(family.end, start) + len(family.end))]
    images = [match.span() for match in re.finditer(family.image, text)]
    labels, at = torch.full_like(ids, -100), 0
    for number, piece in enumerate(pieces):
        touches = [any(start < at + len(piece) and at < stop for start, stop in spans) for spans in (counted, images)]
        if touches == [True, False]:
            labels[0, number] = ids[0, number]
        at += len(piece)
    return labels


def loss_by_hand(family: Any, model: Any, processor: Any, cases: Any, answers: bool) -> torch.Tensor:
    """The mean over all tokens that count of all rows, each of them alone."""
    total, count = torch.zeros(()), 0
    for case in cases:
        batch = batch_of(family, model, processor, case)
        labels = labels_of(family, processor, batch, case.answer if answers else None)
        if family.completes is not None:
            batch |= family.completes(batch, labels)
        tokens = int((labels[:, 1:] != -100).sum())
        total = total + model(**batch, labels=labels).loss.float() * tokens
        count += tokens
    return total / count


def in_training(family: Any, model: Any) -> Any:
    """The model in training mode, but for what transformers calls frozen in its own constructor."""
    model.train()
    for name in family.frozen:
        model.get_submodule(name).eval()
    return model


def train_by_hand(family: Any, model: Any, processor: Any, cases: Any, steps: int, answers: bool) -> tuple[list, Any]:
    """The losses of `steps` steps of gradient descent over all rows at once, and the model behind them."""
    model = in_training(family, copy.deepcopy(model))
    losses = []
    for _ in range(steps):
        loss = loss_by_hand(family, model, processor, cases, answers)
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for weight in model.parameters():
                if weight.grad is not None:
                    weight -= RATE * weight.grad
        losses.append(loss.item())
    return losses, model.eval()
