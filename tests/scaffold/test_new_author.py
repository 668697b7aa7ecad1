"""The way of a new author: scaffold, four lines of one's own, install, list, test, train; in under 20 lines of code."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from sftcore.testing.tiny import save_tiny

EDITS = {
    '    """Rows with a question and its answer."""': '    """Rows of our help desk."""',
    '    question: str = "question"': '    question: str = "ticket"',
    '    answer: str = "answer"': '    answer: str = "reply"',
    '            prompt = [Message("user", text_of(row, self.question))]': '            prompt = '
    '[Message("system", "Be brief."), Message("user", text_of(row, self.question))]',
}  # fmt: skip


@pytest.mark.slow
def test_from_an_empty_folder_to_a_trained_model(tmp_path):
    site = tmp_path / "site"
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}

    def run(*words):
        done = subprocess.run(
            [sys.executable, "-m", *words], env=environment, cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    run("sftcore", "new-plugin", "format", "my-faq")
    folder = tmp_path / "sftcore-my-faq"
    module = folder / "sftcore_my_faq.py"
    code = module.read_text(encoding="utf-8")
    for line, own in EDITS.items():
        assert code.count(line) == 1
        code = code.replace(line, own)
    module.write_text(code, encoding="utf-8")
    assert sum(1 for line in code.splitlines() if line.strip()) < 20
    tests = folder / "tests/test_sftcore_my_faq.py"
    written = tests.read_text(encoding="utf-8").replace('"question"', '"ticket"').replace('"answer"', '"reply"')
    tests.write_text(written.partition("\n\n\ndef ")[0] + "\n", encoding="utf-8")

    pip = [
        "pip",
        "--disable-pip-version-check",
        "install",
        "--quiet",
        "--no-index",
        "--no-deps",
        "--no-build-isolation",
    ]
    run(*pip, "--target", str(site), str(folder))
    (listed,) = [line for line in run("sftcore", "list-plugins", "--kind", "format").splitlines() if "my-faq" in line]
    assert listed.split() == ["format", "my-faq", "sftcore-my-faq", "0.1.0", "usable"]
    assert "14 passed." in run("sftcore", "plugin", "test", str(folder))

    rows = [{"ticket": f"Where is {i}?", "reply": "Over there."} for i in range(8)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_tiny(tmp_path / "tiny")
    keys = ["model=tiny", "data=rows.jsonl", "output_dir=out", "max_steps=2", "max_length=64", "report_to=none"]
    shown = run("sftcore", "train", *keys)
    assert 'format "my-faq"' in shown or "format my-faq" in shown
    assert (tmp_path / "out/model.safetensors").is_file()
