"""Processes and their launcher: they end together, and what went wrong is told once and last."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from types import SimpleNamespace

import psutil
import pytest

from sftcore.train.processes.launcher import untold
from sftcore.util import launched

TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "sftcore"]
ACCELERATE = [
    "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision",
    "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", "sftcore",
]  # fmt: skip


@pytest.fixture
def recipe(tmp_path, model_folder, write):
    """A recipe whose data are good; `bad.jsonl` has a row behind the first ones that cannot be used."""
    good = [
        {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": f"{i}"}]}
        for i in range(1200)
    ]
    bad = [{"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": None}]}]
    write("good.jsonl", "".join(json.dumps(one) + "\n" for one in good))
    write("bad.jsonl", "".join(json.dumps(one) + "\n" for one in [*good, *bad]))
    return write(
        "run.yaml",
        f"model: {model_folder}\ndata: {tmp_path}/good.jsonl\noutput_dir: {tmp_path}/out\nuse_cpu: true\n"
        "max_steps: 4\nper_device_train_batch_size: 2\nreport_to: none\nlogging_steps: 1\nsave_strategy: 'no'\n",
    )


def started(command: list[str], tmp_path) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SFTCORE_CACHE": str(tmp_path / "cache")}
    return subprocess.Popen(
        [sys.executable, "-m", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def said(recipe, tmp_path, *words: str) -> str:
    """What `--nproc 2` writes behind its launch line, where it fails."""
    process = started(["sftcore", "train", str(recipe), *words, "--nproc", "2"], tmp_path)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 1, errors
    first, _, rest = errors.partition("\n")
    assert first.startswith("launch ")
    return rest


def processes_of(launcher: psutil.Process) -> list[psutil.Process]:
    """The two processes of a run, once they are there."""
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline:
        with suppress(psutil.Error):
            found = [one for one in launcher.children(recursive=True) if "train" in one.cmdline()]
            if len(found) == 2:
                return found
        time.sleep(0.02)
    raise AssertionError("the processes were not started")


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["false", "true"])
def test_a_row_that_cannot_be_used_is_told_once(recipe, tmp_path, cache):
    rest = said(recipe, tmp_path, f"data={tmp_path}/bad.jsonl", f"dataset_cache={cache}")
    told = 'row 1200: messages[1] (assistant) has no "content". Give it a text, or drop the row.'
    assert rest.splitlines() == [f"error: {tmp_path}/bad.jsonl {told}"]


@pytest.mark.slow
def test_a_row_of_a_stream_that_cannot_be_used_is_told_once_and_last(recipe, tmp_path):
    rest = said(
        recipe,
        tmp_path,
        f"data={tmp_path}/bad.jsonl",
        "data.streaming=true",
        "max_steps=400",
        "per_device_train_batch_size=16",
    )
    assert rest.splitlines()[-1].startswith(f"error: {tmp_path}/bad.jsonl row 1200: messages[1]")
    assert rest.count("error:") == 1
    assert "Traceback" not in rest


@pytest.mark.slow
def test_a_refused_resume_is_told_once_and_last(recipe, tmp_path):
    run = started(["sftcore", "train", str(recipe), "save_strategy=steps", "save_steps=4"], tmp_path)
    run.communicate(timeout=200)
    assert run.returncode == 0
    words = ("save_strategy=steps", "save_steps=4", "resume_from_checkpoint=auto")
    rest = said(recipe, tmp_path, *words, "learning_rate=0.5")
    assert rest.count("the run is not the one") == 1
    assert "Traceback" not in rest
    # what transformers of another process has to log may come at any time
    ours = [line for line in rest.splitlines() if not line.startswith("[transformers]")]
    assert ours[-1].endswith("resume_changed: true.")


@pytest.mark.slow
def test_torchrun_names_the_error_last_too(recipe, tmp_path):
    process = started([*TORCHRUN, "train", str(recipe), f"data={tmp_path}/bad.jsonl"], tmp_path)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 1
    told = [line for line in errors.splitlines() if "bad.jsonl row 1200" in line]
    assert told[0].startswith("error:")
    assert all(line.lstrip().startswith("traceback : error:") for line in told[1:])
    assert errors.rstrip().splitlines()[-2] == told[-1]


@pytest.mark.slow
def test_a_process_that_the_system_ends_is_named(recipe, tmp_path):
    launcher = started(["sftcore", "train", str(recipe), "--nproc", "2", "max_steps=100000"], tmp_path)
    one, _ = processes_of(psutil.Process(launcher.pid))
    one.send_signal(signal.SIGKILL)
    _, errors = launcher.communicate(timeout=100)
    assert launcher.returncode == 1
    assert "was ended by SIGKILL (the system does that when memory runs out)" in errors.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 6.0])
@pytest.mark.parametrize("launcher", [["sftcore"], TORCHRUN, ACCELERATE], ids=["nproc", "torchrun", "accelerate"])
def test_processes_end_with_their_launcher(recipe, tmp_path, launcher, delay):
    words = ["train", str(recipe), "max_steps=100000", *(["--nproc", "2"] if launcher == ["sftcore"] else [])]
    process = started([*launcher, *words], tmp_path)
    left = processes_of(psutil.Process(process.pid))
    time.sleep(delay)
    process.kill()
    process.wait()
    _, alive = psutil.wait_procs(left, timeout=10)
    for one in alive:
        one.kill()
    assert not alive


# --- Without other processes ------------------------------------------------------------------------------------------
@pytest.fixture
def launch(tmp_path, monkeypatch):
    """The environment of one of two processes of torch's launcher."""
    for rank in (0, 1):
        (tmp_path / "attempt_0" / str(rank)).mkdir(parents=True)
    files = [tmp_path / "attempt_0" / str(rank) / "error.json" for rank in (0, 1)]
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(files[0]))
    return files


def test_the_first_process_that_fails_tells_why(launch, monkeypatch):
    assert not launched.is_told()
    assert launched.claim("error: one")
    assert launched.is_told()
    assert json.loads(launch[0].read_text())["message"]["message"] == "error: one"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(launch[1]))
    assert not launched.claim("error: two")
    assert not launch[1].exists()


def test_a_process_by_itself_always_tells(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_ERROR_FILE", raising=False)
    assert launched.claim("error: one")
    assert launched.claim("error: two")
    assert not launched.is_told()


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (-signal.SIGKILL, "process 1 was ended by SIGKILL (the system does that when memory runs out), and the others"),
        (-signal.SIGSEGV, "process 1 was ended by SIGSEGV, and the others"),
        (3, "process 1 ended with exit code 3: what it said is above."),
        (128 + signal.SIGTERM, ""),
    ],
)
def test_the_launcher_says_what_no_process_could(launch, code, text):
    failure = SimpleNamespace(exitcode=code, local_rank=1, error_file=str(launch[1]))
    assert untold(failure).startswith(text)
    launched.claim("error: one")
    assert untold(failure) == ""


def test_a_process_that_nobody_launched_is_left_alone(monkeypatch):
    for name in ("TORCHELASTIC_RUN_ID", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(launched, "_watched", False)
    monkeypatch.setattr(launched, "_end", lambda: pytest.fail("it was ended"))
    launched.end_with_launcher()
    assert not launched._watched


def test_a_process_whose_launcher_has_ended_before_it_looked_is_ended(monkeypatch):
    ended = []
    monkeypatch.setattr(launched, "_end", lambda: ended.append(True))
    monkeypatch.setattr(launched, "_watch", lambda parent: None)
    monkeypatch.setattr(launched, "_watched", False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv(launched.LAUNCHER, "1234567")  # nobody's number
    launched.end_with_launcher()
    assert ended
    assert launched.LAUNCHER not in os.environ
