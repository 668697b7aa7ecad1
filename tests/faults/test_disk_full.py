"""A disk that fills up during a save ends the run with one clear error, and what was saved before still loads."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import shutil
import subprocess

import pytest
from transformers import TrainerCallback

from sftcore.core.errors import CheckError, CheckpointError, WriteError
from sftcore.train.checkpoint.folders import newest
from sftcore.util.disk import DiskFailure, replace_text, writing
from tests.faults import runs


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The weights of the run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = runs.trainer(folder)
    trainer.train()
    trainer.save_model()
    return runs.weights_of(folder)


@contextlib.contextmanager
def file_system(folder, size):
    """A file system of its own."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path):
    """One that holds one checkpoint and a half."""
    with file_system(tmp_path / "disk", "900k") as folder:
        yield folder


@pytest.fixture
def full_disk(tmp_path):
    """One that holds next to nothing."""
    with file_system(tmp_path / "full", "8k") as folder:
        yield folder


@contextlib.contextmanager
def no_file_above(num_bytes):
    """Writes beyond `num_bytes` of a file fail."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_the_run_with_one_error_and_the_checkpoint_before_goes_on(small_disk, expected):
    out = small_disk / "out"
    with pytest.raises(CheckpointError) as error:
        runs.trainer(out).train()
    said = str(error.value)
    assert "out: the checkpoint of step 4 could not be written: " in said
    assert "No space left on device" in said or "torch could not write a file to its end" in said
    assert "MiB are free there" in said
    assert f"The last good checkpoint is {out / 'checkpoint-2'} (step 2)." in said
    assert runs.checkpoints(out) == ["checkpoint-2"]
    assert not list(out.glob(".tmp-*"))
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    resumed = runs.trainer(out)
    resumed.train(resume_from_checkpoint="auto")
    resumed.save_model()
    assert runs.weights_of(out) == expected


@pytest.mark.parametrize(("limit", "file"), [(100_000, "model.safetensors"), (200_000, "optimizer.pt")])
def test_a_file_that_cannot_be_written_to_its_end_leaves_nothing_half_written(tmp_path, limit, file, expected):
    out = tmp_path / "out"
    runs.trainer(out, max_steps=2).train()
    sizes = {path.name: path.stat().st_size for path in (out / "checkpoint-2").iterdir()}
    assert sizes[file] > limit > sizes["tokenizer.json"]
    with (
        no_file_above(limit),
        pytest.raises(CheckpointError, match=r"step 4 could not .* \(step 2\)\. (Free space|Raise the limit)"),
    ):
        runs.trainer(out).train(resume_from_checkpoint="auto")
    assert runs.checkpoints(out) == ["checkpoint-2"]
    assert not list(out.glob(".tmp-*"))
    resumed = runs.trainer(out)
    resumed.train(resume_from_checkpoint="auto")
    resumed.save_model()
    assert runs.weights_of(out) == expected


def test_a_final_save_that_fails_leaves_the_model_of_old_and_names_the_last_checkpoint(tmp_path):
    trainer = runs.trainer(tmp_path)
    trainer.train()
    trainer.save_model()
    old = runs.weights_of(tmp_path)
    trainer.model.model.norm.weight.data.zero_()
    with no_file_above(100_000), pytest.raises(CheckpointError, match=r"the model could not be .*checkpoint-6"):
        trainer.save_model()
    assert runs.weights_of(tmp_path) == old
    assert (tmp_path / "config.json").exists()
    assert not list(tmp_path.glob(".tmp-*"))


def test_an_error_that_is_not_the_disks_is_left_as_it_is(tmp_path):
    trainer = runs.trainer(tmp_path, max_steps=2)
    trainer.model.save_pretrained = lambda *args, **kwargs: [][1]
    with pytest.raises(IndexError):
        trainer.train()
    assert newest(tmp_path).folder is None
    assert not list(tmp_path.glob(".tmp-*"))


def test_the_errors_of_the_libraries_that_write_are_known(tmp_path):
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    value = torch.zeros(100_000)
    with no_file_above(1000):
        with pytest.raises(RuntimeError) as by_torch:
            torch.save(value, tmp_path / "a.pt")
        with pytest.raises(SafetensorError) as by_safetensors:
            save_file({"a": value}, tmp_path / "a.safetensors")
    assert DiskFailure.of(by_torch.value).said == "torch could not write a file to its end"
    assert DiskFailure.of(by_safetensors.value).said == "File too large"
    assert DiskFailure.of(OSError(errno.ENOSPC, "No space left on device")).said == "No space left on device"
    assert DiskFailure.of(RuntimeError("CUDA error")) is None


def test_a_full_disk_under_the_log_ends_the_run_with_one_error(tmp_path, full_disk):
    out = tmp_path / "out"
    trainer = runs.trainer(out, save_strategy="no", max_steps=4)

    class Fill(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if not (out / "metrics.jsonl").is_symlink():  # the log's disk is full from here on
                (full_disk / "rest").write_bytes(b"x" * 8192)
                (out / "metrics.jsonl").unlink()
                (out / "metrics.jsonl").symlink_to(full_disk / "metrics.jsonl")

    trainer.add_callback(Fill())
    with pytest.raises(WriteError, match=r"the log cannot be written: No space left.*resume from the last checkpoint"):
        trainer.train()


def test_a_full_disk_under_the_cache_names_the_variable_that_moves_it(tmp_path, full_disk, monkeypatch):
    monkeypatch.setenv("SFTCORE_CACHE", str(full_disk / "cache"))
    (full_disk / "rest").write_bytes(b"x" * 4096)
    with pytest.raises(WriteError, match=r"prepared rows cannot be written: No space left on device; .* SFTCORE_CACHE"):
        runs.trainer(tmp_path / "out")
    assert not list((full_disk / "cache" / "prepared").glob("*-*"))


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_an_output_dir_that_cannot_be_one_is_found_before_the_data_are_prepared(tmp_path, place, monkeypatch):
    (tmp_path / "file").write_text("a file")
    monkeypatch.setenv("SFTCORE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckError, match=r"output_dir .*: .*file is a file\. Name a folder"):
        runs.trainer(tmp_path / place)
    assert not (tmp_path / "cache").exists()


def test_a_page_or_report_that_cannot_be_written_is_one_error(tmp_path, full_disk):
    (full_disk / "rest").write_bytes(b"x" * 8192)
    said = r"the page cannot be written: No space left on device; 0\.0 MiB are free"
    with pytest.raises(WriteError, match=said), writing("the page", full_disk / "page.html"):
        (full_disk / "page.html").write_text("page")
    with pytest.raises(FileNotFoundError), writing("the model", full_disk, reads_too=True):
        (full_disk / "missing").read_text()


def test_a_manifest_or_log_that_cannot_be_written_leaves_the_one_before(tmp_path):
    path = tmp_path / "manifest.json"
    replace_text(path, "whole")
    with no_file_above(1000), pytest.raises(OSError, match="File too large"):
        replace_text(path, "x" * 2000)
    assert path.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Free space, or"),
        (errno.EDQUOT, "Free space, or"),
        (errno.EFBIG, "Raise the limit on the size of a file"),
        (errno.EROFS, "Mount the file system for writing, or"),
        (errno.EACCES, "Change who may write there, or"),
        (errno.EPERM, "Change who may write there, or"),
        (errno.ENOENT, "Make the folder again"),
        (errno.EIO, "Look for a fault of the disk"),
        (errno.EBUSY, "Choose another folder."),
    ],
)
def test_the_advice_fits_what_the_system_said(tmp_path, number, advice):
    with pytest.raises(WriteError) as error, writing("the page", tmp_path):
        raise OSError(number, os.strerror(number))
    assert error.value.fix.startswith(advice)
    assert os.strerror(number) in error.value.what
    assert ("are free there" in error.value.what) == (number in (errno.ENOSPC, errno.EDQUOT))
