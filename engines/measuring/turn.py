"""One of several threads that measure at a time: what is timed is timed alone."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Turn:
    """Held by the thread that prepares or times a product, and given up while its engines are built.

    Python runs one thread at a time anyway, and whatever another one does meanwhile would be in the times.
    """

    def __init__(self) -> None:
        """Makes it; nobody has it."""
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """Waits until nobody has it; then this thread does, in this block."""
        with self._lock:
            yield

    @contextlib.contextmanager
    def given_up(self) -> Iterator[None]:
        """Whoever has it gives it up in this block, and waits for it again at its end."""
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()
