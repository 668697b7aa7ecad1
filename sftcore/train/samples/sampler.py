"""Asks the model at the moments of a run, shows what it answers, and keeps it in `samples.jsonl`."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import send_to_device
from transformers import TrainerCallback

from sftcore.chat.served.generation import Sampling
from sftcore.core.errors import DataError, SFTCoreError, said_by
from sftcore.core.visible import visible
from sftcore.report.run import SAMPLES, read_lines
from sftcore.train.samples.generated import generate, inputs_of, refuse_split, undisturbed
from sftcore.train.samples.questions import Question
from sftcore.util.disk import replace_text, writing
from sftcore.util.shown import counted
from sftcore.util.warned import warn

_LINES, _CHARACTERS, _WIDTH = 12, 600, 90
"""How much of a prompt, and of an answer, the log shows, and how wide."""


class Sampler(TrainerCallback):  # type: ignore[misc]
    """Asks a run's questions at each evaluation, where there is none at each save, and at the end; on the first rank.

    In a folder that holds another run nothing is written before the first step, as the run's log is not. What the rows
    of a set hold is not written where the run goes to the hub.
    """

    def __init__(self, trainer: Any, questions: Sequence[Question]) -> None:
        self._trainer, self.questions = trainer, questions
        self._inputs: list[dict[str, Any]] = []
        self._entries: list[Mapping[str, Any]] = []
        self._last: int | None = None
        self._written: int | None = None
        self._failed = False

    def prepare(self) -> None:
        """Make ready what is asked, and refuse what could not be answered.

        Raises:
            SFTCoreError: with what is wrong with it.
        """
        refuse_split(self._trainer, self.questions)
        collate = self._trainer.data_collator
        for number, question in enumerate(self.questions):
            try:
                self._inputs.append(inputs_of(question, collate))
            except Exception as error:  # a collator of somebody's own may raise anything
                if isinstance(error, SFTCoreError):
                    raise
                raise DataError(
                    f"the collator cannot take prompt {number}: {said_by(error)}.",
                    where="sample_prompts",
                    fix="Ask without images.",
                ) from error

    # --- When -------------------------------------------------------------------------------------------------------
    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Go on behind the samples that the steps of a resumed run have; of a new run there are none."""
        known = read_lines(Path(args.output_dir) / SAMPLES) if state.global_step else ()
        self._entries = [one for one in known if one["step"] <= state.global_step]
        self._last = max((int(one["step"]) for one in self._entries), default=None)
        self._written, self._failed = None, False
        if state.is_world_process_zero:
            self._write()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The files of a run that takes the place of another begin with its first step."""
        if self._written is None and state.is_world_process_zero:
            self._write()

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask behind an evaluation within training; of several sets, behind the first."""
        if self._trainer.is_in_train:
            self._ask(state)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask behind a save, where the run makes no evaluations."""
        if str(getattr(args.eval_strategy, "value", args.eval_strategy)) == "no":
            self._ask(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask the trained model, unless it is one that was asked before, or the run was stopped."""
        if not self._trainer.guard.stopped_by and not args.load_best_model_at_end:
            self._ask(state)

    # --- What -------------------------------------------------------------------------------------------------------
    def _ask(self, state: Any) -> None:
        trainer = self._trainer
        if not self._inputs or self._failed or self._last == state.global_step or trainer.signals.received:
            return
        if not state.is_world_process_zero:
            return
        self._last = state.global_step
        try:
            found = self._answers(state.global_step)
        except Exception as error:  # whatever happens here, the training is worth more
            self._failed = True
            warn(f"step {state.global_step}: no more samples are made: {said_by(error)}.")
            return
        for number, entry in enumerate(found, 1):
            print(visible(_block(entry, number, len(self._inputs))), file=sys.stderr)
        hidden = trainer.args.push_to_hub and isinstance(trainer.args.sample_prompts, int)
        self._entries += [] if hidden else found
        self._write()

    def _answers(self, step: int) -> list[dict[str, Any]]:
        """An entry for each question; none where a signal came."""
        trainer, args, model, found = self._trainer, self._trainer.args, self._trainer.model, []
        sampling = Sampling(args.sample_max_new_tokens, args.sample_temperature, seed=args.seed)
        with trainer.noise.paused(), trainer.kernels.running(), undisturbed(model), trainer.accelerator.autocast():
            for question, inputs in zip(self.questions, self._inputs, strict=True):
                moved = trainer.features(send_to_device(inputs, getattr(model, "device", args.device)))
                answer = generate(model, trainer.data.tokenizer, moved, sampling, lambda: trainer.signals.received)
                if answer is None:
                    return []
                of = {"row": question.name} if question.name else {}
                told = {"prompt": question.asked, "answer": answer.text, "tokens": answer.num_tokens}
                found.append({"step": step, **of, **told, "ended": answer.ended})
        return found

    def _write(self) -> None:
        """Bring the file to what is known, once the run's log was begun."""
        trainer = self._trainer
        if not trainer.recorder.begun:
            return
        path, first = Path(trainer.args.output_dir) / SAMPLES, self._written is None
        text = "".join(f"{json.dumps(one, ensure_ascii=False)}\n" for one in self._entries[self._written or 0 :])
        with writing("the samples", path):
            if first and not text:
                path.unlink(missing_ok=True)
            elif first:
                replace_text(path, text)
            elif text:
                with path.open("a", encoding="utf-8") as file:
                    file.write(text)
        self._written = len(self._entries)


def _block(entry: Mapping[str, Any], number: int, count: int) -> str:
    """One sample as the log shows it.

    >>> print(_block({"step": 4, "prompt": "Who?", "answer": "Pip,\\nI am.", "tokens": 5, "ended": True}, 1, 2))
    sample 1 of 2, step 4: 5 tokens, ended
      asked     Who?
      answered  Pip,
                I am.
    """
    how = "ended" if entry["ended"] else "cut off"
    head = f"sample {number} of {count}, step {entry['step']:,}: {counted(entry['tokens'], 'token')}, {how}"
    parts = [("asked", entry["prompt"]), ("answered", entry["answer"])]
    return "\n".join([head, *(f"  {name:<8}  {_cut(text)}" for name, text in parts)])


def _cut(text: str) -> str:
    """The beginning of a text, its further lines under its first, and long ones broken."""
    lines = text.strip()[:_CHARACTERS].splitlines() or [""]
    lines = [part for line in lines for part in textwrap.wrap(line, _WIDTH, replace_whitespace=False) or [""]]
    more = len(text.strip()) > _CHARACTERS or len(lines) > _LINES
    shown = [line.rstrip() for line in lines[:_LINES]]
    return f"\n{' ' * 12}".join([*shown[:-1], f"{shown[-1]}{' …' if more else ''}"])
