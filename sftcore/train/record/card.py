"""The model card that is saved beside the weights."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sftcore.chat.tokens import clones_tokenizer

if TYPE_CHECKING:
    from sftcore.tools.merge import Merged
    from sftcore.tools.quantization.quantize import Options, Outcome
    from sftcore.tools.saved import SavedRun
    from sftcore.train.trainer import SFTTrainer

_BODY = """---
{head}---

# {name}

{origin}

## Use

```python
{usage}
```

## Training

{facts}
Everything that makes this run reproducible stands in `manifest.json`.
"""

_FULL = """from transformers import pipeline

chat = pipeline("text-generation", model="{name}")
print(chat([{{"role": "user", "content": "Hello!"}}], max_new_tokens=64)[0]["generated_text"])"""

_ADAPTER = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

tokenizer = AutoTokenizer.from_pretrained("{name}")
base = AutoModelForCausalLM.from_pretrained({base_arguments}){grown}
base.generation_config = GenerationConfig.from_pretrained("{name}")  # where answers end
model = PeftModel.from_pretrained(base, "{name}")"""

_GROWN = """
base.resize_token_embeddings(len(tokenizer))  # as in training"""


def write_card(trainer: SFTTrainer, folder: Path) -> None:
    """Write `README.md` into `folder`."""
    base = _base_name(trainer)
    name = (trainer.args.hub_model_id or Path(trainer.args.output_dir).name).rpartition("/")[2]
    is_adapter = hasattr(trainer.loaded.model, "peft_config")
    head: dict[str, Any] = {"library_name": "peft" if is_adapter else "transformers", "tags": list(trainer._tag_names)}
    if _is_hub_id(base):
        head["base_model"] = base
    usage = (
        _ADAPTER.format(
            base_arguments=_base_arguments(_public(base) if trainer.args.push_to_hub else base),
            name=name,
            grown=_GROWN if clones_tokenizer(trainer.args.chat_template_path) else "",
        )
        if is_adapter
        else _FULL.format(name=name)
    )
    origin = f"Fine-tuned from `{_public(base)}` with sftcore {importlib.metadata.version('sftcore')}."
    _write(folder, head, name, origin, usage, _facts(trainer))


def write_merged_card(folder: Path, merged: Merged, run: SavedRun) -> None:
    """Write `README.md` of a merged model into `folder`."""
    base, name = run.base.name or "", merged.folder.name
    head: dict[str, Any] = {"library_name": "transformers", "tags": ["sftcore", "sft"]}
    if _is_hub_id(base):
        head["base_model"] = base
    origin = (
        f"`{_public(base)}` with an adapter merged into it, by sftcore {importlib.metadata.version('sftcore')}. "
        f"Merged in float32, saved in {merged.dtype}."
    )
    ledgers = (run.manifest.get("data") or {}).get("ledgers") or ()
    facts = [f"{one['rows_kept']:,} rows, {one['tokens_supervised']:,} tokens supervised" for one in ledgers[:1]]
    facts += [f"{run.manifest['steps']} steps"] if run.manifest.get("steps") else []
    facts += [f"Compared with the unmerged model on {merged.compared_on.description}"]
    facts += [f"{str(one)[:1].upper()}{str(one)[1:]}" for one in merged.agreements]
    _write(folder, head, name, origin, _FULL.format(name=name), facts)


def write_quantised_card(folder: Path, outcome: Outcome, options: Options, run: SavedRun) -> None:
    """Write `README.md` of a quantised model into `folder`."""
    base, name = run.base.name or "", outcome.folder.name
    head: dict[str, Any] = {"library_name": "transformers", "tags": ["sftcore", "sft", options.method]}
    if _is_hub_id(base):
        head |= {"base_model": base, "base_model_relation": "quantized"}
    merged = " with an adapter merged into it," if run.adapter else ""
    origin = (
        f"`{_public(base)}`{merged} quantised to {options.bits} bits in groups of {outcome.group_size} "
        f"({options.method}) by sftcore {importlib.metadata.version('sftcore')}.\n\n"
        "transformers loads it where the package `compressed-tensors` is installed."
    )
    before, after, rows = outcome.before, outcome.after, len(outcome.calibration.held_out)
    facts = [
        f"Calibrated on {len(outcome.calibration.rows):,} rows, {outcome.calibration.num_tokens:,} tokens",
        f"Perplexity on {rows} rows, supervised tokens: {before.supervised:.3f} before, {after.supervised:.3f} after",
        f"Perplexity on {rows} rows, all tokens: {before.every:.3f} before, {after.every:.3f} after",
    ]
    _write(folder, head, name, origin, _FULL.format(name=name), facts)


def _write(folder: Path, head: dict[str, Any], name: str, origin: str, usage: str, facts: list[str]) -> None:
    text = _BODY.format(
        head=yaml.safe_dump(head, sort_keys=True),
        name=name,
        origin=origin,
        usage=usage,
        facts="".join(f"- {fact}\n" for fact in facts),
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(text, encoding="utf-8")


def _is_hub_id(base: str) -> bool:
    return base.count("/") == 1 and not base.startswith((".", "/", "~")) and not Path(base).exists()


def _public(base: str) -> str:
    """The base's name without the folders of this machine."""
    return base if _is_hub_id(base) else Path(base).name


def _base_name(trainer: SFTTrainer) -> str:
    return trainer.setup.plan.model.name or trainer.loaded.model.config._name_or_path or "a model object"


def _base_arguments(base: str) -> str:
    path = Path(base)
    if path.suffix == ".gguf":
        return f'"folder/of/the/file", gguf_file="{path.name}"'
    return f'"{base}"'


def _facts(trainer: SFTTrainer) -> list[str]:
    args, history = trainer.args, trainer.state.log_history
    plugins = ", ".join(f"{one.entry.kind} {one.entry.name}" for one in trainer.setup.plugins.bound)
    losses = [entry["loss"] for entry in history if "loss" in entry]
    facts = [
        f"Plugins: {plugins}",
        f"{trainer.state.global_step} steps of {args.per_device_train_batch_size} x {args.gradient_accumulation_steps} "
        f"rows on each of {args.world_size} process(es), learning rate {args.learning_rate:g}, seed {args.seed}",
    ]
    facts += [line for ledger in trainer.data.ledgers for line in ledger.lines()]
    if losses:
        facts.append(f"Loss from {losses[0]:.4g} to {losses[-1]:.4g}")
    return facts
