"""What measured times of a product say of the M between them.

GPUs compute y in tiles, as many at once as there are multiprocessors: a wave. Times are stairs in M, and
dense and sparse kernels have steps of different sizes in different places. So dense may win between two M at
both of which sparse does: on an H200 sparse takes 132 µs at M=256, 247 at 264 and 253 at 512, and dense 199,
202 and 354 (8192→28672 in BF16, shipped/h200.json).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence

from sparseflow_trt.policies.policy import Pair, Point

# Of an H200's 2587 measured M, each asked for by its neighbours alone, four are lost at a margin of 5 % with
# waves of tiles of this size, and twelve without (benchmarks/ship_policy.py).
_TILE = 64 * 128
MULTIPROCESSORS = 132  # of an H100 SXM or an H200


def wave_of(multiprocessors: int) -> int:
    """The elements of y in one wave: a tile for each multiprocessor."""
    return multiprocessors * _TILE


WAVE = wave_of(MULTIPROCESSORS)


def around(sizes: Sequence[int], m: int) -> Sequence[int]:
    """Of M that grow those around one: itself, its two neighbours, or the one at the end; none of none."""
    i = bisect_left(sizes, m)
    alone = i < len(sizes) and sizes[i] == m
    return sizes[i : i + 1] if alone else sizes[max(i - 1, 0) : i + 1]


def time_between(m: float, points: Sequence[Point]) -> float:
    """The time at M on the line through two points, log over log; that of the only one."""
    low, high = points[0], points[-1]
    if m == low.m or low.m == high.m:
        return low.us
    share = math.log(m / low.m) / math.log(high.m / low.m)
    return math.exp(math.log(low.us) + share * (math.log(high.us) - math.log(low.us)))


def wins_between(low: Pair, high: Pair, margin: float, wave: int | None) -> bool:
    """Whether sparse wins at all M between two measured ones, as far as these tell.

    It has to win at both, and what it takes a wave of tiles beyond the smaller M has to win against dense at
    the smaller: sparse may have a step to take where dense has none. Where the larger M is nearer than a
    wave, it counts.

    Args:
        low: The times at the smaller M.
        high: Those at the larger.
        margin: The share by which sparse has to be faster.
        wave: Elements of y in a wave; with 0 times count as smooth. None where it is not known: then the
            larger M counts, however far it is.
    """
    if not (low.wins(margin) and high.wins(margin)):
        return False
    reach = math.inf if wave is None else wave / low.dense.n
    beyond = min(low.dense.m + reach, high.dense.m)
    return low.dense.us >= (1 + margin) * time_between(beyond, [low.sparse, high.sparse])


def wins_at(pairs: Mapping[int, Pair], m: int, margin: float, wave: int | None) -> bool:
    """Whether sparse wins at M: there, or all the way between the measured M around it.

    Above the largest measured M it has to win at the two largest, since one win may be a stair's edge: on an
    H200 TensorRT's sparse kernel gains 1.24 times at M=1024, nothing at 2048 (768→2304, shipped/h200.json).
    Below the smallest what holds there holds.

    Args:
        pairs: One shape's times by M, ascending.
        m: Rows.
        margin: As in `wins_between`.
        wave: As in `wins_between`.
    """
    low, *high = (pairs[size] for size in around(list(pairs), m))
    if high:
        return wins_between(low, high[0], margin, wave)
    return low.wins(margin) and not lost_before(pairs, m, margin)


def lost_before(pairs: Mapping[int, Pair], m: int, margin: float) -> list[int]:
    """Above the largest measured M, if sparse wins at that one: the one before, if it does not there."""
    *before, largest = list(pairs)[-2:]
    if m <= largest or not pairs[largest].wins(margin):
        return []
    return [size for size in before if not pairs[size].wins(margin)]
