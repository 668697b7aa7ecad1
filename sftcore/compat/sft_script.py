"""The program behind `sftcore sft`: TRL's script for supervised fine-tuning, with its arguments.

`examples/scripts/sft.py` is the same program to read and to change.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from attrs import frozen

from sftcore.compat.loaded import DatasetConfig
from sftcore.compat.script_arguments import (
    DatasetMixtureConfig,
    ScriptArguments,
    TrlParser,
    get_dataset,
    get_sources,
)
from sftcore.config.model_config import ModelConfig, get_peft_config, get_quantization_config
from sftcore.config.settings.values import wrong_choice
from sftcore.config.sft_config import SFTConfig
from sftcore.core.errors import DataError, RecipeError, SFTCoreError, nearest, raise_all
from sftcore.core.visible import visible
from sftcore.train.checkpoint.other_run import OutputFolder, held_model
from sftcore.util.launched import LAUNCHER
from sftcore.util.warned import warn
from sftcore.util.words import hidden, without_secrets_in

if TYPE_CHECKING:
    from sftcore.train.trainer import SFTTrainer

T = TypeVar("T")
_HELP = "All options: sftcore sft --help"
_LAUNCHED = "SFTCORE_SFT_LAUNCHED"
"""Set for the processes of a launch, which are given the same words again."""

_FSDP = ["--use_fsdp", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP", "--fsdp_state_dict_type", "FULL_STATE_DICT"]
_DEEPSPEED = ["--use_deepspeed", "--zero3_save_16bit_model", "true", "--zero_stage"]
ACCELERATE_CONFIGS = {
    "single_gpu": ["--num_processes", "1"],
    "multi_gpu": ["--multi_gpu"],
    "fsdp1": [*_FSDP, "--fsdp_version", "1", "--fsdp_reshard_after_forward", "FULL_SHARD"],
    "fsdp2": [*_FSDP, "--fsdp_version", "2", "--fsdp_reshard_after_forward", "true"],
    "zero1": [*_DEEPSPEED, "1", "--zero3_init_flag", "false"],
    "zero2": [*_DEEPSPEED, "2", "--zero3_init_flag", "false"],
    "zero3": [*_DEEPSPEED, "3", "--zero3_init_flag", "true"],
}
"""TRL's names for ways of launching, as options of accelerate's launcher."""
_KINDS = {"--cpu", "--multi_gpu", "--tpu", "--use_deepspeed", "--use_fsdp", "--use_megatron_lm"}


_SHORT = {"model": "model_name_or_path", "data": "dataset_name", "dataset": "dataset_name"}
"""What is meant by names that begin several options, of which argparse would list them all."""


@frozen
class Arguments:
    """What the command line and its YAML file say; `launch` are the options for accelerate's launcher."""

    script: ScriptArguments
    training: SFTConfig
    model: ModelConfig
    mixture: DatasetMixtureConfig
    launch: tuple[str, ...] = ()


class _OptionError(RecipeError):
    """A mistake with one of the options, by one of these names."""

    def __init__(self, what: str, names: Sequence[str]) -> None:
        self.names = tuple(names)
        super().__init__(what, where="command line", fix=_HELP)


class _Parser(TrlParser):
    """Finds all mistakes of a command line, where argparse ends with the first; `errors` are those found so far."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.errors: list[SFTCoreError] = []
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        """One line, where argparse would print all of some three hundred options before it."""
        names = re.findall(r"--[\w-]+", message.removeprefix("argument ").partition(": ")[0])
        if message.startswith("ambiguous option: "):
            names = re.findall(r"--[\w-]+", message)[:1]
            if meant := _SHORT.get(names[0].lstrip("-")):
                names, message = [f"--{meant}", *names], f'there is no option {names[0]}. Did you mean "--{meant}"?'
        elif wrong := re.search(r"invalid choice: '(.*)' \(choose", message):
            action = self._option_string_actions[names[0]]  # whose choices argparse lists, all of up to forty
            told = wrong_choice(action.dest, wrong[1], tuple(map(str, action.choices or ())), "")
            message = f"{told.what} {told.fix}" if told else message
        raise _OptionError(message if message.endswith((".", "?")) else f"{message}.", names)

    def parse_args_into_dataclasses(self, args: Any = None, *_: Any, **__: Any) -> tuple[Any, ...]:
        """An instance of each dataclass, None where its values are wrong, and the words that are no options of ours."""
        words = list(args)
        while True:
            try:
                namespace, rest = self.parse_known_args(words)
                break
            except _OptionError as error:
                self.errors.append(error)
                left = _without_option(words, error.names)
                if left == words:
                    raise_all(self.errors)
                words = left
        values = vars(namespace)
        made = []
        for kind in self.dataclass_types:
            fields = {one.name for one in dataclasses.fields(kind) if one.init}
            make = functools.partial(kind, **{key: values[key] for key in fields & values.keys()})
            made.append(self._tried(make, None))
        return (*made, rest)

    def _current(self, values: dict[str, Any], *, where: str) -> dict[str, Any]:
        now = super()._current
        found: dict[str, Any] = {}
        nothing: dict[str, Any] = {}
        for name, value in values.items():
            found |= self._tried(functools.partial(now, {name: value}, where=where), nothing)
        return found

    def _tried(self, make: Callable[[], T], instead: T) -> T:
        try:
            return make()
        except SFTCoreError as error:
            self.errors.append(error)
            return instead


def _without_option(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """The words without an option of these names, or of what begins one of them, and without its values."""
    left: list[str] = []
    dropped = False
    for word in words:
        if word.startswith("--"):
            given = word.partition("=")[0]
            dropped = len(given) > 2 and any(name.startswith(given) for name in names)
        if not dropped:
            left.append(word)
    return left


def parse(words: Sequence[str]) -> Arguments:
    """Read the arguments of `trl sft`, a YAML file among them, and those of `accelerate launch`.

    Raises:
        RecipeError: an option is not known, lacks its value or has a wrong one, or no model is named.
        DataError: no data set is named.
        SettingsError: several of these.
    """
    parser = _Parser((ScriptArguments, SFTConfig, ModelConfig, DatasetMixtureConfig), prog="sftcore sft")
    script, training, model, mixture, from_file, rest = parser.parse_args_and_config(
        words, return_remaining_strings=True, fail_with_unknown_args=False, separate_remaining_strings=True
    )
    launch, unknown = _launch_options([*_as_options(from_file), *rest], [one.dest for one in parser._actions])
    errors = [*parser.errors, *unknown]
    mistaken = {name for one in errors if isinstance(one, _OptionError) for name in one.names}
    if model is not None and model.model_name_or_path is None and "--model_name_or_path" not in mistaken:
        errors.append(RecipeError("no model is named.", where="command line", fix="Add: --model_name_or_path MODEL"))
    is_named = None in (mixture, script) or mixture.datasets or script.dataset_name
    if not is_named and "--dataset_name" not in mistaken:
        errors.append(DataError("no data set is named.", where="command line", fix="Add: --dataset_name train.jsonl"))
    raise_all(errors)
    return Arguments(script, training, model, mixture, launch)


def run(words: Sequence[str], watch: Callable[[SFTTrainer], object] = lambda _: None) -> Path:
    """Train as the arguments say, in as many processes as they say; the folder of the model.

    Args:
        words: the command line without the program's name.
        watch: called with the trainer before it trains.

    Raises:
        SFTCoreError: the arguments, the data or the model are wrong.
    """
    from sftcore.train.loop_callback import ReplaceOtherRun

    arguments = parse(words)
    launched = _LAUNCHED in os.environ or "RANK" in os.environ
    if not launched and (arguments.launch or _several_gpus(arguments.training)):
        _launch(arguments.launch or ("--multi_gpu",), words)
    args = arguments.training
    folder, resume = Path(args.output_dir), args.resume_from_checkpoint
    output = OutputFolder(folder, resume, args.overwrite_output_dir, arguments.model.model_name_or_path)
    output.refuse()
    trainer = trainer_of(arguments)
    watch(trainer)
    trainer.add_callback(ReplaceOtherRun(output))
    with trainer.checkpoints.owned():
        trainer.train(resume_from_checkpoint=resume)
        if not trainer.nothing_left or not held_model(folder):
            trainer.save_model()
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=arguments.script.dataset_name)
    return folder


def trainer_of(arguments: Arguments) -> SFTTrainer:
    """The trainer, with its data loaded and prepared.

    Raises:
        SFTCoreError: the data or the model are wrong.
    """
    from sftcore.train.trainer import SFTTrainer

    args, model = arguments.training, arguments.model
    given = args.model_init_kwargs if isinstance(args.model_init_kwargs, dict) else {}
    chosen = {
        "revision": model.model_revision,
        "dtype": model.dtype,
        "attn_implementation": model.attn_implementation,
    }
    args.model_init_kwargs = {**{key: value for key, value in chosen.items() if value is not None}, **given}
    train, evaluation = datasets_of(arguments)
    trainer = SFTTrainer(
        model.model_name_or_path,
        args,
        train_dataset=train,
        eval_dataset=evaluation,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    if arguments.script.ignore_bias_buffers:
        ignore_bool_buffers(trainer.model)
    return trainer


def datasets_of(arguments: Arguments) -> tuple[Any, Any]:
    """The rows to train on and, where the run evaluates, those to evaluate on.

    Raises:
        DataError: they cannot be loaded, or there are no evaluation rows.
    """
    script, mixture = arguments.script, arguments.mixture
    evaluates = arguments.training.eval_strategy != "no"
    if mixture.datasets and script.dataset_name:
        warn(f"datasets are given, so dataset_name={script.dataset_name} is left out.")
    if mixture.datasets:
        found = get_sources(mixture)
    else:
        found = dict(get_dataset(_mixture_of(script, script.dataset_train_split, mixture)))
    if not evaluates:
        return found["train"], None
    if "test" in found:
        return found["train"], found["test"]
    advice = "Add --test_split_size 0.1, name the split with --dataset_test_split, or leave out eval_strategy."
    if mixture.datasets:
        raise DataError("the run evaluates, and the data have no evaluation rows.", where="eval_strategy", fix=advice)
    try:
        held = get_dataset(_mixture_of(script, script.dataset_test_split, DatasetMixtureConfig()))
    except DataError as error:
        what = f"the run evaluates, and there are no evaluation rows: {error.what}"
        raise DataError(what, where=f"dataset_test_split {script.dataset_test_split}", fix=advice) from error
    return found["train"], held["train"]


def _mixture_of(script: ScriptArguments, split: str, mixture: DatasetMixtureConfig) -> DatasetMixtureConfig:
    assert script.dataset_name is not None
    one = DatasetConfig(script.dataset_name, name=script.dataset_config, split=split)
    streaming = script.dataset_streaming or mixture.streaming
    return DatasetMixtureConfig([one], streaming=streaming, test_split_size=mixture.test_split_size)


def ignore_bool_buffers(model: Any) -> None:
    """Leave boolean buffers, such as masks of old GPT models, out of what DDP copies between processes."""
    import torch

    names = [name for name, buffer in model.named_buffers() if buffer.dtype == torch.bool]
    model._ddp_params_and_buffers_to_ignore = names


# --- Several processes ----------------------------------------------------------------------------------------------
def _launch_options(words: Sequence[str], ours: Sequence[str]) -> tuple[tuple[str, ...], list[SFTCoreError]]:
    """What is left of the command line, as options of accelerate's launcher, and an error for each that it lacks."""
    if not words:
        return (), []
    from accelerate.commands.launch import launch_command_parser

    launcher = launch_command_parser()
    known = [*ours, "accelerate_config", *(one.dest for one in launcher._actions)]
    found: list[str] = []
    errors: list[SFTCoreError] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        name, _, value = word.partition("=")
        if name == "--accelerate_config":
            try:
                found += _named_config(value or (rest.pop(0) if rest else ""))
            except RecipeError as error:
                errors.append(error)
            continue
        action = launcher._option_string_actions.get(name)
        if action is None or name in ("-h", "--help"):
            what = f"there is no option {name}.{nearest(name.lstrip('-'), known)}"
            errors.append(RecipeError(what, where="command line", fix=_HELP))
            while rest and not rest[0].startswith("--"):  # its values
                rest.pop(0)
            continue
        found.append(word)
        if action.nargs != 0 and not value and rest:
            found.append(rest.pop(0))
    return tuple(found), errors


def _as_options(words: Sequence[str]) -> list[str]:
    """Pairs of a file, in which a flag is `key: true`, as options."""
    found = []
    for name, value in zip(words[::2], words[1::2], strict=True):
        found += {"True": [name], "False": []}.get(value, [name, value])
    return found


def _named_config(name: str) -> list[str]:
    if name in ACCELERATE_CONFIGS:
        return ACCELERATE_CONFIGS[name]
    if not Path(name).is_file():
        raise RecipeError(
            f'"{name}" is neither a file nor one of {", ".join(ACCELERATE_CONFIGS)}.'
            f"{nearest(name, ACCELERATE_CONFIGS)}",
            where="--accelerate_config",
        )
    return ["--config_file", name]


def _several_gpus(args: SFTConfig) -> bool:
    import torch

    return not args.use_cpu and torch.accelerator.is_available() and torch.accelerator.device_count() > 1


def _launch(options: Sequence[str], words: Sequence[str]) -> NoReturn:
    """Become accelerate's launcher of this program with the same words, and say so."""
    launcher = [
        sys.executable,
        "-m",
        "sftcore.train.processes.launcher",
        *launcher_options(options),
        "-m",
        "sftcore",
        "sft",
    ]
    given, secrets = hidden(words)
    shown = shlex.join(["python", *without_secrets_in(launcher[1:]), *given])
    print(f"launch     {visible(shown)}", file=sys.stderr, flush=True)
    environment = {**os.environ, **secrets, _LAUNCHED: "1", LAUNCHER: str(os.getpid())}
    os.execve(launcher[0], [*launcher, *given], environment)


def launcher_options(given: Sequence[str]) -> list[str]:
    """The options with what the launcher would else ask for, or pass over.

    >>> launcher_options(["--num_processes", "2"])[:2], launcher_options(["--config_file", "a.yaml"])
    (['--multi_gpu', '--num_machines'], ['--config_file', 'a.yaml'])
    """
    names = {word.partition("=")[0] for word in given}
    if "--config_file" in names:
        return list(given)
    # --multi_gpu is accelerate's word for several processes, on a CPU too: without it there would be one
    pairs = dict(itertools.pairwise([part for word in given for part in word.split("=", 1)]))
    several = [] if names & _KINDS or pairs.get("--num_processes", "1") == "1" else ["--multi_gpu"]
    defaults = {"--num_machines": "1", "--mixed_precision": "no", "--dynamo_backend": "no"}
    added = [word for name, value in defaults.items() if name not in names for word in (name, value)]
    return [*several, *added, *given]
