"""Plugins that are each right or, by their option, wrong in one way, which the trials of a run have to find."""

from __future__ import annotations

from sftcore import AttentionBackend, LoadedModel, LossOutput, PatchReport, hookimpl, plugin


@plugin
class Batches:
    """Padded batches."""

    fault: str = ""

    @hookimpl
    def make_collator(self, processor, plan):
        def collate(rows):
            import torch

            from sftcore.plugin_api import pad_rows

            batch = pad_rows(rows, pad_token_id=0)
            labels = batch["labels"]
            if self.fault == "ignored":
                labels.fill_(-100)
            elif self.fault.startswith("shifted"):
                batch["labels"] = torch.roll(labels, int(self.fault[-2:]), dims=1)
            elif self.fault == "invented":
                batch["input_ids"][0, 1] = 5
            elif self.fault == "row lost":
                batch = {name: one[:-1] for name, one in batch.items()}
            elif self.fault == "raises" and len(rows[0]["input_ids"]) > 4:
                raise ZeroDivisionError("division\nby zero.")
            elif self.fault == "weights":
                batch.pop("weights", None)
            return batch

        return collate


@plugin
class Loss:
    """Negative log-likelihood by hand."""

    fault: str = ""

    @hookimpl
    def claims(self):
        return ["loss.cross_entropy"]

    @hookimpl
    def make_loss(self, loaded, plan):
        calls = []

        def loss(hidden, head, labels, weights, num_items):
            log_probs = head(hidden).float().log_softmax(-1)
            nll = -log_probs.gather(-1, labels[:, None])[:, 0]
            if weights is not None and self.fault != "weights":
                nll = nll * weights
            total = {"mean": nll.mean, "sum": nll.sum}.get(self.fault, lambda: nll.sum() / num_items)()
            if self.fault == "detached":
                total = total.detach()
            calls.append(1)
            if self.fault == "raises":
                raise KeyError("boom")
            if self.fault == "nan later" and len(calls) > 20:
                total = total * float("nan")
            return LossOutput(total, None, (log_probs.argmax(-1) == labels).sum())

        return loss


@plugin
class Attention:
    """torch's attention, scaled."""

    scale: float = 1.0
    exact: bool = True

    @hookimpl
    def claims(self):
        return ["attention"]

    @hookimpl
    def attention_backend(self, request):
        def register():
            from transformers import AttentionInterface
            from transformers.integrations.sdpa_attention import sdpa_attention_forward
            from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

            def attend(*args, **kwargs):
                found, weights = sdpa_attention_forward(*args, **kwargs)
                return found * self.scale, weights

            AttentionInterface.register(f"acme_{self.scale}", attend)
            AttentionMaskInterface.register(f"acme_{self.scale}", sdpa_mask)

        return AttentionBackend(f"acme_{self.scale}", exact=self.exact, register=register)


@plugin
class Kernel:
    """An activation in the place of the MLP's."""

    fault: str = ""

    @hookimpl
    def patch_kernels(self, loaded, plan):
        import torch

        class Activation(torch.nn.Module):
            def forward(this, x):
                y = x * x.sigmoid()
                return y * (1.5 if self.fault == "scaled" else 1.0)

        mlps = [layer.mlp for layer in loaded.model.model.layers]
        before = [mlp.act_fn for mlp in mlps]
        for mlp in mlps:
            mlp.act_fn = torch.nn.ReLU() if self.fault in ("relu", "no undo", "bad undo", "unsaid") else Activation()

        def undo():
            for mlp, own in zip(mlps, before, strict=True):
                mlp.act_fn = own

        if self.fault == "unsaid":
            return PatchReport()
        undoes = {"no undo": None, "bad undo": lambda: None}.get(self.fault, undo)
        return PatchReport((f"activation x{len(mlps)}",), undo=undoes, exact=self.fault != "declared")


@plugin
class Hiss:
    """Uniform noise on the embeddings while the model trains, as the tutorial has it."""

    fault: str = ""

    @hookimpl
    def inject_noise(self, loaded, plan):
        import torch

        def add(module, args, output):
            return output + 0.1 * torch.empty_like(output).uniform_(-1, 1)

        handle = loaded.model.get_input_embeddings().register_forward_hook(add)
        if self.fault == "stays":
            handle.remove = lambda: None
        return handle


@plugin
class Adapter:
    """Trains the biases that it adds to the norms."""

    fault: str = ""

    @hookimpl
    def claims(self):
        return ["adapter"]

    @hookimpl
    def wrap_model(self, loaded, plan):
        import torch

        loaded.model.requires_grad_(False)
        for layer in loaded.model.model.layers:
            norm = layer.input_layernorm
            norm.bias = torch.nn.Parameter(torch.zeros_like(norm.weight), requires_grad=self.fault != "frozen")
            if self.fault != "unused":
                norm.register_forward_hook(lambda module, args, output: output + module.bias)
            if self.fault == "half":
                layer.post_attention_layernorm.bias = torch.nn.Parameter(torch.zeros_like(norm.weight))
        return loaded


@plugin
class Loader:
    """transformers' own loading, which leaves something out."""

    fault: str = ""

    @hookimpl
    def claims(self):
        return ["model.load"]

    @hookimpl
    def load_processor(self, request):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(request.name, revision=request.revision)

    @hookimpl
    def load_model(self, request, options):
        from transformers import AutoModelForCausalLM

        asked = dict(options.kwargs)
        dtype = "bfloat16" if self.fault == "dtype" else request.dtype
        revision = None if self.fault == "revision" else request.revision
        if self.fault == "arguments":
            asked.clear()
        model = AutoModelForCausalLM.from_pretrained(request.name, dtype=dtype, revision=revision, **asked)
        return LoadedModel(model, None, request)
