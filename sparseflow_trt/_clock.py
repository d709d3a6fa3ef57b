"""How long each step of a build took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Adds up the seconds that each named step took."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        """Counts the block's seconds to `step`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[step] = self._seconds.get(step, 0.0) + time.perf_counter() - start

    def rounded(self) -> dict[str, float]:
        """The seconds of each step so far, to the millisecond."""
        return {step: round(value, 3) for step, value in self._seconds.items()}
