"""W&B offline, MLflow and Trackio hold every number that a run has logged, with its step, and the run's facts.

Each test is left out where the tracker is not installed (`pip install wandb mlflow trackio`).
"""

from __future__ import annotations

import json
import struct
from io import StringIO
from pathlib import Path

import pytest

from sftcore import SFTCoreError
from tests.train.trackers.tracked_runs import LONG, OFFLINE, SOURCES, expected_facts, readable, rewritten, tracked_run

pytestmark = pytest.mark.slow

OF_THE_RUN = {
    "train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos",
}  # fmt: skip


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Variables with which trackers write to the test's folder alone."""
    places = {
        "WANDB_DIR": tmp_path, "WANDB_CACHE_DIR": tmp_path / "cache", "WANDB_CONFIG_DIR": tmp_path / "config",
        "WANDB_DATA_DIR": tmp_path / "data", "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
    }  # fmt: skip
    for name, value in {**OFFLINE, **places}.items():
        monkeypatch.setenv(name, str(value))
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)  # both, so that what MLflow sets is gone afterwards
    monkeypatch.chdir(tmp_path)
    return tmp_path


def of_kind(run, name: str):
    """The tracker of this class in a run."""
    return next(one for one in run.trainer.callback_handler.callbacks if type(one).__name__ == name)


def agree(run, seen: dict[str, list[tuple[int, float]]], names, *, rel: float = 1e-6, rename=rewritten) -> None:
    """Whether each number that was logged is there under its name and step, and nothing else is."""
    for name, step, value in run.points():
        same = [found for at, found in seen[rename(names(name))] if at == step]
        assert any(found == pytest.approx(value, rel=rel) for found in same), name
    assert sum(map(len, seen.values())) == len(run.points())


# --- W&B --------------------------------------------------------------------------------------------------------------
def wandb_records(path: Path):
    """The records of an offline run: pieces of at most a block of 32 KiB, as LevelDB's logs have them."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            yield Record.FromString(whole)
            whole = b""


def items(found) -> dict[str, object]:
    return {"/".join(one.nested_key) or one.key: json.loads(one.value_json) for one in found}


def test_wandb(offline):
    wandb = pytest.importorskip("wandb")
    try:
        run = tracked_run(offline, "wandb")
    finally:
        wandb.finish()
        wandb.teardown()
    (path,) = offline.glob("wandb/offline-run-*/run-*.wandb")
    seen: dict[str, list[tuple[int, float]]] = {}
    config, summary = {}, {}
    for record in wandb_records(path):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            found = items(record.history.item)
            step = found.pop("train/global_step")
            for name, value in found.items():
                if not name.startswith("_"):
                    seen.setdefault(name, []).append((step, value))
        elif kind == "config":
            config |= items(record.config.update)
        elif kind == "summary":
            summary |= items(record.summary.update)
        elif kind == "run":
            config |= items(record.run.config.update)
    for name, step, value in run.points():
        if name in OF_THE_RUN:  # which transformers puts into the summary
            assert summary[name] == pytest.approx(value)
            seen.setdefault(rewritten(name), []).append((step, value))
    names = of_kind(run, "WeightsAndBiases").names
    agree(run, seen, names)
    assert all(map(readable, seen))
    wanted = expected_facts(run)
    assert {name: str(config[names(name)]) for name in wanted} == wanted
    assert config["sftcore/plugins/loss"].startswith("nll (sftcore ")
    assert "learning rate" in config["sftcore/plan"]


def test_wandb_without_a_key_is_our_error(offline, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(offline))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.stdin", StringIO())
    with pytest.raises(SFTCoreError, match=r"report_to: W&B cannot begin: .*[Kk]ey.*wandb login, WANDB_MODE=offline"):
        tracked_run(offline, "wandb")
    wandb.teardown()


# --- MLflow -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("store", ["sqlite", "files"])
def test_mlflow(offline, monkeypatch, store):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setattr("mlflow.tracking.fluent._active_experiment_id", None)
    if store == "files":
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", str(offline / "mlruns"))
    run = tracked_run(offline, "mlflow", tracker={"project": "names", "run_name": "a/b:c"})
    assert mlflow.active_run() is None
    client = mlflow.MlflowClient()
    experiments = [one.experiment_id for one in client.search_experiments()]
    (found,) = client.search_runs(experiments)
    assert found.info.run_name == "a/b:c"
    assert found.info.status == "FINISHED"
    seen = {
        name: [(one.step, one.value) for one in client.get_metric_history(found.info.run_id, name)]
        for name in found.data.metrics
    }
    names = of_kind(run, "MLflow").names
    agree(run, seen, names, rename=str)
    sources = {names(f"loss/{name}") for name in SOURCES}
    assert len(sources) == len(SOURCES)
    if store == "sqlite":
        assert {"loss", "loss/a", "loss/a/b:c", "eval_數據_loss"} <= set(seen)
    else:
        assert {"loss", "loss.a", "loss.a.b:c", "eval_數據_loss"} <= set(seen)
    parameters = found.data.params
    wanted = expected_facts(run)
    assert {name: parameters[names(name)] for name in wanted} == wanted
    assert parameters[names("sftcore/plugins/loss")].startswith("nll (sftcore ")
    assert parameters["chat_template"].startswith(LONG[:5000])
    assert len(parameters["chat_template"]) <= 6000


def test_a_plan_of_ten_thousand_characters_is_in_mlflow_whole(offline, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    text = "".join(f"line {i} of the plan\n" for i in range(600))
    monkeypatch.setattr("sftcore.train.trackers.facts.plan_lines", lambda trainer: text.splitlines())
    tracked_run(offline, "mlflow")
    (found,) = mlflow.MlflowClient().search_runs(["0"])
    pieces = [found.data.params[name] for name in ("sftcore/plan", "sftcore/plan 2", "sftcore/plan 3")]
    assert "".join(pieces) == text.rstrip()


def test_facts_that_a_tracker_refuses_do_not_end_a_run(offline):
    """A run that is continued has parameters already, which MLflow does not let anybody change."""
    mlflow = pytest.importorskip("mlflow")
    with mlflow.start_run():
        mlflow.log_param("sftcore/version", "another")
        with pytest.warns(UserWarning, match="MLflow did not take the facts of the run"):
            run = tracked_run(offline, "mlflow")
        assert mlflow.active_run() is not None  # it is the user's
    assert run.trainer.state.global_step == 2


# --- Trackio ----------------------------------------------------------------------------------------------------------
def test_trackio(offline):
    pytest.importorskip("trackio")
    run = tracked_run(offline, "trackio", tracker={"project": "names", "run_name": offline.name})
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    trackio.finish()
    seen: dict[str, list[tuple[int, float]]] = {}
    for entry in SQLiteStorage.get_logs("names", offline.name):
        step = entry["train/global_step"]
        for name, value in entry.items():
            if name not in ("train/global_step", "step", "timestamp"):
                seen.setdefault(name, []).append((step, value))
    names = of_kind(run, "Trackio").names
    agree(run, seen, names)
    config = SQLiteStorage.get_run_config("names", offline.name)
    wanted = expected_facts(run)
    assert {name: str(config[names(name)]) for name in wanted} == wanted
    assert config["sftcore/plugins/loss"].startswith("nll (sftcore ")
