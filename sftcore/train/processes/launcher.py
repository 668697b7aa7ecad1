"""accelerate's launcher, without its report behind an error that a process has told.

`python -m sftcore.train.processes.launcher` takes the words of `accelerate launch`.
"""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    """Start the processes, wait for them, and end with the exit code of the first that failed."""
    from accelerate.commands.launch import launch_command, launch_command_parser
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    given = launch_command_parser().parse_args()
    logging.disable(logging.ERROR)  # torch's launcher would say of each process that it failed, and what it sent it
    try:
        launch_command(given)
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        if text := untold(first):
            print(f"error: {text}", file=sys.stderr)
        sys.exit(first.exitcode if first.exitcode > 0 else 1)


def untold(failure: Any) -> str:
    """What has to be said of the process that failed first; empty where it, or another, has told an error itself.

    Args:
        failure: torch's ProcessFailure.
    """
    if failure.exitcode > 128 or (Path(failure.error_file).parent.parent / "told").exists():
        return ""  # of a signal it has told what was saved
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        memory = " (the system does that when memory runs out)" if name == "SIGKILL" else ""
        return f"process {failure.local_rank} was ended by {name}{memory}, and the others with it."
    return f"process {failure.local_rank} ended with exit code {failure.exitcode}: what it said is above."


if __name__ == "__main__":
    main()
