"""How much of a machine's memory is left."""

from __future__ import annotations

from pathlib import Path


def host_memory() -> int:
    """Bytes of memory that this process may still take: what is free, or what its container leaves."""
    import psutil

    found = int(psutil.virtual_memory().available)
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        try:
            found = min(found, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):  # no container, or no limit: "max"
            continue
    return max(found, 0)
