"""What other libraries say: silenced while they work for us, and read where they refuse."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from sparseflow_trt.errors import one_line

_REFUSED = re.compile(
    r".*Non-zero status code returned while running (?P<operator>\S+) node\. Name:'(?P<name>.*?)' "
    r"Status Message: (?:\S+\.(?:h|cc):\d+ (?:.* was false\. )?)?(?P<why>.*)"
)

# The number is missing where an array of the C++ library's own does not fit.
_NO_MEMORY = re.compile(
    r".*(?:Failed to allocate memory for requested buffer of size (?P<bytes>\d+)|bad_alloc|bad allocation).*"
)


@contextlib.contextmanager
def quiet_polygraphy() -> Iterator[None]:
    """Silences Polygraphy's logger in the block, and puts its severity back as it was.

    Even "critical" is silenced: each such message is also the text of the exception that follows it.
    """
    from polygraphy.logger import G_LOGGER

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL + 1):
        yield


@contextlib.contextmanager
def no_statistics() -> Iterator[None]:
    """Keeps Polygraphy in the block from describing what it compares to its log, whether that is on or off.

    It would sort each array of differences three times for percentiles, which take most of a comparison's
    time.
    """
    from polygraphy.comparator import util

    found = getattr(util, "log_output_stats", None)
    if found is None:  # no promised name: where it is another, comparing takes longer
        yield
        return
    util.log_output_stats = lambda *_, **__: None
    try:
        yield
    finally:
        util.log_output_stats = found


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


def why_refused(error: BaseException) -> str:
    """Why a run failed, on one line with no full stop: of ONNX Runtime's refusals the node comes first."""
    words = one_line(error)
    if said := _REFUSED.fullmatch(words):
        node = f"{said['operator']} node '{said['name']}'" if said["name"] else f"a {said['operator']} node"
        return f"{node} {_lacks(said['why']) or 'refuses it: ' + said['why']}"
    return words


def lacks_memory(error: BaseException) -> bool:
    """Whether a run failed because the machine has too little memory for it."""
    return isinstance(error, MemoryError) or bool(_NO_MEMORY.fullmatch(one_line(error)))


def _lacks(why: str) -> str:
    """What of a node that was refused memory, "" where that is not why it failed."""
    found = _NO_MEMORY.fullmatch(why)
    if not found:
        return ""
    size = f": {int(found['bytes']) / 1e9:.1f} GB for one tensor" if found["bytes"] else ""
    return f"needs more memory than there is{size}"
