"""The plan of a run says what a user would not expect of it."""

from __future__ import annotations

import re

import pytest
from datasets import Dataset

from sftcore import SFTConfig, SFTTrainer

ROWS = Dataset.from_list([{"text": f"hello, world {i}"} for i in range(4)])


@pytest.mark.parametrize(
    ("schedule", "warm_up", "steps"),
    [("linear", 50, 2), ("linear", 2, 2), ("linear", 1, 2), ("cosine", 3, 2), ("constant", 50, 2), ("linear", 0, 2),
     ("constant_with_warmup", 9, 2), ("linear", 0.5, 2)],
)  # fmt: skip
def test_a_learning_rate_that_the_warm_up_never_reaches_is_said(
    tmp_path, tokenizer, llama, capsys, schedule, warm_up, steps
):
    args = SFTConfig(
        str(tmp_path),
        use_cpu=True,
        max_steps=steps,
        logging_steps=1,
        save_strategy="no",
        learning_rate=0.5,
        lr_scheduler_type=schedule,
        warmup_steps=warm_up,
    )
    trainer = SFTTrainer(llama, args, train_dataset=ROWS, processing_class=tokenizer)
    trainer.train()
    (plan,) = re.findall("learning rate 0.5.*", capsys.readouterr().err)
    rates = [log["learning_rate"] for log in trainer.state.log_history if "learning_rate" in log]
    assert ("never reached" in plan) == (max(rates) < 0.5), (plan, rates)
    if "never reached" in plan:
        assert f"learning rate 0.5 {schedule} (never reached: the warm-up takes {warm_up} steps), seed 42" in plan
