"""Measure how fast LoRA trains on a GPU, with every installed attention of sftcore, and compare with TRL and Unsloth.

python benchmarks/gpu.py [--model M] [--length 2048] [--steps 8] [--layers 24 --width 2048] [--json gpu.json]

It needs a GPU, but no download: without --model it makes a Llama of the given size with random weights, and a
tokenizer. Rows are packed blocks of documents of 64 to 512 tokens, the same for all libraries, in bfloat16. The batch
is doubled until the GPU is full. All libraries use TRL's largest batch, so that they train the same; then sftcore is
also measured alone with the largest batch that fits.

MFU is the FLOPs of the model divided by those of the GPU. Per token, the model needs 4 FLOPs for each frozen parameter
(the forward pass and the gradient of activations), 6 for each trained one, and 12 x layers x width x mean document
length / 2 for causal attention. The GPU's dense bfloat16 peak is taken from NVIDIA's data sheets if the GPU is known.
The speed of a product of two 8,192 x 8,192 matrices is shown for comparison.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from sides import SIDES, Settings, start
from train import versions, write

PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125, "RTX 4090": 165}
"""Dense bfloat16 peak of the tensor cores by NVIDIA's data sheets, for the SXM variant if there are several."""

ATTENTIONS = ("sdpa", "varlen", "flash-1", "flash-2", "flex")


def main() -> None:
    given = parse()
    import torch

    if not torch.cuda.is_available():
        sys.exit("There is no GPU. On a CPU, run: python benchmarks/train.py")
    with tempfile.TemporaryDirectory() as folder:
        model = given.model or random_llama(Path(folder) / "model", given)
        size = size_of(model)
        blocks = Path(folder) / "blocks.jsonl"
        lengths = write_blocks(blocks, given.length, size["vocabulary"], given.blocks)
        base = Settings(
            model, str(blocks), dtype="bfloat16", max_length=given.length, packed=True, steps=given.steps + 1,
            plugins={"attention": "varlen"}, checkpointing=given.checkpointing,
        )  # fmt: skip
        sides = [side for side in SIDES if importlib.util.find_spec(side)]
        shared = largest_batch("trl" if "trl" in sides else "sftcore", base)
        runs = compared(replace(base, batch=shared), sides)
        alone = largest_batch("sftcore", base)
        if alone > shared:
            runs.append(run("sftcore", f"varlen, batch {alone}", replace(base, batch=alone)))
    report = {
        "device": torch.cuda.get_device_name(),
        "memory_gib": torch.cuda.get_device_properties(0).total_memory / 2**30,
        "matmul_tflops": matmul_tflops(),
        "batch": shared,
        "setting": {"length": given.length, "steps": given.steps, "checkpointing": given.checkpointing, **size},
        "runs": [with_mfu(one, size, sum(lengths) / len(lengths), torch.cuda.get_device_name()) for one in runs],
        "versions": versions(),
    }
    print(table(report))
    print(json.dumps(report, indent=2))
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub id (default: a Llama with random weights)")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--length", type=int, default=2048, help="tokens per block")
    parser.add_argument("--blocks", type=int, default=512)
    parser.add_argument("--steps", type=int, default=8, help="measured steps, after a first one that is not measured")
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the JSON to this file")
    return parser.parse_args()


# --- What is trained ------------------------------------------------------------------------------------------------
def random_llama(folder: Path, given: argparse.Namespace) -> str:
    """Make a Llama with random weights and a vocabulary of 32,768, and a tokenizer that every library can load."""
    import torch
    from tokenizers import Tokenizer, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {f"t{i}": i for i in range(32_766)} | {"<pad>": 32_766, "</s>": 32_767}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
    PreTrainedTokenizerFast(tokenizer_object=core, unk_token="t0", pad_token="<pad>", eos_token="</s>").save_pretrained(
        folder
    )
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=given.width, intermediate_size=int(given.width * 2.75),
        num_hidden_layers=given.layers, num_attention_heads=given.width // 64, num_key_value_heads=given.width // 256,
        max_position_embeddings=8192, pad_token_id=32_766, eos_token_id=32_767, dtype="bfloat16",
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return str(folder)


def size_of(model: str) -> dict[str, int]:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model)
    import torch

    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(config).num_parameters(exclude_embeddings=True)
    head = config.vocab_size * config.hidden_size
    return {
        "parameters": parameters + (head if config.tie_word_embeddings else 0),
        "layers": config.num_hidden_layers, "width": config.hidden_size, "vocabulary": config.vocab_size,
    }  # fmt: skip


def write_blocks(path: Path, length: int, vocabulary: int, count: int) -> list[int]:
    """Write blocks filled with documents of 64 to 512 tokens, and return the documents' lengths."""
    chance, all_lengths, rows = random.Random(0), [], []
    for _ in range(count):
        lengths: list[int] = []
        while (left := length - sum(lengths)) > 0:
            lengths.append(min(left, chance.randint(64, 512)))
        ids = [chance.randrange(min(vocabulary, 30_000)) for _ in range(length)]
        labels, at = list(ids), 0
        for one in lengths:
            labels[at] = -100
            at += one
        rows.append({"input_ids": ids, "labels": labels, "seq_lengths": lengths})
        all_lengths += lengths
    write(path, rows)
    return all_lengths


# --- Measuring ------------------------------------------------------------------------------------------------------
def largest_batch(side: str, settings: Settings) -> int:
    """The largest batch that fits, found by doubling it."""
    batch = 1
    while batch <= 256:
        try:
            start(side, replace(settings, batch=batch, steps=2))
        except RuntimeError as error:
            if "out of memory" not in str(error) or batch == 1:
                raise
            return batch // 2
        batch *= 2
    return batch // 2


def compared(settings: Settings, sides: list[str]) -> list[dict[str, Any]]:
    runs = [
        run("sftcore", name, replace(settings, plugins={"attention": name}))
        for name in ATTENTIONS
        if name != "flash-2" or importlib.util.find_spec("flash_attn")
    ]
    return [*runs, *(run(side, "its own", settings) for side in sides if side != "sftcore")]


def run(side: str, attention: str, settings: Settings) -> dict[str, Any]:
    try:
        found = start(side, settings)
    except RuntimeError as error:
        return {"side": side, "attention": attention, "error": str(error).strip().splitlines()[-1]}
    return {"attention": attention, "batch": settings.batch, **found}


def with_mfu(one: dict[str, Any], size: dict[str, int], document: float, device: str) -> dict[str, Any]:
    if "error" in one:
        return one
    trained = one["trained_parameters"]
    attention = 12 * size["layers"] * size["width"] * document / 2
    flops = one["tokens_per_second"] * (4 * size["parameters"] + 6 * trained + attention)
    peak = next((tflops for name, tflops in PEAK_TFLOPS.items() if name in device), None)
    return {**one, "model_tflops": flops / 1e12, "mfu": None if peak is None else flops / 1e12 / peak}


def matmul_tflops() -> float:
    """The speed of a bfloat16 product of two 8,192 x 8,192 matrices on this GPU."""
    import torch

    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(10):
        a @ b
    torch.cuda.synchronize()
    return 10 * 2 * 8192**3 / (time.perf_counter() - begin) / 1e12


def table(report: dict[str, Any]) -> str:
    lines = [
        f"{report['device']}, {report['memory_gib']:.0f} GiB; a plain matrix product reaches "
        f"{report['matmul_tflops']:.0f} TFLOPS"
    ]
    trl = next((one for one in report["runs"] if one["side"] == "trl" and "error" not in one), None)
    for one in report["runs"]:
        name = f"{one['side']}, {one['attention']}"
        if "error" in one:
            lines.append(f"  {name:28} {one['error']}")
            continue
        mfu = "" if one["mfu"] is None else f", MFU {100 * one['mfu']:.1f}%"
        against = f", {one['tokens_per_second'] / trl['tokens_per_second']:.2f} x TRL" if trl and one is not trl else ""
        lines.append(
            f"  {name:28} batch {one['batch']}: {one['tokens_per_second']:,.0f} tokens/s, "
            f"peak {one['peak_mib'] / 1024:.1f} GiB{mfu}{against}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
