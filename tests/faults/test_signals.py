"""SIGTERM and SIGINT: the step ends, a checkpoint is saved, the exit code says what happened, and the run goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import runs
from transformers import TrainerCallback

from sftcore.train.checkpoint.folders import newest
from sftcore.train.guard.signals import StoppedBySignal, exits_cleanly

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent


class SignalAt(TrainerCallback):
    """Sends this process a signal in the middle of a step."""

    def __init__(self, step: int, number: int = signal.SIGTERM) -> None:
        self.step, self.number = step, number

    def on_step_begin(self, args, state, control, **_):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("number", "kind"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_the_step_ends_is_saved_and_the_run_goes_on_from_it(number, kind, tmp_path, capfd):
    whole = runs.trainer(tmp_path / "whole", eval_strategy="steps", eval_steps=3)
    whole.train()
    whole.save_model()
    fields: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "steps", "save_steps": 100}
    stopped = runs.trainer(tmp_path / "out", **fields)
    stopped.add_callback(SignalAt(3, number))
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(StoppedBySignal) as caught:
        stopped.train()
    assert isinstance(caught.value, kind)
    assert (caught.value.number, caught.value.step) == (number, 3)
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == before
    checkpoint = tmp_path / "out" / "checkpoint-3"
    assert f"after step 3. Resume with resume_from_checkpoint={checkpoint} (or auto)" in capfd.readouterr().err
    resumed = runs.trainer(tmp_path / "out", **fields)
    resumed.train(resume_from_checkpoint="auto")
    resumed.save_model()
    assert runs.weights_of(tmp_path / "out") == runs.weights_of(tmp_path / "whole")
    # the evaluation of step 3 was due when the signal came
    evaluated = [line["step"] for line in resumed.state.log_history if "eval_loss" in line]
    assert evaluated == [3, 6]


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_an_evaluation_is_left_and_done_again_from_its_start(strategy, tmp_path):
    class InEvaluation(TrainerCallback):
        def on_prediction_step(self, args, state, control, **_):
            os.kill(os.getpid(), signal.SIGTERM)

    length = {"max_steps": -1, "num_train_epochs": 2, "per_device_train_batch_size": 8}
    saves = {"save_strategy": "steps", "save_steps": 100}
    fields: dict[str, Any] = {"eval_strategy": strategy, "eval_steps": 3, **saves, **length}
    whole = runs.trainer(tmp_path / "whole", **fields)
    whole.train()
    whole.save_model()
    stopped = runs.trainer(tmp_path / "out", **fields)
    stopped.add_callback(InEvaluation())
    with pytest.raises(StoppedBySignal) as caught:
        stopped.train()
    assert caught.value.step == 3
    assert not [line for line in stopped.state.log_history if "eval_loss" in line]
    resumed = runs.trainer(tmp_path / "out", **fields)
    resumed.train(resume_from_checkpoint="auto")
    resumed.save_model()
    names = ("step", "epoch", "loss", "eval_loss", "eval_entropy", "eval_num_tokens")
    lines = [[{name: line.get(name) for name in names} for line in one.state.log_history] for one in (resumed, whole)]
    assert lines[0] == lines[1]
    assert runs.weights_of(tmp_path / "out") == runs.weights_of(tmp_path / "whole")


def test_a_run_that_saves_the_model_alone_can_go_on_all_the_same(tmp_path):
    stopped = runs.trainer(tmp_path, save_only_model=True)
    stopped.add_callback(SignalAt(3))
    with pytest.raises(StoppedBySignal):
        stopped.train()
    assert newest(tmp_path).step == 3
    assert stopped.args.save_only_model


def test_outside_the_main_thread_signals_are_left_alone(tmp_path):
    seen: list[Any] = []

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            seen.append(signal.getsignal(signal.SIGTERM))

    trainer = runs.trainer(tmp_path, max_steps=1, save_strategy="no")
    trainer.add_callback(Look())
    thread = threading.Thread(target=trainer.train)
    thread.start()
    thread.join()
    assert seen == [signal.SIG_DFL]


def test_before_training_sigterm_unwinds_and_leaves_with_its_code(capfd):
    cleaned = []
    with pytest.raises(SystemExit) as caught, exits_cleanly():  # noqa: PT012
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            cleaned.append(True)
    assert caught.value.code == 143
    assert cleaned == [True]
    assert "stopped by SIGTERM. It was not training" in capfd.readouterr().err


# --- Real processes ---------------------------------------------------------------------------------------------------
SCRIPT = f"""
import sys, time
sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]
import runs
from transformers import TrainerCallback

class Slow(TrainerCallback):
    def on_step_begin(self, args, state, control, **_):
        print("step", state.global_step, flush=True)
        time.sleep(float(sys.argv[2]))

trainer = runs.trainer(__import__("pathlib").Path(sys.argv[1]), max_steps=500, save_steps=500, logging_steps=500)
trainer.add_callback(Slow())
trainer.train()
"""


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def started(command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def until(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    for found in process.stdout:
        if found.startswith(line):
            return
    assert process.stderr is not None
    raise AssertionError(process.stderr.read())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 1)])
def test_a_script_exits_as_python_does_for_the_signal(number, code, tmp_path, write):
    process = started([sys.executable, str(write("run.py", SCRIPT)), str(tmp_path / "out"), "0.05"])
    until(process, "step 2")
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    found = newest(tmp_path / "out")
    assert found.step >= 2
    assert f"resume_from_checkpoint={found.folder} (or auto)" in said
    assert ("StoppedByInterrupt" in said) == (number == signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_line_exits_with_the_code_of_the_signal(number, tmp_path, model_folder, write):
    rows = "".join(f'{{"prompt": "say {i}", "completion": "The answer is {i}"}}\n' for i in range(24))
    recipe = [f"model={model_folder}", f"data={write('rows.jsonl', rows)}", "use_cpu=true", "max_steps=5000",
              "per_device_train_batch_size=1", "logging_steps=1", "save_steps=5000",
              f"output_dir={tmp_path / 'out'}"]  # fmt: skip
    process = started([sys.executable, "-m", "sftcore", "train", *recipe])
    until(process, "step 3")
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said
    assert f"resume_from_checkpoint={newest(tmp_path / 'out').folder} (or auto)" in said
    assert "Traceback" not in said


def test_nothing_is_saved_on_a_signal_where_nothing_is_to_be_saved(tmp_path, capfd):
    stopped = runs.trainer(tmp_path / "out", save_strategy="no")
    stopped.add_callback(SignalAt(3))
    with pytest.raises(StoppedBySignal) as caught:
        stopped.train()
    assert (caught.value.step, caught.value.checkpoint) == (3, None)
    assert newest(tmp_path / "out").folder is None
    said = capfd.readouterr().err
    assert 'after step 3. Nothing was saved, because save_strategy is "no"' in said


def test_a_script_that_catches_keyboard_interrupt_goes_on(tmp_path):
    stopped = runs.trainer(tmp_path / "out", max_steps=4)
    stopped.add_callback(SignalAt(3, signal.SIGINT))
    try:
        stopped.train()
    except KeyboardInterrupt:
        stopped.save_model()
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_second_signal_ends_the_process_at_once(tmp_path, write):
    process = started([sys.executable, str(write("run.py", SCRIPT)), str(tmp_path / "out"), "60"])
    until(process, "step 0")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=5) == -signal.SIGTERM
    assert newest(tmp_path / "out").folder is None


def test_two_processes_of_a_launcher_stop_at_one_step_within_thirty_seconds(tmp_path, write):
    script = write("run.py", SCRIPT)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    options = {"num_processes": 2, "num_machines": 1, "mixed_precision": "no", "dynamo_backend": "no",
               "main_process_port": 0}  # fmt: skip
    for name, value in options.items():
        launch += [f"--{name}", str(value)]
    process = started([*launch, str(script), str(tmp_path / "out"), "0.05"])
    until(process, "step 2")
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert time.monotonic() - start < 30
    assert process.returncode != 0
    found = newest(tmp_path / "out")
    assert found.folder is not None, said
    assert sorted(path.name for path in found.folder.glob("run_state_*")) == ["run_state_0.json", "run_state_1.json"]
    assert f"stopped by SIGTERM after step {found.step}" in said
