"""Measure one training run of one library; train.py and memory.py start this in a separate process.

python benchmarks/sides.py SIDE SETTINGS.json

SIDE is sftcore, sftcore-default (which names neither attention nor layout), trl or unsloth. The settings are those of
`Settings`. The result is printed as one line of JSON. Every library gets the same model folder, rows, order, seed and
hyperparameters: LoRA on all linear layers without dropout, AdamW with a constant learning rate, and no gradient
checkpointing unless it is asked for.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

SIDES = ("sftcore-default", "sftcore", "trl", "unsloth")
LIBRARY_OF = {side: side.partition("-")[0] for side in SIDES}


@dataclass
class Settings:
    """The settings of a run; `rows` is a JSON lines file with prompts and completions, or with packed token rows."""

    model: str
    rows: str
    dtype: str = "float32"
    max_length: int = 1024
    batch: int = 4
    steps: int = 8
    warmup: int = 1
    packed: bool = False
    rank: int = 16
    checkpointing: bool = False
    learning_rate: float = 2e-4
    plugins: dict[str, Any] = field(default_factory=lambda: {"attention": "varlen"})
    fields: dict[str, Any] = field(default_factory=dict)
    profile: str = ""


@dataclass
class Clock:
    """The times of steps and the tokens of every batch, counted independently of the trainer."""

    started: float
    ends: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    supervised: list[int] = field(default_factory=list)
    stolen: list[float] = field(default_factory=list)
    training: bool = False

    def counting(self, collator: Any) -> Any:
        def collate(rows: list[dict[str, Any]]) -> Any:
            batch = collator(rows)
            if not self.training:  # sftcore looks at two rows to see how a collator lays them out
                return batch
            mask = batch.get("attention_mask")
            documents = sum(len(row["input_ids"]) for row in rows)
            self.tokens.append(int(mask.sum()) if mask is not None and mask.ndim == 2 else documents)
            self.supervised.append(int((batch["labels"][:, 1:] != -100).sum()))
            return batch

        return collate

    def callback(self) -> Any:
        from transformers import TrainerCallback

        clock, ends = self, self.ends

        class Ticks(TrainerCallback):
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                clock.training = True

            def on_step_end(self, *_: Any, **__: Any) -> None:
                synchronise()
                ends.append(time.perf_counter())
                clock.stolen.append(stolen_seconds())

        return Ticks()


def measure(side: str, settings: Settings) -> dict[str, Any]:
    """Train, and return tokens per second, seconds to the first step, peak memory, the losses, and how much time of the
    machine's cores others took meanwhile."""
    clock = Clock(time.perf_counter())
    with tempfile.TemporaryDirectory() as folder:
        trainer = TRAINERS[side](settings, folder)
        count(trainer, clock)
        trainer.add_callback(clock.callback())
        before = resident_mib()
        if settings.profile:
            profiled(trainer, settings.profile)
        else:
            trainer.train()
    last = settings.warmup - 1
    seconds = clock.ends[-1] - clock.ends[last]
    counted = slice(settings.warmup, settings.steps)
    return {
        "side": side,
        "tokens_per_second": sum(clock.tokens[counted]) / seconds,
        "supervised_per_second": sum(clock.supervised[counted]) / seconds,
        "tokens": clock.tokens[: settings.steps],
        "supervised": clock.supervised[: settings.steps],
        "seconds_to_first_step": clock.ends[0] - clock.started,
        "seconds_per_step": [later - sooner for sooner, later in zip(clock.ends, clock.ends[1:], strict=False)],
        "stolen_share": (clock.stolen[-1] - clock.stolen[last]) / (seconds * (os.cpu_count() or 1)),
        "peak_mib": peak_mib(),
        "before_training_mib": before,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "trained_parameters": sum(one.numel() for one in trainer.model.parameters() if one.requires_grad),
    }


def count(trainer: Any, clock: Clock) -> None:
    """Count the batches of every side, whichever collator it takes."""
    layouts = getattr(trainer, "layouts", None)
    if layouts is None:
        trainer.data_collator = clock.counting(trainer.data_collator)
        return
    for name in ("side_by_side", "end_to_end"):
        if getattr(layouts, name) is not None:
            setattr(layouts, name, clock.counting(getattr(layouts, name)))


# --- The sides ------------------------------------------------------------------------------------------------------
def sftcore_trainer(settings: Settings, folder: str) -> Any:
    from peft import LoraConfig

    from sftcore import SFTConfig, SFTTrainer

    plugins = dict(settings.plugins)
    if settings.packed:
        plugins["collator"] = "flattened"
    ours: dict[str, Any] = {"plugins": plugins}
    if not settings.packed and "collator" not in plugins:
        ours["padding_free"] = True
    if settings.packed:
        ours["dataset_kwargs"] = {"skip_prepare_dataset": True}
        ours["packing"] = True
    args = SFTConfig(folder, **shared(settings), **ours, model_init_kwargs={"dtype": settings.dtype}, **settings.fields)
    return SFTTrainer(settings.model, args, train_dataset=rows_of(settings), peft_config=LoraConfig(**lora(settings)))


def default_trainer(settings: Settings, folder: str) -> Any:
    """What a user gets who sets nothing but what the other libraries are told too."""
    from peft import LoraConfig

    from sftcore import SFTConfig, SFTTrainer

    packed = {"packing": True, "dataset_kwargs": {"skip_prepare_dataset": True}} if settings.packed else {}
    args = SFTConfig(folder, **shared(settings), **packed, model_init_kwargs={"dtype": settings.dtype})
    return SFTTrainer(settings.model, args, train_dataset=rows_of(settings), peft_config=LoraConfig(**lora(settings)))


def trl_trainer(settings: Settings, folder: str) -> Any:
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    theirs = {"packing": True, "dataset_kwargs": {"skip_prepare_dataset": True}} if settings.packed else {}
    args = SFTConfig(folder, **shared(settings), **theirs, model_init_kwargs={"dtype": settings.dtype})
    return SFTTrainer(settings.model, args, train_dataset=rows_of(settings), peft_config=LoraConfig(**lora(settings)))


def unsloth_trainer(settings: Settings, folder: str) -> Any:
    import unsloth  # isort: skip  (it patches trl, and must be imported before it)
    import torch
    from trl import SFTConfig, SFTTrainer

    FastLanguageModel = unsloth.FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        settings.model, max_seq_length=settings.max_length, dtype=getattr(torch, settings.dtype), load_in_4bit=False
    )
    options = lora(settings)
    model = FastLanguageModel.get_peft_model(
        model, r=options["r"], lora_alpha=options["lora_alpha"], lora_dropout=0.0, random_state=3407,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        use_gradient_checkpointing=settings.checkpointing,
    )  # fmt: skip
    theirs = {"packing": True, "dataset_kwargs": {"skip_prepare_dataset": True}} if settings.packed else {}
    args = SFTConfig(folder, **shared(settings), **theirs)
    return SFTTrainer(model=model, processing_class=tokenizer, args=args, train_dataset=rows_of(settings))


TRAINERS = {
    "sftcore-default": default_trainer,
    "sftcore": sftcore_trainer,
    "trl": trl_trainer,
    "unsloth": unsloth_trainer,
}


def shared(settings: Settings) -> dict[str, Any]:
    """The hyperparameters, by names that all libraries know."""
    return {
        "max_steps": settings.steps, "per_device_train_batch_size": settings.batch, "max_length": settings.max_length,
        "learning_rate": settings.learning_rate, "lr_scheduler_type": "constant", "warmup_steps": 0,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "seed": 3, "disable_tqdm": True,
        "train_sampling_strategy": "sequential", "gradient_checkpointing": settings.checkpointing, "bf16": False,
        "use_cpu": not has_gpu(), "optim": "adamw_torch_fused", "dataloader_num_workers": 0,
    }  # fmt: skip


def lora(settings: Settings) -> dict[str, Any]:
    return {
        "r": settings.rank, "lora_alpha": 2 * settings.rank, "lora_dropout": 0.0, "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
    }  # fmt: skip


def rows_of(settings: Settings) -> Any:
    from datasets import Dataset

    with Path(settings.rows).open(encoding="utf-8") as file:
        return Dataset.from_list([json.loads(line) for line in file])


# --- The machine ----------------------------------------------------------------------------------------------------
def has_gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def synchronise() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def stolen_seconds() -> float:
    """Seconds of this machine's cores, since it started, in which a hypervisor let other machines run; 0 if unknown."""
    import psutil

    return getattr(psutil.cpu_times(), "steal", 0.0)


def peak_mib() -> float:
    """Peak memory, allocated on the GPU or resident in this process on a CPU."""
    if has_gpu():
        import torch

        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident_mib() -> float:
    import psutil

    return psutil.Process().memory_info().rss / 2**20


def profiled(trainer: Any, path: str) -> None:
    """Train under torch's profiler and write its table of operators."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU]) as found:
        trainer.train()
    Path(path).write_text(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=40), encoding="utf-8")


def start(side: str, settings: Settings, *, python: str = sys.executable, threads: int | None = None) -> dict[str, Any]:
    """Measure in a separate process.

    Raises:
        RuntimeError: the process failed; the message ends with the end of its output.
    """
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "settings.json"
        given.write_text(json.dumps(asdict(settings)), encoding="utf-8")
        environment["SFTCORE_CACHE"] = folder  # so that no data prepared by an earlier run are found
        command = [python, "-W", "ignore", str(Path(__file__).resolve()), side, str(given)]
        done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", check=False, cwd=folder)
    if done.returncode:
        raise RuntimeError(f"{side} failed with exit code {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


if __name__ == "__main__":
    print("\n" + json.dumps(measure(sys.argv[1], Settings(**json.loads(Path(sys.argv[2]).read_text())))))
