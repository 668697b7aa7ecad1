"""The package as its users meet it: it must be installed (`pip install ".[test]"`)."""

import pytest
import torch
from datasets import Dataset
from sftcore_gaussian import Gaussian

from sftcore import LoadedModel, Plan, SFTConfig, SFTTrainer
from sftcore.testing import NoiseTests

pytest_plugins = "sftcore.testing"


class TestGaussian(NoiseTests):
    plugin = Gaussian


IDS = torch.arange(4, 20).repeat(4, 25)


def noise_of(plugin, model, batches):
    """What is added to the embeddings in each of some batches, with the noise taken off and put on again between."""
    embed, found = model.get_input_embeddings(), []
    plain = embed(IDS)
    for _ in range(batches):
        handle = plugin.inject_noise(LoadedModel(model, None), Plan(()))
        found.append((embed(IDS) - plain).detach())
        handle.remove()
    assert torch.equal(embed(IDS), plain)
    return found


@pytest.mark.parametrize(
    ("schedule", "shares"),
    [
        ("constant", [1, 1, 1, 1, 1, 1]),
        ("linear", [1, 0.75, 0.5, 0.25, 0, 0]),
        ("cosine", [1, 0.854, 0.5, 0.146, 0, 0]),
    ],
)
def test_noise_is_normal_and_fades_as_its_schedule_says(tiny_model, schedule, shares):
    torch.manual_seed(0)
    found = noise_of(Gaussian(std=0.2, schedule=schedule, batches=4), tiny_model, 6)
    for noise, share in zip(found, shares, strict=True):
        assert noise.std().item() == pytest.approx(0.2 * share, rel=0.02, abs=1e-6)
        assert abs(noise.mean().item()) < 0.003
        if share:
            # a normal distribution has 68.3% within one standard deviation, 95.4% within two
            within = [(noise.abs() < times * 0.2 * share).float().mean().item() for times in (1, 2)]
            assert within == pytest.approx([0.683, 0.954], abs=0.01)


def test_each_batch_gets_noise_of_its_own(tiny_model):
    first, second = noise_of(Gaussian(schedule="constant"), tiny_model, 2)
    assert abs(torch.corrcoef(torch.stack([first.flatten(), second.flatten()]))[0, 1].item()) < 0.02


def trained(model, processor, folder, **settings):
    rows = Dataset.from_list([{"prompt": "say", "completion": " hello world"}] * 8)
    args = SFTConfig(str(folder), max_steps=2, learning_rate=0.0, use_cpu=True, report_to="none", **settings)
    trainer = SFTTrainer(model, args, train_dataset=rows, eval_dataset=rows, processing_class=processor)
    trainer.train()
    return trainer


def test_evaluations_neither_see_noise_nor_count_as_batches(tiny_model, tiny_processor, tmp_path):
    chosen, often = {"noise": {"gaussian": {"std": 0.5}}}, {"eval_strategy": "steps", "eval_steps": 1}
    noisy, plain, never = (
        trained(tiny_model, tiny_processor, tmp_path, **settings)
        for settings in ({"plugins": chosen, **often}, often, {"plugins": chosen})
    )
    losses = [[one["eval_loss"] for one in run.state.log_history if "eval_loss" in one] for run in (noisy, plain)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2
    seen = [one.plugin._seen for run in (noisy, never) for one in run.setup.plugins.bound if one.entry.kind == "noise"]
    assert seen[0] == seen[1] >= 2
