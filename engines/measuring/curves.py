"""What is asked of those that measure, and what they answer: a product's curve, one M of it, two points."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from sparseflow_trt.engines.machine.gpu_state import ClockState
from sparseflow_trt.engines.measuring.medians import Median
from sparseflow_trt.policies.policy import Dtype, Kernel, Library, Pair, Point, SparseKernel
from sparseflow_trt.policies.presets import Product
from sparseflow_trt.policies.tactics import TOOK_DENSE

KERNELS: tuple[SparseKernel, ...] = ("sparse", "plugin")


@dataclass(frozen=True)
class Curve:
    """One product over all M, dense and by one kernel. Two kinds with the same N and K have one curve."""

    library: Library
    dtype: Dtype
    n: int
    k: int
    kind: str = field(compare=False)
    kernel: SparseKernel = "sparse"

    def __str__(self) -> str:
        return f"{self.k}→{self.n}, {self.dtype}, {self.whose}"

    @property
    def whose(self) -> str:
        """Whose kernel is held against dense, in words."""
        return "the plugin" if self.kernel == "plugin" else self.library


@dataclass(frozen=True)
class Request:
    """One product at one M, to be measured dense and by its curve's kernel."""

    curve: Curve
    m: int

    def __str__(self) -> str:
        curve = self.curve
        return f"{curve.k}→{curve.n}, M={self.m}, {curve.dtype}, {curve.whose}"


@dataclass(frozen=True)
class Measured:
    """A request's answer.

    Attributes:
        request: What was measured.
        pair: The two points, as they were timed.
        seconds: How long it took.
        how: How kernels were timed, in two words.
        clock: The state of the GPU's clocks under that load, None where nothing tells it.
    """

    request: Request
    pair: Pair
    seconds: float
    how: str = ""
    clock: ClockState | None = None

    @property
    def counted(self) -> Pair:
        """The pair as it counts: where TensorRT took a dense tactic, one engine was timed twice.

        Both points have the mean of the two times then, and an interval that holds both intervals: what the
        two differ by is no gain. On an H200 that was up to 6 % where the power cap held the clocks back.
        """
        return _of_one_engine(self.pair) if TOOK_DENSE in self.pair.sparse.tactic else self.pair


class Workers(Protocol):
    """Those that measure, `count` at a time."""

    count: int

    def submit(self, request: Request) -> None:
        """Gives one of them work; there are never more than `count` requests under way."""
        ...

    def next_measured(self) -> Measured:
        """Waits for the answer to one of the requests under way.

        Where that is an error, the others are still under way.
        """
        ...


def curves_of(
    products: Iterable[Product],
    dtypes: Iterable[Dtype],
    libraries: Iterable[Library],
    plugin: bool = False,
) -> tuple[Curve, ...]:
    """A curve for each library, dtype and shape; a shape that comes twice has the kind that came first.

    With `plugin` there is one of the plugin for each of TensorRT, behind that.
    """
    known = tuple(products)
    curves = (
        Curve(library, dtype, p.n, p.k, p.kind, kernel)
        for library in libraries
        for kernel in (KERNELS if plugin and library == "tensorrt" else KERNELS[:1])
        for dtype in dtypes
        for p in known
    )
    return tuple(dict.fromkeys(curves))


def pair_of(request: Request, medians: Sequence[Median], tactics: tuple[str, str]) -> Pair:
    """The two points of a request, from medians in microseconds and what ran, each dense first."""
    curve = request.curve
    kernels: tuple[Kernel, Kernel] = ("dense", curve.kernel)
    dense, sparse = (
        Point(
            kind=curve.kind,
            n=curve.n,
            k=curve.k,
            m=request.m,
            dtype=curve.dtype,
            library=curve.library,
            kernel=kernel,
            us=round(median.value, 3),
            low_us=round(median.low, 3),
            high_us=round(median.high, 3),
            runs=median.runs,
            tactic=tactic,
        )
        for kernel, median, tactic in zip(kernels, medians, tactics, strict=True)
    )
    return Pair(dense, sparse)


def _of_one_engine(pair: Pair) -> Pair:
    """A pair whose two points are of one engine, with what both say of it."""
    points = (pair.dense, pair.sparse)
    bounds = [(p.low_us or p.us, p.high_us or p.us) for p in points]
    time = {
        "us": round(sum(p.us for p in points) / 2, 3),
        "low_us": min(low for low, _ in bounds),
        "high_us": max(high for _, high in bounds),
    }
    return Pair(*(p.model_copy(update=time) for p in points))
