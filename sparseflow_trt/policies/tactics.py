"""What points say of TensorRT's tactics, where it was allowed sparse ones and took a dense one."""

from __future__ import annotations

import re

from sparseflow_trt.policies.policy import Point

TOOK_DENSE = "(a dense tactic"  # in a sparse point's tactic: of all that it was allowed TensorRT took that
_BEST = re.compile(r"best sparse tactic ([0-9.]+) µs, best dense tactic ([0-9.]+) µs")


def told_best(sparse_us: float | None, dense_us: float | None) -> str:
    """The builder's own times of the best tactics, as a point's tactic tells them after `TOOK_DENSE`."""
    times = [
        f"best {sort} tactic {us:.1f} µs"
        for sort, us in (("sparse", sparse_us), ("dense", dense_us))
        if us is not None
    ]
    return f"; in the builder's log: {', '.join(times)}" if times else ""


def times_as_long(point: Point, otherwise: float) -> float | None:
    """How many times as long as dense a product takes in a sparse tactic, where TensorRT took a dense one.

    Args:
        point: Of the sparse kernel.
        otherwise: What holds where the builder's times are not told.

    Returns:
        The ratio of the builder's best times; None where it took a sparse tactic, whose time the point has.
    """
    if TOOK_DENSE not in point.tactic:
        return None
    best = _BEST.search(point.tactic)
    return max(1.0, float(best[1]) / float(best[2])) if best and float(best[2]) else otherwise
