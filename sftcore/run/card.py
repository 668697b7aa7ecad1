"""The model card that is saved beside the weights."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from sftcore.trainer import SFTTrainer

_BODY = """---
{head}---

# {name}

Fine-tuned from {base} with sftcore {version}.

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
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({base_arguments})
model = PeftModel.from_pretrained(base, "{name}")
tokenizer = AutoTokenizer.from_pretrained("{name}")"""


def write_card(trainer: SFTTrainer, folder: Path) -> None:
    """Write `README.md` into `folder`."""
    base = _base_name(trainer)
    name = (trainer.args.hub_model_id or Path(trainer.args.output_dir).name).rpartition("/")[2]
    is_adapter = hasattr(trainer.loaded.model, "peft_config")
    head: dict[str, Any] = {"library_name": "peft" if is_adapter else "transformers", "tags": list(trainer._tag_names)}
    if base.count("/") == 1 and not base.startswith((".", "/", "~")):
        head["base_model"] = base
    usage = _ADAPTER.format(base_arguments=_base_arguments(base), name=name) if is_adapter else _FULL.format(name=name)
    text = _BODY.format(
        head=yaml.safe_dump(head, sort_keys=True),
        name=name,
        base=f"`{Path(base).name if base.startswith(('/', '.', '~')) else base}`",
        version=importlib.metadata.version("sftcore"),
        usage=usage,
        facts="".join(f"- {fact}\n" for fact in _facts(trainer)),
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(text, encoding="utf-8")


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
