"""A builder's log read from its first line to its last."""

from __future__ import annotations

from collections.abc import Iterable

from sparseflow_trt.engines.evidence.timings import LayerTimings, TimingReader


def read_timings(lines: Iterable[str]) -> tuple[LayerTimings, ...]:
    """What a whole log tells, line by line: an open file will do."""
    reader = TimingReader()
    for line in lines:
        reader.feed(line)
    return reader.layers()
