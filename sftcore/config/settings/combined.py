"""Fields of SFTConfig that do not go together, or that need a package: what transformers would find, but later."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from sftcore.config.settings.declared import fields_of, preparation_arguments, source
from sftcore.config.settings.in_backward import in_backward_problems
from sftcore.config.settings.rhythm import per_epoch, rhythm_problems
from sftcore.config.settings.schedules import FOLLOW_EVALUATIONS, schedule_problems
from sftcore.config.settings.templates import template_problems
from sftcore.config.settings.tracker import tracker_problems
from sftcore.core.errors import nearest
from sftcore.core.types import Problem

PACKAGES_OF_TRACKERS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "azure_ml": (("azureml.core",), "azureml-sdk"), "comet_ml": (("comet_ml",), "comet-ml"),
    "mlflow": (("mlflow",), ""),
    "neptune": (("neptune",), ""), "tensorboard": (("tensorboard", "tensorboardX"), ""), "trackio": (("trackio",), ""),
    "wandb": (("wandb",), ""), "codecarbon": (("codecarbon",), ""), "clearml": (("clearml",), ""),
    "dagshub": (("dagshub",), ""), "flyte": (("flytekit",), ""), "dvclive": (("dvclive",), ""),
    "swanlab": (("swanlab",), ""), "kubeflow": ((), ""),
}  # fmt: skip
"""The modules of which each tracker needs one, and what to install where that has another name.

Kubeflow needs none: its controller sets what transformers looks for."""

PACKAGES_OF_OPTIMIZERS: Mapping[str, tuple[str, str]] = {
    "bnb": ("bitsandbytes", ""), "_8bit": ("bitsandbytes", ""), "paged": ("bitsandbytes", ""),
    "lion": ("bitsandbytes", ""), "ademamix": ("bitsandbytes", ""), "adamw_torch_4bit": ("torchao", ""),
    "adamw_torch_8bit": ("torchao", ""), "galore": ("galore_torch", "galore-torch"),
    "apollo": ("apollo_torch", "apollo-torch"), "lomo": ("lomo_optim", "lomo-optim"), "grokadamw": ("grokadamw", ""),
    "schedule_free": ("schedulefree", ""), "stable_adamw": ("optimi", "torch-optimi"),
    "anyprecision": ("torchdistx", ""), "xla": ("torch_xla", ""), "npu": ("torch_npu", ""),
}  # fmt: skip
"""What is part of an optimizer's name, the module that it needs, and what to install where that has another name."""

METRICS = (
    "loss", "entropy", "mean_token_accuracy", "num_tokens", "num_supervised_tokens", "aux_loss", "runtime",
    "samples_per_second", "steps_per_second", "perplexity",
)  # fmt: skip
"""What an evaluation without `compute_metrics` measures."""

_STRATEGIES = ("logging", "eval", "save")
_DEFAULTS: Mapping[str, Any] = {
    "logging_strategy": "steps", "save_strategy": "steps", "eval_strategy": "no", "logging_steps": 10,
    "save_steps": 500, "gradient_accumulation_steps": 1, "optim": "adamw_torch", "lr_scheduler_type": "linear",
    "learning_rate": 2e-5,
}  # fmt: skip
_OF_WORKERS = ("dataloader_prefetch_factor", "dataloader_persistent_workers", "dataloader_multiprocessing_context")


def combined_problems(settings: Mapping[str, Any]) -> Iterator[Problem]:
    """Problems of fields with each other; each field's value has been found right."""
    yield from rhythm_problems(settings)
    settings = {**settings, **per_epoch(settings)}
    yield from tracker_problems(settings)
    yield from template_problems(settings)
    yield from _markers(settings)
    yield from _tokens(settings)
    yield from _precisions(settings)
    yield from _intervals(settings)
    yield from _best_model(settings)
    yield from _schedule(settings)
    yield from in_backward_problems(settings)
    yield from _optimizer(settings)
    yield from _batch_size(settings)
    yield from _accelerator(settings.get("accelerator_config"))
    yield from _preparation(settings.get("prepare_in_int8_kwargs"))
    yield from _prompts(settings.get("sample_prompts"))
    if "underflow_overflow" in str(settings.get("debug") or ""):
        yield Problem(
            'debug "underflow_overflow" reads the output of every layer, and the head has none in a training.',
            fix="Drop it: on_nonfinite names the step and the rows where loss or gradients are not finite.",
        )
    if not settings.get("dataloader_num_workers"):
        for name in _OF_WORKERS:
            if settings.get(name):
                yield Problem(
                    f"{name} is of workers, and dataloader_num_workers is 0.",
                    fix=f"Set dataloader_num_workers to at least 1, or drop {name}.",
                )


def _batch_size(settings: Mapping[str, Any]) -> Iterator[Problem]:
    if settings.get("auto_batch_size") and settings.get("auto_find_batch_size"):
        yield Problem(
            "auto_batch_size and auto_find_batch_size both choose the rows of a micro-batch.",
            fix="Drop auto_find_batch_size, which changes how many rows a step has.",
        )


def _tokens(settings: Mapping[str, Any]) -> Iterator[Problem]:
    for token in settings.get("new_tokens") or ():
        if not token.strip():
            yield Problem(f"new_tokens has {token!r}, which is no token.", fix="Leave it out.")


def _markers(settings: Mapping[str, Any]) -> Iterator[Problem]:
    response, instruction = settings.get("response_marker"), settings.get("instruction_marker")
    for name, text in (("response_marker", response), ("instruction_marker", instruction)):
        if text is not None and not text.strip():
            yield Problem(f"{name} holds no words, so that it stands everywhere.", fix=f"Drop {name}.")
    if instruction is not None and response is None:
        yield Problem(
            "instruction_marker says where answers end, and response_marker, which says where they begin, is missing.",
            fix="Set response_marker, or drop instruction_marker.",
        )
    elif response is not None and response == instruction:
        yield Problem("response_marker and instruction_marker are the same.", fix="Give what stands before answers.")


def package_problems(settings: Mapping[str, Any]) -> Iterator[Problem]:
    """Packages that a training with these settings needs, and that are not installed."""
    name = _of(settings, "optim")
    parts = sorted(PACKAGES_OF_OPTIMIZERS, key=len, reverse=True)
    module, package = next((PACKAGES_OF_OPTIMIZERS[part] for part in parts if part in name), ("", ""))
    if module and not installed(module):
        yield Problem(f'optim "{name}" needs {package or module}.', fix=f"Install: pip install {package or module}")
    given = settings.get("report_to")
    for tracker in [given] if isinstance(given, str) else given or []:
        if not installed_trackers([tracker]):
            modules, package = PACKAGES_OF_TRACKERS[tracker]
            install = package or modules[0]
            yield Problem(f'report_to "{tracker}" needs {install}.', fix=f"Install: pip install {install}")


def installed_trackers(names: Iterable[str]) -> list[str]:
    """Those of these trackers that need no package, or have theirs."""
    needed = {name: PACKAGES_OF_TRACKERS.get(name, ((), ""))[0] for name in names}
    return [name for name, modules in needed.items() if not modules or any(map(installed, modules))]


def installed(module: str) -> bool:
    """Whether a module can be imported; a folder of that name, such as W&B leaves behind, is none."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # its package is not there, or is broken
        return False
    return spec is not None and spec.origin is not None


def metric_problems(settings: Mapping[str, Any], sets: tuple[str, ...] | None = None) -> Iterator[Problem]:
    """A `metric_for_best_model` that no evaluation measures.

    Args:
        settings: fields of SFTConfig.
        sets: names of the evaluation sets, where they are several.
    """
    name = settings.get("metric_for_best_model")
    if name is None and (
        settings.get("load_best_model_at_end") or settings.get("lr_scheduler_type") in FOLLOW_EVALUATIONS
    ):
        name = "loss"  # what transformers takes
    if name is None or _of(settings, "eval_strategy") == "no" or settings.get("callbacks"):
        return  # nothing is measured; or a callback that settings name may add to what is
    measured = [f"{one}_{metric}" for one in sets for metric in METRICS] if sets is not None else list(METRICS)
    bare = str(name).removeprefix("eval_")
    if bare not in measured:
        of = f" of {', '.join(sets)}" if sets is not None else ""
        yield Problem(
            f'no evaluation{of} measures "{name}".{nearest(bare, measured)}',
            "metric_for_best_model",
            f"Use one of: {', '.join(f'{one}_loss' for one in sets) if sets is not None else ', '.join(METRICS[:3])}; "
            "others come from compute_metrics.",
        )


def sample_problems(settings: Mapping[str, Any], *, evaluates: bool) -> Iterator[Problem]:
    """Samples of evaluation rows where there are none."""
    if isinstance(settings.get("sample_prompts"), int) and not evaluates:
        yield Problem(
            "sample_prompts is a number of evaluation rows, and there are none.",
            fix="Give an evaluation set, or the prompts themselves: sample_prompts: [text, …].",
        )


def _prompts(prompts: Any) -> Iterator[Problem]:
    for number, prompt in enumerate(prompts if isinstance(prompts, list) else ()):
        where = f"sample_prompts[{number}]"
        if isinstance(prompt, Mapping) and "role" in prompt:
            yield Problem(
                "the prompt is a message.", where, "A conversation is a list of them, one such list a prompt."
            )
        elif not (prompt.strip() if isinstance(prompt, str) else prompt):
            yield Problem("the prompt is empty.", where, "Write what is asked, or drop it.")


def _of(settings: Mapping[str, Any], name: str) -> Any:
    """A setting, or its default where that is not None."""
    value = settings.get(name)
    value = _DEFAULTS[name] if value is None else value
    return getattr(value, "value", value)  # of transformers' enumerations


def _precisions(settings: Mapping[str, Any]) -> Iterator[Problem]:
    for half, other in (("fp16", "bf16"), ("fp16_full_eval", "bf16_full_eval")):
        if settings.get(half) and settings.get(other):
            yield Problem(f"{half} and {other} contradict each other.", fix="Keep one of the two.")


def _intervals(settings: Mapping[str, Any]) -> Iterator[Problem]:
    for kind in _STRATEGIES:
        steps = settings.get(f"{kind}_steps")
        if steps is None or _of(settings, f"{kind}_strategy") != "steps":
            continue
        if steps == 0 and kind != "eval":  # 0 evaluates as often as is logged
            yield Problem(
                f'{kind}_steps is 0, and {kind}_strategy is "steps".',
                fix=f'Set it to a number of steps or a share of all below 1, or {kind}_strategy to "no".',
            )
        elif steps > 1 and steps != int(steps):
            yield Problem(f"{kind}_steps is {steps}.", fix="Set it to a whole number, or to a share of all below 1.")


def _best_model(settings: Mapping[str, Any]) -> Iterator[Problem]:
    evaluated, saved = _of(settings, "eval_strategy"), _of(settings, "save_strategy")
    metric = settings.get("metric_for_best_model")
    if saved == "best" and metric is None and not settings.get("load_best_model_at_end"):
        yield Problem(
            'save_strategy "best" needs to know what is best.', fix="Set metric_for_best_model, such as loss."
        )
    if evaluated == "no" and (saved == "best" or settings.get("load_best_model_at_end")):
        cause = "load_best_model_at_end" if settings.get("load_best_model_at_end") else 'save_strategy "best"'
        yield Problem(
            f'{cause} compares evaluations, and eval_strategy is "no".', fix='Set eval_strategy to "steps" or "epoch".'
        )
    elif settings.get("load_best_model_at_end") and saved != "best":
        yield from _of_one_rhythm(settings, evaluated, saved)


def _of_one_rhythm(settings: Mapping[str, Any], evaluated: str, saved: str) -> Iterator[Problem]:
    """Problems with `load_best_model_at_end`, which needs a checkpoint of each best evaluation."""
    if evaluated != saved:
        yield Problem(
            f'load_best_model_at_end needs a checkpoint at every evaluation; eval_strategy is "{evaluated}", '
            f'save_strategy "{saved}".',
            fix='Set both to the same, or save_strategy to "best".',
        )
    elif evaluated == "steps":
        every, save = settings.get("eval_steps") or _of(settings, "logging_steps"), _of(settings, "save_steps")
        mixed = (every < 1) != (save < 1)
        if every and (mixed or round(save * 1_000_000) % round(every * 1_000_000)):
            yield Problem(
                f"load_best_model_at_end needs save_steps to be a multiple of eval_steps, and they are {save:g} "
                f"and {every:g}.",
                fix=f"Set save_steps to {every:g}, or to a multiple of it.",
            )


def _accelerator(given: Any) -> Iterator[Problem]:
    if not isinstance(given, Mapping):
        return
    known = fields_of(source("transformers.trainer_pt_utils"), "AcceleratorConfig")
    for key in given:
        if key not in known:
            yield Problem(
                f'there is no option "{key}".{nearest(str(key), known)}',
                "accelerator_config",
                f"It takes: {', '.join(known)}.",
            )


def _preparation(given: Any) -> Iterator[Problem]:
    for key in given if isinstance(given, Mapping) else ():
        if key not in (known := preparation_arguments()):
            yield Problem(
                f'there is no argument "{key}".{nearest(str(key), known)}',
                "prepare_in_int8_kwargs",
                f"It takes: {', '.join(known)}.",
            )


def _schedule(settings: Mapping[str, Any]) -> Iterator[Problem]:
    name, given = _of(settings, "lr_scheduler_type"), settings.get("lr_scheduler_kwargs")
    if name in FOLLOW_EVALUATIONS and _of(settings, "eval_strategy") == "no":
        yield Problem(
            f'lr_scheduler_type "{name}" follows evaluations, and eval_strategy is "no".',
            fix='Set eval_strategy to "steps" or "epoch".',
        )
    rate = settings.get("learning_rate")
    yield from schedule_problems(name, given, _DEFAULTS["learning_rate"] if rate is None else rate)


def _optimizer(settings: Mapping[str, Any]) -> Iterator[Problem]:
    name, arguments = _of(settings, "optim"), settings.get("optim_args")
    if arguments and any(part.count("=") != 1 for part in str(arguments).replace(" ", "").split(",")):
        yield Problem(f'optim_args is "{arguments}".', fix="Write key=value, with commas between several.")
    if name.startswith(("galore", "apollo")) and not settings.get("optim_target_modules"):
        yield Problem(f'optim "{name}" needs optim_target_modules.', fix="Name the layers, such as all-linear.")
    if name.endswith("_layerwise") and _of(settings, "gradient_accumulation_steps") > 1:
        yield Problem(
            f'optim "{name}" steps in each backward pass, so that no gradients are accumulated.',
            fix="Set gradient_accumulation_steps to 1.",
        )
