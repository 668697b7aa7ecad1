"""Pushing, against a double of the hub: only where asked for, without tokens and without this machine's folders."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from sftcore.tools.push import would_push
from sftcore.util.plain import public
from tests.conftest import alpaca_rows
from tests.plugins.adapters.test_adapters import stirred
from tests.tools.hub_double import TOKEN, hub_double


@pytest.fixture
def hub():
    with hub_double() as running:
        yield running


@pytest.fixture
def adapter(tmp_path, model_folder):
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    stirred(get_peft_model(model, LoraConfig(r=4, task_type="CAUSAL_LM"))).save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def sftcore(hub, *words, token: str | None = TOKEN, **environment):
    """The command in a process of its own, as the hub's address is read when its client is imported."""
    own = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", **environment}
    inherited = {key: value for key, value in os.environ.items() if key not in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")}
    own |= {"HF_TOKEN": token} if token else {}
    return subprocess.run(
        [sys.executable, "-m", "sftcore", *map(str, words)], capture_output=True, text=True, check=False,
        env={**inherited, **own},
    )  # fmt: skip


@pytest.mark.slow
def test_a_merged_model_is_pushed_whole_and_names_no_folder_of_this_machine(tmp_path, hub, adapter):
    (adapter / "manifest.json").write_text(json.dumps({"schema": 1, "recipe": None, "notes": [f"read {tmp_path}/a/b"]}))
    done = sftcore(hub, "merge", adapter, "--push-to-hub", "me/merged", "--private")
    assert done.returncode == 0, done.stderr
    assert f"pushed to {hub.address}/me/merged" in done.stdout
    assert hub.created[0]["name"] == "merged"
    assert hub.created[0].get("private") or hub.created[0].get("visibility") == "private"
    local = tmp_path / "run-merged"
    assert set(hub.files) == {one.name for one in local.iterdir()}
    (tmp_path / "pulled.safetensors").write_bytes(hub.files["model.safetensors"])
    pulled, kept = load_file(tmp_path / "pulled.safetensors"), load_file(local / "model.safetensors")
    assert all(torch.equal(pulled[name], kept[name]) for name in kept)
    texts = {name: content.decode() for name, content in hub.files.items() if not name.endswith(".safetensors")}
    assert [name for name, text in texts.items() if str(tmp_path) in text or TOKEN in text] == []
    assert json.loads(texts["manifest.json"])["merge"]["adapter"] == "run"
    assert json.loads((local / "manifest.json").read_text())["merge"]["adapter"] == str(adapter)


@pytest.mark.slow
def test_nothing_is_sent_where_nobody_asked(tmp_path, hub, adapter):
    done = sftcore(hub, "merge", adapter)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run-merged").is_dir()
    assert not [call for call in hub.calls if "create" in call or "commit" in call or "preupload" in call]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"token": None}, "there is no token for the hub. Run `hf auth login`, or set HF_TOKEN"),
        ({"token": "hf_wrong"}, "the hub does not accept the token"),
        ({"HF_HUB_OFFLINE": "1"}, "access to the hub is switched off by HF_HUB_OFFLINE"),
    ],
)
def test_a_push_that_cannot_work_is_refused_before_the_merge(tmp_path, hub, adapter, options, message):
    done = sftcore(hub, "merge", adapter, "--push-to-hub", "me/merged", **options)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run-merged").exists()


def test_a_name_that_is_no_repository_is_refused(hub, adapter):
    done = sftcore(hub, "merge", adapter, "--push-to-hub", "a/b/c")
    assert "a/b/c: this is not a valid repository name. Write owner/name." in done.stderr


def test_private_without_a_push_is_refused(hub, adapter):
    done = sftcore(hub, "merge", adapter, "--private")
    assert done.returncode == 2
    assert "--private needs --push-to-hub" in done.stderr


@pytest.mark.slow
def test_a_run_pushes_its_adapter_card_and_manifest_without_token_or_folders(tmp_path, hub, model_folder):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in alpaca_rows(8)))
    done = sftcore(
        hub, "train", f"model={model_folder}", f"data={data}", "adapter.lora.r=4", "max_steps=1", "save_strategy=no",
        f"output_dir={tmp_path / 'out'}", "gradient_checkpointing=false", "push_to_hub=true", "hub_model_id=me/run",
        "hub_private_repo=true", f"hub_token={TOKEN}", token=None,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert hub.created[0]["name"] == "run"
    assert {"README.md", "manifest.json", "adapter_model.safetensors", "tokenizer.json"} <= set(hub.files)
    assert [name for name, content in hub.files.items() if TOKEN.encode() in content] == []
    manifest = json.loads(hub.files["manifest.json"])
    assert manifest["recipe"]["data"] == "rows.jsonl"
    assert str(tmp_path) not in hub.files["manifest.json"].decode() + hub.files["README.md"].decode()


@pytest.mark.slow
def test_what_a_run_pushes_at_each_checkpoint_holds_no_token(tmp_path, hub, model_folder):
    """transformers pickles the arguments once more for this, and needs their token to push."""
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in alpaca_rows(8)))
    done = sftcore(
        hub, "train", f"model={model_folder}", f"data={data}", "adapter.lora.r=4", "max_steps=2", "save_steps=1",
        f"output_dir={tmp_path / 'out'}", "gradient_checkpointing=false", "push_to_hub=true", "hub_model_id=me/run",
        "hub_always_push=true", "hub_strategy=all_checkpoints", f"hub_token={TOKEN}", token=None,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {"training_args.bin", "checkpoint-1/training_args.bin"} <= set(hub.files)
    assert [name for name, content in hub.files.items() if TOKEN.encode() in content] == []
    assert hub.tokens == {f"Bearer {TOKEN}"}


# --- Without a push -------------------------------------------------------------------------------------------------
def listed(printed: str) -> set[str]:
    """The files that a push would upload, by the lines below the first."""
    _, _, below = printed.partition("would push to ")
    return {line.split()[0] for line in below.splitlines()[1:] if line.startswith("  ")}


@pytest.mark.slow
def test_a_dry_run_lists_the_files_that_a_push_of_a_merged_model_uploads(tmp_path, hub, adapter):
    dry = sftcore(hub, "merge", adapter, "--push-to-hub", "me/merged", "--private", "--push-dry-run", token=None)
    assert dry.returncode == 0, dry.stderr
    assert hub.calls == []
    head = next(line for line in dry.stdout.splitlines() if line.startswith("would push"))
    assert head.startswith("would push to me/merged (private): ")
    wet = sftcore(hub, "merge", adapter, "--push-to-hub", "me/merged", "--overwrite")
    assert wet.returncode == 0, wet.stderr
    assert listed(dry.stdout) == set(hub.files)
    assert f"{len(hub.files)} files" in head


def test_checkpoints_and_hidden_files_are_left_out(tmp_path):
    for name in ("README.md", "checkpoint-3/model.safetensors", "_log", ".git/config", ".cache/huggingface/x", "a/b"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x" * 2048)
    lines = list(would_push(tmp_path, "me/run", private=False, leave_out=["_*", "checkpoint-*"]))
    assert lines == ["would push to me/run (public): 2 files, 4.0 KiB", "  README.md  2.0 KiB", "  a/b  2.0 KiB"]


@pytest.mark.slow
def test_a_dry_run_of_a_runs_push_lists_what_the_run_uploads(tmp_path, hub, model_folder):
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in alpaca_rows(8)))
    words = [
        "train", f"model={model_folder}", f"data={data}", "adapter.lora.r=4", "max_steps=1", "save_steps=1",
        f"output_dir={tmp_path / 'out'}", "push_to_hub=true", "hub_model_id=me/run", "hub_strategy=all_checkpoints",
        "hub_always_push=true",
    ]  # fmt: skip
    dry = sftcore(hub, *words, "--push-dry-run", token=None, HF_HUB_OFFLINE="1")
    assert dry.returncode == 0, dry.stderr
    assert hub.calls == []
    assert "would push to me/run (public): " in dry.stdout
    wet = sftcore(hub, *words, "overwrite_output_dir=true")
    assert wet.returncode == 0, wet.stderr
    assert listed(dry.stdout) == {name for name in hub.files if not name.startswith(".")}


def test_a_dry_run_of_no_push_is_refused(hub, adapter):
    assert "--push-dry-run needs --push-to-hub" in sftcore(hub, "merge", adapter, "--push-dry-run").stderr
    done = sftcore(hub, "merge", adapter, "--push-to-hub", "a/b/c", "--push-dry-run")
    assert "this is not a valid repository name" in done.stderr


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("/home/me/rows.jsonl", "rows.jsonl"),
        ("~/data/rows.jsonl", "rows.jsonl"),
        (r"C:\Users\me\rows.jsonl", "rows.jsonl"),
        ("prepared in 0.1 s (/home/me/.cache/sftcore/ab12)", "prepared in 0.1 s (ab12)"),
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-135M"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("1/2 of 3/4, and/or", "1/2 of 3/4, and/or"),
        ("./data/rows.jsonl", "./data/rows.jsonl"),
    ],
)
def test_absolute_paths_are_cut_to_their_last_part_and_nothing_else(text, wanted):
    assert public({text: [text]}) == {wanted: [wanted]}
