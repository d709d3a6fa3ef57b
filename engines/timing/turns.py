"""GPU times of pieces of work that take turns: by the GPU's own clock, without the host's time between."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Work = Callable[[], object]  # puts something on a stream


class Event(Protocol):
    """A mark on a stream that knows when the GPU came to it; PyTorch's events are such."""

    def record(self) -> None:
        """Puts it on the stream."""
        ...

    def query(self) -> bool:
        """Whether the GPU has come to it."""
        ...

    def synchronize(self) -> None:
        """Waits until it has."""
        ...

    def elapsed_time(self, end_event: Any) -> float:
        """Milliseconds from this one to a later one."""
        ...


@dataclass(frozen=True)
class TurnTimes:
    """Times of several pieces of work, each as often as the others.

    Attributes:
        ms: Milliseconds, for each piece of work its samples.
        ahead: Whether all was queued before the lead-in was over.
        host_seconds: How long it took to queue all.
    """

    ms: list[list[float]]
    ahead: bool
    host_seconds: float


def times_in_turn(
    new_event: Callable[[], Event],
    works: Sequence[Work],
    samples: int,
    lead_in: Work,
    meanwhile: Work = lambda: None,
) -> TurnTimes:
    """Times pieces of work, `samples` times each, in turn: the first, the second, the first …

    All is queued at once, an event between each two, so that the GPU goes from one to the next by itself.

    Args:
        new_event: Makes an event on the stream that the work is put on.
        works: What to time.
        samples: How often each.
        lead_in: What keeps the GPU busy meanwhile; it is not timed.
        meanwhile: Done on the host while the GPU works.
    """
    events = [new_event() for _ in range(samples * len(works) + 1)]
    lead_in()
    events[0].record()
    begun = time.perf_counter()
    for i in range(samples * len(works)):
        works[i % len(works)]()
        events[i + 1].record()
    host_seconds = time.perf_counter() - begun
    ahead = not events[0].query()
    meanwhile()
    events[-1].synchronize()
    spans = [begin.elapsed_time(end) for begin, end in itertools.pairwise(events)]
    return TurnTimes([spans[i :: len(works)] for i in range(len(works))], ahead, host_seconds)
