"""The parts of `benchmarks/gpu.py`: processes and their limits, wheels, sizes of models, the report."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import zipfile

import pytest
from gpu_run import checks, machine, models, plan, report
from gpu_run.speed import _flops
from gpu_run.worker import Task, run


def came_to(*names, seconds=60.0):
    told = []
    tasks = [Task(name, f"tests.benchmarks.gpu_tasks:{name}") for name in names]
    found = run(
        tasks, seconds, standin=False, told=lambda one: told.append({key: dict(each) for key, each in one.items()})
    )
    return found, told


def test_each_task_says_what_became_of_it_and_the_next_one_follows():
    found, told = came_to("wrong", "impossible", "right")
    assert {name: one["state"] for name, one in found.items()} == {
        "wrong": "failed", "impossible": "not run", "right": "done",
    }  # fmt: skip
    assert found["right"]["result"] == {"value": 1}
    assert found["wrong"]["error"] == "AssertionError: the losses are others"
    assert "in wrong" in found["wrong"]["traceback"]
    assert found["impossible"]["error"] == "no kernel"
    assert told[-1] == found


def test_a_task_that_ends_its_process_is_named_and_the_rest_runs_in_another():
    found, _ = came_to("right", "fatal", "impossible")
    assert [one["state"] for one in found.values()] == ["done", "failed", "not run"]
    assert "ended with 3" in found["fatal"]["error"]


@pytest.mark.slow
def test_a_run_that_is_cut_off_keeps_what_it_had_and_names_the_rest():
    found, told = came_to("right", "endless", "wrong", seconds=6)
    assert found["right"]["state"] == "done"
    assert found["endless"] == {"state": "cut off", "error": "after 6 s", "result": [1]}
    assert found["wrong"] == {"state": "not run", "error": "no time was left of 6 s"}
    assert any("endless" in one and "wrong" not in one for one in told), "nothing was told before the end"


# --- The machine ------------------------------------------------------------------------------------------------------
def wheel(folder, name, *needs):
    """A wheel with one module and these requirements."""
    info = f"{name}-1.0.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *(f"Requires-Dist: {one}" for one in needs)]
    files = {
        f"{name}.py": "", f"{info}/METADATA": "\n".join(lines) + "\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }  # fmt: skip
    record = "".join(f"{one},,\n" for one in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)


def test_wheels_that_were_carried_are_used_and_what_they_lack_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    wheel(tmp_path, "carried", "nowhere_to_be_found>=2", "attrs>=999", "absent; extra == 'more'", "second")
    wheel(tmp_path, "second", "third_of_all")
    machine.install(tmp_path, tmp_path / "here")
    assert importlib.metadata.version("carried") == "1.0"
    found = importlib.util.find_spec("carried")
    assert str(tmp_path / "here") in found.origin
    assert "site-packages" in found.origin, "datasets would pickle its globals where it hashes a function"
    attrs = importlib.metadata.version("attrs")
    assert [*machine._lacking("carried", {"carried"}, direct=True)] == [
        "nowhere_to_be_found>=2 (for carried): not installed",
        f"attrs>=999 (for carried): {attrs} is installed",
        "third_of_all (for second): not installed",
    ]


def test_a_folder_without_wheels_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="There are no wheels"):
        machine.install(tmp_path, tmp_path / "here")


def test_this_environment_lacks_nothing():
    assert machine.missing() == []


# --- What is measured -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("name", "published"), [("1B", 1_235_814_400), ("8B", 8_030_261_248)])
def test_shapes_are_those_of_the_published_models(name, published):
    shape = models.SHAPES[name]
    norms = shape.hidden_size * (2 * shape.num_hidden_layers + 1)
    assert shape.body + shape.head * (1 if shape.tied else 2) + norms == published


def test_rows_have_the_lengths_that_they_say():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models.folder_of("tiny"))
    for row in models.rows(50, "usual", 512):
        assert 16 <= len(tokenizer(row["prompt"])["input_ids"]) <= 128
        assert 32 <= len(tokenizer(row["completion"])["input_ids"]) + 1 <= 896


def test_flops_count_products_of_tokens_and_the_head_of_supervised_ones():
    # 2 layers of width 64: q and o 64 x 64, k and v 64 x 32, three products of the MLP 64 x 128; a head of 512 x 64
    layers = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
    # scores and values of 10 and 20 tokens, the half of them that is causal, forward and twice backward
    attention = 3 * 2 * (2 * 2 * 64) * (10 * 10 + 20 * 20) / 2
    assert _flops("tiny", [10, 20], 7, 5) == 30 * (4 * layers + 6 * 5) + 7 * 4 * 512 * 64 + attention


def test_the_run_fits_ten_minutes_and_its_names_are_unique():
    parts = plan.parts(standin=False)
    assert sum(part.seconds for part in parts) <= 600
    so_far = {
        "choices": {"attention sdpa": measured(100.0), "attention varlen": measured(300.0), "chunk 512": measured(9.0)}
    }
    tasks = [task for part in parts for task in part.tasks(so_far)]
    names = [task.name for part in parts[:2] for task in part.tasks({})]
    assert len(names) == len(set(names))
    best = next(task for task in tasks if task.name == "best")
    assert (best.arguments["attention"], best.arguments["chunk"]) == ("varlen", 512)


def measured(speed):
    return {"state": "done", "seconds": 1.0, "result": {"tokens_per_second": speed}}


def test_the_checks_are_those_of_every_attention_dtype_and_layout():
    names = {task.name for task in checks.tasks(standin=False)}
    for attention in ("sdpa", "eager", "varlen", "flash-2", "flash-3"):
        for dtype in ("autocast", "bfloat16"):
            assert {f"attention {attention}, {dtype}, {one}" for one in ("padded", "padding-free", "packed")} <= names


def of(batch, speed, losses=(3.0, 2.0), tokens=10):
    return {
        "batch": batch, "tokens_per_second": speed, "peak_mib": 2048.0 * batch, "model_tflops": speed / 10,
        "losses": [*losses], "tokens": tokens, "attention": "sdpa",
    }  # fmt: skip


def results(ours, theirs):
    return {
        "device": {"name": "NVIDIA H200"}, "versions": {}, "left_out": {}, "standin": False,
        "parts": {
            "sftcore 8B": {"default": {"state": "done", "seconds": 1.0, "result": ours}},
            "trl 8B": {"trl": {"state": "done", "seconds": 1.0, "result": theirs}},
        },
    }  # fmt: skip


def test_the_table_compares_with_trl_at_the_same_batch_and_says_what_is_full():
    found = results([of(8, 4945.0), of(16, 5000.0)], [of(8, 2000.0), {"batch": 16, "out_of_memory": True}])
    table = report.table(found)
    assert (
        "default, batch 8: sdpa, 4,945 tokens/s, peak 16.0 GiB, 2.47 x TRL with 1.00 of its memory, MFU 50.0%" in table
    )
    assert "default, batch 16: sdpa, 5,000 tokens/s, peak 32.0 GiB, MFU 50.6%" in table
    assert "trl, batch 16: out of memory" in table
    assert not report.failed(found)


@pytest.mark.parametrize("other", [{"losses": (3.0, 2.1)}, {"tokens": 11}])
def test_a_comparison_of_runs_that_train_something_else_is_void(other):
    found = results([of(8, 4945.0)], [of(8, 2000.0, **other)])
    assert "VOID" in report.table(found)
    assert report.failed(found)
