"""What is in data, names of files and errors reaches the terminal and pages as text, and secrets reach nothing."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch

import sftcore
from sftcore import cli
from sftcore.core.errors import RowError
from sftcore.core.visible import visible
from sftcore.util.plain import plain
from sftcore.util.secrets import masked
from tests.conftest import alpaca_rows

ATTACK = (
    "\x1b]0;owned\x07\x1b[2J[red]red[/red][link=http://evil]x[/link]\u202eturned\u2066\u200bhidden\x9b31m\u2028line"
)
STEERS = ("\x1b", "\x07", "\x9b", "\u202e", "\u2066", "\u200b", "\u2028")


def run_sftcore(*words: str, code: int = 0) -> str:
    """Run the command in this process, which has imported torch by now; what it printed, both streams."""
    printed = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(printed):
        patch.setattr(sys, "argv", ["sftcore", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    assert (ended.value.code or 0) == code, printed.getvalue()
    return printed.getvalue()


def run_apart(*words: str, code: int = 0) -> str:
    """The same in a process of its own, where the handlers of other libraries write to the terminal too."""
    environment = {**os.environ, "COLUMNS": "400", "PYTHONIOENCODING": "utf-8", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "sftcore", *words], capture_output=True, env=environment)
    printed = (done.stdout + done.stderr).decode()
    assert done.returncode == code, printed
    assert "Traceback" not in printed
    return printed


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")


def assert_harmless(printed: str) -> None:
    assert not [char for char in STEERS if char in printed]


@pytest.fixture
def rows(tmp_path) -> Path:
    """A file with the attack in its name, in the name of a role and in a text."""
    name = ATTACK.replace("/", "").replace("\x9b", "").replace("\u2028", "")  # YAML has no way to write these two
    path = tmp_path / f"rows{name}.jsonl"
    turns = [{"role": "user", "content": ATTACK}, {"role": "assistant", "content": f"hello {ATTACK}"}]
    path.write_text(json.dumps({"messages": turns}) + "\n")
    return path


def test_preview_shows_the_attack_as_text(rows, model_folder):
    printed = run_sftcore("preview", str(rows), f"--model={model_folder}")
    assert_harmless(printed)
    assert "\\x1b[2J[red]red[/red]" in printed


def test_check_shows_the_attack_as_text(rows, model_folder):
    printed = run_sftcore("check", str(rows), f"--model={model_folder}")
    assert_harmless(printed)
    assert "\\x1b]0;owned" in printed


def test_an_error_quotes_the_attack_as_text(rows):
    rows.write_text(json.dumps({"messages": [{"role": ATTACK, "content": "x"}]}) + "\n")
    printed = run_sftcore("train", "model=none", f"data={json.dumps(str(rows))}", "format=chat", code=1)
    assert_harmless(printed)
    assert "\\x1b[2J[red]red" in printed


def test_a_run_says_its_folder_as_text(tmp_path, model_folder, write):
    data = write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in alpaca_rows(2)))
    out = tmp_path / "out[red]\x1b[31m"
    words = [
        f"model={model_folder}",
        f"data={data}",
        "max_steps=1",
        "use_cpu=true",
        f"output_dir={json.dumps(str(out))}",
    ]
    printed = run_sftcore("train", *words)
    assert_harmless(printed)
    assert "saved in" in printed
    assert printed.count("out[red]\\x1b[31m") >= 2


def test_explain_and_replay_say_names_as_text(rows, tmp_path):
    printed = run_sftcore("explain", 'model="m\\u001b[31m"', f"data={json.dumps(str(rows))}")
    assert_harmless(printed)
    assert_harmless(run_sftcore("replay", str(tmp_path / "no\x1b[31m"), code=1))


def test_words_of_the_command_line_are_quoted_as_text():
    """A shell makes names of files of `*`."""
    for words in ((ATTACK,), ("list-plugins", ATTACK)):
        assert_harmless(run_sftcore(*words, code=2))


@pytest.mark.slow
def test_what_transformers_logs_of_a_model_is_shown_as_text(rows, model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": ATTACK}))
    printed = run_apart("train", f"model={folder}", f"data={json.dumps(str(rows))}", code=1)
    assert_harmless(printed)
    assert "model of type `\\x1b]0;owned" in printed


def test_every_error_is_harmless_wherever_it_is_printed():
    """Python prints a traceback with str() of the error, whatever program raised it."""
    error = RowError(f"role {ATTACK!s} is not known.", where=f"{ATTACK}.jsonl row 1", fix=ATTACK)
    assert_harmless(str(error))
    assert error.what == f"role {ATTACK} is not known."


def test_an_error_about_a_huge_value_is_short():
    shown = str(RowError("x" * 50_000_000))
    assert len(shown) < 21_000
    assert "49,980,000 characters left out" in shown


def test_text_that_steers_nothing_is_left_alone():
    text = "Grüße, 你好, مرحبا, 🙂\n\tdone"
    assert visible(text) == text


def test_a_page_holds_no_markup_of_the_data(rows, tmp_path, model_folder):
    evil = '"><script>alert(1)</script><img src=x onerror=alert(2)>{title}&lt;'
    turns = [{"role": "user", "content": evil}, {"role": "assistant", "content": evil}]
    data = tmp_path / "<script>alert(3)<\u2215script>.jsonl"
    data.write_text(json.dumps({"messages": turns}) + "\n")
    run_sftcore("preview", str(data), f"--model={model_folder}", f"--html={tmp_path / 'page.html'}")
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;" in page


# --- Secrets ----------------------------------------------------------------------------------------------------------
TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789"
OTHER = "a-password-that-looks-like-nothing"


def test_no_secret_is_in_any_file_or_line_of_a_run(tmp_path, model_folder, write, monkeypatch):
    """Tokens of the recipe, of model arguments, of the environment, and in an address; binary files too."""
    monkeypatch.setenv("SOME_API_KEY", OTHER)
    data = write("rows.jsonl", "".join(json.dumps(row) + "\n" for row in alpaca_rows(4)))
    recipe = write(
        "r.yaml",
        f"model: {{name: {model_folder}, init_kwargs: {{token: {TOKEN}}}}}\ndata: {data}\nmax_steps: 2\nuse_cpu: true\n"
        f"output_dir: {tmp_path / 'out'}\nhub_token: {TOKEN}\nsave_steps: 1\nlogging_steps: 1\n"
        f"run_name: https://me:{OTHER}@example.org/x\n",
    )
    printed = run_sftcore("train", str(recipe))
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert "training_args.bin" in {path.name for path in files}
    for secret in (TOKEN, OTHER):
        assert secret not in printed
        assert not [path.name for path in files if secret.encode() in path.read_bytes()]
    assert '"hub_token": "<not written>"' in (tmp_path / "out" / "manifest.json").read_text()


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("hub_token", "x", "<not written>"),
        ("WANDB_API_KEY", "x", "<not written>"),
        ("aws_secret_access_key", "x", "<not written>"),
        ("Authorization", "Bearer x", "<not written>"),
        ("eos_token", "</s>", "</s>"),
        ("token", 5, 5),
        ("hub-token", "x", "<not written>"),
        ("apiKey", "x", "<not written>"),
        ("x-api-key", "x", "<not written>"),
        ("password", 12345678, "<not written>"),
        ("aws_session_token", "x", "<not written>"),
        ("credentials", {"client": "x"}, "<not written>"),
        ("token", ["x", "y"], "<not written>"),
        ("use_auth_token", True, True),
        ("image_token", "<image>", "<image>"),
        ("note", "Authorization: Bearer abcdefghij", "Authorization: Bearer <not written>"),
        ("note", "hub_token=abc eos_token=</s> n=3", "hub_token=<not written> eos_token=</s> n=3"),
        (
            "data",
            "https://me:p@w@host/a?sig=abc&key=x&page=2",
            "https://<not written>@host/a?sig=<not written>&key=<not written>&page=2",
        ),
        ("note", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3", "<not written>"),
        ("note", "-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----", "<not written>"),
        ("note", f"see {TOKEN}", "see <not written>"),
        ("data", "https://me:pw@host/a?token=abc&b=1", "https://<not written>@host/a?token=<not written>&b=1"),
        ("data", "s3://bucket/a@b.jsonl", "s3://bucket/a@b.jsonl"),
    ],
)
def test_secrets_are_known_by_their_keys_and_by_their_looks(key, value, shown):
    assert plain({"a": [{key: value}]}) == {"a": [{key: shown}]}
    assert masked({"a": ({key: value},)}) == {"a": ({key: shown},)}


def test_a_text_full_of_beginnings_of_tokens_is_searched_in_no_time():
    """The pattern of a JSON web token once took time that grew with the square of the length: minutes here."""
    text = "eyJ-" * 100_000
    assert masked(text) == text


def test_settings_that_loggers_are_given_hold_no_token(tmp_path):
    args = sftcore.SFTConfig(str(tmp_path), hub_token=TOKEN, model_init_kwargs={"token": TOKEN}, use_cpu=True)
    assert TOKEN not in args.to_json_string()


def test_a_trainer_keeps_its_token_and_writes_arguments_that_can_be_read_without_it(tmp_path, model_folder):
    from datasets import Dataset

    args = sftcore.SFTConfig(
        str(tmp_path / "out"), hub_token=TOKEN, model_init_kwargs={"token": TOKEN}, use_cpu=True, report_to="none"
    )
    trainer = sftcore.SFTTrainer(str(model_folder), args, train_dataset=Dataset.from_list(alpaca_rows(4)))
    trainer.save_model()
    assert trainer.args is args
    assert (args.hub_token, args.model_init_kwargs["token"]) == (TOKEN, TOKEN)
    written = torch.load(tmp_path / "out" / "training_args.bin", weights_only=False)
    assert type(written) is sftcore.SFTConfig
    assert (written.hub_token, written.learning_rate) == (None, args.learning_rate)
