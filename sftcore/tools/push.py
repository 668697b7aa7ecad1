"""Upload a folder to the hub: only where a user asked for it, and without what belongs to this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path

from sftcore.core.errors import ModelError

_REPOSITORY = re.compile(r"([\w.-]+/)?[\w.-]+")
_LEFT_OUT = ("training_args.bin", "optimizer.pt", "scheduler.pt")


def refuse_push(repo_id: str) -> None:
    """Whatever can be known to go wrong before any work is done.

    Raises:
        ModelError: the name is none, the hub is switched off, there is no token or the hub does not take it.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError

    where = f"--push-to-hub {repo_id}"
    if not _REPOSITORY.fullmatch(repo_id):
        raise ModelError("this is no name of a repository.", where=where, fix="Write owner/name.")
    if constants.HF_HUB_OFFLINE:
        raise ModelError("the hub is switched off (HF_HUB_OFFLINE).", where=where, fix="Unset it, or leave this out.")
    if get_token() is None:
        raise ModelError("there is no token for the hub.", where=where, fix="Run `hf auth login`, or set HF_TOKEN.")
    try:
        HfApi().whoami()
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"the hub does not take the token: {_first(error)}", where=where) from error


def push(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Upload the files of `folder` in one commit; returns where they are.

    The manifest that is uploaded names files, not the folders of this machine.

    Raises:
        ModelError: the hub refuses; `folder` stays as it is.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    from sftcore.util.plain import public

    files = sorted(one for one in folder.rglob("*") if one.is_file() and not _left_out(one.relative_to(folder)))
    operations = []
    for path in files:
        content: str | bytes = str(path)
        if path.name == "manifest.json":
            known = public(json.loads(path.read_text(encoding="utf-8")))
            content = (json.dumps(known, indent=2, ensure_ascii=False) + "\n").encode()
        operations.append(CommitOperationAdd(path.relative_to(folder).as_posix(), content))
    try:
        api = HfApi()
        made = api.create_repo(repo_id, private=private, exist_ok=True)
        api.create_commit(made.repo_id, operations, commit_message="Merged model")
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"the hub refuses: {_first(error)}",
            where=f"--push-to-hub {repo_id}",
            fix=f"The merged model is in {folder}; upload it with `hf upload {repo_id} {folder}`.",
        ) from error
    return str(made)


def _left_out(path: Path) -> bool:
    return path.name in _LEFT_OUT or path.parts[0].startswith((".", "_", "checkpoint-"))


def _first(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
