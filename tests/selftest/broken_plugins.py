"""Plugins that are each wrong in one way, which the self-test has to find."""

from __future__ import annotations

from sftcore import AttentionBackend, LoadedModel, LossOutput, PatchReport, hookimpl, plugin


@plugin
class Leaky:
    """Attention that is causal through the whole row, wherever documents begin."""

    @hookimpl
    def claims(self):
        return ["attention"]

    @hookimpl
    def attention_backend(self, request):
        from transformers import AttentionInterface
        from transformers.integrations.sdpa_attention import sdpa_attention_forward
        from transformers.masking_utils import AttentionMaskInterface

        def attend(module, query, key, value, attention_mask, **kwargs):
            return sdpa_attention_forward(module, query, key, value, None, **kwargs)

        AttentionInterface.register("leaky_sdpa", attend)
        AttentionMaskInterface.register("leaky_sdpa", lambda *args, **kwargs: None)
        return AttentionBackend("leaky_sdpa")


@plugin
class MeanOfBatch:
    """A loss that divides by the tokens of the micro-batch, not by those of the step."""

    @hookimpl
    def claims(self):
        return ["loss.cross_entropy"]

    @hookimpl
    def make_loss(self, loaded, plan):
        def loss(hidden, head, labels, weights, num_items):
            import torch

            found = torch.nn.functional.cross_entropy(head(hidden), labels)
            return LossOutput(found, None, labels.new_zeros(()))

        return loss


@plugin
class Rounding:
    """A kernel that multiplies what an MLP gives by 1.001; `undo` takes it off again."""

    undo: bool = True
    modules: int = 1

    @hookimpl
    def patch_kernels(self, loaded, plan):
        if not self.modules:
            return PatchReport(skipped={"mlp": "nobody asked"})
        mlp = loaded.model.model.layers[0].mlp
        plain = mlp.forward
        mlp.forward = lambda x: plain(x) * 1.001

        def undo():
            mlp.forward = plain

        return PatchReport(("the MLP of layer 0",), undo=undo if self.undo else None)


@plugin
class FirstLabels:
    """A collator of rows end to end that lets the first label of each document through."""

    @hookimpl
    def make_collator(self, processor, plan):
        def collate(rows):
            import torch

            tokens = {key: torch.tensor([[x for row in rows for x in row[key]]]) for key in ("input_ids", "labels")}
            positions = [i for row in rows for i in range(len(row["input_ids"]))]
            return {**tokens, "position_ids": torch.tensor([positions])}

        return collate


@plugin
class Sticky:
    """Noise that changes the weights it is added to."""

    @hookimpl
    def inject_noise(self, loaded, plan):
        weight = loaded.model.get_input_embeddings().weight
        weight.data.add_(0.01)

        class Handle:
            def remove(self):
                weight.data.sub_(0.01)

        return Handle()


@plugin
class Replacing:
    """A loader with an MLP of its own, `factor` times the model's."""

    factor: float = 1.0

    @hookimpl
    def claims(self):
        return ["model.load", "kernel.mlp"]

    @hookimpl
    def load_processor(self, request):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(request.name)

    @hookimpl
    def load_model(self, request, options):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(request.name, dtype=request.dtype)
        mlp = model.model.layers[0].mlp
        plain = mlp.forward
        mlp.forward = lambda x: plain(x) * self.factor
        return LoadedModel(model, None, request)
