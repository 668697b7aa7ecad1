"""Chat templates by name: the turns of well-known models, in templates written for sftcore."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from attrs import frozen

from sftcore.core.errors import ModelError, RecipeError, near_name
from sftcore.core.types import Problem
from sftcore.util.disk import names_of_files

FILES = (".jinja", ".j2")
MAX_SOURCE = 2**17
"""Characters of a template; the longest in use have some 30,000."""
_MAX_BYTES = 16 * MAX_SOURCE
"""Of a file with a template, which JSON may write with more than ten bytes a character."""
_LARGEST = {
    "chat_template.jinja": _MAX_BYTES, "chat_template.json": 16 * _MAX_BYTES, "additional_chat_templates/*": _MAX_BYTES,
    "tokenizer_config.json": 2**26, "special_tokens_map.json": 2**26, "processor_config.json": 2**26,
}  # fmt: skip
"""Bytes of the files of a tokenizer, which are read whole; with 100,000 added tokens the largest one has 20 MiB."""
_FOLDER = Path(__file__).parents[2] / "assets" / "chat_templates"


@frozen
class NamedTemplate:
    """A template that comes with sftcore.

    `tokens` are those that it writes around turns: a tokenizer that has not got them gets them, and the model a row of
    embeddings for each. `end` is the token that ends turns, "" where that is the tokenizer's EOS. `source` says whose
    turns they are, and where these are described.
    """

    name: str
    source: str
    tokens: tuple[str, ...] = ()
    end: str = ""

    @property
    def text(self) -> str:
        """The template itself."""
        return (_FOLDER / f"{self.name}.jinja").read_text(encoding="utf-8").removesuffix("\n")


_IM = ("<|im_start|>", "<|im_end|>")
_HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_PHI3 = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
_DEEPSEEK = ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>")
_GEMMA = ("<start_of_turn>", "<end_of_turn>")
_ALL = (
    NamedTemplate("alpaca", "Stanford Alpaca's prompt (github.com/tatsu-lab/stanford_alpaca)"),
    NamedTemplate("chatml", "OpenAI's ChatML", _IM, "<|im_end|>"),
    NamedTemplate("deepseek", "DeepSeek-V3's turns (its model card)", _DEEPSEEK, _DEEPSEEK[-1]),
    NamedTemplate("gemma", "Gemma's turns, the system prompt before the first question (Gemma 3)", _GEMMA, _GEMMA[-1]),
    NamedTemplate("llama2", "Llama 2's turns (its model card)"),
    NamedTemplate("llama3", "Llama 3's turns (its model card)", _HEADERS, "<|eot_id|>"),
    NamedTemplate("mistral", "Mistral's instructions, version 3, the system prompt before the first question"),
    NamedTemplate("phi3", "Phi-3's turns (its model card)", _PHI3, "<|end|>"),
    NamedTemplate("phi4", "Phi-4's turns (its model card)", (*_IM, "<|im_sep|>"), "<|im_end|>"),
    NamedTemplate("qwen2.5", "Qwen2.5's turns, with its own system prompt and calls of tools", _IM, "<|im_end|>"),
    NamedTemplate("qwen3", "Qwen3's turns, with thinking and calls of tools", _IM, "<|im_end|>"),
    NamedTemplate("vicuna", "Vicuna's turns, version 1.1 (FastChat)"),
    NamedTemplate("zephyr", "Zephyr's turns (its model card)"),
)
TEMPLATES: Mapping[str, NamedTemplate] = {one.name: one for one in _ALL}
"""The templates by name."""

_OTHERS = {
    "qwen": "qwen2.5", "qwen2": "qwen2.5", "qwen25": "qwen2.5", "gemma2": "gemma", "gemma3": "gemma",
    "phi35": "phi3", "deepseek3": "deepseek", "deepseekv3": "deepseek",
}  # fmt: skip
"""Other names for them, without the signs between their parts."""


def named(value: str) -> NamedTemplate | None:
    """The template that is called so, however its name is spelt: `qwen-2.5`, `Llama_3`.

    >>> named("Llama-3").name, named("qwen_2.5").name, named("chat.jinja")
    ('llama3', 'qwen2.5', None)
    """
    short = re.sub(r"[^a-z0-9]", "", value.lower())
    if re.search(r"[/\\{]", value) or value.endswith(FILES):
        return None
    found = _OTHERS.get(short) or next((name for name in TEMPLATES if name.replace(".", "") == short), "")
    return TEMPLATES.get(found)


def template_text(value: str) -> str:
    """The text of a template that is given by name, as a text, or as a file.

    Raises:
        RecipeError: there is no such template, or its syntax is wrong.
    """
    if (own := named(value)) is not None:
        return own.text
    if "{{" in value or "{%" in value:
        return checked(value, "chat_template")
    path = Path(value).expanduser()
    with names_of_files():
        is_file = path.is_file()
    if is_file:
        return read_template(path, f"chat_template {value}")
    if value.endswith(FILES):
        raise RecipeError("no such file.", where=f"chat_template {value}")
    if path.is_dir() or "/" in value:
        fix = "Name a tokenizer, whose template and tokens are taken over, with chat_template_path."
        raise RecipeError("this is neither a template's name nor a file.", where=f"chat_template {value}", fix=fix)
    near = near_name(value.lower(), [*TEMPLATES, *_OTHERS])
    offer = f' Did you mean "{near}"?' if near else ""
    raise RecipeError(
        f'no chat template is named "{value}".{offer}',
        where="chat_template",
        fix=f"Names: {', '.join(TEMPLATES)}. Or give a .jinja file, or the template's text.",
    )


def read_template(path: Path, where: str) -> str:
    """The template in a file.

    Raises:
        RecipeError: the file cannot be read, or is not a template.
    """
    try:
        if (size := path.stat().st_size) > _MAX_BYTES:
            raise _too_long(f"the file has {size:,} bytes", where)
        return checked(path.read_text(encoding="utf-8"), where)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the template cannot be read: {error}.", where=where) from None


def _too_long(what: str, where: str) -> RecipeError:
    what = f"{what}, and a chat template has at most {MAX_SOURCE:,} characters."
    return RecipeError(what, where=where, fix="Give another one.")


def large_files(folder: Path) -> Iterator[Problem]:
    """The files of a tokenizer that are larger than any such file, told before they are read."""
    for pattern, largest in _LARGEST.items():
        for path in folder.glob(pattern):
            if path.is_file() and (size := path.stat().st_size) > largest:
                what = f"the file has {size:,} bytes, and at most {largest:,} are read."
                yield Problem(what, str(path), "Replace it by the one of the model that it is to be.")


def refuse_large(folder: Path) -> None:
    """Refuse a tokenizer with a file that is larger than any such file, before it is read.

    Raises:
        ModelError: with the file and its size.
    """
    for problem in large_files(folder):
        raise ModelError(problem.what, where=problem.where, fix=problem.fix)


def checked(template: str, where: str) -> str:
    """The template, once its syntax is known to be right.

    Raises:
        RecipeError: with its line.
    """
    from jinja2 import Environment, TemplateSyntaxError

    if len(template) > MAX_SOURCE:
        raise _too_long(f"it has {len(template):,} characters", where)
    # transformers' own extension of Jinja, which plain Jinja does not know
    plain = re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", template)
    try:
        Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
    except TemplateSyntaxError as error:
        raise RecipeError(f"line {error.lineno}: {error.message}.", where=where) from None
    return template


def template_problems(settings: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with the template that the settings give."""
    given = settings.get("chat_template")
    if given is None:
        return
    if settings.get("chat_template_path") is not None:
        yield Problem(
            "chat_template and chat_template_path both give a chat template.",
            fix="Keep chat_template_path to take a tokenizer's template and tokens, or chat_template for one alone.",
        )
    try:
        template_text(given)
    except RecipeError as error:
        yield Problem(error.what, error.where, error.fix)
