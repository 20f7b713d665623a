"""Recognises that a collective failed because another rank is gone.

Such an error is the echo of what happened there: the rank that fell has told its cause.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_SIGNS = re.compile(
    r"connection closed by peer|connection reset|connection refused|broken pipe"
    r"|remote process exited|timed out waiting|communicator was aborted",
    re.IGNORECASE,
)
"""What Gloo, NCCL and the store of torch say of a peer that does not answer any more."""


def lost_rank(error: BaseException) -> str:
    """What the library said of the rank that is gone; nothing where ``error`` is another one."""
    found = next((m for e in _chain(error) if (m := _SIGNS.search(str(e)))), None)
    return "" if found is None else found[0].lower()


def _chain(error: BaseException) -> Iterator[RuntimeError]:
    """``error`` and what it came of, as far as these are errors of a library in C++."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, RuntimeError):
            yield seen
        seen = seen.__cause__ or seen.__context__
