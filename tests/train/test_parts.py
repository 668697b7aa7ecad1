"""The parts of a run, each without a Trainer."""

from __future__ import annotations

import json
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import TrainerState
from transformers.trainer_pt_utils import LengthGroupedSampler

from sftcore.core.errors import CheckpointError, DivergenceError, ResumeError
from sftcore.train.checkpoint.atomic import AtomicCheckpoints
from sftcore.train.checkpoint.folders import newest
from sftcore.train.checkpoint.resume import Resumption
from sftcore.train.checkpoint.same_run import require_same
from sftcore.train.checkpoint.state import RunState
from sftcore.train.guard.divergence import LossLevel
from sftcore.train.guard.steps import Position, StepGuard
from sftcore.train.parts.evaluation import EvaluationLoss
from sftcore.train.parts.loss import LossBatch, chosen_loss, count_items, with_balance
from sftcore.train.parts.metrics import Metrics
from sftcore.train.parts.noise import TrainingNoise
from sftcore.train.parts.rows import GroupedByLength, RowDistribution


@pytest.fixture(scope="module")
def accelerator():
    return Accelerator(cpu=True)


# --- The guard --------------------------------------------------------------------------------------------------------
class Undone:
    """Counts what a guard undid."""

    def __init__(self) -> None:
        self.count = 0

    def remember(self):
        def undo() -> None:
            self.count += 1

        return undo


def make_guard(accelerator, policy="stop", *, level=None, undone=None, received=0, drawn=2):
    guard = StepGuard(
        policy,
        accelerator,
        position=lambda: Position(4, 1, drawn),
        received=lambda: received,
        remember=(undone or Undone()).remember,
        name_rows=lambda rows: f"rows {rows}",
    )
    guard.begin(level)
    return guard


def take_step(guard, losses, norm=1.0):
    guard.batches([{}] * len(losses))
    for loss in losses:
        guard.after_backward(torch.tensor(loss))
    guard.before_optimizer(torch.tensor(norm))


def test_a_finite_step_is_taken_and_a_signal_is_seen(accelerator):
    undone = Undone()
    guard = make_guard(accelerator, undone=undone, received=15)
    take_step(guard, [1.0, 2.0])
    assert (guard.stopped_by, guard.nonfinite.count, undone.count) == (15, 0, 0)


@pytest.mark.parametrize(
    ("losses", "norm", "said"),
    [
        ([1.0, math.nan], 1.0, "the loss is NaN or Inf, on batch 1 of epoch 1"),
        ([math.inf, 1.0], 1.0, "the loss is NaN or Inf, on batch 0 of epoch 1"),
        ([1.0, 1.0], math.inf, "a gradient is NaN or Inf, on batch 0, 1 of epoch 1"),
    ],
)
def test_a_step_that_is_not_finite_stops_the_run_and_names_its_batches(accelerator, losses, norm, said):
    with pytest.raises(DivergenceError, match=said) as caught:
        take_step(make_guard(accelerator), losses, norm)
    assert caught.value.step == 5


@pytest.mark.parametrize(("policy", "times"), [("skip", 1), ("continue", 0)])
def test_a_step_that_is_not_finite_is_undone_or_trained_on(accelerator, policy, times):
    undone = Undone()
    guard = make_guard(accelerator, policy, undone=undone)
    with pytest.warns(UserWarning, match="step 5: the loss is NaN"):
        take_step(guard, [math.nan])
    assert undone.count == times
    assert guard.state()["nonfinite"] == {"policy": policy, "count": 1, "steps": [5]}


def test_the_rows_of_a_bad_batch_are_named(accelerator):
    guard = make_guard(accelerator)
    loader = accelerator.prepare(DataLoader(list(range(8)), batch_size=2, shuffle=False))
    guard.watch(loader)
    list(loader)
    with pytest.raises(DivergenceError, match=r"on rows \[2, 3\]") as caught:
        take_step(guard, [1.0, math.nan])
    assert list(caught.value.rows) == [2, 3]


def test_a_loss_that_runs_away_is_found_and_its_history_survives_a_resume(accelerator):
    guard = make_guard(accelerator, level=LossLevel(2.0))
    for _ in range(10):
        take_step(guard, [2.0])
    resumed = make_guard(accelerator, level=LossLevel(2.0))
    resumed.restore(json.loads(json.dumps(guard.state())))
    with pytest.raises(DivergenceError, match="the loss has diverged"):
        take_step(resumed, [60.0])


# --- Checkpoints ------------------------------------------------------------------------------------------------------
def make_checkpoints(tmp_path, accelerator, **fields):
    settings = {"output_dir": str(tmp_path), "should_save": True, "process_index": 0, "local_process_index": 0}
    return AtomicCheckpoints(SimpleNamespace(**{**settings, "save_total_limit": None, **fields}), accelerator)


def write_into(checkpoints, step):
    def write():
        folder = checkpoints.aside / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "rng_state.pth").write_bytes(b"random")

    return write


def test_a_checkpoint_gets_its_name_when_it_is_whole(tmp_path, accelerator):
    checkpoints = make_checkpoints(tmp_path, accelerator)
    final = checkpoints.save(write_into(checkpoints, 3), tmp_path, TrainerState(global_step=3))
    assert final == tmp_path / "checkpoint-3"
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]
    assert newest(tmp_path).folder == final
    assert checkpoints.choose("last") == checkpoints.choose(str(final)) == str(final)
    assert checkpoints.choose(None) is None


def test_a_checkpoint_that_is_cut_off_leaves_nothing(tmp_path, accelerator):
    checkpoints = make_checkpoints(tmp_path, accelerator)

    def fail():
        write_into(checkpoints, 3)()
        raise KeyError("in the middle")

    with pytest.raises(KeyError):
        checkpoints.save(fail, tmp_path, TrainerState(global_step=3))
    assert not list(tmp_path.iterdir())
    assert checkpoints.aside is None
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        checkpoints.choose("last")
    assert checkpoints.choose("auto") is None


def test_a_full_disk_is_named_with_the_last_good_checkpoint(tmp_path, accelerator):
    checkpoints = make_checkpoints(tmp_path, accelerator)
    checkpoints.save(write_into(checkpoints, 1), tmp_path, TrainerState(global_step=1))

    def fail():
        raise OSError(28, "No space left on device")

    with pytest.raises(CheckpointError, match=r"step 2 could not be written.*good checkpoint is .*checkpoint-1"):
        checkpoints.save(fail, tmp_path, TrainerState(global_step=2))


def test_old_checkpoints_go_and_the_best_stays(tmp_path, accelerator):
    checkpoints = make_checkpoints(tmp_path, accelerator, save_total_limit=2)
    for step in (1, 2, 3):
        state = TrainerState(global_step=step, best_global_step=1)
        checkpoints.save(write_into(checkpoints, step), tmp_path, state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-3"]


# --- Resuming ---------------------------------------------------------------------------------------------------------
def test_a_run_continues_inside_its_epoch(tmp_path, accelerator):
    before = Resumption(accelerator)
    loader = accelerator.prepare(DataLoader(list(range(8)), batch_size=1))
    before.steps_in_epoch = 8
    before.watch(loader, only_here=False)
    before.enter_epoch(1, loader, first=True, load_random=lambda _: pytest.fail("nothing to load"))
    before.batches([{}] * 3)
    before.before_optimizer(torch.tensor(0.5))
    drawn = torch.rand(1)
    before.state_now().write(tmp_path, 0)

    after = Resumption(accelerator)
    after.read(str(tmp_path), dict, anyway=False)
    assert after.first_batch((1, 3), streams=False) == (1, 3)
    after.enter_epoch(1, loader, first=True, load_random=lambda _: pytest.fail("the epoch's own state counts"))
    assert (after.epoch, after.batches_drawn, after.saved.grad_norm) == (1, 3, 0.5)
    assert torch.rand(1) == drawn  # torch's random state is that of the epoch's start
    assert list(after.due()) == []


def test_what_was_due_is_done_once(tmp_path, accelerator):
    RunState(epoch=2, batches=8, evaluate=True, end_epoch=True).write(tmp_path, 0)
    resumption = Resumption(accelerator)
    resumption.read(str(tmp_path), dict, anyway=False)
    seen = [(what, resumption.epoch, resumption.batches_drawn) for what in resumption.due()]
    assert seen == [("evaluation", 2, 8), ("epoch end", 2, 8)]
    assert resumption.restored_random()
    assert list(resumption.due()) == []


def test_a_checkpoint_of_another_run_is_refused(tmp_path, accelerator):
    RunState(facts={"the model": "a"}).write(tmp_path, 0)
    with pytest.raises(ResumeError, match="the model: a in the checkpoint, b now"):
        Resumption(accelerator).read(str(tmp_path), lambda: {"the model": "b"}, anyway=False)
    with pytest.warns(UserWarning, match="although the run has changed"):
        require_same({"the model": "a"}, {"the model": "b"}, "x", anyway=True)


# --- Loss -------------------------------------------------------------------------------------------------------------
def test_items_are_weights_of_supervised_positions_without_the_first():
    labels = torch.tensor([[5, -100, 7, 8], [1, 2, -100, -100]])
    weights = torch.tensor([[1.0, 1.0, 0.5, 1.0], [1.0, 0.25, 1.0, 1.0]])
    assert count_items([{"labels": labels}]).item() == 3
    assert count_items([{"labels": labels, "weights": weights}, {"labels": labels}]).item() == 0.5 + 1 + 0.25 + 3


def test_a_batch_is_split_into_what_the_model_gets_and_what_the_loss_needs():
    labels, weights = torch.tensor([[5, 6, -100]]), torch.tensor([[9.0, 0.5, 9.0]])
    given = {"input_ids": labels, "labels": labels, "weights": weights, "num_tokens": torch.tensor(3)}
    batch = LossBatch.of(given, None, routers=True)
    assert batch.inputs == {"input_ids": labels, "use_cache": False, "output_router_logits": True}
    assert (batch.request.labels is labels, batch.request.weights is weights) == (True, True)
    assert batch.request.num_items.item() == 0.5
    assert len(given) == 4  # the batch itself is as it was
    assert not batch.is_empty


def test_a_users_loss_counts_unless_the_batch_is_empty():
    labels = torch.tensor([[5, 6]])
    for tokens, expected in ((2, "user"), (0, None)):
        batch = LossBatch.of({"labels": labels, "num_tokens": torch.tensor(tokens)}, 2, routers=False)
        chosen = chosen_loss(batch, 2, lambda *_, **__: "user", None)
        assert (None if chosen is None else chosen("outputs")) == expected


@pytest.mark.parametrize("asked", [True, False])
def test_the_experts_loss_is_added_in_shares(asked):
    assert with_balance(torch.tensor(1.0), {"aux_loss": torch.tensor(4.0)}, 0.5, 2, asked=asked).item() == 2.0


def test_the_loss_of_an_evaluation_is_a_mean_over_tokens(accelerator):
    evaluation = EvaluationLoss()
    assert evaluation.means(accelerator) == {}
    evaluation.add(torch.tensor(1.0), torch.tensor(3.0))
    evaluation.add(torch.tensor(5.0), torch.tensor(1.0))
    evaluation.add(torch.tensor(math.nan), torch.tensor(0.0))
    assert evaluation.means(accelerator) == {"loss": (1.0 * 3 + 5.0) / 4}


def test_the_loss_of_an_evaluation_is_what_the_users_own_gave(accelerator):
    evaluation = EvaluationLoss()
    labels, empty = torch.tensor([[1, 2], [-100, 3], [-100, -100]]), torch.full((3, 2), -100)
    evaluation.add(torch.tensor(1.0), torch.tensor(3.0))
    evaluation.gave(torch.tensor(2.0), labels)  # the plugin's and a term: weighed by tokens
    assert evaluation.means(accelerator) == {"loss": 2.0}
    evaluation.begin("eval")
    evaluation.gave(torch.tensor(1.0), labels)  # the user's alone: by rows that have tokens
    evaluation.gave(torch.tensor(4.0), labels[:1])
    evaluation.gave(torch.tensor(math.nan), empty)
    assert evaluation.means(accelerator) == {"loss": (1.0 * 2 + 4.0) / 3}


def test_the_perplexity_of_an_evaluation_is_of_the_likelihood_alone(accelerator):
    evaluation = EvaluationLoss()
    evaluation.fault = ""
    for likelihood, count in ((1.0, 3.0), (5.0, 1.0), (math.nan, 0.0)):
        evaluation.add(torch.tensor(9.0), torch.tensor(count), torch.tensor(likelihood))
    metrics = {}
    evaluation.fill(metrics, accelerator)
    assert metrics == {"eval_loss": 9.0, "eval_perplexity": math.exp(2.0)}
    evaluation.begin("eval_far")
    evaluation.add(torch.tensor(9.0), torch.tensor(1.0), torch.tensor(1e6))
    assert evaluation.means(accelerator)["perplexity"] == math.inf
    evaluation.gave(torch.tensor(9.0), torch.tensor([[1, 2]]))  # a batch whose likelihood nobody knows
    evaluation.gave(torch.tensor(9.0), torch.tensor([[1, 2]]))
    assert evaluation.means(accelerator) == {"loss": 9.0}


def test_metrics_are_means_over_tokens_and_survive_a_resume(accelerator):
    def batch(entropy, correct, supervised, tokens):
        found = {"entropy": entropy, "correct": correct, "supervised": supervised}
        inputs = {"labels": torch.zeros(1, tokens, dtype=torch.long)}
        return {name: torch.tensor(float(value)) for name, value in found.items()}, LossBatch.of(
            inputs, 1, routers=False
        )

    metrics = Metrics(accelerator)
    metrics.add("train", *batch(3.0, 1, 2, 5))
    before = metrics.sums()
    metrics.add("train", *batch(math.nan, 0, 4, 9))
    metrics.put_back(before)  # a step that was left out
    resumed = Metrics(accelerator)
    resumed.restore(json.loads(json.dumps(metrics.state())))
    resumed.add("train", *batch(9.0, 3, 4, 7))
    expected = {"entropy": 12 / 6, "mean_token_accuracy": 4 / 6, "num_tokens": 12.0, "num_supervised_tokens": 6.0}
    assert resumed.drain("train") == pytest.approx(expected)
    assert resumed.drain("train") == {}
    resumed.add("eval", *batch(1.0, 1, 1, 3))
    resumed.forget_evaluation()
    assert resumed.drain("eval") == {}


# --- Rows and noise ---------------------------------------------------------------------------------------------------
def make_rows(accelerator, **fields):
    config = SimpleNamespace(dispatch_batches=False, split_batches=False)
    settings = {"accelerator_config": config, "model_init_kwargs": None, "parallelism_config": None, "world_size": 1,
                "process_index": 0, "seed": 3, "data_seed": None, **fields}  # fmt: skip
    return RowDistribution(SimpleNamespace(**settings), accelerator, SimpleNamespace(shards=[]), lambda batch: batch)


def test_one_process_reads_every_row_and_takes_so_many_batches_a_step(accelerator):
    rows = make_rows(accelerator)
    loader = rows.loader(lambda rows: DataLoader(rows, batch_size=2), list(range(6)), batch_size=2, training=True)
    batches = iter(loader)
    assert [one.tolist() for one in rows.take(batches, 2)] == [[0, 1], [2, 3]]
    assert [one.tolist() for one in rows.take(batches, 2)] == [[4, 5]]
    assert rows.take(batches, 2) == []


def test_rows_grouped_by_length_are_in_an_order_of_seed_and_epoch_alone(accelerator):
    lengths = [3, 9, 1, 7, 5, 2, 8, 4]
    rows = Dataset.from_list([{"input_ids": [1] * length} for length in lengths])
    orders = []
    for noise in (0, 1):
        torch.manual_seed(noise)  # as dropout has drawn more numbers in one process than in another
        sampler = make_rows(accelerator).sampler(LengthGroupedSampler(2, dataset=rows, lengths=lengths))
        assert isinstance(sampler, GroupedByLength)
        orders.append([list(sampler), sampler.set_epoch(1), list(sampler)])
    assert orders[0] == orders[1]
    assert orders[0][0] != orders[0][2]
    assert sorted(orders[0][0]) == list(range(8))


def test_noise_is_off_while_the_model_is_saved():
    events = []

    class Plugins:
        def answers(self, hook):
            return []  # none that this project knows by name; what a wrapper alone injects is in `all`

        def all(self, hook, **_):
            events.append("on")
            return [("noise", SimpleNamespace(remove=lambda: events.append("off")))]

    noise = TrainingNoise(Plugins(), None, None)
    with noise.training(), noise.around_save():
        events.append("saved")
    assert events == ["on", "off", "saved", "on", "off"]
    with warnings.catch_warnings(), noise.paused():
        events.append("evaluated")
    assert events[5:] == ["evaluated"]
