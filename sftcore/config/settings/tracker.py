"""Where a tracker files a run: project, entity, tags and name, in the words of each of the trackers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from sftcore.core.errors import nearest, quoted
from sftcore.core.types import Problem

KEYS = ("project", "entity", "tags", "run_name")
_NAME = "run_name"
"""Every tracker takes it from SFTConfig.run_name."""
READS: Mapping[str, Mapping[str, str]] = {
    "wandb": {"project": "WANDB_PROJECT", "entity": "WANDB_ENTITY", "tags": "WANDB_TAGS"},
    "mlflow": {"project": "MLFLOW_EXPERIMENT_NAME", "tags": "MLFLOW_TAGS"},
    "trackio": {"project": ""},
    "swanlab": {"project": "SWANLAB_PROJECT", "entity": "SWANLAB_WORKSPACE"},
    "comet_ml": {"project": "COMET_PROJECT_NAME", "entity": "COMET_WORKSPACE"},
    "clearml": {"project": "CLEARML_PROJECT"},
}
"""By tracker, the environment variable in which it reads each key; "" is SFTConfig.project, which one alone reads."""


def parsed(given: Any) -> dict[str, Any]:
    """The keys that are set, with tags as a list; `name` is `run_name`."""
    found = json.loads(given) if isinstance(given, str) else given
    found = {str(key): value for key, value in (found or {}).items() if value is not None}
    if "name" in found and _NAME not in found:
        found[_NAME] = found.pop("name")
    if isinstance(found.get("tags"), str):
        found["tags"] = [found["tags"]]
    return found


def trackers_of(settings: Mapping[str, Any]) -> list[str]:
    """The trackers that a run reports to, by transformers' names."""
    given = settings.get("report_to")
    named = [given] if isinstance(given, str) else list(given or [])
    if "all" in named:
        return list(READS)
    return [{"comet": "comet_ml"}.get(one, one) for one in named if one != "none"]


def tracker_problems(settings: Mapping[str, Any]) -> Iterator[Problem]:
    """What is wrong with `report_to`, and with `tracker`, in itself and with the trackers that there are."""
    yield from _together(settings.get("report_to"))
    given = settings.get("tracker")
    if given is None:
        return
    try:
        found = parsed(given)
    except (ValueError, AttributeError):
        yield Problem(f"tracker is a mapping, got {given!r:.60}.", fix="Write tracker: {project: …, tags: […]}.")
        return
    for key, value in found.items():
        if key not in KEYS:
            yield Problem(f'tracker has no key "{key}".{nearest(key, KEYS)}', "tracker", f"Keys: {', '.join(KEYS)}.")
        elif key == "tags" and not (isinstance(value, list) and all(isinstance(tag, str) and tag for tag in value)):
            yield Problem(f"tracker.tags is a list of texts, got {value!r:.60}.", "tracker")
        elif key != "tags" and (not isinstance(value, str) or not value.strip()):
            yield Problem(f"tracker.{key} is a text, got {value!r:.60}.", "tracker")
    if (name := found.get(_NAME)) is not None and settings.get(_NAME) not in (None, name):
        yield Problem("tracker.run_name and run_name are two names for the run.", fix="Keep one of the two.")
    trackers = trackers_of(settings)
    if not trackers:
        yield Problem(
            "tracker says where a tracker files the run, and report_to names none.",
            fix=f"Set report_to to one of: {', '.join(READS)}.",
        )
    for key in [key for key in ("project", "entity", "tags") if found.get(key)]:
        without = [one for one in trackers if key not in READS.get(one, {})]
        if trackers and settings.get("report_to") not in ("all", ["all"]) and without:
            yield Problem(
                f"tracker.{key} is not read by {quoted(without)}.",
                "tracker",
                f"Drop it; {', '.join(one for one, keys in READS.items() if key in keys)} read it.",
                "error" if len(without) == len(trackers) else "warning",
            )
    if "wandb" in trackers and any("," in str(tag) for tag in found.get("tags") or ()):
        yield Problem("WandB takes its tags with commas between them, so that none can hold one.", "tracker.tags")


def _together(report_to: Any) -> Iterator[Problem]:
    """Names that do not go together, of which transformers takes some for unknown trackers, and others twice."""
    names = [*report_to] if isinstance(report_to, (list, tuple)) else []
    twice = sorted({one for one in names if names.count(one) > 1})
    if twice:
        yield Problem(f"report_to names {quoted(twice)} twice, which would log everything twice.", fix="Name it once.")
    for alone, fix in (("all", "Write report_to: all."), ("none", "Drop none, or the others.")):
        if alone in names and len({*names}) > 1:
            yield Problem(f'report_to names "{alone}" beside others.', fix=fix)


def fields_for(settings: Mapping[str, Any]) -> dict[str, str]:
    """Fields of SFTConfig that hold what some trackers read from there."""
    found = parsed(settings.get("tracker"))
    fields = {_NAME: found[_NAME]} if found.get(_NAME) else {}
    if found.get("project") and "trackio" in trackers_of(settings):
        fields["project"] = found["project"]
    return fields


def environment_for(settings: Mapping[str, Any]) -> dict[str, str]:
    """The environment variables in which the run's trackers read the keys."""
    found = parsed(settings.get("tracker"))
    variables = {}
    for tracker in trackers_of(settings):
        for key, variable in READS.get(tracker, {}).items():
            if variable and (value := found.get(key)):
                variables[variable] = value if key != "tags" else _spelled(tracker, value)
    return variables


def _spelled(tracker: str, tags: list[str]) -> str:
    """Tags as MLflow reads them, which have values there, or with commas between them."""
    return json.dumps(dict.fromkeys(tags, "true")) if tracker == "mlflow" else ",".join(tags)
