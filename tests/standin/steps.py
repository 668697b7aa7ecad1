"""How often the host waits for the device in an optimizer step, in a process with the stand-in."""

from __future__ import annotations

import contextlib
import itertools
import tempfile
from typing import Any

from tests.standin.training import settings

STEPS = 5


def waits_of_steps(*, lora: bool = False, model: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
    """The waits of each step of a run but the first two, in which proofs and checks are made.

    Args:
        lora: whether an adapter trains.
        model: overrides of a tiny Llama's configuration.
        fields: of SFTConfig.
    """
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback

    from sftcore import SFTConfig, SFTTrainer
    from sftcore.testing.standin.device import counting
    from tests.conftest import make_llama, make_tokenizer

    tokenizer, counted = make_tokenizer(), []
    documents = [{"prompt": f"say {i}:", "completion": " hello world" * (1 + i % 5)} for i in range(40)]

    class Count(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            counted.append((waits.total, dict(waits.where)))

    with tempfile.TemporaryDirectory() as output, contextlib.redirect_stdout(None), counting() as waits:
        trainer = SFTTrainer(
            make_llama(tokenizer, **(model or {})),
            SFTConfig(**settings(output, **{"max_steps": STEPS, "logging_steps": 100, "max_length": 48, **fields})),
            train_dataset=Dataset.from_list(documents),
            processing_class=tokenizer,
            peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None,
            callbacks=[Count()],
        )
        trainer.train()
    (_, known), (last, where) = counted[1], counted[-1]
    totals = [total for total, _ in counted]
    new = {place: count - known.get(place, 0) for place, count in where.items() if count > known.get(place, 0)}
    return {
        "steps": [after - before for before, after in itertools.pairwise(totals[1:])],
        "where": new,
        "total": last,
        "loss": trainer.state.log_history[-1]["train_loss"],
    }
