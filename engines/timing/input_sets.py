"""How many buffers a product is timed on, and how often: weights are to come from memory, not a cache."""

from __future__ import annotations

import math

_BEYOND_L2 = 1.5  # buffers hold this many times the L2 cache
_MOST_SETS = 256
_GRAPH_US = 1000.0  # a graph is to take this long, so that its launch does not count
_MOST_CALLS = 32


def sets_needed(m: int, n: int, k: int, l2: int, itemsize: int = 2) -> int:
    """How many sets of x[M, K], packed W[N, K] and y[M, N] exceed an L2 cache of `l2` bytes; at least 2."""
    one = itemsize * (m * k + n * k * 9 / 16 + m * n)
    return min(_MOST_SETS, max(2, math.ceil(_BEYOND_L2 * l2 / one)))


def calls_needed(sets: int, us: float) -> int:
    """How many products of `us` microseconds a graph is to hold: each set once, and some time's worth."""
    return max(sets, min(_MOST_CALLS, math.ceil(_GRAPH_US / us)))
