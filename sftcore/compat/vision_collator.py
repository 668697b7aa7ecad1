"""TRL's data collator for vision-language modelling, built on the formats, masks and collator of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sftcore.config.setup import set_up
from sftcore.core.errors import OptionTypeError, RowError
from sftcore.core.types import ModelRequest
from sftcore.data.pipeline import IMAGE_CUT, OUTCOME
from sftcore.data.sets import DataPreparation

if TYPE_CHECKING:
    from sftcore.data.pipeline import Pipeline

_NAME = "batch"


@dataclass
class DataCollatorForVisionLanguageModeling:
    """Makes a batch of raw rows with `image` or `images`, and `messages`, `text`, or `prompt` and `completion`.

    The batch has input_ids, labels and attention_mask, each (rows, longest) int64, and the processor's tensors for the
    images. Image tokens are never included in the loss. `SFTTrainer` needs this class only if you want to change it:
    `collator: vlm` does the same with prepared rows. Use it with `remove_unused_columns=False` and
    `dataset_kwargs={"skip_prepare_dataset": True}`.

    Args:
        processor: the model's processor.
        max_length: cut rows to this many tokens; a row whose image would be cut is refused.
        completion_only_loss: compute the loss on the completion alone, for rows with a prompt and a completion.
        pad_to_multiple_of: pad to a multiple of this length.
        dataset_text_field: the column of rows that are plain texts.
        assistant_only_loss: compute the loss on the assistant's turns alone.
        chat_template: replaces the processor's own chat template.
        return_tensors: must be "pt".

    Raises:
        RowError: a row cannot be used; the error names its number in the batch.
    """

    processor: Any
    max_length: int | None = None
    completion_only_loss: bool = False
    pad_to_multiple_of: int | None = None
    dataset_text_field: str = "text"
    assistant_only_loss: bool = False
    chat_template: str | None = None
    return_tensors: str = "pt"

    def __post_init__(self) -> None:
        if self.return_tensors != "pt":
            raise OptionTypeError(
                f'return_tensors must be "pt", got "{self.return_tensors}".', where=type(self).__name__
            )
        if self.chat_template is not None:
            self.processor.chat_template = self.processor.tokenizer.chat_template = self.chat_template
        elif getattr(self.processor, "chat_template", None):
            self.processor.tokenizer.chat_template = self.processor.chat_template
        self._pipelines: dict[tuple[str, ...], Pipeline] = {}
        settings = {
            # with False, as in TRL, every token counts; with our default, None, only the completion would
            "completion_only_loss": self.completion_only_loss,
            "assistant_only_loss": self.assistant_only_loss,
            "pad_to_multiple_of": self.pad_to_multiple_of,
            "dataset_text_field": self.dataset_text_field,
            "max_length": self.max_length,
        }
        without = ("loader", "adapter", "attention", "kernel", "loss", "noise")
        self._setup = set_up([], settings, ModelRequest(vision=True), where=type(self).__name__, without=without)
        self._collate = self._setup.plugins.one("make_collator", processor=self.processor, plan=self._setup.plan)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Make a batch of the rows."""
        columns = tuple(dict.fromkeys(key for example in examples for key in example))
        if columns not in self._pipelines:
            data = DataPreparation(self._setup, self.processor.tokenizer, self.max_length, processor=self.processor)
            self._pipelines[columns] = data.pipeline(list(columns), _NAME)
        rows = [{name: example.get(name) for name in columns} for example in examples]
        contents = self._pipelines[columns].read(rows, range(len(examples)))
        # what is damaged is found when the batch is made, a few lines below
        table = self._pipelines[columns].encode(contents, self._pipelines[columns].tokenize(contents))
        for number, reason in zip(table.column("_row").to_pylist(), table.column("_dropped").to_pylist(), strict=True):
            if reason == IMAGE_CUT:
                raise RowError(f"{reason}.", fix="Raise max_length, or drop the row.").at(_NAME, number)
        batch = self._collate(table.drop_columns([f"_{name}" for name in OUTCOME]).to_pylist())
        batch.pop("num_tokens", None)
        return dict(batch)
