"""Trackers hold every number that a run has logged, with its step, and what the run knows of itself."""

from __future__ import annotations

import json
import math

import pytest

from sftcore import SFTCoreError
from tests.distributed.ranked_runs import read, start
from tests.train.trackers import tracked_in_two
from tests.train.trackers.tracked_runs import OFFLINE, expected_facts, readable, rewritten, tracked_run

pytest.importorskip("tensorboard")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in OFFLINE.items():
            patch.setenv(name, value)
        yield tracked_run(tmp_path_factory.mktemp("tensorboard"), "tensorboard")


@pytest.fixture(scope="module")
def events(run):
    """What TensorBoard reads of all files of the run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = (run.folder / "out" / "runs").iterdir()
    found = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    return found


def test_every_number_of_every_step_is_there(run, events):
    names = run.trainer.callback_handler.callbacks[2].names
    assert len({name for name, _, _ in run.points() if name.startswith("loss/")}) == 8
    assert len({names(name) for name, _, _ in run.points()}) == len({name for name, _, _ in run.points()})
    seen = {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    for name, step, value in run.points():
        same = [found for at, found in seen[rewritten(names(name))] if at == step]
        assert any(found == pytest.approx(value, rel=1e-6) for found in same), name
    assert sum(map(len, seen.values())) == len(run.points())
    assert all(map(readable, seen))


def test_plugins_counts_and_plan_are_texts(run, events):
    texts = {
        tag.removesuffix("/text_summary"): events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in events.Tags()["tensors"]
    }
    assert texts["sftcore/plugins/loss"].startswith("nll (sftcore ")
    assert texts["sftcore/plugins/format"].startswith("text (sftcore ")
    assert "learning rate" in texts["sftcore/plan"]
    names = run.trainer.callback_handler.callbacks[2].names
    wanted = expected_facts(run)
    assert len(wanted) == 44
    assert {name: texts[names(name)] for name in wanted} == wanted
    assert all(map(readable, texts))


def test_the_trackers_stand_between_the_recorder_and_the_users_callbacks(run):
    kinds = [type(one).__name__ for one in run.trainer.callback_handler.callbacks]
    assert kinds[:3] == ["DefaultFlowCallback", "RunRecorder", "TensorBoard"]
    assert kinds.index("TensorBoard") < kinds.index("Heard")


def test_perplexities_are_among_them(run):
    found = {name: value for name, _, value in run.points() if "perplexity" in name}
    assert set(found) == {"eval_dev_perplexity", "eval_數據_perplexity"}
    assert all(map(math.isfinite, found.values()))


def test_a_tracker_that_cannot_begin_is_an_error_before_the_first_step(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "file" / "runs"))
    with pytest.raises(
        SFTCoreError, match=r"report_to: TensorBoard cannot begin: .*take tensorboard out of report_to"
    ) as caught:
        tracked_run(tmp_path, "tensorboard")
    assert "\n" not in str(caught.value)
    assert not [*(tmp_path / "out").glob("model*")]


@pytest.mark.slow
def test_two_processes_log_once_and_streams_are_counted_of_both(tmp_path, model_folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = start(tmp_path / "two", model_folder, "stream", script=tracked_in_two.__file__)
    (place,) = (folder / "stream" / "runs").iterdir()
    assert len([*place.iterdir()]) == 1
    found = EventAccumulator(str(place), size_guidance={"scalars": 0, "tensors": 0})
    found.Reload()
    logged = [{**entry, "rank": rank} for rank in (0, 1) for entry in read(folder, "stream", rank)]
    losses = [entry["loss"] for entry in logged if "loss" in entry and entry["rank"] == 0]
    assert [(one.step, one.value) for one in found.Scalars("train/loss")] == [
        (i, pytest.approx(loss, rel=1e-6)) for i, loss in enumerate(losses, start=1)
    ]
    assert [one.step for one in found.Scalars("eval/perplexity")] == [1, 2]
    evaluated = [entry for entry in logged if "eval_perplexity" in entry]
    assert len(evaluated) == 4
    for entry in evaluated:
        assert entry["eval_perplexity"] == pytest.approx(math.exp(entry["eval_loss"]), rel=1e-6)
    (ledger,) = [
        one for one in json.loads((folder / "stream" / "ledger.json").read_text())["streams"] if "train" in one["name"]
    ]
    texts = {tag: found.Tensors(tag)[0].tensor_proto.string_val[0].decode() for tag in found.Tags()["tensors"]}
    for name in ("rows_kept", "tokens_supervised"):
        assert texts[f"sftcore/data/{ledger['name']}/{name}/text_summary"] == str(ledger[name])
