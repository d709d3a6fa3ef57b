"""Small policies, for the tests of what follows from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from sparseflow_trt.policies.policy import Dtype, Library, Point, Policy, Threshold

FIELDS: dict[str, Any] = {
    "schema_version": 1,
    "name": "mine",
    "device": "GPU X",
    "compute_capability": "9.0",
    "provenance": "measured",
    "source": "a test",
}


def make_points(
    kind: str,
    n: int,
    k: int,
    speedups: dict[int, float],
    dtype: Dtype = "FP16",
    library: Library = "tensorrt",
) -> list[Point]:
    """A dense and a sparse point for each M; sparse takes 10 µs."""
    shape: dict[str, Any] = {"kind": kind, "n": n, "k": k, "dtype": dtype, "library": library}
    points = []
    for m, speedup in speedups.items():
        points.append(Point(**shape, m=m, kernel="dense", us=10 * speedup))
        points.append(Point(**shape, m=m, kernel="sparse", us=10))
    return points


def make_policy(
    points: Iterable[Point],
    library: Library = "tensorrt",
    limits: Mapping[str, tuple[int | None, int | None]] = MappingProxyType({}),
) -> Policy:
    """A policy of these points, with thresholds for FP16: {"gate_up": (256, None)}."""
    thresholds = tuple(
        Threshold(kind=kind, library=library, dtype="FP16", min_m=low, max_m=high)
        for kind, (low, high) in limits.items()
    )
    return Policy(**FIELDS, points=tuple(points), thresholds=thresholds)
