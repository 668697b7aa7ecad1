"""What has to be the same for a run to resume from a checkpoint, and what may differ."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sftcore.core.errors import ResumeError
from sftcore.core.types import AUTO
from sftcore.model.unwrap import num_weights
from sftcore.util.plain import describe_plugin, plain
from sftcore.util.versions import versions
from sftcore.util.warned import warn

if TYPE_CHECKING:
    from sftcore.core.registry import Bound
    from sftcore.train.view import RunView

FREE = (
    "output_dir", "logging_", "log_", "disable_tqdm", "report_to", "run_name", "project", "trackio_", "save_", "hub_",
    "push_to_hub", "resume_", "overwrite_", "restore_callback", "dataset_num_proc", "dataset_cache", "dataloader_",
    "eval_on_start", "eval_delay", "skip_memory_metrics", "on_nonfinite", "divergence_factor", "local_rank",
    "ddp_timeout", "ddp_backend", "include_", "do_", "load_best", "metric_for_best", "greater_is_better",
    "enable_jit_checkpoint", "torch_empty_cache_steps", "ignore_data_skip", "batch_eval_metrics",
    "prediction_loss_only", "per_device_eval", "eval_accumulation", "use_cpu", "past_index", "length_column_name",
    "early_stopping_", "eval_packing", "callbacks", "saves_per_epoch", "tracker", "loss_watchdog_", "sample_",
)  # fmt: skip
"""Settings that may differ, by name or by how the name begins: where a run writes, what it says, how it reads."""

SAID = (
    "num_train_epochs",
    "max_steps",
    "eval_strategy",
    "eval_steps",
    "evals_per_epoch",
    "gradient_checkpointing",
    "activation_",
)
"""Settings that may differ too, and are shown: the length of a run, and what can move its last bits."""

_FIRST_ROWS = 8
_EVALUATED = "the evaluation rows"


class RunFacts:
    """What a run trains on, with and by, as plain values with a name each.

    Data, plugins and model are read once, on the first call, which has to come before the model is wrapped or moved.
    """

    def __init__(self, run: RunView) -> None:
        self._run = run
        self._known: dict[str, Any] | None = None

    def __call__(self) -> dict[str, Any]:
        run = self._run
        if self._known is None:
            self._known = {**_data(run), **_evaluated(run), **_processor(run), **_plugins(run), **_model(run)}
        settings = {
            f"setting {name}": _as_set(plain(value))
            for name, value in run.args.to_settings().items()
            if not name.startswith(FREE) and name not in ("plugins", "block")
        }
        return {**self._known, **settings, **{f"version of {name}": value for name, value in versions().items()}}


def require_same(then: Mapping[str, Any], now: Mapping[str, Any], folder: str, *, anyway: bool) -> None:
    """Refuse to resume where a run has changed, with the differences; what may differ is said.

    Raises:
        ResumeError: it has changed, and not `anyway`.
    """
    differ = list(differences(then, now))
    harmless = [text for name, text in differ if _may_differ(name)]
    changed = [text for name, text in differ if not _may_differ(name)]
    if (anyway or not changed) and os.environ.get("RANK", "0") == "0":
        for text in harmless:
            print(f"resume     {text}", file=sys.stderr)
    if not changed:
        return
    listed = "".join(f"\n  {text}" for text in changed)
    if not anyway:
        raise ResumeError(
            f"the run is not the one that this checkpoint was saved in:{listed}\n",
            where=folder,
            fix="Set them back, start again without resume_from_checkpoint, or resume all the same with "
            "resume_changed: true.",
        )
    warn(f"resuming from {folder} although the run has changed:{listed}")


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each name whose value differs, with a line that shows both.

    >>> list(differences({"setting seed": 1}, {"setting seed": 2}))
    [('setting seed', 'setting seed: 1 in the checkpoint, 2 now')]
    """
    then, now = json.loads(json.dumps(then)), json.loads(json.dumps(now))
    for name in dict.fromkeys([*then, *now]):
        before, after = then.get(name), now.get(name)
        if before != after:
            yield name, f"{name}: {_short(before)} in the checkpoint, {_short(after)} now"


def _may_differ(name: str) -> bool:
    return name.startswith(("version of ", _EVALUATED, *(f"setting {one}" for one in SAID)))


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 80 else f"{text[:60]}… ({hashlib.sha256(text.encode()).hexdigest()[:8]})"


def _as_set(value: Any) -> Any:
    """A setting without what differs where it was set to the same: addresses, and what accelerate notes in its own."""
    if isinstance(value, Mapping):
        return {name: one for name, one in value.items() if name != "use_configured_state"}
    return re.sub(r" at 0x[0-9a-f]+", "", value) if isinstance(value, str) else value


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _data(run: RunView) -> dict[str, Any]:
    from datasets import Dataset, IterableDataset

    from sftcore.data.store.keys import rows_digest

    rows = run.train_dataset
    if isinstance(rows, IterableDataset):
        # All of it would have to be prepared; its first rows show another template, tokenizer or, where its files are
        # not known, source
        first = [row for _, row in zip(range(_FIRST_ROWS), rows, strict=False)]
        files = run.recorder.train_files_sha256
        whole = {"the stream's files": _digest("".join(files))} if files else {}
        return {f"the stream's first {_FIRST_ROWS} rows": _digest(repr(first)), **whole}
    found = run.recorder.rows_hash()
    if found is None and isinstance(rows, Dataset):
        found = rows_digest(rows)
    return {"number of training rows": len(rows), "the training rows": found and found[:16]}


def _evaluated(run: RunView) -> dict[str, Any]:
    """Digests of the evaluation sets; a stream's is not known without reading it."""
    from datasets import Dataset

    from sftcore.data.store.keys import rows_digest

    found = run.eval_dataset
    sets = found if isinstance(found, Mapping) else {"": found}
    return {
        f"{_EVALUATED}{f' ({name})' if name else ''}": rows_digest(rows)[:16]
        for name, rows in sets.items()
        if isinstance(rows, Dataset)
    }


def _processor(run: RunView) -> dict[str, Any]:
    from sftcore.data.store.keys import tokenizer_digest

    tokenizer = run.data.tokenizer
    return {
        "the chat template": _digest(json.dumps(plain(tokenizer.chat_template))),
        "the tokenizer": tokenizer_digest(tokenizer)[:16],
    }


def _plugins(run: RunView) -> dict[str, Any]:
    from sftcore.data.store.keys import plugin_digest

    # what the run takes by itself may be another on another device
    chosen = [one for one in run.setup.plugins.bound if one.selection.path != AUTO]
    every: dict[str, Bound] = {f"{one.entry.kind} {one.entry.name}": one for one in chosen}
    every |= {f"format {one.entry.name} of {name}": one for name, one in run.data.formats.items()}
    found = {}
    for name, one in every.items():
        about, evaluated = describe_plugin(one), "of eval_dataset" in name
        prefix = f"{_EVALUATED}: " if evaluated else ""
        found[f"{prefix}plugin {name}"] = f"{about['distribution']} {about['version']} {json.dumps(about['options'])}"
        found[f"{prefix}options and source of plugin {name}"] = plugin_digest(one)[:16]
    return found


def _model(run: RunView) -> dict[str, Any]:
    model = run.loaded.model
    parameters = list(model.named_parameters())
    trained = [(name, list(one.shape)) for name, one in parameters if one.requires_grad]
    return {
        "the model": run.setup.plan.model.name or type(model).__name__,
        "number of parameters": sum(num_weights(one) for _, one in parameters),
        "the parameters that train": f"{len(trained)}, {_digest(json.dumps(sorted(trained)))}",
        "number of processes": run.args.world_size,
    }
