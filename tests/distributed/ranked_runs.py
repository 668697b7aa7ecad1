"""Runs whose rows can be told apart by a number in their text: `ranked_runs.py MODEL FOLDER CASE...` runs some of them.

`start` has torchrun start it in two processes, and the tests call `run` in their own for what one process gives.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import torch
from datasets import Dataset, IterableDataset
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback

from sftcore import SFTConfig, SFTTrainer
from sftcore.core.errors import ConflictError, DataError
from sftcore.testing.libraries import spare_libraries
from sftcore.train.guard.signals import StoppedBySignal

ROWS, EVALUATED, BATCH = 23, 7, 8
"""Rows to train on and to evaluate, and rows of a step over all ranks: nothing divides by what it is cut into."""
FIELDS = {
    "use_cpu": True, "num_train_epochs": 2, "logging_steps": 1, "learning_rate": 0.01, "optim": "adamw_torch",
    "lr_scheduler_type": "constant", "save_strategy": "no", "report_to": "none", "eval_strategy": "epoch",
    "dataset_cache": False, "max_length": 64, "disable_tqdm": True,
}  # fmt: skip
LORA = {"adapter": {"lora": {"r": 4, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}}}
QLORA = {"adapter": {"qlora": {**LORA["adapter"]["lora"], "storage_dtype": "float32"}}}
DROPOUT = {"adapter": {"lora": {**LORA["adapter"]["lora"], "lora_dropout": 0.3}}}
LAYERS = {"transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]}
FSDP = {"fsdp": True, "fsdp_config": LAYERS}
SHARDED = {**LAYERS, "state_dict_type": "SHARDED_STATE_DICT"}
SPLITS = hasattr(Trainer, "_sync_replicated_trainable_parameters")
"""Whether transformers trains and saves models that tp_plan splits (5.24 does, 5.17 saves from one process alone)."""
STREAM = {"max_steps": 3, "eval_strategy": "no"}
CASES = {
    "full": {},
    "lora": {"plugins": LORA, "gradient_accumulation_steps": 2, "dataset_cache": True},
    "grouped": {"plugins": DROPOUT, "train_sampling_strategy": "group_by_length", "eval_strategy": "no"},
    "packed": {"packing": True, "max_length": 48, "eval_packing": False, "num_train_epochs": 1},
    "stream": {**STREAM, "eval_strategy": "steps", "eval_steps": 3},
    "files": {**STREAM, "max_steps": 5, "save_strategy": "steps", "save_steps": 3},
    "files-resumed": {**STREAM, "max_steps": 5},
    "stream-shards": {**STREAM, "dataloader_num_workers": 2},
    "token-stream": {**STREAM, "dataset_kwargs": {"skip_prepare_dataset": True}},
    "packed-stream": {**STREAM, "packing": True, "max_length": 48, "max_steps": 2},
    **({"tp": {"model_init_kwargs": {"tp_plan": "auto"}}} if SPLITS else {}),
    "fsdp": {**FSDP, "save_strategy": "epoch", "num_train_epochs": 1},
    "fsdp-resumed": FSDP,
    "half": {"bf16": True, "num_train_epochs": 1},
    "fsdp-half": {**FSDP, "bf16": True, "num_train_epochs": 1},
    "fsdp-lora": {**FSDP, "plugins": LORA},
    "fsdp-qlora": {**FSDP, "plugins": QLORA, "num_train_epochs": 1},
    "fsdp-sharded": {"fsdp": True, "fsdp_config": SHARDED, "save_strategy": "epoch", "num_train_epochs": 1},
    "fsdp-sharded-resumed": {"fsdp": True, "fsdp_config": SHARDED},
}
RESUMED = {name: f"{name.removesuffix('-resumed')}/checkpoint-3" for name in CASES if name.endswith("-resumed")}
"""From which folder a run goes on that another one has left at the end of an epoch."""
STOPPED = {"grouped": 5, "packed": 1, "stream": 2, "packed-stream": 1, "fsdp": 2}
"""The step, within an epoch, in which a signal reaches one process: `CASE-stopped`, and `CASE-auto` goes on from it."""
WHOLE_RUNS = tuple(CASES)
CASES |= {f"{name}-{part}": CASES[name] for name in STOPPED for part in ("stopped", "auto")}


def start(folder: Path, model: Path, *cases: str, script: str = __file__) -> Path:
    """Run these cases in two processes, and give the folder back."""
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SFTCORE_CACHE": str(folder / "cache")}
    shown = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, str(model),
         str(folder), *cases],
        capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr[-5000:]
    return folder


def read(folder: Path, case: str, rank: int = 0):
    """What a run has written."""
    return json.loads((folder / f"{case}-{rank}.json").read_text())


def curve(folder: Path, case: str) -> list[dict[str, float]]:
    """What a run has logged, but for times."""
    untold = re.compile("runtime|per_second|preparation_time")
    return [
        {key: value for key, value in one.items() if not untold.search(key)} for one in read(folder, case)["logged"]
    ]


def differing_weights(folder: Path, case: str, other: str) -> list[str]:
    """The weights of which two runs have saved other bits, by name."""
    [name] = [path.name for path in (folder / case).glob("*model.safetensors")]
    one, two = (load_file(folder / saved / name) for saved in (case, other))
    assert one.keys() == two.keys()
    return [key for key, weight in one.items() if not weight.equal(two[key])]


def row(number: int) -> dict[str, str]:
    """Rows of very different lengths, so that a mean of means would not be the mean over tokens."""
    return {"said": f"x row {number} ." + " hello" * (1 + number % 5 * 3)}


def dataset(case: str, first: int, count: int, tokenizer) -> Dataset | IterableDataset:
    rows = [row(number) for number in range(first, first + count)]
    if case.startswith("files"):  # one for each rank, and one of them is read out long before the other
        return IterableDataset.from_generator(of_files, gen_kwargs={"files": [rows[:3], rows[3:]]})
    if case == "stream-shards":  # fewer than there are workers
        return IterableDataset.from_generator(of_files, gen_kwargs={"files": [rows[:5], rows[5:12], rows[12:]]})
    whole = Dataset.from_list(rows)
    if case == "token-stream":
        whole = whole.map(tokens_of, fn_kwargs={"tokenizer": tokenizer}, remove_columns=["said"])
    return whole.to_iterable_dataset() if "stream" in case else whole


def tokens_of(one, tokenizer):
    ids = tokenizer(one["said"])["input_ids"]
    return {"input_ids": ids, "labels": ids}


def of_files(files):
    for rows in files:
        yield from rows


class SignalAt(TrainerCallback):
    """Sends this process SIGTERM within a step."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self._step - 1:
            os.kill(os.getpid(), signal.SIGTERM)


class NaNIn(TrainerCallback):
    """Has the model's head give NaN within a step of training, on this process."""

    def __init__(self, step: int, model) -> None:
        self._step, self._now = step, False
        model.get_output_embeddings().register_forward_hook(
            lambda *call: call[-1] * float("nan") if self._now else None
        )

    def on_step_begin(self, args, state, control, **_):
        self._now = state.global_step == self._step - 1

    def on_step_end(self, args, state, control, **_):
        self._now = False


def run(case: str, model: str, folder: Path) -> SFTTrainer:
    """Train, and write what was logged and which rows were seen into the folder, in a file for each rank."""
    world, index = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    fields = {**FIELDS, **CASES[case]}
    if case.endswith("-stopped"):  # where checkpoints are saved at all, a signal has one saved
        fields |= {"save_strategy": "steps", "save_steps": 1000}
    if world == 1:
        fields.pop("deepspeed", None)
    steps = fields.get("gradient_accumulation_steps", 1)
    args = SFTConfig(
        str(folder / re.sub("-auto$", "-stopped", case)),
        per_device_train_batch_size=BATCH // (1 if case == "tp" else world) // steps,
        per_device_eval_batch_size=BATCH // world // 2,
        **fields,
    )

    def text_of(one: dict[str, str]) -> str:
        # not from outside: what a function refers to is part of its hash, and so of the cache key
        with (folder / f"{case}.formatted").open("a") as file:
            file.write(f"{os.environ.get('RANK')} {numbers_in(one['said'])[0]}\n")
        return one["said"]

    if world > 1 and (args.fsdp or case == "tp"):
        shard_on_cpu()
    elif world == 1:
        args.fsdp = args.fsdp_plugin_args = args.model_init_kwargs = None
    tokenizer = AutoTokenizer.from_pretrained(model)
    trainer = SFTTrainer(
        model if case in ("tp", "fsdp-qlora") else AutoModelForCausalLM.from_pretrained(model),
        args,
        train_dataset=dataset(case, 0, ROWS, tokenizer),
        eval_dataset=dataset(case, 100, EVALUATED, tokenizer) if args.eval_strategy != "no" else None,
        processing_class=tokenizer,
        formatting_func=None if case == "token-stream" else text_of,
        compute_metrics=shape_of if case.partition("-")[0] in ("full", "stream") else None,
    )
    seen: dict[str, list[int]] = {"train": [], "eval": []}
    compute = trainer.compute_loss

    def watched(model, inputs, *args, **kwargs):
        for ids, labels in zip(inputs["input_ids"], inputs["labels"], strict=True):
            seen["train" if model.training else "eval"] += numbers_in(tokenizer.decode(ids[labels != -100]))
        return compute(model, inputs, *args, **kwargs)

    trainer.compute_loss = watched
    if args.on_nonfinite == "skip" and index == world - 1:
        trainer.add_callback(NaNIn(2, trainer.model))
    if case.endswith("-stopped"):
        if index == world - 1:
            trainer.add_callback(SignalAt(STOPPED[case.removesuffix("-stopped")]))
        with contextlib.suppress(StoppedBySignal):
            trainer.train()
        return trainer
    resumed = str(folder / RESUMED[case]) if case in RESUMED else None
    trainer.train(resume_from_checkpoint="auto" if case.endswith("-auto") else resumed)
    if world > 1 and index == 0:
        shared = folder / "shared.json"
        known = json.loads(shared.read_text()) if shared.exists() else []
        shared.write_text(json.dumps([*known, str(trainer.data.shared)]))
    logged = [one for one in trainer.state.log_history if "loss" in one or "eval_loss" in one]
    (folder / f"{case}-{index}.json").write_text(json.dumps({"seen": seen, "logged": logged}))
    trainer.save_model(str(folder / case))
    return trainer


def numbers_in(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"row (\d+) ", text)]


def shape_of(predictions) -> dict[str, float]:
    labels = predictions.label_ids
    counted = (labels[:, 1:] != -100).sum(1)
    return {"rows": len(labels), "counted": int(counted.sum()), "in_order": int((counted * range(len(labels))).sum())}


def refused(folder: Path, model: str) -> None:
    """Write why a stream is refused that each process would read in another order."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    stream = dataset("stream", 0, ROWS, tokenizer).shuffle()
    args = SFTConfig(str(folder / "refused"), **{**FIELDS, **STREAM})
    try:
        SFTTrainer(model, args, train_dataset=stream, formatting_func=lambda one: one["said"])
    except DataError as error:
        (folder / "refused.txt").write_text(str(error))


def evaluated_too_early(folder: Path, model: str) -> None:
    """Write what an evaluation says that comes before FSDP 2 has sharded anything."""
    rows = dataset("fsdp", 0, ROWS, AutoTokenizer.from_pretrained(model))
    args = SFTConfig(str(folder / "early"), **{**FIELDS, **FSDP, "dataset_text_field": "said"})
    shard_on_cpu()
    trainer = SFTTrainer(model, args, train_dataset=rows, eval_dataset=rows)
    try:
        trainer.evaluate()
    except ConflictError as error:
        (folder / "early.txt").write_text(str(error))


def shard_on_cpu() -> None:
    """Make accelerate shard without a GPU: torch's FSDP2 works by gloo, but accelerate asks for a GPU first."""
    from accelerate.state import DistributedType, PartialState

    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


if __name__ == "__main__":
    model, folder, *cases = sys.argv[1:]
    torch.set_num_threads(1)
    spare_libraries()
    if "stream" in cases:
        refused(Path(folder), model)
    for case in cases:
        run(case, model, Path(folder))
    if "fsdp" in cases:
        evaluated_too_early(Path(folder), model)
    torch.distributed.barrier()  # neither leaves while the other still talks to it
