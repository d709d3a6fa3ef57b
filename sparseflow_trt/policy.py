"""A policy: measured times of dense and sparse products on one device, and what follows from them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from sparseflow_trt._schema import Record, parse, read_text
from sparseflow_trt.errors import PolicyError

SHIPPED = Path(__file__).parent / "policies"
_HINT = "docs/ARCHITECTURE.md shows a policy; `sparseflow-trt policy list` names those that are shipped."

# A measured shape speaks for another of its kind while the two differ by at most this many octaves
# (doublings) in N and K together. Farther ones are left to the kind's threshold.
NEAREST_OCTAVES = 2.0


class Point(Record):
    """One measured product: the median time of one kernel at one shape."""

    kind: str
    n: int = Field(gt=0)
    k: int = Field(gt=0)
    m: int = Field(gt=0)
    dtype: Literal["FP32", "FP16", "BF16", "INT8", "FP8"]
    kernel: Literal["dense", "torch-sparse", "tensorrt-sparse", "plugin-sparse"]
    us: float = Field(gt=0, allow_inf_nan=False)
    spread_us: float | None = None
    runs: int | None = None


class Threshold(Record):
    """From which M to which M sparse is taken for a kind that has no measured shape near enough."""

    min_m: int = Field(ge=1)
    max_m: int | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Threshold:
        if self.max_m is not None and self.max_m < self.min_m:
            raise ValueError(f"max_m={self.max_m} is below min_m={self.min_m}")
        return self


class Policy(Record):
    """What was measured on a device, and from which M on sparse wins there."""

    schema_version: Literal[1]
    name: str
    device: str
    compute_capability: str = Field(pattern=r"^\d+\.\d$")
    libraries: dict[str, str] = Field(default={})
    clocks: str = "not recorded"
    provenance: Literal["measured", "imported", "shipped"]
    source: str
    margin: float = Field(default=0.02, ge=0, lt=1)
    thresholds: dict[str, Threshold] = Field(default={})
    points: tuple[Point, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Whether sparse is expected to win, how that is known, and what it is expected to gain."""

    sparse: bool
    basis: Literal["exact", "nearest", "threshold", "none"]
    reason: str
    speedup: float | None = None


def read_policy(path: Path) -> Policy:
    """Reads a policy file.

    Raises:
        PolicyError: It is missing, is not JSON or has wrong fields.
    """
    text = read_text(path, PolicyError, "policy")
    try:
        data = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise PolicyError(f"{path} is not JSON: {error}.", _HINT) from error
    return parse(Policy, data, str(path), PolicyError, _HINT)


def shipped_policies() -> dict[str, Path]:
    """The policies that come with the package, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.json"))}


def find_policy(name_or_path: str) -> Policy:
    """A shipped policy by its name, or one from a file.

    Raises:
        PolicyError: There is no such policy, or its fields are wrong.
    """
    shipped = shipped_policies()
    if name_or_path in shipped:
        return read_policy(shipped[name_or_path])
    path = Path(name_or_path)
    if not path.exists():
        raise PolicyError(
            f"there is no policy '{name_or_path}'.", f"Shipped: {', '.join(shipped)}; or give a file's path."
        )
    return read_policy(path)


def policy_for_device(device: str) -> Policy | None:
    """The shipped policy measured on the GPU that CUDA calls `device`, if there is one."""
    for path in shipped_policies().values():
        policy = read_policy(path)
        if policy.device.lower() in device.lower():
            return policy
    return None


def judge(policy: Policy, kind: str, n: int, k: int, m: int, dtype: str) -> Verdict:
    """Says whether a product of M×K by K×N should run sparse.

    In this order: the exact shape where it was measured; else the nearest measured shape of the same
    kind, within NEAREST_OCTAVES; else the kind's threshold; else dense. Between measured M the speedup
    is interpolated over log M; below the smallest measured M a shape says nothing. BF16 is judged by
    FP16 points where it has none of its own (the tensor cores run both at one rate).
    """
    points = [p for p in policy.points if p.dtype == dtype]
    if not points and dtype == "BF16":
        points = [p for p in policy.points if p.dtype == "FP16"]
    shape = _nearest_shape(points, kind, n, k)
    if shape:
        exact = shape == (n, k)
        found = _speedup_at([p for p in points if (p.n, p.k) == shape and (exact or p.kind == kind)], m)
        if found:
            speedup, where = found
            origin = f"measured {shape[1]}→{shape[0]}" + ("" if exact else ", the nearest shape of its kind")
            wins = speedup >= 1 + policy.margin
            words = "wins" if wins else f"does not win by {policy.margin:.0%}"
            return Verdict(
                wins,
                "exact" if exact else "nearest",
                f"sparse {words} at M={m}: {speedup:.2f}× {where} ({origin}, {policy.device})",
                speedup,
            )
    threshold = policy.thresholds.get(kind)
    if dtype not in ("FP16", "BF16"):
        return Verdict(False, "none", f"no measurement of {dtype} in policy '{policy.name}'")
    if threshold is None:
        return Verdict(False, "none", f"no measurement for kind '{kind}' in policy '{policy.name}'")
    return _by_threshold(policy, kind, threshold, m)


def _by_threshold(policy: Policy, kind: str, threshold: Threshold, m: int) -> Verdict:
    above = m >= threshold.min_m
    below = threshold.max_m is None or m <= threshold.max_m
    limit = f"M ≥ {threshold.min_m}" + ("" if threshold.max_m is None else f" and ≤ {threshold.max_m}")
    words = f"threshold of kind '{kind}': sparse for {limit}, and M={m} ({policy.device})"
    return Verdict(above and below, "threshold", words)


def _nearest_shape(points: Iterable[Point], kind: str, n: int, k: int) -> tuple[int, int] | None:
    shapes = {(p.n, p.k) for p in points if p.kind == kind or (p.n, p.k) == (n, k)}
    if not shapes:
        return None

    def octaves(shape: tuple[int, int]) -> float:
        return abs(math.log2(shape[0] / n)) + abs(math.log2(shape[1] / k))

    nearest = min(sorted(shapes), key=octaves)
    return nearest if octaves(nearest) <= NEAREST_OCTAVES else None


def _speedup_at(points: list[Point], m: int) -> tuple[float, str] | None:
    """Dense time over the best sparse time at M, and in words where it was read."""
    dense = {p.m: p.us for p in points if p.kernel == "dense"}
    sparse: dict[int, float] = {}
    for p in points:
        if p.kernel != "dense":
            sparse[p.m] = min(p.us, sparse.get(p.m, math.inf))
    ratios = sorted((m_, dense[m_] / sparse[m_]) for m_ in dense.keys() & sparse.keys())
    if not ratios or m < ratios[0][0]:
        return None
    below = max(r for r in ratios if r[0] <= m)
    above = min((r for r in ratios if r[0] >= m), default=None)
    if above is None:
        return below[1], f"at M={below[0]}, the largest measured"
    if above[0] == below[0]:
        return below[1], "measured"
    share = math.log(m / below[0]) / math.log(above[0] / below[0])
    return below[1] + share * (above[1] - below[1]), f"between M={below[0]} and M={above[0]}"
