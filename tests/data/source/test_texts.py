"""Plain text files by line, paragraph and document: train, stream and check see the same texts."""

from __future__ import annotations

import gzip

import pytest

from sftcore import DataError
from sftcore.config.recipe import load_recipe
from sftcore.config.setup import set_up_recipe
from sftcore.core.errors import SFTCoreError
from sftcore.data.source.files import local_files
from sftcore.data.source.rows import raw_rows
from sftcore.data.source.several import inspect_set, load_set

WRITTEN = "\n  First line\nsecond line\n \t\n\nThird, after a gap\n\n\n"
EXPECTED = {
    "line": ["  First line", "second line", "Third, after a gap"],
    "paragraph": ["  First line\nsecond line", "Third, after a gap"],
    "document": ["  First line\nsecond line\n \t\n\nThird, after a gap"],
}


def texts(path, *words, streaming=False):
    recipe = load_recipe(None, [f"data={{train: {path}}}", "model=m", *words])
    given = inspect_set(recipe.data.sources, set_up_recipe(recipe), "first")
    rows = load_set(given, streaming=streaming)
    files = given.sources[0].source.files
    checked = [raw.row for one in files.paths for raw in raw_rows(one, "text", files.sample_by)]
    found = [dict(row) for row in rows]
    assert found == checked, "check and train read files alike"
    return [row["text"] for row in found]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("by", [None, *EXPECTED])
@pytest.mark.parametrize("breaks", ["\n", "\r\n"])
def test_a_text_file_has_the_rows_that_are_asked_for(tmp_path, by, breaks, streaming):
    path = tmp_path / "notes.txt"
    path.write_bytes(b"\xef\xbb\xbf" + WRITTEN.replace("\n", breaks).encode())
    words = [f"data.sample_by={by}"] if by else []
    assert texts(path, *words, streaming=streaming) == EXPECTED[by or "line"]


def test_each_file_of_a_folder_is_a_document(tmp_path):
    for name, text in (("a.txt", "one\n\ntwo\n"), ("b.txt", "three"), ("blank.txt", "\n \n")):
        (tmp_path / name).write_text(text)
    with gzip.open(tmp_path / "c.txt.gz", "wt") as file:
        file.write("four\nfive\n")
    assert texts(tmp_path, "data.sample_by=document") == ["one\n\ntwo", "three", "four\nfive"]


def test_sample_by_is_of_each_source_and_its_general_value_leaves_other_types_alone(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n")
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n')
    one, other = f"{{path: {tmp_path}/a.txt, sample_by: document}}", f"{tmp_path}/b.jsonl"
    sections = load_recipe(None, [f"data=[{one}, {other}]", "model=m"]).data.sources
    assert [section.sample_by for section in sections] == ["document", None]
    general = f"data={{train: [{tmp_path}/a.txt, {other}], eval: {tmp_path}/a.txt, sample_by: paragraph}}"
    recipe = load_recipe(None, [general, "model=m"])
    assert [section.sample_by for section in recipe.data.every] == ["paragraph", None, "paragraph"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("{path: a.txt, sample_by: documents}", "documents"),
        ("{train: b.jsonl, sample_by: document}", "no source is one"),
    ],
)
def test_a_wrong_sample_by_is_refused_in_the_recipe(data, said):
    with pytest.raises(SFTCoreError, match=said):
        load_recipe(None, [f"data={data}", "model=m"])


def test_sample_by_for_files_of_rows_is_refused(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\n')
    with pytest.raises(DataError, match=r"b\.jsonl: sample_by says what a row of a \.txt file is"):
        local_files(str(tmp_path / "b.jsonl"), "document")
