"""Upload a folder to the hub, without anything that identifies this machine, and only if the user asked for it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from sftcore.core.errors import ModelError

_REPOSITORY = re.compile(r"([\w.-]+/)?[\w.-]+")


def refuse_push(repo_id: str) -> None:
    """Refuse whatever is known to fail before any work is done.

    Raises:
        ModelError: the name is not valid, the hub is switched off, or there is no token that the hub accepts.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError

    where = f"--push-to-hub {repo_id}"
    if not _REPOSITORY.fullmatch(repo_id):
        raise ModelError("this is not a valid repository name.", where=where, fix="Write owner/name.")
    if constants.HF_HUB_OFFLINE:
        raise ModelError(
            "access to the hub is switched off by HF_HUB_OFFLINE.",
            where=where,
            fix="Unset the variable, or leave this option out.",
        )
    if get_token() is None:
        raise ModelError("there is no token for the hub.", where=where, fix="Run `hf auth login`, or set HF_TOKEN.")
    try:
        HfApi().whoami()
    except (HfHubHTTPError, OSError) as error:
        raise ModelError(f"the hub does not accept the token: {_first_line(error)}", where=where) from error


def push(folder: Path, repo_id: str, *, private: bool = False) -> str:
    """Upload the files of a merged model in one commit, and return their address.

    In the uploaded manifest, absolute paths are reduced to file names.

    Raises:
        ModelError: the hub refuses the upload; `folder` stays as it is.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    from sftcore.util.plain import public

    operations = []
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
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
            f"the hub refuses the upload: {_first_line(error)}",
            where=f"--push-to-hub {repo_id}",
            fix=f"The merged model is in {folder}. Upload it later with `hf upload {repo_id} {folder}`.",
        ) from error
    return str(made)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
