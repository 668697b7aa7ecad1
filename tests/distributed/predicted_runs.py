"""What is predicted and measured on the rows of an evaluation, a function for each case of `several_runs`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from datasets import Dataset

from sftcore import DataSource, Mixture
from tests.distributed.case_runs import PADDED, Run, files, logged, rows, stream


def predicted(run: Run, name: str, data: Any, **given: Any) -> dict[str, Any]:
    """The labels of a prediction in its order, whether each logits row is of its label row, and what metrics saw."""
    seen: dict[str, Any] = {}

    def measure(found: Any) -> dict[str, float]:
        seen["metrics"] = run.texts(found.label_ids)
        if found.inputs is not None:
            seen["inputs"] = run.texts(found.inputs)
        if found.losses is not None:
            seen["losses"] = [round(float(one), 4) for one in found.losses]
        return {"rows": len(found.label_ids)}

    trainer = run.trainer(name, Dataset.from_list(rows(4)), compute_metrics=measure, **{**PADDED, **given})
    found = trainer.predict(data)
    logits = found.predictions[0] if isinstance(found.predictions, tuple) else found.predictions
    return {
        "labels": run.texts(found.label_ids),
        "nll": nll(logits, found.label_ids) if np.ndim(logits) == 3 else np.asarray(logits).tolist(),
        "rows": found.metrics["test_rows"],
        "loss": found.metrics["test_loss"],
        **seen,
    }


def nll(logits: np.ndarray, labels: np.ndarray) -> list[float]:
    """Of each row: the sum over its supervised tokens."""
    shown = torch.log_softmax(torch.tensor(logits[:, :-1]).float(), -1)
    wanted = torch.tensor(labels[:, 1:])
    picked = -shown.gather(-1, wanted.clamp(min=0)[..., None])[..., 0]
    return [round(float(one), 3) for one in (picked * (wanted != -100)).sum(-1)]


def predict_stream(run: Run) -> Any:
    return predicted(run, "predict", stream(rows(8)))


def predict_uneven(run: Run) -> Any:
    return predicted(run, "uneven", stream(rows(7)), include_for_metrics=["inputs", "loss"])


def predict_few(run: Run) -> Any:
    return predicted(run, "few", stream(rows(1)))


def predict_files(run: Run) -> Any:
    return predicted(run, "files", files(rows(9), 2))


def predict_dropped(run: Run) -> Any:
    """Rows of which some are left out, because truncation leaves no token of the answer."""
    long = {2, 3, 4, 9}
    found = [{"prompt": f"row {i}" + " hello" * 70 * (i in long), "completion": f" row {i} ."} for i in range(12)]
    return predicted(run, "dropped", stream(found))


def predict_examples(run: Run) -> Any:
    """Rows that become several examples each."""

    def texts(one: dict[str, str]) -> list[str]:
        return [one["text"], one["text"] + " again ."]

    return predicted(run, "examples", stream(rows(5)), formatting_func=texts)


def predict_tokens(run: Run) -> Any:
    """A stream of token rows that nobody prepares."""
    ids = [run.tokenizer(one["text"])["input_ids"] for one in rows(7)]
    found = [{"input_ids": one, "labels": one} for one in ids]
    given = {"dataset_kwargs": {"skip_prepare_dataset": True}}
    seen: dict[str, Any] = {}
    trainer = run.trainer("tokens", Dataset.from_list(found), **PADDED, **given)
    for name, data in (("one", stream(found)), ("files", files(found, 3))):
        seen[name] = run.texts(trainer.predict(data).label_ids)
    return seen


def predict_workers(run: Run) -> Any:
    return predicted(run, "workers", files(rows(9), 4), dataloader_num_workers=2)


def predict_concatenated(run: Run) -> Any:
    parts = (DataSource(stream(rows(3))), DataSource(stream([{"text": f"row {i} again"} for i in range(4)])))
    return predicted(run, "concatenated", Mixture(parts))


def predict_map(run: Run) -> Any:
    return predicted(run, "map", Dataset.from_list(rows(7)), include_for_metrics=["inputs", "loss"])


def best_tokens(logits: Any, labels: Any) -> tuple[Any, Any]:
    shown = torch.log_softmax(logits.float(), -1)
    return shown.argmax(-1), shown.max(-1).values


def predict_tuple(run: Run) -> Any:
    seen = []

    def measure(found: Any) -> dict[str, float]:
        seen.append([len(found.predictions[0]), len(found.predictions[1]), len(found.label_ids)])
        return {"rows": len(found.label_ids)}

    found = run.trainer(
        "tuple", Dataset.from_list(rows(4)), compute_metrics=measure, preprocess_logits_for_metrics=best_tokens,
        **PADDED,
    ).predict(stream(rows(7)))  # fmt: skip
    best, sure = found.predictions
    sums = [round(float(row[kept].sum()), 3) for row, kept in zip(sure, found.label_ids != -100, strict=True)]
    return {"labels": run.texts(found.label_ids), "sums": sums, "shapes": [len(best), len(sure)], "seen": seen}


def predict_batches(run: Run) -> Any:
    """Metrics of one batch after another, and outputs that are not concatenated."""
    counted: list[int] = []

    def measure(found: Any, compute_result: bool = False) -> dict[str, float]:
        counted.append(int((found.label_ids != -100).any(-1).sum()))
        assert len(found.label_ids) == len(found.predictions) == counted[-1]
        return {"rows": sum(counted)} if compute_result else {}

    trainer = run.trainer(
        "batches", Dataset.from_list(rows(4)), compute_metrics=measure, batch_eval_metrics=True,
        eval_dataset=stream(rows(7)), **PADDED,
    )  # fmt: skip
    trainer.evaluate()
    apart = run.trainer("apart", Dataset.from_list(rows(4)), eval_do_concat_batches=False, **PADDED)
    found = apart.predict(stream(rows(7)))
    return {"counted": sum(counted), "labels": [text for one in found.label_ids for text in run.texts(one)]}


def padding_free(run: Run) -> Any:
    """How many rows metrics get of batches that are laid end to end, and the labels in them."""
    seen: dict[str, list[Any]] = {}
    for count in (6, 7, 5, 10):

        def measure(found: Any, count: int = count) -> dict[str, float]:
            seen[str(count)] = [len(found.label_ids), len(found.predictions), run.texts(found.label_ids)]
            return {"rows": len(found.label_ids)}

        run.trainer(
            f"free{count}", Dataset.from_list(rows(4)), eval_dataset=Dataset.from_list(rows(count)),
            compute_metrics=measure, padding_free=True,
        ).evaluate()  # fmt: skip
    return seen


def mixed_kinds(run: Run) -> Any:
    """A map-style training set beside a streamed evaluation set."""
    trainer = run.trainer(
        "kinds", Dataset.from_list(rows(16)), eval_dataset=stream(rows(7)), eval_strategy="steps", eval_steps=1,
        max_steps=2,
    )  # fmt: skip
    trainer.train()
    return logged(trainer)


GATHERED = (
    predict_stream, predict_uneven, predict_few, predict_files, predict_dropped, predict_examples, predict_tokens,
    predict_workers, predict_concatenated, predict_map, predict_tuple, predict_batches, padding_free, mixed_kinds,
)  # fmt: skip
