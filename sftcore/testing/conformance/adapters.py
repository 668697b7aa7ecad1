"""What an adapter has to pass: something trains, and what was trained is saved, loaded, merged and trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sftcore.testing import runs, short_runs
from sftcore.testing.conformance.trained import TrainedTests
from sftcore.testing.conformance.under_test import UnderTest
from sftcore.testing.isolated import isolated

TOKENS = list(range(5, 25))
ALLOWED = 1e-4
"""How far logits may differ after saving and loading: sums may be taken in another order."""


class AdapterTests(TrainedTests):
    """The tests of an adapter."""

    kind = "adapter"
    needs = ("wrap_model",)
    same_training = False
    reloads = True
    """False: its base is loaded in a way of its own, in 4 bits for example, which a saved adapter does not bring."""

    def test_what_it_trained_is_saved_loaded_merged_and_trained_on(self, tmp_path: Path) -> None:
        one = self.tested
        self._skip(one, "padded")
        if not self.reloads:
            pytest.skip("its base is loaded in a way that a saved adapter does not bring")
        trained = self._run(one, tmp_path / "first", str(short_runs.tiny_folder()))
        wanted, folder = _logits(trained.trainer.model), trained.folder
        stays = self._changed_though_frozen(trained.trainer.model)
        one.require(not stays, f"{stays} does not train, and is not what it was after training.")
        again = self._run(one, tmp_path / "again", str(folder), learning_rate=0.0)
        gap = float((_logits(again.trainer.model) - wanted).abs().max())
        one.require(
            gap <= ALLOWED,
            f"what was saved is not what was trained: loaded again, logits differ by up to {gap:.2g} (allowed: "
            f"{ALLOWED:g}). What save_pretrained does not write, write in save_model.",
        )
        first, second = _trainable(trained.trainer.model), _trainable(again.trainer.model)
        one.require(first == second, f"{first:,} numbers train at first, and {second:,} when it is trained on.")
        if (folder / "adapter_config.json").is_file():
            self._merge(one, folder, tmp_path / "merged", wanted)

    def _claims(self, one: UnderTest, layout: str) -> dict[str, Any]:
        # of an adapter for models that a loader of its own makes: recipe = {"loader": its name}
        return {**super()._claims(one, layout), "loader": self.recipe.get("loader", "")}

    def _run(self, one: UnderTest, folder: Path, model: str, **recipe: Any) -> Any:
        """Two steps; a saved PEFT adapter brings itself."""
        folder.mkdir()
        own = {} if (Path(model) / "adapter_config.json").is_file() else self.keys(one)
        keys = {"use_cpu": True, "learning_rate": 0.1, "optim": "sgd", **self.recipe, **own, **recipe}
        with isolated() as install, one.asked("training, saving and loading"):
            install(self._plugins(one))
            return runs.run_recipe(folder, model=model, **keys)

    def _changed_though_frozen(self, model: Any) -> str:
        from transformers import AutoModelForCausalLM

        before = AutoModelForCausalLM.from_pretrained(short_runs.tiny_folder()).state_dict()
        for name, parameter in model.named_parameters():
            own = before.get(name.removeprefix("base_model.model.").replace(".base_layer", ""))
            same_kind = own is not None and own.shape == parameter.shape and own.dtype == parameter.dtype
            if not parameter.requires_grad and same_kind and not bool((own == parameter.cpu()).all()):
                return str(name)
        return ""

    def _merge(self, one: UnderTest, folder: Path, merged: Path, wanted: Any) -> None:
        from transformers import AutoModelForCausalLM

        from sftcore.tools.merge import merge
        from sftcore.tools.saved import open_run

        with one.asked("merging"):
            merge(open_run(str(folder)), merged)
        gap = float((_logits(AutoModelForCausalLM.from_pretrained(merged)) - wanted).abs().max())
        one.require(gap <= 10 * ALLOWED, f"merged, its logits differ by up to {gap:.2g} (allowed: {10 * ALLOWED:g}).")


def _logits(model: Any) -> Any:
    import torch

    model.eval()
    with torch.no_grad():
        return model(input_ids=torch.tensor([TOKENS], device=model.device)).logits.float().cpu()


def _trainable(model: Any) -> int:
    return sum(one.numel() for one in model.parameters() if one.requires_grad)
