"""Derives a policy's thresholds from its points."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import get_args

from sparseflow_trt.between import wins_at
from sparseflow_trt.policy import Point, SparseKernel, Threshold, pairs_by_shape


def derive_thresholds(points: Iterable[Point], margin: float) -> tuple[Threshold, ...]:
    """For each kind, library, dtype and sparse kernel the M at which it wins for every measured shape.

    Of several such ranges the one that spans most octaves of M is taken (of equals the one that begins
    later), since a threshold speaks for shapes that nobody measured: it is to be sure, not to be greedy.
    It has no upper end where sparse still won at the largest M of every shape.

    Args:
        points: Measured points; an M that lacks its dense or its sparse point is left out.
        margin: The share by which sparse has to be faster.
    """
    groups: dict[tuple[str, str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point.kind, point.library, point.dtype), []).append(point)
    found = []
    for _, members in sorted(groups.items()):
        found += [t for kernel in get_args(SparseKernel) for t in _threshold(members, kernel, margin)]
    return tuple(found)


def _threshold(members: list[Point], kernel: SparseKernel, margin: float) -> Iterator[Threshold]:
    shapes = pairs_by_shape(members, kernel)
    if not shapes:
        return
    sizes = sorted({m for pairs in shapes.values() for m in pairs})
    # below its smallest M a shape has no say
    wins = {m: all(m < min(p) or wins_at(p, m, margin, 0) for p in shapes.values()) for m in sizes}
    low, high = _longest_run(wins)
    yield Threshold(
        kind=members[0].kind,
        library=members[0].library,
        dtype=members[0].dtype,
        kernel=kernel,
        min_m=low,
        max_m=None if high == sizes[-1] else high,
        shapes=tuple(shapes),
    )


def _longest_run(wins: dict[int, bool]) -> tuple[int | None, int | None]:
    """The first and the last M of the run of wins that spans most octaves; of M in ascending order."""
    runs: list[list[int]] = [[]]
    for m, won in wins.items():
        if won:
            runs[-1].append(m)
        else:
            runs.append([])
    found = [(run[-1] / run[0], run[0], run[-1]) for run in runs if run]
    _, low, high = max(found, default=(0, None, None))
    return low, high
