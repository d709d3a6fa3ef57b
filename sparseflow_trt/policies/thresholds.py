"""Derives a policy's thresholds from its points."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import get_args

from sparseflow_trt.policies.between import wins_at
from sparseflow_trt.policies.policy import Point, SparseKernel, Threshold, pairs_by_shape


def derive_thresholds(points: Iterable[Point], margin: float, wave: int | None = 0) -> tuple[Threshold, ...]:
    """For each kind, library, dtype and sparse kernel the M at which it wins for every measured shape.

    Of several such ranges the one that spans most octaves of M is taken (of equals the one that begins
    later), since a threshold speaks for shapes that nobody measured: it is to be sure, not to be greedy.
    It has no upper end where sparse still wins above the largest M of every shape, see `between.wins_at`, and
    spans an octave more then.

    Args:
        points: Measured points; an M that lacks its dense or its sparse point is left out.
        margin: The share by which sparse has to be faster.
        wave: The policy's, see `between.wins_between`: a range ends where a shape is not sure to win.
    """
    groups: dict[tuple[str, str, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point.kind, point.library, point.dtype), []).append(point)
    found = []
    for _, members in sorted(groups.items()):
        found += [t for kernel in get_args(SparseKernel) for t in _threshold(members, kernel, margin, wave)]
    return tuple(found)


def with_given(derived: Iterable[Threshold], *others: Iterable[Threshold]) -> tuple[Threshold, ...]:
    """Derived thresholds, and of others those that were given and that no points give anew.

    Args:
        derived: What points give.
        others: Of policies; where two give one for the same products, the later counts.
    """
    found = {_whose(limit): limit for limit in derived}
    given = {_whose(limit): limit for limits in others for limit in limits if not limit.shapes}
    return tuple((found | {whose: given[whose] for whose in given if whose not in found}).values())


def _whose(limit: Threshold) -> tuple[str, str, str, str]:
    return limit.kind, limit.library, limit.dtype, limit.kernel


def _threshold(
    members: list[Point], kernel: SparseKernel, margin: float, wave: int | None
) -> Iterator[Threshold]:
    shapes = pairs_by_shape(members, kernel)
    if not shapes:
        return
    sizes = sorted({m for pairs in shapes.values() for m in pairs})
    # below its smallest M a shape has no say; what it says of m + 1 holds up to its next M
    wins = {
        m: [all(at < min(p) or wins_at(p, at, margin, wave) for p in shapes.values()) for at in (m, m + 1)]
        for m in sizes
    }
    low, high, open_ended = _longest_run(wins)
    yield Threshold(
        kind=members[0].kind,
        library=members[0].library,
        dtype=members[0].dtype,
        kernel=kernel,
        min_m=low,
        max_m=None if open_ended else high,
        shapes=tuple(shapes),
    )


def _longest_run(wins: dict[int, list[bool]]) -> tuple[int | None, int | None, bool]:
    """The first and the last M of the run of wins that spans most octaves, and whether it goes on above them.

    Args:
        wins: For M in ascending order whether it wins there, and right above.
    """
    runs: list[list[int]] = [[]]
    for m, (here, above) in wins.items():
        if here:
            runs[-1].append(m)
        if not here or not above:
            runs.append([])
    last = max(wins)
    found = []
    for run in filter(None, runs):
        open_ended = run[-1] == last and wins[last][1]
        found.append((run[-1] / run[0] * (2 if open_ended else 1), run[0], run[-1], open_ended))
    _, low, high, open_ended = max(found, default=(0, None, None, False))
    return low, high, open_ended
