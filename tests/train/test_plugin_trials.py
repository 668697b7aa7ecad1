"""A plugin that does not do what it claims is refused before the first step; one that does trains, and is kept."""

from __future__ import annotations

import shutil

import pytest
from datasets import Dataset, IterableDataset

from sftcore import SFTConfig, SFTTrainer
from sftcore.core.errors import DivergenceError, SFTCoreError
from sftcore.trials.measured import weights_hash
from sftcore.trials.model import ModelTrial
from tests.conftest import make_llama

KINDS = {
    "collator": "Batches", "loss": "Loss", "attention": "Attention", "kernel": "Kernel", "noise": "Hiss",
    "adapter": "Adapter", "loader": "Loader",
}  # fmt: skip
ROWS = [{"prompt": f"say {i}:", "completion": " hello world" * (1 + i % 3)} for i in range(8)]
WEIGHTED = [
    {"messages": [{"role": "user", "content": "say"}, {"role": "assistant", "content": f"hi {i}", "weight": 0.5}]}
    for i in range(4)
]


@pytest.fixture(autouse=True)
def acme(tmp_path, monkeypatch):
    """A distribution with one plugin of each kind, all named `acme`, and a cache of its own."""
    info = tmp_path / "site" / "acme_tried-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-tried\nVersion: 1.2\n")
    groups = [f"[sftcore.{kind}]\nacme = tests.train.wrong_plugins:{name}\n" for kind, name in KINDS.items()]
    (info / "entry_points.txt").write_text("".join(groups))
    monkeypatch.syspath_prepend(str(info.parent))
    monkeypatch.setenv("SFTCORE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def trainer(tmp_path, tokenizer):
    """Make a trainer on a tiny model, with a plugin of each kind named and its options."""

    def make(rows=ROWS, model=None, **plugins):
        settings = {name: plugins.pop(name) for name in list(plugins) if name not in KINDS}
        args = SFTConfig(
            str(tmp_path / "out"), per_device_train_batch_size=2, report_to="none", save_strategy="no",
            plugins={kind: {"acme": options} for kind, options in plugins.items()},
            **{"max_steps": 1, "bf16": False, **settings},
        )  # fmt: skip
        model = make_llama(tokenizer) if model is None else model
        known = {} if isinstance(model, str) else {"processing_class": tokenizer}
        return SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), **known)

    return make


FAULTS = [
    ("collator", "ignored", "its labels are all -100"),
    ("collator", "shifted-1", "labels"),
    ("collator", "shifted+1", "labels"),
    ("collator", "shifted-2", "labels"),
    ("collator", "invented", "it changes tokens: 1 of a document's"),
    ("collator", "row lost", "it loses rows"),
    ("collator", "raises", "raised ZeroDivisionError: division by zero"),
    ("loss", "raises", "raised KeyError: 'boom'"),
    ("loss", "mean", "with num_items twice as large its loss is"),
    ("loss", "sum", "with num_items twice as large its loss is"),
    ("loss", "detached", "nothing would be trained"),
    ("kernel", "scaled", "its logits differ by"),
    ("kernel", "relu", "its logits differ by"),
    ("kernel", "no undo", "it replaced activation x2 and its PatchReport has no undo"),
    ("kernel", "bad undo", "its undo leaves the layer model.layers.0.mlp.act_fn"),
    ("kernel", "unsaid", "it reports no replacement, and it left the layer model.layers.0.mlp.act_fn"),
    ("noise", "stays", "its remove leaves model.embed_tokens forward_hooks changed"),
    ("adapter", "frozen", "no parameter of the model trains"),
    ("adapter", "unused", "none of the 2 parameters that train gets a gradient"),
    ("adapter", "half", "2 of 4 parameters that train"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "fault", "said"), FAULTS)
def test_a_wrong_plugin_is_refused_before_the_first_step_and_named(trainer, kind, fault, said):
    made, before = [], ""

    def run():
        nonlocal before
        made.append(trainer(**{kind: {"fault": fault}}))
        before = weights_hash(made[0].model)
        made[0].train()

    with pytest.raises(SFTCoreError) as refused:
        run()

    text = str(refused.value)
    assert f'{kind} "acme@acme-tried" 1.2' in text
    assert said in text
    assert "\n" not in text
    for one in made:
        assert one.state.global_step == 0
        assert weights_hash(one.model) == before


@pytest.mark.parametrize("scale", [0.5, 1.01])
def test_a_wrong_attention_is_refused(trainer, scale):
    with pytest.raises(SFTCoreError, match=r'attention "acme@acme-tried" 1\.2 failed its trial: its logits differ'):
        trainer(attention={"scale": scale}).train()


@pytest.mark.parametrize("kind", ["collator", "loss", "kernel", "noise", "adapter", "attention"])
def test_a_right_plugin_trains(trainer, kind):
    made = trainer(**{kind: {}})
    made.train()

    assert made.state.global_step == 1
    assert not [note for note in made.loaded.notes if "acme-tried" in note]


def test_a_refused_plugin_is_refused_again(trainer):
    made = trainer(loss={"fault": "mean"})
    for _ in range(2):
        with pytest.raises(SFTCoreError, match="failed its trial"):
            made.train()
    with pytest.raises(SFTCoreError, match="failed its trial"):
        made.evaluate(made.train_dataset)


@pytest.mark.parametrize("kind", ["collator", "loss"])
def test_weights_have_to_be_honoured_where_rows_have_some(trainer, kind):
    trainer(**{kind: {"fault": "weights"}}).train()
    with pytest.raises(SFTCoreError, match=rf'{kind} "acme@acme-tried" 1.2 failed its trial: .*weights'):
        trainer(WEIGHTED, **{kind: {"fault": "weights"}}).train()
    trainer(WEIGHTED, **{kind: {}}).train()


def test_weights_that_only_later_rows_have_have_to_be_honoured(trainer):
    plain = [{"messages": [{**message} for message in row["messages"]]} for row in WEIGHTED]
    for row in plain[:3]:
        row["messages"][1]["weight"] = 1.0

    with pytest.raises(SFTCoreError, match="weights"):
        trainer(plain, collator={"fault": "weights"}).train()


@pytest.mark.parametrize("packing", [False, True])
def test_the_collator_of_a_stream_is_tried_without_reading_it(trainer, monkeypatch, packing):
    monkeypatch.setattr(Dataset, "from_list", _stream)
    options = {"packing": packing, "max_length": 32}
    with pytest.raises(SFTCoreError, match="its labels are all -100"):
        trainer(collator={"fault": "ignored"}, **options).train()
    trainer(collator={}, **options).train()


def _stream(rows):
    return IterableDataset.from_generator(lambda: iter(rows))


def test_a_declared_difference_is_said(trainer):
    for kind, options in (("attention", {"scale": 0.5, "exact": False}), ("kernel", {"fault": "declared"})):
        made = trainer(**{kind: options})
        made.train()

        (note,) = [note for note in made.loaded.notes if "acme-tried" in note]
        assert f'{kind} "acme@acme-tried" 1.2: declares that it computes something else: logits differ by' in note


@pytest.mark.parametrize("packing", ["packing", "padding_free"])
def test_packed_and_flattened_runs_are_tried_in_their_layout(trainer, packing):
    trainer(attention={}, **{packing: True}, max_length=64).train()
    with pytest.raises(SFTCoreError, match="its logits differ"):
        trainer(attention={"scale": 0.5}, **{packing: True}, max_length=64).train()


def test_a_collator_that_is_the_users_own_is_not_tried(trainer, tokenizer, tmp_path):
    from sftcore.plugin_api import pad_rows

    def collate(rows):
        batch = pad_rows(rows, pad_token_id=0)
        batch["labels"][:, :-2] = -100
        return batch

    args = SFTConfig(str(tmp_path / "own"), max_steps=1, report_to="none", bf16=False, save_strategy="no")
    made = SFTTrainer(
        make_llama(tokenizer), args, data_collator=collate, train_dataset=Dataset.from_list(ROWS),
        processing_class=tokenizer,
    )  # fmt: skip

    made.train()

    assert made.state.global_step == 1


def test_what_was_passed_is_kept_until_the_plugin_changes(trainer, monkeypatch):
    passes = []
    once = ModelTrial.once
    monkeypatch.setattr(ModelTrial, "once", lambda self, **options: passes.append(1) or once(self, **options))

    def count(**plugins):
        passes.clear()
        trainer(**plugins).train()
        return len(passes)

    assert count(kernel={}) > 2
    assert count(kernel={}) == 0
    assert 0 < count(kernel={"fault": "declared"}) < 5
    with pytest.raises(SFTCoreError):
        count(kernel={"fault": "scaled"})
    with pytest.raises(SFTCoreError):
        count(kernel={"fault": "scaled"})
    assert count(kernel={}, bf16=True) > 2


def test_a_run_has_the_numbers_of_one_whose_trials_were_kept(trainer):
    def losses():
        made = trainer(noise={}, kernel={}, max_steps=3)
        made.train()
        return made.state.log_history[-1]["train_loss"], weights_hash(made.model)

    assert losses() == losses()


def test_a_nan_behind_a_third_partys_loss_names_it_among_the_suspects(trainer):
    with pytest.raises(DivergenceError, match=r'Try it without loss "acme@acme-tried" 1\.2'):
        trainer(loss={"fault": "nan later"}, max_steps=30).train()


# --- Loaders ----------------------------------------------------------------------------------------------------------
@pytest.fixture
def hub(tmp_path, monkeypatch, model_folder, tokenizer):
    """A cached repository with two revisions."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(cache), raising=False)
    repository = cache / "models--acme--tiny"
    (repository / "refs").mkdir(parents=True)
    for name, commit in (("main", "a" * 40), ("v2", "b" * 40)):
        (repository / "refs" / name).write_text(commit)
        shutil.copytree(model_folder, repository / "snapshots" / commit)
    return "acme/tiny"


@pytest.mark.parametrize(
    ("fault", "asked", "said"),
    [
        ("dtype", {"dtype": "float32"}, "loaded the weights in bfloat16, and the run asks for float32"),
        ("arguments", {"num_hidden_layers": 1}, "it was asked for num_hidden_layers=1, and the model has 2"),
        ("arguments", {"attention_dropout": 0.25}, "it was asked for attention_dropout=0.25, and the model has 0.0"),
    ],
)
def test_a_loader_that_does_something_else_is_refused(trainer, model_folder, fault, asked, said):
    with pytest.raises(SFTCoreError) as found:
        trainer(model=str(model_folder), loader={"fault": fault}, model_init_kwargs=asked)

    assert 'loader "acme@acme-tried" 1.2' in str(found.value)
    assert said in str(found.value)
    for loader in ({"loader": {"fault": ""}}, {}):
        trainer(model=str(model_folder), model_init_kwargs=asked, **loader)


def test_a_loader_that_takes_another_revision_is_refused(trainer, hub):
    with pytest.raises(
        SFTCoreError, match=r'loader "acme@acme-tried" 1.2 .* revision "v2", and it never reads request.revision'
    ):
        trainer(model=hub, loader={"fault": "revision"}, model_init_kwargs={"revision": "v2"})
    trainer(model=hub, loader={}, model_init_kwargs={"revision": "v2"})
