"""Plugins of each kind that are wrong in one way, which the classes of tests have to find."""

from __future__ import annotations

import itertools
from typing import Any

import attrs

from sftcore import AttentionBackend, Example, LoadedModel, Message, PatchReport, TokenLoss, hookimpl, plugin

COUNTED = itertools.count()


# --- Formats ----------------------------------------------------------------------------------------------------------
def read(row) -> Example:
    return Example(prompt=row["q"], completion=row["a"])


def answering(function):
    """A format that reads rows by this function."""

    @plugin
    class Format:
        """Rows with q and a."""

        @hookimpl
        def make_formatter(self, columns):
            return function

    return Format


def none(row):
    return None


def counted(row):
    return Example(prompt=row["q"], completion=f"{row['a']} {next(COUNTED)}")


def emptied(row):
    return Example(prompt=row["q"], completion=row.pop("a"))


def prompt_trained(row):
    return Example(text=row["q"] + row["a"])


def turned(row):
    return Example(messages=[Message("assistant", row["q"]), Message("user", row["a"])])


def raising(row):
    return Example(prompt=row["Q"], completion=row["a"])


@plugin
class Greedy:
    """Detects everything."""

    @hookimpl
    def detects(self, columns):
        return True

    @hookimpl
    def make_formatter(self, columns):
        return read


@plugin
class Unmarked:
    """A format without a hook."""

    def make_formatter(self, columns):
        return read


@plugin
class WrongDefault:
    """An option that refuses its own default."""

    column: int = "q"

    @hookimpl
    def make_formatter(self, columns):
        return read


@plugin
class Unpicklable:
    """Holds what cannot go to another process."""

    held: Any = attrs.field(init=False, factory=lambda: lambda: None)

    @hookimpl
    def make_formatter(self, columns):
        return read


@plugin
class Mumbling:
    """x"""

    @hookimpl
    def make_formatter(self, columns):
        return read


@plugin
class Fickle:
    """Checks differently each time."""

    @hookimpl
    def check(self, plan, probe):
        from sftcore import Problem

        yield Problem(f"problem {next(COUNTED)}.", severity="warning")

    @hookimpl
    def make_formatter(self, columns):
        return read


# --- Collators --------------------------------------------------------------------------------------------------------
class Collate:
    """Pads, and then changes the batch."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __call__(self, rows):
        from sftcore.plugin_api import pad_rows

        batch = pad_rows(rows, pad_token_id=0)
        if self.how == "hidden":
            batch["labels"] = batch["labels"].fill_(-100)
        if self.how == "shifted":
            batch["labels"] = batch["labels"].roll(-1, dims=1)
        if self.how == "eaten":
            rows.pop()
        return batch


@plugin
class BadCollator:
    """Changes a batch in a way that `how` names."""

    how: str = "hidden"
    says: bool = False

    @hookimpl
    def flattens(self):
        return self.says

    @hookimpl
    def make_collator(self, processor):
        found = Collate(self.how)
        return (lambda rows: found(rows)) if self.how == "closure" else found


# --- What changes the model -------------------------------------------------------------------------------------------
@plugin
class BadLoss:
    """A loss that is wrong in a way that `how` names."""

    how: str = "mean"

    @hookimpl
    def claims(self):
        return ["loss.cross_entropy"]

    @hookimpl
    def make_loss(self):
        if self.how == "shape":
            return TokenLoss(lambda log_probs: -log_probs.mean())

        def loss(hidden, head, labels, weights, num_items):
            from torch.nn.functional import cross_entropy

            from sftcore import LossOutput

            logits = head(hidden).float()
            found = cross_entropy(logits, labels, reduction="mean" if self.how == "mean" else "sum")
            found = found if self.how == "mean" else found / num_items
            found = found.detach() if self.how == "detached" else found
            return LossOutput(found, None, (logits.argmax(-1) == labels).sum())

        return loss


@plugin
class Scaled:
    """Attention whose output is halved."""

    @hookimpl
    def claims(self):
        return ["attention"]

    @hookimpl
    def attention_backend(self):
        return AttentionBackend("scaled_of_the_tests", register=_register)


def _register() -> None:
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    def attend(*args, **kwargs):
        found, weights = sdpa_attention_forward(*args, **kwargs)
        return found * 0.5, weights

    AttentionInterface.register("scaled_of_the_tests", attend)
    AttentionMaskInterface.register("scaled_of_the_tests", sdpa_mask)


@plugin
class CausalAlone:
    """Attention without a mask, which is right where nothing stands before a document."""

    @hookimpl
    def claims(self):
        return ["attention"]

    @hookimpl
    def attention_backend(self):
        return AttentionBackend("causal_of_the_tests", register=_register_causal)


def _register_causal() -> None:
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register("causal_of_the_tests", sdpa_attention_forward)
    AttentionMaskInterface.register("causal_of_the_tests", lambda *args, **kwargs: None)


@plugin
class BadKernel:
    """An MLP times 1.01, or one that is not put back, or a configuration that is not."""

    factor: float = 1.01
    undone: bool = True
    cached: int = 0

    @hookimpl
    def patch_kernels(self, loaded):
        if self.cached:
            loaded.model.config.max_position_embeddings = self.cached
        mlp = loaded.model.model.layers[0].mlp
        plain = mlp.forward
        mlp.forward = lambda hidden: plain(hidden) * self.factor

        def undo():
            if self.undone:
                del mlp.forward
            else:
                mlp.forward = lambda hidden: plain(hidden) * 1.5

        return PatchReport(("the MLP of layer 0",), undo=undo)


@plugin
class BadNoise:
    """Noise that stays, or that is none."""

    how: str = "stays"

    @hookimpl
    def inject_noise(self, loaded):
        import torch

        embeddings = loaded.model.get_input_embeddings()
        how = self.how

        class Handle:
            def remove(self):
                if how == "silent":
                    handle.remove()

        def add(module, args, output):
            return output + (0.0 if how == "silent" else torch.randn_like(output))

        handle = embeddings.register_forward_hook(add)
        return Handle()


@plugin
class BadAdapter:
    """Trains nothing, or what the model does not use."""

    how: str = "nothing"

    @hookimpl
    def wrap_model(self, loaded):
        import torch

        loaded.model.requires_grad_(False)
        if self.how == "dropped":
            loaded.model.requires_grad_(True)
            loaded.model.model.layers = loaded.model.model.layers[:1]
        if self.how == "around":
            loaded.model.model.norm.requires_grad_(True)
            loaded.model.model.layers[1].forward = lambda hidden, *args, **options: hidden
        if self.how == "unused":
            loaded.model.register_parameter("extra", torch.nn.Parameter(torch.zeros(3)))
        if self.how == "unsaved":
            width = loaded.model.config.hidden_size
            loaded.model.model.norm.shift = torch.nn.Parameter(torch.zeros(width))
            loaded.model.model.norm.register_forward_hook(lambda module, args, output: output + module.shift)
        return loaded


@plugin
class BadLoader:
    """Leaves out what it was asked for."""

    leaves_out: str = "dtype"

    @hookimpl
    def claims(self):
        return ["model.load"]

    @hookimpl
    def load_processor(self, request):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(request.name)

    @hookimpl
    def load_model(self, request, options):
        from transformers import AutoModelForCausalLM

        wanted = {"dtype": request.dtype, **options.kwargs}
        wanted.pop({"dtype": "dtype", "arguments": "attn_implementation"}.get(self.leaves_out, ""), None)
        model = AutoModelForCausalLM.from_pretrained(request.name, **wanted)
        if self.leaves_out == "weights":
            model.init_weights()
            model.lm_head.weight.data.zero_()
        return LoadedModel(model, None) if self.leaves_out == "request" else LoadedModel(model, None, request)
