"""One run at a time writes to an output folder: a second is refused, and the lock of a dead one is replaced."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time

import psutil
import pytest
from attrs import asdict
from transformers import TrainerCallback

from sftcore.core.errors import ConflictError, WriteError
from sftcore.train.checkpoint import owner
from sftcore.train.checkpoint.other_run import OutputFolder
from tests.faults import runs


def lock_of(folder, **facts):
    """A lock as another process would have written it."""
    here = owner.Owner.here()
    written = {
        "pid": here.pid,
        "started": here.started,
        "host": here.host,
        "space": here.space,
        "since": "noon",
        **facts,
    }
    folder.mkdir(exist_ok=True)
    (folder / owner.LOCK).write_text(json.dumps({**written, "token": "theirs"}))
    return folder / owner.LOCK


@pytest.fixture
def sleeper():
    """A process that does nothing."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    yield psutil.Process(process.pid)
    process.kill()
    process.wait()


def entered(folder):
    with owner.owned(folder):
        return json.loads((folder / owner.LOCK).read_text())


def test_the_lock_says_who_writes_and_is_gone_afterwards(tmp_path):
    facts = entered(tmp_path / "out")
    assert facts["pid"] == os.getpid()
    assert facts["host"] == socket.gethostname()
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_in_which_a_process_writes_is_refused_and_left_as_it_is(tmp_path, sleeper):
    lock = lock_of(tmp_path, pid=sleeper.pid, started=sleeper.create_time())
    left = tmp_path / ".tmp-checkpoint-4"
    left.mkdir()
    before = lock.read_text()
    for attempt in (lambda: entered(tmp_path), lambda: OutputFolder(tmp_path, None, True, None).refuse()):
        with pytest.raises(
            ConflictError, match=rf"another run writes to this folder: process {sleeper.pid} on .*since noon"
        ):
            attempt()
    assert lock.read_text() == before
    assert left.is_dir()


def test_a_trainer_is_refused_before_it_removes_what_the_other_run_is_writing(tmp_path, sleeper):
    out = tmp_path / "out"
    lock_of(out, pid=sleeper.pid, started=sleeper.create_time())
    (out / ".tmp-checkpoint-4").mkdir()
    trainer = runs.trainer(out)
    with pytest.raises(ConflictError, match="another run writes to this folder"):
        trainer.train()
    with pytest.raises(ConflictError, match="another run writes to this folder"):
        trainer.save_model()
    assert (out / ".tmp-checkpoint-4").is_dir()
    assert sorted(path.name for path in out.iterdir()) == [".tmp-checkpoint-4", owner.LOCK]


@pytest.mark.parametrize("facts", [{"pid": 2**22 + 1}, {"started": 1.0}], ids=["no such process", "another process"])
def test_the_lock_of_a_process_that_ended_is_replaced_and_said(tmp_path, facts):
    lock_of(tmp_path, **facts)
    OutputFolder(tmp_path, None, False, None).refuse()
    with pytest.warns(UserWarning, match="ended without a word; this one takes its place"):
        assert entered(tmp_path)["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("silent", "refused"), [(5, True), (3600, False)])
def test_a_run_on_another_machine_is_judged_by_its_signs_of_life(tmp_path, silent, refused):
    lock = lock_of(tmp_path, host="elsewhere", space="another boot")
    os.utime(lock, (time.time() - silent, time.time() - silent))
    if refused:
        with pytest.raises(ConflictError, match=r"on elsewhere.* if it has, remove .*_run\.lock"):
            entered(tmp_path)
    else:
        with pytest.warns(UserWarning, match="on elsewhere.*takes its place"):
            entered(tmp_path)


def test_a_lock_that_cannot_be_read_is_replaced_once_it_is_old(tmp_path):
    lock = lock_of(tmp_path)
    lock.write_bytes(b"\xff\x00")
    os.utime(lock, (1, 1))
    assert entered(tmp_path)["pid"] == os.getpid()


def test_of_many_that_find_a_dead_lock_one_gets_the_folder(tmp_path):
    """Threads stand for processes here: what is shared is the folder alone."""
    lock_of(tmp_path, pid=2**22 + 1)
    start, taken, refused = threading.Barrier(16), [], []

    def take():
        start.wait()
        try:
            taken.append(owner._take(tmp_path))
        except ConflictError:
            refused.append(1)

    threads = [threading.Thread(target=take) for _ in range(16)]

    def race():
        for one in threads:
            one.start()
        for one in threads:
            one.join()

    with pytest.warns(UserWarning, match="takes its place"):
        race()
    assert len(taken) == 1
    assert len(refused) == 15
    assert (tmp_path / owner.LOCK).read_text() == taken[0]
    assert [path.name for path in tmp_path.iterdir()] == [owner.LOCK]


def test_the_lock_is_held_for_as_long_as_a_run_trains_and_no_longer(tmp_path):
    seen = []

    class Look(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            seen.append((tmp_path / owner.LOCK).is_file())

        def on_save(self, args, state, control, **_):
            seen.append((tmp_path / owner.LOCK).is_file())

    trainer = runs.trainer(tmp_path, max_steps=2)
    trainer.add_callback(Look())
    trainer.train()
    assert seen == [True, True, True]
    assert not (tmp_path / owner.LOCK).exists()
    trainer.save_model()
    runs.trainer(tmp_path, max_steps=4).train(resume_from_checkpoint="last")  # the same process may go on
    assert not (tmp_path / owner.LOCK).exists()


def test_a_run_that_fails_gives_the_folder_back(tmp_path):
    class Fail(TrainerCallback):
        def on_step_end(self, *_, **__):
            raise RuntimeError("oops")

    trainer = runs.trainer(tmp_path)
    trainer.add_callback(Fail())
    with pytest.raises(RuntimeError, match="oops"):
        trainer.train()
    assert not (tmp_path / owner.LOCK).exists()


def test_a_new_run_waits_for_processes_whose_launcher_has_ended(tmp_path, sleeper):
    lock_of(tmp_path, pid=sleeper.pid, started=sleeper.create_time(), parent=[2**22 + 1, 1.0])
    threading.Timer(1.0, sleeper.kill).start()
    with pytest.warns(UserWarning, match="takes its place"):
        entered(tmp_path)


WRONG = [
    {"pid": "12"}, {"pid": -1}, {"pid": 0}, {"pid": None}, {"pid": 1.5}, {"pid": 2**70}, {"started": "x"},
    {"started": None}, {"parent": [1]}, {"parent": ["a", "b"]}, {"parent": [1, 2, 3]}, {"parent": 5}, {"host": None},
]  # fmt: skip


@pytest.mark.parametrize("wrong", [*WRONG, None], ids=range(len(WRONG) + 1))
def test_a_lock_that_names_no_process_is_replaced(tmp_path, wrong):
    facts = {**json.loads(json.dumps(asdict(owner.Owner.here()))), **(wrong or {})}
    lock = tmp_path / owner.LOCK
    lock.write_text(json.dumps(facts) if wrong else "[" * 100_000)
    os.utime(lock, (time.time() - 1000,) * 2)
    owner.refuse_owned(tmp_path)
    with owner.owned(tmp_path):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_place_of_the_lock_is_named_and_left(tmp_path):
    (tmp_path / owner.LOCK).mkdir()
    with pytest.raises(WriteError, match="Move the folder that stands where a file has to be"), owner.owned(tmp_path):
        pytest.fail("it was taken")
    assert [path.name for path in tmp_path.iterdir()] == [owner.LOCK]
