"""TRL's functions that tell what a chat template supports, under TRL's names."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from sftcore.core.errors import DataError, ModelError, OptionTypeError
from sftcore.core.types import Example, Message
from sftcore.util.warned import warn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    Processor: TypeAlias = PreTrainedTokenizerBase | ProcessorMixin

_NAME, _KEY, _VALUE, _ANSWER = "q7zXcallXz7q", "q7zXkeyXz7q", "q7zXvalueXz7q", "q7zXanswerXz7q"


def has_generation_markers(chat_template: str | Mapping[str, str]) -> bool:
    """Whether the template has generation markers around the assistant's turns; of named variants, `default` counts.

    >>> has_generation_markers("{%- generation -%}{{ m.content }}{% endgeneration %}")
    True
    """
    template = chat_template if isinstance(chat_template, str) else chat_template["default"]
    return re.search(r"\{%-?\s*generation\s*-?%\}", template) is not None


def supports_tool_calling(processing_class: Processor) -> bool:
    """Whether the chat template renders a tool call, its arguments and the tool's answer.

    Some templates silently leave out calls or answers, and others refuse the roles.
    """
    if processing_class.chat_template is None:
        return False
    # DeepSeek-V3's template needs the arguments as JSON text and fails on a mapping
    for arguments in ({_KEY: _VALUE}, f'{{"{_KEY}": "{_VALUE}"}}'):
        try:
            text = _conversation_with_a_tool(processing_class, arguments)
        except Exception:  # a template may raise its own error or any error of Python
            continue
        return all(word in text for word in (_NAME, _KEY, _VALUE, _ANSWER))
    return False


def get_training_chat_template(
    processing_class: Processor | None = None, tokenizer: PreTrainedTokenizerBase | None = None
) -> str | None:
    """Check that the chat template can be trained on with `assistant_only_loss`, and return None.

    TRL returns another template with generation markers for one that has none. No other template is needed here, since
    the assistant's turns are found in the text of any template; this is tried on a conversation.

    Raises:
        ModelError: there is no chat template, or the assistant's turns cannot be found in its text.
    """
    from sftcore.chat.render import Renderer

    if tokenizer is not None:
        if processing_class is not None:
            raise OptionTypeError(
                "processing_class and tokenizer are two names of the same argument.", fix="Give only processing_class."
            )
        warn("The argument tokenizer is now called processing_class.", FutureWarning)
        processing_class = tokenizer
    if processing_class is None:
        raise OptionTypeError("get_training_chat_template needs a processing_class.")
    reader: Any = getattr(processing_class, "tokenizer", processing_class)
    if not reader.chat_template:
        reader = copy.copy(reader)
        reader.chat_template = processing_class.chat_template
    roles = ("user", "assistant", "user", "assistant")
    turns = [Message(role, f"{word}.") for role, word in zip(roles, ("One", "Two", "Three", "Four"), strict=True)]
    try:
        Renderer(reader, assistant_only=True).render(Example(messages=turns))
    except DataError as error:
        raise ModelError(
            f"the chat template cannot be trained on: {error.what}", fix=error.fix or "Use another template."
        ) from error
    return None


def _conversation_with_a_tool(processing_class: Processor, arguments: Mapping[str, str] | str) -> str:
    calls = [{"type": "function", "function": {"name": _NAME, "arguments": arguments}}]
    turns: list[dict[str, Any]] = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "name": _NAME, "content": _ANSWER},
    ]
    if hasattr(processing_class, "tokenizer"):
        from sftcore.compat.data_utils import prepare_multimodal_messages

        turns = prepare_multimodal_messages(turns)
    text: str = processing_class.apply_chat_template(turns, tokenize=False)
    return text
