"""What the environment says of what may be shown."""

from __future__ import annotations

import os


def bars_wanted() -> bool:
    """Whether the environment leaves progress bars on (TQDM_DISABLE)."""
    return os.environ.get("TQDM_DISABLE", "").lower() in ("", "0", "false", "no")
