"""Worker processes of loaders, that begin anew and are sent what they work with: what cannot be sent is refused."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

from sftcore.core.door import located
from sftcore.core.errors import DataError, said_by
from sftcore.documents.layouts import RowLayouts
from sftcore.util.claims import spelled

if TYPE_CHECKING:
    from sftcore.config.sft_config import SFTConfig
    from sftcore.core.registry import Bound

FORK = "fork"


def refuse_unsent(layouts: RowLayouts, args: SFTConfig, plugins: Sequence[Bound]) -> None:
    """Refuse a collator that cannot be sent to the workers of a run's loaders.

    Args:
        plugins: the one that made the collator; none where the user passed one in.

    Raises:
        DataError: it cannot be pickled; names it, and the line of its function.
    """
    if not args.dataloader_num_workers or (begun := begun_by(args)) == FORK:
        return
    for collator in (layouts.side_by_side, layouts.end_to_end):
        try:
            ForkingPickler.dumps(collator)
        except Exception as error:  # what a plugin or a user handed over may raise anything when it is pickled
            at = located(getattr(collator, "function", collator))
            what = f"{spelled(plugins[0])}: what its make_collator returned" if plugins else "data_collator"
            raise DataError(
                f"{what} ({at}) cannot be sent to {args.dataloader_num_workers} worker processes that begin by "
                f"{begun}: {said_by(error)}.",
                fix="Make it a function or an object of a class at the top of a module, or set "
                "dataloader_num_workers: 0.",
            ) from error


def begun_by(args: SFTConfig) -> str:
    """How workers begin: "fork", "spawn" or "forkserver"; nothing is settled by asking."""
    chosen: Any = args.dataloader_multiprocessing_context or multiprocessing.get_start_method(allow_none=True)
    return chosen or multiprocessing.get_all_start_methods()[0]  # the first is the system's own
