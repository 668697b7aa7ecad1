"""What a recipe's run needs of this machine: plugins, precision, the hub, memory and space on disk."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sftcore.core.errors import CheckError, SFTCoreError
from sftcore.data.source.files import BUILDERS
from sftcore.tools.doctor.line import Line, found_in
from sftcore.tools.doctor.machine import Machine, disk_lines, usual_places

if TYPE_CHECKING:
    from sftcore.config.recipe import Recipe
    from sftcore.tools.estimate.estimate import Estimate
    from sftcore.train.checked import Checked

_SECONDS = 5
_BFLOAT16, _TF32 = (8, 0), (8, 0)
_SIGN_IN = "Ask for access on its page, and sign in: hf auth login, or set HF_TOKEN."


def check_lines(recipe: Recipe) -> tuple[list[Line], Checked | None]:
    """What a run would be refused for before it starts, and the checked recipe where it is not."""
    from sftcore.train.run import check_recipe

    lines, checked = [], None
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            checked = check_recipe(recipe)
        except CheckError as error:
            lines += [Line("recipe", "error", _at(one.where, one.what), one.fix) for one in error.problems
                      if one.severity == "error"]  # fmt: skip
        except SFTCoreError as error:
            lines.append(Line("recipe", "error", _at(error.where, error.what), error.fix))
    lines += [Line("recipe", "warning", " ".join(str(one.message).split())) for one in warned]
    return found_in("recipe", lines, f"{recipe.place}: nothing would stop its run before it starts"), checked


def _at(where: str, what: str) -> str:
    return f"{where}: {what}" if where else what


def precision_lines(recipe: Recipe, machine: Machine) -> list[Line]:
    """Half precision that the device of the run does not have."""
    return found_in("precision", _precision_faults(recipe, machine), "the device has what the recipe asks for")


def _precision_faults(recipe: Recipe, machine: Machine) -> Iterator[Line]:
    settings = recipe.training
    on_gpu = machine.uses_gpu and not settings.get("use_cpu")
    if not on_gpu:
        if settings.get("fp16"):
            yield Line("precision", "error", "fp16: true needs a GPU, and the run would be on a CPU.",
                       "Set bf16: true, which works on a CPU, or neither.")  # fmt: skip
        if settings.get("tf32"):
            yield Line("precision", "error", "tf32: true needs an NVIDIA GPU, and the run would be on a CPU.",
                       "Drop tf32.")  # fmt: skip
        return
    weakest = min(machine.visible, key=lambda gpu: gpu.capability)
    named = f"{weakest.name} (compute capability {weakest.capability[0]}.{weakest.capability[1]})"
    halves = [name for name in ("bf16", "bf16_full_eval") if settings.get(name) is True]
    if weakest.capability < _BFLOAT16:
        if halves or recipe.model.dtype == "bfloat16":
            asked = f"{halves[0]}: true" if halves else "dtype: bfloat16"
            yield Line("precision", "error", f"{asked} needs compute capability 8.0, and {named} has less.",
                       "Set fp16: true with float32 weights.")  # fmt: skip
        if settings.get("tf32"):
            yield Line("precision", "error", f"tf32: true needs compute capability 8.0, and {named} has less.",
                       "Drop tf32.")  # fmt: skip


def hub_lines(recipe: Recipe) -> list[Line]:
    """Whether what the recipe names on the hub can be had: it is in the cache, or the hub answers for it."""
    names = [("models", recipe.model.name)] if _on_hub(recipe.model.name or "") else []
    for source in (*recipe.data.sources, *(one for each in recipe.data.eval_sets.values() for one in each)):
        paths = [source.path] if isinstance(source.path, str) else list(source.path)
        names += [("datasets", path) for path in paths if _on_hub(path)]
    if not names:
        return []
    said = f"{', '.join(dict.fromkeys(name for _, name in names if name))}: in the cache, or the hub answers"
    return found_in("hub", (line for kind, name in dict.fromkeys(names) for line in _asked(kind, name or "")), said)


def _on_hub(name: str) -> bool:
    """Whether it is written as a hub id, owner/name, and nothing of that name is on the disk."""
    is_id = name.count("/") == 1 and not name.startswith((".", "/", "~")) and not any(sign in name for sign in "*?[:\\")
    is_file = Path(name).suffix.lower() in (*BUILDERS, ".gguf")
    return is_id and not is_file and not Path(name).exists()


def _asked(kind: str, name: str) -> Iterator[Line]:
    if _is_cached(kind, name):
        return
    offline = next((one for one in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE") if _is_set(one)), "")
    if offline:
        yield Line("hub", "error", f"{name} is not in the cache, and {offline} is set.",
                   f"Unset {offline}, or load it once where there is a network: hf download {name}")  # fmt: skip
        return
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    request = urllib.request.Request(f"{endpoint}/api/{kind}/{name}", headers=_token())
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS):
            return
    except urllib.error.HTTPError as error:
        if error.code == 404:
            yield Line("hub", "error", f"{endpoint} has no {name}.", "Check the name; a folder needs ./ before it.")
        elif error.code in (401, 403):
            yield Line(
                "hub", "error", f"{endpoint} does not give {name}: it does not exist, or needs access.", _SIGN_IN
            )
        else:
            yield Line("hub", "error", f"{endpoint} answers {error.code} for {name}.", "Try again later.")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        yield Line("hub", "error", f"{name} is not in the cache, and {endpoint} cannot be reached ({reason}).",
                   "Check the network, a proxy (HTTPS_PROXY) or HF_ENDPOINT, or give a local folder.")  # fmt: skip


def _token() -> dict[str, str]:
    from huggingface_hub import get_token

    token = get_token()
    return {"Authorization": f"Bearer {token}"} if token else {}


def _is_cached(kind: str, name: str) -> bool:
    folder = f"{kind}--{name.replace('/', '--')}"
    home = Path(os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface")
    given = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    place = (Path(given) if given else home / "hub").expanduser() / folder / "snapshots"
    return any(place.glob("*/*"))


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").upper() in ("1", "TRUE", "YES", "ON")


def need_lines(checked: Checked, machine: Machine) -> list[Line]:
    """Whether memory and disk suffice, by an estimate from the shapes of the run's steps."""
    from sftcore.tools.estimate.estimate import estimate
    from sftcore.train.run import output_dir

    places: list[tuple[str, Path, int]] = [*usual_places()]
    try:
        found = estimate(checked)
    except SFTCoreError as error:
        line = Line(
            "memory", "warning", f"how much the run takes is not known: {_at(error.where, error.what)}", error.fix
        )
        return [line, *disk_lines([*places, ("output_dir", output_dir(checked.recipe), 0)])]
    places.append(("output_dir", output_dir(checked.recipe), _written(found, checked.recipe)))
    return [*_memory(found, machine, checked.recipe), *disk_lines(places)]


def _memory(found: Estimate, machine: Machine, recipe: Recipe) -> list[Line]:
    free = min((gpu.free for gpu in machine.visible), default=0) if found.device == "cuda" else machine.memory
    peak = f"the run takes about {found.memory.peak / 2**30:,.2f} GiB on {found.device}"
    if found.memory.peak > free:
        what = f"{peak}, and {free / 2**30:,.2f} GiB are free."
        return [
            Line(
                "memory",
                "error",
                what,
                f"See what would fit: sftcore estimate {recipe.place} --memory {free // 2**20}MB",
            )
        ]
    return [Line("memory", "ok", f"{peak}, and {free / 2**30:,.2f} GiB are free")]


def _written(found: Estimate, recipe: Recipe) -> int:
    """Bytes of the model and of the checkpoints that are there at one time: with one more while it is written."""
    memory, settings = found.memory, recipe.settings
    model = memory.trained
    if str(settings.get("save_strategy") or "steps") == "no":
        return model
    one = model + (0 if settings.get("save_only_model") else memory.optimizer)
    every = settings.get("save_steps") or 500
    epochs = float(settings.get("num_train_epochs") or 3)
    saves = max(
        1, round(epochs) if settings.get("save_strategy") == "epoch" else int(found.steps // every) if every >= 1 else 1
    )
    kept = settings.get("save_total_limit")
    return model + one * min(saves, saves if kept is None else kept + 1)


def needed_distributions(checked: Checked | None) -> Sequence[str]:
    """Distributions that the run's plugins need by their extras."""
    if checked is None:
        return ()
    from sftcore.tools.doctor.versions import requirements

    found = []
    for bound in checked.setup.plugins.bound:
        for one in requirements(bound.entry.distribution):
            if (
                one.marker is not None
                and one.marker.evaluate({"extra": bound.entry.name})
                and not one.marker.evaluate({"extra": ""})
            ):
                found.append(one.name)
    return found
