"""What a notebook shows of a run: in a kernel, by IPython's own display."""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from sftcore.display.figures import Figures
from sftcore.display.notebook import ROWS, Notebook

TRAIN = """
import os
os.environ["HF_HUB_OFFLINE"] = "1"
from datasets import Dataset
from sftcore import SFTConfig, SFTTrainer
from sftcore.testing.tiny import make_llama, make_tokenizer

tokenizer = make_tokenizer()
rows = Dataset.from_list([{"text": f"say hello {i}"} for i in range(6)])
args = SFTConfig("out", max_steps=3, logging_steps=1, per_device_train_batch_size=2, use_cpu=True, report_to="none",
                 save_strategy="no", eval_strategy="steps", eval_steps=3)
trainer = SFTTrainer(make_llama(tokenizer), args, train_dataset=rows, eval_dataset=rows, processing_class=tokenizer)
trainer.train()
"""


class Shown(HTMLParser):
    """The tags and the text of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def test_bar_curve_table_and_link_are_shown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path("a run") / "report.html"
    page.parent.mkdir()
    page.write_text("<p title='one'>\"the page\" & more</p>", encoding="utf-8")
    view = Notebook()
    view._max_steps = 30
    for step in range(1, 31):
        view._step = step
        view._newest = figures = Figures(step, 30, 1 / step, left=1.0, accuracy=0.5, tokens=200.0, supervised=50.0)
        view._losses.add(figures.loss)
        view._rows = [*view._rows, (f"{step}", f"{figures.loss:.4f}", "0.500", "")][-ROWS:]
    shown = Shown(view.html(page, whole=True))
    assert ("progress", "30", "30") in [(tag, a.get("value"), a.get("max")) for tag, a in shown.tags]
    assert "loss 0.0333, accuracy 0.500, 200 tokens/s, 25% supervised" in shown.text
    assert [tag for tag, _ in shown.tags].count("tr") == ROWS + 1
    assert [attrs["href"] for tag, attrs in shown.tags if tag == "a"] == ["a%20run/report.html"]
    (frame,) = [attrs for tag, attrs in shown.tags if tag == "iframe"]
    assert (frame["srcdoc"], frame["sandbox"]) == (page.read_text(encoding="utf-8"), "allow-scripts")
    (points,) = [attrs["points"] for tag, attrs in shown.tags if tag == "polyline"]
    assert len(points.split()) == 30


def test_a_page_that_would_swell_the_notebook_is_linked_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sftcore.display.notebook.INLINE", 3)
    page = Path("report.html")
    page.write_text("long", encoding="utf-8")
    assert [tag for tag, _ in Shown(Notebook().html(page, whole=True)).tags] == ["div", "a", "code"]


def test_text_of_data_and_plugins_is_text():
    view = Notebook()
    hostile = "<script>alert(1)</script>\x1b[31m"
    view._newest = Figures(1, 2, 1.0, left=1.0)
    view._rows = [("1", "1.0", "", hostile)]
    view._evaluations = [hostile]
    shown = Shown(view.html())
    assert "script" not in [tag for tag, _ in shown.tags]
    assert "".join(shown.text).count("<script>alert(1)</script>\\x1b[31m") == 2


@pytest.mark.slow
def test_a_cell_that_trains_shows_the_run(tmp_path, monkeypatch):
    pytest.importorskip("ipykernel")
    client = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, sys.path)))
    for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    kernel = tmp_path / "JUPYTER_DATA_DIR" / "kernels" / "here"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "here", "language": "python"}))
    cells = [TRAIN, "trainer.evaluate()", "print([type(c).__name__ for c in trainer.callback_handler.callbacks])"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    resources = {"metadata": {"path": str(tmp_path)}}
    client.NotebookClient(
        notebook, kernel_name="here", timeout=None, startup_timeout=600, resources=resources
    ).execute()
    trained, evaluated, names = (cell.outputs for cell in notebook.cells)
    views = [one.data["text/html"] for one in trained if one.output_type == "display_data" and "html" in str(one.data)]
    log = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    (html,) = [one for one in views if "<progress" in one and "step 3/3" in one]
    shown = Shown(html)
    losses = [f"{one['loss']:.4f}" for one in log if "loss" in one]
    assert [text for text in shown.text if text in losses] == losses
    assert any(text.startswith("step 3: eval_loss ") for text in shown.text)
    assert [attrs["href"] for tag, attrs in shown.tags if tag == "a"] == ["out/report.html"]
    (frame,) = [attrs["srcdoc"] for tag, attrs in shown.tags if tag == "iframe"]
    assert frame == (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert any("eval_loss" in str(one) for one in evaluated)
    assert "NotebookProgress'" in names[0].text
    assert "step 1/3  loss" not in "".join(one.get("text", "") for one in trained)
