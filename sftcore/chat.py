"""Chat template and end-of-sequence token: set on the tokenizer first, and on the model once it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sftcore.errors import ModelError, RecipeError


def set_chat_template(tokenizer: Any, path: str) -> None:
    """Read a .jinja or .j2 file into the tokenizer's chat template.

    Raises:
        RecipeError: no such file, or it is no template.
    """
    from jinja2 import Environment, TemplateSyntaxError

    file = Path(path).expanduser()
    if file.suffix not in (".jinja", ".j2"):
        raise RecipeError(
            f'"{path}" is no .jinja or .j2 file.',
            where="chat_template_path",
            fix="Save the other tokenizer's template into one: Path('t.jinja').write_text(other.chat_template).",
        )
    if not file.is_file():
        raise RecipeError("no such file.", where=f"chat_template_path {path}")
    template = file.read_text(encoding="utf-8")
    try:
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_without_generation_marks(template))
    except TemplateSyntaxError as error:
        raise RecipeError(f"line {error.lineno}: {error.message}.", where=f"chat_template_path {path}") from None
    tokenizer.chat_template = template


def set_eos_token(tokenizer: Any, token: str) -> None:
    """Make `token` the tokenizer's EOS.

    Raises:
        ModelError: the vocabulary does not have it.
    """
    if token not in tokenizer.get_vocab():
        raise ModelError(
            f'the token "{token}" is not in the vocabulary.',
            where="eos_token",
            fix="Use a token that the tokenizer has, such as the one that ends a turn in its chat template.",
        )
    tokenizer.eos_token = token


def set_pad_token(tokenizer: Any, token: str) -> None:
    """Make `token` the tokenizer's padding token.

    Raises:
        ModelError: the vocabulary does not have it.
    """
    if token not in tokenizer.get_vocab():
        raise ModelError(
            f'the token "{token}" is not in the vocabulary.', where="pad_token", fix="Use one that it has."
        )
    tokenizer.pad_token = token


def align_eos(model: Any, eos_token_id: int) -> None:
    """Put the EOS into the model's configuration, and first into the list at which generation stops."""
    model.config.get_text_config().eos_token_id = eos_token_id
    stops = model.generation_config.eos_token_id
    known = stops if isinstance(stops, list) else [] if stops is None else [stops]
    model.generation_config.eos_token_id = [eos_token_id, *(stop for stop in known if stop != eos_token_id)]


def _without_generation_marks(template: str) -> str:
    # transformers' own extension of Jinja; it is no syntax of plain Jinja
    import re

    return re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", template)
