"""A run keeps its page up to date, whatever becomes of it."""

from __future__ import annotations

import json
import re

import pytest
from datasets import Dataset
from transformers import TrainerCallback

from sftcore import SFTConfig, SFTTrainer
from sftcore.report.run import read_lines
from tests.conftest import make_llama, make_tokenizer

TURNS = [
    [{"role": "user", "content": f"say <b>{i}</b>"}, {"role": "assistant", "content": f"hello {i}"}] for i in range(8)
]
ROWS = Dataset.from_list([{"messages": turns} for turns in TURNS])


def trainer_of(folder, callbacks=None, **fields):
    tokenizer = make_tokenizer()
    defaults = {"use_cpu": True, "per_device_train_batch_size": 2, "max_steps": 4, "logging_steps": 1, "save_steps": 2,
                "report_to": "none", "assistant_only_loss": True, "learning_rate": 1e-3}  # fmt: skip
    args = SFTConfig(str(folder / "out"), **{**defaults, **fields})
    return SFTTrainer(make_llama(tokenizer), args, train_dataset=ROWS, processing_class=tokenizer, callbacks=callbacks)


def facts(folder):
    return json.loads((folder / "out" / "report.json").read_text())


def test_the_files_of_a_run_agree_with_its_log(tmp_path):
    trainer = trainer_of(tmp_path)
    trainer.train()
    out = tmp_path / "out"
    speed = [*read_lines(out / "speed.jsonl")]
    assert [one["step"] for one in speed] == [1, 2, 3, 4]
    assert all(one["tokens_per_second"] > one["supervised_per_second"] > 0 for one in speed)
    seconds = [one["seconds"] for one in speed]
    assert seconds == sorted(seconds)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    page = (out / "report.html").read_text()
    drawn = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])["charts"][0]["curves"][0]["values"]
    assert drawn == pytest.approx(losses, rel=1e-4)
    assert facts(tmp_path)["state"] == "finished"
    assert "finished; logged up to step 4" in page


def test_samples_and_rows_that_hurt_are_on_the_page(tmp_path):
    trainer = trainer_of(
        tmp_path, sample_prompts=["say <i>it</i>"], sample_max_new_tokens=2, num_train_epochs=2, max_steps=-1
    )
    trainer.train()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "say &lt;i&gt;it&lt;/i&gt;" in page
    heads = re.search(r'class="samples"><thead><tr>(.*?)</tr>', page)[1]
    assert re.findall(r">([^<]+)</th>", heads) == ["asked", "step 2", "step 4", "step 6", "step 8"]
    tables = re.findall(r'data-what="(\w+)"', page)
    assert tables == ["worst", "late", *(["jumps"] if "jumps" in tables else [])]
    assert page.count('<tr data-source="train_dataset"><td>train_dataset row ') >= 16


def test_marked_text_is_what_is_trained_on(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=1)
    trainer.train()
    rows = facts(tmp_path)["rows"]
    assert [row["caption"].partition(":")[0] for row in rows] == [f"prepared row {i}" for i in (0, 2, 4, 5, 7)]
    for row, number in zip(rows, (0, 2, 4, 5, 7), strict=True):
        labels = trainer.train_dataset[number]["labels"]
        assert "".join(piece["text"] for piece in row["pieces"] if piece["weight"]) == trainer.data.tokenizer.decode(
            [label for label in labels if label != -100]
        )
        assert "".join(piece["text"] for piece in row["pieces"]) == trainer.data.tokenizer.decode(
            trainer.train_dataset[number]["input_ids"]
        )


def test_lengths_are_those_of_the_rows_and_of_documents_where_rows_are_packed(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=1)
    trainer.train()
    alone = facts(tmp_path)["lengths"]
    lengths = sorted(len(row["input_ids"]) for row in trainer.train_dataset)
    assert (alone["of"], alone["total"], alone["quantiles"]["max"]) == ("rows", sum(lengths), lengths[-1])
    assert sum(one["rows"] for one in alone["histogram"]) == len(lengths)
    packed = trainer_of(tmp_path / "packed", max_steps=1, packing=True, max_length=128)
    packed.train()
    found = facts(tmp_path / "packed")["lengths"]
    assert found == {**alone, "of": "documents"}


class Ends(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise ZeroDivisionError("in the middle")


def test_a_run_that_stops_says_so_and_one_that_resumes_continues(tmp_path):
    with pytest.raises(ZeroDivisionError):
        trainer_of(tmp_path, callbacks=[Ends()]).train()
    assert facts(tmp_path)["state"] == "stopped by ZeroDivisionError"
    assert "stopped by ZeroDivisionError; logged up to step 2 of 4" in (tmp_path / "out" / "report.html").read_text()
    trainer_of(tmp_path).train(resume_from_checkpoint=True)
    assert [one["step"] for one in read_lines(tmp_path / "out" / "speed.jsonl")] == [1, 2, 3, 4]
    assert facts(tmp_path)["state"] == "finished"


def test_a_run_in_the_place_of_another_has_none_of_its_speeds(tmp_path):
    trainer_of(tmp_path).train()
    trainer_of(tmp_path, max_steps=2, overwrite_output_dir=True).train()
    assert [one["step"] for one in read_lines(tmp_path / "out" / "speed.jsonl")] == [1, 2]


def test_warnings_of_the_run_are_on_its_page(tmp_path):
    from sftcore.util.warned import warn

    with pytest.warns(UserWarning, match="of another run"):
        warn("of another run")
    trainer = trainer_of(tmp_path, max_steps=1)
    with pytest.warns(UserWarning, match="all <of> this run"):
        warn("all <of> this run")
    trainer.train()
    assert facts(tmp_path)["warnings"][-1] == "all <of> this run"
    assert "of another run" not in facts(tmp_path)["warnings"]


def test_no_page_is_written_where_none_is_wanted(tmp_path):
    trainer_of(tmp_path, report_html=False, max_steps=1).train()
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names.isdisjoint({"report.html", "report.json", "speed.jsonl", "loss.svg"})
    assert "metrics.jsonl" in names
