"""`sftcore quantize`: what it is calibrated on, what it refuses, and a tiny model that is loaded again in few bits."""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from sftcore import SFTConfig, SFTTrainer
from sftcore.core.errors import DataError, ModelError, RecipeError, UnavailablePluginError
from sftcore.core.types import TokenizedRow
from sftcore.tools.load_saved import load_tokenizer
from sftcore.tools.quantization import quantize
from sftcore.tools.quantization.calibration import calibration_rows
from sftcore.tools.quantization.outcome import Options
from sftcore.tools.quantization.perplexity import Perplexity, perplexity
from sftcore.tools.quantization.quantize import check_options, group_size_for, rise_notes, widths
from sftcore.tools.saved import open_run
from tests import commands
from tests.conftest import alpaca_rows, make_llama

HAS_LIBRARY = importlib.util.find_spec("llmcompressor") is not None
needs_library = pytest.mark.skipif(not HAS_LIBRARY, reason='needs: pip install "sftcore[gptq]"')


def sftcore(*words: str, code: int = 0, cwd: Path | None = None) -> str:
    done = commands.sftcore(*words, cwd=cwd, COLUMNS="160")
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout + done.stderr


def write_rows(path: Path, count: int) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in alpaca_rows(count)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def home(tmp_path_factory, model_folder) -> Path:
    """A folder in which a user trained: train.jsonl, eval.jsonl, and runs beside them, all by relative paths."""
    folder = tmp_path_factory.mktemp("home")
    write_rows(folder / "train.jsonl", 40)
    write_rows(folder / "eval.jsonl", 6)
    sftcore(
        "train", f"model={model_folder}", "data=train.jsonl", "output_dir=runs/plain", "adapter.lora.r=4",
        "max_steps=2", "save_strategy=no", "max_length=96", "gradient_checkpointing=false", cwd=folder,
    )  # fmt: skip
    run_with_data(folder, "eval", {"train": "train.jsonl", "eval": "eval.jsonl"})
    run_with_data(folder, "share", {"train": "train.jsonl", "eval_fraction": 0.25})
    run_with_data(folder, "gone", {"train": "gone.jsonl"})
    return folder


def run_with_data(home: Path, name: str, data: dict[str, object], **training: object) -> None:
    """The run in runs/plain, as if its recipe had had these data and settings, and this name."""
    folder = home / "runs" / name
    shutil.copytree(home / "runs" / "plain", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["recipe"] |= {"data": data, "output_dir": f"runs/{name}", **training}
    manifest["settings"]["output_dir"] = f"runs/{name}"
    (folder / "manifest.json").write_text(json.dumps(manifest))


def rows_of(folder: Path, **options):
    run = open_run(str(folder))
    given = {"samples": 8, "max_length": 512, "seed": 0, **options}
    return calibration_rows(run, load_tokenizer(run), Options(**given))


def ids_of(rows) -> set[tuple[int, ...]]:
    return {tuple(row.input_ids) for row in rows}


# --- Perplexity -----------------------------------------------------------------------------------------------------
def test_perplexity_is_that_of_transformers_own_loss(tokenizer):
    model = make_llama(tokenizer).eval()
    ids = tokenizer("The answer is a word. say hello")["input_ids"]
    labels = [-100] * 4 + ids[4:]
    found = perplexity(model, [TokenizedRow(ids, labels)])
    with torch.no_grad():
        supervised = model(torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()
        every = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item()
    assert found.supervised == pytest.approx(math.exp(supervised), rel=1e-5)
    assert found.every == pytest.approx(math.exp(every), rel=1e-5)
    assert (found.num_supervised, found.num_tokens) == (len(ids) - 4, len(ids) - 1)


def test_perplexity_of_rows_is_weighted_by_their_tokens(tokenizer):
    model = make_llama(tokenizer)
    rows = [TokenizedRow(tokenizer(text)["input_ids"]) for text in ("say hello", "The answer is a word. hello, world")]
    alone = [perplexity(model, [row]) for row in rows]
    mean = sum(math.log(one.every) * one.num_tokens for one in alone) / sum(one.num_tokens for one in alone)
    assert perplexity(model, rows).every == pytest.approx(math.exp(mean), rel=1e-6)


def test_a_destroyed_model_has_an_infinite_perplexity(tokenizer):
    model = make_llama(tokenizer)
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    assert perplexity(model, [TokenizedRow([5, 6, 7])]).every == math.inf


# --- Rows -----------------------------------------------------------------------------------------------------------
def test_rows_come_from_the_runs_own_data_wherever_the_command_is_given(home, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # the manifest says train.jsonl and runs/plain
    found = rows_of(home / "runs" / "plain")
    assert found.of == str(home / "train.jsonl")
    assert len(found.rows) == 8
    assert all(-100 in row.labels and set(row.labels) != {-100} for row in found.rows)


def test_rows_are_cut_to_the_length_asked_for_and_to_the_runs_own_where_that_is_less(home):
    def longest(folder: str, max_length: int) -> int:
        return max(len(row.input_ids) for row in rows_of(home / "runs" / folder, max_length=max_length).rows)

    whole = longest("plain", 512)
    assert longest("plain", whole - 1) == whole - 1
    run_with_data(home, "short", {"train": "train.jsonl"}, max_length=whole - 2)
    assert longest("short", 512) == whole - 2


def test_without_an_evaluation_set_other_training_rows_are_held_out(home):
    found = rows_of(home / "runs" / "plain")
    assert len(found.held_out) == 32
    assert not ids_of(found.rows) & ids_of(found.held_out)
    assert "not used for calibration" in found.held_out_of


def test_a_small_training_set_is_shared_between_both(home):
    found = rows_of(home / "runs" / "plain", samples=1000)
    assert (len(found.rows), len(found.held_out)) == (32, 8)


def test_the_evaluation_set_is_held_out_where_there_is_one(home):
    found = rows_of(home / "runs" / "eval", samples=1000)
    assert (len(found.rows), len(found.held_out)) == (40, 6)
    assert found.held_out_of == f"{home / 'eval.jsonl'}, the evaluation set"


def test_the_share_that_the_run_held_back_is_never_calibrated_on(home):
    found = rows_of(home / "runs" / "share", samples=1000)
    assert (len(found.rows), len(found.held_out)) == (30, 10)
    assert found.held_out_of == f"{home / 'train.jsonl'}, held back by the run"
    assert not ids_of(found.rows) & ids_of(found.held_out)


def test_the_seed_decides_which_rows(home):
    first, again, other = (rows_of(home / "runs" / "plain", seed=seed).rows for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_data_that_are_gone_are_named_with_every_place_that_was_looked_at(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="cannot be found") as caught:
        rows_of(home / "runs" / "gone")
    assert str(tmp_path / "gone.jsonl") in str(caught.value)
    assert str(home / "gone.jsonl") in str(caught.value)
    assert "--data FILE" in str(caught.value)
    new = write_rows(tmp_path / "new.jsonl", 5)
    assert rows_of(home / "runs" / "gone", data=str(new)).of == str(new)


def test_a_run_from_python_is_given_its_rows_and_reads_them_with_its_own_settings(tmp_path, llama, tokenizer):
    args = SFTConfig(str(tmp_path / "out"), max_steps=1, max_length=24, completion_only_loss=False, report_to=[])
    rows = [{"prompt": f"say {i}", "completion": " The answer is a word"} for i in range(6)]
    trainer = SFTTrainer(llama, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.save_model()
    with pytest.raises(DataError, match=r"started from Python.*--data FILE"):
        rows_of(tmp_path / "out")
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    found = rows_of(tmp_path / "out", data=str(file))
    assert len(found.rows) + len(found.held_out) == 6
    assert all(-100 not in row.labels for row in found.rows)  # completion_only_loss=False


def test_a_model_without_a_manifest_needs_rows(model_folder, tmp_path):
    with pytest.raises(DataError, match=r"without a manifest.json.*--data FILE"):
        rows_of(model_folder)
    assert len(rows_of(model_folder, data=str(write_rows(tmp_path / "rows.jsonl", 12)), samples=4).rows) == 4


def test_one_row_cannot_be_calibrated_and_measured_on(model_folder, tmp_path):
    with pytest.raises(DataError, match="has only one usable row"):
        rows_of(model_folder, data=str(write_rows(tmp_path / "rows.jsonl", 1)))


def test_a_wrong_path_for_data_is_told_as_such(model_folder):
    with pytest.raises(DataError, match=r"missing.jsonl: no such file"):
        rows_of(model_folder, data="missing.jsonl")


# --- Refusals -------------------------------------------------------------------------------------------------------
def test_the_largest_group_that_divides_every_layer_is_taken(tokenizer):
    found = widths(make_llama(tokenizer))
    assert set(found.values()) == {32, 64}
    assert not any("lm_head" in name for name in found)
    assert group_size_for(found, None) == 32
    assert group_size_for({"a": 576, "b": 1536}, None) == 64
    assert group_size_for({"a": 4096}, None) == 128


def test_a_group_size_that_divides_no_row_is_refused_with_those_that_do():
    with pytest.raises(
        RecipeError, match=r"groups of 128 do not divide the layer a, which has 576 input features.*64, 32, 16"
    ):
        group_size_for({"a": 576, "b": 1536}, 128)


@pytest.mark.parametrize(
    ("after", "note"),
    [(11.4, ""), (11.6, "perplexity rose by 16.0%; reduce this with --samples 512, --group-size 32 or --bits 8")],
)
def test_a_large_loss_is_noted_with_what_helps(after, note):
    before, found = (Perplexity(5.0, every, 10, 20) for every in (10.0, after))
    assert "".join(rise_notes(before, found, Options(), 64)) == note


def test_a_destroyed_model_is_noted():
    found = rise_notes(Perplexity(5.0, 10.0, 10, 20), Perplexity(math.inf, math.inf, 10, 20), Options(bits=8), 32)
    assert found == ("perplexity rose by inf%; reduce this with --samples 512",)


def test_an_unknown_method_names_the_nearest():
    assert 'there is no method "gtpq". Did you mean "gptq"?' in sftcore("quantize", "run", "--method", "gtpq", code=1)


def test_a_missing_library_prints_its_command(model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(quantize.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailablePluginError) as caught:
        check_options(open_run(str(model_folder)), tmp_path / "out", Options())
    assert (
        str(caught.value)
        == 'method "gptq" needs llmcompressor, which is not installed. Install it: pip install "sftcore[gptq]"'
    )


@pytest.mark.skipif(HAS_LIBRARY, reason="the library is installed")
def test_without_the_library_nothing_is_loaded_or_written(home):
    printed = sftcore("quantize", "runs/plain", cwd=home, code=1)
    assert printed.strip().endswith('Install it: pip install "sftcore[gptq]"')
    assert not (home / "runs" / "plain-gptq-4bit").exists()


def test_a_folder_that_holds_something_is_not_written_into(model_folder, tmp_path):
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(RecipeError, match="the output folder is not empty"):
        check_options(open_run(str(model_folder)), tmp_path, Options())


def test_a_quantised_model_is_not_quantised_again(tmp_path, llama):
    llama.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    quantised = {**config, "quantization_config": {"quant_method": "compressed-tensors"}}
    (tmp_path / "config.json").write_text(json.dumps(quantised))
    with pytest.raises(ModelError, match=r"already quantised \(compressed-tensors\)"):
        check_options(open_run(str(tmp_path)), tmp_path / "out", Options())


def test_a_folder_without_a_model_is_refused(tmp_path):
    assert "neither a model nor an adapter" in sftcore("quantize", str(tmp_path), code=1)


# --- End to end -----------------------------------------------------------------------------------------------------
RELOAD = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
import torch
folder = sys.argv[1]
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
with torch.no_grad():
    logits = model(**tokenizer("say hello", return_tensors="pt")).logits
print(json.dumps([type(model).__name__, str(model.dtype), logits[0, -1, :8].tolist(), "llmcompressor" in sys.modules]))
"""


@needs_library
@pytest.mark.parametrize("bits", [4, 8])
def test_an_adapter_is_merged_quantised_saved_and_loaded_by_transformers_alone(home, tmp_path, bits):
    out = tmp_path / "out"
    printed = sftcore(
        "quantize", str(home / "runs" / "eval"), "--bits", str(bits), "--samples", "16", "--dtype", "float32",
        "--output", str(out),
    )  # fmt: skip
    assert f"{bits} bits, groups of 32" in printed
    assert f"saved in {out}" in printed
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["recipe"]["data"]["train"] == "train.jsonl"  # what the run was is still there
    done = manifest["quantise"]
    assert (done["bits"], done["group_size"]) == (bits, 32)
    assert (done["calibration"]["rows"], done["perplexity"]["rows"]) == (16, 6)
    before, after = done["perplexity"]["before"]["all"], done["perplexity"]["after"]["all"]
    assert after == pytest.approx(before, rel=0.1 if bits == 4 else 0.01)
    assert done["bytes"]["after"] < done["bytes"]["before"]
    assert "llmcompressor" in done["versions"]
    assert manifest["merge"]["agreements"]  # an adapter's merge is verified on the way
    card = (out / "README.md").read_text()
    assert f"quantised to {bits} bits in groups of 32" in card
    assert "`compressed-tensors` is installed" in card
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    name, dtype, logits, imported = json.loads(
        subprocess.run([sys.executable, "-c", RELOAD, str(out)], capture_output=True, text=True, check=True).stdout
    )
    assert (name, dtype, imported) == ("LlamaForCausalLM", "torch.float32", False)
    assert all(math.isfinite(value) for value in logits)


@needs_library
def test_the_head_and_the_embeddings_are_left_as_they_are(model_folder, tmp_path):
    from sftcore.tools.quantization.quantize import quantize as run_quantize

    data = str(write_rows(tmp_path / "rows.jsonl", 12))
    run_quantize(open_run(str(model_folder)), tmp_path / "out", Options(data=data, dtype="float32", samples=8))
    plain = AutoModelForCausalLM.from_pretrained(model_folder)
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    for part in ("get_input_embeddings", "get_output_embeddings"):
        torch.testing.assert_close(getattr(found, part)().weight, getattr(plain, part)().weight, rtol=0, atol=0)


@needs_library
def test_nothing_is_left_behind_where_it_fails(model_folder, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", 12)
    printed = sftcore(
        "quantize",
        str(model_folder),
        "--data",
        str(data),
        "--group-size",
        "48",
        "--output",
        str(tmp_path / "out"),
        code=1,
    )
    assert "groups of 48 do not divide" in printed
    assert "Choose one of: 32, 16" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
