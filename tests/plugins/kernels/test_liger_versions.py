"""Releases of Liger that compute wrong gradients are refused, by the extra and with the reason."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from sftcore_plugins.losses.liger import LigerLoss

from sftcore import Plan, Probe


def found(monkeypatch, version):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: version)
    return [problem.what for problem in LigerLoss().check(Plan(()), Probe())]


@pytest.mark.parametrize("version", ["0.8.0", "0.8.1"])
def test_releases_that_scale_gradients_by_the_first_weight_are_refused_by_name(monkeypatch, version):
    wanted = f"liger-kernel {version} scales the gradients of all tokens by the weight of the first one."
    assert found(monkeypatch, version) == [wanted]


def test_later_releases_are_taken(monkeypatch):
    assert found(monkeypatch, "0.8.2") == []


def test_the_extra_asks_for_a_right_one():
    text = (Path(__file__).parents[3] / "pyproject.toml").read_text(encoding="utf-8")
    specifier = SpecifierSet(re.search(r'^liger = \["liger-kernel(.*)"\]$', text, re.MULTILINE)[1])
    assert not any(version in specifier for version in ("0.8.0", "0.8.1"))
    assert "0.8.2" in specifier
