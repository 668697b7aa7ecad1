"""The model card that is saved beside the weights."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from sftcore.data.ranks import shares_of_batches
from sftcore.model.attention import running_attention
from sftcore.model.embeddings import num_rows

if TYPE_CHECKING:
    from sftcore.train.view import RunView

TAGS = ("sftcore", "sft")

_TEMPLATE = """---
{{ card_data }}
---

# {{ name }}

{{ origin }}

## Use

```python
{{ usage }}
```

## Training

{% for fact in facts %}- {{ fact }}
{% endfor %}
Everything that makes this run reproducible stands in `manifest.json`.

"""

_WHOLE = """from transformers import pipeline

chat = pipeline("text-generation", model="{name}")
print(chat([{{"role": "user", "content": "Hello!"}}], max_new_tokens=64)[0]["generated_text"])"""

_ADAPTER = """from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

tokenizer = AutoTokenizer.from_pretrained("{name}")
base = AutoModelForCausalLM.from_pretrained({base}){grown}
base.generation_config = GenerationConfig.from_pretrained("{name}")  # where answers end
model = PeftModel.from_pretrained(base, "{name}")"""

_GROWN = "\nbase.resize_token_embeddings(len(tokenizer))  # as in training"


def save_card(
    folder: Path, *, name: str, base: str, origin: str, facts: Sequence[str], usage: str | None = None, **metadata: Any
) -> None:
    """Write `README.md` into `folder`.

    Args:
        folder: made where it does not exist.
        name: of the model.
        base: hub id or folder of the model that it was made from; a folder is not named.
        origin: how it was made, in a sentence.
        facts: a line each.
        usage: Python code; None is that of a whole model.
        metadata: more of huggingface_hub's `ModelCardData`.
    """
    known = {"library_name": "transformers", "tags": list(TAGS), "base_model": base if is_hub_id(base) else None}
    card = ModelCard.from_template(
        ModelCardData(**{**known, **metadata}),
        template_str=_TEMPLATE,
        name=name,
        origin=origin,
        usage=usage or _WHOLE.format(name=name),
        facts=facts,
    )
    card.save(folder / "README.md")


def made_by() -> str:
    """Name and version of this program, as cards say it."""
    return f"sftcore {importlib.metadata.version('sftcore')}"


def is_hub_id(base: str) -> bool:
    """Whether this is `owner/name`, and not a folder."""
    return base.count("/") == 1 and not base.startswith((".", "/", "~")) and not Path(base).exists()


def public_name(base: str) -> str:
    """A model's name without the folders of this machine."""
    return base if is_hub_id(base) else Path(base).name


def write_card(trainer: RunView, folder: Path) -> None:
    """Write `README.md` of a run into `folder`."""
    args, model = trainer.args, trainer.loaded.model
    base = trainer.setup.plan.model.name or model.config._name_or_path or "a model object"
    name = (args.hub_model_id or Path(args.output_dir).name).rpartition("/")[2]
    more: dict[str, Any] = {"tags": list(trainer.tags)}
    if hasattr(model, "peft_config"):
        shown = _base_arguments(public_name(base) if args.push_to_hub else base)
        grown = _GROWN if num_rows(model) != trainer.rows_as_loaded else ""
        more |= {"library_name": "peft", "usage": _ADAPTER.format(name=name, base=shown, grown=grown)}
    origin = f"Fine-tuned from `{public_name(base)}` with {made_by()}."
    save_card(folder, name=name, base=base, origin=origin, facts=_facts(trainer), **more)


def _base_arguments(base: str) -> str:
    path = Path(base)
    if path.suffix == ".gguf":
        return f'"folder/of/the/file", gguf_file="{path.name}"'
    return f'"{base}"'


def _facts(trainer: RunView) -> list[str]:
    args = trainer.args
    shared, processes = shares_of_batches(args)
    places = f"split among {shared} processes" if shared > 1 else f"on each of {processes} process(es)"
    plugins = ", ".join(f"{one.entry.kind} {one.entry.name}" for one in trainer.setup.plugins.bound)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    facts = [
        f"Plugins: {plugins}",
        f"Attention: {running_attention(trainer.loaded.model)}",
        f"{trainer.state.global_step} steps of {args.per_device_train_batch_size} x {args.gradient_accumulation_steps} "
        f"rows {places}, learning rate {args.learning_rate:g}, seed {args.seed}",
    ]
    facts += [line for ledger in trainer.data.ledgers for line in ledger.lines()]
    facts += [line for one in trainer.data.streams.values() if one.total for line in one.total.lines()]
    if losses:
        facts.append(f"Loss from {losses[0]:.4g} to {losses[-1]:.4g}")
    return facts
