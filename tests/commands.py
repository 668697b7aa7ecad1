"""The command line in a process of its own, a copy of one that has imported the libraries: seconds less each time.

What is imported by a command, or printed while it is, shows in a fresh Python alone; tests of it start one.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path
from typing import Any


def sftcore(*words: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """`sftcore WORDS...` with these variables; what libraries read from theirs when imported is as in this process."""
    with tempfile.TemporaryDirectory() as folder:
        streams = [Path(folder) / name for name in ("stdout", "stderr")]
        process = context().Process(
            target=_run, args=(words, cwd or Path.cwd(), {**os.environ, **environment}, streams)
        )
        process.start()
        process.join()
        assert process.exitcode is not None
        printed = [one.read_text(encoding="utf-8") for one in streams]
    return subprocess.CompletedProcess(words, process.exitcode, *printed)


@functools.cache
def context() -> Any:
    """Makes processes that have imported the libraries, and compute with one thread."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload(["tests.preloaded"])
    own = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    forkserver.ensure_running()
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
    return made


def _run(words: tuple[str, ...], cwd: Path, environment: Mapping[str, str], streams: list[Path]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, path in enumerate(streams, 1):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    sys.stdin = open(os.devnull)  # noqa: SIM115  # for as long as the process lives
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", closefd=False, buffering=1)  # noqa: SIM115
    sys.argv = ["sftcore", *words]
    from sftcore.cli import main

    try:
        main()
    finally:
        with contextlib.suppress(SystemExit):
            atexit._run_exitfuncs()  # which multiprocessing leaves out
