"""The page in a browser: drawn without an error, read by pointer and keyboard, on a phone, in the dark, by a reader."""

from __future__ import annotations

import json
import math
import random
import re
import shutil

import pytest

from sftcore.display.notebook import Notebook
from sftcore.report.page import page_of
from sftcore.report.rows.hurting import HurtingRow, HurtingRows
from sftcore.report.run import Run

playwright = pytest.importorskip("playwright.sync_api", reason="needs: pip install playwright axe-playwright-python")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs: apt-get install chromium"),
]
STEPS = 20_000


def entries():
    dice = random.Random(0)
    for step in range(1, STEPS + 1):
        noise = dice.random()
        yield {"step": step, "loss": 3 * math.exp(-step / 4000) + noise / 5, "grad_norm": 1 + noise,
               "entropy": 2 + noise, "learning_rate": 2e-5 * (1 - step / STEPS),
               "mean_token_accuracy": 0.5 + noise / 10}  # fmt: skip
        if step % 500 == 0:
            yield {"step": step, "eval_loss": 2.5 * math.exp(-step / 5000) + 0.3}


def samples():
    for step in range(500, STEPS + 1, 500):
        for prompt in ("Who are you?", "<script>alert(1)</script>", "long " * 80):
            answer = f"At {step} <script>alert(2)</script> " + "word " * 100
            yield {"step": step, "prompt": prompt, "answer": answer, "tokens": 100, "ended": step % 1000 == 0}


def hurting():
    def row(what, n):
        source = f"data/{'ab'[n % 2]}.jsonl"
        return HurtingRow(
            f"{source} row {n}", source, (3.0, 2.0 + n / 10), 12, f'{what} {n} <script>alert("3")</script>'
        )

    return tuple(HurtingRows(what, tuple(row(what, n) for n in range(20))) for what in ("worst", "late", "jumps"))


@pytest.fixture(scope="module")
def page_file(tmp_path_factory):
    speed = [{"step": step, "tokens_per_second": 900 + step % 90, "memory_mib": 5000} for step in range(1, STEPS + 1)]
    rows = [{"caption": "row 0", "pieces": [{"text": "hello <script>alert(1)</script>", "weight": 1.0}], "left_out": 0}]
    facts = {"state": "finished", "plan": ["model tiny"], "warnings": ["careful"], "rows": rows}
    text = page_of(Run("long", tuple(entries()), tuple(speed), facts, samples=tuple(samples()), hurting=hurting()))
    assert len(text.encode()) < 3e6
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def opened(browser, page_file):
    """Opens the page at a width, and gathers what goes wrong in it."""
    contexts, wrong = [], []

    def open_page(width=1200, scheme="light"):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
        page.on("request", lambda one: wrong.append(one.url) if not one.url.startswith(("file:", "data:")) else None)
        page.goto(page_file.as_uri())
        page.wait_for_function("document.documentElement.dataset.drawn")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


def test_each_chart_is_drawn_and_says_what_is_under_the_pointer(opened):
    page = opened()
    assert page.locator(".chart canvas").count() == int(page.evaluate("document.documentElement.dataset.drawn")) == 7
    colors = page.evaluate(
        "[...document.querySelectorAll('.chart canvas')].map(c => new Set(new Uint32Array("
        "c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer)).size)"
    )
    assert min(colors) > 10  # a canvas on which nothing was drawn has one
    over = page.locator(".chart .u-over").first
    box = over.bounding_box()
    over.hover(position={"x": box["width"] / 2, "y": 40})
    legend = page.locator(".chart").first.locator(".u-legend").inner_text()
    step = int("".join(char for char in legend.split("train")[0] if char.isdigit()))
    assert abs(step - STEPS / 2) < STEPS / 50
    assert re.search(r"train:?\s*\d\.\d+", legend), legend


def test_the_page_is_drawn_within_a_notebook(browser, page_file, monkeypatch):
    monkeypatch.chdir(page_file.parent)
    wrong, page = [], browser.new_page()
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.set_content(Notebook().html(page_file, whole=True))
    frame = page.frame_locator("iframe")
    frame.locator("html[data-drawn='7']").wait_for(state="attached")
    assert frame.locator(".chart canvas").count() == 7
    page.close()
    assert wrong == []


def test_dragging_zooms_and_a_double_click_shows_all(opened):
    page = opened()
    over = page.locator(".chart .u-over").first
    over.scroll_into_view_if_needed()
    box = over.bounding_box()

    def ticks():
        return page.evaluate("uPlot.sync('steps').plots[0].scales.x.max")

    whole = ticks()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + 60, steps=5)
    page.mouse.up()
    assert ticks() < 0.5 * whole
    over.dblclick()
    assert ticks() == whole


def test_the_keyboard_moves_along_the_points(opened):
    page = opened()
    plot = page.locator(".plot").first
    plot.focus()
    page.keyboard.press("End")
    assert page.locator(".read").first.inner_text().startswith(f"step {STEPS}: train ")
    page.keyboard.press("ArrowLeft")
    assert page.locator(".read").first.inner_text().startswith(f"step {STEPS - 1}: train ")


def test_smoothing_scale_and_colours_are_as_chosen_and_stay(opened):
    page = opened(scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    page.locator("#theme").select_option("light")
    assert page.evaluate(background) != dark
    page.locator("#log").check()
    assert page.evaluate("uPlot.sync('steps').plots[0].scales.y.distr") == 3
    rough = page.evaluate("uPlot.sync('steps').plots[0].data[1].slice(0, 50)")
    page.locator("#smoothing").fill("0.9")
    smooth = page.evaluate("uPlot.sync('steps').plots[0].data[1].slice(0, 50)")
    kept = total = 0.0
    expected = []
    for value in rough:
        kept, total = 0.9 * kept + 0.1 * value, 0.9 * total + 0.1
        expected.append(kept / total)
    assert smooth == pytest.approx(expected, rel=1e-9)
    page.reload()
    page.wait_for_function("document.documentElement.dataset.drawn")
    assert page.locator("#smoothing").input_value() == "0.9"
    assert page.locator("#log").is_checked()


def test_answers_are_shown_of_the_steps_that_are_chosen(opened):
    page = opened()
    page.evaluate("sessionStorage.clear()")
    heads = page.locator(".samples thead th:visible")
    assert heads.all_inner_texts() == ["asked", "step 500", "step 7,000", "step 13,500", "step 20,000"]
    page.get_by_text("Steps shown").click()
    boxes = page.locator("#sample-steps")
    boxes.get_by_label("1,000", exact=True).check()
    boxes.get_by_label("7,000", exact=True).uncheck()
    wanted = ["asked", "step 500", "step 1,000", "step 13,500", "step 20,000"]
    assert heads.all_inner_texts() == wanted
    assert (
        page.locator(".samples tbody tr").first.locator("td:visible").nth(1).inner_text().startswith("At 1000 <script>")
    )
    page.reload()
    page.wait_for_function("document.documentElement.dataset.drawn")
    assert heads.all_inner_texts() == wanted


def test_rows_that_hurt_are_those_of_one_kind_and_source(opened):
    page = opened()
    rows = page.locator(".hurt tbody tr:visible")
    assert rows.count() == 20
    assert rows.first.inner_text().endswith('worst 0 <script>alert("3")</script>')
    page.locator("#hurt-what").select_option("jumps")
    page.locator("#hurt-source").select_option("data/b.jsonl")
    assert rows.count() == 10
    assert 'jumps 1 <script>alert("3")</script>' in rows.first.inner_text()


@pytest.mark.parametrize("width", [390, 320])
def test_a_phone_scrolls_in_one_direction(opened, width):
    page = opened(width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(opened, scheme):
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(opened(scheme=scheme)).response["violations"]
    assert json.dumps([(one["id"], one["impact"], one["nodes"][0]["html"][:200]) for one in found]) == "[]"
