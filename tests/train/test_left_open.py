"""What a run leaves open, attention and layout, is settled at its first step and changes nothing that people see."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PromptTuningConfig
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    TrainerCallback,
)

from sftcore import ConflictError, ModelError, SFTTrainer
from tests.conftest import make_llama
from tests.train.test_trainer import config, losses

ROWS = [{"prompt": f"say {i}:", "completion": " hello" * (1 + i % 5)} for i in range(12)]
PADDED = {"padding_free": False, "plugins": {"attention": "sdpa"}}
TIMES = ("runtime", "per_second", "total_flos")
"""Parts of the names of what a log says of time, and of the size of padded batches."""

STRANGER = '''
from sftcore import AttentionBackend, hookimpl, plugin

CALLS = []

def register():
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask
    import torch

    def attend(module, query, key, value, attention_mask, scaling=None, cu_seq_lens_q=None, **kwargs):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        length = query.shape[2]
        mask = torch.ones(length, length, dtype=torch.bool).tril()
        if cu_seq_lens_q is not None:
            CALLS.append(len(cu_seq_lens_q) - 1)
            place = torch.bucketize(torch.arange(length), cu_seq_lens_q[1:].long(), right=True)
            {apart}
        if attention_mask is not None and attention_mask.dtype == torch.bool and attention_mask.shape[-1] == length:
            mask = mask & attention_mask
        scores = (query @ key.transpose(2, 3)) * scaling * {scale}
        weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
        return (weights @ value).transpose(1, 2).contiguous(), None

    AttentionInterface.register("acme_attention", attend)
    AttentionMaskInterface.register("acme_attention", lambda *args, **kwargs: None)

@plugin
class Acme:
    """An attention of somebody else."""

    @hookimpl
    def claims(self):
        return ["attention"]

    @hookimpl
    def attention_backend(self, request):
        return AttentionBackend("acme_attention", boundaries=True, padding={padding}, register=register,
                                deterministic=False, **{declared})
'''
APART = "mask = mask & (place[:, None] == place[None, :])"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("model")
    make_llama(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def stranger(write_distribution):
    def write(module, *, apart=APART, scale=1.0, padding=True, **declared):
        code = STRANGER.replace("{apart}", apart).replace("{scale}", str(scale))
        code = code.replace("{padding}", str(padding)).replace("{declared}", repr(declared))
        write_distribution(module, code, entry_points=f"[sftcore.attention]\nacme = {module}:Acme\n".encode())

    return write


def made(tmp_path, model, rows=ROWS, kind=SFTTrainer, **fields) -> SFTTrainer:
    given = {name: fields.pop(name) for name in ("processing_class", "compute_loss_func", "compute_metrics",
             "peft_config", "callbacks") if name in fields}  # fmt: skip
    args = config(tmp_path, **{"per_device_train_batch_size": 4, "logging_steps": 1, **fields})
    data = rows if isinstance(rows, IterableDataset) else Dataset.from_list(rows)
    return kind(model, args, train_dataset=data, eval_dataset=Dataset.from_list(ROWS), **given)


def ran(*args, **fields) -> SFTTrainer:
    trainer = made(*args, **fields)
    trainer.train()
    return trainer


def attention_of(trainer) -> str:
    return trainer.accelerator.unwrap_model(trainer.model).config._attn_implementation


def said(trainer) -> str:
    return "\n".join(trainer.loaded.notes)


def bound(trainer) -> dict[str, str]:
    return {one.entry.kind: one.entry.name for one in trainer.setup.plugins.bound}


class Batches(TrainerCallback):
    """Remembers which arguments the model is called with in training."""

    def __init__(self):
        self.seen = []

    def on_train_begin(self, args, state, control, model, **_):
        model.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module, args, kwargs):
        if module.training:
            self.seen.append({key: tuple(value.shape) for key, value in kwargs.items() if hasattr(value, "shape")})


# --- Equal to padded rows -------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "fields",
    [
        {"eval_strategy": "steps", "eval_steps": 2},
        {"gradient_accumulation_steps": 2, "train_sampling_strategy": "group_by_length", "max_length": 16},
        {"gradient_checkpointing": True, "peft_config": LoraConfig(r=4, task_type="CAUSAL_LM")},
        {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
    ],
    ids=["evaluated", "grouped and cut", "lora", "workers"],
)
def test_a_run_that_asks_for_nothing_logs_what_a_padded_run_logs(tmp_path, folder, fields):
    torch.manual_seed(0)
    fast = ran(tmp_path, folder, **fields)
    torch.manual_seed(0)
    padded = ran(tmp_path, folder, **fields, **PADDED)
    assert (fast.padding_free, padded.padding_free) == (True, False)
    assert fast.shared_rows.proof.way.name == "boundaries"
    for ours, theirs in zip(fast.state.log_history, padded.state.log_history, strict=True):
        assert ours.keys() == theirs.keys()
        for name in ours:
            if not any(part in name for part in TIMES):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-5), name
    for ours, theirs in zip(fast.model.parameters(), padded.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_it_is_really_laid_end_to_end_and_says_so(tmp_path, folder):
    batches = Batches()
    trainer = ran(tmp_path, folder, callbacks=[batches])
    assert all("attention_mask" not in batch and batch["input_ids"][0] == 1 for batch in batches.seen)
    assert all("cu_seq_lens_q" in batch for batch in batches.seen)
    assert attention_of(trainer) == "sftcore_varlen"
    assert "attention varlen: the fastest of varlen, sdpa, eager on cpu" in trainer.loaded.notes
    assert "rows end to end, without padding" in trainer.loaded.notes
    assert bound(trainer)["attention"] == "varlen"
    assert bound(trainer)["collator"] == "flattened"


def test_an_evaluation_before_training_has_the_loss_of_padded_rows(tmp_path, folder):
    fast, padded = made(tmp_path, folder), made(tmp_path, folder, **PADDED)
    first = fast.evaluate()["eval_loss"]
    assert first == pytest.approx(padded.evaluate()["eval_loss"], rel=1e-5)
    assert fast.evaluate()["eval_loss"] == pytest.approx(first, rel=1e-5)  # the second time the layout is settled


def test_a_stream_trains_end_to_end(tmp_path, folder):
    stream = IterableDataset.from_generator(lambda: iter(ROWS * 3))
    fast, padded = ran(tmp_path, folder, stream), ran(tmp_path, folder, stream, **PADDED)
    assert fast.padding_free
    assert losses(fast) == pytest.approx(losses(padded), rel=1e-5)


def test_metrics_and_predictions_are_by_row(tmp_path, folder):
    shapes = []

    def compute(found):
        shapes.append((found.predictions.shape, found.label_ids.shape))
        return {}

    trainer = ran(tmp_path, folder, compute_metrics=compute, per_device_eval_batch_size=4)
    assert trainer.padding_free
    trainer.evaluate()
    predicted = trainer.predict(trainer.eval_dataset)
    for predictions, labels in (*shapes, (predicted.predictions.shape, predicted.label_ids.shape)):
        assert predictions[:2] == labels
        assert labels[0] == len(ROWS)
    padded = made(tmp_path, trainer.model, processing_class=trainer.processing_class, **PADDED)
    wanted = padded.predict(padded.eval_dataset)
    assert (wanted.label_ids == predicted.label_ids).all()
    mask = wanted.label_ids != -100
    torch.testing.assert_close(
        torch.tensor(predicted.predictions[mask]), torch.tensor(wanted.predictions[mask]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("eval_packing", [True, False])
def test_metrics_of_a_packed_run_are_by_row_too(tmp_path, folder, eval_packing):
    def compute(found):
        shapes.append(found.predictions.shape[:2])
        return {"mean": float(found.predictions[found.label_ids != -100].mean())}

    shapes, found = [], []
    fields = {"packing": True, "max_length": 32, "eval_packing": eval_packing, "compute_metrics": compute}
    for attention in ("auto", "sdpa"):
        trainer = ran(tmp_path, folder, plugins={"attention": attention}, **fields)
        assert trainer.padding_free is (attention == "auto")
        found.append(trainer.evaluate())
    assert shapes[0] == shapes[1] == (len(trainer.eval_dataset), shapes[0][1])
    for name in ("eval_loss", "eval_mean"):
        assert found[0][name] == pytest.approx(found[1][name], rel=1e-4)


def test_the_collator_that_users_see_pads(tmp_path, folder):
    trainer = made(tmp_path, folder)
    rows = [trainer.train_dataset[0], trainer.train_dataset[4]]
    before = trainer.data_collator(rows)
    trainer.train()
    assert trainer.padding_free
    after = trainer.data_collator(rows)
    assert before["attention_mask"].shape == after["attention_mask"].shape == (2, before["input_ids"].shape[1])


def test_a_checkpoint_resumes_although_the_attention_was_left_open(tmp_path, folder):
    def trainer():
        return made(tmp_path, folder, save_strategy="steps", save_steps=2)

    whole = trainer()
    whole.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))
    for ours, theirs in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


# --- Padded where somebody reads batches row by row -----------------------------------------------------------------
class OwnLoss(SFTTrainer):
    """A trainer of the user's own, as scripts have them."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        assert inputs["attention_mask"].shape == inputs["labels"].shape
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        assert outputs.logits.shape[:2] == inputs["labels"].shape
        return (loss, outputs) if return_outputs else loss


def mean_by_row(outputs, labels, num_items_in_batch=None):
    losses = torch.nn.functional.cross_entropy(
        outputs.logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100
    )
    return (losses.sum(-1) / (labels[:, 1:] != -100).sum(-1)).mean()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"kind": OwnLoss}, "OwnLoss.compute_loss reads them row by row"),
        ({"compute_loss_func": mean_by_row}, "compute_loss_func reads them row by row"),
        ({"pad_to_multiple_of": 8}, "pad_to_multiple_of is 8"),
        ({"include_num_input_tokens_seen": "all"}, "include_num_input_tokens_seen is all"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches cuts batches"),
        ({"plugins": {"attention": "sdpa"}}, "the attention does not keep documents apart by their boundaries"),
    ],
)
def test_rows_stay_padded_and_the_run_says_why(tmp_path, folder, fields, reason):
    batches = Batches()
    trainer = ran(tmp_path, folder, callbacks=[batches], **fields)
    assert not trainer.padding_free
    assert all("attention_mask" in batch for batch in batches.seen)
    assert f"rows are padded: {reason}" in said(trainer)


def test_a_method_that_is_set_on_the_trainer_sees_padded_rows(tmp_path, folder):
    trainer = made(tmp_path, folder)
    own, seen = trainer.compute_loss, []

    def watched(model, inputs, *args, **kwargs):
        seen.append(inputs["attention_mask"].shape)
        return own(model, inputs, *args, **kwargs)

    trainer.compute_loss = watched
    trainer.train()
    assert len(seen) == 4
    assert "rows are padded: compute_loss reads them row by row" in trainer.loaded.notes


def test_label_smoothing_keeps_padded_rows(tmp_path, folder):
    with pytest.warns(FutureWarning, match="label_smoothing_factor"):
        trainer = made(tmp_path, folder, label_smoothing_factor=0.1)
    trainer.train()
    assert not trainer.padding_free


def test_a_users_collator_is_the_one_that_is_called(tmp_path, folder):
    calls = []

    def collate(rows):
        calls.append(len(rows))
        ids = torch.tensor([row["input_ids"][:4] for row in rows])
        return {"input_ids": ids, "labels": ids.clone(), "attention_mask": torch.ones_like(ids)}

    args = config(tmp_path)
    trainer = SFTTrainer(folder, args, data_collator=collate, train_dataset=Dataset.from_list(ROWS))
    trainer.train()
    assert trainer.data_collator is collate
    assert calls


def test_a_collator_set_on_the_trainer_is_the_one_that_is_called(tmp_path, folder):
    trainer, calls = made(tmp_path, folder), []
    plain = trainer.data_collator
    trainer.data_collator = lambda rows: calls.append(len(rows)) or plain(rows)
    trainer.train()
    assert calls


# --- Models that need their rows padded -----------------------------------------------------------------------------
SMALL = {"hidden_size": 32}
CONVOLVED = {
    "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
    "layer_types": ["conv", "full_attention"], **SMALL,
}  # fmt: skip


@pytest.mark.parametrize(
    ("make", "attention"),
    [
        (lambda v: BloomForCausalLM(BloomConfig(vocab_size=v, n_layer=1, n_head=4, **SMALL)), "eager"),
        (lambda v: MambaForCausalLM(MambaConfig(vocab_size=v, num_hidden_layers=2, **SMALL)), "eager"),
        (lambda v: Lfm2ForCausalLM(Lfm2Config(vocab_size=v, **CONVOLVED)), "sdpa"),
    ],
    ids=["computes its own attention", "state space", "convolutions beside attention"],
)  # fmt: skip
@pytest.mark.parametrize("act", ["train", "evaluate"])
def test_a_model_that_cannot_keep_documents_apart_goes_on_padded(tmp_path, tokenizer, make, attention, act):
    torch.manual_seed(0)
    make(len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    trainer = made(tmp_path, str(tmp_path / "model"))
    getattr(trainer, act)()
    assert (trainer.padding_free, attention_of(trainer), trainer.shared_rows.proof) == (False, attention, None)
    assert f"attention {attention}, as others failed: varlen with rows end to end: " in said(trainer)
    assert "rows are padded" in trainer.loaded.notes
    assert bound(trainer)["collator"] == "padded"


def test_prompt_learning_keeps_padded_rows(tmp_path, folder):
    tuned = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    fields = {"optim": "sgd", "learning_rate": 0.1}
    torch.manual_seed(0)
    trainer = ran(tmp_path, folder, peft_config=tuned, **fields)
    assert not trainer.padding_free
    assert "puts virtual tokens before a row" in said(trainer)
    tuned = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    torch.manual_seed(0)
    padded = ran(tmp_path, folder, peft_config=tuned, **fields, **PADDED)
    assert losses(trainer) == pytest.approx(losses(padded), rel=1e-5)


def test_a_chosen_attention_stays_where_its_proof_fails(tmp_path, tokenizer):
    Lfm2ForCausalLM(Lfm2Config(vocab_size=len(tokenizer), **CONVOLVED)).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    trainer = ran(tmp_path, str(tmp_path / "m"), plugins={"attention": "varlen"})
    assert (trainer.padding_free, attention_of(trainer)) == (False, "sftcore_varlen")
    assert "rows are padded: it with rows end to end: Lfm2ForCausalLM does not keep documents" in said(trainer)


# --- What users give is never replaced ------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_a_named_attention_is_kept(tmp_path, folder, name):
    for fields in ({"plugins": {"attention": name}}, {"model_init_kwargs": {"attn_implementation": name}}):
        trainer = ran(tmp_path, folder, **fields)
        assert (attention_of(trainer), trainer.padding_free) == (name, False)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_layout_that_is_asked_for_is_the_one(tmp_path, folder, wanted):
    batches = Batches()
    trainer = ran(tmp_path, folder, padding_free=wanted, callbacks=[batches])
    assert trainer.padding_free is wanted
    assert all(("attention_mask" in batch) is not wanted for batch in batches.seen)
    assert not any(note.startswith("rows ") for note in trainer.loaded.notes)
    assert attention_of(trainer) == ("sftcore_varlen" if wanted else "sdpa")


def test_padding_free_that_was_asked_for_and_fails_stops_the_run(tmp_path, tokenizer):
    model = BloomForCausalLM(BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=1, n_head=4))
    trainer = made(tmp_path, model, processing_class=tokenizer, padding_free=True)
    with pytest.raises(ModelError, match="does not keep documents that share a row apart"):
        trainer.train()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sdpa", "eager"])
def test_a_ready_models_attention_is_kept(tmp_path, tokenizer, llama, name):
    llama.set_attn_implementation(name)
    trainer = ran(tmp_path, llama, processing_class=tokenizer)
    assert (attention_of(trainer), trainer.padding_free, bound(trainer)["attention"]) == (name, False, name)


def test_a_ready_model_gets_the_fastest_if_auto_is_written(tmp_path, tokenizer, llama):
    trainer = ran(tmp_path, llama, processing_class=tokenizer, plugins={"attention": "auto"})
    assert (attention_of(trainer), trainer.padding_free) == ("sftcore_varlen", True)


def test_an_attention_that_takes_no_padding_gets_none(tmp_path, folder):
    trainer = ran(tmp_path, folder, plugins={"attention": "flash-1"})
    assert (attention_of(trainer), trainer.padding_free) == ("sftcore_fa1", True)
    assert trainer.evaluate()["eval_loss"] > 0


def test_own_collators_exclude_padding_free_as_before(tmp_path, folder):
    with pytest.raises(ConflictError, match="padding_free is a collator"):
        SFTTrainer(folder, config(tmp_path, padding_free=True), data_collator=lambda rows: {},
                   train_dataset=Dataset.from_list(ROWS))  # fmt: skip


# --- A stranger's attention -----------------------------------------------------------------------------------------
def test_a_strangers_attention_that_says_it_is_faster_is_picked(tmp_path, folder, stranger):
    stranger("acme_fast", speed={"cpu": 50.0})
    trainer = ran(tmp_path, folder)
    assert attention_of(trainer) == "acme_attention"
    assert "attention acme: the fastest of acme, varlen, sdpa, eager on cpu" in trainer.loaded.notes
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert {"acme", "flattened"} <= {one["name"] for one in manifest["plugins"]}
    padded = ran(tmp_path, folder, block=["attention:acme"], **PADDED)
    assert losses(trainer) == pytest.approx(losses(padded), rel=1e-4)


@pytest.mark.parametrize("declared", [{}, {"speed": {"cuda": 50.0}}, {"speed": 1.0}])
def test_a_strangers_attention_that_is_not_faster_here_is_not(tmp_path, folder, stranger, declared):
    stranger(f"acme_slow_{len(str(declared))}", **declared)
    assert attention_of(ran(tmp_path, folder)) == "sftcore_varlen"


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ({"apart": "pass"}, "other documents change a document's logits by"),
        ({"scale": 2.0}, "logits differ by"),
        ({"devices": ("cuda",)}, ""),
        ({"dtypes": ("bfloat16",)}, ""),
    ],
    ids=["leaks", "computes something else", "device", "dtype"],
)
def test_an_attention_that_fails_makes_room_for_the_next(tmp_path, folder, stranger, wrong, fault):
    stranger(f"acme_wrong_{abs(hash(str(wrong)))}", speed=50.0, **wrong)
    trainer = ran(tmp_path, folder)
    assert (attention_of(trainer), trainer.padding_free) == ("sftcore_varlen", True)
    if fault:
        assert "attention varlen, as others failed: acme with rows end to end: " in said(trainer)
        assert fault in said(trainer)
    padded = ran(tmp_path, folder, **PADDED)
    assert losses(trainer) == pytest.approx(losses(padded), rel=1e-5)


# --- Masks ----------------------------------------------------------------------------------------------------------
class Largest(TorchDispatchMode):
    """The most elements of any tensor that has no floating-point numbers, as masks have none."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for one in found if isinstance(found, (list, tuple)) else [found]:
            if isinstance(one, torch.Tensor) and not one.is_floating_point():
                self.largest = max(self.largest, one.numel())
        return found


@pytest.mark.parametrize("fields", [{}, {"packing": True, "max_length": 64}], ids=["rows", "packed"])
def test_no_mask_between_all_tokens_is_built(tmp_path, folder, fields):
    trainer = made(tmp_path, folder, per_device_train_batch_size=12, **fields)
    trainer.train()
    batch = trainer.layouts([trainer.train_dataset[i] for i in range(len(trainer.train_dataset))])
    tokens, longest = batch["input_ids"].numel(), 24
    with Largest() as seen:
        trainer.compute_loss(trainer.model.train(), batch).backward()
    assert seen.largest < tokens * longest < tokens**2
