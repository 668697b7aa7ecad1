"""transformers' trackers with what they lack: names that each of them takes, and what the run knows of itself."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from transformers.integrations import MLflowCallback, TensorBoardCallback, TrackioCallback, WandbCallback

from sftcore.core.errors import ConflictError, said_by
from sftcore.core.visible import visible
from sftcore.train.trackers.facts import Facts, Names, facts_of, facts_of_streams
from sftcore.util.warned import warn

if TYPE_CHECKING:
    from sftcore.train.view import RunView


def take_over(trainer: Any) -> None:
    """Put these trackers in the place of transformers' own that `report_to` names, right behind the run's recorder.

    So each is told at the end what the recorder has counted by then, and still begins before callbacks of the user's.
    """
    callbacks = trainer.callback_handler.callbacks
    place = callbacks.index(trainer.recorder)
    theirs = [one for one in callbacks[:place] if type(one) in _OURS]  # a user's own come behind
    for one in theirs:
        callbacks.remove(one)
    place = callbacks.index(trainer.recorder) + 1
    callbacks[place:place] = [_OURS[type(one)](trainer) for one in theirs]


def one_line(name: str) -> str:
    """A name without anything that steers a reader's eye, or that cannot be encoded."""
    return " ".join(visible(name).split())


class _Told:
    """What is the same for all of them; stands before transformers' class."""

    title = name = ""
    begins = ""
    """What else lets it begin."""
    _trainer: RunView

    def __init__(self, trainer: RunView) -> None:
        super().__init__()
        self._trainer, self.names = trainer, Names(self.names_of)

    def names_of(self, name: str) -> str:
        """A name as this tracker takes it."""
        return one_line(name)

    def tell(self, facts: Facts) -> None:
        """Keep these facts with the run that the tracker has begun."""
        raise NotImplementedError

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Begin as transformers does, and tell the facts.

        Raises:
            ConflictError: the tracker cannot begin, as W&B without a key, or MLflow without its server.
        """
        try:
            super().on_train_begin(args, state, control, **given)  # type: ignore[misc]
        except Exception as error:  # whatever the tracker, its server or the disk says
            raise ConflictError(
                f"{self.title} cannot begin: {said_by(error)}.",
                where="report_to",
                fix=f"Mend that{self.begins}, or take {self.name} out of report_to.",
            ) from error
        if state.is_world_process_zero:
            self._told(facts_of(self._trainer))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
        """Log under names that the tracker takes."""
        super().on_log(args, state, control, logs=self.names.of(logs), **given)  # type: ignore[misc]

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Tell what became of the rows of streams, and end as transformers does."""
        if state.is_world_process_zero:
            self._told(facts_of_streams(self._trainer))
        super().on_train_end(args, state, control, **given)  # type: ignore[misc]

    def _told(self, facts: Facts) -> None:
        try:
            if facts:
                self.tell(self.names.of(facts))
        except Exception as error:  # whatever a tracker's server says: a run does not end for this
            warn(f"{self.title} did not take the facts of the run: {said_by(error)}.")


class TensorBoard(_Told, TensorBoardCallback):  # type: ignore[misc]
    """Facts are texts, each under its name."""

    title, name = "TensorBoard", "tensorboard"

    def tell(self, facts: Facts) -> None:
        """Write them as texts of step 0."""
        for name, value in facts.items():
            self.tb_writer.add_text(name, visible(str(value)))


class WeightsAndBiases(_Told, WandbCallback):  # type: ignore[misc]
    """Facts are part of the run's config."""

    title, name, begins = "W&B", "wandb", " (wandb login, WANDB_MODE=offline)"

    def tell(self, facts: Facts) -> None:
        """Add them to the config."""
        self._wandb.config.update(facts, allow_val_change=True)


class Trackio(_Told, TrackioCallback):  # type: ignore[misc]
    """Facts are part of the run's config; the figures of the whole run, which transformers drops, are logged too."""

    title, name = "Trackio", "trackio"
    _OF_THE_RUN = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos")

    def setup(self, args: Any, state: Any, model: Any, **given: Any) -> None:
        """Begin a run, or go on with it after its end; its config, facts included, goes with the first figures."""
        super().setup(args, state, model, **given)
        if state.is_world_process_zero:
            self._trackio.config.update(self.names.of(facts_of(self._trainer)))

    def tell(self, facts: Facts) -> None:
        """Log what was not known at the beginning like figures."""
        if new := {name: value for name, value in facts.items() if name not in self._trackio.config}:
            self._trackio.log(new)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
        """Log under names that it takes, all of them."""
        super().on_log(args, state, control, logs=logs, **given)
        of_run = {f"train/{name}": value for name, value in (logs or {}).items() if name in self._OF_THE_RUN}
        if of_run and state.is_world_process_zero:
            self._trackio.log({**of_run, "train/global_step": state.global_step})


def mlflow_name(name: str) -> str:
    """A name that MLflow takes: letters, digits and `_-. :/`, no path that leads elsewhere, at most 200 characters.

    >>> [mlflow_name(one) for one in ("loss/a/b:c", "loss/../x", "loss//tmp/", "loss(nll)", "eval_数据_loss")]
    ['loss/a/b:c', 'loss/__/x', 'loss/tmp', 'loss_nll_', 'eval_数据_loss']
    """
    text = re.sub(r"[^\w.\- :/]", "_", one_line(name))
    parts = [part if part.strip(".") else "_" * len(part) for part in text.split("/") if part]
    return "/".join(parts)[:200].rstrip("/") or "_"


class MLflow(_Told, MLflowCallback):  # type: ignore[misc]
    """Facts are parameters, long ones in several; what is logged after the end is of the same run."""

    title, name, begins = "MLflow", "mlflow", " (MLFLOW_TRACKING_URI)"
    _run_id = ""
    _in_files = False
    """Whether runs are kept in files, where `loss` cannot be a file and the folder of `loss/answers` as well."""

    def names_of(self, name: str) -> str:
        """A name that this store takes."""
        found = mlflow_name(name)
        return found.replace("/", ".") if self._in_files else found

    def setup(self, args: Any, state: Any, model: Any, **given: Any) -> None:
        """Begin a run; settings that are too long for MLflow are cut, where transformers drops them."""
        super().setup(_Cut(args, self._MAX_PARAM_VAL_LENGTH), state, model, **given)
        if state.is_world_process_zero:
            self._run_id = self._ml_flow.active_run().info.run_id
            self._in_files = urlsplit(self._ml_flow.get_tracking_uri()).scheme in ("", "file")

    def tell(self, facts: Facts) -> None:
        """Add them to the parameters."""
        longest, pieces = self._MAX_PARAM_VAL_LENGTH, []
        for name, value in facts.items():
            text = str(value)
            for number, start in enumerate(range(0, len(text), longest), start=1):
                key = name if number == 1 else self.names(f"{name} {number}")
                pieces.append((key, text[start : start + longest]))
        for start in range(0, len(pieces), self._MAX_PARAMS_TAGS_PER_BATCH):
            part = dict(pieces[start : start + self._MAX_PARAMS_TAGS_PER_BATCH])
            self._ml_flow.log_params(part, **self._elsewhere())

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, model: Any = None, **_: Any) -> None:
        """Log every number under a name of its own; transformers would make one of names that differ in one sign."""
        if not self._initialized:
            self.setup(args, state, model)
        if not state.is_world_process_zero:
            return
        numbers = {name: float(value) for name, value in (logs or {}).items() if _is_number(value)}
        where = self._elsewhere()
        named = self.names.of(numbers)
        self._ml_flow.log_metrics(named, step=state.global_step, synchronous=bool(where), **where)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """End the run; there is nothing left to end for whoever collects this object."""
        super().on_train_end(args, state, control, **given)
        self._auto_end_run = False

    def __del__(self) -> None:
        """End the run of a training that was broken off; transformers would end whatever run is active by then."""
        run = self._ml_flow.active_run() if self._auto_end_run else None
        if run is not None and run.info.run_id == self._run_id:
            self._ml_flow.end_run()

    def _elsewhere(self) -> dict[str, str]:
        """The run, where it has ended: MLflow would begin another one."""
        return {} if self._ml_flow.active_run() else {"run_id": self._run_id}


class _Cut:
    """Settings whose long values are cut where transformers logs them."""

    def __init__(self, args: Any, longest: int) -> None:
        self._args, self._longest = args, longest

    def __getattr__(self, name: str) -> Any:
        return getattr(self._args, name)

    def to_dict(self) -> dict[str, Any]:
        """The settings, each at most so long as a text."""
        found = {name: (value, str(value)) for name, value in self._args.to_dict().items()}
        longest = self._longest
        return {
            name: value if len(text) <= longest else f"{text[: longest - 1]}…" for name, (value, text) in found.items()
        }


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or getattr(value, "numel", lambda: 0)() == 1


_OURS = {
    TensorBoardCallback: TensorBoard, WandbCallback: WeightsAndBiases, TrackioCallback: Trackio, MLflowCallback: MLflow,
}  # fmt: skip
