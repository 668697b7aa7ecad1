"""Recipes, data files and checkpoints that would cost memory, time or a machine: each ends in an error."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest

import sftcore
from sftcore.config import yaml12
from sftcore.core.errors import CheckpointError, DataError, ModelError, RecipeError, RowError, SFTCoreError
from sftcore.data.source.files import first_rows, local_files
from sftcore.data.source.rows import raw_rows
from tests.conftest import alpaca_rows

# --- Recipes ----------------------------------------------------------------------------------------------------------
LAUGHS = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
YAMLS = {
    "a tag that runs code": "model: !!python/object/apply:os.system ['touch %s']",
    "a tag that makes an object": "model: !!python/object/new:os.system ['touch %s']",
    "a billion laughs": LAUGHS,
    "laughs in mappings": LAUGHS.replace("[", "{x: [").replace("]", "]}"),
    "a list that contains itself": "model: &a [*a]",
    "deep lists": "[" * 50_000,
    "deep mappings": "{a: " * 50_000,
    "a number of 5,000 digits": "seed: " + "9" * 5000,
    "a list as a key": "? [1, 2]\n: x",
    "a mapping as a key": "{{a: b}: c}",
    "a merge of what is no mapping": "<<: 3",
    "a date that is none": "a: !!timestamp nonsense",
    "bytes that are none": "a: !!binary 'é'",
    "two documents": "a: 1\n---\nb: 2",
    "control characters": "a: \x00",
    "digits of a base that Python reads without end": "seed: 0x" + "f" * 200_000,
    "a float of whole numbers without end": "a: !!float " + "1:" * 1000 + "1",
    "half a character": 'a: "\\ud800"',
    "a null character": 'a: "\\0"',
    "too long": "a: " + "x" * 2**18,
}


@pytest.mark.parametrize("text", YAMLS.values(), ids=YAMLS)
def test_hostile_yaml_is_refused(text, tmp_path):
    mark = tmp_path / "ran"
    with pytest.raises(RecipeError):
        yaml12.load(text.replace("%s", str(mark)), where="recipe.yaml")
    assert not mark.exists()


def test_a_long_number_that_is_none_is_read_in_no_time():
    """The pattern of a float once took time that grew with the square of the length."""
    assert yaml12.load("a: " + "1" * 250_000 + "x", where="recipe")["a"].endswith("1x")


def test_plain_aliases_still_work():
    assert yaml12.load("a: &a [1, 2]\nb: *a", where="recipe") == {"a": [1, 2], "b": [1, 2]}


# --- Data files -------------------------------------------------------------------------------------------------------
def packed(kind: str, content: bytes) -> bytes:
    """An archive whose member would land outside of the folder that it is unpacked in."""
    buffer = io.BytesIO()
    if kind == "gzip":
        return gzip.compress(content)
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("../../escaped.parquet", content)
    else:
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            member = tarfile.TarInfo("../../escaped.parquet")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".parquet"])
@pytest.mark.parametrize("kind", ["gzip", "zip", "tar"])
def test_nothing_is_unpacked_whatever_its_name(kind, ending, tmp_path):
    """`datasets` tells archives by their first bytes and unpacks them: bombs, and paths that lead out of a folder."""
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    file = folder / f"rows{ending}"
    file.write_bytes(packed(kind, b"0" * 10_000_000))
    with pytest.raises(DataError, match=r"is compressed|is not a Parquet file"):
        local_files(str(file))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [file.name]


@pytest.mark.parametrize("name", ["rows.zip", "rows.tar.gz", "rows.tar", "rows.7z", "rows.pkl"])
def test_files_of_other_kinds_are_not_opened(name, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match="cannot be read"):
        local_files(str(tmp_path / name))


def test_what_is_no_file_is_not_waited_for(tmp_path):
    """Reading a pipe waits for whoever writes into it; reading /dev/zero never ends."""
    os.mkfifo(tmp_path / "rows.jsonl")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    for name in ("rows.jsonl", "zero.jsonl"):
        with pytest.raises(DataError, match="neither a file nor a folder"):
            local_files(str(tmp_path / name))
    with pytest.raises(DataError, match="the folder holds no data files"):
        local_files(str(tmp_path))


def test_links_in_a_data_folder_are_followed_as_the_hubs_cache_is_made_of_them(tmp_path):
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "blobs" / "abc").write_text('{"text": "say hello"}')
    (tmp_path / "snapshot" / "rows.jsonl").symlink_to(tmp_path / "blobs" / "abc")
    files = local_files(str(tmp_path / "snapshot"))
    assert [row for _, row in first_rows(files, 2)] == [{"text": "say hello"}]


def test_a_row_that_would_end_the_tokenizers_process_is_named(monkeypatch):
    from datasets import Dataset

    from sftcore.data import pipeline as prepare
    from tests.conftest import make_tokenizer
    from tests.data.test_pipeline import preparation

    monkeypatch.setattr(prepare, "_LONGEST", 1000)
    rows = Dataset.from_list([{"text": "say hello"}, {"text": "x" * 1001}])
    with pytest.raises(RowError, match=r"train row 1: its text has 1,0[0-9]+ characters, but at most 1,000 can be"):
        preparation(make_tokenizer(), dataset_cache=False).prepare(rows, "train")


def test_a_small_file_with_much_in_it_is_checked_a_few_rows_at_a_time(tmp_path):
    """600 bytes of Parquet hold a text of a million characters 3,000 times."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    column = pa.DictionaryArray.from_arrays(pa.array([0] * 3000, pa.int32()), pa.array(["x" * 1_000_000]))
    pq.write_table(pa.table({"text": column}), tmp_path / "rows.parquet", compression="zstd")
    assert (tmp_path / "rows.parquet").stat().st_size < 1000
    rows = raw_rows(tmp_path / "rows.parquet", "parquet")
    before = pa.total_allocated_bytes()
    assert next(iter(rows)).row == {"text": "x" * 1_000_000}
    assert pa.total_allocated_bytes() - before < 300_000_000


JSONS = {
    "deep lists": '{"text": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "deep mappings": '{"text": ' + '{"a":' * 100_000 + "1" + "}" * 100_000 + "}",
    "a number of 5,000 digits": '{"text": ' + "9" * 5000 + "}",
}


@pytest.mark.parametrize("as_list", [False, True], ids=["lines", "list"])
@pytest.mark.parametrize("row", JSONS.values(), ids=JSONS)
def test_hostile_json_is_named_with_its_line(row, as_list, write):
    good = '{"text": "say hello"}'
    path = write("rows.json", f"[{good}, {row}]" if as_list else f"{good}\n{row}\n{good}\n")
    with pytest.raises(DataError, match=r"too deeply|too many digits"):
        first_rows(local_files(str(path)), 10)
    read = list(raw_rows(path, "json"))
    assert next(one.fault.id for one in read if one.fault) == "broken-json"
    if not as_list:
        assert [one.row for one in read if one.row] == [{"text": "say hello"}] * 2


# --- Weights and checkpoints ------------------------------------------------------------------------------------------
class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def test_the_bomb_works(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def arguments(folder: Path, **more):
    known = {"max_steps": 2, "save_steps": 1, "use_cpu": True, "report_to": "none", "logging_steps": 1}
    return sftcore.SFTConfig(str(folder), **{**known, **more})


def trainer_of(model, folder: Path, **more):
    from datasets import Dataset

    rows = Dataset.from_list(alpaca_rows(4))
    return sftcore.SFTTrainer(str(model), args=arguments(folder, **more), train_dataset=rows)


def test_pickled_weights_are_not_read(model_folder, tmp_path):
    import shutil

    folder = shutil.copytree(model_folder, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(SFTCoreError):
        trainer_of(folder, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


def test_code_that_a_model_brings_is_not_run(model_folder, tmp_path):
    import shutil

    folder = shutil.copytree(model_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Mine"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass Mine: pass\n")
    with pytest.raises(SFTCoreError):
        trainer_of(folder, tmp_path / "out")
    assert not (tmp_path / "ran").exists()


@pytest.fixture(scope="module")
def checkpoint(model_folder, tmp_path_factory) -> Path:
    """A checkpoint without the seal that would give every change away."""
    folder = tmp_path_factory.mktemp("run")
    trainer_of(model_folder, folder).train()
    from sftcore.train.checkpoint.checksums import SEAL

    (folder / "checkpoint-1" / SEAL).unlink()
    return folder / "checkpoint-1"


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_pickle_in_a_checkpoint_is_not_run(name, checkpoint, model_folder, tmp_path):
    import shutil

    import torch

    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint-1")
    torch.save({"state": Bomb(tmp_path / "ran")}, folder / name)
    trainer = trainer_of(model_folder, tmp_path / "out")
    with pytest.raises(CheckpointError, match="holds more than tensors and numbers, and reading it could run code"):
        trainer.train(resume_from_checkpoint=str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["training_args.bin", "adapter_model.bin", "optimizer.bin"])
def test_a_pickle_that_a_resumed_run_has_no_use_for_is_not_read(name, checkpoint, model_folder, tmp_path):
    import shutil

    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint-1")
    (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    trainer_of(model_folder, tmp_path / "out").train(resume_from_checkpoint=str(folder))
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_in_a_checkpoint_are_not_run(checkpoint, model_folder, tmp_path):
    import shutil

    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint-1")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(SFTCoreError):
        trainer_of(model_folder, tmp_path / "out").train(resume_from_checkpoint=str(folder))
    assert not (tmp_path / "ran").exists()


def test_a_link_out_of_a_checkpoint_is_refused(checkpoint, model_folder, tmp_path):
    import shutil

    folder = shutil.copytree(checkpoint, tmp_path / "checkpoint-1")
    (tmp_path / "elsewhere").write_text("secret")
    (folder / "trainer_state.json").unlink()
    (folder / "optimizer.pt").unlink()
    shutil.copy(checkpoint / "trainer_state.json", folder)
    (folder / "optimizer.pt").symlink_to(tmp_path / "elsewhere")
    trainer = trainer_of(model_folder, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"optimizer\.pt is a link that leads out of the checkpoint"):
        trainer.train(resume_from_checkpoint=str(folder))


def test_a_pickled_adapter_is_not_read(tmp_path):
    from sftcore.tools.saved import open_run

    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "x", "peft_type": "LORA"}')
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(ModelError, match="pickle file, which can run code"):
        open_run(str(tmp_path))
    assert not (tmp_path / "ran").exists()
