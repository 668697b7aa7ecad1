"""The code of plugins, to be put into a class that `sftcore train` is given."""

from __future__ import annotations

HEAD = "from sftcore import AttentionBackend, Example, LoadedModel, LoadOptions, LossOutput, Message, PatchReport\n"
HEAD += "from sftcore import Problem, TokenizedRow, TokenLoss, hookimpl, plugin\n"
GOOD = "Example(messages=[Message('user', row['q']), Message('assistant', row['a'])])"
MADE = "make_formatter(self, columns)"
COLLATE = "make_collator(self, processor, plan)"
LOSS = "make_loss(self, loaded, plan)"
NOISE = "inject_noise(self, loaded, plan)"
KERNEL = "patch_kernels(self, loaded, plan)"
LOADER = "load_model(self, request, options)"
ADAPTER = "wrap_model(self, loaded, plan)"
ATTENTION = "attention_backend(self, request)"
PROCESSOR = """@hookimpl
def load_processor(self, request):
    from transformers import AutoTokenizer
    return AutoTokenizer.from_pretrained(request.name)
"""
SAVE = "save_model(self, loaded, folder)"
BATCH = "from sftcore.plugin_api import pad_rows; batch = pad_rows(rows, pad_token_id=0)"
OUTPUT = "s = head(hidden).float().log_softmax(-1).sum(); n = labels.sum()"


def hook(signature: str, *lines: str) -> str:
    return f"@hookimpl\ndef {signature}:\n" + "".join(f"    {line}\n" for line in lines)


def collate(*lines: str) -> str:
    return hook(COLLATE, "def collate(rows):", f"    {BATCH}", *(f"    {line}" for line in lines), "return collate")


def loss(*lines: str) -> str:
    head = "def loss(hidden, head, labels, weights, num_items):"
    return hook(LOSS, head, f"    {OUTPUT}", *(f"    {line}" for line in lines), "return loss")
