"""The seams fit the installed transformers, and nothing else in sftcore reaches into its Trainer."""

from __future__ import annotations

import ast
import inspect
import re
import warnings
from pathlib import Path

import pytest
from transformers import Trainer

import sftcore
from sftcore.train.evaluating import EvaluatingTrainer
from sftcore.train.seams import TrainerSeams
from sftcore.train.seams_of_saving import SavingSeams
from sftcore.train.trainer import SFTTrainer
from sftcore.util.versions import TESTED, warn_if_untested

ONLY_IN_THE_NEWER = {"_initial_global_step"}
"""Attributes of transformers 5.24 that 5.17 does not have, and that do no harm there."""
PACKAGE = Path(sftcore.__file__).parent
SEAMS = [PACKAGE / "train" / name for name in ("seams.py", "seams_of_saving.py")]
OVERRIDDEN = sorted(
    (cls, name)
    for cls, kind in ((kind.__name__, kind) for kind in (SavingSeams, TrainerSeams, EvaluatingTrainer, SFTTrainer))
    for name, value in vars(kind).items()
    if inspect.isfunction(value) and name in vars(Trainer) and name != "__init__"
)


def private_names_of_trainer() -> set[str]:
    """Private methods of transformers' Trainer, and private attributes that its source sets."""
    methods = {name for name in vars(Trainer) if name.startswith("_") and not name.startswith("__")}
    return methods | set(re.findall(r"self\.(_[a-z]\w*)\s*(?::[^=\n]+)?=[^=]", inspect.getsource(Trainer)))


def attributes(path: Path) -> set[str]:
    return {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}


@pytest.mark.parametrize(("cls", "name"), OVERRIDDEN)
def test_a_seam_takes_what_transformers_passes(cls, name):
    """Every call that fits transformers' own method fits ours: all by position, all by name, defaults left out."""
    original = inspect.signature(getattr(Trainer, name))
    ours = inspect.signature(getattr(SFTTrainer, name))
    parameters = [one for one in original.parameters.values() if one.kind not in (one.VAR_POSITIONAL, one.VAR_KEYWORD)]
    needed = [one for one in parameters if one.default is one.empty]
    ours.bind(parameters[0], **{one.name: one for one in parameters[1:]})
    if name != "_run_epoch":  # the one method that transformers calls by name alone; see below
        ours.bind(*needed)
        ours.bind(*parameters)


def test_a_seam_calls_methods_and_reads_attributes_that_transformers_has():
    found = {name for path in SEAMS for name in attributes(path)}
    known = private_names_of_trainer().union(*(vars(kind) for kind in (SavingSeams, TrainerSeams, SFTTrainer)))
    used = {name for name in found if name.startswith("_") and not name.startswith("__")}
    others = {"_replace", "_zero3_consolidated_16bit_state_dict"}  # of a named tuple, of DeepSpeed's engine
    assert used - known - others <= ONLY_IN_THE_NEWER


def test_transformers_calls_what_it_passes_by_name_as_the_seam_reads_it():
    source = inspect.getsource(Trainer._inner_training_loop)
    call = source[source.index("self._run_epoch(") :]
    for name in ("model", "epoch", "epochs_trained", "steps_in_epoch", "train_dataloader", "trial", "start_time"):
        assert f"{name}={name}," in call
    assert "ignore_keys_for_eval=ignore_keys_for_eval," in call


def test_only_the_seams_reach_into_transformers_trainer():
    private = private_names_of_trainer()
    others = [path for path in PACKAGE.rglob("*.py") if path not in SEAMS]
    reaching = {str(path.relative_to(PACKAGE)): attributes(path) & private for path in others}
    assert {path: names for path, names in reaching.items() if names} == {}


def test_a_newer_transformers_than_tested_is_said():
    with pytest.warns(UserWarning, match=r"transformers 5\.99\.0 is newer than 5\.24"):
        warn_if_untested("5.99.0")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for version in (*TESTED, "5.24.3", None):
            warn_if_untested(version)
