"""What other libraries say: silenced while they work for us."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_polygraphy() -> Iterator[None]:
    """Silences Polygraphy's logger in the block, and puts its severity back as it was.

    Even "critical" is silenced: each such message is also the text of the exception that follows it.
    """
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):
        yield


@contextlib.contextmanager
def numpy_only() -> Iterator[None]:
    """Keeps Polygraphy from importing PyTorch in the block, to ask whether an array is a tensor.

    That takes seconds, and where Ctrl-C comes in the middle Polygraphy goes on with half of PyTorch, which
    crashes Python at its exit.
    """
    from polygraphy.util import array

    found = array.is_torch
    array.is_torch = lambda obj: False
    try:
        yield
    finally:
        array.is_torch = found
