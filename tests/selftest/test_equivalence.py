"""The self-test passes what is right, and names the line of what is wrong."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from sftcore.cli import cli
from sftcore.config.recipe import load_recipe
from sftcore.core.errors import ConflictError, DataError
from sftcore.selftest.equivalence import measure_reference, num_items
from sftcore.selftest.selftest import selftest
from sftcore.train.run import check_recipe
from sftcore.trials.measured import (
    Gap,
    Measured,
    gap_between,
    tolerance_of,
    weights_hash,
    with_attention,
    without_dropout,
)
from tests.conftest import make_llama

BROKEN = {
    "attention": "Leaky", "loss": "MeanOfBatch", "kernel": "Rounding", "collator": "FirstLabels", "noise": "Sticky",
    "loader": "Replacing",
}  # fmt: skip
RUN = "the whole run, with all features at once"
END_TO_END, PACKED = "padding-free: rows end to end", "packed: several rows in a block"


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A distribution whose plugins are wrong, all of them named `broken`."""
    info = tmp_path / "site" / "broken-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    groups = [f"[sftcore.{kind}]\nbroken = tests.selftest.broken_plugins:{name}\n" for kind, name in BROKEN.items()]
    (info / "entry_points.txt").write_text("".join(groups))
    monkeypatch.syspath_prepend(str(info.parent))


@pytest.fixture
def tutorial_noise(tmp_path, monkeypatch):
    """The noise plugin of the tutorial, word for word, as a distribution."""
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "write-a-plugin.md").read_text(encoding="utf-8")
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class Hiss" in block]
    info = tmp_path / "site" / "sftcore_hiss-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sftcore-hiss\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[sftcore.noise]\nhiss = sftcore_hiss_tutorial:Hiss\n")
    (info.parent / "sftcore_hiss_tutorial.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(str(info.parent))


@pytest.fixture
def rows(write):
    given = [{"prompt": f"say {i}:", "completion": " hello world" * (1 + i % 5)} for i in range(12)]
    return write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in given))


@pytest.fixture
def found(model_folder, rows, tmp_path):
    """Run the self-test in one process; a report and its verdicts by line."""

    def run(*overrides, **options):
        words = [f"model={model_folder}", f"data={rows}", f"output_dir={tmp_path / 'out'}", *overrides]
        report = selftest(check_recipe(load_recipe(None, words)), **{"processes": False, **options})
        return report, {line.what: line for line in report.lines}

    return run


def failed(lines) -> list[str]:
    return [what for what, line in lines.items() if line.verdict == "FAILED"]


# --- What is right --------------------------------------------------------------------------------------------------
def test_a_model_that_takes_neither_varlen_nor_rows_end_to_end_passes_as_it_will_train(tmp_path, tokenizer, rows):
    from transformers import BloomConfig, BloomForCausalLM

    torch.manual_seed(0)
    BloomForCausalLM(BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=1, n_head=4)).save_pretrained(
        tmp_path / "bloom"
    )
    tokenizer.save_pretrained(tmp_path / "bloom")
    words = [f"model={tmp_path / 'bloom'}", f"data={rows}", f"output_dir={tmp_path / 'out'}"]
    report = selftest(check_recipe(load_recipe(None, words)), processes=False)
    verdicts = {line.what: line.verdict for line in report.lines}
    assert verdicts[RUN] == "same"
    assert "FAILED" not in verdicts.values()


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["adapter=lora", "attention=varlen", "packing=true", "max_length=64", "neftune_noise_alpha=5"],
        ["adapter=lora", "attention=flash-1", "padding_free=true", "max_length=null", "loss_type=dft"],
        ["gradient_checkpointing_kwargs={selective: matmul}", "bf16=true", "adapter=lora"],
    ],
    ids=["plain", "varlen, packed, lora, noise", "flash-1, padding-free, dft", "bfloat16, selective"],
)
def test_every_feature_gives_the_plain_paths_loss_and_gradients(found, tmp_path, overrides):
    report, lines = found(*overrides)
    assert not failed(lines), [line for line in report.lines if line.verdict == "FAILED"]
    compared = [line for line in report.lines if line.gap]
    assert len(compared) >= 10
    if report.dtype == "float32":
        assert max(line.gap.gradient for line in compared) < 1e-5
    assert lines[RUN].verdict == "same"
    assert not (tmp_path / "out").exists()


def test_a_quantised_base_and_weighted_turns_are_compared_too(found, write):
    turns = [{"role": "user", "content": "say hello"}, {"role": "assistant", "content": "hello world", "weight": 0.3}]
    more = [{"role": "user", "content": "say 1"}, {"role": "assistant", "content": "The answer is 1"}]
    given = [{"messages": turns[:2] + more * (i % 3)} for i in range(8)]
    data = write("chat.jsonl", "".join(json.dumps(row) + "\n" for row in given))
    report, lines = found("adapter=qlora", f"data={data}", "assistant_only_loss=true")
    assert not failed(lines)
    assert report.supervised != int(report.supervised)  # a sum of weights
    assert "4-bit" in report.dtype


def test_a_loss_of_its_own_is_compared_with_itself_and_says_so(found):
    report, lines = found("loss=dft")
    assert not failed(lines)
    assert any('loss "dft"' in note and "it is another loss" in note for note in report.notes)
    report, _ = found()
    assert not report.notes


def test_zeros_of_a_new_adapter_do_not_hide_gradients(found):
    report, lines = found("adapter=lora")
    assert "because zeros would hide gradients" in report.notes[0]
    assert lines[RUN].gap.worst > 0


def test_random_numbers_go_on_as_if_nothing_had_run(found):
    def drawn():
        return random.random(), np.random.rand(), float(torch.rand(()))

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    wanted = drawn()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    found()
    assert drawn() == wanted


# --- What is wrong --------------------------------------------------------------------------------------------------
def test_attention_that_leaks_fails_where_documents_share_a_row(found, broken):
    report, lines = found("attention=broken")
    assert failed(lines) == ['attention "broken", rows end to end', 'attention "broken", packed rows']
    assert lines['attention "broken", padded rows'].verdict == "same"
    assert "other documents change a document's logits" in lines['attention "broken", packed rows'].why
    assert report.failed == 2


def test_attention_that_leaks_fails_the_run_that_packs(found, broken):
    _, lines = found("attention=broken", "packing=true", "max_length=64")
    assert RUN in failed(lines)
    assert lines[PACKED].verdict == "same"


def test_a_loss_that_divides_by_the_micro_batch_fails_where_batches_are_accumulated(found, broken):
    _, lines = found("loss=broken", "gradient_checkpointing=false")
    assert failed(lines) == ["4 batches of 1 row, accumulated", RUN]
    assert lines["1 batch of 4 rows, padded"].verdict == "same"


def test_kernels_that_replace_nothing_are_not_said_to_compute_the_same(found, broken):
    _, lines = found("kernel={broken: {modules: 0}}")
    assert lines['kernel "broken"'].verdict == "not applicable"
    assert "replaced nothing" in lines['kernel "broken"'].why


@pytest.mark.parametrize("undo", ["true", "false"])
def test_a_kernel_that_changes_numbers_fails(found, broken, undo):
    _, lines = found(f"kernel={{broken: {{undo: {undo}}}}}")
    line = lines['kernel "broken"']
    assert failed(lines)[0] == line.what
    assert RUN in failed(lines)
    if undo == "true":
        assert line.gap.gradient > 1e-4
    else:
        assert "its PatchReport has no undo" in line.why


def test_a_collator_that_lets_first_labels_through_fails_with_the_row(found, broken):
    _, lines = found("collator=broken")
    assert failed(lines) == ['collator "broken"', RUN]
    assert "the first token of the document" in lines['collator "broken"'].why
    assert lines[END_TO_END].verdict == "same"


@pytest.mark.slow
@pytest.mark.parametrize("settings", [[], ["adapter=lora", "bf16=true"], ["loss=dft"]], ids=["full", "lora", "dft"])
def test_a_loader_that_replaces_kernels_is_compared_with_transformers_in_another_process(found, broken, settings):
    what = 'loader "broken", compared with transformers alone'
    report, lines = found("loader=broken", *settings)
    assert not failed(lines)
    # under autocast, LoRA's fused product rounds elsewhere than PEFT's own four operations
    assert lines[what].gap.gradient <= (1e-2 if "bf16=true" in settings else 1e-6)
    assert any("replaces kernel.mlp while it loads the model" in note for note in report.notes)
    if not settings:
        _, lines = found("loader={broken: {factor: 1.01}}")
        assert failed(lines) == [what]


def test_noise_that_leaves_the_mode_to_the_core_passes(found, tutorial_noise):
    _, lines = found("noise=hiss")

    assert lines['noise "hiss", switched on and off again'].verdict == "same"


def test_noise_that_changes_weights_fails(found, broken):
    _, lines = found("noise=broken")
    line = lines['noise "broken", switched on and off again']
    assert line.verdict == "FAILED"
    assert "its remove leaves the weight model.embed_tokens.weight changed" in line.why


def test_rows_without_anything_supervised_are_refused(found, write):
    data = write("one.jsonl", json.dumps({"prompt": "say:", "completion": " hello"}) + "\n")
    with pytest.raises(DataError, match="only 1 of the first 64 rows can be used") as caught:
        found(f"data={data}")
    assert "one.jsonl" in caught.value.where


def test_what_training_would_refuse_is_refused(found):
    with pytest.raises(ConflictError, match="on a CPU, activations are already in host memory"):
        found("activation_offloading=true")


@pytest.mark.slow
# --- The command line -----------------------------------------------------------------------------------------------
def test_two_processes_and_a_report_from_the_command_line(model_folder, rows, tmp_path):
    out = tmp_path / "report.json"
    words = ["selftest", f"model={model_folder}", f"data={rows}", "adapter=lora", "packing=true", "max_length=64"]
    shown = CliRunner().invoke(cli, [*words, "--rows", "6", "--json", str(out)])
    assert shown.exit_code == 0, shown.output
    assert "All 11 comparisons give the loss and the gradients of plain transformers." in shown.output
    report = json.loads(out.read_text())
    assert (report["schema"], report["rows"], report["failed"]) == (1, 6, 0)
    last = report["lines"][-1]
    assert last["what"] == "2 processes, each with half of the rows"
    assert last["gradient_gap"] < 1e-5


def test_a_failed_line_is_exit_code_1(model_folder, rows, broken):
    words = ["selftest", f"model={model_folder}", f"data={rows}", "kernel=broken", "--no-processes"]
    shown = CliRunner().invoke(cli, words)
    assert shown.exit_code == 1
    assert "2 of 11 comparisons failed." in shown.output


def test_a_folder_that_is_not_there_is_said_before_anything_is_loaded(rows):
    shown = CliRunner().invoke(cli, ["selftest", "model=x", f"data={rows}", "--json", "/nowhere/report.json"])
    assert shown.exit_code == 2
    assert 'The folder "/nowhere" for the report does not exist' in shown.output


# --- Its parts ------------------------------------------------------------------------------------------------------
def test_gaps_are_parts_of_what_is_wanted():
    wanted = Measured(2.0, {"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([0.0, 12.0]), "c": None})
    got = Measured(2.2, {"a": torch.tensor([3.0, 4.5]), "b": torch.tensor([0.0, 12.0]), "c": None})
    gap = gap_between(got, wanted)
    assert gap.loss == pytest.approx(0.1)
    assert gap.gradient == pytest.approx(0.5 / 13)
    assert (gap.worst, gap.worst_parameter) == (pytest.approx(0.1), "a")


def test_a_gradient_that_is_missing_or_no_number_is_never_within():
    wanted = Measured(1.0, {"a": torch.ones(2), "b": torch.ones(2)})
    assert not gap_between(Measured(1.0, {"a": torch.ones(2), "b": None}), wanted).within(0.5)
    lost = gap_between(Measured(1.0, {"a": torch.ones(2), "b": torch.full((2,), float("nan"))}), wanted)
    assert lost.worst_parameter == "b"
    assert not lost.within(1e9)
    assert not Gap(float("nan"), 0.0, 0.0, "a").within(1.0)


def test_the_plain_path_is_transformers_own_loss(llama):
    ids = list(range(5, 25))
    row = {"input_ids": ids, "labels": [-100] * 6 + ids[6:]}
    found = measure_reference(llama, [row, row])
    assert num_items([row, row]) == 28
    batch = torch.tensor([ids]), torch.tensor([row["labels"]])
    loss = llama(input_ids=batch[0], labels=batch[1], use_cache=False).loss
    loss.backward()
    assert found.loss == pytest.approx(loss.item(), rel=1e-6)
    weight = llama.model.embed_tokens.weight
    torch.testing.assert_close(found.gradients["model.embed_tokens.weight"], weight.grad, rtol=1e-4, atol=1e-7)


def test_dropout_is_zero_inside_and_what_it_was_afterwards(tokenizer):
    model = make_llama(tokenizer, attention_dropout=0.5).train()
    model.model.extra = torch.nn.Dropout(0.3)
    ids = torch.arange(5, 25)[None]
    with without_dropout(model):
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
        assert model.model.extra.p == 0
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    assert (model.model.extra.p, model.model.layers[0].self_attn.attention_dropout) == (0.3, 0.5)


def test_another_attention_stays_inside(llama):
    before = llama.config._attn_implementation
    with with_attention(llama, "eager"):
        assert llama.config._attn_implementation == "eager"
    assert llama.config._attn_implementation == before == "sdpa"


def test_the_hash_of_the_weights_is_of_every_bit(llama):
    before = weights_hash(llama)
    assert weights_hash(llama) == before
    weight = llama.model.norm.weight
    weight.data[3] = torch.nextafter(weight.data[3], torch.tensor(9.0))
    assert weights_hash(llama) != before


def test_tolerances_follow_the_coarsest_dtype(tokenizer):
    model = make_llama(tokenizer)
    assert tolerance_of(model, None) == (1e-4, "float32")
    assert tolerance_of(model, "bfloat16") == (5e-2, "bfloat16")
    assert tolerance_of(model.bfloat16(), None) == (5e-2, "bfloat16")
