"""TRL's public functions on rows and data sets, with TRL's names, arguments and results.

They take and return the dictionaries of `datasets`. As in the formats, rows are read by `sftcore.rows`: keys that Arrow
filled with null count as absent.
"""

from __future__ import annotations

import os.path
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from sftcore.chat.template import refuse_unbounded
from sftcore.core.errors import DataError, OptionTypeError, quoted
from sftcore.rows import ROLES, template_kwargs_of, without_nulls
from sftcore.util.warned import warn

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict
    from transformers import PreTrainedTokenizerBase, ProcessorMixin

    Sets: TypeAlias = Dataset | DatasetDict | IterableDataset | IterableDatasetDict
    Processor: TypeAlias = PreTrainedTokenizerBase | ProcessorMixin

_CONVERSATIONS = ("prompt", "chosen", "rejected", "completion", "messages")
_RENDERED: tuple[set[str], ...] = (
    {"messages"}, {"prompt"}, {"prompt", "completion"}, {"prompt", "chosen", "rejected"}, {"chosen", "rejected"},
)  # fmt: skip
"""The columns of conversations that a row may have."""
_WINDOW = 1000
"""How many rows of a stream are packed together, unless `map_kwargs` contains `batch_size`."""


def is_conversational(example: Mapping[str, Any]) -> bool:
    """Whether the row contains messages with roles rather than texts.

    >>> is_conversational({"prompt": [{"role": "user", "content": "What color is the sky?"}]})
    True
    >>> is_conversational({"prompt": "The sky is"})
    False
    """
    value = next((example[key] for key in _CONVERSATIONS if example.get(key) is not None), None)
    return _is_list_of(value, "role")


def is_conversational_from_value(example: Mapping[str, Any]) -> bool:
    """Whether the row contains `conversations` in ShareGPT's form, with `from` and `value`.

    >>> is_conversational_from_value({"conversations": [{"from": "user", "value": "Hi"}]})
    True
    >>> is_conversational_from_value({"conversations": [{"role": "user", "content": "Hi"}]})
    False
    """
    return _is_list_of(example.get("conversations"), "from", "value")


def maybe_convert_to_chatml(example: Mapping[str, Any]) -> dict[str, Any]:
    """The row with `from`, `value` and `conversations` renamed to `role`, `content` and `messages`.

    The given row is not changed. Role names are kept; the format `sharegpt` maps them.

    >>> maybe_convert_to_chatml({"conversations": [{"from": "user", "value": "Hi"}]})
    {'messages': [{'role': 'user', 'content': 'Hi'}]}
    """
    renamed = {"from": "role", "value": "content"}
    converted = {}
    for key, value in example.items():
        if key in (*_CONVERSATIONS, "conversations") and isinstance(value, list):
            value = [
                {renamed.get(name, name): part for name, part in turn.items()} if isinstance(turn, dict) else turn
                for turn in value
            ]
        converted["messages" if key == "conversations" else key] = value
    return converted


def apply_chat_template(
    example: Mapping[str, Any],
    processing_class: Processor,
    tools: Sequence[dict[str, Any] | Callable[..., Any]] | None = None,
    **template_kwargs: Any,
) -> dict[str, str]:
    """Render a row's conversations as texts: `messages` becomes `text`; the other columns keep their names.

    A row has `messages`, a `prompt` alone, a `prompt` and a `completion` (with or without a `label`), or answers that
    were `chosen` and `rejected`, with a `prompt` or as whole conversations.

    A prompt that ends with a user's or a tool's message gets the generation prompt. One that ends with an assistant's
    message is left open, so that the model continues it. With answers, the prompt is the common prefix of the rendered
    prompt and of each rendered whole. `template_kwargs` override the row's own `chat_template_kwargs`.

    Raises:
        DataError: the row has no such columns, or its prompt ends with another role.
    """
    turns = {key: _turns(example[key]) for key in _CONVERSATIONS if example.get(key) is not None}
    if set(turns) not in _RENDERED:
        raise DataError(
            "a chat template can be applied to messages, to a prompt (alone or with a completion), or to chosen and "
            f"rejected (alone or with a prompt), but the row has the columns {quoted(example)}.",
            fix="Rename the columns.",
        )
    options = {"tools": list(tools) if tools else None, **template_kwargs_of(example), **template_kwargs}

    def rendered(conversation: list[Any], **more: Any) -> str:
        refuse_unbounded(getattr(processing_class, "tokenizer", processing_class), conversation, **more, **options)
        text: str = processing_class.apply_chat_template(conversation, tokenize=False, **more, **options)
        return text

    label = {"label": example["label"]} if "label" in example else {}
    if "messages" in turns:
        return {"text": rendered(turns["messages"])}
    if "prompt" not in turns:
        return {name: rendered(conversation) for name, conversation in turns.items()}
    asked = turns.pop("prompt")
    last = asked[-1].get("role") if asked else None
    if last not in ("user", "tool", "assistant"):
        raise DataError(
            f'the prompt ends with a message of the role "{last}", which the model cannot answer.',
            fix="End it with a message of a user, a tool or an assistant.",
        )
    answered = last != "assistant"
    prompt = rendered(asked, add_generation_prompt=answered, continue_final_message=not answered)
    wholes = {name: rendered(asked + answer) for name, answer in turns.items()}
    # some templates open the answer only in the generation prompt (DeepSeek-R1's <think>)
    prompt = os.path.commonprefix([prompt, *wholes.values()])  # noqa: RUF071 - characters are meant
    answers = {name: whole[len(prompt) :] for name, whole in wholes.items()}
    return {"prompt": prompt, **answers, **(label if answers else {})}


def maybe_apply_chat_template(
    example: Mapping[str, Any],
    processing_class: Processor,
    tools: Sequence[dict[str, Any] | Callable[..., Any]] | None = None,
    **template_kwargs: Any,
) -> Mapping[str, Any]:
    """Apply the chat template to a row of messages; a row of texts is returned unchanged."""
    if is_conversational(example):
        return apply_chat_template(example, processing_class, tools, **template_kwargs)
    return example


def prepare_multimodal_messages(
    messages: Sequence[Mapping[str, Any]], images: Sequence[Any] | None = None
) -> list[dict[str, Any]]:
    """The messages with their content as a list of parts, and with the images in the image placeholders.

    If the first user's message is a text, a placeholder for each image is put before it. Placeholders that already
    contain an image keep it. The given messages are not changed.

    >>> prepare_multimodal_messages([{"role": "user", "content": "What is it?"}], images=["photo"])
    [{'role': 'user', 'content': [{'type': 'image', 'image': 'photo'}, {'type': 'text', 'text': 'What is it?'}]}]

    Raises:
        DataError: the numbers of images and of placeholders differ, or a role is not known.
    """
    pictures = list(images or ())
    prepared = [dict(message) for message in messages]
    first_text = True
    for i, message in enumerate(prepared):
        if message.get("role") not in ROLES:
            raise DataError(
                f'messages[{i}]: role "{message.get("role")}" is not known.',
                fix=f"Known roles: {', '.join(ROLES)}.",
            )
        if isinstance(message.get("content"), str):
            placeholders = [{"type": "image"} for _ in pictures] if first_text and message["role"] == "user" else []
            message["content"] = [*placeholders, {"type": "text", "text": message["content"]}]
            first_text = first_text and message["role"] != "user"
    # the images in a tool's answer are not among the given images
    with_content = [message for message in prepared if message.get("content") and message["role"] != "tool"]
    num_placeholders = sum(_is_image_placeholder(part) for message in with_content for part in message["content"])
    if num_placeholders != len(pictures):
        raise DataError(
            f"{len(pictures)} images are given, but the messages have {num_placeholders} placeholders for images.",
            fix='A placeholder is {"type": "image"} in the content of a message.',
        )
    left = iter(pictures)
    for message in with_content:
        message["content"] = [
            {**part, "image": next(left)} if _is_image_placeholder(part) else part for part in message["content"]
        ]
    return prepared


def get_dataset_column_names(dataset: Dataset | IterableDataset) -> list[str]:
    """The names of the columns; a stream that does not know them is asked for its first row."""
    from sftcore.data.store.stream import columns_of

    return columns_of(dataset)


def pack_dataset(
    dataset: Sets, seq_length: int, strategy: str = "bfd", map_kwargs: Mapping[str, Any] | None = None
) -> Any:
    """Pack the rows of a data set into blocks of `seq_length` tokens.

    Every column must contain lists with an entry for each token. The column `seq_lengths` is added, which contains the
    lengths of the documents in each block.

    Args:
        dataset: a data set, or a dictionary of several. All rows of a map-style set are packed together; the rows of a
            stream are packed a thousand at a time.
        seq_length: the number of tokens in a block.
        strategy: "bfd" keeps documents whole and cuts those longer than a block; "bfd_split" turns what is cut off into
            further documents; "wrapped" fills each block completely and splits documents at its end.
        map_kwargs: further arguments for `Dataset.map`. `num_proc` is ignored, since one process has to see all rows.

    Raises:
        OptionTypeError: a column does not contain lists, or the strategy is not known.
        DataError: the columns of a row have different lengths.
    """
    from datasets import Dataset, DatasetDict, IterableDataset, IterableDatasetDict

    if strategy == "bfd-requeue":
        warn('The packing strategy "bfd-requeue" is now called "bfd_split".', FutureWarning)
        strategy = "bfd_split"
    if isinstance(dataset, (DatasetDict, IterableDatasetDict)):
        return type(dataset)(
            {name: pack_dataset(one, seq_length, strategy, map_kwargs) for name, one in dataset.items()}
        )
    if not isinstance(dataset, (Dataset, IterableDataset)):
        raise OptionTypeError(
            f"expected a datasets.Dataset, IterableDataset or a dictionary of them, got {type(dataset).__name__}.",
            where="pack_dataset",
        )
    options: dict[str, Any] = {"fn_kwargs": {"seq_length": seq_length, "strategy": strategy}, **(map_kwargs or {})}
    options.pop("num_proc", None)
    options.setdefault("batch_size", _WINDOW if isinstance(dataset, IterableDataset) else None)
    packed = dataset.with_format("arrow").map(_packed_table, batched=True, **options)
    if isinstance(dataset, IterableDataset):
        formatting = getattr(dataset, "_formatting", None)
        return packed.with_format(formatting and formatting.format_type)
    shape = {**dataset.format, **dataset.format.get("format_kwargs", {})}
    shape.pop("format_kwargs", None)
    return packed.with_format(**{**shape, "columns": [*shape["columns"], "seq_lengths"]})


def _packed_table(table: pa.Table, seq_length: int, strategy: str) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    from sftcore.data.packing.pack import pack, packed

    for name, column in zip(table.column_names, table.columns, strict=True):
        if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
            raise OptionTypeError(
                f'the column "{name}" cannot be packed, because it contains {column.type} instead of lists.',
                where="pack_dataset",
                fix="Keep only columns with an entry for each token: dataset.select_columns([…]).",
            )
    lengths = [pc.list_value_length(column) for column in table.columns]
    for name, found in zip(table.column_names, lengths, strict=True):
        if found.null_count or not found.equals(lengths[0]):
            raise DataError(
                f'the columns "{table.column_names[0]}" and "{name}" have different lengths.',
                where="pack_dataset",
                fix="Every column needs an entry for each token.",
            )
    blocks = list(packed(table, pack(lengths[0].to_numpy(), seq_length, strategy)))
    if blocks:
        return pa.concat_tables(blocks)
    return table.slice(0, 0).append_column("seq_lengths", pa.array([], pa.list_(pa.int32())))


def _is_list_of(value: Any, *keys: str) -> bool:
    """Whether the value is a list whose first entry is a mapping with these keys."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and set(keys) <= set(value[0])


def _turns(value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise DataError(
            f"a chat template needs lists of messages, got {type(value).__name__}.",
            fix="Use maybe_apply_chat_template, which returns rows of texts unchanged.",
        )
    # content that is null is kept, since templates distinguish it from missing content
    return [{**({"content": None} if "content" in turn else {}), **without_nulls(turn)} for turn in value]


def _is_image_placeholder(part: Mapping[str, Any]) -> bool:
    return part.get("type") == "image" and "image" not in part
