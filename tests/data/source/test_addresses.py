"""Addresses of files elsewhere are named as such, whole, wherever a recipe or a command has data."""

from __future__ import annotations

import pytest

from sftcore.cli import main
from sftcore.config.recipe import load_recipe
from sftcore.core.errors import DataError, SFTCoreError
from sftcore.data.source.files import local_files
from sftcore.train.run import check_recipe

ADDRESSES = {
    "s3://bucket/x.jsonl": "Copy the file",
    "S3://bucket/folder": "Copy the file",
    "s3://bucket/*.jsonl": "Copy the file",
    "gs://bucket/a b/x.parquet": "Copy the file",
    "az://container/x.csv": "Copy the file",
    "abfss://fs@account.dfs.core.windows.net/x.jsonl": "Copy the file",
    "https://example.org/x.jsonl.gz": "Copy the file",
    "https://example.org/x.jsonl?download=true": "Copy the file",
    "hf://datasets/owner/name/data/x.jsonl": "Write the data set's hub id: owner/name",
    "hf://datasets/owner/name@main": "Write the data set's hub id: owner/name",
    "https://huggingface.co/datasets/owner/na.me/resolve/main/x.jsonl": "Write the data set's hub id: owner/na.me",
    "file:///data/a%20b.jsonl": "Write its path: /data/a b.jsonl",
    "file://localhost/data/a.jsonl": "Write its path: /data/a.jsonl",
}


def run_cli(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["sftcore", *words])
    main()


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("among", [False, True], ids=["alone", "of several"])
def test_an_address_is_named(address, among, write):
    given = [str(write("rows.jsonl", '{"text": "a"}\n')), address] if among else address
    with pytest.raises(DataError, match="this is an address") as caught:
        local_files(given)
    assert f"({address.partition('://')[0].lower()}://)" in caught.value.what
    assert caught.value.where in (address, address.replace("fs@", "<not written>@"))
    assert caught.value.fix.startswith(ADDRESSES[address])


def test_what_is_secret_in_an_address_is_not_said():
    with pytest.raises(DataError) as caught:
        local_files("https://me:hunter2@example.org/x.jsonl?sig=abcdef")
    assert "hunter2" not in str(caught.value)
    assert "abcdef" not in str(caught.value)


@pytest.mark.parametrize("name", ["owner/name", "name", "a:b/c"])
def test_other_names_are_no_addresses(name):
    assert local_files(name) is None


@pytest.mark.parametrize("name", ["C:/rows.jsonl", "c://rows.jsonl"])
def test_a_drive_is_no_address(name):
    with pytest.raises(DataError, match="no such file"):
        local_files(name)


@pytest.mark.parametrize(
    "data",
    [
        "data: s3://bucket/x.jsonl",
        "data: [{path: 's3://bucket/x.jsonl', weight: 2}, {path: ROWS, weight: 1}]",
        "data: [ROWS, 's3://bucket/x.jsonl']",
        "data: {train: ROWS, eval: 's3://bucket/x.jsonl'}",
        "data: {train: 's3://bucket/x.jsonl', streaming: true}",
        "data: {train: 's3://bucket/folder', streaming: true}",
        "data: {train: ROWS, eval: {dev: {path: 's3://bucket/x.jsonl'}, hard: ROWS}}",
    ],
)
def test_a_recipe_with_one(data, model_folder, write, tmp_path, capsys, monkeypatch):
    rows = write("rows.jsonl", '{"text": "hello"}\n')
    data = data.replace("ROWS", str(rows))
    recipe = write(
        "run.yaml", f"model: {model_folder}\n{data}\noutput_dir: {tmp_path}/out\nuse_cpu: true\nmax_steps: 1\n"
    )
    with pytest.raises(SFTCoreError, match=r"s3://bucket/(x.jsonl|folder): this is an address \(s3://\)") as caught:
        check_recipe(load_recipe(str(recipe), []))
    assert str(caught.value).count("this is an address") == 1
    for verb in ("train",) if "eval" in data else ("train", "preview"):  # a preview reads no evaluation set
        with pytest.raises(SystemExit):
            run_cli(monkeypatch, verb, str(recipe))
        assert "this is an address (s3://)" in capsys.readouterr().err


def test_the_check_of_a_file_has_one(capsys, monkeypatch):
    with pytest.raises(SystemExit):
        run_cli(monkeypatch, "check", "s3://bucket/x.jsonl")
    printed = capsys.readouterr()
    assert "this is an address (s3://)" in printed.out + printed.err
    assert "s3://bucket/x.jsonl" in printed.out + printed.err
