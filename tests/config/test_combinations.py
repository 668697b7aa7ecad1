"""What cannot work together is refused before torch is imported, and the docs say what is said."""

from __future__ import annotations

import pytest

from tests.config.combinations import COMBINATIONS, PAGE, as_recipe, make_folders, said_of, table


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("combinations")
    make_folders(root)  # their weights cannot be read: none is
    return root


@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_combination_that_cannot_work_is_one_problem_with_its_way_out(folders, name):
    ((what, fix),) = said_of(name, folders)
    assert what
    assert fix


def test_each_combination_has_an_error_of_its_own(folders):
    said = {name: said_of(name, folders)[0][0] for name in COMBINATIONS}
    alike = [names for what in set(said.values()) if len(names := [n for n, one in said.items() if one == what]) > 1]
    # a GGUF file is one reason, whoever asks for the bits
    assert alike == [["`qlora` on a GGUF file", "4-bit loading of a GGUF file"]]


def test_the_docs_show_what_is_said(folders):
    page = PAGE.read_text(encoding="utf-8")
    missing = [row for row in table(folders) if row not in page]
    assert not missing, "run: python -m tests.config.combinations"


def test_recipes_of_the_docs_are_what_was_tried():
    assert as_recipe("DoRA on 8 bits") == "adapter: {qlora: {bits: 8, use_dora: true}}"
