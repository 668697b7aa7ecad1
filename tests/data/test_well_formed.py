"""An example that a format gives is looked at whole, so that a wrong value inside it does not train on in silence."""

import collections

import numpy as np
import pytest

from sftcore.core.types import Example, Message, Part, Span, TokenizedRow
from sftcore.data.rules.well_formed import fault_in

ANSWER = Message("assistant", "yes")


def turns(*turn: Message) -> Example:
    return Example(messages=[*turn, ANSWER])


@pytest.mark.parametrize(
    ("example", "said"),
    [
        (turns(Message(None, "a")), "as Message.role"),
        (turns(Message("user", 3)), "as Message.content"),
        (turns(Message("user", ["a"])), "as Message.content"),
        (turns(Message("user", [{"type": "text", "text": "a"}])), "as Message.content"),
        (turns(Message("user", "a", weight=2.0)), r"0.0 to 1.0, got float 2.0 as Example.messages\[0\].weight"),
        (turns(Message("user", "a", weight=float("nan"))), "0.0 to 1.0, got float nan"),
        (turns(Message("user", "a", weight="much")), "as Message.weight"),
        (turns(Message("user", "a", extra=["a"])), "as Message.extra"),
        (turns(Message("user", "a", tool_calls=["f"])), "tool_calls"),
        (turns(Message("user", "a", tool_calls="f")), "tool_calls"),
        (turns(Message("user", "a", reasoning=3)), "reasoning"),
        (Example(messages=(turn for turn in [ANSWER])), "as Example.messages"),
        (Example(messages=[{"role": "user", "content": "a"}]), "Example.messages"),
        (Example(messages=[ANSWER], tools="[]"), "as Example.tools"),
        (Example(messages=[ANSWER], tools=["f"]), "as Example.tools"),
        (Example(messages=[ANSWER], template_kwargs=["a"]), "as Example.template_kwargs"),
        (Example(messages=[ANSWER], template_kwargs={1: 2}), "Example.template_kwargs"),
        (Example(messages=[ANSWER], images="a.png"), "as Example.images"),
        (Example(text=5), "as Example.text"),
        (Example(text="hello", spans=[(0, 3)]), "as Example.spans"),
        (Example(text="hello", spans=[Span(0.0, 3.0)]), "start and end within the 5 characters"),
        (Example(text="hello", spans=[Span(0, 6)]), "start and end within the 5 characters"),
        (Example(text="hello", spans=[Span(3, 1)]), "start and end within the 5 characters"),
        (Example(text="hello", spans=[Span(0, 2, weight=3)]), "0.0 to 1.0"),
        (Example(tokens=[1, 2]), "Example.tokens"),
        (Example(tokens=TokenizedRow("123")), "TokenizedRow.input_ids"),
        (Example(tokens=TokenizedRow([1.0, 2.0])), "TokenizedRow.input_ids"),
        (Example(tokens=TokenizedRow([[1, 2], [3]])), "TokenizedRow.input_ids"),
        (Example(tokens=TokenizedRow([True, False])), "TokenizedRow.input_ids"),
        (Example(tokens=TokenizedRow([1, None])), "TokenizedRow.input_ids"),
        (Example(tokens=TokenizedRow([1, -3])), "got int -3 as TokenizedRow.input_ids"),
        (Example(tokens=TokenizedRow([1, 2, 3], [1, 2])), "got 2 for 3 as TokenizedRow.labels"),
        (Example(tokens=TokenizedRow([1, 2], [False, True])), "TokenizedRow.labels"),
        (Example(tokens=TokenizedRow([1, 2], [-1, 2])), "got int -1 as TokenizedRow.labels"),
        (Example(tokens=TokenizedRow([1, 2], weights=[1.0, None])), "TokenizedRow.weights"),
        (Example(tokens=TokenizedRow([1, 2], weights=[1.0, float("nan")])), "TokenizedRow.weights"),
        (Example(tokens=TokenizedRow([1, 2], weights=[1.0, 1.5])), "TokenizedRow.weights"),
    ],
)  # fmt: skip
def test_what_is_wrong_inside_an_example_is_named(example, said):
    with pytest.raises(ValueError, match=said):
        raise ValueError(fault_in(example))


class Role(str):
    """As an enumeration of texts is."""


@pytest.mark.parametrize(
    "example",
    [
        turns(Message(Role("user"), "a", weight=np.float32(0.5))),
        turns(Message("user", [Part("text", "a")], tool_calls=({"name": "f"},), extra=collections.OrderedDict(a=1))),
        turns(Message("user", (Part("image"),), weight=1)),
        Example(prompt="a", completion="b"),
        Example(prompt=(Message("user", "a"),), completion=[ANSWER], tools=[], template_kwargs={"thinking": False}),
        Example(text="hello", spans=[Span(0, 0), Span(np.int64(1), 5)]),
        Example(text=""),
        Example(tokens=TokenizedRow([])),
        Example(tokens=TokenizedRow(np.array([1, 2]), np.array([-100, 2]), np.array([0.0, 1.0]))),
        Example(tokens=TokenizedRow((np.int64(1), 2), [-100, 2], [0, 1])),
    ],
)
def test_what_is_unusual_and_right_is_taken(example):
    assert fault_in(example) == ""
