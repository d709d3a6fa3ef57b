"""What is drawn of a policy, as values: each shape's curves, estimates, and where a lookup takes what."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sparseflow_trt.model.kinds import KINDS
from sparseflow_trt.model.packing import why_not_in_plugin
from sparseflow_trt.policies.gemm import Gemm
from sparseflow_trt.policies.lookup import taken_ranges, taken_where_measured, widest
from sparseflow_trt.policies.plugin_lookup import PLUGIN_DTYPES, estimated_speedups, plugin_known
from sparseflow_trt.policies.policy import Dtype, Library, Pair, Point, Policy, SparseKernel, pairs_by_shape

_KERNELS: tuple[SparseKernel, ...] = ("sparse", "plugin")
_MOST_RANGES = 8  # that are written over a panel, those that span most octaves; the others are counted

Shape = tuple[tuple[str, ...], int, int]  # kinds, N, K
Curves = dict[SparseKernel, dict[int, Pair]]  # of one shape, by kernel and by M
Ranges = dict[SparseKernel, list[tuple[int, int]]]  # the M from and to which a lookup takes each


@dataclass(frozen=True)
class Panel:
    """What is drawn of one shape; `estimates` are the plugin's speedups by M, where they decide."""

    curves: Curves
    estimates: dict[int, float]
    ranges: Ranges


def panels_of(policy: Policy, points: Iterable[Point], library: Library, dtype: Dtype) -> dict[Shape, Panel]:
    """A panel for each shape of which one of the points is sparse, in the order of KINDS.

    Args:
        policy: The policy, whose lookup says where a kernel is taken.
        points: What to draw of it.
        library: Whose points of these.
        dtype: Of which type.
    """
    curves = _curves(points, library, dtype)
    return {shape: _panel(policy, shape, each, library, dtype) for shape, each in curves.items()}


def curves_by_shape(points: Iterable[Point]) -> dict[tuple[int, int], Curves]:
    """What can be drawn of points of one library and type: each shape's sparse kernels, held to dense."""
    points = list(points)
    found: dict[tuple[int, int], Curves] = {}
    for kernel in _KERNELS:
        for shape, pairs in pairs_by_shape(points, kernel).items():
            found.setdefault(shape, {})[kernel] = pairs
    return found


def title_of(shape: Shape) -> str:
    """A panel's title, such as "qkv, o  4096 → 4096"."""
    kinds, n, k = shape
    return f"{', '.join(kinds)}  {k} → {n}"


def in_words(ranges: Ranges) -> list[str]:
    """For each kernel the M at which it is taken; of very many ranges the widest."""
    said = []
    for kernel, spans in ranges.items():
        shown = widest(spans, _MOST_RANGES)
        words = ", ".join(f"{begin}–{end}" if begin < end else str(begin) for begin, end in shown)
        more = f" and {len(spans) - len(shown)} narrower" if len(spans) > len(shown) else ""
        said.append(f"{kernel} at M {words}{more}" if words else f"{kernel} at no M")
    return said


def _curves(points: Iterable[Point], library: Library, dtype: Dtype) -> dict[Shape, Curves]:
    """What was measured of each shape, by its kinds, in the order of KINDS."""
    points = [p for p in points if (p.library, p.dtype) == (library, dtype)]
    order = {kind: i for i, kind in enumerate(KINDS)}
    kinds: dict[tuple[int, int], set[str]] = {}
    for p in points:
        kinds.setdefault((p.n, p.k), set()).add(p.kind)
    panels = {}
    for (n, k), curves in curves_by_shape(points).items():
        ranked = sorted((order[kind], kind) for kind in kinds[n, k])
        panels[tuple(ranked), n, k] = curves
    return {(tuple(kind for _, kind in key[0]), *key[1:]): panels[key] for key in sorted(panels)}


def _panel(policy: Policy, shape: Shape, curves: Curves, library: Library, dtype: Dtype) -> Panel:
    """What is drawn of a shape, and where a lookup takes each kernel of the M that it is drawn over."""
    (kind, *_), n, k = shape  # of the shape itself a lookup says the same for each of its kinds
    ranges = {kernel: taken_where_measured(policy, kind, curves[kernel], kernel) for kernel in curves}
    fits = dtype in PLUGIN_DTYPES and not why_not_in_plugin(n, k)
    if library != "tensorrt" or not (fits or "plugin" in curves):
        return Panel(curves, {}, ranges)
    known = plugin_known(policy, Gemm(kind, n, k, dtype))
    estimates = estimated_speedups(known)
    if sizes := {*curves.get("plugin", ()), *estimates}:
        ranges["plugin"] = taken_ranges(known, min(sizes), max(sizes))
    return Panel(curves, estimates, ranges)
