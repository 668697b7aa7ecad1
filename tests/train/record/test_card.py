"""The model card: its metadata as the hub reads them, its text as given, and no network."""

from __future__ import annotations

import socket

import yaml

from sftcore.train.record.card import is_hub_id, public_name, save_card


def saved(folder, **more) -> tuple[dict, str]:
    """The metadata and the text of a card, read by YAML alone."""
    known = {"name": "faq", "base": "owner/base", "origin": "Made by hand.", "facts": ["One", "Two"]}
    save_card(folder / "new", **{**known, **more})
    empty, head, text = (folder / "new" / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert not empty
    return yaml.safe_load(head), text


def test_a_card_has_the_hubs_metadata_and_its_facts_line_by_line(tmp_path):
    head, text = saved(tmp_path)
    assert head == {"base_model": "owner/base", "library_name": "transformers", "tags": ["sftcore", "sft"]}
    assert text.startswith("\n# faq\n\nMade by hand.\n\n## Use\n\n```python\nfrom transformers import pipeline\n")
    assert 'pipeline("text-generation", model="faq")' in text
    assert "\n## Training\n\n- One\n- Two\n\nEverything" in text
    assert text.endswith("stands in `manifest.json`.\n")


def test_a_base_in_a_folder_is_not_named(tmp_path):
    head, _ = saved(tmp_path, base=str(tmp_path), library_name="peft", tags=["a"])
    assert head == {"library_name": "peft", "tags": ["a"]}
    assert [is_hub_id(one) for one in ("owner/name", "./name", "/a/b", "name", "a/b/c")] == [True, *[False] * 4]
    assert [public_name(one) for one in ("owner/name", "/home/me/model")] == ["owner/name", "model"]


def test_names_and_facts_are_text_and_not_a_template(tmp_path):
    attack = "{{ 7 * 7 }} {% for x in range(9) %}x{% endfor %} {name} ---"
    head, text = saved(tmp_path, name=attack, base=f"owner/{attack.split()[0]}", facts=[attack], usage=attack)
    assert head["base_model"] == "owner/{{"
    assert text.count(attack) == 3


def test_a_card_is_written_without_a_network(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a card asked for a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert saved(tmp_path)
