"""A plugin that is wrong in one way fails the tests of its kind, with a message that says what and where."""

from __future__ import annotations

import re

import pytest

from sftcore.testing import (
    AdapterTests,
    AttentionTests,
    CollatorTests,
    FormatTests,
    KernelTests,
    LoaderTests,
    LossTests,
    NoiseTests,
)
from tests.testing import faulty, heavy, loud

ROWS = [{"q": "Where is it? ", "a": "Over there."}, {"q": "Is it open? ", "a": "From nine to five."}]
KINDS = {
    one.kind: one
    for one in (
        FormatTests, CollatorTests, LoaderTests, AdapterTests, AttentionTests, KernelTests, LossTests, NoiseTests,
    )
}  # fmt: skip


def said_by(kind, test, plugin, *arguments, **options) -> str:
    """The message with which a test of the kind fails on this plugin."""
    attributes = {"plugin": plugin, "options": options, "name": "twin", **({"rows": ROWS} if kind == "format" else {})}
    made = type("Twin", (KINDS[kind],), attributes)()
    with pytest.raises(pytest.fail.Exception) as caught:
        getattr(made, f"test_{test}")(*arguments)
    message = str(caught.value)
    assert message.startswith(f'{kind} "twin": '), message
    return message


# --- All kinds --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("test", "plugin", "said"),
    [
        ("its_module_is_light_and_prints_nothing_when_imported", heavy.Heavy, "imports torch at the top"),
        ("its_module_is_light_and_prints_nothing_when_imported", loud.Loud, "prints when it is imported: 'hello from"),
        ("its_docstring_says_in_a_line_what_it_is", faulty.Mumbling, 'the first line of its docstring is "x"'),
        ("its_options_come_back_from_a_recipe_as_they_are", faulty.WrongDefault, "its option column refuses the value"),
        ("it_can_be_pickled", faulty.Unpicklable, "pickling it"),
        ("its_methods_are_hooks", faulty.Unmarked, "has no method marked @hookimpl"),
        ("its_check_finds_problems_and_leaves_nothing_behind", faulty.Fickle, "something else when it is asked"),
    ],
)  # fmt: skip
def test_what_every_plugin_has_to_do(test, plugin, said):
    assert said in said_by("format", test, plugin)


def test_a_class_that_is_no_plugin_is_named():
    class Twin(FormatTests):
        plugin = dict
        rows = ROWS

    with pytest.raises(pytest.fail.Exception, match=r"made by @sftcore\.plugin"):
        Twin().test_it_can_be_pickled()


# --- Formats ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("test", "function", "said"),
    [
        ("each_row_becomes_examples", faulty.none, "None"),
        ("each_row_becomes_examples", faulty.raising, "KeyError: 'Q'"),
        ("a_row_is_read_the_same_way_each_time", faulty.counted, "row 0 is read differently"),
        ("rows_are_left_as_they_are", faulty.emptied, "row 0 changes the row itself"),
    ],
)  # fmt: skip
def test_a_format(test, function, said):
    assert said in said_by("format", test, faulty.answering(function))


@pytest.mark.parametrize(
    ("function", "counts"), [(faulty.prompt_trained, "Where is it? Over there."), (faulty.turned, "Where is it?")]
)
def test_a_format_with_which_something_else_counts(function, counts):
    class Twin(FormatTests):
        plugin = faulty.answering(function)
        rows = ROWS
        supervised = ("Over there.", "From nine to five.")

    with pytest.raises(pytest.fail.Exception, match=rf"{re.escape(counts)} ?' counts, not 'Over there\.'"):
        Twin().test_what_should_count_counts_and_nothing_else()


def test_a_format_that_detects_everything():
    assert "for every data set" in said_by(
        "format", "its_own_rows_are_detected_and_unknown_ones_are_not", faulty.Greedy
    )


def test_rows_that_are_missing_are_asked_for():
    class Twin(FormatTests):
        plugin = faulty.answering(faulty.read)

    with pytest.raises(pytest.fail.Exception, match="Twin needs `rows`"):
        Twin().test_each_row_becomes_examples()


# --- Collators --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("test", "options", "said"),
    [
        ("its_claims_hold", {"how": "hidden"}, "all -100"),
        ("its_claims_hold", {"how": "shifted"}, "shifted by 1"),
        ("rows_are_left_as_they_are", {"how": "eaten"}, "changes the rows themselves"),
        ("its_function_goes_to_worker_processes", {"how": "closure"}, "pickling what make_collator gives"),
        ("it_says_how_it_lays_rows_out", {"how": "none", "says": True}, "flattens says True"),
    ],
)
def test_a_collator(test, options, said):
    layout = ["padded"] if test == "its_claims_hold" else []
    assert said in said_by("collator", test, faulty.BadCollator, *layout, **options)


# --- What is tried on a model -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "plugin", "options", "said"),
    [
        ("loss", faulty.BadLoss, {"how": "mean"}, "divide by num_items|num_items twice as large"),
        ("loss", faulty.BadLoss, {"how": "unweighted"}, "weights"),
        ("loss", faulty.BadLoss, {"how": "detached"}, "detached|no gradient"),
        ("loss", faulty.BadLoss, {"how": "shape"}, "shape|twice"),
        ("attention", faulty.Scaled, {}, "its logits differ by"),
        ("attention", faulty.CausalAlone, {}, "with padding on the left its logits differ by"),
        ("kernel", faulty.BadKernel, {}, "its logits differ by"),
        ("kernel", faulty.BadKernel, {"factor": 1.0, "undone": False}, "after undo logits differ"),
        ("kernel", faulty.BadKernel, {"factor": 1.0, "cached": 9}, "the configuration's max_position_embeddings"),
        ("noise", faulty.BadNoise, {}, "after remove logits differ"),
        ("noise", faulty.BadNoise, {"how": "silent"}, "changes nothing while the model trains"),
        ("adapter", faulty.BadAdapter, {}, "no parameter of the model trains"),
        ("adapter", faulty.BadAdapter, {"how": "unused"}, "does not use them"),
        ("adapter", faulty.BadAdapter, {"how": "dropped"}, "lacks 1 of 2 layers"),
        ("adapter", faulty.BadAdapter, {"how": "around"}, "1 of 2 layers, such as model.layers.1, have no part in"),
        ("loader", faulty.BadLoader, {}, "asked for float32|asked for bfloat16"),
        ("loader", faulty.BadLoader, {"leaves_out": "arguments"}, "eager was asked for"),
        ("loader", faulty.BadLoader, {"leaves_out": "weights"}, "are not those that were saved"),
        ("loader", faulty.BadLoader, {"leaves_out": "request"}, "does not have the request"),
    ],
)  # fmt: skip
def test_what_is_tried_on_a_tiny_model(kind, plugin, options, said):
    message = said_by(kind, "its_claims_hold", plugin, "padded", **options)
    assert any(part in message for part in said.split("|")), message


def test_a_kernel_that_changes_training_fails_its_run():
    message = said_by("kernel", "a_run_trains_with_it", faulty.BadKernel, "padded", factor=20.0)
    assert "train differently with it" in message or "logits differ" in message


def test_an_adapter_whose_weights_are_not_saved(tmp_path):
    message = said_by(
        "adapter",
        "what_it_trained_is_saved_loaded_merged_and_trained_on",
        faulty.BadAdapter,
        tmp_path,
        how="unsaved",
    )
    assert "what was saved is not what was trained" in message
