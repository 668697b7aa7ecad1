"""What importing plugins costs: no heavy library, not a word printed, for all modules of the built-ins and examples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import sftcore_plugins

BUILT_IN = Path(sftcore_plugins.__file__).parent
EXAMPLES = Path(__file__).parents[2] / "examples" / "plugins"
HEAVY = ["torch", "transformers", "datasets", "peft", "accelerate", "pyarrow", "PIL", "triton", "liger_kernel"]

IMPORT = """
import importlib, json, sys
heavy, modules = json.loads(sys.argv[1])
brought = {}
for name in modules:
    importlib.import_module(name)
    brought |= {one: name for one in heavy if one in sys.modules and one not in brought}
sys.__stdout__.write("imported " + json.dumps(brought))
"""


def modules() -> list[str]:
    """All modules below plugins/, private ones too, and those of the example packages."""
    own = [path.relative_to(BUILT_IN.parent).with_suffix("") for path in sorted(BUILT_IN.rglob("*.py"))]
    return [".".join(part for part in path.parts if part != "__init__") for path in own] + [
        path.stem for path in sorted(EXAMPLES.glob("*/*.py"))
    ]


def test_no_plugin_module_imports_a_heavy_library_or_prints():
    found = modules()
    assert len(found) > 40
    path = os.pathsep.join([*map(str, sorted(EXAMPLES.glob("*/"))), *filter(None, sys.path)])
    words = [sys.executable, "-W", "ignore", "-c", IMPORT, json.dumps([HEAVY, found])]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == "imported {}"
