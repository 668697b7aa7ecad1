"""The settings of a run as plugins see them: to be read, and not to be changed."""

from __future__ import annotations

from typing import Any, NoReturn


class Fixed(dict[str, Any]):
    """A mapping that refuses to be changed, and can be sent to other processes.

    >>> Fixed(seed=1)["seed"] = 2
    Traceback (most recent call last):
    TypeError: the settings of a run are not a plugin's to change
    """

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("the settings of a run are not a plugin's to change")

    __setitem__ = __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[type[Fixed], tuple[dict[str, Any]]]:
        return Fixed, (dict(self),)
