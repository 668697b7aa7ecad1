"""Models in llama.cpp's single-file layout (github.com/ggml-org/ggml, docs/gguf.md)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sftcore import LoadedModel, LoadOptions, ModelRequest, RecipeError, hookimpl, plugin


@plugin
class GGUF:
    """GGUF files, their weights turned back into floats; `file` names one inside a folder or a hub repository."""

    file: str | None = None

    @hookimpl
    def loads(self, request: ModelRequest) -> bool:
        return (request.name or "").lower().endswith(".gguf") or _only_file(request.name) is not None

    @hookimpl
    def claims(self) -> Iterable[str]:
        return ["model.load"]

    @hookimpl
    def load_processor(self, request: ModelRequest) -> Any:
        from transformers import AutoTokenizer

        folder, file = self._place(request)
        return AutoTokenizer.from_pretrained(folder, gguf_file=file, revision=request.revision)

    @hookimpl
    def load_model(self, request: ModelRequest, options: LoadOptions) -> LoadedModel:
        from transformers import AutoModelForCausalLM

        folder, file = self._place(request)
        model = AutoModelForCausalLM.from_pretrained(
            folder, gguf_file=file, dtype=request.dtype, revision=request.revision, **options.kwargs
        )
        # The weights are floats now; while transformers thinks them quantised it refuses to save or train them
        model.hf_quantizer.remove_quantization_config(model)
        return LoadedModel(model, None, request, (f"weights of {file} turned back into {model.dtype}",))

    def _place(self, request: ModelRequest) -> tuple[str, str]:
        name = request.name or ""
        if self.file is not None:
            return name, self.file
        path = _only_file(name) or Path(name).expanduser()
        if path.suffix.lower() != ".gguf":
            raise RecipeError(
                f'"{name}" is not a .gguf file.',
                where="loader.gguf",
                fix="Name the file inside it: loader: {gguf: {file: …}}",
            )
        return str(path.parent), path.name


def _only_file(name: str | None) -> Path | None:
    """The one GGUF file of a folder that holds no model beside it; None where there is no such folder."""
    folder = Path(name).expanduser() if name else None
    if folder is None or not folder.is_dir() or (folder / "config.json").is_file():
        return None
    found = list(folder.glob("*.gguf"))
    return found[0] if len(found) == 1 else None
