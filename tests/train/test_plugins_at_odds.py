"""Plugins that would train on in silence, or of which another plugin was blamed: the trial names the one at fault."""

from __future__ import annotations

import pytest

from tests.train.plugin_code import ADAPTER, ATTENTION, HEAD, KERNEL, NOISE, SAVE, collate, hook

ATTEND = """def attend(module, query, key, value, mask, scaling=None, **kwargs):
    import torch
    shared = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(shared, 1), value.repeat_interleave(shared, 1)
    answer = torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
    {}
    return answer.transpose(1, 2).contiguous(), None
def register():
    from transformers import AttentionInterface
    AttentionInterface.register("{}", attend)
return AttentionBackend("{}", register=register)"""


def attention(line: str, name: str, implementation: str = "") -> str:
    return hook(ATTENTION, *ATTEND.format(line, name, implementation or name).splitlines())


MLPS = (
    "mlps = [layer.mlp for layer in loaded.model.model.layers]",
    "before = [mlp.act_fn for mlp in mlps]",
    "def put(function):",
    "    for mlp in mlps: del mlp.act_fn; mlp.act_fn = function",
    "def undo():",
    "    for mlp, own in zip(mlps, before): del mlp.act_fn; mlp.act_fn = own",
)


def kernel(*lines: str) -> str:
    return hook(KERNEL, *MLPS, *lines, "return PatchReport(('activation',), undo=undo)")


FROZEN = ("import torch", "model = loaded.model", "for one in model.parameters(): one.requires_grad_(False)")
EMBEDDINGS = ("emb = loaded.model.get_input_embeddings()",)
WRONG = {
    "attention gives nothing": ("attention", attention("return None", "acme_none"), "attention"),
    "attention gives NaN": ("attention", attention("answer = answer * float('nan')", "acme_nan"), "attention"),
    "attention is wrong in evaluation": (
        "attention", attention("answer = answer * (1 if module.training else 2)", "acme_eval"), "in evaluation mode"),
    "attention in the place of sdpa": ("attention", attention("answer = answer * 0", "sdpa"), "transformers' own"),
    "attention in the place of eager": ("attention", attention("answer = answer * 0", "eager"), "transformers' own"),
    "attention under another name": ("attention", attention("", "acme_this", "acme_that"), '"acme_that", which'),
    "attention without a name": ("attention", hook(ATTENTION, "return AttentionBackend('')"), 'implementation ""'),
    "kernel changes the dtype": ("kernel", kernel("put(lambda x: (x * x.sigmoid()).double())"), "raise"),
    "kernel is wrong in evaluation": (
        "kernel", kernel("put(lambda x: x * x.sigmoid() * (1 if mlps[0].training else 2))"), "in evaluation mode"),
    "kernel replaces a weight for good": (
        "kernel", kernel("import torch", "w = mlps[0].up_proj", "w.weight = torch.nn.Parameter(w.weight.detach())"),
        "another object"),
    "kernel replaces a weight while it is on": (
        "kernel", kernel("import torch", "w = mlps[0].up_proj", "own = w.weight",
                         "w.weight = torch.nn.Parameter(own.detach().clone())",
                         "def undo(): w.weight = own"), "another tensor is"),
    "kernel adds a weight": (
        "kernel", kernel("import torch", "loaded.model.more = torch.nn.Parameter(torch.ones(1))"), "the weight more"),
    "noise cuts the gradient": (
        "noise", hook(NOISE, *EMBEDDINGS, "return emb.register_forward_hook(lambda m, a, o: o.detach() + 0.1)"),
        "no gradient reaches"),
    "noise freezes what trains": (
        "noise", hook(NOISE, "loaded.model.requires_grad_(False)", "class H:", "    def remove(self): pass",
                      "return H()"), "does not train any more, once it is on"),
    "adapter removes what was saved": (
        "adapter", hook(ADAPTER, "return loaded") + hook(SAVE, "import shutil", "shutil.rmtree(folder)"),
        "empty or takes it away"),
    "adapter empties the weights": (
        "adapter", hook(ADAPTER, "return loaded") + hook(SAVE, "open(folder + '/model.safetensors', 'w').close()"),
        "its save_model leaves model.safetensors empty"),
    "adapter saves nothing of what trains": (
        "adapter", hook(ADAPTER, *FROZEN, "class Plus(torch.nn.Module):", "    def __init__(self, base):",
                        "        super().__init__()", "        self.base = base",
                        "        self.delta = torch.nn.Parameter(torch.zeros_like(base.weight))",
                        "    def forward(self, x): return self.base(x) + x @ self.delta.T",
                        "    def state_dict(self, *a, **k): return self.base.state_dict(*a, **k)",
                        "mlp = model.model.layers[0].mlp", "mlp.up_proj = Plus(mlp.up_proj)", "return loaded"),
        "are not in the model's state dict"),
    "adapter is not a model": (
        "adapter", hook(ADAPTER, "import torch", "import attrs", "class Bare(torch.nn.Module): pass",
                        "return attrs.evolve(loaded, model=Bare())"), 'Bare, has no "config"'),
    "adapter loses the processor": (
        "adapter", hook(ADAPTER, "return LoadedModel(loaded.model, None)"), "without the processor"),
    "adapter gives NaN": (
        "adapter", hook(ADAPTER, "loaded.model.model.norm.weight.data.fill_(float('nan'))", "return loaded"), "NaN"),
    "collator has no mask": ("collator", collate("batch['attention_mask'] = None", "return batch"), "as NoneType"),
    "collator counts in whole numbers": ("collator", collate("batch['num_tokens'] = 7", "return batch"), "as int"),
    "collator gives flat positions": (
        "collator", collate("import torch", "batch['position_ids'] = torch.arange(batch['labels'].shape[1])",
                            "return batch"), '"position_ids" of shape'),
    "collator lets an answer be seen": (
        "collator", collate("import torch", "rows, width = batch['labels'].shape",
                            "batch['attention_mask'] = torch.zeros(rows, 1, width, width)", "return batch"),
        "its attention_mask lets"),
    "collator has a mask of another width": (
        "collator", collate("batch['attention_mask'] = batch['attention_mask'][:, 1:]", "return batch"), "has shape"),
    "collator writes into earlier batches": (
        "collator", collate("seen = globals().setdefault('SEEN', [])", "seen.append(batch)",
                            "if len(seen) > 2: seen[-2]['labels'].fill_(-100)", "return batch"),
        "of a batch that it has given before"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_the_plugin_at_fault_is_named(train, name):
    kind, body, words = WRONG[name]
    code, said = train(kind, body, "per_device_train_batch_size=2")
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert code == 1
    assert f'{kind} "bad@acme_faulty' in line
    assert words in line
    assert "sftcore" not in line.partition("acme_faulty")[0]
    assert "Traceback" not in said


def test_an_attention_that_lets_padding_on_the_left_be_seen_is_named(train, write_distribution):
    shift = ("for i, row in enumerate(rows):", "    by = batch['labels'].shape[1] - len(row['input_ids'])",
             "    for one in batch.values(): one[i] = one[i].roll(by)", "return batch")  # fmt: skip
    left = f"{HEAD}@plugin\nclass Left:\n    'Padding before rows.'\n" + "".join(
        f"    {line}\n" for line in collate(*shift).splitlines()
    )
    write_distribution("acme_left", left, entry_points=b"[sftcore.collator]\nleft = acme_left:Left\n")
    causal = attention("", "acme_causal").replace("attn_mask=mask, is_causal=mask is None", "is_causal=True")
    code, said = train("attention", causal, "per_device_train_batch_size=2", "collator=left")
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert code == 1
    assert 'attention "bad@acme_faulty' in line
    assert "its logits differ by" in line


def test_what_was_in_the_place_of_an_attention_of_transformers_is_back(train):
    from transformers import AttentionInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    assert train("attention", attention("answer = answer * 0", "sdpa"))[0] == 1
    assert AttentionInterface()["sdpa"] is sdpa_attention_forward
    assert "eager" not in AttentionInterface().valid_keys()
