"""What a program that calls the command line or the trainer has set for its own process stays as it set it."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from typing import Any

import datasets
import pytest
import torch
import transformers
from click.testing import CliRunner

import sftcore.cli
from sftcore import SFTConfig, SFTTrainer
from tests.conftest import alpaca_rows

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


def settings() -> dict[str, Any]:
    """What belongs to the whole process, by name."""
    found: dict[str, Any] = {f"environment {name}": value for name, value in os.environ.items()}
    found.pop("environment PYTEST_CURRENT_TEST", None)
    loggers = {"root": logging.root, **logging.root.manager.loggerDict}
    for name, logger in loggers.items():
        if isinstance(logger, logging.Logger):
            found[f"logger {name}"] = (
                logger.level,
                logger.disabled,
                logger.propagate,
                *logger.handlers,
                *logger.filters,
            )
    found |= {f"signal {one.name}": signal.getsignal(one) for one in SIGNALS}
    found |= {
        "log records": logging.getLogRecordFactory(), "warnings": list(warnings.filters), "shows": warnings.showwarning,
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.displayhook),
        "streams": (sys.stdout, sys.stderr, sys.stdin), "folder": os.getcwd(), "modules from": list(sys.path),
        "recursion": sys.getrecursionlimit(), "digits": sys.get_int_max_str_digits(),
        "torch dtype": torch.get_default_dtype(), "torch threads": torch.get_num_threads(),
        "torch deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch matmul": torch.get_float32_matmul_precision(), "torch gradients": torch.is_grad_enabled(),
        "torch cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "torch attention": (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled(),
                            torch.backends.cuda.mem_efficient_sdp_enabled()),
        "torch autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "torch modes": torch._C._len_torch_dispatch_stack(), "torch mkldnn": torch.backends.mkldnn.enabled,
        "transformers": (transformers.logging.get_verbosity(), transformers.logging.is_progress_bar_enabled()),
        "datasets": (datasets.are_progress_bars_disabled(), datasets.is_caching_enabled(),
                     datasets.logging.get_verbosity()),
    }  # fmt: skip
    return found


def changed(before: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs now, apart from loggers that libraries made since."""
    now = settings()
    return {
        name: (before.get(name), now.get(name))
        for name in before.keys() | now.keys()
        if before.get(name) != now.get(name) and not (name.startswith("logger ") and name not in before)
    }


@pytest.fixture
def rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    datasets.Dataset.from_list(alpaca_rows(6)).to_json("rows.jsonl")


VERBS = {
    "check": ["check", "rows.jsonl", "--model", "MODEL"],
    "preview": ["preview", "rows.jsonl", "--model", "MODEL"],
    "list-plugins": ["list-plugins", "--details"],
    "explain": ["explain", "model=MODEL", "data=rows.jsonl"],
    "train": ["train", "model=MODEL", "data=rows.jsonl", "max_steps=1", "output_dir=out", "use_cpu=true"],
    "train with more": ["train", "model=MODEL", "data=rows.jsonl", "max_steps=1", "output_dir=out", "use_cpu=true",
                        "adapter=lora", "packing=true", "max_length=32", "noise=neftune", "data.eval_fraction=0.5"],
    "a model that is not there": ["train", "model=nowhere", "data=rows.jsonl"],
    "a wrong setting": ["train", "model=MODEL", "data=rows.jsonl", "learning_rate=fast"],
    "selftest": ["selftest", "model=MODEL", "data=rows.jsonl"],
}  # fmt: skip


@pytest.mark.parametrize("verb", [pytest.param(one, marks=[pytest.mark.slow] * (one == "selftest")) for one in VERBS])
def test_a_verb_leaves_no_trace(rows, model_folder, verb):
    before = settings()
    words = [word.replace("MODEL", str(model_folder)) for word in VERBS[verb]]
    result = CliRunner().invoke(sftcore.cli.cli, words)
    assert result.exit_code == 0 or isinstance(result.exception, sftcore.SFTCoreError), result.output
    assert changed(before) == {}


@pytest.mark.parametrize("words", [["list-plugins"], ["explain", "model=nowhere"], ["--version"]])
def test_the_command_called_from_python_leaves_no_trace(monkeypatch, capsys, words):
    before = settings()
    monkeypatch.setattr(sys, "argv", ["sftcore", *words])
    with pytest.raises(SystemExit):
        sftcore.cli.main()
    assert capsys.readouterr() != ("", "")
    assert changed(before) == {}


@pytest.mark.parametrize("fails", [False, True])
def test_training_leaves_no_trace(rows, model_folder, fails):
    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if fails:
                raise OSError("stopped by the test")

    # transformers sets what Accelerate reads when a configuration is made
    args = SFTConfig("out", max_steps=1, use_cpu=True, eval_strategy="steps", eval_steps=1, disable_tqdm=True)
    dataset = datasets.load_dataset("json", data_files="rows.jsonl", split="train")
    before = settings()
    trainer = SFTTrainer(str(model_folder), args, train_dataset=dataset, eval_dataset=dataset, callbacks=[Stop()])
    if fails:
        with pytest.raises(OSError, match="stopped"):
            trainer.train()
    else:
        trainer.train()
        trainer.save_model()
    assert changed(before) == {}
