"""What `check` takes for the same row: one with the same words and the same images."""

import base64
import io
import json

import pytest
from click.testing import CliRunner
from PIL import Image

from sftcore.cli import cli


def encoded(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, "PNG")
    return buffer.getvalue()


def in_column(image, answer):
    return {"messages": turns([{"type": "image"}, {"type": "text", "text": "What is it?"}], answer), "images": [image]}


def in_part(image, answer):
    return {"messages": turns([{"type": "image", "image": image}, {"type": "text", "text": "What is it?"}], answer)}


def in_text(image, answer):
    return {"prompt": "<image>What is it?", "completion": answer, "images": [image]}


def turns(asked, answer):
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def found(tmp_path, rows):
    """The findings of a check without a model, and the rows that they are about."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (report,) = json.loads(CliRunner().invoke(cli, ["check", str(file), "--json"]).output)["sets"]
    return {one["id"]: [place["row"] for place in one["rows"]] for one in report["findings"]}


@pytest.mark.parametrize("written", [in_column, in_part, in_text])
@pytest.mark.parametrize("form", [str, lambda name: base64.b64encode(encoded(name)).decode()], ids=["path", "base64"])
def test_rows_are_the_same_only_with_the_same_images(tmp_path, written, form):
    red, blue = form("red"), form("blue")
    rows = [written(red, "A wall."), written(blue, "A wall."), written(red, "A wall."), written(blue, "A sky.")]
    seen = found(tmp_path, rows)
    assert seen["duplicate-rows"] == [2]
    assert seen["same-prompt"] == [3]


def test_texts_are_the_same_whatever_else_their_parts_hold(tmp_path):
    part = {"type": "text", "text": "What is it?"}
    rows = [{"messages": turns([{**part, **more}], "A wall.")} for more in ({}, {"cache_control": {"type": "x"}})]
    assert found(tmp_path, rows)["duplicate-rows"] == [1]
