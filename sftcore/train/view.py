"""What recorder, summary, card and checkpoints read of a trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from sftcore.config.setup import Setup
    from sftcore.core.types import LoadedModel
    from sftcore.data.sets import DataPreparation
    from sftcore.documents.shared_rows import SharedRows
    from sftcore.train.account.row_losses import RowLosses
    from sftcore.train.account.written import RowsFile
    from sftcore.train.guard.divergence import Nonfinite


class RowRecord(Protocol):
    """What is known of the training rows, and whether the run's log was begun by this process."""

    train_files_sha256: Sequence[str]
    begun: bool

    def rows_hash(self) -> str | None:
        """Hash of the prepared training rows; None for a stream."""


class RunView(Protocol):
    """A run as it is recorded and described; `SFTTrainer` is one."""

    args: Any
    setup: Setup
    data: DataPreparation
    rows_as_loaded: int
    loaded: LoadedModel
    train_dataset: Any
    eval_dataset: Any
    state: Any
    shared_rows: SharedRows
    is_in_train: bool
    tags: tuple[str, ...]
    row_losses: RowLosses
    rows_file: RowsFile

    @property
    def recorder(self) -> RowRecord:
        """What is known of the training rows."""

    @property
    def nonfinite(self) -> Nonfinite:
        """The steps whose loss or gradients were not finite."""
