"""What a trainer shows of a run: one view, whoever asks for which."""

from __future__ import annotations

import math
import sys

import pytest
from datasets import Dataset
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from sftcore import RichProgressCallback, SFTConfig, SFTTrainer
from sftcore.train.reporting.default import DefaultProgress
from sftcore.train.reporting.progress import RichProgress

ROWS = Dataset.from_list([{"text": f"say hello {i}"} for i in range(6)])


@pytest.fixture
def trainer(tmp_path, tokenizer, llama):
    def make(callbacks=None, **fields):
        known = {"max_steps": 3, "logging_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True,
                 "report_to": "none", "save_strategy": "no", "report_html": False}  # fmt: skip
        args = SFTConfig(str(tmp_path), **{**known, **fields})
        return SFTTrainer(
            llama, args, train_dataset=ROWS, eval_dataset=ROWS, processing_class=tokenizer, callbacks=callbacks
        )

    return make


def views(trainer):
    kinds = (RichProgress, PrinterCallback, ProgressCallback)
    return [type(one) for one in trainer.callback_handler.callbacks if isinstance(one, kinds)]


def test_a_terminal_has_the_live_view_and_no_bar_beside_it(terminal, trainer):
    shown = terminal()
    made = trainer(eval_strategy="steps", eval_steps=3)
    assert views(made) == [DefaultProgress]
    made.train()
    lines = shown.text.strip().splitlines()
    assert len([line for line in lines if line.startswith("step 3/3  ━")]) == 1
    assert len([line for line in lines if line.startswith("step 3: eval_loss ")]) == 1
    losses = [one["loss"] for one in made.state.log_history if "loss" in one]
    assert any(line.startswith(f"loss {losses[-1]:.4f}") for line in lines)
    assert "evaluating" not in shown.text
    assert sys.stdout is shown.stream


def test_elsewhere_each_log_is_a_line(trainer, capsys):
    trainer().train()
    found = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in found] == ["1/3", "2/3", "3/3"]
    assert all("accuracy" in line and "supervised)" in line and "memory" in line for line in found)


def test_without_bars_transformers_prints_its_logs_as_ever(trainer, capsys):
    made = trainer(disable_tqdm=True)
    assert views(made) == [PrinterCallback]
    made.train()
    out = capsys.readouterr().out
    assert out.count("{'loss'") == 3
    assert "step 1/3" not in out


@pytest.mark.parametrize("disable_tqdm", [False, True])
@pytest.mark.parametrize("as_class", [False, True])
def test_a_view_that_the_user_gives_is_the_only_one(trainer, disable_tqdm, as_class):
    given = RichProgressCallback if as_class else RichProgressCallback()
    assert views(trainer([given], disable_tqdm=disable_tqdm)) == [RichProgressCallback]


class OwnBar(ProgressCallback):
    pass


@pytest.mark.parametrize("given", [ProgressCallback, OwnBar])
@pytest.mark.filterwarnings("ignore")
def test_a_bar_that_the_user_gives_is_the_only_one(trainer, given):
    assert views(trainer([given()])) == [given]
    assert views(trainer([given()], disable_tqdm=True)) == [given, PrinterCallback]


def test_whoever_removes_transformers_bar_removes_the_view(trainer, capsys):
    made = trainer()
    made.remove_callback(ProgressCallback)
    assert views(made) == []
    made.train()
    assert "step 1/3" not in capsys.readouterr().out


class Fails(TrainerCallback):
    def on_step_end(self, args, state, control, **_):
        if state.global_step == 2:
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("\x1b[2Jbroken")])
def test_a_run_that_is_broken_off_leaves_the_terminal_in_order(terminal, trainer, error):
    shown = terminal()
    fails = Fails()
    fails.error = error
    with pytest.raises(error if isinstance(error, type) else type(error)):
        trainer([fails]).train()
    print("the shell")
    lines = shown.text.strip().splitlines()
    assert lines[-1] == "the shell"
    assert len([line for line in lines if line.startswith("step ") and "━" in line]) == 1
    assert "?25l" not in shown.stream.getvalue()
    assert sys.stdout is sys.stderr is shown.stream


class FailsInEvaluation(TrainerCallback):
    def on_prediction_step(self, args, state, control, **_):
        raise ValueError("broken")


def test_an_evaluation_alone_shows_its_bar_and_its_figures(terminal, trainer):
    shown = terminal()
    made = trainer()
    shown.stream.truncate(0)
    shown.stream.seek(0)
    found = made.evaluate()
    accuracy, perplexity = found["eval_mean_token_accuracy"], math.exp(found["eval_loss"])
    assert shown.text.strip().splitlines() == [
        f"step 0: eval_loss {found['eval_loss']:.4f}, accuracy {accuracy:.3f}, perplexity {perplexity:.4f}"
    ]
    assert "1/1 batch" in shown.stream.getvalue()
    assert sys.stdout is shown.stream
    made.predict(ROWS)
    assert sys.stdout is shown.stream
    made.add_callback(FailsInEvaluation())
    with pytest.raises(ValueError, match="broken"):
        made.evaluate()
    assert sys.stdout is shown.stream
