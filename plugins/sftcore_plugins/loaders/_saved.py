"""What a folder or a repository of the hub holds, and the tokenizer or processor in it: what two loaders read alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs

from sftcore import ModelRequest


def load_processor(request: ModelRequest) -> Any:
    """The tokenizer or processor of a model, or of a saved adapter or its base."""
    from transformers import AutoProcessor, AutoTokenizer

    known = {"revision": request.revision, "trust_remote_code": request.trust_remote_code}
    if not is_adapter(request):
        return AutoProcessor.from_pretrained(request.name, **known)
    try:
        return AutoTokenizer.from_pretrained(request.name, **known)
    except (OSError, ValueError):  # an adapter saved by PEFT alone has no tokenizer of its own
        return load_processor(base_of(request))


def is_adapter(request: ModelRequest) -> bool:
    """Whether the model's name is that of a saved adapter, which has no config.json of a model."""
    return not has(request, "config.json") and has(request, "adapter_config.json")


def has(request: ModelRequest, file: str) -> bool:
    """Whether the folder or repository holds this file."""
    from transformers.utils import cached_file

    missing_is_fine = {
        "_raise_exceptions_for_gated_repo": False,
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    return cached_file(request.name, file, revision=request.revision, **missing_is_fine) is not None


def base_of(request: ModelRequest) -> ModelRequest:
    """The request for the model that a saved adapter belongs to."""
    from peft import PeftConfig

    config = PeftConfig.from_pretrained(request.name, revision=request.revision)
    if not config.base_model_name_or_path:
        raise OSError(f"the adapter {request.name} does not say which base it belongs to")
    return attrs.evolve(request, name=config.base_model_name_or_path, revision=config.revision)


def adapter_config(request: ModelRequest) -> dict[str, Any]:
    """The configuration of a saved adapter as its file says it, before PEFT makes anything of it."""
    from transformers.utils import cached_file

    found = cached_file(request.name, "adapter_config.json", revision=request.revision)
    told: dict[str, Any] = json.loads(Path(str(found)).read_text(encoding="utf-8"))
    return told
