"""The page of a run shows what was logged, and all text as text; nothing in it comes from elsewhere."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from sftcore import RecipeError
from sftcore.cli import cli
from sftcore.report.curves import POINTS, charts_of
from sftcore.report.page import page_of
from sftcore.report.run import Run, read_run
from sftcore.report.svg import drawing

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)> \x1b[31mred \u202e {0} %s"
LOG = [
    {"step": 1, "loss": 3.0, "grad_norm": 1.5, "learning_rate": 1e-5, "num_tokens": 10, "loss/a b": 2.75},
    {"step": 2, "loss": float("nan"), "grad_norm": 1.25, "learning_rate": 5e-6, "num_tokens": 20, "epoch": 0.5},
    {"step": 2, "eval_loss": 2.9, "eval_dev_loss": 2.8, "eval_runtime": 1.0, "eval_bleu": 31.5},
    {"step": 3, "loss": 2.123456789, "grad_norm": 1e12, "learning_rate": 0.0, "total_flos": 1e9},
]


class Reader(HTMLParser):
    """What a page consists of: its tags with their attributes, and the text that a reader sees."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.shown, self.scripts, self._inside = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag if tag in ("script", "style") else self._inside

    def handle_endtag(self, tag):
        self._inside = "" if tag == self._inside else self._inside

    def handle_data(self, data):
        (self.scripts if self._inside == "script" else self.shown).append(data)


def written(folder, log=LOG, **facts):
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in log))
    (folder / "report.json").write_text(json.dumps(facts))
    return folder


def points(page):
    """The curves of a page by chart and label, as its script reads them."""
    data = json.loads(Reader(page).scripts[0])
    return {
        (chart["name"], curve["label"]): [*zip(data["steps"][curve["steps"]], curve["values"], strict=True)]
        for chart in data["charts"]
        for curve in chart["curves"]
    }


def test_every_figure_is_drawn_as_it_was_logged(tmp_path):
    assert points(page_of(read_run(written(tmp_path)))) == {
        ("loss", "train"): [(1, 3), (3, 2.1235)],
        ("loss", "a b"): [(1, 2.75)],
        ("loss", "eval"): [(2, 2.9)],
        ("loss", "eval dev"): [(2, 2.8)],
        ("grad_norm", "train"): [(1, 1.5), (2, 1.25), (3, 1e12)],
        ("learning_rate", "train"): [(1, 1e-5), (2, 5e-6), (3, 0)],
        ("bleu", "eval"): [(2, 31.5)],
    }


def test_text_of_data_and_runs_is_shown_as_text(tmp_path):
    rows = [{"caption": HOSTILE, "pieces": [{"text": HOSTILE, "weight": 1.0, "special": True}], "left_out": 0}]
    plugins = [{"kind": "format", "name": HOSTILE, "distribution": HOSTILE, "version": "1", "why": HOSTILE}]
    facts = {"state": HOSTILE, "plan": [f"model {HOSTILE}"], "warnings": [HOSTILE], "plugins": plugins, "rows": rows}
    log = [*LOG, {"step": 4, f"loss/{HOSTILE}": 1.0, HOSTILE: 2.0}]
    folder = written(tmp_path, log, **facts)
    ledger = {"name": HOSTILE, "rows_in": 2, "rows_kept": 1, "dropped": {HOSTILE: 1}, "notes": {HOSTILE: 1}}
    (folder / "ledger.json").write_text(json.dumps({"ledgers": [ledger]}))
    (folder / "manifest.json").write_text(json.dumps({"recipe": {"model": HOSTILE}, "max_steps": HOSTILE}))
    page = page_of(read_run(folder, HOSTILE))
    found, plain = Reader(page), Reader(page_of(read_run(written(tmp_path / "plain"))))
    assert len(found.scripts) == len(plain.scripts) == 3
    assert found.scripts[1:] == plain.scripts[1:]
    assert [one for one in found.tags if one[0] == "img"] == []
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert "\x1b" not in page
    assert "\u202e" not in page
    shown = HOSTILE.replace("\x1b", "\\x1b").replace("\u202e", "\\u202e")
    assert "".join(found.shown).count(shown) >= 12


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    page = page_of(read_run(written(tmp_path)))
    addresses = [
        value
        for _, attributes in Reader(page).tags
        for name, value in attributes.items()
        if name in ("src", "href", "action", "data", "srcset")
    ]
    assert addresses
    assert all(one.startswith(("#", "data:,")) for one in addresses)
    assert not re.search(r"@import|url\((?!data:)", page)


def test_each_peak_of_a_long_curve_is_drawn():
    values = [1.0 if i in (7, 77_777) else -1.0 if i == 50_001 else 0.5 for i in range(100_000)]
    (chart,) = charts_of([Run("long", tuple({"step": i, "loss": value} for i, value in enumerate(values)))])
    (curve,) = chart.curves
    assert len(curve.steps) <= POINTS
    assert {7.0, 50_001.0, 77_777.0} <= {*curve.steps}
    assert all(values[int(step)] == value for step, value in zip(curve.steps, curve.values, strict=True))
    assert sorted(curve.steps) == list(curve.steps)


def test_the_picture_of_the_loss_is_xml_with_a_line_for_each_curve(tmp_path):
    log = [{"step": i, "loss": 3.0 - i / 100, "eval_loss": 2.0, f"loss/{HOSTILE[:40]}": 1.0} for i in range(1, 4001)]
    (chart,) = charts_of([read_run(written(tmp_path, log))])
    root = ElementTree.fromstring(drawing(chart))
    lines = [one for one in root.iter("{http://www.w3.org/2000/svg}path") if one.get("fill") == "none"]
    assert len(lines) == 3
    heights = [float(point.split()[1]) for point in re.findall(r"[ML]([\d.]+ [\d.]+)", lines[0].get("d"))]
    assert heights == sorted(heights)  # a loss that falls goes down on the page
    assert "from 2.99 at step 1 to -37 at step 4000" in root.find("{http://www.w3.org/2000/svg}desc").text


@pytest.mark.parametrize("log", [[], [{"step": 1, "loss": float("nan")}], [{"step": 5, "eval_loss": 1.0}]])
def test_a_run_that_has_logged_little_has_a_page(tmp_path, log):
    assert "Curves" in page_of(read_run(written(tmp_path, log)))


def test_lines_that_are_broken_are_left_out(tmp_path):
    folder = written(tmp_path)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('[1]\n{"loss": 1}\n{"step": true, "loss": 1}\nno json\n{"step": 4, "lo')
    assert [entry["step"] for entry in read_run(folder).log] == [1, 2, 2, 3]


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"there is no metrics\.jsonl in this folder"):
        read_run(tmp_path)
    result = CliRunner().invoke(cli, ["report", str(tmp_path)])
    assert isinstance(result.exception, RecipeError)


def test_a_run_that_was_killed_is_not_said_to_be_running(tmp_path):
    folder = written(tmp_path / "run", state="running")
    assert CliRunner().invoke(cli, ["report", str(folder)]).output == f"written: {folder / 'report.html'}\n"
    found = Reader((folder / "report.html").read_text())
    assert any("stopped without saying so" in text for text in found.shown)
    assert (folder / "loss.svg").is_file()


def test_several_runs_are_compared_on_one_page(tmp_path):
    for name, rate in (("one", 1e-5), ("two", 2e-5)):
        folder = written(tmp_path / name, [{"step": 1, "loss": rate * 1e5}])
        settings = {"learning_rate": rate, "seed": 1}
        (folder / "manifest.json").write_text(json.dumps({"settings": settings}))
    output = tmp_path / "both.html"
    result = CliRunner().invoke(cli, ["report", str(tmp_path / "one"), str(tmp_path / "two"), "-o", str(output)])
    assert result.exit_code == 0, result.output
    page = output.read_text()
    assert points(page) == {("loss", "one, train"): [(1, 1)], ("loss", "two, train"): [(1, 2)]}
    shown = " ".join(Reader(page).shown)
    assert "learning_rate 1e-05 2e-05" in re.sub(r"\s+", " ", shown)
    assert "seed" not in shown
