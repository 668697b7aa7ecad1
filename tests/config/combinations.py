"""Combinations of model, adapter and settings that cannot work: what `check` says of each, as the docs show it.

`python -m tests.config.combinations` writes the table into the page.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import yaml

from sftcore import CheckError, SFTCoreError
from sftcore.config.recipe import parse_recipe
from sftcore.train.run import check_recipe

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "adapters.md"
HEADING = "## What cannot work together"

COMBINATIONS: dict[str, dict] = {
    "a quantised base without an adapter": {"model": {"init_kwargs": {"load_in_4bit": True}}},
    "8 and 4 bits at once": {"model": {"init_kwargs": {"load_in_4bit": True, "load_in_8bit": True}}, "adapter": "lora"},
    "bits in the adapter and in the model": {"model": {"init_kwargs": {"load_in_4bit": True}}, "adapter": "qlora"},
    "`qlora` on a GGUF file": {"model": "file.gguf", "adapter": "qlora"},
    "4-bit loading of a GGUF file": {
        "model": {"name": "file.gguf", "init_kwargs": {"load_in_4bit": True}}, "adapter": "lora",
    },
    "`qlora` on a base quantised by another method": {"model": "awq", "adapter": "qlora"},
    "4-bit options with 8 bits": {"adapter": {"qlora": {"bits": 8, "compute_dtype": "bfloat16"}}},
    "DoRA on 8 bits": {"adapter": {"qlora": {"bits": 8, "use_dora": True}}},
    "a quantised module saved whole": {"adapter": {"qlora": {"modules_to_save": ["q_proj"]}}},
    "an initialisation from the base's weights, on 4 bits": {
        "adapter": {"qlora": {"arguments": {"init_lora_weights": "pissa"}}}
    },
    "LoHa on 4 bits": {
        "model": {"init_kwargs": {"load_in_4bit": True}},
        "adapter": {"lora": {"peft_type": "LOHA", "target_modules": ["q_proj"]}},
    },
    "LoRA's options for another method": {"adapter": {"lora": {"peft_type": "IA3", "r": 8}}},
    "prompt tuning with packing": {
        "packing": True, "adapter": {"lora": {"peft_type": "PROMPT_TUNING", "arguments": {"num_virtual_tokens": 8}}}
    },
    "prefix tuning with padding-free batches": {
        "padding_free": True, "gradient_checkpointing": False,
        "adapter": {"lora": {"peft_type": "PREFIX_TUNING", "arguments": {"num_virtual_tokens": 8}}},
    },
    "p-tuning with packed evaluation": {
        "eval_packing": True, "adapter": {"lora": {"peft_type": "P_TUNING", "arguments": {"num_virtual_tokens": 8}}}
    },
    "prefix tuning with gradient checkpointing": {
        "gradient_checkpointing": True,
        "adapter": {"lora": {"peft_type": "PREFIX_TUNING", "arguments": {"num_virtual_tokens": 8}}},
    },
    "an adapter around a saved adapter": {"model": "adapter", "adapter": "lora"},
    "weights in a pickle": {"model": "pickled"},
    "`use_safetensors: false`": {"model": {"init_kwargs": {"use_safetensors": False}}},
    "8 bits with FSDP": {"fsdp": "full_shard", "adapter": {"qlora": {"bits": 8}}},
    "4 bits with FSDP, stored as bytes": {"fsdp": "full_shard", "adapter": "qlora"},
    "a bfloat16 adapter with FSDP": {"fsdp": "full_shard", "adapter": "lora", "adapter_dtype": "bfloat16"},
    "an adapter in float16": {"adapter": "lora", "adapter_dtype": "float16"},
    "float16 autocast on a CPU": {"fp16": True, "use_cpu": True},
    "float16 weights with `fp16`": {"model": {"dtype": "float16"}, "fp16": True},
    "`fp16` and `bf16`": {"fp16": True, "bf16": True},
}  # fmt: skip


def make_folders(root: Path) -> None:
    """What the combinations name: configurations alone, since no weight is read."""
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    quantised = {**config, "quantization_config": {"quant_method": "awq", "bits": 4}}
    adapter = {"base_model_name_or_path": str(root / "model"), "peft_type": "LORA"}
    files = {
        "model": {"config.json": config, "model.safetensors": "none"},
        "awq": {"config.json": quantised, "model.safetensors": "none"},
        "pickled": {"config.json": config, "pytorch_model.bin": "none"},
        "adapter": {"adapter_config.json": adapter, "adapter_model.safetensors": "none"},
    }
    for folder, inside in files.items():
        (root / folder).mkdir()
        for name, content in {**inside, "tokenizer.json": {}}.items():
            (root / folder / name).write_text(json.dumps(content), encoding="utf-8")
    (root / "file.gguf").write_text("none")
    (root / "rows.jsonl").write_text('{"text": "a row"}\n')


def said_of(name: str, root: Path) -> list[tuple[str, str]]:
    """What `check` says of a combination: problems with their fixes, the folder's own path left out."""
    raw = dict(COMBINATIONS[name])
    model = raw.get("model", {})
    options = {"name": model} if isinstance(model, str) else model
    raw["model"] = {**options, "name": str(root / options.get("name", "model"))}
    try:
        check_recipe(parse_recipe({**raw, "data": str(root / "rows.jsonl")}, place="recipe.yaml"))
    except CheckError as error:
        found = [(problem.what, problem.fix) for problem in error.problems]
    except SFTCoreError as error:
        found = [(error.what, error.fix)]
    else:
        found = []
    return [(what.replace(f"{root}/", ""), fix.replace(f"{root}/", "")) for what, fix in found]


def as_recipe(name: str) -> str:
    text = yaml.safe_dump(COMBINATIONS[name], default_flow_style=True, width=10_000, sort_keys=False)
    return text.strip()[1:-1]


def table(root: Path) -> list[str]:
    rows = []
    for name in COMBINATIONS:
        (what, fix), *_ = said_of(name, root)
        cells = (name, f"`{as_recipe(name)}`", what, fix)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return ["| combination | recipe | error | fix |", "|---|---|---|---|", *rows]


def updated(page: str, rows: list[str]) -> str:
    """The page with the table of its section replaced."""
    before, after = page.split(f"{HEADING}\n", 1)
    lines = after.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|"))
    end = next((i for i in range(start, len(lines)) if not lines[i].startswith("|")), len(lines))
    return f"{before}{HEADING}\n" + "\n".join([*lines[:start], *rows, *lines[end:]]) + "\n"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        make_folders(Path(scratch))
        PAGE.write_text(updated(PAGE.read_text(encoding="utf-8"), table(Path(scratch))), encoding="utf-8")
