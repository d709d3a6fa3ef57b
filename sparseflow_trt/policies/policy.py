"""A policy: measured times of dense and sparse products on one device, and the thresholds they give.

What follows from it for one product is `lookup`'s to say; `thresholds` derives the thresholds.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from sparseflow_trt._listing import did_you_mean
from sparseflow_trt._paths import AnyPath
from sparseflow_trt._same import Same
from sparseflow_trt._schema import Record, load_json, parse, read_text
from sparseflow_trt.errors import PolicyError
from sparseflow_trt.model.kinds import known_kind

SHIPPED = Path(__file__).parent / "shipped"
MARGIN = 0.02
_HINT = (
    "docs/AUTOTUNED_POLICY.md explains a policy; `sparseflow-trt policy list` names those that are shipped."
)

Kind = Annotated[str, AfterValidator(known_kind)]  # a mistyped one would match no layer, in silence
Dtype = Literal["FP32", "FP16", "BF16", "INT8", "FP8"]

# Whose kernels ran. "torch" is cuBLAS for dense and cuSPARSELt for sparse, as PyTorch calls them.
Library = Literal["tensorrt", "torch"]
WHOSE: dict[Library, str] = {"tensorrt": "TensorRT's kernels", "torch": "cuSPARSELt against cuBLAS"}

# "plugin" is this project's own kernel inside a TensorRT engine.
Kernel = Literal["dense", "sparse", "plugin"]
SparseKernel = Literal["sparse", "plugin"]


class Point(Record):
    """One measured product, y[M, N] = x[M, K] · Wᵀ, with 2:4 weights whatever the kernel.

    Attributes:
        kind: The layer's kind, see `kinds`.
        us: The median time of one product, in microseconds of GPU time.
        low_us: Where the 95 % confidence interval of that median begins, where it was recorded.
        high_us: Where it ends.
        runs: How many times it was timed.
        tactic: What the library calls the kernel that it took: a tactic's name, an algorithm's number.
    """

    kind: Kind
    n: int = Field(gt=0)
    k: int = Field(gt=0)
    m: int = Field(gt=0)
    dtype: Dtype
    library: Library
    kernel: Kernel
    us: float = Field(gt=0, allow_inf_nan=False)
    low_us: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    high_us: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    runs: int | None = Field(default=None, ge=1)
    tactic: str = ""

    @model_validator(mode="after")
    def _inside(self) -> Point:
        low, high = self.low_us, self.high_us
        if (low is None) != (high is None):
            raise ValueError("low_us and high_us are given together or not at all")
        if low is not None and high is not None and not low <= self.us <= high:
            raise ValueError(f"us={self.us} lies outside low_us={low} to high_us={high}")
        return self

    @property
    def key(self) -> tuple[Library, Dtype, str, int, int, int, Kernel]:
        """What was measured, whatever came of it."""
        return self.library, self.dtype, self.kind, self.n, self.k, self.m, self.kernel


@dataclass(frozen=True)
class Pair:
    """One product's dense time, and that of a kernel for 2:4 weights: the library's own, or the plugin's."""

    dense: Point
    sparse: Point

    @property
    def speedup(self) -> float:
        """Dense time over sparse time."""
        return self.dense.us / self.sparse.us

    def wins(self, margin: float) -> bool:
        """Whether sparse is faster by the margin."""
        return self.dense.us >= self.sparse.us * (1 + margin)


class Threshold(Record):
    """From which M to which M sparse is taken for layers of a kind that no measured shape is near to.

    Attributes:
        kernel: Which sparse kernel it speaks of: the library's own, or the plugin.
        min_m: The smallest such M; None where sparse is taken at no M.
        max_m: The largest; None where there is none.
        shapes: The measured (N, K) behind it, empty where it was given and not derived.
    """

    kind: Kind
    library: Library
    dtype: Dtype
    kernel: SparseKernel = "sparse"
    min_m: int | None = Field(ge=1)
    max_m: int | None = None
    shapes: tuple[tuple[int, int], ...] = ()

    @model_validator(mode="after")
    def _ordered(self) -> Threshold:
        if self.max_m is not None and (self.min_m is None or self.max_m < self.min_m):
            raise ValueError(f"max_m={self.max_m} is below min_m={self.min_m}")
        return self

    def holds(self, m: int) -> bool:
        """Whether sparse is taken at M."""
        return self.min_m is not None and self.min_m <= m and (self.max_m is None or m <= self.max_m)


class Policy(Record):
    """What was measured on a device, and from which M on sparse wins there.

    Attributes:
        device: What CUDA calls the GPU, or a part of it.
        clocks: The state of the GPU's clocks while it was measured, in words.
        margin: The share by which sparse has to be faster to be taken.
        wave: The elements of a product that count as computed at once, for what holds between two measured M
            (`between`); 0 where times count as smooth, None where it is not known.
        spreads: How many standard deviations of what measured shapes say of another one are taken off it, for
            what holds of a shape that was not measured (`forest`).
        spreads_between: The same for what holds of a measured shape between two measured M.
        provenance: "measured" by this tool, "imported" from another's file, or "shipped" with this tool.
        source: Where the figures come from, with the command that made them.
    """

    schema_version: Literal[1]
    name: str
    device: str
    compute_capability: str = Field(pattern=r"^\d+\.\d$")
    libraries: dict[str, str] = Field(default={})
    clocks: str = "not recorded"
    provenance: Literal["measured", "imported", "shipped"]
    source: str
    margin: float = Field(default=MARGIN, ge=0, lt=1)
    wave: int | None = Field(default=0, ge=0)
    spreads: float = Field(default=1.5, ge=0)
    spreads_between: float = Field(default=1.5, ge=0)
    thresholds: tuple[Threshold, ...] = ()
    points: tuple[Point, ...] = ()

    @property
    def held(self) -> frozenset[tuple[Library, Dtype]]:
        """Whose kernels of which type it holds points or thresholds of."""
        return _held(Same(self.points), Same(self.thresholds))

    @model_validator(mode="after")
    def _unique(self) -> Policy:
        seen = set()
        for limit in self.thresholds:
            key = (limit.kind, limit.library, limit.dtype, limit.kernel)
            if key in seen:
                raise ValueError(f"two thresholds for {' '.join(key)}")
            seen.add(key)
        return self


@functools.lru_cache(maxsize=16)
def _held(
    points: Same[tuple[Point, ...]], thresholds: Same[tuple[Threshold, ...]]
) -> frozenset[tuple[Library, Dtype]]:
    of_points = {(point.library, point.dtype) for point in points.value}
    return frozenset(of_points | {(limit.library, limit.dtype) for limit in thresholds.value})


@functools.lru_cache(maxsize=8)
def points_of(points: Same[tuple[Point, ...]]) -> dict[tuple[str, str], tuple[Point, ...]]:
    """A policy's points by whose kernels ran and of which type, in their order: each layer asks for some."""
    found: dict[tuple[str, str], list[Point]] = {}
    for point in points.value:
        found.setdefault((point.library, point.dtype), []).append(point)
    return {key: tuple(some) for key, some in found.items()}


def read_policy(path: Path) -> Policy:
    """Reads a policy file.

    Raises:
        PolicyError: It is missing, is not JSON or has wrong fields, is of the older form that is imported,
            or a threshold does not follow from the points that it names.
    """
    text = read_text(path, PolicyError, "policy")
    data = load_json(text, str(path), PolicyError, _HINT)
    if _holds_limits(data):
        command = f"sparseflow-trt policy import {shlex.quote(str(path))}"
        raise PolicyError(
            f"{path} is no policy: it holds limits by operation, an older form.",
            f"Make a policy of it: `{command} --name NAME --device GPU --compute-capability X.Y -o FILE`.",
        )
    policy = parse(Policy, data, str(path), PolicyError, _HINT)
    for limit in policy.thresholds:
        if why := _why_unfounded(limit, policy):
            raise PolicyError(
                f"{path}: the threshold of {limit.kind} ({limit.library} {limit.dtype}, {limit.kernel}) "
                f"names points that do not support it: {why}.",
                "If points or `margin` were changed by hand, remove the threshold: its layers are then dense "
                "where no measured shape is near. One that is given, not derived, names no `shapes`.",
            )
    return policy


def _holds_limits(data: Any) -> bool:
    """Whether this is what `policy_import` reads: {"ops": {"o_proj": {"min_m": 256}}}, or that mapping."""
    if not isinstance(data, dict) or "schema_version" in data:
        return False
    limits = data.values()
    return "ops" in data or (bool(data) and all(isinstance(x, dict) and "min_m" in x for x in limits))


def _why_unfounded(limit: Threshold, policy: Policy) -> str:
    """How a policy's points speak against a threshold that names their shapes; "" where they do not."""
    whose = (limit.kind, limit.library, limit.dtype)
    points = (p for p in policy.points if (p.kind, p.library, p.dtype) == whose)
    shapes = pairs_by_shape(points, limit.kernel) if limit.shapes else {}
    for n, k in limit.shapes:
        if (n, k) not in shapes:
            return f"it holds no dense and {limit.kernel} points for {k}→{n}"
        for m, pair in shapes[n, k].items():
            if limit.holds(m) and not pair.wins(policy.margin):
                return f"{k}→{n} has {pair.speedup:.2f}× at M={m}, which is not a win by {policy.margin:.0%}"
    return ""


def json_from_policy(policy: Policy) -> str:
    """The policy as JSON, a point a line, so that a policy under version control shows what changed."""
    data = policy.model_dump(mode="json", exclude={"points", "thresholds"})
    head = _json(data, indent=2).removesuffix("\n}")
    for name, rows in (("thresholds", policy.thresholds), ("points", policy.points)):
        lines = ",".join(f"\n    {_json(row.model_dump(mode='json', exclude_defaults=True))}" for row in rows)
        head += f',\n  "{name}": [{lines}' + ("\n  ]" if rows else "]")
    return head + "\n}\n"


def digest_of(policy: Policy) -> str:
    """The SHA-256 of a policy's content: what shows one says so which it is."""
    return hashlib.sha256(json_from_policy(policy).encode()).hexdigest()


def _json(data: object, indent: int | None = None) -> str:
    return json.dumps(data, indent=indent, ensure_ascii=False)


def fastest_points(points: Iterable[Point]) -> list[Point]:
    """Of the points of one product, library and kernel the fastest."""
    found: dict[object, Point] = {}
    for point in points:
        found[point.key] = min(point, found.get(point.key, point), key=lambda p: p.us)
    return list(found.values())


def pairs_by_shape(
    points: Iterable[Point], kernel: SparseKernel = "sparse"
) -> dict[tuple[int, int], dict[int, Pair]]:
    """The pairs of a dense point and one of a kernel: by (N, K), then by M, both ascending.

    An M that lacks either is left out, and so is a shape with no pair. Of several points the fastest counts.

    Args:
        points: Of one dtype, and of one library or of those whose kernels shall be compared.
        kernel: The sparse kernel.
    """
    fastest: dict[tuple[int, int, int, bool], Point] = {}
    for point in points:
        if point.kernel not in ("dense", kernel):
            continue
        key = (point.n, point.k, point.m, point.kernel == "dense")
        if key not in fastest or point.us < fastest[key].us:
            fastest[key] = point
    pairs: dict[tuple[int, int], dict[int, Pair]] = {}
    for n, k, m, is_dense in sorted(fastest):
        if is_dense and (n, k, m, False) in fastest:
            pair = Pair(fastest[n, k, m, True], fastest[n, k, m, False])
            pairs.setdefault((n, k), {})[m] = pair
    return pairs


def pairs_by_m(points: Iterable[Point], kernel: SparseKernel = "sparse") -> dict[int, Pair]:
    """The pairs of points of one shape, as of `pairs_by_shape`; none where no M has both."""
    return next(iter(pairs_by_shape(points, kernel).values()), {})


def dense_by_m(points: Iterable[Point]) -> dict[int, Point]:
    """The dense points of those of one shape, by M, which grows; of several the fastest counts."""
    dense = sorted((p for p in points if p.kernel == "dense"), key=lambda p: (p.m, -p.us))
    return {point.m: point for point in dense}


def shipped_policies() -> dict[str, Path]:
    """The policies that come with the package, by name."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.json"))}


@functools.lru_cache(maxsize=8)
def _read_shipped(path: Path) -> Policy:
    """One that comes with the package, read once: what was learned from its points holds for all who ask."""
    return read_policy(path)


def find_policy(name_or_path: AnyPath) -> Policy:
    """A shipped policy by its name or its device (h200, A100, "NVIDIA H200"), or one from a file.

    Raises:
        PolicyError: There is no such policy, or its fields are wrong.
    """
    name_or_path = str(name_or_path)
    shipped = shipped_policies()
    if name_or_path.lower() in shipped:
        return _read_shipped(shipped[name_or_path.lower()])
    path = Path(name_or_path)
    if path.exists() or path.suffix == ".json":  # of a file's name it says that there is none
        return read_policy(path)
    if policy := policy_for_device(name_or_path):
        return policy
    hint = did_you_mean(
        name_or_path,
        shipped,
        f"Shipped: {', '.join(shipped)}; or give a file's path. On another GPU "
        "`sparseflow-trt autotune MODEL -o FILE` measures one.",
    )
    raise PolicyError(f"there is no policy '{name_or_path}'.", hint, usage=True)


def policy_for_device(device: str) -> Policy | None:
    """The shipped policy measured on the GPU that CUDA calls `device`, if there is one."""
    policies = map(_read_shipped, shipped_policies().values())
    return next((policy for policy in policies if is_measured_on(policy, device)), None)


def is_measured_on(policy: Policy, device: str) -> bool:
    """Whether a policy is of the GPU that CUDA calls `device`.

    All words of the policy's device have to be in it: A100 is in "NVIDIA A100-SXM4-80GB", and H200 is
    not in "NVIDIA GH200 480GB". A part of a GPU (MIG) is not the whole.
    """
    words, here = _words(policy.device), _words(device)
    return bool(words) and words <= here and ("mig" in words) == ("mig" in here)


def _words(device: str) -> set[str]:
    return set(re.findall(r"[a-z0-9]+", device.lower())) - {"nvidia"}
