"""The plain values that cross the hooks: frozen, and free of torch at run time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, runtime_checkable

from attrs import Factory, field, frozen
from attrs.validators import ge, in_, instance_of, optional

if TYPE_CHECKING:
    import torch

KINDS = ("format", "collator", "loader", "adapter", "attention", "kernel", "loss", "noise")
"""Plugin kinds; the entry-point group of a kind is `sftcore.<kind>`."""

REPEATABLE_KINDS = ("kernel", "noise")
"""Kinds of which a run may use several at once."""

SLOTS = (
    "model.load",
    "attention",
    "adapter",
    "embedding.noise",
    "loss.cross_entropy",
    "kernel.rms_norm",
    "kernel.rope",
    "kernel.mlp",
    "kernel.embedding",
)
"""What a plugin can occupy; two claims on one slot are a conflict."""

PACKING_STRATEGIES = ("bfd", "bfd_split", "wrapped")
"""How documents are placed in blocks; `sftcore.data.packing.pack` describes them."""

AUTO = "auto"
"""The name that leaves a choice open: a format to the columns of the data, an attention to device, model and rows."""

IGNORED = -100
"""The label of a token that does not count for the loss."""

IMAGE = "<image>"
"""What stands for an image in the plain texts of an example."""

Slot: TypeAlias = str
Row: TypeAlias = Mapping[str, Any]


# --- Conversations and examples -------------------------------------------------------------------------------------
@frozen
class Part:
    """One part of a message's content, in the shape that chat templates expect (`{"type": "text", "text": …}`)."""

    type: str
    text: str | None = None
    extra: Mapping[str, Any] = field(factory=dict)

    def as_template(self) -> dict[str, Any]:
        """The part as chat templates read it."""
        return {"type": self.type, **({} if self.text is None else {"text": self.text}), **self.extra}


@frozen
class Message:
    """One turn of a conversation.

    `train` and `weight` (0.0 to 1.0) say whether and how much this turn counts for the loss; None leaves that to the
    run's settings. `extra` holds further keys that the chat template may read.
    """

    role: str
    content: str | Sequence[Part] | None = None
    train: bool | None = field(default=None, validator=optional(instance_of(bool)))
    weight: float | None = None
    reasoning: str | None = None
    tool_calls: Sequence[Mapping[str, Any]] = ()
    tool_call_id: str | None = None
    name: str | None = None
    extra: Mapping[str, Any] = field(factory=dict)

    def as_template(self) -> dict[str, Any]:
        """The message as chat templates read it: absent parts are left out, not None."""
        content: Any = self.content
        if content is not None and not isinstance(content, str):
            content = [part.as_template() for part in content]
        optional = {
            "reasoning_content": self.reasoning,
            "tool_calls": [dict(call) for call in self.tool_calls] or None,
            "tool_call_id": self.tool_call_id,
            "name": self.name,
        }
        return {
            "role": self.role,
            "content": content,
            **{key: value for key, value in optional.items() if value is not None},
            **self.extra,
        }


Turns: TypeAlias = Sequence[Message]


@frozen
class TokenizedRow:
    """A row of token ids.

    `labels` is as long as `input_ids`; -100 marks a token that does not count. None means that every token counts.
    `weights`, if given, is as long as `input_ids` too, each from 0.0 to 1.0.
    """

    input_ids: Sequence[int]
    labels: Sequence[int] | None = None
    weights: Sequence[float] | None = None


@frozen
class Example:
    """What a format makes of a row: exactly one of `messages`, `prompt` with `completion`, `text`, `tokens`.

    `prompt` and `completion` are both texts or both lists of messages. `tools` are JSON schemas, `template_kwargs`
    further arguments for the chat template of this row. `images` are PIL images, encoded bytes, paths, or mappings with
    `bytes` or `path`, and `media` whatever else is seen or heard, each a `sftcore.plugin_api.Medium`. Each belongs to
    one place in the words, in the same order: a part of its type (`image`, `video`), or IMAGE or <video> in a text.

    `spans` are the characters of `text` that are supervised. Such a text is taken as it is: no token is added to it.
    """

    messages: Turns | None = None
    prompt: str | Turns | None = None
    completion: str | Turns | None = None
    text: str | None = None
    tokens: TokenizedRow | None = None
    images: Sequence[Any] = ()
    media: Sequence[Any] = ()
    tools: Sequence[Mapping[str, Any]] | None = None
    template_kwargs: Mapping[str, Any] = field(factory=dict)
    spans: Sequence[Span] | None = None

    def __attrs_post_init__(self) -> None:
        shapes = [
            self.messages is not None,
            self.prompt is not None and self.completion is not None,
            self.text is not None,
            self.tokens is not None,
        ]
        if sum(shapes) != 1 or (self.prompt is None) != (self.completion is None):
            raise TypeError("an Example takes exactly one of: messages, prompt with completion, text, tokens")
        if self.prompt is not None and isinstance(self.prompt, str) != isinstance(self.completion, str):
            raise TypeError("prompt and completion are both texts or both lists of messages")


Formatter: TypeAlias = Callable[[Row], Example | Iterable[Example]]


@frozen
class Span:
    """Characters `start` to `end` (exclusive) of a rendered text that are supervised, with their weight."""

    start: int = field(validator=ge(0))
    end: int = field(validator=ge(0))
    weight: float = 1.0


# --- What a run consists of -----------------------------------------------------------------------------------------
@frozen
class Selection:
    """A plugin that a run uses: which one, with which options, and who asked for it.

    `path` is where a user wrote it (`recipe.yaml: adapter`, `SFTConfig.loss_type`), or AUTO where the run chose. A
    default yields to an explicit choice that claims the same slot.
    """

    kind: str
    name: str
    options: Mapping[str, Any] = field(factory=dict)
    distribution: str | None = None
    path: str = ""
    default: bool = False

    @property
    def label(self) -> str:
        """`kind "name"`, with the distribution where one was asked for."""
        at = f"@{self.distribution}" if self.distribution else ""
        return f'{self.kind} "{self.name}{at}"'


@frozen
class ModelRequest:
    """The model that a run asks for.

    `name` is a hub id, a folder or a file; None where a ready model object was passed in. `dtype` is the name of a
    torch dtype, or "auto". `init_kwargs` goes to `from_pretrained` whole. `vision` says whether its processor reads
    images, None where that is not known yet.
    """

    name: str | None = None
    revision: str | None = None
    dtype: str | None = None
    trust_remote_code: bool = False
    init_kwargs: Mapping[str, Any] = field(factory=dict)
    vision: bool | None = None


@frozen
class Plan:
    """What a run will do, before anything heavy is loaded. `settings` are the fields of SFTConfig that are known.

    `yielded` lists the defaults that stepped back, as (default, the choice it yielded to). `attention` is what the
    run's attention declares. `flattened` says whether its collator lays documents end to end in one row or pads them;
    None where the collator does not say.

    `candidates` are the attentions that `attention: auto` may take, the fastest first, with what they declare; empty
    where the attention was chosen. `open_layout` says that nobody asked for a layout: rows are laid end to end if the
    run proves that this changes nothing, and padded otherwise. `reasons` says by kind of plugin why `auto` took it.
    """

    selections: tuple[Selection, ...]
    settings: Mapping[str, Any] = field(factory=dict)
    model: ModelRequest = Factory(ModelRequest)
    yielded: tuple[tuple[Selection, Selection], ...] = ()
    attention: AttentionBackend | None = field(default=None, eq=False)
    flattened: bool | None = None
    candidates: tuple[tuple[Selection, AttentionBackend], ...] = field(default=(), eq=False)
    open_layout: bool = False
    reasons: Mapping[str, str] = field(factory=dict)

    def selected(self, kind: str) -> tuple[Selection, ...]:
        """The selections of one kind, in recipe order."""
        return tuple(selection for selection in self.selections if selection.kind == kind)


@frozen
class Probe:
    """What `check` may look at: read from files and metadata, without importing torch or reading weights.

    `model_config` is the parsed `config.json` where the model is a local folder. `columns` are those of the training
    set, where they are known. `module_names` are those of the model's modules, as in `named_modules`, where they are
    known: not before torch is imported, and then of a ready model, or by its configuration.
    """

    model_config: Mapping[str, Any] | None = None
    columns: tuple[str, ...] | None = None
    ready_model: bool = False
    module_names: tuple[str, ...] | None = None


@frozen
class Problem:
    """Something that would make the run fail or go wrong. `severity` "error" stops it, "warning" is shown."""

    what: str = field(validator=instance_of(str))
    where: str = ""
    fix: str = ""
    severity: Literal["error", "warning"] = field(default="error", validator=in_(("error", "warning")))

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text} {self.fix}" if self.fix else text


# --- Models ---------------------------------------------------------------------------------------------------------
@frozen
class LoadOptions:
    """Arguments for `from_pretrained` that a plugin asks for; one key with two values is a conflict."""

    kwargs: Mapping[str, Any] = field(factory=dict)


@frozen
class LoadedModel:
    """A model with its tokenizer or processor. `notes` are printed with the plan and saved in the manifest."""

    model: Any
    processor: Any
    request: ModelRequest = Factory(ModelRequest)
    notes: tuple[str, ...] = ()


@frozen
class AttentionBackend:
    """An attention implementation and what it supports.

    `implementation` is a name in transformers' attention registry. `devices` ("cuda", "cpu") and `dtypes` ("bfloat16")
    are those it runs on, empty for all of them; `dtypes` may map each device to its own.

    `padding` is False where it does not take padded batches. `dropout` and `backward` tell whether it can drop
    attention weights and has a backward pass: True, False, or the devices on which it does.

    `boundaries` says that it keeps documents of a packed row apart by `cu_seq_lens_q` and `cu_seq_lens_k`, keyword
    arguments of the model's forward, so that one long row of them costs no more than several: packed rows are then laid
    end to end. `calls`, if given, tells how often it has been called with them so far.

    `speed` says how fast it attends to documents that share a row, and `padded_speed` to padded rows: in multiples of
    torch's scaled dot product attention on padded rows, a number, or one for each device. `attention: auto` takes the
    fastest that the run supports, and never one of 0.

    `deterministic` is False where the same inputs may give other last bits, `compilable` where torch.compile cannot
    trace it, `exact` where it is meant to compute something else than plain attention, such as a window of its own: the
    run says by how much, and refuses any other that differs. `register` makes `implementation` known to transformers;
    it is called before a model is given it.
    """

    implementation: str
    devices: tuple[str, ...] = ()
    dtypes: tuple[str, ...] | Mapping[str, tuple[str, ...]] = ()
    padding: bool = True
    dropout: bool | tuple[str, ...] = True
    backward: bool | tuple[str, ...] = True
    boundaries: bool = False
    speed: float | Mapping[str, float] = 0.0
    padded_speed: float | Mapping[str, float] = 0.0
    deterministic: bool = True
    compilable: bool = True
    exact: bool = True
    calls: Callable[[], int] | None = None
    register: Callable[[], None] | None = None


@frozen
class PatchReport:
    """What a kernel plugin replaced and what it skipped, with the reason.

    `undo` takes all of it off the model again: kernels are on while the trainer runs the model, and the hook is asked
    anew each time. None where nothing was replaced; a report that names a replacement without it is refused. `exact` is
    False where the kernel is meant to compute something else than the model: the run says by how much.
    """

    replaced: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(factory=dict)
    undo: Callable[[], None] | None = None
    exact: bool = True


class Removable(Protocol):
    """Something that can be taken off again, such as a forward hook's handle."""

    def remove(self) -> None: ...


@frozen(init=False)
class LossOutput:
    """What a loss returns for one micro-batch.

    loss: float32 scalar, already divided by the normaliser; entropy: float32 scalar, the sum in nats over supervised
    positions, or None from a kernel that does not compute it; correct: int64 scalar, how many of them have the label as
    their most likely token; per_token: (tokens,) float32, each token's loss before its weight, detached, or None.
    """

    loss: torch.Tensor
    entropy: torch.Tensor | None
    correct: torch.Tensor
    per_token: torch.Tensor | None = None

    def __init__(self, loss: Any, entropy: Any, correct: Any, per_token: Any = None) -> None:
        # torch.compile cannot trace the one that attrs would write
        for name, value in {"loss": loss, "entropy": entropy, "correct": correct, "per_token": per_token}.items():
            object.__setattr__(self, name, value)


class LossFunction(Protocol):
    """A loss over supervised positions.

    hidden: (tokens, width), or (tokens, vocab) where head is the identity; head: a callable module from hidden states
    to logits; labels: (tokens,) int64, none ignored; weights: (tokens,) float32 or None; num_items: scalar, the sum of
    weights over the accumulated batch and all ranks.
    """

    def __call__(
        self,
        hidden: torch.Tensor,
        head: Callable[[torch.Tensor], torch.Tensor],
        labels: torch.Tensor,
        weights: torch.Tensor | None,
        num_items: torch.Tensor,
    ) -> LossOutput: ...


@runtime_checkable
class Collator(Protocol):
    """Turns a list of prepared rows into a batch of tensors."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]: ...
