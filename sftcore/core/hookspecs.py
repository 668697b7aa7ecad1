"""Every hook that a plugin can answer.

A plugin is a class made by `sftcore.plugin`: its fields are its options, its docstring's first line is its summary,
and its methods marked `@hookimpl` are its behaviour. Each hook below shows a complete plugin that runs as it stands.

Hooks are factories: what they return is a plain object or function, which the trainer then calls without pluggy.
A hook that asks *one* plugin has one answer in a run; a hook that asks *all* is answered in recipe order.
A method takes the arguments that it needs, under the names given here. With `@hookimpl(wrapper=True)` it is a wrapper,
as pluggy describes it, and is entered around each answer of the run's plugins.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import pluggy

from sftcore.core.deprecations import PROJECT as PROJECT
from sftcore.core.deprecations import hookspec

if TYPE_CHECKING:
    from sftcore.core.types import (
        AttentionBackend,
        Collator,
        Formatter,
        LoadedModel,
        LoadOptions,
        LossFunction,
        ModelRequest,
        PatchReport,
        Plan,
        Probe,
        Problem,
        Removable,
        Slot,
    )

hookimpl = pluggy.HookimplMarker(PROJECT)


class Hooks:
    """The specifications, in the order in which a run calls them."""

    @hookspec("0.1", firstresult=True)
    def loads(self, request: ModelRequest) -> bool | None:
        """Whether this loader is the one for a model of this name. Asked of all installed loaders where none is chosen.

        One yes wins; two are an error that names both. Asked before any heavy import, of a plugin without options.

        >>> from sftcore import ModelRequest, hookimpl, plugin
        >>> @plugin
        ... class Archives:
        ...     '''Models in one archive.'''
        ...     @hookimpl
        ...     def loads(self, request):
        ...         return (request.name or "").endswith(".model.zip")
        >>> Archives().loads(ModelRequest("tiny.model.zip"))
        True
        """

    @hookspec("0.1", firstresult=True)
    def options_from(self, settings: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Options that fields of SFTConfig give to this plugin; None where they do not ask for it.

        Asked of a plugin without options, before it is made with them. What a recipe says of the plugin goes first.

        >>> from sftcore import hookimpl, plugin
        >>> @plugin
        ... class Lines:
        ...     '''Rows with one line of text.'''
        ...     column: str = "line"
        ...     @hookimpl
        ...     def options_from(self, settings):
        ...         field = settings.get("dataset_text_field")
        ...         return None if field is None else {"column": field}
        >>> Lines().options_from({"dataset_text_field": "body"})
        {'column': 'body'}
        """

    @hookspec("0.1")
    def claims(self) -> Iterable[Slot]:  # type: ignore[empty-body]
        """Slots that this plugin occupies. Asked of all plugins, before any heavy import.

        >>> from sftcore import hookimpl, plugin
        >>> @plugin
        ... class FastNorm:
        ...     '''A faster RMSNorm.'''
        ...     @hookimpl
        ...     def claims(self):
        ...         return ["kernel.rms_norm"]
        >>> FastNorm().claims()
        ['kernel.rms_norm']
        """

    @hookspec("0.1", firstresult=True)
    def attention_backend(self, request: ModelRequest) -> AttentionBackend:  # type: ignore[empty-body]
        """The attention implementation and what it supports. Asked of one plugin, the attention.

        It is asked before any heavy import, and again when the model is there. What needs transformers, such as making
        the implementation known to it, belongs in the answer's `register`.

        >>> from sftcore import AttentionBackend, ModelRequest, hookimpl, plugin
        >>> @plugin
        ... class Plain:
        ...     '''Attention as matrix products.'''
        ...     @hookimpl
        ...     def attention_backend(self, request):
        ...         return AttentionBackend("eager")
        >>> Plain().attention_backend(ModelRequest()).implementation
        'eager'
        """

    @hookspec("0.1", firstresult=True)
    def flattens(self, plan: Plan) -> bool | None:
        """Whether batches lay all documents end to end in one row, or pad them. Asked of one plugin, the collator.

        It is asked before any heavy import. A collator that answers True serves `padding_free`.

        >>> from sftcore import Plan, hookimpl, plugin
        >>> @plugin
        ... class EndToEnd:
        ...     '''Batches of one long row.'''
        ...     @hookimpl
        ...     def flattens(self, plan):
        ...         return True
        >>> EndToEnd().flattens(Plan(()))
        True
        """

    @hookspec("0.1")
    def check(self, plan: Plan, probe: Probe) -> Iterable[Problem] | None:
        """Problems that can be seen before weights are read. Asked of all plugins; all problems are shown at once.

        It is asked several times, also with plans that the run only considers, and must leave nothing behind.

        >>> from sftcore import Plan, Problem, Probe, hookimpl, plugin
        >>> @plugin
        ... class ShortOnly:
        ...     '''A kernel for short sequences.'''
        ...     @hookimpl
        ...     def check(self, plan, probe):
        ...         if (plan.settings.get("max_length") or 0) > 4096:
        ...             yield Problem("sequences beyond 4096 tokens are not supported.", fix="Set max_length: 4096.")
        >>> [str(problem) for problem in ShortOnly().check(Plan((), {"max_length": 8192}), Probe())]
        ['sequences beyond 4096 tokens are not supported. Set max_length: 4096.']
        """

    @hookspec("0.1")
    def prepare(self, plan: Plan) -> None:
        """The last moment before transformers is imported. Asked of all plugins, from the command line only.

        >>> import os
        >>> from sftcore import Plan, hookimpl, plugin
        >>> @plugin
        ... class Interpreted:
        ...     '''Kernels under Triton's interpreter.'''
        ...     @hookimpl
        ...     def prepare(self, plan):
        ...         os.environ.setdefault("TRITON_INTERPRET", "0")
        >>> Interpreted().prepare(Plan(selections=()))
        """

    @hookspec("0.1", firstresult=True)
    def load_processor(self, request: ModelRequest) -> Any:
        """The tokenizer or processor that belongs to the model. Asked of one plugin, the loader.

        It is asked before the weights are read, so that data can be prepared, and faults in it found, without them.

        >>> from sftcore import ModelRequest, hookimpl, plugin
        >>> @plugin
        ... class Local:
        ...     '''Tokenizers from a folder.'''
        ...     @hookimpl
        ...     def load_processor(self, request):
        ...         from transformers import AutoTokenizer
        ...         return AutoTokenizer.from_pretrained(request.name)
        >>> Local().load_processor.__name__
        'load_processor'
        """

    @hookspec("0.1")
    def detects(self, columns: tuple[str, ...]) -> bool | None:
        """Whether this format can read a data set with these columns. `format: auto` asks every installed format.

        One yes wins; two are an error that names both.

        >>> from sftcore import hookimpl, plugin
        >>> @plugin
        ... class QA:
        ...     '''Rows with q and a.'''
        ...     @hookimpl
        ...     def detects(self, columns):
        ...         return {"q", "a"} <= set(columns)
        >>> QA().detects(("q", "a", "id"))
        True
        """

    @hookspec("0.1")
    def suggest(self, columns: tuple[str, ...]) -> Mapping[str, Any] | None:
        """Options with which this format could read these columns, or None. Asked when no format detects them.

        The answer is shown to the user as a line to put into the recipe; nothing is done with it unasked.

        >>> from sftcore import hookimpl, plugin
        >>> @plugin
        ... class QA:
        ...     '''Rows with a question and an answer.'''
        ...     question: str = "q"
        ...     @hookimpl
        ...     def suggest(self, columns):
        ...         return {"question": "frage"} if "frage" in columns else None
        >>> QA().suggest(("frage", "antwort"))
        {'question': 'frage'}
        """

    @hookspec("0.1", firstresult=True)
    def make_formatter(self, columns: tuple[str, ...]) -> Formatter:  # type: ignore[empty-body]
        """A function from a row to an `Example`, or to several. Asked of one plugin, the format, for each data set.

        >>> from sftcore import Example, Message, hookimpl, plugin
        >>> @plugin
        ... class QA:
        ...     '''Rows with q and a.'''
        ...     @hookimpl
        ...     def make_formatter(self, columns):
        ...         return lambda row: Example(messages=[Message("user", row["q"]), Message("assistant", row["a"])])
        >>> QA().make_formatter(("q", "a"))({"q": "Why?", "a": "Because."}).messages[1].content
        'Because.'
        """

    @hookspec("0.1")
    def load_options(self, request: ModelRequest) -> LoadOptions:  # type: ignore[empty-body]
        """Arguments for `from_pretrained`. Asked of all plugins and merged; one key with two values is a conflict.

        >>> from sftcore import LoadOptions, ModelRequest, hookimpl, plugin
        >>> @plugin
        ... class Spread:
        ...     '''Layers spread over all devices.'''
        ...     @hookimpl
        ...     def load_options(self, request):
        ...         return LoadOptions({"device_map": "auto"})
        >>> Spread().load_options(ModelRequest()).kwargs
        {'device_map': 'auto'}
        """

    @hookspec("0.1", firstresult=True)
    def load_model(self, request: ModelRequest, options: LoadOptions) -> LoadedModel:  # type: ignore[empty-body]
        """The model with its processor. Asked of one plugin, the loader; `options` are already merged.

        Its weights have `request.dtype`, unless that is "auto" or they are quantised; the run is refused otherwise.

        >>> from sftcore import LoadedModel, LoadOptions, ModelRequest, hookimpl, plugin
        >>> @plugin
        ... class Ready:
        ...     '''A model made elsewhere.'''
        ...     @hookimpl
        ...     def load_model(self, request, options):
        ...         return LoadedModel(model="weights", processor="tokenizer", request=request)
        >>> Ready().load_model(ModelRequest("here"), LoadOptions()).request.name
        'here'
        """

    @hookspec("0.1")
    def patch_kernels(self, loaded: LoadedModel, plan: Plan) -> PatchReport:  # type: ignore[empty-body]
        """Replace parts of the model by faster ones. Asked of all plugins in recipe order, before the adapter.

        >>> from sftcore import LoadedModel, PatchReport, Plan, hookimpl, plugin
        >>> @plugin
        ... class Nothing:
        ...     '''A kernel that finds nothing to replace.'''
        ...     @hookimpl
        ...     def patch_kernels(self, loaded, plan):
        ...         return PatchReport(skipped={"rms_norm": "the model has none"})
        >>> Nothing().patch_kernels(LoadedModel(None, None), Plan(())).skipped
        {'rms_norm': 'the model has none'}
        """

    @hookspec("0.1", firstresult=True)
    def make_loss(self, loaded: LoadedModel, plan: Plan) -> LossFunction:  # type: ignore[empty-body]
        """A `LossFunction` over supervised positions. Asked of one plugin, the loss.

        >>> from sftcore import LossOutput, Plan, hookimpl, plugin
        >>> @plugin
        ... class Plain:
        ...     '''Cross-entropy in one piece.'''
        ...     @hookimpl
        ...     def make_loss(self, loaded, plan):
        ...         def loss(hidden, head, labels, weights, num_items):
        ...             logp = head(hidden).float().log_softmax(-1)
        ...             nll = -logp.gather(-1, labels[:, None])[:, 0]
        ...             weighted = nll if weights is None else nll * weights
        ...             entropy = -(logp.exp() * logp).sum()
        ...             return LossOutput(weighted.sum() / num_items, entropy, (logp.argmax(-1) == labels).sum())
        ...         return loss
        >>> import torch
        >>> loss = Plain().make_loss(None, Plan(()))
        >>> out = loss(torch.zeros(2, 4), torch.nn.Identity(), torch.tensor([0, 3]), None, torch.tensor(2))
        >>> round(out.loss.item(), 4)
        1.3863
        """

    @hookspec("0.1", firstresult=True)
    def wrap_model(self, loaded: LoadedModel, plan: Plan) -> LoadedModel:  # type: ignore[empty-body]
        """The model with an adapter around it. Asked of one plugin, the adapter.

        >>> import attrs
        >>> from sftcore import LoadedModel, Plan, hookimpl, plugin
        >>> @plugin
        ... class Tagged:
        ...     '''An adapter that only leaves a note.'''
        ...     @hookimpl
        ...     def wrap_model(self, loaded, plan):
        ...         return attrs.evolve(loaded, notes=(*loaded.notes, "tagged"))
        >>> Tagged().wrap_model(LoadedModel(None, None), Plan(())).notes
        ('tagged',)
        """

    @hookspec("0.1", firstresult=True)
    def make_collator(self, processor: Any, plan: Plan) -> Collator:  # type: ignore[empty-body]
        """A function from prepared rows to a batch of tensors. Asked of one plugin, the collator.

        >>> from sftcore import Plan, hookimpl, plugin
        >>> @plugin
        ... class OneByOne:
        ...     '''Batches of one row, never padded.'''
        ...     @hookimpl
        ...     def make_collator(self, processor, plan):
        ...         def collate(rows):
        ...             import torch
        ...             (row,) = rows
        ...             return {key: torch.tensor([row[key]]) for key in ("input_ids", "labels")}
        ...         return collate
        >>> OneByOne().make_collator(None, Plan(()))([{"input_ids": [1, 2], "labels": [-100, 2]}])["labels"].tolist()
        [[-100, 2]]
        """

    @hookspec("0.1")
    def inject_noise(self, loaded: LoadedModel, plan: Plan) -> Removable:  # type: ignore[empty-body]
        """Noise for training. Asked of all plugins; removed before evaluation and before anything is saved.

        >>> from sftcore import LoadedModel, Plan, hookimpl, plugin
        >>> @plugin
        ... class Hiss:
        ...     '''Noise on the embeddings.'''
        ...     scale: float = 0.1
        ...     @hookimpl
        ...     def inject_noise(self, loaded, plan):
        ...         embed = loaded.model.get_input_embeddings()
        ...         def add(module, args, output):
        ...             return output + self.scale * (output.detach().clone().uniform_(-1, 1))
        ...         return embed.register_forward_hook(add)
        >>> Hiss(scale=0.2).scale
        0.2
        """

    @hookspec("0.1")
    def save_model(self, loaded: LoadedModel, folder: str) -> None:
        """Add to `folder`, after model and processor were saved there, what else is needed to load them again.

        >>> import pathlib, tempfile
        >>> from sftcore import LoadedModel, hookimpl, plugin
        >>> @plugin
        ... class Stamp:
        ...     '''Leaves a file beside the weights.'''
        ...     @hookimpl
        ...     def save_model(self, loaded, folder):
        ...         pathlib.Path(folder, "STAMP").write_text("saved")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Stamp().save_model(LoadedModel(None, None), folder)
        ...     pathlib.Path(folder, "STAMP").read_text()
        'saved'
        """


LIFECYCLE = tuple(name for name in vars(Hooks) if not name.startswith("_"))
"""All hooks, in the order in which a run calls them."""

BY_ITSELF = ("loads", "options_from")
"""Hooks that a plugin is asked by itself, before it is known which plugins the run has."""

ONE_ANSWER = tuple(
    name for name in LIFECYCLE if name not in BY_ITSELF and getattr(Hooks, name).sftcore_spec["firstresult"]
)
"""Hooks that exactly one plugin of a run may answer."""
