"""Plugins that declare or leave behind what they may not: one line names them, or the run says so."""

from __future__ import annotations

import pytest

from tests.train.plugin_code import ATTENTION, GOOD, KERNEL, MADE, NOISE, collate, hook
from tests.train.plugin_code import LOSS as MAKE_LOSS

FORMAT = hook(MADE, f"return lambda row: {GOOD}")
FLAT = hook(
    "make_collator(self, processor, plan)", "from sftcore.plugin_api import flatten_rows",
    "return lambda rows: flatten_rows(rows, pad_token_id=0)",
)  # fmt: skip
STAYS = "class H:", "    def remove(self): pass", "return H()"
POSITIONS = "import torch", "shape = batch['labels'].shape"


def patches(*lines: str, undo: str = "lambda: None") -> tuple[str, str]:
    report = f"return PatchReport(('a',), undo={undo})"
    return "kernel", hook(KERNEL, "import torch", "m = loaded.model", *lines, report)


def noise(*lines: str) -> tuple[str, str]:
    return "noise", hook(NOISE, "import torch", "m = loaded.model", *lines)


def batches(*lines: str) -> tuple[str, str]:
    return "collator", collate(*lines, "return batch")


def losses(*lines: str) -> tuple[str, str]:
    return "loss", hook(
        MAKE_LOSS, "def loss(hidden, head, labels, weights, num_items):", "    import torch",
        "    lp = head(hidden).float().log_softmax(-1)", "    nll = -lp.gather(-1, labels[:, None])[:, 0]",
        "    s, e, c = nll.sum() / num_items, torch.zeros(()), (lp.argmax(-1) == labels).sum()",
        *(f"    {line}" for line in lines), "return loss",
    )  # fmt: skip


def formats(more: str) -> tuple[str, str]:
    return "format", FORMAT + more


WRONG = {
    "attention: two answers": (
        ("attention", hook(ATTENTION, "asked = globals().setdefault('ASKED', [])", "asked.append(1)",
                           "return AttentionBackend('sdpa' if len(asked) < 3 else 'eager')")),
        'answered "sdpa" before, and answers "eager" now'),
    "collator: says flat, and pads": (
        ("collator", collate("return batch") + hook("flattens(self, plan)", "return True")),
        "answers True, and its collator lays two rows side by side in two"),
    "collator: says padded, and flattens": (
        ("collator", FLAT + hook("flattens(self, plan)", "return False")), "lays two rows end to end in one"),
    "collator: positions from 1": (
        batches(*POSITIONS, "batch['position_ids'] = torch.arange(1, shape[1] + 1).expand(shape)"),
        "its position_ids begin at 1"),
    "collator: positions far away": (
        batches(*POSITIONS, "batch['position_ids'] = torch.arange(5000, 5000 + shape[1]).expand(shape)"),
        "its position_ids begin at 5000"),
    "collator: positions as floats": (
        batches(*POSITIONS, "batch['position_ids'] = torch.arange(shape[1]).float().expand(shape)"),
        'returned "position_ids" as torch.float32; expected int64'),
    "collator: a mask of twos": (batches("batch['attention_mask'] *= 2"), "its attention_mask holds 2"),
    "collator: a mask below 0": (batches("batch['attention_mask'] *= -1"), "its attention_mask holds -1"),
    "kernel: the configuration": (
        patches("m.config.num_hidden_layers = 3"), "leaves the configuration's num_hidden_layers changed"),
    "kernel: the configuration, unsaid": (
        ("kernel", hook(KERNEL, "loaded.model.config.rms_norm_eps = 0.5", "return PatchReport()")),
        "it reports no replacement, and it left the configuration's rms_norm_eps changed"),
    "kernel: how it generates": (
        patches("m.generation_config.temperature = 0.3"), "the generation configuration's temperature"),
    "kernel: what trains": (
        patches("m.model.norm.weight.requires_grad_(False)"), "model.norm.weight, whose requires_grad is changed"),
    "kernel: a new buffer": (patches("m.register_buffer('more', torch.zeros(3))"), "leaves the buffer more changed"),
    "kernel: a buffer's numbers": (patches("m.model.rotary_emb.inv_freq.mul_(2)"), "rotary_emb.inv_freq changed"),
    "kernel: the template": (
        patches("loaded.processor.chat_template = 'x'"), "the tokenizer's chat_template changed"),
    "kernel: the vocabulary": (
        patches("loaded.processor.add_tokens(['zzz'])"), "the tokenizer's vocabulary changed"),
    "kernel: the run's settings": (
        patches("plan.settings['learning_rate'] = 7.0"), "the settings of a run are not a plugin's to change"),
    "check: the run's settings": (
        formats(hook("check(self, plan)", "plan.settings.update(learning_rate=5.0)")), "its check ("),
    "options_from: the run's settings": (
        formats(hook("options_from(self, settings)", "settings['learning_rate'] = 5.0")), "its options_from ("),
    "options_from: an option that it has not": (
        formats(hook("options_from(self, settings)", "return {'nope': 1}")), 'returned "nope", which is not an option'),
    "noise: the configuration": (
        noise("m.config.num_hidden_layers = 3", *STAYS), "the configuration's num_hidden_layers changed"),
    "noise: a weight that stays": (noise("m.more = torch.nn.Parameter(torch.zeros(2))", *STAYS), "more"),
    "noise: a layer's forward": (noise("m.model.norm.forward = lambda x: x", *STAYS), "model.norm.forward changed"),
    "noise: the tokenizer": (noise("loaded.processor.padding_side = 'left'", *STAYS), "the tokenizer's padding_side"),
    "loss: entropy of NaN": (losses("return LossOutput(s, e * float('nan'), c)"), "its entropy is nan"),
    "loss: entropy below 0": (losses("return LossOutput(s, e - 5, c)"), "its entropy is -5"),
    "loss: half a token": (losses("return LossOutput(s, None, c + 0.5)"), "tokens correct"),
    "loss: NaN for each token": (
        losses("return LossOutput(s, None, c, nll.detach() * float('nan'))"), "its per_token holds [nan]"),
    "loss: whole numbers for each token": (losses("return LossOutput(s, None, c, labels)"), "its per_token holds"),
    "loss: writes into what it is given": (
        losses("hidden.data.mul_(0)", "return LossOutput(s, None, c)"), "it writes into the hidden states"),
    "format: tokens without any": (
        ("format", hook(MADE, "return lambda row: Example(tokens=TokenizedRow([]))")), "no row is left"),
    "format: no examples at all": (("format", hook(MADE, "return lambda row: []")), "no row is left"),
    "format: images for a model of texts": (
        ("format", hook(MADE, "said = [Message('user', 'a'), Message('assistant', 'b')]",
                        "return lambda row: Example(messages=said, images=['none.png'])")),
        "the model reads only text"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_whoever_is_at_fault_is_named(train, name):
    (kind, body), words = WRONG[name]
    code, said = train(kind, body, "per_device_train_batch_size=2")
    (line,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert code == 1
    assert f'{kind} "bad@acme_faulty' in line
    assert words in line
    assert "Traceback" not in said
    assert said.rstrip().splitlines()[-1] == line


SAID = {
    "by chance": ("import random", "return lambda row: Example(text=str(random.random()))"),
    "by how often it was called": ("seen = []", "return lambda row: seen.append(1) or Example(text='a' * len(seen))"),
    "labels of the next tokens": ("return lambda row: Example(tokens=TokenizedRow([5, 6, 7], [6, 7, -100]))",),
}


@pytest.mark.parametrize("name", SAID)
def test_what_is_odd_about_a_row_is_told(train, name):
    code, said = train("format", hook(MADE, *SAID[name]))
    words = "labels that are not the tokens" if "labels" in name else "in another way the second time"
    (line,) = [line for line in said.splitlines() if words in line]
    assert code == 0
    assert line.startswith('warning: format "bad@acme_faulty')


RIGHT = {
    "a collator with positions": batches(
        *POSITIONS, "batch['position_ids'] = torch.arange(shape[1]).expand(shape)"),
    "a collator with a mask of truths": batches("batch['attention_mask'] = batch['attention_mask'].bool()"),
    "a kernel that takes its configuration off": patches(
        "before, m.config.hidden_act = m.config.hidden_act, 'relu'",
        undo="lambda: setattr(m.config, 'hidden_act', before)"),
    "a loss of each token": losses("return LossOutput(s, -(lp.exp() * lp).sum().detach(), c, nll.detach())"),
    "a format that takes its options": formats(hook("options_from(self, settings)", "return dict(settings) and {}")),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_declared_rightly_trains(train, name):
    code, said = train(*RIGHT[name], "per_device_train_batch_size=2")
    assert code == 0, said
