"""Upload a folder to the hub, without anything that identifies this machine, and only if the user asked for it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from sftcore.core.errors import ModelError

_REPOSITORY = re.compile(r"([\w.-]+/)?[\w.-]+")


def would_push(folder: Path, repo_id: str, *, private: bool, leave_out: Sequence[str] = ()) -> Iterator[str]:
    """What a push of this folder would upload, a line for each file; the hub is not asked.

    Args:
        folder: what would be uploaded.
        repo_id: where to.
        private: whether the repository would be made private, if it does not exist.
        leave_out: patterns of names that are not uploaded.
    """
    from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, filter_repo_objects  # type: ignore[attr-defined]

    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    kept = list(filter_repo_objects(names, ignore_patterns=[*DEFAULT_IGNORE_PATTERNS, *leave_out]))
    sizes = {name: (folder / name).stat().st_size for name in kept}
    whole = f"{len(kept)} files, {_size(sum(sizes.values()))}"
    yield f"would push to {repo_id} ({'private' if private else 'public'}): {whole}"
    for name, size in sizes.items():
        cleaned = ", without tokens and the folders of this machine" if Path(name).name == "manifest.json" else ""
        yield f"  {name}  {_size(size)}{cleaned}"


def _size(count: int) -> str:
    """
    >>> _size(900), _size(3 * 2**20)
    ('900 bytes', '3.0 MiB')
    """
    for unit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= unit:
            return f"{count / unit:,.1f} {name}"
    return f"{count} bytes"


def refuse_name(repo_id: str, *, where: str) -> None:
    """Refuse what is no name of a repository.

    Raises:
        ModelError: with how one is written.
    """
    if not _REPOSITORY.fullmatch(repo_id):
        raise ModelError("this is not a valid repository name.", where=where, fix="Write owner/name.")


def refuse_push(repo_id: str) -> None:
    """Refuse whatever is known to fail before any work is done.

    Raises:
        ModelError: the name is not valid, the hub is switched off, or there is no token that the hub accepts.
    """
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError

    where = f"--push-to-hub {repo_id}"
    refuse_name(repo_id, where=where)
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
