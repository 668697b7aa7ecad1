"""Models loaded by Unsloth, which replaces attention and kernels as it is imported and as it loads."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any

import attrs
from attrs.validators import ge

from sftcore import LoadedModel, LoadOptions, ModelRequest, Plan, Probe, Problem, hookimpl, plugin
from sftcore.plugin_api import adapter_folder
from sftcore_plugins.loaders._saved import load_processor

WHERE = "loader: unsloth"


@plugin
class Unsloth:
    """Models by unsloth.FastLanguageModel, with Unsloth's own attention and kernels; on a CPU its CPU mode.

    Unsloth must be imported before transformers. The command line does so; a Python script begins with
    `import unsloth`. `max_seq_length` is the longest row that the model will see.
    """

    max_seq_length: int = attrs.field(default=2048, validator=ge(1))
    load_in_4bit: bool = False
    full_finetuning: bool = False

    @hookimpl
    def claims(self) -> Iterable[str]:
        return ["model.load", "attention", "kernel.rope", "kernel.rms_norm", "kernel.mlp"]

    @hookimpl
    def check(self, plan: Plan, probe: Probe) -> Iterable[Problem]:
        yield from _import_order()
        yield from self._trainable(plan)
        longest = plan.settings.get("max_length")
        if longest and longest > self.max_seq_length:
            yield Problem(
                f"max_length is {longest}, and Unsloth prepares the model for {self.max_seq_length} tokens.",
                WHERE,
                f"Set loader: {{unsloth: {{max_seq_length: {longest}}}}}.",
            )
        given = [
            key for key in ("load_in_4bit", "load_in_8bit", "quantization_config") if plan.model.init_kwargs.get(key)
        ]
        if given or any(one.name == "qlora" for one in plan.selected("adapter")):
            yield Problem(
                f"Unsloth quantises in its own way, without {given[0] if given else 'the adapter qlora'}.",
                WHERE,
                "Use loader: {unsloth: {load_in_4bit: true}} with adapter: unsloth-lora.",
            )

    def _trainable(self, plan: Plan) -> Iterator[Problem]:
        has_adapter = bool(plan.selected("adapter")) or adapter_folder(plan.model) is not None
        if not has_adapter and not self.full_finetuning:
            yield Problem(
                "Unsloth loads a model for an adapter, and the run has none.",
                WHERE,
                "Add adapter: unsloth-lora, or set loader: {unsloth: {full_finetuning: true}}.",
            )
        if self.full_finetuning and (has_adapter or self.load_in_4bit):
            other = "an adapter" if has_adapter else "load_in_4bit"
            yield Problem(f"full_finetuning and {other} exclude each other.", WHERE, "Keep one of the two.")

    @hookimpl
    def prepare(self, plan: Plan) -> None:
        import unsloth  # noqa: F401

    @hookimpl
    def load_processor(self, request: ModelRequest) -> Any:
        # Unsloth's own tokenizer is transformers' with another pad token and length, which the run settles by itself
        return load_processor(request)

    @hookimpl
    def load_model(self, request: ModelRequest, options: LoadOptions) -> LoadedModel:
        from unsloth import FastLanguageModel

        model, _ = FastLanguageModel.from_pretrained(
            request.name,
            max_seq_length=self.max_seq_length,
            dtype=_dtype(request),
            load_in_4bit=self.load_in_4bit,
            full_finetuning=self.full_finetuning,
            # "unsloth" would replace torch's checkpointing for the whole process; the adapter asks for it by name
            use_gradient_checkpointing=False,
            revision=request.revision,
            trust_remote_code=request.trust_remote_code,
            **options.kwargs,
        )
        return LoadedModel(model, None, request, (_note(),))


def _import_order() -> Iterator[Problem]:
    order = list(sys.modules)  # a module moves to the end when its import is done, so a package's first part tells
    if "transformers" not in order:
        return
    first = next((at for at, name in enumerate(order) if name.startswith("unsloth.")), None)
    if first is None:
        yield Problem(
            "Unsloth must be imported before transformers, and transformers is imported already.",
            WHERE,
            "Make `import unsloth` the script's first line, or train from the command line (sftcore train).",
        )
    elif order.index("transformers") < first:
        yield Problem(
            "Unsloth was imported after transformers, and some of its kernels may be missing.",
            WHERE,
            "Make `import unsloth` the script's first line.",
            severity="warning",
        )


def _dtype(request: ModelRequest) -> Any:
    """The dtype that was asked for, else that of the checkpoint, as a torch dtype."""
    import torch
    from transformers import AutoConfig

    if request.dtype not in (None, "auto"):
        return getattr(torch, str(request.dtype))
    try:
        config = AutoConfig.from_pretrained(
            request.name, revision=request.revision, trust_remote_code=request.trust_remote_code
        )
    except (OSError, ValueError):  # a saved adapter; Unsloth reads its base's
        return None
    return config.get_text_config().dtype


def _note() -> str:
    import unsloth

    return f"loaded by Unsloth {unsloth.__version__} ({unsloth.DEVICE_TYPE})"
