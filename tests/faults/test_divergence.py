"""NaN, Inf and runaway losses: seen at the step, with its rows, before a weight changes."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from datasets import Dataset, IterableDataset
from transformers import TrainerCallback

from sftcore import SFTConfig, SFTTrainer
from sftcore.core.errors import DivergenceError, RecipeError
from sftcore.train.guard.divergence import LossLevel
from sftcore.train.guard.named_rows import named_rows
from tests.conftest import make_llama, make_tokenizer

ROWS = [{"prompt": f"say {i}", "completion": f"The answer is {i}"} for i in range(8)]


def make(folder, rows: Any = None, *, bad_step: int | None = 3, where: str = "loss", function: Any = None, **fields):
    """A run whose micro-batch that is first in `bad_step` is poisoned, in its loss or in its gradient alone."""
    settings: dict[str, Any] = {
        "max_steps": 5, "logging_steps": 5, "per_device_train_batch_size": 2, "report_to": "none", "use_cpu": True,
        "disable_tqdm": True, "learning_rate": 1e-2, "save_strategy": "no", "dataset_cache": False,
        "lr_scheduler_type": "constant", "gradient_checkpointing": False,
    }  # fmt: skip
    tokenizer = make_tokenizer()
    args = SFTConfig(output_dir=str(folder), **{**settings, **fields})
    rows = Dataset.from_list(ROWS) if rows is None else rows
    given = {"train_dataset": rows, "processing_class": tokenizer, "formatting_func": function}
    trainer = SFTTrainer(make_llama(tokenizer), args, **given)
    seen: list[torch.Tensor] = []

    def poison(module, inputs, output):
        if not module.training or not trainer.in_own_step:  # what is tried before the first step is none
            return output
        seen.append(inputs[0])
        calls = len(seen) - 1
        if bad_step is None or calls != (bad_step - 1) * args.gradient_accumulation_steps:
            return output
        if where == "loss":
            return output * float("nan")
        output.register_hook(lambda gradient: gradient * float("inf"))
        return output

    trainer.model.get_input_embeddings().register_forward_hook(poison)
    trainer.seen = seen
    return trainer


def weights(trainer) -> list[torch.Tensor]:
    return [one.detach().clone() for one in trainer.model.parameters()]


def same(first, second) -> bool:
    return all(bool((one == other).all()) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize(("where", "said"), [("loss", "the loss is NaN or Inf"), ("gradient", "a gradient is NaN")])
def test_a_run_stops_before_the_weights_change_and_names_step_and_rows(where, said, tmp_path):
    trainer = make(tmp_path / "bad", where=where)
    with pytest.raises(DivergenceError, match=said) as caught:
        trainer.train()
    error = caught.value
    assert error.step == 3
    assert "step 3: " in str(error)
    batch = trainer.seen[2]
    texts = {tuple(trainer.train_dataset[row]["input_ids"]) for row in error.rows}
    assert len(texts) == 2
    assert all(any(row.tolist()[: len(text)] == list(text) for row in batch) for text in texts)
    healthy = make(tmp_path / "good", bad_step=None, max_steps=2)
    healthy.train()
    assert same(weights(trainer), weights(healthy))


def test_of_an_accumulated_step_only_the_bad_batch_is_named(tmp_path):
    trainer = make(tmp_path, gradient_accumulation_steps=2, bad_step=2)
    with pytest.raises(DivergenceError) as caught:
        trainer.train()
    assert len(caught.value.rows) == 2


def test_of_a_stream_the_batch_is_named(tmp_path):
    trainer = make(tmp_path, IterableDataset.from_generator(lambda: iter(ROWS)))
    with pytest.raises(DivergenceError, match="on batch 2 of epoch 0, counted from 0"):
        trainer.train()


def test_a_step_that_is_left_out_changes_nothing_and_is_counted(tmp_path):
    trainer = make(tmp_path / "skip", on_nonfinite="skip", max_steps=3)
    with pytest.warns(UserWarning, match="step 3: the loss is NaN or Inf, on rows .* left out"):
        trainer.train()
    trainer.save_model()
    healthy = make(tmp_path / "good", bad_step=None, max_steps=2)
    healthy.train()
    assert same(weights(trainer), weights(healthy))
    manifest = json.loads((tmp_path / "skip" / "manifest.json").read_text())
    assert manifest["nonfinite"] == {"policy": "skip", "count": 1, "steps": [3]}


def test_what_is_logged_of_a_window_is_the_mean_over_the_steps_that_were_taken(tmp_path):
    trainer = make(tmp_path / "skip", on_nonfinite="skip", max_steps=3, logging_steps=3)
    with pytest.warns(UserWarning, match="left out"):
        trainer.train()
    healthy = make(tmp_path / "good", bad_step=None, max_steps=2, logging_steps=2)
    healthy.train()
    [logged, expected] = [one.state.log_history[0] for one in (trainer, healthy)]
    for name in ("loss", "entropy", "mean_token_accuracy", "num_tokens"):
        assert logged[name] == expected[name], name


def test_a_run_that_continues_says_so_and_goes_on(tmp_path):
    trainer = make(tmp_path, on_nonfinite="continue", where="gradient", max_steps=3)
    with pytest.warns(UserWarning, match="a gradient is NaN or Inf, on rows .* trained on it all the same"):
        trainer.train()
    assert trainer.state.global_step == 3
    assert trainer.nonfinite.count == 1


def test_after_a_step_with_nan_the_losses_of_later_steps_are_logged_again(tmp_path):
    trainer = make(tmp_path, on_nonfinite="continue", bad_step=2, logging_steps=1, logging_nan_inf_filter=False)
    before: list[torch.Tensor] = []

    class Spare(TrainerCallback):
        """Weights as they were before the step with NaN, so that later losses are numbers."""

        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 1:
                before.extend(weights(trainer))

        def on_step_end(self, args, state, control, **_):
            if state.global_step == 2:
                for parameter, value in zip(trainer.model.parameters(), before, strict=True):
                    parameter.data.copy_(value)
                trainer.optimizer.state.clear()

    trainer.add_callback(Spare())
    with pytest.warns(UserWarning, match="the model was trained on it all the same"):
        trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    assert [math.isnan(loss) for loss in losses] == [False, True, False, False, False]


def test_policies_that_do_not_exist_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r'on_nonfinite "ignore" is not known\. Use one of: stop, skip, continue'):
        SFTConfig(str(tmp_path), on_nonfinite="ignore")
    with pytest.raises(RecipeError, match=r"divergence_factor is 0\.5\. It must be above 1"):
        SFTConfig(str(tmp_path), divergence_factor=0.5)


# --- Divergence -------------------------------------------------------------------------------------------------------
def test_a_run_whose_loss_runs_away_ends_with_the_step_and_both_levels(tmp_path):
    trainer = make(tmp_path, bad_step=None, max_steps=60, learning_rate=20.0, max_grad_norm=0.0, divergence_factor=2.0)
    with pytest.raises(DivergenceError, match=r"the loss has diverged: the mean of the last ten steps is") as caught:
        trainer.train()
    assert 10 <= caught.value.step < 30


# Losses of SmolLM2-135M-Instruct, two rows a step, by what trains and the learning rate
# fmt: off
RAN_AWAY = {
    "an adapter, 5e-2": [
        1.5, 1.7, 6.8, 9.8, 7.0, 9.7, 8.3, 16.2, 12.9, 8.1, 10.4, 10.0, 8.8, 9.1, 9.8, 9.5, 7.9, 8.3, 7.7, 8.2,
    ],
    "an adapter, 3e-1": [
        1.5, 4.8, 15.4, 14.3, 45.9, 17.6, 86.3, 42.9, 20.0, 11.6, 13.2, 13.1, 11.8, 9.7, 10.3, 10.6, 10.1, 10.8, 9.7,
        10.3,
    ],
    "in full, 1e-2": [
        1.5, 18.2, 13.8, 14.3, 101.1, 20.0, 12.9, 23.6, 13.2, 12.4, 11.5, 12.6, 13.0, 9.8, 14.8, 14.0, 14.3, 14.0,
        12.3, 12.6,
    ],
}
DID_NOT = {
    "an adapter, 2e-4": [
        1.5, 1.7, 4.0, 1.9, 1.0, 1.9, 1.0, 1.9, 1.1, 0.8, 2.1, 2.1, 2.2, 0.6, 1.9, 1.7, 1.2, 1.8, 1.8, 1.4, 1.1, 2.2,
        1.9, 2.1, 1.9, 1.2, 1.5, 1.6, 2.1, 2.0, 2.4, 2.4, 1.4, 1.4, 1.6, 2.1, 2.4, 1.8, 0.9, 1.3,
    ],
    "an adapter, 1e-2": [
        1.5, 1.7, 4.1, 1.8, 1.1, 1.9, 0.8, 1.8, 1.1, 0.6, 2.2, 2.1, 2.3, 0.7, 2.0, 1.6, 1.1, 1.9, 1.7, 1.4, 1.1, 2.2,
        1.8, 2.3, 1.8, 1.1, 1.2, 1.5, 2.0, 1.9, 2.5, 2.3, 2.0, 1.3, 1.6, 2.0, 2.3, 1.5, 1.0, 1.3,
    ],
    "in full, 2e-5": [
        2.0, 1.6, 1.9, 1.5, 1.8, 1.4, 2.1, 1.6, 2.2, 1.3, 1.3, 1.5, 1.7, 1.7, 1.7, 1.8, 1.4, 1.2, 1.9, 1.2, 1.5, 1.1,
        1.8, 1.6, 1.7, 1.3, 1.2, 1.9, 1.3, 1.6, 1.7, 1.1, 1.1, 1.3, 1.0, 0.9, 0.9, 1.1, 1.2, 1.3,
    ],
    "in full, 1e-3": [
        2.0, 3.3, 2.9, 2.4, 2.7, 1.8, 2.9, 3.0, 2.8, 2.0, 2.1, 2.7, 2.3, 2.1, 2.4, 2.1, 1.7, 1.7, 3.2, 1.5, 1.7, 1.4,
        3.1, 2.1, 1.8, 2.0, 1.5, 3.0, 1.3, 1.6, 2.3, 1.3, 1.4, 2.0, 1.2, 1.3, 2.0, 1.4, 1.7, 1.7,
    ],
    "in full, 3e-3 after 20 steps of warmup": [
        2.0, 1.7, 2.3, 1.3, 1.5, 1.1, 2.3, 1.9, 2.4, 2.4, 2.5, 2.8, 2.5, 1.8, 2.2, 2.6, 2.2, 2.8, 3.4, 1.9, 2.3, 1.7,
        3.8, 3.5, 3.6, 3.2, 2.3, 4.2, 2.0, 2.2, 2.5, 2.2, 2.4, 2.8, 1.9, 1.9, 2.2, 2.0, 2.8, 2.4,
    ],
}
# fmt: on


def steps_found(losses: list[float]) -> list[int]:
    """The steps, counted from 1, at which a run with SmolLM2's vocabulary would end."""
    level = LossLevel(2.0, lowest=math.log(49152))
    return [step for step, loss in enumerate(losses, 1) if level.add(loss)]


@pytest.mark.parametrize("name", RAN_AWAY)
def test_a_learning_rate_that_ruins_a_pretrained_model_in_its_first_steps_is_found_at_the_tenth(name):
    assert steps_found(RAN_AWAY[name])[0] == 10


@pytest.mark.parametrize("name", DID_NOT)
def test_runs_that_learn_or_recover_are_left_alone(name):
    assert steps_found(DID_NOT[name]) == []


def test_one_bad_batch_and_losses_near_zero_are_no_divergence():
    level = LossLevel(2.0)
    assert not any(level.add(loss) for loss in [3.0] * 20 + [12.0] + [3.0] * 20)
    level = LossLevel(2.0)
    assert not any(level.add(loss) for loss in [0.01] * 20 + [0.5] * 20)


def test_a_loss_that_stays_high_is_divergence():
    level = LossLevel(2.0)
    found = [level.add(loss) for loss in [2.0] * 20 + [8.0] * 10]
    assert next(place for place, one in enumerate(found) if one) == 23


def test_rows_are_named_by_their_number_in_the_data_that_were_given_and_by_their_beginning(tmp_path):
    too_long = {"prompt": "hello " * 90, "completion": "nothing of this is left"}
    rows = Dataset.from_list([too_long, *ROWS[:3], too_long, *ROWS[3:]])
    trainer = make(tmp_path, rows, max_length=32)
    begin = '"say 0The answer is 0<|im_end|>", "say 4The answer is 4<|im_end|>"'
    assert named_rows(trainer, [4, 0]) == f"rows 1, 6 of the training data, beginning {begin}"
    text = named_rows(make(tmp_path, rows, max_length=32, shuffle_dataset=True), [0])
    assert f"answer is {rows[int(text.split()[1])]['completion'][-1]}" in text
    packed = make(tmp_path, rows, packing=True, max_length=32)
    assert named_rows(packed, [1]).startswith("packed block 1 (trainer.train_dataset[block]), beginning ")


def test_rows_that_a_format_makes_several_of_are_named_by_the_prepared_set(tmp_path):
    trainer = make(tmp_path, function=lambda row: [row["prompt"], row["completion"]])
    assert named_rows(trainer, [5]).startswith("row 5 of the prepared training set (trainer.train_dataset[row]), begin")


def test_many_rows_are_cut_short(tmp_path):
    trainer = make(tmp_path, Dataset.from_list(ROWS * 4))
    text = named_rows(trainer, range(30))
    assert text.startswith(f"rows {', '.join(map(str, range(20)))} and 10 more of the training data, beginning ")
    assert text.endswith('2<|im_end|>", …')
